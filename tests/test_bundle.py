"""Does a bundle prove itself, to tools that are not ours, and show nothing that was not asked for?"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from contextlib import closing as closed
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from bundling import LOG_KEY, NAMES, NOW, ORIGIN, POLICY, WITNESS, Writer, nights, row, take, unpack
from hypothesis import given, settings
from hypothesis import strategies as st
from outside import Authority, needed
from sqlalchemy.engine import make_url
from test_follower_timestamp import Stamping, built

from bot import cli
from storage import audit, bundle, checkpoint, closing, merkle, standalone
from storage.database import Database
from storage.export import Selection
from storage.models import Payload
from storage.reports import documents
from workflows import policy as rules
from workflows.door import Door

if TYPE_CHECKING:
    from collections.abc import Iterator

KEYS = (LOG_KEY.key, WITNESS.key)
EVIDENCE = ("entries.jsonl", "heads/", "anchors/", "consistency/", "proofs/", "policy/")


@pytest.fixture
def log(tmp_path: Path, sqlite_template: Path) -> Iterator[Database]:
    """An empty log on SQLite."""
    file = tmp_path / "log.db"
    file.write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{file}")
    yield database
    database.close()


def findings(data: bytes, folder: Path, *, keys: Any = KEYS) -> list[str]:
    """What the verifier in the bundle finds."""
    file = folder / "bundle.zip"
    file.write_bytes(data)
    report = standalone.verify(file, [standalone.read_vkey(str(key)) for key in keys])
    return [f"{finding.kind.value} {finding.seq}: {finding.sentence}" for finding in report.findings]


def repacked(members: dict[str, bytes]) -> bytes:
    """A zip of these members."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as box:
        for name, data in members.items():
            box.writestr(name, data)
    return out.getvalue()


def with_manifest(members: dict[str, bytes]) -> bytes:
    """A zip of these members whose MANIFEST was made to agree: what an attacker does first."""
    rest = {name: data for name, data in members.items() if name != "MANIFEST"}
    lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(rest.items())]
    return repacked(rest | {"MANIFEST": "".join(lines).encode()})


# --- what is in it -------------------------------------------------------------------------------------------------


def test_a_bundle_verifies_and_has_every_part(database: Database, tmp_path: Path) -> None:
    """Entries, heads, proofs, consistency, policy, pages, tables, OCSF, certification, verifier; both databases."""
    nights(database)
    summary, data = take(database)
    members = unpack(data)
    assert summary.note in members
    assert (summary.count, summary.requests, summary.size) == (24, 4, 24)
    for name in (
        *("README.txt", "MANIFEST", "bundle.json", "entries.jsonl", "entries.csv", "ocsf.jsonl", "population.csv"),
        *("period.html", "controls.html", "controls.csv", "certification.txt", "people.csv", "verify.py"),
        *("requests/BG-7KQ2.html", "requests/BG-EVIL.html", f"policy/{POLICY.hash}.yml"),
        *(f"proofs/{seq:012}.tlog-proof" for seq in range(24)),
        *("heads/000000000013-00.note", "heads/000000000017-00.note", "heads/000000000017-01.note"),
        *("consistency/000000000013-000000000017.txt", "consistency/000000000017-000000000024.txt"),
    ):
        assert name in members, name
    assert findings(data, tmp_path) == []
    described = json.loads(members["bundle.json"])
    assert described["format"] == bundle.FORMAT
    assert (described["origin"], described["head"]["size"]) == (ORIGIN, 24)


def test_the_manifest_names_every_member(log: Database, tmp_path: Path) -> None:
    """MANIFEST is what sha256sum writes, sorted, of all the other members, and stands last."""
    nights(log)
    _, data = take(log)
    members = unpack(data)
    lines = members["MANIFEST"].decode().splitlines()
    assert lines == sorted(lines, key=lambda line: line[66:])
    assert {line[66:]: line[:64] for line in lines} == {
        name: hashlib.sha256(text).hexdigest() for name, text in members.items() if name != "MANIFEST"
    }
    assert list(members)[-1] == "MANIFEST"
    with zipfile.ZipFile(io.BytesIO(data)) as box:
        box.extractall(tmp_path)
    done = subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "MANIFEST"], cwd=tmp_path, check=False)
    assert done.returncode == 0


