"""Does ``breakglass check`` find each planted problem, all at once, and nothing in a sound set-up?"""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from bot.check import check
from bot.demo.parts import PartFailed
from bot.demo.run import Demo
from bot.sandbox.driver import Driver
from bot.settings import from_environment
from storage.audit import SYSTEM, Actor, append, read_entries
from storage.database import Database
from storage.models import Feed


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Everything but the bot."""
    with Demo(tmp_path_factory.mktemp("demo"), rate_limits=0, with_bot=False) as demo:
        yield demo


@pytest.fixture
def settings(demo):
    """The settings of a sound set-up."""
    return from_environment(demo.environment)


def problems(settings):
    """Return the sentences of what is wrong."""
    return [finding.sentence for finding in check(settings) if not finding.is_fine]


def changed(settings, tmp_path, old, new):
    """Return settings whose policy has ``new`` for ``old``."""
    text = settings.policy_file.read_text(encoding="utf-8")
    assert old in text
    file = tmp_path / "changed.yml"
    file.write_text(text.replace(old, new), encoding="utf-8")
    return replace(settings, policy_file=file)


def test_a_sound_set_up_has_no_problem_and_leaves_nothing_behind(demo, settings):
    """All is well is said of everything: database, policy, Slack, channel, people, Vault, each level."""
    found = check(settings)
    assert [finding.sentence for finding in found if not finding.is_fine] == []
    said = " ".join(finding.sentence for finding in found)
    for word in (
        "Database",
        "Policy",
        "token",
        "socket",
        "#incidents",
        "People",
        "Vault",
        "orders-db/read",
        "orders-db/write",
    ):
        assert word in said
    assert Driver(demo.url).as_("U0RITA").messages("C0INCIDENT") == []
    with pytest.raises(PartFailed, match="404"):  # an empty LIST
        demo.bao.call("LIST", "sys/leases/lookup/database/creds/orders-ro")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"slack_bot_token": "xoxb-stranger"}, "SLACK_BOT_TOKEN"),
        ({"slack_app_token": "xapp-stranger"}, "SLACK_APP_TOKEN"),
        ({"slack_api_url": "http://127.0.0.1:9/api/"}, "cannot be reached"),
        ({"vault_address": "http://127.0.0.1:9"}, "Vault"),
        ({"vault_secret_id": "wrong"}, "Vault"),
        ({"database_url": "postgresql://nobody:secret-word@127.0.0.1:9/none"}, "Database"),
    ],
)
def test_a_wrong_setting_is_named(settings, change, word):
    """Each planted fault of the environment is found, and its secret is not repeated."""
    found = problems(replace(settings, **change))
    assert any(word in sentence for sentence in found), found
    assert not any("secret-word" in sentence for sentence in found)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "custodians: [U0CARL, U0CHEN, U0CORA]",
            "custodians: [U0CARL, U0NOBODY]",
            ["U0NOBODY", "needs 2 custodians and 1"],
        ),
        ("custodians: [U0CARL, U0CHEN, U0CORA]", "custodians: [U0CARL, U0CHEN, U0GUS]", ["U0GUS", "guest"]),
        ('["@leadership"]', '["@no-such-group"]', ["@no-such-group"]),
        ("incident_channel: C0INCIDENT", "incident_channel: C0NOWHERE", ["C0NOWHERE"]),
        ("incident_channel: C0INCIDENT", "incident_channel: C0GENERAL", ["#general", "not a member"]),
        ("role: orders-ro\n", "role: orders-typo\n", ["orders-db/read", "database/creds/orders-typo"]),
        ("token_role: breakglass-orders-db-read", "token_role: no-such-role", ["orders-db/read"]),
        ("owner: U0CORA", "owners: U0CORA", ["owner"]),
    ],
)
def test_a_policy_that_does_not_fit_the_world_is_named(settings, tmp_path, old, new, words):
    """Each planted fault between the policy and Slack or Vault is found."""
    found = " ".join(problems(changed(settings, tmp_path, old, new)))
    for word in words:
        assert word in found


def test_a_sealed_vault_is_named(demo, settings):
    """Sealed is said as such."""
    demo.bao.seal()
    try:
        assert any("sealed" in sentence for sentence in problems(settings))
    finally:
        demo.bao.unseal()


def test_a_deactivated_custodian_is_named(demo, settings):
    """Somebody who left is found before the night."""
    Driver(demo.url).deactivate("U0CHEN")
    try:
        assert any("U0CHEN" in sentence and "deactivated" in sentence for sentence in problems(settings))
    finally:
        Driver(demo.url).change_person("U0CHEN", deleted=False)


def test_a_bot_that_may_read_credentials_itself_is_a_problem(demo, settings):
    """Too many rights are a finding, too: with the root token the bot could read every level."""
    found = problems(replace(settings, vault_role_id="", vault_secret_id="", vault_token=demo.bao.root_token))
    assert sum(sentence.startswith("orders-db/") and "must not" in sentence for sentence in found) == 3
    assert any("more places that the bot's own token may use: is it an operator's?" in sentence for sentence in found)


def test_a_copy_that_cannot_be_reached_is_named_with_how_far_it_is(demo, settings, tmp_path):
    """Of each copy it is said whether it has everything; one whose volume is away is a problem, with the reason."""
    assert any("Copy archive (required): it has everything" in finding.sentence for finding in check(settings))
    place = demo.directory / "outside" / "breakglass.copy"
    away = changed(settings, tmp_path, str(place), str(tmp_path / "not mounted" / "breakglass.copy"))
    (problem,) = problems(away)
    assert "archive" in problem
    assert "mounted" in problem


def test_a_copy_whose_secret_is_not_there_is_named(settings, tmp_path):
    """A variable that the policy names and the environment lacks is a problem."""
    standby = "copies:\n    standby: { kind: postgresql, url_env: STANDBY_URL }"
    (problem,) = problems(changed(settings, tmp_path, "copies:", standby))
    assert "STANDBY_URL" in problem


def test_a_copy_that_is_behind_is_named(demo, settings):
    """Entries that a copy lacks for longer than the policy's threshold are a problem, with their age."""
    database = Database(settings.database_url)
    with database.write() as session:
        append(session, event="test:entry", at=datetime.now(UTC) - timedelta(hours=2), actor=SYSTEM)
        session.add(Feed(follower="archive", request_id="*", seq=-1, failures=3))
    database.close()
    (problem,) = [sentence for sentence in problems(settings) if sentence.startswith("Copy")]
    assert "1 entry behind, the oldest for 2 hours" in problem
    assert "3 tries failed" in problem


