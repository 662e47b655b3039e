"""What do the tests of the sandbox share? A workspace, a manifest, a clock to turn by hand, and real SDK clients.

The app's side is always the unmodified SDK: ``WebClient`` for calls, ``SocketModeClient`` or Bolt for what comes in.
"""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from slack_bolt.adapter.socket_mode import SocketModeHandler
from slack_sdk import WebClient
from slack_sdk.socket_mode import SocketModeClient
from slack_sdk.socket_mode.response import SocketModeResponse

from bot.sandbox.driver import Driver, wait_for
from bot.sandbox.server import Sandbox
from bot.sandbox.workspace import BOT_USER, Channel, Group, Person, WorkspaceSeed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slack_bolt import App
    from slack_sdk.socket_mode.request import SocketModeRequest

ALL_SCOPES = [
    "app_mentions:read",
    "channels:history",
    "channels:join",
    "channels:read",
    "chat:write",
    "commands",
    "files:write",
    "groups:history",
    "groups:read",
    "im:history",
    "im:read",
    "im:write",
    "pins:write",
    "reactions:write",
    "team:read",
    "usergroups:read",
    "users:read",
]
ALL_EVENTS = [
    "app_home_opened",
    "app_mention",
    "message.channels",
    "message.im",
    "subteam_members_changed",
    "user_change",
]
HALL, INC, SECRET, VAULT, OLD = "C0HALL", "C0INC", "C0SECRET", "C0VAULT", "C0OLD"

SEED = WorkspaceSeed(
    team_id="T0TEST",
    team_name="Test Works",
    people=(
        Person("U0RITA", "rita", "Rita Responder", title="On call"),
        Person("U0CARL", "carl", "Carl Custodian"),
        Person("U0GUEST", "gil", "Gil Guest", is_guest=True),
        Person("U0STRANGE", "sam", "Sam Stranger", team_id="T0OTHER"),
        Person("U0GONE", "greta", "Greta Gone", deleted=True),
    ),
    channels=(
        Channel(INC, "incidents", "What burns", ("U0RITA", "U0CARL", "U0STRANGE", BOT_USER)),
        Channel(HALL, "hall", "", ("U0RITA", "U0CARL")),
        Channel(SECRET, "secret", "", ("U0CARL", BOT_USER), is_private=True),
        Channel(VAULT, "vault", "", ("U0CARL",), is_private=True),
        Channel(OLD, "old", "", ("U0RITA", BOT_USER), is_archived=True),
    ),
    groups=(Group("S0LEAD", "leadership", "Leadership", ("U0CARL",)),),
)


def manifest(
    scopes: list[str] | None = None,
    events: list[str] | None = None,
    *,
    home: bool = True,
    messages: bool = True,
    read_only: bool = False,
    interactive: bool = True,
) -> dict[str, Any]:
    """Return a manifest with everything, or with less."""
    return {
        "display_information": {"name": "Breakglass"},
        "features": {
            "app_home": {
                "home_tab_enabled": home,
                "messages_tab_enabled": messages,
                "messages_tab_read_only_enabled": read_only,
            },
            "bot_user": {"display_name": "Breakglass"},
            "slash_commands": [{"command": "/breakglass", "description": "Ask", "usage_hint": "[account]"}],
            "shortcuts": [{"name": "Act", "type": "message", "callback_id": "act", "description": "On this message"}],
        },
        "oauth_config": {"scopes": {"bot": ALL_SCOPES if scopes is None else scopes}},
        "settings": {
            "event_subscriptions": {"bot_events": ALL_EVENTS if events is None else events},
            "interactivity": {"is_enabled": interactive},
            "socket_mode_enabled": True,
        },
    }


class Clock:
    """Seconds since the epoch, moved by hand."""

    def __init__(self) -> None:
        self.now = 1_772_330_400.0

    def __call__(self) -> float:
        """Return the time that it is."""
        return self.now


def client_of(sandbox: Sandbox) -> WebClient:
    """Return the real Web API client with the bot's token."""
    return WebClient(token=sandbox.bot_token, base_url=sandbox.api_url, timeout=10)


