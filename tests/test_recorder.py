"""What becomes of the lines that a source sends: whose they are, how often they count, what is missing.

On SQLite and on PostgreSQL; the credentials are a real OpenBao's.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import replace
from datetime import datetime

import pytest
from counter import RITA
from sqlmodel import select

from storage.audit import SYSTEM, append
from storage.database import Database
from storage.models import CaptureLine, CaptureSession, CaptureUse, Payload, State
from workflows import policy as rules
from workflows import sweep
from workflows.capture_watch import SETTLE_AFTER
from workflows.captures.seam import Kind, Line, Trust, Unreadable
from workflows.errors import Conflict, Invalid
from workflows.recorder import Gap, Raw, Recorder
from workflows.replay import check_database
from workflows.trial import SEEN, TRY

SOURCES = """captures:
  target: {kind: plain, token_sha256: TTT, silent_after: 60s}
  other: {kind: plain, token_sha256: OOO}
""".replace("TTT", "a" * 64).replace("OOO", "b" * 64)


class Plain:
    """A capture whose lines are the Line, as JSON: nothing here is about how a target writes."""

    trust = Trust.ENFORCED

    def read(self, raw):
        """Return the line's own words."""
        try:
            words = json.loads(raw)
        except ValueError:
            raise Unreadable("not JSON") from None
        if words == "boom":
            raise RuntimeError("a reader's own mistake")
        return tuple(
            Line(
                **{
                    **one,
                    "kind": Kind(one.get("kind", "statement")),
                    "at": datetime.fromisoformat(one["at"]),
                    "argv": tuple(one.get("argv", ())),
                }
            )
            for one in words
        )

    def setup(self, options):
        """Return nothing."""
        return ""


class Desk:
    """A counter whose level is recorded, its recorder, and a file that grows."""

    def __init__(self, counter, need="wanted"):
        self.counter = counter
        text = counter.policy.text
        role = counter.policy.accounts["orders-db"].levels["read"].settings.token_role
        at = text.index(f"token_role: {role}")
        indent = " " * (at - text.rindex("\n", 0, at) - 1)
        more = f"token_role: {role}\n{indent}capture_source: target\n{indent}capture: {need}\n"
        counter.policy = rules.parse(text.replace(f"token_role: {role}\n", more, 1) + SOURCES, name="recorded")
        self.recorder = self.another()
        self.offset = 0

    def another(self, database=None):
        """Return a recorder, of another bot if a database is named."""
        return Recorder(database or self.counter.database, lambda: self.counter.policy)

    def open(self):
        """Return a request whose credential is out, and its name at the target."""
        row = self.counter.approved()
        return row, self.counter.show(row).username

    def raw(self, identity, text="SELECT 1", *, file="log", at=None, **words):
        """Write a line to the file."""
        words = {"identity": identity, "text": text, "at": (at or self.counter.now).isoformat(), **words}
        line = json.dumps([words]).encode()
        self.offset += len(line) + 1
        return Raw(file, self.offset - len(line) - 1, line)

    def take(self, *lines, source="target"):
        """Take a batch in."""
        return self.recorder.take(source, lines, self.counter.now)

    def said(self, event, row=None):
        """Return what the log says."""
        return [record.data for record in self.counter.log_of(row) if record.event == event]

    def tick(self, **after):
        """Let time pass, and the clock look."""
        self.counter.pass_time(**after)
        sweep.tick(self.counter, now=self.counter.now)

    def end(self, row):
        """Hand the access back."""
        self.counter.release(RITA, row.id, self.counter.fresh(row).request.version, now=self.counter.now)
        assert self.counter.finish(row.id, now=self.counter.now)

    def whole(self):
        """Return what the verifier finds in log and tables."""
        with self.counter.database.read() as session:
            return check_database(session, now=self.counter.now).findings


@pytest.fixture
def desk(counter, monkeypatch):
    """A desk with a recorded level, whose source was just heard of."""
    for place in ("workflows.recorder", "workflows.capture_rules"):
        monkeypatch.setattr(f"{place}.CAPTURES", {"plain": Plain()})
    desk = Desk(counter)
    desk.take()
    return desk


