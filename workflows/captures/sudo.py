"""What do the events of sudo at a host say of the programs that a responder started there?

sshd lets a responder into ``breakglass-sudo enter`` and nothing else; that has sudo run the shell (``sudo_host.py``).
sudo stands above every process of the session, as root, and writes an event before each program begins, however it is
begun: from a script, from a script's script, by ``os.system``. What it wrote becomes one line each.

Rules
-----
* Whose a session is stands in the path of its recording, which root chose and sudo writes into every event. The unix
  account, the arguments and the environment name nobody: they are the responder's own.
* A program is told by the file that was started, not by the name that it was given.
* Only what was recorded from within is told: a file of that name that somebody else had sudo run is a finding.
"""

from __future__ import annotations

import json
import re
import shlex
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from workflows.captures.seam import Kind, Line, Trust, Unreadable

if TYPE_CHECKING:
    from collections.abc import Mapping

SCRIPT: Final = "/usr/local/sbin/breakglass-sudo"
LOG: Final = "/var/log/breakglass-sudo"

_MOST: Final = 1_048_576  # bytes of a line
_PATH: Final = re.compile(r".*/(bg-[0-9a-z]{4,12}-[0-9a-z-]{1,40})/([0-9A-Z]{2}/[0-9A-Z]{2}/[0-9A-Z]{2})")
_LATEST: Final = 2**33  # seconds since 1970: a clock that says more is wrong
_BUILTINS: Final = "what a shell does itself (redirections, builtins) is only in the terminal's recording at the host"
_FILES: Final = "files were moved by sftp: which ones is not recorded"
_OTHERS: Final = frozenset({"log", "began"})  # what "breakglass-sudo lines" adds for itself


class Sudo:
    """Stateless: what a line says depends on the line alone."""

    trust = Trust.HOST  # whoever is root at the host can end it; the responder's account cannot

    def read(self, raw: bytes) -> tuple[Line, ...]:
        """Return what the event says: a session began or ended, a program was started or refused."""
        lines: list[Line] = []
        for name, event in _record(raw):
            if name in _OTHERS:
                continue
            if name not in _READERS or not isinstance(event, dict):
                raise Unreadable("It is no event of sudo's.")
            found = _PATH.fullmatch(str(event.get("iolog_path")))
            if found is not None:
                lines += _READERS[name](event, found[1], f"{found[1]}/{found[2]}")
        return tuple(lines)

    def setup(self, options: Mapping[str, str]) -> str:
        """Return the steps at the host, as root, once it is set up for certificates.

        Options: ``user`` (the responders' account), ``source`` (the name in the policy).
        """
        user, source = options.get("user", "emergency"), options.get("source", "host")
        return "\n\n".join(
            [
                (
                    f"# Recording what is run in the account {user} (put the level's own in its place): as root,\n"
                    "# after the steps for its certificates."
                ),
                (
                    "# 1. What lets responders in and reads sudo's log: workflows/captures/sudo_host.py of this\n"
                    "#    program, copied to the host. It needs sudo 1.9.13 or later. Give the log\n"
                    "#    a file system of its own.\n"
                    f"install -o root -g root -m 0755 sudo_host.py {SCRIPT}\n"
                    f"install -d -o root -g root -m 0700 {LOG}"
                ),
                (
                    f"# 2. The account has no way but sshd's, and its shell reads nothing before it is recorded.\n"
                    f"#    Give it no right to run commands as itself ({user}) by sudo.\n"
                    f"usermod --shell /bin/sh {user}\n"
                    f"for file in /etc/cron.deny /etc/at.deny; do\n"
                    f"  grep -qxs {user} $file || echo {user} >>$file\n"
                    "done"
                ),
                _file(f"/etc/sudoers.d/breakglass-{user}", sudoers(user, SCRIPT, LOG))
                + f"\nchmod 0440 /etc/sudoers.d/breakglass-{user} && visudo -c",
                _file(
                    "/etc/systemd/system/breakglass-sudo.service",
                    f"[Service]\nExecStart={SCRIPT} lines\nRestart=always\nRestartSec=1\n"
                    "[Install]\nWantedBy=multi-user.target",
                )
                + "\nsystemctl daemon-reload && systemctl enable --now breakglass-sudo.service",
                _file(f"/etc/ssh/sshd_config.d/breakglass-{user}-recorded.conf", forced(user, SCRIPT))
                + "\nsshd -t && (systemctl reload ssh || systemctl reload sshd)",
                f"# 3. Reading it.\nbreakglass capture tail --source {source} {LOG}/lines.json",
            ]
        )


def forced(user: str, script: str) -> str:
    """Return the block of ``sshd_config``: whatever is asked for, and sftp, goes through the recorder."""
    return f"Match User {user}\n  ForceCommand sudo -n {script} enter"


