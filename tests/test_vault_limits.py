"""The bot's token, and a grant's token that was stolen, are refused everywhere but at their own work.

Against a real OpenBao: each call is made, with a body that would do something.
"""

from __future__ import annotations

import re
from datetime import timedelta

import psycopg
import pytest

from bot.demo.parts import PartFailed
from bot.demo.vault_setup import LOG_KEY, LOG_MOUNT
from workflows.vault import Vault
from workflows.vault_limits import breaches, forbidden_paths, probes
from workflows.vault_plan import APPROLE

pytest_plugins = ["real_parts"]

POLICY = {"policy": 'path "*" { capabilities = ["create", "read", "update", "delete", "list", "sudo"] }'}
CHILD = "auth/token/create/bg-orders-ro"
OWN = f"auth/approle/role/{APPROLE}"
LOG = (LOG_MOUNT, LOG_KEY)

# What the bot has no business with: method, path, body.
NOT_ITS_BUSINESS = [
    # The credentials themselves, and how they are made.
    ("GET", "database/creds/orders-ro", None),
    ("GET", "database/creds/orders-rw", None),
    ("GET", "database/roles/orders-ro", None),
    ("POST", "database/roles/orders-ro", {"db_name": "orders", "creation_statements": ["SELECT 1"]}),
    ("DELETE", "database/roles/orders-rw", None),
    ("LIST", "database/roles", None),
    ("GET", "database/config/orders", None),
    ("POST", "database/config/orders", {"allowed_roles": ["*"]}),
    ("DELETE", "database/config/orders", None),
    ("LIST", "database/config", None),
    ("POST", "database/rotate-root/orders", {}),
    ("POST", "database/reset/orders", {}),
    ("GET", "database/static-creds/orders", None),
    ("POST", "database/static-roles/orders", {"db_name": "orders", "username": "postgres", "rotation_period": "24h"}),
    # Tokens of its own choice, and other people's tokens.
    ("POST", "auth/token/create", {"policies": ["root"]}),
    ("POST", "auth/token/create-orphan", {"policies": [APPROLE]}),
    ("POST", "auth/token/create/another-role", {"ttl": 60}),
    ("POST", CHILD, {"ttl": 60, "policies": [APPROLE]}),
    ("POST", CHILD, {"ttl": 60, "no_default_policy": False}),
    ("POST", CHILD, {"ttl": 60, "renewable": True}),
    ("POST", CHILD, {"ttl": 60, "period": "1h"}),
    ("POST", CHILD, {"ttl": 60, "num_uses": 0}),
    ("POST", CHILD, {"ttl": 60, "id": "chosen"}),
    ("POST", CHILD, {"ttl": 60, "entity_alias": "root"}),
    ("LIST", "auth/token/accessors", None),
    ("POST", "auth/token/lookup", {"token": "s.somebody"}),
    ("POST", "auth/token/renew", {"token": "s.somebody"}),
    ("POST", "auth/token/renew-accessor", {"accessor": "somebody"}),
    ("POST", "auth/token/revoke", {"token": "s.somebody"}),
    ("POST", "auth/token/revoke-orphan", {"token": "s.somebody"}),
    ("POST", "auth/token/tidy", {}),
    ("LIST", "auth/token/roles", None),
    ("GET", "auth/token/roles/bg-orders-ro", None),
    ("POST", "auth/token/roles/bg-orders-ro", {"allowed_policies": ["root"]}),
    # Its own login.
    ("LIST", "auth/approle/role", None),
    ("GET", OWN, None),
    ("POST", OWN, {"token_policies": ["root"]}),
    ("GET", f"{OWN}/role-id", None),
    ("POST", f"{OWN}/secret-id", {}),
    ("POST", f"{OWN}/custom-secret-id", {"secret_id": "chosen"}),
    ("POST", f"{OWN}/policies", {"token_policies": ["root"]}),
    ("POST", "auth/approle/role/another", {"token_policies": ["root"]}),
    # Rights.
    ("LIST", "sys/policies/acl", None),
    ("GET", f"sys/policies/acl/{APPROLE}", None),
    ("PUT", f"sys/policies/acl/{APPROLE}", POLICY),
    ("PUT", "sys/policies/acl/breakglass-bg-orders-ro", POLICY),
    ("PUT", "sys/policies/acl/another", POLICY),
    ("DELETE", "sys/policies/acl/breakglass-bg-orders-ro", None),
    ("PUT", f"sys/policy/{APPROLE}", POLICY),
    ("POST", "sys/capabilities", {"token": "s.somebody", "paths": ["sys/mounts"]}),
    ("POST", "identity/entity", {"name": "breakglass", "policies": ["root"]}),
    ("POST", "identity/group", {"name": "breakglass", "policies": ["root"]}),
    # Other people's leases.
    ("PUT", "sys/leases/revoke", {"lease_id": "database/creds/another/0123", "sync": True}),
    ("PUT", "sys/leases/revoke", {"lease_id": "auth/approle/login/0123"}),
    ("PUT", "sys/leases/revoke", {"lease_id": "database/creds/orders-ro-2/0123"}),
    ("PUT", "sys/leases/lookup", {"lease_id": "database/creds/another/0123"}),
    ("PUT", "sys/leases/revoke-prefix/database/creds", {}),
    ("PUT", "sys/leases/revoke-prefix/database/creds/orders-ro", {}),
    ("PUT", "sys/leases/revoke-force/database/creds/orders-ro", {}),
    ("PUT", "sys/leases/renew", {"lease_id": "database/creds/orders-ro/0123"}),
    ("LIST", "sys/leases/lookup/database/creds", None),
    ("LIST", "sys/leases/lookup/auth/approle/login", None),
    ("POST", "sys/leases/tidy", {}),
    # The log's key.
    ("POST", f"{LOG_MOUNT}/keys/{LOG_KEY}/rotate", {}),
    ("POST", f"{LOG_MOUNT}/keys/{LOG_KEY}/config", {"deletion_allowed": True, "exportable": True}),
    ("DELETE", f"{LOG_MOUNT}/keys/{LOG_KEY}", None),
    ("GET", f"{LOG_MOUNT}/export/signing-key/{LOG_KEY}", None),
    ("GET", f"{LOG_MOUNT}/backup/{LOG_KEY}", None),
    ("POST", f"{LOG_MOUNT}/keys/another", {"type": "ed25519"}),
    ("POST", f"{LOG_MOUNT}/sign/another", {"input": "YQ=="}),
    ("POST", f"{LOG_MOUNT}/sign/{LOG_KEY}", {"input": "YQ==", "prehashed": True}),
    # Vault itself.
    ("GET", "sys/mounts", None),
    ("POST", "sys/mounts/mine", {"type": "kv"}),
    ("DELETE", "sys/mounts/database", None),
    ("POST", "sys/mounts/database/tune", {"max_lease_ttl": "8760h"}),
    ("POST", "sys/remount", {"from": "database", "to": "elsewhere"}),
    ("GET", "sys/auth", None),
    ("POST", "sys/auth/mine", {"type": "userpass"}),
    ("GET", "sys/audit", None),
    ("DELETE", "sys/audit/main", None),
    ("PUT", "sys/seal", {}),
    ("PUT", "sys/rotate", {}),
    ("GET", "sys/raw/core", None),
    ("PUT", "sys/config/cors", {"enabled": True, "allowed_origins": "*"}),
    ("GET", "sys/plugins/catalog", None),
    ("PUT", "sys/plugins/reload/backend", {"mounts": "database/"}),
    ("GET", "sys/storage/raft/configuration", None),
    ("GET", "sys/storage/raft/snapshot", None),
    ("PUT", "sys/quotas/rate-limit/mine", {"rate": 1}),
    ("PUT", "sys/namespaces/mine", {}),
    ("GET", "secret/data/anything", None),
]


