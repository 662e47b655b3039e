"""Can people in the sandbox do what Slack's client lets them, and nothing else? Forms, clicks, faults, the feed."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from sandbox_app import (
    INC,
    SECRET,
    Clock,
    actions,
    button,
    client_of,
    field,
    listening,
    manifest,
    modal,
    plain,
    sandbox_of,
    serving,
)
from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError
from websockets.sync.client import connect

from bot.sandbox.driver import Driver, NotPossible, wait_for
from bot.sandbox.journal import Journal
from bot.sandbox.server import Sandbox, SandboxError
from bot.sandbox.workspace import BOT_USER, WorkspaceSeed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandbox_app import Listener

OPTIONS = [{"text": plain("Read"), "value": "read"}, {"text": plain("Write"), "value": "write"}]
CONFIRM = {"title": plain("Sure?"), "text": plain("Really?"), "confirm": plain("Yes"), "deny": plain("No")}


@pytest.fixture
def clock() -> Clock:
    """Time by hand."""
    return Clock()


@pytest.fixture
def ack_seconds() -> float:
    """Slack's patience; the test of silence has less, so that it is quick."""
    return 3.0


@pytest.fixture
def sandbox(clock: Clock, ack_seconds: float) -> Iterator[Sandbox]:
    """A workspace without rate limits whose time stands still."""
    with serving(clock=clock, ack_seconds=ack_seconds) as running:
        yield running


@pytest.fixture
def client(sandbox: Sandbox) -> WebClient:
    """The bot's real client."""
    return client_of(sandbox)


@pytest.fixture
def driver(sandbox: Sandbox) -> Driver:
    """The people."""
    return Driver(sandbox.url)


@pytest.fixture
def listener(sandbox: Sandbox) -> Iterator[Listener]:
    """The app, connected."""
    with listening(sandbox) as connected:
        yield connected


def trigger(driver: Driver, listener: Listener, user: str = "U0RITA") -> str:
    """Let somebody type the command and return its trigger id."""
    driver.as_(user).command("/breakglass", INC)
    return str(listener.payloads("slash_commands")[-1]["trigger_id"])


def error(call: Any, **arguments: Any) -> str:
    """Return the error word of Slack's refusal."""
    with pytest.raises(SlackApiError) as caught:
        call(**arguments)
    return str(caught.value.response["error"])


# --- Triggers and views -------------------------------------------------------------------------------------------


def test_a_trigger_lives_three_seconds(client: WebClient, driver: Driver, listener: Listener, clock: Clock) -> None:
    """At three seconds it still works; after them it is expired."""
    in_time, too_late = trigger(driver, listener), trigger(driver, listener)
    clock.now += 3
    client.views_open(trigger_id=in_time, view=modal())
    clock.now += 0.001
    assert error(client.views_open, trigger_id=too_late, view=modal()) == "expired_trigger_id"
    assert error(client.views_open, trigger_id="1.2.3", view=modal()) == "invalid_trigger_id"
    assert error(client.views_open, trigger_id="", view=modal()) == "invalid_arguments"


def test_a_trigger_works_once(client: WebClient, driver: Driver, listener: Listener) -> None:
    """A second use is refused; a view that is refused does not use it up."""
    trigger_id = trigger(driver, listener)
    with pytest.raises(SlackApiError) as caught:
        client.views_open(trigger_id=trigger_id, view=modal(title=plain("x" * 25)))
    assert caught.value.response["error"] == "invalid_arguments"
    assert caught.value.response["response_metadata"]["messages"] == [
        "[ERROR] must be less than 25 characters [json-pointer:/view/title/text]"
    ]
    client.views_open(trigger_id=trigger_id, view=modal())
    assert error(client.views_open, trigger_id=trigger_id, view=modal()) == "exchanged_trigger_id"


def test_a_view_comes_back_complete(client: WebClient, driver: Driver, listener: Listener) -> None:
    """Id, hash, state, root and app are filled in as Slack does."""
    view = client.views_open(trigger_id=trigger(driver, listener), view=modal(private_metadata="BG-1"))["view"]
    assert view["id"] == view["root_view_id"]
    assert view["previous_view_id"] is None
    assert view["hash"]
    assert view["state"] == {"values": {"reason": {"reason": {"type": "plain_text_input", "value": None}}}}
    assert (view["team_id"], view["app_id"], view["bot_id"]) == ("T0TEST", "A0SANDBOX", "B0SANDBOX")
    assert view["private_metadata"] == "BG-1"
    assert driver.as_("U0RITA").view() == view


