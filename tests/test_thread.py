"""Does Slack show exactly what is logged, whatever goes wrong on the way?

The workspace is the strict sandbox, the database is real, and the entries are made by the real desk. A kill is a
follower that is dropped between two of its steps: its claim stays, its memory is gone.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from slack_sdk import WebClient
from sqlmodel import select

from bot import thread as thread_module
from bot import views
from bot.calls import payload_of
from bot.cursors import GONE, Part, Unit
from bot.directory import SlackDirectory
from bot.sandbox.driver import Driver
from bot.sandbox.server import Sandbox
from bot.sandbox.workspace import BOT_USER, Channel, Group, Person, WorkspaceSeed
from bot.thread import ThreadFollower
from storage.audit import SYSTEM, Actor, read_entries
from storage.holder import is_dead, new_holder
from storage.models import Feed, Outcome, Post
from workflows import policy as rules
from workflows.desk import Ask, Desk, Findings
from workflows.errors import NotAllowed, Refused, Unavailable
from workflows.lifecycle import Action, Role
from workflows.vault import ChildToken, Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from storage.database import Database
    from storage.models import Request

ROOT = Path(__file__).parent.parent
TEAM = "T0SANDBOX"
INCIDENT = "C0INCIDENT"
PASSWORD = "A1-never-in-a-message"
TOKEN = "hvs.never-in-a-message"
RITA, CARL, CHEN, CORA, SAM, LENA = "U0RITA", "U0CARL", "U0CHEN", "U0CORA", "U0SAM", "U0LENA"
PEOPLE = (RITA, CARL, CHEN, CORA, SAM, LENA, "U0ADA", "U0OLGA")

SEED = WorkspaceSeed(
    people=tuple(Person(user, user[2:].lower(), user[2:].title()) for user in PEOPLE),
    channels=(
        Channel(INCIDENT, "incidents", members=(*PEOPLE, BOT_USER)),
        Channel("C0OTHER", "other", members=(*PEOPLE, BOT_USER)),
    ),
    groups=(
        Group("S0ONCALL", "on-call", "On call", (RITA, CARL)),
        Group("S0LEADS", "leadership", "Leadership", (LENA,)),
        Group("S0SEC", "security", "Security", (SAM,)),
    ),
)


class _VaultStandIn:
    """Gives credentials, and says of each that it is gone once its accessor was revoked."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def open_child(self, _role: str, ttl: timedelta, **_about: object) -> ChildToken:
        return ChildToken(f"accessor-{next(self._numbers)}", TOKEN, ttl)

    def read_as(self, child: ChildToken, path: str) -> Secret:
        return Secret(
            data={"username": "v-rita", "password": PASSWORD},
            lease_id=f"{path}/{child.accessor}",
            lease_duration=child.ttl,
            request_id="",
        )

    def revoke_accessor(self, _accessor: str) -> None:
        return

    def accessor_is_gone(self, _accessor: str) -> bool:
        return True

    def leases(self, _prefix: str) -> frozenset[str]:
        return frozenset()

    def lease(self, _lease_id: str) -> None:
        return None


class KilledError(BaseException):
    """The process ends here."""


class _Fate:
    """Kills at the n-th step. A step is the moment before and the moment after each call and each commit."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.has_struck = False

    def step(self) -> None:
        if self.has_struck:
            raise KilledError  # the dead do nothing more
        if self.left == 0:
            self.has_struck = True
            raise KilledError
        self.left -= 1


class _MortalClient(WebClient):
    """A client whose process may be killed before or after any call."""

    fate: _Fate

    def api_call(self, api_method: str, **more: Any) -> Any:
        self.fate.step()
        answer = super().api_call(api_method, **more)
        self.fate.step()
        return answer


class _MortalDatabase:
    """A database whose process may be killed before or after any commit."""

    def __init__(self, database: Database, fate: _Fate) -> None:
        self._database = database
        self._fate = fate

    def read(self) -> Any:
        return self._database.read()

    @contextmanager
    def write(self) -> Iterator[Any]:
        with self._database.write() as session:
            yield session
            self._fate.step()
        self._fate.step()


class _Clock:
    """The time that the bot and Slack go by."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


