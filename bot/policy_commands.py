"""What does ``breakglass policy`` say about a file, and about what is in force?

Rules
-----
* Nothing here puts a policy into force: two people at one shell cannot be told apart.
* ``check`` reads a file and nothing else; ``diff`` and ``status`` ask the log, too.
"""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bot.policy_watch import standing
from bot.settings import policy_file
from storage.database import Database, DatabaseDown
from workflows import policy as rules
from workflows import policy_changes
from workflows.errors import BreakGlassError, Unavailable
from workflows.policy_control import control_of, open_proposal

if TYPE_CHECKING:
    import argparse

    from workflows.policy import Policy
    from workflows.policy_control import Proposal

_MENTION: Final = re.compile(r"<@([UW][A-Z0-9]{2,20})>")


def add(parser: argparse.ArgumentParser) -> None:
    """Add the commands below ``breakglass policy``."""
    what = parser.add_subparsers(required=True, metavar="WHAT")
    one = what.add_parser("check", help="print every problem of a policy file")
    one.add_argument("file", type=Path)
    one.set_defaults(run=_check)
    one = what.add_parser("diff", help="print, in words, what a policy file would change of what is in force")
    one.add_argument("file", type=Path, nargs="?", help="without it, the file that BREAKGLASS_POLICY names")
    one.add_argument("--text", action="store_true", help="print the lines that differ, too")
    one.set_defaults(run=_diff)
    one = what.add_parser("status", help="print which policy is in force, and what waits for confirmation")
    one.set_defaults(run=_status)


def words(old: Policy, new: Policy) -> list[str]:
    """Return what changes, a line each, what is less strict first."""
    changes = sorted(policy_changes.compare(old, new), key=lambda one: not one.is_weaker)
    if not changes:
        return ["Only comments, the order or the writing differ; the rules are the same."]
    lines = []
    for one in changes:
        mark = "LESS STRICT  " if one.is_weaker else "             "
        where = f"{one.account}: " if one.account else ""
        lines.append(mark + where + _MENTION.sub(r"\1", one.sentence))
    if policy_changes.needs_restart(old, new):
        lines.append("             The section “log” takes effect when the bot starts again.")
    return lines


def _check(options: argparse.Namespace) -> int:
    policy = rules.load(options.file)
    levels = sum(len(account.levels) for account in policy.accounts.values())
    print(f"{options.file}: {len(policy.accounts)} accounts, {levels} levels, sha256 {policy.hash}")
    return 0


def _diff(options: argparse.Namespace) -> int:
    file = options.file or policy_file(os.environ)
    policy = rules.load(file)
    current, _ = _stand()
    if current is None:
        print(f"No policy is in force yet; the bot takes {file} as it is when it first starts.")
    elif current.hash == policy.hash:
        print(f"{file} is what is in force: {policy.hash}")
    else:
        print("\n".join(words(current, policy)))
        if options.text:
            print(policy_changes.difference(current, policy))
    return 0


def _status(_: argparse.Namespace) -> int:
    current, waiting = _stand()
    print(f"In force: {current.hash}" if current else "No policy is in force yet.")
    file = policy_file(os.environ)
    try:
        found = rules.load(file).hash
        print(f"File:     {found}{' (the same)' if current and current.hash == found else ''}")
    except BreakGlassError as error:
        print(f"File:     it does not load.\n{error.sentence}")
    if current and waiting:
        need = control_of(current).confirm
        print(
            f"Waits:    {waiting.hash} since {waiting.at:%Y-%m-%d %H:%M} UTC, "
            f"confirmed by {len(waiting.confirmed)} of {need}"
        )
    elif current:
        print("Nothing waits for confirmation.")
    return 0


def _stand() -> tuple[Policy | None, Proposal | None]:
    url = os.environ.get("BREAKGLASS_DATABASE_URL", "").strip() or "sqlite:///breakglass.db"
    try:
        database = Database(url)
        database.setup()
        current = standing(database)
        with database.read() as session:
            return current, open_proposal(session, now=datetime.now(UTC))
    except (DatabaseDown, ValueError) as error:
        raise Unavailable(f"The database does not answer: {error}") from None
