#!/usr/bin/python3 -I
"""What stands at a host so that every program a responder starts there is on record?

Installed as ``/usr/local/sbin/breakglass-sudo``, owned by root, beside ``breakglass-ssh``. It needs Python 3.7 and sudo
1.9.13 or later.

* ``enter`` is what sshd's ForceCommand runs as root: it has sudo run the responder's shell, recorded, under a name
  that says which certificate it is.
* ``lines`` makes one line of each event of sudo's log, for ``breakglass capture tail``, and watches over the room on
  the disk. It runs for ever.

Rules
-----
* Whose a session is says the kernel (``breakglass-ssh who``): nothing that runs as the responder can change it. It
  stands in the path of the session's recording, and sudo writes that path into every event.
* A session is let in only while the events are read and there is room for them.
* sudo writes its event before a program begins, and waits for its log's lock. When it cannot write, it says so, and the
  program begins all the same. So, before the disk is full, the lock is held here, and no program begins until there is
  room again.
* An event is read once, whatever dies: where it stood is in the line that was made of it. What it held of the
  environment stays here.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pwd
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SUDO = "/usr/bin/sudo"
SSH = Path("/usr/local/sbin/breakglass-ssh")
RUN = Path("/run/breakglass-sudo")
LOG = Path("/var/log/breakglass-sudo")

KEY_ID = re.compile(r"token-(BG-[0-9A-Z]{4,12}-[0-9]{1,9}|check-[0-9a-f]{8})")
SHELLS = ("/bin/bash", "/bin/sh")
ROOM = 64 * 2**20  # bytes: with less no program begins
PAUSE = 0.1  # seconds between two looks
KEPT_EVENTS = 8 * 2**20  # bytes; what was read of a bigger log is dropped
KEPT_LINES = 64 * 2**20  # bytes; a bigger file is renamed, for one generation
MOST = 64 * 2**20  # bytes of one event
MOST_ARGV = 256 * 1024  # characters of the arguments in a line
_TAIL = 4 * 2**20

_START = re.compile(rb'^    "([a-z_]+)": \{$', re.MULTILINE)
_END = re.compile(rb"^    \}", re.MULTILINE)
_FIRST = re.compile(rb'"uuid": "([0-9a-f-]+)"')


class Refused(Exception):
    """The session is not let in. ``str()`` is what the responder reads."""


class Place:
    """Where everything is."""

    def __init__(self, run: Path, log: Path, ssh: Path) -> None:
        self.names = run / "as"
        self.alive = run / "alive"
        self.log = log
        self.events = log / "events.json"
        self.lines = log / "lines.json"
        self.ssh = ssh

    def make(self) -> None:
        """Make what is missing."""
        self.names.mkdir(parents=True, exist_ok=True, mode=0o755)
        self.log.mkdir(parents=True, exist_ok=True, mode=0o700)

    def has_room(self) -> bool:
        """Whether there is room for events."""
        found = os.statvfs(str(self.log))
        return found.f_bavail * found.f_frsize >= ROOM


# --- a session --------------------------------------------------------------------------------------------------------


def enter(place: Place, env: Mapping[str, str]) -> NoReturn:
    """Become sudo, which runs the responder's shell and records it. Raises :class:`Refused`, OSError."""
    account = pwd.getpwuid(int(env.get("SUDO_UID", "0")))
    if account.pw_uid == 0:
        raise Refused("who is root already is not recorded")
    if account.pw_shell != "/bin/sh":
        # Attack: bash reads the account's own .bashrc also for a forced command: what one responder left there would
        # run in the next one's session, before anything is recorded.
        raise Refused(f"the login shell of {account.pw_name} must be /bin/sh")
    if not _is_read(place):
        raise Refused("nobody reads the record (breakglass-sudo lines does not run)")
    if not place.has_room():
        raise Refused("there is no room for the record")
    said = json.loads(
        subprocess.run([str(place.ssh), "who"], stdout=subprocess.PIPE, check=True, timeout=20).stdout  # noqa: S603
    )
    match = KEY_ID.fullmatch(str(said.get("key_id")))
    if match is None:
        raise Refused(str(said.get("error") or "its certificate is none of ours"))
    name = place.names / match[1].lower()
    with contextlib.suppress(FileExistsError):
        name.symlink_to(next(shell for shell in SHELLS if os.access(shell, os.X_OK)))
    # What the certificate forces sshd leaves to us, for its configuration forces this.
    command = said.get("command") or env.get("SSH_ORIGINAL_COMMAND")
    kept = {one: value for one, value in env.items() if one in ("TERM", "LANG", "COLORTERM")}
    try:
        os.chdir(account.pw_dir)
    except OSError:
        os.chdir("/")
    words = ["sudo", "-n", "-H", "-u", account.pw_name, "--", str(name)]
    words += ["-c", command] if command else ["-l"]
    os.execve(SUDO, words, {**kept, "PATH": os.defpath})  # noqa: S606


def _is_read(place: Place) -> bool:
    try:
        with place.alive.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


# --- events -----------------------------------------------------------------------------------------------------------


def events(data: bytes) -> Iterator[tuple[int, str | None, bytes]]:
    """Give the end, the name and the body of each whole event; without a name what only began.

    sudo writes all events into one JSON object, and sets each one in by four places; within a text there is no line.
    """
    at = 0
    while True:
        start = _START.search(data, at)
        if start is None:
            return
        end = _END.search(data, start.end())
        again = _START.search(data, start.end(), end.start() if end else len(data))
        if again is not None:
            # The disk was full in the middle of the first one.
            at = again.start()
            yield at, None, data[start.start() : at]
        elif end is None:
            return
        else:
            at = end.end()
            yield at, start.group(1).decode("ascii"), data[start.end() - 1 : at]


