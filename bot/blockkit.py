"""How does a fact get onto Slack's screen so that it means only what it says?

Rules
-----
* What a person typed goes through :func:`typed` (``rich_text``) or a plain input, where Slack reads no markup. Never
  into ``mrkdwn``: ``<!channel>`` would ring everybody's telephone and ``<https://…|Vault login>`` would be a trap.
* Our own words and the policy's are ``mrkdwn``, each value through :func:`escape`, each person through :func:`mention`.
* Text is cleaned of what shows differently than it reads (bidi, zero-width and control characters, floods of blank
  lines), then escaped, then cut with "…"; never inside an entity.
* Lengths are counted in UTF-16 units, as JavaScript does: never fewer than characters, so a limit holds either way.
* A time is a Slack date token: it shows in each reader's own zone, and stays true without a redraw.

This module is pure. Limits: https://docs.slack.dev/reference/block-kit, https://docs.slack.dev/reference/block-kit/blocks.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Block: TypeAlias = dict[str, Any]

MOST_TEXT: Final = 3000  # a text object
MOST_BLOCKS: Final = 50  # a message
MOST_VIEW_BLOCKS: Final = 100  # a modal or a Home tab
MOST_OPTIONS: Final = 100  # a select
MOST_TYPED: Final = 2800  # of what a person typed, in one place; the policy lets them write 2000 characters
MOST_PEOPLE: Final = 20  # named in one list; a custodian group may have hundreds

_PERSON: Final = re.compile(r"[UW][A-Z0-9]{2,20}")
_MENTION: Final = re.compile(r"&lt;@([UW][A-Z0-9]{2,20})&gt;")
_RAW_MENTION: Final = re.compile(r"<@[UW][A-Z0-9]{2,20}>")
_ENTITIES: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
# A code mark would swallow the markup after it, mentions and times included; the others only change how words look.
_BACKTICK: Final = "'"


# --- text -------------------------------------------------------------------------------------------------------------


def clean(text: str, *, is_line: bool = False) -> str:
    """Return the text without characters that show differently than they read; ``is_line``: without line breaks."""
    out: list[str] = []
    for char in text.replace("\r\n", "\n"):
        if char in "\n\r\v\f\x85\u2028\u2029":
            out.append(" " if is_line else "\n")
        elif char == "\t":
            out.append(" ")
        elif unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Co"}:
            out.append(char)
    # Two hundred blank lines would push the buttons, or what others said, off the screen.
    return re.sub(r"[ \n]*\n[ \n]*\n[ \n]*", "\n\n", "".join(out)).strip()


def clip(text: str, most: int) -> str:
    """Return the text, or its beginning and "…", in at most ``most`` UTF-16 units."""
    return _cut(text, most, {})


def escape(text: str, most: int = MOST_TEXT) -> str:
    """Return one line of text for ``mrkdwn``: cleaned, escaped, then cut to ``most``, never through an entity."""
    return _cut(clean(text, is_line=True).replace("`", _BACKTICK), most, _ENTITIES)


def _units(text: str) -> int:
    return sum(2 if ord(char) > 0xFFFF else 1 for char in text)


def _cut(text: str, most: int, entities: dict[str, str]) -> str:
    out: list[str] = []
    used = keep = 0
    for char in text:
        piece = entities.get(char, char)
        used += _units(piece)
        if used > most:
            return "".join(out[:keep]) + "…"
        out.append(piece)
        if used < most:  # here an ellipsis would still fit
            keep = len(out)
    return "".join(out)


def say(sentence: str, most: int = MOST_TEXT) -> str:
    """Return a sentence of ours for ``mrkdwn``: everything is escaped but the mentions of people."""
    return _MENTION.sub(r"<@\1>", escape(sentence, most))


def plain(sentence: str, most: int = MOST_TEXT) -> str:
    """Return a sentence of ours for a place without markup; people drop out, as their ids mean nothing to a reader."""
    text = re.sub(rf", {_RAW_MENTION.pattern},", "", sentence)
    text = re.sub(rf"[;,]? [^;,.]*?(?: are| is)? {_RAW_MENTION.pattern}(?:, {_RAW_MENTION.pattern})*[^.;]*", "", text)
    return clip(clean(_RAW_MENTION.sub("somebody", text), is_line=True), most)


def mention(person: str) -> str:
    """Return a person for ``mrkdwn``; what is no user id is shown as text."""
    return f"<@{person}>" if _PERSON.fullmatch(person) else escape(person, 80)


def people(ids: Iterable[str]) -> str:
    """Return a list of people for ``mrkdwn``."""
    known = list(ids)
    more = f" and {len(known) - MOST_PEOPLE} more" if len(known) > MOST_PEOPLE else ""
    return ", ".join(mention(person) for person in known[:MOST_PEOPLE]) + more if known else "nobody"


def when(at: datetime, form: str = "{date_short_pretty} at {time}") -> str:
    """Return a time for ``mrkdwn``, shown in the reader's own zone."""
    return f"<!date^{int(at.timestamp())}^{form}|{utc(at)}>"


