"""Are time stamps got from a real RFC 3161 authority, checked, and accepted by ``openssl ts -verify``?

The authority is ``openssl ts -reply`` behind a small HTTP server.
"""

from __future__ import annotations

import re
import subprocess
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from outside import (
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
    items,
    kill_bringing,
    needed,
    note_of,
)
from sqlmodel import select

from storage.database import DatabaseDown
from storage.followers import FOLLOWERS, CopyTrouble, Notary, Place
from storage.models import Anchor, SignedHead

if TYPE_CHECKING:
    from pathlib import Path

    from storage.followers.timestamp import Authority as Notarising

LOG = Key()
NOTE = note_of(LOG, items(0, 3))
REPLY = {"Content-Type": "application/timestamp-reply"}


class Stamping(Server):
    """A time stamp authority with a certificate that ``authority`` has issued."""

    def __init__(
        self,
        folder: Path,
        authority: Authority,
        *,
        name: str = "stamps",
        is_stamping: bool = True,
        own: tuple[Path, Path] | None = None,
        port: int = 0,
    ) -> None:
        self._openssl = needed("openssl", "openssl")
        self._folder = folder / name
        self._folder.mkdir(exist_ok=True)  # it may come again
        certificate, key = own or authority.issue(name, is_stamping=is_stamping)
        self.policy = "1.2.3.4.1"
        self._config = self._folder / "openssl.cnf"
        self._config.write_text(
            f"""
            [tsa]
            default_tsa = one
            [one]
            serial = {self._folder}/serial
            crypto_device = builtin
            signer_cert = {certificate}
            signer_key = {key}
            signer_digest = sha256
            default_policy = {self.policy}
            digests = sha256, sha512
            accuracy = secs:1
            ess_cert_id_alg = sha256
            """
        )
        self.queries: list[bytes] = []
        super().__init__(self.take, port=port)

    def take(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        """Answer a query."""
        assert request.headers["content-type"] == "application/timestamp-query"
        self.queries.append(request.body)
        self.at("asked")
        reply = self.reply(request.body)
        self.at("stamped")
        return 200, REPLY, reply

    def reply(self, query: bytes) -> bytes:
        """Have openssl answer it."""
        command = [self._openssl, "ts", "-reply", "-config", str(self._config), "-queryfile", "/dev/stdin"]
        # Its signals as ours: where there is no room it gets an error, as from a full disk, and is not ended.
        done = subprocess.run(
            command, input=query, capture_output=True, check=True, cwd=self._folder, restore_signals=False
        )
        return done.stdout


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """The root that is trusted."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def stamping(tmp_path, authority):
    """A time stamp authority that is up."""
    with Stamping(tmp_path, authority) as stamping:
        yield stamping


def built(port: int, ca_file: Path, url: str = "http://{host}:{port}/tsa") -> Notarising:
    """Build it as the policy does."""
    settings = {"url": url.format(host=HOST, port=port), "ca_file": str(ca_file)}
    return FOLLOWERS["timestamp"].build(Place("clock", ORIGIN, settings, {}))


def stamp(notary: Notarising, note: bytes = NOTE) -> bytes:
    """Have a head stamped."""
    return notary.anchor(note, before=0, consistency=lambda _: (), now=NOW)


def openssl_accepts(token: bytes, note: bytes, ca_file: Path, folder: Path, *more: str) -> tuple[bool, str]:
    """Let openssl verify a token over a note, and say what it says of it."""
    (folder / "token").write_bytes(token)
    (folder / "note").write_bytes(note)
    openssl = needed("openssl", "openssl")
    told = [openssl, "ts", "-reply", "-in", "token", "-token_in", "-text"]
    text = subprocess.run(told, capture_output=True, check=True, cwd=folder, text=True).stdout
    command = [openssl, "ts", "-verify", "-in", "token", "-token_in", "-data", "note", "-CAfile", str(ca_file), *more]
    done = subprocess.run(command, capture_output=True, check=False, cwd=folder)
    return done.returncode == 0, text


# ---------------------------------------------------------------------------------------------- the plain course


def test_openssl_accepts_what_is_stored(stamping, authority, tmp_path):
    """The stored token verifies over the note with openssl alone, and says about now; over another note it does not."""
    notary = built(stamping.port, authority.file)
    assert isinstance(notary, Notary)
    token = stamp(notary)
    is_good, text = openssl_accepts(token, NOTE, authority.file, tmp_path)
    assert is_good
    said = re.search(r"Time stamp: (.*) GMT", text)
    at = datetime.strptime(said[1].split(".")[0], "%b %d %H:%M:%S %Y").replace(tzinfo=UTC)
    assert abs(datetime.now(UTC) - at) < timedelta(hours=1)
    assert "sha256" in text
    for place in range(0, len(NOTE), 40):
        flipped = bytearray(NOTE)
        flipped[place] ^= 1
        assert not openssl_accepts(token, bytes(flipped), authority.file, tmp_path)[0]


def test_the_runner_stores_each_heads_token(stamping, authority, tmp_path):
    """Stopped for a while, the authority stamps the newest head afterwards; every stored token is over its own head."""
    with Log(tmp_path / "log.db", LOG) as log:
        runner = log.runner(built(stamping.port, authority.file))
        log.grow(3)
        assert log.bring(runner, "clock") is None
        stamping.stop()
        for _ in range(2):
            log.grow(4)
            assert "does not answer" in log.bring(runner, "clock")
        stamping.start()
        assert log.bring(runner, "clock") is None
        log.beat()
        assert log.bring(runner, "clock") is None
        assert stamped(log, authority, tmp_path) == [3, 11, 11]


def stamped(log: Log, authority: Authority, folder: Path) -> list[int]:
    """Return the sizes of the heads that are stored with a token, each of which openssl must accept over its head."""
    with log.database.read() as session:
        rows = session.exec(select(Anchor, SignedHead).where(Anchor.head_id == SignedHead.id).order_by(Anchor.id)).all()
    for one, head in rows:
        assert (one.kind, one.follower) == ("timestamp", "clock")
        assert openssl_accepts(one.data, head.note, authority.file, folder)[0]
    return [head.size for _, head in rows]


@pytest.fixture
def apart(tmp_path, authority):
    """An authority in a process of its own, whose folder outlives it."""
    own = authority.issue("stamps", is_stamping=True)
    with Apart(lambda port: Stamping(tmp_path, authority, own=own, port=port)) as apart:
        yield apart


@pytest.mark.parametrize("moment", ["asked", "stamped", "answering"])
def test_an_authority_killed_in_the_middle_is_asked_again(apart, authority, tmp_path, moment):
    """SIGKILL before or after it stamped, or in mid-answer: half a token is none, and each stands once."""
    with Log(tmp_path / "log.db", LOG) as log:
        runner = log.runner(built(apart.port, authority.file))
        log.grow(3)
        assert log.bring(runner, "clock") is None
        apart.kill()
        apart.start(dies=moment)
        log.grow(4)
        assert "broke the connection off" in log.bring(runner, "clock")
        apart.died()
        assert stamped(log, authority, tmp_path) == [3]
        apart.start()
        assert log.bring(runner, "clock") is None
        log.grow(1)
        assert log.bring(runner, "clock") is None
        assert stamped(log, authority, tmp_path) == [3, 7, 8]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_bot_killed_while_it_waits_for_a_stamp_gets_it_once(stamping, authority, tmp_path, moment):
    """SIGKILL of the bot before or after the authority has stamped: the next bot has the head stamped, once."""
    file, at = tmp_path / "log.db", NOW + timedelta(minutes=4)
    with Log(file, LOG) as log:
        log.grow(3)
        assert log.bring(log.runner(built(stamping.port, authority.file)), "clock") is None
        log.grow(4)
    kill_bringing(file, LOG, built(stamping.port, authority.file), at, stamping, is_late=moment == "after")
    with Log(file, LOG) as log:
        log.clock = at - timedelta(minutes=2)  # so that the dead bot's claim still stands at the next try
        assert stamped(log, authority, tmp_path) == [3]
        assert log.bring(log.runner(built(stamping.port, authority.file)), "clock") is None
        assert stamped(log, authority, tmp_path) == [3, 7]


def test_a_full_disk_at_the_authority_is_said_until_there_is_room(apart, authority, tmp_path):
    """A real authority stamps once more, empties its file of serial numbers, and refuses until that is put right.

    The bot says so with the authority's words, stores what is good and nothing else, and goes on by itself.
    """
    with Log(tmp_path / "log.db", LOG) as log:
        runner = log.runner(built(apart.port, authority.file))
        log.grow(3)
        assert log.bring(runner, "clock") is None
        apart.room(0)
        log.grow(1)
        assert log.bring(runner, "clock") is None
        for _ in range(2):
            log.grow(1)
            assert re.search(r"refuses to stamp \(status 2\): .*serial number", log.bring(runner, "clock"))
        apart.room()
        assert log.bring(runner, "clock") is not None
        assert stamped(log, authority, tmp_path) == [3, 4]
        (tmp_path / "stamps" / "serial").write_text("07\n")
        assert log.bring(runner, "clock") is None
        assert stamped(log, authority, tmp_path) == [3, 4, 6]


def test_a_full_disk_here_once_it_was_stamped_stores_a_token_later(stamping, authority, tmp_path):
    """What the bot could not store is asked for again when there is room, and stands once."""
    with Log(tmp_path / "log.db", LOG) as log:
        notary = built(stamping.port, authority.file)
        runner = log.runner(notary)
        log.grow(3)
        for _ in range(2):
            with full_once_answered(notary), pytest.raises(DatabaseDown):
                log.bring(runner, "clock")
            assert stamped(log, authority, tmp_path) == []
        assert log.bring(runner, "clock") is None
        assert stamped(log, authority, tmp_path) == [3]
        assert len(stamping.queries) == 3


def test_only_a_hash_leaves(stamping, authority):
    """The authority learns neither the log's name nor its size."""
    stamp(built(stamping.port, authority.file))
    (query,) = stamping.queries
    assert ORIGIN.encode() not in query
    assert len(query) < 100


def test_asked_by_the_check_it_shows_that_its_certificate_is_the_right_one(stamping, authority, tmp_path):
    """A stamp is asked for, with a head or without one, and verified; where it leads elsewhere, that is said."""
    for note in (NOTE, None):
        said = built(stamping.port, authority.file).ask(note, is_known=False, newest=lambda: 3, now=NOW)
        assert re.fullmatch(r"It stamps, .* ends on [0-9-]{10}\.", said)
    other = Authority(tmp_path, "other authority")
    with pytest.raises(CopyTrouble, match="does not verify"):
        built(stamping.port, other.file).ask(NOTE, is_known=True, newest=lambda: 3, now=NOW)
    stamping.stop()
    with pytest.raises(CopyTrouble, match="nothing listens"):
        built(stamping.port, authority.file).ask(None, is_known=False, newest=lambda: 0, now=NOW)


# ---------------------------------------------------------------------------------------------- refusals


def test_an_authority_that_is_not_trusted_is_refused(stamping, tmp_path):
    """A token that leads to another root is not stored, though it is good in itself."""
    other = Authority(tmp_path, "other authority")
    with pytest.raises(CopyTrouble, match="does not verify"):
        stamp(built(stamping.port, other.file))


def test_a_stamp_over_something_else_is_refused(stamping, authority):
    """An answer to an older question, over this note or another, is not an answer: the nonce is another."""
    notary = built(stamping.port, authority.file)
    stamp(notary)
    stamp(notary, note_of(LOG, items(0, 4)))
    for query in tuple(stamping.queries):
        old = stamping.reply(query)
        stamping.answer = lambda _, old=old: (200, REPLY, old)
        with pytest.raises(CopyTrouble, match="does not verify"):
            stamp(notary)


def test_a_stamp_with_any_bit_flipped_is_refused(stamping, authority):
    """Wherever an answer was changed on its way, nothing is stored."""
    notary = built(stamping.port, authority.file)
    for place in range(0, 1200, 25):

        def flip(request: Request, place: int = place) -> tuple[int, dict[str, str], bytes]:
            reply = bytearray(stamping.reply(request.body))
            reply[place % len(reply)] ^= 4
            return 200, REPLY, bytes(reply)

        stamping.answer = flip
        with pytest.raises(CopyTrouble):
            stamp(notary)


def test_an_authority_below_the_root_is_trusted_through_the_ca_file(tmp_path, authority):
    """With the certificate in between in the CA file the token leads to the root; without it, it leads nowhere."""
    between = Authority(tmp_path, "between", authority)
    both = tmp_path / "both.pem"
    both.write_bytes(authority.file.read_bytes() + between.file.read_bytes())
    with Stamping(tmp_path, between) as stamping:
        token = stamp(built(stamping.port, both))
        assert openssl_accepts(token, NOTE, both, tmp_path)[0]
        with pytest.raises(CopyTrouble, match="does not verify"):
            stamp(built(stamping.port, authority.file))


def test_an_authority_that_sends_a_chain_is_asked_to_send_none(tmp_path, authority):
    """A chain in an order that is not DER's is refused with what to do; with the own certificate put down it works."""
    between = Authority(tmp_path, "between", authority)
    both, all_of_it = tmp_path / "both.pem", tmp_path / "all.pem"
    both.write_bytes(authority.file.read_bytes() + between.file.read_bytes())
    with Stamping(tmp_path, between) as stamping:
        own = tmp_path / "stamps.pem"
        all_of_it.write_bytes(both.read_bytes() + own.read_bytes())
        # Both orders, so that one of them is not DER's, whatever the random keys are.
        ways = ((authority.file, between.file), (between.file, authority.file))
        config, said = stamping._config.read_text(), []
        for one, two in ways:
            sent = tmp_path / "sent.pem"
            sent.write_bytes(one.read_bytes() + two.read_bytes())
            stamping._config.write_text(f"{config}\ncerts = {sent}\n")
            try:
                stamp(built(stamping.port, both))
            except CopyTrouble as trouble:
                said.append(str(trouble))
            token = stamp(built(stamping.port, all_of_it))
            assert openssl_accepts(token, NOTE, both, tmp_path, "-untrusted", str(own))[0]
        assert any("add its own certificate" in one for one in said)
        # Not another certificate's stamp, even if it leads to the same root.
        with Stamping(tmp_path, between, name="second") as second, pytest.raises(CopyTrouble, match="does not verify"):
            stamp(built(second.port, all_of_it))


def test_a_certificate_that_is_not_for_stamping_is_refused(tmp_path, authority):
    """A real authority refuses to stamp with a web server's certificate, and its refusal is said, not stored."""
    with Stamping(tmp_path, authority, name="web", is_stamping=False) as stamping:

        def take(request: Request) -> tuple[int, dict[str, str], bytes]:
            try:
                return 200, REPLY, stamping.reply(request.body)
            except subprocess.CalledProcessError:
                return 500, {}, b""

        stamping.answer = take
        with pytest.raises(CopyTrouble):
            stamp(built(stamping.port, authority.file))


def test_a_refusal_is_said_with_the_authoritys_words(stamping, authority):
    """Status “rejection” is trouble, with what the authority says, on one line."""
    # openssl refuses a query whose digest it does not allow.
    config = stamping._config.read_text()
    stamping._config.write_text(config.replace("sha256, sha512", "sha512"))
    with pytest.raises(CopyTrouble, match=r"refuses to stamp \(status 2\): .*supported") as caught:
        stamp(built(stamping.port, authority.file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((200, {"Content-Type": "text/html"}, b"<html>"), "is its address right"),
        ((200, REPLY, b""), "strict DER"),
        ((200, REPLY, b"\x30\x03\x02\x01\x00"), "strict DER"),
        ((200, REPLY, b"\x30\x05\x30\x03\x02\x01\x00"), "does not verify"),
        ((200, REPLY, b"x" * 100_000), "more than is expected"),
        ((403, {}, b""), "does not let the bot in"),
        ((429, {}, b""), "too often"),
        ((503, {}, b""), "in trouble itself"),
    ],
)
def test_an_answer_that_is_none_is_not_stored(stamping, authority, answer, words):
    """Whatever comes back instead of a time stamp is trouble with a sentence."""
    stamping.answer = lambda _: answer
    with pytest.raises(CopyTrouble, match=words):
        stamp(built(stamping.port, authority.file))


@pytest.mark.parametrize("way", ["up", "down"])
def test_cut_in_the_middle_it_is_asked_again(stamping, authority, tmp_path, way):
    """Wherever the line breaks there is no half token, and the next try gets a whole one."""
    with Line(stamping.port) as line:
        notary = built(line.port, authority.file)
        for limit in (1, 150, 220):
            setattr(line, way, limit)
            with pytest.raises(CopyTrouble):
                stamp(notary)
            line.heal()
            assert openssl_accepts(stamp(notary), NOTE, authority.file, tmp_path)[0]


# ---------------------------------------------------------------------------------------------- from the policy


def test_settings_that_cannot_be_right_are_refused(tmp_path, authority):
    """A CA file that is missing or holds no certificate or no root, and an address that is none, are found at once."""
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    leaf, _ = authority.issue("leaf", is_stamping=True)
    for ca_file, words in ((tmp_path / "missing", "cannot be read"), (empty, "cannot be read"), (leaf, "no root")):
        with pytest.raises(CopyTrouble, match=words):
            built(1, ca_file)
    with pytest.raises(CopyTrouble, match="cannot be used"):
        built(1, authority.file, "tsa.example.com")
    assert FOLLOWERS["timestamp"].is_notary
