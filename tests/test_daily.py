"""Is it said once a day, by one bot and in the log, that an account could not be opened, and never taken for well?"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from bot.daily import AGAIN, CLAIM, EVERY, FIRST, TRIES, DailyLook
from bot.entries import line
from storage.audit import read_entries
from storage.database import Database
from storage.models import Feed
from workflows import policy as rules
from workflows.readiness import FAIL, Code, Finding, Readiness, Severity

START = datetime(2026, 11, 24, 9, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
RED = Finding(
    Severity.RED, Code.TOO_FEW, "it needs 2 custodians, and only 1 can act, whoever asks. Name <!channel>.", "w"
)
WARN = Finding(Severity.WARN, Code.RULES, "Nobody looked at its rules.")
SILENT = Finding(Severity.UNKNOWN, Code.VAULT, "Vault does not answer.")


class Looks:
    """One bot's daily look, what it finds, and how often it looked."""

    def __init__(self, database, account):
        self.findings, self.count, self._account = (), 0, account
        self.daily = DailyLook(database, self._look)

    def _look(self, _now):
        self.count += 1
        return [Readiness(self._account, self.findings)]


@pytest.fixture
def database(tmp_path, sqlite_template):
    """An empty log."""
    file = tmp_path / "log.db"
    file.write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{file}")
    yield database
    database.close()


@pytest.fixture
def account():
    """The account of the demo."""
    from bot.demo.run import HERE  # noqa: PLC0415

    return rules.load(HERE / "breakglass.yml").accounts["orders-db"]


@pytest.fixture
def bot(database, account):
    """A bot whose first look is due at START."""
    looks = Looks(database, account)
    assert not looks.daily.tick(now=START - FIRST)
    return looks


def said(database):
    """Return the entries that were written."""
    with database.read() as session:
        return [record for record in read_entries(session) if record.event == FAIL]


def test_the_first_look_is_an_hour_after_the_first_start(bot):
    """A bot that was just installed does not cry."""
    bot.findings = (RED,)
    assert not bot.daily.tick(now=START - MINUTE)
    assert bot.count == 0
    assert bot.daily.tick(now=START)


def test_what_is_red_is_said_once_a_day_by_one_of_two_bots(bot, database, account):
    """Restarts and second bots add nothing: a row remembers, and the next day it is said again."""
    other = Looks(database, account)
    bot.findings = other.findings = (RED, WARN)
    ticks = [each.daily.tick(now=START + n * MINUTE) for n in range(60) for each in (bot, other)]
    assert ticks.count(True) == 1
    assert len(said(database)) == 1
    assert Looks(database, account).daily.tick(now=START + EVERY - MINUTE) is False
    assert other.daily.tick(now=START + EVERY)
    (first, _) = said(database)
    assert first.data["count"] == 1
    (told,) = first.data["accounts"]
    assert (told["account"], told["owner"], told["verdict"]) == ("orders-db", "U0CORA", "red")
    assert [found["code"] for found in told["findings"]] == ["too_few"]


@pytest.mark.parametrize("findings", [(), (WARN,)])
def test_what_is_well_is_not_said(bot, database, findings):
    """No entry, and the next look is a day later."""
    bot.findings = findings
    assert not bot.daily.tick(now=START)
    assert not bot.daily.tick(now=START + EVERY - MINUTE)
    assert (bot.count, said(database)) == (1, [])


def test_what_does_not_answer_is_asked_again_and_said_after_an_hour(bot, database):
    """Silence is not well: after an hour of it the entry says that it is not known."""
    bot.findings = (SILENT,)
    ticks = [bot.daily.tick(now=START + n * AGAIN) for n in range(TRIES)]
    assert ticks == [False] * (TRIES - 1) + [True]
    assert said(database)[0].data["accounts"][0]["verdict"] == "unknown"
    assert not bot.daily.tick(now=START + TRIES * AGAIN)


def test_a_bot_that_died_while_it_looked_has_not_looked(bot, database, account):
    """A look that fails or dies leaves it due: another bot looks once the claim has run out."""

    def dies(_now):
        raise RuntimeError

    dead = DailyLook(database, dies)
    with pytest.raises(RuntimeError):
        dead.tick(now=START)
    bot.findings = (RED,)
    assert not bot.daily.tick(now=START + MINUTE)
    assert bot.daily.tick(now=START + timedelta(minutes=11))
    with database.read() as session:
        row = session.get(Feed, CLAIM)
    assert row.retry_at == START + timedelta(minutes=11) + EVERY


def test_the_line_names_account_owner_and_reason_and_rings_nobody_else(bot, database):
    """What stands in the incident channel: markup that came from outside is words."""
    bot.findings = (RED,)
    bot.daily.tick(now=START)
    words, _ = line(said(database)[0], None, "")
    assert "*1 account is not ready*" in words
    assert "*orders-db* (<@U0CORA>): red. level w: it needs 2 custodians, and only 1 can act" in words
    assert "<!channel>" not in words
    assert "\n" not in words
