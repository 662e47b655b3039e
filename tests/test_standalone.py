"""Does the one file that an auditor is handed work alone, and say the same as the program?"""

from __future__ import annotations

import ast
import io
import json
import random
import shutil
import subprocess
import sys
import zipfile
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import audit, checkpoint, export, merkle, standalone
from storage.audit import SYSTEM, Actor
from storage.checkpoint import Algorithm, Checkpoint
from storage.models import FINAL
from storage.signers import KeySigner
from storage.standalone import Findings, Heads, Kind, Rotation, Seen
from storage.verify import verify_file
from workflows.lifecycle import TRANSITIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

FILE: Final = Path(str(standalone.__file__))
NOW: Final = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
ORIGIN: Final = "log.example/orders"
RITA, CARL, CHEN = (Actor("T0HOME", name) for name in ("U0RITA", "U0CARL", "U0CHEN"))
ALICE: Final = KeySigner.of(ORIGIN, Ed25519PrivateKey.from_private_bytes(b"a" * 32))
BOB: Final = KeySigner.of(ORIGIN, Ed25519PrivateKey.from_private_bytes(b"b" * 32))
EVE: Final = KeySigner.of(ORIGIN, Ed25519PrivateKey.from_private_bytes(b"e" * 32))
WITNESS: Final = KeySigner.of("witness.example", Ed25519PrivateKey.from_private_bytes(b"w" * 32), Algorithm.COSIGNATURE)


# --- the file by itself --------------------------------------------------------------------------------------------


def test_its_moves_are_those_of_the_table() -> None:
    """The rules that travel with the evidence are generated from the table that the program acts by."""
    moves = {
        (move.source.value if move.source else None, action.value): (move.target.value, *(r.value for r in move.roles))
        for (_, action), move in TRANSITIONS.items()
    }
    assert moves == standalone.MOVES
    assert {state.value for state in FINAL} == standalone._FINAL


