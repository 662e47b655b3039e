"""Does the sandbox's Web API answer the unmodified SDK as Slack does, and refuse what Slack refuses?"""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from sandbox_app import (
    HALL,
    INC,
    OLD,
    SECRET,
    SEED,
    VAULT,
    Clock,
    actions,
    button,
    client_of,
    manifest,
    plain,
    sandbox_of,
    serving,
)
from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError

from bot.sandbox.driver import Driver, NotPossible
from bot.sandbox.webapi import METHODS, Bucket
from bot.sandbox.workspace import BOT_USER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bot.sandbox.server import Sandbox


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A fresh workspace without rate limits."""
    with serving() as running:
        yield running


@pytest.fixture
def client(sandbox: Sandbox) -> WebClient:
    """The bot's real client."""
    return client_of(sandbox)


@pytest.fixture
def driver(sandbox: Sandbox) -> Driver:
    """The people."""
    return Driver(sandbox.url)


def refusal(call: Callable[..., object], **arguments: Any) -> dict[str, Any]:
    """Return the body of Slack's refusal."""
    with pytest.raises(SlackApiError) as caught:
        call(**arguments)
    return dict(caught.value.response.data)


def error(call: Callable[..., object], **arguments: Any) -> str:
    """Return the error word of Slack's refusal."""
    return str(refusal(call, **arguments)["error"])


# --- Tokens, scopes, arguments ------------------------------------------------------------------------------------


def test_auth_test_says_who_the_bot_is(client: WebClient) -> None:
    """auth.test names workspace, user and bot, and its headers list the scopes."""
    answer = client.auth_test()
    assert (answer["team_id"], answer["user_id"], answer["team"]) == ("T0TEST", BOT_USER, "Test Works")
    assert "chat:write" in answer.headers["x-oauth-scopes"].split(",")


def test_tokens(sandbox: Sandbox) -> None:
    """No token, a token that nobody issued, and the other kind of token are three different refusals."""
    assert error(WebClient(base_url=sandbox.api_url).auth_test) == "not_authed"
    assert error(WebClient(token="xoxb-forged", base_url=sandbox.api_url).auth_test) == "invalid_auth"
    app = WebClient(token=sandbox.app_token, base_url=sandbox.api_url)
    assert error(app.chat_postMessage, channel=INC, text="x") == "not_allowed_token_type"
    bot = client_of(sandbox)
    assert error(bot.apps_connections_open, app_token=sandbox.bot_token) == "not_allowed_token_type"


def test_a_token_in_the_address_is_no_token(sandbox: Sandbox) -> None:
    """Addresses end up in logs, so Slack reads no token there; in a form it does."""
    with urllib.request.urlopen(f"{sandbox.api_url}auth.test?token={sandbox.bot_token}") as response:  # noqa: S310
        assert json.load(response)["error"] == "not_authed"
    form = urllib.parse.urlencode({"token": sandbox.bot_token}).encode()
    with urllib.request.urlopen(f"{sandbox.api_url}auth.test", data=form) as response:  # noqa: S310
        assert json.load(response)["ok"]


def test_unknown_methods_are_unknown(client: WebClient) -> None:
    """What is not in the table does not exist."""
    assert refusal(client.api_call, api_method="bookmarks.add") == {
        "ok": False,
        "error": "unknown_method",
        "req_method": "bookmarks.add",
    }


@pytest.mark.parametrize("style", ["json", "form", "get"])
def test_three_styles_of_arguments(sandbox: Sandbox, style: str) -> None:
    """JSON, form and query arguments mean the same; nested values of a form are JSON."""
    blocks = [actions(button())]
    url = f"{sandbox.api_url}chat.postMessage"
    headers = {"Authorization": f"Bearer {sandbox.bot_token}"}
    flat = {"channel": INC, "text": "hello", "blocks": json.dumps(blocks)}
    data: bytes | None = None
    if style == "json":
        data = json.dumps({"channel": INC, "text": "hello", "blocks": blocks}).encode()
        headers["Content-Type"] = "application/json; charset=utf-8"
    elif style == "form":
        data = urllib.parse.urlencode(flat).encode()
    else:
        url += "?" + urllib.parse.urlencode(flat)
    with urllib.request.urlopen(urllib.request.Request(url, data, headers)) as response:  # noqa: S310
        answer = json.load(response)
    assert answer["message"]["text"] == "hello"
    assert answer["message"]["blocks"] == blocks


