"""Can a monitoring system fetch how it goes, and nothing about anybody?"""

from __future__ import annotations

import re
import socket
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from bundling import NAMES, nights
from counter import POLICY

from bot.metrics import CONTENT_TYPE, Metrics, read
from storage import audit
from storage.database import Database
from storage.followers.runner import ALARM, ALL
from storage.models import Feed, State
from workflows import policy as rules
from workflows.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOST = "127.0.0.1"
BASE = re.sub(r"^log:\n(?:  .*\n)+", "", POLICY.read_text(encoding="utf-8"), flags=re.MULTILINE)
RULES = rules.parse(
    BASE
    + """log:
  origin: log.example.com/orders
  signer: {kind: file, path: log.key}
  copies:
    archive: {kind: file, path: copy.log, required: true}
    clock: {kind: timestamp, url: "https://tsa.example.com", ca_file: tsa.pem}
""",
    name="test",
).log
SAMPLE = re.compile(r'([a-z_]+)(?:\{([a-z]+)="([^"\\\n]*)"\})? (-?[0-9]+(?:\.[0-9]+)?)')


def parsed(text: str) -> dict[str, float]:
    """Read the exposition format strictly: HELP and TYPE before each metric, no sample twice."""
    assert text.endswith("\n")
    found: dict[str, float] = {}
    name, kind = "", ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name, kind = line.split(" ")[2], ""
            continue
        if line.startswith("# TYPE "):
            _, _, typed, kind = line.split(" ")
            assert typed == name
            assert kind in {"gauge", "counter"}
            assert (kind == "counter") is name.endswith("_total")
            continue
        match = SAMPLE.fullmatch(line)
        assert match, line
        assert (match[1], bool(kind)) == (name, True)
        key = f"{match[1]} {match[3]}" if match[2] else match[1]
        assert key not in found
        found[key] = float(match[4])
    return found


def get(port: int, path: str = "/metrics") -> tuple[int, str, str]:
    """Fetch it; status, content type, text."""
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=60) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[], str]], Metrics]]:
    """Start servers on free ports, and stop them afterwards."""
    running = []

    def start(give: Callable[[], str]) -> Metrics:
        running.append(Metrics(HOST, 0, give))
        running[-1].start()
        return running[-1]

    yield start
    for one in running:
        one.stop()


def test_every_number_is_that_of_the_rows(database, serve):
    """Entries, signed head, each copy's lag and state, and requests by state are what the database says now."""
    writer = nights(database)
    with database.write() as session:
        session.add(Feed(follower="archive", request_id=ALL, seq=writer.entry_count() - 3, failures=0))
    now = writer.now + timedelta(seconds=90)
    server = serve(lambda: read(database, RULES, now=now))
    status, kind, text = get(server.port)
    assert (status, kind) == (200, CONTENT_TYPE)
    found = parsed(text)
    size = writer.entry_count()
    assert found["breakglass_log_entries_total"] == size
    assert found["breakglass_log_signed_entries"] == size
    assert found["breakglass_log_signed_head_age_seconds"] == 90
    assert found["breakglass_log_unsigned_seconds"] == 0
    assert found["breakglass_copy_lag_entries archive"] == 2
    assert found["breakglass_copy_lag_seconds archive"] >= 90
    assert (found["breakglass_copy_required archive"], found["breakglass_copy_up archive"]) == (1, 1)
    # A notary lacks what is signed; it has no row yet.
    assert found["breakglass_copy_lag_entries clock"] == size
    assert (found["breakglass_copy_required clock"], found["breakglass_copy_up clock"]) == (0, 1)
    assert found["breakglass_slack_lag_seconds"] > 0
    assert {key.split()[1]: value for key, value in found.items() if key.startswith("breakglass_requests ")} == {
        state.value: 4 if state is State.PENDING else 0 for state in State
    }
    # The next scrape sees what another bot did meanwhile.
    with database.write() as session:
        audit.append(session, event="test:entry", at=writer.now, actor=audit.SYSTEM)
        session.get(Feed, ("archive", ALL)).failures = 2
        session.add(Feed(follower="clock", request_id=ALARM, seq=1))
    found = parsed(get(server.port)[2])
    assert found["breakglass_log_entries_total"] == size + 1
    assert found["breakglass_log_signed_entries"] == size
    assert found["breakglass_log_unsigned_seconds"] == 90
    assert (found["breakglass_copy_up archive"], found["breakglass_copy_up clock"]) == (0, 0)


