"""Does the sandbox refuse the blocks that Slack refuses, and say where?"""

from __future__ import annotations

from typing import Any

import pytest
from sandbox_app import actions, button, field, modal, plain

from bot.sandbox.answers import BadAnswer, fill_ids, initial_values, mrkdwn_of, read_answer, submit_errors
from bot.sandbox.blocks import Surface, check_blocks, check_view


def mrkdwn(text: str) -> dict[str, Any]:
    """Return a mrkdwn text object."""
    return {"type": "mrkdwn", "text": text}


def section(**parts: Any) -> dict[str, Any]:
    """Return a section."""
    return {"type": "section", **parts}


def option(value: str, text: str = "Text", **more: Any) -> dict[str, Any]:
    """Return an option."""
    return {"text": plain(text), "value": value, **more}


def confirm(**changes: Any) -> dict[str, Any]:
    """Return a confirm dialog."""
    parts = {"title": plain("t"), "text": plain("x"), "confirm": plain("y"), "deny": plain("n")}
    return {**parts, **changes}


def select(**more: Any) -> dict[str, Any]:
    """Return a select of two options."""
    return {"type": "static_select", "options": [option("a"), option("b")], **more}


def text_input(**more: Any) -> dict[str, Any]:
    """Return a text input."""
    return {"type": "plain_text_input", **more}


# Each row: what is limited, how to build it with n, the limit, where Slack points to.
MESSAGE_LIMITS: list[tuple[str, Any, int, str]] = [
    ("blocks of a message", lambda n: [{"type": "divider"}] * n, 50, "/blocks"),
    ("section text", lambda n: [section(text=mrkdwn("x" * n))], 3000, "/blocks/0/text/text"),
    ("section fields", lambda n: [section(fields=[mrkdwn("x")] * n)], 10, "/blocks/0/fields"),
    ("a field", lambda n: [section(fields=[mrkdwn("x" * n)])], 2000, "/blocks/0/fields/0/text"),
    ("header", lambda n: [{"type": "header", "text": plain("x" * n)}], 150, "/blocks/0/text/text"),
    ("block_id", lambda n: [{"type": "divider", "block_id": "x" * n}], 255, "/blocks/0/block_id"),
    ("action_id", lambda n: [actions(button("x" * n))], 255, "/blocks/0/elements/0/action_id"),
    ("button text", lambda n: [actions(button(text=plain("x" * n)))], 75, "/blocks/0/elements/0/text/text"),
    ("button value", lambda n: [actions(button(value="x" * n))], 2000, "/blocks/0/elements/0/value"),
    ("button url", lambda n: [actions(button(url="x" * n))], 3000, "/blocks/0/elements/0/url"),
    ("actions elements", lambda n: [actions(*(button(f"a{i}") for i in range(n)))], 25, "/blocks/0/elements"),
    ("context", lambda n: [{"type": "context", "elements": [mrkdwn("x")] * n}], 10, "/blocks/0/elements"),
    (
        "confirm title",
        lambda n: [actions(button(confirm=confirm(title=plain("x" * n))))],
        100,
        "/blocks/0/elements/0/confirm/title/text",
    ),
    (
        "confirm text",
        lambda n: [actions(button(confirm=confirm(text=plain("x" * n))))],
        300,
        "/blocks/0/elements/0/confirm/text/text",
    ),
    (
        "confirm button",
        lambda n: [actions(button(confirm=confirm(deny=plain("x" * n))))],
        30,
        "/blocks/0/elements/0/confirm/deny/text",
    ),
    (
        "option text",
        lambda n: [actions({**select(options=[option("a", "x" * n)]), "action_id": "s"})],
        75,
        "/blocks/0/elements/0/options/0/text/text",
    ),
    (
        "option value",
        lambda n: [actions({**select(options=[option("x" * n)]), "action_id": "s"})],
        150,
        "/blocks/0/elements/0/options/0/value",
    ),
    (
        "options of a select",
        lambda n: [actions({**select(options=[option(f"v{i}") for i in range(n)]), "action_id": "s"})],
        100,
        "/blocks/0/elements/0/options",
    ),
]

