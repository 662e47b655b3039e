"""What does the log say of itself to the outside, and who signed it?

Rules
-----
* Every format is C2SP's, none is ours, so that others' tools can check it: signed note, tlog-checkpoint (the head),
  cosignature/v1 (a witness's line), tlog-proof (one entry's evidence), tlog-policy (whom to trust).
* Reading is strict, and what was read is written again and compared: there is one spelling of each note.
* A signature of a key that is not known means nothing. A wrong one of a key that is known refuses the whole note, and
  so does a note that no known key signed.
* Pure: bytes in, bytes out. Keys that can sign come through :class:`Signs`; nothing here holds a secret.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from hashlib import sha256
from typing import TYPE_CHECKING, Final, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from storage import merkle

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_NOTE: Final = 256 * 1024  # 16 signatures of any kind, which a reader must accept, are well below
MAX_SIGNATURES: Final = 100
_DASH: Final = "\u2014 "  # how a signature line begins
_SIZE: Final = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)
_TIME: Final = re.compile(r"time (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)", re.ASCII)
_PROOF_HEADER: Final = "c2sp.org/tlog-proof@v1"
_WORD: Final = re.compile(r"[!-~]{1,200}", re.ASCII)


class BadSignature(ValueError):
    """A key that is known is said to have signed this, and it has not."""


class NotSigned(ValueError):
    """None of the known keys signed this."""


class Algorithm(IntEnum):
    """What a key's signatures are: the type bytes of signed-note."""

    ED25519 = 0x01  # a log's head
    COSIGNATURE = 0x04  # a witness's, with the time at which it saw the head


class Signs(Protocol):
    """A key that can sign: the log's own, wherever it lies."""

    @property
    def key(self) -> VerifierKey:
        """What its signatures are checked with."""

    def sign(self, message: bytes) -> bytes:
        """Return the 64 bytes of the Ed25519 signature."""


# --- keys ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key with the name it signs under; ``str()`` is its vkey. ValueError for what cannot be one."""

    name: str
    public: bytes  # 32 bytes
    algorithm: Algorithm = Algorithm.ED25519

    def __post_init__(self) -> None:
        if not _is_name(self.name):
            raise ValueError("a key's name has no spaces and no plus sign, and is not empty")
        if len(self.public) != 32:
            raise ValueError("an Ed25519 public key has 32 bytes")

    @property
    def key_id(self) -> bytes:
        """The 4 bytes that stand before its signatures: an identifier, not a proof."""
        return sha256(self.name.encode() + b"\n" + self._typed).digest()[:4]

    @property
    def _typed(self) -> bytes:
        return bytes([self.algorithm]) + self.public

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{_base64(self._typed)}"

    def accepts(self, signature: bytes, message: bytes) -> bool:
        """Whether the 64 bytes are this key's Ed25519 signature of the message."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


def parse_vkey(text: str) -> VerifierKey:
    """Read a vkey, ``name+hex(key id)+base64(type, public key)``. ValueError."""
    name, _, rest = text.partition("+")
    _, _, typed = rest.partition("+")
    decoded = _decode(typed)
    try:
        key = VerifierKey(name, decoded[1:], Algorithm(decoded[0]))
    except (IndexError, ValueError):
        raise ValueError("this is not a verifier key of a kind that is known here") from None
    if str(key) != text:
        raise ValueError("this verifier key's id does not belong to its name and key")
    return key


def _is_name(name: str) -> bool:
    return bool(name) and "+" not in name and _is_line(name) and not any(map(str.isspace, name))


def _is_line(text: str) -> bool:
    """Whether it can be a line of a note: not empty, UTF-8, no control character of ASCII."""
    return bool(text) and not any(char < " " or "\ud800" <= char <= "\udfff" for char in text)


# --- the head and its note -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A log's name, size and root (32 bytes), and lines of the log's own. ValueError for what cannot be one."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _is_line(self.origin) or not all(map(_is_line, self.extensions)):
            raise ValueError("each line of a checkpoint is text without control characters, and not empty")
        if not 0 <= self.size < 1 << 63 or len(self.root) != merkle.WIDTH:
            raise ValueError("a checkpoint has a size and a root of 32 bytes")
        if self.size == 0 and self.root != merkle.EMPTY_ROOT:
            raise ValueError("this is not the root of an empty log")

    def body(self) -> bytes:
        """Return what is signed."""
        return "".join(f"{line}\n" for line in (self.origin, self.size, _base64(self.root), *self.extensions)).encode()

    @property
    def at(self) -> datetime | None:
        """The time at which a heartbeat says that this was still the head; None: it says none."""
        for line in self.extensions:
            if found := _TIME.fullmatch(line):
                try:
                    return datetime.fromisoformat(found[1])
                except ValueError:
                    return None
        return None


def time_line(at: datetime) -> str:
    """Return the extension line by which a heartbeat says when; whole seconds, UTC."""
    return f"time {at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='seconds')}Z"


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line, checked by nobody yet. ``data`` is what follows the key id."""

    name: str
    key_id: bytes
    data: bytes

    def line(self) -> bytes:
        """Return the line as it stands in a note."""
        return f"{_DASH}{self.name} {_base64(self.key_id + self.data)}\n".encode()


