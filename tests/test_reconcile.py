"""What is live is what is on record; what is not is revoked where it is ours, and alarmed once.

Against a real OpenBao and a real PostgreSQL.
"""

from __future__ import annotations

import json
import secrets
import shutil
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import psycopg
import pytest
from counter import ADA, CARL, PATIENCE, RITA, counter_at
from real_parts import Real, level_for
from sqlmodel import select

from bot import metrics, views
from bot.demo.parts import OpenBao, Postgres
from bot.demo.vault_setup import prepare_target, set_up
from storage.database import Database
from storage.models import Alarm, Entry, Feed, Grant, State
from workflows import sweep
from workflows.engines import ENGINES, Wish
from workflows.reconcile import ALARM, CLEAR, Reconciler
from workflows.replay import check_database
from workflows.trial import TRY

PREFIX = "database/creds/orders-ro"
MINUTE = timedelta(minutes=1)


@dataclass
class Rounds:
    """A reconciler at the counter's desk, and what it said."""

    counter: object
    reconciler: Reconciler

    def make(self, **after):
        """Let time pass and make a round."""
        self.counter.pass_time(**after)
        return self.reconciler.round(now=self.counter.now)

    def said(self, event=ALARM, *, about=""):
        """Return the entries about something."""
        records = [r for r in self.counter.log_of() if r.event == event]
        return [r for r in records if about in str(r.data)]


@pytest.fixture
def rounds(counter):
    """A reconciler at the counter's desk."""
    return Rounds(counter, Reconciler(counter))


@contextmanager
def login_by_hand(real, name):
    """A login at the target that Vault does not know."""
    with psycopg.connect(real.pg.dsn, autocommit=True) as server:
        server.execute(f"CREATE ROLE \"{name}\" LOGIN PASSWORD 'by hand'")
        try:
            yield server
        finally:
            server.execute(f'DROP ROLE IF EXISTS "{name}"')


@contextmanager
def sealed(real):
    """A Vault that answers nobody."""
    real.bao.seal()
    try:
        yield
    finally:
        real.bao.unseal()


@contextmanager
def target_down(real):
    """A target that answers nobody."""
    real.pg.stop()
    try:
        yield
    finally:
        real.pg.start()


def opened(counter, level="read"):
    """Return a request whose credential is out, and the credential."""
    row = counter.approved(level=level)
    return row, counter.show(row)


# -------------------------------------------------------------------------------------- what nothing on record explains


def test_what_is_on_record_is_left_alone(counter, rounds):
    """An active access is neither revoked nor alarmed, however often is looked, until its time is over."""
    row, credential = opened(counter)
    for _ in range(4):
        made = rounds.make(minutes=2)
        assert [found for found in made.found if credential.username in found.name] == []
        assert made.lost == []
    assert counter.fresh(row).state is State.ACTIVE
    assert credential.lease_id in counter.vault.leases(PREFIX)
    assert rounds.said(about=credential.lease_id) == []


def test_a_lease_that_no_request_explains_is_revoked_and_alarmed(counter, rounds, real):
    """Read past the record (a stolen token, a crash), it lives for one opening at the most, and security is called."""
    credential, grant, _ = real.open(counter.vault, name="BG-2XYZ")
    with real.connect(credential) as session:
        assert rounds.make().found != []
        assert session.execute("SELECT 1").fetchone() == (1,)  # it may be an opening
        rounds.make(seconds=PATIENCE.total_seconds() + 1)
        with pytest.raises(psycopg.Error):
            session.execute("SELECT 1")
    (alarm,) = rounds.said(about=credential.lease_id)
    assert alarm.data == {"kind": "lease", "place": PREFIX, "count": 1, "names": [credential.lease_id], "revoked": True}
    assert real.gone(counter.vault, grant) or credential.lease_id not in counter.vault.leases(PREFIX)
    assert not real.login_exists(credential.username)
    # Gone is gone: nothing more is said of it.
    rounds.make(minutes=1)
    assert len(rounds.said(about=credential.lease_id)) == 1
    assert rounds.said(CLEAR, about=credential.lease_id) == []


def test_after_a_long_silence_a_stray_lease_is_seen_at_the_first_look(counter, rounds, real):
    """A bot that comes back after a while goes by Vault's clock, and does not wait once more."""
    credential, _, _ = real.open(counter.vault)
    rounds.make(minutes=3)
    assert [alarm.data["revoked"] for alarm in rounds.said(about=credential.lease_id)] == [True]