# ------------------------------------------------------------------------------------------------ trials of the levels


def entries(settings):
    """Return the log's entries about trials."""
    database = Database(settings.database_url)
    with database.read() as session:
        found = [record for record in read_entries(session) if record.event.startswith("drill:")]
    database.close()
    return found


def leases(demo):
    """What is out of the levels' roles, and of the one that only looks."""
    found = []
    for role in ("orders-ro", "orders-rw", "orders-rehearsal", "orders-watch"):
        try:
            found += demo.bao.call("LIST", f"sys/leases/lookup/database/creds/{role}")["data"]["keys"]
        except PartFailed as empty:
            assert "404" in str(empty)  # noqa: PT017 - an empty list
    return found


@pytest.fixture
def nothing_left(demo):
    """Afterwards there is neither a lease nor a login of a trial, nor of those that only look."""
    yield
    end = time.monotonic() + 30
    while leases(demo) and time.monotonic() < end:
        time.sleep(0.05)
    assert leases(demo) == []
    with psycopg.connect(demo.pg.dsn) as server:
        left = server.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'check-%' OR rolname LIKE 'approle-%'")
        assert left.fetchall() == []


def trials(settings, *, fine):
    """Try the levels; return the sentences of those that went well, or did not."""
    found = check(settings, levels=True, who=Actor("", "shell:ada"))
    return [f.sentence for f in found if "tried" in f.sentence and f.is_fine is fine]


def test_each_level_is_tried_logged_and_leaves_nothing_behind(settings, nothing_left):
    """A read-only level reads and cannot write, a writing one may write; each trial is two entries with who asked."""
    before = len(entries(settings))
    read, write, rehearsal = trials(settings, fine=True)
    assert "it reads public.customers" in read
    assert "it cannot write to public.customers, nor to anything else" in read
    assert "it may write to public.order_items" in write
    for sentence in (read, write, rehearsal):
        for words in ("its role does not exist", "no session of it is open", "it was gone "):
            assert words in sentence
    told = entries(settings)[before:]
    assert [(record.event, record.data["level"]) for record in told] == [
        ("drill:try", "read"),
        ("drill:tried", "read"),
        ("drill:try", "write"),
        ("drill:tried", "write"),
        ("drill:try", "rehearsal"),
        ("drill:tried", "rehearsal"),
    ]
    assert {record.actor.person for record in told} == {"shell:ada"}
    assert all(record.data["passed"] for record in told[1::2])
    assert told[1].data["identity"].startswith(told[0].data["name"])


