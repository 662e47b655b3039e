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
from bot.demo.run import SEED
from bot.directory import SlackDirectory
from bot.sandbox.driver import Driver, wait_for
from bot.sandbox.server import Sandbox
from bot.thread import ThreadFollower
from storage import audit
from storage.database import Database
from workflows import policy as rules
from workflows.retention import APPLY, CONFIRM, HOLD, PROPOSE, REJECT, Retention, holds
from workflows.vault import Vault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from storage.audit import Actor

ROOM = "C0INCIDENT"
MANIFEST = Path(__file__).parent.parent / "manifest.yml"


@dataclass
class Office:
    """A workspace with the bot in it, an old request, and a young one."""

    desk: Counter
    driver: Driver
    follower: ThreadFollower
    old: str
    young: str

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
        follower = ThreadFollower(
            database,
            client,
            case=desk.case,
            policy=lambda: desk.policy,
            directory=directory,
            now=lambda: datetime.now(UTC),
            pace=False,
        )
        with ThreadPoolExecutor(8) as executor:
            app = App(client=client, listener_executor=executor)
            directory.register(app)
            listeners.register(app, desk, now=lambda: datetime.now(UTC))
            with bolted(sandbox, app):
                yield Office(desk, Driver(sandbox.url), follower, *asked)
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
    again = ThreadFollower(
        office.desk.database,
        office.follower._client,
        case=office.desk.case,
        policy=lambda: office.desk.policy,
        directory=office.desk.directory,
        now=lambda: datetime.now(UTC),
        pace=False,
        name="late",
    )
    assert again.drain(20)
    ada = office.driver.as_(ADA.person)
    cards = [m for m in ada.messages(ROOM) if m["text"].startswith(f"{office.old}: ")]
    lines = [m["text"] for m in ada.thread(ROOM, cards[0]["ts"])]
    assert any("What stood here (request open) was pruned" in line for line in lines)
