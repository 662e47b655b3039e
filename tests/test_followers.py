"""Is every copy brought the whole log, in order and once, whatever stops, hangs or lies?"""

from __future__ import annotations

import itertools
import os
import signal
import threading
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from sqlmodel import select

from storage.audit import SYSTEM, append, read_entries
from storage.database import Database
from storage.followers import FOLLOWERS, CopyRunner, CopyTrouble, Item, Notary, RequiredCopies, build_copies, lags
from storage.followers.file import FileCopy
from storage.followers.runner import ALL, BEHIND, CAUGHT_UP, reset
from storage.merkle import verify_consistency
from storage.models import Anchor, Entry, Feed, SignedHead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

LONG = 30.0  # seconds within which a thread must have done what it does at once


@dataclass
class Clock:
    """The time, which the test moves."""

    at: datetime

    def __call__(self) -> datetime:
        """Return it."""
        return self.at

    def pass_(self, **by: float) -> None:
        """Move it."""
        self.at += timedelta(**by)


@dataclass
class Recorder:
    """A place that keeps what it is brought, and can be told to fail; strict about order, as the real ones are."""

    name: str = "recorder"
    is_readable: bool = True
    kept: dict[int, Item] = field(default_factory=dict)
    heads: list[bytes] = field(default_factory=list)
    batches: list[tuple[int, ...]] = field(default_factory=list)
    trouble: str | None = None
    before: Callable[[], object] = lambda: None
    after: Callable[[], object] = lambda: None

    def deliver(self, items: Sequence[Item], head: bytes | None, *, now: datetime) -> int:
        """Keep them."""
        self.before()
        if self.trouble:
            raise CopyTrouble(self.trouble)
        self.batches.append(tuple(item.seq for item in items))
        for item in items:
            assert item.seq <= len(self.kept), "a gap"
            if not self.kept.setdefault(item.seq, item).is_same(item):
                raise CopyTrouble(f"A different entry {item.seq} stands there.")
        if head is not None:
            self.heads.append(head)
        self.after()
        return len(self.kept) - 1

    def position(self) -> int | None:
        """Return the last."""
        return max(self.kept, default=None)

    def read(self, start: int = 0) -> Iterator[Item]:
        """Give them."""
        return (item for seq, item in sorted(self.kept.items()) if seq >= start)


@dataclass
class Witness:
    """A notary that checks what a witness checks: that each head grew out of the one before."""

    name: str = "witness"
    kind: str = "cosignature"
    roots: list[tuple[int, bytes]] = field(default_factory=list)
    trouble: str | None = None

    def anchor(
        self, head: bytes, *, before: int, consistency: Callable[[int], Sequence[bytes]], now: datetime
    ) -> bytes:
        """Check it and answer."""
        if self.trouble:
            raise CopyTrouble(self.trouble)
        size, root = int(head.split()[0]), bytes.fromhex(head.split()[1].decode())
        if self.roots:
            assert before == self.roots[-1][0]
            assert verify_consistency(*self.roots[-1], size, root, consistency(before))
        self.roots.append((size, root))
        return b"seen " + head

    def ask(self, head: bytes | None, *, is_known: bool, newest: Callable[[], int], now: datetime) -> str:
        """Say that it is up."""
        raise NotImplementedError


