"""How do executed commands look in Slack?

Rules
-----
* What was typed at a target is shown as literal text only: in ``rich_text``, or in a file. SQL may hold a backtick,
  ``<!channel>`` or a link, and none of them may do anything here.
* A few commands are shown one by one, a line each. Many become one summary: how many of which class, the dangerous
  ones, the first few, and the rest by a button and as a file.
* What is cut says how much of it is missing.
* Times are by the target's clock; where there can be no date token they are UTC, and say so.

This module is pure.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC
from typing import TYPE_CHECKING, Final

from bot.blockkit import Block, actions, button, clean, clip, context, copyable, escape, plural, rich, section, when
from storage import commands as told

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from storage.commands import Command, Tally

SHOW: Final = "command:show"  # the action id of "Show all", and of the way back in its window
LATER: Final = "command:later"
MOST_LINES: Final = 15  # commands shown one by one in a post
PAGE: Final = 25  # commands on one page of the window
_FIRST: Final = 5  # of many, shown in the summary
_MOST_LINE: Final = 160  # characters of a command in a post
_MOST_ON_PAGE: Final = 1500  # characters of a command in the window; 25 of them are far below 250 kB
_MOST_IN_FILE: Final = 4000
FILE_FROM: Final = 100  # of so many, the list comes as a file, too
_MOST_FILE: Final = 8_000_000  # bytes

_CLASSES: Final[Mapping[str, str]] = {
    "read": "read",
    "write": "write",
    "definition": "definition",
    "privilege": "privilege",
    "export": "bulk export",
    "session": "session setting",
    "program": "program",
    "call": "API call",
    "unknown": "not recognised",
}


def classes(tally: Tally) -> str:
    """Return "12 read, 3 write"; empty when nothing was run."""
    return ", ".join(f"{count} {_CLASSES[name]}" for name, count in tally.by_class())


def one_line(text: str, most: int = _MOST_LINE) -> str:
    """Return a command as one line of literal text, with how many characters are not shown."""
    line = " ".join(clean(text, is_line=True).split())
    if len(line) <= most:
        return line or "(nothing)"
    return f"{line[:most]}… (+{len(line) - most:,} characters)"


def notes(one: Command) -> str:
    """Return what is known besides a command's words: how it went, what was cut or redacted."""
    found = [one.alarm] if one.alarm else []
    if one.danger:
        found.append(f"DANGEROUS: {clip(clean(one.danger, is_line=True), 80)}")
    if one.has_failed:
        found.append(f"failed: {clip(clean(one.result, is_line=True), 40)}")
    if one.rows is not None:
        found.append(plural(one.rows, "row"))
    if one.redacted:
        found.append(f"{one.redacted} redacted")
    if one.whole is not None:
        found.append(f"{one.whole:,} bytes in all")
    return "; ".join(found)


def line(one: Command, most: int = _MOST_LINE) -> str:
    """Return one entry as a line of literal text: when, what, and how it went."""
    if one.event == told.CLOSE:
        return f"{one.at:%H:%M:%S}  -- {_closing(one)}"
    beside = notes(one)
    return f"{one.at:%H:%M:%S}  {one_line(one.text, most)}{f'  [{beside}]' if beside else ''}"


def _closing(one: Command) -> str:
    parts = [f"session ended: {plural(one.count, 'command')}"]
    if one.missing:
        parts.append(f"{plural(one.missing, 'line')} of its record missing")
    if one.stopped:
        parts.append("the recording was stopped, or tried to be")
    if one.holes:
        parts.append("not recorded: " + "; ".join(clip(clean(hole, is_line=True), 100) for hole in one.holes[:3]))
    return ", ".join(parts)


def _where(tally: Tally) -> str:
    """Return which sources recorded it, as whom, for ``mrkdwn``."""
    sources = [f"`{escape(name, 80)}` ({told.TRUSTS.get(trust, 'of unknown trust')})" for name, trust in _few(tally)]
    names = [f"`{escape(name, 80)}`" for name in list(tally.identities)[:3]]
    more = f" and {len(tally.identities) - 3} more" if len(tally.identities) > 3 else ""
    by = f", as {', '.join(names)}{more}" if names else ""
    return f"{', '.join(sources) or 'a source'}{by}"


def _few(tally: Tally) -> list[tuple[str, str]]:
    return list(tally.sources.items())[:3]