def test_three_modals_and_no_more(client: WebClient, driver: Driver, listener: Listener) -> None:
    """A push needs a click in a modal, and the fourth modal is refused."""
    rita = driver.as_("U0RITA")
    view = modal(actions(button()), field("reason"))
    client.views_open(trigger_id=trigger(driver, listener), view=view)
    assert error(client.views_push, trigger_id=trigger(driver, listener), view=view) == "not_found"
    for number in range(3):
        rita.click(rita.view() or {}, "go")
        payload = listener.payloads("block_actions")[-1]
        assert payload["container"] == {"type": "view", "view_id": payload["view"]["id"]}
        if number < 2:
            pushed = client.views_push(trigger_id=payload["trigger_id"], view=view)["view"]
            assert pushed["previous_view_id"] == payload["view"]["id"]
            assert pushed["root_view_id"] == rita.views()[0]["id"]
        else:
            assert error(client.views_push, trigger_id=payload["trigger_id"], view=view) == "push_limit_reached"
    assert len(rita.views()) == 3


def test_updates_race(client: WebClient, driver: Driver, listener: Listener) -> None:
    """An old hash is a conflict; a closed view is not found; without a hash the last one wins."""
    opened = client.views_open(trigger_id=trigger(driver, listener), view=modal())["view"]
    updated = client.views_update(view_id=opened["id"], hash=opened["hash"], view=modal())["view"]
    assert updated["hash"] != opened["hash"]
    assert error(client.views_update, view_id=opened["id"], hash=opened["hash"], view=modal()) == "hash_conflict"
    client.views_update(view_id=opened["id"], view=modal())
    driver.as_("U0RITA").close()
    assert error(client.views_update, view_id=opened["id"], view=modal()) == "not_found"
    assert error(client.views_update, view_id="V0NONE", view=modal()) == "not_found"


def test_external_ids_are_unique(client: WebClient, driver: Driver, listener: Listener) -> None:
    """A view can be found by its external id; a second view with it is refused."""
    client.views_open(trigger_id=trigger(driver, listener), view=modal(external_id="form-1"))
    client.views_update(external_id="form-1", view=modal(external_id="form-1", title=plain("Again")))
    assert (driver.as_("U0RITA").view() or {})["title"]["text"] == "Again"
    other = trigger(driver, listener, "U0CARL")
    assert error(client.views_open, trigger_id=other, view=modal(external_id="form-1")) == "duplicate_external_id"


def test_a_view_can_be_too_large(client: WebClient, driver: Driver, listener: Listener) -> None:
    """250 kB is the end."""
    blocks = [{"type": "section", "text": plain("x" * 2900)} for _ in range(90)]
    assert error(client.views_open, trigger_id=trigger(driver, listener), view=modal(*blocks)) == "view_too_large"


def test_what_was_typed_survives_an_update(client: WebClient, driver: Driver, listener: Listener) -> None:
    """With equal ids and type the entry stays; a select whose option is gone falls back."""
    rita = driver.as_("U0RITA")
    select = {"type": "static_select", "options": OPTIONS}
    opened = client.views_open(
        trigger_id=trigger(driver, listener), view=modal(field("reason"), field("level", select, dispatch_action=True))
    )["view"]
    form = rita.fill().enter({"reason": "it burns"})
    assert form.choose("level", "Write")["acknowledged"]
    payload = listener.payloads("block_actions")[-1]
    assert payload["actions"][0]["selected_option"] == OPTIONS[1]
    assert payload["view"]["state"]["values"]["reason"]["reason"]["value"] == "it burns"
    changed = modal(field("reason"), field("level", {**select, "options": OPTIONS[:1]}))
    values = client.views_update(view_id=opened["id"], view=changed)["view"]["state"]["values"]
    assert values["reason"]["reason"]["value"] == "it burns"
    assert values["level"]["level"]["selected_option"] is None


