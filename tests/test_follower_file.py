"""Does the copy in a file keep all that it acknowledged, whatever happens to its writer or its disk?"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import storage
from storage.followers import CopyTrouble, Item, Place
from storage.followers.file import MAGIC, FileCopy, build
from storage.merkle import leaf_hash

NOW = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
ORIGIN = "breakglass.example.com/orders"


def item(seq: int, words: str = "") -> Item:
    """Make an entry."""
    body = f'{{"seq":{seq},"words":"{words}"}}'.encode()
    return Item(seq, body, leaf_hash(body))


def items(start: int, end: int, words: str = "") -> list[Item]:
    """Make the entries from ``start`` to before ``end``."""
    return [item(seq, words) for seq in range(start, end)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the copy is."""
    return tmp_path / "volume" / "breakglass.copy"


@pytest.fixture
def copy(path: Path) -> FileCopy:
    """A copy whose volume is there, and empty."""
    path.parent.mkdir()
    return FileCopy("archive", path, ORIGIN)


def again(path: Path, origin: str = ORIGIN) -> FileCopy:
    """Begin as a bot that was started again does: knowing nothing."""
    return FileCopy("archive", path, origin)


def deliver(copy: FileCopy, what: list[Item], head: bytes | None = None) -> int:
    """Deliver."""
    return copy.deliver(what, head, now=NOW)


# ---------------------------------------------------------------------------------------------- the plain course


def test_what_was_delivered_is_read_back_as_it_was(copy, path):
    """Entries, pruned ones among them, and heads come back as they went in, also after a restart in between."""
    pruned = Item(2, None, item(2).leaf_hash)
    assert deliver(copy, items(0, 2), b"note one") == 1
    assert deliver(again(path), [pruned, item(3)], b"note two") == 3
    assert list(again(path).read()) == [item(0), item(1), pruned, item(3)]
    assert list(again(path).read(3)) == [item(3)]
    assert list(again(path).heads()) == [b"note one", b"note two"]
    assert again(path).position() == 3


def test_nothing_stands_outside_before_the_first_entry(copy, path):
    """A copy that was not begun has no position, and a head alone does not begin it."""
    assert copy.position() is None
    with pytest.raises(CopyTrouble):
        deliver(copy, [], b"note")
    assert not path.exists()


def test_what_comes_again_is_not_written_again(copy, path):
    """Delivered twice, in other batches and after a restart, each entry and each head stands there once."""
    deliver(copy, items(0, 5), b"note")
    size = path.stat().st_size
    assert deliver(copy, items(0, 5), b"note") == 4
    assert deliver(again(path), items(3, 5), b"note") == 4
    assert deliver(again(path), []) == 4
    assert path.stat().st_size == size
    assert deliver(again(path), items(2, 8)) == 7
    assert list(copy.read()) == items(0, 8)


def test_only_its_owner_can_read_it(copy, path):
    """Reasons and names are nobody else's business."""
    deliver(copy, items(0, 1))
    assert path.stat().st_mode & 0o777 == 0o600


@given(bodies=st.lists(st.binary(max_size=300), min_size=1, max_size=12), cut=st.integers(0, 12))
def test_any_bodies_in_any_batches_round_trip(tmp_path_factory, bodies, cut):
    """Whatever the bodies hold, they come back byte by byte."""
    copy = FileCopy("archive", tmp_path_factory.mktemp("any") / "copy", ORIGIN)
    all_of_it = [Item(seq, body, leaf_hash(body)) for seq, body in enumerate(bodies)]
    for batch in (all_of_it[: cut + 1], all_of_it[cut + 1 :]):
        deliver(copy, batch)
    assert list(copy.read()) == all_of_it


# ---------------------------------------------------------------------------------------------- another log


def test_an_entry_that_differs_from_the_one_that_stands_there_is_refused(copy, path):
    """A rewritten log does not get past the copy of what it was, and the copy stays as it is."""
    deliver(copy, items(0, 3))
    before = path.read_bytes()
    for bot in (copy, again(path)):
        with pytest.raises(CopyTrouble, match="different entry 1"):
            deliver(bot, [item(1, "changed"), item(2), item(3)])
    assert path.read_bytes() == before


def test_a_log_that_it_did_not_begin_is_not_followed(copy, path):
    """Neither another log's name nor another entry 0 is continued in the file."""
    deliver(copy, items(0, 2))
    with pytest.raises(CopyTrouble, match="holds the log"):
        deliver(again(path, "other.example.com/log"), items(2, 3))
    with pytest.raises(CopyTrouble, match="different entry 0"):
        deliver(again(path), items(0, 1, "another log"))
    assert list(again(path).read()) == items(0, 2)


