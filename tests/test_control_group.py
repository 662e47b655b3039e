"""Do custodians hold a credential with keys of their own, so that whoever has the bot cannot make it?

Against a real OpenBao of its own, set up as ``breakglass vault apply`` does, and a real PostgreSQL.
"""

from __future__ import annotations

import io
import json
import secrets
import shutil
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import psycopg
import pytest
import yaml
from counter import CARL, CHEN, PATIENCE, POLICY, RITA, TEAM, Counter, People
from sandbox_app import bolted, client_of
from slack_bolt import App
from stages import until

from bot import check as checking
from bot import cli, entries, listeners, modals, views
from bot.demo.parts import OpenBao
from bot.demo.run import SEED
from bot.demo.vault_setup import prepare_target
from bot.directory import SlackDirectory
from bot.sandbox.blocks import Surface, check_view
from bot.sandbox.driver import Driver, wait_for
from bot.sandbox.server import Sandbox
from bot.thread import ThreadFollower
from storage.audit import check
from storage.database import Database
from storage.models import State
from workflows import policy as rules
from workflows import sweep
from workflows.control_group import Authorisations, Custodian
from workflows.engines.seam import ControlGroup
from workflows.errors import BreakGlassError, Conflict, Invalid, NotAllowed, Unavailable, VaultRefused
from workflows.vault import Pending, Vault
from workflows.vault_apply import CHANGED, SAME, Operator, carry_out, compare
from workflows.vault_limits import breaches
from workflows.vault_plan import APPROLE, levels_of, log_key_of, plan, plan_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from workflows.control_group import Question
    from workflows.vault import ChildToken

pytest_plugins = ["real_parts", "counter"]

LONG: Final = 60.0  # seconds within which what comes by itself must have come
GROUP: Final = "custodians-orders"
PATH: Final = "database/creds/orders-rw"
ROLE: Final = "breakglass-orders-db-write"
VARIABLE: Final = "VAULT_SECRET_DATABASE_CONFIG_ORDERS_KEYS_PASSWORD"
ENFORCED: Final = f"        enforced_by: vault\n        vault_group: {GROUP}\n"


def policy_text(port: int = 5432, extra: str = ENFORCED) -> str:
    """The demo's policy, whose level ``write`` is held by custodians' own keys."""
    text = POLICY.read_text(encoding="utf-8").replace("port: 5432", f"port: {port}")
    text = text.replace("database: orders", "database: orders_keys").replace("manager: bgmgr", "manager: bgmgr_keys")
    return text.replace("        quorum: 2\n", f"        quorum: 2\n{extra}")


