"""Do the tables say what the log says, on both databases, and does ``breakglass verify`` say so when they do not?

What can be done to a finished log in general is in ``test_mutations.py``; here is what needs a live desk.
"""

from __future__ import annotations

import shutil
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from counter import ADA, CARL, CHEN, POLICY, RITA, SAM
from forging import FORM, HEARTBEAT, ORIGIN, Log, Night, copy_of, desk_at, hands_on, key_in, policy_for
from sqlalchemy import text
from test_required import Archive, hold, reveal

from bot import cli
from storage import audit, pruning
from storage.audit import SYSTEM
from storage.checkpoint import VerifierKey
from storage.database import Database
from storage.models import Feed, Request
from storage.standalone import Kind
from storage.verify import verify_file
from workflows import sweep
from workflows.errors import Unavailable
from workflows.replay import check_database

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path

    from storage.standalone import Report

pytest_plugins = ("test_required",)


def look(counter, **more: Any) -> Report:
    """Check the desk's database now."""
    with counter.database.read() as session:
        return check_database(session, **{"now": counter.now, **more})


def test_a_night_is_told_the_same_by_log_and_tables(counter) -> None:
    """Used, shown again, handed back and reviewed; denied; lapsed; expired: nothing differs, at any moment of it."""
    row = counter.approved(level="write", by=(CARL, CHEN), minutes=10)
    assert look(counter).findings == []
    counter.show(row)
    counter.pass_time(seconds=30)
    counter.show(row)
    assert look(counter).findings == []
    counter.release(RITA, row.id, counter.case(row.id).request.version, now=counter.now)
    assert look(counter).findings == []
    counter.finish(row.id, now=counter.now)
    denied = counter.ask()
    counter.deny(CARL, denied.id, denied.version, "Use the replica", now=counter.now)
    counter.ask()
    expired = counter.approved(minutes=5)
    counter.show(expired)
    for _ in range(5):
        counter.pass_time(minutes=4)
        sweep.tick(counter, now=counter.now)
        assert look(counter).findings == []
    counter.review(SAM, row.id, counter.case(row.id).request.version, FORM, now=counter.now)
    report = look(counter)
    assert (report.findings, report.unchecked) == ([], ("The log has no signed heads.",))


def test_an_overdue_review_is_missing_from_its_day_on(counter) -> None:
    """The day after a review was due it is a finding, at the entry of the end, until it is filed."""
    row = counter.approved()
    counter.show(row)
    counter.revoke(CARL, row.id, counter.case(row.id).request.version, now=counter.now)
    counter.finish(row.id, now=counter.now)
    end = counter.log_of(row)[-1].seq
    counter.pass_time(days=2, hours=23)
    assert look(counter).findings == []
    counter.pass_time(hours=2)
    assert [(one.kind, one.seq, one.request) for one in look(counter).findings] == [(Kind.REVIEW_MISSING, end, row.id)]
    counter.review(SAM, row.id, counter.case(row.id).request.version, FORM, now=counter.now)
    assert look(counter).findings == []


def test_what_a_required_copy_holds_back_breaks_no_rule(counter, tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    """A credential that was held and came, and one that was given up, are told the same by log and tables."""
    archive = Archive(counter, tmp_path)
    counter.required = archive.required()
    counter.database.woken.append(archive.runner.wake)
    archive.runner.start()
    try:
        row = counter.approved()
        coming = hold(counter, pool, row)
        assert look(counter).findings == []
        archive.mount()
        coming.result(30)
        archive.unmount()
        counter.required = archive.required(timedelta(seconds=0.6))
        with pytest.raises(Unavailable):  # "show again" is given up, and the first stays
            counter.issue(reveal(counter, row), now=counter.now)
        other = counter.approved()
        with pytest.raises(Unavailable):
            counter.issue(reveal(counter, other), now=counter.now)
        assert {"credential:hold", "credential:abandon"} < set(counter.events(other))
        archive.mount()
        counter.show(other)
        assert look(counter).findings == []
    finally:
        counter.hold_nobody()
        archive.runner.stop()


def test_an_approval_says_when_it_lapses(counter) -> None:
    """Attack: a moved ``lapse_at`` keeps an approval alive that should have lapsed; it is found, and only it."""
    row = counter.approved()
    assert look(counter).findings == []
    later = counter.now + timedelta(days=3)
    with counter.database.write() as session:
        session.get(Request, row.id).lapse_at = later
    (found,) = look(counter).findings
    assert (found.kind, found.request) == (Kind.STATE_WITHOUT_ENTRY, row.id)
    assert "lapse_at" in found.sentence


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("UPDATE request SET quorum = 1", None),
        ("UPDATE request SET quorum = 2", Kind.STATE_WITHOUT_ENTRY),
        ("UPDATE request SET state = 'lapsed', due_at = NULL", Kind.STATE_WITHOUT_ENTRY),
        ("UPDATE request SET expires_at = expires_at + interval '1 hour'", Kind.STATE_WITHOUT_ENTRY),
        ("UPDATE decision SET person = 'U0EVIL'", Kind.ENTRY_WITHOUT_STATE),
        ('UPDATE "grant" SET ended_at = now()', Kind.STATE_WITHOUT_ENTRY),
        ('DELETE FROM "grant"', Kind.ENTRY_WITHOUT_STATE),
        ("UPDATE request SET last_seq = 999", Kind.TRUNCATED),
    ],
)
def test_tables_are_compared_on_postgresql_too(counter, statement: str, kind: Kind | None) -> None:
    """A change of a table alone, made by its owner in plain SQL, is found on the other database as well."""
    if counter.database.kind == "sqlite":
        statement = statement.replace("expires_at + interval '1 hour'", "'2099-01-01 00:00:00.000000'")
        statement = statement.replace("now()", "'2026-01-01 00:00:00.000000'")
    row = counter.approved()
    counter.show(row)
    with counter.database.write() as session:
        session.execute(text(statement))
    found = [one.kind for one in look(counter).findings]
    assert (kind in found) if kind else not found


