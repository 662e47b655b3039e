"""What is in the sandbox workspace: people, groups, channels, messages, files, and who has read what?

Rules:
- Everything lives in memory and is touched by one thread, the server's event loop; nothing here waits or locks.
- What people see on their screens goes out through ``Screens``; what the app hears goes out through ``Emit``.
- A refusal is a ``SlackError`` with Slack's own error word; the state has not changed.
- Message times are unique and rising, six digits after the point, as in Slack.
- Mentions are found in the text and in mrkdwn and rich text of the blocks, never in plain text: a test can show that
  a person's words, shown as plain text, ping nobody.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Protocol
from zoneinfo import ZoneInfo

from bot.sandbox.answers import mrkdwn_of
from bot.sandbox.seed import AppManifest, Channel, Group, Person, WorkspaceSeed

__all__ = [
    "APP_ID",
    "BOT_ID",
    "BOT_USER",
    "SLACKBOT",
    "AppManifest",
    "Channel",
    "Emit",
    "Group",
    "Message",
    "Person",
    "Room",
    "Screens",
    "SlackError",
    "Workspace",
    "WorkspaceSeed",
]

Json = dict[str, Any]
Emit = Callable[[Json], None]

SLACKBOT: Final = "USLACKBOT"
APP_ID: Final = "A0SANDBOX"
BOT_ID: Final = "B0SANDBOX"
BOT_USER: Final = "U0BOTUSER"


class SlackError(Exception):
    """Slack says no; ``code`` is the error word of the Web API, ``extra`` further fields of the answer."""

    def __init__(self, code: str, **extra: object) -> None:
        super().__init__(code)
        self.code = code
        self.extra = extra


class Screens(Protocol):
    """The pages that people have open right now."""

    def watching(self) -> Collection[str]:
        """Return the ids of the people with at least one page open."""

    def show(self, audience: Collection[str] | None, payload: Json) -> None:
        """Send to the pages of these people (None: everybody's) without waiting."""


# --- Rooms and messages -------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Message:
    """One message; ``thread_ts`` is the parent's time on a reply and the own time on a parent with replies."""

    ts: str
    channel: str
    user: str
    text: str
    is_bot: bool
    blocks: list[Json] | None = None
    attachments: list[Json] | None = None
    thread_ts: str | None = None
    broadcast: bool = False
    ephemeral_to: str | None = None
    edited: Json | None = None
    metadata: Json | None = None
    tombstone: bool = False
    files: list[Json] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)
    reply_users: list[str] = field(default_factory=list)
    reactions: dict[str, list[str]] = field(default_factory=dict)
    pinned: bool = False

    @property
    def is_reply(self) -> bool:
        """True when the message stands in a thread below another one."""
        return self.thread_ts is not None and self.thread_ts != self.ts


@dataclass(slots=True, eq=False)
class Room:
    """A channel or direct message with what was said there."""

    id: str
    kind: str  # "channel" or "im"
    name: str
    topic: str
    members: set[str]
    is_private: bool
    is_archived: bool = False
    messages: dict[str, Message] = field(default_factory=dict)
    top: list[str] = field(default_factory=list)  # times of what stands at the top level, rising
    last_read: dict[str, str] = field(default_factory=dict)
    mentions: dict[str, list[str]] = field(default_factory=dict)  # times of unread mentions per person

    def unread(self, user: str) -> tuple[int, int]:
        """Return how many top-level messages and how many mentions this person has not read."""
        after = self.last_read.get(user, "0")
        mentions = self.mentions.get(user, [])
        return len(self.top) - bisect_right(self.top, after), len(mentions) - bisect_right(mentions, after)


_MENTION: Final = re.compile(r"<!(channel|here|everyone)(?:\|[^>]*)?>|<@([UW][A-Z0-9]+)(?:\|[^>]*)?>|<!subteam\^(S\w+)")


