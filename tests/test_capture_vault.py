"""What Vault's audit log says is joined to the request by the token's accessor, not by what anybody could write.

Against the audit log of a real OpenBao.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from bot import check
from bot.demo.parts import PartFailed, call
from storage.audit import SYSTEM
from workflows import policy as rules
from workflows.captures import CAPTURES
from workflows.captures.seam import Kind, Line, Trust, Unreadable
from workflows.engines import LevelSettings
from workflows.recorder import Raw, Recorder

VAULT = CAPTURES["vault"]


class Audit:
    """The audit log from here on."""

    def __init__(self, real) -> None:
        self.file = real.bao.audit_log
        self.begin = self.file.stat().st_size

    def raw(self) -> list[bytes]:
        """Return the lines that were added."""
        with self.file.open("rb") as file:
            file.seek(self.begin)
            return file.read().splitlines()

    def lines(self) -> list[Line]:
        """Return what they say."""
        return [line for raw in self.raw() for line in VAULT.read(raw)]


@pytest.fixture
def audit(real):
    """Return the audit log."""
    return Audit(real)


@pytest.fixture
def token(real):
    """Return a maker of tokens as an operator makes them."""

    def make(**more: object) -> dict:
        body = {"ttl": "60s", "policies": ["kv-user"], "no_default_policy": True} | more
        return real.bao.call("POST", "auth/token/create", body)["auth"]

    with contextlib.suppress(PartFailed):  # it is there already
        real.bao.call("POST", "sys/mounts/kv-audit", {"type": "kv"})
    policy = 'path "kv-audit/*" { capabilities = ["create", "read", "update", "list"] }\n'
    policy += 'path "auth/token/create" { capabilities = ["update"] }'
    real.bao.call("PUT", "sys/policies/acl/kv-user", {"policy": policy})
    return make


def answered(**more: object) -> bytes:
    """Return a line as OpenBao 2.7 writes it, with some of its parts replaced."""
    record = {
        "time": "2026-11-24T13:38:18.943084623Z",
        "type": "response",
        "auth": {"accessor": "EKvgn6VMNKYEz5rBMSuNkds5", "metadata": {"request": "BG-7KQ2", "requester": "U0RITA"}},
        "request": {"id": "4b9754ec", "operation": "read", "path": "kv/a"},
        "response": {"data": {"x": "hmac-sha256:efa3"}},
    }
    return json.dumps(record | more).encode()


# ---------------------------------------------------------------------------------------------------- a real server


def test_issuing_and_each_use_carry_the_grants_accessor(real, vault, audit):
    """The reading that issues the credential, and every other call with the grant's token, say whose they are."""
    _, grant, child = real.open(vault)
    with pytest.raises(PartFailed):
        call(real.bao.addr, "GET", "sys/mounts", token=child.token)
    told = [line for line in audit.lines() if line.identity == grant.accessor]
    made, *uses = [line for line in told if line.kind is Kind.CALL]
    assert {line.request for line in told} == {grant.request_id}
    # Its making is the bot's call; whose it is says the accessor of what came out.
    assert made.text == f"update auth/token/create/{real.read.settings.token_role}"
    assert ("read database/creds/orders-ro", "ok") in {(line.text, line.result) for line in uses}
    assert ("read sys/mounts", "permission denied") in {(line.text, line.result) for line in uses}
    assert all(abs(datetime.now(UTC) - line.at) < timedelta(minutes=5) for line in told)
    assert grant.accessor not in {line.session for line in told}


def test_a_call_is_told_once(real, audit, token):
    """Of the two lines that Vault writes of a call, one is told."""
    made = token(meta={"request": "BG-0ONE"})
    call(real.bao.addr, "POST", "kv-audit/one", {"a": "b"}, token=made["client_token"])
    assert [line.text for line in audit.lines() if line.identity == made["accessor"]] == [
        "update auth/token/create",
        "create kv-audit/one",
    ]


