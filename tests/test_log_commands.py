"""Does ``breakglass log …`` print what other tools can use, and change over to a new key as it says?"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from outside import HOST, Authority, Key
from sqlmodel import select
from test_follower_timestamp import Stamping
from test_follower_witness import Peer

from bot import check, cli
from bot.settings import Settings
from storage import audit, checkpoint, heads
from storage.database import Database
from storage.followers import CopyRunner, build_copies
from storage.heads import HeadKeeper
from storage.models import Anchor, SignedHead
from storage.signers import FileKeyring, new_key_file
from workflows import policy as rules

DEMO = Path(__file__).parent.parent / "bot" / "demo" / "breakglass.yml"
ORIGIN = "sandbox.example/breakglass"


@pytest.fixture
def log(tmp_path, monkeypatch, sqlite_template):
    """A database with three entries and a policy that signs with a key file, named by the environment."""
    (tmp_path / "log.db").write_bytes(sqlite_template.read_bytes())
    new_key_file(tmp_path / "log.key")
    text = re.sub(
        r"(?m)^  signer: .*$",
        f"  signer: {{kind: file, path: {tmp_path / 'log.key'}}}",
        DEMO.read_text(encoding="utf-8"),
    )
    (tmp_path / "policy.yml").write_text(text, encoding="utf-8")
    monkeypatch.setenv("BREAKGLASS_DATABASE_URL", f"sqlite:///{tmp_path / 'log.db'}")
    monkeypatch.setenv("BREAKGLASS_POLICY", str(tmp_path / "policy.yml"))
    database = Database(f"sqlite:///{tmp_path / 'log.db'}")
    append(database, 3)
    yield database
    database.close()


def append(database: Database, count: int) -> None:
    """Append entries."""
    with database.write() as session:
        for number in range(count):
            audit.append(session, event="test:event", at=datetime.now(UTC), actor=audit.SYSTEM, data={"n": number})


def sign(database: Database, tmp_path: Path) -> None:
    """Sign as the bot does."""
    keyring = FileKeyring(ORIGIN, tmp_path / "log.key")
    keeper = HeadKeeper(database, ORIGIN, keyring, heartbeat=timedelta(minutes=5), now=lambda: datetime.now(UTC))
    keeper.round()
    assert keeper.trouble is None


def test_the_head_and_the_key_are_printed_alone_and_fit_each_other(log, tmp_path, capsys):
    """What the two commands print is a signed note and the vkey that verifies it, and nothing else."""
    sign(log, tmp_path)
    assert cli.main(["log", "head"]) == cli.OK
    note = capsys.readouterr().out.encode()
    assert cli.main(["log", "key"]) == cli.OK
    key = checkpoint.parse_vkey(capsys.readouterr().out.removesuffix("\n"))
    assert checkpoint.verify(note, [key])
    assert checkpoint.parse(note).checkpoint.size == 3


def test_without_a_head_or_a_section_the_answer_is_a_sentence(log, tmp_path, capsys):
    """A log that nobody has signed yet, or that the policy does not sign, is told; the code is that of a refusal."""
    assert cli.main(["log", "head"]) == cli.REFUSED
    assert "no signed head yet" in capsys.readouterr().err
    policy = tmp_path / "policy.yml"
    policy.write_text(re.sub(r"(?m)^log:\n(  .*\n)+", "", policy.read_text(encoding="utf-8")), encoding="utf-8")
    for words in (["log", "key"], ["log", "rotate"]):
        assert cli.main(words) == cli.REFUSED
        assert "no section “log”" in capsys.readouterr().err


def test_a_new_key_file_is_made_and_its_vkey_printed(log, tmp_path, capsys):
    """The first step of an installation: a private file, and the public half for the auditors."""
    assert cli.main(["log", "key", "--new", str(tmp_path / "new.key")]) == cli.OK
    key = checkpoint.parse_vkey(capsys.readouterr().out.removesuffix("\n"))
    assert key.name == ORIGIN
    assert (tmp_path / "new.key").stat().st_mode & 0o777 == 0o600
    assert FileKeyring(ORIGIN, tmp_path / "new.key").signers()[0].key == key
    assert cli.main(["log", "key", "--new", str(tmp_path / "new.key")]) == cli.UNAVAILABLE
    assert "never written over" in capsys.readouterr().err


def test_a_rotation_names_who_typed_it_and_prints_both_keys(log, tmp_path, capsys):
    """After it the log's newest entry and head say so, and the key that is printed is the new one."""
    sign(log, tmp_path)
    cli.main(["log", "key"])
    before = capsys.readouterr().out.strip()
    assert cli.main(["log", "rotate"]) == cli.OK
    old, new = (line.split(" ")[1] for line in capsys.readouterr().out.splitlines())
    assert old == before != new
    cli.main(["log", "key"])
    assert capsys.readouterr().out.strip() == new
    with log.read() as session:
        entry = audit.read_entries(session)[-1]
        stored = heads.latest(session)
    assert entry.event == "log:rotate"
    assert entry.actor.person.startswith("shell:")
    assert len(checkpoint.verify(stored.note, map(checkpoint.parse_vkey, (old, new)))) == 2


