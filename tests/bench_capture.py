"""How fast do executed statements get into the log? ``python tests/bench_capture.py [--lines 50000]`` prints it.

It asserts nothing.

Rules
-----
* The lines are PostgreSQL's with pgaudit, of one source: mixed statements with their own numbers in them, of which a
  fifth is somebody else's, and nothing of a login or a server. They come in batches, as a shipper sends them.
* Beside it stands the bare INSERT of the same entries' bytes, many in one transaction, into the same database.
* "Signed" is as the bot runs it: a HeadKeeper in a thread of its own, woken by each commit.
* Where the time goes is told by the parts alone: reading, redacting, judging, appending.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from bench_log import Keeping, connect, load, say
from bundling import row
from sqlmodel import select

from bot.demo.parts import Postgres
from storage.database import Database
from storage.models import Entry, Grant
from workflows.capture_rules import SourceRules
from workflows.captures import CAPTURES
from workflows.captures.classify import classify
from workflows.captures.redaction import redact
from workflows.recorder import Raw, Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROUNDS: Final = 5
BATCH: Final = 1000
LOOK: Final = 0.2  # seconds
MOST: Final = 1500  # lines in 512 KiB
REQUEST: Final = "BG-7KQ2"
IDENTITY: Final = "bg-7kq2-1-x7h2k9ab"
STATEMENTS: Final = (
    "SELECT id, state, note FROM orders WHERE id = {n}",
    "SELECT o.id, c.name FROM orders o JOIN customers c ON c.id = o.customer WHERE o.placed > {n}",
    "UPDATE orders SET state = 'paid', note = 'by hand, {n}' WHERE id = {n}",
    "INSERT INTO notes (about, words) VALUES ({n}, 'looked at it')",
    "WITH late AS (SELECT id FROM orders WHERE state = 'late' AND id > {n}) SELECT count(*) FROM late",
    "DELETE FROM carts WHERE id = {n} AND emptied",
    "ALTER ROLE app PASSWORD 'correct-horse-{n}'",
    "SELECT pg_sleep(0); -- {n}",
)


def lines(offset: int = 0) -> Iterator[Raw]:
    """Give the source's lines, without end."""
    at = datetime.now(UTC)
    for n in itertools.count(1):
        text = STATEMENTS[n % len(STATEMENTS)].format(n=n)
        line = json.dumps(
            {
                "timestamp": f"{at:%Y-%m-%d %H:%M:%S}.{n % 1000:03d} UTC",
                "user": IDENTITY if n % 5 else "app",
                "dbname": "orders",
                "pid": 31281,
                "session_id": f"6ab4c1de.{n // 500:x}",
                "line_num": n % 500 + 3,
                "ps": "SELECT",
                "error_severity": "LOG",
                "message": f'AUDIT: SESSION,{n},1,READ,SELECT,,,"{text}",<none>',
                "backend_type": "client backend",
            }
        ).encode()
        yield Raw("postgresql.json", offset, line)
        offset += len(line) + 1


class Bot:
    """A recorder on a database with one access out."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.database.setup()
        now = datetime.now(UTC)
        with self.database.write() as session:
            session.add(row(REQUEST, "orders-db", "U0RITA", now))
            session.flush()
            session.add(
                Grant(
                    request_id=REQUEST,
                    number=1,
                    engine="database",
                    path="database/creds/orders-ro",
                    lease_prefix="database/creds/orders-ro",
                    options={"database": "orders"},
                    accessor="a",
                    identity=IDENTITY,
                    intended_at=now,
                    accessor_at=now,
                    issued_at=now,
                    expires_at=now + timedelta(minutes=15),
                )
            )
        rules = SourceRules("orders-pg", "postgres", "0" * 64, timedelta(minutes=1))
        policy: Any = SimpleNamespace(captures={"orders-pg": rules}, accounts={})
        self.recorder = Recorder(self.database, lambda: policy)
        self._lines = lines()
        self.cpu = 0.0  # seconds of all threads, in all turns

    def take(self, count: int) -> float:
        """Take so many lines in; return the seconds that it took."""
        batches = [list(itertools.islice(self._lines, BATCH)) for _ in range(count // BATCH)]
        begun = time.process_time()
        took = timed(lambda: [self.recorder.take("orders-pg", batch, datetime.now(UTC)) for batch in batches])
        self.cpu += time.process_time() - begun
        return took


def timed(call: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def bare(url: str, database: Database, count: int) -> float:
    """Insert and commit as many entries' bytes, by the driver alone, in batches of the same size."""
    with database.read() as session:
        bodies = session.exec(select(Entry.body).where(Entry.event == "command:run").limit(500)).all()
    place = "?" if url.startswith("sqlite") else "%s"
    with closing(connect(url)) as opened:
        cursor = opened.cursor()
        cursor.execute("DROP TABLE IF EXISTS bare")
        cursor.execute("CREATE TABLE bare (seq bigint PRIMARY KEY, body %s)" % ("BLOB" if place == "?" else "bytea"))

        def insert() -> None:
            for at in range(0, count, 500):
                rows = [(at + n, bodies[n % len(bodies)]) for n in range(500)]
                cursor.execute("BEGIN")
                cursor.executemany(f"INSERT INTO bare VALUES ({place}, {place})", rows)
                cursor.execute("COMMIT")

        return timed(insert)


