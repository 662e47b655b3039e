"""Are commands recorded from the target's log to the auditor's file, with no secret of theirs left anywhere on the way?

All parts are real and processes of their own: the bot with its HTTPS endpoint, ``breakglass capture tail`` beside
PostgreSQL (with pgaudit) and beside OpenBao's audit file, and the local Slack workspace. The line between the tailer
and the bot is cut while the statements run, so that they lie in the tailer's spool before they come in.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import zipfile
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import psycopg
import pytest
from outside import Authority, Line
from pgaudit_part import PgAudit, server_settings
from sqlmodel import select
from test_redaction import ADDRESSES, SHELL, SQL, TOKENS, S

from bot import views
from bot.demo import play
from bot.demo.parts import Part, call, free_port, launch
from bot.demo.run import HERE, Demo
from bot.sandbox.driver import Driver, wait_for
from storage.audit import read_entries
from storage.database import Database
from storage.models import CaptureSource
from workflows.engines import ENGINES
from workflows.policy import load

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from bot.demo.vault_setup import BotLogin
    from storage.audit import Record

CHANNEL: Final = "C0INCIDENT"
PATIENCE: Final = 60.0  # seconds, a bound for a busy machine
TOKEN_OF: Final = {name: secrets.token_urlsafe(32) for name in ("orders-pg", "vault")}
WORDS: Final = {
    views.THRESHOLD: "data-loss",
    views.REASON: "Logins of customers fail, and their passwords must be looked at",
    views.STANDARD_PATH: "Paged the database on-call twice, nobody answers",
    views.INCIDENT: "INC-2031",
}
# A table in which secrets are looked up by parameters, which the server logs in clear.
USERS: Final = "CREATE TABLE users (id int, login text, password text); GRANT SELECT ON users TO bg_orders_ro"


def _statements() -> Iterator[tuple[str, str, str]]:
    """Give statements with the mark that each begins with, and with the secret in it that must not survive."""
    texts = [*SQL]
    texts += [(f"SELECT send('{token}')", token) for token in TOKENS]
    texts += [(text if text.startswith("SELECT") else f"SELECT $x${text}$x$", secret) for text, secret in ADDRESSES]
    texts += [(f"COPY users FROM PROGRAM $x${text}$x$", secret) for text, secret in SHELL]
    for number, (text, secret) in enumerate(texts):
        # Each has a secret of its own where that keeps its form, so that a leak says whose it is.
        own = f"{S}{number:03}"
        yield f"flow{number:03}", f"/* flow{number:03} */ {text.replace(S, own)}", secret.replace(S, own)


class Tailer(Part):
    """``breakglass capture tail`` in a process of its own, beside a log."""

    def __init__(self, directory: Path, source: str, file: Path, to: str, ca: Path) -> None:
        self.name = f"tail-{source}"
        super().__init__(directory)
        self.spool = self.directory / "spool"
        words = ("--source", source, "--to", to, "--ca", str(ca), "--spool", str(self.spool))
        state = ("--state", str(self.directory / "state"))
        self._command = [sys.executable, "-m", "bot.cli", "capture", "tail", *words, *state, str(file)]
        self._source = source

    def _launch(self) -> None:
        environment = {
            "PATH": os.defpath,
            "PYTHONPATH": str(HERE.parent.parent),
            "CAPTURE_TOKEN": TOKEN_OF[self._source],
        }
        self._running = launch(self._command, log=self.log, polite=signal.SIGTERM, env=environment)

    def spooled(self) -> bytes:
        """Return what lies in the spool."""
        return b"".join(_read(self.spool.glob("*")).values())


class Recorded(Demo):
    """The demo with a PostgreSQL whose logins are recorded, and with an endpoint for the lines."""

    def __init__(self, directory: Path) -> None:
        authority = Authority(directory)
        certificate, key = authority.issue("ingest")
        self.ca, self.ingest_port = authority.file, free_port()
        environment = {
            "CAPTURE_ADDRESS": f"127.0.0.1:{self.ingest_port}",
            "CAPTURE_TLS_CERT": str(certificate),
            "CAPTURE_TLS_KEY": str(key),
        }
        text = (HERE / "breakglass.yml").read_text(encoding="utf-8")
        text = text.replace(
            "group: bg_orders_ro",
            "group: bg_orders_ro\n        audit: pgaudit\n        capture: required\n        capture_source: orders-pg",
            1,
        )
        text += "\ncaptures:\n"
        for name, kind in (("orders-pg", "postgres"), ("vault", "vault")):
            text += f"  {name}: {{ kind: {kind}, token_sha256: {sha256(TOKEN_OF[name].encode()).hexdigest()} }}\n"
        super().__init__(directory, rate_limits=0, policy=text, environment=environment)
        self.pg = PgAudit(directory / "postgresql", durable=False, settings=server_settings())

    def _set_up(self) -> BotLogin:
        login = super()._set_up()
        level = load(self.policy_file).accounts["orders-db"].levels["read"]
        with psycopg.connect(self.pg.dsn_for("orders"), autocommit=True) as server:
            server.execute(ENGINES["database"].target_steps(level.settings.options).encode())
            server.execute(USERS)
        return login


class Flow:
    """The running parts, and what there is to see of them."""

    def __init__(self, demo: Recorded, line: Line, tailers: Mapping[str, Tailer]) -> None:
        self.demo, self.line, self.tailers = demo, line, tailers
        self.people = Driver(demo.url)
        self.rita, self.carl = self.people.as_("U0RITA"), self.people.as_("U0CARL")

    def entries(self, *events: str, request_id: str | None = None) -> list[Record]:
        """Return entries of the log."""
        database = Database(self.demo.database_url)
        try:
            with database.read() as session:
                return read_entries(session, events=events or None, request_id=request_id)
        finally:
            database.close()

    def heard(self) -> set[str]:
        """Return the sources that were heard of."""
        database = Database(self.demo.database_url)
        try:
            with database.read() as session:
                return {one.name for one in session.exec(select(CaptureSource)) if one.seen_at is not None}
        finally:
            database.close()

    def run(self, *words: str) -> bytes:
        """Run a command beside the bot; return what it says."""
        command = [sys.executable, "-m", "bot.cli", *words]
        done = subprocess.run(command, capture_output=True, check=False, env=os.environ | self.demo.environment)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def open(self) -> tuple[str, str, Mapping[str, Any]]:
        """Ask, approve and reveal; return the request's name, the psql line, and the card."""
        self.rita.command("/breakglass orders-db read 10m", CHANNEL)
        self.rita.fill(self.rita.wait_for_view(views.OPEN_FORM, PATIENCE)).submit(WORDS)
        card = wait(lambda: next(play._cards(self.rita), None), "the card")
        self.rita.close()
        self.carl.click(wait(lambda: play._dm_with(self.carl, views.APPROVE), "Approve"), views.APPROVE)
        self.rita.click(wait(lambda: play._dm_with(self.rita, views.REVEAL), "Reveal"), views.REVEAL)
        line = wait(lambda: play._psql_line(self.rita), "the psql line")
        self.rita.close()
        return play._request_id(card), line, card

    def is_posted(self, card: Mapping[str, Any], request_id: str) -> bool:
        """Whether the thread's posts reach the last entry of the request."""
        last = self.entries(request_id=request_id)[-1].seq
        return any(last in play._entries_of(self.people, post) for post in play._thread(self.rita, card)[::-1])

    def slack(self, *, but_windows: bool = False) -> bytes:
        """Return all that Slack and the bot told each other, with every file in #incidents."""
        messages = self.rita.messages(CHANNEL)
        posts = [post for message in messages for post in self.rita.thread(CHANNEL, message["ts"])]
        journal = self.people.journal()
        if but_windows:
            journal = [entry for entry in journal if entry.get("method") not in {"views.open", "views.update"}]
        return json.dumps(journal).encode() + self.files(posts)

    def kept(self) -> dict[str, bytes]:
        """Return the files of the bot and of the tailers: database, logs, the log's copy, state, spool."""
        folder = self.demo.directory
        folders = (self.demo.bot.directory, folder / "outside", *(one.directory for one in self.tailers.values()))
        files = [*folder.glob("breakglass.db*"), *(file for one in folders for file in one.rglob("*"))]
        return {str(file.relative_to(folder)): held for file, held in _read(files).items()}

    def files(self, messages: Iterable[Mapping[str, Any]]) -> bytes:
        """Return the bytes of the files of messages."""
        return b"".join(self.rita.download(file) for message in messages for file in message.get("files") or ())


