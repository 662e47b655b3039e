"""Whose is a line of a target's log?

Rules
-----
* The identity decides: the name at the target that the grant carries, or the accessor of its token. Nothing that the
  responder could write does.
* A name that is made after a request is that request's only if it is the one on record, or if none is: the bot died
  after it was made, or Vault handed it out unseen.
* An account that exists is whose grant it was at that time; outside of the grants nobody has it.
* What must not be there, and is nobody's, is a stranger's: a name with our mark, a line that says of itself that it is
  a request's and is not, a call of anybody else's that makes a level's credential.
* What a rehearsal of a level does is nobody's either, but it is known: a rehearsal is on record before it begins.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlmodel import col, or_, select

from storage.audit import Actor, parse
from storage.commands import OTHER_CLOCK
from storage.models import Entry, Grant, Request
from workflows.captures.seam import Kind, Line
from workflows.engines import ENGINES
from workflows.engines.seam import Exclusive
from workflows.engines.token import TOKEN_STORE
from workflows.trial import LIFE, TRY

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from sqlmodel import Session

    from workflows.policy import Policy

# What begins so is named by our engines after a request (``engines/naming.py``).
_MARK: Final = re.compile(r"bg-([0-9a-z]{4,12})-.*", re.DOTALL)
_REQUEST: Final = re.compile(r"BG-[0-9A-Z]{4,12}", re.ASCII)
# And what begins so, after a rehearsal of a level (``trial.py``).
_TRIAL: Final = re.compile(r"(check-[0-9a-f]{8})-.*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a line is. ``name`` is the identity's, as it is stored; ``database`` the level's own, where it has one."""

    request_id: str
    name: str
    actor: Actor
    ended_at: datetime | None
    database: str | None


class _Held:
    """A grant, with what is asked of it for each line: past the object mapper, which takes its time."""

    __slots__ = ("accessor", "begun", "ended", "identity", "is_shared", "owner", "request_id")

    def __init__(self, grant: Grant, actor: Actor) -> None:
        self.request_id = grant.request_id
        self.identity = grant.identity
        self.accessor = grant.accessor
        self.begun = (grant.accessor_at or grant.intended_at) - OTHER_CLOCK
        self.ended = None if grant.ended_at is None else grant.ended_at + OTHER_CLOCK
        self.is_shared = isinstance(ENGINES[grant.engine], Exclusive)
        # Of a token its accessor, by which it can be ended, is not stored in clear.
        name = grant.identity or f"{grant.request_id}-{grant.number}".lower()
        self.owner = Owner(grant.request_id, name, actor, grant.ended_at, grant.options.get("database"))

    def is_within(self, at: datetime) -> bool:
        """Whether it was out at that time, by whatever clock."""
        return self.begun <= at and (self.ended is None or at <= self.ended)


class Owners:
    """Whose the lines of a batch are, as the grants on record say at this moment."""

    def __init__(self, session: Session, policy: Policy, lines: Iterable[Line]) -> None:
        names: set[str] = set()
        requests: set[str | None] = set()
        calls: list[Line] = []
        tried: list[Line] = []
        for line in lines:
            names.add(line.identity)
            requests.add(line.request)
            if line.kind is Kind.CALL:
                calls.append(line)
            if _trial(line) is not None:
                tried.append(line)
        requests.update(map(marked, names))
        asked = sorted(name for name in requests if name is not None and _REQUEST.fullmatch(name))
        # PostgreSQL takes no NUL in a text, and no grant has one.
        named = [name for name in names if name and "\x00" not in name]
        held: list[_Held] = []
        if named or asked:
            query = (
                select(Grant, Request.team, Request.requester)
                .join(Request, col(Request.id) == Grant.request_id)
                .where(
                    or_(
                        col(Grant.identity).in_(named), col(Grant.accessor).in_(named), col(Grant.request_id).in_(asked)
                    )
                )
                .order_by(col(Grant.id))
            )
            held = [_Held(grant, Actor(team, requester)) for grant, team, requester in session.exec(query)]
        self._by_name: dict[str, list[_Held]] = {}
        self._by_request: dict[str, list[_Held]] = {}
        for one in held:
            for name in {one.identity, one.accessor} - {None}:
                self._by_name.setdefault(str(name), []).append(one)
            self._by_request.setdefault(one.request_id, []).append(one)
        self._making = _making(policy) if calls else frozenset()
        self._trials = _trials(session, tried)

    def of(self, line: Line) -> Owner | None:
        """Return whose a line is; None: nobody's that is known."""
        found = self._by_name.get(line.identity) or self._unnamed(line.identity)
        if not found:
            return None
        held = found[-1]
        if len(found) > 1:
            held = next((one for one in reversed(found) if one.is_within(line.at)), held)
        if held.is_shared and not held.is_within(line.at):
            return None
        if line.request is not None and line.request != held.request_id:
            return None
        return held.owner

    def trial(self, line: Line) -> str | None:
        """Return the rehearsal of a level that a line is of, by its name."""
        name = _trial(line)
        return name if name in self._trials else None

    def is_stranger(self, line: Line) -> bool:
        """Whether a line that is nobody's must not be there."""
        if line.kind is Kind.NOTE:
            return False  # nobody got in
        if marked(line.identity) is not None or _TRIAL.fullmatch(line.identity):
            return True
        if line.request is not None and _REQUEST.fullmatch(line.request):
            # What is being opened right now has a token, and its accessor is about to be put on record.
            return not any(one.accessor is None and one.ended is None for one in self._by_request.get(line.request, ()))
        if line.kind is Kind.CALL and line.text.partition(" ")[2].strip("/") in self._making:
            return True
        return line.identity in self._by_name

    def _unnamed(self, identity: str) -> list[_Held]:
        mark = marked(identity)
        if mark is None:
            return []
        held = self._by_request.get(mark, ())
        return [one for one in held if one.identity is None and one.accessor is not None]


def marked(identity: str) -> str | None:
    """Return the request that a name is made after, if it is one of ours."""
    match = _MARK.fullmatch(identity)
    return f"BG-{match[1].upper()}" if match else None


def _trial(line: Line) -> str | None:
    """Return the rehearsal that a line names. A name at the target is its own word, a token's metadata is ours."""
    if match := _TRIAL.fullmatch(line.identity):
        return match[1]
    return line.request if line.kind is Kind.CALL and line.request and not _REQUEST.fullmatch(line.request) else None


def _making(policy: Policy) -> frozenset[str]:
    """Return the paths of Vault where a level's credential is made."""
    settings = [level.settings for account in policy.accounts.values() for level in account.levels.values()]
    paths = [(ENGINES[one.engine].path(one.options).strip("/"), one.token_role) for one in settings]
    # A token that only opens a path is no credential yet: its use of the path is told.
    return frozenset(f"{path}/create/{role}" if path == TOKEN_STORE else path for path, role in paths)


def _trials(session: Session, lines: Sequence[Line]) -> frozenset[str]:
    """Return the names of the trials of a level (``trial.py``) that were on around these lines."""
    if not lines:
        return frozenset()
    first, last = min(line.at for line in lines), max(line.at for line in lines)
    query = select(Entry.body).where(
        Entry.event == TRY, col(Entry.at) >= first - 2 * LIFE, col(Entry.at) <= last + OTHER_CLOCK
    )
    return frozenset(str(parse(body).data.get("name")) for body in session.exec(query) if body is not None)
