"""How does a request change? Through here only.

Every state is written by :meth:`Turn.move`, in one database transaction that checks the row of ``TRANSITIONS``,
compares and sets the version, and appends the entry. No entry, no change; no change, no entry.

Rules
-----
* Facts about people are gathered before the transaction (they come over the network) and judged inside it.
* A refusal is an entry too, in a transaction of its own, since the one that it refused was rolled back. Wrong words
  (:class:`Invalid`) are not: nothing was attempted.
* ``now`` is an argument; nothing here reads a clock.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from sqlmodel import col, select, update

from storage import closing
from storage.audit import SYSTEM, Actor, append, parse
from storage.database import Clash, DatabaseDown
from storage.models import Answer, Decision, Entry, FollowUp, Grant, Request, Review, SecondReview, State
from workflows.errors import Conflict, Invalid, Refused, Unavailable
from workflows.lifecycle import Action, Role, step

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from sqlmodel import Session

    from storage.database import Database, Write
    from workflows.policy import Policy

POLICY_LOAD: Final = "policy:load"
POLICY_TEXT: Final = "policy:text"
_PART: Final = 12_000  # characters of a policy in one entry: of four bytes each, they fit
_AT_ONCE: Final = 100  # closing entries in one transaction: a click must not wait for all of them


@dataclass(frozen=True, slots=True)
class Case:
    """A request with everything that was said and done about it, detached from the database."""

    request: Request
    decisions: tuple[Decision, ...]
    grants: tuple[Grant, ...]
    review: Review | None
    second: SecondReview | None = None
    follow_ups: tuple[FollowUp, ...] = ()

    @property
    def state(self) -> State:
        """The request's state."""
        return State(self.request.state)

    @property
    def approvers(self) -> tuple[str, ...]:
        """User ids of the custodians who approved, in order."""
        return tuple(d.person for d in self.decisions if d.answer == Answer.APPROVE)


@dataclass(frozen=True, slots=True)
class Turn:
    """One transaction on one request: its row as it is now, under the writer's lock."""

    session: Write
    row: Request
    now: datetime

    @property
    def state(self) -> State:
        """The request's state, as of the last move."""
        return State(self.row.state)

    def case(self) -> Case:
        """Return the request and its records as they are now."""
        return case_of(self.session, self.row.id)

    def decisions(self) -> list[Decision]:
        """Return what the custodians said, in order."""
        return decisions_of(self.session, self.row.id)

    def grants(self) -> list[Grant]:
        """Return the credentials, in order."""
        return grants_of(self.session, self.row.id)

    def move(
        self,
        action: Action,
        actor: Actor = SYSTEM,
        held: Collection[Role] = (Role.SYSTEM,),
        *,
        policy: str | None = None,
        data: Mapping[str, Any] | None = None,
        **changes: Any,  # noqa: ANN401 - columns have many types
    ) -> None:
        """Make one move: the table's row, compare-and-set, the entry. Nothing else writes a state.

        ``changes`` are further columns of the request. Raises :class:`Conflict` or :class:`NotAllowed` from the table,
        and :class:`Conflict` when the row's version is no longer the one read.
        """
        row = self.row
        opening = action is Action.OPEN
        move = step(None if opening else self.state, action, held, request=row.id)
        version = row.version if opening else row.version + 1
        entry = append(
            self.session,
            event=action.value,
            at=self.now,
            actor=actor,
            request_id=row.id,
            source=move.source.value if move.source else None,
            target=move.target.value,
            version=version,
            policy=policy or row.policy_hash,
            data=_plain(data or {}),
        )
        values: dict[str, Any] = {"state": move.target.value, "version": version, "last_seq": entry.seq, **changes}
        if not move.is_self:
            values |= {"state_version": version, "state_at": self.now}
        done = self.session.execute(
            update(Request)
            .where(col(Request.id) == row.id, col(Request.version) == row.version)
            .values(**values)
            .returning(Request),
            # The row in hand becomes what was written, without another question.
            execution_options={"populate_existing": True, "synchronize_session": False},
        )
        if done.scalar_one_or_none() is None:
            raise Conflict(f"{row.id} was changed by somebody else at the same moment. Look at it again.", code="raced")

    def note(self, event: str, data: Mapping[str, Any], actor: Actor = SYSTEM) -> None:
        """Append an entry about the request that moves nothing, in this turn's transaction."""
        append_entry(self.session, self.row.id, event=event, actor=actor, at=self.now, data=data)

    def look_again(self, due_at: datetime | None) -> None:
        """Set when the tick must next look at the request: no change of it, so no entry."""
        self.session.exec(update(Request).where(col(Request.id) == self.row.id).values(due_at=due_at))
        self.session.refresh(self.row)

    def close(self, grant: Grant) -> None:
        """Write down that nothing of a credential is left; the caller makes the move that says so."""
        grant.ended_at = self.now
        self.session.add(grant)
        self.session.flush()


