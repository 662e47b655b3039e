"""What does a whole drill look like when nobody is at a keyboard? ``breakglass drill run --account … --simulate``.

Everything that the demo has, with a PostgreSQL whose statements are recorded and a tailer that brings them; people of
the sandbox do what people would. The drill itself is the bot's own, and none of it knows that it is simulated.

Rules
-----
* A part can be broken (``--break``), and is really broken: its process is stopped, its role removed, its person silent.
  Then its line of the scorecard fails, and no other.
* Pass marks are short, so that nobody waits long for what does not come. The policy is the demo's in all else.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg
from sqlmodel import select

from bot import drill_views, views
from bot.demo.parts import HOST, Part, Postgres, free_port, launch
from bot.demo.play import CHANNEL, _dm_with
from bot.demo.run import HERE, Demo
from bot.sandbox.driver import Driver, wait_for
from storage.database import Database
from storage.models import CaptureSource
from workflows import policy as rules
from workflows.drill_history import past
from workflows.drill_score import Came
from workflows.engines import ENGINES
from workflows.engines.seam import Prepared
from workflows.errors import Invalid

if TYPE_CHECKING:
    from bot.demo.vault_setup import BotLogin
    from workflows.drill_history import Past

SOURCE: Final = "orders-pg"
_MARKS: Final = (
    "pass: { first_answer: 30s, quorum: 40s, credential: 20s, revocation: 30s, alerts: 30s, capture: 30s, review: 2m }"
)
_LATEST: Final = 240.0  # seconds, for the whole of it
_LOG: Final = {
    "logging_collector": "on",
    "log_destination": "jsonlog",
    "log_filename": "pg",
    "log_rotation_age": "0",
    "log_connections": "on",
    "log_disconnections": "on",
    "log_duration": "on",
}


class _Tailer(Part):
    """``breakglass capture tail`` in a process of its own, beside PostgreSQL's log."""

    name = "tailer"

    def __init__(self, directory: Path, file: Path, port: int, token: str) -> None:
        super().__init__(directory)
        self._token = token
        words = [
            "--source",
            SOURCE,
            "--to",
            f"http://{HOST}:{port}",
            "--state",
            str(self.directory / "state"),
            str(file),
        ]
        self._command = [sys.executable, "-m", "bot.cli", "capture", "tail", *words]

    def _launch(self) -> None:
        environment = {"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": str(HERE.parent.parent)}
        environment["CAPTURE_TOKEN"] = self._token
        self._running = launch(self._command, log=self.log, polite=signal.SIGTERM, env=environment)


class Rehearsed(Demo):
    """The demo, with a record of what is run at its target, and with short pass marks."""

    def __init__(self, directory: Path) -> None:
        self.ingest_port = free_port()
        self.token = secrets.token_urlsafe(32)
        text = (HERE / "breakglass.yml").read_text(encoding="utf-8")
        text, changed = re.subn(r"(?m)^      pass: \{.*\}$", f"      {_MARKS}", text)
        text, recorded = re.subn(
            r"(?m)^(        group: bg_orders_rehearsal)\b.*$",
            rf"\1\n        audit: log_statement\n        capture_source: {SOURCE}",
            text,
        )
        if (changed, recorded) != (1, 1):  # pragma: no cover - a test runs it
            raise Invalid("The demo's policy is not as this file knows it.")
        digest = hashlib.sha256(self.token.encode()).hexdigest()
        text += f"\ncaptures:\n  {SOURCE}: {{ kind: postgres, token_sha256: {digest} }}\n"
        super().__init__(
            directory, rate_limits=0, policy=text, environment={"CAPTURE_ADDRESS": f"{HOST}:{self.ingest_port}"}
        )
        self.pg = Postgres(directory / "postgresql", durable=False, settings=_LOG)
        self.tailer: _Tailer | None = None

    def _set_up(self) -> BotLogin:
        login = super()._set_up()
        level = rules.load(self.policy_file).accounts["orders-db"].levels["rehearsal"]
        with psycopg.connect(self.pg.dsn_for("orders"), autocommit=True) as server:
            engine = ENGINES["database"]
            # That the manager may have statements logged is a right that only an administrator gives.
            if isinstance(engine, Prepared):
                server.execute(engine.target_steps(level.settings.options).encode())
        return login

    def tail(self) -> _Tailer:
        """Start the tailer and wait until the bot has heard of it."""
        self.tailer = _Tailer(self.directory / "tailer", self.pg.data / "log" / "pg.json", self.ingest_port, self.token)
        self.tailer.start()
        wait_for(self._is_heard, 30.0, what="a word of the tailer")
        return self.tailer

    def _is_heard(self) -> bool:
        database = Database(self.database_url)
        try:
            with database.read() as session:
                return any(one.seen_at is not None for one in session.exec(select(CaptureSource)))
        finally:
            database.close()

    def newest(self) -> Past | None:
        """Return the newest drill, as far as it is on record."""
        database = Database(self.database_url)
        try:
            with database.read() as session:
                return next(iter(past(session, most=1)), None)
        finally:
            database.close()

    def __exit__(self, *exc: object) -> None:
        if self.tailer is not None:
            self.tailer.close()
        super().__exit__(*exc)


