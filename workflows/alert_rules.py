"""Who is told beyond Slack, from which severity on, and by which address? The policy's section ``alerts``.

Rules
-----
* The section is optional; without it nobody is told beyond Slack.
* An address of a service holds its password, so it never stands in the policy: ``url_env`` is the name of the
  environment variable that holds it.
* ``to`` decides what somebody hears of (``bot/alert_words.py``), and ``from`` how much of it.
* ``account`` narrows an alert to the requests of one account; then it says nothing of what belongs to no request.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from workflows.log_rules import Reader

MOST_ALERTS: Final = 20
SEND: Final = "alert:send"  # an alert was sent, or was not, and why
TEST: Final = "alert:test"  # the same of a message that somebody sent to try it

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}", re.ASCII)


class Severity(StrEnum):
    """How urgent it is; the least urgent stands first."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """A number that grows with the urgency."""
        return list(Severity).index(self)


class Came(StrEnum):
    """What came of sending an alert; ``failed`` is tried again."""

    SENT = "sent"
    FAILED = "failed"
    GIVEN_UP = "given_up"


class Audience(StrEnum):
    """Whom an alert is for."""

    LEADERSHIP = "leadership"
    SECURITY = "security"
    CUSTODIANS = "custodians"


@dataclass(frozen=True, slots=True)
class AlertRules:
    """One alert. ``url_env`` names the variable that holds the address; ``account`` None: all of them."""

    name: str
    to: Audience
    least: Severity
    url_env: str
    account: str | None = None


def read(reader: Reader, at: Any, accounts: Collection[str]) -> Mapping[str, AlertRules]:  # noqa: ANN401
    """Read the section ``alerts``; what it returns counts only when the reader has recorded no problem.

    ``accounts``: the names of the policy's accounts.
    """
    entries = reader.entries(at, names=True)
    if len(entries) > MOST_ALERTS:
        reader.fail(at, f"There are {len(entries)} alerts; name at most {MOST_ALERTS}.")
    return MappingProxyType({name: _alert(reader, name, value, accounts) for name, value in entries.items()})


def _alert(reader: Reader, name: str, at: Any, accounts: Collection[str]) -> AlertRules:  # noqa: ANN401
    found = reader.mapping(at, ("to", "from", "url_env"), ("account",))
    to = _one_of(reader, found.get("to"), Audience, Audience.SECURITY)
    least = _one_of(reader, found.get("from"), Severity, Severity.INFO)
    # What is refused is not repeated: it may be the address itself, with its password.
    secret = "Write the name of an environment variable here, not the address itself: it holds a password."  # noqa: S105
    url_env = reader.match(found.get("url_env"), _VARIABLE, secret)
    only = reader.word(found["account"]) if "account" in found else ""
    if only and only not in accounts:
        reader.fail(found["account"], f"There is no such account; the accounts are: {', '.join(sorted(accounts))}.")
    return AlertRules(name, to, least, url_env, only or None)


def _one_of(reader: Reader, at: Any, kind: Any, default: Any) -> Any:  # noqa: ANN401 - a StrEnum and its member
    word = reader.word(at) if at is not None else ""
    if word and word not in set(kind):
        reader.fail(at, f"This is {', '.join(list(kind)[:-1])} or {list(kind)[-1]}.")
        return default
    return kind(word) if word else default
