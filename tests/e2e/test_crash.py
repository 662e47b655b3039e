"""Does anything get lost, doubled or stuck when the bot is killed, wherever that happens?

A first life of one request, from the last Approve click to the confirmed end, writes down every point at which the bot
touches the world. Then a fresh request is lived for each of these points: the bot is killed there (a real SIGKILL of a
real process, ``crashing.py``), started again, and people go on with what Slack shows them. Vault, PostgreSQL and Slack
(the sandbox) stay up, as they do when a pod dies.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from queue import Empty, Queue
from typing import TYPE_CHECKING, Any, Final

import psycopg
import pytest
from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError
from sqlmodel import select

from bot import views
from bot.calls import payload_of
from bot.cursors import stuck
from bot.demo.play import CHANNEL, _conninfo, _psql_line
from bot.demo.run import BOT_TOKEN, Demo
from bot.sandbox.driver import Driver, NotPossible, wait_for
from bot.sandbox.workspace import BOT_USER
from bot.thread import _PICTURES
from storage.audit import check, read_entries
from storage.database import Database
from storage.models import Feed, Post, Request, State
from workflows import policy as rules
from workflows.door import Case, case_of
from workflows.vault import Vault

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from storage.audit import Record

PROGRAM: Final = Path(__file__).with_name("crashing.py")
ROOT: Final = Path(__file__).parent.parent.parent
PREFIX: Final = "database/creds/orders-ro"
LONG: Final = 30.0  # seconds after which something is stuck; nothing here takes a tenth of it
STAGES: Final = ("approve", "reveal", "show again", "done")

# What must have been among the points, before and after.
VAULT: Final = ("token create", "creds read", "accessor revoke", "accessor lookup", "lease list", "lease lookup")
COMMITS: Final = (
    "request:approve, request:quorum",
    "credential:reveal",
    "credential:token",
    "credential:issue",
    "credential:abandon",
    "credential:reissue",
    "credential:release",
    "credential:end",
)
SLACK: Final = (
    "acknowledgement",
    "response_url",
    "views.open",
    "views.update",
    "chat.postMessage handover",
    "chat.postMessage thread",
    "chat.postMessage review",
    "chat.update card",
    "chat.update direct",
)
# What was sent, and has its effect or not, while nobody is there any more.
IN_FLIGHT: Final = (
    "token create",
    "creds read",
    "accessor revoke",
    "chat.postMessage handover",
    "chat.postMessage thread",
    "chat.postMessage review",
    "views.update",
)


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """Where the bot is: after which click, at the ``nth`` doing of what, just before, during or after it."""

    stage: str
    kind: str
    name: str
    when: str
    nth: int

    def __str__(self) -> str:
        again = f" (time {self.nth})" if self.nth > 1 else ""
        return f"{self.stage}: {self.when} {self.kind} {self.name}{again}"


# Where to die with the bot's own database on PostgreSQL: around its commits, and where most is at stake.
SAMPLE: Final = (
    Point("approve", "commit", "request:approve, request:quorum", "before", 1),
    Point("approve", "slack", "chat.postMessage handover", "after", 1),
    Point("reveal", "commit", "credential:reveal", "after", 1),
    Point("reveal", "commit", "credential:token", "before", 1),
    Point("reveal", "vault", "creds read", "after", 1),
    Point("reveal", "commit", "credential:issue", "after", 1),
    Point("show again", "commit", "credential:abandon", "before", 1),
    Point("done", "vault", "accessor revoke", "after", 1),
    Point("done", "commit", "credential:end", "before", 1),
    Point("done", "slack", "chat.postMessage thread", "after", 1),
)


@dataclass
class Found:
    """One line of the table."""

    point: Point
    request: str = ""
    state: str = ""  # when it was killed
    after: str = ""  # when it was up again and had done by itself what it could
    most_leases: int = 0
    seconds: float = 0.0
    wrong: str = ""


class Bot:
    """The bot under ``crashing.py``: start it, arm it, hear of its points and of its death."""

    def __init__(self, demo: Demo, log: Path) -> None:
        self.points: list[dict[str, Any]] = []
        self._said: Queue[dict[str, Any]] = Queue()
        environment = {"PYTHONPATH": str(ROOT), **demo.environment, "BREAKGLASS_PATIENCE_SECONDS": "1"}
        with log.open("ab") as err:
            self._process = subprocess.Popen(
                [sys.executable, str(PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                env=environment,
                bufsize=0,
            )
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def _listen(self) -> None:
        for line in self._process.stdout or ():
            said = json.loads(line)
            if "point" in said:
                self.points.append(said["point"])
            else:
                self._said.put(said)
        self._said.put({"closed": True})

    def order(self, **words: object) -> None:
        """Give an order."""
        self._process.stdin.write(json.dumps(words).encode() + b"\n")

    def hear(self, what: str, seconds: float = LONG) -> Any:
        """Wait until this is said; anything else that ends the bot is a failure."""
        try:
            said = self._said.get(timeout=seconds)
        except Empty:
            raise TimeoutError(f"“{what}” was not said within {seconds:.0f} s") from None
        assert what in said, f"{said} came instead of “{what}”"
        return said[what]

    def start(self, database_url: str) -> None:
        """Start a process; returns when it listens."""
        self.order(do="start", database=database_url)
        self.hear("started")
        self.hear("listening")

    def arm(self, point: Point | None) -> None:
        """Write down points from here, and die at this one."""
        self.points.clear()
        kill = point and {"kind": point.kind, "name": point.name, "when": point.when, "nth": point.nth}
        self.order(do="arm", kill=kill)
        self.hear("armed")

    def kill(self) -> None:
        """Kill it at no point in particular."""
        self.order(do="kill")
        assert self.hear("died") == -9

    def close(self) -> None:
        """End all of it."""
        self._process.stdin.close()
        self._process.wait(LONG)
        self._reader.join(LONG)
        self._process.stdout.close()


@dataclass
class Leases:
    """How many leases there were at most while somebody looked, every few milliseconds."""

    most: int = 0
    looks: int = 0
    ended: threading.Event = field(default_factory=threading.Event)


class World:
    """The real parts, the people, and what can be seen from outside of the bot."""

    def __init__(self, demo: Demo, database_url: str, log: Path) -> None:
        self.demo = demo
        self.database_url = database_url
        self.database = Database(database_url)
        self.bot = Bot(demo, log)
        self.people = Driver(demo.url)
        self.rita, self.carl = self.people.as_("U0RITA"), self.people.as_("U0CARL")
        self.policy = rules.load(demo.policy_file)
        self.vault = Vault(demo.bao.addr, token=demo.bao.root_token)
        self.slack = WebClient(token=BOT_TOKEN, base_url=f"{demo.url}/api/")
        self._clicks: list[threading.Thread] = []
        self._rooms: dict[str, str] = {}

    def start(self) -> None:
        """Start the bot; returns when Slack has its socket."""
        self.bot.start(self.database_url)
        wait_for(lambda: self.people.sockets() == 1, LONG, what="one socket of the bot's")

    def close(self) -> None:
        """Leave nothing running."""
        for click in self._clicks:
            click.join()
        self.bot.close()
        self.database.close()
        wait_for(lambda: self.people.sockets() == 0, LONG, what="the end of the bot's socket")

    # ------------------------------------------------------------------------------------ looking

    def case(self, request_id: str) -> Case:
        """Return the case as it is stored."""
        with self.database.read() as session:
            return case_of(session, request_id)

    def requests(self) -> frozenset[str]:
        """Return the ids of all requests."""
        with self.database.read() as session:
            return frozenset(session.exec(select(Request.id)))

    def is_settled(self, request_id: str) -> bool:
        """Whether Slack shows everything, no claim is held, and no credential is in the making."""
        with self.database.read() as session:
            row = session.get(Request, request_id)
            feeds = list(session.exec(select(Feed).where(Feed.request_id == request_id)))
            grants = case_of(session, request_id).grants
        is_shown = len(feeds) == 3 and all(f.seq == row.last_seq and f.holder is None for f in feeds)
        return is_shown and not any(g.ended_at is None and g.issued_at is None for g in grants)

    def settle(self, request_id: str) -> Case:
        """Wait until the bot has done by itself all that it can, and return the case."""

        def look() -> Case | None:
            case = self.case(request_id)
            # The next tick gives the review its owner; what is told of that must be waited for, too: so the case first.
            owes = case.state is State.ENDED and case.request.review_owner is None
            if case.state is State.ENDING or owes or not self.is_settled(request_id):
                return None
            return self.case(request_id)

        return wait_for(look, LONG, what=f"{request_id} to settle")

    def leases(self) -> frozenset[str]:
        """Return the live leases, as an administrator of Vault's sees them."""
        return self.vault.leases(PREFIX)

    def logins(self) -> int:
        """Count the emergency logins that PostgreSQL has."""
        with psycopg.connect(self.demo.pg.dsn) as server:
            return server.execute("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'bg-%'").fetchone()[0]

    @contextmanager
    def watching(self) -> Iterator[Leases]:
        """Count the leases all the while."""
        seen = Leases()

        def watch() -> None:
            while not seen.ended.wait(0.03):
                seen.most = max(seen.most, len(self.leases()))
                seen.looks += 1

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield seen
        finally:
            seen.ended.set()
            watcher.join()

    def message(self, who: Any, request_id: str, action_id: str) -> Mapping[str, Any]:
        """Return the direct message about the request in which this person sees this button."""
        about = f'"{request_id} '
        messages = who.messages(self.room(who.user))
        return next(m for m in reversed(messages) if who.has(m, action_id) and about in json.dumps(m["blocks"]))

    # ------------------------------------------------------------------------------------ what people do

    def ask(self) -> str:
        """Rita asks; returns the request's id when everybody was told."""
        known = self.requests()
        self.rita.command("/breakglass orders-db read 15m checkout is down", CHANNEL)
        form = self.rita.fill(self.rita.wait_for_view(views.OPEN_FORM, LONG))
        form.submit(
            {
                views.THRESHOLD: "customer-impact",
                views.REASON: "Checkout is down for every customer",
                views.STANDARD_PATH: "Paged the database on-call twice, nobody answers",
                views.INCIDENT: "INC-2031",
            }
        )
        self.close_windows()
        (request_id,) = wait_for(lambda: self.requests() - known, LONG, what="the request")
        self.settle(request_id)
        return request_id

    def close_windows(self) -> None:
        """Close what is open before Rita."""
        while (view := self.rita.view()) is not None:
            self.rita.close(view)

    def click(self, stage: str, request_id: str) -> None:
        """Press the stage's button, with whatever comes of it left to others to wait for."""
        who, action_id = {
            "approve": (self.carl, views.APPROVE),
            "reveal": (self.rita, views.REVEAL),
            "show again": (self.rita, views.REVEAL),
            "done": (self.rita, views.RELEASE),
        }[stage]
        if who is self.rita:
            self.close_windows()
        message = self.message(who, request_id, action_id)
        # Slack tells the person only after three seconds that nobody acknowledged; the rest need not wait for it.
        pressed = threading.Thread(target=who.click, args=(message, action_id))
        pressed.start()
        self._clicks = [click for click in self._clicks if click.is_alive()] + [pressed]

    def has_come(self, stage: str, request_id: str, credentials: int) -> bool:
        """Whether the click has had its whole effect."""
        case = self.case(request_id)
        if not self.is_settled(request_id):
            return False
        match stage:
            case "approve":
                return case.state is State.APPROVED
            case "reveal" | "show again":
                is_out = case.state is State.ACTIVE and len(case.grants) > credentials
                return is_out and _psql_line(self.rita) is not None
            case _:
                return case.state is State.ENDED and case.request.review_owner is not None

    def do(self, stage: str, request_id: str) -> None:
        """Press the stage's button and wait for its whole effect."""
        credentials = len(self.case(request_id).grants)
        self.click(stage, request_id)
        wait_for(lambda: self.has_come(stage, request_id, credentials), LONG, what=f"{stage} of {request_id}")

    # ------------------------------------------------------------------------------------ lives

    def record(self) -> list[Point]:
        """Live one request without a crash and return every point that was passed, in order."""
        request_id = self.ask()
        found: list[Point] = []
        for stage in STAGES:
            self.bot.arm(None)
            self.do(stage, request_id)
            found += [Point(stage, **point) for point in tuple(self.bot.points)]
        self.examine(request_id)
        return found

    def crash(self, found: Found) -> None:
        """Live one request, kill the bot at the point, start it again, and go on to the end."""
        point = found.point
        request_id = found.request = self.ask()
        for stage in STAGES[: STAGES.index(point.stage)]:
            self.do(stage, request_id)
        if point.name == "log in":  # only a bot that has not been to Vault yet passes there
            self.bot.kill()
            self.start()
        self.bot.arm(point)
        self.click(point.stage, request_id)
        code = self.bot.hear("died")
        assert code == -9, f"it ended with {code} instead of SIGKILL"
        passed = self.bot.points[-1]
        assert Point(point.stage, **passed) == point, f"it died at {passed}"
        found.state = self.case(request_id).state.value
        with self.watching() as seen:
            self.start()
            found.after = self.settle(request_id).state.value
            self.go_on(request_id)
        found.most_leases = seen.most
        assert seen.looks, "nobody looked at the leases"
        assert seen.most <= 1, f"{seen.most} leases at once"
        self.examine(request_id)

    def go_on(self, request_id: str) -> None:
        """Let people finish the story with what they see; the leases are what the state says, at each step."""
        for _ in range(len(STAGES) + 1):
            case = self.settle(request_id)
            out = {grant.lease_id for grant in case.grants if grant.ended_at is None}
            there = self.leases()
            if there != out:
                # Only so: a fresh one was asked for, and the old one, which it replaces, is gone at Vault already.
                assert not there, f"{case.state.value}: leases {sorted(there)}, on record {sorted(out)}"
                assert self.is_being_replaced(case), f"{case.state.value}: no lease, on record {sorted(out)}"
            assert self.logins() == len(there)
            match case.state:
                case State.PENDING:
                    self.do("approve", request_id)
                case State.APPROVED:
                    assert not out
                    self.do("reveal", request_id)
                case State.ACTIVE:
                    line = _psql_line(self.rita)
                    identity = next((g.identity for g in case.grants if g.ended_at is None), None)
                    if line is None or identity is None or identity not in line:
                        self.do("show again", request_id)  # what she was about to see died with the bot
                        continue
                    psycopg.connect(_conninfo(line)).close()  # what stands on the screen works
                    self.do("done", request_id)
                case State.ENDED:
                    assert not out
                    return
                case _:
                    raise AssertionError(f"{request_id} is {case.state.value}")
        raise AssertionError(f"{request_id} does not come to its end")

    def is_being_replaced(self, case: Case) -> bool:
        """Whether the last thing on record is that a fresh credential was asked for, in place of the one there is."""
        with self.database.read() as session:
            last = read_entries(session, request_id=case.request.id)[-1]
        live = [grant.number for grant in case.grants if grant.ended_at is None]
        return last.event == "credential:reveal" and [last.data.get("replaces")] == live

    # ------------------------------------------------------------------------------------ what must hold at the end

    def examine(self, request_id: str) -> None:
        """Compare log, tables, thread, card and direct messages with each other."""
        with self.database.read() as session:
            assert check(session) is None, "the log does not verify"
            records = read_entries(session, request_id=request_id)
            posts = {p.key: p for p in session.exec(select(Post).where(Post.request_id == request_id))}
        case = self.case(request_id)
        assert case.state is State.ENDED
        replayed(records, case)
        assert [s for s in stuck(self.database) if s.request_id == request_id] == []
        # 1. The card, once; in its thread each entry once, in order, in its own words.
        cards = self.own_posts(request_id, CHANNEL)
        assert [payload_of(m, BOT_USER)["key"] for m in cards] == ["card"]
        thread = self.own_posts(request_id, CHANNEL, cards[0]["ts"])[1:]
        told: list[int] = []
        for message in thread:
            payload = payload_of(message, BOT_USER)
            batch = [r for r in records if payload["first"] <= r.seq <= payload["last"]]
            told += [r.seq for r in batch]
            drawn = views.post(batch, case, self.policy).text.split("\n")
            shown = message["text"].split("\n")
            assert len(drawn) == len(shown), message["text"]
            for wanted, line in zip(drawn, shown, strict=True):
                assert line.startswith(wanted), f"{line!r} is not {wanted!r}"  # who is called comes after it
        assert told == [r.seq for r in records], f"the thread tells {told} of {[r.seq for r in records]}"
        # 2. Each direct message once, to whom it belongs, a true picture of the row.
        wanted = {"own": "U0RITA", "handover": "U0RITA", "review:U0SAM": "U0SAM"}
        wanted |= {f"ask:{person}": person for person in case.request.custodians}
        wanted |= {f"settled:{person}": person for person in case.request.custodians if person not in case.approvers}
        stored = {(CHANNEL, "card"): cards[0]}
        for person in sorted({*wanted.values()}):
            for message in self.own_posts(request_id, self.room(person)):
                key = payload_of(message, BOT_USER)["key"]
                assert (person, key) not in stored, f"{key} is there twice"
                stored[person, key] = message
        assert {(p, k) for p, k in stored if k != "card"} == {(person, key) for key, person in wanted.items()}
        for (_, key), message in stored.items():
            drawn = _PICTURES[key.partition(":")[0]](case, self.policy, now=datetime.now(UTC))
            assert message["text"] == drawn.text, f"{key} says {message['text']!r}"
            assert buttons(message["blocks"]) == buttons(drawn.blocks), f"{key} has the buttons of another state"
            assert posts[key].ts == message["ts"]
        # 3. Nothing is out.
        assert self.leases() == frozenset()
        assert self.logins() == 0

    def room(self, person: str) -> str:
        """Return the room of the direct messages with somebody."""
        if person not in self._rooms:
            self._rooms[person] = self.slack.conversations_open(users=person)["channel"]["id"]
        return self._rooms[person]

    def own_posts(self, request_id: str, channel: str, thread_ts: str | None = None) -> list[dict[str, Any]]:
        """Return the bot's posts about a request, oldest first, with their metadata, as Slack gives them."""
        if thread_ts is None:
            read, more = self.slack.conversations_history, {}
        else:
            read, more = self.slack.conversations_replies, {"ts": thread_ts}
        found: list[dict[str, Any]] = []
        cursor = None
        since = f"{self.case(request_id).request.opened_at.timestamp() - 1:.6f}"
        while True:
            page = read(channel=channel, oldest=since, include_all_metadata=True, limit=200, cursor=cursor, **more)
            found += [m for m in page["messages"] if payload_of(m, BOT_USER).get("request") == request_id]
            cursor = (page.get("response_metadata") or {}).get("next_cursor")
            if not cursor:
                return sorted(found, key=lambda m: m["ts"])


