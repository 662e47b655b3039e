"""Where does the key that signs the log lie? The registry of signers.

A new kind is one class and one line in ``SIGNERS``. What a keyring must be able to do is ``storage/signers.py``.

Rules
-----
* ``vault``: the transit engine. The key never leaves Vault, and each call names its version: what an administrator
  rotates there signs nothing before ``breakglass log rotate`` has put it on record.
* ``file``: a key file, for where there is no transit engine. Whoever runs the bot can read it.
* Vault's errors become :class:`SignerDown`: a head that is not signed now is signed later.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from storage.checkpoint import VerifierKey
from storage.signers import FileKeyring, Keyring, Signer, SignerDown
from workflows.errors import Unavailable, VaultRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from workflows.log_rules import LogRules
    from workflows.vault import Vault


@contextmanager
def _vault_errors() -> Iterator[None]:
    try:
        yield
    except (Unavailable, VaultRefused) as error:
        raise SignerDown(error.sentence) from None


@dataclass(frozen=True, slots=True)
class VaultSigner:
    """One version of a key in Vault's transit engine."""

    key: VerifierKey
    vault: Vault = field(repr=False)
    mount: str
    name: str
    version: int

    def sign(self, message: bytes) -> bytes:
        """Return Vault's signature."""
        with _vault_errors():
            return self.vault.sign(self.mount, self.name, message, version=self.version)


class VaultKeyring:
    """All versions of a key in Vault's transit engine."""

    def __init__(self, origin: str, vault: Vault, mount: str, name: str) -> None:
        self._origin = origin
        self._vault = vault
        self._mount = mount
        self._name = name

    def signers(self) -> tuple[Signer, ...]:
        """Return the versions that Vault has, the oldest first."""
        with _vault_errors():
            versions = self._vault.public_keys(self._mount, self._name)
        return tuple(
            VaultSigner(VerifierKey(self._origin, public), self._vault, self._mount, self._name, version)
            for version, public in versions.items()
        )

    def renew(self) -> Signer:
        """Return the newest version: an administrator makes it (``vault write -f MOUNT/keys/NAME/rotate``)."""
        return self.signers()[-1]

    def settle(self, new: VerifierKey) -> None:
        """Do nothing: Vault keeps the older versions, and an administrator may let them go."""


@dataclass(frozen=True, slots=True)
class SignerKind:
    """One kind of signer: its settings (name → whether it must be given), and how its keyring is opened.

    ``open`` asks nobody yet.
    """

    keys: Mapping[str, bool]
    open: Callable[[str, Mapping[str, str], Vault | None], Keyring]


def _open_vault(origin: str, settings: Mapping[str, str], vault: Vault | None) -> Keyring:
    if vault is None:
        raise SignerDown("The log is signed by Vault, and no Vault is configured here.")
    return VaultKeyring(origin, vault, settings["mount"], settings["key"])


def _open_file(origin: str, settings: Mapping[str, str], _vault: Vault | None) -> Keyring:
    return FileKeyring(origin, Path(settings["path"]))


SIGNERS: Final[Mapping[str, SignerKind]] = MappingProxyType(
    {
        "vault": SignerKind(MappingProxyType({"mount": True, "key": True}), _open_vault),
        "file": SignerKind(MappingProxyType({"path": True}), _open_file),
    }
)


def open_keyring(rules: LogRules, vault: Vault | None) -> Keyring:
    """Return the keyring that the policy names. Raises :class:`SignerDown` when it needs a Vault and there is none."""
    return SIGNERS[rules.signer.kind].open(rules.origin, rules.signer.settings, vault)