class Workspace:
    """People, groups, rooms and files of one workspace with one app installed.

    ``clock`` gives seconds since the epoch; a test may pass its own.
    """

    def __init__(
        self, seed: WorkspaceSeed, app: AppManifest, *, clock: Callable[[], float], screens: Screens, emit: Emit
    ) -> None:
        self.team_id = seed.team_id
        self.team_name = seed.team_name
        self.domain = re.sub(r"[^a-z0-9-]+", "-", seed.team_name.lower()).strip("-") or "sandbox"
        self.app = app
        self.clock = clock
        self._screens = screens
        self.emit = emit
        self._last_ts = 0
        self._serial = 0
        self.people: dict[str, Person] = {}
        self.groups: dict[str, Group] = {}
        self.rooms: dict[str, Room] = {}
        self.files: dict[str, Json] = {}
        self._direct: dict[frozenset[str], str] = {}
        self.ephemerals: dict[str, dict[str, Message]] = {}
        bot = Person(BOT_USER, app.display_name.lower().replace(" ", "_"), app.display_name, is_bot=True)
        for person in (*seed.people, bot):
            self.people[person.id] = person if person.team_id else replace(person, team_id=seed.team_id)
        for group in seed.groups:
            self.groups[group.id] = group
        for channel in seed.channels:
            self._add_channel(channel)

    # --- People and groups ----------------------------------------------------------------------------------------

    def person(self, user: str) -> Person:
        """Return a person, or refuse with ``user_not_found``."""
        try:
            return self.people[user]
        except KeyError:
            raise SlackError("user_not_found") from None

    def is_active(self, user: str) -> bool:
        """Whether Slack shows a green dot at a person; the app always has one."""
        person = self.person(user)
        return not person.deleted and (person.is_active or user == BOT_USER or user in self._screens.watching())

    def add_person(self, person: Person) -> None:
        """Let somebody join the workspace."""
        self.people[person.id] = person if person.team_id else replace(person, team_id=self.team_id)
        self._screens.show(None, {"type": "workspace"})

    def change_person(self, user: str, **changes: Any) -> Person:  # noqa: ANN401 - the fields of Person
        """Change a profile or deactivate an account; the app gets ``user_change`` if it asked for it."""
        changed = replace(self.person(user), **changes)
        self.people[user] = changed
        if changed.deleted:  # Slack takes a deactivated account out of every group
            for group in list(self.groups.values()):
                if user in group.members:
                    self.change_group(group.id, [member for member in group.members if member != user])
        self.emit({"type": "user_change", "user": self.user_json(changed), "event_ts": self.next_ts()})
        self._screens.show(None, {"type": "workspace"})
        return changed

    def add_group(self, group: Group) -> None:
        """Create a user group."""
        self.groups[group.id] = group
        self._screens.show(None, {"type": "workspace"})

    def change_group(self, group_id: str, members: Sequence[str]) -> Group:
        """Replace the members of a group; the app gets ``subteam_members_changed`` if it asked for it."""
        if group_id not in self.groups:
            raise SlackError("no_such_subteam")
        old = self.groups[group_id]
        new = replace(old, members=tuple(dict.fromkeys(members)))
        self.groups[group_id] = new
        added = [user for user in new.members if user not in old.members]
        removed = [user for user in old.members if user not in new.members]
        now = int(self.clock())
        self.emit(
            {
                "type": "subteam_members_changed",
                "subteam_id": group_id,
                "team_id": self.team_id,
                "date_previous_update": now,
                "date_update": now,
                "added_users": added,
                "added_users_count": len(added),
                "removed_users": removed,
                "removed_users_count": len(removed),
                "event_ts": self.next_ts(),
            }
        )
        self._screens.show(None, {"type": "workspace"})
        return new

    def user_json(self, person: Person) -> Json:
        """Return Slack's user object."""
        return {
            "id": person.id,
            "team_id": person.team_id,
            "name": person.name,
            "deleted": person.deleted,
            "real_name": person.real_name,
            "tz": person.tz,
            "tz_label": person.tz,
            "tz_offset": _offset(person.tz, self.clock()),
            "profile": {
                "real_name": person.real_name,
                "real_name_normalized": person.real_name,
                "display_name": person.name,
                "display_name_normalized": person.name,
                "title": person.title,
                "status_text": person.status_text,
                "status_emoji": person.status_emoji,
                "status_expiration": person.status_expiration,
                "team": person.team_id,
                **({"api_app_id": APP_ID, "bot_id": BOT_ID} if person.id == BOT_USER else {}),
            },
            "is_admin": False,
            "is_owner": False,
            "is_primary_owner": False,
            "is_restricted": person.is_guest or person.is_single_channel_guest,
            "is_ultra_restricted": person.is_single_channel_guest,
            "is_bot": person.is_bot,
            "is_app_user": False,
            "is_stranger": person.team_id != self.team_id,
            "updated": int(self.clock()),
        }

    # --- Rooms ----------------------------------------------------------------------------------------------------

    def _add_channel(self, channel: Channel) -> Room:
        room = Room(
            channel.id,
            "channel",
            channel.name,
            channel.topic,
            set(channel.members),
            is_private=channel.is_private,
            is_archived=channel.is_archived,
        )
        self.rooms[room.id] = room
        return room

    def add_channel(self, channel: Channel) -> Room:
        """Create a channel while the workspace runs."""
        room = self._add_channel(channel)
        self._screens.show(None, {"type": "conversations"})
        return room

    def change_channel(self, room: Room, *, members: Iterable[str] | None, is_archived: bool | None) -> None:
        """Replace the members of a channel, or archive it."""
        if members is not None:
            room.members = set(members)
        if is_archived is not None:
            room.is_archived = is_archived
        self._screens.show(None, {"type": "conversations"})

    def direct(self, one: str, other: str) -> Room:
        """Return the direct message room of two people (or a person and the app); made on first use."""
        key = frozenset((one, other))
        room_id = self._direct.get(key)
        if room_id is None:
            self._serial += 1
            room_id = f"D0{self._serial:07d}"
            self._direct[key] = room_id
            self.rooms[room_id] = Room(room_id, "im", "directmessage", "", {one, other}, is_private=True)
            self._screens.show(key, {"type": "conversations"})
        return self.rooms[room_id]

    def sees(self, user: str, room: Room) -> bool:
        """Whether this person may read the room: members always, others public channels of their own workspace.

        A guest sees only channels they are a member of.
        """
        if user in room.members:
            return True
        person = self.people.get(user)
        return (
            person is not None
            and room.kind == "channel"
            and not room.is_private
            and not (person.is_guest or person.is_single_channel_guest)
            and person.team_id == self.team_id
        )

    def _audience(self, room: Room) -> list[str]:
        return [user for user in self._screens.watching() if self.sees(user, room)]

    # --- Messages -------------------------------------------------------------------------------------------------

    def next_ts(self) -> str:
        """Return a message time later than every one before."""
        self._last_ts = max(self._last_ts + 1, int(self.clock() * 1_000_000))
        return f"{self._last_ts // 1_000_000}.{self._last_ts % 1_000_000:06d}"

    def message(self, room: Room, ts: str) -> Message:
        """Return a stored message, or refuse with ``message_not_found``."""
        try:
            return room.messages[ts]
        except KeyError:
            raise SlackError("message_not_found") from None

    def post(
        self,
        room: Room,
        user: str,
        text: str,
        *,
        blocks: list[Json] | None = None,
        attachments: list[Json] | None = None,
        thread_ts: str | None = None,
        broadcast: bool = False,
        metadata: Json | None = None,
        files: Sequence[Json] = (),
    ) -> Message:
        """Store a message and show it to everybody who may see the room."""
        parent = None
        if thread_ts is not None:
            parent = room.messages.get(thread_ts)
            if parent is None:
                # Slack posts such a message into nowhere; here it is refused, since it is always a mistake.
                raise SlackError("thread_not_found")
            if parent.is_reply:  # Slack files an answer to an answer under the parent
                thread_ts = str(parent.thread_ts)
                parent = room.messages[thread_ts]
        message = Message(
            self.next_ts(),
            room.id,
            user,
            text,
            is_bot=user == BOT_USER,
            blocks=blocks,
            attachments=attachments,
            thread_ts=thread_ts,
            broadcast=broadcast and parent is not None,
            metadata=metadata,
            files=list(files),
        )
        room.messages[message.ts] = message
        if parent is not None:
            parent.thread_ts = parent.ts
            parent.replies.append(message.ts)
            if user not in parent.reply_users:
                parent.reply_users.append(user)
        if parent is None or message.broadcast:
            room.top.append(message.ts)
            room.last_read[user] = message.ts
        self._count_mentions(room, message)
        audience = self._audience(room)
        if audience:
            payload = {"type": "message", "channel": room.id, "message": self.page_message(message)}
            self._screens.show(audience, payload)
            if parent is not None:
                self._show_change(room, parent, audience)
            self._show_unread(room, audience)
        if user != BOT_USER:
            self._emit_message(room, message)
        return message

    def _emit_message(self, room: Room, message: Message) -> None:
        event = {
            "type": "message",
            "user": message.user,
            "text": message.text,
            "ts": message.ts,
            "team": self.team_id,
            "channel": room.id,
            "event_ts": message.ts,
            "channel_type": "im" if room.kind == "im" else "group" if room.is_private else "channel",
            **({"thread_ts": message.thread_ts} if message.thread_ts else {}),
        }
        if BOT_USER in room.members:
            self.emit(event)
            if room.kind == "channel" and f"<@{BOT_USER}>" in message.text:
                self.emit({**event, "type": "app_mention"})

    def _count_mentions(self, room: Room, message: Message) -> None:
        for user in self.mentioned(room, message):
            if user != message.user:
                room.mentions.setdefault(user, []).append(message.ts)

    def mentioned(self, room: Room, message: Message) -> set[str]:
        """Return who is notified by this message: named, in a named group, or by @channel; members of the room only."""
        found: set[str] = set()
        for text in (message.text, *mrkdwn_of(message.blocks or [])):
            for broadcast, user, group in _MENTION.findall(text):
                if broadcast:
                    found |= room.members
                elif user:
                    found.add(user)
                elif group in self.groups:
                    found |= set(self.groups[group].members)
        return {user for user in found & room.members if not self.people[user].is_bot}

    def edit(self, room: Room, message: Message, *, by: str, **changes: Any) -> None:  # noqa: ANN401 - Message's fields
        """Change text, blocks, attachments or metadata of a message in place."""
        if any(getattr(message, name) != value for name, value in changes.items() if name in {"text", "blocks"}):
            message.edited = {"user": by, "ts": self.next_ts()}
        for name, value in changes.items():
            setattr(message, name, value)
        self._show_change(room, message, self._audience(room))

    def touch(self, room: Room, message: Message) -> None:
        """Show a message again after something about it (a reaction, a pin) has changed."""
        self._show_change(room, message, self._audience(room))

    def _show_change(self, room: Room, message: Message, audience: Sequence[str]) -> None:
        if audience:
            payload = {"type": "message_changed", "channel": room.id, "message": self.page_message(message)}
            self._screens.show(audience, payload)

    def delete(self, room: Room, message: Message) -> None:
        """Take a message away; a parent with replies leaves a tombstone so that its thread stays readable."""
        audience = self._audience(room)
        if message.replies:
            message.text, message.blocks, message.tombstone = "This message was deleted.", None, True
            message.metadata, message.files = None, []
            self._show_change(room, message, audience)
            return
        del room.messages[message.ts]
        at = bisect_left(room.top, message.ts)
        if at < len(room.top) and room.top[at] == message.ts:
            del room.top[at]
        for times in room.mentions.values():
            if message.ts in times:
                times.remove(message.ts)
        if message.is_reply and message.thread_ts in room.messages:
            parent = room.messages[message.thread_ts]
            parent.replies.remove(message.ts)
            parent.reply_users = list(dict.fromkeys(room.messages[ts].user for ts in parent.replies))
            self._show_change(room, parent, audience)
        self._screens.show(audience, {"type": "message_deleted", "channel": room.id, "ts": message.ts})

    def whisper(
        self,
        room: Room,
        user: str,
        text: str,
        *,
        blocks: list[Json] | None = None,
        thread_ts: str | None = None,
        by: str = BOT_USER,
    ) -> Message:
        """Show an ephemeral message. It is not stored in the room; only that person's open pages ever have it.

        The last 1,000 per person are kept aside so that their buttons work, as in a client that was not reloaded.
        """
        message = Message(
            self.next_ts(),
            room.id,
            user=by,
            text=text,
            is_bot=by == BOT_USER,
            blocks=blocks,
            thread_ts=thread_ts,
            ephemeral_to=user,
        )
        kept = self.ephemerals.setdefault(user, {})
        kept[message.ts] = message
        if len(kept) > 1000:
            del kept[next(iter(kept))]
        self.show_whisper(message)
        return message

    def show_whisper(self, message: Message) -> None:
        """Send an ephemeral message (again, when the app has replaced it) to the pages of its one reader."""
        payload = {"type": "ephemeral", "channel": message.channel, "message": self.page_message(message)}
        self._screens.show([str(message.ephemeral_to)], payload)

    def drop_whisper(self, message: Message) -> None:
        """Take an ephemeral message off the screen (``delete_original``)."""
        reader = str(message.ephemeral_to)
        self.ephemerals.get(reader, {}).pop(message.ts, None)
        self._screens.show([reader], {"type": "message_deleted", "channel": message.channel, "ts": message.ts})

    def read(self, room: Room, user: str) -> None:
        """Mark everything in the room as read by this person."""
        room.last_read[user] = self.next_ts()
        room.mentions.pop(user, None)
        self._show_unread(room, [user])

    def _show_unread(self, room: Room, audience: Iterable[str]) -> None:
        for user in audience:
            if user in room.members:
                unread, mentions = room.unread(user)
                payload = {"type": "unread", "channel": room.id, "unread": unread, "mentions": mentions}
                self._screens.show([user], payload)

    # --- How a message is written ---------------------------------------------------------------------------------

    def api_message(self, message: Message, *, with_metadata: bool = False) -> Json:
        """Return Slack's message object; ``metadata`` only for ``include_all_metadata``."""
        author = self.people.get(message.user)
        body: Json = {
            "type": "message",
            "user": message.user,
            "text": message.text,
            "ts": message.ts,
            "team": author.team_id if author else self.team_id,
        }
        if message.is_bot:
            body |= {"bot_id": BOT_ID, "app_id": APP_ID, "bot_profile": {"id": BOT_ID, "name": self.app.display_name}}
        if message.blocks is not None:
            body["blocks"] = message.blocks
        if message.attachments:
            body["attachments"] = message.attachments
        if message.thread_ts is not None:
            body["thread_ts"] = message.thread_ts
        if message.broadcast:
            body["subtype"] = "thread_broadcast"
        if message.tombstone:
            body["subtype"] = "tombstone"
        if message.replies:
            body |= {
                "reply_count": len(message.replies),
                "reply_users_count": len(message.reply_users),
                "reply_users": message.reply_users[:5],
                "latest_reply": message.replies[-1],
            }
        if message.edited:
            body["edited"] = message.edited
        if message.files:
            body["files"] = [self.file_json(file) for file in message.files]
        if message.reactions:
            body["reactions"] = [
                {"name": name, "count": len(users), "users": users} for name, users in message.reactions.items()
            ]
        if message.pinned:
            body["pinned_to"] = [message.channel]
        if with_metadata and message.metadata is not None:
            body["metadata"] = message.metadata
        return body

    def page_message(self, message: Message) -> Json:
        """Return the message as the page and the driver get it."""
        author = self.people.get(message.user)
        name = "Slackbot" if message.user == SLACKBOT else author.real_name if author else message.user
        body: Json = {
            "ts": message.ts,
            "channel": message.channel,
            "user": message.user,
            "username": name,
            "is_bot": message.is_bot or message.user == SLACKBOT,
            "text": message.text,
            "edited": message.edited is not None,
            "ephemeral": message.ephemeral_to is not None,
        }
        if message.blocks is not None:
            body["blocks"] = message.blocks
        if message.attachments:
            body["attachments"] = message.attachments
        if message.thread_ts is not None:
            body["thread_ts"] = message.thread_ts
        if message.broadcast:
            body["broadcast"] = True
        if message.replies:
            body |= {
                "reply_count": len(message.replies),
                "latest_reply": message.replies[-1],
                "reply_users": message.reply_users[:5],
            }
        if message.files:
            body["files"] = [
                {
                    "id": f["id"],
                    "name": f["name"],
                    "title": f["title"],
                    "size": f["size"],
                    "url": f["path"],
                    **({"alt": f["alt_txt"]} if "alt_txt" in f else {}),
                }
                for f in message.files
            ]
        if message.reactions:
            body["reactions"] = {name: len(users) for name, users in message.reactions.items()}
        if message.pinned:
            body["pinned"] = True
        if message.metadata is not None:
            body["metadata"] = message.metadata
        return body

    @staticmethod
    def file_json(file: Json) -> Json:
        """Return Slack's file object, without the bytes."""
        hidden = {"data", "path", "length"}
        return {key: value for key, value in file.items() if key not in hidden}

    def thread_of(self, room: Room, ts: str) -> list[Message]:
        """Return a parent and its replies, oldest first."""
        parent = room.messages.get(ts)
        if parent is None:
            raise SlackError("thread_not_found")
        if parent.is_reply:
            parent = room.messages[str(parent.thread_ts)]
        return [parent, *(room.messages[reply] for reply in parent.replies)]


def _offset(zone: str, at: float) -> int:
    """Return the seconds by which a time zone is ahead of UTC then, as Slack's ``tz_offset``."""
    try:
        span = datetime.fromtimestamp(at, ZoneInfo(zone)).utcoffset()
    except (KeyError, ValueError, OSError):
        return 0
    return int(span.total_seconds()) if span else 0
