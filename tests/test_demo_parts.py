"""The real parts come up on loopback, come back after a crash, and never outlive whoever started them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from bot.demo import parts
from bot.demo.parts import OpenBao, PartFailed, Postgres, call
from bot.demo.vault_setup import prepare_target
from workflows.errors import Unavailable
from workflows.vault import Vault

# Starts both, says their process ids, then waits to be ended.
STARTER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to it
from bot.demo.parts import OpenBao, Postgres
with Postgres(sys.argv[1] + "/pg") as pg, OpenBao(sys.argv[1] + "/bao") as bao:
    print(pg.pid, bao.pid, flush=True)
    if sys.argv[2] == "raise":
        raise RuntimeError("a mistake")
    time.sleep(60)
"""


def _is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with contextlib.suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return True


def _becomes_true(what, seconds=20.0):
    late = time.monotonic() + seconds
    while not what():
        if time.monotonic() > late:
            return False
        time.sleep(0.02)
    return True


def _are_gone(pids):
    return _becomes_true(lambda: not any(_is_alive(pid) for pid in pids))


# ---------------------------------------------------------------------------------------------------- never left behind


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGINT", "raise"])
def test_the_parts_end_with_their_starter(tmp_path, how):
    """However the starter ends, also by SIGKILL, both servers are gone soon after, and so is their scratch."""
    tmp = Path(tempfile.mkdtemp(prefix="breakglass-test-"))  # pytest's own is closed to PostgreSQL's account
    tmp.chmod(0o711)
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp)},
    )
    pids = [int(word) for word in starter.stdout.readline().split()]
    assert len(pids) == 2
    if how != "raise":
        starter.send_signal(signal.Signals[how])
    starter.wait(30)
    starter.stdout.close()
    assert _are_gone(pids)
    assert _becomes_true(lambda: not any(tmp.iterdir()))
    tmp.rmdir()


def test_stopping_twice_and_starting_twice_is_fine(tmp_path):
    """Start while it runs and stop while it is down change nothing."""
    with OpenBao(tmp_path) as bao:
        pid = bao.pid
        bao.start()
        assert bao.pid == pid
        bao.stop()
        bao.stop()
        assert not bao.is_running
        with pytest.raises(PartFailed, match="not running"):
            _ = bao.pid


# -------------------------------------------------------------------------------------------------------------- ports


def test_a_taken_port_is_a_sentence(tmp_path):
    """A port that is asked for and taken is named, with what to do; nothing is left running."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for part in (Postgres(tmp_path / "pg", port=port), OpenBao(tmp_path / "bao", port=port)):
            with pytest.raises(PartFailed, match=f"127.0.0.1:{port}.*another port"):
                part.start()
            assert not part.is_running


def test_two_of_each_on_one_machine(real, tmp_path):
    """A second pair beside the running one gets ports and data of its own."""
    with Postgres(tmp_path / "pg") as pg, OpenBao(tmp_path / "bao") as bao:
        assert pg.port != real.pg.port
        assert bao.port != real.bao.port
        with psycopg.connect(pg.dsn) as session:
            assert session.execute("SELECT 1 FROM pg_database WHERE datname = 'orders'").fetchone() is None
        with pytest.raises(PartFailed, match="403"):
            call(bao.addr, "GET", "auth/token/lookup-self", token=real.bao.root_token)


def test_an_asked_port_is_used(tmp_path):
    """A free port that is asked for is the one."""
    port = parts.free_port()
    with OpenBao(tmp_path, port=port) as bao:
        assert bao.addr == f"http://127.0.0.1:{port}"


def test_only_loopback_hears(real):
    """PostgreSQL listens on 127.0.0.1 only and has no socket file that would let local users in."""
    with psycopg.connect(real.pg.dsn) as session:
        assert session.execute("SHOW listen_addresses").fetchone() == ("127.0.0.1",)
        assert session.execute("SHOW unix_socket_directories").fetchone() == ("",)


# ---------------------------------------------------------------------------------------------------------- PostgreSQL


def test_nobody_is_trusted(real):
    """Not even the superuser gets in without the password, and passwords are stored as SCRAM."""
    for password in ("", "wrong"):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(real.pg.dsn.replace(real.pg.password, password or "''"))
    with psycopg.connect(real.pg.dsn) as session:
        assert session.execute("SELECT DISTINCT left(rolpassword, 13) FROM pg_authid WHERE rolcanlogin").fetchall() == [
            ("SCRAM-SHA-256",)
        ]


def test_postgresql_is_never_root(real):
    """The server runs as a plain account, also when the starter is root."""
    status = Path(f"/proc/{real.pg.pid}/status").read_text(encoding="utf-8")
    [line] = [line for line in status.splitlines() if line.startswith("Uid:")]
    assert "0" not in line.split()[1:]


def test_committed_rows_survive_a_kill(tmp_path):
    """After SIGKILL and start, on the same port, what was committed is there."""
    with Postgres(tmp_path) as pg:
        with psycopg.connect(pg.dsn) as session:
            session.execute("CREATE TABLE kept AS SELECT 7 AS n")
        port = pg.port
        pg.kill()
        assert not pg.is_running
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(pg.dsn)
        pg.start()
        assert pg.port == port
        with psycopg.connect(pg.dsn) as session:
            assert session.execute("SELECT n FROM kept").fetchone() == (7,)


def test_where_the_account_cannot_read_it_gets_a_copy(tmp_path_factory, monkeypatch):
    """An installation that the plain account may not read (a closed home) is copied, and the copy runs."""
    package, install = parts._install()
    folder = Path(tmp_path_factory.mktemp("copy"))
    copy = parts._copy(package, install, folder)
    done = subprocess.run([str(copy / "bin" / "postgres"), "--version"], check=True, capture_output=True, text=True)
    assert "PostgreSQL" in done.stdout
    assert all(path.stat().st_mode & 0o004 for path in copy.rglob("*") if not path.is_symlink())
    # As root the whole way is walked: the account is told that it may not, and the server runs from its copy.
    monkeypatch.setattr(parts, "_may_use", lambda *_: False)
    with Postgres(folder / "pg") as pg, psycopg.connect(pg.dsn) as session:
        assert session.execute("SELECT 1").fetchone() == (1,)
        outside = pg._outside
    assert outside is None or not outside.exists()


def test_a_folder_of_an_earlier_run_is_refused(tmp_path, monkeypatch):
    """A data folder whose password nobody knows any more is named, not opened and not overwritten."""
    first = Postgres(tmp_path)
    first.start()
    first.stop()
    monkeypatch.setattr(parts.tempfile, "mkdtemp", lambda **_: str(first._data.parent))
    with pytest.raises(PartFailed, match="earlier run"):
        Postgres(tmp_path).start()
    monkeypatch.undo()
    first.close()


# ------------------------------------------------------------------------------------------------------------- OpenBao


def test_leases_survive_a_kill_of_a_persistent_vault(real, tmp_path):
    """After SIGKILL and start a persistent Vault has the same tokens and still ends them."""
    with OpenBao(tmp_path, persistent=True) as bao:
        made = bao.call("POST", "auth/token/create", {"ttl": "1h"})["auth"]
        # One Vault object throughout: its open connection dies with the server and must not be tried again.
        vault = Vault(bao.addr, token=bao.root_token)
        assert not vault.accessor_is_gone(made["accessor"])
        bao.kill()
        with pytest.raises(Unavailable):
            vault.accessor_is_gone(made["accessor"])
        bao.start()
        assert not vault.accessor_is_gone(made["accessor"])
        vault.revoke_accessor(made["accessor"])
        assert vault.accessor_is_gone(made["accessor"])


def test_everything_asked_of_vault_is_in_its_audit_log(real):
    """The audit device is on from the first request and its log is for its owner only."""
    assert real.bao.audit_log.stat().st_mode & 0o777 == 0o600
    assert "auth/approle/role/breakglass-bot" in real.bao.audit_log.read_text(encoding="utf-8")


def test_the_callers_environment_does_not_reach_the_servers(tmp_path, monkeypatch):
    """Variables such as BAO_ADDR, VAULT_TOKEN or PGPORT of the caller's shell change nothing."""
    monkeypatch.setenv("VAULT_TOKEN", "not-yours")
    monkeypatch.setenv("PGPORT", "1")
    with OpenBao(tmp_path) as bao:
        seen = Path(f"/proc/{bao.pid}/environ").read_bytes()
    assert b"not-yours" not in seen


