"""Are the people beyond Slack told at least once, in plain words, by services that fail, hang and come back?

The services are real ones on loopback, reached through apprise; time is the test's own.
"""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alert_services import PASSWORD, Hook, Mail
from counter import CARL, CHEN, RITA
from stages import until

from bot import alert_words, cli, entries, metrics
from bot.alert_channel import AlertTrouble, Channel, open_channels
from bot.alerts import OUTAGE, AlertRunner, standings
from bot.check import _alerts as alerts_checked
from bot.ready_command import _alerts as alerts_ready
from bot.settings import Settings
from storage.audit import SYSTEM, Draft, append, append_all, read_entries
from storage.database import Database
from storage.models import Feed, State
from workflows import policy as rules
from workflows import sweep
from workflows.alert_rules import SEND, TEST, Severity
from workflows.errors import Unavailable
from workflows.lifecycle import Action

pytest_plugins = ["real_parts", "counter"]

DEMO = (Path(__file__).parent.parent / "bot" / "demo" / "breakglass.yml").read_text(encoding="utf-8")
START = datetime(2026, 11, 24, 3, 10, tzinfo=UTC)
HOUR = timedelta(hours=1)
SECTION = """\
alerts:
  pager: {to: security, from: warning, url_env: PAGER_URL}
  chiefs: {to: leadership, from: critical, url_env: CHIEFS_URL}
  owners: {to: custodians, from: info, url_env: OWNERS_URL, account: orders-db}
"""
POLICY = rules.parse(DEMO + SECTION, name="p")


@pytest.fixture
def log(tmp_path, sqlite_template):
    """An empty log in SQLite."""
    file = tmp_path / "log.db"
    file.write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{file}")
    yield database
    database.close()


@pytest.fixture
def hook():
    """A web hook that takes everything."""
    with Hook() as hook:
        yield hook


class Bots:
    """Bots on one database, each with an alert called pager, and their clock."""

    def __init__(self, database, hook, *, policy=POLICY, case=None):
        self.database, self.hook, self.policy, self.now = database, hook, policy, START
        self.case = case or self._no_case

    @staticmethod
    def _no_case(_request_id):
        raise Unavailable("There is none.")

    def bot(self, *names, person=lambda _user: None, senders=None, **more):
        """Return a bot's runner."""
        names = names or ("pager",)
        senders = senders or {name: Channel(name, self.hook.url, seconds=30) for name in names}
        return AlertRunner(
            self.database,
            senders,
            policy=lambda: self.policy,
            case=self.case,
            person=person,
            now=lambda: self.now,
            **more,
        )

    def happen(self, event, data=None, **more):
        """Append an entry."""
        with self.database.write() as session:
            return append(session, event=event, at=self.now, actor=SYSTEM, data=data or {}, **more).seq

    def said(self):
        """Return what each entry about a sending says: what came of it, and of which entries."""
        with self.database.read() as session:
            found = read_entries(session, events=[SEND])
        return [(record.data["came"], record.data["entries"]) for record in found]


@pytest.fixture
def bots(log, hook):
    """Bots that have begun to follow the log: what is written from now on is told."""
    bots = Bots(log, hook)
    bots.happen("log:alarm", {"sentence": "Old."})
    bots.bot().step("pager")
    return bots


def drain(bot, name="pager"):
    """Do all there is to do now."""
    while bot.step(name):
        pass


# --- the policy ----------------------------------------------------------------------------------------------------


def test_the_section_is_read():
    """Names, audiences, severities, variables and accounts are where the program looks for them; it is optional."""
    assert rules.parse(DEMO, name="p").alerts == {}
    alerts = POLICY.alerts
    assert list(alerts) == ["pager", "chiefs", "owners"]
    assert (alerts["pager"].to, alerts["pager"].least, alerts["pager"].url_env) == ("security", "warning", "PAGER_URL")
    assert (alerts["pager"].account, alerts["owners"].account) == (None, "orders-db")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{to: everybody, from: info, url_env: X}", "This is leadership, security or custodians."),
        ("{to: security, from: loud, url_env: X}", "This is info, warning or critical."),
        (f'{{to: security, from: info, url_env: "mailto://bot:{PASSWORD}@mx"}}', "name of an environment variable"),
        ("{to: security, from: info}", "url_env"),
        ("{to: security, from: info, url_env: X, account: payroll}", "There is no such account"),
        ("{to: security, from: info, url_env: X, url: y}", "url"),
        ("pager", "block"),
    ],
)
def test_what_is_wrong_in_the_section_is_said_without_the_address(line, sentence):
    """A slip in an alert is a problem with its line, and an address that stands there is not repeated."""
    with pytest.raises(rules.PolicyInvalid) as invalid:
        rules.parse(f"{DEMO}alerts:\n  pager: {line}\n", name="p")
    assert sentence in str(invalid.value)
    assert PASSWORD not in str(invalid.value)


