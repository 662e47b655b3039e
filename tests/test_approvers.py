"""Are custodians' habits counted as the log has them, and is nobody named, or cleared, without ground?"""

from __future__ import annotations

import html
import io
import re
import sqlite3
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pypdf
import pytest
from bundling import NAMES, NOW, TEAM, Writer, nights, take, unpack

from storage import audit, bundle
from storage.database import Database
from storage.reports import approvers

if TYPE_CHECKING:
    from pathlib import Path

ANNA, BERT, CLEO, RITA, SAM = "U0ANNA", "U0BERT", "U0CLEO", "U0RITA", "U0SAM"
ALL: dict[str, str | None] = {}


class Hand:
    """A log written by hand: each request is asked of custodians, and answered so many seconds later."""

    def __init__(self) -> None:
        self.records: list[audit.Record] = []
        self.opened = NOW
        self.number = 0

    def entry(self, event: str, person: str, seconds: float = 0, **members: Any) -> None:
        """Add an entry of the newest request, so many seconds after its opening."""
        actor = audit.SYSTEM if person == "system" else audit.Actor(TEAM, person)
        body = audit.encode(
            seq=len(self.records),
            event=event,
            at=self.opened + timedelta(seconds=seconds),
            actor=actor,
            request_id=f"BG-{self.number:04}",
            **members,
        )
        self.records.append(audit.parse(body))

    def ask(self, custodians: list[str], by: str = RITA) -> None:
        """Open a request."""
        self.number += 1
        self.opened += timedelta(hours=1)
        self.entry("request:open", by, target="pending", data={"custodians": custodians})

    def approve(self, person: str, seconds: float) -> None:
        """Approve the newest request."""
        self.entry("request:approve", person, seconds, source="pending", target="pending")

    def deny(self, person: str, seconds: float, reason: str = "Ask the day shift") -> None:
        """Deny it."""
        self.entry("request:deny", person, seconds, source="pending", target="denied", data={"reason": reason})

    def quorum(self, seconds: float = 600) -> None:
        """It has what it needs."""
        self.entry("request:quorum", "system", seconds, source="pending", target="approved")

    def lapse(self, source: str = "pending") -> None:
        """Nobody came."""
        self.entry("request:lapse", "system", 900, source=source, target="lapsed")

    def approved(self, person: str, seconds: float, *, by: str = RITA, times: int = 1) -> None:
        """Open, approve and settle, as often as asked."""
        for _ in range(times):
            self.ask([person], by)
            self.approve(person, seconds)
            self.quorum(seconds)

    def told(self, selection: dict[str, str | None] = ALL, *, without: tuple[str, ...] = ()) -> approvers.Integrity:
        """What is counted; bodies of the events ``without`` are gone."""
        ledger = approvers.Ledger()
        for record in self.records:
            ledger.add(None if record.event in without else record)
        return ledger.finish(selection, NAMES)


@pytest.fixture
def hand() -> Hand:
    """An empty log."""
    return Hand()


def of(found: approvers.Integrity, person: str) -> approvers.Custodian:
    """One custodian."""
    return next(one for one in found.custodians if one.person == person)


# --- counting ------------------------------------------------------------------------------------------------------


def test_each_answer_and_each_silence_is_counted_once(hand: Hand) -> None:
    """Asked, approved, denied; settled by others, withdrawn, lapsed and waiting are five different things."""
    both = [ANNA, BERT]
    hand.ask(both)
    hand.approve(ANNA, 30)
    hand.quorum()  # settled before Bert answered
    hand.lapse(source="approved")  # approved and never opened: nobody's silence
    hand.ask(both)
    hand.deny(ANNA, 90)
    hand.ask(both)
    hand.entry("request:withdraw", RITA, 60, source="pending", target="withdrawn")
    hand.ask(both)
    hand.approve(ANNA, 61.5)
    hand.lapse()
    hand.ask(both)
    found = hand.told()
    anna, bert = of(found, ANNA), of(found, BERT)
    assert (anna.asked, anna.answered, anna.approved, anna.denied) == (5, 3, 2, 1)
    assert (anna.settled, anna.lapsed, anna.waiting) == (1, 0, 1)
    assert (bert.answered, bert.settled, bert.lapsed, bert.waiting) == (0, 3, 1, 1)
    assert (anna.median, anna.shortest) == (timedelta(seconds=61.5), timedelta(seconds=30))
    assert (bert.median, bert.shortest) == (None, None)
    assert [(one.requester, one.number, one.of, one.share) for one in found.given] == [(RITA, 2, 2, "100 %")]
    assert [(one.person, one.requester, one.reason) for one in found.denials] == [(ANNA, RITA, "Ask the day shift")]


