"""What does the policy say of the captures: where do executed commands come from, and who has to be recorded?

Rules
-----
* The section is optional; without it no commands are read.
* A source's token is not here, only its SHA-256: whoever reads the policy cannot forge a line.
* A level names the source that records what is done with its credentials, and whether it can do without.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from workflows.captures import CAPTURES
from workflows.engines import ENGINES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workflows.engines import LevelSettings
    from workflows.log_rules import Reader

SILENT_AFTER: Final = timedelta(seconds=60)
MOST_SOURCES: Final = 100

_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


class Need(StrEnum):
    """Whether a level's credential can do without a record of what is done with it."""

    REQUIRED = "required"  # no heartbeat of the source, no credential
    WANTED = "wanted"  # the thread says that nothing is recorded


@dataclass(frozen=True, slots=True)
class SourceRules:
    """One source. ``kind`` is a key of ``CAPTURES``; ``silent_after``: unheard of for longer, it is down."""

    name: str
    kind: str
    token_sha256: str  # hex
    silent_after: timedelta


def read(reader: Reader, at: Any) -> Mapping[str, SourceRules]:  # noqa: ANN401
    """Read the section ``captures``; what it returns counts only when the reader has recorded no problem."""
    entries = reader.entries(at, names=True)
    if len(entries) > MOST_SOURCES:
        reader.fail(at, f"There are {len(entries)} sources; name at most {MOST_SOURCES}.")
    sources = {name: _source(reader, name, value) for name, value in entries.items()}
    holders: dict[str, str] = {}
    for name, source in sources.items():
        holder = holders.setdefault(source.token_sha256 or name, name)
        if holder != name:
            # Attack: who holds the token of one source writes lines in the name of another.
            reader.fail(entries[name], f"This source has the token of {holder}; give each one a token of its own.")
    return MappingProxyType(sources)


def _source(reader: Reader, name: str, at: Any) -> SourceRules:  # noqa: ANN401
    found = reader.mapping(at, ("kind", "token_sha256"), ("silent_after",))
    kind = reader.word(found["kind"]) if "kind" in found else ""
    if kind and kind not in CAPTURES:
        reader.fail(found["kind"], f"There is no such kind of source; the kinds are: {', '.join(sorted(CAPTURES))}.")
    hashed = "Write the SHA-256 of the source's token, 64 of 0-9 and a-f; “breakglass capture token” makes both."
    return SourceRules(
        name=name,
        kind=kind,
        token_sha256=reader.match(found.get("token_sha256"), _SHA256, hashed),
        silent_after=(
            reader.span(found["silent_after"], timedelta(seconds=5), timedelta(hours=1))
            if "silent_after" in found
            else SILENT_AFTER
        ),
    )


def read_need(
    reader: Reader,
    source: Any,  # noqa: ANN401
    need: Any,  # noqa: ANN401
    sources: Mapping[str, SourceRules],
) -> tuple[str | None, Need]:
    """Read ``capture_source`` and ``capture`` of a level, either of which may be missing (None)."""
    if source is None:
        if need is not None:
            reader.fail(need, "Recorded by whom? Add “capture_source”, or remove this.")
        return None, Need.WANTED
    name = reader.word(source)
    if name and name not in sources:
        known = f"there is {', '.join(sources)}" if sources else "the section “captures” has none"
        reader.fail(source, f"There is no such source of commands; {known}.")
    word = reader.word(need) if need is not None else Need.WANTED.value
    if word and word not in {one.value for one in Need}:
        reader.fail(need, f"This is {' or '.join(one.value for one in Need)}.")
    return name or None, Need.REQUIRED if word == Need.REQUIRED else Need.WANTED


def unrecorded(settings: LevelSettings, source: SourceRules | None) -> str:
    """Return what is missing at a level that must be recorded; empty: nothing.

    A source can be heard of all the time and say nothing of a login that was not set to be recorded.
    """
    if source is None or source.kind != "postgres" or "audit" not in ENGINES[settings.engine].keys:
        return ""
    if "audit" in settings.options:
        return ""
    return (
        "PostgreSQL records its logins only as “audit” says: add “audit: pgaudit”, or “audit: none” where the server "
        "records everybody."
    )