@dataclass(frozen=True, slots=True)
class SignedNote:
    """A head as it was received: parsed, and verbatim in ``note``. That it is signed, :func:`verify` says."""

    checkpoint: Checkpoint
    signatures: tuple[Signature, ...]
    note: bytes

    def __bytes__(self) -> bytes:
        return self.note


@dataclass(frozen=True, slots=True)
class Verified:
    """A signature that holds. ``at``: a witness's time."""

    key: VerifierKey
    at: datetime | None = None

    @property
    def name(self) -> str:
        """Whose it is."""
        return self.key.name


def parse(note: bytes) -> SignedNote:
    """Read a signed head strictly; no signature is checked. ValueError says what is wrong."""
    if len(note) > MAX_NOTE:
        raise ValueError("it is longer than a signed head can be")
    try:
        text, blank, lines = note.decode().rpartition("\n\n")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    if not blank or not lines:
        raise ValueError("it has no signatures")
    signatures = tuple(map(_parse_signature, lines.splitlines(keepends=True)[: MAX_SIGNATURES + 1]))
    if len(signatures) > MAX_SIGNATURES:
        raise ValueError("it has too many signatures")
    signed = SignedNote(_parse_body(text), signatures, note)
    if compose(signed.checkpoint, signatures) != note:
        raise ValueError("it is not written as a signed head is")
    return signed


def _parse_body(text: str) -> Checkpoint:
    # The two empty strings stand in for lines that are missing.
    origin, size, root, *extensions = [*text.split("\n"), "", ""]
    if not _SIZE.fullmatch(size):
        raise ValueError("its second line is no size")
    return Checkpoint(origin, int(size), _decode(root), tuple(extensions[:-2]))


def _parse_signature(line: str) -> Signature:
    words = line.removesuffix("\n").split(" ")
    if len(words) != 3 or f"{words[0]} " != _DASH or not _is_name(words[1]):
        raise ValueError("one of its signature lines is none")
    decoded = _decode(words[2])
    if len(decoded) < 5:
        raise ValueError("one of its signatures is too short")
    return Signature(words[1], decoded[:4], decoded[4:])


def compose(checkpoint: Checkpoint, signatures: Iterable[Signature]) -> bytes:
    """Return the note with these signature lines."""
    return checkpoint.body() + b"\n" + b"".join(signature.line() for signature in signatures)


def sign(checkpoint: Checkpoint, signers: Sequence[Signs]) -> bytes:
    """Return the signed head. Raises what a signer raises, and :class:`BadSignature` when what it gave is none."""
    if not signers:
        raise NotSigned("a head needs a signer")
    body = checkpoint.body()
    lines = []
    for signer in signers:
        key, signature = signer.key, signer.sign(body)
        # What a machine elsewhere gave is checked before anybody relies on it: a wrong head cannot be unsaid.
        if not key.accepts(signature, body):
            raise BadSignature(f"what came back from the signer is not a signature of {key.name}")
        lines.append(Signature(key.name, key.key_id, signature))
    return compose(checkpoint, lines)


def verify(note: bytes | SignedNote, keys: Iterable[VerifierKey]) -> tuple[Verified, ...]:
    """Return the signatures of ``keys`` that hold, in the order of the note; at least one.

    Whoever wants the log's own signature passes the log's keys only, and compares the origin. Raises ValueError (not a
    signed head), :class:`BadSignature`, :class:`NotSigned`.
    """
    signed = note if isinstance(note, SignedNote) else parse(note)
    known = {(key.name, key.key_id): key for key in keys}
    found = []
    for signature in signed.signatures:
        key = known.get((signature.name, signature.key_id))
        if key is not None:
            found.append(_check(key, signature, signed.checkpoint))
    if not found:
        raise NotSigned("none of the known keys signed it")
    return tuple(found)


def _check(key: VerifierKey, signature: Signature, checkpoint: Checkpoint) -> Verified:
    if key.algorithm is Algorithm.COSIGNATURE:
        seconds = int.from_bytes(signature.data[:8])
        message = cosigned_message(checkpoint, seconds)
        # Year 9999 ends what a datetime holds; a zero or absurd time is no statement of a witness.
        is_good = len(signature.data) == 72 and 0 < seconds < 253402300800
        if is_good and key.accepts(signature.data[8:], message):
            return Verified(key, datetime.fromtimestamp(seconds, UTC))
    elif key.accepts(signature.data, checkpoint.body()):
        return Verified(key)
    raise BadSignature(f"the signature of {key.name} is wrong")


# --- witnesses -----------------------------------------------------------------------------------------------------


def cosigned_message(checkpoint: Checkpoint, seconds: int) -> bytes:
    """Return what a witness signs (cosignature/v1); ``seconds`` since 1970."""
    return f"cosignature/v1\ntime {seconds}\n".encode() + checkpoint.body()


def cosign(checkpoint: Checkpoint, signer: Signs, *, now: datetime) -> Signature:
    """Return a witness's cosignature of a head whose consistency it has checked."""
    key, seconds = signer.key, int(now.timestamp())
    if key.algorithm is not Algorithm.COSIGNATURE:
        raise ValueError("a witness's key is of the cosignature type")
    return Signature(key.name, key.key_id, seconds.to_bytes(8) + signer.sign(cosigned_message(checkpoint, seconds)))


def parse_signatures(lines: bytes) -> tuple[Signature, ...]:
    """Read signature lines by themselves, as a witness answers. ValueError."""
    try:
        signatures = tuple(map(_parse_signature, lines.decode().splitlines(keepends=True)))
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    if not 0 < len(signatures) <= MAX_SIGNATURES or b"".join(one.line() for one in signatures) != lines:
        raise ValueError("these are not signature lines")
    return signatures


def add_signatures(note: bytes, signatures: Iterable[Signature]) -> bytes:
    """Return the note with further lines; one that it has already is not doubled. ValueError: not a signed head."""
    signed = parse(note)
    lines = dict.fromkeys((*signed.signatures, *signatures))
    return parse(compose(signed.checkpoint, lines)).note


# --- one entry's evidence ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Evidence:
    """A tlog-proof: that the entry ``index`` stands under the head. ``extra`` is not authenticated by anything."""

    index: int
    proof: tuple[bytes, ...]
    head: SignedNote
    extra: bytes = b""


