"""How does an entry of the log read in its request's thread?

Rules
-----
* One line for one entry, in plain words; what a person typed comes after it, quoted, without markup.
* An event that is not known here still gets a line: what is logged is posted.
* A refusal is told with what the person was told, and calls nobody: its sentence may list custodians.
* Only ``credential:end`` says that the lease is gone, because only there has Vault confirmed it.

This module is pure.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from bot import commands, drill_views, policy_entries, tiers
from bot.blockkit import Block, copyable, escape, label, mention, person, plain, plural, typed, when
from storage import commands as told
from storage.models import FollowUpWord, Outcome, State
from workflows import policy_control
from workflows.absence import AWAY, BACK
from workflows.alert_rules import SEND, TEST
from workflows.alert_rules import Came as AlertCame
from workflows.digest import POST as DIGEST
from workflows.drill_score import LOGIN, PLAN, SCORE, START
from workflows.lifecycle import Action
from workflows.policy import say_duration
from workflows.readiness import FAIL as READY
from workflows.reconcile import ALARM, CLEAR
from workflows.reconcile import Kind as Alarmed
from workflows.retention import APPLY, CONFIRM, HOLD, PROPOSE, REJECT, Fate
from workflows.retention import RELEASE as LET_GO
from workflows.retention import Outcome as Came
from workflows.review_pack import ASK as PACK
from workflows.step_up import ENROL, LOCK, UNENROL
from workflows.trial import SEEN, TRIED, TRY

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from storage.audit import Record
    from workflows.door import Case

Words = tuple[str, list[Block]]  # a line of mrkdwn, and what was typed

_OUTCOMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        Outcome.JUSTIFIED: "justified",
        Outcome.NOT_JUSTIFIED: "not justified",
        Outcome.MISUSE: "misuse",
        Outcome.DRILL: "a drill",
    }
)

_MOST_NAMES: Final = 5  # in one line

_VERBS: Final[Mapping[str, str]] = MappingProxyType(
    {
        Action.OPEN: "ask for access",
        Action.APPROVE: "approve",
        policy_control.CONFIRM: "confirm a changed policy",
        policy_control.REJECT: "reject a changed policy",
        Action.DENY: "deny it",
        Action.WITHDRAW: "withdraw it",
        Action.REVEAL: "open the credential",
        Action.RELEASE: "hand it back",
        Action.INTERCEPT: "say that somebody else opened it",
        Action.REVOKE: "revoke it",
        Action.REVIEW: "file the review",
        Action.REVIEW_SECOND: "file the second review",
        Action.REASSIGN: "give the review to somebody else",
        FollowUpWord.CLOSE: "say that a follow-up is done",
        PACK: "read its review pack",
        "log:export": "export the log",
        HOLD: "put it under legal hold",
        LET_GO: "end its legal hold",
        AWAY: "say that they are away",
        BACK: "say that they are back",
        PROPOSE: "propose what is pruned",
        CONFIRM: "confirm what is pruned",
        REJECT: "reject what is to be pruned",
        START: "begin a drill",
    }
)


def outcome_words(outcome: str) -> str:
    """Return a review's verdict in words."""
    return _OUTCOMES.get(outcome, escape(outcome, 40))


