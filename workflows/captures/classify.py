"""Of what kind is a statement, a command or a call, and what about it is dangerous?

Rules
-----
* Nothing is guessed: what cannot be read is ``unknown``. Several statements in one text count as the worst of them.
* SQL is read by its first word where that says all, else by sqlglot. Values are taken out first, so that the same
  statement with other values is looked up instead of read again: sqlglot takes some tenths of a millisecond.
* No text may keep us busy or stop us: what is too long, once its values and repeated rows are out, or nested too
  deep, is unknown and said to be so.
* A danger is a mark for people, not a wall: rights at the target are.
"""

from __future__ import annotations

import logging
import re
import shlex
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import sqlglot
from sqlglot import exp

from workflows.captures.seam import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# It repeats in its warnings what it could not read: the words of a statement, in a log file.
logging.getLogger("sqlglot").setLevel(logging.CRITICAL)


class Class(StrEnum):
    """Of what kind something that was run is."""

    READ = "read"
    WRITE = "write"
    DEFINITION = "definition"
    PRIVILEGE = "privilege"
    EXPORT = "export"
    SESSION = "session"
    PROGRAM = "program"
    CALL = "call"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Classified:
    """Of what kind it is, and what is dangerous about it, in a few words."""

    cls: Class
    danger: str | None = None


# The worse, the later.
_ORDER: Final = (Class.SESSION, Class.READ, Class.CALL, Class.PROGRAM, Class.UNKNOWN, Class.WRITE, Class.EXPORT)
_RANK: Final = {cls: rank for rank, cls in enumerate((*_ORDER, Class.DEFINITION, Class.PRIVILEGE))}
_UNKNOWN: Final = Classified(Class.UNKNOWN)
_TOO_LONG: Final = Classified(Class.UNKNOWN, "too long to be judged")
_TOO_DEEP: Final = Classified(Class.UNKNOWN, "nested too deep to be judged")

_LONGEST: Final = 16_000  # characters of one statement without its values
_LONGEST_KEPT: Final = 2_000  # of one that is remembered
_MOST_STATEMENTS: Final = 500  # in one text
_DEEPEST: Final = 60  # parentheses; sqlglot calls itself for each

# --- SQL: values out, statements apart -------------------------------------------------------------------------------

_POSTGRES: Final = re.compile(
    # Where none of these stands, none of the rest needs to be tried: it is asked at every character of a flood.
    r"(?=['\"$\d/-]|[eEbBxXnN]'|[uU]&')(?:"
    r"(?P<c>--[^\n]*+|/\*(?:[^*/]++|\*(?!/)|/(?!\*))*+\*/)"
    r"|(?P<v>[eE]'(?:[^'\\]++|''|\\.)*+'?|(?:[bBxXnN]|[uU]&)?'(?:[^']++|'')*+'?)"
    r"|(?P<d>\$(?P<tag>(?:[A-Za-z_]\w*)?)\$)"
    r"|(?P<i>\"(?:[^\"]++|\"\")*+\"?)"
    r"|(?P<n>(?<![\w$.])\d[\w.]*+))",
    re.DOTALL,
)
_MYSQL: Final = re.compile(
    r"(?P<c>--(?=\s|\Z)[^\n]*+|#[^\n]*+|/\*(?!M?!)(?:[^*]++|\*(?!/))*+(?:\*/|\Z))"
    r"|(?P<v>(?:_\w+\s?|[bBxXnN])?'(?:[^'\\]++|''|\\.)*+'?|\"(?:[^\"\\]++|\"\"|\\.)*+\"?)"
    r"|(?P<i>`(?:[^`]++|``)*+`?)"
    r"|(?P<n>(?<![\w$.@])\d[\w.]*+)",
    re.DOTALL,
)
_NESTED_COMMENT: Final = re.compile(r"/\*|\*/")
_RUNS_IN_MYSQL: Final = re.compile(r"/\*M?!\d*|\*/")  # a comment that MariaDB and MySQL execute
_ROWS: Final = re.compile(r"(\([^()]{0,2000}\))(?:\s*+,\s*+\1)++")
_SAME: Final = re.compile(r"('\?'|\b0|\$\d+|\bNULL)(?:\s*+,\s*+(?:'\?'|0|\$\d+|NULL)(?![\w.]))++")
_STATEMENTS: Final = re.compile(r"(?:[^;\"`]++|\"(?:[^\"]++|\"\")*+\"?|`[^`]*+`?)++")
_SPACES: Final = re.compile(r"\s+")