def test_a_lease_that_outlived_its_record_is_no_ones(counter, rounds, real):
    """On record as ended and live in Vault (a restored snapshot): it is revoked as any other stray."""
    row, credential = opened(counter)
    (grant,) = counter.fresh(row).grants
    with counter.database.write() as session:
        stored = session.get(Grant, grant.id)
        stored.ended_at = counter.now
        session.add(stored)
    rounds.make(minutes=3)
    assert [alarm.data["revoked"] for alarm in rounds.said(about=credential.lease_id)] == [True]
    assert not real.login_exists(credential.username)


def test_with_the_target_down_a_stray_lease_is_tried_until_it_is_gone(counter, rounds, real):
    """What cannot be revoked is said at once, once, with the reason; when it is gone, that is said, too."""
    credential, _, _ = real.open(counter.vault)
    with target_down(real):
        rounds.make(minutes=3)
        (alarm,) = rounds.said(about=credential.lease_id)
        assert alarm.data["revoked"] is False
        assert "target" in alarm.data["why"]
        rounds.make(minutes=1)
        assert len(rounds.said(about=credential.lease_id)) == 1
    rounds.make(minutes=1)
    assert len(rounds.said(about=credential.lease_id)) == 1
    assert len(rounds.said(CLEAR, about=credential.lease_id)) == 1
    assert not real.login_exists(credential.username)


def test_an_opening_under_way_is_not_disturbed(counter, rounds, real):
    """Between the read and the record nobody takes the lease away; when it came to nothing, the tick ends it."""
    row = counter.approved()
    intent = counter.reveal(RITA, row.id, counter.fresh(row).request.version, now=counter.now)
    child = counter.vault.open_child(
        real.read.settings.token_role, intent.ttl, display_name=row.id, metadata={"request": row.id}
    )
    with counter.turn(row.id, now=counter.now) as turn:
        (grant,) = turn.grants()
        grant.accessor, grant.accessor_at = child.accessor, counter.now
        turn.session.add(grant)
    options = real.read.settings.options
    credential = ENGINES["database"].issue(counter.vault, child, options, Wish(row.id, RITA.person))
    rounds.make()
    rounds.make(seconds=PATIENCE.total_seconds() - 1)
    assert credential.lease_id in counter.vault.leases(PREFIX)
    assert rounds.said() == []
    counter.pass_time(seconds=2)
    sweep.tick(counter, now=counter.now)
    assert credential.lease_id not in counter.vault.leases(PREFIX)
    rounds.make(minutes=1)
    assert rounds.said(about=row.id.lower()) == []


def test_an_emergency_login_that_no_request_explains_is_alarmed(counter, rounds, real):
    """A login with our mark that Vault does not know is told once, again after an hour, and when it is gone."""
    name = f"bg-9zzz-{secrets.token_hex(4)}"
    with login_by_hand(real, name) as server:
        rounds.make()
        assert rounds.said(about=name) == []  # it may be on its way out
        for _ in range(3):
            rounds.make(minutes=1)
        (alarm,) = rounds.said(about=name)
        assert alarm.data["kind"] == "identity"
        assert alarm.data["place"] == f"127.0.0.1:{real.pg.port}"
        rounds.make(minutes=61)
        assert len(rounds.said(about=name)) == 2
        assert rounds.said(CLEAR, about=name) == []
        server.execute(f'DROP ROLE "{name}"')
        rounds.make(minutes=1)
    assert len(rounds.said(CLEAR, about=name)) == 1
    with counter.database.read() as session:
        assert [row for row in session.exec(select(Alarm)) if row.name == name] == []


def test_a_trial_under_way_is_not_disturbed(counter, rounds, real):
    """What "breakglass check" makes is on record, and is left alone for its minute; after it nothing may be left."""
    counter.record(TRY, ADA, {"name": "check-0a1b2c3d"}, now=counter.now)
    credential, _, _ = real.open(counter.vault, name="check-0a1b2c3d")
    rounds.make()
    rounds.make(seconds=50)
    assert credential.lease_id in counter.vault.leases(PREFIX)
    rounds.make(seconds=20)
    assert credential.lease_id not in counter.vault.leases(PREFIX)
    assert len(rounds.said(about=credential.lease_id)) == 1


