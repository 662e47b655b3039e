"""What does a request look like in Slack, to each of those whom it concerns?

Rules
-----
* A message is a pure function of stored rows, so it can be drawn again at any time by anybody; it holds no truth.
* Which buttons a message has is read from ``TRANSITIONS``: what no role may do in this state is not offered.
* A button carries "BG-7KQ2 3", the request and the version that was drawn, and nothing else. Every right is checked
  again at the click.
* The state is said in words; the coloured sign beside it only repeats it.
* No message holds a secret, or anything that opens one. The one view that does is ``modals.credential``.
* Every picture takes ``now``, also where it does not need it, so that the follower can draw all of them alike.

What is opened in front of a person (modals, the Home tab, answers to commands) is ``modals.py``; how a log
entry reads is ``entries.py``; how text is made safe is ``blockkit.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from bot import commands, drill_views, entries, pack_view, policy_entries, review_words, tiers
from bot.blockkit import (
    MOST_BLOCKS,
    MOST_TEXT,
    Block,
    actions,
    button,
    clip,
    confirm,
    context,
    escape,
    header,
    joined,
    label,
    mention,
    people,
    plural,
    rich,
    section,
    typed,
    utc,
    when,
)
from storage.models import Answer, State
from workflows import asking, policy_control
from workflows.lifecycle import Action, allowed_roles
from workflows.policy import in_force, say_duration
from workflows.policy_file import USER
from workflows.retention import CONFIRM, PROPOSE, REJECT
from workflows.ssh_keys import fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from storage.audit import Record
    from storage.models import Grant
    from workflows.door import Case
    from workflows.policy import Policy
    from workflows.retention import Fate

# --- the words that Slack sends back ----------------------------------------------------------------------------------

COMMAND: Final = "/breakglass"

# action ids; those of a move are its event in the log
APPROVE: Final = Action.APPROVE.value
SHORTEN: Final = "request:shorten"
DENY: Final = Action.DENY.value
WITHDRAW: Final = Action.WITHDRAW.value
REVEAL: Final = Action.REVEAL.value
RELEASE: Final = Action.RELEASE.value
REVOKE: Final = Action.REVOKE.value
INTERCEPT: Final = Action.INTERCEPT.value
REVIEW: Final = Action.REVIEW.value
REVIEW_SECOND: Final = Action.REVIEW_SECOND.value
REASSIGN: Final = Action.REASSIGN.value
ASK: Final = "request:form"  # on the Home tab: opens the form
SHOW_COMMANDS: Final = commands.SHOW  # below a post that does not show all of them
LATER_COMMANDS: Final = commands.LATER  # in the window that it opens
CONFIRM_PRUNING: Final = CONFIRM
REJECT_PRUNING: Final = REJECT
CONFIRM_POLICY: Final = policy_control.CONFIRM
REJECT_POLICY: Final = policy_control.REJECT
SHOW_POLICY: Final = policy_entries.SHOW

# callback ids of modals
OPEN_FORM: Final = Action.OPEN.value
DENY_FORM: Final = Action.DENY.value
SHORTEN_FORM: Final = SHORTEN
REVIEW_FORM: Final = Action.REVIEW.value
NOTICE: Final = "notice"  # a modal that only says something
CREDENTIAL: Final = "credential:shown"

# block ids; an input's action id is the same word
BUTTONS: Final = "buttons"
ACCOUNT: Final = "account"
LEVEL: Final = "level"
THRESHOLD: Final = "threshold"
REASON: Final = "reason"
STANDARD_PATH: Final = "standard_path"
INCIDENT: Final = "incident"
DURATION: Final = "duration"
CODE: Final = "code"
PUBLIC_KEY: Final = "public_key"
THRESHOLD_MET: Final = "threshold_met"
THRESHOLD_WHY: Final = "threshold_why"
STANDARD_PATH_WHY: Final = "standard_path_why"
STANDARD_PATH_ENOUGH: Final = "standard_path_enough"
USED_AS_STATED: Final = "used_as_stated"
OUTCOME: Final = "outcome"
FINDINGS: Final = "findings"
FOLLOW_UPS: Final = tuple(  # (what, owner, due) of each follow-up
    (f"follow_up_what{n}", f"follow_up_owner{n}", f"follow_up_due{n}") for n in ("", "_2", "_3")
)

# An entry gives at most two blocks, so that this many fit into one post of 50 blocks whatever they say.
MOST_IN_POST: Final = 24
_MOST_LOGINS: Final = 5  # named to a reviewer; each "show again" makes one

_SIGNS: Final[Mapping[State, tuple[str, str]]] = MappingProxyType(
    {
        State.PENDING: ("🟡", "Waiting for approval"),
        State.APPROVED: ("🔵", "Approved, not opened yet"),
        State.ACTIVE: ("🔴", "Access is open"),
        State.ENDING: ("🟠", "Access is being taken back"),
        State.ENDED: ("⚪", "Access has ended, review is due"),
        State.REVIEWED: ("✅", "Access has ended, reviewed"),
        State.DENIED: ("⛔", "Denied"),
        State.WITHDRAWN: ("↩️", "Withdrawn"),
        State.LAPSED: ("⌛", "Lapsed"),
        State.FAILED: ("⚠️", "No credential could be issued"),
    }
)


@dataclass(frozen=True, slots=True)
class Message:
    """A message: ``text`` is all that notifications and screen readers get, ``blocks`` is what is seen."""

    text: str
    blocks: list[Block]


def value(case: Case) -> str:
    """Return what a button of this case carries."""
    return f"{case.request.id} {case.request.version}"


def state_words(state: State) -> str:
    """Return the state with its sign, for a headline."""
    sign, words = _SIGNS[state]
    return f"{sign} {words}"


def _headline(case: Case) -> str:
    # The id comes first: at the end of a line a phone would break it at its hyphen.
    sign, words = _SIGNS[case.state]
    return f"{sign} {case.request.id} · {words}"


# --- facts ------------------------------------------------------------------------------------------------------------


def titles(case: Case, policy: Policy) -> tuple[str, str]:
    """Return the titles of account and level, or their names where the policy no longer has them; not escaped."""
    account = policy.accounts.get(case.request.account)
    level = account.levels.get(case.request.level) if account else None
    return (account.title if account else case.request.account), (level.title if level else case.request.level)


def takes_code(case: Case, policy: Policy) -> bool:
    """Whether an approval takes a code of the custodian's second factor."""
    account = policy.accounts.get(case.request.account)
    level = account.levels.get(case.request.level) if account else None
    return level is not None and level.step_up is not None