def test_a_key_that_is_lost_is_replaced_only_when_it_is_said_to_be(log, tmp_path, capsys):
    """Without the old key the rotation is refused and says why; with --lost the new key signs alone."""
    sign(log, tmp_path)
    (tmp_path / "log.key").unlink()
    assert cli.main(["log", "rotate"]) == cli.UNAVAILABLE
    assert "cannot be read" in capsys.readouterr().err
    new_key_file(tmp_path / "log.key")
    assert cli.main(["log", "rotate"]) == cli.UNAVAILABLE
    assert "does not have" in capsys.readouterr().err
    assert cli.main(["log", "rotate", "--lost"]) == cli.OK
    assert capsys.readouterr().out.startswith("old lost\nnew ")


def test_a_log_that_was_rewritten_cannot_be_rotated(log, tmp_path, capsys):
    """A rotation would sign what the old key never would have: it is refused, and security is to be called."""
    sign(log, tmp_path)
    with log.write() as session:
        session.connection().exec_driver_sql("DROP TRIGGER entry_no_delete")
        session.connection().exec_driver_sql("DELETE FROM entry WHERE seq = 2")
    assert cli.main(["log", "rotate"]) == cli.REFUSED
    assert "Call security" in capsys.readouterr().err


def test_a_key_file_that_others_can_read_is_not_used(log, tmp_path, capsys):
    """The sentence says what to do, and the code is that of something that is not available."""
    (tmp_path / "log.key").chmod(0o644)
    assert cli.main(["log", "key"]) == cli.UNAVAILABLE
    assert "chmod 600" in capsys.readouterr().err


# --- what breakglass check says ------------------------------------------------------------------------------------


def settings_in(tmp_path: Path) -> Settings:
    """The settings of a bot whose policy and database are there."""
    return Settings(
        slack_bot_token="",
        slack_app_token="",
        vault_address="",
        policy_file=tmp_path / "policy.yml",
        database_url=f"sqlite:///{tmp_path / 'log.db'}",
    )


def said(tmp_path: Path, *, later: timedelta = timedelta(0)) -> tuple[bool, str]:
    """What the check says of the heads: whether all is fine, and all sentences."""
    settings = settings_in(tmp_path)
    found = list(check._heads(settings, rules.load(settings.policy_file), now=datetime.now(UTC) + later))
    return all(finding.is_fine for finding in found), " ".join(finding.sentence for finding in found)


def test_the_check_says_how_old_the_newest_head_is_and_the_key(log, tmp_path):
    """While the bot signs, the age of the newest head and the vkey are told, and all is fine."""
    sign(log, tmp_path)
    is_fine, words = said(tmp_path, later=timedelta(minutes=4))
    assert is_fine
    assert str(FileKeyring(ORIGIN, tmp_path / "log.key").signers()[0].key) in words
    assert "over 3 entries and 4 minutes" in words


def test_the_check_finds_that_nobody_signs(log, tmp_path):
    """Entries without a head, and a heartbeat that did not come, are problems."""
    is_fine, words = said(tmp_path)
    assert not is_fine
    assert "no head is signed yet" in words
    sign(log, tmp_path)
    is_fine, words = said(tmp_path, later=timedelta(minutes=11))
    assert not is_fine
    assert "no bot runs, or none can sign" in words
    append(log, 2)
    assert said(tmp_path)[0]  # it may be about to be signed
    is_fine, words = said(tmp_path, later=timedelta(minutes=1))
    assert not is_fine
    assert "2 entries are not signed" in words


def test_the_check_finds_a_signer_that_cannot_and_a_head_that_is_not_the_logs(log, tmp_path):
    """A key that is not there, another key, and a planted head are problems, each with its sentence."""
    sign(log, tmp_path)
    with log.write() as session:
        good = heads.latest(session)
        bad = checkpoint.parse(good.note).signatures[0]
        forged = checkpoint.Signature(bad.name, bad.key_id, b"\0" * 64)
        note = checkpoint.compose(checkpoint.parse(good.note).checkpoint, [forged])
        session.add(SignedHead(size=3, root=good.root, note=note, at=good.at, reason="heartbeat"))
    assert said(tmp_path) == (False, f"Log: the signature of {ORIGIN} is wrong.")
    (tmp_path / "log.key").unlink()
    assert "cannot be read" in said(tmp_path)[1]
    new_key_file(tmp_path / "log.key")
    assert "does not have" in said(tmp_path)[1]


