"""Does the quick way of the verifier say what the careful way says, of sound exports and of all others?"""

from __future__ import annotations

import base64
import io
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest
from test_standalone import ALICE, BOB, CARL, CHEN, FILE, NOW, RITA, events, signed, written

from storage import audit, export, merkle, standalone
from storage.audit import SYSTEM, Actor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from storage.standalone import Report

POLICY: Final = "# the policy\n"
MEMBERS: Final = frozenset(standalone._MEMBERS)


def several(requests: int, rng: random.Random) -> list[dict[str, Any]]:
    """The events of several requests, one through the other, with commands, refusals, a seal and a policy."""
    lanes = []
    for number in range(requests):
        name, version, lane = f"BG-{number:04d}", 0, []
        for event in events():
            version += 1
            lane.append(
                event | {"request_id": name, "version": version, "target": event.get("target", event.get("source"))}
            )
            if event["event"] == "request:open":
                version += 1
                lane.append(
                    {"event": "request:escalate", "source": "pending", "target": "pending"}
                    | {"request_id": name, "version": version, "data": {"n": number}}
                )
            if event["event"] == "credential:issue":
                lane += [
                    {
                        "event": "command:run",
                        "actor": RITA,
                        "request_id": name,
                        "data": {"sql": f"SELECT {n}", "rows": n},
                    }
                    for n in range(rng.randrange(4))
                ]
                lane.append({"event": "request:approve", "actor": RITA, "request_id": name, "refused": "not_allowed"})
        version += 1
        answers = {"threshold_met": True, "standard_path_enough": False, "used_as_stated": True, "findings": "None: é"}
        lane.append(
            {"event": "review:file", "actor": CHEN, "source": "ended", "target": "reviewed", "data": answers}
            | {"request_id": name, "version": version}
        )
        lanes.append(lane)
    mixed: list[dict[str, Any]] = [{"event": "log:start"}]
    live = lanes[:3]
    waiting = lanes[3:]
    while live:
        lane = rng.choice(live)
        mixed.append(lane.pop(0))
        if not lane:
            live.remove(lane)
            live += [waiting.pop(0)] if waiting else []
    return mixed


def encoded(made: list[dict[str, Any]]) -> list[bytes]:
    """Encode them, with numbers and times, and end each request with its seal."""
    bodies: list[bytes] = []
    leaves: dict[str, list[bytes]] = {}
    at = NOW
    for event in made:
        at += timedelta(milliseconds=event.get("later", 1))
        members = {"actor": SYSTEM, "at": at} | {name: value for name, value in event.items() if name != "later"}
        name = members.get("request_id")
        if event["event"] == "request:close":
            hashed = standalone.sha256(b"".join(leaves[name])).hexdigest()
            members["data"] = {"count": len(leaves[name]), "sha256": hashed}
        bodies.append(audit.encode(seq=len(bodies), **members))
        if name:
            leaves.setdefault(name, []).append(merkle.leaf_hash(bodies[-1]))
    return bodies


def made(seed: int = 0, requests: int = 12) -> list[dict[str, Any]]:
    """A sound log's events."""
    mixed = several(requests, random.Random(seed))  # noqa: S311 - which ones, no secret
    return [*mixed, *({"event": "request:close", "request_id": f"BG-{number:04d}"} for number in range(requests))]


@pytest.fixture
def small_blocks(monkeypatch) -> None:
    """Blocks of four entries and reads of a few lines, so that a small file has many."""
    monkeypatch.setattr(standalone, "_BLOCK", 2)
    monkeypatch.setattr(standalone, "_CHUNK", 2000)


@pytest.fixture
def quick_only(monkeypatch) -> list[bool]:
    """Which quick attempts said that all is well."""
    said = []
    run = standalone.Quick.run

    def watched(self, file) -> bool:
        said.append(run(self, file))
        return said[-1]

    monkeypatch.setattr(standalone.Quick, "run", watched)
    return said


def carefully(path: Path) -> Report:
    """What the careful way says."""
    verifier = standalone.Verifier((), (), standalone.LIMIT, rules=True)
    verifier._quickly = lambda *_, **__: None
    return verifier.run(path)


