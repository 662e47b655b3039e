"""How do lines of targets come in over HTTPS, and from nobody else?

Rules
-----
* ``POST /capture/SOURCE`` with the source's token. Of the token the policy holds the SHA-256; it is compared in
  constant time. Who has no token of ours learns nothing, not even which sources there are.
* Without a certificate it listens on loopback only: a token does not travel in clear.
* The body is JSON lines: the line itself under ``line`` (``line64``: base64), ``log`` or ``message``; its file under
  ``file``, ``path`` or ``filename``; where it begins there under ``offset``. Or a ``gap``. Empty: a heartbeat.
* All of a batch is on the disk when it is answered 200. Anything else: it is to be sent again, which doubles nothing.
* A body is limited, packed and unpacked. Few are served at once, and each has to be quick.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import io
import json
import logging
import re
import ssl
import threading
import time
import zlib
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from bot.bounded import BoundedServer
from bot.settings import Listen, is_loopback
from workflows.errors import BreakGlassError, Invalid, Unavailable
from workflows.recorder import Gap, Raw

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from workflows.capture_rules import SourceRules
    from workflows.recorder import Taken

log = logging.getLogger(__name__)

MOST_PACKED: Final = 8 * 1024 * 1024  # bytes of a body as it comes
MOST_BODY: Final = 16 * 1024 * 1024  # and unpacked
_MOST_LINES: Final = 50_000  # in a body
_MOST_FILE: Final = 1_000  # characters of a file's name
_AT_ONCE: Final = 64  # connections
_READING: Final = 4  # bodies that are unpacked and recorded at once: each may take some hundred MB for a moment
_SECONDS: Final = 10.0  # for the handshake and the head, or between two requests
_BODY_SECONDS: Final = 60.0
_PATH: Final = re.compile(r"/capture/([^/?#]{1,200})")
_TEXTS: Final = ("line", "log", "message")
_FILES: Final = ("file", "path", "filename")


class NotWanted(Exception):
    """The request is answered with ``status`` and a sentence."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Ingest(BoundedServer):
    """Answers at ``listen`` (port 0: any free one), in threads of its own.

    ``sources`` gives what the policy says now; ``take`` records a batch of one of them. The port is taken at once, so
    that a mistake shows before anything runs. Raises :class:`Unavailable`.
    """

    def __init__(
        self,
        listen: Listen,
        *,
        sources: Callable[[], Mapping[str, SourceRules]],
        take: Callable[[str, Sequence[Raw | Gap], datetime], Taken],
        now: Callable[[], datetime],
    ) -> None:
        context = _context(listen)
        if context is None and not is_loopback(listen.host):
            raise Unavailable(
                f"CAPTURE_ADDRESS: {listen.host} is not loopback, so CAPTURE_TLS_CERT and CAPTURE_TLS_KEY are needed."
            )
        self._context = context
        handler = partial(_Handler, _Door(sources, take, now))
        super().__init__("CAPTURE_ADDRESS", listen.host, listen.port, handler, at_once=_AT_ONCE)

    def opened(self, request: Any) -> Any | None:  # noqa: ANN401 - as the library has it
        """Shake hands, where there is a certificate."""
        if self._context is None:
            return request
        # Here, and not where connections are accepted: who does not go on would keep all others out.
        request.settimeout(_SECONDS)
        try:
            return self._context.wrap_socket(request, server_side=True)
        except OSError:
            self.shutdown_request(request)
            return None


