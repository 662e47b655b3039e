"""What has happened between the app and the workspace, and what shall go wrong next?

Rules:
- Every API call, envelope, acknowledgement, deed of a person and used fault is an entry with a number. Nothing is
  filtered: tests look here for secrets that should not be anywhere.
- The journal is bounded; the oldest entries go first, the numbers go on.
- A fault is asked for beforehand, used a given number of times and counted.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Json = dict[str, Any]

MOST_ENTRIES: Final = 200_000


class Journal:
    """The last 200,000 entries, oldest first."""

    def __init__(self, clock: Callable[[], float], most: int = MOST_ENTRIES) -> None:
        self._clock = clock
        self._entries: deque[Json] = deque(maxlen=most)
        self._last = 0

    def write(self, kind: str, **fields: object) -> Json:
        """Append an entry; the returned dictionary may be completed later (the answer of a call)."""
        self._last += 1
        entry: Json = {"n": self._last, "at": self._clock(), "kind": kind, **fields}
        self._entries.append(entry)
        return entry

    def since(self, after: int, kind: str | None = None, limit: int = MOST_ENTRIES) -> list[Json]:
        """Return the entries with a number above ``after``, of one kind if given."""
        found: list[Json] = []
        for entry in reversed(self._entries):
            if entry["n"] <= after:
                break
            if kind is None or entry["kind"] == kind:
                found.append(entry)
        found.reverse()
        return found[:limit]


class FaultKind(StrEnum):
    """What can be made to go wrong."""

    RATE_LIMITED = "rate_limited"  # 429 with Retry-After; the call has no effect
    ERROR500 = "error500"  # HTTP 500 without JSON; the call has no effect
    TIMEOUT = "timeout"  # no effect and no answer; after `seconds` the connection is cut
    POST_THEN_TIMEOUT = "post_then_timeout"  # the effect, but no answer; after `seconds` the connection is cut
    DROP_SOCKET = "drop_socket"  # all sockets now, or with on=envelope the one that has just been sent an envelope
    DUPLICATE_ENVELOPE = "duplicate_envelope"  # the next envelopes are sent twice, to two sockets if there are two
    DELAY_ACK = "delay_ack"  # the acknowledgement of the next envelopes counts `seconds` later
    REFRESH = "refresh"  # a warning, and `seconds` later refresh_requested and the end of the socket


API_FAULTS: Final = {FaultKind.RATE_LIMITED, FaultKind.ERROR500, FaultKind.TIMEOUT, FaultKind.POST_THEN_TIMEOUT}


@dataclass(slots=True, eq=False)
class Fault:
    """A fault that waits to be used; ``seconds`` as explained at its kind, None for its usual value."""

    id: int
    kind: FaultKind
    times: int
    method: str | None = None
    channel: str | None = None
    retry_after: int = 1
    seconds: float | None = None
    on: str | None = None
    used: int = 0

    def json(self) -> Json:
        """Return the fault as the people API lists it."""
        return {
            "id": self.id,
            "kind": self.kind.value,
            "times": self.times,
            "method": self.method,
            "channel": self.channel,
            "retry_after": self.retry_after,
            "seconds": self.seconds,
            "on": self.on,
            "used": self.used,
        }


class Faults:
    """The faults that were asked for."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._serial = 0
        self._faults: list[Fault] = []

    def add(self, data: Mapping[str, Any]) -> Fault:
        """Take an order for a fault.

        Raises:
            ValueError: unknown kind or a number that makes no sense.

        """
        kind = FaultKind(data["kind"])
        times = int(data.get("times", 1))
        if times < 1:
            raise ValueError("times must be at least 1")
        seconds = data.get("seconds")
        self._serial += 1
        fault = Fault(
            self._serial,
            kind,
            times,
            method=data.get("method"),
            channel=data.get("channel"),
            retry_after=int(data.get("retry_after", 1)),
            seconds=None if seconds is None else float(seconds),
            on=data.get("on"),
        )
        self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Forget every fault, used or not."""
        self._faults.clear()

    def list(self) -> list[Json]:
        """Return all faults with how often each was used."""
        return [fault.json() for fault in self._faults]

    def for_call(self, method: str, channel: object) -> Fault | None:
        """Return (and use) the fault that hits this API call."""
        for fault in self._faults:
            if (
                fault.kind in API_FAULTS
                and fault.used < fault.times
                and fault.method in {None, method}
                and fault.channel in {None, channel}
            ):
                return self._use(fault, method=method)
        return None

    def for_socket(self, kind: FaultKind, on: str | None = None) -> Fault | None:
        """Return (and use) the oldest waiting fault of this kind."""
        for fault in self._faults:
            if fault.kind is kind and fault.used < fault.times and fault.on == on:
                return self._use(fault)
        return None

    def _use(self, fault: Fault, **fields: object) -> Fault:
        fault.used += 1
        self._journal.write("fault", fault=fault.kind.value, fault_id=fault.id, **fields)
        return fault
