"""Does a level's credential open what the level says, nothing more, and is it gone afterwards?

``breakglass check --levels`` asks this of every level, with a real credential of one minute.

Rules
-----
* A trial goes the way of a grant: a child token of its own, the same engine, the same proof of the end.
* It is an entry of the log before Vault is called and another one when it is over, whatever came of it: no credential
  is made that the log does not know.
* It leaves nothing behind. When the bot dies in the middle, Vault ends the token, and with it the credential, within
  the minute.
* Nobody sees the credential.
* Where a source records what is done with the level's credentials, what the trial did must come back from it.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlmodel import col, select

from storage.audit import append, parse
from storage.models import Entry
from workflows.engines import ENGINES, Wish
from workflows.engines.seam import Rehearsed
from workflows.errors import BreakGlassError, Refused, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from storage.audit import JSON, Actor
    from storage.database import Database
    from workflows.policy import Account, Level
    from workflows.vault import Vault

TRY: Final = "drill:try"
TRIED: Final = "drill:tried"
SEEN: Final = "drill:seen"  # a source told of what a trial did
LIFE: Final = timedelta(minutes=1)
_PATIENCE: Final = 30.0  # seconds until what is not gone is called that
_PAUSE: Final = 0.05  # seconds between two looks
_COMES_BACK: Final = 10.0  # seconds until what was done must have come back from the source


@dataclass(frozen=True, slots=True)
class _Held:
    """What an engine is told of it, as of a grant."""

    request_id: str
    accessor: str | None
    lease_id: str | None
    lease_prefix: str
    identity: str | None
    options: Mapping[str, str]
    intended_at: datetime
    number: int = 1
    expires_at: datetime | None = None


def announce(database: Database, account: Account, level: Level, name: str, *, life: timedelta, who: Actor) -> None:
    """Say in the log that a token of that name is about to be made for a level: no alarm comes of it.

    Raises DatabaseDown.
    """
    _note(database, account, level, TRY, {"name": name, "seconds": int(life.total_seconds())}, who=who)


def _note(
    database: Database, account: Account, level: Level, event: str, more: Mapping[str, JSON], *, who: Actor
) -> None:
    path = ENGINES[level.settings.engine].path(level.settings.options)
    about: dict[str, JSON] = {"account": account.name, "level": level.name, "path": path}
    with database.write() as session:
        append(session, event=event, at=datetime.now(UTC), actor=who, data={**about, **more})


def new_name() -> str:
    """Return the name of a trial."""
    return f"check-{secrets.token_hex(4)}"


def try_level(vault: Vault, database: Database, account: Account, level: Level, who: Actor) -> tuple[str, ...]:
    """Make a credential of a level, try it, take it back; return what was seen, in a few words each.

    Raises Refused when it does more or less than it should, Unavailable when Vault or the target does not answer or
    something is left, VaultRefused; the entry has been written then, too. Raises DatabaseDown, before anything.
    """
    engine = ENGINES[level.settings.engine]
    name = new_name()
    announce(database, account, level, name, life=LIFE, who=who)
    held: dict[str, str | None] = {"accessor": None, "lease_id": None, "identity": None}
    seen: tuple[str, ...] = ()
    failure: BreakGlassError | None = None
    try:
        seen = _try(vault, account, level, name, held)
    except BreakGlassError as error:
        failure = error
    # Whatever happened, it is ended now and shown to be gone.
    try:
        seen += _end(vault, level, name, held)
    except BreakGlassError as error:
        failure = failure or error
    if failure is None and level.capture_source is not None and isinstance(engine, Rehearsed):
        try:
            seen += (_come_back(database, level.capture_source, name),)
        except Refused as error:
            failure = error
    told: dict[str, JSON] = {
        "name": name,
        "identity": held["identity"],
        "lease": held["lease_id"],
        "accessor_sha256": hashlib.sha256(held["accessor"].encode()).hexdigest() if held["accessor"] else None,
        "passed": failure is None,
        "seen": list(seen),
        "said": failure.sentence[:500] if failure else None,
    }
    _note(database, account, level, TRIED, told, who=who)
    if failure is not None:
        raise failure
    return seen


def _try(vault: Vault, account: Account, level: Level, name: str, held: dict[str, str | None]) -> tuple[str, ...]:
    settings = level.settings
    engine = ENGINES[settings.engine]
    child = vault.open_child(settings.token_role, LIFE, display_name=name, metadata={"check": name})
    held["accessor"] = child.accessor
    key = throwaway_key() if engine.needs_public_key else None
    credential = engine.issue(vault, child, settings.options, Wish(name, "check", key))
    held["lease_id"], held["identity"] = credential.lease_id, credential.username
    if credential.ttl > LIFE:
        raise Refused(f"A credential for {LIFE} was asked for, and it lives {credential.ttl}.")
    if not isinstance(engine, Rehearsed):
        return ("a credential is issued",)
    above = [
        other.settings.options
        for other in account.levels.values()
        if other.settings.engine == settings.engine and other.quorum > level.quorum
    ]
    return engine.rehearse(credential, settings.options, above)


def _end(vault: Vault, level: Level, name: str, held: Mapping[str, str | None]) -> tuple[str, ...]:
    if held["accessor"] is None:
        return ()
    settings = level.settings
    engine = ENGINES[settings.engine]
    grant = _Held(
        name,
        held["accessor"],
        held["lease_id"],
        engine.lease_prefix(settings.options),
        held["identity"],
        settings.options,
        datetime.now(UTC) - LIFE,
    )
    began = time.monotonic()
    vault.revoke_accessor(grant.accessor or "")

    def shown() -> tuple[str, ...]:
        if not _is_gone(vault, engine.is_gone, grant):
            raise Unavailable("Vault does not show that the credential is gone; Vault goes on trying.", code="left")
        return engine.prove(vault, grant)

    while True:
        waited = time.monotonic() - began
        try:
            seen = shown()
        except Unavailable as error:
            if error.reason != "left" or waited > _PATIENCE:
                raise
            time.sleep(_PAUSE)
        else:
            return (*seen, f"it was gone {round((time.monotonic() - began) * 1000)} ms after its end was decided")


def _come_back(database: Database, source: str, name: str) -> str:
    """Wait until the source has told of what the trial did. Raises Refused when it does not, DatabaseDown."""
    began = time.monotonic()
    query = select(Entry.body).where(Entry.event == SEEN, col(Entry.at) >= datetime.now(UTC) - 3 * LIFE)
    while True:
        with database.read() as session:
            said = [parse(body).data for body in session.exec(query) if body is not None]
        waited = time.monotonic() - began
        if any(data.get("name") == name and data.get("source") == source for data in said):
            return f"{source} has recorded it, {waited:.1f} s after its end"
        if waited > _COMES_BACK:
            raise Refused(
                f"What was done with it did not come back from {source} within {_COMES_BACK:.0f} s: nothing that is "
                "done with this level is recorded. See whether its tailer runs, and “breakglass capture setup”."
            )
        time.sleep(_PAUSE)


def _is_gone(vault: Vault, is_gone: Callable[[Vault, _Held, frozenset[str]], bool], grant: _Held) -> bool:
    if grant.lease_id is None and grant.identity is None:
        # Nothing came out; other leases of the role are other people's, and its own died with its token.
        return vault.accessor_is_gone(grant.accessor or "")
    return is_gone(vault, grant, frozenset())


def throwaway_key() -> str:
    """Return a key that is thrown away at once, for engines that sign one."""
    made = Ed25519PrivateKey.generate().public_key()
    return made.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