@pytest.mark.parametrize(("raw", "word"), [(b"{", "invalid_json"), (b"[]", "json_not_object")])
def test_unreadable_json(sandbox: Sandbox, raw: bytes, word: str) -> None:
    """A broken body gets Slack's word for it."""
    headers = {"Authorization": f"Bearer {sandbox.bot_token}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{sandbox.api_url}auth.test", raw, headers)  # noqa: S310
    with urllib.request.urlopen(request) as response:  # noqa: S310
        assert json.load(response)["error"] == word


def test_each_method_needs_its_scope() -> None:
    """With no scope granted, every method that has one refuses and names what is needed and what is there."""
    with sandbox_of(manifest(scopes=["commands"])) as bare:
        client = client_of(bare)
        scoped = [name for name, method in METHODS.items() if method.scopes]
        assert len(scoped) > 15
        for name in scoped:
            body = refusal(client.api_call, api_method=name)
            assert body["error"] == "missing_scope", name
            assert body["needed"] == METHODS[name].scopes[0]
            assert body["provided"] == "commands"


def test_scopes_are_per_kind_of_conversation() -> None:
    """Reading channels does not let one read private channels or direct messages."""
    with sandbox_of(manifest(scopes=["channels:read", "channels:history", "chat:write"])) as narrow:
        client = client_of(narrow)
        assert client.conversations_history(channel=INC)["messages"] == []
        assert refusal(client.conversations_history, channel=SECRET)["needed"] == "groups:history"
        assert refusal(client.conversations_info, channel=SECRET)["needed"] == "groups:read"
        direct = client.chat_postMessage(channel="U0RITA", text="hello")["channel"]
        assert refusal(client.conversations_history, channel=direct)["needed"] == "im:history"
        assert refusal(client.conversations_list, types="public_channel,private_channel")["needed"] == "groups:read"


# --- Messages -----------------------------------------------------------------------------------------------------


def test_membership(client: WebClient) -> None:
    """A public channel without the bot, a private one, an archived one and none at all are told apart as Slack does."""
    assert error(client.chat_postMessage, channel=HALL, text="x") == "not_in_channel"
    assert error(client.chat_postMessage, channel=VAULT, text="x") == "channel_not_found"
    assert error(client.chat_postMessage, channel=OLD, text="x") == "is_archived"
    assert error(client.chat_postMessage, channel="C0NONE", text="x") == "channel_not_found"
    assert error(client.conversations_history, channel=HALL) == "not_in_channel"
    assert client.chat_postMessage(channel=SECRET, text="x")["ok"]
    client.conversations_join(channel=HALL)
    assert client.chat_postMessage(channel=HALL, text="x")["ok"]
    assert error(client.conversations_join, channel=OLD) == "is_archived"
    assert error(client.conversations_join, channel=SECRET) == "method_not_supported_for_channel_type"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_message_needs_text(client: WebClient) -> None:
    """Blocks alone are refused: notifications and screen readers read only the text."""
    assert error(client.chat_postMessage, channel=INC, blocks=[actions(button())]) == "no_text"
    assert error(client.chat_postMessage, channel=INC, text=" ") == "no_text"
    assert error(client.chat_postMessage, channel=INC, text="x" * 40_001) == "msg_too_long"


def test_bad_blocks_name_the_place(client: WebClient) -> None:
    """invalid_blocks carries the sentence and the JSON pointer, and nothing is posted."""
    body = refusal(client.chat_postMessage, channel=INC, text="x", blocks=[actions(button(text=plain("x" * 76)))])
    sentence = "must be less than 76 characters [json-pointer:/blocks/0/elements/0/text/text]"
    assert body["error"] == "invalid_blocks"
    assert body["errors"] == [sentence]
    assert body["response_metadata"]["messages"] == [f"[ERROR] {sentence}"]
    assert error(client.chat_postMessage, channel=INC, text="x", blocks="nonsense") == "invalid_blocks_format"
    bad = [{"color": "#f00", "blocks": [{"type": "nothing"}]}]
    assert (
        "/attachments/0/blocks/0/type"
        in refusal(client.chat_postMessage, channel=INC, text="x", attachments=bad)["errors"][0]
    )
    assert client.conversations_history(channel=INC)["messages"] == []


