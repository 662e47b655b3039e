"""Every program that a responder starts at a host is on record, under the certificate that let them in.

Against a real sshd and a real sudo. It needs root, as both do.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from outside import needed
from sshd_part import HOST, PRINCIPAL, Sshd, keygen

from workflows.captures import CAPTURES, sudo, sudo_host
from workflows.captures.seam import Kind, Line, Trust, Unreadable
from workflows.engines import ssh_host

SUDO = CAPTURES["sudo"]
LATE = 20  # seconds until something is said never to come


class Recorded(Sshd):
    """An sshd whose account is let into the recorder and nothing else, set up as the printed steps say."""

    def __init__(self, directory: Path, authority: Path) -> None:
        super().__init__(directory, authority.read_text())
        needed("sudo", "sudo")
        self.authority = authority.with_suffix("")
        # Where the responder's programs are, and sudo's names for sessions: nobody else can enter the tests' folders.
        self.open_folder = Path(tempfile.mkdtemp(prefix="breakglass-sudo-"))
        self.open_folder.chmod(0o755)
        self.log_folder = self.open_folder / "log"
        self.place = sudo_host.Place(self.open_folder / "run", self.log_folder, self.open_folder / "breakglass-ssh")
        scripts = (("breakglass-ssh", ssh_host, self.state), ("breakglass-sudo", sudo_host, self.open_folder))
        for name, module, state in scripts:
            file = self.open_folder / name
            file.write_text(f'#!/bin/sh\nexec {sys.executable} -I {module.__file__} --state {state} "$@"\n')
            file.chmod(0o755)
        self.script_file = self.open_folder / "breakglass-sudo"
        self.sudoers = Path("/etc/sudoers.d", self.account)
        self.sudoers.write_text(sudo.sudoers(self.account, str(self.script_file), str(self.log_folder)) + "\n")
        self.sudoers.chmod(0o440)
        self.reader: subprocess.Popen | None = None

    def more(self) -> str:
        """Return the block that is printed."""
        return sudo.forced(self.account, str(self.script_file))

    def read(self) -> None:
        """Start what reads sudo's log, and return when it does."""
        self.reader = subprocess.Popen([str(self.script_file), "lines"], stderr=subprocess.PIPE)
        until(lambda: sudo_host._is_read(self.place))

    def stop_reading(self) -> None:
        """Kill it, as when it crashes."""
        if self.reader is not None:
            self.reader.kill()
            self.reader.communicate()
            self.reader = None

    def close(self) -> None:
        """Stop everything, and leave nothing at the machine."""
        self.stop_reading()
        self.sudoers.unlink(missing_ok=True)
        until(lambda: self.end_all() == 0)
        super().close()
        shutil.rmtree(self.open_folder)

    def end_all(self) -> int:
        """Kill what the account still runs, and what recorded it; returns how many there were."""
        # A recorder whose way in was killed stays, stopped, when the processes under it have been ended.
        found = {*running(self), *(pid for pid in ssh_host.processes() if str(self.place.names) in command_of(pid))}
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(found)

    def lines(self, identity: str | None = None) -> list[Line]:
        """Return what is on record, of all or of one."""
        raws = self.place.lines.read_bytes().splitlines() if self.place.lines.exists() else []
        return [line for raw in raws for line in SUDO.read(raw) if identity in (None, line.identity)]

    def closed(self, identity: str, sessions: int = 1) -> list[Line]:
        """Return what is on record of one whose sessions are over, when that is on record, too."""
        until(lambda: sum(line.kind is Kind.CLOSED for line in self.lines(identity)) >= sessions)
        return self.lines(identity)


