"""What happens when a reviewer presses "Review pack"?

Rules
-----
* A window comes first, within the trigger's three seconds, and is filled after the look-up. Above the form it is
  pushed, so that what was typed there stays.
* The file is an export of the log: the entry comes first, then the file goes to whoever asked, and to nobody else.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bot import calls, modals, pack_view
from bot.answers import filling, speaking, tell
from workflows import review_pack
from workflows.errors import Conflict, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from slack_bolt import Ack, App
    from slack_sdk import WebClient

    from storage.audit import Actor
    from workflows.desk import Desk
    from workflows.door import Case
    from workflows.review_pack import Pack

_ABOUT: Final = re.compile(r"(BG-[0-9A-Z]{4,12}) [0-9]{1,9}")


def register(
    app: App, desk: Desk, *, now: Callable[[], datetime], actor_of: Callable[[Mapping[str, Any]], Actor]
) -> None:
    """Let the app listen to both buttons."""
    front = _Front(desk, now, actor_of)
    app.action(pack_view.OPEN)(front.show)
    app.action(pack_view.FILE)(front.send)


@dataclass(frozen=True, slots=True)
class _Front:
    desk: Desk
    now: Callable[[], datetime]
    actor_of: Callable[[Mapping[str, Any]], Actor]

    def show(self, body: dict[str, Any], ack: Ack, client: WebClient) -> None:
        """Open the pack, above the form or by itself."""
        request_id, about = _about(body)
        ack()
        with ExitStack() as shown:
            if (body.get("view") or {}).get("type") == "modal":
                pushed = client.views_push(trigger_id=body["trigger_id"], view=modals.loading(request_id))
                view_id = str(pushed["view"]["id"])
                shown.enter_context(speaking(client, view_id, request_id))
            else:
                view_id = shown.enter_context(filling(client, body["trigger_id"], modals.loading(request_id)))
            case = review_pack.allow(self.desk, self.actor_of(body), request_id, now=self.now())
            pack, _ = self._read(case)
            _, level = self.desk.names(case)
            source = (level.capture_source if level else None) or ""
            client.views_update(view_id=view_id, view=pack_view.window(pack, about, source=source))

    def send(self, body: dict[str, Any], ack: Ack, client: WebClient) -> None:
        """Send it as a file to the direct message of whoever pressed."""
        request_id, _ = _about(body)
        ack()
        actor, now = self.actor_of(body), self.now()
        case = review_pack.allow(self.desk, actor, request_id, now=now)
        pack, names = self._read(case)
        data = pack_view.page(pack, names, now=now)
        told = {"selection": request_id, "format": "review-pack"}
        self.desk.record("log:export", actor, told, request_id=request_id, now=now)
        try:
            room = calls.call(client.conversations_open, users=actor.person)["channel"]["id"]
            file_id = calls.upload(client, pack_view.file_name(request_id), data)
            calls.share(client, file_id, f"Review pack of {request_id}", str(room), None)
        except calls.TroubleError as trouble:
            raise Unavailable(f"Slack did not take the file ({trouble.reason}). Try again.") from None
        tell(body, client, f"The review pack of {request_id} is in your direct messages with me.")

    def _read(self, case: Case) -> tuple[Pack, dict[str, str]]:
        row = case.request
        people = dict.fromkeys((row.requester, *row.custodians, *(one.person for one in case.decisions)))
        found = [self.desk.directory.person(person) for person in people]
        names = {person.id: person.name for person in found if person is not None}
        with self.desk.database.read() as session:
            return review_pack.read(session, row.id, names), names


def _about(body: Mapping[str, Any]) -> tuple[str, str]:
    about = str(body["actions"][0].get("value", ""))
    match = _ABOUT.fullmatch(about)
    if match is None:
        raise Conflict("That button is not of this version of the bot. Nothing was changed.", code="unknown_button")
    return match[1], about
