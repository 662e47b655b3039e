"""Whatever the policy says and whoever answers: does every request end, and was everybody asked who had to be?

The real desk, sweep and log on SQLite, under a clock that jumps from one due moment to the next. People approve, deny,
stay silent, are off duty, or leave the company in the middle of it; the bot is down at times. A sample of the nights,
and all 1,000 with ``BREAKGLASS_ALL_NIGHTS`` set.
"""

from __future__ import annotations

import itertools
import os
import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import pytest
from counter import POLICY, TEAM, People
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from storage.audit import Actor, read_entries
from storage.database import Database
from storage.models import FINAL, Request, State
from workflows import policy as rules
from workflows import sweep
from workflows.asking_rules import FIRST_TIER, LEADERSHIP, Factor, Hours, Tier, Unanswered
from workflows.desk import Ask, Desk
from workflows.errors import Refused, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from storage.audit import Record
    from workflows.policy_file import Account, Level, Policy

NIGHTS = 1000 if os.environ.get("BREAKGLASS_ALL_NIGHTS") else 60
PEOPLE = ("U0CARL", "U0CHEN", "U0CORA", "U0SAM", "U0LENA", "U0RITA", "U0OLGA")
START = datetime(2026, 3, 2, 7, 0, tzinfo=UTC)
BASE = rules.parse(POLICY.read_text(encoding="utf-8"), name="demo")
MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class Night:
    """One policy, and what everybody does."""

    policy: Policy
    requester: str
    opened_at: datetime
    habits: dict[str, tuple[str, int]]  # what they do, minutes after the opening
    gone: frozenset[str]  # before it begins
    down: tuple[int, int]  # the bot is not there: from which minute, for how many

    @property
    def account(self) -> Account:
        """The one account."""
        return self.policy.accounts["orders-db"]

    @property
    def level(self) -> Level:
        """Its one level."""
        return self.account.levels["write"]


def _some(least: int = 1, most: int = 4) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(PEOPLE), min_size=least, max_size=most, unique=True).map(tuple)


_HOURS = st.none() | st.builds(
    Hours,
    st.integers(0, 12).map(lambda hour: hour * 60),
    st.integers(13, 24).map(lambda hour: hour * 60),
    st.frozensets(st.integers(0, 6), min_size=3),
    st.sampled_from(["UTC", "Europe/Madrid", "America/New_York"]),
)


@st.composite
def nights(draw: Any) -> Night:
    """Any policy that loads, and any people."""
    within = draw(st.sampled_from([6, 15, 40]))
    times = sorted(draw(st.sets(st.integers(1, within - 1), max_size=3)))
    tiers = tuple(
        Tier(f"tier-{number}", draw(_some()), after * MINUTE, draw(_HOURS)) for number, after in enumerate(times)
    )
    factors = tuple(
        Factor(name, draw(_some()), draw(st.sampled_from([1, 1, 1, 2])))
        for name in draw(st.lists(st.sampled_from(["owners", "security"]), max_size=2, unique=True))
    )
    quorum = max(1, sum(one.need for one in factors)) + draw(st.integers(0, 1))
    account = BASE.accounts["orders-db"]
    level = replace(
        account.levels["write"],
        quorum=quorum,
        factors=factors,
        answer_within=within * MINUTE,
        unanswered=draw(st.sampled_from(Unanswered)),
    )
    account = replace(
        account,
        custodians=draw(_some()),
        tiers=tiers,
        hours=draw(_HOURS),
        responders=PEOPLE,
        levels=MappingProxyType({"write": level}),
    )
    policy = replace(
        BASE,
        accounts=MappingProxyType({"orders-db": account}),
        leadership=draw(_some(most=2)),
        reviewers=("U0ADA", *draw(_some(0, 2))),
        retention=None,
        text="",
    )
    does = st.sampled_from(["approve", "approve", "approve", "deny", "leave", "silent", "silent"])
    return Night(
        policy,
        draw(st.sampled_from(PEOPLE)),
        START + draw(st.integers(0, 60 * 48)) * MINUTE,
        {person: (draw(does), draw(st.integers(0, 2 * within))) for person in PEOPLE},
        frozenset(draw(st.sets(st.sampled_from(PEOPLE), max_size=2))),
        (draw(st.integers(0, within)), draw(st.sampled_from([0, 0, 0, 7]))),
    )


