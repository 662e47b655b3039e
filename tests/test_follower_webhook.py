"""Does the receiver of the webhook get all that happened, signed, whatever happens to it or to the line?"""

from __future__ import annotations

import base64
import hmac
import json
import socket
import sqlite3
import ssl
import subprocess
import threading
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from outside import (
    DAY,
    HOST,
    NOW,
    ORIGIN,
    Apart,
    Authority,
    Key,
    Line,
    Log,
    Request,
    Server,
    full_once_answered,
    item,
    items,
    kill_bringing,
    needed,
)

from bot.demo.parts import free_port
from storage.database import DatabaseDown
from storage.followers import FOLLOWERS, CopyTrouble, Item, NotReadable, Place
from storage.followers.webhook import WebhookCopy
from storage.merkle import leaf_hash

if TYPE_CHECKING:
    from pathlib import Path

SECRET = bytes(range(32))
OK = (200, {}, b"")


class Receiver(Server):
    """A receiver as Standard Webhooks wants it: checks each signature, stores, and only then says yes."""

    def __init__(self, context: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.requests: list[Request] = []
        self.entries: dict[int, Item] = {}
        self.heads: list[bytes] = []
        self.status = 200
        super().__init__(self.take, context, port)

    def take(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        """Check and store a delivery."""
        if self.status != 200:
            return self.status, {"Location": "http://127.0.0.1:1/", "Content-Type": "text/plain"}, b"x" * 1000
        headers = request.headers
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + request.body
        expected = base64.b64encode(hmac.digest(SECRET, signed, "sha256")).decode()
        assert hmac.compare_digest(headers["webhook-signature"], f"v1,{expected}")
        assert "." not in headers["webhook-id"]
        self.requests.append(request)
        lines = request.body.splitlines()
        assert json.loads(lines[0]) == {"log": ORIGIN}
        came: list[Item] = []
        for line in lines[1:]:
            told = json.loads(line)
            if "head" in told:
                self.heads.append(told["head"].encode())
                continue
            raw = line[line.index(b'"entry":') + 8 : -1]
            body = None if raw == b"null" else raw
            came.append(Item(told["seq"], body, bytes.fromhex(told["leaf_hash"])))
            assert came[-1].is_whole()
            assert body is None or json.loads(body) == told["entry"]
        return self.store(came)

    def store(self, came: list[Item]) -> tuple[int, dict[str, str], bytes]:
        """Store entries. Idempotent: what comes again is the same."""
        for got in came:
            assert self.entries.setdefault(got.seq, got).is_same(got)
        return OK


class Archive(Receiver):
    """A receiver that keeps what it gets in a SQLite file: a delivery is one transaction, and only then it says yes."""

    def __init__(self, file: Path, port: int = 0) -> None:
        self._file = file
        super().__init__(port=port)

    def store(self, came: list[Item]) -> tuple[int, dict[str, str], bytes]:
        """Store entries; 507 when there is no room for them, 409 when one is there and differs."""
        with closing(sqlite3.connect(self._file, isolation_level=None)) as archive:
            archive.execute("CREATE TABLE IF NOT EXISTS entry (seq PRIMARY KEY, leaf_hash NOT NULL, body)")
            # So little memory that what is not committed yet stands in the file already.
            archive.execute("PRAGMA cache_size = 2")
            try:
                archive.execute("BEGIN IMMEDIATE")
                for number, one in enumerate(came):
                    if number == len(came) // 2:
                        self.at("storing")
                    row = archive.execute("SELECT leaf_hash FROM entry WHERE seq = ?", [one.seq]).fetchone()
                    if row is not None and row[0] != one.leaf_hash:
                        return 409, {}, b""
                    if row is None:
                        archive.execute("INSERT INTO entry VALUES (?, ?, ?)", [one.seq, one.leaf_hash, one.body])
                archive.execute("COMMIT")
            except sqlite3.OperationalError:
                return 507, {}, b""
        self.at("stored")
        return OK


def kept(file: Path) -> list[Item]:
    """Return what stands in the archive, in the order in which it came there."""
    with closing(sqlite3.connect(file)) as archive:
        rows = archive.execute("SELECT seq, body, leaf_hash FROM entry ORDER BY rowid").fetchall()
    return [Item(*row) for row in rows]


@pytest.fixture
def receiver():
    """A receiver that is up."""
    with Receiver() as receiver:
        yield receiver


def copy_at(port: int, scheme: str = "http", seconds: float = 5.0, **more: str) -> WebhookCopy:
    """Return a copy that knows nothing yet."""
    return WebhookCopy("hook", f"{scheme}://{HOST}:{port}/breakglass?team=1", SECRET, ORIGIN, seconds=seconds, **more)


def deliver(copy: WebhookCopy, what: list[Item], head: bytes | None = None) -> int:
    """Deliver."""
    return copy.deliver(what, head, now=NOW)


# ---------------------------------------------------------------------------------------------- the plain course


def test_entries_and_heads_arrive_signed_and_byte_by_byte(receiver):
    """Stored are the entries as they are hashed, pruned ones as such, and the head as it was signed."""
    pruned = Item(2, None, item(2).leaf_hash)
    assert deliver(copy_at(receiver.port), [*items(0, 2), pruned], "note — one\n".encode()) == 2
    assert list(receiver.entries.values()) == [*items(0, 2), pruned]
    assert receiver.heads == ["note — one\n".encode()]
    (request,) = receiver.requests
    assert request.path == "/breakglass?team=1"
    assert request.headers["webhook-timestamp"] == str(int(NOW.timestamp()))
    assert request.headers["content-type"] == "application/x-ndjson"
    assert request.headers["host"] == f"{HOST}:{receiver.port}"


def test_a_repeated_delivery_has_the_same_id_and_a_new_time(receiver):
    """A receiver can tell a delivery that comes again from a new one, and an old one that somebody replays."""
    copy = copy_at(receiver.port)
    copy.deliver(items(0, 3), None, now=NOW)
    copy.deliver(items(0, 3), None, now=NOW + DAY)
    copy.deliver(items(0, 4), None, now=NOW + DAY)
    ids = [request.headers["webhook-id"] for request in receiver.requests]
    assert ids[0] == ids[1] != ids[2]
    assert len({request.headers["webhook-timestamp"] for request in receiver.requests}) == 2


def test_a_heartbeat_is_a_head_alone(receiver):
    """A head comes without entries too, and nothing at all is not sent."""
    deliver(copy_at(receiver.port), [], b"note\n")
    deliver(copy_at(receiver.port), [])
    assert receiver.heads == [b"note\n"]
    assert len(receiver.requests) == 1


def test_it_says_that_it_cannot_be_read():
    """Nobody takes a webhook for a copy to compare with."""
    copy = copy_at(1)
    for ask in (copy.position, copy.read):
        with pytest.raises(NotReadable):
            ask()


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (301, "redirects"),
        (307, "redirects"),
        (400, "status 400"),
        (401, "does not let the bot in"),
        (404, "right one"),
        (410, "right one"),
        (413, "so much"),
        (429, "too often"),
        (500, "in trouble itself"),
        (503, "in trouble itself"),
    ],
)
def test_no_other_status_acknowledges(receiver, status, words):
    """Only 2xx is an acknowledgement; for each other status there is a sentence, and no redirect is followed."""
    receiver.status = status
    with pytest.raises(CopyTrouble, match=words) as caught:
        deliver(copy_at(receiver.port), items(0, 1))
    assert "team" not in str(caught.value)
    receiver.status = 200
    assert deliver(copy_at(receiver.port), items(0, 1)) == 0