def test_home(client: WebClient, driver: Driver) -> None:
    """A Home tab is published for a person, updated with a hash, and needs the manifest."""
    view = {"type": "home", "blocks": [{"type": "section", "text": plain("yours")}]}
    published = client.views_publish(user_id="U0RITA", view=view)["view"]
    assert (driver.as_("U0RITA").home() or {})["id"] == published["id"]
    assert driver.as_("U0CARL").home() is None
    client.views_publish(user_id="U0RITA", view=view, hash=published["hash"])
    assert error(client.views_publish, user_id="U0RITA", view=view, hash=published["hash"]) == "hash_conflict"
    assert error(client.views_publish, user_id="U0NOBODY", view=view) == "user_not_found"
    assert error(client.views_publish, user_id="U0RITA", view=modal()) == "invalid_arguments"
    with sandbox_of(manifest(home=False)) as closed:
        assert error(client_of(closed).views_publish, user_id="U0RITA", view=view) == "not_enabled"


def test_buttons_on_home(client: WebClient, driver: Driver, listener: Listener) -> None:
    """A click on the Home tab carries the view and a trigger id that opens a modal."""
    rita = driver.as_("U0RITA")
    client.views_publish(user_id="U0RITA", view={"type": "home", "blocks": [actions(button())]})
    rita.click(rita.home() or {}, "go")
    payload = listener.payloads("block_actions")[0]
    assert payload["view"]["type"] == "home"
    client.views_open(trigger_id=payload["trigger_id"], view=modal())
    assert rita.view()


# --- Forms --------------------------------------------------------------------------------------------------------


def open_form(client: WebClient, driver: Driver, listener: Listener, *blocks: dict[str, Any], **more: Any) -> Any:
    """Open a form for Rita and return her driver."""
    client.views_open(trigger_id=trigger(driver, listener), view=modal(*blocks, **more))
    return driver.as_("U0RITA")


def test_plain_words_fill_every_kind_of_field(client: WebClient, driver: Driver, listener: Listener) -> None:
    """Options by value or label, lists, dates, numbers, people; what is untouched keeps its initial value."""
    rita = open_form(
        client,
        driver,
        listener,
        field("why"),
        field("kept", {"type": "plain_text_input", "initial_value": "from the command"}),
        field("level", {"type": "static_select", "options": OPTIONS}),
        field("verdict", {"type": "radio_buttons", "options": OPTIONS}),
        field("signs", {"type": "checkboxes", "options": OPTIONS}),
        field("minutes", {"type": "number_input", "is_decimal_allowed": False}),
        field("due", {"type": "datepicker"}),
        field("owner", {"type": "users_select"}),
        field("note", optional=True),
    )
    outcome = rita.submit(
        {
            "why": "checkout is down",
            "level": "Write",
            "verdict": "read",
            "signs": ["read", "Write"],
            "minutes": 15,
            "due": "2026-03-09",
            "owner": "U0CARL",
        }
    )
    assert outcome["result"] == "closed"
    payload = listener.payloads("view_submission")[0]
    assert payload["response_urls"] == []
    assert payload["user"]["id"] == "U0RITA"
    values = payload["view"]["state"]["values"]
    assert {block: next(iter(actions.values())) for block, actions in values.items()} == {
        "why": {"type": "plain_text_input", "value": "checkout is down"},
        "kept": {"type": "plain_text_input", "value": "from the command"},
        "level": {"type": "static_select", "selected_option": OPTIONS[1]},
        "verdict": {"type": "radio_buttons", "selected_option": OPTIONS[0]},
        "signs": {"type": "checkboxes", "selected_options": OPTIONS},
        "minutes": {"type": "number_input", "value": "15"},
        "due": {"type": "datepicker", "selected_date": "2026-03-09"},
        "owner": {"type": "users_select", "selected_user": "U0CARL"},
        "note": {"type": "plain_text_input", "value": None},
    }


def test_the_client_refuses_first(client: WebClient, driver: Driver, listener: Listener) -> None:
    """Empty and unfit fields are refused without a word to the app."""
    number = {"type": "number_input", "is_decimal_allowed": False, "max_value": "30"}
    rita = open_form(client, driver, listener, field("why"), field("minutes", number))
    outcome = rita.submit({"minutes": 31})
    assert outcome["by"] == "client"
    assert outcome["errors"] == {
        "why": "Please complete this required field.",
        "minutes": "Please enter a number that is at most 30.",
    }
    assert listener.payloads("view_submission") == []
    assert rita.view()