def what(case: Case, policy: Policy, most: int = 200) -> str:
    """Return "Orders database · Read everything" for ``mrkdwn``."""
    account, level = titles(case, policy)
    return f"{escape(account, most // 2)} · {escape(level, most // 2)}"


def needed(case: Case, policy: Policy) -> int:
    """Return the quorum: the policy's of now when it became stricter, as the desk counts."""
    account = policy.accounts.get(case.request.account)
    level = account.levels.get(case.request.level) if account else None
    return max(case.request.quorum, level.quorum if level else 0)


def standing(case: Case, policy: Policy) -> asking.Standing:
    """Return how far the approvals go."""
    return asking.standing(case.request, counting(case, policy), needed(case, policy))


def _approvers(case: Case) -> list[str]:
    return [person for person in dict.fromkeys(case.approvers) if person != case.request.requester]


def counting(case: Case, policy: Policy) -> list[str]:
    """Return whose approval counts: while it is pending, not of those whom the policy has taken off the custodians.

    Who is in a group is not known here; where one is named the desk counts at the next approval.
    """
    said, row = _approvers(case), case.request
    account = policy.accounts.get(row.account)
    names = asking.named(policy, account, account.levels.get(row.level)) if account else ()
    if case.state is not State.PENDING or not all(USER.fullmatch(name) for name in names):
        return said
    return [person for person in said if person in names or person in (row.deputies or {})]


def _tally(case: Case, policy: Policy) -> str:
    found = standing(case, policy)
    return f"{found.have} of {found.need}"


def _granted(case: Case) -> timedelta:
    return timedelta(seconds=case.request.granted_seconds or case.request.asked_seconds)


def _was_issued(case: Case) -> bool:
    return any(grant.issued_at is not None for grant in case.grants)


def _is_open_to(case: Case, action: Action) -> bool:
    return bool(allowed_roles(case.state, action))


def threshold_text(case: Case, policy: Policy) -> str:
    """Return the threshold that is said to be met; its id where the policy no longer has it; not escaped."""
    account = policy.accounts.get(case.request.account)
    found = account.thresholds.get(case.request.threshold) if account else None
    return found.text if found else case.request.threshold


