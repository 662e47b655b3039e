"""Are executed commands in the thread in time, readable, harmless, and never in anybody else's way?

The workspace is the strict sandbox; the entries are appended as the recorder appends them.
"""

from __future__ import annotations

import itertools
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from sqlmodel import col, select, update
from test_thread import INCIDENT, RITA, ROOT, SEED, TEAM, KilledError, _Clock, _World

from bot import batches, commands
from bot.calls import payload_of
from bot.sandbox.server import Sandbox
from bot.sandbox.workspace import BOT_USER
from storage.audit import Actor, append, write_time
from storage.models import Post, Request

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from storage.database import Database

HOSTILE = "SELECT '<!channel> <@U0CARL> ``` *x* <https://evil.example.com|Vault login>' -- \u202e`\n\n\nDROP"


@pytest.fixture
def world(database: Database) -> Iterator[_World]:
    """A workspace without rate limits, and an empty database."""
    manifest = yaml.safe_load((ROOT / "manifest.yml").read_text(encoding="utf-8"))
    clock = _Clock()
    with Sandbox(SEED, manifest, rate_limits=0, clock=clock) as sandbox:
        made = _World(sandbox, database, clock)
        yield made
        made.end()


def ran(world: _World, request_id: str | None, *data: Mapping[str, Any], event: str = "command:run") -> list[int]:
    """Append entries about commands, in one transaction, as the recorder does."""
    told = {"source": "orders-pg", "kind": "statement", "trust": "enforced", "identity": "bg-1", "class": "read"}
    with world.database.write() as session:
        seqs = [
            append(
                session,
                event=event,
                at=world.now(),
                actor=Actor(TEAM, RITA),
                request_id=request_id,
                data={**told, "at": write_time(world.now()), **one},
            ).seq
            for one in data
        ]
        if request_id is not None:
            session.execute(update(Request).where(col(Request.id) == request_id).values(last_seq=seqs[-1]))
    return seqs


def statements(count: int) -> list[dict[str, Any]]:
    """So many harmless statements."""
    return [{"text": f"SELECT {number}"} for number in range(count)]


def shown(message: dict[str, Any]) -> str:
    """What stands in the boxes of a message."""
    parts = [
        inline["text"]
        for block in message.get("blocks", [])
        if block["type"] == "rich_text"
        for element in block["elements"]
        for inline in element["elements"]
    ]
    return "\n".join(parts)


def buttons(message: dict[str, Any]) -> list[str]:
    """The action ids of a message."""
    return [
        element["action_id"]
        for block in message.get("blocks", [])
        if block["type"] == "actions"
        for element in block["elements"]
    ]


def files(messages: Sequence[dict[str, Any]]) -> list[str]:
    """The names of the files in these messages."""
    return [file["name"] for message in messages for file in message.get("files", [])]


def content(world: _World, message: dict[str, Any]) -> str:
    """What a message's file holds."""
    return (
        world.driver.as_(RITA)
        .download({"url": message["files"][0]["url_private"].removeprefix(world.sandbox.url)})
        .decode()
    )


def quick(world: _World, **more: Any) -> None:
    """Bring everything into Slack, without gathering."""
    world.settle(40, gather=timedelta(0), between=timedelta(0), **more)


def test_a_few_commands_are_one_post_with_a_line_each(world: _World) -> None:
    """Consecutive commands of a session stand in one box, one by one, and its end with them."""
    row = world.active()
    quick(world)
    ran(world, row.id, {"text": "SELECT 1", "rows": 1}, {"text": "UPDATE t SET a = 1", "class": "write", "rows": 3})
    ran(world, row.id, {"commands": 2, "session": "s"}, event="command:close")
    quick(world)
    post = world.thread(row.id)[-1]
    assert [line[10:] for line in shown(post).splitlines()] == [
        "SELECT 1  [1 row]",
        "UPDATE t SET a = 1  [3 rows]",
        "-- session ended: 2 commands",
    ]
    assert buttons(post) == []
    world.assert_shown(row.id)


