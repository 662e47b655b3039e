"""The parts of a capture as processes of their own, so that they can be killed: the bot's end, and the tailer.

Run as a program it reads one JSON object a line, ``{"what": "bot" | "tail", …}``, and answers with the number of the
process that it has forked: to import all of it anew for each would take longer than the rest of a round.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

from bot.capture_command import Poster
from bot.ingest import Ingest
from bot.settings import Listen
from bot.tailer import Tailer
from storage.database import Database
from workflows import policy as rules
from workflows.recorder import Recorder

HOST = "127.0.0.1"


class Parts:
    """Starts parts, and kills them."""

    def __init__(self, folder: Path) -> None:
        self._said = (folder / "said").open("ab")
        self._forking = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self._running: set[int] = set()

    def start(self, what: str, **told: object) -> int:
        """Start a part; return its process' number."""
        self._forking.stdin.write(json.dumps({"what": what, **told}).encode() + b"\n")
        self._forking.stdin.flush()
        pid = int(self._forking.stdout.readline())
        self._running.add(pid)
        return pid

    def end(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """End a part, and return when it has ended."""
        os.kill(pid, number)
        while Path(f"/proc/{pid}").exists():
            threading.Event().wait(0.005)
        self._running.discard(pid)

    def close(self) -> None:
        """End all."""
        for pid in tuple(self._running):
            self.end(pid)
        self._forking.stdin.close()
        self._forking.wait()
        self._forking.stdout.close()
        self._said.close()


def _bot(told: dict[str, str]) -> None:
    policy = rules.parse(Path(told["policy"]).read_text(encoding="utf-8"), name="parts")
    recorder = Recorder(Database(told["url"]), lambda: policy)
    ingest = Ingest(
        Listen(HOST, int(told["port"])),
        sources=lambda: policy.captures,
        take=recorder.take,
        now=lambda: datetime.now(UTC),
    )
    ingest.start()
    threading.Event().wait()


def _tail(told: dict[str, str]) -> None:
    poster = Poster(f"http://{HOST}:{told['port']}", told["source"], told["token"])
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    Tailer(Path(told["file"]), poster, state=Path(told["state"]), spool=Path(told["spool"])).run(ended)


def _serve() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    for line in sys.stdin.buffer:
        told = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.close(0)
            os.close(1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            {"bot": _bot, "tail": _tail}[told["what"]](told)
            os._exit(0)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