def all_ways(path: Path) -> list[Report]:
    """What the ways say: one process, and four."""
    return [standalone.verify(path, processes=many) for many in (1, 4)]


# --- sound exports -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("requests", [1, 2, 5, 12, 40])
def test_a_sound_export_is_verified_quickly(requests, tmp_path, small_blocks, quick_only) -> None:
    """One process or four: each says by itself that all is well, and what the careful way says."""
    file = tmp_path / "log.jsonl"
    file.write_bytes(written(encoded(made(requests, requests))))
    expected = carefully(file)
    assert expected.findings == []
    assert all_ways(file) == [expected] * 2
    assert quick_only == [True] * 2


def test_most_entries_are_read_by_their_shape(tmp_path, monkeypatch) -> None:
    """Only the first ones of each shape are read as JSON, and those with letters that are escaped."""
    bodies = encoded(made(1, 60))
    file, read = tmp_path / "log.jsonl", []
    file.write_bytes(written(bodies))
    monkeypatch.setattr(
        standalone, "read_body", lambda text, real=standalone.read_body: (read.append(text), real(text))[1]
    )
    assert standalone.verify(file, processes=1).findings == []
    assert len([text for text in read if "é" not in text]) < len(bodies) / 5


def test_wanted_roots_are_those_of_the_careful_way(tmp_path, small_blocks, monkeypatch) -> None:
    """Heads of every size are compared with the same roots, also those that end inside a subtree."""
    # A thread that another test has left would have it say that there are no other processes to be had.
    monkeypatch.setattr(standalone, "_start_method", lambda: "fork")
    bodies = encoded(made(3, 5))
    file = tmp_path / "log.jsonl"
    file.write_bytes(written(bodies))
    leaves = list(map(merkle.leaf_hash, bodies))
    wanted = range(len(bodies) + 3)
    for many in (1, 3):
        quick = standalone.Quick(file, wanted, keeps_leaves=True, rules=True, processes=many)
        with file.open("rb") as opened:
            assert quick.run(opened)
        assert quick.roots == {size: merkle.Tree(leaves[:size]).root for size in range(len(bodies) + 1)}
        assert quick.leaves is not None
        assert [quick.leaves.get(seq) for seq in range(len(bodies))] == leaves


# --- all others ----------------------------------------------------------------------------------------------------


def bend(made_: list[dict[str, Any]], rng: random.Random) -> None:
    """Do one thing to the events that the rules may not allow."""
    place = rng.randrange(len(made_))
    event = made_[place]
    ways: list[Callable[[], object]] = [
        lambda: made_.pop(place),
        lambda: made_.insert(rng.randrange(len(made_)), dict(event)),
        lambda: made_.insert(rng.randrange(len(made_)), made_.pop(place)),
        lambda: event.update(actor=rng.choice((RITA, CARL, CHEN, SYSTEM, Actor("T0ELSE", "U0RITA")))),
        lambda: event.update(version=rng.randrange(12)),
        lambda: event.update(target=rng.choice(("pending", "active", "ended", "approved", "reviewed"))),
        lambda: event.update(source=rng.choice(("pending", "active", "ended", "approved", "reviewed"))),
        lambda: event.update(request_id=rng.choice(("BG-0000", "BG-0003", "BG-NONE"))),
        lambda: event.update(later=rng.choice((-1, -3000, -200_000, 200_000, 100_000_000))),
        lambda: event.update(refused="not_allowed"),
        lambda: event.pop("data", None),
        lambda: event.pop("target", None),
        lambda: event.update(event=rng.choice(sorted(standalone.Replay.STEPS))),
        lambda: event.update(data=dict(event.get("data", {}), granted_seconds=rng.choice((1, 900, 901)))),
        lambda: event.update(data=dict(event.get("data", {}), credential=rng.choice((1, 2, 3)))),
        lambda: event.update(data=dict(event.get("data", {}), expires_at="2026-03-01T09:15:00Z")),
        lambda: event.update(data=dict(event.get("data", {}), review_due_at="2026-03-01T03:00:00Z")),
        lambda: event.update(event="policy:load", data={"hash": "0" * 64}),
        lambda: event.update(event="log:rotate"),
        lambda: event.update(event="retention:apply"),
        lambda: event.update(data={"deep": [[[[[[[[[1.5]]]]]]]]], "no": None, "is": True, "n": -1}),
    ]
    rng.choice(ways)()


