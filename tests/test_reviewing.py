"""Are reviews owed, by whom, and does what they ask for get done?"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import date, timedelta
from types import MappingProxyType

import pytest
from counter import ADA, CARL, CHEN, CORA, RITA, SAM, TEAM
from sqlmodel import select

from bot import modals, reviews, views
from storage.audit import Actor
from storage.models import FollowUp as FollowUpRow
from storage.models import Outcome, State
from workflows import policy as rules
from workflows import sweep
from workflows.desk import Findings, FollowUp
from workflows.errors import Conflict, Invalid, NotAllowed
from workflows.lifecycle import Role
from workflows.policy import Overdue, evaluate, explain
from workflows.replay import check_database

LENA = Actor(TEAM, "U0LENA")
DAY = timedelta(days=1)
FORM = Findings(
    True,
    False,
    True,
    Outcome.JUSTIFIED,
    "Nothing but the orders was read.",
    threshold_why="Checkout failed for every customer.",
    standard_path_why="Nobody answered the page for an hour.",
)
MISUSE = replace(
    FORM,
    outcome=Outcome.MISUSE,
    findings="The cards were looked at, too.",
    follow_ups=(FollowUp("Take the grant on cards away", "U0CHEN", date(2026, 1, 1)),),
)


@pytest.fixture
def desk(counter):
    """The counter, with two more reviewers."""
    counter.people.groups["@security"] = ("U0SAM", "U0OLGA", "U0ADA")
    return counter


def ended(desk, *, by=(CARL,), who=RITA):
    """Return a use that has ended; its credential was never opened, so that no Vault is asked."""
    row = desk.ask(who)
    for custodian in by:
        row = desk.approve(custodian, row.id, row.version, now=desk.now)
    desk.revoke(CHEN, row.id, row.version, now=desk.now)
    assert desk.finish(row.id, now=desk.now)
    return desk.fresh(row).request


def owned(desk, **how):
    """Return a use whose review has an owner."""
    row = ended(desk, **how)
    desk.clock(row.id, now=desk.now)
    return desk.fresh(row).request


def check(desk):
    """Assert that the tables say what the log says, and that all kept to the rules but the late."""
    with desk.database.read() as session:
        found = check_database(session, now=desk.now).findings
    assert [one for one in found if "there is none" not in one.sentence and "signed" not in one.sentence] == []


def test_a_review_from_its_end_to_its_last_follow_up(desk, real):
    """Owed, reminded, escalated, given away, judged by two, followed up; and nobody is let in meanwhile."""
    row = desk.approved()
    desk.show(row)
    desk.release(RITA, row.id, desk.fresh(row).request.version, now=desk.now)
    desk.finish(row.id, now=desk.now)
    sweep.tick(desk, now=desk.now)
    assert desk.fresh(row).request.review_owner == "U0ADA"  # of three without a review, the first by name

    # 1. It is late: who used it is not let in again, and is told at once whose it is.
    desk.pass_time(days=3, seconds=1)
    sweep.tick(desk, now=desk.now)
    with pytest.raises(NotAllowed, match=f"review of your use {row.id} is overdue. Ask <@U0ADA>"):
        desk.ask()
    verdict = desk.preview("U0RITA", "orders-db", "read", now=desk.now)
    assert [one.code for one in verdict.unmet] == ["overdue_review"]
    assert desk.ask(CARL).state == State.PENDING, "it is about one's own uses"

    # 2. A day later leadership is told, and gives it to somebody else.
    desk.pass_time(days=1)
    sweep.tick(desk, now=desk.now)
    sweep.tick(desk, now=desk.now)
    assert desk.events(row)[-3:] == ["review:remind", "review:remind", "review:escalate"]
    desk.reassign(LENA, row.id, "U0OLGA", now=desk.now)

    # 3. Two people judge misuse; the second need not agree.
    olga = Actor(TEAM, "U0OLGA")
    version = desk.fresh(row).request.version
    todo = replace(MISUSE.follow_ups[0], due=(desk.now + 30 * DAY).date())
    form = replace(MISUSE, follow_ups=(todo,))
    assert desk.review(olga, row.id, version, form, now=desk.now).state == State.ENDED
    sweep.tick(desk, now=desk.now)
    assert desk.fresh(row).request.review_owner == "U0ADA"
    assert desk.ask().state == State.PENDING, "the second review has a time of its own"
    with pytest.raises(NotAllowed, match="somebody else must file the second"):
        desk.review_second(olga, row.id, version, Outcome.MISUSE, "I say it once more.", now=desk.now)
    desk.review_second(SAM, row.id, version, Outcome.NOT_JUSTIFIED, "They were looked at by mistake.", now=desk.now)
    case = desk.fresh(row)
    assert (case.state, case.review.outcome, case.second.outcome) == (State.REVIEWED, "misuse", "not_justified")

    # 4. What is to be done is called for, each week, until it is done.
    desk.pass_time(days=60)
    sweep.tick(desk, now=desk.now)
    sweep.tick(desk, now=desk.now)
    desk.pass_time(days=7)
    sweep.tick(desk, now=desk.now)
    name = f"{row.id}/1"
    with pytest.raises(NotAllowed):
        desk.close_follow_up(RITA, name, "I say that it is done.", now=desk.now)
    desk.close_follow_up(CHEN, name, "The grant was revoked, see CHG-12.", now=desk.now)
    with pytest.raises(Conflict):
        desk.close_follow_up(SAM, name, "The grant was revoked, see CHG-12.", now=desk.now)
    desk.pass_time(days=7)
    sweep.tick(desk, now=desk.now)
    assert [event for event in desk.events(row) if event.startswith(("review:", "follow_up:"))] == [
        "review:assign",
        "review:remind",
        "review:remind",
        "review:escalate",
        "review:reassign",
        "review:first",
        "review:assign",
        "review:second!",
        "review:second",
        "follow_up:remind",
        "follow_up:remind",
        "follow_up:close!",
        "follow_up:close",
        "follow_up:close!",
    ]
    check(desk)


def test_the_owner_has_no_conflict(desk):
    """Who approved is passed over, then whose own use the requester reviewed; who is left all the same is named."""
    desk.people.groups["@security"] = ("U0CARL", "U0SAM", "U0RITA")
    desk.people.groups["@on-call"] = ("U0RITA", "U0SAM")
    row = owned(desk, by=(CARL,))
    assert row.review_owner == "U0SAM"
    desk.review(SAM, row.id, row.version, FORM, now=desk.now)
    # Sam reviewed Rita; now Sam uses it, and Rita would review Sam.
    row = owned(desk, by=(CORA,), who=SAM)
    assert row.review_owner == "U0CARL", "though Carl is a custodian: Rita's own use was reviewed by Sam"
    with pytest.raises(NotAllowed, match="reviewed a use of <@U0RITA>'s"):
        desk.reassign(LENA, row.id, "U0RITA", now=desk.now)
    desk.people.change("U0CARL", is_deleted=True)
    desk.pass_time(days=1)
    desk.clock(row.id, now=desk.now)
    assert desk.fresh(row).request.review_owner == "U0RITA"
    assert desk.log_of(row)[-1].data["reciprocal"] is True
    check(desk)


@pytest.mark.parametrize(
    ("who", "owner", "why"),
    [
        (RITA, "U0OLGA", "Only the owner of the review"),
        (LENA, "U0RITA", "asked for this access"),
        (LENA, "U0CARL", "approved this access"),
        (LENA, "U0CHEN", "is not a reviewer"),
        (LENA, "U0GUS", "is not a reviewer"),
        (LENA, "U0ADA", "already"),
    ],
)
def test_a_review_is_given_only_by_and_to_who_may(desk, who, owner, why):
    """Neither a stranger gives it away, nor is it given to somebody with a conflict; both are on record."""
    row = owned(desk)
    with pytest.raises((NotAllowed, Conflict), match=why):
        desk.reassign(who, row.id, owner, now=desk.now)
    assert desk.events(row)[-1] == "review:reassign!"
    assert desk.fresh(row).request.review_owner == "U0ADA"


def test_the_owner_of_a_review_may_give_it_away(desk):
    """Who cannot do it hands it on, by name; once it is filed nobody can."""
    row = owned(desk)
    assert desk.reviewer_named("@Olga") == desk.reviewer_named("<@U0OLGA|olga>") == "U0OLGA"
    with pytest.raises(Invalid):
        desk.reviewer_named("@nobody")
    row = desk.reassign(ADA, row.id, "U0OLGA", now=desk.now)
    assert row.review_owner == "U0OLGA"
    desk.review(ADA, row.id, row.version, FORM, now=desk.now)
    with pytest.raises(Conflict):
        desk.reassign(Actor(TEAM, "U0OLGA"), row.id, "U0SAM", now=desk.now)


def test_reviews_are_shared_out_and_follow_who_is_there(desk):
    """The one with the fewest open reviews gets the next; who is away, or deactivated, is replaced."""
    owners = [owned(desk).review_owner for _ in range(3)]
    assert owners == ["U0ADA", "U0OLGA", "U0SAM"]
    row = owned(desk)
    assert row.review_owner == "U0ADA"
    desk.people.change("U0ADA", is_away=True)
    desk.pass_time(days=1)
    desk.clock(row.id, now=desk.now)
    desk.clock(row.id, now=desk.now)
    assert desk.fresh(row).request.review_owner == "U0OLGA"
    assert desk.events(row)[-2:] == ["review:assign", "review:assign"]


def test_two_reviews_where_two_are_needed(desk):
    """A request may ask for two reviewers from the start; the second must exist before it is reviewed."""
    row = ended(desk)
    with desk.database.write() as session:
        stored = session.get(type(row), row.id)
        stored.reviews_needed = 2
        session.add(stored)
    row = desk.fresh(row).request
    with pytest.raises(Conflict, match="no first review"):
        desk.review_second(SAM, row.id, row.version, Outcome.JUSTIFIED, "All was in order.", now=desk.now)
    desk.review(SAM, row.id, row.version, FORM, now=desk.now)
    with pytest.raises(Conflict, match="waits for a second"):
        desk.review(ADA, row.id, row.version, FORM, now=desk.now)
    with pytest.raises(Invalid):
        desk.review_second(ADA, row.id, row.version, Outcome.JUSTIFIED, "ok", now=desk.now)
    row = desk.review_second(ADA, row.id, row.version, Outcome.JUSTIFIED, "All was in order.", now=desk.now)
    assert row.state == State.REVIEWED
    assert desk.log_of(row)[-1].data["agrees"] is True


def test_attack_a_second_review_that_no_entry_tells_of(desk):
    """A row put in, taken out or changed behind the log's back is found: second review, owner, follow-up."""
    row = owned(desk)
    desk.review(SAM, row.id, row.version, MISUSE, now=desk.now)
    check(desk)
    with desk.database.write() as session:
        todo = session.exec(select(FollowUpRow)).one()
        todo.closed_at, todo.closed_by = desk.now, "U0CHEN"
        stored = session.get(type(row), row.id)
        stored.review_owner = "U0RITA"
        session.add(todo)
        session.add(stored)
    with desk.database.read() as session:
        said = " ".join(one.sentence for one in check_database(session, now=desk.now).findings)
    assert "review_owner = U0RITA" in said
    assert f"Follow-up {row.id}/1: the table says closed_by = U0CHEN" in said


