"""Would Slack accept these blocks, and what may a person answer in them?

Rules:
- One table per kind of thing (block, element, composition object); a limit stands in its row. Source of every number:
  Slack's Block Kit reference (https://docs.slack.dev/reference/block-kit).
- An error names the place as Slack does: a sentence and a JSON pointer, ``must be less than 76 characters
  [json-pointer:/blocks/0/elements/0/text/text]``. All errors are reported, not only the first.
- What the table does not know is refused: an unknown type, and an unknown field of a known type.
- Stricter than Slack in one place: an ``input`` block is accepted in modals only. In messages and on Home tabs Slack
  takes some of them, with rules of its own that this project does not need.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

Json = dict[str, Any]


class Surface(StrEnum):
    """Where blocks stand; the limits differ."""

    MESSAGE = "message"
    MODAL = "modal"
    HOME = "home"


@dataclass(slots=True)
class _Check:
    """One walk over one set of blocks; collects what is wrong."""

    surface: Surface
    errors: list[str] = field(default_factory=list)

    def bad(self, sentence: str, pointer: str) -> None:
        self.errors.append(f"{sentence} [json-pointer:{pointer}]")


Rule = Callable[[_Check, object, str], None]


# --- Plain values -------------------------------------------------------------------------------------------------


def _string(limit: int, *, least: int = 1) -> Rule:
    def rule(check: _Check, value: object, at: str) -> None:
        if not isinstance(value, str):
            check.bad("must be a string", at)
        elif len(value) > limit:
            check.bad(f"must be less than {limit + 1} characters", at)
        elif len(value) < least:
            check.bad(f"must be more than {least - 1} characters", at)

    return rule


def _word(*allowed: str) -> Rule:
    def rule(check: _Check, value: object, at: str) -> None:
        if value not in allowed:
            check.bad(f"must be one of: {', '.join(allowed)}", at)

    return rule


def _matching(pattern: str, words: str) -> Rule:
    compiled = re.compile(pattern)

    def rule(check: _Check, value: object, at: str) -> None:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            check.bad(f"must be {words}", at)

    return rule


def _boolean(check: _Check, value: object, at: str) -> None:
    if not isinstance(value, bool):
        check.bad("must be a boolean", at)


def _whole(low: int, high: int) -> Rule:
    def rule(check: _Check, value: object, at: str) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            check.bad(f"must be a whole number from {low} to {high}", at)

    return rule


def _anything(_check: _Check, _value: object, _at: str) -> None:
    return


# --- Objects and lists --------------------------------------------------------------------------------------------


def _object(fields: Mapping[str, Rule], required: Sequence[str] = (), then: Rule = _anything) -> Rule:
    """Require a JSON object with exactly these fields; ``then`` looks at the whole once its parts are right."""

    def rule(check: _Check, value: object, at: str) -> None:
        if not isinstance(value, dict):
            check.bad("must be an object", at)
            return
        before = len(check.errors)
        for name in required:
            if value.get(name) is None:
                check.bad(f"missing required field: {name}", at)
        for name, part in value.items():
            if name not in fields:
                check.bad(f"invalid additional property: {name}", at)
            elif part is not None:
                fields[name](check, part, f"{at}/{name}")
        if len(check.errors) == before:
            then(check, value, at)

    return rule


def _list(each: Rule, most: int, *, least: int = 1) -> Rule:
    def rule(check: _Check, value: object, at: str) -> None:
        if not isinstance(value, list):
            check.bad("must be an array", at)
            return
        if len(value) > most:
            check.bad(f"no more than {most} items allowed", at)
        if len(value) < least:
            check.bad(f"no fewer than {least} items allowed", at)
        for index, part in enumerate(value):
            each(check, part, f"{at}/{index}")

    return rule


# --- Composition objects ------------------------------------------------------------------------------------------


def _text(limit: int, *kinds: str) -> Rule:
    """Require a text object; ``kinds`` are the allowed types."""
    plain = _object({"type": _anything, "text": _string(limit), "emoji": _boolean}, required=("text",))
    mrkdwn = _object({"type": _anything, "text": _string(limit), "verbatim": _boolean}, required=("text",))

    def rule(check: _Check, value: object, at: str) -> None:
        if not isinstance(value, dict):
            check.bad("must be a text object", at)
        elif value.get("type") not in kinds:
            check.bad(f"must be one of: {', '.join(kinds)}", f"{at}/type")
        elif value["type"] == "plain_text":
            plain(check, value, at)
        else:
            mrkdwn(check, value, at)

    return rule


def _plain(limit: int) -> Rule:
    return _text(limit, "plain_text")


def _any_text(limit: int) -> Rule:
    return _text(limit, "plain_text", "mrkdwn")


_CONFIRM: Final = _object(
    {
        "title": _plain(100),
        "text": _any_text(300),
        "confirm": _plain(30),
        "deny": _plain(30),
        "style": _word("primary", "danger"),
    },
    required=("title", "text", "confirm", "deny"),
)


def _option(text: Rule) -> Rule:
    return _object(
        {"text": text, "value": _string(150), "description": _any_text(75), "url": _string(3000)},
        required=("text", "value"),
    )


_PLAIN_OPTION: Final = _option(_plain(75))
_RICH_OPTION: Final = _option(_any_text(75))
_DISPATCH: Final = _object({"trigger_actions_on": _list(_word("on_enter_pressed", "on_character_entered"), 2)})
_ACTION_ID: Final = _string(255)
_DATE: Final = _matching(r"\d{4}-\d{2}-\d{2}", "a date as YYYY-MM-DD")
_TIME: Final = _matching(r"([01]\d|2[0-3]):[0-5]\d", "a time as HH:mm")
_NUMBER: Final = _matching(r"-?\d+(\.\d+)?", "a number in a string")


def _initial_is_offered(check: _Check, value: object, at: str) -> None:
    """Require options or groups, and that an initial option is one of them, word for word."""
    assert isinstance(value, dict)  # noqa: S101 - _object has looked
    if ("options" in value) == ("option_groups" in value):
        check.bad("must define exactly one of: options, option_groups", at)
        return
    offered = options_of(value)
    seen = [option["value"] for option in offered]
    if len(set(seen)) != len(seen):
        check.bad("option values must be unique", at)
    chosen = value.get("initial_options") or []
    if value.get("initial_option"):
        chosen = [value["initial_option"]]
    for option in chosen:
        if option not in offered:
            check.bad("must exactly match one of the provided options", f"{at}/initial_option")


def _lengths_agree(check: _Check, value: object, at: str) -> None:
    assert isinstance(value, dict)  # noqa: S101
    low, high = value.get("min_length", 0), value.get("max_length", 3000)
    if low > high:
        check.bad("min_length must not exceed max_length", at)
    if len(value.get("initial_value", "")) > high:
        check.bad(f"must be less than {high + 1} characters", f"{at}/initial_value")


# --- Elements -----------------------------------------------------------------------------------------------------

SECTION, ACTIONS, INPUT, CONTEXT = "section", "actions", "input", "context"


@dataclass(frozen=True, slots=True)
class Element:
    """Where an element may stand, what it consists of, and how its answer is written in a view's state."""

    where: frozenset[str]
    rule: Rule
    state_key: str | None = None
    initial_key: str | None = None
    many: bool = False


