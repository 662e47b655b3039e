"""How does the weekly digest read, in Slack and in a terminal?

Rules
-----
* The same sentences everywhere, from the figures alone: whoever has the entry can draw it again.
* What is overdue, and which rule needs work, stands before what went as it should.
* A figure is compared with the weeks before in words; where there is nothing to compare, nothing is said.
* Owners are called where something of theirs waits; nobody else is.

This module is pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bot.blockkit import Block, clip, context, divider, escape, header, joined, mention, plural, section
from storage.reports.story import OUTCOMES, say
from workflows.digest import BEFORE, UNUSED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from workflows.digest import Chosen, Counts, Figures

Told = list[tuple[str, list[str]]]  # headings, and the sentences below each

_MOST_SAID: Final = 5  # of one list; the entry has more
_DAY: Final = 86400


def title(figures: Figures) -> str:
    """Return what it is about."""
    return f"Emergency access, week {figures.counts.week}"


def span(figures: Figures) -> str:
    """Return the days that it covers."""
    zone = "" if figures.zone in {"", "UTC"} else f" ({figures.zone})"
    return f"{figures.since} to {figures.until}{zone}"


def usually(figures: Figures, name: str, *, is_time: bool = False) -> str:
    """Return ", usually 1.5": what it was in the weeks before, on average; empty when nothing is known."""
    value = figures.usual(name)
    if value is None or not any(one.asked or one.drills or one.reviewed for one in figures.before):
        return ""
    return f", usually {say(value) if is_time else f'{value:.1f}'.removesuffix('.0')}"


def sections(
    figures: Figures, *, safe: Callable[[str], str] = str, person: Callable[[str], str] = str, bold: str = ""
) -> Told:
    """Return the digest in sentences.

    ``safe`` makes text safe for where it goes, ``person`` names somebody, ``bold`` stands around what matters most.
    """
    told: Told = [("Uses", _uses(figures.counts, figures)), ("Reviews", _reviews(figures, safe, person, bold))]
    if figures.thresholds:
        head = f"Thresholds chosen, in {BEFORE + 1} weeks"
        told.append((head, [_threshold(one, safe, bold) for one in figures.thresholds]))
    told.append(("Not used", _unused(figures, safe)))
    if figures.counts.drills or figures.usual("drills"):
        count = plural(figures.counts.drills, "drill") if figures.counts.drills else "No drill"
        told.append(("Drills", [f"{count}{usually(figures, 'drills')}. No figure above counts them."]))
    return told


def _uses(counts: Counts, figures: Figures) -> list[str]:
    if not counts.asked:
        return [f"Nobody asked for emergency access{usually(figures, 'asked')}."]
    lines = [
        f"{plural(counts.asked, 'request')}{usually(figures, 'asked')}; {counts.used} used{usually(figures, 'used')}."
    ]
    if counts.answer_median is not None:
        lines.append(
            f"First answer: half within {say(counts.answer_median)}, nine of ten within {say(counts.answer_p90)}"
            f"{usually(figures, 'answer_median', is_time=True)}."
        )
    if counts.approve_median is not None:
        lines.append(
            f"Approved: half within {say(counts.approve_median)}, nine of ten within {say(counts.approve_p90)}"
            f"{usually(figures, 'approve_median', is_time=True)}."
        )
    parts = [
        f"{number} {word}{usually(figures, word)} ({share(number, counts.asked)})"
        for word, number in (("lapsed", counts.lapsed), ("denied", counts.denied), ("failed", counts.failed))
        if number
    ]
    if counts.withdrawn:
        parts.append(f"{counts.withdrawn} withdrawn")
    if parts:
        lines.append(f"Not granted: {', '.join(parts)}.")
    return lines


def share(part: int, whole: int) -> str:
    """Return a share in percent."""
    return f"{round(100 * part / whole)} %" if whole else "-"


def _reviews(figures: Figures, safe: Callable[[str], str], person: Callable[[str], str], bold: str) -> list[str]:
    lines = []
    if figures.overdue_reviews:
        lines.append(f"{bold}{plural(figures.overdue_reviews, 'review')} overdue{bold} of {figures.open_reviews} open.")
    elif figures.open_reviews:
        lines.append(f"{plural(figures.open_reviews, 'review')} open, none overdue.")
    for one in figures.reviews[:_MOST_SAID]:
        owner = person(one.owner) if one.owner else "no owner, the policy has the account no more"
        word = "overdue" if one.is_overdue else "open"
        lines.append(f"• {safe(one.request)}, {safe(one.account)} ({owner}): {word}, ended {age(one.age)} ago")
    if (more := figures.open_reviews - len(figures.reviews[:_MOST_SAID])) > 0:
        lines.append(f"• and {more} more")
    if figures.counts.reviewed:
        outcomes = ", ".join(f"{count} {safe(OUTCOMES.get(name, name))}" for name, count in figures.outcomes.items())
        lines.append(f"{plural(figures.counts.reviewed, 'review')} filed: {outcomes}.")
        if figures.unnecessary:
            count = figures.counts.unnecessary
            listed = ", ".join(map(safe, figures.unnecessary))
            lines.append(
                f"{bold}{plural(count, 'use')} need not have been{bold}{usually(figures, 'unnecessary')}: {listed}."
            )
    if figures.follow_ups:
        late = f", {bold}{figures.overdue_follow_ups} overdue{bold}" if figures.overdue_follow_ups else ""
        lines.append(f"{plural(figures.follow_ups, 'follow-up')} open{late}.")
    return lines or ["Nothing waits for a review, and none was filed."]


def age(seconds: int) -> str:
    """Return a time in whole days, once there are some."""
    return plural(seconds // _DAY, "day") if seconds >= _DAY else say(seconds)


def needs_work(one: Chosen) -> bool:
    """Whether reviewers said of half of a threshold's uses that it was not met, or that the usual way would do."""
    return bool(one.judged) and 2 * max(one.not_met, one.usual_way) >= one.judged


