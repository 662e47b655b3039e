"""Does the bot hold when everybody acts at the same second?

Rules
-----
* The real bot as its own process, the real OpenBao and PostgreSQL, the sandbox with Slack's own rate limits.
* Fifty requests stand open. Then, all at once, fifty people send the form of another request each, and a hundred
  custodians answer the standing ones, some with a double click. Everything is sent within a second, in fact within
  some hundredths of one, by one thread that does nothing else meanwhile.
* Three seconds for an acknowledgement are Slack's limit, not a wish: whoever is late, the person sees an error.
* Slack lets one message a second into a channel, so cards and threads come later. At the end the limits are lifted, and
  a second bot writes what is left: nothing may be missing, and nothing doubled.
"""

from __future__ import annotations

import http.client
import json
import math
import random
import selectors
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import psycopg
import pytest
import yaml
from sqlmodel import col, select

from bot import views
from bot.app import build
from bot.demo.run import Demo
from bot.sandbox.driver import Driver, wait_for
from bot.sandbox.workspace import BOT_USER, Channel, Group, Person, WorkspaceSeed
from bot.settings import from_environment
from storage.audit import Actor, check, read_entries
from storage.models import Post, State
from workflows.desk import Ask
from workflows.vault import Vault

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from bot.sandbox.driver import PersonDriver
    from storage.database import Database
    from workflows.desk import Desk

TEAM: Final = "T0SANDBOX"
CHANNEL: Final = "C0INCIDENT"
ACCOUNTS: Final = range(25)
CUSTODIANS: Final = {a: [f"U0C{a:02}{n}" for n in range(4)] for a in ACCOUNTS}
RESPONDERS: Final = {a: [f"U0R{a:02}{n}" for n in range(2)] for a in ACCOUNTS}
SLACKS_PATIENCE: Final = 3000.0  # milliseconds
WORDS: Final = {
    "threshold": "impact",
    "reason": "Checkout is down for everybody",
    "standard_path": "Paged twice, nobody answers",
    "incident": "INC-1",
}


def _seed() -> WorkspaceSeed:
    people = [Person(user, user.lower(), user) for a in ACCOUNTS for user in (*CUSTODIANS[a], *RESPONDERS[a])]
    people += [Person("U0LENA", "lena", "Lena Berg"), Person("U0SAM", "sam", "Sam Okoro")]
    groups = [Group(f"S0R{a}", f"responders-{a}", f"Responders {a}", tuple(RESPONDERS[a])) for a in ACCOUNTS]
    return WorkspaceSeed(
        team_id=TEAM,
        people=tuple(people),
        channels=(Channel(CHANNEL, "incidents", "", (*(person.id for person in people), BOT_USER)),),
        groups=tuple(groups),
    )


def _policy() -> str:
    level = {"title": "Read", "engine": "database", "mount": "database", "role": "orders-ro"}
    level |= {"token_role": "breakglass-read", "host": "127.0.0.1", "port": 5432, "database": "orders"}
    level |= {"group": "bg_orders_ro", "manager": "bgmgr"}
    level |= {"longest": "30m", "default": "15m", "answer_within": "30m", "open_within": "30m"}
    accounts = {
        f"account-{a}": {
            "title": f"Account {a}",
            "system": "PostgreSQL",
            "owner": CUSTODIANS[a][0],
            "custodians": CUSTODIANS[a],
            "responders": [f"@responders-{a}"],
            "thresholds": {"impact": "Customers cannot order"},
            "standard_path": "Page the database on-call",
            "levels": {f"of-{quorum}": level | {"quorum": quorum} for quorum in (1, 2, 3)},
        }
        for a in ACCOUNTS
    }
    whole = {"version": 1, "incident_channel": CHANNEL, "leadership": ["U0LENA"], "security": ["U0SAM"]}
    whole |= {"reviewers": ["U0SAM"], "auditors": ["U0SAM"], "review_within": "3d", "accounts": accounts}
    return yaml.safe_dump(whole)


@dataclass(frozen=True)
class Deed:
    """Something that a person does in Slack, as a request of the people API that is not sent yet."""

    user: str
    path: str
    body: Mapping[str, Any]


