"""What does a policy file say, and is it one?

Rules
-----
* The file is read strictly: what is unknown, missing, doubled or impossible refuses, with its line and what to do, all
  problems at once. ``POLICY.md`` tells its authors the format.
* Nodes are read, not values: what YAML would guess (``yes``, ``1:30``, ``0x10``), anchors, aliases, tags and a second
  document refuse, so that the file means what it shows.
* What becomes part of a Slack message is held to a form that cannot break out of it; the settings of an engine are
  checked by ``LevelSettings``, and its findings are reported with their lines. Tiers, hours and factors are read by
  ``asking_rules.py``, the section ``log`` by ``log_rules.py``, ``retention`` by ``retention_rules.py``,
  ``captures`` by ``capture_rules.py``, an account's ``drill`` by ``drill_rules.py``,
  ``digest`` by ``digest_rules.py``.

Pure but :func:`load`, which reads a file. The judging is in ``policy.py``, from where everything here is imported.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import unicodedata
from dataclasses import dataclass, field
from datetime import date, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Final

import yaml

from workflows import (
    alert_rules,
    asking_rules,
    capture_rules,
    control_rules,
    delivery,
    digest_rules,
    drill_rules,
    log_rules,
    retention_rules,
    step_up_rules,
)
from workflows.asking_rules import Unanswered
from workflows.capture_rules import Need
from workflows.delivery import Delivery
from workflows.digest_rules import DigestRules
from workflows.engines import ENGINES, LevelSettings
from workflows.engines.seam import ControlGroup
from workflows.errors import BreakGlassError, Invalid

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from workflows.alert_rules import AlertRules
    from workflows.asking_rules import Factor, Hours, Tier
    from workflows.capture_rules import SourceRules
    from workflows.control_rules import ControlRules
    from workflows.drill_rules import DrillRules
    from workflows.log_rules import LogRules
    from workflows.retention_rules import RetentionRules
    from workflows.step_up_rules import StepUpRules

MAX_BYTES: Final = 256 * 1024  # a policy for hundreds of accounts; more is a mistake or an attack on the parser
MAX_DEPTH: Final = 12  # the format needs 6; the composer recurses, and a file of brackets would end the process
SHORTEST: Final = timedelta(minutes=1)  # the shortest time that can be asked for
LONGEST: Final = timedelta(hours=24)  # what is needed for longer is standing access, not an emergency
OPEN_WITHIN: Final = timedelta(minutes=15)

NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")  # of an account, a level, a threshold
USER: Final = re.compile(r"[UW][A-Z0-9]{2,20}")  # Slack's ids
GROUP: Final = re.compile(r"S[A-Z0-9]{2,20}|@[a-z0-9][a-z0-9._-]{0,79}")
_VAULT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_CHANNEL: Final = re.compile(r"[CG][A-Z0-9]{2,20}")
_DURATION: Final = re.compile(r"(?:([0-9]{1,5})d)?(?:([0-9]{1,5})h)?(?:([0-9]{1,5})m)?(?:([0-9]{1,5})s)?")
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_UNITS: Final = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))


# --- Durations --------------------------------------------------------------------------------------------------------


def parse_duration(text: str) -> timedelta:
    """Read ``90s 15m 2h 3d 1h30m``: days, hours, minutes, seconds in this order, each at most once; more than nothing.

    Raises :class:`ValueError` with a sentence that says how to write one.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        raise ValueError("Write a duration as 90s, 15m, 2h, 3d or 1h30m.")
    span = timedelta(seconds=sum(int(n or 0) * unit for n, (_, unit) in zip(match.groups(), _UNITS, strict=True)))
    if not span:
        raise ValueError("A duration must be longer than zero; write it as 90s, 15m, 2h, 3d or 1h30m.")
    return span


def say_duration(span: timedelta) -> str:
    """Return a duration in words, "1 hour 30 minutes"; parts of a second are dropped, what is past is "0 seconds"."""
    rest, words = max(0, int(span.total_seconds())), list[str]()
    for name, unit in _UNITS:
        count, rest = divmod(rest, unit)
        if count:
            words.append(f"{count} {name}{'' if count == 1 else 's'}")
    return " ".join(words) or "0 seconds"


