"""A MariaDB login opens what its level allows, as long as it should, and is gone when it is said to be.

Against a real OpenBao and a real MariaDB.
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import hostile
import pymysql
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mariadb_part import maria_level

from bot.demo.vault_setup import LOG_KEY, LOG_MOUNT
from workflows.engines import ENGINES, LevelSettings
from workflows.engines.mariadb import Login
from workflows.errors import Invalid, Unavailable
from workflows.vault_apply import SAME, Operator, compare
from workflows.vault_plan import plan

GOOD = {"mount": "maria", "role": "shop-ro", "host": "127.0.0.1", "port": "3306", "database": "shop"}
MARIADB = ENGINES["mariadb"]
DENIED = {1044, 1045, 1095, 1142, 1143, 1227, 1370, 1698, 1959}  # the server's numbers for "you may not"


def _refused(maria, credential):
    """A new login with the credential is refused."""
    try:
        maria.connect(credential).close()
    except pymysql.OperationalError as error:
        return error.args[0] in {1045, 4151}
    return False


def _is_cut(session):
    """The open session answers no more."""
    try:
        session.cursor().execute("SELECT 1")
    except (pymysql.Error, OSError):
        return True
    return False


def _rows(session, statement):
    with session.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


def _error(call, *words):
    """The server's number of what goes wrong, 0 when nothing does."""
    try:
        call(*words)
    except pymysql.Error as error:
        return error.args[0]
    return 0


def _denied(session, *statements):
    for statement in statements:
        assert _error(_rows, session, statement) in DENIED, statement


# ------------------------------------------------------------------------------------------------ what a level opens


def test_the_read_level_reads_the_orders_and_nothing_else(maria, maria_vault):
    """With a read credential the orders can be read; cards, writes, accounts, files and our procedures are refused."""
    credential, _, _ = maria.open(maria_vault)
    with maria.connect(credential) as session:
        assert _rows(session, "SELECT COUNT(*) FROM orders") == ((600,),)
        _denied(
            session,
            "SELECT * FROM payment_cards",
            "UPDATE orders SET status = 'paid' WHERE id = 561",
            "DELETE FROM orders",
            "CREATE TABLE mine (id int)",
            "SET ROLE bg_shop_rw",
            "CREATE USER accomplice",
            "SELECT * FROM mysql.global_priv",
            "SELECT * FROM breakglass.login",
            "CALL breakglass.open_login('accomplice', 'long-enough', 'bg_shop_rw', 3, 0, '2036-01-01 00:00:00+0000')",
            "CALL breakglass.end_login('root')",
            "SELECT 1 INTO OUTFILE 'x'",
        )


def test_the_write_level_repairs_orders_and_sees_no_cards(maria, maria_vault):
    """With a write credential an order can be put right; the cards and the tables themselves stay out of reach."""
    credential, _, _ = maria.open(maria_vault, maria.write)
    with maria.connect(credential) as session, session.cursor() as cursor:
        assert cursor.execute("UPDATE orders SET note = 'retried' WHERE id = 561") == 1
        _denied(session, "SELECT * FROM payment_cards", "DROP TABLE orders", "GRANT SELECT ON shop.* TO root")


def test_the_login_names_its_request(maria, maria_vault):
    """Who looks at the target's sessions reads there which request they belong to."""
    credential, _, _ = maria.open(maria_vault, name="BG-4XYZ")
    assert credential.username.startswith("bg-4xyz-")
    with maria.connect(credential) as session:
        assert _rows(session, "SELECT CURRENT_USER()") == ((f"{credential.username}@%",),)


def test_a_login_opens_two_sessions_at_most(maria, maria_vault):
    """A third session at once is refused."""
    credential, _, _ = maria.open(maria_vault)
    with maria.connect(credential), maria.connect(credential):
        assert _error(maria.connect, credential) == 1226  # max_user_connections


