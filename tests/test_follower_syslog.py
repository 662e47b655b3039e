"""Does a real rsyslogd get every entry over TLS, whatever happens to it or to the line?

The receiver is Debian's rsyslogd with GnuTLS, set up with what ``breakglass follower setup`` prints; each test has one
of its own.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import signal
import subprocess
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from outside import HOST, NOW, ORIGIN, Authority, Key, Line, Log, item, items, needed, note_of

from bot.demo.parts import free_port
from storage.followers import FOLLOWERS, CopyTrouble, Item, NotReadable, Place
from storage.followers.syslog import SyslogCopy

if TYPE_CHECKING:
    from collections.abc import Iterator

MESSAGE = re.compile(rb"<109>1 (\S+) (\S+) (\S+) (\S+) (\S+) (\[(?:[^\]\\]|\\.)*\])(?: (.*))?", re.DOTALL)
PARAM = re.compile(r'(\w+)="((?:[^"\\\]]|\\.)*)"')


class Rsyslogd:
    """A receiver in a folder: started, stopped, killed. ``entries`` are what stands in its file."""

    def __init__(self, folder: Path, certificate: Path, key: Path, ca_file: Path, *, auth: str = "anon") -> None:
        self._program = needed("rsyslogd", "rsyslog")
        modules = list(Path("/usr/lib").glob("*/rsyslog/lmnsd_gtls.so"))
        assert modules, "this test needs rsyslog's GnuTLS driver: apt-get install rsyslog-gnutls"
        self._folder = folder
        self.port = free_port()
        self.file = folder / "breakglass.log"
        self._config = folder / "rsyslog.conf"
        printed = FOLLOWERS["syslog"].setup(place(self.port))
        for path, own in (
            ("/etc/rsyslog/ca.pem", ca_file),
            ("/etc/rsyslog/cert.pem", certificate),
            ("/etc/rsyslog/key.pem", key),
            ("/var/log/breakglass.log", self.file),
        ):
            assert path in printed
            printed = printed.replace(path, str(own))
        # This test's own: loopback only, its own folder, and no waiting for the disk, which nobody pulls out here.
        printed = printed.replace('sync="on"', 'sync="off"')
        printed = printed.replace('input(type="imtcp"', f'input(type="imtcp" address="{HOST}"')
        printed = printed.replace('streamDriver.authMode="anon"', f'streamDriver.authMode="{auth}"')
        self._config.write_text(f'global(workDirectory="{folder}")\n{printed}')
        self._running: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it and wait until it listens."""
        command = [self._program, "-n", "-C", "-f", str(self._config), "-i", str(self._folder / "pid")]
        with (self._folder / "said").open("ab") as said:
            self._running = subprocess.Popen(command, stdout=said, stderr=said)
        late = time.monotonic() + 30
        needle = f"{self.port:04X} 00000000:0000 0A"
        while needle not in Path("/proc/net/tcp").read_text():
            assert self._running.poll() is None, (self._folder / "said").read_text()
            assert time.monotonic() < late
            time.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        """Send a signal, and for one that ends it wait until it has ended."""
        self._running.send_signal(number)
        if number in {signal.SIGKILL, signal.SIGTERM}:
            self._running.wait()

    def close(self) -> None:
        """End it."""
        if self._running.poll() is None:
            self._running.kill()
        self._running.wait()

    def messages(self) -> list[tuple[dict[str, str], bytes]]:
        """Return the whole messages that stand in the file: event and parameters, and the text."""
        found = []
        lines = self.file.read_bytes().split(b"\n")[:-1] if self.file.exists() else []
        for line in lines:
            message = MESSAGE.search(line)
            if message is None:
                continue  # the end of a file whose writer was killed
            data = {name: re.sub(r"\\(.)", r"\1", value) for name, value in PARAM.findall(message[6].decode())}
            found.append(({"event": message[5].decode(), "at": message[1].decode(), **data}, message[7] or b""))
        return found

    def entries(self) -> list[Item]:
        """Return the entries, one for each number; what came twice must be the same."""
        found: dict[int, Item] = {}
        for data, text in self.messages():
            if data["event"] != "log:head":
                seq = int(data["seq"])
                got = Item(seq, None if data.get("pruned") else text, bytes.fromhex(data["leafHash"]))
                if got.is_whole():  # not the last line before a kill
                    assert found.setdefault(seq, got) == got
        return [found[seq] for seq in sorted(found)]

    def until(self, wanted: list[Item]) -> None:
        """Wait until these entries stand there, and no others."""
        late = time.monotonic() + 30
        while self.entries() != wanted:
            assert time.monotonic() < late, (len(self.entries()), len(wanted))
            time.sleep(0.01)