def test_what_a_place_says_is_not_read(receiver):
    """An answer without end does not keep the bot: the status is enough."""
    receiver.answer = lambda _: (204, {"Content-Length": str(10**12)}, b"")
    assert deliver(copy_at(receiver.port), items(0, 1)) == 0


def test_an_address_where_nobody_speaks_http_is_said():
    """Another service at the port is neither an acknowledgement nor a crash."""
    with socket.create_server((HOST, 0)) as listening:

        def answer() -> None:
            one, _ = listening.accept()
            with one:
                one.sendall(b"SSH-2.0-Something\r\n")
                one.recv(100000)

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(CopyTrouble, match="HTTP"):
            deliver(copy_at(listening.getsockname()[1]), items(0, 1))


# ---------------------------------------------------------------------------------------------- outages


def test_down_and_up_again_it_catches_up_by_itself(receiver, tmp_path):
    """Stopped for a while, and in between answering 500, the receiver gets everything in the end, each entry once."""
    with Log(tmp_path / "log.db") as log:
        copy = copy_at(receiver.port)
        runner = log.runner(copy)
        log.grow(3)
        assert log.bring(runner, "hook") is None
        receiver.stop()
        log.grow(2)
        assert "does not answer" in log.bring(runner, "hook")
        log.grow(700)
        assert "does not answer" in log.bring(runner, "hook")
        receiver.start()
        receiver.status = 500
        assert "status 500" in log.bring(runner, "hook")
        receiver.status = 200
        assert log.bring(runner, "hook") is None
        assert list(receiver.entries.values()) == log.entries()
        sent = [line for request in receiver.requests for line in request.body.splitlines() if b'"seq"' in line]
        assert len(sent) == 705
        assert runner.lag(log.clock)[0].entries == 0


