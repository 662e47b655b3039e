"""Does storage/FORMAT.md say what is in a bundle? The one that it describes is written again and compared."""

from __future__ import annotations

import io
import json
import zipfile
from datetime import UTC, datetime
from hashlib import sha256

import pytest
from bundling import row, unpack
from test_format import DOCUMENT, block
from test_format_heads import LOG, ORIGIN, WITNESS

from storage import audit, bundle, checkpoint, closing, export, standalone
from storage.database import Database
from storage.models import Anchor, SignedHead

EVIDENCE = ("bundle.json", "entries.jsonl", "heads/", "consistency/", "proofs/", "policy/")
BODIES = [json.loads(line)["body"].encode() for line in block("entries").splitlines()[1:-1]]
COSIGNED_AT = datetime(2026, 3, 1, 2, 15, 4, tzinfo=UTC)


@pytest.fixture(scope="module")
def members(tmp_path_factory) -> dict[str, bytes]:
    """The bundle of the document's four entries, signed after the third and the fourth, which a witness cosigned."""
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('format') / 'log.db'}")
    database.setup()
    for body in BODIES:
        told = audit.parse(body)
        with database.write() as session:
            if told.event == "request:open":
                session.add(row("BG-7KQ2", "orders-db", "U0RITA", told.at))
                session.flush()
            names = ("event", "at", "actor", "request_id", "source", "target", "version", "policy", "refused")
            stands = audit.append(session, data=told.data or None, **{name: getattr(told, name) for name in names})
            assert stands.body == body
            if told.seq >= 2:
                head = checkpoint.Checkpoint(ORIGIN, told.seq + 1, stands.root)
                note = checkpoint.sign(head, [LOG])
                signed = SignedHead(size=head.size, root=head.root, note=note, at=told.at, reason="entry")
                session.add(signed)
    with database.write() as session:
        line = checkpoint.cosign(head, WITNESS, now=COSIGNED_AT).line()
        session.add(Anchor(head_id=2, follower="w1", kind="cosignature", data=line, at=COSIGNED_AT))
    out = io.BytesIO()
    with database.read() as session:
        bundle.write(session, out, export.Selection(), with_pdf=False)
    database.close()
    return unpack(out.getvalue())


@pytest.fixture(scope="module")
def evidence(members) -> dict[str, bytes]:
    """Those of its members that are evidence, in their order, and a MANIFEST of them."""
    chosen = {name: data for name, data in members.items() if name.startswith(EVIDENCE)}
    lines = [f"{sha256(data).hexdigest()}  {name}\n" for name, data in sorted(chosen.items())]
    return chosen | {"MANIFEST": "".join(lines).encode()}


@pytest.fixture(scope="module")
def packed(evidence) -> bytes:
    """These as the document packs them: not compressed, since no two libraries need compress alike."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as box:
        for name, data in evidence.items():
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o100644 << 16
            box.writestr(info, data)
    return out.getvalue()


def test_the_entries_say_what_the_document_says_of_policies_and_closing():
    """The policy's hash, the hash of who could decide, and the closing entry follow from the document's formulas."""
    load, opened, denied, closed = map(audit.parse, BODIES)
    assert load.data["hash"] == sha256(load.data["text"].encode()).hexdigest()
    who = json.dumps([load.data["hash"], opened.data["custodians"]], separators=(",", ":"))
    assert opened.policy == denied.policy == sha256(who.encode()).hexdigest()
    leaves = [(seq, sha256(b"\x00" + BODIES[seq]).digest()) for seq in (1, 2)]
    assert closing.holds(closed.data, leaves)


def test_each_member_of_the_evidence_is_the_documents(evidence):
    """Byte by byte, by the SHA-256 that the document states, and none is more or fewer."""
    assert evidence["MANIFEST"].decode() == block("manifest")


def test_the_other_members_are_the_documents(members):
    """Around the evidence stand those that the document lists, and nothing else."""
    assert sorted(name for name in members if not name.startswith(EVIDENCE)) == block("members").split()


def test_the_members_that_are_shown_are_those(evidence):
    """What the document prints in full is what stands in the bundle."""
    for name, language in (
        ("bundle.json", "bundle"),
        ("entries.jsonl", "entries"),
        ("heads/000000000004-00.note", "bundle-head"),
        ("consistency/000000000003-000000000004.txt", "consistency"),
    ):
        assert evidence[name].decode() == block(language)


def test_the_bundle_as_a_whole_is_the_documents(packed):
    """Its length and its SHA-256 are those that the document states."""
    said = f"{len(packed):,} bytes with the SHA-256\n`{sha256(packed).hexdigest()}`"
    assert said in DOCUMENT


def test_the_documents_bundle_verifies_and_a_changed_one_does_not(packed, tmp_path):
    """The verifier finds nothing in it under the document's keys; with one byte of an entry changed it does."""
    file = tmp_path / "bundle.zip"
    vkeys = [standalone.read_vkey(str(one.key)) for one in (LOG, WITNESS)]
    file.write_bytes(packed)
    assert standalone.verify(file, vkeys).findings == []
    file.write_bytes(packed.replace(b"orders-db", b"orders-dc"))
    assert standalone.verify(file, vkeys).findings