# --- words ---------------------------------------------------------------------------------------------------------


def record_of(database, event, data=None, **more):
    """Append an entry and read it back."""
    with database.write() as session:
        seq = append(session, event=event, at=START, actor=more.pop("actor", SYSTEM), data=data or {}, **more).seq
    with database.read() as session:
        (record,) = read_entries(session, after=seq - 1, until_seq=seq)
    return record


@pytest.mark.parametrize(
    ("event", "more", "severity"),
    [
        ("request:open", {}, Severity.WARNING),
        ("request:open", {"refused": "not_allowed"}, Severity.INFO),
        ("credential:intercept", {}, Severity.CRITICAL),
        ("credential:lost", {}, Severity.CRITICAL),
        ("request:escalate", {"source": "pending"}, Severity.WARNING),
        ("request:escalate", {"source": "ending"}, Severity.CRITICAL),
        ("review:file", {"data": {"outcome": "justified"}}, Severity.INFO),
        ("review:file", {"data": {"outcome": "misuse"}}, Severity.CRITICAL),
        ("review:first", {"data": {"outcome": "not_justified"}}, Severity.CRITICAL),
        ("person:lock", {}, Severity.CRITICAL),
        ("request:nudge", {}, None),
        ("command:run", {"data": {"text": "SELECT 1"}}, None),
        ("command:run", {"data": {"text": "x", "danger": "runs a program"}}, Severity.CRITICAL),
        ("command:stranger", {}, Severity.CRITICAL),
        ("log:alarm", {}, Severity.CRITICAL),
        ("copy:behind", {}, Severity.WARNING),
        ("policy:text", {}, None),
        ("alert:send", {}, None),
        ("alert:test", {}, None),
        ("thing:unheard-of", {}, Severity.INFO),
    ],
)
def test_how_urgent_an_event_is(log, event, more, severity):
    """One table says it; what is not known is for information, and nothing is told of alerts themselves."""
    assert alert_words.severity_of(record_of(log, event, **more)) == severity


@pytest.mark.parametrize(
    ("event", "data", "hears"),
    [
        ("log:alarm", {}, {"pager", "chiefs"}),
        ("copy:behind", {}, {"pager"}),
        ("ready:fail", {}, {"pager"}),
        ("request:open", {"account": "orders-db"}, {"pager", "owners"}),
        ("request:open", {"account": "payroll"}, {"pager"}),
        ("credential:intercept", {"account": "orders-db"}, {"pager", "chiefs", "owners"}),
    ],
)
def test_who_hears_of_what(log, event, data, hears):
    """Security hears of everything, leadership of requests and of what is critical, custodians of their account."""
    record = record_of(log, event, data, request_id="BG-7KQ2" if event.startswith("request") else None)
    severity = alert_words.severity_of(record)
    told = {name for name, one in POLICY.alerts.items() if alert_words.concerns(one, record, None, severity)}
    assert told == hears


def test_markup_becomes_plain_words():
    """Names for people, UTC for times, no stars; what looks like markup but was typed stays as it was typed."""
    text = (
        "*Approved* by <@U0CARL> until <!date^1^{time}|2026-11-24 03:15 UTC>, `db:5432` _so_ 2 &lt; 3 a*b*c x_y <!here>"
    )
    assert (
        alert_words.plain_words(text, lambda who: f"Carl ({who})")
        == "Approved by Carl (U0CARL) until 2026-11-24 03:15 UTC, db:5432 so 2 < 3 a*b*c x_y"
    )