def test_threads(client: WebClient) -> None:
    """Replies stand in the thread only, unless broadcast; a thread that is not there is refused."""
    parent = client.chat_postMessage(channel=INC, text="parent")["ts"]
    first = client.chat_postMessage(channel=INC, text="one", thread_ts=parent)["ts"]
    second = client.chat_postMessage(channel=INC, text="two", thread_ts=first, reply_broadcast=True)["ts"]
    replies = client.conversations_replies(channel=INC, ts=parent)["messages"]
    assert [message["text"] for message in replies] == ["parent", "one", "two"]
    assert replies[0]["reply_count"] == 2
    assert replies[2]["thread_ts"] == parent
    assert [message["text"] for message in client.conversations_history(channel=INC)["messages"]] == ["two", "parent"]
    assert client.conversations_replies(channel=INC, ts=parent, oldest=first)["messages"][1]["ts"] == second
    assert error(client.chat_postMessage, channel=INC, text="x", thread_ts="1.000001") == "thread_not_found"
    assert error(client.conversations_replies, channel=INC, ts="1.000001") == "thread_not_found"


def test_times_are_unique_and_rising(client: WebClient) -> None:
    """Even under a standing clock two messages never share a time."""
    with sandbox_of(clock=Clock()) as still:
        stopped = client_of(still)
        times = [stopped.chat_postMessage(channel=INC, text="x")["ts"] for _ in range(5)]
    assert times == sorted(set(times))


def test_metadata_only_when_asked_for(client: WebClient) -> None:
    """Metadata is stored and comes back only with include_all_metadata; malformed metadata is refused."""
    metadata = {"event_type": "entry", "event_payload": {"n": 7}}
    parent = client.chat_postMessage(channel=INC, text="parent", metadata=metadata)["ts"]
    client.chat_postMessage(channel=INC, text="reply", thread_ts=parent, metadata=metadata)
    for read, more in ((client.conversations_history, {}), (client.conversations_replies, {"ts": parent})):
        without = read(channel=INC, **more)["messages"]
        assert all("metadata" not in message for message in without)
        whole = read(channel=INC, include_all_metadata=True, **more)["messages"]
        assert all(message["metadata"] == metadata for message in whole)
    wrong = {"event_type": "entry"}
    assert error(client.chat_postMessage, channel=INC, text="x", metadata=wrong) == "invalid_metadata_format"


def test_update(client: WebClient, driver: Driver) -> None:
    """An update changes what is given, keeps the rest, marks the message and touches own messages only."""
    ts = client.chat_postMessage(channel=INC, text="before", blocks=[actions(button())])["ts"]
    client.chat_update(channel=INC, ts=ts, text="after")
    message = client.conversations_history(channel=INC)["messages"][0]
    assert message["text"] == "after"
    assert message["blocks"] == [actions(button())]
    assert message["edited"]["user"] == BOT_USER
    client.chat_update(channel=INC, ts=ts, text="bare", blocks=[])
    assert "blocks" not in client.conversations_history(channel=INC)["messages"][0]
    theirs = driver.as_("U0RITA").say("mine", INC)
    assert error(client.chat_update, channel=INC, ts=theirs, text="x") == "cant_update_message"
    assert error(client.chat_update, channel=INC, ts="1.000001", text="x") == "message_not_found"
    assert error(client.chat_update, channel=INC, ts=ts, text="x" * 4001) == "msg_too_long"


def test_delete(client: WebClient, driver: Driver) -> None:
    """Deleting takes own messages away; a parent with replies leaves a tombstone."""
    ts = client.chat_postMessage(channel=INC, text="x")["ts"]
    client.chat_delete(channel=INC, ts=ts)
    assert client.conversations_history(channel=INC)["messages"] == []
    parent = client.chat_postMessage(channel=INC, text="parent")["ts"]
    client.chat_postMessage(channel=INC, text="reply", thread_ts=parent)
    client.chat_delete(channel=INC, ts=parent)
    assert client.conversations_replies(channel=INC, ts=parent)["messages"][0]["subtype"] == "tombstone"
    theirs = driver.as_("U0RITA").say("mine", INC)
    assert error(client.chat_delete, channel=INC, ts=theirs) == "cant_delete_message"