class Plan(Driver):
    """A driver that writes down what would be sent."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.deeds: list[Deed] = []

    def request(self, method: str, path: str, body: dict[str, Any] | None = None, **_query: str | None) -> Any:
        """Write it down instead of sending it."""
        assert method == "POST"
        assert body is not None
        self.deeds.append(Deed(body["as"], path, body))
        return {}


def at_once(url: str, deeds: Sequence[Deed]) -> tuple[list[dict[str, Any]], float]:
    """Send everything side by side; return the answers in the same order, and the seconds that the sending took."""
    address = urlsplit(url)
    connections = [http.client.HTTPConnection(str(address.hostname), address.port) for _ in deeds]
    bodies = [json.dumps(deed.body) for deed in deeds]
    answers: list[dict[str, Any]] = [{} for _ in deeds]
    with selectors.DefaultSelector() as answered:
        for number, connection in enumerate(connections):
            connection.connect()
            answered.register(connection.sock, selectors.EVENT_READ, number)
        began = time.monotonic()
        for deed, connection, body in zip(deeds, connections, bodies, strict=True):
            connection.request("POST", deed.path, body, {"Content-Type": "application/json"})
        seconds = time.monotonic() - began
        while answered.get_map():
            for key, _ in answered.select():
                answered.unregister(key.fileobj)
                answers[key.data] = json.loads(connections[key.data].getresponse().read())
                connections[key.data].close()
    return answers, seconds


def figures(what: str, answers: Sequence[Mapping[str, Any]]) -> str:
    """Say how long the acknowledgements took; what was not acknowledged counts as for ever."""
    ms = sorted(answer["ms"] if _is_acknowledged(answer) else math.inf for answer in answers)
    p50, p99 = (ms[min(len(ms) - 1, len(ms) * p // 100)] for p in (50, 99))
    return f"{len(ms)} {what}: acknowledged after p50 {p50:.0f} ms, p99 {p99:.0f} ms, at most {ms[-1]:.0f} ms"


def _is_in_time(answer: Mapping[str, Any]) -> bool:
    return _is_acknowledged(answer) and answer["ms"] < SLACKS_PATIENCE


def _is_acknowledged(answer: Mapping[str, Any]) -> bool:
    """Whether Slack got the acknowledgement; of a form it says instead what became of it."""
    return bool(answer.get("acknowledged")) or answer.get("result") in {"updated", "closed"}


@dataclass(frozen=True)
class Standing:
    """A request that stands open, and who presses Approve on it in the great second."""

    id: str
    requester: str
    quorum: int
    clickers: tuple[str, ...]

    @property
    def is_granted(self) -> bool:
        """Whether the clicks suffice."""
        return self.counted == self.quorum

    @property
    def counted(self) -> int:
        """How many clicks are approvals; each other one is refused: somebody's second, or one after the quorum."""
        return min(self.quorum, len(set(self.clickers)))


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    """All the parts, for twenty-five accounts with four custodians each."""
    with Demo(tmp_path, seed=_seed(), policy=_policy()) as demo:
        yield demo