def _alarms(tally: Tally, called: str) -> list[Block]:
    """Return what security is to look at; ``called`` is who that is, as ``mrkdwn``."""
    if not tally.dangers:
        return []
    heads = []
    if tally.dangerous:
        kinds = ", ".join(dict.fromkeys(escape(one.danger, 80) for one in tally.dangers if one.danger))
        heads.append(f"*{plural(tally.dangerous, 'dangerous command')}*{f' ({kinds})' if kinds else ''}.")
    if tally.strangers:
        heads.append(
            f"*ALARM: {plural(tally.strangers, 'command')} by an emergency login that no request explains.* Have that "
            "login ended at the target; its own log says from where it came."
        )
    if tally.stops or not heads:
        heads.append("*ALARM: the recording was switched off, or somebody tried to.* What follows may not be recorded.")
    shown = "\n".join(line(replace(one, danger="")) for one in tally.dangers)
    more = tally.alarming - len(tally.dangers)
    blocks = [section(f"⚠️ {' '.join(heads)}{f' {called}' if called else ''}"), rich([copyable(shown)])]
    return [*blocks, context(f"And {more} more like these.")] if more > 0 else blocks


def _gaps(tally: Tally) -> list[str]:
    """Return, for ``mrkdwn``, what is not on record."""
    found = []
    if tally.missing:
        found.append(f"*{plural(tally.missing, 'line')} of the record never came.*")
    if tally.holes:
        found.append(f"Not recorded: {'; '.join(escape(hole, 150) for hole in list(tally.holes)[:3])}.")
    if tally.down:
        names = ", ".join(f"`{escape(name, 80)}`" for name in list(tally.down)[:3])
        found.append(f"*For a time nothing was heard of {names}.*")
    return found


def post(
    few: Sequence[Command], tally: Tally, about: str, *, called: str = "", with_file: bool = False
) -> tuple[str, list[Block]]:
    """Return text and blocks of one post about consecutive entries of commands and sessions.

    ``few``: all of them when there are at most :data:`MOST_LINES`, else at least the first few. ``tally`` counts all.
    ``about``: what the button carries; empty for no button. ``called``: who is called when there is something alarming.
    """
    are_all = tally.runs + tally.sessions + tally.stops <= len(few) <= MOST_LINES
    shown = list(few) if are_all else [one for one in few if one.is_run][:_FIRST]
    counted = plural(tally.runs, "command")
    at = f"{when(tally.first_at, '{time_secs}')} " if tally.first_at else ""
    failed = f"; {tally.failed} failed" if tally.failed else ""
    if not tally.runs:
        head = "Of the recorded sessions:"
    elif are_all:
        head = f"{at}*{counted}*, {_where(tally)}:"
    else:
        span = f"{at}to {when(tally.last_at, '{time_secs}')} " if tally.last_at else at
        head = f"{span}*{counted}* ({classes(tally)}{failed}), {_where(tally)}. The first of them:"
    blocks = [*_alarms(tally, called), section(head)]
    if shown:
        blocks.append(rich([copyable("\n".join(line(one) for one in shown))]))
    if below := _gaps(tally) if not are_all else []:
        blocks.append(section(" ".join(below)))
    if with_file:
        blocks.append(context("The whole list comes as a file. Times in the boxes are UTC, by the target's clock."))
    else:
        blocks.append(context("Times in the box are UTC, by the target's clock."))
    is_cut = any(len(" ".join(one.text.split())) > _MOST_LINE for one in shown)
    if about and (not are_all or is_cut):
        blocks += actions("commands", [button("Show all", SHOW, f"{about} 0", hint=f"Show {counted}")])
    return _text(shown, tally, called, are_all=are_all), blocks


def _text(shown: Sequence[Command], tally: Tally, called: str, *, are_all: bool) -> str:
    """Return what notifications and screen readers get, as ``mrkdwn``: a line for each, or the counts."""
    alarm = f"⚠️ {plural(tally.alarming, 'command')} to look at. {called}".strip() if tally.dangers else ""
    if are_all:
        lines = [escape(line(one), 300) for one in shown]
        if alarm and lines:
            lines[0] = f"{alarm} {lines[0]}"
        return "\n".join(lines)
    failed = f", {tally.failed} failed" if tally.failed else ""
    return f"{alarm} {plural(tally.runs, 'command')}: {classes(tally)}{failed}.".strip()


# --- the file --------------------------------------------------------------------------------------------------------


def file_name(request_id: str, first: int, last: int) -> str:
    """Return the name of a batch's file: by it the file is found again, so it is made of nothing else."""
    return f"{request_id or 'alarms'}-commands-{first}-{last}.txt"


