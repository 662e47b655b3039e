"""Is an alert of a drill seen to have gone out, and one that did not?"""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from bot.drill_alerts import _alerts
from storage.audit import SYSTEM, Record

NOW = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)


def sending(seq: int, came: str, *entries: int, alert: str = "pager") -> Record:
    """Return an entry as the alerts' follower writes it."""
    data = {"alert": alert, "to": "leadership", "scheme": "json", "came": came, "entries": list(entries)}
    return Record(seq, NOW, "alert:send", "BG-7KQ2", SYSTEM, None, None, None, None, None, data, b"", b"", b"")


@pytest.mark.parametrize(
    ("records", "missing"),
    [
        ([sending(9, "sent", 4)], []),
        ([sending(9, "failed", 4)], ["the alert pager"]),
        ([sending(9, "failed", 4), sending(10, "sent", 4)], []),
        ([sending(9, "failed", 4), sending(10, "given_up", 4)], ["the alert pager"]),
        ([sending(9, "sent", 4), sending(10, "failed", 6)], ["the alert pager"]),
        ([sending(9, "sent", 4), sending(10, "failed", 4, alert="mail")], ["the alert mail"]),
    ],
)
def test_an_alert_is_missing_until_each_of_its_entries_was_sent(records, missing):
    """What was sent has arrived, also after a failure; what only failed, or was given up, for one entry has not."""
    assert list(_alerts(records)) == missing
