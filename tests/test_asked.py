"""Is whoever was asked nudged in a message of their own, and told once when it is settled, and by whom?"""

from __future__ import annotations

from test_thread import CARL, CHEN, CORA, RITA, TEAM, manifest, world

from storage.audit import Actor

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
