"""What does the workspace answer when the app calls a Web API method?

Rules:
- Exactly the methods of ``METHODS`` exist; each row holds its rate-limit tier, its scopes and its kind of token.
- Checked in this order: method, token, kind of token, scope, rate limit, then the method's own rules. A refused call
  has changed nothing.
- A method runs without waiting, so two calls never see each other half done.
- Stricter than Slack, because leaving it out is always a mistake: a message needs ``text`` also when it has blocks
  (screen readers and notifications read only that), and a thread that does not exist is refused.
"""

from __future__ import annotations

import math
import mimetypes
from dataclasses import dataclass, field
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final

from bot.sandbox.arguments import MOST_TEXT_OF_UPDATE, PAGE, Said, between, flag, page_of, parsed, read_message
from bot.sandbox.workspace import APP_ID, BOT_ID, BOT_USER, Message, Room, SlackError, Workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bot.sandbox.modals import Modals
    from bot.sandbox.socketmode import Link

Json = dict[str, Any]

#: Calls per minute of each tier (https://docs.slack.dev/apis/web-api/rate-limits). Tier 1 promises one per minute and
#: tolerates bursts; ten are let through at once because an app may open its ten sockets at once.
TIERS: Final = {1: 10, 2: 20, 3: 50, 4: 100, 9: 600}
POSTS_AT_ONCE: Final = 5  # chat.postMessage: one per second and channel, and a short burst


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer: status, JSON body, further headers."""

    body: Json
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The two tokens that this workspace knows."""

    bot: str = field(repr=False)
    app: str = field(repr=False)

    def kind(self, token: str) -> str | None:
        """Return ``bot``, ``app`` or None for a token that nobody issued."""
        return {self.bot: "bot", self.app: "app"}.get(token)


class Bucket:
    """A token bucket: ``size`` at once, refilled at ``per_second``."""

    def __init__(self, size: float, per_second: float, now: float) -> None:
        self._size = size
        self._per_second = per_second
        self._level = size
        self._at = now

    def take(self, now: float) -> int:
        """Take one; 0 when it was there, else the whole seconds to wait."""
        self._level = min(self._size, self._level + max(0.0, now - self._at) * self._per_second)
        self._at = now
        if self._level >= 1:
            self._level -= 1
            return 0
        return max(1, math.ceil((1 - self._level) / self._per_second))


