"""Which file belongs below a post of a thread?

Rules
-----
* Below many commands their list, below the weekly digest its picture. Nothing else has one.
* A file is found again by its name, so the name is made of what the row of ``post`` knows.
* A file is drawn from entries alone, so that whoever takes over draws the same one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bot import commands, digest_picture, digest_view
from bot.cursors import FILES
from bot.views import Message
from storage import commands as told
from storage.audit import read_entries
from workflows.digest import of_data

if TYPE_CHECKING:
    from sqlmodel import Session

    from bot.batches import Batch
    from storage.models import Post

_PICTURE: Final = f"{FILES}digest:"


@dataclass(frozen=True, slots=True)
class File:
    """A file to be shared. ``described``: what a picture shows, in words."""

    name: str
    title: str
    data: bytes
    described: str = ""


def digest(batch: Batch) -> Message:
    """Draw the weekly digest, of its entry alone."""
    record = batch.records[0]
    return Message(*digest_view.post(of_data(record.data), record.seq, has_picture=digest_picture.is_there()))


def key_of(batch: Batch) -> str | None:
    """Return the key of the file that belongs to a post about these entries; None when there is none."""
    if batch.has_commands and batch.count >= commands.FILE_FROM:
        return f"{FILES}{batch.first}-{batch.last}"
    if batch.is_digest and digest_picture.is_there():
        return f"{_PICTURE}{batch.first}-{batch.last}"
    return None


def name_of(post: Post) -> str:
    """Return the name of the file of this row."""
    if post.key.startswith(_PICTURE):
        return f"digest-{post.first_seq or 0}.png"
    return commands.file_name(post.request_id, post.first_seq or 0, post.last_seq or 0)


def make(session: Session, post: Post) -> File:
    """Make the file of this row."""
    request_id, first, last = post.request_id, post.first_seq or 0, post.last_seq
    if post.key.startswith(_PICTURE):
        (record,) = read_entries(session, request_id="", after=first - 1, until_seq=first)
        figures = of_data(record.data)
        data = digest_picture.draw(figures)
        return File(name_of(post), digest_view.title(figures), data, digest_view.described(figures))
    listed = told.each(session, request_id, first=first, last=last)
    title = f"Commands of {request_id}" if request_id else "Commands that no request explains"
    return File(name_of(post), title, b"".join(commands.file_lines(request_id, listed)))
