"""Can a person do in the sandbox page what they do in Slack, by mouse and by keyboard, wide and narrow?

A real Chromium looks at a real sandbox in which a small real Bolt app answers. What the app receives is asserted as
well as what the person sees: a page that shows the right thing and sends the wrong one would hide bugs of the bot.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from slack_bolt import App
from slack_bolt.adapter.socket_mode import SocketModeHandler
from slack_sdk import WebClient

from bot.sandbox.driver import Driver
from bot.sandbox.server import Sandbox
from bot.sandbox.workspace import Channel, Group, Person, WorkspaceSeed

BOT_TOKEN, APP_TOKEN = "xoxb-page-tests", "xapp-page-tests"
RITA, CARL, MAYA, SVEN, BOT = "U0RITA", "U0CARL", "U0MAYA", "U0SVEN", "U0BOTUSER"
INCIDENTS, GENERAL = "C0INCIDENTS", "C0GENERAL"
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
PSQL = "PGPASSWORD='Zq8-vT2mKx' psql 'host=127.0.0.1 port=54321 dbname=orders user=v-bg-7kq2-orders-read-AbCdEfGhIjKl'"

MANIFEST = {
    "display_information": {"name": "breakglass"},
    "features": {
        "app_home": {"home_tab_enabled": True, "messages_tab_enabled": True, "messages_tab_read_only_enabled": False},
        "bot_user": {"display_name": "breakglass"},
        "shortcuts": [
            {"name": "What is this?", "type": "message", "callback_id": "explain", "description": "Explains a message"}
        ],
        "slash_commands": [
            {"command": "/breakglass", "description": "Ask for emergency access", "usage_hint": "[account] [level]"},
            {"command": "/status", "description": "What is open", "usage_hint": ""},
        ],
    },
    "oauth_config": {
        "scopes": {
            "bot": [
                "commands", "chat:write", "users:read", "usergroups:read", "channels:read", "channels:history",
                "groups:read", "groups:history", "im:history", "im:write", "files:write",
            ],
        },
    },
    "settings": {
        "event_subscriptions": {"bot_events": ["app_home_opened"]},
        "interactivity": {"is_enabled": True},
        "socket_mode_enabled": True,
    },
}  # fmt: skip

SEED = WorkspaceSeed(
    team_id="T0NORTH",
    team_name="Northwind",
    people=(
        Person(RITA, "rita", "Rita Okafor", "On-call engineer"),
        Person(CARL, "carl", "Carl Lindqvist", "Custodian, payments"),
        Person(MAYA, "maya", "Maya Chen", "Custodian, data"),
        Person(SVEN, "sven", "Sven Ortiz", "Security reviewer"),
    ),
    channels=(
        Channel(INCIDENTS, "incidents", "Every break-glass event, in the open", (RITA, CARL, MAYA, SVEN, BOT)),
        Channel(GENERAL, "general", "", (RITA, CARL, BOT)),
    ),
    groups=(Group("S0LEADERS", "leadership", "Leadership", (SVEN,)),),
)


def plain(text: str) -> dict[str, Any]:
    """A plain_text object."""
    return {"type": "plain_text", "text": text}


def option(value: str, about: str | None = None) -> dict[str, Any]:
    """A select's option whose label is its value."""
    return {"text": plain(value), "value": value, **({"description": plain(about)} if about else {})}


