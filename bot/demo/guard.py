"""How does a server never outlive whoever started it, however that one ends?

Run as a program: ``python -I -S guard.py SIGNAL UID GID SCRATCH COMMAND…``. It starts COMMAND, prints its process id,
and ends it when its own standard input closes. The starter holds the other end of that pipe: when the starter returns,
raises, is interrupted or is killed with SIGKILL, the kernel closes the pipe and the server goes too.

Rules
-----
* A pipe, not ``PR_SET_PDEATHSIG``: that one fires when the *thread* that started the server ends, and is Linux only.
* The guard ends with the server's exit code as soon as the server ends by itself, so the starter sees a crash.
* SIGNAL asks politely; after ``PATIENCE`` seconds the server is killed.
* A starter that is still there says so with one byte before it closes the pipe. One that died left SCRATCH behind, a
  folder outside of everybody's sight: it is removed ("-" for none).
* UID and GID other than -1 are taken on before COMMAND runs (PostgreSQL refuses to be root).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from typing import Final

PATIENCE: Final = 8.0


def _end(server: subprocess.Popen[bytes], polite: int, is_orphan: threading.Event) -> None:
    """Wait for the starter to let go, then end the server."""
    if not os.read(0, 1):
        is_orphan.set()
    server.send_signal(polite)
    try:
        server.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        server.kill()


def main(arguments: list[str]) -> int:
    """Start, announce, guard; returns the server's exit code (128 + n when signal n ended it)."""
    polite, uid, gid = (int(word) for word in arguments[:3])
    scratch, *command = arguments[3:]
    account = {"user": uid, "group": gid, "extra_groups": []} if uid >= 0 else {}
    # Standard output carries the announcement only; what the server says goes where the guard's errors go, to its log.
    server: subprocess.Popen[bytes] = subprocess.Popen(  # type: ignore[call-overload]
        command, stdin=subprocess.DEVNULL, stdout=sys.stderr, **account
    )
    os.write(1, b"%d\n" % server.pid)
    for asked in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Whoever ends the guard means the server.
        signal.signal(asked, lambda *_: server.send_signal(polite))
    is_orphan = threading.Event()
    threading.Thread(target=_end, args=(server, polite, is_orphan), daemon=True).start()
    code = server.wait()
    if is_orphan.is_set() and scratch != "-":
        shutil.rmtree(scratch, ignore_errors=True)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    # No flush and no thread join at the end: the watching thread may still be in its read.
    os._exit(main(sys.argv[1:]))