def test_when_everybody_acts_at_once(demo: Demo) -> None:
    """Every acknowledgement is in time, nothing is granted twice, and nobody is left without an answer."""
    other = build(from_environment(demo.environment))  # a second bot on the same database: it opens and it looks
    database = other.desk.database
    people = Driver(demo.url)
    said = []

    # 1. Fifty requests stand open, their custodians are asked; and fifty people have another form before them.
    standing = _open_fifty(other.desk)
    plan = Plan(demo.url)
    for number, request in enumerate(standing):
        plan.as_(request.requester).command(f"/breakglass account-{number // 2} of-2 15m a second alarm", CHANNEL)
    answers, _ = at_once(demo.url, plan.deeds)
    said.append(figures("commands", answers))
    assert all(_is_acknowledged(answer) for answer in answers), said
    asked = {(request.id, f"ask:{user}") for request in standing for user in request.clickers}
    posts = wait_for(lambda: (found := _posts(database)).keys() >= asked and found, 60, what="the asking")

    # 2. The great second: fifty forms are sent, and a hundred custodians press Approve.
    plan = Plan(demo.url)
    for request in standing:
        _fill(people, plan, request.requester)
        for user in request.clickers:
            # A click that is sent at the same moment as another's cannot know that the other takes the button away.
            message = _message(people, user, posts[request.id, f"ask:{user}"])
            plan.as_(user).click(message, views.APPROVE, in_flight=True)
    random.Random(7).shuffle(plan.deeds)  # noqa: S311 - the same order every time
    answers, seconds = at_once(demo.url, plan.deeds)
    forms = [answer for answer, deed in zip(answers, plan.deeds, strict=True) if deed.path.endswith("/submit")]
    said.append(figures("forms", forms))
    said.append(figures("clicks", [answer for answer in answers if answer not in forms]))
    print("", *said, f"forms and clicks were sent within {seconds:.2f} s", sep="\n")  # noqa: T201 - for pytest -s
    clicks = Counter(user for request in standing for user in request.clickers)
    assert (len(forms), len(clicks)) == (50, 100)
    assert seconds < 1
    assert all(_is_in_time(answer) for answer in answers), said

    # 3. Every click has its answer, and each request is where its clicks bring it.
    for user, times in clicks.items():
        person = people.as_(user)
        wait_for(lambda person=person, times=times: len(person.ephemerals()) >= times, 20, what="an answer")
        assert len(person.ephemerals()) == times
    for request in standing:
        case, events = other.desk.case(request.id), _events(database, request.id)
        assert case.state is (State.APPROVED if request.is_granted else State.PENDING)
        assert len(case.approvers) == len(set(case.approvers)) == request.counted
        assert set(case.approvers) <= set(request.clickers)
        assert events["request:quorum", False] == request.is_granted
        assert events["request:approve", True] == len(request.clickers) - request.counted
    opened = {answer["view"]["title"]["text"] for answer in forms}
    assert len(opened) == 50
    assert all(other.desk.case(request_id).state is State.PENDING for request_id in opened)

    # 4. Whoever may opens the credential, all at once, every third with a double click: one lease for each.
    granted = [request for request in standing if request.is_granted]
    wanted = {(request.id, "handover") for request in granted}
    posts = wait_for(lambda: (found := _posts(database)).keys() >= wanted and found, 60, what="the handover")
    plan = Plan(demo.url)
    for request in granted:
        person = people.as_(request.requester)
        while person.view():
            person.close()
        message = _message(people, request.requester, posts[request.id, "handover"])
        plan.as_(request.requester).click(message, views.REVEAL)
    doubled = {deed.user for deed in plan.deeds[::3]}
    plan.deeds += plan.deeds[::3]
    answers, _ = at_once(demo.url, plan.deeds)
    said.append(figures("reveals", answers))
    print(said[-1])  # noqa: T201
    assert all(_is_in_time(answer) for answer in answers), said
    for request in granted:
        look = partial(_shown, people.as_(request.requester), request.id)
        if request.requester in doubled:
            # The window of the second click takes the place of the first, and one of the two says so.
            look = partial(lambda request_id: other.desk.case(request_id).state is State.ACTIVE, request.id)
        wait_for(look, 20, what=f"the credential of {request.id}")
    with psycopg.connect(demo.pg.dsn) as server:
        logins = [row[0] for row in server.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'bg-%'")]
    assert sorted(login.rsplit("-", 2)[0] for login in logins) == sorted(request.id.lower() for request in granted)
    root = Vault(demo.bao.addr, token=demo.bao.root_token)
    assert root.leases("database/creds/orders-ro") == {other.desk.case(r.id).grants[0].lease_id for r in granted}

    # 5. What Slack's limits held back comes, once each and complete, also when another bot takes over.
    demo.bot.stop()
    demo.slack._front._web._rate_limits = 0
    other.follower._pace = False
    other.follower.start()
    try:
        assert other.follower.drain(60)
    finally:
        other.follower.stop()
    told = _told(people)
    for request_id in (*opened, *(request.id for request in standing)):
        with database.read() as session:
            entries = [record.seq for record in read_entries(session, request_id=request_id)]
        covered = [seq for first, last in told[request_id] for seq in entries if first <= seq <= last]
        assert covered == entries
    assert other.follower.stuck() == []
    with database.read() as session:
        assert check(session) is None
    database.close()


def _open_fifty(desk: Desk) -> list[Standing]:
    """Open two requests per account. Of a quorum of one somebody comes second, two are both needed, three miss one."""
    standing = []
    for number in range(50):
        account, which = divmod(number, 2)
        quorum, is_doubled = ((1, False), (1, True), (2, False), (2, True), (3, True))[number % 5]
        one, two = CUSTODIANS[account][2 * which : 2 * which + 2]
        requester = RESPONDERS[account][which]
        ask = Ask(
            account=f"account-{account}",
            level=f"of-{quorum}",
            **{name: WORDS[name] for name in ("threshold", "reason", "standard_path", "incident")},
            duration=timedelta(minutes=15),
        )
        row = desk.open(Actor(TEAM, requester), ask, now=datetime.now(UTC))
        standing.append(Standing(row.id, requester, quorum, (one, two, one) if is_doubled else (one, two)))
    return standing


def _fill(people: Driver, plan: Plan, user: str) -> None:
    """Wait until the form stands before the person, and plan to send it."""

    def whole() -> Mapping[str, Any] | None:
        view = people.as_(user).view()
        return view if view and any(block["block_id"] == views.DURATION for block in view["blocks"]) else None

    plan.as_(user).fill(wait_for(whole, 20, what="the form")).submit(WORDS)


def _posts(database: Database) -> dict[tuple[str, str], Post]:
    """Return what stands in Slack, by request and purpose."""
    with database.read() as session:
        found = session.exec(select(Post).where(col(Post.ts).is_not(None)))
        return {(post.request_id, post.key): post for post in found}


def _message(people: Driver, user: str, post: Post) -> Mapping[str, Any]:
    return next(m for m in people.as_(user).messages(str(post.channel)) if m["ts"] == post.ts)


def _events(database: Database, request_id: str) -> Counter[tuple[str, bool]]:
    """Count a request's entries, by event and whether it was refused."""
    with database.read() as session:
        return Counter((record.event, bool(record.refused)) for record in read_entries(session, request_id=request_id))


def _shown(person: PersonDriver, request_id: str) -> bool:
    """Whether the person has the credential of this request on the screen."""
    words = json.dumps(person.view())
    return "PGPASSWORD=" in words and request_id.lower() in words


def _told(people: Driver) -> dict[str, list[tuple[int, int]]]:
    """Return, by request, the entries that each post in its thread stands for; every other message stands once."""
    told: dict[str, list[tuple[int, int]]] = {}
    others: Counter[tuple[str, str]] = Counter()
    for call in people.journal(method="chat.postMessage"):
        if call.get("ok"):
            payload = call["args"]["metadata"]["event_payload"]
            if payload["key"].startswith("thread:"):
                told.setdefault(payload["request"], []).append((payload["first"], payload["last"]))
            else:
                others[payload["request"], payload["key"]] += 1
    assert set(others.values()) == {1}
    return told
