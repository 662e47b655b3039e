"""A credential opens what its level allows, as long as it should, and is gone when it is said to be.

Against a real OpenBao and a real PostgreSQL.
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from workflows.engines import ENGINES, LevelSettings, Wish
from workflows.engines.database import Login
from workflows.errors import Invalid, Unavailable, VaultRefused

GOOD = {"mount": "database", "role": "orders-ro", "host": "127.0.0.1", "port": "5432", "database": "orders"}
DATABASE = ENGINES["database"]


def _refused(real, credential):
    """A new login with the credential is refused."""
    try:
        real.connect(credential).close()
    except psycopg.OperationalError:
        return True
    return False


def _is_cut(session):
    """The open session answers no more."""
    try:
        session.execute("SELECT 1")
    except psycopg.Error:
        return True
    return False


# ------------------------------------------------------------------------------------------------ what a level opens


def test_the_read_level_reads_the_orders_and_nothing_else(real, vault):
    """With a read credential the orders can be read; the cards, every write and every other database are refused."""
    credential, _, _ = real.open(vault, real.read)
    with real.connect(credential) as session:
        assert session.execute("SELECT count(*) FROM orders").fetchone() == (600,)
        assert session.execute("SELECT count(*) FROM stuck_orders").fetchone() == (40,)
        for refused in (
            "SELECT * FROM payment_cards",
            "UPDATE orders SET status = 'paid' WHERE id = 561",
            "DELETE FROM payments",
            "CREATE TABLE mine (id int)",
            "CREATE TEMPORARY TABLE mine (id int)",
            "SET ROLE bg_orders_rw",
            "CREATE ROLE accomplice LOGIN",
            "COPY orders TO PROGRAM 'true'",
            "SELECT pg_read_file('postgresql.conf')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute(refused)
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        real.connect(credential, dbname="postgres")


def test_the_write_level_repairs_orders_and_sees_no_cards(real, vault):
    """With a write credential an order can be put right; the cards and the customers stay out of reach."""
    credential, _, _ = real.open(vault, real.write)
    with real.connect(credential) as session:
        changed = session.execute("UPDATE orders SET note = 'retried' WHERE id = 561")
        assert changed.rowcount == 1
        for refused in ("SELECT * FROM payment_cards", "UPDATE customers SET name = 'x'", "DROP TABLE orders"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute(refused)


def test_the_login_names_its_request(real, vault):
    """Who looks at the target's sessions reads there which request they belong to."""
    credential, _, _ = real.open(vault, name="BG-4XYZ")
    assert credential.username.startswith("bg-4xyz-")
    with real.connect(credential) as session:
        assert session.execute("SELECT current_user").fetchone() == (credential.username,)


def test_a_display_name_cannot_become_sql(real, vault):
    """A request's name with quotes and statements in it ends up as a harmless user name."""
    credential, _, _ = real.open(vault, name='x" SUPERUSER; DROP TABLE orders; --')
    with real.connect(credential) as session:
        assert session.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone() == (False,)
        assert session.execute("SELECT count(*) FROM orders").fetchone() == (600,)


def test_a_login_opens_two_sessions_at_most(real, vault):
    """Where the level says nothing else, a third session at once is refused."""
    credential, _, _ = real.open(vault)
    open_sessions = [real.connect(credential) for _ in range(2)]
    with pytest.raises(psycopg.OperationalError, match="too many connections"):
        real.connect(credential)
    for session in open_sessions:
        session.close()


def test_eight_threads_issue_at_once(real, vault):
    """Forty credentials issued by eight threads through one Vault are all different, and each one opens a session."""

    def issue(number):
        credential, _, _ = real.open(vault, name=f"BG-{number:04}")
        with real.connect(credential) as session:
            return session.execute("SELECT current_user").fetchone()[0], credential.lease_id

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(issue, range(40)))
    assert len({user for user, _ in made}) == 40
    assert {lease for _, lease in made} <= vault.leases("database/creds/orders-ro")