MODAL_LIMITS: list[tuple[str, Any, int, str]] = [
    ("blocks of a modal", lambda n: modal(*([{"type": "divider"}] * n)), 100, "/view/blocks"),
    ("title", lambda n: modal(title=plain("x" * n)), 24, "/view/title/text"),
    ("submit", lambda n: modal(submit=plain("x" * n)), 24, "/view/submit/text"),
    ("close", lambda n: modal(close=plain("x" * n)), 24, "/view/close/text"),
    ("private_metadata", lambda n: modal(private_metadata="x" * n), 3000, "/view/private_metadata"),
    ("callback_id", lambda n: modal(callback_id="x" * n), 255, "/view/callback_id"),
    (
        "initial text",
        lambda n: modal(field("a", text_input(initial_value="x" * n))),
        3000,
        "/view/blocks/0/element/initial_value",
    ),
    ("placeholder", lambda n: modal(field("a", text_input(placeholder=plain("x" * n)))), 150, "/view/blocks/0"),
    ("max_length", lambda n: modal(field("a", text_input(max_length=n))), 3000, "/view/blocks/0/element/max_length"),
    ("label", lambda n: modal(field("a", label=plain("x" * n))), 2000, "/view/blocks/0/label/text"),
    ("hint", lambda n: modal(field("a", hint=plain("x" * n))), 2000, "/view/blocks/0/hint/text"),
]


@pytest.mark.parametrize(
    ("make", "limit", "where"), [row[1:] for row in MESSAGE_LIMITS], ids=[r[0] for r in MESSAGE_LIMITS]
)
def test_limits_of_messages(make: Any, limit: int, where: str) -> None:
    """Exactly the limit is accepted; one more is refused with a pointer to the place."""
    assert check_blocks(make(limit), Surface.MESSAGE) == []
    errors = check_blocks(make(limit + 1), Surface.MESSAGE)
    assert len(errors) == 1
    assert errors[0].endswith(f"[json-pointer:{where}]")
    assert str(limit) in errors[0] or str(limit + 1) in errors[0]


@pytest.mark.parametrize(
    ("make", "limit", "where"), [row[1:] for row in MODAL_LIMITS], ids=[r[0] for r in MODAL_LIMITS]
)
def test_limits_of_modals(make: Any, limit: int, where: str) -> None:
    """The same for modals, with pointers below /view."""
    assert check_view(make(limit), Surface.MODAL) == []
    errors = check_view(make(limit + 1), Surface.MODAL)
    assert len(errors) == 1
    assert f"[json-pointer:{where}" in errors[0]


WRONG: list[tuple[str, list[Any], str]] = [
    ("unknown block", [{"type": "carousel"}], "unsupported type: carousel [json-pointer:/blocks/0/type]"),
    ("no type", [{}], "unsupported type: None"),
    ("unknown element", [actions({"type": "slider", "action_id": "s"})], "unsupported type: slider"),
    ("text input among buttons", [actions(text_input(action_id="t"))], "unsupported type: plain_text_input"),
    ("unknown field", [section(text=mrkdwn("x"), colour="red")], "invalid additional property: colour"),
    ("empty section", [section()], "must define either `text` or `fields`"),
    ("empty text", [section(text=mrkdwn(""))], "must be more than 0 characters"),
    ("mrkdwn header", [{"type": "header", "text": mrkdwn("x")}], "must be one of: plain_text"),
    ("mrkdwn button", [actions(button(text=mrkdwn("x")))], "must be one of: plain_text"),
    ("a string for a text", [section(text="x")], "must be a text object"),
    ("no button text", [actions({"type": "button", "action_id": "a"})], "missing required field: text"),
    ("no elements", [actions()], "no fewer than 1 items allowed"),
    ("input in a message", [field("a")], "unsupported type: input"),
    ("wrong style", [actions(button(style="loud"))], "must be one of: primary, danger"),
    ("two equal block ids", [actions(button()), actions(button())], "`block_id` is already used"),
    ("two equal action ids", [actions(button(), button())], "`action_id` is already used"),
    ("half a confirm", [actions(button(confirm={"title": plain("x")}))], "missing required field: text"),
    (
        "an initial option from elsewhere",
        [actions({**select(initial_option=option("z")), "action_id": "s"})],
        "must exactly match one of the provided options",
    ),
    ("two equal options", [actions({**select(options=[option("a"), option("a")]), "action_id": "s"})], "unique"),
    ("no options", [actions({"type": "static_select", "action_id": "s"})], "exactly one of: options, option_groups"),
    ("image without words", [{"type": "image", "image_url": "https://x"}], "missing required field: alt_text"),
    ("unknown rich text", [{"type": "rich_text", "elements": [{"type": "poem"}]}], "unsupported type: poem"),
]


