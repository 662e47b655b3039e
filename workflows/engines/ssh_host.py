#!/usr/bin/python3 -I
"""What stands at a host that responders log in to with certificates, and ends them there?

Installed as ``/usr/local/sbin/breakglass-ssh``, owned by root. It needs Python 3.7, OpenSSH's ssh-keygen, and /proc.

* ``admit [--dedicated] USER CERTIFICATE`` is sshd's AuthorizedPrincipalsCommand: it notes which connection offers which
  certificate, before anybody is let in, and names the principals for whom the account is.
* ``watch`` is the forced command of the bot: one order in JSON on its input, one answer. It can end what carries the
  mark of an emergency request, and look; nothing else.
* ``sweep`` ends sessions whose certificate is over, also when the bot is gone for good: run it every few seconds.
* ``who`` says whose the connection is that it is called from: for the recorder of what is run there.
* ``init`` makes its folders and an empty revocation list.

Rules
-----
* The note is made by root before the login; nothing that runs as the responder can change or leave it out.
* A login is noted first and then looked up among what has ended; an end is listed first and then the notes are read:
  whatever their order, one of them sees the other.
* The revocation list outlives a restart of the machine, and the notes do not, as no session does.
* All processes of a connection are stopped before the first is killed: what is stopped starts nothing new.
* In an account of emergency access alone (``--dedicated``), what detached itself from its session ends, too.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import pwd
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Moved together by --state, for a trial.
RUN = Path("/run/breakglass-ssh")
LIB = Path("/var/lib/breakglass-ssh")
ETC = Path("/etc/breakglass-ssh")

OURS = re.compile(r"token-(BG-[0-9A-Z]{4,12}|check-[0-9a-f]{8})(-[0-9]{1,9})?")
USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
KEEP = 3 * 86400  # seconds: no certificate lives longer than a day, so the list need not grow for ever
PATIENCE = 5.0  # seconds to see a killed process gone
FIELDS = {
    "ssh-ed25519-cert-v01@openssh.com": 1,
    "sk-ssh-ed25519-cert-v01@openssh.com": 2,
    "sk-ecdsa-sha2-nistp256-cert-v01@openssh.com": 3,
    "ssh-rsa-cert-v01@openssh.com": 2,
}


class Place:
    """Where the notes and the revocation list are."""

    def __init__(self, run: Path, lib: Path, etc: Path) -> None:
        self.notes = run / "sessions"
        self.principals = etc / "principals"
        self.config = etc / "sshd_config"  # a link, where sshd reads another file than its own
        self.lib = lib
        self.ended = lib / "ended"
        self.revoked = lib / "revoked"

    def make(self) -> None:
        """Make what is missing."""
        for folder in (self.notes, self.lib, self.principals):
            folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        if not self.revoked.exists():
            with self.locked():
                self.write(self.read())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One end at a time."""
        with (self.lib / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def read(self) -> dict[str, int]:
        """Return what has ended, and when."""
        try:
            lines = self.ended.read_text(encoding="ascii").splitlines()
        except FileNotFoundError:
            return {}
        found = {}
        for line in lines:
            at, _, key_id = line.partition(" ")
            if at.isdigit() and OURS.fullmatch(key_id):
                found[key_id] = int(at)
        return found

    def write(self, ended: dict[str, int]) -> None:
        """Write the list and sshd's form of it, each whole or not at all."""
        _replace(self.ended, "".join(f"{at} {key_id}\n" for key_id, at in ended.items()).encode())
        with tempfile.TemporaryDirectory(dir=str(self.lib)) as folder:
            spec, made = Path(folder, "spec"), Path(folder, "krl")
            spec.write_text("".join(f"id: {key_id}\n" for key_id in ended), encoding="ascii")
            # "-s none": of whatever authority.
            _keygen("-k", "-q", "-s", "none", "-f", str(made), str(spec))
            _replace(self.revoked, made.read_bytes())

    def has(self, key_id: str) -> bool:
        """Whether the revocation list that sshd reads names it."""
        listed = _keygen("-Q", "-l", "-f", str(self.revoked))
        return f"id: {key_id}" in [line.strip() for line in listed.splitlines()]


def _keygen(*words: str) -> str:
    done = subprocess.run(  # noqa: S603
        ["/usr/bin/ssh-keygen", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, timeout=10
    )
    return done.stdout.decode("utf-8", errors="replace")


def _replace(file: Path, content: bytes) -> None:
    """Write a file so that a reader, and a machine that dies, sees the old or the new one."""
    handle, name = tempfile.mkstemp(dir=str(file.parent))
    try:
        with os.fdopen(handle, "wb") as new:
            new.write(content)
            new.flush()
            os.fsync(new.fileno())
        os.chmod(name, 0o644)  # noqa: PTH101
        os.replace(name, str(file))  # noqa: PTH105
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)  # noqa: PTH108
        raise
    folder = os.open(str(file.parent), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# --- certificates and processes ---------------------------------------------------------------------------------------


def read(certificate: str) -> tuple[str, int, str | None]:
    """Return key id, end (seconds since 1970) and forced command of a certificate. ValueError for what is none."""
    data = base64.b64decode(certificate, validate=True)
    at = 0

    def take(size: int) -> bytes:
        nonlocal at
        if at + size > len(data):
            raise ValueError("too short")
        at += size
        return data[at - size : at]

    def string() -> bytes:
        return take(int.from_bytes(take(4), "big"))

    kind = string().decode("ascii")
    for _ in range(1 + FIELDS.get(kind, -1)):
        string()  # a nonce, and the key
    if kind not in FIELDS:
        raise ValueError("no certificate of a kind that is signed here")
    take(8 + 4)
    key_id = string().decode("ascii")
    string()
    take(8)
    ends = int.from_bytes(take(8), "big")
    # A string within the option's string.
    options = _strings(string())
    forced = dict(zip(options[::2], options[1::2])).get(b"force-command")  # noqa: B905 - Python 3.7
    return key_id, ends, forced[4:].decode("utf-8") if forced is not None else None


def _strings(data: bytes) -> list[bytes]:
    """Split what is made of strings, each after its length."""
    found, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        found.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return found


def processes() -> dict[int, tuple[int, str, int]]:
    """Return parent, start and owner of every process that is not dead, by number."""
    found = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            stat = Path(entry.path, "stat").read_text(encoding="utf-8", errors="replace")
            owner = entry.stat().st_uid
        except OSError:
            continue
        words = stat[stat.rindex(")") + 2 :].split()  # a name may hold anything, also brackets
        if words[0] not in "ZX":
            found[int(entry.name)] = (int(words[1]), words[19], owner)
    return found


class Notes:
    """Which connections there are, and what came of them."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.all: list[dict[str, Any]] = []
        for file in sorted(place.notes.glob("*.json")):
            with contextlib.suppress(OSError, ValueError):
                self.all.append({**json.loads(file.read_text(encoding="utf-8")), "file": file})

    def live(self, now: dict[int, tuple[int, str, int]]) -> list[dict[str, Any]]:
        """Return the connections that are there."""
        return [note for note in self.all if note["pid"] in now and now[note["pid"]][1] == note["start"]]

    def members(self, now: dict[int, tuple[int, str, int]], key_id: str) -> dict[int, str]:
        """Return all processes of the connections of a certificate, with their starts."""
        live = self.live(now)
        found = _below(now, {note["pid"] for note in live if note["key_id"] == key_id})
        owners = {note["dedicated"] for note in self.all if note["key_id"] == key_id and note["dedicated"]}
        if owners:
            others = _below(now, {note["pid"] for note in live if note["key_id"] != key_id})
            found |= {pid for pid, (_, _, owner) in now.items() if owner in owners and pid not in others}
        return {pid: now[pid][1] for pid in found}


def _below(now: dict[int, tuple[int, str, int]], found: set[int]) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid, (parent, _, _) in now.items():
        children.setdefault(parent, []).append(pid)
    waiting, found = list(found), set(found)
    while waiting:
        for child in children.get(waiting.pop(), []):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found


def kill(place: Place, key_id: str) -> None:
    """End every process of a certificate: first stop all, so that none starts another, then kill."""
    late = time.monotonic() + PATIENCE
    while True:
        stopped: dict[int, str] = {}
        while time.monotonic() < late:
            fresh = {p: s for p, s in Notes(place).members(processes(), key_id).items() if stopped.get(p) != s}
            if not fresh:
                break
            for pid in fresh:
                _send(pid, signal.SIGSTOP)
            stopped.update(fresh)
        for pid in stopped:
            _send(pid, signal.SIGKILL)
        if not Notes(place).members(processes(), key_id) or time.monotonic() > late:
            return
        time.sleep(0.01)


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


# --- what is asked for ------------------------------------------------------------------------------------------------


def admit(place: Place, user: str, certificate: str, *, is_dedicated: bool) -> list[str]:
    """Note a connection, and return the principals that may log in to the account; none if it may not."""
    try:
        key_id, ends, command = read(certificate)
    except ValueError:
        return []
    if not OURS.fullmatch(key_id) or ends <= time.time():
        return []
    # sshd's process for this connection, which began this program.
    pid = os.getppid()
    known = processes().get(pid)
    if known is None:
        return []
    owner = pwd.getpwnam(user).pw_uid
    note = {
        "pid": pid,
        "start": known[1],
        "key_id": key_id,
        "ends": ends,
        "dedicated": owner if is_dedicated and owner != 0 else 0,
        "command": command,
    }
    place.notes.mkdir(parents=True, exist_ok=True, mode=0o755)
    name = f"{pid}-{known[1]}-{key_id}"
    waiting = place.notes / f"{name}.{os.getpid()}"
    waiting.write_text(json.dumps(note), encoding="utf-8")
    waiting.replace(place.notes / f"{name}.json")
    if key_id in place.read():
        return []
    return (place.principals / user).read_text(encoding="ascii").split()


def end(place: Place, key_id: str) -> dict[str, Any]:
    """Put a certificate on the revocation list, end its sessions, and say what is left."""
    now = int(time.time())
    with place.locked():
        ended = place.read()
        if key_id not in ended or not place.has(key_id):
            ended = {one: at for one, at in ended.items() if at > now - KEEP}
            place.write({**ended, key_id: ended.get(key_id, now)})
    kill(place, key_id)
    return look(place, key_id)


def look(place: Place, key_id: str) -> dict[str, Any]:
    """Say what there is of a certificate."""
    notes, now = Notes(place), processes()
    return {
        "key_id": key_id,
        "revoked": key_id in place.read() and place.has(key_id),
        "sessions": sum(note["key_id"] == key_id for note in notes.live(now)),
        "processes": len(notes.members(now, key_id)),
    }


def ready(place: Place, user: str) -> dict[str, Any]:
    """Say whether sshd, as it is configured for an account, would note its logins and heed the revocation list."""
    config = ["-f", str(place.config)] if place.config.exists() else []
    words = ["/usr/sbin/sshd", "-T", *config, "-C", f"user={user},host=localhost,addr=127.0.0.1"]
    done = subprocess.run(  # noqa: S603
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, timeout=10
    )
    said = dict(line.partition(" ")[::2] for line in done.stdout.decode("utf-8", errors="replace").splitlines())
    admits = said.get("authorizedprincipalscommand", "none")
    wanted = {
        "RevokedKeys": said.get("revokedkeys") == str(place.revoked),
        "TrustedUserCAKeys": said.get("trustedusercakeys", "none") != "none",
        "AuthorizedPrincipalsCommand": " admit " in admits and admits.endswith("%u %k"),
        "AuthorizedPrincipalsFile": said.get("authorizedprincipalsfile") == "none",
    }
    wrong = [name for name, is_fine in wanted.items() if not is_fine]
    return (
        {"error": f"sshd's settings for {user} are not those of the set-up: {', '.join(wrong)}"}
        if wrong
        else {"ready": True}
    )


def watch(place: Place, line: str) -> dict[str, Any]:
    """Do one order of the bot's: end or look at a certificate that carries our mark, list sessions, look at sshd."""
    try:
        order = json.loads(line)
    except ValueError:
        order = None
    what = order.get("do") if isinstance(order, dict) else None
    if what == "sessions":
        return {"key_ids": sorted({note["key_id"] for note in Notes(place).live(processes())})}
    key_id, user = (order.get("key_id"), order.get("user")) if isinstance(order, dict) else (None, None)
    try:
        if what == "ready" and isinstance(user, str) and USER.fullmatch(user):
            return ready(place, user)
        if what not in ("end", "look") or not isinstance(key_id, str) or not OURS.fullmatch(key_id):
            return {"error": "no such order"}
        return end(place, key_id) if what == "end" else look(place, key_id)
    except (OSError, subprocess.SubprocessError) as error:
        return {"error": f"{type(error).__name__}: {error}"}


def who(place: Place) -> dict[str, Any]:
    """Say whose the connection is that this program was called from, and what command its certificate forces.

    Asked for is the kernel's record of who began whom, which nobody can change.
    """
    now = processes()
    notes = Notes(place).live(now)
    pid = os.getpid()
    while pid in now:
        found = [note for note in notes if note["pid"] == pid]
        if len({note["key_id"] for note in found}) > 1:
            # Attack: a certificate is noted when it is offered, before its key is shown.
            return {"error": "the connection offered several certificates: offer one (IdentitiesOnly=yes)"}
        if found:
            ended = found[0]["key_id"] in place.read()
            return {"error": "its certificate has ended"} if ended else found[0]
        pid = now[pid][0]
    return {"error": "it is called from no connection that is noted"}


def sweep(place: Place) -> None:
    """End the sessions of certificates that are over or ended, and drop notes that nobody needs any more."""
    ended, now = place.read(), processes()
    notes = Notes(place)
    live = {note["file"] for note in notes.live(now)}
    over = {note["key_id"] for note in notes.all if note["ends"] <= time.time() or note["key_id"] in ended}
    for key_id in sorted(over):
        kill(place, key_id)
    for note in notes.all:
        if note["key_id"] in over and note["file"] not in live:
            note["file"].unlink()


def main(words: Sequence[str]) -> int:
    """Run one of the five. Returns the exit code."""
    words = list(words)
    place = Place(RUN, LIB, ETC)
    if words[:1] == ["--state"]:
        place = Place(*(Path(words[1], name) for name in ("run", "lib", "etc")))
        del words[:2]
    what, rest = (words[0], words[1:]) if words else ("", [])
    if what == "admit":
        is_dedicated = rest[:1] == ["--dedicated"]
        user, certificate = rest[1:] if is_dedicated else rest
        for principal in admit(place, user, certificate, is_dedicated=is_dedicated):
            print(principal)  # noqa: T201
    elif what == "watch":
        print(json.dumps(watch(place, sys.stdin.readline(10_000))))  # noqa: T201
    elif what == "sweep":
        sweep(place)
    elif what == "who":
        said = who(place)
        print(json.dumps({name: said.get(name) for name in ("key_id", "command", "error")}))  # noqa: T201
    elif what == "init":
        place.make()
    else:
        print("usage: breakglass-ssh [--state DIR] admit|watch|sweep|who|init", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