def _plain(text: str, dialect: str) -> str:
    """Return a text of SQL without its values and comments."""
    is_mysql = dialect == "mysql"
    rule = _MYSQL if is_mysql else _POSTGRES
    parts: list[str] = []
    at = 0
    while (found := rule.search(text, at)) is not None:
        parts.append(text[at : found.start()])
        kind, at = found.lastgroup, found.end()
        if kind == "c":
            parts.append(" ")
        elif kind == "v":
            parts.append("'%'" if found[0] == "'%'" else "'?'")
        elif kind in {"d", "tag"}:
            end = text.find(found[0], at)
            parts.append("'?'")
            at = len(text) if end < 0 else end + len(found[0])
        elif kind == "i":
            parts.append(found[0])
        else:
            parts.append("0")
    parts.append(text[at:])
    plain = "".join(parts)
    if is_mysql:
        plain = _RUNS_IN_MYSQL.sub(" ", plain)
    elif "/*" in plain:
        plain = _without_nested(plain)  # PostgreSQL's comments nest
    plain = _SPACES.sub(" ", plain)
    return _ROWS.sub(r"\1", _SAME.sub(r"\1", plain))


def _without_nested(text: str) -> str:
    parts = []
    depth = at = 0
    for found in _NESTED_COMMENT.finditer(text):
        if depth == 0:
            parts.append(text[at : found.start()])
        depth = max(0, depth + (1 if found[0] == "/*" else -1))
        at = found.end()
    return " ".join([*parts, text[at:] if depth == 0 else ""])


# --- SQL: what a statement is ----------------------------------------------------------------------------------------

