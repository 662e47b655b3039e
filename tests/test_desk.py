"""Does the desk refuse what it must, record what it does, and change nothing otherwise?"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import psycopg
import pytest
from counter import ADA, CARL, CHEN, CORA, GUS, OLGA, PATIENCE, RITA, SAM, TEAM
from sqlmodel import select

from storage.audit import Actor, check
from storage.models import Grant, Outcome, Request, State
from workflows import policy as rules
from workflows import sweep
from workflows.desk import Findings, FollowUp
from workflows.errors import BreakGlassError, Conflict, Invalid, NotAllowed, Unavailable, VaultRefused
from workflows.lifecycle import Action

FORM = Findings(
    True,
    False,
    True,
    Outcome.JUSTIFIED,
    "As stated.",
    threshold_why="Checkout was down.",
    standard_path_why="Nobody answered for an hour.",
)


def live_leases(real):
    """Return the leases of the read level."""
    return real.root_vault().leases("database/creds/orders-ro")


# ---------------------------------------------------------------------------------------------- asking


def test_every_wrong_field_is_named_at_once_and_nothing_is_kept(counter):
    """A form with several faults comes back with a sentence for each, and there is no row and no entry."""
    with pytest.raises(Invalid) as refused:
        counter.ask(reason=" ", standard_path="no", incident="", minutes=500)
    assert set(refused.value.fields) == {"reason", "standard_path", "incident", "duration"}
    assert counter.log_of() == []


@pytest.mark.parametrize("who", [OLGA, GUS, Actor(TEAM, "U0NOBODY"), Actor("T0OTHER", "U0RITA")])
def test_who_may_not_ask_is_refused_on_record(counter, who):
    """A request by somebody without the right leaves an entry that says who and why, and no request."""
    with pytest.raises(NotAllowed):
        counter.ask(who)
    (entry,) = counter.log_of()
    assert (entry.event, entry.refused is not None, entry.actor) == ("request:open", True, who)
    assert counter.open_cases() == []


def test_a_doubled_form_opens_one_request(counter):
    """The same submitted view, delivered twice by Slack, is one request."""
    first = counter.ask(form_id="V1")
    assert counter.ask(form_id="V1").id == first.id
    assert counter.events(first) == ["request:open"]


def test_the_requester_is_not_among_those_asked(counter):
    """A custodian who asks for access is not asked to approve it."""
    row = counter.ask(CARL)
    assert row.custodians == ["U0CHEN", "U0CORA"]


# ---------------------------------------------------------------------------------------------- deciding


@pytest.mark.parametrize("who", [RITA, OLGA, GUS, SAM, ADA, Actor(TEAM, "U0NOBODY"), Actor("T0OTHER", "U0CARL")])
@pytest.mark.parametrize("answer", ["approve", "deny"])
def test_who_may_not_decide_is_refused_on_record_and_nothing_changes(counter, who, answer):
    """An answer by anybody but an asked custodian is an entry and a sentence, and the request stays as it was."""
    row = counter.ask()
    decide = {
        "approve": lambda: counter.approve(who, row.id, row.version, now=counter.now),
        "deny": lambda: counter.deny(who, row.id, row.version, "no", now=counter.now),
    }
    with pytest.raises(NotAllowed):
        decide[answer]()
    assert counter.fresh(row).request.version == row.version
    assert counter.fresh(row).state is State.PENDING
    assert counter.events(row) == ["request:open", f"request:{answer}!"]


def test_a_custodian_who_asked_himself_cannot_approve(counter):
    """Separation of duties holds also for somebody who is a custodian."""
    row = counter.ask(CARL)
    with pytest.raises(NotAllowed, match="yourself"):
        counter.approve(CARL, row.id, row.version, now=counter.now)


@pytest.mark.parametrize("fact", ["is_deleted", "is_guest", "is_bot", "is_foreign"])
def test_a_custodian_who_lost_the_right_between_card_and_click_is_refused(counter, fact):
    """People are judged as they are at the click, not as they were when the card was drawn."""
    row = counter.ask()
    counter.people.change("U0CARL", **{fact: True})
    with pytest.raises(NotAllowed):
        counter.approve(CARL, row.id, row.version, now=counter.now)
    assert counter.fresh(row).state is State.PENDING


def test_an_unreachable_directory_permits_nothing(counter):
    """When Slack does not say who somebody is, the answer is not taken."""
    row = counter.ask()

    class Silent:
        def person(self, user_id):
            raise Unavailable("Slack does not answer.")

        members = person

    counter.directory = Silent()
    with pytest.raises(Unavailable):
        counter.approve(CARL, row.id, row.version, now=counter.now)
    assert counter.fresh(row).state is State.PENDING


def test_a_double_click_counts_once(counter):
    """The second click of the same custodian is answered, logged, and not counted."""
    row = counter.ask(level="write", minutes=10)
    counter.approve(CARL, row.id, row.version, now=counter.now)
    with pytest.raises(Conflict, match="already approved"):
        counter.approve(CARL, row.id, row.version, now=counter.now)
    assert counter.fresh(row).state is State.PENDING
    assert counter.fresh(row).approvers == ("U0CARL",)


def test_two_custodians_in_the_same_moment_approve_once(counter):
    """With a quorum of one, two simultaneous clicks make one approval, one quorum and one sentence."""
    row = counter.ask()
    start = threading.Barrier(2)

    def click(who):
        start.wait()
        try:
            counter.approve(who, row.id, row.version, now=counter.now)
        except Conflict as refused:
            return refused.reason
        return "done"

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(click, (CARL, CHEN))) == ["done", "stale"]
    events = counter.events(row)
    assert events.count("request:quorum") == 1
    assert events.count("request:approve") == 1
    assert events.count("request:approve!") == 1


def test_two_custodians_in_the_same_moment_make_a_quorum_of_two(counter):
    """Both of two simultaneous clicks count when two are needed: a card is not stale because a colleague agreed."""
    row = counter.ask(level="write", minutes=10)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda who: counter.approve(who, row.id, row.version, now=counter.now), (CARL, CHEN)))
    assert counter.fresh(row).state is State.APPROVED


def test_an_approval_may_shorten_the_time_and_the_shortest_wins(counter):
    """The grant lasts as long as the most careful custodian allowed."""
    row = counter.ask(level="write", minutes=10)
    row = counter.approve(CARL, row.id, row.version, within=timedelta(minutes=3), now=counter.now)
    row = counter.approve(CHEN, row.id, row.version, within=timedelta(minutes=7), now=counter.now)
    assert row.granted_seconds == 180


@pytest.mark.parametrize("minutes", [0, -1, 16])
def test_an_approval_cannot_lengthen_the_time(counter, minutes):
    """A time outside of what was asked for is a fault of that field."""
    row = counter.ask()
    with pytest.raises(Invalid) as refused:
        counter.approve(CARL, row.id, row.version, within=timedelta(minutes=minutes), now=counter.now)
    assert "duration" in refused.value.fields


def test_a_stale_card_says_so_and_changes_nothing(counter):
    """A button drawn before the last change of state is out of date."""
    row = counter.approved()
    with pytest.raises(Conflict) as refused:
        counter.deny(CHEN, row.id, 1, "too late", now=counter.now)
    assert refused.value.reason == "stale"
    assert counter.fresh(row).state is State.APPROVED


@pytest.mark.parametrize("end", ["release", "revoke"])
def test_an_end_is_never_out_of_date(counter, end):
    """Done and Revoke drawn before a fresh credential came out, or before the first one did, end what there is now."""
    row = counter.approved()
    drawn = row.version
    counter.show(row)
    who = RITA if end == "release" else CHEN
    getattr(counter, end)(who, row.id, drawn, now=counter.now)
    assert counter.fresh(row).state is State.ENDING


def test_a_forged_version_or_id_is_refused(counter):
    """A button value is visible to its client and can be changed: neither a future version nor a made-up id works."""
    row = counter.ask()
    with pytest.raises(Conflict):
        counter.approve(CARL, row.id, row.version + 5, now=counter.now)
    with pytest.raises(Conflict):
        counter.approve(CARL, "BG-ZZZZ", 1, now=counter.now)
    assert counter.fresh(row).state is State.PENDING


def test_a_custodian_removed_in_mid_flight_loses_the_vote(counter):
    """The quorum is recomputed over those who are custodians now."""
    row = counter.ask(level="write", minutes=10)
    row = counter.approve(CARL, row.id, row.version, now=counter.now)
    counter.people.change("U0CARL", is_deleted=True)
    row = counter.approve(CHEN, row.id, row.version, now=counter.now)
    assert row.state == State.PENDING
    row = counter.approve(CORA, row.id, row.version, now=counter.now)
    assert row.state == State.APPROVED


def test_a_policy_that_became_stricter_wins(counter):
    """Two approvals are needed when the policy says two now, also for a request that was opened under one."""
    row = counter.ask()
    text = counter.policy.text.replace("quorum: 1", "quorum: 2")
    counter.policy = rules.parse(text, name="changed")
    row = counter.approve(CARL, row.id, row.version, now=counter.now)
    assert row.state == State.PENDING
    row = counter.approve(CHEN, row.id, row.version, now=counter.now)
    assert row.state == State.APPROVED


def test_a_requester_who_left_gets_nothing(counter):
    """An approval for somebody who was deactivated meanwhile is refused."""
    row = counter.ask()
    counter.people.change("U0RITA", is_deleted=True)
    with pytest.raises(BreakGlassError):
        counter.approve(CARL, row.id, row.version, now=counter.now)
    assert counter.fresh(row).state is State.PENDING


def test_only_the_requester_withdraws(counter):
    """Others are refused; the requester's withdrawal ends the request."""
    row = counter.ask()
    with pytest.raises(NotAllowed):
        counter.withdraw(CARL, row.id, row.version, now=counter.now)
    assert counter.withdraw(RITA, row.id, row.version, now=counter.now).state == State.WITHDRAWN