@pytest.mark.parametrize(("blocks", "sentence"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_wrong_blocks(blocks: list[Any], sentence: str) -> None:
    """What Slack refuses is refused with its sentence."""
    assert any(sentence in error for error in check_blocks(blocks, Surface.MESSAGE))


def test_every_error_is_reported() -> None:
    """Two mistakes give two sentences, so that they can be mended in one go."""
    errors = check_blocks([section(text=mrkdwn("")), {"type": "header", "text": plain("x" * 151)}], Surface.MESSAGE)
    assert len(errors) == 2


def test_good_blocks_pass() -> None:
    """Everything that the bot draws passes: text, fields, menus, images, rich text, markdown."""
    rich = {
        "type": "rich_text",
        "elements": [
            {
                "type": "rich_text_section",
                "elements": [
                    {"type": "text", "text": "typed by a person", "style": {"bold": True}},
                    {"type": "link", "url": "https://example.test"},
                    {"type": "user", "user_id": "U1"},
                ],
            },
            {"type": "rich_text_preformatted", "elements": [{"type": "text", "text": "psql"}]},
        ],
    }
    blocks = [
        {"type": "header", "text": plain("Head")},
        section(text=mrkdwn("*x*"), fields=[plain("a"), mrkdwn("b")], accessory=button("acc")),
        {"type": "context", "elements": [mrkdwn("c"), {"type": "image", "image_url": "https://x", "alt_text": "y"}]},
        actions(
            button(style="danger", confirm=confirm()),
            {"type": "overflow", "action_id": "o", "options": [option("1")]},
            {"type": "datepicker", "action_id": "d", "initial_date": "2026-03-01"},
            {"type": "users_select", "action_id": "u"},
        ),
        rich,
        {"type": "markdown", "text": "**x**"},
        {"type": "divider"},
    ]
    assert check_blocks(blocks, Surface.MESSAGE) == []


def test_a_modal_with_inputs_needs_submit() -> None:
    """Inputs without a submit button are refused."""
    view = modal()
    del view["submit"]
    assert "must have `submit`" in check_view(view, Surface.MODAL)[0]


def test_a_modal_needs_title_and_blocks() -> None:
    """Slack names each missing part of the view."""
    errors = check_view({"type": "modal", "title": None}, Surface.MODAL)
    assert any("missing required field: title [json-pointer:/view]" in error for error in errors)
    assert any("missing required field: blocks [json-pointer:/view]" in error for error in errors)


def test_one_focus_only() -> None:
    """Two inputs that both want the cursor are refused."""
    view = modal(field("a", text_input(focus_on_load=True)), field("b", text_input(focus_on_load=True)))
    assert "only one element may have focus_on_load" in check_view(view, Surface.MODAL)[0]


def test_mentions_are_read_in_markup_only() -> None:
    """Mrkdwn, markdown and rich text can mention; plain text and confirm dialogs cannot."""
    blocks = [
        section(text=plain("<!channel>")),
        section(text=mrkdwn("<@U1>")),
        actions(button(text=plain("<!here>"), confirm=confirm(text=mrkdwn("<!everyone>")))),
        {
            "type": "rich_text",
            "elements": [
                {
                    "type": "rich_text_section",
                    "elements": [{"type": "usergroup", "usergroup_id": "S1"}, {"type": "text", "text": "<!channel>"}],
                }
            ],
        },
    ]
    assert sorted(mrkdwn_of(blocks)) == ["<!subteam^S1>", "<@U1>"]


ELEMENTS: list[tuple[dict[str, Any], str, Any]] = [
    (text_input(), "value", None),
    (text_input(initial_value="x"), "value", "x"),
    ({"type": "number_input", "is_decimal_allowed": False, "initial_value": "5"}, "value", "5"),
    (select(), "selected_option", None),
    (select(initial_option=option("b")), "selected_option", option("b")),
    ({"type": "multi_static_select", "options": [option("a")]}, "selected_options", []),
    (
        {"type": "radio_buttons", "options": [option("a")], "initial_option": option("a")},
        "selected_option",
        option("a"),
    ),
    ({"type": "checkboxes", "options": [option("a")]}, "selected_options", []),
    ({"type": "users_select", "initial_user": "U1"}, "selected_user", "U1"),
    ({"type": "datepicker"}, "selected_date", None),
    ({"type": "datepicker", "initial_date": "2026-03-01"}, "selected_date", "2026-03-01"),
    ({"type": "timepicker", "initial_time": "09:30"}, "selected_time", "09:30"),
]


@pytest.mark.parametrize(("element", "key", "initial"), ELEMENTS)
def test_state_begins_with_initial_values(element: dict[str, Any], key: str, initial: Any) -> None:
    """Every input is in the state from the start: its initial value, or null."""
    blocks = fill_ids([field("b", element)])
    assert check_view(modal(*blocks), Surface.MODAL) == []
    assert initial_values(blocks) == {"b": {"b": {"type": element["type"], key: initial}}}


def test_answers_must_be_possible() -> None:
    """An option that was not offered, a date that is none and another element's answer are refused."""
    with pytest.raises(BadAnswer):
        read_answer(select(), {"type": "static_select", "selected_option": {"value": "z"}})
    with pytest.raises(BadAnswer):
        read_answer({"type": "datepicker"}, {"type": "datepicker", "selected_date": "2026-02-30"})
    with pytest.raises(BadAnswer):
        read_answer(select(), {"type": "plain_text_input", "value": "a"})
    with pytest.raises(BadAnswer):
        read_answer(button(), {"type": "button", "value": "a"})


def test_an_answer_carries_the_offered_option() -> None:
    """The option comes from the element, not from the client: its label cannot be forged."""
    forged = {"type": "static_select", "selected_option": {"value": "a", "text": plain("forged")}}
    assert read_answer(select(), forged)["selected_option"] == option("a")


@pytest.mark.parametrize(
    ("element", "answer", "sentence"),
    [
        (text_input(), "  ", "Please complete this required field."),
        (text_input(min_length=5), "abc", "Please use at least 5 characters."),
        (text_input(max_length=2), "abc", "Please use at most 2 characters."),
        ({"type": "number_input", "is_decimal_allowed": False}, "1.5", "Please enter a whole number."),
        ({"type": "number_input", "is_decimal_allowed": True}, "NaN", "Please enter a valid number."),
        ({"type": "number_input", "is_decimal_allowed": False, "max_value": "9"}, "10", "at most 9"),
        ({"type": "number_input", "is_decimal_allowed": False, "min_value": "1"}, "0", "at least 1"),
        ({"type": "email_text_input"}, "nobody", "Enter a valid email address."),
        ({"type": "url_text_input"}, "javascript:x", "Enter a valid URL."),
    ],
)
def test_the_client_refuses_before_the_app_hears(element: dict[str, Any], answer: str, sentence: str) -> None:
    """Slack's own client catches empty, too long, too short and unreadable input."""
    blocks = fill_ids([field("b", element)])
    values = {"b": {"b": read_answer({**element}, {"type": element["type"], "value": answer})}}
    assert sentence in submit_errors(blocks, values)["b"]
    assert submit_errors(fill_ids([field("b", element, optional=True)]), initial_values(blocks)) == {}
