"""Do commands, clicks and events reach the unmodified Socket Mode client as from Slack, and what if it is silent?"""

from __future__ import annotations

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from sandbox_app import (
    HALL,
    INC,
    Clock,
    actions,
    bolted,
    button,
    client_of,
    listening,
    manifest,
    modal,
    sandbox_of,
    serving,
)
from slack_bolt import Ack, App
from slack_sdk import WebClient
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from bot.sandbox.driver import Driver, NotPossible, wait_for
from bot.sandbox.workspace import APP_ID, BOT_USER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bot.sandbox.server import Sandbox


@pytest.fixture
def ack_seconds() -> float:
    """Slack's patience; tests of silence have less, so that they are quick."""
    return 3.0


@pytest.fixture
def sandbox(ack_seconds: float) -> Iterator[Sandbox]:
    """A workspace without rate limits."""
    with serving(ack_seconds=ack_seconds) as running:
        yield running


@pytest.fixture
def driver(sandbox: Sandbox) -> Driver:
    """The people."""
    return Driver(sandbox.url)


def socket_url(sandbox: Sandbox) -> str:
    """Ask for the address of a socket as the SDK does."""
    app = WebClient(token=sandbox.app_token, base_url=sandbox.api_url)
    return str(app.apps_connections_open(app_token=sandbox.app_token)["url"])


# --- A whole round with Bolt --------------------------------------------------------------------------------------


def test_a_bolt_app_lives_in_it(sandbox: Sandbox, driver: Driver) -> None:
    """The unmodified Bolt: command, modal, field error, submission, message, button, response_url, home."""
    app = App(client=client_of(sandbox))

    @app.command("/breakglass")
    def command(ack: Ack, body: dict[str, Any], client: WebClient) -> None:
        ack()
        client.views_open(trigger_id=body["trigger_id"], view=modal())

    @app.view("form")
    def submitted(ack: Ack, body: dict[str, Any], client: WebClient) -> None:
        reason = body["view"]["state"]["values"]["reason"]["reason"]["value"]
        if reason == "no":
            ack(response_action="errors", errors={"reason": "Say more."})
            return
        ack()
        client.chat_postMessage(channel=INC, text=reason, blocks=[actions(button(value="BG-1.7"))])

    @app.action("go")
    def clicked(ack: Ack, respond: Any, body: dict[str, Any]) -> None:
        ack()
        respond(f"you pressed {body['actions'][0]['value']}")

    @app.event("app_home_opened")
    def home(event: dict[str, Any], client: WebClient) -> None:
        client.views_publish(user_id=event["user"], view={"type": "home", "blocks": [{"type": "divider"}]})

    rita = driver.as_("U0RITA")
    with bolted(sandbox, app):
        assert rita.command("/breakglass orders-db", INC)["acknowledged"]
        rita.wait_for_view("form")
        assert rita.submit({"reason": "no"})["errors"] == {"reason": "Say more."}
        assert rita.submit({"reason": "checkout is down"})["result"] == "closed"
        assert rita.view() is None
        message = wait_for(lambda: rita.messages(INC))[0]
        assert message["text"] == "checkout is down"
        assert rita.click(message, "go")["acknowledged"]
        assert wait_for(rita.ephemerals)[0]["text"] == "you pressed BG-1.7"
        rita.home()
        assert wait_for(rita.home)["blocks"][0]["type"] == "divider"


# --- Payloads -----------------------------------------------------------------------------------------------------


def test_the_payload_of_a_command(sandbox: Sandbox, driver: Driver) -> None:
    """Every field that Slack's command form has."""
    with listening(sandbox) as listener:
        driver.as_("U0RITA").command("/breakglass orders-db read  15m ", INC)
        payload = listener.payloads("slash_commands")[0]
    assert payload.pop("trigger_id")
    assert payload.pop("response_url").startswith(f"{sandbox.url}/hooks/commands/")
    assert payload == {
        "token": "sandbox-verification",
        "team_id": "T0TEST",
        "team_domain": "test-works",
        "channel_id": INC,
        "channel_name": "incidents",
        "user_id": "U0RITA",
        "user_name": "rita",
        "command": "/breakglass",
        "text": "orders-db read  15m",
        "api_app_id": APP_ID,
        "is_enterprise_install": "false",
    }


