"""Does the weekly digest count what was, once a week, and say what has to be done?"""

from __future__ import annotations

import io
import itertools
import json
import shutil
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from PIL import Image
from test_batches import files
from test_models import add, decision, grant, request, review
from test_thread import SEED, KilledError, _Clock, _World

from bot import digest_picture, digest_view
from bot.cli import main
from bot.due import HOLD
from bot.sandbox.blocks import Surface, check_blocks
from bot.sandbox.server import Sandbox
from bot.weekly import CLAIM, WeeklyDigest, told_of
from storage.audit import SYSTEM, append, read_entries
from storage.database import Database
from storage.models import Feed, FollowUp, Outcome, State
from workflows.digest import POST, Chosen, Counts, Figures, gather, measure, of_data
from workflows.digest_rules import DigestRules, Week, parse_week, week_before
from workflows.policy import PolicyInvalid, parse

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "bot" / "demo" / "breakglass.yml").read_text(encoding="utf-8")
# The demo's account, and two more whose names say what becomes of them.
WEEK = Week(2026, 47)
MONDAY = WEEK.start  # 16 November
NOW = WEEK.end + timedelta(hours=9)
DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)


def with_accounts(text: str = TEXT) -> str:
    """Return the demo's policy with a second account that nobody uses."""
    made: dict[str, Any] = yaml.safe_load(text)
    made["accounts"]["payroll"] = {**made["accounts"]["orders-db"], "title": "Payroll"}
    return json.dumps(made)  # YAML, too, and without anchors


POLICY = parse(with_accounts(), name="p")


def _on(file: Path, template: Path) -> Iterator[Database]:
    shutil.copyfile(template, file)
    database = Database(f"sqlite:///{file}")
    yield database
    database.close()


@pytest.fixture
def database(tmp_path: Path, sqlite_template: Path) -> Iterator[Database]:
    """An empty log on SQLite."""
    yield from _on(tmp_path / "log.db", sqlite_template)


@pytest.fixture
def told(tmp_path: Path, sqlite_template: Path) -> Iterator[Figures]:
    """The figures of five weeks, of another log than the one whose thread is looked at."""
    for other in _on(tmp_path / "other.db", sqlite_template):
        lived(other)
        yield figures(other)


def quorum(database: Database, name: str, at: datetime) -> None:
    """Say in the log that a request reached its quorum."""
    with database.write() as session:
        append(session, event="request:quorum", at=at, actor=SYSTEM, request_id=name)


def lived(database: Database) -> None:
    """Fill five weeks: before, two uses a week apart; in the week, two uses, a denial, a lapse, two drills."""
    first = MONDAY - timedelta(weeks=30)
    with database.write() as session:
        append(session, event="policy:load", at=first, actor=SYSTEM)

    def case(name: str, at: datetime, state: str, minutes: int | None = None, **more: Any) -> None:
        due = more.pop("review_due_at", None)
        verdict = more.pop("verdict", None)
        row = request(id=name, opened_at=at, state_at=at + DAY, state=state, review_due_at=due, **more)
        rows = [row]
        if minutes is not None:
            rows.append(decision(request_id=name, at=at + minutes * MINUTE))
            quorum(database, name, at + minutes * MINUTE)
            issued = at + minutes * MINUTE
            ended = None if state == State.ACTIVE else issued + 10 * MINUTE
            rows.append(grant(request_id=name, intended_at=issued, issued_at=issued, ended_at=ended))
        if verdict is not None:
            rows.append(review(request_id=name, **verdict))
        add(database, *rows)

    fine = {"filed_at": MONDAY - 5 * DAY}
    bad = {"filed_at": MONDAY + 2 * DAY, "outcome": Outcome.NOT_JUSTIFIED, "threshold_met": False}
    usual = {"filed_at": MONDAY + 3 * DAY, "standard_path_enough": True}
    drill = {"filed_at": MONDAY + 3 * DAY, "outcome": Outcome.DRILL}
    case("BG-OLD1", MONDAY - 20 * DAY, State.REVIEWED, 4, verdict=fine)
    case("BG-OLD2", MONDAY - 13 * DAY, State.ENDED, 8, review_due_at=MONDAY - 8 * DAY)
    case("BG-ONE1", MONDAY, State.REVIEWED, 2, verdict=bad)
    case("BG-TWO2", MONDAY + DAY, State.REVIEWED, 20, verdict=usual, threshold="no-runbook")
    case("BG-DENY", MONDAY + DAY, State.DENIED)
    add(database, decision(request_id="BG-DENY", answer="deny", at=MONDAY + DAY + MINUTE))
    case("BG-LAPS", MONDAY + 2 * DAY, State.LAPSED)
    case("BG-TEST", MONDAY + 2 * DAY, State.REVIEWED, 1, verdict=drill)
    case("BG-GOOD", MONDAY + 3 * DAY, State.ENDED, 1, drill="DR-7KQ2", level="rehearsal")
    add(
        database,
        *(
            FollowUp(
                id=f"BG-ONE1/{number}", what="An alert", owner="U0CARL", due=due, opened_at=MONDAY + 2 * DAY, **more
            )
            for number, (due, more) in enumerate(
                (
                    ("2026-11-22", {}),
                    ("2026-11-23", {}),
                    ("2026-11-20", {"closed_at": MONDAY + 3 * DAY, "closed_by": "U0CARL"}),
                )
            )
        ),
    )
    case("BG-LATE", WEEK.end, State.ENDED, 1, review_due_at=NOW + DAY, review_owner="U0SAM")  # of the next week


def figures(database: Database) -> Figures:
    """Return the figures as an entry would have them."""
    with database.read() as session:
        return of_data(json.loads(json.dumps(told_of(session, POLICY, WEEK, now=NOW))))


def test_the_figures_of_a_week_are_counted_from_rows_and_log(database):
    """Requests, times, outcomes, open reviews, thresholds and what is not used; a drill is in none of them."""
    lived(database)
    found = figures(database)
    assert found.counts == Counts(
        week="2026-W47",
        asked=4,
        used=2,
        denied=1,
        lapsed=1,
        answer_median=120,
        answer_p90=1200,
        approve_median=120,
        approve_p90=1200,
        reviewed=2,
        unnecessary=2,
        drills=2,
    )
    assert [(one.week, one.asked, one.approve_median) for one in found.before] == [
        ("2026-W43", 0, None),
        ("2026-W44", 1, 240),
        ("2026-W45", 1, 480),
        ("2026-W46", 0, None),
    ]
    assert (found.usual("asked"), found.usual("approve_median")) == (0.5, 360)
    assert found.outcomes == {"justified": 1, "not_justified": 1}
    assert found.unnecessary == ("BG-ONE1", "BG-TWO2")
    assert (found.open_reviews, found.overdue_reviews) == (2, 1)
    assert [(one.request, one.owner, one.is_overdue) for one in found.reviews] == [
        ("BG-OLD2", "U0CORA", True),
        ("BG-LATE", "U0SAM", False),
    ]
    assert found.thresholds == (
        Chosen("orders-db", "customer-impact", 5, 2, 1, 0),
        Chosen("orders-db", "no-runbook", 1, 1, 0, 1),
    )
    assert found.unused_accounts == ("payroll",)
    assert (found.follow_ups, found.overdue_follow_ups) == (2, 1)
    assert found.unused_levels == ("orders-db/write",)
    assert (found.unused_since, found.is_young) == ("2026-05-27", False)


def test_an_empty_log_gives_a_digest_that_says_so(database):
    """Nothing was, nothing is compared, and what is unused is so since the log's first day, which is said."""
    found = figures(database)
    assert found.counts == Counts(week="2026-W47")
    assert found.is_young
    text = "\n".join(digest_view.text(found))
    assert "Nobody asked for emergency access." in text
    assert "usually" not in text
    assert "Nothing waits for a review, and none was filed." in text
    assert "since 2026-11-23 (the log's first day): orders-db, payroll." in text


def test_a_review_that_was_filed_since_is_open_in_the_digest_of_its_day(database):
    """A past week is told as it stood then: whoever draws it again does not see what came later."""
    lived(database)
    with database.read() as session:
        facts = gather(session, WEEK)
    before = measure(facts, POLICY, WEEK, now=MONDAY + DAY)
    assert {one.request for one in before.reviews} == {"BG-OLD2", "BG-ONE1"}


def test_what_was_damaged_or_forged_in_an_entry_is_shown_as_nothing():
    """Whoever reads the figures of an entry fails over none of them."""
    forged = {"counts": {"asked": "<!channel>", "used": 2}, "thresholds": [7, {"times": True}], "before": {"a": 1}}
    read = of_data(forged)
    assert (read.counts.asked, read.counts.used) == (0, 2)
    assert [one.times for one in read.thresholds] == [0, 0]
    assert read.before == ()


