"""Is each planted defect found, that one and nothing else, and nothing in a sound policy and workspace?"""

from __future__ import annotations

import dataclasses
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import workflows.policy as policy_module
from workflows.absence import Absent
from workflows.drill_history import Past
from workflows.drill_score import Came, Leg, Line
from workflows.errors import Unavailable
from workflows.policy import Person, PolicyInvalid, Roster, parse
from workflows.readiness import MOST_RESPONDERS, Code, Facts, Finding, Probe, Severity, judge, look_up

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
DEMO = Path(policy_module.__file__).parent.parent / "bot" / "demo" / "breakglass.yml"
CUSTODIANS = ("U0CARL", "U0CHEN", "U0CORA", "U0DORA", "U0EVAN")
TEXT = (
    DEMO.read_text(encoding="utf-8")
    .replace("custodians: [U0CARL, U0CHEN, U0CORA]", f"custodians: [{', '.join(CUSTODIANS)}]")
    .replace("    owner: U0CORA", "    rules_reviewed: 2026-06-30\n    owner: U0CORA")
    .replace("accounts:\n", f"captures:\n  orders-pg: {{kind: vault, token_sha256: {'5d' * 32}}}\n\naccounts:\n")
    .replace("    archive:", "    spare: { kind: file, path: /mnt/spare/breakglass.copy }\n    archive:")
    .replace("        quorum: 2\n", "        quorum: 2\n        capture_source: orders-pg\n        capture: required\n")
    .replace("        quorum: 1\n", "        quorum: 1\n        capture_source: orders-pg\n")
)
RED, WARN, UNKNOWN = Severity.RED, Severity.WARN, Severity.UNKNOWN
PAST = Past("DR-7KQ2", "BG-7KQ2", "orders-db", NOW - timedelta(days=30), tuple(CUSTODIANS), True, (), ())
READ, WRITE = ("orders-db", "read"), ("orders-db", "write")


def person(user_id: str, **changes: object) -> Person:
    """Describe a full member, but for what is changed."""
    flags: dict[str, object] = {"is_bot": False, "is_guest": False, "is_deleted": False, "is_foreign": False}
    return Person(team="T0DEMO", id=user_id, name=user_id[2:].title(), **{**flags, **changes})  # type: ignore[arg-type]


class World:
    """A sound policy, workspace, Vault, target, source and copies, in which something can be planted."""

    def __init__(self) -> None:
        self.text = TEXT
        self.people = {who: person(who) for who in (*CUSTODIANS, "U0RITA", "U0SAM", "U0LENA", "U0ADA")}
        self.groups = {"@on-call": ("U0RITA", "U0CARL"), "@leadership": ("U0LENA",), "@security": ("U0SAM",)}
        self.absences: dict[str, Absent] = {}
        self.levels = {READ: Probe(None, None), WRITE: Probe(None, None)}
        self.silent: dict[str, datetime | None] = {"orders-pg": None}
        self.copies: dict[str, str | None] = {"archive": None, "spare": None}
        self.general: tuple[Finding, ...] = ()
        self.enrolled: dict[str, bool] | None = dict.fromkeys(CUSTODIANS, True)
        self.drills: dict[str, Past | None] = {"orders-db": PAST}

    def change(self, old: str, new: str) -> None:
        """Change the policy."""
        assert old in self.text
        self.text = self.text.replace(old, new)

    def person(self, user_id: str, **changes: object) -> None:
        """Change what Slack says of somebody."""
        self.people[user_id] = dataclasses.replace(self.people[user_id], **changes)  # type: ignore[arg-type]

    def away(self, *people: str) -> None:
        """Let them say that they are away."""
        for user_id in people:
            self.person(user_id, is_away=True)

    def gone(self, **deputies: str | None) -> None:
        """Let them tell the bot that they are away, and who stands in."""
        self.absences |= {who: Absent(NOW, NOW + timedelta(days=1), deputy) for who, deputy in deputies.items()}

    def facts(self) -> Facts:
        """Return what would be learnt."""
        roster = Roster(self.people, self.groups, self.absences)
        return Facts(NOW, roster, self.levels, self.silent, self.copies, self.general, self.enrolled, self.drills)


