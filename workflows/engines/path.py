"""How does a credential come from any other path of Vault that answers with a lease?

For the engines that have no file of their own here: rabbitmq, aws, ldap, consul, a plugin. The level says which path is
read and what becomes of the answer's fields.

Rules
-----
* The path is read (GET) with the grant's own token, and the answer must have a lease: without one nothing at Vault
  takes the credential back, and it is refused. So a static role (a password that Vault only rotates) is refused, too.
* What stands in ``sys``, ``auth``, ``identity`` and ``cubbyhole`` is Vault's own and no credential.
* Only the fields that the level names are shown. ``identity_field`` is written into the log as the name at the target,
  so a field that sounds like a secret is refused there.
* What is left at Vault is looked for as for every lease (``leases.py``). Nobody knows how to look at the target: when
  Vault says gone, that is all that is shown.
* The name at the target carries the request only when Vault's role makes it so: see ``ENGINES.md``.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from workflows.engines.leases import Leased
from workflows.engines.seam import Rule, Write, lease_rules
from workflows.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

    from workflows.engines import Held, Wish
    from workflows.vault import ChildToken, Vault

# Of every part the first character is a letter or a digit: no "..", no "//", and no glob anywhere.
PATH: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)+")
FIELD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
VARIABLE: Final = re.compile(r"[A-Z][A-Z0-9_]*")

_VAULTS_OWN: Final = frozenset({"sys", "auth", "identity", "cubbyhole"})
# These change what the shell itself does, and the value comes from elsewhere.
_SHELLS_OWN: Final = re.compile(
    "PATH|IFS|ENV|BASH_ENV|HOME|SHELL|USER|LOGNAME|PWD|OLDPWD|CDPATH|TMPDIR|PS[0-9]|PROMPT_COMMAND|SHELLOPTS|BASHOPTS|"
    "EDITOR|VISUAL|PAGER|TERM|LANG|LC_.*|LD_.*|DYLD_.*|PYTHON.*|PERL.*|RUBY.*|NODE_.*|GIT_.*"
)
_SECRETIVE: Final = re.compile(r"(pass|secret|token|private|credential|signature|jwt|pem)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answer:
    """What Vault answered, as far as the level names it. ``variables`` and ``shown`` are in the level's order."""

    username: str
    variables: tuple[tuple[str, str], ...] = field(repr=False)
    shown: tuple[tuple[str, str], ...] = field(repr=False)
    lease_id: str
    ttl: timedelta

    def lines(self) -> tuple[str, ...]:
        """Return the line that puts the fields into the environment, quoted for a POSIX shell; none without any.

        ``export`` is the shell's own: the values are in no list of processes and their arguments.
        """
        words = " ".join(f"{name}={shlex.quote(value)}" for name, value in self.variables)
        return (f"export {words}",) if words else ()