def test_it_needs_nothing_but_python_and_cryptography() -> None:
    """It imports none of our files and no other package, and its syntax is that of Python 3.9."""
    tree = ast.parse(FILE.read_bytes(), feature_version=(3, 9))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(str(node.module).partition(".")[0])
    assert names - sys.stdlib_module_names == {"cryptography"}
    # What came to the standard library after 3.9 is not used: the names that tempt most.
    source = FILE.read_text(encoding="utf-8")
    for later in ("StrEnum", "datetime.UTC", "import UTC", "slots=True", ".bit_count(", "strict=True)\n", "match "):
        assert later not in source.replace("no StrEnum", "").replace("csv.reader([line.decode()], strict=True)\n", "")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the file as an auditor does: a copy of it, in a folder of its own, where nothing of ours can be imported."""
    folder = tmp_path_factory.mktemp("alone")
    shutil.copyfile(FILE, folder / "verify.py")

    def run(*words: str | Path, flags: Iterable[str] = ("-I",)) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *flags, "verify.py", *map(str, words)]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)

    return run


def test_it_runs_alone(alone, tmp_path) -> None:
    """A sound export is 0, a changed one 4 with class, entry and sentence, wrong words 2."""
    file = tmp_path / "log.jsonl"
    file.write_bytes(written(story()))
    done = alone(file)
    assert (done.returncode, done.stderr) == (0, "")
    assert "verifies: 8 entries" in done.stdout
    file.write_bytes(file.read_bytes().replace(b"U0CHEN", b"U0EVIL", 1))
    done = alone(file)
    assert done.returncode == 4
    assert "ALTERED  entry 0: " in done.stdout
    for words in ((), ("--vkey",), ("--vkey", "nonsense", file), ("--head", tmp_path / "none", file), (file, file)):
        assert alone(*words).returncode == 2, words


def test_without_cryptography_it_says_what_to_install(alone, tmp_path) -> None:
    """Hashes and rules are checked without any package; signatures ask for one, by its name."""
    file, note = tmp_path / "log.jsonl", tmp_path / "note"
    bodies = story()
    file.write_bytes(written(bodies))
    note.write_bytes(signed(bodies, ALICE))
    bare = ("-I", "-S")
    assert alone(file, flags=bare).returncode == 0
    assert alone(file, "--head", note, flags=bare).returncode == 0
    done = alone(file, "--head", note, "--vkey", ALICE.key, flags=bare)
    assert done.returncode == 3
    assert "pip install cryptography" in done.stderr
    assert alone(file, "--head", note, "--vkey", ALICE.key).returncode == 0
    assert "UNKNOWN SIGNATURE" in alone(file, "--head", note, "--vkey", BOB.key).stdout


# --- logs made by hand ---------------------------------------------------------------------------------------------


def story(**changes: Any) -> list[bytes]:
    """The entries of one request; ``changes``: by event, members that replace what it says."""
    return bodies_of(events(), changes)


def events() -> list[dict[str, Any]]:
    """One request, from its opening to its end, as the desk writes it."""
    opened = {
        "account": "orders-db",
        "level": "read",
        "reason": "Checkout fails",
        "standard_path": "Paged twice",
        "incident": "INC-1",
        "asked_seconds": 900,
        "quorum": 1,
        "custodians": ["U0CARL", "U0CHEN"],
        "threshold": {"id": "impact", "text": "Customers cannot order"},
    }
    one = {"credential": 1, "path": "database/creds/ro"}
    issued = one | {"lease": "l/1", "expires_at": "2026-03-01T02:15:00Z"}
    ended = {"leases": ["l/1"], "review_due_at": "2026-03-04T02:00:00Z"}
    return [
        {"event": "request:open", "actor": RITA, "target": "pending", "data": opened},
        {"event": "request:approve", "actor": CARL, "source": "pending", "data": {"granted_seconds": 900, "need": 1}},
        {
            "event": "request:quorum",
            "source": "pending",
            "target": "approved",
            "data": {"approvers": ["U0CARL"], "granted_seconds": 900},
        },
        {"event": "credential:reveal", "actor": RITA, "source": "approved", "data": {"credential": 1}},
        {"event": "credential:token", "source": "approved", "data": one},
        {"event": "credential:issue", "source": "approved", "target": "active", "data": issued},
        {"event": "credential:release", "actor": RITA, "source": "active", "target": "ending"},
        {"event": "credential:end", "source": "ending", "target": "ended", "data": ended},
    ]


def bodies_of(made: list[dict[str, Any]], changes: dict[str, Any] | None = None) -> list[bytes]:
    """Encode entries, numbered and counted; what does not name its target keeps its state."""
    bodies = []
    for seq, event in enumerate(made):
        members = {
            "actor": SYSTEM,
            "at": NOW,
            "request_id": "BG-7KQ2",
            "version": seq + 1,
            "target": event.get("source"),
        }
        members |= event | (changes or {}).get(event["event"].replace(":", "_"), {})
        bodies.append(audit.encode(seq=seq, **members))
    return bodies


def written(bodies: list[bytes | None], leaves: list[bytes] | None = None, **selection: str | None) -> bytes:
    """An export of the whole log; None is a body that was pruned."""
    leaves = leaves or [merkle.leaf_hash(body or b"") for body in bodies]
    tree = merkle.Tree(leaves)
    header = {
        "format": export.FORMAT,
        "exported_at": audit.write_time(NOW + timedelta(days=1)),
        "selection": {"since": None, "until": None, "account": None, "request": None} | selection,
        "head": {"size": tree.size, "root": tree.root.hex()},
        "count": len(bodies),
    }
    lines = [export.json_line(header)]
    for seq, body in enumerate(bodies):
        proof = [step.hex() for step in tree.inclusion(seq)]
        words = None if body is None else body.decode()
        lines.append(export.json_line({"seq": seq, "body": words, "leaf": leaves[seq].hex(), "proof": proof}))
    passed = b"".join(lines)
    return passed + export.json_line({"count": len(bodies), "sha256": sha256(passed).hexdigest()})


def signed(bodies: list[bytes], *signers: KeySigner, origin: str = ORIGIN) -> bytes:
    """The signed head over these entries."""
    root = merkle.Tree(map(merkle.leaf_hash, bodies)).root
    return checkpoint.sign(Checkpoint(origin, len(bodies), root), signers)


def found(tmp_path: Path, text: bytes, **more: Any) -> list[tuple[Kind, int | None]]:
    """Class and entry of what is found."""
    (tmp_path / "file").write_bytes(text)
    return [(one.kind, one.seq) for one in standalone.verify(tmp_path / "file", **more).findings]


@pytest.mark.parametrize(
    ("event", "data", "expected"),
    [
        ("command:run", {"at": "2026-03-01T02:00:00.000000Z"}, []),  # recorded late
        ("command:run", {"at": "2026-03-01T02:00:05.000000Z"}, []),  # by a clock that is ahead
        ("command:run", {"at": "2026-03-01T02:00:05.000001Z"}, [Kind.AFTER_END]),
        ("command:run", {}, [Kind.AFTER_END]),
        ("command:close", {"gaps": [], "stopped": False}, []),
        ("command:close", {"gaps": [{"after": 3, "missing": 1}], "stopped": False}, [Kind.CAPTURE_GAP]),
        ("command:close", {"gaps": [], "stopped": True}, [Kind.CAPTURE_GAP]),
        ("command:stop", {"text": "SET log_statement = none"}, [Kind.CAPTURE_GAP]),
        ("capture:down", {"since": "2026-03-01T02:00:00.000000Z"}, [Kind.CAPTURE_GAP]),
        ("capture:up", {"since": "2026-03-01T02:00:00.000000Z"}, []),
    ],
)
def test_a_record_of_commands_is_judged_by_the_targets_clock_and_by_its_holes(tmp_path, event, data, expected) -> None:
    """A command that only came late is no use after the end; what the record says is missing is a finding."""
    later = {"event": event, "at": NOW + timedelta(minutes=1), "version": None, "data": data | {"source": "orders-pg"}}
    file = written(bodies_of([*events(), later]))
    assert found(tmp_path, file) == [(kind, 8) for kind in expected]


def test_lines_that_were_lost_are_a_finding_about_the_whole_log(tmp_path) -> None:
    """A source whose lines were destroyed is named, also where no request is."""
    lost = {"event": "capture:gap", "request_id": None, "version": None, "data": {"source": "orders-pg"}}
    file = written(bodies_of([*events(), lost]))
    assert found(tmp_path, file) == [(Kind.CAPTURE_GAP, 8)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"request_approve": {"actor": RITA}}, [(Kind.SELF_APPROVAL, 1), (Kind.NO_QUORUM, 2)]),
        ({"request_quorum": {"data": {"approvers": [], "granted_seconds": 900}}}, [(Kind.NO_QUORUM, 2)]),
        ({"credential_release": {"actor": CARL}}, [(Kind.WRONG_PERSON, 6)]),
        ({"credential_end": {"data": {"leases": [], "review_due_at": "2026-03-04T02:00:00Z"}}}, [(Kind.STILL_OUT, 7)]),
        (
            {"credential_end": {"data": {"leases": ["l/1"], "review_due_at": "2026-03-01T20:00:00Z"}}},
            [(Kind.REVIEW_MISSING, 7)],
        ),
        ({"credential_issue": {"at": NOW - timedelta(hours=1)}}, [(Kind.CLOCK, 5), (Kind.TOO_LONG, 5)]),
        ({"request_approve": {"version": 7}}, [(Kind.MISSING, 1), (Kind.DOUBLED, 2)]),
    ],
)
def test_an_export_is_judged_by_the_rules_too(tmp_path, changes, expected) -> None:
    """What holds together by its hashes and breaks the rules is found in the file alone, and is no matter of hashes."""
    text = written(story(**changes))
    assert found(tmp_path, text) == expected
    assert found(tmp_path, text, rules=False) == []
    assert verify_file(tmp_path / "file").ok


def test_a_part_of_the_log_is_judged_by_what_it_shows(tmp_path) -> None:
    """An export that begins in the middle of a request gives no false alarm, and its later misdeeds are found."""
    bodies = story(credential_release={"actor": CARL})
    leaves = [merkle.leaf_hash(body) for body in bodies]
    tree = merkle.Tree(leaves)
    since = audit.write_time(NOW)
    lines = written(bodies, since=since).splitlines(keepends=True)
    lines = [lines[0].replace(b'"count":8', b'"count":4'), *lines[5:-1]]
    passed = b"".join(lines)
    text = passed + export.json_line({"count": 4, "sha256": sha256(passed).hexdigest()})
    assert tree.size == 8
    assert found(tmp_path, text) == []  # who asked is not known here
    assert found(tmp_path, written(bodies, since=since)) == [(Kind.WRONG_PERSON, 6)]


def test_a_pruned_body_needs_an_entry_that_says_so(tmp_path) -> None:
    """A body that is gone is accepted when the log says that two people had it pruned, and is missing otherwise."""
    made = events()
    loose = {"request_id": None, "version": None, "target": None}
    made += [
        {"event": "retention:propose", **loose, "data": {"count": 2}},
        {"event": "retention:confirm", "actor": CARL, **loose, "data": {"proposal": 8}},
        {"event": "retention:confirm", "actor": CHEN, **loose, "data": {"proposal": 8}},
        {
            "event": "retention:apply",
            **loose,
            "data": {"proposal": 8, "ranges": [[1, 2]], "count": 2, "sha256": "0" * 64},
        },
    ]
    bodies: list[Any] = bodies_of(made)
    leaves = [merkle.leaf_hash(body) for body in bodies]
    bodies[1] = bodies[2] = None
    assert found(tmp_path, written(bodies, leaves)) == []
    assert found(tmp_path, written([*bodies[:6], None, *bodies[7:]], leaves)) == [(Kind.MISSING, 6)]
    one = [*made[:10], made[9], made[11]]
    bodies = bodies_of(one)
    assert found(tmp_path, written(bodies)) == [(Kind.NO_QUORUM, 11)]


# --- the same as the program's own ---------------------------------------------------------------------------------

_SNIPPETS: Final = st.sampled_from(
    [b"", b" ", b"0", b'"', b"\\u00e9", b"\\n", b"null", b"1e5", b"NaN", b"{}", b"[[[[", b"T", b":", b'"v":2,', b"\xff"]
)


@settings(max_examples=400)
@given(data=st.data())
def test_bodies_are_read_as_strictly_as_the_log_reads_them(data: st.DataObject) -> None:
    """Whatever is done to the bytes of an entry, both readers accept it or both refuse it."""
    body = data.draw(st.sampled_from(story()))
    start = data.draw(st.integers(0, len(body)))
    changed = body[:start] + data.draw(_SNIPPETS) + body[data.draw(st.integers(start, min(len(body), start + 3))) :]
    try:
        audit.parse(changed)
        expected = True
    except ValueError:
        expected = False
    try:
        standalone.read_body(changed.decode())
        actual = True
    except ValueError:
        actual = False
    assert actual == expected, changed


_JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=30,
)


@settings(max_examples=300)
@given(
    name=st.sampled_from(["v", "seq", "at", "event", "actor", "request", "from", "version", "data", "x"]), value=_JSON
)
def test_members_of_any_kind_are_read_as_strictly(name: str, value: Any) -> None:
    """Any JSON in any member: both readers accept it or both refuse it."""
    entry = json.loads(story()[1]) | {name: value}
    try:
        body = audit.canonical(entry)
    except ValueError:
        return  # NaN
    results = []
    for read in (lambda: audit.parse(body), lambda: standalone.read_body(body.decode())):
        try:
            read()
            results.append(True)
        except ValueError:
            results.append(False)
    assert results[0] == results[1], body


def test_deep_data_is_refused_at_the_same_depth() -> None:
    """The limit of nesting is that of the log."""
    for depth in range(12, 20):
        value: Any = 1
        for _ in range(depth):
            value = [value]
        body = audit.canonical(json.loads(story()[1]) | {"data": {"deep": value}})
        results = []
        for read in (lambda body=body: audit.parse(body), lambda body=body: standalone.read_body(body.decode())):
            try:
                read()
                results.append(True)
            except ValueError:
                results.append(False)
        assert results[0] == results[1], depth


def test_proofs_are_followed_as_by_the_tree() -> None:
    """Every proof of every small log is followed, in any order; a wrong step, index, leaf or root is refused."""
    rng = random.Random(7)  # noqa: S311 - seeded, so that a failure can be had again
    for size in range(1, 34):
        leaves = [merkle.leaf_hash(bytes([n])) for n in range(size)]
        tree = merkle.Tree(leaves)
        steps = [[step.hex() for step in tree.inclusion(n)] for n in range(size)]
        proofs = [standalone.proof_text(one) for one in steps]
        for order in (list(range(size)), rng.sample(range(size), size)):
            paths = standalone.Paths(size, tree.root)
            for index in order:
                assert paths.leads(leaves[index], index, proofs[index])
                assert not paths.leads(leaves[index], index + 1, proofs[index])
                assert not paths.leads(leaves[index - 1], index, proofs[index]) or size == 1
                assert not paths.leads(leaves[index], index, standalone.proof_text([*steps[index], "0" * 64]))
                for at in range(len(steps[index])):
                    wrong = [*steps[index][:at], "0" * 64, *steps[index][at + 1 :]]
                    assert not paths.leads(leaves[index], index, standalone.proof_text(wrong))
                short = standalone.proof_text(steps[index][:-1])
                assert not paths.leads(leaves[index], index, short) or not steps[index]
                assert paths.leads(leaves[index], index, proofs[index])
            assert not standalone.Paths(size, b"0" * 32).leads(leaves[0], 0, proofs[0])
        for old in range(size + 1):
            root = merkle.Tree(leaves[:old]).root
            proof = tree.consistency(old)
            assert standalone.is_consistent((old, root), (size, tree.root), proof)
            assert not standalone.is_consistent((old, b"0" * 32), (size, tree.root), proof)
            assert not standalone.is_consistent((old, root), (size, tree.root), [*proof, b"0" * 32])


@settings(max_examples=300)
@given(data=st.data())
def test_signed_heads_are_read_as_strictly(data: st.DataObject) -> None:
    """Whatever is done to the bytes of a note, both readers accept it or both refuse it, and both the same keys."""
    note = checkpoint.sign(Checkpoint(ORIGIN, 7, b"r" * 32, ("time 2026-03-01T02:00:00Z",)), [ALICE, BOB])
    line = checkpoint.cosign(checkpoint.parse(note).checkpoint, WITNESS, now=NOW)
    note = checkpoint.add_signatures(note, [line])
    start = data.draw(st.integers(0, len(note)))
    changed = note[:start] + data.draw(_SNIPPETS | st.sampled_from([b"\n", b"\r\n", b"+", b"=", b"\xe2\x80\x94 "]))
    changed += note[data.draw(st.integers(start, min(len(note), start + 2))) :]
    try:
        expected = checkpoint.parse(changed)
    except ValueError:
        with pytest.raises(ValueError):
            standalone.read_note(changed)
        return
    head = standalone.read_note(changed)
    assert (head.origin, head.size, head.root) == (
        expected.checkpoint.origin,
        expected.checkpoint.size,
        expected.checkpoint.root,
    )
    assert head.text == expected.checkpoint.body()
    for signer in (ALICE, WITNESS):
        key = standalone.read_vkey(str(signer.key))
        good = [
            standalone.check_signature(key, one, head.text)
            for one in head.signatures
            if (one.name, one.key_id) == (key.name, key.key_id)
        ]
        try:
            checkpoint.verify(expected, [signer.key])
            assert good
            assert all(good)
        except ValueError:
            assert not good or not all(good)


def test_vkeys_are_read_as_strictly() -> None:
    """A key's text is accepted as the program accepts it, and written the same."""
    for signer in (ALICE, WITNESS):
        text = str(signer.key)
        assert str(standalone.read_vkey(text)) == text
        for at in range(len(text)):
            changed = text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :]
            try:
                expected = str(checkpoint.parse_vkey(changed))
            except ValueError:
                with pytest.raises(ValueError):
                    standalone.read_vkey(changed)
            else:
                assert str(standalone.read_vkey(changed)) == expected


