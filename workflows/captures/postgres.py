"""What does a line of PostgreSQL's log say that somebody ran? The server's jsonlog, with pgaudit or log_statement.

Rules
-----
* One line of jsonlog is one message, whole, with its quotes and line breaks escaped; the formats stderr and csvlog
  spread a statement over several lines, where its text could pass for a line of somebody else's. So jsonlog alone.
* Who: the field ``user``, the name with which the session logged in. SET ROLE does not change it, and nothing that a
  client sends does; ``application_name`` is the client's own and is not looked at.
* A statement can write lines (RAISE LOG), but not pass for the server: those lines have a ``context``, and what pgaudit
  and the server write of a session has none. What a statement wrote is a note.
* With pgaudit one statement may give several lines: what it runs inside, and each part of a text of several statements
  with the whole text. A failure is a line of its own. Where log_statement is on beside pgaudit each statement comes
  twice: that is better than a source that is blind because its kind was named wrong.
* Rows are not asked for: with ``pgaudit.log_rows`` a statement is written at its end, and one that fails, or that a
  cursor had half read when its transaction failed, is not written.
* Not written by the server, and said to be (``Kind.HOLE``): what is sent into a COPY FROM, replication, and which
  function is called over the fast path (psql's lo_export), which passes pgaudit by: ``log_duration`` shows it.
"""

from __future__ import annotations

import contextlib
import json
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final

from workflows.captures.record import once
from workflows.captures.seam import Kind, Line, Trust, Unreadable
from workflows.engines import database_sql
from workflows.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Mapping

# What a session could be kept from being recorded with. All but a superuser are refused.
_RECORDING: Final = (
    r"(?:pgaudit\.\w+|log_(?:statement|duration|min_duration_statement|min_duration_sample|statement_sample_rate"
    r"|transaction_sample_rate|min_messages|min_error_statement|error_verbosity|connections|disconnections|destination"
    r"|directory|filename|file_mode|rotation_age|rotation_size|truncate_on_rotation|timezone|parameter_max_length"
    r"|parameter_max_length_on_error)|logging_collector|lc_messages|(?:shared|session)_preload_libraries)"
)
_NAMES_RECORDING: Final = re.compile(rf"(?i)(?<![\w.]){_RECORDING}(?!\w)")
_CHANGES: Final = re.compile(r"(?i)\b(?:set|reset|set_config|alter)\b")
_REFUSED: Final = re.compile(rf'permission denied to set parameter "{_RECORDING}"', re.IGNORECASE)

_SESSION: Final = re.compile(r"[0-9a-f]{1,16}\.[0-9a-f]{1,8}", re.ASCII)
_MOMENT: Final = re.compile(
    r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d{1,6})?) (?:UTC|GMT|([+-])(\d\d)(?::?(\d\d))?)", re.ASCII
)
# The possessive groups keep a torn line of a megabyte from being tried in every possible way.
_VALUE: Final = r'("(?:[^"]++|"")*+"|[^",\r\n]*+)'
# Statement, part, class, command, object type, object, text, parameters; and rows, where they are asked for.
_AUDIT: Final = re.compile(
    r'AUDIT: (?:SESSION|OBJECT),\d+,\d+,([^",\r\n]*+),([^",\r\n]*+),[^",\r\n]*+,'
    rf"{_VALUE},{_VALUE},{_VALUE}(?:,(\d{{1,18}}))?",
    re.ASCII,
)
_AUDIT_BEGUN: Final = re.compile(
    rf'AUDIT: (?:SESSION|OBJECT),\d+,\d+,[^",\r\n]*+,[^",\r\n]*+,[^",\r\n]*+,(?:{_VALUE[1:-1]}),"?(.*)',
    re.ASCII | re.DOTALL,
)
# What the ingest endpoint puts behind the beginning of a line that is too long to be sent (bot/ingest.py).
_CUT: Final = re.compile(rb" \xe2\x80\xa6 cut: (\d{1,18}) bytes, sha256 [0-9a-f]{64}\Z")
_CUT_WORDS: Final = 200
_TORN: Final = 7
_ODD: Final = re.compile(r"\\u(?:0000|[dD])", re.ASCII)
_DURATION: Final = re.compile(r"duration: [0-9.]+ ms")
_LOGGED: Final = re.compile(r"(?:duration: [0-9.]+ ms  )?(?:statement|execute [^:]*): (.*)", re.DOTALL)
_FAST_CALL: Final = re.compile(r"(?:duration: [0-9.]+ ms  )?(fastpath function call: .*)", re.DOTALL)
_STANDARD: Final = re.compile(r"(?i)\bstd(?:in|out)\b")
_COPIES: Final = re.compile(r"(?i)\bcopy\b")
_TO: Final = re.compile(r"(?i)\bto\s*\Z")

