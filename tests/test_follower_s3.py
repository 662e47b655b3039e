"""Does the copy in S3 keep, locked, all that it acknowledged, and does it notice what was done to the bucket?

The server is moto's, spoken to over HTTP. What it cannot refuse is listed in ``storage/followers/s3.py``. Nor can it
show what S3 keeps when a server of its dies: moto's objects go with its process, so that only the bot is killed here.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer
from outside import HOST, ORIGIN, Apart, Key, Line, Log, full_once_answered, item, items, note_of

from bot.demo.parts import free_port
from storage.database import DatabaseDown
from storage.followers import FOLLOWERS, CopyTrouble, Item, Place
from storage.followers import s3 as s3_module
from storage.merkle import leaf_hash

if TYPE_CHECKING:
    from collections.abc import Iterator

    from storage.followers.s3 import S3Copy

LOGIN = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
RETAIN = timedelta(days=400)
LOG = Key()
numbers = itertools.count(1)


def client_at(port: int) -> Any:
    """Return a client of the server, with its administrator's rights."""
    return boto3.client(
        "s3",
        endpoint_url=f"http://{HOST}:{port}",
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )


class Server:
    """moto's server. Its objects outlive a stop: they are this process's."""

    def __init__(self, port: int = 0) -> None:
        self.port = port or free_port()
        self._server: Any = None
        self.made: Any = None
        self.start()
        self.client = client_at(self.port)

    def start(self) -> None:
        """Listen."""
        self._server = ThreadedMotoServer(ip_address=HOST, port=self.port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        """Let go of the port."""
        self._server.stop()

    def bucket(self, *, is_locked: bool = True) -> str:
        """Make a bucket."""
        name = f"evidence-{next(numbers)}"
        self.client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=is_locked)
        return name


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One server for all tests; each has a bucket of its own."""
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def bucket(server) -> str:
    """A bucket with Object Lock and nothing in it."""
    return server.bucket()


def place(port: int, bucket: str, origin: str = ORIGIN, **settings: str) -> Place:
    """Return what the policy says of the copy."""
    always = {"bucket": bucket, "prefix": "breakglass/", "retain": "400d", "region": "us-east-1"}
    return Place("worm", origin, {**always, "endpoint": f"http://{HOST}:{port}", **settings}, LOGIN)


def again(server: Server, bucket: str, port: int | None = None, **more: str) -> S3Copy:
    """Begin as a bot that was started again does: knowing nothing. Only boto3's client, slow to make, is kept."""
    copy = FOLLOWERS["s3"].build(place(port or server.port, bucket, **more))
    if port is None:
        server.made = copy._made = server.made or copy._make()
    return copy


def deliver(copy: S3Copy, what: list[Item], head: bytes | None = None) -> int:
    """Deliver, at this moment: a lock's date must be ahead."""
    return copy.deliver(what, head, now=datetime.now(UTC))


def keys(server: Server, bucket: str) -> list[str]:
    """Return the names of all versions."""
    return [one["Key"] for one in server.client.list_object_versions(Bucket=bucket).get("Versions", ())]


def put(server: Server, bucket: str, what: list[Item]) -> None:
    """Put an object as another bot would have, whatever stands before it."""
    copy = again(server, bucket)
    copy._last = what[0].seq - 1
    deliver(copy, what)


def read_all(server: Server, bucket: str, trouble: str) -> list[Item]:
    """Read to the end, where there is this trouble, and return what came before it."""
    seen: list[Item] = []
    reading = again(server, bucket).read()
    with pytest.raises(CopyTrouble, match=trouble):
        seen += iter(lambda: next(reading), None)
    return seen


# ---------------------------------------------------------------------------------------------- the plain course


