"""How fast is the log? ``python tests/bench_log.py [--entries 100000]`` prints it; it asserts nothing.

Rules
-----
* Each figure stands beside its baseline, measured in the same run and in turns with it, so that both meet the same
  weather: the bare INSERT with commit of the same bytes, SHA-256 of the same bytes, SQLite's own dump. A line says
  what the same append costs without our sessions: the rest of its distance is the log's own table, lock and hashes.
* One transaction for each entry, on databases that write through to the disk. ``--directory`` says on which disk; what
  the disk costs is in the baseline.
* "Signed" is as the bot runs it: a HeadKeeper in a thread of its own, woken by each commit; how long the
  last entry of a burst then waits for its head is told beside it.
* Exports run in a process of their own, whose peak of resident memory is read from the kernel. They are of the large
  log, of ``--entries``; so are the proofs and the append at size.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

import psycopg
from bundling import ORIGIN, row
from sqlalchemy.engine import make_url
from test_quick import carefully, encoded, made, written

from bot.demo.parts import Postgres
from storage import audit, bundle, export, merkle, proofs, standalone
from storage import database as database_module
from storage.database import Database
from storage.heads import HeadKeeper, latest
from storage.signers import FileKeyring, new_key_file
from workflows.door import Door
from workflows.lifecycle import Action, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROUNDS: Final = 10  # turns of baseline and ours
LASTING: Final = 4  # times as long are the turns with signing, so that several heads are signed in each
SMALL: Final = 1000  # entries of the small log, with which the large one is compared
PROOFS: Final = 1000
TURNS: Final = 4  # of the verifier and its baseline
STORY: Final = 20  # entries of one request in the large log
BURST: Final = 10  # entries in one transaction, as the recorder of commands writes them
BATCH: Final = 2000  # entries in one transaction while the large log is filled: not measured
ACTOR: Final = audit.Actor("T0HOME", "U0RITA")
DATA: Final = {"sql": "UPDATE orders SET state = 'paid' WHERE id = 4711", "user": "v-write-7KQ2", "rows": 1}
OPENED: Final = {
    "level": "write",
    "reason": "Checkout is down for every customer",
    "standard_path": "Paged the database on-call twice",
    "threshold": {"id": "customer-impact", "text": "Customers cannot order"},
    "custodians": ["U0CHEN", "U0NIHN"],
    "quorum": 2,
    "asked_seconds": 900,
}
MOVED: Final = {"name": "Rita Reyes", "granted_seconds": 900}


def say(words: str = "") -> None:
    """Print a line at once: a long run shows where it is."""
    print(words, flush=True)  # noqa: T201 - that is what it is for


def load() -> str:
    """Return the load of the machine."""
    return f"load {os.getloadavg()[0]:.2f}"


class Times:
    """How long each call took, in seconds; over several turns."""

    def __init__(self) -> None:
        self.all: list[float] = []
        self.waits: list[float] = []  # after each turn, until what it began was done as well
        self.cpu = 0.0

    def run(self, call: Callable[[], object], times: int, done: Callable[[], object] = lambda: None) -> None:
        """Call so many times, then wait for ``done``."""
        clock, note = time.perf_counter, self.all.append
        cpu = time.thread_time()
        for _ in range(times):
            begun = clock()
            call()
            note(clock() - begun)
        self.cpu += time.thread_time() - cpu
        begun = clock()
        done()
        self.waits.append(clock() - begun)

    def ms(self, percent: int) -> float:
        """Return a percentile, in milliseconds."""
        ordered = sorted(self.all)
        return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] * 1000

    @property
    def rate(self) -> float:
        """Calls in a second, without the waits."""
        return len(self.all) / sum(self.all)

    def line(self, what: str, beside: Times | None = None) -> str:
        """Return them as a line, beside their baseline."""
        ratio = f"  {self.rate / beside.rate:5.2f} of the baseline's rate" if beside else ""
        cpu = self.cpu / len(self.all) * 1e6
        return (
            f"  {what:<42} {self.rate:7.0f}/s  p50 {self.ms(50):6.3f} ms  p99 {self.ms(99):6.3f} ms  cpu {cpu:4.0f} µs"
            f"{ratio}"
        )


# --- appending -----------------------------------------------------------------------------------------------------


def appender(database: Database, request_id: str | None = "BG-1") -> Callable[[], object]:
    """Return what appends one entry in a transaction of its own."""

    def append() -> None:
        with database.write() as session:
            audit.append(
                session, event="command:run", at=datetime.now(UTC), actor=ACTOR, request_id=request_id, data=DATA
            )

    return append


def connect(url: str) -> Any:
    """Connect by the driver alone, writing through to the disk, with no transaction of the driver's own making."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        opened: Any = sqlite3.connect(str(parsed.database), isolation_level=None)
        opened.execute("PRAGMA synchronous = FULL")
        return opened
    return psycopg.connect(parsed.set(drivername="postgresql").render_as_string(hide_password=False), autocommit=True)


