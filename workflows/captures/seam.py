"""What must a reader of executed commands be able to do? The seam between ``captures/`` and the recorder.

Rules
-----
* A capture reads what the target itself wrote, line by line; it opens no connection and keeps no file.
* It attributes nothing. It says which identity the line names; whose grant that is, the recorder looks up.
* What it says of a line depends on the line alone: lines may come twice, late, or from a place before.
* A line that it cannot read is ``Unreadable``, never silently nothing: a forged or torn line is a finding.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime


class Trust(StrEnum):
    """Who could have kept the line from being written."""

    ENFORCED = "enforced"  # the target itself writes it, and the login cannot switch it off
    HOST = "host"  # the host does; whoever is root there can
    SELF_REPORTED = "self-reported"  # the responder's own side does: advisory


class Kind(StrEnum):
    """What a line tells of."""

    STATEMENT = "statement"  # SQL; ``text`` is it
    EXEC = "exec"  # a program was started; ``argv`` is it, ``text`` the same as one line
    CALL = "call"  # an API call; ``text`` is method and path
    OPENED = "opened"  # a session began
    CLOSED = "closed"  # a session ended
    STOPPED = "stopped"  # recording is switched off, or was tried to be: ``text`` says by what
    HOLE = "hole"  # what is not recorded (a replication stream, the payload of COPY FROM): ``text`` says what
    NOTE = "note"  # what else the target says of a session or login (a refused password, a notice): nothing was run by
    # it, and its ``number`` counts, so that no gap is seen where a line only said something else


@dataclass(frozen=True, slots=True)
class Line:
    """What one raw line says. Texts are as the target wrote them: redaction comes later, and always."""

    kind: Kind
    identity: str  # database user, certificate key id, unix user, or the token's request: what the grant carries
    at: datetime  # aware, by the target's clock
    text: str
    argv: tuple[str, ...] = ()
    session: str | None = None  # unique within the source
    # Of the raw line within its session, without a hole: gaps are found by it. Several Lines of one raw line share it;
    # a session's count begins at its OPENED, whatever number that has.
    number: int | None = None
    database: str | None = None
    # "ok", or the error's code. Some targets note a statement as it begins (no result yet) and its failure in a line of
    # its own: that is the same text once more, with the code.
    result: str | None = None
    rows: int | None = None
    request: str | None = None  # the request that the record names (a token's metadata): checked, not trusted


class Unreadable(ValueError):
    """The line is not one that this source writes. ``str()`` says why, without repeating the line."""


class Capture(Protocol):
    """One kind of source. Stateless; one object serves all sources of its kind."""

    trust: Trust

    def read(self, raw: bytes) -> tuple[Line, ...]:
        """Return what the line says, in order: nothing for a line about nobody. Raises :class:`Unreadable`."""

    def setup(self, options: Mapping[str, str]) -> str:
        """Return exactly what must be put at the target, as an administrator pastes it."""
