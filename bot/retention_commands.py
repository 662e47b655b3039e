"""What can be typed about what is kept of the log? ``breakglass retention …``.

Rules
-----
* ``plan`` only shows. ``propose`` puts what it shows before people: nothing is pruned from a terminal, ever. Two
  different people confirm in Slack.
* A hold and its end are somebody's doing: the entry names who typed it.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bot.policy_watch import standing
from storage.audit import write_time
from storage.database import Database
from workflows import policy as rules
from workflows.door import database_errors
from workflows.retention import CONFIRMATIONS, Retention, holds

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from storage.audit import Actor
    from workflows.policy import Policy
    from workflows.retention import Plan


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], *, who: Callable[[], Actor]) -> None:
    """Add ``retention`` to the command line. ``who`` tells who types, for the record."""
    retention = commands.add_parser("retention", help="what is kept of the log, and what may go").add_subparsers(
        required=True, metavar="WHAT"
    )
    shown = retention.add_parser("plan", help="show what would go now")
    shown.add_argument("--json", action="store_true", help="for programs: with the exact ranges of entries")
    shown.set_defaults(run=_plan)
    for name in ("propose", "apply"):
        proposed = retention.add_parser(name, help="put what would go before two people, who confirm it in Slack")
        proposed.set_defaults(run=lambda _: _propose(who()))
    hold = retention.add_parser("hold", help="put a request under legal hold")
    hold.add_argument("request", metavar="BG-…")
    hold.add_argument("--reason", required=True)
    hold.set_defaults(run=lambda options: _hold(options, who()))
    release = retention.add_parser("release", help="end a request's legal hold")
    release.add_argument("request", metavar="BG-…")
    release.add_argument("--reason", default="")
    release.set_defaults(run=lambda options: _release(options, who()))
    held = retention.add_parser("holds", help="list the requests under legal hold")
    held.set_defaults(run=_holds)


def _plan(options: argparse.Namespace) -> int:
    found = _retention().plan(now=_now())
    if options.json:
        sys.stdout.write(json.dumps(_members(found), sort_keys=True) + "\n")
        return 0
    for part in found.parts:
        about = part.request_id or "no request"
        _say(f"{part.noun:<12} {about:<14} {part.count:>8}  {part.oldest:%Y-%m-%d} to {part.newest:%Y-%m-%d}")
    if not found.ranges:
        _say("Nothing may be pruned now.")
        return 0
    more = "; there is more, for a next plan" if found.is_cut else ""
    _say(f"{found.count} entries would go{more}. Plan {found.hash}")
    return 0


def _members(found: Plan) -> dict[str, object]:
    return {
        "plan": found.hash,
        "count": found.count,
        "is_cut": found.is_cut,
        "keep": found.keep.data(),
        "ranges": [list(pair) for pair in found.ranges],
        "parts": [
            {
                "class": part.noun,
                "request": part.request_id,
                "count": part.count,
                "oldest": write_time(part.oldest),
                "newest": write_time(part.newest),
            }
            for part in found.parts
        ],
    }


def _propose(who: Actor) -> int:
    seq, found = _retention().propose(who, now=_now())
    _say(
        f"Proposed as entry {seq}: {found.count} entries, plan {found.hash}. Nothing is pruned before {CONFIRMATIONS} "
        "different people of auditors and security have confirmed it in the incident channel."
    )
    return 0


def _hold(options: argparse.Namespace, who: Actor) -> int:
    _retention().hold(who, options.request, options.reason, now=_now())
    _say(f"{options.request} is under legal hold.")
    return 0


def _release(options: argparse.Namespace, who: Actor) -> int:
    _retention().release(who, options.request, options.reason, now=_now())
    _say(f"The legal hold of {options.request} has ended.")
    return 0


def _holds(_: argparse.Namespace) -> int:
    with database_errors(), _database().read() as session:
        held = holds(session)
    for request_id, record in sorted(held.items()):
        _say(f"{request_id}  since {record.at:%Y-%m-%d}, by {record.actor.person}: {record.data.get('reason', '')!r}")
    if not held:
        _say("No request is under legal hold.")
    return 0


def _retention() -> Retention:
    # What the log says is in force counts, not the file: whoever can write that decides nothing by it.
    with database_errors():
        known = standing(_database())
    policy = known or rules.load(Path(os.environ.get("BREAKGLASS_POLICY", "").strip() or "breakglass.yml"))

    def in_force() -> Policy:
        return policy

    return Retention(_database(), in_force)


def _database() -> Database:
    return Database(os.environ.get("BREAKGLASS_DATABASE_URL", "").strip() or "sqlite:///breakglass.db")


def _now() -> datetime:
    return datetime.now(UTC)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
