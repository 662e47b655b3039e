"""What does the workspace begin with, and what has the app's manifest asked for?

Rules:
- A seed and a manifest are values; nothing here changes.
- What a manifest leaves out is off, as in Slack.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Person:
    """A person of the workspace, or a visitor when ``team_id`` names another workspace."""

    id: str
    name: str
    real_name: str
    title: str = ""
    is_bot: bool = False
    is_guest: bool = False
    is_single_channel_guest: bool = False
    deleted: bool = False
    team_id: str = ""
    tz: str = "UTC"
    status_text: str = ""
    status_emoji: str = ""
    status_expiration: int = 0  # seconds since 1970; 0: until it is changed
    is_active: bool = False  # on a telephone, say; who has a page open is, too


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel to begin with; ``members`` are user ids and may include the app's bot user."""

    id: str
    name: str
    topic: str = ""
    members: tuple[str, ...] = ()
    is_private: bool = False
    is_archived: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """A user group, mentioned as ``@handle``."""

    id: str
    handle: str
    name: str
    members: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkspaceSeed:
    """What the workspace contains when it starts."""

    team_id: str = "T0SANDBOX"
    team_name: str = "Sandbox"
    people: tuple[Person, ...] = ()
    channels: tuple[Channel, ...] = ()
    groups: tuple[Group, ...] = ()

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> WorkspaceSeed:
        """Read a seed from parsed YAML: the same words as the fields, ``team: {id, name}``."""
        team = data.get("team", {})
        return cls(
            team_id=team.get("id", cls().team_id),
            team_name=team.get("name", cls().team_name),
            people=tuple(Person(**person) for person in data.get("people", ())),
            channels=tuple(Channel(**{**c, "members": tuple(c.get("members", ()))}) for c in data.get("channels", ())),
            groups=tuple(Group(**{**g, "members": tuple(g.get("members", ()))}) for g in data.get("groups", ())),
        )


@dataclass(frozen=True, slots=True)
class AppManifest:
    """What the app's manifest says and the workspace enforces."""

    name: str
    display_name: str
    scopes: frozenset[str]
    events: frozenset[str]
    commands: tuple[Json, ...]
    shortcuts: tuple[Json, ...]
    home_tab: bool
    messages_tab: bool
    messages_read_only: bool
    interactive: bool

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> AppManifest:
        """Read a parsed ``manifest.yml``; a missing section means that the feature is off, as in Slack."""
        features = data.get("features", {})
        settings = data.get("settings", {})
        home = features.get("app_home", {})
        name = data["display_information"]["name"]
        return cls(
            name=name,
            display_name=features.get("bot_user", {}).get("display_name", name),
            scopes=frozenset(data.get("oauth_config", {}).get("scopes", {}).get("bot", ())),
            events=frozenset(settings.get("event_subscriptions", {}).get("bot_events", ())),
            commands=tuple(features.get("slash_commands", ())),
            shortcuts=tuple(features.get("shortcuts", ())),
            home_tab=bool(home.get("home_tab_enabled")),
            messages_tab=bool(home.get("messages_tab_enabled")),
            messages_read_only=bool(home.get("messages_tab_read_only_enabled")),
            interactive=bool(settings.get("interactivity", {}).get("is_enabled")),
        )
