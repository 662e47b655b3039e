"""What does a line of Kubernetes' audit log say that somebody called? Events of ``audit.k8s.io/v1``, one a line.

Rules
-----
* Who: the user that the API server authenticated; a service account by its own name. Whom the call impersonates is the
  caller's choice: it is told, and nobody is blamed for it.
* Of a call's stages the last counts, for it has the result. An exec, attach or port-forward lasts as long as it is
  used: it counts when it begins.
* Of an exec the first program is known, by the address that was called. What is typed inside is recorded nowhere.
* No body of a call is read, whatever the audit policy's level is: secrets are in them.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

from workflows.captures.record import part, read_object, text_of, time_of
from workflows.captures.seam import Kind, Line, Trust, Unreadable

if TYPE_CHECKING:
    from collections.abc import Mapping

_MOST_TEXT: Final = 2_000  # characters of a call
_ACCOUNT: Final = "system:serviceaccount:"
_LASTING: Final = frozenset({"exec", "attach", "portforward", "proxy"})
_STAGES: Final = frozenset({"RequestReceived", "ResponseStarted", "ResponseComplete", "Panic"})
_SWITCHED: Final = 101  # the HTTP status of a call that became a stream
_INSIDE: Final = "what is typed inside a container, or sent through a port, is not recorded"


class KubernetesAudit:
    """Stateless: what a line says depends on the line alone."""

    trust: Trust = Trust.ENFORCED

    def read(self, raw: bytes) -> tuple[Line, ...]:
        """Return the call, with the program that it starts. Raises Unreadable."""
        record = read_object(raw)
        if record.get("kind") != "Event" or record.get("stage") not in _STAGES:
            raise Unreadable("Not an event of the audit log.")
        status = part(record, "responseStatus").get("code")
        target = part(record, "objectRef")
        is_lasting = target.get("subresource") in _LASTING
        if not _counts(record["stage"], is_stream=is_lasting, is_open=status == _SWITCHED):
            return ()
        user, verb = text_of(part(record, "user"), "username"), text_of(record, "verb")
        if user is None or verb is None or "\0" in user:
            raise Unreadable("It does not say who called what.")
        namespace, name = None, user
        if user.startswith(_ACCOUNT):
            namespace, _, name = user.removeprefix(_ACCOUNT).partition(":")
        at = time_of(record, "requestReceivedTimestamp")
        result = None if type(status) is not int else "ok" if status < 400 else str(status)
        session = text_of(record, "auditID")
        uri = urlsplit(text_of(record, "requestURI") or "")
        text = f"{verb} {_what(target) or uri.path}"
        if other := text_of(part(record, "impersonatedUser"), "username"):
            text += f" as {other}"
        lines = [Line(Kind.CALL, name, at, text[:_MOST_TEXT], session=session, database=namespace, result=result)]
        if is_lasting and result in {None, "ok"}:
            if argv := tuple(parse_qs(uri.query).get("command", ())):
                lines.append(Line(Kind.EXEC, name, at, shlex.join(argv), argv, session=session, database=namespace))
            lines.append(Line(Kind.HOLE, name, at, _INSIDE, session=session, database=namespace))
        return tuple(lines)

    def setup(self, options: Mapping[str, str]) -> str:
        """Return the API server's policy. Options: ``file`` (the log's path), ``source`` (the name in the policy)."""
        file = options.get("file", "/var/log/kubernetes/audit.log")
        source = options.get("source", "kubernetes")
        return "\n".join(
            [
                "# 1. The audit policy, beside the API server (--audit-policy-file). Bodies are never written.",
                "apiVersion: audit.k8s.io/v1",
                "kind: Policy",
                "omitStages: [RequestReceived]",
                "rules:",
                "  - level: Metadata",
                "",
                "# 2. The API server's options:",
                f"#   --audit-log-path={file} --audit-log-format=json --audit-log-mode=blocking-strict",
                "#   --audit-log-truncate-enabled=false",
                "",
                "# 3. A level's account may not impersonate, nor make service accounts of its own.",
                "",
                "# 4. Reading it, on every node of the API server:",
                f"breakglass capture tail --source {source} {file}",
                "",
            ]
        )


def _counts(stage: str, *, is_stream: bool, is_open: bool) -> bool:
    if stage == "ResponseStarted":
        return is_stream
    # A stream's end says nothing that its beginning did not; one that was refused never began.
    return stage == "Panic" or (stage == "ResponseComplete" and not (is_stream and is_open))


def _what(target: Mapping[str, Any]) -> str:
    """Return ``resource/name/subresource in namespace``."""
    parts = [text_of(target, name) for name in ("resource", "name", "subresource")]
    path = "/".join(part for part in parts if part)
    namespace = text_of(target, "namespace")
    return f"{path} in {namespace}" if path and namespace else path
