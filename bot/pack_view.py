"""How does a reviewer read what there is to know of a use: in a window, and as a file?

Rules
-----
* What to look at comes first, then what it is compared with, the rules, the commands, and what happened when.
* It is read beside the form, so it fits into one window; what does not stands in the file, and that is said.
* Sentences hold names and what people typed: they are escaped, and the timeline is literal text.

This module is pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from bot import commands
from bot.blockkit import (
    Block,
    actions,
    button,
    clean,
    clip,
    context,
    copyable,
    divider,
    escape,
    joined,
    plain_text,
    plural,
    rich,
    section,
)
from storage.reports import executed
from storage.reports.page import Beside, review_page
from storage.reports.story import About, moment
from workflows.review_pack import say_habit, say_rules

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from storage.reports.story import Names
    from workflows.review_pack import Pack

OPEN: Final = "review:pack"  # action ids
FILE: Final = "review:pack_file"
NONE: Final = "Nothing stands out, by the rules of this pack."
_MOST_STEPS: Final = 60  # of the timeline, in the window
_MOST_LINE: Final = 260
_MOST_BOX: Final = 2900


def offer(about: str) -> list[Block]:
    """Return the button that opens the pack. ``about``: "BG-7KQ2 3", as every button of a request has it."""
    return [button("Review pack", OPEN, about, hint="What happened, under which rules, compared with earlier uses")]


def window(pack: Pack, about: str, *, source: str = "") -> dict[str, Any]:
    """Return the window. ``source``: the level's source of commands, empty when it has none."""
    story = pack.story
    blocks: list[Block] = []
    blocks += _listed("👀 What to look at", pack.findings or (NONE,))
    for head, lines in beside(pack).compared:
        blocks += _listed(head, lines)
    blocks.append(divider())
    rules = [f"*{escape(name, 100)}*: {escape(words, 1200)}" for name, words in say_rules(pack)]
    blocks += [section(text) for text in joined(["*The rules in force at its opening*", *rules])[:4]]
    blocks.append(divider())
    was_issued = any(one.issued_at is not None for one in story.credentials)
    blocks += commands.review(story.use, was_issued=was_issued, source=source)
    blocks += [section("*What happened, in UTC*"), *_timeline(pack)]
    blocks += actions("pack", [button("Send me the file", FILE, about, hint="The pack as a page, in a direct message")])
    return {
        "type": "modal",
        "callback_id": "notice",
        "title": plain_text(f"Pack {story.id}", 24),
        "close": plain_text("Back", 24),
        "blocks": blocks,
    }


def _listed(head: str, lines: Iterable[str]) -> list[Block]:
    told = [f"*{head}*", *(f"• {escape(line, 900)}" for line in lines)]
    return [section(text) for text in joined(told)[:3]]


def _timeline(pack: Pack) -> list[Block]:
    story = pack.story
    lines = [
        (
            step.at or story.opened_at,
            f"{moment(step.at).removesuffix(' UTC')}  {step.who or '-'}: {'REFUSED: ' * step.is_refusal}{step.text}",
        )
        for step in story.steps
    ]
    if story.use.runs and story.use.first_at is not None:
        last = f" to {moment(story.use.last_at).removesuffix(' UTC')[11:]}" if story.use.last_at else ""
        ran = executed.count(story.use.runs, "command")
        lines.append((story.use.first_at, f"{moment(story.use.first_at).removesuffix(' UTC')}{last}  {ran}"))
        lines.sort(key=lambda one: (one[0] is None, one[0]))
    shown = [clip(clean(text, is_line=True), _MOST_LINE) for _, text in lines[:_MOST_STEPS]]
    blocks: list[Block] = [rich([copyable(text)]) for text in joined(shown, _MOST_BOX)]
    if (more := len(lines) - len(shown)) > 0:
        blocks.append(context(f"And {plural(more, 'entry').replace('entrys', 'entries')} more, in the file."))
    return blocks


def beside(pack: Pack) -> Beside:
    """Return what stands beside the story on the page."""
    return Beside(
        pack.findings,
        (
            ("Compared with this person", say_habit(pack.person, pack.this, "this person")),
            (f"Compared with the account {pack.this.account}", say_habit(pack.account, pack.this, "anybody, of it")),
        ),
        say_rules(pack),
    )


def page(pack: Pack, names: Names, *, now: datetime) -> bytes:
    """Return the file: a page that stands alone."""
    about = About(None, now, 0, "", {"request": pack.story.id}, pack.story.entries, has_names=bool(names))
    return review_page(pack.story, beside(pack), about, names)


def file_name(request_id: str) -> str:
    """Return the name of the file."""
    return f"review-{request_id}.html"