def run(account: str, broken: str | None) -> int:
    """Run one drill and print its scorecard. Returns 0 when it passed, else 1."""
    with tempfile.TemporaryDirectory(prefix="breakglass-drill-") as folder:
        print("Starting OpenBao, PostgreSQL, a local Slack workspace, the bot and a tailer …", flush=True)
        with Rehearsed(Path(folder)) as demo:
            if account not in rules.load(demo.policy_file).accounts:
                raise Invalid(f"The demo's policy has no account {account!r}; it has orders-db.")
            demo.tail()
            found = live(demo, account, broken)
    return 0 if show(found) else 1


def live(demo: Rehearsed, account: str, broken: str | None = None) -> Past:
    """Let the people of the sandbox live one drill; return it with its score."""
    people = Driver(demo.url)
    rita, carl, sam = people.as_("U0RITA"), people.as_("U0CARL"), people.as_("U0SAM")
    if broken == "alert":
        # Slack does not take what is written to one custodian, for as long as this lasts.
        people.fault("error500", method="chat.postMessage", channel="U0CHEN", times=100_000)
    if broken == "vault":
        demo.bao.call("DELETE", "database/roles/orders-rehearsal")
    if broken == "capture" and demo.tailer is not None:
        demo.tailer.kill()
    rita.command(f"/breakglass drill {account}", CHANNEL)
    begun = wait_for(demo.newest, 30.0, what="a drill on record")
    if begun is not None:
        print(f"{begun.drill} of {account} has begun as {begun.request_id}.", flush=True)
    until = time.monotonic() + _LATEST
    is_approved = is_reviewed = False
    while time.monotonic() < until:
        found = demo.newest()
        if found is not None and found.passed is not None:
            return found
        if not is_approved and broken != "custodian" and (asked := _dm_with(carl, views.APPROVE)) is not None:
            if broken == "target":
                demo.pg.stop()
            carl.click(asked, views.APPROVE)
            print("Carl, a custodian, approves.", flush=True)
            is_approved = True
        if not is_reviewed and (owed := _dm_with(sam, views.REVIEW)) is not None:
            sam.click(owed, views.REVIEW)
            sam.fill(sam.wait_for_view(views.REVIEW_FORM, 30.0)).submit(
                {
                    views.THRESHOLD_MET: "no",
                    views.THRESHOLD_WHY: "It was a drill, and said to be one: no threshold was met.",
                    views.STANDARD_PATH_ENOUGH: "no",
                    views.STANDARD_PATH_WHY: "There was nothing to be solved, so nobody was paged before.",
                    views.USED_AS_STATED: "yes",
                    views.OUTCOME: "drill",
                    views.FINDINGS: "A drill: everybody was told, and the credential is gone.",
                }
            )
            print("Sam, security, files the review.", flush=True)
            is_reviewed = True
        time.sleep(0.1)
    raise TimeoutError(f"the drill had no score within {_LATEST:.0f} s")


def show(found: Past) -> bool:
    """Print a scorecard; return whether the drill passed."""
    print(f"\nDRILL {found.drill} of {found.account}: {'passed' if found.passed else 'FAILED'}\n")
    for line in found.lines:
        mark = "FAILED" if line.came is Came.FAILED else line.came.value
        words = drill_views.line_words(line).partition(" (")[2]
        print(f"  {mark:<12} {drill_views.LEGS[line.leg]:<24} ({words}" if words else f"  {mark:<12} {line.leg}")
    return found.passed is True