def test_a_login_named_after_an_open_request_that_is_not_its_own_is_alarmed(counter, rounds, real):
    """Attack: a second login hides behind the name of a request that has one."""
    row, credential = opened(counter)
    name = f"{row.id.lower()}-{secrets.token_hex(4)}"
    with login_by_hand(real, name):
        rounds.make()
        rounds.make(minutes=1)
        assert len(rounds.said(about=name)) == 1
    assert rounds.said(about=credential.username) == []


# ------------------------------------------------------------------------------------------------ what is gone too soon


@pytest.mark.parametrize("how", ["the lease", "the token"])
def test_what_was_revoked_in_vault_ends_its_request_and_no_other(counter, rounds, real, how):
    """Somebody revokes in Vault: that request ends and says why; another of the same person and account goes on."""
    first, lost = opened(counter)
    second, kept = opened(counter)
    root = real.root_vault()
    if how == "the lease":
        root.revoke_lease(lost.lease_id, sync=True)
    else:
        (grant,) = counter.fresh(first).grants
        root.revoke_accessor(grant.accessor)
        assert real.until(lambda: lost.lease_id not in root.leases(PREFIX))
    made = rounds.make(seconds=1)
    assert made.lost == [first.id]
    assert counter.fresh(first).state is State.ENDING
    sweep.tick(counter, now=counter.now)
    case = counter.fresh(first)
    assert (case.state, case.request.ended_by, case.request.ended_by_user) == (State.ENDED, "lost", None)
    assert counter.events(first)[-2:] == ["credential:lost", "credential:end"]
    entry = counter.log_of(first)[-2]
    assert entry.data["gone"] == ("lease" if how == "the lease" else "token and its lease")
    assert "Vault no longer has the" in views.post([entry], case, counter.policy).text
    # The other one lives, and ends by itself.
    assert rounds.make(seconds=1).lost == []
    assert counter.fresh(second).state is State.ACTIVE
    with real.connect(kept) as session:
        assert session.execute("SELECT 1").fetchone() == (1,)
    counter.release(RITA, second.id, counter.fresh(second).request.version, now=counter.now)
    assert counter.finish(second.id, now=counter.now)
    with counter.database.read() as session:
        assert list(check_database(session, now=counter.now).findings) == []


def test_a_credential_without_a_lease_is_lost_with_its_token(counter, rounds, real):
    """Of an engine without leases the token is what is looked at."""
    row, _ = opened(counter)
    (grant,) = counter.fresh(row).grants
    with counter.database.write() as session:
        stored = session.get(Grant, grant.id)
        stored.lease_id = None
        session.add(stored)
    assert rounds.make(seconds=1).lost == []
    assert rounds.make(minutes=2).lost == []
    assert rounds.said(about=PREFIX) == []  # a lease that came with it, and is not known, is not a stranger's
    real.root_vault().revoke_accessor(grant.accessor)
    assert rounds.make(seconds=1).lost == [row.id]
    assert counter.log_of(row)[-1].data["gone"] == "token"


def test_just_before_its_end_nothing_is_lost(counter, rounds, real):
    """Vault counts whole seconds: what it ends a moment early has not been revoked by anybody."""
    row, credential = opened(counter)
    real.root_vault().revoke_lease(credential.lease_id, sync=True)
    assert rounds.make(minutes=14, seconds=56).lost == []
    assert counter.fresh(row).state is State.ACTIVE


def test_ends_of_overlapping_grants_leave_each_other_alone(counter, rounds, real):
    """One person has the same access twice: the end of either, and any round, leaves the other."""
    first, one = opened(counter)
    second, other = opened(counter)
    counter.release(RITA, first.id, counter.fresh(first).request.version, now=counter.now)
    rounds.make(minutes=1)
    assert counter.finish(first.id, now=counter.now)
    rounds.make(minutes=1)
    rounds.make(minutes=1)
    assert not real.login_exists(one.username)
    with real.connect(other) as session:
        assert session.execute("SELECT 1").fetchone() == (1,)
    assert counter.fresh(second).state is State.ACTIVE
    assert rounds.said(about="orders-ro/") == []