def _element(
    where: str,
    fields: Mapping[str, Rule],
    *,
    required: Sequence[str] = (),
    then: Rule = _anything,
    state: str | None = None,
    initial: str | None = None,
    many: bool = False,
) -> Element:
    every: dict[str, Rule] = {"type": _anything, "action_id": _ACTION_ID, **fields}
    return Element(frozenset(where.split()), _object(every, required, then), state, initial, many)


_COMMON: Final[dict[str, Rule]] = {"placeholder": _plain(150), "focus_on_load": _boolean, "confirm": _CONFIRM}
_TYPED: Final[dict[str, Rule]] = {
    "placeholder": _plain(150),
    "focus_on_load": _boolean,
    "dispatch_action_config": _DISPATCH,
}
_GROUPS: Final = _list(
    _object({"label": _plain(75), "options": _list(_PLAIN_OPTION, 100)}, required=("label", "options")), 100
)
_SELECT: Final[dict[str, Rule]] = {**_COMMON, "options": _list(_PLAIN_OPTION, 100), "option_groups": _GROUPS}
_MOST: Final = _whole(1, 100)
_ID: Final = _string(255)
_IDS: Final = _list(_ID, 100)

ELEMENTS: Final[dict[str, Element]] = {
    "button": _element(
        "section actions",
        {
            "text": _plain(75),
            "value": _string(2000, least=0),
            "url": _string(3000),
            "style": _word("primary", "danger"),
            "confirm": _CONFIRM,
            "accessibility_label": _string(75),
        },
        required=("text",),
    ),
    "overflow": _element(
        "section actions", {"options": _list(_PLAIN_OPTION, 5), "confirm": _CONFIRM}, required=("options",)
    ),
    "static_select": _element(
        "section actions input",
        {**_SELECT, "initial_option": _PLAIN_OPTION},
        then=_initial_is_offered,
        state="selected_option",
        initial="initial_option",
    ),
    "multi_static_select": _element(
        "section input",
        {**_SELECT, "initial_options": _list(_PLAIN_OPTION, 100), "max_selected_items": _MOST},
        then=_initial_is_offered,
        state="selected_options",
        initial="initial_options",
        many=True,
    ),
    "users_select": _element(
        "section actions input", {**_COMMON, "initial_user": _ID}, state="selected_user", initial="initial_user"
    ),
    "multi_users_select": _element(
        "section input",
        {**_COMMON, "initial_users": _IDS, "max_selected_items": _MOST},
        state="selected_users",
        initial="initial_users",
        many=True,
    ),
    "channels_select": _element(
        "section actions input",
        {**_COMMON, "initial_channel": _ID, "response_url_enabled": _boolean},
        state="selected_channel",
        initial="initial_channel",
    ),
    "radio_buttons": _element(
        "section actions input",
        {
            "options": _list(_RICH_OPTION, 10),
            "initial_option": _RICH_OPTION,
            "confirm": _CONFIRM,
            "focus_on_load": _boolean,
        },
        required=("options",),
        then=_initial_is_offered,
        state="selected_option",
        initial="initial_option",
    ),
    "checkboxes": _element(
        "section actions input",
        {
            "options": _list(_RICH_OPTION, 10),
            "initial_options": _list(_RICH_OPTION, 10),
            "confirm": _CONFIRM,
            "focus_on_load": _boolean,
        },
        required=("options",),
        then=_initial_is_offered,
        state="selected_options",
        initial="initial_options",
        many=True,
    ),
    "datepicker": _element(
        "section actions input", {**_COMMON, "initial_date": _DATE}, state="selected_date", initial="initial_date"
    ),
    "timepicker": _element(
        "section actions input",
        {**_COMMON, "initial_time": _TIME, "timezone": _string(100)},
        state="selected_time",
        initial="initial_time",
    ),
    "datetimepicker": _element(
        "actions input",
        {"confirm": _CONFIRM, "focus_on_load": _boolean, "initial_date_time": _whole(1_000_000_000, 9_999_999_999)},
        state="selected_date_time",
        initial="initial_date_time",
    ),
    "plain_text_input": _element(
        "input",
        {
            **_TYPED,
            "initial_value": _string(3000, least=0),
            "multiline": _boolean,
            "min_length": _whole(0, 3000),
            "max_length": _whole(1, 3000),
        },
        then=_lengths_agree,
        state="value",
        initial="initial_value",
    ),
    "number_input": _element(
        "input",
        {
            **_TYPED,
            "is_decimal_allowed": _boolean,
            "initial_value": _NUMBER,
            "min_value": _NUMBER,
            "max_value": _NUMBER,
        },
        required=("is_decimal_allowed",),
        state="value",
        initial="initial_value",
    ),
    "email_text_input": _element(
        "input", {**_TYPED, "initial_value": _string(3000)}, state="value", initial="initial_value"
    ),
    "url_text_input": _element(
        "input", {**_TYPED, "initial_value": _string(3000)}, state="value", initial="initial_value"
    ),
}

