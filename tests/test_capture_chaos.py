"""Is a statement ever lost without a word, or counted twice, whatever is killed, rotated or truncated?

A log grows in PostgreSQL's form; the real tailer follows it, the real endpoint and recorder write it into a real
PostgreSQL. Each round kills, rotates or truncates something at random. ``ROUNDS`` and ``SEED`` by the environment.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from capture_parts import HOST, Parts
from counter import POLICY
from sqlmodel import select

from bot.capture_command import Poster
from bot.demo.parts import Postgres, free_port
from bot.tailer import Tailer
from storage.audit import SYSTEM, append, parse
from storage.database import Database
from storage.models import CaptureSession, Entry, Grant, Request
from workflows import policy as rules

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = int(os.environ.get("ROUNDS", "6"))
SEED = int(os.environ.get("SEED", "7"))
TOKEN = "a-token-of-the-source"
IDENTITY = "bg-7kq2-1-abcdefgh"
SESSION_ROUNDS = 10


@dataclass(eq=False)
class Content:
    """What was written to one file since it began: each statement's number, and the offset of its line."""

    lines: dict[int, int] = field(default_factory=dict)
    destroyed: set[int] = field(default_factory=set)


class Target:
    """A log that grows, is rotated and truncated, and what must have become of each statement."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.file = folder / "postgresql.json"
        self._chance = chance
        self._written = 0
        self._line_num = 0
        self._session = 0
        self.contents: list[Content] = []
        self._at: dict[Path, Content] = {}
        self.sessions: dict[int, tuple[str, int]] = {}
        self._begin()

    def _begin(self) -> None:
        self._at[self.file] = Content()
        self.contents.append(self._at[self.file])
        self.file.touch()

    def next_session(self) -> None:
        """End the session and begin another one: its count begins anew."""
        if self._session:
            self._write("disconnection: session time: 0:00:00.1 user=u database=orders host=local")
        self._session, self._line_num = self._session + 1, 0
        self._write("connection authorized: user=u database=orders")

    def _write(self, message: str, path: Path | None = None, number: int | None = None) -> None:
        path = path or self.file
        self._line_num += 1
        record = {
            "timestamp": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " UTC",
            "user": IDENTITY,
            "dbname": "orders",
            "session_id": f"6ab4c1de.{self._session:x}",
            "line_num": self._line_num,
            "ps": "SELECT",
            "error_severity": "LOG",
            "message": message,
            "backend_type": "client backend",
        }
        line = json.dumps(record).encode() + b"\n"
        with path.open("ab", buffering=0) as file:
            offset = file.tell()
            middle = self._chance.randrange(len(line))
            file.write(line[:middle])
            if self._chance.random() < 0.05:
                time.sleep(0.02)  # the tailer sees half a line
            file.write(line[middle:])
        if number is not None:
            self._at[path].lines[number] = offset
            self.sessions[number] = (f"6ab4c1de.{self._session:x}", self._line_num)

    def run(self, count: int, path: Path | None = None) -> None:
        """Run statements."""
        for _ in range(count):
            self._written += 1
            text = f"SELECT 'n{self._written}'"
            self._write(f'AUDIT: SESSION,1,1,READ,SELECT,,,"{text}",<none>', path, self._written)

    # --- what happens to it

    def rename(self) -> None:
        """Rotate; the writer may go on in the old file for a moment."""
        rotated = self._shift()
        self.file.rename(rotated)
        self._at[rotated] = self._at.pop(self.file)
        self._begin()
        if self._chance.random() < 0.5:
            self.run(self._chance.randint(1, 5), rotated)

    def rename_twice(self) -> None:
        """Rotate, and once more at once."""
        self.rename()
        self.run(self._chance.randint(1, 5))
        self.rename()

    def copytruncate(self) -> None:
        """Rotate by copying; what is written in between is destroyed."""
        rotated = self._shift()
        shutil.copyfile(self.file, rotated)
        between = self._written
        if self._chance.random() < 0.5:
            self.run(self._chance.randint(1, 3))
        old = self._at[self.file]
        os.truncate(self.file, 0)
        old.destroyed |= {number for number in old.lines if number > between}
        self._at[rotated] = old
        self._begin()

    def truncate(self) -> None:
        """Destroy what is there."""
        self.run(self._chance.randint(0, 5))
        os.truncate(self.file, 0)
        self._at[self.file].destroyed |= set(self._at[self.file].lines)
        self._begin()
        self.run(self._chance.choice([0, 3, 80]))  # also beyond its old size

    def remove(self) -> None:
        """Remove the file; the writer makes a new one."""
        self.run(self._chance.randint(0, 5))
        self.file.unlink()
        self._at[self.file].destroyed |= set(self._at[self.file].lines)
        self._begin()

    def _shift(self) -> Path:
        oldest = self.file.with_name(f"{self.file.name}.4")
        if oldest.exists():
            oldest.unlink()
            self._at[oldest].destroyed |= set(self._at[oldest].lines)
        for age in (3, 2, 1):
            older = self.file.with_name(f"{self.file.name}.{age}")
            if older.exists():
                newer = self.file.with_name(f"{self.file.name}.{age + 1}")
                older.rename(newer)
                self._at[newer] = self._at.pop(older)
        return self.file.with_name(f"{self.file.name}.1")


@dataclass
class Site:
    """All of it: target, tailer, bot, database."""

    folder: Path
    parts: Parts
    server: Postgres
    target: Target
    port: int
    tailer: int | None = None
    bot: int | None = None

    @property
    def url(self) -> str:
        """The database's."""
        return self.server.url_for("postgres")

    @property
    def place(self) -> dict[str, Path]:
        """Where the tailer keeps what it needs."""
        return {"state": self.folder / "place", "spool": self.folder / "spool"}

    def up(self) -> None:
        """Start what is not there."""
        if not self.server.is_running:
            self.server.start()
        if self.bot is None:
            self.bot = self.parts.start(
                "bot", url=self.url, policy=str(self.folder / "policy.yml"), port=str(self.port)
            )
        self.follow()

    def follow(self) -> None:
        """Start the tailer, if it is not there."""
        if self.tailer is None:
            place = {name: str(path) for name, path in self.place.items()}
            self.tailer = self.parts.start(
                "tail", port=self.port, source="orders-pg", token=TOKEN, file=str(self.target.file), **place
            )

    def kill_tailer(self) -> None:
        """SIGKILL."""
        if self.tailer is not None:
            self.parts.end(self.tailer)
            self.tailer = None

    def kill_bot(self) -> None:
        """SIGKILL."""
        if self.bot is not None:
            self.parts.end(self.bot)
            self.bot = None

    def kill_database(self) -> None:
        """SIGKILL."""
        if self.server.is_running:
            self.server.kill()

    def entries(self) -> list:
        """Return the log's entries about captures."""
        database = Database(self.url)
        try:
            with database.read() as session:
                bodies = session.exec(select(Entry.body).order_by(Entry.seq)).all()
                self.missing = {
                    row.session: [
                        *(range(first, last + 1) for first, last in row.missing),
                        # A session that was never seen to begin, or to end, shows no more than that.
                        *([] if row.opened_at else [range(1, row.first_number or 1)]),
                        *([] if row.closed_at else [range(row.last_number or 1, sys.maxsize)]),
                    ]
                    for row in session.exec(select(CaptureSession))
                }
        finally:
            database.close()
        return [parse(body) for body in bodies]