class _World:
    """A workspace, a desk, and followers to be made, dropped and made again."""

    def __init__(self, sandbox: Sandbox, database: Database, clock: _Clock) -> None:
        self.database = database
        self.clock = clock
        self.sandbox = sandbox
        self.driver = Driver(sandbox.url)
        self.client = WebClient(token=sandbox.bot_token, base_url=sandbox.api_url, timeout=5)
        self.directory = SlackDirectory(self.client, TEAM)
        text = (ROOT / "bot/demo/breakglass.yml").read_text(encoding="utf-8")
        # There is no target to look at here.
        self.policy = rules.parse(text.replace("watch_role: orders-watch", ""), name="demo")
        self.running: list[ThreadFollower] = []
        self.desk = Desk(database, self.policy, self.directory, _VaultStandIn(), team=TEAM)

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock(), UTC)

    def pass_(self, **span: float) -> None:
        self.clock.ahead += timedelta(**span).total_seconds()

    def follower(self, **more: Any) -> ThreadFollower:
        given = {"pace": False, "first_wait": 0.02, "doubt": timedelta(0), "directory": self.directory} | more
        return ThreadFollower(
            given.pop("database", self.database),
            self.client,
            case=self.desk.case,
            policy=lambda: self.desk.policy,
            now=self.now,
            **given,
        )

    def mortal(self, at: int) -> tuple[ThreadFollower, _Fate]:
        fate = _Fate(at)
        follower = self.follower(database=_MortalDatabase(self.database, fate))
        client = _MortalClient(token=self.client.token, base_url=self.client.base_url, timeout=5, retry_handlers=[])
        client.fate = fate
        follower._client = client
        return follower, fate

    def settle(self, seconds: float = 20.0, **more: Any) -> ThreadFollower:
        """Let a new follower bring everything into Slack."""
        follower = self.follower(**more)
        assert follower.drain(seconds), follower.stuck()
        return follower

    def run(self, **more: Any) -> ThreadFollower:
        """Start a follower that is woken by each commit."""
        follower = self.follower(**more)
        self.database.woken.append(follower.wake)
        self.running.append(follower)
        follower.start()
        return follower

    def end(self) -> None:
        """Stop what was started."""
        self.database.woken.clear()
        for follower in self.running:
            follower.stop()
        self.running.clear()

    def work_until(self, follower: ThreadFollower, shown: Callable[[], object]) -> None:
        """Let a follower work, which need not come to an end, until this is shown."""
        late = time.monotonic() + 20
        follower.tick()
        while not shown():
            assert time.monotonic() < late
            if (unit := follower._turns.take(0.1)) is not None:
                follower._run(unit)

    def after_the_claims(self) -> None:
        """Let so much time pass that whatever a dead follower held has run out."""
        self.pass_(minutes=1)

    # --- what people do ---

    def open(self, level: str = "read", reason: str = "Checkout is down since 03:10") -> Request:
        ask = Ask(
            account="orders-db",
            level=level,
            threshold="customer-impact",
            reason=reason,
            standard_path="Paged the database on-call twice, no answer",
            incident="INC-42",
            duration=timedelta(minutes=10),
        )
        return self.desk.open(Actor(TEAM, RITA), ask, now=self.now())

    def approve(self, row: Request, person: str = CARL) -> Request:
        return self.desk.approve(Actor(TEAM, person), row.id, row.version, now=self.now())

    def deny(self, row: Request, person: str = CARL) -> Request:
        return self.desk.deny(Actor(TEAM, person), row.id, row.version, "Use the replica instead", now=self.now())

    def refused(self, row: Request, person: str = "U0OLGA") -> None:
        with pytest.raises(Refused):
            self.desk.approve(Actor(TEAM, person), row.id, row.version, now=self.now())

    def active(self) -> Request:
        row = self.approve(self.open())
        intent = self.desk.reveal(Actor(TEAM, RITA), row.id, row.version, now=self.now())
        self.desk.issue(intent, now=self.now())
        return self.row(row.id)

    def row(self, request_id: str) -> Request:
        return self.desk.case(request_id).request

    # --- what Slack shows ---

    def history(self, channel: str = INCIDENT) -> list[dict[str, Any]]:
        """The channel's own messages, oldest first."""
        found: list[dict[str, Any]] = []
        for answer in self.client.conversations_history(channel=channel, include_all_metadata=True, limit=200):
            found += answer["messages"]
        return found[::-1]

    def of(self, messages: Sequence[dict[str, Any]], request_id: str) -> list[dict[str, Any]]:
        return [m for m in messages if payload_of(m, BOT_USER).get("request") == request_id]

    def cards(self, request_id: str) -> list[dict[str, Any]]:
        return [m for m in self.of(self.history(), request_id) if payload_of(m, BOT_USER)["key"] == "card"]

    def thread(self, request_id: str, channel: str = INCIDENT) -> list[dict[str, Any]]:
        card = self.of(self.history(channel), request_id)[-1]
        answer = self.client.conversations_replies(channel=channel, ts=card["ts"], include_all_metadata=True, limit=200)
        return list(answer["messages"])[1:]

    def letters(self, request_id: str, person: str) -> list[str]:
        """The keys of the direct messages to a person about a request, in order."""
        room = self.client.conversations_open(users=person)["channel"]["id"]
        return [payload_of(m, BOT_USER)["key"] for m in self.of(self.history(room), request_id)]

    def letter(self, request_id: str, person: str, key: str) -> dict[str, Any]:
        room = self.client.conversations_open(users=person)["channel"]["id"]
        found = [m for m in self.of(self.history(room), request_id) if payload_of(m, BOT_USER)["key"] == key]
        assert len(found) == 1
        return found[0]

    def log(self, request_id: str) -> list[int]:
        with self.database.read() as session:
            return [record.seq for record in read_entries(session, request_id=request_id)]

    def assert_shown(self, request_id: str, custodians: Sequence[str] = (CARL, CHEN, CORA)) -> None:
        """One card, one message to each, and every entry exactly once and in order."""
        assert len(self.cards(request_id)) == 1
        self.assert_lines(self.thread(request_id), self.log(request_id))
        for person in custodians:
            keys = self.letters(request_id, person)
            assert keys.count(f"ask:{person}") == 1
            assert len(keys) == len(set(keys))
        assert self.letters(request_id, RITA).count("own") == 1

    @staticmethod
    def assert_lines(posts: Sequence[dict[str, Any]], seqs: Sequence[int]) -> None:
        told: list[int] = []
        for post in posts:
            payload = payload_of(post, BOT_USER)
            batch = [seq for seq in seqs if payload["first"] <= seq <= payload["last"]]
            assert len(post["text"].splitlines()) == len(batch)
            told += batch
        assert told == list(seqs)