# --- keys that follow each other -----------------------------------------------------------------------------------


def rotated(*, by: tuple[KeySigner, ...], lost: bool = False) -> tuple[list[bytes], list[tuple[int, bytes]]]:
    """A log in which the key went over from Alice to Bob, and its heads; ``by``: who signed the one in between."""
    bodies = [
        audit.encode(seq=0, event="test:event", at=NOW, actor=SYSTEM),
        audit.encode(
            seq=1,
            event="log:rotate",
            at=NOW,
            actor=CARL,
            data={"new": str(BOB.key), "old": str(ALICE.key), "lost": lost},
        ),
        audit.encode(seq=2, event="test:event", at=NOW, actor=SYSTEM),
    ]
    signers = {1: (ALICE,), 2: by, 3: (BOB,)}
    return bodies, [(size, signed(bodies[:size], *signers[size])) for size in (1, 2, 3)]


@pytest.mark.parametrize(
    ("by", "given_key", "kinds"),
    [
        ((ALICE, BOB), ALICE, set()),
        ((ALICE, BOB), BOB, set()),
        ((BOB,), BOB, set()),  # the old key was lost: whoever trusts the new one trusts what it says of the old
        ((BOB,), ALICE, {Kind.UNKNOWN_SIGNATURE}),  # Bob vouches for himself
        ((ALICE,), ALICE, {Kind.UNKNOWN_SIGNATURE}),
        ((ALICE, BOB), EVE, {Kind.UNKNOWN_SIGNATURE}),
    ],
)
def test_a_new_key_is_trusted_when_the_old_one_signed_its_coming(by, given_key, kinds) -> None:
    """The head over a rotation's entry, signed by both keys, carries the trust over; nothing else does."""
    bodies, heads = rotated(by=by)
    rotations = [Rotation(1, standalone.read_vkey(str(ALICE.key)), standalone.read_vkey(str(BOB.key)))]
    notes = {size: [note] for size, note in heads}
    keys = standalone.trusted([standalone.read_vkey(str(given_key.key))], rotations, lambda size: notes.get(size, []))
    findings = Findings(100)
    checker = Heads(findings, keys, rotations, len(bodies))
    for size, note in heads:
        checker.check(Seen(f"head {size}", note, merkle.Tree(map(merkle.leaf_hash, bodies[:size])).root))
    assert {one.kind for one in findings} == kinds