def test_a_drill_asks_for_what_is_to_be_done(desk):
    """What follows from no review is told and followed up alike, with a request or without."""
    row = owned(desk)
    asked = (FollowUp("Name a second custodian", "U0CORA", date(2026, 1, 1)),)
    assert desk.follow_up("DR-4F2K", asked, now=desk.now) == ["DR-4F2K/1"]
    assert desk.follow_up("DR-4F2K", asked, request_id=row.id, now=desk.now) == ["DR-4F2K/2"]
    assert desk.remind_follow_ups(now=desk.now) == 2
    assert desk.remind_follow_ups(now=desk.now) == 0
    desk.close_follow_up(CORA, "DR-4F2K/1", "Olga is one now.", now=desk.now)
    assert [one.id for one in desk.open_follow_ups("U0CORA")] == ["DR-4F2K/2"]
    assert [one.id for one in desk.agenda(CORA, now=desk.now).follow_ups] == ["DR-4F2K/2"]
    assert [one.id for one in desk.fresh(row).follow_ups] == ["DR-4F2K/2"]
    check(desk)


def test_a_level_may_let_in_all_the_same(desk):
    """Who owes nothing is let in; ``block_overdue: false`` lets in who does."""
    late, people = (Overdue("BG-7KQ2", ""),), rules.gather(desk.directory, desk.policy, None, ("U0RITA",))
    level = desk.policy.accounts["orders-db"].levels["read"]

    def codes(policy, overdue):
        verdict = evaluate(
            policy, people, account="orders-db", level="read", requester="U0RITA", overdue=overdue, preview=True
        )
        return [one.code for one in verdict.unmet]

    assert level.block_overdue
    assert codes(desk.policy, ()) == []
    assert codes(desk.policy, late) == ["overdue_review"]
    text = re.sub(r"(\n *)(quorum: 1)", r"\1block_overdue: false\1\2", desk.policy.text, count=1)
    assert codes(rules.parse(text, name="lenient"), late) == []
    with pytest.raises(rules.PolicyInvalid):
        rules.parse(text.replace("block_overdue: false", "block_overdue: no"), name="wrong")