def test_answers_to_a_submission(client: WebClient, driver: Driver, listener: Listener) -> None:
    """Errors, update, push and clear do what they say; the form below comes back after a push is sent."""
    rita = open_form(client, driver, listener, field("why"))
    asked: list[dict[str, Any]] = []
    listener.answer = lambda request: asked[-1] if request.payload["type"] == "view_submission" else None

    asked.append({"response_action": "errors", "errors": {"why": "Say more."}})
    outcome = rita.submit({"why": "x"})
    assert (outcome["result"], outcome["errors"], outcome["by"]) == ("errors", {"why": "Say more."}, "app")
    asked.append({"response_action": "update", "view": modal(field("why"), title=plain("Second"))})
    assert rita.submit({"why": "x"})["view"]["title"]["text"] == "Second"
    asked.append({"response_action": "push", "view": modal(field("more"))})
    assert rita.submit({"why": "x"})["result"] == "pushed"
    assert len(rita.views()) == 2
    asked.append({})
    assert rita.submit({"more": "x"})["result"] == "closed"
    assert (rita.view() or {})["title"]["text"] == "Second"
    asked.append({"response_action": "clear"})
    assert rita.submit({"why": "x"})["result"] == "cleared"
    assert rita.views() == []


@pytest.mark.parametrize(
    "answer",
    [
        {"response_action": "errors", "errors": {"nowhere": "No such block."}},
        {"response_action": "errors", "errors": {}},
        {"response_action": "update", "view": {"type": "modal"}},
        {"response_action": "dance"},
    ],
)
def test_an_answer_that_slack_cannot_show(
    client: WebClient, driver: Driver, listener: Listener, answer: dict[str, Any]
) -> None:
    """The person sees trouble and keeps the form; the journal says what was wrong."""
    rita = open_form(client, driver, listener, field("why"))
    listener.answer = lambda _: answer
    outcome = rita.submit({"why": "x"})
    assert (outcome["result"], outcome["detail"]) == ("timeout", "We had some trouble connecting. Try again?")
    assert driver.journal(kind="refused")[0]["what"] == "a response_action"
    assert rita.view()


@pytest.mark.parametrize("ack_seconds", [0.4])
def test_a_silent_app(client: WebClient, driver: Driver, listener: Listener) -> None:
    """No acknowledgement: the form stays and says so."""
    rita = open_form(client, driver, listener, field("why"))
    listener.answer = lambda _: False
    assert rita.submit({"why": "x"})["result"] == "timeout"
    assert rita.view()


def test_closing_a_form(client: WebClient, driver: Driver, listener: Listener) -> None:
    """The app hears of it only when the view asked to; a closed form cannot be sent."""
    rita = open_form(client, driver, listener, field("why"), notify_on_close=True, private_metadata="BG-1")
    form = rita.fill()
    form.close()
    wait_for(lambda: listener.payloads("view_closed"))
    assert listener.payloads("view_closed")[0]["view"]["private_metadata"] == "BG-1"
    assert not listener.payloads("view_closed")[0]["is_cleared"]
    with pytest.raises(NotPossible, match="no longer open"):
        form.submit({"why": "x"})
    open_form(client, driver, listener, field("why")).close()
    driver.as_("U0RITA").command("/breakglass", INC)  # a later envelope: nothing was on its way before it
    assert len(listener.payloads("view_closed")) == 1


def test_a_form_belongs_to_its_person(client: WebClient, driver: Driver, listener: Listener) -> None:
    """Somebody else cannot send it, and an unknown field is refused."""
    view = open_form(client, driver, listener, field("why")).view()
    with pytest.raises(NotPossible, match="no longer open"):
        driver.as_("U0CARL").fill(view).submit({"why": "x"})
    with pytest.raises(NotPossible, match="no field"):
        driver.request(
            "POST",
            f"/sandbox/views/{view['id']}/submit",
            {"as": "U0RITA", "values": {"extra": {"extra": {"type": "plain_text_input", "value": "x"}}}},
        )