def test_the_manager_cannot_touch_an_account_that_was_not_made_for_a_grant(maria):
    """With Vault's own login at MariaDB nobody's password can be changed, no right given, and root not ended."""
    words = {"user": maria.target.manager, "password": maria.target.password}
    with maria.pg.connect() as admin, maria.pg.connect(**words) as session:
        _denied(
            session,
            "ALTER USER root@'127.0.0.1' IDENTIFIED BY 'mine'",
            "SET PASSWORD FOR root@'127.0.0.1' = PASSWORD('mine')",
            "CREATE USER accomplice",
            "DROP USER root@'127.0.0.1'",
            "GRANT ALL ON *.* TO bgmgr@'%'",
            "SELECT * FROM shop.orders",
            "SELECT * FROM breakglass.login",
            "SET ROLE bg_shop_rw",
            f"KILL {admin.thread_id()}",
            "DROP PROCEDURE breakglass.end_login",
        )
        for words in (
            "'root', 'long-enough-for-it', 'bg_shop_ro', 3, 0, '2036-01-01 00:00:00+0000'",  # under another host
            "'bgmgr', 'long-enough-for-it', 'bg_shop_ro', 3, 0, '2036-01-01 00:00:00+0000'",
            "'bg-new-x', 'long-enough-for-it', 'mariadb_admin', 3, 0, '2036-01-01 00:00:00+0000'",  # not ours to lend
            "'bg-new-x', 'long-enough-for-it', 'bg_shop_ro`, `x', 3, 0, '2036-01-01 00:00:00+0000'",
            "'bg-new-x''@''%', 'long-enough-for-it', 'bg_shop_ro', 3, 0, '2036-01-01 00:00:00+0000'",
            "'bg-new-x', 'short', 'bg_shop_ro', 3, 0, '2036-01-01 00:00:00+0000'",
            "'bg-new-x', 'long-enough-for-it', 'bg_shop_ro', 0, 0, '2036-01-01 00:00:00+0000'",
            "'bg-new-x', 'long-enough-for-it', 'bg_shop_ro', 3, 0, 'for ever'",
        ):
            assert _error(_rows, session, f"CALL breakglass.open_login({words})"), words
        _rows(session, "CALL breakglass.end_login('root')")
        _rows(session, "CALL breakglass.end_login('bgmgr')")
    assert maria.pg.execute("SELECT host FROM mysql.global_priv WHERE user = 'root'") == [("127.0.0.1",)]
    assert maria.login_exists("bgmgr")
    assert not maria.login_exists("bg-new-x")
    left = "SELECT 1 FROM breakglass.login WHERE name IN ('root', 'bgmgr') OR name = 'bg-new-x' AND ended_at IS NULL"
    assert not maria.pg.execute(left)


def test_what_is_set_up_is_what_is_planned(maria):
    """Vault has what the plan says, so that a second apply has nothing to do; the target's steps may be run twice."""
    operator = Operator(maria.bao.addr, maria.bao.root_token)
    levels = [maria.read, maria.write, maria.wide]
    assert {one.state for one in compare(operator, plan(levels, (LOG_MOUNT, LOG_KEY)))} == {SAME}
    for level in levels:
        maria.pg.script(MARIADB.target_steps(level.settings.options))


def test_a_level_that_could_do_too_much_is_named(maria, maria_vault):
    """A group with rights on the whole server, in the server's own schemas, to hand on, or to write, is found out."""
    read = maria.read.settings.options
    assert MARIADB.excess(maria_vault, read | {"read_only": "true"}) == ()
    assert MARIADB.excess(maria_vault, maria.write.settings.options) == ()
    writes = MARIADB.excess(maria_vault, maria.write.settings.options | {"read_only": "true"})
    assert writes == ("The role bg_shop_rw may write, and the level is read-only.",)
    assert "no role bg_nowhere" in MARIADB.excess(maria_vault, read | {"group": "bg_nowhere"})[0]
    maria.pg.execute("CREATE ROLE bg_mighty", "CREATE ROLE bg_deep", "GRANT bg_deep TO bg_mighty")
    mighty = read | {"group": "bg_mighty", "read_only": "true"}
    try:
        for statement, words in (
            ("FILE ON *.*", "rights on the whole server"),
            ("SELECT ON mysql.*", "of the server's own"),
            ("SELECT ON mysql.global_priv", "of the server's own"),
            ("EXECUTE ON PROCEDURE breakglass.end_login", "or in breakglass"),
            ("SELECT ON `%`.*", "of the server's own"),
            ("UPDATE (note) ON shop.orders", "may write"),
            ("DROP ON shop.*", "may write"),
        ):
            maria.pg.execute(f"GRANT {statement} TO bg_deep")
            found = " ".join(MARIADB.excess(maria_vault, mighty))
            assert words in found, (statement, found)
            assert "The role bg_deep, which comes with bg_mighty," in found
            maria.pg.execute(f"REVOKE {statement} FROM bg_deep")
            assert MARIADB.excess(maria_vault, mighty) == (), statement
        maria.pg.execute("GRANT SELECT ON shop.orders TO bg_deep WITH GRANT OPTION")
        assert "hand its rights on" in MARIADB.excess(maria_vault, mighty)[0]
    finally:
        maria.pg.execute("DROP ROLE bg_deep", "DROP ROLE bg_mighty")


