"""An account that exists is lent to one request at a time, and is disabled, with a password of nobody's, in between.

Against a real OpenBao and a real PostgreSQL.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import hostile
import psycopg
import pytest
from counter import CARL, PATIENCE, POLICY, RITA, Counter, People
from real_parts import WATCH_ROLE, Real

from bot.demo.parts import OpenBao
from bot.demo.vault_setup import LOG_KEY, LOG_MOUNT, prepare_target, set_up
from bot.entries import _issue_line
from storage.audit import Actor
from workflows import policy as rules
from workflows.engines import ENGINES, LevelSettings
from workflows.errors import Conflict, Invalid, Unavailable
from workflows.lifecycle import Action
from workflows.trial import try_level
from workflows.vault_apply import SAME, Operator, compare
from workflows.vault_plan import LevelSetup, plan

STATIC = ENGINES["static"]
ACCOUNT = "orders_repair"
MANAGER = "bgmgr_static"
DATABASE = "orders_static"
GOOD = {"mount": "database", "role": "repair", "host": "127.0.0.1", "port": "5432", "database": "orders"}
GOOD |= {"account": ACCOUNT}


class Lent(Real):
    """The shared PostgreSQL with an account that is lent, and an OpenBao of its own."""

    def set_up(self):
        """Set Vault up (again)."""
        return set_up(self.bao.addr, self.bao.root_token, self.target, [self.read, self.write])

    def one(self, query, *values):
        """Ask PostgreSQL as its superuser and return the row."""
        with psycopg.connect(self.pg.dsn_for(DATABASE), autocommit=True) as server:
            return server.execute(query, values).fetchone()

    def run(self, *statements):
        """Run statements as the superuser."""
        with psycopg.connect(self.pg.dsn_for(DATABASE), autocommit=True) as server:
            for statement in statements:
                server.execute(statement)

    def is_enabled(self):
        """Whether the account can log in."""
        return self.one("SELECT rolcanlogin FROM pg_roles WHERE rolname = %s", ACCOUNT)[0]

    def verifier(self):
        """Return what PostgreSQL keeps of the account's password."""
        return self.one("SELECT rolpassword FROM pg_authid WHERE rolname = %s", ACCOUNT)[0]

    def end(self, vault, grant):
        """Take the grant back and return what was shown at the target."""
        assert self.take_back(vault, grant)
        return STATIC.prove(vault, grant)


def level_for(pg, role, **more):
    """Return a level that lends the account."""
    options = {"mount": "fixed", "role": role, "host": pg.host, "port": str(pg.port), "database": DATABASE}
    options |= {"account": ACCOUNT, "manager": MANAGER, "watch_role": WATCH_ROLE}
    settings = LevelSettings(engine="static", token_role=f"bg-{role}", options=options | more)
    return LevelSetup(settings, timedelta(minutes=30), f"orders/{role}")


@pytest.fixture(scope="module")
def lent(real, tmp_path_factory):
    """The account, disabled, and the Vault that lends it."""
    level, wide = level_for(real.pg, "repair"), level_for(real.pg, "repair-wide", connections="20")
    target = prepare_target(real.pg, database=DATABASE, manager=MANAGER, groups=())
    with psycopg.connect(real.pg.dsn_for(DATABASE), autocommit=True) as server:
        server.execute(STATIC.target_steps(level.settings.options).encode())
        server.execute(f"GRANT USAGE ON SCHEMA public TO {ACCOUNT}")
        server.execute(f"GRANT SELECT, UPDATE ON orders TO {ACCOUNT}")
    with OpenBao(tmp_path_factory.mktemp("static") / "openbao") as bao:
        login = set_up(bao.addr, bao.root_token, target, [level, wide])
        yield Lent(real.pg, bao, target, level, wide, login)


@pytest.fixture
def lent_vault(lent):
    """The bot's Vault, with nothing out and the account as between two events."""
    lent.bao.call("PUT", "sys/leases/revoke-prefix/fixed/creds/repair", {"sync": True})
    lent.run(f"ALTER ROLE {ACCOUNT} NOLOGIN")
    return lent.vault()


def _refused(lent, credential):
    try:
        lent.connect(credential).close()
    except psycopg.OperationalError:
        return True
    return False


# ----------------------------------------------------------------------------------------------------- a grant's life