def test_what_was_delivered_is_read_back_as_it_was(server, bucket):
    """Entries, pruned ones among them, and heads come back as they went in, also after a restart in between."""
    pruned = Item(2, None, item(2).leaf_hash)
    notes = [note_of(LOG, items(0, 2)), note_of(LOG, items(0, 4))]
    assert deliver(again(server, bucket), items(0, 2), notes[0]) == 1
    assert deliver(again(server, bucket), [pruned, item(3)], notes[1]) == 3
    copy = again(server, bucket)
    assert list(copy.read()) == [*items(0, 2), pruned, item(3)]
    assert list(copy.read(3)) == [item(3)]
    assert list(copy.heads()) == notes
    assert copy.position() == 3


def test_an_auditor_reads_it_with_stock_tools(server, bucket):
    """The names tell the entries, each line is an entry's bytes as they are hashed, and a head is its note."""
    note = note_of(LOG, items(0, 3))
    deliver(again(server, bucket), items(0, 3), note)
    entries, head = keys(server, bucket)
    assert entries == "breakglass/entries/000000000000/000000000000000-000000000000002.jsonl"
    assert head.startswith("breakglass/heads/000000000000003-")
    lines = server.client.get_object(Bucket=bucket, Key=entries)["Body"].read().splitlines()
    assert [leaf_hash(line) for line in lines] == [one.leaf_hash for one in items(0, 3)]
    assert [json.loads(line)["seq"] for line in lines] == [0, 1, 2]
    assert server.client.get_object(Bucket=bucket, Key=head)["Body"].read() == note


def test_each_object_is_locked_for_as_long_as_the_policy_says(server, bucket):
    """In COMPLIANCE mode, until the delivery plus “retain”; nobody may delete it, with whatever rights."""
    before = datetime.now(UTC)
    deliver(again(server, bucket), items(0, 3), note_of(LOG, items(0, 3)))
    after = datetime.now(UTC)
    for one in server.client.list_object_versions(Bucket=bucket)["Versions"]:
        at = {"Bucket": bucket, "Key": one["Key"], "VersionId": one["VersionId"]}
        lock = server.client.head_object(**at)
        assert lock["ObjectLockMode"] == "COMPLIANCE"
        assert before + RETAIN - timedelta(seconds=1) <= lock["ObjectLockRetainUntilDate"] <= after + RETAIN
        for more in ({}, {"BypassGovernanceRetention": True}):
            with pytest.raises(ClientError, match="AccessDenied"):
                server.client.delete_object(**at, **more)
    assert len(keys(server, bucket)) == 2


def test_nothing_stands_outside_before_the_first_entry(server, bucket):
    """A copy that was not begun has no position, and a head alone does not begin it."""
    copy = again(server, bucket)
    assert copy.position() is None
    assert deliver(copy, [], note_of(LOG, items(0, 1))) == -1
    assert keys(server, bucket) == []
    assert list(copy.read()) == []


def test_what_comes_again_is_not_written_again(server, bucket):
    """Delivered twice, in other batches and after a restart, each entry and each head stands there once."""
    note = note_of(LOG, items(0, 5))
    copy = again(server, bucket)
    deliver(copy, items(0, 5), note)
    assert deliver(copy, items(0, 5), note) == 4
    assert deliver(again(server, bucket), items(3, 5), note) == 4
    assert deliver(again(server, bucket), []) == 4
    assert deliver(copy, []) == 4
    assert len(keys(server, bucket)) == 2
    assert deliver(again(server, bucket), items(2, 8)) == 7
    assert deliver(copy, items(5, 9)) == 8
    assert deliver(again(server, bucket), items(0, 9)) == 8
    assert len(keys(server, bucket)) == 4
    assert list(copy.read()) == items(0, 9)


def test_an_entry_pruned_in_between_is_the_same(server, bucket):
    """What was copied whole is met again as pruned, or the other way round, and is known by its leaf hash."""
    pruned = [Item(one.seq, None, one.leaf_hash) for one in items(0, 4)]
    deliver(again(server, bucket), [item(0), pruned[1]])
    assert deliver(again(server, bucket), [pruned[0], item(1), item(2)]) == 2
    # Put under the very same name by two bots, one of which met it after it was pruned.
    copy = again(server, bucket)
    assert deliver(copy, []) == 2
    put(server, bucket, [item(3)])
    assert deliver(copy, [pruned[3]]) == 3
    assert list(again(server, bucket).read()) == [item(0), pruned[1], item(2), item(3)]


