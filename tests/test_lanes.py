"""Does everybody get their turn, and nobody somebody else's? Time is an argument here."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from bot.lanes import LONGEST_WAIT, Limits, Turns, back_off

if TYPE_CHECKING:
    from collections.abc import Callable


class _Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> _Time:
    """A clock that stands until it is moved."""
    return _Time()


def _turns(clock: Callable[[], float], **limits: Limits) -> Turns[str]:
    """Units are words; those that begin with a capital are important."""
    return Turns(lambda name: limits.get(name, Limits()), lambda unit: 0 if unit[0].isupper() else 1, clock=clock)


def _take_all(turns: Turns[str]) -> list[str]:
    found = []
    while (unit := turns.take(0)) is not None:
        found.append(unit)
    return found


def test_the_important_go_first_then_the_longest_waiting(clock: _Time) -> None:
    """Units come out by rank, and within a rank in the order in which they came."""
    turns = _turns(clock)
    for unit in ("b", "a", "B", "A"):
        turns.put(unit)
    assert _take_all(turns) == ["B", "A", "b", "a"]


def test_a_unit_runs_once_at_a_time_and_once_more_for_whoever_came_meanwhile(clock: _Time) -> None:
    """Five wakes during a run make one further run, after it."""
    turns = _turns(clock)
    turns.put("a")
    turns.put("a")
    assert _take_all(turns) == ["a"]
    for _ in range(5):
        turns.put("a")
    assert _take_all(turns) == []
    turns.done("a")
    assert _take_all(turns) == ["a"]
    turns.done("a")
    assert turns.is_idle()


def test_what_is_put_for_later_comes_when_its_time_has_come(clock: _Time) -> None:
    """A unit put for later is not given out before, and the earliest of two times counts."""
    turns = _turns(clock)
    turns.put("a", after=10)
    turns.put("a", after=5)
    assert _take_all(turns) == []
    clock.now += 5
    assert _take_all(turns) == ["a"]


def test_a_lane_lets_through_as_many_as_its_pace_allows(clock: _Time) -> None:
    """A burst of two, then one a second; who waits is given out one at a time, the important first."""
    turns = _turns(clock, slow=Limits(burst=2, per_second=1))
    for unit in ("a", "b", "c", "D"):
        turns.put(unit)
    for unit in _take_all(turns):
        went = turns.enter(unit, ("slow",))
        assert went == (unit in ("D", "a"))
        if went:
            turns.leave(("slow",))
        turns.done(unit, () if went else [("slow",)])
    turns.put("E")
    assert _take_all(turns) == ["E"]
    assert not turns.enter("E", ("slow",))
    turns.done("E", [("slow",)])
    order = []
    for _ in range(3):
        clock.now += 1
        ready = _take_all(turns)
        assert len(ready) == 1
        assert turns.enter(ready[0], ("slow",))
        turns.leave(("slow",))
        turns.done(ready[0])
        order += ready
    assert order == ["E", "b", "c"]
    assert turns.is_idle()


def test_a_shut_lane_stops_only_those_who_want_through_it(clock: _Time) -> None:
    """After a failure its lane is shut and another is open; the wait doubles with each failure in a row."""
    turns = _turns(clock)
    for unit in ("a", "b"):
        turns.put(unit)
    assert _take_all(turns) == ["a", "b"]
    assert turns.enter("a", ("one",))
    first = turns.fail("one")
    turns.leave(("one",))
    turns.done("a", [("one",)])
    assert turns.enter("b", ("two",))
    assert not turns.enter("b", ("one",))
    clock.now += first
    assert turns.take(0) == "a"
    assert turns.enter("a", ("one",))
    assert turns.fail("one") > first / 2
    assert 0.5 <= first <= 1.0
    assert all(back_off(count, 1.0) <= LONGEST_WAIT for count in (1, 10, 10_000))


def test_two_calls_that_share_lanes_never_block_each_other(clock: _Time) -> None:
    """Lanes are promised to a call all together: else each of two waits for the lane that the other was promised."""
    turns = _turns(clock, x=Limits(room=1), y=Limits(room=1))
    for unit in ("a", "b", "c"):
        turns.put(unit)
    assert _take_all(turns) == ["a", "b", "c"]
    assert turns.enter("c", ("x", "y"))
    turns.done("a", [("x", "y")])
    turns.done("b", [("y", "x")])
    assert _take_all(turns) == []
    turns.leave(("x", "y"))
    turns.done("c")
    for _ in range(2):
        (ready,) = _take_all(turns)
        assert turns.enter(ready, ("x", "y"))
        turns.leave(("x", "y"))
        turns.done(ready)
    assert turns.is_idle()


def test_a_promise_that_is_not_used_ends_with_the_run(clock: _Time) -> None:
    """A unit that no longer wants its lane does not keep it from the next one."""
    turns = _turns(clock, x=Limits(room=1))
    for unit in ("a", "b"):
        turns.put(unit)
    _take_all(turns)
    turns.done("a", [("x",)])
    turns.done("b", [("x",)])
    assert _take_all(turns) == ["a"]
    turns.done("a")
    assert _take_all(turns) == ["b"]


def test_whoever_is_parked_runs_for_a_wake_unless_it_may_wait_for_its_lane(clock: _Time) -> None:
    """A wake reaches a parked unit, except one that asks not to be disturbed before its lane opens."""
    turns = _turns(clock)
    turns.put("a")
    turns.take(0)
    turns.close("x", 10)
    turns.done("a", [("x",)])
    turns.put("a", unless_parked=True)
    assert _take_all(turns) == []
    turns.put("a")
    assert _take_all(turns) == ["a"]


def test_stop_lets_every_waiting_worker_go() -> None:
    """After stop() take() gives None at once, also to those who were waiting."""
    turns: Turns[str] = Turns(lambda _name: Limits(), lambda _unit: 0)
    found: list[str | None] = []
    workers = [threading.Thread(target=lambda: found.append(turns.take())) for _ in range(3)]
    for worker in workers:
        worker.start()
    turns.stop()
    for worker in workers:
        worker.join()
    assert found == [None, None, None]
    turns.put("a")
    assert turns.take() is None


def test_lanes_that_nobody_uses_are_forgotten(clock: _Time) -> None:
    """A workspace of many thousand people does not leave as many lanes behind."""
    turns = _turns(clock)
    turns.put("a")
    turns.take(0)
    for number in range(5000):
        assert turns.enter("a", (f"channel {number}",))
        turns.leave((f"channel {number}",))
    turns.done("a")
    assert len(turns._lanes) < 100