class Person:
    """A responder with a key and a certificate."""

    count = 1000

    def __init__(self, host: Recorded, folder: Path, *more: str) -> None:
        Person.count += 1
        self.host = host
        self.identity = f"bg-{Person.count:04}-1"
        self.key = folder / self.identity
        keygen(self.key)
        words = [
            "-I",
            f"token-{self.identity.upper()}",
            "-n",
            PRINCIPAL,
            "-V",
            "+5m",
            "-O",
            "clear",
            "-O",
            "permit-pty",
        ]
        subprocess.run(["ssh-keygen", "-q", "-s", str(host.authority), *words, *more, f"{self.key}.pub"], check=True)
        self.hosts = folder / f"{self.identity}-hosts"
        self.hosts.write_text(f"[{HOST}]:{host.port} {host.host_key}\n")

    def words(self, *more: str) -> list[str]:
        """Return the ssh command line up to the command."""
        options = {
            "CertificateFile": f"{self.key}-cert.pub",
            "UserKnownHostsFile": self.hosts,
            "StrictHostKeyChecking": "yes",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "BatchMode": "yes",
        }
        given = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        place = ["-i", str(self.key), "-p", str(self.host.port), "-l", self.host.account]
        return ["ssh", "-F", "none", *more, *place, *given, HOST]

    def run(self, command: str, *more: str, stdin: str | None = None) -> subprocess.CompletedProcess:
        """Log in and run something."""
        given = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
        return subprocess.run(
            [*self.words(*more), *([command] if command else [])],
            check=False,
            capture_output=True,
            text=True,
            timeout=LATE,
            **given,
        )


def until(what) -> None:
    """Wait until something is true."""
    late = time.monotonic() + LATE
    while not what():
        assert time.monotonic() < late, "it did not come"
        time.sleep(0.02)


def command_of(pid: int) -> str:
    """Return the command line of a process; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def running(host: Recorded) -> list[int]:
    """Return the processes of the account."""
    return [pid for pid, (_, _, owner) in ssh_host.processes().items() if owner == host.uid]


def started(lines: list[Line]) -> list[str]:
    """Return what was started."""
    return [line.text for line in lines if line.kind is Kind.EXEC]


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """Return a host whose sessions are recorded."""
    folder = tmp_path_factory.mktemp("recorded")
    keygen(folder / "authority")
    with Recorded(folder / "sshd", folder / "authority.pub") as made:
        made.read()
        yield made


@pytest.fixture
def person(host, tmp_path):
    """Return a responder."""
    return Person(host, tmp_path)


@pytest.fixture
def program(host):
    """Return a maker of scripts that the responder can run."""

    def make(name: str, text: str) -> str:
        file = host.open_folder / name
        file.write_text(text)
        file.chmod(0o755)
        return str(file)

    return make


# ---------------------------------------------------------------------------------------------------- what is on record


def test_every_program_of_a_scripted_session_is_on_record(host, person, program):
    """Scripts, scripts of scripts, pipes, other languages, a background job: each program once, in its order."""
    inner = program("inner.sh", "#!/bin/sh\n/bin/echo inner | /bin/cat >/dev/null\n/usr/bin/env true deep\n")
    outer = program("outer.sh", f"#!/bin/sh\n/usr/bin/id -u >/dev/null\n{inner}\n/bin/true outer &\nwait\n")
    other = "perl -e 'system q(/bin/true system; :)'"
    done = person.run(f"{outer}; /bin/sh -c '/bin/true by-sh; exit 3'; {other}; cd /; exec /bin/true last")
    assert done.returncode == 0, done.stderr
    lines = host.closed(person.identity)
    told = started(lines)
    expected = [
        outer,
        "/usr/bin/id -u",
        inner,
        "/bin/echo inner",
        "/bin/cat",
        "/usr/bin/env true deep",
        "/usr/bin/true deep",
        "/bin/true outer",
        "/bin/sh -c '/bin/true by-sh; exit 3'",
        "/bin/true by-sh",
        "/bin/true system",
        "/bin/true last",
    ]
    assert [one for one in expected if one not in told] == []
    assert all(told.count(one) == 1 for one in expected)
    assert told[0].startswith(f"sh -c '{outer};")
    assert {line.session for line in lines} == {f"{person.identity}/00/00/01"}
    assert lines[0].kind is Kind.OPENED
    assert lines[-1].kind is Kind.CLOSED


def test_a_terminal_session_is_on_record(host, person):
    """What is typed at a terminal runs programs, and each of them is on record."""
    done = person.run("", "-tt", stdin="/usr/bin/id -u\n/bin/true typed\nexit 5\n")
    assert done.returncode == 5, done.stderr
    told = started(host.closed(person.identity))
    assert told[0] == "sh -l"
    assert "/usr/bin/id -u" in told
    assert "/bin/true typed" in told


def test_two_requests_in_one_account_at_once_are_told_apart(host, tmp_path):
    """Two responders in the same unix account have each what they ran, and nothing of the other's."""
    people = [Person(host, tmp_path) for _ in range(2)]
    running = [
        subprocess.Popen([*one.words(), f"for i in 1 2 3 4 5; do /bin/true {one.identity} $i; done"]) for one in people
    ]
    assert [one.wait(LATE) for one in running] == [0, 0]
    for one in people:
        told = started(host.closed(one.identity))
        assert [text for text in told if text.startswith("/bin/true")] == [
            f"/bin/true {one.identity} {number}" for number in range(1, 6)
        ]


