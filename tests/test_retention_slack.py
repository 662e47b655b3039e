"""Do two people in Slack, and nobody less, take what is over out of the log?

The Slack side is the sandbox with the unmodified Bolt and Socket Mode client, written to by the real follower. Vault is
never asked for anything here.
"""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from counter import ADA, CARL, PATIENCE, RITA, SAM, TEAM, Counter
from sandbox_app import bolted, client_of
from slack_bolt import App
from test_retention import BASE, RETENTION, SHELL

from bot import listeners, views
from bot.calls import call
from bot.demo.run import SEED
from bot.directory import SlackDirectory
from bot.sandbox.driver import Driver, wait_for
from bot.sandbox.server import Sandbox
from bot.thread import ThreadFollower
from storage import audit
from storage.database import Database
from workflows import policy as rules
from workflows.retention import APPLY, CONFIRM, HOLD, LASTS, PROPOSE, REJECT, Retention, RetentionDesk, holds
from workflows.vault import Vault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slack_sdk import WebClient

    from storage.audit import Actor

ROOM = "C0INCIDENT"
MANIFEST = Path(__file__).parent.parent / "manifest.yml"


@dataclass
class Office:
    """A workspace with the bot in it, an old request, and a young one."""

    desk: Counter
    driver: Driver
    client: WebClient
    old: str
    young: str
    ahead: timedelta = timedelta(0)  # by which the follower's clock is ahead

    def __post_init__(self) -> None:
        self.follower = self.another()

    def now(self) -> datetime:
        """What time it is for the follower."""
        return datetime.now(UTC) + self.ahead

    def at(self, card: dict[str, Any]) -> dict[str, Any]:
        """Return a message as it stands in the channel now."""
        (found,) = [one for one in self.driver.as_(SAM.person).messages(ROOM) if one["ts"] == card["ts"]]
        return found

    def another(self, name: str = "thread") -> ThreadFollower:
        """Return a follower that knows nothing, as a bot that was just started has."""
        return ThreadFollower(
            self.desk.database,
            self.client,
            case=self.desk.case,
            policy=lambda: self.desk.policy,
            directory=self.desk.directory,
            now=self.now,
            pace=False,
            first_wait=0.1,
            name=name,
        )

    def settled(self, card: dict[str, Any]) -> str:
        """Let the follower draw, and return what a proposal's message says; it must have no buttons any more."""
        assert self.follower.drain(20)
        sam, now = self.driver.as_(SAM.person), self.at(card)
        for action in (views.CONFIRM_PRUNING, views.REJECT_PRUNING):
            assert sam.has(card, action)
            assert not sam.has(now, action)
        assert "*proposed to prune 2 entries*" in now["text"]
        assert now["text"].split("\n")[-1] == now["blocks"][-1]["text"]["text"]
        return str(now["blocks"][-1]["text"]["text"])

    def propose(self) -> dict[str, Any]:
        """Propose what may go, at a terminal; return the message that people see."""
        Retention(self.desk.database, lambda: self.desk.policy).propose(SHELL, now=datetime.now(UTC))
        return self.newest()

    def newest(self) -> dict[str, Any]:
        """Let the follower post, and return the newest message in the channel."""
        assert self.follower.drain(20)
        return self.driver.as_(SAM.person).messages(ROOM)[-1]

    def click(self, who: Actor, message: dict[str, Any], action: str, words: str) -> None:
        """Press a button, and wait for what the person privately reads."""
        person = self.driver.as_(who.person)
        assert person.click(message, action)["acknowledged"]
        wait_for(lambda: any(words in m["text"] for m in person.ephemerals()), 20, what=words)

    def told(self, who: Actor, words: str) -> None:
        """Wait until a person privately reads these words."""
        person = self.driver.as_(who.person)
        wait_for(lambda: any(words in m["text"] for m in person.ephemerals()), 20, what=words)

    def refusals(self, event: str) -> list[str | None]:
        """Return how the tries at something ended."""
        with self.desk.database.read() as session:
            return [record.refused for record in audit.read_entries(session, events=(event,))]

    def pruned(self) -> list[str | None]:
        """Return which requests the pruned entries are about, after a check of the whole log."""
        with self.desk.database.read() as session:
            assert audit.check(session) is None
            return [record.request_id for record in audit.read_entries(session) if record.is_pruned]


