"""What do the tests of the copies outside stand on? A log, its heads, a runner, a line that can be cut, certificates.

Everything listens on 127.0.0.1 and ends with the test.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import resource
import shutil
import signal
import socket
import struct
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from storage import audit, merkle
from storage.checkpoint import Algorithm, Checkpoint, VerifierKey, sign, time_line
from storage.database import Database
from storage.followers import CopyRunner, Item
from storage.models import SignedHead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HOST: Final = "127.0.0.1"
ORIGIN: Final = "breakglass.example.com/orders"
NOW: Final = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
DAY: Final = timedelta(days=1)


def needed(program: str, package: str) -> str:
    """Return where the program is. A test that needs it fails with the package's name."""
    found = shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin")
    assert found, f"this test needs {program}: apt-get install {package}"
    return found


# --- entries and heads ---------------------------------------------------------------------------------------------


def item(seq: int, words: str = 'checkout is down, naïve "quoted" ]\n') -> Item:
    """Make an entry, as the log would."""
    body = audit.encode(
        seq=seq,
        event="request:open",
        at=NOW + timedelta(seconds=seq),
        actor=audit.Actor("T0HOME", "U0RITA"),
        request_id=f"BG-{seq % 7}",
        data={"reason": words},
    )
    return Item(seq, body, merkle.leaf_hash(body))


def items(start: int, end: int, words: str = 'checkout is down, naïve "quoted" ]\n') -> list[Item]:
    """Make the entries from ``start`` to before ``end``."""
    return [item(seq, words) for seq in range(start, end)]


@dataclass
class Key:
    """A private key that signs under a name: the log's, or a witness's."""

    name: str = ORIGIN
    algorithm: Algorithm = Algorithm.ED25519
    private: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def key(self) -> VerifierKey:
        """The public half."""
        return VerifierKey(self.name, self.private.public_key().public_bytes_raw(), self.algorithm)

    def sign(self, message: bytes) -> bytes:
        """Sign."""
        return self.private.sign(message)


def note_of(key: Key, entries: list[Item], *extensions: str) -> bytes:
    """Sign the head over the entries."""
    root = merkle.Tree(entry.leaf_hash for entry in entries).root
    return sign(Checkpoint(key.name, len(entries), root, extensions), [key])


class Log:
    """A log on SQLite with signed heads, the runner of one copy, and a clock that stands until it is moved."""

    def __init__(self, file: Path, key: Key | None = None) -> None:
        self.database = Database(f"sqlite:///{file}")
        self.database.setup()
        self.key = key or Key()
        self.clock = NOW

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.database.close()

    def grow(self, count: int) -> None:
        """Append entries, and sign the head over them."""
        with self.database.write() as session:
            for _ in range(count):
                entry = audit.append(
                    session, event="test:event", at=self.clock, actor=audit.SYSTEM, data={"x": "y" * 500}
                )
            checkpoint = Checkpoint(self.key.name, entry.seq + 1, entry.root)
            session.add(
                SignedHead(
                    size=checkpoint.size,
                    root=checkpoint.root,
                    note=sign(checkpoint, [self.key]),
                    at=self.clock,
                    reason="entry",
                )
            )

    def beat(self) -> bytes:
        """Sign a heartbeat, and return its note."""
        self.clock += timedelta(minutes=5)
        with self.database.write() as session:
            head = audit.head(session)
            note = sign(Checkpoint(self.key.name, head.size, head.root, (time_line(self.clock),)), [self.key])
            session.add(SignedHead(size=head.size, root=head.root, note=note, at=self.clock, reason="heartbeat"))
        return note

    def entries(self) -> list[Item]:
        """Return all of it."""
        with self.database.read() as session:
            return [Item(one.seq, one.body, one.leaf_hash) for one in audit.read_entries(session)]

    def runner(self, copy: Any) -> CopyRunner:
        """Return the runner of one copy; no thread is started."""
        return CopyRunner(self.database, {copy.name: copy}, now=lambda: self.clock, jitter=lambda: 0.5)

    def bring(self, runner: CopyRunner, name: str) -> str | None:
        """Let the next try be due, make it, and return the trouble that there is now, if any."""
        self.clock += timedelta(minutes=2)
        runner.work(name)
        return next((stuck.why for stuck in runner.stuck()), None)