@pytest.fixture(scope="module")
def database(sqlite_template, tmp_path_factory) -> Iterator[Database]:
    """One database for all nights: requests of others stand beside, as they do in life."""
    file = tmp_path_factory.mktemp("nights") / "breakglass.db"
    shutil.copyfile(sqlite_template, file)
    database = Database(f"sqlite:///{file}")
    yield database
    database.close()


@settings(
    max_examples=NIGHTS,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)
@given(night=nights())
def test_every_request_ends_and_everybody_was_asked(database, night):
    """It ends in bounded time; each step was made once, in time and for those who can act; a grant stands on quorum."""
    people = People()
    for person in night.gone:
        people.change(person, is_deleted=True)
    desk = Desk(database, night.policy, people, cast("Any", None), team=TEAM)
    ask = Ask(
        account="orders-db",
        level="write",
        threshold="customer-impact",
        reason="Checkout fails for every customer",
        standard_path="Paged the database on-call twice, no answer",
        incident="INC-2031",
        duration=5 * MINUTE,
    )
    base, reserve = _deciders(night)
    try:
        row = desk.open(Actor(TEAM, night.requester), ask, now=night.opened_at)
    except Refused:
        assert not _is_possible(night, base) or night.requester in night.gone
        return
    assert _is_possible(night, base)
    assert set(row.custodians) == {*base, *reserve}
    row = _live(desk, people, night, row)
    assert State(row.state) in FINAL
    with database.read() as session:
        records = read_entries(session, request_id=row.id)
    _judge_asking(night, row, records, base)
    _judge_answers(night, row, records)


def _deciders(night: Night) -> tuple[list[str], list[str]]:
    """Who can decide, and who only because leadership is asked last; by the words of the policy alone."""
    account, level = night.account, night.level
    names = [*account.custodians, *(name for tier in account.tiers for name in tier.people)]
    names += [name for factor in level.factors for name in factor.people]
    out = {night.requester, *night.gone}
    base = [person for person in dict.fromkeys(names) if person not in out]
    last = night.policy.leadership if level.unanswered is Unanswered.ESCALATE else ()
    return base, [person for person in last if person not in {*out, *base}]


def _fills(level: Level, people: Any) -> bool:
    """Whether these people suffice, by trying everything."""
    places = [set(factor.people) for factor in level.factors for _ in range(factor.need)]
    given_out = itertools.permutations(list(people), len(places))
    return len(people) >= level.quorum and any(
        all(person in place for person, place in zip(some, places, strict=True)) for some in given_out
    )


def _is_possible(night: Night, base: list[str]) -> bool:
    reviewers = set(night.policy.reviewers) - {night.requester} - night.gone
    return _fills(night.level, base) and any(
        _fills(night.level, [person for person in base if person != reviewer]) for reviewer in reviewers
    )


def _live(desk: Desk, people: People, night: Night, row: Request) -> Request:
    """Let the clock jump from one due moment to the next until it is over."""
    acts = sorted((minutes, person, does) for person, (does, minutes) in night.habits.items() if does != "silent")
    begin, span = night.opened_at + night.down[0] * MINUTE, night.down[1] * MINUTE
    for _ in range(100):
        row = desk.row(row.id)
        if row.due_at is None:
            return row
        if acts and night.opened_at + acts[0][0] * MINUTE <= row.due_at:
            minutes, person, does = acts.pop(0)
            _act(desk, people, row, (person, does), night.opened_at + minutes * MINUTE)
            continue
        now = row.due_at if not begin <= row.due_at < begin + span else begin + span
        sweep.tick(desk, now=now)
    raise AssertionError(f"{row.id} never ends")


def _act(desk: Desk, people: People, row: Request, act: tuple[str, str], now: datetime) -> None:
    person, does = act
    actor = Actor(TEAM, person)
    try:
        if does == "leave":
            people.change(person, is_deleted=True)
        elif does == "approve":
            desk.approve(actor, row.id, row.version, now=now)
        else:
            desk.deny(actor, row.id, row.version, "The replica has it", now=now)
    except Unavailable:
        raise
    except Refused:
        # The requester, somebody who has left, a stranger, or a policy that became impossible: on record, and no more.
        assert does != "leave"


