"""What of the log is told beyond Slack, to whom, how urgently, and in which words?

Rules
-----
* One table, ``SEVERITIES``, says how urgent an event is. An event that is not in it is for information; what may come
  by the thousand, or says nothing to a person, is told to nobody.
* Nothing is ever told about an alert itself: an alert that fails would breed alerts.
* Security hears of everything; leadership and custodians of what is about a request, leadership also of whatever is
  critical.
* The words are the thread's own (``entries.py``), without markup. Nothing is told here that the thread does not show.
* A rehearsal is marked before everything else, and never stands in one message with the real thing.

This module is pure; who somebody is, is asked of a function that may know nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from bot.blockkit import clean, clip, escape, utc
from bot.entries import line
from bot.views import what
from storage import commands as told
from storage.models import Outcome, State
from workflows.alert_rules import Audience, Severity
from workflows.lifecycle import Action
from workflows.readiness import FAIL as READY
from workflows.reconcile import ALARM, CLEAR
from workflows.retention import APPLY, PROPOSE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from bot.blockkit import Block
    from storage.audit import Record
    from workflows.alert_rules import AlertRules
    from workflows.door import Case
    from workflows.policy import Policy

_OURS: Final = "alert:"

MOST_IN_ONE: Final = 20  # entries in one message: after an outage
_MOST_TITLE: Final = 200
_MOST_BODY: Final = 3000
_MOST_LINE: Final = 600
_MOST_TYPED: Final = 500

# What makes an event another one than its name says. Such a key stands in the table after the event.
_ALARMING: Final = " alarming"
_BAD: Final = " bad"
_VERDICTS: Final = frozenset({Action.REVIEW.value, Action.REVIEW_FIRST.value})

SEVERITIES: Final[Mapping[str, Severity | None]] = MappingProxyType(
    {
        Action.INTERCEPT: Severity.CRITICAL,
        Action.LOSE: Severity.CRITICAL,
        f"{Action.ESCALATE} {State.ENDING}": Severity.CRITICAL,  # access that cannot be taken back
        "log:alarm": Severity.CRITICAL,
        "log:rotate": Severity.CRITICAL,  # somebody else may sign the log now
        ALARM: Severity.CRITICAL,
        told.STRANGER: Severity.CRITICAL,
        told.STOP: Severity.CRITICAL,
        told.RUN + _ALARMING: Severity.CRITICAL,
        told.GAP: Severity.CRITICAL,
        "person:lock": Severity.CRITICAL,  # somebody guesses codes in a custodian's name
        Action.REVIEW + _BAD: Severity.CRITICAL,
        Action.REVIEW_FIRST + _BAD: Severity.CRITICAL,  # of two reviewers
        Action.OPEN: Severity.WARNING,
        Action.QUORUM: Severity.WARNING,
        Action.ESCALATE: Severity.WARNING,
        Action.FAIL: Severity.WARNING,
        Action.REVOKE: Severity.WARNING,
        Action.REMIND: Severity.WARNING,
        Action.REVIEW_ESCALATE: Severity.WARNING,
        told.FIND + _ALARMING: Severity.WARNING,
        told.DOWN: Severity.WARNING,
        "capture:unreadable": Severity.WARNING,
        "copy:behind": Severity.WARNING,
        "policy:load": Severity.WARNING,
        "policy:propose": Severity.WARNING,
        "policy:refused": Severity.WARNING,
        PROPOSE: Severity.WARNING,
        APPLY: Severity.WARNING,
        READY: Severity.WARNING,
        CLEAR: Severity.INFO,
        told.RUN: None,
        told.CLOSE: None,
        told.FIND: None,
        Action.OPENED: None,
        Action.NUDGE: None,
        "policy:text": None,
        "request:close": None,
    }
)


@dataclass(frozen=True, slots=True)
class Told:
    """One entry that is told, in words; ``is_drill``: it is of a rehearsal."""

    seq: int
    at: datetime
    request_id: str | None
    severity: Severity
    subject: str
    words: str
    is_drill: bool


def severity_of(record: Record) -> Severity | None:
    """Return how urgent an entry is; None: nobody is told."""
    event = record.event
    if event.startswith(_OURS):
        return None
    if record.refused is not None:
        return Severity.INFO  # nothing came of it
    kinds = [event]
    if event == Action.ESCALATE and record.source:
        kinds.insert(0, f"{event} {record.source}")
    elif event in _VERDICTS and record.data.get("outcome") in {Outcome.NOT_JUSTIFIED, Outcome.MISUSE}:
        kinds.insert(0, event + _BAD)
    elif event in told.TELLING and not record.is_pruned:
        one = told.of_record(record)
        if one.is_alarming or (event == told.FIND and one.findings):
            kinds.insert(0, event + _ALARMING)
    for kind in kinds:
        if kind in SEVERITIES:
            return SEVERITIES[kind]
    return Severity.INFO


def concerns(rules: AlertRules, record: Record, case: Case | None, severity: Severity) -> bool:
    """Say whether this alert tells of an entry."""
    if severity.rank < rules.least.rank:
        return False
    if rules.account is not None:
        # Of a request that was refused there is none; it names the account that it would have been for.
        about = case.request.account if case is not None else record.data.get("account")
        return about == rules.account
    if rules.to is Audience.SECURITY or record.request_id is not None or record.event == READY:
        return True
    return rules.to is Audience.LEADERSHIP and severity is Severity.CRITICAL


def tell(record: Record, case: Case | None, policy: Policy, severity: Severity, name: Callable[[str], str]) -> Told:
    """Return an entry in plain words. ``name`` gives a person's name for an id."""
    about = what(case, policy) if case is not None else _account(record, policy)
    words, blocks = line(record, case, about)
    said = [clip(plain_words(words, name), _MOST_LINE)]
    said += [f"> {part}" for part in clip(_typed(blocks, name), _MOST_TYPED).splitlines() if part]
    subject = plain_words(about, name) if about else "the log"
    return Told(
        seq=record.seq,
        at=record.at,
        request_id=record.request_id,
        severity=severity,
        subject=f"{record.request_id}, {subject}" if record.request_id else subject,
        words=f"{utc(record.at)}  " + "\n".join(said),
        is_drill=is_drill(record, case),
    )


