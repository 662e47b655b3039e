"""How do tests and the demo player act as people in the sandbox? A plain, synchronous client.

Rules:
- Only the people API is used: what a person cannot do on the page, a driver cannot do either.
- A click answers the ``confirm`` dialog, so a test that clicks also states that it would have confirmed.
- Values of a form are given per block in plain words and turned into Slack's state values by the element that stands
  there; what is not given keeps what the form shows.
- Safe from many threads: each thread has its own connection.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from bot.sandbox.answers import state_key
from bot.sandbox.blocks import elements_of, options_of

Json = dict[str, Any]
Plain = str | int | float | date | Sequence[str] | Mapping[str, Any] | None
_T = TypeVar("_T")

_POLL_SECONDS: Final = 0.02
_REQUEST_SECONDS: Final = 60.0
_ALL: Final = "1000000"


class NotPossible(Exception):
    """The sandbox refused; ``status`` is 400 wrong words, 403 wrong person, 404 not there, 409 wrong moment."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def wait_for(predicate: Callable[[], _T], seconds: float = 5.0, *, what: str = "what was waited for") -> _T:
    """Return the first truthy result of ``predicate``, asked every 20 ms.

    Raises:
        TimeoutError: it did not come true in time.

    """
    until = time.monotonic() + seconds
    while True:
        result = predicate()
        if result:
            return result
        if time.monotonic() > until:
            raise TimeoutError(f"{what} did not happen within {seconds} s")
        time.sleep(_POLL_SECONDS)


class Driver:
    """The sandbox at ``url``: the control API, and ``as_`` for acting as somebody."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        split = urlsplit(self.url)
        self._host, self._port = str(split.hostname), split.port
        self._local = threading.local()

    def request(self, method: str, path: str, body: Json | None = None, **query: str | None) -> Json:
        """Make one request of the people API.

        Raises:
            NotPossible: the sandbox refused, with its sentence.

        """
        given = {key.rstrip("_"): value for key, value in query.items() if value is not None}
        target = f"{path}?{urlencode(given)}" if given else path
        payload = None if body is None else json.dumps(body)
        status, raw = self._exchange(method, target, payload)
        try:
            answer: Json = json.loads(raw)
        except ValueError:
            raise NotPossible(status, raw.decode(errors="replace")[:200]) from None
        if status >= 400:
            raise NotPossible(status, str(answer.get("error")))
        return answer

    def _exchange(self, method: str, target: str, payload: str | None) -> tuple[int, bytes]:
        """Send on this thread's kept connection; once more on a fresh one if the server had closed the old one."""
        for fresh in (False, True):
            connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
            if connection is None or fresh:
                connection = http.client.HTTPConnection(self._host, self._port, timeout=_REQUEST_SECONDS)
                self._local.connection = connection
            try:
                connection.request(method, target, payload, {"Content-Type": "application/json"})
                response = connection.getresponse()
                return response.status, response.read()
            except (http.client.RemoteDisconnected, http.client.CannotSendRequest, BrokenPipeError, ConnectionError):
                connection.close()
                self._local.connection = None
                if fresh:
                    raise
        raise AssertionError("unreachable")

    def as_(self, user: str) -> PersonDriver:
        """Act as this person."""
        return PersonDriver(self, user)

    def workspace(self) -> Json:
        """Return people, groups, commands and the app."""
        return self.request("GET", "/sandbox/workspace")

    def sockets(self) -> int:
        """Return how many Socket Mode connections the app has."""
        return int(self.request("GET", "/sandbox/state")["sockets"])

    def fault(self, kind: str, **order: object) -> int:
        """Order a fault: ``method, channel, times, retry_after, seconds, on``. Returns its id."""
        return int(self.request("POST", "/sandbox/faults", {"kind": kind, **order})["id"])

    def faults(self) -> list[Json]:
        """Return the ordered faults with how often each was used."""
        return list(self.request("GET", "/sandbox/faults")["faults"])

    def clear_faults(self) -> None:
        """Forget all faults."""
        self.request("DELETE", "/sandbox/faults")

    def journal(self, after: int = 0, kind: str | None = None, method: str | None = None) -> list[Json]:
        """Return journal entries above a number, of one kind, of one API method."""
        entries = self.request("GET", "/sandbox/journal", after=str(after), kind=kind)["entries"]
        return [entry for entry in entries if method is None or entry.get("method") == method]

    def add_person(self, user: str, name: str, **more: object) -> None:
        """Let somebody join the workspace."""
        self.request("POST", "/sandbox/people", {"id": user, "name": name, "real_name": name, **more})

    def change_person(self, user: str, **changes: object) -> None:
        """Change a profile."""
        self.request("PATCH", f"/sandbox/people/{user}", dict(changes))

    def deactivate(self, user: str) -> None:
        """Deactivate an account."""
        self.change_person(user, deleted=True)

    def add_group(self, group: str, handle: str, name: str, members: Sequence[str]) -> None:
        """Create a user group."""
        self.request("POST", "/sandbox/groups", {"id": group, "handle": handle, "name": name, "members": list(members)})

    def set_group(self, group: str, members: Sequence[str]) -> None:
        """Replace the members of a user group."""
        self.request("PATCH", f"/sandbox/groups/{group}", {"members": list(members)})

    def add_channel(self, channel: str, name: str, members: Sequence[str], **more: object) -> None:
        """Create a channel."""
        self.request("POST", "/sandbox/channels", {"id": channel, "name": name, "members": list(members), **more})

    def change_channel(self, channel: str, **changes: object) -> None:
        """Change a channel: ``members=[…]``, ``is_archived=…``."""
        self.request("PATCH", f"/sandbox/channels/{channel}", dict(changes))

    def wait_for(self, predicate: Callable[[], _T], seconds: float = 5.0, *, what: str = "what was waited for") -> _T:
        """Wait until something is true; see the function of the same name."""
        return wait_for(predicate, seconds, what=what)