def test_a_copy_killed_before_its_first_entry_still_knows_its_log(copy, path):
    """A file that was begun and has no entry yet takes only the entry that it was begun with."""
    deliver(copy, items(0, 1))
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"}") + 1 + 32])
    assert again(path).position() is None
    with pytest.raises(CopyTrouble, match="different entry 0"):
        deliver(again(path), items(0, 1, "another log"))
    assert deliver(again(path), items(0, 2)) == 1


def test_a_strange_file_is_left_alone(copy, path):
    """A path that was given by mistake costs nobody a file."""
    path.write_text("somebody's notes, which are longer than the first line of a copy")
    with pytest.raises(CopyTrouble, match="not a copy"):
        deliver(copy, items(0, 1))
    assert path.read_text().startswith("somebody's notes")


def test_a_pipe_is_not_a_file(copy, path):
    """A pipe at the path neither hangs the copy nor takes entries."""
    os.mkfifo(path)
    with pytest.raises(CopyTrouble, match="not a file"):
        deliver(copy, items(0, 1))


# ---------------------------------------------------------------------------------------------- the volume


def test_a_volume_that_is_not_mounted_gets_no_file(tmp_path):
    """Without its folder the copy says so, whether it was begun or not."""
    copy = FileCopy("archive", tmp_path / "volume" / "copy", ORIGIN)
    for use in (lambda: deliver(copy, items(0, 1)), copy.position):
        with pytest.raises(CopyTrouble, match="mounted"):
            use()


def test_a_copy_that_vanished_is_said_and_not_begun_anew(copy, path):
    """When the file is gone, emptied, cut or replaced by an older one, what was acknowledged is missed."""
    deliver(copy, items(0, 2))
    older = path.read_bytes()
    deliver(copy, items(2, 5))
    path.write_bytes(older)
    with pytest.raises(CopyTrouble, match=r"ends at entry 1.*entry 4 was acknowledged"):
        deliver(copy, items(5, 6))
    path.write_bytes(b"")
    with pytest.raises(CopyTrouble, match="is empty"):
        deliver(copy, items(5, 6))
    path.unlink()
    with pytest.raises(CopyTrouble, match="not there any more"):
        deliver(copy, items(5, 6))
    assert not path.exists()


def test_two_writers_do_not_mix(copy, path):
    """While another program holds the file nothing is written, and afterwards all of it is."""
    deliver(copy, items(0, 1))
    code = f"import fcntl; f = open({str(path)!r}); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        other.stdout.readline()
        with pytest.raises(CopyTrouble, match="another program"):
            deliver(copy, items(1, 2))
        other.communicate("\n")
    assert deliver(copy, items(1, 2)) == 1


def test_what_another_bot_appended_is_taken_note_of(copy, path):
    """Two bots that take turns continue each other's file."""
    other = again(path)
    for start in range(0, 12, 2):
        bot = copy if start % 4 else other
        assert deliver(bot, items(max(0, start - 1), start + 2)) == start + 1
    assert list(copy.read()) == items(0, 12)


# ---------------------------------------------------------------------------------------------- unfinished, damaged


def test_cut_at_any_byte_nothing_complete_is_lost_and_nothing_doubled(copy, path):
    """Wherever the writer was killed in its last record, the copy keeps what was complete and takes the rest."""
    deliver(copy, items(0, 2), b"note")
    content = path.read_bytes()
    complete = list(copy.read())
    ends = [0, *(record.end for record in copy._read_records())]
    for size in range(len(content)):
        path.write_bytes(content[:size])
        there = list(again(path).read())
        assert there == complete[: len(there)]
        assert deliver(again(path), complete, b"note") == 1
        assert path.read_bytes() == content
        if size in ends[2:]:  # a complete record stays even where no more follows
            path.write_bytes(content[:size])
            deliver(again(path), complete[: len(there)])
            assert path.read_bytes().startswith(content[:size])


def test_a_flipped_bit_anywhere_stops_the_copy_and_removes_nothing(copy, path):
    """Damage is neither taken for an unfinished record nor passed over: the copy says so, and the file stays."""
    deliver(copy, items(0, 2), b"note")
    content = path.read_bytes()
    for at in range(len(content)):
        broken = bytearray(content)
        broken[at] ^= 1 << (at % 8)
        path.write_bytes(broken)
        with pytest.raises(CopyTrouble):
            deliver(again(path), items(1, 3))
        assert path.read_bytes() == broken
        with pytest.raises(CopyTrouble):
            list(again(path).read())


def test_a_record_of_zeros_is_damage_not_an_end(copy, path):
    """After a power failure a file may end in zeros; they are not cut off silently."""
    deliver(copy, items(0, 2))
    with path.open("ab") as stream:
        stream.write(bytes(200))
    with pytest.raises(CopyTrouble, match="damaged"):
        deliver(again(path), items(1, 3))