_FIRST: Final = {
    **dict.fromkeys(("show", "describe", "desc", "fetch", "move", "help", "table"), Class.READ),
    **dict.fromkeys(("set", "reset", "discard", "begin", "start", "commit", "end", "rollback", "abort"), Class.SESSION),
    **dict.fromkeys(("savepoint", "release", "listen", "unlisten", "notify", "lock", "unlock", "use"), Class.SESSION),
    **dict.fromkeys(("deallocate", "close", "checkpoint", "xa"), Class.SESSION),
    **dict.fromkeys(
        ("create", "alter", "drop", "comment", "reindex", "refresh", "cluster", "rename"), Class.DEFINITION
    ),
    **dict.fromkeys(("security", "import", "vacuum", "analyze", "optimize", "repair", "install"), Class.DEFINITION),
    **dict.fromkeys(("uninstall", "flush", "purge", "change"), Class.DEFINITION),
    **dict.fromkeys(("grant", "revoke", "reassign"), Class.PRIVILEGE),
    **dict.fromkeys(("truncate", "load", "replace", "kill"), Class.WRITE),
}
_READ_BY_SQLGLOT: Final = frozenset({"select", "with", "insert", "update", "delete", "merge", "values", "replace"})
_WORD: Final = re.compile(r"[\s(]*([A-Za-z]+)")
_EXPLAIN: Final = re.compile(
    r"(?ai)\s*explain\s+(?P<options>(?:\([^()]*\)|(?:analyze|analyse|verbose|extended|partitions|format\s*=\s*\w+)\b|\s+)*)"
)
_PREPARE: Final = re.compile(r"(?ai)\s*prepare\s+\S+(?:\s*\([^()]*\))?\s+as\s+")
_DECLARE: Final = re.compile(r"(?ai)\s*declare\s+\S+\s+(?:\w+\s+){0,6}?cursor\s+(?:with(?:out)?\s+hold\s+)?for\s+")
_COPY: Final = re.compile(r"(?ai)\s*copy\b.*?(?:\)|\s|\")(to|from)\s+(program|stdin|stdout|'|\$)", re.DOTALL)
_OUTFILE: Final = re.compile(r"(?ai)\binto\s+(?:outfile|dumpfile)\b")
# The first that fits is said. (what the statement must look like, of what kind it is then, the danger)
_LOOKS: Final = tuple(
    (re.compile(rf"(?ai)\s*{rule}"), cls, danger)
    for rule, cls, danger in (
        (
            r"(?:create|alter|drop)\s+(?:or\s+replace\s+)?(?:role|user|group)\s+(?!mapping\b)",
            Class.PRIVILEGE,
            "login or role changed",
        ),
        (r"grant\b", Class.PRIVILEGE, "rights given"),
        (r"reassign\s+owned", Class.PRIVILEGE, "owner changed"),
        (r"drop\s+owned", Class.DEFINITION, "all that a role owns dropped"),
        (r"alter\s+default\s+privileges", Class.PRIVILEGE, "rights given"),
        (r"alter\b.{0,300}\bowner\s+to\b", Class.PRIVILEGE, "owner changed"),
        (
            r"alter\b.{0,300}\b(?:disable|no\s+force)\s+row\s+level\s+security",
            Class.PRIVILEGE,
            "row security switched off",
        ),
        (r"(?:drop|alter)\s+policy\b", Class.PRIVILEGE, "row security changed"),
        (r"alter\b.{0,300}\bdisable\s+trigger", Class.DEFINITION, "triggers switched off"),
        (r"drop\s+database|drop\s+schema", Class.DEFINITION, "database or schema dropped"),
        (r"drop\s+(?:temporary\s+)?(?:table|view|materialized|sequence)|drop\s+\w+", Class.DEFINITION, "dropped"),
        (r"alter\b.{0,300}\bdrop\s+(?:column\b|partition\b)", Class.DEFINITION, "column or partition dropped"),
        (r"truncate\b", Class.WRITE, "table emptied"),
        (r"alter\s+system\b|set\s+(?:global|persist)\b", Class.DEFINITION, "server setting changed"),
        (r"set\s+password\b", Class.PRIVILEGE, "login or role changed"),
        (r"set\s+(?:session\s+|local\s+)?session_replication_role\b", Class.SESSION, "triggers switched off"),
        (
            r"set\s+(?:session\s+|local\s+)?(?:role|session\s+authorization)\b(?!\s+(?:none|default))",
            Class.SESSION,
            None,
        ),
        (
            r"create\s+(?:extension|server|subscription|publication|foreign\s+data)",
            Class.DEFINITION,
            "way to another server or library",
        ),
        (
            r"create\s+(?:or\s+replace\s+)?(?:event\s+trigger|trigger|event|rule)\b",
            Class.DEFINITION,
            "runs after the access has ended",
        ),
        (
            r"create\s+(?:or\s+replace\s+)?(?:\w+\s+)?(?:function|procedure)\b.*\bsecurity\s+definer\b",
            Class.DEFINITION,
            "runs with its owner's rights",
        ),
        (r"load\s+data\b", Class.WRITE, None),
        (r"install\b", Class.DEFINITION, "way to another server or library"),
        (r"purge\b", Class.DEFINITION, "server's logs removed"),
        (r"kill\b", Class.WRITE, "sessions ended"),
        (r"change\s+master", Class.DEFINITION, "replication changed"),
    )
)
# Functions by which a SELECT does more than read.
_FUNCTIONS: Final = {
    **dict.fromkeys(
        ("pg_read_file", "pg_read_binary_file", "pg_ls_dir", "load_file", "lo_import"),
        (Class.READ, "server's files read"),
    ),
    **dict.fromkeys(("lo_export", "pg_file_write"), (Class.EXPORT, "bulk export")),
    **dict.fromkeys(("pg_terminate_backend", "pg_cancel_backend"), (Class.WRITE, "sessions ended")),
    **dict.fromkeys(("dblink", "dblink_exec", "dblink_connect"), (Class.UNKNOWN, "statement run elsewhere")),
    **dict.fromkeys(("query_to_xml", "database_to_xml", "table_to_xml"), (Class.UNKNOWN, "statement within a value")),
    **dict.fromkeys(("sys_exec", "sys_eval"), (Class.UNKNOWN, "program started by the server")),
    **dict.fromkeys(("nextval", "setval", "lo_unlink", "lo_put", "lo_from_bytea", "pg_notify"), (Class.WRITE, None)),
    **dict.fromkeys(
        ("pg_reload_conf", "pg_rotate_logfile", "pg_promote"), (Class.DEFINITION, "server setting changed")
    ),
}