class PersonDriver:
    """One person's hands and eyes."""

    def __init__(self, driver: Driver, user: str) -> None:
        self._driver = driver
        self.user = user

    # --- Typing and reading ---------------------------------------------------------------------------------------

    def command(self, text: str, channel: str) -> Json:
        """Type a slash command: ``{"acknowledged", "ms", "response"}``."""
        return self._driver.request("POST", "/sandbox/messages", {"as": self.user, "channel": channel, "text": text})

    def say(self, text: str, channel: str, thread_ts: str | None = None) -> str:
        """Post a message and return its time."""
        body: Json = {"as": self.user, "channel": channel, "text": text}
        if thread_ts:
            body["thread_ts"] = thread_ts
        return str(self._driver.request("POST", "/sandbox/messages", body)["ts"])

    def conversations(self) -> list[Json]:
        """Return this person's conversations with their unread and mention counts."""
        return list(self._driver.request("GET", "/sandbox/conversations", as_=self.user)["conversations"])

    def conversation(self, channel: str) -> Json:
        """Return one conversation of the list."""
        return next(one for one in self.conversations() if one["id"] == channel)

    def messages(self, channel: str, thread_ts: str | None = None) -> list[Json]:
        """Return a channel's top level, or one thread, oldest first."""
        return list(
            self._driver.request(
                "GET", "/sandbox/messages", as_=self.user, channel=channel, thread_ts=thread_ts, limit=_ALL
            )["messages"]
        )

    def thread(self, channel: str, ts: str) -> list[Json]:
        """Return a parent and its replies, oldest first."""
        return self.messages(channel, ts)

    def dm_id(self) -> str:
        """Return the id of the direct message room with the app."""
        bot = self._driver.workspace()["app"]["bot_user_id"]
        return str(next(one["id"] for one in self.conversations() if one["kind"] == "dm" and one.get("user") == bot))

    def dm(self) -> list[Json]:
        """Return the direct messages with the app, oldest first."""
        return self.messages(self.dm_id())

    def ephemerals(self, after: str = "0") -> list[Json]:
        """Return what only this person was shown, oldest first."""
        return list(self._driver.request("GET", "/sandbox/ephemerals", as_=self.user, after=after)["messages"])

    def read(self, channel: str) -> None:
        """Mark a conversation as read."""
        self._driver.request("POST", "/sandbox/read", {"as": self.user, "channel": channel})

    def download(self, file: Mapping[str, Any]) -> bytes:
        """Return the bytes of a file of a message."""
        status, raw = self._driver._exchange("GET", f"{quote(str(file['url']))}?as={self.user}", None)  # noqa: SLF001
        if status >= 400:
            raise NotPossible(status, raw.decode(errors="replace"))
        return raw

    # --- Clicking -------------------------------------------------------------------------------------------------

    def click(
        self,
        where: Mapping[str, Any],
        action_id: str,
        *,
        block_id: str | None = None,
        confirm: bool = True,
        value: Plain = None,
        in_flight: bool = False,
    ) -> Json:
        """Click a button, or choose ``value`` in a menu, of a message or of a view.

        ``confirm`` answers the dialog that the element may have; False is the person who presses Cancel: nothing is
        sent. ``in_flight`` clicks what ``where`` showed even if it has meanwhile changed, as a click on its way does.
        Returns ``{"acknowledged", "ms"}``.

        Raises:
            NotPossible: the element is not there (any more).

        """
        found = _find(_blocks_of(where), action_id, block_id)
        if found is None:
            raise NotPossible(409, f"There is no {action_id} here.")
        block, element = found
        if element.get("confirm") and not confirm:
            return {"acknowledged": False, "ms": 0.0, "cancelled": True}
        body: Json = {"as": self.user, "block_id": block["block_id"], "action_id": action_id}
        body |= {"view_id": where["id"]} if "id" in where else {"channel": where["channel"], "message_ts": where["ts"]}
        if element.get("confirm"):
            body["confirmed"] = True
        if in_flight:
            body |= {"in_flight": True, "element": element}
        if value is not None:
            body |= _answer(element, value)
            body.pop("type", None)
        return self._driver.request("POST", "/sandbox/actions", body)

    def has(self, where: Mapping[str, Any], action_id: str) -> bool:
        """Whether a message or view shows this button."""
        return _find(_blocks_of(where), action_id, None) is not None

    def shortcut(self, callback_id: str, message: Mapping[str, Any] | None = None) -> Json:
        """Use a shortcut, on a message if one is given."""
        body: Json = {"as": self.user, "callback_id": callback_id}
        if message is not None:
            body |= {"channel": message["channel"], "message_ts": message["ts"]}
        return self._driver.request("POST", "/sandbox/shortcuts", body)

    # --- Forms ----------------------------------------------------------------------------------------------------

    def view(self) -> Json | None:
        """Return the modal on top, or None."""
        stack = self.views()
        return stack[-1] if stack else None

    def views(self) -> list[Json]:
        """Return the open modals, bottom first."""
        return list(self._driver.request("GET", "/sandbox/views", as_=self.user)["stack"])

    def wait_for_view(self, callback_id: str | None = None, seconds: float = 5.0) -> Json:
        """Wait until a modal (with this callback id) is on top and return it."""

        def look() -> Json | None:
            view = self.view()
            return view if view and callback_id in {None, view["callback_id"]} else None

        found = wait_for(look, seconds, what=f"the form {callback_id or ''}")
        assert found is not None  # noqa: S101 - wait_for returns what is truthy
        return found

    def fill(self, view: Mapping[str, Any] | None = None) -> Form:
        """Take up a form: the given view, or the one on top."""
        found = view or self.view()
        if found is None:
            raise NotPossible(409, "There is no form open.")
        return Form(self._driver, self.user, dict(found))

    def submit(self, values: Mapping[str, Plain] | None = None) -> Json:
        """Fill the form on top and submit it; see ``Form.submit``."""
        return self.fill().submit(values)

    def close(self, view: Mapping[str, Any] | None = None) -> None:
        """Cancel a form (the one on top)."""
        self.fill(view).close()

    def home(self) -> Json | None:
        """Open the app's Home tab and return its view as it is now; the app may publish a new one after that."""
        view: Json | None = self._driver.request("POST", "/sandbox/home", {"as": self.user})["view"]
        return view

    def wait_for(self, predicate: Callable[[], _T], seconds: float = 5.0, *, what: str = "what was waited for") -> _T:
        """Wait until something is true; see the function of the same name."""
        return wait_for(predicate, seconds, what=what)