# --- when ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "now", "due"),
    [
        ("", datetime(2026, 11, 22, tzinfo=UTC), datetime(2026, 11, 23, 9, tzinfo=UTC)),
        ("digest: {}\n", datetime(2026, 11, 23, 9, tzinfo=UTC), datetime(2026, 11, 30, 9, tzinfo=UTC)),
        # In Madrid it is nine by the clock on the wall: eight in winter, seven in summer.
        (
            "digest: {timezone: Europe/Madrid}\n",
            datetime(2026, 11, 22, tzinfo=UTC),
            datetime(2026, 11, 23, 8, tzinfo=UTC),
        ),
        (
            'digest: {day: friday, at: "16:30", timezone: Europe/Madrid}\n',
            datetime(2026, 7, 1, tzinfo=UTC),
            datetime(2026, 7, 3, 14, 30, tzinfo=UTC),
        ),
    ],
)
def test_the_policy_says_when(more, now, due):
    """Monday at nine, UTC, unless the policy says otherwise; in the zone's own time, winter and summer."""
    assert parse(TEXT + more, name="p").digest.next(now) == due


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ("{day: mon}", "Write the day in English, in small letters: monday."),
        ('{at: "9:00"}', 'Write the time as "09:00"'),
        ('{at: "24:00"}', 'Write the time as "09:00"'),
        ("{timezone: Europe/Nowhere}", "This machine knows no time zone Europe/Nowhere"),
        ("{timezone: ../../etc/passwd}", "Write a time zone as Europe/Madrid or UTC."),
        ("{weekday: monday}", "This key is unknown"),
        ("monday", "This must be a block"),
    ],
)
def test_what_is_no_time_refuses_to_load(section, sentence):
    """A slip of the pen is said with its line, and never read as some other time."""
    with pytest.raises(PolicyInvalid) as caught:
        parse(f"{TEXT}digest: {section}\n", name="p")
    (problem,) = caught.value.problems
    assert sentence in problem.sentence


def test_a_week_is_that_of_its_time_zone():
    """It begins on its Monday at midnight there, also where the clocks go back in it; week 53 is one where it is."""
    madrid = DigestRules(timezone="Europe/Madrid").zone
    week = week_before(datetime(2026, 10, 25, 23, 30, tzinfo=UTC), madrid)  # Monday there
    assert (week.name, week.start, week.end) == (
        "2026-W43",
        datetime(2026, 10, 18, 22, tzinfo=UTC),
        datetime(2026, 10, 25, 23, tzinfo=UTC),
    )
    assert parse_week("2026-w53").end == datetime(2027, 1, 4, tzinfo=UTC)
    for wrong in ("2026-47", "2025-W53", "2026-W00", "0000-W01", "9999-W52"):
        with pytest.raises(ValueError, match="2026-W47"):
            parse_week(wrong)


def posted(database: Database) -> list[Any]:
    """Return the digests of the log."""
    with database.read() as session:
        return [record for record in read_entries(session) if record.event == POST]


def test_two_bots_tell_a_week_once_and_after_an_outage_only_the_newest(database):
    """A new installation does not begin with a digest; then each week has one entry, whoever ticks."""
    one, two = (WeeklyDigest(database, lambda: POLICY) for _ in range(2))
    due = WEEK.end + timedelta(hours=9)
    assert not any(bot.tick(now=due - DAY) for bot in (one, two, one))
    ticks = [bot.tick(now=due + n * MINUTE) for n in range(3) for bot in (two, one)]
    assert ticks.count(True) == 1
    assert two.tick(now=due + timedelta(weeks=3))
    assert [record.data["counts"]["week"] for record in posted(database)] == ["2026-W47", "2026-W50"]
    assert not one.tick(now=due + timedelta(weeks=3, hours=1))


