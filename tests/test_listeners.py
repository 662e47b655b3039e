"""What does each command, click and form come to, in a Slack that is as strict as the real one?

The Slack side is the sandbox with the unmodified Bolt and Socket Mode client; the desk, the database, Vault and the
PostgreSQL behind it are real. Only the follower is missing: the tests post and redraw the messages themselves.
"""

from __future__ import annotations

import logging
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from counter import CARL, CHEN, OLGA, PATIENCE, POLICY, RITA, SAM, TEAM, Counter
from sandbox_app import bolted, client_of
from slack_bolt import App

from bot import commands, listeners, modals, views
from bot.demo.run import SEED
from bot.directory import SlackDirectory
from bot.presence import Presence
from bot.sandbox.driver import Driver, wait_for
from bot.sandbox.server import Sandbox
from bot.sandbox.workspace import BOT_USER
from storage import commands as told
from storage.audit import Actor, append
from storage.database import Database, DatabaseDown
from storage.models import State
from workflows import policy as rules
from workflows.errors import Unavailable
from workflows.vault import Vault

ROOM = "C0INCIDENT"
MANIFEST = Path(__file__).parent.parent / "manifest.yml"
WORDS = {
    "threshold": "customer-impact",
    "reason": "Checkout fails for every customer",
    "standard_path": "Paged the database on-call twice, no answer",
    "incident": "INC-2031",
}


class Desk(Counter):
    """The desk of these tests; ``meanwhile`` happens while a credential is on its way to the window."""

    def meanwhile(self):
        """Nothing, unless a test says what."""

    def issue(self, intent, *, now, held=None, asked=None):
        """Issue, and let the test do something before the window is filled."""
        made = super().issue(intent, now=now, held=held, asked=asked)
        self.meanwhile()
        return made


@dataclass
class Office:
    """A workspace with the bot in it, and what the tests do there."""

    desk: Desk
    driver: Driver
    client: object
    exported: list = field(default_factory=list)
    pauses: list = field(default_factory=list)
    serving: int = 0

    @contextmanager
    def first(self):
        """Count those who look at an empty window."""
        self.serving += 1
        yield
        self.serving -= 1

    def as_(self, actor):
        """Act as somebody."""
        return self.driver.as_(actor.person)

    def draw(self, row, picture=views.card, *, to=ROOM):
        """Post a message about a request as the follower does, and return it as people see it."""
        case = self.desk.case(row.id)
        message = picture(case, self.desk.policy, now=self.desk.now)
        sent = self.client.chat_postMessage(channel=to, text=message.text, blocks=message.blocks)
        reader = self.as_(RITA) if to == ROOM else self.driver.as_(to)
        return next(m for m in reader.messages(sent["channel"]) if m["ts"] == sent["ts"])

    def told(self, actor, words):
        """Wait until a person privately reads these words."""
        person = self.as_(actor)
        return wait_for(lambda: next((m["text"] for m in person.ephemerals() if words in m["text"]), None))

    def window(self, actor, words):
        """Wait until the person's topmost window says these words, and return it."""
        person = self.as_(actor)

        def look():
            view = person.view()
            return view if view and words in str(view["blocks"]) else None

        return wait_for(look, what=f"a window that says {words!r}")

    def state(self, row):
        """Return a request's state."""
        return self.desk.case(row.id).state

    def events(self, row):
        """Return what happened to a request."""
        return self.desk.events(row)


@pytest.fixture
def office(real, sqlite_template, tmp_path):
    """The demo's workspace, with the bot listening."""
    shutil.copyfile(sqlite_template, tmp_path / "breakglass.db")
    database = Database(f"sqlite:///{tmp_path / 'breakglass.db'}")
    text = POLICY.read_text(encoding="utf-8").replace("port: 5432", f"port: {real.pg.port}")
    for name, level in (("read", real.read), ("write", real.write)):
        text = text.replace(f"token_role: breakglass-orders-db-{name}", f"token_role: {level.settings.token_role}")
    with Sandbox(SEED, yaml.safe_load(MANIFEST.read_text(encoding="utf-8")), rate_limits=0) as sandbox:
        client = client_of(sandbox)
        directory = SlackDirectory(client, TEAM)
        desk = Desk(database, rules.parse(text, name="demo"), directory, real.vault(), team=TEAM, patience=PATIENCE)
        desk.now = datetime.now(UTC)
        office = Office(desk, Driver(sandbox.url), client)
        with ThreadPoolExecutor(16) as executor:
            app = App(client=client, listener_executor=executor)
            directory.register(app)
            listeners.register(
                app,
                desk,
                now=lambda: desk.now,
                export=lambda actor, request_id: office.exported.append((actor, request_id)),
                pause=office.pauses.append,
                first=office.first,
                active=Presence(client).of,
            )
            with bolted(sandbox, app):
                yield office
    database.close()
    real.bao.call("PUT", "sys/leases/revoke-prefix/database/creds", {"sync": True})