def test_the_last_entry_is_found_however_many_objects_there_are(server, bucket):
    """Whatever the number of entries in each object, the end is found, and reading begins at any entry."""
    ends, at = [], 0
    copy = again(server, bucket)
    for size in (1, 1, 2, 1, 5, 30, 500, 1, 499, 3):
        at += size
        deliver(copy, items(at - size, at, ""))
        ends.append(at - 1)
        assert again(server, bucket).position() == at - 1
    for start in (0, 1, 5, 9, 39, 40, 538, 539, 540, 541, 1039, at - 1):
        assert [one.seq for one in again(server, bucket).read(start)] == list(range(start, at))


def test_many_pages_are_listed_to_their_end(server, bucket, monkeypatch):
    """However few names a page of the listing holds, no object and no version is passed over."""
    for seq in range(7):
        deliver(again(server, bucket), items(seq, seq + 1))
    for size in (1, 2, 3):
        monkeypatch.setattr(s3_module, "_PAGE", size)
        assert list(again(server, bucket).read()) == items(0, 7)
        assert deliver(again(server, bucket), items(0, 7)) == 6
    server.client.delete_object(
        Bucket=bucket, Key="breakglass/entries/000000000000/000000000000003-000000000000003.jsonl"
    )
    for size in (1, 2, 3):
        monkeypatch.setattr(s3_module, "_PAGE", size)
        with pytest.raises(CopyTrouble, match="deleted"):
            deliver(again(server, bucket), items(0, 7))


def test_more_than_an_object_holds_becomes_several(server, bucket):
    """Whatever comes at once, no object holds more than 500 entries."""
    assert deliver(again(server, bucket), items(0, 1100, "")) == 1099
    assert len(keys(server, bucket)) == 3
    assert again(server, bucket).position() == 1099


# ---------------------------------------------------------------------------------------------- another log


def test_an_entry_that_differs_from_the_one_that_stands_there_is_refused(server, bucket):
    """A rewritten log does not get past the copy of what it was, and nothing is added."""
    copy = again(server, bucket)
    deliver(copy, items(0, 3))
    for bot in (copy, again(server, bucket)):
        with pytest.raises(CopyTrouble, match="different entry 1"):
            deliver(bot, [item(1, "changed"), item(2), item(3)])
    assert len(keys(server, bucket)) == 1


def test_a_different_object_under_the_same_name_is_refused(server, bucket):
    """When another bot has put something else under the name in the same moment, it is compared, never laid over."""
    copy = again(server, bucket)
    deliver(copy, items(0, 3))
    put(server, bucket, [item(3, "another"), item(4)])
    with pytest.raises(CopyTrouble, match="different entry 3"):
        deliver(copy, items(3, 5))
    assert len(keys(server, bucket)) == 2


def test_two_bots_that_put_the_same_agree(server, bucket):
    """The same object, put twice, is one, and both go on."""
    copy = again(server, bucket)
    deliver(copy, items(0, 3))
    put(server, bucket, items(3, 5))
    assert deliver(copy, items(3, 5)) == 4
    assert deliver(copy, items(5, 6)) == 5
    assert len(keys(server, bucket)) == 3


def test_two_bots_whose_objects_overlap_are_read_as_one_log(server, bucket):
    """Each entry is read once; where two objects differ in one, that is said after all was read."""
    put(server, bucket, items(0, 3))
    put(server, bucket, items(2, 6))
    put(server, bucket, items(3, 5))
    assert list(again(server, bucket).read()) == items(0, 6)
    assert deliver(again(server, bucket), items(1, 8)) == 7
    put(server, bucket, [item(5), item(6), item(7, "another")])
    assert read_all(server, bucket, "different entry 7") == [*items(0, 7), item(7, "another")]
    assert again(server, bucket).position() == 7


