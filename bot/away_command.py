"""What does ``/breakglass away …`` say, and what is answered?

Rules
-----
* ``away until friday @deputy``, ``away 3d``, ``away`` (shows), ``back``. The deputy comes last; a name before the time
  would be somebody else's absence, which nobody can say.
* The answer says in words what was understood.
"""

from __future__ import annotations

import re
from datetime import UTC
from typing import TYPE_CHECKING, Final

from bot.blockkit import escape, mention
from workflows.absence import read_until, say_time
from workflows.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, tzinfo

    from storage.audit import Actor
    from workflows.away_desk import AwayDesk, Declared
    from workflows.policy import Directory

_MENTION: Final = re.compile(r"<@([UW][A-Z0-9]{2,20})(?:\|[^>]*)?>")


def answer(desk: AwayDesk, directory: Directory, actor: Actor, words: Sequence[str], *, now: datetime) -> str:
    """Carry out ``away …`` or ``back`` and return the answer. Raises BreakGlassError."""
    if words[0].lower() == "back":
        desk.back(actor, now=now)
        return "Welcome back. You are not marked as away any more, and nobody stands in for you."
    known = directory.person(actor.person)
    zone: tzinfo = (known.zone if known is not None else None) or UTC
    if len(words) == 1:
        declared = desk.shown(actor, now=now)
        mine = _said(declared, zone) if declared is not None else "You are not marked as away."
        return "\n".join((mine, *_stands_in(desk, actor, zone, now)))
    when, name = _split(words[1:])
    until = read_until(when, zone=zone, now=now)
    match = _MENTION.fullmatch(name)
    deputy = (match[1] if match else desk.find(actor, name, now=now)) if name else None
    return _said(desk.away(actor, until, deputy, now=now), zone)


def note(desk: AwayDesk, actor: Actor, *, now: datetime) -> str:
    """Return what is added to the answer to somebody who decides although they are away; empty for others."""
    if desk.marked(actor.person, now=now) is None:
        return ""
    return " You are marked as away; “/breakglass back” ends that."


def _split(words: Sequence[str]) -> tuple[list[str], str]:
    """Return what says until when, and the name that follows it."""
    at = next((n for n, word in enumerate(words) if word.startswith(("@", "<@"))), len(words))
    if at == 0:
        raise Invalid(
            "Everybody says this of themselves. Say until when first; who stands in for you comes last: "
            "“away until friday @deputy”."
        )
    return list(words[:at]), " ".join(words[at:])


def _said(declared: Declared, zone: tzinfo) -> str:
    absent = declared.absent
    lines = [f"You are away until *{say_time(absent.until, zone)}*. Before that, `/breakglass back` ends it."]
    if absent.deputy is None:
        lines.append("Nobody stands in for you. You are asked as ever, and may still decide.")
    else:
        if declared.asked:
            named = ", ".join(f"*{escape(one.title, 100)}*" for one in declared.asked)
            lines.append(f"{mention(absent.deputy)} is asked besides you, and may decide in your place, for {named}.")
        lines += [f"Not for *{escape(account.title, 100)}*: {escape(why, 200)}." for account, why in declared.unasked]
        lines.append("Requests that are open already stay with those who were asked.")
    if declared.shut:
        lines.append("*Nobody could open this while you are away:*")
        lines += [f"• {escape(one, 300)}" for one in declared.shut]
        lines.append("Name a deputy who is there, or tell the account's owner.")
    return "\n".join(lines)


def _stands_in(desk: AwayDesk, actor: Actor, zone: tzinfo, now: datetime) -> list[str]:
    found = desk.stands_in_for(actor.person, now=now)
    return [f"{mention(one)} is away until {say_time(gone.until, zone)} and named you." for one, gone in found.items()]