def test_what_we_took_back_for_a_fresh_one_is_not_lost(counter, rounds):
    """The bot dies in "Show again" after the old credential ended: the request stays, and the button still works."""
    row, old = opened(counter)
    counter.reveal(RITA, row.id, counter.fresh(row).request.version, now=counter.now)
    (grant,) = counter.fresh(row).grants
    assert counter._take_back(grant)
    for _ in range(3):
        assert rounds.make(minutes=1).lost == []
    assert counter.fresh(row).state is State.ACTIVE
    fresh = counter.show(row)
    assert fresh.lease_id != old.lease_id
    assert rounds.make(minutes=1).lost == []


def test_a_grant_whose_time_is_over_is_the_clocks(counter, rounds, real):
    """Vault ends a credential at its time; that is no loss."""
    row, credential = opened(counter)
    real.root_vault().revoke_lease(credential.lease_id, sync=True)
    assert rounds.make(minutes=15).lost == []
    sweep.tick(counter, now=counter.now)
    assert counter.fresh(row).request.ended_by == "expire"


# ------------------------------------------------------------------------------------------------- nothing is concluded


def test_from_a_silent_vault_nothing_is_concluded(counter, rounds, real):
    """Sealed: no grant is lost, nothing is called gone; after minutes the silence is an alarm, and its end is said."""
    row, credential = opened(counter)
    stray, _, _ = real.open(counter.vault)
    rounds.make()
    with sealed(real):
        assert rounds.make(minutes=1).lost == []
        assert counter.fresh(row).state is State.ACTIVE
        assert rounds.said(about="unreadable") == []
        rounds.make(minutes=5)
        (alarm,) = rounds.said(about="'Vault'")
        assert alarm.data["kind"] == "unreadable"
        assert alarm.data["why"] == "Vault is sealed or not ready."
        assert alarm.data["seconds"] >= 300
        rounds.make(minutes=1)
        assert len(rounds.said(about="'Vault'")) == 1
    rounds.make(minutes=1)
    assert len(rounds.said(CLEAR, about="'Vault'")) == 1
    assert len(rounds.said(about=stray.lease_id)) == 1
    assert counter.fresh(row).state is State.ACTIVE
    assert credential.lease_id in counter.vault.leases(PREFIX)


def test_a_right_that_the_bot_lacks_is_an_alarm(counter, rounds, real):
    """A Vault policy without a level's leases leaves the bot blind: that is said, and is not "nothing is there"."""
    row, _ = opened(counter)
    policy = real.bao.call("GET", "sys/policies/acl/breakglass-bot")["data"]["policy"]
    blind = policy.replace(f"sys/leases/lookup/{PREFIX}", "sys/leases/lookup/nothing")
    real.bao.call("PUT", "sys/policies/acl/breakglass-bot", {"policy": blind})
    try:
        for _ in range(7):
            assert rounds.make(minutes=1).lost == []
        (alarm,) = rounds.said(about="unreadable")
        assert alarm.data["place"] == PREFIX
        assert "permission denied" in alarm.data["why"]
    finally:
        real.bao.call("PUT", "sys/policies/acl/breakglass-bot", {"policy": policy})
    rounds.make(minutes=1)
    assert len(rounds.said(CLEAR, about="unreadable")) == 1
    assert counter.fresh(row).state is State.ACTIVE


def test_a_target_that_cannot_be_looked_at_is_an_alarm_after_minutes(counter, rounds, real):
    """With PostgreSQL down nobody is said to be gone from it, and after five minutes people know that nobody sees."""
    place = f"127.0.0.1:{real.pg.port}"
    name = f"bg-9zzz-{secrets.token_hex(4)}"
    with login_by_hand(real, name):
        rounds.make()
        rounds.make(minutes=1)
    real.pg.stop()
    try:
        rounds.make(minutes=1)
        rounds.make(minutes=4)
        assert rounds.said(about="unreadable") == []
        rounds.make(minutes=1)
        (alarm,) = rounds.said(about="unreadable")
        assert alarm.data["place"] == place
        assert rounds.said(CLEAR) == []
    finally:
        real.pg.start()
    rounds.make(minutes=1)
    assert {clear.data["kind"] for clear in rounds.said(CLEAR, about=place)} == {"identity", "unreadable"}


# ------------------------------------------------------------------------------------------------------------ the turn


