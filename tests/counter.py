"""Which desk do the tests stand at? A real database, the real Vault and PostgreSQL, and people in a table.

A pytest plugin: a test file names it and ``real_parts`` in ``pytest_plugins``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from storage.audit import Actor, read_entries
from workflows import policy as rules
from workflows.desk import Ask, Desk
from workflows.policy import Person

if TYPE_CHECKING:
    from real_parts import Real

    from storage.audit import Record
    from storage.database import Database
    from storage.models import Request
    from workflows.door import Case

TEAM: Final = "T0SANDBOX"
POLICY: Final = Path(__file__).parent.parent / "bot" / "demo" / "breakglass.yml"
PATIENCE: Final = timedelta(seconds=30)

RITA, CARL, CHEN, CORA, SAM, OLGA, GUS, ADA = (
    Actor(TEAM, person) for person in ("U0RITA", "U0CARL", "U0CHEN", "U0CORA", "U0SAM", "U0OLGA", "U0GUS", "U0ADA")
)


@dataclass
class People:
    """A workspace's people and groups; tests change them as administrators do."""

    known: dict[str, Person] = field(
        default_factory=lambda: {
            name: Person(
                TEAM, name, name[2:].title(), is_bot=False, is_guest=name == "U0GUS", is_deleted=False, is_foreign=False
            )
            for name in ("U0RITA", "U0CARL", "U0CHEN", "U0CORA", "U0SAM", "U0LENA", "U0ADA", "U0OLGA", "U0GUS")
        }
    )
    groups: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: {"@on-call": ("U0RITA", "U0CARL"), "@leadership": ("U0LENA",), "@security": ("U0SAM",)}
    )

    def person(self, user_id: str) -> Person | None:
        """Return the person, None when unknown."""
        return self.known.get(user_id)

    def members(self, group: str) -> tuple[str, ...] | None:
        """Return a group's people, None when unknown."""
        return self.groups.get(group)

    def change(self, user_id: str, **facts: bool) -> None:
        """Deactivate somebody, make a guest of somebody …"""
        self.known[user_id] = replace(self.known[user_id], **facts)


class Counter(Desk):
    """A desk with a clock that the test moves and the few steps that most tests begin with."""

    now: datetime
    people: People

    def ask(self, who: Actor = RITA, *, level: str = "read", minutes: float = 15, **words: str) -> Request:
        """Open a request."""
        ask = Ask(
            account="orders-db",
            level=level,
            threshold="customer-impact",
            reason=words.pop("reason", "Checkout fails for every customer"),
            standard_path=words.pop("standard_path", "Paged the database on-call twice, no answer"),
            incident=words.pop("incident", "INC-2031"),
            duration=timedelta(minutes=minutes),
            **words,
        )
        return self.open(who, ask, now=self.now)

    def approved(self, *, level: str = "read", by: tuple[Actor, ...] = (CARL,), minutes: float = 15) -> Request:
        """Open a request and have it approved."""
        row = self.ask(level=level, minutes=minutes)
        for custodian in by:
            row = self.approve(custodian, row.id, row.version, now=self.now)
        return row

    def show(self, row: Request):
        """Press Reveal at the newest version and return the credential."""
        version = self.case(row.id).request.version
        return self.issue(self.reveal(RITA, row.id, version, now=self.now), now=self.now)

    def fresh(self, row: Request) -> Case:
        """Return the case as it is now."""
        return self.case(row.id)

    def pass_time(self, **by: float) -> None:
        """Move the clock."""
        self.now += timedelta(**by)

    def log_of(self, row: Request | None = None) -> list[Record]:
        """Return a request's entries, or all."""
        with self.database.read() as session:
            return read_entries(session, request_id=row.id if row else None)

    def events(self, row: Request) -> list[str]:
        """Return what happened to a request, refusals marked with an exclamation mark."""
        return [record.event + ("!" if record.refused else "") for record in self.log_of(row)]


@pytest.fixture
def counter(real: Real, database: Database) -> Counter:
    """A desk on an empty database, at the servers that the tests share."""
    return counter_at(real, database)


def counter_at(real: Real, database: Database) -> Counter:
    """Return a desk on an empty database and a Vault without leases, with the demo's policy and people.

    Its clock starts at the true time, since Vault's cannot be moved.
    """
    text = POLICY.read_text(encoding="utf-8").replace("port: 5432", f"port: {real.pg.port}")
    for name, level in (("read", real.read), ("write", real.write), ("rehearsal", real.rehearsal)):
        if level is None:
            continue
        text = text.replace(f"token_role: breakglass-orders-db-{name}", f"token_role: {level.settings.token_role}")
    # Whatever another test file left in the Vault that they share.
    real.bao.call("PUT", "sys/leases/revoke-prefix/database/creds", {"sync": True})
    people = People()
    desk = Counter(database, rules.parse(text, name="demo"), people, real.vault(), team=TEAM, patience=PATIENCE)
    desk.now = datetime.now(UTC)
    desk.people = people
    return desk