def test_bodies_that_two_people_had_pruned_are_no_finding(counter) -> None:
    """Pruned entries leave the rest in order; their columns are held to what was hashed when they were pruned."""
    old = counter.ask()
    counter.withdraw(RITA, old.id, old.version, now=counter.now)
    live = counter.approved()
    counter.close_records([old.id, live.id], now=counter.now)
    with counter.database.write() as session:
        proposal = audit.append(session, event="retention:propose", at=counter.now, actor=SYSTEM).seq
        for who in (SAM, ADA):
            data = {"proposal": proposal}
            audit.append(session, event="retention:confirm", at=counter.now, actor=who, data=data)
        claim = pruning.claim(session, ((0, 1),))
        entry = audit.append(
            session, event=pruning.APPLY, at=counter.now, actor=SYSTEM, data=claim.data() | {"proposal": proposal}
        )
        pruning.prune(session, entry.seq, claim.ranges)
    assert look(counter).findings == []
    counter.show(live)
    counter.close_records([live.id], now=counter.now)
    assert look(counter).findings == []


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def lived(real, sqlite_template, tmp_path, monkeypatch) -> tuple[Night, str]:
    """A signed log on SQLite, named by the environment with its policy, and its public key."""
    key_file, key = key_in(tmp_path)
    file = tmp_path / "log.db"
    shutil.copyfile(sqlite_template, file)
    database = Database(f"sqlite:///{file}")
    night = Night(desk_at(real, database, policy_for(real)), key_file)
    row = night.desk.approved()
    night.pass_time(seconds=5)
    night.desk.withdraw(RITA, (other := night.desk.ask()).id, other.version, now=night.desk.now)
    night.sign()
    assert night.desk.case(row.id).approvers == ("U0CARL",)
    copy_of(database, tmp_path / "copy")
    policy = POLICY.read_text(encoding="utf-8")
    start = policy.index("log:\n")
    end = policy.index("\naccounts:", start)
    section = f"""log:
  origin: {ORIGIN}
  signer: {{kind: file, path: {key_file}}}
  copies:
    archive: {{kind: file, path: {tmp_path / "copy"}}}
    hook: {{kind: webhook, url: https://hooks.example, secret_env: HOOK_SECRET}}
    clock: {{kind: timestamp, url: https://tsa.example, ca_file: tsa.pem}}
"""
    (tmp_path / "policy.yml").write_text(policy[:start] + section + policy[end:], encoding="utf-8")
    monkeypatch.setenv("BREAKGLASS_DATABASE_URL", f"sqlite:///{file}")
    monkeypatch.setenv("BREAKGLASS_POLICY", str(tmp_path / "policy.yml"))
    monkeypatch.setenv("HOOK_SECRET", "whsec_" + "QUFB" * 8)
    yield night, str(key)
    database.close()


def test_verify_of_the_database(lived, tmp_path, capsys) -> None:
    """Without a file the live log is checked, with the key where the policy says it lies; a change of a table is 4."""
    night, key = lived
    assert cli.main(["verify"]) == cli.OK
    assert "The database verifies: 5 entries" in (said := capsys.readouterr().out)
    assert "not checked" not in said
    assert cli.main(["verify", "--database", "--vkey", key]) == cli.OK
    other = str(VerifierKey(ORIGIN, b"k" * 32))
    assert cli.main(["verify", "--vkey", other]) == cli.UNVERIFIED
    assert "UNKNOWN SIGNATURE" in capsys.readouterr().out
    night.desk.database.close()
    with hands_on(tmp_path / "log.db") as raw:
        raw.execute("UPDATE decision SET person = 'U0EVIL'")
    assert cli.main(["verify"]) == cli.UNVERIFIED
    said = capsys.readouterr().out
    assert "ENTRY WITHOUT STATE  entry 1 (BG-" in said
    assert "does NOT verify" in said