@pytest.fixture
def manifest() -> dict[str, Any]:
    """The app's manifest."""
    return dict(yaml.safe_load((ROOT / "manifest.yml").read_text(encoding="utf-8")))


@pytest.fixture
def world(database: Database, manifest: dict[str, Any]) -> Iterator[_World]:
    """A fresh workspace without rate limits, and an empty database."""
    clock = _Clock()
    with Sandbox(SEED, manifest, rate_limits=0, clock=clock) as sandbox:
        world = _World(sandbox, database, clock)
        yield world
        world.end()


# --- what is told, to whom, in what order -----------------------------------------------------------------------------


def test_a_request_is_told_to_everybody_whom_it_concerns(world: _World) -> None:
    """An opened request has a card, its first line calls leadership and security, and all are written to."""
    row = world.open()
    world.settle()
    world.assert_shown(row.id)
    line = world.thread(row.id)[0]
    assert "<!subteam^S0LEADS>" in line["text"]
    assert "<!subteam^S0SEC>" in line["text"]
    assert world.driver.as_(LENA).conversation(INCIDENT)["mentions"] == 1


def test_the_whole_story_is_in_the_thread_in_the_order_of_the_log(world: _World) -> None:
    """From the request to the review, every entry has its line, in order, also the refusals."""
    row = world.open()
    world.settle()
    world.refused(row)
    row = world.approve(row)
    world.settle()
    intent = world.desk.reveal(Actor(TEAM, RITA), row.id, row.version, now=world.now())
    world.desk.issue(intent, now=world.now())
    world.settle()
    row = world.desk.release(Actor(TEAM, RITA), row.id, world.row(row.id).version, now=world.now())
    world.settle()
    assert world.desk.finish(row.id, now=world.now())
    world.settle()
    world.desk.clock(row.id, now=world.now())
    world.settle()
    form = Findings(
        threshold_met=True,
        standard_path_enough=False,
        used_as_stated=True,
        outcome=Outcome.JUSTIFIED,
        findings="All was in order.",
        threshold_why="The checkout was down.",
        standard_path_why="Nobody had answered for an hour.",
    )
    world.desk.review(Actor(TEAM, SAM), row.id, world.row(row.id).version, form, now=world.now())
    world.settle()
    world.assert_shown(row.id)
    assert world.letters(row.id, RITA) == ["own", "handover"]
    assert world.letters(row.id, SAM) == [f"review:{SAM}"]
    granted = next(m for m in world.thread(row.id) if "<!subteam^S0SEC>" in m["text"] and m != world.thread(row.id)[0])
    assert "<!subteam^S0LEADS>" in granted["text"]