def test_a_rehearsal_is_marked_and_never_hides_the_real_thing():
    """The title of a drill begins with DRILL; of a mixture it does not. It is short, and keeps its numbers."""
    pager = POLICY.alerts["pager"]
    one = alert_words.Told(7, START, "BG-7KQ2", Severity.WARNING, "BG-7KQ2, Orders", "words", is_drill=True)
    assert alert_words.message(pager, [one])[0] == "DRILL WARNING: BG-7KQ2, Orders (entry 7)"
    real = replace(one, seq=9, severity=Severity.CRITICAL, subject="x" * 500, is_drill=False)
    title, _, severity = alert_words.message(pager, [real, one])
    assert (severity, title.startswith("CRITICAL: xxx")) == (Severity.CRITICAL, True)
    assert title.endswith(" and 1 more (2 entries, 9 to 7)")
    assert len(title) <= 200


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"came": "sent", "tries": 1}, "Told security beyond Slack by `pager` (json)."),
        ({"came": "sent", "tries": 3, "seconds": 180}, "`pager` (json), after 3 tries and 3 minutes."),
        ({"came": "failed", "why": "It is <down>.", "retry_seconds": 60}, "did not get through*: It is &lt;down&gt;."),
        ({"came": "given_up", "why": "It is down."}, "was given up* after a day"),
    ],
)
def test_the_thread_says_what_came_of_an_alert(log, data, said):
    """A line for what was sent, what failed and what was given up."""
    record = record_of(log, SEND, {"alert": "pager", "to": "security", "scheme": "json", **data})
    assert said in entries.line(record, None, "")[0]


# --- the services --------------------------------------------------------------------------------------------------


def test_a_hook_and_a_mail_server_take_plain_text(hook):
    """Title, text and urgency arrive as they were given, with accents, angle brackets and line breaks."""
    Channel("pager", hook.url).send("CRITICAL: it <b>burns</b>", "zwölf & <!here>\n> two", Severity.CRITICAL)
    (got,) = hook.got
    assert (got["title"], got["message"]) == ("CRITICAL: it <b>burns</b>", "zwölf & <!here>\n> two")
    assert got["type"] == "failure"
    with Mail() as mail:
        channel = Channel("chiefs", mail.url)
        channel.send("CRITICAL: it burns", "entry 12", Severity.WARNING)
        assert until(lambda: len(mail.got) == 1)
    assert channel.scheme == "mailto"
    assert "it burns" in mail.got[0]
    assert "lena@orders.example" in mail.got[0]


@pytest.mark.parametrize("status", [403, 500, None])
def test_a_failure_is_said_without_the_address(hook, caplog, capfd, status):
    """Status or silence is named; neither the sentence nor any log has a part of the address but its scheme."""
    caplog.set_level(0)
    hook.status = status or 200
    address = hook.url if status else f"json://bot:{PASSWORD}@127.0.0.1:1/secret-path"
    with pytest.raises(AlertTrouble) as trouble:
        Channel("pager", address).send("t", "b", Severity.INFO)
    assert (f"HTTP status {status}" if status else "cannot be reached") in str(trouble.value)
    for text in (
        str(trouble.value),
        *[r.getMessage() for r in caplog.records if "apprise" in r.name],
        *capfd.readouterr(),
    ):
        assert PASSWORD not in text
        assert "secret-path" not in text


@pytest.mark.parametrize("address", ["nosuch://bot:{0}@mx/secret", "{0}", "mailto://bot:{0}@", "json://"])
def test_an_address_that_cannot_be_read_is_not_shown(address, caplog, capfd):
    """Attack: apprise writes an unreadable address, password and all, to its log; ours stays silent about it."""
    caplog.set_level(0)
    with pytest.raises(AlertTrouble) as trouble:
        Channel("pager", address.format(PASSWORD))
    assert "none that apprise can read" in str(trouble.value)
    assert PASSWORD not in f"{trouble.value}{caplog.text}{capfd.readouterr()}"


def test_all_that_is_missing_is_said_at_once(monkeypatch):
    """Each variable that is not set is named; without apprise it is said what to install."""
    with pytest.raises(AlertTrouble) as trouble:
        open_channels(POLICY.alerts, {"CHIEFS_URL": "json://127.0.0.1:1"})
    assert [name in str(trouble.value) for name in ("PAGER_URL", "CHIEFS_URL", "OWNERS_URL")] == [True, False, True]
    monkeypatch.setitem(__import__("sys").modules, "apprise", None)
    with pytest.raises(AlertTrouble, match="with its extra “alerts”"):
        open_channels(POLICY.alerts, dict.fromkeys(("PAGER_URL", "CHIEFS_URL", "OWNERS_URL"), "json://127.0.0.1:1"))


