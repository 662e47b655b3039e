"""Can anybody approve who has no right to? Twenty ways to try, each refused, logged and answered.

A second account of the same person is a person of its own to Slack, and to us: what stops it is that it is no
custodian. Forged buttons as Slack brings them are in ``test_listeners.py``; codes in ``test_step_up.py`` go further.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import pytest
from counter import CARL, CHEN, CORA, OLGA, RITA, SAM, TEAM

from storage.audit import SYSTEM, Actor
from storage.models import Answer, State
from workflows import policy as rules
from workflows.away_desk import AwayDesk
from workflows.drill import Drills
from workflows.errors import Refused
from workflows.lifecycle import Action

if TYPE_CHECKING:
    from collections.abc import Callable

    from counter import Counter

    from storage.models import Request


class Try(NamedTuple):
    """A click: who, on which request, with a button of which version."""

    who: Actor
    request_id: str
    version: int


def policy(counter: Counter, *changes: tuple[str, str]) -> None:
    """Put a changed policy in force."""
    text = counter.policy.text
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    counter.policy = rules.parse(text, name="changed")


CUSTODIANS = "custodians: [U0CARL, U0CHEN, U0CORA]"


def at(row: Request, who: Actor) -> Try:
    """Click at the request's own button."""
    return Try(who, row.id, row.version)


def own_request(counter: Counter) -> Try:
    """A custodian who asked themselves: Carl is on call, too."""
    return at(counter.ask(CARL), CARL)


def second_account(counter: Counter) -> Try:
    """Rita's other account, which nobody made a custodian."""
    other = Actor(TEAM, "U0RITA2")
    counter.people.known["U0RITA2"] = replace(counter.people.known["U0RITA"], id="U0RITA2")
    return at(counter.ask(RITA), other)


def changed(person: str, **facts: bool) -> Callable[[Counter], Try]:
    """Somebody of whom Slack says something else by the time of the click."""

    def click(counter: Counter) -> Try:
        row = counter.ask()
        counter.people.change(person, **facts)
        return at(row, Actor(TEAM, person))

    return click


def deactivated_behind_the_form(counter: Counter) -> Try:
    """The form was opened with the right; when it is sent the account is deactivated."""
    row = counter.ask()
    counter.may(CARL, Action.APPROVE, row.id, row.version, now=counter.now)
    counter.people.change("U0CARL", is_deleted=True)
    return at(row, CARL)


def unknown_to_slack(counter: Counter) -> Try:
    """A custodian whom Slack does not know any more."""
    row = counter.ask()
    del counter.people.known["U0CARL"]
    return at(row, CARL)


def other_workspace(counter: Counter) -> Try:
    """The same user id in another workspace, as a shared channel shows it."""
    return at(counter.ask(), Actor("T0ELSEWHERE", "U0CARL"))


def the_bot_itself(counter: Counter) -> Try:
    """The bot's own name."""
    return at(counter.ask(), SYSTEM)


def slackbot(counter: Counter) -> Try:
    """Slack's own bot, of which Slack says that it is none, made a custodian."""
    counter.people.known["USLACKBOT"] = replace(counter.people.known["U0CARL"], id="USLACKBOT")
    policy(counter, (CUSTODIANS, CUSTODIANS.replace("]", ", USLACKBOT]")))
    return at(counter.ask(), Actor(TEAM, "USLACKBOT"))


def removed(counter: Counter) -> Try:
    """Taken off the custodians while it was pending."""
    row = counter.ask()
    policy(counter, (CUSTODIANS, "custodians: [U0CHEN, U0CORA]"))
    return at(row, CARL)


def added(counter: Counter) -> Try:
    """Made a custodian while it was pending."""
    row = counter.ask()
    policy(counter, (CUSTODIANS, CUSTODIANS.replace("]", ", U0OLGA]")))
    return at(row, OLGA)


def reviewer(counter: Counter) -> Try:
    """Security, who reviews it afterwards."""
    return at(counter.ask(), SAM)


def deputy_of_a_present_custodian(counter: Counter) -> Try:
    """Somebody who may stand in, while nobody is away."""
    policy(counter, (CUSTODIANS, f"{CUSTODIANS}\n    deputies: [U0OLGA]"))
    return at(counter.ask(), OLGA)


def deputy_for_ones_own_request(counter: Counter) -> Try:
    """The requester is the deputy of a custodian who is away."""
    policy(counter, (CUSTODIANS, f"{CUSTODIANS}\n    deputies: [U0RITA]"))
    away = AwayDesk(counter.database, lambda: counter.policy, counter.people, team=TEAM)
    away.away(CARL, counter.now + timedelta(days=1), "U0RITA", now=counter.now)
    return at(counter.ask(RITA), RITA)


def deputy_named_afterwards(counter: Counter) -> Try:
    """A custodian goes away when it is pending already: their deputy was not asked."""
    policy(counter, (CUSTODIANS, f"{CUSTODIANS}\n    deputies: [U0OLGA]"))
    row = counter.ask()
    away = AwayDesk(counter.database, lambda: counter.policy, counter.people, team=TEAM)
    away.away(CARL, counter.now + timedelta(days=1), "U0OLGA", now=counter.now)
    return at(row, OLGA)