class WebApi:
    """The Web API of the workspace. ``rate_limits`` scales every limit; 0 switches them off."""

    def __init__(
        self,
        workspace: Workspace,
        modals: Modals,
        link: Link,
        *,
        tokens: Tokens,
        clock: Callable[[], float],
        rate_limits: float,
    ) -> None:
        self._workspace = workspace
        self._modals = modals
        self._link = link
        self._tokens = tokens
        self._clock = clock
        self._rate_limits = rate_limits
        self._buckets: dict[str, Bucket] = {}
        self.url = ""

    # --- The gate -------------------------------------------------------------------------------------------------

    def call(self, method: str, token: str | None, args: Json) -> Reply:
        """Answer one call."""
        known = METHODS.get(method)
        if known is None:
            return Reply({"ok": False, "error": "unknown_method", "req_method": method})
        scopes = self._workspace.app.scopes
        headers = {"X-OAuth-Scopes": ",".join(sorted(scopes)), "X-Accepted-OAuth-Scopes": ",".join(known.scopes)}
        try:
            kind = self._kind_of(token)
            if kind not in known.tokens:
                raise SlackError("not_allowed_token_type")  # noqa: TRY301
            if kind == "bot" and known.scopes and not scopes & set(known.scopes):
                raise self._missing(known.scopes[0])
            wait = self._wait(method, known.tier, args)
            if wait:
                return rate_limited(wait)
            body = known.run(self, {**args, "_token_kind": kind})
        except SlackError as error:
            return Reply({"ok": False, "error": error.code, **error.extra}, headers=headers)
        return Reply({"ok": True, **body}, headers=headers)

    def _kind_of(self, token: str | None) -> str:
        if not token:
            raise SlackError("not_authed")
        kind = self._tokens.kind(token)
        if kind is None:
            raise SlackError("invalid_auth")
        return kind

    def _missing(self, needed: str) -> SlackError:
        return SlackError("missing_scope", needed=needed, provided=",".join(sorted(self._workspace.app.scopes)))

    def _need(self, scope: str) -> None:
        if scope not in self._workspace.app.scopes:
            raise self._missing(scope)

    def _wait(self, method: str, tier: int | None, args: Json) -> int:
        if not self._rate_limits:
            return 0
        now = self._clock()
        if tier is None:
            key, size, per_second = f"{method} {args.get('channel')}", float(POSTS_AT_ONCE), 1.0
        else:
            key, size, per_second = method, float(TIERS[tier]), TIERS[tier] / 60
        bucket = self._buckets.get(key)
        if bucket is None:
            scaled = max(1.0, size * self._rate_limits)
            bucket = self._buckets[key] = Bucket(scaled, per_second * self._rate_limits, now)
        return bucket.take(now)

    # --- Rooms ----------------------------------------------------------------------------------------------------

    def _room(self, args: Json, name: str = "channel") -> Room:
        """Return a room that the app knows to exist: public channels, and private rooms it is a member of."""
        room = self._workspace.rooms.get(str(args.get(name, "")))
        if room is None or (room.is_private and BOT_USER not in room.members):
            raise SlackError("channel_not_found")
        return room

    def _room_to_post(self, args: Json, name: str = "channel") -> Room:
        target = str(args.get(name, ""))
        if target in self._workspace.people:
            person = self._workspace.people[target]
            if person.deleted or person.is_bot:
                raise SlackError("channel_not_found")
            if not self._workspace.app.messages_tab:
                raise SlackError("messages_tab_disabled")
            return self._workspace.direct(BOT_USER, target)
        room = self._room(args, name)
        if room.is_archived:
            raise SlackError("is_archived")
        if BOT_USER not in room.members and "chat:write.public" not in self._workspace.app.scopes:
            raise SlackError("not_in_channel")
        return room

    def _room_to_read(self, args: Json, what: str) -> Room:
        room = self._room(args)
        family = "im" if room.kind == "im" else "groups" if room.is_private else "channels"
        self._need(f"{family}:{what}")
        if what == "history" and BOT_USER not in room.members:
            raise SlackError("not_in_channel")
        return room

    def _own_message(self, room: Room, ts: object, refusal: str) -> Message:
        message = self._workspace.message(room, str(ts))
        if message.user != BOT_USER:
            raise SlackError(refusal)
        if room.is_archived:
            raise SlackError("is_archived")
        return message

    # --- chat -----------------------------------------------------------------------------------------------------

    def chat_post_message(self, args: Json) -> Json:
        """chat.postMessage."""
        room = self._room_to_post(args)
        said = read_message(args)
        thread_ts = args.get("thread_ts")
        message = self._workspace.post(
            room,
            BOT_USER,
            said.text,
            blocks=said.blocks,
            attachments=said.attachments,
            thread_ts=None if thread_ts is None else str(thread_ts),
            broadcast=flag(args.get("reply_broadcast")),
            metadata=said.metadata,
        )
        return {"channel": room.id, "ts": message.ts, "message": self._workspace.api_message(message)}

    def chat_update(self, args: Json) -> Json:
        """chat.update: blocks, attachments and metadata that are not given stay; text must be given."""
        room = self._room(args)
        message = self._own_message(room, args.get("ts"), "cant_update_message")
        if message.tombstone:
            raise SlackError("cant_update_message")
        said = read_message(args, most_text=MOST_TEXT_OF_UPDATE)
        changes: Json = {"text": said.text}
        for name, value in (("blocks", said.blocks), ("attachments", said.attachments), ("metadata", said.metadata)):
            if args.get(name) is not None:
                changes[name] = value or None
        self._workspace.edit(room, message, by=BOT_USER, **changes)
        body = self._workspace.api_message(message)
        return {"channel": room.id, "ts": message.ts, "text": message.text, "message": body}

    def chat_delete(self, args: Json) -> Json:
        """chat.delete: own messages only."""
        room = self._room(args)
        message = self._own_message(room, args.get("ts"), "cant_delete_message")
        self._workspace.delete(room, message)
        return {"channel": room.id, "ts": message.ts}

    def chat_post_ephemeral(self, args: Json) -> Json:
        """chat.postEphemeral: says ok whether or not anybody saw it, as Slack does."""
        room = self._room_to_post(args)
        user = str(args.get("user", ""))
        if user not in room.members or self._workspace.person(user).deleted:
            raise SlackError("user_not_in_channel")
        said = read_message(args)
        thread_ts = args.get("thread_ts")
        if thread_ts is not None and str(thread_ts) not in room.messages:
            raise SlackError("thread_not_found")
        message = self._workspace.whisper(
            room, user, said.text, blocks=said.blocks, thread_ts=None if thread_ts is None else str(thread_ts)
        )
        return {"message_ts": message.ts}

    def chat_get_permalink(self, args: Json) -> Json:
        """chat.getPermalink."""
        room = self._room(args)
        message = self._workspace.message(room, str(args.get("message_ts", "")))
        link = f"{self.url}/archives/{room.id}/p{message.ts.replace('.', '')}"
        if message.is_reply:
            link += f"?thread_ts={message.thread_ts}&cid={room.id}"
        return {"channel": room.id, "permalink": link}

    # --- views ----------------------------------------------------------------------------------------------------

    def views_open(self, args: Json) -> Json:
        """views.open."""
        return {"view": self._modals.open(args.get("trigger_id"), args.get("view")).body}

    def views_push(self, args: Json) -> Json:
        """views.push."""
        return {"view": self._modals.push(args.get("trigger_id"), args.get("view")).body}

    def views_update(self, args: Json) -> Json:
        """views.update."""
        view = self._modals.update(
            args.get("view"),
            view_id=args.get("view_id"),
            external_id=args.get("external_id"),
            view_hash=args.get("hash"),
        )
        return {"view": view.body}

    def views_publish(self, args: Json) -> Json:
        """views.publish."""
        return {
            "view": self._modals.publish(
                str(args.get("user_id", "")), args.get("view"), view_hash=args.get("hash")
            ).body
        }

    # --- people ---------------------------------------------------------------------------------------------------

    def users_info(self, args: Json) -> Json:
        """users.info."""
        return {"user": self._workspace.user_json(self._workspace.person(str(args.get("user", ""))))}

    def users_get_presence(self, args: Json) -> Json:
        """users.getPresence: of somebody else Slack says only this one word."""
        person = self._workspace.person(str(args.get("user") or BOT_USER))
        return {"presence": "active" if self._workspace.is_active(person.id) else "away"}

    def users_list(self, args: Json) -> Json:
        """users.list."""
        people = [self._workspace.user_json(person) for person in self._workspace.people.values()]
        page, more = page_of(people, args, usual=PAGE)
        return {"members": page, "cache_ts": int(self._clock()), **more}

    def usergroups_list(self, args: Json) -> Json:
        """usergroups.list."""
        groups = []
        for group in self._workspace.groups.values():
            body: Json = {
                "id": group.id,
                "team_id": self._workspace.team_id,
                "is_usergroup": True,
                "name": group.name,
                "handle": group.handle,
                "description": "",
                "is_external": False,
                "date_delete": 0,
            }
            if flag(args.get("include_users")):
                body["users"] = list(group.members)
            if flag(args.get("include_count")):
                body["user_count"] = len(group.members)
            groups.append(body)
        return {"usergroups": groups}

    def usergroups_users_list(self, args: Json) -> Json:
        """usergroups.users.list."""
        group = self._workspace.groups.get(str(args.get("usergroup", "")))
        if group is None:
            raise SlackError("no_such_subteam")
        return {"users": list(group.members)}

    # --- conversations --------------------------------------------------------------------------------------------

    def _channel_json(self, room: Room) -> Json:
        if room.kind == "im":
            other = next((user for user in room.members if user != BOT_USER), BOT_USER)
            return {"id": room.id, "created": 0, "is_im": True, "is_archived": False, "user": other}
        return {
            "id": room.id,
            "name": room.name,
            "name_normalized": room.name,
            "is_channel": not room.is_private,
            "is_group": room.is_private,
            "is_im": False,
            "is_mpim": False,
            "is_private": room.is_private,
            "is_archived": room.is_archived,
            "is_general": False,
            "is_shared": False,
            "is_ext_shared": False,
            "is_member": BOT_USER in room.members,
            "created": 0,
            "creator": "",
            "topic": {"value": room.topic, "creator": "", "last_set": 0},
            "purpose": {"value": "", "creator": "", "last_set": 0},
        }

    def conversations_info(self, args: Json) -> Json:
        """conversations.info."""
        room = self._room_to_read(args, "read")
        body = self._channel_json(room)
        if flag(args.get("include_num_members")):
            body["num_members"] = len(room.members)
        return {"channel": body}

    def conversations_members(self, args: Json) -> Json:
        """conversations.members."""
        room = self._room_to_read(args, "read")
        page, more = page_of(sorted(room.members), args, usual=100)
        return {"members": page, **more}

    def conversations_list(self, args: Json) -> Json:
        """conversations.list: public channels unless ``types`` says otherwise."""
        types = str(args.get("types") or "public_channel").split(",")
        families = {"public_channel": "channels:read", "private_channel": "groups:read", "im": "im:read"}
        rooms: list[Room] = []
        for kind in types:
            if kind.strip() not in families:
                raise SlackError("invalid_types")
            self._need(families[kind.strip()])
            rooms += [room for room in self._workspace.rooms.values() if _type_of(room) == kind.strip()]
        rooms = [room for room in rooms if not room.is_private or BOT_USER in room.members]
        if flag(args.get("exclude_archived")):
            rooms = [room for room in rooms if not room.is_archived]
        page, more = page_of([self._channel_json(room) for room in rooms], args, usual=100)
        return {"channels": page, **more}

    def conversations_history(self, args: Json) -> Json:
        """conversations.history: newest first, without replies."""
        room = self._room_to_read(args, "history")
        low, high = between(room.top, args)
        wanted = room.top[low:high]
        wanted.reverse()
        page, more = page_of(wanted, args, usual=100, most=999)
        whole = flag(args.get("include_all_metadata"))
        messages = [self._workspace.api_message(room.messages[ts], with_metadata=whole) for ts in page]
        return {"messages": messages, "has_more": bool(more), "pin_count": 0, **more}

    def conversations_replies(self, args: Json) -> Json:
        """conversations.replies: the parent, then its replies, oldest first."""
        room = self._room_to_read(args, "history")
        thread = self._workspace.thread_of(room, str(args.get("ts", "")))
        replies = [message.ts for message in thread[1:]]
        low, high = between(replies, args)
        wanted = [thread[0].ts, *replies[low:high]]
        page, more = page_of(wanted, args, usual=PAGE)
        whole = flag(args.get("include_all_metadata"))
        messages = [self._workspace.api_message(room.messages[ts], with_metadata=whole) for ts in page]
        return {"messages": messages, "has_more": bool(more), **more}

    def conversations_open(self, args: Json) -> Json:
        """conversations.open: a direct message with one person."""
        if args.get("channel"):
            room = self._room(args)
            return {"channel": {"id": room.id}, "no_op": True, "already_open": True}
        users = [user for user in str(args.get("users") or "").split(",") if user]
        if not users:
            raise SlackError("users_list_not_supplied")
        if len(users) > 1:
            raise self._missing("mpim:write")
        person = self._workspace.person(users[0])
        if person.is_bot:
            raise SlackError("cannot_dm_bot")
        if person.deleted:
            raise SlackError("user_disabled")
        room = self._workspace.direct(BOT_USER, person.id)
        return {"channel": self._channel_json(room) if flag(args.get("return_im")) else {"id": room.id}}

    def conversations_join(self, args: Json) -> Json:
        """conversations.join: public channels only."""
        room = self._room(args)
        if room.kind == "im" or room.is_private:
            raise SlackError("method_not_supported_for_channel_type")
        if room.is_archived:
            raise SlackError("is_archived")
        already = BOT_USER in room.members
        self._workspace.change_channel(room, members=room.members | {BOT_USER}, is_archived=None)
        note = {"warning": "already_in_channel", "response_metadata": {"warnings": ["already_in_channel"]}}
        return {"channel": self._channel_json(room), **(note if already else {})}

    # --- pins, reactions, files -----------------------------------------------------------------------------------

    def pins_add(self, args: Json) -> Json:
        """pins.add."""
        room = self._room_to_post(args)
        if not args.get("timestamp"):
            raise SlackError("no_item_specified")
        message = self._workspace.message(room, str(args["timestamp"]))
        if message.pinned:
            raise SlackError("already_pinned")
        message.pinned = True
        self._workspace.touch(room, message)
        return {}

    def reactions_add(self, args: Json) -> Json:
        """reactions.add."""
        name = str(args.get("name", "")).strip(":")
        if not name:
            raise SlackError("invalid_name")
        if not args.get("timestamp"):
            raise SlackError("no_item_specified")
        room = self._room_to_post(args)
        message = self._workspace.message(room, str(args["timestamp"]))
        users = message.reactions.setdefault(name, [])
        if BOT_USER in users:
            raise SlackError("already_reacted")
        users.append(BOT_USER)
        self._workspace.touch(room, message)
        return {}

    def files_get_upload_url(self, args: Json) -> Json:
        """files.getUploadURLExternal: a file id and an address for its bytes."""
        name = str(args.get("filename") or "")
        try:
            length = int(args.get("length") or 0)
        except ValueError:
            raise SlackError("invalid_arguments") from None
        if not name or length < 1 or len(str(args.get("alt_txt") or "")) > 1000:
            raise SlackError("invalid_arguments")
        file_id = f"F0{token_hex(4).upper()}"
        path = f"/files/{file_id}/{name.replace('/', '_')}"
        self._workspace.files[file_id] = {
            "id": file_id,
            "name": name,
            "title": name,
            **({"alt_txt": str(args["alt_txt"])} if args.get("alt_txt") else {}),
            "mimetype": mimetypes.guess_type(name)[0] or "application/octet-stream",
            "filetype": name.rpartition(".")[2] or "binary",
            "user": BOT_USER,
            "created": int(self._clock()),
            "timestamp": int(self._clock()),
            "size": length,
            "is_external": False,
            "is_public": False,
            "channels": [],
            "url_private": f"{self.url}{path}",
            "url_private_download": f"{self.url}{path}",
            "permalink": f"{self.url}{path}",
            "path": path,
            "length": length,
            "data": None,
        }
        return {"upload_url": f"{self.url}/upload/{file_id}", "file_id": file_id}

    def files_complete_upload(self, args: Json) -> Json:
        """files.completeUploadExternal: share the uploaded files in one message of a channel or direct message."""
        given = parsed(args.get("files"))
        if not isinstance(given, list) or not given:
            raise SlackError("invalid_arguments")
        targets = [str(args["channel_id"])] if args.get("channel_id") else str(args.get("channels") or "").split(",")
        rooms = []
        for target in filter(None, targets):
            if target in self._workspace.people:
                raise SlackError("channel_not_found")  # a user id does not do here, as in Slack
            rooms.append(self._room_to_post({"channel": target}))
        files = []
        for one in given:
            file = self._workspace.files.get(str(one.get("id")) if isinstance(one, dict) else "")
            if file is None or file["data"] is None or file["channels"]:
                raise SlackError("file_not_found")
            files.append(file)
        for one, file in zip(given, files, strict=True):
            file["title"] = str(one.get("title") or file["name"])
            file["channels"] = [room.id for room in rooms]
        thread_ts = args.get("thread_ts")
        for room in rooms:
            self._workspace.post(
                room,
                BOT_USER,
                str(args.get("initial_comment") or ""),
                thread_ts=None if not thread_ts else str(thread_ts),
                files=files,
            )
        return {"files": [self._workspace.file_json(file) for file in files]}

    # --- the app itself -------------------------------------------------------------------------------------------

    def auth_test(self, args: Json) -> Json:
        """auth.test: who the token is."""
        team = {"team": self._workspace.team_name, "team_id": self._workspace.team_id, "url": f"{self.url}/"}
        if args["_token_kind"] == "app":  # noqa: S105
            return {"app_name": self._workspace.app.name, "app_id": APP_ID}
        bot = self._workspace.people[BOT_USER]
        return {**team, "user": bot.name, "user_id": BOT_USER, "bot_id": BOT_ID, "is_enterprise_install": False}

    def team_info(self, _args: Json) -> Json:
        """team.info."""
        return {
            "team": {"id": self._workspace.team_id, "name": self._workspace.team_name, "domain": self._workspace.domain}
        }

    def apps_connections_open(self, _args: Json) -> Json:
        """apps.connections.open: the address of a new socket."""
        host = self.url.partition("://")[2]
        return {"url": f"ws://{host}/link?ticket={self._link.new_ticket()}&app_id={APP_ID}"}

    # --- response_url ---------------------------------------------------------------------------------------------

    def respond(self, key: str, args: Json) -> Json:
        """Answer a post to a response_url; it needs no token, no scope and no membership.

        Raises:
            SlackError: used up, too old, or a message that Slack would refuse; only a good post counts as a use.

        """
        right = self._modals.response_url(key)
        room = self._workspace.rooms[right.channel]
        original = right.message_ts
        whisper = self._workspace.ephemerals.get(right.user, {}).get(original or "")
        if flag(args.get("delete_original")):
            right.uses += 1
            if whisper is not None:
                self._workspace.drop_whisper(whisper)
            elif original in room.messages:
                self._workspace.delete(room, room.messages[original])
            return {}
        said = read_message(args)
        right.uses += 1
        if flag(args.get("replace_original")) and whisper is not None:
            whisper.text, whisper.blocks = said.text, said.blocks
            self._workspace.show_whisper(whisper)
        elif flag(args.get("replace_original")) and original in room.messages:
            self._workspace.edit(room, room.messages[original], by=BOT_USER, text=said.text, blocks=said.blocks)
        else:
            self.say(room, right.user, said, args, thread_ts=args.get("thread_ts") and str(args["thread_ts"]))
        return {}

    def say(self, room: Room, user: str, said: Said, args: Json, *, thread_ts: str | None = None) -> None:
        """Show a command's or interaction's answer: to its person only, or with ``in_channel`` to all."""
        if args.get("response_type") == "in_channel":
            self._workspace.post(
                room, BOT_USER, said.text, blocks=said.blocks, attachments=said.attachments, thread_ts=thread_ts
            )
        else:
            self._workspace.whisper(room, user, said.text, blocks=said.blocks, thread_ts=thread_ts)