@pytest.mark.parametrize("way", ["up", "down"])
def test_cut_in_the_middle_nothing_is_lost(receiver, way):
    """Wherever the line breaks, what was not acknowledged comes again, and the receiver has each entry once."""
    with Line(receiver.port) as line:
        copy = copy_at(line.port)
        deliver(copy, items(0, 4))
        whole = line.carried[0 if way == "up" else 1]
        for limit in (1, whole // 3, whole - 1):
            setattr(line, way, limit)
            if way == "up" or limit < 10:  # the status line is an acknowledgement, though the rest is missing
                with pytest.raises(CopyTrouble):
                    deliver(copy, items(0, 4))
            line.heal()
            assert deliver(copy, items(0, 4)) == 3
    assert list(receiver.entries.values()) == items(0, 4)


@pytest.mark.parametrize("moment", ["storing", "stored"])
def test_a_receiver_killed_in_the_middle_loses_nothing_and_doubles_nothing(tmp_path, moment):
    """SIGKILL in the middle of its writing, or before its answer: restarted, it gets what it lacks, each entry once."""
    file = tmp_path / "archive.db"
    with Log(tmp_path / "log.db") as log, Apart(lambda port: Archive(file, port)) as place:
        runner = log.runner(copy_at(place.port))
        for turn in range(2):
            log.grow(3)
            assert log.bring(runner, "hook") is None
            acknowledged = log.entries()
            place.kill()
            place.start(dies=moment)
            log.grow(200)
            assert "broke the connection off" in log.bring(runner, "hook")
            place.died()
            # The one before its answer had stored all of it, which nobody knew; the other one none of it.
            assert kept(file) == (log.entries() if moment == "stored" else acknowledged)
            assert runner.lag(log.clock)[0].entries == 200
            place.start()
            assert log.bring(runner, "hook") is None
            assert kept(file) == log.entries()
            assert runner.lag(log.clock)[0].entries == 0
            assert len(kept(file)) == 203 * (turn + 1)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_bot_killed_in_the_middle_of_a_delivery_loses_nothing_and_doubles_nothing(tmp_path, moment):
    """SIGKILL before or after the receiver stored it: the next bot does not wait for its ghost, and brings the rest."""
    key, file = Key(), tmp_path / "log.db"
    with Archive(tmp_path / "archive.db") as archive:
        with Log(file, key) as log:
            log.grow(3)
            assert log.bring(log.runner(copy_at(archive.port)), "hook") is None
            log.grow(20)
        at = NOW + timedelta(minutes=3)
        kill_bringing(file, key, copy_at(archive.port), at, archive, is_late=moment == "after")
        with Log(file, key) as log:
            log.clock = at - timedelta(minutes=2)  # so that the dead bot's claim still stands at the next try
            runner = log.runner(copy_at(archive.port))
            assert len(kept(tmp_path / "archive.db")) == (23 if moment == "after" else 3)
            assert runner.lag(log.clock)[0].entries == 20
            assert log.bring(runner, "hook") is None
            assert kept(tmp_path / "archive.db") == log.entries()
            assert runner.lag(log.clock)[0].entries == 0


def test_a_full_disk_at_the_receiver_acknowledges_nothing_and_goes_on_when_there_is_room(tmp_path):
    """The kernel refuses it the room: it says 507, nothing of the delivery stays, and the next try brings all of it."""
    file = tmp_path / "archive.db"
    with Log(tmp_path / "log.db") as log, Apart(lambda port: Archive(file, port)) as place:
        runner = log.runner(copy_at(place.port))
        log.grow(3)
        assert log.bring(runner, "hook") is None
        place.room(file.stat().st_size + 8192)
        log.grow(200)
        for _ in range(2):
            assert "status 507" in log.bring(runner, "hook")
            assert runner.lag(log.clock)[0].entries == 200
            assert kept(file) == log.entries()[:3]
        place.room()
        assert log.bring(runner, "hook") is None
        assert kept(file) == log.entries()
        assert runner.lag(log.clock)[0].entries == 0


def test_a_full_disk_here_once_it_was_delivered_loses_nothing_and_doubles_nothing(tmp_path):
    """What the receiver took and the bot could not note comes again when there is room, and is known there."""
    with Log(tmp_path / "log.db") as log, Archive(tmp_path / "archive.db") as archive:
        copy = copy_at(archive.port)
        runner = log.runner(copy)
        log.grow(30)
        with full_once_answered(copy), pytest.raises(DatabaseDown):
            log.bring(runner, "hook")
        assert runner.lag(log.clock)[0].entries == 30
        log.grow(2)
        assert log.bring(runner, "hook") is None
        assert kept(tmp_path / "archive.db") == log.entries()
        assert runner.lag(log.clock)[0].entries == 0


def test_a_silent_receiver_does_not_keep_the_bot(receiver):
    """A place that takes the connection and says nothing is given up after the time that is set."""
    with Line(receiver.port) as line:
        line.is_silent = True
        with pytest.raises(CopyTrouble, match="in time"):
            deliver(copy_at(line.port, seconds=0.2), items(0, 1))


def test_a_dripping_receiver_does_not_keep_the_bot():
    """A place that sends a byte now and then, for ever, is given up too: the deadline is for all of it."""
    stopped = threading.Event()
    with socket.create_server((HOST, 0)) as listening:

        def drip() -> None:
            one, _ = listening.accept()
            with one:
                one.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                while not stopped.wait(0.02):
                    one.sendall(b"x")

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        with pytest.raises(CopyTrouble, match="in time"):
            deliver(copy_at(listening.getsockname()[1], seconds=0.3), items(0, 1))
        stopped.set()


# ---------------------------------------------------------------------------------------------- TLS


def test_tls_is_checked_against_the_ca_file(tmp_path):
    """The right authority is accepted; another authority, another host and an expired certificate are refused."""
    authority, other = Authority(tmp_path), Authority(tmp_path, "other authority")
    cases = [
        (authority.issue("good"), authority.file, None),
        (authority.issue("strange"), other.file, "certificate"),
        (authority.issue("elsewhere", hosts=("elsewhere.example.com",)), authority.file, "certificate"),
        (authority.issue("expired", ttl=-timedelta(hours=1)), authority.file, "expired"),
    ]
    for (certificate, key), ca_file, words in cases:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        with Receiver(context) as receiver:
            copy = copy_at(receiver.port, "https", ca_file=str(ca_file))
            if words is None:
                assert deliver(copy, items(0, 2)) == 1
                assert list(receiver.entries.values()) == items(0, 2)
                continue
            with pytest.raises(CopyTrouble, match=words):
                deliver(copy, items(0, 2))
            assert not receiver.entries


# ---------------------------------------------------------------------------------------------- from the policy


def test_openssl_confirms_the_signature(receiver, tmp_path):
    """A receiver who has only openssl comes to the same signature."""
    deliver(copy_at(receiver.port), items(0, 2))
    headers, body = receiver.requests[0].headers, receiver.requests[0].body
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    told = subprocess.run(
        [needed("openssl", "openssl"), "mac", "-digest", "SHA256", "-macopt", f"hexkey:{SECRET.hex()}", "HMAC"],
        input=signed,
        capture_output=True,
        check=True,
    )
    assert base64.b64encode(bytes.fromhex(told.stdout.decode().strip())).decode() == headers["webhook-signature"][3:]


def built(url: str, secret: str | None) -> WebhookCopy:
    """Build it as the policy does."""
    environment = {} if secret is None else {"HOOK_SECRET": secret}
    return FOLLOWERS["webhook"].build(Place("hook", ORIGIN, {"url": url, "secret_env": "HOOK_SECRET"}, environment))


def test_it_is_built_from_the_policy_and_the_secret_stays_in_the_environment(receiver):
    """With or without its prefix the secret is the one that signs, and it is in no text of the copy."""
    secret = base64.b64encode(SECRET).decode()
    for spelling in (secret, f"whsec_{secret}"):
        copy = built(f"http://{HOST}:{receiver.port}/breakglass", spelling)
        assert deliver(copy, items(0, 1)) == 0
        assert secret not in repr(copy)
        assert "breakglass" not in repr(copy._web)


@pytest.mark.parametrize(
    ("url", "secret", "words"),
    [
        ("https://hook.example.com/", None, "not set"),
        ("https://hook.example.com/", "short", "24 to 64"),
        ("https://hook.example.com/", "c2hvcnQ=", "24 to 64"),
        ("https://hook.example.com/", "A" * 400, "24 to 64"),
        ("http://hook.example.com/", "A" * 44, "https"),
        ("https://me:secret@hook.example.com/", "A" * 44, "does not belong"),
        ("https://hook.example.com/a b", "A" * 44, "cannot be used"),
        ("https://hook.example.com:99999/", "A" * 44, "cannot be used"),
        ("https://hook.example.com/#part", "A" * 44, "cannot be used"),
        ("https:///path", "A" * 44, "cannot be used"),
        ("ftp://hook.example.com/", "A" * 44, "cannot be used"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(url, secret, words):
    """A secret that is missing or weak, and an unsafe address, are found when the bot starts; none is repeated."""
    with pytest.raises(CopyTrouble, match=words) as caught:
        built(url, secret)
    assert "me:secret" not in str(caught.value)
    assert not secret or secret not in str(caught.value)


def test_a_host_that_is_not_there_is_said():
    """A port where nothing listens, and a name that nobody knows, each has its sentence."""
    with pytest.raises(CopyTrouble, match="nothing listens"):
        deliver(copy_at(free_port()), items(0, 1))
    nowhere = WebhookCopy("hook", "https://nowhere.invalid/", SECRET, ORIGIN)
    with pytest.raises(CopyTrouble, match="not found"):
        deliver(nowhere, items(0, 1))


def test_the_leaf_hash_is_that_of_the_bytes(receiver):
    """Whoever hashes the bytes after “entry” gets the leaf hash, so that they can be laid beside a proof."""
    deliver(copy_at(receiver.port), items(0, 1))
    line = receiver.requests[0].body.splitlines()[1]
    assert leaf_hash(line[line.index(b'"entry":') + 8 : -1]).hex() == json.loads(line)["leaf_hash"]
