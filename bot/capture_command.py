"""What can be typed about the captures, mostly beside the targets? ``breakglass capture …``.

Rules
-----
* ``tail`` and ``pipe`` need nothing but the source's token and a way to the bot: no settings, no database, no policy.
* The token comes from the environment (``CAPTURE_TOKEN``) or a file, never from an argument: arguments are seen by all.
* A token travels over TLS with a checked certificate, or on loopback.
* ``setup`` prints, and changes nothing; ``token`` makes a token that nobody else has, and keeps it nowhere.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import os
import secrets
import signal
import ssl
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

from bot.settings import is_loopback
from bot.tailer import SPOOL_BYTES, NotSent, Tailer
from workflows.captures import CAPTURES
from workflows.errors import Invalid, Refused

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

_SECONDS: Final = 30  # for one request
_PACKED: Final = 2_000  # bytes from which a body is packed
_PAUSES: Final = (0.5, 1.0, 2.0, 4.0)  # seconds between the tries of ``pipe``; then whoever pipes keeps the line
_TOKEN_BYTES: Final = 32


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``capture`` to the command line."""
    capture = commands.add_parser("capture", help="where executed commands are read").add_subparsers(
        required=True, metavar="WHAT"
    )
    tail = capture.add_parser(
        "tail",
        help="follow a log file of a target and send its lines to the bot",
        description="Runs beside the target. CAPTURE_TOKEN holds the source's token.",
    )
    _add_way(tail)
    tail.add_argument("file", metavar="FILE", type=Path, help="the file, or a quoted pattern: '/var/log/pg/*.json'")
    tail.add_argument("--state", type=Path, help="where the place is kept (default: SOURCE.state in this folder)")
    tail.add_argument("--spool", type=Path, metavar="DIR", help="keep what the bot does not take in this folder")
    tail.add_argument(
        "--spool-bytes", type=int, default=SPOOL_BYTES, metavar="N", help=f"no more than that (default: {SPOOL_BYTES})"
    )
    tail.add_argument("--once", action="store_true", help="send what is there, and end")
    tail.set_defaults(run=_tail)

    pipe = capture.add_parser(
        "pipe",
        help="send the JSON lines of standard input, and answer OK for each that is recorded",
        description="For rsyslog's omprog with confirmMessages. CAPTURE_TOKEN holds the source's token.",
    )
    _add_way(pipe)
    pipe.set_defaults(run=_pipe)

    setup = capture.add_parser("setup", help="print what has to be put at a target, ready to paste")
    setup.add_argument("kind", choices=sorted(CAPTURES), help="the kind of target")
    setup.add_argument("--source", metavar="NAME", help="the source's name in the policy")
    setup.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what the target is like: manager, role (postgres), user (sudo), file (vault)",
    )
    setup.set_defaults(run=lambda options: _setup(options.kind, options.source, options.set))

    token = capture.add_parser("token", help="print a new token, and its SHA-256 for the policy")
    token.set_defaults(run=lambda _: _token())


def _add_way(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", required=True, metavar="NAME", help="the source's name in the policy")
    parser.add_argument(
        "--to", default="http://127.0.0.1:9465", metavar="URL", help="where the bot answers (default: this machine)"
    )
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="the token, instead of CAPTURE_TOKEN")
    parser.add_argument("--ca", metavar="FILE", help="certificates of a private authority (PEM)")
    parser.add_argument(
        "--cert", metavar="FILE", help="a certificate of one's own with its key, if the bot asks for it"
    )