@contextmanager
def bare(url: str) -> Iterator[Callable[[], object]]:
    """Give what inserts and commits the bytes of such an entry, by the driver alone, into the same database."""
    body = audit.encode(seq=1_000_000, event="command:run", at=datetime.now(UTC), actor=ACTOR, data=DATA)
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        begin, insert = "BEGIN IMMEDIATE", "INSERT INTO bare (body) VALUES (?)"
        kind = "seq INTEGER PRIMARY KEY, body BLOB"
    else:
        begin, insert = "BEGIN", "INSERT INTO bare (body) VALUES (%s)"
        kind = "seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body bytea"
    with closing(connect(url)) as opened:
        opened.execute(f"CREATE TABLE bare ({kind})")

        def insert_one() -> None:
            opened.execute(begin)
            opened.execute(insert, (body,))
            opened.execute("COMMIT")

        yield insert_one
        opened.execute("DROP TABLE bare")


@contextmanager
def direct(url: str) -> Iterator[Callable[[], object]]:
    """Give what appends the same entry to the same log by the driver alone, without sessions, checks and errors.

    So this is what the log's table, guards, lock and hashes cost by themselves: what an append can come down to.
    """
    is_sqlite = make_url(url).get_backend_name() == "sqlite"
    insert = audit._INSERT_SQLITE if is_sqlite else audit._INSERT_POSTGRESQL
    with closing(connect(url)) as opened:
        cursor = opened.cursor()

        def append_one() -> None:
            if is_sqlite:
                cursor.execute("BEGIN IMMEDIATE")
                cursor.execute(database_module._NEWEST)
            else:
                cursor.execute(database_module._BEGIN_POSTGRESQL)
                while cursor.nextset():
                    pass
            newest = cursor.fetchone()
            seq, peaks = (newest[0] + 1, newest[1]) if newest else (0, b"")
            at = datetime.now(UTC)
            body = audit.encode(seq=seq, event="command:run", at=at, actor=ACTOR, request_id="BG-1", data=DATA)
            leaf = merkle.leaf_hash(body)
            peaks = merkle.push(peaks, seq, leaf)
            stored_at = at.replace(tzinfo=None).isoformat(" ", "microseconds") if is_sqlite else at
            cursor.execute(insert, (seq, "BG-1", "command:run", stored_at, body, leaf, merkle.root(peaks), peaks))
            opened.commit()

        yield append_one


def burster(database: Database) -> Callable[[], object]:
    """Return what appends entries as the recorder of commands does: many in one transaction."""
    drafts = [audit.Draft("command:run", ACTOR, "BG-1", DATA) for _ in range(BURST)]

    def append() -> None:
        with database.write() as session:
            audit.append_all(session, drafts, at=datetime.now(UTC))

    return append