class Path(Leased):
    """Any path of Vault whose reading makes a credential with a lease."""

    keys: Final = {
        "path": True,
        "identity_field": True,  # the answer's field that names the credential at the target
        "exports": False,  # "access_key=AWS_ACCESS_KEY_ID, secret_key=AWS_SECRET_ACCESS_KEY"
        "shows": False,  # "username, password"
    }
    needs_public_key: Final = False

    def problems(self, options: Mapping[str, str]) -> dict[str, str]:
        """Return what is wrong, by key."""
        found: dict[str, str] = {}
        path = options["path"]
        if not PATH.fullmatch(path):
            found["path"] = f"{path!r} is not a path of Vault, such as aws/creds/repair."
        elif path.split("/")[0].lower() in _VAULTS_OWN:
            found["path"] = f"{path!r} is Vault's own and gives no credential."
        name = options["identity_field"]
        if not FIELD.fullmatch(name):
            found["identity_field"] = f"{name!r} is not the name of a field."
        elif _SECRETIVE.search(name):
            found["identity_field"] = f"{name!r} sounds like a secret, and this field is written into the log."
        if "exports" not in options and "shows" not in options:
            found["exports"] = "Nothing of the answer would be shown: name fields in exports or in shows."
        if why := _not_pairs(options.get("exports", "field=VARIABLE")):
            found["exports"] = why
        shows = _names(options.get("shows", "field"))
        if not all(FIELD.fullmatch(one) for one in shows):
            found["shows"] = f"{options['shows']!r} is not a list of fields, such as username, password."
        elif len(set(shows)) < len(shows):
            found["shows"] = "A field is named twice."
        return found

    def path(self, options: Mapping[str, str]) -> str:
        """Return the path whose reading makes the credential."""
        return options["path"]

    def lease_prefix(self, options: Mapping[str, str]) -> str:
        """Return the path again: lease ids begin with what was read."""
        return options["path"]

    def issue(self, vault: Vault, child: ChildToken, options: Mapping[str, str], wish: Wish) -> Answer:  # noqa: ARG002
        """Read the path and return what the level shows of it. Raises Unavailable, VaultRefused.

        From the reading on whatever is wrong is Unavailable: there is a lease now, and it is to be seen gone.
        """
        secret = vault.read_as(child, options["path"])
        return self.credential(options, secret.data, secret.lease_id, min(child.ttl, secret.lease_duration))

    def credential(
        self, options: Mapping[str, str], data: Mapping[str, object], lease_id: str, ttl: timedelta
    ) -> Answer:
        """Return what the level shows of an answer. Raises Unavailable when nobody is named in it."""
        identity = _text(data, options["identity_field"])
        if not identity:
            raise Unavailable(f"The answer of {options['path']!r} has no {options['identity_field']!r} in it.")
        pairs = [pair.split("=") for pair in _names(options.get("exports", ""))]
        return Answer(
            identity,
            # An empty field is left out: AWS takes an empty session token for a wrong one.
            tuple((variable, value) for name, variable in pairs if (value := _text(data, name))),
            tuple((name, value) for name in _names(options.get("shows", "")) if (value := _text(data, name))),
            lease_id,
            ttl,
        )

    def prove(self, vault: Vault, grant: Held) -> tuple[str, ...]:  # noqa: ARG002
        """Return nothing: what the target is, and how to look at it, is not known here."""
        return ()

    def identities(self, vault: Vault, options: Mapping[str, str]) -> frozenset[str]:  # noqa: ARG002
        """Return nothing, as :meth:`prove`."""
        return frozenset()

    def child_rules(self, options: Mapping[str, str]) -> tuple[Rule, ...]:
        """Return the right to read that path."""
        return (Rule(options["path"], ("read",)),)

    def bot_rules(self, options: Mapping[str, str]) -> tuple[Rule, ...]:
        """Return the rights to see and end the leases of that path."""
        return lease_rules(options["path"])

    def writes(self, options: Mapping[str, str], longest: timedelta) -> tuple[Write, ...]:  # noqa: ARG002
        """Return nothing: how the role behind the path is made is not known here."""
        return ()


def _names(listed: str) -> tuple[str, ...]:
    return tuple(one.strip() for one in listed.split(",")) if listed else ()


def _not_pairs(listed: str) -> str:
    """Return what is wrong with ``field=VARIABLE, …``; "" when nothing is."""
    variables: set[str] = set()
    for pair in _names(listed):
        name, equals, variable = pair.partition("=")
        if not equals or not FIELD.fullmatch(name) or not VARIABLE.fullmatch(variable):
            return f"{pair!r} is not a field and a variable, such as access_key=AWS_ACCESS_KEY_ID."
        if _SHELLS_OWN.fullmatch(variable):
            return f"{variable} is the shell's or a program's own: a value from elsewhere must not get there."
        if variable in variables:
            return f"{variable} is named twice."
        variables.add(variable)
    return ""


def _text(data: Mapping[str, object], name: str) -> str:
    """Return a field as text, "" for null. Raises Unavailable when it is not there, or is more than one value."""
    found = data.get(name, _NOTHING)
    if found is None:
        return ""
    if isinstance(found, bool) or not isinstance(found, str | int) or "\0" in str(found):
        raise Unavailable(f"What Vault gave has no usable field {name!r}: the level's settings do not fit its engine.")
    return str(found)


_NOTHING: Final = object()
