"""Is whoever was asked and does not answer asked again, in time, once a step, and left in peace afterwards?"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from counter import CARL, CHEN, CORA

from storage.models import Request, State
from workflows import nudging, sweep


def _nudged(counter, row):
    return [record.data["people"] for record in counter.log_of(row) if record.event == "request:nudge"]


@pytest.mark.parametrize(
    ("asked", "at", "due"),
    [
        (15, 0, 2),
        (15, 1.9, 2),
        (15, 2, 4),
        (15, 3, 4),
        (15, 4, 8),
        (15, 8, None),
        (60, 8, 16),
        (60, 40, None),
        (2, 0, None),
    ],
)
def test_the_steps_double_and_end_with_the_request(now, asked, at, due):
    """2, 4, 8 … minutes after the opening, and none when it has lapsed by then."""
    row = Request(opened_at=now, lapse_at=now + timedelta(minutes=asked))
    found = nudging.step_after(row, now + timedelta(minutes=at))
    assert found == (None if due is None else now + timedelta(minutes=due))


def test_who_has_not_answered_is_asked_again_until_it_is_settled(counter):
    """Each step names those who are still silent; who approved is left in peace, and so is everybody at the end."""
    row = counter.ask(level="write", minutes=10)
    minutes = 0
    for at in (1, 2, 3):
        counter.pass_time(minutes=at - minutes)
        minutes = at
        sweep.tick(counter, now=counter.now)
    assert _nudged(counter, row) == [["U0CARL", "U0CHEN", "U0CORA"]]
    row = counter.approve(CARL, row.id, row.version, now=counter.now)
    counter.pass_time(minutes=1)
    sweep.tick(counter, now=counter.now)
    sweep.tick(counter, now=counter.now)
    assert _nudged(counter, row)[1:] == [["U0CHEN", "U0CORA"]]
    row = counter.deny(CORA, row.id, counter.fresh(row).request.version, "No", now=counter.now)
    counter.pass_time(minutes=30)
    sweep.tick(counter, now=counter.now)
    assert len(_nudged(counter, row)) == 2


def test_after_an_outage_there_is_one_nudge_and_half_time_comes_once(counter):
    """Steps that went by are one step; the call at half time and the end come as they would have."""
    row = counter.ask()
    counter.pass_time(minutes=9)
    for _ in range(3):
        sweep.tick(counter, now=counter.now)
    assert counter.events(row) == ["request:open", "request:nudge", "request:escalate"]
    assert counter.fresh(row).request.due_at == row.lapse_at
    counter.pass_time(minutes=6)
    sweep.tick(counter, now=counter.now)
    assert counter.fresh(row).state is State.LAPSED


def test_crash_ticks_of_several_bots_make_a_step_once(counter):
    """Four ticks at the same moment nudge nobody twice."""
    row = counter.ask()
    counter.pass_time(minutes=2)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: sweep.tick(counter, now=counter.now), range(4)))
    assert len(_nudged(counter, row)) == 1
    assert CHEN.person in _nudged(counter, row)[0]
