"""Does a reviewer see what happened, under which rules, and how it differs from the uses before?"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import pytest
import test_listeners
from counter import CARL, RITA, SAM
from test_models import add, grant, request, review

from bot import pack_view, views
from bot.sandbox.blocks import Surface, check_view
from bot.sandbox.driver import wait_for
from storage.audit import SYSTEM, Actor, Record, append
from storage.commands import CLOSE, FIND, RUN
from storage.models import CaptureUse, State
from storage.reports.story import Story, Vote
from workflows import review_pack
from workflows.review_pack import BACK, Habit, Use, findings, habit, say_habit

office = test_listeners.office

NOW = datetime(2026, 11, 24, 23, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)
THIS = Use("BG-THIS", "U0RITA", "orders-db", "read", NOW, seconds=600, commands=12)


def use(number: int, ago: timedelta, **more) -> Use:
    """A use before this one."""
    return Use(f"BG-{number}", "U0RITA", "orders-db", "read", NOW - ago, **more)


BEFORE = (
    use(1, 30 * 24 * HOUR, seconds=200, commands=4, outcome="justified"),
    use(2, 5 * 24 * HOUR - 2 * HOUR, seconds=300, commands=6, outcome="not_justified"),
    use(3, 2 * 24 * HOUR + 12 * HOUR, seconds=400),
)


def test_a_use_is_compared_with_those_before_it():
    """Count, usual length, level, time of day, commands, verdicts; 23:30 and 01:30 are two hours apart."""
    found = habit(BEFORE, THIS)
    assert found == Habit(
        uses=3,
        in_week=2,
        seconds=300,
        commands=4,
        level="read",
        near=2,
        verdicts=(("BG-2", "not_justified"), ("BG-1", "justified")),
    )
    assert say_habit(found, THIS, "this person") == [
        "3 uses by this person in the 90 days before, 2 of them in the last 7.",
        "Usually out for 5 min; this one 10 min.",
        "Usually 4 commands; this one 12.",
        "Usual level read, as here; 2 of 3 began within 3 hours of this time of day.",
        "Last verdicts: BG-2 not justified, BG-1 justified.",
    ]
    assert say_habit(habit((), THIS), THIS, "this person") == [
        "No other use by this person in the 90 days before: there is nothing to compare with."
    ]


def told(*records: tuple[str, dict]) -> Story:
    """A story in which a credential was issued and these entries about commands were written."""
    teller = review_pack.Teller("BG-THIS", {})
    first = ("credential:issue", {"credential": 1, "identity": "bg-1", "expires_at": "2026-11-24T23:50:00Z"})
    for seq, (event, data) in enumerate((first, *records)):
        about = {"source": "pg", "trust": "enforced", "identity": "bg-1"} if event != first[0] else {}
        moved = (None, None, None, None, None)
        made = Record(seq, NOW, event, "BG-THIS", Actor("T0", "U0RITA"), *moved, {**about, **data}, b"", b"", b"")
        teller.add(seq, b"", made)
    return teller.story


def found(story: Story, this: Use = THIS, person: Habit | None = None, account: Habit | None = None) -> list[str]:
    """What stands out."""
    none = habit((), this)
    return list(findings(story, this, person or none, account or none, {"U0CARL": "Carl"}))


RAN = (RUN, {"text": "SELECT 1", "class": "read", "at": "2026-11-24T23:31:00Z"})


@pytest.mark.parametrize(
    ("records", "sentences"),
    [
        ((RAN,), []),
        ((), ["Which commands were run is not on record."]),
        (((CLOSE, {"commands": 0}),), ["The access was never used, as far as it was recorded."]),
        (
            (
                RAN,
                (
                    FIND,
                    {
                        "findings": [
                            {"kind": "out_of_scope", "sentence": "It was used in a database that it is not for: hr."},
                            {"kind": "after_end", "sentence": "The access was used after its end, once."},
                        ]
                    },
                ),
            ),
            ["It was used in a database that it is not for: hr.", "The access was used after its end, once."],
        ),
        (
            (RAN, (CLOSE, {"gaps": [{"after": 3, "missing": 2}], "holes": ["COPY data"]}), ("capture:down", {})),
            ["The record has gaps: 2 lines never came; COPY data; nothing was heard of pg for a time."],
        ),
        (((RUN, {"text": "DROP TABLE x", "danger": "drops a table"}),), ["1 command marked as dangerous."]),
        (
            (RAN, ("command:stop", {"text": "SET pgaudit.log = none"})),
            ["The recording was switched off from within, or that was tried; what followed may not be on record."],
        ),
    ],
    ids=["fine", "unrecorded", "unused", "recorder", "gaps", "dangerous", "stopped"],
)
def test_what_the_record_of_commands_shows_is_named(records, sentences):
    """Each has its sentence once; a record in which nothing is missing has none."""
    assert found(told(*records)) == sentences


def test_a_hurried_approval_a_long_use_and_a_habit_are_named():
    """Two seconds, twice the usual time, the third time in a week; a second less, or too little to compare: nothing."""
    story = told(RAN)
    story.opened_at = NOW
    story.votes.append(Vote(1, NOW + timedelta(seconds=2.3), "U0CARL", True, 900, "", ""))
    story.votes.append(Vote(2, NOW + timedelta(seconds=10), "U0CHEN", True, 900, "", ""))
    story.refusals = 1
    usual = habit(BEFORE, THIS)
    assert found(story, person=usual, account=usual) == [
        "Carl (U0CARL) approved 2.3 s after the opening.",
        "Out for 10 min, where this account's uses usually take 5 min.",
        "Use number 3 by the same person within 7 days.",
        "Refused on the way: 1 attempt.",
    ]
    shorter = Use(**{name: getattr(THIS, name) for name in THIS.__slots__} | {"seconds": 599})
    few = habit(BEFORE[1:], THIS)
    assert found(told(RAN), shorter, account=usual) == []
    assert found(told(RAN), THIS, account=few) == []


# --- the whole way --------------------------------------------------------------------------------------------------


def before_it(office, row_account="orders-db") -> None:
    """Three uses of Rita's in the weeks before, a drill, and one that is too long ago."""
    opened = office.desk.now
    for number, days in enumerate((2, 20, 60, 30, 100)):
        name, at = f"BG-OLD{number}", opened - timedelta(days=days)
        rows = [
            request(
                id=name,
                opened_at=at,
                state=State.REVIEWED,
                requester="U0RITA",
                account=row_account,
                drill="DR-7KQ2" if days == 30 else None,
            ),
            grant(request_id=name, issued_at=at, ended_at=at + timedelta(minutes=2)),
            CaptureUse(request_id=name, source="pg", commands=3, elsewhere=[], touched_at=at),
            review(request_id=name, filed_at=at + timedelta(days=1)),
        ]
        add(office.desk.database, *rows)
    assert timedelta(days=100) > BACK


