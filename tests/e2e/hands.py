"""How does somebody use the page with a mouse, and how with nothing but a keyboard?

Rules
-----
* Both hands can do the same things, so a story is told once and lived by either.
* ``Mouse`` clicks what it sees, and types. ``Keys`` comes to everything with Tab and Shift+Tab, as a person does: what
  Tab does not reach, it cannot use. A page that it has used has never seen a pointer, which :meth:`Keys.swear` shows.
* Nothing waits for a time; everything waits for what a person would wait for.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from playwright.sync_api import Locator, Page, expect

if TYPE_CHECKING:
    from pathlib import Path

BOT: Final = "Breakglass"
_MOST_TABS: Final = 150


class Hand:
    """Somebody at the page."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.modal = page.locator("#modal")
        self.confirm = page.get_by_role("alertdialog")
        self.channel = page.locator("#pane-main")
        self.thread = page.locator("#pane-thread")
        self.box = page.locator("#composer-main-text")

    def press(self, target: Locator) -> None:
        """Press a button, a link, an option."""
        raise NotImplementedError

    def choose(self, picker: Locator, name: str) -> None:
        """Choose in a list that opens."""
        raise NotImplementedError

    def tick(self, question: str, answer: str) -> None:
        """Answer a question of the open form that has round buttons."""
        raise NotImplementedError

    def enter(self, field: Locator) -> None:
        """Go into a field."""
        raise NotImplementedError

    def write(self, field: Locator, text: str) -> None:
        """Write into a field in place of what stands there."""
        self.enter(field)
        self.page.keyboard.press("Control+a")
        self.page.keyboard.type(text)

    def pick_date(self, field: Locator, digits: str) -> None:
        """Type a date, month first, as a browser's date field takes it."""
        self.enter(field)
        self.page.keyboard.type(digits)

    # What a person says and where they go.

    def answer(self, block: str) -> Locator:
        """Return the control of a question of the open form."""
        return self.modal.locator(f'[data-block-id="{block}"] [data-action-id]')

    def button(self, name: str | re.Pattern[str], where: Locator | None = None) -> Locator:
        """Return a button by what it is called; a message's by what it says to a screen reader."""
        return (where or self.channel).get_by_role("button", name=name, exact=isinstance(name, str))

    def say(self, text: str) -> None:
        """Write a message or a command and send it."""
        self.write(self.box, text)
        self.page.keyboard.press("Enter")

    def sure(self, *, title: str, no: bool = False) -> None:
        """Answer the question that is asked before a click counts."""
        expect(self.confirm).to_be_visible()
        expect(self.confirm.get_by_role("heading")).to_have_text(title)
        self.press(self.confirm.get_by_test_id("confirm-no" if no else "confirm-yes"))
        expect(self.confirm).to_be_hidden()

    def send(self) -> None:
        """Press the form's own button."""
        self.press(self.modal.get_by_test_id("modal-submit"))

    def close(self) -> None:
        """Press Close or Cancel of the open window."""
        self.press(self.modal.get_by_test_id("modal-close"))
        expect(self.modal).to_be_hidden()

    def _list(self) -> None:
        """Come to the list of conversations: on a phone it is a pane of its own."""
        for back in ("#thread-back", "#to-sidebar"):
            if self.page.locator(back).is_visible():
                self.press(self.page.locator(back))
        expect(self.page.locator("#sidebar")).to_be_visible()

    def go(self, where: str) -> None:
        """Go to a channel ("incidents"), to the bot's direct message ("dm") or to its Home tab ("home")."""
        self._list()
        rows = self.page.locator("#conversations .conversation")
        kinds = {"dm": '[data-kind="dm"]', "home": '[data-kind="app_home"]'}
        row = self.page.locator(f"#conversations .conversation{kinds[where]}") if where in kinds else None
        self.press((row.filter(has_text=BOT) if row else rows.filter(has_text=where)).first)
        expect(self.page.locator("#home" if where == "home" else "#pane-main")).to_be_visible()

    def become(self, name: str) -> None:
        """Act as somebody else."""
        self._list()
        self.choose(self.page.locator("#act-as"), name)
        expect(self.page.locator("#act-as-name")).to_have_text(name)
        expect(self.page.locator("#toasts")).to_contain_text(f"You are now {name}.")

    def copy(self, box: Locator) -> str:
        """Press a box's Copy and return what is in the clipboard."""
        button = box.get_by_test_id("copy")
        self.press(button)
        expect(button).to_have_text("Copied")
        return str(self.page.evaluate("navigator.clipboard.readText()"))

    def download(self, link: Locator, to: Path) -> Path:
        """Take a file."""
        with self.page.expect_download() as download:
            self.press(link)
        path = to / download.value.suggested_filename
        download.value.save_as(path)
        return path


