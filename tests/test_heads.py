"""Is every head signed once, by the right key, and never one that does not extend the last?"""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing
from datetime import datetime, timedelta
from itertools import pairwise

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bot.demo.vault_setup import LOG_KEY, LOG_MOUNT
from storage import audit, checkpoint, heads, merkle, proofs
from storage.checkpoint import Checkpoint
from storage.database import Database
from storage.heads import HeadKeeper, Rewritten
from storage.models import SignedHead
from storage.signers import FileKeyring, KeySigner, SignerDown, new_key_file, read_key_file
from workflows.errors import Unavailable, VaultRefused
from workflows.signing import VaultKeyring
from workflows.vault import Vault

ORIGIN = "log.example/orders"
HEARTBEAT = timedelta(minutes=5)
ADA = audit.Actor("T0SANDBOX", "U0ADA")


class Clock:
    """A clock that the test moves."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        """The time."""
        return self.now

    def pass_time(self, **by: float) -> None:
        """Move it."""
        self.now += timedelta(**by)


class Log:
    """A database with its keeper, its key and its clock."""

    def __init__(self, database: Database, keyring, clock: Clock) -> None:
        self.database, self.keyring, self.clock = database, keyring, clock
        self.keeper = self.another()

    def another(self, keyring=None) -> HeadKeeper:
        """A further bot's keeper of the same log, or this one's after a restart."""
        return HeadKeeper(self.database, ORIGIN, keyring or self.keyring, heartbeat=HEARTBEAT, now=self.clock)

    def append(self, count: int = 1) -> None:
        """Append entries in one commit."""
        with self.database.write() as session:
            for number in range(count):
                audit.append(session, event="test:event", at=self.clock.now, actor=audit.SYSTEM, data={"n": number})

    def heads(self) -> list[SignedHead]:
        """All signed heads."""
        with self.database.read() as session:
            return heads.between(session)

    def events(self) -> list[str]:
        """The events of all entries."""
        with self.database.read() as session:
            return [record.event for record in audit.read_entries(session)]

    def keys(self) -> list[checkpoint.VerifierKey]:
        """The public halves of the keyring."""
        return [signer.key for signer in self.keyring.signers()]


@pytest.fixture
def clock(now):
    """The test's clock."""
    return Clock(now)


@pytest.fixture
def key_file(tmp_path):
    """A key file as the command line makes it."""
    new_key_file(tmp_path / "log.key")
    return tmp_path / "log.key"


@pytest.fixture
def log(database, key_file, clock):
    """An empty log that is signed with a key file, on each kind of database."""
    return Log(database, FileKeyring(ORIGIN, key_file), clock)


@pytest.fixture
def file_log(tmp_path, sqlite_template, key_file, clock):
    """The same, in an SQLite file that can be tampered with from outside."""
    file = tmp_path / "log.db"
    file.write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite:///{file}")
    log = Log(database, FileKeyring(ORIGIN, key_file), clock)
    log.file = file
    yield log
    database.close()


def tamper(log: Log, *statements: str) -> None:
    """Change the file as its owner can, past the guards."""
    with closing(sqlite3.connect(log.file)) as raw:
        for guard in ("entry_no_update", "entry_no_delete", "entry_only_next"):
            raw.execute(f"DROP TRIGGER IF EXISTS {guard}")
        for statement in statements:
            raw.execute(statement)
        raw.commit()


# --- signing -------------------------------------------------------------------------------------------------------


def test_the_newest_head_is_signed_and_is_the_logs(log):
    """After entries one head over all of them is stored, and it verifies with the log's key."""
    log.append(3)
    stored = log.keeper.round()
    assert (stored.size, stored.reason) == (3, "entry")
    with log.database.read() as session:
        head = audit.head(session)
        newest = heads.latest(session)
        assert heads.covering(session, 2).id == newest.id
        assert heads.covering(session, 3) is None
    signed = checkpoint.parse(newest.note)
    assert signed.checkpoint == Checkpoint(ORIGIN, head.size, head.root)
    assert [one.key for one in checkpoint.verify(signed, log.keys())] == log.keys()


def test_an_empty_log_is_not_signed(log):
    """Before the first entry there is nothing to sign, also when time passes."""
    assert log.keeper.round() is None
    log.clock.pass_time(hours=1)
    assert log.keeper.round() is None
    assert log.keeper.trouble is None