# ------------------------------------------------------------------------------------------------------------ the end


def test_after_revocation_a_login_is_refused_and_sessions_are_cut(real, vault):
    """Idle, busy and mid-transaction sessions are cut, no login succeeds, and the role is dropped."""
    credential, grant, _ = real.open(vault, real.write)
    assert not real.gone(vault, grant)
    idle, busy, changing = (real.connect(credential) for _ in range(3))
    changing.execute("BEGIN")
    changing.execute("UPDATE orders SET note = 'half done' WHERE id = 562")
    outcome = []

    def work():
        try:
            busy.execute("SELECT pg_sleep(60)")
            outcome.append("finished")
        except psycopg.Error:
            outcome.append("cut")

    thread = threading.Thread(target=work)
    thread.start()
    assert real.take_back(vault, grant)
    thread.join(10)
    assert outcome == ["cut"]
    assert _is_cut(idle)
    assert _is_cut(changing)
    assert _refused(real, credential)
    assert not real.login_exists(credential.username)
    with psycopg.connect(real.pg.dsn_for("orders")) as server:
        assert server.execute("SELECT note FROM orders WHERE id = 562").fetchone() == ("capture timed out",)


def test_taking_back_twice_is_fine(real, vault):
    """What is gone stays gone, and asking again or hurrying changes nothing."""
    _, grant, _ = real.open(vault)
    assert real.take_back(vault, grant)
    DATABASE.hurry(vault, grant)
    assert real.take_back(vault, grant)


def test_one_grants_end_leaves_the_others_alone(real, vault):
    """Taking one grant of a level back touches no other grant of the same level."""
    _, ended, _ = real.open(vault)
    credential, other, _ = real.open(vault)
    with real.connect(credential) as session:
        assert real.take_back(vault, ended)
        assert session.execute("SELECT 1").fetchone() == (1,)
    assert not real.gone(vault, other)


def test_at_its_end_the_session_is_cut_by_vault_alone(real, vault):
    """Nobody revokes anything: the child token's end ends the login and its session, also under a longer lease."""
    credential, grant, _ = real.open(vault, ttl=timedelta(seconds=1))
    assert credential.ttl == timedelta(seconds=1)
    session = real.connect(credential)
    assert vault.lease(credential.lease_id).ttl > timedelta(minutes=1)
    assert real.until(lambda: real.gone(vault, grant))
    assert _is_cut(session)
    assert _refused(real, credential)


def test_a_client_that_keeps_reconnecting_does_not_survive(real, vault):
    """Clients that reconnect in a loop while they are revoked have neither a session nor a login afterwards."""
    for _ in range(4):
        credential, grant, _ = real.open(vault)
        is_over = threading.Event()
        started = threading.Barrier(4)

        def attack(credential=credential, is_over=is_over, started=started):
            started.wait()
            while not is_over.is_set():
                try:
                    with real.connect(credential) as session:
                        session.execute("SELECT pg_sleep(0.002)")
                except psycopg.Error:
                    continue

        threads = [threading.Thread(target=attack) for _ in range(3)]
        for thread in threads:
            thread.start()
        started.wait()
        assert real.until(lambda name=credential.username: real.sessions(name) > 0)
        assert real.take_back(vault, grant)
        survivors = real.sessions(credential.username)
        is_over.set()
        for thread in threads:
            thread.join(20)
        assert survivors == 0
        assert _refused(real, credential)
        assert not real.login_exists(credential.username)


def test_a_failed_clean_up_still_closes_the_door(real, vault):
    """When a later revocation statement fails, NOLOGIN stands (the bare COMMIT holds), and the grant is not gone."""
    role = real.bao.call("GET", "database/roles/orders-rw")["data"]
    statements = role["revocation_statements"]
    broken = [*statements[:2], "SELECT 1/0", *statements[2:]]
    credential, grant, _ = real.open(vault, real.write)
    real.bao.call("POST", "database/roles/orders-rw", role | {"revocation_statements": broken})
    try:
        vault.revoke_accessor(grant.accessor)
        assert real.until(lambda: _refused(real, credential))
        assert vault.accessor_is_gone(grant.accessor)
        assert not real.gone(vault, grant)
        with pytest.raises(Unavailable):
            DATABASE.hurry(vault, grant)
    finally:
        real.set_up()
    DATABASE.hurry(vault, grant)
    assert real.gone(vault, grant)
    assert not real.login_exists(credential.username)


