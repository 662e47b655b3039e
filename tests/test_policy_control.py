"""Does a changed policy wait for people, and does nothing less than they put it into force?

The database is real, the people are a table; the file and ``ssh-keygen`` are real, too.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from counter import CARL, CHEN, CORA, OLGA, PATIENCE, RITA, SAM, TEAM, Counter, People
from test_retention import BASE

from bot import policy_watch, views
from bot.policy_clicks import control_for
from bot.policy_watch import PolicyWatch, first
from storage import audit
from storage.audit import Actor
from storage.database import Database
from workflows import policy as rules
from workflows import policy_changes
from workflows.errors import Conflict, NotAllowed, Unavailable
from workflows.policy_control import (
    CONFIRM,
    DROP,
    LASTS,
    PROPOSE,
    RECOUNT,
    REFUSED,
    REJECT,
    Confirmed,
    Outcome,
    fate,
    in_force,
    open_proposal,
)
from workflows.policy_file import PolicyInvalid
from workflows.vault import Vault

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from storage.audit import Record

NOW = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
CUSTODIANS = "custodians: [U0CARL, U0CHEN, U0CORA]"
WITH_OLGA = BASE.replace(CUSTODIANS, "custodians: [U0CARL, U0CHEN, U0CORA, U0OLGA]")
WITHOUT_CARL = BASE.replace(CUSTODIANS, "custodians: [U0CHEN, U0CORA]")
OTHER_OWNER = BASE.replace("owner: U0CORA", "owner: U0OLGA").replace('security: ["@security"]', "security: [U0OLGA]")


@dataclass
class World:
    """A policy file, a database, and two bots that know nothing of each other."""

    database: Database
    file: Path
    now: datetime = NOW
    people: People = field(default_factory=People)
    signers: Path | None = None

    def __post_init__(self) -> None:
        self.write(BASE)
        self.desk, self.watch = self.bot()
        self.control = control_for(self.desk)

    def bot(self, file: Path | None = None) -> tuple[Counter, PolicyWatch]:
        """Start a bot as ``app.build`` does."""
        vault = Vault("http://127.0.0.1:9", token="unused")
        policy = first(self.database, file or self.file, now=self.now)
        desk = Counter(self.database, policy, self.people, vault, team=TEAM, patience=PATIENCE)
        desk.people, desk.now = self.people, self.now
        watch = PolicyWatch(control_for(desk), file or self.file, policy=lambda: desk.policy, signers=self.signers)
        watch.tick(now=self.now)
        return desk, watch

    def write(self, text: str) -> None:
        """Change the file as an editor does."""
        fresh = self.file.with_suffix(".new")
        fresh.write_bytes(text.encode())
        fresh.replace(self.file)

    def change(self, text: str) -> tuple[int, str]:
        """Change the file and let the bot see it; return what the buttons of the newest proposal carry."""
        self.write(text)
        self.tick()
        return self.carried()

    def carried(self) -> tuple[int, str]:
        """Return the number and the hash of the newest proposal."""
        newest = self.records(PROPOSE)[-1]
        return newest.seq, newest.data["hash"]

    def tick(self) -> None:
        """Let ten seconds go by."""
        self.now += timedelta(seconds=10)
        self.watch.tick(now=self.now)

    def confirm(self, who: Actor, carried: tuple[int, str]) -> Confirmed:
        """Press Confirm."""
        return self.control.confirm(who, *carried, now=self.now)

    def records(self, *events: str) -> list[Record]:
        """Return the entries of these events; a refused one is not among them."""
        with self.database.read() as session:
            return [one for one in audit.read_entries(session, events=events) if one.refused is None]

    def refusals(self, event: str) -> list[str | None]:
        """Return how the tries at something ended."""
        with self.database.read() as session:
            return [one.refused for one in audit.read_entries(session, events=(event,)) if one.refused]

    @property
    def in_force(self) -> str:
        """The text in force, by the log."""
        with self.database.read() as session:
            return policy_watch.recorded(self.database, in_force(session).hash).text


@pytest.fixture
def world(sqlite_template: Path, tmp_path: Path) -> Iterator[World]:
    """The demo's policy is in force, and the file says so."""
    shutil.copyfile(sqlite_template, tmp_path / "breakglass.db")
    found = Database(f"sqlite:///{tmp_path / 'breakglass.db'}")
    yield World(found, tmp_path / "breakglass.yml")
    found.close()