def test_the_account_is_enabled_for_the_grant_and_disabled_after_it(lent, lent_vault):
    """It cannot log in before; during the grant it does what it may; after it, never, and its session is cut."""
    assert not lent.is_enabled()
    before = lent.verifier()
    credential, grant, _ = lent.open(lent_vault, name="BG-7KQ2")
    assert credential.username == ACCOUNT
    during = lent.verifier()
    session = lent.connect(credential)
    assert session.execute("SELECT count(*) FROM orders").fetchone() == (600,)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        session.execute("SELECT * FROM payment_cards")
    assert lent.end(lent_vault, grant) == (f"the account {ACCOUNT} cannot log in", "no session of it is open")
    with pytest.raises(psycopg.OperationalError):
        session.execute("SELECT 1")
    assert _refused(lent, credential)
    # Also when somebody enables it again: the password of the grant is none any more.
    lent.run(f"ALTER ROLE {ACCOUNT} LOGIN VALID UNTIL 'infinity'")
    assert _refused(lent, credential)
    lent.run(f"ALTER ROLE {ACCOUNT} NOLOGIN")
    assert len({before, during, lent.verifier()}) == 3


def test_the_target_says_who_has_the_account_and_who_had_it_last(lent, lent_vault):
    """The name is shared; the mark in the account's comment names the request, during the grant and after it."""
    _, grant, _ = lent.open(lent_vault, name="BG-4XYZ")
    mark = "SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = %s"
    assert lent.one(mark, ACCOUNT)[0].startswith("bg-4xyz-")
    lent.end(lent_vault, grant)
    assert lent.one(mark, ACCOUNT)[0].startswith("bg-4xyz-")


def test_a_password_that_the_responder_sets_ends_too(lent, lent_vault):
    """The account may change its own password, and that one is gone with the grant as well."""
    credential, grant, _ = lent.open(lent_vault)
    with lent.connect(credential) as session:
        session.execute(f"ALTER ROLE {ACCOUNT} PASSWORD 'mine'")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute(f"COMMENT ON ROLE {ACCOUNT} IS 'bg-other-one'")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute(f"ALTER ROLE {ACCOUNT} VALID UNTIL 'infinity'")
    lent.end(lent_vault, grant)
    lent.run(f"ALTER ROLE {ACCOUNT} LOGIN VALID UNTIL 'infinity'")
    assert _refused(lent, replace(credential, password="mine"))


def test_at_its_end_the_account_is_disabled_by_vault_alone(lent, lent_vault):
    """Nobody revokes anything: the child token's end disables the account and cuts its session."""
    credential, grant, _ = lent.open(lent_vault, ttl=timedelta(seconds=1))
    session = lent.connect(credential)
    assert lent.until(lambda: lent.gone(lent_vault, grant), 60)
    assert not lent.is_enabled()
    with pytest.raises(psycopg.OperationalError):
        session.execute("SELECT 1")


def test_a_hostile_client_does_not_survive(lent, lent_vault):
    """Eight threads that reconnect, idle, mid-transaction and cursor sessions: none is left when the proof is there."""
    for _ in range(5):
        credential, grant, _ = lent.open(lent_vault, lent.write)
        client = hostile.at_postgresql(credential)
        client.attack()
        assert lent.take_back(lent_vault, grant)
        assert lent.until(lambda grant=grant: _is_shown(lent_vault, grant))
        moment = time.monotonic()
        assert lent.sessions(ACCOUNT) == 0
        client.stop()
        assert client.logins_after(moment) == 0
        assert client.still_open() == 0
        assert lent.sessions(ACCOUNT) == 0
        assert not lent.is_enabled()


def _is_shown(vault, grant):
    try:
        return bool(STATIC.prove(vault, grant))
    except Unavailable as error:
        if error.reason != "left":
            raise
        return False


def test_taking_back_twice_is_fine(lent, lent_vault):
    """What is gone stays gone, and asking again or hurrying changes nothing."""
    _, grant, _ = lent.open(lent_vault)
    lent.end(lent_vault, grant)
    verifier = lent.verifier()
    STATIC.hurry(lent_vault, grant)
    assert lent.end(lent_vault, grant)
    assert lent.verifier() == verifier