def test_a_bot_that_died_while_it_counted_has_told_nothing(database, monkeypatch):
    """Its claim runs out, and another one tells the week."""
    bot = WeeklyDigest(database, lambda: POLICY)
    due = WEEK.end + timedelta(hours=9)
    bot.tick(now=due - DAY)
    with monkeypatch.context() as patch:
        patch.setattr("bot.weekly.told_of", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            bot.tick(now=due)
    other = WeeklyDigest(database, lambda: POLICY)
    assert not other.tick(now=due + MINUTE)
    assert other.tick(now=due + HOLD + MINUTE)
    with database.read() as session:
        row = session.get(Feed, CLAIM)
    assert (row.seq, row.retry_at) == (posted(database)[0].seq, due + timedelta(weeks=1))


# --- what is seen ----------------------------------------------------------------------------------------------------

WORDS = (
    "4 requests, usually 0.5; 2 used, usually 0.5.",
    "Approved: half within 2 min, nine of ten within 20 min, usually 6 min.",
    "Not granted: 1 lapsed, usually 0 (25 %), 1 denied, usually 0 (25 %).",
    "*1 review overdue* of 2 open.",
    "• BG-OLD2, orders-db (<@U0CORA>): overdue, ended 20 days ago",
    "2 reviews filed: 1 not justified, 1 justified.",
    "2 follow-ups open, *1 overdue*.",
    "*2 uses need not have been*, usually 0: BG-ONE1, BG-TWO2.",
    "• orders-db/customer-impact: chosen 5 times, judged not met 1 of 2 times. *This rule needs work.*",
    "the usual way would have done 1 of 1. *This rule needs work.*",
    "No use of these accounts since 2026-05-27 (180 days): payroll.",
    "No use of these levels since 2026-05-27 (180 days): orders-db/write.",
    "2 drills, usually 0. No figure above counts them.",
)


def test_the_digest_says_what_has_to_be_done(database):
    """Every figure stands in a sentence, with what it was in the weeks before, and Slack takes the blocks."""
    lived(database)
    text, blocks = digest_view.post(figures(database), 12, has_picture=True)
    shown = "\n".join(block["text"]["text"] for block in blocks if block["type"] == "section")
    for words in WORDS:
        assert words in shown, shown
    assert "The figures are entry #12 of the log" in blocks[-1]["elements"][0]["text"]
    assert check_blocks(blocks, Surface.MESSAGE) == []
    assert text.startswith("Emergency access, week 2026-W47.")


def test_a_forged_entry_rings_nobody(database):
    """Names in the figures are words, whatever they are."""
    lived(database)
    data = figures(database).data()
    data["unused_accounts"] = ["<!channel>", "`*<https://evil.example.com|Vault>*"] * 200
    data["reviews"][0].update({"owner": "<!here>", "request": "<@U0CARL>"})
    text, blocks = digest_view.post(of_data(data), 1, has_picture=False)
    assert check_blocks(blocks, Surface.MESSAGE) == []
    for told in (text, json.dumps(blocks)):
        assert not {"<!", "<http", "<@U0CARL>"} & {told[place : place + 10] for place in range(len(told))}
        assert "<!channel>" not in told
        assert "<@U0CARL>" not in told


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """Return the contrast of two colours, as WCAG 2 has it."""

    def light(colour: tuple[int, int, int]) -> float:
        parts = [part / 255 for part in colour]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05

    return max(light(one), light(other)) / min(light(one), light(other))


def test_the_picture_holds_the_words_and_figures_and_can_be_read(database, monkeypatch):
    """Its words are those of the figures, its letters large, its ground opaque, its contrast enough on both grounds."""
    lived(database)
    found = figures(database)
    written: list[tuple[str, int, Any]] = []
    real = digest_picture._Pen.text

    def spy(pen, *place, **more):
        x, _, words, size, fill = place
        written.append((words, size, fill))
        assert 0 <= x <= digest_picture.WIDTH
        return real(pen, *place, **more)

    monkeypatch.setattr(digest_picture._Pen, "text", spy)
    data = digest_picture.draw(found)
    words = [one for one, _, _ in written]
    for told in (
        "Emergency access, week 2026-W47",
        "2026-11-16 to 2026-11-22",
        "2 min",
        "W43",
        "W47",
        "payroll, orders-db/write",
    ):
        assert told in words
    tiles = words[2:10]
    assert [" ".join(tiles[:2]), tiles[2]] == ["2 used of 4", "requests"]
    assert "5 times, not met 1 of 2" in words
    assert [one for one in words if one in {"2 used", "1 denied", "1 lapsed", "0 other"}] == [
        "2 used",
        "1 denied",
        "1 lapsed",
        "0 other",
    ]
    for _, size, fill in written:
        assert size >= digest_picture.LEAST_TEXT
        assert min(contrast(fill, digest_picture.PAPER), contrast(fill, digest_picture.PANEL)) >= 4.5
    for _, colour in digest_picture.KINDS:
        assert contrast(colour, digest_picture.PAPER) >= 3
    image = Image.open(io.BytesIO(data))
    assert (image.mode, image.width, image.getpixel((0, 0))) == ("RGB", 1000, digest_picture.PAPER)
    assert image.getpixel((500, 622)) == digest_picture.LINE
    assert image.text["Description"] == digest_view.described(found)
    assert (
        "2026-W47 2 used of 4. Half were approved within 2 min. 1 review overdue, 2 open." in image.text["Description"]
    )
    assert digest_picture.draw(found) == data
    many = digest_picture.draw(of_data({**found.data(), "unused_accounts": ["an-account-with-a-long-name"] * 40}))
    assert Image.open(io.BytesIO(many)).size == image.size


@pytest.fixture
def world(database: Database) -> Iterator[_World]:
    """A workspace without rate limits."""
    manifest = yaml.safe_load((ROOT / "manifest.yml").read_text(encoding="utf-8"))
    clock = _Clock()
    with Sandbox(SEED, manifest, rate_limits=0, clock=clock) as sandbox:
        made = _World(sandbox, database, clock)
        yield made
        made.end()


def test_the_thread_posts_the_digest_by_itself_with_its_picture_below(world, database, told):
    """Entries before and after it have posts of their own; the picture is shared once, with words for who sees none."""
    world.desk.record("ready:fail", SYSTEM, {"count": 0, "accounts": []}, now=world.now())
    world.desk.record(POST, SYSTEM, told.data(), now=world.now())
    world.desk.record("copy:reset", SYSTEM, {}, now=world.now())
    world.settle()
    messages = [one for one in world.history() if one.get("text") or one.get("files")]
    digest = next(place for place, one in enumerate(messages) if one["text"].startswith("Emergency access, week"))
    assert json.dumps(messages[digest]["blocks"]).count("This rule needs work") == 2
    name = f"digest-{posted(database)[0].seq}.png"
    assert files(messages) == [name]
    (file,) = messages[digest + 1]["files"]
    assert file["title"] == "Emergency access, week 2026-W47"
    assert file["alt_txt"] == digest_view.described(told)
    data = world.driver.as_("U0RITA").download({"url": file["url_private"].removeprefix(world.sandbox.url)})
    assert data == digest_picture.draw(told)
    world.settle()
    assert files(world.history()) == [name]


def test_a_kill_around_the_picture_loses_and_doubles_nothing(world):
    """Crash: before or after each call and commit; post and picture are found, and neither is there twice."""
    for number, at in enumerate(itertools.count(0, 3)):  # every third step
        data = of_data({"counts": {"week": f"2026-W{at + 10}"}}).data()
        world.desk.record(POST, SYSTEM, data, now=world.now())
        dying, fate = world.mortal(at)
        with suppress(KilledError):
            dying.drain(20)
        world.after_the_claims()
        world.settle()
        assert len(files(world.history())) == number + 1
        told = [
            one["text"] for one in world.history() if one["text"].startswith(f"Emergency access, week 2026-W{at + 10}")
        ]
        assert len(told) == 1, at
        if not fate.has_struck:
            break
    assert at > 8


def test_the_console_prints_and_draws_the_same_figures(database, tmp_path, capsys, monkeypatch):
    """``breakglass digest``: sentences, JSON, a picture; what is no week is said."""
    lived(database)
    policy = tmp_path / "p.yml"
    policy.write_text(with_accounts(), encoding="utf-8")
    monkeypatch.setenv("BREAKGLASS_DATABASE_URL", f"sqlite:///{tmp_path / 'log.db'}")
    asked = ["digest", "--policy", str(policy), "--week", "2026-W47"]
    assert main([*asked, "-o", str(tmp_path / "week.png")]) == 0
    told = capsys.readouterr().out
    assert "  1 review overdue of 2 open." in told
    assert "(U0CORA)" in told
    assert main([*asked, "--json"]) == 0
    read = of_data(json.loads(capsys.readouterr().out))
    assert read.counts.used == 2
    assert (tmp_path / "week.png").read_bytes() == digest_picture.draw(read)
    assert main([*asked[:3], "--week", "2126-W01"]) == 1
    assert "has not begun" in capsys.readouterr().err
    assert not posted(database)