def test_a_line_by_the_grants_identity_is_an_entry_of_its_request(desk):
    """It holds what the line says, whose it is, where it stands and the raw line's hash."""
    row, name = desk.open()
    line = desk.raw(name, "SELECT note FROM orders", session="s1", number=4, database="orders", result="ok", rows=3)
    assert desk.take(line).taken == 1
    (data,) = desk.said("command:run", row)
    assert data == {
        "source": "target",
        "kind": "statement",
        "trust": "enforced",
        "at": data["at"],
        "identity": name,
        "session": "s1",
        "number": 4,
        "text": "SELECT note FROM orders",
        "database": "orders",
        "result": "ok",
        "rows": 3,
        "class": "read",
        "line_hash": hashlib.sha256(line.line).hexdigest(),
        "position": "log:0",
    }
    record = desk.counter.log_of(row)[-1]
    assert (record.actor, record.request_id) == (RITA, row.id)
    assert desk.counter.fresh(row).request.last_seq == record.seq
    assert desk.whole() == []


def test_a_doubled_batch_adds_nothing(desk):
    """Sent twice, in parts, or with a line twice in it, each line is one entry."""
    row, name = desk.open()
    lines = [desk.raw(name, f"SELECT {number}") for number in range(5)]
    assert (desk.take(*lines, lines[0]).taken, desk.take(*lines[2:]).known) == (5, 3)
    assert desk.take(*lines).known == 5
    assert [data["text"] for data in desk.said("command:run", row)] == [f"SELECT {number}" for number in range(5)]


def test_the_same_words_elsewhere_are_another_line(desk):
    """A statement that is run twice is two entries, and so is one of another file or source."""
    row, name = desk.open()
    one = desk.raw(name)
    for line in (one, replace(one, offset=900), replace(one, file="log.1")):
        desk.take(line)
    desk.take(one, source="other")
    assert len(desk.said("command:run", row)) == 4


def test_two_bots_with_the_same_batch_make_one_entry_of_each_line(desk, database_url):
    """At the same moment, again and again: none is lost and none is doubled."""
    row, name = desk.open()
    lines = [desk.raw(name, f"SELECT {number}") for number in range(200)]
    second = Database(database_url)
    bots = [desk.recorder, desk.another(second)]
    failures = []

    def send(bot):
        try:
            for at in range(0, 200, 10):
                bot.take("target", lines[at : at + 10], desk.counter.now)
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=send, args=(bot,)) for bot in bots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    second.close()
    assert failures == []
    assert [data["text"] for data in desk.said("command:run", row)] == [f"SELECT {number}" for number in range(200)]
    (use,) = uses(desk)
    assert use.commands == 200


def test_a_crash_before_the_commit_leaves_neither_entry_nor_key(desk, monkeypatch):
    """What is sent again afterwards is recorded, once."""
    row, name = desk.open()
    line = desk.raw(name)
    with monkeypatch.context() as patched:

        def crash(*_args):
            raise KeyboardInterrupt

        patched.setattr("workflows.recorder._Batch._keep_keys", crash)
        with pytest.raises(KeyboardInterrupt):
            desk.take(line)
    assert desk.said("command:run", row) == []
    assert desk.take(line).taken == 1
    assert len(desk.said("command:run", row)) == 1


def test_lines_about_nobody_leave_no_trace(desk):
    """The database's other users are nobody's business; that their lines came is a heartbeat."""
    desk.take(desk.raw("app"), desk.raw("postgres"))
    with desk.counter.database.read() as session:
        assert session.exec(select(CaptureLine)).all() == []
    assert [record for record in desk.counter.log_of() if record.event.startswith("command:")] == []