def test_moved_files_are_a_hole(host, person):
    """That sftp was used is on record, and that the files are not."""
    person.run("/usr/lib/openssh/sftp-server", stdin="")
    holes = [line.text for line in host.closed(person.identity) if line.kind is Kind.HOLE]
    assert any("sftp" in text for text in holes)


def test_the_commands_environment_stays_at_the_host(host, person):
    """A password in the environment of a program is in no line that leaves the host."""
    assert (
        person.run("read -r PGPASSWORD; export PGPASSWORD; /usr/bin/env", stdin="hunter-two").stdout.count("hunter")
        == 1
    )
    host.closed(person.identity)
    assert b"hunter-two" in b"".join(file.read_bytes() for file in host.log_folder.glob("events.json"))
    assert b"hunter-two" not in host.place.lines.read_bytes()


def test_the_command_that_a_certificate_forces_stays_forced(host, tmp_path):
    """Sshd takes our command in place of the certificate's, so the recorder runs the certificate's and no other."""
    person = Person(host, tmp_path, "-O", "force-command=/bin/echo only this")
    assert person.run("/bin/echo something else").stdout == "only this\n"
    assert "/bin/echo only this" in started(host.closed(person.identity))


# -------------------------------------------------------------------------------------------------------------- attacks


def test_attack_the_responder_kills_the_recorder(host, person, program):
    """The sudo that records is root's, and so is the reader: neither can be killed, and all that follows is on record.

    The sudo that led in carries the responder's own number and can be killed; nothing rests on it.
    """
    killer = program(
        "killer.sh",
        "#!/bin/sh\n"
        "for entry in /proc/[0-9]*; do\n"
        "  read -r name <$entry/comm 2>/dev/null || continue\n"
        "  case $name in sudo|sh|perl|python*|breakglass*) ;; *) continue;; esac\n"
        '  test "${entry#/proc/}" = $$ || kill -9 "${entry#/proc/}" 2>/dev/null\n'
        "done\n"
        "/bin/true after-all\n",
    )
    person.run(f"exec {killer}")
    assert "/bin/true after-all" in started(host.closed(person.identity))
    assert host.reader.poll() is None


def test_attack_the_responder_kills_everything_of_its_own(host, person):
    """Who kills every process that they may kill ends their own session; nothing of theirs goes on unrecorded."""
    person.run("(sleep 1000; /bin/true not-recorded) & kill -9 -1")
    until(lambda: not running(host))
    assert "/bin/true not-recorded" not in started(host.lines(person.identity))