def test_the_check_says_that_a_log_without_the_section_is_not_signed(log, tmp_path):
    """No section is no problem, but is told."""
    policy = tmp_path / "policy.yml"
    policy.write_text(re.sub(r"(?m)^log:\n(  .*\n)+", "", policy.read_text(encoding="utf-8")), encoding="utf-8")
    assert said(tmp_path) == (True, "Log: the policy has no section “log”, so its heads are not signed.")


def test_the_check_asks_witness_and_time_stamp_authority(log, tmp_path):
    """Both are asked now: what is well, what has another key or certificate, and what does not answer, is said."""
    authority = Authority(tmp_path)
    signer = FileKeyring(ORIGIN, tmp_path / "log.key").signers()[0]
    with Peer(tmp_path / "seen.json", {ORIGIN: signer}) as peer, Stamping(tmp_path, authority) as stamping:
        policy = (tmp_path / "policy.yml").read_text(encoding="utf-8")

        def asked(*, vkey: object = peer.key.key, ca_file: Path = authority.file) -> list[tuple[bool, str]]:
            copies = (
                f"    notary: {{kind: witness, url: 'http://{HOST}:{peer.port}/w1', vkey: {vkey}}}\n"
                f"    clock: {{kind: timestamp, url: 'http://{HOST}:{stamping.port}/', ca_file: {ca_file}}}\n"
            )
            text = re.sub(r"(?m)^    archive: .*\n", copies, policy)
            (tmp_path / "policy.yml").write_text(text, encoding="utf-8")
            settings = settings_in(tmp_path)
            found = check._copies(settings, rules.load(settings.policy_file))
            return [(finding.is_fine, finding.sentence) for finding in found]

        witness, clock = asked()
        assert witness[0]
        assert witness[1].startswith("Copy notary: it has everything. It answers; whether it knows the log")
        assert clock[0]
        assert clock[1].startswith("Copy clock: it has everything. It stamps, under the certificates")
        sign(log, tmp_path)
        assert "knows the log, with 0 entries" in asked()[0][1]
        settings = settings_in(tmp_path)
        copies = build_copies(rules.load(settings.policy_file).log, {})
        runner = CopyRunner(log, copies, now=lambda: datetime.now(UTC))
        assert runner.work("notary")
        assert asked()[0] == (True, "Copy notary: it has everything. It cosigns, with the key that the policy names.")
        other = Key(peer.key.name, peer.key.algorithm)
        witness, clock = asked(vkey=other.key, ca_file=Authority(tmp_path, "other authority").file)
        assert not witness[0]
        assert "another key than the policy names" in witness[1]
        assert not clock[0]
        assert "does not verify" in clock[1]
        with log.read() as session:
            assert len(session.exec(select(Anchor)).all()) == 1  # asking stores nothing
        peer.stop()
        stamping.stop()
        assert [finding[0] for finding in asked()] == [False, False]
        assert all("nothing listens" in finding[1] for finding in asked())


def test_after_an_alarm_nothing_is_signed_until_the_log_is_the_signed_one_again(log, tmp_path):
    """As the channel and OPERATIONS.md say it: no head for new entries and no heartbeat, and then all of it at once."""
    sign(log, tmp_path)
    append(log, 2)
    later = timedelta(0)
    keyring = FileKeyring(ORIGIN, tmp_path / "log.key")
    keeper = HeadKeeper(log, ORIGIN, keyring, heartbeat=timedelta(minutes=5), now=lambda: datetime.now(UTC) + later)
    with log.write() as session:
        connection = session.connection()
        connection.exec_driver_sql("DROP TRIGGER entry_no_update")
        body = connection.exec_driver_sql("SELECT body FROM entry WHERE seq = 4").scalar()
        connection.exec_driver_sql("UPDATE entry SET body = ? WHERE seq = 4", (body.replace(b"1", b"2"),))
    for minutes in (0, 6, 12):
        later = timedelta(minutes=minutes)
        assert keeper.round() is None
        append(log, 1)
        assert "Entry 4 was changed" in keeper.trouble
        assert not said(tmp_path, later=later + timedelta(minutes=1))[0]
    with log.read() as session:
        assert [record.event for record in audit.read_entries(session, after=4)].count("log:alarm") == 1
        assert heads.latest(session).size == 3
    with log.write() as session:
        session.connection().exec_driver_sql("UPDATE entry SET body = ? WHERE seq = 4", (body,))
    later = timedelta(minutes=18)
    assert keeper.round().size == 9
    assert said(tmp_path, later=later)[0]
