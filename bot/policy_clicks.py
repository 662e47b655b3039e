"""What does a click below a changed policy ask for?

Rules
-----
* As in ``listeners.py``: parse, one call, acknowledge; errors go to the one handler.
* The whole difference goes to the person who asked, as a file in the direct message, and is no entry: both texts are
  on record, and every member of the workspace may read them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slack_sdk.errors import SlackApiError

from bot import views
from bot.answers import tell
from workflows.errors import Unavailable
from workflows.policy_control import PolicyControl

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from slack_bolt import Ack, App
    from slack_sdk import WebClient

    from storage.audit import Actor
    from workflows.desk import Desk
    from workflows.policy import Policy


def control_for(desk: Desk) -> PolicyControl:
    """Return who puts policies into force at this desk."""

    def switch(policy: Policy) -> None:
        desk.policy = policy

    return PolicyControl(desk.database, desk.directory, team=desk.team, switch=switch)


def register(
    app: App,
    desk: Desk,
    *,
    now: Callable[[], datetime],
    actor_of: Callable[[Mapping[str, Any]], Actor],
    proposal: Callable[[Mapping[str, Any]], tuple[int, str]],
) -> None:
    """Let the app listen to the buttons of changed policies.

    ``actor_of`` and ``proposal`` read a payload: who clicked, and which number and hash the button carried.
    """
    clicks = _Clicks(control_for(desk), now, actor_of, proposal)
    app.action(views.CONFIRM_POLICY)(clicks.confirm)
    app.action(views.REJECT_POLICY)(clicks.reject)
    app.action(views.SHOW_POLICY)(clicks.show)


@dataclass(frozen=True, slots=True)
class _Clicks:
    control: PolicyControl
    now: Callable[[], datetime]
    actor_of: Callable[[Mapping[str, Any]], Actor]
    proposal: Callable[[Mapping[str, Any]], tuple[int, str]]

    def confirm(self, body: dict[str, Any], ack: Ack, client: WebClient) -> None:
        """Confirm a changed policy."""
        seq, policy_hash = self.proposal(body)
        ack()
        done = self.control.confirm(self.actor_of(body), seq, policy_hash, now=self.now())
        if done.is_in_force:
            text = "You confirmed it, as the last: it is in force."
        else:
            text = f"You confirmed it: {done.have} of {done.need}. Nothing changes before somebody else has, too."
        tell(body, client, text)

    def reject(self, body: dict[str, Any], ack: Ack, client: WebClient) -> None:
        """Reject a changed policy."""
        seq, policy_hash = self.proposal(body)
        ack()
        self.control.reject(self.actor_of(body), seq, policy_hash, now=self.now())
        tell(body, client, "You rejected it. What was in force stays.")

    def show(self, body: dict[str, Any], ack: Ack, client: WebClient) -> None:
        """Send the whole difference to whoever asks."""
        seq, policy_hash = self.proposal(body)
        ack()
        actor = self.actor_of(body)
        difference = self.control.difference(actor, seq, policy_hash)
        try:
            message: Any = client.chat_postMessage(
                channel=actor.person, text=f"What the policy {policy_hash[:12]}… changes, as proposed in entry {seq}."
            )
            client.files_upload_v2(
                channel=message["channel"],
                filename=f"policy-{policy_hash[:12]}.diff",
                title="The difference",
                content=difference.encode() + b"\n",
            )
        except (SlackApiError, OSError) as error:
            reason = error.response.get("error") if isinstance(error, SlackApiError) else "no answer"
            raise Unavailable(f"Slack did not take the file ({reason}). Try again.") from None
        tell(body, client, "The whole difference is in your direct messages with me.")
