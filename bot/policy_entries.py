"""How does a changed policy read in the channel: what it changes, who must confirm it, what became of it?

Rules
-----
* What is less strict comes first and is marked. Whatever does not fit is counted, and the whole is one button away.
* The difference is literal text in a box: what the file's author wrote rings nobody and forms no link.
* Who changed the file is not known to the bot, and the message says so.

This module is pure.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from bot.blockkit import Block, button, clean, clip, confirm, copyable, escape, mention, plain, plural, say, when
from workflows.policy_control import CONFIRM, DROP, LASTS, PROPOSE, RECOUNT, REFUSED, REJECT, Fate, Outcome
from workflows.policy_file import say_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from storage.audit import Record

SHOW: Final = "policy:show"  # the button that sends the whole difference

_MOST_SUMMARY: Final = 2000  # characters: what is behind it in the line are the people who are called
_MOST_SHOWN: Final = 2500  # characters of the difference
_MOST_NAMES: Final = 10


def line(record: Record, who: str) -> tuple[str, list[Block]] | None:
    """Return the line of an entry about a policy's change, and its difference in a box; None: it is no such entry."""
    said = _LINES.get(record.event)
    return None if said is None else said(record, who)


def loaded(record: Record) -> str:
    """Return the line of ``policy:load``: which policy is in force, and by whose word."""
    data = record.data
    by = ""
    if confirmed := _words(data, "confirmed_by"):
        by = f", confirmed by {' and '.join(mention(one) for one in confirmed[:_MOST_NAMES])}"
    elif isinstance(data.get("signed_by"), str):
        by = f", signed by {escape(plain(data['signed_by'], 80), 100)}"
    return f"*The policy* `{_short(data, 'hash')}…` is in force from now on{by}."


def buttons(proposal: Record) -> list[Block]:
    """Return the buttons of a proposal; they carry its number and the hash of its text."""
    carried = f"{proposal.seq} {proposal.data.get('hash', '')}"
    need = _count(proposal.data, "need")
    ask_first = confirm(
        "Confirm the policy?",
        f"It is in force as soon as {need} different people have confirmed it. You answer for this decision: read the "
        "difference first.",
        "Confirm",
        style="danger",
    )
    found = [
        button("Confirm", CONFIRM, carried, style="danger", confirm=ask_first, hint="Confirm the changed policy"),
        button("Reject", REJECT, carried, hint="Reject the changed policy"),
    ]
    if _is_long(proposal.data):
        found.append(button("Whole difference", SHOW, carried, hint="Send me the whole difference"))
    return found


def fate_line(fate: Fate) -> str:
    """Return the line under a proposal that is not open any more: what became of it, ``mrkdwn``."""
    record = fate.record
    match fate.outcome:
        case Outcome.LOADED:
            by = " and ".join(
                mention(one) for one in _words(record.data if record else {}, "confirmed_by")[:_MOST_NAMES]
            )
            words = f"*Confirmed* by {by}: it is in force" if by else "*Signed*: it is in force"
        case Outcome.REJECTED:
            words = f"*Rejected* by {mention(record.actor.person) if record else 'somebody'}: nothing has changed"
        case Outcome.REPLACED:
            words = "*Void*: something newer has taken its place; nothing of this has come into force by it"
        case Outcome.DROPPED:
            words = "*Void*: the file says again what is in force"
        case Outcome.LAPSED:
            words = f"*Lapsed*: it was not confirmed within {say_duration(LASTS)}; nothing has changed"
    return f"{words} ({when(fate.at)})."


def _proposed(record: Record, _who: str) -> tuple[str, list[Block]]:
    data = record.data
    need, names = _count(data, "need"), _words(data, "people")
    shown = ", ".join(mention(one) if one[:1] in "UW" else escape(one, 90) for one in names[:_MOST_NAMES])
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    head = (
        f"*The policy file has changed, and what it says is not in force.* It is `{_short(data, 'hash')}…` instead of "
        f"`{_short(data, 'before')}…`; who changed the file is not known to the bot. {need} different people of "
        f"{shown}{more} must confirm it within {say_duration(LASTS)}; until then nothing changes."
    )
    if data.get("restart") is True:
        head += " The section “log” takes effect only when the bot starts again."
    changes = [one for one in data.get("changes") or () if isinstance(one, dict)]
    lines = [head]
    for place, one in enumerate(changes):
        mark = "⚠️ _less strict_ " if one.get("is_weaker") is not False else ""
        where = f"{escape(plain(str(one['account']), 40), 50)}: " if one.get("account") else ""
        said = f"• {mark}{where}{say(str(one.get('sentence', '')), 600)}"
        if sum(map(len, lines)) + len(said) > _MOST_SUMMARY:
            lines.append(f"• … and {plural(max(_count(data, 'count'), len(changes)) - place, 'more change')}")
            break
        lines.append(said)
    if not changes:
        lines.append("• Only comments, the order or the writing differ; the rules are the same.")
    difference = str(data.get("difference") or "")
    box = [copyable(clip(clean(difference), _MOST_SHOWN))] if difference else []
    return "\n".join(lines), box


def _confirmed(record: Record, who: str) -> tuple[str, list[Block]]:
    count = f"{_count(record.data, 'have')} of {_count(record.data, 'need')}"
    return f"{who} *confirmed* the policy `{_short(record.data, 'hash')}…` ({count}).", []


def _rejected(record: Record, who: str) -> tuple[str, list[Block]]:
    return f"{who} *rejected* the policy `{_short(record.data, 'hash')}…`; what was in force stays.", []


def _dropped(record: Record, _who: str) -> tuple[str, list[Block]]:
    digest = _short(record.data, "hash")
    return f"The policy file says again what is in force; the proposal `{digest}…` is void.", []


def _refused(record: Record, _who: str) -> tuple[str, list[Block]]:
    said = _words(record.data, "problems")
    count = max(_count(record.data, "count"), len(said))
    text = (
        f"*The policy file has changed, and does not load* ({plural(count, 'problem')}); what was in force stays. Who "
        "changed it is not known to the bot."
    )
    return text, [copyable(clip(clean("\n".join(said)), _MOST_SHOWN))] if said else []


def _recounted(record: Record, _who: str) -> tuple[str, list[Block]]:
    data = record.data
    names = " and ".join(mention(one) for one in _words(data, "people")[:_MOST_NAMES])
    count = f"{_count(data, 'have')} of {_count(data, 'need')}"
    return f"*The policy has changed*: the approval of {names} no longer counts, so there are {count}.", []


_LINES: Final[Mapping[str, Callable[[Record, str], tuple[str, list[Block]]]]] = MappingProxyType(
    {PROPOSE: _proposed, CONFIRM: _confirmed, REJECT: _rejected, DROP: _dropped, REFUSED: _refused, RECOUNT: _recounted}
)


def _is_long(data: Mapping[str, Any]) -> bool:
    return data.get("is_cut") is True or len(str(data.get("difference") or "")) > _MOST_SHOWN


def _short(data: Mapping[str, Any], key: str) -> str:
    return escape(plain(str(data.get(key, ""))[:12], 20), 20)


def _count(data: Mapping[str, Any], key: str) -> int:
    found = data.get(key)
    return found if isinstance(found, int) and not isinstance(found, bool) else 0


def _words(data: Mapping[str, Any], key: str) -> list[str]:
    found = data.get(key)
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []
