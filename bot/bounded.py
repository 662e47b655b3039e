"""How do we listen on a port, so that a stranger's connections cost little?

Rules
-----
* Few are served at once: one too many is closed, not queued. Each has a thread, and none keeps the bot from stopping.
* The port is taken at once, so that a mistake shows before anything runs.
"""

from __future__ import annotations

import logging
import socket
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

from workflows.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)


class BoundedServer(ThreadingHTTPServer):
    """Answers at ``host`` and ``port`` (0: any free one), ``at_once`` connections at a time.

    ``setting`` names the address to who set it. Raises :class:`Unavailable`.
    """

    daemon_threads = True
    block_on_close = False  # somebody who does not read must not keep the bot from stopping

    def __init__(
        self, setting: str, host: str, port: int, handler: Callable[..., BaseHTTPRequestHandler], *, at_once: int
    ) -> None:
        self._room = threading.BoundedSemaphore(at_once)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), handler)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise Unavailable(f"{setting}: {host} port {port} cannot be listened at: {why}.") from None
        self.port: Final = int(self.server_address[1])
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to answer."""
        self._thread = threading.Thread(target=partial(self.serve_forever, 0.1), name=type(self).__name__, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Answer no more, and give the port back."""
        if self._thread is not None:
            self.shutdown()
            self._thread.join()
            self._thread = None
        self.server_close()

    def opened(self, request: Any) -> Any | None:  # noqa: ANN401 - a socket, as the library has it
        """Return the connection that is served, in its own thread; None: it came to nothing and is closed."""
        return request

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as the library has it
        """Serve it in a thread of its own, if there is room."""
        # Attack: many connections that say nothing, each with a thread of ours.
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Serve it, and make room for another one."""
        try:
            if (served := self.opened(request)) is not None:
                super().process_request_thread(served, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401, ARG002
        """Say little: somebody hung up, or was too slow."""
        log.debug("a connection was broken off")
