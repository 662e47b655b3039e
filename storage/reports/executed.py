"""How do executed commands read on a page, on paper and in a terminal?

Rules
-----
* The same words everywhere, as plain text; whoever draws them escapes them for his format.
* How far a record can be relied on stands beside it, and what is missing is said before what is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from storage import commands as told

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.commands import Command, Tally

NONE: Final = "No commands were captured for this request, so none are shown."


def count(number: int, word: str) -> str:
    """Return "1 command", "2 commands"."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def summary(tally: Tally) -> list[str]:
    """Return sentences: what is missing or alarming, how many of which class, from which source."""
    lines = []
    for name, trust in tally.sources.items():
        lines.append(f"Source {name}: {told.TRUSTS.get(trust, 'its trust is not stated')}.")
    if tally.runs:
        classes = ", ".join(f"{number} {name}" for name, number in tally.by_class())
        failed = f"; {tally.failed} failed" if tally.failed else ""
        lines.append(f"{count(tally.runs, 'command')}: {classes}{failed}.")
    elif tally.sources:
        lines.append("No command is on record.")
    if tally.dangerous:
        lines.append(f"{count(tally.dangerous, 'command')} marked as dangerous.")
    if tally.stops:
        lines.append("The recording was switched off from within, or that was tried.")
    if tally.late:
        lines.append(f"{count(tally.late, 'command')} after the end of the login, by the target's clock.")
    if tally.missing:
        lines.append(f"{count(tally.missing, 'line')} of the record never came.")
    if tally.holes:
        lines.append(f"Not recorded: {'; '.join(tally.holes)}.")
    if tally.down:
        lines.append(f"For a time nothing was heard of {', '.join(tally.down)}.")
    if tally.redacted:
        lines.append(f"Secrets were taken out of {count(tally.redacted, 'command')} before it was stored.")
    for source, findings in tally.findings.items():
        lines.append(f"Found of {source}: {' '.join(findings) or 'nothing is out of place.'}")
    return lines


def words(one: Command) -> str:
    """Return what ran, or what the entry says instead."""
    if one.event == told.CLOSE:
        missing = f", {count(one.missing, 'line')} missing" if one.missing else ""
        holes = f"; not recorded: {'; '.join(one.holes)}" if one.holes else ""
        stopped = "; the recording was stopped, or that was tried" if one.stopped else ""
        return f"(session ended: {count(one.count, 'command')}{missing}{holes}{stopped})"
    return one.text or "(nothing)"


def marks(one: Command) -> str:
    """Return class, result and what else is to be said of one command."""
    found = [one.cls, one.alarm]
    if one.danger:
        found.append(f"DANGEROUS: {one.danger}")
    if one.result:
        found.append(f"failed: {one.result}" if one.has_failed else one.result)
    if one.rows is not None:
        found.append(count(one.rows, "row"))
    if one.redacted:
        found.append(f"{one.redacted} redacted")
    if one.whole is not None:
        found.append(f"cut: {one.whole} bytes, whole in payloads/{one.sha256}.txt of a bundle")
    return ", ".join(mark for mark in found if mark)


def where(one: Command) -> str:
    """Return source, trust and login of one command."""
    parts: Sequence[str] = (f"{one.source} ({one.trust})" if one.trust else one.source, one.identity, one.database)
    return ", ".join(part for part in parts if part)
