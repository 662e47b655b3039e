"""Who may bring lines in, and what becomes of a body that is wrong, too big, too slow or forged?

The endpoint is the real one, over TLS where that matters, with the real recorder behind it in the last tests.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import json
import socket
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

import pytest
from outside import Authority

from bot import ingest as door
from bot.capture_command import Poster
from bot.ingest import MOST_BODY, MOST_PACKED, Ingest
from bot.settings import Listen
from bot.tailer import NotSent
from workflows.capture_rules import SourceRules
from workflows.errors import Invalid, Refused, Unavailable
from workflows.recorder import Gap, Raw, Taken

HOST = "127.0.0.1"
TOKENS = {"orders": "token-of-orders", "shop": "token-of-shop"}
SOURCES = {
    name: SourceRules(name, "postgres", hashlib.sha256(token.encode()).hexdigest(), timedelta(seconds=60))
    for name, token in TOKENS.items()
}
LINE = {"line": "words", "file": "pg.log", "offset": 0}


class Taking:
    """Notes what was taken, or fails as it is told to."""

    def __init__(self):
        self.taken = []
        self.error = None

    def __call__(self, source, lines, now):
        """Take a batch."""
        if self.error is not None:
            raise self.error
        self.taken.append((source, list(lines)))
        return Taken(len(lines), 0)


@pytest.fixture
def taking():
    """Whoever takes the lines."""
    return Taking()


@contextmanager
def served(taking, **listen):
    """Run an endpoint."""
    ingest = Ingest(Listen(HOST, 0, **listen), sources=lambda: SOURCES, take=taking, now=lambda: datetime.now(UTC))
    ingest.start()
    try:
        yield ingest
    finally:
        ingest.stop()


@pytest.fixture
def port(taking):
    """An endpoint on loopback."""
    with served(taking) as ingest:
        yield ingest.port


def post(port, body, *, path="/capture/orders", token=TOKENS["orders"], **headers):
    """Post a body; the status and what is said."""
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    if not isinstance(body, bytes):
        body = b"".join(json.dumps(one).encode() + b"\n" for one in body)
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    connection.request("POST", path, body, headers)
    answer = connection.getresponse()
    told = json.loads(answer.read())
    connection.close()
    return answer.status, told


def test_lines_and_gaps_are_taken_in_their_order(port, taking):
    """In each form that the shippers use; the answer says how many."""
    body = [
        LINE,
        {"log": "fluent", "filename": "a", "offset": 5, "date": 1.5},
        {"message": "vector", "path": "b", "offset": 6, "host": "x"},
        {"line64": base64.b64encode(b"\xff\x00").decode(), "file": "c", "offset": 7},
        {"gap": {"file": "pg.log", "why": "truncated", "first": 3}},
    ]
    assert post(port, body) == (200, {"taken": 5, "known": 0})
    assert taking.taken == [
        (
            "orders",
            [
                Raw("pg.log", 0, b"words"),
                Raw("a", 5, b"fluent"),
                Raw("b", 6, b"vector"),
                Raw("c", 7, b"\xff\x00"),
                Gap("pg.log", "truncated", 3),
            ],
        )
    ]


def test_a_list_and_a_packed_body_are_the_same(port, taking):
    """A JSON list of lines, and gzip of several members."""
    assert post(port, json.dumps([LINE, LINE]).encode())[0] == 200
    packed = b"".join(gzip.compress(json.dumps(LINE).encode() + b"\n") for _ in range(3))
    assert post(port, packed, **{"Content-Encoding": "gzip"}) == (200, {"taken": 3, "known": 0})


def test_an_empty_body_is_a_heartbeat(port, taking):
    """It is told to the recorder as a batch of nothing."""
    assert post(port, b"") == (200, {"taken": 0, "known": 0})
    assert taking.taken == [("orders", [])]


@pytest.mark.parametrize("path", ["/capture/orders", "/capture/nosuch", "/", "/capture/", "/capture/../x"])
@pytest.mark.parametrize("token", [None, "", "wrong", "token-of-order", "token-of-ordersx", "é"])
def test_attack_without_a_token_nothing_can_be_told_apart(port, taking, path, token):
    """Which sources there are is nobody's business: the answer is the same to the byte."""
    encoded = None if token is None else token.encode().decode("latin-1")
    assert post(port, [LINE], path=path, token=encoded) == (401, {"error": "The token is of no source."})
    assert taking.taken == []


def test_attack_a_token_opens_its_own_source_only(port, taking):
    """Who holds one target writes no line in the name of another."""
    assert post(port, [LINE], path="/capture/shop")[0] == 401
    assert post(port, [LINE], path="/capture/nosuch")[0] == 404
    assert post(port, [LINE], path="/captures")[0] == 404
    assert taking.taken == []