@pytest.fixture
def office(sqlite_template: Path, tmp_path: Path) -> Iterator[Office]:
    """The demo's workspace, with the bot listening and an old request in its log."""
    shutil.copyfile(sqlite_template, tmp_path / "breakglass.db")
    database = Database(f"sqlite:///{tmp_path / 'breakglass.db'}")
    with Sandbox(SEED, yaml.safe_load(MANIFEST.read_text(encoding="utf-8")), rate_limits=0) as sandbox:
        client = client_of(sandbox)
        directory = SlackDirectory(client, TEAM)
        directory.prime()
        policy = rules.parse(BASE + RETENTION, name="test")
        vault = Vault("http://127.0.0.1:9", token="unused")
        desk = Counter(database, policy, directory, vault, team=TEAM, patience=PATIENCE)
        asked = []
        for days in (3000, 1):
            desk.now = datetime.now(UTC) - timedelta(days=days)
            row = desk.ask()
            desk.withdraw(RITA, row.id, row.version, now=desk.now)
            asked.append(row.id)
        with ThreadPoolExecutor(8) as executor:
            app = App(client=client, listener_executor=executor)
            directory.register(app)
            listeners.register(app, desk, now=lambda: datetime.now(UTC))
            with bolted(sandbox, app):
                yield Office(desk, Driver(sandbox.url), client, *asked)
    database.close()


def test_two_people_confirm_in_the_channel(office: Office) -> None:
    """The proposal is a message with buttons that calls those who may; two clicks later what is over is gone."""
    card = office.propose()
    assert "root (at a terminal) *proposed to prune 2 entries*" in card["text"]
    assert "(by class: request 2)" in card["text"]
    assert "request 2" in card["text"]
    assert "<@U0ADA>" in card["text"]
    office.click(ADA, card, views.CONFIRM_PRUNING, "You confirmed it: 1 of 2.")
    assert office.pruned() == []
    office.click(SAM, card, views.CONFIRM_PRUNING, "as the second: 2 entries are pruned.")
    assert office.pruned() == [office.old, office.old]
    said = office.newest()["text"]
    assert "confirmed* the pruning" in said
    assert "*Pruned 2 entries*" in said
    assert "confirmed by <@U0ADA> and <@U0SAM>" in said
    with office.desk.database.read() as session:
        events = [record.event for record in audit.read_entries(session)][-4:]
    assert events == [PROPOSE, CONFIRM, CONFIRM, APPLY]


def test_strangers_and_double_clicks_prune_nothing(office: Office) -> None:
    """Custodians and responders, and the same auditor again, are told why not, on record."""
    card = office.propose()
    for who in (RITA, CARL):
        office.click(who, card, views.CONFIRM_PRUNING, "Only auditors and security")
        office.click(who, card, views.REJECT_PRUNING, "Only auditors and security")
    office.click(ADA, card, views.CONFIRM_PRUNING, "1 of 2")
    office.click(ADA, card, views.CONFIRM_PRUNING, "somebody else must be the second")
    assert office.pruned() == []
    assert office.refusals(CONFIRM) == ["not_allowed", "not_allowed", None, "doubled"]
    assert office.refusals(REJECT) == ["not_allowed", "not_allowed"]


def test_a_rejected_proposal_has_dead_buttons(office: Office) -> None:
    """After a rejection a click says that the proposal is not open any more."""
    card = office.propose()
    office.click(SAM, card, views.REJECT_PRUNING, "You rejected it.")
    office.click(ADA, card, views.CONFIRM_PRUNING, "not open any more")
    assert "rejected* the pruning" in office.newest()["text"]
    assert office.pruned() == []


# --- what its message shows afterwards --------------------------------------------------------------------------------


def test_an_applied_proposal_says_by_whom(office: Office) -> None:
    """With the second confirmation the buttons go from the message, and it says who confirmed and what went."""
    card = office.propose()
    office.click(ADA, card, views.CONFIRM_PRUNING, "1 of 2")
    assert office.driver.as_(SAM.person).has(office.at(card), views.CONFIRM_PRUNING)
    office.click(SAM, card, views.CONFIRM_PRUNING, "2 entries are pruned")
    assert office.settled(card).startswith("*Confirmed* by <@U0ADA> and <@U0SAM>: 2 entries pruned (")


