"""Is what the bot believes about people what Slack says now, and never older than a minute?"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from slack_bolt import App
from slack_bolt.adapter.socket_mode import SocketModeHandler
from slack_sdk import WebClient

from bot.directory import KEPT, SlackDirectory
from bot.sandbox.driver import Driver
from bot.sandbox.server import Sandbox
from bot.sandbox.workspace import BOT_USER, Channel, Group, Person, WorkspaceSeed
from workflows import policy as rules
from workflows.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
TEAM = "T0SANDBOX"
SEED = WorkspaceSeed(
    people=(
        Person("U0CARL", "carl", "Carl Costa"),
        Person("U0CHEN", "chen", "Chen Li"),
        Person("U0GUS", "gus", "Gus Guest", is_guest=True),
        Person("U0ONE", "one", "One Channel", is_single_channel_guest=True),
        Person("U0GONE", "gone", "Gone", deleted=True),
        Person("U0BOTTY", "botty", "Botty", is_bot=True),
        Person("U0FAR", "far", "Far Away", team_id="T0ELSEWHERE"),
    ),
    channels=(Channel("C0INCIDENT", "incidents", members=("U0CARL", BOT_USER)),),
    groups=(Group("S0ONCALL", "on-call", "On call", ("U0CARL", "U0CHEN")), Group("S0NOBODY", "nobody", "Nobody", ())),
)


class _World:
    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.driver = Driver(sandbox.url)
        self.client = WebClient(token=sandbox.bot_token, base_url=sandbox.api_url, timeout=5)
        self.seconds = 0.0
        self.directory = SlackDirectory(self.client, TEAM, clock=lambda: self.seconds)

    def calls(self, *methods: str) -> int:
        return len([c for c in self.driver.journal(kind="api") if not methods or c["method"] in methods])


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    """The app's manifest."""
    return dict(yaml.safe_load((ROOT / "manifest.yml").read_text(encoding="utf-8")))


@pytest.fixture
def world(manifest: dict[str, Any]) -> Iterator[_World]:
    """A fresh workspace without rate limits."""
    with Sandbox(SEED, manifest, rate_limits=0) as sandbox:
        yield _World(sandbox)


def test_a_person_is_what_slack_says(world: _World) -> None:
    """Bots, guests of both kinds, the deactivated and people of elsewhere are told apart from a full member."""
    found = {user.id: world.directory.person(user.id) for user in SEED.people}
    assert {name: person.inability() for name, person in found.items()} == {
        "U0CARL": None,
        "U0CHEN": None,
        "U0GUS": "is a guest",
        "U0ONE": "is a guest",
        "U0GONE": "is deactivated",
        "U0BOTTY": "is a bot",
        "U0FAR": "belongs to another workspace",
    }
    assert found["U0CARL"] == rules.Person(
        TEAM, "U0CARL", "Carl Costa", is_bot=False, is_guest=False, is_deleted=False, is_foreign=False
    )


def test_who_does_not_exist_is_nobody(world: _World) -> None:
    """An unknown user and an unknown group are None, which is not the same as "could not be asked"."""
    assert world.directory.person("U0NOBODY") is None
    assert world.directory.members("@no-such-group") is None
    assert world.directory.members("S0NOSUCH") is None
    assert world.directory.group_id("@no-such-group") is None


def test_what_slack_leaves_out_counts_against_the_person(world: _World) -> None:
    """A user object without its flags is a deactivated guest bot of another workspace."""
    person = world.directory._person({"id": "U0X"})
    assert (person.is_bot, person.is_guest, person.is_deleted, person.is_foreign) == (True, True, True, True)
    stranger = {"id": "U0X", "team_id": TEAM, "deleted": False, "is_bot": False, "is_stranger": True}
    assert world.directory._person({**stranger, "is_restricted": False, "is_ultra_restricted": False}).is_foreign


def test_groups_are_found_by_id_and_by_handle(world: _World) -> None:
    """Members come for S… and for @handle, from one call for all groups; an empty group is empty, not unknown."""
    assert world.directory.members("@on-call") == ("U0CARL", "U0CHEN")
    assert world.directory.members("S0ONCALL") == ("U0CARL", "U0CHEN")
    assert world.directory.group_id("@on-call") == "S0ONCALL"
    assert world.directory.group_id("S0ONCALL") == "S0ONCALL"
    assert world.calls("usergroups.list") == 1
    assert world.directory.members("@nobody") == ()


def test_an_answer_is_used_for_a_minute_and_not_longer(world: _World) -> None:
    """Within the minute no call is made; after it Slack is asked again, and the change is seen."""
    assert world.directory.person("U0CARL").inability() is None
    world.driver.deactivate("U0CARL")
    world.seconds += KEPT - 1
    assert world.directory.person("U0CARL").inability() is None
    assert world.calls("users.info") == 1
    world.seconds += 1
    assert world.directory.person("U0CARL").inability() == "is deactivated"


@pytest.mark.parametrize(
    ("kind", "order"), [("error500", {}), ("rate_limited", {"retry_after": 30}), ("timeout", {"seconds": 0.05})]
)
def test_an_old_answer_is_never_used_because_slack_is_down(world: _World, kind: str, order: dict[str, Any]) -> None:
    """After the minute, and with Slack failing in whatever way, the answer is Unavailable."""
    world.directory.prime()
    assert world.directory.person("U0CARL") is not None
    assert world.directory.members("@on-call") is not None
    world.seconds += KEPT
    world.driver.fault(kind, times=100, **order)
    for ask in (
        lambda: world.directory.person("U0CARL"),
        lambda: world.directory.members("@on-call"),
        lambda: world.directory.group_id("@on-call"),
    ):
        with pytest.raises(Unavailable):
            ask()
    world.driver.clear_faults()
    assert world.directory.person("U0CARL") is not None


