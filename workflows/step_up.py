"""Is it the custodian who approves, or only their Slack session? A code of their second factor tells.

A level with ``step_up: totp`` takes, for each approval, a code of the approving custodian's authenticator, which
Vault's TOTP engine checks. Whoever has only the Slack session, or only the bot, cannot make one.

Rules
-----
* The bot may have codes checked and nothing else: it can neither make a key nor read one (``vault_plan.py``).
* A code works once, over all requests, bots and restarts. Vault remembers used codes in its memory only, so each is
  claimed by a row **before** Vault is asked; a crash between the two costs a code and gives nothing.
* A try is counted before Vault is asked as well, or a thousand tries at the same moment would be one.
* Five wrong codes within 15 minutes lock the person's factor for 15 minutes, on record, and security is called.
* A code that could not be checked was no try. Nothing is decided without an answer.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlmodel import col, update

from storage.audit import append, write_time
from storage.models import Request, StepUp
from workflows.door import Door
from workflows.errors import BreakGlassError, Conflict, Invalid, NotAllowed
from workflows.lifecycle import Action
from workflows.policy_file import say_duration
from workflows.step_up_rules import mount_of
from workflows.vault_answers import CodeAnswer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from storage.audit import Actor
    from storage.database import Database, Write
    from storage.models import Decision
    from workflows.door import Case, Turn
    from workflows.policy import Level, Policy, Roster
    from workflows.vault import Vault

ENROL: Final = "person:enrol"  # somebody has a second factor now
UNENROL: Final = "person:unenrol"
LOCK: Final = "person:lock"  # too many wrong codes: none of theirs counts for a while

MOST_WRONG: Final = 5
WITHIN: Final = timedelta(minutes=15)
LOCKED_FOR: Final = timedelta(minutes=15)
# A code is valid for 90 seconds by Vault's clock. Longer here, since several bots' clocks may differ.
KEPT: Final = timedelta(minutes=5)

_CODE: Final = re.compile("[0-9]{6}")
_LOOKED_AT: Final = "0"  # no code at all, so that Vault says whether it knows the key and nothing else


def key_name(team: str, person: str) -> str:
    """Return the name of a person's key at Vault."""
    return f"{team}-{person}"


def counting(level: Level, approvals: Iterable[Decision]) -> list[Decision]:
    """Return the approvals that count for the level: where it takes a code, those that were given with one.

    (A policy may have become stricter between two approvals.)
    """
    return [said for said in approvals if level.step_up is None or said.step_up == level.step_up]


def not_enrolled(person: str) -> NotAllowed:
    """Return what is said to somebody who has no second factor yet."""
    return NotAllowed(
        "This level takes a code of your authenticator, and you have none enrolled. Have whoever administers Vault run "
        f"`breakglass enrol {person}` with you. Until then another custodian must approve.",
        code="not_enrolled",
    )


def is_enrolled(vault: Vault, policy: Policy, team: str, person: str) -> bool:
    """Whether Vault has a key of the person's. It takes no right but to have codes checked.

    Raises Unavailable, VaultRefused.
    """
    return vault.check_code(mount_of(policy), key_name(team, person), _LOOKED_AT) is not CodeAnswer.UNKNOWN


def enrolled(vault: Vault, policy: Policy, roster: Roster) -> dict[str, bool]:
    """Return of each able custodian of whom a level takes codes whether they could give one. As :func:`is_enrolled`."""
    accounts = [one for one in policy.accounts.values() if any(level.step_up for level in one.levels.values())]
    people = dict.fromkeys(who for one in accounts for who in roster.resolve(one.custodians) if roster.able(who))
    return {who: is_enrolled(vault, policy, roster.people[who].team, who) for who in people}


