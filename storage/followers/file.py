"""A copy in an append-only file on another volume: what stands in it, and what happens when writing it goes wrong?

The file begins with ``breakglass-copy 1`` and a line feed; then come records, each::

    kind (1 byte) | length of the payload (4, big-endian) | CRC-32 of these five (4) | payload | SHA-256 of that (32)

    B  begin: canonical JSON {"first": leaf hash of entry 0 in hex, "origin": the log's name}; the first record, once
    E  entry: seq (8, big-endian) | leaf hash (32) | body
    P  entry whose body was pruned before it was copied: seq (8) | leaf hash (32)
    H  signed head: the note, as it was signed

Rules
-----
* What is acknowledged was written in one piece and synced to the disk; so was the folder, for a new file.
* A writer that was killed leaves an unfinished last record. That, and only that, is cut off: the frame says that more
  was to come than there is. A complete record is never removed. One that is damaged stops the copy, loudly.
* It follows only the log that it began: the origin and entry 0 are in the file, and what comes again is compared.
* A file is begun with entry 0 and never otherwise: a volume that is not mounted does not get a new file by mistake.
* One writer at a time, by a lock on the file.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import struct
import zlib
from array import array
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NamedTuple

from storage.audit import canonical, parse_object
from storage.followers.seam import CopyTrouble, Item, Kind, Place

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from storage.followers.seam import SignedNote

log = logging.getLogger(__name__)

MAGIC: Final = b"breakglass-copy 1\n"
_FRAME: Final = struct.Struct(">cII")
_ENTRY: Final = struct.Struct(">Q32s")
_HASH: Final = 32
_LONGEST: Final = 1024 * 1024  # a payload; an entry has 60,000 bytes at the most
_BEGIN, _WHOLE, _PRUNED, _HEAD = b"B", b"E", b"P", b"H"


class _Record(NamedTuple):
    kind: bytes
    payload: bytes
    offset: int  # of its first byte
    end: int  # of the byte after it


@dataclass(slots=True)
class _Known:
    """What was read of the file, or written to it."""

    file: tuple[int, int] | None = None  # device and inode
    end: int = 0  # of the last complete record
    offsets: array[int] = field(default_factory=lambda: array("Q"))  # of each entry's record
    first: bytes | None = None  # leaf hash of the entry that it was begun with
    head: SignedNote | None = None  # the newest
    is_synced: bool = False


class FileCopy:
    """The copy in the file at ``path``. Used by one thread at a time."""

    is_readable = True

    def __init__(self, name: str, path: Path, origin: str) -> None:
        self.name = name
        self._path = path
        self._origin = origin
        self._known = _Known()

    def deliver(self, items: Sequence[Item], head: SignedNote | None, *, now: datetime) -> int:  # noqa: ARG002
        """Append what is not there yet and sync it; see :class:`storage.followers.seam.Copy`."""
        with self._opened(is_new=bool(items) and items[0].seq == 0) as number:
            # 1. What stands there? A restart reads the whole file once, and so checks it.
            self._catch_up(number)
            count = len(self._known.offsets)
            if items and items[0].seq > count:
                raise CopyTrouble(self._say_lost(items[0].seq))
            # 2. What came before must be what stands there.
            for item in items:
                if item.seq < count:
                    self._compare(number, item)
            # 3. The rest, in one piece.
            new = [item for item in items if item.seq >= count]
            if new and not count and self._known.first not in (None, new[0].leaf_hash):
                raise CopyTrouble(self._say_different(0))  # it was begun, and killed before entry 0
            pieces = [MAGIC, self._begin_record(new[0])] if new and not self._known.end else []
            offsets = []
            at = self._known.end + sum(map(len, pieces))
            for item in new:
                offsets.append(at)
                pieces.append(_entry_record(item))
                at += len(pieces[-1])
            if head is not None and head != self._known.head and (count or new):
                pieces.append(_record(_HEAD, head))
                at += len(pieces[-1])
            if pieces:
                self._append(number, b"".join(pieces))
                self._known.offsets.extend(offsets)
                self._known.end = at
                if head is not None:
                    self._known.head = head
                if new and not count:
                    self._known.first = new[0].leaf_hash
            elif not self._known.is_synced:
                self._sync(number)
            return len(self._known.offsets) - 1

    def position(self) -> int | None:
        """Return the last entry in the file; None when there is no file, or nothing in it."""
        last = None
        for item in self.read():
            last = item.seq
        return last

    def read(self, start: int = 0) -> Iterator[Item]:
        """Give the entries as they stand, every record checked. Raises CopyTrouble at one that is damaged."""
        for record in self._read_records():
            if record.kind in (_WHOLE, _PRUNED):
                item = _read_entry(record)
                if item.seq >= start:
                    yield item

    def heads(self) -> Iterator[SignedNote]:
        """Give the signed heads as they stand, oldest first."""
        return (record.payload for record in self._read_records() if record.kind == _HEAD)

    # ------------------------------------------------------------------------------------ opening

    @contextmanager
    def _opened(self, *, is_new: bool) -> Iterator[int]:
        """Open and lock the file, and make sentences of what goes wrong; whatever does, all is read again."""
        if not self._path.parent.is_dir():
            raise CopyTrouble(f"The folder of {self._path} is not there: is its volume mounted?")
        try:
            flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_CREAT if is_new else 0)
            number = os.open(self._path, flags, 0o600)
        except FileNotFoundError:
            self._known = _Known()
            raise CopyTrouble(
                f"{self._path} is not there any more: bring it back, or have a new one begun with “breakglass follower "
                f"reset {self.name}”."
            ) from None
        except OSError as error:
            raise CopyTrouble(f"{self._path} cannot be opened: {error.strerror}.") from error
        try:
            self._lock(number)
            self._recognise(number)
            yield number
        except OSError as error:
            self._known = _Known()
            raise CopyTrouble(_say_error(self._path, error)) from error
        except CopyTrouble:
            self._known = _Known()
            raise
        finally:
            os.close(number)

    def _lock(self, number: int) -> None:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise CopyTrouble(f"{self._path} is not a file.")
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise CopyTrouble(f"{self._path} is being written by another program.") from None

    def _recognise(self, number: int) -> None:
        """Read all of it again when it is not the file that we know, or was cut."""
        status = os.fstat(number)
        if self._known.file != (status.st_dev, status.st_ino) or status.st_size < self._known.end:
            self._known = _Known(file=(status.st_dev, status.st_ino))

    # ------------------------------------------------------------------------------------ reading

    def _catch_up(self, number: int) -> None:
        """Read the records that are not known yet, and cut off an unfinished last one."""
        size = os.fstat(number).st_size
        if size == self._known.end:
            return
        self._known.is_synced = False  # who wrote it may have been killed before the sync
        with os.fdopen(os.dup(number), "rb") as stream:
            for record in self._records(stream, self._known.end, size):
                self._know(record)
        if self._known.end < size:
            log.warning(
                "copy %s: %d bytes of a record that was never finished are cut off", self.name, size - self._known.end
            )
            os.ftruncate(number, self._known.end)

    def _know(self, record: _Record) -> None:
        if record.kind == _BEGIN:
            begun = _read_begin(record)
            if begun["origin"] != self._origin:
                raise CopyTrouble(
                    f"{self._path} holds the log {begun['origin']}, not {self._origin}: give this log another file."
                )
            self._known.first = bytes.fromhex(begun["first"])
        elif record.kind == _HEAD:
            self._known.head = record.payload
        else:
            item = _read_entry(record)
            if item.seq != len(self._known.offsets):
                raise CopyTrouble(f"In {self._path} entry {item.seq} stands where {len(self._known.offsets)} belongs.")
            if item.seq == 0 and item.leaf_hash != self._known.first:
                raise CopyTrouble(f"{self._path} does not begin with the entry that it was begun with.")
            self._known.offsets.append(record.offset)
        self._known.end = record.end

    def _records(self, stream: IO[bytes], start: int, size: int) -> Iterator[_Record]:
        """Give the complete records from ``start`` to ``size``; what is left after them was never finished."""
        stream.seek(start)
        at = start
        if start == 0:
            magic = stream.read(len(MAGIC))
            if not MAGIC.startswith(magic):
                raise CopyTrouble(f"{self._path} is not a copy of a log: give the copy a path of its own.")
            if len(magic) < len(MAGIC):
                return
            at = len(MAGIC)
        is_first = start == 0
        while size - at >= _FRAME.size:
            frame = stream.read(_FRAME.size)
            if len(frame) < _FRAME.size:
                return
            kind, length, check = _FRAME.unpack(frame)
            # Checked by itself: a wrong length would make the rest of the file look unfinished, and be cut off.
            if check != zlib.crc32(frame[:5]) or length > _LONGEST or (kind == _BEGIN) is not is_first:
                raise CopyTrouble(self._say_damaged(at))
            end = at + _FRAME.size + length + _HASH
            if end > size:
                return
            rest = stream.read(length + _HASH)
            if len(rest) < length + _HASH:
                return
            payload = rest[:length]
            if sha256(frame + payload).digest() != rest[length:] or kind not in (_BEGIN, _WHOLE, _PRUNED, _HEAD):
                raise CopyTrouble(self._say_damaged(at))
            yield _Record(kind, payload, at, end)
            at, is_first = end, False

    def _read_records(self) -> Iterator[_Record]:
        try:
            with self._path.open("rb") as stream:
                yield from self._records(stream, 0, os.fstat(stream.fileno()).st_size)
        except FileNotFoundError:
            if not self._path.parent.is_dir():
                raise CopyTrouble(f"The folder of {self._path} is not there: is its volume mounted?") from None
        except OSError as error:
            raise CopyTrouble(f"{self._path} cannot be read: {error.strerror}.") from error

    def _compare(self, number: int, item: Item) -> None:
        """Refuse an entry that is not the one that stands at its number."""
        offset = self._known.offsets[item.seq]
        end = self._known.offsets[item.seq + 1] if item.seq + 1 < len(self._known.offsets) else self._known.end
        with os.fdopen(os.dup(number), "rb") as stream:
            there = next(self._records(stream, offset, end), None)
        if there is None or not _read_entry(there).is_same(item):
            raise CopyTrouble(self._say_different(item.seq))

    # ------------------------------------------------------------------------------------ writing

    def _begin_record(self, first: Item) -> bytes:
        return _record(_BEGIN, canonical({"first": first.leaf_hash.hex(), "origin": self._origin}))

    def _append(self, number: int, data: bytes) -> None:
        """Write at the end and sync. When that fails nothing of it stays, so that it is written anew the next time.

        Not only a full disk: after a failed sync the system may call pages clean that never reached the disk.
        """
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(number, left) :]
            self._sync(number)
        except OSError:
            with suppress(OSError):
                os.ftruncate(number, self._known.end)
            raise

    def _sync(self, number: int) -> None:
        os.fsync(number)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._known.is_synced = True

    # ------------------------------------------------------------------------------------ saying

    def _say_different(self, seq: int) -> str:
        return (
            f"A different entry {seq} stands in {self._path}: the log was changed, or this is another log's. "
            f"Compare them with “breakglass verify --against {self.name}”."
        )

    def _say_lost(self, start: int) -> str:
        last = len(self._known.offsets) - 1
        ends = f"ends at entry {last}" if last >= 0 else "is empty"
        return (
            f"{self._path} {ends}, though entry {start - 1} was acknowledged: it was cut or replaced. "
            f"Bring the right file back, or have a new one begun with “breakglass follower reset {self.name}”."
        )

    def _say_damaged(self, offset: int) -> str:
        return (
            f"{self._path} is damaged at byte {offset}; nothing is added to it. "
            f"Keep it, give the copy a new path, and run “breakglass follower reset {self.name}”."
        )


def _record(kind: bytes, payload: bytes) -> bytes:
    begin = kind + len(payload).to_bytes(4, "big")
    frame = begin + zlib.crc32(begin).to_bytes(4, "big")
    return frame + payload + sha256(frame + payload).digest()


def _entry_record(item: Item) -> bytes:
    kind = _PRUNED if item.body is None else _WHOLE
    return _record(kind, _ENTRY.pack(item.seq, item.leaf_hash) + (item.body or b""))


def _read_entry(record: _Record) -> Item:
    if len(record.payload) < _ENTRY.size:
        raise CopyTrouble(f"The record at byte {record.offset} is too short for an entry.")
    seq, leaf = _ENTRY.unpack_from(record.payload)
    return Item(seq, record.payload[_ENTRY.size :] if record.kind == _WHOLE else None, leaf)


def _read_begin(record: _Record) -> dict[str, str]:
    try:
        begun = parse_object(record.payload)
        bytes.fromhex(begun["first"])
        return {"origin": str(begun["origin"]), "first": str(begun["first"])}
    except (ValueError, KeyError, TypeError):
        raise CopyTrouble("The file's first record does not say whose copy it is.") from None


def _say_error(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path} cannot be written: its disk is full. Make room; nothing is lost, it goes on by itself."
    return f"{path} cannot be written: {error.strerror}."


def build(place: Place) -> FileCopy:
    """Build the copy that the policy describes."""
    path = Path(place.settings["path"])
    if not path.is_absolute():
        raise CopyTrouble(f"The path of the copy {place.name} must begin with “/”: {path}.")
    return FileCopy(place.name, path, place.origin)


KIND: Final = Kind(keys={"path": True}, build=build)
