"""What can somebody do to a finished log who holds the database, knows the format, and may even hold the key?

The tools of the attacker in the tests: raw SQLite, no guards, everything computed anew that can be.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from counter import CARL, CHEN, CORA, GUS, OLGA, PATIENCE, POLICY, RITA, SAM, TEAM, Counter, People

from storage import audit, checkpoint, merkle
from storage.audit import Actor
from storage.followers.file import FileCopy
from storage.followers.seam import Item
from storage.heads import HeadKeeper
from storage.models import Outcome
from storage.signers import FileKeyring, KeySigner, new_key_file, read_key_file
from storage.standalone import Key, read_vkey
from workflows import policy as rules
from workflows import sweep
from workflows.desk import Findings, FollowUp
from workflows.errors import BreakGlassError

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from real_parts import Real

    from storage.database import Database
    from workflows.policy import Policy

ORIGIN: Final = "log.example/orders"
HEARTBEAT: Final = timedelta(minutes=5)
FORM: Final = Findings(
    True,
    False,
    True,
    Outcome.JUSTIFIED,
    "Standard escalation would have taken an hour.",
    (FollowUp("Page two people", "U0CARL", datetime(2027, 1, 15, tzinfo=UTC).date()),),
    threshold_why="Checkout was down for everybody.",
    standard_path_why="The database rota did not answer.",
)


# --- making finished logs ------------------------------------------------------------------------------------------


def policy_for(real: Real) -> Policy:
    """The demo's policy, for the real target."""
    text = POLICY.read_text(encoding="utf-8").replace("port: 5432", f"port: {real.pg.port}")
    for level, name in ((real.read, "read"), (real.write, "write")):
        text = text.replace(f"token_role: breakglass-orders-db-{name}", f"token_role: {level.settings.token_role}")
    return rules.parse(text, name="demo")


def desk_at(real: Real, database: Database, policy: Policy) -> Counter:
    """A desk with the demo's people, the real Vault, and a clock that the test moves."""
    people = People()
    desk = Counter(database, policy, people, real.vault(), team=TEAM, patience=PATIENCE)
    desk.now = datetime.now(UTC)
    desk.people = people
    return desk