_IMAGE_ELEMENT: Final = _object(
    {"type": _anything, "image_url": _string(3000), "alt_text": _string(2000)}, required=("image_url", "alt_text")
)


def _element_in(place: str) -> Rule:
    def rule(check: _Check, value: object, at: str) -> None:
        kind = value.get("type") if isinstance(value, dict) else None
        if kind == "image" and place in {SECTION, CONTEXT}:
            _IMAGE_ELEMENT(check, value, at)
        elif kind not in ELEMENTS or place not in ELEMENTS[kind].where:
            check.bad(f"unsupported type: {kind}", f"{at}/type")
        else:
            ELEMENTS[kind].rule(check, value, at)

    return rule


def _context_part(check: _Check, value: object, at: str) -> None:
    if isinstance(value, dict) and value.get("type") == "image":
        _IMAGE_ELEMENT(check, value, at)
    else:
        _any_text(3000)(check, value, at)


# --- Rich text ----------------------------------------------------------------------------------------------------

_STYLE: Final = _object(
    dict.fromkeys(
        ("bold", "italic", "strike", "underline", "code", "highlight", "client_highlight", "unlink"), _boolean
    )
)
_INLINE: Final[dict[str, Rule]] = {
    "text": _object({"type": _anything, "text": _string(12_000), "style": _STYLE}, required=("text",)),
    "link": _object(
        {"type": _anything, "url": _string(3000), "text": _string(3000, least=0), "style": _STYLE, "unsafe": _boolean},
        required=("url",),
    ),
    "user": _object({"type": _anything, "user_id": _ID, "style": _STYLE}, required=("user_id",)),
    "usergroup": _object({"type": _anything, "usergroup_id": _ID, "style": _STYLE}, required=("usergroup_id",)),
    "channel": _object({"type": _anything, "channel_id": _ID, "style": _STYLE}, required=("channel_id",)),
    "emoji": _object(
        {"type": _anything, "name": _ID, "unicode": _anything, "style": _STYLE, "skin_tone": _anything},
        required=("name",),
    ),
    "broadcast": _object(
        {"type": _anything, "range": _word("here", "channel", "everyone"), "style": _STYLE}, required=("range",)
    ),
    "date": _object(
        {
            "type": _anything,
            "timestamp": _whole(0, 9_999_999_999),
            "format": _string(255),
            "url": _string(3000),
            "fallback": _string(3000),
            "style": _STYLE,
        },
        required=("timestamp", "format"),
    ),
    "color": _object({"type": _anything, "value": _ID}, required=("value",)),
}


