"""Is this an SSH public key that may be signed, and what does an SSH certificate say?

Rules
-----
* A key is read to its last byte, and what is kept is its type and its bytes: no comment, no options, no second line.
* A private key that was pasted by mistake is recognised before anything else, and no error repeats what was typed.
* A certificate is read, not verified: who asks has it from Vault itself and compares it with what was asked for.

Pure. The formats are those of RFC 4253, RFC 5656 and OpenSSH's PROTOCOL.certkeys and PROTOCOL.u2f.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_LONGEST: Final = 3000  # characters; an RSA key of 16384 bits has 2,800
_LEAST_RSA: Final = 3072  # bits
_MOST_RSA: Final = 16384
_CERTIFICATE: Final = "-cert-v01@openssh.com"

# What a private key looks like, also in one line: PEM, PuTTY, and the first bytes of OpenSSH's own format in base64.
_PRIVATE: Final = re.compile(r"PRIVATE[ \n]KEY|PuTTY-User-Key-File|Private-Lines:|b3BlbnNzaC1rZXktdjE", re.IGNORECASE)

_BURNT: Final = (
    "This is a private key. It was not kept, but it has been in a form: treat it as burnt, make a new one and give the "
    "public half, the one line of the file that ends in .pub."
)
_FORM: Final = "Give one line as in a .pub file, such as “ssh-ed25519 AAAA…”."
_KINDS: Final = "Use ed25519, a security key (ed25519-sk, ecdsa-sk), or RSA with at least 3072 bits."

# The fields of a key before what every certificate has, each a string.
_FIELDS: Final[Mapping[str, int]] = MappingProxyType(
    {"ssh-ed25519": 1, "sk-ssh-ed25519@openssh.com": 2, "sk-ecdsa-sha2-nistp256@openssh.com": 3, "ssh-rsa": 2}
)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key: its type and its bytes in base64."""

    kind: str
    body: str

    @property
    def line(self) -> str:
        """The key as it stands in a file, without a comment."""
        return f"{self.kind} {self.body}"

    @property
    def fingerprint(self) -> str:
        """``SHA256:…``, as ssh-keygen and sshd's log say it."""
        digest = hashlib.sha256(base64.b64decode(self.body)).digest()
        return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a user certificate says. Options and extensions by name; ``ends_at`` is when it stops to be valid."""

    key: PublicKey
    key_id: str
    is_user: bool
    principals: tuple[str, ...]
    starts_at: datetime
    ends_at: datetime
    options: Mapping[str, str]
    extensions: Mapping[str, str]


def fingerprint(line: str) -> str:
    """Return the fingerprint of a stored key, empty for what is none."""
    try:
        return read_public_key(line).fingerprint
    except ValueError:
        return ""


def looks_private(text: str) -> bool:
    """Whether somebody pasted a private key, or a part of one."""
    return _PRIVATE.search(text) is not None


def read_public_key(text: str) -> PublicKey:
    """Read a public key. Raises :class:`ValueError` with a sentence for whoever typed it, which repeats none of it."""
    if looks_private(text):
        raise ValueError(_BURNT)
    words = text.strip().split(None, 2)
    if len(text) > _LONGEST or len(text.strip().splitlines()) != 1 or len(words) < 2:
        raise ValueError(f"This is not a public key. {_FORM}")
    kind, body = words[0], words[1]
    if kind.endswith(_CERTIFICATE):
        raise ValueError(f"This is a certificate, not a key. {_FORM}")
    if kind not in _FIELDS:
        is_key = kind.startswith(("ssh-", "ecdsa-", "sk-"))
        raise ValueError(f"A key of this kind is not signed. {_KINDS}" if is_key else f"This is no key. {_FORM}")
    reader = _Reader(_bytes(body))
    if reader.text() != kind:
        raise ValueError(f"This key is damaged. {_FORM}")
    fields = [reader.string() for _ in range(_FIELDS[kind])]
    if not reader.is_over or not _is_sound(kind, fields):
        raise ValueError(f"This key is damaged. {_FORM}")
    if kind == "ssh-rsa" and not _LEAST_RSA <= int.from_bytes(fields[1], "big").bit_length() <= _MOST_RSA:
        raise ValueError(f"This RSA key is too short. {_KINDS}")
    return PublicKey(kind, body)


def read_certificate(text: str) -> Certificate:
    """Read a certificate in the form of a ``-cert.pub`` file. Raises :class:`ValueError` for what is none."""
    words = text.split()
    if len(words) < 2 or not words[0].endswith(_CERTIFICATE):
        raise ValueError("This is not an SSH certificate.")
    reader = _Reader(_bytes(words[1]))
    kind = words[0].removesuffix(_CERTIFICATE)
    # Of the security keys, whose own type ends in the same domain, it is said once.
    kind = f"{kind}@openssh.com" if kind.startswith("sk-") else kind
    if reader.text() != words[0] or kind not in _FIELDS:
        raise ValueError("This is not an SSH certificate of a kind that is known.")
    reader.string()  # a nonce
    fields = [reader.string() for _ in range(_FIELDS[kind])]
    blob = b"".join(_packed(part) for part in (kind.encode(), *fields))
    reader.number(8)  # the serial
    role, key_id = reader.number(4), reader.text()
    principals = _Reader(reader.string())
    starts, ends = reader.number(8), reader.number(8)
    return Certificate(
        PublicKey(kind, base64.b64encode(blob).decode()),
        key_id,
        role == 1,
        tuple(principals.texts()),
        _time(starts),
        _time(ends),
        _pairs(reader.string()),
        _pairs(reader.string()),
    )


def _bytes(body: str) -> bytes:
    try:
        found = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"This key is damaged. {_FORM}") from None
    if base64.b64encode(found).decode() != body:
        raise ValueError(f"This key is damaged. {_FORM}")  # two spellings of one key would have one fingerprint
    return found


def _is_sound(kind: str, fields: list[bytes]) -> bool:
    """Whether the parts of a key can be what they have to be."""
    match kind:
        case "ssh-ed25519":
            return len(fields[0]) == 32
        case "sk-ssh-ed25519@openssh.com":
            return len(fields[0]) == 32 and bool(fields[1])
        case "sk-ecdsa-sha2-nistp256@openssh.com":
            return fields[0] == b"nistp256" and len(fields[1]) == 65 and fields[1][0] == 4 and bool(fields[2])
        case _:
            exponent, modulus = fields
            is_positive = all(one and one[0] < 0x80 for one in fields)
            return is_positive and int.from_bytes(exponent, "big") >= 65537 and exponent[-1] % 2 == modulus[-1] % 2 == 1


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(min(seconds, 253_402_300_799), UTC)  # "forever" is more than a calendar holds


def _pairs(data: bytes) -> Mapping[str, str]:
    reader, found = _Reader(data), {}
    while not reader.is_over:
        name, value = reader.text(), _Reader(reader.string())
        found[name] = "" if value.is_over else value.text()
    return MappingProxyType(found)


def _packed(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


class _Reader:
    """Reads SSH's wire format from the front. Raises ValueError at what is not there."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_over(self) -> bool:
        return self._at == len(self._data)

    def number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "big")

    def string(self) -> bytes:
        return self._take(self.number(4))

    def text(self) -> str:
        return self.string().decode("utf-8", errors="replace")

    def texts(self) -> list[str]:
        found = []
        while not self.is_over:
            found.append(self.text())
        return found

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise ValueError(f"This key is damaged. {_FORM}")
        found, self._at = self._data[self._at : end], end
        return found