def found(world: World, **changes: object) -> list[Finding]:
    """Judge the world."""
    facts = dataclasses.replace(world.facts(), **changes)  # type: ignore[arg-type]
    (account,) = judge(parse(world.text, name="p.yml"), facts)
    return list(account.findings)


def custodians(*people: str) -> Callable[[World], None]:
    """Leave only these."""
    return lambda world: world.change(f"custodians: [{', '.join(CUSTODIANS)}]", f"custodians: [{', '.join(people)}]")


def planted(*steps: Callable[[World], object]) -> Callable[[World], None]:
    """Do one thing after the other."""

    def plant(world: World) -> None:
        for step in steps:
            step(world)

    return plant


def _takes_codes(world: World) -> None:
    world.change("        quorum:", "        step_up: totp\n        quorum:")


# What is planted, what is found (severity, code, level), and words of one sentence.
DEFECTS: dict[str, tuple[Callable[[World], object], set[tuple[Severity, Code, str | None]], str]] = {
    "a custodian who does not exist": (
        lambda w: w.people.pop("U0EVAN"),
        {(WARN, Code.PERSON, None)},
        "U0EVAN, custodian, does not exist",
    ),
    "nobody who could give a code": (
        planted(_takes_codes, lambda w: w.enrolled.clear()),
        {(RED, Code.FACTOR, "read"), (RED, Code.FACTOR, "write")},
        "only 0 who are there can give one (not enrolled: Carl (U0CARL), Chen (U0CHEN)",
    ),
    "too few who could give a code when one of them asks": (
        planted(_takes_codes, lambda w: w.enrolled.update(U0CHEN=False, U0CORA=False, U0DORA=False)),
        {(WARN, Code.FACTOR, "read"), (RED, Code.FACTOR, "write")},
        "it takes codes of 2 custodians, and only 1 who are there can give one",
    ),
    "one who could give no code": (
        planted(_takes_codes, lambda w: w.enrolled.pop("U0DORA")),
        {(WARN, Code.FACTOR, "read"), (WARN, Code.FACTOR, "write")},
        "Dora (U0DORA) cannot give one. Have breakglass enrol run with them.",
    ),
    "codes that Vault says nothing of": (
        planted(_takes_codes, lambda w: setattr(w, "enrolled", None)),
        {(UNKNOWN, Code.VAULT, None)},
        "Vault did not say who has an authenticator enrolled.",
    ),
    "a custodian who left": (
        lambda w: w.person("U0EVAN", is_deleted=True),
        {(WARN, Code.PERSON, None)},
        "Evan (U0EVAN), custodian, is deactivated",
    ),
    "a custodian who is a guest": (
        lambda w: w.person("U0EVAN", is_guest=True),
        {(WARN, Code.PERSON, None)},
        "is a guest",
    ),
    "a custodian of another workspace": (
        lambda w: w.person("U0EVAN", is_foreign=True),
        {(WARN, Code.PERSON, None)},
        "another workspace",
    ),
    "a custodian who is a program": (
        lambda w: w.person("U0EVAN", is_bot=True),
        {(WARN, Code.PERSON, None)},
        "is a bot",
    ),
    "an owner who left": (
        planted(custodians("U0CARL", "U0CHEN", "U0DORA", "U0EVAN"), lambda w: w.person("U0CORA", is_deleted=True)),
        {(WARN, Code.PERSON, None)},
        "Cora (U0CORA), owner, is deactivated",
    ),
    "a responder by name who left": (
        planted(
            lambda w: w.change('responders: ["@on-call"]', 'responders: ["@on-call", U0OLGA]'),
            lambda w: w.people.update(U0OLGA=person("U0OLGA", is_deleted=True)),
        ),
        {(WARN, Code.PERSON, None)},
        "Olga (U0OLGA), responder, is deactivated",
    ),
    "a group of custodians that does not exist": (
        custodians(*CUSTODIANS, '"@dba"'),
        {(WARN, Code.GROUP, None)},
        "The group @dba of custodians does not exist",
    ),
    "a group of custodians that is empty": (
        planted(custodians(*CUSTODIANS, '"@dba"'), lambda w: w.groups.update({"@dba": ()})),
        {(WARN, Code.GROUP, None)},
        "@dba of custodians is empty",
    ),
    "no group of responders": (
        lambda w: w.groups.pop("@on-call"),
        {(WARN, Code.GROUP, None), (RED, Code.NO_RESPONDER, None)},
        "nobody who may ask exists",
    ),
    "only responders who left": (
        lambda w: w.groups.update({"@on-call": ("U0GONE",)}),
        {(RED, Code.NO_RESPONDER, None)},
        "nobody who may ask exists",
    ),
    "every responder away": (
        lambda w: w.away("U0RITA", "U0CARL"),
        {(RED, Code.NO_RESPONDER, None)},
        "all who may ask are away",
    ),
    "fewer custodians than the quorum": (
        planted(
            custodians("U0CHEN", '"@dba"'),
            lambda w: w.groups.update({"@dba": ("U0CHEN",)}),
            lambda w: w.change("quorum: 1\n", "quorum: 2\n"),
        ),
        {(RED, Code.TOO_FEW, "read"), (RED, Code.TOO_FEW, "write")},
        "it needs 2 custodians, and only 1 can act, whoever asks",
    ),
    "too few when a custodian asks himself": (
        custodians("U0CARL", "U0CHEN"),
        {(RED, Code.TOO_FEW, "write"), (WARN, Code.NO_SPARE, "write"), (WARN, Code.NO_SPARE, "read")},
        "it needs 2 custodians, and only 1 can act, when Carl (U0CARL) asks",
    ),
    "exactly the quorum when a custodian asks himself": (
        custodians("U0CARL", "U0CHEN", "U0CORA"),
        {(WARN, Code.NO_SPARE, "write")},
        "there are 2: none to spare, when Carl (U0CARL) asks",
    ),
    "exactly the quorum since others are away": (
        lambda w: w.away("U0DORA", "U0EVAN"),
        {(WARN, Code.NO_SPARE, "write")},
        "of 4 only 2 are not away (Dora (U0DORA), Evan (U0EVAN) are): none to spare, when Carl",
    ),
    "fewer than the quorum since others are away": (
        lambda w: w.away("U0CHEN", "U0CORA", "U0DORA", "U0EVAN"),
        {(RED, Code.AWAY, "read"), (RED, Code.AWAY, "write"), (WARN, Code.NO_SPARE, "read")},
        "and of 4 only 0 are not away",
    ),
    "custodians who told the bot that they are away": (
        lambda w: w.gone(U0CHEN=None, U0CORA=None, U0DORA=None, U0EVAN=None),
        {(RED, Code.AWAY, "read"), (RED, Code.AWAY, "write"), (WARN, Code.NO_SPARE, "read")},
        "and of 4 only 0 are not away",
    ),
    "a deputy who is away, too": (
        planted(
            lambda w: w.change("owner: U0CORA", "deputies: [U0OLGA]\n    owner: U0CORA"),
            lambda w: w.people.update(U0OLGA=person("U0OLGA", is_away=True)),
            lambda w: w.gone(U0CHEN="U0OLGA", U0CORA="U0OLGA", U0DORA="U0OLGA", U0EVAN="U0OLGA"),
        ),
        {(RED, Code.AWAY, "read"), (RED, Code.AWAY, "write"), (WARN, Code.NO_SPARE, "read")},
        "have them name deputies",
    ),
    "one deputy for all of them": (
        planted(
            lambda w: w.change("owner: U0CORA", "deputies: [U0OLGA]\n    owner: U0CORA"),
            lambda w: w.people.update(U0OLGA=person("U0OLGA")),
            lambda w: w.gone(U0CHEN="U0OLGA", U0CORA="U0OLGA", U0DORA="U0OLGA", U0EVAN="U0OLGA"),
        ),
        {(WARN, Code.NO_SPARE, "read"), (RED, Code.AWAY, "write"), (WARN, Code.NO_SPARE, "write")},
        "of 4 only 1 are not away (Cora (U0CORA), Dora (U0DORA), Evan (U0EVAN) are)",
    ),
    "no reviewer": (
        lambda w: w.person("U0SAM", is_deleted=True),
        {(RED, Code.NO_REVIEWER, "read"), (RED, Code.NO_REVIEWER, "write")},
        "nobody could review it",
    ),
    "the only reviewer is the one who asks": (
        lambda w: w.groups.update({"@security": ("U0RITA",)}),
        {(RED, Code.NO_REVIEWER, "read"), (RED, Code.NO_REVIEWER, "write")},
        "when Rita (U0RITA) asks",
    ),
    "rules that nobody looked at": (
        lambda w: w.change("    rules_reviewed: 2026-06-30\n", ""),
        {(WARN, Code.RULES, None)},
        "Nobody is on record",
    ),
    "rules that nobody looked at for a year": (
        lambda w: w.change("2026-06-30", "2025-11-23"),
        {(WARN, Code.RULES, None)},
        "on 2025-11-23, over a year ago",
    ),
    "rules looked at in the future": (
        lambda w: w.change("2026-06-30", "2027-01-01"),
        {(WARN, Code.RULES, None)},
        "has not come yet",
    ),
    "a role that Vault refuses": (
        lambda w: w.levels.update({WRITE: Probe("Vault refuses the role.", None)}),
        {(RED, Code.VAULT, "write")},
        "Vault refuses the role. Then run breakglass check",
    ),
    "a target that does not answer": (
        lambda w: w.levels.update({READ: Probe(None, "It cannot be reached.")}),
        {(RED, Code.TARGET, "read")},
        "The target does not answer: It cannot be reached.",
    ),
    "a target that nobody can look at": (
        lambda w: w.levels.update({READ: Probe(None, None, is_blind=True)}),
        {(WARN, Code.BLIND, "read")},
        "watch_role",
    ),
    "a source of commands that went silent": (
        lambda w: w.silent.update({"orders-pg": NOW - timedelta(minutes=5)}),
        {(RED, Code.CAPTURE, "write"), (WARN, Code.CAPTURE, "read")},
        "orders-pg was not heard of for 5 minutes: it gives no credential until it is",
    ),
    "a source of commands that was never there": (
        lambda w: w.silent.update({"orders-pg": NOW}),
        {(RED, Code.CAPTURE, "write"), (WARN, Code.CAPTURE, "read")},
        "was never heard of",
    ),
    "a required copy that is behind": (
        lambda w: w.copies.update(archive="it lacks 3 entries, the oldest for 2 hours"),
        {(RED, Code.COPY, None)},
        "The copy archive: it lacks 3 entries, the oldest for 2 hours; a credential waits for it",
    ),
    "another copy that is behind": (
        lambda w: w.copies.update(spare="its last try failed"),
        {(WARN, Code.COPY, None)},
        "The copy spare: its last try failed; no credential waits",
    ),
    "an account that was never drilled": (
        lambda w: w.drills.update({"orders-db": None}),
        {(WARN, Code.DRILL, None)},
        "It was never drilled to the end. Begin a drill: /breakglass drill orders-db.",
    ),
    "a drill that failed": (
        lambda w: w.drills.update(
            {
                "orders-db": dataclasses.replace(
                    PAST, passed=False, lines=(Line(Leg.FIRST_ANSWER, Came.FAILED, None, None),)
                )
            }
        ),
        {(WARN, Code.DRILL, None)},
        "DR-7KQ2 of 2026-10-25, failed (first answer): mend that.",
    ),
    "a last drill that is long ago": (
        lambda w: w.drills.update({"orders-db": dataclasses.replace(PAST, at=NOW - timedelta(days=98))}),
        {(WARN, Code.DRILL, None)},
        "too long ago",
    ),
    "drills that nobody knows of": (
        lambda w: w.drills.clear(),
        {(UNKNOWN, Code.DRILL, None)},
        "It is not known when it was last drilled.",
    ),
    "no bot that runs": (
        lambda w: setattr(w, "general", (Finding(RED, Code.BOT, "No bot runs."),)),
        {(RED, Code.BOT, None)},
        "No bot runs",
    ),
}