def test_an_interception_calls_leadership_and_security_at_once(world: _World) -> None:
    """That somebody else opened the credential is an alarm in the thread, with both groups in it."""
    row = world.approve(world.open())
    intent = world.desk.reveal(Actor(TEAM, RITA), row.id, row.version, now=world.now())
    world.desk.issue(intent, now=world.now())
    with world.desk.turn(row.id, now=world.now()) as turn:
        turn.move(
            Action.INTERCEPT,
            Actor(TEAM, RITA),
            (Role.REQUESTER,),
            data={"credential": 1},
            ended_by="intercept",
            ended_by_user=RITA,
        )
    world.settle()
    alarm = next(m["text"] for m in world.thread(row.id) if "ALARM" in m["text"])
    line = next(line for line in alarm.splitlines() if "ALARM" in line)
    assert "somebody else opened credential 1" in line
    assert "<!subteam^S0LEADS>" in line
    assert "<!subteam^S0SEC>" in line


def test_entries_that_wait_are_joined_into_one_post(world: _World) -> None:
    """Ten entries made before the follower came are one post of ten lines."""
    row = world.open()
    for _ in range(9):
        world.refused(row)
    world.settle()
    assert len(world.thread(row.id)) == 1
    world.assert_shown(row.id)


def test_more_than_fits_into_a_post_goes_into_several(world: _World) -> None:
    """Sixty entries are told in as few posts as hold them, and none is left out."""
    row = world.open(reason="x" * 1900)
    for _ in range(59):
        world.refused(row)
    world.settle()
    assert 1 < len(world.thread(row.id)) <= 4
    world.assert_shown(row.id)


def test_entries_about_no_request_are_posted_in_the_channel(world: _World) -> None:
    """A refused export belongs to no request and is still seen by all, once."""
    for _ in range(3):
        with pytest.raises(NotAllowed):
            world.desk.may_export(Actor(TEAM, "U0OLGA"), now=world.now())
    world.settle()
    world.settle()
    world.assert_lines(world.of(world.history(), ""), world.log(""))
    assert "<@U0OLGA>" in world.history()[0]["text"]


@pytest.mark.parametrize("event", ["copy:behind", "log:alarm", "log:rotate", "access:alarm"])
def test_security_is_called_when_the_log_or_a_copy_of_it_fails(world: _World, event: str) -> None:
    """That evidence is not kept as it must be is said in the incident channel, and security is called."""
    words = dict.fromkeys(("why", "sentence", "new"), "Full.")
    world.desk.record(
        event, SYSTEM, {"copy": "archive", "required": True, "entries": 3, "seconds": 300, **words}, now=world.now()
    )
    world.desk.record("copy:caught_up", SYSTEM, {"copy": "archive"}, now=world.now())
    world.settle()
    world.assert_lines(world.of(world.history(), ""), world.log(""))
    text = world.history()[0]["text"]
    assert "Full." in text
    assert text.count(f"<!subteam^{world.directory.group_id('@security')}>") == 1


def test_an_account_that_is_not_ready_is_told_to_its_owner(world: _World) -> None:
    """The daily look's entry stands in the incident channel, with the owner called, and security not."""
    findings = [{"code": "too_few", "level": "write", "sentence": "Only one <!here> can act."}]
    told = {"account": "orders-db", "owner": CORA, "verdict": "red", "findings": findings}
    world.desk.record("ready:fail", SYSTEM, {"count": 1, "accounts": [told]}, now=world.now())
    world.settle()
    world.assert_lines(world.of(world.history(), ""), world.log(""))
    text = world.history()[0]["text"]
    assert f"<@{CORA}>" in text
    assert "can act" in text
    assert "<!" not in text


