"""How does a credential come to its requester, and what does the requester's machine make of it?

Rules
-----
* ``modal``: the bot reads the credential and shows it. ``wrapped`` and ``cli``: Vault keeps the answer behind a token
  that gives it out once, within a minute, and the bot passes on that token: it never has the secret, nor has Slack.
* A token that was used tells on whoever used it: the requester's own try then fails.
* What comes from Slack into ``breakglass open`` is not trusted. The code must be of the request that was named, and the
  token must have been made at the path of that code's level: a token that was slipped in gives nothing out.
* The secret goes into the environment of one program, and neither on the screen nor among anybody's arguments.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import shlex
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from workflows.engines import ENGINES, Engine
from workflows.engines.naming import REQUEST
from workflows.engines.seam import Exclusive, OneRead, Opened
from workflows.errors import Conflict, Invalid, VaultRefused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workflows.engines.seam import Session
    from workflows.vault import Vault

WRAP_TTL: Final = timedelta(seconds=60)
# The bot ends a token that nobody used a little before Vault would: its answer then says for certain that it was
# unused, where "gone" alone could mean either.
OPEN_WITHIN: Final = timedelta(seconds=55)
CERTAIN_FOR: Final = timedelta(seconds=3)  # after that moment; later, the token may have run out by itself
LOOK_EVERY: Final = timedelta(seconds=2)

_VERSION: Final = 1
_TOKEN: Final = re.compile(r"[A-Za-z0-9._=-]{8,4000}")
ADDRESS: Final = re.compile(r"https?://[A-Za-z0-9.:\[\]_-]+(/[A-Za-z0-9._/-]*)?")
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9._/-]{1,200}")
_MOST: Final = 20_000  # characters of a code


class Delivery(StrEnum):
    """How the credential of a level comes to its requester."""

    MODAL = "modal"
    WRAPPED = "wrapped"
    CLI = "cli"


def problem(engine: Engine, way: Delivery) -> str:
    """Return why an engine cannot be delivered in this way, for "The engine ssh …"; empty when it can."""
    if way is not Delivery.MODAL and not isinstance(engine, OneRead):
        return "makes its credential in more than one reading, so it can only be delivered by “modal”."
    if way is Delivery.WRAPPED and isinstance(engine, Exclusive):
        return "lends an account whose name is not in Vault's answer, so it cannot be delivered by “wrapped”."
    if way is Delivery.CLI and not isinstance(engine, Opened):
        return "opens no session of a program, so it cannot be delivered by “cli”."
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """A credential that nobody has seen: the token that gives it out once, and what it takes to open it.

    ``until`` is when the bot ends the token if it was not used, ``ends_at`` when the access is over. ``username``: the
    name at the target, if it is known.
    """

    request_id: str
    way: Delivery
    address: str
    namespace: str | None
    token: str = field(repr=False)
    path: str
    engine: str
    options: Mapping[str, str]
    until: datetime
    ends_at: datetime | None = None
    username: str | None = None

    def command(self) -> str:
        """Return one line for a POSIX shell that needs only curl.

        The token goes through a pipe from the shell itself: every local user can list the arguments of a program.
        """
        header = r"""header = "X-Vault-Token: %s"\n"""
        if self.namespace:
            header += rf"""header = "X-Vault-Namespace: {self.namespace}"\n"""
        header += r"%s\n"
        return (
            f"printf {shlex.quote(header)} {shlex.quote(self.token)} "
            # In a shell that does not split words, too.
            '"${VAULT_CACERT:+cacert = \\"$VAULT_CACERT\\"}" | '
            f"curl -fsS -X POST -K - {shlex.quote(self.address + '/v1/sys/wrapping/unwrap')} || "
            "echo 'It was opened before, or its minute is over. Was it not you? Press “Already used” in Slack.'"
        )

    def code(self) -> str:
        """Return what ``breakglass open`` asks for: base64url, without the padding."""
        told: dict[str, Any] = {
            "v": _VERSION,
            "request": self.request_id,
            "address": self.address,
            "token": self.token,
            "path": self.path,
            "engine": self.engine,
            "options": dict(self.options),
            "until": int(self.until.timestamp()),
        }
        if self.namespace:
            told["namespace"] = self.namespace
        return base64.urlsafe_b64encode(json.dumps(told, separators=(",", ":")).encode()).decode().rstrip("=")


def read_code(text: str, request_id: str) -> Parcel:
    """Read what somebody pasted. Raises :class:`Invalid`, also when it is the code of another request.

    The level's options become words of a command line: they are held to what a policy file may say.
    """
    packed = "".join(text.split())
    broken = Invalid("That is not a code of this bot's, or not all of it. Copy it from Slack's window again.")
    try:
        raw = base64.b64decode(packed + "=" * (-len(packed) % 4), altchars=b"-_", validate=True)
        told = json.loads(raw) if len(packed) <= _MOST else None
    except (ValueError, binascii.Error, RecursionError):
        raise broken from None
    if not isinstance(told, dict) or told.get("v") != _VERSION:
        raise broken
    words = {name: told.get(name, "") for name in ("request", "address", "token", "path", "engine", "namespace")}
    options = told.get("options")
    until = told.get("until")
    engine = ENGINES.get(str(words["engine"]))
    are_texts = all(isinstance(word, str) for word in words.values())
    if not are_texts or not isinstance(options, dict) or type(until) is not int or not 0 <= until < 1 << 40:
        raise broken
    if not all(isinstance(key, str) and isinstance(value, str) for key, value in options.items()):
        raise broken
    fits = _TOKEN.fullmatch(words["token"]) and ADDRESS.fullmatch(words["address"])
    if not fits or (words["namespace"] and not _NAMESPACE.fullmatch(words["namespace"])):
        raise broken
    if words["request"] != request_id:
        other = words["request"] if REQUEST.fullmatch(words["request"]) else "another request"
        raise Invalid(f"That is the code of {other}, and you asked to open {request_id}. Nothing was opened.")
    if engine is None or problem(engine, Delivery.CLI):
        raise Invalid("This version cannot open that kind of credential. Install the version that the bot runs.")
    needed = {key for key, is_required in engine.keys.items() if is_required}
    if not needed <= options.keys() <= engine.keys.keys() or engine.problems(options):
        raise broken
    return Parcel(
        request_id=request_id,
        way=Delivery.CLI,
        address=words["address"],
        namespace=words["namespace"] or None,
        token=words["token"],
        path=words["path"],
        engine=words["engine"],
        options=options,
        until=datetime.fromtimestamp(until, UTC),
    )


def program_of(parcel: Parcel) -> str:
    """Return the program that opens it; it must be there before anything is opened, since that works once."""
    return _engine(parcel)[1].program


def open_parcel(parcel: Parcel, vault: Vault, *, now: datetime) -> Session:
    """Take the credential out of Vault, once, and return the session to start.

    Raises :class:`Conflict` when the token gives nothing any more (its sentence says what to do), or stands for
    something else than the code says (code ``swapped``): then it was not opened. Unavailable, VaultRefused.
    """
    reader, opener = _engine(parcel)
    try:
        # 1. Is it what the code says? Asking does not use it up.
        made_at = vault.wrapped_at(parcel.token)
    except Conflict:
        raise _spent(parcel, now) from None
    if made_at != parcel.path or parcel.path != ENGINES[parcel.engine].path(parcel.options):
        raise Conflict(
            "STOP. The token in this code was not made for this request's access: somebody changed the code. "
            "Nothing was opened. Call security, and take the code from Slack's own window again.",
            code="swapped",
        )
    try:
        # 2. It is: the one opening.
        secret = vault.unwrap(parcel.token)
    except Conflict:
        raise _spent(parcel, now) from None
    if secret.lease_id.rpartition("/")[0] != ENGINES[parcel.engine].lease_prefix(parcel.options):
        raise VaultRefused("What Vault gave out is not of this request's level. Press “Already used” in Slack.")
    made = reader.credential(parcel.options, secret.data, secret.lease_id, secret.lease_duration)
    return opener.session(made)


def _spent(parcel: Parcel, now: datetime) -> Conflict:
    again = "Press “Show again” in Slack for a fresh one."
    if now < parcel.until:
        return Conflict(
            f"SOMEBODY ELSE HAS OPENED the credential of {parcel.request_id} before you. If it was not you in another "
            "window: press “Already used” in the bot's direct message NOW. That ends the access and calls security.",
            code="intercepted",
        )
    return Conflict(
        f"The minute in which the credential of {parcel.request_id} could be opened is over; the thread in Slack says "
        f"whether somebody did. {again}",
        code="too_late",
    )


def _engine(parcel: Parcel) -> tuple[OneRead, Opened]:
    engine = ENGINES[parcel.engine]
    if not isinstance(engine, OneRead) or not isinstance(engine, Opened):
        raise Invalid("This version cannot open that kind of credential.")
    return engine, engine