class Night:
    """A desk whose log is signed whenever time passes."""

    def __init__(self, desk: Counter, key_file: Path) -> None:
        self.desk = desk
        self.keeper = HeadKeeper(
            desk.database, ORIGIN, FileKeyring(ORIGIN, key_file), heartbeat=HEARTBEAT, now=lambda: desk.now
        )

    def sign(self) -> None:
        """Sign what is new."""
        self.keeper.round()

    def pass_time(self, **by: float) -> None:
        """Move the clock, with the heartbeats on the way."""
        self.sign()
        end = self.desk.now + timedelta(**by)
        while end - self.desk.now > HEARTBEAT:
            self.desk.now += HEARTBEAT
            self.sign()
        self.desk.now = end

    def tick(self) -> None:
        """Let the clock's work be done."""
        sweep.tick(self.desk, now=self.desk.now)

    def try_to(self, act: Callable[[], object]) -> None:
        """Do something that may be refused."""
        with suppress(BreakGlassError):
            act()

    def live(self) -> None:
        """A whole night: every ending that there is, and refusals in between."""
        desk = self.desk
        desk.record_policy(desk.policy, now=desk.now)
        # Used, shown again, handed back, reviewed.
        full = desk.ask(level="write", minutes=10)
        self.pass_time(seconds=20)
        self.try_to(lambda: desk.approve(RITA, full.id, full.version, now=desk.now))
        desk.approve(CARL, full.id, full.version, now=desk.now)
        self.try_to(lambda: desk.approve(OLGA, full.id, full.version, now=desk.now))
        self.pass_time(seconds=9)
        desk.approve(CHEN, full.id, full.version, within=timedelta(minutes=8), now=desk.now)
        self.pass_time(seconds=12)
        desk.show(full)
        self.pass_time(minutes=1)
        desk.show(full)
        self.pass_time(minutes=1)
        # Meanwhile: denied, withdrawn, one that stays open.
        denied = desk.ask(reason="Curious about an order")
        self.try_to(lambda: desk.deny(CARL, denied.id, denied.version, "Use the replica", now=desk.now))
        withdrawn = desk.ask(CARL)
        self.try_to(lambda: desk.withdraw(CARL, withdrawn.id, withdrawn.version, now=desk.now))
        self.try_to(lambda: desk.approve(CHEN, withdrawn.id, withdrawn.version, now=desk.now))
        row = desk.case(full.id).request
        desk.release(RITA, full.id, row.version, now=desk.now)
        desk.finish(full.id, now=desk.now)
        self.pass_time(minutes=2)
        row = desk.case(full.id).request
        self.try_to(lambda: desk.review(CARL, full.id, row.version, FORM, now=desk.now))
        desk.review(SAM, full.id, row.version, FORM, now=desk.now)
        # Lapsed unanswered; expired; revoked and not reviewed yet.
        desk.ask(level="write", minutes=5)
        expired = desk.approved(minutes=10)
        revoked = desk.approved(by=(CORA,))
        desk.show(expired)
        desk.show(revoked)
        self.pass_time(minutes=9)
        self.tick()
        row = desk.case(revoked.id).request
        desk.revoke(CHEN, revoked.id, row.version, now=desk.now)
        self.tick()
        self.pass_time(minutes=7)
        self.tick()
        desk.ask(reason="Open to the end of this log", minutes=12)
        self.pass_time(minutes=1)
        desk.close_records([full.id, denied.id, expired.id], now=desk.now)
        self.sign()

    def walk(self, rng: random.Random, steps: int, *, with_vault: bool) -> None:
        """A random walk: anybody tries anything, at any time."""
        desk = self.desk
        people = (RITA, CARL, CHEN, CORA, SAM, OLGA, GUS, Actor("T0OTHER", "U0CARL"))
        rows: list[str] = []
        for _ in range(steps):
            if not rows or rng.random() < 0.15:
                self.try_to(lambda: rows.append(_ask(desk, rng).id))
            else:
                self._try_something(rng, rng.choice(people), rng.choice(rows), with_vault=with_vault)
        self.sign()

    def _try_something(self, rng: random.Random, who: Actor, name: str, *, with_vault: bool) -> None:
        desk = self.desk
        row = desk.case(name).request
        version = row.version if rng.random() < 0.9 else max(1, row.version - 1)
        doing: dict[str, Callable[[], object]] = {
            "approve": lambda: desk.approve(who, name, version, now=desk.now),
            "approve again": lambda: desk.approve(rng.choice((CARL, CHEN, CORA)), name, version, now=desk.now),
            "deny": lambda: desk.deny(rng.choice((who, CARL)), name, version, "no", now=desk.now),
            "withdraw": lambda: desk.withdraw(rng.choice((who, RITA)), name, version, now=desk.now),
            "release": lambda: desk.release(RITA, name, version, now=desk.now),
            "revoke": lambda: desk.revoke(rng.choice((who, CORA)), name, version, now=desk.now),
            "review": lambda: desk.review(rng.choice((who, SAM)), name, version, FORM, now=desk.now),
            "finish": lambda: desk.finish(name, now=desk.now),
            "close": lambda: desk.close_records([name], now=desk.now),
            "tick": self.tick,
            "wait": lambda: self.pass_time(seconds=rng.choice((1, 30, 200, 800))),
        }
        weights: dict[str, float] = {"approve again": 4, "tick": 3, "deny": 0.4, "withdraw": 0.4}
        if with_vault:
            doing["show"] = lambda: desk.show(row)
            weights["show"] = 4
        self.try_to(doing[rng.choices(list(doing), [weights.get(word, 1) for word in doing])[0]])


def _ask(desk: Counter, rng: random.Random) -> Any:
    return desk.ask(rng.choice((RITA, RITA, CARL)), level=rng.choice(("read", "write")), minutes=rng.choice((2, 10)))


def key_in(folder: Path) -> tuple[Path, Key]:
    """A new key file, and the public half as an auditor is given it."""
    file = folder / "log.key"
    new_key_file(file)
    return file, read_vkey(str(read_key_file(ORIGIN, file).key))