@pytest.mark.parametrize("identity", ["bg-7kq2-1-abcdefgh", "bg-zzzz-x", "bg-7kq2-1-\x00"])
def test_attack_a_marked_name_that_no_grant_explains_is_a_stranger(desk, identity):
    """It is alarmed, with what it did, and is nobody's."""
    desk.take(desk.raw(identity, "DROP TABLE orders"), desk.raw(identity, "SELECT 2"))
    (data,) = desk.said("command:stranger")
    assert (data["count"], data["text"]) == (2, "DROP TABLE orders")
    desk.take(desk.raw(identity, "SELECT 3"))
    assert desk.said("command:stranger")[-1]["again"] is True


def test_attack_a_name_made_after_another_request_is_not_taken_for_it(desk):
    """A login that carries the request's mark, and is not the grant's own, blames nobody."""
    row, name = desk.open()
    desk.take(desk.raw(f"{name}x"), desk.raw(name.upper()))
    assert desk.said("command:run", row) == []
    assert [data["identity"] for data in desk.said("command:stranger")] == [f"{name}x"]


def test_attack_a_line_that_says_that_it_is_another_requests(desk):
    """What the record says of the request is checked against whose the identity is."""
    row, name = desk.open()
    other = desk.counter.ask()
    desk.take(desk.raw(name, request=other.id), desk.raw("root", kind="call", request=other.id))
    assert desk.said("command:run") == []
    assert len(desk.said("command:stranger")) == 2
    desk.take(desk.raw(name, request=row.id))
    assert len(desk.said("command:run", row)) == 1


def test_attack_a_credential_that_an_operator_has_made(desk):
    """A call of another token's where a level's credential is made is a stranger's; elsewhere it is nobody's."""
    path = "database/creds/orders-ro"
    desk.take(desk.raw("accessor-of-root", f"read {path}", kind="call", result="ok"))
    (data,) = desk.said("command:stranger")
    assert (data["identity"], data["text"]) == ("accessor-of-root", f"read {path}")
    desk.take(desk.raw("accessor-of-root", "read secret/data/app", kind="call"))
    assert len(desk.said("command:stranger")) == 1


def test_a_token_is_known_by_its_accessor_which_is_not_stored(desk):
    """What Vault notes of the grant's own token is the request's."""
    row, name = desk.open()
    accessor = desk.counter.fresh(row).grants[0].accessor
    desk.take(desk.raw(accessor, "read database/creds/orders-ro", kind="call", request=row.id))
    (data,) = desk.said("command:run", row)
    assert data["identity"] == name
    assert accessor not in str(desk.counter.log_of())
    assert desk.whole() == []


def test_lines_that_cannot_be_read_are_counted(desk):
    """One entry for a batch says how many and where; what is beside them is recorded, and nothing stops the source."""
    row, name = desk.open()
    bad = [Raw("log", 5000, b"\x00\xff{"), Raw("log", 6000, b'"boom"')]
    desk.take(bad[0], desk.raw(name), bad[1])
    desk.take(*bad)
    (data,) = desk.said("capture:unreadable")
    assert (data["count"], data["position"]) == (2, "log:5000")
    assert data["line_hash"] == hashlib.sha256(bad[0].line).hexdigest()
    assert len(desk.said("command:run", row)) == 1


@pytest.mark.parametrize("text", ["x" * 200_000, "\x00" * 50_000, "\ud800" * 40_000, "é" * 60_000])
def test_a_long_text_stands_beside_the_log(desk, text):
    """The entry has its beginning and the hash of the whole, which is kept; no text can stop the source."""
    row, name = desk.open()
    desk.take(desk.raw(name, text))
    (data,) = desk.said("command:run", row)
    assert len(json.dumps(data["text"], ensure_ascii=False).encode()) <= 32_768
    with desk.counter.database.read() as session:
        kept = session.get(Payload, data["payload"]["sha256"])
    assert kept.body == text.encode("utf-8", "replace")
    assert data["payload"]["bytes"] == len(kept.body)
    assert hashlib.sha256(kept.body).hexdigest() == kept.sha256
    desk.take(desk.raw(name, text))
    assert len(desk.said("command:run", row)) == 2
    assert desk.whole() == []
    with desk.counter.database.write() as session:
        session.get(Payload, kept.sha256).body = b"SELECT 1"
    (finding,) = desk.whole()
    assert (finding.kind, finding.seq) == ("altered", desk.counter.log_of()[-1].seq)


