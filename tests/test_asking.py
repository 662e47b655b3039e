"""Is everybody asked in their time, once, and does a quorum stand on different people who fill each factor?"""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType

import pytest
from counter import TEAM, People

from storage.models import Request
from storage.standalone import _unfilled
from workflows import asking
from workflows import policy as rules
from workflows.asking import Seats, satisfied
from workflows.asking_rules import Hours, Unanswered

POLICY = (Path(__file__).parent.parent / "bot" / "demo" / "breakglass.yml").read_text(encoding="utf-8")
CARL, CHEN, CORA, LENA, RITA, SAM = "U0CARL", "U0CHEN", "U0CORA", "U0LENA", "U0RITA", "U0SAM"
CUSTODIANS = "    custodians: [U0CARL, U0CHEN, U0CORA] # Carl Costa, Chen Li, Cora Diaz\n"
OPENED = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)  # a Monday
TIERS = """    custodians: [U0CARL]
    tiers:
      - {name: backup, people: [U0CHEN], after: 5m}
      - {name: owners, people: [U0CORA], after: 10m}
"""
BOTH = "factors: {owners: {from: [U0CARL, U0CORA]}, security: {from: ['@security', U0CARL]}}"


def _text(custodians: str = CUSTODIANS, level: str = "") -> str:
    """The demo's policy, with other custodians, and more keys of the level "write"."""
    assert POLICY.count(CUSTODIANS) == 1
    text = POLICY.replace(CUSTODIANS, custodians)
    before, write, after = text.partition("      write:\n")
    return before + write + "".join(f"        {line}\n" for line in level.splitlines()) + after


def _policy(custodians: str = CUSTODIANS, level: str = "") -> rules.Policy:
    return rules.parse(_text(custodians, level), name="demo")


def _plan(policy, *, at=OPENED, requester=RITA, people=None, level="write"):
    directory = people or People()
    roster = rules.gather(directory, policy, "orders-db", (requester,))
    verdict = rules.evaluate(
        policy, roster, account="orders-db", level=level, requester=requester, preview=True, asked=timedelta(minutes=5)
    )
    assert verdict.account is not None
    assert verdict.level is not None
    return asking.plan(policy, verdict.account, verdict.level, roster, verdict.custodians, opened_at=at), verdict


