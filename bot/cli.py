"""What can be typed in a terminal? ``breakglass …``.

Rules
-----
* Exit codes: 0 done, 1 refused, 2 usage, 3 unavailable, 4 evidence does not verify.
* One handler turns errors into sentences; a traceback is never what a person sees first.
* Results go to standard output, everything about the run to standard error.
"""

from __future__ import annotations

import argparse
import getpass
import logging
import os
import re
import signal
import sys
import threading
from typing import TYPE_CHECKING, Final

from bot import (
    alert_command,
    approve_command,
    capture_command,
    digest_command,
    drill_command,
    enrol_command,
    export_command,
    follower_commands,
    log_commands,
    open_command,
    policy_commands,
    ready_command,
    retention_commands,
    show_command,
    vault_commands,
    verify_command,
)
from storage.audit import Actor, Damaged
from storage.database import DatabaseDown, OtherVersion
from workflows.errors import BreakGlassError, Refused, Unavailable, VaultRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

OK: Final = 0
REFUSED: Final = 1
USAGE: Final = 2
UNAVAILABLE: Final = 3
UNVERIFIED: Final = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("apscheduler").setLevel(logging.WARNING)  # it logs every tick
    command: Callable[[argparse.Namespace], int] = options.run
    try:
        return command(options)
    except (Unavailable, VaultRefused) as error:
        print(error.sentence, file=sys.stderr)
        return UNAVAILABLE
    except OtherVersion as error:
        print(f"{error} Read “An older database” in bot/OPERATIONS.md.", file=sys.stderr)
        return UNAVAILABLE
    except DatabaseDown as error:
        print(f"{error} Look at BREAKGLASS_DATABASE_URL.", file=sys.stderr)
        return UNAVAILABLE
    except Damaged as damage:
        print(f"Entry {damage.seq} of the log is damaged: {damage.sentence}", file=sys.stderr)
        return UNVERIFIED
    except BreakGlassError as error:
        print(error.sentence, file=sys.stderr)
        return REFUSED if isinstance(error, Refused) else USAGE
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="breakglass", description="Break-glass emergency access in Slack.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the bot (Socket Mode); the environment configures it")
    serve.set_defaults(run=_serve)

    check = commands.add_parser("check", help="show every problem of the set-up at once")
    check.add_argument(
        "--levels",
        action="store_true",
        help="also make a credential of a minute of each level, try what it opens and what not, and take it back",
    )
    check.set_defaults(run=_check)

    demo = commands.add_parser("demo", help="a whole break-glass event on your own machine, in a browser")
    demo.add_argument("--play", action="store_true", help="live the story by itself and print what everybody saw")
    demo.add_argument(
        "--port", type=int, default=None, help="the port of the page (default: 8765, or the next free one)"
    )
    demo.set_defaults(run=_demo)

    policy_commands.add(commands.add_parser("policy", help="work on a policy file"))

    approve_command.add(commands)
    open_command.add(commands)
    ready_command.add(commands, who=_me)
    drill_command.add(commands)
    show_command.add(commands)
    digest_command.add(commands)
    export_command.add(commands, who=_me)
    log_commands.add(commands, who=_me)
    retention_commands.add(commands, who=_me)
    follower_commands.add(commands, who=_me)
    alert_command.add(commands, who=_me)
    capture_command.add(commands)
    vault_commands.add(commands)
    enrol_command.add(commands, who=_me)

    verify_command.add(commands)
    return parser


def _serve(_: argparse.Namespace) -> int:
    from bot.app import build  # noqa: PLC0415 - Slack's libraries take half a second to import; verify needs none
    from bot.settings import from_environment  # noqa: PLC0415

    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    build(from_environment(os.environ)).run(ended)
    return OK


def _check(options: argparse.Namespace) -> int:
    from bot.check import check  # noqa: PLC0415
    from bot.settings import SettingsInvalid, from_environment  # noqa: PLC0415

    try:
        settings = from_environment(os.environ)
    except SettingsInvalid as invalid:
        for problem in invalid.problems:
            print(f"PROBLEM  {problem}")
        return REFUSED
    found = check(settings, levels=options.levels, who=_me())
    for finding in found:
        print(f"{'ok     ' if finding.is_fine else 'PROBLEM'}  {finding.sentence}")
    problems = sum(not finding.is_fine for finding in found)
    print(f"{problems} problem{'' if problems == 1 else 's'}." if problems else "All is well.")
    return REFUSED if problems else OK


def _demo(options: argparse.Namespace) -> int:
    try:
        from bot.demo.run import run  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        raise Unavailable(f"The demo needs {missing.name}: install the project with its extra “demo”.") from None

    return run(play=options.play, port=options.port)


def _me() -> Actor:
    """Whoever types, as the machine knows them."""
    return Actor("", "shell:" + re.sub(r"[^!-~]", "_", getpass.getuser())[:40])


if __name__ == "__main__":
    sys.exit(main())