def test_many_arguments_are_cut(desk):
    """The entry has the first ones; all of them stand in the text beside it."""
    row, name = desk.open()
    argv = [f"argument-{number}" for number in range(9000)]
    desk.take(desk.raw(name, " ".join(argv), kind="exec", argv=argv, session="\x00", database="o" * 5000))
    (data,) = desk.said("command:run", row)
    assert 0 < len(data["argv"]) < 9000
    assert data["payload"]["bytes"] == len(" ".join(argv))


def test_a_session_is_closed_with_its_count(desk):
    """How many, from when to when, nothing missing, nothing stopped."""
    row, name = desk.open()
    session = {"session": "s1"}
    desk.take(
        desk.raw(name, kind="opened", number=3, **session),
        desk.raw(name, kind="note", number=4, **session),
        *(desk.raw(name, f"SELECT {number}", number=number, **session) for number in (5, 6)),
    )
    assert desk.said("command:close") == []
    desk.take(desk.raw(name, kind="closed", number=7, **session))
    (data,) = desk.said("command:close", row)
    assert (data["commands"], data["gaps"], data["stopped"], data["holes"]) == (2, [], False, [])
    assert data["opened_at"] <= data["first_at"] <= data["last_at"] <= data["closed_at"]
    assert desk.whole() == []


def test_numbers_that_never_came_are_gaps_and_late_ones_are_none(desk):
    """What was skipped is missing until it comes; the newest closing entry counts."""
    row, name = desk.open()
    lines = {number: desk.raw(name, f"SELECT {number}", session="s", number=number) for number in range(2, 10)}
    desk.take(desk.raw(name, kind="opened", session="s", number=1), lines[2], lines[6], lines[9])
    desk.take(desk.raw(name, kind="closed", session="s", number=10))
    assert desk.said("command:close")[-1]["gaps"] == [{"after": 2, "missing": 3}, {"after": 6, "missing": 2}]
    desk.take(lines[4], lines[7], lines[8])
    assert desk.said("command:close")[-1]["gaps"] == [{"after": 2, "missing": 1}, {"after": 4, "missing": 1}]
    desk.take(lines[5], lines[3])
    assert desk.said("command:close", row)[-1]["gaps"] == []
    assert [finding.kind for finding in desk.whole()] == ["capture gap"] * 2


def test_a_session_whose_beginning_is_gone_says_so(desk):
    """The first lines were destroyed: the closing entry has no opening, and a hole."""
    _, name = desk.open()
    desk.take(desk.raw(name, session="s", number=9), desk.raw(name, kind="closed", session="s", number=10))
    (data,) = desk.said("command:close")
    assert "opened_at" not in data
    assert data["holes"] == ["its beginning was not recorded"]


def test_what_is_not_recorded_and_a_stop_are_in_the_closing_entry(desk):
    """A hole and a switched-off recording are told with the session, the stop at once and by itself, too."""
    row, name = desk.open()
    desk.take(
        desk.raw(name, "COPY orders FROM STDIN", session="s"),
        desk.raw(name, "the rows of COPY FROM STDIN", kind="hole", session="s"),
        desk.raw(name, "SET pgaudit.log = 'none'", kind="stopped", session="s"),
        desk.raw(name, kind="closed", session="s"),
    )
    (stop,) = desk.said("command:stop", row)
    assert stop["text"] == "SET pgaudit.log = 'none'"
    (data,) = desk.said("command:close", row)
    assert (data["stopped"], data["holes"], data["commands"]) == (True, ["the rows of COPY FROM STDIN"], 1)


