"""Which heads has the log signed, and may the next one be signed?

Rules
-----
* After every commit that appended, the newest head is signed; while nothing happens, a heartbeat is (same head, and the
  time in a line of its own), so that silence can be told from being switched off.
* Only what was recomputed is signed. From the last signed head on every entry's bytes are hashed and every root is
  compared. A log that was cut, or does not extend what was signed before, is never signed: that is an alarm, which is
  logged and an entry of its own, until a person has looked.
* Never back: what stands in ``signed_head`` only grows, and this process remembers what it saw there itself.
* Several bots may do this at once. A head's signature is the same whoever makes it (Ed25519), a heartbeat is compared
  under the writer's lock; so nothing is stored twice.
* A signer that does not answer costs nothing but time: it is asked again, and :func:`standing` says how far behind.
* A rotation of the key is an entry, and in the same transaction a head that the old and the new key sign. From then on
  only the new one signs.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select

from storage import audit, merkle
from storage.audit import SYSTEM, Actor, Head
from storage.checkpoint import (
    BadSignature,
    Checkpoint,
    NotSigned,
    SignedNote,
    VerifierKey,
    parse,
    parse_vkey,
    sign,
    time_line,
    verify,
)
from storage.database import Clash, DatabaseDown
from storage.models import Entry, SignedHead
from storage.signers import SignerDown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlmodel import Session

    from storage.database import Database
    from storage.signers import Keyring, Signer

log = logging.getLogger(__name__)

ROTATE: Final = "log:rotate"
ALARM: Final = "log:alarm"
_PAGE: Final = 1000
_BREATH: Final = 0.25  # seconds between two rounds: a burst of commits makes few heads, and is hardly slowed by them
# While entries come in, a round stops for a moment after so many. Python runs one thread at a time and changes over
# only every 5 ms: who appends would wait as long at each statement.
_GIVE_WAY: Final = 0.0005  # seconds
_STRETCH: Final = 25  # entries
_LONGEST_WAIT: Final = timedelta(seconds=5)  # before a signer that was down is asked again
_E: Final[Any] = Entry  # their columns, in queries: SQLModel types them as the values
_H: Final[Any] = SignedHead
# What is asked in each round is put together once.
_LATEST: Final = select(SignedHead).order_by(_H.id.desc()).limit(1)
_ROTATION: Final = select(_E.body).where(_E.event == ROTATE).order_by(_E.seq.desc()).limit(1)


class Rewritten(Exception):
    """The stored log does not extend what was signed. ``str()`` is the alarm's sentence."""


class Reason(StrEnum):
    """Why a head was signed: the words in ``signed_head``."""

    ENTRY = "entry"
    HEARTBEAT = "heartbeat"
    ROTATION = "rotation"


# --- reading -------------------------------------------------------------------------------------------------------


def latest(session: Session) -> SignedHead | None:
    """Return the newest signed head."""
    found: SignedHead | None = session.execute(_LATEST).scalar()
    return found


def between(session: Session, first: int = 0, last: int | None = None) -> list[SignedHead]:
    """Return the signed heads whose size is ``first`` to ``last`` (both included), in the order of their signing."""
    query = select(SignedHead).where(_H.size >= first).order_by(_H.id)
    if last is not None:
        query = query.where(_H.size <= last)
    return list(session.execute(query).scalars())


def covering(session: Session, seq: int) -> SignedHead | None:
    """Return the first signed head under which entry ``seq`` stands; None: not signed yet."""
    found: SignedHead | None = session.execute(
        select(SignedHead).where(_H.size > seq).order_by(_H.id).limit(1)
    ).scalar()
    return found


def key_in_force(session: Session) -> VerifierKey | None:
    """Return the key that the newest rotation went over to; None: there was none, or its body was pruned.

    Raises :class:`Rewritten` when that entry names no key.
    """
    body = session.execute(_ROTATION).scalar()
    if body is None:
        return None
    try:
        return parse_vkey(str(audit.parse(body).data["new"]))
    except (ValueError, KeyError, TypeError):
        raise Rewritten("The newest entry about the log's key names no key.") from None


