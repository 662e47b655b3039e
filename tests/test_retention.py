"""Is only that pruned which may be, and only when two different people have said so?"""

from __future__ import annotations

import json
import random
import re
import threading
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from counter import ADA, CARL, GUS, PATIENCE, POLICY, RITA, SAM, TEAM, Counter, People
from sqlmodel import select
from test_audit import unguarded

from bot.cli import main
from storage import audit, pruning
from storage.audit import SYSTEM, Actor, Damaged, Record, append
from storage.followers import FOLLOWERS, Item, Place
from storage.models import FINAL, Entry, Feed, Request, SignedHead, State
from storage.standalone import Findings
from storage.verify import compare_with_copy
from workflows import policy as rules
from workflows import retention
from workflows.errors import Conflict, Invalid, NotAllowed
from workflows.lifecycle import Action
from workflows.retention import APPLY, CONFIRM, HOLD, PROPOSE, REJECT, RELEASE, Confirmed, Plan, RetentionDesk, holds
from workflows.retention_rules import CLASSES
from workflows.vault import Vault

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from storage.database import Database

NOW = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=3000)
SHELL = Actor("", "shell:root")
BASE = re.sub(r"^log:\n(?:  .*\n)+", "", POLICY.read_text(encoding="utf-8"), flags=re.MULTILINE)
RETENTION = "retention:\n  default: 2555d\n  classes:\n    command: 400d\n"
LOG = """log:
  origin: log.example.com/orders
  signer: {kind: file, path: log.key}
  copies:
    archive: {kind: file, path: copy.log}
    clock: {kind: timestamp, url: "https://tsa.example.com", ca_file: tsa.pem}
"""


def policy_of(*sections: str) -> rules.Policy:
    """Return the demo's policy with these sections."""
    return rules.parse(BASE + "".join(sections), name="test")


@dataclass
class World:
    """A database with a desk, and who prunes. ``policy`` is what is in force."""

    database: Database
    desk: Counter
    people: People
    policy: rules.Policy
    now: datetime = NOW

    def __post_init__(self) -> None:
        self.office = RetentionDesk(self.database, lambda: self.policy, self.people, team=TEAM)

    def request(self, at: datetime = LONG_AGO, *, is_final: bool = True) -> str:
        """Open a request, and withdraw it an hour later."""
        self.desk.now = at
        row = self.desk.ask()
        if is_final:
            self.desk.withdraw(RITA, row.id, row.version, now=at + timedelta(hours=1))
        return row.id

    def entry(self, event: str = "log:export", at: datetime = LONG_AGO, request_id: str | None = None) -> int:
        """Append an entry."""
        with self.database.write() as session:
            return append(session, event=event, at=at, actor=CARL, request_id=request_id, data={"n": 1}).seq

    def plan(self) -> Plan:
        """Return what would go."""
        return self.office.plan(now=self.now)

    def propose(self) -> tuple[int, str]:
        """Propose what would go; return what the buttons carry."""
        seq, found = self.office.propose(SHELL, now=self.now)
        return seq, found.hash

    def confirm(self, who: Actor, carried: tuple[int, str], **changes: Any) -> Confirmed:
        """Press Confirm."""
        return self.office.confirm(who, *carried, **{"seen_at": self.now, "now": self.now} | changes)

    def prune(self) -> Confirmed:
        """Propose and confirm."""
        carried = self.propose()
        self.confirm(ADA, carried)
        return self.confirm(SAM, carried)

    def records(self, *events: str) -> list[Record]:
        """Return the entries of these events, or all; a refused one is among them."""
        with self.database.read() as session:
            return audit.read_entries(session, events=events or None)

    def pruned(self) -> list[int]:
        """Return the numbers of the entries without a body, after a check of the whole log."""
        with self.database.read() as session:
            assert audit.check(session) is None
            return [record.seq for record in audit.read_entries(session) if record.is_pruned]

    def of(self, request_id: str) -> list[int]:
        """Return the numbers of a request's entries."""
        with self.database.read() as session:
            return list(session.exec(select(Entry.seq).where(Entry.request_id == request_id).order_by(Entry.seq)))


