"""Who signs the log's heads, and which of its keys is in force?

Rules
-----
* A signer is one key that can sign; a keyring is where the log's keys lie, old and new. What lies in Vault is in
  ``workflows/signing.py``; what lies in a file is here.
* A key never leaves its keyring. A key file is private to its owner (mode 0600): one that others can read is refused,
  because whoever has read it can sign another history.
* What cannot be signed now is :class:`SignerDown`, with a sentence; nothing is lost by it, the head is signed later.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from storage.checkpoint import Algorithm, VerifierKey

if TYPE_CHECKING:
    from pathlib import Path

_MAX_FILE: Final = 10_000  # bytes; a key has some hundreds


class SignerDown(Exception):
    """The signer did not answer, or does not have the key. ``str()`` is a sentence for whoever operates the bot."""


class Signer(Protocol):
    """One key that can sign."""

    @property
    def key(self) -> VerifierKey:
        """What its signatures are checked with."""

    def sign(self, message: bytes) -> bytes:
        """Return the 64 bytes of the Ed25519 signature. Raises :class:`SignerDown`."""


class Keyring(Protocol):
    """Where the log's keys lie. Every method raises :class:`SignerDown`."""

    def signers(self) -> tuple[Signer, ...]:
        """Return the keys that there are, the oldest first; at least one."""

    def renew(self) -> Signer:
        """Return the key that a rotation goes over to, and that signs nothing before the log says so."""

    def settle(self, new: VerifierKey) -> None:
        """Put the older keys away, now that the log says that ``new`` is in force."""


@dataclass(frozen=True, slots=True)
class KeySigner:
    """A key in this process's memory."""

    key: VerifierKey
    private: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def of(cls, name: str, private: Ed25519PrivateKey, algorithm: Algorithm = Algorithm.ED25519) -> KeySigner:
        """Return the signer of a private key; with ``algorithm`` COSIGNATURE a witness's."""
        public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return cls(VerifierKey(name, public, algorithm), private)

    def sign(self, message: bytes) -> bytes:
        """Return the signature."""
        return self.private.sign(message)


class FileKeyring:
    """The key in a file, PEM (PKCS 8, not encrypted) or 32 raw bytes.

    During a rotation the next key lies beside it (``FILE.new``) and takes its place at the end, so that a crash at any
    moment leaves the key that the log says is in force.
    """

    def __init__(self, name: str, path: Path) -> None:
        self._name = name
        self._path = path
        self._next = path.with_name(path.name + ".new")

    def signers(self) -> tuple[Signer, ...]:
        """Return the key in the file, and the next one when there is one."""
        found = [read_key_file(self._name, self._path)]
        if self._next.exists():
            found.append(read_key_file(self._name, self._next))
        return tuple(found)

    def renew(self) -> Signer:
        """Make the next key; one that an interrupted rotation left is used."""
        if not self._next.exists():
            new_key_file(self._next)
        return read_key_file(self._name, self._next)

    def settle(self, new: VerifierKey) -> None:
        """Put the next key into the first one's place, whose private half is gone with that."""
        if not self._next.exists() or read_key_file(self._name, self._next).key != new:
            return
        try:
            self._next.replace(self._path)
            _sync_folder(self._path)
        except OSError as error:
            raise SignerDown(f"The new key cannot take its place: {error.strerror}.") from None


def new_key_file(path: Path) -> None:
    """Make a key and write it where no file is yet, readable by its owner only. Raises :class:`SignerDown`."""
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        # O_EXCL: a key is never written over, and a link that somebody left here is not followed.
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(number, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(number)
        _sync_folder(path)
    except FileExistsError:
        raise SignerDown(f"{path} is there already; a key is never written over.") from None
    except OSError as error:
        raise SignerDown(f"{path} cannot be written: {error.strerror}.") from None


def read_key_file(name: str, path: Path) -> KeySigner:
    """Return the signer in a key file. Raises :class:`SignerDown`, also when others can read the file."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            raw = file.read(_MAX_FILE)
    except OSError as error:
        raise SignerDown(f"The key file {path} cannot be read: {error.strerror}.") from None
    if mode & 0o077:
        raise SignerDown(f"The key file {path} can be read by others (mode {mode:o}): chmod 600 it, or make a new key.")
    try:
        private = Ed25519PrivateKey.from_private_bytes(raw) if len(raw) == 32 else load_pem_private_key(raw, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        private = None
    if not isinstance(private, Ed25519PrivateKey):
        # Raised outside "except": what the library says of the file may repeat parts of it.
        raise SignerDown(f"The key file {path} holds no Ed25519 key that can be read.")
    return KeySigner.of(name, private)


def _sync_folder(path: Path) -> None:
    number = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