def pick(session: Session, signers: Sequence[Signer], origin: str) -> Signer:
    """Return the one of ``signers`` (the oldest first) that may sign: by the log's last word, else by its newest head.

    A log that has no head yet begins with the newest. Raises :class:`SignerDown` when none of them may, and
    :class:`Rewritten`.
    """
    key, newest = key_in_force(session), latest(session)
    found: Signer | None = signers[-1]
    if key is not None:
        found = next((signer for signer in signers if signer.key == key), None)
    elif newest is not None:
        names = {(one.name, one.key_id) for one in _parse_row(newest, origin).signatures}
        found = next((one for one in reversed(signers) if (one.key.name, one.key.key_id) in names), None)
    if found is None:
        raise SignerDown(
            "The log's heads are signed with a key that the signer in the policy does not have: name the signer that "
            "has it, or change over with “breakglass log rotate”."
        )
    return found


@dataclass(frozen=True, slots=True)
class Standing:
    """How the signing stands. ``behind``: the age of the oldest entry under no signed head; zero when all are."""

    newest: SignedHead | None
    unsigned: int
    behind: timedelta


def standing(session: Session, *, now: datetime) -> Standing:
    """Return how far the signing is."""
    newest = latest(session)
    size, signed = audit.head(session).size, newest.size if newest else 0
    if size <= signed:
        return Standing(newest, 0, timedelta(0))
    first = session.execute(select(_E.at).where(_E.seq >= signed).order_by(_E.seq).limit(1)).scalar()
    return Standing(newest, size - signed, max(timedelta(0), now - first) if first else timedelta(0))


# --- keeping -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Seen:
    """The log through here was recomputed by this process, or was signed."""

    size: int
    peaks: bytes

    @property
    def head(self) -> Head:
        return Head(self.size, merkle.root(self.peaks))