# --- asking -----------------------------------------------------------------------------------------------------------


def test_the_form_opens_before_anything_is_looked_up(office):
    """The trigger id dies in three seconds, so the window is opened first and filled after."""
    office.as_(RITA).command("/breakglass", ROOM)
    view = office.as_(RITA).wait_for_view(views.OPEN_FORM)
    assert [block["block_id"] for block in view["blocks"] if block["type"] == "input"] == [
        "account",
        "level",
        "threshold",
        "reason",
        "standard_path",
        "incident",
        "duration",
    ]
    calls = [entry["method"] for entry in office.driver.journal(kind="api")]
    after_start = calls[calls.index("views.open") :]
    assert after_start[-1] == "views.update"
    assert not {"users.info", "users.list", "usergroups.list"} & set(calls[: calls.index("views.open")])


def test_the_form_says_what_it_takes(office):
    """The verdict of the gate, the rules and the custodians stand in the form."""
    office.as_(RITA).command("/breakglass orders-db", ROOM)
    view = office.as_(RITA).wait_for_view(views.OPEN_FORM)
    said = str(view["blocks"])
    assert "Needs 1 of 3 custodians; at most 30 minutes." in said
    assert "<@U0CARL>, <@U0CHEN>, <@U0CORA>" in said
    assert "Page the database on-call" in said


def test_words_after_the_command_fill_the_form(office):
    """`/breakglass orders-db write 10m checkout is down` opens the form filled in."""
    office.as_(RITA).command("/breakglass orders-db write 10m checkout is down", ROOM)
    view = office.as_(RITA).wait_for_view(views.OPEN_FORM)
    values = view["state"]["values"]
    assert values["account"]["account"]["selected_option"]["value"] == "orders-db"
    assert values["level"]["level"]["selected_option"]["value"] == "write"
    assert values["duration"]["duration"]["value"] == "10m"
    assert values["reason"]["reason"]["value"] == "checkout is down"


def test_another_level_redraws_the_form_and_keeps_what_was_typed(office):
    """A choice that changes what it takes is seen at once, and no typed word is lost."""
    rita = office.as_(RITA)
    rita.command("/breakglass", ROOM)
    rita.wait_for_view(views.OPEN_FORM)
    form = rita.fill()
    form.enter(WORDS)
    form.choose("level", "write")
    view = office.window(RITA, "Needs 2 of 3 custodians")
    assert view["state"]["values"]["reason"]["reason"]["value"] == WORDS["reason"]


def test_the_form_opens_a_request(office):
    """What was filled in is the request; the window then says who is asked."""
    rita = office.as_(RITA)
    rita.command("/breakglass", ROOM)
    rita.wait_for_view(views.OPEN_FORM)
    answer = rita.submit({**WORDS, "duration": "12m"})
    assert answer["result"] == "updated"
    assert "must approve" in str(answer["view"]["blocks"])
    (case,) = office.desk.open_cases()
    assert (case.request.requester, case.request.asked_seconds, case.request.level) == ("U0RITA", 720, "read")
    assert case.request.form_id


def test_a_doubled_form_opens_one_request(office):
    """Slack may deliver an envelope twice; the form's id makes the second one the first one."""
    rita = office.as_(RITA)
    rita.command("/breakglass", ROOM)
    rita.wait_for_view(views.OPEN_FORM)
    office.driver.fault("duplicate_envelope", times=1)
    rita.submit({**WORDS, "duration": "12m"})
    assert len(office.desk.open_cases()) == 1