# --- Clicks -------------------------------------------------------------------------------------------------------


def test_a_confirm_dialog_cannot_be_passed_by_accident(client: WebClient, driver: Driver, listener: Listener) -> None:
    """Cancel sends nothing, and a bare request without the confirmation is refused."""
    client.chat_postMessage(channel=INC, text="card", blocks=[actions(button(confirm=CONFIRM))])
    rita = driver.as_("U0RITA")
    message = rita.messages(INC)[0]
    assert rita.click(message, "go", confirm=False)["cancelled"]
    bare = {"as": "U0RITA", "channel": INC, "message_ts": message["ts"], "block_id": "row", "action_id": "go"}
    with pytest.raises(NotPossible, match="confirmation"):
        driver.request("POST", "/sandbox/actions", bare)
    assert listener.payloads("block_actions") == []
    assert rita.click(message, "go")["acknowledged"]


def test_a_button_must_be_there(client: WebClient, driver: Driver, listener: Listener) -> None:
    """A redrawn or deleted message has no old buttons, unless the click was already on its way."""
    ts = client.chat_postMessage(channel=INC, text="card", blocks=[actions(button(value="BG-1.1"))])["ts"]
    rita = driver.as_("U0RITA")
    old = rita.messages(INC)[0]
    client.chat_update(channel=INC, ts=ts, text="done", blocks=[])
    with pytest.raises(NotPossible, match="no longer there"):
        rita.click(old, "go")
    assert rita.click(old, "go", in_flight=True)["acknowledged"]
    assert listener.payloads("block_actions")[0]["actions"][0]["value"] == "BG-1.1"
    client.chat_delete(channel=INC, ts=ts)
    with pytest.raises(NotPossible, match="gone"):
        rita.click(old, "go")


def test_who_can_click(client: WebClient, driver: Driver, listener: Listener) -> None:
    """Only who sees the message; a deactivated account only with a click that was on its way."""
    client.chat_postMessage(channel=SECRET, text="card", blocks=[actions(button())])
    carl = driver.as_("U0CARL")
    message = carl.messages(SECRET)[0]
    with pytest.raises(NotPossible, match="cannot see"):
        driver.as_("U0RITA").click(message, "go")
    driver.deactivate("U0CARL")
    with pytest.raises(NotPossible, match="deactivated"):
        carl.click(message, "go")
    assert carl.click(message, "go", in_flight=True)["acknowledged"]
    assert [payload["user"]["id"] for payload in listener.payloads("block_actions")] == ["U0CARL"]


def test_menus_in_messages(client: WebClient, driver: Driver, listener: Listener) -> None:
    """A select and an overflow menu say what was chosen; an option that is not offered is refused."""
    overflow = {"type": "overflow", "action_id": "more", "options": OPTIONS}
    select = {"type": "static_select", "action_id": "level", "options": OPTIONS}
    client.chat_postMessage(channel=INC, text="card", blocks=[actions(overflow, select)])
    rita = driver.as_("U0RITA")
    message = rita.messages(INC)[0]
    rita.click(message, "more", value="write")
    rita.click(message, "level", value="Read")
    chosen = [payload["actions"][0]["selected_option"]["value"] for payload in listener.payloads("block_actions")]
    assert chosen == ["write", "read"]
    assert listener.payloads("block_actions")[1]["state"]["values"]["row"]["level"]["selected_option"] == OPTIONS[0]
    with pytest.raises(NotPossible):
        rita.click(message, "level", value="admin")


def test_buttons_in_attachments(client: WebClient, driver: Driver, listener: Listener) -> None:
    """A card in a coloured attachment has working buttons."""
    card = [{"color": "#b00", "blocks": [actions(button())]}]
    client.chat_postMessage(channel=INC, text="card", attachments=card)
    rita = driver.as_("U0RITA")
    assert rita.click(rita.messages(INC)[0], "go")["acknowledged"]
    assert listener.payloads("block_actions")[0]["message"]["attachments"][0]["color"] == "#b00"


def test_an_app_without_interactivity() -> None:
    """Slack's sentence when the manifest has switched it off."""
    with sandbox_of(manifest(interactive=False)) as deaf:
        client_of(deaf).chat_postMessage(channel=INC, text="card", blocks=[actions(button())])
        rita = Driver(deaf.url).as_("U0RITA")
        with pytest.raises(NotPossible, match="not configured to handle interactive responses"):
            rita.click(rita.messages(INC)[0], "go")


