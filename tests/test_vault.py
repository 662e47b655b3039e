"""What the bot may and may not do at Vault, and what it makes of Vault's answers; against a real OpenBao."""

from __future__ import annotations

import http.client
import itertools
import json
import socket
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bot.demo.parts import PartFailed, call, free_port
from workflows import vault as module
from workflows.errors import Unavailable, VaultRefused
from workflows.vault import ChildToken, Secret, Vault

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SECRET = "s.very-secret-token"


# -------------------------------------------------------------------------------------------------- a grant's own token


def test_a_child_token_is_an_orphan_with_one_policy_and_one_end(real, vault):
    """A grant's token is nobody's child, cannot be renewed, ends at its time and has no policy but its level's."""
    child = vault.open_child("bg-orders-ro", 5 * MINUTE, display_name="BG-7KQ2", metadata={"request": "BG-7KQ2"})
    seen = real.bao.call("POST", "auth/token/lookup-accessor", {"accessor": child.accessor})["data"]
    assert seen["orphan"]
    assert not seen["renewable"]
    assert seen["policies"] == ["breakglass-bg-orders-ro"]
    assert (seen["creation_ttl"], seen["explicit_max_ttl"]) == (300, 300)
    assert seen["meta"] == {"request": "BG-7KQ2"}
    assert child.ttl == 5 * MINUTE


def test_a_grant_outlives_the_bots_token(real):
    """When the bot's own token is revoked, a grant that it opened goes on until its own end."""
    vault = real.vault()
    credential, grant, _ = real.open(vault)
    real.bao.call("POST", "auth/token/revoke", {"token": vault._token})
    assert credential.lease_id in vault.leases(grant.lease_prefix)
    with real.connect(credential) as session:
        assert session.execute("SELECT 1").fetchone() == (1,)


def test_a_grant_cannot_be_longer_than_its_level_allows(real, vault):
    """Vault itself caps a token at the level's longest time, also for a bot that asks for more."""
    child = vault.open_child("bg-orders-ro", timedelta(hours=9), display_name="BG-7KQ2", metadata={})
    assert child.ttl == real.read.longest


def test_a_child_token_reads_its_level_only(real, vault):
    """The token of a read grant is refused at the write level, at the engine's configuration and at making tokens."""
    child = vault.open_child("bg-orders-ro", MINUTE, display_name="BG-7KQ2", metadata={})
    for path in ("database/creds/orders-rw", "database/config/orders", "sys/policies/acl/breakglass-bot"):
        with pytest.raises(VaultRefused):
            vault.read_as(child, path)
    with pytest.raises(PartFailed, match="403"):
        call(real.bao.addr, "POST", "auth/token/create", {}, token=child.token)


def test_less_than_a_second_is_not_forever(vault):
    """A time of zero, which Vault would read as "the system's longest", is refused before it is sent."""
    with pytest.raises(VaultRefused, match="less than a second"):
        vault.open_child("bg-orders-ro", timedelta(milliseconds=900), display_name="BG-7KQ2", metadata={})


def test_what_has_no_lease_is_refused(real, vault):
    """An answer without a lease, which nothing would take back, is not handed out as a credential."""
    with pytest.raises(VaultRefused, match="no lease"):
        vault.read_as(real.root_child(), "auth/token/lookup-self")


# ----------------------------------------------------------------------------------------------------- the bot's limits


