"""Does every line of a file reach the bot once, whatever happens to the file?

The other end is the real ingest endpoint on loopback; who records there is a list.
"""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from bot.capture_command import Poster
from bot.ingest import Ingest
from bot.settings import Listen
from bot.tailer import MOST_LINE, Tailer
from workflows.capture_rules import SourceRules
from workflows.errors import Refused, Unavailable
from workflows.recorder import Gap, Raw, Taken

HOST = "127.0.0.1"
TOKEN = "a-token-of-the-source"
SOURCE = SourceRules("orders", "postgres", hashlib.sha256(TOKEN.encode()).hexdigest(), timedelta(seconds=60))


@dataclass
class Desk:
    """Who takes lines in: what came, what came twice, and whether anybody is there."""

    lines: list[bytes] = field(default_factory=list)
    places: set[tuple[str, int]] = field(default_factory=set)
    gaps: list[Gap] = field(default_factory=list)
    beats: int = 0
    is_down: bool = False
    loses_answers: bool = False

    def take(self, source, lines, now):
        """Record as the recorder does: a place counts once."""
        if self.is_down:
            raise Unavailable("The database does not answer.")
        self.beats += 1
        known = 0
        for one in lines:
            if isinstance(one, Gap):
                self.gaps += [] if one in self.gaps else [one]
            elif (one.file, one.offset) in self.places:
                known += 1
            else:
                self.places.add((one.file, one.offset))
                self.lines.append(one.line)
        if self.loses_answers:
            raise Unavailable("It was recorded, and the answer got lost.")
        return Taken(len(lines) - known, known)


class Follower:
    """A tailer on a file in a folder, started anew at will; its clock stands unless a test moves it."""

    def __init__(self, folder, port, *, name="pg.log", spool=None, spool_bytes=1_000_000):
        self.file = folder / name
        self.port = port
        self.time = 1000.0
        self._more = {"state": folder / "place", "spool": spool, "spool_bytes": spool_bytes}
        self.tailer = None

    def start(self):
        """Begin, as after a crash: nothing but the state is known."""
        if self.tailer is not None:
            self.tailer.close()
        poster = Poster(f"http://{HOST}:{self.port}", "orders", TOKEN)
        self.tailer = Tailer(self.file, poster, clock=lambda: self.time, **self._more)
        return self

    def go(self, seconds=10.0):
        """Let time pass and follow until there is nothing to do."""
        self.time += seconds
        while self.tailer.step():
            pass

    def write(self, *texts, end="\n"):
        """Append lines to the file."""
        with self.file.open("a") as file:
            file.write("".join(text + end for text in texts))


@pytest.fixture
def desk():
    """Somebody who records."""
    return Desk()


@pytest.fixture
def port(desk):
    """The ingest endpoint's port."""
    ingest = Ingest(Listen(HOST, 0), sources=lambda: {"orders": SOURCE}, take=desk.take, now=lambda: datetime.now(UTC))
    ingest.start()
    yield ingest.port
    ingest.stop()


@pytest.fixture
def follower(tmp_path, port):
    """A tailer that has begun, on a file with one line."""
    follower = Follower(tmp_path, port)
    follower.write("line 0")
    yield follower.start()
    follower.tailer.close()


def numbered(*numbers):
    """Return lines as they are recorded."""
    return [f"line {number}".encode() for number in numbers]


def test_lines_come_in_order_and_once(follower, desk):
    """What is there, and what is written later; a second look sends nothing again."""
    follower.go()
    follower.write("line 1", "line 2")
    follower.go()
    follower.go()
    assert desk.lines == numbered(0, 1, 2)
    assert [offset for _, offset in sorted(desk.places)] == [0, 7, 14]
    assert desk.gaps == []


def test_a_line_without_its_end_waits(follower, desk):
    """Half a statement is no statement; it comes whole, also after a restart in between."""
    follower.write("line ", end="")
    follower.go(3600)
    assert desk.lines == numbered(0)
    follower.start().go()
    follower.write("1")
    follower.go()
    assert desk.lines == numbered(0, 1)


def test_a_restart_goes_on_where_it_stood(follower, desk):
    """Nothing is lost that was written meanwhile, and nothing comes twice."""
    follower.go()
    for number in range(1, 6):
        follower.write(f"line {number}")
        follower.start().go()
    assert desk.lines == numbered(*range(6))