def test_a_click_on_a_button_that_is_gone_is_answered_and_on_record(office: Office) -> None:
    """A click that was on its way when the message changed says why nothing was done, privately, and is an entry."""
    card = office.propose()
    office.click(SAM, card, views.REJECT_PRUNING, "You rejected it.")
    assert office.settled(card).startswith("*Rejected* by <@U0SAM>: nothing is pruned (")
    before = len(office.driver.as_(SAM.person).messages(ROOM))
    ada = office.driver.as_(ADA.person)
    for action in (views.CONFIRM_PRUNING, views.REJECT_PRUNING):
        seen = len(ada.ephemerals())
        assert ada.click(card, action, in_flight=True)["acknowledged"]
        wait_for(lambda seen=seen: len(ada.ephemerals()) > seen, 20, what="an answer")
        assert "not open any more: it was rejected. Nothing was changed." in ada.ephemerals()[-1]["text"]
    assert office.refusals(CONFIRM) == ["stale"]
    assert office.refusals(REJECT) == [None, "stale"]
    assert len(office.driver.as_(SAM.person).messages(ROOM)) == before
    assert office.pruned() == []


def test_a_proposal_that_lapsed_says_so_by_itself(office: Office) -> None:
    """After a week without a second person the buttons go though nothing new was logged; not a minute earlier."""
    card = office.propose()
    office.click(ADA, card, views.CONFIRM_PRUNING, "1 of 2")
    assert office.follower.drain(20)
    office.ahead = LASTS - timedelta(minutes=5)
    assert office.follower._cursors.behind(office.now()) == []
    office.ahead = LASTS
    assert len(office.follower._cursors.behind(office.now())) == 1
    assert office.settled(card).startswith("*Lapsed*: two people did not confirm it within a week; nothing is pruned (")
    assert office.follower._cursors.behind(office.now()) == []


def test_a_newer_proposal_takes_the_place_of_an_older_one(office: Office) -> None:
    """Only the newest has buttons, also where both were logged before the follower came to them."""
    card = office.propose()
    newer = office.propose()
    assert "a newer proposal has taken its place" in office.settled(card)
    for _ in range(2):
        Retention(office.desk.database, lambda: office.desk.policy).propose(SHELL, now=datetime.now(UTC))
    both = office.newest()
    assert both["text"].count("*proposed to prune") == 2
    assert "a newer proposal has taken its place" in office.settled(newer)
    office.click(SAM, both, views.REJECT_PRUNING, "You rejected it.")
    assert office.follower.drain(20)
    assert office.at(both)["blocks"][-1]["text"]["text"].startswith("*Rejected*")


def test_a_proposal_that_was_decided_before_it_was_posted_never_has_buttons(office: Office) -> None:
    """A follower that comes late posts the proposal together with what became of it."""
    shell = Retention(office.desk.database, lambda: office.desk.policy)
    seq, plan = shell.propose(SHELL, now=datetime.now(UTC))
    desk = RetentionDesk(office.desk.database, lambda: office.desk.policy, office.desk.directory, team=TEAM)
    desk.reject(SAM, seq, plan.hash, now=datetime.now(UTC))
    card = office.newest()
    assert not office.driver.as_(SAM.person).has(card, views.CONFIRM_PRUNING)
    assert card["blocks"][-1]["text"]["text"].startswith("*Rejected* by <@U0SAM>")


@pytest.mark.parametrize(
    ("kind", "order"), [("timeout", {"seconds": 0.05}), ("rate_limited", {"retry_after": 1}), ("error500", {})]
)
def test_a_fault_of_slack_leaves_no_dead_buttons(office: Office, kind: str, order: dict[str, Any]) -> None:
    """What could not be drawn when it was decided is drawn later, by a bot that was started meanwhile."""
    card = office.propose()
    office.click(SAM, card, views.REJECT_PRUNING, "You rejected it.")
    office.driver.fault(kind, method="chat.update", times=10_000, **order)
    assert not office.follower.drain(0.5)
    assert office.driver.as_(SAM.person).has(office.at(card), views.CONFIRM_PRUNING)
    office.driver.clear_faults()
    office.follower = office.another()
    assert office.settled(card).startswith("*Rejected*")


