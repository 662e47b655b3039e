"""Does no credential come out before the required copies have what led to it, and by itself once they do?

The copy is a real file on a volume that is taken away and brought back; Vault, PostgreSQL and the databases are real.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest
from counter import CARL, CHEN, RITA

from bot import entries
from storage.audit import check
from storage.followers import CopyRunner, RequiredCopies
from storage.followers.file import FileCopy
from storage.models import State
from workflows import holding, sweep
from workflows.errors import Conflict, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LONG = 30.0  # seconds within which what comes by itself must have come
WITHIN = timedelta(seconds=20)


class Archive:
    """The required copy, a file on a volume that can be away, and who brings it the log."""

    def __init__(self, counter, folder: Path) -> None:
        self.counter = counter
        self.volume, self.away = folder / "volume", folder / "volume, away"
        self.copy = FileCopy("archive", self.volume / "breakglass.copy", "log")
        self.runner = CopyRunner(
            counter.database, {"archive": self.copy}, now=lambda: counter.now, required=("archive",)
        )
        self.away.mkdir()

    def mount(self) -> None:
        """Bring the volume back, and have the copy tried again without its pause, until it has everything."""
        self.away.rename(self.volume)
        self.counter.pass_time(seconds=10)
        until = time.monotonic() + LONG
        while time.monotonic() < until:
            self.runner.tick()
            (lag,) = self.runner.lag(self.counter.now)
            if not lag.entries:
                return
            if lag.retry_at is not None and lag.retry_at > self.counter.now:
                # A try that had begun before failed after the clock was moved, and nobody else moves it.
                self.counter.now = lag.retry_at
            time.sleep(0.02)

    def unmount(self) -> None:
        """Take the volume away."""
        self.volume.rename(self.away)

    def required(self, within: timedelta = WITHIN) -> RequiredCopies:
        """Return what asks for it."""
        return RequiredCopies(self.counter.database, ("archive",), within, self.runner)

    def events(self, row) -> list[str]:
        """Return which of a request's entries stand in the copy."""
        there = {item.body for item in self.copy.read()}
        return [record.event for record in self.counter.log_of(row) if record.body in there]


@pytest.fixture
def archive(counter, tmp_path) -> Iterator[Archive]:
    """A desk that requires a copy whose volume is away."""
    archive = Archive(counter, tmp_path)
    counter.required = archive.required()
    counter.database.woken.append(archive.runner.wake)
    archive.runner.start()
    yield archive
    counter.hold_nobody()
    archive.runner.stop()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads, as listeners have them."""
    with ThreadPoolExecutor(8) as pool:
        yield pool


def reveal(counter, row):
    """Press Reveal at the newest version."""
    return counter.reveal(RITA, row.id, counter.case(row.id).request.version, now=counter.now)


class Held:
    """Who is told that somebody is held."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self._told = threading.Event()

    def __call__(self, names: tuple[str, ...]) -> None:
        """Be told."""
        self.names = names
        self._told.set()

    def wait(self) -> None:
        """Wait until somebody is held."""
        assert self._told.wait(LONG)


def hold(counter, pool, row):
    """Press Reveal and wait until it is held; returns the credential that is to come."""
    held = Held()
    coming = pool.submit(counter.issue, reveal(counter, row), now=counter.now, held=held)
    held.wait()
    assert held.names == ("archive",)
    return coming


def vault_is_empty(real) -> bool:
    """Whether no lease exists at Vault."""
    return not real.root_vault().leases("database/creds/orders-ro")


# ---------------------------------------------------------------------------------------------- with the copy there


def test_with_the_copy_there_nobody_notices(counter, archive):
    """The credential comes at once, nothing is said of waiting, and what led to it stood in the copy before."""
    archive.mount()
    row = counter.approved()
    seen = []
    open_child = counter.vault.open_child

    def look(*args, **kwargs):
        seen.extend(archive.events(row))
        return open_child(*args, **kwargs)

    counter.vault.open_child = look
    assert counter.show(row).username
    assert "credential:hold" not in counter.events(row)
    assert seen == ["request:open", "request:approve", "request:quorum", "credential:reveal"]


# ---------------------------------------------------------------------------------------------- with the copy down


