"""What does Vault cost? ``python tests/bench_vault.py [--live 1,100,1000,5000]`` prints it; it asserts nothing.

Rules
-----
* The real parts: OpenBao, PostgreSQL as the target, the bot's own rows in SQLite. So many grants are live meanwhile,
  each with a lease at Vault, a login at PostgreSQL and rows on record.
* "Issue" is what the Reveal click sets off: the intent, the child token, its accessor on record, the credential, its
  lease on record. "Revoke" is what Done sets off, to the entry that says ended: revoked, confirmed at Vault, and seen
  at the target by a login that can only look.
* The baseline is bare hvac, in turns with it, at the same server with the same leases: the credential's read, and the
  lease's synchronous revocation; for the reconciliation, one LIST of the leases.
* What is live is filled in by threads, past the desk: its rows are copies of one request's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import hvac
from counter import RITA, counter_at
from real_parts import Real, level_for
from sqlalchemy import insert

from bot.demo.parts import OpenBao, Postgres
from bot.demo.vault_setup import prepare_target, set_up
from storage.database import Database
from storage.models import Grant, Request
from workflows.reconcile import Reconciler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from counter import Counter

ROUNDS: Final = 30
RECONCILIATIONS: Final = 7
THREADS: Final = 8
LIVES: Final = timedelta(minutes=30)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What does Vault cost?")
    parser.add_argument("--live", default="1,100,1000,5000", help="how many grants are live, ascending")
    wanted = [int(number) for number in parser.parse_args().live.split(",")]
    with tempfile.TemporaryDirectory(prefix="breakglass-bench-") as folder:
        at = Path(folder)
        # The crash-safety of the target is not what is measured; its default would only add the disk's time to both.
        with Postgres(at / "postgres", durable=False) as pg, OpenBao(at / "openbao") as bao:
            target = prepare_target(pg)
            read, write = level_for(pg, "orders-ro", "bg_orders_ro"), level_for(pg, "orders-rw", "bg_orders_rw")
            rehearsal = level_for(pg, "orders-rehearsal", "bg_orders_rehearsal")
            login = set_up(bao.addr, bao.root_token, target, [read, write, rehearsal])
            real = Real(pg, bao, target, read, write, login, rehearsal=rehearsal)
            database = Database(f"sqlite:///{at / 'breakglass.db'}")
            database.setup()
            _measure(counter_at(real, database), real, wanted)
            database.close()
    return 0


def _measure(desk: Counter, real: Real, wanted: Sequence[int]) -> None:
    bare = hvac.Client(url=real.bao.addr, token=real.bao.root_token)
    _say(f"{ROUNDS} rounds on {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f}")
    _say(f"{'live':>6}  {'what':<22}{'median':>9}{'p90':>9}   {'bare hvac':>9}{'p90':>9}   ratio")
    have = 0
    for number in wanted:
        began = time.perf_counter()
        _fill(desk, real, have, number)
        have = number
        filled = time.perf_counter() - began
        figures = _grants(desk, bare)
        _line(number, "issue", figures["issue"], figures["bare read"])
        _line(number, "revoke, seen at target", figures["revoke"], figures["bare revoke"])
        ours, theirs = _rounds(desk, bare)
        _line(number, "one reconciliation", ours, theirs)
        _say(f"{'':>6}  filled in {filled:.0f} s; load {os.getloadavg()[0]:.1f}")


def _fill(desk: Counter, real: Real, first: int, last: int) -> None:
    """Have grants ``first`` to ``last`` live, with rows on record."""
    if first == last:
        return
    template = desk.approved(minutes=15)
    case = desk.case(template.id)
    now = datetime.now(UTC)

    def open_one(number: int) -> dict[str, object]:
        name = f"BG-F{number:05}"
        credential, grant, child = real.open(desk.vault, ttl=LIVES, name=name)
        return {
            "request_id": name,
            "number": 1,
            "engine": "database",
            "path": grant.lease_prefix,
            "options": dict(grant.options),
            "lease_prefix": grant.lease_prefix,
            "accessor": child.accessor,
            "lease_id": credential.lease_id,
            "identity": credential.username,
            "intended_at": now,
            "accessor_at": now,
            "issued_at": now,
            "expires_at": now + LIVES,
        }

    with ThreadPoolExecutor(THREADS) as pool:
        grants = list(pool.map(open_one, range(first, last)))
    columns = {name: getattr(case.request, name) for name in Request.__table__.columns.keys()}  # noqa: SIM118
    live = {"state": "active", "expires_at": now + LIVES, "due_at": now + LIVES, "lapse_at": None}
    with desk.database.write() as session:
        rows = [columns | live | {"id": grant["request_id"], "form_id": None} for grant in grants]
        session.execute(insert(Request), rows)
        session.execute(insert(Grant), grants)


def _grants(desk: Counter, bare: hvac.Client) -> dict[str, list[float]]:
    """Return milliseconds by what was done, ours and the bare calls in turns."""
    found: dict[str, list[float]] = {"issue": [], "revoke": [], "bare read": [], "bare revoke": []}

    def took(what: str, since: float) -> float:
        now = time.perf_counter()
        found[what].append((now - since) * 1000)
        return time.perf_counter()

    for number in range(ROUNDS + 2):
        if number == 2:
            for figures in found.values():
                figures.clear()  # the first two were for warming up
        desk.now = datetime.now(UTC)
        row = desk.approved()
        version = desk.case(row.id).request.version
        began = time.perf_counter()
        desk.issue(desk.reveal(RITA, row.id, version, now=datetime.now(UTC)), now=datetime.now(UTC))
        took("issue", began)
        version = desk.case(row.id).request.version
        began = time.perf_counter()
        desk.release(RITA, row.id, version, now=datetime.now(UTC))
        if not desk.finish(row.id, now=datetime.now(UTC)):
            raise SystemExit(f"{row.id} has not ended")
        began = took("revoke", began)
        lease = bare.secrets.database.generate_credentials("orders-ro")["lease_id"]
        began = took("bare read", began)
        # (hvac's own revoke_lease has no way to say so; without it Vault answers before it has done it.)
        bare.adapter.put("/v1/sys/leases/revoke", json={"lease_id": lease, "sync": True})
        took("bare revoke", began)
    return found


def _rounds(desk: Counter, bare: hvac.Client) -> tuple[list[float], list[float]]:
    ours, theirs = [], []
    reconciler = Reconciler(desk)
    for _ in range(RECONCILIATIONS):
        began = time.perf_counter()
        made = reconciler.round(now=datetime.now(UTC))
        ours.append((time.perf_counter() - began) * 1000)
        if made.found or made.lost:
            raise SystemExit(f"what was filled in is not explained: {made}")
        began = time.perf_counter()
        bare.sys.list_leases("database/creds/orders-ro")
        theirs.append((time.perf_counter() - began) * 1000)
    return ours, theirs


def _line(live: int, what: str, ours: list[float], theirs: list[float]) -> None:
    def p90(values: list[float]) -> float:
        return sorted(values)[min(len(values) - 1, len(values) * 9 // 10)]

    median, bare = statistics.median(ours), statistics.median(theirs)
    _say(
        f"{live:>6}  {what:<22}{median:>7.1f}ms{p90(ours):>7.1f}ms   {bare:>7.1f}ms{p90(theirs):>7.1f}ms"
        f"   {median / bare:.1f}"
    )


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - that is what it is for


if __name__ == "__main__":
    sys.exit(main())
