"""Do the pages and papers tell what the entries say, to everybody, and nothing else?"""

from __future__ import annotations

import html
import io
import re
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import pypdf
import pytest
from bundling import IN_FORCE, NAMES, NOW, ORIGIN, POLICY, Writer, nights, take, unpack
from playwright.sync_api import Browser, sync_playwright

from storage import audit
from storage.database import Database
from storage.reports import approvers, controls, page, paper, story, timeline
from workflows import policy as rules
from workflows.lifecycle import Action

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from storage.reports.story import Story

ABOUT = story.About(
    ORIGIN, NOW, 24, "ab" * 32, {"since": None, "until": None, "account": None, "request": None}, 24, True
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Path:
    """The log of a few nights, on SQLite: reports are pure but for where entries come from."""
    file = tmp_path_factory.mktemp("reports") / "log.db"
    file.write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{file}")
    nights(database)
    database.close()
    with closing(sqlite3.connect(file)) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return file


@pytest.fixture
def log(tmp_path: Path, written: Path) -> Iterator[Database]:
    """A copy of it, of one's own."""
    file = tmp_path / "log.db"
    file.write_bytes(written.read_bytes())
    database = Database(f"sqlite:///{file}")
    yield database
    database.close()


def told(database: Database, request_id: str, *, after: int = -1) -> Story:
    """The story of a request."""
    with database.read() as session:
        records = audit.read_entries(session, request_id=request_id, after=after)
    return story.tell(request_id, ((record.seq, record.leaf_hash, record) for record in records), NAMES)


# --- the story -----------------------------------------------------------------------------------------------------


def test_a_story_says_what_the_entries_say(log: Database) -> None:
    """Who, what, why, which threshold, who approved and when, the credential, its end, the review: each as written."""
    found = told(log, "BG-7KQ2")
    assert (found.requester, found.account, found.level, found.state) == ("U0RITA", "orders-db", "write", "reviewed")
    assert found.threshold_text == "Customers cannot order, or are charged wrongly"
    assert found.approvers == ("U0CHEN", "U0ZELJ")
    assert (found.asked_seconds, found.granted_seconds, found.quorum, found.refusals) == (900, 600, 2, 1)
    assert found.to_approve == timedelta(seconds=76)
    assert (found.seconds_out, found.ended_by, found.ended_by_person) == (512, "release", "U0RITA")
    assert found.to_end == timedelta(seconds=1)
    (credential,) = found.credentials
    assert (credential.identity, credential.ended_at) == ("v-approle-orders-rw-8Fq1", found.ended_at)
    assert found.review is not None
    assert (found.review.person, found.review.outcome) == ("U0SAM", "justified")
    assert found.review.follow_ups == (story.FollowUp("Alert on pool use above 80 %", "U0OLGA", "2026-03-15"),)
    assert found.closing == found.steps[-1].seq
    assert "U0OLGA" in found.people
    assert [phase.name for phase in found.phases()] == [
        "Waiting for approval",
        "Approved, not opened",
        "Credential out",
        "Being taken back",
        "Ended, until its review",
    ]


def test_a_refused_attempt_changes_no_story(log: Database) -> None:
    """The requester's own approval was refused: it is a step, and no vote."""
    found = told(log, "BG-7KQ2")
    (refused,) = [step for step in found.steps if step.is_refusal]
    assert refused.typed == "You asked for this access yourself, so you cannot approve it."
    assert "U0RITA" not in {vote.person for vote in found.votes}


@pytest.mark.parametrize(
    ("request_id", "state", "phases"), [("BG-DENY", "denied", 1), ("BG-LAPS", "lapsed", 1), ("BG-EVIL", "pending", 1)]
)
def test_what_was_never_granted_has_a_story_too(log: Database, request_id: str, state: str, phases: int) -> None:
    """Denied, lapsed and waiting requests end where they ended; only the waiting one is still open."""
    found = told(log, request_id)
    assert found.state == state
    assert len(found.phases()) == phases
    assert found.phases()[0].is_open == (state == "pending")
    assert found.to_approve is None


def test_a_story_without_its_opening_says_so(log: Database) -> None:
    """A selection that begins later makes up nothing."""
    found = told(log, "BG-7KQ2", after=5)
    assert not found.is_whole
    assert found.requester == ""
    assert found.closing is None
    assert "Its opening is not in this selection" in page.request_page(found, ABOUT, NAMES).decode()


def test_an_unreadable_entry_is_a_step_that_says_so() -> None:
    """A body that was pruned, or is not the log's, has its place and its hash."""
    found = story.tell("BG-7KQ2", [(3, b"\x01" * 32, None)], {})
    assert not found.steps[0].is_readable
    assert "0101" in page.request_page(found, ABOUT, NAMES).decode()


def test_a_policy_is_named_only_when_it_leads_to_the_hash(log: Database) -> None:
    """The policy's file is said to have been in force when its hash and the custodians give the entry's hash."""
    teller = story.Teller("BG-7KQ2", NAMES, lambda _: POLICY.hash)
    other = story.Teller("BG-7KQ2", NAMES, lambda _: "0" * 64)
    with log.read() as session:
        for record in audit.read_entries(session, request_id="BG-7KQ2"):
            teller.add(record.seq, record.leaf_hash, record)
            other.add(record.seq, record.leaf_hash, record)
    assert teller.story.policy_file == POLICY.hash
    assert other.story.policy_file == ""


def test_the_hash_in_force_is_the_policys_own() -> None:
    """Storage computes it as ``workflows.policy`` does, for any custodians."""
    for people in ([], ["U2", "U1"], ["U1", "U1"]):
        assert story.in_force(POLICY.hash, people) == rules.in_force(POLICY, people)


def test_every_event_of_the_table_has_a_sentence() -> None:
    """No action is told by its bare name."""
    for action in Action:
        record = audit.parse(audit.encode(seq=0, event=action.value, at=NOW, actor=audit.SYSTEM, request_id="BG-1"))
        text, _ = story.sentence(record, {})
        assert text != f"{action.value}."
        assert text.endswith(".")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "-"), (0, "less than 1 s"), (59, "59 s"), (61, "1 min 1 s"), (3600, "1 h"), (90_061, "1 d 1 h")],
)
def test_lengths_are_said_in_two_units_at_the_most(seconds: int | None, words: str) -> None:
    """As a person would say it."""
    assert story.say(seconds) == words