def test_custodians_are_called_when_nobody_answers(world: _World) -> None:
    """At half the time the thread calls the custodians by name."""
    row = world.open()
    world.settle()
    world.pass_(minutes=8)
    world.desk.clock(row.id, now=world.now())
    world.settle()
    assert all(f"<@{person}>" in world.thread(row.id)[-1]["text"] for person in (CARL, CHEN, CORA))


def test_everybody_asked_is_told_how_it_was_settled(world: _World) -> None:
    """After a denial each custodian's message and the requester's name who denied, and have no buttons left."""
    row = world.open()
    world.settle()
    world.deny(row, CHEN)
    world.settle()
    for person, key in ((CARL, f"ask:{CARL}"), (CHEN, f"ask:{CHEN}"), (CORA, f"ask:{CORA}"), (RITA, "own")):
        message = world.letter(row.id, person, key)
        assert CHEN in str(message["blocks"])
        assert not [block for block in message["blocks"] if block["type"] == "actions"]


def test_two_minutes_before_the_end_the_requester_is_warned_once(world: _World) -> None:
    """The warning is posted at its entry, and redrawn without button after the end."""
    row = world.active()
    world.settle()
    world.pass_(minutes=8, seconds=30)
    world.desk.clock(row.id, now=world.now())
    world.settle()
    assert world.letters(row.id, RITA).count("warning") == 1
    world.pass_(minutes=5)
    world.desk.clock(row.id, now=world.now())
    world.settle()
    message = world.letter(row.id, RITA, "warning")
    assert not [block for block in message["blocks"] if block["type"] == "actions"]


def test_a_warning_that_comes_too_late_is_not_given(world: _World) -> None:
    """After an outage over the end nobody is told that two minutes are left."""
    row = world.active()
    world.pass_(minutes=8, seconds=30)
    world.desk.clock(row.id, now=world.now())
    world.pass_(minutes=5)
    world.desk.clock(row.id, now=world.now())
    world.settle()
    assert world.letters(row.id, RITA) == ["own", "handover"] or world.letters(row.id, RITA) == ["handover", "own"]


def test_reviewers_are_asked_and_reminded_and_the_requester_is_not(world: _World) -> None:
    """The reviewer hears at the end, and again when it is overdue; after a long outage only of the newest reminder."""
    row = world.active()
    world.desk.release(Actor(TEAM, RITA), row.id, row.version, now=world.now())
    world.desk.finish(row.id, now=world.now())
    world.desk.clock(row.id, now=world.now())
    world.settle()
    assert world.letters(row.id, SAM) == [f"review:{SAM}"]
    for _ in range(3):
        world.pass_(days=4)
        world.desk.clock(row.id, now=world.now())
    world.settle()
    keys = world.letters(row.id, SAM)
    assert len(keys) == 2
    assert keys[1].startswith("remind:")


def test_no_secret_is_in_any_call_or_row(world: _World) -> None:
    """Password and token are in no Slack call, in no row of the follower and in no thread."""
    row = world.active()
    world.settle()
    world.desk.release(Actor(TEAM, RITA), row.id, row.version, now=world.now())
    world.desk.finish(row.id, now=world.now())
    world.settle()
    with world.database.read() as session:
        rows = [str(post.model_dump()) for post in session.exec(select(Post))]
        rows += [str(feed.model_dump()) for feed in session.exec(select(Feed))]
    everything = str(world.driver.journal()) + str(rows)
    assert row.id in everything
    assert PASSWORD not in everything
    assert TOKEN not in everything
    assert "accessor-" not in everything.replace("database/creds/orders-ro/accessor-", "")


# --- nothing lost, nothing doubled ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "order"),
    [
        ("rate_limited", {"retry_after": 1}),
        ("error500", {}),
        ("timeout", {"seconds": 0.05}),
        ("post_then_timeout", {"seconds": 0.05}),
    ],
)
@pytest.mark.parametrize("method", ["chat.postMessage", "chat.update", None])
def test_faults_of_slack_lose_and_double_nothing(
    world: _World, kind: str, order: dict[str, Any], method: str | None
) -> None:
    """Whatever call fails, in whatever way, in the end each message is there once."""
    first = world.open()
    world.settle()
    world.driver.fault(kind, method=method, times=4, **order)
    second = world.open()
    world.deny(first)
    world.settle()
    world.driver.clear_faults()
    world.settle()
    for row in (first, second):
        world.assert_shown(row.id)
    assert "Denied" in str(world.cards(first.id))


