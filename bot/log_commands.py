"""What can be typed about the log's heads and key? ``breakglass log …``.

Rules
-----
* ``head`` prints the newest signed head as it was signed, ready for any other tool; ``key`` prints what an auditor
  checks it with. Both go to standard output, alone.
* A rotation is somebody's doing: the entry names who typed it.
* The key itself is never printed.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from storage.database import Database
from storage.heads import HeadKeeper, Rewritten, latest, pick
from storage.signers import SignerDown, new_key_file, read_key_file
from workflows import policy as rules
from workflows.errors import Refused, Unavailable
from workflows.signing import open_keyring

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

    from storage.audit import Actor
    from storage.checkpoint import VerifierKey
    from storage.signers import Keyring
    from workflows.policy import LogRules


# What is done before a rotation, where that is not the command's to do.
_ADVICE: Final[Mapping[str, str]] = {
    "vault": "A new version of the key is made in Vault, by an administrator: vault write -f MOUNT/keys/KEY/rotate",
    "file": "",
}


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], *, who: Callable[[], Actor]) -> None:
    """Add ``log`` to the command line. ``who`` tells who types, for the record."""
    log = commands.add_parser("log", help="the log's signed heads and its key").add_subparsers(
        required=True, metavar="WHAT"
    )
    head = log.add_parser("head", help="print the newest signed head (a C2SP signed note)")
    head.set_defaults(run=_head)
    key = log.add_parser("key", help="print the key with which auditors check the log's heads (a vkey)")
    key.add_argument("--new", type=Path, metavar="FILE", help="first make a key file, readable by you alone")
    key.set_defaults(run=_key)
    rotate = log.add_parser("rotate", help="go over to a new key: an entry, and one head signed by both")
    rotate.add_argument(
        "--lost", action="store_true", help="the old key is lost: the new one signs alone, and the log says so"
    )
    rotate.set_defaults(run=lambda options: _rotate(options, who()))


def _head(_: argparse.Namespace) -> int:
    with _database().read() as session:
        newest = latest(session)
    if newest is None:
        raise Refused("The log has no signed head yet.")
    sys.stdout.write(newest.note.decode())
    return 0


def _key(options: argparse.Namespace) -> int:
    log = _rules()
    try:
        if options.new is not None:
            new_key_file(options.new)
            key = read_key_file(log.origin, options.new).key
        else:
            key = _in_force(log)
    except SignerDown as down:
        raise Unavailable(str(down)) from None
    sys.stdout.write(f"{key}\n")
    return 0


def _rotate(options: argparse.Namespace, who: Actor) -> int:
    log = _rules()
    database = _database()
    try:
        keeper = HeadKeeper(database, log.origin, _keyring(log), heartbeat=log.heartbeat, now=lambda: datetime.now(UTC))
        old, new = keeper.rotate(who, lost=options.lost)
    except SignerDown as down:
        raise Unavailable(f"{down} {_ADVICE.get(log.signer.kind, '')}".strip()) from None
    except Rewritten as found:
        raise Refused(f"The log cannot be signed: {found} Call security.") from None
    finally:
        database.close()
    sys.stdout.write(f"old {old or 'lost'}\nnew {new}\n")
    return 0


def _in_force(log: LogRules) -> VerifierKey:
    try:
        with _database().read() as session:
            return pick(session, _keyring(log).signers(), log.origin).key
    except Rewritten as found:
        raise Refused(f"{found} Call security.") from None


def _rules() -> LogRules:
    policy = rules.load(Path(os.environ.get("BREAKGLASS_POLICY", "").strip() or "breakglass.yml"))
    if policy.log is None:
        raise Refused("The policy has no section “log”, so the log is not signed: see workflows/POLICY.md.")
    return policy.log


def _database() -> Database:
    return Database(os.environ.get("BREAKGLASS_DATABASE_URL", "").strip() or "sqlite:///breakglass.db")


def _keyring(log: LogRules) -> Keyring:
    if log.signer.kind != "vault":
        return open_keyring(log, None)
    from bot.app import vault_client  # noqa: PLC0415 - Slack's libraries take half a second to import
    from bot.settings import from_environment  # noqa: PLC0415

    return open_keyring(log, vault_client(from_environment(os.environ)))