@pytest.fixture
def site(tmp_path):
    """A site where everything runs, and one access is out."""
    policy = POLICY.read_text(encoding="utf-8")
    policy += (
        f"captures:\n  orders-pg: {{kind: postgres, token_sha256: {hashlib.sha256(TOKEN.encode()).hexdigest()}}}\n"
    )
    rules.parse(policy, name="chaos")
    (tmp_path / "policy.yml").write_text(policy, encoding="utf-8")
    (tmp_path / "log").mkdir()
    parts = Parts(tmp_path)
    with Postgres(tmp_path / "postgres") as server:
        grant(server.url_for("postgres"))
        target = Target(tmp_path / "log", random.Random(SEED))  # noqa: S311 - it is the same each time
        site = Site(tmp_path, parts, server, target, free_port())
        target.next_session()
        site.up()
        while not site.place["state"].exists():
            time.sleep(0.01)  # what was there before its first look is not the tailer's
        yield site
        parts.close()


def grant(url):
    """Put a request on record whose credential is out."""
    now = datetime.now(UTC) - timedelta(minutes=1)
    database = Database(url)
    database.setup()
    with database.write() as session:
        seq = append(session, event="test:begin", at=now, actor=SYSTEM).seq
        words = {"threshold": "x", "reason": "x", "standard_path": "x", "incident": "x", "policy_hash": "x"}
        session.add(
            Request(
                id="BG-7KQ2",
                state="active",
                version=1,
                state_version=1,
                last_seq=seq,
                team="T0SANDBOX",
                requester="U0RITA",
                account="orders-db",
                level="read",
                quorum=1,
                custodians=[],
                channel="C0INCIDENT",
                asked_seconds=900,
                granted_seconds=900,
                opened_at=now,
                state_at=now,
                **words,
            )
        )
        session.flush()
        session.add(
            Grant(
                request_id="BG-7KQ2",
                number=1,
                engine="database",
                path="database/creds/orders-ro",
                options={},
                lease_prefix="database/creds/orders-ro/",
                identity=IDENTITY,
                intended_at=now,
                issued_at=now,
                expires_at=now + timedelta(hours=2),
            )
        )
    database.close()