def test_a_reviewer_reads_the_pack_beside_the_form_and_has_it_sent(office):
    """Findings, rules in force, comparison, commands, timeline; the file is on record and reaches one person."""
    desk = office.desk
    desk.record_policy(desk.policy, now=desk.now)
    before_it(office)
    row = desk.ask()
    desk.pass_time(seconds=2)
    desk.approve(CARL, row.id, row.version, now=desk.now)
    desk.show(row)
    with desk.database.write() as session:
        told = {"source": "orders-pg", "trust": "enforced", "identity": "bg-1", "class": "definition"}
        told |= {"text": "DROP TABLE <b>orders</b>", "danger": "drops a table"}
        append(session, event=RUN, at=desk.now, actor=SYSTEM, request_id=row.id, data=told)
    desk.pass_time(minutes=10)
    desk.release(RITA, row.id, desk.case(row.id).request.version, now=desk.now)
    assert desk.finish(row.id, now=desk.now)
    # 1. From the form, which stays below.
    sam = office.as_(SAM)
    sam.click(office.draw(row, views.review_ask, to="U0SAM"), views.REVIEW)
    form = sam.wait_for_view(views.REVIEW_FORM)
    sam.click(form, pack_view.OPEN)
    window = office.window(SAM, "What to look at")
    assert len(sam.views()) == 2
    shown = json.dumps(window["blocks"], ensure_ascii=False)
    for words in (
        "• 1 command marked as dangerous.",
        "(U0CARL) approved 2.0 s after the opening.",
        "• Out for 10 min, where this account's uses usually take 2 min.",
        "• 3 uses by this person in the 90 days before, 1 of them in the last 7.",
        "• Usually 3 commands.",
        "Last verdicts: BG-OLD0 justified, BG-OLD1 justified, BG-OLD2 justified.",
        f"*Text*: SHA-256 {desk.policy.hash}",
        "*Threshold customer-impact (chosen)*",
        "*1 dangerous command*",
        "The quorum is reached",
        "Ended: Vault confirmed that the lease is gone, after 10 min.",
    ):
        assert words in shown, shown
    assert (
        check_view({name: window[name] for name in ("type", "callback_id", "title", "close", "blocks")}, Surface.MODAL)
        == []
    )
    # 2. The file.
    sam.click(window, pack_view.FILE)
    office.window(SAM, "is in your direct messages with me")
    (message,) = wait_for(lambda: [one for one in sam.messages(sam.dm_id()) if one.get("files")])
    assert message["files"][0]["name"] == f"review-{row.id}.html"
    page = sam.download(message["files"][0]).decode()
    text = re.sub(r"<[^>]+>", " ", page)
    assert "<b>orders</b>" not in page
    for words in (
        "DROP TABLE &lt;b&gt;orders",
        "What to look at",
        "approved 2.0 s after",
        "Threshold customer-impact (chosen)",
    ):
        assert words in text
    exports = [record for record in desk.log_of(row) if record.event == "log:export"]
    assert [(one.actor.person, one.data["format"]) for one in exports] == [("U0SAM", "review-pack")]
    # 3. Whoever approved it is no reviewer of it, and the try is on record.
    carl = office.as_(CARL)
    carl.click(office.draw(row, views.review_ask, to="U0CARL"), pack_view.OPEN)
    office.window(CARL, "somebody else must review it")
    assert [(one.event, one.actor.person) for one in desk.log_of(row) if one.refused] == [("review:pack", "U0CARL")]


def test_rules_that_the_log_does_not_lead_to_are_not_made_up(office):
    """A policy that was never put on record, or whose text was changed, is said to be unknown."""
    row = office.desk.ask()
    with office.desk.database.read() as session:
        pack = review_pack.read(session, row.id, {})
    assert pack.policy is None
    said = dict(review_pack.say_rules(pack))
    assert "does not lead to the text" in said["Text"]
    forged = {"hash": office.desk.policy.hash, "text": office.desk.policy.text.replace("quorum: 1", "quorum: 9")}
    with office.desk.database.write() as session:
        append(session, event="policy:load", at=office.desk.now, actor=Actor("T0", "U0EVE"), data=forged)
    with office.desk.database.read() as session:
        assert review_pack.read(session, row.id, {}).policy is None