def sudoers(user: str, script: str, log: str) -> str:
    """Return the lines of sudoers: the account may run the recorder, and what root has it run is recorded."""
    settings = [
        f"logfile={log}/events.json",
        "log_format=json",
        "log_subcmds",
        # "dso", the other way, is a library that a program can leave out.
        "intercept_type=trace",
        "log_input",
        "log_output",
        "!log_passwords",
        "use_pty",
        "log_exit_status",
        "!ignore_logfile_errors",
        "!ignore_iolog_errors",
        f"iolog_dir={log}/io/%{{command}}",
        "iolog_file=%{seq}",
        "!syslog",
    ]
    return "\n".join(
        [
            f'Defaults!{script} env_keep += "SSH_ORIGINAL_COMMAND", !syslog',
            f"{user} ALL=(root) NOPASSWD: {script} enter",
            f"root ALL=({user}) NOPASSWD: ALL",
            f"Defaults>{user} {', '.join(settings)}",
        ]
    )


def _file(name: str, content: str) -> str:
    return f"cat >{name} <<'END'\n{content}\nEND"


def _record(raw: bytes) -> list[tuple[str, Any]]:
    if len(raw) > _MOST:
        raise Unreadable("It is too long.")
    try:
        # sudo's own log is one object in which each event has the same key: none of them may get lost.
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=_Pairs)
        if isinstance(found, _Pairs) and found:
            return [(name, _once(event)) for name, event in found]
    except (ValueError, RecursionError) as error:
        raise Unreadable("It is not one JSON object.") from error
    raise Unreadable("It is not one JSON object.")


class _Pairs(list[tuple[str, Any]]):
    """An object as it is written, key by key."""


def _once(found: Any) -> Any:  # noqa: ANN401
    """Return an object within an event as a dict. ValueError for a key that stands twice."""
    if isinstance(found, _Pairs):
        made = {name: _once(value) for name, value in found}
        if len(made) < len(found):
            # Attack: of two paths, one reader would see the first and another the last.
            raise ValueError("a key stands twice")
        return made
    return found


def _accept(event: Mapping[str, Any], identity: str, session: str) -> list[Line]:
    if event.get("submituser") != "root":
        raise Unreadable("A recording is named as ours are, and root did not begin it.")
    at = _time(event)
    command, words = event.get("command"), event.get("runargv")
    if not isinstance(command, str) or not isinstance(words, list) or not all(isinstance(one, str) for one in words):
        raise Unreadable("It does not say what was started.")
    is_first = "iolog_offset" not in event
    # The first program is the shell, under the name of its session.
    argv = tuple(_plain(word) for word in ("sh" if is_first else command, *words[1:]))
    text = shlex.join(argv)
    if isinstance(cut := event.get("cut"), dict):
        text += f" … ({cut.get('bytes')} bytes in all)"
    lines = [Line(Kind.EXEC, identity, at, text, argv, session=session)]
    if is_first:
        lines.insert(0, Line(Kind.OPENED, identity, at, "a session of the host's", session=session))
        lines.append(Line(Kind.HOLE, identity, at, _BUILTINS, session=session))
    if any(word.rsplit("/", 1)[-1] in {"sftp-server", "internal-sftp"} for word in (command, *words[1:])):
        lines.append(Line(Kind.HOLE, identity, at, _FILES, session=session))
    return lines


def _reject(event: Mapping[str, Any], identity: str, session: str) -> list[Line]:
    words = event.get("runargv")
    argv = (
        tuple(_plain(str(word)) for word in words) if isinstance(words, list) else (_plain(str(event.get("command"))),)
    )
    return [Line(Kind.EXEC, identity, _time(event), shlex.join(argv), argv, session=session, result="refused")]


def _alert(event: Mapping[str, Any], identity: str, session: str) -> list[Line]:
    text = _plain(str(event.get("reason") or event.get("message") or "sudo says that something is wrong"))
    return [Line(Kind.STOPPED, identity, _time(event), text, session=session)]


def _exit(event: Mapping[str, Any], identity: str, session: str) -> list[Line]:
    how = f"signal {event['signal']}" if event.get("signal") else f"exit {event.get('exit_value')}"
    return [Line(Kind.CLOSED, identity, _time(event), _plain(how), session=session)]


_READERS: Final = {"accept": _accept, "reject": _reject, "alert": _alert, "exit": _exit}


def _time(event: Mapping[str, Any]) -> datetime:
    found = event.get("server_time")
    seconds, more = (found.get("seconds"), found.get("nanoseconds")) if isinstance(found, dict) else (None, None)
    if type(seconds) is not int or type(more) is not int or not (0 <= seconds < _LATEST and 0 <= more < 10**9):
        raise Unreadable("It has no time.")
    return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=more // 1000)


def _plain(word: str) -> str:
    """Return a word of a command with its bytes that are no UTF-8 in hexadecimal."""
    try:
        return word.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character that sudo did not write
        return word.encode("utf-8", "replace").decode("utf-8")