@dataclass(slots=True)
class Form:
    """A modal that a person fills; ``values`` are Slack's state values of what was entered."""

    _driver: Driver = field(repr=False)
    user: str
    view: Json
    values: Json = field(default_factory=dict)

    def enter(self, values: Mapping[str, Plain]) -> Form:
        """Fill blocks: block id to words. Option by value or label; list for many; None empties the field."""
        for block_id, plain in values.items():
            block = next((one for one in self.view["blocks"] if one["block_id"] == block_id), None)
            if block is None:
                raise NotPossible(409, f"The form has no block {block_id}.")
            stateful = [element for element in elements_of(block) if state_key(element)]
            several: Mapping[str, Any] = (
                plain if isinstance(plain, Mapping) else {element["action_id"]: plain for element in stateful[:1]}
            )
            for element in stateful:
                if element["action_id"] in several:
                    answer = _answer(element, several[element["action_id"]])
                    self.values.setdefault(block_id, {})[element["action_id"]] = answer
        return self

    def choose(self, block_id: str, plain: Plain) -> Json:
        """Enter one value in a block that tells the app at once (``dispatch_action``)."""
        self.enter({block_id: plain})
        action_id, answer = next(iter(self.values[block_id].items()))
        body = {
            "as": self.user,
            "view_id": self.view["id"],
            "block_id": block_id,
            "action_id": action_id,
            "state": self.values,
            **{key: value for key, value in answer.items() if key != "type"},
        }
        return self._driver.request("POST", "/sandbox/actions", body)

    def submit(self, values: Mapping[str, Plain] | None = None) -> Json:
        """Submit: ``{"result": closed|errors|updated|pushed|cleared|timeout, "errors"?, "view"?, "ms"}``."""
        self.enter(values or {})
        return self._driver.request(
            "POST", f"/sandbox/views/{self.view['id']}/submit", {"as": self.user, "values": self.values}
        )

    def close(self) -> None:
        """Cancel."""
        self._driver.request("POST", f"/sandbox/views/{self.view['id']}/close", {"as": self.user})