def is_drill(record: Record, case: Case | None) -> bool:
    """Say whether an entry is of a rehearsal."""
    return bool((case is not None and case.request.drill) or (record.event == Action.OPEN and record.data.get("drill")))


def hears_of_damage(rules: AlertRules) -> bool:
    """Say whether this alert tells that the log itself is not what it was."""
    return rules.account is None and rules.to is not Audience.CUSTODIANS


def damaged(seq: int, sentence: str, now: datetime) -> Told:
    """Return what is told of an entry that cannot be read: whoever damages one must not silence it."""
    words = f"{utc(now)}  ALARM: entry {seq} of the log is damaged: {clip(clean(sentence, is_line=True), 300)}"
    return Told(seq, now, None, Severity.CRITICAL, "the log", words, is_drill=False)


def bare(record: Record, severity: Severity) -> Told:
    """Return what is told of an entry that cannot be put into words."""
    about = record.request_id or "the log"
    words = f"{utc(record.at)}  {record.event} (entry {record.seq}; it could not be put into words)"
    return Told(record.seq, record.at, record.request_id, severity, about, words, is_drill=False)


def message(rules: AlertRules, entries: Sequence[Told]) -> tuple[str, str, Severity]:
    """Return title, text and severity of the message about these entries (at least one), the numbers in the title."""
    worst = max((one.severity for one in entries), key=lambda severity: severity.rank)
    mark = "DRILL " if all(one.is_drill for one in entries) else ""
    subjects = list(dict.fromkeys(one.subject for one in entries))
    more = f" and {len(subjects) - 1} more" if len(subjects) > 1 else ""
    first, last = entries[0].seq, entries[-1].seq
    numbers = f"entry {first}" if first == last else f"{len(entries)} entries, {first} to {last}"
    tail = f"{more} ({numbers})"
    title = clip(f"{mark}{worst.upper()}: {subjects[0]}", _MOST_TITLE - len(tail)) + tail
    end = (
        f"Break-glass alert “{rules.name}” for {rules.to}. The incident thread in Slack has everything; an entry that "
        "comes twice has the same number."
    )
    lines = [one.words for one in entries]
    body = clip("\n".join(lines), _MOST_BODY - len(end))
    return title, f"{body}\n\n{end}", worst


# --- from Slack's markup to plain words ----------------------------------------------------------------------------

_DATE: Final = re.compile(r"<!date\^[0-9]+\^[^|>]*\|([^>]*)>")
_WHO: Final = re.compile(r"<@([UW][A-Z0-9]+)>")
_OTHER: Final = re.compile(r"<[!#@][^>|]*(?:\|([^>]*))?>")
_STARS: Final = re.compile(r"(?<![\w*])\*(?=\S)([^*\n]+?)(?<=\S)\*(?![\w*])")
_SCORES: Final = re.compile(r"(?<![\w_])_(?=\S)([^_\n]+?)(?<=\S)_(?![\w_])")


def plain_words(text: str, name: Callable[[str], str]) -> str:
    """Return ``mrkdwn`` of ours as plain text: names for people, UTC for times, no marks."""
    text = _DATE.sub(r"\1", text)
    text = _WHO.sub(lambda found: name(found[1]), text)
    text = _OTHER.sub(lambda found: found[1] or "", text)
    text = _SCORES.sub(r"\1", _STARS.sub(r"\1", text)).replace("`", "")
    return clean(text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


def _typed(blocks: Sequence[Block], name: Callable[[str], str]) -> str:
    """Return what stands in ``rich_text`` elements, a line for each."""
    lines = []
    for block in blocks:
        parts = [
            name(str(part["user_id"])) if part.get("user_id") else str(part.get("text", ""))
            for part in block.get("elements", ())
        ]
        lines.append(clean("".join(parts)))
    return "\n".join(lines)


def _account(record: Record, policy: Policy) -> str:
    account = policy.accounts.get(str(record.data.get("account", "")))
    return escape(account.title, 100) if account else ""