def test_crash_between_the_answer_and_the_state(follower, desk):
    """The lines are sent once more, under the same places: they are known."""
    desk.loses_answers = True
    follower.go()
    follower.start()
    desk.loses_answers = False
    follower.write("line 1")
    follower.go()
    assert desk.lines == numbered(0, 1)
    assert len({file for file, _ in desk.places}) == 1


def test_rotation_by_renaming(follower, desk):
    """The old file is read to its end, also what its writer still writes there, then the new one."""
    follower.go()
    with follower.file.open("a") as old:
        follower.write("line 1")
        follower.file.rename(follower.file.with_name("pg.log.1"))
        follower.write("line 3")
        follower.go()
        old.write("line 2\n")
        old.flush()
        follower.go()
    assert sorted(desk.lines) == numbered(0, 1, 2, 3)
    assert desk.gaps == []


def test_several_rotations_while_nobody_followed(follower, desk):
    """Files that came and were renamed meanwhile are read, too; what was there before the first look is not."""
    follower.file.with_name("pg.log.9").write_text("line old\n")
    follower.tailer.close()
    (follower.file.parent / "place").unlink(missing_ok=True)
    follower.tailer = None
    follower.start().go()
    follower.tailer.close()
    follower.tailer = None
    for number in (1, 2, 3):
        for age in (3, 2, 1):
            if (older := follower.file.with_name(f"pg.log.{age}")).exists():
                older.rename(follower.file.with_name(f"pg.log.{age + 1}"))
        follower.file.rename(follower.file.with_name("pg.log.1"))
        follower.write(f"line {number}")
    follower.start().go()
    assert sorted(desk.lines) == numbered(0, 1, 2, 3)
    assert desk.gaps == []


def test_a_rotated_file_that_is_removed_at_once(follower, desk):
    """As long as we have it open, it is there for us."""
    follower.go()
    follower.write("line 1")
    follower.file.unlink()
    follower.write("line 2")
    follower.go()
    follower.go(3600)
    assert sorted(desk.lines) == numbered(0, 1, 2)
    assert desk.gaps == []


def test_a_torn_line_of_a_rotated_file_is_sent_as_it_is(follower, desk):
    """Its writer died: nobody will end it, and it is not lost without a word."""
    follower.write("line to", end="")
    follower.go()
    follower.file.rename(follower.file.with_name("pg.log.1"))
    follower.write("line 1")
    follower.go(1)
    assert b"line to" not in desk.lines
    follower.go(120)
    follower.go(120)
    assert sorted(desk.lines) == sorted([*numbered(0, 1), b"line to"])


def test_a_truncated_file_is_a_gap(follower, desk):
    """Whether a line was lost nobody knows: it is said, with the place; the new content is another one."""
    follower.go()
    follower.write("line lost")
    os.truncate(follower.file, 0)
    follower.write("line 1")
    follower.go()
    assert desk.lines == numbered(0, 1)
    (gap,) = desk.gaps
    assert (gap.first, gap.why.split(":")[0]) == (7, "truncated or replaced")
    assert len({file for file, _ in desk.places}) == 2
    follower.start().go()
    assert len(desk.gaps) == 1


def test_attack_a_file_that_was_truncated_and_has_grown_beyond_the_place(follower, desk):
    """Its size says nothing; the bytes before the place do."""
    follower.go()
    os.truncate(follower.file, 0)
    follower.write(*(f"line {number}" for number in range(1, 50)))
    follower.go()
    assert desk.lines == numbered(*range(50))
    assert len(desk.gaps) == 1
    # The same while nobody followed.
    follower.tailer.close()
    follower.tailer = None
    os.truncate(follower.file, 0)
    follower.write(*(f"line {number}" for number in range(50, 200)))
    follower.start().go()
    assert desk.lines == numbered(*range(200))
    assert len(desk.gaps) == 2