class Mouse(Hand):
    """Clicks."""

    def press(self, target: Locator) -> None:
        """Press a button, a link, an option."""
        target.click()

    def choose(self, picker: Locator, name: str) -> None:
        """Choose in a list that opens."""
        picker.click()
        self.page.locator(".popup").get_by_role("option", name=name).click()

    def tick(self, question: str, answer: str) -> None:
        """Answer a question of the open form that has round buttons."""
        self.answer(question).locator("label").filter(has_text=re.compile(f"^{re.escape(answer)}$")).click()

    def enter(self, field: Locator) -> None:
        """Go into a field."""
        # Its left end: in a date field the first thing to be written stands there.
        field.click(position={"x": 14, "y": 14})


class Keys(Hand):
    """Tab, Shift+Tab, Enter, Space and the arrows."""

    def press(self, target: Locator) -> None:
        """Press a button, a link, an option."""
        self.enter(target)
        self.page.keyboard.press("Enter")

    def choose(self, picker: Locator, name: str) -> None:
        """Choose in a list that opens: the first letters lead to it, the arrows further."""
        self.press(picker)
        popup = self.page.locator(".popup")
        expect(popup).to_be_visible()
        self.page.keyboard.type(name.split(maxsplit=1)[0])
        for _ in range(popup.get_by_role("option").count()):
            if name in popup.locator(".current").inner_text():
                break
            self.page.keyboard.press("ArrowDown")
        expect(popup.locator(".current")).to_contain_text(name)
        self.page.keyboard.press("Enter")
        expect(popup).to_have_count(0)

    def tick(self, question: str, answer: str) -> None:
        """Answer a question of the open form that has round buttons."""
        buttons = self.answer(question).get_by_role("radio")
        self.enter(buttons.first)
        self.page.keyboard.press("Space")
        labels = self.answer(question).locator("label").all_inner_texts()
        for _ in range(labels.index(answer)):
            self.page.keyboard.press("ArrowDown")
        expect(buttons.nth(labels.index(answer))).to_be_checked()

    def enter(self, field: Locator) -> None:
        """Tab to something, the shorter way."""
        expect(field).to_be_visible()
        for _ in range(_MOST_TABS):
            way = field.evaluate(
                """(n) => n === document.activeElement ? "" :
                     document.activeElement.compareDocumentPosition(n) & Node.DOCUMENT_POSITION_PRECEDING
                       ? "Shift+Tab" : "Tab" """
            )
            if not way:
                return
            self.page.keyboard.press(way)
        raise AssertionError(f"Tab does not come to {field}")

    def swear(self) -> None:
        """Show that no pointer has touched the page since :data:`WATCH` was put into it."""
        assert self.page.evaluate("window.touched") == 0


# Put into a page before its own script: counts what only a mouse or a finger does.
WATCH: Final = """
window.touched = 0;
for (const kind of ["pointerdown", "mousedown", "touchstart"])
  addEventListener(kind, () => { window.touched += 1; }, true);
"""