def test_nothing_is_found_in_a_sound_policy_and_workspace():
    """A sound account has no finding, and could be opened."""
    (account,) = judge(parse(TEXT, name="p.yml"), World().facts())
    assert account.findings == ()
    assert account.verdict is None


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_found_and_nothing_else(name):
    """Each defect gives exactly its findings; one sentence names it, and the account is red when one of them is."""
    plant, expected, words = DEFECTS[name]
    world = World()
    plant(world)
    findings = found(world)
    assert {(one.severity, one.code, one.level) for one in findings} == expected
    assert any(words in one.sentence for one in findings), [one.sentence for one in findings]
    (account,) = judge(parse(world.text, name="p.yml"), world.facts())
    worst = {severity for severity, *_ in expected} & {Severity.RED, Severity.UNKNOWN}
    assert account.verdict is (min(worst, key=list(Severity).index) if worst else None)
    assert [one.severity for one in findings] == sorted((one.severity for one in findings), key=list(Severity).index)


@pytest.mark.parametrize("part", ["roster", "levels", "silent", "copies"])
def test_what_was_not_learnt_is_never_green(part):
    """A part that did not answer makes the account unknown, and whatever else is red stays red."""
    world = World()
    (account,) = judge(parse(TEXT, name="p.yml"), dataclasses.replace(world.facts(), **{part: None}))
    assert account.verdict is UNKNOWN
    world.general = (Finding(RED, Code.BOT, "No bot runs."),)
    (account,) = judge(parse(TEXT, name="p.yml"), dataclasses.replace(world.facts(), **{part: None}))
    assert account.verdict is RED