def test_approving_and_then_denying_is_one_answer(hand: Hand) -> None:
    """The first click is the answer's time; both are counted for what they are."""
    hand.ask([ANNA])
    hand.approve(ANNA, 20)
    hand.deny(ANNA, 50)
    anna = of(hand.told(), ANNA)
    assert (anna.answered, anna.approved, anna.denied, anna.times) == (1, 1, 1, (timedelta(seconds=20),))


def test_refused_attempts_are_counted_by_code(hand: Hand) -> None:
    """A click on the own request is no answer: it stands among the refused ones, and is told apart."""
    hand.ask([ANNA])
    for _ in range(2):
        hand.entry("request:approve", RITA, 5, refused="not_allowed")
    hand.entry("request:deny", SAM, 6, refused="not_allowed")
    hand.entry("request:approve", ANNA, 7, refused="stale")
    hand.entry("credential:reveal", ANNA, 8, refused="not_allowed")
    found = hand.told()
    assert [tuple(one) for one in found.refusals] == [
        (ANNA, "stale", 1, 0),
        (RITA, "not_allowed", 2, 2),
        (SAM, "not_allowed", 1, 0),
    ]
    assert [one.person for one in found.custodians] == [ANNA]
    assert of(found, ANNA).answered == 0


def test_a_clock_that_went_back_is_not_a_quick_answer(hand: Hand) -> None:
    """A click before the opening has no time."""
    hand.approved(ANNA, -3, times=6)
    anna = of(hand.told(), ANNA)
    assert (anna.answered, anna.times, anna.signs) == (6, (), ())


def test_a_second_opening_asks_nobody(hand: Hand) -> None:
    """Attack: an entry that makes the requester, or those asked, somebody else afterwards."""
    hand.ask([ANNA])
    hand.entry("request:open", SAM, 5, data={"custodians": [BERT]})
    hand.approve(ANNA, 10)
    found = hand.told()
    assert [one.person for one in found.custodians] == [ANNA]
    assert found.given[0].requester == RITA


# --- outliers ------------------------------------------------------------------------------------------------------


def test_forty_of_forty_in_two_seconds_is_named(hand: Hand) -> None:
    """The sentence has the counts and the time."""
    hand.approved(ANNA, 2, times=40)
    assert hand.told().outliers({ANNA: "Anna"}) == ["Anna (U0ANNA) approved 40 of 40, half of them within 2 s."]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ([9.999] * 5, "approved 5 of 5, half of them within 10 s"),
        ([1, 1, 9.2, 300, 300], "approved 5 of 5, half of them within 10 s"),  # rounded up: never quicker than it was
        ([1, 1, 9.2, 300, 300, 300], "approved 6 of 6, half of them within 10 s"),
        ([10] * 5, ""),
        ([1, 1, 10, 10, 10], ""),
        ([1] * 4, ""),
    ],
)
def test_quick_is_under_ten_seconds_and_five_answers(hand: Hand, seconds: list[float], said: str) -> None:
    """At the bound and just below it: ten seconds are not quick, and four answers are no habit."""
    for time in seconds:
        hand.approved(ANNA, time)
    assert list(of(hand.told(), ANNA).signs) == ([said] if said else [])


def test_one_denial_shows_that_somebody_reads(hand: Hand) -> None:
    """Quick approvals with a denial between them are not named."""
    hand.approved(ANNA, 2, times=20)
    hand.ask([ANNA])
    hand.deny(ANNA, 2)
    assert of(hand.told(), ANNA).signs == ()


