"""Who survives a revocation, and how long does it take? ``python tests/bench_revoke.py [--engine NAME] [--rounds N]``.

Prints, for each engine, what a client had after the moment at which the desk said "ended", and the time from the
decision to that moment. Exit code 1 when anything survived.

Rules
-----
* The real parts: OpenBao, PostgreSQL or MariaDB, the desk on a database of its own. The client is a process of its own,
  so that it has its own share of the machine: 8 threads that reconnect in a loop, an idle session, one in a transaction
  and one with an open cursor; at MariaDB also two logins that were begun before the end and are answered after it.
* The moment is when ``finish`` has written the END entry: what was shown at the target is in it. From then on the
  client goes on for a while, and what it gets is counted: by itself, and by the server's own list of sessions.
* The end is a custodian's Revoke. All clocks are one: CLOCK_MONOTONIC is the machine's.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import hostile
import psycopg
from counter import CARL, PATIENCE, POLICY, Counter, People
from mariadb_part import Maria, MariaDB, maria_level, prepare_maria
from real_parts import Real, level_for
from test_engine_static import ACCOUNT, STATIC
from test_engine_static import level_for as lent

from bot.demo.parts import OpenBao, Postgres
from bot.demo.vault_setup import prepare_target, set_up
from storage.database import Database
from workflows import policy as rules
from workflows.lifecycle import Action

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from workflows.vault_plan import LevelSetup

ROUNDS: Final = {"database": 200, "mariadb": 50, "static": 50}
BEGINS: Final = 0.5  # seconds of attack before the decision
GOES_ON: Final = 0.3  # seconds after the proof


@dataclass
class Outcome:
    """What one series brought."""

    lag: list[float] = field(default_factory=list)  # seconds from the decision to the END entry
    told: list[int] = field(default_factory=list)  # the entry's own shown_after_ms
    attempts: int = 0  # logins before the proof
    sessions: int = 0
    logins: int = 0
    answers: int = 0  # held sessions that still did something

    @property
    def is_clean(self) -> bool:
        """Whether nothing survived."""
        return not (self.sessions or self.logins or self.answers)

    def lines(self, engine: str) -> list[str]:
        """Return the figures."""
        ms = sorted(lag * 1000 for lag in self.lag)
        at = {name: ms[min(len(ms) - 1, int(len(ms) * part))] for name, part in (("p50", 0.5), ("p99", 0.99))}
        shown = sorted(self.told)
        return [
            (
                f"{engine}: {len(ms)} revocations against {hostile.THREADS} reconnecting threads "
                f"({self.attempts} logins before)"
            ),
            f"  after the proof: {self.sessions} sessions, {self.logins} logins, {self.answers} open ones that answer",
            (
                f"  decision to proof: p50 {at['p50']:.0f} ms, p99 {at['p99']:.0f} ms, at most {ms[-1]:.0f} ms "
                f"(the entries say p50 {shown[len(shown) // 2]} ms, at most {shown[-1]} ms)"
            ),
        ]


def client(pipe: Connection, engine: str) -> None:
    """Attack each credential that comes until told to stop, then say what there was; a process of its own."""
    while (credential := pipe.recv()) is not None:
        attacker = (hostile.at_mariadb if engine == "mariadb" else hostile.at_postgresql)(credential)
        stalled = [hostile.Stalled(credential) for _ in range(2)] if engine == "mariadb" else []
        attacker.attack()
        pipe.send("attacking")
        pipe.recv()  # it is over: the stalled ones answer now
        pipe.send(sum(one.answer() for one in stalled))
        pipe.recv()
        attacker.stop()
        pipe.send((attacker.logins, attacker.still_open()))


def one_round(desk: Counter, real: Real, attacker: Connection, outcome: Outcome) -> None:
    """Live one request's end under attack."""
    desk.now = datetime.now(UTC)
    row = desk.approved()
    credential = desk.show(row)
    attacker.send(credential)
    attacker.recv()
    time.sleep(BEGINS)
    desk.now = datetime.now(UTC)
    version = desk.case(row.id).request.version
    decided = time.monotonic()
    desk.revoke(CARL, row.id, version, now=desk.now)
    while not desk.finish(row.id, now=datetime.now(UTC)):
        time.sleep(0.05)
    proof = time.monotonic()
    outcome.lag.append(proof - decided)
    outcome.sessions += real.sessions(credential.username)
    attacker.send("ended")
    outcome.logins += attacker.recv()
    time.sleep(GOES_ON)
    outcome.sessions += real.sessions(credential.username)
    attacker.send("stop")
    logins, answers = attacker.recv()
    outcome.attempts += sum(when <= proof for when in logins)
    outcome.logins += sum(when > proof for when in logins)
    outcome.answers += answers
    [end] = [record for record in desk.log_of(row) if record.event == Action.END.value]
    outcome.told.append(int(end.data["shown_after_ms"]))


