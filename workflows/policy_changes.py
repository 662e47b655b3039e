"""What would another policy change, in words, and which of it is less strict?

Rules
-----
* Whatever cannot be judged counts as less strict: another engine's setting, a key that this file does not know. Only
  what certainly takes a right away, or asks for more, is not marked.
* More people who may ask, approve, review, read or decide are less strict; so are fewer who are told.
* A sentence holds names, ids and times, and nothing that somebody typed freely: it ends in a Slack message. A person
  in it is written as Slack does, ``<@U…>``.

This module is pure.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from workflows.capture_rules import Need
from workflows.control_rules import ControlRules
from workflows.policy_file import USER, say_duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import timedelta

    from workflows.log_rules import LogRules
    from workflows.policy_file import Account, Level, Policy

_MOST_NAMES: Final = 20  # in one sentence


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that changes. ``account`` is None for what holds for all of them."""

    account: str | None
    sentence: str
    is_weaker: bool


def compare(old: Policy, new: Policy) -> tuple[Change, ...]:
    """Return every change from ``old`` to ``new``; none when only comments or the order of the file differ."""
    found = list(_whole(old, new))
    for name in dict.fromkeys((*old.accounts, *new.accounts)):
        before, after = old.accounts.get(name), new.accounts.get(name)
        if before is None and after is not None:
            levels = ", ".join(after.levels)
            found.append(
                Change(name, f"This account is new, with the levels {levels}; its owner is <@{after.owner}>.", True)
            )
        elif after is None:
            found.append(Change(name, "This account is gone; what is open on it can no longer be approved.", False))
        elif before is not None:
            found += [Change(name, sentence, weak) for sentence, weak in _account(before, after)]
    return tuple(found)


def touched(old: Policy, new: Policy) -> tuple[str, ...]:
    """Return the accounts of ``old`` that a change touches; what holds for all, and a new account, touch every one."""
    changes = compare(old, new)
    if not changes or any(one.account is None or one.account not in old.accounts for one in changes):
        return tuple(old.accounts)
    return tuple(dict.fromkeys(one.account for one in changes if one.account is not None))


def needs_restart(old: Policy, new: Policy) -> bool:
    """Say whether the change reaches what is wired only when the bot starts: who signs and copies the log."""
    return old.log != new.log


def difference(old: Policy, new: Policy) -> str:
    """Return the texts' unified difference; empty when they are the same."""
    lines = difflib.unified_diff(old.text.splitlines(), new.text.splitlines(), "in force", "proposed", n=3, lineterm="")
    return "\n".join(lines)


# --- the parts ------------------------------------------------------------------------------------------------------

_Said = tuple[str, bool]  # a sentence, and whether it is less strict


def _names(names: Sequence[str]) -> str:
    shown = [f"<@{name}>" if USER.fullmatch(name) else name for name in names[:_MOST_NAMES]]
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(shown) + more


def _people(
    what: str, old: Sequence[str], new: Sequence[str], *, more_is_weaker: bool = True, fewer_is_weaker: bool = False
) -> Iterator[_Said]:
    added, removed = [n for n in new if n not in old], [n for n in old if n not in new]
    if added:
        yield f"{what}: added {_names(added)}.", more_is_weaker
    if removed:
        yield f"{what}: removed {_names(removed)}.", fewer_is_weaker


def _span(what: str, old: timedelta, new: timedelta, *, longer_is_weaker: bool) -> Iterator[_Said]:
    if old != new:
        is_longer = new > old
        word = "longer" if is_longer else "shorter"
        yield f"{what} is {word}: {say_duration(new)} instead of {say_duration(old)}.", is_longer is longer_is_weaker


def _rest(old: Any, new: Any, known: frozenset[str], where: str = "") -> Iterator[_Said]:  # noqa: ANN401 - dataclasses
    """Say of every other field that it differs: what this file does not know is not taken to be harmless."""
    for one in fields(old):
        if one.name not in known and getattr(old, one.name) != getattr(new, one.name):
            yield f"{where}“{one.name}” is another; read the difference.", True