@pytest.mark.parametrize(("typed", "words"), [("soon", "Write a duration"), ("5h", "at most 30 minutes")])
def test_wrong_words_are_told_under_their_field(office, typed, words):
    """A field error stands under its field, and the form stays open with everything in it."""
    rita = office.as_(RITA)
    rita.command("/breakglass", ROOM)
    rita.wait_for_view(views.OPEN_FORM)
    answer = rita.submit({**WORDS, "duration": typed})
    assert answer["result"] == "errors"
    assert words in answer["errors"]["duration"]
    assert office.desk.open_cases() == []


def test_a_database_that_does_not_answer_keeps_the_form(office, monkeypatch):
    """What was typed at three in the morning is not lost because a machine did not answer."""
    rita = office.as_(RITA)
    rita.command("/breakglass", ROOM)
    rita.wait_for_view(views.OPEN_FORM)

    def down(*_a, **_k):
        raise DatabaseDown("gone")

    with monkeypatch.context() as patch:
        patch.setattr(office.desk.database, "write", down)
        answer = rita.submit({**WORDS, "duration": "12m"})
    assert answer["result"] == "errors"
    assert "does not answer" in answer["errors"]["duration"]
    assert rita.submit({**WORDS, "duration": "12m"})["result"] == "updated"


def test_somebody_who_may_ask_for_nothing_is_told_so(office):
    """The form never offers what the gate would refuse."""
    olga = office.driver.as_("U0OLGA")
    olga.command("/breakglass", ROOM)
    office.window(Actor(TEAM, "U0OLGA"), "no account that you may ask for")
    olga.command("/breakglass orders-db", ROOM)
    office.window(Actor(TEAM, "U0OLGA"), "not one of those who may ask")


def test_help_status_and_unknown_words_are_answered(office):
    """No word after the command goes unanswered, and a slip of the finger finds its account."""
    rita = office.as_(RITA)
    assert "/breakglass status" in rita.command("/breakglass help", ROOM)["response"]
    rita.command("/breakglass status", ROOM)
    office.told(RITA, "Nothing is open")
    row = office.desk.ask()
    rita.command("/breakglass status", ROOM)
    said = office.told(RITA, row.id)
    assert "those who have not answered are asked again" in said
    assert "of 3 custodians" in said
    rita.command(f"/breakglass status {row.id.lower()}", ROOM)
    office.told(RITA, "Waiting for approval")
    rita.command("/breakglass status BG-ZZZZ", ROOM)
    office.told(RITA, "There is no request")
    assert "Name the request" in rita.command("/breakglass review <!channel>", ROOM)["response"]
    rita.command("/breakglass ordrs-db", ROOM)
    assert "`/breakglass orders-db`" in office.told(RITA, "Did you mean")


def test_the_log_goes_to_auditors_only(office):
    """The policy says who an auditor is; anybody else's try is on record."""
    row = office.desk.ask()
    office.as_(RITA).command(f"/breakglass export {row.id}", ROOM)
    office.told(RITA, "Only the auditors")
    assert office.exported == []
    assert [r.refused for r in office.desk.log_of() if r.event == "log:export"] == ["not_allowed"]
    office.driver.as_("U0ADA").command(f"/breakglass export {row.id}", ROOM)
    office.told(Actor(TEAM, "U0ADA"), "in your direct messages")
    assert office.exported == [(Actor(TEAM, "U0ADA"), row.id)]


# --- deciding ---------------------------------------------------------------------------------------------------------


def test_an_approval_counts_and_is_answered(office):
    """A custodian's click is a decision, and the custodian alone reads how far it got."""
    row = office.desk.ask(level="write", minutes=10)
    card = office.draw(row)
    assert office.as_(CARL).click(card, views.APPROVE)["acknowledged"]
    office.told(CARL, f"Approved {row.id}: 1 of 2.")
    office.as_(CHEN).click(card, views.APPROVE)
    office.told(CHEN, "2 of 2")
    assert office.state(row) is State.APPROVED


def test_a_second_click_of_the_same_person_is_told_so(office):
    """A double click counts once, and says so."""
    row = office.desk.ask(level="write", minutes=10)
    card = office.draw(row)
    office.as_(CARL).click(card, views.APPROVE)
    assert office.as_(CARL).click(card, views.APPROVE)["acknowledged"]
    office.told(CARL, "already approved")
    assert office.events(row) == ["request:open", "request:approve", "request:approve!"]