@dataclass
class Outside:
    """A database, a clock, and runners on it as several bots have them."""

    database: Database
    clock: Clock
    heads: Iterator[int] = field(default_factory=itertools.count)

    def append(self, count: int = 1, request_id: str | None = None) -> int:
        """Append entries; returns the last one's number."""
        with self.database.write() as session:
            for _ in range(count):
                seq = append(
                    session, event="test:entry", at=self.clock(), actor=SYSTEM, request_id=request_id, data={"a": "b"}
                ).seq
        return seq

    def sign(self) -> int:
        """Store a head of the log as it is; returns its size."""
        with self.database.write() as session:
            entry = session.get(Entry, len(read_entries(session)) - 1)
            note = f"{entry.seq + 1} {entry.root.hex()} {next(self.heads)}".encode()
            session.add(SignedHead(size=entry.seq + 1, root=entry.root, note=note, at=self.clock(), reason="entry"))
        return entry.seq + 1

    def runner(self, *copies, holder: str = "bot", **more) -> CopyRunner:
        """Return a bot's runner, which works in the test's own thread unless it is started."""
        return CopyRunner(
            self.database,
            {copy.name: copy for copy in copies},
            now=self.clock,
            holder=holder,
            jitter=lambda: 0.5,
            **more,
        )

    def bodies(self) -> list[bytes]:
        """Return what the log holds."""
        with self.database.read() as session:
            return [record.body for record in read_entries(session)]

    def events(self) -> list[str]:
        """Return what the log tells, without the entries of the test."""
        with self.database.read() as session:
            return [record.event for record in read_entries(session) if record.event != "test:entry"]

    def cursor(self, name: str) -> int:
        """Return how far a copy has acknowledged."""
        with self.database.read() as session:
            feed = session.get(Feed, (name, ALL))
        return -1 if feed is None else feed.seq


@pytest.fixture
def outside(database, now) -> Outside:
    """An empty log."""
    return Outside(database, Clock(now))


def has_all(outside: Outside, copy) -> bool:
    """Whether the copy holds exactly the log."""
    return [item.body for item in copy.read()] == outside.bodies()


# ---------------------------------------------------------------------------------------------- the plain course


def test_everything_is_brought_in_order_and_in_batches(outside):
    """A long log reaches the copy whole, in order, in several deliveries, and the cursor says so."""
    outside.append(1234)
    copy = Recorder()
    assert outside.runner(copy).work("recorder")
    assert has_all(outside, copy)
    assert len(copy.batches) == 3
    assert outside.cursor("recorder") == 1233


def test_nothing_is_brought_twice_while_a_bot_runs(outside):
    """Later entries come alone, and without any the copy is left in peace."""
    copy = Recorder()
    runner = outside.runner(copy)
    for _ in range(3):
        outside.append(2)
        assert runner.work("recorder")
        assert not runner.work("recorder")
    assert copy.batches == [(0, 1), (2, 3), (4, 5)]


def test_a_bot_that_is_started_again_shows_the_last_entry_first(outside):
    """After a restart the last acknowledged entry comes once more, so that a place that was swapped is found."""
    copy = Recorder()
    outside.append(3)
    outside.runner(copy).work("recorder")
    outside.append()
    outside.runner(copy).work("recorder")
    assert copy.batches == [(0, 1, 2), (2, 3)]
    swapped = Recorder(kept={seq: Item(seq, b"another", b"?" * 32) for seq in range(4)})
    outside.append()
    runner = outside.runner(swapped)
    runner.work("recorder")
    assert "different entry 3" in runner.stuck()[0].why
    assert outside.cursor("recorder") == 3


def test_a_place_that_cannot_be_asked_gets_no_entry_twice(outside):
    """A place that cannot compare is not shown the last entry again."""
    copy = Recorder(is_readable=False)
    outside.append(2)
    outside.runner(copy).work("recorder")
    outside.append()
    outside.runner(copy).work("recorder")
    assert copy.batches == [(0, 1), (2,)]


def test_a_pruned_entry_is_known_by_its_hash():
    """An entry without its body is the same as the one that a copy has whole, if the leaf hash is."""
    item = Item(0, None, b"h" * 32)
    assert item.is_whole()
    assert item.is_same(Item(0, b"body", b"h" * 32))
    assert not item.is_same(Item(0, None, b"i" * 32))


def test_a_damaged_entry_is_not_copied(outside):
    """What was changed in the database behind the log's back does not become the copy's truth."""
    outside.append(2)
    with outside.database.write() as session:
        session.add(Entry(seq=2, event="x:y", at=outside.clock(), body=b"{}", leaf_hash=b"l" * 32, root=b"", peaks=b""))
    copy = Recorder()
    runner = outside.runner(copy)
    assert not runner.work("recorder")
    assert "Entry 2 of the log is damaged" in runner.stuck()[0].why
    assert copy.kept == {}