def test_a_credential_that_an_operators_token_reads_is_told(real, audit, token):
    """A successful reading by a token of nobody's is told with that token's accessor, for the recorder to judge."""
    real.bao.call("POST", "kv-audit/two", {"a": "b"})
    made = token()
    call(real.bao.addr, "GET", "kv-audit/two", token=made["client_token"])
    with pytest.raises(PartFailed):
        call(real.bao.addr, "GET", "kv-audit/none", token=made["client_token"])
    [line] = [line for line in audit.lines() if line.identity == made["accessor"] and line.text.startswith("read")]
    assert (line.text, line.request, line.result) == ("read kv-audit/two", None, "ok")


def test_another_token_made_with_the_grants_is_a_hole(real, audit, token):
    """What a responder does with a token of the token's is not joined, so the session says that there is one."""
    made = token(meta={"request": "BG-0TWO"})
    call(real.bao.addr, "POST", "auth/token/create", {"ttl": "10s"}, token=made["client_token"])
    kinds = [line.kind for line in audit.lines() if line.identity == made["accessor"]]
    assert kinds == [Kind.CALL, Kind.CALL, Kind.HOLE]


def test_no_value_of_vaults_is_told(real, audit, token):
    """Neither what was written nor the token stands in what is told."""
    made = token(meta={"request": "BG-0TRE"})
    call(real.bao.addr, "POST", "kv-audit/three", {"key": "a-secret-value"}, token=made["client_token"])
    said = repr(audit.lines())
    assert "a-secret-value" not in said
    assert made["client_token"] not in said


def test_every_line_of_a_real_log_is_read(real, vault, audit):
    """Whatever the server wrote in this process' life, none of it is unreadable, and twice says the same."""
    real.open(vault)
    audit.begin = 0
    raws = audit.raw()
    assert len(raws) > 20
    assert [VAULT.read(raw) for raw in raws] == [VAULT.read(raw) for raw in raws]


# ------------------------------------------------------------------------------------------------------ on the record


SOURCES = f"""captures:
  vault: {{kind: vault, token_sha256: {"a" * 64}}}
"""


class Listener:
    """What reads the audit log of the Vault at which the counter stands, and records it."""

    def __init__(self, counter, real) -> None:
        counter.policy = rules.parse(counter.policy.text + SOURCES, name="recorded")
        self.counter = counter
        self.audit = Audit(real)
        self.recorder = Recorder(counter.database, lambda: counter.policy)

    def take(self) -> None:
        """Record what has been added."""
        at, raws = self.audit.begin, []
        for line in self.audit.raw():
            raws.append(Raw("audit.log", at, line))
            at += len(line) + 1
        self.recorder.take("vault", raws, self.counter.now)

    def said(self, event: str, row=None) -> list[dict]:
        """Return what the log says."""
        return [record.data for record in self.counter.log_of(row) if record.event == event]


@pytest.fixture
def listener(counter, real):
    """Return a listener that begins now."""
    return Listener(counter, real)


def test_what_is_issued_is_joined_to_its_request(listener, counter):
    """The issuing and each use under the grant's token are the request's; of what the bot does nothing is told."""
    row = counter.approved()
    name = counter.show(row).username
    listener.take()
    told = [(data["identity"], data["text"], data["result"]) for data in listener.said("command:run", row)]
    assert told == [
        (name, "update auth/token/create/bg-orders-ro", "ok"),
        (name, "read database/creds/orders-ro", "ok"),
    ]
    assert listener.said("command:stranger") == []
    assert listener.said("capture:unreadable") == []


def test_attack_a_credential_without_an_approved_request(listener, real, token):
    """A credential that an operator's token reads at a level's path is an alarm, with the accessor that ends it."""
    made = token(policies=["root"])
    call(real.bao.addr, "GET", "database/creds/orders-ro", token=made["client_token"])
    listener.take()
    (data,) = listener.said("command:stranger")
    assert (data["identity"], data["text"]) == (made["accessor"], "read database/creds/orders-ro")


def test_attack_a_token_that_is_given_the_name_of_a_request(listener, real, counter, token):
    """A token that an operator makes with the metadata of a live request is not taken for it: what it does alarms."""
    row = counter.approved()
    counter.show(row)
    listener.take()
    before = len(listener.said("command:run", row))
    listener.audit = Audit(real)
    made = token(policies=["root"], meta={"request": row.id})
    call(real.bao.addr, "GET", "sys/mounts", token=made["client_token"])
    listener.take()
    assert {data["identity"] for data in listener.said("command:stranger")} == {made["accessor"]}
    assert len(listener.said("command:run", row)) == before