@pytest.mark.parametrize("seed", range(120))
def test_whatever_was_done_before_it_was_written_all_ways_say_the_same(seed, tmp_path, small_blocks) -> None:
    """A log whose hashes are sound and whose entries are not: the same findings, however many processes look."""
    rng = random.Random(seed)  # noqa: S311 - which ones, no secret
    events_ = made(seed, rng.randrange(3, 9))
    for _ in range(rng.choice((1, 1, 2))):
        bend(events_, rng)
    file = tmp_path / "log.jsonl"
    try:
        file.write_bytes(written(encoded(events_)))
    except (KeyError, ValueError):
        return  # the log itself refuses to write that
    assert all_ways(file) == [carefully(file)] * 2


def damage(data: bytes, rng: random.Random) -> bytes:
    """Do one thing to the bytes of an export."""
    lines = data.splitlines(keepends=True)
    place = rng.randrange(len(lines))
    line = bytearray(lines[place])
    at = rng.randrange(len(line))
    way = rng.randrange(9)
    if way == 0:
        line[at] ^= 1 << rng.randrange(8)
    elif way == 1:
        line[at:at] = rng.choice((b" ", b"\n", b"\\", b'"', b"\x00", b"\x7f", "é".encode(), b"0"))
    elif way == 2:
        del line[at : at + rng.randrange(1, 80)]
    elif way == 3:
        other = rng.randrange(len(lines))
        lines[place], lines[other] = lines[other], lines[place]
        return b"".join(lines)
    elif way == 4:
        return b"".join(lines[:place] + lines[place : place + 1] + lines[place:])
    elif way == 5:
        return b"".join(lines[:place] + lines[place + 1 :])
    elif way == 6:
        return data[: rng.randrange(len(data))]
    elif way == 7:
        return data + bytes(lines[place])
    else:
        line = bytearray(bytes(line).replace(b'"seq', rng.choice((b' "seq', b'"Seq', b'"seq":1,"seq'))))
    return b"".join([*lines[:place], bytes(line), *lines[place + 1 :]])


@pytest.mark.parametrize("seed", range(120))
def test_whatever_was_done_to_the_file_all_ways_say_the_same(seed, tmp_path, small_blocks) -> None:
    """Bytes, lines, ends: the same findings, however many processes look."""
    rng = random.Random(seed)  # noqa: S311 - which ones, no secret
    file = tmp_path / "log.jsonl"
    data = written(encoded(made(seed % 7, 6)))
    file.write_bytes(damage(data, rng))
    assert all_ways(file) == [carefully(file)] * 2


def pieces() -> dict[str, tuple[bytes, bytes]]:
    """What is replaced in a body, by what: JSON in another spelling, or what is none of the log's."""
    return {
        "space": (b'"v":1', b'"v": 1'),
        "order": (b'"v":1,"version"', b'"version":1,"v"'),
        "twice": (b'"v":1', b'"v":1,"v":1'),
        "float": (b'"rows":1', b'"rows":1.00'),
        "long float": (b'"rows":1', b'"rows":1e5'),
        "plus": (b'"rows":1', b'"rows":01'),
        "minus": (b'"rows":1', b'"rows":-0'),
        "constant": (b'"rows":1', b'"rows":NaN'),
        "escape": (b'"SELECT 1"', b'"SELECT \\u0031"'),
        "solidus": (b'"SELECT 1"', b'"SELECT \\/"'),
        "surrogate": (b'"SELECT 1"', b'"SELECT \\ud800"'),
        "date": (b'"at":"2026-03-01', b'"at":"2026-02-30'),
        "month": (b'"at":"2026-03-01', b'"at":"2026-13-01'),
        "hour": (b"T02:", b"T24:"),
        "digits": (b"T02:", "T0٢:".encode()),
        "format": (b'"v":1', b'"v":2'),
        "unknown": (b'"v":1', b'"v":1,"w":1'),
        "nobody": (b'"person":"U0RITA"', b'"person":""'),
        "somebody": (b'"person":"U0RITA"', b'"person":"U0 RITA"'),
        "name": (b'"request":"BG-0000"', b'"request":"BG 0000"'),
        "long name": (b'"request":"BG-0000"', b'"request":"BG-' + b"0" * 70 + b'"'),
        "long": (b'"SELECT 1"', b'"' + b"x" * 61_000 + b'"'),
        "other number": (b'"seq":', b'"seq":1'),
        "deep": (b'"rows":1', b'"rows":' + b"[" * 20 + b"]" * 20),
    }