def _typed(kinds: Mapping[str, Rule]) -> Rule:
    """Choose the rule by the ``type`` field."""

    def rule(check: _Check, value: object, at: str) -> None:
        kind = value.get("type") if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind not in kinds:
            check.bad(f"unsupported type: {kind}", f"{at}/type")
        else:
            kinds[kind](check, value, at)

    return rule


_INLINES: Final = _list(_typed(_INLINE), 1000, least=0)
_RICH_SECTION: Final = _object({"type": _anything, "elements": _INLINES}, required=("elements",))
_RICH_BORDERED: Final = _object(
    {"type": _anything, "elements": _INLINES, "border": _whole(0, 1), "language": _ID}, required=("elements",)
)
_RICH_LIST: Final = _object(
    {
        "type": _anything,
        "style": _word("bullet", "ordered"),
        "elements": _list(_typed({"rich_text_section": _RICH_SECTION}), 1000),
        "indent": _whole(0, 8),
        "offset": _whole(0, 1000),
        "border": _whole(0, 1),
    },
    required=("style", "elements"),
)
_RICH: Final = _list(
    _typed(
        {
            "rich_text_section": _RICH_SECTION,
            "rich_text_list": _RICH_LIST,
            "rich_text_preformatted": _RICH_BORDERED,
            "rich_text_quote": _RICH_BORDERED,
        }
    ),
    1000,
)

# --- Blocks -------------------------------------------------------------------------------------------------------


def _says_something(check: _Check, value: object, at: str) -> None:
    assert isinstance(value, dict)  # noqa: S101
    if not value.get("text") and not value.get("fields"):
        check.bad("must define either `text` or `fields`", at)


def _block(fields: Mapping[str, Rule], required: Sequence[str] = (), then: Rule = _anything) -> Rule:
    return _object({"type": _anything, "block_id": _string(255), **fields}, required, then)


_BLOCKS: Final[dict[str, Rule]] = {
    "section": _block(
        {
            "text": _any_text(3000),
            "fields": _list(_any_text(2000), 10),
            "accessory": _element_in(SECTION),
            "expand": _boolean,
        },
        then=_says_something,
    ),
    "header": _block({"text": _plain(150)}, required=("text",)),
    "divider": _block({}),
    "context": _block({"elements": _list(_context_part, 10)}, required=("elements",)),
    "actions": _block({"elements": _list(_element_in(ACTIONS), 25)}, required=("elements",)),
    "image": _block(
        {"image_url": _string(3000), "alt_text": _string(2000), "title": _plain(2000)},
        required=("image_url", "alt_text"),
    ),
    "rich_text": _block({"elements": _RICH}, required=("elements",)),
    "markdown": _block({"text": _string(12_000)}, required=("text",)),
    "input": _block(
        {
            "label": _plain(2000),
            "element": _element_in(INPUT),
            "hint": _plain(2000),
            "optional": _boolean,
            "dispatch_action": _boolean,
        },
        required=("label", "element"),
    ),
}