def test_a_kill_at_any_step_loses_and_doubles_nothing(world: _World) -> None:
    """A follower killed before or after any call or commit is followed by one that finds what it did.

    The steps are the same on both databases; PostgreSQL is killed at every third.
    """
    account = world.policy.accounts["orders-db"]
    world.desk.policy = replace(world.policy, accounts={"orders-db": replace(account, custodians=(CARL,))})
    at = 0
    while True:
        row = world.open()
        follower, fate = world.mortal(at)
        try:
            follower.drain(20)
            world.deny(row)
            follower.drain(20)
        except KilledError:
            pass
        if world.row(row.id).state == "pending":
            world.deny(row)
        world.after_the_claims()
        world.settle()
        world.assert_shown(row.id, (CARL,))
        if not fate.has_struck:
            break
        at += 1 if world.database.kind == "sqlite" else 3
    assert at > 40


def test_a_batch_that_was_tried_stays_the_same_batch(world: _World) -> None:
    """Killed after the post and before its answer was kept, then woken by more entries: no entry is told twice."""
    row = world.open()
    world.settle()
    world.refused(row)
    follower, _fate = world.mortal(5)  # the claim, the mark, the call; then its answer is never kept
    with pytest.raises(KilledError):
        follower._run(Unit(Part.LINES, row.id))
    assert len(world.thread(row.id)) == 2
    world.refused(row)
    world.refused(row)
    world.after_the_claims()
    world.settle()
    world.assert_shown(row.id)
    assert [len(m["text"].splitlines()) for m in world.thread(row.id)] == [1, 1, 2]