@pytest.mark.parametrize(
    ("to_rita", "to_sam", "is_named"), [(4, 1, True), (8, 2, True), (79, 21, False), (3, 1, False), (7, 2, False)]
)
def test_favour_is_four_of_five(hand: Hand, to_rita: int, to_sam: int, is_named: bool) -> None:  # noqa: FBT001
    """Eighty percent of at least five approvals for one requester are named, less is not."""
    hand.approved(ANNA, 60, times=to_rita)
    hand.approved(ANNA, 60, by=SAM, times=to_sam)
    total = to_rita + to_sam
    said = f"gave {to_rita} of {total} approvals to Rita Reyes (U0RITA), who made {to_rita} of the {total} requests"
    signs = of(hand.told(), ANNA).signs
    assert [sign.startswith(said) for sign in signs] == ([True] if is_named else [])


def test_where_one_person_asks_nobody_is_favoured(hand: Hand) -> None:
    """All requests are one requester's: that all approvals are, too, says nothing."""
    hand.approved(ANNA, 60, times=30)
    assert hand.told().outliers(NAMES) == []


@pytest.mark.parametrize(("each_way", "is_named"), [(3, True), (2, False)])
def test_two_who_approve_each_other_are_both_named(hand: Hand, each_way: int, is_named: bool) -> None:  # noqa: FBT001
    """Three each way are named for both, two are not."""
    for _ in range(each_way):
        hand.approved(ANNA, 60, by=BERT)
        hand.approved(BERT, 60, by=ANNA)
    found = hand.told()
    said = f"approved {each_way} requests of U0BERT, who approved {each_way} of theirs; neither denied any"
    assert list(of(found, ANNA).signs) == ([said] if is_named else [])
    assert bool(of(found, BERT).signs) is is_named


def test_two_who_also_deny_each_other_are_not_named(hand: Hand) -> None:
    """One denial between them breaks the rule."""
    for _ in range(4):
        hand.approved(ANNA, 60, by=BERT)
        hand.approved(BERT, 60, by=ANNA)
    hand.ask([ANNA], by=BERT)
    hand.deny(ANNA, 60)
    assert of(hand.told(), ANNA).signs == of(hand.told(), BERT).signs == ()


@pytest.mark.parametrize(("over", "is_named"), [(5, True), (4, False)])
def test_silent_is_none_of_five(hand: Hand, over: int, is_named: bool) -> None:  # noqa: FBT001
    """Asked five times without an answer is named, four times is not; what still waits is no silence."""
    for number in range(over):
        hand.ask([ANNA])
        if number % 2:
            hand.lapse()
        else:
            hand.quorum()
    hand.ask([ANNA])
    said = "answered none of 5: 2 of them lapsed, 3 were settled without them"
    assert list(of(hand.told(), ANNA).signs) == ([said] if is_named else [])


def test_a_normal_log_names_nobody(hand: Hand) -> None:
    """Three custodians who answer in their own time, deny now and then, for three requesters."""
    people, askers = [ANNA, BERT, CLEO], [RITA, SAM, "U0OLGA"]
    for number in range(36):
        hand.ask(people, askers[number % 3])
        first, second = people[number % 3], people[(number + 1 + number // 3 % 2) % 3]
        hand.approve(first, 25 + number * 7)
        if number % 9 == 8:
            hand.deny(second, 400)
        else:
            hand.approve(second, 300)
            hand.quorum(300)
    found = hand.told()
    assert found.outliers(NAMES) == []
    assert found.limits == ()
    assert found.conclusion() == "By these rules nothing stands out, for 3 of 3 custodians."
    assert {found.standing(one) for one in found.custodians} == {"Nothing stands out."}


# --- never read as clean -------------------------------------------------------------------------------------------


def test_too_little_is_not_nothing_out_of_place(hand: Hand) -> None:
    """Without five timed answers nobody is cleared; an empty log says that nothing can be said."""
    assert hand.told().conclusion().startswith("Nothing can be said")
    hand.approved(ANNA, 60, times=4)
    found = hand.told()
    assert found.standing(of(found, ANNA)) == "Too few answers to say anything."
    assert found.conclusion().startswith("Nothing can be said")
    hand.approved(BERT, 60, times=5)
    assert (
        hand.told()
        .conclusion()
        .endswith("for 1 of 2 custodians. Of the others there are too few answers to say anything.")
    )


def test_answers_whose_openings_were_pruned_clear_nobody(hand: Hand) -> None:
    """Attack: prune what shows how quickly it was. The answers stand, their time does not, and it is said."""
    hand.approved(ANNA, 1, times=9)
    found = hand.told(without=("request:open",))
    anna = of(found, ANNA)
    assert (anna.asked, anna.answered, anna.unasked, anna.times) == (0, 9, 9, ())
    assert found.standing(anna) == "Too few answers to say anything."
    assert found.given[0].requester == ""
    assert found.given[0].share == "-"
    assert found.limits[0].startswith("9 entries have no body here any more")
    assert found.limits[1].startswith("The openings of 9 requests are not here")


def test_a_pruned_record_is_gone_too(hand: Hand) -> None:
    """What its columns say of event and request is not counted."""
    hand.approved(ANNA, 60)
    ledger = approvers.Ledger()
    gone = hand.records[0]
    ledger.add(audit.Record(**{name: getattr(gone, name) for name in gone.__slots__} | {"actor": audit.NOBODY}))
    found = ledger.finish(ALL, NAMES)
    assert found.custodians == ()
    assert found.limits[0].startswith("1 entry has no body here any more")


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        ({"since": "2026-03-01T00:00:00.000000Z"}, "Only a period is here"),
        ({"until": "2026-03-02T00:00:00.000000Z"}, "Only a period is here"),
        ({"account": "orders-db"}, "Only requests of the account orders-db are here"),
        ({"request": "BG-0001"}, "This selection is one request"),
    ],
)
def test_a_filtered_selection_says_so(hand: Hand, selection: dict[str, str | None], words: str) -> None:
    """What was left out is said, and a custodian of whom nothing stands out is cleared only for what is here."""
    hand.approved(ANNA, 60, times=9)
    found = hand.told(selection)
    assert found.limits[0].startswith(words)
    assert found.standing(found.custodians[0]) != "Nothing stands out."
    assert found.conclusion() != "By these rules nothing stands out, for 1 of 1 custodians."