def review_words(findings: str, follow_ups: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Return what a review says in its writer's words, for ``rich_text``."""
    parts = [label("Findings"), typed(findings)]
    for follow_up in list(follow_ups)[:3]:
        owner, due = str(follow_up.get("owner", "")), str(follow_up.get("due", ""))
        line = label("To do", f"until {due}, by" if due else "by")
        line["elements"].append({"type": "text", "text": " "})
        line["elements"].append(person(owner))
        parts += [line, typed(str(follow_up.get("what", "")), 900)]
    return parts


def evidence(data: Mapping[str, Any]) -> list[Block]:
    """Return why a reviewer answered as they did, in their words; older reviews say nothing of it."""
    parts = []
    for key, text in (("threshold_why", "Why it was met, or not"), ("standard_path_why", "Would escalation have done")):
        if data.get(key):
            parts += [label(text), typed(str(data[key]), 600)]
    return parts


def line(record: Record, case: Case | None, name: str) -> Words:
    """Return an entry's line and what was typed. ``name``: what it is about, escaped; empty when it is not known."""
    if record.is_pruned:
        return f"What stood here ({escape(record.event.replace(':', ' '), 80)}) was pruned: its time was over.", []
    who = _who(record.actor.person)
    if record.refused is not None:
        tried = _VERBS.get(record.event, escape(record.event, 80))
        about = f" to *{name}*" if name and record.event == Action.OPEN else ""
        said = plain(str(record.data.get("said") or record.refused), 300)
        return f"{who} tried to {tried}{about} and was refused: _{escape(said, 400)}_", []
    if (changed := policy_entries.line(record, who)) is not None:
        return changed
    tell = _LINES.get(record.event)
    if tell is None:
        return f"{who}: {escape(record.event.replace(':', ' '), 80)}", []
    return tell(record, who, case, name)


def _who(person: str) -> str:
    if person == "system":
        return "The bot"
    # Whoever types at a terminal is known by the machine's name for them only.
    at_terminal = person.removeprefix("shell:")
    return mention(person) if at_terminal == person else f"{escape(at_terminal, 80)} (at a terminal)"


def _open_line(record: Record, who: str, case: Case | None, name: str) -> Words:
    data = record.data
    span = say_duration(timedelta(seconds=_number(data, "asked_seconds")))
    count = len(case.request.custodians) if case else len(_listed(data, "custodians"))
    line = f"{who} asked for *{name}* for {span}; needs {_number(data, 'quorum')} of {plural(count, 'custodian')}"
    line += f"{tiers.needs(data)}."
    return line, [typed(str(data["reason"]))] if data.get("reason") else []


def _approve_line(record: Record, who: str, case: Case | None, _name: str) -> Words:
    data = record.data
    seconds = _number(data, "granted_seconds")
    less = case is not None and seconds < case.request.asked_seconds
    shorter = f", for {say_duration(timedelta(seconds=seconds))} only" if less else ""
    who += _in_place(data)
    how = ", with a code of their authenticator" if data.get("step_up") else ""
    return f"{who} approved ({_number(data, 'have')} of {_number(data, 'need')}){how}{shorter}{tiers.fills(data)}.", []


def _lock_line(record: Record, who: str, _case: Case | None, _name: str) -> Words:
    said = f"*{_number(record.data, 'wrong')} wrong codes* were typed in the name of {who}"
    return f"{said}: none of theirs counts for 15 minutes. If it was not them, their Slack session is stolen.", []


def _enrol_line(record: Record, who: str, _case: Case | None, _name: str) -> Words:
    data = record.data
    whom = mention(str(data.get("person", "")))
    what = "a new second factor, in place of the one before" if data.get("replaces") else "a second factor"
    return f"{who} enrolled {what} for {whom}. {whom}: if you know nothing of it, call security.", []


def _unenrol_line(record: Record, who: str, _case: Case | None, _name: str) -> Words:
    return f"{who} removed the second factor of {mention(str(record.data.get('person', '')))}.", []


def _in_place(data: Mapping[str, Any]) -> str:
    """Say for whom a deputy answered."""
    places = [mention(str(one)) for one in _listed(data, "for")]
    return f", for {' and '.join(places)}," if places else ""


def _away_line(record: Record, who: str, _case: Case | None, _name: str) -> Words:
    until, deputy = _moment(record.data.get("until")), record.data.get("deputy")
    till = f" until {when(until)}" if until else ""
    named = f" {mention(str(deputy))} stands in, where the policy lists them." if deputy else ""
    return f"{who} is *away*{till}.{named}", []


def _quorum_line(record: Record, _who: str, case: Case | None, _name: str) -> Words:
    span = say_duration(timedelta(seconds=_number(record.data, "granted_seconds")))
    opener = f" {mention(case.request.requester)} can open it now; nothing exists in Vault yet." if case else ""
    return f"*Approved* for {span}.{opener}", []


def _deny_line(record: Record, who: str, _case: Case | None, _name: str) -> Words:
    return f"{who}{_in_place(record.data)} *denied* it:", [typed(str(record.data.get("reason", "")))]


def _lapse_line(record: Record, _who: str, _case: Case | None, _name: str) -> Words:
    if record.source == State.APPROVED:
        return "*Lapsed*: it was approved, but not opened in time. No credential was given out.", []
    return "*Lapsed*: not enough custodians answered in time.", []


def _escalate_line(record: Record, _who: str, _case: Case | None, _name: str) -> Words:
    if record.source == State.ENDING:
        why = escape(plain(str(record.data.get("why", "")), 500), 600)
        at = _listed(record.data, "at")
        places = ", ".join(f"`{escape(plain(str(one), 100), 150)}`" for one in at[:_MOST_NAMES])
        where = f" at {places}" if places else ""
        again = _moment(record.data.get("next_try_at"))
        soon = f" in {say_duration(again - record.at)}" if again and again > record.at else " soon"
        line = (
            f"*Not taken back yet*{where} (try {_number(record.data, 'attempt')}): {why} The bot tries again{soon}, "
            "and goes on until it is gone. *Count it as usable until then*; if that cannot wait, cut it off there."
        )
        return line, []
    if record.data.get("tier"):
        return tiers.asked_line(record.data), []
    return "Still not enough answers; half of the waiting time is over.", []


def _nudge_line(record: Record, _who: str, _case: Case | None, _name: str) -> Words:
    count = len(_listed(record.data, "people"))  # no names: they get a message of their own
    return f"Asked again, in direct messages: {plural(count, 'custodian')} who had not answered.", []


def _reveal_line(record: Record, who: str, _case: Case | None, _name: str) -> Words:
    number, old = _number(record.data, "credential"), record.data.get("replaces")
    if old:
        return f"{who} asked for a fresh credential ({number}); credential {_number(record.data, 'replaces')} ends.", []
    return f"{who} is opening credential {number}.", []


def _hold_line(record: Record, _who: str, _case: Case | None, _name: str) -> Words:
    if record.data.get("wrapping_accessor"):
        return _keys_line(record)
    names = ", ".join(f"`{escape(str(name), 100)}`" for name in _listed(record.data, "waiting_for")) or "a copy"
    number = _number(record.data, "credential")
    if record.data.get("given_up"):
        return f"Credential {number} is not made: {names} did not answer. The earlier one stays as it was.", []
    span = say_duration(timedelta(seconds=_number(record.data, "within_seconds")))
    line = (
        f"*Waiting for the log's copy* {names}: credential {number} is made only when what led to it is on record "
        f"there. It comes by itself if that is within {span}."
    )
    return line, []


def _keys_line(record: Record) -> Words:
    data = record.data
    span = say_duration(timedelta(seconds=_number(data, "within_seconds")))
    line = (
        f"*Custodians, with keys of your own:* Vault makes credential {_number(data, 'credential')} only when "
        f"{_number(data, 'need')} of `{escape(str(data.get('group', '')), 100)}` authorise it within {span}. Only if "
        "you know why it is needed, type this on your own machine; it shows what it is before it asks you:"
    )
    command = f"breakglass approve {record.request_id} --accessor {data.get('wrapping_accessor')}"
    return line, [copyable(command)]


def _alarm_line(record: Record, _who: str, _case: Case | None, _name: str) -> Words:
    why = escape(plain(str(record.data.get("sentence", "")), 500), 600)
    todo = (
        "From here on no head is signed, neither for new entries (this one among them) nor as a heartbeat; what was "
        "signed before still counts. The bot looks every few seconds, and signs again by itself once the log is the "
        "one that it had signed. Security: leave the database as it is, mend nothing, and run `breakglass verify`; "
        "with a copy outside also `breakglass verify --against` and its name. Access can still be asked for, and is "
        "revoked as ever; where copies outside are required, no credential comes out while one of them does not take "
        "the log. What to do next: `bot/OPERATIONS.md`, “When the log is not signed any more”."
    )
    return f"*ALARM: the log is not signed any more.* {why} {todo}", []


def _rotate_line(record: Record, who: str, _case: Case | None, _name: str) -> Words:
    key = f"`{escape(str(record.data.get('new', '')), 300)}`"
    told = "If none of you knows of this, somebody else signs the log now: call security."
    if record.data.get("lost"):
        line = (
            f"{who} had *the log signed with a new key, and the old one did not sign for it*: it is said to be lost. "
            f"Whoever trusts the old key must be given the new one by hand, {key}."
        )
        return f"{line} {told}", []
    line = f"{who} had *the log signed with a new key*, and the old one signed for it. Auditors need it: {key}."
    return f"{line} {told}", []


def _behind_line(record: Record, _who: str, _case: Case | None, _name: str) -> Words:
    data = record.data
    name = f"`{escape(str(data.get('copy', '')), 100)}`"
    span = say_duration(timedelta(seconds=_number(data, "seconds")))
    count = _number(data, "entries")
    stops = " *No credential can be opened until it is back.*" if data.get("required") else ""
    why = escape(plain(str(data.get("why", "")), 500), 600)
    missing = f"lacks {plural(count, 'entry') if count == 1 else f'{count} entries'}"
    return f"*The log's copy* {name} *is behind*: it {missing}, the oldest for {span}.{stops} {why}", []


def _alert_line(record: Record, who: str, _case: Case | None, _name: str) -> Words:
    """Say whether somebody beyond Slack was told. Of the service's address only its scheme is on record."""
    data = record.data
    whom = escape(plain(str(data.get("to", "")), 40), 60)
    name = f"`{escape(str(data.get('alert', '')), 60)}` ({escape(plain(str(data.get('scheme', '')), 40), 60)})"
    why = escape(plain(str(data.get("why", "")), 300), 400)
    came = data.get("came")
    if record.event == TEST:
        how = "and it arrived" if came == AlertCame.SENT else f"*and it did not get through*: {why}"
        return f"{who} tried the alert {name} for {whom}, {how}".removesuffix(".") + ".", []
    if came == AlertCame.SENT:
        tries, span = _number(data, "tries"), say_duration(timedelta(seconds=_number(data, "seconds")))
        late = f", after {tries} tries and {span}" if tries > 1 else ""
        return f"Told {whom} beyond Slack by {name}{late}.", []
    if came == AlertCame.GIVEN_UP:
        return f"*The alert {name} for {whom} was given up* after a day of trying: {why} Tell them yourselves.", []
    soon = say_duration(timedelta(seconds=_number(data, "retry_seconds")))
    return f"*The alert {name} for {whom} did not get through*: {why} It is tried again in {soon}, and so on.", []


def _reset_line(record: Record, who: str, _case: Case | None, _name: str) -> Words:
    return f"{who} had the log's copy `{escape(str(record.data.get('copy', '')), 100)}` begun anew.", []


def _caught_up_line(record: Record, _who: str, _case: Case | None, _name: str) -> Words:
    return f"The log's copy `{escape(str(record.data.get('copy', '')), 100)}` has caught up; nothing was lost.", []


def _token_line(record: Record, _who: str, _case: Case | None, _name: str) -> Words:
    return f"Vault made ready for credential {_number(record.data, 'credential')}; it opens nothing yet.", []


def _abandon_line(record: Record, _who: str, _case: Case | None, _name: str) -> Words:
    number, why = _number(record.data, "credential"), str(record.data.get("why", ""))
    if why == "replaced":
        return f"Credential {number} was put out of use.", []
    return f"Credential {number} was not completed and was put out of use: {escape(plain(why, 500), 600)}", []


def _issue_line(record: Record, _who: str, case: Case | None, _name: str) -> Words:
    to = f" to {mention(case.request.requester)}" if case else ""
    name = f" as `{escape(str(record.data['identity']), 100)}`" if record.data.get("identity") else ""
    if name and record.data.get("identity_is_shared"):
        name += ", a name that others have at other times"
    number = _number(record.data, "credential")
    fresh = "A fresh credential" if record.event == Action.REISSUE else "Credential"
    end = f"; it ends {when(case.request.expires_at)}" if case and case.request.expires_at else ""
    keys = ", ".join(f"`{escape(who, 80)}`" for who in map(str, _listed(record.data, "authorised_by")))
    by = f" Authorised at Vault by {keys}." if keys else ""
    line = f"*{fresh} {number} was issued*{to}{name}{end}.{by}"
    if record.data.get("delivery"):
        line += " Neither the bot nor Slack has seen it: it can be opened once, within a minute."
    return line, []


def _unwrap_line(record: Record, _who: str, _case: Case | None, _name: str) -> Words:
    number = _number(record.data, "credential")
    if record.data.get("is_sure") is False:
        return f"Credential {number} was opened, or ran out unopened: the bot was not there to see which.", []
    return f"*Credential {number} was opened.*", []


def _unopened_line(record: Record, _who: str, _case: Case | None, _name: str) -> Words:
    number = _number(record.data, "credential")
    return f"*Nobody opened credential {number}* in its time; it is taken back. _Show again_ makes a fresh one.", []


def _intercept_line(record: Record, who: str, case: Case | None, _name: str) -> Words:
    number = _number(record.data, "credential")
    before = f" before {mention(case.request.requester)} could" if case else ""
    line = (
        f"*ALARM: somebody else opened credential {number}*{before}, says {who}. The access is being taken back. "
        "Security: Vault's audit log has the address from which it was opened (`sys/wrapping/unwrap`); find out who "
        "could read that window or that code, and what was done with the login in between."
    )
    return line, []


def _warn_line(_record: Record, _who: str, case: Case | None, _name: str) -> Words:
    end = f" It ends {when(case.request.expires_at, '{time}')}." if case and case.request.expires_at else ""
    return f"About two minutes are left.{end}", []


def _end_line(record: Record, _who: str, _case: Case | None, _name: str) -> Words:
    out = _number(record.data, "seconds_out")
    if not out and not record.data.get("leases"):
        return "*Ended.* Vault confirmed that nothing of it is left; no credential had been given out.", []
    shown = [escape(str(fact), 200) for fact in _listed(record.data, "shown")]
    at_target = ""
    if shown:
        after = _number(record.data, "shown_after_ms") / 1000
        at_target = f" At the target, {after:.1f} s after the decision: {', and '.join(shown)}."
    span = say_duration(timedelta(seconds=out))
    exposed = _number(record.data, "exposed_seconds")
    late = f" *It may have been usable for {say_duration(timedelta(seconds=exposed))} after the decision.*"
    longer = late if exposed > 1 else ""
    what = "the lease" if record.data.get("leases") else "its token"  # a certificate has no lease
    return f"*Ended.* Vault confirmed that {what} is gone, after {span}.{at_target}{longer} A review is due.", []


def _lost_line(record: Record, _who: str, _case: Case | None, _name: str) -> Words:
    gone = escape(plain(str(record.data.get("gone", "lease")), 40), 60)
    line = (
        f"*Vault no longer has the {gone} of credential {_number(record.data, 'credential')}*, before its time: "
        "somebody revoked it in Vault, or Vault has lost data. The access is being ended. Whoever still needs it must "
        "ask again; security: if none of you did that, Vault's audit log says who did."
    )
    return line, []


def _stray_line(record: Record, _who: str, _case: Case | None, _name: str) -> Words:
    """Say what is live and on no record, what was done about it, and what is to be done now."""
    data = record.data
    kind, revoked = data.get("kind"), data.get("revoked")
    place = f"`{escape(plain(str(data.get('place', '')), 150), 200)}`"
    names = [f"`{escape(plain(str(one), 100), 150)}`" for one in _listed(data, "names")[:_MOST_NAMES]]
    count = max(_number(data, "count"), len(names))
    listed = ", ".join(names) + (f" and {count - len(names)} more" if count > len(names) else "")
    why = escape(plain(str(data.get("why", "")), 500), 600)
    credentials = plural(count, "credential")
    if kind == Alarmed.LEASE:
        head = f"*ALARM: {credentials} live in Vault that no request explains*, under {place}: {listed}."
        todo = (
            "Security: Vault's audit log says which token read it, and when; if that was no crash of the bot, somebody "
            "has got past it: look for what was done with it at the target."
        )
    elif kind == Alarmed.STUCK:
        head = f"*ALARM: Vault has given up revoking {credentials}* under {place}: {listed}."
        todo = "Security: look at the target for what was done with it since its time was over."
    elif kind == Alarmed.IDENTITY:
        head = f"*ALARM: {plural(count, 'emergency login')} at {place} that no open request explains*: {listed}."
        todo = (
            "The bot cannot end them: have the target's administrator take their login away, end their sessions, and "
            "drop them. Security: who made them, and what was done with them?"
        )
    else:
        span = say_duration(timedelta(seconds=_number(data, "seconds")))
        head = f"*ALARM: for {span} nobody could look at {place}*, so it is not known which access is live there. {why}"
        return f"{head} Have it mended; what is being taken back there is not said to be gone before it was seen.", []
    if revoked is True:
        done = "The bot has revoked it, and Vault has confirmed that."
    elif revoked is False:
        done = (
            f"*It could not be revoked and may work still*: {why} The bot tries again every minute; cut it off there."
        )
    else:
        done = ""
    return " ".join(part for part in (head, done, todo) if part), []


def _clear_line(record: Record, _who: str, _case: Case | None, _name: str) -> Words:
    data = record.data
    place = f"`{escape(plain(str(data.get('place', '')), 150), 200)}`"
    if data.get("kind") == Alarmed.UNREADABLE:
        return f"{place} can be looked at again.", []
    names = ", ".join(f"`{escape(plain(str(one), 100), 150)}`" for one in _listed(data, "names")[:_MOST_NAMES])
    return f"What was alarmed at {place} is not there any more: {names}.", []


def _fail_line(record: Record, _who: str, _case: Case | None, _name: str) -> Words:
    why = escape(plain(str(record.data.get("why", "")), 500), 600)
    return f"*No credential could be issued*, and nothing is left of the try: {why}", []


def _review_line(record: Record, who: str, _case: Case | None, _name: str) -> Words:
    data = record.data
    line = f"{who} filed the review: *{outcome_words(str(data.get('outcome', '')))}*."
    if record.event == Action.REVIEW_FIRST:
        line += " It needs a second reviewer."
    follow_ups = [item for item in _listed(data, "follow_ups") if isinstance(item, dict)]
    return line, [*evidence(data), *review_words(str(data.get("findings", "")), follow_ups)]


def _second_line(record: Record, who: str, _case: Case | None, _name: str) -> Words:
    agrees = "agrees with the first" if record.data.get("agrees") is True else "*disagrees* with the first"
    line = f"{who} filed the second review and {agrees}: *{outcome_words(str(record.data.get('outcome', '')))}*."
    return line, [label("Findings"), typed(str(record.data.get("findings", "")))]


def _assign_line(record: Record, who: str, _case: Case | None, _name: str) -> Words:
    data = record.data
    which = "second review" if data.get("second") is True else "review"
    owner = mention(str(data.get("owner", "")))
    instead = f" instead of {mention(str(data['instead_of']))}" if data.get("instead_of") else ""
    line = f"The {which} is {owner}'s to file{instead}."
    if record.event == Action.REASSIGN:
        line = f"{who} gave the {which} to {owner}{instead}."
    if data.get("reciprocal") is True:
        line += " *They review each other:* the requester reviewed a use of theirs within a month."
    if data.get("involved") is True:
        line += " They answer for the account: nobody else was left to ask, or somebody chose them."
    return line, []


def _late_line(record: Record, _who: str, _case: Case | None, _name: str) -> Words:
    data = record.data
    whose = f" It is {mention(str(data['owner']))}'s to file." if data.get("owner") else ""
    if record.event == Action.REVIEW_ESCALATE:
        days = plural(_number(data, "days_late"), "day")
        return f"*The review is {days} overdue.*{whose} `/breakglass reassign` gives it to somebody else.", []
    return f"*The review is overdue.*{whose}", []


def _follow_up_line(record: Record, who: str, _case: Case | None, _name: str) -> Words:
    data = record.data
    name, owner = escape(str(data.get("id", "")), 60), mention(str(data.get("owner", "")))
    due = escape(str(data.get("due", "")), 20)
    if record.event == FollowUpWord.CLOSE:
        return f"{who} says that the follow-up {name} is done.", [typed(str(data.get("note", "")), 900)]
    said = "is still to be done" if record.event == FollowUpWord.REMIND else "is to be done"
    return f"The follow-up {name} {said}, by {owner}, due {due}.", [typed(str(data.get("what", "")), 900)]


def _export_line(record: Record, who: str, _case: Case | None, _name: str) -> Words:
    data = record.data
    count = data.get("count")
    if isinstance(count, int):
        return f"{who} exported {plural(count, 'entry') if count == 1 else f'{count} entries'} of the log.", []
    days = [
        f"{word} {escape(str(data[key]), 40)}" for word, key in (("from", "since"), ("to", "until")) if data.get(key)
    ]
    parts = [escape(str(data[key]), 80) for key in ("request", "account") if data.get(key)]
    part = f" ({', '.join([*parts, *days])})" if parts or days else ""
    return f"{who} exported the log{part}.", []


def _held_line(record: Record, who: str, _case: Case | None, _name: str) -> Words:
    return f"{who} put it under *legal hold*: nothing of it is pruned.", [typed(str(record.data.get("reason", "")))]


def _let_go_line(record: Record, who: str, _case: Case | None, _name: str) -> Words:
    reason = record.data.get("reason")
    return f"{who} *ended its legal hold*.", [typed(str(reason))] if reason else []


def _propose_line(record: Record, who: str, _case: Case | None, _name: str) -> Words:
    data = record.data
    first, last = (escape(str(data.get(key, ""))[:10], 20) for key in ("oldest", "newest"))
    days = f"of {first}" if first == last else f"of {first} to {last}"
    line = (
        f"{who} *proposed to prune {_entries(data)}* {days} whose time is over (by class: {_classes(data)}). What they "
        "say goes for good; their hashes stay, so that the rest of the log still verifies. None is of an open request "
        f"or of one under legal hold. Two different people of auditors and security must confirm plan "
        f"{_plan_name(data)} within a week."
    )
    return line, []


def _confirm_line(record: Record, who: str, _case: Case | None, _name: str) -> Words:
    count = f"{_number(record.data, 'have')} of {_number(record.data, 'need')}"
    return f"{who} *confirmed* the pruning of plan {_plan_name(record.data)} ({count}).", []


def _reject_line(record: Record, who: str, _case: Case | None, _name: str) -> Words:
    return f"{who} *rejected* the pruning of plan {_plan_name(record.data)}; nothing is pruned.", []


def _apply_line(record: Record, _who: str, _case: Case | None, _name: str) -> Words:
    data = record.data
    left = _number(data, "left")
    stayed = f" {left} of the plan stayed: under legal hold by now, or to be kept for longer." if left else ""
    by = " and ".join(mention(str(one)) for one in _listed(data, "confirmed_by")[:5])
    return f"*Pruned {_entries(data)}*, plan {_plan_name(data)}, confirmed by {by}. Their hashes stay.{stayed}", []


def fate_line(fate: Fate | policy_control.Fate) -> str:
    """Return the line under a proposal that is not open any more: what became of it, ``mrkdwn``."""
    if isinstance(fate, policy_control.Fate):
        return policy_entries.fate_line(fate)
    data = fate.record.data if fate.record is not None else {}
    match fate.outcome:
        case Came.APPLIED:
            by = " and ".join(mention(str(one)) for one in _listed(data, "confirmed_by")[:5])
            words = f"*Confirmed* by {by}: {_entries(data)} pruned"
        case Came.REJECTED:
            words = f"*Rejected* by {_who(fate.record.actor.person if fate.record else '')}: nothing is pruned"
        case Came.REPLACED:
            words = "*Void*: a newer proposal has taken its place; nothing of this one is pruned"
        case Came.LAPSED:
            words = "*Lapsed*: two people did not confirm it within a week; nothing is pruned"
    return f"{words} ({when(fate.at)})."


def _entries(data: Mapping[str, Any]) -> str:
    count = _number(data, "count")
    return "1 entry" if count == 1 else f"{count} entries"


def _classes(data: Mapping[str, Any]) -> str:
    found = data.get("classes")
    counts = found.items() if isinstance(found, dict) else ()
    return ", ".join(f"{escape(str(name), 40)} {escape(str(count), 20)}" for name, count in list(counts)[:20])


def _plan_name(data: Mapping[str, Any]) -> str:
    return f"`{escape(str(data.get('plan', ''))[:12], 40)}`"


def _close_line(record: Record, _who: str, _case: Case | None, _name: str) -> Words:
    # Not of the request: "closed" would read as if somebody had ended it.
    return f"Its record so far ({_number(record.data, 'count')} entries) was sealed for an export.", []


def _command_line(record: Record, _who: str, _case: Case | None, _name: str) -> Words:
    """Say one command or session. (In a thread they are told together: ``commands.py``.)"""
    one = told.of_record(record)
    return f"`{escape(one.source, 80)}` recorded:", [copyable(commands.line(one))]


def _find_line(record: Record, _who: str, _case: Case | None, _name: str) -> Words:
    """Say what came of a whole use: also that nothing is to be said against it."""
    one = told.of_record(record)
    found = " ".join(escape(plain(sentence, 300), 400) for sentence in one.findings if sentence)
    counted = f"`{escape(one.source, 80)}` recorded {plural(one.count, 'command')} of this access."
    return f"{counted} *{found}*" if found else f"{counted} Nothing in its record is out of place.", []


def _source(data: Mapping[str, Any]) -> str:
    return f"`{escape(plain(str(data.get('source', '')), 80), 100)}`"


def _gap_line(record: Record, _who: str, _case: Case | None, _name: str) -> Words:
    data = record.data
    file, why = (escape(plain(str(data.get(key, "")), 200), 300) for key in ("file", "why"))
    first, last = data.get("from"), data.get("to")
    span = (
        f", from {escape(str(first), 40)} to {escape(str(last), 40)}" if first is not None and last is not None else ""
    )
    line = (
        f"*Lines of {_source(data)} were destroyed before they were read* (`{file}`{span}): {why}. Which commands "
        "stood there is not known. Security: if nobody of you did that, look at who was on that machine."
    )
    return line, []


def _down_line(record: Record, _who: str, case: Case | None, _name: str) -> Words:
    data = record.data
    since = _moment(data.get("since"))
    begun = f" since {when(since, '{time_secs}')}" if since else ""
    if case is None:
        return f"*Nothing was heard of {_source(data)}*{begun}: commands there are not recorded at present.", []
    line = (
        f"*Nothing was heard of {_source(data)}*{begun}. What is done with this access meanwhile may not be on record; "
        "lines that the target still writes come when the source is back."
    )
    return line, []


def _up_line(record: Record, _who: str, _case: Case | None, _name: str) -> Words:
    since = _moment(record.data.get("since"))
    quiet = f" It was quiet since {when(since, '{time_secs}')}." if since else ""
    return f"{_source(record.data)} is heard of again.{quiet}", []


def _unreadable_line(record: Record, _who: str, _case: Case | None, _name: str) -> Words:
    data = record.data
    count = _number(data, "count")
    were = "line was" if count == 1 else "lines were"
    at = escape(plain(str(data.get("position", "")), 200), 300)
    line = (
        f"*{count} {were} not such as {_source(data)} writes*; the first stands at `{at}`. They are torn or forged, or "
        "another program wrote them; only their hash is on record."
    )
    return line, []


def _policy_line(record: Record, _who: str, _case: Case | None, _name: str) -> Words:
    digest = escape(str(record.data.get("hash", ""))[:12], 20)
    if record.event == "policy:text":
        return f"The policy `{digest}…` was put on record, part {_number(record.data, 'part')}.", []
    return policy_entries.loaded(record), []


def _ready_line(record: Record, _who: str, _case: Case | None, _name: str) -> Words:
    """Say which accounts could not be opened, to their owners, with the first reasons."""
    data = record.data
    accounts = [one for one in _listed(data, "accounts") if isinstance(one, dict)]
    count = max(_number(data, "count"), len(accounts))
    said = []
    for one in accounts[:_MOST_NAMES]:
        found = [found for found in _listed(one, "findings") if isinstance(found, dict)]
        whys = []
        for each in found[:2]:
            level = f"level {plain(str(each['level']), 40)}: " if each.get("level") else ""
            whys.append(escape(f"{level}{plain(str(each.get('sentence', '')), 180)}", 250))
        name = escape(plain(str(one.get("account", "")), 40), 50)
        known = "not known" if one.get("verdict") == "unknown" else "red"
        said.append(f"*{name}* ({mention(str(one.get('owner', '')))}): {known}. {' '.join(whys)}")
    more = f" … and {count - len(said)} more." if count > len(said) else ""
    head = f"*{plural(count, 'account')} {'is' if count == 1 else 'are'} not ready*, should it be needed now."
    return f"{head} {' '.join(said)}{more} `breakglass ready` says everything.", []


def _digest_line(record: Record, _who: str, _case: Case | None, _name: str) -> Words:
    counts = record.data.get("counts")
    week = counts.get("week") if isinstance(counts, dict) else ""
    return f"The week's figures were told ({escape(str(week), 20)}).", []


def _trial_line(record: Record, who: str, _case: Case | None, _name: str) -> Words:
    data = record.data
    level = escape(f"{data.get('account', '')}/{data.get('level', '')}", 100)
    if record.event == TRY:
        return f"{who} tries the level *{level}*, with a credential of a minute that nobody sees.", []
    if data.get("passed") is True:
        return f"The trial of *{level}* went well, and its credential is gone.", []
    return f"*The trial of {level} failed:*", [typed(str(data.get("said", "")))]


_LINES: Final[Mapping[str, Callable[[Record, str, Case | None, str], Words]]] = MappingProxyType(
    {
        Action.OPEN: _open_line,
        Action.APPROVE: _approve_line,
        Action.QUORUM: _quorum_line,
        Action.DENY: _deny_line,
        Action.WITHDRAW: lambda _r, who, _c, _p: (f"{who} withdrew the request.", []),
        Action.LAPSE: _lapse_line,
        Action.ESCALATE: _escalate_line,
        Action.NUDGE: _nudge_line,
        Action.REVEAL: _reveal_line,
        Action.HOLD: _hold_line,
        Action.OPENED: _token_line,
        Action.ABANDON: _abandon_line,
        Action.ISSUE: _issue_line,
        Action.REISSUE: _issue_line,
        Action.UNWRAP: _unwrap_line,
        Action.UNOPENED: _unopened_line,
        Action.INTERCEPT: _intercept_line,
        Action.WARN: _warn_line,
        Action.RELEASE: lambda _r, who, _c, _p: (f"{who} is *done*; the access is being taken back.", []),
        Action.DRILL_REVEAL: lambda _r, _w, _c, _p: (
            "The bot is opening the credential, as its requester would; nobody sees it.",
            [],
        ),
        Action.DRILL_DONE: lambda _r, _w, _c, _p: ("The drill's access is being taken back.", []),
        Action.REVOKE: lambda _r, who, _c, _p: (f"{who} *revoked* the access; it is being taken back.", []),
        Action.EXPIRE: lambda _r, _w, _c, _p: ("*The time is over*; the access is being taken back.", []),
        Action.LOSE: _lost_line,
        Action.END: _end_line,
        Action.FAIL: _fail_line,
        Action.REVIEW: _review_line,
        Action.REVIEW_FIRST: _review_line,
        Action.REVIEW_SECOND: _second_line,
        Action.ASSIGN: _assign_line,
        Action.REASSIGN: _assign_line,
        Action.REMIND: _late_line,
        Action.REVIEW_ESCALATE: _late_line,
        FollowUpWord.OPEN: _follow_up_line,
        FollowUpWord.REMIND: _follow_up_line,
        FollowUpWord.CLOSE: _follow_up_line,
        told.RUN: _command_line,
        told.CLOSE: _command_line,
        told.STOP: _command_line,
        told.STRANGER: _command_line,
        told.FIND: _find_line,
        told.GAP: _gap_line,
        told.DOWN: _down_line,
        "capture:up": _up_line,
        "capture:unreadable": _unreadable_line,
        "log:export": _export_line,
        AWAY: _away_line,
        BACK: lambda _r, who, _c, _p: (f"{who} is back.", []),
        "request:close": _close_line,
        "policy:load": _policy_line,
        "policy:text": _policy_line,
        HOLD: _held_line,
        LET_GO: _let_go_line,
        PROPOSE: _propose_line,
        CONFIRM: _confirm_line,
        REJECT: _reject_line,
        APPLY: _apply_line,
        ALARM: _stray_line,
        CLEAR: _clear_line,
        DIGEST: _digest_line,
        READY: _ready_line,
        LOCK: _lock_line,
        ENROL: _enrol_line,
        UNENROL: _unenrol_line,
        TRY: _trial_line,
        TRIED: _trial_line,
        START: lambda r, who, _c, _p: drill_views.start_line(r, who),
        LOGIN: lambda r, _w, _c, _p: drill_views.login_line(r),
        SCORE: lambda r, _w, _c, _p: drill_views.score_line(r),
        PLAN: lambda r, _w, _c, _p: drill_views.plan_line(r),
        SEEN: lambda r, _w, _c, _p: (f"{_source(r.data)} has recorded what the trial did.", []),
        "log:alarm": _alarm_line,
        "log:rotate": _rotate_line,
        "copy:behind": _behind_line,
        "copy:caught_up": _caught_up_line,
        "copy:reset": _reset_line,
        SEND: _alert_line,
        TEST: _alert_line,
    }
)


def _moment(value: object) -> datetime | None:
    try:
        return datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _number(data: Mapping[str, Any], key: str) -> int:
    found = data.get(key)
    return found if isinstance(found, int) and not isinstance(found, bool) else 0


def _listed(data: Mapping[str, Any], key: str) -> list[Any]:
    found = data.get(key)
    return found if isinstance(found, list) else []