@pytest.mark.parametrize(
    "path",
    ["database/creds/orders-ro", "database/creds/orders-rw", "database/config/orders", "database/roles/orders-ro"],
)
def test_the_bot_reads_neither_credentials_nor_configuration(vault, path):
    """The bot's own token can read no credential, no connection and no role."""
    vault.log_in()
    with pytest.raises(VaultRefused, match="permission denied"):
        vault.read_as(ChildToken("", vault._token, MINUTE), path)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("auth/token/create", {}),
        ("auth/token/create-orphan", {}),
        ("auth/token/create/some-other-role", {"ttl": 60}),
        ("auth/token/create/bg-orders-ro", {"policies": ["breakglass-bot"]}),
        ("auth/token/create/bg-orders-ro", {"ttl": 60, "renewable": True}),
        ("auth/token/create/bg-orders-ro", {"ttl": 60, "no_default_policy": False}),
        ("auth/token/create/bg-orders-ro", {"ttl": 60, "id": "s.chosen"}),
        ("auth/token/create/bg-orders-ro", {"period": 3600}),
        ("auth/token/roles/bg-orders-ro", {"allowed_policies": ["root"]}),
        ("auth/approle/role/breakglass-bot/secret-id", {}),
        ("database/roles/orders-ro", {"revocation_statements": []}),
        ("sys/leases/revoke-prefix/database", {}),
        ("sys/leases/revoke-force/database", {}),
        ("sys/seal", {}),
    ],
)
def test_the_bot_cannot_widen_its_reach(real, vault, path, body):
    """A bot that was taken over can make no other token, change no rule and revoke nothing wholesale."""
    vault.log_in()
    with pytest.raises(PartFailed, match=r"answered 40[35]"):
        call(real.bao.addr, "POST", path, body, token=vault._token)


def test_the_bot_cannot_revoke_a_strangers_lease(real, vault):
    """A lease outside the bot's levels is refused, and stays."""

    def tokens():
        return set(real.bao.call("LIST", "sys/leases/lookup/auth/token/create/")["data"]["keys"])

    real.bao.call("POST", "auth/token/create", {"ttl": "1h"})
    before = tokens()
    stranger = real.bao.call("POST", "auth/token/create", {"ttl": "1h"})["auth"]["accessor"]
    [key] = tokens() - before
    for sync in (True, False):
        with pytest.raises(VaultRefused, match="permission denied"):
            vault.revoke_lease(f"auth/token/create/{key}", sync=sync)
    assert not real.root_vault().accessor_is_gone(stranger)
    real.root_vault().revoke_accessor(stranger)


def test_the_bot_lists_no_leases_but_its_levels(vault):
    """Neither the engine's other leases nor the tokens of others can be listed."""
    for prefix in ("database/creds", "database", "auth/token/create", "auth/approle/login"):
        with pytest.raises(VaultRefused, match="permission denied"):
            vault.leases(prefix)


def test_capabilities_tell_what_a_grant_could_read_without_reading_it(vault):
    """The check before the night asks for a child token's rights and creates no credential."""
    child = vault.open_child("bg-orders-ro", MINUTE, display_name="check", metadata={})
    before = vault.leases("database/creds/orders-ro")
    assert vault.capabilities("database/creds/orders-ro", accessor=child.accessor) == {"read"}
    assert vault.capabilities("database/creds/orders-rw", accessor=child.accessor) == {"deny"}
    assert vault.capabilities("database/creds/orders-ro") == {"deny"}
    assert "update" in vault.capabilities("auth/token/create/bg-orders-ro")
    assert vault.leases("database/creds/orders-ro") == before


# --------------------------------------------------------------------------------------------------- ending, looking up


def test_revoking_twice_is_fine(real, vault):
    """The second revocation of a token, and that of one which never was, say nothing."""
    _, grant, _ = real.open(vault)
    vault.revoke_accessor(grant.accessor)
    vault.revoke_accessor(grant.accessor)
    vault.revoke_accessor("never-was")
    assert vault.accessor_is_gone(grant.accessor)
    assert vault.accessor_is_gone("never-was")


def test_a_live_token_is_not_gone(real, vault):
    """A token that still works is never reported as gone."""
    _, grant, _ = real.open(vault)
    assert not vault.accessor_is_gone(grant.accessor)


def test_lease_lookup_and_revocation(real, vault):
    """A lease is found with its times while it lives, and revoking it synchronously leaves nothing to find."""
    credential, grant, _ = real.open(vault)
    lease = vault.lease(credential.lease_id)
    assert abs(lease.issue_time - datetime.now(UTC)) < MINUTE
    assert timedelta(0) < lease.ttl <= real.read.longest
    vault.revoke_lease(credential.lease_id, sync=True)
    assert vault.lease(credential.lease_id) is None
    assert credential.lease_id not in vault.leases(grant.lease_prefix)
    vault.revoke_lease(credential.lease_id, sync=True)
    vault.revoke_lease(credential.lease_id, sync=False)