class Door:
    """Opens turns, keeps refusals, and turns the database's errors into sentences."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def case(self, request_id: str) -> Case:
        """Return the request and its records; raises :class:`Invalid` when there is none of that name."""
        with self._read() as session:
            return case_of(session, request_id)

    def row(self, request_id: str) -> Request:
        """Return only the request's own row, for those on whom somebody waits; errors as :meth:`case`."""
        with self._read() as session:
            return _row_of(session, request_id)

    def record(
        self, event: str, actor: Actor, data: Mapping[str, Any], *, request_id: str | None = None, now: datetime
    ) -> None:
        """Append an entry that changes no state (an export, say)."""
        with self._write() as session:
            append_entry(session, request_id, event=event, actor=actor, at=now, data=data)

    def close_records(self, request_ids: Iterable[str], *, now: datetime) -> int:
        """Append a closing entry to each of these requests to which something was added since its last; count them.

        Their states do not change (``storage/closing.py``). Requests that are not known are passed over.
        """
        closed = 0
        waiting = list(request_ids)
        for at in range(0, len(waiting), _AT_ONCE):
            with self._write() as session:
                for request_id in waiting[at : at + _AT_ONCE]:
                    found = closing.of_request(session, request_id)
                    if found is not None:
                        append_entry(session, request_id, event=closing.EVENT, actor=SYSTEM, at=now, data=found.data())
                        closed += 1
        return closed

    def record_policy(self, policy: Policy, *, now: datetime) -> bool:
        """Put on record which policy is in force from now on, with its text when that is new; say whether it changed.

        An export then holds the very rules that each decision was made under: a decision's hash is that of this text's
        SHA-256 and the custodians (:func:`workflows.policy.in_force`).
        """
        with self._write() as session:
            newest = session.exec(
                select(Entry).where(Entry.event == POLICY_LOAD).order_by(col(Entry.seq).desc())
            ).first()
            if newest is not None and _is_about(newest, policy):
                return False
            told = tell_policy(session, policy, now=now)
            append_entry(session, None, event=POLICY_LOAD, actor=SYSTEM, at=now, data=told)
        return True

    @contextmanager
    def turn(self, request_id: str, *, now: datetime) -> Iterator[Turn]:
        """Begin a transaction on one request; it commits at the end of the block."""
        with self._write() as session:
            row = session.get(Request, request_id)
            if row is None:
                raise Conflict(f"There is no request {request_id}.", code="unknown_request")
            yield Turn(session, row, now)

    @contextmanager
    def attempt(
        self,
        actor: Actor,
        action: Action | str,
        request_id: str | None = None,
        *,
        about: Mapping[str, Any] | None = None,
        now: datetime,
    ) -> Iterator[None]:
        """Put a refusal on record and let it pass on to the person."""
        try:
            yield
        except Invalid:
            raise
        except Refused as refused:
            with self._write() as session:
                known = request_id is not None and session.get(Request, request_id) is not None
                data = {"said": refused.sentence, **(about or {})}
                if request_id is not None and not known:
                    data["asked_for"] = request_id[:40]
                append_entry(
                    session,
                    request_id if known else None,
                    event=action.value if isinstance(action, Action) else action,
                    actor=actor,
                    at=now,
                    refused=refused.reason,
                    data=data,
                )
            raise

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with database_errors(), self.database.read() as session:
            yield session

    @contextmanager
    def _write(self) -> Iterator[Write]:
        with database_errors(), self.database.write() as session:
            yield session


