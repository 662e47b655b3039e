"""What may the words of a level's options be, and where at Vault and at the target do they lead?

Shared by the engines whose credential is made by a role of a mount. What is refused here would reach somewhere else:
the words become parts of a Vault path, of a policy, of a connection string and of a shell line.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

# No slash too many, no glob, no "..".
MOUNT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(/[A-Za-z0-9][A-Za-z0-9_-]*)*")
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
# A request, as people and programs name it (Desk makes them, of fewer letters).
REQUEST: Final = re.compile(r"BG-[0-9A-Z]{4,12}")
_HOST: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*|[0-9A-Fa-f:]*:[0-9A-Fa-f:]*")
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")


def role_problems(options: Mapping[str, str], *, gives: str = "credential") -> dict[str, str]:
    """Return what is wrong with ``mount``, ``role`` and ``watch_role``, by key. ``gives``: what the roles make."""
    found: dict[str, str] = {}
    if not MOUNT.fullmatch(options["mount"]):
        found["mount"] = f"{options['mount']!r} is not the path of a Vault mount."
    for key in ("role", "watch_role"):
        if key in options and not NAME.fullmatch(options[key]):
            found[key] = f"{options[key]!r} is not the name of a Vault role."
    if options.get("watch_role") == options["role"]:
        found["watch_role"] = f"The bot would look with a {gives} of the level itself: name another role."
    return found


def server_problems(options: Mapping[str, str]) -> dict[str, str]:
    """Return what is wrong with ``host`` and ``port``, by key."""
    found: dict[str, str] = {}
    if not _HOST.fullmatch(options["host"]):
        found["host"] = f"{options['host']!r} is not a host name or an address."
    if not _PORT.fullmatch(options["port"]) or int(options["port"]) > 65535:
        found["port"] = f"{options['port']!r} is not a TCP port."
    return found


def creds_path(options: Mapping[str, str]) -> str:
    """Return the path that makes the level's credential; the ids of its leases begin with it."""
    return f"{options['mount']}/creds/{options['role']}"


def watch_path(options: Mapping[str, str]) -> str:
    """Return the path of what the bot only looks with. ``watch_role`` is there."""
    return f"{options['mount']}/creds/{options['watch_role']}"


def is_local(host: str) -> bool:
    """Whether a host is this machine: what goes there is on no wire."""
    return host in {"localhost", "::1"} or host.startswith("127.")


def mark_of(request_id: str) -> str:
    """Return what every name at a target begins with that belongs to a request."""
    return f"{request_id.lower()}-"


def like_exactly(text: str) -> str:
    """Return the pattern of SQL's LIKE that matches this text alone."""
    return text.replace("\\", "\\\\").replace("_", "\\_").replace("%", "\\%")
