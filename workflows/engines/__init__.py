"""Where does a credential come from, and how is it shown to be gone?

An engine turns the settings of a level into calls to Vault. A new one is one file and one line in :data:`ENGINES`; the
contract tests run over the registry, and ``ENGINES.md`` walks through one.

Rules
-----
* A credential is read by the grant's own child token, never by the bot's.
* ``is_gone`` says True only when Vault has shown it: what was not shown counts as still there.
* ``prove`` then looks at the target itself, with a credential of the bot's that can do nothing else.
* Ending is revoking the child token's accessor; an engine only confirms that, and hurries what got stuck.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from workflows.engines.database import Database
from workflows.engines.kubernetes import Kubernetes
from workflows.engines.mariadb import MariaDB
from workflows.engines.path import Path
from workflows.engines.ssh import Ssh
from workflows.engines.static import Static
from workflows.engines.token import Token
from workflows.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta

    from workflows.engines.seam import Rule, Write
    from workflows.vault import ChildToken, Vault

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelSettings:
    """Where a level's credential comes from and what it opens.

    ``token_role`` names the token role whose only policy may read the credential's path; ``options`` are the keys that
    the engine knows (:attr:`Engine.keys`), as text. Raises :class:`Invalid`, with the field, for what cannot be.
    """

    engine: str
    token_role: str
    options: Mapping[str, str]

    def __post_init__(self) -> None:
        problems: dict[str, str] = {}
        engine = ENGINES.get(self.engine)
        if engine is None:
            problems["engine"] = f"There is no engine {self.engine!r}; there is {', '.join(sorted(ENGINES))}."
        else:
            for key in sorted(self.options.keys() - engine.keys.keys()):
                problems[key] = f"The engine {self.engine} does not know {key!r}."
            for key, is_required in engine.keys.items():
                if is_required and not self.options.get(key):
                    problems[key] = f"The engine {self.engine} needs {key!r}."
            if not problems:
                problems |= engine.problems(self.options)
        if not _NAME.fullmatch(self.token_role):
            problems["token_role"] = f"{self.token_role!r} is not the name of a Vault role."
        if problems:
            raise Invalid(" ".join(problems.values()), fields=problems)


@dataclass(frozen=True, slots=True)
class Wish:
    """For whom a credential is made, and what they brought: a public key, for engines that sign one."""

    request_id: str
    requester: str
    public_key: str | None = None


class Credential(Protocol):
    """What the requester sees once. No implementation shows its secret in a repr."""

    @property
    def username(self) -> str:
        """The name at the target: not a secret, and what uses are attributed by."""

    @property
    def lease_id(self) -> str | None:
        """Vault's handle; None when what was given has none and ends with its token."""

    @property
    def ttl(self) -> timedelta:
        """How long it lives at the most, from the child token's creation."""

    def lines(self) -> tuple[str, ...]:
        """Lines ready to paste into a shell, secret included; the first is the one to use."""


class Held(Protocol):
    """What an engine needs to know of a grant that is to be gone; a stored grant is one."""

    @property
    def request_id(self) -> str:
        """The request, after which the identity at the target is named."""

    @property
    def number(self) -> int:
        """Which credential of the request it is, from 1."""

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
    def identity(self) -> str | None:
        """The name at the target; None when the bot died before recording it."""

    @property
    def options(self) -> Mapping[str, str]:
        """The level's options as they were when the grant was decided."""

    @property
    def intended_at(self) -> datetime:
        """When the grant was decided, before Vault was called."""

    @property
    def expires_at(self) -> datetime | None:
        """When its time is over; None when it was never issued."""


class Engine(Protocol):
    """A source of credentials. Each method raises Unavailable or VaultRefused as :class:`Vault` does."""

    @property
    def keys(self) -> Mapping[str, bool]:
        """The options of a level, and whether each is required."""

    @property
    def needs_public_key(self) -> bool:
        """Whether the requester brings a public key."""

    def problems(self, options: Mapping[str, str]) -> dict[str, str]:
        """Return what is wrong with known options that are all there: a sentence by key."""

    def path(self, options: Mapping[str, str]) -> str:
        """Return the Vault path that the child token reads or writes; where it is none, the place it comes from."""

    def lease_prefix(self, options: Mapping[str, str]) -> str:
        """Return what the ids of the level's leases begin with, without the last slash; "" when it has no leases."""

    def issue(self, vault: Vault, child: ChildToken, options: Mapping[str, str], wish: Wish) -> Credential:
        """Make a credential with the grant's own token."""

    def is_gone(self, vault: Vault, grant: Held, known_lease_ids: frozenset[str]) -> bool:
        """Whether Vault has shown that neither the grant's token nor its lease is left.

        ``known_lease_ids`` are leases on record as somebody else's. They matter only when this grant's own lease is
        not known.
        """

    def hurry(self, vault: Vault, grant: Held) -> None:
        """Have what is left of an ended grant revoked now, not when Vault's own next try is due.

        Raises Unavailable when the target still does not answer.
        """

    def prove(self, vault: Vault, grant: Held) -> tuple[str, ...]:
        """Look at the target, once Vault says gone, and return what was seen there, each in a few words.

        Empty when the level has no way to look. Raises Unavailable when something of it is left there (code ``left``:
        look again in a moment), or when the target does not answer: then nothing was shown.
        """

    def identities(self, vault: Vault, options: Mapping[str, str]) -> frozenset[str]:
        """Return the names at the target that carry the mark of an emergency grant; empty when nobody can look."""

    # What an administrator gives it, once. An engine may also be Prepared, Inspected or Rehearsed (seam.py).

    def child_rules(self, options: Mapping[str, str]) -> tuple[Rule, ...]:
        """Return what a grant's own token may do: read or write that one path."""

    def bot_rules(self, options: Mapping[str, str]) -> tuple[Rule, ...]:
        """Return what the bot's own token may do for this level; never what a grant's token may."""

    def writes(self, options: Mapping[str, str], longest: timedelta) -> tuple[Write, ...]:
        """Return the calls that make the level's roles at Vault, in their order; no credential outlives ``longest``.

        Raises :class:`Invalid`, with the field, when an option is missing that only this needs.
        """


ENGINES: Final[Mapping[str, Engine]] = {
    "database": Database(),
    "kubernetes": Kubernetes(),
    "mariadb": MariaDB(),
    "path": Path(),
    "ssh": Ssh(),
    "static": Static(),
    "token": Token(),
}