@pytest.mark.parametrize("is_down", [False, True])
def test_copytruncate(follower, desk, is_down):
    """The rest is read from the copy, under the same places; that something may be lost in between is said."""
    follower.go()
    if is_down:
        follower.tailer.close()
        follower.tailer = None
    follower.write("line 1", "line 2")
    copy = follower.file.with_name("pg.log.1")
    copy.write_bytes(follower.file.read_bytes())
    if not is_down:
        follower.go()
        assert len(desk.lines) == 3
        follower.write("line lost")
    os.truncate(follower.file, 0)
    follower.write("line 3")
    (follower.start() if is_down else follower).go()
    follower.go(120)
    assert sorted(desk.lines) == numbered(0, 1, 2, 3)
    (gap,) = desk.gaps
    assert gap.first == 21
    assert "copied, then truncated" in gap.why


def test_a_writer_that_did_not_notice_leaves_a_hole(follower, desk):
    """It writes on at its old place: what reads as NULs is no part of its next line."""
    follower.file.unlink()
    follower.go()
    with follower.file.open("w") as writer:
        writer.write("line 1\n")
        writer.flush()
        follower.go()
        os.truncate(follower.file, 0)
        writer.write("line 2\n")
    follower.go()
    assert desk.lines[-2:] == numbered(1, 2)


def test_a_file_that_is_gone_unread_is_a_gap(follower, desk):
    """Removed while nobody followed: from where on something is missing is said, once."""
    follower.go()
    follower.write("line lost")
    follower.tailer.close()
    follower.tailer = None
    new = follower.file.with_name("new")
    new.write_text("line 1\n")
    new.rename(follower.file)
    follower.start().go()
    follower.start().go()
    assert desk.lines == numbered(0, 1)
    (gap,) = desk.gaps
    assert (gap.first, gap.why.split(" ")[0]) == (7, "removed")


def test_crash_after_a_gap_was_noticed(follower, desk):
    """It stands in the state until the bot knows of it."""
    follower.go()
    desk.is_down = True
    os.truncate(follower.file, 0)
    follower.go()
    follower.start().go()
    assert desk.gaps == []
    desk.is_down = False
    follower.start().go()
    assert len(desk.gaps) == 1


def test_while_the_bot_is_away_the_file_keeps_the_lines(follower, desk):
    """They come when it is back, also those of files that were rotated and removed meanwhile."""
    desk.is_down = True
    follower.go()
    for number in (1, 2, 3):
        follower.write(f"line {number}")
        follower.file.rename(follower.file.with_name("pg.log.1"))
        follower.go()
    assert desk.lines == []
    desk.is_down = False
    follower.go()
    assert sorted(desk.lines) == numbered(0, 1, 2, 3)
    assert desk.gaps == []


def test_the_spool_keeps_what_the_file_loses(tmp_path, port, desk):
    """While the bot is away lines go to the spool; a truncation and a restart later they are all there, in order."""
    follower = Follower(tmp_path, port, spool=tmp_path / "spool")
    desk.is_down = True
    follower.write("line 0")
    follower.start().go()
    for number in (1, 2, 3):
        follower.write(f"line {number}")
        follower.go()
    os.truncate(follower.file, 0)
    follower.write("line 4")
    follower.start().go()
    assert len(list((tmp_path / "spool").iterdir())) >= 4
    desk.is_down = False
    follower.start().go()
    assert desk.lines == numbered(0, 1, 2, 3, 4)
    assert list((tmp_path / "spool").iterdir()) == []
    assert [gap.first for gap in desk.gaps] == [28]
    follower.tailer.close()


def test_a_full_spool_says_so_and_what_is_lost_then_is_a_gap(tmp_path, port, desk, caplog):
    """It stays within its bound; what the file still has comes later, what it loses is reported."""
    follower = Follower(tmp_path, port, spool=tmp_path / "spool", spool_bytes=400)
    desk.is_down = True
    for number in range(10):
        follower.write(f"line {number}")
        (follower if number else follower.start()).go()
    kept = sum(file.stat().st_size for file in (tmp_path / "spool").iterdir())
    assert 0 < kept <= 400
    assert caplog.text.count("TAKES NO MORE") == 1
    os.truncate(follower.file, 0)
    follower.write("line 10")
    follower.go()
    desk.is_down = False
    follower.start().go()
    assert desk.lines[0] == b"line 0"
    assert desk.lines[-1] == b"line 10"
    lost = {*numbered(*range(11))} - set(desk.lines)
    assert lost
    assert len(desk.lines) == len(set(desk.lines))
    (gap,) = desk.gaps
    assert gap.first == 7 * (len(desk.lines) - 1)
    follower.tailer.close()