def twice(counter: Counter) -> Try:
    """The same custodian a second time, where two are needed."""
    row = counter.ask(level="write", minutes=10)
    return at(counter.approve(CARL, row.id, row.version, now=counter.now), CARL)


def two_factors(counter: Counter) -> Try:
    """One person who is named for both factors, and gives both."""
    policy(
        counter,
        (
            "        quorum: 2\n",
            "        quorum: 2\n        factors: {one: {from: [U0CARL]}, two: {from: [U0CARL, U0CHEN]}}\n",
        ),
    )
    row = counter.ask(level="write", minutes=10)
    return at(counter.approve(CARL, row.id, row.version, now=counter.now), CARL)


def forged_version(counter: Counter) -> Try:
    """A button of a version that never was."""
    row = counter.ask()
    return Try(CARL, row.id, row.version + 7)


def forged_request(counter: Counter) -> Try:
    """A button of a request that never was."""
    return Try(CARL, "BG-9999", counter.ask().version)


def stale_button(counter: Counter) -> Try:
    """A button from before somebody denied it."""
    row = counter.ask()
    counter.deny(CHEN, row.id, row.version, "No threshold is met", now=counter.now)
    return at(row, CARL)


def after_its_time(counter: Counter) -> Try:
    """A button from before it lapsed."""
    row = counter.ask()
    counter.pass_time(minutes=16)
    counter.clock(row.id, now=counter.now)
    return at(row, CARL)


def stale_policy(counter: Counter) -> Try:
    """The level allows less by now than was asked for when it allowed more."""
    row = counter.ask(minutes=30)
    policy(counter, ("        longest: 30m\n        default: 15m\n", "        longest: 10m\n        default: 5m\n"))
    return at(row, CARL)


def of_a_drill(counter: Counter) -> Try:
    """The button of a drill, with the version and by the person who approved it, sent for a real request."""
    row = counter.ask(level="write", minutes=10)
    row = counter.approve(CARL, row.id, row.version, now=counter.now)
    drill = Drills(counter).start(RITA, "orders-db", now=counter.now)
    counter.approve(CARL, drill.id, drill.version, now=counter.now)
    return Try(CARL, row.id, row.version)


WAYS = (
    own_request,
    second_account,
    changed("U0CARL", is_guest=True),
    changed("U0CARL", is_foreign=True),
    changed("U0CARL", is_deleted=True),
    changed("U0CARL", is_bot=True),
    deactivated_behind_the_form,
    unknown_to_slack,
    other_workspace,
    the_bot_itself,
    slackbot,
    removed,
    added,
    reviewer,
    deputy_of_a_present_custodian,
    deputy_for_ones_own_request,
    deputy_named_afterwards,
    twice,
    two_factors,
    forged_version,
    forged_request,
    stale_button,
    after_its_time,
    stale_policy,
    of_a_drill,
)
NAMES = [
    *("own_request", "second_account", "guest", "external", "deactivated", "bot"),
    *(way.__name__ for way in WAYS[6:]),
]


@pytest.mark.parametrize("way", WAYS, ids=NAMES)
def test_an_approval_without_the_right_is_refused_logged_and_answered(way, counter):
    """Nothing is decided by it, an entry says who tried, and the person is told why."""
    click = way(counter)
    before = [] if click.request_id == "BG-9999" else counter.case(click.request_id).decisions
    entries = len(counter.log_of())
    with pytest.raises(Refused) as refused:
        counter.approve(click.who, click.request_id, click.version, now=counter.now)
    assert len(refused.value.sentence) > 20
    assert refused.value.sentence.endswith((".", "?"))
    (logged,) = counter.log_of()[entries:]
    assert (logged.event, logged.actor) == (Action.APPROVE, click.who)
    assert logged.refused == refused.value.reason
    if click.request_id != "BG-9999":
        case = counter.case(click.request_id)
        assert [(said.person, said.answer) for said in case.decisions] == [
            (said.person, said.answer) for said in before
        ]
        assert case.state is not State.APPROVED
        assert case.grants == ()


def test_an_approval_of_a_drill_counts_for_no_real_request(counter):
    """A drill that is approved leaves the real request beside it where it was, and opens nothing of it."""
    row = counter.ask()
    drill = Drills(counter).start(RITA, "orders-db", now=counter.now)
    counter.approve(CARL, drill.id, drill.version, now=counter.now)
    assert counter.case(drill.id).state is State.APPROVED
    assert counter.case(row.id).state is State.PENDING
    assert [d for d in counter.case(row.id).decisions if d.answer == Answer.APPROVE] == []
    with pytest.raises(Refused):
        counter.reveal(RITA, row.id, counter.case(row.id).request.version, now=counter.now)


def test_whoever_has_the_right_is_let_through(counter):
    """The same click by somebody who may: the refusals above are of the ways, not of the desk."""
    row = counter.ask()
    counter.approve(CORA, row.id, row.version, now=counter.now)
    assert counter.case(row.id).state is State.APPROVED
