"""Do the tables refuse what no row may say, on both databases?"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import null
from sqlalchemy.exc import StatementError
from sqlmodel import SQLModel, select

from storage.database import Clash
from storage.models import FINAL, Decision, Feed, Grant, Outcome, Request, Review, State

if TYPE_CHECKING:
    from storage.database import Database

NOW = datetime(2026, 3, 1, 2, 0, 0, 7, tzinfo=UTC)


def request(**changes: Any) -> Request:
    """A request that is as it should be, but for the changes."""
    row: dict[str, Any] = {
        "id": "BG-1",
        "state": "pending",
        "version": 1,
        "state_version": 1,
        "last_seq": 0,
        "team": "T0HOME",
        "requester": "U0RITA",
        "account": "orders-db",
        "level": "read",
        "threshold": "customer-impact",
        "reason": "checkout is down",
        "standard_path": "paged the database on-call",
        "incident": "INC-1",
        "policy_hash": "0" * 64,
        "quorum": 1,
        "custodians": ["U0CARL"],
        "channel": "C0INCIDENT",
        "asked_seconds": 900,
        "opened_at": NOW,
        "state_at": NOW,
    }
    return Request(**(row | changes))


def decision(**changes: Any) -> Decision:
    """An approval, but for the changes."""
    row: dict[str, Any] = {"request_id": "BG-1", "team": "T0HOME", "person": "U0CARL", "answer": "approve"}
    return Decision(**(row | {"policy_hash": "0" * 64, "at": NOW} | changes))


def grant(**changes: Any) -> Grant:
    """A grant that was intended, but for the changes."""
    row: dict[str, Any] = {"request_id": "BG-1", "number": 1, "engine": "database", "path": "database/creds/orders-ro"}
    row |= {"lease_prefix": "database/creds/orders-ro/", "options": {"mount": "database"}, "intended_at": NOW}
    return Grant(**(row | changes))


def review(**changes: Any) -> Review:
    """A review, but for the changes."""
    row: dict[str, Any] = {
        "request_id": "BG-1",
        "team": "T0HOME",
        "reviewer": "U0SAM",
        "threshold_met": True,
        "standard_path_enough": False,
        "used_as_stated": True,
        "outcome": "justified",
        "findings": "as stated",
        "follow_ups": [{"what": "alert", "owner": "U0CARL", "due": "2026-04-01"}],
        "filed_at": NOW,
    }
    return Review(**(row | changes))


def add(database: Database, *rows: SQLModel) -> None:
    """Write the rows, each flushed before the next."""
    with database.write() as session:
        for row in rows:
            session.add(row)
            session.flush()


def never_empty(model: type[SQLModel]) -> list[str]:
    """Columns that must hold something, but for keys and for those that have a default."""
    table = SQLModel.metadata.tables[str(model.__tablename__)]
    return [
        column.name
        for column in table.columns
        if not column.nullable and not column.primary_key and column.default is None
    ]


NEVER_EMPTY = {make: never_empty(model) for make, model in ((request, Request), (decision, Decision), (grant, Grant))}
NEVER_EMPTY[review] = never_empty(Review)


def test_good_rows_are_stored_and_come_back_the_same(database: Database) -> None:
    """Every column survives the round trip, times aware and to the microsecond, lists and booleans as they were."""
    add(database, request(), decision(granted_seconds=600), grant(accessor="a", lease_id="l"), review())
    with database.read() as session:
        for model, made in ((Request, request()), (Review, review())):
            assert session.exec(select(model)).one().model_dump() == made.model_dump()
        stored = session.exec(select(Grant)).one()
        assert (stored.intended_at, stored.ended_at) == (NOW, None)
        assert session.exec(select(Decision)).one().granted_seconds == 600


@pytest.mark.parametrize(
    ("make", "column"),
    [pytest.param(make, name, id=f"{make.__name__}.{name}") for make, names in NEVER_EMPTY.items() for name in names],
)
def test_what_must_be_said_cannot_be_empty(database: Database, make: Any, column: str) -> None:
    """NOT NULL holds for every column that has no default."""
    if make is not request:
        add(database, request())
    with pytest.raises(Clash):
        add(database, make(**{column: null()}))


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "open"},
        {"state": ""},
        {"quorum": 0},
        {"quorum": -1},
        {"asked_seconds": 0},
        {"granted_seconds": 0},
        {"granted_seconds": -5},
        {"version": 0, "state_version": 0},
        {"version": 1, "state_version": 2},
        {"state_version": 0},
        {"reason": ""},
        {"threshold": ""},
        {"standard_path": ""},
    ],
)
def test_a_request_that_makes_no_sense_is_refused(database: Database, changes: dict[str, Any]) -> None:
    """Unknown states, a quorum of none, no time, versions out of order and missing words break a CHECK."""
    with pytest.raises(Clash):
        add(database, request(**changes))


@pytest.mark.parametrize(
    "row", [decision(answer="maybe"), review(outcome="fine"), review(findings=""), decision(request_id="BG-9")]
)
def test_an_answer_or_review_that_makes_no_sense_is_refused(database: Database, row: SQLModel) -> None:
    """Unknown words, an empty finding, and rows about a request that does not exist break a constraint."""
    with pytest.raises(Clash):
        add(database, request(), row)


def test_one_person_counts_once(database: Database) -> None:
    """A double click cannot count twice; the same id in another workspace is another person; a denial may follow."""
    add(database, request(), decision(), decision(team="T0OTHER"), decision(person="U0CORA"), decision(answer="deny"))
    for answer in ("approve", "deny"):
        with pytest.raises(Clash):
            add(database, decision(answer=answer))


def test_one_form_opens_one_request(database: Database) -> None:
    """A doubled envelope of the same form opens nothing twice; requests without a form do not collide."""
    add(database, request(form_id="V1"), request(id="BG-2"), request(id="BG-3"))
    with pytest.raises(Clash):
        add(database, request(id="BG-4", form_id="V1"))
    with pytest.raises(Clash):
        add(database, request(id="BG-1"))


def test_a_request_has_at_most_one_open_grant(database: Database) -> None:
    """The second credential cannot be recorded before the first one is confirmed gone."""
    add(database, request(), request(id="BG-2"), grant(), grant(request_id="BG-2"))
    with pytest.raises(Clash):
        add(database, grant(number=2))
    with database.write() as session:
        session.exec(select(Grant).where(Grant.request_id == "BG-1")).one().ended_at = NOW
    add(database, grant(number=2))
    with pytest.raises(Clash):
        add(database, grant(number=2, ended_at=NOW))


@pytest.mark.parametrize("column", ["accessor", "lease_id"])
def test_two_grants_never_share_a_handle(database: Database, column: str) -> None:
    """An accessor or lease stands in one grant only, so that taking one back cannot end another's."""
    add(database, request(), request(id="BG-2"), grant(**{column: "same"}))
    with pytest.raises(Clash):
        add(database, grant(request_id="BG-2", **{column: "same"}))


