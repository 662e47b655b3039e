"""How long does somebody wait until what led to their credential stands outside, and what are they told?

Rules
-----
* Where the policy requires copies of the log, nothing is made before each of them has acknowledged the approvals and
  the intent. Who waits is held for a while, on record after a moment; then the intent is given up.
* What is not known to have been acknowledged is missing.
* Whoever is held keeps a thread. There are so many places and no more, for those who wait for custodians' own keys as
  well, and none once the bot is being stopped.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

from storage.models import State
from workflows.door import Door, database_errors
from workflows.errors import Conflict, Unavailable
from workflows.lifecycle import Action, now_is
from workflows.policy import say_duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from storage.database import Database

OUT: Final = (State.APPROVED, State.ACTIVE)
_QUIET: Final = 0.5  # seconds: a copy that is merely on its way is not worth an entry
_ASK_SOON: Final = 0.02  # seconds: another bot may bring it, and nobody tells this one
_ASK_AGAIN: Final = 0.2
# Each who is held keeps a thread, and the thread of a Revoke must always be there.
_MOST_HELD: Final = 24


@dataclass(frozen=True, slots=True)
class Intent:
    """A recorded decision to issue credential ``number`` of a request; :meth:`Issuer.issue` carries it out."""

    request_id: str
    number: int
    replaces: int | None
    ttl: timedelta


class Acknowledged(Protocol):
    """Which copies of the log must have an entry before it has effect, and whether they do.

    ``within`` is how long somebody waits for them. What is not known is missing.
    """

    within: timedelta

    def behind(self, seq: int) -> tuple[str, ...]:
        """Return the names of the required copies that have not acknowledged entry ``seq``. DatabaseDown."""

    def wait(self, seconds: float) -> None:
        """Return when something may have been acknowledged, after ``seconds`` at the latest."""


class NothingRequired:
    """No copy is required: the default."""

    within = timedelta(0)

    def behind(self, seq: int) -> tuple[str, ...]:  # noqa: ARG002
        """Return nothing."""
        return ()

    def wait(self, seconds: float) -> None:
        """Never called."""


class Holding(Door):
    """Those who wait. ``required``: which copies they wait for."""

    def __init__(self, database: Database, required: Acknowledged | None = None) -> None:
        super().__init__(database)
        self.required: Acknowledged = required or NothingRequired()
        self._places = threading.BoundedSemaphore(_MOST_HELD)
        self._is_closing = False

    def hold_nobody(self) -> None:
        """Give up for those who are held for a copy or a custodian, now and from now on: the bot is being stopped."""
        self._is_closing = True

    @property
    def is_closing(self) -> bool:
        """Whether nobody is to be held any more."""
        return self._is_closing

    def take_place(self) -> bool:
        """Take one of the places of those who are held; say whether there was one."""
        return self._places.acquire(blocking=False)

    def give_place(self) -> None:
        """Give it back."""
        self._places.release()

    def _hold(self, intent: Intent, held: Callable[[tuple[str, ...]], None] | None, now: datetime) -> datetime:
        """Wait until the required copies have what led to the intent, and return the time that it is then.

        Raises :class:`Unavailable` when they do not come in time, :class:`Conflict` when the request ended meanwhile.
        """
        if isinstance(self.required, NothingRequired):
            return now
        began, within = time.monotonic(), self.required.within.total_seconds()
        in_vain = f"waited {say_duration(self.required.within)}"
        is_told = False
        try:
            seq = self.case(intent.request_id).request.last_seq
            while names := self._behind(seq):
                waited = time.monotonic() - began
                if waited >= within or self._is_closing:
                    why = "the bot is being stopped" if self._is_closing else in_vain
                    self._give_up(intent, names, now + timedelta(seconds=waited), why)
                if not is_told and waited >= _QUIET:
                    if not self._places.acquire(blocking=False):
                        self._give_up(intent, names, now + timedelta(seconds=waited), "as many wait for it already")
                    is_told = True
                    self._tell_held(intent, names, now + timedelta(seconds=waited))
                    if held is not None:
                        held(names)
                self.required.wait(min(_ASK_AGAIN if is_told else _ASK_SOON, within - waited))
                self._still_wanted(intent)
        finally:
            if is_told:
                self._places.release()
        # What follows is written down as of when it happens; not held, it happens now.
        return now + timedelta(seconds=time.monotonic() - began) if is_told else now

    def _behind(self, seq: int) -> tuple[str, ...]:
        with database_errors():
            return self.required.behind(seq)

    def _still_wanted(self, intent: Intent) -> None:
        """Refuse when the request was ended, or the intent given up, while it was held."""
        case = self.case(intent.request_id)
        if case.state not in OUT:
            raise Conflict(f"{case.request.id} {now_is(case.state)}. No credential was made.", code="ended")
        grant = next((g for g in case.grants if g.number == intent.number), None)
        if (grant is None) is (intent.replaces is None) or (grant is not None and grant.ended_at is not None):
            raise Conflict(
                f"Another try to open {case.request.id} came first. Look at the newest message.", code="raced"
            )

    def _tell_held(self, intent: Intent, names: tuple[str, ...], now: datetime) -> None:
        with self.turn(intent.request_id, now=now) as turn:
            turn.move(
                Action.HOLD,
                data={
                    "credential": intent.number,
                    "waiting_for": list(names),
                    "within_seconds": int(self.required.within.total_seconds()),
                },
            )

    def _give_up(self, intent: Intent, names: tuple[str, ...], now: datetime, why: str) -> NoReturn:
        """Say that it was in vain.

        That a first credential is abandoned is an entry of its own; of a fresh one nothing was begun yet, and the
        earlier one stays as it was.
        """
        if intent.replaces is not None:
            with self.turn(intent.request_id, now=now) as turn:
                data = {"credential": intent.number, "waiting_for": list(names), "given_up": True}
                turn.move(Action.HOLD, data=data)
        raise Unavailable(
            "No credential was made, because what led to it must be in the log's copies first, and "
            f"{', '.join(names)} did not take it ({why}). Have that mended, then press the button again.",
            code="copy_behind",
        )
