"""What does a payload of Slack's say: who, about what, with which words?

Rules
-----
* A person is of their own workspace, also in a channel that several workspaces share.
* What a button carries is read whole or refused: an older or newer bot may have drawn it.
* No request body is ever logged: it holds what people typed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from storage.audit import Actor
from workflows.errors import Conflict

if TYPE_CHECKING:
    from collections.abc import Mapping

_BUTTON: Final = re.compile(r"(BG-[0-9A-Z]{4,12}) ([0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class Click:
    """Who pressed which request's button, and the version that was drawn then."""

    actor: Actor
    request_id: str
    version: int

    @property
    def about(self) -> str:
        """What the button carried, for the form that it opens."""
        return f"{self.request_id} {self.version}"


def actor_of(body: Mapping[str, Any]) -> Actor:
    """Return who acts: their own workspace, also in a channel that several workspaces share."""
    user = body.get("user")
    if isinstance(user, dict):
        team = user.get("team_id") or (body.get("team") or {}).get("id")
        return Actor(str(team or "unknown"), str(user.get("id") or "unknown"))
    return Actor(str(body.get("team_id") or "unknown"), str(body.get("user_id") or "unknown"))


def click_of(body: Mapping[str, Any]) -> Click:
    """Return which request's button was pressed. Raises :class:`Conflict` for one that is not ours."""
    return about_of(body, str(body["actions"][0].get("value", "")))


def about_of(body: Mapping[str, Any], about: str) -> Click:
    """Return what a button or a form's metadata carries. Raises :class:`Conflict` for what is not ours."""
    match = _BUTTON.fullmatch(about)
    if match is None:
        raise Conflict("That button is not of this version of the bot. Nothing was changed.", code="unknown_button")
    return Click(actor_of(body), match[1], int(match[2]))


def values_of(view: Mapping[str, Any]) -> dict[str, str]:
    """Return what a form says, by block id; what is empty is left out."""
    found: dict[str, str] = {}
    for block_id, answers in view["state"]["values"].items():
        for answer in answers.values():
            option = answer.get("selected_option") or {}
            text = answer.get("value") or option.get("value")
            text = text or answer.get("selected_user") or answer.get("selected_date")
            if text:
                found[block_id] = str(text)
    return found