def case_of(session: Session, request_id: str) -> Case:
    """Read a case; raises :class:`Invalid` when there is none of that name."""
    row = _row_of(session, request_id)
    said, grants = tuple(decisions_of(session, row.id)), tuple(grants_of(session, row.id))
    if row.review_due_at is None:
        return Case(row, said, grants, None)
    review = session.get(Review, row.id)
    second = session.get(SecondReview, row.id) if review is not None else None
    asked = select(FollowUp).where(FollowUp.request_id == row.id).order_by(col(FollowUp.id))
    return Case(row, said, grants, review, second, tuple(session.exec(asked)))


def _row_of(session: Session, request_id: str) -> Request:
    row = session.get(Request, request_id)
    if row is None:
        raise Invalid(f"There is no request {request_id[:40]}. Check the number; it looks like BG-7KQ2.")
    return row


def decisions_of(session: Session, request_id: str) -> list[Decision]:
    """Return a request's decisions, in order."""
    return list(session.exec(select(Decision).where(Decision.request_id == request_id).order_by(col(Decision.id))))


def grants_of(session: Session, request_id: str) -> list[Grant]:
    """Return a request's credentials, in order."""
    return list(session.exec(select(Grant).where(Grant.request_id == request_id).order_by(col(Grant.number))))


def tell_policy(session: Write, policy: Policy, *, now: datetime, is_apart: bool = False) -> dict[str, Any]:
    """Put a policy's text on record unless it is; return what the entry that names it says of it.

    ``is_apart``: the text stands in entries of its own whatever its length, so that nothing of it is in force yet.
    """
    told: dict[str, Any] = {"hash": policy.hash}
    known = session.exec(select(Entry).where(col(Entry.event).in_((POLICY_LOAD, POLICY_TEXT))))
    if any(_is_about(entry, policy) for entry in known):
        return told
    text = policy.text
    parts = [text[at : at + _PART] for at in range(0, len(text), _PART)]
    if len(parts) == 1 and not is_apart:
        return {**told, "text": text}
    for number, part in enumerate(parts, start=1):
        piece = {"hash": policy.hash, "part": number, "parts": len(parts), "text": part}
        append_entry(session, None, event=POLICY_TEXT, actor=SYSTEM, at=now, data=piece)
    return {**told, "parts": len(parts)}


def _is_about(entry: Entry, policy: Policy) -> bool:
    """Whether a policy's entry is about this one. One that cannot be read is about none: then the text comes again."""
    try:
        return parse(entry.body or b"").data.get("hash") == policy.hash
    except ValueError:
        return False


def append_entry(session: Write, request_id: str | None, *, data: Mapping[str, Any], **entry: Any) -> None:  # noqa: ANN401
    """Append an entry that moves nothing, and let the request's followers see it."""
    appended = append(session, request_id=request_id, data=_plain(data), **entry)
    if request_id is not None:
        session.exec(update(Request).where(col(Request.id) == request_id).values(last_seq=appended.seq))


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn the database's errors into ours."""
    try:
        yield
    except DatabaseDown as down:
        raise Unavailable(f"The database does not answer, so nothing was changed. Try again. ({down})") from None
    except Clash:
        raise Conflict("Somebody else did this at the same moment. Look at the newest card.", code="raced") from None


def _plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """Turn times into text and leave out what is not known: the log holds plain JSON."""
    return {
        key: value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value
        for key, value in data.items()
        if value is not None
    }
