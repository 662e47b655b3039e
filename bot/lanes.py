"""Whose turn is it to call Slack?

Work is done in units (one part of one request). A call goes through lanes: its channel, and its method. A unit that
finds a lane shut is parked on it and costs nothing until the lane opens.

Rules
-----
* A lane that is shut stops only those who want to go through it. One stuck channel takes at most ``room`` workers.
* A unit runs on one worker at a time; whoever wants it meanwhile makes it run once more.
* When the lanes of a call are open, the most important of those who wait goes first, then the longest waiting. They
  are promised to it all together: two calls that are promised one lane each, and wait for the other, would never move.
* The pace kept here is a courtesy of one process. The truth is Slack's 429, after which the lane is shut for as long as
  Slack says.
* Nothing here outlives the process, and nothing needs to: what is left to do is in the database.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable

U = TypeVar("U", bound="Hashable")

LONGEST_WAIT: Final = 60.0  # seconds between two tries of a lane that fails: Slack is back some time
_MOST_LANES: Final = 2000


@dataclass(frozen=True, slots=True)
class Limits:
    """``burst`` at once, then ``per_second`` (0: as many as wanted); ``room`` calls side by side."""

    burst: float = 1.0
    per_second: float = 0.0
    room: float = math.inf


@dataclass(slots=True, eq=False)
class _Lane(Generic[U]):
    limits: Limits
    level: float
    at: float
    open_at: float = 0.0
    busy: int = 0
    failures: int = 0
    promised: U | None = None

    def opens_at(self, now: float) -> float:
        """When the next call may go through, ``now`` or later; infinity when that depends on a call under way."""
        if self.busy >= self.limits.room:
            return math.inf
        opens = max(now, self.open_at)
        if self.limits.per_second:
            self.level = min(self.limits.burst, self.level + max(0.0, now - self.at) * self.limits.per_second)
            self.at = now
            # A millionth less than one is one: else rounding makes the lane open an instant too late, for ever.
            if self.level < 1 - 1e-6:
                opens = max(opens, now + (1 - self.level) / self.limits.per_second)
        return opens


class Turns(Generic[U]):
    """Units that want to run, and the lanes through which they call. Safe to share by threads.

    ``limits`` gives a lane's limits by its name, ``rank`` a unit's importance (less goes first), ``first_wait`` the
    seconds that a lane is shut after its first failure; ``clock`` counts seconds that only go forward.
    """

    def __init__(
        self,
        limits: Callable[[str], Limits],
        rank: Callable[[U], int],
        *,
        first_wait: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._rank = rank
        self._first_wait = first_wait
        self._clock = clock
        self._changed = threading.Condition()
        self._order = itertools.count()
        self._since: dict[U, int] = {}
        self._ready: list[tuple[int, int, U]] = []
        self._queued: set[U] = set()
        self._later: dict[U, float] = {}
        self._running: set[U] = set()
        self._again: set[U] = set()
        self._parked: dict[U, frozenset[tuple[str, ...]]] = {}  # for each of its calls the lanes
        self._promises: dict[U, tuple[str, ...]] = {}
        self._lanes: dict[str, _Lane[U]] = {}
        self._is_stopped = False

    # ------------------------------------------------------------------------------------ units

    def put(self, unit: U, *, after: float = 0.0, unless_parked: bool = False) -> None:
        """Let a unit run, now or ``after`` seconds. ``unless_parked``: it will run anyway when its lane opens."""
        with self._changed:
            if after > 0:
                at = self._clock() + after
                self._later[unit] = min(at, self._later.get(unit, at))
            elif unit in self._running:
                self._again.add(unit)
            elif not (unless_parked and unit in self._parked):
                self._make_ready(unit)
            self._changed.notify_all()

    def take(self, wait: float | None = None) -> U | None:
        """Return the next unit, which then runs until :meth:`done`; None after :meth:`stop` or ``wait`` seconds."""
        until = None if wait is None else self._clock() + wait
        with self._changed:
            while not self._is_stopped:
                now = self._clock()
                opens = self._promote(now)
                if self._ready:
                    unit = heapq.heappop(self._ready)[2]
                    self._queued.discard(unit)
                    self._running.add(unit)
                    if self._ready:
                        self._changed.notify_all()
                    return unit
                if until is not None:
                    if now >= until:
                        return None
                    opens = min(opens, until)
                self._changed.wait(None if math.isinf(opens) else max(0.0, opens - now))
        return None

    def done(self, unit: U, blocked: Collection[tuple[str, ...]] = ()) -> None:
        """End the unit's run; it is parked for the calls (their lanes) that could not go through."""
        with self._changed:
            self._running.discard(unit)
            for name in self._promises.pop(unit, ()):
                lane = self._lane(name)
                if lane.promised == unit:
                    lane.promised = None
            if unit in self._again:
                self._again.discard(unit)
                self._make_ready(unit)
            elif blocked:
                self._parked[unit] = frozenset(blocked)
                self._since.setdefault(unit, next(self._order))
            else:
                self._since.pop(unit, None)
            if len(self._lanes) > _MOST_LANES:
                self._forget_idle_lanes()
            self._changed.notify_all()

    def stop(self) -> None:
        """Give out nothing more."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait until nothing is ready, running, parked or due later; False when that takes too long."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not (self._ready or self._running or self._later or self._parked), seconds
            )

    def is_idle(self) -> bool:
        """Whether nothing is ready, running, parked or due later."""
        with self._changed:
            return not (self._ready or self._running or self._later or self._parked)

    # ------------------------------------------------------------------------------------ lanes

    def enter(self, unit: U, names: Collection[str]) -> bool:
        """Go through all these lanes at once, or through none. :meth:`leave` must follow."""
        with self._changed:
            now = self._clock()
            lanes = [self._lane(name) for name in names]
            if any(lane.promised not in (None, unit) or lane.opens_at(now) > now for lane in lanes):
                return False
            for lane in lanes:
                lane.busy += 1
                lane.level -= 1
                if lane.promised == unit:
                    lane.promised = None
            return True

    def leave(self, names: Collection[str]) -> None:
        """End the call."""
        with self._changed:
            for name in names:
                self._lane(name).busy -= 1
            self._changed.notify_all()

    def close(self, name: str, seconds: float) -> None:
        """Shut a lane for so long: Slack said when to come back."""
        with self._changed:
            lane = self._lane(name)
            lane.open_at = max(lane.open_at, self._clock() + seconds)

    def fail(self, name: str) -> float:
        """Shut a lane because a call failed; each time in a row for twice as long. Returns the seconds."""
        with self._changed:
            lane = self._lane(name)
            lane.failures += 1
            seconds = back_off(lane.failures, self._first_wait)
            lane.open_at = max(lane.open_at, self._clock() + seconds)
            return seconds

    def heal(self, name: str) -> None:
        """Forget a lane's failures: a call went through."""
        with self._changed:
            self._lane(name).failures = 0

    # ------------------------------------------------------------------------------------ inside

    def _lane(self, name: str) -> _Lane[U]:
        lane = self._lanes.get(name)
        if lane is None:
            limits = self._limits(name)
            lane = self._lanes[name] = _Lane(limits, limits.burst, self._clock())
        return lane

    def _make_ready(self, unit: U) -> None:
        self._parked.pop(unit, None)
        self._later.pop(unit, None)
        if unit not in self._queued:
            self._queued.add(unit)
            since = self._since.setdefault(unit, next(self._order))
            heapq.heappush(self._ready, (self._rank(unit), since, unit))

    def _promote(self, now: float) -> float:
        """Make ready whose time has come or whose lanes have opened; return when to look again."""
        again = math.inf
        for unit, at in list(self._later.items()):
            if at > now:
                again = min(again, at)
            elif unit in self._running:
                del self._later[unit]
                self._again.add(unit)
            else:
                self._make_ready(unit)
        for unit in sorted(self._parked, key=lambda one: (self._rank(one), self._since.get(one, 0))):
            for names in self._parked[unit]:
                lanes = [self._lane(name) for name in names]
                if any(lane.promised is not None for lane in lanes):
                    continue  # it ends with the run of the unit that has the promise
                opens = max(lane.opens_at(now) for lane in lanes)
                if opens > now:
                    again = min(again, opens)
                    continue
                for lane in lanes:
                    lane.promised = unit
                self._promises[unit] = names
                self._make_ready(unit)
                break
        return again

    def _forget_idle_lanes(self) -> None:
        now = self._clock()
        for name, lane in list(self._lanes.items()):
            is_idle = not (lane.busy or lane.failures or lane.promised) and lane.open_at <= now
            if (
                is_idle
                and lane.opens_at(now) <= now
                and (not lane.limits.per_second or lane.level >= lane.limits.burst)
            ):
                del self._lanes[name]


def back_off(failures: int, first: float, longest: float = LONGEST_WAIT) -> float:
    """Return how long to wait after so many failures in a row: doubled each time, with jitter, so that bots spread."""
    return min(longest, first * 2.0 ** min(failures - 1, 20)) * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret
