"""Who of those who were asked is active in Slack now, for whoever waits for them?

Rules
-----
* A courtesy, and nothing hangs on it: what Slack does not say is "not known", and nobody waits for it.
* Asked when something is drawn, never before an acknowledgement; an answer is used for at most a minute.
* One failure ends the round: a Slack that is slow is not asked ten times.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final

from bot.calls import TroubleError, call, quiet_client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from slack_sdk import WebClient

log = logging.getLogger(__name__)

KEPT: Final = 60.0  # seconds that an answer may be used
MOST: Final = 10  # people asked about at once: Slack allows about 50 such calls a minute in a workspace
_CALL_SECONDS: Final = 2


class Presence:
    """Slack's word on who is active. Safe to share by threads. ``clock``: seconds that only go forward."""

    def __init__(self, client: WebClient, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = quiet_client(client, _CALL_SECONDS)
        self._clock = clock
        self._mutex = threading.Lock()
        self._kept: dict[str, tuple[float, bool]] = {}

    def of(self, people: Iterable[str]) -> dict[str, bool | None]:
        """Return by user id whether they are active; None: it is not known. Raises nothing."""
        found: dict[str, bool | None] = dict.fromkeys(people)
        is_answering = True
        for number, person in enumerate(found):
            with self._mutex:
                at, is_active = self._kept.get(person, (-KEPT, False))
            if self._clock() - at < KEPT:
                found[person] = is_active
            elif is_answering and number < MOST:
                found[person] = answer = self._ask(person)
                is_answering = answer is not None
        return found

    def _ask(self, person: str) -> bool | None:
        asked_at = self._clock()
        try:
            said = call(self._client.users_getPresence, user=person).get("presence")
        except TroubleError as trouble:
            log.info("it is not known who is active in Slack: %s", trouble.reason)
            return None
        if said not in {"active", "away"}:
            return None
        with self._mutex:
            self._kept = {one: kept for one, kept in self._kept.items() if asked_at - kept[0] < KEPT}
            self._kept[person] = (asked_at, said == "active")
        return bool(said == "active")