def classify(kind: Kind, text: str, argv: tuple[str, ...] = (), dialect: str = "postgres") -> Classified:
    """Judge what was run, before anything is taken out of it. ``dialect``: ``postgres`` or ``mysql``."""
    if kind is Kind.EXEC:
        return _command(argv or _words(text), dialect)
    if kind is Kind.CALL:
        return _call(text)
    return _sql(text, dialect)


def _sql(text: str, dialect: str) -> Classified:
    found = []
    for number, one in enumerate(_STATEMENTS.findall(_plain(text, dialect))):
        if number >= _MOST_STATEMENTS:
            found.append(_TOO_LONG)
            break
        if statement := one.strip():
            judge = _kept if len(statement) <= _LONGEST_KEPT else _judged
            try:
                found.append(judge(statement, dialect))
            except RecursionError:
                found.append(_TOO_DEEP)
    return _worst(found)


def _worst(found: Iterable[Classified]) -> Classified:
    """Return the worst kind of several, with the danger of the worst that has one."""
    ordered = sorted(found, key=lambda one: _RANK[one.cls], reverse=True)
    if not ordered:
        return _UNKNOWN
    return Classified(ordered[0].cls, next((one.danger for one in ordered if one.danger), None))


@lru_cache(maxsize=8_192)
def _kept(statement: str, dialect: str) -> Classified:
    return _judged(statement, dialect)


def _judged(statement: str, dialect: str) -> Classified:
    """Judge one statement without values."""
    if len(statement) > _LONGEST:
        return _TOO_LONG
    found = _WORD.match(statement)
    word = found[1].lower() if found else ""
    for opening in (_PREPARE, _DECLARE):
        if inner := opening.match(statement):
            return _judged(statement[inner.end() :], dialect)
    if word == "explain":
        explained = _EXPLAIN.match(statement)
        if explained is None or not re.search(r"(?i)analy[zs]e", explained["options"]):
            return Classified(Class.READ)
        return _judged(statement[explained.end() :], dialect)
    if dialect == "mysql" and word == "analyze" and not re.match(r"(?i)\s*analyze\s+(?:\w+\s+)?table", statement):
        return _judged(statement[found.end() if found else 0 :], dialect)  # MariaDB's ANALYZE runs what it analyzes
    if word == "copy":
        return _copy(statement)
    for rule, cls, danger in _LOOKS:
        if rule.match(statement):
            return Classified(cls, danger)
    if word in _READ_BY_SQLGLOT:
        return _read(statement, dialect)
    return Classified(_FIRST.get(word, Class.UNKNOWN))


def _copy(statement: str) -> Classified:
    found = _COPY.match(statement)
    if found is None:
        return _UNKNOWN
    if found[2].lower() == "program":
        return Classified(Class.EXPORT if found[1].lower() == "to" else Class.WRITE, "program started by the server")
    return Classified(Class.EXPORT, "bulk export") if found[1].lower() == "to" else Classified(Class.WRITE)


def _read(statement: str, dialect: str) -> Classified:
    if dialect == "mysql" and _OUTFILE.search(statement):
        return Classified(Class.EXPORT, "bulk export")
    if _depth(statement) > _DEEPEST:
        return _TOO_DEEP
    try:
        trees = sqlglot.parse(statement, read=dialect)
        return _worst(_parts(trees[0], statement)) if len(trees) == 1 and trees[0] is not None else _UNKNOWN
    except RecursionError:
        raise
    except Exception:  # noqa: BLE001 - Attack: whatever it stumbles over would stop the source
        return _UNKNOWN