def write_proof(index: int, proof: Iterable[bytes], note: bytes, *, extra: bytes = b"") -> bytes:
    """Return one entry's evidence (``.tlog-proof``)."""
    lines = [_PROOF_HEADER]
    if extra:
        lines.append(f"extra {_base64(extra)}")
    lines += [f"index {index}", *map(_base64, proof), ""]
    return "".join(f"{line}\n" for line in lines).encode() + note


def parse_proof(text: bytes) -> Evidence:
    """Read one entry's evidence strictly; nothing is verified. ValueError."""
    head, blank, note = text.partition(b"\n\n")
    try:
        lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise ValueError("it is not the evidence of an entry") from None
    has_extra = len(lines) > 1 and lines[1].startswith("extra ")
    place = 2 if has_extra else 1
    index = lines[place].removeprefix("index ") if len(lines) > place else ""
    if not blank or not _SIZE.fullmatch(index):
        raise ValueError("it is not the evidence of an entry")
    evidence = Evidence(
        int(index),
        tuple(map(_decode, lines[place + 1 :])),
        parse(note),
        _decode(lines[1].removeprefix("extra ")) if has_extra else b"",
    )
    if write_proof(evidence.index, evidence.proof, note, extra=evidence.extra) != text:
        raise ValueError("it is not written as the evidence of an entry is")
    return evidence


def verify_proof(text: bytes, body: bytes, keys: Iterable[VerifierKey]) -> Evidence:
    """Check that ``body`` is the entry of the evidence and that ``keys`` signed its head. ValueError says why not."""
    evidence = parse_proof(text)
    verify(evidence.head, keys)
    head = evidence.head.checkpoint
    if not merkle.verify_inclusion(merkle.leaf_hash(body), evidence.index, head.size, evidence.proof, head.root):
        raise ValueError("its proof does not lead to the head: it is not this entry of this log")
    return evidence


# --- whom to trust -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Witness:
    """A witness as a trust file names it."""

    name: str
    key: VerifierKey
    url: str = ""


def write_policy(logs: Sequence[VerifierKey], witnesses: Sequence[Witness] = (), *, quorum: int | None = None) -> bytes:
    """Return a tlog-policy file: any of ``logs`` signs, and ``quorum`` of the witnesses cosign (default: all).

    ValueError: no log, a key twice, a witness's key that is none, a name or an address with a space, a quorum that is
    more than there are.
    """
    needed = len(witnesses) if quorum is None else quorum
    every = [*logs, *(witness.key for witness in witnesses)]
    if not logs or len({key.public for key in logs}) != len(logs) or not 0 <= needed <= len(witnesses):
        raise ValueError("a trust file needs a log, each key once, and no more witnesses than there are")
    if len({witness.key.public for witness in witnesses}) != len(witnesses):
        raise ValueError("a witness stands in the trust file twice")
    wanted = [Algorithm.ED25519] * len(logs) + [Algorithm.COSIGNATURE] * len(witnesses)
    if [key.algorithm for key in every] != wanted:
        raise ValueError("a key in the trust file is of the wrong kind")
    names = [witness.name for witness in witnesses]
    if len({*names, "none", "witnesses"}) != len(names) + 2 or not all(map(_WORD.fullmatch, names)):
        raise ValueError("a witness needs a name of its own, in plain characters without spaces")
    if not all(_WORD.fullmatch(witness.url) for witness in witnesses if witness.url):
        raise ValueError("a witness's address is plain characters without spaces")
    lines = [f"log {key}" for key in logs]
    lines += [f"witness {one.name} {one.key} {one.url}".rstrip() for one in witnesses]
    if needed:
        lines.append(f"group witnesses {needed} {' '.join(names)}")
    lines.append(f"quorum {'witnesses' if needed else 'none'}")
    return "".join(f"{line}\n" for line in lines).encode()


# --- base64 --------------------------------------------------------------------------------------------------------


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: str) -> bytes:
    """Read standard base64 in its one spelling. ValueError."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("it is not base64") from None
    if _base64(data) != text:
        raise ValueError("its base64 has another spelling")
    return data