# ---------------------------------------------------------------------------------------------- heads and notaries


def test_a_head_comes_with_the_entries_that_it_is_over(outside):
    """A copy gets the newest head that its entries reach, once, also when no entry is new."""
    outside.append(2)
    outside.sign()
    copy = Recorder()
    runner = outside.runner(copy)
    runner.work("recorder")
    assert [head.split()[0] for head in copy.heads] == [b"2"]
    outside.sign()
    assert runner.work("recorder")
    assert not runner.work("recorder")
    assert len(copy.heads) == 2
    outside.append()
    runner.work("recorder")
    assert len(copy.heads) == 2


def test_each_head_that_a_notary_answers_for_follows_from_the_one_before(outside):
    """The notary is shown the newest head with a proof that nothing was rewritten, and its answer is kept once."""
    witness = Witness()
    assert isinstance(witness, Notary)
    assert not isinstance(Recorder(), Notary)
    runner = outside.runner(witness)
    assert not runner.work("witness")
    for count in (3, 1, 7):
        outside.append(count)
        size = outside.sign()
        assert runner.work("witness")
        assert not runner.work("witness")
        assert outside.cursor("witness") == size - 1
    assert [size for size, _ in witness.roots] == [3, 4, 11]
    with outside.database.read() as session:
        anchors = session.exec(select(Anchor)).all()
    assert [(anchor.follower, anchor.kind, anchor.data.startswith(b"seen ")) for anchor in anchors] == [
        ("witness", "cosignature", True)
    ] * 3


def test_a_notary_is_behind_by_what_is_signed_not_by_what_is_written(outside):
    """Entries under no signed head are nothing that a notary could have answered for."""
    witness = Witness(trouble="It does not answer.")
    runner = outside.runner(witness)
    outside.append(5)
    assert runner.lag(outside.clock())[0].entries == 0
    outside.sign()
    outside.clock.pass_(seconds=40)
    runner.work("witness")
    (lag,) = runner.lag(outside.clock())
    assert (lag.entries, lag.seconds, lag.failures) == (5, 40.0, 1)


# ---------------------------------------------------------------------------------------------- outages


def test_after_an_outage_it_goes_on_where_it_was(outside):
    """A place that was down for a while gets all that it missed, and nothing twice but the one entry to compare."""
    copy = Recorder()
    runner = outside.runner(copy)
    outside.append(2)
    runner.work("recorder")
    copy.trouble = "It is down."
    for _ in range(5):
        outside.append()
        outside.clock.pass_(minutes=2)
        assert not runner.work("recorder")
    copy.trouble = None
    outside.clock.pass_(minutes=2)
    runner.work("recorder")
    assert has_all(outside, copy)
    assert copy.batches == [(0, 1), (1, 2, 3, 4, 5, 6)]


def test_who_fails_is_tried_later_each_time_and_a_required_one_soon(outside):
    """The pause grows up to a minute; somebody may be waiting for a required copy, so that it is never long."""
    for name, longest in (("plain", 60), ("required", 5)):
        copy = Recorder(name, trouble="It is down.")
        runner = outside.runner(copy, required=("required",))
        outside.append()
        pauses = []
        for _ in range(9):
            runner.work(name)
            pauses.append((runner.stuck()[0].retry_at - outside.clock()).total_seconds())
            tried = runner.stuck()[0].failures
            runner.work(name)
            assert runner.stuck()[0].failures == tried, "not before its time"
            outside.clock.pass_(seconds=pauses[-1])
        assert pauses == sorted(pauses)
        assert pauses[0] < 1
        assert pauses[-1] == longest