def copy_of(database: Database, path: Path) -> FileCopy:
    """A copy outside that has everything so far."""
    copy = FileCopy("archive", path, ORIGIN)
    with database.read() as session:
        rows = session.connection().exec_driver_sql("SELECT seq, body, leaf_hash FROM entry ORDER BY seq").all()
    copy.deliver([Item(*row) for row in rows], None, now=datetime(2026, 1, 1, tzinfo=UTC))
    return copy


# --- the attacker's hands ------------------------------------------------------------------------------------------


@contextmanager
def hands_on(file: Path) -> Iterator[sqlite3.Connection]:
    """The database without its guards."""
    with closing(sqlite3.connect(file, isolation_level=None)) as raw:
        raw.execute("PRAGMA synchronous = OFF")
        for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            raw.execute(f'DROP TRIGGER "{name}"')
        raw.execute("BEGIN")
        yield raw
        raw.execute("COMMIT")


@dataclass
class Log:
    """The entries as an attacker who knows the format reads and writes them: ``entries`` are parsed bodies."""

    raw: sqlite3.Connection
    entries: list[dict[str, Any]]

    @classmethod
    def of(cls, raw: sqlite3.Connection) -> Log:
        """Read all of it."""
        return cls(raw, [json.loads(body) for (body,) in raw.execute("SELECT body FROM entry ORDER BY seq")])

    def where(self, event: str, *, refused: bool = False, **data: Any) -> list[int]:
        """Numbers of the entries of an event."""
        return [
            seq
            for seq, entry in enumerate(self.entries)
            if entry["event"] == event
            and ("refused" in entry) is refused
            and all(entry.get("data", {}).get(name) == value for name, value in data.items())
        ]

    def of_request(self, name: str) -> list[int]:
        """Numbers of a request's entries."""
        return [seq for seq, entry in enumerate(self.entries) if entry.get("request") == name]

    def count_again(self, name: str) -> None:
        """Number the changes of a request anew, so that none seems to be missing."""
        version = 0
        for seq in self.of_request(name):
            if "version" in self.entries[seq]:
                version += 1
                self.entries[seq]["version"] = version

    def write(self, private: Ed25519PrivateKey | None = None) -> None:
        """Write the whole log anew: numbers, hashes, roots, columns; with the key, the heads as well.

        Closing entries are left true, as a careful attacker does, and so is what the tables say of the newest entry.
        """
        self.raw.execute("DELETE FROM entry")
        peaks, leaves = b"", {}
        roots = {0: merkle.EMPTY_ROOT}
        newest: dict[str, int] = {}
        for seq, entry in enumerate(self.entries):
            entry["seq"] = seq
            name = entry.get("request")
            if entry["event"] == "request:close":
                hashes = leaves.get(name, [])
                entry["data"]["count"] = len(hashes)
                entry["data"]["sha256"] = sha256(b"".join(hashes)).hexdigest()
            body = audit.canonical(entry)
            leaf = merkle.leaf_hash(body)
            peaks = merkle.push(peaks, seq, leaf)
            roots[seq + 1] = merkle.root(peaks)
            if name is not None:
                leaves.setdefault(name, []).append(leaf)
                newest[name] = seq
            at = f"{entry['at'][:10]} {entry['at'][11:-1]}"
            self.raw.execute(
                "INSERT INTO entry (seq, request_id, event, at, body, leaf_hash, root, peaks) VALUES (?,?,?,?,?,?,?,?)",
                (seq, name, entry["event"], at, body, leaf, roots[seq + 1], peaks),
            )
        for name, seq in newest.items():
            self.raw.execute("UPDATE request SET last_seq = ? WHERE id = ?", (seq, name))
        if private is not None:
            self.sign(KeySigner.of(ORIGIN, private), roots)

    def sign(self, signer: KeySigner, roots: dict[int, bytes]) -> None:
        """Sign every stored head anew over what the log is now; those that are over more go."""
        self.raw.execute("DELETE FROM signed_head WHERE size > ?", (len(self.entries),))
        for number, size, note in self.raw.execute("SELECT id, size, note FROM signed_head").fetchall():
            old = checkpoint.parse(note).checkpoint
            new = checkpoint.Checkpoint(old.origin, size, roots[size], old.extensions)
            self.raw.execute(
                "UPDATE signed_head SET note = ?, root = ? WHERE id = ?",
                (checkpoint.sign(new, [signer]), roots[size], number),
            )