def test_no_leases_is_an_empty_set(real):
    """Vault's way of saying "none" (404 without a word) is the empty set, and only that."""
    assert real.root_vault().leases("database/creds/nobody-ever-read-this") == frozenset()


def test_wrapping_tokens_are_not_leases(real, vault):
    """A wrapping token of the same role, which stands in the same list, is left out."""
    before = vault.leases("database/creds/orders-rw")
    host = real.bao.addr.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=10)
    headers = {"X-Vault-Token": real.bao.root_token, "X-Vault-Wrap-TTL": "60"}
    connection.request("GET", "/v1/database/creds/orders-rw", headers=headers)
    assert "wrap_info" in json.loads(connection.getresponse().read())
    connection.close()
    raw = real.bao.call("LIST", "sys/leases/lookup/database/creds/orders-rw/")["data"]["keys"]
    assert any(len(key) == 65 for key in raw)
    assert len(vault.leases("database/creds/orders-rw") - before) == 1


def test_nothing_is_irrevocable_on_a_good_day(vault):
    """The list of leases that Vault gave up on can be read by the bot, and is empty."""
    assert vault.irrevocable() == frozenset()


# ------------------------------------------------------------------------------------------------------ the bot's token


def _logins(real):
    lines = real.bao.audit_log.read_text(encoding="utf-8").splitlines()
    entries = (json.loads(line) for line in lines)
    return sum(e["type"] == "response" and e["request"]["path"] == "auth/approle/login" for e in entries)


def test_eight_threads_whose_token_died_log_in_once(real):
    """When the bot's token is gone, the threads that notice at once share one new login, and each call succeeds."""
    vault = real.vault()
    vault.log_in()
    real.bao.call("POST", "auth/token/revoke", {"token": vault._token})
    before = _logins(real)
    gate = threading.Barrier(8)

    def look():
        gate.wait()
        return vault.leases("database/creds/orders-ro")

    with ThreadPoolExecutor(8) as pool:
        results = [future.result() for future in [pool.submit(look) for _ in range(8)]]
    assert len(results) == 8
    assert _logins(real) == before + 1


def test_a_token_past_half_its_life_is_renewed(real):
    """Keeping alive renews a token that is running out; one with time left is left alone."""
    made = real.bao.call("POST", "auth/token/create", {"ttl": 600, "policies": ["root"]})["auth"]
    vault = Vault(real.bao.addr, token=made["client_token"])
    call(real.bao.addr, "POST", "auth/token/renew-self", {"increment": 60}, token=made["client_token"])
    vault.keep_alive(NOW)
    look = real.bao.call("POST", "auth/token/lookup-accessor", {"accessor": made["accessor"]})
    assert look["data"]["ttl"] > 300
    assert vault._token == made["client_token"]


def test_a_token_at_the_end_of_its_longest_life_is_replaced(real):
    """When renewing gains nothing more, the bot logs in again before its token ends."""
    role = "auth/approle/role/short-lived"
    real.bao.call("POST", role, {"token_policies": ["breakglass-bot"], "token_ttl": 3, "token_max_ttl": 3})
    role_id = real.bao.call("GET", f"{role}/role-id")["data"]["role_id"]
    secret_id = real.bao.call("POST", f"{role}/secret-id", {})["data"]["secret_id"]
    vault = Vault(real.bao.addr, role_id=role_id, secret_id=secret_id)
    vault.log_in()
    first = vault._token
    moments = itertools.count()

    def is_replaced():
        # Each look comes an hour later by the scheduler's clock, while Vault's own runs on.
        vault.keep_alive(NOW + timedelta(hours=next(moments)))
        assert not vault._is_dead(vault._token)
        return vault._token != first

    assert real.until(is_replaced)


def test_the_token_is_looked_at_now_and_then(real):
    """A look at the bot's token is repeated only after some minutes; a token found dead is replaced then."""
    vault = real.vault()
    vault.keep_alive(NOW)
    first = vault._token
    real.bao.call("POST", "auth/token/revoke", {"token": first})
    vault.keep_alive(NOW + timedelta(seconds=30))
    assert vault._token == first
    vault.keep_alive(NOW + timedelta(minutes=6))
    assert vault._token != first


