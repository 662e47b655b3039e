"""What does a week's digest say, on the console? ``breakglass digest``.

Rules
-----
* It reads the database and the policy, and writes nothing into the log.
* A past week is told as it stood when its digest was due: what was reviewed since is open in it.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bot import digest_picture, digest_view
from bot.settings import policy_file
from bot.weekly import told_of
from storage.database import Database
from workflows import policy as rules
from workflows.digest import of_data
from workflows.digest_rules import parse_week, week_before
from workflows.errors import Invalid, Unavailable

if TYPE_CHECKING:
    import argparse

    from workflows.digest import Figures


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``digest`` to the command line."""
    digest = commands.add_parser("digest", help="print a week's figures: uses, times, reviews, rules that need work")
    digest.add_argument("--week", metavar="2026-W47", help="an ISO week (default: the newest that is over)")
    digest.add_argument("--json", action="store_true", help="the figures, for a program")
    digest.add_argument("--policy", type=Path, metavar="FILE", help="the policy (default: BREAKGLASS_POLICY)")
    digest.add_argument("-o", "--output", type=Path, metavar="FILE.png", help="draw the picture, too")
    digest.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print it. Raises Invalid for what is no week, or is not over."""
    now = datetime.now(UTC)
    policy = rules.load(options.policy or policy_file(os.environ))
    zone = policy.digest.zone
    try:
        week = parse_week(options.week, zone) if options.week else week_before(now, zone)
    except ValueError as error:
        raise Invalid(str(error)) from None
    if week.start > now:
        raise Invalid(f"The week {week.name} has not begun.")
    database = Database(os.environ.get("BREAKGLASS_DATABASE_URL", "").strip() or "sqlite:///breakglass.db")
    with database.read() as session:
        told = told_of(session, policy, week, now=min(now, policy.digest.next(week.end)))
    figures = of_data(told)
    if options.output is not None:
        _draw(figures, options.output)
    if options.json:
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        sys.stdout.write("\n".join(digest_view.text(figures)) + "\n")
    return 0


def _draw(figures: Figures, file: Path) -> None:
    if not digest_picture.is_there():
        raise Unavailable("The picture needs the project's extra “reports”.")
    try:
        file.write_bytes(digest_picture.draw(figures))
    except OSError as error:
        raise Unavailable(f"{file} cannot be written: {error.strerror}.") from None