def desk_for(folder: Path, real: Real, level: LevelSetup) -> Counter:
    """Return a desk whose level "read" is ``level``."""
    text = POLICY.read_text(encoding="utf-8")
    old = text[text.index("        engine: database") : text.index("        quorum: 1")]
    settings = level.settings
    keys = {"engine": settings.engine, "token_role": settings.token_role, **settings.options}
    text = text.replace(old, "".join(f'        {key}: "{value}"\n' for key, value in keys.items()), 1)
    database = Database(f"sqlite:///{folder / 'desk.db'}")
    database.setup()
    desk = Counter(
        database, rules.parse(text, name="bench"), People(), real.vault(), team="T0SANDBOX", patience=PATIENCE
    )
    desk.now = datetime.now(UTC)
    return desk


def postgresql(stack: ExitStack, folder: Path, bao: OpenBao, engine: str) -> tuple[Real, LevelSetup]:
    """Bring PostgreSQL up with one level."""
    pg = stack.enter_context(Postgres(folder / "postgres"))
    target = prepare_target(pg)
    if engine == "static":
        level = lent(pg, "repair", connections="20", database=target.database, manager=target.manager)
        with psycopg.connect(pg.dsn_for(target.database), autocommit=True) as server:
            server.execute(STATIC.target_steps(level.settings.options).encode())
            server.execute(f"GRANT USAGE ON SCHEMA public TO {ACCOUNT}; GRANT SELECT ON orders TO {ACCOUNT}".encode())
    else:
        level = level_for(pg, "orders-ro", "bg_orders_ro", connections="20")
    login = set_up(bao.addr, bao.root_token, target, [level])
    return Real(pg, bao, target, level, level, login), level


def mariadb(stack: ExitStack, folder: Path, bao: OpenBao, _engine: str) -> tuple[Real, LevelSetup]:
    """Bring MariaDB up with one level."""
    server = stack.enter_context(MariaDB(folder / "mariadb"))
    level = maria_level(server, "shop-wide", "bg_shop_ro", connections="20")
    target = prepare_maria(server, maria_level(server, "shop-rw", "bg_shop_rw"), level)
    login = set_up(bao.addr, bao.root_token, target, [level])
    return Maria(server, bao, target, level, level, login, level), level


def series(engine: str, rounds: int, say: Callable[[str], None]) -> Outcome:
    """Run one engine's series."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory(prefix="breakglass-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        bao = stack.enter_context(OpenBao(folder / "openbao"))
        real, level = (mariadb if engine == "mariadb" else postgresql)(stack, folder, bao, engine)
        desk = desk_for(folder, real, level)
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=client, args=(theirs, engine))
        process.start()
        for number in range(rounds):
            one_round(desk, real, ours, outcome)
            if (number + 1) % 10 == 0:
                say(f"{engine}: {number + 1} of {rounds}, load {os.getloadavg()[0]:.1f}")
        ours.send(None)
        process.join()
        desk.database.close()
    return outcome


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description="Who survives a revocation, and how long does it take?")
    parser.add_argument("--engine", choices=sorted(ROUNDS), action="append")
    parser.add_argument("--rounds", type=int)
    options = parser.parse_args()

    def say(line: str) -> None:
        print(line, file=sys.stderr)  # noqa: T201 - that is what it is for

    outcomes = {one: series(one, options.rounds or ROUNDS[one], say) for one in options.engine or sorted(ROUNDS)}
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")  # noqa: T201
    for engine, outcome in outcomes.items():
        print(*outcome.lines(engine), sep="\n")  # noqa: T201
    return 0 if all(outcome.is_clean for outcome in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
