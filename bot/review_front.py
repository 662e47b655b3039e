"""What do the buttons and forms about reviews and follow-ups ask of the desk?

Rules are those of ``listeners.py``: parse, one call of the desk, acknowledge; every click is answered.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from bot import modals, review_words, reviews, views
from bot.answers import filling
from bot.payloads import about_of, actor_of, click_of, values_of
from storage.models import Outcome
from workflows.desk import Findings, FollowUp
from workflows.errors import Invalid
from workflows.lifecycle import Action

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from slack_bolt import Ack, App
    from slack_sdk import WebClient

    from storage.audit import Actor
    from workflows.desk import Desk


@dataclass(frozen=True, slots=True)
class ReviewFront:
    """The listeners. Bolt gives each the arguments that it names."""

    desk: Desk
    now: Callable[[], datetime]

    def register(self, app: App) -> None:
        """Let the app listen to them."""
        for action_id, clicked in (
            (views.REVIEW, self.form),
            (views.REVIEW_SECOND, self.form),
            (views.REASSIGN, self.reassign_form),
            (review_words.CLOSE, self.close_form),
        ):
            app.action(action_id)(clicked)
        for callback_id, submitted in (
            (views.REVIEW_FORM, self.file),
            (reviews.SECOND_FORM, self.second),
            (reviews.REASSIGN_FORM, self.reassign),
            (reviews.CLOSE_FORM, self.close),
        ):
            app.view(callback_id)(submitted)

    # Filing.

    def form(self, body: dict[str, Any], ack: Ack, client: WebClient) -> None:
        """Open the review form, or that of the second reviewer."""
        click = click_of(body)
        ack()
        self.open_form(body, client, click.request_id, click.version)

    def open_form(self, body: Mapping[str, Any], client: WebClient, request_id: str, version: int | None) -> None:
        """Open the form that the review needs now, for a button or (without a version) a command."""
        with filling(client, body["trigger_id"], modals.loading(f"Review {request_id}")) as view_id:
            is_second = self.desk.case(request_id).review is not None
            action = Action.REVIEW_SECOND if is_second else Action.REVIEW
            case = self.desk.may(actor_of(body), action, request_id, version, now=self.now())
            use = self.desk.use(case)
            view = modals.review_form(case, self.desk.policy, views.value(case), use)
            client.views_update(view_id=view_id, view=view)

    def file(self, body: dict[str, Any], ack: Ack, view: dict[str, Any]) -> None:
        """File the review."""
        click = about_of(body, view["private_metadata"])
        values = values_of(view)
        form = Findings(
            threshold_met=_yes(values, views.THRESHOLD_MET),
            standard_path_enough=_yes(values, views.STANDARD_PATH_ENOUGH),
            used_as_stated=_yes(values, views.USED_AS_STATED),
            outcome=_outcome(values),
            findings=values.get(views.FINDINGS, ""),
            follow_ups=_follow_ups(values),
            threshold_why=values.get(views.THRESHOLD_WHY, ""),
            standard_path_why=values.get(views.STANDARD_PATH_WHY, ""),
        )
        row = self.desk.review(click.actor, click.request_id, click.version, form, now=self.now())
        case = self.desk.case(row.id)
        waits = "" if not views.awaits_second(case) else " A second reviewer is asked to confirm it."
        text = f"The review of {row.id} is filed and stands in its thread.{waits} Thank you."
        ack(response_action="update", view=modals.sentence(row.id, text))

    def second(self, body: dict[str, Any], ack: Ack, view: dict[str, Any]) -> None:
        """File the second review."""
        click = about_of(body, view["private_metadata"])
        values = values_of(view)
        outcome, words = _outcome(values), values.get(views.FINDINGS, "")
        self.desk.review_second(click.actor, click.request_id, click.version, outcome, words, now=self.now())
        text = f"Your review of {click.request_id} is filed and stands in its thread. Thank you."
        ack(response_action="update", view=modals.sentence(click.request_id, text))

    # Whose it is.

    def reassign_form(self, body: dict[str, Any], ack: Ack, client: WebClient) -> None:
        """Open the form that gives the review to somebody else."""
        click = click_of(body)
        ack()
        with filling(client, body["trigger_id"], modals.loading(f"Review {click.request_id}")) as view_id:
            case = self.desk.may_reassign(click.actor, click.request_id, now=self.now())
            client.views_update(view_id=view_id, view=reviews.reassign_form(case))

    def reassign(self, body: dict[str, Any], ack: Ack, view: dict[str, Any]) -> None:
        """Give the review to somebody else."""
        click = about_of(body, view["private_metadata"])
        owner = values_of(view).get(reviews.OWNER, "")
        self.desk.reassign(click.actor, click.request_id, owner, now=self.now())
        text = f"The review of {click.request_id} is <@{owner}>'s now; they are told."
        ack(response_action="update", view=modals.sentence(click.request_id, text))

    def give(self, actor: Actor, request_id: str, words: str) -> str:
        """Answer ``/breakglass reassign BG-7KQ2 @sam``."""
        owner = self.desk.reviewer_named(words)
        self.desk.reassign(actor, request_id, owner, now=self.now())
        return f"The review of {request_id} is <@{owner}>'s now; they are told."

    # Follow-ups.

    def close_form(self, body: dict[str, Any], ack: Ack, client: WebClient) -> None:
        """Open the form that asks what was done."""
        name = str(body["actions"][0].get("value", ""))[:40]
        ack()
        with filling(client, body["trigger_id"], modals.loading("Follow-up")) as view_id:
            row = self.desk.may_close(actor_of(body), name, now=self.now())
            client.views_update(view_id=view_id, view=reviews.close_form(row))

    def close(self, body: dict[str, Any], ack: Ack, view: dict[str, Any]) -> None:
        """Say that a follow-up is done."""
        note = values_of(view).get(reviews.NOTE, "")
        row = self.desk.close_follow_up(actor_of(body), view["private_metadata"], note, now=self.now())
        ack(response_action="update", view=modals.sentence(row.id, f"{row.id} is done, and that is on record."))


def _yes(values: Mapping[str, str], word: str) -> bool:
    if word not in values:
        raise Invalid("The review is not complete.", fields={word: "Choose yes or no."})
    return values[word] == modals.YES


def _outcome(values: Mapping[str, str]) -> Outcome:
    chosen = next((outcome for outcome in Outcome if outcome.value == values.get(views.OUTCOME)), None)
    if chosen is None:
        raise Invalid("The review is not complete.", fields={views.OUTCOME: "Choose a verdict."})
    return chosen


def _follow_ups(values: Mapping[str, str]) -> tuple[FollowUp, ...]:
    found = []
    for words in views.FOLLOW_UPS:
        given = [word for word in words if word in values]
        if not given:
            continue
        if missing := next((word for word in words if word not in values), None):
            raise Invalid(
                "A follow-up is not complete.", fields={missing: "A follow-up needs what is to be done, whom and when."}
            )
        what, owner, due = (values[word] for word in words)
        found.append(FollowUp(what, owner, date.fromisoformat(due)))
    return tuple(found)