def test_lines_that_were_lost_are_an_entry_of_each_access_that_is_out(desk):
    """Once, however often it is told; who relies on another source is not concerned."""
    row, _ = desk.open()
    gap = Gap("log", "truncated before it was read", 10, 900)
    assert (desk.take(gap).taken, desk.take(gap).known) == (1, 1)
    told = {"source": "target", "file": "log", "why": "truncated before it was read", "from": 10, "to": 900}
    assert desk.said("capture:gap") == [told, told]
    assert desk.said("capture:gap", row) == [told]
    desk.take(gap, source="other")
    assert len(desk.said("capture:gap")) == 3


def test_a_source_that_the_policy_does_not_name_is_refused(desk):
    """In a sentence, and nothing is recorded."""
    with pytest.raises(Invalid, match="no such source"):
        desk.take(source="nobody")


# ------------------------------------------------------------------------------------------------------ who is heard of


def test_a_source_that_falls_silent_is_down_and_comes_up_again(desk):
    """One entry, and one for each access that relies on it; the first sign of life ends it."""
    row, _ = desk.open()
    for _ in range(3):
        desk.tick(seconds=30)
    (since,) = desk.said("capture:down", row)
    assert since["source"] == "target"
    assert [data["source"] for data in desk.said("capture:down")].count("target") == 2
    desk.take()
    assert desk.said("capture:up", row) == [since]
    desk.tick(seconds=30)
    assert len(desk.said("capture:down", row)) == 1


def test_a_heartbeat_is_an_empty_batch(desk):
    """A source that sends nothing but that stays up."""
    for _ in range(6):
        desk.take()
        desk.take(source="other")
        desk.tick(seconds=30)
    assert desk.said("capture:down") == []


def test_without_a_heartbeat_no_credential(counter, desk):
    """A level that demands capture fails closed, also for a source that was never heard of, and says why."""
    desk = Desk(counter_without_captures(counter), need="required")
    counter.pass_time(seconds=61)
    row = counter.approved()
    for _ in range(2):
        with pytest.raises(Conflict, match="recorded") as caught:
            counter.show(row)
        assert caught.value.reason == "not_recorded"
        desk.take()
        counter.pass_time(seconds=61)
    assert counter.fresh(row).grants == ()
    desk.take()
    assert counter.show(row).username
    assert counter.fresh(row).state is State.ACTIVE


def counter_without_captures(counter):
    """Return the counter with the policy that it had before it was recorded."""
    text = counter.policy.text.removesuffix(SOURCES)
    lines = [line for line in text.splitlines(keepends=True) if not line.strip().startswith("capture")]
    counter.policy = rules.parse("".join(lines), name="bare")
    return counter


def test_with_a_silent_source_a_level_that_only_wants_it_says_so(desk):
    """The credential comes, and with it an entry that nothing of it is recorded."""
    desk.counter.pass_time(seconds=61)
    row, name = desk.open()
    assert [data["source"] for data in desk.said("capture:down", row)] == ["target"]
    assert desk.counter.fresh(row).grants[0].capture_source == "target"
    assert name
    assert [finding.kind for finding in desk.whole()] == ["capture gap"]


# ------------------------------------------------------------------------------------------------------------- findings


def uses(desk):
    """Return what was counted."""
    with desk.counter.database.read() as session:
        return session.exec(select(CaptureUse)).all()


def settled(desk, row):
    """End a request, let its record settle, and return what was found."""
    desk.end(row)
    desk.counter.pass_time(seconds=2)
    desk.take()
    desk.tick(seconds=SETTLE_AFTER.total_seconds() + 1)
    return desk.said("command:find", row)[-1]


def test_an_access_that_was_never_used_is_found(desk):
    """Silence of a source that was heard of all the while is told from blindness."""
    row, _ = desk.open()
    desk.take()
    desk.counter.pass_time(seconds=5)
    found = settled(desk, row)
    assert (found["commands"], [one["kind"] for one in found["findings"]]) == (0, ["unused"])
    desk.tick(seconds=600)
    assert len(desk.said("command:find", row)) == 1


