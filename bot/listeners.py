"""What does a person's command, click or form ask of the desk?

Rules
-----
* A listener parses, makes one call of the desk, and acknowledges; the rules are the desk's.
* A click that changes something is acknowledged after the commit: if the bot dies before, Slack tells the person that
  it failed. What needs Vault comes after the acknowledgement.
* A trigger id lives three seconds and works once, so a window is opened first and filled after the look-up. (Reveal
  records its intent before, which takes milliseconds: a second click must not open a window over the first.)
* Every click is answered, also one that is refused, stale or unknown. :func:`on_error` finds the surface on which the
  person waits. Only what must speak on a surface of its own (a window that was just opened, the Home tab, a private
  answer) handles its errors itself.
* A secret goes into one call, ``views.update`` of the requester's own window, by a client that logs nothing.
* No request body is ever logged: it holds what people typed.
"""

from __future__ import annotations

import difflib
import re
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from bot import asked, away_command, commands, drill_command, modals, pack_front, policy_clicks, tiers, views
from bot.answers import filling, on_error, open_window, redraw, show_secret, speaking, tell
from bot.blockkit import escape
from bot.payloads import about_of, actor_of, click_of, values_of
from bot.review_front import ReviewFront
from storage.audit import Actor
from workflows import absence, asking
from workflows import policy as rules
from workflows.away_desk import AwayDesk
from workflows.desk import Ask
from workflows.drill import Drills
from workflows.engines.naming import REQUEST
from workflows.errors import BreakGlassError, Conflict, Invalid, Unavailable
from workflows.lifecycle import Action, allowed_roles
from workflows.retention import RetentionDesk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from datetime import timedelta

    from slack_bolt import Ack, App, Respond
    from slack_sdk import WebClient

    from workflows.control_group import Question
    from workflows.desk import Desk
    from workflows.door import Case
    from workflows.policy import Account, Level, Verdict

    Export = Callable[[Actor, str], None]

_PROPOSAL: Final = re.compile(r"([0-9]{1,18}) ([0-9a-f]{64})")
_COMMANDS: Final = re.compile(r"(BG-[0-9A-Z]{4,12}) ([0-9]{1,18}) ([0-9]{1,18}) ([0-9]{1,6})")
_SUBCOMMANDS: Final = ("help", "status", "review", "reassign", "export", "hold", "unhold", "away", "back", "drill")


def register(
    app: App,
    desk: Desk,
    *,
    now: Callable[[], datetime],
    export: Export | None = None,
    pause: Callable[[float], None] = time.sleep,
    first: Callable[[], AbstractContextManager[None]] = nullcontext,
    active: Callable[[Iterable[str]], Mapping[str, bool | None]] | None = None,
    drills: Drills | None = None,
) -> None:
    """Let the app listen to everything that people do, and answer every error.

    ``export`` sends an allowed asker one request's log; it raises a BreakGlassError when it cannot. ``pause`` waits
    between tries (seconds). ``first`` is entered while somebody looks at an empty window: other work may wait.
    """
    retention = RetentionDesk(desk.database, lambda: desk.policy, desk.directory, team=desk.team)
    away = AwayDesk(desk.database, lambda: desk.policy, desk.directory, team=desk.team)
    reviews = ReviewFront(desk, now)
    front = _Front(desk, retention, away, reviews, now, export, pause, first, active, drills or Drills(desk))
    policy_clicks.register(app, desk, now=now, actor_of=actor_of, proposal=_proposal)
    app.command(views.COMMAND)(front.command)
    for action_id, clicked in (
        (views.ASK, front.ask),
        (views.ACCOUNT, front.redraw),
        (views.LEVEL, front.redraw),
        (views.APPROVE, front.approve),
        (views.SHORTEN, front.shorten_form),
        (views.DENY, front.deny_form),
        (views.WITHDRAW, front.withdraw),
        (views.REVEAL, front.reveal),
        (views.INTERCEPT, front.intercept),
        (views.RELEASE, front.release),
        (views.REVOKE, front.revoke),
        (views.SHOW_COMMANDS, front.show_commands),
        (views.LATER_COMMANDS, front.show_commands),
        (views.CONFIRM_PRUNING, front.confirm_pruning),
        (views.REJECT_PRUNING, front.reject_pruning),
    ):
        app.action(action_id)(clicked)
    front.reviews.register(app)
    pack_front.register(app, desk, now=now, actor_of=actor_of)
    # Last: a button of an older or newer bot's message must not be dead.
    app.action(re.compile(".*"))(_unknown)
    for callback_id, submitted in (
        (views.OPEN_FORM, front.open),
        (views.DENY_FORM, front.deny),
        (views.SHORTEN_FORM, front.shorten),
    ):
        app.view(callback_id)(submitted)
    app.event("app_home_opened")(front.home)
    app.error(on_error)


