"""Which moves does a request have, and who may make them?

This table is the whole answer; nothing else in the program compares a state.

Rules
-----
* A move is a row of ``TRANSITIONS``: from a state, by an action, to a state, open to some roles.
* A move that is not in the table is a :class:`Conflict`; a move by the wrong role is a :class:`NotAllowed`. Both leave
  everything as it was.
* A move whose target is its own state is a *self* move: it is logged and redraws the card, and buttons drawn before it
  stay good.
* An outside effect stands between two states. ``approved → active`` is the issue of a credential and ``ending → ended``
  its end: the first state is the decision, the second the confirmation.
* Separation of duties (requester, approver and reviewer are different people) is a relation between people, not a row
  here: ``policy.py`` takes a role away from whom it excludes.

This module is pure: no I/O, no clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from storage.models import FINAL, State
from workflows.errors import Conflict, NotAllowed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


class Action(StrEnum):
    """What may be done to a request. The value is the log's event and Slack's action id."""

    OPEN = "request:open"
    APPROVE = "request:approve"
    QUORUM = "request:quorum"
    DENY = "request:deny"
    WITHDRAW = "request:withdraw"
    LAPSE = "request:lapse"
    ESCALATE = "request:escalate"
    NUDGE = "request:nudge"
    REVEAL = "credential:reveal"
    HOLD = "credential:hold"
    OPENED = "credential:token"
    ABANDON = "credential:abandon"
    ISSUE = "credential:issue"
    REISSUE = "credential:reissue"
    UNWRAP = "credential:unwrap"
    UNOPENED = "credential:unopened"
    INTERCEPT = "credential:intercept"
    WARN = "credential:warn"
    RELEASE = "credential:release"
    REVOKE = "credential:revoke"
    EXPIRE = "credential:expire"
    LOSE = "credential:lost"
    END = "credential:end"
    FAIL = "credential:fail"
    ASSIGN = "review:assign"
    REASSIGN = "review:reassign"
    REVIEW = "review:file"
    REVIEW_FIRST = "review:first"
    REVIEW_SECOND = "review:second"
    REMIND = "review:remind"
    DRILL_REVEAL = "drill:reveal"
    DRILL_DONE = "drill:done"
    REVIEW_ESCALATE = "review:escalate"


class Role(StrEnum):
    """As whom somebody acts. A person holds several; ``SYSTEM`` is the bot itself."""

    REQUESTER = "requester"
    RESPONDER = "responder"
    CUSTODIAN = "custodian"
    REVIEWER = "reviewer"
    OVERSEER = "overseer"  # sees to it that a review is filed: its owner, leadership, security
    SYSTEM = "system"


@dataclass(frozen=True, slots=True)
class Move:
    """One row: who may take a request from where to where by what."""

    source: State | None
    action: Action
    target: State
    roles: frozenset[Role]

    @property
    def is_self(self) -> bool:
        """The state stays; the move is still logged."""
        return self.source is self.target


def _rows(*rows: tuple[State | None, Action, State, Iterable[Role]]) -> dict[tuple[State | None, Action], Move]:
    table = {(source, action): Move(source, action, target, frozenset(roles)) for source, action, target, roles in rows}
    if len(table) != len(rows):
        raise AssertionError("two rows of TRANSITIONS have the same state and action")
    return table


_S = State
_A = Action
_BOT = (Role.SYSTEM,)

TRANSITIONS: Final = _rows(
    (None, _A.OPEN, _S.PENDING, (Role.RESPONDER,)),
    (_S.PENDING, _A.APPROVE, _S.PENDING, (Role.CUSTODIAN,)),
    (_S.PENDING, _A.ESCALATE, _S.PENDING, _BOT),
    # Whoever was asked and has not answered is asked again.
    (_S.PENDING, _A.NUDGE, _S.PENDING, _BOT),
    (_S.PENDING, _A.QUORUM, _S.APPROVED, _BOT),
    (_S.PENDING, _A.DENY, _S.DENIED, (Role.CUSTODIAN,)),
    (_S.PENDING, _A.WITHDRAW, _S.WITHDRAWN, (Role.REQUESTER,)),
    (_S.PENDING, _A.LAPSE, _S.LAPSED, _BOT),
    # The credential's issue: intent, child token, then the credential itself; each recorded before the next call.
    (_S.APPROVED, _A.REVEAL, _S.APPROVED, (Role.REQUESTER,)),
    # Held while a required copy of the log lacks what led to it.
    (_S.APPROVED, _A.HOLD, _S.APPROVED, _BOT),
    (_S.APPROVED, _A.OPENED, _S.APPROVED, _BOT),
    (_S.APPROVED, _A.ABANDON, _S.APPROVED, _BOT),
    (_S.APPROVED, _A.ISSUE, _S.ACTIVE, _BOT),
    (_S.APPROVED, _A.LAPSE, _S.LAPSED, _BOT),
    (_S.APPROVED, _A.FAIL, _S.FAILED, _BOT),
    (_S.APPROVED, _A.REVOKE, _S.ENDING, (Role.CUSTODIAN,)),
    # Of a drill alone: the bot itself opens the credential, tries it, and hands it back (``drill.py``). Rows of
    # their own, so that no real request can ever be opened by the bot, and whoever replays the log sees it.
    (_S.APPROVED, _A.DRILL_REVEAL, _S.APPROVED, _BOT),
    (_S.ACTIVE, _A.DRILL_DONE, _S.ENDING, _BOT),
    # "Show again": the old credential ends before the new one begins.
    (_S.ACTIVE, _A.REVEAL, _S.ACTIVE, (Role.REQUESTER,)),
    (_S.ACTIVE, _A.HOLD, _S.ACTIVE, _BOT),
    (_S.ACTIVE, _A.OPENED, _S.ACTIVE, _BOT),
    (_S.ACTIVE, _A.ABANDON, _S.ACTIVE, _BOT),
    (_S.ACTIVE, _A.REISSUE, _S.ACTIVE, _BOT),
    # Of a credential that was handed out unseen: somebody opened it, nobody did in its time, or a stranger was first.
    (_S.ACTIVE, _A.UNWRAP, _S.ACTIVE, _BOT),
    (_S.ACTIVE, _A.UNOPENED, _S.ACTIVE, _BOT),
    (_S.ACTIVE, _A.INTERCEPT, _S.ENDING, (Role.REQUESTER,)),
    (_S.ACTIVE, _A.WARN, _S.ACTIVE, _BOT),
    (_S.ACTIVE, _A.RELEASE, _S.ENDING, (Role.REQUESTER,)),
    (_S.ACTIVE, _A.REVOKE, _S.ENDING, (Role.CUSTODIAN,)),
    (_S.ACTIVE, _A.EXPIRE, _S.ENDING, _BOT),
    # Vault no longer has it before its time: revoked there by somebody, or Vault has lost data.
    (_S.ACTIVE, _A.LOSE, _S.ENDING, _BOT),
    (_S.ENDING, _A.ESCALATE, _S.ENDING, _BOT),
    (_S.ENDING, _A.END, _S.ENDED, _BOT),
    # A review is somebody's to file; who that is may change. Some need two reviewers: then the first changes no state.
    (_S.ENDED, _A.ASSIGN, _S.ENDED, _BOT),
    (_S.ENDED, _A.REASSIGN, _S.ENDED, (Role.OVERSEER,)),
    (_S.ENDED, _A.REMIND, _S.ENDED, _BOT),
    (_S.ENDED, _A.REVIEW_ESCALATE, _S.ENDED, _BOT),
    (_S.ENDED, _A.REVIEW_FIRST, _S.ENDED, (Role.REVIEWER,)),
    (_S.ENDED, _A.REVIEW_SECOND, _S.REVIEWED, (Role.REVIEWER,)),
    (_S.ENDED, _A.REVIEW, _S.REVIEWED, (Role.REVIEWER,)),
)

# Said when an action comes in a state that does not have it. Each says what is so now.
_NOW: Final = {
    State.PENDING: "is still waiting for its custodians",
    State.APPROVED: "is approved and its credential has not been opened yet",
    State.ACTIVE: "is active: its credential is out",
    State.ENDING: "is being ended: its credential is being taken back",
    State.ENDED: "has ended and is waiting for its review",
    State.REVIEWED: "has ended and was reviewed",
    State.DENIED: "was denied",
    State.WITHDRAWN: "was withdrawn by its requester",
    State.LAPSED: "has lapsed: nobody acted on it in time",
    State.FAILED: "failed: no credential could be issued",
}


def now_is(state: State) -> str:
    """Return the half sentence that says what a state means, for "BG-7KQ2 …"."""
    return _NOW[state]


def allowed_roles(state: State | None, action: Action) -> frozenset[Role]:
    """Return who may take ``action`` in ``state``; empty when the table has no such row."""
    move = TRANSITIONS.get((state, action))
    return move.roles if move else frozenset()


def step(state: State | None, action: Action, roles: Collection[Role], *, request: str = "The request") -> Move:
    """Return the move, or refuse.

    Raises :class:`Conflict` when the table has no such row, then :class:`NotAllowed` when the row is not open to any of
    ``roles``. The order matters: a stranger learns that a request is over, never that he would have been let in.
    """
    move = TRANSITIONS.get((state, action))
    if move is None:
        if state is None:
            raise Conflict(f"{request} does not exist.")
        raise Conflict(f"{request} {now_is(state)}, so this can no longer be done. Nothing was changed.")
    if move.roles.isdisjoint(roles):
        wanted = " or ".join(sorted(role.value for role in move.roles))
        raise NotAllowed(f"Only the {wanted} of {request} may do this. Nothing was changed.")
    return move


def mermaid() -> str:
    """Return the table as a Mermaid state diagram; the README holds exactly this text."""
    lines = ["stateDiagram-v2"]
    for move in TRANSITIONS.values():
        source = "[*]" if move.source is None else move.source.value
        lines.append(f"    {source} --> {move.target.value}: {move.action.value.replace(':', ' ')}")
    lines += [f"    {state.value} --> [*]" for state in State if state in FINAL]
    return "\n".join(lines) + "\n"