def test_a_statement_ends_at_the_levels_longest_time(maria, maria_vault):
    """A level with a statement_timeout gives out logins whose statements are ended then."""
    level = maria_level(maria.pg, "shop-wide", "bg_shop_ro", statement_timeout="200ms")
    [made] = [write for write in MARIADB.writes(level.settings.options, timedelta(minutes=5)) if write.lends]
    maria.bao.call("POST", made.path, made.body)
    try:
        credential, _, _ = maria.open(maria_vault, maria.wide)
    finally:
        maria.set_up()
    with maria.connect(credential) as session:
        # The number of "max_statement_time exceeded".
        assert _error(_rows, session, "SELECT COUNT(*) FROM orders a, orders b, orders c, orders d") == 1969


def test_vault_can_make_the_managers_password_its_own(maria, maria_vault):
    """After a rotation of the root credential the one that was set up is refused, and logins are made as before."""
    maria.bao.call("POST", "maria/rotate-root/shop", {})
    assert _error(lambda: maria.pg.connect(user=maria.target.manager, password=maria.target.password)) == 1045
    _, grant, _ = maria.open(maria_vault)
    assert maria.take_back(maria_vault, grant)
    maria.pg.execute(f"ALTER USER {maria.target.manager}@'%' IDENTIFIED BY '{maria.target.password}'")
    maria.set_up()


def test_a_password_with_quotes_is_a_password(maria):
    """Whatever characters Vault's password policy makes, they do not become SQL."""
    word = """it's \\' "a" `long` one; DROP TABLE shop.orders; --"""
    with maria.pg.connect(user=maria.target.manager, password=maria.target.password) as session:
        with session.cursor() as cursor:
            cursor.execute(
                "CALL breakglass.open_login(%s, %s, 'bg_shop_ro', 2, 0, '2036-01-01 00:00:00+0000')",
                ("bg-quot-es", word),
            )
        with maria.pg.connect(user="bg-quot-es", password=word, database="shop") as own:
            assert _rows(own, "SELECT COUNT(*) FROM orders") == ((600,),)
        _rows(session, "CALL breakglass.end_login('bg-quot-es')")


# ------------------------------------------------------------------------------------------------------------ the end


def test_a_hostile_client_does_not_survive(maria, maria_vault):
    """Eight threads that reconnect, idle, mid-transaction and cursor sessions: none is left when the proof is there."""
    for _ in range(5):
        credential, grant, _ = maria.open(maria_vault, maria.wide)
        client = hostile.at_mariadb(credential)
        stalled = [hostile.Stalled(credential) for _ in range(2)]
        client.attack()
        assert maria.take_back(maria_vault, grant)
        assert maria.proven(maria_vault, grant)
        moment = time.monotonic()
        assert maria.sessions(credential.username) == 0
        assert [one.answer() for one in stalled] == [False, False]
        client.stop()
        assert client.logins_after(moment) == 0
        assert client.still_open() == 0
        assert maria.sessions(credential.username) == 0
        assert _refused(maria, credential)
        assert not maria.login_exists(credential.username)


def test_the_server_lets_a_stalled_login_in_after_a_plain_drop(maria, maria_vault):
    """What the order of end_login is for: locked and dropped without a KILL, an account still lets a login in."""
    credential, grant, _ = maria.open(maria_vault)
    stalled = hostile.Stalled(credential)
    maria.pg.execute(f"ALTER USER '{credential.username}'@'%' ACCOUNT LOCK", f"DROP USER '{credential.username}'@'%'")
    with pytest.raises(Unavailable, match="0 logins and 1 sessions"):  # and prove() sees it coming
        MARIADB.prove(maria_vault, grant)
    assert stalled.answer()
    assert maria.take_back(maria_vault, grant)
    assert _is_cut(stalled.session)
    assert MARIADB.prove(maria_vault, grant)