@pytest.fixture
def world(database: Database) -> World:
    """An empty log, a policy that keeps commands for 400 days and all else for 7 years. (Vault is never asked.)"""
    people = People()
    vault = Vault("http://127.0.0.1:9", token="unused")
    desk = Counter(database, policy_of(), people, vault, team=TEAM, patience=PATIENCE)
    desk.people = people
    return World(database, desk, people, policy_of(RETENTION))


# --- what may go ---------------------------------------------------------------------------------------------------


def test_only_what_is_over_and_final_would_go(world: World) -> None:
    """An old final request goes; a young one, an open one and one under legal hold stay."""
    old = world.request()
    held = world.request()
    is_open = world.request(is_final=False)
    young = world.request(NOW - timedelta(days=10))
    world.office.hold(ADA, held, "litigation 12", now=NOW)
    found = world.plan()
    assert list(pruning.numbers_of(found.ranges)) == world.of(old)
    assert [(part.noun, part.request_id, part.count) for part in found.parts] == [("request", old, 2)]
    assert (found.parts[0].oldest, found.parts[0].newest) == (LONG_AGO, LONG_AGO + timedelta(hours=1))
    assert world.of(is_open)
    assert world.of(young)


def test_each_class_has_its_own_time(world: World) -> None:
    """A command goes after 400 days, all else after 7 years."""
    old = world.entry("log:export", NOW - timedelta(days=2556))
    gone = world.entry("command:run", NOW - timedelta(days=401))
    world.entry("log:export", NOW - timedelta(days=401))
    world.entry("command:run", NOW - timedelta(days=399))
    assert world.plan().ranges == ((old, gone),)


def test_the_time_is_kept_to_the_microsecond(world: World) -> None:
    """At exactly the policy's age an entry is kept; a microsecond later it may go."""
    seq = world.entry("log:export", NOW - timedelta(days=2555))
    assert world.plan().ranges == ()
    world.now = NOW + timedelta(microseconds=1)
    assert world.plan().ranges == ((seq, seq),)


def test_without_the_section_nothing_is_ever_pruned(world: World) -> None:
    """A policy that does not speak of retention keeps everything."""
    world.request()
    world.policy = policy_of()
    with pytest.raises(Conflict, match="everything is kept"):
        world.plan()
    with pytest.raises(Conflict, match="everything is kept"):
        world.propose()


def test_what_the_rest_is_judged_by_never_goes(world: World) -> None:
    """Holds, proposals, confirmations, policy texts and rotations of the key stay, however old they are."""
    gone = world.entry("log:export")
    for event in ("retention:hold", "retention:apply", "policy:load", "policy:text", "log:rotate"):
        with world.database.write() as session:
            append(session, event=event, at=LONG_AGO, actor=CARL, refused="not_allowed")
    assert world.plan().ranges == ((gone, gone),)


def test_what_a_copy_does_not_have_yet_stays(world: World) -> None:
    """Nothing is pruned that a copy outside has not acknowledged; a notary keeps no entries and is not waited for."""
    numbers = [world.entry() for _ in range(4)]
    world.policy = policy_of(RETENTION, LOG)
    assert world.plan().ranges == ()
    with world.database.write() as session:
        session.add(Feed(follower="archive", request_id="*", seq=numbers[1]))
    assert world.plan().ranges == ((numbers[0], numbers[1]),)


def test_equal_logs_give_equal_plans(world: World) -> None:
    """The plan's hash does not depend on when it is asked, and changes with what would go and with the times."""
    world.entry()
    first = world.plan().hash
    world.now += timedelta(hours=1)
    assert world.plan().hash == first
    world.policy = policy_of("retention: {default: 2000d}\n")
    other = world.plan().hash
    world.entry()
    assert len({first, other, world.plan().hash}) == 3