# --- what a payload says ----------------------------------------------------------------------------------------------


def _proposal(body: Mapping[str, Any]) -> tuple[int, str]:
    match = _PROPOSAL.fullmatch(str(body["actions"][0].get("value", "")))
    if match is None:
        raise Conflict("That button is not of this version of the bot. Nothing was changed.", code="unknown_button")
    return int(match[1]), match[2]


def _clicked_at(body: Mapping[str, Any]) -> datetime | None:
    """Return when the click was made, by Slack's clock; None when the payload does not say."""
    try:
        return datetime.fromtimestamp(float(body["actions"][0].get("action_ts") or ""), UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _duration(text: str) -> timedelta:
    try:
        return rules.parse_duration(text.lower())
    except ValueError as error:
        raise Invalid(str(error), fields={views.DURATION: str(error)}) from None


def _is_duration(word: str) -> bool:
    try:
        rules.parse_duration(word.lower())
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Wish:
    """What was typed after the command: what the form opens with."""

    account: str | None = None
    level: str | None = None
    values: tuple[tuple[str, str], ...] = ()


def read_wish(words: Sequence[str], account: Account) -> _Wish:
    """Read ``[level] [duration] [reason…]``; what is neither level nor duration begins the reason."""
    rest = list(words)
    level = rest.pop(0).lower() if rest and rest[0].lower() in account.real_levels else None
    values = []
    if rest and _is_duration(rest[0].lower()):
        values.append((views.DURATION, rest.pop(0).lower()))
    if rest:
        values.append((views.REASON, " ".join(rest)))
    return _Wish(account.name, level, tuple(values))


# --- the listeners ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Front:
    """Every listener. Bolt gives each the arguments that it names."""

    desk: Desk
    retention: RetentionDesk
    away: AwayDesk
    reviews: ReviewFront
    now: Callable[[], datetime]
    export: Export | None
    pause: Callable[[float], None]
    first: Callable[[], AbstractContextManager[None]]
    active: Callable[[Iterable[str]], Mapping[str, bool | None]] | None
    drills: Drills

    # The command.

    def command(self, body: dict[str, Any], ack: Ack, client: WebClient, respond: Respond) -> None:
        """Answer ``/breakglass …``."""
        words = str(body.get("text") or "").split()
        first = words[0].lower() if words else ""
        match first:
            case "":
                ack()
                self._open_form(body, client, _Wish())
            case "help":
                _reply(ack, modals.help_text())
            case "status":
                ack()
                respond(self._status(actor_of(body), words[1:]), response_type="ephemeral")
            case "review":
                request_id = _request_id("review", words[1:])
                ack()
                self.reviews.open_form(body, client, request_id, None)
            case "reassign":
                request_id = _request_id("reassign", words[1:])
                ack()
                said = self.reviews.give(actor_of(body), request_id, " ".join(words[2:]))
                respond(said, response_type="ephemeral")
            case "export":
                request_id = _request_id("export", words[1:])
                ack()
                respond(self._send_log(actor_of(body), request_id), response_type="ephemeral")
            case "away" | "back":
                ack()
                respond(self._away(actor_of(body), words), response_type="ephemeral")
            case "hold" | "unhold":
                request_id = _request_id(first, words[1:])
                ack()
                reason = " ".join(words[2:])
                respond(
                    self._hold(actor_of(body), request_id, reason, is_on=first == "hold"), response_type="ephemeral"
                )
            case "drill":
                ack()
                said = drill_command.answer(self.drills, self.desk, actor_of(body), words[1:], now=self.now())
                respond(said, response_type="ephemeral")
            case _ if first in self.desk.policy.accounts:
                ack()
                self._open_form(body, client, read_wish(words[1:], self.desk.policy.accounts[first]))
            case _:
                ack()
                respond(self._no_such(actor_of(body), words[0]), response_type="ephemeral")

    def _status(self, actor: Actor, words: Sequence[str]) -> str:
        if words:
            case = self.desk.case(_request_id("status", words))
            return modals.status_text([case], self.desk.policy, case.follow_ups, self._waiting([case], actor))
        cases, mine = self.desk.open_cases(actor.person), self.desk.open_follow_ups(actor.person)
        return modals.status_text(cases, self.desk.policy, mine, self._waiting(cases, actor))

    def _waiting(self, cases: Sequence[Case], actor: Actor) -> dict[str, list[str]]:
        """Return what the actor is told about those who were asked, by their own request."""
        mine = [case for case in cases if case.request.requester == actor.person]
        with self.desk.database.read() as session:
            away = absence.in_force(session, self.desk.team, now=self.now())
        open_ones = [case for case in mine if allowed_roles(case.state, Action.APPROVE)]
        listed = dict.fromkeys(person for case in open_ones for person in asking.asked(case.request))
        active = self.active(listed) if self.active and listed else {}
        return {case.request.id: asked.waiting_lines(case, now=self.now(), away=away, active=active) for case in mine}

    def _send_log(self, actor: Actor, request_id: str) -> str:
        self.desk.may_export(actor, request_id, now=self.now())
        if self.export is None:
            raise Unavailable("This bot does not send files. Ask whoever runs it for “breakglass export”.")
        self.export(actor, request_id)
        return f"The log of {request_id} is in your direct messages with me."

    def _hold(self, actor: Actor, request_id: str, reason: str, *, is_on: bool) -> str:
        if is_on:
            self.retention.hold(actor, request_id, reason, now=self.now())
            return f"{request_id} is under legal hold: nothing of it is pruned."
        self.retention.release(actor, request_id, reason, now=self.now())
        return f"The legal hold of {request_id} has ended."

    def _away(self, actor: Actor, words: Sequence[str]) -> str:
        return away_command.answer(self.away, self.desk.directory, actor, words, now=self.now())

    def _no_such(self, actor: Actor, word: str) -> str:
        names = [account.name for account in self.desk.accounts_for(actor.person)]
        close = difflib.get_close_matches(word.lower(), [*names, *_SUBCOMMANDS], n=1, cutoff=0.5)
        hint = f" Did you mean `{views.COMMAND} {close[0]}`?" if close else ""
        listed = ", ".join(f"`{name}`" for name in names[:30])
        offer = f"You may ask for: {listed}." if names else "The policy has no account that you may ask for."
        return (
            f"There is no account “{escape(word, 60)}”.{hint} {offer} "
            f"`{views.COMMAND}` alone opens the form, `{views.COMMAND} help` says what else there is."
        )

    # The form.

    def ask(self, body: dict[str, Any], ack: Ack, client: WebClient) -> None:
        """Open the form from the Home tab."""
        ack()
        self._open_form(body, client, _Wish())

    def _open_form(self, body: Mapping[str, Any], client: WebClient, wish: _Wish) -> None:
        with filling(client, body["trigger_id"], modals.loading(modals.TITLE)) as view_id:
            person = actor_of(body).person
            accounts = self.desk.accounts_for(person)
            if wish.account is None and len(accounts) == 1:
                wish = _Wish(accounts[0].name)
            client.views_update(
                view_id=view_id, view=self._form(person, accounts, wish.account, wish.level, dict(wish.values))
            )

    def redraw(self, body: dict[str, Any], ack: Ack, client: WebClient) -> None:
        """Draw the form anew for another account or level; what was typed stays."""
        ack()
        person, values = actor_of(body).person, values_of(body["view"])
        view = self._form(
            person, self.desk.accounts_for(person), values.get(views.ACCOUNT), values.get(views.LEVEL), values
        )
        client.views_update(view_id=body["view"]["id"], view=view)

    def _form(
        self,
        person: str,
        accounts: Sequence[Account],
        account_name: str | None,
        level_name: str | None,
        values: Mapping[str, str],
    ) -> modals.View:
        account = next((entry for entry in accounts if entry.name == account_name), None)
        if account is None and account_name is not None:
            return modals.sentence(
                modals.TITLE, self.desk.preview(person, account_name, level_name, now=self.now()).sentence
            )
        level: Level | None = None
        if account is not None:
            # The first of an account's levels is the least; nobody should have to choose it.
            level = account.real_levels.get(level_name or "") or next(iter(account.real_levels.values()))
        typed = values.get(views.DURATION, "")
        asked = _duration(typed) if _is_duration(typed) else None
        verdict: Verdict | None = None
        if account is not None and level is not None:
            verdict = self.desk.preview(person, account.name, level.name, asked, now=self.now())
        if level is not None and modals.needs_key(level) and views.PUBLIC_KEY not in values:
            values = {**values, views.PUBLIC_KEY: self.desk.key_on_file(person)}
        return modals.request_form(
            accounts, self.desk.policy, account=account, level=level, verdict=verdict, values=values
        )

    def open(self, body: dict[str, Any], ack: Ack, view: dict[str, Any]) -> None:
        """Take the request form."""
        values = values_of(view)
        if views.DURATION not in values:
            first = views.ACCOUNT if views.ACCOUNT not in values else views.LEVEL
            raise Invalid("The form is not complete.", fields={first: "Choose again; the form is being filled in."})
        ask = Ask(
            account=values.get(views.ACCOUNT, ""),
            level=values.get(views.LEVEL, ""),
            threshold=values.get(views.THRESHOLD, ""),
            reason=values.get(views.REASON, ""),
            standard_path=values.get(views.STANDARD_PATH, ""),
            incident=values.get(views.INCIDENT, ""),
            duration=_duration(values[views.DURATION]),
            form_id=view["id"],
            public_key=values.get(views.PUBLIC_KEY, ""),
        )
        row = self.desk.open(actor_of(body), ask, now=self.now())
        ack(response_action="update", view=modals.sentence(row.id, modals.asked_text(row)))

    # Deciding.

    def approve(self, body: dict[str, Any], ack: Ack, client: WebClient) -> None:
        """Approve for the time that was asked; where that takes a code, open the form that asks for it."""
        click = click_of(body)
        if self.desk.factor.is_needed(click.request_id):
            self.shorten_form(body, ack, client)
            return
        self.desk.approve(click.actor, click.request_id, click.version, now=self.now())
        ack()
        said = self._approved(click.request_id) + away_command.note(self.away, click.actor, now=self.now())
        self._answer(body, client, said)

    def shorten_form(self, body: dict[str, Any], ack: Ack, client: WebClient) -> None:
        """Open the form that approves for less."""
        click = click_of(body)
        ack()
        with filling(client, body["trigger_id"], modals.loading(f"Approve {click.request_id}")) as view_id:
            case = self.desk.may(click.actor, Action.APPROVE, click.request_id, click.version, now=self.now())
            self.desk.factor.must_be_enrolled(click.actor, case, self.desk.names(case)[1], now=self.now())
            client.views_update(view_id=view_id, view=modals.shorten_form(case, self.desk.policy, click.about))

    def shorten(self, body: dict[str, Any], ack: Ack, view: dict[str, Any]) -> None:
        """Approve for less."""
        click = about_of(body, view["private_metadata"])
        values = values_of(view)
        within, code = _duration(values.get(views.DURATION, "")), values.get(views.CODE)
        self.desk.approve(click.actor, click.request_id, click.version, within=within, code=code, now=self.now())
        ack(response_action="update", view=modals.sentence(click.request_id, self._approved(click.request_id)))

    def _approved(self, request_id: str) -> str:
        case = self.desk.case(request_id)
        found = views.standing(case, self.desk.policy)
        more = " The requester can open the credential now." if found.suffices else tiers.still(found)
        return f"Approved {request_id}: {found.have} of {found.need}.{more}"

    def deny_form(self, body: dict[str, Any], ack: Ack, client: WebClient) -> None:
        """Open the form that asks why."""
        click = click_of(body)
        ack()
        with filling(client, body["trigger_id"], modals.loading(f"Deny {click.request_id}")) as view_id:
            self.desk.may(click.actor, Action.DENY, click.request_id, click.version, now=self.now())
            client.views_update(view_id=view_id, view=modals.deny_form(click.about))

    def deny(self, body: dict[str, Any], ack: Ack, view: dict[str, Any]) -> None:
        """Deny, with the reason."""
        click = about_of(body, view["private_metadata"])
        reason = values_of(view).get(views.REASON, "")
        self.desk.deny(click.actor, click.request_id, click.version, reason, now=self.now())
        text = f"Denied {click.request_id}. The requester sees your reason."
        ack(response_action="update", view=modals.sentence(click.request_id, text))

    def withdraw(self, body: dict[str, Any], ack: Ack, client: WebClient) -> None:
        """Take the request back."""
        click = click_of(body)
        self.desk.withdraw(click.actor, click.request_id, click.version, now=self.now())
        ack()
        self._answer(body, client, f"Withdrew {click.request_id}. Nothing was given out.")

    # The credential.

    def reveal(self, body: dict[str, Any], ack: Ack, client: WebClient) -> None:
        """Issue the credential into a window of the requester's, the only place where it is ever shown."""
        click = click_of(body)
        # Before the window: of two clicks the second is answered beside its button, and opens no window over the first.
        intent = self.desk.reveal(click.actor, click.request_id, click.version, now=self.now())
        ack()
        lost = f"The window was closed before the credential of {click.request_id} was shown. Press Show again."
        told = partial(tell, body, client, lost)
        with ExitStack() as first:
            first.enter_context(self.first())
            try:
                view_id = open_window(client, body["trigger_id"], modals.revealing(click.request_id))
            except Exception:
                self.desk.drop(intent, now=self.now())
                raise
            with speaking(client, view_id, click.request_id, closed=told):
                # Read before the issue: a database that fails after it must not lose what was just made.
                case = self.desk.case(click.request_id)
                now = self.now()
                was_held: list[str] = []

                def held(names: tuple[str, ...]) -> None:
                    was_held.extend(names)
                    first.close()  # others go on: this may take a minute
                    redraw(client, view_id, modals.held(click.request_id, names))

                asked_at: list[datetime] = []

                def asked(question: Question) -> None:
                    asked_at.append(self.now())  # its time runs already
                    first.close()
                    redraw(client, view_id, modals.asked(question))

                made = self.desk.issue(intent, now=now, held=held, asked=asked)
                now = asked_at[0] if asked_at else self.now() if was_held else now
                show_secret(client, view_id, modals.handed_over(case, made, now=now), pause=self.pause)

    def intercept(self, body: dict[str, Any], ack: Ack, client: WebClient) -> None:
        """Somebody else opened it: end the access and call security."""
        click = click_of(body)
        ack()
        self.desk.intercept(click.actor, click.request_id, now=self.now())
        self._finish(body, client, click.request_id, "Security is called.")

    def release(self, body: dict[str, Any], ack: Ack, client: WebClient) -> None:
        """Hand the access back; the thread says so when Vault has confirmed."""
        click = click_of(body)
        self.desk.release(click.actor, click.request_id, click.version, now=self.now())
        ack()
        self._finish(body, client, click.request_id, "Thank you.")

    def revoke(self, body: dict[str, Any], ack: Ack, client: WebClient) -> None:
        """Take the access away."""
        click = click_of(body)
        self.desk.revoke(click.actor, click.request_id, click.version, now=self.now())
        ack()
        self._finish(body, client, click.request_id, "Revoked.")

    def _finish(self, body: Mapping[str, Any], client: WebClient, request_id: str, first: str) -> None:
        if self.desk.finish(request_id, now=self.now()):
            rest = f"{request_id} has ended, and Vault confirmed that nothing of it is left."
        else:
            rest = f"{request_id} is being taken back; the thread says when Vault has confirmed it."
        self._answer(body, client, f"{first} {rest}")

    # The commands.

    def show_commands(self, body: dict[str, Any], ack: Ack, client: WebClient) -> None:
        """Show a page of the commands that a post is about, in a window or in the one that is open."""
        match = _COMMANDS.fullmatch(str(body["actions"][0].get("value", "")))
        if match is None:
            raise Conflict("That button is not of this version of the bot. Nothing was changed.", code="unknown_button")
        ack()
        request_id, first, last, page = match[1], int(match[2]), int(match[3]), int(match[4])
        opened = str((body.get("view") or {}).get("id") or "")
        with ExitStack() as shown:
            if opened:
                shown.enter_context(speaking(client, opened, request_id))
                view_id = opened
            else:
                view_id = shown.enter_context(filling(client, body["trigger_id"], modals.loading(request_id)))
            self.desk.may_read(actor_of(body))
            found, has_more = self.desk.executed(request_id, first, last, page, commands.PAGE)
            about = f"{request_id} {first} {last}"
            client.views_update(view_id=view_id, view=modals.commands_page(about, page, found, has_more=has_more))

    # What is pruned.

    def confirm_pruning(self, body: dict[str, Any], ack: Ack, client: WebClient) -> None:
        """Confirm what is pruned; with the second person's click it is done, which may take some seconds."""
        seq, plan = _proposal(body)
        ack()
        seen_at = _clicked_at(body)
        done = self.retention.confirm(actor_of(body), seq, plan, seen_at=seen_at, now=self.now())
        if done.pruned is None:
            text = f"You confirmed it: {done.have} of {done.need}. Nothing is pruned before somebody else has, too."
        else:
            gone = "1 entry is" if done.pruned == 1 else f"{done.pruned or 'no'} entries are"
            text = f"You confirmed it, as the second: {gone} pruned."
            if done.left:
                text += f" {done.left} of the plan stayed: under legal hold by now, or to be kept for longer."
        self._answer(body, client, text)

    def reject_pruning(self, body: dict[str, Any], ack: Ack, client: WebClient) -> None:
        """Reject what was proposed."""
        seq, plan = _proposal(body)
        self.retention.reject(actor_of(body), seq, plan, now=self.now())
        ack()
        self._answer(body, client, "You rejected it. Nothing is pruned.")

    # The Home tab.

    def home(self, event: dict[str, Any], body: dict[str, Any], client: WebClient) -> None:
        """Draw the Home tab that was opened."""
        if event.get("tab", "home") == "home":
            self._publish(client, Actor(str(body.get("team_id") or "unknown"), str(event["user"])))

    def _publish(self, client: WebClient, actor: Actor) -> None:
        try:
            view = self._home(actor)
        except BreakGlassError as error:
            view = modals.home_notice(error.sentence)
        client.views_publish(user_id=actor.person, view=view)

    def _home(self, actor: Actor) -> modals.View:
        agenda = self.desk.agenda(actor, now=self.now())
        return modals.home(
            self.desk.policy,
            waiting=agenda.waiting,
            mine=agenda.mine,
            reviews=agenda.reviews,
            follow_ups=agenda.follow_ups,
            now=self.now(),
        )

    # Answering.

    def _answer(self, body: Mapping[str, Any], client: WebClient, text: str) -> None:
        """Tell the person, and only them, what their click did."""
        tell(body, client, text)
        if (body.get("view") or {}).get("type") == "home":
            self._publish(client, actor_of(body))


def _unknown(ack: Ack, body: dict[str, Any], client: WebClient) -> None:
    """Answer a click on what this version does not know."""
    ack()
    if not str(body["actions"][0].get("url") or ""):
        tell(body, client, "That button is not of this version of the bot. Nothing was changed.")


def _request_id(subcommand: str, words: Sequence[str]) -> str:
    found = words[0].upper() if words else ""
    if not REQUEST.fullmatch(found):
        raise Invalid(f"Name the request: {views.COMMAND} {subcommand} BG-7KQ2.")
    return found


def _reply(ack: Ack, text: str) -> None:
    ack(text=text, response_type="ephemeral")