def test_the_line_works_when_it_is_pasted(lent, lent_vault):
    """The line of a real credential, given to a real shell, opens a session as the account."""
    credential, _, _ = lent.open(lent_vault)
    [line] = credential.lines()
    done = subprocess.run(
        ["/bin/sh", "-c", f'{line} -Atc "SELECT current_user"'],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": f"{lent.pg.bin}{os.pathsep}{os.defpath}"},
    )
    assert done.stdout.strip() == ACCOUNT, done.stderr


# ----------------------------------------------------------------------------------------------------- one at a time


def test_the_target_itself_refuses_a_second_grant(lent, lent_vault):
    """Through another bot on another database: the second is refused, told who has it, and the first goes on."""
    credential, grant, _ = lent.open(lent_vault, name="BG-F1RS")
    session = lent.connect(credential)
    with pytest.raises(Unavailable, match=r"orders_repair at .* is enabled already \(bg-f1rs-") as caught:
        lent.open(lent_vault, name="BG-SEC2")
    assert caught.value.reason == "in_use"
    with pytest.raises(Unavailable):  # another level that lends the same account
        lent.open(lent_vault, lent.write, name="BG-SEC3")
    assert session.execute("SELECT 1").fetchone() == (1,)
    # What the second left behind at Vault is gone without touching the first.
    second = replace(grant, request_id="BG-SEC2", accessor=None, lease_id=None, identity=None)
    assert "bg-f1rs-" in STATIC.prove(lent_vault, second)[0]
    assert session.execute("SELECT 1").fetchone() == (1,)
    session.close()
    lent.end(lent_vault, grant)
    lent.open(lent_vault, name="BG-SEC2")


def test_of_eight_grants_at_once_one_gets_the_account(lent, lent_vault):
    """Eight tokens read at the same moment: one has a password that works, the others have nothing."""
    gate = threading.Barrier(8)

    def read(number):
        gate.wait()
        try:
            return lent.open(lent_vault, name=f"BG-E{number}GH")
        except Unavailable:
            return None

    with ThreadPoolExecutor(8) as pool:
        made = [one for one in pool.map(read, range(8)) if one is not None]
    assert len(made) == 1
    credential, grant, _ = made[0]
    lent.connect(credential).close()
    lent.end(lent_vault, grant)


def test_a_revocation_that_comes_late_does_not_end_the_next_grant(lent, lent_vault):
    """Vault revokes an old lease when the account is another request's already: that one is not touched."""
    role = lent.bao.call("GET", "fixed/roles/repair")["data"]
    # The first grant's own revocation fails at Vault, and the account is freed by hand meanwhile.
    lent.bao.call("POST", "fixed/roles/repair", role | {"revocation_statements": ["SELECT 1/0"]})
    _, old, _ = lent.open(lent_vault, name="BG-LATE")
    lent_vault.revoke_accessor(old.accessor)
    lent.run(f"ALTER ROLE {ACCOUNT} NOLOGIN")
    lent.bao.call("POST", "fixed/roles/repair", role)
    credential, new, _ = lent.open(lent_vault, name="BG-NEXT")
    with lent.connect(credential) as session:
        STATIC.hurry(lent_vault, old)
        assert lent.gone(lent_vault, old)
        assert session.execute("SELECT 1").fetchone() == (1,)
    lent.connect(credential).close()
    lent.end(lent_vault, new)


def test_an_account_left_enabled_by_a_crash_is_free_when_its_time_is_over(lent, lent_vault):
    """Vault died between enabling and recording: nobody knows the password, and after its time the next may have it."""
    lent.run(f"COMMENT ON ROLE {ACCOUNT} IS 'bg-dead-x'", f"ALTER ROLE {ACCOUNT} LOGIN VALID UNTIL 'tomorrow'")
    with pytest.raises(Unavailable, match="bg-dead-x"):
        lent.open(lent_vault)
    lent.run(f"ALTER ROLE {ACCOUNT} LOGIN VALID UNTIL 'yesterday'")
    _, grant, _ = lent.open(lent_vault)
    lent.end(lent_vault, grant)


# --------------------------------------------------------------------------------------------- what the target shows