def test_silence_of_a_source_that_was_down_is_no_proof(desk):
    """Nothing came, and nothing could have come."""
    desk.counter.pass_time(seconds=61)
    row, _ = desk.open()
    desk.end(row)
    desk.tick(minutes=20)
    (found,) = desk.said("command:find", row)
    assert [one["kind"] for one in found["findings"]] == ["unknown"]


def test_a_use_after_the_end_is_found_at_once(desk):
    """By the target's clock, and not when a line only comes late."""
    row, name = desk.open()
    during = desk.counter.now
    desk.counter.pass_time(seconds=60)
    desk.end(row)
    desk.counter.pass_time(seconds=30)
    desk.take(desk.raw(name, at=during))
    assert desk.said("command:find", row) == []
    desk.take(desk.raw(name))
    (found,) = desk.said("command:find", row)
    assert [one["kind"] for one in found["findings"]] == ["after_end"]
    assert "credential after its end" in [finding.kind for finding in desk.whole()]


def test_of_another_sources_silence_nothing_follows(desk):
    """A source that only notes a login, and that no level names, says nothing about the use of the access."""
    row, name = desk.open()
    desk.take(desk.raw(name, kind="note", session="s"), source="other")
    found = settled(desk, row)
    assert found["source"] == "target"
    assert len(desk.said("command:find", row)) == 1


def test_a_use_in_another_database_is_found(desk):
    """The level's options say which one it is for."""
    row, name = desk.open()
    desk.take(desk.raw(name, database="orders"), desk.raw(name, database="payroll"))
    (found,) = desk.said("command:find", row)
    assert [one["kind"] for one in found["findings"]] == ["out_of_scope"]
    assert "payroll" in found["findings"][0]["sentence"]


def test_what_is_open_at_the_end_is_closed_and_nothing_found_is_told(desk):
    """A session without a last line gets its closing entry; what comes after that is settled once more."""
    row, name = desk.open()
    at = desk.counter.now
    desk.take(desk.raw(name, session="s", number=1, kind="opened"), desk.raw(name, session="s", number=2))
    found = settled(desk, row)
    assert (found["commands"], found["findings"]) == (1, [])
    (data,) = desk.said("command:close", row)
    assert "closed_at" not in data
    desk.take(desk.raw(name, session="s", number=3, at=at))
    desk.tick(seconds=SETTLE_AFTER.total_seconds() + 1)
    assert [data["commands"] for data in desk.said("command:close", row)] == [1, 2]
    assert desk.said("command:find", row)[-1]["commands"] == 2
    with desk.counter.database.read() as session:
        assert all(one.told for one in session.exec(select(CaptureSession)))


def rehearsed(desk, name):
    """A rehearsal of a level is on record."""
    with desk.counter.database.write() as session:
        append(session, event=TRY, at=desk.counter.now, actor=SYSTEM, data={"name": name, "seconds": 60})


def test_what_a_rehearsal_does_is_seen_once_for_each_batch_and_not_kept(desk):
    """A rehearsal that is on record is no stranger: that the source tells of it is an entry, what it did is none."""
    rehearsed(desk, "check-0a1b2c3d")
    lines = [desk.raw("check-0a1b2c3d-9xkq", "SELECT 'secret'") for _ in range(3)]
    desk.take(*lines)
    desk.take(*lines)
    assert desk.said(SEEN) == [{"name": "check-0a1b2c3d", "source": "target", "kind": "statement"}]
    assert not desk.said("command:stranger")


def test_attack_a_name_like_a_rehearsals_that_is_not_on_record_is_a_stranger(desk):
    """Whoever calls a login after a rehearsal that never was, or is long over, is told as a stranger."""
    desk.take(desk.raw("check-0a1b2c3d-9xkq"))
    rehearsed(desk, "check-11111111")
    desk.counter.pass_time(minutes=10)
    desk.take(desk.raw("check-11111111-9xkq"))
    strangers = [data["identity"] for data in desk.said("command:stranger")]
    assert strangers == ["check-0a1b2c3d-9xkq", "check-11111111-9xkq"]
    assert not desk.said(SEEN)