_COPY_HOLE: Final = "what was sent into this COPY is not recorded"
_REPLICATION_HOLE: Final = "a replication connection: what it reads, which may be the whole cluster, is not recorded"
_FAST_HOLE: Final = "a function was called over the fast path (as for large objects): which one is not recorded"


class Postgres:
    """PostgreSQL 15 and newer, whose jsonlog is read."""

    trust: Trust = Trust.ENFORCED

    def read(self, raw: bytes) -> tuple[Line, ...]:
        """Return what the line says of a session; nothing for one of no user's. Raises Unreadable."""
        cut = _CUT.search(raw, max(0, len(raw) - _CUT_WORDS))
        record = _record(raw) if cut is None else _beginning(raw[: cut.start()])
        if "user" not in record:
            return ()
        return _Reader(record).lines() if cut is None else _Reader(record).beginning(int(cut[1]))

    def setup(self, options: Mapping[str, str]) -> str:
        """Return the server's settings and the roles'. ``source``: its name in the policy.

        ``manager``: the role with which Vault makes logins.

        ``role``: an account that exists and is lent. Raises Invalid for what is no name of a role.
        """
        manager = options.get("manager", "bgmgr")
        role = options.get("role", "the_account")
        for key, name in (("manager", manager), ("role", role)):
            if not database_sql.IDENTIFIER.fullmatch(name):
                sentence = f"{name!r} is not the name of a role of your own."
                raise Invalid(sentence, fields={key: sentence})
        text = _SETUP.replace("{manager}", manager).replace("{source}", options.get("source", "orders-pg"))
        text = text.replace("{role}", role)
        text = text.replace("{grants}", "\n".join(database_sql.audit_grants("pgaudit", manager)))
        settings = "\n".join(f"{line};" for line in database_sql.audit_settings("pgaudit", role))
        return text.replace("{settings}", settings)