@pytest.mark.parametrize("first", ["true", "pkill"], ids=["in order", "after killing what led in"])
def test_the_end_of_a_certificate_ends_a_recorded_session(host, tmp_path, program, first):
    """Ending a certificate ends its recorded session: no process of the account is left at the host."""
    killer = program(
        "pkill",
        "#!/bin/sh\nfor entry in /proc/[0-9]*; do\n"
        '  read -r name <$entry/comm && test "$name" = sudo && kill -9 "${entry#/proc/}"\n'
        "done 2>/dev/null\nexit 0\n",
    )
    person = Person(host, tmp_path)
    words = [*person.words(), f"{killer if first == 'pkill' else first}; echo ready; exec sleep 1000"]
    session = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    if first == "true":
        assert session.stdout.readline() == "ready\n"
    else:
        until(lambda: "/usr/bin/sleep 1000" in started(host.lines(person.identity)))
    place = ssh_host.Place(host.state / "run", host.state / "lib", host.state / "etc")
    said = ssh_host.end(place, f"token-{person.identity.upper()}")
    assert (said["revoked"], said["sessions"], said["processes"]) == (True, 0, 0)
    session.wait(LATE)
    until(lambda: not running(host))


def test_attack_what_is_left_behind_runs_nothing(host, person, program):
    """What detached itself from its session starts no program any more once the session, and its recorder, is over."""
    mark = host.open_folder / "left"
    mark.mkdir()
    mark.chmod(0o777)
    left = program(
        "left.sh",
        f"#!/bin/sh\n: >{mark}/begun\nwhile ! test -e {mark}/go; do :; done\n/bin/true left; : >{mark}/after\n",
    )
    person.run(f"setsid {left} </dev/null >/dev/null 2>&1 & while ! test -e {mark}/begun; do :; done")
    host.closed(person.identity)
    (mark / "go").touch()
    until(lambda: not running(host))
    assert "/bin/true left" not in started(host.lines(person.identity))


def test_attack_the_responder_enters_again_from_within(host, person):
    """A second session out of the first one is recorded under the same certificate, whatever the environment says."""
    forged = "SSH_ORIGINAL_COMMAND='/bin/true second' SUDO_UID=0 BREAKGLASS=bg-9999-1"
    done = person.run(f"{forged} sudo -n {host.script_file} enter")
    assert done.returncode == 0, done.stderr
    lines = host.closed(person.identity, sessions=2)
    assert "/bin/true second" in started(lines)
    assert host.lines("bg-9999-1") == []


def test_attack_entering_from_no_connection(host):
    """What runs as the account without a login (a job of cron's) is not let in."""
    words = ["setpriv", f"--reuid={host.account}", f"--regid={host.uid}", "--clear-groups"]
    done = subprocess.run(
        [*words, "sudo", "-n", str(host.script_file), "enter"], check=False, capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 1
    assert "no connection" in done.stderr


def test_attack_offering_anothers_certificate_first(host, tmp_path):
    """Who offers another request's certificate, without its key, before their own is let in as neither."""
    mine, other = Person(host, tmp_path), Person(host, tmp_path)
    # A key that cannot be read: the client offers the certificate, and then cannot show that it has the key.
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "a long word", "-f", str(other.key)], check=True)
    done = mine.run("/bin/true whose", "-i", str(other.key), "-o", f"CertificateFile={other.key}-cert.pub")
    assert done.returncode == 1
    assert "several certificates" in done.stderr
    assert host.lines(mine.identity) == host.lines(other.identity) == []


def test_attack_a_file_that_the_next_session_would_run(host, person):
    """Where the account's shell reads files of its own before anything is recorded, nobody is let in."""
    subprocess.run(["usermod", "--shell", "/bin/bash", host.account], check=True)
    try:
        done = person.run("/bin/true unseen")
    finally:
        subprocess.run(["usermod", "--shell", "/bin/sh", host.account], check=True)
    assert done.returncode == 1
    assert "/bin/sh" in done.stderr