def test_direct_messages_by_user_id(client: WebClient, driver: Driver) -> None:
    """A post to a person goes to their direct message room, and only they see it."""
    posted = client.chat_postMessage(channel="U0RITA", text="for you")
    assert posted["channel"].startswith("D")
    assert client.conversations_open(users="U0RITA")["channel"]["id"] == posted["channel"]
    assert [message["text"] for message in driver.as_("U0RITA").dm()] == ["for you"]
    with pytest.raises(NotPossible):
        driver.as_("U0CARL").messages(posted["channel"])
    assert error(client.chat_postMessage, channel="U0GONE", text="x") == "channel_not_found"
    assert error(client.conversations_open, users="U0GONE") == "user_disabled"
    assert error(client.conversations_open, users=BOT_USER) == "cannot_dm_bot"


def test_direct_messages_need_the_messages_tab() -> None:
    """Without the messages tab in the manifest the app cannot write to people."""
    with sandbox_of(manifest(messages=False)) as closed:
        assert error(client_of(closed).chat_postMessage, channel="U0RITA", text="x") == "messages_tab_disabled"


def test_ephemerals_are_not_stored(client: WebClient, driver: Driver) -> None:
    """An ephemeral answers ok, is in no history, and its reader must be in the channel."""
    assert client.chat_postEphemeral(channel=INC, user="U0RITA", text="psst")["message_ts"]
    assert client.conversations_history(channel=INC)["messages"] == []
    assert driver.as_("U0RITA").messages(INC) == []
    assert [message["text"] for message in driver.as_("U0RITA").ephemerals()] == ["psst"]
    assert driver.as_("U0CARL").ephemerals() == []
    assert error(client.chat_postEphemeral, channel=INC, user="U0GUEST", text="x") == "user_not_in_channel"


def test_permalinks(sandbox: Sandbox, client: WebClient) -> None:
    """A permalink leads to the message in the page."""
    ts = client.chat_postMessage(channel=INC, text="x")["ts"]
    link = client.chat_getPermalink(channel=INC, message_ts=ts)["permalink"]
    assert link == f"{sandbox.url}/archives/{INC}/p{ts.replace('.', '')}"
    assert error(client.chat_getPermalink, channel=INC, message_ts="1.000001") == "message_not_found"
    with urllib.request.urlopen(link) as response:  # noqa: S310
        assert response.url == f"{sandbox.url}/?channel={INC}&ts={ts}"


def test_a_persons_words_ping_nobody_as_plain_text(client: WebClient, driver: Driver) -> None:
    """Mentions count in mrkdwn and text, for members only; the same words in plain text count for nobody."""
    carl = driver.as_("U0CARL")
    client.chat_postMessage(channel=INC, text="x", blocks=[{"type": "section", "text": plain("<!channel> <@U0CARL>")}])
    assert carl.conversation(INC)["mentions"] == 0
    assert carl.conversation(INC)["unread"] == 1
    client.chat_postMessage(channel=INC, text="<!channel> help")
    client.chat_postMessage(
        channel=INC, text="x", blocks=[{"type": "section", "text": {"type": "mrkdwn", "text": "<@U0CARL>"}}]
    )
    client.chat_postMessage(channel=INC, text="<!subteam^S0LEAD>")
    client.chat_postMessage(channel=INC, text="&lt;!channel&gt; &lt;@U0CARL&gt;")
    assert carl.conversation(INC)["mentions"] == 3
    assert driver.as_("U0RITA").conversation(INC)["mentions"] == 1
    carl.read(INC)
    assert (carl.conversation(INC)["mentions"], carl.conversation(INC)["unread"]) == (0, 0)


# --- Lists --------------------------------------------------------------------------------------------------------


def test_users(client: WebClient) -> None:
    """Guests, visitors, bots and deactivated accounts can be told apart."""
    guest = client.users_info(user="U0GUEST")["user"]
    assert (guest["is_restricted"], guest["deleted"], guest["is_bot"]) == (True, False, False)
    assert client.users_info(user="U0STRANGE")["user"]["is_stranger"]
    assert client.users_info(user="U0STRANGE")["user"]["team_id"] == "T0OTHER"
    assert client.users_info(user="U0GONE")["user"]["deleted"]
    assert client.users_info(user=BOT_USER)["user"]["is_bot"]
    assert error(client.users_info, user="U0NOBODY") == "user_not_found"