def test_the_payload_of_a_click(sandbox: Sandbox, driver: Driver) -> None:
    """A click carries message, container, user with their own team, and the action."""
    message_blocks = [actions(button(value="BG-1.7", style="primary"))]
    posted = client_of(sandbox).chat_postMessage(channel=INC, text="card", blocks=message_blocks)
    with listening(sandbox) as listener:
        visitor = driver.as_("U0STRANGE")
        visitor.click(visitor.messages(INC)[0], "go")
        payload = listener.payloads("block_actions")[0]
    assert payload["user"] == {"id": "U0STRANGE", "username": "sam", "name": "sam", "team_id": "T0OTHER"}
    assert payload["team"] == {"id": "T0TEST", "domain": "test-works"}
    assert payload["channel"] == {"id": INC, "name": "incidents"}
    assert payload["container"] == {
        "type": "message",
        "message_ts": posted["ts"],
        "channel_id": INC,
        "is_ephemeral": False,
    }
    assert payload["message"]["blocks"] == message_blocks
    assert payload["message"]["user"] == BOT_USER
    action = payload["actions"][0]
    assert action.pop("action_ts")
    assert action == {
        "type": "button",
        "block_id": "row",
        "action_id": "go",
        "text": {"type": "plain_text", "text": "Go"},
        "value": "BG-1.7",
        "style": "primary",
    }
    assert payload["api_app_id"] == APP_ID
    assert payload["trigger_id"]
    assert payload["response_url"]


def test_a_click_on_an_ephemeral_carries_no_message(sandbox: Sandbox, driver: Driver) -> None:
    """Slack does not have the message any more, so it cannot send it along."""
    client_of(sandbox).chat_postEphemeral(channel=INC, user="U0RITA", text="psst", blocks=[actions(button())])
    with listening(sandbox) as listener:
        rita = driver.as_("U0RITA")
        rita.click(rita.ephemerals()[0], "go")
        payload = listener.payloads("block_actions")[0]
    assert payload["container"]["is_ephemeral"]
    assert "message" not in payload


def test_a_shortcut_on_a_message(sandbox: Sandbox, driver: Driver) -> None:
    """A message shortcut carries the message, also inside a thread."""
    client = client_of(sandbox)
    parent = client.chat_postMessage(channel=INC, text="parent")["ts"]
    client.chat_postMessage(channel=INC, text="reply", thread_ts=parent)
    with listening(sandbox) as listener:
        rita = driver.as_("U0RITA")
        assert rita.shortcut("act", rita.thread(INC, parent)[1])["acknowledged"]
        payload = listener.payloads("message_action")[0]
        with pytest.raises(NotPossible):
            rita.shortcut("other")
    assert (payload["callback_id"], payload["message"]["text"], payload["message"]["thread_ts"]) == (
        "act",
        "reply",
        parent,
    )


# --- What people type ---------------------------------------------------------------------------------------------


def test_commands_that_slack_does_not_take(sandbox: Sandbox, driver: Driver) -> None:
    """Unknown commands, commands in threads, of visitors and where one is no member never reach the app."""
    rita = driver.as_("U0RITA")
    with listening(sandbox) as listener:
        with pytest.raises(NotPossible, match="/nonsense is not a valid command"):
            rita.command("/nonsense", INC)
        parent = rita.say("hello", INC)
        with pytest.raises(NotPossible, match=r"/breakglass is not supported in threads\. Sorry!"):
            rita.say("/breakglass", INC, parent)
        with pytest.raises(NotPossible, match="not a valid command"):
            driver.as_("U0STRANGE").command("/breakglass", INC)
        with pytest.raises(NotPossible, match="cannot see"):
            driver.as_("U0GUEST").command("/breakglass", INC)
        with pytest.raises(NotPossible, match="deactivated"):
            driver.as_("U0GONE").command("/breakglass", INC)
    assert listener.payloads("slash_commands") == []


