"""What does a copy of the log outside have to be able to do?

Rules
-----
* An outside place is either a *copy* (it keeps the entries) or a *notary* (it is shown signed heads and answers with a
  cosignature or a time stamp that it alone can make).
* A copy acknowledges an entry only when it is durable outside. It is idempotent by entry number: what stands there is
  compared, and a different entry at the same number is a :class:`CopyTrouble`, never overwritten.
* It times out by itself, keeps no thread, and is used by one thread at a time; it may be built while the place is down.
* Every library error becomes a :class:`CopyTrouble` in the file that imports the library, in words for three in the
  morning: what is wrong with the place, and what to do. Never a password, never a URL that holds one.
* No secret stands in the policy: a setting ``…_env`` names the environment variable that holds it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, runtime_checkable

from storage.merkle import leaf_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

# The bytes of a C2SP signed note, as signed: a head of the log. Read with ``storage/checkpoint.py``.
SignedNote: TypeAlias = bytes


class CopyTrouble(Exception):
    """The outside did not take it, or holds something else. ``str()`` is a sentence; it is tried again later."""


class NotReadable(CopyTrouble):
    """This kind of place cannot be asked what it holds (syslog, a webhook)."""


@dataclass(frozen=True, slots=True)
class Item:
    """One entry for outside: its number, its canonical body (None: pruned by retention) and its leaf hash."""

    seq: int
    body: bytes | None
    leaf_hash: bytes

    def is_same(self, other: Item) -> bool:
        """Whether both are the same entry; a pruned one is known by its leaf hash."""
        return (self.seq, self.leaf_hash) == (other.seq, other.leaf_hash) and (
            self.body is None or other.body is None or self.body == other.body
        )

    def is_whole(self) -> bool:
        """Whether the body is the one that the leaf hash stands for."""
        return self.body is None or leaf_hash(self.body) == self.leaf_hash


@dataclass(frozen=True, slots=True)
class Place:
    """What a copy or notary is built from: its name, the log's origin, its settings, and where secrets are read."""

    name: str
    origin: str
    settings: Mapping[str, str]
    environment: Mapping[str, str] = field(repr=False)

    def secret(self, key: str) -> str:
        """Return the value of the environment variable that the setting ``key`` names. Raises CopyTrouble."""
        variable = self.settings.get(key, "")
        found = self.environment.get(variable, "")
        if not found:
            raise CopyTrouble(f"The copy {self.name} needs the environment variable {variable}, and it is not set.")
        return found


class Copy(Protocol):
    """A place that keeps the entries."""

    name: str
    is_readable: bool  # whether position() and read() work

    def deliver(self, items: Sequence[Item], head: SignedNote | None, *, now: datetime) -> int:
        """Store the items (in order, without a gap) and the newest signed head, and return the last durable seq.

        Idempotent: after a crash items come again, perhaps in other batches; a readable copy compares them with what
        stands there. ``items`` may be empty (a heartbeat: only a head); then a readable copy answers with what stands
        there (-1: nothing), and the answer of others is not looked at. Raises :class:`CopyTrouble`: nothing of it
        counts as acknowledged, though some of it may stand outside.
        """

    def position(self) -> int | None:
        """Return the last seq that stands outside, None when nothing does. CopyTrouble; NotReadable."""

    def read(self, start: int = 0) -> Iterator[Item]:
        """Give what stands outside, from seq ``start`` on, in order, as it stands. CopyTrouble; NotReadable."""


@runtime_checkable
class Notary(Protocol):
    """A place that testifies to signed heads."""

    name: str
    kind: Literal["cosignature", "timestamp"]

    def anchor(
        self, head: SignedNote, *, before: int, consistency: Callable[[int], Sequence[bytes]], now: datetime
    ) -> bytes:
        """Have the head testified to; return the verified answer, for :class:`storage.models.Anchor`.

        ``before`` is the size of the newest head that this notary has answered for (0: none);
        ``consistency(old_size)`` gives the RFC 6962 proof from that size to the head's. Raises :class:`CopyTrouble`.
        """

    def ask(self, head: SignedNote | None, *, is_known: bool, newest: Callable[[], int], now: datetime) -> str:
        """Ask whether it is up and is the one that the policy names, and return what it said, in a sentence.

        ``head``: the newest that it has answered for (``is_known``), else any signed one; None: none is signed yet.
        ``newest()`` is the size of the newest signed head by then. Nothing of the log moves on there. Raises
        :class:`CopyTrouble`.
        """


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of place: which settings it takes (name → whether it must be given), and how it is built.

    ``build`` may raise :class:`CopyTrouble` for what is wrong with the settings or the environment, but does not
    connect: whether the place is up shows at the first delivery. ``setup`` gives what somebody has to run at the place
    before the copy can be begun, where there is such a thing.
    """

    keys: Mapping[str, bool]
    build: Callable[[Place], Copy | Notary]
    is_notary: bool = False
    setup: Callable[[Place], str] | None = None
