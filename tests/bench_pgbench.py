"""What does recording cost a PostgreSQL login? ``python tests/bench_pgbench.py [--seconds 5]`` prints it.

Rules
-----
* Debian's PostgreSQL with pgaudit, and ``pgbench -S`` (one SELECT by key at a time, its worst case) with two clients.
* The logins are made with the engine's own statements for each value of the level's ``audit``; "none" is the baseline.
  They take turns on one server, three rounds, and the middle one counts. Only the login itself pays: nobody else is
  recorded.
* The log that the last round wrote is then read by the capture, without anything behind it.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import psycopg
from pgaudit_part import PgAudit, server_settings

from workflows.captures import CAPTURES
from workflows.engines import database_sql

ROUNDS: Final = 3
CLIENTS: Final = 2
PASSWORD: Final = "for-this-bench-alone"  # a server that lives a minute on loopback


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What does recording cost a PostgreSQL login?")
    parser.add_argument("--seconds", type=int, default=5, help="how long each turn takes")
    seconds = parser.parse_args().seconds
    with (
        tempfile.TemporaryDirectory(prefix="breakglass-bench-") as folder,
        PgAudit(Path(folder) / "postgres", durable=False, settings=server_settings()) as pg,
    ):
        _bench(pg, "-i", "-q", user="postgres", password=pg.password)
        with psycopg.connect(pg.dsn, autocommit=True) as server:
            server.execute("CREATE ROLE bench; GRANT ALL ON ALL TABLES IN SCHEMA public TO bench")
            for audit in database_sql.AUDIT:
                for line in database_sql.creation({"group": "bench", "audit": audit}):
                    words = {"name": f"bg-{audit}", "password": PASSWORD, "expiration": "infinity"}
                    for word, value in words.items():
                        line = line.replace(f"{{{{{word}}}}}", value)  # noqa: PLW2901 - as Vault fills it in
                    server.execute(line.encode())
        rates: dict[str, list[float]] = {audit: [] for audit in database_sql.AUDIT}
        for _ in range(ROUNDS):
            for audit, found in rates.items():
                begin = pg.recorded.stat().st_size
                said = _bench(
                    pg, "-S", "-c", str(CLIENTS), "-T", str(seconds), "-n", user=f"bg-{audit}", password=PASSWORD
                )
                found.append(float(re.search(r"tps = ([0-9.]+)", said)[1]))
                if audit == "pgaudit":
                    written = (begin, pg.recorded.stat().st_size)
        base = statistics.median(rates["none"])
        for audit, found in rates.items():
            rate = statistics.median(found)
            say(f"audit: {audit:<14} {rate:>9,.0f} statements/s   {rate / base:.2f} of the baseline")
        with pg.recorded.open("rb") as log:
            log.seek(written[0])
            lines = log.read(min(written[1] - written[0], 100_000_000)).splitlines()[:-1]
        began = time.perf_counter()
        told = [line.kind for raw in lines for line in CAPTURES["postgres"].read(raw)]
        taken = time.perf_counter() - began
        say(f"read back: {len(lines) / taken:,.0f} lines/s, {told.count('statement') / taken:,.0f} statements/s")
    return 0


def say(line: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _bench(pg: PgAudit, *words: str, user: str, password: str) -> str:
    done = subprocess.run(
        [str(pg.bin / "pgbench"), "-h", pg.host, "-p", str(pg.port), "-U", user, *words, "postgres"],
        env={"PATH": os.defpath, "PGPASSWORD": password},
        capture_output=True,
        check=True,
        text=True,
    )
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