def test_a_place_that_says_nonsense_moves_no_cursor(outside):
    """An acknowledgement of less than was there, or of nothing, is a trouble; of more than was brought, no more."""
    outside.append(3)
    copy = Recorder()
    runner = outside.runner(copy)
    runner.work("recorder")
    outside.append()
    for answer in (-1, 1, 2):
        copy.deliver = lambda items, head, *, now, answer=answer: answer
        runner.work("recorder")
        assert outside.cursor("recorder") == 2
        assert runner.stuck()
        outside.clock.pass_(minutes=2)
    copy.deliver = lambda items, head, *, now: 99
    runner.work("recorder")
    assert outside.cursor("recorder") == 3


def test_a_copy_that_breaks_is_in_trouble_like_any_other(outside):
    """A mistake in one copy's code is told without its details, and the thread goes on."""
    outside.append()

    def fail():
        raise ZeroDivisionError("postgresql://user:hunter2@host")

    runner = outside.runner(Recorder(before=fail))
    assert not runner.work("recorder")
    assert "ZeroDivisionError" in runner.stuck()[0].why
    assert "hunter2" not in runner.stuck()[0].why


def test_killed_between_the_delivery_and_the_cursor_nothing_is_lost_or_doubled(outside, tmp_path):
    """A bot that dies after the place has taken a batch, before it is written down, brings it again; once it stands."""
    outside.append(3)
    place = FileCopy("archive", tmp_path / "copy", "log")
    died = outside.runner(place, holder="elsewhere/1/1/dead")
    died._advance = lambda *_: False
    died._once("archive")
    assert place.position() == 2
    assert outside.cursor("archive") == -1
    outside.append(2)
    other = outside.runner(FileCopy("archive", tmp_path / "copy", "log"), holder="another")
    assert not other.work("archive"), "the claim of the dead one still stands"
    outside.clock.pass_(minutes=2)
    assert other.work("archive")
    assert [item.body for item in place.read()] == outside.bodies()


def test_a_killed_process_leaves_a_claim_that_its_successor_need_not_wait_for(database_url, now, tmp_path):
    """SIGKILL in the middle of a delivery: the next bot on the machine takes over at once and completes the copy."""
    database = Database(database_url)
    outside = Outside(database, Clock(now))
    outside.append(700)
    database.close()
    told, tell = os.pipe()
    bot = os.fork()
    if bot == 0:
        try:
            place = FileCopy("archive", tmp_path / "copy", "log")
            sync, count = place._sync, []

            def hang(number):
                sync(number)
                count.append(number)
                if len(count) == 2:
                    os.write(tell, b"!")
                    threading.Event().wait()

            place._sync = hang
            CopyRunner(Database(database_url), {"archive": place}, now=lambda: now).work("archive")
        finally:
            os._exit(1)
    assert os.read(told, 1) == b"!"
    os.kill(bot, signal.SIGKILL)
    os.waitpid(bot, 0)
    assert outside.cursor("archive") == 499
    place = FileCopy("archive", tmp_path / "copy", "log")
    assert outside.runner(place).work("archive")
    assert [item.body for item in place.read()] == outside.bodies()
    database.close()


# ---------------------------------------------------------------------------------------------- several


def test_two_bots_deliver_each_entry_once(outside):
    """While one bot delivers, the other leaves it alone; whoever comes next goes on from there."""
    copy, seen = Recorder(is_readable=False), []
    first, second = outside.runner(copy, holder="first"), outside.runner(copy, holder="second")
    copy.after = lambda: seen.append(second.work("recorder"))
    outside.append(2)
    first.work("recorder")
    copy.after = lambda: None
    assert seen == [False]
    outside.append()
    second.work("recorder")
    outside.append()
    first.work("recorder")
    assert copy.batches == [(0, 1), (2,), (3,)]


def test_a_bot_that_lost_its_claim_moves_no_cursor(outside):
    """A bot that was frozen past its claim and wakes up changes nothing that its successor has written down."""
    copy = Recorder()
    slow, quick = outside.runner(copy, holder="slow"), outside.runner(copy, holder="quick")
    outside.append(2)

    def overtake():
        copy.before = lambda: None
        outside.clock.pass_(minutes=2)
        outside.append()
        quick.work("recorder")

    copy.before = overtake
    slow.work("recorder")
    assert outside.cursor("recorder") == 2
    assert has_all(outside, copy)


