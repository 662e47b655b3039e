"""Are heads, cosignatures, evidence and trust files C2SP's, in one spelling, and is nothing else believed?"""

from __future__ import annotations

import base64
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from storage import checkpoint, merkle
from storage.checkpoint import Algorithm, BadSignature, Checkpoint, NotSigned, VerifierKey, Witness
from storage.signers import KeySigner

ORIGIN = "log.example/orders"
NOW = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)


def key(number: int, name: str = ORIGIN, algorithm: Algorithm = Algorithm.ED25519) -> KeySigner:
    """A signer whose key is the same in every run."""
    return KeySigner.of(name, Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32), algorithm)


LOG, NEXT, STRANGER = key(1), key(2), key(3)
WITNESS = key(4, "witness.example/w1", Algorithm.COSIGNATURE)
HEAD = Checkpoint(ORIGIN, 3, merkle.leaf_hash(b"three"))
NOTE = checkpoint.sign(HEAD, [LOG])

# Published in Go's x/mod/sumdb/note: a note and the key that signed it.
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"


def test_a_vkey_of_gos_is_read_and_written_the_same():
    """A verifier key that another implementation made has the name, the id and the spelling that it has there."""
    read = checkpoint.parse_vkey(PETER)
    assert (read.name, read.key_id.hex(), read.algorithm) == ("PeterNeumann", "c74f20a3", Algorithm.ED25519)
    assert str(read) == PETER


@pytest.mark.parametrize(
    "text",
    [
        "",
        "PeterNeumann",
        "PeterNeumann+c74f20a3",
        PETER.replace("c74f20a3", "C74F20A3"),
        PETER.replace("c74f20a3", "c74f20a4"),
        PETER.replace("Peter", "Petra"),
        PETER[:-4],
        PETER + "=",
        PETER.replace("+ARpc", "+Bxpc"),
        " " + PETER,
        PETER + "\n",
    ],
)
def test_no_other_vkey_is_read(text):
    """A changed id, name, key, type or spelling is refused."""
    with pytest.raises(ValueError):
        checkpoint.parse_vkey(text)


def test_a_head_is_the_three_lines_of_the_specification():
    """Origin, decimal size, base64 root, a blank line, and the signature with the key's id in front."""
    body, _, line = NOTE.partition(b"\n\n")
    assert body == f"{ORIGIN}\n3\n{base64.b64encode(HEAD.root).decode()}".encode()
    dash, name, data = line.decode().removesuffix("\n").split(" ")
    assert (dash, name) == ("\u2014", ORIGIN)
    assert base64.b64decode(data)[:4] == LOG.key.key_id
    assert LOG.key.accepts(base64.b64decode(data)[4:], body + b"\n")


def test_a_head_is_read_as_it_was_written():
    """Parsing gives the checkpoint and the bytes back, with lines of the log's own."""
    heartbeat = Checkpoint(ORIGIN, 3, HEAD.root, (checkpoint.time_line(NOW), "another line"))
    note = checkpoint.sign(heartbeat, [LOG, NEXT])
    read = checkpoint.parse(note)
    assert read.checkpoint == heartbeat
    assert read.checkpoint.at == NOW
    assert bytes(read) == note
    assert [one.key for one in checkpoint.verify(note, [NEXT.key, LOG.key])] == [LOG.key, NEXT.key]
    assert checkpoint.parse(NOTE).checkpoint.at is None


def test_a_signature_of_an_unknown_key_means_nothing():
    """A further signature by a stranger neither helps nor harms, and alone it is no signature at all."""
    both = checkpoint.sign(HEAD, [STRANGER, LOG])
    assert [one.name for one in checkpoint.verify(both, [LOG.key])] == [ORIGIN]
    with pytest.raises(NotSigned):
        checkpoint.verify(checkpoint.sign(HEAD, [STRANGER]), [LOG.key])
    with pytest.raises(NotSigned):
        checkpoint.verify(NOTE, [])


def test_a_wrong_signature_of_a_known_key_refuses_the_note():
    """A note that one known key signed and another is said to have signed is refused, though one signature holds."""
    forged = checkpoint.Signature(NEXT.key.name, NEXT.key.key_id, b"\0" * 64)
    note = checkpoint.add_signatures(NOTE, [forged])
    assert checkpoint.verify(note, [LOG.key])
    with pytest.raises(BadSignature):
        checkpoint.verify(note, [LOG.key, NEXT.key])


