"""How is a place reached over the network, so that it can neither keep us, nor lead us elsewhere, nor be another one?

Rules
-----
* From connecting to the last byte of the answer there is one deadline, however slowly the place sends.
* TLS is checked, name and certificate, against the system's authorities or those of the given file. Without TLS only
  this machine is asked, except where what is sent is no secret and the answer is signed (a witness, a time stamp).
* One request on one connection, to the address in the policy: no redirect is followed and no proxy is asked.
* Trouble names the host, never the rest of an address: that of a webhook often holds a secret.
"""

from __future__ import annotations

import http.client
import io
import re
import socket
import ssl
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from storage.followers.seam import CopyTrouble

if TYPE_CHECKING:
    from collections.abc import Mapping

SECONDS: Final = 20.0  # for one delivery; a claim (runner.py) stands for longer
_LONGEST_ANSWER: Final = 64 * 1024  # more than any cosignature or time stamp has
_URL: Final = re.compile(r"https?://[!-~]{1,2000}", re.ASCII)
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


class Deadline:
    """The moment at which we stop waiting. Monotonic: the machine's clock may be set meanwhile."""

    __slots__ = ("_end",)

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left. Raises TimeoutError when none are."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


def tls(ca_file: str | None, cert_file: str | None = None, key_file: str | None = None) -> ssl.SSLContext:
    """Return the context that checks name and certificate. Raises CopyTrouble for a file that cannot be read.

    Made anew for each connection, so that certificates can be renewed while the bot runs.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError):
        raise CopyTrouble(f"{ca_file} cannot be read, or holds no certificates (PEM).") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if cert_file is not None:
        try:
            # The empty password: else a key that has one would be asked for on the terminal, and the bot would hang.
            context.load_cert_chain(cert_file, key_file, password="")
        except (OSError, ssl.SSLError):
            raise CopyTrouble(
                f"The bot's own certificate {cert_file} or its key cannot be read, or they do not belong together."
            ) from None
    return context


def connect(host: str, port: int, context: ssl.SSLContext | None, deadline: Deadline) -> socket.socket:
    """Connect, with TLS where there is a context. Raises OSError."""
    plain = socket.create_connection((host, port), timeout=deadline.left())
    try:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is None:
            return plain
        plain.settimeout(deadline.left())
        return context.wrap_socket(plain, server_hostname=host)
    except BaseException:
        plain.close()
        raise


def send(connected: socket.socket, data: bytes, deadline: Deadline) -> None:
    """Write all of it. Raises OSError."""
    left = memoryview(data)
    while left:
        connected.settimeout(deadline.left())
        left = left[connected.send(left) :]


def say(what: str, error: Exception) -> str:
    """Return the sentence about a connection that failed. ``what`` names the place, with its host."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message.rstrip(".") or "it is not trusted"
        return f"The certificate of {what} is not accepted: {why}. Renew it there, or correct the CA file here."
    if isinstance(error, TimeoutError):
        return f"{_begin(what)} does not answer in time."
    if isinstance(error, socket.gaierror):
        return f"{_begin(what)} is not found: its name is not known to the name servers, or they do not answer."
    if isinstance(error, ConnectionRefusedError):
        return f"{_begin(what)} does not answer: nothing listens there, or a firewall is in between."
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        reason = (error.reason or "no reason given").lower().replace("_", " ")
        return f"{_begin(what)} and the bot do not agree on TLS ({reason})."
    if isinstance(error, http.client.HTTPException) and not isinstance(
        error, http.client.IncompleteRead | http.client.RemoteDisconnected
    ):
        return f"{_begin(what)} does not answer in HTTP: is this the right address?"
    return f"{_begin(what)} broke the connection off."


