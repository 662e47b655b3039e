"""What do people see and do? The part of the sandbox behind the page, the tests and the demo player.

Rules:
- A person can do only what Slack's own client would let them do: click what stands before them, submit the form on
  top, type where they are a member. Everything else is refused with a sentence, and the app hears nothing.
- ``confirm`` dialogs are the client's business: a click on such an element must say ``confirmed``.
- ``in_flight`` is the one way round: a click that was on its way when the button vanished or the account was
  deactivated. Only tests use it.
- Each deed is answered when the app has acknowledged it or three seconds are over.
"""

from __future__ import annotations

import asyncio
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from bot.sandbox.answers import BadAnswer, find_element, initial_values, read_answer, state_key, submit_errors
from bot.sandbox.arguments import read_message
from bot.sandbox.blocks import options_of
from bot.sandbox.events import VERIFICATION_TOKEN
from bot.sandbox.socketmode import Answer, Envelope, Link
from bot.sandbox.workspace import (
    APP_ID,
    BOT_USER,
    SLACKBOT,
    Channel,
    Group,
    Message,
    Person,
    Room,
    SlackError,
    Workspace,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bot.sandbox.journal import Faults, Journal
    from bot.sandbox.modals import Modals, OpenView
    from bot.sandbox.screens import Pages
    from bot.sandbox.webapi import WebApi

Json = dict[str, Any]

_ANSWERS: Final = (
    "value",
    "selected_option",
    "selected_options",
    "selected_user",
    "selected_users",
    "selected_channel",
    "selected_date",
    "selected_time",
    "selected_date_time",
)
_COPIED: Final = ("text", "value", "style", "url", "confirm", "placeholder", "initial_option", "initial_user")


class Refusal(Exception):
    """This person cannot do that now; the sentence is for them, ``status`` for HTTP."""

    def __init__(self, sentence: str, status: int = 409) -> None:
        super().__init__(sentence)
        self.status = status


class People:
    """The people API, one method per deed. Everything is keyed by ``as``, the acting person's id."""

    def __init__(
        self,
        workspace: Workspace,
        modals: Modals,
        link: Link,
        web: WebApi,
        *,
        pages: Pages,
        journal: Journal,
        faults: Faults,
    ) -> None:
        self._workspace = workspace
        self._modals = modals
        self._link = link
        self._web = web
        self._pages = pages
        self._journal = journal
        self._faults = faults
        self._tasks: set[asyncio.Task[Answer]] = set()

    # --- Who and where --------------------------------------------------------------------------------------------

    def actor(self, user: object, *, in_flight: bool = False) -> Person:
        """Return the person who acts, or refuse."""
        person = self._workspace.people.get(str(user))
        if person is None:
            raise Refusal(f"There is nobody with the id {user}.", 404)
        if person.deleted and not in_flight:
            raise Refusal(f"The account of {person.real_name} is deactivated.", 403)
        if person.is_bot and not in_flight:
            raise Refusal(f"{person.real_name} is a bot and has no hands.", 403)
        return person

    def room(self, person: Person, room_id: object) -> Room:
        """Return a room that this person can see, or refuse."""
        room = self._workspace.rooms.get(str(room_id))
        if room is None or not self._workspace.sees(person.id, room):
            raise Refusal(f"{person.real_name} cannot see the conversation {room_id}.", 404)
        return room

    # --- What people see ------------------------------------------------------------------------------------------

    def workspace(self) -> Json:
        """Return people, groups, commands and the app."""
        app = self._workspace.app
        return {
            "team": {"id": self._workspace.team_id, "name": self._workspace.team_name},
            "app": {
                "id": APP_ID,
                "name": app.display_name,
                "bot_user_id": BOT_USER,
                "home_tab": app.home_tab,
                "messages_tab": app.messages_tab,
                "messages_read_only": app.messages_read_only,
            },
            "people": [_person_json(person) for person in self._workspace.people.values()],
            "commands": [
                {key: command.get(key, "") for key in ("command", "description", "usage_hint")}
                for command in self._commands()
            ],
            "shortcuts": [dict(shortcut) for shortcut in app.shortcuts],
            "groups": [
                {"id": group.id, "handle": group.handle, "name": group.name, "members": list(group.members)}
                for group in self._workspace.groups.values()
            ],
        }

    def _commands(self) -> list[Json]:
        app = self._workspace.app
        return list(app.commands) if "commands" in app.scopes else []

    def conversations(self, user: object) -> Json:
        """Return the channels, direct messages and the app's Home of one person."""
        person = self.actor(user)
        app = self._workspace.app
        if app.messages_tab:
            self._workspace.direct(BOT_USER, person.id)
        found: list[Json] = []
        for room in self._workspace.rooms.values():
            if room.kind == "im" and person.id not in room.members:
                continue
            if not self._workspace.sees(person.id, room):
                continue
            unread, mentions = room.unread(person.id)
            name, with_user = room.name, None
            if room.kind == "im":
                with_user = next((member for member in room.members if member != person.id), person.id)
                other = self._workspace.people[with_user]
                name = app.display_name if with_user == BOT_USER else other.real_name
            found.append(
                {
                    "id": room.id,
                    "kind": "dm" if room.kind == "im" else "channel",
                    "name": name,
                    "topic": room.topic,
                    "is_member": person.id in room.members,
                    "is_private": room.is_private,
                    "is_archived": room.is_archived,
                    "user": with_user,
                    "unread": unread if person.id in room.members else 0,
                    "mentions": mentions if person.id in room.members else 0,
                    "last_ts": room.top[-1] if room.top else None,
                }
            )
        if app.home_tab:
            home = {"id": APP_ID, "kind": "app_home", "name": app.display_name, "topic": "", "is_member": True}
            found.append({**home, "unread": 0, "mentions": 0, "last_ts": None})
        return {"conversations": found}

    def messages(self, user: object, channel: object, thread_ts: str | None, limit: int) -> Json:
        """Return the newest of a room's top level, or of one thread; oldest first, without ephemerals."""
        person = self.actor(user)
        room = self.room(person, channel)
        if thread_ts is None:
            found = [room.messages[ts] for ts in room.top[-limit:]]
        else:
            try:
                parent, *replies = self._workspace.thread_of(room, thread_ts)
                found = [parent, *replies[-limit:]]
            except SlackError:
                raise Refusal("That message is gone.", 404) from None
        return {"messages": [self._workspace.page_message(message) for message in found]}

    def ephemerals(self, user: object, after: str) -> Json:
        """Return what was whispered to this person: for tests, which have no page to watch. The page never asks."""
        kept = self._workspace.ephemerals.get(str(user), {}).values()
        return {"messages": [self._workspace.page_message(message) for message in kept if message.ts > after]}

    def views(self, user: object) -> Json:
        """Return a person's open modals, bottom first."""
        person = self.actor(user)
        return {"stack": [view.body for view in self._modals.stacks.get(person.id, [])]}

    # --- Typing ---------------------------------------------------------------------------------------------------

    async def say(self, data: Json) -> Json:
        """Post a message, or type a slash command."""
        person = self.actor(data.get("as"))
        text = str(data.get("text", "")).strip()
        thread_ts = data.get("thread_ts")
        if not text:
            raise Refusal("There is nothing to send.", 400)
        target = str(data.get("channel"))
        if target in self._workspace.people:
            room = self._workspace.direct(person.id, target)
        else:
            room = self.room(person, target)
        if person.id not in room.members:
            raise Refusal(f"{person.real_name} is not a member of #{room.name}.")
        if room.is_archived:
            raise Refusal(f"#{room.name} is archived.")
        if text.startswith("/"):
            return await self._command(person, room, text, thread_ts)
        app = self._workspace.app
        if room.kind == "im" and BOT_USER in room.members and (app.messages_read_only or not app.messages_tab):
            raise Refusal("Sending messages to this app has been turned off.")
        self._journal.write("people", deed="message", **_told(data))
        try:
            message = self._workspace.post(room, person.id, text, thread_ts=thread_ts)
        except SlackError:
            raise Refusal("That thread is gone.", 404) from None
        return {"ok": True, "ts": message.ts}

    async def _command(self, person: Person, room: Room, text: str, thread_ts: object) -> Json:
        command, _, rest = text.partition(" ")
        known = any(one["command"] == command for one in self._commands())
        if not known or person.team_id != self._workspace.team_id:  # visitors have the commands of their own workspace
            raise Refusal(f"{command} is not a valid command.", 400)
        if thread_ts:
            raise Refusal(f"{command} is not supported in threads. Sorry!", 400)
        self._journal.write("people", deed="command", **{"as": person.id, "channel": room.id, "text": text})
        key = self._modals.new_response_url(person.id, room.id)
        payload = {
            "token": VERIFICATION_TOKEN,
            "team_id": self._workspace.team_id,
            "team_domain": self._workspace.domain,
            "channel_id": room.id,
            "channel_name": _room_name(room),
            "user_id": person.id,
            "user_name": person.name,
            "command": command,
            "text": rest.strip(),
            "api_app_id": APP_ID,
            "is_enterprise_install": "false",
            "response_url": self._response_url(key, "commands"),
            "trigger_id": self._modals.new_trigger(person.id),
        }
        answer = await self._link.send(Envelope.COMMAND, payload, accepts_response=True)
        if not answer.acknowledged:
            word = "operation_timeout" if answer.delivered else "dispatch_failed"
            self._workspace.whisper(room, person.id, f'{command} failed with the error "{word}"', by=SLACKBOT)
        return {
            "ok": True,
            "acknowledged": answer.acknowledged,
            "ms": answer.ms,
            "response": self._say_answer(person, room, answer.payload),
        }

    def _say_answer(self, person: Person, room: Room, payload: Json) -> str | None:
        """Show the message that came inside an acknowledgement, if there was one."""
        if not payload.get("text") and not payload.get("blocks"):
            return None
        try:
            said = read_message(payload)
        except SlackError as error:
            self._journal.write("refused", what="a message in an acknowledgement", error=error.code, **error.extra)
            return None
        self._web.say(room, person.id, said, payload)
        return said.text

    # --- Clicking -------------------------------------------------------------------------------------------------

    async def act(self, data: Json) -> Json:
        """Click a button, choose from a menu: one ``block_actions``."""
        in_flight = bool(data.get("in_flight"))
        person = self.actor(data.get("as"), in_flight=in_flight)
        if not self._workspace.app.interactive:
            raise Refusal("This app is not configured to handle interactive responses.")
        payload = self._interaction("block_actions", person)
        if data.get("view_id"):
            block, element = self._act_in_view(person, data, payload)
        else:
            block, element = self._act_in_message(person, data, payload)
        if element.get("confirm") and not data.get("confirmed"):
            raise Refusal("This asks for a confirmation first; say `confirmed` when it was given.")
        self._journal.write("people", deed="action", **_told(data))
        payload["actions"] = [self._action_json(block, element, data)]
        answer = await self._link.send(Envelope.INTERACTIVE, payload)
        if not answer.acknowledged:
            self._pages.show([person.id], {"type": "toast", "text": self._no_answer()})
        return {"acknowledged": answer.acknowledged, "ms": answer.ms}

    def _act_in_view(self, person: Person, data: Json, payload: Json) -> tuple[Json, Json]:
        view = self._modals.views.get(str(data["view_id"]))
        home = self._modals.homes.get(person.id)
        if view is None or view.user != person.id or (view is not home and view is not self._modals.top(person.id)):
            raise Refusal("This form is no longer open.")
        block, element = self._touch(view.body["blocks"], data)
        if block["type"] == "input" and not block.get("dispatch_action"):
            raise Refusal("This input tells the app only when the form is submitted.")
        try:
            state: Json = data.get("state") or {}
            values: Json = state.get("values", state)  # Slack's own wrapping, or without it
            self._modals.enter(view, values)
            if state_key(element):
                given = {"type": element["type"], **_given(data)}
                self._modals.enter(view, {block["block_id"]: {element["action_id"]: given}})
        except BadAnswer as error:
            raise Refusal(str(error), 400) from None
        except KeyError as error:
            raise Refusal(f"The form has no field {error.args[0]}.") from None
        payload["container"] = {"type": "view", "view_id": view.id}
        payload["view"] = view.body
        payload["trigger_id"] = self._modals.new_trigger(person.id, view.id)
        return block, element

    def _act_in_message(self, person: Person, data: Json, payload: Json) -> tuple[Json, Json]:
        room = self.room(person, data.get("channel"))
        ts = str(data.get("message_ts"))
        message = self._workspace.ephemerals.get(person.id, {}).get(ts) or room.messages.get(ts)
        if message is None or message.channel != room.id:
            raise Refusal("This message is gone.")
        blocks = _all_blocks(message)
        if data.get("in_flight") and isinstance(data.get("element"), dict):
            block, element = {"block_id": data.get("block_id"), "type": "actions"}, dict(data["element"])
        else:
            block, element = self._touch(blocks, data)
        key = self._modals.new_response_url(person.id, room.id, message_ts=message.ts, thread_ts=message.thread_ts)
        container = {
            "type": "message",
            "message_ts": message.ts,
            "channel_id": room.id,
            "is_ephemeral": message.ephemeral_to is not None,
        }
        if message.is_reply:
            container["thread_ts"] = message.thread_ts
        values = initial_values(blocks)
        if state_key(element):
            try:
                answer = read_answer(element, {"type": element["type"], **_given(data)})
            except BadAnswer as error:
                raise Refusal(str(error), 400) from None
            values[str(block["block_id"])][element["action_id"]] = answer
        payload |= {
            "container": container,
            "channel": {"id": room.id, "name": _room_name(room)},
            "state": {"values": values},
            "response_url": self._response_url(key, "actions"),
            "trigger_id": self._modals.new_trigger(person.id),
        }
        if message.ephemeral_to is None:  # Slack does not store an ephemeral and so cannot send it along
            payload["message"] = self._workspace.api_message(message)
        return block, element

    @staticmethod
    def _touch(blocks: list[Json], data: Json) -> tuple[Json, Json]:
        found = find_element(blocks, str(data.get("block_id")), str(data.get("action_id")))
        if found is None:
            raise Refusal("This button is no longer there.")
        return found

    def _action_json(self, block: Json, element: Json, data: Json) -> Json:
        kind = element["type"]
        action: Json = {
            "type": kind,
            "block_id": block["block_id"],
            "action_id": element["action_id"],
            "action_ts": self._workspace.next_ts(),
        }
        action |= {key: element[key] for key in _COPIED if key in element}
        if kind == "overflow":
            wanted = _given(data).get("selected_option", {})
            value = wanted.get("value") if isinstance(wanted, dict) else wanted
            option = next((one for one in options_of(element) if one["value"] == value), None)
            if option is None:
                raise Refusal("That is not one of the options.", 400)
            action["selected_option"] = option
        elif state_key(element):
            try:
                action |= read_answer(element, {"type": kind, **_given(data)})
            except BadAnswer as error:
                raise Refusal(str(error), 400) from None
        return action

    async def shortcut(self, data: Json) -> Json:
        """Use a shortcut of the manifest: on a message (``channel``, ``message_ts``) or globally."""
        person = self.actor(data.get("as"))
        known = next((s for s in self._workspace.app.shortcuts if s["callback_id"] == data.get("callback_id")), None)
        if known is None:
            raise Refusal("The app has no such shortcut.", 404)
        payload = self._interaction("message_action" if known["type"] == "message" else "shortcut", person)
        payload |= {
            "callback_id": known["callback_id"],
            "trigger_id": self._modals.new_trigger(person.id),
            "action_ts": self._workspace.next_ts(),
        }
        if known["type"] == "message":
            room = self.room(person, data.get("channel"))
            message = room.messages.get(str(data.get("message_ts")))
            if message is None:
                raise Refusal("This message is gone.")
            key = self._modals.new_response_url(person.id, room.id, thread_ts=message.thread_ts)
            payload |= {
                "channel": {"id": room.id, "name": _room_name(room)},
                "message": self._workspace.api_message(message),
                "message_ts": message.ts,
                "response_url": self._response_url(key, "app"),
            }
        self._journal.write("people", deed="shortcut", **_told(data))
        answer = await self._link.send(Envelope.INTERACTIVE, payload)
        if not answer.acknowledged:
            self._pages.show([person.id], {"type": "toast", "text": self._no_answer()})
        return {"acknowledged": answer.acknowledged, "ms": answer.ms}

    # --- Forms ----------------------------------------------------------------------------------------------------

    async def submit(self, view_id: str, data: Json) -> Json:
        """Submit the form on top: what the client refuses, the app never hears of."""
        person = self.actor(data.get("as"), in_flight=bool(data.get("in_flight")))
        view = self._own_view(person, view_id)
        if view is not self._modals.top(person.id):
            raise Refusal("There is another form on top of this one.")
        if not view.body["submit"]:
            raise Refusal("This form has nothing to submit.")
        try:
            self._modals.enter(view, data.get("values") or {})
        except BadAnswer as error:
            raise Refusal(str(error), 400) from None
        except KeyError as error:
            raise Refusal(f"The form has no field {error.args[0]}.") from None
        errors = submit_errors(view.body["blocks"], view.values)
        if errors:
            return {"result": "errors", "errors": errors, "ms": 0.0, "by": "client"}
        self._journal.write("people", deed="submit", view_id=view_id, **{"as": person.id})
        payload = self._interaction("view_submission", person)
        payload |= {"view": view.body, "response_urls": [], "trigger_id": self._modals.new_trigger(person.id, view.id)}
        answer = await self._link.send(Envelope.INTERACTIVE, payload, accepts_response=True)
        if not answer.acknowledged:
            return {"result": "timeout", "ms": answer.ms, "detail": self._no_answer()}
        try:
            return {**self._obey(person, view, answer.payload), "ms": answer.ms}
        except SlackError as error:
            # A view that Slack cannot show: the person sees a general error in the form, the app hears nothing.
            self._journal.write("refused", what="a response_action", error=error.code, **error.extra)
            return {"result": "timeout", "ms": answer.ms, "detail": "We had some trouble connecting. Try again?"}

    def _obey(self, person: Person, view: OpenView, payload: Json) -> Json:
        """Do what the acknowledgement of a submission asks for."""
        if view.closed:  # closed by hand while the app was thinking
            return {"result": "closed"}
        match payload.get("response_action"):
            case None:
                self._modals.pop(view)
                return {"result": "closed"}
            case "clear":
                self._modals.clear(person.id)
                return {"result": "cleared"}
            case "errors":
                errors = payload.get("errors")
                inputs = {block["block_id"] for block in view.body["blocks"] if block["type"] == "input"}
                if not isinstance(errors, dict) or not errors or not set(errors) <= inputs:
                    raise SlackError("invalid_arguments", errors=errors)
                self._pages.show([person.id], {"type": "view_errors", "view_id": view.id, "errors": errors})
                return {"result": "errors", "errors": errors, "by": "app"}
            case "update":
                return {"result": "updated", "view": self._modals.replace(view, payload.get("view")).body}
            case "push":
                return {"result": "pushed", "view": self._modals.push_onto(view, payload.get("view")).body}
            case other:
                raise SlackError("invalid_arguments", response_action=other)

    def close(self, view_id: str, data: Json) -> Json:
        """Cancel a form; the app hears of it when the view asked to."""
        person = self.actor(data.get("as"))
        view = self._own_view(person, view_id)
        closed = self._modals.close(view)
        self._journal.write("people", deed="close", view_id=view_id, **{"as": person.id})
        for one in closed:
            if one.body["notify_on_close"]:
                payload = self._interaction("view_closed", person)
                payload |= {"view": one.body, "is_cleared": bool(view.body["clear_on_close"])}
                task = asyncio.get_running_loop().create_task(self._link.send(Envelope.INTERACTIVE, payload))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        return {"ok": True}

    def _own_view(self, person: Person, view_id: str) -> OpenView:
        view = self._modals.views.get(view_id)
        if view is None or view.user != person.id or view.body["type"] != "modal":
            raise Refusal("This form is no longer open.")
        return view

    # --- Home and reading -----------------------------------------------------------------------------------------

    def home(self, data: Json) -> Json:
        """Open the app's Home tab."""
        person = self.actor(data.get("as"))
        home = self._modals.homes.get(person.id)
        if not self._workspace.app.home_tab:
            return {"view": None}
        event: Json = {
            "type": "app_home_opened",
            "user": person.id,
            "channel": self._workspace.direct(BOT_USER, person.id).id,
            "tab": "home",
            "event_ts": self._workspace.next_ts(),
        }
        if home is not None:
            event["view"] = home.body
        self._journal.write("people", deed="home", **{"as": person.id})
        self._workspace.emit(event)
        return {"view": home.body if home else None}

    def read(self, data: Json) -> Json:
        """Mark a conversation as read."""
        person = self.actor(data.get("as"))
        if data.get("channel") != APP_ID:
            self._workspace.read(self.room(person, data.get("channel")), person.id)
        return {"ok": True}

    # --- Changing the workspace -----------------------------------------------------------------------------------

    def add_person(self, data: Json) -> Json:
        """Let somebody join."""
        person = Person(**_known(Person, data))
        self._workspace.add_person(person)
        return {"person": _person_json(self._workspace.people[person.id])}

    def change_person(self, user: str, data: Json) -> Json:
        """Change a profile, deactivate or reactivate an account."""
        try:
            changed = self._workspace.change_person(user, **_known(Person, data))
        except SlackError:
            raise Refusal(f"There is nobody with the id {user}.", 404) from None
        return {"person": _person_json(changed)}

    def add_group(self, data: Json) -> Json:
        """Create a user group."""
        group = Group(**{**_known(Group, data), "members": tuple(data.get("members", ()))})
        self._workspace.add_group(group)
        return {"ok": True}

    def change_group(self, group_id: str, data: Json) -> Json:
        """Replace the members of a user group."""
        try:
            group = self._workspace.change_group(group_id, list(data["members"]))
        except SlackError:
            raise Refusal(f"There is no group {group_id}.", 404) from None
        return {"members": list(group.members)}

    def add_channel(self, data: Json) -> Json:
        """Create a channel."""
        channel = Channel(**{**_known(Channel, data), "members": tuple(data.get("members", ()))})
        self._workspace.add_channel(channel)
        return {"ok": True}

    def change_channel(self, channel_id: str, data: Json) -> Json:
        """Replace the members of a channel, or archive it."""
        room = self._workspace.rooms.get(channel_id)
        if room is None or room.kind != "channel":
            raise Refusal(f"There is no channel {channel_id}.", 404)
        self._workspace.change_channel(room, members=data.get("members"), is_archived=data.get("is_archived"))
        return {"ok": True}

    # --- Faults and journal ---------------------------------------------------------------------------------------

    def add_fault(self, data: Json) -> Json:
        """Order a fault."""
        try:
            fault = self._faults.add(data)
        except (KeyError, ValueError, TypeError) as error:
            raise Refusal(f"This is no fault that the sandbox knows: {error}", 400) from None
        self._link.act(fault)
        return {"id": fault.id}

    def state(self) -> Json:
        """Return how the app is connected."""
        return {"sockets": self._link.connections}

    # --- Payloads -------------------------------------------------------------------------------------------------

    def _interaction(self, kind: str, person: Person) -> Json:
        return {
            "type": kind,
            "team": {"id": self._workspace.team_id, "domain": self._workspace.domain},
            "user": {"id": person.id, "username": person.name, "name": person.name, "team_id": person.team_id},
            "api_app_id": APP_ID,
            "token": VERIFICATION_TOKEN,
            "enterprise": None,
            "is_enterprise_install": False,
        }

    def _response_url(self, key: str, kind: str) -> str:
        return f"{self._web.url}/hooks/{kind}/{key}"

    def _no_answer(self) -> str:
        return f"{self._workspace.app.display_name} did not respond in time. Try again."


def _all_blocks(message: Message) -> list[Json]:
    attached = [block for part in message.attachments or [] for block in part.get("blocks") or []]
    return [*(message.blocks or []), *attached]


def _room_name(room: Room) -> str:
    """Return the name as payloads have it: private channels and direct messages keep theirs to themselves."""
    return "directmessage" if room.kind == "im" else "privategroup" if room.is_private else room.name


def _given(data: Mapping[str, Any]) -> Json:
    return {key: data[key] for key in _ANSWERS if key in data}


def _told(data: Mapping[str, Any]) -> Json:
    """Return a deed's own words for the journal, without the names that an entry uses itself."""
    return {key: value for key, value in data.items() if key not in {"kind", "n", "at"}}


def _known(kind: type[Person | Channel | Group], data: Mapping[str, Any]) -> Json:
    names = {field.name for field in fields(kind)}
    unknown = set(data) - names - {"as"}
    if unknown:
        raise Refusal(f"Unknown fields: {', '.join(sorted(unknown))}.", 400)
    return {key: value for key, value in data.items() if key in names}


def _person_json(person: Person) -> Json:
    return {field.name: getattr(person, field.name) for field in fields(Person)}