def test_several_bots_make_one_round_a_minute(counter, database_url):
    """Eight bots that look at the same moment make one round, and the next one only when the minute is over."""
    databases = [Database(database_url) for _ in range(8)]
    made = []
    barrier = threading.Barrier(8)

    def look(database):
        desk = type(counter)(database, counter.policy, counter.people, counter.vault, team=counter.team)
        reconciler = Reconciler(desk)
        barrier.wait()
        made.append(reconciler.tick(now=counter.now))

    threads = [threading.Thread(target=look, args=[database]) for database in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for database in databases:
        database.close()
    assert len(made) == 8
    assert len([one for one in made if one is not None]) == 1
    one = Reconciler(counter)
    assert one.tick(now=counter.now + timedelta(seconds=59)) is None
    assert one.tick(now=counter.now + timedelta(seconds=60)) is not None


def test_a_bot_that_died_in_its_round_holds_up_nobody(counter):
    """The claim of a process that is not there any more is free; the next round comes with the next minute."""
    with counter.database.write() as session:
        session.add(
            Feed(
                follower="reconcile",
                request_id="*",
                seq=-1,
                holder="elsewhere/1/2/3",
                held_until=counter.now + timedelta(minutes=5),
                retry_at=counter.now,
            )
        )
    reconciler = Reconciler(counter)
    assert reconciler.tick(now=counter.now) is None
    assert reconciler.tick(now=counter.now + timedelta(minutes=5)) is not None


def test_rounds_that_fail_and_what_is_alarmed_are_numbers(counter, rounds, real, monkeypatch):
    """A monitoring system sees that nobody can reconcile, and how many alarms stand."""
    reconciler = Reconciler(counter)

    def number(name):
        text = metrics.read(counter.database, None, now=counter.now)
        (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
        return line.rpartition(" ")[2]

    with monkeypatch.context() as broken:
        broken.setattr(reconciler, "round", lambda **_: 1 / 0)
        for _ in range(3):
            counter.pass_time(minutes=1)
            with pytest.raises(ZeroDivisionError):
                reconciler.tick(now=counter.now)
    assert number("breakglass_reconcile_failures") == "3"
    counter.pass_time(minutes=1)
    assert reconciler.tick(now=counter.now) is not None
    assert number("breakglass_reconcile_failures") == "0"
    before = int(number('breakglass_access_alarms{kind="identity"}'))
    with login_by_hand(real, f"bg-9zzz-{secrets.token_hex(4)}"):
        rounds.make(minutes=1)
        rounds.make(minutes=1)
        assert int(number('breakglass_access_alarms{kind="identity"}')) == before + 1


def test_one_target_with_an_unexpected_error_hides_no_other_and_is_not_taken_for_empty(
    counter, rounds, real, monkeypatch
):
    """A mistake of ours in one engine is an alarm like a target that is down; the leases are looked at all the same."""

    def broken(*_):
        raise ZeroDivisionError

    stray, _, _ = real.open(counter.vault)
    monkeypatch.setattr(type(ENGINES["database"]), "identities", broken)
    for _ in range(7):
        rounds.make(minutes=1)
    (alarm,) = rounds.said(about="unreadable")
    assert "unexpected error" in alarm.data["why"]
    assert len(rounds.said(about=stray.lease_id)) == 1


# --------------------------------------------------------------------------------------- endings while a target is down


def test_an_end_with_the_target_down_says_where_and_for_how_long(counter, real):
    """State ``ending``, custodians called with what is down and the next try; then the exposure is on record."""
    row, credential = opened(counter)
    counter.revoke(CARL, row.id, counter.fresh(row).request.version, now=counter.now)
    place = f"127.0.0.1:{real.pg.port}"
    with target_down(real):
        assert not counter.finish(row.id, now=counter.now)
        entry = counter.log_of(row)[-1]
        assert entry.event == "request:escalate"
        assert entry.data["at"] == [place]
        said = views.post([entry], counter.fresh(row), counter.policy).text
        assert place in said
        assert "tries again in 2 seconds" in said
        assert "Count it as usable" in said
    counter.pass_time(seconds=90)
    sweep.tick(counter, now=counter.now)
    case = counter.fresh(row)
    assert case.state is State.ENDED
    end = counter.log_of(row)[-1]
    assert 90 <= end.data["exposed_seconds"] <= 150
    assert "may have been usable for 1 minute" in views.post([end], case, counter.policy).text
    assert not real.login_exists(credential.username)


def test_a_quick_end_says_nothing_of_an_exposure(counter):
    """A credential that was gone within a second is not said to have been exposed."""
    row, _ = opened(counter)
    counter.release(RITA, row.id, counter.fresh(row).request.version, now=counter.now)
    assert counter.finish(row.id, now=counter.now)
    end = counter.log_of(row)[-1]
    assert end.data["exposed_seconds"] >= 1
    if end.data["exposed_seconds"] == 1:
        assert "usable" not in views.post([end], counter.fresh(row), counter.policy).text


def test_no_alarm_without_an_entry(counter, rounds, real):
    """What the rows remember as said stands in the log."""
    real.open(counter.vault)
    with login_by_hand(real, f"bg-9zzz-{secrets.token_hex(4)}"):
        for _ in range(3):
            rounds.make(minutes=1)
        with counter.database.read() as session:
            said = {row.name for row in session.exec(select(Alarm)) if row.said_at is not None}
            told = [record.data["names"] for record in rounds.said()]
            assert said <= {name for names in told for name in names}
            assert session.exec(select(Entry).where(Entry.event == ALARM)).first() is not None


# ---------------------------------------------------------------------------------------------- what Vault has given up


class _Raw(OpenBao):
    """A Vault in whose storage a test may write."""

    def _config(self) -> str:
        return super()._config() + "\nraw_storage_endpoint = true\n"


@pytest.fixture
def given_up(tmp_path, sqlite_template):
    """A desk at servers of its own, and how to make its Vault give up on a lease."""
    with Postgres(tmp_path / "postgres", durable=False) as pg, _Raw(tmp_path / "openbao", persistent=True) as bao:
        target = prepare_target(pg)
        read, write = level_for(pg, "orders-ro", "bg_orders_ro"), level_for(pg, "orders-rw", "bg_orders_rw")
        real = Real(pg, bao, target, read, write, set_up(bao.addr, bao.root_token, target, [read, write]))
        shutil.copyfile(sqlite_template, tmp_path / "breakglass.db")
        database = Database(f"sqlite:///{tmp_path / 'breakglass.db'}")

        def give_up(lease_id):
            # What Vault itself writes after its sixth try, ten minutes on; it is read when it is unsealed.
            where = f"sys/raw/sys/expire/id/{lease_id}"
            stored = json.loads(bao.call("GET", where)["data"]["value"])
            stored["revokeErr"] = "lease has consumed all retry attempts"
            bao.call("PUT", where, {"value": json.dumps(stored)})
            bao.seal()
            bao.unseal()
            assert real.until(lambda: lease_id in real.root_vault().irrevocable())

        yield counter_at(real, database), real, give_up
        database.close()


def test_what_vault_has_given_up_is_revoked_after_all(given_up):
    """An irrevocable lease is alarmed with its id, tried while its target is down, and gone once that is back."""
    counter, real, give_up = given_up
    rounds = Rounds(counter, Reconciler(counter))
    credential, _, _ = real.open(counter.vault)
    give_up(credential.lease_id)
    with target_down(real):
        rounds.make()
        (alarm,) = rounds.said(about="stuck")
        assert alarm.data["names"] == [credential.lease_id]
        assert alarm.data["revoked"] is False
    rounds.make(seconds=5)
    assert len(rounds.said(about="stuck")) == 1
    assert len(rounds.said(CLEAR, about="stuck")) == 1
    assert counter.vault.irrevocable() == frozenset()
    assert not real.login_exists(credential.username)


def test_an_end_that_vault_gave_up_finishes_by_itself(given_up):
    """A request whose lease became irrevocable while its target was down ends when the target is back."""
    counter, real, give_up = given_up
    row, credential = opened(counter)
    counter.revoke(CARL, row.id, counter.fresh(row).request.version, now=counter.now)
    with target_down(real):
        assert not counter.finish(row.id, now=counter.now)
        give_up(credential.lease_id)
        counter.pass_time(seconds=5)
        sweep.tick(counter, now=counter.now)
        assert counter.fresh(row).state is State.ENDING
    counter.pass_time(seconds=300)
    sweep.tick(counter, now=counter.now)
    assert counter.fresh(row).state is State.ENDED
    assert counter.vault.irrevocable() == frozenset()
    assert not real.login_exists(credential.username)
