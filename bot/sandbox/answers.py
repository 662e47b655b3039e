"""What stands in these blocks, and what may a person answer in them?

Rules:
- Blocks have passed ``blocks.check_blocks``; nothing is checked twice.
- An answer is Slack's state value, ``{"type": …, "value": …}``, and always one that the element could have given:
  an option that it offers, a date that is one.
- What Slack's own client refuses (an empty required field, a text too long) never reaches the app.
"""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from bot.sandbox.blocks import ELEMENTS, elements_of, options_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Json = dict[str, Any]

# --- Reading blocks -----------------------------------------------------------------------------------------------


def fill_ids(blocks: Sequence[Json]) -> list[Json]:
    """Return a copy in which every block has a ``block_id`` and every element an ``action_id``, as Slack gives them."""
    filled = []
    for block in blocks:
        copy: Json = {**block, "block_id": block.get("block_id") or _short_id()}
        if copy["type"] == "actions":
            copy["elements"] = [_with_action_id(element) for element in copy["elements"]]
        elif copy["type"] == "input":
            copy["element"] = _with_action_id(copy["element"])
            copy.setdefault("optional", False)
            copy.setdefault("dispatch_action", False)
        elif copy["type"] == "section" and copy.get("accessory"):
            copy["accessory"] = _with_action_id(copy["accessory"])
        filled.append(copy)
    return filled


def _with_action_id(element: Json) -> Json:
    return element if element["type"] == "image" else {**element, "action_id": element.get("action_id") or _short_id()}


def _short_id() -> str:
    return uuid4().hex[:5]


def find_element(blocks: Sequence[Json], block_id: str, action_id: str) -> tuple[Json, Json] | None:
    """Return the block and its element under these ids, or None when they do not stand there."""
    for block in blocks:
        if block.get("block_id") == block_id:
            for element in elements_of(block):
                if element.get("action_id") == action_id:
                    return block, element
    return None


def mrkdwn_of(blocks: Sequence[Json]) -> Iterator[str]:
    """Yield every string of these blocks in which Slack would read ``<!channel>`` and ``<@U…>`` as mentions.

    Plain text is not among them. Mentions of rich text are elements, not words; they come out in the same notation.
    """
    stack: list[object] = list(blocks)
    while stack:
        part = stack.pop()
        if isinstance(part, list):
            stack.extend(part)
        elif isinstance(part, dict):
            match part.get("type"):
                case "mrkdwn" | "markdown":
                    yield str(part.get("text", ""))
                case "broadcast":
                    yield f"<!{part.get('range')}>"
                case "user":
                    yield f"<@{part.get('user_id')}>"
                case "usergroup":
                    yield f"<!subteam^{part.get('usergroup_id')}>"
                case _:  # a confirm dialog is shown to one person after a click; nobody is notified by it
                    stack.extend(v for k, v in part.items() if k != "confirm" and isinstance(v, dict | list))


# --- What a person answers ----------------------------------------------------------------------------------------


class BadAnswer(Exception):
    """A person cannot have answered this in that element; the sentence says why."""


def state_key(element: Json) -> str | None:
    """Return the field of a state value that holds the answer (``value``, ``selected_option`` …); None for buttons."""
    known = ELEMENTS.get(element["type"])
    return known.state_key if known else None


def initial_values(blocks: Sequence[Json], kept: Mapping[str, Mapping[str, Json]] | None = None) -> Json:
    """Return ``state.values`` for these blocks: what was ``kept`` under the same ids and type, else initial values."""
    values: Json = {}
    for block in blocks:
        for element in elements_of(block):
            known = ELEMENTS[element["type"]]
            if known.state_key is None or known.initial_key is None:
                continue
            empty: list[Json] | None = [] if known.many else None
            answer = {"type": element["type"], known.state_key: element.get(known.initial_key, empty)}
            old = (kept or {}).get(block["block_id"], {}).get(element["action_id"])
            if old is not None and old.get("type") == element["type"]:
                # When the options have changed under the answer, Slack falls back to the initial one too.
                with suppress(BadAnswer):
                    answer = read_answer(element, old)
            values.setdefault(block["block_id"], {})[element["action_id"]] = answer
    return values


