"""Does ``breakglass check`` find each planted problem, all at once, and nothing in a sound set-up?"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from bot.check import check
from bot.demo.parts import PartFailed
from bot.demo.run import Demo
from bot.sandbox.driver import Driver
from bot.settings import from_environment
from storage.audit import SYSTEM, append
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
    assert sum("must not" in sentence for sentence in found) == 2


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
