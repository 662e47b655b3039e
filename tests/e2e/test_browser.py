"""Can a person live the whole story in a browser, by mouse at a desk and by keyboard alone at the width of a phone?

A real Chromium looks at the running demo: the real bot as its own process, the real OpenBao, the real PostgreSQL. What
the page shows is asserted, and what it is worth: the credential that was copied from the page is tried at the target.
"""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import psycopg
import pytest
from hands import WATCH, Hand, Keys, Mouse
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from bot import views
from bot.demo import play
from bot.demo.run import Demo
from bot.sandbox.driver import Driver, wait_for
from storage.verify import verify_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CHANNEL: Final = "C0INCIDENT"
WIDE: Final = {"width": 1280, "height": 800}
NARROW: Final = {"width": 390, "height": 844}
WHY: Final = "Checkout is down for every customer; I need to see the stuck orders"
TRIED: Final = "Paged the database on-call at 02:58 and 03:05, nobody answers"
PATIENCE: Final = 15_000  # milliseconds for what must appear: a bound for a busy machine, not a wish

expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Everything that ``breakglass demo`` starts."""
    with Demo(tmp_path_factory.mktemp("demo"), rate_limits=0) as demo:
        yield demo


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A real Chromium; without one these tests fail, they are never skipped."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("These tests look at the page in a real browser: install the Debian package “chromium”.")
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu", *quiet])
        yield chromium
        chromium.close()


@pytest.fixture
def sit(browser: Browser, demo: Demo) -> Iterator[Callable[..., Hand]]:
    """Sit down at the page as somebody. In the end: no script error, and nothing was asked of another host."""
    contexts, troubles = [], []

    def foreign(url: str) -> bool:
        return urlsplit(url).scheme in {"http", "https", "ws"} and urlsplit(url).netloc != urlsplit(demo.url).netloc

    def down(who: str = "U0RITA", hand: type[Hand] = Mouse, size: dict[str, int] = WIDE) -> Hand:
        allowed = ["clipboard-read", "clipboard-write"]
        context = browser.new_context(viewport=size, permissions=allowed, locale="en-US", accept_downloads=True)
        contexts.append(context)
        context.add_init_script(WATCH)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: troubles.append(request.url) if foreign(request.url) else None)
        page.goto(f"{demo.url}/?as={who}&channel={CHANNEL}")
        page.wait_for_selector("body[data-ready]")
        return hand(page)

    yield down
    for context in contexts:
        context.close()
    assert troubles == []


# --- what is looked at ------------------------------------------------------------------------------------------------


def latest(place: Locator, request_id: str = "") -> Locator:
    """Return the newest picture of a request in a channel or a direct message."""
    return place.locator("article").filter(has=place.page.locator("h3"), has_text=request_id or "BG-").last


def private(hand: Hand) -> Locator:
    """Return the newest words that only this person sees."""
    return hand.page.locator("article.ephemeral").last


def id_in(text: str) -> str:
    """Return the request's id."""
    found = re.search(r"BG-[0-9A-Z]{4}", text)
    assert found, text
    return found[0]


def fits(page: Page) -> None:
    """Nothing is wider than the screen."""
    wide = page.evaluate(
        """() => [...document.querySelectorAll('*')].filter((n) => {
             const b = n.getBoundingClientRect();
             return b.width && b.right > innerWidth + 1 && !n.closest('.visually-hidden, .skip');
           }).map((n) => n.outerHTML.slice(0, 120))"""
    )
    assert wide == []


def asked(demo: Demo, level: str = "read", minutes: str = "15m") -> str:
    """Let Rita ask, without a browser; returns the request's id when its card stands in the channel."""
    rita = Driver(demo.url).as_("U0RITA")
    rita.command(f"/breakglass orders-db {level} {minutes}", CHANNEL)
    words = {views.THRESHOLD: "customer-impact", views.REASON: WHY, views.STANDARD_PATH: TRIED, views.INCIDENT: "INC-7"}
    rita.fill(rita.wait_for_view(views.OPEN_FORM)).submit(words)
    request_id = id_in(json.dumps(rita.wait_for_view(views.NOTICE)["title"]))
    rita.close()
    wait_for(lambda: _card(demo, request_id), what="the card")
    return request_id


def _card(demo: Demo, request_id: str) -> dict[str, Any] | None:
    for message in Driver(demo.url).as_("U0RITA").messages(CHANNEL):
        first = (message.get("blocks") or [{"type": ""}])[0]
        if first["type"] == "header" and request_id in first["text"]["text"]:
            return message
    return None


def granted(demo: Demo) -> str:
    """Let Rita ask and Carl approve, without a browser."""
    request_id = asked(demo)
    card = _card(demo, request_id)
    assert card is not None
    Driver(demo.url).as_("U0CARL").click(card, views.APPROVE)
    return request_id


# --- the story --------------------------------------------------------------------------------------------------------


def live(hand: Hand, demo: Demo, folder: Path) -> None:
    """Live the whole story at one page."""
    page = hand.page

    # 1. Rita asks: the command is completed while it is typed, and the form opens filled in.
    hand.write(hand.box, "/bre")
    option = page.get_by_role("option", name="/breakglass")
    expect(option).to_be_visible()
    if isinstance(hand, Mouse):
        option.click()
    else:
        page.keyboard.press("Tab")
    expect(hand.box).to_have_value("/breakglass ")
    page.keyboard.type("orders-db read 15m checkout is down")
    page.keyboard.press("Enter")
    expect(hand.answer(views.ACCOUNT)).to_have_text("Orders database")
    expect(hand.answer(views.ACCOUNT)).to_be_focused()  # though the window was opened before the form was ready
    expect(hand.answer(views.REASON)).to_have_value("checkout is down")
    expect(hand.modal).to_contain_text("Needs 1 of 3 custodians; at most 30 minutes.")
    fits(page)
    # Too short a reason and too long a time stand under their fields; what was typed stays.
    hand.tick(views.THRESHOLD, "Customers cannot order, or are charged wrongly")
    hand.write(hand.answer(views.REASON), "down")
    hand.write(hand.answer(views.STANDARD_PATH), TRIED)
    hand.write(hand.answer(views.INCIDENT), "INC-2031")
    hand.write(hand.answer(views.DURATION), "45m")
    hand.send()
    reason = hand.modal.locator(f'[data-block-id="{views.REASON}"] .field-error')
    expect(reason).to_contain_text("at least 10 characters")
    expect(hand.answer(views.REASON)).to_be_focused()
    hand.write(hand.answer(views.REASON), WHY)
    hand.send()
    expect(hand.modal.locator(f'[data-block-id="{views.DURATION}"] .field-error')).to_contain_text("30 minutes")
    expect(hand.answer(views.STANDARD_PATH)).to_have_value(TRIED)
    hand.write(hand.answer(views.DURATION), "15m")
    hand.send()
    expect(hand.modal).to_contain_text("is on its way. 1 of 3 custodians must approve")
    request_id = id_in(hand.modal.inner_text())
    hand.close()
    card = latest(hand.channel, request_id)
    expect(card).to_contain_text(f"{request_id} · Waiting for approval")
    expect(card).to_contain_text("@Rita Reyes asks for Orders database · Read everything but payment cards")
    expect(card).to_contain_text("Needs 1 approval, or lapses")
    fits(page)

    # 2. Olga, who has no part in this, presses Approve and is told so.
    hand.become("Olga Petrov")
    hand.go("incidents")
    hand.press(hand.button(f"Approve {request_id}"))
    hand.sure(title=f"Approve {request_id}?")
    expect(private(hand)).to_contain_text("You are not a custodian of Orders database; its custodians are @Carl")

    # 3. Carl approves in his direct message, after a second thought.
    hand.become("Carl Costa")
    hand.go("dm")
    approve = hand.button(f"Approve {request_id}")
    hand.press(approve)
    hand.sure(title=f"Approve {request_id}?", no=True)
    expect(approve).to_be_focused()
    hand.press(approve)
    hand.sure(title=f"Approve {request_id}?")
    expect(private(hand)).to_contain_text(f"Approved {request_id}: 1 of 1.")
    expect(approve).to_have_count(0)
    fits(page)
    assert play._logins(demo) == 0, "nothing is issued before it is opened"

    # 4. Rita opens the credential, copies the line and works.
    hand.become("Rita Reyes")
    hand.go("dm")
    hand.press(hand.button(f"Reveal the credential of {request_id}"))
    first = hand.modal.locator(".pre").first
    expect(first).to_contain_text("PGPASSWORD=")
    fits(page)
    line = hand.copy(first)
    assert play._psql(demo, line, "SELECT count(*) FROM orders").stdout.strip() == "600"
    hand.close()

    # 5. Rita is done, with a session still open.
    with psycopg.connect(play._conninfo(line), autocommit=True) as session:
        hand.press(hand.button(f"Hand back the access of {request_id}").last)
        hand.sure(title=f"Hand back {request_id}?")
        expect(private(hand)).to_contain_text(
            f"{request_id} has ended, and Vault confirmed that nothing of it is left."
        )
        assert play._is_cut(session)
    assert play._cannot_log_in(line)
    assert play._logins(demo) == 0
    hand.go("incidents")
    card = latest(hand.channel, request_id)
    expect(card).to_contain_text("Access has ended, review is due")
    hand.press(card.get_by_test_id("replies"))
    expect(hand.thread).to_contain_text("Vault confirmed that the lease is gone, after")
    expect(hand.thread).to_contain_text("@Olga Petrov tried to approve and was refused")
    fits(page)

    # 6. Sam reviews.
    hand.become("Sam Okoro")
    hand.go("dm")
    hand.press(hand.button(f"File the review of {request_id}"))
    hand.tick(views.THRESHOLD_MET, "Yes")
    hand.write(hand.answer(views.THRESHOLD_WHY), "The alert and the status page say so.")
    hand.tick(views.STANDARD_PATH_ENOUGH, "No")
    hand.write(hand.answer(views.STANDARD_PATH_WHY), "It would have taken an hour to reach anybody.")
    hand.tick(views.USED_AS_STATED, "Yes")
    hand.tick(views.OUTCOME, "Real emergency, justified")
    hand.write(hand.answer(views.FINDINGS), "Nobody on the database rota answered for twenty minutes.")
    what, owner, due = views.FOLLOW_UPS[0]
    hand.write(hand.answer(what), "Give the database on-call a second pager")
    hand.choose(hand.answer(owner), "Cora Diaz")
    hand.send()
    expect(hand.modal.locator(f'[data-block-id="{due}"] .field-error')).to_contain_text("needs")
    hand.pick_date(hand.answer(due), "12012027")
    fits(page)
    hand.send()
    expect(hand.modal).to_contain_text(f"The review of {request_id} is filed")
    hand.close()
    hand.go("incidents")
    card = latest(hand.channel, request_id)
    expect(card).to_contain_text("Access has ended, reviewed")
    expect(card).to_contain_text("Give the database on-call a second pager")
    fits(page)

    # 7. Ada exports and verifies.
    hand.become("Ada Auden")
    hand.go("incidents")
    hand.say(f"/breakglass export {request_id}")
    expect(private(hand)).to_contain_text("is in your direct messages with me")
    hand.go("dm")
    file = hand.download(hand.channel.locator("a.file").last, folder)
    assert file.name == f"{request_id}.jsonl"
    report = verify_file(file)
    assert report.ok, report
    assert WHY.encode() in file.read_bytes()
    assert play._conninfo(line).split("password='")[1].encode() not in file.read_bytes()


