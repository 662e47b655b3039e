"""How do a filed review and what it asks for read on a card?

Rules
-----
* What was answered stands beside its evidence, and both reviewers beside each other where there are two.

This module is pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bot import entries
from bot.blockkit import Block, button, context, escape, label, mention, rich, section, typed, when
from storage.models import FollowUpWord

if TYPE_CHECKING:
    from collections.abc import Iterable

    from storage.models import FollowUp
    from workflows.door import Case

CLOSE: Final = FollowUpWord.CLOSE.value


def closing(one: FollowUp) -> list[Block]:
    """Return the button that says that a follow-up is done."""
    if one.closed_at is not None:
        return []
    return [button("Done…", CLOSE, one.id, style="primary", hint=f"Say that {one.id} is done")]


def listed(found: Iterable[FollowUp]) -> list[str]:
    """Return follow-ups as lines of ``mrkdwn``."""
    return [
        f"📌 *{one.id}*, {mention(one.owner)}, "
        + (f"done {when(one.closed_at)}" if one.closed_at is not None else f"due {one.due}")
        + f": {escape(' '.join(one.what.split()), 200)}"
        for one in found
    ]


def filed(case: Case) -> list[Block]:
    """Return the review, or both, as the card shows them; nothing where none is filed."""
    found, second = case.review, case.second
    if found is None:
        return []
    answers = (
        ("Documented threshold met", found.threshold_met),
        ("Standard escalation could have worked", found.standard_path_enough),
        ("Used as stated", found.used_as_stated),
    )
    lines = [f"*Review: {entries.outcome_words(found.outcome)}*, by {mention(found.reviewer)} {when(found.filed_at)}"]
    lines += [f"{text}: {'yes' if answer else 'no'}" for text, answer in answers]
    told = {"threshold_why": found.threshold_why, "standard_path_why": found.standard_path_why}
    blocks = [
        section("\n".join(lines)),
        rich([*entries.evidence(told), *entries.review_words(found.findings, found.follow_ups)]),
    ]
    if second is not None:
        agrees = "agrees" if second.outcome == found.outcome else "*disagrees*"
        line = (
            f"*Second review: {entries.outcome_words(second.outcome)}*, by {mention(second.reviewer)} "
            f"{when(second.filed_at)}, who {agrees}"
        )
        blocks += [section(line), rich([label("Findings"), typed(second.findings, 900)])]
    if done := [one for one in case.follow_ups if one.closed_at is not None]:
        blocks.append(context("\n".join(listed(done))))
    return blocks