def test_every_flipped_bit_of_a_head_is_refused():
    """Whichever bit of a signed head is flipped: it is not read, or not signed, or its signature is wrong."""
    for place in range(len(NOTE)):
        for bit in range(8):
            bad = bytearray(NOTE)
            bad[place] ^= 1 << bit
            with pytest.raises(ValueError):
                checkpoint.verify(bytes(bad), [LOG.key])


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\n\n",
        NOTE.removesuffix(b"\n"),
        NOTE + b"\n",
        NOTE.replace(b"\n\n", b"\n"),
        NOTE.replace(b"\n\n", b"\n\n\n"),
        NOTE.replace(b"\n3\n", b"\n03\n"),
        NOTE.replace(b"\n3\n", b"\n+3\n"),
        NOTE.replace(b"\n3\n", b"\n-3\n"),
        NOTE.replace(b"\n3\n", b"\n3.0\n"),
        NOTE.replace(b"\n3\n", "\n\u0663\n".encode()),
        NOTE.replace(b"\n3\n", b"\n9223372036854775808\n"),
        NOTE.replace(b"\n3\n", b"\n3\r\n"),
        NOTE.replace(b"\n3\n", b"\n0\n"),
        NOTE.replace(b"=\n\n", b"\n\n"),
        NOTE.replace(ORIGIN.encode() + b"\n3", b"\n3"),
        NOTE.replace("\u2014 ".encode(), b"- "),
        NOTE.replace("\u2014 ".encode(), "\u2014  ".encode()),
        NOTE.replace(b"\n\n", "\n\n\u2014 a+b AAAAAAAA\n".encode()),
        NOTE.replace(b"\n\n", "\n\n\u2014 short AAAAAA==\n".encode()),
        NOTE.replace(b"\n\n", "\n\n\u2014 spelling AAAAAAAAAB==\n".encode()),
        NOTE.replace(b"\n\n", "\n\n\u2014 no\u2028name AAAAAAAA\n".encode()),
        NOTE.replace(b"\n\n", b"\n\x00\n\n"),
        NOTE.replace(b"\n\n", b"\n\xff\n\n"),
        NOTE + "\u2014 many AAAAAAAA\n".encode() * 101,
        NOTE + b"x" * checkpoint.MAX_NOTE,
    ],
)
def test_no_other_spelling_of_a_head_is_read(bad):
    """What the writer would not have written so is not a signed head."""
    with pytest.raises(ValueError):
        checkpoint.parse(bad)


@given(st.binary(max_size=400))
def test_a_hostile_note_is_an_error_and_nothing_else(noise):
    """Any bytes, also in place of the body or of the signatures, are refused with ValueError."""
    for note in (noise, noise + NOTE, NOTE + noise, NOTE.replace(b"\n\n", b"\n\n" + noise + b"\n")):
        if note != NOTE:
            try:
                read = checkpoint.parse(note)
            except ValueError:
                continue
            assert bytes(read) == note == checkpoint.compose(read.checkpoint, read.signatures)


@pytest.mark.parametrize(
    "facts",
    [
        {"origin": ""},
        {"origin": "two\nlines"},
        {"origin": "\ud800"},
        {"size": -1},
        {"size": 1 << 63},
        {"size": 0},
        {"root": b"short"},
        {"extensions": ("",)},
        {"extensions": ("a\nb",)},
    ],
)
def test_what_cannot_stand_in_a_head_is_refused(facts):
    """No line that is empty or would break out of its place, and no size or root that is none."""
    with pytest.raises(ValueError):
        Checkpoint(**{"origin": ORIGIN, "size": 3, "root": HEAD.root} | facts)


def test_a_signer_that_answers_nonsense_signs_nothing():
    """What comes back from a signer is checked before it becomes a head."""

    class Broken:
        key = LOG.key

        def sign(self, _message: bytes) -> bytes:
            return b"\1" * 64

    with pytest.raises(BadSignature):
        checkpoint.sign(HEAD, [Broken()])
    with pytest.raises(NotSigned):
        checkpoint.sign(HEAD, [])


def test_a_cosignature_of_the_specification_is_verified():
    """A witness signs its time and the body, and a changed time, head or type is refused."""
    line = checkpoint.cosign(HEAD, WITNESS, now=NOW)
    assert len(line.data) == 72
    note = checkpoint.add_signatures(NOTE, [line])
    log, witness = checkpoint.verify(note, [LOG.key, WITNESS.key])
    assert (log.at, witness.at) == (None, NOW)
    assert witness.name == "witness.example/w1"
    later = checkpoint.Signature(
        line.name, line.key_id, (int.from_bytes(line.data[:8]) + 1).to_bytes(8) + line.data[8:]
    )
    moved = checkpoint.add_signatures(checkpoint.sign(Checkpoint(ORIGIN, 4, HEAD.root), [LOG]), [line])
    timeless = checkpoint.Signature(line.name, line.key_id, line.data[8:])
    for bad in (checkpoint.add_signatures(NOTE, [later]), moved, checkpoint.add_signatures(NOTE, [timeless])):
        assert checkpoint.verify(bad, [LOG.key])
        with pytest.raises(BadSignature):
            checkpoint.verify(bad, [LOG.key, WITNESS.key])


def test_a_witnesss_key_is_another_key_than_the_logs():
    """The same 32 bytes under the same name are two keys when one is a witness's."""
    twin = VerifierKey(ORIGIN, LOG.key.public, Algorithm.COSIGNATURE)
    assert twin.key_id != LOG.key.key_id
    assert checkpoint.parse_vkey(str(twin)) == twin
    with pytest.raises(NotSigned):
        checkpoint.verify(NOTE, [twin])
    with pytest.raises(ValueError):
        checkpoint.cosign(HEAD, LOG, now=NOW)