# ---------------------------------------------------------------------------------------------- the credential


@pytest.mark.parametrize("who", [CARL, OLGA, Actor("T0OTHER", "U0RITA")])
def test_nobody_but_the_requester_opens_it(counter, who, real):
    """An approved credential is the requester's alone, and a refusal issues nothing."""
    row = counter.approved()
    with pytest.raises(NotAllowed):
        counter.reveal(who, row.id, row.version, now=counter.now)
    assert not live_leases(real)


def test_a_double_click_on_reveal_opens_one_credential(counter, real):
    """Two clicks on the same button, at once, make one intent, one lease, and one sentence."""
    row = counter.approved()
    start = threading.Barrier(2)

    def click(_):
        start.wait()
        try:
            return counter.issue(counter.reveal(RITA, row.id, row.version, now=counter.now), now=counter.now)
        except Conflict:
            return None

    with ThreadPoolExecutor(2) as pool:
        shown = [credential for credential in pool.map(click, range(2)) if credential]
    assert len(shown) == 1
    assert len(live_leases(real)) == 1


def test_the_time_counts_from_the_reveal(counter):
    """An approval that was opened late still gives the whole granted time."""
    row = counter.approved(minutes=10)
    counter.pass_time(minutes=9)
    counter.show(row)
    assert counter.fresh(row).request.expires_at == counter.now + timedelta(minutes=10)