def test_a_read_only_messages_tab() -> None:
    """Nobody can write to the app when the manifest says so."""
    with sandbox_of(manifest(read_only=True)) as quiet:
        rita = Driver(quiet.url).as_("U0RITA")
        with pytest.raises(NotPossible, match="turned off"):
            rita.say("hello", rita.dm_id())


# --- What people see ----------------------------------------------------------------------------------------------


def test_conversations_of_a_person(driver: Driver) -> None:
    """Public channels, private ones one is in, the app's direct messages and Home; a guest sees only their own."""
    kinds = {one["id"]: one["kind"] for one in driver.as_("U0CARL").conversations()}
    assert kinds["C0INC"] == kinds["C0VAULT"] == "channel"
    assert "C0SECRET" in kinds
    assert sorted(kinds.values()).count("app_home") == 1
    rita = driver.as_("U0RITA")
    assert "C0SECRET" not in {one["id"] for one in rita.conversations()}
    assert rita.conversation(rita.dm_id())["name"] == "Breakglass"
    assert [one["kind"] for one in driver.as_("U0GUEST").conversations() if one["kind"] == "channel"] == []


def test_the_workspace_is_described(driver: Driver) -> None:
    """People, groups, commands and the app, as the page needs them."""
    described = driver.workspace()
    assert described["app"]["bot_user_id"] == BOT_USER
    assert described["commands"] == [{"command": "/breakglass", "description": "Ask", "usage_hint": "[account]"}]
    assert {person["id"]: person["deleted"] for person in described["people"]}["U0GONE"]
    assert described["groups"][0]["members"] == ["U0CARL"]


def test_the_live_feed(client: WebClient, driver: Driver, listener: Listener, sandbox: Sandbox) -> None:
    """The page hears of messages, changes, whispers, forms, field errors and Home the moment they happen."""
    with connect(f"{sandbox.url.replace('http', 'ws')}/sandbox/live?as=U0RITA") as page:

        def seen(kind: str) -> dict[str, Any]:
            while True:
                got = json.loads(page.recv(10))
                if got["type"] == kind:
                    return dict(got)

        ts = client.chat_postMessage(channel=INC, text="<!channel> hello")["ts"]
        assert seen("message")["message"]["text"] == "<!channel> hello"
        unread = seen("unread")
        assert (unread["channel"], unread["unread"], unread["mentions"]) == (INC, 1, 1)
        client.chat_update(channel=INC, ts=ts, text="changed")
        assert seen("message_changed")["message"]["edited"]
        client.chat_postMessage(channel=INC, text="reply", thread_ts=ts)
        assert seen("message")["message"]["thread_ts"] == ts
        assert seen("message_changed")["message"]["reply_count"] == 1
        client.chat_postEphemeral(channel=INC, user="U0CARL", text="for Carl")
        client.chat_postEphemeral(channel=INC, user="U0RITA", text="for Rita")
        assert seen("ephemeral")["message"]["text"] == "for Rita"
        opened = client.views_open(trigger_id=trigger(driver, listener), view=modal(field("why")))["view"]
        assert seen("view_opened")["view"]["id"] == opened["id"]
        client.views_update(view_id=opened["id"], view=modal(field("why")))
        assert seen("view_updated")["view"]["id"] == opened["id"]
        listener.answer = lambda _: {"response_action": "errors", "errors": {"why": "More."}}
        driver.as_("U0RITA").submit({"why": "x"})
        assert seen("view_errors")["errors"] == {"why": "More."}
        listener.answer = lambda _: None
        driver.as_("U0RITA").submit({"why": "x"})
        assert seen("view_closed")["view_id"] == opened["id"]
        client.views_publish(user_id="U0RITA", view={"type": "home", "blocks": []})
        assert seen("home")["view"]["type"] == "home"
        driver.add_channel("C0NEW", "new", ["U0RITA"])
        seen("conversations")
        driver.change_person("U0CARL", title="Chief")
        seen("workspace")
        client.chat_delete(channel=INC, ts=ts)
        seen("message_changed")