def test_a_service_that_hangs_has_a_limit_and_one_thread(hook):
    """It counts as failed in time, is not called again while it hangs, and is called again once it let go."""
    channel = Channel("pager", hook.url, seconds=0.3)
    hook.gate.clear()
    with pytest.raises(AlertTrouble, match=r"did not answer within 0\.3 seconds"):
        channel.send("one", "b", Severity.INFO)
    with pytest.raises(AlertTrouble, match="has not answered the last message yet"):
        channel.send("two", "b", Severity.INFO)
    hook.gate.set()
    assert until(lambda: not any(one.name == "alert-pager-call" for one in threading.enumerate()))
    Channel("pager", hook.url, seconds=30).send("three", "b", Severity.INFO)
    assert hook.titles == ["one", "three"]


# --- the follower --------------------------------------------------------------------------------------------------


def test_what_waits_goes_as_one_message_and_is_on_record(bots):
    """Only what is urgent enough goes, with its number; nothing old, nothing about an alert, nothing a second time."""
    first = bots.happen("log:alarm", {"sentence": "It was cut."})
    bots.happen("copy:caught_up", {"copy": "archive"})
    second = bots.happen("copy:behind", {"copy": "archive", "why": "Full.", "entries": 2, "seconds": 300})
    bot = bots.bot()
    drain(bot)
    drain(bots.bot())
    (got,) = bots.hook.got
    assert got["title"] == f"CRITICAL: the log (2 entries, {first} to {second})"
    assert "ALARM: the log is not signed any more. It was cut." in got["message"]
    assert "archive is behind" in got["message"]
    assert "caught up" not in got["message"]
    assert bots.said() == [("sent", [first, second])]
    with bots.database.read() as session:
        assert session.get(Feed, ("alert:pager", OUTAGE)).seq == -1


def test_a_service_that_is_down_is_tried_again_ever_later_and_said_once(bots):
    """The first failure is an entry; tries are a minute apart, then more; news wait no more than a minute."""
    bots.hook.status = 503
    first = bots.happen("log:alarm")
    bot = bots.bot()
    tries = []
    for minute in range(20):
        bots.now = START + timedelta(minutes=minute)
        before = len(bots.hook.got)
        drain(bot)
        tries += [minute] * (len(bots.hook.got) - before)
    assert tries == [0, 1, 3, 8, 18]
    assert bots.said() == [("failed", [first])]
    (standing,) = standings(bots.database, {"pager": POLICY.alerts["pager"]})
    assert (standing.failures, standing.since) == (5, START)
    bots.hook.status = 200
    drain(bot)
    assert len(bots.hook.got) == 5  # not before its time
    second = bots.happen("log:alarm")
    drain(bot)
    assert bots.said()[1:] == [("sent", [first, second])]
    assert standings(bots.database, {"pager": POLICY.alerts["pager"]})[0].since is None


def test_after_a_day_it_is_given_up_and_what_came_later_is_not(bots):
    """What a day of trying did not bring is an entry and left; the next one still goes out when the service is back."""
    bots.hook.status = 500
    old = bots.happen("log:alarm")
    bot = bots.bot()
    drain(bot)
    bots.now = START + 23 * HOUR
    young = bots.happen("log:alarm")
    drain(bot)
    bots.now = START + 25 * HOUR
    drain(bot)
    assert bots.said() == [("failed", [old]), ("given_up", [old])]
    bots.hook.status = 200
    bots.now += HOUR
    drain(bots.bot())
    assert bots.said()[2:] == [("sent", [young])]


def test_killed_between_sending_and_writing_it_down(bots):
    """Crash: it was sent and nobody wrote that down. The next bot sends it again, under the same number; never zero."""

    class KilledError(BaseException):
        pass

    class Mortal:
        scheme = "json"

        def send(self, title, body, severity):
            Channel("pager", bots.hook.url).send(title, body, severity)
            raise KilledError

    seq = bots.happen("log:alarm")
    with pytest.raises(KilledError):
        bots.bot(senders={"pager": Mortal()}, holder="elsewhere/1").step("pager")
    drain(bots.bot())
    assert len(bots.hook.got) == 1  # the claim of the dead one still stands: who it is cannot be seen from here
    bots.now += timedelta(minutes=2)
    drain(bots.bot())
    drain(bots.bot())
    assert bots.hook.titles == [f"CRITICAL: the log (entry {seq})"] * 2
    assert bots.said() == [("sent", [seq])]


