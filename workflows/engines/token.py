"""How does one break glass into Vault itself, and what becomes of the token?

Rules
-----
* The grant's own child token is the credential: its token role hands out the policies that the level names. It has an
  end that cannot be moved, its accessor is the kill switch, and Vault's audit log shows it under ``token-BG-…``.
* What Vault hands out is what the custodians approved: the token's policies are compared with the level's before it is
  shown, and anything else, or the policy ``root``, refuses.
* A token that can make what outlives it is not handed out. That is, first, another token: one without a parent lives
  on, and so may one with a parent. OpenBao ends a token's children before the token, but a client that went on making
  them from eight threads while it was revoked kept some in 17 of 40 tries (``tests/bench_token.py``). Second, what
  gives access later: policies, token roles, ways to log in. The bot asks Vault whether the token may (``OUTLIVING``)
  and refuses, unless the level says ``outlives: accepted``.
* Not seen here: what is reached by a path that is not in that list, and leases that the holder reads in the very moment
  of the end, which live until their own. So give what has leases a level of its own, where they are looked for.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from workflows.engines.naming import NAME
from workflows.errors import Unavailable, VaultRefused

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

    from workflows.engines import Held, Wish
    from workflows.engines.seam import Rule, Write
    from workflows.vault import ChildToken, TokenFacts, Vault

# It becomes a word of a shell line.
ADDRESS: Final = re.compile(r"https?://[A-Za-z0-9\[][A-Za-z0-9.:\]-]*(/[A-Za-z0-9._-]+)*/?")
ACCEPTED: Final = "accepted"
TOKEN_STORE: Final = "auth/token"  # noqa: S105 - a path

# A name that nobody has: whether a token may write there says whether it may write anywhere of that kind.
_NOBODY: Final = "breakglass-outliving"
_CHANGES: Final = frozenset({"create", "update", "patch", "sudo", "root"})
# What to ask Vault about, and what it would mean. "{role}" is the token's own role.
OUTLIVING: Final[Mapping[str, str]] = {
    "auth/token/create": "make other tokens",
    "auth/token/create-orphan": "make tokens without a parent",
    "auth/token/create/{role}": "make more tokens like itself",
    f"auth/token/create/{_NOBODY}": "make tokens of any role",
    f"auth/token/roles/{_NOBODY}": "make token roles",
    f"sys/policies/acl/{_NOBODY}": "write policies",
    f"sys/policy/{_NOBODY}": "write policies",
    f"sys/auth/{_NOBODY}": "add ways to log in",
    f"auth/approle/role/{_NOBODY}": "make AppRoles",
    f"auth/approle/role/{_NOBODY}/secret-id": "make secret ids of any AppRole",
    f"auth/userpass/users/{_NOBODY}": "make users",
    f"identity/entity/name/{_NOBODY}": "make entities",
    f"identity/group/name/{_NOBODY}": "make groups",
    f"sys/namespaces/{_NOBODY}": "make namespaces",
    f"sys/raw/{_NOBODY}": "write to Vault's storage",
}


@dataclass(frozen=True, slots=True)
class VaultToken:
    """A token of Vault's own. ``username`` is its display name."""

    username: str
    token: str = field(repr=False)
    address: str
    ttl: timedelta

    @property
    def lease_id(self) -> None:
        """A token is no lease: it ends by its accessor."""
        return

    @property
    def shown(self) -> tuple[tuple[str, str], ...]:
        """What is shown beside the line, for Vault's page in a browser."""
        return (("Address", self.address), ("Token", self.token))

    def lines(self) -> tuple[str, ...]:
        """Return the line after which ``vault`` and ``bao`` use the token, quoted for a POSIX shell.

        ``export`` is the shell's own: the token is in no list of processes and their arguments.
        """
        return (f"export VAULT_ADDR={shlex.quote(self.address)} VAULT_TOKEN={shlex.quote(self.token)}",)