@pytest.mark.parametrize("who", ["U0OLGA", "U0RITA", "U0GUS"])
def test_a_click_of_the_wrong_person_changes_nothing(office, who):
    """A stranger, the requester and a guest are refused in private, on record."""
    row = office.desk.ask()
    card = office.draw(row)
    assert office.driver.as_(who).click(card, views.APPROVE)["acknowledged"]
    office.told(Actor(TEAM, who), "cannot approve it" if who == "U0RITA" else "")
    assert office.events(row) == ["request:open", "request:approve!"]
    assert office.state(row) is State.PENDING


def test_somebody_of_another_workspace_is_refused(office):
    """A shared channel shows the buttons to strangers; their own workspace is what counts."""
    office.driver.add_person("U0FAR", "far", team_id="T0FAR")
    office.driver.change_channel(ROOM, members=[*SEED.channels[0].members, "U0FAR"])
    row = office.desk.ask()
    card = office.draw(row)
    office.driver.as_("U0FAR").click(card, views.APPROVE)
    office.told(Actor("T0FAR", "U0FAR"), "Only people of this workspace")
    (record,) = [r for r in office.desk.log_of(row) if r.refused]
    assert record.actor == Actor("T0FAR", "U0FAR")


def test_a_stale_card_says_so(office):
    """A card drawn before the state changed changes nothing, and says what is so now."""
    row = office.desk.ask()
    card = office.draw(row)
    office.desk.withdraw(RITA, row.id, row.version, now=office.desk.now)
    assert office.as_(CARL).click(card, views.APPROVE)["acknowledged"]
    office.told(CARL, "withdrawn")
    assert office.state(row) is State.WITHDRAWN


def test_a_denial_needs_its_reason_and_ends_the_request(office):
    """Deny opens a window for the reason; the decision carries it."""
    row = office.desk.ask()
    card = office.draw(row)
    carl = office.as_(CARL)
    carl.click(card, views.DENY)
    carl.wait_for_view(views.DENY_FORM)
    assert carl.submit({"reason": None})["result"] == "errors"
    assert carl.submit({"reason": "The replica is enough"})["result"] == "updated"
    case = office.desk.case(row.id)
    assert (case.state, case.decisions[0].reason) == (State.DENIED, "The replica is enough")


def test_a_custodian_may_approve_for_less(office):
    """The shorter time is what is granted, and more than was asked for is refused under the field."""
    row = office.desk.ask()
    card = office.draw(row)
    carl = office.as_(CARL)
    carl.click(card, views.SHORTEN)
    carl.wait_for_view(views.SHORTEN_FORM)
    assert carl.submit({"duration": "3h"})["errors"]["duration"].startswith("Give between")
    assert carl.submit({"duration": "5m"})["result"] == "updated"
    assert office.desk.case(row.id).request.granted_seconds == 300


def test_withdrawing_asks_first(office):
    """Withdraw is confirmed in a dialog; pressing Cancel there sends nothing."""
    row = office.desk.ask()
    card = office.draw(row)
    assert office.as_(RITA).click(card, views.WITHDRAW, confirm=False).get("cancelled")
    assert office.state(row) is State.PENDING
    office.as_(RITA).click(card, views.WITHDRAW)
    office.told(RITA, "Withdrew")
    assert office.state(row) is State.WITHDRAWN


# --- the credential ---------------------------------------------------------------------------------------------------


def _boxes(view):
    """Return the texts of the boxes in a window that are there to be copied."""
    return [
        part["text"]
        for block in view["blocks"]
        if block["type"] == "rich_text"
        for element in block["elements"]
        if element["type"] == "rich_text_preformatted"
        for part in element["elements"]
    ]