def test_a_limit_of_slack_that_others_met_leaves_no_dead_buttons(office: Office) -> None:
    """While no message may be changed, lines go on; a bot that was started anew knows what is left to draw."""
    card = office.propose()
    office.desk.now = datetime.now(UTC)
    row = office.desk.ask()
    assert office.follower.drain(20)
    office.driver.fault("rate_limited", method="chat.update", times=1, retry_after=600)
    office.desk.withdraw(RITA, row.id, row.version, now=office.desk.now)
    assert not office.follower.drain(0.5)
    office.click(SAM, card, views.REJECT_PRUNING, "You rejected it.")
    office.follower.wake(frozenset({""}))  # as the database does
    assert not office.follower.drain(0.5)
    assert "*rejected* the pruning" in office.driver.as_(SAM.person).messages(ROOM)[-1]["text"]
    assert office.driver.as_(SAM.person).has(office.at(card), views.CONFIRM_PRUNING)
    Retention(office.desk.database, lambda: office.desk.policy).propose(SHELL, now=datetime.now(UTC))
    office.follower.wake(frozenset({""}))
    assert not office.follower.drain(0.5)
    assert "*proposed to prune" in office.driver.as_(SAM.person).messages(ROOM)[-1]["text"]
    office.follower = office.another()
    assert office.settled(card).startswith("*Rejected*")


def test_a_proposal_whose_post_was_not_answered_loses_its_buttons_too(office: Office) -> None:
    """A post that Slack took and did not answer is found there, and is drawn again once it is decided."""
    assert office.follower.drain(20)  # so that it is the proposal's post that fails
    office.driver.fault("post_then_timeout", method="chat.postMessage", times=1, seconds=0.05)
    card = office.propose()
    office.click(SAM, card, views.REJECT_PRUNING, "You rejected it.")
    assert office.settled(card).startswith("*Rejected*")


def test_a_proposals_message_that_was_deleted_holds_up_nothing(office: Office) -> None:
    """Somebody took the message away: what is logged is posted all the same."""
    card = office.propose()
    office.click(SAM, card, views.REJECT_PRUNING, "You rejected it.")
    call(office.client.chat_delete, channel=ROOM, ts=card["ts"])
    assert "*rejected* the pruning" in office.newest()["text"]
    assert office.follower.stuck() == []


def test_a_hold_by_command(office: Office) -> None:
    """An auditor types a hold, the request's thread says so, and what was proposed before stays."""
    card = office.propose()
    office.click(ADA, card, views.CONFIRM_PRUNING, "1 of 2")
    ada = office.driver.as_(ADA.person)
    ada.command(f"/breakglass hold {office.old} litigation 12 <!channel>", ROOM)
    office.told(ADA, "is under legal hold")
    with office.desk.database.read() as session:
        assert holds(session)[office.old].data["reason"] == "litigation 12 <!channel>"
    office.click(SAM, card, views.CONFIRM_PRUNING, "no entries are pruned. 2 of the plan stayed")
    assert office.pruned() == []
    assert office.follower.drain(20)
    (request_card,) = [m for m in ada.messages(ROOM) if m["text"].startswith(f"{office.old}: ")]
    assert "put it under *legal hold*" in ada.thread(ROOM, request_card["ts"])[-1]["text"]
    ada.command(f"/breakglass unhold {office.old} settled", ROOM)
    office.told(ADA, "has ended")
    with office.desk.database.read() as session:
        assert holds(session) == {}


def test_a_hold_by_somebody_else(office: Office) -> None:
    """A custodian's hold is refused, on record; one without a request or a reason is explained."""
    office.driver.as_(CARL.person).command(f"/breakglass hold {office.old} mine", ROOM)
    office.told(CARL, "Only auditors and security")
    assert office.refusals(HOLD) == ["not_allowed"]
    office.driver.as_(ADA.person).command(f"/breakglass hold {office.old}", ROOM)
    office.told(ADA, "Say why")
    office.driver.as_(SAM.person).command("/breakglass hold it", ROOM)
    office.told(SAM, "Name the request")
    with office.desk.database.read() as session:
        assert holds(session) == {}


def test_the_thread_tells_of_an_entry_that_was_pruned_before_it_was_posted(office: Office) -> None:
    """A follower that comes late posts a line for a pruned entry, and goes on with the next."""
    Retention(office.desk.database, lambda: office.desk.policy).propose(SHELL, now=datetime.now(UTC))
    assert office.follower.drain(20)
    card = office.newest()
    office.click(ADA, card, views.CONFIRM_PRUNING, "1 of 2")
    office.click(SAM, card, views.CONFIRM_PRUNING, "2 entries are pruned")
    again = office.another("late")
    assert again.drain(20)
    ada = office.driver.as_(ADA.person)
    cards = [m for m in ada.messages(ROOM) if m["text"].startswith(f"{office.old}: ")]
    lines = [m["text"] for m in ada.thread(ROOM, cards[0]["ts"])]
    assert any("What stood here (request open) was pruned" in line for line in lines)