def test_a_plan_that_is_too_long_is_cut(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One plan holds so many entries and ranges at the most, the oldest first, and says that there is more."""
    for _ in range(3):
        world.entry()
        world.entry("policy:text")
    assert (world.plan().ranges, world.plan().is_cut) == (((0, 0), (2, 2), (4, 4)), False)
    monkeypatch.setattr(retention, "MOST_RANGES", 2)
    assert (world.plan().ranges, world.plan().is_cut) == (((0, 0), (2, 2)), True)
    monkeypatch.setattr(retention, "MOST_ENTRIES", 1)
    assert (world.plan().ranges, world.plan().is_cut) == (((0, 0),), True)


@pytest.mark.parametrize("seed", range(6))
def test_the_plan_is_what_the_rules_say(world: World, seed: int) -> None:
    """Over random logs with clocks that jump, the plan is what a reader with pencil and paper would find."""
    chance = random.Random(seed)  # noqa: S311 - the same log each time
    requests = [world.request(LONG_AGO, is_final=chance.random() < 0.7) for _ in range(6)]
    nouns = ("command:run", "log:export", "credential:issue", "policy:text", "copy:behind", "commander:x")
    with world.database.write() as session:
        for _ in range(60):
            append(
                session,
                event=chance.choice(nouns),
                at=NOW - timedelta(days=chance.choice((3, 390, 401, 2550, 2556, 2999))),
                actor=CARL,
                request_id=chance.choice([None, *requests]),
            )
    for request_id in requests[:2]:
        world.office.hold(ADA, request_id, "why", now=LONG_AGO)
    world.office.release(ADA, requests[0], now=LONG_AGO)
    expected, youngest = [], LONG_AGO - timedelta(days=1)
    with world.database.read() as session:
        final = {row.id for row in session.exec(select(Request)) if State(row.state) in FINAL}
    for record in world.records():
        youngest = max(youngest, record.at)
        keep = timedelta(days=400 if record.event.startswith("command:") else 2555)
        if (
            youngest < NOW - keep
            and (record.request_id is None or record.request_id in final - {requests[1]})
            and not record.event.startswith(("retention:", "policy:"))
        ):
            expected.append(record.seq)
    assert list(pruning.numbers_of(world.plan().ranges)) == expected


# --- two people ----------------------------------------------------------------------------------------------------


def test_two_people_prune(world: World) -> None:
    """The second confirmation writes what is pruned, with every number, and takes the bodies in the same moment."""
    old, young = world.request(), world.request(NOW - timedelta(days=1))
    with world.database.read() as session:
        head = audit.head(session)
    carried = world.propose()
    assert world.confirm(ADA, carried) == Confirmed(1, 2)
    assert world.pruned() == []
    assert world.confirm(SAM, carried) == Confirmed(2, 2, pruned=2)
    assert world.pruned() == world.of(old)
    (said,) = world.records(APPLY)
    assert said.actor == SYSTEM
    assert said.data["ranges"] == [[0, 1]]
    assert (said.data["count"], said.data["proposal"], said.data["plan"]) == (2, *carried)
    assert said.data["confirmed_by"] == ["U0ADA", "U0SAM"]
    assert said.data["classes"] == {"request": 2}
    with world.database.read() as session:
        assert audit.check(session, trusted=head) is None
    assert world.of(young)
    assert [record.event for record in world.records()][-4:] == [PROPOSE, CONFIRM, CONFIRM, APPLY]
    assert world.plan().ranges == ()


def test_attack_one_person_confirms_twice(world: World) -> None:
    """The same person's second click is refused, on record, and prunes nothing."""
    world.request()
    carried = world.propose()
    world.confirm(ADA, carried)
    with pytest.raises(Conflict, match="somebody else must be the second"):
        world.confirm(ADA, carried)
    assert world.pruned() == []
    assert world.records(CONFIRM)[-1].refused == "doubled"


def test_proposing_is_not_confirming(world: World) -> None:
    """Who proposed may confirm once, and still needs somebody else."""
    world.request()
    seq, found = world.office.propose(ADA, now=NOW)
    assert world.confirm(ADA, (seq, found.hash)).pruned is None
    assert world.pruned() == []
    assert world.confirm(SAM, (seq, found.hash)).pruned == 2


@pytest.mark.parametrize("who", [RITA, CARL, GUS, Actor(TEAM, "U0NOBODY"), Actor("T0OTHER", "U0ADA")])
def test_attack_confirmed_by_somebody_else(world: World, who: Actor) -> None:
    """Only auditors and security of this workspace confirm, reject, hold and release; each try is on record."""
    request_id = world.request()
    carried = world.propose()
    for attempt, event in (
        (lambda: world.confirm(who, carried), CONFIRM),
        (lambda: world.office.reject(who, *carried, now=NOW), REJECT),
        (lambda: world.office.hold(who, request_id, "why", now=NOW), HOLD),
        (lambda: world.office.release(who, request_id, now=NOW), RELEASE),
    ):
        with pytest.raises(NotAllowed):
            attempt()
        assert world.records(event)[-1].refused in {"not_allowed", "other_workspace"}
        assert world.records(event)[-1].actor == who
    world.confirm(ADA, carried)
    assert world.pruned() == []


def test_attack_an_auditor_was_deactivated_since(world: World) -> None:
    """A confirmation counts only while its giver could still give it at the last click."""
    world.request()
    carried = world.propose()
    world.confirm(ADA, carried)
    world.people.change("U0ADA", is_deleted=True)
    assert world.confirm(SAM, carried) == Confirmed(1, 2)
    assert world.pruned() == []
    world.people.groups["@security"] = ("U0SAM", "U0LENA")
    assert world.confirm(Actor(TEAM, "U0LENA"), carried).pruned == 2


def test_two_people_in_the_same_moment(world: World) -> None:
    """Of clicks at once each is counted, and what is pruned is pruned once."""
    world.request()
    world.people.groups["@security"] = ("U0SAM", "U0LENA", "U0OLGA")
    carried = world.propose()
    everybody = [ADA, SAM, Actor(TEAM, "U0LENA"), Actor(TEAM, "U0OLGA")]
    barrier = threading.Barrier(len(everybody))
    came: list[object] = []

    def click(who: Actor) -> None:
        barrier.wait()
        try:
            came.append(world.confirm(who, carried))
        except Conflict as refused:
            came.append(refused.reason)

    threads = [threading.Thread(target=click, args=(who,)) for who in everybody]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, came)) == sorted(map(str, [Confirmed(1, 2), Confirmed(2, 2, pruned=2), "stale", "stale"]))
    assert len(world.records(APPLY)) == 1
    assert world.pruned() == [0, 1]