def question(name: str, element: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An input block whose block id, action id and label are one word."""
    return {
        "type": "input",
        "block_id": name,
        "label": plain(name.capitalize()),
        "element": {"action_id": name, **element},
        **more,
    }


def button(name: str, text: str, **more: Any) -> dict[str, Any]:
    """A button whose value is its name."""
    return {"type": "button", "action_id": name, "text": plain(text), "value": f"value of {name}", **more}


SURE = {"title": plain("Approve BG-7KQ2?"), "text": plain("Rita may read orders-db for 15 minutes."),
        "confirm": plain("Approve"), "deny": plain("Not yet")}  # fmt: skip


def card(state: str = "pending") -> list[dict[str, Any]]:
    """A message with most of Block Kit in it."""
    return [
        {"type": "header", "block_id": "title", "text": plain(":large_yellow_circle: BG-7KQ2 · orders-db")},
        {
            "type": "section",
            "block_id": "facts",
            "fields": [
                {"type": "mrkdwn", "text": f"*Requester*\n<@{RITA}>"},
                {"type": "mrkdwn", "text": f"*State*\n{state}"},
            ],
        },
        {
            "type": "section",
            "block_id": "rule",
            "text": {"type": "mrkdwn", "text": "*Threshold* T2: _customer-facing outage_"},
            "accessory": {"type": "overflow", "action_id": "more", "options": [option("escalate"), option("mute")]},
        },
        {
            "type": "rich_text",
            "block_id": "words",
            "elements": [
                {"type": "rich_text_quote", "elements": [{"type": "text", "text": "Checkout is down <!channel>"}]},
                {
                    "type": "rich_text_list",
                    "style": "bullet",
                    "elements": [
                        {"type": "rich_text_section", "elements": [{"type": "text", "text": "restarted the pods"}]},
                        {"type": "rich_text_section", "elements": [{"type": "user", "user_id": CARL}]},
                    ],
                },
                {"type": "rich_text_preformatted", "elements": [{"type": "text", "text": PSQL}]},
            ],
        },
        {"type": "divider", "block_id": "line"},
        {
            "type": "actions",
            "block_id": "buttons",
            "elements": [
                button("approve", "Approve", style="primary", confirm=SURE),
                button("deny", "Deny", style="danger"),
                button("whisper", "Ask privately"),
                button("slow", "Slow"),
                button("form", "Form"),
                {"type": "static_select", "action_id": "shorten", "placeholder": plain("Shorten to"),
                 "options": [option("5 min"), option("10 min"), option("15 min")]},
            ],
        },
        {"type": "context", "block_id": "small", "elements": [{"type": "mrkdwn", "text": "Policy `9f3a`"}]},
    ]  # fmt: skip


def form(account: str | None = None) -> dict[str, Any]:
    """A modal with every kind of input; what an account needs stands below it once it is chosen."""
    return {
        "type": "modal",
        "callback_id": "form",
        "title": plain("Break the glass"),
        "submit": plain("Send request"),
        "close": plain("Cancel"),
        "blocks": [
            question("account", {"type": "static_select", "placeholder": plain("Which account?"),
                                 "options": [option("orders-db", "Orders"), option("billing-db", "Billing")]},
                     dispatch_action=True),
            *([{"type": "section", "block_id": "verdict", "text": plain(f"{account} needs 2 of 4 custodians")}]
              if account else []),
            question("level", {"type": "radio_buttons", "options": [option("read"), option("write")],
                               "initial_option": option("read")}),
            question("threshold", {"type": "checkboxes", "options": [option("T1", "outage"), option("T2", "loss")]}),
            question("reason", {"type": "plain_text_input", "multiline": True, "max_length": 300},
                     hint=plain("People read this in the incident channel.")),
            question("incident", {"type": "plain_text_input"}, optional=True),
            question("minutes", {"type": "number_input", "is_decimal_allowed": False, "min_value": "1",
                                 "max_value": "60", "initial_value": "15"}),
            question("reviewer", {"type": "users_select"}, optional=True),
            question("tell", {"type": "multi_users_select"}, optional=True),
            question("day", {"type": "datepicker"}, optional=True),
            {"type": "actions", "block_id": "help", "elements": [button("push", "Show the rules")]},
        ],
    }  # fmt: skip


RULES = {
    "type": "modal",
    "callback_id": "rules",
    "title": plain("The rules"),
    "submit": plain("Take note"),
    "close": plain("Back"),
    "blocks": [question("note", {"type": "plain_text_input"}, optional=True)],
}


@dataclass
class Desk:
    """The running sandbox with its app, and what the app has received."""

    url: str
    client: WebClient
    received: list[tuple[str, Any]] = field(default_factory=list)

    def last(self, name: str) -> Any:
        """What the app received last under this name."""
        return [what for key, what in self.received if key == name][-1]

    def count(self, name: str) -> int:
        """How often the app received it."""
        return sum(key == name for key, _ in self.received)

    def say(self, who: str, text: str, channel: str = INCIDENTS) -> str:
        """Let somebody else than the person at the page write; returns the message's ts."""
        return Driver(self.url).as_(who).say(text, channel)

    def show_card(self, text: str = "BG-7KQ2 is pending", **more: Any) -> str:
        """Let the app post a card; returns its ts."""
        return str(self.client.chat_postMessage(channel=INCIDENTS, text=text, blocks=card(), **more)["ts"])


def small_app(desk: Desk) -> App:
    """The app under the page: it answers everything that `card` and `form` offer."""
    app = App(client=desk.client, process_before_response=False)
    note = desk.received.append

    @app.command("/breakglass")
    def command(ack: Any, body: Any, client: WebClient) -> None:
        note(("command", body["text"]))
        if body["text"].startswith("say"):
            ack(text=f"You said _{body['text'][4:]}_")
            return
        ack()
        client.views_open(trigger_id=body["trigger_id"], view=form())

    @app.action(re.compile("approve|deny|shorten|more"))
    def clicked(ack: Any, body: Any, action: Any, client: WebClient) -> None:
        ack()
        note((action["action_id"], action))
        client.chat_update(
            channel=body["channel"]["id"], ts=body["message"]["ts"], text="changed", blocks=card(action["action_id"])
        )

    @app.action("whisper")
    def whisper(ack: Any, body: Any, client: WebClient) -> None:
        ack()
        client.chat_postEphemeral(channel=body["channel"]["id"], user=body["user"]["id"], text="Between *us* two")

    @app.action("slow")
    def slow(action: Any) -> None:
        note(("slow", action))

    @app.action("form")
    def open_form(ack: Any, body: Any, client: WebClient) -> None:
        ack()
        client.views_open(trigger_id=body["trigger_id"], view=form())

    @app.action("account")
    def account(ack: Any, body: Any, action: Any, client: WebClient) -> None:
        ack()
        note(("account", action))
        client.views_update(view_id=body["view"]["id"], view=form(action["selected_option"]["value"]))

    @app.action("push")
    def push(ack: Any, body: Any, client: WebClient) -> None:
        ack()
        client.views_push(trigger_id=body["trigger_id"], view=RULES)

    @app.view("rules")
    def rules(ack: Any, view: Any) -> None:
        note(("rules", view["state"]["values"]))
        ack()

    @app.view("form")
    def submitted(ack: Any, view: Any) -> None:
        values = view["state"]["values"]
        note(("form", values))
        if len(values["reason"]["reason"]["value"]) < 10:
            ack(response_action="errors", errors={"reason": "Say it in a sentence."})
        else:
            ack()

    @app.shortcut("explain")
    def explain(ack: Any, body: Any) -> None:
        ack()
        note(("explain", body["message"]["text"]))

    @app.event("app_home_opened")
    def home(event: Any, client: WebClient) -> None:
        blocks = [
            {"type": "header", "block_id": "hello", "text": plain("Nothing is open")},
            {"type": "actions", "block_id": "go", "elements": [button("greet", "Greet")]},
        ]
        client.views_publish(user_id=event["user"], view={"type": "home", "blocks": blocks})

    @app.action("greet")
    def greet(ack: Any, body: Any, client: WebClient) -> None:
        ack()
        note(("greet", body["user"]["id"]))
        blocks = [{"type": "header", "block_id": "hello", "text": plain("Hello to you")}]
        client.views_publish(user_id=body["user"]["id"], view={"type": "home", "blocks": blocks})

    return app


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


@pytest.fixture(scope="module")
def leaving() -> Iterator[Executor]:
    """Where Socket Mode clients say goodbye: the SDK's takes one to three seconds, for which no test has to wait."""
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def desk(leaving: Executor) -> Iterator[Desk]:
    """A fresh workspace with the small app connected to it."""
    with Sandbox(SEED, MANIFEST, bot_token=BOT_TOKEN, app_token=APP_TOKEN, port=0, rate_limits=0) as sandbox:
        base = f"{sandbox.url}/api/"
        running = Desk(sandbox.url, WebClient(token=BOT_TOKEN, base_url=base))
        app = small_app(running)
        handler = SocketModeHandler(app, APP_TOKEN, web_client=WebClient(token=APP_TOKEN, base_url=base))
        handler.connect()
        yield running
        handler.client.auto_reconnect_enabled = False
        leaving.submit(handler.close)


Open = Callable[..., Page]


@pytest.fixture
def look(browser: Browser, desk: Desk) -> Iterator[Open]:
    """Open the page as a person. In the end: no script error, and nothing was asked of another host."""
    contexts, troubles = [], []

    def opened(who: str = RITA, size: dict[str, int] = WIDE, query: str = "", scheme: str = "light") -> Page:
        context = browser.new_context(
            viewport=size, color_scheme=scheme, permissions=["clipboard-read", "clipboard-write"]
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(8000)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: troubles.append(request.url) if foreign(request.url) else None)
        page.goto(f"{desk.url}/?as={who}&channel={INCIDENTS}{query}")
        page.wait_for_selector("body[data-ready]")
        return page

    def foreign(url: str) -> bool:
        return urlsplit(url).scheme in {"http", "https", "ws"} and urlsplit(url).netloc != urlsplit(desk.url).netloc

    yield opened
    for context in contexts:
        context.close()
    assert troubles == []


def box(page: Page) -> Any:
    """The channel's message box."""
    return page.locator("#composer-main-text")


def message(page: Page, ts: str, pane: str = "main") -> Any:
    """A message in the channel or the thread."""
    return page.locator(f'#pane-{pane} article[data-ts="{ts}"]')


def answer(page: Page, block: str) -> Any:
    """The control of an input block in the open modal."""
    return page.locator(f'#modal [data-block-id="{block}"] [data-action-id]')


def open_form(page: Page) -> None:
    """Type the command and wait for the modal."""
    box(page).fill("/breakglass orders-db")
    box(page).press("Enter")
    expect(page.get_by_role("dialog", name="Break the glass")).to_be_visible()


def pick(page: Page, block: str, *names: str) -> None:
    """Choose in a select, or several in a select of several."""
    answer(page, block).click()
    for name in names:
        page.get_by_role("option", name=name).click()
    if page.locator(".popup").count():
        page.keyboard.press("Escape")


# --- What is always true ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["1280", "390"])
def test_it_says_at_every_moment_that_it_is_not_slack(look: Open, desk: Desk, size: dict[str, int]) -> None:
    """The banner can be seen at both widths, and no modal or confirm dialog lies over it."""
    page = look(size=size)
    ts = desk.show_card()
    banner = page.locator("#banner").bounding_box()
    assert banner is not None

    def lies_below(dialog: str) -> bool:
        place = page.locator(dialog).bounding_box()
        assert place is not None
        return place["y"] >= banner["y"] + banner["height"]

    expect(page.locator("#banner")).to_have_text("Local sandbox — not Slack. Nothing leaves this machine.")
    open_form(page)
    assert lies_below("#modal")
    page.keyboard.press("Escape")
    message(page, ts).get_by_role("button", name="Approve").click()
    assert lies_below("#confirm")


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["1280", "390"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_screen(look: Open, desk: Desk, size: dict[str, int], scheme: str) -> None:
    """Card, thread, form and a long psql line fit the width, light and dark; the line wraps."""
    page = look(size=size, scheme=scheme)
    ts = desk.show_card()
    desk.client.chat_postMessage(channel=INCIDENTS, thread_ts=ts, text=f"```{PSQL}```")

    def fits() -> None:
        wide = page.evaluate(
            """() => [...document.querySelectorAll('*')].filter((n) => {
                 const b = n.getBoundingClientRect();
                 return b.width && b.right > innerWidth + 1 && !n.closest('.visually-hidden');
               }).map((n) => n.outerHTML.slice(0, 120))"""
        )
        assert wide == []
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")

    expect(message(page, ts).locator("pre")).to_have_text(PSQL)
    fits()
    message(page, ts).get_by_test_id("replies").click()
    expect(page.locator("#pane-thread pre")).to_have_count(2)
    fits()
    page.locator("#thread-close:visible, #thread-back:visible").click()
    open_form(page)
    fits()


# --- Text is text -------------------------------------------------------------------------------------------------

ATTACKS = [
    "<img src=x onerror=window.hacked=1>",
    "<script>window.hacked=1</script>",
    "<javascript:window.hacked=1|Vault login>",
    "<data:text/html,<script>window.hacked=1</script>|click>",
    "&lt;img src=x onerror=window.hacked=1&gt;",
    "*<svg onload=window.hacked=1>* `<b>x</b>` ```<i>y</i>```",
    '<https://example.com/"onmouseover="window.hacked=1|ok>',
    "<!date^1700000000^{constructor} {__proto__}^javascript:window.hacked=1|x>",
]


def test_a_message_cannot_run_code_or_draw_markup(look: Open, desk: Desk) -> None:
    """Markup and script addresses in texts, blocks and thread show as text; no element comes of them."""
    page = look()
    for attack in ATTACKS:
        desk.client.chat_postMessage(channel=INCIDENTS, text=attack)
    desk.client.chat_postMessage(channel=INCIDENTS, text="card", blocks=[
        {"type": "section", "text": {"type": "mrkdwn", "text": ATTACKS[0] + ATTACKS[2]}},
        {"type": "section", "text": plain(ATTACKS[1])},
        {"type": "header", "text": plain(ATTACKS[0])},
        {"type": "rich_text", "elements": [{"type": "rich_text_section", "elements": [
            {"type": "text", "text": ATTACKS[1]}, {"type": "link", "url": "javascript:window.hacked=1", "text": "go"}]}
        ]},
        {"type": "context", "elements": [plain(ATTACKS[0])]},
    ])  # fmt: skip
    desk.client.chat_postMessage(channel=INCIDENTS, text="end of the attacks")
    messages = page.locator("#pane-main .list")
    expect(messages).to_contain_text("end of the attacks")
    expect(messages).to_contain_text("<img src=x onerror=window.hacked=1>")
    expect(messages).to_contain_text("<javascript:window.hacked=1|Vault login>")
    found = messages.evaluate(
        "(n) => [...n.querySelectorAll('img,script,iframe,b,i,[onerror],[onload],[onmouseover]')].length"
    )
    assert found == 0
    links = messages.evaluate("(n) => [...n.querySelectorAll('a')].map((a) => a.protocol)")
    assert set(links) <= {"https:"}
    assert page.evaluate("window.hacked") is None


def test_what_a_person_types_is_sent_as_slack_sends_it(look: Open, desk: Desk) -> None:
    """A typed <!channel> is escaped by the client and pings nobody; the reader sees what was typed."""
    page = look()
    box(page).fill("<!channel> & <@U0CARL>")
    box(page).press("Enter")
    expect(page.locator("#pane-main article").last).to_contain_text("<!channel> & <@U0CARL>")
    expect(page.locator("#pane-main article").last.locator(".mention")).to_have_count(0)
    history = desk.client.conversations_history(channel=INCIDENTS)["messages"]
    assert history[0]["text"] == "&lt;!channel&gt; &amp; &lt;@U0CARL&gt;"


def test_mrkdwn_reads_as_in_slack(look: Open, desk: Desk) -> None:
    """Bold, italic, strike, code, quote, link, mention, group, channel and date become what Slack makes of them."""
    page = look()
    text = (
        f"*bold* _it_ ~old~ `code *no*` 2*3*4 snake_case_word <https://example.com/a?b=1&amp;c=2|docs> "
        f"<@{CARL}> <!subteam^S0LEADERS> <#{GENERAL}> <!here> <!date^1700000000^{{date_num}}|then> :white_check_mark: "
        ":nosuch:\n"
        "> quoted *q*\nafter"
    )
    ts = desk.client.chat_postMessage(channel=INCIDENTS, text=text)["ts"]
    shown = message(page, ts).locator(".text")
    expect(shown.locator("strong")).to_have_text(["bold", "q"])
    expect(shown.locator("em")).to_have_text(["it"])
    expect(shown.locator("s")).to_have_text(["old"])
    expect(shown.locator("code")).to_have_text(["code *no*"])
    expect(shown.locator("blockquote")).to_have_text("quoted q")
    expect(shown.locator("a")).to_have_attribute("href", "https://example.com/a?b=1&c=2")
    expect(shown.locator(".mention")).to_have_text(["@Carl Lindqvist", "@leadership", "#general", "@here"])
    expect(shown.locator("time")).to_have_text("2023-11-14")
    expect(shown.get_by_role("img", name="white check mark")).to_be_visible()
    expect(shown).to_contain_text("2*3*4 snake_case_word")
    expect(shown).to_contain_text(":nosuch:")
    shown.get_by_role("button", name="#general").click()
    expect(page.get_by_role("heading", name="# general")).to_be_visible()


# --- Messages -----------------------------------------------------------------------------------------------------


def test_messages_come_without_reload_and_do_not_move_who_reads_further_up(look: Open, desk: Desk) -> None:
    """At the end one follows; further up nothing moves, and a button leads to the new messages."""
    for n in range(60):
        desk.say(CARL, f"line {n}")
    page = look()
    desk.say(CARL, "and follow")
    expect(page.locator("#pane-main article").last).to_be_in_viewport()
    expect(page.locator("#pane-main article").last).to_contain_text("and follow")
    scroller = page.locator("#pane-main .scroller")
    scroller.evaluate("(n) => { n.scrollTop = 300; }")
    before = page.locator("#pane-main article").nth(12).bounding_box()
    desk.say(MAYA, "something new")
    expect(page.get_by_role("button", name="New messages")).to_be_visible()
    assert page.locator("#pane-main article").nth(12).bounding_box() == before
    page.get_by_role("button", name="New messages").click()
    expect(page.locator("#pane-main article").last).to_be_in_viewport()


def test_a_redrawn_card_keeps_the_focus(look: Open, desk: Desk) -> None:
    """When somebody else changes the card, the button that has the focus still has it, and works."""
    page = look()
    ts = desk.show_card()
    deny = message(page, ts).get_by_role("button", name="Deny")
    deny.focus()
    blocks = card("approved by Maya")
    blocks[5]["elements"].insert(0, button("extra", "Extra"))
    desk.client.chat_update(channel=INCIDENTS, ts=ts, text="changed", blocks=blocks)
    expect(message(page, ts)).to_contain_text("approved by Maya")
    expect(deny).to_be_focused()
    expect(message(page, ts)).to_contain_text("(edited)")
    page.keyboard.press("Enter")
    expect(message(page, ts).locator('[data-block-id="facts"]')).to_contain_text("deny")
    assert desk.last("deny")["value"] == "value of deny"


def test_unread_channels_are_bold_and_a_mention_has_a_badge(look: Open, desk: Desk) -> None:
    """Somebody else's message makes a channel bold, a mention counts; opening it shows New and reads it."""
    page = look()
    row = page.locator(f'.conversation[data-channel="{GENERAL}"]')
    expect(row).not_to_have_class(re.compile("unread"))
    desk.say(CARL, "good morning", GENERAL)
    expect(row).to_have_class(re.compile("unread"))
    expect(row.locator(".badge")).to_have_count(0)
    desk.client.chat_postMessage(channel=GENERAL, text=f"<@{RITA}> look")
    expect(row.locator(".badge")).to_have_text("1")
    row.click()
    expect(page.locator("#pane-main .new-line")).to_be_visible()
    assert page.locator("#pane-main .new-line + article").inner_text().endswith("good morning")
    expect(row).not_to_have_class(re.compile("unread"))
    expect(row.locator(".badge")).to_have_count(0)


def test_an_ephemeral_is_for_one_and_gone_after_a_reload(look: Open, desk: Desk) -> None:
    """“Only visible to you” means it: the other page never has it, and after a reload nobody has."""
    rita, carl = look(RITA), look(CARL)
    ts = desk.show_card()
    message(rita, ts).get_by_role("button", name="Ask privately").click()
    expect(rita.locator("article.ephemeral")).to_contain_text("Only visible to you")
    expect(rita.locator("article.ephemeral")).to_contain_text("Between us two")
    desk.say(MAYA, "afterwards")
    expect(carl.locator("#pane-main")).to_contain_text("afterwards")
    expect(carl.locator("article.ephemeral")).to_have_count(0)
    rita.reload()
    expect(rita.locator("#pane-main")).to_contain_text("afterwards")
    expect(rita.locator("article.ephemeral")).to_have_count(0)


def test_a_thread_opens_beside_and_is_live(look: Open, desk: Desk) -> None:
    """Replies are counted at the parent and shown at the side as they come; commands are refused in it, as in Slack."""
    page = look()
    ts = desk.show_card()
    desk.client.chat_postMessage(channel=INCIDENTS, thread_ts=ts, text="step one")
    expect(message(page, ts).get_by_test_id("replies")).to_contain_text("1 reply")
    message(page, ts).get_by_test_id("replies").click()
    thread = page.locator("#pane-thread")
    expect(thread).to_contain_text("step one")
    expect(page.locator("#composer-thread-text")).to_be_focused()
    desk.client.chat_postMessage(channel=INCIDENTS, thread_ts=ts, text="step two")
    expect(thread).to_contain_text("step two")
    page.keyboard.type("on it")
    page.keyboard.press("Enter")
    expect(thread.locator("article").last).to_contain_text("on it")
    expect(message(page, ts).get_by_test_id("replies")).to_contain_text("3 replies")
    page.keyboard.type("/breakglass help")
    page.keyboard.press("Enter")
    expect(thread).to_contain_text("/breakglass is not supported in threads. Sorry!")
    page.keyboard.press("Escape")
    expect(page.locator("#thread")).to_be_hidden()
    expect(message(page, ts).get_by_test_id("replies")).to_be_focused()


def test_a_file_is_a_link_with_its_size(look: Open, desk: Desk) -> None:
    """A file shows title and size, and its link gives the bytes to who may see the channel."""
    page = look()
    desk.client.files_upload_v2(channel=INCIDENTS, filename="BG-7KQ2.jsonl", title="Evidence", content="x" * 2048)
    link = page.locator("#pane-main a.file")
    expect(link).to_contain_text("Evidence")
    expect(link).to_contain_text("2.0 kB")
    with page.expect_download() as download:
        link.click()
    assert download.value.path().read_text() == "x" * 2048


def test_a_preformatted_line_is_copied_whole(look: Open, desk: Desk) -> None:
    """Copy puts the psql line into the clipboard exactly, however it is wrapped on the screen."""
    page = look(size=NARROW)
    ts = desk.show_card()
    message(page, ts).get_by_test_id("copy").click()
    expect(message(page, ts).get_by_test_id("copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == PSQL


# --- Acting -------------------------------------------------------------------------------------------------------


def test_a_confirm_dialog_comes_first(look: Open, desk: Desk) -> None:
    """No sends nothing, Escape sends nothing, yes sends the click once; the focus comes back to the button."""
    page = look()
    ts = desk.show_card()
    approve = message(page, ts).get_by_role("button", name="Approve")
    approve.click()
    dialog = page.get_by_role("alertdialog", name="Approve BG-7KQ2?")
    expect(dialog).to_contain_text("Rita may read orders-db for 15 minutes.")
    dialog.get_by_role("button", name="Not yet").click()
    expect(dialog).to_be_hidden()
    expect(approve).to_be_focused()
    approve.press("Enter")
    expect(dialog.get_by_role("button", name="Approve")).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert desk.count("approve") == 0
    approve.press("Enter")
    page.keyboard.press("Enter")
    expect(message(page, ts).locator('[data-block-id="facts"]')).to_contain_text("approve")
    assert desk.count("approve") == 1
    expect(approve).to_be_focused()


def test_selects_and_overflow_send_the_chosen_option(look: Open, desk: Desk) -> None:
    """A select in a message and an overflow menu work by arrow keys and send what was chosen, once."""
    page = look()
    ts = desk.show_card()
    message(page, ts).locator('[data-action-id="shorten"]').focus()
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(message(page, ts).locator('[data-block-id="facts"]')).to_contain_text("shorten")
    assert desk.last("shorten")["selected_option"]["value"] == "10 min"
    assert desk.count("shorten") == 1
    message(page, ts).get_by_role("button", name="More actions").click()
    page.get_by_role("menuitem", name="mute").click()
    expect(message(page, ts).locator('[data-block-id="facts"]')).to_contain_text("more")
    assert desk.last("more")["selected_option"]["value"] == "mute"


def test_a_click_that_is_not_acknowledged_shows_a_warning(look: Open, desk: Desk) -> None:
    """While it waits the button turns; after three seconds without an acknowledgement it carries a warning sign."""
    page = look()
    ts = desk.show_card()
    slow = message(page, ts).get_by_role("button", name="Slow")
    slow.click()
    expect(slow).to_have_attribute("aria-busy", "true")
    expect(slow.get_by_test_id("failed")).to_contain_text("did not respond in time")
    expect(slow).not_to_have_attribute("aria-busy", "true")
    assert desk.count("slow") == 1


def test_app_home_is_drawn_and_acts(look: Open, desk: Desk) -> None:
    """Opening the app's Home asks the app for it; a button on it works and redraws it."""
    page = look()
    page.get_by_role("button", name="breakglass — Home").click()
    expect(page.get_by_role("heading", name="Nothing is open")).to_be_visible()
    page.locator("#home").get_by_role("button", name="Greet").click()
    expect(page.get_by_role("heading", name="Hello to you")).to_be_visible()
    assert desk.last("greet") == RITA
    page.get_by_role("tab", name="Messages").click()
    expect(page.locator("#pane-main")).to_be_visible()


# --- Composer -----------------------------------------------------------------------------------------------------


def test_slash_shows_the_commands(look: Open, desk: Desk) -> None:
    """A slash lists commands with their hints; arrows choose, Enter completes, the hint stays, Enter sends."""
    page = look()
    box(page).focus()
    page.keyboard.type("/")
    offers = page.get_by_role("listbox", name="Commands").get_by_role("option")
    expect(offers).to_have_count(2)
    expect(offers.first).to_contain_text("[account] [level]")
    page.keyboard.press("ArrowDown")
    expect(offers.nth(1)).to_have_attribute("aria-selected", "true")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    expect(box(page)).to_have_value("/breakglass ")
    expect(page.locator("#pane-main").get_by_test_id("usage-hint")).to_contain_text("[account] [level]")
    page.keyboard.type("say hello")
    page.keyboard.press("Enter")
    expect(page.locator("article.ephemeral")).to_contain_text("You said hello")
    assert desk.last("command") == "say hello"
    expect(box(page)).to_have_value("")


def test_an_unknown_command_is_refused_and_not_lost(look: Open, desk: Desk) -> None:
    """Slackbot says privately that there is no such command, and the words are still in the box."""
    page = look()
    box(page).fill("/nosuch thing")
    box(page).press("Enter")
    expect(page.locator("article.ephemeral")).to_contain_text("/nosuch")
    expect(box(page)).to_have_value("/nosuch thing")


# --- Modals -------------------------------------------------------------------------------------------------------


def test_a_form_sends_every_kind_of_answer(look: Open, desk: Desk) -> None:
    """What is chosen and typed in each kind of input arrives in view.state.values as Slack would write it."""
    page = look()
    open_form(page)
    pick(page, "account", "orders-db")
    expect(page.locator("#modal")).to_contain_text("orders-db needs 2 of 4 custodians")
    page.get_by_role("radio", name="write").check()
    page.get_by_role("checkbox", name="T1").check()
    page.get_by_role("checkbox", name="T2").check()
    page.get_by_label("Reason").fill("Checkout is down\nsince 02:10")
    page.get_by_label("Minutes").fill("20")
    pick(page, "reviewer", "Sven Ortiz")
    pick(page, "tell", "Carl Lindqvist", "Maya Chen")
    page.get_by_label("Day").fill("2031-02-03")
    page.get_by_role("button", name="Send request").click()
    expect(page.locator("#modal")).to_be_hidden()
    values = desk.last("form")
    assert values["account"]["account"]["selected_option"]["value"] == "orders-db"
    assert values["level"]["level"]["selected_option"]["value"] == "write"
    assert [o["value"] for o in values["threshold"]["threshold"]["selected_options"]] == ["T1", "T2"]
    assert values["reason"]["reason"] == {"type": "plain_text_input", "value": "Checkout is down\nsince 02:10"}
    assert values["incident"]["incident"]["value"] is None
    assert values["minutes"]["minutes"]["value"] == "20"
    assert values["reviewer"]["reviewer"]["selected_user"] == SVEN
    assert values["tell"]["tell"]["selected_users"] == [CARL, MAYA]
    assert values["day"]["day"]["selected_date"] == "2031-02-03"


def test_errors_stand_under_their_fields(look: Open, desk: Desk) -> None:
    """Empty required fields are refused before the app hears of it; the app's own error stands under its field too."""
    page = look()
    open_form(page)
    expect(page.locator('#modal [data-block-id="incident"] .label')).to_have_text("Incident (optional)")
    page.get_by_role("button", name="Send request").click()
    for block in ("account", "threshold", "reason"):
        expect(page.locator(f'#modal [data-block-id="{block}"] .field-error')).to_have_text(re.compile("required"))
    assert desk.count("form") == 0
    expect(answer(page, "account")).to_be_focused()
    pick(page, "account", "orders-db")
    expect(page.locator('#modal [data-block-id="account"] .field-error')).to_be_hidden()
    page.get_by_role("checkbox", name="T1").check()
    page.get_by_label("Reason").fill("short")
    page.get_by_role("button", name="Send request").click()
    reason = page.locator('#modal [data-block-id="reason"]')
    expect(reason.locator(".field-error")).to_have_text("Say it in a sentence.")
    expect(page.get_by_label("Reason")).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_label("Reason")).to_be_focused()
    page.keyboard.type("er no more")
    expect(reason.locator(".field-error")).to_be_hidden()


def test_an_update_keeps_what_was_typed(look: Open, desk: Desk) -> None:
    """views.update draws new blocks and leaves words, ticks and the focus where block and action ids still stand."""
    page = look()
    open_form(page)
    page.get_by_label("Reason").fill("half a sent")
    page.get_by_role("checkbox", name="T2").check()
    pick(page, "account", "billing-db")
    page.get_by_label("Reason").focus()
    expect(page.locator("#modal")).to_contain_text("billing-db needs 2 of 4 custodians")
    expect(page.get_by_label("Reason")).to_have_value("half a sent")
    expect(page.get_by_label("Reason")).to_be_focused()
    expect(page.get_by_role("checkbox", name="T2")).to_be_checked()
    expect(answer(page, "account")).to_contain_text("billing-db")


def test_a_pushed_modal_lies_on_top_and_escape_closes_one(look: Open, desk: Desk) -> None:
    """Escape closes the top one only; below it everything typed is still there; in the end the opener has the focus."""
    page = look()
    ts = desk.show_card()
    opener = message(page, ts).get_by_role("button", name="Form")
    opener.click()
    page.get_by_label("Reason").fill("kept below")
    page.get_by_role("button", name="Show the rules").click()
    expect(page.get_by_role("dialog", name="The rules")).to_be_visible()
    page.get_by_label("Note").fill("noted")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="Break the glass")).to_be_visible()
    expect(page.get_by_label("Reason")).to_have_value("kept below")
    page.get_by_role("button", name="Show the rules").click()
    page.get_by_label("Note").fill("noted")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Break the glass")).to_be_visible()
    assert desk.last("rules")["note"]["note"]["value"] == "noted"
    page.keyboard.press("Escape")
    expect(page.locator("#modal")).to_be_hidden()
    expect(opener).to_be_focused()


def test_the_focus_stays_in_the_modal(look: Open, desk: Desk) -> None:
    """Tab goes round inside the modal, forwards and backwards, and never to the page behind it."""
    page = look()
    open_form(page)
    expect(answer(page, "account")).to_be_focused()
    for key in ("Tab", "Shift+Tab"):
        for _ in range(25):
            page.keyboard.press(key)
            assert page.evaluate("document.querySelector('#modal').contains(document.activeElement)")
            assert page.evaluate("document.activeElement.matches(':focus-visible, [type=date]')")


def test_reload_shows_the_open_modal_again(look: Open, desk: Desk) -> None:
    """What is open on the server is on the screen: a reload does not lose a modal."""
    page = look()
    open_form(page)
    page.reload()
    expect(page.get_by_role("dialog", name="Break the glass")).to_be_visible()


# --- People, keyboard, phone, trouble -----------------------------------------------------------------------------


def test_act_as_another_person_by_keyboard(look: Open, desk: Desk) -> None:
    """The switcher lists people with titles; after the switch nothing of the first person is on the screen."""
    page = look()
    ts = desk.show_card()
    message(page, ts).get_by_role("button", name="Ask privately").click()
    expect(page.locator("article.ephemeral")).to_be_visible()
    page.get_by_role("button", name=re.compile("Act as: Rita Okafor")).focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("option", name=re.compile("Maya Chen.*Custodian, data", re.DOTALL))).to_be_visible()
    page.keyboard.type("maya")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name=re.compile("Act as: Maya Chen"))).to_be_focused()
    assert f"as={MAYA}" in page.url
    expect(page.locator("article.ephemeral")).to_have_count(0)
    box(page).fill("it is me")
    box(page).press("Enter")
    expect(page.locator("#pane-main article").last.get_by_text("Maya Chen")).to_be_visible()