def test_who_only_knocks_does_not_keep_an_end_from_coming(maria, maria_vault):
    """A login that is begun under the name after the end, and left hanging, is neither let in nor counted."""
    credential, grant, _ = maria.open(maria_vault, maria.wide)
    assert maria.take_back(maria_vault, grant)
    # A hostile client needs no right for this: only the name. It is listed under it until connect_timeout.
    knocking = hostile.Stalled(credential)
    listed = maria.pg.execute(
        f"SELECT command FROM information_schema.processlist WHERE user = '{credential.username}'"
    )
    seen = MARIADB.prove(maria_vault, grant)
    assert not knocking.answer()
    assert listed == [("Connect",)]
    assert seen == ("its account does not exist", "no session of it is open")


def test_who_knocks_under_a_made_up_name_of_the_request_is_not_counted(maria, maria_vault):
    """Attack: a name with the request's mark that no login ever had is no session of it, and nobody is let in."""
    credential, grant, _ = maria.open(maria_vault, maria.wide)
    assert maria.take_back(maria_vault, grant)
    made_up = replace(credential, username=f"{credential.username.rpartition('-')[0]}-mine")
    knocking = hostile.Stalled(made_up)
    listed = maria.pg.execute(f"SELECT command FROM information_schema.processlist WHERE user = '{made_up.username}'")
    seen = MARIADB.prove(maria_vault, grant)
    assert not knocking.answer()
    assert listed == [("Connect",)]
    assert seen == ("its account does not exist", "no session of it is open")


def test_taking_back_twice_is_fine(maria, maria_vault):
    """What is gone stays gone, and asking again or hurrying changes nothing."""
    _, grant, _ = maria.open(maria_vault)
    assert maria.take_back(maria_vault, grant)
    MARIADB.hurry(maria_vault, grant)
    assert maria.take_back(maria_vault, grant)
    assert MARIADB.prove(maria_vault, grant) == ("its account does not exist", "no session of it is open")


def test_a_login_that_is_gone_already_ends_too(maria, maria_vault):
    """An account that somebody dropped by hand does not keep its grant from ending."""
    credential, grant, _ = maria.open(maria_vault)
    maria.pg.execute(f"DROP USER '{credential.username}'@'%'")
    assert maria.take_back(maria_vault, grant)
    assert MARIADB.prove(maria_vault, grant)


def test_one_grants_end_leaves_the_others_alone(maria, maria_vault):
    """Taking one grant of a level back touches no other grant of the same level."""
    _, ended, _ = maria.open(maria_vault)
    credential, other, _ = maria.open(maria_vault)
    with maria.connect(credential) as session:
        assert maria.take_back(maria_vault, ended)
        assert _rows(session, "SELECT 1") == ((1,),)
    assert not maria.gone(maria_vault, other)


def test_at_its_end_the_session_is_cut_by_vault_alone(maria, maria_vault):
    """Nobody revokes anything: the child token's end ends the login and its session, also under a longer lease."""
    credential, grant, _ = maria.open(maria_vault, ttl=timedelta(seconds=2))
    assert credential.ttl == timedelta(seconds=2)
    session = maria.connect(credential)
    assert maria.until(lambda: maria.gone(maria_vault, grant), 60)
    assert _is_cut(session)
    assert _refused(maria, credential)


def test_with_vault_and_the_bot_dead_the_server_itself_ends_what_is_over(maria):
    """A login whose time is over is ended by an event of the server's, its session too, and a live one is not."""
    with maria.pg.connect(user=maria.target.manager, password=maria.target.password) as session:
        soon = (datetime.now(UTC) + timedelta(seconds=3)).strftime("%Y-%m-%d %H:%M:%S+0000")
        # In another zone, as a Vault with a local clock would write it.
        later = (datetime.now(UTC) + timedelta(hours=3)).strftime("%Y-%m-%d %H:%M:%S+0200")
        for name, at in (("bg-orph-an1", soon), ("bg-orph-an2", later)):
            words = f"'{name}', 'long-enough-for-it', 'bg_shop_ro', 3, 0, '{at}'"
            _rows(session, f"CALL breakglass.open_login({words})")
        over, live = (maria.pg.connect(user=f"bg-orph-an{n}", password="long-enough-for-it") for n in (1, 2))
        assert maria.until(lambda: not maria.login_exists("bg-orph-an1"), 120)
        assert _is_cut(over)
        assert not _is_cut(live)
        _rows(session, "CALL breakglass.end_login('bg-orph-an2')")


