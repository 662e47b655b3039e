"""How is a line read that is one JSON object?

Shared by the captures whose source writes such lines. Strict where two readers could read two things.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from workflows.captures.seam import Unreadable

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST: Final = 1_048_576  # bytes of a line


def read_object(raw: bytes, most: int = MOST) -> dict[str, Any]:
    """Return the object that a line is. Raises :class:`Unreadable`."""
    if len(raw) > most:
        raise Unreadable("It is too long.")
    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise Unreadable("It is not one JSON object.") from error
    if not isinstance(found, dict):
        raise Unreadable("It is not one JSON object.")
    return found


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object as a dict. ValueError for a key that stands twice."""
    # Attack: of two users, one reader would see the first and another the last.
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def part(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return an object within it; empty for anything else."""
    found = record.get(name)
    return found if isinstance(found, dict) else {}


def text_of(record: Mapping[str, Any], name: str) -> str | None:
    """Return a text within it; None for an empty one, and for anything else."""
    found = record.get(name)
    return found if isinstance(found, str) and found else None


def time_of(record: Mapping[str, Any], name: str) -> datetime:
    """Return a moment within it, in UTC; of a second's digits the first six. Raises :class:`Unreadable`."""
    try:
        at = datetime.fromisoformat(text_of(record, name) or "")
        if at.tzinfo is not None:
            return at.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise Unreadable("It has no time.") from error
    raise Unreadable("Its time has no zone.")