class Keeping:
    """The signing of heads, as the bot runs it."""

    def __init__(self, database: Database, folder: Path) -> None:
        key = Path(tempfile.mkdtemp(dir=folder)) / "log.key"
        new_key_file(key)
        self._database = database
        self._covered = threading.Event()
        self._keeper = HeadKeeper(
            database, ORIGIN, FileKeyring(ORIGIN, key), heartbeat=timedelta(minutes=5), now=lambda: datetime.now(UTC)
        )
        self._keeper.signed.append(self._covered.set)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run it."""
        self._database.woken.append(self._keeper.wake)
        self._keeper.start()
        yield
        self._database.woken.remove(self._keeper.wake)
        self._keeper.stop()

    def settle(self) -> None:
        """Return when all entries stand under a stored head."""
        while True:
            self._covered.clear()
            with self._database.read() as session:
                head = latest(session)
                if head is not None and head.size == audit.head(session).size:
                    return
            self._covered.wait(1)


def mover(database: Database) -> Callable[[], object]:
    """Return what makes one move of a request through the door: checked, compared and set, with its entry."""
    door, custodian = Door(database), audit.Actor("T0HOME", "U0CHEN")
    with database.write() as session:
        session.add(row("BG-MOVE", "orders-db", "U0RITA", datetime.now(UTC)))

    def move() -> None:
        now = datetime.now(UTC)
        with door.turn("BG-MOVE", now=now) as turn:
            turn.move(Action.APPROVE, custodian, (Role.CUSTODIAN,), data=MOVED)

    return move


def appending(name: str, url: str, folder: Path, times: int) -> None:
    """Measure the append on one database."""
    database = Database(url)
    database.setup()
    append, move, keeping = appender(database), mover(database), Keeping(database, folder)
    append_burst = burster(database)
    plain, baseline, floor, signed, moved, bursts = Times(), Times(), Times(), Times(), Times(), Times()
    with bare(url) as insert, direct(url) as append_directly:
        for call in (insert, append_directly, append, move):
            Times().run(call, 100)  # for warming up
        with keeping.running():
            keeping.settle()
        for _ in range(ROUNDS):
            baseline.run(insert, times // ROUNDS)
            floor.run(append_directly, times // ROUNDS)
            plain.run(append, times // ROUNDS)
            with keeping.running():
                keeping.settle()  # of what the other turns left unsigned: in the bot nothing is ever left
                signed.run(append, LASTING * times // ROUNDS, keeping.settle)
                bursts.run(append_burst, times // ROUNDS // BURST, keeping.settle)
            moved.run(move, times // ROUNDS)
        with database.read() as session:
            size = audit.head(session).size
    database.close()
    say(f"Append, {name}: one transaction for each of {times} ({size} in the log at the end); {load()}")
    say(baseline.line("bare INSERT with commit, same bytes"))
    say(floor.line("the same entry, by the driver alone", baseline))
    say(plain.line("append", baseline))
    say(signed.line("append with signed head", baseline))
    waits = sorted(wait * 1000 for wait in signed.waits)
    say(
        f"    the last of {LASTING * times // ROUNDS} is under a head {statistics.median(waits):.0f} ms later, "
        f"{waits[-1]:.0f} at most"
    )
    say(
        f"  {BURST} in one transaction, with signed head {BURST * bursts.rate:13.0f}/s  p50 {bursts.ms(50):6.3f} ms  "
        f"p99 {bursts.ms(99):6.3f} ms for all of them"
    )
    say(moved.line("a move through the door, with its entry", baseline))


# --- the large log -------------------------------------------------------------------------------------------------


def fill(database: Database, entries: int) -> None:
    """Write a log of so many entries: requests that are opened and escalated on and on."""
    at, size = datetime(2026, 3, 1, tzinfo=UTC), 0
    while size < entries:
        with database.write() as session:
            for seq in range(size, min(entries, size + BATCH)):
                number, at = seq // STORY, at + timedelta(seconds=2)
                request_id, account = f"BG-{number:06d}", ("orders-db", "ledger-db")[number % 2]
                if seq % STORY == 0:
                    session.add(row(request_id, account, "U0RITA", at))
                    told = OPENED | {"account": account}
                    audit.append(
                        session,
                        event="request:open",
                        at=at,
                        actor=ACTOR,
                        request_id=request_id,
                        target="pending",
                        version=1,
                        policy="0" * 64,
                        data=told,
                    )
                else:
                    audit.append(
                        session,
                        event="request:escalate",
                        at=at,
                        actor=audit.SYSTEM,
                        request_id=request_id,
                        source="pending",
                        target="pending",
                        version=seq % STORY + 1,
                        policy="0" * 64,
                        data={**DATA, "n": seq},
                    )
        size = min(entries, size + BATCH)


def growing(large: Database, folder: Path, entries: int, times: int) -> None:
    """Compare the append to the large log with that to a small one.

    The large one is verified afterwards and must be sound, so these entries are of no request.
    """
    small = Database(f"sqlite:///{folder / 'small.db'}")
    small.setup()
    fill(small, SMALL)
    ours, beside = Times(), Times()
    for database in (large, small):
        Times().run(appender(database, None), 50)
    turns = ROUNDS * 4
    for number in range(turns):
        pair = [(beside, appender(small, None)), (ours, appender(large, None))]
        for figures, append in pair if number % 2 else reversed(pair):
            figures.run(append, times // turns)
    small.close()
    say(f"Append at size, SQLite: {times} each, in turns; {load()}")
    say(beside.line(f"at {SMALL:,} entries"))
    say(ours.line(f"at {entries:,} entries", beside))
    means = statistics.fmean(ours.all) / statistics.fmean(beside.all)
    say(
        f"  cost at {entries:,} over cost at {SMALL:,}: median {ours.ms(50) / beside.ms(50):.2f}, mean {means:.2f}, "
        f"cpu {ours.cpu / beside.cpu:.2f}"
    )


def proving(database: Database, size: int) -> None:
    """Measure one entry's proof of inclusion out of the database, each in a transaction of its own."""
    random, ours, beside = Random(3), Times(), Times()  # noqa: S311 - which entries, no secret

    def prove() -> None:
        with database.read() as session:
            proofs.inclusion(session, random.randrange(size), size)

    def ask() -> None:
        with database.read() as session:
            proofs.root_at(session, random.randrange(size) + 1)

    for _ in range(ROUNDS):
        beside.run(ask, PROOFS // ROUNDS)
        ours.run(prove, PROOFS // ROUNDS)
    say(f"Proof for one entry in {size:,}: {PROOFS} at random, each checked; {load()}")
    say(beside.line("one row by its number"))
    say(ours.line("inclusion proof", beside))


# --- leaving -------------------------------------------------------------------------------------------------------


def write_jsonl(database: Path, out: Path) -> None:
    """Export the whole log as lines."""
    with Database(f"sqlite:///{database}").read() as session, out.open("wb") as file:
        export.export(session, file, exported_at=datetime(2026, 4, 1, tzinfo=UTC))


def write_bundle(database: Path, out: Path) -> None:
    """Export the whole log as a bundle."""
    with Database(f"sqlite:///{database}").read() as session, out.open("wb") as file:
        bundle.write(session, file, export.Selection())


def write_dump(database: Path, out: Path) -> None:
    """Dump it as SQLite does."""
    with closing(sqlite3.connect(database)) as opened, out.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in opened.iterdump())


WAYS: Final[dict[str, Callable[[Path, Path], None]]] = {
    "dump": write_dump,
    "jsonl": write_jsonl,
    "bundle": write_bundle,
}
NAMED: Final = {
    "dump": "baseline: the statements of .dump",
    "jsonl": "export --format jsonl",
    "bundle": "export --format bundle",
}


def peak_megabytes() -> float:
    """Return the most memory that this process has had resident. (The one of getrusage is handed on by a fork.)"""
    words = Path("/proc/self/status").read_text(encoding="ascii").split()
    return int(words[words.index("VmHWM:") + 1]) / 1024


def leaving(file: Path, folder: Path) -> None:
    """Measure each way out, in a process of its own, and verify the lines before the bundle, which takes longest."""
    base = 0.0
    for way in WAYS:
        out = folder / f"out.{way}"
        command = [sys.executable, __file__, "--way", way, str(file), str(out)]
        begun = load()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        took, peak = map(float, done.stdout.split())
        base = base or took
        say(f"Export; {begun}")
        say(
            f"  {NAMED[way]:<42} {took:7.1f} s  peak {peak:5.0f} MB  {out.stat().st_size / 1e6:8.1f} MB written"
            f"  {took / base:5.2f} of the baseline's time"
        )
        if way == "jsonl":
            verifying(out, "the exported lines")
        out.unlink()


def verifying(file: Path, what: str) -> None:
    """Measure the verifier on exported lines, in turns with its baseline: the best of several."""
    times: dict[str, list[float]] = {}
    ways: dict[str, Callable[[], object]] = {
        "baseline: SHA-256 of each line": lambda: hash_lines(file),
        "hashes, order, proofs": lambda: standalone.verify(file, rules=False),
        "and the rules (whole verifier)": lambda: standalone.verify(file),
        "the same, in one process": lambda: standalone.verify(file, processes=1),
        "the careful way, which names what is wrong": lambda: carefully(file),
    }
    found: object = None
    say(f"Verify {what}, the best of {TURNS}, in turns; {load()}")
    for _ in range(TURNS):
        for name, way in ways.items():
            begun = time.perf_counter()
            found = way()
            times.setdefault(name, []).append(time.perf_counter() - begun)
    assert isinstance(found, standalone.Report)
    base, entries = min(times["baseline: SHA-256 of each line"]), found.entries
    for name, took in times.items():
        say(
            f"  {name:<42} {entries / min(took):7.0f} entries/s  {min(took):6.2f} s (worst {max(took):.2f})"
            f"  {base / min(took):5.3f} of the baseline's rate"
        )
    say(f"  {entries} entries, {len(found.findings)} findings; {load()}")


def hash_lines(file: Path) -> None:
    """Hash each line."""
    with file.open("rb") as lines:
        for line in lines:
            sha256(line).digest()


def write_requests(file: Path, entries: int) -> None:
    """Write an export of whole requests: opened, approved, used, ended, reviewed, sealed."""
    requests = min(entries, 100_000) // 16
    file.write_bytes(written(encoded(made(1, requests))))


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="How fast is the log?")
    parser.add_argument("--entries", type=int, default=100_000, help="of the large log")
    parser.add_argument("--times", type=int, default=5000, help="how often each append is measured")
    parser.add_argument("--directory", type=Path, help="where the databases lie")
    parser.add_argument("--only", choices=("append", "large"))
    parser.add_argument("--way", nargs=3, help=argparse.SUPPRESS)  # this file in a process of its own
    options = parser.parse_args()
    if options.way:
        begun = time.perf_counter()
        WAYS[options.way[0]](Path(options.way[1]), Path(options.way[2]))
        say(f"{time.perf_counter() - begun} {peak_megabytes()}")
        return 0
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.directory)))
        say(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, SQLite {sqlite3.sqlite_version}; {load()}")
        if options.only != "large":
            appending("SQLite", f"sqlite:///{folder / 'append.db'}", folder, options.times)
            server = stack.enter_context(Postgres(folder / "postgres", durable=True))
            appending("PostgreSQL", server.url_for("postgres"), folder, options.times)
            server.stop()
        if options.only != "append":
            file = folder / "large.db"
            large = Database(f"sqlite:///{file}")
            large.setup()
            fill(large, options.entries)
            keeper = Keeping(large, folder)
            with keeper.running():
                keeper.settle()
            proving(large, options.entries)
            growing(large, folder, options.entries, options.times)
            large.close()
            leaving(file, folder)
            lines = folder / "requests.jsonl"
            write_requests(lines, options.entries)
            verifying(lines, "an export of whole requests")
        say(load())
    return 0


if __name__ == "__main__":
    sys.exit(main())
