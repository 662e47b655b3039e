"""Is what was executed shown as it is on record: harmless, within Slack's limits, and with what is missing?"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot import commands, modals
from bot.sandbox.blocks import Surface, check_blocks, check_view
from storage import audit
from storage import commands as told

if TYPE_CHECKING:
    from storage.database import Database

NOW = datetime(2026, 11, 24, 3, 12, 7, tzinfo=UTC)


def command(text: str = "SELECT 1", event: str = told.RUN, seq: int = 7, **data: Any) -> told.Command:
    """One entry about a command."""
    given_ = {"source": "orders-pg", "trust": "enforced", "identity": "bg-1", "class": "read", "text": text, **data}
    return told.read(seq, event, NOW, given_)


def counted(*some: told.Command, ended: datetime | None = None) -> told.Tally:
    """What these come to."""
    tally = told.Tally(lambda _identity: ended)
    for one in some:
        tally.add(one)
    return tally


def drawn(*some: told.Command, called: str = "") -> tuple[str, list[dict[str, Any]]]:
    """The post about these."""
    return commands.post(some[:24], counted(*some), "BG-7KQ2 1 2", called=called)


def boxes(blocks: list[dict[str, Any]]) -> str:
    """The literal text of the boxes."""
    rich = [block for block in blocks if block["type"] == "rich_text"]
    return "\n".join(one["text"] for block in rich for part in block["elements"] for one in part["elements"])


def test_what_is_cut_says_how_much() -> None:
    """A long statement is one line with the number of characters that are missing, and a button for all of it."""
    _, blocks = drawn(command("SELECT " + "x" * 1000))
    assert "… (+847 characters)" in boxes(blocks)
    assert [e["action_id"] for b in blocks if b["type"] == "actions" for e in b["elements"]] == [commands.SHOW]
    assert "(+5,507 characters)" in boxes(commands.window([command("SELECT " + "x" * 7000)], "", 0, has_more=False))


def test_a_summary_counts_every_class_and_shows_the_first() -> None:
    """Many are counted by class, with the failed; five are shown."""
    some = [command(f"SELECT {n}") for n in range(20)] + [command("DROP", **{"class": "definition", "result": "42501"})]
    text, blocks = drawn(*some)
    assert text == "21 commands: 20 read, 1 definition, 1 failed."
    assert boxes(blocks).count("\n") == 4


def test_what_security_must_see_comes_first() -> None:
    """A dangerous command, a stopped recording and a stranger each stand above the rest, and call security."""
    for one in (
        command("DELETE FROM orders", danger="whole-table delete"),
        command("SET pgaudit.log = 'none'", told.STOP),
        command(event=told.STRANGER),
        command("", told.CLOSE, stopped=True),
    ):
        text, blocks = drawn(command(), one, called="<!subteam^S1>")
        assert "<!subteam^S1>" in blocks[0]["text"]["text"]
        assert "<!subteam^S1>" in text
    assert "<!subteam" not in drawn(command(), called="<!subteam^S1>")[0]


def test_a_closing_entry_says_what_is_missing() -> None:
    """Gaps, holes and a stopped recording are told in the session's last line."""
    one = command("", told.CLOSE, commands=3, gaps=[{"after": 2, "missing": 4}], holes=["COPY payload"])
    assert commands.line(one).endswith(
        "session ended: 3 commands, 4 lines of its record missing, not recorded: COPY payload"
    )


NAMES = (
    *("source", "trust", "identity", "text", "class", "danger", "result", "rows", "redacted", "at", "argv", "session"),
    *("gaps", "holes", "stopped", "commands", "payload", "findings", "database"),
)
VALUES = st.one_of(st.text(max_size=400), st.integers(), st.booleans(), st.lists(st.text(max_size=9), max_size=3))