def _read(files: Iterable[Path]) -> dict[Path, bytes]:
    """Return what is in files; one may go while it is looked at."""
    held = {}
    for file in files:
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            held[file] = file.read_bytes()
    return held


def wait(look: Any, what: str) -> Any:
    """Wait until something is there."""
    return wait_for(look, PATIENCE, what=what)


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flow]:
    """The bot and two tailers, of which the one of PostgreSQL comes in over a line that can be cut."""
    folder = tmp_path_factory.mktemp("flow")
    with Recorded(folder) as demo, Line(demo.ingest_port) as line:
        ways = {"orders-pg": (demo.pg.recorded, line.port), "vault": (demo.bao.audit_log, demo.ingest_port)}
        tailers = {
            name: Tailer(folder / name, name, file, f"https://127.0.0.1:{port}", demo.ca)
            for name, (file, port) in ways.items()
        }
        with tailers["orders-pg"], tailers["vault"]:
            flow = Flow(demo, line, tailers)
            wait(lambda: flow.heard() == set(tailers), "both sources")  # else no credential comes of the level
            yield flow


def test_commands_come_through_and_no_secret_does(flow: Flow, tmp_path: Path) -> None:
    """Each statement is on the thread, in the log and in what is handed over; its secret is at the target alone."""
    statements = list(_statements())
    request_id, psql, card = flow.open()
    password = play._conninfo(psql).split("password='")[1].split("'")[0]

    # 1. They run while the bot cannot be reached: the target's log has them, and the tailer's spool.
    tailer = flow.tailers["orders-pg"]
    flow.line.up = 0
    flow.line.cut()
    with psycopg.connect(play._conninfo(psql), autocommit=True) as session:
        for _, text, _ in statements:
            try:
                session.execute(text.encode())
            except psycopg.Error:
                continue  # most name what is not there, or may not be done: that is recorded, too
        session.execute("/* flow900 */ SELECT id FROM users WHERE login = %s AND password = %s", ["bob", f"{S}900"])
    statements.append(("flow900", "", f"{S}900"))
    at_target = flow.demo.pg.recorded.read_bytes()
    in_log = [mark for mark, _, secret in statements if secret.encode() in at_target]
    assert len(in_log) > len(statements) / 2
    wait(lambda: b"flow900" in tailer.spooled(), "the last statement in the spool")
    assert f"{S}900".encode() in tailer.spooled()

    # 2. The bot is reached again: all of it comes, and is posted.
    flow.line.heal()
    marks = {mark for mark, _, _ in statements}

    def arrived() -> bool:
        return marks <= marks_in(flow.entries("command:run", request_id=request_id))

    wait(arrived, "each statement in the log")
    flow.rita.click(wait(lambda: play._dm_with(flow.rita, views.RELEASE), "Done"), views.RELEASE)
    wait(lambda: "confirmed" in play._words(play._thread(flow.rita, card)), "the end in the thread")
    wait(lambda: flow.is_posted(card, request_id), "every entry in the thread")
    wait(lambda: not tailer.spooled(), "an empty spool")
    posts = play._thread(flow.rita, card)
    thread = json.dumps(posts).encode() + flow.files(posts)

    # 3. Whoever asks is handed all of it.
    exported, bundle = tmp_path / "one.jsonl", tmp_path / "one.zip"
    one = ("--request", request_id)
    said = flow.run("export", *one, "-o", str(exported))
    said += flow.run("export", *one, "--format", "bundle", "--no-pdf", "-o", str(bundle))
    told = {"show": flow.run("show", request_id), "export": exported.read_bytes()}
    with zipfile.ZipFile(bundle) as box:
        told |= {name: box.read(name) for name in box.namelist()}
    page = f"requests/{request_id}.html"
    for place in ("show", "export", "entries.jsonl", "entries.csv", page):
        assert [mark for mark in marks if mark.encode() not in told[place]] == [], place
    # Of what comes together a post shows the first few, and has the whole list beside it when they are very many.
    posted = [mark for mark in marks if mark.encode() in thread]
    assert len(posted) >= 12

    # 4. No secret is in a byte of anything but the target's log: nor the login's own password, nor the sources' tokens.
    known = {secret for _, _, secret in statements} | {S, *TOKEN_OF.values()}
    places = told | {"thread": thread, "messages": flow.slack(but_windows=True), "said": said}
    places |= flow.kept()
    assert {"breakglass.db", "breakglass.db-wal", "bot/breakglass.log", "orders-pg/state", "vault/state"} <= set(places)
    # The password stands in the requester's window; what a statement held not even there.
    assert _found({*known, password}, places) == []
    assert _found(known, {"Slack": flow.slack()}) == []
    print(  # noqa: T201 - seen with -s
        f"\n{len(statements)} statements, {len(in_log)} of their secrets in the target's log; {len(posted)} in the "
        f"thread; {sum(map(len, places.values()))} bytes in {len(places)} places without one of {len(known)} secrets"
    )


