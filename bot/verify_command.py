"""Is the evidence whole? ``breakglass verify``: of a file, of the database itself, or of the database against a copy.

Rules
-----
* Everything that is wrong is printed, one line each, on standard output; the exit code is then 4.
* Nothing is needed but the evidence. What could not be checked without more is said, never passed over in silence.
* With the policy at hand the log's own keys are asked for where they lie. An auditor gives the key (``--vkey``): one
  out of the hands of whoever is audited proves nothing to them.
* Nothing is written.
"""

from __future__ import annotations

import argparse
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from storage import standalone
from storage.database import Database
from storage.followers import FOLLOWERS, CopyTrouble, Notary, Place
from storage.signers import SignerDown
from storage.standalone import Findings, Key, Report, read_vkey
from storage.verify import compare_with_copy
from workflows import policy as rules
from workflows.errors import BreakGlassError, Refused, Unavailable
from workflows.replay import check_database
from workflows.signing import open_keyring

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.followers import Copy
    from workflows.policy import LogRules

_VERIFIED: Final = 0
_UNVERIFIED: Final = 4


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``verify`` to the command line."""
    verify = commands.add_parser(
        "verify", help="check an export, a bundle, or (without FILE) the database, and name everything that is wrong"
    )
    verify.add_argument("file", type=Path, nargs="?", metavar="FILE", help="an export or a bundle; default: --database")
    verify.add_argument("--database", action="store_true", help="check the live log, its heads and the tables")
    verify.add_argument("--against", metavar="NAME", help="compare the database with this copy of the policy")
    verify.add_argument(
        "--vkey", type=_vkey, action="append", default=[], metavar="KEY", help="a key that is trusted (repeatable)"
    )
    verify.add_argument(
        "--head",
        type=Path,
        action="append",
        default=[],
        metavar="NOTE",
        help="a signed head that was kept elsewhere (repeatable)",
    )
    verify.set_defaults(run=lambda options: _verify(verify, options))


def _vkey(text: str) -> Key:
    try:
        return read_vkey(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _verify(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if sum((options.file is not None, options.database, options.against is not None)) > 1:
        parser.error("give FILE, --database or --against, one of them")
    kept = _kept(options.head)
    if options.file is not None:
        return _tell(standalone.verify(options.file, options.vkey, kept), str(options.file))
    database = Database(os.environ.get("BREAKGLASS_DATABASE_URL", "").strip() or "sqlite:///breakglass.db")
    try:
        if options.against is not None:
            return _against(database, options.against)
        return _database(database, options.vkey, kept)
    finally:
        database.close()


def _kept(files: Sequence[Path]) -> list[tuple[str, bytes]]:
    try:
        return [(str(file), file.read_bytes()) for file in files]
    except OSError as error:
        raise Unavailable(f"{error.filename} cannot be read: {error.strerror}.") from None


def _tell(report: Report, name: str) -> int:
    for line in standalone.lines_of(report, name):
        sys.stdout.write(line + "\n")
    return _UNVERIFIED if report.findings else _VERIFIED


# --- the database --------------------------------------------------------------------------------------------------


def _database(database: Database, keys: Sequence[Key], kept: Sequence[tuple[str, bytes]]) -> int:
    log = _log_rules()
    trusted, why = list(keys), ""
    if log is not None:
        trusted += _witnesses(log)
        if not keys:
            try:
                trusted += _keys_of(log)
            except (SignerDown, BreakGlassError) as down:
                why = f"The log's key could not be asked for: {down}"
    heartbeat = log.heartbeat if log is not None else timedelta(minutes=5)
    with database.read() as session:
        report = check_database(session, now=datetime.now(UTC), keys=trusted, kept=kept, heartbeat=heartbeat)
    if why:
        report = report._replace(unchecked=(*report.unchecked, why))
    return _tell(report, "The database")


def _log_rules() -> LogRules | None:
    """Return what the policy says of the log; None when there is no policy here, or it does not sign the log."""
    path = Path(os.environ.get("BREAKGLASS_POLICY", "").strip() or "breakglass.yml")
    return rules.load(path).log if path.is_file() else None


def _keys_of(log: LogRules) -> list[Key]:
    """Ask for the log's keys where they lie."""
    vault = None
    if log.signer.kind == "vault":
        from bot.app import vault_client  # noqa: PLC0415 - Slack's libraries take half a second to import
        from bot.settings import from_environment  # noqa: PLC0415

        vault = vault_client(from_environment(os.environ))
    return [read_vkey(str(signer.key)) for signer in open_keyring(log, vault).signers()]


def _witnesses(log: LogRules) -> list[Key]:
    return [read_vkey(copy.settings["vkey"]) for copy in log.copies.values() if "vkey" in copy.settings]


# --- a copy --------------------------------------------------------------------------------------------------------


def _against(database: Database, name: str) -> int:
    copy = _copy(name)
    findings = Findings(standalone.LIMIT)
    try:
        compared = compare_with_copy(database, copy, findings)
    except CopyTrouble as trouble:
        raise Unavailable(str(trouble)) from None
    unchecked = []
    if compared.lacking:
        unchecked.append(f"The copy {name} does not have the newest {compared.lacking} entries yet.")
    return _tell(Report(compared.entries, findings, None, tuple(unchecked)), f"The database against the copy {name}")


def _copy(name: str) -> Copy:
    log = _log_rules()
    if log is None or name not in log.copies:
        names = ", ".join(log.copies) if log is not None and log.copies else "none"
        raise Refused(f"The policy has no copy called {name}; its copies are: {names}.")
    rule = log.copies[name]
    if FOLLOWERS[rule.kind].is_notary:
        raise Refused(f"{name} keeps no entries; it testifies to heads, which “breakglass verify” checks.")
    try:
        found = FOLLOWERS[rule.kind].build(Place(name, log.origin, rule.settings, os.environ))
    except CopyTrouble as trouble:
        raise Unavailable(str(trouble)) from None
    if isinstance(found, Notary) or not found.is_readable:
        raise Refused(f"What {name} holds cannot be read back from here: compare where it is kept.")
    return found