def test_show_again_ends_the_old_credential_first(counter, real):
    """A fresh credential means that the lost one no longer works, and the end stays where it was."""
    row = counter.approved()
    lost = counter.show(row)
    counter.pass_time(minutes=5)
    fresh = counter.show(row)
    assert lost.username != fresh.username
    assert live_leases(real) == {fresh.lease_id}
    with pytest.raises(psycopg.OperationalError):
        real.connect(lost)
    with real.connect(fresh) as session:
        assert session.execute("SELECT 1").fetchone() == (1,)
    assert counter.fresh(row).request.expires_at == counter.now + timedelta(minutes=10)
    assert counter.events(row)[-4:] == [
        "credential:reveal",
        "credential:abandon",
        "credential:token",
        "credential:reissue",
    ]


def test_an_approval_that_is_not_opened_lapses(counter, real):
    """After the policy's time the approval is worth nothing."""
    row = counter.approved()
    counter.pass_time(minutes=16)
    sweep.tick(counter, now=counter.now)
    assert counter.fresh(row).state is State.LAPSED
    with pytest.raises(Conflict):
        counter.reveal(RITA, row.id, row.version, now=counter.now)
    assert not live_leases(real)


def test_a_sealed_vault_is_said_and_the_approval_stays(counter, real):
    """The rules said yes and a machine did not answer: the requester may press again, and then it works."""
    row = counter.approved()
    real.bao.seal()
    try:
        with pytest.raises(Unavailable):
            counter.show(row)
        assert counter.fresh(row).state is State.APPROVED
    finally:
        real.bao.unseal()
    counter.pass_time(seconds=PATIENCE.total_seconds())
    sweep.tick(counter, now=counter.now)
    credential = counter.show(row)
    assert live_leases(real) == {credential.lease_id}