def clock_words(case: Case, policy: Policy) -> str:
    """Return, for ``mrkdwn``, what is needed now and what happens when, if nobody does anything; empty if nothing."""
    row = case.request
    match case.state:
        case State.PENDING if row.lapse_at:
            found = standing(case, policy)
            missing = max(1, found.need - found.have)
            word = "more approval" if counting(case, policy) else "approval"
            return f"*Needs {plural(missing, word)}*{tiers.lacking(found)}, or lapses {when(row.lapse_at)}."
        case State.APPROVED if row.lapse_at:
            return f"Lapses {when(row.lapse_at)} if it is not opened. The time counts from the opening."
        case State.ACTIVE if row.expires_at:
            return f"Ends {when(row.expires_at)} at the latest."
        case State.ENDING:
            return "Vault has not confirmed yet that the credential is gone; the bot keeps trying."
        case State.ENDED if row.review_due_at:
            which = "second review" if case.review else "review"
            whose = f" It is {mention(row.review_owner)}'s to file." if row.review_owner else ""
            return f"The {which} is due {when(row.review_due_at)}.{whose}"
        case _:
            return ""


def _ending(case: Case) -> str:
    """Return how it came to its end, or is coming to it; empty before."""
    row = case.request
    who = mention(row.ended_by_user) if row.ended_by_user else "somebody"
    denial = next((d for d in case.decisions if d.answer == Answer.DENY), None)
    match case.state:
        case State.DENIED:
            return f"Denied by {mention(denial.person)}." if denial else "Denied."
        case State.WITHDRAWN:
            return f"Withdrawn by {mention(row.requester)}."
        case State.LAPSED if row.granted_seconds is not None:
            return "Approved, but not opened in time. No credential was given out."
        case State.LAPSED:
            return "Not enough custodians answered in time. No credential was given out."
        case State.FAILED:
            return "Vault would not issue the credential. Nothing is left of it."
        case State.ENDING | State.ENDED | State.REVIEWED:
            how = {
                "release": f"Handed back by {who}.",
                "revoke": f"Revoked by {who}.",
                "expire": "The time was over.",
                "lost": "Vault no longer had the credential.",
                "intercept": f"Ended by {who}: somebody else had opened the credential.",
                "done": "The drill was over; the bot handed it back.",
            }.get(row.ended_by or "", "")
            gone = "" if _is_open_to(case, Action.END) else " Vault confirmed that the credential is gone."
            return f"{how}{gone}".strip()
        case _:
            return ""


def _why(case: Case, policy: Policy) -> Block:
    """Return everything that was written to explain the request, in one block without markup."""
    row = case.request
    parts = [
        label("Why"),
        typed(row.reason),
        label("Documented threshold", threshold_text(case, policy)),
        label("Tried on the standard path"),
        typed(row.standard_path),
        label("Incident", row.incident),
    ]
    if row.public_key:
        parts.append(label("Public key", fingerprint(row.public_key)))
    if denial := next((d for d in case.decisions if d.answer == Answer.DENY and d.reason), None):
        parts += [label("Why it was denied"), typed(denial.reason or "")]
    return rich(parts)


def _votes(case: Case, policy: Policy) -> str:
    row = case.request
    asked = [person for person in asking.asked(row) if person not in _approvers(case)]
    lines = [f"*Approved* ({_tally(case, policy)}): {people(counting(case, policy))}"]
    if _is_open_to(case, Action.APPROVE):
        lines.append(f"*Asked*: {people(asked)}")
        lines += tiers.lines(row, standing(case, policy))
    if row.deputies:
        places = (f"{mention(one)} for {people(whom)}" for one, whom in row.deputies.items())
        lines.append(f"*Standing in*: {'; '.join(places)}")
    if row.granted_seconds is not None and row.granted_seconds < row.asked_seconds:
        lines.append(f"*Granted*: {say_duration(_granted(case))}, less than was asked for")
    return "\n".join(lines)


# --- buttons ----------------------------------------------------------------------------------------------------------