def test_the_form_of_a_shut_account_cannot_be_sent(desk):
    """Before anything is typed the form says which review is overdue and whose it is, and has nothing to submit."""
    account = desk.policy.accounts["orders-db"]
    people = rules.gather(desk.directory, desk.policy, None, ("U0RITA",))
    verdict = evaluate(
        desk.policy,
        people,
        account=account.name,
        level="read",
        requester="U0RITA",
        overdue=(Overdue("BG-7KQ2", "U0SAM"), Overdue("BG-7KQ3", "U0SAM")),
        preview=True,
    )
    view = modals.request_form([account], desk.policy, account=account, level=account.levels["read"], verdict=verdict)
    assert "submit" not in view
    assert "input" not in [block["type"] for block in view["blocks"]]
    assert "BG-7KQ2 (and 1 more) is overdue. Ask <@U0SAM>" in view["blocks"][0]["text"]["text"]


def test_leadership_and_security_oversee_reviews(desk):
    """Who is neither gives no review away."""
    roster = rules.gather(desk.directory, desk.policy, None, ("U0LENA", "U0SAM", "U0CARL"))
    held = {
        p: explain(desk.policy, roster, "orders-db", p, Role.OVERSEER) is None for p in ("U0LENA", "U0SAM", "U0CARL")
    }
    assert held == {"U0LENA": True, "U0SAM": True, "U0CARL": False}