# --- an HTTP server ------------------------------------------------------------------------------------------------


@dataclass
class Request:
    """What came in: path, headers (names in lower case) and body."""

    path: str
    headers: dict[str, str]
    body: bytes


class Server:
    """An HTTP server whose answers are ``answer``'s: status, headers, body. It can be stopped and started again.

    ``dies`` is the moment at which it is killed, for a server in a process of its own (``Apart``).
    """

    def __init__(
        self, answer: Callable[[Request], tuple[int, dict[str, str], bytes]], context: Any = None, port: int = 0
    ) -> None:
        self.answer = answer
        self.dies = ""
        self._context = context
        self._server: ThreadingHTTPServer | None = None
        self.port = port
        self.start()

    def at(self, moment: str) -> None:
        """Pass a moment: SIGKILL, if this is the one."""
        if moment == self.dies:
            os.kill(os.getpid(), signal.SIGKILL)

    def start(self) -> None:
        """Listen, on the same port as before."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                body = self.rfile.read(length)
                if len(body) < length:
                    return  # the sender was cut off: nothing was asked
                headers = {name.lower(): value for name, value in self.headers.items()}
                status, more, content = outer.answer(Request(self.path, headers, body))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **more}.items():
                    self.send_header(name, value)
                self.end_headers()
                half = len(content) // 2
                self.wfile.write(content[:half])
                outer.at("answering")
                self.wfile.write(content[half:])

            def log_message(self, *_: object) -> None:
                pass

        class Listening(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # a client that was cut off is what some tests are about

        self._server = Listening((HOST, self.port), Handler)
        if self._context is not None:
            self._server.socket = self._context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Let go of the port."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


# --- what is killed, and disks that are full ------------------------------------------------------------------------


class Apart:
    """A server in a process of its own: it can be killed in the middle of what it does, and have no room on its disk.

    ``make`` makes it at a port (0: any). What shall outlive it stands in files.
    """

    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make = make
        self._alive: int | None = None  # while it is open the process stays
        self.pid = 0
        self.port = 0
        self.start()

    def start(self, dies: str = "") -> None:
        """Start it, on the same port as before, and wait until it listens; ``dies``: the moment of its death."""
        reads, says = os.pipe()
        waits, self._alive = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                os.close(self._alive)
                server = self._make(self.port)
                server.dies = dies
                os.write(says, str(server.port).encode())
                os.read(waits, 1)  # until whoever started it lets go, or is gone
            finally:
                os._exit(1)
        os.close(says)
        os.close(waits)
        with os.fdopen(reads) as heard:
            self.port = int(heard.read(5))

    def died(self) -> None:
        """Wait until it was killed by the moment that it was given."""
        assert os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]) == -signal.SIGKILL
        self._forget()

    def kill(self) -> None:
        """Kill it."""
        os.kill(self.pid, signal.SIGKILL)
        self.died()

    def room(self, size: int = resource.RLIM_INFINITY) -> None:
        """Have the kernel refuse it, and what it starts, every byte of a file after so many."""
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def _forget(self) -> None:
        self.pid = 0
        os.close(self._alive)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pid:
            self.kill()


def kill_bringing(file: Path, key: Key, copy: Any, clock: datetime, server: Server, *, is_late: bool) -> None:
    """Have a bot in a process of its own bring a copy what it lacks, and kill it while it waits for the answer.

    ``is_late``: the server has done its work by then; otherwise it does nothing with what it was asked. No log may be
    open here meanwhile: SQLite does not outlive a fork.
    """
    take, forked, pid = server.answer, threading.Event(), 0

    def answer(request: Request) -> tuple[int, dict[str, str], bytes]:
        answered = take(request) if is_late else (200, {}, b"")
        forked.wait()
        os.kill(pid, signal.SIGKILL)
        return answered

    server.answer = answer
    pid = os.fork()
    if not pid:
        try:
            with Log(file, key) as log:
                log.clock = clock
                log.runner(copy).work(copy.name)
        finally:
            os._exit(1)
    forked.set()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    server.answer = take


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Have this process, and the programs that are started meanwhile, refused any longer file: a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextlib.contextmanager
def full_once_answered(copy: Any) -> Iterator[None]:
    """Have the bot's own disk be full from the moment on at which the outside has answered: nothing can be noted."""
    method = "anchor" if hasattr(copy, "anchor") else "deliver"
    ask = getattr(copy, method)
    with contextlib.ExitStack() as stack:

        def asked(*args: Any, **more: Any) -> Any:
            answer = ask(*args, **more)
            stack.enter_context(file_size_limit(0))
            return answer

        setattr(copy, method, asked)
        try:
            yield
        finally:
            setattr(copy, method, ask)


