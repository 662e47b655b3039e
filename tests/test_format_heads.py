"""Does storage/FORMAT.md say how heads are signed? Its vectors are made again and compared."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from test_format import DOCUMENT, VECTORS, block

from storage import checkpoint, merkle
from storage.checkpoint import Algorithm, Checkpoint, Witness
from storage.models import SignedHead
from storage.signers import KeySigner

ORIGIN = "log.example/orders"


def key(number: int, name: str = ORIGIN, algorithm: Algorithm = Algorithm.ED25519) -> KeySigner:
    """The document's key of 32 equal bytes."""
    return KeySigner.of(name, Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32), algorithm)


LOG, NEXT = key(1), key(2)
WITNESS = key(3, "witness.example/w1", Algorithm.COSIGNATURE)
BODIES = [entry["body"].encode() for entry in VECTORS["entries"]]
TREE = merkle.Tree(map(merkle.leaf_hash, BODIES))
HEAD = Checkpoint(ORIGIN, 3, TREE.root)
NOTE = checkpoint.sign(HEAD, [LOG])


def test_the_trust_file_names_the_keys():
    """The document's keys are those of its private keys, and each vkey reads back as itself."""
    text = block("tlog-policy")
    assert checkpoint.write_policy([LOG.key, NEXT.key], [Witness("w1", WITNESS.key)]).decode() == text
    vkeys = [word for line in text.splitlines() for word in line.split() if word.count("+") >= 2]
    assert [checkpoint.parse_vkey(vkey) for vkey in vkeys] == [LOG.key, NEXT.key, WITNESS.key]


def test_the_head_is_the_one_of_the_three_entries():
    """The document's head is signed over the root that the document states, by the log alone."""
    note = block("checkpoint").encode()
    assert note == NOTE
    assert HEAD.root.hex() == VECTORS["entries"][-1]["root"]
    assert [one.key for one in checkpoint.verify(note, [LOG.key, NEXT.key, WITNESS.key])] == [LOG.key]


def test_the_heartbeat_says_its_time():
    """The heartbeat is the same head with the line of the time."""
    note = block("heartbeat").encode()
    at = datetime(2026, 3, 1, 2, 20, tzinfo=UTC)
    assert note == checkpoint.sign(Checkpoint(ORIGIN, 3, TREE.root, (checkpoint.time_line(at),)), [LOG])
    assert checkpoint.parse(note).checkpoint.at == at
    assert checkpoint.verify(note, [LOG.key])


def test_the_head_of_a_rotation_has_both_signatures():
    """Old and new key sign the same three lines."""
    note = block("rotation").encode()
    assert note == checkpoint.sign(HEAD, [LOG, NEXT])
    assert [one.key for one in checkpoint.verify(note, [LOG.key, NEXT.key])] == [LOG.key, NEXT.key]


def test_the_cosigned_head_has_the_witnesss_time():
    """The witness's line follows the log's and carries its time."""
    note = block("cosigned").encode()
    at = datetime(2026, 3, 1, 2, 15, 4, tzinfo=UTC)
    assert note == checkpoint.add_signatures(NOTE, [checkpoint.cosign(HEAD, WITNESS, now=at)])
    assert [one.at for one in checkpoint.verify(note, [LOG.key, WITNESS.key])] == [None, at]


def test_the_evidence_proves_its_entry():
    """The document's evidence is made of the document's proof and head, and proves entry 1 and no other."""
    text = block("tlog-proof").encode()
    assert text == checkpoint.write_proof(1, TREE.inclusion(1), NOTE)
    assert checkpoint.verify_proof(text, BODIES[1], [LOG.key]).index == 1
    for other in (BODIES[0], BODIES[2]):
        with pytest.raises(ValueError, match="not this entry"):
            checkpoint.verify_proof(text, other, [LOG.key])


def test_the_document_names_what_a_signed_head_has():
    """No column of the table and no format is missing from the document."""
    assert f"table `{SignedHead.__tablename__}`" in DOCUMENT
    for word in (
        "`note`",
        "`reason`",
        "`entry`",
        "`heartbeat`",
        "`rotation`",
        "log:rotate",
        "`new`",
        "`old`",
        "`lost`",
    ):
        assert word in DOCUMENT
    for name in ("signed-note", "tlog-checkpoint", "tlog-cosignature", "tlog-proof", "tlog-policy", "cosignature/v1"):
        assert name in DOCUMENT
