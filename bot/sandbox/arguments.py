"""What did the app ask for? Arguments as the SDK sends them: JSON, or a form with JSON inside its fields.

Rules:
- A message is read in one place, whether it comes by ``chat.*``, by a response_url or inside an acknowledgement.
- Its blocks are checked and have their ids before anything is stored.
"""

from __future__ import annotations

import base64
import json
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from bot.sandbox.answers import fill_ids
from bot.sandbox.blocks import Surface, check_blocks
from bot.sandbox.workspace import SlackError

if TYPE_CHECKING:
    from collections.abc import Sequence

Json = dict[str, Any]
_T = TypeVar("_T")

MOST_TEXT: Final = 40_000  # chat.postMessage
MOST_TEXT_OF_UPDATE: Final = 4_000  # chat.update
PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class Said:
    """What a message says, checked; blocks have their ids."""

    text: str
    blocks: list[Json] | None
    attachments: list[Json] | None
    metadata: Json | None


def read_message(args: Json, *, most_text: int = MOST_TEXT) -> Said:
    """Check the parts of a message as Slack does.

    Raises:
        SlackError: ``no_text``, ``msg_too_long``, ``invalid_blocks_format``, ``invalid_blocks`` (with the places),
            ``invalid_attachments``, ``invalid_metadata_format``.

    """
    blocks = parsed(args.get("blocks"))
    errors: list[str] = []
    if blocks is not None:
        if not isinstance(blocks, list):
            raise SlackError("invalid_blocks_format")
        errors = check_blocks(blocks, Surface.MESSAGE)
    attachments = parsed(args.get("attachments"))
    if attachments is not None:
        if not isinstance(attachments, list) or not all(isinstance(part, dict) for part in attachments):
            raise SlackError("invalid_attachments")
        for index, part in enumerate(attachments):
            errors += check_blocks(part.get("blocks") or [], Surface.MESSAGE, at=f"/attachments/{index}/blocks")
    if errors:
        messages = [f"[ERROR] {error}" for error in errors]
        raise SlackError("invalid_blocks", errors=errors, response_metadata={"messages": messages})
    text = args.get("text")
    if not isinstance(text, str) or not text.strip():
        raise SlackError("no_text")
    if len(text) > most_text:
        raise SlackError("msg_too_long")
    metadata = parsed(args.get("metadata"))
    if metadata is not None and (
        not isinstance(metadata, dict)
        or (metadata and not isinstance(metadata.get("event_type"), str))
        or (metadata and not isinstance(metadata.get("event_payload"), dict))
    ):
        raise SlackError("invalid_metadata_format")
    return Said(
        text,
        None if blocks is None else fill_ids(blocks),
        None if attachments is None else [_with_ids(part) for part in attachments],
        metadata,
    )


def _with_ids(attachment: Json) -> Json:
    return {**attachment, "blocks": fill_ids(attachment["blocks"])} if attachment.get("blocks") else attachment


def parsed(value: object) -> object:
    """Return nested arguments of a form post, which are JSON in a string; anything unreadable stays a string."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def flag(value: object) -> bool:
    """Return a boolean argument, which forms carry as 1 or 0."""
    return value in (True, 1, "1", "true", "True")


def between(times: Sequence[str], args: Json) -> tuple[int, int]:
    """Return the range of rising times within ``oldest`` and ``latest``."""
    inclusive = flag(args.get("inclusive"))
    low, high = 0, len(times)
    if args.get("oldest"):
        oldest = _full(args["oldest"])
        low = bisect_left(times, oldest) if inclusive else bisect_right(times, oldest)
    if args.get("latest"):
        latest = _full(args["latest"])
        high = bisect_right(times, latest) if inclusive else bisect_left(times, latest)
    return low, max(low, high)


def _full(value: object) -> str:
    whole, _, rest = str(value).partition(".")
    return f"{whole}.{(rest + '000000')[:6]}" if whole != "0" else "0"


def page_of(items: Sequence[_T], args: Json, *, usual: int, most: int = PAGE) -> tuple[Sequence[_T], Json]:
    """Return one page and, when there is more, the cursor for the next."""
    try:
        limit = int(args.get("limit") or usual)
        start = int(base64.urlsafe_b64decode(str(args["cursor"])).decode()) if args.get("cursor") else 0
    except ValueError:
        raise SlackError("invalid_cursor" if args.get("cursor") else "invalid_limit") from None
    if not 1 <= limit <= most:
        raise SlackError("invalid_limit")
    end = start + limit
    if end >= len(items):
        return items[start:end], {}
    cursor = base64.urlsafe_b64encode(str(end).encode()).decode()
    return items[start:end], {"response_metadata": {"next_cursor": cursor}}
