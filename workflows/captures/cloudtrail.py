"""What does a record of AWS CloudTrail say that somebody called? One record a line, or a whole file's ``Records``.

Rules
-----
* Who: the source identity, which stays with a session through every role that it assumes; else the session's name, else
  the user's. A session's name is chosen by whoever assumes a role, so that one without a source identity may be
  another's word: the trust policy is to demand it.
* What AWS's own services call in nobody's name is not told.
* Of the parameters only plain values are shown. What CloudTrail keeps for itself
  (``HIDDEN_DUE_TO_SECURITY_REASONS``) is as it came.
* A session that assumes another role, or makes a key or a login, has made what is under no grant: that is a hole.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

from workflows.captures.record import part, read_object, text_of, time_of
from workflows.captures.seam import Kind, Line, Trust, Unreadable

if TYPE_CHECKING:
    from collections.abc import Mapping

_MOST: Final = 16_777_216  # bytes of a file that stands in one line
_MOST_TEXT: Final = 1_000  # characters of a call
_STOPPING: Final = frozenset(
    {"StopLogging", "DeleteTrail", "UpdateTrail", "PutEventSelectors", "PutInsightSelectors"}
) | {"DeleteEventDataStore", "StopEventDataStoreIngestion"}
_MAKING: Final = frozenset({"AssumeRole", "AssumeRoleWithSAML", "AssumeRoleWithWebIdentity", "GetFederationToken"}) | {
    *("GetSessionToken", "CreateAccessKey", "CreateLoginProfile", "CreateServiceSpecificCredential")
}
_KINDS: Final = frozenset({"Root", "IAMUser", "AssumedRole", "Role", "FederatedUser", "Directory", "AWSAccount"}) | {
    *("AWSService", "IdentityCenterUser", "WebIdentityUser", "SAMLUser", "Unknown")
}
_ANOTHER: Final = "another credential was made with it: what is done with that one may be under no grant"


class CloudTrail:
    """Stateless: what a line says depends on the line alone."""

    trust: Trust = Trust.ENFORCED

    def read(self, raw: bytes) -> tuple[Line, ...]:
        """Return the calls, in order. Raises Unreadable."""
        found = read_object(raw, _MOST)
        records = found.get("Records") if found.keys() == {"Records"} else [found]
        if not isinstance(records, list) or not all(isinstance(one, dict) for one in records):
            raise Unreadable("Its records are none.")
        return tuple(line for one in records for line in _lines(one))

    def setup(self, options: Mapping[str, str]) -> str:
        """Return what the trail and the roles need. Options: ``source`` (the name in the policy)."""
        source = options.get("source", "aws")
        return "\n".join(
            [
                "# 1. A trail of all regions: management events, and data events where a level may touch data.",
                "#    Its bucket belongs to another account than the one it watches.",
                "aws cloudtrail create-trail --name breakglass --s3-bucket-name BUCKET --is-multi-region-trail \\",
                "    --enable-log-file-validation",
                "aws cloudtrail start-logging --name breakglass",
                "",
                "# 2. The trust policy of a level's role. The source identity is the request's name, as the",
                "#    session's is; without this condition a session's name is anybody's word.",
                '#    "Action": ["sts:AssumeRole", "sts:SetSourceIdentity"],',
                '#    "Condition": {"StringLike": {"sts:SourceIdentity": "bg-*", "sts:RoleSessionName": "bg-*"}}',
                "",
                "# 3. Records come minutes late: set silent_after to its longest.",
                "",
                "# 4. Reading it: one record a line, or a file's Records as they are, from where they are copied to.",
                f"breakglass capture tail --source {source} FILE",
                "",
            ]
        )


def _lines(record: Mapping[str, Any]) -> tuple[Line, ...]:
    identity, source, name = part(record, "userIdentity"), text_of(record, "eventSource"), text_of(record, "eventName")
    if not identity or source is None or name is None:
        raise Unreadable("It does not say who called what.")
    at = time_of(record, "eventTime")
    who = _who(identity)
    if who is None:
        return ()
    result = text_of(record, "errorCode") or "ok"
    text = f"{source} {name}{_parameters(part(record, 'requestParameters'))}"[:_MOST_TEXT]
    key = text_of(identity, "accessKeyId")
    session = hashlib.sha256(key.encode()).hexdigest()[:16] if key else None
    region = text_of(record, "awsRegion")

    def line(kind: Kind, said: str) -> Line:
        return Line(kind, who or "", at, said, session=session, database=region, result=result)

    lines = [line(Kind.CALL, text)]
    if name in _STOPPING:
        lines.append(line(Kind.STOPPED, text))
    if name in _MAKING and result == "ok":
        lines.append(line(Kind.HOLE, _ANOTHER))
    return tuple(lines)


def _who(identity: Mapping[str, Any]) -> str | None:
    kind = identity.get("type")
    if kind not in _KINDS:
        raise Unreadable("It does not say what kind of user called.")
    if kind in {"AWSService", "AWSAccount"}:
        return None
    if source := text_of(part(identity, "sessionContext"), "sourceIdentity"):
        return source
    arn = text_of(identity, "arn") or ""
    if kind in {"AssumedRole", "FederatedUser"}:
        if not arn.startswith("arn:") or not arn.rpartition("/")[2]:
            raise Unreadable("It does not say which session called.")
        return arn.rpartition("/")[2]
    name = text_of(identity, "userName") or arn or text_of(identity, "principalId")
    if name is None:
        raise Unreadable("It does not say who called.")
    return name


def _parameters(parameters: Mapping[str, Any]) -> str:
    plain = {name: one for name, one in parameters.items() if isinstance(one, (str, int, bool))}
    return "".join(f" {name}={json.dumps(one, ensure_ascii=False)}" for name, one in plain.items())