def _depth(statement: str) -> int:
    depth = deepest = 0
    for char in re.findall(r"[()\[\]]", statement):
        depth += 1 if char in "([" else -1
        deepest = max(deepest, depth)
    return deepest


def _parts(tree: exp.Expr, statement: str) -> Iterable[Classified]:
    """Give what a statement does in all its parts: a WITH may write, a function may do anything."""
    if isinstance(tree, exp.Command):
        yield Classified(Class.WRITE) if statement.lower().startswith("replace") else _UNKNOWN
        return
    for node in tree.walk():
        if isinstance(node, exp.Delete):
            yield Classified(Class.WRITE, "whole-table delete" if _is_whole(node) else None)
        elif isinstance(node, exp.Update):
            yield Classified(Class.WRITE, "whole-table update" if _is_whole(node) else None)
        elif isinstance(node, (exp.Insert, exp.Merge)):
            yield Classified(Class.WRITE)
        elif isinstance(node, exp.Into):
            yield Classified(Class.DEFINITION if node.this is not None else Class.READ)  # SELECT … INTO a new table
        elif isinstance(node, (exp.Query, exp.Values)):
            yield Classified(Class.READ)
        elif isinstance(node, exp.Func):
            name = (node.name if isinstance(node, exp.Anonymous) else node.sql_name()).lower()
            if name in _FUNCTIONS:
                yield Classified(*_FUNCTIONS[name])


def _is_whole(node: exp.Expr) -> bool:
    """Whether nothing keeps a DELETE or UPDATE to a part of its table."""
    if node.args.get("limit") is not None:
        return False
    where = node.args.get("where")
    if where is None:
        # Joined to another table, that one may keep it to a part.
        return not (node.args.get("using") or node.args.get("from") or node.args.get("from_") or node.find(exp.Join))
    return _is_always(where.this)


def _is_always(tree: exp.Expr | None) -> bool:
    """Whether a condition holds for every row. Values are gone, so that one of values alone counts as such."""
    if isinstance(tree, exp.Paren):
        return _is_always(tree.this)
    if isinstance(tree, exp.Or):
        return _is_always(tree.left) or _is_always(tree.right)
    if isinstance(tree, exp.And):
        return _is_always(tree.left) and _is_always(tree.right)
    if isinstance(tree, (exp.Boolean, exp.Literal)):
        return not (isinstance(tree, exp.Boolean) and not tree.this)
    if isinstance(tree, (exp.Like, exp.ILike)) and isinstance(tree.expression, exp.Literal):
        return str(tree.expression.this) == "%"
    if isinstance(tree, exp.Not):
        return isinstance(tree.this, exp.Boolean) and not tree.this.this
    if isinstance(tree, (exp.EQ, exp.GTE, exp.LTE)) and tree.left == tree.right:
        return True
    return isinstance(tree, exp.Predicate) and not any(
        isinstance(node, (exp.Column, exp.Func, exp.Query, exp.Parameter, exp.Placeholder)) for node in tree.walk()
    )


# --- commands and calls ----------------------------------------------------------------------------------------------