def test_the_timeline_stays_in_its_picture(log: Database) -> None:
    """Bars follow each other without overlapping, marks lie on them, however uneven the phases are."""
    picture = timeline.draw(told(log, "BG-7KQ2"))
    for left, right in zip(picture.bars, picture.bars[1:], strict=False):
        assert left.x + left.width < right.x
    assert picture.bars[-1].x + picture.bars[-1].width <= timeline.WIDTH + 0.01
    assert all(bar.width >= 170 for bar in picture.bars)
    assert all(0 <= mark.x <= timeline.WIDTH for mark in picture.marks)
    assert [mark.number for mark in picture.marks if mark.is_refusal] == [2]


def test_counts_are_over_all_requests(log: Database) -> None:
    """The population's states and the middle time are those of the requests."""
    rows = [story.row_of(told(log, name)) for name in ("BG-7KQ2", "BG-DENY", "BG-LAPS", "BG-EVIL")]
    period = story.Period(rows, 24)
    assert period.states() == {"pending": 1, "reviewed": 1, "denied": 1, "lapsed": 1}
    assert period.outcomes() == {"justified": 1}
    assert period.median_to_approve() == timedelta(seconds=76)


# --- the page ------------------------------------------------------------------------------------------------------


class _Reader(HTMLParser):
    """Collects tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def pages(database: Database) -> dict[str, str]:
    """All pages of the bundle."""
    _, data = take(database)
    return {name: text.decode() for name, text in unpack(data).items() if name.endswith(".html")}


def test_what_people_typed_never_becomes_markup(log: Database) -> None:
    """Names and reasons with tags, and events that would run, stand as text; no script, no address, no handler."""
    for name, text in pages(log).items():
        for tag, attributes in _Reader(text).tags:
            assert tag not in {"script", "img", "iframe", "object", "link", "form", "base"}, name
            assert not any(key.startswith("on") for key in attributes), name
            assert not attributes.get("href", "").startswith(("http", "//", "javascript:"))
        assert "default-src 'none'" in text
    assert html.escape("<script>alert(1)</script>") in pages(log)["requests/BG-EVIL.html"]


def test_control_characters_become_visible(log: Database) -> None:
    """What HTML has no place for is shown as U+FFFD, also in the middle of a word."""
    writer = Writer(log)
    writer.open("BG-CTRL", reason="bell\u0007 and null\u0000 here")
    writer.sign()
    assert "bell\ufffd and null\ufffd here" in pages(log)["requests/BG-CTRL.html"]


def test_a_page_says_it_all(log: Database) -> None:
    """A request's page holds who, why, the threshold, approvals, login, review, follow-up, leaf hashes, the head."""
    text = html.unescape(pages(log)["requests/BG-7KQ2.html"])
    for words in (
        "Rita Reyes (U0RITA)",
        "Željko Đurić",
        "日本 太郎",
        "Checkout fails for every customer",
        "Customers cannot order, or are charged wrongly",
        "customer-impact",
        "v-approle-orders-rw-8Fq1",
        "1 min 16 s",
        "No commands were captured",
        "Alert on pool use above 80 %",
        "Ольга Сергеева",
        POLICY.hash,
        IN_FORCE,
        ORIGIN,
        "You asked for this access yourself",
    ):
        assert words in text, words
    with log.read() as session:
        for record in audit.read_entries(session, request_id="BG-7KQ2"):
            assert record.leaf_hash.hex() in text


