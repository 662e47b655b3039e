"""What is due? The one clock.

Rules
-----
* :func:`tick` works off ``due_at`` and carries no truth of its own: run late, twice, in parallel or after a crash, it
  does each thing once, because each is a compare-and-set through the door.
* One request that fails (Vault is down, its target hangs) does not hold up the others: they run in a small pool.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from sqlmodel import col, select

from storage.models import Request
from workflows import capture_watch
from workflows.errors import BreakGlassError

if TYPE_CHECKING:
    from datetime import datetime

    from workflows.desk import Desk

log = logging.getLogger(__name__)

_AT_ONCE: Final = 8
_AT_MOST: Final = 500  # requests a tick; the rest is due in the next, a second later


def tick(desk: Desk, *, now: datetime) -> int:
    """Do what is due at ``now`` and return how many requests were looked at."""
    query = select(Request.id).where(col(Request.due_at) <= now).order_by(col(Request.due_at)).limit(_AT_MOST)
    with desk.database.read() as session:
        due = list(session.exec(query))
    if due:
        with ThreadPoolExecutor(max_workers=min(_AT_ONCE, len(due)), thread_name_prefix="sweep") as pool:
            list(pool.map(lambda request_id: _one(desk, request_id, now), due))
    _captures(desk, now)
    _follow_ups(desk, now)
    return len(due)


def _follow_ups(desk: Desk, now: datetime) -> None:
    try:
        desk.remind_follow_ups(now=now)
    except BreakGlassError as error:
        log.warning("nobody was reminded of follow-ups this time: %s", error.sentence)


def _captures(desk: Desk, now: datetime) -> None:
    try:
        capture_watch.tick(desk.database, desk.policy.captures, now=now)
    except BreakGlassError as error:
        log.warning("the sources of commands were not looked at this time: %s", error.sentence)


def _one(desk: Desk, request_id: str, now: datetime) -> None:
    try:
        desk.clock(request_id, now=now)
    except BreakGlassError as error:
        log.warning("%s: not done this time: %s (%s)", request_id, error.sentence, error.reason)
    except Exception:
        # The others must have their turn; this one is due again in the next tick.
        log.exception("%s: the tick failed", request_id)
