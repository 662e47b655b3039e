"""Who is away, who stands in for them, and what can nobody get by that?"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from counter import ADA, CARL, CHEN, CORA, GUS, OLGA, RITA, SAM, TEAM

from storage.audit import Actor
from storage.models import State
from storage.standalone import Kind
from workflows import absence, replay, sweep
from workflows import policy as rules
from workflows.absence import Absent, doubled, read_until, say_time, standing_in
from workflows.away_desk import AwayDesk
from workflows.errors import Conflict, Invalid, NotAllowed

BERLIN = ZoneInfo("Europe/Berlin")
NIGHT = datetime(2026, 11, 25, 2, 0, tzinfo=UTC)  # a Wednesday, 03:00 in Berlin


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("until friday", "Friday 27 November 2026, 09:00 (UTC+01:00)"),
        ("until Fri 14:30", "Friday 27 November 2026, 14:30 (UTC+01:00)"),
        ("until wednesday", "Wednesday 2 December 2026, 09:00 (UTC+01:00)"),
        ("until tomorrow", "Thursday 26 November 2026, 09:00 (UTC+01:00)"),
        ("until today 18:00", "Wednesday 25 November 2026, 18:00 (UTC+01:00)"),
        ("until 2026-12-01", "Tuesday 1 December 2026, 09:00 (UTC+01:00)"),
        ("until 2027-07-01", "Thursday 1 July 2027, 09:00 (UTC+02:00)"),
        ("3d", "Saturday 28 November 2026, 03:00 (UTC+01:00)"),
        ("1h30m", "Wednesday 25 November 2026, 04:30 (UTC+01:00)"),
    ],
)
def test_a_time_is_read_where_the_person_is_and_repeated_in_words(words, said):
    """A day means its morning in the person's own zone, summer time included; a duration counts from now."""
    assert say_time(read_until(words.split(), zone=BERLIN, now=NIGHT), BERLIN) == said


@pytest.mark.parametrize(
    "words",
    [
        *("", "until", "friday", "until someday", "until friday 25:00", "until 2026-02-30", "until 2026-13-01"),
        *(
            "until 2025-01-01",
            "until today 02:00",
            "until 2028-01-01",
            "400d",
            "0d",
            "until friday 9:00 extra",
            "3 days",
        ),
    ],
)
def test_what_is_no_time_is_past_or_too_far_is_refused_with_how_to_write_it(words):
    """Nothing is guessed."""
    with pytest.raises(Invalid) as refused:
        read_until(words.split(), zone=BERLIN, now=NIGHT)
    assert "away" in str(refused.value)


def _gone(deputy):
    return Absent(NIGHT, NIGHT + timedelta(days=1), deputy)


@pytest.mark.parametrize(
    ("absences", "requester", "found"),
    [
        ({"A": "D"}, "R", {"D": ("A",)}),
        ({"A": "D", "B": "D"}, "R", {"D": ("A", "B")}),
        ({"A": "D", "B": "E"}, "R", {"D": ("A",), "E": ("B",)}),
        ({"A": None}, "R", {}),
        ({"X": "D"}, "R", {}),  # no custodian (or one who is deactivated, or the requester)
        ({"A": "D"}, "D", {}),  # nobody decides about their own request
        ({"A": "A"}, "R", {}),  # of oneself
        ({"A": "B"}, "R", {}),  # a custodian gains nothing
        ({"A": "Z"}, "R", {}),  # not listed
        ({"A": "D", "D": "E"}, "R", {}),  # no chain: who is away stands in for nobody and hands nothing on
    ],
)
def test_who_stands_in_for_whom(absences, requester, found):
    """Only who is listed, there, and neither custodian nor requester; each counts as one person."""
    gone = {person: _gone(deputy) for person, deputy in absences.items()}
    assert standing_in(("A", "B"), ("D", "E", "B"), gone, requester) == found