def _found(known: Iterable[str], places: Mapping[str, bytes]) -> list[tuple[str, str]]:
    """Return which secrets stand where, with some of what is around."""
    found = []
    for place, held in places.items():
        for secret in known:
            at = held.find(secret.encode())
            if at >= 0:
                found.append((place, held[max(0, at - 120) : at + 40].decode(errors="replace")))
    return found


def test_attack_a_credential_that_an_operator_reads_without_a_request(flow: Flow) -> None:
    """What an operator's token reads at a level's path becomes an alarm by the tailer: in the log, in #incidents."""
    bao = flow.demo.bao
    before = {message["ts"] for message in flow.rita.messages(CHANNEL)}
    operator = bao.call("POST", "auth/token/create", {"policies": ["root"], "ttl": "5m"})["auth"]
    read_at, began = datetime.now(UTC), time.monotonic()
    stolen = call(bao.addr, "GET", "database/creds/orders-ro", token=operator["client_token"])["data"]

    def alarm() -> str | None:
        new = (message for message in flow.rita.messages(CHANNEL) if message["ts"] not in before)
        return next((words for words in (play._words([one]) for one in new) if operator["accessor"] in words), None)

    words = wait(alarm, "the alarm in #incidents")
    seconds = time.monotonic() - began
    assert "no request explains" in words
    assert "S0SEC" in words  # security is called
    (entry,) = (one for one in flow.entries("command:stranger") if one.data["identity"] == operator["accessor"])
    assert (entry.data["source"], entry.data["text"]) == ("vault", "read database/creds/orders-ro")
    known = {stolen["password"], operator["client_token"]}
    assert _found(known, flow.kept() | {"Slack": flow.slack()}) == []
    logged = (entry.at - read_at).total_seconds()
    print(f"\nin the log {logged:.2f} s after the read, in #incidents {seconds:.2f} s")  # noqa: T201 - seen with -s


def marks_in(records: Iterable[Record]) -> set[str]:
    """Return the marks of the statements."""
    return {text[3:10] for record in records if (text := str(record.data.get("text", ""))).startswith("/* flow")}