def test_what_was_typed_at_the_target_is_only_text(world: _World) -> None:
    """Attack: mentions, links, marks and bidi in SQL neither ring anybody nor show as anything but themselves."""
    row = world.active()
    quick(world)
    before = world.driver.as_("U0LENA").conversation(INCIDENT)["mentions"]
    ran(world, row.id, {"text": HOSTILE, "source": "<!here>", "identity": "<@U0CARL>", "result": "<!channel>"})
    quick(world)
    post = world.thread(row.id)[-1]
    assert "<!" not in post["text"]
    assert "<@" not in post["text"]
    assert "<!channel> <@U0CARL>" in shown(post)
    assert "\u202e" not in shown(post)
    assert world.driver.as_("U0LENA").conversation(INCIDENT)["mentions"] == before
    outside = [block["text"]["text"] for block in post["blocks"] if block["type"] == "section"]
    assert not any("<!channel" in text or "<!here" in text or "<@" in text for text in outside)


def test_a_dangerous_command_is_marked_and_calls_security_at_once(world: _World) -> None:
    """It is not gathered with others: the post that has it stands above the harmless ones, and names the danger."""
    row = world.active()
    quick(world)
    ran(world, row.id, {"text": "DELETE FROM orders", "class": "write", "danger": "whole-table delete"})
    world.settle(20, gather=timedelta(hours=1))
    post = world.thread(row.id)[-1]
    assert "<!subteam^S0SEC>" in post["text"]
    assert "whole-table delete" in post["blocks"][0]["text"]["text"]
    assert "<!subteam^S0SEC>" in post["blocks"][0]["text"]["text"]
    assert world.driver.as_("U0SAM").conversation(INCIDENT)["mentions"] > 0


def test_commands_gather_and_what_is_no_command_does_not_wait(world: _World) -> None:
    """Harmless commands are held for a moment; a refusal behind them brings both out at once, in order."""
    row = world.active()
    quick(world)
    count = len(world.thread(row.id))
    ran(world, row.id, *statements(2))
    follower = world.follower(gather=timedelta(hours=1))
    assert not follower.drain(0.5)
    assert len(world.thread(row.id)) == count
    world.refused(row)
    world.settle(20, gather=timedelta(hours=1))
    posts = world.thread(row.id)[count:]
    assert [len(post["text"].splitlines()) for post in posts] == [2, 1]
    world.assert_shown(row.id)


def test_many_commands_are_one_summary_and_one_file(world: _World) -> None:
    """A thousand statements are counted by class, with a button for all of them, and listed in a file."""
    row = world.active()
    quick(world)
    before = len(world.thread(row.id))
    many = [{"text": f"SELECT {n}", "class": "write" if n % 10 == 0 else "read"} for n in range(1000)]
    many[7]["danger"] = "export"
    seqs = ran(world, row.id, *many)
    quick(world)
    summary, listed = world.thread(row.id)[before:]
    assert "1000 commands" in summary["text"]
    assert "900 read, 100 write" in summary["text"]
    assert "<!subteam^S0SEC>" in summary["text"]
    assert buttons(summary) == [commands.SHOW]
    assert files([listed]) == [f"{row.id}-commands-{seqs[0]}-{seqs[-1]}.txt"]
    assert listed["thread_ts"] == world.cards(row.id)[0]["ts"]
    lines = content(world, listed).splitlines()
    assert [line.strip() for line in lines if line.startswith("    ")] == [f"SELECT {n}" for n in range(1000)]
    quick(world)
    assert len(world.thread(row.id)) == before + 2


def test_a_flood_leaves_the_channel_to_other_requests(world: _World) -> None:
    """While one request's statements come without end, its summaries are few, and another request is told at once."""
    flooded = world.active()
    world.settle()
    follower = world.run(gather=timedelta(seconds=0.2), between=timedelta(seconds=600))
    for _ in range(8):
        ran(world, flooded.id, *statements(150))
        time.sleep(0.05)
    other = world.open()
    world.driver.wait_for(lambda: world.of(world.history(), other.id) and world.thread(other.id), 20, what="the other")
    world.refused(world.row(flooded.id))
    world.driver.wait_for(lambda: follower.seconds_behind() == 0, 30, what="everything")
    summaries = [m for m in world.thread(flooded.id) if commands.SHOW in buttons(m)]
    assert 1 <= len(summaries) <= 3
    told = sum(int(m["text"].split(": ")[1].split(" command")[0]) for m in summaries)
    assert told == 1200