def deciding(case: Case, policy: Policy) -> list[Block]:
    """Return a custodian's buttons while there is something to decide."""
    row = case.request
    account, level = titles(case, policy)
    span = say_duration(timedelta(seconds=row.asked_seconds))
    made = []
    if _is_open_to(case, Action.APPROVE) and takes_code(case, policy):
        hint = f"Approve {row.id} with a code of your authenticator"
        made.append(button("Approve with a code…", APPROVE, value(case), style="primary", hint=hint))
    elif _is_open_to(case, Action.APPROVE):
        made += [
            button(
                "Approve",
                APPROVE,
                value(case),
                style="primary",
                confirm=confirm(
                    f"Approve {row.id}?",
                    f"{clip(account, 90)}, {clip(level, 90)}, for {span}. You answer for this decision.",
                    "Approve",
                ),
                hint=f"Approve {row.id}",
            ),
            button("Approve for less…", SHORTEN, value(case), hint=f"Approve {row.id} for a shorter time"),
        ]
    if _is_open_to(case, Action.DENY):
        made.append(button("Deny…", DENY, value(case), style="danger", hint=f"Deny {row.id}"))
    return made


def _is_revealed_by_hand(case: Case) -> bool:
    """Whether the requester opens the credential; of a drill the bot does, and nobody sees it."""
    return _is_open_to(case, Action.REVEAL) and case.request.drill is None


def _withdrawing(case: Case) -> list[Block]:
    if not _is_open_to(case, Action.WITHDRAW):
        return []
    ask_first = confirm(f"Withdraw {case.request.id}?", "Nobody can approve it any more.", "Withdraw", style="danger")
    return [button("Withdraw", WITHDRAW, value(case), confirm=ask_first, hint=f"Withdraw {case.request.id}")]


def _revealing(case: Case) -> list[Block]:
    if not _is_revealed_by_hand(case):
        return []
    name = case.request.id
    if not _was_issued(case):
        return [button("Reveal", REVEAL, value(case), style="primary", hint=f"Reveal the credential of {name}")]
    ask_first = confirm(
        "Show a fresh credential?",
        "It was not kept, so it cannot be shown twice. A fresh one is issued and the earlier one ends, with every "
        "session opened with it. The end stays the same.",
        "Show a fresh one",
    )
    return [button("Show again", REVEAL, value(case), confirm=ask_first, hint=f"Fresh credential for {name}")]


def unseen(case: Case) -> Grant | None:
    """Return the credential that is out and was handed over unseen; None when there is none."""
    return next((g for g in case.grants if g.wrap_accessor and g.ended_at is None and g.unopened_at is None), None)


def _intercepting(case: Case) -> list[Block]:
    if not _is_open_to(case, Action.INTERCEPT) or unseen(case) is None:
        return []
    ask_first = confirm(
        "Has somebody else opened it?",
        "If Vault says so, too, the access ends at once, and security and leadership are called.",
        "Already used",
        style="danger",
    )
    name = case.request.id
    hint = f"Somebody else has opened the credential of {name}"
    return [button("Already used", INTERCEPT, value(case), style="danger", confirm=ask_first, hint=hint)]


def _releasing(case: Case) -> list[Block]:
    if not _is_open_to(case, Action.RELEASE):
        return []
    ask_first = confirm(
        f"Hand back {case.request.id}?", "The credential ends at once and open sessions are cut.", "I am done"
    )
    return [
        button(
            "Done",
            RELEASE,
            value(case),
            style="primary",
            confirm=ask_first,
            hint=f"Hand back the access of {case.request.id}",
        )
    ]


def _revoking(case: Case) -> list[Block]:
    if not _is_open_to(case, Action.REVOKE):
        return []
    ask_first = confirm(
        f"Revoke {case.request.id}?",
        "The access is taken away at once and open sessions are cut.",
        "Revoke",
        style="danger",
    )
    return [button("Revoke", REVOKE, value(case), style="danger", confirm=ask_first, hint=f"Revoke {case.request.id}")]


def awaits_second(case: Case) -> bool:
    """Whether a review is filed and another is needed."""
    return case.review is not None and _is_open_to(case, Action.REVIEW_SECOND)


def reviewing(case: Case) -> list[Block]:
    """Return a reviewer's button while the review is due."""
    if not _is_open_to(case, Action.REVIEW):
        return []
    if awaits_second(case):
        hint = f"File the second review of {case.request.id}"
        return [button("Second review…", REVIEW_SECOND, value(case), style="primary", hint=hint)]
    return [button("File review…", REVIEW, value(case), style="primary", hint=f"File the review of {case.request.id}")]


def _reassigning(case: Case) -> list[Block]:
    if not _is_open_to(case, Action.REASSIGN):
        return []
    return [button("Give to…", REASSIGN, value(case), hint=f"Give the review of {case.request.id} to somebody else")]