def buttons(blocks: Any) -> Counter[str]:
    """Return the buttons of a message."""
    return Counter(
        element["action_id"] for block in blocks if block["type"] == "actions" for element in block["elements"]
    )


def replayed(records: list[Record], case: Case) -> None:
    """Tell the log again from its beginning: it must give the rows."""
    row = case.request
    moves = [r for r in records if r.refused is None and r.target is not None]
    assert [r.version for r in moves] == list(range(1, row.version + 1)), "a change without an entry, or the reverse"
    assert moves[0].source is None
    assert all(before.target == after.source for before, after in pairwise(moves))
    assert moves[-1].target == row.state
    assert row.last_seq == records[-1].seq
    assert tuple(r.actor.person for r in moves if r.event == "request:approve") == case.approvers
    issued, opened, closed = {}, {}, set()
    for r in moves:
        match r.event:
            case "credential:token":
                opened[r.data["credential"]] = r.data["accessor_sha256"]
            case "credential:issue" | "credential:reissue":
                issued[r.data["credential"]] = (r.data["lease"], r.data["identity"])
            case "credential:abandon":
                closed.add(r.data["credential"])
            case "credential:end":
                closed |= {g.number for g in case.grants} - closed
    assert {g.number: (g.lease_id, g.identity) for g in case.grants if g.issued_at} == issued
    assert {g.number for g in case.grants if g.accessor} == set(opened)
    assert {g.number for g in case.grants if g.ended_at} == closed
    ended_by = [r.event.partition(":")[2] for r in moves if r.target == State.ENDING and r.source != State.ENDING]
    assert [row.ended_by] == ended_by