def test_the_credential_is_in_the_window_and_nowhere_else(office, caplog):
    """The secret is in the requester's window, and in no message, log line, row or other call."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("slack_sdk").setLevel(logging.DEBUG)
    row = office.desk.approved()
    message = office.draw(row, views.handover, to="U0RITA")
    office.as_(RITA).click(message, views.REVEAL)
    view = office.window(RITA, "psql")
    line, user, password, *_ = _boxes(view)
    assert line.startswith("PGPASSWORD=")
    assert user in line
    assert password in line
    assert office.state(row) is State.ACTIVE
    carrying = [entry for entry in office.driver.journal() if password in str(entry)]
    assert {entry.get("method") for entry in carrying if entry["kind"] == "api"} == {"views.update"}
    assert all(entry["kind"] == "api" for entry in carrying)
    assert password not in caplog.text
    assert password not in str([r.body for r in office.desk.log_of()])
    logging.getLogger("slack_sdk").setLevel(logging.NOTSET)


class _Copy:
    """A required copy that is down until the test says otherwise, and says when it is asked."""

    within = timedelta(minutes=1)

    def __init__(self):
        self.back = threading.Event()

    def behind(self, seq):
        """Whether it is missing."""
        return () if self.back.is_set() else ("archive",)

    def wait(self, seconds):
        """Wait for it."""
        self.back.wait(seconds)


def test_the_window_says_what_is_waited_for_and_then_shows_the_credential(office):
    """While a required copy is down the window names it; the credential comes in the same window, and others go on."""
    copy = office.desk.required = _Copy()
    row = office.desk.approved()
    office.as_(RITA).click(office.draw(row, views.handover, to="U0RITA"), views.REVEAL)
    waiting = office.window(RITA, "archive")
    assert "by itself" in str(waiting["blocks"])
    assert office.serving == 0
    copy.back.set()
    view = office.window(RITA, "psql")
    assert view["id"] == waiting["id"]
    assert office.state(row) is State.ACTIVE


def test_a_copy_that_stays_down_is_told_in_the_window(office):
    """After its time the window says what did not come, and what to do."""
    copy = office.desk.required = _Copy()
    copy.within = timedelta(seconds=1)
    row = office.desk.approved()
    office.as_(RITA).click(office.draw(row, views.handover, to="U0RITA"), views.REVEAL)
    office.window(RITA, "press the button again")
    assert office.state(row) is State.APPROVED


def test_show_again_gives_a_fresh_one(office):
    """A lost window costs a fresh credential and the end of the old one."""
    row = office.desk.approved()
    office.as_(RITA).click(office.draw(row, views.handover, to="U0RITA"), views.REVEAL)
    first = _boxes(office.window(RITA, "psql"))
    office.as_(RITA).close()
    office.as_(RITA).click(office.draw(row, views.handover, to="U0RITA"), views.REVEAL)
    second = _boxes(office.window(RITA, "psql"))
    assert first[1] != second[1]
    assert [grant.ended_at is None for grant in office.desk.case(row.id).grants] == [False, True]


def test_a_stranger_who_presses_reveal_sees_no_credential(office):
    """The refusal is said beside the button, and no window opens."""
    row = office.desk.approved()
    message = office.draw(row, views.handover)
    office.as_(CARL).click(message, views.REVEAL)
    office.told(CARL, "Only the person who asked")
    assert office.as_(CARL).view() is None
    assert office.state(row) is State.APPROVED
    assert office.desk.case(row.id).grants == ()


def test_a_vault_that_does_not_answer_is_told_in_the_window(office):
    """The request stays approved, so that the button works again when Vault does."""
    row = office.desk.approved()
    office.desk.vault = Vault("http://127.0.0.1:9", token="none")
    office.as_(RITA).click(office.draw(row, views.handover, to="U0RITA"), views.REVEAL)
    office.window(RITA, "Vault")
    wait_for(lambda: office.state(row) is State.APPROVED)


def test_a_moment_without_slack_does_not_cost_the_credential(office):
    """Showing is tried again when Slack fails for a moment, and waits as long as Slack asks."""
    row = office.desk.approved()
    message = office.draw(row, views.handover, to="U0RITA")
    office.driver.fault("error500", method="views.update", times=2)
    office.driver.fault("rate_limited", method="views.update", times=1, retry_after=7)
    office.as_(RITA).click(message, views.REVEAL)
    office.window(RITA, "psql")
    assert len(office.pauses) == 3
    assert max(office.pauses) == 7.0


def test_a_window_that_was_closed_too_early_is_told(office):
    """Who closes the window before the credential is in it learns how to get a fresh one."""
    row = office.desk.approved()
    message = office.draw(row, views.handover, to="U0RITA")
    office.desk.meanwhile = office.as_(RITA).close
    office.as_(RITA).click(message, views.REVEAL)
    office.told(RITA, "Press Show again")


def test_done_ends_it_and_says_so_only_then(office):
    """The requester reads that it has ended when Vault has confirmed it."""
    row = office.desk.approved()
    office.desk.show(row)
    office.as_(RITA).click(office.draw(row), views.RELEASE)
    office.told(RITA, "Vault confirmed")
    assert office.state(row) is State.ENDED


def test_any_custodian_revokes(office):
    """Revoke takes the access away at once."""
    row = office.desk.approved()
    office.desk.show(row)
    office.as_(CHEN).click(office.draw(row), views.REVOKE)
    office.told(CHEN, "Vault confirmed")
    case = office.desk.case(row.id)
    assert (case.state, case.request.ended_by_user) == (State.ENDED, "U0CHEN")


def test_an_end_that_vault_has_not_confirmed_is_not_called_one(office):
    """With Vault away the answer says that it is being taken back, and no more."""
    row = office.desk.approved()
    office.desk.show(row)
    card = office.draw(row)
    away, office.desk.vault = office.desk.vault, Vault("http://127.0.0.1:9", token="none")
    office.as_(RITA).click(card, views.RELEASE)
    office.told(RITA, "is being taken back")
    assert office.state(row) is State.ENDING
    office.desk.vault = away
    assert office.desk.finish(row.id, now=office.desk.now + timedelta(seconds=10))


# --- the review -------------------------------------------------------------------------------------------------------


def _ended(office):
    row = office.desk.approved()
    office.desk.show(row)
    office.desk.release(RITA, row.id, office.desk.case(row.id).request.version, now=office.desk.now)
    office.desk.finish(row.id, now=office.desk.now)
    return row


REVIEW = {
    "threshold_met": "yes",
    "threshold_why": "The alert says so.",
    "standard_path_enough": "no",
    "standard_path_why": "Nobody answered for an hour.",
    "used_as_stated": "yes",
    "outcome": "justified",
    "findings": "Nobody answered the page; the query was read-only.",
}


def test_a_review_is_filed(office):
    """The reviewer's answers and follow-ups are the record."""
    row = _ended(office)
    sam = office.as_(SAM)
    sam.click(office.draw(row, views.review_ask, to="U0SAM"), views.REVIEW)
    sam.wait_for_view(views.REVIEW_FORM)
    missing = sam.submit({**REVIEW, "follow_up_what": "Page two people"})
    assert list(missing["errors"]) == ["follow_up_owner"]
    answer = sam.submit({"follow_up_owner": "U0CORA", "follow_up_due": "2026-12-01"})
    assert answer["result"] in {"updated", "errors"}
    if answer["result"] == "errors":
        answer = sam.submit(
            {**REVIEW, "follow_up_what": "Page two people", "follow_up_owner": "U0CORA", "follow_up_due": "2026-12-01"}
        )
    assert answer["result"] == "updated", answer
    review = office.desk.case(row.id).review
    assert (review.outcome, review.threshold_met, review.standard_path_enough) == ("justified", True, False)
    wanted = {"id": f"{row.id}/1", "what": "Page two people", "owner": "U0CORA", "due": "2026-12-01"}
    assert review.follow_ups == [wanted]
    assert (review.threshold_why, review.standard_path_why) == (REVIEW["threshold_why"], REVIEW["standard_path_why"])