def test_of_several_bots_one_sends(bots):
    """Each of many entries is told once, whichever bot is faster, and on record once."""
    fleet = [bots.bot() for _ in range(3)]
    numbers = []
    for _ in range(5):
        numbers.append(bots.happen("log:alarm"))
        threads = [threading.Thread(target=drain, args=(bot,)) for bot in fleet]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(int(re.search(r"entry (\d+)", title)[1]) for title in bots.hook.titles) == numbers
    assert [told for _, told in bots.said()] == [[number] for number in numbers]


def test_one_that_hangs_holds_up_no_other(log, hook):
    """The running bot: while the pager's service does not answer, leadership is told, and the log goes on."""
    bots = Bots(log, hook)
    with Hook() as slow:
        senders = {"pager": Channel("pager", slow.url, seconds=60), "chiefs": Channel("chiefs", hook.url)}
        runner = bots.bot(senders=senders)
        log.woken.append(runner.wake)
        slow.gate.clear()
        runner.start()  # it begins here, not when a thread first looks: nothing falls in between
        try:
            bots.happen("log:alarm")
            assert until(lambda: len(slow.got) == 1 and len(bots.said()) == 1, 60)
            assert len(hook.got) == 1
            slow.gate.set()
            assert until(lambda: len(bots.said()) == 2, 60)
        finally:
            slow.gate.set()
            runner.stop()


def test_damage_silences_nothing(bots):
    """Attack: an entry that was changed in the database is told as such, and what stands after it is told, too."""
    bad = bots.happen("log:alarm")
    good = bots.happen("copy:behind", {"copy": "archive"})
    with bots.database.write() as session:
        session.run("DROP TRIGGER IF EXISTS entry_no_change")
        for (name,) in (
            session.connection()
            .exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'entry'")
            .all()
        ):
            session.run(f'DROP TRIGGER "{name}"')
        session.run("UPDATE entry SET body = ? WHERE seq = ?", (b"{}", bad))
    drain(bots.bot())
    (got,) = bots.hook.got
    assert f"entry {bad} of the log is damaged" in got["message"]
    assert "archive is behind" in got["message"]
    assert bots.said() == [("sent", [bad, good])]


def test_thousands_of_commands_are_passed_by_and_remembered(bots):
    """What concerns nobody moves the cursor now and then, so that a restart does not read it all again."""
    draft = Draft("command:run", SYSTEM, None, {"text": "SELECT 1"})
    with bots.database.write() as session:
        seq = append_all(session, [draft] * 1201, at=START)[-1].seq
    drain(bots.bot())
    with bots.database.read() as session:
        assert seq - session.get(Feed, ("alert:pager", "*")).seq < 1000
    assert bots.hook.got == []


# --- the whole, on real parts --------------------------------------------------------------------------------------


def test_a_night_is_told_to_each_by_their_own_rules(counter, hook):
    """From the question to the confirmed end, with the real Vault: who hears what, in the thread's words and log."""
    seen = {name: [] for name in POLICY.alerts}

    class Named:
        scheme = "json"

        def __init__(self, name):
            self.name = name

        def send(self, title, body, severity):
            Channel(self.name, hook.url).send(title, body, severity)
            seen[self.name].append((title, body))

    policy = replace(counter.policy, alerts=POLICY.alerts)
    runner = AlertRunner(
        counter.database,
        {name: Named(name) for name in policy.alerts},
        policy=lambda: policy,
        case=counter.case,
        person=counter.people.person,
        now=lambda: counter.now,
    )

    def settle():
        for name in policy.alerts:
            drain(runner, name)

    settle()
    row = counter.ask(RITA, reason="Checkout fails for <everybody>")
    settle()
    title, body = seen["pager"][-1]
    assert title.startswith(f"WARNING: {row.id}, Orders database")
    assert "Rita (U0RITA) asked for" in body
    assert "> Checkout fails for <everybody>" in body
    counter.approve(CARL, row.id, row.version, now=counter.now)
    settle()
    assert "Carl (U0CARL) approved" in seen["owners"][-1][1]
    secret = counter.show(row)
    counter.revoke(CHEN, row.id, counter.case(row.id).request.version, now=counter.now)
    settle()
    sweep.tick(counter, now=counter.now)
    assert until(lambda: counter.case(row.id).request.state == State.ENDED)
    settle()
    assert seen["chiefs"] == []
    assert "revoked the access" in seen["pager"][-1][1]
    assert "issued" in "".join(body for _, body in seen["owners"])
    password = str(secret.fields if hasattr(secret, "fields") else secret)
    assert password not in str(seen)
    counter.record(Action.LOSE.value, SYSTEM, {"gone": "lease", "credential": 1}, request_id=row.id, now=counter.now)
    settle()
    assert seen["chiefs"][-1][0].startswith(f"CRITICAL: {row.id}")
    sent = [record for record in counter.log_of(row) if record.event == SEND]
    assert {record.data["came"] for record in sent} == {"sent"}
    assert counter.case(row.id).request.last_seq == max(record.seq for record in counter.log_of(row))
    assert PASSWORD not in str([record.data for record in counter.log_of()])


