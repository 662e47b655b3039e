"""What do people see of the log, and how does it get into Slack?

The follower writes three parts of each request, each under a claim by row (``cursors.py``), so that none waits for
another: the card in the incident channel, the direct messages, and the lines of the thread.

Rules
-----
* What is logged is posted, in order, after any outage; nothing is posted that is not logged. What waits is joined.
* No post is lost or doubled. That a post is tried is committed before the call; whatever was tried and has no answer is
  looked up by its metadata before anything is posted again; a batch that was tried stays the same batch.
* A picture has no queue: the newest is drawn, over whatever was there.
* Commands may come by the thousand. They are gathered for a moment, told together, and never so often that another
  request's lines would have to wait; what is dangerous, and whatever is not a command, does not wait for that.
* A call that is limited or fails shuts its lane (``lanes.py``); the claim is given back before anybody waits. No call
  outlives the claim under which it was begun.
* A person who cannot be written to is given up, with the reason; a channel never is, somebody can invite the bot again.
* Several followers on one database are normal, and so is one that vanishes between any two lines of this file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final, Protocol

from bot import asked, attachments, commands, drill_views, reviews, tiers, views
from bot.batches import Batch, has_only_commands, next_batch, owed_file
from bot.calls import (
    DELETED,
    NO_FILES,
    NO_THREAD,
    UNREACHABLE,
    TroubleError,
    call,
    has_file,
    metadata,
    payload_of,
    quiet_client,
    say,
    share,
    upload,
)
from bot.cursors import (
    CARD,
    ERROR,
    FILES,
    GONE,
    LINES,
    Claim,
    Cursors,
    LostError,
    Part,
    Stuck,
    Unit,
    dropping_untried,
    is_over,
    seconds_behind,
    setting,
    stuck,
    until,
)
from bot.lanes import Limits, Turns, back_off
from storage import commands as told
from storage.audit import Damaged, read_entries
from storage.database import DatabaseDown
from storage.followers.runner import BEHIND
from storage.heads import ALARM, ROTATE
from storage.holder import new_holder
from storage.models import Post, Request
from workflows import absence, asking, policy_control
from workflows.drill_score import SCORE
from workflows.errors import Unavailable
from workflows.lifecycle import Action, allowed_roles
from workflows.reconcile import ALARM as ACCESS_ALARM
from workflows.retention import LASTS, PROPOSE, fate
from workflows.step_up import LOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from slack_sdk import WebClient

    from storage.audit import Record
    from storage.database import Database
    from workflows.door import Case
    from workflows.policy import Person, Policy
    from workflows.retention import Fate

log = logging.getLogger(__name__)

_CALL_SECONDS: Final = 10  # for one call
_MARGIN: Final = timedelta(seconds=3)  # by which a claim outlives a call
_AGAIN: Final = 1.0  # seconds until a unit that another follower holds is looked at again
_LONGEST_WAIT: Final = 300.0
_PATIENT_TRIES: Final = 3  # for the id behind a group's handle
# Entries that call security: the log cannot be trusted, or what is out is not what it says.
_CALLS_SECURITY: Final = frozenset({BEHIND, ALARM, ROTATE, ACCESS_ALARM, Action.LOSE, told.GAP, LOCK})
_PICTURE_AGAIN: Final = 5.0  # seconds until a picture that could not be drawn beside its lines is tried again
_ONCE_MORE: Final = timedelta(hours=1)  # until a proposal that cannot be judged is looked at again
_SKEW: Final = timedelta(hours=1)  # by which Slack's clock and ours may differ
_BREATH: Final = 1.0  # seconds between two looks at a request whose commands are being gathered
_FILE_TRIES: Final = 3  # then the thread goes on without the list
_PAGES: Final = 50  # of 200 messages, when a post is looked for

# Slack allows about one post a second in a channel, with short bursts, and 50 updates a minute in a workspace.
_POST_BURST: Final = 4.0
_UPDATE_BURST: Final = 40.0
_UPDATES_PER_SECOND: Final = 50 / 60


class Groups(Protocol):
    """The people, and the id behind a group's handle."""

    def person(self, user_id: str) -> Person | None:
        """As :class:`workflows.policy.Directory`."""

    def members(self, group: str) -> tuple[str, ...] | None:
        """As :class:`workflows.policy.Directory`."""

    def group_id(self, group: str) -> str | None:
        """Return the id (``S…``) of a group; None when there is no such group. Raises Unavailable."""


class _Found(Enum):
    """What came of looking for a post that was tried."""

    THERE = auto()
    ABSENT = auto()
    LATER = auto()  # could not be looked up now
    NEVER = auto()  # nobody can look there


@dataclass(frozen=True, slots=True)
class _Letter:
    """One message of a request as it should stand in Slack."""

    key: str
    target: str
    message: views.Message
    picture: str
    is_wanted: bool  # False: draw it if it is there, do not post it now