@pytest.mark.parametrize("line", [b"\xff\xfe \x80", b"nul \x00 in it", b'"quoted" \\ \r', "é \u2028 x".encode(), b""])
def test_every_byte_of_a_line_arrives(follower, desk, line):
    """What is not text, too: the hash of the raw line is the evidence."""
    with follower.file.open("ab") as file:
        file.write(line + b"\n")
    follower.go()
    assert desk.lines[-1] == line


def test_a_line_that_is_too_long_is_cut_and_marked(follower, desk):
    """Its beginning comes with its length and the hash of all of it; the next line is whole."""
    for size in (MOST_LINE, MOST_LINE + 1, 5_000_000):
        follower.write("x" * size, "line 1")
        follower.go()
        assert desk.lines.pop() == b"line 1"
        line = desk.lines.pop()
        assert line.startswith(b"x" * MOST_LINE)
        mark = line[MOST_LINE:].decode()
        assert mark == ("" if size == MOST_LINE else mark)
        if size > MOST_LINE:
            assert f"{size} bytes" in mark
            assert hashlib.sha256(b"x" * size).hexdigest() in mark


def test_silence_is_a_heartbeat_only_while_the_file_can_be_read(follower, desk):
    """A source whose file is gone is not heard of, so that nobody takes blindness for quiet."""
    follower.go()
    beats = desk.beats
    follower.go()
    assert desk.beats == beats + 1
    follower.file.unlink()
    follower.go()
    follower.go()
    assert desk.beats == beats + 1


def test_a_pattern_follows_files_that_are_named_after_the_day(tmp_path, port, desk):
    """Each day's file is read to its end, the newest as it grows; one that was there before is not."""
    (tmp_path / "monday.json").write_text("old\n")
    os.utime(tmp_path / "monday.json", (1, 1))
    follower = Follower(tmp_path, port, name="*.json")
    (tmp_path / "tuesday.json").write_text("line 0\n")
    follower.start().go()
    with (tmp_path / "tuesday.json").open("a") as file:
        file.write("line 1\n")
    (tmp_path / "wednesday.json").write_text("line 2\n")
    follower.go()
    follower.start().go(120)
    assert sorted(desk.lines) == numbered(0, 1, 2)
    follower.tailer.close()


def test_two_with_one_state_are_refused(follower, tmp_path):
    """They would undo each other's places."""
    with pytest.raises(Refused, match="already"):
        Tailer(follower.file, Poster(f"http://{HOST}:1", "orders", TOKEN), state=tmp_path / "place")


@pytest.mark.parametrize("text", ["", "{}", "nonsense", '{"version": 1, "file": "/other", "contents": [], "gaps": []}'])
def test_a_state_that_cannot_be_used_is_refused(tmp_path, text):
    """Beginning anew would send all again, or leave out what came meanwhile."""
    (tmp_path / "place").write_text(text)
    with pytest.raises(Refused):
        Tailer(tmp_path / "x.log", Poster(f"http://{HOST}:1", "orders", TOKEN), state=tmp_path / "place")


def test_the_state_holds_nothing_of_a_line(follower, tmp_path):
    """It is readable by its owner alone, and has hashes of what it knows again."""
    follower.write("PASSWORD 'hunter2'")
    follower.go()
    assert "hunter2" not in (tmp_path / "place").read_text()
    assert (tmp_path / "place").stat().st_mode & 0o777 == 0o600


def test_raw_lines_keep_their_secrets():
    """A line is in no repr."""
    assert "hunter2" not in repr(Raw("f", 0, b"hunter2"))


def test_a_wait_for_the_bot_ends_when_it_is_told_to(follower, desk):
    """Stopping does not wait for a bot that is away."""
    desk.is_down = True
    ended = threading.Event()
    running = threading.Thread(target=follower.tailer.run, args=(ended,))
    running.start()
    ended.set()
    running.join(30)
    assert not running.is_alive()