def test_a_token_without_the_scope_is_unavailable_and_not_nobody(manifest: dict[str, Any]) -> None:
    """missing_scope must not read as "there is no such person"."""
    scopes = [s for s in manifest["oauth_config"]["scopes"]["bot"] if s not in ("users:read", "usergroups:read")]
    less = {**manifest, "oauth_config": {"scopes": {"bot": scopes}}}
    with Sandbox(SEED, less, rate_limits=0) as sandbox:
        directory = _World(sandbox).directory
        directory.prime()
        with pytest.raises(Unavailable, match="missing_scope"):
            directory.person("U0CARL")
        with pytest.raises(Unavailable, match="missing_scope"):
            directory.members("@on-call")


def test_the_start_reads_everybody_at_once(world: _World) -> None:
    """After prime() no single person is asked about, and a minute later one list serves for all again."""
    world.directory.prime()
    for _ in range(2):
        for user in SEED.people:
            assert world.directory.person(user.id) is not None
        world.seconds += KEPT
    assert world.calls("users.info") == 0
    assert world.calls("users.list") == 2


def test_fifty_threads_with_one_question_make_one_call(world: _World) -> None:
    """A burst of clicks asks Slack once, and all get the answer."""
    world.driver.fault("rate_limited", method="users.info", times=0 + 1, retry_after=1)
    failed: list[Exception] = []
    found: list[Any] = []
    gate = threading.Barrier(50)

    def ask() -> None:
        gate.wait()
        try:
            found.append(world.directory.person("U0CARL"))
        except Unavailable as error:
            failed.append(error)

    for _ in range(2):
        threads = [threading.Thread(target=ask) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) + len(failed) == 100
    assert len(found) >= 50
    assert world.calls("users.info") <= 3


def test_what_slack_says_has_changed_is_forgotten(world: _World) -> None:
    """user_change and subteam_members_changed reach the directory through the app, well within the minute."""
    app = App(client=world.client)
    world.directory.register(app)
    handler = SocketModeHandler(
        app, world.sandbox.app_token, web_client=WebClient(base_url=world.sandbox.api_url, token="xapp-sandbox")
    )
    handler.connect()
    try:
        assert world.directory.person("U0CARL").inability() is None
        assert world.directory.members("@on-call") == ("U0CARL", "U0CHEN")
        world.driver.deactivate("U0CARL")
        world.driver.set_group("S0ONCALL", ["U0CHEN"])
        world.driver.wait_for(lambda: world.directory.person("U0CARL").inability() == "is deactivated")
        world.driver.wait_for(lambda: world.directory.members("@on-call") == ("U0CHEN",))
    finally:
        handler.close()


def test_an_answer_that_was_under_way_at_the_change_is_not_kept(world: _World) -> None:
    """The event overtakes the answer: the old answer serves who asked before, and nobody after."""
    real = world.directory._client.users_info

    def slow(**args: Any) -> Any:
        answer = real(**args)
        world.driver.deactivate("U0CARL")
        world.directory.forget_user("U0CARL")
        world.directory._client.users_info = real
        return answer

    world.directory._client.users_info = slow
    assert world.directory.person("U0CARL").inability() is None
    assert world.directory.person("U0CARL").inability() == "is deactivated"


def test_refreshing_keeps_the_next_click_from_asking(world: _World) -> None:
    """With refresh() by a clock, a click finds all it needs, also long after the start."""
    names = ("U0CARL", "@on-call")
    world.directory.prime()
    for _ in range(6):
        world.seconds += KEPT * 0.6
        world.directory.refresh(names)
    calls = world.calls()
    assert world.directory.person("U0CARL") is not None
    assert world.directory.person("U0CHEN") is not None
    assert world.directory.members("@on-call") is not None
    assert world.calls() == calls


def test_refreshing_while_slack_is_down_is_harmless(world: _World) -> None:
    """A failed refresh raises nothing and keeps nothing beyond its minute."""
    world.directory.prime()
    world.driver.fault("error500", times=100)
    world.seconds += KEPT
    world.directory.refresh(("U0CARL", "@on-call"))
    with pytest.raises(Unavailable):
        world.directory.person("U0CARL")


@pytest.mark.parametrize(
    ("status", "is_away"),
    [
        ({}, False),
        ({"status_text": "In a meeting", "status_emoji": ":spiral_calendar_pad:"}, False),
        ({"status_text": "Throwaway ideas", "status_emoji": ":bulb:"}, False),
        ({"status_text": "Vacationing", "status_emoji": ":palm_tree:"}, True),
        ({"status_text": "", "status_emoji": ":face_with_thermometer:"}, True),
        ({"status_text": "OOO until 3 May", "status_emoji": ""}, True),
        ({"status_text": "On parental leave"}, True),
        ({"status_text": "Vacationing", "status_emoji": ":palm_tree:", "status_expiration": 1_000_000_000}, False),
        ({"status_text": "away", "status_expiration": 4_000_000_000}, True),
    ],
)
def test_who_says_that_they_are_away_is_away_until_their_status_ends(
    world: _World, *, status: dict[str, Any], is_away: bool
) -> None:
    """A status of Slack's own for it, or its words, counts until its time is over; other statuses do not."""
    world.driver.change_person("U0CARL", **status)
    carl = world.directory.person("U0CARL")
    assert carl is not None
    assert carl.is_away is is_away
    assert carl.inability() is None
