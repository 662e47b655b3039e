"""Which services beyond Slack do the tests of alerts send to? A web hook and a mail server, on loopback.

Both end with the test that began them. A hook answers with a status, or not at all, as the test says.
"""

from __future__ import annotations

import json
import socketserver
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

PASSWORD = "hunter2-in-the-address"  # it must be nowhere


@dataclass
class Hook:
    """What apprise's ``json://`` is sent to; ``got`` holds what came, also what was answered with a failure."""

    status: int = 200
    got: list[dict[str, Any]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    def __enter__(self) -> Self:
        hook = self
        self.gate.set()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.got.append(json.loads(body))
                hook.gate.wait()
                self.send_response(hook.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            allow_reuse_address = True
            daemon_threads = True

            def handle_error(self, *_):
                """Who hung up is no news."""

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Its address, as apprise takes it."""
        return f"json://bot:{PASSWORD}@127.0.0.1:{self.port}/hook?rto=60"

    @property
    def titles(self) -> list[str]:
        """The titles of what came."""
        return [one["title"] for one in self.got]


@dataclass
class Mail:
    """A mail server that takes everything; ``got`` holds each letter as it was sent."""

    got: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        got = self.got

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                self.wfile.write(b"220 mail.example\r\n")
                for line in self.rfile:
                    word = line[:4].upper()
                    if word == b"DATA":
                        self.wfile.write(b"354 go on\r\n")
                        letter = []
                        for more in self.rfile:
                            if more == b".\r\n":
                                break
                            letter.append(more.decode())
                        got.append("".join(letter))
                    self.wfile.write(b"221 bye\r\n" if word == b"QUIT" else b"250 yes\r\n")
                    if word == b"QUIT":
                        return

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Its address, as apprise takes it."""
        port = self._server.server_address[1]
        return f"mailto://127.0.0.1:{port}?mode=insecure&from=bot@orders.example&to=lena@orders.example"