def test_a_role_that_vault_does_not_have_fails_the_request(counter, real):
    """A lasting no of Vault ends the request as failed, with Vault's words on record and nothing alive."""
    text = counter.policy.text.replace("role: orders-ro\n", "role: orders-no\n")
    counter.policy = rules.parse(text, name="changed")
    row = counter.approved()
    with pytest.raises(VaultRefused):
        counter.show(row)
    assert counter.fresh(row).state is State.FAILED
    assert counter.log_of(row)[-1].data["why"]
    assert all(grant.ended_at for grant in counter.fresh(row).grants)


@pytest.mark.parametrize("after", ["intent", "token", "credential"])
def test_a_crash_while_opening_leaves_nothing_that_the_tick_does_not_end(counter, real, after, monkeypatch):
    """Wherever the bot dies between the click and the modal, the next tick after its patience ends what there is."""
    row = counter.approved()
    intent = counter.reveal(RITA, row.id, row.version, now=counter.now)

    class Died(BaseException):
        """As SIGKILL: nothing that the program wrote for errors runs."""

    real_read, real_open, real_turn = counter.vault.read_as, counter.vault.open_child, counter.turn

    def die(*_, **__):
        raise Died

    def read_then_die(*args):
        real_read(*args)
        raise Died

    if after == "intent":
        monkeypatch.setattr(counter.vault, "open_child", die)
    if after == "token":
        monkeypatch.setattr(counter.vault, "read_as", die)
    if after == "credential":
        monkeypatch.setattr(counter.vault, "read_as", read_then_die)
    with pytest.raises(Died):
        counter.issue(intent, now=counter.now)
    monkeypatch.undo()
    assert (counter.vault.read_as, counter.vault.open_child, counter.turn) == (real_read, real_open, real_turn)
    assert len(live_leases(real)) == (1 if after == "credential" else 0)

    sweep.tick(counter, now=counter.now)
    assert counter.fresh(row).grants[0].ended_at is None, "within its patience it is nobody else's business"
    with pytest.raises(Conflict, match="right now"):
        counter.show(row)
    counter.pass_time(seconds=PATIENCE.total_seconds())
    sweep.tick(counter, now=counter.now)
    assert not live_leases(real)
    assert counter.fresh(row).grants[0].ended_at is not None
    credential = counter.show(row)
    assert live_leases(real) == {credential.lease_id}


def test_an_opener_that_was_overtaken_shows_nothing(counter, real):
    """A bot that hung past its patience finds its intent closed, ends what it made, and shows no secret."""
    row = counter.approved()
    intent = counter.reveal(RITA, row.id, row.version, now=counter.now)
    counter.pass_time(seconds=PATIENCE.total_seconds())
    sweep.tick(counter, now=counter.now)
    with pytest.raises(Conflict, match="too long"):
        counter.issue(intent, now=counter.now)
    assert real.until(lambda: not live_leases(real))
    assert counter.fresh(row).state is State.APPROVED


def test_revoked_while_it_is_being_opened(counter, real):
    """A custodian's Revoke between click and modal wins: nothing is shown and nothing is alive."""
    row = counter.approved()
    intent = counter.reveal(RITA, row.id, row.version, now=counter.now)
    row = counter.fresh(row).request
    counter.revoke(CHEN, row.id, row.version, now=counter.now)
    with pytest.raises(Conflict):
        counter.issue(intent, now=counter.now)
    assert counter.finish(row.id, now=counter.now)
    assert real.until(lambda: not live_leases(real))


# ---------------------------------------------------------------------------------------------- the end


def test_a_target_that_is_down_keeps_the_request_ending(counter, real):
    """While PostgreSQL is down nobody says "ended"; custodians are paged; when it is back it ends by itself."""
    row = counter.approved()
    credential = counter.show(row)
    row = counter.fresh(row).request
    counter.release(RITA, row.id, row.version, now=counter.now)
    real.pg.stop()
    try:
        assert not counter.finish(row.id, now=counter.now)
        assert counter.fresh(row).state is State.ENDING
        assert counter.events(row)[-1] == "request:escalate"
        assert credential.lease_id in live_leases(real)
    finally:
        real.pg.start()
    for _ in range(10):
        counter.pass_time(minutes=5)
        sweep.tick(counter, now=counter.now)
        if counter.fresh(row).state is State.ENDED:
            break
    assert counter.fresh(row).state is State.ENDED
    assert not live_leases(real)
    with pytest.raises(psycopg.OperationalError):
        real.connect(credential)