_WRAPPERS: Final = frozenset(
    {"sudo", "doas", "env", "nohup", "time", "nice", "ionice", "setsid", "exec", "command", "xargs", "timeout"}
)
_SHELLS: Final = frozenset({"sh", "bash", "dash", "zsh", "ksh", "busybox"})
_SQL_CLIENTS: Final = {"psql": ("-c", "--command"), "mysql": ("-e", "--execute"), "mariadb": ("-e", "--execute")}
# (programs, what must stand in the rest of the line, of what kind it is, the danger); the first that fits is said.
_COMMANDS: Final = tuple(
    (frozenset(programs.split()), re.compile(rule), cls, danger)
    for programs, rule, cls, danger in (
        ("rm", r"(?:^|\s)(?:-[a-zA-Z]*[rR]|--recursive)", Class.PROGRAM, "files removed with all below"),
        ("find", r"\s-delete\b|\s-exec\s+rm\b", Class.PROGRAM, "files removed with all below"),
        ("shred wipefs blkdiscard", "", Class.PROGRAM, "disk or file destroyed"),
        ("dd", r"\bof=", Class.PROGRAM, "disk or file overwritten"),
        ("mkfs fdisk parted sgdisk lvremove vgremove zpool mkswap", "", Class.PROGRAM, "disk or file destroyed"),
        (
            "useradd usermod userdel adduser deluser groupadd groupmod gpasswd passwd chpasswd visudo vipw",
            "",
            Class.PRIVILEGE,
            "account changed",
        ),
        (
            "chown chmod setfacl chattr setcap",
            r"\s-[a-zA-Z]*R|[ugoa]*\+[rwx]*s|\b[2467]\d{3}\b|setcap|cap_|[+-]i\b",
            Class.PRIVILEGE,
            "rights of files changed",
        ),
        ("ssh-copy-id", "", Class.PRIVILEGE, "way in that stays"),
        ("crontab at batch", r"^(?!\s*-l)", Class.PROGRAM, "runs after the access has ended"),
        (
            "systemctl service",
            r"\b(?:stop|disable|mask|kill|isolate|restart|poweroff|reboot|halt)\b",
            Class.PROGRAM,
            "service stopped or restarted",
        ),
        ("shutdown reboot halt poweroff init telinit", "", Class.PROGRAM, "machine stopped"),
        ("kill pkill killall", "", Class.PROGRAM, "processes ended"),
        (
            "iptables ip6tables nft ufw firewall-cmd",
            r"^(?!\s*(?:-L|-S|-n|list|status|--list))",
            Class.PROGRAM,
            "firewall changed",
        ),
        ("setenforce auditctl", "", Class.PROGRAM, "protection switched off"),
        ("insmod modprobe rmmod kexec", "", Class.PROGRAM, "kernel changed"),
        ("scp", r"\s[^\s:/]+:[^\s]*\s*$", Class.EXPORT, "files copied out"),
        ("rsync rclone", r"\s(?:[^\s:/]+:|rsync://)\S*\s*$|^\s*(?:copy|sync|move)\b", Class.EXPORT, "files copied out"),
        ("sftp ftp lftp nc ncat netcat socat telnet", "", Class.EXPORT, "connection to elsewhere"),
        (
            "curl wget",
            r"\s(?:-T|--upload-file|-F|--form|--data-binary|--post-file|-d|--data)\b",
            Class.EXPORT,
            "data sent out",
        ),
        ("aws gsutil gcloud az mc", r"\b(?:cp|sync|mv|rsync|mirror)\b", Class.EXPORT, "files copied out"),
        (
            "pg_dump pg_dumpall pg_basebackup mysqldump mariadb-dump mongodump mongoexport mariabackup xtrabackup",
            "",
            Class.EXPORT,
            "bulk export",
        ),
        ("dropdb dropuser createuser", "", Class.PROGRAM, "dropped or made at the database"),
        (
            "insmod docker podman",
            r"\s--privileged\b|\s(?:-v|--volume)[= ]/:",
            Class.PROGRAM,
            "container with the host's rights",
        ),
        ("docker podman", r"\b(?:rm|rmi|prune|kill|stop)\b", Class.PROGRAM, "containers removed or stopped"),
        ("kubectl", r"\b(?:delete|drain|cordon|exec|cp|replace|scale)\b", Class.PROGRAM, "cluster changed or entered"),
        ("history unset", r"\s-c\b|HISTFILE", Class.PROGRAM, "traces removed"),
        ("truncate", r"\s-s\s*0", Class.PROGRAM, "file emptied"),
    )
)
_FROM_THE_NET: Final = frozenset({"curl", "wget"})
_SHELL_BREAK: Final = re.compile(r"[;|&\n]+")
_CALLS: Final = tuple(
    (re.compile(rule, re.ASCII), danger)
    for rule, danger in (
        (r"(?:delete|deletecollection) ", "deleted"),
        (
            r"(?:create|get) pods/\S*(?:exec|attach|portforward)|create \S*/(?:exec|attach|portforward)\b",
            "container entered",
        ),
        (r"(?:create|update|patch) (?:cluster)?role(?:binding)?s\b", "rights given"),
        (r"(?:get|list|watch) secrets\b", "secrets read"),
        (r"\S+ (?:Delete|Terminate|Destroy|Purge)\w*", "deleted"),
        (r"\S+ (?:Stop|Disable|Suspend)\w*", "switched off"),
        (r"\S+ (?:Put|Attach|Create|Update)\w*(?:Policy|Role|User|AccessKey|LoginProfile|Grant)\b", "rights given"),
        (r"\S+ (?:Authorize|Revoke)SecurityGroup\w*", "firewall changed"),
        (r"\S+ (?:GetSecretValue|GetParametersByPath)\b", "secrets read"),
    )
)