@pytest.mark.parametrize(
    ("approvers", "stood_in", "custodians", "found"),
    [
        ("D", {"D": "A"}, "AB", ""),
        ("DB", {"D": "A"}, "AB", ""),
        ("DA", {"D": "A"}, "AB", "D"),
        ("DA", {"D": "AB"}, "AB", ""),
        ("DAB", {"D": "AB"}, "AB", "D"),
        ("DB", {"D": "AB"}, "B", "D"),  # the other place is none any more
        ("AB", {"D": "A"}, "AB", ""),
    ],
)
def test_a_place_counts_once(approvers, stood_in, custodians, found):
    """A deputy's approval counts in the place of a custodian who has not approved, and for nobody else."""
    assert doubled(approvers, {one: tuple(places) for one, places in stood_in.items()}, custodians) == set(found)


# --- at the desk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def away(counter):
    """A counter whose account lets Olga and Ada stand in, and the desk at which absences are said."""
    text = counter.policy.text.replace(
        "custodians: [U0CARL, U0CHEN, U0CORA]", "custodians: [U0CARL, U0CHEN, U0CORA]\n    deputies: [U0OLGA, U0ADA]"
    )
    counter.policy = rules.parse(text, name="with deputies")
    return AwayDesk(counter.database, lambda: counter.policy, counter.people, team=TEAM)


def _until(counter, **span):
    return counter.now + timedelta(**(span or {"days": 2}))


def test_a_custodian_is_away_and_the_deputy_answers_in_their_place(counter, away):
    """The story: Carl is away, Olga is asked besides the three and approves in his place; then it counts once."""
    said = away.away(CARL, _until(counter), "U0OLGA", now=counter.now)
    assert [one.name for one in said.asked] == ["orders-db"]
    assert said.shut == ()
    row = counter.ask(level="write", minutes=10)
    assert row.custodians == ["U0CARL", "U0CHEN", "U0CORA", "U0OLGA"]
    assert row.deputies == {"U0OLGA": ["U0CARL"]}
    assert [case.request.id for case in counter.agenda(OLGA, now=counter.now).waiting] == [row.id]
    row = counter.approve(OLGA, row.id, row.version, now=counter.now)
    with pytest.raises(Conflict, match="in your place"):
        counter.approve(CARL, row.id, row.version, now=counter.now)
    row = counter.approve(CHEN, row.id, counter.fresh(row).request.version, now=counter.now)
    assert row.state == State.APPROVED
    quorum = counter.log_of(row)[-1]
    assert quorum.data["approvers"] == ["U0CHEN", "U0OLGA"]
    assert next(r for r in counter.log_of(row) if r.event == "request:approve").data["for"] == ["U0CARL"]
    # She opens nothing by herself, reviews nothing that she approved, and may take it away again.
    assert "approved this access" in rules.explain(
        counter.policy,
        rules.gather(counter.people, counter.policy, "orders-db", ["U0OLGA"]),
        *("orders-db", "U0OLGA", rules.Role.REVIEWER),
        requester="U0RITA",
        approvers=["U0OLGA"],
    )
    away.back(CARL, now=counter.now)
    assert counter.revoke(OLGA, row.id, row.version, now=counter.now).state == State.ENDING


def test_a_vote_given_in_a_place_stays_when_its_custodian_is_back_and_a_new_one_cannot_be_given(counter, away):
    """Coming back takes no vote away that was given, and lets nobody go on standing in."""
    away.away(CARL, _until(counter), "U0OLGA", now=counter.now)
    first, second = counter.ask(level="write", minutes=10), counter.ask(level="write", minutes=10)
    counter.approve(OLGA, first.id, first.version, now=counter.now)
    away.back(CARL, now=counter.now)
    assert counter.approve(CHEN, first.id, first.version, now=counter.now).state == State.APPROVED
    with pytest.raises(NotAllowed, match="not stand in for <@U0CARL> any more"):
        counter.approve(OLGA, second.id, second.version, now=counter.now)
    assert counter.ask().deputies is None


