"""What do the tests of bundles and reports look at? A log of a few nights, written as the desk writes."""

from __future__ import annotations

import io
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from storage import audit, bundle, checkpoint, export
from storage.models import Anchor, Request, SignedHead
from storage.signers import KeySigner
from workflows import policy as rules
from workflows.door import Door

if TYPE_CHECKING:
    from collections.abc import Mapping

    from storage.database import Database

NOW: Final = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
TEAM: Final = "T0HOME"
ORIGIN: Final = "log.example.com/orders"
LOG_KEY: Final = KeySigner.of(ORIGIN, Ed25519PrivateKey.from_private_bytes(b"\x07" * 32))
WITNESS: Final = KeySigner.of(
    "witness.example.org", Ed25519PrivateKey.from_private_bytes(b"\x08" * 32), checkpoint.Algorithm.COSIGNATURE
)
# Each wave, kana, caron and click of these has to survive on paper.
NAMES: Final[Mapping[str, str]] = {
    "U0RITA": "Rita Reyes",
    "U0CHEN": "Chen Li",
    "U0ZELJ": "Željko Đurić",
    "U0NIHN": "日本 太郎",
    "U0OLGA": "Ольга Сергеева",
    "U0SAM": "Sam O'Koro",
    "U0EVIL": "Eve <script>alert(1)</script>",
}
POLICY: Final = rules.load(Path(__file__).parent.parent / "bot" / "demo" / "breakglass.yml")
IN_FORCE: Final = rules.in_force(POLICY, ("U0CHEN", "U0ZELJ", "U0NIHN"))


class Writer:
    """Appends entries with a clock that each step moves."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.now = NOW
        self._versions: dict[str, int] = {}

    def entry(self, request_id: str | None, event: str, person: str = "system", **members: Any) -> int:
        """Append one entry; ``after`` seconds after the last one."""
        self.now += timedelta(seconds=members.pop("after", 20))
        actor = audit.SYSTEM if person == "system" else audit.Actor(TEAM, person)
        if request_id is not None and "target" in members:
            members["version"] = self._versions[request_id] = self._versions.get(request_id, 0) + 1
            members.setdefault("policy", IN_FORCE)
        with self.database.write() as session:
            entry = audit.append(session, event=event, at=self.now, actor=actor, request_id=request_id, **members)
            return entry.seq

    def open(
        self, request_id: str, *, by: str = "U0RITA", account: str = "orders-db", reason: str = "", **data: Any
    ) -> None:
        """Open a request: its row and its entry."""
        reason = reason or "Checkout fails for every customer since 01:52; the pool is exhausted"
        with self.database.write() as session:
            session.add(row(request_id, account, by, self.now))
        told = {
            "account": account,
            "level": "write",
            "reason": reason,
            "standard_path": "Paged the database on-call twice, no answer in ten minutes",
            "incident": "INC-2031",
            "asked_seconds": 900,
            "quorum": 2,
            "custodians": ["U0CHEN", "U0NIHN", "U0ZELJ"],
            "threshold": {"id": "customer-impact", "text": "Customers cannot order, or are charged wrongly"},
            "lapse_at": audit.write_time(self.now + timedelta(minutes=15)),
        }
        self.entry(
            request_id, "request:open", by, target="pending", data=told | data
        )  # fmt: skip

    def reviewed(self, request_id: str, **opening: Any) -> None:
        """A whole story: two approvals, a refusal, a fresh credential, an end, a review with a follow-up."""
        add = self.entry
        self.open(request_id, **opening)
        approve = {"granted_seconds": 900, "need": 2}
        said = "You asked for this access yourself, so you cannot approve it."
        add(request_id, "request:approve", "U0RITA", refused="not_allowed", data={"said": said}, after=9)
        add(request_id, "request:approve", "U0CHEN", source="pending", target="pending", data=approve | {"have": 1})
        add(
            request_id,
            "request:approve",
            "U0ZELJ",
            source="pending",
            target="pending",
            data={"granted_seconds": 600, "need": 2, "have": 2},
            after=47,
        )
        add(
            request_id,
            "request:quorum",
            source="pending",
            target="approved",
            data={"approvers": ["U0CHEN", "U0ZELJ"], "granted_seconds": 600},
            after=0,
        )
        out = {"credential": 1, "path": "database/creds/orders-rw"}
        add(request_id, "credential:reveal", "U0RITA", source="approved", target="approved", data={"credential": 1})
        add(request_id, "credential:token", source="approved", target="approved", data=out, after=0)
        end = audit.write_time(self.now + timedelta(seconds=601))
        issued = {"identity": "v-approle-orders-rw-8Fq1", "lease": "database/creds/orders-rw/9Lq", "expires_at": end}
        add(request_id, "credential:issue", source="approved", target="active", data=out | issued, after=1)
        add(request_id, "credential:warn", source="active", target="active", data={"expires_at": end}, after=480)
        add(request_id, "credential:release", "U0RITA", source="active", target="ending", after=31)
        ended = {
            "ended_by": "release",
            "leases": ["database/creds/orders-rw/9Lq"],
            "seconds_out": 512,
            "review_due_at": audit.write_time(self.now + timedelta(days=3)),
        }
        add(request_id, "credential:end", source="ending", target="ended", data=ended, after=1)
        review = {
            "threshold_met": True,
            "standard_path_enough": False,
            "used_as_stated": True,
            "outcome": "justified",
            "findings": "Raised max_connections and ended 41 idle sessions. All statements concern the pool.",
            "follow_ups": [{"what": "Alert on pool use above 80 %", "owner": "U0OLGA", "due": "2026-03-15"}],
        }
        add(request_id, "review:file", "U0SAM", source="ended", target="reviewed", data=review, after=31_000)

    def entry_count(self) -> int:
        """How many entries there are."""
        with self.database.read() as session:
            return audit.head(session).size

    def sign(self, *, reason: str = "entry", cosigned: bool = False, token: bytes | None = None) -> bytes:
        """Sign the newest head, have it cosigned, and give it a time stamp."""
        with self.database.write() as session:
            head = audit.head(session)
            extra = (checkpoint.time_line(self.now),) if reason == "heartbeat" else ()
            made = checkpoint.Checkpoint(ORIGIN, head.size, head.root, extra)
            note = checkpoint.sign(made, [LOG_KEY])
            stored = SignedHead(size=head.size, root=head.root, note=note, at=self.now, reason=reason)
            session.add(stored)
            session.flush()
            if cosigned:
                line = checkpoint.cosign(made, WITNESS, now=self.now).line()
                session.add(Anchor(head_id=stored.id, follower="notary", kind="cosignature", data=line, at=self.now))
            if token is not None:
                session.add(Anchor(head_id=stored.id, follower="clock", kind="timestamp", data=token, at=self.now))
        return note


def row(request_id: str, account: str, requester: str, at: datetime) -> Request:
    """A request's row; the reports do not look at it but for the account."""
    return Request(
        id=request_id,
        state="pending",
        version=1,
        state_version=1,
        last_seq=0,
        team=TEAM,
        requester=requester,
        account=account,
        level="write",
        threshold="customer-impact",
        reason="checkout is down",
        standard_path="paged the database on-call",
        incident="INC-1",
        policy_hash="0" * 64,
        quorum=1,
        custodians=["U0CHEN"],
        channel="C0INCIDENT",
        asked_seconds=900,
        opened_at=at,
        state_at=at,
    )


