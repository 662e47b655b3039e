"""Who says by day that an account could not be opened at night? Once a day, the bot itself.

Rules
-----
* What ``breakglass ready`` would find is looked at once a day, over all bots on one database (``due.py``).
* When an account is red, that is one entry, ``ready:fail``, which the thread follower posts; nothing is posted here.
* When a part does not answer it is looked again in ten minutes. What cannot be said for an hour is said to be unknown.
* The first look is an hour after the first start: a new installation is being set up.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from bot.due import Due
from storage.audit import SYSTEM, append
from workflows.readiness import FAIL, Severity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from storage.audit import JSON
    from storage.database import Database
    from workflows.readiness import Readiness

CLAIM: Final = ("ready", "*daily")

FIRST: Final = timedelta(hours=1)
EVERY: Final = timedelta(days=1)
AGAIN: Final = timedelta(minutes=10)
TRIES: Final = 6  # without an answer
_MOST_ACCOUNTS: Final = 10  # in one entry
_MOST_FINDINGS: Final = 4  # of one account
_MOST_WORDS: Final = 300


class DailyLook:
    """Looks when it is due. ``look`` returns how each account stands at that time."""

    def __init__(self, database: Database, look: Callable[[datetime], Sequence[Readiness]]) -> None:
        self._due = Due(database, CLAIM, lambda now: now + FIRST)
        self._look = look

    def tick(self, *, now: datetime) -> bool:
        """Look if it is due; return whether an entry was written. Raises DatabaseDown."""
        if not self._due.take(now=now):
            return False
        return self._say(self._look(now), now)

    def _say(self, found: Sequence[Readiness], now: datetime) -> bool:
        """Write what was found, in one transaction with when it is looked at next."""
        wrong = [one for one in found if one.verdict is not None]
        is_red = any(one.verdict is Severity.RED for one in wrong)
        with self._due.finish() as (session, row):
            if row is None:
                return False
            is_known = not wrong or is_red or row.failures + 1 >= TRIES
            row.retry_at = now + (EVERY if is_known else AGAIN)
            row.failures = 0 if is_known else row.failures + 1
            if wrong and is_known:
                row.seq = append(session, event=FAIL, at=now, actor=SYSTEM, data=_data(wrong)).seq
        return bool(wrong) and is_known


def _data(wrong: Sequence[Readiness]) -> dict[str, JSON]:
    told: list[JSON] = []
    for one in wrong[:_MOST_ACCOUNTS]:
        findings: list[JSON] = [
            {"code": found.code.value, "level": found.level, "sentence": found.sentence[:_MOST_WORDS]}
            for found in one.findings
            if found.severity is not Severity.WARN
        ]
        told.append(
            {
                "account": one.account.name,
                "owner": one.account.owner,
                "verdict": str(one.verdict),
                "findings": findings[:_MOST_FINDINGS],
            }
        )
    return {"count": len(wrong), "accounts": told}
