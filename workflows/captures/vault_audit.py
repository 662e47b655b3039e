"""What does Vault's audit log say of what was done with a grant's token, and of who else had a credential issued?

The file audit device of OpenBao and of HashiCorp Vault. Vault writes a line before a call and one with its answer, and
answers nobody while it cannot write: the login cannot switch that off.

Rules
-----
* Of the two lines of a call the second counts, for it has the result; the first says nothing more.
* A token's accessor says whose a line is. Metadata is only what its maker wrote into it, so a device that hides the
  accessors (``hmac_accessor``, which is on unless it is switched off) is of no use: its lines are unreadable.
* A call of another token is told, too, when it may have made a credential: whether it is one of a level's, only the
  policy knows. What the calls of Vault's own house say (``sys/``, and ``auth/`` but for new tokens) is not told.
* Values are Vault's hashes. Nothing of them is read.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from workflows.captures.record import part, read_object, text_of, time_of
from workflows.captures.seam import Kind, Line, Trust, Unreadable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

_MOST_WORD: Final = 2_000  # characters of a path
_HIDDEN: Final = "hmac-"
_MAKING: Final = frozenset({"create", "read", "update"})
_NEW_TOKEN: Final = "auth/token/create"  # noqa: S105 - a path
_GIVEN: Final = ("data", "auth", "wrap_info")  # what an answer has that gave something
_ANOTHER: Final = "another token was made with it: what is done with that one is under no grant"


class VaultAudit:
    """Stateless: what a line says depends on the line alone."""

    trust = Trust.ENFORCED

    def read(self, raw: bytes) -> tuple[Line, ...]:
        """Return the call that the line tells of, if it is ours or could have made a credential."""
        record = read_object(raw)
        kind = record.get("type")
        if kind == "request":
            return ()
        if kind != "response":
            raise Unreadable("It is neither a call nor an answer.")
        auth, request, response = (part(record, name) for name in ("auth", "request", "response"))
        error = text_of(record, "error")
        operation, path = text_of(request, "operation"), text_of(request, "path")
        if not operation or not path:
            raise Unreadable("It does not say what was called.")
        made = part(response, "auth")
        result = _said(error) if error else "wrapped" if response.get("wrap_info") else "ok"
        call = _Call(time_of(record, "time"), f"{operation} {path}"[:_MOST_WORD], result)
        maker = _named(auth)
        lines: tuple[Line, ...] = ()
        if maker is not None:
            lines = (_line(call, auth),)
            if made and not error:
                lines += (_line(call, auth, Kind.HOLE, _ANOTHER),)
        elif not error and _may_make(operation, path) and any(response.get(name) for name in _GIVEN):
            # What it was called with is nobody's of ours: of a new token its own accessor counts, else the caller's.
            lines = (_line(call, made if path.startswith(_NEW_TOKEN) else auth),)
        return lines

    def setup(self, options: Mapping[str, str]) -> str:
        """Return the stanza of the server's configuration, and how its file is read and rotated.

        Options: ``file`` (the log's path), ``source`` (the name in the policy).
        """
        file = options.get("file", "/var/log/openbao/breakglass-audit.json")
        source = options.get("source", "vault")
        return "\n".join(
            [
                "# 1. In the server's configuration, on every node; then restart it. OpenBao takes no device over its",
                "#    API. Vault answers nobody while it cannot write here: give it room.",
                'audit "file" "breakglass" {',
                "  options {",
                f"    file_path     = {json.dumps(file)}",
                '    mode          = "0600"',
                "    # Accessors in clear, or nobody could say whose a line is. An accessor opens nothing.",
                '    hmac_accessor = "false"',
                "    # Values stay hashed: never set log_raw.",
                "  }",
                "}",
                "# HashiCorp Vault, which takes it over the API:",
                f"#   vault audit enable -path=breakglass file file_path={file} mode=0600 hmac_accessor=false",
                "",
                "# 2. Reading it, on every node, as root or as the server's own account:",
                f"breakglass capture tail --source {source} {file}",
                "",
                "# 3. Rotation: rename, then have the server open a new one.",
                "cat >/etc/logrotate.d/breakglass-audit <<'END'",
                f"{file} {{",
                "  weekly",
                "  rotate 8",
                "  missingok",
                "  nocompress",
                "  postrotate",
                "    systemctl kill -s HUP openbao.service || systemctl kill -s HUP vault.service",
                "  endscript",
                "}",
                "END",
            ]
        )


def _said(error: str) -> str:
    """Return the last of Vault's words: it writes a list with a headline, such as "1 error occurred"."""
    return error.strip().splitlines()[-1].strip().removeprefix("* ")[:200] or "error"


def _may_make(operation: str, path: str) -> bool:
    if operation not in _MAKING:
        return False
    return path.startswith(_NEW_TOKEN) or not path.startswith(("sys/", "auth/", "identity/"))


@dataclass(frozen=True, slots=True)
class _Call:
    at: datetime
    text: str
    result: str


def _named(auth: Mapping[str, Any]) -> str | None:
    """Return the request, or the trial, that a token was made for; as whoever made it wrote."""
    metadata = part(auth, "metadata")
    return text_of(metadata, "request") or text_of(metadata, "check")


def _line(call: _Call, auth: Mapping[str, Any], kind: Kind = Kind.CALL, text: str | None = None) -> Line:
    accessor, named = text_of(auth, "accessor") or "", _named(auth)
    if accessor.startswith(_HIDDEN):
        raise Unreadable("The audit device hides the accessors: set hmac_accessor to false.")
    result = call.result if text is None else None
    # Of what is stored the accessor is no part, but for a stranger's: with it security ends that token.
    session = hashlib.sha256(accessor.encode()).hexdigest()[:16] if accessor else None
    return Line(kind, accessor, call.at, text or call.text, session=session, result=result, request=named)
