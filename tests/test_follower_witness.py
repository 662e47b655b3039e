"""Does a witness of the C2SP protocol cosign what the log brings it, and is the log told when it went back?

The witness here is a peer of the protocol with its own strict reading of it (tlog-witness): it keeps the newest head of
each log in a file, and checks what a witness must. It shares the tree's arithmetic with the log, and nothing of the
client.
"""

from __future__ import annotations

import base64
import json
import os
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from outside import (
    HOST,
    NOW,
    ORIGIN,
    Apart,
    Key,
    Line,
    Log,
    Request,
    Server,
    full_once_answered,
    items,
    kill_bringing,
    note_of,
)
from sqlmodel import select

from storage import merkle
from storage.checkpoint import Algorithm, Checkpoint, add_signatures, cosign, parse_signatures, sign, verify
from storage.database import DatabaseDown
from storage.followers import FOLLOWERS, CopyTrouble, Notary, Place
from storage.followers.runner import reset
from storage.followers.witness import Witness
from storage.models import Anchor, SignedHead

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

LOG = Key()
PLAIN = {"Content-Type": "text/plain"}


class Refusal(Exception):
    """Status and body of an answer that is no cosignature."""


class Peer(Server):
    """A witness: ``logs`` are the keys it knows, by origin."""

    def __init__(self, file: Path, logs: dict[str, Key], key: Key | None = None, port: int = 0) -> None:
        self.key = key or Key("witness.example.com/w1", Algorithm.COSIGNATURE)
        self.logs = logs
        self.asked: list[tuple[int, int]] = []  # old size and number of proof lines
        self.is_strict = False  # takes a head of three lines only, as some do
        self._file = file
        super().__init__(self.take, port=port)

    def take(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        """Answer as tlog-witness says."""
        try:
            return 200, PLAIN, self.judge(request)
        except Refusal as refusal:
            status, content = refusal.args
            return status, {"Content-Type": "text/x.tlog.size"} if content else PLAIN, content

    def judge(self, request: Request) -> bytes:
        """Check everything in the order of the specification, persist, cosign."""
        if request.path != "/w1/add-checkpoint":
            raise Refusal(404, b"")
        asked, blank, note = request.body.partition(b"\n\n")
        lines = asked.split(b"\n")
        old_line = re.fullmatch(rb"old (0|[1-9][0-9]*)", lines[0])
        if not blank or old_line is None or len(lines) > 64:
            raise Refusal(400, b"")
        old = int(old_line[1])
        try:
            proof = [base64.b64decode(line, validate=True) for line in lines[1:]]
        except ValueError:
            raise Refusal(400, b"") from None
        self.asked.append((old, len(proof)))
        text = note.partition(b"\n\n")[0].decode().split("\n")
        if self.is_strict and len(text) != 3:
            raise Refusal(400, b"")
        origin, size, root = text[0], int(text[1]), base64.b64decode(text[2], validate=True)
        if origin not in self.logs:
            raise Refusal(404, b"")
        try:
            verify(note, [self.logs[origin].key])
        except ValueError:
            raise Refusal(403, b"") from None
        if old > size:
            raise Refusal(400, b"")
        seen = self.seen().get(origin, {"size": 0, "root": merkle.EMPTY_ROOT.hex()})
        if old != seen["size"]:
            raise Refusal(409, b"%d\n" % seen["size"])
        if old == size:
            if seen["root"] != root.hex():
                raise Refusal(409, b"%d\n" % size)
            if proof:
                raise Refusal(422, b"")
        elif not merkle.verify_consistency(old, bytes.fromhex(seen["root"]), size, root, proof):
            raise Refusal(422, b"")
        self.persist(self.seen() | {origin: {"size": size, "root": root.hex()}})
        return cosign(Checkpoint(origin, size, root, tuple(text[3:])), self.key, now=datetime.now(UTC)).line()

    def persist(self, seen: dict[str, dict[str, object]]) -> None:
        """Have it on the disk, whole, before anything is cosigned."""
        told, new = json.dumps(seen).encode(), self._file.with_suffix(".new")
        try:
            with new.open("wb", buffering=0) as stream:
                for part in (told[: len(told) // 2], told[len(told) // 2 :]):
                    if stream.write(part) < len(part):
                        raise Refusal(507, b"")
                    self.at("persisting")
                os.fsync(stream.fileno())
            new.replace(self._file)
        except OSError:
            raise Refusal(507, b"") from None
        self.at("persisted")

    def seen(self) -> dict[str, dict[str, object]]:
        """Return what it has persisted."""
        return json.loads(self._file.read_text()) if self._file.exists() else {}


@pytest.fixture
def peer(tmp_path):
    """A witness that knows the log."""
    with Peer(tmp_path / "seen.json", {ORIGIN: LOG}) as peer:
        yield peer


def witness_at(peer: Peer, port: int | None = None, seconds: float = 15.0) -> Witness:
    """Return a client of it."""
    return Witness("notary", f"http://{HOST}:{port or peer.port}/w1/", peer.key.key, seconds=seconds)


def proof_from(count: int, words: str = "") -> Callable[[int], Sequence[bytes]]:
    """Give the proofs to the log's head over ``count`` entries."""
    leaves = [one.leaf_hash for one in items(0, count, words)]
    return lambda old: merkle.consistency_proof(leaves, old)


def anchor(witness: Witness, count: int, before: int, words: str = "", key: Key = LOG) -> tuple[bytes, bytes]:
    """Have the head over ``count`` entries cosigned; returns note and answer."""
    note = note_of(key, items(0, count, words))
    return note, witness.anchor(note, before=before, consistency=proof_from(count, words), now=NOW)


# ---------------------------------------------------------------------------------------------- the plain course


def test_a_growing_log_is_cosigned_each_time(peer):
    """From the first head on each one is proved from the one before, and every cosignature verifies under the vkey."""
    witness, before = witness_at(peer), 0
    for size in (1, 2, 5, 8, 8, 40):
        note, line = anchor(witness, size, before)
        both = add_signatures(note, parse_signatures(line))
        assert [one.name for one in verify(both, [peer.key.key])] == ["witness.example.com/w1"]
        before = size
    assert [old for old, _ in peer.asked] == [0, 1, 2, 5, 8, 8]
    assert peer.asked[-1][1] > 0
    assert isinstance(witness, Notary)


def test_a_heartbeat_is_cosigned_anew(peer):
    """The same head with another time is another note: the witness's signature is over that."""
    witness = witness_at(peer)
    anchor(witness, 3, 0)
    note = note_of(LOG, items(0, 3, ""), "time 2026-03-01T02:05:00Z")
    line = witness.anchor(note, before=3, consistency=proof_from(3), now=NOW)
    assert verify(add_signatures(note, parse_signatures(line)), [peer.key.key])


def test_a_strict_witness_is_shown_no_heartbeat(peer, tmp_path):
    """A witness that takes three lines only is never in trouble, also when it was away while heartbeats came."""
    peer.is_strict = True
    with pytest.raises(CopyTrouble, match="as it is written"):
        witness_at(peer).anchor(note_of(LOG, items(0, 3), "time X"), before=0, consistency=proof_from(3), now=NOW)
    with Log(tmp_path / "log.db", LOG) as log:
        runner = log.runner(witness_at(peer))
        log.grow(2)
        log.beat()
        assert log.bring(runner, "notary") is None
        log.beat()
        assert log.bring(runner, "notary") is None
        log.grow(1)
        log.beat()
        log.beat()
        assert log.bring(runner, "notary") is None
        assert not runner.work("notary")
        assert runner.lag(log.clock)[0].entries == 0
        with log.database.read() as session:
            seen = session.exec(select(SignedHead.reason, SignedHead.size).join(Anchor)).all()
    assert seen == [("entry", 2), ("entry", 3)]
    assert peer.seen()[ORIGIN]["size"] == 3


@pytest.mark.parametrize("before", [0, 2, 3, 9])
def test_a_witness_that_has_seen_another_size_is_met_there(peer, before):
    """Whatever the bot believes, the proof is made from where the witness stands (409)."""
    anchor(witness_at(peer), 7, 0)
    anchor(witness_at(peer), 9, before)
    assert peer.seen()[ORIGIN]["size"] == 9
    assert peer.asked[-1][0] == 7


def test_the_runner_stores_each_heads_anchor(peer, tmp_path):
    """Stopped for a while, the witness gets the newest head afterwards, with the proof over all that came meanwhile."""
    with Log(tmp_path / "log.db", LOG) as log:
        runner = log.runner(witness_at(peer))
        log.grow(3)
        assert log.bring(runner, "notary") is None
        peer.stop()
        for _ in range(3):
            log.grow(4)
            assert "does not answer" in log.bring(runner, "notary")
        peer.start()
        assert log.bring(runner, "notary") is None
        log.grow(1)
        assert log.bring(runner, "notary") is None
        assert anchored(log, peer.key) == [3, 15, 16]


def test_a_bot_killed_before_it_stored_the_answer_asks_again(peer):
    """The witness has moved on and the bot does not know: the next try is met there and gets its cosignature."""
    anchor(witness_at(peer), 5, 0)
    _, line = anchor(witness_at(peer), 5, 0)
    assert line
    assert peer.asked == [(0, 0), (0, 0), (5, 0)]


def anchored(log: Log, key: Key) -> list[int]:
    """Return the sizes of the heads that are stored with a cosignature of the witness, each of which must verify."""
    with log.database.read() as session:
        rows = session.exec(
            select(Anchor, SignedHead).where(Anchor.head_id == SignedHead.id).order_by(SignedHead.size)
        ).all()
    for one, head in rows:
        assert (one.kind, one.follower) == ("cosignature", "notary")
        assert verify(add_signatures(head.note, parse_signatures(one.data)), [key.key])
    return [head.size for _, head in rows]


@pytest.fixture
def apart(tmp_path):
    """A witness in a process of its own, whose files outlive it."""
    key = Key("witness.example.com/w1", Algorithm.COSIGNATURE)
    with Apart(lambda port: Peer(tmp_path / "seen.json", {ORIGIN: LOG}, key, port)) as apart:
        apart.key = key
        apart.seen = lambda: json.loads((tmp_path / "seen.json").read_text())[ORIGIN]["size"]
        yield apart


@pytest.mark.parametrize(("moment", "stands"), [("persisting", 3), ("persisted", 7), ("answering", 7)])
def test_a_witness_killed_in_the_middle_is_asked_again(apart, tmp_path, moment, stands):
    """SIGKILL while it writes, after that, or in its answer: restarted, it cosigns the head, and that stands once."""
    with Log(tmp_path / "log.db", LOG) as log:
        runner = log.runner(witness_at(apart))
        log.grow(3)
        assert log.bring(runner, "notary") is None
        apart.kill()
        apart.start(dies=moment)
        log.grow(4)
        assert log.bring(runner, "notary") is not None
        apart.died()
        assert apart.seen() == stands
        assert anchored(log, apart.key) == [3]
        apart.start()
        assert log.bring(runner, "notary") is None
        log.grow(1)
        assert log.bring(runner, "notary") is None
        assert anchored(log, apart.key) == [3, 7, 8]
        assert apart.seen() == 8


@pytest.mark.parametrize(("moment", "stands"), [("before", 3), ("after", 7)])
def test_a_bot_killed_while_it_waits_for_a_cosignature_gets_it_once(peer, tmp_path, moment, stands):
    """SIGKILL of the bot before or after the witness has moved on: the next bot has the head cosigned, once."""
    file, at = tmp_path / "log.db", NOW + timedelta(minutes=4)
    with Log(file, LOG) as log:
        log.grow(3)
        assert log.bring(log.runner(witness_at(peer)), "notary") is None
        log.grow(4)
    kill_bringing(file, LOG, witness_at(peer), at, peer, is_late=moment == "after")
    assert peer.seen()[ORIGIN]["size"] == stands
    with Log(file, LOG) as log:
        log.clock = at - timedelta(minutes=2)  # so that the dead bot's claim still stands at the next try
        assert anchored(log, peer.key) == [3]
        assert log.bring(log.runner(witness_at(peer)), "notary") is None
        assert anchored(log, peer.key) == [3, 7]


@pytest.mark.parametrize("room", [0, 50])
def test_a_full_disk_at_the_witness_gets_no_cosignature_until_there_is_room(apart, tmp_path, room):
    """The kernel refuses it to write what it has seen, or a part of it: it cosigns nothing and forgets nothing."""
    with Log(tmp_path / "log.db", LOG) as log:
        runner = log.runner(witness_at(apart))
        log.grow(3)
        assert log.bring(runner, "notary") is None
        apart.room(room)
        for _ in range(2):
            log.grow(2)
            assert "status 507" in log.bring(runner, "notary")
            assert apart.seen() == 3
        assert anchored(log, apart.key) == [3]
        apart.room()
        assert log.bring(runner, "notary") is None
        assert anchored(log, apart.key) == [3, 7]


def test_asked_for_all_of_it_again_each_cosignature_stands_once(peer, tmp_path):
    """After “follower reset” the newest head is brought again: what stands there already is not stored twice."""
    with Log(tmp_path / "log.db", LOG) as log:
        runner = log.runner(witness_at(peer))
        for count in (3, 4):
            log.grow(count)
            assert log.bring(runner, "notary") is None
        with log.database.write() as session:
            assert reset(session, "notary") == 6
        assert log.bring(runner, "notary") is None
        assert anchored(log, peer.key) == [3, 7]
        assert runner.lag(log.clock)[0].entries == 0


def test_a_full_disk_here_once_it_was_cosigned_stores_the_cosignature_later(peer, tmp_path):
    """What the bot could not store is got again when there is room, from a witness that moved on; it stands once."""
    with Log(tmp_path / "log.db", LOG) as log:
        witness = witness_at(peer)
        runner = log.runner(witness)
        log.grow(3)
        with full_once_answered(witness), pytest.raises(DatabaseDown):
            log.bring(runner, "notary")
        assert (peer.seen()[ORIGIN]["size"], anchored(log, peer.key)) == (3, [])
        assert log.bring(runner, "notary") is None
        assert anchored(log, peer.key) == [3]
        log.grow(1)
        with full_once_answered(witness), pytest.raises(DatabaseDown):
            log.bring(runner, "notary")
        log.grow(1)
        assert log.bring(runner, "notary") is None
        assert anchored(log, peer.key) == [3, 5]


# ---------------------------------------------------------------------------------------------- asked by the check


def ask(witness: Witness, count: int | None, *, is_known: bool = True, newest: int = 9, words: str = "") -> str:
    """Ask it, showing it the head over ``count`` entries."""
    note = None if count is None else note_of(LOG, items(0, count, words))
    return witness.ask(note, is_known=is_known, newest=lambda: newest, now=NOW)


def test_asked_with_a_head_that_it_knows_it_shows_its_key_and_moves_nothing(peer):
    """The same head is cosigned once more; another key than the policy's, or a key that is not the log's, is said."""
    anchor(witness_at(peer), 5, 0)
    assert ask(witness_at(peer), 5) == "It cosigns, with the key that the policy names."
    assert peer.seen()[ORIGIN]["size"] == 5
    other = Key("witness.example.com/w1", Algorithm.COSIGNATURE)
    with pytest.raises(CopyTrouble, match="another key than the policy names"):
        ask(Witness("notary", f"http://{HOST}:{peer.port}/w1/", other.key), 5)
    peer.logs = {ORIGIN: Key()}
    with pytest.raises(CopyTrouble, match="does not know the log's key"):
        ask(witness_at(peer), 5)
    peer.logs = {}
    with pytest.raises(CopyTrouble, match="does not know this log"):
        ask(witness_at(peer), 5)


def test_asked_before_it_has_cosigned_anything_it_says_that_it_knows_the_log(peer):
    """A head that it has not seen is not brought to it by asking, and without a head it says only that it is up."""
    assert "knows the log, with 0 entries" in ask(witness_at(peer), 5, is_known=False)
    assert peer.seen() == {}
    assert ask(witness_at(peer), None, is_known=False).startswith("It answers; ")
    peer.stop()
    for count in (5, None):
        with pytest.raises(CopyTrouble, match="nothing listens"):
            ask(witness_at(peer), count, is_known=False)


def test_asked_it_says_what_does_not_fit_what_it_has_seen(peer):
    """A later head of ours is no alarm; a longer log than ours, another one, or a witness that forgot, is said."""
    anchor(witness_at(peer), 7, 0)
    assert "knows the log, with 7 entries" in ask(witness_at(peer), 5)
    with pytest.raises(CopyTrouble, match=r"ALARM.*with 7 entries, and now it has 6"):
        ask(witness_at(peer), 5, newest=6)
    with pytest.raises(CopyTrouble, match=r"ALARM.*another log of 7 entries"):
        ask(witness_at(peer), 7, words="rewritten")
    with pytest.raises(CopyTrouble, match="with 8 entries and knows of 7 only"):
        ask(witness_at(peer), 8)
    assert peer.seen()[ORIGIN]["size"] == 7


# ---------------------------------------------------------------------------------------------- alarms


def test_a_log_that_went_back_is_said(peer):
    """A database restored from an older backup is found by the witness: it has seen more."""
    anchor(witness_at(peer), 9, 0)
    for before in (0, 4, 5):
        with pytest.raises(CopyTrouble, match=r"ALARM.*with 9 entries, and now it has 5"):
            anchor(witness_at(peer), 5, before)


def test_a_rewritten_log_is_said_at_the_same_size(peer):
    """Rewritten with the log's own key and grown to the same size, it is not cosigned."""
    anchor(witness_at(peer), 5, 0)
    with pytest.raises(CopyTrouble, match=r"ALARM.*another log of 5 entries"):
        anchor(witness_at(peer), 5, 5, "rewritten")
    with pytest.raises(CopyTrouble, match="ALARM"):
        anchor(witness_at(peer), 5, 0, "rewritten")


def test_a_rewritten_log_is_said_at_another_size(peer):
    """Rewritten with the log's own key and grown further, there is no proof from what the witness has seen."""
    anchor(witness_at(peer), 5, 0)
    for before in (5, 0):
        with pytest.raises(CopyTrouble, match=r"ALARM.*did not grow"):
            anchor(witness_at(peer), 8, before, "rewritten")
    assert peer.seen()[ORIGIN]["size"] == 5


def test_a_witness_of_a_later_version_says_it_with_422(peer):
    """Version 1.1 of the protocol answers 422 where two logs of one size differ: that is the same alarm."""
    peer.answer = lambda _: (422, PLAIN, b"")
    with pytest.raises(CopyTrouble, match="ALARM"):
        anchor(witness_at(peer), 5, 5)


# ---------------------------------------------------------------------------------------------- refusals


def test_a_key_that_the_witness_does_not_know_is_said(peer):
    """Status 403 says whom to give what."""
    with pytest.raises(CopyTrouble, match=r"does not know the log's key.*vkey"):
        anchor(witness_at(peer), 3, 0, key=Key())


def test_a_log_that_the_witness_does_not_know_is_said(peer):
    """Status 404 is a wrong address, or a log that was not added there."""
    with pytest.raises(CopyTrouble, match="does not know this log"):
        anchor(witness_at(peer), 3, 0, key=Key("other.example.com/log"))


def test_a_head_that_is_not_understood_is_said(peer):
    """Status 400 says what to look at."""
    peer.answer = lambda _: (400, PLAIN, b"")
    with pytest.raises(CopyTrouble, match=r"as it is written.*address"):
        anchor(witness_at(peer), 3, 0)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((200, PLAIN, b""), "does not answer with a cosignature"),
        ((200, PLAIN, b"<html>hello</html>"), "does not answer with a cosignature"),
        ((200, PLAIN, b"\xff\xfe\n"), "does not answer with a cosignature"),
        ((200, PLAIN, b"x" * 100_000), "more than is expected"),
        ((409, PLAIN, b"7\n"), "does not say from where"),
        ((409, {"Content-Type": "text/x.tlog.size"}, b"seven\n"), "does not say from where"),
        ((409, {"Content-Type": "text/x.tlog.size"}, b"07\n"), "does not say from where"),
        ((409, {"Content-Type": "text/x.tlog.size"}, b"7"), "does not say from where"),
        ((500, PLAIN, b""), "in trouble itself"),
        ((302, {"Location": "http://127.0.0.1:1/"}, b""), "redirects"),
    ],
)
def test_an_answer_that_is_none_is_not_stored(peer, answer, words):
    """Whatever comes back instead of a cosignature is trouble with a sentence."""
    peer.answer = lambda _: answer
    with pytest.raises(CopyTrouble, match=words):
        anchor(witness_at(peer), 3, 0)


def test_a_witness_that_names_a_new_size_each_time_is_left(peer):
    """A witness that never agrees does not keep the bot asking."""
    asked = []

    def answer(request: Request) -> tuple[int, dict[str, str], bytes]:
        asked.append(request)
        return 409, {"Content-Type": "text/x.tlog.size"}, b"%d\n" % len(asked)

    peer.answer = answer
    with pytest.raises(CopyTrouble, match="other heads"):
        anchor(witness_at(peer), 20, 0)
    assert len(asked) == 3


def test_a_cosignature_that_is_wrong_is_not_stored(peer):
    """Of another head, by another key under the same name, with a flipped bit, or with no time: none is accepted."""
    witness = witness_at(peer)
    other = Key(peer.key.name, Algorithm.COSIGNATURE)
    root = merkle.Tree(one.leaf_hash for one in items(0, 3, "")).root
    head = Checkpoint(ORIGIN, 3, root)
    good = cosign(head, peer.key, now=NOW)
    flipped = parse_signatures(good.line())[0]
    lines = {
        "another head": cosign(Checkpoint(ORIGIN, 2, root), peer.key, now=NOW).line(),
        "another key": cosign(head, other, now=NOW).line(),
        "no time": cosign(head, peer.key, now=datetime.fromtimestamp(0, UTC)).line(),
        "flipped": type(flipped)(
            flipped.name, flipped.key_id, flipped.data[:-1] + bytes([flipped.data[-1] ^ 1])
        ).line(),
        "the log's": sign(head, [LOG]).split(b"\n\n")[1],
    }
    for line in lines.values():
        peer.answer = lambda _, line=line: (200, PLAIN, line)
        with pytest.raises(CopyTrouble, match=r"wrong|another key"):
            anchor(witness, 3, 0)
    # Lines of keys that are not known are passed over.
    peer.answer = lambda _: (200, PLAIN, lines["another key"] + good.line())
    assert anchor(witness, 3, 0)[1] == good.line()


# ---------------------------------------------------------------------------------------------- the line


@pytest.mark.parametrize("way", ["up", "down"])
def test_cut_in_the_middle_the_next_try_is_met_where_the_witness_stands(peer, way):
    """Whether the witness has heard of the head or not, the next try gets the cosignature."""
    with Line(peer.port) as line:
        witness, size = witness_at(peer, line.port), 0
        for limit in (1, 60, 150):
            setattr(line, way, limit)
            with pytest.raises(CopyTrouble):
                anchor(witness, size + 3, size)
            line.heal()
            anchor(witness, size + 3, size)
            size += 3
            assert peer.seen()[ORIGIN]["size"] == size


def test_a_silent_witness_does_not_keep_the_bot(peer):
    """A place that takes the connection and says nothing is given up after the time that is set."""
    with Line(peer.port) as line:
        line.is_silent = True
        with pytest.raises(CopyTrouble, match="in time"):
            anchor(witness_at(peer, line.port, seconds=0.6), 3, 0)


# ---------------------------------------------------------------------------------------------- from the policy


def test_it_is_built_from_the_policy_with_a_witness_key_only(peer):
    """The vkey must be a witness's, and whole."""
    kind = FOLLOWERS["witness"]
    settings = {"url": f"http://{HOST}:{peer.port}/w1", "vkey": str(peer.key.key)}
    assert kind.is_notary
    assert anchor(kind.build(Place("notary", ORIGIN, settings, {})), 3, 0)[1]
    for vkey, words in ((str(LOG.key), "not a witness's"), (str(peer.key.key)[:-1], "cannot be used")):
        with pytest.raises(CopyTrouble, match=words):
            kind.build(Place("notary", ORIGIN, settings | {"vkey": vkey}, {}))