def test_attack_the_hash_of_the_policy_is_no_token(port):
    """Who reads the policy cannot post."""
    assert post(port, [LINE], token=SOURCES["orders"].token_sha256)[0] == 401


@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b"[",
        b"1",
        b'"text"',
        b"[" * 100_000,
        b"\xff",
        b'{"line": "x", "file": "f"}',
        b'{"line": "x", "file": "f", "offset": -1}',
        b'{"line": "x", "file": "f", "offset": true}',
        b'{"line": "x", "file": "f", "offset": 1e3}',
        b'{"line": "x", "file": "f", "offset": 9223372036854775808}',
        b'{"line": "x", "offset": 1}',
        b'{"line": 5, "file": "f", "offset": 1}',
        b'{"line64": "?", "file": "f", "offset": 1}',
        b'{"gap": 5}',
        b'{"gap": {"file": "f"}}',
        b'{"gap": {"file": "f", "why": "x", "first": "1"}}',
    ],
)
def test_a_body_that_is_wrong_is_refused_as_a_whole(port, taking, body):
    """With a sentence that names the line; nothing of it is taken, so that it can be sent again."""
    status, told = post(port, json.dumps(LINE).encode() + b"\n" + body)
    assert (status, taking.taken) == (400, [])
    assert told["error"] == "The body is not JSON lines." or told["error"].startswith("Line 2: ")


def test_attack_names_cannot_break_a_log_or_a_table(port, taking):
    """Control characters and NUL in a file's name, half a surrogate in a line."""
    body = b'{"line": "\\ud800", "file": "a\\u0000\\u001b[2J\\nb\\ud800", "offset": 1}'
    assert post(port, body)[0] == 200
    ((_, (raw,)),) = taking.taken
    assert raw.file.isprintable() or "\N{REPLACEMENT CHARACTER}" in raw.file
    assert raw.file.encode()
    assert not set(raw.file) & {"\x00", "\x1b", "\n"}


def test_attack_a_gzip_bomb_is_not_unpacked(port, taking):
    """A few kB that would be gigabytes are refused before that, also as members and when they break off."""
    bomb = gzip.compress(b"\n" * (MOST_BODY + 1))
    assert len(bomb) < 100_000
    assert post(port, bomb, **{"Content-Encoding": "gzip"})[0] == 413
    half = gzip.compress(b"\n" * (MOST_BODY // 2 + 1))
    assert post(port, half + half, **{"Content-Encoding": "gzip"})[0] == 413
    assert post(port, half[:-10], **{"Content-Encoding": "gzip"})[0] == 400
    assert post(port, b"plain", **{"Content-Encoding": "gzip"})[0] == 400
    assert post(port, b"", **{"Content-Encoding": "br"})[0] == 415
    assert taking.taken == []


def test_attack_a_body_that_is_too_long_is_not_read(port):
    """Its length is refused before its first byte; one without a length, too."""
    for more in (f"Content-Length: {MOST_PACKED + 1}", "Content-Length: " + "9" * 30, "Transfer-Encoding: chunked"):
        with socket.create_connection((HOST, port), timeout=60) as raw:
            head = (
                f"POST /capture/orders HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token-of-orders\r\n{more}\r\n\r\n"
            )
            raw.sendall(head.encode())
            assert raw.makefile("rb").readline().split()[1] in {b"413", b"411"}


def test_attack_who_is_slow_does_not_keep_the_door(taking, monkeypatch):
    """A byte now and then, in the head or in the body, ends at the time; the others are served meanwhile."""
    monkeypatch.setattr(door, "_SECONDS", 1.0)
    monkeypatch.setattr(door, "_BODY_SECONDS", 1.0)
    monkeypatch.setattr(door, "_AT_ONCE", 3)
    with served(taking) as ingest:
        head = "POST /capture/orders HTTP/1.1\r\nAuthorization: Bearer token-of-orders\r\nContent-Length: 100\r\n\r\n"
        slow = [socket.create_connection((HOST, ingest.port), timeout=60) for _ in range(3)]
        slow[0].sendall(head.encode() + b"{")
        slow[1].sendall(b"POST /cap")
        late = time.monotonic() + 60
        while True:
            for one in slow[:2]:
                try:
                    one.send(b"x")
                except OSError:
                    continue
            try:
                if post(ingest.port, [LINE])[0] == 200:
                    break
            except (OSError, http.client.HTTPException):
                assert time.monotonic() < late
        assert taking.taken == [("orders", [Raw("pg.log", 0, b"words")])]
        for one in slow:
            one.close()


def test_many_posts_on_one_connection(port, taking):
    """A refused body does not become the next request."""
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    head = {"Authorization": "Bearer token-of-orders"}
    for body, status in ((b"", 200), (b"nonsense", 400), (json.dumps(LINE).encode(), 200)):
        connection.request("POST", "/capture/orders", body, head)
        answer = connection.getresponse()
        assert answer.status == status
        answer.read()
    smuggled = b"POST /capture/orders HTTP/1.1\r\nAuthorization: Bearer token-of-orders\r\nContent-Length: 0\r\n\r\n"
    connection.request("POST", "/capture/orders", smuggled, {"Authorization": "Bearer wrong"})
    answer = connection.getresponse()
    assert answer.status == 401
    assert answer.getheader("Connection") == "close"
    assert len(taking.taken) == 2
    connection.close()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Unavailable("The database does not answer."), 503),
        (Invalid("The policy names no such source of commands."), 404),
        (RuntimeError("a mistake of ours, with words of a line"), 500),
    ],
)
def test_what_cannot_be_recorded_is_not_acknowledged(port, taking, error, status):
    """The shipper keeps it and sends it again; what is ours is not told."""
    taking.error = error
    got, told = post(port, [LINE])
    assert got == status
    assert "words of a line" not in told["error"]
    with pytest.raises(NotSent, match=str(status)):
        Poster(f"http://{HOST}:{port}", "orders", TOKENS["orders"]).post(b"")