def test_a_page_that_does_not_exist_for_anyone(sandbox: Sandbox) -> None:
    """The live feed is for people of the workspace only."""
    with pytest.raises(Exception, match="403"):
        connect(f"{sandbox.url.replace('http', 'ws')}/sandbox/live?as=U0NOBODY")


# --- Faults -------------------------------------------------------------------------------------------------------


def test_fault_rate_limited(client: WebClient, driver: Driver) -> None:
    """The next call to that method in that channel gets 429; the others and the one after do not."""
    driver.fault("rate_limited", method="chat.postMessage", channel=INC, retry_after=7)
    client.chat_postMessage(channel=SECRET, text="elsewhere")
    with pytest.raises(SlackApiError) as caught:
        client.chat_postMessage(channel=INC, text="x")
    assert caught.value.response.headers["Retry-After"] == "7"
    client.chat_postMessage(channel=INC, text="x")
    assert driver.faults()[0]["used"] == 1
    assert len(driver.journal(kind="fault")) == 1


def test_fault_error500(client: WebClient, driver: Driver) -> None:
    """Twice a bare HTTP 500 without effect, then all is well; what was not used can be cleared."""
    driver.fault("error500", method="chat.postMessage", times=2)
    for _ in range(2):
        with pytest.raises(SlackApiError) as caught:
            client.chat_postMessage(channel=INC, text="x")
        assert caught.value.response.status_code == 500
    client.chat_postMessage(channel=INC, text="x")
    assert len(driver.as_("U0RITA").messages(INC)) == 1
    driver.fault("error500")
    driver.clear_faults()
    client.auth_test()


def test_fault_timeout(sandbox: Sandbox, driver: Driver) -> None:
    """No effect and no answer: the caller gives up."""
    impatient = WebClient(token=sandbox.bot_token, base_url=sandbox.api_url, timeout=0.2, retry_handlers=[])
    driver.fault("timeout", method="chat.postMessage")
    with pytest.raises(TimeoutError):
        impatient.chat_postMessage(channel=INC, text="x")
    assert driver.as_("U0RITA").messages(INC) == []


def test_fault_post_then_timeout(sandbox: Sandbox, driver: Driver) -> None:
    """The message stands there although the caller never heard of it."""
    impatient = WebClient(token=sandbox.bot_token, base_url=sandbox.api_url, timeout=0.2, retry_handlers=[])
    driver.fault("post_then_timeout", method="chat.postMessage")
    with pytest.raises(TimeoutError):
        impatient.chat_postMessage(channel=INC, text="x")
    assert [message["text"] for message in driver.as_("U0RITA").messages(INC)] == ["x"]


def test_a_cut_connection_makes_the_usual_client_post_twice(client: WebClient, driver: Driver) -> None:
    """A trap of the SDK: by default it repeats a call whose connection was cut, although the message was posted."""
    driver.fault("post_then_timeout", method="chat.postMessage", seconds=0)
    client.chat_postMessage(channel=INC, text="x")
    assert [message["text"] for message in driver.as_("U0RITA").messages(INC)] == ["x", "x"]


def test_a_fault_that_nobody_knows(driver: Driver) -> None:
    """A misspelt fault is refused, so that no test waits for it in vain."""
    for order in ({"kind": "earthquake"}, {"kind": "error500", "times": 0}):
        with pytest.raises(NotPossible):
            driver.request("POST", "/sandbox/faults", order)


# --- The journal --------------------------------------------------------------------------------------------------


def test_the_journal_keeps_everything(client: WebClient, driver: Driver, listener: Listener, sandbox: Sandbox) -> None:
    """Calls with arguments, answers and time, envelopes, acknowledgements and deeds; never a token."""
    before = driver.journal()[-1]["n"]
    driver.as_("U0RITA").command("/breakglass orders-db", INC)
    client.chat_postMessage(channel=INC, text="hello")
    entries = driver.journal(after=before)
    assert [entry["kind"] for entry in entries] == ["people", "envelope", "ack", "api"]
    deed, envelope, ack, call = entries
    assert deed["text"] == "/breakglass orders-db"
    assert envelope["payload"]["text"] == "orders-db"
    assert ack["envelope_id"] == envelope["envelope_id"]
    assert ack["ms"] <= envelope["ms"] + 1
    assert (call["method"], call["args"]["text"], call["ok"], call["token_kind"]) == (
        "chat.postMessage",
        "hello",
        True,
        "bot",
    )
    assert call["result"]["channel"] == INC
    whole = json.dumps(driver.journal())
    assert sandbox.bot_token not in whole
    assert sandbox.app_token not in whole