def test_an_approver_cannot_review(office):
    """Who approved it cannot judge it, also by command: the form is not even shown."""
    row = _ended(office)
    office.as_(CARL).command(f"/breakglass review {row.id}", ROOM)
    office.window(CARL, "somebody else must review it")
    assert office.state(row) is State.ENDED


def test_there_is_no_review_before_the_end(office):
    """The form is not even shown for what is still waiting."""
    row = office.desk.ask()
    office.as_(SAM).command(f"/breakglass review {row.id}", ROOM)
    office.window(SAM, "is still waiting")


# --- everywhere -------------------------------------------------------------------------------------------------------


def test_the_home_tab_shows_what_waits_and_takes_clicks(office):
    """A decision can be made from the Home tab, and is answered in a window, since nothing else is there."""
    row = office.desk.ask()
    carl = office.as_(CARL)
    carl.home()
    home = wait_for(lambda: (view := carl.home()) and row.id in str(view["blocks"]) and view)
    carl.click(home, views.APPROVE)
    office.window(CARL, f"Approved {row.id}: 1 of 1")
    assert office.state(row) is State.APPROVED


def test_the_home_tab_opens_the_form(office):
    """Who does not know the command finds the button."""
    rita = office.as_(RITA)
    rita.home()
    home = wait_for(lambda: (view := rita.home()) and rita.has(view, views.ASK) and view)
    rita.click(home, views.ASK)
    rita.wait_for_view(views.OPEN_FORM)