def test_many_bots_at_once_lose_and_double_nothing(outside):
    """Four running bots and a log that grows under them: the place gets each entry once, in order."""
    copy = Recorder(is_readable=False)
    bots = [outside.runner(copy, holder=f"bot {number}") for number in range(4)]
    for bot in bots:
        outside.database.woken.append(bot.wake)
        bot.start()
    try:
        for _ in range(20):
            outside.append(3)
        assert bots[0].drain(LONG)
    finally:
        for bot in bots:
            bot.stop()
    assert [seq for batch in copy.batches for seq in batch] == list(range(60))


def test_one_copy_that_hangs_holds_up_no_other(outside):
    """While one place does not answer at all, the others have every entry."""
    released, hangs = threading.Event(), threading.Event()

    def hang():
        hangs.set()
        released.wait()

    stuck, well = Recorder("stuck", before=hang), Recorder("well")
    runner = outside.runner(stuck, well)
    outside.database.woken.append(runner.wake)
    runner.start()
    try:
        outside.append()
        assert hangs.wait(LONG)
        last = outside.append(20)
        required = RequiredCopies(outside.database, ("well",), timedelta(0), runner)
        while required.behind(last):
            required.wait(0.1)
        assert has_all(outside, well)
        assert outside.cursor("stuck") == -1
    finally:
        released.set()
        assert runner.drain(LONG)
        runner.stop()
    assert has_all(outside, stuck)


# ---------------------------------------------------------------------------------------------- what is required


def test_what_is_not_known_is_missing(outside):
    """A required copy counts as behind until its own row says otherwise; without required ones nothing is asked."""
    last = outside.append(2)
    required = RequiredCopies(outside.database, ("b", "a"), timedelta(seconds=9))
    assert required.behind(last) == ("a", "b")
    outside.runner(Recorder("a")).work("a")
    assert required.behind(last) == ("b",)
    assert required.behind(last + 1) == ("a", "b")
    assert RequiredCopies(outside.database, (), timedelta(0)).behind(last) == ()


# ---------------------------------------------------------------------------------------------- alarms


def test_an_outage_is_said_once_and_its_end_too(outside):
    """Past the threshold the log says that the copy is behind and why, and when all of it is there, that too."""
    copy = Recorder(trouble="Its disk is full.")
    bots = [outside.runner(copy, holder=name, alarm_after=timedelta(minutes=5)) for name in ("one", "two")]
    outside.append(2)

    def pass_(minutes):
        for _ in range(minutes):
            outside.clock.pass_(minutes=1)
            for bot in bots:
                bot.work("recorder")
                bot.tick()

    pass_(4)
    assert outside.events() == []
    pass_(10)
    assert outside.events() == [BEHIND]
    assert bots[0].lag(outside.clock())[0].is_alarmed
    copy.trouble = None
    pass_(3)
    assert outside.events() == [BEHIND, CAUGHT_UP]
    pass_(10)
    copy.trouble = "Its disk is full again."
    outside.append()
    pass_(12)
    assert outside.events() == [BEHIND, CAUGHT_UP, BEHIND]
    with outside.database.read() as session:
        said = next(record for record in read_entries(session) if record.event == BEHIND)
    assert said.actor == SYSTEM
    assert said.request_id is None
    assert said.data["copy"] == "recorder"
    assert said.data["entries"] == 2
    assert said.data["seconds"] == 300
    assert said.data["why"] == "Its disk is full."
    assert said.data["required"] is False


def test_a_notary_that_is_behind_is_said_too(outside):
    """The threshold holds for notaries, from the first head that they have not answered for."""
    witness = Witness(trouble="It does not answer.")
    runner = outside.runner(witness, alarm_after=timedelta(minutes=5))
    outside.append()
    outside.sign()
    for _ in range(7):
        outside.clock.pass_(minutes=1)
        runner.work("witness")
        runner.tick()
    assert outside.events() == [BEHIND]
    witness.trouble = None
    outside.clock.pass_(minutes=1)
    outside.sign()
    runner.work("witness")
    runner.tick()
    assert outside.events() == [BEHIND, CAUGHT_UP]


