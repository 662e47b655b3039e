"""Is this record of emergency access whole, who says so, and did what it records keep to the rules?

    python verify.py FILE.zip|FOLDER|FILE.jsonl|FILE.csv [--vkey KEY]… [--head NOTE]…

Rules
-----
* One file, Python 3.9 or newer, nothing else; only checking signatures needs the package ``cryptography``. It is copied
  into every bundle as ``verify.py``, and ``breakglass verify`` runs this very code. That is why it is one long file.
* Nothing is trusted but the keys and heads that were handed over by another way: no database, no network.
* Everything is found, not only the first thing: each finding has a class, an entry and a sentence. Exit code 4 if any.
* Where a hash is wrong nothing is inferred from the entry: what follows from a finding is not a second finding.
* A hostile file gets findings, never an exception and never unbounded memory.
* What is sound is read quickly, several entries at a time and in several processes; that way only ever says that all is
  well. For anything else the careful way reads the file from its beginning, so findings come from one place.
* What no file can show by itself is a whole log made up anew by whoever holds its key, and a tail that was cut off
  together with its heads: compare with a head that was kept elsewhere (``--head``), or with a copy.

Parts: entries, tree, signed heads, replay of the rules, exports, the quick way, bundles,
command line. ``FORMAT.md`` says it in prose.
"""

from __future__ import annotations

import array
import base64
import binascii
import csv
import enum
import gc
import json
import json.encoder
import os
import re
import sys
import zipfile
import zlib
from bisect import bisect_left, bisect_right
from datetime import datetime, timedelta
from hashlib import sha256
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import IO, ClassVar, Final


class Kind(str, enum.Enum):  # noqa: UP042 - Python 3.9 has no StrEnum
    """The class of a finding."""

    UNREADABLE = "unreadable"  # not in the written format
    ALTERED = "altered"  # not the bytes that the hashes, or the readable columns, stand for
    MISSING = "missing"
    REORDERED = "reordered"
    DOUBLED = "doubled"
    TRUNCATED = "truncated"  # the end is missing
    FORKED = "forked"  # a head of another log, or of the same one rewritten
    ROLLED_BACK = "rolled back"  # a head over fewer entries than an earlier one
    BAD_SIGNATURE = "bad signature"
    UNKNOWN_SIGNATURE = "unknown signature"
    CLOCK = "clock"  # time goes backwards
    LATE_ANCHOR = "late anchor"  # signed long after it was written
    ENTRY_WITHOUT_STATE = "entry without state"
    STATE_WITHOUT_ENTRY = "state without entry"
    ILLEGAL_MOVE = "illegal move"
    MALFORMED = "malformed"  # an entry that does not say what one of its kind must
    WRONG_PERSON = "wrong person"
    SELF_APPROVAL = "self-approval"
    NOT_ASKED = "approval by somebody not asked"
    APPROVED_TWICE = "approved twice"
    NO_QUORUM = "grant without quorum"
    BEFORE_APPROVAL = "credential before approval"
    AFTER_END = "credential after its end"
    TOO_LONG = "longer than approved"
    TWO_LIVE = "two credentials at once"
    STILL_OUT = "credential not taken back"
    NOT_INDEPENDENT = "review by one involved"
    REVIEW_MISSING = "review missing"
    CAPTURE_GAP = "capture gap"  # commands were lost, or not recorded
    UNKNOWN_POLICY = "unknown policy"  # opened under rules that are not on record


class Finding(NamedTuple):
    """What is wrong: its class, the entry (None: the whole), a sentence, and the request that it is about."""

    kind: Kind
    seq: int | None
    sentence: str
    request: str | None = None


class Findings(list[Finding]):
    """The findings so far, bounded: a file of rubbish gives no report without end."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def add(self, kind: Kind, seq: int | None, sentence: str, request: str | None = None) -> None:
        """Keep one."""
        if len(self) < self.limit:
            self.append(Finding(kind, seq, sentence, request))
        elif len(self) == self.limit:
            self.append(Finding(kind, None, "There are more findings than are listed."))


class Report(NamedTuple):
    """What was read and found. ``head``: size and root that the entries stand at; ``unchecked``: what was not asked."""

    entries: int
    findings: list[Finding]
    head: tuple[int, bytes] | None = None
    unchecked: tuple[str, ...] = ()


LIMIT: Final = 10_000
_OTHER_CLOCK: Final = 5  # seconds that a target's clock may be ahead of the log's
SLACK: Final = timedelta(minutes=2)  # an entry carries the time at which its step began; a step may take so long

# --- entries -------------------------------------------------------------------------------------------------------

MAX_BODY: Final = 60_000
_EVENT: Final = re.compile(r"[a-z][a-z0-9_-]*:[a-z][a-z0-9_-]*", re.ASCII)
_NAME: Final = re.compile(r"[!-~]{1,64}", re.ASCII)
_AT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)
_DATA_AT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z", re.ASCII)
_NAMES: Final = ("request", "from", "to", "policy", "refused")
_ACTOR: Final = {"person", "team"}
_KNOWN: Final = frozenset({"v", "seq", "at", "event", "actor", "version", "data", *_NAMES})
_ENCODER: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _refuse_constant(word: str) -> Any:  # noqa: ANN401 - a hook of json's
    raise ValueError(word)


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant)


def _make_writer() -> Callable[[Any], str]:
    """Return what writes canonical JSON: json's own machine, kept instead of made anew for each value."""
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:  # a Python without it
        return _ENCODER.encode
    machine = make(None, _ENCODER.default, json.encoder.encode_basestring, None, ":", ",", True, False, False)
    return lambda value: "".join(machine(value, 0))


_write: Final = _make_writer()
# Words that were found good: states, events, people come again and again.
_good_names: Final[set[str]] = set()
_good_events: Final[set[str]] = set()
_good_people: Final[set[str]] = {""}


def read_body(body: str) -> dict[str, Any]:
    """Read an entry's body strictly: one spelling, known members, each of its kind. ValueError says what is wrong."""
    try:
        entry, end = _DECODER.scan_once(body, 0)  # type: ignore[attr-defined]
        is_canonical = end == len(body) and _write(entry) == body
    except (ValueError, RecursionError, StopIteration):
        raise ValueError("it is not canonical JSON") from None
    if type(entry) is not dict or not is_canonical:
        raise ValueError("it is not a canonical JSON object")
    if len(body) * 4 > MAX_BODY and len(body.encode()) > MAX_BODY:
        raise ValueError("it is longer than an entry can be")
    if not entry.keys() <= _KNOWN:
        raise ValueError("it has a member that is unknown")
    if entry.get("v") != 1 or type(entry["v"]) is not int:
        raise ValueError("it is of a format which this version does not know")
    seq, actor, event = entry.get("seq"), entry.get("actor"), entry.get("event")
    if type(seq) is not int or seq < 0:
        raise ValueError("'seq' is missing or of the wrong kind")
    if type(event) is not str or not (event in _good_events or _is_good(_EVENT, event, _good_events)):
        raise ValueError("'event' is missing or of the wrong kind")
    if type(actor) is not dict or actor.keys() != _ACTOR or actor["person"] == "":
        raise ValueError("'actor' must hold team and person")
    for word in actor.values():
        if type(word) is not str or not (word in _good_people or _is_person(word)):
            raise ValueError("'actor' must hold team and person")
    for name in _NAMES:
        if name in entry:
            word = entry[name]
            if type(word) is not str or not (word in _good_names or _is_good(_NAME, word, _good_names)):
                raise ValueError(f"{name!r} is of the wrong kind")
    if "version" in entry and type(entry["version"]) is not int:
        raise ValueError("'version' is of the wrong kind")
    if "data" in entry:
        data = entry["data"]
        is_deep = body.count("{") + body.count("[") > 16 and _depth(data) > 16
        if type(data) is not dict or not data or is_deep:
            raise ValueError("'data' is of the wrong kind")
    at = entry.get("at")
    if type(at) is not str or not _AT.fullmatch(at):
        raise ValueError("'at' is not a time of the log")
    datetime.fromisoformat(at[:-1])
    return entry


def _is_good(pattern: re.Pattern[str], word: str, good: set[str]) -> bool:
    if not pattern.fullmatch(word):
        return False
    if len(good) < 10_000:
        good.add(word)
    return True


def _is_person(word: str) -> bool:
    if not (0 < len(word) <= 64 and word.isprintable() and " " not in word):
        return False
    if len(_good_people) < 10_000:
        _good_people.add(word)
    return True


def _depth(value: object) -> int:
    """How deep a value is nested; scalars add nothing of their own beyond their container's level."""
    if type(value) is dict:
        return 1 + max(map(_depth, value.values()), default=0)
    if type(value) is list:
        return 1 + max(map(_depth, value), default=0)
    return 1


def read_time(words: object) -> datetime:
    """Read a time as the log writes it. ValueError."""
    if type(words) is not str or not _AT.fullmatch(words):
        raise ValueError("'at' is not a time of the log")
    return datetime.fromisoformat(words[:-1] + "+00:00")  # noqa: FURB162 - Python 3.9


def read_data_time(words: object) -> datetime | None:
    """Read a time inside ``data``, which may lack its decimals; None for what is none."""
    if type(words) is not str or not _DATA_AT.fullmatch(words):
        return None
    try:
        return datetime.fromisoformat(words[:-1] + "+00:00")  # noqa: FURB162 - Python 3.9
    except ValueError:
        return None


# --- the tree: RFC 6962 --------------------------------------------------------------------------------------------

WIDTH: Final = 32
EMPTY_ROOT: Final = sha256(b"").digest()


def leaf_hash(body: bytes) -> bytes:
    """Hash of an entry's exact bytes."""
    return sha256(b"\x00" + body).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash over two subtrees' hashes."""
    return sha256(b"\x01" + left + right).digest()


class Peaks:
    """The growing edge of the tree: the roots of its perfect subtrees, from left to right."""

    def __init__(self, size: int = 0, peaks: Iterable[bytes] = ()) -> None:
        self.size = size
        self.peaks = list(peaks)

    def push(self, leaf: bytes, levels: int = 0) -> None:
        """Append a leaf hash, or the root of a perfect subtree of so many levels, of which the size is a multiple."""
        size, peaks = self.size >> levels, self.peaks
        while size & 1:
            leaf = sha256(b"\x01" + peaks.pop() + leaf).digest()
            size >>= 1
        peaks.append(leaf)
        self.size += 1 << levels

    def root(self) -> bytes:
        """Root of the tree."""
        if not self.peaks:
            return EMPTY_ROOT
        folded = self.peaks[-1]
        for peak in self.peaks[-2::-1]:
            folded = sha256(b"\x01" + peak + folded).digest()
        return folded


def proof_text(steps: Iterable[str]) -> bytes:
    """Give a proof as :class:`Paths` reads it: as it stands between the brackets of a JSONL export."""
    return ",".join(f'"{step}"' for step in steps).encode()


class Paths:
    """Follows inclusion proofs to one root (RFC 9162, 2.1.3.2); what neighbours have in common is hashed once."""

    STEP: ClassVar[int] = 67  # characters of a step: the hash in hexadecimal, its quotes, the comma

    def __init__(self, size: int, root: bytes) -> None:
        self.size = size
        self.root = root
        self._proof = b""
        self._nodes: dict[int, tuple[int, int, bytes]] = {}  # by how much of the proof is left

    def leads(self, leaf: bytes, index: int, proof: bytes) -> bool:
        """Whether the leaf stands at ``index`` under the root; ``proof`` in the form of :func:`proof_text`."""
        if not 0 <= index < self.size:
            return False
        position, last, folded = index, self.size - 1, leaf
        known, nodes = self._proof, self._nodes
        follow: list[tuple[int, tuple[int, int, bytes]]] = []
        for at in range(0, len(proof), self.STEP):
            left = len(proof) - at
            node = (position, last, folded)
            # The same node with the same steps above it was followed to the root already.
            if nodes.get(left) == node and known.endswith(proof[at:]):
                break
            if last == 0:
                return False
            follow.append((left, node))
            step = bytes.fromhex(proof[at + 1 : at + 65].decode())
            if position & 1 or position == last:
                folded = sha256(b"\x01" + step + folded).digest()
                while position and not position & 1:
                    position, last = position >> 1, last >> 1
            else:
                folded = sha256(b"\x01" + folded + step).digest()
            position, last = position >> 1, last >> 1
        else:
            if last or folded != self.root:
                return False
            nodes.clear()
        nodes.update(follow)
        self._proof = proof
        return True


def is_consistent(old: tuple[int, bytes], new: tuple[int, bytes], proof: Sequence[bytes]) -> bool:
    """Whether the tree ``new`` (size, root) begins with ``old`` (RFC 9162, 2.1.4.2)."""
    (old_size, old_root), (size, root) = old, new
    if not 0 <= old_size <= size or any(len(step) != 32 for step in proof):
        return False
    if old_size in {0, size}:
        return not proof and old_root == (root if old_size else EMPTY_ROOT)
    steps = list(proof)
    if old_size & (old_size - 1) == 0:
        steps.insert(0, old_root)
    if not steps:
        return False
    position, last = old_size - 1, size - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    old_folded = folded = steps[0]
    for step in steps[1:]:
        if last == 0:
            return False
        if position & 1 or position == last:
            old_folded, folded = node_hash(step, old_folded), node_hash(step, folded)
            while position and not position & 1:
                position, last = position >> 1, last >> 1
        else:
            folded = node_hash(folded, step)
        position, last = position >> 1, last >> 1
    return last == 0 and old_folded == old_root and folded == root


# --- signed heads: C2SP signed-note, tlog-checkpoint, cosignature/v1 -----------------------------------------------

_SIZE: Final = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)
_HEARTBEAT: Final = re.compile(r"time (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)", re.ASCII)
_MAX_NOTE: Final = 256 * 1024
LOG_KEY: Final = 1
_WITNESS_KEY: Final = 4


class Key(NamedTuple):
    """A public key with the name that it signs under; ``kind`` 1 is a log's, 4 a witness's."""

    name: str
    kind: int
    public: bytes

    @property
    def key_id(self) -> bytes:
        """What stands before its signatures."""
        return sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.public).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(bytes([self.kind]) + self.public).decode()}"

    def accepts(self, signature: bytes, message: bytes) -> bool:
        """Whether it is this key's signature of the message. ModuleNotFoundError: without ``cryptography``."""
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - all else works without it
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


def read_vkey(text: str) -> Key:
    """Read ``name+id+key``. ValueError."""
    name, _, rest = text.partition("+")
    typed = _decode(rest.partition("+")[2])
    if len(typed) != 33 or typed[0] not in (LOG_KEY, _WITNESS_KEY) or not _is_key_name(name):
        raise ValueError("this is not a verifier key of a kind that is known here")
    key = Key(name, typed[0], typed[1:])
    if str(key) != text:
        raise ValueError("this verifier key's id does not belong to its name and key")
    return key


class Signature(NamedTuple):
    """One signature line."""

    name: str
    key_id: bytes
    data: bytes


class SignedHead(NamedTuple):
    """A head as received: the signed text, what it says, and its signature lines."""

    origin: str
    size: int
    root: bytes
    lines: tuple[str, ...]
    signatures: tuple[Signature, ...]
    text: bytes

    @property
    def at(self) -> datetime | None:
        """When a heartbeat says that it was signed."""
        for line in self.lines:
            if found := _HEARTBEAT.fullmatch(line):
                return read_data_time(found[1])
        return None


def read_note(note: bytes) -> SignedHead:
    """Read a signed head strictly; no signature is checked. ValueError says what is wrong."""
    if len(note) > _MAX_NOTE:
        raise ValueError("it is longer than a signed head can be")
    try:
        text, blank, rest = note.decode().rpartition("\n\n")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    lines = rest.split("\n")
    if not blank or len(lines) < 2 or len(lines) > 101 or lines.pop():
        raise ValueError("it has no signatures, or too many")
    origin, size, root, *more = [*text.split("\n"), "", ""]
    if not all(map(_is_line, (origin, *more[:-2]))) or not _SIZE.fullmatch(size) or int(size) >= 1 << 63:
        raise ValueError("it is not a head")
    head = SignedHead(
        origin, int(size), _decode(root), tuple(more[:-2]), tuple(map(_read_signature, lines)), f"{text}\n".encode()
    )
    if len(head.root) != 32 or (head.size == 0 and head.root != EMPTY_ROOT):
        raise ValueError("its root is not that of a log")
    return head


def _read_signature(line: str) -> Signature:
    words = line.split(" ")
    if len(words) != 3 or words[0] != "\u2014" or not _is_key_name(words[1]):
        raise ValueError("one of its signature lines is none")
    data = _decode(words[2])
    if len(data) < 5:
        raise ValueError("one of its signatures is too short")
    return Signature(words[1], data[:4], data[4:])


def _is_line(text: str) -> bool:
    return bool(text) and not any(char < " " or "\ud800" <= char <= "\udfff" for char in text)