# --- the tests --------------------------------------------------------------------------------------------------------


def chosen(passed: list[Point]) -> list[Point]:
    """Choose where to die: each step of the request's own path, both sides; each step of those who follow it once.

    What the followers do is the same after each click, so that their steps are taken after the click at which they come
    first, and the calls that post and draw after the last one, too. A call that has an effect is also cut in mid-air.
    """
    found: dict[tuple[str, str, str, str], Point] = {}
    seen: dict[tuple[str, str, str], str] = {}
    for point in passed:
        if point.nth > 1 or (point.when == "during" and point.name not in IN_FLIGHT):
            continue
        first = seen.setdefault((point.kind, point.name, point.when), point.stage)
        is_followers = point.name.startswith(("follow ", "chat.", "log "))
        is_repeated = point.stage != first and is_followers and not (point.stage == "done" and "chat." in point.name)
        if not is_repeated:
            found[point.stage, point.kind, point.name, point.when] = point
    return list(found.values())


def live_through(world: World, points: list[Point]) -> list[Found]:
    """Crash at each of the points; what is wrong stands in the line of its point, and is the last."""
    table: list[Found] = []
    for point in points:
        began = time.monotonic()
        found = Found(point)
        table.append(found)
        try:
            world.crash(found)
        except (AssertionError, TimeoutError, NotPossible, SlackApiError, psycopg.Error) as error:
            found.wrong = str(error) or repr(error)
        found.seconds = time.monotonic() - began
        if found.wrong:
            break  # the next one would not begin on clean ground
    return table


