"""How do people read who is asked next, and whose approval is missing?

Rules
-----
* Pictures speak of rows, lines of entries; neither asks a directory.
* Names of tiers and factors are the policy's, or an entry's, which anybody may have forged: all are escaped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bot.blockkit import escape, people, when
from workflows import asking
from workflows.policy import say_duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from storage.audit import Record
    from storage.models import Request
    from workflows.asking import Standing


def lines(row: Request, found: Standing) -> list[str]:
    """Return, for ``mrkdwn``, who fills which factor and who is asked next; nothing where there is neither."""
    parts = []
    if found.factors:
        filled = [f"{escape(name, 40)}: {people(who)}" for name, who in found.filled.items() if who]
        missing = escape(asking.say_missing(found), 300)
        parts.append(f"*Among them* {escape(asking.say_factors(found.factors), 300)}")
        parts[-1] += f" ({'; '.join(part for part in (*filled, missing) if part)})"
    if (step := asking.next_step(row)) is not None:
        parts.append(f"*Asked next*, {when(step.at)}: {escape(step.tier or '', 40)} ({people(step.people)})")
    return parts


def lacking(found: Standing) -> str:
    """Return ": security is missing", or nothing."""
    return f": {escape(asking.say_missing(found), 300)}" if found.missing else ""


def still(found: Standing) -> str:
    """Return " Security is missing.", or nothing: for a sentence."""
    words = asking.say_missing(found)
    return f" {words[0].upper()}{words[1:]}." if words else ""


def whose(row: Request) -> str:
    """Return ", one of owners and one of security", or nothing: for a sentence."""
    factors = asking.say_factors(asking.stored(row))
    return f", {factors}" if factors else ""


def later(row: Request) -> str:
    """Return when whom is asked next, as a span: a sentence knows no time zone."""
    step = asking.next_step(row)
    return f" After {say_duration(step.at - row.opened_at)}, {step.tier} is asked." if step is not None else ""


def called(records: Iterable[Record], row: Request) -> list[str]:
    """Return whom these steps of asking call: those of their tiers, or everybody who was asked before."""
    found: dict[str, None] = {}
    for record in records:
        if record.event == "request:escalate":
            listed = record.data.get("people") if record.data.get("tier") else asking.asked(row)
            found.update(dict.fromkeys(map(str, listed if isinstance(listed, list) else ())))
    return list(found)


def asked_line(data: Mapping[str, Any]) -> str:
    """Return the line of the thread that says that a tier is asked."""
    return f"Not enough answers yet: *{escape(str(data.get('tier')), 40)}* is asked as well."


def needs(data: Mapping[str, Any]) -> str:
    """Return ": one of owners and one of security" from an opening's entry, or nothing."""
    plan = data.get("asking")
    listed = plan.get("factors") if isinstance(plan, dict) else None
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        return ""
    seats = [asking.Seats(str(one.get("name")), _count(one.get("need")), frozenset()) for one in listed]
    return f": {escape(asking.say_factors(seats), 300)}" if seats else ""


def fills(data: Mapping[str, Any]) -> str:
    """Return ": owners (Cora), security is missing" from an approval's entry, or nothing."""
    factors, missing = data.get("factors"), data.get("missing")
    if not isinstance(factors, dict):
        return ""
    parts = [f"{escape(str(name), 40)} ({people(map(str, who))})" for name, who in factors.items() if _is_list(who)]
    if isinstance(missing, dict):
        parts += [f"{escape(str(name), 40)} is missing" for name in missing]
    return f": {', '.join(parts)}" if parts else ""


def _is_list(value: object) -> bool:
    return isinstance(value, list) and bool(value)


def _count(value: object) -> int:
    return value if type(value) is int else 0