def test_an_absence_ends_by_itself(counter, away):
    """When its time is over nobody stands in any more, nobody has to say so, and another one may be said."""
    away.away(CARL, _until(counter, hours=1), "U0OLGA", now=counter.now)
    row = counter.ask()
    counter.pass_time(hours=1)
    assert away.shown(CARL, now=counter.now) is None
    assert counter.ask().deputies is None
    with pytest.raises(NotAllowed):
        counter.approve(OLGA, row.id, row.version, now=counter.now)
    with pytest.raises(Conflict, match="not marked"):
        away.back(CARL, now=counter.now)
    away.away(CARL, _until(counter), None, now=counter.now)
    assert away.shown(CARL, now=counter.now).absent.deputy is None


def test_who_goes_away_in_mid_flight_adds_nobody(counter, away):
    """A deputy named after the opening is not asked about it and cannot decide it."""
    row = counter.ask()
    away.away(CARL, _until(counter), "U0OLGA", now=counter.now)
    with pytest.raises(NotAllowed, match="not a custodian"):
        counter.approve(OLGA, row.id, row.version, now=counter.now)
    assert counter.approve(CARL, row.id, row.version, now=counter.now).state == State.APPROVED  # back for a moment


@pytest.mark.parametrize(
    ("who", "deputy", "code"),
    [
        (CARL, "U0CARL", "own_deputy"),
        (CARL, "U0RITA", "not_listed"),
        (CARL, "U0CHEN", "not_listed"),
        (CARL, "U0GUS", "unfit_deputy"),
        (CARL, "U0NOBODY", "unfit_deputy"),
        (RITA, "U0OLGA", "no_place"),
        (GUS, None, "not_allowed"),
        (Actor("T0OTHER", "U0CARL"), None, "other_workspace"),
    ],
    ids=lambda value: getattr(value, "person", str(value)),
)
def test_attack_a_deputy_who_may_not_stand_in(counter, away, who, deputy, code):
    """Oneself, who is not listed, a guest, nobody: refused, on record, and nobody is away afterwards."""
    with pytest.raises(NotAllowed) as refused:
        away.away(who, _until(counter), deputy, now=counter.now)
    assert refused.value.reason == code
    entry = counter.log_of()[-1]
    assert (entry.event, entry.refused, entry.actor) == ("person:away", code, who)
    assert away.marked(who.person, now=counter.now) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda counter, _away: counter.people.change("U0OLGA", is_deleted=True),
        lambda counter, _away: counter.people.change("U0OLGA", is_guest=True),
        lambda counter, away: away.away(OLGA, _until(counter), None, now=counter.now),
        lambda counter, _away: _relist(counter, "[U0ADA]"),
        lambda counter, _away: counter.people.change("U0CARL", is_deleted=True),
    ],
    ids=["deactivated", "guest", "away too", "not listed any more", "custodian deactivated"],
)
def test_attack_a_deputy_who_may_no_longer_stand_in_at_the_click(counter, away, change):
    """What was so at the opening does not count: between it and the click the deputy lost the right."""
    away.away(CARL, _until(counter), "U0OLGA", now=counter.now)
    row = counter.ask()
    change(counter, away)
    with pytest.raises(NotAllowed):
        counter.approve(OLGA, row.id, row.version, now=counter.now)
    assert counter.events(row)[-1] == "request:approve!"


def test_attack_a_deputy_who_was_deactivated_after_the_vote_does_not_count(counter, away):
    """The quorum is counted over those who may still decide."""
    away.away(CARL, _until(counter), "U0OLGA", now=counter.now)
    row = counter.ask(level="write", minutes=10)
    counter.approve(OLGA, row.id, row.version, now=counter.now)
    counter.people.change("U0OLGA", is_deleted=True)
    assert counter.approve(CHEN, row.id, row.version, now=counter.now).state == State.PENDING
    assert counter.approve(CARL, row.id, row.version, now=counter.now).state == State.APPROVED


