"""Which views does a person have open, and who may still open one?

Rules:
- A trigger id lives three seconds and opens one view. A refused view (bad blocks) does not use it up.
- A person has one stack of at most three modals; only the top one can be submitted. A closed view is gone:
  ``not_found``.
- Every change gives a view a new ``hash``. What a person has entered survives an update when block id, action id and
  type stay the same, as in Slack.
- A response_url takes five posts within thirty minutes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final

from bot.sandbox.answers import fill_ids, find_element, initial_values, read_answer
from bot.sandbox.blocks import Surface, check_view
from bot.sandbox.workspace import APP_ID, BOT_ID, Screens, SlackError, Workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Json = dict[str, Any]

TRIGGER_SECONDS: Final = 3.0  # https://docs.slack.dev/interactivity/handling-user-interaction
RESPONSE_URL_USES: Final = 5
RESPONSE_URL_SECONDS: Final = 30 * 60.0
STACK: Final = 3
VIEW_BYTES: Final = 250_000


@dataclass(slots=True, eq=False)
class Trigger:
    """The right to open one view for one person; ``view_id`` names the modal in which the click was made."""

    user: str
    expires_at: float
    view_id: str | None
    used: bool = False


@dataclass(slots=True, eq=False)
class ResponseUrl:
    """The right to answer one interaction a few times, also in a room in which the app is not a member."""

    user: str
    channel: str
    expires_at: float
    message_ts: str | None = None
    thread_ts: str | None = None
    uses: int = 0


@dataclass(slots=True, eq=False)
class OpenView:
    """A modal on a person's stack, or their Home tab; ``body`` is Slack's view object, replaced at each change."""

    user: str
    body: Json = field(repr=False)
    closed: bool = False

    @property
    def id(self) -> str:
        """Return the view id."""
        return str(self.body["id"])

    @property
    def values(self) -> Json:
        """Return ``state.values``."""
        values: Json = self.body["state"]["values"]
        return values


class Modals:
    """Views, triggers and response_urls of the workspace; touched by the event loop only."""

    def __init__(self, workspace: Workspace, *, clock: Callable[[], float], screens: Screens) -> None:
        self._workspace = workspace
        self._clock = clock
        self._screens = screens
        self._serial = 0
        self._triggers: dict[str, Trigger] = {}
        self._urls: dict[str, ResponseUrl] = {}
        self.views: dict[str, OpenView] = {}
        self.stacks: dict[str, list[OpenView]] = {}
        self.homes: dict[str, OpenView] = {}

    # --- Triggers and response_urls -------------------------------------------------------------------------------

    def new_trigger(self, user: str, view_id: str | None = None) -> str:
        """Issue a trigger id for an interaction that happens now."""
        self._serial += 1
        trigger_id = f"{int(self._clock())}.{self._serial:010d}.{token_hex(16)}"
        self._triggers[trigger_id] = Trigger(user, self._clock() + TRIGGER_SECONDS, view_id)
        if len(self._triggers) > 10_000:
            del self._triggers[next(iter(self._triggers))]
        return trigger_id

    def trigger(self, trigger_id: object) -> Trigger:
        """Return a trigger that may be used now, or refuse with Slack's word for what is wrong with it."""
        if not isinstance(trigger_id, str) or not trigger_id:
            raise SlackError("invalid_arguments")
        found = self._triggers.get(trigger_id)
        if found is None:
            raise SlackError("invalid_trigger_id")
        if found.used:
            raise SlackError("exchanged_trigger_id")
        if self._clock() > found.expires_at:
            raise SlackError("expired_trigger_id")
        return found

    def new_response_url(
        self, user: str, channel: str, *, message_ts: str | None = None, thread_ts: str | None = None
    ) -> str:
        """Issue the key of a response_url (the last part of its path)."""
        key = token_hex(16)
        expires = self._clock() + RESPONSE_URL_SECONDS
        self._urls[key] = ResponseUrl(user, channel, expires, message_ts, thread_ts)
        if len(self._urls) > 10_000:
            del self._urls[next(iter(self._urls))]
        return key

    def response_url(self, key: str) -> ResponseUrl:
        """Return a response_url that may be used now, and do not count the use yet."""
        found = self._urls.get(key)
        if found is None or self._clock() > found.expires_at:
            raise SlackError("expired_url")
        if found.uses >= RESPONSE_URL_USES:
            raise SlackError("used_url")
        return found

    # --- Views ----------------------------------------------------------------------------------------------------

    def open(self, trigger_id: object, view: object) -> OpenView:
        """``views.open``: a new stack of one; what was open before is closed."""
        trigger = self.trigger(trigger_id)
        body = self._checked(view, Surface.MODAL)
        trigger.used = True
        self.clear(trigger.user)
        opened = self._register(trigger.user, body)
        self.stacks[trigger.user] = [opened]
        self._screens.show([trigger.user], {"type": "view_opened", "view": opened.body})
        return opened

    def push(self, trigger_id: object, view: object) -> OpenView:
        """``views.push``: onto the modal in which the click was made."""
        trigger = self.trigger(trigger_id)
        below = self.views.get(trigger.view_id or "")
        if below is None or below.closed or below.body["type"] != "modal":
            raise SlackError("not_found")
        pushed = self.push_onto(below, view)
        trigger.used = True
        return pushed

    def push_onto(self, below: OpenView, view: object) -> OpenView:
        """Put a view on top of a person's stack (also for ``response_action: push``)."""
        body = self._checked(view, Surface.MODAL)
        stack = self.stacks[below.user]
        if len(stack) >= STACK:
            raise SlackError("push_limit_reached")
        pushed = self._register(below.user, body, below=stack[-1])
        stack.append(pushed)
        self._screens.show([below.user], {"type": "view_pushed", "view": pushed.body})
        return pushed

    def update(self, view: object, *, view_id: object, external_id: object, view_hash: object) -> OpenView:
        """``views.update`` by view id or external id; a ``hash`` must be the current one."""
        if bool(view_id) == bool(external_id):
            raise SlackError("invalid_arguments")
        found = self.views.get(str(view_id)) if view_id else self._by_external_id(str(external_id))
        if found is None or found.closed:
            raise SlackError("not_found")
        if view_hash and view_hash != found.body["hash"]:
            raise SlackError("hash_conflict")
        return self.replace(found, view)

    def replace(self, found: OpenView, view: object) -> OpenView:
        """Give an open view new contents (also for ``response_action: update``)."""
        body = self._checked(view, Surface(found.body["type"]), itself=found)
        kept = {key: found.body[key] for key in ("id", "root_view_id", "previous_view_id")}
        found.body = self._filled(found.user, body, kept=found.values) | kept
        kind = "home" if found.body["type"] == "home" else "view_updated"
        self._screens.show([found.user], {"type": kind, "view": found.body})
        return found

    def publish(self, user: str, view: object, *, view_hash: object) -> OpenView:
        """``views.publish``: a person's Home tab."""
        if not self._workspace.app.home_tab:
            raise SlackError("not_enabled")
        person = self._workspace.person(user)
        if person.deleted or person.is_bot:
            raise SlackError("user_not_found")
        home = self.homes.get(user)
        if home is None:
            home = self._register(user, self._checked(view, Surface.HOME))
            self.homes[user] = home
            self._screens.show([user], {"type": "home", "view": home.body})
            return home
        if view_hash and view_hash != home.body["hash"]:
            raise SlackError("hash_conflict")
        return self.replace(home, view)

    def top(self, user: str) -> OpenView | None:
        """Return the modal that this person has before them."""
        stack = self.stacks.get(user)
        return stack[-1] if stack else None

    def close(self, view: OpenView) -> list[OpenView]:
        """Cancel a view; with ``clear_on_close`` the whole stack. Returns what was closed, top first."""
        return self.clear(view.user) if view.body["clear_on_close"] else self.pop(view)

    def pop(self, view: OpenView) -> list[OpenView]:
        """Close one view, as a good submission does; the one below is before the person again."""
        stack = self.stacks.get(view.user, [])
        if view in stack:
            stack.remove(view)
            self._forget(view)
        return [view]

    def clear(self, user: str) -> list[OpenView]:
        """Close every modal of a person; returns them, top first."""
        closed = list(reversed(self.stacks.pop(user, [])))
        for view in closed:
            self._forget(view)
        return closed

    def _forget(self, view: OpenView) -> None:
        view.closed = True
        del self.views[view.id]
        self._screens.show([view.user], {"type": "view_closed", "view_id": view.id})

    def enter(self, view: OpenView, values: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
        """Take over what a person has entered; unknown fields are refused with ``BadAnswer`` or ``KeyError``.

        Nothing is taken over unless all of it can be.
        """
        answers: list[tuple[str, str, Json]] = []
        for block_id, actions in values.items():
            for action_id, given in actions.items():
                found = find_element(view.body["blocks"], block_id, action_id)
                if found is None:
                    raise KeyError(f"{block_id}/{action_id}")
                answers.append((block_id, action_id, read_answer(found[1], given)))
        changed: Json = {block_id: dict(actions) for block_id, actions in view.values.items()}
        for block_id, action_id, answer in answers:
            changed[block_id][action_id] = answer
        # A new object each time: envelopes and journal entries keep the one that they were made from.
        view.body = {**view.body, "state": {"values": changed}}

    # --- Making a view --------------------------------------------------------------------------------------------

    def _by_external_id(self, external_id: str) -> OpenView | None:
        for view in self.views.values():
            if view.body["external_id"] == external_id:
                return view
        return None

    def _checked(self, view: object, surface: Surface, *, itself: OpenView | None = None) -> Json:
        if isinstance(view, str):
            try:
                view = json.loads(view)
            except ValueError:
                raise SlackError("invalid_arguments") from None
        if not isinstance(view, dict):
            raise SlackError("invalid_arguments")
        errors = check_view(view, surface)
        if errors:
            raise SlackError(
                "invalid_arguments", response_metadata={"messages": [f"[ERROR] {error}" for error in errors]}
            )
        if len(json.dumps(view, ensure_ascii=False).encode()) > VIEW_BYTES:
            raise SlackError("view_too_large")
        external_id = view.get("external_id")
        if external_id:
            other = self._by_external_id(external_id)
            if other is not None and other is not itself:
                raise SlackError("duplicate_external_id")
        return view

    def _register(self, user: str, body: Json, *, below: OpenView | None = None) -> OpenView:
        self._serial += 1
        view_id = f"V0{self._serial:09d}"
        filled = self._filled(user, body)
        filled |= {
            "id": view_id,
            "root_view_id": below.body["root_view_id"] if below else view_id,
            "previous_view_id": below.id if below else None,
        }
        view = OpenView(user, filled)
        self.views[view_id] = view
        return view

    def _filled(self, user: str, body: Json, *, kept: Json | None = None) -> Json:
        blocks = fill_ids(body["blocks"])
        return {
            "team_id": self._workspace.team_id,
            "type": body["type"],
            "blocks": blocks,
            "private_metadata": body.get("private_metadata") or "",
            "callback_id": body.get("callback_id") or "",
            "external_id": body.get("external_id") or "",
            "state": {"values": initial_values(blocks, kept)},
            "hash": f"{int(self._clock())}.{token_hex(4)}",
            "title": body.get("title"),
            "clear_on_close": bool(body.get("clear_on_close")),
            "notify_on_close": bool(body.get("notify_on_close")),
            "close": body.get("close"),
            "submit": body.get("submit"),
            "app_id": APP_ID,
            "app_installed_team_id": self._workspace.people[user].team_id,
            "bot_id": BOT_ID,
        }