def test_one_person_rejects(world: World) -> None:
    """A rejection ends a proposal, also one that was confirmed once."""
    world.request()
    carried = world.propose()
    world.confirm(ADA, carried)
    world.office.reject(SAM, *carried, now=NOW)
    with pytest.raises(Conflict, match="not open any more"):
        world.confirm(SAM, carried)
    assert world.pruned() == []


# --- stale and edited ------------------------------------------------------------------------------------------------


def test_attack_a_confirmation_of_long_ago(world: World) -> None:
    """A proposal is void after a week, and when it was applied."""
    world.request()
    carried = world.propose()
    world.confirm(ADA, carried)
    world.now += timedelta(days=7)
    with pytest.raises(Conflict, match="not open any more"):
        world.confirm(SAM, carried)
    world.prune()
    with pytest.raises(Conflict, match="not open any more"):
        world.confirm(SAM, carried)
    assert len(world.records(APPLY)) == 1


def test_attack_a_confirmation_of_another_plan(world: World) -> None:
    """With a newer proposal the older one's confirmations and buttons are void."""
    world.request()
    first = world.propose()
    world.confirm(ADA, first)
    second = world.propose()
    with pytest.raises(Conflict, match="not open any more"):
        world.confirm(SAM, first)
    assert world.confirm(SAM, second) == Confirmed(1, 2)
    assert world.pruned() == []


@pytest.mark.parametrize("change", [lambda seq, _: (seq, "0" * 64), lambda seq, plan: (seq + 1, plan)])
def test_attack_an_edited_button(world: World, change: Any) -> None:
    """A button that carries another plan, or another entry, confirms nothing."""
    world.request()
    carried = change(*world.propose())
    with pytest.raises(Conflict, match="not open any more"):
        world.confirm(ADA, carried)
    with pytest.raises(Conflict, match="not open any more"):
        world.office.reject(ADA, *carried, now=NOW)


