"""What if the bot dies exactly here? The real bot, as a process that kills itself at a named point.

Run as a program. It reads orders from standard input, a JSON object a line, and answers on standard output:

* ``{"do": "start", "database": URL}``: fork a child that runs the bot; then ``started`` and ``listening`` are said.
* ``{"do": "arm", "kill": {...} | null}``: from now on the child says each point that it passes; at the ``nth`` that is
  of this ``kind``, ``name`` and ``when`` it sends itself SIGKILL. ``armed`` is said. With ``"hold": {...}``
  in its place it stands still there (all threads, each at its next point), says ``held``, and goes on at
  ``{"do": "go"}``.
* ``{"do": "kill"}``: SIGKILL from outside. However a child ends, ``died`` is said, with the signal or the exit code.

Rules
-----
* The child runs what ``breakglass serve`` runs. Nothing of the product is changed; the points lie where the process
  touches the world, in the libraries that it does so with: a commit, a call to Vault, a call to Slack, an answer to
  Slack's socket; each ``before`` and ``after``. "After" is when the effect is there and nobody has been told. A call
  has a point ``during`` it, too: it was sent, and whoever gets it finds that nobody waits for the answer.
* The parent has imported everything and does nothing else, so that a child is up in a moment, and a fork is safe.
* What happens once a minute is no point: it may come at any time, or not at all (the reconciliation).
* A child outlives neither its parent nor the test: the pipe that brings its orders is closed with them.
* What is said is written at once and never buffered: a child that is killed has said all that it passed.
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
import signal
import sys
import threading
from collections import Counter
from datetime import timedelta
from functools import partial
from http.client import HTTPConnection, HTTPResponse
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import requests
from apscheduler.schedulers import background  # noqa: F401 - imported before the fork, as all that follows
from slack_sdk.socket_mode.client import BaseSocketModeClient
from slack_sdk.web.base_client import BaseClient
from slack_sdk.webhook.client import WebhookClient
from sqlalchemy import event
from sqlalchemy.engine.default import DefaultDialect
from sqlmodel import Session

from bot import app
from bot.settings import from_environment
from storage.database import Write
from storage.models import Feed, Post, SignedHead

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

RECONCILE_SECONDS: Final = "CRASHING_RECONCILE_SECONDS"  # in the environment, how often it is reconciled
_DATABASE: Final = "BREAKGLASS_DATABASE_URL"
_VAULT: Final = (
    (r"POST auth/approle/login", "log in"),
    (r"POST auth/token/create/.*", "token create"),
    (r"GET .*/creds/.*", "creds read"),
    (r"POST auth/token/revoke-accessor", "accessor revoke"),
    (r"POST auth/token/lookup-accessor", "accessor lookup"),
    (r"LIST sys/leases/lookup/.*", "lease list"),
    (r"PUT sys/leases/lookup", "lease lookup"),
    (r"PUT sys/leases/revoke", "lease revoke"),
    (r".* auth/token/(lookup|renew)-self", "own token"),
    (r"POST transit/sign/.*", "log sign"),
)


def say(**words: object) -> None:
    """Write one line, whole and at once (less than a pipe takes in one piece)."""
    os.write(1, json.dumps(words).encode() + b"\n")


class Points:
    """The points that are passed while armed, and the one at which to die."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._is_armed = False
        self._kill: tuple[str, str, str, int] | None = None
        self._hold: tuple[str, str, str, int] | None = None
        self._go = threading.Event()
        self._passed: Counter[tuple[str, str, str]] = Counter()
        self._under_way = threading.local()

    def arm(self, kill: dict[str, Any] | None, hold: dict[str, Any] | None) -> None:
        """Count from here."""
        with self._turn:
            self._is_armed = True
            self._passed.clear()
            self._go.clear()
            self._kill, self._hold = (
                (at["kind"], at["name"], at["when"], at["nth"]) if at else None for at in (kill, hold)
            )

    def go(self) -> None:
        """Let those go on who stand still."""
        self._go.set()

    def unseen(self, do: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap what passes no points."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self._under_way.is_unseen = True
            try:
                return do(*args, **kwargs)
            finally:
                self._under_way.is_unseen = False

        return wrapped

    def passed(self, kind: str, name: str, when: str) -> None:
        """Say where the process is, and die if that is the point."""
        if getattr(self._under_way, "is_unseen", False):
            return
        with self._turn:  # no other thread passes a point between the last word and the end
            if not self._is_armed:
                return
            point = (kind, name, when)
            self._passed[point] += 1
            say(point={"kind": kind, "name": name, "when": when, "nth": self._passed[point]})
            if self._kill == (*point, self._passed[point]):
                os.kill(os.getpid(), signal.SIGKILL)
            if self._hold == (*point, self._passed[point]):
                say(held=True)
                self._go.wait()

    def around(self, kind: str, name: Callable[..., str], do: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a method of a library: a point before it and one after it."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            named = name(*args, **kwargs)
            self.passed(kind, named, "before")
            self._under_way.call = (kind, named)
            try:
                answer = do(*args, **kwargs)
            finally:
                self._under_way.call = None
            self.passed(kind, named, "after")
            return answer

        return wrapped

    def sent(self) -> None:
        """Pass the point in the middle of this thread's call."""
        if call := getattr(self._under_way, "call", None):
            self.passed(*call, "during")


# --- how points are named ---------------------------------------------------------------------------------------------


def _name_vault(_: object, request: requests.PreparedRequest, **__: object) -> str:
    asked = f"{request.method} {urlsplit(str(request.url)).path.removeprefix('/v1/')}"
    return next((name for pattern, name in _VAULT if re.fullmatch(pattern, asked)), asked)


def _name_slack(_: object, *, url: str, args: dict[str, Any]) -> str:
    method = urlsplit(url).path.rpartition("/")[2]
    body = args.get("json") or args.get("data") or {}
    if method == "chat.postMessage":
        payload = (body.get("metadata") or {}).get("event_payload") or {}
        return f"{method} {str(payload.get('key', '?')).partition(':')[0]}"
    if method == "chat.update":
        return f"{method} {'card' if str(body.get('channel')).startswith('C') else 'direct'}"
    return method


def _name_webhook(*_: object, **__: object) -> str:
    return "response_url"


def _name_acknowledgement(*_: object, **__: object) -> str:
    return "acknowledgement"


class _Commits:
    """Names a commit by what it writes; one that writes nothing is no point.

    What is written is noted where it is said: by the session at its flush, by the log past the session. A transaction
    stays in its thread from its beginning to its end.
    """

    def __init__(self, points: Points) -> None:
        self._points = points
        self._here = threading.local()

    @property
    def _noted(self) -> list[str]:
        noted: list[str] = self._here.__dict__.setdefault("noted", [])
        return noted

    def _note(self, words: str) -> None:
        if words not in self._noted:
            self._noted.append(words)

    def note_rows(self, session: Session, *_: object) -> None:
        """Note what a flush is about to write: messages, heads, and how the follower's claim changes."""
        for row in session.new:
            if isinstance(row, Post):
                self._note(f"post {row.key.partition(':')[0]}")
            elif isinstance(row, SignedHead):
                self._note("log head")
        for row in (*session.new, *session.dirty):
            if isinstance(row, Feed):
                part = row.follower.partition(":")[2] or "lines"
                self._note(f"follow {part} {'give back' if row.holder is None else 'hold'}")

    def note_statement(self, state: Any) -> None:
        """Note a change that goes past the rows: the follower's memory of a message."""
        if state.is_update and state.statement.table.name == "post":
            key = next((v for v in state.statement.compile().params.values() if re.match(_KEYS, str(v))), "?")
            self._note(f"post {str(key).partition(':')[0]}")

    def noting(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap ``Write.run``, by which an entry is written: note the entry."""

        def noted(session: Write, statement: str, values: Any = ()) -> Any:
            if statement.startswith("INSERT INTO entry "):
                self._note(values[2] + ("!" if b'"refused":' in values[4] else ""))
            return run(session, statement, values)

        return noted

    def committing(self, commit: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap the driver's COMMIT: everything is flushed before it, and everything is durable after it."""

        def passed(dialect: Any, connection: Any) -> None:
            name = self._name()
            if name:
                self._points.passed("commit", name, "before")
            commit(dialect, connection)
            self._noted.clear()
            if name:
                self._points.passed("commit", name, "after")

        return passed

    def rolling_back(self, rollback: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap the driver's ROLLBACK: what was noted did not happen."""

        def passed(dialect: Any, connection: Any) -> None:
            self._noted.clear()
            rollback(dialect, connection)

        return passed

    def _name(self) -> str:
        """Join what was noted; what a claim brings home when it is given back depends on how fast things went."""
        noted = list(self._noted)
        if any(words.endswith("give back") for words in noted):
            noted = [words for words in noted if not words.startswith("post ")]
        return ", ".join(sorted(noted))


_KEYS: Final = r"(card|own|handover|warning)$|(ask|review|remind|thread):"


def set_points(points: Points) -> None:
    """Put the points where the process touches the world."""
    requests.Session.send = points.around("vault", _name_vault, requests.Session.send)  # type: ignore[method-assign]
    for owner, method, kind, name in (
        (BaseClient, "_perform_urllib_http_request", "slack", _name_slack),
        (WebhookClient, "_perform_http_request", "slack", _name_webhook),
        (BaseSocketModeClient, "send_socket_mode_response", "slack", _name_acknowledgement),
    ):
        setattr(owner, method, points.around(kind, name, getattr(owner, method)))
    getresponse = HTTPConnection.getresponse

    def wait_for_answer(connection: HTTPConnection) -> HTTPResponse:
        points.sent()
        return getresponse(connection)

    HTTPConnection.getresponse = wait_for_answer  # type: ignore[method-assign]
    commits = _Commits(points)
    event.listen(Session, "before_flush", commits.note_rows)
    event.listen(Session, "do_orm_execute", commits.note_statement)
    Write.run = commits.noting(Write.run)  # type: ignore[method-assign]
    DefaultDialect.do_commit = commits.committing(DefaultDialect.do_commit)  # type: ignore[method-assign]
    DefaultDialect.do_rollback = commits.rolling_back(DefaultDialect.do_rollback)  # type: ignore[method-assign]


# --- the two processes ------------------------------------------------------------------------------------------------


class _Until(threading.Event):
    """What the bot waits for once it listens."""

    def wait(self, timeout: float | None = None) -> bool:
        say(listening=os.getpid())
        return super().wait(timeout)


def _obey(orders: int, points: Points) -> None:
    """Take orders until the pipe closes: then nobody is there any more for whom to run."""
    with os.fdopen(orders) as lines:
        for line in lines:
            order = json.loads(line)
            if order["do"] == "go":
                points.go()
            else:
                points.arm(order["kill"], order.get("hold"))
                say(armed=True)
    os._exit(1)


def _serve(orders: int, database: str) -> None:
    """Be the bot, as ``breakglass serve`` is."""
    points = Points()
    set_points(points)
    threading.Thread(target=_obey, args=(orders, points), daemon=True).start()
    ended = _Until()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    os.environ[_DATABASE] = database
    # Slack's one post a second is kept by each process for itself; the sandbox's own limit is off here, and so is this.
    # And a call that was cut is not under way for two seconds more: the sandbox takes in at once what was sent.
    quick = partial(app.ThreadFollower, pace=False, doubt=timedelta(seconds=0.3))
    app.ThreadFollower = quick  # type: ignore[assignment,misc]
    app.Reconciler.tick = points.unseen(app.Reconciler.tick)  # type: ignore[method-assign]
    if seconds := os.environ.get(RECONCILE_SECONDS):
        often = partial(app.Reconciler, every=timedelta(seconds=float(seconds)))
        app.Reconciler = often  # type: ignore[assignment,misc]
    app.build(from_environment(os.environ)).run(ended)


def _start(database: str) -> tuple[int, int]:
    """Fork a bot and return its process id and the pipe for its orders."""
    orders, ours = os.pipe()
    pid = os.fork()
    if pid:
        os.close(orders)
        say(started=pid)
        return pid, ours
    code = 1
    try:
        os.close(ours)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        _serve(orders, database)
        code = 0
    except BaseException:
        log.exception("the bot did not run")
    finally:
        os._exit(code)  # the child must never return into the parent's loop


def main() -> None:
    """Take orders until nobody gives any."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s")
    logging.getLogger("apscheduler").setLevel(logging.WARNING)
    pid = ours = watch = -1
    waiting = b""
    while True:
        ready = select.select([0] if watch < 0 else [0, watch], [], [])[0]
        if watch in ready:
            _, status = os.waitpid(pid, 0)
            code = os.waitstatus_to_exitcode(status)
            os.close(watch)
            os.close(ours)
            pid = ours = watch = -1
            say(died=code)
        if 0 not in ready:
            continue
        given = os.read(0, 65536)
        if not given:
            if pid > 0:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            return
        *lines, waiting = (waiting + given).split(b"\n")
        for order in map(json.loads, lines):
            match order["do"]:
                case "start":
                    pid, ours = _start(order["database"])
                    watch = os.pidfd_open(pid)
                case "arm" | "go":
                    os.write(ours, json.dumps(order).encode() + b"\n")
                case "kill":
                    os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