def utc(at: datetime) -> str:
    """Return a time where there is no markup."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def plural(count: int, word: str) -> str:
    """Return "1 custodian", "2 custodians"."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


# --- blocks -----------------------------------------------------------------------------------------------------------


def plain_text(text: str, most: int) -> Block:
    """Return a ``plain_text`` object: one line, never empty."""
    return {"type": "plain_text", "text": clip(clean(text, is_line=True), most) or "-", "emoji": True}


def mrkdwn(text: str) -> Block:
    """Return a ``mrkdwn`` object of text that is escaped already."""
    return {"type": "mrkdwn", "text": text}


def header(text: str) -> Block:
    """Return a header block."""
    return {"type": "header", "text": plain_text(text, 150)}


def section(text: str) -> Block:
    """Return a section of ``mrkdwn`` that is escaped already and within the limit."""
    return {"type": "section", "text": mrkdwn(text)}


def context(text: str) -> Block:
    """Return a line of small print, ``mrkdwn``, escaped already."""
    return {"type": "context", "elements": [mrkdwn(text)]}


def divider() -> Block:
    """Return a line across."""
    return {"type": "divider"}


def rich(elements: Sequence[Block]) -> Block:
    """Return a ``rich_text`` block."""
    return {"type": "rich_text", "elements": list(elements)}


def label(text: str, rest: str = "") -> Block:
    """Return a line of ``rich_text``: a bold label, and literal text after it."""
    parts = [_inline(text, style={"bold": True})]
    if rest := clip(clean(rest, is_line=True), MOST_TYPED):
        parts.append(_inline(f"  {rest}"))
    return {"type": "rich_text_section", "elements": parts}


def person(user_id: str) -> Block:
    """Return a person inside ``rich_text``; what is no user id is shown as text."""
    if _PERSON.fullmatch(user_id):
        return {"type": "user", "user_id": user_id}
    return _inline(clip(clean(user_id, is_line=True), 80) or "nobody")


def typed(text: str, most: int = MOST_TYPED) -> Block:
    """Return what a person typed, as a quote in which Slack reads no markup."""
    return {"type": "rich_text_quote", "elements": [_inline(clip(clean(text), most) or "(nothing)")]}


def copyable(text: str) -> Block:
    """Return literal text in a box of its own that is easy to copy: not cleaned, because it must paste as it is."""
    return {"type": "rich_text_preformatted", "elements": [_inline(text)]}


def _inline(text: str, **more: Any) -> Block:  # noqa: ANN401 - JSON values
    return {"type": "text", "text": text, **more}


def button(
    text: str, action_id: str, value: str, *, style: str | None = None, confirm: Block | None = None, hint: str = ""
) -> Block:
    """Return a button. Its value is seen by the client: an id and a version, nothing else."""
    made: Block = {"type": "button", "text": plain_text(text, 75), "action_id": action_id, "value": value}
    if style is not None:
        made["style"] = style
    if confirm is not None:
        made["confirm"] = confirm
    if hint:
        made["accessibility_label"] = clip(clean(hint, is_line=True), 75)
    return made


def confirm(title: str, text: str, yes: str, no: str = "Go back", *, style: str = "primary") -> Block:
    """Return the question asked before a click counts."""
    return {
        "title": plain_text(title, 100),
        "text": plain_text(text, 300),
        "confirm": plain_text(yes, 30),
        "deny": plain_text(no, 30),
        "style": style,
    }


def actions(block_id: str, elements: Sequence[Block]) -> list[Block]:
    """Return a row of buttons, or nothing when there is none."""
    return [{"type": "actions", "block_id": block_id, "elements": list(elements)}] if elements else []


def joined(lines: Iterable[str], most: int = MOST_TEXT) -> list[str]:
    """Return lines joined by line breaks into as few texts as fit; each line must be shorter than ``most``."""
    texts: list[str] = []
    for line in lines:
        if texts and _units(texts[-1]) + 1 + _units(line) <= most:
            texts[-1] += f"\n{line}"
        else:
            texts.append(line)
    return texts