def refused(world: World, who: Actor, carried: tuple[int, str], error: type[Exception], words: str) -> None:
    """Press Confirm, and see it refused with these words, on record."""
    before = len(world.refusals(CONFIRM))
    with pytest.raises(error, match=words):
        world.confirm(who, carried)
    assert len(world.refusals(CONFIRM)) == before + 1


def test_a_changed_file_waits_for_two_people(world: World) -> None:
    """The first file is in force at once; a change of it is on record whole, and in force with the second person."""
    assert world.records("policy:load")[0].data["text"] == BASE
    carried = world.change(WITH_OLGA)
    (proposal,) = world.records(PROPOSE)
    assert (proposal.data["before"], proposal.data["need"]) == (world.desk.policy.hash, 2)
    assert proposal.data["people"] == ["U0CORA", "@security"]
    assert {"account": "orders-db", "sentence": "Custodians: added <@U0OLGA>.", "is_weaker": True} in proposal.data[
        "changes"
    ]
    assert "+    custodians: [U0CARL, U0CHEN, U0CORA, U0OLGA]" in proposal.data["difference"]
    assert world.confirm(CORA, carried) == Confirmed(1, 2, is_in_force=False)
    assert world.in_force == world.desk.policy.text == BASE
    assert world.confirm(SAM, carried) == Confirmed(2, 2, is_in_force=True)
    assert world.in_force == world.desk.policy.text == WITH_OLGA
    assert world.records("policy:load")[-1].data["confirmed_by"] == ["U0CORA", "U0SAM"]
    world.tick()
    assert len(world.records(PROPOSE)) == 1


def test_a_restart_puts_no_changed_file_into_force(world: World) -> None:
    """A bot that starts over another file has the old policy, and proposes the file once, not at each start."""
    world.write(WITH_OLGA)
    for _ in range(2):
        desk, _watch = world.bot()
        assert desk.policy.text == BASE
    assert len(world.records(PROPOSE)) == 1
    world.control.reject(SAM, *world.carried(), now=world.now)
    world.bot()
    assert len(world.records(PROPOSE)) == 1


def test_attack_one_person_confirms_twice(world: World) -> None:
    """The same person counts once, however often they press."""
    carried = world.change(WITH_OLGA)
    world.confirm(CORA, carried)
    refused(world, CORA, carried, Conflict, "somebody else must be the next")
    assert world.in_force == BASE


def test_attack_the_file_names_its_own_confirmers(world: World) -> None:
    """Whom only the proposed policy makes owner, security or confirmer has no word in whether it comes into force."""
    carried = world.change(OTHER_OWNER + "control:\n  people: [U0OLGA, U0RITA]\n")
    for who in (OLGA, RITA, CARL):
        refused(world, who, carried, NotAllowed, "by the policy that is in force")
    refused(world, Actor("T0OTHER", "U0CORA"), carried, NotAllowed, "Only people of this workspace")
    assert world.in_force == BASE


def test_attack_a_confirmer_was_deactivated_meanwhile(world: World) -> None:
    """The right must still be there at the last click: an approval of somebody who left counts no more."""
    world.desk, world.watch = world.bot()
    carried = world.change(WITH_OLGA)
    world.people.groups["@security"] = ("U0SAM", "U0CHEN")
    world.confirm(CORA, carried)
    world.people.change("U0CORA", is_deleted=True)
    assert world.confirm(SAM, carried) == Confirmed(1, 2, is_in_force=False)
    assert world.confirm(CHEN, carried) == Confirmed(2, 2, is_in_force=True)


def test_attack_the_file_changes_between_the_two_confirmations(world: World) -> None:
    """What two people saw is what comes into force, never what the file says by then; the rest is proposed anew."""
    carried = world.change(WITH_OLGA)
    world.confirm(CORA, carried)
    world.write(OTHER_OWNER)
    world.confirm(SAM, carried)
    assert world.in_force == WITH_OLGA
    world.tick()
    assert world.records(PROPOSE)[-1].data["hash"] == rules.parse(OTHER_OWNER, name="x").hash