def test_many_commits_are_one_head_and_no_commit_is_none(log):
    """Commits that came together are one head; looking again signs nothing."""
    log.append(2)
    log.append(1)
    assert log.keeper.round().size == 3
    assert log.keeper.round() is None
    log.append()
    assert log.keeper.round().size == 4
    assert [head.size for head in log.heads()] == [3, 4]


def test_a_round_gives_way_only_while_entries_come_in(log, monkeypatch):
    """A round that somebody writes beside stops again and again to let him; the head is that of all that it saw."""
    stops = []
    monkeypatch.setattr(heads.time, "sleep", stops.append)
    log.append(100)
    assert log.keeper.round().size == 100
    assert stops == []
    log.append(100)
    log.keeper.wake()
    assert log.keeper.round().size == 200
    assert stops == [heads._GIVE_WAY] * (100 // heads._STRETCH)
    with log.database.read() as session:
        assert log.heads()[-1].root == audit.head(session).root


def test_every_head_extends_the_one_before(log):
    """Between all stored heads there are consistency proofs out of the database."""
    for count in (1, 2, 5, 8):
        log.append(count)
        log.keeper.round()
    found = log.heads()
    with log.database.read() as session:
        for old, new in pairwise(found):
            proof = proofs.consistency(session, old.size, new.size)
            assert merkle.verify_consistency(old.size, old.root, new.size, new.root, proof)


def test_silence_is_signed_as_a_heartbeat(log):
    """While nothing is logged, each interval has a head that says its time; what is logged starts the interval anew."""
    log.append()
    log.keeper.round()
    log.clock.pass_time(minutes=4, seconds=59)
    assert log.keeper.round() is None
    log.clock.pass_time(seconds=1)
    stored = log.keeper.round()
    assert (stored.size, stored.reason) == (1, "heartbeat")
    assert checkpoint.parse(stored.note).checkpoint.at == log.clock.now
    assert checkpoint.verify(stored.note, log.keys())
    assert log.keeper.round() is None
    log.clock.pass_time(minutes=5)
    assert log.keeper.round().reason == "heartbeat"
    log.append()
    assert log.keeper.round().reason == "entry"


def test_several_bots_sign_nothing_twice(log):
    """Bots on one database store one head for each size and one heartbeat for each interval."""
    bots = [log.keeper, log.another(), log.another()]
    for _ in range(4):
        log.append()
        for bot in bots:
            bot.round()
    log.clock.pass_time(minutes=6)
    for bot in bots:
        bot.round()
    assert [(head.size, head.reason) for head in log.heads()] == [
        (1, "entry"),
        (2, "entry"),
        (3, "entry"),
        (4, "entry"),
        (4, "heartbeat"),
    ]
    assert not any(bot.trouble for bot in bots)


def test_bots_at_the_same_moment_sign_nothing_twice_and_never_back(log):
    """Threads that append and sign side by side leave heads that only grow, none twice, the last over everything."""
    bots = [log.another() for _ in range(3)]

    def work(bot: HeadKeeper) -> None:
        for _ in range(8):
            log.append()
            bot.round()

    threads = [threading.Thread(target=work, args=(bot,)) for bot in bots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.keeper.round()
    sizes = [head.size for head in log.heads()]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == 24
    assert [bot.trouble for bot in bots] == [None, None, None]


def test_the_thread_signs_when_it_is_woken_and_what_is_left_at_the_end(log):
    """Woken by the database after a commit, the keeper signs by itself, tells, and stops with everything signed."""
    told = threading.Event()
    log.keeper.signed.append(told.set)
    log.database.woken.append(log.keeper.wake)
    log.keeper.start()
    log.append()
    assert told.wait(20)
    log.database.woken.clear()
    log.append(2)
    log.keeper.stop()
    assert log.heads()[-1].size == 3


def test_who_is_told_of_a_head_can_undo_nothing(log):
    """A listener that fails is logged, and the next one is told all the same."""
    told = []
    log.keeper.signed += [lambda: 1 // 0, lambda: told.append(1)]
    log.append()
    assert log.keeper.round() is not None
    assert told == [1]


def test_how_far_behind_the_signing_is(log):
    """The standing counts the entries under no head and the age of the oldest, and is at rest when all are signed."""
    log.append()
    log.keeper.round()
    log.clock.pass_time(seconds=10)
    log.append(2)
    log.clock.pass_time(seconds=30)
    with log.database.read() as session:
        found = heads.standing(session, now=log.clock.now)
    assert (found.newest.size, found.unsigned, found.behind) == (1, 2, timedelta(seconds=30))
    log.keeper.round()
    with log.database.read() as session:
        found = heads.standing(session, now=log.clock.now)
    assert (found.newest.size, found.unsigned, found.behind) == (3, 0, timedelta(0))


# --- a signer that is down -----------------------------------------------------------------------------------------


def test_a_signer_that_is_down_is_asked_again_and_everything_is_signed_then(log, key_file):
    """Without the key file nothing is signed and the reason is told; once it is back one head covers everything."""
    key_file.rename(key_file.with_suffix(".away"))
    log.append()
    assert log.keeper.round() is None
    assert "cannot be read" in log.keeper.trouble
    log.append()
    key_file.with_suffix(".away").rename(key_file)
    assert log.keeper.round() is None  # it is not asked at every commit
    log.clock.pass_time(seconds=1)
    assert log.keeper.round().size == 2
    assert log.keeper.trouble is None
    assert "log:alarm" not in log.events()


def test_another_key_in_the_same_place_signs_nothing(log, key_file):
    """A key that was exchanged without a rotation is not taken: the log's heads are another key's."""
    log.append()
    log.keeper.round()
    key_file.unlink()
    new_key_file(key_file)
    log.append()
    restarted = log.another()
    assert restarted.round() is None
    assert "log rotate" in restarted.trouble
    assert len(log.heads()) == 1


def test_a_log_keeps_its_name(log):
    """Under another origin nothing is signed, since its heads would be another log's."""
    log.append()
    log.keeper.round()
    other = HeadKeeper(log.database, "log.example/other", log.keyring, heartbeat=HEARTBEAT, now=log.clock)
    log.append()
    assert other.round() is None
    assert "keeps its name" in other.trouble


def test_a_signer_that_answers_nonsense_is_down(log):
    """What is no signature of the key is not stored."""

    class Broken:
        def __init__(self, key):
            self.key = key

        def sign(self, _message):
            return b"\0" * 64

    class Ring:
        def signers(self):
            return (Broken(log.keys()[0]),)

    log.append()
    bot = log.another(Ring())
    assert bot.round() is None
    assert "not to be relied on" in bot.trouble
    assert log.heads() == []


# --- key files -----------------------------------------------------------------------------------------------------


def test_a_new_key_file_is_its_owners_alone_and_never_written_over(tmp_path):
    """The file has mode 0600 whatever the umask, and a second key in its place is refused."""
    before = os.umask(0)
    try:
        new_key_file(tmp_path / "log.key")
    finally:
        os.umask(before)
    assert (tmp_path / "log.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(SignerDown, match="never written over"):
        new_key_file(tmp_path / "log.key")
    with pytest.raises(SignerDown, match="cannot be written"):
        new_key_file(tmp_path / "nowhere" / "log.key")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o610])
def test_a_key_file_that_others_can_read_is_refused(key_file, mode):
    """One bit for the group or for others is one too many, and the sentence says what to do."""
    key_file.chmod(mode)
    with pytest.raises(SignerDown, match="chmod 600"):
        read_key_file(ORIGIN, key_file)


def test_a_raw_key_and_a_pem_are_the_same_key(tmp_path, key_file):
    """32 raw bytes are taken as well as PEM."""
    signer = read_key_file(ORIGIN, key_file)
    raw = tmp_path / "raw.key"
    raw.touch(0o600)
    raw.write_bytes(signer.private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()))
    assert read_key_file(ORIGIN, raw).key == signer.key
    assert "private" not in repr(signer)


@pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 31, b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END"])
def test_a_file_without_a_key_is_a_sentence(tmp_path, content):
    """What is no key is told without a word of the file."""
    file = tmp_path / "bad.key"
    file.touch(0o600)
    file.write_bytes(content)
    with pytest.raises(SignerDown, match="holds no Ed25519 key") as found:
        read_key_file(ORIGIN, file)
    assert found.value.__cause__ is None


# --- a log that was tampered with ----------------------------------------------------------------------------------

_CUT = "was cut off"
_OTHER = "not the one whose head was signed"


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize(
    ("statements", "said"),
    [
        (["DELETE FROM entry WHERE seq >= 3"], _CUT),
        (["DELETE FROM entry"], _CUT),
        (["UPDATE entry SET root = zeroblob(32) WHERE seq = 4"], None),
        (["UPDATE signed_head SET root = zeroblob(32)"], None),
        (["UPDATE signed_head SET size = 4"], None),
        (["UPDATE signed_head SET note = x'00'"], None),
    ],
)
def test_a_log_that_does_not_extend_its_last_head_is_never_signed(file_log, statements, said, is_restarted):
    """Cut, or with another root or another head than was signed: an alarm, in the log as well, once, and no head."""
    file_log.append(5)
    file_log.keeper.round()
    before = [head.id for head in file_log.heads()]
    tamper(file_log, *statements)
    bot = file_log.another() if is_restarted else file_log.keeper
    for number in range(3):
        assert bot.round() is None
        if said and not number:
            assert said in bot.trouble
        file_log.clock.pass_time(minutes=6)
        assert bot.trouble
    assert [head.id for head in file_log.heads()] == before
    assert file_log.events().count("log:alarm") == 1


def test_an_alarm_is_an_entry_once(file_log):
    """The alarm's sentence is an entry, and one only, however often the keeper looks."""
    file_log.append(5)
    file_log.keeper.round()
    tamper(file_log, "DELETE FROM entry WHERE seq >= 3")
    for _ in range(3):
        file_log.keeper.round()
        file_log.clock.pass_time(minutes=1)
    assert file_log.events() == ["test:event"] * 3 + ["log:alarm"]


def rebuild(log: Log, first: int) -> None:
    """Rewrite history from an entry on, with every hash made anew, as the owner of the database can."""
    with closing(sqlite3.connect(log.file)) as raw:
        rows = raw.execute("SELECT seq, body FROM entry ORDER BY seq").fetchall()
    peaks, statements = b"", []
    for seq, old in rows:
        body = old.replace(b'"n":', b'"m":') if seq >= first else old
        leaf = merkle.leaf_hash(body)
        peaks = merkle.push(peaks, seq, leaf)
        statements.append(
            f"UPDATE entry SET body = x'{body.hex()}', leaf_hash = x'{leaf.hex()}', peaks = x'{peaks.hex()}', "
            f"root = x'{merkle.root(peaks).hex()}' WHERE seq = {seq}"
        )
    tamper(log, *statements)


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize("more", [0, 1])
def test_a_rewritten_log_is_never_signed(file_log, is_restarted, more):
    """History made anew with all its hashes is sound in itself, and still not signed: it is not what was signed."""
    file_log.append(5)
    file_log.keeper.round()
    rebuild(file_log, 2)
    file_log.append(more)
    bot = file_log.another() if is_restarted else file_log.keeper
    assert bot.round() is None
    assert bot.trouble
    assert len(file_log.heads()) == 1
    assert file_log.events()[-1] == "log:alarm"


def test_entries_that_were_changed_before_they_were_signed_are_found(file_log):
    """Between the commit and its head a body, a hash or an order that was changed is not signed."""
    file_log.append(2)
    file_log.keeper.round()
    for statement in (
        "UPDATE entry SET body = x'7b7d'",
        "UPDATE entry SET leaf_hash = zeroblob(32)",
        "UPDATE entry SET leaf_hash = 'text'",
        "UPDATE entry SET root = zeroblob(32)",
        "DELETE FROM entry",
    ):
        changed = len(file_log.events()) + 1
        file_log.append(3)
        tamper(file_log, "CREATE TABLE kept AS SELECT * FROM entry", f"{statement} WHERE seq = {changed}")
        bot = file_log.another()
        assert bot.round() is None
        assert bot.trouble, statement
        tamper(file_log, "DELETE FROM entry", "INSERT INTO entry SELECT * FROM kept", "DROP TABLE kept")
        assert file_log.another().round().size == len(file_log.events())


def test_a_head_that_was_taken_out_is_missed(file_log):
    """A bot that saw a head knows it when the head's row is gone."""
    file_log.append(2)
    file_log.keeper.round()
    tamper(file_log, "DELETE FROM signed_head")
    assert file_log.keeper.round() is None
    assert "no longer stored" in file_log.keeper.trouble


def test_a_head_that_somebody_else_signed_is_an_alarm(file_log):
    """A planted head with the right root and a wrong signature is not built upon."""
    file_log.append(2)
    with file_log.database.read() as session:
        head = audit.head(session)
    good = checkpoint.sign(Checkpoint(ORIGIN, head.size, head.root), file_log.keyring.signers())
    line = checkpoint.parse(good).signatures[0]
    forged = checkpoint.Signature(line.name, line.key_id, line.data[:-1] + bytes([line.data[-1] ^ 1]))
    note = checkpoint.compose(Checkpoint(ORIGIN, head.size, head.root), [forged])
    with file_log.database.write() as session:
        session.add(SignedHead(size=2, root=head.root, note=note, at=file_log.clock.now, reason="entry"))
    file_log.append()
    assert file_log.keeper.round() is None
    assert "not signed by the log" in file_log.keeper.trouble


# --- rotation ------------------------------------------------------------------------------------------------------


def test_a_rotation_is_an_entry_and_one_head_signed_by_both(log, key_file):
    """The entry names both keys, the head over it has both signatures, and from then on the new key signs alone."""
    log.append(2)
    log.keeper.round()
    told = []
    log.keeper.signed.append(lambda: told.append(1))
    old, new = log.keeper.rotate(ADA)
    with log.database.read() as session:
        entry = audit.read_entries(session)[-1]
        stored = heads.latest(session)
        assert heads.key_in_force(session) == new
    assert (entry.event, entry.actor) == ("log:rotate", ADA)
    assert entry.data == {"old": str(old), "new": str(new), "lost": False}
    assert (stored.size, stored.reason, told) == (3, "rotation", [1])
    assert [one.key for one in checkpoint.verify(stored.note, [old, new])] == [old, new]
    log.append()
    note = log.keeper.round().note
    assert [one.key for one in checkpoint.verify(note, [old, new])] == [new]
    assert read_key_file(ORIGIN, key_file).key == new
    assert not key_file.with_name("log.key.new").exists()


def test_another_bot_goes_over_to_the_new_key_by_itself(log):
    """A bot that ran through the rotation signs its next head with the new key."""
    other = log.another()
    log.append()
    other.round()
    _, new = log.keeper.rotate(ADA)
    log.append()
    assert [one.key for one in checkpoint.verify(other.round().note, [new])] == [new]


def test_a_rotation_that_ended_half_way_is_finished(log, key_file, monkeypatch):
    """Killed before its record, the old key goes on and the next try uses the same new key; killed after it, the new
    key signs from where it lies, and the next rotation goes to a third.
    """
    log.append()
    log.keeper.round()
    waiting = FileKeyring(ORIGIN, key_file).renew().key
    log.append()
    assert checkpoint.verify(log.another().round().note, [read_key_file(ORIGIN, key_file).key])
    monkeypatch.setattr(FileKeyring, "settle", lambda *_: None)
    _, new = log.keeper.rotate(ADA)
    assert new == waiting
    monkeypatch.undo()
    log.append()
    assert [one.key for one in checkpoint.verify(log.another().round().note, [new])] == [new]
    old, third = log.another().rotate(ADA)
    assert old == new
    assert read_key_file(ORIGIN, key_file).key == third != new


def test_a_rotation_whose_signature_fails_changes_nothing(log):
    """With a signer that fails in the middle there is no entry, no head, and the log goes on as before."""
    log.append()
    log.keeper.round()

    class Failing:
        def __init__(self, signer):
            self.key = signer.key

        def sign(self, _message):
            raise SignerDown("not now")

    class Ring:
        signers = log.keyring.signers
        settle = log.keyring.settle

        def renew(self):
            return Failing(KeySigner.of(ORIGIN, Ed25519PrivateKey.generate()))

    bot = log.another(Ring())
    with pytest.raises(SignerDown):
        bot.rotate(ADA)
    assert log.events() == ["test:event"]
    log.append()
    assert bot.round().size == 2
    assert bot.trouble is None


def test_a_lost_key_is_replaced_by_name_only_when_it_is_said_to_be_lost(log, key_file):
    """Without the old key a rotation is refused; said to be lost, the new one signs alone and the entry says so."""
    log.append()
    log.keeper.round()
    key_file.unlink()
    new_key_file(key_file)
    bot = log.another()
    with pytest.raises(SignerDown):
        bot.rotate(ADA)
    old, new = bot.rotate(ADA, lost=True)
    assert old is None
    with log.database.read() as session:
        assert audit.read_entries(session)[-1].data["lost"] is True
    assert [one.key for one in checkpoint.verify(log.heads()[-1].note, [new])] == [new]
    log.append()
    assert log.another().round() is not None


def test_a_planted_rotation_gives_nobody_the_pen(log):
    """An entry that names a stranger's key stops the signing; the stranger's key is not in the keyring."""
    log.append()
    log.keeper.round()
    stranger = KeySigner.of(ORIGIN, Ed25519PrivateKey.generate()).key
    with log.database.write() as session:
        audit.append(session, event="log:rotate", at=log.clock.now, actor=ADA, data={"old": None, "new": str(stranger)})
    assert log.keeper.round() is None
    assert "does not have" in log.keeper.trouble
    assert len(log.heads()) == 1


def test_a_rotation_entry_without_a_key_is_an_alarm(log):
    """An entry that names no key cannot say which one is in force."""
    log.append()
    log.keeper.round()
    with log.database.write() as session:
        audit.append(session, event="log:rotate", at=log.clock.now, actor=ADA)
        with pytest.raises(Rewritten):
            heads.key_in_force(session)
    assert log.keeper.round() is None
    assert log.events()[-1] == "log:alarm"


# --- the key in Vault ----------------------------------------------------------------------------------------------


@pytest.fixture
def vault_log(real, database, clock):
    """A log that the real OpenBao signs, with the bot's own rights."""
    return Log(database, VaultKeyring(ORIGIN, real.vault(), LOG_MOUNT, LOG_KEY), clock)


def test_vault_signs_with_the_bots_rights(vault_log):
    """A head signed by the transit engine verifies with the public half that it shows."""
    vault_log.append(3)
    stored = vault_log.keeper.round()
    assert vault_log.keeper.trouble is None
    assert [one.key for one in checkpoint.verify(stored.note, vault_log.keys())] == [vault_log.keys()[-1]]


def test_a_key_rotated_in_vault_signs_nothing_before_the_log_says_so(real, vault_log):
    """The version is pinned: a new one in Vault is gone over to by the rotation, whose head both sign."""
    vault_log.append()
    vault_log.keeper.round()
    first = vault_log.keys()[-1]
    with pytest.raises(SignerDown, match="make one first"):
        vault_log.keeper.rotate(ADA)
    real.bao.call("POST", f"{LOG_MOUNT}/keys/{LOG_KEY}/rotate", {})
    vault_log.append()
    assert checkpoint.verify(vault_log.another().round().note, [first])
    old, new = vault_log.keeper.rotate(ADA)
    assert (old, new) == (first, vault_log.keys()[-1])
    assert len(checkpoint.verify(vault_log.heads()[-1].note, [old, new])) == 2
    vault_log.append()
    assert [one.key for one in checkpoint.verify(vault_log.another().round().note, [old, new])] == [new]


def test_the_bot_may_neither_rotate_nor_export_nor_remove_the_key(real, vault):
    """What the bot's policy leaves open of the transit engine is signing with that key and seeing its public half."""
    versions = vault.public_keys(LOG_MOUNT, LOG_KEY)
    assert len(vault.sign(LOG_MOUNT, LOG_KEY, b"head", version=max(versions))) == 64
    for method, path in (
        ("post", f"{LOG_MOUNT}/keys/{LOG_KEY}/rotate"),
        ("post", f"{LOG_MOUNT}/keys/{LOG_KEY}/config"),
        ("delete", f"{LOG_MOUNT}/keys/{LOG_KEY}"),
        ("get", f"{LOG_MOUNT}/export/signing-key/{LOG_KEY}"),
        ("get", f"{LOG_MOUNT}/backup/{LOG_KEY}"),
        ("list", f"{LOG_MOUNT}/keys"),
        ("post", f"{LOG_MOUNT}/sign/another"),
    ):
        assert vault._own(method, path, {} if method == "post" else None).status == 403, path


def test_a_vault_that_is_away_is_a_signer_that_is_down(vault_log):
    """Without Vault the head waits, with Vault's own sentence."""
    away = VaultKeyring(ORIGIN, Vault("http://127.0.0.1:9", token="none"), LOG_MOUNT, LOG_KEY)
    vault_log.append()
    bot = vault_log.another(away)
    assert bot.round() is None
    assert bot.trouble == "Vault cannot be reached."


def test_a_key_of_another_type_is_refused(real):
    """A transit key that is not Ed25519, or is not there, is a lasting no."""
    root = real.root_vault()
    real.bao.call("POST", f"{LOG_MOUNT}/keys/other", {"type": "ecdsa-p256"})
    for name in ("other", "nothing"):
        with pytest.raises(VaultRefused):
            root.public_keys(LOG_MOUNT, name)
    with pytest.raises(Unavailable):
        root.sign(LOG_MOUNT, LOG_KEY, b"x", version=999)