# --------------------------------------------------------------------------------------------- what the target shows


@pytest.fixture
def lax(maria):
    """A level whose logins Vault says to be gone, and leaves in place."""
    role = maria.bao.call("GET", "maria/roles/shop-ro")["data"]
    maria.bao.call("POST", "maria/roles/shop-ro", role | {"revocation_statements": ["DO 1"]})
    yield
    maria.set_up()


@pytest.mark.usefixtures("lax")
def test_a_login_that_vault_forgot_is_seen_at_the_target(maria, maria_vault):
    """Vault calls it gone; that the account can log in, or has a session, is seen, with its name known or lost."""
    credential, grant, _ = maria.open(maria_vault, name="BG-L4XX")
    session = maria.connect(credential)
    assert maria.take_back(maria_vault, grant)
    for seen in (grant, replace(grant, identity=None)):
        with pytest.raises(Unavailable, match="1 logins and 1 sessions of it are left") as caught:
            MARIADB.prove(maria_vault, seen)
        assert caught.value.reason == "left"
    assert credential.username in MARIADB.identities(maria_vault, grant.options)
    maria.pg.execute(f"ALTER USER '{credential.username}'@'%' ACCOUNT LOCK")
    assert credential.username not in MARIADB.identities(maria_vault, grant.options)
    with pytest.raises(Unavailable, match="0 logins and 1 sessions"):
        MARIADB.prove(maria_vault, grant)
    session.close()
    assert maria.until(lambda: maria.sessions(credential.username) == 0)
    assert MARIADB.prove(maria_vault, grant) == ("its account is locked", "no session of it is open")
    maria.pg.execute(f"CALL breakglass.end_login('{credential.username}')")
    assert MARIADB.prove(maria_vault, grant) == ("its account does not exist", "no session of it is open")


@pytest.mark.usefixtures("lax")
def test_what_a_stolen_token_read_besides_is_seen(maria, maria_vault):
    """A second login that the grant's token read, and that Vault left alive, is found by the request's mark."""
    credential, grant, child = maria.open(maria_vault)
    stolen = maria_vault.read_as(child, grant.lease_prefix).data
    maria.open(maria_vault)  # another request's is none of this one's
    assert maria.take_back(maria_vault, grant)
    maria.pg.execute(f"CALL breakglass.end_login('{credential.username}')")
    session = maria.pg.connect(user=stolen["username"], password=stolen["password"])
    with pytest.raises(Unavailable, match="1 logins and 1 sessions of it are left") as caught:
        MARIADB.prove(maria_vault, grant)
    assert caught.value.reason == "left"
    session.close()
    maria.pg.execute(f"CALL breakglass.end_login('{stolen['username']}')")
    assert MARIADB.prove(maria_vault, grant) == ("its account does not exist", "no session of it is open")


@pytest.mark.usefixtures("lax")
def test_a_name_that_vaults_role_made_otherwise_is_looked_for_as_well(maria, maria_vault):
    """Where an administrator's template leaves the mark out, the name on record is what is looked for, too."""
    credential, grant, _ = maria.open(maria_vault)
    assert maria.take_back(maria_vault, grant)
    with pytest.raises(Unavailable, match="1 logins and 0 sessions"):
        MARIADB.prove(maria_vault, replace(grant, request_id="BG-0TH3R"))
    maria.pg.execute(f"CALL breakglass.end_login('{credential.username}')")
    assert MARIADB.prove(maria_vault, replace(grant, request_id="BG-0TH3R"))


def test_nothing_is_shown_while_the_target_is_down(maria, maria_vault):
    """A target that does not answer has shown nothing; a level without a role to look with shows nothing either."""
    _, grant, _ = maria.open(maria_vault)
    assert grant.identity in MARIADB.identities(maria_vault, grant.options)
    maria.pg.stop()
    try:
        with pytest.raises(Unavailable, match="cannot be looked at"):
            MARIADB.prove(maria_vault, grant)
    finally:
        maria.pg.start()
    blind = replace(grant, options={key: value for key, value in grant.options.items() if key != "watch_role"})
    assert MARIADB.prove(maria_vault, blind) == ()
    assert MARIADB.identities(maria_vault, blind.options) == frozenset()