def test_attack_a_proposal_that_was_made_by_hand(world: World) -> None:
    """A proposal that names what may not go prunes only what may: the bot works it out itself."""
    old, young = world.request(), world.request(NOW - timedelta(days=5))
    keep = {"default": 1, "classes": {}}
    data = {"plan": "0" * 64, "count": 4, "ranges": [[0, 3]], "keep": keep}
    with world.database.write() as session:
        seq = append(session, event=PROPOSE, at=NOW, actor=SHELL, data=data).seq
    world.confirm(ADA, (seq, "0" * 64))
    assert world.confirm(SAM, (seq, "0" * 64)) == Confirmed(2, 2, pruned=2, left=2)
    assert world.pruned() == world.of(old)
    assert world.of(young) == [2, 3]


def test_a_proposal_that_cannot_be_read_is_damage(world: World) -> None:
    """A proposal without readable ranges is confirmed by nobody."""
    world.request()
    with world.database.write() as session:
        seq = append(session, event=PROPOSE, at=NOW, actor=SHELL, data={"plan": "x", "ranges": "all"}).seq
    with pytest.raises(Conflict, match="not as it was written"):
        world.confirm(ADA, (seq, "x"))


# --- what changes between the proposal and the second click -----------------------------------------------------------


def test_a_hold_in_between_wins(world: World) -> None:
    """What came under legal hold since drops out; the rest goes, and the entry says how much was left."""
    kept, gone = world.request(), world.request()
    carried = world.propose()
    world.confirm(ADA, carried)
    world.office.hold(SAM, kept, "the regulator called", now=NOW)
    assert world.confirm(SAM, carried) == Confirmed(2, 2, pruned=2, left=2)
    assert world.pruned() == world.of(gone)
    assert world.records(APPLY)[0].data["left"] == 2


def test_everything_under_hold_prunes_nothing(world: World) -> None:
    """When all of the plan came under hold, the proposal ends with an entry that prunes nothing."""
    kept = world.request()
    carried = world.propose()
    world.confirm(ADA, carried)
    world.office.hold(SAM, kept, "the regulator called", now=NOW)
    assert world.confirm(SAM, carried) == Confirmed(2, 2, pruned=0, left=2)
    assert world.pruned() == []


def test_attack_a_policy_that_became_shorter(world: World) -> None:
    """The longer time wins: that of the proposal, when the policy became shorter since."""
    old, younger = world.request(), world.request(NOW - timedelta(days=100))
    carried = world.propose()
    world.policy = policy_of("retention: {default: 1d}\n")
    world.confirm(ADA, carried)
    assert world.confirm(SAM, carried).pruned == 2
    assert world.pruned() == world.of(old)
    assert world.of(younger)


def test_a_policy_that_became_longer_wins(world: World) -> None:
    """The longer time wins: that of now, when the policy became longer since; without the section nothing goes."""
    world.request()
    carried = world.propose()
    world.confirm(ADA, carried)
    world.policy = policy_of()
    with pytest.raises(Conflict, match="keeps everything now"):
        world.confirm(SAM, carried)
    world.policy = policy_of("retention: {default: 2555d, classes: {request: 4000d}}\n")
    assert world.confirm(SAM, carried) == Confirmed(2, 2, pruned=0, left=2)
    assert world.pruned() == []


def test_what_became_over_since_was_not_confirmed(world: World) -> None:
    """Only what stood in the plan is pruned, even if more may go by now."""
    old = world.request()
    almost = world.request(NOW - timedelta(days=2553))
    carried = world.propose()
    world.confirm(ADA, carried)
    world.now += timedelta(days=6)
    assert world.confirm(SAM, carried).pruned == 2
    assert world.pruned() == world.of(old)
    assert list(pruning.numbers_of(world.plan().ranges)) == world.of(almost)


# --- the clock -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seen_at", [None, NOW - timedelta(days=2600), NOW - timedelta(minutes=11), NOW + timedelta(hours=1)]
)
def test_attack_the_clock_is_not_slacks(world: World, seen_at: datetime | None) -> None:
    """A bot whose clock is not near that of Slack's servers prunes nothing."""
    world.request()
    carried = world.propose()
    for who in (ADA, SAM):
        with pytest.raises(Conflict, match="clocks") as refused:
            world.confirm(who, carried, seen_at=seen_at)
        assert refused.value.reason == "clock"
    assert world.pruned() == []