# --- for whoever asks how it goes ----------------------------------------------------------------------------------


def test_a_test_message_is_sent_and_on_record(tmp_path, log, hook, monkeypatch, capsys):
    """``alert test`` says what came of it in words and exit code; who typed it is in the log, the address nowhere."""
    file = tmp_path / "policy.yml"
    file.write_text(DEMO + SECTION, encoding="utf-8")
    monkeypatch.setenv("BREAKGLASS_POLICY", str(file))
    monkeypatch.setenv("BREAKGLASS_DATABASE_URL", f"sqlite:///{tmp_path / 'log.db'}")
    monkeypatch.setenv("PAGER_URL", hook.url)
    assert cli.main(["alert", "test", "pager"]) == cli.OK
    assert hook.titles == ["TEST: break-glass alert “pager” for security"]
    hook.status = 401
    assert cli.main(["alert", "test", "pager"]) == cli.UNAVAILABLE
    assert cli.main(["alert", "test", "chiefs"]) == cli.UNAVAILABLE
    assert cli.main(["alert", "test", "nobody"]) == cli.REFUSED
    said = "".join(capsys.readouterr())
    for words in ("took the message for security", "HTTP status 401", "CHIEFS_URL", "It has: pager, chiefs, owners"):
        assert words in said
    with log.read() as session:
        records = [record for record in read_entries(session) if record.event == TEST]
    assert [record.data["came"] for record in records] == ["sent", "failed", "failed"]
    assert all(record.actor.person.startswith("shell:") for record in records)
    assert PASSWORD not in f"{said}{[record.data for record in records]}"
    assert "and it arrived" in entries.line(records[0], None, "")[0]


def test_check_ready_and_the_numbers_show_an_alert_that_fails(tmp_path, bots):
    """One that fails, one that is not set and one that is well are told apart, and ``ready`` only warns."""
    bots.hook.status = 500
    bots.happen("log:alarm")
    drain(bots.bot())
    environment = {"PAGER_URL": bots.hook.url, "OWNERS_URL": bots.hook.url}
    settings = Settings(
        slack_bot_token="x",
        slack_app_token="x",
        vault_address="http://127.0.0.1:1",
        vault_token="x",
        policy_file=tmp_path / "policy.yml",
        database_url=f"sqlite:///{tmp_path / 'log.db'}",
        environment=environment,
    )
    found = list(alerts_checked(settings, POLICY, has_database=True))
    assert [one.is_fine for one in found] == [False, False, True]
    assert "the last try failed since 2026-11-24 03:10 UTC" in found[0].sentence
    assert "CHIEFS_URL" in found[1].sentence
    assert "(custodians, from info on of orders-db): its address is one of json" in found[2].sentence
    general = []
    alerts_ready(
        replace(settings, environment=environment | {"CHIEFS_URL": "json://127.0.0.1"}), POLICY, bots.database, general
    )
    assert [(one.severity, one.code) for one in general] == [("warn", "alert")]
    assert "pager does not get through: its last try failed" in general[0].sentence
    text = metrics.read(bots.database, None, POLICY.alerts, now=START + HOUR)
    assert 'breakglass_alert_up{alert="pager"} 0' in text
    assert 'breakglass_alert_up{alert="owners"} 1' in text
    assert 'breakglass_alert_failing_seconds{alert="pager"} 3600' in text
    assert PASSWORD not in f"{found}{general}{text}"