def test_attack_an_argument_that_looks_like_an_event(host, person):
    """Line ends, forged events, escape sequences and bytes that are no text stay one argument of one program."""
    forged = '\n    },\n    "accept": {\n        "iolog_path": "/x/bg-9999-1/00/00/01"\n    }\n'
    done = person.run(f"/bin/true {shlex.quote(forged)} \"$(printf '\\033[2J\\001\\377')\"")
    assert done.returncode == 0
    lines = host.closed(person.identity)
    [line] = [line for line in lines if line.text.startswith("/bin/true")]
    assert line.argv == ("/bin/true", forged, "\x1b[2J\x01\\xff")
    assert host.lines("bg-9999-1") == []


# ------------------------------------------------------------------------------------------------- what fails is closed


def test_nobody_is_let_in_while_nobody_reads(host, person):
    """A recorder that is dead lets nobody in; once it is back, it has read everything once."""
    before = host.place.lines.read_bytes()
    host.stop_reading()
    try:
        done = person.run("id")
        assert done.returncode == 1
        assert "nobody reads" in done.stderr
    finally:
        host.read()
    assert person.run("/bin/true again").returncode == 0
    assert "/bin/true again" in started(host.closed(person.identity))
    assert host.place.lines.read_bytes().startswith(before)


@contextlib.contextmanager
def small_disk(host: Recorded):
    """Put the recorder's log on a small file system of its own."""
    host.stop_reading()
    saved = host.log_folder.with_name("saved")
    host.log_folder.rename(saved)
    host.log_folder.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "none", str(host.log_folder)], check=True)
    try:
        host.read()
        yield
    finally:
        host.stop_reading()
        subprocess.run(["umount", "--lazy", str(host.log_folder)], check=True)
        host.log_folder.rmdir()
        saved.rename(host.log_folder)
        host.read()


def test_crash_the_recorders_disk_is_full(host, person, tmp_path):
    """With the disk full, a session that is open starts no program and no new one is let in; with room all goes on."""
    mark = host.open_folder / "full"
    mark.mkdir()
    mark.chmod(0o777)
    with small_disk(host):
        session = subprocess.Popen(
            [*person.words(), f"while read -r word; do /usr/bin/touch {mark}/$word; done"],
            stdin=subprocess.PIPE,
            text=True,
        )

        def say(word: str) -> None:
            session.stdin.write(word + "\n")
            session.stdin.flush()

        say("one")
        until((mark / "one").exists)
        fill = host.log_folder / "fill"
        with contextlib.suppress(OSError), fill.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**20))
        until(lambda: is_held(host))
        say("two")
        other = Person(host, tmp_path).run("id")
        assert (other.returncode, other.stdout) == (1, "")
        assert "no room" in other.stderr
        assert not (mark / "two").exists()
        fill.unlink()
        until((mark / "two").exists)
        session.stdin.close()
        assert session.wait(LATE) == 0
        told = started(host.closed(person.identity))
        assert told[1:] == [f"/usr/bin/touch {mark}/one", f"/usr/bin/touch {mark}/two"]


def is_held(host: Recorded) -> bool:
    """Whether sudo would wait for its log's lock."""
    with host.place.events.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


# ------------------------------------------------------------------------------------------------------ reading the log


def written(*names: str, torn: str = "") -> bytes:
    """Return a log as sudo writes it, with one event for each name."""
    parts = []
    for name in names:
        event = {"uuid": f"{len(parts):08}-0000", "command": name, "runenv": ["SECRET=1"]}
        body = "\n".join("    " + line for line in json.dumps(event, indent=4).splitlines()).lstrip()
        parts.append(f'\n    "accept": {body}')
    if torn:
        parts.insert(1, f'\n    "accept": {{\n        "uuid": "{torn}",\n        "comm')
    return ("{" + ",".join(parts) + "\n}\n").encode()