def measure(name: str, url: str, folder: Path, count: int) -> None:
    """Measure one database."""
    bot = Bot(url)
    bot.take(2 * BATCH)  # for warming up
    bot.cpu = 0.0
    keeping = Keeping(bot.database, folder)
    turn = count // ROUNDS
    plain, signed, insert = 0.0, 0.0, 0.0
    settled: list[float] = []
    for _ in range(ROUNDS):
        insert += bare(url, bot.database, turn)
        plain += bot.take(turn)
        with keeping.running():
            keeping.settle()
            signed += bot.take(turn)
            settled.append(timed(keeping.settle))
    bot.database.close()
    total = turn * ROUNDS
    say(f"Lines into the log, {name}: {total} of each, in batches of {BATCH}; {load()}")
    say(f"  bare INSERT of as many entries' bytes, 500 at once  {total / insert:8.0f}/s")
    for what, took in (("taken in, a fifth of them nobody's", plain), ("taken in, with signed heads", signed)):
        say(f"  {what:<50} {total / took:8.0f}/s  {insert / took:5.2f} of the baseline's rate")
    each = bot.cpu / (2 * total)
    say(f"    {each * 1e6:.0f} µs of processor time for a line: {1 / each:.0f}/s where nobody else has the core")
    say(f"    the last of a turn is under a head {max(settled) * 1000:.0f} ms later at most")


def parts(count: int) -> None:
    """Measure what is done with each line before the database is asked."""
    raws = list(itertools.islice(lines(), count))
    capture = CAPTURES["postgres"]
    read = [line for raw in raws for line in capture.read(raw.line)]
    for name, call in (
        ("read", lambda: [capture.read(raw.line) for raw in raws]),
        ("redacted", lambda: [redact(line.text, line.argv) for line in read]),
        ("judged", lambda: [classify(line.kind, line.text, line.argv, "postgres") for line in read]),
    ):
        say(f"  {name:<10} {count / timed(call):8.0f}/s")


def sustained(name: str, url: str, folder: Path, rate: int, seconds: int) -> None:
    """Offer a steady stream and tell whether the log keeps up with it, and how far behind a line is at most.

    As the tailer does: a look five times a second, and in one batch what is there by then, of 512 KiB at most.
    """
    bot = Bot(url)
    keeping = Keeping(bot.database, folder)
    stream = lines()
    behind: list[float] = []
    sent = 0
    with keeping.running():
        begun = time.perf_counter()
        while sent < rate * seconds:
            # The oldest line of the next batch is due one look after it was written.
            time.sleep(max(0.0, begun + sent / rate + LOOK - time.perf_counter()))
            there = min(int((time.perf_counter() - begun) * rate), rate * seconds)
            batch = list(itertools.islice(stream, min(there - sent, MOST)))
            oldest, sent = begun + sent / rate, sent + len(batch)
            bot.recorder.take("orders-pg", batch, datetime.now(UTC))
            behind.append(time.perf_counter() - oldest)
        took = time.perf_counter() - begun
    bot.database.close()
    behind.sort()
    half, most = behind[len(behind) // 2] * 1000, behind[len(behind) * 99 // 100] * 1000
    say(f"  {name}: {rate}/s offered for {seconds} s, signed: {sent / took:.0f}/s in the log; {load()}")
    say(f"    the oldest line of a batch is in the log {half:.0f} ms (p50), {most:.0f} ms (p99) after it was written")


def main() -> None:
    """Measure all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--rate", type=int, default=5_000)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--directory", type=Path, default=None)
    asked = parser.parse_args()
    say(f"{os.cpu_count()} cores; {load()}")
    say("Before the database is asked, one thread:")
    parts(20_000)
    with tempfile.TemporaryDirectory(dir=asked.directory) as name:
        folder = Path(name)
        measure("SQLite", f"sqlite:///{folder / 'a.db'}", folder, asked.lines)
        sustained("SQLite", f"sqlite:///{folder / 'b.db'}", folder, asked.rate, asked.seconds)
        with Postgres(folder / "pg", durable=True) as server:
            measure("PostgreSQL", server.url_for("postgres"), folder, asked.lines)
        with Postgres(folder / "pg2", durable=True) as server:
            sustained("PostgreSQL", server.url_for("postgres"), folder, asked.rate, asked.seconds)


if __name__ == "__main__":
    main()