def test_the_list_is_long_enough_and_has_nothing_twice():
    """There are at least sixty different calls."""
    assert len(NOT_ITS_BUSINESS) == len({str(call) for call in NOT_ITS_BUSINESS}) >= 60


@pytest.mark.parametrize("call", NOT_ITS_BUSINESS, ids=lambda call: f"{call[0]} {call[1]}")
def test_the_bots_token_is_refused_where_it_has_no_business(vault, call):
    """Each call, with the bot's own token, is denied."""
    method, path, body = call
    answer = vault._own(method.lower(), path, body)
    assert (answer.status, "permission denied" in answer.words) == (403, True), answer.words


def test_nothing_of_it_had_an_effect(real, vault):
    """After all of it Vault is as it was: mounts, policies and roles are those of the set-up."""
    mounts = sorted(real.bao.call("GET", "sys/mounts")["data"])  # other tests have some of their own
    for method, path, body in NOT_ITS_BUSINESS:
        vault.is_refused(method.lower(), path, body)
    assert sorted(real.bao.call("GET", "sys/mounts")["data"]) == mounts
    assert sorted(real.bao.call("LIST", "database/roles")["data"]["keys"]) == [
        *("orders-rehearsal", "orders-ro", "orders-rw", "orders-watch")
    ]
    assert "another" not in real.bao.call("LIST", "sys/policies/acl")["data"]["keys"]