def _type_of(room: Room) -> str:
    return "im" if room.kind == "im" else "private_channel" if room.is_private else "public_channel"


@dataclass(frozen=True, slots=True)
class _Method:
    run: Callable[[WebApi, Json], Json]
    tier: int | None
    scopes: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ("bot",)


_READ: Final = ("channels:read", "groups:read", "im:read", "mpim:read")
_HISTORY: Final = ("channels:history", "groups:history", "im:history", "mpim:history")

METHODS: Final[dict[str, _Method]] = {
    "apps.connections.open": _Method(WebApi.apps_connections_open, 1, tokens=("app",)),
    "auth.test": _Method(WebApi.auth_test, 9, tokens=("bot", "app")),
    "chat.delete": _Method(WebApi.chat_delete, 3, ("chat:write",)),
    "chat.getPermalink": _Method(WebApi.chat_get_permalink, 9),
    "chat.postEphemeral": _Method(WebApi.chat_post_ephemeral, 4, ("chat:write",)),
    "chat.postMessage": _Method(WebApi.chat_post_message, None, ("chat:write",)),
    "chat.update": _Method(WebApi.chat_update, 3, ("chat:write",)),
    "conversations.history": _Method(WebApi.conversations_history, 3, _HISTORY),
    "conversations.info": _Method(WebApi.conversations_info, 3, _READ),
    "conversations.join": _Method(WebApi.conversations_join, 3, ("channels:join",)),
    "conversations.list": _Method(WebApi.conversations_list, 2, _READ),
    "conversations.members": _Method(WebApi.conversations_members, 4, _READ),
    "conversations.open": _Method(WebApi.conversations_open, 3, ("im:write",)),
    "conversations.replies": _Method(WebApi.conversations_replies, 3, _HISTORY),
    "files.completeUploadExternal": _Method(WebApi.files_complete_upload, 4, ("files:write",)),
    "files.getUploadURLExternal": _Method(WebApi.files_get_upload_url, 4, ("files:write",)),
    "pins.add": _Method(WebApi.pins_add, 2, ("pins:write",)),
    "reactions.add": _Method(WebApi.reactions_add, 3, ("reactions:write",)),
    "team.info": _Method(WebApi.team_info, 3, ("team:read",)),
    "usergroups.list": _Method(WebApi.usergroups_list, 2, ("usergroups:read",)),
    "usergroups.users.list": _Method(WebApi.usergroups_users_list, 2, ("usergroups:read",)),
    "users.getPresence": _Method(WebApi.users_get_presence, 3, ("users:read",)),
    "users.info": _Method(WebApi.users_info, 4, ("users:read",)),
    "users.list": _Method(WebApi.users_list, 2, ("users:read",)),
    "views.open": _Method(WebApi.views_open, 4),
    "views.publish": _Method(WebApi.views_publish, 4),
    "views.push": _Method(WebApi.views_push, 4),
    "views.update": _Method(WebApi.views_update, 4),
}


def rate_limited(seconds: int) -> Reply:
    """Return Slack's answer to too many calls."""
    return Reply({"ok": False, "error": "ratelimited"}, status=429, headers={"Retry-After": str(seconds)})