@pytest.mark.parametrize("name", pieces())
def test_attack_a_body_of_another_spelling_after_many_of_its_shape(name, tmp_path, quick_only) -> None:
    """Its hashes are sound and a thousand like it came before: it is found, and sound ones are taken quickly."""
    old, new = pieces()[name]
    bodies = encoded(made(1, 30))
    file = tmp_path / "log.jsonl"
    file.write_bytes(written(bodies))
    assert standalone.verify(file, processes=1).findings == []
    places = [seq for seq, body in enumerate(bodies) if old in body and b"command:run" in body]
    place = (places or [seq for seq, body in enumerate(bodies) if old in body])[-1]
    bodies[place] = bodies[place].replace(old, new, 1)
    file.write_bytes(written(bodies))
    reports = all_ways(file)
    assert reports == [carefully(file)] * 2
    assert any(found.seq == place for found in reports[0].findings)
    assert quick_only == [True, False, False]


def test_attack_a_pattern_that_never_ends(tmp_path) -> None:
    """Every line of another shape: no pattern is made of each, and all of them are read."""
    entries = [{"event": "log:odd", "data": {f"k{n}": n, f"m{n % 3}": ["x"] * (n % 50)}} for n in range(3000)]
    file = tmp_path / "log.jsonl"
    file.write_bytes(written(encoded(entries)))
    quick = standalone.Quick(file, (), keeps_leaves=False, rules=True, processes=1)
    with file.open("rb") as opened:
        assert quick.run(opened)
    assert quick.entries == 3000


def test_moves_that_are_judged_without_their_data_do_not_look_at_it() -> None:
    """The quick way leaves it out for these."""

    class Blind(dict[str, Any]):
        def get(self, *_: object) -> Any:
            raise AssertionError

    for event in standalone._DEAF:
        for state in ("approved", "active"):
            replay = standalone.Replay(standalone.Findings(9), is_whole=True)
            case = replay.cases["BG-1"] = standalone.Case("BG-1", state, 1, is_partial=False)
            entry = {"event": event, "actor": standalone.SYSTEM, "at": audit.write_time(NOW), "data": Blind(x=1)}
            replay.take(5, entry | {"request": "BG-1", "from": state, "to": state, "version": 2}, b"")
            assert case.version == 2