def test_another_log_does_not_go_into_the_same_place(server, bucket):
    """Neither another log's name nor another's entries are continued under the prefix."""
    deliver(again(server, bucket), items(0, 2))
    other = again(server, bucket, origin="other.example.com/log")
    with pytest.raises(CopyTrouble, match=f"of the log {ORIGIN}, not of other"):
        deliver(other, items(1, 3))
    with pytest.raises(CopyTrouble, match="different entry 0"):
        deliver(again(server, bucket), items(0, 1, "another log"))
    # Another prefix is another place.
    assert deliver(again(server, bucket, origin="other.example.com/log", prefix="other/"), items(0, 1)) == 0


def test_a_strange_object_in_the_copy_is_said(server, bucket):
    """What is no part of the copy is named, wherever it is met, and not taken for the end of the log."""
    for name in ("zzz", "zzz/a", "000000000000/b", f"000000000001/{0:015d}-{0:015d}.jsonl"):
        own = server.bucket()
        deliver(again(server, own), items(0, 2))
        server.client.put_object(Bucket=own, Key=f"breakglass/entries/{name}", Body=b"hello")
        for use in (again(server, own).position, lambda at=own: list(again(server, at).read())):
            with pytest.raises(CopyTrouble, match=f"{name}, which is no part"):
                use()


def test_another_bucket_is_noticed(server, bucket):
    """When the place is not the one that acknowledged the entries before, they are missed."""
    deliver(again(server, bucket), items(0, 2))
    with pytest.raises(CopyTrouble, match=r"ends at entry 1.*entry 4 was acknowledged"):
        deliver(again(server, bucket), items(5, 6))
    with pytest.raises(CopyTrouble, match=r"is empty.*entry 4 was acknowledged"):
        deliver(again(server, server.bucket()), items(5, 6))


# ---------------------------------------------------------------------------------------------- tampering


def test_a_deleted_object_is_found_and_still_read(server, bucket):
    """A delete hides the name and not the locked version: it is said, and the comparison still sees every entry."""
    deliver(again(server, bucket), items(0, 3))
    deliver(again(server, bucket), items(3, 5))
    for key in keys(server, bucket):
        server.client.delete_object(Bucket=bucket, Key=key)
    assert "Contents" not in server.client.list_objects_v2(Bucket=bucket)
    assert again(server, bucket).position() == 4
    with pytest.raises(CopyTrouble, match="deleted"):
        deliver(again(server, bucket), items(4, 6))
    assert read_all(server, bucket, "deleted") == items(0, 5)


def test_a_version_laid_over_an_object_is_found_and_the_first_is_read(server, bucket):
    """Whoever may put can lay other entries over the name; what counts is what was put first."""
    deliver(again(server, bucket), items(0, 3))
    (key,) = keys(server, bucket)
    forged = b"".join(one.body + b"\n" for one in items(0, 3, "forged"))
    server.client.put_object(Bucket=bucket, Key=key, Body=forged, Metadata={"origin": ORIGIN})
    with pytest.raises(CopyTrouble, match="another version over"):
        deliver(again(server, bucket), items(2, 4))
    assert read_all(server, bucket, "another version over") == items(0, 3)


def test_a_lock_that_was_weakened_is_found(server, bucket):
    """Should a server let COMPLIANCE be taken back to GOVERNANCE, as moto does, the comparison says so."""
    deliver(again(server, bucket), items(0, 3))
    (one,) = server.client.list_object_versions(Bucket=bucket)["Versions"]
    server.client.put_object_retention(
        Bucket=bucket,
        Key=one["Key"],
        VersionId=one["VersionId"],
        Retention={"Mode": "GOVERNANCE", "RetainUntilDate": datetime.now(UTC) + timedelta(days=1)},
    )
    with pytest.raises(CopyTrouble, match="GOVERNANCE"):
        deliver(again(server, bucket), items(2, 4))