def pruning(records: Sequence[Record]) -> list[Block]:
    """Return the buttons of the newest of these entries that proposes what is pruned; they carry it and its plan."""
    proposal = proposal_in(records)
    if proposal is None:
        return []
    if proposal.event == policy_control.PROPOSE:
        return policy_entries.buttons(proposal)
    carried = f"{proposal.seq} {proposal.data.get('plan', '')}"
    count = proposal.data.get("count")
    those = "this entry says" if count == 1 else f"these {count} entries say"
    ask_first = confirm(
        "Confirm the pruning?",
        f"What {those} goes for good; the hashes stay. It happens when two different people have confirmed. "
        "You answer for this decision.",
        "Confirm",
        style="danger",
    )
    return [
        button("Confirm", CONFIRM_PRUNING, carried, style="danger", confirm=ask_first, hint="Confirm the pruning"),
        button("Reject", REJECT_PRUNING, carried, hint="Reject the pruning"),
    ]


def requesting(case: Case) -> list[Block]:
    """Return the requester's buttons."""
    return [*_withdrawing(case), *_revealing(case), *_intercepting(case), *_releasing(case)]


# --- messages ---------------------------------------------------------------------------------------------------------


def _head(case: Case, policy: Policy) -> tuple[str, str]:
    """Return the line that says who wants what for how long, and the top-level text."""
    row = case.request
    span = say_duration(_granted(case))
    asks = "asks" if _is_open_to(case, Action.APPROVE) else "asked"
    line = f"{mention(row.requester)} {asks} for *{what(case, policy)}* for {span}."
    return line, f"{row.id}: {state_words(case.state)}. {mention(row.requester)}, {what(case, policy)}, {span}."


def _facts(case: Case, policy: Policy) -> tuple[str, list[Block]]:
    """Return the text and the blocks that the card and the custodians' messages have in common."""
    line, text = _head(case, policy)
    below = [part for part in (_ending(case), clock_words(case, policy)) if part]
    blocks = [
        header(_headline(case)),
        section("\n".join((line, *below))),
        _why(case, policy),
        section(_votes(case, policy)),
        *review_words.filed(case),
    ]
    return text, blocks


def card(case: Case, policy: Policy, *, now: datetime, use: str = "") -> Message:
    """Return the incident channel's card: always a true picture of the row. ``use``: what was run, in a few words."""
    del now
    text, blocks = _facts(case, policy)
    blocks += actions(
        BUTTONS, [*deciding(case, policy), *_withdrawing(case), *_releasing(case), *_revoking(case), *reviewing(case)]
    )
    row = case.request
    small = f"Asked {when(row.opened_at)} · every click is on record · {_rules(case, policy)}"
    ran = [context(f"On record: {use}")] if use else []
    return Message(text, [*blocks, *ran, context(small)])


def _rules(case: Case, policy: Policy) -> str:
    """Say which rules it was opened under, so that a reader finds the policy by the hash that the channel was told.

    The row has one hash over the policy and the custodians asked; which policy that was can be shown for ours alone.
    """
    row = case.request
    both = escape(row.policy_hash[:8])
    if in_force(policy, row.custodians) == row.policy_hash:
        return f"policy `{escape(policy.hash[:12])}`, with the custodians asked `{both}`"
    return f"policy and custodians asked `{both}` (not the rules of now; the log has which)"


def ask(case: Case, policy: Policy, *, now: datetime) -> Message:
    """Return a custodian's direct message; once it is settled it says by whom, and has no buttons."""
    del now
    text, blocks = _facts(case, policy)
    row = case.request
    if buttons := deciding(case, policy):
        say_it = f"You are a custodian of {escape(titles(case, policy)[0], 100)}. Please decide."
        blocks = [blocks[0], section(say_it), *blocks[1:], *actions(BUTTONS, buttons)]
        return Message(f"{row.id} needs your decision. {text}", blocks)
    by = people(_approvers(case))
    granted = row.granted_seconds is not None
    settled = f"Settled: approved by {by}." if granted else f"Settled: {_ending(case) or 'nothing is left to decide.'}"
    return Message(f"{row.id} is settled. {text}", [*blocks, context(settled)])