def test_an_answer_inside_the_acknowledgement(sandbox: Sandbox, driver: Driver) -> None:
    """Text in the acknowledgement is shown to the person only, or to all with in_channel; a bad one to nobody."""
    rita = driver.as_("U0RITA")
    with listening(sandbox) as listener:
        listener.answer = lambda _: {"text": "only you"}
        assert rita.command("/breakglass help", INC)["response"] == "only you"
        listener.answer = lambda _: {"text": "all of you", "response_type": "in_channel"}
        rita.command("/breakglass help", INC)
        listener.answer = lambda _: {"text": "x", "blocks": [{"type": "nothing"}]}
        assert rita.command("/breakglass help", INC)["response"] is None
    assert [message["text"] for message in rita.ephemerals()] == ["only you"]
    assert [message["text"] for message in rita.messages(INC)] == ["all of you"]
    assert driver.journal(kind="refused")[0]["error"] == "invalid_blocks"


@pytest.mark.parametrize("ack_seconds", [0.4])
def test_an_unacknowledged_command_shows_slacks_error(sandbox: Sandbox, driver: Driver) -> None:
    """Silence for the allowed time is an error for the person; a later answer changes nothing."""
    rita = driver.as_("U0RITA")
    with listening(sandbox) as listener:
        late = threading.Event()

        def answer(_: object) -> None:
            late.wait(5)

        listener.answer = answer
        outcome = rita.command("/breakglass", INC)
        late.set()
        wait_for(lambda: [entry for entry in driver.journal(kind="ack") if entry.get("late")])
    assert not outcome["acknowledged"]
    assert outcome["ms"] >= 400
    assert rita.ephemerals()[0]["text"] == '/breakglass failed with the error "operation_timeout"'
    assert rita.ephemerals()[0]["username"] == "Slackbot"


def test_without_a_socket_a_command_fails_at_once(driver: Driver) -> None:
    """Nobody is connected: Slack does not wait."""
    rita = driver.as_("U0RITA")
    assert not rita.command("/breakglass", INC)["acknowledged"]
    assert rita.ephemerals()[0]["text"] == '/breakglass failed with the error "dispatch_failed"'


# --- response_url -------------------------------------------------------------------------------------------------


def test_response_url_five_times(sandbox: Sandbox, driver: Driver) -> None:
    """The fifth use works, the sixth does not; a refused message does not count."""
    rita = driver.as_("U0RITA")
    with listening(sandbox) as listener:
        rita.command("/breakglass", HALL)  # the bot is no member there and may answer all the same
        url = listener.payloads("slash_commands")[0]["response_url"]
    hook = _hook(url)
    assert hook({"text": " "}) == (400, "no_text")
    assert [hook({"text": str(number)})[0] for number in range(5)] == [200] * 5
    assert hook({"text": "six"}) == (404, "used_url")
    assert [message["text"] for message in rita.ephemerals()] == ["0", "1", "2", "3", "4"]


def test_response_url_thirty_minutes() -> None:
    """After half an hour it is dead."""
    clock = Clock()
    with sandbox_of(clock=clock) as running, listening(running) as listener:
        Driver(running.url).as_("U0RITA").command("/breakglass", INC)
        hook = _hook(listener.payloads("slash_commands")[0]["response_url"])
        clock.now += 30 * 60
        assert hook({"text": "in time"})[0] == 200
        clock.now += 1
        assert hook({"text": "too late"}) == (404, "expired_url")