class HeadKeeper:
    """Signs the log's heads, in a thread of its own.

    ``origin`` is the log's name, ``now`` the clock. ``signed`` are called after each new head (and can undo nothing).
    """

    def __init__(
        self, database: Database, origin: str, keyring: Keyring, *, heartbeat: timedelta, now: Callable[[], datetime]
    ) -> None:
        self.signed: Final[list[Callable[[], object]]] = []
        self.trouble: str | None = None  # why the newest head is not signed
        self._database = database
        self._origin = origin
        self._keyring = keyring
        self._heartbeat = heartbeat
        self._now = now
        self._turn = threading.Lock()  # one round at a time, whoever asks
        self._seen: _Seen | None = None
        self._signed_size = 0  # the largest size under a stored head that this process has seen
        self._signer: Signer | None = None
        self._failures = 0
        self._retry_at: datetime | None = None
        self._is_alarmed = False  # an entry says that nothing is signed, until something is
        self._keys: tuple[VerifierKey, ...] = ()  # of the keyring, when it was last asked
        self._note_seen = b""  # the newest stored note whose signatures were checked
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    # Running.

    def start(self) -> None:
        """Start the thread; it signs what is not signed yet."""
        self._stopping.clear()
        self._woken.set()
        self._thread = threading.Thread(target=self._run, name="heads", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Sign what is left, once, and end the thread."""
        self._stopping.set()
        self._woken.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wake(self, _requests: frozenset[str] = frozenset()) -> None:
        """Look at once: entries were appended. Returns at once."""
        self._woken.set()

    def tick(self) -> None:
        """Look whether a heartbeat is due, or another bot's entries are not signed. Returns at once."""
        self._woken.set()

    def _run(self) -> None:
        is_last = False
        while not is_last:
            self._woken.wait()
            # Cleared before the look: whatever is appended during it sets it again, and many commits make one head.
            self._woken.clear()
            is_last = self._stopping.is_set()
            self.round()
            if not is_last:
                self._stopping.wait(_BREATH)

    def round(self) -> SignedHead | None:
        """Sign the newest head if it is not signed, or a heartbeat if one is due; return what was stored.

        Raises nothing: what is wrong stands in ``trouble`` afterwards, and in the log.
        """
        now = self._now()
        if self._retry_at is not None and now < self._retry_at and not self._stopping.is_set():
            return None
        try:
            with self._turn:
                stored = self._sign_newest(now)
            self.trouble, self._failures, self._retry_at = None, 0, None
            self._is_alarmed = False
        except SignerDown as down:
            self._wait(str(down), now)
            return None
        except DatabaseDown as down:
            self._wait(str(down), now)
            return None
        except Rewritten as found:
            self._raise_alarm(str(found), now)
            return None
        except Exception:
            log.exception("the newest head could not be signed; it is tried again")
            self._wait("An unexpected error, see the log file.", now)
            return None
        if stored is not None:
            self._tell()
        return stored

    def _tell(self) -> None:
        for listener in tuple(self.signed):
            try:
                listener()
            except Exception:
                log.exception("Somebody could not be told of a new head.")

    def _wait(self, why: str, now: datetime) -> None:
        if self.trouble != why:
            log.warning("the log's newest head is not signed: %s", why)
        self.trouble = why
        self._failures += 1
        self._retry_at = now + min(_LONGEST_WAIT, timedelta(seconds=2 ** min(self._failures - 1, 8)))

    def _raise_alarm(self, sentence: str, now: datetime) -> None:
        """Say it loudly, and once in the log itself: whoever follows that hears it."""
        if self.trouble != sentence:
            log.error("ALARM: the log is not signed any more. %s", sentence)
        self.trouble = sentence
        self._retry_at = now + _LONGEST_WAIT
        if self._is_alarmed:
            return
        try:
            with self._database.write() as session:
                audit.append(session, event=ALARM, at=now, actor=SYSTEM, data={"sentence": sentence})
            self._is_alarmed = True
        except (DatabaseDown, Clash, ValueError):
            log.exception("The alarm could not be made an entry; it is tried again.")

    # One round.

    def _sign_newest(self, now: datetime) -> SignedHead | None:
        with self._database.read() as session:
            newest, head = latest(session), audit.head(session)
            if newest is not None and head.size == newest.size and self._is_checked(newest, head):
                if now - newest.at < self._heartbeat:
                    return None
            elif newest is None and not head.size:
                return None
            seen = self._recompute(session, newest)
            signer = self._signer_in_force(session, newest)
        if not seen.size:
            return None
        if newest is not None and newest.size == seen.size:
            if now - newest.at < self._heartbeat:
                return None
            checkpoint = Checkpoint(self._origin, seen.size, seen.head.root, (time_line(now),))
            return self._store(checkpoint, self._note(checkpoint, signer), Reason.HEARTBEAT, now)
        checkpoint = Checkpoint(self._origin, seen.size, seen.head.root)
        return self._store(checkpoint, self._note(checkpoint, signer), Reason.ENTRY, now)

    def _is_checked(self, newest: SignedHead, head: Head) -> bool:
        """Whether this process has recomputed this very head already, and checked its note."""
        return (
            self._seen is not None
            and newest.root == head.root
            and newest.note == self._note_seen
            and self._seen.head == head
        )

    def _recompute(self, session: Session, newest: SignedHead | None) -> _Seen:
        """Go from what was seen or signed last to the end of the log, entry by entry. Raises :class:`Rewritten`."""
        if (newest.size if newest else 0) < self._signed_size:
            raise Rewritten(f"A head over {self._signed_size} entries was signed, and is no longer stored.")
        if self._seen is None:
            self._seen = _begin(session, newest, self._origin)
        seen = self._seen
        size = audit.head(session).size
        if size < seen.size:
            raise Rewritten(f"The log has {size} entries, and had {seen.size}: its end was cut off.")
        if newest is not None and newest.size > size:
            raise Rewritten(
                f"The log has {size} entries, and a head over {newest.size} was signed: its end was cut off."
            )
        if newest is not None and newest.size <= seen.size:
            _compare(session, newest)
        for row in _rows(session, seen.size):
            grown = _push(seen, row)
            if newest is not None and newest.size == grown.size and newest.root != grown.head.root:
                raise Rewritten(f"The log of {grown.size} entries is not the one whose head was signed.")
            # Kept as one value: another thread's round, or an alarm half-way, must not find half of it.
            seen = self._seen = grown
            if not seen.size % _STRETCH and self._woken.is_set():
                time.sleep(_GIVE_WAY)
        self._signed_size = max(self._signed_size, newest.size if newest else 0)
        return seen

    def _signer_in_force(self, session: Session, newest: SignedHead | None) -> Signer:
        """Return the one key that may sign now. Raises :class:`SignerDown`, :class:`Rewritten`."""
        key = key_in_force(session)
        if self._signer is None or (key is not None and self._signer.key != key):
            signers = self._keyring.signers()
            self._keys = tuple(signer.key for signer in signers)
            self._signer = pick(session, signers, self._origin)
        if newest is not None and newest.note != self._note_seen:
            _check_note(newest, self._keys, self._origin)
            self._note_seen = newest.note
        return self._signer

    def _note(self, checkpoint: Checkpoint, *signers: Signer) -> bytes:
        try:
            return sign(checkpoint, signers)
        except BadSignature as bad:
            self._signer = None
            raise SignerDown(f"The signer is not to be relied on: {bad}.") from None

    def _store(self, checkpoint: Checkpoint, note: bytes, reason: Reason, now: datetime) -> SignedHead | None:
        """Store the head unless another bot was quicker."""
        with self._database.write() as session:
            # Read again under the writer's lock: nothing is stored behind a newer one, no heartbeat twice.
            newest = latest(session)
            if newest is not None and newest.size >= checkpoint.size:
                is_late = reason == Reason.ENTRY or newest.size > checkpoint.size or now - newest.at < self._heartbeat
                if is_late:
                    return None
            if self._signer is not None and (key := key_in_force(session)) is not None and key != self._signer.key:
                return None  # rotated in between: the old key says nothing any more
            stored = _row(checkpoint, note, reason, now)
            session.add(stored)
        self._signed_size, self._note_seen = checkpoint.size, note
        return stored

    # Rotation.

    def rotate(self, actor: Actor, *, lost: bool = False) -> tuple[VerifierKey | None, VerifierKey]:
        """Go over to the keyring's next key: an entry, and one head signed by both. Return the old and the new key.

        ``lost``: the old key cannot sign any more, so the new one signs alone, and the entry says so. Raises
        :class:`SignerDown` (also when there is no next key), :class:`Rewritten`, :class:`DatabaseDown`.
        """
        now = self._now()
        with self._turn:
            with self._database.read() as session:
                newest = latest(session)
                old = None if lost else self._signer_in_force(session, newest)
                old_key = old.key if old else key_in_force(session)
            if old is not None:
                self._keyring.settle(old.key)  # an earlier rotation may have ended half-way
            new = self._keyring.renew()
            if new.key == old_key:
                raise SignerDown("There is no newer key than the one in force: make one first.")
            with self._database.write() as session:
                seen = self._recompute(session, latest(session))
                data = {"new": str(new.key), "old": str(old_key) if old_key else None, "lost": lost}
                entry = audit.append(session, event=ROTATE, at=now, actor=actor, data=data)
                # Not kept before the commit: after a rollback it would look as if the log had been cut.
                grown = _push(seen, entry)
                checkpoint = Checkpoint(self._origin, grown.size, grown.head.root)
                # Within the transaction, since no head may be signed by the new key alone before this one.
                note = self._note(checkpoint, *([old] if old else []), new)
                session.add(_row(checkpoint, note, Reason.ROTATION, now))
            self._seen = grown
            self._signed_size, self._note_seen, self._signer = grown.size, note, new
            self._keys = (*self._keys, new.key)
            self._keyring.settle(new.key)
        self._tell()
        return old_key, new.key


def _row(checkpoint: Checkpoint, note: bytes, reason: Reason, now: datetime) -> SignedHead:
    return SignedHead(size=checkpoint.size, root=checkpoint.root, note=note, at=now, reason=reason.value)


def _begin(session: Session, newest: SignedHead | None, origin: str) -> _Seen:
    """Return where to go on from: the last signed head, whose peaks are taken from the log and compared."""
    if newest is None or not newest.size:
        return _Seen(0, b"")
    _parse_row(newest, origin)
    peaks = session.execute(select(_E.peaks).where(_E.seq == newest.size - 1)).scalar()
    if peaks is None:
        size = audit.head(session).size
        raise Rewritten(f"The log has {size} entries, and a head over {newest.size} was signed: its end was cut off.")
    if (
        not isinstance(peaks, bytes)
        or len(peaks) != merkle.WIDTH * newest.size.bit_count()
        or merkle.root(peaks) != newest.root
    ):
        raise Rewritten(f"The log of {newest.size} entries is not the one whose head was signed.")
    return _Seen(newest.size, peaks)


def _parse_row(newest: SignedHead, origin: str) -> SignedNote:
    """Read a stored head's note, which must say what its columns say."""
    try:
        signed = parse(newest.note)
    except ValueError as error:
        raise Rewritten(f"The stored head over {newest.size} entries is none: {error}.") from None
    found = signed.checkpoint
    if (found.size, found.root) != (newest.size, newest.root):
        raise Rewritten(f"The stored head over {newest.size} entries is none: its columns say something else.")
    if found.origin != origin:
        raise SignerDown(
            f"The log's heads were signed as {found.origin}, and the policy calls it {origin}: a log keeps its name."
        )
    return signed


def _check_note(newest: SignedHead, keys: tuple[VerifierKey, ...], origin: str) -> None:
    """Check the newest stored head's signatures as far as their keys are there."""
    try:
        verify(_parse_row(newest, origin), keys)
    except BadSignature as bad:
        raise Rewritten(f"The stored head over {newest.size} entries was not signed by the log: {bad}.") from None
    except NotSigned:
        pass  # by a key that is gone after a rotation: its public half is the auditors' to compare


def _compare(session: Session, newest: SignedHead) -> None:
    """Check that a head over entries that were passed already is the head of these."""
    root = session.execute(select(_E.root).where(_E.seq == newest.size - 1)).scalar() if newest.size else newest.root
    if root != newest.root:
        raise Rewritten(f"The log of {newest.size} entries is not the one whose head was signed.")


def _rows(session: Session, first: int) -> Iterator[Any]:
    columns = (_E.seq, _E.body, _E.leaf_hash, _E.root)
    query = select(*columns).where(_E.seq >= first).order_by(_E.seq)
    return iter(session.execute(query.execution_options(yield_per=_PAGE)))


def _push(seen: _Seen, row: Any) -> _Seen:  # noqa: ANN401 - an Entry, or a row with the columns of _rows
    """Add one entry to what was seen. Raises :class:`Rewritten` when it is not the next, or not as it was written."""
    if row.seq != seen.size:
        raise Rewritten(f"Entry {seen.size} is missing.")
    # A body that was pruned by the rules of retention has left its hash.
    if row.body is not None and (not isinstance(row.body, bytes) or merkle.leaf_hash(row.body) != row.leaf_hash):
        raise Rewritten(f"Entry {row.seq} was changed: its body and its hash do not belong together.")
    try:
        peaks = merkle.push(seen.peaks, seen.size, row.leaf_hash)
    except (TypeError, ValueError):
        raise Rewritten(f"Entry {row.seq} was changed: its row cannot be read.") from None
    if merkle.root(peaks) != row.root:
        raise Rewritten(f"Entry {row.seq} does not extend the log of which heads were signed.")
    return _Seen(seen.size + 1, peaks)
