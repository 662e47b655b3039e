"""Does the command line do what it says, in exit codes and in sentences?"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bot import cli
from storage.audit import Actor, append, read_entries
from storage.database import Database
from storage.models import Feed

POLICY = Path(__file__).parent.parent / "bot" / "demo" / "breakglass.yml"


@pytest.fixture
def log(tmp_path, monkeypatch, sqlite_template):
    """A database with three entries, named by the environment."""
    file = tmp_path / "log.db"
    file.write_bytes(sqlite_template.read_bytes())
    monkeypatch.setenv("BREAKGLASS_DATABASE_URL", f"sqlite:///{file}")
    database = Database(f"sqlite:///{file}")
    with database.write() as session:
        for day in (1, 2, 3):
            append(
                session,
                event="test:event",
                at=datetime(2026, 3, day, tzinfo=UTC),
                actor=Actor("T1", "U1"),
                data={"n": day},
            )
    yield database
    database.close()


def test_a_sound_policy_passes(capsys):
    """The demo's policy is accepted with its numbers and its hash."""
    assert cli.main(["policy", "check", str(POLICY)]) == cli.OK
    assert "1 accounts, 3 levels" in capsys.readouterr().out


def test_every_problem_of_a_policy_is_printed_with_its_line(tmp_path, capsys):
    """Two mistakes in a file are two lines of output, each with the place, and the code is that of usage."""
    file = tmp_path / "bad.yml"
    file.write_text(POLICY.read_text(encoding="utf-8").replace("quorum: 1", "quorum: 0").replace("owner:", "owners:"))
    assert cli.main(["policy", "check", str(file)]) == cli.USAGE
    said = capsys.readouterr().err
    assert "quorum" in said
    assert "owner" in said


def test_export_and_verify(log, tmp_path, capsys):
    """What was exported verifies; the export itself is in the log before the file is."""
    out = tmp_path / "out.jsonl"
    assert cli.main(["export", "-o", str(out)]) == cli.OK
    assert cli.main(["verify", str(out)]) == cli.OK
    assert "4 entries" in capsys.readouterr().out
    with log.read() as session:
        assert [record.event for record in read_entries(session)][-1] == "log:export"


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_days_are_whole_and_both_ends_are_in(log, tmp_path, capsys, form):
    """--since and --until name days: an entry of the last day is in."""
    out = tmp_path / "out"
    assert cli.main(["export", "--since", "2026-03-02", "--until", "2026-03-03", "--format", form, "-o", str(out)]) == 0
    assert cli.main(["verify", str(out)]) == cli.OK
    assert "2 entries" in capsys.readouterr().out


def test_a_changed_export_is_named_and_has_its_own_exit_code(log, tmp_path, capsys):
    """The first bad entry is named, and the code is 4."""
    out = tmp_path / "out.jsonl"
    cli.main(["export", "-o", str(out)])
    out.write_bytes(out.read_bytes().replace(b'\\"n\\":2', b'\\"n\\":7'))
    assert cli.main(["verify", str(out)]) == cli.UNVERIFIED
    assert "entry 1" in capsys.readouterr().out


def test_an_export_that_cannot_be_written_leaves_nothing_half(log, tmp_path, capsys):
    """A folder that is not there is a sentence with the code for unavailable."""
    assert cli.main(["export", "-o", str(tmp_path / "nowhere" / "out.jsonl")]) == cli.UNAVAILABLE
    assert "cannot be written" in capsys.readouterr().err
    assert not list(tmp_path.glob("**/*.part"))


def test_an_unknown_request_is_a_sentence(log, tmp_path, capsys):
    """An export of a request that does not exist is refused without a file."""
    assert cli.main(["export", "--request", "BG-ZZZZ", "-o", str(tmp_path / "out")]) == cli.REFUSED
    assert "no request BG-ZZZZ" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_database_that_is_not_there_is_said(tmp_path, monkeypatch, capsys):
    """Without its tables the answer is a sentence and not a traceback."""
    monkeypatch.setenv("BREAKGLASS_DATABASE_URL", f"sqlite:///{tmp_path / 'no' / 'such.db'}")
    assert cli.main(["export", "-o", str(tmp_path / "out")]) == cli.UNAVAILABLE
    assert "database" in capsys.readouterr().err.lower()


@pytest.mark.parametrize(
    "words",
    [["export", "-o", "x", "--since", "yesterday"], ["export"], ["no-such-command"], [], ["verify", "--vkey", "x"]],
)
def test_wrong_words_are_usage(words):
    """Argparse's own code for wrong words is ours, too."""
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    assert left.value.code == cli.USAGE


def test_days_in_the_wrong_order_are_usage(log, tmp_path):
    """--until before --since exports nothing and says so."""
    words = ["export", "--since", "2026-03-03", "--until", "2026-03-01", "-o", str(tmp_path / "out")]
    assert cli.main(words) == cli.USAGE
    assert not (tmp_path / "out").exists()


def test_serve_without_an_environment_names_everything(monkeypatch, capsys):
    """The first run of a new installation shows all that is missing."""
    for name in [name for name in os.environ if name.startswith(("SLACK_", "VAULT_", "BREAKGLASS_"))]:
        monkeypatch.delenv(name)
    assert cli.main(["serve"]) == cli.USAGE
    assert len(capsys.readouterr().err.splitlines()) >= 4


@pytest.fixture
def copies(log, tmp_path, monkeypatch):
    """A policy with a copy in a file and one in a second PostgreSQL."""
    text = POLICY.read_text(encoding="utf-8")
    standby = "  copies:\n    standby: { kind: postgresql, url_env: STANDBY_URL }\n"
    assert "  copies:\n" in text
    file = tmp_path / "policy.yml"
    file.write_text(text.replace("  copies:\n", standby), encoding="utf-8")
    monkeypatch.setenv("BREAKGLASS_POLICY", str(file))
    return log


def test_the_set_up_of_a_copy_is_printed_ready_to_run(copies, monkeypatch, capsys):
    """The SQL for the standby comes alone on standard output, for the role and database of its URL, without secrets."""
    monkeypatch.setenv("STANDBY_URL", "postgresql://keeper:hunter2@standby.example/evidence")
    assert cli.main(["follower", "setup", "standby"]) == cli.OK
    said = capsys.readouterr().out
    assert 'CREATE ROLE "keeper" LOGIN' in said
    assert 'CREATE DATABASE "evidence"' in said
    assert "hunter2" not in said


def test_what_cannot_be_set_up_is_told(copies, capsys):
    """A copy that needs nothing, and one that the policy does not have, are a sentence and the code of a refusal."""
    assert cli.main(["follower", "setup", "archive"]) == cli.REFUSED
    assert "needs nothing" in capsys.readouterr().err
    for command in ("setup", "reset"):
        assert cli.main(["follower", command, "nowhere"]) == cli.REFUSED
        assert "standby" in capsys.readouterr().err


def test_a_reset_is_on_record_with_who_typed_it(copies, capsys):
    """A copy that was replaced gets the whole log again, and the entry names whoever had it done."""
    with copies.write() as session:
        session.add(Feed(follower="archive", request_id="*", seq=2))
    assert cli.main(["follower", "reset", "archive"]) == cli.OK
    assert "up to 2" in capsys.readouterr().out
    with copies.read() as session:
        last = read_entries(session)[-1]
        assert session.get(Feed, ("archive", "*")).seq == -1
    assert (last.event, last.data) == ("copy:reset", {"copy": "archive", "acknowledged": 2})
    assert last.actor.person.startswith("shell:")