def place(port: int, **settings: str) -> Place:
    """Return what the policy says of the copy."""
    return Place("siem", ORIGIN, {"host": HOST, "port": str(port), **settings}, {})


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """Who issued the receiver's certificate."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def receiver(tmp_path, authority) -> Iterator[Rsyslogd]:
    """A receiver that is up."""
    receiver = Rsyslogd(tmp_path, *authority.issue("receiver", hosts=(HOST,)), authority.file)
    yield receiver
    receiver.close()


def copy_at(port: int, authority: Authority, seconds: float = 10.0) -> SyslogCopy:
    """Return a copy that knows nothing yet."""
    return SyslogCopy("siem", HOST, port, ORIGIN, ca_file=str(authority.file), seconds=seconds)


def deliver(copy: SyslogCopy, what: list[Item], head: bytes | None = None) -> int:
    """Deliver."""
    return copy.deliver(what, head, now=NOW)


# ---------------------------------------------------------------------------------------------- the plain course


def test_entries_and_heads_arrive_byte_by_byte(receiver, authority):
    """A real receiver stores the bytes that are hashed, with number, hash and request as structured data."""
    copy = copy_at(receiver.port, authority)
    pruned = Item(2, None, item(2).leaf_hash)
    long = item(3, "é" * 25_000)
    note = note_of(Key(), items(0, 2))
    assert deliver(copy, [*items(0, 2), pruned, long], note) == 3
    receiver.until([*items(0, 2), pruned, long])
    data, text = receiver.messages()[0]
    assert data == {
        "event": "request:open",
        "at": "2026-03-01T02:00:00Z",
        "origin": ORIGIN,
        "seq": "0",
        "leafHash": item(0).leaf_hash.hex(),
        "request": "BG-0",
    }
    late = time.monotonic() + 30
    while len(receiver.messages()) < 5:
        assert time.monotonic() < late
    data, text = receiver.messages()[4]
    assert (data["event"], data["size"]) == ("log:head", "2")
    assert base64.b64decode(text) == note


def test_what_would_break_out_of_the_structured_data_is_escaped(authority, receiver):
    """A log's name with quotes, backslashes and brackets stays inside its parameter."""
    copy = SyslogCopy("siem", HOST, receiver.port, 'a b/"]\\[x="1', ca_file=str(authority.file))
    deliver(copy, items(0, 1))
    receiver.until(items(0, 1))
    assert receiver.messages()[0][0]["origin"] == 'a b/"]\\[x="1'


def test_it_says_that_it_cannot_be_read(authority):
    """Nobody takes a syslog receiver for a copy to compare with."""
    copy = copy_at(1, authority)
    for ask in (copy.position, copy.read):
        with pytest.raises(NotReadable):
            ask()


# ---------------------------------------------------------------------------------------------- outages


def test_down_and_up_again_it_catches_up_by_itself(receiver, authority, tmp_path):
    """Stopped for a while, the receiver gets everything in the end."""
    with Log(tmp_path / "log.db") as log:
        runner = log.runner(copy_at(receiver.port, authority))
        log.grow(3)
        assert log.bring(runner, "siem") is None
        receiver.send(signal.SIGTERM)
        log.grow(2)
        assert "does not answer" in log.bring(runner, "siem")
        log.grow(300)
        assert "does not answer" in log.bring(runner, "siem")
        receiver.start()
        assert log.bring(runner, "siem") is None
        receiver.until(log.entries())
        assert runner.lag(log.clock)[0].entries == 0


