"""What is recorded: the tables, and the words that stand in them.

Rules
-----
* Tables do not validate (``SQLModel(table=True)`` never does): a row is built from a frozen, validated input, and the
  database refuses the rest by NOT NULL, CHECK and UNIQUE.
* Times are aware UTC at both ends; :class:`UTC` refuses a naive one and gives an aware one back also on SQLite.
* No secret has a column. What can be told of a credential is its accessor, its lease, its end.
* Only the door of ``workflows/desk.py`` writes ``request``, ``decision``, ``grant`` and ``review``, in the transaction
  that appends the entry which says so. ``feed`` and ``post`` belong to the followers; they carry no truth about it.
"""

from __future__ import annotations

from datetime import UTC as TZ_UTC
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Final

from sqlalchemy import CheckConstraint, Column, DateTime, Index, LargeBinary, Text, UniqueConstraint, text
from sqlalchemy.types import JSON, TypeDecorator
from sqlmodel import Field, SQLModel

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect


class State(StrEnum):
    """Where a request stands. Which moves exist is ``TRANSITIONS`` in ``workflows/lifecycle.py``."""

    PENDING = "pending"
    APPROVED = "approved"
    ACTIVE = "active"
    ENDING = "ending"
    ENDED = "ended"
    REVIEWED = "reviewed"
    DENIED = "denied"
    WITHDRAWN = "withdrawn"
    LAPSED = "lapsed"
    FAILED = "failed"


class Answer(StrEnum):
    """What a custodian said."""

    APPROVE = "approve"
    DENY = "deny"


class Outcome(StrEnum):
    """A reviewer's verdict on one use."""

    JUSTIFIED = "justified"
    NOT_JUSTIFIED = "not_justified"
    MISUSE = "misuse"
    DRILL = "drill"


class FollowUpWord(StrEnum):
    """What the log calls what happens to a follow-up, after the review that asks for it."""

    OPEN = "follow_up:open"  # asked for by other than a review
    REMIND = "follow_up:remind"
    CLOSE = "follow_up:close"


def _one_of(column: str, words: type[StrEnum]) -> CheckConstraint:
    listed = ", ".join(f"'{word.value}'" for word in words)
    return CheckConstraint(f"{column} IN ({listed})", name=f"{column}_known")


class UTC(TypeDecorator[datetime]):
    """An aware UTC time. SQLite drops the zone, so it is checked going in and put back coming out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Refuse a naive time: it would silently mean the machine's own zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a time without a zone cannot be stored: {value!r}")
        return value.astimezone(TZ_UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Give the zone back."""
        if value is None:
            return None
        return value.replace(tzinfo=TZ_UTC) if value.tzinfo is None else value.astimezone(TZ_UTC)


def _time(*, nullable: bool = False, index: bool = False) -> Any:  # noqa: ANN401 - SQLModel's Field is typed Any
    return Field(sa_column=Column(UTC, nullable=nullable, index=index), default=None if nullable else ...)


def _json() -> Any:  # noqa: ANN401 - SQLModel's Field is typed Any
    return Field(sa_column=Column(JSON(none_as_null=True), nullable=False))


