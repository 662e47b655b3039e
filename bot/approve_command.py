"""What does a custodian type to authorise a credential with a key of their own? ``breakglass approve BG-7KQ2``.

Rules
-----
* It runs on the custodian's machine, with their own login at Vault, and talks to Vault alone: neither the bot nor Slack
  can answer in their place, and it works while Slack is down.
* It shows what Vault says is to be authorised, and asks. What the thread said is not repeated here as if it were known.
* An accessor that belongs to another request is refused before anything is asked.
* A password is asked for without echo, is nowhere among the arguments, and the token that it gets is ended at once.
"""

from __future__ import annotations

import getpass
import os
import re
import sys
from typing import TYPE_CHECKING, Final

from bot.blockkit import clean
from bot.settings import own_from_environment
from workflows.control_group import ACCESSOR, Custodian
from workflows.engines.naming import MOUNT, REQUEST
from workflows.errors import Conflict, Invalid, Refused

if TYPE_CHECKING:
    import argparse

    from workflows.control_group import Authorisations, Shown

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,99}")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``approve`` to the command line."""
    approve = commands.add_parser(
        "approve", help="authorise a credential with your own login at Vault (VAULT_ADDR, VAULT_TOKEN)"
    )
    approve.add_argument("request", metavar="BG-7KQ2", help="the request, as you know it")
    approve.add_argument("--accessor", required=True, help="what waits for you, from the request's thread")
    approve.add_argument("--user", help="log in with this name and a password instead of VAULT_TOKEN")
    approve.add_argument("--method", choices=("userpass", "ldap"), default="userpass", help="how you log in by name")
    approve.add_argument("--mount", help="where that way to log in is mounted (default: the method's name)")
    approve.set_defaults(run=_approve)


def _approve(options: argparse.Namespace) -> int:
    request_id = options.request.upper()
    for word, pattern, sentence in (
        (request_id, REQUEST, "A request's number looks like BG-7KQ2."),
        (options.accessor, ACCESSOR, "That is not an accessor: copy it from the request's thread."),
        (options.user or "a", _NAME, "That is not a user name at Vault."),
        (options.mount or "a", MOUNT, "That is not where a way to log in is mounted."),
    ):
        if not pattern.fullmatch(word):
            raise Invalid(sentence)
    missing = (
        "" if options.user is not None else "log in to Vault as yourself and put your token there, or give --user."
    )
    settings = own_from_environment(os.environ, missing=missing)
    custodian = Custodian(
        settings.vault_address, settings.vault_token, namespace=settings.vault_namespace, ca_file=settings.vault_ca_file
    )
    try:
        if options.user is not None:
            password = getpass.getpass(f"Password of {options.user} at {settings.vault_address}: ")
            custodian.log_in_as(options.user, password, method=options.method, mount=options.mount or options.method)
        # 1. What is it? Vault's words, not Slack's.
        shown = custodian.look(options.accessor)
        if shown.made_for is not None and not f"{shown.made_for}-".startswith(f"{request_id}-"):
            raise Conflict(
                f"STOP. This accessor is not of {request_id}: Vault says that it was made for "
                f"{_safe(shown.made_for)}. Nothing was authorised. Compare it with the thread, and call security if it "
                "is the one that stands there.",
                code="swapped",
            )
        sys.stdout.write(_text(shown))
        # 2. Does a person who knows why mean it?
        sys.stdout.write(f"Type {request_id} to authorise it, anything else to leave it: ")
        sys.stdout.flush()
        if sys.stdin.readline().strip().upper() != request_id:
            raise Refused("Nothing was authorised.", code="left")
        # 3. Say so to Vault.
        sys.stdout.write(_after(custodian.authorise(options.accessor)))
    finally:
        custodian.log_out()
    return 0


def _text(shown: Shown) -> str:
    made_for = shown.made_for or "(your login may not see it: compare the accessor with the thread)"
    return (
        "Vault waits for your authorisation, and yours counts once:\n"
        f"  what      {_safe(shown.state.operation)} {_safe(shown.state.path)}\n"
        f"  for       {_safe(made_for)}\n"
        f"  accessor  {shown.accessor}\n"
        f"  so far    {_names(shown.state)}\n"
        "Whoever gets it acts with it at once. Authorise it only if you know from a person why it is needed now.\n"
    )


def _after(state: Authorisations) -> str:
    end = "Vault gives it out now." if state.is_approved else "Vault waits for another custodian."
    return f"Authorised, on record at Vault as yours. So far: {_names(state)}. {end}\n"


def _names(state: Authorisations) -> str:
    return ", ".join(_safe(name or entity) for entity, name in state.counted("").items()) or "nobody"


def _safe(text: str) -> str:
    """Return what Vault said without what could play tricks in a terminal."""
    return clean(text, is_line=True)[:200]