# --------------------------------------------------------------------------------------------- what the target shows


@pytest.fixture
def lax(real):
    """A level whose logins Vault says to be gone, and leaves in place."""
    role = real.bao.call("GET", "database/roles/orders-ro")["data"]
    real.bao.call("POST", "database/roles/orders-ro", role | {"revocation_statements": ["SELECT 1"]})
    yield
    real.set_up()


@pytest.mark.usefixtures("lax")
def test_a_login_that_vault_forgot_is_seen_at_the_target(real, vault):
    """Vault calls it gone; that the role can log in, or has a session, is seen, with its name known or lost."""
    credential, grant, _ = real.open(vault, name="BG-L4XX")
    session = real.connect(credential)
    assert real.take_back(vault, grant)
    for seen in (grant, replace(grant, identity=None)):
        with pytest.raises(Unavailable, match="1 logins and 1 sessions of it are left") as caught:
            DATABASE.prove(vault, seen)
        assert caught.value.reason == "left"
    with psycopg.connect(real.pg.dsn, autocommit=True) as server:
        server.execute(f'ALTER ROLE "{credential.username}" NOLOGIN')
        with pytest.raises(Unavailable, match="0 logins and 1 sessions"):
            DATABASE.prove(vault, grant)
        session.close()
        assert real.until(lambda: real.sessions(credential.username) == 0)
        assert DATABASE.prove(vault, grant) == ("its role cannot log in", "no session of it is open")
        server.execute(f'DROP OWNED BY "{credential.username}"')
        server.execute(f'DROP ROLE "{credential.username}"')
    assert DATABASE.prove(vault, grant) == ("its role does not exist", "no session of it is open")


def test_what_a_stolen_token_read_in_the_last_moment_is_seen(real, vault):
    """Vault lets live what is being read while the token ends; the login is named after the request, and is found."""
    _, grant, child = real.open(vault, name="BG-ST0L")
    prefix = grant.lease_prefix
    known = vault.leases(prefix)
    is_over, thieves = threading.Event(), []

    def read():
        while not is_over.is_set():
            try:
                vault.read_as(child, prefix)
            except (Unavailable, VaultRefused):
                return

    for _ in range(8):
        thieves.append(threading.Thread(target=read))
        thieves[-1].start()
    assert real.until(lambda: len(vault.leases(prefix)) > len(known) + 8)
    assert real.take_back(vault, grant)
    is_over.set()
    for thief in thieves:
        thief.join(60)
    left = vault.leases(prefix) - known
    # What is left depends on the moment; that it is seen does not.
    if logins := {name for name in DATABASE.identities(vault, grant.options) if name.startswith("bg-st0l-")}:
        with pytest.raises(Unavailable, match=f"{len(logins)} logins"):
            DATABASE.prove(vault, grant)
    for lease in left:  # as reconciliation does
        vault.revoke_lease(lease, sync=True)
    assert not [name for name in DATABASE.identities(vault, grant.options) if name.startswith("bg-st0l-")]
    assert DATABASE.prove(vault, grant) == ("its role does not exist", "no session of it is open")