def test_a_retired_key_signs_nothing_more() -> None:
    """A head that only the old key signed, after the change, is a bad signature: that key may have been stolen."""
    bodies, heads = rotated(by=(ALICE, BOB))
    rotations = [Rotation(1, standalone.read_vkey(str(ALICE.key)), standalone.read_vkey(str(BOB.key)))]
    keys = [standalone.read_vkey(str(signer.key)) for signer in (ALICE, BOB)]
    findings = Findings(100)
    checker = Heads(findings, keys, rotations, len(bodies))
    for note in (heads[0][1], heads[1][1], signed(bodies, ALICE)):
        checker.check(Seen("a head", note, None))
    assert [(one.kind, one.seq) for one in findings] == [(Kind.BAD_SIGNATURE, 2)]


# --- hostile files -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle() -> bytes:
    """A small bundle, made by hand as FORMAT.md says."""
    bodies = story()
    tree = merkle.Tree(map(merkle.leaf_hash, bodies))
    note, early = signed(bodies, ALICE), signed(bodies[:3], ALICE)
    steps = "".join(f"{checkpoint._base64(step)}\n" for step in tree.consistency(3))
    members = {
        "entries.jsonl": written(bodies),
        "heads/000000000003-00.note": early,
        "heads/000000000008-00.note": note,
        "consistency/000000000003-000000000008.txt": f"old 3\n{steps}\n".encode() + note,
        "proofs/000000000002.tlog-proof": checkpoint.write_proof(2, tree.inclusion(2), note),
        "proofs.txt": b"".join(checkpoint.write_proof(n, tree.inclusion(n), note) for n in range(8)),
        "bundle.json": audit.canonical({"head": {"size": 8, "root": tree.root.hex()}}) + b"\n",
    }
    return packed(members)


