"""Does the policy file say something else than what is in force, and who says so with a signature?

Rules
-----
* The file decides nothing: what is in force is the log's word (``workflows/policy_control.py``), and every bot on the
  database takes over within a second what the log says.
* The file is looked at every few seconds, its times and size first; only what looks changed is read.
* A signature is over the very bytes that were read, ``FILE.sig``, made by ``ssh-keygen -Y sign -n breakglass-policy``;
  who may sign stands in a file that the environment names, not the policy. ``ssh-keygen`` judges it.
* Several bots may see different files. Each tells of its own when it changes, so they do not answer each other.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import subprocess
import tempfile
import threading
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from workflows import policy as rules
from workflows.errors import Unavailable
from workflows.policy_control import begin, in_force, text_of
from workflows.policy_file import MAX_BYTES, PolicyInvalid, Problem

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from storage.database import Database
    from workflows.policy import Policy
    from workflows.policy_control import PolicyControl

log = logging.getLogger(__name__)

NAMESPACE: Final = "breakglass-policy"  # of signatures: one that was made for something else says nothing here
LOOK_EVERY: Final = timedelta(seconds=10)
_SIGNING_SECONDS: Final = 10  # for one question to ssh-keygen
_MOST_SIGNATURE: Final = 64 * 1024  # bytes


class PolicyWatch:
    """Looks at the log each time it is asked, and at the file every ten seconds. ``policy``: the one a desk holds."""

    def __init__(
        self, control: PolicyControl, file: Path, *, policy: Callable[[], Policy], signers: Path | None = None
    ) -> None:
        self._control = control
        self._file = file
        self._policy = policy
        self._signers = signers
        self._seen: str | None = None  # what the file said last, as a hash
        self._stat: tuple[object, ...] | None = None
        self._look_at: datetime | None = None
        self._one = threading.Lock()

    def tick(self, *, now: datetime) -> None:
        """Take over what the log says, then look at the file when it is time. Raises BreakGlassError."""
        with self._one:
            held = self._policy()
            current = self._control.current(held)
            if current is not held:
                self._control.switch(current)
                log.info("the policy %s is in force from now on", current.hash)
                self._stat = None  # the same file may be a change of this one
            if self._look_at is None or not self._look_at - LOOK_EVERY <= now < self._look_at:
                self._look_at = now + LOOK_EVERY
                self.look(current, now=now)

    def look(self, current: Policy, *, now: datetime) -> None:
        """Look at the file once, and tell what is new of it."""
        stat = (_stat(self._file), _stat(_signature(self._file)), self._signers and _stat(self._signers))
        if stat == self._stat:
            return
        raw = read_bytes(self._file)
        found = hashlib.sha256(raw).hexdigest() if raw is not None else "unreadable"
        is_new = self._seen is not None and found != self._seen
        before, policy = self._seen, None
        if found == current.hash:
            if is_new and before is not None:
                self._control.drop(before, now=now)
        else:
            try:
                policy = parse_bytes(raw, self._file)
            except PolicyInvalid as invalid:
                if self._control.refuse(found, invalid.problems, now=now):
                    log.warning("the policy file does not load; what is in force stays:\n%s", invalid.sentence)
            else:
                signer = signed_by(raw or b"", self._file, self._signers)
                if self._control.propose(policy, is_new=is_new, signed_by=signer, now=now):
                    log.info("the policy file says something else than what is in force: %s", found)
        # Only now: what could not be told is told the next time.
        self._seen, self._stat = found, stat


def read_bytes(file: Path) -> bytes | None:
    """Return what the file holds, at most one byte more than a policy may have; None when it cannot be read."""
    try:
        with file.open("rb") as opened:
            return opened.read(MAX_BYTES + 1)
    except OSError:
        return None


def parse_bytes(raw: bytes | None, file: Path) -> Policy:
    """Return the policy that these bytes of the file are. Raises :class:`PolicyInvalid`."""
    name = str(file)
    if raw is None:
        raise PolicyInvalid(name, [Problem(1, "", "The policy file cannot be read.")])
    if len(raw) > MAX_BYTES:
        raise PolicyInvalid(name, [Problem(1, "", f"The file is larger than {MAX_BYTES // 1024} KiB.")])
    try:
        return rules.parse(raw.decode(), name=name)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise PolicyInvalid(name, [Problem(line, "", "This is not UTF-8 text; save the file as UTF-8.")]) from None


def first(database: Database, file: Path, *, now: datetime) -> Policy:
    """Return the policy that a bot starts with: what the log says is in force; on an empty log the file's.

    Raises :class:`PolicyInvalid` when the log names none and the file does not load, and :class:`Unavailable` when what
    is in force cannot be had.
    """
    found = PolicyInvalid(str(file), ())
    policy: Policy | None = None
    try:
        policy = rules.load(file)
    except PolicyInvalid as invalid:
        found = invalid
    standing = begin(database, policy, now=now)
    if standing is None:
        raise found
    if policy is not None and policy.hash == standing:
        return policy
    log.warning("the policy file is not what is in force, %s; the change must be confirmed first", standing)
    return recorded(database, standing)


def recorded(database: Database, policy_hash: str) -> Policy:
    """Return the policy on record that has this hash. Raises :class:`Unavailable`."""
    with database.read() as session:
        text = text_of(session, policy_hash)
    if text is None:
        raise Unavailable(f"The text of the policy in force, {policy_hash[:12]}…, is not on record.")
    try:
        return rules.parse(text, name="the policy in force")
    except PolicyInvalid as invalid:
        raise Unavailable(
            "The policy in force cannot be read by this version of the bot. Start the version that could, and have a "
            f"policy confirmed there that both read.\n{invalid.sentence}"
        ) from None


def standing(database: Database) -> Policy | None:
    """Return the policy in force; None when the log names none yet. Raises :class:`Unavailable`."""
    with database.read() as session:
        found = in_force(session)
    return None if found is None else recorded(database, found.hash)


def signed_by(raw: bytes, file: Path, signers: Path | None) -> str | None:
    """Return whose valid signature over these bytes lies beside the file; None when there is none that counts."""
    if signers is None:
        return None
    program = shutil.which("ssh-keygen")
    try:
        with _signature(file).open("rb") as opened:
            signature = opened.read(_MOST_SIGNATURE + 1)
    except OSError:
        return None
    if program is None or len(signature) > _MOST_SIGNATURE:
        log.warning(
            "the policy's signature is not judged: %s", "it is too long" if program else "there is no ssh-keygen"
        )
        return None
    with tempfile.TemporaryDirectory() as directory:
        # Attack: the signature is exchanged between the two questions; both are about this copy.
        copy = Path(directory, "policy.sig")
        copy.write_bytes(signature)
        asked = [program, "-Y", "find-principals", "-s", str(copy), "-f", str(signers)]
        for principal in _ask(asked, b"").splitlines()[:10]:
            told = [program, "-Y", "verify", "-n", NAMESPACE, "-I", principal, "-s", str(copy), "-f", str(signers)]
            if principal and _ask(told, raw):
                return principal
    log.warning("the policy's signature %s is not by one of %s, or not over this text", _signature(file), signers)
    return None


def _ask(command: list[str], given: bytes) -> str:
    """Return what ssh-keygen prints; empty when it says no."""
    try:
        done = subprocess.run(command, input=given, capture_output=True, timeout=_SIGNING_SECONDS, check=False)  # noqa: S603 - no shell, and nothing that somebody else typed but a principal of the signers' file
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


def _signature(file: Path) -> Path:
    return file.with_name(f"{file.name}.sig")


def _stat(file: Path) -> tuple[int, int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino
