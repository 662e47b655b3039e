"""What does the policy say of the log: its name, who signs it, and which copies of it stand outside?

Rules
-----
* The section is optional; without it the log is neither signed nor copied.
* Which settings a signer or a copy takes is declared where it is made (``SIGNERS``, ``FOLLOWERS``) and checked here
  when the policy is loaded, with the line.
* No secret stands in a policy: a setting that ends in ``_env`` is the name of an environment variable.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol

import yaml

from storage.checkpoint import parse_vkey
from storage.followers import FOLLOWERS
from workflows.signing import SIGNERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

HEARTBEAT: Final = timedelta(minutes=5)
REQUIRED_WITHIN: Final = timedelta(seconds=60)
ALARM_AFTER: Final = timedelta(minutes=5)
MOST_COPIES: Final = 20

# The origin is the key's name in every signature line, and a schema-less URL: C2SP's advice, made a rule.
_ORIGIN: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,98}[a-z0-9])?(/[A-Za-z0-9._-]{1,60}){0,4}", re.ASCII)
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}", re.ASCII)
# Names become parts of a Vault path: a slash too many or ".." would reach somewhere else.
_MOUNT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(/[A-Za-z0-9][A-Za-z0-9_-]*)*", re.ASCII)
_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class SignerRules:
    """Where the key lies. ``settings`` are its kind's (``SIGNERS[kind].keys``)."""

    kind: str
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class CopyRules:
    """One outside copy. ``required``: no credential before it has acknowledged what led to it."""

    name: str
    kind: str
    required: bool
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class LogRules:
    """The whole section."""

    origin: str
    signer: SignerRules
    heartbeat: timedelta
    required_within: timedelta  # how long a credential waits for the required copies
    alarm_after: timedelta  # a copy that is behind for longer is said in the channel
    copies: Mapping[str, CopyRules]

    @property
    def required(self) -> tuple[str, ...]:
        """Names of the copies that a credential waits for."""
        return tuple(name for name, copy in self.copies.items() if copy.required)


class Reader(Protocol):
    """Who reads the file (``policy_file``): each method records what is wrong and returns a falsy value.

    ``at`` is a value in the file, as the reader gave it: with its ``node``, its line and its dotted path.
    """

    def fail(self, at: Any, sentence: str) -> None:  # noqa: ANN401
        """Record what is wrong."""

    def mapping(self, at: Any, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Any]:  # noqa: ANN401
        """Return the values of known keys."""

    def entries(self, at: Any, *, names: bool = False) -> dict[str, Any]:  # noqa: ANN401
        """Return all values; with ``names`` the keys must be names."""

    def match(self, at: Any, pattern: re.Pattern[str], sentence: str) -> str:  # noqa: ANN401
        """Read a word of a fixed form."""

    def span(self, at: Any, least: timedelta, most: timedelta) -> timedelta:  # noqa: ANN401
        """Read a duration."""

    def word(self, at: Any) -> str:  # noqa: ANN401
        """Read a line of text, or a number in plain digits."""

    def flag(self, at: Any) -> bool:  # noqa: ANN401
        """Read true or false."""


def read(reader: Reader, at: Any) -> LogRules:  # noqa: ANN401
    """Read the section ``log``; what it returns counts only when the reader has recorded no problem."""
    second, hour, day = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
    found = reader.mapping(at, ("origin", "signer"), ("heartbeat", "required_within", "alarm_after", "copies"))

    def span(key: str, default: timedelta, most: timedelta) -> timedelta:
        return reader.span(found[key], second, most) if key in found else default

    copies = {}
    if (below := found.get("copies")) is not None:
        entries = reader.entries(below, names=True)
        if len(entries) > MOST_COPIES:
            reader.fail(below, f"There are {len(entries)} copies; name at most {MOST_COPIES}.")
        copies = {name: _copy(reader, name, value) for name, value in entries.items()}
    origin = "The log's name is like an address without its scheme: log.example.com/orders."
    return LogRules(
        origin=reader.match(found.get("origin"), _ORIGIN, origin),
        signer=_signer(reader, found["signer"]) if "signer" in found else SignerRules("", MappingProxyType({})),
        heartbeat=span("heartbeat", HEARTBEAT, day),
        required_within=span("required_within", REQUIRED_WITHIN, hour),
        alarm_after=span("alarm_after", ALARM_AFTER, day),
        copies=MappingProxyType(copies),
    )


def _signer(reader: Reader, at: Any) -> SignerRules:  # noqa: ANN401
    kind, found = _kind(reader, at, {name: known.keys for name, known in SIGNERS.items()}, "signer")
    return SignerRules(kind, _settings(reader, found, "signer"))


def _copy(reader: Reader, name: str, at: Any) -> CopyRules:  # noqa: ANN401
    kind, found = _kind(reader, at, {name: known.keys for name, known in FOLLOWERS.items()}, "copy", "required")
    flag = found.pop("required", None)
    if flag is not None and kind and FOLLOWERS[kind].is_notary:
        # It keeps no entry, so there is nothing that it could acknowledge.
        reader.fail(flag, f"A {kind} keeps no entries, so no credential can wait for it; remove this line.")
    return CopyRules(name, kind, flag is not None and reader.flag(flag), _settings(reader, found, "copy"))


def _kind(
    reader: Reader,
    at: Any,  # noqa: ANN401
    kinds: Mapping[str, Mapping[str, bool]],
    what: str,
    *more: str,
) -> tuple[str, dict[str, Any]]:
    """Return a value's kind and its settings as they stand; ("", {}) after recording why not."""
    # Looked at before anything is recorded: which keys are known depends on it.
    pairs = at.node.value if isinstance(at.node, yaml.MappingNode) else ()
    kind = next((value.value for key, value in pairs if key.value == "kind"), "")
    keys = kinds.get(kind) if isinstance(kind, str) else None
    if keys is None:
        found = reader.entries(at)
        if "kind" in found:
            listed = ", ".join(sorted(kinds))
            reader.fail(found["kind"], f"There is no such kind of {what}; the kinds are: {listed}.")
        elif pairs:
            reader.fail(at, "The key “kind” is missing; add it.")
        return "", {}
    needed = [key for key, is_needed in keys.items() if is_needed]
    found = reader.mapping(at, ("kind", *needed), (*(key for key in keys if key not in needed), *more))
    found.pop("kind", None)
    return str(kind), found


def _settings(reader: Reader, found: Mapping[str, Any], what: str) -> Mapping[str, str]:
    settings = {}
    for key, at in found.items():
        settings[key] = word = reader.word(at)
        if word and (sentence := _objection(what, key, word)):
            reader.fail(at, sentence)
    return MappingProxyType(settings)


def _objection(what: str, key: str, word: str) -> str:
    """Return what is wrong with a setting whose form its name tells; "" when nothing is."""
    if key.endswith("_env") and not _VARIABLE.fullmatch(word):
        return "Write the name of an environment variable here, not the secret itself."
    if key == "mount" and not _MOUNT.fullmatch(word):
        return "This is not the path of a Vault mount."
    if what == "signer" and key == "key" and not _KEY.fullmatch(word):
        return "This is not the name of a Vault key."
    if key == "port" and not (word.isascii() and word.isdigit() and 0 < int(word[:6]) < 65536):
        return "This is not a TCP port."
    if key in {"url", "endpoint"} and not word.startswith(("https://", "http://")):
        return "Write an address that begins with https://."
    if key == "url" and "@" in word:
        return "An address with a password does not belong here; put it into an environment variable."
    if key == "vkey":
        try:
            parse_vkey(word)
        except ValueError:
            return "This is not a verifier key; copy it as its owner publishes it: name+id+key."
    return ""