def test_what_is_missing_in_between_is_said_and_what_is_missing_before_is_not(server, bucket):
    """Objects may go when their time is over, the oldest first; a hole in the middle is no such thing."""
    put(server, bucket, items(10, 13))
    assert list(again(server, bucket).read()) == items(10, 13)
    assert deliver(again(server, bucket), items(12, 14)) == 13
    put(server, bucket, items(20, 22))
    assert read_all(server, bucket, "lacks entries 14 to 19") == [*items(10, 14), *items(20, 22)]
    with pytest.raises(CopyTrouble, match="lacks entry 14"):
        deliver(again(server, bucket), items(13, 23))


def test_an_object_that_does_not_hold_what_its_name_says_is_damage(server, bucket):
    """Lines too few, too many, empty, or without an end are no entries."""
    until = datetime.now(UTC) + RETAIN
    for body in (b"", b"{}\n", b"{}\n{}\n{}\n", b"{}\n{}", b"{}\n\n"):
        name = server.bucket()
        server.client.put_object(
            Bucket=name,
            Key="breakglass/entries/000000000000/000000000000000-000000000000001.jsonl",
            Body=body,
            Metadata={"origin": ORIGIN},
            ChecksumAlgorithm="SHA256",
            ObjectLockMode="COMPLIANCE",
            ObjectLockRetainUntilDate=until,
        )
        for use in (
            lambda at=name: list(again(server, at).read()),
            lambda at=name: deliver(again(server, at), items(0, 2)),
        ):
            with pytest.raises(CopyTrouble, match="does not hold"):
                use()


# ---------------------------------------------------------------------------------------------- outages


def test_down_and_up_again_it_catches_up_by_itself(server, bucket, tmp_path):
    """Stopped for a while, the bucket gets everything in the end, each entry and each head once."""
    with Log(tmp_path / "log.db") as log:
        copy = again(server, bucket)
        runner = log.runner(copy)
        log.clock = datetime.now(UTC)
        log.grow(3)
        assert log.bring(runner, "worm") is None
        server.stop()
        log.grow(2)
        assert "does not answer" in log.bring(runner, "worm")
        log.grow(700)
        server.start()
        assert log.bring(runner, "worm") is None
        log.beat()
        assert log.bring(runner, "worm") is None
        assert list(copy.read()) == log.entries()
        heads = list(copy.heads())
        assert [note.split(b"\n")[1] for note in heads] == [b"3", b"5", b"705", b"705"]
        assert len(set(heads)) == 4
        assert runner.lag(log.clock)[0].entries == 0


@pytest.mark.parametrize(("way", "limits"), [("up", (1, 100, 200, 300)), ("down", (1, 300, 600, 900, 2000))])
def test_cut_anywhere_nothing_is_lost_and_nothing_doubled(server, bucket, way, limits):
    """Whatever request the line breaks in, putting or reading back, the next try finds what stands and goes on."""
    with Line(server.port) as line:
        at = 0
        for limit in limits:
            copy = again(server, bucket, line.port)
            setattr(line, way, limit)
            with suppress(CopyTrouble):  # a second try of the library's own may have been enough
                deliver(copy, items(at, at + 5))
            line.heal()
            assert deliver(again(server, bucket, line.port), items(at, at + 6)) == at + 5
            at += 6
    assert list(again(server, bucket).read()) == items(0, at)
    assert len(keys(server, bucket)) <= 12


_WRITER = """
import sys
sys.path.insert(0, {tests!r})
from datetime import UTC, datetime
from outside import items
from storage.followers import FOLLOWERS, Place
copy = FOLLOWERS["s3"].build(Place("worm", {place.origin!r}, {settings!r}, {place.environment!r}))
at = int(sys.argv[1])
print("ready", flush=True)
while True:
    got = copy.deliver(items(at, at + 20), None, now=datetime.now(UTC))
    print(got, flush=True)
    at = got + 1
"""