def test_attack_the_button_of_an_older_proposal_is_pressed(world: World) -> None:
    """A newer file takes the place of the proposal; the old button says so, with the old hash or the new number."""
    old = world.change(WITH_OLGA)
    world.confirm(CORA, old)
    new = world.change(OTHER_OWNER)
    for carried in (old, (old[0], new[1]), (new[0], old[1])):
        refused(world, SAM, carried, Conflict, "not open any more")
    with world.database.read() as session:
        first_one = audit.read_entries(session, events=(PROPOSE,))[0]
        assert fate(session, first_one, now=world.now).outcome is Outcome.REPLACED
    assert world.confirm(SAM, new) == Confirmed(1, 2, is_in_force=False)


def test_attack_the_file_is_swapped_back(world: World) -> None:
    """A file that says again what is in force takes its proposal back; what was confirmed of it is void."""
    carried = world.change(WITH_OLGA)
    world.confirm(CORA, carried)
    world.write(BASE)
    world.tick()
    assert world.records(DROP)[0].data["proposal"] == carried[0]
    refused(world, SAM, carried, Conflict, "the file says again what is in force")
    again = world.change(WITH_OLGA)
    assert world.confirm(SAM, again) == Confirmed(1, 2, is_in_force=False)


def test_a_proposal_is_rejected_or_lapses(world: World) -> None:
    """One person's no ends it; so does a week. Neither changes what is in force."""
    carried = world.change(WITH_OLGA)
    with pytest.raises(NotAllowed):
        world.control.reject(OLGA, *carried, now=world.now)
    world.control.reject(SAM, *carried, now=world.now)
    refused(world, CORA, carried, Conflict, "it was rejected")
    late = world.change(OTHER_OWNER)
    world.now += LASTS
    refused(world, CORA, late, Conflict, "not confirmed within a week")
    assert (len(world.records(REJECT)), world.in_force) == (1, BASE)


def test_race_of_two_bots(database: Database, tmp_path: Path) -> None:
    """Of two bots that see a change one proposes; each takes over what was confirmed, also with an older file."""
    world = World(database, tmp_path / "breakglass.yml")
    stale = tmp_path / "stale.yml"
    stale.write_bytes(BASE.encode())
    desk, watch = world.bot()
    behind, behind_watch = world.bot(stale)
    world.write(WITH_OLGA)
    world.now += timedelta(seconds=10)
    for one in (world.watch, watch, behind_watch):
        one.tick(now=world.now)
    assert len(world.records(PROPOSE)) == 1
    carried = world.carried()
    world.confirm(CORA, carried)
    world.confirm(SAM, carried)
    for one in (watch, behind_watch):
        one.tick(now=world.now)
    assert desk.policy.text == behind.policy.text == WITH_OLGA
    world.now += timedelta(seconds=10)
    for one in (world.watch, watch, behind_watch, world.watch, watch, behind_watch):
        one.tick(now=world.now)
    # The older file is told once, as the change that it would be; the bots do not answer each other.
    assert [one.data["hash"] for one in world.records(PROPOSE)[1:]] == [rules.parse(BASE, name="x").hash]


def test_a_file_that_does_not_load_changes_nothing(world: World) -> None:
    """It is on record once, with its problems; the old policy stays, and a bot starts with it."""
    world.write(BASE.replace("quorum: 1", "quorum: none", 1))
    world.tick()
    world.desk, world.watch = world.bot()
    (found,) = world.records(REFUSED)
    assert "levels.read.quorum" in found.data["problems"][0]
    assert world.desk.policy.text == BASE
    world.file.unlink()
    world.tick()
    assert "cannot be read" in world.records(REFUSED)[-1].data["problems"][0]
    assert not world.records(PROPOSE)


def test_the_first_file_must_load(world: World, tmp_path: Path) -> None:
    """On a log that names no policy there is nothing to fall back to: the bot does not start."""
    empty = Database(f"sqlite:///{tmp_path / 'empty.db'}")
    empty.setup()
    world.write("version: 1\n")
    with pytest.raises(PolicyInvalid, match="accounts"):
        first(empty, world.file, now=NOW)
    with empty.read() as session:
        assert in_force(session) is None
    empty.close()