class _Reader:
    """One line of a session."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self._message = _text(record, "message")
        self._context = _text(record, "context", "")
        self._statement = _text(record, "statement", "")
        self._detail = _text(record, "detail", "")
        self._severity = _text(record, "error_severity")
        self._code = _text(record, "state_code", "")
        self._doing = _text(record, "ps", "")
        self._database = _text(record, "dbname", "") or None
        self._identity = _text(record, "user")
        self._session = _text(record, "session_id")
        self._number = record.get("line_num")
        if not _SESSION.fullmatch(self._session) or type(self._number) is not int or self._number < 1:
            raise Unreadable("no session or no number")
        self._at = _moment(_text(record, "timestamp"))

    def lines(self) -> tuple[Line, ...]:
        if self._severity in {"ERROR", "FATAL", "PANIC"}:
            return self._failure()
        if self._severity != "LOG" or self._context or self._statement:
            return (self._line(Kind.NOTE, self._message),)  # a notice, or what a statement wrote
        if self._message.startswith("AUDIT: "):
            return self._audit()
        return self._of_the_server()

    def beginning(self, size: int) -> tuple[Line, ...]:
        """Return what the beginning of a line of ``size`` bytes says.

        Attack: a statement writes a line (RAISE LOG) so long that its context is cut off. So it may be a statement, and
        a failure, and nothing of a session's begin and end.
        """
        if self._severity in {"ERROR", "FATAL", "PANIC"}:
            return self._failure()
        found = _AUDIT_BEGUN.match(self._message) or _LOGGED.match(self._message)
        if self._severity != "LOG" or self._context or self._statement or found is None:
            return (self._line(Kind.NOTE, self._message),)
        said = found[1].replace('""', '"')
        text = f"{said}\n-- the beginning of a line of {size} bytes"
        return self._run(text, is_copied_in=_is_copied_in(text))

    def _line(self, kind: Kind, text: str, *, result: str | None = None, rows: int | None = None) -> Line:
        return Line(
            kind,
            self._identity,
            self._at,
            text,
            session=self._session,
            number=self._number,
            database=self._database,
            result=result,
            rows=rows,
        )

    def _failure(self) -> tuple[Line, ...]:
        """Of a statement that is refused nothing else may be written: not what pgaudit would write as it begins."""
        if self._statement:
            lines = [self._line(Kind.STATEMENT, self._statement, result=self._code or None)]
        elif self._severity == "FATAL" and self._doing == "startup":
            # Let in, then turned away (its options, a database that is no more): no "disconnection" follows.
            lines = [self._line(Kind.CLOSED, self._message, result=self._code or None)]
        else:
            lines = [self._line(Kind.NOTE, self._message, result=self._code or None)]
        if _REFUSED.match(self._message):
            # By its message, not by its text: that may have been put together by a function.
            lines.append(self._line(Kind.STOPPED, f"refused: {self._message}", result=self._code or None))
        return tuple(lines)

    def _audit(self) -> tuple[Line, ...]:
        """``SESSION,statement,part,class,command,object type,object,text,parameters``, as CSV."""
        found = _AUDIT.fullmatch(self._message)
        if found is None:
            raise Unreadable("what pgaudit wrote is not whole")
        group, command, name, text, parameters, rows = found.groups()
        if (group, command) == ("FUNCTION", "EXECUTE"):
            # Its text is that of the statement which called it, and is on record.
            return (self._line(Kind.NOTE, f"function {_plain(name)}"),)
        text = _plain(text)
        if parameters != "<none>":
            text = f"{text}\n-- with: {_in_one_line(_plain(parameters))}"
        return self._run(
            text, rows=None if rows is None else int(rows), is_copied_in=(group, command) == ("WRITE", "COPY")
        )

    def _of_the_server(self) -> tuple[Line, ...]:
        message = self._message
        if message.startswith("connection authorized:"):
            return (self._line(Kind.OPENED, message),)
        if message.startswith("replication connection authorized:"):
            return (self._line(Kind.OPENED, message), self._line(Kind.HOLE, _REPLICATION_HOLE))
        if message.startswith("disconnection:"):
            return (self._line(Kind.CLOSED, message),)
        if _DURATION.fullmatch(message) and self._doing == "<FASTPATH>":
            return (self._line(Kind.HOLE, _FAST_HOLE),)
        if found := _FAST_CALL.fullmatch(message):
            return (self._line(Kind.CALL, found[1]),)
        if found := _LOGGED.fullmatch(message):
            text = f"{found[1]}\n-- {_in_one_line(self._detail)}" if self._detail else found[1]
            return self._run(text, is_copied_in=_is_copied_in(found[1]))
        if message.startswith("received replication command:"):
            return (self._line(Kind.CALL, message),)
        return (self._line(Kind.NOTE, message),)

    def _run(self, text: str, *, rows: int | None = None, is_copied_in: bool = False) -> tuple[Line, ...]:
        lines = [self._line(Kind.STATEMENT, text, rows=rows)]
        if _CHANGES.search(text) and _NAMES_RECORDING.search(text):
            lines.append(self._line(Kind.STOPPED, text))
        if is_copied_in:
            lines.append(self._line(Kind.HOLE, _COPY_HOLE))
        return tuple(lines)


def _record(raw: bytes) -> dict[str, Any]:
    """Return the line's fields. Bytes that are no UTF-8 (a database in another encoding) are replaced."""
    text = raw.decode("utf-8", "replace")
    try:
        record = _DECODER.decode(text)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not record.keys() >= _ALWAYS:
        raise Unreadable("not a line of PostgreSQL's jsonlog")
    # PostgreSQL has neither a NUL nor half a character in a text.
    if _ODD.search(text) and any(isinstance(value, str) and _is_torn(value) for value in record.values()):
        raise Unreadable("a NUL, or half a character")
    return record