def test_only_posts_are_answered(port):
    """There is nothing to read here."""
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    connection.request("GET", "/capture/orders", headers={"Authorization": "Bearer token-of-orders"})
    assert connection.getresponse().status == 501
    connection.close()


def test_without_a_certificate_it_listens_on_loopback_only():
    """A token does not travel in clear."""
    with pytest.raises(Unavailable, match="CAPTURE_TLS_CERT"):
        Ingest(Listen("0.0.0.0", 0), sources=dict, take=Taking(), now=lambda: datetime.now(UTC))  # noqa: S104
    for way in ("http://bot.example.com:9465", "ftp://x", "https://", "https://x/?a=b", "http://x:y@127.0.0.1"):
        with pytest.raises(Invalid):
            Poster(way, "orders", "x")


def test_a_port_that_is_taken_shows_before_anything_runs(port):
    """With a sentence."""
    with pytest.raises(Unavailable, match="CAPTURE_ADDRESS"):
        Ingest(Listen(HOST, port), sources=dict, take=Taking(), now=lambda: datetime.now(UTC))
    with pytest.raises(Unavailable, match="CAPTURE_TLS_CERT"):
        Ingest(Listen(HOST, 0, "nosuch", "nosuch"), sources=dict, take=Taking(), now=lambda: datetime.now(UTC))


def test_over_tls_both_ends_check_each_other(taking, tmp_path):
    """A bot with another authority's certificate gets no token; a target without a certificate gets in nowhere."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    authority, other = Authority(ours), Authority(theirs)
    certificate, key = authority.issue("bot")
    with served(taking, certificate=str(certificate), key=str(key)) as ingest:
        way = f"https://{HOST}:{ingest.port}"
        Poster(way, "orders", TOKENS["orders"], ca=str(authority.file)).post(json.dumps(LINE).encode())
        with pytest.raises(NotSent, match="certificate is not accepted"):
            Poster(way, "orders", TOKENS["orders"], ca=str(other.file)).post(b"")
        with socket.create_connection((HOST, ingest.port), timeout=60) as raw:
            raw.sendall(b"POST /capture/orders HTTP/1.1\r\n\r\n")  # in clear: nobody answers
            with suppress(OSError):
                assert not raw.recv(1000).startswith(b"HTTP")
    with pytest.raises(Refused, match="--ca"):
        Poster("https://x", "orders", "x", ca="nosuch")
    assert len(taking.taken) == 1


def test_mutual_tls(taking, tmp_path):
    """With CAPTURE_TLS_CLIENT_CA a token alone is not enough."""
    authority = Authority(tmp_path)
    certificate, key = authority.issue("bot")
    with served(taking, certificate=str(certificate), key=str(key), client_ca=str(authority.file)) as ingest:
        way = f"https://{HOST}:{ingest.port}"
        with pytest.raises(NotSent):
            Poster(way, "orders", TOKENS["orders"], ca=str(authority.file)).post(b"")
        assert taking.taken == []
        own = tmp_path / "own.pem"
        one, secret = authority.issue("target", is_client=True)
        own.write_bytes(one.read_bytes() + secret.read_bytes())
        Poster(way, "orders", TOKENS["orders"], ca=str(authority.file), cert=str(own)).post(b"")
        with pytest.raises(NotSent, match="401"):
            Poster(way, "orders", "wrong", ca=str(authority.file), cert=str(own)).post(b"")
    assert len(taking.taken) == 1
