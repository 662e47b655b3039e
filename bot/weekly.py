"""Who says once a week how emergency access was used? The bot itself, in the log.

Rules
-----
* The digest is one entry, ``digest:post``, which holds the figures; the thread follower posts it.
* It is written once, over all bots on one database (``due.py``), about the newest week that is over.
* After an outage of weeks only the newest is told: it has those before it as comparison.
* A change of the day or the time in the policy counts from the digest after the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from bot.due import Due
from storage.audit import SYSTEM, append
from workflows.digest import POST, gather, measure
from workflows.digest_rules import week_before

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from sqlmodel import Session

    from storage.database import Database
    from workflows.digest_rules import Week
    from workflows.policy import Policy

CLAIM: Final = ("digest", "*weekly")


class WeeklyDigest:
    """Writes the digest when it is due."""

    def __init__(self, database: Database, policy: Callable[[], Policy]) -> None:
        self._database = database
        self._policy = policy
        self._due = Due(database, CLAIM, policy().digest.next)

    def tick(self, *, now: datetime) -> bool:
        """Write it if it is due; return whether an entry was written. Raises DatabaseDown."""
        if not self._due.take(now=now):
            return False
        policy = self._policy()
        week = week_before(now, policy.digest.zone)
        with self._database.read() as session:
            told = told_of(session, policy, week, now=now)
        with self._due.finish() as (session, row):
            if row is None:
                return False
            row.retry_at = policy.digest.next(now)
            row.seq = append(session, event=POST, at=now, actor=SYSTEM, data=told).seq
        return True


def told_of(session: Session, policy: Policy, week: Week, *, now: datetime) -> dict[str, Any]:
    """Return what the entry of a week says."""
    return measure(gather(session, week), policy, week, now=now).data()