def test_an_empty_log_without_copies_has_numbers_too(database):
    """No head, no copy: those metrics have no sample, and nothing fails."""
    found = parsed(read(database, None, now=datetime.now(UTC)))
    assert found["breakglass_log_entries_total"] == 0
    assert "breakglass_log_signed_head_age_seconds" not in found
    assert not [key for key in found if key.startswith("breakglass_copy_")]


def test_a_log_that_nobody_signs_is_not_behind(database):
    """Without the policy's section about the log there is no head to wait for."""
    nights(database, signed=False)
    assert parsed(read(database, None, now=datetime.now(UTC)))["breakglass_log_unsigned_seconds"] == 0


def test_nobody_and_nothing_typed_is_in_it(database):
    """No person, request, account, reason or identity: whoever sees the numbers learns of no case."""
    nights(database)
    text = read(database, RULES, now=datetime.now(UTC))
    for secret in (*NAMES, *NAMES.values(), "U0", "BG-", "orders-db", "payments", "Checkout", "INC-", "v-approle"):
        assert secret not in text


def test_a_database_that_is_down_gives_no_number(serve):
    """503 and a sentence; the password in the URL stays out of it."""
    down = Database("postgresql://bot:secret-word@127.0.0.1:9/none")
    status, _, text = get(serve(lambda: read(down, RULES, now=datetime.now(UTC))).port)
    assert status == 503
    assert "does not answer" in text
    assert "secret-word" not in text
    assert "breakglass_" not in text


def test_an_unforeseen_error_is_500_and_the_next_scrape_is_answered(serve):
    """A traceback goes to the log file alone, and the server lives on."""
    answers = iter((ZeroDivisionError("secret-word"), "well\n"))

    def give() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    server = serve(give)
    status, _, text = get(server.port)
    assert status == 500
    assert "secret-word" not in text
    assert get(server.port)[2] == "well\n"


@pytest.mark.parametrize("path", ["/", "/metrics/../etc/passwd", "/metricsx", "/METRICS"])
def test_there_is_nothing_else(serve, path):
    """Every other path is 404."""
    assert get(serve(lambda: "x\n").port, path)[0] == 404


def test_a_query_is_passed_over(serve):
    """Some scrapers add one."""
    assert get(serve(lambda: "x\n").port, "/metrics?a=b")[::2] == (200, "x\n")


def test_it_cannot_be_changed(serve):
    """POST is not known."""
    server = serve(lambda: "x\n")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://{HOST}:{server.port}/metrics", data=b"x", timeout=60)
    assert refused.value.code == 501


def test_a_port_that_is_taken_is_said_at_once(serve):
    """The bot does not start half: the sentence names the variable."""
    server = serve(lambda: "x\n")
    with pytest.raises(Unavailable, match=rf"METRICS_ADDRESS: 127\.0\.0\.1 port {server.port}"):
        Metrics(HOST, server.port, lambda: "x\n")


def test_attack_many_who_connect_and_say_nothing(serve):
    """Silent connections take a few threads and no more; when they are gone, scrapes are answered again."""
    server = serve(lambda: "x\n")
    silent = [socket.create_connection((HOST, server.port)) for _ in range(40)]
    try:
        # All but a few are hung up on.
        until = time.monotonic() + 60
        while sum(not _is_closed(one) for one in silent) > 8:
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        for one in silent:
            one.close()
    until = time.monotonic() + 60
    while True:
        try:
            assert get(server.port)[0] == 200
            break
        except OSError:  # the room is given back when the threads have seen the end
            assert time.monotonic() < until
            time.sleep(0.05)


def _is_closed(one: socket.socket) -> bool:
    one.setblocking(False)
    try:
        return one.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
