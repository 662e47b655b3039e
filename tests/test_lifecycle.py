"""The table of moves, exhaustively: each state by each action by each role, from the table itself."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from storage.models import FINAL, State
from workflows.errors import Conflict, NotAllowed
from workflows.lifecycle import TRANSITIONS, Action, Move, Role, allowed_roles, mermaid, now_is, step

STATES = (None, *State)
ROLE_SETS = [frozenset(chosen) for count in range(len(Role) + 1) for chosen in combinations(Role, count)]
MOVES = list(TRANSITIONS.values())


def reach(start: State | None, moves: list[Move]) -> set[State | None]:
    """Return every state that the moves lead to from ``start``, with it."""
    found, edge = {start}, [start]
    while edge:
        here = edge.pop()
        for move in moves:
            if move.source is here and move.target not in found:
                found.add(move.target)
                edge.append(move.target)
    return found


@pytest.mark.parametrize(("state", "action"), list(product(STATES, Action)), ids=str)
def test_every_combination_moves_as_its_row_says_or_refuses(state, action):
    """For every state, action and set of roles: the row's move, Conflict without a row, NotAllowed without its role."""
    row = TRANSITIONS.get((state, action))
    for roles in ROLE_SETS:
        if row is None:
            with pytest.raises(Conflict) as caught:
                step(state, action, roles, request="BG-7KQ2")
            assert type(caught.value) is Conflict
            assert str(caught.value).startswith("BG-7KQ2 ")
        elif roles & row.roles:
            assert step(state, action, roles) is row
        else:
            with pytest.raises(NotAllowed) as caught:
                step(state, action, roles, request="BG-7KQ2")
            assert type(caught.value) is NotAllowed
            assert "BG-7KQ2" in str(caught.value)
            assert all(role.value in str(caught.value) for role in row.roles)
    assert allowed_roles(state, action) == (row.roles if row else frozenset())


def test_rows_stand_under_their_own_key():
    """Each row is found by its own source and action, is open to somebody, and knows whether its state stays."""
    for (source, action), move in TRANSITIONS.items():
        assert (move.source, move.action) == (source, action)
        assert move.roles
        assert move.is_self == (source == move.target)


def test_every_state_is_reachable_and_every_action_used():
    """From nothing, the table leads to every state; no action is without a row."""
    assert reach(None, MOVES) == set(STATES)
    assert {move.action for move in MOVES} == set(Action)


def test_a_request_begins_in_one_way():
    """The only row from nothing opens a request, as a responder, and nothing leads back to nothing."""
    assert [(m.action, m.target, m.roles) for m in MOVES if m.source is None] == [
        (Action.OPEN, State.PENDING, {Role.RESPONDER})
    ]
    assert all(move.target is not None for move in MOVES)


@pytest.mark.parametrize("state", sorted(FINAL))
def test_what_is_over_stays_over(state):
    """A final state has no row, not even a self move."""
    assert [move for move in MOVES if move.source is state] == []


@pytest.mark.parametrize("state", sorted(set(State) - FINAL))
def test_no_state_needs_a_person_to_be_left(state):
    """The bot has a row in every state that is not final; but for the review, which only people give, one leads out."""
    own = [move for move in MOVES if move.source is state and Role.SYSTEM in move.roles]
    assert own
    if state is State.ENDED:
        assert {move.action for move in own} == {Action.ASSIGN, Action.REMIND, Action.REVIEW_ESCALATE}
        assert all(move.is_self for move in own)
        assert allowed_roles(state, Action.REVIEW) == {Role.REVIEWER}
    else:
        assert any(not move.is_self for move in own)


@pytest.mark.parametrize("state", [State.PENDING, State.APPROVED, State.ACTIVE, State.ENDING])
def test_without_any_person_a_request_comes_to_rest(state):
    """From every state before the end, the bot's rows alone lead to a final state or to the wait for the review."""
    by_bot = [move for move in MOVES if Role.SYSTEM in move.roles]
    assert reach(state, by_bot) & (FINAL | {State.ENDED})


@pytest.mark.parametrize("state", sorted(set(State) - FINAL))
def test_every_state_can_come_to_an_end(state):
    """From every state that is not final a final one can be reached."""
    assert reach(state, MOVES) & FINAL


def test_no_credential_is_left_behind():
    """A credential that is out is over only by way of ``ending`` and Vault's confirmation."""
    without_end = [move for move in MOVES if move.action is not Action.END]
    assert reach(State.ACTIVE, without_end) == {State.ACTIVE, State.ENDING}
    assert {m.target for m in MOVES if m.source is State.ACTIVE and not m.is_self} == {State.ENDING}
    assert {m.source for m in MOVES if m.target is State.ACTIVE and not m.is_self} == {State.APPROVED}


def test_nothing_is_granted_without_an_approval():
    """The way to ``approved`` leads through ``pending``, and only the bot's count of the decisions opens it."""
    assert [(m.source, m.action, m.roles) for m in MOVES if m.target is State.APPROVED and not m.is_self] == [
        (State.PENDING, Action.QUORUM, {Role.SYSTEM})
    ]


def test_only_the_bot_confirms_and_only_people_decide():
    """What Vault, the clock or the count says is the bot's alone; what a person answers for is never the bot's."""
    bot = {
        Action.QUORUM, Action.LAPSE, Action.ESCALATE, Action.HOLD, Action.OPENED, Action.ABANDON, Action.ISSUE,
        Action.REISSUE, Action.UNWRAP, Action.UNOPENED, Action.WARN, Action.EXPIRE, Action.LOSE, Action.END,
        Action.FAIL,
        Action.REMIND, Action.NUDGE, Action.DRILL_REVEAL, Action.DRILL_DONE,
        Action.ASSIGN, Action.REVIEW_ESCALATE,
    }  # fmt: skip
    for move in MOVES:
        assert (move.roles == {Role.SYSTEM}) == (move.action in bot)
        assert move.roles == {Role.SYSTEM} or Role.SYSTEM not in move.roles


def test_every_state_can_be_told():
    """Each state has a half sentence of its own for the person who comes too late."""
    assert len({now_is(state) for state in State}) == len(State)


def test_a_request_that_does_not_exist_says_so():
    """Acting on nothing is a Conflict that says there is nothing."""
    with pytest.raises(Conflict, match="BG-0000 does not exist"):
        step(None, Action.APPROVE, set(Role), request="BG-0000")


def test_a_stranger_learns_that_it_is_over_before_that_he_may_not():
    """A person without any role is told about a wrong moment first, and never that he would have been let in."""
    with pytest.raises(Conflict):
        step(State.DENIED, Action.APPROVE, ())
    with pytest.raises(NotAllowed):
        step(State.PENDING, Action.APPROVE, ())


def test_the_diagram_has_every_row_once():
    """The Mermaid text is the table: each row is one line, each final state has its end, and nothing else is there."""
    head, *lines = mermaid().splitlines()
    assert head == "stateDiagram-v2"
    expected = [f"    {move.source or '[*]'} --> {move.target}: {move.action.replace(':', ' ')}" for move in MOVES] + [
        f"    {state} --> [*]" for state in FINAL
    ]
    assert sorted(lines) == sorted(expected)
    assert len(set(lines)) == len(lines) == len(MOVES) + len(FINAL)