def _blocks_of(where: Mapping[str, Any]) -> list[Json]:
    attached = [block for part in where.get("attachments") or [] for block in part.get("blocks") or []]
    return [*(where.get("blocks") or []), *attached]


def _find(blocks: Sequence[Json], action_id: str, block_id: str | None) -> tuple[Json, Json] | None:
    for block in blocks:
        if block_id in {None, block["block_id"]}:
            for element in elements_of(block):
                if element["action_id"] == action_id:
                    return block, element
    return None


def _answer(element: Json, plain: Plain) -> Json:
    """Turn plain words into Slack's state value for this element."""
    kind = element["type"]
    key = "selected_option" if kind == "overflow" else state_key(element)
    if key is None:
        raise NotPossible(400, f"A {kind} takes no value.")
    if key == "selected_option":
        return {"type": kind, key: None if plain is None else _option(element, str(plain))}
    if key in {"selected_options", "selected_users"}:
        many = [] if plain is None else [plain] if isinstance(plain, str) else list(plain)  # type: ignore[arg-type]
        return {"type": kind, key: [_option(element, one) for one in many] if key == "selected_options" else many}
    if plain is None:
        return {"type": kind, key: None}
    return {"type": kind, key: plain.isoformat() if isinstance(plain, date) else str(plain)}


def _option(element: Json, words: str) -> Json:
    """Return the option with this value, or with this label."""
    options = options_of(element)
    for option in [
        *(one for one in options if one["value"] == words),
        *(one for one in options if one["text"]["text"] == words),
    ]:
        return option
    offered = ", ".join(option["value"] for option in options)
    raise NotPossible(400, f"{words!r} is not one of the options ({offered}).")