def test_lists_come_in_pages(client: WebClient) -> None:
    """Following the cursors gives every item once; a cursor that nobody issued is refused."""
    people = [person["id"] for page in client.users_list(limit=2) for person in page["members"]]
    assert sorted(people) == sorted([*(person.id for person in SEED.people), BOT_USER])
    members = [user for page in client.conversations_members(channel=INC, limit=3) for user in page["members"]]
    assert sorted(members) == ["U0BOTUSER", "U0CARL", "U0RITA", "U0STRANGE"]
    for number in range(5):
        client.chat_postMessage(channel=INC, text=str(number))
    pages = [
        ([message["text"] for message in page["messages"]], page["has_more"])
        for page in client.conversations_history(channel=INC, limit=2)
    ]
    assert pages == [(["4", "3"], True), (["2", "1"], True), (["0"], False)]
    assert error(client.users_list, cursor="nonsense") == "invalid_cursor"
    assert error(client.users_list, limit=1001) == "invalid_limit"


def test_history_between(client: WebClient) -> None:
    """The bounds oldest and latest cut the history, with or without their own message."""
    times = [client.chat_postMessage(channel=INC, text=str(number))["ts"] for number in range(4)]

    def between(**bounds: Any) -> list[str]:
        return [message["text"] for message in client.conversations_history(channel=INC, **bounds)["messages"]]

    assert between(oldest=times[1]) == ["3", "2"]
    assert between(oldest=times[1], inclusive=True) == ["3", "2", "1"]
    assert between(latest=times[1]) == ["0"]
    assert between(oldest=times[2], latest=times[2], inclusive=True) == ["2"]
    assert between(oldest="0") == ["3", "2", "1", "0"]


def test_groups(client: WebClient, driver: Driver) -> None:
    """User groups and their members, also after a change."""
    assert client.usergroups_list(include_users=True)["usergroups"][0]["users"] == ["U0CARL"]
    assert client.usergroups_list()["usergroups"][0]["handle"] == "leadership"
    driver.set_group("S0LEAD", ["U0RITA", "U0CARL"])
    assert client.usergroups_users_list(usergroup="S0LEAD")["users"] == ["U0RITA", "U0CARL"]
    driver.deactivate("U0CARL")
    assert client.usergroups_users_list(usergroup="S0LEAD")["users"] == ["U0RITA"]
    assert error(client.usergroups_users_list, usergroup="S0NONE") == "no_such_subteam"


def test_conversations(client: WebClient) -> None:
    """Channels are described and listed by type; private ones only when the bot is in them."""
    info = client.conversations_info(channel=INC, include_num_members=True)["channel"]
    assert (info["name"], info["is_member"], info["is_private"], info["num_members"]) == ("incidents", True, False, 4)
    assert not client.conversations_info(channel=HALL)["channel"]["is_member"]
    listed = client.conversations_list(types="public_channel,private_channel", exclude_archived=True)["channels"]
    assert {channel["id"] for channel in listed} == {INC, HALL, SECRET}
    assert error(client.conversations_list, types="stars") == "invalid_types"
    assert client.team_info()["team"]["id"] == "T0TEST"


def test_pins_and_reactions(client: WebClient) -> None:
    """Once works, twice is refused."""
    ts = client.chat_postMessage(channel=INC, text="x")["ts"]
    client.pins_add(channel=INC, timestamp=ts)
    assert error(client.pins_add, channel=INC, timestamp=ts) == "already_pinned"
    client.reactions_add(channel=INC, timestamp=ts, name="eyes")
    assert error(client.reactions_add, channel=INC, timestamp=ts, name="eyes") == "already_reacted"
    message = client.conversations_history(channel=INC)["messages"][0]
    assert message["reactions"] == [{"name": "eyes", "count": 1, "users": [BOT_USER]}]
    assert message["pinned_to"] == [INC]


# --- Files --------------------------------------------------------------------------------------------------------


def test_upload_by_the_sdk(client: WebClient, driver: Driver) -> None:
    """files_upload_v2 runs its three steps; the bytes come back to those who see the conversation, and to no others."""
    direct = client.conversations_open(users="U0RITA")["channel"]["id"]
    evidence = b'{"seq": 1}\n'
    client.files_upload_v2(channel=direct, content=evidence, filename="evidence.jsonl", initial_comment="Here it is")
    message = driver.as_("U0RITA").dm()[-1]
    assert message["text"] == "Here it is"
    assert message["files"][0]["name"] == "evidence.jsonl"
    assert driver.as_("U0RITA").download(message["files"][0]) == evidence
    with pytest.raises(NotPossible):
        driver.as_("U0CARL").download(message["files"][0])