def own(case: Case, policy: Policy, *, now: datetime, waiting: Sequence[str] = ()) -> Message:
    """Return the requester's direct message at the opening: who is asked and what happens next.

    ``waiting``: lines about those who were asked (``asked.waiting_lines``).
    """
    del now
    row = case.request
    _, text = _head(case, policy)
    lines = [f"Your request for *{what(case, policy)}* for {say_duration(_granted(case))}."]
    if _is_open_to(case, Action.APPROVE):
        were = "was" if len(asking.asked(row)) == 1 else "were"
        lines.append(f"{people(asking.asked(row))} {were} asked; {needed(case, policy)} must approve.")
        lines += tiers.lines(row, standing(case, policy))
        if case.request.drill is None:
            lines.append("When they have, you get a message here with a button that opens the credential.")
    lines += waiting
    if row.granted_seconds is None:
        lines += [part for part in (_ending(case), clock_words(case, policy)) if part]
    else:  # the handover says the rest, and nobody should read it twice
        lines.append(f"Approved by {people(_approvers(case))}. The message below says what happens now.")
    blocks = [header(_headline(case)), section("\n".join(lines))]
    if denial := next((d for d in case.decisions if d.answer == Answer.DENY and d.reason), None):
        blocks.append(rich([label("Why it was denied"), typed(denial.reason or "")]))
    return Message(text, blocks + actions(BUTTONS, _withdrawing(case)))


def handover(case: Case, policy: Policy, *, now: datetime) -> Message:
    """Return the requester's direct message at quorum: Reveal, then "Show again" and Done, then what happened."""
    del now
    _, text = _head(case, policy)
    lines = [f"*{what(case, policy)}* for {say_duration(_granted(case))}, approved by {people(_approvers(case))}."]
    if _is_open_to(case, Action.REVEAL) and case.request.drill is not None:
        lines.append("The bot itself opens the credential, tries it and hands it back; there is nothing for you to do.")
    elif _is_open_to(case, Action.REVEAL):
        if (out := unseen(case)) is not None:
            lines.append(_out_words(out))
        elif _was_issued(case):
            lines.append("The credential was shown to you once and is not kept anywhere. Lost it? Press *Show again*.")
        else:
            lines.append("Press *Reveal* when you are ready to work: the credential is made at that moment.")
    lines += [part for part in (_ending(case), clock_words(case, policy)) if part]
    if _is_open_to(case, Action.RELEASE):
        lines.append("Finished early? Press *Done*.")
    blocks = [header(_headline(case)), section("\n".join(lines))]
    return Message(text, blocks + actions(BUTTONS, [*_revealing(case), *_intercepting(case), *_releasing(case)]))


def _out_words(out: Grant) -> str:
    lost = "Lost it? Press *Show again*."
    if out.opened_at is not None:
        return f"The credential was opened {when(out.opened_at)}. Was it not you? Press *Already used*, now. {lost}"
    until = f", until {when(out.open_until, '{time_secs}')}" if out.open_until else ""
    return (
        f"It can be opened once{until}; Slack never has it. Somebody was faster than you? Press *Already used*. {lost}"
    )


def warning(case: Case, policy: Policy, *, now: datetime) -> Message:
    """Return the requester's direct message shortly before the end; afterwards it says what happened."""
    del now
    row = case.request
    if _is_open_to(case, Action.RELEASE) and row.expires_at:
        first = f"*{row.id} ends {when(row.expires_at, '{time}')}.* Open sessions are cut then. Save your work now."
        second = f"{what(case, policy)}. Still needed? Ask again with `{COMMAND}`."
        text = f"{row.id} ends in about two minutes ({utc(row.expires_at)}). Save your work now."
        return Message(text, [section(f"{first}\n{second}"), *actions(BUTTONS, _releasing(case))])
    lines = [f"*{row.id}*: {state_words(case.state)}.", _ending(case)]
    return Message(f"{row.id}: {state_words(case.state)}.", [section("\n".join(part for part in lines if part))])


def used(case: Case, policy: Policy) -> list[str]:
    """Return, as lines of ``mrkdwn``, what is to be reviewed: who used what, when, and as whom at the target."""
    issued = [g.issued_at for g in case.grants if g.issued_at is not None]
    over = [g.ended_at for g in case.grants if g.ended_at is not None]
    who, name = mention(case.request.requester), what(case, policy)
    by = f"Approved by {people(_approvers(case))}."
    if not issued:
        return [f"{who} was granted *{name}*, but never opened it.", by, _ending(case)]
    until = f" to {when(max(over))}" if over else ""
    # Under these names the target's own log has what was done.
    logins = [f"`{escape(g.identity, 80)}`" for g in case.grants if g.identity]
    more = f" and {len(logins) - _MOST_LOGINS} more" if len(logins) > _MOST_LOGINS else ""
    names = f", as {', '.join(logins[:_MOST_LOGINS])}{more}" if logins else ""
    return [f"{who} used *{name}*. {by}", f"Open from {when(min(issued))}{until}{names}.", _ending(case)]