# --- evidence of each entry -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 21, 300])
def test_the_evidence_of_all_entries_is_compared_as_a_whole(size, tmp_path) -> None:
    """Sound evidence is taken quickly; with any byte changed, or an end missing, it is not."""
    bodies = encoded([{"event": "log:odd"} for _ in range(size)])
    leaves = list(map(merkle.leaf_hash, bodies))
    tree, note = merkle.Tree(leaves), signed(bodies, ALICE)
    text = b"".join(
        b"c2sp.org/tlog-proof@v1\nindex %d\n%b\n%b"
        % (seq, b"".join(base64.b64encode(step) + b"\n" for step in tree.inclusion(seq)), note)
        for seq in range(size)
    )
    kept = standalone.Leaves()
    kept.extend(0, b"".join(leaves))
    findings = standalone.Findings(9)
    evidence = standalone.Evidence(findings, (standalone.read_vkey(str(ALICE.key)),), (), kept)
    assert evidence.is_of_all(io.BytesIO(text))
    rng = random.Random(size)  # noqa: S311 - which ones, no secret
    for _ in range(100):
        changed = bytearray(text)
        changed[rng.randrange(len(text))] ^= 1 << rng.randrange(8)
        assert not evidence.is_of_all(io.BytesIO(changed))
    for other in (b"", text[:-1], text + b"\n", text + text[: len(text) // size], text[len(text) // size :]):
        assert not evidence.is_of_all(io.BytesIO(other))
    bob = standalone.Evidence(findings, (standalone.read_vkey(str(BOB.key)),), (), kept)
    assert not bob.is_of_all(io.BytesIO(text))
    assert findings == []


# --- processes -----------------------------------------------------------------------------------------------------


def test_crash_of_another_process_costs_only_time(tmp_path, monkeypatch, small_blocks) -> None:
    """One that dies, or none that can be started: the file is read by one process."""
    file = tmp_path / "log.jsonl"
    file.write_bytes(written(encoded(made())))
    expected = carefully(file)
    with monkeypatch.context() as patch:
        patch.setattr(standalone, "_work", lambda *_: os._exit(9))
        assert standalone.verify(file, processes=3) == expected
    monkeypatch.setattr(standalone, "_start_method", lambda: "no such way")
    assert standalone.verify(file, processes=3) == expected


def test_processes_end_in_a_program_that_does_not_end_at_sigterm(tmp_path, small_blocks) -> None:
    """A fork has the handlers of the program around it, such as the bot's: the verifier does not wait for it."""
    file = tmp_path / "log.jsonl"
    file.write_bytes(written(encoded(made())))
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        assert standalone.verify(file, processes=3) == carefully(file)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert multiprocessing.active_children() == []


def test_crash_of_the_first_process_leaves_no_other_behind(tmp_path) -> None:
    """Killed while the others wait for its question: each sees that nobody is there any more."""
    file = tmp_path / "log.jsonl"
    file.write_bytes(written(encoded(made(1, 40))))
    (tmp_path / "drive.py").write_text(
        "import multiprocessing, os, signal, sys\n"
        "from storage import standalone\n"
        "def asked(*_):\n"
        "    print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "standalone._Others.cases = asked\n"
        "standalone.verify(standalone.Path(sys.argv[1]), processes=4)\n",
        encoding="utf-8",
    )
    begun = [sys.executable, "drive.py", str(file)]
    root = str(FILE.parent.parent)
    with subprocess.Popen(begun, cwd=tmp_path, env={**os.environ, "PYTHONPATH": root}, stdout=subprocess.PIPE) as first:
        # The pipe ends when the last one that has it has ended.
        told, _ = first.communicate(timeout=60)
    assert first.returncode == -signal.SIGKILL
    assert len(told.split()) == 3


def test_other_processes_can_be_started_without_a_fork(tmp_path) -> None:
    """As on Windows and macOS: the program is started anew for each, and they say the same."""
    file = tmp_path / "log.jsonl"
    file.write_bytes(written(encoded(made(1, 40))))
    (tmp_path / "verify.py").write_bytes(FILE.read_bytes())
    (tmp_path / "drive.py").write_text(
        "import sys, verify\n"
        "verify._start_method = lambda: 'spawn'\n"
        "quick = verify.Quick(verify.Path(sys.argv[1]), (), keeps_leaves=False, rules=True, processes=3)\n"
        "if __name__ == '__main__':\n"
        "    with open(sys.argv[1], 'rb') as file:\n"
        "        print(quick.run(file), quick.entries)\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "drive.py", str(file)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stderr, done.stdout.split()[0]) == ("", "True")


def test_its_members_are_those_of_an_entry() -> None:
    """A member that were forgotten would be left out of the shapes."""
    assert MEMBERS == standalone._KNOWN
    assert list(standalone._MEMBERS) == sorted(standalone._MEMBERS)
    assert export.FORMAT == standalone.FORMAT