class SecondFactor(Door):
    """Checks codes. Safe from many threads and from several processes on one database."""

    def __init__(self, database: Database, vault: Vault, policy: Callable[[], Policy]) -> None:
        super().__init__(database)
        self._vault = vault
        self._policy = policy

    @property
    def mount(self) -> str:
        """Where the TOTP engine is."""
        return mount_of(self._policy())

    def is_needed(self, request_id: str) -> bool:
        """Whether an approval of the request takes a code; of one that is not known, no."""
        with self._read() as session:
            row = session.get(Request, request_id)
        account = self._policy().accounts.get(row.account) if row is not None else None
        level = account.levels.get(row.level) if account is not None and row is not None else None
        return level is not None and level.step_up is not None

    def is_enrolled(self, team: str, person: str) -> bool:
        """Whether Vault has a key of the person's. Raises Unavailable, VaultRefused."""
        return is_enrolled(self._vault, self._policy(), team, person)

    def must_be_enrolled(self, actor: Actor, case: Case, level: Level | None, *, now: datetime) -> None:
        """Refuse, on record, who could show no factor for an approval of the level. As :meth:`is_enrolled`."""
        if level is None or level.step_up is None:
            return
        with self.attempt(actor, Action.APPROVE, case.request.id, now=now):
            if not self.is_enrolled(actor.team, actor.person):
                raise not_enrolled(actor.person)

    def proved(
        self,
        actor: Actor,
        case: Case,
        level: Level | None,
        code: str | None,
        judge: Callable[..., object],
        *,
        now: datetime,
    ) -> str | None:
        """Return the factor that was shown for an approval; None: the level takes none.

        ``judge(case, proved=…)`` refuses for every other reason, before a code is spent. Raises as :meth:`check`.
        """
        if level is None or level.step_up is None:
            return None
        judge(case, proved=level.step_up)
        self.check(actor, case.request.id, code, now=now)
        return level.step_up

    def check(self, actor: Actor, request_id: str, typed: str | None, *, now: datetime) -> None:
        """Return when the code is the actor's and was not used before; the attempt is the caller's to record.

        A wrong code is put on record here, and raises :class:`Invalid` with the field ``code``: the form stays. Raises
        :class:`Conflict` without a code and while locked, :class:`NotAllowed` for who has no factor, Unavailable,
        VaultRefused.
        """
        if typed is None:
            raise Conflict(
                "An approval of this level takes a code of your authenticator. Press Approve on the request's newest "
                "card: it asks for one. Nothing was changed.",
                code="no_code",
            )
        code = "".join(typed.split())
        if not _CODE.fullmatch(code):
            raise _invalid("A code has six digits: type the one that your authenticator shows now.")
        # 1. Nobody else can use it from here on, and it counts as a try.
        is_used = self._claim(actor, request_id, code, now)
        # 2. Ask.
        try:
            name = key_name(actor.team, actor.person)
            said = CodeAnswer.USED if is_used else self._vault.check_code(self.mount, name, code)
        except BreakGlassError:
            self._forget(actor, request_id, code, now)
            raise
        # 3. What it was.
        if said is CodeAnswer.RIGHT:
            self._clear(actor, request_id, now)
        elif said is CodeAnswer.UNKNOWN:
            self._forget(actor, request_id, code, now)
            raise not_enrolled(actor.person)
        else:
            self._refuse(actor, request_id, said, now)

    def note_used(self, team: str, person: str, code: str, *, now: datetime) -> None:
        """Have a code count as used that was asked for elsewhere: at the enrolment."""
        with self._write() as session:
            row = _row(session, team, person)
            row.used = [*_kept(row, now), _used(team, person, code, now)]
            session.add(row)

    def _claim(self, actor: Actor, request_id: str, code: str, now: datetime) -> bool:
        """Count the try and claim the code; say whether it was claimed before."""
        with self.turn(request_id, now=now) as turn:
            row = _row(turn.session, actor.team, actor.person)
            if row.since is None or now - row.since >= WITHIN:
                row.since, row.tries = now, 0
            locked_until = row.locked_until or now
            if row.tries >= MOST_WRONG:  # others are on their way to Vault at this moment, or a bot died there
                locked_until = max(locked_until, row.since + WITHIN)
            if now < locked_until:
                raise Conflict(
                    f"Too many wrong codes were typed in your name: none is taken for another "
                    f"{say_duration(locked_until - now)}. Another custodian can approve. If it was not you, call "
                    "security now.",
                    code="locked",
                )
            kept, mine = _kept(row, now), _used(actor.team, actor.person, code, now)
            is_used = any(one[0] == mine[0] for one in kept)
            row.tries += 1
            row.used = [*(one for one in kept if one[0] != mine[0]), mine]
            turn.session.add(row)
        return is_used

    def _forget(self, actor: Actor, request_id: str, code: str, now: datetime) -> None:
        """Take a claim back: Vault did not say what the code is."""
        with self.turn(request_id, now=now) as turn:
            row = _row(turn.session, actor.team, actor.person)
            gone = _used(actor.team, actor.person, code, now)[0]
            row.used = [one for one in row.used if one[0] != gone]
            row.tries = max(0, row.tries - 1)
            turn.session.add(row)

    def _clear(self, actor: Actor, request_id: str, now: datetime) -> None:
        with self.turn(request_id, now=now) as turn:
            row = _row(turn.session, actor.team, actor.person)
            row.tries, row.since = 0, None
            turn.session.add(row)

    def _refuse(self, actor: Actor, request_id: str, said: CodeAnswer, now: datetime) -> None:
        """Put a wrong or used code on record, and with one too many that the person is locked."""
        if said is CodeAnswer.USED:
            sentence = "This code was used or tried already, and each is taken once. Wait for the next one."
        else:
            sentence = "This is not the code that your authenticator shows now. Look again; mind the phone's clock."
        with self.turn(request_id, now=now) as turn:
            row = _row(turn.session, actor.team, actor.person)
            _note(turn, Action.APPROVE.value, actor, {"said": sentence}, refused=f"{said.value}_code")
            if row.tries >= MOST_WRONG and (row.locked_until is None or row.locked_until <= now):
                row.locked_until = now + LOCKED_FOR
                turn.session.add(row)
                told = {"person": actor.person, "wrong": row.tries, "locked_until": write_time(row.locked_until)}
                _note(turn, LOCK, actor, told)
                sentence += (
                    f" That was one too many: no code of yours is taken for {say_duration(LOCKED_FOR)}, and security "
                    "is called."
                )
        raise _invalid(sentence, f"{said.value}_code")


def _invalid(sentence: str, code: str | None = None) -> Invalid:
    return Invalid(sentence, fields={"code": sentence}, code=code)


def _row(session: Write, team: str, person: str) -> StepUp:
    return session.get(StepUp, (team, person)) or StepUp(team=team, person=person, tries=0, used=[])


def _kept(row: StepUp, now: datetime) -> list[list[Any]]:
    return [one for one in row.used if datetime.fromtimestamp(one[1], UTC) > now]


def _used(team: str, person: str, code: str, now: datetime) -> list[Any]:
    """Return how a used code is kept. (Of six digits a hash hides nothing, and a used code is no secret.)"""
    name = hashlib.sha256(f"{key_name(team, person)} {code}".encode()).hexdigest()
    return [name, int((now + KEPT).timestamp())]


def _note(turn: Turn, event: str, actor: Actor, data: dict[str, Any], *, refused: str | None = None) -> None:
    """Append an entry that moves nothing, in the transaction of what it tells of."""
    name = turn.row.id
    made = append(turn.session, event=event, at=turn.now, actor=actor, request_id=name, refused=refused, data=data)
    turn.session.exec(update(Request).where(col(Request.id) == name).values(last_seq=made.seq))
