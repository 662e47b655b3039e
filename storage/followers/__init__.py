"""Which places outside receive the log? The registry, and how the policy's copies are built from it.

A new kind is one file and one line in ``FOLLOWERS``. What a place must be able to do is ``seam.py``; who brings it the
entries is ``runner.py``.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

from storage.followers import file, postgresql, s3, syslog, timestamp, webhook, witness
from storage.followers.runner import CopyRunner, Lag, RequiredCopies, Stuck, lags
from storage.followers.seam import Copy, CopyTrouble, Item, Kind, Notary, NotReadable, Place, SignedNote

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "FOLLOWERS",
    "Copy",
    "CopyRunner",
    "CopyTrouble",
    "Item",
    "Kind",
    "Lag",
    "NotReadable",
    "Notary",
    "Place",
    "RequiredCopies",
    "SignedNote",
    "Stuck",
    "build_copies",
    "lags",
]

_TAKEN: Final = "thread"  # its cursors stand in the same table

FOLLOWERS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "file": file.KIND,
        "postgresql": postgresql.KIND,
        "s3": s3.KIND,
        "syslog": syslog.KIND,
        "webhook": webhook.KIND,
        "witness": witness.KIND,
        "timestamp": timestamp.KIND,
    }
)


class CopyRules(Protocol):
    """What the policy says of one copy."""

    @property
    def kind(self) -> str:
        """A key of FOLLOWERS."""

    @property
    def settings(self) -> Mapping[str, str]:
        """Its settings, by the names that its kind declares."""


class LogRules(Protocol):
    """What the policy says of the log."""

    @property
    def origin(self) -> str:
        """The log's name in its heads."""

    @property
    def copies(self) -> Mapping[str, CopyRules]:
        """The copies, by name."""


def build_copies(rules: LogRules, environment: Mapping[str, str]) -> dict[str, Copy | Notary]:
    """Build every copy that the policy names; nothing is connected to. Raises :class:`CopyTrouble`, all at once."""
    built: dict[str, Copy | Notary] = {}
    problems: list[str] = []
    for name, copy in rules.copies.items():
        if name == _TAKEN:
            problems.append(f"A copy cannot be called {name}: the follower that writes Slack is.")
        try:
            built[name] = FOLLOWERS[copy.kind].build(Place(name, rules.origin, copy.settings, environment))
        except KeyError:
            problems.append(f"The copy {name} is of a kind that is not known: {copy.kind}.")
        except CopyTrouble as trouble:
            problems.append(str(trouble))
    if problems:
        raise CopyTrouble("\n".join(problems))
    return built