class ThreadFollower:
    """Writes Slack from the log. ``wake`` goes into ``database.woken``; ``tick`` is for a clock, every second or so.

    ``case`` and ``policy`` give what is drawn; ``now`` gives aware UTC. ``hold`` is how long a claim lasts whose holder
    has vanished; ``doubt`` is for how long a call that was cut may still be under way in Slack. ``pace=False`` leaves
    the pace to Slack's 429. ``first_wait``: seconds after a first failure. ``courtesy`` is called before each call of
    Slack and may wait a moment for what is more urgent. For so long commands ``gather`` before they are posted, and so
    long is ``between`` two summaries of many. ``active`` says who is active in Slack (``presence.py``); None: nobody.
    """

    def __init__(
        self,
        database: Database,
        client: WebClient,
        *,
        case: Callable[[str], Case],
        policy: Callable[[], Policy],
        directory: Groups,
        now: Callable[[], datetime],
        name: str = "thread",
        holder: str | None = None,
        workers: int = 6,
        hold: timedelta = timedelta(seconds=15),
        doubt: timedelta = timedelta(seconds=2),
        pace: bool = True,
        first_wait: float = 1.0,
        courtesy: Callable[[], object] = lambda: None,
        gather: timedelta = timedelta(seconds=1.5),
        between: timedelta = timedelta(seconds=4),
        active: Callable[[Iterable[str]], Mapping[str, bool | None]] | None = None,
    ) -> None:
        self._database = database
        self._client = quiet_client(client, _CALL_SECONDS)
        self._case = case
        self._policy = policy
        self._directory = directory
        self._now = now
        self._name = name
        self._least_hold = timedelta(seconds=self._client.timeout) + _MARGIN
        self._doubt = doubt
        self._pace = pace
        self._first_wait = first_wait
        self._courtesy = courtesy
        self._workers = workers
        self._threads: list[threading.Thread] = []
        self._turns: Turns[Unit] = Turns(self._limits, _rank, first_wait=first_wait)
        self._cursors = Cursors(
            database, name, holder or new_holder(), hold=max(hold, self._least_hold + _MARGIN), now=now
        )
        self._user_id: str | None = None
        self._active = active
        self._gather = gather
        self._between = between
        # By :func:`time.monotonic`, and only a courtesy: who rests is found by the tick all the same.
        self._drawn: dict[Unit, float] = {}
        self._rests: dict[Unit, float] = {}
        self._summed: dict[Unit, float] = {}

    # ------------------------------------------------------------------------------------ running

    def start(self) -> None:
        """Start the workers, on everything that is waiting."""
        for number in range(self._workers):
            thread = threading.Thread(target=self._work, name=f"{self._name}-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)
        try:
            self.tick()
        except DatabaseDown as down:
            log.warning("the next tick looks for what is to be posted: %s", down)

    def stop(self) -> None:
        """Let each worker finish its call and give back its claim."""
        self._turns.stop()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def wake(self, requests: frozenset[str]) -> None:
        """Follow these requests at once: they have new entries."""
        now = time.monotonic()
        for request_id in requests:
            for part in Part if request_id else (Part.LINES,):
                unit = Unit(part, request_id)
                # Thousands of commands are hundreds of commits: whoever rests runs by itself in a moment.
                if self._rests.get(unit, 0.0) <= now:
                    self._turns.put(unit, unless_parked=part is not Part.DIRECT)

    def tick(self) -> None:
        """Find what is behind its log: after an outage, after a crash, from another bot. Raises DatabaseDown."""
        for unit in self._cursors.behind(self._now()):
            self._turns.put(unit, unless_parked=True)

    def drain(self, timeout: float) -> bool:
        """Work until Slack shows the whole log; False when that takes more than ``timeout`` seconds. For tests.

        Without :meth:`start`, the calling thread does the work.
        """
        until = time.monotonic() + timeout
        while (left := until - time.monotonic()) > 0:
            if self._turns.is_idle():
                behind = self._cursors.behind(None)
                if not behind:
                    return True
                for unit in behind:
                    self._turns.put(unit)
            if self._threads:
                self._turns.wait_until_idle(left)
            elif (next_unit := self._turns.take(left)) is not None:
                self._run(next_unit)
        return False

    def seconds_behind(self) -> float:
        """Return the age of the oldest entry that is not in its thread yet; 0 when there is none."""
        return seconds_behind(self._database, now=self._now(), name=self._name)

    def stuck(self) -> list[Stuck]:
        """Return what fails or was given up, and why."""
        return stuck(self._database, name=self._name)

    def _work(self) -> None:
        while (unit := self._turns.take()) is not None:
            self._courtesy()
            self._run(unit)

    def _run(self, unit: Unit) -> None:
        blocked: set[tuple[str, ...]] = set()
        try:
            blocked = self._follow(unit)
        except LostError:
            log.warning("%s: another follower has taken over", unit.request_id)
            self._turns.put(unit, after=_AGAIN)
        except DatabaseDown as down:
            log.warning("%s: will be posted later: %s", unit.request_id, down)
            self._turns.put(unit, after=_AGAIN)
        except Exception:
            # The worker must live on; the claim runs out by itself.
            log.exception("%s: could not be followed", unit.request_id)
            self._turns.put(unit, after=_LONGEST_WAIT)
        finally:
            self._turns.done(unit, blocked)

    def _limits(self, lane: str) -> Limits:
        kind = lane.partition(" ")[0]
        if kind == "channel":
            return Limits(room=2)  # two workers at the most are lost to a channel that does not answer
        if kind == "post":
            return Limits(_POST_BURST, 1.0, room=1) if self._pace else Limits(room=1)
        if kind == "chat.update" and self._pace:
            return Limits(_UPDATE_BURST, _UPDATES_PER_SECOND)
        return Limits()

    def _follow(self, unit: Unit) -> set[tuple[str, ...]]:
        """Write one part of one request as far as it can be now; return the lanes of what could not go through."""
        # 1. Is there anything to do? Nothing is written for a wake that comes twice.
        look = self._cursors.look(unit)
        if unit.part is Part.LINES and unit.request_id and not look.has_card:
            if look.cursor < look.newest:
                self._turns.put(Unit(Part.CARD, unit.request_id), unless_parked=True)
            return set()
        if look.cursor >= look.newest and (look.has_card or unit.part is not Part.CARD) and not look.are_over:
            return set()
        if unit.part is not Part.LINES and look.has_card and self._is_resting(unit, look.cursor):
            return set()
        # 2. The claim.
        claim = self._cursors.take(unit)
        if claim is None:
            self._turns.put(unit, after=_AGAIN)
            return set()
        # 3. The work.
        try:
            match unit.part:
                case Part.CARD:
                    self._draw_card(claim)
                case Part.DIRECT:
                    self._write_direct(claim)
                case Part.LINES:
                    self._write_lines(claim)
        except Unavailable as error:
            self._failed(claim, error.reason)
            log.warning("%s: %s", unit.request_id, error.sentence)
        except (LostError, DatabaseDown):
            raise
        except Exception as error:
            # What cannot be drawn must not stop the rest.
            self._failed(claim, type(error).__name__)
            log.exception("%s: could not be drawn", unit.request_id)
        # 4. The claim is given back with what was found, and what is left is put where it belongs.
        newest = self._cursors.write(claim, release=True)
        if claim.retry is not None:
            self._turns.put(unit, after=claim.retry)
        elif not claim.blocked and newest > claim.seen:
            self._turns.put(unit)
        if unit.part is Part.CARD:
            self._turns.put(Unit(Part.LINES, unit.request_id), unless_parked=True)
        return claim.blocked

    def _is_resting(self, unit: Unit, cursor: int) -> bool:
        """Whether a picture need not be drawn again yet: it was a moment ago, and nothing but commands came since."""
        now = time.monotonic()
        left = self._drawn.get(unit, -math.inf) + _BREATH - now
        if left > 0:
            with self._database.read() as session:
                if has_only_commands(session, unit.request_id, cursor):
                    self._rest(unit, left)
                    return True
        _note(self._drawn, unit, now)
        return False

    def _rest(self, unit: Unit, seconds: float) -> None:
        """Let a unit run by itself, and not before."""
        _note(self._rests, unit, time.monotonic() + seconds)
        self._turns.put(unit, after=seconds)

    def _failed(self, claim: Claim, reason: str) -> None:
        claim.failed = reason
        claim.wait(back_off(claim.failures + 1, self._first_wait, _LONGEST_WAIT))

    # ------------------------------------------------------------------------------------ what should stand in Slack

    def _draw_card(self, claim: Claim) -> None:
        case = self._case(claim.unit.request_id)
        claim.seen = case.request.last_seq
        post = self._cursors.posts(claim.unit.request_id).get(CARD)
        if self._show(claim, post, self._letter(case, CARD, case.request.channel, more=self._use(case))):
            claim.cursor = claim.seen

    def _use(self, case: Case) -> dict[str, str]:
        """Say what was run, on the card of an access that is over: before, each command would draw it again."""
        if not allowed_roles(case.state, Action.REVIEW) and case.review is None:
            return {}
        with self._database.read() as session:
            return {"use": commands.short(told.tally(session, case.request.id))}

    def _write_direct(self, claim: Claim) -> None:
        case = self._case(claim.unit.request_id)
        claim.seen = case.request.last_seq
        posts = self._cursors.posts(claim.unit.request_id)
        is_all = True
        letters = self._letters(case)
        with self._database.read() as session:
            besides = [*asked.letters(session, case, posts), *reviews.letters(session, case, posts)]
        letters += [self._letter(case, key, who, is_wanted=is_due, more=more) for key, who, more, is_due in besides]
        letters += self._reviews(case, posts)
        # What is new comes before what is drawn again: each new one has a lane to itself.
        letters.sort(key=lambda letter: letter.key in posts and posts[letter.key].ts is not None)
        for letter in letters:
            is_all &= self._show(claim, posts.get(letter.key), letter)
        # Last: Slack is asked who is there, and nobody who must decide waits for that.
        own = self._letter(case, "own", case.request.requester, more={"waiting": self._waiting(case)})
        is_all &= self._show(claim, posts.get("own"), own)
        if is_all:
            claim.cursor = claim.seen

    def _waiting(self, case: Case) -> list[str]:
        with self._database.read() as session:
            away = absence.in_force(session, case.request.team, now=self._now())
        is_open = bool(allowed_roles(case.state, Action.APPROVE))
        active = self._active(asking.asked(case.request)) if self._active and is_open else {}
        return asked.waiting_lines(case, now=self._now(), away=away, active=active)

    def _letters(self, case: Case) -> list[_Letter]:
        """Return the direct messages about a request, the most urgent first."""
        row = case.request
        # (The bot's own moves are never refused, so their entries mean that it is so.)
        events = self._cursors.events(row.id, (Action.QUORUM, Action.WARN))
        wanted: dict[str, str] = {}
        if Action.QUORUM in events:
            wanted["handover"] = row.requester
        if Action.WARN in events:
            wanted["warning"] = row.requester
        wanted |= {f"ask:{person}": person for person in asking.asked(row)}
        # "Two minutes left" is not said when it no longer is so.
        still = bool(allowed_roles(case.state, Action.WARN))
        letters = [
            self._letter(case, key, target, is_wanted=still or key != "warning") for key, target in wanted.items()
        ]
        return letters + (self._scored(case) if row.drill is not None else [])

    def _scored(self, case: Case) -> list[_Letter]:
        """Return what the owner is told of a drill that failed."""
        with self._database.read() as session:
            records = [one for one in read_entries(session, request_id=case.request.id) if one.event == SCORE]
        todo = records[0].data.get("follow_up") if records else None
        if not isinstance(todo, dict) or not isinstance(todo.get("owner"), str):
            return []
        message = views.Message(*drill_views.owner_message(records[0]))
        picture = _picture(message, case.request)
        return [_Letter(f"score:{todo['owner']}", todo["owner"], message, picture, is_wanted=True)]

    def _reviews(self, case: Case, posts: Mapping[str, Post]) -> list[_Letter]:
        """Return what the review's owner is told: that it is theirs, and again when it is overdue."""
        old = {key: post.target for key, post in posts.items() if key.startswith(("review:", "remind:"))}
        wanted: dict[str, str] = {}
        owner = case.request.review_owner
        if owner is not None and allowed_roles(case.state, Action.REVIEW):
            reminders = self._cursors.events(case.request.id, (Action.REMIND,)).get(Action.REMIND)
            wanted[f"review:{owner}"] = owner
            if reminders:  # after a long outage only the newest of them
                wanted[f"remind:{reminders[-1]}:{owner}"] = owner
        return [self._letter(case, key, target, is_wanted=key in wanted) for key, target in {**wanted, **old}.items()]

    def _letter(
        self, case: Case, key: str, target: str, *, is_wanted: bool = True, more: Mapping[str, Any] | None = None
    ) -> _Letter:
        draw = _PICTURES[key.partition(":")[0]]
        message = draw(case, self._policy(), now=self._now(), **(more or {}))
        message = views.Message(*drill_views.marked(case, message.text, message.blocks))
        return _Letter(key, target, message, _picture(message, case.request), is_wanted)

    # ------------------------------------------------------------------------------------ one message

    def _show(self, claim: Claim, post: Post | None, letter: _Letter) -> bool:
        """Make Slack show this letter; return whether it does now, or never will."""
        if post is None:
            return not letter.is_wanted or self._post(claim, letter)
        if (post.picture or "").startswith(GONE):
            return True
        if post.ts is None and post.tried_at is not None:
            match self._find(claim, post, None):
                case _Found.LATER:
                    return False
                case _Found.NEVER:
                    return True
                case _Found.THERE | _Found.ABSENT:
                    pass
        if post.ts is None:
            return not letter.is_wanted or self._post(claim, letter, post)
        return post.picture == letter.picture or self._redraw(claim, post, letter)

    def _post(self, claim: Claim, letter: _Letter, failed: Post | None = None) -> bool:
        """Post a letter; ``failed``: the earlier try, whose call may still come through if it has a ``tried_at``."""
        lanes = (f"channel {letter.target}", f"post {letter.target}")
        if not self._enter(claim, lanes):
            return False
        request_id, key = claim.unit.request_id, letter.key
        tried_at = None if failed is None else failed.tried_at
        began = tried_at or self._now()
        # Why the last try failed is kept until one succeeds.
        why = failed.picture if failed is not None and (failed.picture or "").startswith(ERROR) else None
        try:
            self._cursors.write(
                claim, setting(request_id, key, target=letter.target, picture=why or letter.picture, tried_at=began)
            )
            answer = say(
                self._client.chat_postMessage,
                letter.message,
                channel=letter.target,
                metadata=metadata(request_id, key, claim.seen, claim.seen),
                unfurl_links=False,
                unfurl_media=False,
            )
        except TroubleError as trouble:
            if gone := self._unreachable(letter.target, trouble):
                claim.later(setting(request_id, key, picture=GONE + gone, tried_at=None))
                log.warning("%s: %s to %s is given up: %s", request_id, key, letter.target, gone)
                return True
            may_exist_since = tried_at if trouble.is_sure else began
            claim.later(setting(request_id, key, picture=ERROR + trouble.reason, tried_at=may_exist_since))
            self._trouble(claim, lanes, trouble)
            return False
        finally:
            self._turns.leave(lanes)
        self._turns.heal(lanes[0])
        claim.later(setting(request_id, key, channel=answer["channel"], ts=answer["ts"], picture=letter.picture))
        return True

    def _redraw(self, claim: Claim, post: Post, letter: _Letter) -> bool:
        lanes = (f"channel {post.target}", "chat.update")
        if not self._enter(claim, lanes):
            return False
        request_id, key = claim.unit.request_id, letter.key
        try:
            self._outlive_a_call(claim)
            say(self._client.chat_update, letter.message, channel=post.channel, ts=post.ts)
        except TroubleError as trouble:
            if trouble.reason in DELETED and key == CARD:
                # Somebody deleted the card. The request goes on, so it gets a new one, and a new thread.
                log.warning("%s: the card was deleted; it is posted again", request_id)
                claim.later(setting(request_id, CARD, ts=None, tried_at=None, picture=None))
                claim.wait(self._first_wait)
                return False
            gone = trouble.reason if trouble.reason in DELETED else self._unreachable(post.target, trouble)
            if gone:
                claim.later(setting(request_id, key, picture=GONE + gone))
                return True
            claim.later(setting(request_id, key, picture=ERROR + trouble.reason))
            self._trouble(claim, lanes, trouble)
            return False
        finally:
            self._turns.leave(lanes)
        self._turns.heal(lanes[0])
        claim.later(setting(request_id, key, picture=letter.picture))
        return True

    # ------------------------------------------------------------------------------------ the thread

    def _write_lines(self, claim: Claim) -> None:
        request_id = claim.unit.request_id
        while True:
            # 1. A batch that was tried stays as it is, and its list comes before what follows.
            with self._database.read() as session:
                card = session.get(Post, (request_id, CARD)) if request_id else None
                owed = owed_file(session, request_id, claim.cursor)
                batch = None if owed is not None else next_batch(session, request_id, claim.cursor)
            if not request_id:
                self._take_buttons(claim)  # before the cursor passes what decided it
            if request_id and (card is None or card.ts is None):
                return  # it was taken away meanwhile
            if owed is not None:
                if not self._post_file(claim, owed, card):
                    return
                claim.seen = claim.cursor = claim.cursor if owed.last_seq is None else owed.last_seq
                continue
            if batch is None:
                return
            # Read after the entries: a row that is older than they are does not know yet what they tell of.
            case = self._case(request_id) if request_id else None
            claim.seen = batch.last
            # 2. If it was tried: is it there?
            if batch.tried is not None:
                match self._find(claim, batch.tried, card):
                    case _Found.LATER:
                        return
                    case _Found.THERE | _Found.NEVER:
                        tried, offer = batch.tried, views.proposal_in(batch.records)
                        if tried.ts is not None and offer and not request_id:
                            claim.later(setting("", tried.key, picture=until(offer.at + LASTS)))
                        self._told(claim, batch, tried.target)
                        continue
                    case _Found.ABSENT:
                        pass
            elif (seconds := self._patience(claim.unit, batch)) > 0:
                _note(self._rests, claim.unit, time.monotonic() + min(seconds, _BREATH))
                claim.wait(min(seconds, _BREATH))
                return
            # 3. Post it. The cursor moves in the transaction that stores the answer.
            if not self._post_lines(claim, case, batch, card):
                return

    def _patience(self, unit: Unit, batch: Batch) -> float:
        """Return for how many seconds commands are still gathered; 0 for what must not wait."""
        if not batch.has_commands or batch.is_followed:
            return 0.0
        if any(told.of_record(record).is_alarming for record in batch.records):
            return 0.0
        gathered = batch.records[0].at + self._gather - self._now()
        rested = self._summed.get(unit, -math.inf) + self._between.total_seconds() - time.monotonic()
        return max(gathered.total_seconds(), rested)

    def _told(self, claim: Claim, batch: Batch, target: str, **found: Any) -> None:  # noqa: ANN401 - columns
        """Move the cursor behind what is posted, or note first that its list is owed."""
        request_id = claim.unit.request_id
        if found:
            claim.later(setting(request_id, f"{LINES}{batch.first}-{batch.last}", **found))
        if (key := attachments.key_of(batch)) is not None:
            _note(self._summed, claim.unit, time.monotonic())
            claim.later(setting(request_id, key, target=target, first_seq=batch.first, last_seq=batch.last))
            self._cursors.write(claim)
        else:
            claim.cursor = batch.last

    def _message(
        self, claim: Claim, case: Case | None, batch: Batch, ended: Fate | policy_control.Fate | None
    ) -> views.Message:
        """Draw a batch."""
        if batch.is_digest:
            return attachments.digest(batch)
        if not batch.has_commands:
            records = batch.records
            mentions = self._mentions(claim, case, records)
            return views.post(records, case, self._policy(), mentions=mentions, fate=ended)
        request_id = claim.unit.request_id
        with self._database.read() as session:
            tally = told.tally(session, request_id, first=batch.first, last=batch.last)
        few = [told.of_record(record) for record in batch.records if not record.is_pruned]
        security = self._policy().security if tally.dangers else ()
        text, blocks = commands.post(
            few,
            tally,
            f"{request_id} {batch.first} {batch.last}" if request_id else "",
            called=" ".join(self._mention(claim, name) for name in security),
            with_file=batch.count >= commands.FILE_FROM,
        )
        text = f"{request_id}: {text}" if request_id else text
        return views.Message(text, blocks) if case is None else views.Message(*drill_views.marked(case, text, blocks))

    def _post_lines(self, claim: Claim, case: Case | None, batch: Batch, card: Post | None) -> bool:
        request_id, tried = claim.unit.request_id, batch.tried
        key = f"{LINES}{batch.first}-{batch.last}"
        channel = self._policy().incident_channel if card is None else card.channel or card.target
        ended = self._fate(batch.records) if case is None else None
        message = self._message(claim, case, batch, ended)
        offer = views.proposal_in(batch.records) if case is None and ended is None else None
        lanes = (f"channel {channel}", f"post {channel}")
        if not self._enter(claim, lanes):
            return False
        try:
            self._cursors.write(
                claim,
                dropping_untried(request_id),
                setting(
                    request_id,
                    key,
                    target=channel,
                    first_seq=batch.first,
                    last_seq=batch.last,
                    tried_at=self._now() if tried is None else tried.tried_at,
                ),
            )
            answer = say(
                self._client.chat_postMessage,
                message,
                channel=channel,
                thread_ts=None if card is None else card.ts,
                metadata=metadata(request_id, key, batch.first, batch.last),
                unfurl_links=False,
                unfurl_media=False,
            )
        except TroubleError as trouble:
            if trouble.reason in NO_THREAD and card is not None:
                log.warning("%s: the card was deleted; it is posted again", request_id)
                claim.later(setting(request_id, CARD, ts=None, tried_at=None, picture=None))
            changes: dict[str, Any] = {"picture": ERROR + trouble.reason}
            if trouble.is_sure and tried is None:
                changes["tried_at"] = None  # then a longer batch may take its place
            claim.later(setting(request_id, key, **changes))
            self._trouble(claim, lanes, trouble)
            return False
        finally:
            self._turns.leave(lanes)
        self._turns.heal(lanes[0])
        picture = None if offer is None else until(offer.at + LASTS)
        self._told(claim, batch, channel, channel=answer["channel"], ts=answer["ts"], picture=picture)
        return True

    def _post_file(self, claim: Claim, owed: Post, card: Post | None) -> bool:
        """Share the list that belongs to a summary; return whether it is there, or never will be."""
        request_id, key = owed.request_id, owed.key
        if (owed.picture or "").startswith(GONE) or owed.ts is not None:
            return True
        if owed.tried_at is not None:
            match self._find(claim, owed, card):
                case _Found.LATER:
                    return False
                case _Found.THERE | _Found.NEVER:
                    return True
                case _Found.ABSENT:
                    pass
        with self._database.read() as session:
            file = attachments.make(session, owed)
        channel = owed.target if card is None else card.channel or card.target
        lanes = (f"channel {channel}", "files.completeUploadExternal")
        if not self._enter(claim, lanes):
            return False
        began = None
        try:
            self._outlive_a_call(claim)
            file_id = upload(self._client, file.name, file.data, file.described)
            began = owed.tried_at or self._now()
            self._cursors.write(claim, setting(request_id, key, tried_at=began))
            share(self._client, file_id, file.title, channel, None if card is None else card.ts)
        except TroubleError as trouble:
            if trouble.wait is None and (trouble.reason in NO_FILES or claim.failures >= _FILE_TRIES):
                # The thread is worth more than the list, which the window and an export have, too.
                log.warning("%s: %s is given up: %s", request_id, file.name, trouble.reason)
                claim.later(setting(request_id, key, picture=GONE + trouble.reason))
                return True
            may_exist_since = owed.tried_at if trouble.is_sure else began
            claim.later(setting(request_id, key, picture=ERROR + trouble.reason, tried_at=may_exist_since))
            self._trouble(claim, lanes, trouble)
            return False
        finally:
            self._turns.leave(lanes)
        self._turns.heal(lanes[0])
        claim.later(setting(request_id, key, channel=channel, ts=file_id, picture=None))
        return True

    def _fate(self, records: Sequence[Record]) -> Fate | policy_control.Fate | None:
        """Say what became of the proposal among these entries; None: it is open, or there is none."""
        proposal = views.proposal_in(records)
        if proposal is None:
            return None
        try:
            with self._database.read() as session:
                if proposal.event == policy_control.PROPOSE:
                    return policy_control.fate(session, proposal, now=self._now())
                return fate(session, proposal, now=self._now())
        except Damaged as damaged:
            # The lines must go on; a click is judged by itself.
            log.warning("a proposal cannot be judged: entry %d is damaged", damaged.seq)
            return None

    def _take_buttons(self, claim: Claim) -> None:
        """Draw the proposals to prune that are decided or void once more, without buttons; what cannot be, later."""
        if claim.pending:
            self._cursors.write(claim)  # so that what was just posted is among them
        for post in self._cursors.offers():
            first = -1 if post.first_seq is None else post.first_seq
            with self._database.read() as session:
                records = read_entries(session, request_id="", after=first - 1, until_seq=post.last_seq)
            ended = self._fate(records)
            if ended is None:
                if is_over(post, self._now()):
                    claim.later(setting("", post.key, picture=until(self._now() + _ONCE_MORE)))  # it cannot be judged
                continue
            mentions = self._mentions(claim, None, records)
            message = views.post(records, None, self._policy(), mentions=mentions, fate=ended)
            claim.later(setting("", post.key, picture=until(self._now())))  # should its lane be shut
            blocked = set(claim.blocked)
            if not self._redraw(claim, post, _Letter(post.key, post.target, message, ended.outcome, is_wanted=True)):
                # Lines, an alarm among them, must not be parked until messages may be changed again.
                claim.blocked = blocked
                claim.wait(_PICTURE_AGAIN)

    def _mentions(self, claim: Claim, case: Case | None, records: Iterable[Record]) -> dict[str, str]:
        """Say who is called at which event: leadership and security at the request, at the grant and at an alarm.

        Security alone, when the log cannot be trusted, its key changes, a copy of it is behind, or what is live is not
        what is on record.
        """
        done = [record for record in records if record.refused is None]
        events = {record.event for record in done}
        called: dict[str, str] = {}
        # (That lines were destroyed is told once for all and in each thread that it concerns: one call is enough.)
        if alarms := events & (_CALLS_SECURITY if case is None else _CALLS_SECURITY - {told.GAP}):
            security = " ".join(self._mention(claim, name) for name in self._policy().security)
            called |= dict.fromkeys(alarms, security)
        if case is None:
            for one in done:
                if one.event == policy_control.PROPOSE:  # by the policy that was in force then
                    asked_for = one.data.get("people") or ()
                    called[one.event] = " ".join(self._mention(claim, str(name)) for name in asked_for)
            if PROPOSE in events:  # two of these must confirm
                names = dict.fromkeys((*self._policy().auditors, *self._policy().security))
                called[PROPOSE] = " ".join(self._mention(claim, name) for name in names)
            return called
        if alarming := events & {Action.OPEN, Action.ISSUE, Action.INTERCEPT}:
            policy = self._policy()
            names = dict.fromkeys((*policy.leadership, *policy.security))
            called |= dict.fromkeys(alarming, " ".join(self._mention(claim, name) for name in names))
        if Action.REVIEW_ESCALATE in events:
            called[Action.REVIEW_ESCALATE] = " ".join(self._mention(claim, name) for name in self._policy().leadership)
        if any(record.event == Action.HOLD and record.data.get("wrapping_accessor") for record in done):
            called[Action.HOLD] = " ".join(f"<@{person}>" for person in asking.asked(case.request))
        if Action.ESCALATE in events:
            called[Action.ESCALATE] = " ".join(f"<@{person}>" for person in tiers.called(done, case.request))
        return called

    def _mention(self, claim: Claim, name: str) -> str:
        if name.startswith(("U", "W")):
            return f"<@{name}>"
        try:
            found = self._directory.group_id(name)
        except Unavailable:
            if claim.failures < _PATIENT_TRIES:
                raise
            found = None  # by now the line is worth more than the call
        return f"<!subteam^{found}>" if found else name

    # ------------------------------------------------------------------------------------ looking before posting again

    def _find(self, claim: Claim, post: Post, thread: Post | None) -> _Found:
        """Look in Slack for a post that was tried, in a channel or in a thread; what is found is noted in ``post``."""
        left = (post.tried_at or self._now()) + self._doubt - self._now()
        if left > timedelta(0):
            claim.wait(left.total_seconds())
            return _Found.LATER
        method = "conversations.history" if thread is None else "conversations.replies"
        lanes = (f"channel {post.target}", method)
        if not self._enter(claim, lanes):
            return _Found.LATER
        try:
            self._outlive_a_call(claim)
            channel = post.channel or self._room(post.target)
            ts = self._search(claim, channel, post, None if thread is None else thread.ts)
        except TroubleError as trouble:
            if gone := self._unreachable(post.target, trouble):
                claim.later(setting(post.request_id, post.key, picture=GONE + gone))
                return _Found.NEVER
            if trouble.reason in NO_THREAD:
                return _Found.ABSENT
            claim.later(setting(post.request_id, post.key, picture=ERROR + trouble.reason))
            self._trouble(claim, lanes, trouble)
            return _Found.LATER
        finally:
            self._turns.leave(lanes)
        self._turns.heal(lanes[0])
        if ts is None:
            return _Found.ABSENT
        log.info("%s: %s had been posted", post.request_id, post.key)
        post.channel, post.ts = channel, ts
        # Lines have no picture; of anything else, an error's place is taken by drawing it once more.
        cleared = {"picture": None} if post.key.startswith((LINES, FILES)) else {}
        claim.later(setting(post.request_id, post.key, channel=channel, ts=ts, **cleared))
        return _Found.THERE

    def _room(self, target: str) -> str:
        """Return the channel id of a target: a person's direct message has one too."""
        if not target.startswith(("U", "W")):
            return target
        known = self._cursors.room(target)
        return known or str(call(self._client.conversations_open, users=target)["channel"]["id"])

    def _search(self, claim: Claim, channel: str, post: Post, thread_ts: str | None) -> str | None:
        if self._user_id is None:
            self._user_id = str(call(self._client.auth_test)["user_id"])
        args: dict[str, Any] = {"channel": channel, "include_all_metadata": True, "limit": 200}
        if thread_ts is not None:
            method: Callable[..., Any] = self._client.conversations_replies
            args["ts"] = thread_ts
        else:
            method = self._client.conversations_history
            args["oldest"] = f"{((post.tried_at or self._now()) - _SKEW).timestamp():.6f}"
        for _ in range(_PAGES):
            self._outlive_a_call(claim)
            answer = call(method, **args)
            for message in answer.get("messages", ()):
                if post.key.startswith(FILES):
                    if has_file(message, self._user_id, attachments.name_of(post)):
                        return str(message["ts"])
                    continue
                payload = payload_of(message, self._user_id)
                if (payload.get("request"), payload.get("key")) == (post.request_id, post.key):
                    return str(message["ts"])
            args["cursor"] = (answer.get("response_metadata") or {}).get("next_cursor")
            if not args["cursor"]:
                return None
        raise TroubleError("too_many_messages", is_sure=True)

    # ------------------------------------------------------------------------------------ calls

    def _enter(self, claim: Claim, lanes: tuple[str, ...]) -> bool:
        self._courtesy()
        if self._turns.enter(claim.unit, lanes):
            return True
        claim.blocked.add(lanes)
        return False

    def _outlive_a_call(self, claim: Claim) -> None:
        """Renew the claim if it could run out during a call: else another follower would begin beside us."""
        if claim.until - self._now() < self._least_hold:
            self._cursors.write(claim)

    def _trouble(self, claim: Claim, lanes: tuple[str, str], trouble: TroubleError) -> None:
        """Shut the lane that is at fault: its method for as long as Slack says, or the channel for a while."""
        channel, method = lanes
        claim.blocked.add(lanes)
        if trouble.wait is not None:
            self._turns.close(method, trouble.wait)
            claim.wait(trouble.wait)
            return
        claim.failed = trouble.reason
        claim.wait(self._turns.fail(channel))
        log.warning("%s: Slack did not take it (%s); it is tried again", claim.unit.request_id, trouble.reason)

    def _unreachable(self, target: str, trouble: TroubleError) -> str | None:
        """Return the reason when a person can never be written to; None for channels and for what may pass."""
        if not target.startswith(("U", "W")):
            return None
        if trouble.reason == "account_inactive":
            # Slack says this of a deactivated person, and of a bot that was uninstalled: then nobody is given up.
            try:
                call(self._client.auth_test)
            except TroubleError:
                return None
            return trouble.reason
        return trouble.reason if trouble.reason in UNREACHABLE else None


# --- small things -----------------------------------------------------------------------------------------------------

_MOST_NOTED: Final = 1000


def _note(moments: dict[Unit, float], unit: Unit, at: float) -> None:
    """Note a moment, and forget those that are long past."""
    if len(moments) > _MOST_NOTED:
        for old in sorted(moments, key=lambda one: moments[one])[: _MOST_NOTED // 2]:
            moments.pop(old, None)
    moments[unit] = at


_PICTURES: Final[Mapping[str, Callable[..., views.Message]]] = {
    CARD: views.card,
    "own": views.own,
    "ask": views.ask,
    "handover": views.handover,
    "warning": views.warning,
    asked.NUDGE: asked.nudge,
    asked.SETTLED: asked.settled,
    reviews.TODO: reviews.todo,
    reviews.AGAIN: reviews.todo,
    "review": views.review_ask,
    "remind": views.review_ask,
}


def _rank(unit: Unit) -> int:
    """Cards, requests to custodians and handovers come before the lines of other requests."""
    return 1 if unit.part is Part.LINES else 0


def _picture(message: views.Message, row: Request) -> str:
    """Return the hash of what is seen.

    A button carries the version, which a logged step raises while older buttons stay good: that alone is no reason to
    draw a message again, except where the version must be exact, at Reveal.
    """
    drawn = json.dumps([message.text, message.blocks], sort_keys=True, ensure_ascii=False)
    if f'"{views.REVEAL}"' not in drawn:
        drawn = drawn.replace(f'"{row.id} {row.version}"', f'"{row.id} since {row.state_version}"')
    return hashlib.sha256(drawn.encode()).hexdigest()
