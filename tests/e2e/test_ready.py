"""Does ``breakglass ready`` say of the running demo what is so, and does its exit code?"""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime

import pytest

from bot import cli
from bot.app import build
from bot.daily import FIRST
from bot.sandbox.driver import Driver, wait_for
from bot.settings import from_environment
from storage.audit import read_entries

SECONDS = 60.0  # a bound for a busy machine
DRILL = r"    drill:\n(?:      .*\n)+"


class Asked:
    """The demo's environment and policy, changed, and the command run in it."""

    def __init__(self, demo, monkeypatch, capsys, file):
        self.monkeypatch, self.capsys, self.file = monkeypatch, capsys, file
        for name, value in demo.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("BREAKGLASS_POLICY", str(file))
        today = datetime.now(UTC).date()
        text = demo.policy_file.read_text(encoding="utf-8")
        self.drill = re.search(DRILL, text)[0]
        file.write_text(text.replace(self.drill, ""), encoding="utf-8")
        self.change("    custodians: [U0CARL, ", f"    rules_reviewed: {today}\n    custodians: [U0OLGA, U0CARL, ")

    def change(self, old, new):
        """Change the policy."""
        text = self.file.read_text(encoding="utf-8")
        assert old in text
        self.file.write_text(text.replace(old, new), encoding="utf-8")

    def __call__(self):
        """Return the exit code, the verdict, and the findings as one text."""
        code = cli.main(["ready", "--json", "--file", str(self.file)])
        told = json.loads(self.capsys.readouterr().out)
        (account,) = told["accounts"]
        assert told["exit"] == code
        assert account["account"] == "orders-db"
        return code, account["verdict"], " ".join(f"{one['code']}: {one['sentence']}" for one in account["findings"])


@pytest.fixture
def ask(demo, monkeypatch, capsys, tmp_path):
    """Ask about a sound account."""
    asked = Asked(demo, monkeypatch, capsys, tmp_path / "policy.yml")
    wait_for(lambda: asked() == (0, "ready", ""), SECONDS)  # the bot has looked after Vault once
    return asked


def test_a_sound_account_is_ready_and_nothing_is_left(ask, demo):
    """In a terminal it is one line, and nobody in Slack was told."""
    before = Driver(demo.url).as_("U0RITA").messages("C0INCIDENT")
    assert cli.main(["ready", "--file", str(ask.file)]) == 0
    assert ask.capsys.readouterr().out == "READY      orders-db (Orders database)\n"
    assert Driver(demo.url).as_("U0RITA").messages("C0INCIDENT") == before


def test_an_account_that_was_never_drilled_is_named(ask):
    """It could be opened, and nobody has ever seen that it can."""
    ask.change("    levels:\n", f"{ask.drill}    levels:\n")
    assert ask() == (0, "ready", "drill: It was never drilled to the end. Begin a drill: /breakglass drill orders-db.")


def test_people_who_left_or_are_away_are_found(ask, demo):
    """A custodian who was deactivated is named; with the next one's vacation Carl cannot ask for writing any more."""
    driver = Driver(demo.url)
    try:
        driver.deactivate("U0CHEN")
        code, verdict, said = ask()
        assert (code, verdict) == (0, "ready")
        assert "person: Chen Li (U0CHEN), custodian, is deactivated" in said
        assert "no_spare: it needs 2 custodians, and there are 2: none to spare, when Carl Costa (U0CARL) asks" in said
        driver.change_person("U0OLGA", status_text="Back on Monday", status_emoji=":palm_tree:")
        code, verdict, said = ask()
        assert (code, verdict) == (1, "red")
        assert "away: it needs 2 custodians, and of 2 only 1 are not away (Olga Petrov (U0OLGA) is)" in said
    finally:
        driver.change_person("U0CHEN", deleted=False)
        driver.change_person("U0OLGA", status_text="", status_emoji="")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("token_role: breakglass-orders-db-read", "token_role: no-such-role", "vault: "),
        ("port: ", "port: 1 # ", "target: The target does not answer"),
        ("incident_channel: C0INCIDENT", "incident_channel: C0GENERAL", "channel: "),
        ("outside/", "not-mounted/", "copy: The copy archive"),
    ],
)
def test_what_stands_against_an_account_makes_it_red(ask, old, new, words):
    """Vault's role, the target, the channel, a required copy: each is asked, and found."""
    ask.change(old, new)
    code, verdict, said = ask()
    assert (code, verdict) == (1, "red")
    assert words in said


def test_a_database_that_no_bot_serves_is_red(ask, tmp_path):
    """Everything else may be well: without a bot nobody can ask."""
    ask.monkeypatch.setenv("BREAKGLASS_DATABASE_URL", f"sqlite:///{tmp_path / 'new.db'}")
    code, verdict, said = ask()
    assert (code, verdict) == (1, "red")
    assert "bot: No bot runs on this database (none ever has)" in said


def test_the_bot_looks_once_a_day_and_writes_what_is_red(ask, tmp_path):
    """The bot's own look asks what the command asks, and its entry has what is red, not the warnings."""
    ask.monkeypatch.setenv("BREAKGLASS_DATABASE_URL", f"sqlite:///{tmp_path / 'new.db'}")
    ask.change("token_role: breakglass-orders-db-read", "token_role: no-such-role")
    ask.change("outside/", "not-mounted/")
    bot = build(from_environment(os.environ))
    try:
        now = datetime.now(UTC)
        assert [bot.daily.tick(now=at) for at in (now, now + FIRST, now + FIRST)] == [False, True, False]
        with bot.desk.database.read() as session:
            (entry,) = [record for record in read_entries(session) if record.event == "ready:fail"]
        (account,) = entry.data["accounts"]
        assert (account["account"], account["verdict"]) == ("orders-db", "red")
        assert {finding["code"] for finding in account["findings"]} == {"bot", "vault", "copy"}
    finally:
        bot.desk.database.close()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("SLACK_API_URL", "http://127.0.0.1:9/api/", "slack: Slack does not answer"),
        ("VAULT_ADDR", "http://127.0.0.1:9", "vault: Vault: "),
        ("BREAKGLASS_DATABASE_URL", "postgresql://nobody:secret-word@127.0.0.1:9/none", "database: "),
    ],
)
def test_a_part_that_does_not_answer_is_not_green(ask, name, value, words):
    """Nothing can be said then: another exit code, and which part it is."""
    ask.monkeypatch.setenv(name, value)
    code, verdict, said = ask()
    assert (code, verdict) == (3, "unknown")
    assert words in said
    assert "secret-word" not in said


@pytest.mark.parametrize(("name", "words"), [("SLACK_BOT_TOKEN", "slack: "), ("VAULT_SECRET_ID", "vault: ")])
def test_a_login_that_is_refused_is_red(ask, name, words):
    """A lasting no is no silence: with this the bot could do nothing."""
    ask.monkeypatch.setenv(name, "xoxb-stranger")
    code, verdict, said = ask()
    assert (code, verdict) == (1, "red")
    assert words in said
