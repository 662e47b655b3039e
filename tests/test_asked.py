"""Is whoever was asked nudged in a message of their own, and told once when it is settled, and by whom?"""

from __future__ import annotations

from datetime import timedelta

from test_thread import CARL, CHEN, CORA, RITA, TEAM, manifest, world

from bot import asked
from bot.presence import KEPT, Presence
from storage.audit import Actor
from storage.models import Absence

__all__ = ["manifest", "world"]  # the workspace and the follower that the thread is tested with


def test_a_nudge_reaches_those_who_are_silent_and_nobody_twice(world):
    """One message a step to each who has not answered; a second follower adds none, and nothing is drawn again."""
    row = world.open("write")
    world.settle()
    world.pass_(minutes=2)
    world.desk.clock(row.id, now=world.now())
    world.settle()
    row = world.approve(world.row(row.id))
    world.pass_(minutes=2)
    world.desk.clock(row.id, now=world.now())
    world.settle()
    world.settle(name="thread")
    assert world.letters(row.id, CARL) == [f"ask:{CARL}", f"nudge:1:{CARL}"]
    assert world.letters(row.id, CHEN) == [f"ask:{CHEN}", f"nudge:1:{CHEN}", f"nudge:2:{CHEN}"]
    said = world.letter(row.id, CHEN, f"nudge:2:{CHEN}")["text"]
    assert said.startswith(f"{row.id} still waits for your answer")
    assert "Asked again, in direct messages: 2 custodians" in world.thread(row.id)[-1]["text"]


def test_a_nudge_that_comes_too_late_is_not_sent(world):
    """After an outage nobody is nudged about what is settled; they are told that it is."""
    row = world.open()
    world.settle()
    world.pass_(minutes=2)
    world.desk.clock(row.id, now=world.now())
    world.approve(world.row(row.id))
    world.settle()
    assert world.letters(row.id, CHEN) == [f"ask:{CHEN}", f"settled:{CHEN}"]


def test_everybody_asked_is_told_by_whom_it_was_settled(world):
    """Approved, denied, withdrawn or lapsed: each asked person but whoever did it gets one message that says so."""
    approved, denied, withdrawn, lapsed = (world.open() for _ in range(4))
    world.settle()
    world.approve(approved)
    world.deny(denied, CHEN)
    world.desk.withdraw(Actor(TEAM, RITA), withdrawn.id, withdrawn.version, now=world.now())
    world.pass_(minutes=30)
    world.desk.clock(lapsed.id, now=world.now())
    world.settle()
    words = {
        approved.id: (CARL, f"approved by <@{CARL}>"),
        denied.id: (CHEN, f"denied by <@{CHEN}>"),
        withdrawn.id: (None, f"withdrawn by <@{RITA}>"),
        lapsed.id: (None, "it lapsed"),
    }
    for request_id, (by, said) in words.items():
        for person in (CARL, CHEN, CORA):
            keys = world.letters(request_id, person)
            assert keys.count(f"settled:{person}") == (person != by)
            if person != by:
                assert said in world.letter(request_id, person, f"settled:{person}")["text"]


def test_the_requester_sees_who_is_there_and_what_comes_next(world):
    """Who of those asked is active in Slack or away, and when what happens: drawn at each step, gone at the end."""
    world.driver.change_person(CARL, is_active=True)
    with world.database.write() as session:
        until = world.now() + timedelta(days=2)
        session.add(Absence(team=TEAM, person=CHEN, since=world.now(), until=until, deputy=None, ended_at=None))
    row = world.open("write")
    world.settle(active=Presence(world.client).of)
    said = str(world.letter(row.id, RITA, "own")["blocks"])
    assert f"*Active in Slack*: <@{CARL}> of 3 custodians." in said
    assert f"*Away*: <@{CHEN}> until <!date" in said
    assert "*Next*: those who have not answered are asked again <!date" in said
    assert "; all of them are called in the thread <!date" in said
    assert "; it lapses <!date" in said
    row = world.deny(world.row(row.id), CHEN)
    world.settle(active=Presence(world.client).of)
    assert "*Next*" not in str(world.letter(row.id, RITA, "own")["blocks"])


def test_a_slack_that_does_not_say_who_is_active_keeps_nobody_waiting(world):
    """What is not answered is not known: one call is made, nothing is raised, and the message says so."""
    world.driver.fault("rate_limited", method="users.getPresence", times=100, retry_after=30)
    row = world.open()
    world.settle(active=Presence(world.client).of)
    assert len(world.driver.journal(kind="api", method="users.getPresence")) == 1
    assert "not known; Slack does not say" in str(world.letter(row.id, RITA, "own")["blocks"])
    assert world.letters(row.id, CARL) == [f"ask:{CARL}"]


def test_who_is_active_is_asked_once_a_minute(world):
    """An answer is used for a minute; a person whom Slack does not know is not known, and ends the round."""
    seconds = [0.0]
    presence = Presence(world.client, clock=lambda: seconds[0])
    world.driver.change_person(CARL, is_active=True)
    assert presence.of([CARL, CHEN]) == {CARL: True, CHEN: False}
    world.driver.change_person(CARL, is_active=False)
    seconds[0] = KEPT - 1
    assert presence.of([CARL]) == {CARL: True}
    seconds[0] = KEPT
    assert presence.of([CARL, "U0NOBODY", CHEN]) == {CARL: False, "U0NOBODY": None, CHEN: None}


def test_what_comes_next_is_said_in_its_order_and_only_what_is_still_to_come(world):
    """After the last nudge and half time, only the end is left."""
    row = world.open()
    late = row.opened_at + timedelta(minutes=14)
    assert asked.next_words(row, now=late).startswith("it lapses")
    soon = asked.next_words(row, now=row.opened_at + timedelta(minutes=5))
    assert soon.index("called in the thread") < soon.index("asked again")  # 7.5 minutes, then 8
