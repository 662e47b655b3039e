"""How do the lines of a growing log file reach the bot, whatever happens to the file, to the way there, or to us?

Rules
-----
* What is followed is a content, not a name: each has a name of its own with a random end, made once and kept in the
  state file before the first line of it is sent. A line's place is that name and its offset, so that what is sent twice
  is known at the other end, wherever the content stands by then.
* Before each read the bytes before the place are compared: a file that was truncated and has grown again is noticed.
* A place moves on only when the bot has acknowledged the lines before it, or when they are in the spool. The state is
  replaced as a whole, on the disk, after that.
* A rotated file is read to its end, and looked at for as long as it is there. A copy (copytruncate) is known by its
  beginning and takes over from the place where the original was.
* What was destroyed unread is reported as a gap, also where nobody can know whether it held a line.
* A content is given up only by a list of the folder that was made after the check, and while no file was renamed: else
  its copy, or its new name, would pass for something new and be read once more. What cannot be told waits for a look.
* A line without its end waits; when nobody writes to its file any more it is sent as it is.
* Silence is a heartbeat only while the file itself can be read.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import fnmatch
import hashlib
import json
import logging
import os
import secrets
import stat
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol

from bot.spool import Spool, replace
from workflows.errors import Refused, Unavailable

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

log = logging.getLogger(__name__)

MOST_LINE: Final = 1_000_000  # bytes of a line that are sent; of the rest there is its hash
SPOOL_BYTES: Final = 256 * 1024 * 1024

_CHUNK: Final = 256 * 1024
_BATCH: Final = 512 * 1024  # bytes of lines in one request; one chunk more at most
_PRINT: Final = 1024  # bytes at the beginning of a content, and before a place, by which it is known again
_POLL: Final = 0.2  # seconds between two looks
_MISSED: Final = 10  # looks
_HEARTBEAT: Final = 2.0  # seconds; the policy's shortest silent_after is 5
_LINGER: Final = 60.0  # seconds that a rotated file must be quiet until a line without an end is sent
_BACKOFF: Final = (0.2, 5.0)
_PACKED: Final = (".gz", ".xz", ".zst", ".bz2", ".lz4", ".Z")


class NotSent(Exception):
    """The bot did not acknowledge the batch; ``str()`` says why. It is to be sent again."""


class _RenamedError(Exception):
    """A file is not where the folder's list, a moment ago, had it: whether it is a copy cannot be told yet."""


class Sender(Protocol):
    """Brings a batch to the bot."""

    def post(self, body: bytes) -> None:
        """Return when the bot has acknowledged ``body``. Raises :class:`NotSent`."""


@dataclass(frozen=True, slots=True)
class _Print:
    """By what some bytes are known again, without keeping them: a state file must hold no secret of a log."""

    size: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> _Print:
        return cls(len(data), hashlib.sha256(data).hexdigest())

    def fits(self, data: bytes) -> bool:
        return len(data) >= self.size and hashlib.sha256(data[: self.size]).hexdigest() == self.sha256