def packed(members: dict[str, bytes], *, manifest: bool = True) -> bytes:
    """Pack a bundle, with a true MANIFEST."""
    if manifest:
        lines = [f"{sha256(data).hexdigest()}  {name}\n" for name, data in sorted(members.items())]
        members = members | {"MANIFEST": "".join(lines).encode()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as box:
        for name, data in members.items():
            box.writestr(zipfile.ZipInfo(name), data)
    return out.getvalue()


def members_of(bundle: bytes) -> dict[str, bytes]:
    """The files of a bundle but MANIFEST."""
    with zipfile.ZipFile(io.BytesIO(bundle)) as box:
        return {name: box.read(name) for name in box.namelist() if name != "MANIFEST"}


def keys() -> list[standalone.Key]:
    """The trusted key."""
    return [standalone.read_vkey(str(ALICE.key))]


def test_a_bundle_verifies_packed_and_unpacked(bundle, tmp_path) -> None:
    """The archive, and the folder that it is unpacked to, are without a finding."""
    assert found(tmp_path, bundle, keys=keys()) == []
    with zipfile.ZipFile(io.BytesIO(bundle)) as box:
        box.extractall(tmp_path / "folder")
    report = standalone.verify(tmp_path / "folder", keys())
    assert (report.findings, report.unchecked, report.entries) == ([], (), 8)


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("heads/000000000003-00.note", lambda _: signed(story()[:3], EVE), Kind.UNKNOWN_SIGNATURE),
        ("heads/000000000003-00.note", lambda _: signed(story()[1:4], ALICE), Kind.FORKED),
        ("heads/000000000008-00.note", lambda note: note.replace(b"8\n", b"9\n", 1), Kind.BAD_SIGNATURE),
        ("heads/000000000008-00.note", lambda _: signed(story()[:4], ALICE), Kind.UNKNOWN_SIGNATURE),
        ("heads/000000000008-00.note", lambda _: b"nothing", Kind.UNREADABLE),
        ("consistency/000000000003-000000000008.txt", lambda text: text.replace(b"old 3", b"old 2"), Kind.FORKED),
        ("consistency/000000000003-000000000008.txt", lambda text: text[4:], Kind.UNREADABLE),
        ("proofs/000000000002.tlog-proof", lambda text: text.replace(b"index 2", b"index 3"), Kind.ALTERED),
        ("proofs/000000000002.tlog-proof", lambda _: b"", Kind.UNREADABLE),
        ("proofs.txt", lambda text: text.replace(b"index 5", b"index 4"), Kind.ALTERED),
        ("bundle.json", lambda text: text.replace(b'"size":8', b'"size":7'), Kind.ALTERED),
        ("bundle.json", lambda _: b"[]", Kind.UNREADABLE),
        ("policy/" + "0" * 64 + ".yml", lambda _: b"version: 1", Kind.ALTERED),
        ("anchors/000000000008-00-clock.tsr", lambda _: b"a token", Kind.FORKED),
        ("entries.jsonl", lambda _: written(story(request_approve={"actor": CHEN})), Kind.FORKED),
        ("entries.jsonl", lambda text: text.replace(b"U0CHEN", b"U0EVIL"), Kind.ALTERED),
    ],
)
def test_attack_changing_a_file_of_a_bundle_and_its_manifest(bundle, tmp_path, name, change, expected) -> None:
    """A file that was changed together with its hash in MANIFEST is found by what it says."""
    members = members_of(bundle)
    members[name] = change(members.get(name, b""))
    assert expected in {kind for kind, _ in found(tmp_path, packed(members), keys=keys())}