def test_upload_refusals(client: WebClient) -> None:
    """Missing bytes, a wrong length, a second use and a person as target are refused."""
    offer = client.files_getUploadURLExternal(filename="a.txt", length=3)
    files = [{"id": offer["file_id"], "title": "a"}]
    assert error(client.files_completeUploadExternal, files=files, channel_id=INC) == "file_not_found"
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(offer["upload_url"], data=b"four")  # noqa: S310
    urllib.request.urlopen(offer["upload_url"], data=b"abc").close()  # noqa: S310
    assert error(client.files_completeUploadExternal, files=files, channel_id="U0RITA") == "channel_not_found"
    assert error(client.files_completeUploadExternal, files=files, channel_id=HALL) == "not_in_channel"
    client.files_completeUploadExternal(files=files, channel_id=INC)
    assert error(client.files_completeUploadExternal, files=files, channel_id=INC) == "file_not_found"
    assert error(client.files_getUploadURLExternal, filename="a.txt", length=0) == "invalid_arguments"


# --- Rate limits --------------------------------------------------------------------------------------------------


def test_posts_per_channel() -> None:
    """Five posts at once, then one a second, for each channel by itself; 429 says how long to wait."""
    clock = Clock()
    with sandbox_of(rate_limits=1.0, clock=clock) as strict:
        client = client_of(strict)
        for _ in range(5):
            client.chat_postMessage(channel=INC, text="x")
        with pytest.raises(SlackApiError) as caught:
            client.chat_postMessage(channel=INC, text="x")
        assert caught.value.response.status_code == 429
        assert caught.value.response["error"] == "ratelimited"
        assert caught.value.response.headers["Retry-After"] == "1"
        client.chat_postMessage(channel=SECRET, text="another channel")
        clock.now += 1
        client.chat_postMessage(channel=INC, text="x")
        assert error(client.chat_postMessage, channel=INC, text="x") == "ratelimited"


def test_tiers() -> None:
    """A tier lets a minute's worth through at once and refills over the minute; other methods are not touched."""
    clock = Clock()
    with sandbox_of(rate_limits=1.0, clock=clock) as strict:
        client = client_of(strict)
        for _ in range(20):
            client.users_list()
        with pytest.raises(SlackApiError) as caught:
            client.users_list()
        assert caught.value.response.headers["Retry-After"] == "3"
        client.users_info(user="U0RITA")
        clock.now += 3
        client.users_list()


def test_rate_limits_can_be_scaled() -> None:
    """Half the limits let half through."""
    with sandbox_of(rate_limits=0.5, clock=Clock()) as half:
        client = client_of(half)
        for _ in range(10):
            client.users_list()
        assert error(client.users_list) == "ratelimited"


def test_a_bucket_waits_whole_seconds() -> None:
    """The wait is rounded up, so that whoever waits it out is let in."""
    bucket = Bucket(2, 0.3, 0.0)
    assert [bucket.take(0.0), bucket.take(0.0), bucket.take(0.0)] == [0, 0, 4]
    assert bucket.take(4.0) == 0


# --- The server ---------------------------------------------------------------------------------------------------


def test_foreign_pages_are_refused(sandbox: Sandbox) -> None:
    """A web page from elsewhere, or a rebound name, cannot drive the workspace."""
    for header in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        request = urllib.request.Request(f"{sandbox.url}/sandbox/workspace", headers=header)  # noqa: S310
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)  # noqa: S310
        assert caught.value.code == 403
    own = urllib.request.Request(f"{sandbox.url}/sandbox/workspace", headers={"Origin": sandbox.url})  # noqa: S310
    urllib.request.urlopen(own).close()  # noqa: S310


def test_the_page_is_served(sandbox: Sandbox) -> None:
    """The page and its parts come from the package; nothing outside its folder can be read."""
    for path in ("/", "/page/app.js", "/page/style.css"):
        urllib.request.urlopen(f"{sandbox.url}{path}").close()  # noqa: S310
    for path in ("/page/server.py", "/page/..%2Fserver.py"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{sandbox.url}{path}")  # noqa: S310
        assert caught.value.code == 404