def test_held_the_thread_says_why_and_the_credential_comes_by_itself(counter, archive, pool, real):
    """Down: nothing of Vault exists, and an entry names the copy. Back: the same Reveal gives a live credential."""
    row = counter.approved()
    coming = hold(counter, pool, row)
    assert counter.events(row)[-2:] == ["credential:reveal", "credential:hold"]
    case = counter.fresh(row)
    assert case.state is State.APPROVED
    assert case.grants[0].accessor is None
    assert vault_is_empty(real)
    line, _ = entries.line(counter.log_of(row)[-1], case, "orders-db, read")
    assert "`archive`" in line
    assert "comes by itself" in line
    assert not coming.done()
    archive.mount()
    credential = coming.result(LONG)
    real.connect(credential).close()
    assert counter.events(row)[-3:] == ["credential:hold", "credential:token", "credential:issue"]
    assert archive.events(row)[:4] == ["request:open", "request:approve", "request:quorum", "credential:reveal"]
    with counter.database.read() as session:
        assert check(session) is None


def test_a_revocation_meanwhile_is_done_at_once_and_for_good(counter, archive, pool, real):
    """A custodian revokes while the requester is held: the request ends then and there, and nothing comes after."""
    row = counter.approved()
    coming = hold(counter, pool, row)
    version = counter.case(row.id).request.version
    counter.revoke(CHEN, row.id, version, now=counter.now)
    assert counter.finish(row.id, now=counter.now)
    assert counter.fresh(row).state is State.ENDED
    with pytest.raises(Conflict, match="No credential was made"):
        coming.result(LONG)
    archive.mount()
    assert archive.runner.drain(LONG)
    assert counter.events(row)[-2:] == ["credential:revoke", "credential:end"]
    assert vault_is_empty(real)


def test_a_live_credential_is_revoked_at_once_while_the_copy_is_down(counter, archive, real):
    """What is out is taken back without waiting for any copy, and Vault confirms it."""
    archive.mount()
    row = counter.approved()
    credential = counter.show(row)
    archive.runner.drain(LONG)
    archive.unmount()
    counter.revoke(CARL, row.id, counter.case(row.id).request.version, now=counter.now)
    assert counter.finish(row.id, now=counter.now)
    assert counter.fresh(row).state is State.ENDED
    with pytest.raises(psycopg.OperationalError):
        real.connect(credential)
    archive.mount()
    assert archive.runner.drain(LONG)
    assert archive.events(row) == counter.events(row)


def test_after_its_time_it_is_given_up_and_can_be_pressed_again(counter, archive, pool, real):
    """In vain: the intent is abandoned on record, the person is told what is missing, and pressing again works."""
    counter.required = archive.required(timedelta(seconds=1))
    row = counter.approved()
    with pytest.raises(Unavailable, match=r"archive.*press the button again") as told:
        counter.issue(reveal(counter, row), now=counter.now)
    assert told.value.reason == "copy_behind"
    assert counter.events(row)[-3:] == ["credential:reveal", "credential:hold", "credential:abandon"]
    case = counter.fresh(row)
    assert case.state is State.APPROVED
    assert case.grants[0].ended_at is not None
    assert vault_is_empty(real)
    times = [record.at for record in counter.log_of(row)]
    assert times == sorted(times), "the entries tell when each thing happened"
    counter.required = archive.required()
    coming = hold(counter, pool, row)
    archive.mount()
    assert coming.result(LONG).username


def test_a_copy_that_nobody_runs_permits_nothing(counter, real):
    """A required copy of which nothing is known is missing, not "fine"."""
    counter.required = RequiredCopies(counter.database, ("never heard of",), timedelta(milliseconds=50))
    row = counter.approved()
    with pytest.raises(Unavailable, match="never heard of"):
        counter.issue(reveal(counter, row), now=counter.now)
    assert vault_is_empty(real)


def test_a_copy_that_has_only_a_part_permits_nothing(counter, archive, pool):
    """The approval outside is not enough: the intent to open it must be there as well."""
    archive.mount()
    row = counter.approved()
    assert archive.runner.drain(LONG)
    archive.unmount()
    coming = hold(counter, pool, row)
    assert archive.counter.required.behind(counter.case(row.id).request.last_seq) == ("archive",)
    archive.mount()
    assert coming.result(LONG).username


# ---------------------------------------------------------------------------------------------- show again


