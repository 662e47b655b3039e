"""Which entries speak to which control?

Rules
-----
* A control points at kinds of entries, and the ledger at the entries themselves. It says what is on record, never that
  a control is met: that is the auditor's to say.
* Controls are named by their number and a title in our words; the frameworks' texts are their publishers'.

Numbers: AICPA Trust Services Criteria 2017 (points of focus 2022), ISO/IEC 27001:2022 Annex A, PCI DSS 4.0.1,
NIST SP 800-53 revision 5, HIPAA Security Rule (45 CFR 164).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from storage.export import BOM, csv_line

if TYPE_CHECKING:
    from storage.audit import Record

CAVEAT: Final = (
    "For each control, what this log shows about it and where. It is a map, not an opinion: whether a control is met, "
    "and whether it operated over the whole period, is for the auditor to say."
)
_MOST: Final = 12  # entries named for one control; the rest are counted


class Kind(StrEnum):
    """What an entry is evidence of."""

    ASK = "requests"
    DECISION = "approvals and denials"
    QUORUM = "quorums"
    REFUSAL = "refusals"
    ISSUE = "credentials issued"
    END = "credentials confirmed gone"
    TAKE_BACK = "ends by the clock, by a person or by loss"
    REVIEW = "reviews"
    REMIND = "owners of reviews, and reminders"
    FOLLOW_UP = "what reviews want done, and that it was"
    EXPORT = "exports"
    POLICY = "policies in force, and changes of them"
    LOG = "events of the log itself, and alarms"


_KINDS: Final[dict[str, Kind]] = {
    "request:open": Kind.ASK,
    "request:approve": Kind.DECISION,
    "request:deny": Kind.DECISION,
    "request:quorum": Kind.QUORUM,
    "credential:issue": Kind.ISSUE,
    "credential:reissue": Kind.ISSUE,
    "credential:end": Kind.END,
    "credential:expire": Kind.TAKE_BACK,
    "credential:lost": Kind.TAKE_BACK,
    "credential:release": Kind.TAKE_BACK,
    "credential:revoke": Kind.TAKE_BACK,
    "credential:intercept": Kind.TAKE_BACK,
    "drill:done": Kind.TAKE_BACK,
    "request:lapse": Kind.TAKE_BACK,
    "review:file": Kind.REVIEW,
    "review:first": Kind.REVIEW,
    "review:second": Kind.REVIEW,
    "review:assign": Kind.REMIND,
    "review:reassign": Kind.REMIND,
    "review:remind": Kind.REMIND,
    "review:escalate": Kind.REMIND,
    "follow_up:open": Kind.FOLLOW_UP,
    "follow_up:remind": Kind.FOLLOW_UP,
    "follow_up:close": Kind.FOLLOW_UP,
    "log:export": Kind.EXPORT,
    "request:close": Kind.EXPORT,
    "policy:load": Kind.POLICY,
    "policy:propose": Kind.POLICY,
    "policy:confirm": Kind.POLICY,
    "policy:reject": Kind.POLICY,
    "log:rotate": Kind.LOG,
    "log:alarm": Kind.LOG,
    "access:alarm": Kind.LOG,
    "access:clear": Kind.LOG,
    "copy:behind": Kind.LOG,
    "copy:caught_up": Kind.LOG,
    "alert:send": Kind.LOG,
}


@dataclass(frozen=True, slots=True)
class Control:
    """One control: its number, a title, what the log shows about it, and by which entries; none: by all of them."""

    framework: str
    id: str
    title: str
    shows: str
    kinds: tuple[Kind, ...] = ()


_SOC, _ISO, _PCI, _NIST, _HIPAA = "SOC 2", "ISO/IEC 27001:2022", "PCI DSS 4.0.1", "NIST SP 800-53 r5", "HIPAA"
_K = Kind
_CHAINED: Final = "Each entry stands in a hash tree; signed heads outside show a change, a removal or a rewrite."

CONTROLS: Final = (
    Control(
        _SOC,
        "CC6.1",
        "Logical access to protected assets",
        "Access exists only as short-lived credentials, each asked for, approved and taken back.",
        (_K.ASK, _K.QUORUM, _K.ISSUE, _K.END),
    ),
    Control(
        _SOC,
        "CC6.2",
        "Access is authorised before credentials are issued",
        "Each credential's issue follows a quorum of the account's custodians.",
        (_K.DECISION, _K.QUORUM, _K.ISSUE),
    ),
    Control(
        _SOC,
        "CC6.3",
        "Access by role, least privilege, separation of duties; removal",
        "Requester, approvers and reviewer are different people; access ends by itself and its end is confirmed.",
        (_K.QUORUM, _K.REFUSAL, _K.TAKE_BACK, _K.END),
    ),
    Control(
        _SOC, "CC7.2", "Monitoring for anomalies", "Refused attempts and alarms are on record.", (_K.REFUSAL, _K.LOG)
    ),
    Control(
        _SOC,
        "CC7.3",
        "Security events are evaluated",
        "Each use is reviewed by somebody who took no part in it; overdue reviews are reminded.",
        (_K.REVIEW, _K.REMIND),
    ),
    Control(
        _SOC,
        "CC4.1",
        "Evaluations of controls",
        "Outcomes of reviews with their follow-ups.",
        (_K.REVIEW, _K.FOLLOW_UP),
    ),
    Control(
        _ISO,
        "A.5.3",
        "Segregation of duties",
        "Who asked, who approved and who reviewed; attempts to combine these are refused, on record.",
        (_K.ASK, _K.DECISION, _K.REVIEW, _K.REFUSAL),
    ),
    Control(
        _ISO, "A.5.15", "Access control", "The policy in force and the decisions under it.", (_K.POLICY, _K.DECISION)
    ),
    Control(
        _ISO, "A.5.18", "Access rights", "Rights given, for how long, and taken back.", (_K.ISSUE, _K.TAKE_BACK, _K.END)
    ),
    Control(_ISO, "A.5.28", "Collection of evidence", _CHAINED, (_K.EXPORT,)),
    Control(_ISO, "A.5.33", "Protection of records", _CHAINED, (_K.LOG,)),
    Control(
        _ISO,
        "A.8.2",
        "Privileged access rights",
        "Privileged access by request, for a documented threshold, for minutes, approved and reviewed.",
        (_K.ASK, _K.QUORUM, _K.ISSUE, _K.REVIEW),
    ),
    Control(_ISO, "A.8.15", "Logging", "Every step is an entry, refusals too."),
    Control(_ISO, "A.8.16", "Monitoring activities", "Refusals, alarms and reviews.", (_K.REFUSAL, _K.LOG, _K.REVIEW)),
    Control(
        _PCI,
        "7.2.2",
        "Access by job and least privilege",
        "Account, level and time asked for and granted.",
        (_K.ASK, _K.QUORUM),
    ),
    Control(
        _PCI, "7.2.3", "Privileges are approved by authorised personnel", "Who approved, and when.", (_K.DECISION,)
    ),
    Control(
        _PCI,
        "8.2.2",
        "Shared accounts only when necessary, by exception",
        "The exception: its justification, its approval, its time limit, and to whom the credential was shown.",
        (_K.ASK, _K.QUORUM, _K.ISSUE, _K.END),
    ),
    Control(
        _PCI,
        "8.6.1",
        "Interactive use of system accounts by exception",
        "The exception: its justification, its approval, its time limit, and to whom the credential was shown.",
        (_K.ASK, _K.QUORUM, _K.ISSUE, _K.END),
    ),
    Control(
        _PCI,
        "10.2.1.2",
        "Actions with administrative access are logged",
        "Every use of the emergency access; commands as far as they were captured.",
        (_K.ISSUE, _K.END),
    ),
    Control(_PCI, "10.2.1.4", "Invalid access attempts are logged", "Refused attempts.", (_K.REFUSAL,)),
    Control(
        _PCI,
        "10.2.1.5",
        "Changes to credentials are logged",
        "Each credential's issue and end.",
        (_K.ISSUE, _K.TAKE_BACK, _K.END),
    ),
    Control(
        _PCI, "10.2.2", "What an audit record holds", "Who, what, when, outcome, origin and the resource concerned."
    ),
    Control(_PCI, "10.3.2", "Audit logs are protected from change", _CHAINED, (_K.LOG,)),
    Control(_PCI, "10.3.4", "Changes to audit logs raise an alert", "Alarms about the log itself.", (_K.LOG,)),
    Control(_PCI, "10.4.1", "Audit logs are reviewed", "Each use is reviewed.", (_K.REVIEW, _K.REMIND)),
    Control(
        _NIST,
        "AC-2(2)",
        "Automated temporary and emergency account management",
        "Emergency logins are made for one request and removed by the clock; the removal is confirmed.",
        (_K.ISSUE, _K.TAKE_BACK, _K.END),
    ),
    Control(_NIST, "AC-3(2)", "Dual authorization", "Quorums over distinct people.", (_K.DECISION, _K.QUORUM)),
    Control(
        _NIST,
        "AC-3(10)",
        "Audited override of access control mechanisms",
        "Each override: threshold, reason, approval, time, review.",
        (_K.ASK, _K.QUORUM, _K.ISSUE, _K.REVIEW),
    ),
    Control(
        _NIST,
        "AC-5",
        "Separation of duties",
        "Requester, approvers and reviewer are different people; other attempts are refused.",
        (_K.DECISION, _K.REVIEW, _K.REFUSAL),
    ),
    Control(_NIST, "AC-6(9)", "Log use of privileged functions", "Every issue of access.", (_K.ISSUE,)),
    Control(_NIST, "AU-3", "Content of audit records", "Who, what, when, outcome, and the rules in force."),
    Control(_NIST, "AU-6", "Audit record review", "Reviews with outcome and follow-ups.", (_K.REVIEW, _K.FOLLOW_UP)),
    Control(_NIST, "AU-9", "Protection of audit information", _CHAINED, (_K.LOG, _K.EXPORT)),
    Control(_NIST, "AU-9(3)", "Cryptographic protection", _CHAINED, (_K.LOG,)),
    Control(_NIST, "AU-10", "Non-repudiation", "Each entry names the person who acted, under a signed head."),
    Control(_NIST, "AU-12", "Audit record generation", "Every step is an entry in the transaction that makes it so."),
    Control(
        _HIPAA,
        "164.308(a)(1)(ii)(D)",
        "Information system activity review",
        "Each use is reviewed.",
        (_K.REVIEW, _K.REMIND),
    ),
    Control(
        _HIPAA,
        "164.308(a)(4)",
        "Information access management",
        "Access is authorised by the account's custodians.",
        (_K.DECISION, _K.QUORUM),
    ),
    Control(
        _HIPAA,
        "164.312(a)(2)(ii)",
        "Emergency access procedure",
        "The procedure as it was followed, each time.",
        (_K.ASK, _K.QUORUM, _K.ISSUE, _K.END, _K.REVIEW),
    ),
    Control(_HIPAA, "164.312(b)", "Audit controls", "Every step is an entry."),
    Control(_HIPAA, "164.312(c)(1)", "Integrity", _CHAINED, (_K.LOG,)),
    Control(
        _HIPAA, "164.312(d)", "Person or entity authentication", "Each act bears the person's Slack user id.", (_K.ASK,)
    ),
)


class Ledger:
    """Counts entries by what they are evidence of, and remembers the first of each."""

    def __init__(self) -> None:
        self._first: dict[Kind | None, list[int]] = {kind: [] for kind in (None, *Kind)}
        self._count: dict[Kind | None, int] = dict.fromkeys((None, *Kind), 0)

    def add(self, record: Record) -> None:
        """Enter an entry."""
        kinds: tuple[Kind | None, ...] = (None,)
        if record.refused is not None:
            kinds = (None, Kind.REFUSAL)
        elif (kind := _KINDS.get(record.event)) is not None:
            kinds = (None, kind)
        for kind in kinds:
            self._count[kind] += 1
            if len(self._first[kind]) < _MOST:
                self._first[kind].append(record.seq)

    def found(self, control: Control) -> Found:
        """Return the entries that speak to a control."""
        kinds: tuple[Kind | None, ...] = control.kinds or (None,)
        return Found(
            control,
            tuple((str(kind) if kind else "entries", self._count[kind], tuple(self._first[kind])) for kind in kinds),
        )


@dataclass(frozen=True, slots=True)
class Found:
    """What a ledger has for a control: for each kind its name, how many entries, and the numbers of the first."""

    control: Control
    kinds: tuple[tuple[str, int, tuple[int, ...]], ...]

    def told(self) -> str:
        """Return it in words."""
        return "; ".join(_told(*kind) for kind in self.kinds)


def _told(name: str, count: int, first: tuple[int, ...]) -> str:
    if not count:
        return f"{name}: none"
    more = " …" if count > len(first) else ""
    return f"{name}: {count} ({', '.join(f'#{seq}' for seq in first)}{more})"


def by_framework(ledger: Ledger) -> list[tuple[str, list[Found]]]:
    """Return the controls with their entries, framework by framework."""
    found: dict[str, list[Found]] = {}
    for control in CONTROLS:
        found.setdefault(control.framework, []).append(ledger.found(control))
    return list(found.items())


def table(ledger: Ledger) -> bytes:
    """Return the map as CSV: a line for each control and kind of entry."""
    lines = [BOM, csv_line(("framework", "control", "title", "shows", "kind", "count", "entries"))]
    for framework, found in by_framework(ledger):
        for one in found:
            about = (framework, one.control.id, one.control.title, one.control.shows)
            lines += [
                csv_line((*about, kind, str(count), " ".join(map(str, first)) + (" …" if count > len(first) else "")))
                for kind, count, first in one.kinds
            ]
    return b"".join(lines)