def nights(database: Database, *, signed: bool = True) -> Writer:
    """A log: the policy, one reviewed use, one denied, one lapsed, one waiting, one of another account and person."""
    writer = Writer(database)
    door = Door(database)
    door.record_policy(POLICY, now=NOW)
    writer.reviewed("BG-7KQ2")
    if signed:
        writer.sign(cosigned=True)
    writer.open("BG-DENY", reason="I would like to look something up in the orders")
    writer.entry(
        "BG-DENY", "request:deny", "U0NIHN", source="pending", target="denied", data={"reason": "No threshold."}
    )
    writer.open("BG-LAPS")
    writer.entry("BG-LAPS", "request:lapse", source="pending", target="lapsed", data={"waited_seconds": 900}, after=900)
    if signed:
        writer.sign()
        writer.now += timedelta(minutes=5)
        writer.sign(reason="heartbeat")
    writer.open(
        "BG-EVIL", by="U0EVIL", account="payments", reason="=cmd|'/c calc'!A1 <img src=x onerror=alert(1)> \u202e"
    )
    writer.entry(None, "copy:behind", data={"copy": "archive", "seconds": 400})
    writer.entry(None, "log:export", "shell:root", data={"format": "bundle"})
    door.close_records(["BG-7KQ2", "BG-DENY", "BG-LAPS", "BG-EVIL"], now=writer.now)
    if signed:
        writer.sign()
    return writer


def take(database: Database, **given: Any) -> tuple[bundle.Summary, bytes]:
    """Write a bundle into memory."""
    chosen = {name: given.pop(name) for name in ("since", "until", "account", "request_id") if name in given}
    out = io.BytesIO()
    with database.read() as session:
        summary = bundle.write(
            session, out, export.Selection(**chosen), **{"names": NAMES.get, "with_pdf": False} | given
        )
    return summary, out.getvalue()


def unpack(data: bytes) -> dict[str, bytes]:
    """The members of a zip."""
    with zipfile.ZipFile(io.BytesIO(data)) as box:
        return {name: box.read(name) for name in box.namelist()}