def test_attack_everything_is_killed_rotated_and_truncated_at_random(site):
    """Each statement is one entry; one that is none was destroyed, and a gap says so at its place."""
    chance = random.Random(SEED)  # noqa: S311
    target = site.target
    to_file = (target.rename, target.rename_twice, target.copytruncate, target.truncate, target.remove)
    done: Counter[str] = Counter()
    for number in range(1, ROUNDS + 1):
        target.run(chance.randint(1, 30))
        if chance.random() < 0.3:
            time.sleep(0.4)  # everything is read
        # Each kind comes in turn, so that few rounds have all; what it meets is left to chance.
        what = chance.sample([site.kill_tailer, site.kill_bot], chance.randint(0, 2))
        what += [site.kill_database] if number % 5 == 0 else []
        what.append(to_file[number % len(to_file)])
        what += chance.sample(to_file, chance.choice([0, 0, 1]))
        chance.shuffle(what)
        for one in what:
            one()
            done[one.__name__] += 1
            target.run(chance.randint(0, 10))
            time.sleep(chance.choice([0, 0, 0.05, 0.3]))
            if chance.random() < 0.3:
                site.follow()
        if number % SESSION_ROUNDS == 0:
            target.next_session()
        if chance.random() < 0.7:
            site.up()
        else:
            site.follow()
    site.up()
    target.run(1)
    target.next_session()
    if site.tailer is not None:
        site.parts.end(site.tailer, signal.SIGTERM)
    _send_the_rest(site)
    entries = site.entries()
    # 1. None is doubled.
    texts = Counter(entry.data["text"] for entry in entries if entry.event == "command:run")
    doubled = {text for text, count in texts.items() if count > 1}
    runs = [entry.data for entry in entries if entry.event == "command:run"]
    assert [(data["text"], data["position"]) for data in runs if data["text"] in doubled] == []
    places = {
        int(entry.data["text"][9:-1]): entry.data["position"].rpartition(":")
        for entry in entries
        if entry.event == "command:run"
    }
    # 2. None is lost that was not destroyed.
    written = {number for content in target.contents for number in content.lines}
    destroyed = {number for content in target.contents for number in content.destroyed}
    lost = written - set(places)
    assert lost <= destroyed
    # 3. Of what was destroyed unread a gap tells: at the place, or where the session's own numbers have a hole.
    gaps = [entry.data for entry in entries if entry.event == "capture:gap"]
    by_place, by_number = set(), set()
    for content in target.contents:
        names = {places[number][0] for number in content.lines if number in places}
        assert len(names) <= 1
        for number in content.lines.keys() & lost:
            session, line_num = target.sessions[number]
            if any(gap["file"] in names and gap["from"] <= content.lines[number] for gap in gaps):
                by_place.add(number)
            elif any(line_num in part for part in site.missing.get(session, ())):
                by_number.add(number)
    sys.stderr.write(
        f"\n{ROUNDS} rounds, seed {SEED}: {len(written)} statements, {len(places)} recorded, {len(lost)} destroyed "
        f"unread ({len(by_place)} told by a gap at their place, {len(by_number)} by the session's numbers), "
        f"{len(gaps)} gaps; {dict(done)}\n"
    )
    assert lost - by_place - by_number == set()
    # 4. Nothing was read wrongly on the way, and nobody else was blamed.
    assert {entry.event for entry in entries} <= {"test:begin", "command:run", "command:close", "capture:gap"}


def _send_the_rest(site):
    """Follow once more until all is sent. The bot comes back in its own time."""
    late = time.monotonic() + 120
    poster = Poster(f"http://{HOST}:{site.port}", "orders-pg", TOKEN)
    tailer = Tailer(site.target.file, poster, **site.place)
    while True:
        with contextlib.suppress(Exception):
            tailer.once()
            break
        assert time.monotonic() < late
        time.sleep(0.2)
    tailer.close()
    poster.close()