def test_the_journal_is_bounded() -> None:
    """The oldest entries go; the numbers go on."""
    journal = Journal(Clock(), most=3)
    for number in range(5):
        journal.write("api", number=number)
    assert [entry["n"] for entry in journal.since(0)] == [3, 4, 5]
    assert [entry["n"] for entry in journal.since(4)] == [5]


# --- Starting and stopping ----------------------------------------------------------------------------------------


def test_a_taken_port_is_named() -> None:
    """A second server on the port says which port is taken, and the first goes on."""
    with sandbox_of() as first:
        port = int(first.url.rpartition(":")[2])
        with pytest.raises(SandboxError, match=f"Port {port} on 127.0.0.1 is taken"):
            sandbox_of(port=port).start()
        client_of(first).auth_test()


def test_it_listens_on_loopback_and_stops() -> None:
    """After stop nothing answers, held requests are let go, and stopping twice is harmless."""
    running = sandbox_of().start()
    assert running.url.startswith("http://127.0.0.1:")
    driver = Driver(running.url)
    driver.fault("timeout", method="auth.test")
    port = int(running.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as held:
        held.sendall(b"POST /api/auth.test HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n")
        wait_for(lambda: driver.journal(method="auth.test"))
        running.stop()
        assert held.recv(1) == b""
    running.stop()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port)).close()


def test_from_the_command_line(tmp_path: Path) -> None:
    """It prints its address, serves the seed, stops on SIGTERM with 0, and says what is wrong with 1."""
    (tmp_path / "manifest.yml").write_text(yaml.safe_dump(manifest()))
    (tmp_path / "seed.yml").write_text(
        yaml.safe_dump(
            {
                "team": {"id": "T0FILE", "name": "From a file"},
                "people": [{"id": "U0ANN", "name": "ann", "real_name": "Ann"}],
                "channels": [{"id": "C0ONE", "name": "one", "members": ["U0ANN"]}],
                "groups": [{"id": "S0ONE", "handle": "all", "name": "All", "members": ["U0ANN"]}],
            }
        )
    )
    command = [sys.executable, "-m", "bot.sandbox", "--manifest", str(tmp_path / "manifest.yml")]
    with subprocess.Popen(
        [*command, "--seed", str(tmp_path / "seed.yml")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert Driver(url).workspace()["team"] == {"id": "T0FILE", "name": "From a file"}
        assert Driver(url).as_("U0ANN").conversation("C0ONE")["is_member"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    wrong = subprocess.run(
        [*command[:3], "--manifest", str(tmp_path / "none.yml")], capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 1
    assert "none.yml" in wrong.stderr


def test_it_ends_with_its_starter(tmp_path: Path) -> None:
    """When whoever started it is gone, it does not stay behind."""
    (tmp_path / "manifest.yml").write_text(yaml.safe_dump(manifest()))
    starter = (
        "import subprocess, sys; "
        "command = [sys.executable, '-m', 'bot.sandbox', '--manifest', sys.argv[1]];"
        "p = subprocess.Popen(command, stdout=subprocess.PIPE);"
        "print(p.stdout.readline().decode().strip(), flush=True)"
    )
    url = subprocess.run(
        [sys.executable, "-c", starter, str(tmp_path / "manifest.yml")], capture_output=True, text=True, check=True
    ).stdout.strip()
    port = int(url.rpartition(":")[2])

    def gone() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            return True
        return False

    wait_for(gone, 20, what="the end of the sandbox")


def test_the_clock_is_real_by_default() -> None:
    """Without a clock given, message times are now."""
    with Sandbox(WorkspaceSeed(), manifest()) as running:
        driver = Driver(running.url)
        driver.add_channel("C0ONE", "one", [BOT_USER])
        ts = client_of(running).chat_postMessage(channel="C0ONE", text="x")["ts"]
    assert abs(float(ts) - time.time()) < 3600
