"""What does somebody do who does not want to give a login back?

Each client attacks one credential from many threads until it is told to stop, and keeps count of every login that
succeeded, with the moment at which it did. ``tests/bench_revoke.py`` runs the long series, the tests of the engines a
few rounds.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pymysql
from pymysql.connections import Connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from workflows.engines import Credential

THREADS = 8


class Hostile:
    """Eight threads that reconnect in a loop, beside sessions that were open before.

    ``logins`` are the monotonic times at which a login had succeeded. ``held`` are what the sessions that were open
    before would do next; :meth:`still_open` says how many of them can.
    """

    def __init__(self, connect: Callable[[], Any], work: str, failures: tuple[type[Exception], ...]) -> None:
        self._connect = connect
        self._work = work
        self._failures = failures
        self.logins: list[float] = []
        self.held: list[Callable[[], Any]] = []
        self._is_over = threading.Event()
        self._threads: list[threading.Thread] = []

    def attack(self) -> None:
        """Let go; returns when a login of the loop has succeeded."""
        self._threads += [threading.Thread(target=self._reconnect) for _ in range(THREADS)]
        for thread in self._threads:
            thread.start()
        late = time.monotonic() + 60
        while not self.logins and time.monotonic() < late:
            time.sleep(0.001)

    def stop(self) -> None:
        """Have every thread end, and wait for it."""
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def logins_after(self, moment: float) -> int:
        """Count the logins that succeeded after a monotonic time."""
        return sum(when > moment for when in self.logins)

    def still_open(self) -> int:
        """Count the held sessions that can still do something."""
        return sum(self._can(act) for act in self.held)

    def _can(self, act: Callable[[], Any]) -> bool:
        try:
            act()
        except self._failures:
            return False
        return True

    def _reconnect(self) -> None:
        while not self._is_over.is_set():
            try:
                session = self._connect()
                self.logins.append(time.monotonic())
                session.cursor().execute(self._work)
                session.close()
            except self._failures:
                continue


class _Stalling(Connection):
    """A MariaDB client that stops in the middle of logging in.

    It offers a way to log in that the server does not know for the account; the server, which has looked the account up
    by then, asks for another, and waits for the answer for as long as its ``connect_timeout``.
    """

    def __init__(self, **words: Any) -> None:
        self.is_asked = threading.Event()
        self.go_on = threading.Event()
        super().__init__(defer_connect=True, **words)

    def _get_server_information(self) -> None:
        super()._get_server_information()
        self._auth_plugin_name = "dialog"

    def _process_auth(self, *words: Any, **more: Any) -> Any:
        self.is_asked.set()
        self.go_on.wait(60)
        return super()._process_auth(*words, **more)


class Stalled:
    """A login at MariaDB that was begun and is answered only when :meth:`answer` is called."""

    def __init__(self, credential: Credential, **words: Any) -> None:
        self.session = _Stalling(
            host=credential.host, port=credential.port, user=credential.username, password=credential.password, **words
        )
        self.is_in = False
        self._thread = threading.Thread(target=self._log_in)
        self._thread.start()
        self.session.is_asked.wait(60)

    def answer(self) -> bool:
        """Send the password now, and say whether it let us in."""
        self.session.go_on.set()
        self._thread.join()
        return self.is_in

    def _log_in(self) -> None:
        try:
            self.session.connect()
        except (pymysql.Error, OSError):
            return
        self.is_in = True


def at_mariadb(credential: Credential) -> Hostile:
    """Return a client with an idle session, one in a transaction, and one with an open cursor."""

    def connect(**more: Any) -> pymysql.Connection:
        words = {"host": credential.host, "port": credential.port, "database": credential.database}
        return pymysql.connect(
            user=credential.username, password=credential.password, connect_timeout=30, read_timeout=60, **words, **more
        )

    hostile = Hostile(connect, "SELECT SLEEP(0.002)", (pymysql.Error, OSError))
    idle, changing, reading = connect(), connect(), connect(cursorclass=pymysql.cursors.SSCursor)
    changing.begin()
    changing.cursor().execute("SELECT COUNT(*) FROM orders")
    rows = reading.cursor()
    rows.execute("SELECT a.id, REPEAT('x', 1000) FROM orders a, orders b, orders c")

    def read_on() -> None:
        try:
            # More than the buffers between here and there may hold of what was sent before.
            rows.fetchmany(50_000)
        except (pymysql.Error, OSError):
            # Or it would be read to its end when it is thrown away.
            rows._result.unbuffered_active, rows._result = False, None
            raise

    hostile.held += [lambda: idle.query("SELECT 1"), lambda: changing.query("SELECT 1"), read_on]
    return hostile


def at_postgresql(credential: Credential) -> Hostile:
    """Return a client with an idle session, one in a transaction, and one with an open cursor."""

    def connect() -> psycopg.Connection:
        words = {"host": credential.host, "port": credential.port, "dbname": credential.database}
        return psycopg.connect(
            user=credential.username, password=credential.password, connect_timeout=30, autocommit=True, **words
        )

    hostile = Hostile(connect, "SELECT pg_sleep(0.002)", (psycopg.Error,))
    idle, changing, reading = connect(), connect(), connect()
    changing.execute("BEGIN")
    changing.execute("SELECT count(*) FROM orders")
    reading.execute("BEGIN")
    reading.execute("DECLARE rows CURSOR FOR SELECT a.id FROM orders a, orders b, orders c")
    reading.execute("FETCH 10 FROM rows")
    hostile.held += [
        lambda: idle.execute("SELECT 1"),
        lambda: changing.execute("SELECT 1"),
        lambda: reading.execute("FETCH 10 FROM rows"),
    ]
    return hostile