def test_two_followers_on_one_database_tell_everything_once(world: _World) -> None:
    """Two bots, woken and ticking at the same time, share the work of twelve requests without a double."""
    followers = [world.run(), world.run()]
    rows = []

    def ask() -> None:
        row = world.open()
        rows.append(row)
        world.refused(row)
        world.deny(row)

    people = [threading.Thread(target=ask) for _ in range(12)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    for follower in followers:
        assert follower.drain(60), (follower._cursors.behind(None), follower.stuck())
    for row in rows:
        world.assert_shown(row.id)


def test_a_post_of_another_app_with_our_metadata_is_not_ours(world: _World) -> None:
    """Forged metadata cannot make the follower believe that a card is there."""
    forged = {"user": "U0OTHER", "metadata": {"event_type": "breakglass", "event_payload": {"request": "BG-1"}}}
    assert payload_of(forged, BOT_USER) == {}
    assert payload_of({**forged, "user": BOT_USER}, BOT_USER) == {"request": "BG-1"}


# --- nobody waits for somebody else -----------------------------------------------------------------------------------


def test_a_stuck_direct_message_holds_up_nobody(world: _World) -> None:
    """While one custodian's direct message hangs, later requests are told to everybody else."""
    world.driver.fault("timeout", method="chat.postMessage", channel=CARL, times=10_000, seconds=0.2)
    follower = world.run()
    rows = [world.open() for _ in range(4)]
    for row in rows:
        world.driver.wait_for(lambda row=row: world.letters(row.id, CORA), 20, what="Cora's message")
        world.driver.wait_for(
            lambda row=row: world.of(world.history(), row.id) and world.thread(row.id), 20, what="the thread"
        )
    assert not any(world.letters(row.id, CARL) for row in rows)
    assert {found.reason for found in follower.stuck()} == {"no_answer_RemoteDisconnected"}
    world.driver.clear_faults()
    assert follower.drain(20)
    for row in rows:
        world.assert_shown(row.id)


def test_a_stuck_channel_holds_up_no_other_channel(world: _World) -> None:
    """While the incident channel hangs, a request whose policy names another channel is told there in full."""
    world.driver.fault("timeout", method="chat.postMessage", channel=INCIDENT, times=10_000, seconds=0.2)
    follower = world.run()
    stuck_rows = [world.open() for _ in range(3)]
    world.desk.policy = replace(world.policy, incident_channel="C0OTHER")
    row = world.open()
    world.driver.wait_for(lambda: world.of(world.history("C0OTHER"), row.id), 20, what="the card")
    world.driver.wait_for(lambda: world.thread(row.id, "C0OTHER"), 20, what="the thread")
    world.driver.wait_for(lambda: len(world.letters(stuck_rows[0].id, CARL)) == 1, 20, what="a direct message")
    assert world.history() == []
    world.driver.clear_faults()
    assert follower.drain(20)
    for stuck_row in stuck_rows:
        world.assert_shown(stuck_row.id)


def test_a_limit_on_redrawing_does_not_delay_posts_and_only_the_newest_picture_is_drawn(world: _World) -> None:
    """With chat.update limited, lines go on; afterwards the card is drawn once, as it then is."""
    row = world.open(level="write")
    world.settle()
    start = len(world.driver.journal(kind="api", method="chat.update"))
    world.driver.fault("rate_limited", method="chat.update", times=1, retry_after=2)
    follower = world.run()
    row = world.approve(row, CARL)
    world.driver.wait_for(lambda: len(world.thread(row.id)) == 2, 10, what="the line of the first approval")
    row = world.approve(row, CHEN)
    assert follower.drain(20)
    updates = world.driver.journal(kind="api", method="chat.update")[start:]
    card = world.cards(row.id)[0]
    drawn = [call for call in updates if call["args"].get("ts") == card["ts"] and call["ok"]]
    assert len(drawn) <= 2
    assert "Approved" in card["text"]
    world.assert_shown(row.id)


def test_under_slacks_real_limits_everything_arrives(database: Database, manifest: dict[str, Any]) -> None:
    """With Slack's own rate limits, cards come before lines, what waits is joined, and nothing is lost."""
    clock = _Clock()
    with Sandbox(SEED, manifest, rate_limits=1, clock=clock) as sandbox:
        world = _World(sandbox, database, clock)
        rows = [world.open() for _ in range(4)]
        for row in rows:
            world.refused(row)
            world.deny(row)
        world.settle(pace=True, first_wait=1.0)
        for row in rows:
            assert len(world.cards(row.id)) == 1
            world.assert_lines(world.thread(row.id), world.log(row.id))
        order = [payload_of(m, BOT_USER).get("key") for m in world.history()]
        assert order == ["card"] * 4
        assert not [call for call in world.driver.journal(kind="api", method="chat.postMessage") if not call["ok"]]


# --- who and what is no longer there ----------------------------------------------------------------------------------


def test_a_person_who_cannot_be_written_to_is_given_up_and_the_others_are_told(world: _World) -> None:
    """A custodian deactivated after the opening is remembered as unreachable, with the reason."""
    row = world.open()
    world.driver.deactivate(CHEN)
    follower = world.settle()
    world.assert_shown(row.id, (CARL, CORA))
    assert [(s.what, s.reason, s.is_given_up) for s in follower.stuck()] == [
        (f"ask:{CHEN}", f"{CHEN}: channel_not_found", True)
    ]


def test_a_bot_that_was_put_out_of_the_channel_posts_when_it_is_back(world: _World) -> None:
    """The channel is never given up: the reason is told by stuck(), and after the invitation all is posted."""
    world.driver.change_channel(INCIDENT, members=list(PEOPLE))
    row = world.open()
    world.refused(row)
    follower = world.follower()
    world.work_until(follower, lambda: follower.stuck() and world.letters(row.id, RITA))
    assert [(s.what, s.reason) for s in follower.stuck()] == [("card", "not_in_channel")]
    assert follower.seconds_behind() > 0
    assert world.letters(row.id, CARL) == [f"ask:{CARL}"]
    world.driver.change_channel(INCIDENT, members=[*PEOPLE, BOT_USER])
    assert follower.drain(20)
    world.assert_shown(row.id)
    assert follower.stuck() == []
    assert follower.seconds_behind() == 0


def test_a_deleted_card_is_posted_again(world: _World) -> None:
    """Somebody who deletes the card gets a new one at the next step, and the thread goes on below it."""
    row = world.open()
    world.settle()
    old = world.cards(row.id)[0]
    world.client.chat_delete(channel=INCIDENT, ts=old["ts"])
    world.deny(row)
    world.settle()
    new = world.cards(row.id)[-1]
    assert new["ts"] != old["ts"]
    assert "Denied" in new["text"]
    replies = world.client.conversations_replies(channel=INCIDENT, ts=new["ts"])["messages"][1:]
    replies += world.client.conversations_replies(channel=INCIDENT, ts=old["ts"])["messages"][1:]
    assert len(replies) == 2


def test_a_message_whose_blocks_slack_refuses_is_sent_as_words(world: _World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake in drawing loses the buttons, not the news."""
    bad = views.Message("Something happened", [{"type": "no such block"}])
    monkeypatch.setattr(views, "post", lambda *_args, **_more: bad)
    row = world.open()
    world.settle()
    assert [m["text"] for m in world.thread(row.id)] == ["Something happened"]


def test_a_request_that_cannot_be_drawn_stops_no_other(world: _World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault in one request's picture is that request's alone, and is told by stuck()."""
    bad = world.open()
    good = world.open()
    draw = views.card

    def card(case: Any, policy: Any, *, now: datetime) -> views.Message:
        if case.request.id == bad.id:
            raise ZeroDivisionError
        return draw(case, policy, now=now)

    monkeypatch.setitem(thread_module._PICTURES, "card", card)
    follower = world.follower()
    world.work_until(follower, lambda: world.cards(good.id) and world.thread(good.id) and follower.stuck())
    assert world.cards(bad.id) == []
    assert [(s.request_id, s.what) for s in follower.stuck()] == [(bad.id, "card")]


def test_a_reviewer_who_cannot_be_looked_up_holds_up_nobody(world: _World) -> None:
    """While Slack does not say who is who, the end is drawn all the same; the review gets its owner afterwards."""

    class Silent:
        def __getattr__(self, name: str) -> Any:
            raise Unavailable("Slack does not answer.")

    row = world.active()
    world.settle()
    world.desk.release(Actor(TEAM, RITA), row.id, row.version, now=world.now())
    world.desk.finish(row.id, now=world.now())
    known, world.desk.directory = world.desk.directory, Silent()
    world.desk.clock(row.id, now=world.now())
    world.settle()
    assert world.letters(row.id, SAM) == []
    assert "actions" not in [block["type"] for block in world.letter(row.id, RITA, "handover")["blocks"]]
    world.desk.directory = known
    world.pass_(minutes=5)
    world.desk.clock(row.id, now=world.now())
    world.settle()
    assert world.letters(row.id, SAM) == [f"review:{SAM}"]


# --- claims -----------------------------------------------------------------------------------------------------------


def test_a_claim_is_given_back_when_the_work_is_done(world: _World) -> None:
    """After the work no row is held, so that another bot need not wait."""
    row = world.open()
    world.settle()
    with world.database.read() as session:
        feeds = {feed.follower: feed for feed in session.exec(select(Feed).where(Feed.request_id == row.id))}
    assert set(feeds) == {"thread" + part for part in Part}
    assert all(feed.holder is None and feed.held_until is None for feed in feeds.values())
    assert {feed.seq for feed in feeds.values()} == {world.row(row.id).last_seq}


def test_what_a_living_follower_holds_is_left_to_it_until_it_runs_out(world: _World) -> None:
    """A claim of a follower that may be alive is respected, and taken over after its time."""
    row = world.open()
    other = world.follower()
    for part in Part:
        assert other._cursors.take(Unit(part, row.id)) is not None
    follower = world.follower()
    assert not follower.drain(0.5)
    assert world.history() == []
    world.after_the_claims()
    assert follower.drain(20)
    world.assert_shown(row.id)


def test_a_holder_whose_process_is_gone_is_dead(tmp_path: Path) -> None:
    """Only a process that is certainly gone is dead: not this one, nor one of elsewhere, nor a name we cannot read."""
    code = "from storage.holder import new_holder; print(new_holder(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        holder = process.stdout.readline().strip()
        assert not is_dead(holder)
        process.kill()
        process.wait()
    assert is_dead(holder)
    assert not is_dead(new_holder())
    here, _, rest = new_holder().partition("/")
    assert not is_dead(f"elsewhere-{here}/{rest}")
    assert not is_dead("some-name")
    assert is_dead(f"{here}/1/17/abcd")  # the number is taken by a process that began at another time


def test_given_up_is_remembered_by_its_picture(world: _World) -> None:
    """A given-up message is not tried again at the next entry."""
    row = world.open()
    world.driver.deactivate(CHEN)
    world.settle()
    calls = len(world.driver.journal(kind="api", method="chat.postMessage"))
    world.deny(row)
    world.settle()
    later = world.driver.journal(kind="api", method="chat.postMessage")[calls:]
    assert CHEN not in [call["args"]["channel"] for call in later]
    with world.database.read() as session:
        assert session.get(Post, (row.id, f"ask:{CHEN}")).picture == f"{GONE}channel_not_found"
