"""A trial of a level is on record before anything is made, says what it saw, and leaves nothing behind.

Against a real OpenBao and a real PostgreSQL. What a trial finds wrong is in ``e2e/test_check.py``.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import psycopg
import pytest

from storage.audit import SYSTEM, Actor, append, read_entries
from storage.database import Database, DatabaseDown
from workflows import trial
from workflows.engines import ENGINES, database_rights
from workflows.errors import Refused, Unavailable, VaultRefused
from workflows.trial import SEEN, TRIED, TRY, try_level

pytest_plugins = ["real_parts"]

WHO = Actor("", "shell:ada")
DATABASE = ENGINES["database"]


@pytest.fixture
def account(real):
    """An account with the reading level, and a writing one that needs more custodians, as a policy has them."""
    read = SimpleNamespace(name="read", settings=real.read.settings, quorum=1, capture_source=None)
    write = SimpleNamespace(name="write", settings=real.write.settings, quorum=2, capture_source=None)
    return SimpleNamespace(name="orders-db", levels={"read": read, "write": write})


@pytest.fixture
def try_it(vault, account):
    """Try the reading level, with a log."""
    return lambda log: try_level(vault, log, account, account.levels["read"], WHO)


def told(database):
    """The entries of the log, as event and data."""
    with database.read() as session:
        return [(record.event, record.data) for record in read_entries(session)]


@pytest.fixture
def left(real):
    """The logins and leases of trials that are there; other tests leave leases of their own."""
    others = real.vault().leases("database/creds/orders-ro")

    def look():
        with psycopg.connect(real.pg.dsn) as server:
            logins = server.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'check-%'").fetchall()
        return [*logins, *(real.vault().leases("database/creds/orders-ro") - others)]

    return look


def test_a_trial_is_on_record_before_vault_is_called(database, try_it, left, monkeypatch):
    """When the credential is made, the entry that says so stands already."""
    seen = []
    issue = type(DATABASE).issue
    monkeypatch.setattr(type(DATABASE), "issue", lambda *given: (seen.append(told(database)), issue(*given))[1])
    said = try_it(database)
    ((event, data),) = seen[0]
    assert (event, data["account"], data["level"], data["seconds"]) == (TRY, "orders-db", "read", 60)
    assert "it logs in" in said
    (_, (event, data)) = told(database)
    assert (event, data["passed"], data["said"]) == (TRIED, True, None)
    assert data["seen"] == list(said)
    assert left() == []


def test_without_the_log_nothing_is_made(real, try_it):
    """No entry, no credential: with the database down Vault is not called."""
    before = real.bao.call("LIST", "auth/token/accessors")["data"]["keys"]
    with pytest.raises(DatabaseDown):
        try_it(Database("postgresql://nobody@127.0.0.1:9/none"))
    assert real.bao.call("LIST", "auth/token/accessors")["data"]["keys"] == before


def test_a_crash_in_the_middle_of_a_trial_leaves_nothing(real, database, try_it, left, monkeypatch):
    """Nobody takes it back, and Vault ends it at its time; what was made is on record."""

    class Crash(BaseException):
        """The process is gone."""

    def crash(*_):
        raise Crash

    monkeypatch.setattr(trial, "LIFE", timedelta(seconds=2))
    monkeypatch.setattr(database_rights, "rehearse", crash)
    with pytest.raises(Crash):
        try_it(database)
    assert [event for event, _ in told(database)] == [TRY]
    assert real.until(lambda: left() == [])


def test_a_trial_that_fails_is_taken_back_all_the_same(database, try_it, left, monkeypatch):
    """The target stops answering while it is tried: the entry says so, and the credential is gone."""

    def fail(*_):
        raise Unavailable("It does not answer any more.")

    monkeypatch.setattr(database_rights, "rehearse", fail)
    with pytest.raises(Unavailable, match="does not answer any more"):
        try_it(database)
    _, (event, data) = told(database)
    assert (event, data["passed"], data["said"]) == (TRIED, False, "It does not answer any more.")
    assert data["lease"]
    assert left() == []


def test_a_level_that_vault_does_not_give_is_told_with_its_entry(vault, database, account):
    """A token role that is not there is a failed trial, not a missing entry."""
    settings = SimpleNamespace(
        engine="database", token_role="bg-nothing", options=account.levels["read"].settings.options
    )
    with pytest.raises(VaultRefused):
        try_level(
            vault,
            database,
            account,
            SimpleNamespace(name="read", settings=settings, quorum=1, capture_source=None),
            WHO,
        )
    assert [(event, data.get("passed")) for event, data in told(database)] == [(TRY, None), (TRIED, False)]


def test_the_log_holds_no_secret_of_a_trial(database, try_it, monkeypatch, caplog):
    """Neither the password nor the child token is in an entry or in the log file."""
    secrets = []
    issue = type(DATABASE).issue

    def noting(self, vault, child, options, wish):
        credential = issue(self, vault, child, options, wish)
        secrets.extend((credential.password, child.token, child.accessor))
        return credential

    monkeypatch.setattr(type(DATABASE), "issue", noting)
    try_it(database)
    assert len(secrets) == 3
    for secret in secrets:
        assert secret not in str(told(database))
        assert secret not in caplog.text


def test_what_a_trial_did_must_come_back_from_its_source(database, vault, account, left, monkeypatch):
    """A level that a source records passes only when the source tells of this very trial, and says so."""
    level = account.levels["read"]
    level.capture_source = "orders-pg"
    monkeypatch.setattr(trial, "_COMES_BACK", 0.3)
    with pytest.raises(Refused, match="did not come back from orders-pg"):
        try_level(vault, database, account, level, WHO)
    assert [data["passed"] for event, data in told(database) if event == TRIED] == [False]

    def issue(*words):
        """What the recorder does when the source's lines come in."""
        name = [data["name"] for event, data in told(database) if event == TRY][-1]
        with database.write() as session:
            append(session, event=SEEN, at=datetime.now(UTC), actor=SYSTEM, data={"name": name, "source": "orders-pg"})
        return real_end(*words)

    real_end = trial._end
    monkeypatch.setattr(trial, "_end", issue)
    assert any("orders-pg has recorded it" in seen for seen in try_level(vault, database, account, level, WHO))
    assert not left()