def report(table: list[Found], capsys: pytest.CaptureFixture[str]) -> None:
    """Print what was found, a line for each death, and fail on what is wrong."""
    lines = [f"{'request':<9}{'killed in':<10}{'found in':<10}{'leases':>6}{'s':>6}  killed at"]
    lines += [
        f"{line.request:<9}{line.state:<10}{line.after:<10}{line.most_leases:>6}{line.seconds:>6.1f}  {line.point}"
        for line in table
    ]
    killed = [line for line in table if line.state]
    lines.append(f"{len(killed)} deaths in {sum(line.seconds for line in table):.0f} s")
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(lines) + "\n")
    assert [f"{line.request}, killed {line.point}: {line.wrong}" for line in table if line.wrong] == []
    assert all(line.state for line in table)


def everything(directory: Path) -> Demo:
    """Return all parts but the bot; Slack has no limits, so that a life takes a second and not twenty.

    A credential waits for the log's copies for seconds only: so long, too, lives the intent of a bot that died.
    """
    text = (ROOT / "bot" / "demo" / "breakglass.yml").read_text(encoding="utf-8")
    assert "\nlog:\n" in text
    policy = text.replace("\nlog:\n", "\nlog:\n  required_within: 4s\n")
    return Demo(directory, rate_limits=0, with_bot=False, policy=policy)


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Iterator[Demo]:
    """All parts but the bot, for all tests with the bot's database on SQLite: one log, and one copy of it."""
    with everything(tmp_path_factory.mktemp("crash")) as demo:
        yield demo


