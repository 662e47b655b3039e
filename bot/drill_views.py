"""How does everybody see that it is a drill, and how do they see how it went?

Rules
-----
* DRILL is the first word of whatever is shown of one: nobody acts on a rehearsal as if it were real, or the other way.
* A scorecard says each line's figure and its pass mark in words; the sign beside it only repeats it.

This module is pure.
"""

from __future__ import annotations

from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from bot.blockkit import clip, escape, header, label, mention, rich, section, typed, when
from workflows.drill_history import TREND, answerers, trend
from workflows.drill_score import Came, Leg, from_data
from workflows.policy_file import say_duration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bot.blockkit import Block
    from storage.audit import Record
    from workflows.door import Case
    from workflows.drill_history import Past
    from workflows.drill_score import Line

MARK: Final = "DRILL"
_MOST_HEADER: Final = 150
_MOST_WHY: Final = 300

LEGS: Final[Mapping[Leg, str]] = MappingProxyType(
    {
        Leg.FIRST_ANSWER: "First answer",
        Leg.QUORUM: "Quorum",
        Leg.CREDENTIAL: "Credential from Vault",
        Leg.LOGIN: "Login at the target",
        Leg.REVOCATION: "Shown to be gone",
        Leg.ALERTS: "Everybody told",
        Leg.CAPTURE: "Commands recorded",
        Leg.REVIEW: "Review filed",
    }
)
_SIGNS: Final[Mapping[Came, str]] = MappingProxyType(
    {Came.PASSED: "✅", Came.FAILED: "❌", Came.NOT_REACHED: "⚪", Came.WAITING: "⏳"}
)


def mark(case: Case | None) -> str:
    """Return the word, with a space behind it, for what is shown of a drill; nothing for what is real."""
    return "" if case is None or case.request.drill is None else f"{MARK} "


def marked(case: Case, text: str, blocks: list[Block]) -> tuple[str, list[Block]]:
    """Return a message's text and blocks as they are shown: unchanged, or with the word in front."""
    if case.request.drill is None:
        return text, blocks
    return f"{MARK} {text}", [_marked(blocks[0]), *blocks[1:]] if blocks else blocks


def _marked(block: Block) -> Block:
    text = block.get("text")
    if isinstance(text, dict) and isinstance(text.get("text"), str):
        words, is_header = text["text"], block["type"] == "header"
        front = f"{MARK} · {words}" if is_header else f"*{MARK}* {words}"
        return {**block, "text": {**text, "text": clip(front, _MOST_HEADER if is_header else 3000)}}
    return block


# --- how it went ------------------------------------------------------------------------------------------------------


def took(span: timedelta | None) -> str:
    """Return a figure: with tenths where seconds matter."""
    if span is None:
        return "no figure"
    if span < timedelta(minutes=1):
        return f"{span.total_seconds():.1f} s"
    return say_duration(span)


def line_words(line: Line) -> str:
    """Return what a line of a scorecard says after its name."""
    mark = f"at most {say_duration(line.mark)}" if line.mark is not None else ""
    figure = f"{took(line.took)}, {mark}" if line.took is not None else mark
    why = f" {line.why}" if line.why else ""
    return f"{line.came.value} ({figure}).{why}" if figure else f"{line.came.value}.{why}"


def scorecard(data: Mapping[str, Any]) -> list[Block]:
    """Return the lines of a score, for ``rich_text``."""
    return [
        label(f"{_SIGNS[line.came]} {LEGS[line.leg]}:", clip(line_words(line), _MOST_WHY)) for line in from_data(data)
    ]


def verdict(data: Mapping[str, Any]) -> str:
    """Return the sentence above a scorecard, for ``mrkdwn``."""
    name = escape(str(data.get("drill", "")), 40)
    if data.get("passed") is True:
        return f"*{name} passed*: every line of its scorecard."
    return f"*{name} failed.* What failed has ❌; what comes after it was not reached."


def score_line(record: Record) -> tuple[str, list[Block]]:
    """Return how a score reads in the thread."""
    follow_up = record.data.get("follow_up")
    said = verdict(record.data)
    if isinstance(follow_up, dict):
        owner, day = mention(str(follow_up.get("owner", ""))), escape(str(follow_up.get("due")), 20)
        said += f" {owner} has a follow-up until {day}."
    return said, scorecard(record.data)


def login_line(record: Record) -> tuple[str, list[Block]]:
    """Return how the bot's login reads in the thread."""
    if record.data.get("ok") is True:
        seen = record.data.get("seen")
        return "*The bot logged in* with the credential, and tried it:", [
            typed("\n".join(str(one) for one in seen) if isinstance(seen, list) else "it logs in")
        ]
    return "*The bot could not log in:*", [typed(str(record.data.get("why", "")))]


def start_line(record: Record, who: str) -> tuple[str, list[Block]]:
    """Return how the beginning reads in the thread."""
    why = escape(str(record.data.get("why", "")), 100)
    return f"*{escape(str(record.data.get('drill', '')), 40)} has begun* ({why}), by {who}. Nothing has happened.", []


def plan_line(record: Record) -> tuple[str, list[Block]]:
    """Return how an announcement reads in the channel."""
    data = record.data
    why, account = escape(str(data.get("why", "")), 100), escape(str(data.get("account", "")), 60)
    owner = mention(str(data.get("owner", "")))
    at = escape(str(data.get("begins_at", ""))[:16].replace("T", " at "), 40)
    return f"{MARK} of *{account}* ({owner}) is announced: {why}. It begins on {at} UTC, or soon after.", []


def owner_message(record: Record) -> tuple[str, list[Block]]:
    """Return what the account's owner is told of a drill that failed."""
    follow_up = record.data.get("follow_up")
    todo = follow_up if isinstance(follow_up, dict) else {}
    name = str(record.data.get("drill", ""))
    blocks = [
        header(f"{MARK} · {name} failed"),
        section("You own this account, so this is yours to have mended:"),
        rich([label("To do", f"until {todo.get('due', '')}"), typed(str(todo.get("what", "")))]),
        rich(scorecard(record.data)),
    ]
    return f"{MARK} {name} failed. {todo.get('what', '')}", blocks


def history(name: str, drills: Sequence[Past]) -> str:
    """Return the answer to ``/breakglass drill history``, ``mrkdwn``."""
    if not drills:
        return f"{MARK}: there was none of *{escape(name, 60)}* yet."
    lines = [f"*{MARK}s of {escape(name, 60)}*, the newest first:"]
    for one in drills[:TREND]:
        word = {True: "✅ passed", False: "❌ failed", None: "⏳ under way"}[one.passed]
        failed = f" ({', '.join(LEGS[leg].lower() for leg in one.failed)})" if one.failed else ""
        quorum, login = (took(one.took(leg)) for leg in (Leg.QUORUM, Leg.LOGIN))
        lines.append(f"{one.drill} {when(one.at)}: {word}{failed}. Quorum: {quorum}. Logged in: {login}.")
    said = [
        f"{LEGS[leg].lower()} {how}" for leg in (Leg.QUORUM, Leg.LOGIN, Leg.REVOCATION) if (how := trend(drills, leg))
    ]
    if said:
        lines.append(f"*Trend* over the last {min(TREND, len(drills))}: {', '.join(said)}.")
    lines.append("*Custodians*, middle time to answer:")
    lines += [
        f"{mention(one.person)}: {took(one.median) if one.median is not None else 'never'}, "
        f"{one.answered} of {one.asked} answered"
        for one in answerers(drills)
    ]
    return "\n".join(lines)
