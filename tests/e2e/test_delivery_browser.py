"""Can a person at three in the morning use a window that holds no secret, at a desk and at the width of a phone?

A real Chromium at the running demo, whose policy delivers one level as a command and the other to ``breakglass open``.
What is copied from the page is run in a real shell.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect
from test_browser import CHANNEL, NARROW, WIDE, asked, browser, fits, latest, private, sit  # noqa: F401 - browser and sit are fixtures

from bot import views
from bot.demo.run import HERE, Demo
from bot.sandbox.driver import Driver, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The demo, with levels whose credentials the bot never has."""
    text = (HERE / "breakglass.yml").read_text(encoding="utf-8")
    text = text.replace("role: orders-ro\n", "role: orders-ro\n        delivery: wrapped\n")
    text = text.replace("role: orders-rw\n", "role: orders-rw\n        delivery: cli\n").replace(
        "quorum: 2", "quorum: 1"
    )
    with Demo(tmp_path_factory.mktemp("demo"), rate_limits=0, policy=text) as demo:
        yield demo


def granted(demo: Demo, level: str) -> str:
    """Let Rita ask for a level and Carl approve, without a browser."""
    request_id = asked(demo, level, "10m")
    carl = Driver(demo.url).as_("U0CARL")
    card = next(m for m in carl.messages(CHANNEL) if request_id in str(m.get("blocks", ""))[:400])
    carl.click(card, views.APPROVE)
    return request_id


def shell(line: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line that was pasted."""
    found = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        ["sh", "-c", line], input=stdin, capture_output=True, text=True, env=found, timeout=120, check=False
    )


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["desk", "phone"])
def test_the_command_is_pasted_once_and_a_theft_ends_it(sit, demo, size, tmp_path):  # noqa: F811
    """The window says what to do in either case; the copied line works once; Already used alarms security."""
    request_id = granted(demo, "read")
    hand = sit(size=size)
    hand.go("dm")
    hand.press(hand.button(f"Reveal the credential of {request_id}"))
    expect(hand.modal).to_contain_text("it works once")
    expect(hand.modal).to_contain_text("The access ends")
    expect(hand.modal).to_contain_text("Already used")
    fits(hand.page)
    hand.page.screenshot(path=os.environ.get("BREAKGLASS_SHOTS", str(tmp_path)) + f"/wrapped-{size['width']}.png")
    line = hand.copy(hand.modal.locator(".pre").first)
    hand.close()
    assert '"password"' in shell(line).stdout
    assert "It was opened before" in shell(line).stdout
    wait_for(lambda: _thread_says(demo, request_id, "Credential 1 was opened."), what="the opening in the thread")
    hand.press(hand.button(f"Somebody else has opened the credential of {request_id}"))
    hand.page.screenshot(path=os.environ.get("BREAKGLASS_SHOTS", str(tmp_path)) + f"/already-{size['width']}.png")
    hand.sure(title="Has somebody else opened it?")
    expect(private(hand)).to_contain_text("Security is called.")
    hand.go("incidents")
    card = latest(hand.channel, request_id)
    expect(card).to_contain_text("somebody else had opened the credential")
    hand.press(card.get_by_test_id("replies"))
    expect(hand.thread).to_contain_text("ALARM: somebody else opened credential 1")
    expect(hand.thread).to_contain_text("@security")
    fits(hand.page)


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["desk", "phone"])
def test_the_code_opens_a_session_on_the_responders_machine(sit, demo, size, tmp_path):  # noqa: F811
    """The word and the code are copied one after the other; psql starts, and the page never had a secret to show."""
    request_id = granted(demo, "write")
    hand = sit(size=size)
    hand.go("dm")
    hand.press(hand.button(f"Reveal the credential of {request_id}"))
    expect(hand.modal).to_contain_text(f"breakglass open {request_id}")
    fits(hand.page)
    hand.page.screenshot(path=os.environ.get("BREAKGLASS_SHOTS", str(tmp_path)) + f"/cli-{size['width']}.png")
    word = hand.copy(hand.modal.locator(".pre").nth(0))
    code = hand.copy(hand.modal.locator(".pre").nth(1))
    assert word == f"breakglass open {request_id}"
    done = shell(
        word.replace("breakglass", f"{sys.executable} -m bot.cli", 1),
        f"{code}\nSELECT 'there are ' || count(*) FROM orders;\n",
        PATH=f"{demo.pg.bin}:{os.environ['PATH']}",
    )
    assert "there are 600" in done.stdout, done.stderr
    hand.close()
    hand.press(hand.button(f"Hand back the access of {request_id}").last)
    hand.sure(title=f"Hand back {request_id}?")
    expect(private(hand)).to_contain_text("Vault confirmed that nothing of it is left")


def _thread_says(demo: Demo, request_id: str, words: str) -> bool:
    rita = Driver(demo.url).as_("U0RITA")
    card = next(m for m in rita.messages(CHANNEL) if request_id in str(m.get("blocks", ""))[:400])
    return any(words in str(m) for m in rita.messages(CHANNEL, thread_ts=card["ts"]))