def test_attack_the_text_on_record_was_changed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that has not the hash that the log names is never in force."""
    monkeypatch.setattr(policy_watch, "text_of", lambda *_: None)
    world.write(WITH_OLGA)
    with pytest.raises(Unavailable, match="not on record"):
        world.bot()


# --- while a request is open ---------------------------------------------------------------------------------------


def test_a_removed_custodian_loses_the_vote_and_an_added_one_gains_none(world: World) -> None:
    """Through a confirmed change: the vote is gone, the thread says so, and everybody counts as the desk does."""
    row = world.desk.ask(level="write")
    world.desk.approve(CARL, row.id, row.version, now=world.now)
    swapped = WITHOUT_CARL.replace("[U0CHEN, U0CORA]", "[U0CHEN, U0CORA, U0OLGA]")
    carried = world.change(swapped)
    world.confirm(CORA, carried)
    world.confirm(SAM, carried)
    (told,) = [one for one in world.desk.log_of(row) if one.event == RECOUNT]
    assert told.data == {"hash": carried[1], "people": ["U0CARL"], "have": 0, "need": 2}
    case = world.desk.fresh(row)
    assert views.counting(case, world.desk.policy) == []
    assert "*Needs 2 approvals*" in views.clock_words(case, world.desk.policy)
    version = case.request.version
    with pytest.raises(NotAllowed, match="after this request was opened"):
        world.desk.approve(OLGA, row.id, version, now=world.now)
    after = world.desk.approve(CHEN, row.id, version, now=world.now)
    assert (after.state, world.desk.log_of(row)[-1].data["have"]) == ("pending", 1)
    assert world.desk.approve(CORA, row.id, after.version, now=world.now).state == "approved"


@pytest.mark.parametrize(("level", "before", "after"), [("read", 1, 2), ("write", 2, 1)])
def test_a_stricter_quorum_wins_and_a_laxer_does_not(world: World, level: str, before: int, after: int) -> None:
    """What was opened under two needs two under one; what was opened under one needs two under two."""
    row = world.desk.ask(level=level)
    carried = world.change(BASE.replace(f"quorum: {before}", f"quorum: {after}", 1))
    world.confirm(CORA, carried)
    world.confirm(SAM, carried)
    once = world.desk.approve(CARL, row.id, world.desk.fresh(row).request.version, now=world.now)
    assert once.state == "pending"
    assert views.needed(world.desk.fresh(row), world.desk.policy) == 2
    assert world.desk.approve(CHEN, row.id, once.version, now=world.now).state == "approved"


def test_a_decision_names_the_policy_that_it_was_made_under(world: World) -> None:
    """The request has the hash of the policy at its opening, each decision that of the policy at the click."""
    row = world.desk.ask(level="write")
    opened = row.policy_hash
    carried = world.change(WITH_OLGA)
    world.confirm(CORA, carried)
    world.confirm(SAM, carried)
    world.desk.approve(CARL, row.id, row.version, now=world.now)
    case = world.desk.fresh(row)
    assert case.request.policy_hash == opened
    assert case.decisions[0].policy_hash == rules.in_force(world.desk.policy, row.custodians) != opened


# --- a signature ---------------------------------------------------------------------------------------------------


def sign(file: Path, key: Path, namespace: str = policy_watch.NAMESPACE) -> None:
    """Sign the file as its author does."""
    file.with_name(file.name + ".sig").unlink(missing_ok=True)
    subprocess.run(
        [shutil.which("ssh-keygen"), "-q", "-Y", "sign", "-f", str(key), "-n", namespace, str(file)],
        check=True,
        capture_output=True,
    )


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Path]:
    """Keys of somebody who may sign and of somebody who may not, and the file that says so."""
    found = {name: tmp_path / name for name in ("trusted", "stranger")}
    for path in found.values():
        subprocess.run(
            [shutil.which("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(path)],
            check=True,
            capture_output=True,
        )
    public = found["trusted"].with_suffix(".pub").read_text().split()[:2]
    signers = tmp_path / "signers"
    signers.write_text(f"alex@example.com {' '.join(public)}\n")
    return {**found, "signers": signers}


def test_a_signed_file_is_in_force_at_once_where_the_policy_says_so(
    world: World, tmp_path: Path, keys: dict[str, Path]
) -> None:
    """Only with the setting in force, by a trusted key, over these bytes, for this purpose, and for a new text."""
    world = World(world.database, tmp_path / "signed.yml", signers=keys["signers"])
    allowed = BASE + "control:\n  signed: true\n"
    # 1. The proposed text's own setting allows nothing.
    world.write(allowed)
    sign(world.file, keys["trusted"])
    world.tick()
    assert world.in_force == BASE
    world.confirm(CORA, world.carried())
    world.confirm(SAM, world.carried())
    # 2. Another key, another purpose, other bytes.
    third = allowed.replace("custodians: [", "custodians: [U0OLGA, ")
    world.write(third)
    for key, namespace in (("stranger", policy_watch.NAMESPACE), ("trusted", "git")):
        sign(world.file, keys[key], namespace)
        world.tick()
        assert world.in_force == allowed
    sign(world.file, keys["trusted"])
    world.write(third + "# one more line\n")
    world.tick()
    assert world.in_force == allowed
    # 3. The right one.
    world.write(third)
    sign(world.file, keys["trusted"])
    world.tick()
    assert world.in_force == world.desk.policy.text == third
    assert world.records("policy:load")[-1].data["signed_by"] == "alex@example.com"
    # 4. Attack: an old file and its good signature are put back.
    world.write(allowed)
    sign(world.file, keys["trusted"])
    world.tick()
    assert world.in_force == third
    with world.database.read() as session:
        assert open_proposal(session, now=world.now).hash == rules.parse(allowed, name="x").hash


# --- what changes, in words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "sentence", "weaker"),
    [
        (CUSTODIANS, "custodians: [U0CARL, U0CHEN]", "Custodians: removed <@U0CORA>.", False),
        ("owner: U0CORA", "owner: U0CARL", "The owner is <@U0CARL> instead of <@U0CORA>.", True),
        ("quorum: 2", "quorum: 1", "Level write: fewer custodians must approve, 1 instead of 2.", True),
        ("quorum: 1", "quorum: 2", "Level read: more custodians must approve, 2 instead of 1.", False),
        ("longest: 30m", "longest: 1h", "Level read: the longest time is longer: 1 hour instead of 30 minutes.", True),
        ("longest: 30m", "longest: 20m", "Level read: the longest time is shorter: 20 minutes", False),
        ("role: orders-ro\n", "role: orders-rw\n", "Level read: “role” is another", True),
        ("auditors: [U0ADA]", "auditors: [U0ADA, U0RITA]", "Auditors: added <@U0RITA>.", True),
        ('leadership: ["@leadership"]', "leadership: [U0LENA]", "Leadership, who is told: removed @leadership.", True),
        ("review_within: 3d", "review_within: 9d", "The time for a review is longer: 9 days instead of 3 days.", True),
        ("data-loss:", "data-gone:", "The threshold data-gone is new.", True),
        ("version: 1", "control: {confirm: 3}\nversion: 1", "A changed policy needs 3 people instead of 2.", False),
        ("version: 1", "retention: {default: 9d}\nversion: 1", "What is logged may be pruned", True),
    ],
)
def test_each_change_is_said_and_what_is_less_strict_is_marked(
    old: str, new: str, sentence: str, weaker: object
) -> None:
    """The words name what changes; only what certainly takes a right away is not marked."""
    assert old in BASE
    found = policy_changes.compare(rules.parse(BASE, name="old"), rules.parse(BASE.replace(old, new, 1), name="new"))
    assert [one.is_weaker for one in found if sentence in one.sentence] == [weaker]


def test_what_is_not_known_here_counts_as_less_strict() -> None:
    """Every field of a policy, an account and a level is either judged or told as less strict: none is passed over."""
    old = rules.parse(BASE, name="old")
    again = rules.parse(BASE + "# only a comment\n", name="new")
    assert policy_changes.compare(old, again) == ()
    level: Any = old.accounts["orders-db"].levels["read"]
    for where, known in ((old, policy_changes._WHOLE), (level, policy_changes._LEVEL)):
        assert known <= set(where.__dataclass_fields__)
        name = next(iter(known))
        said = list(policy_changes._rest(where, _Other(where), known - {name}))
        assert (f"“{name}” is another; read the difference.", True) in said
        assert len(said) == 1 + len(set(where.__dataclass_fields__) - known)


class _Other:
    """The same, but for every field."""

    def __init__(self, of: Any) -> None:
        for name in of.__dataclass_fields__:
            setattr(self, name, object())
