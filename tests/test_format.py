"""Does storage/FORMAT.md say what the program does? Its vectors are run here."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import storage
from storage import audit, merkle
from storage.export import COLUMNS, FORMAT
from storage.verify import verify_file

DOCUMENT = (Path(str(storage.__file__)).parent / "FORMAT.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    """The one fenced block of that language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    return str(found)


VECTORS: dict[str, Any] = json.loads(block("json"))


def test_bodies_parse_and_are_written_the_same() -> None:
    """Each body of the document is an entry, numbered in order, that the recipe in the document writes so."""
    for seq, entry in enumerate(VECTORS["entries"]):
        body = entry["body"].encode()
        record = audit.parse(body)
        assert record.seq == seq
        recipe = json.dumps(
            json.loads(body), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        assert recipe.encode() == body == audit._encode_again(record)


def test_leaves_and_roots_are_those_of_the_bodies() -> None:
    """Leaves by the formula in the document; roots by the program's peaks."""
    peaks = b""
    for seq, entry in enumerate(VECTORS["entries"]):
        leaf = sha256(b"\x00" + entry["body"].encode()).digest()
        assert leaf.hex() == entry["leaf"]
        peaks = merkle.push(peaks, seq, leaf)
        assert merkle.root(peaks).hex() == entry["root"]


def test_proofs_verify() -> None:
    """The document's proofs are those that the program gives, and they verify."""
    leaves = [bytes.fromhex(entry["leaf"]) for entry in VECTORS["entries"]]
    roots = [bytes.fromhex(entry["root"]) for entry in VECTORS["entries"]]
    tree = merkle.Tree(leaves)
    assert [proof["index"] for proof in VECTORS["inclusion"]] == [0, 1, 2]
    for vector in VECTORS["inclusion"]:
        index, size = vector["index"], vector["size"]
        proof = tuple(map(bytes.fromhex, vector["proof"]))
        assert proof == tree.inclusion(index)
        assert merkle.verify_inclusion(leaves[index], index, size, proof, roots[size - 1])
    for vector in VECTORS["consistency"]:
        old, new = vector["from"], vector["to"]
        proof = tuple(map(bytes.fromhex, vector["proof"]))
        assert proof == tree.consistency(old)
        assert merkle.verify_consistency(old, roots[old - 1], new, roots[new - 1], proof)


@pytest.mark.parametrize("body", VECTORS["refused"])
def test_other_spellings_are_refused(body: str) -> None:
    """A decimal too few, a space, another order and an empty data are not how the log writes."""
    with pytest.raises(ValueError):
        audit.parse(body.encode())


def test_the_example_export_verifies(tmp_path: Path) -> None:
    """The export in the document is one, of the entries in the document."""
    file = tmp_path / "example.jsonl"
    file.write_text(block("jsonl"), encoding="utf-8")
    report = verify_file(file)
    assert report.findings == ()
    assert report.head == audit.Head(size=3, root=bytes.fromhex(VECTORS["entries"][-1]["root"]))
    bodies = [json.loads(line)["body"] for line in block("jsonl").splitlines()[1:-1]]
    assert bodies == [entry["body"] for entry in VECTORS["entries"]]


def test_the_document_names_every_key_and_column() -> None:
    """No key of a body and no limit is missing from the document."""
    for name in (*audit._REQUIRED, *audit._OPTIONAL, "body", "leaf", "proof", FORMAT):
        assert f"`{name}`" in DOCUMENT
    assert f"{audit.MAX_BODY:,} bytes" in DOCUMENT
    assert f"{audit.MAX_DEPTH} levels" in DOCUMENT
    assert {"account", "body", "leaf", "proof"} < set(COLUMNS)