def test_attack_the_clock_is_years_ahead(world: World) -> None:
    """Where heads are signed, a clock that is more than a day past the newest sign of life plans nothing."""
    world.request(NOW - timedelta(days=20))
    with world.database.write() as session:
        session.add(SignedHead(size=2, root=b"", note=b"", at=NOW, reason="heartbeat"))
    world.now = NOW + timedelta(days=2600)
    with pytest.raises(Conflict, match="clock is wrong"):
        world.plan()
    world.now = NOW + timedelta(days=1)
    assert world.plan().ranges == ()


def test_attack_written_while_the_clock_was_set_back(world: World) -> None:
    """An entry counts as no older than any before it, whatever its own time says."""
    world.entry(at=NOW - timedelta(days=3))
    world.entry(at=LONG_AGO)
    world.request(LONG_AGO)
    assert world.plan().ranges == ()


# --- tampering -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entry SET body = CAST('{}' AS {bytes}) WHERE seq = 1",
        "UPDATE entry SET at = '2001-01-01 00:00:00.000000' WHERE seq = 1",
        "UPDATE entry SET event = 'command:run' WHERE seq = 1",
        "UPDATE entry SET request_id = NULL WHERE seq = 1",
    ],
)
def test_attack_prune_to_hide_a_change(world: World, database_url: str, statement: str) -> None:
    """An entry that was changed, or whose columns were to make it look prunable, stays, and the change is named."""
    world.request()
    carried = world.propose()
    world.confirm(ADA, carried)
    with unguarded(database_url) as execute:
        execute(statement.replace("{bytes}", "BYTEA" if database_url.startswith("postgresql") else "BLOB"))
    with pytest.raises(Conflict, match="Entry 1 of the log is not as it was written"):
        world.confirm(SAM, carried)
    with pytest.raises(Damaged):
        world.plan()
    with world.database.read() as session:
        assert session.get(Entry, 1).body is not None


# --- legal hold ------------------------------------------------------------------------------------------------------


def test_a_hold_and_its_end_are_entries(world: World) -> None:
    """Each is one entry about the request, with who and why, and its thread's followers see it."""
    request_id = world.request()
    world.office.hold(ADA, request_id, "  litigation 12 ", now=NOW)
    with world.database.read() as session:
        held = holds(session)
        assert session.get(Request, request_id).last_seq == held[request_id].seq
    assert (held[request_id].actor, held[request_id].data["reason"]) == (ADA, "litigation 12")
    world.office.release(SAM, request_id, "settled", now=NOW)
    with world.database.read() as session:
        assert holds(session) == {}
    (released,) = world.records(RELEASE)
    assert released.data == {"hold": held[request_id].seq, "reason": "settled"}


def test_holds_that_make_no_sense_are_refused(world: World) -> None:
    """A second hold, a release of nothing, an unknown request and a hold without a reason change nothing."""
    request_id = world.request()
    with pytest.raises(Conflict, match="under no legal hold"):
        world.office.release(ADA, request_id, now=NOW)
    with pytest.raises(Invalid, match="Say why"):
        world.office.hold(ADA, request_id, "  ", now=NOW)
    with pytest.raises(Conflict, match="There is no request"):
        world.office.hold(ADA, "BG-NONE", "why", now=NOW)
    world.office.hold(ADA, request_id, "why", now=NOW)
    with pytest.raises(Conflict, match="already"):
        world.office.hold(SAM, request_id, "why", now=NOW)
    with world.database.read() as session:
        assert list(holds(session)) == [request_id]


def test_attack_a_refused_release_ends_no_hold(world: World) -> None:
    """A stranger's try to end a hold, which is an entry, does not end it."""
    request_id = world.request()
    world.office.hold(ADA, request_id, "why", now=NOW)
    with pytest.raises(NotAllowed):
        world.office.release(CARL, request_id, now=NOW)
    with world.database.read() as session:
        assert list(holds(session)) == [request_id]
    assert world.plan().ranges == ()