def test_what_people_see_of_it(desk):
    """Card and messages name the owner, show the evidence and both reviewers, and a follow-up until it is done."""
    row = owned(desk)
    ask = str(views.review_ask(desk.fresh(row), desk.policy, now=desk.now).blocks)
    assert "<@U0ADA>'s to file" in ask
    assert views.REASSIGN in ask
    desk.review(SAM, row.id, row.version, MISUSE, now=desk.now)
    case = desk.fresh(row)
    card = str(views.card(case, desk.policy, now=desk.now).blocks)
    assert views.REVIEW_SECOND in card
    assert f"'{views.REVIEW}'" not in card
    assert "Checkout failed for every customer." in card
    name = f"{row.id}/1"
    assert reviews.CLOSE_FORM in str(reviews.todo(case, desk.policy, now=desk.now, follow_up=name).blocks)
    desk.review_second(ADA, row.id, row.version, Outcome.JUSTIFIED, "It was all needed.", now=desk.now)
    desk.close_follow_up(SAM, name, "The grant is gone now.", now=desk.now)
    case = desk.fresh(row)
    card = str(views.card(case, desk.policy, now=desk.now).blocks)
    assert "*disagrees*" in card
    assert "done <!date" in card
    todo = reviews.todo(case, desk.policy, now=desk.now, follow_up=name)
    assert "The grant is gone now." in str(todo.blocks)
    assert reviews.CLOSE_FORM not in str(todo.blocks)


def test_an_order_of_candidates_is_the_same_everywhere(desk):
    """Two bots choose the same owner: the order stands on the rows and the names, and on nothing else."""
    row = ended(desk)
    people = rules.gather(desk.directory, desk.policy, "orders-db")
    turned = rules.Roster(MappingProxyType(dict(reversed(people.people.items()))), people.groups)
    with desk.database.read() as session:
        case = desk.fresh(row)
        one = desk.candidates(session, case, people, now=desk.now)
        assert one == desk.candidates(session, case, turned, now=desk.now)
    assert [each.person for each in one] == ["U0ADA", "U0OLGA", "U0SAM"]