def line_of(name: str | None, body: bytes, log: Mapping[str, Any]) -> bytes:
    """Return an event as one line, without its environment; what cannot be read as its hash."""
    torn = {"torn": {"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}}
    if name is None:
        record: dict[str, Any] = torn
    else:
        try:
            # A word of a command is any bytes, and sudo writes those that are no UTF-8 as they are.
            event = json.loads(body.decode("utf-8", errors="surrogateescape"))
        except ValueError:
            record = torn
        else:
            event.pop("runenv", None)
            event.pop("submitenv", None)
            _cut(event)
            record = {name: event}
    return json.dumps({"log": log, **record}, separators=(",", ":")).encode("ascii") + b"\n"


def _cut(event: dict[str, Any]) -> None:
    words, left = event.get("runargv"), MOST_ARGV
    if not isinstance(words, list) or sum(map(len, words)) <= left:
        return
    kept = []
    for word in words:
        kept.append(word[:left])
        left -= len(word)
        if left <= 0:
            break
    whole = "\0".join(words).encode("utf-8", errors="replace")
    event["runargv"], event["cut"] = kept, {"sha256": hashlib.sha256(whole).hexdigest(), "bytes": len(whole)}


class Reader:
    """Makes lines of sudo's events. Where it is stands in the last line."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.first: str | None = None
        self.at = 0
        self._open: Any = None
        self.is_held = False
        self.size = 0  # of the file of lines, up to the end of the last one
        self._find()

    def _find(self) -> None:
        with contextlib.suppress(FileNotFoundError), self.place.lines.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            tail = file.read()
            whole = tail[: tail.rfind(b"\n") + 1]
            self.size = size - len(tail) + len(whole)
            file.truncate(self.size)  # this program died in the middle of a line
            if whole:
                log = json.loads(whole[whole.rfind(b"\n", 0, -1) + 1 :])["log"]
                self.first, self.at = log["first"], log["end"]

    def _file(self) -> Any:  # noqa: ANN401
        """Return sudo's log. It stays open: closing it would give its lock back."""
        if self._open is not None:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._open.fileno()), self.place.events.stat()):
                    return self._open
        # Unbuffered: what was there before must not be read again.
        self._open = os.fdopen(os.open(str(self.place.events), os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)
        self.is_held = False
        return self._open

    def hold(self, *, is_held: bool) -> None:
        """Let no program begin, or let them again: what asks for the lock waits."""
        fcntl.lockf(self._file(), fcntl.LOCK_EX if is_held else fcntl.LOCK_UN)
        self.is_held = is_held

    def step(self) -> int:
        """Make lines of the events that are new, and return how many."""
        file = self._file()
        made = self._read(file)
        if self.at > KEPT_EVENTS and not made:
            # Nothing is written meanwhile: what is dropped was read.
            was_held = self.is_held
            self.hold(is_held=True)
            made = self._read(file)
            if not made:
                file.truncate(0)
            self.hold(is_held=was_held)
        if self.size > KEPT_LINES:
            self.place.lines.replace(self.place.lines.with_suffix(".json.1"))
            self.size = 0
            self._write(json.dumps({"log": {"first": self.first, "end": self.at}, "began": {}}).encode() + b"\n")
        return made

    def _read(self, file: Any) -> int:  # noqa: ANN401
        file.seek(0)
        found = _FIRST.search(file.read(65_536))
        if found is None:
            return 0
        first = found.group(1).decode("ascii")
        if first != self.first:
            # A log that was begun anew.
            self.first, self.at = first, 0
        size = file.seek(0, os.SEEK_END)
        begun, lines = self.at, []
        if size < begun:
            # The machine died, and with it the end of the log.
            self.at = size
            lines.append(line_of(None, b"", {"first": first, "end": size}))
        file.seek(self.at)
        data = file.read(MOST)
        for end, name, body in events(data):
            self.at = min(begun, size) + end
            lines.append(line_of(name, body, {"first": first, "end": self.at}))
        if not lines and len(data) == MOST:
            self.at += len(data)
            lines.append(line_of(None, data, {"first": first, "end": self.at}))
        try:
            self._write(b"".join(lines))
        except OSError:
            self.at = begun
            raise
        return len(lines)

    def _write(self, lines: bytes) -> None:
        if not lines:
            return
        handle = os.open(str(self.place.lines), os.O_WRONLY | os.O_CREAT, 0o600)
        with os.fdopen(handle, "wb") as file:
            # After a full disk there may be the beginning of a line.
            file.truncate(self.size)
            file.seek(self.size)
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self.size += len(lines)


def follow(place: Place) -> NoReturn:
    """Make lines of events for ever, and let no program begin while there is no room. Raises OSError."""
    place.make()
    with place.alive.open("ab") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        reader = Reader(place)
        while True:
            has_room = place.has_room()
            reader.hold(is_held=not has_room)
            # Without room there is none for the lines, either: they are written when there is.
            with contextlib.nullcontext() if has_room else contextlib.suppress(OSError):
                reader.step()
            time.sleep(PAUSE)


def main(words: Sequence[str]) -> int:
    """Run one of the two. Returns the exit code."""
    words = list(words)
    place = Place(RUN, LOG, SSH)
    if words[:1] == ["--state"]:
        state = Path(words[1])
        place = Place(state / "run", state / "log", state / "breakglass-ssh")
        del words[:2]
    if words == ["enter"]:
        try:
            enter(place, os.environ)
        except (Refused, OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
            print(f"This session cannot be recorded, so it is not opened: {error}.", file=sys.stderr)  # noqa: T201
            return 1
    if words == ["lines"]:
        follow(place)
    print("usage: breakglass-sudo [--state DIR] enter|lines", file=sys.stderr)  # noqa: T201
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