def test_a_login_that_vault_does_not_accept_is_repaired_by_an_operator(real):
    """Wrong role ids and dead tokens are Unavailable, not refused: what was decided waits and is not dropped."""
    with pytest.raises(Unavailable, match="role id and secret id"):
        Vault(real.bao.addr, role_id="wrong", secret_id="wrong").leases("database/creds/orders-ro")
    dead = Vault(real.bao.addr, token="s.dead")
    for attempt in (dead.log_in, lambda: dead.revoke_accessor("x"), lambda: dead.keep_alive(NOW)):
        with pytest.raises(Unavailable, match="new one"):
            attempt()


def test_no_way_to_log_in_is_said_at_once():
    """A Vault without a token and without a whole AppRole is refused when it is built."""
    with pytest.raises(VaultRefused, match="no way to log in"):
        Vault("http://127.0.0.1:1", role_id="only-half")


# ----------------------------------------------------------------------------------------------- when Vault is not well


def _every_call(vault):
    child = ChildToken("accessor", SECRET, MINUTE)
    return {
        "open_child": lambda: vault.open_child("bg-orders-ro", MINUTE, display_name="x", metadata={}),
        "read_as": lambda: vault.read_as(child, "database/creds/orders-ro"),
        "revoke_accessor": lambda: vault.revoke_accessor("accessor"),
        "accessor_is_gone": lambda: vault.accessor_is_gone("accessor"),
        "leases": lambda: vault.leases("database/creds/orders-ro"),
        "lease": lambda: vault.lease("database/creds/orders-ro/x"),
        "revoke_lease": lambda: vault.revoke_lease("database/creds/orders-ro/x", sync=True),
        "irrevocable": vault.irrevocable,
        "capabilities": lambda: vault.capabilities("database/creds/orders-ro"),
        "keep_alive": lambda: vault.keep_alive(NOW),
    }


def _assert_bare(error, *secrets):
    """The error holds no secret and drags no foreign exception along."""
    assert error.__cause__ is None
    assert error.__context__ is None
    text = "".join(traceback.format_exception(error)) + repr(error) + repr(error.__dict__)
    assert not [secret for secret in secrets if secret in text]


def test_a_sealed_vault_is_unavailable_and_comes_back(real):
    """While Vault is sealed each call says Unavailable, never "gone"; health says why; afterwards all works."""
    vault = real.vault()
    vault.log_in()
    real.bao.seal()
    try:
        for name, attempt in _every_call(vault).items():
            with pytest.raises(Unavailable) as caught:
                attempt()
            assert "sealed" in str(caught.value), name
            _assert_bare(caught.value, vault._token, SECRET)
        health = vault.health()
        assert health.sealed
        assert not health.is_ready
    finally:
        real.bao.unseal()
    assert vault.health().is_ready
    assert vault.accessor_is_gone("never-was")


def test_nobody_answers():
    """A Vault that is not there is Unavailable for each call, and no error carries the token."""
    vault = Vault(f"http://127.0.0.1:{free_port()}", token=SECRET)
    for attempt in [*_every_call(vault).values(), vault.health]:
        with pytest.raises(Unavailable, match="cannot be reached") as caught:
            attempt()
        _assert_bare(caught.value, SECRET)


