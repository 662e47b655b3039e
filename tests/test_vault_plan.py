"""What Vault is told for a policy is exactly what the bot and its grants need, and the same each time."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType

import pytest

from workflows import policy as rules
from workflows.engines import ENGINES, LevelSettings
from workflows.engines.seam import Rule
from workflows.errors import Invalid
from workflows.vault_plan import APPROLE, LevelSetup, hcl, plan, plan_of, secret_variable

DEMO = Path(__file__).parent.parent / "bot" / "demo" / "breakglass.yml"
TOKEN_ROLE = "bg-read"
OPTIONS = {
    "mount": "database",
    "role": "orders-ro",
    "host": "db.example.internal",
    "port": "5432",
    "database": "orders",
    "watch_role": "orders-watch",
    "group": "bg_orders_ro",
    "manager": "bgmgr",
}


def level(name="orders-db/read", token_role=TOKEN_ROLE, longest=timedelta(minutes=30), **changes):
    """A level to plan for; ``changes`` to its options, None takes one away."""
    options = {key: value for key, value in {**OPTIONS, **changes}.items() if value is not None}
    settings = LevelSettings(engine="database", token_role=token_role, options=MappingProxyType(options))
    return LevelSetup(settings, longest, name)


def body(made, path):
    """The body of the one call to ``path``."""
    (found,) = [write.body for write in made.writes if write.path == path]
    return found


def test_the_same_policy_gives_the_same_plan():
    """Nothing of a plan depends on chance, so that a second apply has nothing to do."""
    assert plan_of(rules.load(DEMO)) == plan_of(rules.load(DEMO))


def test_every_call_comes_after_what_it_needs():
    """Mounts come before what is in them, policies before the roles that hand them out."""
    paths = [write.path for write in plan_of(rules.load(DEMO)).writes]
    assert len(paths) == len(set(paths))
    for first, second in (
        ("sys/mounts/database", "database/config/orders"),
        ("database/config/orders", "database/roles/orders-ro"),
        ("sys/policies/acl/breakglass-breakglass-orders-db-read", "auth/token/roles/breakglass-orders-db-read"),
        ("sys/mounts/transit", "transit/keys/breakglass-log"),
        ("sys/auth/approle", f"auth/approle/role/{APPROLE}"),
    ):
        assert paths.index(first) < paths.index(second)


def test_a_grants_token_may_read_its_own_path_and_nothing_else():
    """The policy of a token role has one block with one capability."""
    made = plan([level()])
    assert body(made, "sys/policies/acl/breakglass-bg-read") == {
        "policy": 'path "database/creds/orders-ro" {\n  capabilities = ["read"]\n}\n'
    }


def test_the_bots_policy_has_no_path_of_a_level():
    """The bot reads no credential, and revokes only leases of its levels."""
    policy = body(plan_of(rules.load(DEMO)), f"sys/policies/acl/{APPROLE}")["policy"]
    assert '"database/creds/orders-ro"' not in policy
    assert '"database/creds/orders-rw"' not in policy
    roles = ("orders-ro", "orders-watch", "orders-rw", "orders-rehearsal")
    listed = ", ".join(f'"database/creds/{role}/*"' for role in roles)
    assert f'"lease_id" = [{listed}]' in policy


def test_levels_of_one_database_share_its_connection():
    """Two levels of a database make one connection, which allows the roles of both."""
    made = plan([level(), level("orders-db/write", "bg-write", role="orders-rw", group="bg_orders_rw")])
    assert body(made, "database/config/orders")["allowed_roles"] == ["orders-ro", "orders-rw", "orders-watch"]


def test_levels_with_one_credential_share_its_role_at_its_longest_time():
    """The same credential under two quorums is made once, and the role lives as long as the longer of both."""
    short = level("orders-db/quick", longest=timedelta(minutes=5))
    made = plan([short, level()])
    assert body(made, "database/roles/orders-ro")["max_ttl"] == 1800
    assert body(made, "auth/token/roles/bg-read")["token_explicit_max_ttl"] == 1800


def test_levels_that_disagree_about_one_role_are_refused():
    """One role at Vault cannot lend the rights of two groups: the second level's name is in the sentence."""
    with pytest.raises(Invalid, match=r"orders-db/other: another level makes database/roles/orders-ro"):
        plan([level(), level("orders-db/other", group="bg_other")])


def test_a_token_role_for_two_credentials_is_refused():
    """A grant of one level must not be able to open what the other is for."""
    with pytest.raises(Invalid, match="orders-db/write: another level with another credential"):
        plan([level(), level("orders-db/write", role="orders-rw")])


def test_a_watching_role_that_is_a_levels_credential_is_refused():
    """The bot could read the credential of a level that another level names as its watching role."""
    with pytest.raises(Invalid, match="The bot's own token could use database/creds/orders-ro"):
        plan([level(), level("orders-db/write", "bg-write", role="orders-rw", watch_role="orders-ro")])