def test_a_session_of_a_dropped_role_is_seen_and_swept(real, vault):
    """PostgreSQL lets a session outlive its role; it counts, and the next look ends it."""
    credential, grant, _ = real.open(vault, name="BG-DR0P")
    assert real.take_back(vault, grant)
    with psycopg.connect(real.pg.dsn, autocommit=True) as server:
        server.execute("CREATE ROLE passing LOGIN PASSWORD 'x'")
        server.execute("GRANT CONNECT ON DATABASE orders TO passing")
        left = psycopg.connect(real.pg.dsn_for("orders"), user="passing", password="x")
        server.execute("REVOKE CONNECT ON DATABASE orders FROM passing")
        server.execute("DROP ROLE passing")
    with pytest.raises(Unavailable, match="0 logins and 1 sessions"):
        DATABASE.prove(vault, grant)
    assert real.until(lambda: _is_cut(left))
    assert DATABASE.prove(vault, grant)
    assert credential.username not in DATABASE.identities(vault, grant.options)


def test_nothing_is_shown_while_the_target_is_down(real, vault):
    """A target that does not answer has shown nothing; a level without a role to look with shows nothing either."""
    _, grant, _ = real.open(vault)
    assert grant.identity in DATABASE.identities(vault, grant.options)
    real.pg.stop()
    try:
        with pytest.raises(Unavailable, match="cannot be looked at"):
            DATABASE.prove(vault, grant)
    finally:
        real.pg.start()
    blind = replace(grant, options={key: value for key, value in grant.options.items() if key != "watch_role"})
    assert DATABASE.prove(vault, blind) == ()
    assert DATABASE.identities(vault, blind.options) == frozenset()