def test_a_request_is_reviewed_once(database: Database) -> None:
    """The second review of the same request is refused."""
    add(database, request(), review())
    with pytest.raises(Clash):
        add(database, review(reviewer="U0OTHER"))


def test_a_naive_time_is_refused(database: Database) -> None:
    """A time without a zone would mean the machine's own, so it never reaches a column."""
    with pytest.raises(StatementError, match="without a zone"):
        add(database, request(opened_at=NOW.replace(tzinfo=None)))


def test_any_zone_comes_back_as_utc(database: Database) -> None:
    """A time with an offset is stored as the same moment, and is comparable to now in a query."""
    away = NOW.astimezone(timezone(timedelta(hours=-7, minutes=-30)))
    add(database, request(due_at=away), request(id="BG-2", due_at=NOW + timedelta(microseconds=1)))
    with database.read() as session:
        due = session.exec(select(Request).where(Request.due_at <= NOW)).all()  # type: ignore[operator]
        assert [row.id for row in due] == ["BG-1"]
        assert due[0].due_at == NOW
        assert due[0].due_at.utcoffset() == timedelta(0)


def test_a_follower_has_one_cursor_for_a_request(database: Database) -> None:
    """Two bots cannot each have a cursor of their own for the same follower and request."""
    add(database, Feed(follower="thread", request_id="BG-1", seq=-1), Feed(follower="thread", request_id="", seq=-1))
    with pytest.raises(Clash):
        add(database, Feed(follower="thread", request_id="BG-1", seq=3))


def test_words_are_stored_as_their_values(database: Database) -> None:
    """What stands in the tables is the lower-case word, also when a StrEnum was given."""
    add(database, request(state=State.PENDING), review(outcome=Outcome.MISUSE))
    with database.read() as session:
        connection = session.connection()
        assert connection.exec_driver_sql("SELECT state FROM request").scalar() == "pending"
        assert connection.exec_driver_sql("SELECT outcome FROM review").scalar() == "misuse"
    assert all(state in State for state in FINAL)