def _context(listen: Listen) -> ssl.SSLContext | None:
    if listen.certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(listen.certificate, listen.key)
        if listen.client_ca is not None:
            context.load_verify_locations(listen.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise Unavailable(
            f"CAPTURE_TLS_CERT, CAPTURE_TLS_KEY or CAPTURE_TLS_CLIENT_CA cannot be used: {error.strerror or error}."
        ) from None
    return context


# --- what is asked for ---------------------------------------------------------------------------------------------


class _Door:
    """Who is let in, and what a body says."""

    def __init__(
        self,
        sources: Callable[[], Mapping[str, SourceRules]],
        take: Callable[[str, Sequence[Raw | Gap], datetime], Taken],
        now: Callable[[], datetime],
    ) -> None:
        self._sources = sources
        self._take = take
        self._now = now
        self._reading = threading.BoundedSemaphore(_READING)

    def source(self, path: str, authorization: str) -> str:
        """Return the source whose lines these are. Raises :class:`NotWanted`."""
        asked = _PATH.fullmatch(path)
        kind, _, token = authorization.partition(" ")
        given = hashlib.sha256(token.strip().encode(errors="replace")).hexdigest()
        # All are compared, so that the time says nothing either.
        holds = [name for name, one in self._sources().items() if hmac.compare_digest(one.token_sha256, given)]
        if kind.lower() != "bearer" or not token.strip() or not holds:
            raise NotWanted(HTTPStatus.UNAUTHORIZED, "The token is of no source.")
        if asked is None:
            raise NotWanted(HTTPStatus.NOT_FOUND, "Lines are posted to /capture/SOURCE.")
        if asked[1] not in holds:
            # To a holder of a token it may be said: a wrong name is the usual mistake.
            if asked[1] in self._sources():
                raise NotWanted(HTTPStatus.UNAUTHORIZED, "The token is of another source.")
            raise NotWanted(HTTPStatus.NOT_FOUND, "The policy names no such source.")
        return asked[1]

    def record(self, source: str, body: bytes, encoding: str) -> Taken:
        """Unpack, read and record a body. Raises :class:`NotWanted`."""
        with self._reading:
            lines = parse(unpack(body, encoding))
            try:
                return self._take(source, lines, self._now())
            except Unavailable as error:
                raise NotWanted(HTTPStatus.SERVICE_UNAVAILABLE, error.sentence) from None
            except Invalid as error:
                raise NotWanted(HTTPStatus.NOT_FOUND, error.sentence) from None
            except BreakGlassError as error:
                raise NotWanted(HTTPStatus.SERVICE_UNAVAILABLE, error.sentence) from None


def unpack(body: bytes, encoding: str) -> bytes:
    """Return the body in clear. Raises :class:`NotWanted`."""
    if encoding in {"", "identity"}:
        return body
    if encoding != "gzip":
        raise NotWanted(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body is plain or gzip.")
    out = bytearray()
    try:
        while body:
            packed = zlib.decompressobj(zlib.MAX_WBITS | 16)
            # Attack: a few kB that become gigabytes. No more is unpacked than is allowed.
            out += packed.decompress(body, MOST_BODY + 1 - len(out))
            if len(out) > MOST_BODY:
                raise NotWanted(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A body has at most {MOST_BODY} bytes.")
            if not packed.eof:
                raise NotWanted(HTTPStatus.BAD_REQUEST, "The gzip body breaks off.")
            body = packed.unused_data
    except zlib.error:
        raise NotWanted(HTTPStatus.BAD_REQUEST, "The body is not gzip.") from None
    return bytes(out)


def parse(body: bytes) -> list[Raw | Gap]:
    """Read JSON lines, or a JSON list of the same. Raises :class:`NotWanted` with what is wrong, and in which one."""
    if len(body) > MOST_BODY:
        raise NotWanted(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A body has at most {MOST_BODY} bytes.")
    try:
        texts = [line for line in body.split(b"\n") if line.strip()]
        if texts and texts[0].lstrip().startswith(b"["):
            told = json.loads(body)
        else:
            told = [json.loads(text) for text in texts]
    except (ValueError, RecursionError):
        raise NotWanted(HTTPStatus.BAD_REQUEST, "The body is not JSON lines.") from None
    if len(told) > _MOST_LINES:
        raise NotWanted(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A body has at most {_MOST_LINES} lines.")
    return [_one(number, one) for number, one in enumerate(told, 1)]


def _one(number: int, told: Any) -> Raw | Gap:  # noqa: ANN401
    def bad(what: str) -> NotWanted:
        return NotWanted(HTTPStatus.BAD_REQUEST, f"Line {number}: {what}")

    if not isinstance(told, dict):
        raise bad("it is not an object.")
    if (gap := told.get("gap")) is not None:
        if not isinstance(gap, dict):
            raise bad("a gap is an object.")
        why, first, last = gap.get("why"), gap.get("first"), gap.get("last")
        places = all(place is None or _is_offset(place) for place in (first, last))
        if not isinstance(why, str) or not places:
            raise bad("a gap has file and why, and first and last are offsets.")
        return Gap(_file(gap, bad), _clean(why)[:_MOST_FILE], first, last)
    offset = told.get("offset")
    if not _is_offset(offset):
        raise bad("it has no offset, a whole number of bytes: what comes twice could not be told.")
    return Raw(_file(told, bad), offset, _line(told, bad))


def _line(told: dict[str, Any], bad: Callable[[str], NotWanted]) -> bytes:
    if isinstance(packed := told.get("line64"), str):
        try:
            line = base64.b64decode(packed, validate=True)
        except (binascii.Error, ValueError):
            raise bad("line64 is not base64.") from None
    else:
        text = next((told[name] for name in _TEXTS if isinstance(told.get(name), str)), None)
        if text is None:
            raise bad("it has no text under line, log or message.")
        line = text.encode(errors="surrogatepass")
    if isinstance(cut := told.get("cut"), dict):
        # It reads as torn, and its hash and length stand in the hash of what is left.
        line += f" … cut: {cut.get('bytes')} bytes, sha256 {cut.get('sha256')}".encode(errors="replace")
    return line


def _file(told: dict[str, Any], bad: Callable[[str], NotWanted]) -> str:
    name = next((told[key] for key in _FILES if isinstance(told.get(key), str)), None)
    if not name:
        raise bad("it has no name under file, path or filename.")
    return _clean(name)[:_MOST_FILE]


def _clean(text: str) -> str:
    """Take out what a database or a log line cannot hold."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def _is_offset(told: Any) -> TypeGuard[int]:  # noqa: ANN401
    return isinstance(told, int) and not isinstance(told, bool) and 0 <= told < 2**63


# --- the server ----------------------------------------------------------------------------------------------------


class _Timed(io.RawIOBase):
    """Reads from a socket until ``until`` (monotonic).

    Attack: a byte every few seconds would keep a thread for ever.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.until = time.monotonic() + _SECONDS

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "breakglass"
    sys_version = ""
    _is_read = False  # the request's body

    def __init__(self, door: _Door, *more: Any) -> None:  # noqa: ANN401 - as the library has it
        self._door = door
        super().__init__(*more)

    def setup(self) -> None:
        super().setup()
        self._timed = _Timed(self.connection)
        self.rfile = io.BufferedReader(self._timed)

    def handle_one_request(self) -> None:
        self._timed.until = time.monotonic() + _SECONDS
        super().handle_one_request()

    def handle_expect_100(self) -> bool:
        """Let nobody send a body before their token was looked at."""
        return True

    def do_POST(self) -> None:
        try:
            source = self._door.source(self.path, self.headers.get("Authorization") or "")
            taken = self._door.record(source, self._body(), (self.headers.get("Content-Encoding") or "").lower())
        except NotWanted as answer:
            self._say(answer.status, {"error": str(answer)})
        except OSError:
            raise  # they hung up, or were too slow
        except Exception:
            log.exception("a batch of lines could not be taken")
            self._say(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "It could not be taken; see the bot's log file."})
        else:
            self._say(HTTPStatus.OK, {"taken": taken.taken, "known": taken.known})

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length") or ""
        if self.headers.get("Transfer-Encoding") is not None or not length.isascii() or not length.isdigit():
            raise NotWanted(HTTPStatus.LENGTH_REQUIRED, "Say the body's Content-Length.")
        if len(length) > 12 or int(length) > MOST_PACKED:
            raise NotWanted(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A body has at most {MOST_PACKED} bytes, packed.")
        if (self.headers.get("Expect") or "").lower() == "100-continue":
            self.send_response_only(HTTPStatus.CONTINUE)
            self.end_headers()
        self._timed.until = time.monotonic() + _BODY_SECONDS
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionError
        self._is_read = True
        return body

    def _say(self, status: HTTPStatus, told: dict[str, Any]) -> None:
        body = json.dumps(told).encode() + b"\n"
        if not self._is_read:
            self.close_connection = True  # its body would be read as the next request
        self._is_read = False
        self.connection.settimeout(_SECONDS)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: a post every second would bury the rest."""
