"""Would it work tonight? A drill is a request that goes the whole way, and a score of how it went.

Rules
-----
* It is the same path with the same code: the desk opens it, the same custodians are asked and must approve, the issuer
  makes the credential and takes it back, the same proof says that it is gone, the same reviewers file a review. What is
  different: its level opens nothing real, DRILL stands before all that is shown, and the bot does what the requester
  would. It opens the credential with :meth:`Issuer.issue`, logs in with what comes out, and hands it back. That a
  person can press the buttons is known; whether Vault, the target and the people answer is not.
* What the bot does in the place of a person has rows of its own in the table: it can open no real request that way.
* Nobody sees the credential. It is in this file for the length of one login.
* The clock does the rest, and all of it is safe late, twice, in parallel and after a crash: the intent is a
  compare-and-set, a login is on record once, and a score is given once, under the writer's lock.
* A drill that failed names what is to be done about it, by whom and until when.
"""

from __future__ import annotations

import logging
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol

from sqlalchemy import exists
from sqlmodel import col, select

from storage.audit import SYSTEM, read_entries
from storage.models import Entry, FollowUpWord, Request, State
from workflows import policy as rules
from workflows.delivery import Parcel
from workflows.desk import Ask, FollowUp, Staged
from workflows.drill_rules import PassMarks
from workflows.drill_score import LOGIN, SCORE, START, Blame, Came, Told, is_passed, judge
from workflows.engines import ENGINES
from workflows.engines.seam import Rehearsed
from workflows.errors import BreakGlassError, Conflict, NotAllowed, Refused, Unavailable, VaultRefused
from workflows.lifecycle import Action, Role
from workflows.reviewing import asked_for
from workflows.trial import throwaway_key

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from storage.audit import JSON, Actor, Record
    from workflows.desk import Desk
    from workflows.drill_rules import DrillRules
    from workflows.drill_score import Line
    from workflows.engines import Credential
    from workflows.policy import Account, Level

log = logging.getLogger(__name__)

_LETTERS: Final = "23456789ABCDEFGHJKMNPQRSTVWXYZ"
_AT_ONCE: Final = 4
_MOST: Final = 50  # that are not scored yet
_AGAIN: Final = timedelta(seconds=5)  # between two tries to open a credential
_MEND_WITHIN: Final = timedelta(days=14)  # what a failed drill has shown
_WORDS: Final = 500


class Post(Protocol):
    """Whether those who are told of a request have been. It knows how people are told; this file does not."""

    def __call__(self, request: Request, records: list[Record], /) -> Told:
        """Return how late the latest message was, and which are missing. Raises DatabaseDown."""


def nobody_is_told(_request: Request, _records: list[Record]) -> Told:
    """Return that nothing was owed: for a desk without followers."""
    return Told(timedelta(0))


