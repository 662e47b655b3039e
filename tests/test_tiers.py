"""Is a backup told when their time comes and not before, and does everybody read whose approval is missing?"""

from __future__ import annotations

from dataclasses import replace

import pytest
from counter import CORA, SAM
from sqlalchemy import update
from test_asking import BOTH, TIERS, _policy
from test_thread import CARL, CHEN, TEAM, manifest, world

from bot import tiers
from storage.audit import Actor
from storage.models import Request, State
from storage.standalone import SYSTEM, Findings, Kind, Replay
from workflows import policy as rules
from workflows import replay, sweep

__all__ = ["manifest", "world"]  # the workspace and the follower that the thread is tested with


def _tiers(policy: rules.Policy, text: str, level: str = "") -> rules.Policy:
    """A policy with the tiers and factors of a text, and all else of the one in use."""
    there, here = _policy(text, level).accounts["orders-db"], policy.accounts["orders-db"]
    levels = {
        name: replace(one, factors=there.levels[name].factors, unanswered=there.levels[name].unanswered)
        for name, one in here.levels.items()
    }
    account = replace(here, custodians=there.custodians, tiers=there.tiers, hours=there.hours, levels=levels)
    return replace(policy, accounts={**policy.accounts, "orders-db": account})


def test_nobody_answers_so_the_backup_is_asked_and_both_factors_are_filled(counter):
    """The custodian is silent, the backup is asked at five minutes, an owner and security approve, and it is granted.

    A second owner brings nothing: one of security was missing. The log tells all of it and verifies.
    """
    text = TIERS.replace("people: [U0CORA]", "people: ['@security']")
    factors = "factors: {owners: {from: [U0CARL, U0CHEN, U0CORA]}, security: {from: ['@security']}}"
    counter.policy = replace(
        _tiers(counter.policy, text.replace("[U0CHEN]", "[U0CHEN, U0CORA]"), factors), reviewers=("U0ADA",)
    )
    counter.record_policy(counter.policy, now=counter.now)
    row = counter.ask(level="write", minutes=10)
    first = [step["tier"] for step in row.asking["steps"] if step["at"].startswith(counter.now.isoformat()[:19])]
    assert first == ["custodians", "backup", "owners"]  # two are needed: one tier could not fill both
    counter.withdraw(Actor(TEAM, row.requester), row.id, row.version, now=counter.now)
    # Now each tier can fill it alone.
    counter.policy = _tiers(
        counter.policy,
        text.replace("custodians: [U0CARL]", "custodians: [U0CARL, U0LENA]").replace("[U0CHEN]", "[U0CHEN, U0CORA]"),
        "factors: {owners: {from: [U0CARL, U0CHEN, U0CORA]}, security: {from: [U0LENA, '@security']}}",
    )
    counter.record_policy(counter.policy, now=counter.now)
    row = counter.ask(level="write", minutes=10)
    for minutes in (4.9, 0.2, 5):
        counter.pass_time(minutes=minutes)
        sweep.tick(counter, now=counter.now)
        sweep.tick(counter, now=counter.now)
    calls = [record.data for record in counter.log_of(row) if record.event == "request:escalate"]
    assert [(one["tier"], one["people"]) for one in calls] == [("backup", ["U0CHEN", "U0CORA"]), ("owners", ["U0SAM"])]
    row = counter.approve(CORA, row.id, counter.fresh(row).request.version, now=counter.now)
    row = counter.approve(Actor(TEAM, CHEN), row.id, row.version, now=counter.now)
    assert row.state == State.PENDING
    row = counter.approve(SAM, row.id, row.version, now=counter.now)
    assert row.state == State.APPROVED
    said = [record.data for record in counter.log_of(row) if record.event == "request:approve"]
    assert [(one["have"], one["need"], one.get("missing")) for one in said] == [
        (1, 2, {"security": 1}),
        (1, 2, {"security": 1}),
        (2, 2, None),
    ]
    assert counter.show(row)
    with counter.database.read() as session:
        assert replay.check_database(session, now=counter.now).findings == []


def test_a_backup_gets_a_message_when_their_tier_is_asked(world):
    """Nobody of a later tier is written to before; then once, also with a second follower; the line calls them."""
    world.desk.policy = _tiers(world.desk.policy, TIERS)
    row = world.open("read")
    world.settle()
    assert world.letters(row.id, CARL) == [f"ask:{CARL}"]
    assert world.letters(row.id, CHEN) == []
    world.pass_(minutes=5)
    world.desk.clock(row.id, now=world.now())
    world.settle()
    world.settle(name="thread")
    assert world.letters(row.id, CHEN) == [f"ask:{CHEN}"]
    assert world.letters(row.id, "U0CORA") == []
    thread = world.thread(row.id)
    assert any("*backup* is asked as well" in post["text"] and f"<@{CHEN}>" in post["text"] for post in thread)
    world.deny(world.row(row.id), CARL)
    world.settle()
    assert world.letters(row.id, "U0CORA") == []  # who was never asked is not told that it is settled
    assert f"settled:{CHEN}" in world.letters(row.id, CHEN)


