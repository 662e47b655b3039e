"""What does an operator type to give a custodian a second factor? ``breakglass enrol U0123ABCD``.

Rules
-----
* It is done side by side: the operator runs it with a Vault token of their own, and the custodian scans what it shows.
* The key is shown once, on a terminal, and not into a file or a pipe, where it would stay.
* Nobody is enrolled before they have typed a code of it; until then, and when it is left, the key is deleted.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bot import qr
from bot.settings import own_from_environment, policy_file
from storage.database import Database
from workflows import policy as rules
from workflows.enrolling import Enrolment, TotpOperator, newest_team
from workflows.errors import Invalid, Refused

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from storage.audit import Actor

_TRIES: Final = 3


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], *, who: Callable[[], Actor]) -> None:
    """Add ``enrol`` to the command line. ``who`` tells who types, for the record."""
    enrol = commands.add_parser(
        "enrol", help="give a custodian a second factor, with an operator's token (VAULT_ADDR, VAULT_TOKEN)"
    )
    enrol.add_argument("person", metavar="U0123ABCD", help="the custodian's Slack user id, from their profile")
    how = enrol.add_mutually_exclusive_group()
    how.add_argument("--replace", action="store_true", help="a new key in place of the one that they have")
    how.add_argument("--remove", action="store_true", help="take their second factor away")
    enrol.add_argument("--team", help="the workspace's id, T… (default: that of the newest request)")
    enrol.add_argument("--policy", type=Path, metavar="FILE", help="the policy file (default: the bot's)")
    enrol.set_defaults(run=lambda options: _enrol(options, who()))


def _enrol(options: argparse.Namespace, who: Actor) -> int:
    policy = rules.load(options.policy or policy_file(os.environ))
    settings = own_from_environment(os.environ, missing="give an operator's token, not the bot's.")
    if not options.remove and not sys.stdout.isatty():
        raise Refused("The key is shown once, on a terminal only: in a file it would stay. Nothing was changed.")
    database = Database(os.environ.get("BREAKGLASS_DATABASE_URL", "").strip() or "sqlite:///breakglass.db")
    team = options.team or newest_team(database)
    if not team:
        raise Invalid("Give --team T…: there is no request yet that would tell which workspace it is.")
    operator = TotpOperator(
        settings.vault_address, settings.vault_token, namespace=settings.vault_namespace, ca_file=settings.vault_ca_file
    )
    enrolment = Enrolment(database, operator, policy, team=team, person=options.person, who=who)
    if options.remove:
        enrolment.remove(now=datetime.now(UTC))
        _say(f"{enrolment.person} has no second factor any more. It is on record.")
        return 0
    return _begin(enrolment, replace=options.replace)


def _begin(enrolment: Enrolment, *, replace: bool) -> int:
    key = enrolment.begin(replace=replace)
    is_done = False
    try:
        _say(
            f"{enrolment.person} ({enrolment.team}) scans this with an authenticator. It is shown once and not kept.\n"
        )
        _say(qr.as_text(key.picture))
        _say(f"By hand: {key.address}\n")
        for _ in range(_TRIES):
            sys.stdout.write("The code that the authenticator shows now: ")
            sys.stdout.flush()
            is_done = enrolment.prove(sys.stdin.readline(), now=datetime.now(UTC))
            if is_done:
                _say(f"{enrolment.person} is enrolled, on record. Clear this screen.")
                return 0
            _say("That is not it.")
    finally:
        if not is_done:
            enrolment.give_up()
    raise Refused(f"Nobody is enrolled: the key was deleted, and {enrolment.person} has none. Begin again.")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