def test_response_url_replaces_and_deletes(sandbox: Sandbox, driver: Driver) -> None:
    """The original message, stored or ephemeral, can be replaced and deleted through it."""
    client = client_of(sandbox)
    rita = driver.as_("U0RITA")
    client.chat_postMessage(channel=INC, text="card", blocks=[actions(button())])
    client.chat_postEphemeral(channel=INC, user="U0RITA", text="psst", blocks=[actions(button())])
    with listening(sandbox) as listener:
        rita.click(rita.messages(INC)[0], "go")
        rita.click(rita.ephemerals()[0], "go")
        stored, whispered = (_hook(payload["response_url"]) for payload in listener.payloads("block_actions"))
    stored({"text": "done", "replace_original": True, "blocks": []})
    assert [(message["text"], message["edited"]) for message in rita.messages(INC)] == [("done", True)]
    stored({"text": "for all", "response_type": "in_channel", "replace_original": False})
    assert [message["text"] for message in rita.messages(INC)] == ["done", "for all"]
    whispered({"text": "changed", "replace_original": True})
    assert [message["text"] for message in rita.ephemerals()] == ["changed"]
    whispered({"delete_original": True})
    assert rita.ephemerals() == []
    stored({"delete_original": True})
    assert [message["text"] for message in rita.messages(INC)] == ["for all"]


def _hook(url: str) -> Any:
    """Return a way to post to a response_url: status and error word."""
    import urllib.error  # noqa: PLC0415
    import urllib.request  # noqa: PLC0415

    def post(body: dict[str, Any]) -> tuple[int, str | None]:
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310
        try:
            with urllib.request.urlopen(request) as response:  # noqa: S310
                return response.status, None
        except urllib.error.HTTPError as refused:
            return refused.code, json.load(refused)["error"]

    return post


# --- Sockets ------------------------------------------------------------------------------------------------------


def test_a_ticket_admits_one_socket(sandbox: Sandbox) -> None:
    """The address from apps.connections.open greets once; the second time, and with no ticket, the door stays shut."""
    url = socket_url(sandbox)
    with connect(url) as socket:
        hello = json.loads(socket.recv())
        assert (hello["type"], hello["num_connections"]) == ("hello", 1)
        assert hello["connection_info"] == {"app_id": APP_ID}
        for bad in (url, url.partition("?")[0]):
            with pytest.raises(InvalidStatus):
                connect(bad)


