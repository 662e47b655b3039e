"""What can be typed about the log's copies outside? ``breakglass follower …``.

Rules
-----
* ``setup`` prints what somebody has to run at the place before the copy can be begun, and changes nothing.
* ``reset`` is for a place that was replaced on purpose: the copy gets the whole log again. It is somebody's doing, so
  the entry names who typed it.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from storage.audit import append
from storage.database import Database
from storage.followers import FOLLOWERS, CopyTrouble, Place
from storage.followers.runner import reset
from workflows import policy as rules
from workflows.errors import Refused

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from storage.audit import Actor
    from workflows.policy import LogRules


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], *, who: Callable[[], Actor]) -> None:
    """Add ``follower`` to the command line. ``who`` tells who is on record for what is typed."""
    follower = commands.add_parser("follower", help="the copies of the log outside").add_subparsers(
        required=True, metavar="WHAT"
    )
    setup = follower.add_parser("setup", help="print what has to be run at the place before the copy can be begun")
    setup.add_argument("name", help="the copy's name in the policy")
    setup.set_defaults(run=lambda options: _setup(options.name))
    again = follower.add_parser("reset", help="bring a copy whose place was replaced the whole log again")
    again.add_argument("name", help="the copy's name in the policy")
    again.set_defaults(run=lambda options: _reset(options.name, who()))


def _setup(name: str) -> int:
    log = _rules(name)
    copy = log.copies[name]
    known = FOLLOWERS[copy.kind]
    if known.setup is None:
        raise Refused(f"A copy of the kind {copy.kind} needs nothing to be set up.")
    try:
        sys.stdout.write(known.setup(Place(name, log.origin, copy.settings, os.environ)))
    except CopyTrouble as trouble:
        raise Refused(str(trouble)) from None
    return 0


def _reset(name: str, who: Actor) -> int:
    _rules(name)
    database = Database(os.environ.get("BREAKGLASS_DATABASE_URL", "").strip() or "sqlite:///breakglass.db")
    try:
        with database.write() as session:
            old = reset(session, name)
            append(
                session, event="copy:reset", at=datetime.now(UTC), actor=who, data={"copy": name, "acknowledged": old}
            )
    finally:
        database.close()
    sys.stdout.write(f"The copy {name} gets the whole log again; it had acknowledged entries up to {old}.\n")
    return 0


def _rules(name: str) -> LogRules:
    policy = rules.load(Path(os.environ.get("BREAKGLASS_POLICY", "").strip() or "breakglass.yml"))
    if policy.log is None or name not in policy.log.copies:
        known = ", ".join(policy.log.copies) if policy.log else ""
        raise Refused(f"The policy has no copy called {name}. {f'It has: {known}.' if known else ''}".strip())
    return policy.log