# --- the policy file -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("retention: {}\n", "“default” is missing"),
        ("retention: {default: 0d}\n", "longer than zero"),
        ("retention: {default: 1h}\n", "1 day"),
        ("retention: {default: 30d, clases: {}}\n", "did you mean “classes”"),
        ("retention: {default: 30d, classes: {comand: 30d}}\n", "no class of entries comand"),
        ("retention: {default: 30d, classes: {retention: 30d}}\n", "kept for good"),
        ("retention: {default: 30d, classes: {policy: 30d}}\n", "kept for good"),
        ("retention: {default: 30d, classes: {log: 30}}\n", "Write a duration"),
        ("retention: 30d\n", "must be a block"),
    ],
)
def test_a_section_with_a_mistake_does_not_load(section: str, words: str) -> None:
    """An unknown class or key, a time too short, or none, refuses with its line."""
    with pytest.raises(rules.PolicyInvalid, match=words) as refused:
        policy_of(section)
    assert refused.value.problems[0].line == BASE.count("\n") + 1


def test_the_section_says_how_long_each_class_is_kept() -> None:
    """A class that is named has its time, every other the default; of two rules the longer counts for each class."""
    one = policy_of("retention: {default: 100d, classes: {command: 10d, log: 500d}}\n").retention
    two = policy_of("retention: {default: 200d, classes: {command: 20d, review: 50d}}\n").retention
    assert one is not None
    assert two is not None
    assert [one.keep(event).days for event in ("command:run", "log:export", "review:file")] == [10, 500, 100]
    both = one.longer(two)
    assert both == two.longer(one)
    kept = {noun: both.keep(noun).days for noun in ("command", "log", "review", "request")}
    assert kept == {"command": 20, "log": 500, "review": 100, "request": 200}


