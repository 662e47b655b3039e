"""Of a credential that Vault leases, when is nothing left at Vault?

Every engine whose credential has a lease shares this.

Rules
-----
* Gone means: Vault knows neither the token nor the lease. Revoking the token answers before the lease is revoked, and
  with the target down it still answers "done" while the credential stays: so the lease is looked for, each time.
* A lease whose id is not on record (the bot died between reading and recording) is looked for among all leases of the
  role: whatever was issued since the grant was decided and is on nobody's record may be it.
* Such a lease is revoked by hand only when its time is over. One that still has time left is somebody else's: a token
  that ends puts an end to the time of its leases at once.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from workflows.engines import Held
    from workflows.vault import Lease, Vault

# How far Vault's clock may be behind the bot's. Too much only waits for a stranger's lease to be recorded; too little
# would overlook the lease that is looked for.
CLOCK_SKEW: Final = timedelta(seconds=60)


class Leased:
    """What an engine has to say about the end of a credential with a lease."""

    def is_gone(self, vault: Vault, grant: Held, known_lease_ids: frozenset[str]) -> bool:
        """Whether Vault knows neither the grant's token nor its lease. Raises Unavailable, VaultRefused."""
        if grant.accessor is not None and not vault.accessor_is_gone(grant.accessor):
            return False
        if grant.lease_id is not None:
            # Two questions, since a lease may be in one index and not in the other while it is being taken back.
            return grant.lease_id not in vault.leases(grant.lease_prefix) and vault.lease(grant.lease_id) is None
        return not any(True for _ in _candidates(vault, grant, known_lease_ids))

    def hurry(self, vault: Vault, grant: Held) -> None:
        """Revoke what is left at the target now. Raises Unavailable when it still does not answer, VaultRefused."""
        if grant.accessor is not None and not vault.accessor_is_gone(grant.accessor):
            vault.revoke_accessor(grant.accessor)
        if grant.lease_id is not None:
            if grant.lease_id in vault.leases(grant.lease_prefix):
                vault.revoke_lease(grant.lease_id, sync=True)
            return
        for lease in _candidates(vault, grant, frozenset()):
            if lease.ttl <= timedelta(0):
                vault.revoke_lease(lease.lease_id, sync=True)


def _candidates(vault: Vault, grant: Held, known_lease_ids: frozenset[str]) -> Iterator[Lease]:
    """Yield the leases that may be the grant's, whose own id is not known."""
    for lease_id in sorted(vault.leases(grant.lease_prefix) - known_lease_ids):
        lease = vault.lease(lease_id)
        if lease is not None and lease.issue_time >= grant.intended_at - CLOCK_SKEW:
            yield lease