def test_attack_changing_adding_or_dropping_files(bundle, tmp_path) -> None:
    """What differs from MANIFEST is named; so is a bundle without it, or without its heads when there is a key."""
    members = members_of(bundle)
    with zipfile.ZipFile(io.BytesIO(bundle)) as box:
        manifest = box.read("MANIFEST")
    for name in members:
        rest = {other: data for other, data in members.items() if other != name} | {"MANIFEST": manifest}
        assert (Kind.MISSING, None) in found(tmp_path, packed(rest, manifest=False), keys=keys()), name
        changed = members | {name: members[name] + b"\n", "MANIFEST": manifest}
        assert (Kind.ALTERED, None) in found(tmp_path, packed(changed, manifest=False), keys=keys()), name
    added = members | {"extra.txt": b"", "MANIFEST": manifest}
    assert found(tmp_path, packed(added, manifest=False), keys=keys()) == [(Kind.ALTERED, None)]
    assert (Kind.MISSING, None) in found(tmp_path, packed(members, manifest=False))
    bare = {"entries.jsonl": members["entries.jsonl"]}
    assert found(tmp_path, packed(bare), keys=keys()) == [(Kind.UNKNOWN_SIGNATURE, 7)]
    assert found(tmp_path, packed(bare)) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=250)
@given(data=st.data())
def test_any_change_of_a_bundles_bytes_is_a_finding_or_nothing_and_never_a_crash(
    bundle: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    """Bytes flipped, cut or put in anywhere: what can still be read whole is whole, all else is found."""
    start = data.draw(st.integers(0, len(bundle)))
    end = data.draw(st.integers(start, min(len(bundle), start + 30)))
    changed = bundle[:start] + data.draw(st.binary(max_size=6)) + bundle[end:]
    (tmp_path / "file").write_bytes(changed)
    report = standalone.verify(tmp_path / "file", keys())
    if not report.findings:
        with zipfile.ZipFile(tmp_path / "file") as box, zipfile.ZipFile(io.BytesIO(bundle)) as whole:
            assert {name: box.read(name) for name in box.namelist()} == {n: whole.read(n) for n in whole.namelist()}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(data=st.data())
def test_any_bytes_in_any_file_of_a_bundle_are_never_a_crash(
    bundle: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    """With a true MANIFEST around it, whatever stands in a file is a finding, or is not looked at."""
    members = members_of(bundle)
    name = data.draw(st.sampled_from(sorted(members)))
    text = members[name]
    start = data.draw(st.integers(0, len(text)))
    noise = data.draw(
        st.binary(max_size=6)
        | st.sampled_from([b"\n", b"\n\n", b"9" * 5000, b"[" * 9000, b"old 0\n", b"\xff", b'"a":{}'])
    )
    members[name] = text[:start] + noise + text[data.draw(st.integers(start, len(text))) :]
    (tmp_path / "file").write_bytes(packed(members))
    report = standalone.verify(tmp_path / "file", keys())
    assert report.findings or members[name] == text or name == "bundle.json"


@settings(max_examples=200)
@given(data=st.data())
def test_any_data_in_any_entry_is_never_a_crash(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Values of any kind where the rules expect words, numbers and times give findings at the most."""
    file = tmp_path_factory.getbasetemp() / "any.jsonl"
    made = events()
    event = data.draw(st.sampled_from(made))
    values = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=3), max_size=2)
    values |= st.sampled_from(["2026-99-01T00:00:00Z", "9999-12-31T23:59:59Z", 1 << 62, -1, {}, [[]], 1e300])
    name = data.draw(st.sampled_from([*event.get("data", {"x": 1}), "proposal", "ranges", "count", "sha256"]))
    event["data"] = event.get("data", {}) | {name: data.draw(values)}
    event["event"] = data.draw(
        st.sampled_from(
            [
                *(event["event"], "request:close", "retention:apply", "log:rotate", "policy:load"),
                *("command:run", "command:close", "capture:gap"),
            ]
        )
    )
    if data.draw(st.booleans()):
        event |= {"request_id": None, "version": None, "target": None, "source": None}
    file.write_bytes(written(bodies_of(made)))
    standalone.verify(file, keys())