def test_ten_sockets_and_no_more(sandbox: Sandbox) -> None:
    """The eleventh is told why and is closed."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(connect(socket_url(sandbox))) for _ in range(10)]
        assert [json.loads(socket.recv())["num_connections"] for socket in sockets] == list(range(1, 11))
        eleventh = stack.enter_context(connect(socket_url(sandbox)))
        assert json.loads(eleventh.recv())["reason"] == "too_many_websockets"
        with pytest.raises(ConnectionClosed):
            eleventh.recv()


def test_each_envelope_goes_to_exactly_one_socket(sandbox: Sandbox, driver: Driver) -> None:
    """Two replicas share the work in turn; nothing arrives twice."""
    with listening(sandbox) as one, listening(sandbox) as two:
        rita = driver.as_("U0RITA")
        for _ in range(6):
            assert rita.command("/breakglass", INC)["acknowledged"]
    assert (len(one.got), len(two.got)) == (3, 3)
    ids = [request.envelope_id for request in one.got + two.got]
    assert len(set(ids)) == 6


@pytest.mark.parametrize("ack_seconds", [0.4])
def test_an_unacknowledged_envelope_is_not_sent_again(sandbox: Sandbox, driver: Driver) -> None:
    """Not to the same socket, not to another one, not after the socket was lost."""
    with listening(sandbox) as one, listening(sandbox) as two:
        one.answer = two.answer = lambda _: False
        assert not driver.as_("U0RITA").command("/breakglass", INC)["acknowledged"]
        driver.fault("drop_socket")
        wait_for(lambda: driver.sockets() == 2, 20)
        assert len(one.got) + len(two.got) == 1


def test_a_dropped_client_comes_back(sandbox: Sandbox, driver: Driver) -> None:
    """The unmodified client reconnects by itself and is served again."""
    with listening(sandbox) as listener:
        driver.fault("drop_socket")
        wait_for(lambda: len(driver.journal(method="apps.connections.open")) == 2 and driver.sockets() == 1, 20)
        assert driver.as_("U0RITA").command("/breakglass", INC)["acknowledged"]
        assert len(listener.got) == 1


@pytest.mark.parametrize("ack_seconds", [0.4])
def test_a_socket_lost_with_an_envelope_on_it(sandbox: Sandbox, driver: Driver) -> None:
    """The app may have got the envelope; its answer has no way back, or comes on the next socket."""
    with listening(sandbox) as listener:
        driver.fault("drop_socket", on="envelope")
        listener.answer = lambda _: False
        assert not driver.as_("U0RITA").command("/breakglass", INC)["acknowledged"]
        assert driver.faults()[0]["used"] == 1


def test_refresh(sandbox: Sandbox, driver: Driver) -> None:
    """A warning, then the request to leave; the client has moved to a new socket."""
    with connect(socket_url(sandbox)) as raw:
        assert json.loads(raw.recv())["type"] == "hello"
        driver.fault("refresh", seconds=0.05)
        assert json.loads(raw.recv()) == {"type": "disconnect", "reason": "warning", "debug_info": {"host": "sandbox"}}
        assert json.loads(raw.recv())["reason"] == "refresh_requested"
        with pytest.raises(ConnectionClosed):
            raw.recv()
    with listening(sandbox):
        driver.fault("refresh", seconds=0.05)
        wait_for(lambda: len(driver.journal(method="apps.connections.open")) >= 3 and driver.sockets() == 1, 20)
        assert wait_for(lambda: driver.as_("U0RITA").command("/breakglass", INC)["acknowledged"], 20)


def test_a_duplicate_envelope(sandbox: Sandbox, driver: Driver) -> None:
    """The same envelope id arrives twice, on two sockets if there are two."""
    with listening(sandbox) as one, listening(sandbox) as two:
        driver.fault("duplicate_envelope")
        assert driver.as_("U0RITA").command("/breakglass", INC)["acknowledged"]
        wait_for(lambda: one.got and two.got)
        assert one.got[0].envelope_id == two.got[0].envelope_id
        assert driver.as_("U0RITA").command("/breakglass", INC)["acknowledged"]
        assert len(one.got) + len(two.got) == 3


@pytest.mark.parametrize("ack_seconds", [0.4])
def test_a_late_acknowledgement(sandbox: Sandbox, driver: Driver) -> None:
    """The app has answered, the network has not: the person sees an error although the app believes all is well."""
    with listening(sandbox) as listener:
        driver.fault("delay_ack", seconds=5)
        assert not driver.as_("U0RITA").command("/breakglass", INC)["acknowledged"]
        wait_for(lambda: driver.journal(kind="ack"))
        assert len(listener.got) == 1


def test_a_slow_acknowledgement(sandbox: Sandbox, driver: Driver) -> None:
    """Late but within Slack's time: it counts, and the delay is measured."""
    with listening(sandbox):
        driver.fault("delay_ack", seconds=0.1)
        outcome = driver.as_("U0RITA").command("/breakglass", INC)
    assert outcome["acknowledged"]
    assert outcome["ms"] >= 100


def test_nonsense_on_the_socket_hurts_nobody(sandbox: Sandbox, driver: Driver) -> None:
    """Something that is no acknowledgement is noted; the socket goes on."""
    with connect(socket_url(sandbox)) as raw:
        raw.recv()
        for nonsense in ("{", "[]", "{}", '{"envelope_id": "unknown"}'):
            raw.send(nonsense)
        wait_for(lambda: len(driver.journal(kind="ack")) == 4)
        assert driver.sockets() == 1