def test_an_account_that_can_still_log_in_is_seen(lent, lent_vault):
    """Vault calls it gone; that the account can log in, or has a session, is seen, and a late session is swept."""
    credential, grant, _ = lent.open(lent_vault, name="BG-5EEN")
    assert STATIC.identities(lent_vault, grant.options) == {ACCOUNT}
    lent.end(lent_vault, grant)
    assert STATIC.identities(lent_vault, grant.options) == frozenset()
    lent.run(f"ALTER ROLE {ACCOUNT} LOGIN PASSWORD 'x' VALID UNTIL 'infinity'")
    session = lent.connect(replace(credential, password="x"))
    with pytest.raises(Unavailable, match="can log in and has 1 sessions") as caught:
        STATIC.prove(lent_vault, grant)
    assert caught.value.reason == "left"
    lent.run(f"ALTER ROLE {ACCOUNT} NOLOGIN")
    with pytest.raises(Unavailable, match="cannot log in and has 1 sessions"):
        STATIC.prove(lent_vault, grant)
    assert lent.until(lambda: lent.sessions(ACCOUNT) == 0)
    with pytest.raises(psycopg.OperationalError):
        session.execute("SELECT 1")
    assert STATIC.prove(lent_vault, grant)


def test_nothing_is_shown_while_the_target_is_down(lent, lent_vault):
    """With PostgreSQL down a revoked grant is not gone and not shown to be; back again, it ends."""
    credential, grant, _ = lent.open(lent_vault)
    lent.pg.stop()
    try:
        lent_vault.revoke_accessor(grant.accessor)
        assert not lent.gone(lent_vault, grant)
        with pytest.raises(Unavailable, match="take the credential back"):
            STATIC.hurry(lent_vault, grant)
        with pytest.raises(Unavailable, match=r"cannot be looked at|orders-watch.*status 500"):
            STATIC.prove(lent_vault, grant)
        with pytest.raises(Unavailable, match=r"status 500\.$"):
            lent.open(lent_vault)
    finally:
        lent.pg.start()
    lent.connect(credential).close()
    STATIC.hurry(lent_vault, grant)
    assert lent.end(lent_vault, grant)
    assert _refused(lent, credential)
    blind = {key: value for key, value in grant.options.items() if key != "watch_role"}
    assert STATIC.prove(lent_vault, replace(grant, options=blind)) == ()
    assert STATIC.identities(lent_vault, blind) == frozenset()


def test_a_lease_that_was_not_recorded_is_looked_for(lent, lent_vault):
    """A bot that died between reading and recording: not gone while the lease is there, and the account is found."""
    known = lent_vault.leases("fixed/creds/repair")
    _, grant, _ = lent.open(lent_vault)
    lost = replace(grant, lease_id=None, identity=None)
    assert not lent.gone(lent_vault, lost, known)
    lent_vault.revoke_accessor(grant.accessor)
    assert lent.until(lambda: lent.gone(lent_vault, lost, known))
    assert STATIC.prove(lent_vault, lost)
    assert not lent.is_enabled()


def test_what_is_set_up_is_what_is_planned(lent, lent_vault):
    """Vault has what the plan says; an account that is mighty, or enabled for nobody, is not given out."""
    operator = Operator(lent.bao.addr, lent.bao.root_token)
    made = plan([lent.read, lent.write], (LOG_MOUNT, LOG_KEY))
    assert {one.state for one in compare(operator, made)} == {SAME}
    options = lent.read.settings.options
    assert STATIC.excess(lent_vault, options) == ()
    lent.run(f"COMMENT ON ROLE {ACCOUNT} IS 'the repair account'", f"ALTER ROLE {ACCOUNT} LOGIN CREATEDB")
    mighty, enabled = STATIC.excess(lent_vault, options)
    lent.run(f"ALTER ROLE {ACCOUNT} NOLOGIN NOCREATEDB")
    assert "CREATEDB" in mighty
    assert "can log in while nobody has it" in enabled


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("account", value) for value in ("", "a'b", 'a"b', "pg_monitor", "postgres", "bg_watch", "a-b")),
        ("role", "a/b"),
        ("mount", "../sys"),
        ("port", "0"),
        ("connections", "0"),
        ("group", "x"),
        ("read_only", "true"),
    ],
)
def test_settings_that_would_reach_elsewhere_are_refused(field, value):
    """A name with a quote or a slash, the server's own roles, and keys of other engines are refused by name."""
    with pytest.raises(Invalid) as caught:
        LevelSettings(engine="static", token_role="bg-repair", options=GOOD | {field: value})
    assert set(caught.value.fields) == {field}


# ------------------------------------------------------------------------------------------------------ at the desk