def test_the_whole_way_by_keyboard_alone(look: Open, desk: Desk) -> None:
    """From the skip link to the sent form and the approved card without a mouse."""
    page = look()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the message box")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.type("/br")
    page.keyboard.press("Tab")
    page.keyboard.type("orders-db")
    page.keyboard.press("Enter")
    expect(answer(page, "account")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.type("bil")
    page.keyboard.press("Enter")
    expect(page.locator("#modal")).to_contain_text("billing-db needs 2 of 4 custodians")
    for key in ("Tab", "ArrowDown", "Tab", "Space", "Tab", "Tab"):
        page.keyboard.press(key)
    expect(page.get_by_label("Reason")).to_be_focused()
    page.keyboard.type("Checkout is down")
    page.keyboard.press("Enter")
    page.keyboard.type("since two")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#modal")).to_be_hidden()
    values = desk.last("form")
    assert values["level"]["level"]["selected_option"]["value"] == "write"
    assert values["reason"]["reason"]["value"] == "Checkout is down\nsince two"
    expect(box(page)).to_be_focused()
    ts = desk.show_card()
    expect(message(page, ts)).to_be_visible()
    approve = message(page, ts).get_by_role("button", name="Approve")
    for _ in range(10):
        page.keyboard.press("Shift+Tab")
        if approve.evaluate("(n) => n === document.activeElement"):
            break
    expect(approve).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(message(page, ts).locator('[data-block-id="facts"]')).to_contain_text("approve")


def test_arrows_walk_through_messages_and_enter_opens_the_thread(look: Open, desk: Desk) -> None:
    """One message is a tab stop; the arrows reach the others, Enter opens the thread of the one in focus."""
    first = desk.say(CARL, "first")
    last = desk.say(MAYA, "last")
    page = look()
    message(page, last).focus()
    page.keyboard.press("ArrowUp")
    expect(message(page, first)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#pane-thread")).to_contain_text("first")
    expect(page.locator("#pane-thread")).to_contain_text("No replies yet")


def test_a_phone_shows_one_pane_with_a_way_back(look: Open, desk: Desk) -> None:
    """At 390 pixels: channel, thread, list, each alone and full width, with Back; modals fill the screen."""
    page = look(size=NARROW)
    ts = desk.show_card()
    desk.client.chat_postMessage(channel=INCIDENTS, thread_ts=ts, text="step one")
    expect(page.locator("#sidebar")).to_be_hidden()
    message(page, ts).get_by_test_id("replies").click()
    expect(page.locator("#thread")).to_be_visible()
    expect(page.locator("#main")).to_be_hidden()
    page.get_by_role("button", name="Back to the channel").click()
    expect(page.locator("#main")).to_be_visible()
    page.get_by_role("button", name="Back to channels").click()
    expect(page.locator("#sidebar")).to_be_visible()
    page.locator(f'.conversation[data-channel="{GENERAL}"]').click()
    expect(page.get_by_role("heading", name="# general")).to_be_visible()
    open_form(page)
    dialog = page.locator("#modal").bounding_box()
    assert dialog is not None
    assert dialog["width"] == NARROW["width"]
    assert dialog["y"] + dialog["height"] == NARROW["height"]


def test_back_and_reload_keep_the_place(look: Open, desk: Desk) -> None:
    """The address says channel and thread: a reload stays, and the browser's Back goes back."""
    page = look()
    ts = desk.say(CARL, "talk here")
    message(page, ts).hover()
    message(page, ts).get_by_role("button", name="Reply in thread").click()
    expect(page.locator("#pane-thread")).to_contain_text("talk here")
    page.reload()
    expect(page.locator("#pane-thread")).to_contain_text("talk here")
    page.locator(f'.conversation[data-channel="{GENERAL}"]').click()
    expect(page.locator("#thread")).to_be_hidden()
    page.go_back()
    expect(page.get_by_role("heading", name="# incidents")).to_be_visible()
    expect(page.locator("#pane-thread")).to_contain_text("talk here")


def test_a_permalink_leads_to_its_message(look: Open, desk: Desk) -> None:
    """A link to a message goes there in the same page as the same person; a link to a reply opens its thread."""
    page = look(CARL)
    ts = desk.say(RITA, "the beginning")
    reply = desk.client.chat_postMessage(channel=INCIDENTS, thread_ts=ts, text="the step")["ts"]
    for n in range(40):
        desk.say(MAYA, f"line {n}")
    for target in (ts, reply):
        to = desk.client.chat_getPermalink(channel=INCIDENTS, message_ts=target)["permalink"]
        desk.client.chat_postMessage(channel=GENERAL, text=f"<{to}|to {target}>")
    page.locator(f'.conversation[data-channel="{GENERAL}"]').click()
    page.get_by_role("link", name=f"to {ts}").click()
    expect(page.get_by_role("heading", name="# incidents")).to_be_visible()
    expect(message(page, ts)).to_be_focused()
    expect(message(page, ts)).to_be_in_viewport()
    page.locator(f'.conversation[data-channel="{GENERAL}"]').click()
    page.get_by_role("link", name=f"to {reply}").click()
    expect(message(page, reply, "thread")).to_be_focused()
    assert f"as={CARL}" in page.url


def test_where_nobody_can_write_it_says_why(look: Open, desk: Desk) -> None:
    """A channel that one is not a member of can be read; instead of the box stands the reason."""
    page = look(SVEN)
    desk.say(RITA, "hello", GENERAL)
    page.locator(f'.conversation[data-channel="{GENERAL}"]').click()
    expect(page.locator("#pane-main")).to_contain_text("hello")
    expect(page.locator("#pane-main")).to_contain_text("You are not a member of #general")
    expect(box(page)).to_be_hidden()


def test_a_message_shortcut_is_sent_with_its_message(look: Open, desk: Desk) -> None:
    """The menu of a message has the app's shortcuts."""
    page = look()
    ts = desk.say(CARL, "explain me")
    message(page, ts).hover()
    message(page, ts).get_by_role("button", name="Shortcuts").click()
    with page.expect_response("**/sandbox/shortcuts"):
        page.get_by_role("menuitem", name="What is this?").click()
    assert desk.last("explain") == "explain me"


def test_a_restarted_server_is_found_again(browser: Browser) -> None:
    """Without its server the page says that it reconnects and keeps the draft; then it shows what it missed."""
    settings: dict[str, Any] = {"bot_token": BOT_TOKEN, "app_token": APP_TOKEN, "rate_limits": 0}
    with Sandbox(SEED, MANIFEST, port=0, **settings) as first:
        port = urlsplit(first.url).port
        page = browser.new_page()
        page.goto(f"{first.url}/?as={RITA}&channel={INCIDENTS}")
        page.wait_for_selector("body[data-ready]")
        box(page).fill("a draft")
    expect(page.locator("#offline")).to_contain_text("Reconnecting")
    with Sandbox(SEED, MANIFEST, port=port, **settings) as second:
        client = WebClient(token=BOT_TOKEN, base_url=f"{second.url}/api/")
        client.chat_postMessage(channel=INCIDENTS, text="while you were away")
        expect(page.locator("#offline")).to_be_hidden(timeout=15_000)
        expect(page.locator("#pane-main")).to_contain_text("while you were away")
        expect(box(page)).to_have_value("a draft")
        client.chat_postMessage(channel=INCIDENTS, text="and live again")
        expect(page.locator("#pane-main")).to_contain_text("and live again")
        page.close()
