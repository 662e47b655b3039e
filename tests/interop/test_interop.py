"""Do verifiers that share nothing with this project agree with it, about what holds and about what does not?

Go's ``golang.org/x/mod/sumdb`` (notes, inclusion, consistency; ``verify.go``) and ``pymerkle`` (roots) are given a log
that the desk, the real Vault and the real database wrote, signed with the key in Vault.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pymerkle
import pytest
from counter import ADA, RITA
from test_format import block

from bot.demo.vault_setup import LOG_KEY, LOG_MOUNT
from storage import audit, checkpoint, heads, merkle, proofs
from storage.checkpoint import Checkpoint
from storage.heads import HeadKeeper
from workflows.signing import VaultKeyring

if TYPE_CHECKING:
    from counter import Counter
    from real_parts import Real

    from storage.checkpoint import VerifierKey
    from storage.models import SignedHead

ORIGIN = "log.example/orders"
LIBRARY = Path("/usr/share/gocode")  # where Debian puts Go's libraries
NEEDED = "Go's verifier cannot be built: install Debian's golang-go and golang-golang-x-mod-dev (or Go with x/mod)."


@pytest.fixture(scope="session")
def go(tmp_path_factory) -> Path:
    """Go's verifier, built once."""
    folder = tmp_path_factory.mktemp("go")
    if shutil.which("go") is None or not (LIBRARY / "src/golang.org/x/mod/sumdb").is_dir():
        pytest.fail(NEEDED)
    environment = os.environ | {
        "GO111MODULE": "off",
        "GOPATH": str(LIBRARY),
        "GOCACHE": str(folder / "cache"),
        "GOFLAGS": "",
        "GOTOOLCHAIN": "local",
        "CGO_ENABLED": "0",
    }
    source = Path(__file__).with_name("verify.go")
    built = subprocess.run(
        ["go", "build", "-o", str(folder / "verify"), str(source)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode:
        pytest.fail(f"{NEEDED}\n{built.stderr}")
    return folder / "verify"


def ask(go: Path, questions: list[dict[str, Any]]) -> list[bool]:
    """Put the questions to Go and return which it answered with yes."""

    def plain(value: Any) -> Any:
        if isinstance(value, bytes):
            return base64.b64encode(value).decode()
        if isinstance(value, list | tuple):
            return [plain(one) for one in value]
        return value

    lines = [json.dumps({name: plain(value) for name, value in question.items()}) for question in questions]
    answered = subprocess.run([str(go)], input="\n".join(lines), capture_output=True, text=True, check=True)
    answers = answered.stdout.splitlines()
    assert len(answers) == len(questions), answered.stderr
    assert all(line == "ok" or line.startswith("no: ") for line in answers)
    return [line == "ok" for line in answers]


@dataclass
class Run:
    """A finished run: its bodies, its signed heads, the log's keys and the proofs out of its database."""

    bodies: list[bytes]
    heads: list[SignedHead]
    keys: list[VerifierKey]
    inclusion: dict[tuple[int, int], tuple[bytes, ...]]  # (index, size)
    consistency: dict[tuple[int, int], tuple[bytes, ...]]  # (old, new)

    @property
    def vkeys(self) -> list[str]:
        """The keys as auditors get them."""
        return [str(key) for key in self.keys]

    @property
    def newest(self) -> SignedHead:
        """The last head."""
        return self.heads[-1]


@pytest.fixture
def run(counter: Counter, real: Real) -> Run:
    """A request from its opening to its end, a heartbeat and a change of the key, each step with its signed head."""
    keyring = VaultKeyring(ORIGIN, real.vault(), LOG_MOUNT, LOG_KEY)
    keeper = HeadKeeper(counter.database, ORIGIN, keyring, heartbeat=timedelta(minutes=5), now=lambda: counter.now)
    counter.database.woken.append(lambda _requests: keeper.round())
    row = counter.approved()
    counter.show(row)
    version = counter.fresh(row).request.version
    counter.release(RITA, row.id, version, now=counter.now)
    real.bao.call("POST", f"{LOG_MOUNT}/keys/{LOG_KEY}/rotate", {})
    counter.database.woken.clear()  # the rotation signs by itself, in its own transaction
    keeper.rotate(ADA)
    counter.database.woken.append(lambda _requests: keeper.round())
    for _ in range(3):
        counter.ask()
    counter.pass_time(minutes=6)
    keeper.round()
    assert keeper.trouble is None
    with counter.database.read() as session:
        stored = heads.between(session)
        sizes = sorted({head.size for head in stored})
        return Run(
            bodies=[record.body for record in audit.read_entries(session)],
            heads=stored,
            keys=[signer.key for signer in keyring.signers()][-2:],
            inclusion={
                (index, size): proofs.inclusion(session, index, size) for size in sizes for index in range(size)
            },
            consistency={
                (old, new): proofs.consistency(session, old, new) for old in sizes for new in sizes if old <= new
            },
        )


def flipped(data: bytes) -> list[bytes]:
    """Return the data once for each of its bits, with that bit flipped."""
    copies = []
    for place in range(len(data)):
        for bit in range(8):
            copy = bytearray(data)
            copy[place] ^= 1 << bit
            copies.append(bytes(copy))
    return copies


def means_the_same(note: bytes, other: bytes) -> bool:
    """Whether two notes differ only in bits of base64 that stand for nothing: Go's decoder overlooks those."""
    if note.rpartition(b" ")[0] != other.rpartition(b" ")[0]:
        return False
    try:
        mine, theirs = (base64.b64decode(one.rpartition(b" ")[2], validate=False) for one in (note, other))
    except ValueError:
        return False
    return mine == theirs and other.endswith(b"=\n")


def test_go_accepts_every_head_of_a_real_run(go, run):
    """Each signed head, also the heartbeat and the one that both keys signed, opens with the log's vkeys in Go."""
    assert {head.reason for head in run.heads} == {"entry", "heartbeat", "rotation"}
    assert len(run.heads) >= 8
    assert all(ask(go, [{"ask": "note", "note": head.note, "keys": run.vkeys} for head in run.heads]))
    for head in run.heads:
        assert checkpoint.verify(head.note, run.keys)


def test_the_rotation_opens_with_either_key_and_the_rest_with_one(go, run):
    """Go agrees on who signed what: before the rotation the old key alone, after it the new one alone."""
    at = next(number for number, head in enumerate(run.heads) if head.reason == "rotation")
    old, new = run.vkeys
    questions = [{"ask": "note", "note": head.note, "keys": [key]} for head in run.heads for key in (old, new)]
    expected = [is_it for number, _ in enumerate(run.heads) for is_it in (number <= at, number >= at)]
    assert ask(go, questions) == expected


def test_go_accepts_every_inclusion_proof_of_a_real_run(go, run):
    """Every entry is proved to every signed head that covers it, and to none that does not."""
    questions = [
        {"ask": "inclusion", "note": head.note, "keys": run.vkeys, "index": index, "body": body}
        | {"proof": run.inclusion[index, head.size]}
        for head in run.heads
        for index, body in enumerate(run.bodies[: head.size])
    ]
    assert all(ask(go, questions))
    moved = [question | {"index": question["index"] + 1} for question in questions]
    assert not any(ask(go, moved))


def test_go_accepts_every_consistency_proof_of_a_real_run(go, run):
    """From every signed head to every later one the log has only grown."""
    questions = [
        {"ask": "consistency", "old": old.note, "note": new.note, "keys": run.vkeys}
        | {"proof": run.consistency[old.size, new.size]}
        for number, old in enumerate(run.heads)
        for new in run.heads[number:]
    ]
    assert len(questions) > 30
    assert all(ask(go, questions))


def test_roots_are_pymerkles(run):
    """At each signed size the root is that which pymerkle computes from the same bytes."""
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    roots = [tree.get_root()]
    for body in run.bodies:
        tree.append_entry(body)
        roots.append(tree.get_root())
    assert roots[0] == merkle.EMPTY_ROOT
    assert [roots[head.size] for head in run.heads] == [head.root for head in run.heads]


def test_a_flipped_bit_of_a_head_is_refused_by_both(go, run):
    """Every single bit of a head: Go refuses it, and so do we (and we those bits, too, that Go's base64 overlooks)."""
    note = run.newest.note
    bad = flipped(note)
    answers = ask(go, [{"ask": "note", "note": one, "keys": run.vkeys} for one in bad])
    assert [one for one, is_fine in zip(bad, answers, strict=True) if is_fine and not means_the_same(note, one)] == []
    for one in bad:
        with pytest.raises(ValueError):
            checkpoint.verify(one, run.keys)


def test_a_flipped_bit_of_an_entry_or_of_its_proof_is_refused_by_both(go, run):
    """Every single bit of one entry's bytes and of the hashes of its proof, and a proof too short, long or swapped."""
    size, root = run.newest.size, run.newest.root
    index = size // 2
    body, proof = run.bodies[index], run.inclusion[index, size]
    bad = [(one, proof) for one in flipped(body)]
    bad += [(body, (*proof[:at], one, *proof[at + 1 :])) for at, step in enumerate(proof) for one in flipped(step)]
    bad += [(body, proof[:-1]), (body, (*proof, proof[0])), (body, proof[::-1]), (body, ())]
    question = {"ask": "inclusion", "note": run.newest.note, "keys": run.vkeys, "index": index}
    assert not any(ask(go, [question | {"body": one, "proof": steps} for one, steps in bad]))
    for one, steps in bad:
        assert not merkle.verify_inclusion(merkle.leaf_hash(one), index, size, steps, root)


def test_a_flipped_bit_of_a_consistency_proof_is_refused_by_both(go, run):
    """Every single bit of the proof between two signed heads of different sizes."""
    grown = [
        (old, new) for old, new in pairwise(run.heads) if old.size < new.size and run.consistency[old.size, new.size]
    ]
    old, new = grown[len(grown) // 2]
    proof = run.consistency[old.size, new.size]
    bad = [(*proof[:at], one, *proof[at + 1 :]) for at, step in enumerate(proof) for one in flipped(step)]
    bad += [proof[:-1], (*proof, proof[0])]
    question = {"ask": "consistency", "old": old.note, "note": new.note, "keys": run.vkeys}
    assert not any(ask(go, [question | {"proof": one} for one in bad]))
    for one in bad:
        assert not merkle.verify_consistency(old.size, old.root, new.size, new.root, one)


def test_a_forked_log_is_refused_by_both_although_its_head_is_signed(go, run, real):
    """Whoever holds the key can sign another history, and no proof leads from what was signed before to that."""
    signer = VaultKeyring(ORIGIN, real.vault(), LOG_MOUNT, LOG_KEY).signers()[-1]
    bodies = [run.bodies[0].replace(b"Checkout", b"Nothing!"), *run.bodies[1:]]
    tree = merkle.Tree(map(merkle.leaf_hash, bodies))
    fork = checkpoint.sign(Checkpoint(ORIGIN, tree.size, tree.root), [signer])
    old = run.heads[2]
    assert ask(go, [{"ask": "note", "note": fork, "keys": run.vkeys}]) == [True]
    question = {"ask": "consistency", "old": old.note, "note": fork, "keys": run.vkeys}
    tried = (tree.consistency(old.size), run.consistency[old.size, run.newest.size])
    assert not any(ask(go, [question | {"proof": proof} for proof in tried]))
    for proof in tried:
        assert not merkle.verify_consistency(old.size, old.root, tree.size, tree.root, proof)


def test_go_accepts_the_heads_of_the_document(go):
    """The head, the heartbeat and the rotation of FORMAT.md open in Go with the vkeys of its trust file."""
    vkeys = [line.split()[1] for line in block("tlog-policy").splitlines() if line.startswith("log ")]
    notes = [block(name).encode() for name in ("checkpoint", "heartbeat", "rotation", "cosigned")]
    assert all(ask(go, [{"ask": "note", "note": note, "keys": vkeys} for note in notes]))


def test_the_evidence_file_of_each_entry_verifies(run):
    """A tlog-proof made of a stored head and a proof out of the database is read back and proves its entry."""
    for index, body in enumerate(run.bodies):
        proof = run.inclusion[index, run.newest.size]
        text = checkpoint.write_proof(index, proof, run.newest.note)
        assert checkpoint.verify_proof(text, body, run.keys).index == index
