"""What can be said about drills, in Slack and in a terminal?

Rules
-----
* ``/breakglass drill ACCOUNT`` begins one; the rest happens by itself, in the thread of its request.
* ``breakglass drill list`` reads what is on record. ``breakglass drill run --simulate`` is a whole drill on one
  machine, with people of the sandbox; its exit code is 0 when it passed and 1 when it did not.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from bot import drill_views
from storage.database import Database
from workflows.drill_history import answerers, past
from workflows.errors import Invalid, Unavailable
from workflows.policy_file import NAME

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from storage.audit import Actor
    from workflows.desk import Desk
    from workflows.drill import Drills

_HOW: Final = "Type “/breakglass drill orders-db”, or “/breakglass drill history orders-db”."
PARTS: Final = ("custodian", "alert", "vault", "target", "capture")


# --- in Slack ---------------------------------------------------------------------------------------------------------


def answer(drills: Drills, desk: Desk, actor: Actor, words: Sequence[str], *, now: datetime) -> str:
    """Begin a drill, or say how the last ones went; return what the person reads. Raises BreakGlassError."""
    if not words:
        raise Invalid(f"Say of which account. {_HOW}")
    if words[0].lower() == "history":
        if len(words) < 2:
            raise Invalid(f"Say of which account. {_HOW}")
        desk.may_read(actor)
        name = words[1].lower()
        if name not in desk.policy.accounts:
            raise Invalid("The policy has no account of that name.")
        with desk.database.read() as session:
            return drill_views.history(name, past(session, name))
    row = drills.start(actor, words[0].lower(), now=now)
    return (
        f"{drill_views.MARK} {row.drill} has begun as {row.id}: its custodians are asked, and its thread tells the "
        "rest. You need do nothing."
    )


# --- in a terminal ----------------------------------------------------------------------------------------------------


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``drill`` to the command line."""
    drill = commands.add_parser("drill", help="rehearse emergency access, or see how that went")
    what = drill.add_subparsers(required=True, metavar="WHAT")
    listed = what.add_parser("list", help="show the drills on record and how they went")
    listed.add_argument("--account", default=None, help="only those of this account")
    listed.set_defaults(run=_list)
    run = what.add_parser("run", help="a whole drill, unattended, on this machine alone: 0 passed, 1 failed")
    run.add_argument("--account", required=True, help="an account of the demo's policy")
    run.add_argument("--simulate", action="store_true", help="with the parts and the people of the demo")
    run.add_argument(
        "--break", dest="broken", choices=PARTS, default=None, help="really break this part, to see its line fail"
    )
    run.set_defaults(run=_run)


def _list(options: argparse.Namespace) -> int:
    from bot.settings import SettingsInvalid, from_environment  # noqa: PLC0415 - only this command needs it

    if options.account is not None and not NAME.fullmatch(options.account):
        raise Invalid("That is not the name of an account.")
    try:
        settings = from_environment(os.environ)
    except SettingsInvalid as invalid:
        raise Unavailable("\n".join(invalid.problems)) from None
    database = Database(settings.database_url)
    try:
        with database.read() as session:
            found = past(session, options.account)
    finally:
        database.close()
    if not found:
        print("There was no drill yet.")
        return 0
    for one in found:
        word = {True: "passed", False: "FAILED", None: "under way"}[one.passed]
        failed = f"  {', '.join(leg.value.replace('_', ' ') for leg in one.failed)}" if one.failed else ""
        at = f"{one.at.astimezone(UTC):%Y-%m-%d %H:%M}"
        print(f"{one.drill:<9} {one.request_id:<9} {at}  {one.account:<20} {word}{failed}")
    print()
    for each in answerers(found):
        middle = "never" if each.median is None else drill_views.took(each.median)
        print(f"{each.person:<12} answered {each.answered} of {each.asked}, middle time {middle}")
    return 0


def _run(options: argparse.Namespace) -> int:
    if not options.simulate:
        raise Invalid(
            "In a terminal there are only simulated drills (--simulate). A drill with your people begins in Slack: "
            f"/breakglass drill {options.account}"
        )
    try:
        from bot.demo.drill import run  # noqa: PLC0415 - the demo's parts are an extra
    except ModuleNotFoundError as missing:
        raise Unavailable(f"This needs {missing.name}: install the project with its extra “demo”.") from None

    return run(options.account, options.broken)