_WHOLE: Final = frozenset(
    [
        "incident_channel",
        "leadership",
        "security",
        "reviewers",
        "auditors",
        "review_within",
        "accounts",
        "text",
        "hash",
        "log",
        "retention",
        "captures",
        "control",
    ]
)
_ACCOUNT: Final = frozenset(
    [
        "name",
        "title",
        "system",
        "owner",
        "custodians",
        "responders",
        "thresholds",
        "standard_path",
        "levels",
        "rules_reviewed",
    ]
)
_LEVEL: Final = frozenset(
    [
        "name",
        "title",
        "settings",
        "quorum",
        "longest",
        "default",
        "answer_within",
        "open_within",
        "capture",
        "capture_source",
        "control",
    ]
)


def _whole(old: Policy, new: Policy) -> Iterator[Change]:
    said: list[_Said] = []
    if old.incident_channel != new.incident_channel:
        said.append((f"The incident channel is {new.incident_channel} instead of {old.incident_channel}.", True))
    said += _people(
        "Leadership, who is told", old.leadership, new.leadership, more_is_weaker=False, fewer_is_weaker=True
    )
    said += _people("Security", old.security, new.security, fewer_is_weaker=True)
    said += _people("Reviewers", old.reviewers, new.reviewers)
    said += _people("Auditors", old.auditors, new.auditors)
    said += _span("The time for a review", old.review_within, new.review_within, longer_is_weaker=True)
    said += _log(old.log, new.log)
    if old.retention != new.retention:
        said += _retention(old, new)
    for name in dict.fromkeys((*old.captures, *new.captures)):
        if name not in new.captures:
            said.append((f"The source of commands {name} is gone.", True))
        elif name not in old.captures:
            said.append((f"The source of commands {name} is new.", False))
        elif old.captures[name] != new.captures[name]:
            said.append((f"The source of commands {name} is another, or may be silent for another time.", True))
    said += _control(old.control or ControlRules(), new.control or ControlRules())
    said += _rest(old, new, _WHOLE)
    yield from (Change(None, sentence, weak) for sentence, weak in said)


def _control(old: ControlRules, new: ControlRules) -> Iterator[_Said]:
    if old.confirm != new.confirm:
        sentence = f"A changed policy needs {new.confirm} people instead of {old.confirm}."
        yield sentence, new.confirm < old.confirm
    if old.people and new.people:
        yield from _people("Who confirms a changed policy", old.people, new.people)
    elif old.people != new.people:
        words = _names(new.people) if new.people else "owners and security"
        yield f"Who confirms a changed policy: {words}.", True
    if old.signed != new.signed:
        words = "is" if new.signed else "is not"
        yield f"A signature {words} enough for a changed policy.", new.signed


def _log(old: LogRules | None, new: LogRules | None) -> Iterator[_Said]:
    if old is None or new is None:
        if old is not new:
            yield ("The log is signed from now on.", False) if old is None else ("The log is no longer signed.", True)
        return
    for name in dict.fromkeys((*old.copies, *new.copies)):
        before, after = old.copies.get(name), new.copies.get(name)
        if after is None:
            yield f"The log's copy {name} is gone.", True
        elif before is None:
            yield f"The log has another copy, {name} ({after.kind}).", False
        else:
            if before.required and not after.required:
                yield f"No credential waits for the log's copy {name} any more.", True
            elif after.required and not before.required:
                yield f"Every credential waits for the log's copy {name}.", False
            if (before.kind, before.settings) != (after.kind, after.settings):
                yield f"The log's copy {name} goes somewhere else.", True
    yield from _span("The log's heartbeat", old.heartbeat, new.heartbeat, longer_is_weaker=True)
    yield from _span("The alarm of a late copy", old.alarm_after, new.alarm_after, longer_is_weaker=True)
    yield from _rest(old, new, frozenset(("copies", "heartbeat", "alarm_after")), "log: ")