@pytest.mark.parametrize("key", ["group", "manager"])
def test_what_is_missing_is_named_with_its_level(key):
    """A level that does not say what its role is made of is named, with the key."""
    with pytest.raises(Invalid, match=f"orders-db/read: .*'{key}'"):
        plan([level(**{key: None})])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("group", 'x" SUPERUSER --'),
        ("group", "pg_execute_server_program"),
        ("group", "pg_write_server_files"),
        ("group", "bgmgr"),
        ("group", "bg_watch"),
        ("group", "postgres"),
        ("group", "Orders"),
        ("manager", "pg_signal_backend"),
        ("manager", 'x"; DROP TABLE orders; --'),
        ("connections", "0"),
        ("connections", "21"),
        ("connections", "3 SUPERUSER"),
        ("statement_timeout", "0s"),
        ("statement_timeout", "5 minutes"),
        ("statement_timeout", "1s'; --"),
        ("read_only", "yes"),
        ("schemas", "public, "),
        ("schemas", 'public, "x"'),
        ("schemas", "pg_catalog"),
        ("connection", "../config"),
        ("sslmode", "prefer"),
    ],
)
def test_an_option_that_would_reach_into_the_sql_is_refused(key, value):
    """What stands in a statement is a name, a number or a time, and never a role of the server's own."""
    with pytest.raises(Invalid) as caught:
        level(**{key: value})
    assert list(caught.value.fields) == [key]


def test_the_narrowings_stand_in_the_roles_sql():
    """Each option that narrows a level is a statement of its role."""
    made = plan([level(connections="4", read_only="true", statement_timeout="30s", schemas="shop, audit")])
    first, *settings = body(made, "database/roles/orders-ro")["creation_statements"]
    assert 'CONNECTION LIMIT 4 IN ROLE "bg_orders_ro"' in first
    assert settings == [
        'ALTER ROLE "{{name}}" SET default_transaction_read_only = on',
        "ALTER ROLE \"{{name}}\" SET statement_timeout = '30000ms'",
        'ALTER ROLE "{{name}}" SET search_path = shop, audit',
    ]


def test_no_plan_holds_a_secret():
    """What only the operator knows is named, by a variable of its own, and is not in the plan."""
    (connection,) = [write for write in plan([level()]).writes if write.secrets]
    assert connection.secrets == ("password",)
    assert "password" not in connection.body
    assert secret_variable(connection, "password") == "VAULT_SECRET_DATABASE_CONFIG_ORDERS_PASSWORD"


def test_another_machine_is_reached_with_its_certificate_checked():
    """Vault's connection to a host elsewhere checks the certificate; on this machine it needs none."""
    assert body(plan([level()]), "database/config/orders")["connection_url"].endswith("?sslmode=verify-full")
    local = plan([level(host="127.0.0.1")])
    assert body(local, "database/config/orders")["connection_url"].endswith("?sslmode=disable")


def test_what_an_administrator_does_at_the_target_is_in_the_plan():
    """The SQL for the server names the manager, the group that is lent and the group that looks."""
    (steps,) = plan([level()]).targets
    assert "bgmgr LOGIN CREATEROLE INHERIT NOSUPERUSER" in steps
    assert "GRANT bg_orders_ro TO bgmgr WITH ADMIN OPTION;" in steps
    assert 'GRANT CONNECT ON DATABASE "orders" TO bg_watch;' in steps


def test_what_two_levels_of_a_target_have_in_common_is_done_once():
    """The manager is made once; what belongs to each level's group stands there for each."""
    made = plan([level(), level("orders-db/write", "bg-write", role="orders-rw", group="bg_orders_rw")])
    (steps,) = made.targets
    assert steps.count("CREATE ROLE bgmgr ") == steps.count("CREATE ROLE bg_watch ") == 1
    assert steps.count("CREATE ROLE bg_orders_ro ") == steps.count("CREATE ROLE bg_orders_rw ") == 1


def test_nothing_is_left_out_of_what_one_level_does_twice(monkeypatch):
    """Equal paragraphs of one level's steps, such as the ends of two procedures, both stay."""
    monkeypatch.setattr(type(ENGINES["database"]), "target_steps", lambda *_: "-- here\na\n\nEND\n\nb\n\nEND\n")
    assert plan([level(), level("orders-db/quick")]).targets == ("-- here\na\n\nEND\n\nb\n\nEND",)


def test_rules_of_one_path_are_one_block():
    """Vault keeps the last of two blocks with one path: they are joined, and what limits them adds up."""
    one = Rule("sys/leases/revoke", ("update",), {"lease_id": ("a/*",), "sync": (True,)})
    other = replace(one, allowed_parameters={"lease_id": ("b/*",), "sync": (True, False)})
    assert hcl([one, other]).count("path ") == 1
    assert '"lease_id" = ["a/*", "b/*"]' in hcl([one, other])
    assert '"sync" = [true, false]' in hcl([one, other])


def test_a_right_without_limits_wins_over_one_with_limits():
    """Where one rule allows every parameter, the joined block does: no level loses what it needs."""
    one = Rule("x", ("update",), {"a": ("1",)})
    assert "allowed_parameters" not in hcl([one, Rule("x", ("update",))])
    assert '"a" = []' in hcl([one, Rule("x", ("update",), {"a": ()})])


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_says_what_it_needs(name):
    """Each engine of the registry has the methods from which Vault is set up."""
    assert {"child_rules", "bot_rules", "writes"} <= set(dir(ENGINES[name]))