@given(
    st.lists(st.dictionaries(st.sampled_from(NAMES), VALUES), min_size=1, max_size=40),
    st.sampled_from(sorted(told.TELLING)),
)
@settings(max_examples=60, deadline=None)
def test_whatever_an_entry_holds_slack_takes_the_post_and_the_window(some: list[dict[str, Any]], event: str) -> None:
    """Any data, also such as no recorder writes, give blocks that the strict sandbox accepts, and ring nobody."""
    found = [told.read(n, event, NOW, one) for n, one in enumerate(some)]
    text, blocks = drawn(*found)
    assert check_blocks(blocks, Surface.MESSAGE) == []
    assert len(text) < 6000
    assert "<!" not in text
    assert "<@" not in text
    view = modals.commands_page("BG-7KQ2 1 2", 1, found[: commands.PAGE], has_more=True)
    assert check_view(view, Surface.MODAL) == []
    assert check_blocks(commands.review(counted(*found), was_issued=True, source=""), Surface.MODAL) == []
    assert b"".join(commands.file_lines("BG-7KQ2", found))


def test_a_page_of_the_longest_statements_fits_into_a_window() -> None:
    """Twenty-five statements of 32 kB of the widest letters are below 250 kB."""
    view = modals.commands_page("BG-7KQ2 1 99", 0, [command("\U0001f600" * 8000)] * commands.PAGE, has_more=True)
    assert len(json.dumps(view)) < 520_000
    assert len(json.dumps(view, ensure_ascii=False).encode()) < 250_000


def test_a_list_ends_before_it_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file has a limit, and says how many commands are behind it."""
    monkeypatch.setattr(commands, "_MOST_FILE", 1000)
    made = b"".join(commands.file_lines("BG-7KQ2", [command("SELECT 1")] * 50)).decode()
    assert made.count("SELECT 1") + int(made.split("And ")[1].split(" ")[0]) == 50


def test_a_use_after_the_end_is_counted_by_the_targets_clock() -> None:
    """A line that only came late is none; one whose own time is after the end is."""
    end = NOW
    late = command(at=audit.write_time(NOW + timedelta(minutes=1)))
    assert counted(command(at=audit.write_time(NOW - timedelta(minutes=1))), late, ended=end).late == 1


@pytest.mark.parametrize(
    ("some", "source", "sentence"),
    [
        ((), "", "names no source"),
        ((), "orders-pg", "never used"),
        ((command(event=told.DOWN),), "orders-pg", "No command is on record"),
        ((command(),), "orders-pg", "No gap in the record was seen"),
        (
            (command(), command("", told.CLOSE, gaps=[{"after": 1, "missing": 1}])),
            "",
            "1 line of the record never came",
        ),
        ((command("", told.FIND, findings=[{"kind": "after_end", "sentence": "Used late."}]),), "", "⚠️ *Used late.*"),
        ((command("DROP TABLE t", danger="drop"),), "", "1 dangerous command"),
    ],
)
def test_a_reviewer_is_told_what_came_of_the_use(some: tuple[told.Command, ...], source: str, sentence: str) -> None:
    """Never used, not recorded, gaps, findings and dangers are told apart."""
    blocks = commands.review(counted(*some), was_issued=True, source=source)
    assert sentence in "\n".join(block["text"]["text"] for block in blocks if block["type"] == "section")


def test_reading_goes_by_pages_and_passes_over_what_was_pruned(database: Database) -> None:
    """Entries of one request only, from and to an entry; what is no command is not among them."""
    with database.write() as session:
        for number in range(6):
            audit.append(
                session,
                event=told.RUN if number != 3 else "credential:warn",
                at=NOW,
                actor=audit.SYSTEM,
                request_id="BG-7KQ2" if number != 4 else "BG-OTHER",
                data={"text": str(number)},
            )
    with database.read() as session:
        assert [one.text for one in told.each(session, "BG-7KQ2") if one] == ["0", "1", "2", "5"]
        assert [one.text for one in told.each(session, "BG-7KQ2", skip=1, limit=2) if one] == ["1", "2"]
        assert told.tally(session, "BG-7KQ2", first=1, last=2).runs == 2