def test_a_kill_at_any_step_of_a_summary_loses_and_doubles_nothing(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crash: before or after each call and commit; afterwards there is one summary, one file, and nothing twice."""
    monkeypatch.setattr(commands, "FILE_FROM", commands.MOST_LINES + 10)
    row = world.active()
    quick(world)
    for at in itertools.count():
        seqs = ran(world, row.id, *statements(commands.FILE_FROM))
        follower, fate = world.mortal(at)
        follower._gather = follower._between = timedelta(0)
        try:
            follower.drain(20)
        except KilledError:
            world.after_the_claims()
        quick(world)
        messages = world.thread(row.id)
        assert files(messages).count(commands.file_name(row.id, seqs[0], seqs[-1])) == 1, at
        key = f"thread:{seqs[0]}-{seqs[-1]}"
        assert [payload_of(m, BOT_USER).get("key") for m in messages].count(key) == 1, at
        if not fate.has_struck:
            break


def test_a_list_that_slack_does_not_take_holds_up_no_line(world: _World) -> None:
    """While Slack fails over files, the summary and what follows are told, and why there is no list is known."""
    row = world.active()
    quick(world)
    world.driver.fault("error500", method="files.completeUploadExternal", times=10_000)
    seqs = ran(world, row.id, *statements(commands.FILE_FROM))
    world.refused(row)
    quick(world)
    assert files(world.thread(row.id)) == []
    assert "refused" in world.thread(row.id)[-1]["text"]
    with world.database.read() as session:
        post = session.exec(select(Post).where(Post.key == f"file:{seqs[0]}-{seqs[-1]}")).one()
    assert (post.picture or "").startswith("gone:http_500")


def test_a_login_that_nobody_asked_for_is_an_alarm_in_the_channel(world: _World) -> None:
    """What a login with our mark ran without a request calls security, in the incident channel itself."""
    ran(world, None, {"text": "SELECT 1", "identity": "bg-zzzz-1"}, event="command:stranger")
    quick(world)
    post = world.of(world.history(), "")[-1]
    assert "<!subteam^S0SEC>" in post["text"]
    assert "no request explains" in post["blocks"][0]["text"]["text"]
    assert buttons(post) == []


def test_a_batch_has_an_end(world: _World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is behind the longest summary is the next one; no entry is in two, none in none."""
    monkeypatch.setattr(batches, "MOST_TOGETHER", 40)
    row = world.active()
    quick(world)
    seqs = ran(world, row.id, *statements(100))
    with world.database.read() as session:
        found = []
        cursor = seqs[0] - 1
        while (batch := batches.next_batch(session, row.id, cursor)) is not None:
            found.append((batch.first, batch.last, batch.count))
            cursor = batch.last
    assert [count for _, _, count in found] == [40, 40, 20]
    assert [first for first, _, _ in found] == [seqs[0], seqs[40], seqs[80]]


def test_the_card_counts_the_commands_when_the_access_is_over(world: _World) -> None:
    """While it is out no command draws the card again; afterwards the card says how many there were."""
    row = world.active()
    quick(world)
    start = len(world.driver.journal(kind="api", method="chat.update"))
    for _ in range(3):
        ran(world, row.id, {"text": "DELETE FROM orders", "danger": "whole-table delete"}, {"text": "SELECT 1"})
        quick(world)
    assert len(world.driver.journal(kind="api", method="chat.update")) == start
    row = world.row(row.id)
    world.desk.release(Actor(TEAM, RITA), row.id, row.version, now=world.now())
    world.desk.finish(row.id, now=world.now())
    quick(world)
    assert "6 commands, *3 dangerous*" in str(world.cards(row.id)[0]["blocks"])
