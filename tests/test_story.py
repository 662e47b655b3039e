"""What is this program for? Read this first: one emergency from the question to the review, and what else can happen.

Everything is real but Slack, which ``tests/e2e`` adds: the database, Vault, and the PostgreSQL that is broken into.
"""

from __future__ import annotations

import psycopg
import pytest
from counter import ADA, CARL, CHEN, CORA, RITA, SAM

from storage.audit import check
from storage.models import Outcome, State
from workflows import sweep
from workflows.desk import Findings
from workflows.errors import Conflict, NotAllowed


def test_a_whole_emergency(counter, real):
    """Asked, approved, opened, used, handed back, refused, reviewed: and each step is in the log, in order."""
    row = counter.ask()
    assert row.state == State.PENDING
    assert row.custodians == ["U0CARL", "U0CHEN", "U0CORA"]

    row = counter.approve(CARL, row.id, row.version, now=counter.now)
    assert row.state == State.APPROVED
    assert real.root_vault().leases("database/creds/orders-ro") == frozenset(), "nothing exists before it is opened"

    credential = counter.show(row)
    session = real.connect(credential)
    assert session.execute("SELECT count(*) FROM orders").fetchone()[0] > 0
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        session.execute("SELECT * FROM payment_cards")

    row = counter.fresh(row).request
    counter.release(RITA, row.id, row.version, now=counter.now)
    assert counter.fresh(row).state is State.ENDING
    assert counter.finish(row.id, now=counter.now)
    assert counter.fresh(row).state is State.ENDED
    with pytest.raises(psycopg.OperationalError):
        session.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        real.connect(credential)

    row = counter.fresh(row).request
    form = Findings(
        True,
        False,
        True,
        Outcome.JUSTIFIED,
        "Nothing but the orders was read.",
        threshold_why="Checkout failed for every customer.",
        standard_path_why="Standard escalation would have taken an hour.",
    )
    assert counter.review(SAM, row.id, row.version, form, now=counter.now).state == State.REVIEWED

    assert counter.events(row) == [
        "request:open",
        "request:approve",
        "request:quorum",
        "credential:reveal",
        "credential:token",
        "credential:issue",
        "credential:release",
        "credential:end",
        "review:file",
    ]
    with counter.database.read() as log:
        assert check(log) is None


def test_nobody_answers(counter):
    """Without an answer the request lapses by itself, after the custodians were called once more."""
    row = counter.ask()
    counter.pass_time(minutes=8)
    sweep.tick(counter, now=counter.now)
    counter.pass_time(minutes=8)
    sweep.tick(counter, now=counter.now)
    assert counter.fresh(row).state is State.LAPSED
    assert counter.events(row) == ["request:open", "request:nudge", "request:escalate", "request:lapse"]


def test_a_custodian_says_no(counter):
    """One denial ends it, whoever approved before, and says why."""
    row = counter.ask(level="write", minutes=10)
    row = counter.approve(CARL, row.id, row.version, now=counter.now)
    row = counter.deny(CHEN, row.id, row.version, "The replica is enough for this", now=counter.now)
    assert row.state == State.DENIED
    with pytest.raises(Conflict):
        counter.approve(CORA, row.id, row.version, now=counter.now)


def test_the_clock_ends_it(counter, real):
    """When the time is over the access ends without anybody's doing, after a warning."""
    row = counter.approved()
    credential = counter.show(row)
    counter.pass_time(minutes=13, seconds=1)
    sweep.tick(counter, now=counter.now)
    assert counter.events(row)[-1] == "credential:warn"
    counter.pass_time(minutes=2)
    sweep.tick(counter, now=counter.now)
    assert counter.fresh(row).state is State.ENDED
    assert counter.events(row)[-2:] == ["credential:expire", "credential:end"]
    with pytest.raises(psycopg.OperationalError):
        real.connect(credential)


def test_the_review_is_owed_and_reminded(counter):
    """A use whose review is late is called in every day until somebody other than those involved files it."""
    row = counter.approved()
    counter.show(row)
    row = counter.fresh(row).request
    counter.revoke(CHEN, row.id, row.version, now=counter.now)
    counter.finish(row.id, now=counter.now)
    for _ in range(2):
        counter.pass_time(days=3, hours=1)
        sweep.tick(counter, now=counter.now)
    assert counter.events(row)[-4:] == ["review:assign", "review:remind", "review:remind", "review:escalate"]
    row = counter.fresh(row).request
    form = Findings(
        True,
        True,
        True,
        Outcome.NOT_JUSTIFIED,
        "The runbook had a way.",
        threshold_why="Checkout failed for an hour.",
        standard_path_why="The second on-call was awake.",
    )
    for person in (RITA, CARL, ADA):
        with pytest.raises(NotAllowed):
            counter.review(person, row.id, row.version, form, now=counter.now)
    counter.review(SAM, row.id, row.version, form, now=counter.now)
    assert counter.events(row)[-4:] == ["review:file!", "review:file!", "review:file!", "review:file"]