@dataclass
class House:
    """An OpenBao where custodians hold the level ``write`` with keys of their own."""

    bao: OpenBao
    policy: rules.Policy
    operator: Operator
    secret: str
    role_id: str = ""
    secret_id: str = ""

    def __post_init__(self) -> None:
        self.passwords: dict[str, str] = {}
        self.entities: dict[str, str] = {}

    def apply(self) -> list[str]:
        """Do what ``breakglass vault apply --yes`` does; what was written."""
        differences = compare(self.operator, plan_of(self.policy))
        done = carry_out(self.operator, differences, levels_of(self.policy), {VARIABLE: self.secret})
        return [one.write.path for one in done]

    def hire(self, *names: str) -> None:
        """Give people a login of their own. Whether what they say counts is for the group."""
        for name in names:
            self.passwords[name] = secrets.token_urlsafe(12)
            self.bao.call("POST", f"auth/userpass/users/{name}", {"password": self.passwords[name]})
            self.entities[name] = self.log_in(name)["entity_id"]

    def members(self, *names: str, entities: tuple[str, ...] = ()) -> None:
        """Say who is in the group."""
        ids = [*(self.entities[name] for name in names), *entities]
        self.bao.call("POST", f"identity/group/name/{GROUP}", {"member_entity_ids": ids})

    def log_in(self, name: str) -> dict[str, Any]:
        """Log a person in."""
        return self.ask("POST", f"auth/userpass/login/{name}", {"password": self.passwords[name]})[1]["auth"]

    def custodian(self, name: str) -> Custodian:
        """A person at their own machine."""
        return Custodian(self.bao.addr, self.log_in(name)["client_token"])

    def vault(self) -> Vault:
        """The bot's Vault."""
        return Vault(self.bao.addr, role_id=self.role_id, secret_id=self.secret_id)

    def ask(
        self, method: str, path: str, body: Any = None, token: str = "", **headers: str
    ) -> tuple[int, dict[str, Any]]:
        """Call Vault as whoever has ``token``; the status and what it said."""
        request = urllib.request.Request(  # noqa: S310 - our own server
            f"{self.bao.addr}/v1/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={**({"X-Vault-Token": token} if token else {}), **headers},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                text, status = answer.read(), answer.status
        except urllib.error.HTTPError as error:
            text, status = error.read(), error.code
        return status, json.loads(text) if text.strip() else {}

    def leases(self) -> frozenset[str]:
        """What is out of the level."""
        return self.operator.leases(PATH)


@pytest.fixture(scope="module")
def house(real, tmp_path_factory) -> Iterator[House]:
    """Set up once; tests put back what they change."""
    target = prepare_target(real.pg, database="orders_keys", manager="bgmgr_keys")
    with OpenBao(tmp_path_factory.mktemp("keys")) as bao:
        policy = rules.parse(policy_text(real.pg.port), name="keys")
        house = House(bao, policy, Operator(bao.addr, bao.root_token), target.password)
        house.apply()
        house.role_id, house.secret_id = house.operator.new_credentials()
        bao.call("POST", "sys/auth/userpass", {"type": "userpass"})
        house.hire("carl", "chen", "cora", "eve")
        house.members("carl", "chen", "cora")
        yield house


@pytest.fixture
def counter(house, database) -> Iterator[Counter]:
    """A desk at that Vault. Its clock starts at the true time, since Vault's cannot be moved."""
    desk = Counter(database, house.policy, People(), house.vault(), team=TEAM, patience=PATIENCE)
    desk.now = datetime.now(UTC)
    yield desk
    desk.hold_nobody()
    house.bao.call("PUT", "sys/leases/revoke-prefix/database/creds", {"sync": True})


@pytest.fixture
def pool(counter) -> Iterator[ThreadPoolExecutor]:
    """Threads, as listeners have them."""
    with ThreadPoolExecutor(4) as pool:
        yield pool
        counter.hold_nobody()


class Asked:
    """Who is told what custodians are asked."""

    def __init__(self) -> None:
        self.question: Question | None = None
        self._told = threading.Event()

    def __call__(self, question: Question) -> None:
        """Be told."""
        self.question = question
        self._told.set()

    def wait(self) -> Question:
        """Wait until custodians are asked."""
        assert self._told.wait(LONG)
        assert self.question is not None
        return self.question


def begin(counter, pool, row):
    """Press Reveal and wait until custodians are asked; what is to come, and the question."""
    asked = Asked()
    version = counter.case(row.id).request.version
    intent = counter.reveal(RITA, row.id, version, now=counter.now)
    coming = pool.submit(counter.issue, intent, now=counter.now, asked=asked)
    return coming, asked.wait()


def approved(counter):
    """A request that Slack's quorum has approved."""
    return counter.approved(level="write", by=(CARL, CHEN), minutes=10)


def log_in(house, credential) -> psycopg.Connection:
    """Log in at PostgreSQL."""
    return psycopg.connect(
        host=credential.host,
        port=credential.port,
        dbname=credential.database,
        user=credential.username,
        password=credential.password,
        connect_timeout=10,
    )


def logins(real) -> int:
    """How many emergency logins PostgreSQL has of this level's target."""
    with psycopg.connect(real.pg.dsn) as server:
        query = "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'bg-%' AND rolcanlogin"
        return server.execute(query).fetchone()[0]


# ------------------------------------------------------------------------------ with the bot in hand, and nobody's keys


class Thief:
    """Whoever has the bot's login and its code, and nobody's keys."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.vault = house.vault()
        body = {"role_id": house.role_id, "secret_id": house.secret_id}
        self.bot = house.ask("POST", "auth/approle/login", body)[1]["auth"]["client_token"]

    def child(self) -> ChildToken:
        """Make a grant's token, as the bot may at any time."""
        return self.vault.open_child(ROLE, timedelta(minutes=5), display_name="BG-7KQ2-1", metadata={})

    def pending(self, child: ChildToken | None = None) -> tuple[str, str]:
        """Read the level's path; the token and the accessor that come back."""
        status, said = self.house.ask("GET", PATH, token=(child or self.child()).token)
        assert status == 200
        assert said["data"] is None
        return said["wrap_info"]["token"], said["wrap_info"]["accessor"]

    def ask(self, *args: Any, **kwargs: str) -> str:
        """Ask Vault; everything that it said."""
        return json.dumps(self.house.ask(*args, **kwargs)[1])


def unwrap_at_once(thief: Thief) -> list[str]:
    """Use the token before anybody has authorised it, in every way there is."""
    said = []
    for by in ("itself", "bot", "child", "nobody"):
        child = thief.child()
        token, _ = thief.pending(child)
        owner = {"itself": token, "bot": thief.bot, "child": child.token, "nobody": ""}[by]
        for way in ("unwrap", "rewrap", "lookup"):
            said += [thief.ask("POST", f"sys/wrapping/{way}", {"token": token}, owner)]
    return said


def look_where_it_lies(thief: Thief) -> list[str]:
    """Read what the token keeps, without unwrapping."""
    said = []
    for method, path in (
        ("GET", "cubbyhole/response"),
        ("GET", "cubbyhole/wrapinfo"),
        ("LIST", "cubbyhole"),
        ("GET", PATH),
    ):
        token, _ = thief.pending()
        said.append(thief.ask(method, path, token=token))
    return said


def have_the_answer_wrapped(thief: Thief) -> list[str]:
    """Ask for a wrapped answer, so that Vault has wrapped already."""
    _, said = thief.house.ask("GET", PATH, None, thief.child().token, **{"X-Vault-Wrap-TTL": "60s"})
    token = said["wrap_info"]["token"]
    return [thief.ask("POST", "sys/wrapping/unwrap", token=token), thief.ask("GET", "cubbyhole/response", token=token)]


def authorise_by_oneself(thief: Thief) -> list[str]:
    """Authorise as the bot, as the grant's token, and as the pending token, then unwrap."""
    said = []
    for who in ("bot", "child", "token"):
        child = thief.child()
        token, accessor = thief.pending(child)
        by = {"bot": thief.bot, "child": child.token, "token": token}[who]
        said += [thief.ask("POST", "sys/control-group/authorize", {"accessor": accessor}, by) for _ in range(2)]
        said.append(thief.ask("POST", "sys/wrapping/unwrap", token=token))
    return said


def make_another_token(thief: Thief) -> list[str]:
    """Make tokens that may more (other policies, a custodian's identity, more uses, another role), and read with it."""
    said = []
    for path, body in (
        (f"auth/token/create/{ROLE}", {"policies": ["root"]}),
        (f"auth/token/create/{ROLE}", {"policies": ["breakglass-custodian"]}),
        (f"auth/token/create/{ROLE}", {"entity_alias": "carl"}),
        (f"auth/token/create/{ROLE}", {"num_uses": 100}),
        ("auth/token/create", {"policies": [APPROLE]}),
        ("auth/token/create-orphan", {"policies": ["root"]}),
        ("auth/token/create/breakglass-orders-db-read", {"ttl": "60s", "explicit_max_ttl": "60s"}),
    ):
        status, answer = thief.house.ask("POST", path, body, thief.bot)
        if status == 200:  # the other level's token is the bot's to make
            said.append(thief.ask("GET", PATH, token=answer["auth"]["client_token"]))
            answer = {"made": path}
            assert path.endswith("-read")
        said.append(json.dumps(answer))
    return said


def change_who_counts(thief: Thief) -> list[str]:
    """Change the policy, the group, an identity, a login, the role; then read."""
    calls = (
        ("PUT", f"sys/policies/acl/breakglass-{ROLE}", {"policy": f'path "{PATH}" {{ capabilities = ["read"] }}'}),
        ("PUT", f"sys/policies/acl/{APPROLE}", {"policy": 'path "*" { capabilities = ["sudo", "read"] }'}),
        ("POST", f"auth/token/roles/{ROLE}", {"allowed_policies": ["root"]}),
        ("POST", f"identity/group/name/{GROUP}", {"member_entity_ids": [thief.vault.own_entity()]}),
        ("POST", "identity/group", {"name": GROUP, "member_entity_ids": [thief.vault.own_entity()]}),
        ("POST", "identity/entity/merge", {"from_entity_ids": [thief.house.entities["carl"]]}),
        ("POST", "identity/entity-alias", {"name": "carl"}),
        ("POST", "auth/userpass/users/carl", {"password": "mine"}),
        ("POST", "auth/userpass/users/carl/password", {"password": "mine"}),
        ("POST", "sys/config/control-group", {"max_ttl": "1s"}),
        ("DELETE", "sys/config/control-group", None),
        ("POST", "database/roles/orders-rw", {"db_name": "orders_keys"}),
        ("POST", "database/roles/mine", {"db_name": "orders_keys", "creation_statements": ["SELECT 1"]}),
        ("GET", "database/config/orders_keys", None),
    )
    said = []
    for method, path, body in calls:
        status, answer = thief.house.ask(method, path, body, thief.bot)
        assert status in {403, 405}, (path, status)
        said.append(json.dumps(answer))
    token, _ = thief.pending()
    return [*said, thief.ask("POST", "sys/wrapping/unwrap", token=token)]


def ask_by_another_name(thief: Thief) -> list[str]:
    """Read the same path as it might also be written, with the grant's token and with the bot's."""
    return [
        thief.ask(method, path, token=token)
        for method, path in (
            ("GET", f"{PATH}/"),
            ("GET", "database//creds/orders-rw"),
            ("GET", "database/creds/./orders-rw"),
            ("GET", "database/creds/ORDERS-RW"),
            ("GET", "database/creds/orders%2Drw"),
            ("LIST", PATH),
            ("POST", PATH),
            ("GET", "database/static-creds/orders-rw"),
            ("GET", "database/roles/orders-rw"),
        )
        for token in (thief.child().token, thief.bot)
    ]


def run_the_bots_code_without_its_rules(thief: Thief) -> list[str]:
    """Call the bot's own code, with what waits for custodians replaced by a yes."""
    said = []
    for release in (None, lambda _pending: None):
        with pytest.raises(BreakGlassError) as error:
            thief.vault.read_as(replace(thief.child(), release=release), PATH)
        said.append(error.value.sentence)
    return said


ATTACKS: Final = (
    unwrap_at_once,
    look_where_it_lies,
    have_the_answer_wrapped,
    authorise_by_oneself,
    make_another_token,
    change_who_counts,
    ask_by_another_name,
    run_the_bots_code_without_its_rules,
)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_with_the_bot_in_hand_and_no_custodians_key_nothing_comes_out(house, real, attack):
    """Whatever is tried with the bot's login and code: no password in any answer, no lease, no login at PostgreSQL."""
    before = logins(real)
    said = attack(Thief(house))
    assert said
    for answer in said:
        assert "password" not in answer.replace("denied", "")
        assert "username" not in answer
    assert house.leases() == frozenset()
    assert logins(real) == before


def test_one_custodians_key_is_not_enough_however_often_it_is_used(house):
    """One of two, twice, and the bot besides: Vault gives nothing out, and the other accessor is not authorised."""
    thief = Thief(house)
    (token, accessor), (other, _) = thief.pending(), thief.pending()
    carl = house.log_in("carl")["client_token"]
    for key in (carl, carl, house.log_in("carl")["client_token"], thief.bot):
        house.ask("POST", "sys/control-group/authorize", {"accessor": accessor}, key)
    for one in (token, other):
        assert house.ask("POST", "sys/wrapping/unwrap", token=one)[0] == 400
    assert house.leases() == frozenset()


def test_what_was_authorised_for_one_opens_no_other(house):
    """Two custodians authorised one accessor; the token of another grant that waits gives nothing."""
    thief = Thief(house)
    (token, _), (_, accessor) = thief.pending(), thief.pending()
    for name in ("carl", "chen"):
        house.ask("POST", "sys/control-group/authorize", {"accessor": accessor}, house.log_in(name)["client_token"])
    assert house.ask("POST", "sys/wrapping/unwrap", token=token)[0] == 400


def test_what_was_authorised_gives_one_credential_even_to_a_thief(house):
    """Vault would unwrap again and again: the grant's token has one use for it, and a second one ends the first."""
    thief = Thief(house)
    child = thief.child()
    token, accessor = thief.pending(child)
    for name in ("carl", "chen"):
        house.ask("POST", "sys/control-group/authorize", {"accessor": accessor}, house.log_in(name)["client_token"])
    status, first = house.ask("POST", "sys/wrapping/unwrap", token=token)
    assert status == 200
    assert first["data"]["password"]
    status, second = house.ask("POST", "sys/wrapping/unwrap", token=token)
    assert status == 400
    assert second.get("data") is None
    # Vault ends a token that has no use left, and its leases, a moment after it answered.
    assert until(lambda: thief.vault.accessor_is_gone(child.accessor))
    assert until(lambda: not house.leases(), 60)
    port = int(levels_of(house.policy)[1].settings.options["port"])
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(
            host="127.0.0.1",
            port=port,
            dbname="orders_keys",
            user=first["data"]["username"],
            password=first["data"]["password"],
        )


# ----------------------------------------------------------------------------------------------- with custodians' keys


def typed(monkeypatch, capsys, house, *words, token="", says="", password="") -> tuple[int, str]:
    """Type ``breakglass approve`` on a custodian's machine; the exit code and everything that was said."""
    monkeypatch.setenv("VAULT_ADDR", house.bao.addr)
    monkeypatch.setenv("VAULT_TOKEN", token)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{says}\n"))
    monkeypatch.setattr("getpass.getpass", lambda _prompt: password)
    capsys.readouterr()
    code = cli.main(["approve", *words])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_two_custodians_authorise_and_the_requester_gets_it_once(house, counter, pool, monkeypatch, capsys):
    """Asked in the thread, authorised on two machines: one live login, on record by whom, and no second."""
    taken: list[str] = []
    released = counter.vault._released

    def seen(release, answer, path):
        taken.append(answer.body["wrap_info"]["token"])
        return released(release, answer, path)

    monkeypatch.setattr(counter.vault, "_released", seen)
    row = approved(counter)
    coming, question = begin(counter, pool, row)
    # What the thread and the window say.
    record = counter.log_of(row)[-1]
    assert record.event == "credential:hold"
    line, blocks = entries.line(record, counter.fresh(row), "orders-db, write")
    assert f"2 of `{GROUP}` authorise it within 5 minutes" in line
    assert question.command() in json.dumps(blocks)
    assert check_view(modals.asked(question), Surface.MODAL) == []
    # The first: with a token.
    words = (row.id, "--accessor", question.accessor)
    code, said = typed(
        monkeypatch, capsys, house, *words, token=house.log_in("carl")["client_token"], says=row.id.lower()
    )
    assert code == cli.OK, said
    assert f"read {PATH}" in said
    assert f"for       {row.id}-1" in said
    assert "so far    nobody" in said
    assert "Vault waits for another custodian." in said
    assert not coming.done()
    # The second: with a name and a password.
    code, said = typed(
        monkeypatch, capsys, house, *words, "--user", "chen", says=row.id, password=house.passwords["chen"]
    )
    assert code == cli.OK, said
    assert "so far    userpass-carl" in said
    assert "Vault gives it out now." in said
    assert house.passwords["chen"] not in said
    credential = coming.result(LONG)
    with log_in(house, credential) as session:
        assert session.execute("SELECT count(*) FROM orders").fetchone() == (600,)
    # On record: who, and until when, counted from the token's making.
    record = counter.log_of(row)[-1]
    assert record.event == "credential:issue"
    assert record.data["authorised_by"] == ["userpass-carl", "userpass-chen"]
    assert "`userpass-carl`" in entries.line(record, counter.fresh(row), "")[0]
    assert counter.fresh(row).request.expires_at == counter.now + timedelta(minutes=10)
    assert credential.ttl <= timedelta(minutes=10)
    # Once: the token that gave it out is dead, and the login lives on.
    assert len(taken) == 1
    assert house.ask("POST", "sys/wrapping/unwrap", token=taken[0])[0] == 400
    assert len(house.leases()) == 1
    with log_in(house, credential) as session:
        assert session.execute("SELECT 1").fetchone() == (1,)
    # No secret is on record.
    bodies = b"".join(record.body for record in counter.log_of())
    for secret in (credential.password, taken[0]):
        assert secret.encode() not in bodies
    with counter.database.read() as session:
        assert check(session) is None
    # Taken back as any other.
    counter.release(RITA, row.id, counter.case(row.id).request.version, now=counter.now)
    assert counter.finish(row.id, now=counter.now)
    assert house.leases() == frozenset()


def authorise(house, question, *names):
    """Have custodians authorise it."""
    for name in names:
        house.custodian(name).authorise(question.accessor)


def test_a_fresh_credential_needs_their_keys_again(house, counter, pool):
    """Show again: what was authorised before opens nothing, and the old login is gone before the new one is asked."""
    row = approved(counter)
    coming, question = begin(counter, pool, row)
    authorise(house, question, "carl", "chen")
    coming.result(LONG)
    coming, again = begin(counter, pool, row)
    assert again.accessor != question.accessor
    assert house.leases() == frozenset()
    authorise(house, again, "cora", "chen")
    log_in(house, coming.result(LONG)).close()
    assert counter.events(row)[-1] == "credential:reissue"
    assert len(house.leases()) == 1


def test_nobody_authorises_and_it_is_given_up(house, counter, pool):
    """After the time that an approval may wait nothing of it is left, the thread says why, and Reveal works again."""
    text = house.policy.text.replace("open_within: 15m", "open_within: 2s")
    counter.policy = rules.parse(text, name="keys")
    row = approved(counter)
    coming, question = begin(counter, pool, row)
    with pytest.raises(Unavailable, match="did not authorise it") as error:
        coming.result(LONG)
    assert error.value.reason == "not_authorised"
    assert counter.events(row)[-2:] == ["credential:hold", "credential:abandon"]
    assert counter.fresh(row).state is State.APPROVED
    with pytest.raises(Conflict, match="Nothing waits under this accessor"):
        house.custodian("carl").look(question.accessor)
    counter.policy = house.policy
    coming, question = begin(counter, pool, row)
    authorise(house, question, "carl", "cora")
    log_in(house, coming.result(LONG)).close()


def test_a_revocation_meanwhile_ends_it_and_their_keys_come_too_late(house, counter, pool):
    """Revoked while custodians are asked: the request ends at once, and what they would authorise is gone."""
    row = approved(counter)
    coming, question = begin(counter, pool, row)
    counter.revoke(CHEN, row.id, counter.case(row.id).request.version, now=counter.now)
    assert counter.finish(row.id, now=counter.now)
    with pytest.raises(Conflict, match="No credential was made"):
        coming.result(LONG)
    assert counter.fresh(row).state is State.ENDED
    with pytest.raises(Conflict, match="Nothing waits"):
        house.custodian("carl").look(question.accessor)


def test_a_bot_that_is_stopped_gives_up_at_once(house, counter, pool):
    """Nobody is held by a bot that ends: nothing of the credential is left, and it is on record."""
    row = approved(counter)
    coming, _ = begin(counter, pool, row)
    counter.hold_nobody()
    with pytest.raises(Unavailable, match="the bot is being stopped"):
        coming.result(LONG)
    assert counter.events(row)[-1] == "credential:abandon"


def test_the_tick_leaves_those_who_wait_alone_and_cleans_up_after_a_crash(house, counter, pool):
    """While custodians may still authorise the clock takes nothing back; after it, for a bot that died, it does."""
    row = approved(counter)
    coming, question = begin(counter, pool, row)
    counter.pass_time(minutes=4)
    sweep.tick(counter, now=counter.now)
    assert counter.events(row)[-1] == "credential:hold"
    with pytest.raises(Conflict, match=r"being opened right now.*15 minutes 30 seconds"):
        counter.reveal(RITA, row.id, counter.case(row.id).request.version, now=counter.now)
    counter.pass_time(minutes=2)
    sweep.tick(counter, now=counter.now)
    assert "credential:abandon" in counter.events(row)
    with pytest.raises(Conflict):
        coming.result(LONG)
    with pytest.raises(Conflict, match="Nothing waits"):
        house.custodian("carl").look(question.accessor)


# ------------------------------------------------------------------------------------------------------- as Slack shows


def test_in_slack_the_thread_calls_custodians_and_the_window_waits_for_them(house, sqlite_template, tmp_path):
    """Reveal: the window shows what custodians type, the thread calls them with it, and the login appears by itself."""
    shutil.copyfile(sqlite_template, tmp_path / "breakglass.db")
    database = Database(f"sqlite:///{tmp_path / 'breakglass.db'}")
    manifest = yaml.safe_load((POLICY.parent.parent.parent / "manifest.yml").read_text(encoding="utf-8"))
    with Sandbox(SEED, manifest, rate_limits=0) as sandbox, ThreadPoolExecutor(8) as executor:
        client, driver = client_of(sandbox), Driver(sandbox.url)
        directory = SlackDirectory(client, TEAM)
        desk = Counter(database, house.policy, directory, house.vault(), team=TEAM, patience=PATIENCE)
        desk.now = datetime.now(UTC)
        app = App(client=client, listener_executor=executor)
        listeners.register(app, desk, now=lambda: desk.now, export=lambda *_: None)
        follower = ThreadFollower(
            database,
            client,
            case=desk.case,
            policy=lambda: desk.policy,
            now=lambda: datetime.now(UTC),
            directory=directory,
            pace=False,
        )
        with bolted(sandbox, app):
            row = approved(desk)
            handover = views.handover(desk.case(row.id), desk.policy, now=desk.now)
            sent = client.chat_postMessage(channel="U0RITA", text=handover.text, blocks=handover.blocks)
            rita = driver.as_("U0RITA")
            message = next(m for m in rita.messages(sent["channel"]) if m["ts"] == sent["ts"])
            rita.click(message, views.REVEAL)

            def window(words: str) -> str:
                return wait_for(
                    lambda: next((b for b in [json.dumps((rita.view() or {}).get("blocks"))] if words in b), None),
                    what=f"a window that says {words!r}",
                )

            window("breakglass approve")
            record = desk.log_of(row)[-1]
            accessor = record.data["wrapping_accessor"]
            assert accessor in window("Waiting for 2 custodians")
            # What the thread says, and whom it calls.
            assert follower.drain(LONG), follower.stuck()
            carl = driver.as_("U0CARL")
            threads = [carl.messages("C0INCIDENT", message["ts"]) for message in carl.messages("C0INCIDENT")]
            called = next(post for thread in threads for post in thread if accessor in str(post))
            assert f"breakglass approve {row.id} --accessor {accessor}" in str(called)
            assert all(f"<@{person}>" in str(called) for person in ("U0CARL", "U0CHEN", "U0CORA"))
            for name in ("carl", "cora"):
                house.custodian(name).authorise(accessor)
            assert "PGPASSWORD=" in window("psql")
            desk.hold_nobody()
    database.close()
    house.bao.call("PUT", "sys/leases/revoke-prefix/database/creds", {"sync": True})


# ------------------------------------------------------------------------------------- what counts, and what is shown


def test_who_does_not_count_is_told_so(house, counter, pool):
    """An outsider, with the right and without, a token of nobody's, and a second try: each hears why."""
    row = approved(counter)
    coming, question = begin(counter, pool, row)
    house.bao.call("PUT", "sys/policies/acl/outsider", {"policy": open_policy(house)})
    house.bao.call("POST", "auth/userpass/users/eve", {"token_policies": ["outsider"]})
    with pytest.raises(NotAllowed, match=r"did not count.*not a member"):
        house.custodian("eve").authorise(question.accessor)
    house.bao.call("POST", "auth/userpass/users/eve", {"token_policies": []})
    with pytest.raises(NotAllowed, match="needs the policy breakglass-custodian"):
        house.custodian("eve").look(question.accessor)
    with pytest.raises(NotAllowed, match="nobody in particular"):
        Custodian(house.bao.addr, house.bao.root_token).authorise(question.accessor)
    authorise(house, question, "carl")
    with pytest.raises(Conflict, match="counts once"):
        house.custodian("carl").authorise(question.accessor)
    assert not coming.done()
    authorise(house, question, "chen")
    coming.result(LONG)


def open_policy(house) -> str:
    """The custodians' policy."""
    return house.bao.call("GET", "sys/policies/acl/breakglass-custodian")["data"]["policy"]


def test_an_accessor_of_another_request_is_refused_before_anything_is_asked(house, monkeypatch, capsys):
    """Swapped in the thread: the command says for which request it was made, and nothing was authorised."""
    token, accessor = Thief(house).pending()
    code, said = typed(
        monkeypatch,
        capsys,
        house,
        *("BG-9999", "--accessor", accessor),
        token=house.log_in("carl")["client_token"],
        says="BG-9999",
    )
    assert code == cli.REFUSED
    assert "STOP. This accessor is not of BG-9999" in said
    assert "BG-7KQ2-1" in said
    assert house.custodian("carl").look(accessor).state.by == ()
    assert token not in said


def test_without_the_number_typed_nothing_is_authorised(house, monkeypatch, capsys):
    """A custodian who looks and leaves has authorised nothing."""
    _, accessor = Thief(house).pending()
    carl = house.log_in("carl")["client_token"]
    code, said = typed(monkeypatch, capsys, house, "BG-7KQ2", "--accessor", accessor, token=carl, says="yes")
    assert code == cli.REFUSED
    assert "Nothing was authorised." in said
    assert house.custodian("carl").look(accessor).state.by == ()


def test_what_cannot_be_is_named(house, monkeypatch, capsys):
    """A wrong number, accessor, user, password, or no token at all: each has a sentence, and no traceback."""
    for words, code, sentence in (
        (("BG", "--accessor", "abcdefgh12"), cli.REFUSED, "looks like BG-7KQ2"),
        (("BG-7KQ2", "--accessor", "../x"), cli.REFUSED, "not an accessor"),
        (("BG-7KQ2", "--accessor", "abcdefgh12", "--user", "a/b"), cli.REFUSED, "not a user name"),
        (("BG-7KQ2", "--accessor", "abcdefgh12"), cli.USAGE, "VAULT_TOKEN is not set"),
        (("BG-7KQ2", "--accessor", "abcdefgh12", "--user", "carl"), cli.REFUSED, "does not let 'carl' in"),
    ):
        found, said = typed(monkeypatch, capsys, house, *words, password="wrong")
        assert (found, sentence in said) == (code, True), said
    code, said = typed(monkeypatch, capsys, house, "BG-7KQ2", "--accessor", "abcdefgh12", token="s.dead")
    assert code == cli.REFUSED
    assert "log in again" in said


def test_a_login_by_name_is_ended_when_it_has_authorised(house):
    """The token that a password got does not outlive the command."""
    custodian = Custodian(house.bao.addr)
    custodian.log_in_as("carl", house.passwords["carl"], method="userpass", mount="userpass")
    token = custodian._token
    custodian.log_out()
    assert house.ask("GET", "auth/token/lookup-self", token=token)[0] == 403
    assert token not in repr(custodian)


def test_identities_count_once_and_the_bots_never():
    """Whoever stands twice in Vault's list, or has no identity, or is the bot, adds nothing."""
    found = Authorisations(True, PATH, "read", (("a", "carl"), ("a", "carl"), ("", "x"), ("bot", "approle")))
    assert found.counted("bot") == {"a": "carl"}


def test_no_secret_of_what_is_pending_is_shown():
    """The repr of a pending credential has its accessor and not its token."""
    assert "s.secret" not in repr(Pending("acc", "s.secret", PATH, timedelta(minutes=1)))


# ------------------------------------------------------------------------------------------------- when Vault is laxer


@pytest.fixture
def lax(house) -> Iterator[Any]:
    """Change the level's policy at Vault by hand; put right afterwards."""

    def change(old: str, new: str) -> None:
        name = f"sys/policies/acl/breakglass-{ROLE}"
        text = house.bao.call("GET", name)["data"]["policy"]
        assert old in text
        house.bao.call("PUT", name, {"policy": text.replace(old, new)})

    yield change
    house.apply()


def level_of(house):
    """The level as the policy has it."""
    return house.policy.accounts["orders-db"].levels["write"]


def test_check_says_that_it_is_held_and_the_bot_is_refused_where_it_has_no_business(house):
    """In a sound set-up check says whose keys the level takes, leaves nothing, and the bot may authorise nothing."""
    found = checking.ask_level(house.vault(), "orders-db/write", level_of(house))
    assert found.is_fine, found.sentence
    assert "only when its custodians authorise it with keys of their own" in found.sentence
    assert list(breaches(house.vault(), levels_of(house.policy), log_key_of(house.policy))) == []
    assert house.leases() == frozenset()
    assert house.apply() == []


def test_a_level_whose_control_group_was_taken_away_gives_nothing_and_check_finds_it(house, counter, lax):
    """Vault answers with the credential itself: it is ended, not shown; check names it, and apply puts it right."""
    name = f"sys/policies/acl/breakglass-{ROLE}"
    text = house.bao.call("GET", name)["data"]["policy"]
    lax(text, f'path "{PATH}" {{\n  capabilities = ["read"]\n}}\n')
    row = approved(counter)
    intent = counter.reveal(RITA, row.id, counter.case(row.id).request.version, now=counter.now)
    with pytest.raises(Unavailable, match="without asking for the custodians' own keys"):
        counter.issue(intent, now=counter.now)
    assert counter.events(row)[-1] == "credential:abandon"
    assert house.leases() == frozenset()
    found = checking.ask_level(house.vault(), "orders-db/write", level_of(house))
    assert not found.is_fine
    assert "without asking" in found.sentence
    states = {one.write.path: one.state for one in compare(house.operator, plan_of(house.policy))}
    assert states.pop(name) == CHANGED
    assert set(states.values()) == {SAME}


def test_fewer_keys_than_the_policy_says_are_not_enough_for_the_bot(house, counter, pool, lax):
    """Vault was told that one is enough: it says approved, the bot counts one of two, and no credential is made."""
    lax("approvals = 2", "approvals = 1")
    row = approved(counter)
    coming, question = begin(counter, pool, row)
    authorise(house, question, "carl")
    with pytest.raises(Unavailable, match="only 1 of 2 custodians") as error:
        coming.result(LONG)
    assert error.value.reason == "too_few_keys"
    assert house.leases() == frozenset()


def test_a_token_role_without_its_few_uses_is_found(house, lax):
    """A grant's token that could be used for ever could take what was authorised twice: check and apply say so."""
    path = f"auth/token/roles/{ROLE}"
    role = house.bao.call("GET", path)["data"]
    assert role["token_num_uses"] == 3
    house.bao.call("POST", path, {"token_num_uses": 0})
    found = checking.ask_level(house.vault(), "orders-db/write", level_of(house))
    assert not found.is_fine
    assert "3 is right" in found.sentence
    assert house.apply() == [path]
    assert checking.ask_level(house.vault(), "orders-db/write", level_of(house)).is_fine


def test_an_operator_is_told_who_is_missing_in_the_group_and_that_the_bot_must_not_be_in_it(house):
    """Too few members, the bot among them, no group at all: a sentence each; in a sound set-up none."""
    levels = levels_of(house.policy)
    house.vault().log_in()
    assert house.operator.group_trouble(levels) == ()
    bot = house.operator.bot_entity()
    assert bot == house.vault().own_entity()
    try:
        house.members("carl", entities=(bot,))
        found = " ".join(house.operator.group_trouble(levels))
        assert "the bot itself is a member" in found
        assert f"'{GROUP}' has 1 members of its own, and 2 must authorise" in found
        # Even so the bot may not authorise.
        thief = Thief(house)
        _, accessor = thief.pending()
        assert house.ask("POST", "sys/control-group/authorize", {"accessor": accessor}, thief.bot)[0] == 403
    finally:
        house.members("carl", "chen", "cora")
    inner = house.bao.call("POST", "identity/group", {"name": "inner", "member_entity_ids": [house.entities["eve"]]})
    house.bao.call("POST", f"identity/group/name/{GROUP}", {"member_group_ids": [inner["data"]["id"]]})
    assert "has groups inside it" in " ".join(house.operator.group_trouble(levels))
    house.bao.call("POST", f"identity/group/name/{GROUP}", {"member_group_ids": []})
    missing = [replace(level, control=level.control and replace(level.control, group="none")) for level in levels]
    assert house.operator.group_trouble(missing) == ("the identity group 'none' does not exist.",)


# ------------------------------------------------------------------------------------------------- the plan, the policy


def test_the_plan_states_the_approvals_and_the_bot_may_only_look():
    """The level's policy has one factor with its number; the bot's has the asking and not the authorising."""
    made = {one.path: one.body for one in plan_of(rules.parse(policy_text(), name="keys")).writes}
    text = made[f"sys/policies/acl/breakglass-{ROLE}"]["policy"]
    assert text.count("factor ") == 1
    assert f'group_names = ["{GROUP}"]\n        approvals = 2\n' in text
    assert 'ttl = "900s"' in text
    bot = made[f"sys/policies/acl/{APPROLE}"]["policy"]
    assert '"sys/control-group/request"' in bot
    assert 'path "sys/control-group/authorize" {\n  capabilities = ["deny"]\n}' in bot
    assert made[f"identity/group/name/{GROUP}"] == {"policies": ["breakglass-custodian"]}
    assert made[f"auth/token/roles/{ROLE}"]["token_num_uses"] == 3
    assert made["auth/token/roles/breakglass-orders-db-read"]["token_num_uses"] == 0


def test_a_way_around_the_keys_through_another_level_is_refused():
    """The same path in a second level that asks nobody, or fewer, would be the thief's way: the policy is refused."""
    write = levels_of(rules.parse(policy_text(), name="keys"))[1]
    for control in (None, replace(write.control, approvals=1), replace(write.control, group="others")):
        settings = replace(write.settings, token_role="another")
        with pytest.raises(Invalid, match=f"{PATH} is held by custodians' own keys in one level"):
            plan([write, replace(write, settings=settings, name="orders-db/other", control=control)])


@pytest.mark.parametrize("approvals", [0, -1])
def test_no_approvals_at_all_is_no_control_group(approvals):
    """Zero, which some versions of Vault take for "ask nobody", cannot be said."""
    with pytest.raises(ValueError, match="at least one approval"):
        ControlGroup(GROUP, approvals, timedelta(minutes=1))


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ("        enforced_by: vault\n", "The key “vault_group” is missing"),
        ("        vault_group: custodians\n", "for levels with “enforced_by: vault”"),
        ("        enforced_by: bot\n        vault_group: custodians\n", "This can only be vault"),
        ('        enforced_by: vault\n        vault_group: "a/b"\n', "not the name of an identity group"),
    ],
)
def test_half_of_it_in_a_policy_is_refused(extra, sentence):
    """Who enforces and whose keys it takes are said together, or the file does not load."""
    with pytest.raises(rules.PolicyInvalid, match=sentence):
        rules.parse(policy_text(extra=extra), name="keys")


def test_a_level_says_whose_keys_it_takes():
    """Group, number and time come from the level; a level without the key is held by nobody."""
    levels = rules.parse(policy_text(), name="keys").accounts["orders-db"].levels
    assert levels["write"].control == ControlGroup(GROUP, 2, timedelta(minutes=15))
    assert levels["read"].control is None


def test_a_thief_who_reads_as_the_bot_is_refused(house):
    """The bot's own token has no right to the level's path at all."""
    with pytest.raises(VaultRefused, match="permission denied"):
        house.vault().read_as(replace(Thief(house).child(), token=Thief(house).bot), PATH)