def test_verify_against_a_copy_and_against_a_kept_head(lived, tmp_path, capsys) -> None:
    """A rewrite that holds together is 4 against the copy and against a head that was kept, and names the entry."""
    night, key = lived
    with night.desk.database.read() as session:
        note = session.execute(text("SELECT note FROM signed_head ORDER BY id DESC")).scalar()
    kept = tmp_path / "kept.note"
    kept.write_bytes(note)
    assert cli.main(["verify", "--against", "archive"]) == cli.OK
    assert cli.main(["verify", "--head", str(kept)]) == cli.OK
    night.desk.ask()
    assert cli.main(["verify", "--against", "archive"]) == cli.OK
    assert "does not have the newest 1 entries yet" in capsys.readouterr().out
    night.desk.database.close()
    with hands_on(tmp_path / "log.db") as raw:
        log = Log.of(raw)
        log.entries[3]["data"]["reason"] = "Words that look better afterwards"
        log.write()
        raw.execute("DELETE FROM signed_head")
    assert cli.main(["verify", "--against", "archive"]) == cli.UNVERIFIED
    assert "entry 3: " in capsys.readouterr().out
    assert cli.main(["verify", "--head", str(kept), "--vkey", key]) == cli.UNVERIFIED
    assert "FORKED  entry 4: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--against", "nobody"], cli.REFUSED, "no copy called nobody"),
        (["--against", "clock"], cli.REFUSED, "keeps no entries"),
        (["--against", "hook"], cli.REFUSED, "cannot be read back"),
        (["--head", "/no/such/note"], cli.UNAVAILABLE, "cannot be read"),
    ],
)
def test_what_cannot_be_compared_is_said(lived, capsys, words, code, sentence) -> None:
    """A copy that is not there or keeps nothing, and a head that cannot be read, are sentences with their own code."""
    assert cli.main(["verify", *words]) == code
    assert sentence in capsys.readouterr().err


def test_a_copy_that_lost_what_it_had_is_named(lived, tmp_path, capsys) -> None:
    """A copy that had acknowledged entries and no longer has them is a finding; one that is none is unavailable."""
    night, _ = lived
    with night.desk.database.write() as session:
        session.add(Feed(follower="archive", request_id="*", seq=4))
    assert cli.main(["verify", "--against", "archive"]) == cli.OK
    (tmp_path / "copy").unlink()
    assert cli.main(["verify", "--against", "archive"]) == cli.UNVERIFIED
    assert "TRUNCATED  entry 0: The copy archive acknowledged entry 4" in capsys.readouterr().out
    (tmp_path / "copy").write_bytes(b"something else")
    assert cli.main(["verify", "--against", "archive"]) == cli.UNAVAILABLE
    assert "not a copy of a log" in capsys.readouterr().err


def test_file_and_database_at_once_are_wrong_words(lived) -> None:
    """One thing is verified at a time."""
    with pytest.raises(SystemExit) as left:
        cli.main(["verify", "x", "--database"])
    assert left.value.code == cli.USAGE


def test_an_export_is_judged_by_rules_at_the_command_line(lived, tmp_path, capsys) -> None:
    """``breakglass verify FILE`` finds what breaks the rules though every hash is right."""
    night, _ = lived
    night.desk.database.close()
    with hands_on(tmp_path / "log.db") as raw:
        log = Log.of(raw)
        log.entries[1]["actor"] = log.entries[0]["actor"]
        log.write()
    out = tmp_path / "out.jsonl"
    assert cli.main(["export", "-o", str(out)]) == cli.OK
    assert cli.main(["verify", str(out)]) == cli.UNVERIFIED
    assert "SELF-APPROVAL  entry 1" in capsys.readouterr().out
    assert verify_file(out).ok


def test_a_log_that_is_not_signed_yet_is_late_after_its_heartbeat(lived) -> None:
    """What was written after the newest head and is not signed in time is a late anchor at the first such entry."""
    night, _ = lived
    row = night.desk.ask()
    assert look(night.desk, heartbeat=HEARTBEAT).findings == []
    night.desk.now += timedelta(minutes=8)
    found = look(night.desk, heartbeat=HEARTBEAT).findings
    assert [(one.kind, one.seq) for one in found] == [(Kind.LATE_ANCHOR, night.desk.log_of(row)[0].seq)]