def _begin(what: str) -> str:
    return what[:1].upper() + what[1:]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: the status, the content type without its parameters, and the body if it was asked for."""

    status: int
    content_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Web:
    """An address that takes POST. ``noun`` and ``name`` begin the sentences: “the webhook”, “hook”.

    ``is_open``: what is sent is no secret and the answer is signed, so that TLS may be missing. Raises CopyTrouble for
    an address that cannot be used.
    """

    noun: str
    name: str
    url: str = field(repr=False)
    ca_file: str | None = None
    is_open: bool = False
    seconds: float = SECONDS

    def __post_init__(self) -> None:
        check_url(f"{self.noun} {self.name}", self.url, is_open=self.is_open)
        if self.ca_file is not None:
            tls(self.ca_file)

    @property
    def what(self) -> str:
        """The place, as it is named in a sentence."""
        return f"{self.noun} {self.name} ({urlsplit(self.url).hostname})"

    def post(self, body: bytes, headers: Mapping[str, str], *, is_read: bool = True) -> Answer:
        """Send the body and return the answer, whatever its status, read only where asked for. CopyTrouble."""
        deadline = Deadline(self.seconds)
        url = urlsplit(self.url)
        is_tls = url.scheme == "https"
        context = tls(self.ca_file) if is_tls else None
        host = url.hostname or ""
        connection = http.client.HTTPConnection(host)
        connection.auto_open = 0
        try:
            connected = connect(host, url.port or (443 if is_tls else 80), context, deadline)
            timed: Any = _Timed(connected, deadline)
            connection.sock = timed
            target = (url.path or "/") + (f"?{url.query}" if url.query else "")
            always = {"Host": url.netloc, "Connection": "close", "User-Agent": "breakglass"}
            connection.request("POST", target, body, {**always, **headers})
            response = connection.getresponse()
            # One byte more than is allowed, so that too much is noticed without being read.
            content = response.read(_LONGEST_ANSWER + 1) if is_read else b""
            if response.length and is_read and len(content) <= _LONGEST_ANSWER:
                # The library takes what came before the line broke for all of it.
                raise http.client.IncompleteRead(content, response.length)
            kind = (response.headers.get("Content-Type") or "").partition(";")[0].strip().lower()
        except (OSError, http.client.HTTPException) as error:
            raise CopyTrouble(say(self.what, error)) from error
        finally:
            connection.close()
        if len(content) > _LONGEST_ANSWER:
            raise CopyTrouble(f"{_begin(self.what)} answers with more than is expected: is this the right address?")
        return Answer(response.status, kind, content)

    def refused(self, answer: Answer) -> CopyTrouble:
        """Return the trouble for a status that this kind of place has no words of its own for."""
        what, status = _begin(self.what), answer.status
        if status in {301, 302, 303, 307, 308}:
            return CopyTrouble(f"{what} redirects elsewhere, which is not followed: put the final address down.")
        if status in {401, 403}:
            return CopyTrouble(f"{what} does not let the bot in (status {status}).")
        if status in {404, 405, 410}:
            return CopyTrouble(f"{what} does not know this address (status {status}): is it the right one?")
        if status == 413:
            return CopyTrouble(f"{what} does not take so much at once (status 413): raise its limit to 8 MB.")
        if status == 429:
            return CopyTrouble(f"{what} is asked too often for its taste (status 429); it goes on by itself.")
        return CopyTrouble(f"{what} is in trouble itself (status {status}).")


def check_url(what: str, url: str, *, is_open: bool = False) -> None:
    """Refuse an address that cannot be used or is unsafe. Raises CopyTrouble."""
    try:
        parts = urlsplit(url)
        is_whole = bool(_URL.fullmatch(url) and parts.hostname and not parts.fragment and parts.port != 0)
    except ValueError:
        is_whole = False
    if not is_whole:
        raise CopyTrouble(f"The address of {what} cannot be used: write it like https://host/path.")
    if parts.username is not None or parts.password is not None:
        raise CopyTrouble(f"The address of {what} holds a name or password, which does not belong in the policy.")
    if parts.scheme == "http" and not is_open and parts.hostname not in _LOOPBACK:
        raise CopyTrouble(f"The address of {what} must begin with https://: entries hold names and reasons.")


class _Timed:
    """A connection for http.client in which every wait ends at one deadline."""

    def __init__(self, connected: socket.socket, deadline: Deadline) -> None:
        self._connected = connected
        self._deadline = deadline

    def sendall(self, data: bytes) -> None:
        send(self._connected, data, self._deadline)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Incoming(self._connected, self._deadline))

    def close(self) -> None:
        self._connected.close()


class _Incoming(io.RawIOBase):
    def __init__(self, connected: socket.socket, deadline: Deadline) -> None:
        # The socket's own file keeps it open when http.client has let go of the connection and still reads the body.
        self._raw = connected.makefile("rb", buffering=0)
        self._connected = connected
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:  # noqa: ANN401 - a buffer has no type of its own yet
        self._connected.settimeout(self._deadline.left())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()