def test_an_entry_out_of_its_place_is_damage(copy, path):
    """Whole records in another order, or one left out, are found."""
    deliver(copy, items(0, 4))
    content, records = path.read_bytes(), list(copy._read_records())
    first, second = (content[r.offset : r.end] for r in records[2:4])
    path.write_bytes(content.replace(first + second, second + first))
    with pytest.raises(CopyTrouble, match="stands where"):
        deliver(again(path), items(3, 5))
    path.write_bytes(content.replace(first, b""))
    with pytest.raises(CopyTrouble, match="stands where"):
        deliver(again(path), items(3, 5))


def write_for_ever(path: Path, start: int, said: int) -> None:
    """In a process of its own: deliver batch after batch, and say after each what was acknowledged."""
    copy = again(path)
    while True:
        start = deliver(copy, items(start, start + 40, "x" * 2000)) + 1
        os.write(said, f"{start - 1}\n".encode())


def test_killed_again_and_again_while_writing_it_keeps_what_it_acknowledged(copy, path):
    """SIGKILL in the middle of writing, twenty times over: no acknowledged entry is missing, none is doubled."""
    acknowledged = -1
    there: list[Item] = []
    for turn in range(20):
        reads, said = os.pipe()
        writer = os.fork()
        if writer == 0:
            try:
                write_for_ever(path, acknowledged + 1, said)
            finally:
                os._exit(1)
        os.close(said)
        with os.fdopen(reads) as heard:
            for _ in range(turn % 4 + 1):
                acknowledged = int(heard.readline())
            os.kill(writer, signal.SIGKILL)
            os.waitpid(writer, 0)
            acknowledged = max([acknowledged, *map(int, heard.read().split())])
        there = list(again(path).read())
        assert there == items(0, len(there), "x" * 2000)
        assert len(there) > acknowledged
    assert deliver(again(path), items(acknowledged, len(there) + 1, "x" * 2000)) == len(there)


def test_a_full_disk_acknowledges_nothing_and_goes_on_when_there_is_room(copy, path):
    """The kernel writes a part and refuses the rest: no part of it stays, and the next try writes all of it."""
    deliver(copy, items(0, 2))
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 1000, limits[1]))
    try:
        with pytest.raises(CopyTrouble, match="cannot be written"):
            deliver(copy, items(2, 50))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert deliver(copy, items(2, 50)) == 49
    assert list(copy.read()) == items(0, 50)


def test_a_full_disk_is_said_in_plain_words():
    """At three in the morning "no space left on device" has to be a sentence with what to do."""
    from storage.followers.file import _say_error  # noqa: PLC0415 - the one sentence that a test cannot bring about

    assert "disk is full" in _say_error(Path("copy"), OSError(28, os.strerror(28)))


def test_a_sync_that_failed_is_not_an_acknowledgement(copy, path, monkeypatch):
    """When the disk reports an error at the sync, what was written is taken back and written again."""
    deliver(copy, items(0, 1))
    sync = os.fsync

    def fail(number):
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CopyTrouble):
        deliver(copy, items(1, 3))
    monkeypatch.setattr(os, "fsync", sync)
    assert list(again(path).read()) == items(0, 1)
    assert deliver(copy, items(1, 3)) == 2


def test_what_a_killed_writer_left_is_synced_before_it_is_acknowledged(copy, path, monkeypatch):
    """Entries that stand in the file but perhaps not on the disk are acknowledged only after a sync."""
    deliver(copy, items(0, 3))
    synced = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (synced.append(number), sync(number)))
    deliver(again(path), items(0, 3))
    assert synced


# ---------------------------------------------------------------------------------------------- from the policy


def test_it_is_built_from_the_policy_and_only_with_a_whole_path(tmp_path):
    """The path must not depend on where the bot was started."""
    place = Place("archive", ORIGIN, {"path": str(tmp_path / "copy")}, {})
    assert deliver(build(place), items(0, 1)) == 0
    assert (tmp_path / "copy").read_bytes().startswith(MAGIC)
    with pytest.raises(CopyTrouble, match="must begin with"):
        build(Place("archive", ORIGIN, {"path": "copy"}, {}))


def test_the_document_says_what_is_in_the_file(copy, path):
    """The copy of the entries in FORMAT.md is, byte by byte, the file that is described there."""
    document = (Path(str(storage.__file__)).parent / "FORMAT.md").read_text(encoding="utf-8")
    vectors = json.loads(re.findall(r"^```json\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)[0])
    bodies = [entry["body"].encode() for entry in vectors["entries"]]
    described = FileCopy("archive", path, "log.example.com/orders")
    deliver(described, [Item(seq, body, leaf_hash(body)) for seq, body in enumerate(bodies)])
    content = path.read_bytes()
    assert f"a file of {len(content):,} bytes with the SHA-256 `{sha256(content).hexdigest()}`" in document