def _retention(old: Policy, new: Policy) -> Iterator[_Said]:
    if new.retention is None:
        yield "Everything is kept for good.", False
    elif old.retention is None:
        yield "What is logged may be pruned when its time is over.", True
    else:
        names = {*old.retention.classes, *new.retention.classes}
        yield from _span(
            "How long the log is kept", old.retention.default, new.retention.default, longer_is_weaker=False
        )
        for name in sorted(names):
            before, after = old.retention.keep(name), new.retention.keep(name)
            yield from _span(f"How long {name} is kept", before, after, longer_is_weaker=False)


def _account(old: Account, new: Account) -> Iterator[_Said]:
    if old.owner != new.owner:
        yield f"The owner is <@{new.owner}> instead of <@{old.owner}>.", True
    yield from _people("Custodians", old.custodians, new.custodians)
    yield from _people("Who may ask", old.responders, new.responders)
    for key in dict.fromkeys((*old.thresholds, *new.thresholds)):
        if key not in new.thresholds:
            yield f"The threshold {key} is gone.", False
        elif key not in old.thresholds:
            yield f"The threshold {key} is new.", True
        elif old.thresholds[key] != new.thresholds[key]:
            yield f"The threshold {key} is worded otherwise.", True
    words = [key for key in ("title", "system", "standard_path") if getattr(old, key) != getattr(new, key)]
    if words:
        yield f"Worded otherwise: {', '.join(words)}.", "standard_path" in words
    if old.rules_reviewed != new.rules_reviewed:
        yield f"The rules were last looked at on {new.rules_reviewed or 'no known day'}.", new.rules_reviewed is None
    yield from _rest(old, new, _ACCOUNT)
    for name in dict.fromkeys((*old.levels, *new.levels)):
        before, after = old.levels.get(name), new.levels.get(name)
        if before is None and after is not None:
            longest = say_duration(after.longest)
            yield f"The level {name} is new: {after.settings.engine}, quorum {after.quorum}, at most {longest}.", True
        elif after is None:
            yield f"The level {name} is gone.", False
        elif before is not None:
            yield from ((f"Level {name}: {sentence}", weak) for sentence, weak in _level(before, after))


def _level(old: Level, new: Level) -> Iterator[_Said]:
    if old.quorum != new.quorum:
        word = "fewer" if new.quorum < old.quorum else "more"
        yield f"{word} custodians must approve, {new.quorum} instead of {old.quorum}.", new.quorum < old.quorum
    yield from _span("the longest time", old.longest, new.longest, longer_is_weaker=True)
    yield from _span("the usual time", old.default, new.default, longer_is_weaker=True)
    yield from _span("the time for an answer", old.answer_within, new.answer_within, longer_is_weaker=True)
    yield from _span("the time to open it", old.open_within, new.open_within, longer_is_weaker=True)
    for key in sorted(_settings(old).keys() | _settings(new).keys()):
        if _settings(old).get(key) != _settings(new).get(key):
            yield f"“{key}” is another, so it may open something else.", True
    if old.capture_source != new.capture_source:
        yield f"what is done is recorded by {new.capture_source or 'nobody'}.", True
    if old.capture != new.capture:
        is_weaker = new.capture is not Need.REQUIRED
        yield (
            ("no record of what is done is required." if is_weaker else "a record of what is done is required."),
            is_weaker,
        )
    if old.control != new.control:
        is_weaker = new.control is None or old.control is not None
        yield (
            ("Vault asks for no keys of the custodians." if new.control is None else "Vault asks for keys."),
            is_weaker,
        )
    if old.title != new.title:
        yield "titled otherwise.", False
    yield from _rest(old, new, _LEVEL)


def _settings(level: Level) -> Mapping[str, str]:
    return {"engine": level.settings.engine, "token_role": level.settings.token_role, **level.settings.options}