@pytest.mark.parametrize("size", [0, 3, 7])
def test_crash_of_the_order_a_copy_that_is_seen_before_its_original_was_read(follower, desk, size):
    """A copy in the making, of a file that was empty at the last look, is nothing new: no line comes twice."""
    follower.file.unlink()
    follower.file.touch()
    follower.go()
    desk.lines.clear()
    follower.write("line 1", "line 2")
    copy = follower.file.with_name("pg.log.1")
    copy.write_bytes(follower.file.read_bytes()[:size])
    follower.go()
    copy.write_bytes(follower.file.read_bytes())
    follower.go()
    os.truncate(follower.file, 0)
    follower.write("line 3")
    follower.go()
    assert desk.lines == numbered(1, 2, 3)


def test_crash_of_the_order_a_copy_that_comes_while_the_folder_is_being_read(follower, desk, monkeypatch):
    """Copied and truncated after the folder was listed: the copy is found all the same, and no line comes twice."""
    follower.go()
    listing = Tailer._entries

    def late(tailer):
        found = listing(tailer)
        if not (copy := follower.file.with_name("pg.log.1")).exists():
            follower.write("line 1")
            copy.write_bytes(follower.file.read_bytes())
            os.truncate(follower.file, 0)
        return found

    monkeypatch.setattr(Tailer, "_entries", late)
    follower.go()
    follower.go()
    assert desk.lines == numbered(0, 1)
    assert [gap.first for gap in desk.gaps] == [14]


@pytest.mark.parametrize(("is_restarted", "before"), [(False, 1), (True, 1), (False, 300), (True, 300)])
def test_a_copy_that_is_shorter_than_what_was_read(follower, desk, is_restarted, before):
    """What was written after the copying was read before the truncation: the copy holds nothing new."""
    follower.write(*(f"line {number}" for number in range(1, before)))
    follower.go()
    copy = follower.file.with_name("pg.log.1")
    copy.write_bytes(follower.file.read_bytes())
    follower.write(f"line {before}")
    follower.go()
    os.truncate(follower.file, 0)
    follower.write(f"line {before + 1}")
    if is_restarted:
        follower.start()
    follower.go()
    follower.start().go()
    assert desk.lines == numbered(*range(before + 2))
    assert len(desk.gaps) == 1


def test_crash_of_the_order_a_file_and_its_copy_are_both_new(follower, desk):
    """Found between copying and truncating, and the file was written to since: the copy is the copy."""
    follower.go()
    follower.tailer.close()
    follower.tailer = None
    new = follower.file.with_name("new")
    new.write_text("line 1\nline 2\n")
    new.rename(follower.file)
    copy = follower.file.with_name("pg.log.1")
    copy.write_bytes(follower.file.read_bytes())
    os.utime(copy, (1, 1))
    follower.start().go()
    os.truncate(follower.file, 0)
    follower.write("line 3")
    follower.go()
    assert desk.lines == numbered(0, 1, 2, 3)