# --- The policy, once read --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Threshold:
    """A documented condition under which access is allowed."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Level:
    """How much access, where its credential comes from, and what it takes to get it."""

    name: str
    title: str
    settings: LevelSettings
    quorum: int  # distinct custodians
    longest: timedelta
    default: timedelta
    answer_within: timedelta  # an unanswered request lapses
    open_within: timedelta  # an approval that is not opened lapses
    delivery: Delivery = Delivery.MODAL
    control: ControlGroup | None = None  # whose own keys Vault asks for (``control_group.py``)
    capture_source: str | None = None  # who records what is done with its credentials; None: nobody
    capture: Need = Need.WANTED
    step_up: str | None = None  # the second factor that an approval takes (``step_up.py``)
    is_rehearsal: bool = False  # for drills alone; no real request can choose it
    block_overdue: bool = True  # who owes a review of their own use of the account is not let in again
    factors: tuple[Factor, ...] = ()  # whose approval must be among the others
    unanswered: Unanswered = Unanswered.DENY


@dataclass(frozen=True, slots=True)
class Account:
    """What emergency access is for. ``custodians`` and ``responders`` are names as written: user ids and groups."""

    name: str
    title: str
    system: str
    owner: str
    custodians: tuple[str, ...]
    responders: tuple[str, ...]
    thresholds: Mapping[str, Threshold]
    standard_path: str
    levels: Mapping[str, Level]
    deputies: tuple[str, ...] = ()  # who may stand in for a custodian who is away, as written; empty: nobody
    rules_reviewed: date | None = None  # when somebody last asked whether all this still holds; None: never
    hours: Hours | None = None  # when the custodians are on duty; None: at all times
    tiers: tuple[Tier, ...] = ()  # who is asked after the custodians
    drill: DrillRules | None = None  # None: there are no drills

    @property
    def real_levels(self) -> Mapping[str, Level]:
        """The levels that people can ask for."""
        return MappingProxyType({name: level for name, level in self.levels.items() if not level.is_rehearsal})


@dataclass(frozen=True, slots=True)
class Policy:
    """The whole file; ``hash`` is the SHA-256 of ``text`` in UTF-8, as hex."""

    incident_channel: str
    leadership: tuple[str, ...]
    security: tuple[str, ...]
    reviewers: tuple[str, ...]
    auditors: tuple[str, ...]
    review_within: timedelta
    accounts: Mapping[str, Account]
    text: str = field(repr=False)
    hash: str
    log: LogRules | None = None  # None: it is neither signed nor copied
    retention: RetentionRules | None = None  # None: nothing is ever pruned
    step_up: StepUpRules | None = None  # None: where it is by default, should a level need it
    captures: Mapping[str, SourceRules] = field(
        default_factory=lambda: MappingProxyType({})
    )  # where executed commands come from
    digest: DigestRules = field(default_factory=DigestRules)  # when the week is told
    alerts: Mapping[str, AlertRules] = field(default_factory=lambda: MappingProxyType({}))  # who is told beyond Slack
    control: ControlRules | None = None  # who must agree to a change; None: two of the owners and security

    def everyone(self) -> tuple[str, ...]:
        """Return every user id and group that the policy names, each once, in the order of the file."""
        names = [*self.leadership, *self.security, *self.reviewers, *self.auditors]
        for account in self.accounts.values():
            names += [account.owner, *account.custodians, *account.deputies, *account.responders]
            names += [name for tier in account.tiers for name in tier.people]
            levels = account.levels.values()
            names += [name for level in levels for factor in level.factors for name in factor.people]
        return tuple(dict.fromkeys(names))


# --- Reading the file -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a policy file. ``line`` counts from 1; ``where`` is the dotted path of keys."""

    line: int
    where: str
    sentence: str


_TOO_LARGE: Final = Problem(1, "", f"The file is larger than {MAX_BYTES // 1024} KiB; split the policy.")


class PolicyInvalid(BreakGlassError):
    """The file does not load. ``str`` lists every problem, one a line: ``file:line: where: sentence``."""

    code: ClassVar[str] = "policy_invalid"

    def __init__(self, name: str, problems: Iterable[Problem]) -> None:
        self.name = name
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line))
        lines = (
            f"{name}:{p.line}: {p.where}: {p.sentence}" if p.where else f"{name}:{p.line}: {p.sentence}"
            for p in self.problems
        )
        super().__init__("\n".join(lines))