def read_answer(element: Json, given: Mapping[str, Any]) -> Json:
    """Return the state value for what a person entered.

    ``given`` is Slack's state value (``{"type": …, "value": …}``); options are matched by their value.

    Raises:
        BadAnswer: this element cannot take that.

    """
    kind, key = element["type"], state_key(element)
    if key is None:
        raise BadAnswer(f"A {kind} takes no answer.")
    if given.get("type", kind) != kind:
        raise BadAnswer(f"This is a {kind}, not a {given['type']}.")
    raw = given.get(key)
    if raw is None or raw in ("", []):
        return {"type": kind, key: [] if ELEMENTS[kind].many else None}
    offered = options_of(element)
    if key == "selected_option":
        return {"type": kind, key: _offered_option(offered, raw)}
    if key == "selected_options":
        return {"type": kind, key: [_offered_option(offered, option) for option in raw]}
    if ELEMENTS[kind].many:
        return {"type": kind, key: [str(item) for item in raw]}
    if key == "selected_date_time":
        return {"type": kind, key: int(raw)}
    if key == "selected_date":
        try:
            raw = date.fromisoformat(str(raw)).isoformat()
        except ValueError:
            raise BadAnswer(f"{raw} is not a date.") from None
    return {"type": kind, key: str(raw)}


def _offered_option(offered: Sequence[Json], chosen: object) -> Json:
    value = chosen.get("value") if isinstance(chosen, dict) else chosen
    for option in offered:
        if option["value"] == value:
            return option
    raise BadAnswer(f"{value!r} is not one of the options.")


def submit_errors(blocks: Sequence[Json], values: Mapping[str, Mapping[str, Json]]) -> dict[str, str]:
    """Return what Slack's own client refuses before the app hears of it: block id to sentence."""
    errors: dict[str, str] = {}
    for block in blocks:
        if block["type"] != "input":
            continue
        element = block["element"]
        known = ELEMENTS[element["type"]]
        answer = values[block["block_id"]][element["action_id"]].get(str(known.state_key))
        if answer is None or answer == [] or (isinstance(answer, str) and not answer.strip()):
            if not block.get("optional"):
                errors[block["block_id"]] = "Please complete this required field."
            continue
        sentence = _unfit(element, answer)
        if sentence:
            errors[block["block_id"]] = sentence
    return errors


def _unfit(element: Json, answer: object) -> str | None:
    kind = element["type"]
    if kind == "plain_text_input":
        return _unfit_length(str(answer), element.get("min_length", 0), element.get("max_length", 3000))
    if kind == "number_input":
        return _unfit_number(str(answer), element)
    if kind == "email_text_input" and not re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", str(answer)):
        return "Enter a valid email address."
    if kind == "url_text_input" and not re.fullmatch(r"https?://\S+", str(answer)):
        return "Enter a valid URL."
    most = element.get("max_selected_items")
    if most is not None and isinstance(answer, list) and len(answer) > most:
        return f"Choose no more than {most}."
    return None


def _unfit_length(answer: str, low: int, high: int) -> str | None:
    if len(answer) < low:
        return f"Please use at least {low} characters."
    if len(answer) > high:
        return f"Please use at most {high} characters."
    return None


def _unfit_number(answer: str, element: Json) -> str | None:
    try:
        number = Decimal(answer)
    except InvalidOperation:
        return "Please enter a valid number."
    if not number.is_finite():
        return "Please enter a valid number."
    if not element["is_decimal_allowed"] and number != number.to_integral_value():
        return "Please enter a whole number."
    if "min_value" in element and number < Decimal(element["min_value"]):
        return f"Please enter a number that is at least {element['min_value']}."
    if "max_value" in element and number > Decimal(element["max_value"]):
        return f"Please enter a number that is at most {element['max_value']}."
    return None
