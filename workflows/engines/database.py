"""How does a PostgreSQL login come out of Vault's database engine, and how is it shown to be gone?

Rules
-----
* Gone means: Vault knows neither the token nor the lease. Revoking the token answers before the lease is revoked, and
  with PostgreSQL down it still answers "done" while the login stays: so the lease is looked for, each time.
* A lease whose id is not on record (the bot died between reading and recording) is looked for among all leases of the
  role: whatever was issued since the grant was decided and is on nobody's record may be it.
* Such a lease is revoked by hand only when its time is over. One that still has time left is somebody else's: a token
  that ends puts an end to the time of its leases at once.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from workflows.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from workflows.engines import Held, LevelSettings
    from workflows.vault import ChildToken, Lease, Vault

# How far Vault's clock may be behind the bot's. Too much only waits for a stranger's lease to be recorded; too little
# would overlook the lease that is looked for.
CLOCK_SKEW: Final = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Login:
    """A PostgreSQL user that Vault made for one grant."""

    username: str
    password: str = field(repr=False)
    host: str
    port: int
    database: str
    lease_id: str
    ttl: timedelta

    def lines(self) -> tuple[str, ...]:
        """Return the line that opens a session, quoted for a POSIX shell.

        The password is in the environment, not among the arguments, which every local user can list.
        """
        words = {"host": self.host, "port": str(self.port), "dbname": self.database, "user": self.username}
        target = " ".join(f"{name}={_quoted(value)}" for name, value in words.items())
        return (f"PGPASSWORD={shlex.quote(self.password)} psql {shlex.quote(target)}",)


class PostgreSQL:
    """Vault's database secrets engine with its PostgreSQL plugin; one Vault role per level."""

    def path(self, level: LevelSettings) -> str:
        """Return the path whose reading creates a user."""
        return f"{level.mount}/creds/{level.vault_role}"

    def lease_prefix(self, level: LevelSettings) -> str:
        """Return the path again: lease ids begin with what was read."""
        return self.path(level)

    def issue(self, vault: Vault, child: ChildToken, level: LevelSettings) -> Login:
        """Create a user and return its login. Raises Unavailable (also when PostgreSQL is down), VaultRefused."""
        secret = vault.read_as(child, self.path(level))
        username, password = secret.data.get("username"), secret.data.get("password")
        if not isinstance(username, str) or not isinstance(password, str) or not username or not password:
            raise Unavailable(f"What Vault gave for {self.path(level)!r} is not a database login.")
        return Login(
            username,
            password,
            level.host,
            level.port,
            level.database,
            secret.lease_id,
            min(child.ttl, secret.lease_duration),
        )

    def is_gone(self, vault: Vault, grant: Held, known_lease_ids: frozenset[str]) -> bool:
        """Whether Vault knows neither the grant's token nor its lease. Raises Unavailable, VaultRefused."""
        if grant.accessor is not None and not vault.accessor_is_gone(grant.accessor):
            return False
        if grant.lease_id is not None:
            # Two questions, since a lease may be in one index and not in the other while it is being taken back.
            return grant.lease_id not in vault.leases(grant.lease_prefix) and vault.lease(grant.lease_id) is None
        return not any(True for _ in self._candidates(vault, grant, known_lease_ids))

    def hurry(self, vault: Vault, grant: Held) -> None:
        """Revoke what is left at PostgreSQL now. Raises Unavailable when it still does not answer, VaultRefused."""
        if grant.accessor is not None and not vault.accessor_is_gone(grant.accessor):
            vault.revoke_accessor(grant.accessor)
        if grant.lease_id is not None:
            if grant.lease_id in vault.leases(grant.lease_prefix):
                vault.revoke_lease(grant.lease_id, sync=True)
            return
        for lease in self._candidates(vault, grant, frozenset()):
            if lease.ttl <= timedelta(0):
                vault.revoke_lease(lease.lease_id, sync=True)

    def _candidates(self, vault: Vault, grant: Held, known_lease_ids: frozenset[str]) -> Iterator[Lease]:
        """Yield the leases that may be the grant's, whose own id is not known."""
        for lease_id in sorted(vault.leases(grant.lease_prefix) - known_lease_ids):
            lease = vault.lease(lease_id)
            if lease is not None and lease.issue_time >= grant.intended_at - CLOCK_SKEW:
                yield lease


def _quoted(value: str) -> str:
    """Quote one value of a libpq connection string."""
    if value and not any(c in value for c in " '\\"):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