class Poster:
    """Posts batches to ``to``, on one connection as long as it lasts. Not to be shared by threads."""

    def __init__(self, to: str, source: str, token: str, *, ca: str | None = None, cert: str | None = None) -> None:
        way = urlsplit(to)
        if way.scheme not in {"http", "https"} or not way.hostname or way.query or way.fragment or way.username:
            raise Invalid("--to is an address as https://bot.example.com:9465.")
        if way.scheme == "http" and not is_loopback(way.hostname):
            raise Invalid("--to begins with https:// unless it is this machine: the token would travel in clear.")
        try:
            self._host, self._port = way.hostname, way.port
        except ValueError:
            raise Invalid("--to has a port that is none.") from None
        self._path = f"{way.path.rstrip('/')}/capture/{quote(source, safe='')}"
        self._token = token
        self._context: ssl.SSLContext | None = None
        if way.scheme == "https":
            try:
                self._context = ssl.create_default_context(cafile=ca)
                if cert is not None:
                    self._context.load_cert_chain(cert)
            except OSError as error:
                raise Refused(f"--ca or --cert cannot be used: {error.strerror or error}.") from None
        self._connection: http.client.HTTPConnection | None = None

    def post(self, body: bytes) -> None:
        """Return when the bot has recorded ``body``. Raises :class:`NotSent`."""
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/x-ndjson"}
        if len(body) > _PACKED:
            body = gzip.compress(body, 1)
            headers["Content-Encoding"] = "gzip"
        is_old = self._connection is not None
        try:
            status, answer = self._ask(body, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if not is_old:
                raise NotSent(_why(error)) from None
            # The bot closes a connection that was quiet; what it has recorded already it will know.
            try:
                status, answer = self._ask(body, headers)
            except (OSError, http.client.HTTPException) as again:
                self.close()
                raise NotSent(_why(again)) from None
        if status != http.HTTPStatus.OK:
            self.close()
            raise NotSent(f"it answers {status}: {_sentence(answer)}")

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        if self._connection is None:
            if self._context is None:
                self._connection = http.client.HTTPConnection(self._host, self._port, timeout=_SECONDS)
            else:
                self._connection = http.client.HTTPSConnection(
                    self._host, self._port, timeout=_SECONDS, context=self._context
                )
        self._connection.request("POST", self._path, body, headers)
        answer = self._connection.getresponse()
        return answer.status, answer.read(10_000)


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted ({error.verify_message})."
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"no answer ({text})."


def _sentence(answer: bytes) -> str:
    try:
        told = json.loads(answer)
    except ValueError:
        return "no sentence with it."
    return str(told.get("error", "no sentence with it."))[:300] if isinstance(told, dict) else "no sentence with it."


def _tail(options: argparse.Namespace) -> int:
    state = options.state or Path(f"{options.source}.state")
    poster = _poster(options)
    tailer = Tailer(options.file, poster, state=state, spool=options.spool, spool_bytes=options.spool_bytes)
    try:
        if options.once:
            tailer.once()
        else:
            ended = threading.Event()
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: ended.set())
            tailer.run(ended)
    finally:
        tailer.close()
        poster.close()
    return 0


def _pipe(options: argparse.Namespace) -> int:
    poster = _poster(options)
    _answer("OK")
    for line in sys.stdin.buffer:
        _answer(_bring(poster, line))
    return 0


def _bring(poster: Poster, line: bytes) -> str:
    """Send one line; return what omprog reads: OK, or why it is to keep it and send it again."""
    # rsyslog does not escape what is no text, and JSON has none: the line must not stop all that follow it.
    line, why = line.decode(errors="replace").encode(), ""
    for pause in (0.0, *_PAUSES):
        time.sleep(pause)
        try:
            poster.post(line)
        except NotSent as error:
            why = str(error)
        else:
            return "OK"
    return f"The bot takes no lines: {why}".replace("\n", " ")


def _answer(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _poster(options: argparse.Namespace) -> Poster:
    token = os.environ.get("CAPTURE_TOKEN", "").strip()
    if options.token_file is not None:
        try:
            token = options.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Refused(f"{options.token_file} cannot be read: {getattr(error, 'strerror', 'no text')}.") from None
    if not token or not token.isascii() or not token.isprintable():
        raise Refused("CAPTURE_TOKEN is not set: the source's token, which “breakglass capture token” makes.")
    return Poster(options.to, options.source, token, ca=options.ca, cert=options.cert)


def _setup(kind: str, source: str | None, told: Sequence[str]) -> int:
    options = {} if source is None else {"source": source}
    for one in told:
        name, equals, value = one.partition("=")
        if not equals or not value.isprintable():
            raise Invalid("--set takes NAME=VALUE.")
        options[name] = value
    sys.stdout.write(CAPTURES[kind].setup(options).rstrip("\n") + "\n")
    return 0


def _token() -> int:
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    sys.stdout.write(f"token         {token}\ntoken_sha256  {hashlib.sha256(token.encode()).hexdigest()}\n")
    sys.stderr.write("The first goes to the target (CAPTURE_TOKEN), the second into the policy. It is kept nowhere.\n")
    return 0
