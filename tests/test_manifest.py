"""Does the app ask Slack for what it uses, and for nothing more?"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from bot import views
from bot.app import SCOPES
from bot.sandbox.webapi import METHODS

BOT = Path(__file__).parent.parent / "bot"
MANIFEST = yaml.safe_load((BOT.parent / "manifest.yml").read_text(encoding="utf-8"))
# The sandbox and the demo are not the app.
CODE = "\n".join(file.read_text(encoding="utf-8") for file in BOT.glob("*.py"))


def methods_called():
    """Return the Web API methods whose names stand in the code, as Python calls or by Slack's name."""
    snake = {re.sub(r"(?<=[a-z])([A-Z])|\.", lambda m: f"_{(m[1] or '').lower()}", name): name for name in METHODS}
    found = set()
    for called in re.findall(r"client\.([a-z]+_[A-Za-z_0-9]+)", CODE):
        plain = re.sub(r"([A-Z])", lambda m: "_" + m[1].lower(), called)
        if called.startswith("files_upload_v2"):
            found |= {"files.getUploadURLExternal", "files.completeUploadExternal"}
        elif plain in snake:
            found.add(snake[plain])
    return found | {name for name in METHODS if f'"{name}"' in CODE}


def test_the_scopes_are_those_of_the_calls():
    """Each scope of the manifest is needed by a call, and no call is without its scope."""
    called = methods_called()
    assert {"chat.postMessage", "views.open", "users.info", "conversations.history", "conversations.open"} <= called
    needed = {"commands"}
    for method in called:
        scopes = set(METHODS[method].scopes)
        if method in {"conversations.history", "conversations.replies"}:
            # The incident channel may be private; what was sent to a person is looked up in the direct message.
            needed |= {"channels:history", "groups:history", "im:history"}
        elif method == "conversations.info":
            needed |= {"channels:read", "groups:read"}
        else:
            needed |= scopes
    assert set(MANIFEST["oauth_config"]["scopes"]["bot"]) == needed == set(SCOPES)


def test_the_commands_are_those_listened_to():
    """The manifest's slash commands are the code's."""
    assert [command["command"] for command in MANIFEST["features"]["slash_commands"]] == [views.COMMAND]


def test_the_events_are_those_listened_to():
    """The manifest subscribes to each event that has a listener, and to no other."""
    assert set(MANIFEST["settings"]["event_subscriptions"]["bot_events"]) == set(
        re.findall(r'app\.event\("(\w+)"\)', CODE)
    )


def test_nothing_is_reachable_from_outside():
    """Socket Mode, interactivity on, and no public addresses."""
    settings = MANIFEST["settings"]
    assert settings["socket_mode_enabled"] is True
    assert settings["interactivity"] == {"is_enabled": True}
    assert "request_url" not in str(MANIFEST)