def test_the_watching_login_can_do_nothing_but_look(maria, maria_vault):
    """With the bot's own login no table can be read, no other's statement seen, nothing made and nobody ended."""
    credential, _, _ = maria.open(maria_vault, name="BG-W4TC")
    victim = maria.connect(credential)
    watcher = maria_vault.watcher("maria/creds/shop-watch")
    with maria.pg.connect(user=watcher.data["username"], password=watcher.data["password"]) as session:
        _denied(
            session,
            "SELECT * FROM shop.orders",
            "SELECT user FROM mysql.global_priv",
            "SELECT * FROM breakglass.login",
            "CREATE USER accomplice",
            "CREATE DATABASE mine",
            "SET ROLE bg_shop_ro",
            f"CALL breakglass.end_login('{credential.username}')",
        )
        with pytest.raises(pymysql.Error):
            _rows(session, f"KILL {victim.thread_id()}")
        seen = {name for (name,) in _rows(session, "SELECT user FROM information_schema.processlist")}
        assert seen == {watcher.data["username"]}
    assert not _is_cut(victim)
    known = MARIADB.identities(maria_vault, maria.read.settings.options)
    assert credential.username in known
    assert watcher.data["username"] not in known


# --------------------------------------------------------------------------------------------- when the target is down


def test_with_mariadb_down_a_revoked_grant_is_not_gone(maria, maria_vault):
    """Vault answers "done" while the login lives on: not gone until the target is back and has dropped it."""
    credential, grant, _ = maria.open(maria_vault)
    maria.pg.stop()
    try:
        maria_vault.revoke_accessor(grant.accessor)
        assert maria_vault.accessor_is_gone(grant.accessor)
        assert not maria.gone(maria_vault, grant)
        with pytest.raises(Unavailable, match="take the credential back"):
            MARIADB.hurry(maria_vault, grant)
    finally:
        maria.pg.start()
    maria.connect(credential).close()  # the login did survive: "revoked" would have been a lie
    MARIADB.hurry(maria_vault, grant)
    assert maria.gone(maria_vault, grant)
    assert _refused(maria, credential)


def test_with_mariadb_down_nothing_is_issued(maria, maria_vault):
    """Issuing fails as Unavailable, says nothing of Vault's own words, and leaves no lease."""
    before = maria_vault.leases("maria/creds/shop-ro")
    maria.pg.stop()
    try:
        with pytest.raises(Unavailable) as caught:
            maria.open(maria_vault)
        assert "bgmgr" not in str(caught.value)
    finally:
        maria.pg.start()
    assert maria_vault.leases("maria/creds/shop-ro") == before


def test_a_killed_server_comes_back_and_the_grant_ends(maria, maria_vault):
    """MariaDB is killed with the login in it; when it is back, the login is found and ended."""
    credential, grant, _ = maria.open(maria_vault)
    maria.pg.kill()
    maria_vault.revoke_accessor(grant.accessor)
    assert not maria.gone(maria_vault, grant)
    maria.pg.start()
    MARIADB.hurry(maria_vault, grant)
    assert maria.gone(maria_vault, grant)
    assert MARIADB.prove(maria_vault, grant)
    assert not maria.login_exists(credential.username)


def test_a_lease_that_was_not_recorded_is_looked_for(maria, maria_vault):
    """A bot that died between reading and recording: not gone while a lease that may be its own is left."""
    known = maria_vault.leases("maria/creds/shop-ro")
    credential, grant, _ = maria.open(maria_vault, name="BG-L5ST")
    lost = replace(grant, lease_id=None, identity=None)
    assert not maria.gone(maria_vault, lost, known)
    maria_vault.revoke_accessor(grant.accessor)
    assert maria.until(lambda: maria.gone(maria_vault, lost, known))
    assert MARIADB.prove(maria_vault, lost)
    assert not maria.login_exists(credential.username)


# ------------------------------------------------------------------------------------------------------ what is shown


def test_the_line_works_when_it_is_pasted(maria, maria_vault, tmp_path):
    """The line of a real credential, given to a real shell, opens a session, also beside a .my.cnf with a password."""
    credential, _, _ = maria.open(maria_vault)
    (tmp_path / ".my.cnf").write_text("[client]\npassword=another\nsocket=/nowhere\n")
    [line] = credential.lines()
    done = subprocess.run(
        ["/bin/sh", "-c", f'{line} -N -B -e "SELECT CURRENT_USER()"'],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": os.defpath, "HOME": str(tmp_path)},
    )
    assert done.stdout.strip() == f"{credential.username}@%", done.stderr