def test_a_bot_that_was_down_does_not_cry_wolf(outside):
    """Entries that are old because no bot ran are brought, not bewailed."""
    outside.append()
    outside.clock.pass_(hours=8)
    copy = Recorder()
    runner = outside.runner(copy, alarm_after=timedelta(minutes=5))
    runner.tick()
    runner.work("recorder")
    outside.clock.pass_(minutes=1)
    runner.tick()
    assert outside.events() == []


def test_a_copy_that_hangs_without_an_error_is_said(outside):
    """Also a place that never answers, and so never fails, is behind."""
    outside.append()
    runner = outside.runner(Recorder(), alarm_after=timedelta(minutes=5))
    outside.clock.pass_(minutes=6)
    runner.tick()
    assert outside.events() == [BEHIND]


def test_the_lag_can_be_read_by_whoever_does_not_run_it(outside):
    """The command line sees the same lag as the bot, but for the reason."""
    runner = outside.runner(Recorder(trouble="It is down."))
    outside.append(3)
    outside.clock.pass_(seconds=70)
    runner.work("recorder")
    (mine,), (theirs,) = runner.lag(outside.clock()), lags(outside.database, ["recorder"], now=outside.clock())
    assert (
        (mine.entries, mine.seconds, mine.failures) == (theirs.entries, theirs.seconds, theirs.failures) == (3, 70, 1)
    )
    assert mine.why == "It is down."


def test_a_reset_brings_the_whole_log_again(outside):
    """A place that was replaced on purpose is filled from the first entry on."""
    outside.append(4)
    outside.sign()
    outside.runner(Recorder()).work("recorder")
    with outside.database.write() as session:
        assert reset(session, "recorder") == 3
        assert reset(session, "unknown") == -1
    fresh = Recorder()
    outside.runner(fresh).work("recorder")
    assert has_all(outside, fresh)
    assert len(fresh.heads) == 1


# ---------------------------------------------------------------------------------------------- from the policy


@dataclass
class Rule:
    """What the policy says of a copy."""

    kind: str
    settings: dict[str, str]


@dataclass
class Rules:
    """What the policy says of the log."""

    copies: dict[str, Rule]
    origin: str = "log.example.com/orders"


def test_every_problem_of_the_copies_is_named_at_once(tmp_path: Path):
    """What is wrong with one copy does not hide what is wrong with another."""
    rules = Rules(
        {
            "good": Rule("file", {"path": str(tmp_path / "copy")}),
            "bad": Rule("file", {"path": "relative"}),
            "standby": Rule("postgresql", {"url_env": "NOT_SET"}),
            "odd": Rule("carrier-pigeon", {}),
            "thread": Rule("file", {"path": str(tmp_path / "other")}),
        }
    )
    with pytest.raises(CopyTrouble) as found:
        build_copies(rules, {})
    lines = str(found.value).splitlines()
    assert len(lines) == 4
    assert all(any(name in line for line in lines) for name in ("bad", "NOT_SET", "odd", "thread"))
    rules.copies = {"good": rules.copies["good"]}
    assert list(build_copies(rules, {})) == ["good"]


@pytest.mark.parametrize("kind", sorted(FOLLOWERS))
def test_every_kind_declares_its_settings_and_no_secret_among_them(kind):
    """The registry's contract: names of settings, each needed or not; a secret is named by its variable only."""
    known = FOLLOWERS[kind]
    assert all(isinstance(name, str) and isinstance(needed, bool) for name, needed in known.keys.items())
    assert not {name for name in known.keys if any(word in name for word in ("password", "token", "secret"))} - {
        name for name in known.keys if name.endswith("_env")
    }
    assert "kind" not in known.keys
    assert "required" not in known.keys