def test_without_being_asked_for_no_level_is_tried(settings):
    """A plain check makes no credential and writes no entry."""
    before = len(entries(settings))
    check(settings)
    assert len(entries(settings)) == before


PLANTED = [
    ("GRANT UPDATE (note) ON orders TO bg_orders_ro", "REVOKE UPDATE (note) ON orders FROM bg_orders_ro", "may write"),
    ("ALTER ROLE bg_orders_ro CREATEROLE", "ALTER ROLE bg_orders_ro NOCREATEROLE", "CREATEROLE"),
    ("GRANT pg_read_server_files TO bg_orders_ro", "REVOKE pg_read_server_files FROM bg_orders_ro", "pg_read_server"),
]


@pytest.mark.parametrize("planted", PLANTED, ids=[word for *_, word in PLANTED])
def test_a_group_that_was_given_more_is_named_and_not_tried(demo, settings, nothing_left, planted):
    """What somebody granted at the target since the set-up is found by every check, before a credential is made."""
    plant, mend, word = planted
    before = len(entries(settings))
    with psycopg.connect(demo.pg.dsn_for("orders"), autocommit=True) as server:
        server.execute(plant)
        try:
            found = problems(settings)
            trials(settings, fine=True)
        finally:
            server.execute(mend)
    (problem,) = [sentence for sentence in found if sentence.startswith("orders-db/")]
    assert problem.startswith("orders-db/read: ")
    assert word in problem
    assert {record.data["level"] for record in entries(settings)[before:]} == {"write", "rehearsal"}


def test_a_level_that_has_the_rights_of_one_with_more_custodians_fails_its_trial(demo, settings, nothing_left):
    """A reading group that somebody made a member of the writing one is not what one custodian may open."""
    with psycopg.connect(demo.pg.dsn_for("orders"), autocommit=True) as server:
        server.execute("GRANT bg_orders_rw TO bg_orders_ro WITH INHERIT FALSE")
        try:
            (problem,) = trials(settings, fine=False)
        finally:
            server.execute("REVOKE bg_orders_rw FROM bg_orders_ro")
    assert "has the rights of bg_orders_rw, which need more custodians" in problem


def test_a_role_that_was_changed_at_vault_fails_its_trial(demo, settings, nothing_left):
    """A login that is not made as the policy says is noticed, taken back, and the entry says why it failed."""
    path = "database/roles/orders-ro"
    role = demo.bao.call("GET", path)["data"]
    other = [line.replace("LIMIT 2", "LIMIT 200") for line in role["creation_statements"]]
    demo.bao.call("POST", path, {**role, "creation_statements": other})
    try:
        (problem,) = trials(settings, fine=False)
    finally:
        demo.bao.call("POST", path, role)
    assert "run breakglass vault apply" in problem
    failed = [record for record in entries(settings) if record.event == "drill:tried" and not record.data["passed"]]
    assert "run breakglass vault apply" in failed[-1].data["said"]
    assert any("it was gone" in seen for seen in failed[-1].data["seen"])


def test_a_target_that_is_down_fails_its_trial_and_is_named(demo, settings):
    """With PostgreSQL away nothing is called fine, and the trial's entries say that it failed."""
    demo.pg.kill()
    try:
        found = [f.sentence for f in check(settings, levels=True) if not f.is_fine]
    finally:
        demo.pg.start()
    assert any(sentence.startswith("orders-db/read: ") for sentence in found)
    assert not any("tried: it logs in" in sentence for sentence in found)


def test_a_right_too_many_of_the_bot_is_named(demo, settings):
    """A bot that may read how the levels' logins are made is told so."""
    path = "sys/policies/acl/breakglass-bot"
    before = demo.bao.call("GET", path)["data"]["policy"]
    more = 'path "database/roles/*" { capabilities = ["read"] }'
    demo.bao.call("PUT", path, {"policy": f"{before}\n{more}\n"})
    try:
        found = [sentence for sentence in problems(settings) if sentence.startswith("Vault: ")]
    finally:
        demo.bao.call("PUT", path, {"policy": before})
    assert len(found) == 4
    assert all("may read database/roles/orders-" in sentence for sentence in found)