def file_lines(request_id: str, commands: Iterable[Command | None]) -> Iterator[bytes]:
    """Give the lines of a file that lists commands, up to 8 MB; what is left out is said at its end."""
    of = request_id or "logins that no request explains"
    yield f"Commands of {of}. Times are UTC, by the target's clock.\n".encode()
    size = 0
    left = 0
    for one in commands:
        if size > _MOST_FILE:
            left += 1
            continue
        made = _file_entry(one)
        size += len(made)
        yield made
    if left:
        yield f"\nAnd {left} more, which an export of the log has.\n".encode()


def _file_entry(one: Command | None) -> bytes:
    if one is None:
        return b"\n(an entry that was pruned)\n"
    at = one.at.astimezone(UTC)
    if one.event == told.CLOSE:
        return f"\n{at:%Y-%m-%d %H:%M:%S}  #{one.seq}  {one.source}: {_closing(one)}\n".encode("utf-8", "replace")
    facts = [one.source, one.trust, one.identity, one.database, one.cls, one.result, notes(one)]
    head = "  ".join(clean(fact, is_line=True) for fact in facts if fact)
    text = clip(clean(one.text), _MOST_IN_FILE).replace("\n", "\n    ")
    return f"\n{at:%Y-%m-%d %H:%M:%S}  #{one.seq}  {head}\n    {text}\n".encode("utf-8", "replace")


# --- the window ------------------------------------------------------------------------------------------------------


def window(commands: Sequence[Command | None], about: str, page: int, *, has_more: bool) -> list[Block]:
    """Return the blocks of one page (counted from 0) of a batch's commands. ``about``: as in :func:`post`."""
    blocks: list[Block] = []
    for one in commands:
        if one is None:
            blocks.append(context("An entry that was pruned: its time was over."))
            continue
        if one.event == told.CLOSE:
            blocks.append(context(f"{_at(one)} · {escape(_closing(one), 600)}"))
            continue
        facts = [
            _at(one),
            f"`{escape(one.source, 80)}`",
            escape(_CLASSES.get(one.cls, ""), 40),
            escape(notes(one), 400),
        ]
        blocks.append(context(" · ".join(fact for fact in facts if fact)))
        blocks.append(rich([copyable(_cut(one.text))]))
    if not blocks:
        blocks.append(section("There is nothing on this page."))
    buttons = []
    if page > 0:
        buttons.append(button("Earlier", SHOW, f"{about} {page - 1}", hint="Show earlier commands"))
    if has_more:
        buttons.append(button("Later", LATER, f"{about} {page + 1}", hint="Show later commands"))
    return [*blocks, *actions("commands", buttons)]


def _at(one: Command) -> str:
    return when(one.at, "{date_short_pretty} at {time_secs}")


def _cut(text: str) -> str:
    shown = clean(text)
    if len(shown) <= _MOST_ON_PAGE:
        return shown or "(nothing)"
    return f"{shown[:_MOST_ON_PAGE]}… (+{len(shown) - _MOST_ON_PAGE:,} characters)"


# --- for the card, the messages and the review -----------------------------------------------------------------------


def short(tally: Tally) -> str:
    """Return "12 commands, 1 dangerous" for a card, as ``mrkdwn``; empty when none is on record."""
    if not tally.runs:
        return ""
    alarm = f", *{tally.dangerous} dangerous*" if tally.dangerous else ""
    return f"{plural(tally.runs, 'command')}{alarm}"


def review(tally: Tally, *, was_issued: bool, source: str) -> list[Block]:
    """Return what a reviewer is told of the use, beside the reason. ``source``: the level's, empty when it has none."""
    found = [escape(sentence, 400) for sentences in tally.findings.values() for sentence in sentences if sentence]
    if tally.runs:
        span = (
            f", {when(tally.first_at)} to {when(tally.last_at, '{time}')}" if tally.first_at and tally.last_at else ""
        )
        failed = f", {tally.failed} failed" if tally.failed else ""
        lines = [f"*{plural(tally.runs, 'command')}* ({classes(tally)}{failed}){span}, {_where(tally)}."]
        if tally.late and not found:
            found.append(f"{plural(tally.late, 'command')} after the end of the access, by the target's clock.")
        if not (tally.missing or tally.holes or tally.down or found):
            lines.append("No gap in the record was seen.")
    elif tally.sources or source:
        is_unused = was_issued and not tally.down and not tally.holes
        what = "The access was never used" if is_unused else "No command is on record"
        lines = [f"*{what}*, as far as `{escape(source or next(iter(tally.sources)), 80)}` recorded it."]
    else:
        lines = ["*Which commands were run is not on record*: this level names no source that records them."]
    lines += [f"⚠️ *{sentence}*" for sentence in dict.fromkeys(found)]
    return [section("\n".join([*lines, *_gaps(tally)])), *_alarms(tally, "")]
