"""Which events does the app hear of, and how are they wrapped?

Rules:
- An event goes out when the manifest subscribes to it and the scope that it needs is granted; else it is dropped.
- Every delivery has an event id of its own, also when two events tell of the same message: apps deduplicate on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from bot.sandbox.workspace import APP_ID, BOT_USER, AppManifest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bot.sandbox.socketmode import Link

Json = dict[str, Any]

VERIFICATION_TOKEN: Final = "sandbox-verification"  # noqa: S105 - Slack's old payload field; it guards nothing


class Events:
    """The Events API of one workspace, delivered by Socket Mode."""

    def __init__(self, app: AppManifest, team_id: str, link: Link) -> None:
        self._app = app
        self._team_id = team_id
        self._link = link
        self._serial = 0

    def emit(self, event: Json) -> None:
        """Send an event without waiting for anything."""
        name, needed = _subscription(event)
        if name not in self._app.events or (needed and needed not in self._app.scopes):
            return
        self._serial += 1
        payload = {
            "token": VERIFICATION_TOKEN,
            "team_id": self._team_id,
            "api_app_id": APP_ID,
            "event": event,
            "type": "event_callback",
            "event_id": f"Ev0{self._serial:09d}",
            "event_time": int(float(event["event_ts"])),
            "is_ext_shared_channel": False,
            "authorizations": [
                {
                    "enterprise_id": None,
                    "team_id": self._team_id,
                    "user_id": BOT_USER,
                    "is_bot": True,
                    "is_enterprise_install": False,
                }
            ],
        }
        self._link.emit(payload)


def _subscription(event: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the name under which a manifest subscribes to this event, and the scope that it needs."""
    match event["type"]:
        case "message":
            kind = str(event["channel_type"])
            name = {"im": "message.im", "group": "message.groups"}.get(kind, "message.channels")
            scope = {"im": "im:history", "group": "groups:history"}.get(kind, "channels:history")
            return name, scope
        case "user_change":
            return "user_change", "users:read"
        case "subteam_members_changed":
            return "subteam_members_changed", "usergroups:read"
        case "app_mention":
            return "app_mention", "app_mentions:read"
        case other:
            return str(other), None
