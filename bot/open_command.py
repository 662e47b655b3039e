"""How is a credential used on the responder's own machine without anybody seeing it? ``breakglass open BG-7KQ2``.

Rules
-----
* It needs nothing but the code from Slack's window and a way to Vault: no settings, no database, no Slack.
* The code is asked for without echo, or read as the first line of what is piped in; it is never an argument.
* Whatever can be wrong is found before the credential is opened, because that works once.
* The secret is in the environment of the program that is started in this one's place, and nowhere else.
"""

from __future__ import annotations

import getpass
import os
import shutil
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NoReturn

from workflows import delivery
from workflows.engines.naming import REQUEST
from workflows.errors import Invalid, Unavailable
from workflows.vault import Vault

if TYPE_CHECKING:
    import argparse

_LONGEST: Final = 20_000  # bytes of a code


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    command = commands.add_parser(
        "open",
        help="open a granted credential on this machine: starts psql, say, and shows no secret",
        description="Takes the credential that Slack's window has a code for, and starts the program that uses it. "
        "VAULT_CACERT names the certificates of a private authority; when VAULT_ADDR is set, the code must be of it.",
    )
    command.add_argument("request", metavar="BG-7KQ2", help="the request, as Slack shows it")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> NoReturn:
    """Open it and become the program. Raises Refused, Unavailable, VaultRefused, with what the person does next."""
    request_id = str(options.request).upper()
    if not REQUEST.fullmatch(request_id):
        raise Invalid("Name the request: breakglass open BG-7KQ2.")
    parcel = delivery.read_code(_code(), request_id)
    expected = os.environ.get("VAULT_ADDR", "").strip().rstrip("/")
    if expected and expected != parcel.address:
        # A code that somebody made up could lead to a Vault of theirs, and from there to a target of theirs.
        raise Invalid(
            f"The code is of the Vault at {parcel.address}, and VAULT_ADDR says {expected}. Nothing was opened. If the "
            "first is right, unset VAULT_ADDR and try again."
        )
    program = delivery.program_of(parcel)
    if shutil.which(program) is None:
        raise Unavailable(f"{program} is not installed on this machine. Nothing was opened; install it and try again.")
    vault = Vault(
        parcel.address,
        token=parcel.token,
        namespace=parcel.namespace,
        ca_file=os.environ.get("VAULT_CACERT", "").strip() or None,
    )
    session = delivery.open_parcel(parcel, vault, now=datetime.now(UTC))
    print(f"Opened {request_id}: starting {program}. Press Done in Slack when you are finished.", file=sys.stderr)
    sys.stderr.flush()
    os.execvpe(program, session.arguments, {**os.environ, **session.environment})  # noqa: S606 - no shell is wanted


def _code() -> str:
    if sys.stdin.isatty():
        return getpass.getpass("The code from Slack's window (it is not shown): ")
    # Byte by byte: what follows the first line is for the program that is started.
    line = bytearray()
    while (byte := os.read(0, 1)) not in {b"", b"\n"}:
        line += byte
        if len(line) > _LONGEST:
            raise Invalid("That is too long for a code. Copy it from Slack's window again.")
    return line.decode(errors="replace")