#: Blocks per surface: 50 in a message, 100 in a modal or Home tab.
_MOST_BLOCKS: Final = {Surface.MESSAGE: 50, Surface.MODAL: 100, Surface.HOME: 100}


def _one_block(check: _Check, value: object, at: str) -> None:
    kind = value.get("type") if isinstance(value, dict) else None
    misplaced = (kind == "input" and check.surface is not Surface.MODAL) or (
        kind == "markdown" and check.surface is not Surface.MESSAGE
    )
    if not isinstance(kind, str) or kind not in _BLOCKS or misplaced:
        check.bad(f"unsupported type: {kind}", f"{at}/type")
    else:
        _BLOCKS[kind](check, value, at)


def _ids_are_unique(check: _Check, blocks: Sequence[Json], at: str) -> None:
    seen: set[str] = set()
    focused = 0
    for index, block in enumerate(blocks):
        block_id = block.get("block_id")
        if block_id is not None and block_id in seen:
            check.bad("`block_id` is already used by another block", f"{at}/{index}/block_id")
        seen.add(str(block_id))
        actions: set[str] = set()
        for element in elements_of(block):
            focused += bool(element.get("focus_on_load"))
            action_id = element.get("action_id")
            if action_id is not None and action_id in actions:
                check.bad("`action_id` is already used in this block", f"{at}/{index}")
            actions.add(str(action_id))
    if focused > 1:
        check.bad("only one element may have focus_on_load", at)


def check_blocks(blocks: object, surface: Surface, *, at: str = "/blocks") -> list[str]:
    """Return what Slack would object to, as sentences with JSON pointers; an empty list when nothing is wrong."""
    check = _Check(surface)
    _list(_one_block, _MOST_BLOCKS[surface], least=0)(check, blocks, at)
    if not check.errors and isinstance(blocks, list):
        _ids_are_unique(check, blocks, at)
    return check.errors


def _inputs_have_submit(check: _Check, value: object, at: str) -> None:
    assert isinstance(value, dict)  # noqa: S101
    if any(block.get("type") == "input" for block in value["blocks"]) and not value.get("submit"):
        check.bad("a view with input blocks must have `submit`", at)


_VIEW_COMMON: Final[dict[str, Rule]] = {
    "type": _anything,
    "blocks": _anything,
    "private_metadata": _string(3000, least=0),
    "callback_id": _string(255, least=0),
    "external_id": _string(255, least=0),
}
_MODAL: Final = _object(
    {
        **_VIEW_COMMON,
        "title": _plain(24),
        "submit": _plain(24),
        "close": _plain(24),
        "clear_on_close": _boolean,
        "notify_on_close": _boolean,
        "submit_disabled": _boolean,
    },
    required=("type", "title", "blocks"),
    then=_inputs_have_submit,
)
_HOME: Final = _object(
    {**_VIEW_COMMON, "clear_on_close": _boolean, "notify_on_close": _boolean}, required=("type", "blocks")
)


def check_view(view: Json, surface: Surface) -> list[str]:
    """Return what Slack would object to in a whole view (modal or Home tab); pointers begin with ``/view``."""
    check = _Check(surface)
    if view.get("type") != surface.value:
        check.bad(f"must be `{surface.value}`", "/view/type")
        return check.errors
    errors = check_blocks(view.get("blocks", []), surface, at="/view/blocks")
    if errors:
        check.errors += errors
    (_MODAL if surface is Surface.MODAL else _HOME)(check, view, "/view")
    return check.errors


# --- Reading blocks -----------------------------------------------------------------------------------------------


def elements_of(block: Json) -> list[Json]:
    """Return the elements of one block that a person can touch (buttons, selects, inputs)."""
    kind = block.get("type")
    if kind == "actions":
        return list(block.get("elements", []))
    if kind == "input":
        return [block["element"]] if isinstance(block.get("element"), dict) else []
    accessory = block.get("accessory")
    return [accessory] if kind == "section" and isinstance(accessory, dict) and accessory["type"] != "image" else []


def options_of(element: Json) -> list[Json]:
    """Return all options of an element, out of their groups."""
    grouped = [option for group in element.get("option_groups") or [] for option in group["options"]]
    return list(element.get("options") or []) + grouped