def test_a_button_that_nobody_knows_is_answered(office):
    """A message of an older bot is not dead: it says that it is old."""
    blocks = [
        {
            "type": "actions",
            "block_id": "b",
            "elements": [
                {"type": "button", "action_id": "gone", "value": "x", "text": {"type": "plain_text", "text": "Old"}},
                {
                    "type": "button",
                    "action_id": views.APPROVE,
                    "value": "BG-<!channel>",
                    "text": {"type": "plain_text", "text": "Forged"},
                },
            ],
        }
    ]
    sent = office.client.chat_postMessage(channel=ROOM, text="old", blocks=blocks)
    message = next(m for m in office.as_(CARL).messages(ROOM) if m["ts"] == sent["ts"])
    for action_id in ("gone", views.APPROVE):
        assert office.as_(CARL).click(message, action_id)["acknowledged"]
    wait_for(lambda: sum("not of this version" in m["text"] for m in office.as_(CARL).ephemerals()) == 2)


def test_what_is_unexpected_is_told_by_a_reference_that_is_in_the_log(office, caplog, monkeypatch):
    """The person reads a reference, the log has it with the traceback, and nothing that anybody typed."""
    row = office.desk.ask(reason="A reason with the word pomegranate")
    card = office.draw(row)

    def broken(*_a, **_k):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Desk, "approve", broken)
    assert office.as_(CARL).click(card, views.APPROVE)["acknowledged"]
    text = office.told(CARL, "Something unexpected")
    reference = text.rsplit(" ", 1)[1].rstrip(".")
    assert reference in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert "pomegranate" not in caplog.text


def test_slack_that_fails_to_open_a_window_is_told(office):
    """When Slack does not open the window, the click is answered beside the button and what had begun is given up."""
    row = office.desk.approved()
    message = office.draw(row, views.handover, to="U0RITA")
    office.driver.fault("error500", method="views.open", times=5)
    office.as_(RITA).click(message, views.REVEAL)
    office.told(RITA, "Slack did not take part")
    assert wait_for(lambda: office.events(row)[-1] == "credential:abandon")
    office.driver.clear_faults()
    office.as_(RITA).click(office.draw(row, views.handover, to="U0RITA"), views.REVEAL)
    office.window(RITA, "PGPASSWORD")


def test_the_second_of_two_clicks_on_reveal_does_not_cover_the_first(office):
    """A double click shows one credential, and says so beside the button instead of opening a window over it."""
    row = office.desk.approved()
    message = office.draw(row, views.handover, to="U0RITA")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: office.as_(RITA).click(message, views.REVEAL, in_flight=True), range(2)))
    office.window(RITA, "PGPASSWORD")
    assert office.as_(RITA).ephemerals()
    assert len([grant for grant in office.desk.case(row.id).grants if grant.ended_at is None]) == 1


def test_a_directory_that_does_not_answer_permits_nothing(office, monkeypatch):
    """Missing data never permits: the click is answered, and the state stays."""
    row = office.desk.ask()
    card = office.draw(row)

    def away(*_a, **_k):
        raise Unavailable("Slack does not say who is who at the moment. Try again.")

    monkeypatch.setattr(SlackDirectory, "person", away)
    office.as_(CARL).click(card, views.APPROVE)
    office.told(CARL, "Try again")
    assert office.state(row) is State.PENDING


def test_what_is_typed_after_the_command_is_read_as_it_is_meant(office):
    """Level and duration are optional; what is neither begins the reason."""
    account = office.desk.policy.accounts["orders-db"]
    for text, level, values in (
        ("", None, {}),
        ("READ 15m db down", "read", {"duration": "15m", "reason": "db down"}),
        ("15m db down", None, {"duration": "15m", "reason": "db down"}),
        ("the db is down", None, {"reason": "the db is down"}),
        ("write", "write", {}),
    ):
        wish = listeners.read_wish(text.split(), account)
        assert (wish.level, dict(wish.values)) == (level, values)