@pytest.fixture(scope="module")
def points(parts) -> list[Point]:
    """Where to die, from a life without a death."""
    with world_on(parts, parts.database_url) as world:
        return chosen(world.record())


@contextmanager
def world_on(demo: Demo, database_url: str) -> Iterator[World]:
    """Give the world with the bot's own database here; nothing of it is running afterwards."""
    world = World(demo, database_url, demo.directory / "crashing.log")
    try:
        world.start()
        yield world
    finally:
        world.close()


def test_every_step_is_a_place_to_die(points):
    """The places to die cover each call to Vault, commit and call to Slack of the way, before and after."""
    assert len(set(points)) >= 40
    there = {(point.kind, point.name, point.when) for point in points}
    wanted = {
        (kind, name, when)
        for kind, names in (("vault", VAULT), ("commit", COMMITS), ("slack", SLACK))
        for name in names
        for when in ("before", "during", "after")
        if when != "during" or name in IN_FLIGHT
    }
    assert wanted - there == set()
    for stage in STAGES:
        events = {point.name for point in points if point.stage == stage and point.kind == "commit"}
        assert any(":" in name for name in events), f"{stage} has no step of the request's own"


# Each point costs seconds. Of these stages each so many-th is taken; CRASH=all takes all.
SPARSE: Final = {"approve": 3, "done": 4, "show again": 4}


@pytest.mark.parametrize("stage", STAGES)
def test_killed_anywhere_nothing_is_lost_doubled_or_stuck(parts, points, stage, capsys):
    """Killed at any step after the click, the bot comes back and the story goes on to a clean end."""
    mine = [point for point in points if point.stage == stage]
    if os.environ.get("CRASH") != "all":
        mine = mine[:: SPARSE.get(stage, 1)]
    with world_on(parts, parts.database_url) as world:
        table = live_through(world, mine)
    report(table, capsys)
    assert len(table) == len(mine)


def test_killed_with_its_database_on_postgresql(tmp_path, capsys):
    """The same holds when the bot's own rows are in a PostgreSQL, which sees the bot's connections die."""
    with everything(tmp_path) as parts:
        with psycopg.connect(parts.pg.dsn, autocommit=True) as server:
            server.execute("CREATE DATABASE bot_rows")
        with world_on(parts, parts.pg.url_for("bot_rows")) as world:
            table = live_through(world, list(SAMPLE))
    report(table, capsys)
    assert len(table) == len(SAMPLE)
