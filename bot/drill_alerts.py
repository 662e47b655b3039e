"""Did everybody who is told of a drill's request get what was meant for them, and how late?

Rules
-----
* It is read from the rows of what was posted, and from the log: what has no time stamp of Slack's has not arrived.
* A message is late by what lies between the entry that it tells of and the time that Slack gave it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from sqlmodel import select

from bot.cursors import CARD, GONE, LINES
from storage.models import Post
from workflows.alert_rules import SEND, Came
from workflows.drill_score import Told
from workflows.lifecycle import Action

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from storage.audit import Record
    from storage.database import Database
    from storage.models import Request


class Arrivals:
    """Looks at what was posted. Raises DatabaseDown."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def __call__(self, request: Request, records: list[Record], /) -> Told:
        """Return how late the latest message was, and what is not there."""
        with self._database.read() as session:
            posts = list(session.exec(select(Post).where(Post.request_id == request.id)))
        latest, missing = timedelta(0), list[str]()
        for what, since, at in _owed(request, records, posts):
            if at is None:
                missing.append(what)
            else:
                latest = max(latest, at - since)
        missing += _alerts(records)
        return Told(latest, tuple(missing))


def _owed(
    request: Request, records: list[Record], posts: Iterable[Post]
) -> Iterator[tuple[str, datetime, datetime | None]]:
    """Yield what was owed: what it is, since when, and when it was there (None: it is not)."""
    known = {post.key: post for post in posts}
    first = {record.event: record for record in reversed(records) if record.refused is None}
    opened, quorum, end = (first.get(action) for action in (Action.OPEN, Action.QUORUM, Action.END))
    if opened is None:
        return
    yield "the card in the channel", opened.at, _posted(known.get(CARD))
    for person in request.custodians:
        yield f"the question to {person}", opened.at, _posted(known.get(f"ask:{person}"))
    yield f"the message to {request.requester}", opened.at, _posted(known.get("own"))
    if quorum is not None:
        yield f"the handover to {request.requester}", quorum.at, _posted(known.get("handover"))
    if end is not None:
        asked = [at for key, post in known.items() if key.startswith("review:") and (at := _posted(post)) is not None]
        yield "the message to a reviewer", end.at, min(asked, default=None)
    # To the end of the use: what comes later, the score among it, is told after it is known.
    lines = [post for key, post in known.items() if key.startswith(LINES)]
    until = (
        end.seq
        if end is not None
        else max(record.seq for record in records if record.event.partition(":")[0] != "drill")
    )
    for record in records:
        if record.seq > until:
            break
        post = next((one for one in lines if (one.first_seq or 0) <= record.seq <= (one.last_seq or -1)), None)
        yield f"entry {record.seq} in the thread", record.at, _posted(post)


def _posted(post: Post | None) -> datetime | None:
    """Return when Slack took a message."""
    if post is None or post.ts is None or (post.picture or "").startswith(GONE):
        return None
    try:
        return datetime.fromtimestamp(float(post.ts), UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _alerts(records: Iterable[Record]) -> Iterator[str]:
    """Yield the alerts outside of Slack that did not go out for an entry: tried, given up, or failed to the last."""
    came: dict[tuple[str, int], bool] = {}
    for record in records:
        if record.event != SEND:
            continue
        listed = record.data.get("entries")
        for seq in listed if isinstance(listed, list) else ():
            if type(seq) is int:
                about = (str(record.data.get("alert", "")), seq)
                came[about] = came.get(about, False) or record.data.get("came") == Came.SENT
    yield from dict.fromkeys(f"the alert {name}" for (name, _), is_sent in came.items() if not is_sent)
