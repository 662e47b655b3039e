"""What does an answer of Vault's mean?

Pure: values, and how they are read out of what came over the wire (``vault.py``).

Rules
-----
* What Vault did not clearly say counts as not said: only the sentence "no such accessor" means that a token is gone.
* A no that lasts is :class:`VaultRefused`, everything else that is no yes is :class:`Unavailable`: try again.
* No value shows a token or a secret in its repr.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from workflows.errors import Unavailable, VaultRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# A response-wrapping token stands in the LIST of its role among the leases: "h" and 64 hexadecimal digits.
_WRAPPING_KEY_LENGTH: Final = 65


@dataclass(frozen=True, slots=True)
class Pending:
    """What Vault gives out only when others have authorised it. They name it by its accessor, which opens nothing."""

    accessor: str
    token: str = field(repr=False)
    path: str
    ttl: timedelta


@dataclass(frozen=True, slots=True)
class ChildToken:
    """A grant's own token. ``ttl`` counts from its creation, by Vault's clock.

    ``uses``: how often it can be used at all; 0: as often as it lives. ``release``: what it reads must be authorised by
    others; it is called with what is pending, returns when they have done so, and raises when not.
    """

    accessor: str
    token: str = field(repr=False)
    ttl: timedelta
    uses: int = 0
    release: Callable[[Pending], None] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """What Vault says of a token. ``ttl`` is what is left of it; a token without an end says zero."""

    display_name: str
    policies: frozenset[str]
    role: str
    ttl: timedelta


@dataclass(frozen=True, slots=True)
class Secret:
    """What a child token read. ``lease_duration`` is the lease's own; the child's end comes first."""

    data: Mapping[str, Any] = field(repr=False)
    lease_id: str
    lease_duration: timedelta
    request_id: str


@dataclass(frozen=True, slots=True)
class Wrapped:
    """What a child token read and nobody has seen yet: a token that gives it out once.

    ``made_at`` is by Vault's clock; ``took`` is how long the reading took, so that its lease was made in between.
    """

    accessor: str
    token: str = field(repr=False)
    creation_path: str
    ttl: timedelta
    made_at: datetime
    took: timedelta


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as Vault knows it. ``ttl`` is zero or less when it is over and waits for its revocation."""

    lease_id: str
    issue_time: datetime
    expire_time: datetime | None
    ttl: timedelta


@dataclass(frozen=True, slots=True)
class Health:
    """What ``sys/health`` says; it answers without a token, also when sealed."""

    initialized: bool
    sealed: bool
    standby: bool
    version: str
    server_time: datetime

    @property
    def is_ready(self) -> bool:
        """Whether it can issue and revoke."""
        return self.initialized and not self.sealed


class CodeAnswer(StrEnum):
    """What Vault says of a one-time code."""

    RIGHT = "right"
    WRONG = "wrong"
    USED = "used"
    UNKNOWN = "unknown"  # there is no such key


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer: its status, its JSON, and Vault's own words when it said no."""

    status: int
    body: Mapping[str, Any] = field(repr=False)

    @property
    def ok(self) -> bool:
        """Whether Vault did it."""
        return 200 <= self.status < 300

    @property
    def data(self) -> Mapping[str, Any]:
        """What it answered; empty when nothing."""
        data = self.body.get("data")
        return data if isinstance(data, dict) else {}

    @property
    def words(self) -> str:
        """Vault's errors in one line without the ornaments of its error lists."""
        errors = self.body.get("errors")
        lines = "\n".join(str(one) for one in errors).splitlines() if isinstance(errors, list) else []
        kept = (line.strip().removeprefix("* ") for line in lines)
        return "; ".join(line for line in kept if line and not line.endswith("occurred:"))[:300]


_OF_CODES: Final = {
    "unknown key": CodeAnswer.UNKNOWN,
    "already used": CodeAnswer.USED,
    "number of digits": CodeAnswer.WRONG,
}


def must(answer: Answer, what: str, *, quiet: bool = False) -> None:
    """Return when Vault did it; raise what its status means otherwise.

    ``quiet`` leaves Vault's words out: the error of a database may repeat the statement with the password.
    """
    if answer.ok:
        return
    words = "" if quiet else answer.words
    said = f" ({words})" if words else ""
    status = answer.status
    if status == 503:
        raise Unavailable("Vault is sealed or not ready.")
    if status == 429:
        raise Unavailable("Vault is asked too often just now.")
    if status in {400, 401, 403, 404, 405}:
        meaning = {401: "it does not know who asks", 403: "permission denied", 404: "there is no such thing"}
        raise VaultRefused(f"Vault refused to {what}: {meaning.get(status, 'it calls that invalid')}{said}.")
    raise Unavailable(f"Vault failed to {what}: status {status}{said}.")


def of_code(answer: Answer) -> CodeAnswer:
    """Return what came of a one-time code. Only a clear yes is RIGHT. Raises Unavailable, VaultRefused."""
    if answer.status == 400:
        for words, meaning in _OF_CODES.items():
            if words in answer.words:
                return meaning
    must(answer, "check a one-time code")
    return CodeAnswer.RIGHT if answer.data.get("valid") is True else CodeAnswer.WRONG


def leased(answer: Answer, path: str) -> Secret:
    """Return a credential with its lease. Raises VaultRefused for one without."""
    body = answer.body
    lease_id = str(body.get("lease_id") or "")
    if not answer.data or not lease_id:
        # A static role answers without a lease: nothing would ever take that credential back.
        raise VaultRefused(f"Vault gave no lease for {path!r}, so that what it gave could not be taken back.")
    return Secret(
        answer.data, lease_id, timedelta(seconds=body.get("lease_duration") or 0), str(body.get("request_id"))
    )


def is_unknown_accessor(answer: Answer) -> bool:
    """Whether Vault said in so many words that it has no token with this accessor."""
    return answer.status in {400, 403, 404} and "invalid accessor" in answer.words


def is_wrapping(key: str) -> bool:
    """Whether an entry of a LIST of leases is a response-wrapping token."""
    return len(key) == _WRAPPING_KEY_LENGTH and key.startswith("h")


def decode(text: str) -> bytes:
    """Read base64; what is none is no bytes, which nobody takes for a key or a signature."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def read_time(text: object) -> datetime | None:
    """Read Vault's RFC 3339 time; None for null and for Go's zero time."""
    if not isinstance(text, str) or text.startswith("0001-"):
        return None
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        return None