def _said(plan):
    return [(int((step.at - OPENED).total_seconds() // 60), step.tier, step.people) for step in plan.steps]


# --- whether they suffice ---------------------------------------------------------------------------------------------


def test_a_matching_is_found_whenever_there_is_one():
    """Over all small cases, the quorum suffices exactly if some assignment of different people to places exists."""
    people = ("U1", "U2", "U3")
    groups = [frozenset(group) for size in (0, 1, 2, 3) for group in itertools.combinations(people, size)]
    for first, second, quorum in itertools.product(groups, groups, (2, 3)):
        seats = (Seats("a", 1, first), Seats("b", 1, second))
        for approved in groups:
            can = any(one in first and two in second for one, two in itertools.permutations(sorted(approved), 2))
            found = satisfied(sorted(approved), quorum, seats)
            assert found.suffices is (can and len(approved) >= quorum)
            assert (found.have == found.need) is found.suffices
            unfilled = _unfilled([(one.name, one.need, one.people) for one in seats], approved)
            assert sorted(unfilled) == sorted(found.missing) or (len(unfilled), bool(can)) == (len(found.missing), can)
            assert (not unfilled) is can


def test_attack_two_owners_are_not_an_owner_and_security():
    """Approvals that fill no factor bring no quorum, however many there are."""
    seats = (Seats("owners", 1, frozenset({"U1", "U2", "U3"})), Seats("security", 1, frozenset({"U9"})))
    found = satisfied(["U1", "U2", "U3"], 2, seats)
    assert (found.have, found.need, found.suffices, found.missing) == (1, 2, False, {"security": 1})
    assert asking.say_missing(found) == "security is missing"
    assert found.data() == {
        "have": 1,
        "need": 2,
        "factors": {"owners": ["U1"], "security": []},
        "missing": {"security": 1},
    }
    assert satisfied(["U1", "U9"], 2, seats).suffices


def test_attack_one_person_in_both_factors_fills_one():
    """Somebody who is an owner and of security is one person, and makes place for whoever can only do the other."""
    seats = (Seats("owners", 1, frozenset({"U1", "U2"})), Seats("security", 1, frozenset({"U1"})))
    assert not satisfied(["U1", "U1"], 2, seats).suffices
    found = satisfied(["U1", "U2"], 2, seats)
    assert found.suffices
    assert found.filled == {"owners": ("U2",), "security": ("U1",)}


def test_what_became_stricter_wins_and_what_became_laxer_does_not():
    """The factors of the opening stay, also when the policy drops them; one that was narrowed counts as narrowed."""
    policy = _policy(level=BOTH)
    plan, verdict = _plan(policy)
    row = Request(asking=plan.data(), requester=RITA)
    roster = rules.gather(People(), policy, "orders-db")
    without = replace(verdict.level, factors=())
    assert asking.in_force(row, without, roster, verdict.custodians) == asking.stored(row)
    narrow = replace(verdict.level, factors=(asking.Factor("owners", (CORA,), 1), asking.Factor("third", (CHEN,), 1)))
    kept = {one.name: one.people for one in asking.in_force(row, narrow, roster, verdict.custodians)}
    assert kept == {"owners": {CORA}, "security": {CARL, SAM}, "third": {CHEN}}


# --- when -------------------------------------------------------------------------------------------------------------


def test_each_tier_is_asked_in_its_time_and_all_may_decide():
    """Custodians at the opening, each tier after its time; whoever is in any tier is a custodian from the beginning."""
    plan, verdict = _plan(_policy(TIERS), level="read")
    assert _said(plan) == [(0, "custodians", (CARL,)), (5, "backup", (CHEN,)), (10, "owners", (CORA,))]
    assert verdict.custodians == (CARL, CHEN, CORA)
    assert plan.made(OPENED) == 1


def test_as_many_tiers_are_asked_at_once_as_could_suffice():
    """A quorum of two is not waited for from a tier of one."""
    plan, _ = _plan(_policy(TIERS), level="write")
    assert [(when, tier) for when, tier, _ in _said(plan)] == [(0, "custodians"), (0, "backup"), (5, "owners")]
    plan, _ = _plan(_policy(TIERS), requester=CARL, level="read")
    assert [(when, tier) for when, tier, _ in _said(plan)] == [(0, "backup"), (5, "owners")]


@pytest.mark.parametrize(
    ("hour", "said"),
    [
        (9, [(0, "custodians"), (5, "backup"), (10, "owners")]),
        (20, [(0, "owners"), (5, "custodians"), (10, "backup")]),  # nobody else is on duty; then those who were not
        (7, [(0, "owners"), (5, "custodians"), (10, "backup")]),
    ],
)
def test_who_is_off_duty_is_passed_over_and_not_forgotten(hour, said):
    """The next tier is asked at that moment instead; whoever was passed over comes when nobody else is left."""
    hours = "hours: 08:00-18:00, days: mon-fri, timezone: Europe/Madrid"
    tiers = TIERS.replace("after: 5m", f"after: 5m, {hours}") + "".join(f"    {line}\n" for line in hours.split(", "))
    opened = OPENED.replace(hour=hour - 1) if hour != 7 else OPENED.replace(hour=6, minute=30)
    plan, _ = _plan(_policy(tiers), level="read", at=opened)
    assert [(int((step.at - opened).total_seconds() // 60), step.tier) for step in plan.steps] == said


def test_leadership_comes_last_and_nobody_plans_with_it():
    """Where nothing answered means escalate, leadership is asked at answer_within, for as long again."""
    plan, verdict = _plan(_policy(level="unanswered: escalate"))
    last = plan.steps[-1]
    within = verdict.level.answer_within
    assert (last.at, last.tier, last.people) == (OPENED + within, "leadership", (LENA,))
    assert plan.lapse_at == OPENED + 2 * within
    assert verdict.reserve == {LENA}
    assert "of 3 custodians" in verdict.sentence
    people = People()
    for person in (CHEN, CORA):
        people.change(person, is_deleted=True)
    _, verdict = _plan(_policy(level="unanswered: escalate"), people=people)
    assert [unmet.code for unmet in verdict.unmet] == ["too_few_custodians"]


def test_without_the_keys_nothing_is_stored():
    """A plain account has one step and the call at half time, as ever."""
    plan, verdict = _plan(_policy())
    assert plan.data() is None
    assert _said(plan)[0] == (0, "custodians", (CARL, CHEN, CORA))
    assert plan.steps[1].at - OPENED == verdict.level.answer_within / 2


def test_what_is_stored_is_read_back():
    """The steps and factors of a row are those that were planned."""
    plan, _ = _plan(_policy(TIERS.replace("[U0CARL]", "[U0CARL, U0SAM]"), BOTH))
    row = Request(asking=plan.data(), asked_steps=1, custodians=[CARL, CHEN, CORA, SAM], opened_at=OPENED)
    assert asking.steps_of(row) == plan.steps
    assert asking.stored(row) == plan.factors
    assert asking.asked(row) == [CARL, SAM]
    assert asking.next_step(row) == plan.steps[1]


@pytest.mark.parametrize(
    ("hours", "local", "expected"),
    [
        ((480, 1080, {0}), "2026-03-02T08:00+01:00", True),
        ((480, 1080, {0}), "2026-03-02T18:00+01:00", False),
        ((480, 1080, {1}), "2026-03-02T08:00+01:00", False),
        ((1320, 360, {0}), "2026-03-03T05:59+01:00", True),  # Monday's night is still going on
        ((1320, 360, {0}), "2026-03-02T05:59+01:00", False),  # that is Sunday's
        ((480, 540, {6}), "2026-03-29T06:30+00:00", True),  # summer time has begun there
        ((0, 1440, {0}), "2026-03-02T23:59+01:00", True),
    ],
)
def test_hours_go_by_the_clock_on_the_wall_there(hours, local, expected):
    """Hours are those of the place, over midnight and over summer time."""
    begin, end, days = hours
    assert Hours(begin, end, frozenset(days), "Europe/Madrid").covers(datetime.fromisoformat(local)) is expected


# --- before anybody is woken ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "gone", "codes", "words"),
    [
        (BOTH, (), [], "Needs 2 of 4 custodians: one of owners and one of security"),
        (BOTH, (SAM, CORA), ["unfilled_factor"], "is missing"),  # Carl could fill both, and is one person
        (BOTH, (SAM, CARL), ["unfilled_factor"], "security is missing"),
    ],
)
def test_a_factor_that_nobody_can_fill_is_refused_at_the_form(level, gone, codes, words):
    """What could never be approved wakes nobody."""
    people = People()
    people.known["U0REV"] = replace(people.known[SAM], id="U0REV")
    for person in gone:
        people.change(person, is_deleted=True)
    policy = _policy(level=level)
    policy = replace(policy, reviewers=("U0REV",))
    _, verdict = _plan(policy, people=people)
    assert [unmet.code for unmet in verdict.unmet] == codes
    assert words in verdict.sentence


def test_a_reviewer_must_be_left_over_beside_the_factors():
    """Whoever alone can fill a factor cannot be the one who reviews."""
    _, verdict = _plan(replace(_policy(level="factors: {security: {from: [U0SAM]}}"), reviewers=(SAM,)))
    assert [unmet.code for unmet in verdict.unmet] == ["no_reviewer"]


@pytest.mark.parametrize(
    ("custodians", "level", "words"),
    [
        ("    custodians: [U0CARL, U0CHEN]\n    tiers: []\n", "", "Give 1 to 5 tiers"),
        (TIERS.replace("after: 10m", "after: 5m"), "", "later than the one before"),
        (TIERS.replace("after: 10m", "after: 23h"), "", "would be asked too late"),
        (TIERS.replace("name: owners", "name: backup"), "", "a tier backup already"),
        (TIERS.replace("after: 5m", "after: 5m, hours: 8-18, timezone: UTC"), "", "Write the hours as"),
        (TIERS.replace("after: 5m", "after: 5m, hours: 08:00-18:00"), "", "“timezone” is missing"),
        (TIERS.replace("after: 5m", "after: 5m, days: mon-fri"), "", "add “hours”"),
        (TIERS.replace("after: 5m", "after: 5m, hours: 08:00-08:00, timezone: UTC"), "", "These hours are none"),
        (
            TIERS.replace("after: 5m", "after: 5m, hours: 08:00-09:00, timezone: Mars/Base"),
            "",
            "no time zone Mars/Base",
        ),
        (TIERS.replace("after: 5m", "after: 5m, hours: 08:00-09:00, timezone: UTC, days: lun"), "", "Write the days"),
        (CUSTODIANS, "factors: {owners: {from: [U0CARL], need: 3}}", "raise the quorum to 3"),
        (CUSTODIANS, "factors: {}", "Give 1 to 5 factors"),
        (CUSTODIANS, "unanswered: pray", "This can be: deny, escalate"),
    ],
)
def test_what_could_never_work_does_not_load(custodians, level, words):
    """Each mistake is named where it stands."""
    with pytest.raises(rules.PolicyInvalid, match=words):
        _policy(custodians, level)


def test_days_and_defaults_are_read():
    """Without days every day counts; without the keys a level lapses and has no factors."""
    tiers = TIERS.replace("after: 5m", "after: 5m, hours: 22:00-06:00, timezone: Asia/Tokyo, days: 'fri-mon,wed'")
    account = _policy(tiers).accounts["orders-db"]
    assert account.tiers[0].hours == Hours(1320, 360, frozenset({4, 5, 6, 0, 2}), "Asia/Tokyo")
    assert account.hours is None
    assert account.levels["write"].unanswered is Unanswered.DENY
    assert isinstance(account.levels, MappingProxyType)
    assert TEAM