def _is_key_name(name: str) -> bool:
    return "+" not in name and _is_line(name) and not any(map(str.isspace, name))


def _decode(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("it is not base64") from None
    if base64.b64encode(data).decode() != text:
        raise ValueError("its base64 has another spelling")
    return data


def check_signature(key: Key, signature: Signature, text: bytes) -> bool:
    """Whether a signature line is that key's over the head's text."""
    if key.kind != _WITNESS_KEY:
        return len(signature.data) == 64 and key.accepts(signature.data, text)
    seconds = int.from_bytes(signature.data[:8], "big")
    message = f"cosignature/v1\ntime {seconds}\n".encode() + text
    return len(signature.data) == 72 and 0 < seconds < 253402300800 and key.accepts(signature.data[8:], message)


class Rotation(NamedTuple):
    """An entry that says that the log's key was changed."""

    seq: int
    old: Key | None
    new: Key


class Seen(NamedTuple):
    """A head to be checked: where it was found, its note, and the root of the log there (None: not known)."""

    where: str
    note: bytes
    root: bytes | None


def trusted(
    keys: Iterable[Key], rotations: Sequence[Rotation], notes_over: Callable[[int], Iterable[bytes]]
) -> tuple[Key, ...]:
    """Return the keys with those that they vouch for: by the head over a rotation's entry, which both keys sign.

    Attack: an entry that names another's key, in a log made up anew, under heads which that key alone signed. So the
    next key is trusted when the one before it signed that head; and the one before when the next did.
    ``notes_over`` gives the heads of a size.
    """
    known = dict.fromkeys(keys)
    grown = True
    while grown:
        grown = False
        for rotation in rotations:
            for key, voucher in ((rotation.new, rotation.old), (rotation.old, rotation.new)):
                if key is None or key in known or voucher not in known or key.name != voucher.name:
                    continue
                if _is_signed(notes_over(rotation.seq + 1), {voucher, rotation.new}):
                    known[key] = None
                    grown = True
    return tuple(known)


class Heads:
    """Checks signed heads, in the order in which they were signed, against the log and the keys.

    ``keys`` are those of :func:`trusted`; without a log's key no signature is checked. ``size`` is how many entries
    there are (None: not known).
    """

    def __init__(
        self, findings: Findings, keys: Iterable[Key], rotations: Sequence[Rotation], size: int | None
    ) -> None:
        self.findings = findings
        self.size = size
        self.count = 0
        self.agreed = 0  # the largest size under a head that is the log's
        self.signed: dict[int, bytes] = {}  # roots by size, of heads that a trusted key signed
        self._keys = {(key.name, key.key_id): key for key in keys}
        self._has_keys = any(key.kind == LOG_KEY for key in self._keys.values())
        self._rotations = rotations
        self._origin: str | None = None
        self._highest = 0
        self._roots: tuple[int, bytes] | None = None  # of the head before
        self._forked = False

    def check(self, seen: Seen) -> SignedHead | None:
        """Check one head; return it if it can be read."""
        self.count += 1
        try:
            head = read_note(seen.note)
        except ValueError as error:
            self.findings.add(Kind.UNREADABLE, None, f"{seen.where} is not a signed head: {error}.")
            return None
        newest = head.size - 1 if head.size else None
        if self._origin is None:
            self._origin = head.origin
        elif head.origin != self._origin:
            self.findings.add(Kind.FORKED, newest, f"{seen.where} is a head of another log, {head.origin}.")
            return head
        if self._has_keys:
            if not self._check_signatures(seen.where, head, newest):
                return head
            self.signed[head.size] = head.root
        if head.size < self._highest:
            self.findings.add(
                Kind.ROLLED_BACK,
                newest,
                f"{seen.where} is over {head.size} entries, though a head over {self._highest} was signed before it.",
            )
        self._highest = max(self._highest, head.size)
        if self.size is not None and head.size > self.size:
            self.findings.add(
                Kind.TRUNCATED,
                self.size,
                f"It is missing: {seen.where} was signed over {head.size} entries, and the log has {self.size}.",
            )
            return head
        is_other = seen.root is not None and seen.root != head.root
        if self._roots is not None and self._roots[0] == head.size and self._roots[1] != head.root:
            is_other = True
        self._roots = (head.size, head.root)
        if is_other:
            if not self._forked:
                self.findings.add(
                    Kind.FORKED,
                    min(self.agreed, newest or 0),
                    f"The log is not the one of which {seen.where}, over {head.size} entries, was signed: it was "
                    f"rewritten between here and entry {newest or 0}, or the head is another log's.",
                )
            self._forked = True
        elif seen.root is not None:
            self._forked = False
            self.agreed = max(self.agreed, head.size)
        return head

    def _check_signatures(self, where: str, head: SignedHead, newest: int | None) -> bool:
        good, is_bad = [], False
        for signature in head.signatures:
            key = self._keys.get((signature.name, signature.key_id))
            if key is None:
                continue
            if check_signature(key, signature, head.text):
                good.append(key)
            else:
                is_bad = True
                self.findings.add(Kind.BAD_SIGNATURE, newest, f"The signature of {key.name} on {where} is wrong.")
        logs = [key for key in good if key.kind == LOG_KEY and key.name == head.origin]
        if not logs:
            if not is_bad:
                self.findings.add(Kind.UNKNOWN_SIGNATURE, newest, f"No key that is trusted signed {where}.")
            return False
        before = [rotation for rotation in self._rotations if rotation.seq < head.size]
        if before and before[-1].new not in logs and head.size > before[-1].seq + 1:
            self.findings.add(
                Kind.BAD_SIGNATURE,
                newest,
                f"{where} was signed with a key that was no longer the log's: it was changed in entry "
                f"{before[-1].seq}.",
            )
            return False
        return not is_bad


def check_note(findings: Findings, keys: Iterable[Key], rotations: Sequence[Rotation], where: str, note: bytes) -> None:
    """Check the signatures of one head that was received by itself."""
    Heads(findings, keys, rotations, None).check(Seen(where, note, None))


def _is_signed(notes: Iterable[bytes], keys: Iterable[Key]) -> bool:
    """Whether one of the heads is signed by all of the keys."""
    for note in notes:
        try:
            head = read_note(note)
        except ValueError:
            continue
        if all(
            any(
                (line.name, line.key_id) == (key.name, key.key_id) and check_signature(key, line, head.text)
                for line in head.signatures
            )
            for key in keys
        ):
            return True
    return False


def compare_kept(findings: Findings, note: bytes, where: str, root_at: Callable[[int], bytes | None], size: int) -> str:
    """Compare with a head that was kept elsewhere; return what could not be compared, "" when all was."""
    try:
        head = read_note(note)
    except ValueError as error:
        findings.add(Kind.UNREADABLE, None, f"{where} is not a signed head: {error}.")
        return ""
    if head.size > size:
        findings.add(
            Kind.TRUNCATED, size, f"It is missing: {where} is over {head.size} entries, and the log has {size}."
        )
        return ""
    root = root_at(head.size)
    if root is None:
        return f"{where} is over {head.size} entries, and nothing here leads from there to the log's head."
    if root != head.root:
        findings.add(
            Kind.FORKED,
            head.size - 1 if head.size else None,
            f"The log of {head.size} entries is not the one of {where}: it was rewritten.",
        )
    return ""


# --- the rules, by replay ------------------------------------------------------------------------------------------

# From which state, by which event, to which state, and as whom: generated from TRANSITIONS in workflows/lifecycle.py,
# and held equal to it by a test.
# fmt: off
MOVES: Final[Mapping[tuple[str | None, str], tuple[str, str]]] = {
    (None, "request:open"): ("pending", "responder"),
    ("pending", "request:approve"): ("pending", "custodian"),
    ("pending", "request:escalate"): ("pending", "system"),
    ("pending", "request:nudge"): ("pending", "system"),
    ("pending", "request:quorum"): ("approved", "system"),
    ("pending", "request:deny"): ("denied", "custodian"),
    ("pending", "request:withdraw"): ("withdrawn", "requester"),
    ("pending", "request:lapse"): ("lapsed", "system"),
    ("approved", "credential:reveal"): ("approved", "requester"),
    ("approved", "credential:hold"): ("approved", "system"),
    ("approved", "credential:token"): ("approved", "system"),
    ("approved", "credential:abandon"): ("approved", "system"),
    ("approved", "credential:issue"): ("active", "system"),
    ("approved", "request:lapse"): ("lapsed", "system"),
    ("approved", "credential:fail"): ("failed", "system"),
    ("approved", "credential:revoke"): ("ending", "custodian"),
    ("approved", "drill:reveal"): ("approved", "system"),
    ("active", "drill:done"): ("ending", "system"),
    ("active", "credential:reveal"): ("active", "requester"),
    ("active", "credential:hold"): ("active", "system"),
    ("active", "credential:token"): ("active", "system"),
    ("active", "credential:abandon"): ("active", "system"),
    ("active", "credential:reissue"): ("active", "system"),
    ("active", "credential:unwrap"): ("active", "system"),
    ("active", "credential:unopened"): ("active", "system"),
    ("active", "credential:intercept"): ("ending", "requester"),
    ("active", "credential:warn"): ("active", "system"),
    ("active", "credential:release"): ("ending", "requester"),
    ("active", "credential:revoke"): ("ending", "custodian"),
    ("active", "credential:expire"): ("ending", "system"),
    ("active", "credential:lost"): ("ending", "system"),
    ("ending", "request:escalate"): ("ending", "system"),
    ("ending", "credential:end"): ("ended", "system"),
    ("ended", "review:assign"): ("ended", "system"),
    ("ended", "review:reassign"): ("ended", "overseer"),
    ("ended", "review:remind"): ("ended", "system"),
    ("ended", "review:escalate"): ("ended", "system"),
    ("ended", "review:first"): ("ended", "reviewer"),
    ("ended", "review:second"): ("reviewed", "reviewer"),
    ("ended", "review:file"): ("reviewed", "reviewer"),
}
# fmt: on
_OPEN: Final = "request:open"
_ISSUING: Final = frozenset(
    {"credential:reveal", "drill:reveal", "credential:token", "credential:issue", "credential:reissue"}
)
_OF_DRILLS: Final = frozenset({"drill:reveal", "drill:done"})  # what the bot does in the place of the requester
_FINAL: Final = frozenset({"denied", "withdrawn", "lapsed", "failed", "reviewed"})
_OVER: Final = frozenset({"ending", "ended", "reviewed"})
_USE: Final = "command:run"  # what was done with a credential, as captured
# What was recorded of it: reads like this one, or that something is missing.
_RECORDING: Final = frozenset({"command:close", "command:stop", "capture:gap", "capture:down"})
# What a review or a drill wants done, after the filing: asked for, and seen to.
_FOLLOWING_UP: Final = frozenset({"follow_up:open", "follow_up:close"})
_CLOSE: Final = "request:close"
_ROTATE: Final = "log:rotate"
APPLY: Final = "retention:apply"
SYSTEM: Final = {"person": "system", "team": ""}


class Grant:
    """One credential, as the log tells of it. Times are the log's words; None: it did not come to that."""

    __slots__ = (
        *("accessor", "capture", "delivery", "ended", "expires", "identity", "intended", "issued", "lease", "number"),
        *("open_until", "opened", "path", "token", "unopened", "wrapping"),
    )

    def __init__(self, number: int, intended: str) -> None:
        self.number = number
        self.intended = intended
        self.token: str | None = None
        self.issued: str | None = None
        self.ended: str | None = None
        self.expires: datetime | None = None
        self.accessor: str | None = None  # its SHA-256
        self.lease: str | None = None
        self.identity: str | None = None
        self.path: str | None = None
        self.capture: str | None = None  # the source that records what is done with it
        self.delivery: str | None = None  # of one that was handed out unseen: how
        self.wrapping: str | None = None  # the SHA-256 of its wrapping token's accessor
        self.open_until: datetime | None = None
        self.opened: str | None = None
        self.unopened: str | None = None


class FollowUp:
    """Something that a review or a drill wants done, as the log tells of it. ``request``: about which, if any."""

    __slots__ = ("closed_at", "closed_by", "due", "note", "owner", "request", "what")

    def __init__(self, request: str | None, data: Mapping[str, Any]) -> None:
        self.request = request
        self.what, self.owner, self.due = data.get("what"), data.get("owner"), data.get("due")
        self.closed_at: str | None = None
        self.closed_by: str | None = None
        self.note: object = None


class Decision(NamedTuple):
    """A custodian's answer, as the log tells of it."""

    seq: int
    team: str
    person: str
    answer: str  # approve | deny
    seconds: int | None
    reason: str | None
    policy: str | None
    at: str
    step_up: str | None = None  # the second factor that it was given with


class Case:
    """One request, rebuilt from its entries.

    ``is_partial``: some of its entries are not at hand or cannot be relied on, so nothing is inferred from their
    absence.
    """

    __slots__ = (
        *("approvers", "asked_seconds", "at", "attempts", "count", "custodians", "decisions", "drill", "ended"),
        *("ended_by", "ended_by_user", "expires", "factors", "granted_seconds", "grants", "hashed", "is_granted"),
        *("is_lost", "is_partial", "lapse", "lapse_is_told", "last_seq", "name", "need", "opened"),
        *("opened_at", "policy", "replacing", "requester", "review", "review_due", "review_escalated"),
        *("review_owner", "reviewer", "reviews_needed", "second", "state", "state_at"),
        *("state_seq", "state_version", "team", "version", "warned"),
    )

    def __init__(
        self, name: str, state: str | None, version: int, *, is_partial: bool, hashing: Callable[[], Any] = sha256
    ) -> None:
        self.name = name
        self.state = state
        self.version = version
        self.is_partial = is_partial
        self.state_version = version
        self.state_at: str | None = None
        self.state_seq: int | None = None
        self.last_seq = -1
        self.at: str | None = None
        self.opened: dict[str, Any] = {}  # what the request said
        self.opened_at: str | None = None
        self.policy: str | None = None
        self.requester: str | None = None
        self.team: str | None = None
        self.drill: str | None = None  # its id; None: it is real
        self.custodians: tuple[str, ...] | None = None  # None: not known
        self.need = 1
        self.factors: list[tuple[str, int, frozenset[str]]] = []  # name, people needed, who they can be
        self.asked_seconds: int | None = None
        self.granted_seconds: int | None = None
        self.decisions: list[Decision] = []
        self.approvers: list[str] = []
        self.is_granted = False
        self.grants: dict[int, Grant] = {}
        self.replacing: tuple[int, int] | None = None  # the credential to come, and the one that it replaces
        self.lapse: datetime | None = None
        self.lapse_is_told = True
        self.expires: datetime | None = None
        self.warned: str | None = None
        self.ended: str | None = None
        self.ended_by: str | None = None
        self.ended_by_user: str | None = None
        self.attempts = 0
        self.review_due: datetime | None = None
        self.review: tuple[str, str, dict[str, Any], str] | None = None  # team, person, answers, at
        self.reviewer: str | None = None  # of the first review
        self.reviews_needed = 1
        self.second: tuple[str, str, dict[str, Any], str] | None = None  # as ``review``
        self.review_owner: str | None = None
        self.review_escalated: str | None = None
        self.count = 0
        self.hashed = hashing()  # over the leaf hashes
        self.is_lost = False  # the last of its entries were pruned


class Replay:
    """Plays the entries again, in order, and finds what the rules do not allow.

    ``is_whole``: every request's first entry is at hand, so that one without an opening is a finding.
    ``keeps_details``: keep what is compared with tables, also of requests that are over.
    """

    def __init__(
        self,
        findings: Findings,
        *,
        is_whole: bool,
        slack: timedelta = SLACK,
        keeps_details: bool = True,
        hashing: Callable[[], Any] = sha256,
    ) -> None:
        self.findings = findings
        self.is_whole = is_whole
        self.slack = slack
        self._keeps_details = keeps_details
        self._hashing = hashing
        self.cases: dict[str, Case] = {}
        self.rotations: list[Rotation] = []
        self._holes: list[int] = []  # entries that are missing or cannot be relied on, in order
        self.latest = ""
        self._is_unattributed = False
        self._policies: set[str] = set()  # hashes of their texts
        self._on_record: set[tuple[str | None, tuple[str, ...]]] = set()  # under what requests were found opened
        self._confirmed: dict[int, set[str]] = {}  # who confirmed which proposal to prune
        self.follow_ups: dict[str, FollowUp] = {}  # by their id, where details are kept

    @property
    def has_holes(self) -> bool:
        """Whether something is missing that could have said anything."""
        return bool(self._holes)

    def hole(self, seq: int) -> None:
        """Say that nothing is known of entry ``seq``."""
        if not self._holes or seq > self._holes[-1]:
            self._holes.append(seq)

    def pruned(self, seq: int, leaf: bytes, request: str | None, *, is_known: bool) -> None:
        """Say that entry ``seq`` is one whose body was pruned. ``is_known``: it is known which request it was about."""
        self.hole(seq)
        if not is_known:
            self._is_unattributed = True
        elif request is not None:
            case = self.cases.setdefault(request, Case(request, None, 0, is_partial=True))
            case.is_partial = case.is_lost = True
            case.last_seq = seq
            case.count += 1
            case.hashed.update(leaf)

    def take(self, seq: int, entry: Mapping[str, Any], leaf: bytes) -> None:
        """Take the next entry, as :func:`read_body` gave it."""
        at = entry["at"]
        if at >= self.latest or self._is_back(seq, at):
            self.latest = at
        name = entry.get("request")
        if name is None:
            if "to" in entry:
                self._find(Kind.ILLEGAL_MOVE, seq, "It changes a state, and does not say of which request.", None)
            if "refused" not in entry:
                self._about_the_log(seq, entry["event"], entry)
            return
        case = self.cases.get(name)
        if case is None:
            case = self._begin(seq, name, entry)
        elif self._holes and (case.is_lost or self._is_hole_between(case.last_seq, seq)):
            case.is_partial, case.is_lost = True, False
            case.state = entry.get("from", case.state) if "to" in entry else case.state
            case.version = entry["version"] - 1 if "to" in entry and "version" in entry else case.version
        event = entry["event"]
        if "refused" in entry:
            if "to" in entry or "version" in entry:
                self._find(Kind.ILLEGAL_MOVE, seq, "It was refused, and changes the request all the same.", name)
        elif "to" in entry:
            self._move(seq, case, event, entry)
        elif event == _CLOSE:
            self._close(seq, case, entry.get("data", {}))
        elif event == _USE:
            self._use(seq, case, entry)
        elif event in _FOLLOWING_UP:
            self._follow_up(seq, case, event, entry)
        elif event in _RECORDING:
            self._recorded(seq, case, event, entry.get("data", {}))
        case.last_seq = seq
        case.count += 1
        case.hashed.update(leaf)

    def finish(self, as_of: datetime | None) -> None:
        """Find what should have happened until ``as_of`` (None: not known) and did not."""
        if as_of is None:
            return
        for case in self.cases.values():
            due = case.review_due
            if case.state == "ended" and due is not None and due < as_of and not self._holes[-1:] > [case.last_seq]:
                self._find(
                    Kind.REVIEW_MISSING, case.state_seq, f"Its review was due at {_say(due)}, and there is none.", case
                )

    # What is wrong with the sequence.

    def _find(self, kind: Kind, seq: int | None, sentence: str, about: Case | str | None) -> None:
        self.findings.add(kind, seq, sentence, about.name if isinstance(about, Case) else about)

    def _is_back(self, seq: int, at: str) -> bool:
        """Whether the clock went back by more than a step takes; then time is counted from there."""
        is_back = read_time(self.latest) - read_time(at) > self.slack
        if is_back:
            self._find(Kind.CLOCK, seq, f"The clock goes backwards: it says {at}, after {self.latest}.", None)
        return is_back

    def _is_hole_between(self, low: int, high: int) -> bool:
        place = bisect_right(self._holes, low)
        return place < len(self._holes) and self._holes[place] < high

    def _begin(self, seq: int, name: str, entry: Mapping[str, Any]) -> Case:
        is_move = "to" in entry and "refused" not in entry
        is_opening = is_move and "from" not in entry
        is_known = self.is_whole and not self._holes
        source = None if is_opening else entry.get("from")
        case = Case(name, source, 0, is_partial=not is_opening, hashing=self._hashing)
        if not is_opening:
            case.version = entry.get("version", 1) - 1
            if is_known:
                self._find(Kind.MISSING, seq, "Nothing before it says that this request was opened.", name)
        self.cases[name] = case
        return case

    def _move(self, seq: int, case: Case, event: str, entry: Mapping[str, Any]) -> None:
        """Judge one move, and make it, also when it is wrong: what comes after is judged by what it says."""
        source, target, version = entry.get("from"), entry["to"], entry.get("version")
        move = MOVES.get((source, event))
        if version != case.version + 1:
            self._wrong_version(seq, case, version)
        elif move is None or move[0] != target or source != case.state:
            kind = Kind.ILLEGAL_MOVE
            if event in _ISSUING:
                kind = Kind.AFTER_END if case.state in _OVER else Kind.BEFORE_APPROVAL
            was = case.state or "not there"
            says = "" if source == case.state else f", and it says {source or 'nothing'}"
            self._find(kind, seq, f"No rule allows {event} to {target} here: the request was {was}{says}.", case)
        at, actor, data = entry["at"], entry["actor"], entry.get("data", {})
        if move is not None and (move[1] != "system" or actor != SYSTEM):
            self._judge_role(seq, case, move[1], event, actor, data)
        # Attack: the bot opens a real request, which nobody sees then, and calls that a drill.
        if event in _OF_DRILLS and case.drill is None and not case.is_partial:
            self._find(
                Kind.WRONG_PERSON, seq, f"{event} is for drills, and this request was opened as a real one.", case
            )
        if event == "credential:reveal" and case.drill is not None:
            self._find(Kind.WRONG_PERSON, seq, "It is a drill, whose credential nobody but the bot opens.", case)
        step = self.STEPS.get(event)
        if step is not None:
            step(self, seq, case, entry, data)
        if target != source:
            case.state_at, case.state_seq = at, seq
            case.state_version = version if type(version) is int else case.version + 1
        case.state = target
        case.version = version if type(version) is int else case.version + 1
        case.at = at
        if target in _FINAL and not self._keeps_details:
            case.grants, case.decisions, case.approvers, case.custodians = {}, [], [], None

    def _wrong_version(self, seq: int, case: Case, version: object) -> None:
        expected = case.version + 1
        if type(version) is int and version > expected:
            kind, why = Kind.MISSING, "An entry of this request is missing before it"
        elif type(version) is int:
            kind, why = Kind.DOUBLED, "An entry of this request stands twice"
        else:
            kind, why = Kind.MALFORMED, "It does not count the request's changes"
        self._find(kind, seq, f"{why}: it is change {version} of the request, where {expected} belongs.", case)
        case.is_partial = True

    def _judge_role(  # noqa: PLR0917 - one move's facts
        self, seq: int, case: Case, role: str, event: str, actor: Mapping[str, str], data: Mapping[str, Any]
    ) -> None:
        person, is_bot = actor["person"], actor == SYSTEM
        if is_bot and event == _OPEN and type(data.get("drill")) is str:
            return  # nobody asked: it was due
        if (role == "system") is not is_bot:
            by = "somebody else than the bot" if role == "system" else "the bot itself"
            self._find(Kind.WRONG_PERSON, seq, f"{event} was done by {by}.", case)
            return
        if role == "system" or event == _OPEN:
            return
        if case.team is not None and actor["team"] != case.team:
            self._find(Kind.WRONG_PERSON, seq, f"{person} is of another workspace.", case)
        if role == "requester" and case.requester is not None and person != case.requester:
            self._find(Kind.WRONG_PERSON, seq, f"It is for {case.requester} to do, and {person} did it.", case)
        if role == "custodian" and event != "credential:revoke":
            self._judge_custodian(seq, case, person)
        if role == "reviewer" and (person == case.requester or person in case.approvers):
            did = "asked for it" if person == case.requester else "approved it"
            self._find(Kind.NOT_INDEPENDENT, seq, f"{person} reviewed this access and {did}.", case)

    def _judge_custodian(self, seq: int, case: Case, person: str) -> None:
        if person == case.requester:
            self._find(Kind.SELF_APPROVAL, seq, f"{person} decided about the own request.", case)
        elif case.custodians is not None and person not in case.custodians:
            self._find(Kind.NOT_ASKED, seq, f"{person} decided about it and is not one of those who were asked.", case)

    # What each move says.

    def _open(self, seq: int, case: Case, entry: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        custodians, threshold = data.get("custodians"), data.get("threshold")
        case.requester, case.team = entry["actor"]["person"], entry["actor"]["team"]
        case.drill = _text(data.get("drill"))
        if case.drill is not None and entry["actor"] == SYSTEM:  # nobody asked: it was due
            case.requester, case.team = _text(data.get("requester")), _text(data.get("team"))
        case.opened = dict(data) if self._keeps_details else {}
        case.policy, case.opened_at = entry.get("policy"), entry["at"]
        case.asked_seconds, case.lapse = _count(data.get("asked_seconds")), read_data_time(data.get("lapse_at"))
        if type(custodians) is list and custodians and all(type(name) is str for name in custodians):
            case.custodians = tuple(custodians)
        self._judge_policy(seq, case)
        case.need = _count(data.get("quorum")) or 0
        case.reviews_needed = _count(data.get("reviews_needed")) or 1
        is_text = all(type(data.get(name)) is str for name in ("account", "level", "reason", "standard_path"))
        is_named = type(threshold) is dict and all(type(threshold.get(name)) is str for name in ("id", "text"))
        if case.need < 1 or case.custodians is None or not case.asked_seconds or not is_text or not is_named:
            self._find(Kind.MALFORMED, seq, "It does not say all that a request must.", case)
            case.need = max(case.need, 1)
        elif case.requester in case.custodians:
            self._find(Kind.SELF_APPROVAL, seq, f"{case.requester} was asked about the own request.", case)
        elif len(set(case.custodians)) < case.need:
            self._find(Kind.NO_QUORUM, seq, "Fewer custodians were asked than are needed.", case)
        if "asking" in data:
            factors = _factors(data["asking"])
            if factors is None:
                self._find(Kind.MALFORMED, seq, "It does not say who is asked when, or whose approval it needs.", case)
            case.factors = factors or []

    def _judge_policy(self, seq: int, case: Case) -> None:
        """Whether it was opened under a policy that is on record: its hash is over the text's and those asked."""
        if not self._policies or case.custodians is None or not self.is_whole:
            return
        if (case.policy, case.custodians) in self._on_record:
            return
        asked = sorted(set(case.custodians))
        known = (json.dumps([hashed, asked], separators=(",", ":")).encode() for hashed in self._policies)
        if case.policy not in {sha256(together).hexdigest() for together in known}:
            self._find(Kind.UNKNOWN_POLICY, seq, "It was opened under no policy that is on record before it.", case)
        elif len(self._on_record) < 10_000:
            self._on_record.add((case.policy, case.custodians))

    def _approve(self, seq: int, case: Case, entry: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        person = entry["actor"]["person"]
        seconds = _count(data.get("granted_seconds"))
        if person in case.approvers:
            self._find(Kind.APPROVED_TWICE, seq, f"{person} approved it before.", case)
        if seconds is None:
            self._find(Kind.MALFORMED, seq, "It does not say for how long it was approved.", case)
        elif case.asked_seconds is not None and seconds > case.asked_seconds:
            self._find(Kind.TOO_LONG, seq, f"It approves {seconds} s, and {case.asked_seconds} s were asked for.", case)
        # A policy that became stricter in between asks for more; one that became laxer does not count.
        case.need = max(case.need, _count(data.get("need")) or 0)
        said = _decision(seq, entry, "approve", seconds, None)
        case.decisions.append(said._replace(step_up=_text(data.get("step_up"))))
        case.approvers.append(person)

    def _deny(self, seq: int, case: Case, entry: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        reason = data.get("reason")
        case.decisions.append(_decision(seq, entry, "deny", None, _text(reason)))

    def _quorum(self, seq: int, case: Case, _entry: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        names = data.get("approvers")
        stated = {name for name in names if type(name) is str} if type(names) is list else set()
        case.granted_seconds = _count(data.get("granted_seconds"))
        case.is_granted = True
        case.lapse = read_data_time(data.get("lapse_at"))
        case.lapse_is_told = case.lapse is not None
        if case.is_partial:
            return
        approved = set(case.approvers) - {case.requester}
        if case.custodians is not None:
            approved &= set(case.custodians)
        if case.requester in stated:
            self._find(Kind.SELF_APPROVAL, seq, f"It counts {case.requester}, who asked for it.", case)
        if len(stated & approved) < case.need or stated - set(case.approvers):
            self._find(
                Kind.NO_QUORUM,
                seq,
                f"It was granted, and needs {case.need}: those asked who approved it are "
                f"{', '.join(sorted(approved)) or 'nobody'}, and it counts {', '.join(sorted(stated)) or 'nobody'}.",
                case,
            )
        if unfilled := _unfilled(case.factors, stated & approved):
            self._find(
                Kind.NO_QUORUM,
                seq,
                f"It was granted, and no approval of {' and '.join(unfilled)} is left for it.",
                case,
            )
        given = [said.seconds for said in case.decisions if said.answer == "approve" and said.seconds is not None]
        if case.granted_seconds is None:
            self._find(Kind.MALFORMED, seq, "It does not say for how long it is granted.", case)
        elif given and case.granted_seconds > min(given):
            self._find(
                Kind.TOO_LONG, seq, f"It grants {case.granted_seconds} s, and {min(given)} s were approved.", case
            )

    def _reveal(self, seq: int, case: Case, entry: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        number, replaced = _count(data.get("credential")), _count(data.get("replaces"))
        if number is None:
            self._find(Kind.MALFORMED, seq, "It does not say which credential.", case)
        elif replaced is None:
            case.grants[number] = Grant(number, entry["at"])
        else:
            case.replacing = (number, replaced)

    def _grant(self, seq: int, case: Case, data: Mapping[str, Any]) -> Grant | None:
        """Return the credential that an entry is about."""
        number = _count(data.get("credential"))
        grant = case.grants.get(number) if number is not None else None
        if grant is None and not case.is_partial:
            self._find(Kind.MALFORMED, seq, "It is about a credential that nobody opened.", case)
        if grant is not None and type(data.get("path")) is str:
            grant.path = data["path"]
        return grant

    def _token(self, seq: int, case: Case, entry: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        grant = self._grant(seq, case, data)
        self._judge_grant(seq, case, grant)
        if grant is not None:
            grant.token, grant.accessor = entry["at"], _text(data.get("accessor_sha256"))

    def _issue(self, seq: int, case: Case, entry: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        grant = self._grant(seq, case, data)
        at, expires = read_time(entry["at"]), read_data_time(data.get("expires_at"))
        if not case.is_partial:
            if not case.is_granted:
                self._find(Kind.NO_QUORUM, seq, "A credential was issued, and no quorum was ever reached.", case)
            if case.expires is not None and at >= case.expires:
                self._find(Kind.AFTER_END, seq, f"It was issued after the end, {_say(case.expires)}.", case)
            allowed = case.expires
            if allowed is None and case.granted_seconds is not None:
                allowed = _later(at, case.granted_seconds)
            if expires is None:
                self._find(Kind.MALFORMED, seq, "It does not say when the credential ends.", case)
            elif allowed is not None and expires > allowed:
                self._find(Kind.TOO_LONG, seq, f"It ends at {_say(expires)}, and may last until {_say(allowed)}.", case)
        self._judge_grant(seq, case, grant)
        if grant is not None:
            if grant.token is None and not case.is_partial:
                self._find(Kind.MALFORMED, seq, "It was issued without a token on record.", case)
            grant.issued, grant.expires = entry["at"], expires
            grant.lease, grant.identity = _text(data.get("lease")), _text(data.get("identity"))
            grant.capture = _text(data.get("capture_source"))
            grant.delivery, grant.wrapping = _text(data.get("delivery")), _text(data.get("wrapping_accessor_sha256"))
            grant.open_until = read_data_time(data.get("open_until"))
        case.expires = case.expires or expires
        case.lapse, case.lapse_is_told = None, True

    def _judge_grant(self, seq: int, case: Case, grant: Grant | None) -> None:
        if grant is None or case.is_partial:
            return
        if grant.ended is not None:
            self._find(Kind.AFTER_END, seq, f"Credential {grant.number} had ended at {grant.ended}.", case)
        others = [other.number for other in case.grants.values() if other is not grant and other.ended is None]
        if others:
            self._find(
                Kind.TWO_LIVE, seq, f"Credential {others[0]} was not ended before credential {grant.number}.", case
            )

    def _abandon(self, seq: int, case: Case, entry: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        grant = self._grant(seq, case, data)
        if grant is None:
            return
        grant.ended = entry["at"]
        if case.replacing is not None and case.replacing[1] == grant.number:
            number, case.replacing = case.replacing[0], None
            case.grants[number] = Grant(number, entry["at"])

    def _fail(self, seq: int, case: Case, entry: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        self._abandon(seq, case, entry, data)
        case.ended_by = "fail"

    def _unwrap(self, seq: int, case: Case, entry: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        if (grant := self._grant(seq, case, data)) is not None:
            grant.opened = entry["at"]

    def _unopened(self, seq: int, case: Case, entry: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        if (grant := self._grant(seq, case, data)) is not None:
            grant.unopened = entry["at"]

    def _warn(self, _seq: int, case: Case, entry: Mapping[str, Any], _data: Mapping[str, Any]) -> None:
        case.warned = entry["at"]

    def _stop(self, seq: int, case: Case, entry: Mapping[str, Any], _data: Mapping[str, Any]) -> None:
        case.ended_by = entry["event"].partition(":")[2]
        if case.ended_by in {"release", "revoke", "intercept"}:
            case.ended_by_user = entry["actor"]["person"]
        elif case.ended_by in {"lost", "done"} or case.expires is None or case.is_partial:
            return
        elif read_time(entry["at"]) < case.expires:
            self._find(Kind.CLOCK, seq, f"It expired before its end, {_say(case.expires)}.", case)

    def _escalate(self, _seq: int, case: Case, _entry: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        if case.state == "ending":
            case.attempts = _count(data.get("attempt")) or case.attempts + 1

    def _end(self, seq: int, case: Case, entry: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        leases = data.get("leases")
        gone = {lease for lease in leases if type(lease) is str} if type(leases) is list else set()
        for grant in case.grants.values():
            if grant.lease is not None and grant.lease not in gone and not case.is_partial:
                self._find(Kind.STILL_OUT, seq, f"It does not say that credential {grant.number} was taken back.", case)
            grant.ended = grant.ended or entry["at"]
        case.ended, case.attempts = entry["at"], 0
        case.review_due = read_data_time(data.get("review_due_at"))
        if case.review_due is None:
            self._find(Kind.MALFORMED, seq, "It does not say until when the review is due.", case)

    def _assign(self, seq: int, case: Case, _entry: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        case.review_owner = _text(data.get("owner"))
        if case.review_owner is None:
            self._find(Kind.MALFORMED, seq, "It does not say whose the review is to file.", case)

    def _review_escalate(self, _seq: int, case: Case, entry: Mapping[str, Any], _data: Mapping[str, Any]) -> None:
        case.review_escalated = entry["at"]

    def _review_second(self, seq: int, case: Case, entry: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        person = entry["actor"]["person"]
        if self._keeps_details:
            case.second = (entry["actor"]["team"], person, dict(data), entry["at"])
        if person == case.reviewer:
            self._find(Kind.NOT_INDEPENDENT, seq, f"{person} is both its first and its second reviewer.", case)
        if case.reviewer is None and not case.is_partial:
            self._find(Kind.REVIEW_MISSING, seq, "Its second review was filed, and there is no first.", case)
        if not data.get("findings") or _text(data.get("outcome")) is None:
            self._find(Kind.MALFORMED, seq, "It does not answer all that a second review must.", case)

    def _review(self, seq: int, case: Case, entry: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        case.reviewer = entry["actor"]["person"]
        if entry["event"] == "review:first":
            case.review_due = read_data_time(data.get("review_due_at"))
            if case.review_due is None:
                self._find(Kind.MALFORMED, seq, "It does not say until when the second review is due.", case)
        elif case.reviews_needed > 1 and not case.is_partial:
            self._find(Kind.REVIEW_MISSING, seq, "It ends with one review, and two are needed.", case)
        if self._keeps_details:
            case.review = (entry["actor"]["team"], entry["actor"]["person"], dict(data), entry["at"])
            asked = data.get("follow_ups")
            for one in asked if type(asked) is list else ():
                # Those of older logs have no id: nobody followed them up.
                if type(one) is dict and (name := _text(one.get("id"))) is not None:
                    self.follow_ups[name] = FollowUp(case.name, one)
        answers = ("threshold_met", "standard_path_enough", "used_as_stated")
        if not all(type(data.get(name)) is bool for name in answers) or not data.get("findings"):
            self._find(Kind.MALFORMED, seq, "It does not answer all that a review must.", case)

    def _follow_up(self, seq: int, case: Case | None, event: str, entry: Mapping[str, Any]) -> None:
        data = entry.get("data", {})
        name = _text(data.get("id"))
        if name is None or not self._keeps_details:
            return
        if event == "follow_up:open":
            self.follow_ups[name] = FollowUp(case.name if case is not None else None, data)
        elif (found := self.follow_ups.get(name)) is None:
            if self.is_whole and not self._holes:
                self._find(Kind.MISSING, seq, f"It closes the follow-up {name}, and nothing asks for it.", case)
        else:
            found.closed_at, found.closed_by = entry["at"], entry["actor"]["person"]
            found.note = data.get("note")

    def _close(self, seq: int, case: Case, data: Mapping[str, Any]) -> None:
        count, hashed = _count(data.get("count")), data.get("sha256")
        if count is None or type(hashed) is not str:
            self._find(Kind.MALFORMED, seq, "It does not say how many entries the request has.", case)
        elif self._is_unattributed or (not self.is_whole and case.is_partial):
            return
        elif count != case.count:
            kind = Kind.MISSING if count > case.count else Kind.DOUBLED
            self._find(
                kind, seq, f"It counts {count} entries of the request before it, and here are {case.count}.", case
            )
        elif hashed != case.hashed.hexdigest():
            self._find(Kind.ALTERED, seq, "The request's entries are not those whose hash it states.", case)

    def _use(self, seq: int, case: Case, entry: Mapping[str, Any]) -> None:
        if case.ended is not None and entry["at"] > case.ended:
            # It may only have come late. By the target's clock, then, which need not be ours to the second.
            at = read_data_time(entry.get("data", {}).get("at"))
            latest = _later(read_time(case.ended), _OTHER_CLOCK)
            if at is None or latest is None or at > latest:
                self._find(Kind.AFTER_END, seq, f"The credential was used after its end, {case.ended}.", case)
        elif not case.is_partial and not any(
            # A token of Vault's makes the credential, and its calls are recorded, too.
            grant.issued or (grant.token and entry.get("data", {}).get("kind") == "call")
            for grant in case.grants.values()
        ):
            self._find(Kind.BEFORE_APPROVAL, seq, "The credential was used before it was issued.", case)

    def _recorded(self, seq: int, about: Case | None, event: str, data: Mapping[str, Any]) -> None:
        source = _text(data.get("source")) or "a source that it does not name"
        if event == "capture:gap":
            sentence = f"Lines of {source} were lost before they were read."
        elif event == "capture:down":
            sentence = f"Nothing was recorded by {source} for a time."
        elif event == "command:stop" or data.get("stopped") is True:
            sentence = f"The recording by {source} was stopped from within, or was tried to be."
        elif data.get("gaps"):
            sentence = f"The record that {source} kept of a session has gaps."
        else:
            return
        self._find(Kind.CAPTURE_GAP, seq, sentence, about)

    def _about_the_log(self, seq: int, event: str, entry: Mapping[str, Any]) -> None:
        data = entry.get("data", {})
        if event in _RECORDING:
            self._recorded(seq, None, event, data)
        elif event in _FOLLOWING_UP:
            self._follow_up(seq, None, event, entry)
        proposal = _count(data.get("proposal"))
        if event == _ROTATE:
            self._rotate(seq, data)
        elif event == "policy:load":
            hashed, words = _text(data.get("hash")), _text(data.get("text"))
            if hashed is None or (words is not None and sha256(words.encode()).hexdigest() != hashed):
                self._find(Kind.MALFORMED, seq, "It does not hold the policy whose hash it states.", None)
            self._policies.add(hashed or "")
        elif event == "retention:confirm" and proposal is not None:
            self._confirmed.setdefault(proposal, set()).add(entry["actor"]["person"])
        elif event == APPLY and self.is_whole and len(self._confirmed.get(proposal or -1, ())) < 2:
            self._find(Kind.NO_QUORUM, seq, "Entries were pruned, and not two people confirmed it.", None)

    def _rotate(self, seq: int, data: Mapping[str, Any]) -> None:
        try:
            old = data.get("old")
            self.rotations.append(Rotation(seq, read_vkey(old) if type(old) is str else None, read_vkey(data["new"])))
        except (KeyError, ValueError, AttributeError, TypeError):
            self._find(Kind.MALFORMED, seq, "It changes the log's key, and names none.", None)

    STEPS: ClassVar[Mapping[str, Callable[[Any, int, Case, Mapping[str, Any], Mapping[str, Any]], None]]] = {
        _OPEN: _open,
        "request:approve": _approve,
        "request:quorum": _quorum,
        "request:deny": _deny,
        "request:escalate": _escalate,
        "credential:escalate": _escalate,
        "credential:reveal": _reveal,
        "drill:reveal": _reveal,
        "drill:done": _stop,
        "credential:token": _token,
        "credential:issue": _issue,
        "credential:reissue": _issue,
        "credential:abandon": _abandon,
        "credential:fail": _fail,
        "credential:unwrap": _unwrap,
        "credential:unopened": _unopened,
        "credential:intercept": _stop,
        "credential:warn": _warn,
        "credential:release": _stop,
        "credential:revoke": _stop,
        "credential:expire": _stop,
        "credential:lost": _stop,
        "credential:end": _end,
        "review:file": _review,
        "review:first": _review,
        "review:second": _review_second,
        "review:assign": _assign,
        "review:reassign": _assign,
        "review:escalate": _review_escalate,
    }


_MAX_PLACES: Final = 500  # five factors of a hundred; more is an attack on whoever reads it


def _factors(asking: object) -> list[tuple[str, int, frozenset[str]]] | None:
    """Read whose approval a request needs besides others'; None: it is not said as it should be."""
    listed = asking.get("factors") if type(asking) is dict else None
    if type(listed) is not list:
        return None
    found: list[tuple[str, int, frozenset[str]]] = []
    for one in listed:
        if type(one) is not dict or type(one.get("name")) is not str or type(one.get("people")) is not list:
            return None
        need = _count(one.get("need"))
        if not need or not all(type(person) is str for person in one["people"]):
            return None
        found.append((one["name"], need, frozenset(one["people"])))
    return found if sum(need for _, need, _ in found) <= _MAX_PLACES else None


def _unfilled(factors: Sequence[tuple[str, int, frozenset[str]]], people: Iterable[str]) -> list[str]:
    """Return the factors that these people cannot fill, each person in one place: a maximum matching."""
    places = [(name, able) for name, need, able in factors for _ in range(need)]
    holds: dict[int, str] = {}
    for person in sorted(people):
        # Breadth first over the places that could be freed: a hostile file gets no recursion.
        came: dict[int, int | None] = {}
        queue: list[tuple[int, int | None]] = [(n, None) for n, (_, able) in enumerate(places) if person in able]
        while queue:
            number, before = queue.pop(0)
            if number in came:
                continue
            came[number] = before
            if number not in holds:
                at: int | None = number
                while at is not None:
                    back = came[at]
                    holds[at] = person if back is None else holds[back]
                    at = back
                break
            holder = holds[number]
            queue += [(n, number) for n, (_, able) in enumerate(places) if holder in able and n not in came]
    return list(dict.fromkeys(name for number, (name, _) in enumerate(places) if number not in holds))


def _decision(seq: int, entry: Mapping[str, Any], answer: str, seconds: int | None, reason: str | None) -> Decision:
    who = entry["actor"]
    return Decision(seq, who["team"], who["person"], answer, seconds, reason, entry.get("policy"), entry["at"])


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 53 else None


def _text(value: object) -> str | None:
    return value if type(value) is str else None


def _say(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def _later(at: datetime, seconds: int) -> datetime | None:
    try:
        return at + timedelta(seconds=seconds)
    except OverflowError:
        return None


# --- exports: breakglass-export/1 ----------------------------------------------------------------------------------

FORMAT: Final = "breakglass-export/1"
COLUMNS: Final = (
    *("seq", "at", "event", "request", "account", "team", "who", "from", "to", "refused", "data"),
    *("body", "leaf", "proof"),
)
BOM: Final = b"\xef\xbb\xbf"
_FORMULA: Final = tuple("=+-@＝＋－＠")  # noqa: RUF001 - spreadsheets take the full-width forms, too
_MAX_LINE: Final = 1 << 20  # a body has at most 60,000 bytes; escaped for JSON in JSON each takes at most eleven
_HASH: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NOT_AN_EXPORT: Final = "This is not an export that this version can read."


class Header(NamedTuple):
    """What an export says of itself: its head, how many entries, and what was selected."""

    head: tuple[int, bytes]
    counted: int
    at: datetime
    since: datetime | None
    until: datetime | None
    account: str | None
    request: str | None

    @property
    def is_run(self) -> bool:
        """Whether the entries must follow each other without a hole."""
        return self.account is None and self.request is None

    @property
    def as_of(self) -> datetime:
        """Until when it shows everything."""
        return self.at if self.until is None else min(self.at, self.until)


class EntryLine(NamedTuple):
    """One entry's line: nothing of it is checked but its form."""

    seq: int
    body: str | None  # None: it was pruned
    leaf: bytes
    proof: bytes  # proof_text
    cells: Sequence[str] | None = None  # of a CSV row
    is_whole: bool = False  # the leaf is that of the body: it was computed from it


class ClosingLine(NamedTuple):
    """The last line."""

    counted: int
    sha256: str


class Export:
    """One pass over one export: :meth:`run` gives the findings, and each sound entry to ``taken``.

    ``wanted``: sizes at which the root is to be kept in ``roots``, where the file allows to compute it.
    """

    def __init__(
        self,
        findings: Findings,
        *,
        taken: Callable[[int, dict[str, Any], bytes], object] | None = None,
        hole: Callable[[int], object] | None = None,
        pruned: Callable[[int, bytes], object] | None = None,
        begun: Callable[[Header], object] | None = None,
        wanted: Iterable[int] = (),
    ) -> None:
        self.findings = findings
        self.entries = 0
        self.header: Header | None = None
        self.roots: dict[int, bytes] = {0: EMPTY_ROOT}
        self.unchecked: list[str] = []
        self.leaves: Leaves | None = None  # kept when somebody asks for them
        self._taken = taken
        self._hole = hole or (lambda _seq: None)
        self._begun = begun
        self._pruned_one = pruned or (lambda _seq, _leaf: None)
        self._pruned: list[int] = []
        self._claims: list[tuple[int, int]] = []  # what entries of the log say that they pruned
        self._wanted = frozenset(wanted)
        self._last: tuple[int, str | None] | None = None
        self._passed = sha256()  # over the lines before the present one
        self._paths = Paths(0, EMPTY_ROOT)
        self._tree: Peaks | None = Peaks() if self._wanted else None
        self._seqs: set[int] | None = None  # of a file whose order is wrong

    def run(self, file: IO[bytes]) -> None:
        """Read all of it."""
        lines = iter(lambda: file.readline(_MAX_LINE + 1), b"")
        first = next(lines, b"")
        is_csv = first == BOM + csv_line(COLUMNS)
        if is_csv:
            self._passed.update(first)
            first = next(lines, b"")
        try:
            header = read_header(_read_csv_fact("export", first) if is_csv else _read_json(first))
        except ValueError:
            self._find(Kind.UNREADABLE, None, _NOT_AN_EXPORT)
            return
        self.header = header
        self._paths = Paths(*header.head)
        self._passed.update(first)
        if self._begun is not None:
            self._begun(header)
        read, update = (_read_csv if is_csv else _JsonLines().read), self._passed.update
        closing: ClosingLine | None = None
        for number, line in enumerate(lines, start=3 if is_csv else 2):
            if closing is not None:
                self._find(Kind.UNREADABLE, None, f"Line {number} stands after the closing line.")
                break
            try:
                found = read(line)
            except ValueError as error:
                self._find(Kind.UNREADABLE, None, f"Line {number} is not a line of an export: {error}.")
                self._tree = None
                if len(line) > _MAX_LINE:
                    break
            else:
                if type(found) is EntryLine:
                    self._enter(found, header)
                else:
                    closing = found  # type: ignore[assignment]
                    self._close(closing)  # type: ignore[arg-type]
            update(line)
        if closing is None:
            self._find(Kind.TRUNCATED, None, "The file ends without its closing line: it was cut off.")
        self._finish(header)

    def _find(self, kind: Kind, seq: int | None, sentence: str) -> None:
        self.findings.add(kind, seq, sentence)

    def _enter(self, line: EntryLine, header: Header) -> None:
        """Check one entry: its place, its body, its hash, its proof, its being selected."""
        self.entries += 1
        highest = self._last[0] if self._last else None
        is_next = highest is None or line.seq > highest
        if not is_next:
            is_again = line.seq == highest
            again = "stands in the file twice" if is_again else f"stands after entry {highest}"
            self._find(Kind.DOUBLED if is_again else Kind.REORDERED, line.seq, f"It {again}.")
        elif header.is_run and highest is not None and line.seq != highest + 1:
            self._missing(highest + 1, line.seq)
        if is_next:
            self._last = (line.seq, None)
        is_sound = False
        if not line.is_whole and line.body is not None and line.leaf != leaf_hash(line.body.encode()):
            self._find(Kind.ALTERED, line.seq, "Its body or its leaf hash was changed: they do not belong together.")
        elif not self._paths.leads(line.leaf, line.seq, line.proof):
            self._find(Kind.ALTERED, line.seq, "Its proof does not lead to the head: it is not this entry of this log.")
        else:
            is_sound = is_next
        if is_next:
            self._grow(line)
        if line.body is None:
            # Attack: words of somebody's own in the readable columns of an entry whose body cannot contradict them.
            if line.cells is not None and list(line.cells) != [str(line.seq), *[""] * 9, "pruned"]:
                self._find(Kind.ALTERED, line.seq, "Its body was pruned, and its readable columns say something.")
            if is_next:
                self._pruned.append(line.seq)
                self._pruned_one(line.seq, line.leaf)
            return
        entry = self._read(line, line.body, header, is_first=highest is None)
        if entry is not None and self._last == (line.seq, None):
            self._last = (line.seq, entry["at"])
        if is_sound and entry is not None and entry["seq"] == line.seq:
            if entry["event"] == APPLY and "refused" not in entry:
                self._claims += read_ranges(entry.get("data", {}).get("ranges"), line.seq)
            if self._taken is not None:
                self._taken(line.seq, entry, line.leaf)
        elif is_next:
            self._hole(line.seq)

    def _missing(self, first: int, following: int) -> None:
        self._find(Kind.MISSING, first, "It is missing from its place.")
        if following - first > 1:
            self._find(Kind.MISSING, following - 1, f"So are the others up to here, {following - first} in all.")
        self._hole(first)
        self._hole(following - 1)

    def _grow(self, line: EntryLine) -> None:
        if self.leaves is not None:
            self.leaves.add(line.seq, line.leaf)
        tree = self._tree
        if tree is None or line.seq != tree.size:
            self._tree = None
            return
        tree.push(line.leaf)
        if tree.size in self._wanted:
            self.roots[tree.size] = tree.root()

    def _read(self, line: EntryLine, body: str, header: Header, *, is_first: bool) -> dict[str, Any] | None:
        try:
            entry = read_body(body)
        except ValueError as error:
            self._find(Kind.ALTERED, line.seq, f"Its body was not written by the log: {error}.")
            return None
        if entry["seq"] != line.seq:
            self._find(Kind.REORDERED, line.seq, f"Its body says that it is entry {entry['seq']}.")
        if line.cells is not None and list(line.cells) != people_cells(entry, line.cells[4]):
            self._find(Kind.ALTERED, line.seq, "Its readable columns say something else than its body.")
        if is_first and header.is_run:
            if header.since is None and line.seq != 0:
                self._find(Kind.MISSING, 0, "It is missing: nothing says that the export should begin later.")
                self._hole(0)
            elif header.since is not None and read_time(entry["at"]) < header.since:
                self._find(Kind.UNREADABLE, line.seq, "It is from before the time that the header says was selected.")
        elif not header.is_run and not _is_selected(entry, header) and not _explains_pruning(entry):
            self._find(Kind.UNREADABLE, line.seq, "It does not belong to what the header says was selected.")
        return entry

    def _close(self, closing: ClosingLine) -> None:
        if closing.counted != self.entries:
            self._find(
                Kind.MISSING, None, f"The closing line counts {closing.counted} entries, and there are {self.entries}."
            )
        if closing.sha256 != self._passed.hexdigest():
            self._find(
                Kind.ALTERED, None, "The closing hash does not match: a line was changed, dropped, added or moved."
            )

    def _finish(self, header: Header) -> None:
        """Check that all of the selection is there."""
        size = header.head[0]
        if self.entries != header.counted:
            self._find(
                Kind.MISSING, None, f"The header promises {header.counted} entries, and there are {self.entries}."
            )
        self.roots[size] = header.head[1]
        self._judge_pruned(header)
        if not header.is_run:
            return
        if self._last is None:
            if header.since is None and header.until is None and size:
                self._find(Kind.MISSING, 0, "It is missing: the whole log was selected.")
            return
        seq, at = self._last
        if header.until is None and seq != size - 1:
            self._find(Kind.TRUNCATED, seq + 1, "It is missing: nothing says that the export should end earlier.")
        elif header.until is not None and at is not None and read_time(at) > header.until:
            self._find(Kind.UNREADABLE, seq, "It is from after the time that the header says was selected.")

    def _judge_pruned(self, header: Header) -> None:
        """Check that an entry of the log says so of each body that is gone, as far as such an entry must be here."""
        unsaid = not_named(self._pruned, self._claims)
        if not unsaid:
            return
        if header.is_run and header.until is None:
            for seq in unsaid:
                self._find(Kind.MISSING, seq, "Its body is gone, and nothing in the log says that it was pruned.")
        else:
            self.unchecked.append(
                f"{len(unsaid)} bodies are gone, and the entry that pruned them is not in this selection: entry "
                f"{unsaid[0]} is the first."
            )


class Leaves:
    """Leaf hashes by number, in 40 bytes each."""

    def __init__(self) -> None:
        self._seqs = array.array("q")
        self._hashes = bytearray()

    def add(self, seq: int, leaf: bytes) -> None:
        """Keep one; numbers rise."""
        self._seqs.append(seq)
        self._hashes += leaf

    def extend(self, seq: int, leaves: bytes) -> None:
        """Keep those of consecutive entries."""
        self._seqs.extend(range(seq, seq + len(leaves) // WIDTH))
        self._hashes += leaves

    def whole(self) -> int:
        """How many there are, when they are those of the first entries without a hole; else 0."""
        many = len(self._seqs)
        return many if many and self._seqs[0] == 0 and self._seqs[-1] == many - 1 else 0

    def at(self, place: int) -> bytes:
        """Return the one at this place."""
        return bytes(self._hashes[place * WIDTH : (place + 1) * WIDTH])

    def get(self, seq: int) -> bytes | None:
        """Return one."""
        place = bisect_left(self._seqs, seq)
        if place == len(self._seqs) or self._seqs[place] != seq:
            return None
        return self.at(place)


def read_ranges(value: object, before: int) -> list[tuple[int, int]]:
    """Read what an entry says that it pruned: first and last of entries before it; [] when it cannot be read."""
    pairs = value if isinstance(value, list) else []
    if all(type(p) is list and len(p) == 2 and all(type(n) is int for n in p) and 0 <= p[0] <= p[1] for p in pairs):
        return [(first, last) for first, last in pairs if last < before]
    return []


def not_named(numbers: Sequence[int], ranges: Iterable[tuple[int, int]]) -> list[int]:
    """Return those of the rising numbers that no range holds."""
    named, at, left = sorted(ranges), 0, []
    reach = -1  # the largest last one among the ranges that begin at or before the number
    for number in numbers:
        while at < len(named) and named[at][0] <= number:
            reach = max(reach, named[at][1])
            at += 1
        if number > reach:
            left.append(number)
    return left


def _is_selected(entry: Mapping[str, Any], header: Header) -> bool:
    at = read_time(entry["at"])
    return (
        (header.since is None or at >= header.since)
        and (header.until is None or at <= header.until)
        and (header.request is None or entry.get("request") == header.request)
        and (header.account is None or "request" in entry)
    )


def _explains_pruning(entry: Mapping[str, Any]) -> bool:
    """Whether it says who had bodies pruned: such entries come with a selection from which something was."""
    events = ("retention:propose", "retention:confirm", APPLY)
    return entry["event"] in events and "request" not in entry and "refused" not in entry


# Reading lines: ValueError says what is wrong.


def json_line(members: Mapping[str, Any]) -> bytes:
    """Give a line as an export writes it."""
    return json.dumps(members, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def _read_json(line: bytes) -> dict[str, Any]:
    try:
        members = json.loads(line)
        is_canonical = type(members) is dict and json_line(members) == line
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not is_canonical:
        raise ValueError("it is not written as an export is")
    return dict(members)


_PROOF: Final = re.compile(rb'(?:"[0-9a-f]{64}"(?:,"[0-9a-f]{64}")*)?')
_SEQ: Final = re.compile(rb"(?:0|[1-9][0-9]{0,18})\}\n")


class _JsonLines:
    """Reads the lines of a JSONL export.

    The usual line is taken apart in place: several times as fast as reading it as JSON and writing it again. The proof
    before is remembered, since neighbours have all but their first steps in common.
    """

    def __init__(self) -> None:
        self._proof = b""

    def read(self, line: bytes) -> EntryLine | ClosingLine:
        """Read one. ValueError says what is wrong."""
        cut = line.find(b'","leaf":"', 8)
        if cut > 0 and line.startswith(b'{"body":"') and line.startswith(b'","proof":[', cut + 74):
            end = line.rfind(b'],"seq":')
            found = self._parts(line[8 : cut + 1], line[cut + 10 : cut + 74], line[cut + 85 : end], line[end + 8 :])
            if found is not None:
                return found
        return _read_jsonl(line)

    def _parts(self, literal: bytes, leaf: bytes, proof: bytes, seq: bytes) -> EntryLine | None:
        """Read the parts of a line that is written as an export writes; None for any other."""
        body = literal[1:-1]
        quotes = body.count(b'"')
        # Nothing in it is escaped but quotes, and all of them are: most bodies are so.
        if quotes == body.count(b"\\") == body.count(b'\\"') and literal[-1:] == b'"' and literal.isascii():
            body = body.replace(b'\\"', b'"')
        else:
            try:
                words, end = json.decoder.scanstring(literal.decode("ascii"), 1)  # type: ignore[attr-defined]
                body = words.encode()
            except ValueError:
                return None
            if end != len(literal) or encode_basestring_ascii(words).encode() != literal:
                return None
        hashed = sha256(b"\x00" + body).digest()
        if hashed.hex().encode() != leaf or not _SEQ.fullmatch(seq) or not self._is_proof(proof):
            return None
        number = int(seq[:-2])
        return EntryLine(number, body.decode(), hashed, proof, None, True) if number < 1 << 63 else None

    def _is_proof(self, proof: bytes) -> bool:
        """Whether it is the text of a proof; of what the one before had as well only the beginning is looked at."""
        known, step, end = self._proof, Paths.STEP, len(proof)
        if end == len(known):
            for cut in (step, 2 * step, 4 * step):
                if cut < end and known.endswith(proof[cut:]):
                    end = cut if proof[cut - 1 : cut] == b"," else 0
                    break
        if end < len(proof):
            is_good = end > 0 and _PROOF.fullmatch(proof, 0, end - 1) is not None
        else:
            is_good = _PROOF.fullmatch(proof) is not None
        if is_good:
            self._proof = proof
        return is_good


def _read_jsonl(line: bytes) -> EntryLine | ClosingLine:
    members = _read_json(line)
    if set(members) == {"count", "sha256"}:
        return ClosingLine(_number(members["count"]), _hash(members["sha256"]))
    if set(members) != {"seq", "body", "leaf", "proof"}:
        raise ValueError("it is neither an entry nor the closing line")
    body, proof = members["body"], members["proof"]
    if not isinstance(body, (str, type(None))) or not isinstance(proof, list):
        raise ValueError("its body or its proof is of the wrong kind")  # noqa: TRY004 - all that is wrong is ValueError
    _encode(body or "")
    return EntryLine(
        _number(members["seq"]), body, bytes.fromhex(_hash(members["leaf"])), proof_text(map(_hash, proof))
    )


def _read_row(line: bytes) -> list[str]:
    try:
        (cells,) = csv.reader([line.decode()], strict=True)
        is_canonical = len(cells) == len(COLUMNS) and csv_line(cells) == line
    except (ValueError, csv.Error):
        raise ValueError("it is not a row") from None
    if not is_canonical:
        raise ValueError("it is not written as an export is")
    return cells


def _read_csv_fact(name: str, line: bytes) -> dict[str, Any]:
    cells = _read_row(line)
    members = _read_json(cells[-3].encode() + b"\n")
    expected = dict.fromkeys(COLUMNS, "")
    expected.update(seq=name, body=json_line(members).decode().rstrip("\n"))
    if csv_line(list(expected.values())) != line:
        raise ValueError("it is not written as an export is")
    return members


def _read_csv(line: bytes) -> EntryLine | ClosingLine:
    cells = _read_row(line)
    if cells[0] == "end":
        members = _read_csv_fact("end", line)
        return ClosingLine(_number(members.get("count")), _hash(members.get("sha256")))
    *people, body, leaf, proof = cells
    if not _SIZE.fullmatch(people[0]):
        raise ValueError("it is neither an entry nor the closing row")
    _encode(body)
    steps = proof_text(map(_hash, proof.split(" "))) if proof else b""
    return EntryLine(_number(int(people[0])), body or None, bytes.fromhex(_hash(leaf)), steps, people)


def csv_line(cells: Sequence[str]) -> bytes:
    """Give one line of a CSV export (RFC 4180), every cell made harmless."""
    quoted = []
    for cell in map(_harmless, cells):
        needs = any(char in cell for char in ',"\r\n')
        quoted.append('"{}"'.format(cell.replace('"', '""')) if needs else cell)
    return (",".join(quoted) + "\r\n").encode()


def people_cells(entry: Mapping[str, Any], account: str) -> list[str]:
    """Give the columns that people read. All but the account follow from the body."""
    cells = [
        str(entry["seq"]),
        entry["at"],
        entry["event"],
        entry.get("request", ""),
        re.sub(r"[\r\n]", "\ufffd", account),
        entry["actor"]["team"],
        entry["actor"]["person"],
        entry.get("from", ""),
        entry.get("to", ""),
        entry.get("refused", ""),
        _ENCODER.encode(entry["data"]) if "data" in entry else "",
    ]
    return [_harmless(cell) for cell in cells]


def _harmless(cell: str) -> str:
    """Disarm what a spreadsheet would take for a formula."""
    return f"'{cell}" if cell.lstrip().startswith(_FORMULA) or cell.startswith(("\t", "\r")) else cell


def read_header(members: Mapping[str, Any]) -> Header:
    """Read an export's header. ValueError."""
    head, selection = members.get("head"), members.get("selection")
    if (
        set(members) != {"format", "exported_at", "selection", "head", "count"}
        or members["format"] != FORMAT
        or not isinstance(head, dict)
        or set(head) != {"size", "root"}
        or not isinstance(selection, dict)
        or set(selection) != {"since", "until", "account", "request"}
        or not all(value is None or isinstance(value, str) for value in selection.values())
    ):
        raise ValueError("it is not the header of an export")
    header = Header(
        head=(_number(head["size"]), bytes.fromhex(_hash(head["root"]))),
        counted=_number(members["count"]),
        at=read_time(members["exported_at"]),
        since=read_time(selection["since"]) if selection["since"] is not None else None,
        until=read_time(selection["until"]) if selection["until"] is not None else None,
        account=selection["account"],
        request=selection["request"],
    )
    if header.head[0] == 0 and header.head[1] != EMPTY_ROOT:
        raise ValueError("its head is not that of an empty log")
    return header


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError("a number is of the wrong kind")
    return value


def _hash(value: object) -> str:
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise ValueError("a hash is of the wrong kind")
    return value


def _encode(body: str) -> None:
    try:
        body.encode()
    except UnicodeEncodeError:
        raise ValueError("its body is not Unicode") from None


# --- the quick way: most of a sound export ---------------------------------------------------------------------------

# The careful way above takes an entry at a time and names what is wrong. The quick way takes hundreds, in as many
# processes as there are cores, and says one thing only: that the careful way would find nothing. Where it cannot say
# so, for whatever reason, nothing that it did is used and the careful way reads the file from its beginning.
#
# * Proofs: entries 256·n to 256·(n+1) are a whole subtree. Its hashes are computed from the bodies; the lower steps of
#   every proof must be these, letter for letter, the upper ones those of the first of them, and these are followed to
#   the head. So what must follow a body is known, and compared as a whole.
# * Bodies: one that was read carefully gives a pattern of its shape, as it stands in a line, in which only strings and
#   counts are open. What matches it is canonical JSON of the same members; what matches none is read carefully.
# * Rules: the same Replay. A process that begins in the middle keeps back the entries of requests that it did not see
#   opened, and the first process plays them, in order, with what the others know of these requests.


class _Unsure(Exception):
    """The quick way cannot say that all is well."""


_BLOCK: Final = 8  # levels of the tree that are taken at once
_CHUNK: Final = 1 << 20
_WORTH: Final = 16 << 20  # bytes for which it is worth to start a process
_MAX_KEPT_BACK: Final = 100_000
_MAX_SHAPES: Final = 256
_FRONT: Final = b'{"body":"'
# Parts of a body as they stand in a line: its quotes escaped, and nothing else in it that is.
_STRING: Final = rb'\\"[ !#-\[\]-~]*\\"'
_COUNT: Final = b"(?:0|[1-9][0-9]{0,17})"
_WORD: Final = rb'\\"([!#-\[\]-~]{1,64})\\"'
_MEMBERS: Final[Mapping[str, bytes | None]] = {  # in their order; None: only as it was; brackets: what is taken out
    "actor": rb'(\{\\"person\\":%b,\\"team\\":%b\})' % (_STRING, _STRING),
    "at": rb'\\"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-5][0-9]:[0-5][0-9]\.[0-9]{6}Z)\\"',
    "data": b"",
    "event": None,
    "from": None,
    "policy": _WORD,
    "refused": None,
    "request": _WORD,
    "seq": b"(%b)" % _COUNT,
    "to": None,
    "v": None,
    "version": b"(%b)" % _COUNT,
}
# Moves that are judged without looking into ``data``; held by a test.
_DEAF: Final = frozenset(
    {
        *("credential:warn", "credential:release", "credential:revoke", "credential:expire"),
        *("credential:intercept", "drill:done"),
    }
)


class Shape(NamedTuple):
    """What entries of one shape have in common; ``match`` takes out actor, at, data, policy, request, seq, version."""

    match: Callable[[bytes, int], re.Match[bytes] | None]
    fixed: dict[str, Any]
    reads_data: bool
    is_use: bool
    is_silent: bool  # a move of the bot's own that only counts
    follower: list[Shape | None]  # the one that last came after it


def _in_line(value: object) -> bytes:
    """Return the pattern of this very value, as it stands in a line."""
    return re.escape(encode_basestring_ascii(_write(value))[1:-1].encode())


def _pattern(value: object) -> bytes:
    """Return the pattern of values like this one: of the same members, any strings, any counts."""
    if type(value) is str:
        return _STRING
    if type(value) is int and 0 <= value < 10**18:
        return _COUNT
    if type(value) is dict:
        return rb"\{%b\}" % b",".join(_in_line(name) + b":" + _pattern(value[name]) for name in sorted(value))
    if type(value) is list:
        return rb"\[%b\]" % b",".join(map(_pattern, value))
    return _in_line(value)


def shape_pattern(entry: Mapping[str, Any]) -> bytes:
    """Return the pattern of lines with entries like this one, which :func:`read_body` gave, up to their end."""
    members = []
    for name, pattern in _MEMBERS.items():
        if name not in entry:
            members.append(b"" if pattern is None else b"()")
            continue
        value = b"(%b)" % _pattern(entry[name]) if name == "data" else pattern or _in_line(entry[name])
        members.append(b"%b%b:%b" % (b"," if name != "actor" else b"", _in_line(name), value))
    return rb'\{"body":"\{%b\}(?=","leaf)' % b"".join(members)


class Shapes:
    """The shapes of the entries so far, by event; one is kept when it comes the second time."""

    def __init__(self) -> None:
        self.by_event: dict[bytes, list[Shape]] = {}
        self.actors: dict[bytes, dict[str, str]] = {}  # as they stand in a line
        self.hours: set[str] = set()  # that are in the calendar
        self.known: dict[
            bytes, dict[str, Any]
        ] = {}  # what ``data`` says, by how it stands in a line; nobody changes it
        self.guess: Shape | None = None  # the last one
        self._seen: dict[bytes, int] = {}  # how often a pattern came
        self._left = 4 * _MAX_SHAPES  # how often one is still looked for: a file of rubbish has a new one in each line

    def learn(self, entry: dict[str, Any]) -> None:
        """Take the shape of an entry that was read carefully."""
        if len(self.actors) < 10_000:
            self.actors.setdefault(encode_basestring_ascii(_write(entry["actor"]))[1:-1].encode(), entry["actor"])
        if len(self.hours) < 100_000:
            self.hours.add(entry["at"][:13])
        if self._left <= 0:
            return
        self._left -= 1
        pattern = shape_pattern(entry)
        if len(pattern) > 4000:
            return
        self._seen[pattern] = self._seen.get(pattern, 0) + 1
        if self._seen[pattern] != 2:
            return
        event = entry["event"]
        shapes = self.by_event.setdefault(event.encode(), [])
        if len(shapes) < 16:
            is_deaf = event in _DEAF or (event == "request:escalate" and entry.get("from") != "ending")
            is_read = event == _CLOSE or event in _RECORDING or (event in Replay.STEPS and not is_deaf)
            reads_data = "request" not in entry or is_read
            fixed = {name: value for name, value in entry.items() if _MEMBERS[name] is None}
            use = event == _USE and "request" in entry and "to" not in entry and "refused" not in entry
            move = MOVES.get((entry.get("from"), event)) if "refused" not in entry and "version" in entry else None
            stays = move == (entry.get("from"), "system") == (entry.get("to"), "system") and not reads_data
            is_silent = event not in Replay.STEPS or event == "request:escalate"
            shapes.append(Shape(re.compile(pattern).match, fixed, reads_data, use, stays and is_silent, [None]))
            self._left = max(self._left, _MAX_SHAPES)


class _Collected(bytearray):
    """Leaf hashes of a request: what can be handed to another process, as a hash that has begun cannot."""

    update = bytearray.extend

    def hexdigest(self) -> str:
        return sha256(self).hexdigest()


class KeptBack(NamedTuple):
    """What a process that begins in the middle cannot judge: an entry, or under which policy one was opened."""

    seq: int
    entry: dict[str, Any] | None
    leaf: bytes
    opened: tuple[str | None, tuple[str, ...]] = (None, ())


class _SpanReplay(Replay):
    """Plays the entries of one span; keeps back what depends on those before it."""

    def __init__(self, *, is_first: bool) -> None:
        super().__init__(Findings(0), is_whole=True, keeps_details=False, hashing=_Collected)
        self.is_first = is_first
        self.kept_back: list[KeptBack] = []
        self.earlier: set[str] = set()  # requests that began before the span
        self.lowest = "~"
        self._opened_under: set[tuple[str | None, tuple[str, ...]]] = set()

    def take(self, seq: int, entry: Mapping[str, Any], leaf: bytes) -> None:
        """Take the next entry."""
        if self.is_first:
            super().take(seq, entry, leaf)
            return
        at, name = entry["at"], entry.get("request")
        self.lowest = min(self.lowest, at)
        if name in self.cases:
            super().take(seq, entry, leaf)
            return
        is_opening = "to" in entry and "from" not in entry and "refused" not in entry
        if name is not None and is_opening and name not in self.earlier:
            super().take(seq, entry, leaf)
            return
        if at >= self.latest or self._is_back(seq, at):
            self.latest = at
        if name is None:
            self._opened_under.clear()
        else:
            self.earlier.add(name)
        self.kept_back.append(KeptBack(seq, dict(entry), leaf))
        if len(self.kept_back) > _MAX_KEPT_BACK:
            raise _Unsure

    def _judge_policy(self, seq: int, case: Case) -> None:
        if self.is_first:
            super()._judge_policy(seq, case)
            return
        opened = (case.policy, case.custodians or ())
        if opened not in self._opened_under:
            self._opened_under.add(opened)
            self.kept_back.append(KeptBack(seq, None, b"", opened))

    def pass_by(  # noqa: PLR0917 - called for each entry
        self, seq: int, shape: Shape, at: str, actor: Mapping[str, str], name: str, version: int, leaf: bytes
    ) -> bool:
        """Take an entry that only counts, where nothing is unusual about it; else return False, and nothing is done."""
        case = self.cases.get(name)
        if case is None or case.is_lost or at < self.latest:
            return False
        if shape.is_use:
            is_over = case.ended is not None and at > case.ended
            if is_over or not (case.is_partial or any(grant.issued for grant in case.grants.values())):
                return False
        elif case.state != shape.fixed["from"] or version != case.version + 1 or actor != SYSTEM:
            return False
        else:
            case.version = version
            case.at = at
        self.latest = at
        case.last_seq = seq
        case.count += 1
        case.hashed += leaf
        return True

    def go_on(self, told: Told, cases: Mapping[str, Case]) -> None:
        """Play what the next span kept back; ``cases``: the earlier requests that it names, as they were left."""
        # What is too early for its own span was found there; what is too early for the one before is the earliest.
        if read_time(self.latest) - read_time(told.lowest) > self.slack:
            raise _Unsure
        self.cases.update(cases)
        for back in told.kept_back:
            if back.entry is not None:
                super().take(back.seq, back.entry, back.leaf)
            else:
                case = Case("", None, 0, is_partial=False)
                case.policy, case.custodians = back.opened[0], back.opened[1] or None
                super()._judge_policy(back.seq, case)
        self.latest = max(self.latest, told.latest)


class Told(NamedTuple):
    """What one process tells of its span: all of it is sound, as far as it can be judged by itself."""

    first: int
    size: int  # the number after its last
    last_at: str
    blocks: list[tuple[int, bytes]]  # levels and root of each perfect subtree, in order
    parts: dict[int, list[bytes]]  # by wanted size: the roots that go on from the block's beginning
    leaves: bytes
    names: list[str]  # of the requests that began in it
    overdue: list[str]  # those whose review is late
    earlier: list[str]
    kept_back: list[KeptBack]
    lowest: str
    latest: str


class Asked(NamedTuple):
    """What of a file is to be judged, the same for all processes."""

    head: tuple[int, bytes]
    as_of: datetime
    wanted: frozenset[int]
    keeps_leaves: bool


class Span:
    """Judges consecutive entry lines; raises :class:`_Unsure` as soon as not all is well."""

    def __init__(self, asked: Asked, replay: _SpanReplay | None) -> None:
        self.replay = replay
        self.first = self.size = -1
        self.last_at = ""
        self.blocks: list[tuple[int, bytes]] = []
        self.parts: dict[int, list[bytes]] = {}
        self.leaves = bytearray()
        self._asked = asked
        self._wanted = sorted(asked.wanted)
        self._shapes = Shapes()
        self._data = b""
        self._many = 0  # lines in it

    def feed(self, data: bytes) -> None:
        """Take the next lines, all of them whole."""
        self._data += data
        self._many += data.count(b"\n")
        if self._many >= 1 << _BLOCK:
            self._judge(1 << _BLOCK)

    def end(self) -> None:
        """There are no more."""
        self._judge(1)

    def tell(self) -> Told:
        """Return what there is to tell."""
        replay, late = self.replay, []
        if replay is None:
            return Told(
                self.first, self.size, self.last_at, self.blocks, self.parts, bytes(self.leaves), [], [], [], [], "", ""
            )
        for case in replay.cases.values():
            due = case.review_due
            if case.state == "ended" and due is not None and due < self._asked.as_of:
                late.append(case.name)
        return Told(
            first=self.first,
            size=self.size,
            last_at=self.last_at,
            blocks=self.blocks,
            parts=self.parts,
            leaves=bytes(self.leaves),
            names=list(replay.cases),
            overdue=late,
            earlier=sorted(replay.earlier),
            kept_back=replay.kept_back,
            lowest=replay.lowest,
            latest=replay.latest,
        )

    def _judge(self, least: int) -> None:
        """Judge what lines there are, a perfect subtree at a time, while it has so many entries."""
        if self._many and self.size < 0:
            self.first = self.size = _number(_first_of(self._data)[1])
        start = 0
        while self._many >= least:
            levels = min(_BLOCK, self._many.bit_length() - 1)
            if self.size:
                levels = min(levels, (self.size & -self.size).bit_length() - 1)
            start = self._block(start, levels)
            self._many -= 1 << levels
        self._data = self._data[start:]

    def _block(self, start: int, levels: int) -> int:
        """Judge the lines of a perfect subtree; return where the next line begins."""
        data, first, many = self._data, self.size, 1 << levels
        size, root = self._asked.head
        if first + many > size:
            raise _Unsure
        # 1. What all proofs have in common, from the first of them.
        proof, _ = _first_of(data, start)
        upper = proof[levels * Paths.STEP :]
        if not _PROOF.fullmatch(upper):
            raise _Unsure
        # 2. The bodies, each from where the line before it ends; how long what follows it is, is known.
        numbers = "\n".join(map(str, range(first, first + many))).encode().split(b"\n")
        leaves, places = self._bodies(start, numbers, 95 + len(proof))
        # 3. The subtree over them, and its way to the head.
        rows = [leaves, *_rows_over(leaves, levels)]
        steps = [bytes.fromhex(step[1:65].decode()) for step in upper.split(b",")] if upper else []
        if not _leads_up(first >> levels, (size - 1) >> levels, rows[-1][0], steps, root):
            raise _Unsure
        # 4. After each body stands what an export writes after such a one, and no more.
        ends = _ends(rows, upper, numbers)
        if len(ends[0]) != 95 + len(proof) + len(numbers[0]) or not all(map(data.startswith, ends, places)):
            raise _Unsure
        self.blocks.append((levels, rows[-1][0]))
        while self._wanted and self._wanted[0] < first + many:
            size = self._wanted.pop(0)
            if size > first:
                self.parts[size] = [rows[level][at] for level, at in _pieces(size - first)]
        if self._asked.keeps_leaves:
            self.leaves += b"".join(leaves)
        self.size = first + many
        return places[-1] + len(ends[-1])

    def _bodies(self, start: int, numbers: list[bytes], around: int) -> tuple[list[bytes], list[int]]:
        """Read the bodies of consecutive lines; return their leaf hashes, and where they end."""
        lines, shapes, replay, known = self._data, self._shapes, self.replay, self._shapes.known
        by_event, actors, hours = shapes.by_event, shapes.actors, shapes.hours
        scan, find = _DECODER.scan_once, lines.find  # type: ignore[attr-defined]
        if len(known) > 4000:
            known.clear()
        leaves, places, at, seq, guess = [], [], "", self.size, shapes.guess
        take: Any = None if replay is None else replay.take
        if replay is not None and replay.is_first:
            take = super(_SpanReplay, replay).take  # it judges all of it
        for number in numbers:
            # 1. Its shape: perhaps the one that came after the one before when that was last seen.
            shape, who = guess.follower[0] if guess is not None else None, None
            found = shape.match(lines, start) if shape is not None else None
            if found is None:
                place = find(b'"event\\":\\"', start) + 11
                for shape in by_event.get(lines[place : find(b"\\", place)], ()):
                    found = shape.match(lines, start)
                    if found is not None:
                        break
            # 2. What it says.
            if found is not None:
                actor, when, told, policy, request, said, version = found.groups()
                who, at = actors.get(actor), when.decode()
                if who is None or at[:13] not in hours or said != number or found.end() - start > MAX_BODY:
                    found = None
            if found is None or shape is None or who is None:
                end = find(b"\n", start) + 1 - around - len(number)
                text = _unescape(lines[start:end])
                entry = read_body(text)
                leaf = leaf_hash(text.encode())
                at = entry["at"]
                if entry["seq"] != seq:
                    raise _Unsure
                shapes.learn(entry)
                if take is not None:
                    take(seq, entry, leaf)
            else:
                if guess is not None:
                    guess.follower[0] = shape
                guess = shape
                end = found.end()
                leaf = sha256(b"\x00" + lines[start + 9 : end].translate(None, b"\\")).digest()
                if replay is not None and not (
                    (shape.is_use or shape.is_silent)
                    and replay.pass_by(seq, shape, at, who, request.decode(), int(version or 0), leaf)
                ):
                    entry = shape.fixed.copy()
                    entry["actor"], entry["at"] = who, at
                    if request:
                        entry["request"] = request.decode()
                    if policy:
                        entry["policy"] = policy.decode()
                    if version:
                        entry["version"] = int(version)
                    if told and shape.reads_data:
                        data = known.get(told)
                        if data is None:
                            data = known[told] = scan(told.translate(None, b"\\").decode(), 0)[0]
                        entry["data"] = data
                    take(seq, entry, leaf)
            leaves.append(leaf)
            places.append(end)
            start = end + around + len(number)
            seq += 1
        self.last_at, shapes.guess = at, guess
        if replay is not None and replay.findings:
            raise _Unsure
        return leaves, places


def _first_of(lines: bytes, start: int = 0) -> tuple[bytes, int]:
    """Take proof and number out of a line, by where they stand: it is compared with what it should be later on."""
    end = lines.index(b"\n", start)
    proof = lines.rindex(b'","proof":[', start, end) + 11
    stop = lines.rindex(b'],"seq":', proof, end)
    number = lines[stop + 8 : end - 1].decode("ascii")
    if not _SIZE.fullmatch(number):
        raise _Unsure
    return lines[proof:stop], int(number)


def _unescape(line: bytes) -> str:
    """Return the body in a line that was cut off where its body ends. ValueError: it is none."""
    if not line.startswith(_FRONT):
        raise ValueError(line)
    quoted = line[8:].decode("ascii") + '"'
    text, end = json.decoder.scanstring(quoted, 1)  # type: ignore[attr-defined]
    if end != len(quoted) or encode_basestring_ascii(text) != quoted:
        raise ValueError(line)
    return str(text)


def _rows_over(row: list[bytes], levels: int) -> list[list[bytes]]:
    """Return the rows of hashes over the leaves of a perfect subtree; the last is its root."""
    rows = []
    for _ in range(levels):
        pair = iter(row)
        row = [sha256(b"\x01" + left + right).digest() for left, right in zip(pair, pair)]  # noqa: B905
        rows.append(row)
    return rows


def _leads_up(position: int, last: int, folded: bytes, steps: Sequence[bytes], root: bytes) -> bool:
    """Whether a subtree's root leads to the tree's (RFC 9162, 2.1.3.2, from the level on where it is a node)."""
    for step in steps:
        if last == 0:
            return False
        if position & 1 or position == last:
            folded = node_hash(step, folded)
            while position and not position & 1:
                position, last = position >> 1, last >> 1
        else:
            folded = node_hash(folded, step)
        position, last = position >> 1, last >> 1
    return last == 0 and folded == root


def _ends(rows: list[list[bytes]], upper: bytes, numbers: list[bytes]) -> list[bytes]:
    """Return how the lines of a perfect subtree must end; ``rows``: its hashes, the leaves first."""
    proofs = [upper]
    for row in rows[-2::-1]:
        hashes = [one.hex().encode() for one in row]
        comma = b'",' if proofs[0] else b'"'
        beside = hashes.copy()
        beside[::2], beside[1::2] = hashes[1::2], hashes[::2]
        if row is rows[0]:
            break
        proofs = [b"".join((b'"', step, comma, proofs[place >> 1])) for place, step in enumerate(beside)]
    else:  # one entry by itself
        return [
            b"".join((b'","leaf":"', rows[0][0].hex().encode(), b'","proof":[', upper, b'],"seq":', numbers[0], b"}\n"))
        ]
    twice = [proof for proof in proofs for _ in (0, 1)]
    return [
        b"".join((b'","leaf":"', own, b'","proof":["', step, comma, proof, b'],"seq":', number, b"}\n"))
        for own, step, proof, number in zip(hashes, beside, twice, numbers)  # noqa: B905
    ]


def _pieces(many: int) -> list[tuple[int, int]]:
    """Return which nodes (level, place) hold the first so many leaves of a subtree."""
    found, at = [], 0
    for level in range(many.bit_length() - 1, -1, -1):
        if many >> level & 1:
            found.append((level, at >> level))
            at += 1 << level
    return found


class Quick:
    """Reads a whole export quickly: :meth:`run` says whether the careful way would find nothing.

    ``path``: where other processes can open it. ``processes``: how many there are to be, this one among them.
    """

    def __init__(
        self, path: Path | None, wanted: Iterable[int], *, keeps_leaves: bool, rules: bool, processes: int
    ) -> None:
        self.header: Header | None = None
        self.entries = 0
        self.roots: dict[int, bytes] = {0: EMPTY_ROOT}
        self.leaves = Leaves() if keeps_leaves else None
        self.replay = _SpanReplay(is_first=True) if rules else None
        self._path = path
        self._wanted = frozenset(wanted)
        self._processes = processes if path is not None else 1

    def run(self, file: IO[bytes]) -> bool:
        """Read it from where it stands, which is its beginning. _Alone: there are no other processes to be had."""
        is_collecting = gc.isenabled()
        gc.disable()  # nothing here is in a circle, and looking for circles takes time
        try:
            self._run(file)
        except _Alone:
            raise
        except Exception:  # noqa: BLE001 - whatever it is, the careful way says it
            return False
        finally:
            if is_collecting:
                gc.enable()
        return True

    def _run(self, file: IO[bytes]) -> None:
        first = file.readline(_MAX_LINE + 1)
        self.header = header = read_header(_read_json(first))
        if not header.is_run or header.since is not None:
            raise _Unsure
        asked = Asked(header.head, header.as_of, self._wanted, self.leaves is not None)
        span, passed = Span(asked, self.replay), sha256(first)
        if self._processes == 1:
            rest = _Rest(file)
            for lines in rest:
                passed.update(lines)
                span.feed(lines)
            span.end()
            self._join(header, [span.tell()], _read_jsonl(rest.last), passed.hexdigest())
            if self.replay is not None:
                self.replay.finish(header.as_of)
        else:
            last = _last_line(file)
            bounds = _bounds(file, len(first), file.seek(0, 2) - len(last), self._processes)
            file.seek(len(first))
            with _Others(self._path, bounds[1:], asked, rules=self.replay is not None) as others:
                for lines in _give(file, bounds[1] - bounds[0]):
                    passed.update(lines)
                    span.feed(lines)
                span.end()
                while (much := bounds[-1] - file.tell()) > 0:
                    passed.update(file.read(min(_CHUNK, much)))
                told = [span.tell(), *others.told()]
                self._join(header, told, _read_jsonl(last), passed.hexdigest())
                if self.replay is not None:
                    self._play(self.replay, told, others, header.as_of)
        if self.replay is not None and self.replay.findings:
            raise _Unsure

    def _join(self, header: Header, told: Sequence[Told], closing: EntryLine | ClosingLine, passed: str) -> None:
        """Check that the spans are the whole of what the header and the closing line say; compute the wanted roots."""
        size, edge, wanted, last_at = 0, Peaks(), sorted(self._wanted), ""
        for one in told:
            if one.size < 0:
                continue
            if one.first != size:
                raise _Unsure
            if self.leaves is not None:
                self.leaves.extend(size, one.leaves)
            for levels, root in one.blocks:
                while wanted and wanted[0] < size + (1 << levels):
                    number = wanted.pop(0)
                    if number:
                        self.roots[number] = Peaks(number, [*edge.peaks, *one.parts.get(number, ())]).root()
                edge.push(root, levels)
                size = edge.size
            last_at = one.last_at
        if size in wanted:
            self.roots[size] = edge.root()
        self.roots[header.head[0]] = header.head[1]
        self.entries = size
        if type(closing) is not ClosingLine or closing != (size, passed) or header.counted != size or not size:
            raise _Unsure
        if size != header.head[0] if header.until is None else read_time(last_at) > header.until:
            raise _Unsure

    @staticmethod
    def _play(replay: _SpanReplay, told: Sequence[Told], others: _Others, as_of: datetime) -> None:
        """Play what the spans kept back."""
        owner = dict.fromkeys(replay.cases, 0)
        for place, one in enumerate(told[1:], start=1):
            # Attack: a request that is opened a second time, in another span.
            if not owner.keys().isdisjoint(one.names) or not owner.keys() >= set(one.earlier):
                raise _Unsure
            owner.update(dict.fromkeys(one.names, place))
        cases = others.cases({name: owner[name] for one in told for name in one.earlier if owner[name]})
        for one in told[1:]:
            if one.size >= 0:
                replay.go_on(one, {name: cases.pop(name) for name in one.earlier if name in cases})
        if any(name not in replay.cases for one in told[1:] for name in one.overdue):
            raise _Unsure
        replay.finish(as_of)


class _Rest:
    """Gives what follows in a file in whole lines, many at a time, but for the last of them."""

    def __init__(self, file: IO[bytes]) -> None:
        self.last = b""
        self._file = file

    def __iter__(self) -> Iterator[bytes]:
        while chunk := self._file.read(_CHUNK):
            self.last += chunk
            cut = self.last.rfind(b"\n", 0, len(self.last) - 1) + 1
            if cut:
                yield self.last[:cut]
                self.last = self.last[cut:]
            if len(self.last) > _MAX_LINE:
                raise _Unsure


def _last_line(file: IO[bytes]) -> bytes:
    end = file.seek(0, 2)
    file.seek(max(0, end - 4096))
    last = file.read()
    return last[last.rfind(b"\n", 0, -1) + 1 :]


def _give(file: IO[bytes], much: int) -> Iterator[bytes]:
    """Give so many bytes of a file, in pieces that end with a line."""
    held = b""
    while much > 0 and (chunk := file.read(min(_CHUNK, much))):
        much -= len(chunk)
        held += chunk
        cut = held.rfind(b"\n") + 1
        if cut:
            yield held[:cut]
            held = held[cut:]
        if len(held) > _MAX_LINE:
            raise _Unsure
    if held or much > 0:
        raise _Unsure


def _bounds(file: IO[bytes], start: int, stop: int, many: int) -> list[int]:
    """Return where so many spans begin, and where the last ends; all but the first are as long as each other."""
    # The first process hashes the whole file besides: about a tenth of what it costs to judge it.
    own = max(1 - (many - 1) / 10, 0.1) / many
    bounds = [start]
    for number in range(many - 1):
        file.seek(start + int((stop - start) * (own + (1 - own) * number / (many - 1))))
        file.readline(_MAX_LINE)
        bounds.append(min(max(file.tell(), bounds[-1]), stop))
    return [*bounds, stop]


class _Alone(Exception):
    """No other process can be had, or one was lost."""


class _Others:
    """The other processes, each with its span; none is left when it is over."""

    def __init__(self, path: Path | None, bounds: Sequence[int], asked: Asked, *, rules: bool) -> None:
        self._path = path
        self._bounds = bounds
        self._asked = asked
        self._rules = rules
        self._running: list[tuple[Any, Any]] = []  # process and pipe

    def __enter__(self) -> _Others:  # noqa: PYI034 - Python 3.9 has no Self
        import multiprocessing  # noqa: PLC0415 - most files are small

        try:
            method = _start_method()
            context: Any = multiprocessing.get_context(method)
            for span in zip(self._bounds, self._bounds[1:]):  # noqa: B905
                ours, theirs = context.Pipe()
                # A fork has our ends, too, and with them open it would wait for ever when we are gone.
                spare = [ours, *(pipe for _, pipe in self._running)] if method == "fork" else []
                words = (self._path, span, self._asked, [theirs, *spare], self._rules)
                process = context.Process(target=_work, args=words, daemon=True)
                self._running.append((process, ours))
                process.start()
                theirs.close()
        except (OSError, ImportError, RuntimeError, ValueError):
            self.__exit__()
            raise _Alone from None
        return self

    def __exit__(self, *_: object) -> None:
        for process, pipe in self._running:
            pipe.close()
            if process.pid is not None:
                process.kill()  # a fork has the handlers of whatever program this is in: it may outlive SIGTERM
                process.join()

    def told(self) -> Iterator[Told]:
        """Return what each tells."""
        for number in range(len(self._running)):
            told = self._receive(number)
            if told is None:
                raise _Unsure
            yield told

    def cases(self, owner: Mapping[str, int]) -> dict[str, Case]:
        """Return these requests, as the processes that own them left them; the first process is number 0."""
        names: dict[int, list[str]] = {}
        for name, number in owner.items():
            names.setdefault(number - 1, []).append(name)
        found: dict[str, Case] = {}
        for number, some in names.items():
            self._running[number][1].send(some)
            found.update(self._receive(number))
        return found

    def _receive(self, number: int) -> Any:  # noqa: ANN401 - what the other sends
        try:
            return self._running[number][1].recv()
        except (OSError, EOFError):
            raise _Alone from None


def _work(path: Path, span: tuple[int, int], asked: Asked, pipes: Sequence[Any], rules: bool) -> None:  # noqa: FBT001
    """Judge a span in a process of its own; None is sent when not all is well. Of ``pipes`` only the first is its."""
    gc.disable()
    pipe, *others = pipes
    for other in others:
        other.close()
    told: Told | None = None
    replay = _SpanReplay(is_first=False) if rules else None
    try:
        judge = Span(asked, replay)
        with path.open("rb") as file:
            file.seek(span[0])
            for lines in _give(file, span[1] - span[0]):
                judge.feed(lines)
        judge.end()
        told = judge.tell()
    except Exception:  # noqa: BLE001, S110 - whatever it is, the careful way says it
        pass
    try:
        pipe.send(told)
        if replay is not None:
            names = pipe.recv()
            pipe.send({name: replay.cases[name] for name in names})
    except (OSError, EOFError, KeyboardInterrupt):
        pass  # the first process needs nothing more


def _start_method() -> str:
    """How another process can be started without running somebody's program again. ValueError: there is no way."""
    import threading  # noqa: PLC0415 - most files are small

    if sys.platform == "linux" and threading.active_count() == 1:
        return "fork"
    if __name__ == "__main__":
        return "spawn"
    raise ValueError("another process would run the program around this again")


def _processes(path: Path | None) -> int:
    """How many processes are worth it."""
    if path is None:
        return 1
    length = path.stat().st_size
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, 8, length // _WORTH))


# --- bundles -------------------------------------------------------------------------------------------------------

_MAX_FILE: Final = 64 << 20  # what is read at once: notes, proofs, policies
_TROUBLE: Final = (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, ValueError)


class Files:
    """The files of a bundle: a ZIP archive or a folder, by their names with slashes."""

    def __init__(self, path: Path) -> None:
        self._zip = None if path.is_dir() else zipfile.ZipFile(path)
        self._folder = path
        if self._zip is not None:
            self.names = [info.filename for info in self._zip.infolist() if not info.is_dir()]
        else:
            self.names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())

    def path(self, name: str) -> Path | None:
        """Where one lies as a file of its own."""
        return self._folder / name if self._zip is None else None

    def open(self, name: str) -> IO[bytes]:
        """Open one for reading."""
        return self._zip.open(name) if self._zip is not None else (self._folder / name).open("rb")

    def read(self, name: str) -> bytes:
        """Read one that is not long. ValueError when it is."""
        with self.open(name) as file:
            data = file.read(_MAX_FILE + 1)
        if len(data) > _MAX_FILE:
            raise ValueError("it is longer than such a file can be")
        return data

    def hash(self, name: str) -> str:
        """SHA-256 of one, in hexadecimal."""
        hashed = sha256()
        with self.open(name) as file:
            while chunk := file.read(1 << 20):
                hashed.update(chunk)
        return hashed.hexdigest()


class Verifier:
    """Checks one file or bundle; see :func:`verify`."""

    def __init__(
        self,
        keys: Sequence[Key],
        kept: Sequence[tuple[str, bytes]],
        limit: int,
        *,
        rules: bool,
        processes: int | None = None,
    ) -> None:
        self.findings = Findings(limit)
        self.unchecked: list[str] = []
        self._keys = keys
        self._kept = kept
        self._rules = rules
        self._processes = processes
        self._replay: Replay | None = None

    def run(self, path: Path) -> Report:
        """Read it, whatever it is."""
        try:
            if path.is_dir() or zipfile.is_zipfile(path):
                return self._bundle(Files(path))
            with path.open("rb") as file:
                export = self._export(file, (), path=path)
        except _TROUBLE as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is damaged"
            self.findings.add(Kind.UNREADABLE, None, f"The file cannot be read: {reason}.")
            return Report(0, self.findings)
        self._compare(export, {})
        if self._keys:
            self.unchecked.append("An export has no signed head, so the key was not asked: compare with --head.")
        return self._report(export)

    @property
    def _rotations(self) -> Sequence[Rotation]:
        return self._replay.rotations if self._replay is not None else ()

    def _report(self, export: Export) -> Report:
        header = export.header
        return Report(export.entries, self.findings, header.head if header else None, tuple(self.unchecked))

    def _export(self, file: IO[bytes], sizes: Iterable[int], *, keep: bool = False, path: Path | None = None) -> Export:
        """Check an export, and replay it: quickly, and carefully when that does not say that all is well."""
        kept = [head.size for head in map(_read_quietly, (note for _, note in self._kept)) if head is not None]
        wanted = frozenset((*sizes, *kept))
        quick = self._quickly(file, path, wanted, keep=keep)
        if quick is None:
            file.seek(0)
            return self._carefully(file, wanted, keep=keep)
        self._replay = quick.replay
        export = Export(self.findings, wanted=wanted)
        export.header, export.entries = quick.header, quick.entries
        export.roots, export.leaves = quick.roots, quick.leaves
        return export

    def _quickly(self, file: IO[bytes], path: Path | None, wanted: frozenset[int], *, keep: bool) -> Quick | None:
        many = self._processes or _processes(path)
        for processes in dict.fromkeys((many, 1)):
            quick = Quick(path, wanted, keeps_leaves=keep, rules=self._rules, processes=processes)
            try:
                return quick if quick.run(file) else None
            except _Alone:
                file.seek(0)
        return None

    def _carefully(self, file: IO[bytes], wanted: frozenset[int], *, keep: bool) -> Export:

        def begin(header: Header) -> None:
            self._replay = (
                Replay(self.findings, is_whole=header.since is None, keeps_details=False) if self._rules else None
            )

        def take(seq: int, entry: dict[str, Any], leaf: bytes) -> None:
            if self._replay is not None:
                self._replay.take(seq, entry, leaf)

        def hole(seq: int) -> None:
            if self._replay is not None:
                self._replay.hole(seq)

        def pruned(seq: int, leaf: bytes) -> None:
            if self._replay is not None:
                self._replay.pruned(seq, leaf, None, is_known=False)

        export = Export(self.findings, taken=take, hole=hole, pruned=pruned, begun=begin, wanted=wanted)
        if keep:
            export.leaves = Leaves()
        export.run(file)
        self.unchecked += export.unchecked
        if self._replay is not None and export.header is not None:
            self._replay.finish(export.header.as_of)
        return export

    def _compare(self, export: Export, more: Mapping[int, bytes]) -> None:
        """Compare with the heads that were kept elsewhere."""
        if export.header is None:
            return
        for where, note in self._kept:
            left = compare_kept(
                self.findings, note, where, lambda size: export.roots.get(size, more.get(size)), export.header.head[0]
            )
            if left:
                self.unchecked.append(left)
            if self._keys:
                check_note(self.findings, self._keys, self._rotations, where, note)

    # A bundle.

    def _bundle(self, files: Files) -> Report:
        names = set(files.names)
        if len(names) != len(files.names):
            self.findings.add(Kind.DOUBLED, None, "A file stands in the bundle twice.")
        if not names & {"MANIFEST", "entries.jsonl"}:
            self.findings.add(Kind.UNREADABLE, None, "The file cannot be read: it is no bundle.")
            return Report(0, self.findings)
        self._manifest(files, names)
        notes = self._notes(files)
        if "entries.jsonl" not in names:
            self.findings.add(Kind.MISSING, None, "The bundle has no entries.jsonl.")
            return Report(0, self.findings)
        heads = {name: head for name, note in notes if (head := _read_quietly(note)) is not None}
        proofs = sorted(name for name in names if name.endswith(".tlog-proof"))
        has_proofs = bool(proofs) or "proofs.txt" in names
        with files.open("entries.jsonl") as file:
            sizes = [head.size for head in heads.values()]
            export = self._export(file, sizes, keep=has_proofs, path=files.path("entries.jsonl"))
        if export.header is None:
            return self._report(export)
        joined = self._consistency(files, names, {note for _, note in notes}, heads, export)
        self._heads(notes, heads, export)
        evidence = Evidence(self.findings, self._keys, self._rotations, export.leaves or Leaves())
        for name in proofs:
            # What put a policy on record may stand outside the selection: then it stands beside its evidence.
            body = name[: -len(".tlog-proof")] + ".json"
            is_beside = name.startswith("policy/") and body in names
            evidence.check(name, files.read(name), files.read(body) if is_beside else None)
        if "proofs.txt" in names:
            with files.open("proofs.txt") as file:
                is_sound = evidence.is_of_all(file)
            if not is_sound:
                with files.open("proofs.txt") as file:
                    for number, one in enumerate(_each_proof(file), start=1):
                        evidence.check(f"proofs.txt, number {number}", one, None)
        self._described(files, names, export)
        self._texts(files, names, [note for _, note in notes])
        self._compare(export, joined)
        return self._report(export)

    def _manifest(self, files: Files, names: set[str]) -> None:
        """Compare each file with its hash in MANIFEST (the form of ``sha256sum``)."""
        if "MANIFEST" not in names:
            self.findings.add(Kind.MISSING, None, "The bundle has no MANIFEST.")
            return
        listed = set()
        for line in files.read("MANIFEST").decode("utf-8", "replace").splitlines():
            hashed, _, name = line.partition("  ")
            listed.add(name)
            if name not in names:
                self.findings.add(Kind.MISSING, None, f"{name[:200]} stands in MANIFEST, and is not in the bundle.")
            elif files.hash(name) != hashed:
                self.findings.add(Kind.ALTERED, None, f"{name} is not the file whose hash stands in MANIFEST.")
        for name in sorted(names - listed - {"MANIFEST"}):
            self.findings.add(Kind.ALTERED, None, f"{name[:200]} does not stand in MANIFEST: it was added.")

    def _notes(self, files: Files) -> list[tuple[str, bytes]]:
        """Return the signed heads, in the order of their sizes."""
        found = [(name, files.read(name)) for name in sorted(files.names) if name.startswith("heads/")]
        sizes = {name: (head.size if (head := _read_quietly(note)) else -1) for name, note in found}
        return sorted(found, key=lambda pair: (sizes[pair[0]], pair[0]))

    def _described(self, files: Files, names: set[str], export: Export) -> None:
        """Check that bundle.json, which programs read first, says of the head what the export says."""
        if "bundle.json" not in names or export.header is None:
            return
        try:
            head = json.loads(files.read("bundle.json"))["head"]
            stated = (head["size"], bytes.fromhex(head["root"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            self.findings.add(Kind.UNREADABLE, None, "bundle.json does not say at which head the bundle stands.")
            return
        if stated != export.header.head:
            self.findings.add(Kind.ALTERED, None, "bundle.json says another head than entries.jsonl.")

    def _consistency(
        self, files: Files, names: set[str], notes: set[bytes], heads: Mapping[str, SignedHead], export: Export
    ) -> dict[int, bytes]:
        """Follow the proofs between heads; return the roots that lead to the export's head."""
        assert export.header is not None  # noqa: S101 - the caller looked
        known: dict[int, bytes] = {head.size: head.root for head in heads.values()}
        known[export.header.head[0]] = export.header.head[1]
        steps = []
        for name in sorted(names):
            if not name.startswith("consistency/"):
                continue
            try:
                old, proof, note = _read_consistency(files.read(name))
                newer = read_note(note)
            except ValueError as error:
                self.findings.add(Kind.UNREADABLE, None, f"{name}: {error}.")
                continue
            new = newer.size
            if note not in notes:
                self.findings.add(Kind.ALTERED, None, f"The head in {name} is none of those in the bundle.")
            if (
                old not in known
                or known.get(new) != newer.root
                or not is_consistent((old, known[old]), (new, newer.root), proof)
            ):
                self.findings.add(
                    Kind.FORKED,
                    old - 1 if old else None,
                    f"The head over {new} entries did not grow out of the one over {old}: no proof leads there.",
                )
            else:
                steps.append((old, new))
        joined: dict[int, bytes] = {export.header.head[0]: export.header.head[1]}
        for old, new in sorted(steps, key=lambda step: -step[1]):
            if new in joined:
                joined[old] = known[old]
        self.unchecked += [
            f"No proof leads from the head over {size} entries to the one of the export."
            for size in known
            if size not in joined and size not in export.roots
        ]
        return joined

    def _heads(self, notes: Sequence[tuple[str, bytes]], heads: Mapping[str, SignedHead], export: Export) -> None:
        assert export.header is not None  # noqa: S101 - the caller looked
        has_keys = any(key.kind == LOG_KEY for key in self._keys)
        if not has_keys:
            self.unchecked.append(
                "No log's key was given (--vkey): who signed the heads was not checked."
                if notes
                else "The bundle has no signed head: who wrote the log cannot be told from it."
            )
        by_size: dict[int, list[bytes]] = {}
        for name, note in notes:
            if name in heads:
                by_size.setdefault(heads[name].size, []).append(note)
        self._keys = trusted(self._keys, self._rotations, lambda size: by_size.get(size, ()))
        checker = Heads(self.findings, self._keys, self._rotations, export.header.head[0])
        for name, note in notes:
            size = heads[name].size if name in heads else -1
            checker.check(Seen(name, note, export.roots.get(size)))
        size, root = export.header.head
        # Attack: entries of a log made up anew, beside heads that are sound and have nothing to do with them.
        if has_keys and checker.signed.get(size) != root:
            self.findings.add(
                Kind.UNKNOWN_SIGNATURE,
                size - 1 if size else None,
                "No head over these entries is signed by a trusted key.",
            )

    def _texts(self, files: Files, names: set[str], notes: Sequence[bytes]) -> None:
        """Check that texts have the hash in their name, and that time stamps are of a head in the bundle."""
        for name in sorted(names):
            folder, _, hashed = name.rpartition("/")
            end = {"policy": ".yml", "payloads": ".txt"}.get(folder, "")
            if end and hashed.endswith(end) and files.hash(name) != hashed[: -len(end)]:
                self.findings.add(Kind.ALTERED, None, f"{name} is not the text whose hash is its name.")
        tokens = [name for name in sorted(names) if name.startswith("anchors/")]
        if not tokens:
            return
        texts = {head.text for note in notes if (head := _read_quietly(note)) is not None}
        hashes = set()
        for name in tokens:
            if name.endswith(".note"):  # a head as it was stamped, before witnesses added their lines
                note = files.read(name)
                hashes.add(sha256(note).digest())
                head = _read_quietly(note)
                if head is None or head.text not in texts:
                    self.findings.add(Kind.FORKED, None, f"{name} is none of the heads in the bundle.")
        for name in tokens:
            if not name.endswith(".note") and not any(hashed in files.read(name) for hashed in hashes):
                self.findings.add(Kind.FORKED, None, f"{name} is a time stamp of none of the heads in the bundle.")
        self.unchecked.append("Who signed the time stamps was not checked: README.txt says how (openssl ts -verify).")


class Evidence:
    """Checks entries' evidence (C2SP tlog-proof) against the entries; many lead to one head, which is checked once."""

    def __init__(self, findings: Findings, keys: Sequence[Key], rotations: Sequence[Rotation], leaves: Leaves) -> None:
        self._findings = findings
        self._keys = keys
        self._rotations = rotations
        self._leaves = leaves
        self._note = b""
        self._paths = Paths(0, EMPTY_ROOT)

    def check(self, where: str, text: bytes, body: bytes | None) -> None:
        """Check one. ``body``: the entry's, when it is not among the export's."""
        try:
            seq, steps, note = _read_proof(text)
            if note != self._note:
                head = read_note(note)
                self._note, self._paths = note, Paths(head.size, head.root)
                if self._keys:
                    check_note(self._findings, self._keys, self._rotations, f"the head in {where}", note)
        except ValueError as error:
            self._findings.add(Kind.UNREADABLE, None, f"{where}: {error}.")
            return
        leaf = self._leaves.get(seq) if body is None else leaf_hash(body)
        if leaf is None or not self._paths.leads(leaf, seq, proof_text(steps)):
            self._findings.add(Kind.ALTERED, seq, f"{where} does not lead from this entry to the head in it.")

    def is_of_all(self, file: IO[bytes]) -> bool:
        """Whether the file is the evidence of all entries, one after the other, under one head: quickly, as above.

        The subtrees are computed from the entries; so each evidence is known but for the steps above its subtree, which
        are taken from the first, and followed to the head. False says nothing: then each is checked by itself.
        """
        try:
            return self._is_of_all(file)
        except (ValueError, IndexError, _Unsure):
            return False

    def _is_of_all(self, file: IO[bytes]) -> bool:
        data, many = file.read(_CHUNK), self._leaves.whole()
        end = data.find(_PROOF_HEADER, 1)
        _, _, note = _read_proof(data[:end] if end > 0 else data)
        head, findings = read_note(note), Findings(0)
        if self._keys:
            check_note(findings, self._keys, self._rotations, "the head", note)
        if findings or not 0 < many <= head.size:
            return False
        first = start = 0
        while first < many:
            levels = min(
                _BLOCK, (many - first).bit_length() - 1, (first & -first).bit_length() - 1 if first else _BLOCK
            )
            _, steps, _ = _read_proof(data[start : data.index(b"\n\n", start) + 2])
            upper = [bytes.fromhex(step) for step in steps[levels:]]
            rows = [[self._leaves.at(seq) for seq in range(first, first + (1 << levels))]]
            rows += _rows_over(rows[0], levels)
            if not _leads_up(first >> levels, (head.size - 1) >> levels, rows[-1][0], upper, head.root):
                return False
            expected = _evidence(rows, b"".join(map(binascii.b2a_base64, upper)), first, note)
            while len(data) - start < len(expected) + 2 * _MAX_NOTE and (chunk := file.read(_CHUNK)):
                data, start = data[start:] + chunk, 0
            if not data.startswith(expected, start):
                return False
            start += len(expected)
            first += 1 << levels
        return start == len(data)


def _evidence(rows: list[list[bytes]], upper: bytes, first: int, note: bytes) -> bytes:
    """Return the evidence of the entries of a perfect subtree; ``rows``: its hashes, the leaves first."""
    proofs = [upper]
    for row in rows[-2::-1]:
        steps = list(map(binascii.b2a_base64, row))
        steps[::2], steps[1::2] = steps[1::2], steps[::2]
        proofs = [step + proofs[place >> 1] for place, step in enumerate(steps)]
    return b"".join(
        b"%bindex %d\n%b\n%b" % (_PROOF_HEADER, seq, proof, note) for seq, proof in enumerate(proofs, start=first)
    )


_PROOF_HEADER: Final = b"c2sp.org/tlog-proof@v1\n"


def _each_proof(file: IO[bytes]) -> Iterator[bytes]:
    """Take apart proofs that stand one after the other."""
    lines: list[bytes] = []
    length = 0
    for line in iter(lambda: file.readline(_MAX_NOTE), b""):
        if line == _PROOF_HEADER and lines:
            yield b"".join(lines)
            lines, length = [], 0
        length += len(line)
        if length <= 2 * _MAX_NOTE:  # of one without end only the beginning is kept; it cannot be read
            lines.append(line)
    if lines:
        yield b"".join(lines)


def _read_consistency(text: bytes) -> tuple[int, list[bytes], bytes]:
    """Read that one head extends another, as it is put to a witness (C2SP tlog-witness). ValueError."""
    head, blank, note = text.partition(b"\n\n")
    first, *lines = head.decode("ascii", "replace").split("\n")
    if not blank or not first.startswith("old ") or not _SIZE.fullmatch(first[4:]):
        raise ValueError("it does not prove that one head extends another")
    return int(first[4:]), [_decode(line) for line in lines], note


def _read_proof(text: bytes) -> tuple[int, list[str], bytes]:
    """Read one entry's evidence: its number, the steps in hexadecimal, the note. ValueError."""
    head, blank, note = text.partition(b"\n\n")
    lines = head.decode("ascii", "replace").split("\n")
    place = 2 if len(lines) > 1 and lines[1].startswith("extra ") else 1
    index = lines[place][6:] if len(lines) > place and lines[place].startswith("index ") else ""
    if lines[0] != _PROOF_HEADER.decode()[:-1] or not blank or not _SIZE.fullmatch(index):
        raise ValueError("it is not the evidence of an entry")
    steps = [_decode(line) for line in lines[place + 1 :]]
    if any(len(step) != 32 for step in steps):
        raise ValueError("one of its hashes is none")
    return int(index), [step.hex() for step in steps], note


def _read_quietly(note: bytes) -> SignedHead | None:
    try:
        return read_note(note)
    except ValueError:
        return None


def verify(
    path: str | os.PathLike[str],
    keys: Sequence[Key] = (),
    kept: Sequence[tuple[str, bytes]] = (),
    *,
    rules: bool = True,
    limit: int = LIMIT,
    processes: int | None = None,
) -> Report:
    """Check an export or a bundle: all findings, in the order of the file.

    ``keys`` are the log's and the witnesses' (:func:`read_vkey`); ``kept`` are heads that were received elsewhere, each
    with a name for it; ``rules``: also judge what the entries tell; ``processes``: how many may read it (None: as many
    as there are cores and as it is worth). Nothing is raised but ModuleNotFoundError, when there are keys and the
    package ``cryptography`` is not installed.
    """
    return Verifier(tuple(keys), tuple(kept), limit, rules=rules, processes=processes).run(Path(path))


# --- the command line ----------------------------------------------------------------------------------------------


def lines_of(report: Report, name: str) -> Iterator[str]:
    """Give what a person reads: each finding, what was not checked, and the result."""
    for finding in report.findings:
        place = "" if finding.seq is None else f"entry {finding.seq}"
        about = f" ({finding.request})" if finding.request else ""
        yield f"{finding.kind.value.upper()}  {place}{about}{': ' if place or about else ''}{finding.sentence}"
    for sentence in report.unchecked:
        yield f"not checked: {sentence}"
    if report.findings:
        many = "1 finding" if len(report.findings) == 1 else f"{len(report.findings)} findings"
        yield f"{name} does NOT verify: {many} in {report.entries} entries."
    else:
        head = f"; head over {report.head[0]}, root {report.head[1].hex()}" if report.head else ""
        yield f"{name} verifies: {report.entries} entries{head}."


_USAGE: Final = "python verify.py FILE.zip|FOLDER|FILE.jsonl|FILE.csv [--vkey KEY]... [--head NOTE]..."


def main(arguments: Sequence[str]) -> int:
    """Run as a program: 0 verifies, 2 wrong words, 3 something is not installed, 4 does not verify."""
    words, files, keys, kept = list(arguments), [], [], []
    try:
        while words:
            word = words.pop(0)
            if word == "--vkey":
                keys.append(read_vkey(words.pop(0)))
            elif word == "--head":
                name = words.pop(0)
                with Path(name).open("rb") as file:
                    kept.append((name, file.read(_MAX_NOTE + 1)))
            else:
                files.append(word)
    except (IndexError, ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n{_USAGE}\n")
        return 2
    if len(files) != 1 or files[0].startswith("-"):
        sys.stderr.write(f"{_USAGE}\n")
        return 2
    (path,) = files
    try:
        report = verify(path, keys, kept)
    except ModuleNotFoundError as missing:
        sys.stderr.write(f"Checking signatures needs the package {missing.name}: pip install cryptography\n")
        return 3
    for line in lines_of(report, path):
        sys.stdout.write(line + "\n")
    return 4 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