@pytest.fixture
def place(tmp_path):
    """Return a recorder's folders, with nothing in them."""
    made = sudo_host.Place(tmp_path / "run", tmp_path / "log", tmp_path / "none")
    made.make()
    return made


def commands(place) -> list[str]:
    """Return the commands of the lines that were made."""
    records = [json.loads(line) for line in place.lines.read_bytes().splitlines()]
    return [
        record["accept"]["command"] if "accept" in record else next(iter(record.keys() - {"log"})) for record in records
    ]


def test_crash_between_any_two_bytes_of_the_lines(place):
    """However much of the lines was on the disk when the reader died, each event is there once when it is back."""
    place.events.write_bytes(written("a", "b", "c"))
    sudo_host.Reader(place).step()
    whole = place.lines.read_bytes()
    for size in range(0, len(whole), 7):
        place.lines.write_bytes(whole[:size])
        sudo_host.Reader(place).step()
        assert place.lines.read_bytes() == whole
    assert commands(place) == ["a", "b", "c"]
    assert b"SECRET" not in whole


def test_a_log_that_grows_is_read_once(place):
    """Events that come later are read once, also by a reader that was started anew, and half of one waits."""
    whole = written("a", "b", "c")
    for size in range(1, len(whole) + 1, 11):
        place.events.write_bytes(whole[:size])
        sudo_host.Reader(place).step()
    place.events.write_bytes(whole)
    reader = sudo_host.Reader(place)
    reader.step()
    assert reader.step() == 0
    assert commands(place) == ["a", "b", "c"]


def test_a_log_that_was_begun_anew_is_read_from_its_beginning(place, monkeypatch):
    """What was read of a big log is dropped, and the next events are read from the new beginning."""
    monkeypatch.setattr(sudo_host, "KEPT_EVENTS", 10)
    place.events.write_bytes(written("a", "b"))
    reader = sudo_host.Reader(place)
    reader.step()
    reader.step()
    assert place.events.read_bytes() == b""
    place.events.write_bytes(written("c").replace(b"00000000-0000", b"00000009-0009"))
    sudo_host.Reader(place).step()
    assert commands(place) == ["a", "b", "c"]


def test_an_event_that_was_cut_by_a_full_disk_is_a_finding(place):
    """The beginning of an event is told as such, and the events before and after it are whole."""
    place.events.write_bytes(written("a", "b", torn="00000007"))
    sudo_host.Reader(place).step()
    assert commands(place) == ["a", "torn", "b"]
    torn = place.lines.read_bytes().splitlines()[1]
    with pytest.raises(Unreadable):
        SUDO.read(torn)


def test_a_big_file_of_lines_is_begun_anew(place, monkeypatch):
    """The file of lines is renamed when it is big, and where the reading stands goes with it."""
    monkeypatch.setattr(sudo_host, "KEPT_LINES", 10)
    place.events.write_bytes(written("a", "b"))
    sudo_host.Reader(place).step()
    assert commands(place) == ["began"]
    assert SUDO.read(place.lines.read_bytes().strip()) == ()
    assert sudo_host.Reader(place).step() == 0


def test_arguments_without_end_are_cut_and_say_so(place):
    """A line stays short enough to be read, and says how much there was."""
    event = json.loads(event_line())
    event["accept"]["runargv"] = ["x", "y" * 900_000]
    line = sudo_host.line_of("accept", json.dumps(event["accept"]).encode(), {})
    assert len(line) < 400_000
    exec_line = SUDO.read(line.strip())[0]
    assert exec_line.text.endswith("(900002 bytes in all)")


# --------------------------------------------------------------------------------------------------------- forged lines


def event_line(**more: object) -> bytes:
    """Return a line of a program that was started, with some of its parts replaced."""
    event = {
        "uuid": "12e6a3f36c-5ecd-4fbd-3b67-158276671b",
        "server_time": {"seconds": 1795527276, "nanoseconds": 616704928},
        "iolog_path": "/var/log/breakglass-sudo/io/bg-7kq2-1/00/00/01",
        "iolog_offset": {"seconds": 0, "nanoseconds": 44545150},
        "submituser": "root",
        "command": "/bin/true",
        "runuser": "emergency",
        "runargv": ["/bin/true", "a b"],
    }
    event = {name: value for name, value in (event | more).items() if value is not None}
    return json.dumps({"log": {"first": "x", "end": 7}, "accept": event}).encode()