class Request(SQLModel, table=True):
    """The whole case, ``BG-7KQ2``. The row is the present; the log is how it came to be.

    ``version`` counts every write; ``state_version`` is its value at the last change of state, so that a button drawn
    before that is stale. ``due_at`` is when the tick must next look at the row (never null in a state that waits).
    """

    __tablename__: ClassVar[Any] = "request"
    __table_args__ = (
        _one_of("state", State),
        CheckConstraint("quorum >= 1", name="quorum_at_least_one"),
        CheckConstraint(
            "asked_seconds > 0 AND (granted_seconds IS NULL OR granted_seconds > 0)", name="seconds_positive"
        ),
        CheckConstraint("version >= 1 AND state_version >= 1 AND state_version <= version", name="versions_ordered"),
        CheckConstraint("reason <> '' AND threshold <> '' AND standard_path <> ''", name="words_given"),
    )

    id: str = Field(primary_key=True, max_length=16)
    state: str = Field(nullable=False, index=True)
    version: int = Field(nullable=False)
    state_version: int = Field(nullable=False)
    last_seq: int = Field(nullable=False)  # the newest entry about this request: what followers compare with
    form_id: str | None = Field(default=None, unique=True)  # Slack's view id: a doubled envelope opens nothing twice

    team: str = Field(nullable=False)
    requester: str = Field(nullable=False)
    account: str = Field(nullable=False, index=True)
    level: str = Field(nullable=False)
    threshold: str = Field(nullable=False)
    reason: str = Field(sa_column=Column(Text, nullable=False))
    standard_path: str = Field(sa_column=Column(Text, nullable=False))
    incident: str = Field(nullable=False)
    policy_hash: str = Field(nullable=False)
    quorum: int = Field(nullable=False)
    custodians: list[str] = _json()  # user ids asked, as resolved at the opening
    channel: str = Field(nullable=False)  # the incident channel at the opening
    # by user id of those of them who were asked in somebody's place: in whose. None: nobody was
    deputies: dict[str, list[str]] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    public_key: str | None = Field(default=None, sa_column=Column(Text))  # to be signed, where the engine signs one

    asked_seconds: int = Field(nullable=False)
    granted_seconds: int | None = None
    opened_at: datetime = _time()
    state_at: datetime = _time()  # when the present state began
    lapse_at: datetime | None = _time(nullable=True)
    expires_at: datetime | None = _time(nullable=True)
    warned_at: datetime | None = _time(nullable=True)
    review_due_at: datetime | None = _time(nullable=True)
    review_owner: str | None = None  # whose the review is to file
    review_escalated_at: datetime | None = _time(nullable=True)  # when leadership was last told that it is late
    reviews_needed: int | None = None  # by different people; None: one, and two of a misuse
    due_at: datetime | None = _time(nullable=True, index=True)
    attempts: int = Field(default=0, nullable=False)  # failed tries at the present outside effect, for the back-off
    # Who is asked when and which factors there are, as planned at the opening; None: all at once, and none.
    asking: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    asked_steps: int | None = None  # steps of asking that were made
    ended_by: str | None = None  # release | revoke | expire | lost | intercept | fail | done (a drill's)
    ended_by_user: str | None = None
    drill: str | None = None  # the drill's id, "DR-7KQ2"; None: it is real. Set at the opening, by the desk alone


class Decision(SQLModel, table=True):
    """One custodian's answer. One person counts once: the constraint is what makes a double click harmless."""

    __tablename__: ClassVar[Any] = "decision"
    __table_args__ = (UniqueConstraint("request_id", "team", "person", "answer"), _one_of("answer", Answer))

    id: int | None = Field(default=None, primary_key=True)
    request_id: str = Field(foreign_key="request.id", nullable=False, index=True)
    team: str = Field(nullable=False)
    person: str = Field(nullable=False)
    answer: str = Field(nullable=False)
    granted_seconds: int | None = None
    reason: str | None = Field(default=None, sa_column=Column(Text))
    step_up: str | None = None  # the second factor that it was given with
    policy_hash: str = Field(nullable=False)
    at: datetime = _time()


_OPEN_GRANT: Final = text("ended_at IS NULL")