@pytest.mark.parametrize("size", [7, 700])
def test_crash_of_the_order_a_file_that_is_truncated_between_the_look_and_the_read(follower, desk, monkeypatch, size):
    """What it holds then is not read under the name of what it held: each line comes once, and a gap is told."""
    follower.write(*(f"line lost {number}" for number in range(size // 7)))
    reading = Tailer._read

    def late(tailer):
        if b"lost" in follower.file.read_bytes():
            os.truncate(follower.file, 0)
            follower.write(*(f"line {number}" for number in range(1, 400)))
        return reading(tailer)

    monkeypatch.setattr(Tailer, "_read", late)
    follower.go()
    follower.go()
    assert desk.lines == numbered(*range(1, 400))
    assert [gap.first for gap in desk.gaps] == [0]


def test_a_copy_that_is_shorter_than_what_was_seen(follower, desk):
    """The original had grown when it was looked at, and was truncated before it was read: the copy is read once."""
    follower.go()
    follower.write("line 1")
    copy = follower.file.with_name("pg.log.1")
    copy.write_bytes(follower.file.read_bytes())
    follower.write("line lost")
    follower.tailer._look()
    os.truncate(follower.file, 0)
    follower.write("line 2")
    follower.go()
    follower.go()
    assert sorted(desk.lines) == numbered(0, 1, 2)
    assert [gap.first for gap in desk.gaps] == [14]


def test_crash_of_the_order_a_copy_that_is_renamed_while_it_is_looked_for(follower, desk, monkeypatch):
    """Copied, truncated and rotated on since the folder was listed: the copy is found at the next look."""
    follower.go()
    follower.write("line 1")
    copy, listing = follower.file.with_name("pg.log.1"), Tailer._entries
    copy.write_bytes(follower.file.read_bytes())
    os.truncate(follower.file, 0)

    def late(tailer):
        found = listing(tailer)
        if copy.exists():
            copy.rename(follower.file.with_name("pg.log.2"))
        return found

    monkeypatch.setattr(Tailer, "_entries", late)
    follower.go()
    follower.go()
    assert desk.lines == numbered(0, 1)
    assert [gap.first for gap in desk.gaps] == [14]


def copytruncate(follower):
    """Rotate by copying."""
    copy = follower.file.with_name("pg.log.1")
    copy.write_bytes(follower.file.read_bytes())
    os.truncate(follower.file, 0)
    return copy


def settle(follower):
    """Let some looks pass; what was put off is done by then."""
    for _ in range(4):
        follower.go()


def test_crash_of_the_order_a_copy_and_a_truncation_while_the_files_are_checked(follower, desk, monkeypatch):
    """Copied and truncated after the check that made the folder be listed: the copy is not read a second time."""
    follower.go()
    checking = Tailer._is_lost

    def late(tailer, content, there):
        is_lost = checking(tailer, content, there)
        if not follower.file.with_name("pg.log.1").exists():
            copytruncate(follower)
        return is_lost

    monkeypatch.setattr(Tailer, "_is_lost", late)
    settle(follower)
    assert desk.lines == numbered(0)
    assert [gap.first for gap in desk.gaps] == [7]


def test_crash_of_the_order_a_copy_that_is_renamed_before_it_is_opened(follower, desk, monkeypatch):
    """Found, and rotated on before it takes over: it takes over at the next look, and nothing unread is called lost."""
    follower.go()
    follower.write("line 1")
    copy, opening = copytruncate(follower), os.open

    def late(path, *args, **more):
        if path == copy and copy.exists():
            copy.rename(copy.with_name("pg.log.2"))
        return opening(path, *args, **more)

    monkeypatch.setattr(os, "open", late)
    settle(follower)
    assert desk.lines == numbered(0, 1)
    assert [gap.first for gap in desk.gaps] == [14]


@pytest.mark.parametrize("moment", ["before it is recognised", "before it is opened"])
def test_crash_of_the_order_a_short_copy_that_is_renamed_while_its_original_is_given_up(
    follower, desk, monkeypatch, moment
):
    """All of the copy was read as the original: rotated on at that moment, it is nothing new later either."""
    follower.go()
    copy, opening, forgetting = follower.file.with_name("pg.log.1"), os.open, Tailer._forget
    copy.write_bytes(follower.file.read_bytes())
    follower.write("line 1")
    follower.go()
    os.truncate(follower.file, 0)

    def rename():
        if copy.exists():
            copy.rename(copy.with_name("pg.log.2"))

    def late_forget(*args):
        rename()
        return forgetting(*args)

    def late_open(path, *args, **more):
        if path == copy:
            rename()
        return opening(path, *args, **more)

    if moment == "before it is opened":
        monkeypatch.setattr(os, "open", late_open)
    else:
        monkeypatch.setattr(Tailer, "_forget", late_forget)
    settle(follower)
    assert desk.lines == numbered(0, 1)
    assert [gap.first for gap in desk.gaps] == [14]


@pytest.mark.parametrize("is_restarted", [False, True])
def test_crash_of_the_order_a_file_that_is_renamed_while_each_list_is_made(follower, desk, monkeypatch, is_restarted):
    """Two rotations hide it from two lists in a row: it is not gone, so it is no gap, and not read again."""
    follower.go()
    follower.file.rename(follower.file.with_name("pg.log.1"))
    follower.write("line 1")
    follower.go()
    if is_restarted:
        follower.start()
    else:
        follower.go(120)  # it is read, and closed
    listing, ages = os.listdir, iter((1, 2))

    def late(folder):
        names = listing(folder)
        if age := next(ages, None):
            follower.file.with_name(f"pg.log.{age}").rename(follower.file.with_name(f"pg.log.{age + 1}"))
        return names

    monkeypatch.setattr(os, "listdir", late)
    settle(follower)
    assert desk.lines == numbered(0, 1)
    assert desk.gaps == []


def test_crash_a_folder_that_is_away_for_a_while(tmp_path, port, desk):
    """Not mounted yet, say: nobody can know what became of its files, so none is a gap, and none is read again."""
    (tmp_path / "log").mkdir()
    follower = Follower(tmp_path, port, name="log/pg.log")
    follower.write("line 0")
    follower.start().go()
    follower.file.rename(follower.file.with_name("pg.log.1"))
    follower.write("line 1")
    settle(follower)
    (tmp_path / "log").rename(tmp_path / "away")
    follower.start()
    settle(follower)
    (tmp_path / "away").rename(tmp_path / "log")
    settle(follower)
    assert desk.lines == numbered(0, 1)
    assert desk.gaps == []
    follower.tailer.close()


@pytest.mark.parametrize("after", [0, 1])
def test_a_file_that_is_copied_and_removed(follower, desk, after):
    """Its copy is nothing new, whether it is whole or shorter than what was read, also when the file is let go of."""
    follower.go()
    copy = follower.file.with_name("pg.log.1")
    copy.write_bytes(follower.file.read_bytes())
    follower.write(*(f"line {number}" for number in range(1, after + 1)))
    follower.go()
    follower.file.unlink()
    follower.write("line 2")
    follower.go()
    follower.go(120)
    settle(follower)
    assert desk.lines == numbered(*range(after + 1), 2)
    assert desk.gaps == []


def test_crash_of_the_order_a_rotation_as_a_quiet_file_is_let_go_of(follower, desk, monkeypatch):
    """Renamed while the list is made by which it is let go of: it is not read again under its new name."""
    follower.go()
    old = follower.file.with_name("pg.log.1")
    follower.file.rename(old)
    follower.write("line 1")
    follower.go()
    listing = os.listdir

    def late(folder):
        names = listing(folder)
        if old.exists():
            old.rename(old.with_name("pg.log.2"))
        return names

    monkeypatch.setattr(os, "listdir", late)
    follower.go(120)
    settle(follower)
    assert desk.lines == numbered(0, 1)
    assert desk.gaps == []


@pytest.mark.parametrize("moment", ["_look", "_read"])
def test_crash_before_the_first_lines_of_a_file_are_noted_then_it_is_truncated(follower, desk, monkeypatch, moment):
    """Sent, not yet noted, killed, rotated by copying: the new lines do not pass for the old, nor the old for new."""
    follower.file.unlink()
    follower.file.touch()
    follower.go()
    if moment == "_read":
        follower.write("line ", end="")
    desk.lines.clear()
    desk.loses_answers = True
    doing = getattr(Tailer, moment)

    def late(tailer):
        if b"\n" not in follower.file.read_bytes():
            follower.write("line 1" if moment == "_look" else "1")
        return doing(tailer)

    with monkeypatch.context() as patch:
        patch.setattr(Tailer, moment, late)
        follower.go()
    assert desk.lines == numbered(1)
    desk.loses_answers = False
    copytruncate(follower)
    follower.write("line 2")
    follower.start()
    settle(follower)
    assert desk.lines == numbered(1, 2)


def test_crash_of_the_order_an_empty_file_that_is_written_and_truncated_before_it_is_read(follower, desk, monkeypatch):
    """Its beginning was never noted: what it holds then is not read under its name, and once more as something new."""
    follower.file.unlink()
    follower.file.touch()
    follower.go()
    desk.lines.clear()
    ageing, reading = Tailer._age, Tailer._read
    news = iter(("line lost, and longer",))

    def late_age(tailer, *args):
        if text := next(news, None):
            follower.write(text)
        return ageing(tailer, *args)

    def late_read(tailer):
        if b"lost" in follower.file.read_bytes():
            os.truncate(follower.file, 0)
            follower.write("line 1")
        return reading(tailer)

    monkeypatch.setattr(Tailer, "_age", late_age)
    monkeypatch.setattr(Tailer, "_read", late_read)
    settle(follower)
    assert desk.lines == numbered(1)
    assert [gap.first for gap in desk.gaps] == [0]