def test_killed_again_and_again_while_putting_it_keeps_what_it_acknowledged(server, bucket):
    """SIGKILL between putting, reading back and noting: no acknowledged entry is missing, none is doubled."""
    told = place(server.port, bucket)
    code = _WRITER.format(tests=str(Path(__file__).parent), place=told, settings=dict(told.settings))
    acknowledged = -1
    for turn in range(3):
        # The cursor may be behind what stands there, in any way.
        start = max(0, acknowledged - 7)
        with subprocess.Popen(
            [sys.executable, "-c", code, str(start)], stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent
        ) as writer:
            assert writer.stdout.readline() == b"ready\n"
            for _ in range(turn % 3 + 1):
                acknowledged = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            acknowledged = max([acknowledged, *map(int, writer.stdout.read().split())])
        there = list(again(server, bucket).read())
        assert there == items(0, len(there))
        assert len(there) > acknowledged
    held = [key.split("/")[-1].split(".")[0].split("-") for key in sorted(keys(server, bucket))]
    spans = [(int(first), int(last)) for first, last in held]
    assert all(one[1] + 1 == two[0] for one, two in itertools.pairwise(spans))


def test_a_full_disk_at_the_server_acknowledges_nothing_and_goes_on_when_there_is_room(tmp_path):
    """The kernel refuses the server an object's file: nothing of it stands, and the next try brings all of it."""

    def make(port: int) -> Server:
        os.environ["MOTO_S3_DEFAULT_KEY_BUFFER_SIZE"] = "64"  # what is larger goes to the disk at once
        return Server(port)

    with Apart(make) as apart, Log(tmp_path / "log.db") as log:
        apart.client = client_at(apart.port)
        bucket = Server.bucket(apart)
        copy = again(apart, bucket, apart.port)
        runner = log.runner(copy)
        log.clock = datetime.now(UTC)
        log.grow(3)
        assert log.bring(runner, "worm") is None
        log.grow(20)
        for room in (0, 1000):
            apart.room(room)
            assert "in trouble itself (500)" in log.bring(runner, "worm")
            assert runner.lag(log.clock)[0].entries == 20
        apart.room()
        assert list(again(apart, bucket, apart.port).read()) == log.entries()[:3]
        assert log.bring(runner, "worm") is None
        assert list(again(apart, bucket, apart.port).read()) == log.entries()
        assert len(keys(apart, bucket)) == 4
        assert runner.lag(log.clock)[0].entries == 0


def test_a_full_disk_here_once_it_was_put_loses_nothing_and_doubles_nothing(server, bucket, tmp_path):
    """What was put and the bot could not note is met there when there is room, compared, and not put again."""
    with Log(tmp_path / "log.db") as log:
        copy = again(server, bucket)
        runner = log.runner(copy)
        log.clock = datetime.now(UTC)
        log.grow(30)
        with full_once_answered(copy), pytest.raises(DatabaseDown):
            log.bring(runner, "worm")
        assert runner.lag(log.clock)[0].entries == 30
        assert len(keys(server, bucket)) == 2
        log.grow(2)
        assert log.bring(runner, "worm") is None
        assert list(again(server, bucket).read()) == log.entries()
        assert len(keys(server, bucket)) == 4
        assert runner.lag(log.clock)[0].entries == 0


def test_bytes_that_change_on_their_way_back_are_not_acknowledged(server, bucket):
    """What is read back is checked against its checksum and against what was put."""
    with Line(server.port) as line:
        copy = again(server, bucket, line.port)
        line.change = lambda piece: piece.replace(b"checkout is down", b"checkout is fine")
        with pytest.raises(CopyTrouble, match=r"checksum|comes back different"):
            deliver(copy, items(0, 2))
        line.change = bytes
        assert deliver(copy, items(0, 2)) == 1


# ---------------------------------------------------------------------------------------------- trouble in words


def test_a_bucket_without_lock_takes_nothing(server):
    """A bucket that was made without Object Lock is refused with what to do, and stays empty."""
    name = server.bucket(is_locked=False)
    with pytest.raises(CopyTrouble, match="must be made with Object Lock"):
        deliver(again(server, name), items(0, 1))
    assert keys(server, name) == []


def test_what_is_not_there_is_said(server):
    """A bucket that does not exist, a server that does not answer, and credentials that are missing have sentences."""
    with pytest.raises(CopyTrouble, match="is not there"):
        deliver(again(server, "no-such-bucket"), items(0, 1))
    with pytest.raises(CopyTrouble, match="does not answer"):
        deliver(again(server, "no-such-bucket", free_port()), items(0, 1))