def test_a_session_opens_with_the_password_in_the_environment_alone(maria, maria_vault, tmp_path):
    """What ``breakglass open`` starts logs in, and neither its arguments nor its repr hold the password."""
    credential, _, _ = maria.open(maria_vault)
    session = MARIADB.session(credential)
    done = subprocess.run(
        [*session.arguments, "-N", "-B", "-e", "SELECT CURRENT_USER()"],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": os.defpath, "HOME": str(tmp_path), **session.environment},
    )
    assert done.stdout.strip() == f"{credential.username}@%", done.stderr
    assert credential.password not in f"{session!r} {session.arguments}"


@given(st.text(min_size=1).filter(lambda s: "\0" not in s and s.isprintable()), st.text(min_size=1))
def test_the_line_quotes_whatever_it_holds(word, password):
    """Whatever user, database and password hold, the shell reads back exactly that, and no word is an option."""
    login = Login(word, password, "127.0.0.1", 3306, word, "lease", timedelta(minutes=5), is_verified=True)
    [line] = login.lines()
    assignment, *words = shlex.split(line)
    assert assignment == f"MYSQL_PWD={password}"
    assert words == [
        *("mysql", "--no-defaults", "--protocol=tcp", "--ssl-verify-server-cert"),
        *("--host=127.0.0.1", "--port=3306", f"--user={word}", f"--database={word}"),
    ]
    assert password not in repr(login) or password in repr(replace(login, password=""))


def test_the_secret_is_in_no_repr_and_no_log(maria, caplog):
    """With every logger at DEBUG, neither password nor token is in the log of a grant's life, nor in a repr."""
    caplog.set_level(logging.DEBUG)
    vault = maria.vault()
    credential, grant, child = maria.open(vault)
    assert maria.take_back(vault, grant)
    MARIADB.prove(vault, grant)
    shown = caplog.text + repr([credential, grant, child, vault]) + str(credential) + str(child)
    watcher = vault.watcher("maria/creds/shop-watch").data["password"]
    assert not [s for s in (credential.password, child.token, vault._token, watcher) if s in shown]
    assert credential.password not in maria.pg.log.read_text(encoding="utf-8", errors="replace")


# ------------------------------------------------------------------------------------------------------ the settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("mount", value) for value in ("", "/maria", "a//b", "../sys", "a*")),
        *(("role", value) for value in ("", "a/b", "..", "*", "ro\n")),
        *(("host", value) for value in ("", "a b", "h'", "$(id)", "-oProxy")),
        *(("port", value) for value in ("", "0", "65536", "03306")),
        *(("database", value) for value in ("", "a\nb", "\0")),
        *(("watch_role", value) for value in ("a/b", "*", "shop-ro")),
        *(("group", value) for value in ("a'b", "a`b", "root", "bg_watch", "a-b", "")),
        *(("manager", value) for value in ("a'b", "a@b", "")),
        *(("connections", value) for value in ("0", "21", "many")),
        *(("statement_timeout", value) for value in ("0s", "1 h", "30")),
        ("read_only", "yes"),
        *(("tls", value) for value in ("no", "skip-verify")),
        ("connection", "a/b"),
        ("unheard_of", "x"),
    ],
)
def test_settings_that_would_reach_elsewhere_are_refused(field, value):
    """A name with a slash too many, a quote, a line break or shell words is refused, and the field is named."""
    with pytest.raises(Invalid) as caught:
        LevelSettings(engine="mariadb", token_role="bg-shop-ro", options=GOOD | {field: value})
    assert set(caught.value.fields) == {field}


def test_a_server_elsewhere_must_show_a_certificate():
    """Unless the level says no, a MariaDB on another machine is talked to over TLS that is verified, by all three."""
    far = GOOD | {"host": "db.example.internal", "group": "bg_shop_ro", "manager": "bgmgr"}
    url = {
        tls: next(
            str(write.body["connection_url"])
            for write in MARIADB.writes(far | tls_option, timedelta(minutes=5))
            if "/config/" in write.path
        )
        for tls, tls_option in (("by default", {}), ("disable", {"tls": "disable"}))
    }
    assert url["by default"].endswith("?tls=true")
    assert url["disable"].endswith("?tls=false")