# --- in the report -------------------------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path: Path, sqlite_template: Path) -> Database:
    """A few nights on SQLite."""
    file = tmp_path / "log.db"
    file.write_bytes(sqlite_template.read_bytes())
    found = Database(f"sqlite:///{file}")
    nights(found)
    return found


def flat(data: bytes) -> str:
    """The text of a PDF, spaces made even."""
    return re.sub(r"\s+", " ", " ".join(sheet.extract_text() for sheet in pypdf.PdfReader(io.BytesIO(data)).pages))


def test_the_report_of_a_period_has_it_and_one_requests_has_not(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Page and paper of all requests name the quick one and the refused; the bundle of one request does not."""
    monkeypatch.setattr(bundle, "MOST_PDFS", 1)  # papers of the other requests have tests of their own
    writer = Writer(database)
    writer.now = NOW + timedelta(days=9)
    for number in range(6):
        writer.open(f"BG-Q{number}")
        approve = {"granted_seconds": 900, "need": 2, "have": 1}
        writer.entry(
            f"BG-Q{number}", "request:approve", "U0ZELJ", source="pending", target="pending", data=approve, after=2
        )
    writer.sign()
    members = unpack(take(database, with_pdf=True)[1])
    for text in (html.unescape(members["period.html"].decode()), flat(members["period.pdf"])):
        assert "Integrity of the approvers" in text
        assert "Željko Đurić (U0ZELJ) approved 7 of 7, half of them within 2 s." in text
        assert approvers.RULES[0] in text
        assert "not_allowed" in text
    one = unpack(take(database, request_id="BG-7KQ2", with_pdf=True)[1])
    assert "period.html" not in one
    assert not any(b"Integrity of the approvers" in data for data in one.values())
    database.close()


def test_a_rewritten_table_changes_nothing(database: Database, tmp_path: Path) -> None:
    """Attack: custodians, requester and decisions rewritten in the tables; the section is the same to the letter."""

    def section() -> str:
        page = unpack(take(database)[1])["period.html"].decode()
        return page[page.index('id="integrity-of-the-approvers"') : page.index('id="all-requests"')]

    before = section()
    with closing(sqlite3.connect(tmp_path / "log.db")) as raw:
        raw.execute(
            "UPDATE request SET requester = 'U0SAM', custodians = '[\"U0SAM\"]', opened_at = '2020-01-01 00:00:00'"
        )
        raw.execute("DELETE FROM decision")
        raw.commit()
    assert section() == before
    database.close()