@pytest.fixture
def desk(lent, lent_vault, database):
    """A desk whose level "read" lends the account."""
    text = POLICY.read_text(encoding="utf-8").replace("port: 5432", f"port: {lent.pg.port}")
    old = text[text.index("        engine: database") : text.index("        quorum: 1")]
    options = {"engine": "static", "token_role": lent.read.settings.token_role, **lent.read.settings.options}
    text = text.replace(old, "".join(f"        {key}: {value}\n" for key, value in options.items()), 1)
    people = People()
    counter = Counter(
        database, rules.parse(text, name="static"), people, lent_vault, team="T0SANDBOX", patience=PATIENCE
    )
    counter.now = datetime.now(UTC)
    counter.people = people
    return counter


def test_a_second_reveal_is_refused_while_one_is_out(lent, desk):
    """The second requester is told which request has the account; when that has ended, the same button works."""
    first, second = desk.approved(), desk.approved()
    credential = desk.show(first)
    assert credential.username == ACCOUNT
    version = desk.case(second.id).request.version
    with pytest.raises(Conflict, match=f"{first.id} has {ACCOUNT} at .* only one request can have it") as caught:
        desk.reveal(RITA, second.id, version, now=desk.now)
    assert caught.value.reason == "in_use"
    assert desk.events(second)[-1] == "credential:reveal!"
    lent.connect(credential).close()
    # A fresh one of the first is no second grant.
    credential = desk.show(first)
    lent.connect(credential).close()
    desk.release(RITA, first.id, desk.case(first.id).request.version, now=desk.now)
    with pytest.raises(Conflict, match=first.id):  # it is being taken back
        desk.reveal(RITA, second.id, version, now=desk.now)
    assert desk.finish(first.id, now=desk.now)
    assert _refused(lent, credential)
    lent.connect(desk.show(second)).close()


def test_of_two_reveals_at_once_one_is_refused(lent, desk):
    """Two clicks for two requests at the same moment: one has the account, the other is told so."""
    rows = [desk.approved(), desk.approved()]
    versions = [desk.case(row.id).request.version for row in rows]
    gate = threading.Barrier(2)

    def click(row, version):
        gate.wait()
        try:
            return desk.reveal(RITA, row.id, version, now=desk.now)
        except Conflict as refused:
            return refused.reason

    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(click, rows, versions))
    assert said.count("in_use") == 1


def test_the_entry_says_that_the_name_is_shared(lent, desk):
    """The log holds who had the account, from when until when, and that its name says nothing by itself."""
    row = desk.approved(by=(CARL,))
    desk.show(row)
    [issued] = [record for record in desk.log_of(row) if record.event == "credential:issue"]
    assert (issued.data["identity"], issued.data["identity_is_shared"]) == (ACCOUNT, True)
    words, _ = _issue_line(issued, "", desk.case(row.id), "")
    assert f"as `{ACCOUNT}`, a name that others have at other times" in words
    desk.release(RITA, row.id, desk.case(row.id).request.version, now=desk.now)
    assert desk.finish(row.id, now=desk.now)
    [ended] = [record for record in desk.log_of(row) if record.event == Action.END.value]
    assert ended.data["shown"][0] == f"the account {ACCOUNT} cannot log in"


# ----------------------------------------------------------------------------------------------- trials of the level


def _try(lent, vault, database):
    repair = SimpleNamespace(name="repair", settings=lent.read.settings, quorum=1, capture_source=None)
    account = SimpleNamespace(name="orders", levels={"repair": repair})
    return try_level(vault, database, account, repair, Actor("", "shell:ada"))


def test_a_trial_enables_the_account_for_a_moment(lent, lent_vault, database):
    """It logs in, and afterwards the account cannot log in, with a password that nobody knows."""
    seen = _try(lent, lent_vault, database)
    assert seen[0] == "it logs in"
    assert f"the account {ACCOUNT} cannot log in" in seen
    assert not lent.is_enabled()


def test_a_trial_never_ends_the_grant_that_has_the_account(lent, lent_vault, database):
    """While a request has it, the trial fails, says who has it, and the requester's session goes on."""
    credential, grant, _ = lent.open(lent_vault, name="BG-7KQ2")
    with lent.connect(credential) as session:
        with pytest.raises(Unavailable, match="bg-7kq2"):
            _try(lent, lent_vault, database)
        assert session.execute("SELECT 1").fetchone() == (1,)
        assert lent.is_enabled()
    lent.end(lent_vault, grant)