def test_the_whole_story_by_mouse_at_a_desk(sit, demo, tmp_path):
    """From the command to the verified export, a mouse at 1280 pixels gets everything done at the page."""
    live(sit(), demo, tmp_path)


def test_the_whole_story_by_keyboard_at_the_width_of_a_phone(sit, demo, tmp_path):
    """From the command to the verified export, keys alone do everything at 390 pixels, and nothing is cut off."""
    hand = sit(hand=Keys, size=NARROW)
    live(hand, demo, tmp_path)
    hand.swear()


# --- what else can be asked and pressed -------------------------------------------------------------------------------


def test_each_word_after_the_command_gets_a_useful_answer(sit, demo):
    """Help lists what there is, status what is open, an unknown word what was meant, a wrong id how it is written."""
    hand = sit()
    hand.say("/breakglass help")
    expect(private(hand)).to_contain_text("/breakglass orders-db read 15m checkout is down")
    hand.say("/breakglass status")
    expect(private(hand)).to_contain_text("Nothing is open that concerns you.")
    request_id = asked(demo)
    hand.say("/breakglass status")
    expect(private(hand)).to_contain_text(request_id)
    hand.say("/breakglass ordersdb read")
    expect(private(hand)).to_contain_text("Did you mean /breakglass orders-db?")
    hand.say("/breakglass status seven")
    expect(private(hand)).to_contain_text("Name the request: /breakglass status BG-7KQ2.")
    hand.say(f"/breakglass export {request_id}")
    expect(private(hand)).to_contain_text("Only the auditors named in the policy may export the log.")
    # And a request is taken back where it stands.
    hand.go("dm")
    hand.press(hand.button(f"Withdraw {request_id}"))
    hand.sure(title=f"Withdraw {request_id}?")
    expect(private(hand)).to_contain_text(f"Withdrew {request_id}. Nothing was given out.")
    hand.go("incidents")
    expect(latest(hand.channel, request_id)).to_contain_text(f"{request_id} · Withdrawn")
    expect(latest(hand.channel, request_id).get_by_role("button", name=re.compile("Approve|Withdraw"))).to_have_count(0)


def test_the_command_alone_opens_the_form_and_another_level_keeps_what_was_typed(sit, demo):
    """With no words the only account is chosen; choosing "write" redraws the rules and loses nothing."""
    hand = sit(hand=Keys)
    hand.say("/breakglass")
    expect(hand.answer(views.ACCOUNT)).to_be_focused()
    hand.write(hand.answer(views.REASON), WHY)
    hand.choose(hand.answer(views.LEVEL), "Read and change orders")
    expect(hand.modal).to_contain_text("Needs 2 of 3 custodians; at most 15 minutes.")
    expect(hand.answer(views.REASON)).to_have_value(WHY)
    hand.page.keyboard.press("Escape")
    expect(hand.modal).to_be_hidden()
    expect(hand.box).to_be_focused()
    hand.swear()