def with_commands(database: Database, count: int = 2) -> None:
    """Add what was run under the reviewed request."""
    writer = Writer(database)
    writer.now = NOW + timedelta(days=2)
    out = {"source": "orders-pg", "trust": "enforced", "identity": "bg-7kq2-1", "at": "2026-03-01T02:10:00.000000Z"}
    for number in range(count):
        told_ = {**out, "text": f"SELECT {number} -- <script>alert(1)</script> \x1b[31m", "class": "read", "rows": 3}
        writer.entry("BG-7KQ2", "command:run", "U0RITA", data=told_)
    told_ = {**out, "text": "DELETE FROM t", "class": "write", "danger": "whole-table delete"}
    writer.entry("BG-7KQ2", "command:run", "U0RITA", data=told_)
    writer.entry(
        "BG-7KQ2", "command:close", data={"source": "orders-pg", "commands": count + 1, "gaps": [{"missing": 4}]}
    )
    writer.entry("BG-7KQ2", "command:find", data={"source": "orders-pg", "findings": [{"sentence": "Used elsewhere."}]})


def test_a_page_and_a_paper_list_the_commands(log: Database) -> None:
    """Each with its time, source, trust and login; what is dangerous, missing and found is said above them."""
    with_commands(log)
    found = told(log, "BG-7KQ2")
    drawn = page.request_page(found, ABOUT, NAMES).decode()
    assert "<script>" not in drawn
    for text in (html.unescape(drawn), read(paper.request_paper(found, ABOUT, NAMES)).replace("\n", " ")):
        for words in (
            "orders-pg: recorded by the target itself",
            "3 commands: 2 read, 1 write",
            "1 command marked as dangerous",
            "4 lines of the record never came",
            "Used elsewhere.",
            "2026-03-01 02:10:00",
            "DELETE FROM t",
            "DANGEROUS: whole-table delete",
        ):
            assert words in text, words
    assert story.row_of(found).entries == len(found.steps) + 4