def test_a_witnesss_answer_is_read_strictly():
    """Signature lines by themselves are read as they are written, and nothing else is."""
    line = checkpoint.cosign(HEAD, WITNESS, now=NOW)
    assert checkpoint.parse_signatures(line.line()) == (line,)
    for bad in (b"", b"\n", line.line() + b"\n", line.line()[:-1], b"\xff", b"hello\n"):
        with pytest.raises(ValueError):
            checkpoint.parse_signatures(bad)


def test_a_cosignature_is_added_once():
    """Adding the same line twice is adding it once, and the log's own stays first."""
    line = checkpoint.cosign(HEAD, WITNESS, now=NOW)
    once = checkpoint.add_signatures(NOTE, [line])
    assert checkpoint.add_signatures(once, [line]) == once
    assert once.startswith(NOTE)


BODIES = [f"entry {number}".encode() for number in range(5)]
TREE = merkle.Tree(map(merkle.leaf_hash, BODIES))
TREE_NOTE = checkpoint.sign(Checkpoint(ORIGIN, 5, TREE.root), [LOG])


@pytest.mark.parametrize("extra", [b"", b"\0\1\2"])
@pytest.mark.parametrize("index", range(5))
def test_evidence_proves_its_entry_and_no_other(index, extra):
    """The file of one entry verifies with that entry's bytes, and with no other's."""
    text = checkpoint.write_proof(index, TREE.inclusion(index), TREE_NOTE, extra=extra)
    evidence = checkpoint.verify_proof(text, BODIES[index], [LOG.key])
    assert (evidence.index, evidence.extra, evidence.head.checkpoint.size) == (index, extra, 5)
    with pytest.raises(ValueError, match="not this entry"):
        checkpoint.verify_proof(text, BODIES[index - 1], [LOG.key])
    with pytest.raises(NotSigned):
        checkpoint.verify_proof(text, BODIES[index], [STRANGER.key])


def test_evidence_of_the_only_entry_has_no_hashes():
    """In a log of one entry the proof is empty, and the file still reads."""
    note = checkpoint.sign(Checkpoint(ORIGIN, 1, merkle.leaf_hash(BODIES[0])), [LOG])
    text = checkpoint.write_proof(0, (), note)
    assert text.startswith(b"c2sp.org/tlog-proof@v1\nindex 0\n\n" + ORIGIN.encode())
    assert checkpoint.verify_proof(text, BODIES[0], [LOG.key]).proof == ()


def test_every_flipped_bit_of_evidence_is_refused():
    """Whichever bit of an entry's evidence is flipped, it proves nothing (only the extra data is nobody's word)."""
    text = checkpoint.write_proof(3, TREE.inclusion(3), TREE_NOTE)
    for place in range(len(text)):
        bad = bytearray(text)
        bad[place] ^= 1 << place % 8
        with pytest.raises(ValueError):
            checkpoint.verify_proof(bytes(bad), BODIES[3], [LOG.key])


def test_a_trust_file_names_logs_witnesses_and_quorum():
    """The auditor's file has the log's keys, the witnesses and how many of them are needed."""
    witnesses = [
        Witness("w1", WITNESS.key, "https://witness.example/"),
        Witness("w2", key(5, "w2.example", Algorithm.COSIGNATURE).key),
    ]
    lines = checkpoint.write_policy([LOG.key, NEXT.key], witnesses, quorum=1).decode().splitlines()
    assert lines == [
        f"log {LOG.key}",
        f"log {NEXT.key}",
        f"witness w1 {WITNESS.key} https://witness.example/",
        f"witness w2 {witnesses[1].key}",
        "group witnesses 1 w1 w2",
        "quorum witnesses",
    ]
    assert checkpoint.write_policy([LOG.key]).decode().splitlines() == [f"log {LOG.key}", "quorum none"]
    assert b"group witnesses 2 " in checkpoint.write_policy([LOG.key], witnesses)


@pytest.mark.parametrize(
    ("logs", "witnesses", "quorum"),
    [
        ([], [], 0),
        ([LOG.key, LOG.key], [], 0),
        ([WITNESS.key], [], 0),
        ([LOG.key], [Witness("w", LOG.key)], None),
        ([LOG.key], [Witness("w", WITNESS.key)], 2),
        ([LOG.key], [Witness("none", WITNESS.key)], None),
        ([LOG.key], [Witness("witnesses", WITNESS.key)], None),
        ([LOG.key], [Witness("a b", WITNESS.key)], None),
        ([LOG.key], [Witness("w", WITNESS.key, "https://x\nquorum none")], None),
        ([LOG.key], [Witness("w", WITNESS.key), Witness("v", WITNESS.key)], None),
    ],
)
def test_a_trust_file_that_would_mean_something_else_is_not_written(logs, witnesses, quorum):
    """No log, a key twice or of the wrong kind, a taken name, an address with a line in it, too large a quorum."""
    with pytest.raises(ValueError):
        checkpoint.write_policy(logs, witnesses, quorum=quorum)