@pytest.mark.parametrize("who", [RITA, OLGA, SAM])
def test_only_custodians_revoke(counter, who):
    """Also the requester hands back instead of revoking, and leadership asks a custodian."""
    row = counter.approved()
    counter.show(row)
    row = counter.fresh(row).request
    with pytest.raises(NotAllowed):
        counter.revoke(who, row.id, row.version, now=counter.now)
    assert counter.fresh(row).state is State.ACTIVE


def test_a_request_has_not_ended_while_its_login_is_seen_at_the_target(counter, real):
    """Vault says gone and PostgreSQL still has the role: it stays "ending", says so, and ends when that is true."""
    role = real.bao.call("GET", "database/roles/orders-ro")["data"]
    real.bao.call("POST", "database/roles/orders-ro", role | {"revocation_statements": ["SELECT 1"]})
    try:
        row = counter.approved()
        credential = counter.show(row)
        counter.revoke(CHEN, row.id, counter.fresh(row).request.version, now=counter.now)
        assert not counter.finish(row.id, now=counter.now)
    finally:
        real.set_up()
    assert counter.fresh(row).state is State.ENDING
    assert "1 logins and 0 sessions of it are left" in counter.log_of(row)[-1].data["why"]
    with psycopg.connect(real.pg.dsn, autocommit=True) as server:
        server.execute(f'DROP ROLE "{credential.username}"')
    assert counter.finish(row.id, now=counter.now)
    told = counter.log_of(row)[-1].data
    assert told["shown"] == ["its role does not exist", "no session of it is open"]
    assert told["shown_after_ms"] >= 0


def test_two_ends_at_once_are_one_end(counter, real):
    """Done and Revoke in the same moment: one is on record as the end, the other gets a sentence."""
    row = counter.approved()
    counter.show(row)
    row = counter.fresh(row).request

    def end(what):
        try:
            what()
        except Conflict as refused:
            return refused.reason
        return "done"

    with ThreadPoolExecutor(2) as pool:
        results = pool.map(
            end,
            [
                lambda: counter.release(RITA, row.id, row.version, now=counter.now),
                lambda: counter.revoke(CHEN, row.id, row.version, now=counter.now),
            ],
        )
        assert sorted(results) == ["conflict", "done"]
        # A busy machine may take longer than one try allows; the next ones end it.
        assert real.until(lambda: any(pool.map(lambda _: counter.finish(row.id, now=counter.now), range(2))))
    assert counter.events(row).count("credential:end") == 1


def test_ending_one_grant_leaves_another_of_the_same_person_alone(counter, real):
    """Two requests of one person for one account are two credentials with two ends."""
    first, second = counter.approved(), counter.approved()
    counter.show(first)
    kept = counter.show(second)
    row = counter.fresh(first).request
    counter.release(RITA, row.id, row.version, now=counter.now)
    assert counter.finish(row.id, now=counter.now)
    with real.connect(kept) as session:
        assert session.execute("SELECT 1").fetchone() == (1,)


def test_the_tick_is_safe_twice_and_in_parallel(counter):
    """Many ticks at once, of several bots, do each due thing once."""
    rows = [counter.approved() for _ in range(3)] + [counter.ask() for _ in range(3)]
    counter.show(rows[0])
    counter.pass_time(minutes=20)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: sweep.tick(counter, now=counter.now), range(4)))
    sweep.tick(counter, now=counter.now)
    assert [counter.fresh(row).state.value for row in rows] == ["ended", *["lapsed"] * 5]
    for row in rows:
        events = counter.events(row)
        assert len([e for e in events if e in {"credential:end", "request:lapse", "credential:expire"}]) == (
            2 if row is rows[0] else 1
        )


# ---------------------------------------------------------------------------------------------- forms and the agenda


@pytest.mark.parametrize(("who", "action"), [(OLGA, Action.APPROVE), (RITA, Action.DENY), (CARL, Action.REVIEW)])
def test_a_form_is_not_opened_for_whom_it_is_not(counter, who, action):
    """The right is asked before a form opens, and the refusal is on record like any other."""
    row = counter.ask()
    with pytest.raises((NotAllowed, Conflict)):
        counter.may(who, action, row.id, row.version, now=counter.now)
    assert counter.events(row) == ["request:open", f"{action.value}!"]