def test_the_classes_are_documented() -> None:
    """POLICY.md names exactly the classes that a policy can give a time, and every noun of a move is one."""
    text = (POLICY.parents[2] / "workflows" / "POLICY.md").read_text(encoding="utf-8")
    (listed,) = re.findall(r"other times by class of entry: (.*) \|", text)
    assert tuple(re.findall(r"`([a-z]+)`", listed)) == CLASSES
    assert {pruning.noun(action) for action in Action} <= set(CLASSES)


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def shell(world: World, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The command line on this database and policy."""
    (tmp_path / "policy.yml").write_text(BASE + RETENTION, encoding="utf-8")
    monkeypatch.setenv("BREAKGLASS_POLICY", str(tmp_path / "policy.yml"))
    monkeypatch.setenv("BREAKGLASS_DATABASE_URL", database_url)
    return world


def test_the_command_line_shows_and_proposes(shell: World, capsys: pytest.CaptureFixture[str]) -> None:
    """`plan` lists class, request, count and time, `propose` puts the same plan on record, and neither prunes."""
    request_id = shell.request()
    assert main(["retention", "plan"]) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"request +{request_id} +2  2017-12-13 to 2017-12-13", shown)
    assert main(["retention", "plan", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ranges"] == [[0, 1]]
    assert found["plan"] in shown
    assert main(["retention", "apply"]) == 0
    assert found["plan"] in capsys.readouterr().out
    (proposed,) = shell.records(PROPOSE)
    assert proposed.actor.person.startswith("shell:")
    assert (proposed.data["plan"], proposed.data["count"]) == (found["plan"], 2)
    assert shell.pruned() == []


def test_the_command_line_holds_and_releases(shell: World, capsys: pytest.CaptureFixture[str]) -> None:
    """A hold is listed, empties the plan, is refused twice, and ends with release."""
    request_id = shell.request()
    assert main(["retention", "hold", request_id, "--reason", "litigation"]) == 0
    assert main(["retention", "hold", request_id, "--reason", "litigation"]) == 1
    assert main(["retention", "holds"]) == 0
    assert f"{request_id}  since" in capsys.readouterr().out
    assert main(["retention", "plan"]) == 0
    assert capsys.readouterr().out == "Nothing may be pruned now.\n"
    assert main(["retention", "propose"]) == 1
    assert main(["retention", "release", request_id]) == 0
    assert main(["retention", "holds"]) == 0
    assert "No request is under legal hold." in capsys.readouterr().out


def test_a_pruned_log_verifies_in_every_way(shell: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After a pruning the database, exports and a bundle verify, and a copy outside that has the words fits."""
    shell.request()
    with shell.database.read() as session:
        columns = (Entry.seq, Entry.body, Entry.leaf_hash)
        items = [Item(*row) for row in session.exec(select(*columns).order_by(Entry.seq))]
    copy = FOLLOWERS["file"].build(Place("archive", "log.example.com/x", {"path": str(tmp_path / "copy")}, {}))
    assert copy.deliver(items, None, now=NOW) == 1
    shell.request(NOW - timedelta(days=1))
    assert shell.prune().pruned == 2
    findings = Findings(50)
    compared = compare_with_copy(shell.database, copy, findings)
    assert compared.entries == 2
    assert findings == []
    assert main(["verify"]) == 0
    for form in ("jsonl", "csv", "bundle"):
        file = tmp_path / f"log.{'zip' if form == 'bundle' else form}"
        assert main(["export", "--format", form, "-o", str(file)]) == 0
        assert main(["verify", str(file)]) == 0
    capsys.readouterr()


@pytest.mark.parametrize("form", ["jsonl", "csv", "bundle"])
@pytest.mark.parametrize("chosen", ["request", "account"])
def test_a_selection_brings_along_who_pruned_of_it(
    shell: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], chosen: str, form: str
) -> None:
    """One request's export holds the proposal, both confirmations and the pruning; then nothing is left unchecked."""
    gone = shell.request()
    held = shell.request(LONG_AGO + timedelta(days=1))
    shell.office.hold(SAM, held, "A court asked for it.", now=NOW)
    shell.office.reject(SAM, *shell.propose(), now=NOW)  # about the same entries, and explains nothing
    assert shell.prune().pruned == 2
    (apply,) = shell.records(APPLY)
    file = tmp_path / f"log.{'zip' if form == 'bundle' else form}"
    words = {"request": ["--request", gone], "account": ["--account", "orders-db"]}[chosen]
    assert main(["export", "--format", form, *words, "-o", str(file)]) == 0
    capsys.readouterr()
    assert main(["verify", str(file)]) == 0
    said = capsys.readouterr().out
    assert "not in this selection" not in said
    if form == "bundle":
        with zipfile.ZipFile(file) as box:
            lines = box.read("entries.jsonl").decode().splitlines()[1:-1]
            read_me = box.read("README.txt").decode()
            everything = b"".join(box.read(name) for name in box.namelist()).decode(errors="replace")
        bodies = [json.loads(body) for line in lines if (body := json.loads(line)["body"])]
        aside = [body["event"] for body in bodies if "request" not in body]
        assert aside == ["retention:propose", "retention:confirm", "retention:confirm", APPLY]
        assert "2 entries have no body any more" in read_me
        assert f"entry {apply.seq} (retention:apply)" in read_me
        assert (held in everything) is (chosen == "account")
        # The other request's bundle has nothing of it: nothing of that was pruned.
        assert main(["export", "--format", form, "--request", held, "-o", str(file)]) == 0
        with zipfile.ZipFile(file) as box:
            assert b"WHAT WAS PRUNED" not in box.read("README.txt")
            assert b"retention:apply" not in box.read("entries.jsonl")


def test_attack_a_selection_without_the_second_confirmation(shell: World, tmp_path: Path) -> None:
    """Attack: pruned by one person alone, with the database's key; the selection shows it as the whole log does."""
    gone = shell.request()
    with shell.database.write() as session:
        claimed = pruning.claim(session, ((0, 1),))
        seq = append(session, event=APPLY, at=NOW, actor=SYSTEM, data=claimed.data() | {"proposal": 1}).seq
        pruning.prune(session, seq, claimed.ranges)
    file = tmp_path / "log.jsonl"
    assert main(["export", "--request", gone, "-o", str(file)]) == 0
    assert main(["verify", str(file)]) == 4
