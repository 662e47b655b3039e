"""What do the engines have in common whose credential is a login that Vault's database engine made?

The servers differ in how a login is made, opened and looked at: that is each engine's own file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from workflows.engines import naming
from workflows.engines.leases import Leased
from workflows.engines.seam import Rule, lease_rules, watch_rules
from workflows.errors import Invalid, Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

    from workflows.engines import Wish
    from workflows.vault import ChildToken, Vault

Login = TypeVar("Login")


class Logins(Leased, ABC, Generic[Login]):
    """Vault's database secrets engine; one Vault role per level."""

    needs_public_key: Final = False

    @property
    @abstractmethod
    def set_up_by(self) -> Mapping[str, str]:
        """What the bot can do without, and Vault's administrator cannot: what it is, by key."""

    @abstractmethod
    def credential(
        self, options: Mapping[str, str], data: Mapping[str, object], lease_id: str, ttl: timedelta
    ) -> Login:
        """Return the login that an answer of Vault's holds. Raises Unavailable when it holds none."""

    def problems(self, options: Mapping[str, str]) -> dict[str, str]:
        """Return what is wrong with the keys that every one of them has."""
        found = naming.role_problems(options) | naming.server_problems(options)
        if not options["database"].isprintable():
            found["database"] = "The database has no usable name."
        if "connection" in options and not naming.NAME.fullmatch(options["connection"]):
            found["connection"] = f"{options['connection']!r} is not the name of a Vault connection."
        return found

    def path(self, options: Mapping[str, str]) -> str:
        """Return the path whose reading makes a login."""
        return naming.creds_path(options)

    def lease_prefix(self, options: Mapping[str, str]) -> str:
        """Return the path again: lease ids begin with what was read."""
        return naming.creds_path(options)

    def issue(self, vault: Vault, child: ChildToken, options: Mapping[str, str], wish: Wish) -> Login:  # noqa: ARG002
        """Make a login and return it. Raises Unavailable (also when the server is down), VaultRefused."""
        secret = vault.read_as(child, self.path(options))
        return self.credential(options, secret.data, secret.lease_id, min(child.ttl, secret.lease_duration))

    def child_rules(self, options: Mapping[str, str]) -> tuple[Rule, ...]:
        """Return the right to make a login."""
        return (Rule(self.path(options), ("read",)),)

    def bot_rules(self, options: Mapping[str, str]) -> tuple[Rule, ...]:
        """Return the rights to see and end the level's leases, and to look at the target."""
        watched = watch_rules(naming.watch_path(options)) if "watch_role" in options else ()
        return (*lease_rules(self.lease_prefix(options)), *watched)

    def connection_of(self, options: Mapping[str, str]) -> str:
        """Return the name of Vault's connection. Raises Invalid, with the fields, when Vault cannot be set up."""
        missing = {
            key: f"Vault cannot be set up for this level without {key!r}: {what}."
            for key, what in self.set_up_by.items()
            if key not in options
        }
        connection = options.get("connection", options["database"])
        if not naming.NAME.fullmatch(connection):
            missing["connection"] = "The database's name cannot be that of a Vault connection: give one."
        if missing:
            raise Invalid(" ".join(missing.values()), fields=missing)
        return connection

    def _name_and_password(self, options: Mapping[str, str], data: Mapping[str, object]) -> tuple[str, str]:
        username, password = data.get("username"), data.get("password")
        if not isinstance(username, str) or not isinstance(password, str) or not username or not password:
            raise Unavailable(f"What Vault gave for {self.path(options)!r} is not a database login.")
        return username, password