def _words(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text[:_LONGEST]))
    except ValueError:
        return tuple(text[:_LONGEST].split())


def _command(argv: Sequence[str], dialect: str, depth: int = 0) -> Classified:
    """Judge one program with its words."""
    at = 0
    while at < len(argv) and (argv[at].rsplit("/", 1)[-1] in _WRAPPERS or re.match(r"[A-Za-z_]\w*=", argv[at])):
        at += 1
        while (
            at < len(argv) and argv[at].startswith("-") and argv[at - 1].rsplit("/", 1)[-1] in _WRAPPERS | {"-u", "-g"}
        ):
            at += 2 if argv[at] in {"-u", "-g", "-n"} else 1
    if at >= len(argv):
        return Classified(Class.PROGRAM)
    program, rest = argv[at].rsplit("/", 1)[-1].lstrip("-"), argv[at + 1 :]
    if program in _SHELLS and depth < 3 and (script := _option(rest, ("-c", "-lc", "-ec", "-xc"))) is not None:
        return _script(script, dialect, depth + 1)
    if program == "ssh" and depth < 3 and len(rest) > 1:
        return _worst([Classified(Class.PROGRAM), _script(" ".join(rest[1:]), dialect, depth + 1)])
    if program in _SQL_CLIENTS and (statement := _option(rest, _SQL_CLIENTS[program])) is not None:
        judged = _sql(statement, "postgres" if program == "psql" else "mysql")
        return Classified(Class.PROGRAM if judged.cls is Class.UNKNOWN else judged.cls, judged.danger)
    line = " " + " ".join(rest)[:_LONGEST]
    for programs, rule, cls, danger in _COMMANDS:
        if (program in programs or program.split(".", 1)[0] in programs) and rule.search(line):
            return Classified(cls, danger)
    return Classified(Class.PROGRAM)


def _option(words: Sequence[str], names: tuple[str, ...]) -> str | None:
    for at, word in enumerate(words[:50]):
        if word in names and at + 1 < len(words):
            return words[at + 1]
        for name in names:
            if word.startswith(f"{name}=") or (len(name) == 2 and len(word) > 2 and word.startswith(name)):
                return word[len(name) :].lstrip("=")
    return None


def _script(text: str, dialect: str, depth: int) -> Classified:
    """Judge the commands of a line for a shell."""
    commands = [_words(one) for one in _SHELL_BREAK.split(text[:_LONGEST])]
    found = [_command(words, dialect, depth) for words in commands if words]
    names = [words[0].rsplit("/", 1)[-1] for words in commands if words]
    if any(first in _FROM_THE_NET and last in _SHELLS | {"sudo", "python3", "perl"} for first, last in pairwise(names)):
        found.append(Classified(Class.PROGRAM, "program from the net run"))
    return _worst([Classified(Class.PROGRAM), *found])


def _call(text: str) -> Classified:
    return Classified(Class.CALL, next((danger for rule, danger in _CALLS if rule.match(text)), None))