def _threshold(one: Chosen, safe: Callable[[str], str], bold: str) -> str:
    judged = f", judged not met {one.not_met} of {plural(one.judged, 'time')}" if one.judged else ", not judged yet"
    usual = f", the usual way would have done {one.usual_way} of {one.judged}" if one.usual_way else ""
    work = f" {bold}This rule needs work.{bold}" if needs_work(one) else ""
    name = f"{safe(one.account)}/{safe(one.threshold)}"
    return f"• {name}: chosen {plural(one.times, 'time')}{judged}{usual}.{work}"


def _unused(figures: Figures, safe: Callable[[str], str]) -> list[str]:
    since = f"since {safe(figures.unused_since)}"
    why = " (the log's first day)" if figures.is_young else f" ({UNUSED.days} days)"
    lines = []
    for word, names in (("accounts", figures.unused_accounts), ("levels", figures.unused_levels)):
        if names:
            listed = ", ".join(map(safe, names[: 2 * _MOST_SAID]))
            more = f" and {len(names) - 2 * _MOST_SAID} more" if len(names) > 2 * _MOST_SAID else ""
            lines.append(f"No use of these {word} {since}{why}: {listed}{more}.")
    return lines or [f"Every account and level was used {since}{why}."]


# --- in Slack ---------------------------------------------------------------------------------------------------------


def post(figures: Figures, seq: int, *, has_picture: bool) -> tuple[str, list[Block]]:
    """Return text and blocks of the digest. ``seq``: the entry that holds the figures."""
    told = sections(figures, safe=lambda text: escape(text, 80), person=mention, bold="*")
    blocks: list[Block] = [header(title(figures)), context(escape(span(figures), 120))]
    texts = []
    for heading, lines in told:
        texts.append(f"{heading}: {' '.join(lines)}")
        blocks += [section(text) for text in joined([f"*{heading}*", *(clip(line, 2900) for line in lines)])]
    where = "The picture comes below. " if has_picture else ""
    command = f"`breakglass digest --week {escape(figures.counts.week, 20)}`"
    blocks += [divider(), context(f"{where}The figures are entry #{seq} of the log; {command} counts them again.")]
    return clip(f"{title(figures)}.\n" + "\n".join(texts), 3000), blocks


def described(figures: Figures) -> str:
    """Return what the picture shows, in words, for who cannot see it; at most 1000 characters."""
    counts = figures.counts
    weeks = ", ".join(f"{one.week} {one.used} used of {one.asked}" for one in (*figures.before, counts))
    approve = f"Half were approved within {say(counts.approve_median)}. " if counts.approve_median is not None else ""
    rules = "; ".join(f"{one.account}/{one.threshold} {one.times}, not met {one.not_met}" for one in figures.thresholds)
    text = (
        f"{title(figures)}. Requests by week: {weeks}. {approve}{plural(figures.overdue_reviews, 'review')} overdue, "
        f"{figures.open_reviews} open. {plural(counts.unnecessary, 'use')} need not have been. "
        f"Thresholds chosen: {rules or 'none'}. Accounts not used: {', '.join(figures.unused_accounts) or 'none'}."
    )
    return clip(text, 1000)


# --- in a terminal ----------------------------------------------------------------------------------------------------


def text(figures: Figures) -> Sequence[str]:
    """Return the lines for a terminal."""
    lines = [f"{title(figures)}: {span(figures)}"]
    for heading, told in sections(figures):
        lines += ["", heading, *(f"  {line}" for line in told)]
    return lines
