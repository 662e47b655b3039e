"""Does a drill go the whole way, show what is broken, and never open anything real?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from counter import CARL, RITA, SAM

from storage.models import Outcome, State
from workflows.desk import Findings
from workflows.drill import Drills
from workflows.drill_score import LOGIN, SCORE, START, Came, Leg, from_data
from workflows.replay import check_database

if TYPE_CHECKING:
    from counter import Counter

    from storage.models import Request

REVIEW = Findings(
    threshold_met=True,
    standard_path_enough=False,
    used_as_stated=True,
    outcome=Outcome.DRILL,
    findings="All as it should be.",
    threshold_why="It was a drill, and everybody was told that it was one.",
    standard_path_why="A drill has no standard path that could have been tried before.",
)


def run(counter: Counter, row: Request, drills: Drills) -> None:
    """Let the clock work until the request waits for people."""
    for _ in range(3):
        drills.advance(row.id, now=counter.now)
        counter.pass_time(seconds=2)


def card(counter: Counter, row: Request) -> dict[Leg, Came]:
    """Return what a drill's score says of each leg."""
    score = next(record for record in counter.log_of(row) if record.event == SCORE)
    return {line.leg: line.came for line in from_data(score.data)}


def test_a_drill_goes_the_whole_way_on_real_parts_and_is_scored(counter):
    """Asked, approved, opened and tried by the bot, taken back, reviewed, scored; the log replays."""
    drills = Drills(counter)
    row = drills.start(RITA, "orders-db", now=counter.now)
    assert row.drill is not None
    assert (row.level, row.requester, row.custodians) == ("rehearsal", "U0RITA", ["U0CARL", "U0CHEN", "U0CORA"])
    assert not drills.advance(row.id, now=counter.now)
    counter.pass_time(seconds=30)
    counter.approve(CARL, row.id, row.version, now=counter.now)
    run(counter, row, drills)
    case = counter.fresh(row)
    assert case.state is State.ENDED
    assert not any(grant.ended_at is None for grant in case.grants)
    login = next(record for record in counter.log_of(row) if record.event == LOGIN)
    assert login.data["ok"] is True
    assert "it reads rehearsal.orders" in login.data["seen"]
    assert SCORE not in counter.events(row)  # the review is waited for
    counter.review(SAM, row.id, case.request.version, REVIEW, now=counter.now)
    assert drills.advance(row.id, now=counter.now)
    assert drills.running() == []
    found = card(counter, row)
    assert set(found) == {*Leg} - {Leg.CAPTURE}
    assert set(found.values()) == {Came.PASSED}
    events = counter.events(row)
    assert events.count(SCORE) == events.count(LOGIN) == events.count(START) == 1
    assert "credential:reveal" not in events
    with counter.database.read() as session:
        assert check_database(session, now=counter.now).findings == []