class Drills:
    """Begins drills, carries them through, and scores them. ``told``: who knows whether messages arrived."""

    def __init__(self, desk: Desk, *, told: Post = nobody_is_told) -> None:
        self._desk = desk
        self._told = told
        self._tried: dict[str, datetime] = {}  # a courtesy to Vault; nothing depends on it

    # ------------------------------------------------------------------------------------ beginning

    def start(self, actor: Actor, name: str, *, now: datetime) -> Request:
        """Begin a drill of an account: its responders, its custodians and its owner may.

        Raises :class:`NotAllowed`, :class:`Conflict` while one is under way, :class:`Unavailable`.
        """
        desk = self._desk
        with desk.attempt(actor, START, about={"account": name[:40]}, now=now):
            if actor.team != desk.team:
                raise NotAllowed("Only people of this workspace may begin a drill here.", code="other_workspace")
            account, _ = self._account(name)
            roster = rules.gather(desk.directory, desk.policy, account.name, (actor.person,))
            if not rules.may_drill(roster, account, actor.person):
                raise NotAllowed(f"Only responders, custodians and the owner of {account.title} may begin a drill.")
            running = next((row for row in self.running() if row.account == account.name), None)
            if running is not None:
                raise Conflict(f"{running.drill} of {account.title} is under way ({running.id}).", code="in_progress")
        return self.begin(actor, account.name, actor.person, why="asked for", now=now)

    def begin(self, actor: Actor, name: str, requester: str, *, why: str, now: datetime) -> Request:
        """Open a drill's request in the name of ``requester``. ``actor`` is the bot when it was due by itself."""
        account, about = self._account(name)
        level = account.levels[about.level]
        drill = self._new_id()
        ask = Ask(
            account=account.name,
            level=level.name,
            threshold=next(iter(account.thresholds)),
            reason=f"This is drill {drill}: nothing has happened. Please decide as if it had.",
            standard_path="None of it: a drill is to show whether emergency access works.",
            incident=drill,
            duration=level.default,
            public_key=throwaway_key() if ENGINES[level.settings.engine].needs_public_key else "",
        )
        row = self._desk.open(actor, ask, drill=Staged(drill, requester), now=now)
        marks: dict[str, JSON] = {leg: int(getattr(about.marks, leg).total_seconds()) for leg in about.marks.__slots__}
        told: dict[str, JSON] = {"drill": drill, "account": account.name, "level": level.name, "why": why}
        self._desk.record(
            START, actor, told | {"announced": about.is_announced, "marks": marks}, request_id=row.id, now=now
        )
        return row

    def running(self) -> list[Request]:
        """Return the drills without a score, the newest first."""
        scored = exists().where(col(Entry.request_id) == col(Request.id), col(Entry.event) == SCORE)
        query = select(Request).where(col(Request.drill).is_not(None), ~scored)
        with self._desk.database.read() as session:
            return list(session.exec(query.order_by(col(Request.opened_at).desc()).limit(_MOST)))

    def _account(self, name: str) -> tuple[Account, DrillRules]:
        account = self._desk.policy.accounts.get(name)
        if account is None:
            raise NotAllowed("The policy has no account of that name.", code="unknown_account")
        if account.drill is None:
            raise NotAllowed(f"The policy has no drills of {account.title}: its owner can add them.", code="no_drills")
        return account, account.drill

    def _new_id(self) -> str:
        with self._desk.database.read() as session:
            for length in (4, 4, 4, 5, 6, 7):
                name = "DR-" + "".join(secrets.choice(_LETTERS) for _ in range(length))
                if session.exec(select(Request.id).where(Request.drill == name)).first() is None:
                    return name
        raise Unavailable("No free drill number was found. Try again.")

    # ------------------------------------------------------------------------------------ going on

    def tick(self, *, now: datetime) -> int:
        """Do what each drill waits for; return how many there are. One that fails does not hold up the others."""
        rows = self.running()
        if rows:
            with ThreadPoolExecutor(max_workers=min(_AT_ONCE, len(rows)), thread_name_prefix="drill") as pool:
                list(pool.map(lambda row: self._one(row, now), rows))
        return len(rows)

    def _one(self, row: Request, now: datetime) -> None:
        try:
            self.advance(row.id, now=now)
        except BreakGlassError as error:
            log.warning("%s: not done this time: %s (%s)", row.id, error.sentence, error.reason)
        except Exception:
            log.exception("%s: the drill could not go on; it is looked at again", row.id)

    def advance(self, request_id: str, *, now: datetime) -> bool:
        """Do what one drill waits for; return whether it has its score. Raises BreakGlassError: it is tried again."""
        began = time.monotonic()
        case, records = self._desk.case(request_id), self._records(request_id)
        has_login = any(record.event == LOGIN for record in records)
        level = self._desk.names(case)[1]
        if level is not None and not has_login:
            if case.state is State.APPROVED and self._may_try(case.request, now):
                self._try(case.request, level, records, now)
            elif case.state is State.FAILED:
                why = next((str(r.data.get("why")) for r in reversed(records) if r.event == Action.FAIL), "")
                self._note_login(request_id, {"ok": False, **self._blame(level, why)}, now)
            elif case.state is State.ACTIVE and self._is_abandoned(request_id, now):
                # The bot died between the credential and the login. What was out is taken back all the same.
                why = "The bot stopped before it could log in."
                self._note_login(request_id, {"ok": False, "blame": Blame.TARGET.value, "why": why}, now)
                has_login = True
        if has_login and case.state is State.ACTIVE:
            self._hand_back(request_id, now)
        return self._score(request_id, now=now + timedelta(seconds=time.monotonic() - began))

    def _records(self, request_id: str) -> list[Record]:
        with self._desk.database.read() as session:
            return read_entries(session, request_id=request_id)

    def _may_try(self, row: Request, now: datetime) -> bool:
        last = self._tried.get(row.id)
        return last is None or now - last >= _AGAIN

    def _is_abandoned(self, request_id: str, now: datetime) -> bool:
        issued = [g.issued_at for g in self._desk.case(request_id).grants if g.issued_at is not None]
        return bool(issued) and max(issued) + self._desk.patience < now

    def _try(self, row: Request, level: Level, records: list[Record], now: datetime) -> None:
        """Open the credential, log in, hand it back. Whatever comes of it, nothing of it is kept."""
        began = time.monotonic()
        self._tried[row.id] = now
        while len(self._tried) > _MOST:
            self._tried.pop(next(iter(self._tried)))

        def later() -> datetime:
            return now + timedelta(seconds=time.monotonic() - began)

        try:
            intent = self._desk.reveal_drill(row.id, now=now)
            made = self._desk.issue(intent, now=now)
        except (Refused, Unavailable, VaultRefused) as error:
            if isinstance(error, Conflict) and error.reason in {"raced", "ended", "too_slow"}:
                return  # another bot has it, or somebody ended it
            # In progress: another bot has it, or what was begun cannot be cleared up since something is down.
            may_pass = error.reason in {"in_use", "in_progress", "not_recorded"} or isinstance(error, Unavailable)
            if not may_pass or later() > self._give_up_at(row, records):
                blame = (
                    {"blame": Blame.CAPTURE.value, "why": error.sentence[:_WORDS]}
                    if error.reason == "not_recorded"
                    else self._blame(level, error.sentence)
                )
                self._note_login(row.id, {"ok": False, **blame}, later())
            return
        told = self._log_in(row, level, made)
        self._note_login(row.id, told, later())
        self._hand_back(row.id, later())

    def _give_up_at(self, row: Request, records: list[Record]) -> datetime:
        quorum = next((record.at for record in records if record.event == Action.QUORUM), row.state_at)
        return quorum + self._marks(row).credential

    def _log_in(self, row: Request, level: Level, made: Credential | Parcel) -> dict[str, JSON]:
        """Log in at the target as the responder would, and try what it opens: no more than the level says."""
        engine = ENGINES[level.settings.engine]
        if isinstance(made, Parcel):  # the policy's reader refuses a rehearsal level with such a delivery
            return {"ok": False, "blame": Blame.CREDENTIAL.value, "why": "The bot was not given the credential."}
        if not isinstance(engine, Rehearsed):
            return {"ok": True, "seen": ["a credential was issued; this engine has no login that the bot could try"]}
        account = self._desk.policy.accounts.get(row.account)
        real = [
            one.settings.options
            for one in (account.real_levels.values() if account else ())
            if one.settings.engine == level.settings.engine
        ]
        try:
            return {"ok": True, "seen": list(engine.rehearse(made, level.settings.options, real))}
        except BreakGlassError as error:
            return {"ok": False, "blame": Blame.TARGET.value, "why": error.sentence[:_WORDS]}

    def _blame(self, level: Level, why: str) -> dict[str, JSON]:
        """Say which part kept a credential from coming: where the target does not answer Vault is not at fault."""
        engine = ENGINES[level.settings.engine]
        try:
            engine.identities(self._desk.vault, level.settings.options)
        except Unavailable as error:
            return {"blame": Blame.TARGET.value, "why": error.sentence[:_WORDS]}
        except BreakGlassError:
            pass  # the bot may not look there, so it cannot tell them apart
        return {"blame": Blame.CREDENTIAL.value, "why": why[:_WORDS]}

    def _note_login(self, request_id: str, told: Mapping[str, JSON], now: datetime) -> None:
        with self._desk.turn(request_id, now=now) as turn:
            said = turn.session.exec(
                select(Entry.seq).where(Entry.request_id == request_id, Entry.event == LOGIN).limit(1)
            ).first()
            if said is None:
                turn.note(LOGIN, {"drill": turn.row.drill, **told})

    def _hand_back(self, request_id: str, now: datetime) -> None:
        with self._desk.turn(request_id, now=now) as turn:
            if turn.state is State.ACTIVE:
                turn.move(Action.DRILL_DONE, SYSTEM, (Role.SYSTEM,), due_at=now, ended_by="done")
        self._desk.finish(request_id, now=now)

    # ------------------------------------------------------------------------------------ scoring

    def lines(self, row: Request, *, now: datetime) -> list[Line]:
        """Return the scorecard as it stands."""
        records = self._records(row.id)
        account = self._desk.policy.accounts.get(row.account)
        level = account.levels.get(row.level) if account else None
        return judge(
            records,
            self._marks(row),
            told=self._told(row, records),
            is_captured=level is not None and level.capture_source is not None,
            give_up=self._desk.longest_opening,
            now=now,
        )

    def _marks(self, row: Request) -> PassMarks:
        account = self._desk.policy.accounts.get(row.account)
        return account.drill.marks if account is not None and account.drill is not None else PassMarks()

    def _score(self, request_id: str, *, now: datetime) -> bool:
        row = self._desk.row(request_id)
        lines = self.lines(row, now=now)
        if not lines or any(line.came is Came.WAITING for line in lines):
            return False
        passed = is_passed(lines)
        account = self._desk.policy.accounts.get(row.account)
        told: dict[str, JSON] = {
            "drill": row.drill,
            "account": row.account,
            "passed": passed,
            "lines": [dict(line.data()) for line in lines],
        }
        todo: list[FollowUp] = []
        if not passed and account is not None:
            failed = [line.leg.value.replace("_", " ") for line in lines if line.came is Came.FAILED]
            what = f"{row.drill} of {account.name} failed ({', '.join(failed)}): mend it and drill again."
            todo = [FollowUp(what, account.owner, (now + _MEND_WITHIN).date())]
        with self._desk.turn(request_id, now=now) as turn:
            query = select(Entry.seq).where(Entry.request_id == request_id, Entry.event == SCORE)
            if turn.session.exec(query.limit(1)).first() is None:
                made = asked_for(turn.session, row.drill or row.id, todo, request_id=row.id, now=now)
                turn.note(SCORE, told | {"follow_up": dict(made[0])} if made else told)
                for one in made:
                    turn.note(FollowUpWord.OPEN.value, one)
        self._tried.pop(request_id, None)
        return True