class Token:
    """Vault's token store; one token role per level."""

    keys: Final = {
        "address": True,  # of Vault, as the responder reaches it
        "policies": True,  # what the token role hands out, all of it
        "outlives": False,
    }
    needs_public_key: Final = False

    def problems(self, options: Mapping[str, str]) -> dict[str, str]:
        """Return what is wrong, by key."""
        found: dict[str, str] = {}
        if not ADDRESS.fullmatch(options["address"]):
            found["address"] = f"{options['address']!r} is not the address of a Vault, such as https://vault:8200."
        names = policies(options)
        if not all(NAME.fullmatch(name) for name in names):
            found["policies"] = f"{options['policies']!r} is not a list of names of Vault policies."
        elif "root" in names:
            found["policies"] = "A token with the policy root has no end that holds: name policies of your own."
        elif len(set(names)) < len(names):
            found["policies"] = "A policy is named twice."
        if options.get("outlives", ACCEPTED) != ACCEPTED:
            found["outlives"] = f"The only thing to say here is {ACCEPTED!r}; without it such a token is refused."
        return found

    def path(self, options: Mapping[str, str]) -> str:  # noqa: ARG002
        """Return where the credential comes from: the token store itself."""
        return TOKEN_STORE

    def lease_prefix(self, options: Mapping[str, str]) -> str:  # noqa: ARG002
        """Return "": there are no leases."""
        return ""

    def issue(self, vault: Vault, child: ChildToken, options: Mapping[str, str], wish: Wish) -> VaultToken:  # noqa: ARG002
        """Look at the child token and return it. Raises Unavailable, VaultRefused when it is not what was approved."""
        facts = self._looked_at(vault, child, options)
        return VaultToken(facts.display_name, child.token, options["address"], min(child.ttl, facts.ttl))

    def judge(self, vault: Vault, child: ChildToken, options: Mapping[str, str]) -> None:
        """Raise VaultRefused when the token is not what the level says. Raises Unavailable."""
        self._looked_at(vault, child, options)

    @staticmethod
    def _looked_at(vault: Vault, child: ChildToken, options: Mapping[str, str]) -> TokenFacts:
        facts = vault.token_facts(child.accessor)
        if facts is None:
            raise Unavailable("Vault does not know the token any more that it has just made.")
        if facts.policies != frozenset(policies(options)):
            raise VaultRefused(
                f"Vault's token role hands out {_listed(facts.policies)}, and the level says "
                f"{_listed(policies(options))}: whoever runs Vault has to make them the same."
            )
        if options.get("outlives") != ACCEPTED and (able := outliving(vault, child.accessor, facts.role)):
            raise VaultRefused(
                f"A token of this level could {_listed(able)}, which would outlive it. Take that right away, or have "
                f"the level's owner write “outlives: {ACCEPTED}”."
            )
        return facts

    def is_gone(self, vault: Vault, grant: Held, known_lease_ids: frozenset[str]) -> bool:  # noqa: ARG002
        """Whether Vault does not know the token any more; the tokens below it went first."""
        return grant.accessor is None or vault.accessor_is_gone(grant.accessor)

    def hurry(self, vault: Vault, grant: Held) -> None:
        """Revoke it again."""
        if grant.accessor is not None:
            vault.revoke_accessor(grant.accessor)

    def prove(self, vault: Vault, grant: Held) -> tuple[str, ...]:  # noqa: ARG002
        """Return nothing: the target is Vault, and Vault was asked already."""
        return ()

    def identities(self, vault: Vault, options: Mapping[str, str]) -> frozenset[str]:  # noqa: ARG002
        """Return nothing: who lists Vault's accessors can end every token there is, so the bot may not."""
        return frozenset()

    def lent_policies(self, options: Mapping[str, str]) -> tuple[str, ...]:
        """Return the level's policies, which the token role hands out as they are."""
        return policies(options)

    def child_rules(self, options: Mapping[str, str]) -> tuple[Rule, ...]:  # noqa: ARG002
        """Return nothing: what the token may do stands in the policies that the level names."""
        return ()

    def bot_rules(self, options: Mapping[str, str]) -> tuple[Rule, ...]:  # noqa: ARG002
        """Return nothing: the bot looks at every grant's token by its accessor as it is."""
        return ()

    def writes(self, options: Mapping[str, str], longest: timedelta) -> tuple[Write, ...]:  # noqa: ARG002
        """Return nothing: an administrator's policies are not the bot's to write."""
        return ()


def policies(options: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of the level's Vault policies."""
    return tuple(name.strip() for name in options["policies"].split(","))


def outliving(vault: Vault, accessor: str, role: str) -> tuple[str, ...]:
    """Return what the token with that accessor could make that is there after its end, a few words each.

    Raises Unavailable, VaultRefused.
    """
    asked = {path.format(role=role): meaning for path, meaning in OUTLIVING.items() if role or "{role}" not in path}
    may = vault.capabilities_of(accessor, tuple(asked))
    return tuple(dict.fromkeys(meaning for path, meaning in asked.items() if may[path] & _CHANGES))


def _listed(names: tuple[str, ...] | frozenset[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