def test_a_program_is_told_by_its_file():
    """The name that a program was given does not stand in place of the file that was started."""
    [line] = SUDO.read(event_line(command="/bin/rm", runargv=["ls", "-rf", "/data"]))
    assert (line.kind, line.identity, line.text) == (Kind.EXEC, "bg-7kq2-1", "/bin/rm -rf /data")
    assert line.argv == ("/bin/rm", "-rf", "/data")
    assert line.at.isoformat() == "2026-11-24T13:34:36.616704+00:00"


def test_what_sudo_recorded_for_others_is_about_nobody():
    """An event of a recording that has no name of ours is no line of a session."""
    assert SUDO.read(event_line(iolog_path="/var/log/breakglass-sudo/io/ls/00/00/01", submituser="alice")) == ()
    assert SUDO.read(event_line(iolog_path=None)) == ()


def test_what_sudo_says_of_itself_is_a_stop():
    """An event in which sudo says that something failed is told as recording that stops; a refusal as a refusal."""
    base = {"server_time": {"seconds": 1, "nanoseconds": 0}, "iolog_path": "/io/bg-7kq2-1/00/00/01"}
    [stopped] = SUDO.read(json.dumps({"alert": base | {"reason": "unable to write"}}).encode())
    assert (stopped.kind, stopped.text) == (Kind.STOPPED, "unable to write")
    [refused] = SUDO.read(json.dumps({"reject": base | {"runargv": ["/bin/su", "-"]}}).encode())
    assert (refused.text, refused.result) == ("/bin/su -", "refused")


def test_sudos_own_file_is_read_whole():
    """Of an object in which each event has the same key, no event is lost."""
    event = event_line().decode().partition('"accept": ')[2][:-1]
    lines = SUDO.read(f'{{"accept": {event}, "accept": {event}}}'.encode())
    assert len(lines) == 2


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00",
        b"[]",
        b"null",
        event_line()[:-4],
        event_line() + event_line(),
        b'{"other": {}}',
        b'{"accept": 7}',
        event_line(server_time=None),
        event_line(server_time={"seconds": 10**12, "nanoseconds": 0}),
        event_line(command=None),
        event_line(runargv=["a", 7]),
        event_line(submituser="emergency"),
        event_line().replace(b'"iolog_path"', b'"iolog_path": "/io/bg-9999-1/00/00/01", "iolog_path"'),
        event_line(runargv=["x" * 1_100_000]),
        b"[" * 100_000,
    ],
    ids=lambda raw: repr(raw[:40]),
)
def test_a_line_that_is_no_event_is_unreadable(raw):
    """Garbage, a torn line, two in one, a megabyte, a path that stands twice, a recording that root did not begin."""
    with pytest.raises(Unreadable):
        SUDO.read(raw)


def test_the_printed_setup_is_accepted_by_sudo_and_sshd(tmp_path):
    """The lines of sudoers that are printed are sound, and hold no secret; the trust is the host's."""
    printed = SUDO.setup({"user": "root", "source": "shop-host"})
    content = printed.partition("cat >/etc/sudoers.d/breakglass-root <<'END'\n")[2].partition("\nEND")[0]
    file = tmp_path / "sudoers"
    file.write_text(content + "\n")
    file.chmod(0o440)
    subprocess.run(["visudo", "-c", "-f", str(file)], check=True, capture_output=True)
    assert "ForceCommand sudo -n /usr/local/sbin/breakglass-sudo enter" in printed
    assert "--source shop-host" in printed
    assert SUDO.trust is Trust.HOST