def _beginning(raw: bytes) -> dict[str, Any]:
    """Return the fields of a line whose end was cut off within a text, the last of them torn."""
    for torn in range(_TORN):  # up to a whole escape, and what is left of a letter
        with contextlib.suppress(Unreadable):
            return _record(raw[: len(raw) - torn] + b'"}')
    raise Unreadable("the beginning of a line, and not of a text in it")


def _never(word: str) -> None:
    raise ValueError(word)


_DECODER: Final = json.JSONDecoder(object_pairs_hook=once, parse_constant=_never)
_ALWAYS: Final = frozenset({"timestamp", "session_id", "line_num", "error_severity"})


def _text(record: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = record.get(key, default)
    if not isinstance(value, str):
        raise Unreadable(f"no {key}")
    return value


def _is_torn(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return True
    return "\0" in value


def _moment(text: str) -> datetime:
    found = _MOMENT.fullmatch(text)
    if found is None:
        raise Unreadable("its time is not in UTC: set log_timezone")
    zone = UTC
    if found[2]:
        east = timedelta(hours=int(found[3]), minutes=int(found[4] or 0))
        if east >= timedelta(days=1):
            raise Unreadable("no time zone")
        zone = timezone(east if found[2] == "+" else -east)
    try:
        return datetime.fromisoformat(found[1]).replace(tzinfo=zone).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Unreadable("no time") from None


def _plain(field: str) -> str:
    """Return what a field of a CSV record says."""
    return field[1:-1].replace('""', '"') if field.startswith('"') else field


def _in_one_line(text: str) -> str:
    """Return the text for a comment, which a line break in a value must not end."""
    return text.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n")


def _is_copied_in(text: str) -> bool:
    """Whether a text may hold a COPY from the client. (``FROM STDOUT`` is one: PostgreSQL takes it for a slip.)"""
    if not _COPIES.search(text):
        return False
    return any(not _TO.search(text, max(0, found.start() - 200), found.start()) for found in _STANDARD.finditer(text))


_SETUP: Final = """\
# The source {source}. Beside the server, for as long as it runs:
#   breakglass capture tail --source {source} --to https://… '/var/lib/postgresql/15/main/log/*.json'

# 1. postgresql.conf; then restart the server. (Debian: apt-get install postgresql-15-pgaudit)
shared_preload_libraries = 'pgaudit'   # beside what stands there already
logging_collector = on
log_destination = 'jsonlog'            # beside others, if you like; the file to be read ends in .json
log_timezone = 'UTC'
lc_messages = 'C'                      # the server's own messages are read in English
log_connections = on
log_disconnections = on
log_min_messages = 'warning'           # or lower
update_process_title = on              # shows calls over the fast path

-- 2. As a superuser, so that Vault can set its logins so, and nobody else pays (PostgreSQL 15 or newer). {manager} is
--    the level's "manager"; with its own name "breakglass vault policy" prints these lines, too:
{grants}

-- 3. In the policy, at each level of the engine "database":  audit: pgaudit
--    (Without the extension pgaudit:  audit: log_statement  — which does not see what functions and DO blocks run.)
--    Then: breakglass vault apply

-- 4. An account that exists and is lent (engine "static"): once, as a superuser, with its name for {role}:
{settings}

-- 5. What this does not record, and the bot says so when it happens: what is sent into COPY … FROM STDIN; what a
--    replication connection reads; which function is called over the protocol's fast path (large objects).
--    A superuser can switch recording off unseen, and so can whoever may set these parameters: give a level's group
--    neither SUPERUSER, REPLICATION nor a right to SET them. "breakglass check" looks.
"""