class Listener:
    """The real Socket Mode client; keeps what arrives and acknowledges as told."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.got: list[SocketModeRequest] = []
        #: Returns the payload of the acknowledgement, or False for none at all.
        self.answer: Callable[[SocketModeRequest], dict[str, Any] | bool | None] = lambda _: None
        self._arrived = threading.Lock()
        self.client = SocketModeClient(
            app_token=sandbox.app_token,
            web_client=WebClient(token=sandbox.app_token, base_url=sandbox.api_url),
            ping_interval=0.5,  # how soon it notices that its socket is gone; the usual 5 s would make the tests slow
        )
        self.client.socket_mode_request_listeners.append(self._take)

    def _take(self, client: SocketModeClient, request: SocketModeRequest) -> None:
        with self._arrived:
            self.got.append(request)
        payload = self.answer(request)
        if payload is not False:
            answer = SocketModeResponse(request.envelope_id, payload if isinstance(payload, dict) else None)
            client.send_socket_mode_response(answer)

    def payloads(self, kind: str) -> list[dict[str, Any]]:
        """Return the payloads of one type of interaction, event or envelope."""
        return [
            request.payload
            for request in list(self.got)
            if kind in {request.type, request.payload.get("type"), request.payload.get("event", {}).get("type")}
        ]

    def close(self) -> None:
        """Disconnect without waiting for the client's own threads."""
        hang_up(self.client)


def hang_up(client: SocketModeClient) -> None:
    """End a client at once: its own close() waits seconds for a read that blocks, so the read is ended first."""
    client.auto_reconnect_enabled = False
    client.default_auto_reconnect_enabled = False
    client.current_session_state.terminated = True
    session = client.current_session
    if session is not None and session.sock is not None:
        with suppress(OSError):
            session.sock.shutdown(socket.SHUT_RDWR)
    threading.Thread(target=client.close, daemon=True).start()


@contextmanager
def listening(sandbox: Sandbox) -> Iterator[Listener]:
    """Connect the real Socket Mode client."""
    listener = Listener(sandbox)
    driver = Driver(sandbox.url)
    before = driver.sockets()
    listener.client.connect()
    wait_for(lambda: driver.sockets() > before)
    try:
        yield listener
    finally:
        listener.close()


@contextmanager
def bolted(sandbox: Sandbox, app: App) -> Iterator[None]:
    """Connect a real Bolt app by Socket Mode."""
    web_client = WebClient(token=sandbox.app_token, base_url=sandbox.api_url)
    handler = SocketModeHandler(app, sandbox.app_token, web_client=web_client)
    handler.connect()
    driver = Driver(sandbox.url)
    wait_for(lambda: driver.sockets() > 0)
    try:
        yield
    finally:
        hang_up(handler.client)


def plain(text: str) -> dict[str, Any]:
    """Return a plain text object."""
    return {"type": "plain_text", "text": text}


def button(action_id: str = "go", **more: Any) -> dict[str, Any]:
    """Return a button."""
    return {"type": "button", "action_id": action_id, "text": plain("Go"), **more}


def actions(*elements: dict[str, Any], block_id: str = "row") -> dict[str, Any]:
    """Return an actions block."""
    return {"type": "actions", "block_id": block_id, "elements": list(elements)}


def field(block_id: str, element: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Return an input block, with a text input unless another element is given."""
    element = {"action_id": block_id, **(element or {"type": "plain_text_input"})}
    return {"type": "input", "block_id": block_id, "label": plain(block_id), "element": element, **more}


def modal(*blocks: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a modal view."""
    return {
        "type": "modal",
        "callback_id": "form",
        "title": plain("Form"),
        "submit": plain("Send"),
        "blocks": list(blocks) or [field("reason")],
        **more,
    }


def sandbox_of(manifest_: dict[str, Any] | None = None, **options: Any) -> Sandbox:
    """Return a sandbox without rate limits unless the test is about them."""
    return Sandbox(SEED, manifest_ or manifest(), **{"rate_limits": 0, **options})


@contextmanager
def serving(**options: Any) -> Iterator[Sandbox]:
    """Run a sandbox for one test; it is taken down while the next test already runs."""
    running = sandbox_of(**options).start()
    try:
        yield running
    finally:
        threading.Thread(target=running.stop, daemon=True).start()