def test_attack_a_custodian_and_their_deputy_are_no_quorum_of_two(counter, away):
    """Whoever names a deputy cannot fill two places with one absence, in either order."""
    away.away(CARL, _until(counter), "U0OLGA", now=counter.now)
    row = counter.ask(level="write", minutes=10)
    counter.approve(CARL, row.id, row.version, now=counter.now)
    with pytest.raises(Conflict) as refused:
        counter.approve(OLGA, row.id, row.version, now=counter.now)
    assert refused.value.reason == "place_taken"
    assert counter.fresh(row).state is State.PENDING


def test_attack_the_requester_is_no_deputy_and_gets_none(counter, away):
    """A requester listed as a deputy is not asked about their own request; nor is the deputy whom they named."""
    text = counter.policy.text.replace('responders: ["@on-call"]', 'responders: ["@on-call", U0OLGA]', 1)
    counter.policy = rules.parse(text, name="Olga may ask")
    away.away(CHEN, _until(counter), "U0OLGA", now=counter.now)
    assert counter.ask(OLGA).deputies is None
    away.away(CARL, _until(counter), "U0ADA", now=counter.now)
    row = counter.ask(CARL)  # on call, and a custodian
    assert row.custodians == ["U0CHEN", "U0CORA", "U0OLGA"]
    with pytest.raises(NotAllowed):
        counter.approve(ADA, row.id, row.version, now=counter.now)


def test_what_nobody_could_open_is_said_at_once_and_a_name_is_found_only_among_those_listed(counter, away):
    """All away without a deputy: each is told what that means; a deputy is found by a name that only one has."""
    assert away.find(CARL, "@olga", now=counter.now) == "U0OLGA"
    for name in ("@sam", "@"):
        with pytest.raises(NotAllowed, match="U0OLGA"):
            away.find(CARL, name, now=counter.now)
    assert away.away(CHEN, _until(counter), None, now=counter.now).shut == ()
    said = away.away(CORA, _until(counter), None, now=counter.now)
    assert len(said.shut) == 1  # the level that needs two
    said = away.away(CARL, _until(counter), None, now=counter.now)
    assert len(said.shut) == 2
    assert "nobody is there" in said.shut[0]
    said = away.away(CARL, _until(counter), "U0OLGA", now=counter.now)  # says it anew
    assert len(said.shut) == 1
    assert away.stands_in_for("U0OLGA", now=counter.now).keys() == {"U0CARL"}


def test_the_clock_and_others_do_not_mind_absences(counter, away):
    """With everybody away it still lapses, and who is away may answer."""
    for who in (CARL, CHEN, CORA, SAM):
        away.away(who, _until(counter), None, now=counter.now)
    row = counter.ask()
    counter.pass_time(minutes=20)
    sweep.tick(counter, now=counter.now)
    assert counter.fresh(row).state is State.LAPSED
    with counter.database.read() as session:
        assert absence.in_force(session, TEAM, now=counter.now).keys() == {"U0CARL", "U0CHEN", "U0CORA", "U0SAM"}


def _relist(counter, names):
    counter.policy = rules.parse(
        counter.policy.text.replace("deputies: [U0OLGA, U0ADA]", f"deputies: {names}"), name="later"
    )


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE absence SET deputy = 'U0ADA'",
        "UPDATE absence SET person = 'U0CHEN'",
        "UPDATE absence SET ended_at = NULL WHERE person = 'U0CORA'",
    ],
)
def test_attack_an_absence_that_nobody_said_is_found_by_the_verifier(counter, away, statement):
    """A row changed, or opened again, by hand would make somebody a deputy: the log does not tell it."""
    away.away(CORA, _until(counter), "U0ADA", now=counter.now)
    away.back(CORA, now=counter.now)
    away.away(CARL, _until(counter), None, now=counter.now)
    counter.pass_time(seconds=1)
    away.away(CARL, _until(counter), "U0OLGA", now=counter.now)

    def found():
        with counter.database.read() as session:
            return [one.kind for one in replay.check_database(session, now=counter.now).findings]

    assert found() == []
    with counter.database.write() as session:
        session.run(statement)
    assert Kind.STATE_WITHOUT_ENTRY in found()