def test_the_bots_own_work_is_not_refused(real, vault):
    """The same token does what it is for, so that the refusals above are not those of a token that can do nothing."""
    assert not list(breaches(vault, [real.read, real.write], LOG))
    _, grant, _ = real.open(vault)
    assert real.take_back(vault, grant)
    assert len(vault.sign(LOG_MOUNT, LOG_KEY, b"a head", version=1)) == 64


def test_a_strangers_lease_stays(real, vault):
    """A credential that somebody else drew from another role is there after the bot tried to revoke it."""
    real.bao.call(
        "POST",
        "database/roles/another",
        {
            "db_name": "orders",
            "creation_statements": ['CREATE ROLE "{{name}}"'],
            "revocation_statements": ['DROP ROLE "{{name}}"'],
            "default_ttl": 600,
        },
    )
    config = real.bao.call("GET", "database/config/orders")["data"]
    try:
        real.bao.call("POST", "database/config/orders", {"allowed_roles": [*config["allowed_roles"], "another"]})
        lease_id = real.bao.call("GET", "database/creds/another")["lease_id"]
        for sync in (True, False):
            assert vault.is_refused("put", "sys/leases/revoke", {"lease_id": lease_id, "sync": sync})
        assert real.bao.call("PUT", "sys/leases/lookup", {"lease_id": lease_id})["data"]["ttl"] > 0
        real.bao.call("PUT", "sys/leases/revoke", {"lease_id": lease_id, "sync": True})
    finally:
        real.bao.call("POST", "database/config/orders", {"allowed_roles": config["allowed_roles"]})
        real.bao.call("DELETE", "database/roles/another")


# Planted: what somebody adds to the bot's policy, and what is then said.
WIDENED = [
    ('path "database/roles/*" { capabilities = ["read"] }', "read database/roles/orders-ro"),
    ('path "database/config/orders" { capabilities = ["update"] }', "update database/config/orders"),
    ('path "sys/policies/acl/*" { capabilities = ["update"] }', f"update sys/policies/acl/{APPROLE}"),
    ('path "auth/token/create" { capabilities = ["update", "sudo"] }', "sudo and update auth/token/create"),
    (
        'path "transit/keys/breakglass-log/rotate" { capabilities = ["update"] }',
        "update transit/keys/breakglass-log/rot",
    ),
    ('path "sys/leases/revoke" { capabilities = ["update"] }', "revoke a stranger's lease"),
    ('path "sys/leases/lookup" { capabilities = ["update"] }', "look up a stranger's lease"),
    ('path "auth/token/create/bg-orders-ro" { capabilities = ["update"] }', "choose what a grant's token may"),
]


@pytest.mark.parametrize(("more", "words"), WIDENED, ids=[words for _, words in WIDENED])
def test_each_right_too_many_is_found(real, vault, more, words):
    """A bot that was given one right more than its work needs is told so, with the place."""
    path = f"sys/policies/acl/{APPROLE}"
    before = real.bao.call("GET", path)["data"]["policy"]
    try:
        # In place of what was said of that path, if anything was.
        block = re.compile(rf"^{re.escape(more.split(' {')[0])} \{{.*?^\}}\n", re.MULTILINE | re.DOTALL)
        real.bao.call("PUT", path, {"policy": f"{block.sub('', before)}{more}\n"})
        found = list(breaches(real.vault(), [real.read, real.write], LOG))
    finally:
        real.bao.call("PUT", path, {"policy": before})
    assert any(words in sentence for sentence in found), found
    assert not list(breaches(vault, [real.read, real.write], LOG))