def _judge_asking(night: Night, row: Request, records: list[Record], base: list[str]) -> None:
    tiers = {FIRST_TIER: (night.account.hours, timedelta(0))}
    tiers |= {tier.name: (tier.hours, tier.after) for tier in night.account.tiers}
    opened = records[0]
    steps = [(opened.at, step["tier"], step["people"], step["at"]) for step in _planned(opened)]
    at_once = [step for step in steps if datetime.fromisoformat(step[3]) <= opened.at]
    calls = [record for record in records if record.event == "request:escalate"]
    made = [*at_once]
    for record, step in zip(calls, steps[len(at_once) :], strict=False):
        assert record.data.get("tier") == step[1]
        assert record.data.get("people", []) == step[2]
        made.append((record.at, step[1], step[2], step[3]))
    # 1. Each step once; each person in one tier, leadership aside; nobody is asked who could not act at the opening.
    named = [step[1] for step in made if step[1] is not None]
    assert len(named) == len(set(named))
    listed = [person for step in made if step[1] not in {None, LEADERSHIP} for person in step[2]]
    assert len(listed) == len(set(listed))
    assert not {night.requester, *night.gone}.intersection(listed)
    # 2. Those who were asked at once could suffice: it waits for nobody whose turn has not come.
    assert _fills(night.level, [person for step in at_once for person in step[2]])
    # 3. Nobody is asked off duty while somebody on duty waits for the turn.
    left = {step[1] for step in steps} - {None, LEADERSHIP}
    for step in steps:
        if step[1] in left:
            at = datetime.fromisoformat(step[3])
            duty = {tier for tier in left if (hours := tiers[tier][0]) is None or hours.covers(at)}
            assert step[1] in duty or not duty
            left.discard(step[1])
    # 4. A step comes in its time, later only when the bot was down, and sooner only when somebody has left.
    leavers = any(does == "leave" for does, _ in night.habits.values())
    for at, _, _, planned in made[len(at_once) :]:
        due = datetime.fromisoformat(planned)
        assert at <= due + night.down[1] * MINUTE
        assert at >= due or leavers
    # 5. What lapsed unanswered has asked everybody who could have answered, unless the bot was down at the end.
    begin = night.opened_at + night.down[0] * MINUTE
    slept = begin <= datetime.fromisoformat(opened.data["lapse_at"]) <= begin + night.down[1] * MINUTE
    if slept:
        return
    if row.state == State.LAPSED and row.granted_seconds is None:
        asked = {person for step in made for person in step[2]}
        if opened.data.get("asking"):
            assert asked == set(row.custodians)
        else:
            assert set(row.custodians) == set(base)
        assert row.state_at <= row.opened_at + 2 * night.level.answer_within + night.down[1] * MINUTE


def _time(step: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(step["at"])


def _planned(opened: Record) -> list[dict[str, Any]]:
    half = opened.at + (datetime.fromisoformat(opened.data["lapse_at"]) - opened.at) / 2
    plain = [
        {"at": opened.at.isoformat(), "tier": FIRST_TIER, "people": opened.data["custodians"]},
        {"at": half.isoformat(), "tier": None, "people": []},
    ]
    return cast("list[dict[str, Any]]", opened.data.get("asking", {"steps": plain})["steps"])


def _judge_answers(night: Night, row: Request, records: list[Record]) -> None:
    approved = [r.actor.person for r in records if r.event == "request:approve" and r.refused is None]
    granted = any(record.event == "request:quorum" for record in records)
    assert len(approved) == len(set(approved))
    assert not set(approved) - set(row.custodians)
    assert night.requester not in approved
    for count in range(len(approved)):
        assert not granted or not _fills(night.level, approved[:count])
    assert _fills(night.level, approved) or not granted
    leavers = {person for person, (does, _) in night.habits.items() if does == "leave"}
    assert granted or leavers or not _fills(night.level, approved)
    # Whoever has answered is nudged no more, and nobody is before being asked.
    first, approved = records[0], []
    silent = {person for step in _planned(first) if _time(step) <= first.at for person in step["people"]}
    for record in records:
        if record.event == "request:escalate":
            silent |= set(record.data.get("people", [])) - set(approved)
        elif record.event == "request:approve" and record.refused is None:
            approved.append(record.actor.person)
            silent.discard(record.actor.person)
        elif record.event == "request:nudge":
            assert set(record.data["people"]) <= silent