def test_restarted_between_two_deliveries_what_it_may_have_lost_comes_again(receiver, authority):
    """A connection that ended in the meantime is noticed before anything is sent into it, and the newest come again."""
    copy = copy_at(receiver.port, authority)
    deliver(copy, items(0, 5))
    receiver.until(items(0, 5))
    receiver.send(signal.SIGKILL)
    receiver.file.unlink()  # as if it had read them and stored nothing
    receiver.start()
    assert deliver(copy, items(5, 7)) == 6
    receiver.until(items(0, 7))


def test_a_heartbeat_finds_out_that_the_receiver_was_restarted(receiver, authority):
    """A quiet night does not leave a lost entry lost: the next head brings it again."""
    copy = copy_at(receiver.port, authority)
    deliver(copy, items(0, 2))
    receiver.until(items(0, 2))
    receiver.send(signal.SIGKILL)
    receiver.file.unlink()
    receiver.start()
    copy.deliver([], note_of(Key(), items(0, 2)), now=NOW + timedelta(minutes=5))
    receiver.until(items(0, 2))


def test_killed_again_and_again_in_the_middle_nothing_acknowledged_is_lost(receiver, authority):
    """SIGKILL while entries are on their way, many times over: in the end each stands there, whole."""
    copy = copy_at(receiver.port, authority)
    at, turns = 0, 0
    while turns < 4:
        child = os.fork()
        if not child:  # kills while this process delivers
            time.sleep(0.01 * turns)
            os.kill(receiver._running.pid, signal.SIGKILL)
            os._exit(0)
        try:
            while True:
                at = deliver(copy, items(at, at + 20, "x" * 3000)) + 1
        except CopyTrouble:
            turns += 1
        os.waitpid(child, 0)
        receiver._running.wait()
        receiver.start()
    at = deliver(copy, items(at, at + 20, "x" * 3000)) + 1
    receiver.until(items(0, at, "x" * 3000))


@pytest.mark.parametrize("part", [0.01, 0.5, 0.9])
def test_cut_in_the_middle_everything_comes_again(receiver, authority, part):
    """A line that breaks in the middle leaves no half message, and what comes next brings all of them.

    Also when nobody noticed: the machine in between may have taken all before it broke off.
    """
    with Line(receiver.port) as line:
        copy = copy_at(line.port, authority)
        deliver(copy, items(0, 50, "x" * 2000))
        size = line.carried[0]
        copy = copy_at(line.port, authority)
        line.up = int(size * part)
        at = 50
        with contextlib.suppress(CopyTrouble):
            at = deliver(copy, items(50, 100, "x" * 2000)) + 1
        late = time.monotonic() + 30
        while not line.is_broken:
            assert time.monotonic() < late
            time.sleep(0.01)
        line.heal()
        assert deliver(copy, items(at, 101, "x" * 2000)) == 100
        receiver.until(items(0, 101, "x" * 2000))


def test_a_receiver_that_hangs_acknowledges_nothing_and_does_not_keep_the_bot(receiver, authority):
    """Stopped by a signal it takes no more than the buffers hold; that is no acknowledgement, and it ends in time."""
    what = items(0, 400, "x" * 50_000)
    copy = copy_at(receiver.port, authority, seconds=0.5)
    deliver(copy, items(0, 1, "x" * 50_000))
    receiver.send(signal.SIGSTOP)
    with pytest.raises(CopyTrouble, match="in time"):
        deliver(copy, what)
    with pytest.raises(CopyTrouble, match="in time"):  # it takes the connection, and says nothing
        deliver(copy, what)
    receiver.send(signal.SIGCONT)
    assert deliver(copy_at(receiver.port, authority), what[:50]) == 49
    late = time.monotonic() + 30
    while len(there := receiver.entries()) < 50:  # and those of the try before that were on their way
        assert time.monotonic() < late
        time.sleep(0.01)
    assert there == what[: len(there)]


def test_a_full_disk_at_the_receiver_loses_nothing(receiver, authority):
    """A real receiver drops what it cannot write; restarted when there is room, it gets all of that again."""
    copy = copy_at(receiver.port, authority)
    receiver.file.symlink_to("/dev/full")
    deliver(copy, items(0, 30))
    deliver(copy, items(30, 40))
    receiver.send(signal.SIGTERM)
    receiver.file.unlink()
    receiver.start()
    deliver(copy, items(40, 45))
    receiver.until(items(0, 45))