@dataclass(slots=True, eq=False)
class _Content:
    """A content that is followed. ``place`` is durable: what is before it is acknowledged, or in the spool."""

    name: str  # what the bot is told
    inode: tuple[int, int]
    place: int = 0
    before: _Print = field(default_factory=lambda: _Print.of(b""))
    head: _Print = field(default_factory=lambda: _Print.of(b""))
    edges: dict[int, str] = field(
        default_factory=dict
    )  # of the head up to each line's end: by these a short copy is known
    seen: int = 0  # its greatest size
    is_done: bool = False  # rotated, read to its end, and quiet
    # In memory only:
    descriptor: int = -1
    start: int = 0  # of the line that is being read
    read: int = 0
    recent: bytes = b""  # the bytes before ``read``
    begun: bytes = b""  # the content's first bytes
    part: bytearray = field(default_factory=bytearray)  # of the line that is being read, its first ``MOST_LINE`` bytes
    digest: Any = None  # of a line that is longer
    moved: float = 0.0
    boundary: _Print = field(default_factory=lambda: _Print.of(b""))  # the bytes before ``start``

    def know(self) -> None:
        """Note by what its beginning is known again."""
        self.head = _Print.of(self.begun)
        ends = [at + 1 for at, byte in enumerate(self.begun) if byte == 0x0A]
        self.edges = {end: hashlib.sha256(self.begun[:end]).hexdigest() for end in ends}

    def is_begun_by(self, begun: bytes) -> bool:
        """Whether a file that begins so is a copy of it, or of its first lines."""
        if self.head.size and self.head.fits(begun):
            return True
        return self.edges.get(len(begun)) == hashlib.sha256(begun).hexdigest()

    @property
    def is_committed(self) -> bool:
        """Whether no line of it is on its way."""
        return self.start == self.place


@dataclass(slots=True)
class _Batch:
    """Lines as they are sent, and where each content stands when they have arrived."""

    lines: list[bytes] = field(default_factory=list)
    size: int = 0
    gaps: int = 0
    places: dict[_Content, tuple[int, _Print]] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        return b"".join(self.lines)


