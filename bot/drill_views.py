"""How does everybody see that it is a drill, and how do they see how it went?

Rules
-----
* DRILL is the first word of whatever is shown of one: nobody acts on a rehearsal as if it were real, or the other way.
* A scorecard says each line's figure and its pass mark in words; the sign beside it only repeats it.

This module is pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bot.blockkit import clip

if TYPE_CHECKING:
    from bot.blockkit import Block
    from workflows.door import Case

MARK: Final = "DRILL"
_MOST_HEADER: Final = 150


def mark(case: Case | None) -> str:
    """Return the word, with a space behind it, for what is shown of a drill; nothing for what is real."""
    return "" if case is None or case.request.drill is None else f"{MARK} "


def marked(case: Case, text: str, blocks: list[Block]) -> tuple[str, list[Block]]:
    """Return a message's text and blocks as they are shown: unchanged, or with the word in front."""
    if case.request.drill is None:
        return text, blocks
    return f"{MARK} {text}", [_marked(blocks[0]), *blocks[1:]] if blocks else blocks


def _marked(block: Block) -> Block:
    text = block.get("text")
    if isinstance(text, dict) and isinstance(text.get("text"), str):
        words, is_header = text["text"], block["type"] == "header"
        front = f"{MARK} · {words}" if is_header else f"*{MARK}* {words}"
        return {**block, "text": {**text, "text": clip(front, _MOST_HEADER if is_header else 3000)}}
    return block
