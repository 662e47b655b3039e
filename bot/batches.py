"""What is the next post of a thread about?

Rules
-----
* A post is about consecutive entries. One about commands and sessions is about nothing else, and has no upper bound but
  :data:`MOST_TOGETHER`; the weekly digest has one of its own; any other has at most as many entries as one can show.
* Of many commands only the first few are read here; the rest are counted by the database.
* A changed policy that is proposed, with its buttons and its difference, is a post of its own.
* A batch that was tried, or whose file is owed, stays the same batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlmodel import col, select

from bot import views
from bot.cursors import FILES, tried_batch
from storage import commands
from storage.audit import read_entries
from storage.models import Entry, Post
from workflows.digest import POST
from workflows.policy_control import PROPOSE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlmodel import Session

    from storage.audit import Record

MOST_TOGETHER: Final = 20_000  # entries in one summary: what is behind it waits for the next


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive entries for one post. ``records``: all of them, or of many commands the first few.

    ``tried``: the post that was tried and has no answer. ``is_followed``: an entry of another kind waits behind it.
    """

    records: Sequence[Record]
    last: int
    count: int
    tried: Post | None
    is_followed: bool

    @property
    def first(self) -> int:
        """The number of its first entry."""
        return self.records[0].seq

    @property
    def has_commands(self) -> bool:
        """Whether it is about commands and sessions."""
        return self.records[0].event in commands.MANY

    @property
    def is_digest(self) -> bool:
        """Whether it is the weekly digest, to be drawn as one."""
        return self.records[0].event == POST and _is_alone(self.records[0])


def _is_alone(record: Record) -> bool:
    """Whether an entry has a post to itself: a digest with its picture, a proposed policy with its buttons."""
    return record.event in (POST, PROPOSE) and record.refused is None and not record.is_pruned


def next_batch(session: Session, request_id: str, cursor: int) -> Batch | None:
    """Return what comes after the cursor; None when nothing does."""
    tried = tried_batch(session, request_id, cursor)
    until = None if tried is None else tried.last_seq
    records = read_entries(session, request_id=request_id, after=cursor, until_seq=until, limit=views.MOST_IN_POST)
    if not records:
        return None
    is_many = records[0].event in commands.MANY
    own = [*records]
    if _is_alone(records[0]):
        return Batch(records[:1], records[0].seq, 1, tried, len(records) > 1)
    for place, record in enumerate(records):
        if _is_alone(record) or (record.event in commands.MANY) is not is_many:
            own = records[:place]
            break
    is_followed = len(own) < len(records)
    if is_followed or len(records) < views.MOST_IN_POST or not is_many:
        return Batch(own, own[-1].seq, len(own), tried, is_followed)
    last, count, is_followed = _reach(session, request_id, cursor, until)
    return Batch(own, last, count, tried, is_followed)


def _reach(session: Session, request_id: str, cursor: int, until: int | None) -> tuple[int, int, bool]:
    """Return how far an unbroken run of such entries goes, how many they are, and whether another kind follows."""
    about = Entry.request_id == request_id if request_id else col(Entry.request_id).is_(None)
    query = select(Entry.seq, Entry.event).where(about, col(Entry.seq) > cursor).order_by(col(Entry.seq))
    if until is not None:
        query = query.where(col(Entry.seq) <= until)
    last = count = 0
    for seq, event in session.exec(query.limit(MOST_TOGETHER + 1).execution_options(yield_per=1000)):
        if event not in commands.MANY:
            return last, count, True
        if count == MOST_TOGETHER:
            break
        last, count = seq, count + 1
    return last, count, False


def owed_file(session: Session, request_id: str, cursor: int) -> Post | None:
    """Return the list that belongs to the post at which the cursor stands: it was posted, and its file is not there."""
    return session.exec(
        select(Post).where(
            Post.request_id == request_id,
            col(Post.key).startswith(FILES, autoescape=True),
            col(Post.first_seq) > cursor,
        )
    ).first()


def has_only_commands(session: Session, request_id: str, cursor: int) -> bool:
    """Whether nothing but commands and sessions came after the cursor."""
    query = select(Entry.seq).where(
        Entry.request_id == request_id, col(Entry.seq) > cursor, col(Entry.event).not_in(sorted(commands.MANY))
    )
    return session.exec(query.limit(1)).first() is None
