"""What does a line of MariaDB's audit log say that somebody ran? The plugin ``server_audit``, written to a file.

Rules
-----
* The general log is not read. Its lines have no user, and a statement's own line breaks stand in it as they are: who
  may run SELECT can write a line of somebody else's.
* Of the plugin's events only QUERY is read. A line of another one is unreadable and says what to set: a name of a user
  who was refused, and of a table, stand in those with their line breaks, so that a stranger who was never let in could
  write a whole line.
* In a QUERY the text is escaped, and so found from the line's end. What stands before it is taken by its place from the
  left, up to the client: nothing of that is the session's own choice.
* The time has no zone. The server's is UTC, by what is to be set up.
* Lines have no number within a session, and no event tells that one began or ended. A connection's number begins anew
  with the server.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from workflows.captures.seam import Kind, Line, Trust, Unreadable

if TYPE_CHECKING:
    from collections.abc import Mapping

_HEAD: Final = re.compile(
    r"(?a)(\d{8} \d\d:\d\d:\d\d),[^,\x00]{0,255},([^,\x00\\]{0,128}),[^,\x00]{0,255},"
    r"(\d{1,20}),(\d{1,20}),([A-Z_]{1,20}),"
)
_TAIL: Final = re.compile(r"(?a)',(\d{1,9})\r?\n?\Z")
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", "0": "\0"}
_DENIED: Final = "Access denied"  # stands in the database's place after a refusal
_RECORDING: Final = re.compile(
    r"(?ai)\bset\b.{0,200}\b(?:server_audit_\w+|general_log\w*|sql_log_off|log_output|init_connect)\b"
    r"|\buninstall\s+(?:plugin|soname)\b.{0,100}\bserver_audit\b",
    re.DOTALL,
)


class MariaDB:
    """Stateless: what a line says depends on the line alone."""

    trust: Trust = Trust.ENFORCED

    def read(self, raw: bytes) -> tuple[Line, ...]:
        """Return the statement of a QUERY. Raises Unreadable for all else."""
        text = raw.decode("utf-8", "backslashreplace")
        head = _HEAD.match(text)
        if head is None:
            raise Unreadable("Not a line of server_audit.")
        if head[5] != "QUERY":
            raise Unreadable("An event that can be forged: server_audit_events must be QUERY.")
        tail = _TAIL.search(text, max(head.end(), len(text) - 14))
        if tail is None:
            raise Unreadable("A line of server_audit that is not whole.")
        start = _opening(text, head.end(), tail.start())
        database = text[head.end() : start - 2]
        is_denied = database.startswith(_DENIED)
        # Two lines that lost their break would be one of the first one's.
        if text[start - 2 : start] != ",'" or "\n" in database or ",QUERY," in database:
            raise Unreadable("A line of server_audit that is not whole.")
        if "'" in database and not is_denied:
            raise Unreadable("A line of server_audit that is not whole.")
        line = Line(
            Kind.STATEMENT,
            head[2],
            _moment(head[1]),
            _ESCAPED.sub(lambda one: _ESCAPES.get(one[1], one[1]), text[start : tail.start()]),
            session=head[3],
            database=None if is_denied else database or None,
            result="ok" if tail[1] == "0" else tail[1],
        )
        if not _RECORDING.search(line.text):
            return (line,)
        stopped = Line(Kind.STOPPED, line.identity, line.at, line.text, session=line.session, result=line.result)
        return line, stopped

    def setup(self, options: Mapping[str, str]) -> str:
        """Return the server's settings. Options: ``file`` (the log's path), ``source`` (the name in the policy)."""
        file = options.get("file", "/var/log/mysql/breakglass-audit.log")
        source = options.get("source", "mariadb")
        return "\n".join(
            [
                "# 1. In the server's configuration; then restart it. Debian has the plugin in mariadb-server.",
                "[mariadb]",
                "plugin_load_add = server_audit",
                "server_audit = FORCE_PLUS_PERMANENT   # nobody can unload it",
                "server_audit_logging = ON",
                "server_audit_output_type = file",
                f"server_audit_file_path = {file}",
                "# QUERY alone: what stands in the other events can be forged.",
                "server_audit_events = QUERY",
                "# A longer statement is cut without a word. The plugin's own limit is 1024.",
                "server_audit_query_log_limit = 1048576",
                "server_audit_file_rotate_size = 1000000000",
                "",
                "# 2. The log's times have no zone: run the server in UTC.",
                "#    systemctl edit mariadb.service",
                "[Service]",
                "Environment=TZ=UTC",
                "",
                "# 3. No login of a level may have SUPER: it could set server_audit_logging = OFF.",
                "",
                "# 4. Reading it:",
                f"breakglass capture tail --source {source} {file}",
                "",
            ]
        )


def _opening(text: str, first: int, last: int) -> int:
    """Return where the text begins that ends at ``last``: behind the last quote that is not escaped."""
    at = last
    while (at := text.rfind("'", first, at)) >= 0:
        before = at
        while before > first and text[before - 1] == "\\":
            before -= 1
        if (at - before) % 2 == 0:
            return at + 1
        at = max(before, first)
    raise Unreadable("A line of server_audit that is not whole.")


def _moment(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y%m%d %H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        raise Unreadable("A line of server_audit with no time.") from None