def test_a_probe_that_is_allowed_leaves_nothing(real):
    """Made with a token that may do everything, the probes change nothing that lasts."""
    before = real.bao.call("LIST", "sys/policies/acl")["data"]
    allowed = Vault(real.bao.addr, token=real.bao.root_token)
    tried = [allowed.is_refused(method, path, body) for _, method, path, body in probes([real.read])]
    assert not any(tried)
    assert real.bao.call("LIST", "sys/policies/acl")["data"] == before
    assert real.until(lambda: not _has(real, "chosen-by-the-bot"))


def _has(real, token):
    try:
        real.bao.call("POST", "auth/token/lookup", {"token": token})
    except PartFailed:
        return False
    return True


def test_what_is_forbidden_covers_every_level(real):
    """The path of each thing that is set up for a level is among those at which the bot may do nothing."""
    paths = forbidden_paths([real.read, real.write], LOG)
    for path in (
        "database/roles/orders-ro",
        "database/roles/orders-rw",
        "database/config/orders",
        "sys/mounts/database",
    ):
        assert path in paths


# ----------------------------------------------------------------------------------------- a stolen token of a grant

# What somebody would try who has a grant's token: method, path, body.
STOLEN = [
    ("GET", "database/creds/orders-rw", None),
    ("GET", "database/creds/orders-watch", None),
    ("GET", "database/roles/orders-ro", None),
    ("GET", "database/config/orders", None),
    ("GET", "auth/token/lookup-self", None),
    ("POST", "auth/token/renew-self", {"increment": 86400}),
    ("POST", "auth/token/create", {"ttl": "24h"}),
    ("POST", "auth/token/create-orphan", {"ttl": "24h"}),
    ("POST", CHILD, {"ttl": 60}),
    ("POST", "auth/token/create/bg-orders-rw", {"ttl": 60}),
    ("LIST", "auth/token/accessors", None),
    ("POST", f"{OWN}/secret-id", {}),
    ("PUT", "sys/leases/renew", {"lease_id": "{lease}", "increment": 86400}),
    ("LIST", "sys/leases/lookup/database/creds/orders-ro", None),
    ("PUT", "sys/leases/lookup", {"lease_id": "{lease}"}),
    ("PUT", "sys/policies/acl/breakglass-bg-orders-ro", POLICY),
    ("POST", "sys/capabilities-self", {"paths": ["sys/mounts"]}),
    ("PUT", "cubbyhole/mine", {"a": "b"}),
    ("PUT", "sys/wrapping/wrap", {"a": "b"}),
    ("GET", "sys/mounts", None),
    ("POST", "identity/entity", {"name": "mine"}),
    ("POST", f"{LOG_MOUNT}/sign/{LOG_KEY}", {"input": "YQ=="}),
]


def test_a_stolen_grant_token_is_useless_outside_its_path(real, vault):
    """With the token of a running grant nothing can be done but what the grant is for."""
    credential, _, child = real.open(vault)
    for method, path, body in STOLEN:
        sent = {key: credential.lease_id if value == "{lease}" else value for key, value in (body or {}).items()}
        answer = vault._send(child.token, method.lower(), path, sent if body is not None else None)
        assert (answer.status, "permission denied" in answer.words) == (403, True), (path, answer.status, answer.words)
    vault.revoke_accessor(child.accessor)


def test_a_stolen_grant_token_is_useless_after_its_time(real, vault):
    """When the granted time is over, the token does nothing anywhere, nor does its login, though nobody revoked it."""
    credential, grant, child = real.open(vault, ttl=timedelta(seconds=2))
    assert real.until(lambda: vault._send(child.token, "get", "database/creds/orders-ro").status == 403)
    assert real.until(lambda: vault.accessor_is_gone(grant.accessor))
    for method, path, body in [*STOLEN, *NOT_ITS_BUSINESS]:
        answer = vault._send(child.token, method.lower(), path, body)
        assert (answer.status, "permission denied" in answer.words) == (403, True), (path, answer.status, answer.words)
    assert real.until(lambda: not real.login_exists(credential.username))
    with pytest.raises(psycopg.OperationalError):
        real.connect(credential)


def test_a_stolen_grant_token_is_useless_once_the_grant_ended(real, vault):
    """A token that was kept back opens nothing after the grant was taken back."""
    _, grant, child = real.open(vault)
    assert real.take_back(vault, grant)
    assert vault._send(child.token, "get", "database/creds/orders-ro").status == 403