def test_a_custodian_approves_for_less(sit, demo):
    """The shorter time that a custodian chose is what everybody then reads, and what the requester is granted."""
    request_id = asked(demo)
    hand = sit("U0CHEN")
    hand.go("dm")
    hand.press(hand.button(f"Approve {request_id} for a shorter time"))
    expect(hand.modal).to_contain_text(WHY)
    expect(hand.answer(views.DURATION)).to_be_focused()
    hand.write(hand.answer(views.DURATION), "20m")
    hand.send()
    expect(hand.modal.locator(".field-error", has_text=re.compile("."))).to_contain_text("15 minutes")
    hand.write(hand.answer(views.DURATION), "5m")
    hand.send()
    expect(hand.modal).to_contain_text(f"Approved {request_id}: 1 of 1.")
    hand.close()
    hand.go("incidents")
    card = latest(hand.channel, request_id)
    expect(card).to_contain_text("Granted: 5 minutes, less than was asked for")
    # A custodian can still take it away before it was opened.
    hand.press(hand.button(f"Revoke {request_id}", card))
    hand.sure(title=f"Revoke {request_id}?")
    expect(private(hand)).to_contain_text("Revoked.")
    expect(card).to_contain_text("Access has ended")


def test_a_custodian_denies_with_a_reason(sit, demo):
    """The reason is asked for, and stands on the card and in the requester's message."""
    request_id = asked(demo)
    hand = sit("U0CORA", Keys, NARROW)
    hand.go("dm")
    hand.press(hand.button(f"Deny {request_id}"))
    expect(hand.answer(views.REASON)).to_be_focused()
    hand.send()
    expect(hand.modal.locator(".field-error", has_text=re.compile("."))).to_contain_text("complete this required field")
    hand.write(hand.answer(views.REASON), "The replica is enough for this")
    hand.send()
    expect(hand.modal).to_contain_text(f"Denied {request_id}. The requester sees your reason.")
    hand.close()
    hand.become("Rita Reyes")
    hand.go("dm")
    own = latest(hand.channel, request_id)
    expect(own).to_contain_text(f"{request_id} · Denied")
    expect(own).to_contain_text("The replica is enough for this")
    hand.swear()


def test_show_again_gives_a_fresh_credential_and_a_custodian_revokes_it(sit, demo):
    """A lost window means a new credential and the end of the old one; a custodian's Revoke ends the new one, too."""
    request_id = granted(demo)
    rita, carl = sit(), sit("U0CARL")
    rita.go("dm")
    rita.press(rita.button(f"Reveal the credential of {request_id}"))
    lines = []
    for again in (False, True):
        if again:
            rita.press(rita.button(f"Fresh credential for {request_id}"))
            rita.sure(title="Show a fresh credential?")
        expect(rita.modal.locator(".pre").first).to_contain_text("PGPASSWORD=")
        lines.append(rita.copy(rita.modal.locator(".pre").first))
        rita.close()
    assert play._cannot_log_in(lines[0])
    with psycopg.connect(play._conninfo(lines[1]), autocommit=True) as session:
        session.execute("SELECT 1 FROM orders")
        card = latest(carl.channel, request_id)
        carl.press(carl.button(f"Revoke {request_id}", card))
        carl.sure(title=f"Revoke {request_id}?")
        expect(private(carl)).to_contain_text(f"Revoked. {request_id} has ended")
        assert play._is_cut(session)
    assert play._cannot_log_in(lines[1])
    expect(latest(rita.channel, request_id)).to_contain_text("Revoked by @Carl Costa.")


def test_the_home_tab_is_where_everything_waits(sit, demo):
    """A custodian decides from the Home tab and it is redrawn; the requester finds the request and the form there."""
    request_id = asked(demo)
    hand = sit("U0CARL", size=NARROW)
    home = hand.page.locator("#home")
    hand.go("home")
    expect(hand.button(f"Deny {request_id}", home)).to_be_visible()
    expect(home).to_contain_text(WHY)
    fits(hand.page)
    hand.press(hand.button(f"Approve {request_id}", home))
    hand.sure(title=f"Approve {request_id}?")
    expect(hand.modal).to_contain_text(f"Approved {request_id}: 1 of 1.")
    hand.close()
    expect(home).to_contain_text("Waiting for your decision (0)")
    hand.become("Rita Reyes")
    hand.go("home")
    expect(hand.button(f"Reveal the credential of {request_id}", home)).to_be_visible()
    hand.press(hand.button("Ask for access…", home))
    expect(hand.answer(views.ACCOUNT)).to_have_text("Orders database")
    hand.close()