def test_show_again_keeps_the_old_credential_while_it_is_held(counter, archive, pool, real):
    """In the middle of an incident a copy that is down does not take away the access that is out."""
    archive.mount()
    row = counter.approved()
    old = counter.show(row)
    archive.runner.drain(LONG)
    archive.unmount()
    coming = hold(counter, pool, row)
    real.connect(old).close()
    archive.mount()
    fresh = coming.result(LONG)
    assert fresh.username != old.username
    real.connect(fresh).close()
    with pytest.raises(psycopg.OperationalError):
        real.connect(old)


def test_show_again_in_vain_says_so_and_changes_nothing(counter, archive, real):
    """After its time the thread says that no fresh one is made; the old one stays, and the request as it was."""
    archive.mount()
    row = counter.approved()
    old = counter.show(row)
    archive.runner.drain(LONG)
    archive.unmount()
    counter.required = archive.required(timedelta(seconds=1))
    with pytest.raises(Unavailable, match="archive"):
        counter.issue(reveal(counter, row), now=counter.now)
    assert counter.events(row)[-3:] == ["credential:reveal", "credential:hold", "credential:hold"]
    case = counter.fresh(row)
    assert case.state is State.ACTIVE
    line, _ = entries.line(counter.log_of(row)[-1], case, "orders-db, read")
    assert "is not made" in line
    assert "earlier one stays" in line
    real.connect(old).close()


def test_expiry_does_not_wait_for_a_copy(counter, archive, pool, real):
    """The clock ends a credential whose requester is held for a fresh one."""
    archive.mount()
    row = counter.approved()
    old = counter.show(row)
    archive.runner.drain(LONG)
    archive.unmount()
    coming = hold(counter, pool, row)
    counter.pass_time(minutes=16)
    sweep.tick(counter, now=counter.now)
    assert counter.fresh(row).state is State.ENDED
    with pytest.raises(Conflict):
        coming.result(LONG)
    with pytest.raises(psycopg.OperationalError):
        real.connect(old)


# ---------------------------------------------------------------------------------------------- the clock


def test_the_tick_does_not_clean_up_after_somebody_who_is_held(counter, archive, pool):
    """Within the stated time a held intent is neither abandoned nor lapsed, however often the tick looks."""
    row = counter.approved()
    coming = hold(counter, pool, row)
    counter.pass_time(seconds=WITHIN.total_seconds() + counter.patience.total_seconds() - 15)
    sweep.tick(counter, now=counter.now)
    assert counter.events(row)[-1] == "credential:hold"
    archive.mount()
    assert coming.result(LONG).username


class Died(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("is_held", [False, True])
def test_the_tick_cleans_up_after_a_bot_that_died(counter, archive, is_held):
    """The intent of a dead bot is abandoned: after the patience, and after the time that a copy is waited for if it was
    held; then it can be pressed again.
    """
    row = counter.approved()

    def die(names):
        raise Died

    intent = reveal(counter, row)
    if is_held:
        with pytest.raises(Died):
            counter.issue(intent, now=counter.now, held=die)
    wait = counter.patience.total_seconds() + (WITHIN.total_seconds() if is_held else 0)
    counter.pass_time(seconds=wait - 1)
    sweep.tick(counter, now=counter.now)
    assert counter.events(row)[-1] == ("credential:hold" if is_held else "credential:reveal")
    counter.pass_time(seconds=3)  # it is looked at every two seconds
    sweep.tick(counter, now=counter.now)
    assert counter.events(row)[-1] == "credential:abandon"
    archive.mount()
    assert counter.show(row).username


def test_a_bot_that_is_stopped_lets_go_of_who_is_held(counter, archive, pool):
    """A stop does not wait out the time: whoever is held is told, and the intent is abandoned."""
    row = counter.approved()
    coming = hold(counter, pool, row)
    counter.hold_nobody()
    with pytest.raises(Unavailable, match="being stopped"):
        coming.result(LONG)
    assert counter.events(row)[-1] == "credential:abandon"


def test_only_so_many_are_held_and_the_others_are_told(counter, archive, pool, monkeypatch):
    """Held clicks never take the threads that a Revoke needs: one too many is refused at once."""
    counter._places = threading.BoundedSemaphore(1)
    first, second = counter.approved(), counter.approved()
    coming = hold(counter, pool, first)
    with pytest.raises(Unavailable, match="as many wait"):
        counter.issue(reveal(counter, second), now=counter.now)
    assert counter.events(second)[-1] == "credential:abandon"
    archive.mount()
    assert coming.result(LONG).username
    assert holding._MOST_HELD < 64