def test_a_vault_that_never_answers_does_not_hold_the_bot(monkeypatch):
    """A server that accepts and says nothing ends in Unavailable after the read time-out."""
    monkeypatch.setattr(module, "READ_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        vault = Vault(f"http://127.0.0.1:{silent.getsockname()[1]}", token=SECRET)
        with pytest.raises(Unavailable, match="in time") as caught:
            vault.leases("database/creds/orders-ro")
    _assert_bare(caught.value, SECRET)


@pytest.fixture
def answering():
    """A server that gives one fixed answer to everything."""

    class Fixed(BaseHTTPRequestHandler):
        answer = (200, b"{}")

        def _say(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, body = self.answer
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    for method in ("GET", "POST", "PUT", "LIST"):
        setattr(Fixed, f"do_{method}", Fixed._say)

    with ThreadingHTTPServer(("127.0.0.1", 0), Fixed) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        vault = Vault(f"http://127.0.0.1:{server.server_address[1]}", token=SECRET)

        def answer(status, body=b"{}"):
            Fixed.answer = (status, body)
            return vault

        yield answer
        server.shutdown()


@pytest.mark.parametrize("status", [412, 429, 472, 473, 500, 501, 502, 503, 504])
def test_statuses_that_pass_are_unavailable(answering, status):
    """Overload, a standby, an internal error, a gateway: each is worth another try, for each call."""
    vault = answering(status, b'{"errors": ["oh"]}')
    for attempt in _every_call(vault).values():
        with pytest.raises(Unavailable) as caught:
            attempt()
        _assert_bare(caught.value, SECRET)


@pytest.mark.parametrize("status", [400, 404, 405])
def test_statuses_that_last_are_refused(answering, status):
    """An invalid request, a missing path: a lasting no, and "gone" is not read into it."""
    vault = answering(status, b'{"errors": ["no handler for route"]}')
    calls = _every_call(vault)
    # An engine that cannot take something back says so with a 400, in its own words: that passes.
    passing = {"revoke_lease"} if status == 400 else set()
    for name in calls.keys() - {"keep_alive"}:
        with pytest.raises(Unavailable if name in passing else VaultRefused) as caught:
            calls[name]()
        _assert_bare(caught.value, SECRET)


@pytest.mark.parametrize("body", [b"<html>sign in to the network</html>", b"[]", b'"x"', b"{}", b'{"data": null}', b""])
def test_an_answer_that_is_not_vaults_proves_nothing(answering, body):
    """A proxy's page or an empty answer with status 200 is neither a credential nor a proof that something is gone."""
    vault = answering(200, body)
    calls = _every_call(vault)
    for name in ("open_child", "read_as", "leases", "lease"):
        with pytest.raises((Unavailable, VaultRefused)):
            calls[name]()
    if body not in (b"{}", b'{"data": null}', b"[]", b'"x"', b""):
        with pytest.raises(Unavailable):
            calls["revoke_accessor"]()
    assert answering(200, b"{}").accessor_is_gone("x") is False


def test_a_database_error_with_the_password_in_it_goes_no_further(answering):
    """Vault's words about a failed credential, which may repeat the statement, are left out of the error."""
    vault = answering(500, b'{"errors": ["syntax error in PASSWORD \'hunter2-hunter2\'"]}')
    with pytest.raises(Unavailable) as caught:
        vault.read_as(ChildToken("a", SECRET, MINUTE), "database/creds/orders-ro")
    _assert_bare(caught.value, SECRET, "hunter2-hunter2")


def test_a_token_that_cannot_be_a_header_is_not_repeated(real):
    """The library's complaint about a token with a newline repeats it; the error that leaves does not."""
    vault = Vault(real.bao.addr, token=f"{SECRET}\nX-Evil: 1")
    with pytest.raises(Unavailable) as caught:
        vault.leases("database/creds/orders-ro")
    _assert_bare(caught.value, SECRET)


@pytest.mark.parametrize("address", ["127.0.0.1:8200", "", "http://", "ftp://127.0.0.1", "http://[::1", "http://a b"])
def test_an_address_that_is_none_is_unavailable(address):
    """A mistyped VAULT_ADDR is a sentence, not an exception of the HTTP library."""
    vault = Vault(address, token=SECRET)
    with pytest.raises(Unavailable) as caught:
        vault.health()
    _assert_bare(caught.value, SECRET)


def test_a_proxy_in_the_environment_does_not_see_the_token(real, monkeypatch):
    """HTTP_PROXY and friends are not followed: the call goes straight to Vault."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("no_proxy", "")
    vault = real.vault()
    vault.log_in()
    assert vault.health().is_ready
    assert vault.accessor_is_gone("never-was")


def test_no_value_shows_its_secret():
    """Neither repr nor str of what passes through shows a token, a password or the bot's login."""
    values = [
        ChildToken("accessor", SECRET, MINUTE),
        Secret({"password": SECRET}, "lease", MINUTE, "request"),
        Vault("http://127.0.0.1:1", token=SECRET),
        Vault("http://127.0.0.1:1", role_id="r", secret_id=SECRET),
    ]
    assert not [value for value in values if SECRET in f"{value!r}{value}"]