# ---------------------------------------------------------------------------------------------------------- setting up


def test_setting_up_twice_is_fine(real):
    """A second set-up of the same levels changes nothing for grants that are out, and its login works."""
    vault = real.vault()
    credential, grant, _ = real.open(vault)
    login = real.set_up()
    again = Vault(real.bao.addr, role_id=login.role_id, secret_id=login.secret_id)
    assert not real.gone(again, grant)
    assert real.take_back(again, grant)
    assert not real.login_exists(credential.username)


def test_two_databases_in_one_server(real):
    """A second database with its own manager shares the server, and the shop in it has the same rows."""
    target = prepare_target(real.pg, database="orders_two", manager="bgmgr_two")
    assert prepare_target(real.pg, database="orders_two", manager="bgmgr_two").database == target.database
    counts = []
    for database in ("orders", "orders_two"):
        with psycopg.connect(real.pg.dsn_for(database)) as session:
            tables = ("customers", "products", "orders", "order_items", "payments", "payment_cards", "stuck_orders")
            counts.append([session.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables])
    assert counts[0] == counts[1] == [120, 40, 600, 1500, 614, 120, 40]


def test_the_manager_is_no_superuser(real):
    """The role with which Vault manages logins cannot read the shop, nor become a superuser, nor run programs."""
    target = real.target
    connection = {"host": target.host, "port": target.port, "user": target.manager, "password": target.password}
    with psycopg.connect(**connection, dbname=target.database, autocommit=True) as session:
        for refused in (
            f"ALTER ROLE {target.manager} SUPERUSER",
            "GRANT pg_execute_server_program TO CURRENT_USER",
            "CREATE ROLE more SUPERUSER",
            "SELECT * FROM payment_cards",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute(refused)


def test_a_part_that_is_not_installed_is_a_sentence():
    """Without the package the sentence says which command installs it."""
    with pytest.raises(PartFailed, match=r"breakglass\[demo\]"):
        parts._package("no_such_package_here", "OpenBao")


def test_a_server_that_cannot_start_says_why(tmp_path):
    """A server that ends at once is reported with its own last line and the place of its log."""
    with pytest.raises(PartFailed, match=r"PostgreSQL ended at once: .*no_such_setting.*log:"):
        Postgres(tmp_path, settings={"no_such_setting": "1"}).start()


def test_no_repr_shows_a_secret(real):
    """The parts, the target and the bot's login show no password, root token, unseal key or secret id."""
    shown = repr([real.pg, real.bao, real.target, real.login, real.read, timedelta(0)])
    secrets = (real.pg.password, real.bao.root_token, real.bao._unseal_key, real.target.password, real.login.secret_id)
    assert not [secret for secret in secrets if secret in shown]