# --- Events -------------------------------------------------------------------------------------------------------


def test_events_that_the_manifest_asks_for(sandbox: Sandbox, driver: Driver) -> None:
    """Home, profile, group and message events arrive with Slack's envelope around them."""
    with listening(sandbox) as listener:
        rita = driver.as_("U0RITA")
        rita.home()
        driver.change_person("U0CARL", title="Chief")
        driver.set_group("S0LEAD", ["U0RITA"])
        rita.say("hello bot", rita.dm_id())
        rita.say(f"<@{BOT_USER}> help", INC)
        wait_for(lambda: len(listener.got) == 6)
    events = {payload["event"]["type"]: payload["event"] for payload in listener.payloads("events_api")}
    assert events["app_home_opened"]["tab"] == "home"
    assert events["app_home_opened"]["channel"] == rita.dm_id()
    assert events["user_change"]["user"]["profile"]["title"] == "Chief"
    assert events["subteam_members_changed"]["added_users"] == ["U0RITA"]
    assert events["subteam_members_changed"]["removed_users"] == ["U0CARL"]
    assert events["app_mention"]["text"] == f"<@{BOT_USER}> help"
    kinds = Counter(payload["event"].get("channel_type") for payload in listener.payloads("message"))
    assert kinds == {"im": 1, "channel": 1}
    wrapped = listener.payloads("events_api")[0]
    assert wrapped["type"] == "event_callback"
    assert len({payload["event_id"] for payload in listener.payloads("events_api")}) == 6
    assert wrapped["authorizations"][0]["user_id"] == BOT_USER
    assert listener.got[0].retry_attempt == 0


def test_events_that_the_manifest_does_not_ask_for() -> None:
    """Neither an event that is not subscribed nor one whose scope is missing arrives."""
    narrow = manifest(scopes=["chat:write", "commands"], events=["app_home_opened", "user_change"])
    with sandbox_of(narrow) as running, listening(running) as listener:
        driver = Driver(running.url)
        driver.change_person("U0CARL", title="Chief")
        driver.set_group("S0LEAD", [])
        driver.as_("U0RITA").home()
        driver.as_("U0RITA").command("/breakglass", INC)
        assert {request.type for request in listener.got} == {"events_api", "slash_commands"}
        assert [payload["event"]["type"] for payload in listener.payloads("events_api")] == ["app_home_opened"]


# --- Load ---------------------------------------------------------------------------------------------------------


def test_a_hundred_and_fifty_clicks_at_once() -> None:
    """With 20,000 messages in the channel, 150 people click at once and every click is acknowledged in Slack's time."""
    with sandbox_of() as running, listening(running) as listener:
        driver = Driver(running.url)
        _fill(running, 20_000)
        people = [f"U0CROWD{number}" for number in range(150)]
        for user in people:
            driver.add_person(user, user.lower())
        driver.change_channel(INC, members=[*people, BOT_USER])
        client_of(running).chat_postMessage(channel=INC, text="card", blocks=[actions(button())])
        message = driver.as_(people[0]).messages(INC)[-1]
        with ThreadPoolExecutor(50) as pool:
            outcomes = list(pool.map(lambda user: driver.as_(user).click(message, "go"), people))
    assert all(outcome["acknowledged"] for outcome in outcomes)
    assert {payload["user"]["id"] for payload in listener.payloads("block_actions")} == set(people)


def _fill(sandbox: Sandbox, number: int) -> None:
    """Put messages into the channel from within, since posting them one by one takes a minute."""
    assert sandbox._loop is not None
    assert sandbox._front is not None
    workspace = sandbox._front._workspace
    done = threading.Event()

    def post() -> None:
        for index in range(number):
            workspace.post(workspace.rooms[INC], BOT_USER, f"message {index}")
        done.set()

    sandbox._loop.call_soon_threadsafe(post)
    assert done.wait(60)
