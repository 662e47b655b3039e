"""Who holds a claim, and is that one certainly dead?

Rules
-----
* A claim is a row with a holder and a time at which it runs out; see :class:`storage.models.Feed`.
* A holder is a process of one boot of one machine (or container). One that is no longer there holds nothing, so that a
  bot that is started again need not wait for its own ghost.
* What cannot be known counts as alive: then the claim's time decides.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

    from storage.models import Feed

_PROC: Final = Path("/proc")


def new_holder() -> str:
    """Return a name for a holder: who it is on this machine, where the machine can say, and a random part."""
    here, pid = _here(), os.getpid()
    return f"{here}/{pid}/{_started(pid) if here else ''}/{secrets.token_hex(4)}"


def is_held(row: Feed, now: datetime) -> bool:
    """Say whether somebody holds the claim: its time is not over, and its holder is not certainly dead."""
    if row.holder is None or row.held_until is None:
        return False
    return row.held_until > now and not is_dead(row.holder)


def is_dead(holder: str) -> bool:
    """Say whether a holder is certainly dead: of this boot of this machine (or container), and no longer there."""
    here, _, rest = holder.partition("/")
    pid, _, rest = rest.partition("/")
    started = rest.partition("/")[0]
    if not here or not started or here != _here() or not pid.isdigit():
        return False
    return _started(int(pid)) != started  # the number may have been given to somebody else since


def _here() -> str:
    """Name the space in which a process number means one process: this boot, this PID namespace. "" when unknown."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}-{(_PROC / 'self/ns/pid').stat().st_ino}"
    except (OSError, ValueError):
        return ""


def _started(pid: int) -> str:
    """When a process was started, in the kernel's ticks; "" when it is not there, or only waits to be buried."""
    try:
        words = (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if words[0] in (b"Z", b"X") else words[19].decode()
