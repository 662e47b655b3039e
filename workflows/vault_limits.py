"""What must the bot's own token not be able to do, and is it really refused?

Rules
-----
* The bot may do what ``vault_plan.py`` gives it and nothing else. What a level's grant may do, what Vault's operator
  set up for it, and everything that administers Vault is forbidden to it.
* Where a right hangs on the path alone, Vault is asked what the token may do there; where it hangs on what is sent,
  the call is made. Nothing is tried that would do harm if it were allowed.
* What Vault does not say is not taken as a no.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from workflows.engines import ENGINES
from workflows.errors import Invalid
from workflows.vault_plan import APPROLE, APPROLE_MOUNT, child_policy_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from workflows.vault import Vault
    from workflows.vault_plan import LevelSetup

# With any of these a token could give itself more, read what others keep, or stop Vault from working.
ADMINISTRATION: Final = (
    "auth/token/accessors",
    "auth/token/create",
    "auth/token/create-orphan",
    "auth/token/lookup",
    "auth/token/renew",
    "auth/token/renew-accessor",
    "auth/token/revoke",
    "auth/token/revoke-orphan",
    "auth/token/roles",
    "auth/token/tidy",
    f"auth/{APPROLE_MOUNT}/role",
    f"auth/{APPROLE_MOUNT}/role/{APPROLE}",
    f"auth/{APPROLE_MOUNT}/role/{APPROLE}/custom-secret-id",
    f"auth/{APPROLE_MOUNT}/role/{APPROLE}/policies",
    f"auth/{APPROLE_MOUNT}/role/{APPROLE}/role-id",
    f"auth/{APPROLE_MOUNT}/role/{APPROLE}/secret-id",
    f"auth/{APPROLE_MOUNT}/role/{APPROLE}/token-policies",
    "identity/entity",
    "identity/entity-alias",
    "identity/group",
    "identity/oidc/key/default",
    "sys/audit",
    "sys/audit/breakglass",
    "sys/auth",
    "sys/auth/breakglass",
    "sys/capabilities",
    "sys/config/control-group",
    "sys/config/cors",
    "sys/config/auditing/request-headers/x-breakglass",
    "sys/control-group/authorize",
    "sys/leases/lookup/auth",
    "sys/leases/lookup/sys",
    "sys/leases/renew",
    "sys/leases/revoke-force/breakglass",
    "sys/leases/revoke-prefix/breakglass",
    "sys/leases/tidy",
    "sys/mounts",
    "sys/mounts/breakglass",
    "sys/mounts/breakglass/tune",
    "sys/namespaces/breakglass",
    "sys/plugins/catalog",
    "sys/plugins/reload/backend",
    "sys/policies/acl",
    f"sys/policies/acl/{APPROLE}",
    "sys/policies/acl/breakglass-another",
    "sys/policies/password/breakglass",
    "sys/policy",
    f"sys/policy/{APPROLE}",
    "sys/quotas/rate-limit/breakglass",
    "sys/raw/core",
    "sys/remount",
    "sys/rotate",
    "sys/seal",
    "sys/step-down",
    "sys/storage/raft/configuration",
    "sys/storage/raft/snapshot",
)

_SHOWN: Final = 5  # a token of root's may use them all

# Somebody else's lease, of a kind that there is in many an installation. It does not exist.
_STRANGER: Final = "breakglass-check/creds/stranger/0123456789"


def breaches(
    vault: Vault, levels: Iterable[LevelSetup], log_key: tuple[str, str] | None, totp: str | None = None
) -> Iterator[str]:
    """Yield what the bot's token may do and must not, a sentence each. Raises Unavailable, VaultRefused."""
    levels = tuple(levels)
    # 1. By path.
    asked = vault.own_capabilities(forbidden_paths(levels, log_key, totp))
    open_to_it = {path: sorted(found - {"deny"}) for path, found in asked.items() if found - {"deny"}}
    for path, may in list(open_to_it.items())[:_SHOWN]:
        yield f"the bot's own token may {' and '.join(may)} {path}; it must not: take that right away."
    if len(open_to_it) > _SHOWN:
        yield f"there are {len(open_to_it) - _SHOWN} more places that the bot's own token may use: is it an operator's?"
    if totp is not None:
        path = f"{totp}/code/breakglass-check"
        if more := vault.own_capabilities([path])[path] - {"update", "deny"}:
            yield f"the bot's own token may {' and '.join(sorted(more))} {path}; it may only have codes checked."
    # 2. By what is sent.
    for what, method, path, body in probes(levels):
        if not vault.is_refused(method, path, body):
            yield f"the bot's own token may {what} ({path}); it must not: mend its policy."


def forbidden_paths(
    levels: Iterable[LevelSetup], log_key: tuple[str, str] | None, totp: str | None = None
) -> tuple[str, ...]:
    """Return the paths at which the bot may do nothing at all; those of the levels are not among them.

    A level's own path has a sentence of its own in ``breakglass check``.
    """
    paths = dict.fromkeys(ADMINISTRATION)
    for level in levels:
        settings = level.settings
        paths[f"auth/token/roles/{settings.token_role}"] = None
        paths[f"sys/policies/acl/{child_policy_name(settings.token_role)}"] = None
        try:
            paths.update(
                dict.fromkeys(w.path for w in ENGINES[settings.engine].writes(settings.options, level.longest))
            )
        except Invalid:
            continue  # what the level does not say, nobody can look for
    if log_key is not None:
        mount, key = log_key
        ways = ("backup", "config", "export/signing-key", "import", "rotate", "trim")
        for way in ways:
            word, _, rest = way.partition("/")
            paths[f"{mount}/{word}/{rest}/{key}" if rest else f"{mount}/keys/{key}/{word}"] = None
        paths[f"{mount}/keys"] = None
        paths[f"{mount}/keys/{key}-another"] = None
    if totp is not None:
        paths[f"{totp}/keys"] = None
        paths[f"{totp}/keys/breakglass-check"] = None
    return tuple(paths)


def probes(levels: Iterable[LevelSetup]) -> tuple[tuple[str, str, str, Mapping[str, object] | None], ...]:
    """Return calls that Vault must deny: what it would be, method, path, body. Allowed, they would do no harm."""
    found: list[tuple[str, str, str, Mapping[str, object] | None]] = [
        ("revoke a stranger's lease", "put", "sys/leases/revoke", {"lease_id": _STRANGER, "sync": True}),
        ("look up a stranger's lease", "put", "sys/leases/lookup", {"lease_id": _STRANGER}),
    ]
    for role in sorted({level.settings.token_role for level in levels}):
        path = f"auth/token/create/{role}"
        # One second, should it be allowed after all.
        found += [
            ("choose what a grant's token may", "post", path, {"ttl": 1, "policies": [APPROLE]}),
            ("give a grant's token a life of its own", "post", path, {"ttl": 1, "period": "1s"}),
            ("give a grant's token the default policy", "post", path, {"ttl": 1, "no_default_policy": False}),
            ("choose a grant's token", "post", path, {"ttl": 1, "id": "breakglass-check"}),
        ]
    return tuple(found)