def review_ask(case: Case, policy: Policy, *, now: datetime) -> Message:
    """Return a reviewer's direct message: what was asked and done, and the form; once filed, what it says."""
    row = case.request
    lines = used(case, policy)
    if not _is_open_to(case, Action.REVIEW):
        text = f"{row.id}: the review is filed." if case.review else f"{row.id}: there is nothing to review."
    else:
        due = row.review_due_at
        late = due is not None and due < now
        if due is not None:
            lines.append(f"*The review was due {when(due)}.*" if late else f"The review is due {when(due)}.")
        if row.review_owner is not None:
            lines.append(f"It is {mention(row.review_owner)}'s to file, and any reviewer may.")
        if case.review is not None:
            lines.append(
                f"{mention(case.review.reviewer)} has filed theirs; somebody else must confirm or contradict it."
            )
        text = f"{row.id}: the review is {'overdue' if late else 'due'}. {what(case, policy)}."
    return Message(
        text,
        [
            header(f"📝 {row.id} · Review" if _is_open_to(case, Action.REVIEW) else f"✅ {row.id} · Reviewed"),
            section("\n".join(line for line in lines if line)),
            _why(case, policy),
            *review_words.filed(case),
            *actions(BUTTONS, [*reviewing(case), *_reassigning(case)]),
            *actions("pack", pack_view.offer(value(case))),
        ],
    )


# --- the thread -------------------------------------------------------------------------------------------------------


def proposal_in(records: Sequence[Record]) -> Record | None:
    """Return the newest of these entries that proposes something to people: the one whose buttons the post has."""
    return next(
        (one for one in reversed(records) if one.event in (PROPOSE, policy_control.PROPOSE) and one.refused is None),
        None,
    )


def post(
    records: Sequence[Record],
    case: Case | None,
    policy: Policy,
    *,
    mentions: Mapping[str, str] = MappingProxyType({}),
    fate: Fate | policy_control.Fate | None = None,
) -> Message:
    """Return one thread post for consecutive entries, a line each, in order.

    ``case`` is None for entries that belong to no request. ``mentions`` maps an event to who is to be called at it, as
    ``mrkdwn`` made of ids (``<!subteam^S…>``, ``<@U…>``); a refusal calls nobody. Up to :data:`MOST_IN_POST` entries
    are shown in full; beyond that what was typed is left out, and every entry keeps its line. ``fate``: what became of
    the proposal to prune among them, said in the place of its buttons.
    """
    shown: list[tuple[str, list[Block]]] = []
    texts: list[str] = []
    for record in records:
        line, words = entries.line(record, case, _name(record, case, policy))
        called = mentions.get(record.event, "") if record.refused is None else ""
        called = f" {called[:1000]}" if called else ""
        drill = drill_views.mark(case)
        shown.append((f"{when(record.at, '{time_secs}')} {drill}{line}{called}", words))
        texts.append(f"{utc(record.at)[11:16]} {drill}{line}{called}")
    blocks: list[Block] = []
    with_words = 2 * len(shown) <= MOST_BLOCKS
    waiting: list[str] = []
    for line, words in shown:
        waiting.append(clip(line, MOST_TEXT))
        if words and with_words:
            blocks += [section(text) for text in joined(waiting)]
            blocks.append(rich(words))
            waiting = []
    blocks += [section(text) for text in joined(waiting)]
    name = f"{drill_views.mark(case)}{case.request.id}: " if case is not None else ""
    below = actions(BUTTONS, pruning(records)) if case is None and fate is None else []
    if fate is not None:
        below = [section(entries.fate_line(fate))]
        texts.append(entries.fate_line(fate))
    return Message(name + clip("\n".join(texts), MOST_TEXT), blocks[: MOST_BLOCKS - len(below)] + below)


def _name(record: Record, case: Case | None, policy: Policy) -> str:
    """Return what an entry is about, escaped; of a refused request that was never opened, what it would have been."""
    if case is not None:
        return what(case, policy)
    account = policy.accounts.get(str(record.data.get("account", "")))
    return escape(account.title, 100) if account else ""
