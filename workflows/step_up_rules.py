"""Which levels take a second factor for an approval, and where does Vault check it?

Rules
-----
* The section ``step_up`` is optional; what it can say is where Vault's TOTP engine is mounted.
* A level's ``step_up`` can only be ``totp``. Where custodians authorise with keys of their own at Vault
  (``enforced_by: vault``) it would be a second word for the same thing, so both together are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from workflows.engines.naming import MOUNT as _PLACE

if TYPE_CHECKING:
    from workflows.log_rules import Reader
    from workflows.policy_file import Policy

TOTP: Final = "totp"
MOUNT: Final = "totp"


@dataclass(frozen=True, slots=True)
class StepUpRules:
    """Where Vault's TOTP engine is mounted."""

    mount: str = MOUNT


def mount_of(policy: Policy) -> str:
    """Return where Vault's TOTP engine is, whether or not a level needs it."""
    return policy.step_up.mount if policy.step_up is not None else MOUNT


def read(reader: Reader, at: Any) -> StepUpRules:  # noqa: ANN401 - a place in the file
    """Read the section ``step_up``; what it returns counts only when the reader has recorded no problem."""
    found = reader.mapping(at, ("mount",))
    mount = reader.match(found.get("mount"), _PLACE, "This is not where an engine of Vault's can be mounted.")
    return StepUpRules(mount or MOUNT)


def read_factor(reader: Reader, at: Any, enforced: Any) -> str | None:  # noqa: ANN401 - places in the file
    """Read which factor an approval of a level takes; None: none. ``enforced``: the level's ``enforced_by``."""
    if at is None:
        return None
    if (word := reader.word(at)) != TOTP:
        if word:
            reader.fail(at, "This can only be totp; without the key, an approval takes no code.")
        return None
    if enforced is not None:
        reader.fail(
            at, "With “enforced_by: vault” each custodian authorises with a key of their own already; remove this."
        )
    return TOTP