def test_the_agenda_is_what_concerns_a_person(counter):
    """Waiting for me, asked by me, owed by me: and nothing of others."""
    pending = counter.ask()
    counter.pass_time(seconds=1)
    done = counter.approved()
    counter.show(done)
    row = counter.fresh(done).request
    counter.release(RITA, row.id, row.version, now=counter.now)
    counter.finish(row.id, now=counter.now)

    def ids(cases):
        return [case.request.id for case in cases]

    assert ids(counter.agenda(CHEN, now=counter.now).waiting) == [pending.id]
    assert ids(counter.agenda(RITA, now=counter.now).mine) == [pending.id, done.id]
    assert ids(counter.agenda(SAM, now=counter.now).reviews) == [done.id]
    assert (
        counter.agenda(OLGA, now=counter.now).waiting
        == counter.agenda(OLGA, now=counter.now).mine
        == counter.agenda(OLGA, now=counter.now).reviews
        == ()
    )


# ---------------------------------------------------------------------------------------------- the record


def test_a_review_needs_findings_and_whole_follow_ups(counter):
    """An empty review is a fault of the field, not a filed review."""
    row = counter.approved()
    with pytest.raises(Invalid) as refused:
        counter.review(
            SAM,
            row.id,
            row.version,
            Findings(True, True, True, Outcome.JUSTIFIED, " ", (FollowUp("", "U0CARL", counter.now.date()),)),
            now=counter.now,
        )
    assert set(refused.value.fields) == {"findings", "follow_up_what", "threshold_why", "standard_path_why"}


def test_only_auditors_export_and_the_attempt_is_on_record(counter):
    """Who is not an auditor gets a sentence, and the log says that he tried."""
    counter.may_export(ADA, now=counter.now)
    with pytest.raises(NotAllowed):
        counter.may_export(RITA, now=counter.now)
    assert [(r.event, r.actor, r.refused) for r in counter.log_of()] == [("log:export", RITA, "not_allowed")]


def test_no_state_changes_without_an_entry_on_any_path(counter):
    """Replaying each request's log gives exactly the state and version of its row, after every kind of ending."""
    counter.ask()
    row = counter.ask()
    counter.withdraw(RITA, row.id, row.version, now=counter.now)
    row = counter.ask()
    counter.deny(CHEN, row.id, row.version, "no", now=counter.now)
    counter.approved()
    row = counter.approved()
    counter.show(row)
    counter.show(row)
    row = counter.fresh(row).request
    counter.revoke(CORA, row.id, row.version, now=counter.now)
    counter.finish(row.id, now=counter.now)
    row = counter.fresh(row).request
    counter.review(SAM, row.id, row.version, FORM, now=counter.now)
    row = counter.approved()
    counter.show(row)
    counter.pass_time(hours=1)
    sweep.tick(counter, now=counter.now)
    sweep.tick(counter, now=counter.now)

    with counter.database.read() as session:
        rows = {row.id: row for row in session.exec(select(Request))}
    replayed: dict[str, tuple[str, int]] = {}
    for record in counter.log_of():
        if record.refused:
            continue
        state, version = replayed.get(record.request_id, (None, 0))
        assert record.source == state
        assert record.version == version + 1
        replayed[record.request_id] = (record.target, record.version)
    assert replayed == {row.id: (row.state, row.version) for row in rows.values()}
    assert {row.last_seq for row in rows.values()} <= {record.seq for record in counter.log_of()}
    with counter.database.read() as session:
        assert check(session) is None


def test_the_secret_is_nowhere_at_rest(counter, real, database_url):
    """The password of a credential that was shown is in no table, no entry, no repr and no log of the program."""
    row = counter.approved()
    credential = counter.show(row)
    with counter.database.read() as session:
        tables = [repr(found) for model in (Request, Grant) for found in session.exec(select(model))]
        entries = b"".join(record.body for record in counter.log_of())
    assert credential.password.encode() not in entries
    assert credential.password not in "".join(tables)
    assert credential.password not in repr(credential)
    assert credential.password not in str(credential)
    accessor = counter.fresh(row).grants[0].accessor
    assert accessor.encode() not in entries, "with it the grant could be ended by whoever reads an export"
    if database_url.startswith("sqlite"):
        file = database_url.removeprefix("sqlite:///")
        for end in ("", "-wal"):
            with open(file + end, "rb") as raw:  # noqa: PTH123
                assert credential.password.encode() not in raw.read()