def test_attack_a_token_that_calls_itself_a_rehearsal(listener, real, token):
    """A name as of a rehearsal excuses nothing: the log must know of one."""
    made = token(policies=["root"], meta={"check": "check-0badcafe"})
    call(real.bao.addr, "GET", "database/creds/orders-rw", token=made["client_token"])
    listener.take()
    (data,) = listener.said("command:stranger")
    assert data["text"] == "read database/creds/orders-rw"


def test_the_bots_own_looking_is_no_alarm(listener, counter, vault):
    """What "breakglass check" does at every level, with and without a credential of its own, calls nobody."""
    found = list(check._levels(vault, counter.policy, counter.database, SYSTEM, is_tried=True))
    assert found
    listener.take()
    assert any(line.request is not None for line in listener.audit.lines())
    assert listener.said("command:stranger") == []
    assert listener.said("command:run") == []


def test_a_token_that_is_the_credential_is_announced(counter, real, vault):
    """Where the token is what is given out, its name is on record before it is made; elsewhere nothing is written."""
    account = counter.policy.accounts["orders-db"]
    settings = LevelSettings(
        engine="token", token_role="bg-orders-ro", options={"address": real.bao.addr, "policies": "bg-orders-ro"}
    )
    levels = [account.levels["read"], replace(account.levels["read"], settings=settings)]
    told: list[str] = []
    for level in levels:
        check.ask_level(vault, "orders-db/read", level, told.append)
    assert len(told) == 1
    assert told[0].startswith("check-")


# ------------------------------------------------------------------------------------------------------ forged lines


def test_attack_an_accessor_that_stands_twice():
    """A line in which a key stands twice names nobody: one reader would believe the first, and another the last."""
    twice = answered().replace(b'"accessor":', b'"accessor": "other", "accessor":')
    with pytest.raises(Unreadable):
        VAULT.read(twice)


def test_attack_a_path_that_looks_like_a_line():
    """JSON within a path stays the text of the call, under the caller's own accessor."""
    forged = '"},"auth":{"accessor":"other"},"x":{"y":"'
    [line] = VAULT.read(answered(request={"operation": "read", "path": f"kv/{forged}"}))
    assert (line.identity, line.text) == ("EKvgn6VMNKYEz5rBMSuNkds5", f"read kv/{forged}")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\x00",
        b"null",
        b"[]",
        b"{}",
        answered()[:-5],
        answered() + answered(),
        answered(type="other"),
        answered(request={}),
        answered(time="2026-11-24T13:38:18"),
        answered(time=7),
        answered(response={"data": {"x": "y" * 1_100_000}}),
        b"[" * 100_000,
        b"\xff" + answered(),
    ],
    ids=repr,
)
def test_a_line_that_vault_did_not_write_is_unreadable(raw):
    """Garbage, a torn line, two in one, NUL bytes, a line of a megabyte: none of them says anything about anybody."""
    with pytest.raises(Unreadable):
        VAULT.read(raw)


def test_a_device_that_hides_accessors_is_unreadable():
    """Where nobody can say whose a line is, it is not guessed by what the token's maker wrote into it."""
    auth = {"accessor": "hmac-sha256:58fd14bb", "metadata": {"request": "BG-7KQ2"}}
    with pytest.raises(Unreadable, match="hmac_accessor"):
        VAULT.read(answered(auth=auth))


def test_the_setup_is_what_the_real_server_was_started_with(real):
    """The stanza that is printed says of the device what the configuration of the server in these tests says."""
    printed = " ".join(VAULT.setup({"file": str(real.bao.audit_log)}).split())
    config = (real.bao.directory / "openbao.hcl").read_text()
    for line in ('mode = "0600"', 'hmac_accessor = "false"', f'file_path = "{real.bao.audit_log}"'):
        assert line in printed
        assert line in config
    assert VAULT.trust is Trust.ENFORCED