def test_what_is_missing_is_read_by_everybody(world):
    """The card and the thread name the factor that is still missing, and who fills the rest."""
    policy = _tiers(world.desk.policy, "    custodians: [U0CARL, U0CHEN, U0CORA]\n", BOTH)
    world.desk.policy = replace(policy, reviewers=("U0ADA",))
    row = world.open("write")
    world.approve(row, "U0CORA")
    world.settle()
    card = str(world.cards(row.id)[0])
    for words in ("1 of 2", "one of owners and one of security", "owners: <@U0CORA>", "security is missing"):
        assert words in card
    assert "owners (<@U0CORA>), security is missing" in world.thread(row.id)[-1]["text"]


@pytest.mark.parametrize(
    "data",
    [
        {"factors": []},
        {"factors": {"<!channel>": ["<!here>"]}, "missing": {"<!channel>": 1}},
        {"asking": {"factors": [{"name": "<!channel>", "need": "x"}]}, "tier": "<!channel>"},
        {"asking": {"factors": "x"}},
        {"asking": []},
    ],
)
def test_attack_a_forged_entry_calls_nobody(data):
    """Whatever stands in an entry is escaped, and what has the wrong form says nothing."""
    said = tiers.fills(data) + tiers.needs(data) + tiers.asked_line(data)
    assert "<!" not in said


def test_attack_a_row_that_skips_a_tier_or_a_factor_is_found(counter):
    """Steps, factors and the count of steps in the row are held to what the log tells."""
    counter.policy = _tiers(counter.policy, TIERS)
    counter.record_policy(counter.policy, now=counter.now)
    row = counter.ask()
    for column, value in (("asked_steps", 3), ("asking", {"steps": row.asking["steps"][:1], "factors": []})):
        with counter.database.write() as session:
            before = getattr(session.get(Request, row.id), column)
            session.execute(update(Request).where(Request.id == row.id).values({column: value}))
        with counter.database.read() as session:
            found = replay.check_database(session, now=counter.now).findings
        assert [(one.kind, f" {column} = " in one.sentence) for one in found] == [(Kind.STATE_WITHOUT_ENTRY, True)]
        with counter.database.write() as session:
            session.execute(update(Request).where(Request.id == row.id).values({column: before}))


def test_attack_a_grant_without_security_does_not_verify(now):
    """A log in which two owners were enough is found out by anybody who has it."""
    asking = {"steps": [], "factors": [{"name": "security", "need": 1, "people": [SAM.person]}]}
    told = {
        "custodians": ["U0CARL", "U0CHEN", "U0SAM"],
        "quorum": 2,
        "asked_seconds": 600,
        "threshold": {"id": "x", "text": "x"},
        "asking": asking,
        **dict.fromkeys(("account", "level", "reason", "standard_path", "incident"), "x"),
    }
    at = now.isoformat(timespec="microseconds").replace("+00:00", "Z")

    def found(second: str, factors: object) -> list[Kind]:
        findings = Findings(10)
        played = Replay(findings, is_whole=True)
        approved = {"granted_seconds": 600, "have": 2, "need": 2}
        quorum = {"approvers": sorted(["U0CARL", second]), "granted_seconds": 600, "lapse_at": at}
        moves = (
            ("U0RITA", "request:open", None, "pending", {**told, "asking": {**asking, "factors": factors}}),
            ("U0CARL", "request:approve", "pending", "pending", approved),
            (second, "request:approve", "pending", "pending", approved),
            ("system", "request:quorum", "pending", "approved", quorum),
        )
        for seq, (person, event, source, target, data) in enumerate(moves):
            actor = {"team": TEAM, "person": person} if person != "system" else SYSTEM
            entry = {"at": at, "actor": actor, "request": "BG-7KQ2", "event": event, "to": target, "data": data}
            entry |= {"version": seq + 1, **({"from": source} if source else {})}
            played.take(seq, entry, bytes(32))
        return [one.kind for one in findings]

    assert found("U0SAM", asking["factors"]) == []
    assert found("U0CHEN", asking["factors"]) == [Kind.NO_QUORUM]
    assert found("U0SAM", [{"name": "security", "need": -1, "people": []}]) == [Kind.MALFORMED]