class Tailer:
    """Follows ``file`` (a path, or a pattern in a folder) and sends its lines.

    ``state`` is the file that holds the places. ``spool`` is a folder for what the bot does not take; None: there is
    none, and only the file itself keeps the lines. Raises :class:`Refused`, :class:`Unavailable` with what is wrong.
    """

    def __init__(
        self,
        file: Path,
        sender: Sender,
        *,
        state: Path,
        spool: Path | None = None,
        spool_bytes: int = SPOOL_BYTES,
        linger: float = _LINGER,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = file.absolute()
        self._sender = sender
        self._state = state
        self._linger = linger
        self._clock = clock
        self._spool = None if spool is None else Spool(spool, spool_bytes)
        self._contents: list[_Content] = []
        self._gaps: list[dict[str, Any]] = []
        self._waiting: _Batch | None = None
        self._offline_since: float | None = None
        self._wait = _BACKOFF[0]
        self._next_try = 0.0
        self._heard = 0.0
        self._is_first = False
        self._is_missing = False
        self._missed = 0  # looks in a row at which it was
        self._written: tuple[int, int] | None = None  # the file that is written to now
        self._lock = _lock(state.with_name(state.name + ".lock"))
        self._load()

    # --- the loop

    def run(self, until: threading.Event) -> None:
        """Follow until ``until`` is set."""
        while not until.is_set():
            if not self.step():
                until.wait(_POLL)

    def once(self) -> None:
        """Send all that is there now. Raises :class:`Unavailable` when the bot does not take it."""
        while self.step():
            pass
        if self._offline_since is not None or self._waiting is not None:
            raise Unavailable("The bot did not take all of it; what is left is sent the next time.")
        if self._is_missing:
            raise Unavailable(f"{self._file} cannot be read.")

    def close(self) -> None:
        """Give files and the lock back."""
        for content in self._contents:
            self._shut(content)
        os.close(self._lock)

    def step(self) -> bool:
        """Look at the files, and send or keep one batch. Returns whether there may be more at once."""
        self._look()
        is_due = self._clock() >= self._next_try
        if is_due and self._spool is not None and (kept := self._spool.oldest()) is not None:
            if not self._send(kept.read_bytes()):
                return self._keep()
            self._spool.drop(kept)
            return True
        if self._waiting is None:
            self._waiting = self._read()
        if self._waiting is None:
            if is_due and not self._is_missing and self._clock() - self._heard >= _HEARTBEAT:
                self._send(b"")
            return False
        if not is_due or not self._send(self._waiting.body):
            return self._keep()
        self._commit(self._waiting)
        self._waiting = None
        return True

    def _send(self, body: bytes) -> bool:
        try:
            self._sender.post(body)
        except NotSent as why:
            if self._offline_since is None:
                self._offline_since = self._clock()
                where = "the file itself keeps them" if self._spool is None else "they go to the spool"
                log.warning("The bot takes no lines: %s Until it does, %s.", why, where)
            self._next_try = self._clock() + self._wait
            self._wait = min(self._wait * 2, _BACKOFF[1])
            return False
        self._heard = self._clock()
        if self._offline_since is not None:
            log.warning("The bot takes lines again, after %d s.", self._heard - self._offline_since)
            self._offline_since, self._wait = None, _BACKOFF[0]
        return True

    def _keep(self) -> bool:
        """Put what waits into the spool, while the bot takes nothing."""
        if self._waiting is None:
            self._waiting = self._read()
        if self._waiting is None or self._spool is None or not self._spool.put(self._waiting.body):
            return False
        self._commit(self._waiting)
        self._waiting = None
        return True

    # --- the files

    def _look(self) -> None:
        """Find out what became of the files since the last look."""
        there = self._entries()
        changed = False
        for content in list(self._contents):
            if content.descriptor < 0 and content.inode in there:
                self._open(content, there[content.inode])
        # 1. What was truncated, or is another file with a number that was given again, begins anew. One whose lines are
        # on their way has to be remembered as it is until they have arrived.
        lost = [content for content in self._contents if self._is_lost(content, there)]
        is_held = any(not content.is_committed for content in lost)
        if lost:
            # Listed after the check, so that a copy that was made before the truncation is there. A list that was made
            # while files were renamed may lack one; an empty one may be of a folder that is not there now.
            there = self._entries()
            is_still = bool(there) and _paths(there) == _paths(self._entries())
            is_held = is_held or not is_still
            for content in self._contents:
                if content.descriptor < 0 and content.inode in there:
                    self._open(content, there[content.inode])
            known = {content.inode for content in self._contents if self._is_it(content)}
            for content in lost if is_still else []:
                if not content.is_committed or not self._is_lost(content, there):
                    continue
                try:
                    (self._vanished if content.descriptor < 0 else self._truncated)(content, there, known)
                    changed = True
                except _RenamedError:
                    is_held = True  # the next look finds it under its new name
        for content in self._contents:
            if content.descriptor >= 0 and len(content.begun) < _PRINT:
                # Before it is read, too: a copy of it must not be taken for something new.
                begun = os.pread(content.descriptor, _PRINT, 0)
                if begun != content.begun and begun.startswith(content.begun):
                    content.begun = begun
                    content.know()
                    changed = True
        # 2. What is new is read from its beginning; what was there before the first look is not.
        current = self._written = self._current(there)
        known = {content.inode for content in self._contents}
        # The current one first: a copy of it, made a moment ago, must find the original.
        fresh = sorted(
            (inode for inode in there if inode not in known),
            key=lambda one: (one != current, there[one].stat.st_mtime_ns),
        )
        for inode in [] if is_held else fresh:
            entry = there[inode]
            try:
                if not self._is_first and (original := self._original(entry)) is not None:
                    if inode != current:
                        continue
                    # An editor, or who restores a file, puts the same content in the place of the old one.
                    is_gone = original.inode not in there and original.is_committed
                    if is_gone and self._heir(original, {inode: entry}, set()):
                        self._move(original, entry)
                        changed = True
                        continue
                content = self._begin(entry)
            except _RenamedError:
                continue  # the next look finds it
            except OSError as error:
                log.warning("%s cannot be opened: %s.", entry.path, error.strerror)
                continue
            if self._is_first and inode != current:
                self._skip(content)
            self._contents.append(content)
            changed = True
        self._contents.sort(key=lambda one: one.inode == current)  # it is read last
        self._is_first = False
        # 3. Which are quiet.
        for content in list(self._contents):
            changed = self._age(content, current) or changed
        if changed:
            self._save()
        is_missing = current is None or not any(one.inode == current and one.descriptor >= 0 for one in self._contents)
        self._missed = self._missed + 1 if is_missing else 0
        if self._missed == _MISSED:  # a rotation takes a moment
            log.warning("%s cannot be read; until it can, nothing is heard of the source.", self._file)
        self._is_missing = is_missing

    def _entries(self) -> dict[tuple[int, int], _Entry]:
        name = self._file.name
        found: dict[tuple[int, int], _Entry] = {}
        try:
            names = os.listdir(self._file.parent)  # noqa: PTH208 - names are all that is wanted
        except OSError:
            return found
        for one in names:
            is_ours = fnmatch.fnmatchcase(one, name) if _is_pattern(name) else _is_rotation(one, name)
            if not is_ours or one.endswith(_PACKED):
                continue
            path = self._file.parent / one
            with contextlib.suppress(OSError):
                what = path.stat()
                if stat.S_ISREG(what.st_mode) and (one == name or (what.st_dev, what.st_ino) not in found):
                    found[what.st_dev, what.st_ino] = _Entry(path, what)
        return found

    def _current(self, there: dict[tuple[int, int], _Entry]) -> tuple[int, int] | None:
        """Return the file that is written to: the one of the name, of a pattern the one written to last."""
        if not _is_pattern(self._file.name):
            return next((inode for inode, entry in there.items() if entry.path == self._file), None)
        return max(there, key=lambda one: (there[one].stat.st_mtime_ns, there[one].path.name), default=None)

    def _open(self, content: _Content, entry: _Entry) -> bool:
        """Open a content's file and go to its place. A done one is opened only when it has changed."""
        if content.is_done and entry.stat.st_size == content.place:
            return False
        try:
            content.descriptor = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            log.warning("%s cannot be opened: %s.", entry.path, error.strerror)
            return False
        what = os.fstat(content.descriptor)
        if (what.st_dev, what.st_ino) != content.inode:
            self._shut(content)  # renamed since the folder was listed: the next look knows where it is
            return False
        content.start = content.read = content.place
        content.boundary = content.before
        content.begun = os.pread(content.descriptor, _PRINT, 0)
        content.recent = os.pread(content.descriptor, content.before.size, content.place - content.before.size)
        # One that does not fit is noticed as one that was truncated: its recent bytes will not be found.
        if content.head.fits(content.begun) and content.before.fits(content.recent):
            content.is_done = False
            content.know()
        else:
            content.begun = b""
            content.recent = b"\x00never" + os.urandom(16)
            content.read = max(content.read, len(content.recent))
        return True

    def _is_lost(self, content: _Content, there: dict[tuple[int, int], _Entry]) -> bool:
        """Whether a content is no longer where it was."""
        return content.inode not in there if content.descriptor < 0 else not self._is_it(content)

    def _is_it(self, content: _Content) -> bool:
        """Whether the open file still is the content that was read from it."""
        if content.descriptor < 0:
            return False
        recent, begun = content.recent, content.begun
        return (
            os.fstat(content.descriptor).st_size >= content.seen
            and os.pread(content.descriptor, len(recent), content.read - len(recent)) == recent
            and os.pread(content.descriptor, len(begun), 0) == begun  # also while nothing of it was read
        )

    def _begin(self, entry: _Entry, like: _Content | None = None) -> _Content:
        """Return a content that is open: a new one, or one that goes on in a copy. Raises :class:`_RenamedError`."""
        inode = (entry.stat.st_dev, entry.stat.st_ino)
        content = _Content(f"{entry.path}#{secrets.token_hex(4)}", inode, moved=self._clock())
        if like is not None:
            content.name, content.place, content.before = like.name, like.place, like.before
            content.seen = entry.stat.st_size  # the original may have been longer
        if not self._open(content, entry):
            raise _RenamedError
        return content

    def _original(self, entry: _Entry, among: Sequence[_Content] | None = None) -> _Content | None:
        """Return the content that a file begins like: it is a copy, and counts only when the original goes."""
        with _file(entry) as file:
            begun = file.read(_PRINT)
        # The second: it is being copied this very moment.
        return next(
            (
                one
                for one in among or self._contents
                if one.is_begun_by(begun) or (one.begun and one.begun.startswith(begun))
            ),
            None,
        )

    def _heir(
        self, content: _Content, there: dict[tuple[int, int], _Entry], known: set[tuple[int, int]]
    ) -> _Entry | None:
        """Return a file that holds the content as far as it was read, and is not followed itself."""
        if not content.head.size:
            return None
        for inode, entry in there.items():
            if inode in known or inode == content.inode or entry.stat.st_size < content.place:
                continue
            with contextlib.suppress(OSError), _file(entry) as file:
                if content.is_begun_by(file.read(_PRINT)):
                    file.seek(content.place - content.before.size)
                    if content.before.fits(file.read(content.before.size)):
                        return entry
        return None

    def _move(self, content: _Content, entry: _Entry) -> None:
        """Go on in a copy. Raises :class:`_RenamedError`; then nothing has changed."""
        heir = self._begin(entry, content)
        self._shut(content)
        self._contents[self._contents.index(content)] = heir

    def _truncated(self, content: _Content, there: dict[tuple[int, int], _Entry], known: set[tuple[int, int]]) -> None:
        heir = self._heir(content, there, known)
        if heir is None:
            why = "truncated or replaced: what was not read until then, if anything, is lost"
            self._forget(content, why, there, known)
            return
        self._move(content, heir)
        known.add((heir.stat.st_dev, heir.stat.st_ino))
        if not content.is_done:
            why = "copied, then truncated: what was written between the two, if anything, is lost"
            self._gap(content, why, heir.stat.st_size, None)

    def _vanished(self, content: _Content, there: dict[tuple[int, int], _Entry], known: set[tuple[int, int]]) -> None:
        heir = self._heir(content, there, known)
        if heir is None:
            self._forget(content, "removed while nobody read it: what had not been read is lost", there, known)
            return
        self._move(content, heir)
        known.add((heir.stat.st_dev, heir.stat.st_ino))

    def _forget(
        self, content: _Content, why: str, there: dict[tuple[int, int], _Entry], known: set[tuple[int, int]]
    ) -> None:
        """Follow a content no more; what was not read of it is lost. Raises as :meth:`_move` does."""
        copies = []
        for inode, entry in there.items():
            if inode in known or inode == content.inode or entry.stat.st_size >= content.place:
                continue
            with contextlib.suppress(OSError):
                if self._original(entry, (content,)) is not None:
                    # A copy that was made before the last lines were read: all of it is known.
                    copies.append(self._begin(entry))
                    self._skip(copies[-1])
        known |= {copy.inode for copy in copies}
        self._shut(content)
        self._contents.remove(content)
        self._contents += copies
        if not content.is_done:
            self._gap(content, why, content.place, content.seen if content.seen > content.place else None)

    def _age(self, content: _Content, current: tuple[int, int] | None) -> bool:
        """Let go of a rotated file that is read and quiet; return whether the state changed."""
        if content.descriptor < 0:
            return False
        what = os.fstat(content.descriptor)
        if what.st_size > content.seen:
            content.seen, content.moved = what.st_size, self._clock()
        is_quiet = self._clock() - content.moved >= self._linger
        if content.inode == current or not is_quiet or not content.is_committed or what.st_size != content.read:
            return False
        if content.part:
            return False  # the next read sends it
        self._shut(content)
        content.is_done = True  # if it is gone, the next look sees to its copies
        return True

    def _skip(self, content: _Content) -> None:
        """Take a file that was there before us for read."""
        size = os.fstat(content.descriptor).st_size
        content.place = content.start = content.read = content.seen = size
        content.begun = os.pread(content.descriptor, _PRINT, 0)
        content.know()
        content.before = _Print.of(os.pread(content.descriptor, min(size, _PRINT), max(0, size - _PRINT)))
        content.is_done = True
        self._shut(content)

    @staticmethod
    def _shut(content: _Content) -> None:
        if content.descriptor >= 0:
            os.close(content.descriptor)
        content.descriptor = -1

    def _gap(self, content: _Content, why: str, first: int, last: int | None) -> None:
        log.warning("%s: %s (from byte %d).", content.name, why, first)
        gap = {"file": content.name, "why": why, "first": first}
        self._gaps.append(gap if last is None else {**gap, "last": last})

    # --- the lines

    def _read(self) -> _Batch | None:
        """Return the next lines and gaps; None when there are none."""
        batch = _Batch([_dump({"gap": gap}) for gap in self._gaps], gaps=len(self._gaps))
        is_new = False
        for content in self._contents:
            # One whose beginning no look has noted yet is not read: a truncation would be noticed only afterwards.
            while content.descriptor >= 0 and content.begun and batch.size < _BATCH:
                # What is known is read along, at once with what is new: a file that was truncated a moment ago would
                # else be read under the name of what it held before, and then once more under its own.
                begin, known = content.read - len(content.recent), content.recent
                if content.read < len(content.begun):
                    begin, known = 0, content.begun
                data = os.pread(content.descriptor, content.read - begin + _CHUNK, begin)
                if not data.startswith(known):
                    break  # the next look says so
                data = data[content.read - begin :]
                if not data:
                    self._finish(content, batch)
                    break
                begun = content.begun
                self._feed(content, data, batch)
                if content.begun != begun:
                    content.know()
                    is_new = True
        if is_new:
            # Before it is sent: what takes its place while nobody follows must not pass for it.
            self._save()
        return batch if batch.lines else None

    def _feed(self, content: _Content, data: bytes, batch: _Batch) -> None:
        """Cut what was read into lines."""
        content.moved = self._clock()
        if len(content.begun) < _PRINT:
            content.begun = (content.begun[: content.read] + data)[:_PRINT]
        joined = content.recent + data
        end = 0
        while (at := data.find(b"\n", end)) >= 0:
            self._add(content, data[end:at], batch, content.read + at + 1)
            end = at + 1
        if end:
            upto = len(content.recent) + end
            content.boundary = _Print.of(joined[max(0, upto - _PRINT) : upto])
        self._grow(content, data[end:])
        content.read += len(data)
        content.recent = joined[-_PRINT:]
        content.seen = max(content.seen, content.read)
        if end:
            self._mark(content, batch)

    @staticmethod
    def _mark(content: _Content, batch: _Batch) -> None:
        batch.places[content] = (content.start, content.boundary)

    def _finish(self, content: _Content, batch: _Batch) -> None:
        """Send a line that nobody will end any more."""
        is_quiet = self._clock() - content.moved >= self._linger
        if content.part and is_quiet and content.inode != self._written:
            self._add(content, b"", batch, content.read)
            content.boundary = _Print.of(content.recent)
            self._mark(content, batch)

    @staticmethod
    def _grow(content: _Content, piece: bytes) -> None:
        if not content.start and not content.part:
            # A file whose writer did not notice that it was truncated begins with a hole, which reads as NULs.
            piece = piece.lstrip(b"\x00")
        room = MOST_LINE - len(content.part)
        if content.digest is None and len(piece) > room:
            content.digest = hashlib.sha256(content.part)
        if content.digest is not None:
            content.digest.update(piece)
        content.part += piece[:room]

    def _add(self, content: _Content, piece: bytes, batch: _Batch, after: int) -> None:
        """Add a line that ends with ``piece``; the next one begins at ``after``."""
        self._grow(content, piece)
        line, digest = bytes(content.part), content.digest
        offset, content.start = content.start, after
        content.part, content.digest = bytearray(), None
        told: dict[str, Any] = {"file": content.name, "offset": offset}
        told |= _as_json(line)
        if digest is not None:
            told["cut"] = {"bytes": after - 1 - offset, "sha256": digest.hexdigest()}
        batch.lines.append(_dump(told))
        batch.size += len(line)

    # --- the state

    def _commit(self, batch: _Batch) -> None:
        for content, (place, before) in batch.places.items():
            content.place, content.before = place, before
            content.know()
        del self._gaps[: batch.gaps]
        self._save()

    def _save(self) -> None:
        contents = [
            {
                "name": one.name,
                "inode": list(one.inode),
                "place": one.place,
                "before": [one.before.size, one.before.sha256],
                "head": [one.head.size, one.head.sha256],
                "edges": one.edges,
                "seen": one.seen,
                "done": one.is_done,
            }
            for one in self._contents
        ]
        text = json.dumps({"version": 1, "file": str(self._file), "contents": contents, "gaps": self._gaps}, indent=1)
        try:
            replace(self._state, text.encode())
        except OSError as error:
            raise Unavailable(f"The state {self._state} cannot be written: {error.strerror}.") from None

    def _load(self) -> None:
        try:
            found = json.loads(self._state.read_bytes())
            if found["version"] != 1 or found["file"] != str(self._file):
                raise Refused(f"The state {self._state} is of another file: {found['file']}. Name another one.")
            self._gaps = list(found["gaps"])
            self._contents = [
                _Content(
                    one["name"],
                    (one["inode"][0], one["inode"][1]),
                    place=one["place"],
                    start=one["place"],
                    read=one["place"],
                    before=_Print(*one["before"]),
                    head=_Print(*one["head"]),
                    edges={int(end): digest for end, digest in one["edges"].items()},
                    seen=one["seen"],
                    is_done=one["done"],
                    moved=self._clock(),
                )
                for one in found["contents"]
            ]
        except FileNotFoundError:
            self._is_first = True
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
            # Beginning anew could lose lines without a word.
            raise Refused(f"The state {self._state} cannot be read. Move it away to begin anew.") from None


@dataclass(frozen=True, slots=True)
class _Entry:
    path: Path
    stat: os.stat_result


def _paths(there: dict[tuple[int, int], _Entry]) -> dict[tuple[int, int], Path]:
    return {inode: entry.path for inode, entry in there.items()}


@contextlib.contextmanager
def _file(entry: _Entry) -> Iterator[BinaryIO]:
    """Open a file of a list. Raises :class:`_RenamedError` when it is not there any more, :class:`OSError`."""
    try:
        file = entry.path.open("rb")
    except FileNotFoundError:
        raise _RenamedError from None
    with file:
        what = os.fstat(file.fileno())
        if (what.st_dev, what.st_ino) != (entry.stat.st_dev, entry.stat.st_ino):
            raise _RenamedError
        yield file


def _lock(file: Path) -> int:
    """Take the lock of a state: two that follow one file with one state would undo each other's places."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Unavailable(f"{file} cannot be made: {error.strerror}.") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise Refused("Another one follows with this state already.") from None
    return descriptor


def _as_json(line: bytes) -> dict[str, str]:
    """Return a line as it can stand in JSON, to the byte."""
    try:
        return {"line": line.decode()}
    except UnicodeDecodeError:
        return {"line64": base64.b64encode(line).decode()}


def _dump(told: dict[str, Any]) -> bytes:
    return json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _is_pattern(name: str) -> bool:
    return any(sign in name for sign in "*?[")


def _is_rotation(name: str, of: str) -> bool:
    """Whether ``name`` is the file ``of``, or what a rotation calls it: ``of.1``, ``of-20261124``."""
    return name == of or (name.startswith(of) and name[len(of)] in ".-_~")