# --- a line that can be cut ----------------------------------------------------------------------------------------


class Line:
    """A TCP line to a port here, that is cut after so many bytes: ``up`` to the place, or ``down`` from it.

    ``is_silent``: it takes what comes and passes nothing on. Each limit holds for each connection by itself.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self.up: int | None = None
        self.down: int | None = None
        self.is_silent = False
        self.is_broken = False  # whether a limit was reached
        self.change: Callable[[bytes], bytes] = bytes  # what happens to a piece on its way down
        self.carried = [0, 0]  # bytes that the newest connection passed on, up and down
        self._listening = socket.create_server((HOST, 0))
        self.port: int = self._listening.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Shut down first: closing alone does not wake the thread that accepts.
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.cut()

    def heal(self) -> None:
        """Pass everything on."""
        self.up = self.down = None
        self.is_silent = False

    def cut(self) -> None:
        """Break all connections off, as a machine that dies does."""
        for one in self._open:
            _reset(one)
        self._open.clear()

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._listening.accept()
            except OSError:
                return
            self._open.append(inner)
            if self.is_silent:
                continue
            try:
                outer = socket.create_connection((HOST, self._target))
            except OSError:
                _reset(inner)
                continue
            self._open.append(outer)
            self.carried = [0, 0]
            for way, source, target, limit in ((0, inner, outer, self.up), (1, outer, inner, self.down)):
                threading.Thread(target=self._pump, args=(way, source, target, limit), daemon=True).start()

    def _pump(self, way: int, source: socket.socket, target: socket.socket, limit: int | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if limit is not None and self.carried[way] + len(data) >= limit:
                    target.sendall(data[: max(0, limit - self.carried[way])])
                    # What was passed on shall arrive: a reset would throw away what the other side has not read yet.
                    with contextlib.suppress(OSError):
                        target.shutdown(socket.SHUT_WR)
                    _reset(source)
                    self.is_broken = True
                    return
                self.carried[way] += len(data)
                target.sendall(self.change(data) if way else data)
            target.shutdown(socket.SHUT_WR)


def _reset(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.shutdown(socket.SHUT_RDWR)
    one.close()


# --- certificates --------------------------------------------------------------------------------------------------


class Authority:
    """A certificate authority in a folder; ``file`` is its certificate: a root, or issued by ``parent``."""

    def __init__(self, folder: Path, name: str = "test authority", parent: Authority | None = None) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = parent or self
        certificate = (
            _builder(self._name, issuer._name, self._key, DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer._key.public_key()), critical=False)
            .sign(issuer._key, hashes.SHA256())
        )
        self.file = folder / f"{name.replace(' ', '-')}.pem"
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(
        self,
        name: str,
        *,
        hosts: tuple[str, ...] = ("localhost", HOST),
        ttl: timedelta = DAY,
        is_stamping: bool = False,
        is_client: bool = False,
    ) -> tuple[Path, Path]:
        """Issue a certificate for these hosts, a client or time stamping; returns certificate and key (PEM)."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = ExtendedKeyUsageOID.TIME_STAMPING if is_stamping else ExtendedKeyUsageOID.SERVER_AUTH
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if is_client else usage
        builder = (
            _builder(subject, self._name, key, ttl)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=is_stamping)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if not is_stamping:
            names = [x509.IPAddress(ipaddress.ip_address(h)) if h[0].isdigit() else x509.DNSName(h) for h in hosts]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate, secret = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate, secret


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, ttl: timedelta) -> Any:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 2 * DAY)
        .not_valid_after(now + ttl)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def each(numbers: range, wanted: int) -> Iterator[int]:
    """Give about ``wanted`` of the numbers, evenly, the first and the last among them."""
    step = max(1, len(numbers) // max(1, wanted - 1))
    yield from dict.fromkeys([*numbers[::step], numbers[-1]])