def test_without_credentials_it_says_which(server, bucket, monkeypatch):
    """Where neither the bot's environment nor anything else gives credentials, the variables are named."""
    for name in (*LOGIN, "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "missing")
    monkeypatch.setenv("AWS_CONFIG_FILE", "missing")
    settings = place(server.port, bucket).settings
    with pytest.raises(CopyTrouble, match="AWS_ACCESS_KEY_ID"):
        deliver(FOLLOWERS["s3"].build(Place("worm", ORIGIN, settings, {})), items(0, 1))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("AccessDenied", "follower setup worm"),
        ("ExpiredToken", "renew them"),
        ("RequestTimeTooSkewed", "clock is wrong"),
        ("SlowDown", "by itself"),
        ("InvalidRequest", "Object Lock"),
        ("Some\nthing <odd>", "refuses: Somethingodd"),
        ("", "does not say why"),
    ],
)
def test_each_refusal_of_s3_has_words_for_the_night(server, bucket, code, words):
    """S3's codes become sentences that say what to do, without S3's own text."""
    assert words in again(server, bucket)._say_refusal(code)


# ---------------------------------------------------------------------------------------------- from the policy


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"retain": "400"}, "number of days"),
        ({"retain": "0d"}, "number of days"),
        ({"retain": "99999d"}, "number of days"),
        ({"retain": "1y"}, "number of days"),
        ({"bucket": "Evidence"}, "no bucket's name"),
        ({"bucket": "a/b"}, "no bucket's name"),
        ({"prefix": "breakglass"}, "must end with a slash"),
        ({"prefix": "/breakglass/"}, "must end with a slash"),
        ({"endpoint": "http://s3.example.com"}, "https"),
        ({"endpoint": "https://me:secret@s3.example.com"}, "does not belong"),
        ({"ca_file": "/nowhere/ca.pem"}, "cannot be read"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(settings, words):
    """Found when the bot starts, with a sentence for each."""
    with pytest.raises(CopyTrouble, match=words) as caught:
        FOLLOWERS["s3"].build(place(1, **{"bucket": "evidence", **settings}))
    assert "me:secret" not in str(caught.value)


def test_without_boto3_it_says_what_to_install(monkeypatch):
    """The package is optional, and missed only by whoever names an S3 copy."""
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(CopyTrouble, match="pip install"):
        FOLLOWERS["s3"].build(place(1, "evidence"))


def test_setup_prints_rights_that_can_neither_delete_nor_shorten():
    """The printed policy is JSON, names this bucket and prefix only, and grants no more than the copy uses."""
    printed = FOLLOWERS["s3"].setup(place(1, "evidence", region="eu-central-1"))
    assert "--object-lock-enabled-for-bucket" in printed
    assert "LocationConstraint=eu-central-1" in printed
    policy = json.loads(printed[printed.index("{") : printed.rindex("}") + 1])
    objects, listing = policy["Statement"]
    assert objects["Resource"] == "arn:aws:s3:::evidence/breakglass/*"
    assert listing == {"Effect": "Allow", "Action": "s3:ListBucketVersions", "Resource": "arn:aws:s3:::evidence"}
    assert not any("Delete" in action or "Bypass" in action or "*" in action for action in objects["Action"])


def test_credentials_are_in_no_text_of_the_copy(server, bucket):
    """Neither the copy's text nor a sentence about it holds a key."""
    settings = place(free_port(), bucket).settings
    environment = {"AWS_ACCESS_KEY_ID": "AKIAKEEPOUT", "AWS_SECRET_ACCESS_KEY": "keep-me-secret"}
    copy = FOLLOWERS["s3"].build(Place("worm", ORIGIN, settings, environment))
    with pytest.raises(CopyTrouble) as caught:
        deliver(copy, items(0, 1))
    for text in (repr(copy), str(caught.value)):
        assert "KEEPOUT" not in text
        assert "keep-me" not in text