@pytest.mark.parametrize(("part", "less"), [("levels", {READ: Probe(None, None)}), ("silent", {}), ("copies", {})])
def test_one_thing_that_was_not_learnt_is_never_green(part, less):
    """A level that was not asked about, a source or a copy of which nothing is known: each is unknown."""
    (account,) = judge(parse(TEXT, name="p.yml"), dataclasses.replace(World().facts(), **{part: less}))
    assert account.verdict is UNKNOWN


def test_why_a_part_did_not_answer_is_told_once():
    """A database that is down is one finding, not one for each level, source and copy."""
    down = Finding(UNKNOWN, Code.DATABASE, "The database does not answer.")
    assert found(World(), levels=None, silent=None, copies=None, general=(down,)) == [down]


class _Company:
    """A directory that counts who is looked up."""

    def __init__(self, members: int, error: Unavailable | None = None) -> None:
        self.group = tuple(f"U{number:04}" for number in range(members))
        self.asked: list[str] = []
        self._error = error

    def person(self, user_id: str) -> Person | None:
        self.asked.append(user_id)
        if self._error is not None:
            raise self._error
        return person(user_id)

    def members(self, _group: str) -> tuple[str, ...] | None:
        return self.group


def test_a_company_of_responders_is_not_looked_up_one_by_one():
    """Of a group of thousands only the first are asked about, and every custodian."""
    text = TEXT.replace('reviewers: ["@security"]', "reviewers: [U0SAM]")
    company = _Company(3000)
    roster = look_up(company, parse(text, name="p.yml"))
    assert len([who for who in set(company.asked) if who in company.group]) == MOST_RESPONDERS
    assert set(CUSTODIANS) <= set(roster.people)


def test_a_directory_that_does_not_answer_is_told():
    """Who could not be looked up is not taken for gone."""
    with pytest.raises(Unavailable):
        look_up(_Company(3, Unavailable("Slack is down.")), parse(TEXT, name="p.yml"))


@pytest.mark.parametrize("day", ["2026-06-30", '"2026-06-30"'])
def test_the_day_of_the_last_look_is_read(day):
    """A day with or without quotes is read, and an account without one is valid."""
    policy = parse(TEXT.replace("2026-06-30", day), name="p.yml")
    assert policy.accounts["orders-db"].rules_reviewed == date(2026, 6, 30)
    without = parse(TEXT.replace("    rules_reviewed: 2026-06-30\n", ""), name="p.yml")
    assert without.accounts["orders-db"].rules_reviewed is None


@pytest.mark.parametrize(
    "day", ["2026-02-31", "last week", "20260630", "2026-6-30", "2026-06-30T12:00:00Z", "[1]", "~"]
)
def test_what_is_no_day_does_not_load(day):
    """Anything else than a day of the calendar refuses the file, with the form to write."""
    with pytest.raises(PolicyInvalid, match="2026-01-31"):
        parse(TEXT.replace("2026-06-30", day), name="p.yml")