def test_a_thousand_commands_bury_no_step(log: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are no marks of the timeline; of too many a page lists the first, and says where the rest are."""
    monkeypatch.setattr(story, "MOST_COMMANDS", 3)
    before = len(timeline.draw(told(log, "BG-7KQ2")).marks)
    with_commands(log, 20)
    found = told(log, "BG-7KQ2")
    assert len(timeline.draw(found).marks) <= before + 1
    assert "19 more stand in <code>entries.jsonl</code>" in page.request_page(found, ABOUT, NAMES).decode()


def test_the_period_lists_every_request(log: Database) -> None:
    """Each request with its state and a link to its page."""
    found = pages(log)["period.html"]
    for name in ("BG-7KQ2", "BG-DENY", "BG-LAPS", "BG-EVIL"):
        assert f'href="requests/{name}.html"' in found


def test_a_long_list_ends_with_a_word(log: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than a page can hold: it says how many are missing, and where they stand."""
    monkeypatch.setattr(page, "MOST_ROWS", 3)
    assert "1 more stand in" in pages(log)["period.html"]


# --- everybody can read it -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A real Chromium; without one these tests fail, they are never skipped."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("These tests look at the pages in a real browser: install the Debian package “chromium”.")
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu", *quiet])
        yield chromium
        chromium.close()


def test_axe_finds_nothing_on_any_page(log: Database, browser: Browser, tmp_path: Path) -> None:
    """axe-core, all its rules, on every page, light and dark, wide and narrow: nothing, and contrast was judged."""
    axe = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
    plain, all_ways = [("light", 1280)], [("light", 1280), ("dark", 1280), ("light", 360)]
    looks = {"requests/BG-7KQ2.html": all_ways, "period.html": all_ways, "controls.html": plain}
    for name, text in pages(log).items():
        file = tmp_path / name.replace("/", "-")
        file.write_text(text, encoding="utf-8")
        for scheme, width in looks.get(name, plain):
            # The page's own policy refuses scripts: the test's is let past it.
            context = browser.new_context(
                color_scheme=scheme, viewport={"width": width, "height": 900}, bypass_csp=True
            )
            opened = context.new_page()
            opened.goto(file.as_uri())
            opened.evaluate(axe)
            result: Any = opened.evaluate("() => axe.run(document, {resultTypes: ['violations', 'passes']})")
            found = [f"{one['id']}: {one['nodes'][0]['html'][:150]}" for one in result["violations"]]
            assert found == [], (name, scheme, width)
            assert {"color-contrast", "document-title", "html-has-lang"} <= {one["id"] for one in result["passes"]}
            context.close()


def test_a_page_runs_nothing_and_asks_for_nothing(log: Database, browser: Browser, tmp_path: Path) -> None:
    """Opened from a disk the page of a hostile request makes no dialog, no error and no request."""
    file = tmp_path / "evil.html"
    file.write_text(pages(log)["requests/BG-EVIL.html"], encoding="utf-8")
    opened = browser.new_page()
    asked, said = [], []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("dialog", lambda dialog: said.append(dialog.message))
    opened.on("console", lambda message: said.append(message.text))
    opened.goto(file.as_uri())
    assert asked == [file.as_uri()]
    assert said == []
    opened.close()


def test_no_page_is_wider_than_its_window(log: Database, browser: Browser, tmp_path: Path) -> None:
    """On a telephone the page does not scroll sideways; wide tables scroll by themselves."""
    for name, text in pages(log).items():
        file = tmp_path / name.replace("/", "-")
        file.write_text(text, encoding="utf-8")
        opened = browser.new_page(viewport={"width": 360, "height": 800})
        opened.goto(file.as_uri())
        assert opened.evaluate("document.documentElement.scrollWidth") <= 360, name
        opened.close()


# --- the paper -----------------------------------------------------------------------------------------------------


def read(data: bytes) -> str:
    """The text of a PDF, spaces made even."""
    return re.sub(r"\s+", " ", " ".join(sheet.extract_text() for sheet in pypdf.PdfReader(io.BytesIO(data)).pages))


def test_a_paper_says_what_the_page_says_and_every_name_survives(log: Database) -> None:
    """Chinese, Croatian, Japanese and Russian names come out of the PDF as they went in."""
    text = read(paper.request_paper(told(log, "BG-7KQ2"), ABOUT, NAMES))
    for words in (
        "Chen Li (U0CHEN)",
        "Željko Đurić (U0ZELJ)",
        "日本 太郎 (U0NIHN)",
        "Ольга Сергеева (U0OLGA)",
        "Checkout fails for every customer",
        "Customers cannot order, or are charged wrongly",
        "v-approle-orders-rw-8Fq1",
        "1 min 16 s",
        "No commands were captured",
        "Refused: Tried",
        "ab" * 32,
    ):
        assert words in text, words
    assert "\ufffd" not in text


@pytest.mark.parametrize("name", ["안녕 한국", "王小明", "臺灣", "עברית", "Ελλάδα", "Žščřđ", "naïve œuvre"])
def test_scripts_that_a_face_has_are_not_replaced(log: Database, name: str) -> None:
    """Korean, Chinese, Hebrew, Greek and whatever Latin: no letter is lost."""
    sheet = paper._Sheet("A test", ABOUT)
    assert sheet.fit(name) == name
    assert sheet._unknown == 0


def test_a_letter_that_no_face_has_is_shown_and_counted(log: Database) -> None:
    """What cannot be drawn becomes U+FFFD, and the paper says how often."""
    names = {**NAMES, "U0RITA": "Rita \U00012000\U00012001"}  # cuneiform
    found = told(log, "BG-7KQ2")
    found.requester = "U0RITA"
    text = read(paper.request_paper(found, ABOUT, names))
    assert "Rita \ufffd\ufffd (U0RITA)" in text
    assert "stands for a letter that no face here has" in text


def test_a_paper_is_the_same_twice(log: Database) -> None:
    """The same story gives the same bytes, dated by the head and not by the clock."""
    found = told(log, "BG-7KQ2")
    first, second = (paper.request_paper(found, ABOUT, NAMES) for _ in range(2))
    assert first == second
    assert pypdf.PdfReader(io.BytesIO(first)).metadata.creation_date == NOW


def test_the_period_on_paper_lists_every_request(log: Database) -> None:
    """Each request with its state; a list that is too long says how many are missing."""
    rows = [story.row_of(told(log, name)) for name in ("BG-7KQ2", "BG-DENY", "BG-LAPS", "BG-EVIL")]
    text = read(paper.period_paper(story.Period(rows, 24), approvers.Ledger().finish({}, NAMES), ABOUT, NAMES))
    for words in ("BG-7KQ2", "BG-DENY", "BG-LAPS", "BG-EVIL", "reviewed", "denied", "lapsed", "pending"):
        assert words in text


def test_a_very_long_story_goes_over_pages(log: Database) -> None:
    """Two hundred steps and words without a space break over lines and pages; the last one is there."""
    writer = Writer(log)
    writer.open("BG-LONG", reason="x" * 1900, requester="U0RITA")
    for number in range(200):
        writer.entry("BG-LONG", "request:escalate", source="ending", data={"attempt": number, "why": "y" * 200})
    data = paper.request_paper(told(log, "BG-LONG"), ABOUT, NAMES)
    assert len(pypdf.PdfReader(io.BytesIO(data)).pages) > 5
    assert "try 199" in read(data)


def test_without_the_extra_there_are_pages_and_a_word(log: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where fpdf2 is not installed the bundle has no PDFs, and its README says why."""
    monkeypatch.setattr(paper, "is_there", lambda: False)
    summary, data = take(log, with_pdf=True)
    assert summary.missing
    members = unpack(data)
    assert not any(name.endswith(".pdf") for name in members)
    assert "extra “reports”" in members["README.txt"].decode()


# --- controls ------------------------------------------------------------------------------------------------------


def test_each_framework_of_the_issue_is_mapped() -> None:
    """SOC 2, ISO 27001, PCI DSS, NIST and HIPAA, each control once."""
    frameworks = {control.framework for control in controls.CONTROLS}
    assert len(frameworks) == 5
    named = [(control.framework, control.id) for control in controls.CONTROLS]
    assert len(set(named)) == len(named)


def test_controls_point_at_the_entries(log: Database) -> None:
    """AC-3(2), dual authorization, points at the approvals and the quorum; refused ones are refusals, not approvals."""
    ledger = controls.Ledger()
    with log.read() as session:
        records = audit.read_entries(session)
    for record in records:
        ledger.add(record)
    dual = next(control for control in controls.CONTROLS if control.id == "AC-3(2)")
    decisions = tuple(r.seq for r in records if r.event in {"request:approve", "request:deny"} and not r.refused)
    quorums = tuple(r.seq for r in records if r.event == "request:quorum")
    assert ledger.found(dual).kinds == (("approvals and denials", 3, decisions), ("quorums", 1, quorums))
    everything = next(control for control in controls.CONTROLS if control.id == "A.8.15")
    assert ledger.found(everything).kinds[0][:2] == ("entries", len(records))


def test_a_naive_clock_is_never_read() -> None:
    """Pages and papers are dated by the head: a moment is said in UTC whatever zone it came in."""
    assert story.moment(datetime(2026, 3, 1, 2, 0, tzinfo=UTC)) == "2026-03-01 02:00:00 UTC"
    assert story.moment("2026-03-01T02:00:00Z") == "2026-03-01 02:00:00 UTC"
    assert story.moment("soon") == "soon"
    assert story.moment("") == "-"