def test_the_same_log_gives_the_same_bytes(log: Database) -> None:
    """Twice, with a PDF, and again from another process with another hash seed and zone: byte by byte the same."""
    nights(log)
    _, first = take(log, with_pdf=True, request_id="BG-7KQ2")
    assert first == take(log, with_pdf=True, request_id="BG-7KQ2")[1]
    assert take(log) == take(log)
    program = (
        "import sys, hashlib; sys.path[:0] = sys.argv[2:]\n"
        "from storage.database import Database; import bundling\n"
        "_, data = bundling.take(Database(sys.argv[1]), with_pdf=True, request_id='BG-7KQ2')\n"
        "print(hashlib.sha256(data).hexdigest())"
    )
    here = Path(__file__).parent
    url = log._engine.url.render_as_string(hide_password=False)
    done = subprocess.run(
        [sys.executable, "-c", program, url, str(here.parent), str(here)],
        env={"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"},
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stdout.strip() == hashlib.sha256(first).hexdigest()


def test_an_earlier_head_gives_the_earlier_bundle(log: Database) -> None:
    """What was handed out at a head can be made again after the log has grown, byte by byte."""
    writer = nights(log)
    _, before = take(log)
    size = writer.entry(None, "log:export", "shell:root") + 1
    writer.sign()
    assert take(log)[0].size == size
    summary, again = take(log, size=size - 1)
    assert summary.size == 24
    assert again == before


def test_every_members_date_is_the_same(log: Database) -> None:
    """No member has a date, an owner or a machine of its own."""
    nights(log)
    _, data = take(log)
    with zipfile.ZipFile(io.BytesIO(data)) as box:
        assert {(info.date_time, info.create_system, info.external_attr) for info in box.infolist()} == {
            ((1980, 1, 1, 0, 0, 0), 3, 0o100644 << 16)
        }


# --- what proves it ------------------------------------------------------------------------------------------------


def test_each_entry_has_its_evidence(log: Database) -> None:
    """Each tlog-proof leads from the entry's bytes to the signed head; the head bears the witness's line."""
    nights(log)
    members = unpack(take(log)[1])
    bodies = [json.loads(line)["body"].encode() for line in members["entries.jsonl"].splitlines()[1:-1]]
    for seq, body in enumerate(bodies):
        evidence = checkpoint.verify_proof(members[f"proofs/{seq:012}.tlog-proof"], body, [LOG_KEY.key])
        assert (evidence.index, evidence.head.checkpoint.size) == (seq, 24)
    names = {one.name for one in checkpoint.verify(members["heads/000000000013-00.note"], KEYS)}
    assert names == {ORIGIN, WITNESS.key.name}


def test_heads_grow_out_of_each_other(log: Database) -> None:
    """Each file under consistency/ is an add-checkpoint request whose proof holds between the two heads."""
    nights(log)
    members = unpack(take(log)[1])
    heads = {h.size: h for h in (checkpoint.parse(members[n]).checkpoint for n in members if n.startswith("heads/"))}
    seen = []
    for name in sorted(name for name in members if name.startswith("consistency/")):
        top, _, note = members[name].decode().partition("\n\n")
        old, *steps = top.split("\n")
        newer = checkpoint.parse(note.encode()).checkpoint
        older = heads[int(old.removeprefix("old "))]
        proof = [checkpoint._decode(step) for step in steps]
        assert merkle.verify_consistency(older.size, older.root, newer.size, newer.root, proof)
        seen.append((older.size, newer.size))
    assert seen == [(13, 17), (17, 24)]


def test_many_proofs_stand_in_one_member(log: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Past the limit all evidence is in proofs.txt, which falls apart into the same files; it verifies."""
    nights(log)
    apart = {name: text for name, text in unpack(take(log)[1]).items() if name.startswith("proofs/")}
    monkeypatch.setattr(bundle, "MOST_PROOFS", 5)
    _, data = take(log)
    together = unpack(data)["proofs.txt"]
    head = b"c2sp.org/tlog-proof@v1\n"
    assert [head + part for part in together.split(head)[1:]] == [apart[name] for name in sorted(apart)]
    assert findings(data, tmp_path) == []


def test_too_many_heads_are_thinned(log: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of more heads than can be shown the cosigned one and the newest stay, and the bundle verifies."""
    writer = nights(log)
    for number in range(12):
        writer.entry(None, "test:event", data={"n": number})
        writer.sign(cosigned=number == 6)
    monkeypatch.setattr(bundle, "MOST_HEADS", 4)
    _, data = take(log)
    names = [name for name in unpack(data) if name.startswith("heads/")]
    assert len(names) <= 6
    assert {"heads/000000000013-00.note", "heads/000000000031-00.note", "heads/000000000036-00.note"} <= set(names)
    assert findings(data, tmp_path) == []


@pytest.mark.parametrize("prefix", EVIDENCE)
def test_a_flipped_bit_in_any_evidence_is_found(log: Database, tmp_path: Path, prefix: str) -> None:
    """Also when MANIFEST was made to agree: entries, heads, proofs, consistency, policy."""
    writer = nights(log)
    writer.entry(None, "test:event")
    stamp = writer.sign(token=hashlib.sha256(b"?").digest())
    members = unpack(take(log)[1])
    assert stamp
    for name in [name for name in members if name.startswith(prefix) and not name.endswith(".tsr")][:4]:
        for place in (0.1, 0.5, 0.9):
            text = bytearray(members[name])
            text[int(len(text) * place)] ^= 1
            assert findings(with_manifest(members | {name: bytes(text)}), tmp_path), (name, place)


def test_a_member_that_was_added_changed_or_dropped_is_found(log: Database, tmp_path: Path) -> None:
    """MANIFEST covers what is only to be read, too: a page that was rewritten, one more, one less."""
    nights(log)
    members = unpack(take(log)[1])
    assert findings(repacked(members), tmp_path) == []
    name = "requests/BG-DENY.html"
    for changed in (
        members | {name: members[name].replace(b"denied", b"approved")},
        members | {"requests/BG-MORE.html": b"more"},
        {key: text for key, text in members.items() if key != name},
    ):
        assert findings(repacked(changed), tmp_path)


def test_the_verifier_in_the_bundle_needs_nothing_of_ours(log: Database, tmp_path: Path) -> None:
    """verify.py out of the zip, isolated from this project: exit 0 for the bundle, 4 for a forged one."""
    nights(log)
    _, data = take(log)
    members = unpack(data)
    (tmp_path / "verify.py").write_bytes(members["verify.py"])

    def run(text: bytes) -> int:
        (tmp_path / "b.zip").write_bytes(text)
        words = [sys.executable, "-I", "verify.py", "b.zip", "--vkey", str(LOG_KEY.key), "--vkey", str(WITNESS.key)]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, check=False).returncode

    assert run(data) == 0
    members["entries.jsonl"] = members["entries.jsonl"].replace(b"No threshold.", b"No thresholt.")
    assert run(with_manifest(members)) == 4


def test_gos_own_packages_accept_what_the_read_me_says(log: Database, tmp_path: Path) -> None:
    """The program in README.txt, by Go and x/mod: each entry stands under the signed head, a changed one does not."""
    go = needed("go", "golang-go golang-golang-x-mod-dev")
    nights(log)
    members = unpack(take(log)[1])
    program = members["README.txt"].decode().split("CHECK.GO\n\n")[1].split("\nWHETHER ANYTHING")[0]
    assert program.strip() == documents.VERIFY_GO.strip()
    (tmp_path / "check.go").write_text(program, encoding="utf-8")
    library = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOFLAGS": "", "GOTOOLCHAIN": "local"}
    build = [go, "build", "-o", "check", "check.go"]
    subprocess.run(build, cwd=tmp_path, env=os.environ | library | {"CGO_ENABLED": "0"}, check=True)
    (tmp_path / "proof").write_bytes(members["proofs/000000000003.tlog-proof"])
    body = json.loads(members["entries.jsonl"].splitlines()[4])["body"].encode()

    def check(text: bytes, key: object = LOG_KEY.key) -> tuple[int, str]:
        (tmp_path / "body").write_bytes(text)
        words = ["./check", str(key), "body", "proof"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, check=False, text=True)
        return done.returncode, done.stdout

    assert check(body) == (0, f"entry 3 stands in the log {ORIGIN} of 24 entries, signed by {ORIGIN}\n")
    assert check(body.replace(b"U0CHEN", b"U0CHEM"))[0] != 0
    stranger = checkpoint.VerifierKey(ORIGIN, bytes(range(32)))
    assert check(body, stranger)[0] != 0


def test_openssl_accepts_the_time_stamp_as_the_read_me_says(log: Database, tmp_path: Path) -> None:
    """A real token of a real authority: the line in README.txt verifies it with openssl alone, also when cosigned."""
    needed("openssl", "openssl")
    (tmp_path / "authority").mkdir()
    authority = Authority(tmp_path / "authority")
    writer = nights(log)
    writer.entry(None, "test:event")
    with Stamping(tmp_path, authority) as stamping:
        with log.read() as session:
            head = audit.head(session)
        note = checkpoint.sign(checkpoint.Checkpoint(ORIGIN, head.size, head.root), [LOG_KEY])
        token = built(stamping.port, authority.file).anchor(note, before=0, consistency=lambda _: (), now=NOW)
    assert writer.sign(cosigned=True, token=token) == note
    _, data = take(log)
    with zipfile.ZipFile(io.BytesIO(data)) as box:
        box.extractall(tmp_path / "out")
    said = (tmp_path / "out" / "README.txt").read_text(encoding="utf-8")
    (line,) = [line.strip() for line in said.splitlines() if line.strip().startswith("openssl ts")]
    shutil.copy(authority.file, tmp_path / "out" / "TSA-CA.pem")
    done = subprocess.run(line.split(), cwd=tmp_path / "out", capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert findings(data, tmp_path) == []


# --- one request, and nothing else ---------------------------------------------------------------------------------


def test_one_requests_bundle_shows_no_other(database: Database, tmp_path: Path) -> None:
    """No other request's id, person, account, reason or name stands anywhere in it; it is proved all the same."""
    nights(database)
    _, data = take(database, request_id="BG-DENY", with_pdf=True)
    members = unpack(data)
    assert findings(data, tmp_path) == []
    for name, text in members.items():
        if name.endswith(".pdf") or name == "verify.py":
            continue  # the one is compressed, and built of the same entries; the other is our source
        for secret in (
            *("BG-7KQ2", "BG-LAPS", "BG-EVIL", "payments", "U0EVIL", "U0SAM", "U0OLGA", "U0ADA", "shell:root"),
            *("Eve ", "Sam O'Koro", "Ольга", "calc", "max_connections", "v-approle", "copy:behind"),
        ):
            assert secret not in text.decode(errors="replace"), (name, secret)
    assert sorted(name for name in members if name.startswith("requests/")) == [
        "requests/BG-DENY.html",
        "requests/BG-DENY.pdf",
    ]
    assert "period.html" not in members
    assert "population.csv" not in members
    assert set(NAMES) - {"U0RITA", "U0CHEN", "U0ZELJ", "U0NIHN"} == {"U0OLGA", "U0SAM", "U0EVIL"}


def test_a_long_statement_comes_whole_and_is_evidence_by_its_hash(log: Database, tmp_path: Path) -> None:
    """What an entry holds only the beginning of lies beside it; changed it is found, and pruned it is said."""
    writer = nights(log)
    whole = b"SELECT 1 -- " + b"x" * 40_000
    hashed = hashlib.sha256(whole).hexdigest()
    gone = "0" * 64
    for name in (hashed, gone, "../../etc/passwd"):
        data = {"source": "orders-pg", "text": "SELECT 1", "payload": {"sha256": name, "bytes": len(whole)}}
        writer.entry("BG-7KQ2", "command:run", data=data)
    with log.write() as session:
        session.add(Payload(sha256=hashed, body=whole, last_seq=0))
    writer.sign()
    summary, data = take(log, request_id="BG-7KQ2")
    members = unpack(data)
    assert [name for name in members if name.startswith("payloads/")] == [f"payloads/{hashed}.txt"]
    assert members[f"payloads/{hashed}.txt"] == whole
    assert f"payloads/{hashed}.txt" in members["requests/BG-7KQ2.html"].decode()
    assert summary.missing == (f"The long text with the SHA-256 {gone} is not kept any more.",)
    said = findings(data, tmp_path)  # that it was used after its end, which is so
    changed = members | {f"payloads/{hashed}.txt": whole.replace(b"1", b"2", 1)}
    altered = f"altered None: payloads/{hashed}.txt is not the text whose hash is its name."
    assert sorted(findings(with_manifest(changed), tmp_path)) == sorted([*said, altered])
    assert not [name for name in unpack(take(log, request_id="BG-DENY")[1]) if name.startswith("payloads/")]


def test_one_request_is_complete_by_its_closing_entry(log: Database, tmp_path: Path) -> None:
    """The closing entry counts and hashes; a bundle from which an entry was left out does not verify."""
    nights(log)
    members = unpack(take(log, request_id="BG-7KQ2")[1])
    entries = [json.loads(line) for line in members["entries.jsonl"].splitlines()[1:-1]]
    (sealed,) = [json.loads(one["body"]) for one in entries if json.loads(one["body"])["event"] == closing.EVENT]
    leaves = [(one["seq"], bytes.fromhex(one["leaf"])) for one in entries[:-1]]
    assert closing.holds(sealed["data"], leaves)
    assert not closing.holds(sealed["data"], leaves[:-1])
    lines = members["entries.jsonl"].splitlines(keepends=True)
    header = json.loads(lines[0]) | {"count": len(entries) - 1}
    del lines[3]
    lines[0] = json.dumps(header, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    end = {"count": len(entries) - 1, "sha256": hashlib.sha256(b"".join(lines[:-1])).hexdigest()}
    lines[-1] = json.dumps(end, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    found = findings(with_manifest(members | {"entries.jsonl": b"".join(lines)}), tmp_path)
    assert any("20:" in one for one in found), found  # the closing entry is number 20


def test_the_policy_comes_along_when_it_is_asked_for(log: Database, tmp_path: Path) -> None:
    """With one request the policy's text is left out unless wanted; then its entry comes with evidence of its own."""
    nights(log)
    assert not any(name.startswith("policy/") for name in unpack(take(log, request_id="BG-7KQ2")[1]))
    _, data = take(log, request_id="BG-7KQ2", with_policy=True)
    members = unpack(data)
    assert members[f"policy/{POLICY.hash}.yml"] == POLICY.text.encode()
    evidence = members["policy/000000000000.tlog-proof"]
    assert checkpoint.verify_proof(evidence, members["policy/000000000000.json"], [LOG_KEY.key]).index == 0
    assert findings(data, tmp_path) == []
    forged = members["policy/000000000000.json"].replace(b"quorum: 2", b"quorum: 1")
    assert findings(with_manifest(members | {"policy/000000000000.json": forged}), tmp_path)


@pytest.mark.parametrize(
    ("chosen", "requests"),
    [
        ({"account": "payments"}, {"BG-EVIL"}),
        ({"account": "orders-db"}, {"BG-7KQ2", "BG-DENY", "BG-LAPS"}),
        ({"since": NOW + timedelta(hours=8, minutes=45)}, {"BG-7KQ2", "BG-DENY", "BG-LAPS", "BG-EVIL"}),
        ({"until": NOW + timedelta(minutes=5)}, {"BG-7KQ2"}),
        ({"since": NOW + timedelta(days=9)}, set()),
        ({"request_id": "BG-NONE"}, set()),
    ],
)
def test_a_selection_is_proved_too(log: Database, tmp_path: Path, chosen: dict[str, Any], requests: set[str]) -> None:
    """By account, by time, and an empty one: pages of the requests that have an entry in it, and all verifies."""
    nights(log)
    summary, data = take(log, **chosen)
    members = unpack(data)
    assert {name[9:-5] for name in members if name.startswith("requests/")} == requests
    assert summary.requests == len(requests)
    assert findings(data, tmp_path) == []


# --- closing entries and policies ----------------------------------------------------------------------------------


def test_a_record_is_closed_once_until_it_grows(database: Database) -> None:
    """A second export adds no second closing entry; an entry after it makes a new one, which counts the old one too."""
    writer = Writer(database)
    writer.open("BG-7KQ2")
    door = Door(database)
    assert door.close_records(["BG-7KQ2", "BG-NONE"], now=NOW) == 1
    assert door.close_records(["BG-7KQ2"], now=NOW) == 0
    writer.entry("BG-7KQ2", "request:withdraw", "U0RITA", source="pending", target="withdrawn")
    assert door.close_records(["BG-7KQ2"], now=NOW) == 1
    with database.read() as session:
        records = audit.read_entries(session, request_id="BG-7KQ2")
    assert [record.data.get("count") for record in records] == [None, 1, None, 3]
    leaves = [(record.seq, record.leaf_hash) for record in records]
    assert closing.holds(records[3].data, leaves[:3])
    assert all(record.target is None for record in records if record.event == closing.EVENT)


def test_closing_a_record_changes_no_request(log: Database) -> None:
    """The row's state and version stay; only its newest entry is another."""
    writer = Writer(log)
    writer.open("BG-7KQ2")
    door = Door(log)
    before = door.case("BG-7KQ2").request
    door.close_records(["BG-7KQ2"], now=NOW)
    after = door.case("BG-7KQ2").request
    assert (after.state, after.version, after.due_at) == (before.state, before.version, before.due_at)
    assert after.last_seq == 1


def test_a_policy_is_recorded_once(database: Database) -> None:
    """Starting again adds nothing; another policy is an entry; the first one again is an entry without its text."""
    door = Door(database)
    other = rules.parse(POLICY.text.replace("longest: 30m", "longest: 29m"), name="other")
    assert [door.record_policy(policy, now=NOW) for policy in (POLICY, POLICY, other, POLICY, POLICY)] == [
        True,
        False,
        True,
        True,
        False,
    ]
    with database.read() as session:
        records = audit.read_entries(session)
    assert [(record.data["hash"], record.data.get("text")) for record in records] == [
        (POLICY.hash, POLICY.text),
        (other.hash, other.text),
        (POLICY.hash, None),
    ]


def test_a_long_policy_stands_in_parts(log: Database, tmp_path: Path) -> None:
    """A text that no entry holds is put on record in pieces, and comes out whole, byte by byte."""
    text = POLICY.text + "".join(f"# {number} “Größe” 測試 {'x' * 100}\n" for number in range(1500))
    policy = rules.parse(text, name="long")
    Door(log).record_policy(policy, now=NOW)
    writer = Writer(log)
    writer.entry(None, "test:event")
    writer.sign()
    _, data = take(log)
    assert unpack(data)[f"policy/{policy.hash}.yml"].decode() == text
    assert len([name for name in unpack(data) if name.startswith("policy/") and name.endswith(".json")]) > 10
    assert findings(data, tmp_path) == []


def test_only_policies_that_were_in_force_come_along(log: Database) -> None:
    """The one before the selection's first entry, those during it, and none after it."""
    door, writer = Door(log), Writer(log)
    policies = [rules.parse(POLICY.text + f"# {number}\n", name="p") for number in range(4)]
    door.record_policy(policies[0], now=NOW)
    door.record_policy(policies[1], now=NOW)
    writer.open("BG-7KQ2")
    door.record_policy(policies[2], now=writer.now)
    writer.entry("BG-7KQ2", "request:withdraw", "U0RITA", source="pending", target="withdrawn")
    door.record_policy(policies[3], now=writer.now)
    writer.sign()
    members = unpack(take(log, request_id="BG-7KQ2", with_policy=True)[1])
    found = {name[7:-4] for name in members if name.endswith(".yml")}
    assert found == {policies[1].hash, policies[2].hash}


# --- what goes wrong -----------------------------------------------------------------------------------------------


def test_a_log_that_nobody_signs_has_a_bundle_too(log: Database, tmp_path: Path) -> None:
    """No heads and no evidence files, the proofs in entries.jsonl, and the README says so; it stands at the end."""
    nights(log, signed=False)
    summary, data = take(log)
    members = unpack(data)
    assert summary.note is None
    assert summary.size == 24
    assert not any(name.startswith(("heads/", "proofs", "consistency/")) for name in members)
    assert "heads are not signed" in members["README.txt"].decode()
    assert findings(data, tmp_path, keys=()) == []
    assert take(log)[1] == data


def test_an_empty_log_has_a_bundle(log: Database, tmp_path: Path) -> None:
    """Nothing happened, and that is said."""
    summary, data = take(log)
    assert (summary.count, summary.size) == (0, 0)
    assert findings(data, tmp_path, keys=()) == []


def _tamper(database: Database, statement: str) -> None:
    """Change the log past its guards, as the owner of the database can."""
    with closed(sqlite3.connect(make_url(str(database._engine.url)).database or "")) as raw, raw:
        for name in ("entry_no_update", "entry_no_delete", "entry_only_next"):
            raw.execute(f"DROP TRIGGER IF EXISTS {name}")
        raw.execute(statement)


def test_a_changed_body_is_shown_and_does_not_verify(log: Database, tmp_path: Path) -> None:
    """Tampering goes out as it is: the page says that it cannot be read, and the verifier names the entry."""
    nights(log)
    _tamper(log, "UPDATE entry SET body = CAST('{\"v\":1}' AS BLOB) WHERE seq = 3")
    _, data = take(log)
    assert "cannot be read" in unpack(data)["requests/BG-7KQ2.html"].decode()
    assert any(" 3:" in one for one in findings(data, tmp_path))


def test_a_missing_entry_is_refused_by_name(log: Database) -> None:
    """A hole in the table is Damaged, with the number of the entry."""
    nights(log)
    _tamper(log, "DELETE FROM entry WHERE seq = 7")
    with pytest.raises(audit.Damaged) as refused:
        take(log)
    assert refused.value.seq == 7


def test_a_rewritten_log_is_not_put_under_its_old_head(log: Database) -> None:
    """Whole rows rewritten with fitting hashes do not lead to the head that was signed: refused."""
    nights(log)
    _tamper(log, "UPDATE signed_head SET note = (SELECT note FROM signed_head WHERE size = 17 LIMIT 1) WHERE size = 24")
    with pytest.raises(audit.Damaged):
        take(log)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "..", "CON.", "-rf", "x\\y", "BG:1"])
def test_a_name_out_of_the_database_is_no_path(log: Database, name: str, tmp_path: Path) -> None:
    """A request with a hostile id gets a harmless file's name, always the same."""
    writer = nights(log)
    with log.write() as session:
        session.add(row(name[:16], "orders-db", "U0RITA", writer.now))
    writer.entry(name[:16], "request:withdraw", "U0RITA")
    writer.sign()
    members = unpack(take(log)[1])
    (found,) = [member for member in members if member.startswith("requests/other-")]
    assert found == f"requests/other-{hashlib.sha256(name[:16].encode()).hexdigest()[:16]}.html"
    assert not any(".." in member or "\\" in member or member.startswith("/") for member in members)


def test_a_spreadsheet_runs_nothing(log: Database) -> None:
    """In every table of the bundle a cell that could be a formula has an apostrophe before it."""
    nights(log)
    for name, text in unpack(take(log)[1]).items():
        if name.endswith(".csv"):
            assert text.startswith(b"\xef\xbb\xbf")
            cells = [cell for line in text.decode().split("\r\n") for cell in line.split(",")]
            assert not any(cell.startswith(("=", "+", "@")) for cell in cells)


def test_a_cosignature_that_cannot_be_read_is_said(log: Database, tmp_path: Path) -> None:
    """Damaged anchors do not stop the export, and are not passed over in silence."""
    nights(log)
    _tamper(log, "UPDATE anchor SET data = CAST('garbage' AS BLOB)")
    summary, data = take(log)
    assert any("notary" in sentence for sentence in summary.missing)
    assert "notary" in unpack(data)["README.txt"].decode()
    assert findings(data, tmp_path) == []


def test_progress_is_told_to_the_end(log: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """It grows, and never past the whole."""
    monkeypatch.setattr(bundle, "_EVERY", 1)
    nights(log)
    said: list[tuple[int, int]] = []
    take(log, progress=lambda done, whole: said.append((done, whole)))
    assert said == sorted(said)
    assert said[-1][0] == said[-1][1]


@settings(max_examples=60)
@given(text=st.binary(max_size=300), place=st.floats(0, 1))
def test_a_closing_entry_fits_its_own_entries_only(text: bytes, place: float) -> None:
    """A closing entry's claim holds for its own entries only, whatever they are."""
    leaves = [(number, hashlib.sha256(text + bytes([number])).digest()) for number in range(5)]
    made = closing.over(leaves)
    assert made is not None
    assert closing.holds(made.data(), leaves)
    left_out = leaves[: int(place * 4)] + leaves[int(place * 4) + 1 :]
    assert not closing.holds(made.data(), left_out)
    assert closing.over([]) is None


# --- the command line ----------------------------------------------------------------------------------------------


@pytest.fixture
def named(log: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Database:
    """The log of the nights, named by the environment, without Slack."""
    for name in ("SLACK_BOT_TOKEN", "SLACK_APP_TOKEN", "VAULT_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BREAKGLASS_DATABASE_URL", str(log._engine.url))
    return log


def test_the_command_closes_records_and_writes_a_bundle(
    named: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`export --format bundle`: closing entries, then its own entry, then the file, which verifies; listed names."""
    writer = Writer(named)
    writer.reviewed("BG-7KQ2")
    (tmp_path / "names.csv").write_text("id,name\nU0CHEN,Chen Li\n", encoding="utf-8")
    out = tmp_path / "evidence.zip"
    words = ["export", "--format", "bundle", "--no-pdf", "--names", str(tmp_path / "names.csv"), "-o", str(out)]
    assert cli.main(words) == cli.OK
    said = capsys.readouterr()
    assert "14 entries, 1 requests; it stands at the NOT signed head over 14 entries" in said.out
    assert "ids only" not in said.err
    members = unpack(out.read_bytes())
    assert b"Chen Li" in members["requests/BG-7KQ2.html"]
    assert members["people.csv"].splitlines()[1:] == [b"U0CHEN,Chen Li"]
    with named.read() as session:
        assert [record.event for record in audit.read_entries(session)][-2:] == [closing.EVENT, "log:export"]
    assert not list(tmp_path.glob("*.part"))
    assert findings(out.read_bytes(), tmp_path, keys=()) == []


def test_without_slack_the_command_says_that_names_are_missing(
    named: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ids only, and why."""
    Writer(named).open("BG-7KQ2")
    assert cli.main(["export", "--format", "bundle", "--no-pdf", "-o", str(tmp_path / "e.zip")]) == cli.OK
    assert "ids only" in capsys.readouterr().err
    assert "people.csv" not in unpack((tmp_path / "e.zip").read_bytes())


def test_a_bot_that_does_not_sign_is_said(
    named: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle stands at the newest signed head, and the command says what is not in it."""
    nights(named)
    monkeypatch.setattr("bot.export_command._WAIT", 0.2)
    assert cli.main(["export", "--format", "bundle", "--no-pdf", "-o", str(tmp_path / "e.zip")]) == cli.OK
    assert "over 24 of 25 entries" in capsys.readouterr().err
    assert findings((tmp_path / "e.zip").read_bytes(), tmp_path) == []


@pytest.mark.parametrize("words", [["--names", "x.csv"], ["--with-policy"], ["--no-pdf"]])
def test_what_goes_with_a_bundle_only_is_usage_elsewhere(named: Database, tmp_path: Path, words: list[str]) -> None:
    """Options that would do nothing are refused."""
    assert cli.main(["export", *words, "-o", str(tmp_path / "out")]) == cli.USAGE


def test_a_real_night_is_handed_over_whole(counter: Any, tmp_path: Path) -> None:
    """A request through the desk, Vault and a PostgreSQL, and its bundle: the verifier has nothing to say."""
    counter.record_policy(counter.policy, now=counter.now)
    asked = counter.approved()
    counter.show(asked)
    counter.pass_time(seconds=5)
    from counter import RITA  # noqa: PLC0415 - the fixture has the same name

    counter.release(RITA, asked.id, counter.case(asked.id).request.version, now=counter.now)
    assert counter.finish(asked.id, now=counter.now)
    with counter.database.read() as session:
        touched = bundle.requests_of(session, Selection(request_id=asked.id))
    assert touched == [asked.id]
    counter.close_records(touched, now=counter.now)
    writer = Writer(counter.database)
    writer.now = counter.now
    writer.sign(cosigned=True)
    for chosen in ({}, {"request_id": asked.id}):
        _, data = take(counter.database, **chosen)
        assert findings(data, tmp_path) == []
        text = unpack(data)[f"requests/{asked.id}.html"].decode()
        assert "handed back by the requester" in text
        assert str(counter.case(asked.id).grants[0].identity) in text
        if not chosen:
            assert counter.policy.hash in text
