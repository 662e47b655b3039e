"""What can be typed about alerts beyond Slack? ``breakglass alert test NAME``.

Rules
-----
* It sends one message, marked as a test, the way that the bot sends the real ones, and says what came of it.
* What was tried, by whom, and whether it got through, is an entry of the log: a message to leadership is no secret.
* The address is shown to nobody, also not to who types this; only its scheme is.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from storage.audit import append
from storage.database import Database
from workflows import policy as rules
from workflows.alert_rules import TEST, Came, Severity
from workflows.errors import Refused, Unavailable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from storage.audit import JSON, Actor


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], *, who: Callable[[], Actor]) -> None:
    """Add ``alert`` to the command line. ``who`` tells who is on record for what is typed."""
    alert = commands.add_parser("alert", help="who is told beyond Slack").add_subparsers(required=True, metavar="WHAT")
    test = alert.add_parser("test", help="send one message that is marked as a test, and say what came of it")
    test.add_argument("name", help="the alert's name in the policy")
    test.set_defaults(run=lambda options: _test(options.name, who()))


def _test(name: str, who: Actor) -> int:
    from bot.alert_channel import AlertTrouble, open_channel  # noqa: PLC0415 - other commands need none of it
    from bot.settings import policy_file  # noqa: PLC0415

    policy = rules.load(policy_file(os.environ))
    alert = policy.alerts.get(name)
    if alert is None:
        known = f" It has: {', '.join(policy.alerts)}." if policy.alerts else ""
        raise Refused(f"The policy has no alert called {name}.{known}")
    database = Database(os.environ.get("BREAKGLASS_DATABASE_URL", "").strip() or "sqlite:///breakglass.db")
    try:
        database.setup()
        data: dict[str, JSON] = {"alert": name, "to": alert.to.value}
        why = None
        try:
            channel = open_channel(alert, os.environ)
            data["scheme"] = channel.scheme
            channel.send(
                f"TEST: break-glass alert “{name}” for {alert.to}",
                f"{who.person} tried this alert. Nothing has happened, and nothing is to be done. From now on it tells "
                f"{alert.to} what is {alert.least} or worse.",
                Severity.INFO,
            )
        except AlertTrouble as trouble:
            why = str(trouble)
            data["why"] = why
        data["came"] = (Came.SENT if why is None else Came.FAILED).value
        with database.write() as session:
            append(session, event=TEST, at=datetime.now(UTC), actor=who, data=data)
    finally:
        database.close()
    if why is not None:
        raise Unavailable(f"The alert {name} did not get through. {why}")
    sys.stdout.write(f"The service ({data['scheme']}) took the message for {alert.to}. Ask them whether it arrived.\n")
    return 0
