"""What must not be stored of a statement, and of what kind is it? The few plainest rules.

Rules
-----
* A password in SQL, in a URL or behind ``--password`` is never stored.
* A statement is judged by its first word; what is not known is ``unknown``, never a guess.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from workflows.captures.seam import Kind

_GONE: Final = "[redacted]"
_SECRETS: Final = (
    re.compile(r"(\b(?:PASSWORD|IDENTIFIED\s+BY)\s{1,20})'(?:[^']|'')*'?", re.IGNORECASE),
    re.compile(r"(\b[a-z][a-z0-9+.-]{1,20}://[^\s:/@]{1,200}:)[^\s/@]+(?=@)", re.IGNORECASE),
    re.compile(r"(--password[=\s])\S+", re.IGNORECASE),
)


class Class(StrEnum):
    """Of what kind a statement, a program or a call is."""

    READ = "read"
    WRITE = "write"
    DEFINITION = "definition"
    PRIVILEGE = "privilege"
    SESSION = "session"
    PROGRAM = "program"
    CALL = "call"
    UNKNOWN = "unknown"


_WORDS: Final = {
    **dict.fromkeys(("select", "show", "table", "values", "explain"), Class.READ),
    **dict.fromkeys(("insert", "update", "delete", "merge", "truncate"), Class.WRITE),
    **dict.fromkeys(("create", "alter", "drop"), Class.DEFINITION),
    **dict.fromkeys(("grant", "revoke"), Class.PRIVILEGE),
    **dict.fromkeys(("set", "reset", "begin", "commit", "rollback"), Class.SESSION),
}


@dataclass(frozen=True, slots=True)
class Redacted:
    """A text without its secrets, and how many there were."""

    text: str
    argv: tuple[str, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Classified:
    """Of what kind it is, and what is dangerous about it."""

    cls: Class
    danger: str | None = None


def redact(text: str, argv: tuple[str, ...] = ()) -> Redacted:
    """Take the secrets out."""
    count = 0
    for rule in _SECRETS:
        text, found = rule.subn(rf"\1{_GONE}", text)
        count += found
        argv = tuple(rule.sub(rf"\1{_GONE}", word) for word in argv)
    return Redacted(text, argv, count)


def classify(kind: Kind, text: str, argv: tuple[str, ...] = (), dialect: str = "postgres") -> Classified:  # noqa: ARG001
    """Judge it."""
    if kind is Kind.EXEC:
        return Classified(Class.PROGRAM)
    if kind is Kind.CALL:
        return Classified(Class.CALL)
    word = text[:200].split(maxsplit=1)
    return Classified(_WORDS.get(word[0].lower(), Class.UNKNOWN) if word else Class.UNKNOWN)