def load(path: Path) -> Policy:
    """Read and check a policy file. Raises :class:`PolicyInvalid`, also when the file cannot be read."""
    name = str(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:  # before decoding, which would stumble over a character that was cut in two
            raise PolicyInvalid(name, [_TOO_LARGE])
        return parse(raw.decode(), name=name)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise PolicyInvalid(name, [Problem(1, "", f"The policy cannot be read: {why}.")]) from None
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise PolicyInvalid(name, [Problem(line, "", "This is not UTF-8 text; save the file as UTF-8.")]) from None


def parse(text: str, *, name: str) -> Policy:
    """Check the text of a policy; ``name`` is what problems call it.

    Raises :class:`PolicyInvalid` with every problem.
    """
    reader = _Reader(text)
    policy = reader.policy()
    if policy is None or reader.problems:
        raise PolicyInvalid(name, reader.problems)
    return policy


_STR: Final = "tag:yaml.org,2002:str"
_INT: Final = "tag:yaml.org,2002:int"
_BOOL: Final = "tag:yaml.org,2002:bool"
_NULL: Final = "tag:yaml.org,2002:null"
_DATE: Final = "tag:yaml.org,2002:timestamp"  # what YAML takes a bare 2026-01-31 for


@dataclass(frozen=True, slots=True)
class _At:
    """A value in the file: its node, the line of its key, its dotted path."""

    node: yaml.Node
    line: int
    where: str


class _Reader:
    """Reads nodes, not values, so that each problem has its line.

    Every method records what is wrong and goes on with a falsy value ("", 0, empty), so that one run tells all.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.problems: list[Problem] = []
        self._sources: Mapping[str, SourceRules] = {}

    def fail(self, at: _At, sentence: str) -> None:
        self.problems.append(Problem(at.line, at.where, sentence))

    # The text.

    def root(self) -> yaml.Node | None:
        """Return the one document's node, or None after recording why not."""
        if len(self.text) > MAX_BYTES:
            self.problems.append(_TOO_LARGE)
            return None
        try:
            self._scan()
            if self.problems:
                return None
            node = yaml.compose(self.text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self.problems.append(Problem(mark.line + 1 if mark else 1, "", _not_yaml(error)))
            return None
        except yaml.reader.ReaderError as error:
            line = self.text.count("\n", 0, error.position) + 1
            self.problems.append(Problem(line, "", "There is a control character here; remove it."))
            return None
        if node is None:
            self.problems.append(Problem(1, "", "The file is empty; POLICY.md has an example to begin with."))
        return node

    def _scan(self) -> None:
        """Refuse what could mean something else than it shows (tags, aliases) or overflow the composer (depth)."""
        depth = documents = 0
        for event in yaml.parse(self.text, Loader=yaml.SafeLoader):
            line = event.start_mark.line + 1 if event.start_mark else 1
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
                self.problems.append(
                    Problem(line, "", "Anchors (&) and aliases (*) are not used here; repeat the text.")
                )
            elif getattr(event, "tag", None) is not None:
                self.problems.append(Problem(line, "", "Tags (!) are not used here; remove it."))
            elif isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents == 2:
                    self.problems.append(Problem(line, "", "A policy is one document; remove what follows '---'."))
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                self.problems.append(Problem(line, "", "This is nested deeper than a policy can be."))
                return

    # Values.

    def mapping(self, at: _At, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, _At]:
        """Return the values of known keys; what is missing or unknown is recorded."""
        known = (*required, *optional)
        found = self.entries(at)
        for key in [key for key in found if key not in known]:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean “{close[0]}”?" if close else f"known here: {', '.join(known)}."
            self.fail(found.pop(key), f"This key is unknown; {hint}")
        if isinstance(at.node, yaml.MappingNode):
            for key in [key for key in required if key not in found]:
                self.fail(at, f"The key “{key}” is missing; add it.")
        return found

    def entries(self, at: _At, *, names: bool = False) -> dict[str, _At]:
        """Return the values of a mapping by key; ``names``: the keys are chosen by the author and must be names."""
        found: dict[str, _At] = {}
        if not isinstance(at.node, yaml.MappingNode):
            self.fail(at, "This must be a block of “key: value” lines, indented below its own key.")
            return found
        for key_node, value in at.node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _STR:
                shown = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
                self.fail(_At(key_node, line, _join(at.where, shown)), "This key is not text; put it in quotes.")
                continue
            key = key_node.value
            here = _At(value, line, _join(at.where, key))
            if key in found:
                self.fail(here, f"This key stands here twice (first in line {found[key].line}); remove one.")
                continue
            if names and not NAME.fullmatch(key):
                self.fail(here, "A name is 1 to 40 of a-z, 0-9 and -, and does not begin with -; rename it.")
            found[key] = here
        return found

    def text_of(self, at: _At | None, most: int, *, is_title: bool = False) -> str:
        """Read words; a title is one line and has no angle brackets, because it stands inside Slack's markup."""
        if at is None:
            return ""
        words = self._scalar(at).strip()
        if len(words) > most:
            self.fail(at, f"This is {len(words)} characters; write at most {most}.")
        elif is_title and any(c in "<>" or unicodedata.category(c) in {"Cc", "Cf", "Zl", "Zp"} for c in words):
            self.fail(at, "A title is one line without < and >; reword it.")
        else:
            return words
        return ""

    def match(self, at: _At | None, pattern: re.Pattern[str], sentence: str) -> str:
        """Read a word of a fixed form."""
        word = self._scalar(at) if at is not None else ""
        if at is None or not word or pattern.fullmatch(word):
            return word
        self.fail(at, sentence)
        return ""

    def number(self, at: _At | None, least: int, most: int) -> int:
        """Read a whole number written in plain digits (YAML would also take 0x10, 1_0 and 1:30)."""
        if at is None:
            return 0
        node = at.node
        is_plain = (
            isinstance(node, yaml.ScalarNode) and node.tag == _INT and re.fullmatch("0|[1-9][0-9]{0,8}", node.value)
        )
        if is_plain and least <= int(node.value) <= most:
            return int(node.value)
        self.fail(at, f"This must be a whole number from {least} to {most}, in plain digits and without quotes.")
        return 0

    def span(self, at: _At | None, least: timedelta, most: timedelta) -> timedelta:
        """Read a duration."""
        if at is None:
            return timedelta(0)
        if isinstance(at.node, yaml.ScalarNode) and at.node.tag != _NULL:
            try:
                span = parse_duration(at.node.value)
            except ValueError as error:
                self.fail(at, str(error))
                return timedelta(0)
            if least <= span <= most:
                return span
            self.fail(at, f"This must be from {say_duration(least)} to {say_duration(most)}.")
            return timedelta(0)
        self.fail(at, "Write a duration as 90s, 15m, 2h, 3d or 1h30m.")
        return timedelta(0)

    def items(self, at: _At) -> list[_At]:
        """Return the values of a list."""
        if not isinstance(at.node, yaml.SequenceNode):
            self.fail(at, "This must be a list: lines that begin with “- ”.")
            return []
        nodes = enumerate(at.node.value)
        return [_At(node, node.start_mark.line + 1, f"{at.where}[{number}]") for number, node in nodes]

    def names(self, at: _At | None) -> tuple[str, ...]:
        """Read a list of user ids and groups: not empty, none twice."""
        if at is None:
            return ()
        if not isinstance(at.node, yaml.SequenceNode):
            self.fail(at, 'This must be a list, such as [U0123ABCD, "@security"].')
            return ()
        if not at.node.value:
            self.fail(at, "This list is empty, so nobody could ever do it; name at least one user id or user group.")
        found: dict[str, None] = {}
        for number, node in enumerate(at.node.value):
            here = _At(node, node.start_mark.line + 1, f"{at.where}[{number}]")
            name = self._scalar(here)
            if not name:
                continue
            if name in found:
                self.fail(here, f"{name} is listed twice; remove one.")
            elif USER.fullmatch(name) or GROUP.fullmatch(name):
                found[name] = None
            else:
                self.fail(
                    here, 'Write a user id (U…), a user-group id (S…) or a user-group handle in quotes ("@name").'
                )
        return tuple(found)

    def word(self, at: _At) -> str:
        """Read a setting: one line of text, or a whole number in plain digits."""
        node = at.node
        if isinstance(node, yaml.ScalarNode) and node.tag == _INT and re.fullmatch("0|[1-9][0-9]{0,17}", node.value):
            return str(node.value)
        if isinstance(node, yaml.ScalarNode) and node.tag == _INT:
            self.fail(at, "Write a whole number in plain digits.")
            return ""
        words = self._scalar(at)
        if len(words) > 500 or any(unicodedata.category(c) in {"Cc", "Cf", "Zl", "Zp"} for c in words):
            self.fail(at, "This must be one line of at most 500 characters.")
            return ""
        return words

    def flag(self, at: _At) -> bool:
        """Read true or false, in these words (YAML would also take yes and on)."""
        if isinstance(at.node, yaml.ScalarNode) and at.node.tag == _BOOL and at.node.value in {"true", "false"}:
            return bool(at.node.value == "true")
        self.fail(at, "This must be true or false.")
        return False

    def day(self, at: _At | None) -> date | None:
        """Read a day, YYYY-MM-DD, with or without quotes."""
        if at is None:
            return None
        node = at.node
        if isinstance(node, yaml.ScalarNode) and node.tag in {_STR, _DATE} and _DAY.fullmatch(node.value):
            try:
                return date.fromisoformat(node.value)
            except ValueError:
                pass  # the 31st of February
        self.fail(at, "Write the day as 2026-01-31.")
        return None

    def _scalar(self, at: _At) -> str:
        node = at.node
        if not isinstance(node, yaml.ScalarNode) or (node.tag not in {_STR, _NULL}):
            self.fail(at, "This must be text; put it in quotes.")
        elif node.tag == _NULL or not node.value.strip():
            self.fail(at, "This is empty; fill it in.")
        else:
            return str(node.value)
        return ""

    # The policy.

    def policy(self) -> Policy | None:
        """Read the whole file; what it returns counts only when no problem was recorded."""
        node = self.root()
        if node is None:
            return None
        lists = ("leadership", "security", "reviewers", "auditors")
        keys = ("version", "incident_channel", *lists, "review_within", "accounts")
        optional = ("log", "retention", "captures", "digest", "alerts", "step_up", "control")
        top = self.mapping(_At(node, 1, ""), keys, optional)
        if "version" in top:
            self.number(top["version"], 1, 1)
        if "captures" in top:
            self._sources = capture_rules.read(self, top["captures"])  # levels name them
        accounts = {}
        if (at := top.get("accounts")) is not None:
            entries = self.entries(at, names=True)
            if isinstance(at.node, yaml.MappingNode) and not at.node.value:
                self.fail(at, "There is no account; add at least one.")
            accounts = {name: self.account(name, value) for name, value in entries.items()}
            for name, level, why in drill_rules.overlaps(accounts):
                self.fail(_At(entries[name].node, entries[name].line, f"accounts.{name}.levels.{level}"), why)
        channel = "Write the channel's id (C…), found at the bottom of its details in Slack; a name may change."
        return Policy(
            incident_channel=self.match(top.get("incident_channel"), _CHANNEL, channel),
            leadership=self.names(top.get("leadership")),
            security=self.names(top.get("security")),
            reviewers=self.names(top.get("reviewers")),
            auditors=self.names(top.get("auditors")),
            review_within=self.span(top.get("review_within"), timedelta(seconds=1), timedelta(days=90)),
            accounts=MappingProxyType(accounts),
            text=self.text,
            hash=hashlib.sha256(self.text.encode(errors="replace")).hexdigest(),
            log=log_rules.read(self, top["log"]) if "log" in top else None,
            retention=retention_rules.read(self, top["retention"]) if "retention" in top else None,
            captures=self._sources,
            digest=digest_rules.read(self, top["digest"]) if "digest" in top else DigestRules(),
            alerts=alert_rules.read(self, top["alerts"], accounts) if "alerts" in top else MappingProxyType({}),
            step_up=step_up_rules.read(self, top["step_up"]) if "step_up" in top else None,
            control=control_rules.read(self, top["control"]) if "control" in top else None,
        )

    def account(self, name: str, at: _At) -> Account:
        keys = ("title", "system", "owner", "custodians", "responders", "thresholds", "standard_path", "levels")
        found = self.mapping(at, keys, ("deputies", "rules_reviewed", "tiers", "hours", "days", "timezone", "drill"))
        custodians = self.names(found.get("custodians"))
        tiers = asking_rules.read_tiers(self, found["tiers"]) if "tiers" in found else ()
        thresholds, levels, read = {}, {}, dict[str, Level | None]()
        if (below := found.get("thresholds")) is not None:
            entries = self.entries(below, names=True)
            if isinstance(below.node, yaml.MappingNode) and not 1 <= len(below.node.value) <= 20:
                self.fail(below, "Document 1 to 20 thresholds: without one, no use could ever be judged.")
            thresholds = {key: Threshold(key, self.text_of(value, 300)) for key, value in entries.items()}
        if (below := found.get("levels")) is not None:
            entries = self.entries(below, names=True)
            if isinstance(below.node, yaml.MappingNode) and not 1 <= len(below.node.value) <= 20:
                self.fail(below, "Give an account 1 to 20 levels.")
            everybody = (*custodians, *(name for tier in tiers for name in tier.people))
            read = {key: self.level(key, value, everybody) for key, value in entries.items()}
            levels = {key: level for key, level in read.items() if level is not None}
            if levels and all(level.is_rehearsal for level in levels.values()):
                self.fail(below, "All levels are for drills; add one that can be asked for.")
        asking_rules.check_tiers(self, found.get("tiers"), tiers, levels.values())
        owner = "The owner is one accountable person: write a user id (U…)."
        return Account(
            name=name,
            title=self.text_of(found.get("title"), 75, is_title=True),  # Slack shows 75 characters of an option
            system=self.text_of(found.get("system"), 300),
            owner=self.match(found.get("owner"), USER, owner),
            custodians=custodians,
            responders=self.names(found.get("responders")),
            thresholds=MappingProxyType(thresholds),
            standard_path=self.text_of(found.get("standard_path"), 1000),
            levels=MappingProxyType(levels),
            deputies=self.names(found.get("deputies")),
            rules_reviewed=self.day(found.get("rules_reviewed")),
            drill=drill_rules.read(self, found["drill"], read) if "drill" in found else None,
            hours=asking_rules.read_hours(self, at, found),
            tiers=tiers,
        )

    def level(self, name: str, at: _At, custodians: tuple[str, ...]) -> Level | None:
        times = ("quorum", "longest", "default", "answer_within")
        engine = self.engine(at)
        # Without an engine it is not known which keys there should be.
        known = [ENGINES[engine]] if engine else list(ENGINES.values())
        keys = {key: bool(engine) and is_required for one in known for key, is_required in one.keys.items()}
        required = [key for key, is_required in keys.items() if is_required]
        optional = (*keys, "open_within", "delivery", "enforced_by", "vault_group", "capture_source", "capture")
        optional += ("rehearsal", "step_up", "block_overdue", "factors", "unanswered")
        found = self.mapping(at, ("title", "engine", "token_role", *required, *times), optional)
        settings = self.settings(engine, found, keys)
        quorum = self.number(found.get("quorum"), 1, 100)
        factors = asking_rules.read_factors(self, found["factors"], quorum) if "factors" in found else ()
        custodians = tuple(dict.fromkeys((*custodians, *(name for one in factors for name in one.people))))
        if quorum and custodians and quorum > len(custodians) and all(USER.fullmatch(c) for c in custodians):
            self.fail(
                found["quorum"],
                f"The quorum is {quorum}, but only {len(custodians)} custodians are named; name more or ask for fewer.",
            )
        longest = self.span(found.get("longest"), SHORTEST, LONGEST)
        default = self.span(found.get("default"), SHORTEST, LONGEST)
        if longest and default > longest:
            self.fail(found["default"], f"The default is longer than the longest time, {say_duration(longest)}.")
        second, day = timedelta(seconds=1), timedelta(days=1)
        opening = found.get("open_within")
        title = self.text_of(found.get("title"), 75, is_title=True)
        answer_within = self.span(found.get("answer_within"), second, day)
        open_within = self.span(opening, second, day) if opening is not None else OPEN_WITHIN
        way = self.delivery(engine, found.get("delivery"))
        source, need = capture_rules.read_need(self, found.get("capture_source"), found.get("capture"), self._sources)
        if settings is None:
            return None
        if need is Need.REQUIRED and (missing := capture_rules.unrecorded(settings, self._sources.get(source or ""))):
            self.fail(found["capture"], missing)
        return Level(
            name=name,
            title=title,
            settings=settings,
            quorum=quorum,
            longest=longest,
            default=default,
            answer_within=answer_within,
            open_within=open_within,
            delivery=way,
            control=self.control(at, settings, found, quorum, open_within),
            capture_source=source,
            capture=need,
            is_rehearsal=drill_rules.check_level(self, found, way),
            step_up=step_up_rules.read_factor(self, found.get("step_up"), found.get("enforced_by")),
            block_overdue=self.flag(found["block_overdue"]) if "block_overdue" in found else True,
            factors=factors,
            unanswered=asking_rules.read_unanswered(self, found.get("unanswered")),
        )

    def delivery(self, engine: str, at: _At | None) -> Delivery:
        """Read how the credential comes to its requester: an engine must be made for what a level asks of it."""
        if at is None:
            return Delivery.MODAL
        word = self._scalar(at)
        way = next((one for one in Delivery if one.value == word), Delivery.MODAL)
        if word and word != way:
            self.fail(at, f"There is no such delivery; there is {', '.join(Delivery)}.")
        elif engine and (problem := delivery.problem(ENGINES[engine], way)):
            self.fail(at, f"The engine {engine} {problem}")
        return way

    def control(
        self, at: _At, settings: LevelSettings, found: Mapping[str, _At], quorum: int, within: timedelta
    ) -> ControlGroup | None:
        """Read whose own keys at Vault the credential needs; None: the bot's word is enough."""
        enforced, group = found.get("enforced_by"), found.get("vault_group")
        if enforced is None:
            if group is not None:
                self.fail(group, "This is for levels with “enforced_by: vault”; add that, or remove this.")
            return None
        if (word := self._scalar(enforced)) != "vault":
            if word:
                self.fail(enforced, "This can only be vault; without the key, the bot enforces the quorum.")
            return None
        if group is None:
            self.fail(at, "The key “vault_group” is missing; add it: whose own keys does Vault ask for?")
            return None
        rules = ENGINES[settings.engine].child_rules(settings.options)
        if [rule.capabilities for rule in rules] != [("read",)]:
            self.fail(enforced, f"The engine {settings.engine} does not get its credential by reading one path.")
        if (way := found.get("delivery")) is not None and self._scalar(way) != Delivery.MODAL:
            self.fail(way, "With “enforced_by: vault” it can only be modal: the bot takes it when it was authorised.")
        name = self.match(group, _VAULT_NAME, "This is not the name of an identity group: letters, digits, - and _.")
        if not name or not quorum or not within:
            return None
        return ControlGroup(name, quorum, within)

    def engine(self, at: _At) -> str:
        """Read which engine a level has: its other keys depend on it. "" when there is none, or no such one."""
        nodes = at.node.value if isinstance(at.node, yaml.MappingNode) else ()
        for key_node, value in nodes:
            if isinstance(key_node, yaml.ScalarNode) and key_node.value == "engine":
                here = _At(value, key_node.start_mark.line + 1, _join(at.where, "engine"))
                engine = self._scalar(here)
                if engine and engine not in ENGINES:
                    known = ", ".join(sorted(ENGINES))
                    self.fail(here, f"There is no such engine; the engines are: {known}.")
                    return ""
                return engine
        return ""

    def settings(self, engine: str, found: Mapping[str, _At], keys: Mapping[str, object]) -> LevelSettings | None:
        """Read the engine's settings; what is wrong with one does not hide what is wrong with another."""
        options = {key: self.word(at) for key, at in found.items() if key in keys}
        token_role = self._scalar(found["token_role"]) if "token_role" in found else ""
        if not engine or not token_role or not all(options.values()):
            return None  # reported already
        try:
            return LevelSettings(engine=engine, token_role=token_role, options=MappingProxyType(options))
        except Invalid as error:
            for key, sentence in error.fields.items():
                if key in found:  # what is missing is reported already
                    self.fail(found[key], f"{sentence} Correct it.")
            return None


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _not_yaml(error: yaml.MarkedYAMLError) -> str:
    what = " ".join(part for part in (error.context, error.problem) if part)
    if "'@'" in what:
        return 'A name that begins with @ must stand in quotes: "@security".'
    if "'\\t'" in what:
        return "Indent with spaces, not with tabs."
    return f"This is not YAML: {what}."
