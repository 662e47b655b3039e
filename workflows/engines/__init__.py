"""Where does a credential come from, and how is it shown to be gone?

An engine turns the settings of a level into calls to Vault. A new one is one file and one line in :data:`ENGINES`; the
contract tests run over the registry.

Rules
-----
* A credential is read by the grant's own child token, never by the bot's.
* ``is_gone`` says True only when Vault has shown it: what was not shown counts as still there.
* Ending is revoking the child token's accessor; an engine only confirms that, and hurries what got stuck.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from workflows.engines.database import PostgreSQL
from workflows.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta

    from workflows.vault import ChildToken, Vault

# Names become parts of a Vault path and of a policy: a slash too many, a glob or ".." would reach somewhere else.
_MOUNT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(/[A-Za-z0-9][A-Za-z0-9_-]*)*")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
# These become words of a connection string and of a shell line.
_HOST: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*|[0-9A-Fa-f:]*:[0-9A-Fa-f:]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelSettings:
    """Where a level's credential comes from and what it opens.

    ``mount`` and ``vault_role`` name the secrets engine and its role, ``token_role`` the token role whose only policy
    may read there. ``host``, ``port`` and ``database`` are what the responder connects to. Raises :class:`Invalid`,
    with the field, for what cannot be a name.
    """

    engine: str
    mount: str
    vault_role: str
    token_role: str
    host: str
    port: int
    database: str

    def __post_init__(self) -> None:
        problems: dict[str, str] = {}
        if self.engine not in ENGINES:
            problems["engine"] = f"There is no engine {self.engine!r}; there is {', '.join(sorted(ENGINES))}."
        if not _MOUNT.fullmatch(self.mount):
            problems["mount"] = f"{self.mount!r} is not the path of a Vault mount."
        for name in ("vault_role", "token_role"):
            if not _NAME.fullmatch(getattr(self, name)):
                problems[name] = f"{getattr(self, name)!r} is not the name of a Vault role."
        if not _HOST.fullmatch(self.host):
            problems["host"] = f"{self.host!r} is not a host name or an address."
        if not 0 < self.port < 65536:
            problems["port"] = f"{self.port!r} is not a TCP port."
        if not self.database or not self.database.isprintable():
            problems["database"] = "The database has no usable name."
        if problems:
            raise Invalid(" ".join(problems.values()), fields=problems)


class Credential(Protocol):
    """What the requester sees once. No implementation shows its secret in a repr."""

    @property
    def username(self) -> str:
        """The name at the target: not a secret, and what uses are attributed by."""

    @property
    def lease_id(self) -> str:
        """Vault's handle."""

    @property
    def ttl(self) -> timedelta:
        """How long it lives at the most, from the child token's creation."""

    def lines(self) -> tuple[str, ...]:
        """Lines ready to paste into a shell, secret included; the first is the one to use."""


class Held(Protocol):
    """What an engine needs to know of a grant that is to be gone; a stored grant is one."""

    @property
    def accessor(self) -> str | None:
        """The child token's accessor; None when no child token is on record, and so nothing was read."""

    @property
    def lease_id(self) -> str | None:
        """The lease; None when the bot died between reading the credential and recording it."""

    @property
    def lease_prefix(self) -> str:
        """What the lease's id begins with, without the last slash."""

    @property
    def intended_at(self) -> datetime:
        """When the grant was decided, before Vault was called."""


class Engine(Protocol):
    """A source of credentials. Each method raises Unavailable or VaultRefused as :class:`Vault` does."""

    def path(self, level: LevelSettings) -> str:
        """Return the Vault path that the child token reads."""

    def lease_prefix(self, level: LevelSettings) -> str:
        """Return what the ids of the level's leases begin with, without the last slash."""

    def issue(self, vault: Vault, child: ChildToken, level: LevelSettings) -> Credential:
        """Read a credential with the grant's own token."""

    def is_gone(self, vault: Vault, grant: Held, known_lease_ids: frozenset[str]) -> bool:
        """Whether Vault has shown that neither the grant's token nor its lease is left.

        ``known_lease_ids`` are leases on record as somebody else's. They matter only when this grant's own lease is
        not known.
        """

    def hurry(self, vault: Vault, grant: Held) -> None:
        """Have what is left of an ended grant revoked now, not when Vault's own next try is due.

        Raises Unavailable when the target still does not answer.
        """


ENGINES: Final[Mapping[str, Engine]] = {"database": PostgreSQL()}