def test_the_watching_login_can_do_nothing_but_look(real, vault):
    """With the bot's own login at the target no table can be read, nothing made, and no session ended."""
    credential, _, _ = real.open(vault, name="BG-W4TC")
    victim = real.connect(credential)
    watcher = vault.watcher("database/creds/orders-watch")
    assert vault.watcher("database/creds/orders-watch") is watcher  # the same while it lives
    with psycopg.connect(
        real.pg.dsn_for("orders"), user=watcher.data["username"], password=watcher.data["password"], autocommit=True
    ) as session:
        for refused in (
            "SELECT * FROM public.orders",
            "CREATE TABLE public.mine (id int)",
            "CREATE ROLE accomplice LOGIN",
            f"SELECT pg_terminate_backend({victim.info.backend_pid})",
            "SET ROLE bg_orders_ro",
            "SET ROLE bgmgr",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute(refused)
    assert {credential.username} <= DATABASE.identities(vault, real.read.settings.options)
    assert watcher.data["username"] not in DATABASE.identities(vault, real.read.settings.options)


# --------------------------------------------------------------------------------------------- when the target is down


def test_with_postgresql_down_a_revoked_grant_is_not_gone(real, vault):
    """Vault answers "done" while the login lives on: not gone until the target is back and has dropped it."""
    credential, grant, _ = real.open(vault)
    real.pg.stop()
    try:
        vault.revoke_accessor(grant.accessor)
        assert vault.accessor_is_gone(grant.accessor)
        assert not real.gone(vault, grant)
        with pytest.raises(Unavailable, match="take the credential back"):
            DATABASE.hurry(vault, grant)
        assert not real.gone(vault, grant)
    finally:
        real.pg.start()
    real.connect(credential).close()  # the login did survive: "revoked" would have been a lie
    DATABASE.hurry(vault, grant)
    assert real.gone(vault, grant)
    assert _refused(real, credential)


def test_no_credential_from_a_server_without_the_audit_that_its_level_has(real, vault):
    """A level that says pgaudit, at a server without it, gives no login: it would be one whose doings nobody sees."""
    role = real.bao.call("GET", "database/roles/orders-rw")["data"]
    options = {**real.write.settings.options, "audit": "pgaudit"}
    statements = list(DATABASE.creation(options))
    real.bao.call("POST", "database/roles/orders-rw", role | {"creation_statements": statements})
    before = vault.leases("database/creds/orders-rw")
    try:
        with pytest.raises((Unavailable, VaultRefused)):
            real.open(vault, real.write, name="BG-B11D")
        # Not for want of a right to make the rest.
        plain = [line for line in statements if "pgaudit" not in line and " SET " not in line]
        real.bao.call("POST", "database/roles/orders-rw", role | {"creation_statements": plain})
        real.open(vault, real.write, name="BG-B11D")
    finally:
        real.set_up()
    assert len(vault.leases("database/creds/orders-rw") - before) == 1


def test_with_postgresql_down_nothing_is_issued(real, vault):
    """Issuing fails as Unavailable, says nothing of Vault's own words, and leaves no lease."""
    before = vault.leases("database/creds/orders-ro")
    real.pg.stop()
    try:
        with pytest.raises(Unavailable) as caught:
            real.open(vault)
        assert "bgmgr" not in str(caught.value)
    finally:
        real.pg.start()
    assert vault.leases("database/creds/orders-ro") == before


# -------------------------------------------------------------------- a crash between reading and recording the lease


def test_a_lease_that_was_not_recorded_is_looked_for(real, vault):
    """With the lease id lost, the grant is not gone while its token or a lease that may be its own is left."""
    known = vault.leases("database/creds/orders-ro")
    credential, grant, _ = real.open(vault)
    lost = replace(grant, lease_id=None)
    assert not real.gone(vault, lost, known)
    vault.revoke_accessor(grant.accessor)
    assert real.until(lambda: real.gone(vault, lost, known))
    assert _refused(real, credential)
    assert not real.login_exists(credential.username)


def test_a_token_that_read_nothing_is_gone_when_it_is_revoked(real, vault):
    """A bot that died before reading leaves a token and no lease."""
    known = vault.leases("database/creds/orders-ro")
    intended_at = datetime.now(UTC)
    child = vault.open_child("bg-orders-ro", timedelta(minutes=5), display_name="BG-7KQ2", metadata={})
    _, grant, _ = real.open(vault)
    lost = replace(grant, accessor=child.accessor, lease_id=None, intended_at=intended_at)
    known |= {grant.lease_id}
    assert not real.gone(vault, lost, known)
    vault.revoke_accessor(child.accessor)
    assert real.gone(vault, lost, known)


def test_an_unrecorded_lease_of_somebody_else_only_delays(real, vault):
    """A stranger's lease in flight delays "gone", is never revoked by it, and counts no more once known."""
    known = vault.leases("database/creds/orders-ro")
    _, grant, _ = real.open(vault)
    lost = replace(grant, lease_id=None)
    credential, stranger, _ = real.open(vault)
    assert real.take_back(vault, grant)
    assert not real.gone(vault, lost, known)
    DATABASE.hurry(vault, lost)
    with real.connect(credential) as session:
        assert session.execute("SELECT 1").fetchone() == (1,)
    assert real.gone(vault, lost, known | {stranger.lease_id})


def test_leases_from_before_the_grant_are_not_its_own(real, vault):
    """A lease that is older than the decision, by more than the clocks may differ, is somebody else's."""
    _, grant, _ = real.open(vault)
    later = replace(grant, accessor=None, lease_id=None, intended_at=datetime.now(UTC) + timedelta(hours=1))
    assert real.gone(vault, later)


def test_a_lost_lease_that_is_stuck_is_hurried(real, vault):
    """With the lease id lost and the target down at revocation, hurrying ends the stuck lease later."""
    known = vault.leases("database/creds/orders-ro")
    credential, grant, _ = real.open(vault)
    lost = replace(grant, lease_id=None)
    real.pg.stop()
    try:
        vault.revoke_accessor(grant.accessor)
        assert not real.gone(vault, lost, known)
    finally:
        real.pg.start()
    DATABASE.hurry(vault, lost)
    assert real.gone(vault, lost, known)
    assert _refused(real, credential)


def test_a_sealed_vault_shows_nothing_to_be_gone(real, vault):
    """While Vault is sealed, whether something is gone is not answered at all."""
    _, grant, _ = real.open(vault)
    real.bao.seal()
    try:
        for attempt in (lambda: real.gone(vault, grant), lambda: DATABASE.hurry(vault, grant)):
            with pytest.raises(Unavailable):
                attempt()
    finally:
        real.bao.unseal()
    assert real.take_back(vault, grant)


# ------------------------------------------------------------------------------------------------------ what is shown


def test_the_line_works_when_it_is_pasted(real, vault):
    """The line of a real credential, given to a real shell, opens a session with psql."""
    credential, _, _ = real.open(vault)
    [line] = credential.lines()
    done = subprocess.run(
        ["/bin/sh", "-c", f'{line} -Atc "SELECT current_user"'],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": f"{real.pg.bin}{os.pathsep}{os.defpath}"},
    )
    assert done.stdout.strip() == credential.username, done.stderr


@given(st.text(min_size=1).filter(lambda s: "\0" not in s and s.isprintable()), st.text(min_size=1))
def test_the_line_quotes_whatever_it_holds(word, password):
    """Whatever user, database and password hold, the shell and libpq read back exactly that."""
    login = Login(word, password, "127.0.0.1", 5432, word, "lease", timedelta(minutes=5))
    [line] = login.lines()
    assignment, program, target = shlex.split(line)
    assert assignment == f"PGPASSWORD={password}"
    assert program == "psql"
    expected = {"host": "127.0.0.1", "port": "5432", "dbname": word, "user": word}
    assert conninfo_to_dict(target) == expected


def test_the_secret_is_in_no_repr_and_no_log(real, caplog):
    """With every logger at DEBUG, neither password nor token is in the log of a grant's life, nor in a repr."""
    caplog.set_level(logging.DEBUG)
    vault = real.vault()
    credential, grant, child = real.open(vault)
    real.take_back(vault, grant)
    shown = caplog.text + repr([credential, grant, child, vault]) + str(credential) + str(child)
    assert caplog.records
    assert not [s for s in (credential.password, child.token, vault._token, real.login.secret_id) if s in shown]


# ------------------------------------------------------------------------------------------------------ the settings


def test_good_settings_say_where_to_read():
    """A level's path and the prefix of its leases come from its mount and role."""
    assert DATABASE.path(GOOD) == "database/creds/orders-ro"
    assert DATABASE.lease_prefix(GOOD) == "database/creds/orders-ro"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("engine", value) for value in ("", "datbase", "Database")),
        *(
            ("mount", value)
            for value in ("", "/database", "database/", "a//b", "../sys", "a/../b", "data base", "a*", "a?")
        ),
        *(("role", value) for value in ("", "a/b", "..", "+", "*", "ro\n", "a#b", "röle")),
        *(("token_role", value) for value in ("", "x/../../root", "*")),
        *(("host", value) for value in ("", "a b", "h'", "db;rm", "$(id)", "-oProxy")),
        *(("port", value) for value in ("", "0", "-1", "65536", "05432", "54 32")),
        *(("database", value) for value in ("", "a\nb", "\0")),
        *(("watch_role", value) for value in ("a/b", "*", "orders-ro")),
        ("unheard_of", "x"),
    ],
)
def test_settings_that_would_reach_elsewhere_are_refused(field, value):
    """A name with a slash too many, a glob, a line break or shell words is refused, and the field is named."""
    good = {"engine": "database", "token_role": "bg-orders-ro", "options": GOOD}
    bad = {field: value} if field in good else {"options": GOOD | {field: value}}
    with pytest.raises(Invalid) as caught:
        LevelSettings(**(good | bad))
    assert set(caught.value.fields) == {field}


def test_a_level_that_vault_does_not_have_is_refused(real, vault):
    """A token role or a Vault role that does not exist is a lasting no."""
    settings = replace(real.read.settings, token_role="bg-nothing")
    with pytest.raises(VaultRefused):
        vault.open_child(settings.token_role, timedelta(minutes=5), display_name="BG-7KQ2", metadata={})
    with pytest.raises(VaultRefused):
        DATABASE.issue(
            vault, real.root_child(), dict(settings.options) | {"role": "nothing"}, Wish("BG-7KQ2", "U0RITA")
        )