def test_what_was_sent_long_ago_is_not_kept(receiver, authority):
    """After a quarter of an hour, a thousand messages or eight megabytes, what is kept to come again is let go."""
    copy = copy_at(receiver.port, authority)
    copy.deliver(items(0, 10), None, now=NOW)
    copy.deliver(items(10, 12), None, now=NOW + timedelta(minutes=14))
    assert len(copy._newest) == 12
    copy.deliver(items(12, 13), None, now=NOW + timedelta(minutes=16))
    assert len(copy._newest) == 3
    copy.deliver(items(13, 1013), None, now=NOW + timedelta(minutes=16))
    assert len(copy._newest) == 1000
    copy.deliver(items(1013, 1200, "x" * 50_000), None, now=NOW + timedelta(minutes=16))
    assert copy._newest_bytes == sum(len(frame) for _, frame in copy._newest) <= 8 * 1024 * 1024
    assert len(copy._newest) > 100


# ---------------------------------------------------------------------------------------------- TLS


def test_the_receivers_certificate_is_checked(receiver, tmp_path, authority):
    """Another authority and another host are refused, and not an entry is sent."""
    other = Authority(tmp_path, "other authority")
    for settings in (
        {"ca_file": str(other.file)},
        {},  # the system's authorities
        {"ca_file": str(authority.file), "host": "localhost"},  # its certificate says 127.0.0.1
    ):
        with pytest.raises(CopyTrouble, match="not accepted"):
            deliver(FOLLOWERS["syslog"].build(place(receiver.port, **settings)), items(0, 1))
    copy = FOLLOWERS["syslog"].build(place(receiver.port, ca_file=str(authority.file)))
    assert deliver(copy, items(1, 2)) == 1
    receiver.until(items(1, 2))


def test_an_expired_certificate_is_said(tmp_path, authority):
    """The sentence names what the person on call has to renew."""
    receiver = Rsyslogd(tmp_path, *authority.issue("expired", ttl=-timedelta(hours=1)), authority.file)
    with pytest.raises(CopyTrouble, match=r"expired\. Renew it there"):
        deliver(copy_at(receiver.port, authority), items(0, 1))
    receiver.close()


def test_the_bots_own_certificate_is_shown_where_it_is_asked_for(tmp_path, authority):
    """A receiver that wants to know its senders takes entries under the bot's certificate, and none without one."""
    receiver = Rsyslogd(tmp_path, *authority.issue("receiver"), authority.file, auth="x509/certvalid")
    certificate, key = authority.issue("bot")
    nobody = copy_at(receiver.port, authority)
    # The receiver looks at the certificate after the handshake, so its refusal may follow the first bytes; syslog has
    # no acknowledgement that could tell. The broken connection is seen at a later delivery, and all of it comes again.
    with pytest.raises(CopyTrouble):  # noqa: PT012 - whichever delivery it is
        for _ in range(100):
            deliver(nobody, items(0, 1))
            time.sleep(0.02)
    assert receiver.entries() == []
    settings = {"ca_file": str(authority.file), "cert_file": str(certificate), "key_file": str(key)}
    assert deliver(FOLLOWERS["syslog"].build(place(receiver.port, **settings)), items(0, 1)) == 0
    receiver.until(items(0, 1))
    receiver.close()


# ---------------------------------------------------------------------------------------------- from the policy


def test_settings_that_cannot_be_right_are_refused(tmp_path, authority):
    """A port that is none and files that are missing or do not belong together are found when the bot starts."""
    certificate, _ = authority.issue("one")
    _, other_key = authority.issue("two")
    for settings, words in (
        ({"port": "0"}, "not a TCP port"),
        ({"port": "syslog"}, "not a TCP port"),
        ({"ca_file": str(tmp_path / "missing")}, "cannot be read"),
        ({"key_file": str(other_key)}, "no cert_file"),
        ({"cert_file": str(certificate), "key_file": str(other_key)}, "do not belong together"),
    ):
        with pytest.raises(CopyTrouble, match=words):
            FOLLOWERS["syslog"].build(Place("siem", ORIGIN, {"host": HOST, "port": "6514", **settings}, {}))
