"""What are the owners of follow-ups told, and which forms do reviewers get besides the review's own?

Rules
-----
* A follow-up's message has its button until somebody said that it is done; then it says who, and what was done.
* Only the newest reminder of a follow-up is sent, and only while it is still to be done.

This module is pure but for :func:`letters`, which reads the log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlmodel import col, select

from bot import review_words, views
from bot.blockkit import actions, escape, label, mention, rich, section, typed, when
from storage.audit import parse
from storage.models import Entry, FollowUpWord

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from sqlmodel import Session

    from bot.views import Message
    from storage.models import FollowUp, Post
    from workflows.door import Case
    from workflows.policy import Policy

TODO: Final = "todo"  # the key of the message that asks its owner
AGAIN: Final = "todo-again"
CLOSE_FORM: Final = FollowUpWord.CLOSE.value
REASSIGN_FORM: Final = "review:reassign"
SECOND_FORM: Final = "review:second"
NOTE: Final = "note"
OWNER: Final = "owner"


def letters(session: Session, case: Case, posts: Mapping[str, Post]) -> Iterator[tuple[str, str, dict[str, str], bool]]:
    """Yield the key, the person, what the picture needs and whether it is wanted now, of each of these messages."""
    if not case.follow_ups:
        return
    newest: dict[str, int] = {}
    query = select(Entry).where(Entry.request_id == case.request.id, Entry.event == FollowUpWord.REMIND.value)
    for entry in session.exec(query.order_by(col(Entry.seq))):
        if entry.body is not None:
            newest[str(parse(entry.body).data.get("id"))] = entry.seq
    for one in case.follow_ups:
        yield f"{TODO}:{one.id}", one.owner, {"follow_up": one.id}, True
        if (seq := newest.get(one.id)) is not None:
            yield f"{AGAIN}:{seq}:{one.id}", one.owner, {"follow_up": one.id}, one.closed_at is None
    wanted = {f"{AGAIN}:{seq}:{name}" for name, seq in newest.items()}
    for key, post in posts.items():
        if key.startswith(f"{AGAIN}:") and key not in wanted:
            yield key, post.target, {"follow_up": key.split(":", 2)[2]}, False


def todo(case: Case, policy: Policy, *, now: datetime, follow_up: str) -> Message:
    """Return what the owner of a follow-up is told, with the button that closes it."""
    one = next((each for each in case.follow_ups if each.id == follow_up), None)
    if one is None:
        return views.Message(f"{follow_up} is not on record.", [section(f"{escape(follow_up)} is not on record.")])
    late = one.due < now.date().isoformat()
    if one.closed_at is not None:
        head = f"✅ *{one.id} is done*, says {mention(one.closed_by or '')} {when(one.closed_at)}."
        parts = [label("To do"), typed(one.what, 900), label("What was done"), typed(one.note or "", 900)]
        return views.Message(f"{one.id} is done.", [section(head), rich(parts)])
    due = f"It was due on {one.due}." if late else f"It is due on {one.due}."
    head = (
        f"📌 *{one.id} is yours to do.* {due} It follows from the review of {case.request.id}: "
        f"{mention(case.request.requester)}, {views.what(case, policy)}."
    )
    blocks = [
        section(head),
        rich([label("To do"), typed(one.what, 900)]),
        *actions(views.BUTTONS, review_words.closing(one)),
    ]
    return views.Message(f"{one.id} is yours to do. {due}", blocks)


def reassign_form(case: Case) -> dict[str, Any]:
    """Return the form that gives a review to somebody else."""
    row = case.request
    now_ours = f"It is {mention(row.review_owner)}'s now." if row.review_owner else "It is nobody's yet."
    return {
        "type": "modal",
        "callback_id": REASSIGN_FORM,
        "private_metadata": views.value(case),
        "title": {"type": "plain_text", "text": f"Review {row.id}"},
        "submit": {"type": "plain_text", "text": "Give it to them"},
        "close": {"type": "plain_text", "text": "Cancel"},
        "blocks": [
            section(f"Whose is the review of {row.id} to file? {now_ours}"),
            {
                "type": "input",
                "block_id": OWNER,
                "label": {"type": "plain_text", "text": "Reviewer"},
                "hint": {
                    "type": "plain_text",
                    "text": "A reviewer who neither asked nor approved. Both of you are told, and it is on record.",
                },
                "element": {
                    "type": "users_select",
                    "action_id": OWNER,
                    "placeholder": {"type": "plain_text", "text": "Choose a person"},
                },
            },
        ],
    }


def close_form(one: FollowUp) -> dict[str, Any]:
    """Return the form that asks what was done."""
    return {
        "type": "modal",
        "callback_id": CLOSE_FORM,
        "private_metadata": one.id,
        "title": {"type": "plain_text", "text": one.id[:24]},
        "submit": {"type": "plain_text", "text": "Done"},
        "close": {"type": "plain_text", "text": "Cancel"},
        "blocks": [
            rich([label("To do"), typed(one.what, 900)]),
            {
                "type": "input",
                "block_id": NOTE,
                "label": {"type": "plain_text", "text": "What was done?"},
                "element": {
                    "type": "plain_text_input",
                    "action_id": NOTE,
                    "multiline": True,
                    "min_length": 10,
                    "max_length": 2000,
                    "placeholder": {"type": "plain_text", "text": "With a link to the proof, if there is one"},
                },
            },
        ],
    }
