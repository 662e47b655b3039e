"""What does an engine ask of Vault's administrator? Rights for the two kinds of token, and calls that make its roles.

``vault_plan.py`` gathers these over the levels of a policy; ``breakglass vault policy`` prints the outcome and
``breakglass vault apply`` carries it out.

Rules
-----
* A right is as narrow as Vault can say it: one path, few capabilities, and only the parameters that the bot sends.
* What an engine gives is a pure function of the level's options. It holds no secret: the body's keys that need one are
  named, and the operator brings them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workflows.engines import Credential
    from workflows.vault import ChildToken, Vault


@dataclass(frozen=True, slots=True)
class ControlGroup:
    """Whose own keys Vault asks for before it answers: so many different members of an identity group, within ``ttl``.

    Raises ValueError for no approval at all: some versions of Vault take none, or a missing number, for "nobody needs
    to be asked".
    """

    group: str
    approvals: int
    ttl: timedelta

    def __post_init__(self) -> None:
        if self.approvals < 1 or self.ttl < timedelta(seconds=1):
            raise ValueError("a control group needs at least one approval, and at least a second for it")


@dataclass(frozen=True, slots=True)
class Rule:
    """A right in a Vault policy.

    ``allowed_parameters``: what may be in the body, each with its values (none: any value); none at all: no limit.
    Rules of one path are joined: the capabilities add up, and so do the values. ``why`` is the comment above it.
    ``control``: who must authorise each use of it; such a rule is never joined with another.
    """

    path: str
    capabilities: tuple[str, ...]
    allowed_parameters: Mapping[str, tuple[str | bool, ...]] = field(default_factory=lambda: MappingProxyType({}))
    why: str = ""
    control: ControlGroup | None = None


@dataclass(frozen=True, slots=True)
class Write:
    """A call that makes or mends one thing of an administrator's at Vault.

    Asking ``path`` with GET shows that thing as it is. ``secrets``: keys of the body that are missing here, because
    only the operator knows them. ``joined``: keys whose lists add up when several levels make the same thing; all else
    must be equal then. ``made_once``: it is made when it is not there, and never changed (a mount, a key). ``lends``:
    it hands out a level's rights, so it is done only when the target was looked at (:class:`Inspected`).
    """

    method: str
    path: str
    body: Mapping[str, object]
    secrets: tuple[str, ...] = ()
    joined: tuple[str, ...] = ()
    made_once: bool = False
    lends: bool = False


@runtime_checkable
class Prepared(Protocol):
    """An engine whose target needs an administrator, too. Not every engine is one."""

    def target_steps(self, options: Mapping[str, str]) -> str:
        """Return what to do at the target once, ready to paste, with comments; it may be done twice.

        The first line names the target. Paragraphs, with a blank line between them, that several levels of one target
        have in common are printed once.
        """


@runtime_checkable
class Lends(Protocol):
    """An engine whose token role hands out an administrator's own policies, not one that is made of ``child_rules``."""

    def lent_policies(self, options: Mapping[str, str]) -> tuple[str, ...]:
        """Return the names of these policies; they are at Vault already."""


@runtime_checkable
class Judged(Protocol):
    """An engine that can see of a grant's token alone whether it is what the level says. Not every engine is one."""

    def judge(self, vault: Vault, child: ChildToken, options: Mapping[str, str]) -> None:
        """Raise VaultRefused, with the sentence, when it is not. Makes nothing. Raises Unavailable."""


@runtime_checkable
class Inspected(Protocol):
    """An engine that can see at the target what a level's credential could do there. Not every engine is one."""

    def excess(self, vault: Vault, options: Mapping[str, str]) -> tuple[str, ...]:
        """Return what a credential of the level could do and must not, a sentence each.

        ``vault`` may be the bot's or an operator's. Raises Unavailable when the target does not answer, VaultRefused.
        """


@runtime_checkable
class Rehearsed(Protocol):
    """An engine that can try a credential of a level at the target. Not every engine is one."""

    def rehearse(
        self, credential: Credential, options: Mapping[str, str], above: Sequence[Mapping[str, str]]
    ) -> tuple[str, ...]:
        """Log in, do what the level is for, be refused what it is not for; return what was seen, in a few words each.

        ``above``: the options of the account's levels of this engine that need more custodians; their rights are none
        of this one's. Leaves nothing behind. Raises Refused, with the sentence, when the credential does more or less
        than it should, Unavailable when the target does not answer.
        """


@runtime_checkable
class Exclusive(Protocol):
    """An engine whose credential is one thing that is there already, so that one grant has it at a time."""

    def alone(self, options: Mapping[str, str]) -> str:
        """Return what it is, for a sentence, and the same for every level that would hand out the same."""


@dataclass(frozen=True, slots=True)
class Session:
    """A program with a credential at hand: its arguments hold no secret, every local user can list those."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)


@runtime_checkable
class OneRead(Protocol):
    """An engine whose credential is the answer to one reading of its path: the bot need not see it. Not every one is.

    A level with ``delivery: wrapped`` needs one.
    """

    def credential(
        self, options: Mapping[str, str], data: Mapping[str, object], lease_id: str, ttl: timedelta
    ) -> Credential:
        """Return what an answer of Vault's means, on whatever machine it is read. Raises Unavailable: nothing."""


@runtime_checkable
class Opened(Protocol):
    """An engine whose credential opens a session of a program. A level with ``delivery: cli`` needs one."""

    @property
    def program(self) -> str:
        """The program's name, as it is found in the PATH."""

    def session(self, credential: Credential) -> Session:
        """Return the program's arguments, and what its environment holds besides."""


def lease_rules(prefix: str) -> tuple[Rule, ...]:
    """Return what the bot needs to see and end the leases whose ids begin with ``prefix`` (no slash at its end)."""
    own = (f"{prefix}/*",)
    return (
        # LIST needs sudo, with and without the slash at the end.
        *(Rule(f"sys/leases/lookup/{prefix}{end}", ("list", "sudo")) for end in ("", "/")),
        # Without the globs the bot could look at, and revoke, anybody's lease.
        Rule("sys/leases/lookup", ("update",), {"lease_id": own}),
        Rule("sys/leases/revoke", ("update",), {"lease_id": own, "sync": (True, False)}),
    )


def watch_rules(path: str) -> tuple[Rule, ...]:
    """Return what the bot needs to read a credential that can only look, and to end it."""
    return (
        Rule(path, ("read",), why="Can only look at a target, to see there that a credential is gone."),
        Rule("sys/leases/revoke", ("update",), {"lease_id": (f"{path}/*",), "sync": (True, False)}),
    )