def test_every_form_s_words_are_the_desk_s(office):
    """The block ids of the form are the fields that the verdict names, so no field error is lost."""
    policy = office.desk.policy
    account = policy.accounts["orders-db"]
    level = account.levels["read"]
    view = modals.request_form([account], policy, account=account, level=level, verdict=None)
    inputs = {block["block_id"] for block in view["blocks"] if block["type"] == "input"}
    assert inputs == {"account", "level", "threshold", "reason", "standard_path", "incident", "duration"}


# --- the commands -----------------------------------------------------------------------------------------------------


def _summary(office, row, count):
    """Post a summary of so many commands of a request, as the follower does, and return it."""
    with office.desk.database.write() as session:
        seqs = [
            append(
                session,
                event="command:run",
                at=office.desk.now,
                actor=RITA,
                request_id=row.id,
                data={"source": "orders-pg", "text": f"SELECT {number} -- <!channel>", "class": "read"},
            ).seq
            for number in range(count)
        ]
    with office.desk.database.read() as session:
        tally = told.tally(session, row.id)
        few = [one for one in told.each(session, row.id, limit=20) if one]
    text, blocks = commands.post(few, tally, f"{row.id} {seqs[0]} {seqs[-1]}")
    sent = office.client.chat_postMessage(channel=ROOM, text=text, blocks=blocks)
    return next(m for m in office.as_(CARL).messages(ROOM) if m["ts"] == sent["ts"])


def test_show_all_pages_through_every_command(office):
    """The window shows all commands of the post, page by page and back; nothing in it rings anybody."""
    message = _summary(office, office.desk.ask(), commands.PAGE + 5)
    office.as_(CARL).click(message, views.SHOW_COMMANDS)
    view = office.window(CARL, "SELECT 24 ")
    assert "SELECT 0 -- <!channel>" in str(view["blocks"])
    assert "SELECT 25 " not in str(view["blocks"])
    office.as_(CARL).click(view, views.LATER_COMMANDS)
    view = office.window(CARL, "SELECT 29 ")
    assert "SELECT 24 " not in str(view["blocks"])
    office.as_(CARL).click(view, views.SHOW_COMMANDS)
    office.window(CARL, "SELECT 0 ")


def test_a_guest_is_not_shown_the_commands(office):
    """Attack: a guest of the incident channel presses "Show all" and reads nothing more than the post."""
    message = _summary(office, office.desk.ask(), 20)
    office.driver.add_person("U0GUEST", "gil", is_guest=True)
    office.driver.change_channel(ROOM, members=["U0GUEST", "U0CARL", "U0RITA", BOT_USER])
    guest = office.driver.as_("U0GUEST")
    guest.click(message, views.SHOW_COMMANDS)
    view = wait_for(lambda: next((v for v in [guest.view()] if v and "full members" in str(v["blocks"])), None))
    assert "SELECT" not in str(view["blocks"])


def test_somebody_says_that_they_are_away_and_is_told_what_was_understood(office):
    """The command reads the time where the person is, finds the deputy by name, and can be shown and ended."""
    text = office.desk.policy.text.replace("custodians: [U0CARL,", "deputies: [U0OLGA]\n    custodians: [U0CARL,")
    office.desk.policy = rules.parse(text, name="with deputies")
    office.driver.change_person("U0CARL", tz="Asia/Tokyo")
    office.as_(CARL).command("/breakglass away until tomorrow 8:30 @olga", ROOM)
    said = office.told(CARL, "You are away until")
    assert "08:30 (UTC+09:00)" in said
    assert "<@U0OLGA> is asked besides you" in said
    office.as_(CARL).command("/breakglass away until tomorrow @sam", ROOM)
    assert "<@U0OLGA>" in office.told(CARL, "Nobody of that name may stand in for you")
    office.as_(CARL).command("/breakglass away @olga until friday", ROOM)
    office.told(CARL, "Everybody says this of themselves")
    row = office.desk.ask(level="write", minutes=10)
    assert office.as_(CARL).click(office.draw(row, views.ask, to=CARL.person), views.APPROVE)["acknowledged"]
    office.told(CARL, "You are marked as away; “/breakglass back” ends that.")
    office.as_(OLGA).command("/breakglass away", ROOM)
    office.told(OLGA, "and named you")
    office.as_(CARL).command("/breakglass back", ROOM)
    office.told(CARL, "Welcome back.")
