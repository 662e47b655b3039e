"""How does an entry look to a SIEM? OCSF 1.8.0.

Rules
-----
* An entry becomes one record or more: ``credential:issue`` makes a grant active, gives privileges and creates an
  account. ``metadata.uid`` is the entry's number (with a suffix from the second record on), ``correlation_uid`` the
  request, ``sequence`` the number in the log.
* A refusal is the same class with the status Failure. An event that is not known here is still a record.
* What OCSF has no place for stands under ``unmapped``. The record is a rendering: the proof is the entry itself, which
  ``unmapped.leaf_hash`` names.

Records are canonical where the log's entries are; the schemas are those of PyPI ``ocsf-json-schema``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from storage import closing, commands

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from storage.audit import Record

VERSION: Final = "1.8.0"

_ENTITY: Final = (3004, "Entity Management", 3, "Identity & Access Management")
_ACCOUNT: Final = (3001, "Account Change", 3, "Identity & Access Management")
_ACCESS: Final = (3005, "User Access Management", 3, "Identity & Access Management")
_LOG: Final = (1008, "Event Log Activity", 1, "System Activity")
_STATEMENT: Final = (6005, "Datastore Activity", 6, "Application Activity")
_EXEC: Final = (1007, "Process Activity", 1, "System Activity")
_CALL: Final = (6003, "API Activity", 6, "Application Activity")
_FINDING: Final = (2004, "Detection Finding", 2, "Findings")

_NAMES: Final[Mapping[tuple[int, int], str]] = {
    (3004, 1): "Create",
    (3004, 3): "Update",
    (3004, 10): "Activate",
    (3004, 11): "Deactivate",
    (3001, 1): "Create",
    (3001, 6): "Delete",
    (3005, 1): "Assign Privileges",
    (3005, 2): "Revoke Privileges",
    (6005, 4): "Query",
    (1007, 1): "Launch",
    (1008, 2): "Delete",
    (1008, 3): "Export",
    (1008, 5): "Rotate",
    (2004, 1): "Create",
    (2004, 3): "Close",
}
_SEVERITIES: Final = {1: "Informational", 2: "Low", 3: "Medium", 4: "High", 5: "Critical"}

# What moves a request: its activity of Entity Management. Everything else about one is 99, Other, by its own name.
_REQUEST: Final[Mapping[str, int]] = {
    "request:open": 1,
    "request:deny": 11,
    "request:withdraw": 11,
    "request:lapse": 11,
    "credential:issue": 10,
    "credential:fail": 11,
    "credential:end": 11,
}
_ABOUT_THE_LOG: Final[Mapping[str, int]] = {
    "log:export": 3,
    "log:purge": 2,
    "retention:apply": 2,
    "log:rotate": 5,
    closing.EVENT: 99,
}
# Something is wrong with the evidence itself, or out that is not in it: a finding.
_FINDINGS: Final[Mapping[str, tuple[str, int, int]]] = {
    "log:alarm": ("The log does not extend what was signed", 1, 5),
    "access:alarm": ("Emergency access is not what is on record", 1, 5),
    "access:clear": ("Emergency access is not what is on record", 3, 1),
    "command:stranger": ("Commands by an emergency login that is on no record", 1, 5),
    "command:stop": ("The recording of commands was stopped from within, or was tried to be", 1, 5),
    "command:find": ("What the record of commands says of an access", 1, 1),
    "capture:down": ("A source of commands is silent", 1, 4),
    "capture:up": ("A source of commands is silent", 3, 1),
    "capture:gap": ("Lines of a source of commands were lost", 1, 4),
    "capture:unreadable": ("Lines of a source of commands cannot be read", 1, 4),
    "digest:post": ("A week's figures of emergency access were told", 1, 1),
    "person:lock": ("Too many wrong codes were typed in a custodian's name", 1, 4),
    "ready:fail": ("Emergency access could not be opened if it were needed", 1, 3),
    "copy:behind": ("A copy of the log outside is behind", 1, 4),
    "copy:caught_up": ("A copy of the log outside is behind", 3, 1),
}
_LOUD: Final[Mapping[str, int]] = {
    "request:open": 2,
    "request:quorum": 2,
    "credential:issue": 3,
    "credential:reissue": 3,
    "credential:revoke": 3,
    "credential:lost": 4,
    "credential:intercept": 4,
    "credential:fail": 3,
    "review:escalate": 3,
    "log:export": 2,
    "log:rotate": 3,
}


class Mapper:
    """Maps a log's entries in order. It remembers only which accounts are out, until their request ends."""

    def __init__(self, origin: str | None, names: Mapping[str, str]) -> None:
        self._origin = origin
        self._names = names
        self._out: dict[str, list[tuple[str, str]]] = {}  # request → (identity, path) of what it has out
        self._drills: set[str] = set()

    def records(self, record: Record, leaf: bytes) -> Iterator[dict[str, Any]]:
        """Give the records of an entry."""
        for number, made in enumerate(self._records(record, leaf)):
            if number:
                made["metadata"]["uid"] += f".{number + 1}"
            yield made

    def unreadable(self, seq: int, leaf: bytes, at: int) -> dict[str, Any]:
        """Give the record of an entry whose body is not there or cannot be read; ``at``: ms since 1970."""
        found = _begun(_FINDING, 1, at, 4)
        found["metadata"] = self._metadata(seq, None, "")
        found["message"] = "The entry's body was pruned, or is not what the log wrote."
        found["finding_info"] = {"uid": f"entry-{seq}", "title": "An entry of the log cannot be read"}
        found["unmapped"] = {"leaf_hash": leaf.hex()}
        return found

    def _records(self, record: Record, leaf: bytes) -> Iterator[dict[str, Any]]:
        event = record.event
        if event == "request:open" and record.request_id is not None and record.data.get("drill"):
            self._drills.add(record.request_id)
        if event in _FINDINGS:
            yield self._finding(record, leaf)
            return
        if event == commands.RUN and record.refused is None:
            yield self._command(record, leaf)
            return
        if event in _ABOUT_THE_LOG or (record.request_id is None and not event.startswith(("request:", "policy:"))):
            yield self._about_the_log(record, leaf)
            return
        yield self._entity(record, leaf)
        if record.refused is not None or record.request_id is None:
            return
        if event in {"credential:issue", "credential:reissue"}:
            out = (_text(record, "identity"), _text(record, "path"))
            self._out.setdefault(record.request_id, []).append(out)
            yield self._access(record, leaf, 1, *out)
            if out[0]:
                yield self._account(record, leaf, 1, out[0])
        elif event in {"credential:end", "credential:abandon"}:
            # A replaced credential ends before the next is issued; the end of the request ends what is left.
            for identity, path in self._out.pop(record.request_id, []):
                yield self._access(record, leaf, 2, identity, path)
                if identity:
                    yield self._account(record, leaf, 6, identity)

    # One record.

    def _entity(self, record: Record, leaf: bytes) -> dict[str, Any]:
        is_policy = record.event.startswith("policy:")
        activity = 3 if is_policy else _REQUEST.get(record.event, 99)
        found = self._made(_ENTITY, activity, record, leaf)
        if is_policy:
            uid = _text(record, "hash")
            found["entity"] = {"type_id": 5, "type": "Policy", "name": "Break-glass policy", "uid": uid or "policy"}
        else:
            named = {"uid": record.request_id} if record.request_id else {}
            found["entity"] = {
                "type_id": 99,
                "type": "Break-glass request",
                "name": record.request_id or "Break-glass request",
                **named,
            }
            if record.version is not None:
                found["entity"]["version"] = str(record.version)
            if record.target is not None and record.target != record.source:
                found["entity_result"] = found["entity"] | {"data": {"state": record.target}}
        comment = _text(record, "reason") or _text(record, "findings") or _text(record, "why")
        if comment:
            found["comment"] = comment
        return found

    def _access(self, record: Record, leaf: bytes, activity: int, identity: str, path: str) -> dict[str, Any]:
        found = self._made(_ACCESS, activity, record, leaf)
        found["user"] = _user_at_target(identity, record)
        found["privileges"] = [path or "unknown"]
        if path:
            found["resources"] = [{"name": path, "type": "Vault path"}]
        return found

    def _account(self, record: Record, leaf: bytes, activity: int, identity: str) -> dict[str, Any]:
        found = self._made(_ACCOUNT, activity, record, leaf)
        found["user"] = _user_at_target(identity, record)
        return found

    def _command(self, record: Record, leaf: bytes) -> dict[str, Any]:
        """Map what was run: a program, a call of an API, or else a statement."""
        one = commands.of_record(record)
        source = one.source or "unknown"
        unknown = {"name": "unknown"}  # from where: the record of the source may say it, the entry does not
        if one.kind == "exec":
            found = self._made(_EXEC, 1, record, leaf)
            found["device"] = {"name": source, "type_id": 1, "type": "Server"}
            found["process"] = {"uid": f"{record.seq}", "cmd_line": one.text, "user": _login(one)}
        elif one.kind == "call":
            found = self._made(_CALL, 99, record, leaf)
            found["api"] = {"operation": one.text or "unknown", "service": {"name": source}}
            found["src_endpoint"] = unknown
        else:
            found = self._made(_STATEMENT, 4, record, leaf)
            found["type_id"], found["type"] = 1, "Database"
            found["database"] = {"name": one.database or source, "type_id": 1, "type": "Relational"}
            found["query_info"] = {"uid": f"{record.seq}", "query_string": one.text}
            found["src_endpoint"] = unknown
            found["dst_endpoint"] = {"name": source}
        found["time"] = round(one.at.timestamp() * 1000)
        if one.danger:
            found["severity_id"], found["severity"] = 4, _SEVERITIES[4]
        if one.has_failed:
            found["status_id"], found["status"] = 2, "Failure"
            found["status_code"] = one.result
        found["unmapped"]["login"] = one.identity
        return found

    def _about_the_log(self, record: Record, leaf: bytes) -> dict[str, Any]:
        found = self._made(_LOG, _ABOUT_THE_LOG.get(record.event, 99), record, leaf)
        found["log_name"] = self._origin or "breakglass"
        found["log_type_id"], found["log_type"] = 2, "Application"
        return found

    def _finding(self, record: Record, leaf: bytes) -> dict[str, Any]:
        title, activity, severity = _FINDINGS[record.event]
        found = self._made(_FINDING, activity, record, leaf)
        if record.data.get("findings"):
            severity = 4
        found["severity_id"], found["severity"] = severity, _SEVERITIES[severity]
        found["status_id"], found["status"] = (4, "Resolved") if activity == 3 else (1, "New")
        about = next((said for name in ("copy", "name", "place", "source") if (said := _text(record, name))), "")
        found["finding_info"] = {"uid": f"{record.event}:{about}" if about else f"entry-{record.seq}", "title": title}
        found.pop("actor", None)  # the class has none
        return found

    def _made(self, kind: tuple[int, str, int, str], activity: int, record: Record, leaf: bytes) -> dict[str, Any]:
        refused = record.refused is not None
        severity = 3 if refused else _LOUD.get(record.event, 1)
        if record.event in {"review:file", "review:first", "review:second"} and record.data.get("outcome") == "misuse":
            severity = 5
        found = _begun(kind, activity, round(record.at.timestamp() * 1000), severity)
        if activity == 99:
            found["activity_name"] = record.event
        found["metadata"] = self._metadata(record.seq, record.request_id, record.event)
        found["status_id"], found["status"] = (2, "Failure") if refused else (1, "Success")
        if record.refused is not None:
            found["status_code"] = record.refused
            if said := _text(record, "said"):
                found["status_detail"] = said
        found["actor"] = self._actor(record)
        found["message"] = record.event + (f" of {record.request_id}" if record.request_id else "")
        found["unmapped"] = {"leaf_hash": leaf.hex()}
        if record.policy is not None:
            found["unmapped"]["policy_hash"] = record.policy
        if record.data:
            found["unmapped"]["data"] = dict(record.data)
        return found

    def _metadata(self, seq: int, request_id: str | None, event: str) -> dict[str, Any]:
        found: dict[str, Any] = {
            "version": VERSION,
            "product": {"name": "breakglass", "vendor_name": "breakglass"},
            "uid": str(seq),
            "sequence": seq,
        }
        if self._origin:
            found["log_name"] = self._origin
        if request_id is not None:
            found["correlation_uid"] = request_id
        if request_id in self._drills:
            found["labels"] = ["drill"]  # no rule of a SIEM should take a rehearsal for the thing itself
        if event:
            found["event_code"] = event
        return found

    def _actor(self, record: Record) -> dict[str, Any]:
        person = record.actor.person
        if person == "system":
            return {"app_name": "breakglass", "user": {"uid": "system", "type_id": 3, "type": "System"}}
        user: dict[str, Any] = {"uid": person, "type_id": 1, "type": "User"}
        if person in self._names:
            user["full_name"] = self._names[person]
        if record.actor.team:
            user["domain"] = record.actor.team
        return {"user": user}


def _begun(kind: tuple[int, str, int, str], activity: int, at: int, severity: int) -> dict[str, Any]:
    uid, name, category_uid, category = kind
    type_uid = uid * 100 + activity
    found = {
        "class_uid": uid,
        "class_name": name,
        "category_uid": category_uid,
        "category_name": category,
        "activity_id": activity,
        "type_uid": type_uid,
        "time": at,
        "severity_id": severity,
        "severity": _SEVERITIES[severity],
    }
    if (uid, activity) in _NAMES:
        found["activity_name"] = _NAMES[uid, activity]
        found["type_name"] = f"{name}: {_NAMES[uid, activity]}"
    else:
        found["type_name"] = f"{name}: Other"
    return found


def _login(one: commands.Command) -> dict[str, Any]:
    return {"name": one.identity} if one.identity else {"uid": "unknown"}


def _user_at_target(identity: str, record: Record) -> dict[str, Any]:
    """Return the login that was made for the request; one without a name is known by its lease."""
    uid = _text(record, "lease") or f"{record.request_id}/{record.data.get('credential', '?')}"
    return {"name": identity, "uid": uid} if identity else {"uid": uid}


def _text(record: Record, key: str) -> str:
    found = record.data.get(key)
    return found if isinstance(found, str) else ""