class Grant(SQLModel, table=True):
    """One credential's life, intent first: ``intended_at``, ``accessor_at`` (child token), ``issued_at``, ``ended_at``.

    The partial unique index is the last line of "at most one live credential for a request".
    """

    __tablename__: ClassVar[Any] = "grant"
    __table_args__ = (
        Index(
            "one_open_grant",
            "request_id",
            unique=True,
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
        UniqueConstraint("request_id", "number"),
    )

    id: int | None = Field(default=None, primary_key=True)
    request_id: str = Field(foreign_key="request.id", nullable=False, index=True)
    number: int = Field(nullable=False)  # 1, 2, … within the request
    engine: str = Field(nullable=False)
    path: str = Field(nullable=False)  # the Vault path that is read
    options: dict[str, str] = _json()  # the level's, as they were: an end must not depend on the policy of its day
    lease_prefix: str = Field(nullable=False)
    accessor: str | None = Field(default=None, unique=True)
    lease_id: str | None = Field(default=None, unique=True)
    identity: str | None = None  # the name at the target (database user): not a secret, and what capture attributes by
    intended_at: datetime = _time()
    accessor_at: datetime | None = _time(nullable=True)
    issued_at: datetime | None = _time(nullable=True)
    expires_at: datetime | None = _time(nullable=True)
    ended_at: datetime | None = _time(nullable=True)  # Vault confirmed that nothing of it is left
    # Of a credential that was handed out unseen, in a token that gives it out once. No secret: who has the accessor
    # can look the token up and end it.
    delivery: str | None = None  # wrapped | cli; None: it was shown
    wrap_accessor: str | None = None
    open_until: datetime | None = _time(nullable=True)
    opened_at: datetime | None = _time(nullable=True)  # the token was used: when that was seen
    unopened_at: datetime | None = _time(nullable=True)  # it was ended in its time, unused
    capture_source: str | None = None  # who records what is done with it, as the level said at its making


class Review(SQLModel, table=True):
    """The record filed after a use; the first of them, where there are two."""

    __tablename__: ClassVar[Any] = "review"
    __table_args__ = (_one_of("outcome", Outcome), CheckConstraint("findings <> ''", name="findings_given"))

    request_id: str = Field(foreign_key="request.id", primary_key=True)
    team: str = Field(nullable=False)
    reviewer: str = Field(nullable=False)
    threshold_met: bool = Field(nullable=False)
    standard_path_enough: bool = Field(nullable=False)
    used_as_stated: bool = Field(nullable=False)
    outcome: str = Field(nullable=False)
    findings: str = Field(sa_column=Column(Text, nullable=False))
    follow_ups: list[dict[str, str]] = _json()  # each {"what", "owner", "due"}, and "id" where it is followed up
    filed_at: datetime = _time()
    threshold_why: str | None = Field(default=None, sa_column=Column(Text))  # the evidence; older reviews have none
    standard_path_why: str | None = Field(default=None, sa_column=Column(Text))


class SecondReview(SQLModel, table=True):
    """What a second reviewer says, in words of their own, where one is not enough."""

    __tablename__: ClassVar[Any] = "second_review"
    __table_args__ = (_one_of("outcome", Outcome), CheckConstraint("findings <> ''", name="findings_given"))

    request_id: str = Field(foreign_key="request.id", primary_key=True)
    team: str = Field(nullable=False)
    reviewer: str = Field(nullable=False)
    outcome: str = Field(nullable=False)  # another than the first's: they disagree, and both stand
    findings: str = Field(sa_column=Column(Text, nullable=False))
    filed_at: datetime = _time()


class FollowUp(SQLModel, table=True):
    """Something that a review or a drill wants done, until somebody says that it is.

    ``id`` is what it follows from and a number, "BG-7KQ2/1". ``remind_at``: when its owner is next reminded.
    """

    __tablename__: ClassVar[Any] = "follow_up"
    __table_args__ = (
        CheckConstraint("what <> '' AND owner <> ''", name="words_given"),
        CheckConstraint("(closed_at IS NULL) = (closed_by IS NULL)", name="closed_by_somebody"),
    )

    id: str = Field(primary_key=True, max_length=40)
    request_id: str | None = Field(default=None, foreign_key="request.id", index=True)
    what: str = Field(sa_column=Column(Text, nullable=False))
    owner: str = Field(nullable=False, index=True)
    due: str = Field(nullable=False)  # a day, "2026-12-01"
    opened_at: datetime = _time()
    remind_at: datetime | None = _time(nullable=True, index=True)
    closed_at: datetime | None = _time(nullable=True)
    closed_by: str | None = None
    note: str | None = Field(default=None, sa_column=Column(Text))


class Absence(SQLModel, table=True):
    """Somebody is away until a stated time, and may have named who stands in. They say so of themselves only.

    ``ended_at``: they said that they are back, or something else; None also after ``until`` has passed.
    """

    __tablename__: ClassVar[Any] = "absence"
    __table_args__ = (
        Index(
            "one_open_absence",
            "team",
            "person",
            unique=True,
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
        CheckConstraint("deputy IS NULL OR deputy <> person", name="never_own_deputy"),
    )

    id: int | None = Field(default=None, primary_key=True)
    team: str = Field(nullable=False)
    person: str = Field(nullable=False)
    since: datetime = _time()
    until: datetime = _time()
    deputy: str | None = None
    ended_at: datetime | None = _time(nullable=True)


class Entry(SQLModel, table=True):
    """One record of the log. ``body`` is the canonical JSON, verbatim, and is what is hashed (``storage/audit.py``).

    A body of None was pruned; its hashes stay (``storage/pruning.py``).
    """

    __tablename__: ClassVar[Any] = "entry"
    # Each index is one more page to write for each entry. A period is found by reading on: order is ``seq``.
    __table_args__ = (Index("ix_entry_event_at", "event", "at"),)

    # No autoincrement: the sequence as primary key makes a gap visible and a fork impossible on any database.
    seq: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    request_id: str | None = Field(default=None, index=True)
    event: str = Field(nullable=False)
    at: datetime = _time()
    body: bytes | None = Field(sa_column=Column(LargeBinary, nullable=True))
    leaf_hash: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    root: bytes = Field(sa_column=Column(LargeBinary, nullable=False))  # RFC 6962 root of entries 0..seq
    peaks: bytes = Field(sa_column=Column(LargeBinary, nullable=False))  # roots of the perfect subtrees, left to right


class Pruned(SQLModel, table=True):
    """An entry whose body was pruned, and the entry that says so. Written before the body goes; never changed."""

    __tablename__: ClassVar[Any] = "pruned"

    seq: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    apply_seq: int = Field(nullable=False)


class SignedHead(SQLModel, table=True):
    """The log's head as signed: ``note`` is the C2SP signed note, verbatim (``storage/checkpoint.py``)."""

    __tablename__: ClassVar[Any] = "signed_head"
    __table_args__ = (
        UniqueConstraint("size", "note"),
        CheckConstraint("reason IN ('entry', 'heartbeat', 'rotation')", name="reason_known"),
    )

    id: int | None = Field(default=None, primary_key=True)
    size: int = Field(nullable=False, index=True)
    root: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    note: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    at: datetime = _time()
    reason: str = Field(nullable=False)


class Anchor(SQLModel, table=True):
    """What somebody outside said of a signed head: a witness's cosignature line, a timestamp token (DER)."""

    __tablename__: ClassVar[Any] = "anchor"
    __table_args__ = (
        UniqueConstraint("head_id", "follower"),
        CheckConstraint("kind IN ('cosignature', 'timestamp')", name="kind_known"),
    )

    id: int | None = Field(default=None, primary_key=True)
    head_id: int = Field(foreign_key="signed_head.id", nullable=False)
    follower: str = Field(nullable=False)
    kind: str = Field(nullable=False)
    data: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    at: datetime = _time()


class Feed(SQLModel, table=True):
    """A follower's cursor in one request's entries, claimed by a row.

    An empty ``request_id`` stands for the entries about no request, ``*`` for all entries (the copies outside).
    """

    __tablename__: ClassVar[Any] = "feed"

    follower: str = Field(primary_key=True)
    request_id: str = Field(primary_key=True)
    seq: int = Field(nullable=False)  # the last entry that this follower has done; -1 for none
    holder: str | None = None
    held_until: datetime | None = _time(nullable=True)
    retry_at: datetime | None = _time(nullable=True)
    failures: int = Field(default=0, nullable=False)


class Post(SQLModel, table=True):
    """One message that exists, or is being posted, in Slack. ``key`` names its purpose within the request.

    ``tried_at`` is written before the call: a row that was tried and has no ``ts`` after a crash is looked up in the
    channel by its metadata before anything is posted again.
    """

    __tablename__: ClassVar[Any] = "post"

    request_id: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    target: str = Field(nullable=False)  # channel id, or a user id for a direct message
    channel: str | None = None  # as Slack answered
    ts: str | None = None
    first_seq: int | None = None
    last_seq: int | None = None
    picture: str | None = None  # hash of what was drawn last
    tried_at: datetime | None = _time(nullable=True)


class Alarm(SQLModel, table=True):
    """Something at Vault or at a target that nothing on record explains, and whether the log says so already.

    It carries no truth about any request; it only keeps an alarm from being said once a minute.
    """

    __tablename__: ClassVar[Any] = "alarm"
    __table_args__ = (CheckConstraint("kind IN ('lease', 'identity', 'stuck', 'unreadable')", name="kind_known"),)

    key: str = Field(primary_key=True)
    kind: str = Field(nullable=False)
    place: str = Field(nullable=False)  # a lease prefix, or a target's address
    name: str = Field(nullable=False)  # of the lease, of the login; empty for a place that cannot be looked at
    seen_at: datetime = _time()  # when it was first seen
    said_at: datetime | None = _time(nullable=True)  # when an entry last said so


class StepUp(SQLModel, table=True):
    """What is known of a person's second factor: wrong codes, and which codes were used. No key is kept here."""

    __tablename__: ClassVar[Any] = "step_up"

    team: str = Field(primary_key=True)
    person: str = Field(primary_key=True)
    tries: int = Field(nullable=False)  # since ``since``, without a right one
    since: datetime | None = _time(nullable=True)
    locked_until: datetime | None = _time(nullable=True)
    used: list[Any] = _json()  # (hash of person and code, seconds since 1970 until when it is kept)


class CaptureSource(SQLModel, table=True):
    """Where executed commands come from, and when it was last heard of. Its name is the policy's."""

    __tablename__: ClassVar[Any] = "capture_source"

    name: str = Field(primary_key=True)
    known_at: datetime = _time()  # when the bot first looked for it
    seen_at: datetime | None = _time(nullable=True)  # None: it was never heard of
    down_since: datetime | None = _time(nullable=True)  # an entry says so


class CaptureLine(SQLModel, table=True):
    """A raw line that was taken in: what keeps a batch that comes twice from being recorded twice.

    ``key`` is SHA-256 over source, file, offset and line. ``seq`` is the entry that it became, if one.
    """

    __tablename__: ClassVar[Any] = "capture_line"

    key: bytes = Field(sa_column=Column(LargeBinary, primary_key=True))
    seq: int | None = None


class CaptureSession(SQLModel, table=True):
    """A session at a target, as its lines tell of it: what its closing entry will count.

    ``session`` is empty where a source has no sessions: then all that an identity does is one. ``missing`` are the
    numbers that never came, each ``[first, last]``.
    """

    __tablename__: ClassVar[Any] = "capture_session"

    source: str = Field(primary_key=True)
    session: str = Field(primary_key=True)
    identity: str = Field(primary_key=True)
    request_id: str | None = Field(default=None, index=True)  # None: no grant explains the identity
    commands: int = Field(default=0, nullable=False)
    opened_at: datetime | None = _time(nullable=True)
    closed_at: datetime | None = _time(nullable=True)
    first_at: datetime | None = _time(nullable=True)
    last_at: datetime | None = _time(nullable=True)
    first_number: int | None = None
    last_number: int | None = None
    missing: list[list[int]] = _json()
    holes: list[str] = _json()
    stopped: bool = Field(default=False, nullable=False)
    told: bool = Field(default=False, nullable=False)  # a closing entry counts all of it


class CaptureUse(SQLModel, table=True):
    """What one source recorded of one request. It is there from the issue on, so that "nothing" can be told."""

    __tablename__: ClassVar[Any] = "capture_use"

    request_id: str = Field(foreign_key="request.id", primary_key=True)
    source: str = Field(primary_key=True)
    commands: int = Field(default=0, nullable=False)
    late: int = Field(default=0, nullable=False)  # of these, after the end by the target's clock
    first_at: datetime | None = _time(nullable=True)
    last_at: datetime | None = _time(nullable=True)
    elsewhere: list[str] = _json()  # databases other than the level's
    stopped: bool = Field(default=False, nullable=False)
    blind: bool = Field(default=False, nullable=False)  # the source was down, or lost lines, while access was out
    touched_at: datetime = _time()  # by our clock: when something of it last came
    settled_at: datetime | None = _time(nullable=True, index=True)  # an entry says what was found


class Payload(SQLModel, table=True):
    """A statement, redacted, that is too long for an entry: the entry names it by its hash.

    ``last_seq`` is the newest entry that does: when that is pruned, so is this.
    """

    __tablename__: ClassVar[Any] = "payload"

    sha256: str = Field(primary_key=True, max_length=64)
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    last_seq: int = Field(nullable=False, index=True)


FINAL: Final = frozenset({State.DENIED, State.WITHDRAWN, State.LAPSED, State.FAILED, State.REVIEWED})
