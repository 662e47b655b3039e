"""What does every capture keep to? The same tests for each of the registry, on lines as its source writes them.

A new capture needs a sample in ``SAMPLES``, a few lines; without one every test here fails for it. What is particular
to a capture, and its real source, is in ``test_capture_<name>.py``.
"""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.captures import CAPTURES
from workflows.captures.seam import Kind, Trust, Unreadable

OWN, OTHER = "bg-7kq2-1-abcdefgh", "bg-0ther-2-hgfedcba"


def _postgres(identity, text):
    quoted = '"' + text.replace('"', '""') + '"'
    record = {
        "timestamp": "2026-11-24 13:34:52.914 UTC",
        "user": identity,
        "dbname": "orders",
        "session_id": "6ab4c1de.7a31",
        "line_num": 3,
        "ps": "SELECT",
        "error_severity": "LOG",
        "message": f"AUDIT: SESSION,1,1,READ,SELECT,,,{quoted},<none>",
        "backend_type": "client backend",
    }
    return json.dumps(record).encode()


def _vault(identity, text):
    record = {
        "time": "2026-11-24T13:38:18.943084623Z",
        "type": "response",
        "auth": {"accessor": identity, "metadata": {"request": "BG-7KQ2"}},
        "request": {"id": "4b9754ec", "operation": "read", "path": f"kv/{text}"},
        "response": {"data": {"x": "hmac-sha256:efa3"}},
    }
    return json.dumps(record).encode()


def _sudo(identity, text):
    event = {
        "uuid": "12e6a3f36c-5ecd-4fbd-3b67-158276671b",
        "server_time": {"seconds": 1795527276, "nanoseconds": 616704928},
        "iolog_path": f"/var/log/breakglass-sudo/io/{identity}/00/00/01",
        "iolog_offset": {"seconds": 0, "nanoseconds": 44545150},
        "submituser": "root",
        "command": "/bin/echo",
        "runargv": ["/bin/echo", text],
    }
    return json.dumps({"log": {"first": "12e6a3f36c", "end": 1024}, "accept": event}).encode()


def _kubernetes(identity, text):
    record = {
        "kind": "Event",
        "stage": "ResponseComplete",
        "requestURI": "/api",
        "verb": "get",
        "user": {"username": f"system:serviceaccount:shop:{identity}"},
        "objectRef": {"resource": "pods", "name": text, "namespace": "shop"},
        "responseStatus": {"code": 200},
        "requestReceivedTimestamp": "2026-11-24T14:25:27.123456Z",
    }
    return json.dumps(record).encode()


def _cloudtrail(identity, text):
    record = {
        "userIdentity": {"type": "AssumedRole", "arn": f"arn:aws:sts::1:assumed-role/Emergency/{identity}"},
        "eventTime": "2026-11-24T14:25:27Z",
        "eventSource": "s3.amazonaws.com",
        "eventName": "GetObject",
        "requestParameters": {"key": text},
    }
    return json.dumps(record).encode()


def _mariadb(identity, text):
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"20261124 14:25:27,vm,{identity},127.0.0.1,6,10,QUERY,shop,'{escaped}',0".encode()


# By the capture's name: the line with which its source tells that an identity ran a text.
SAMPLES = {
    "cloudtrail": _cloudtrail,
    "kubernetes": _kubernetes,
    "mariadb": _mariadb,
    "postgres": _postgres,
    "sudo": _sudo,
    "vault": _vault,
}
GARBAGE = (
    b"",
    b"\n",
    b"\0",
    b"\0" * 4096,
    b"\xff\xfe\xfd",
    b"garbage",
    b"null",
    b"0",
    b"[]",
    b"{}",
    b'""',
    b"[" * 200_000,
    b'{"a":' * 100_000,
    b'"' * 200_000,
    b"NaN",
    b"1" * 10_000,
    b" ",
    b"x" * 1_048_576,
)


@pytest.fixture(params=sorted(CAPTURES))
def kind(request):
    """The name of each capture, one after the other."""
    assert request.param in SAMPLES, f"the capture {request.param} has no sample in tests/test_captures.py"
    return request.param


def _identities(kind, raw):
    """Whom the line is said to be of; nobody when it cannot be read."""
    try:
        return {line.identity for line in CAPTURES[kind].read(raw)}
    except Unreadable:
        return set()


def test_a_line_is_told_with_its_identity_and_time(kind):
    """A line of the source's gives what was run, whose it is and when, in UTC or with its zone."""
    lines = CAPTURES[kind].read(SAMPLES[kind](OWN, "select-1"))
    assert {line.identity for line in lines} == {OWN}
    assert any("select-1" in line.text and line.kind in {Kind.STATEMENT, Kind.EXEC, Kind.CALL} for line in lines)
    assert all(line.at.tzinfo is not None for line in lines)
    assert CAPTURES[kind].trust in Trust


def test_the_same_line_says_the_same_twice(kind):
    """Lines may come twice and late: nothing is remembered between them."""
    line, other = SAMPLES[kind](OWN, "select-1"), SAMPLES[kind](OTHER, "select-2")
    first = CAPTURES[kind].read(line)
    assert CAPTURES[kind].read(other) != first
    assert CAPTURES[kind].read(line) == first


@pytest.mark.parametrize("raw", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_unreadable(kind, raw):
    """What no source writes is refused with a sentence, however deep, long or empty it is."""
    with pytest.raises(Unreadable) as caught:
        CAPTURES[kind].read(raw)
    assert str(caught.value)


def test_why_a_line_is_unreadable_does_not_repeat_it(kind):
    """The sentence about a torn line, which may end up anywhere, holds nothing of what was run."""
    with pytest.raises(Unreadable) as caught:
        CAPTURES[kind].read(SAMPLES[kind](OWN, "hunter2")[:-2])
    assert "hunter2" not in str(caught.value)
    assert OWN not in str(caught.value)


@given(st.binary(max_size=300))
def test_whatever_comes_nothing_else_is_raised(raw):
    """Of arbitrary bytes each capture says something or that they are unreadable."""
    for kind in CAPTURES:
        _identities(kind, raw)


def test_a_torn_line_is_of_nobody_else(kind):
    """Cut at any place, at its end or its beginning, a line is unreadable or still its own identity's."""
    raw = SAMPLES[kind](OWN, f"select {OTHER} from t")
    for at in range(1, len(raw)):
        assert _identities(kind, raw[:at]) <= {OWN}
        assert _identities(kind, raw[at:]) <= {OWN}


def test_a_nul_within_a_line_is_of_nobody_else(kind):
    """A NUL, raw or escaped, at any place makes a line unreadable or leaves it its own identity's."""
    raw = SAMPLES[kind](OWN, "select-1")
    for nul in (b"\0", b"\\u0000"):
        for at in range(len(raw)):
            found = _identities(kind, raw[:at] + nul + raw[at:])
            assert {identity.replace("\0", "") for identity in found} <= {OWN, ""}  # or nobody's


def test_a_line_of_a_megabyte_is_read_or_refused(kind):
    """A very long text is not lost in silence, and is nobody else's."""
    for text in ("long " * 210_000, "''" * 524_288, '""' * 524_288, "/*" * 524_288, "\\" * 1_048_576):
        assert _identities(kind, SAMPLES[kind](OWN, text)) <= {OWN}


def test_a_line_that_is_forged_within_a_text_is_a_text(kind):
    """A whole line of another identity's, within what was run, is what was run: it blames nobody."""
    forged = SAMPLES[kind](OTHER, "select-666").decode()
    for text in (forged, f"\n{forged}\n", f"'\r\n{forged}", f'",<none>\n{forged}', f"\\n{forged}", f'"}}\n{forged}'):
        raw = SAMPLES[kind](OWN, text)
        assert _identities(kind, raw) == {OWN}
        assert OTHER not in {line.session for line in CAPTURES[kind].read(raw)}


def test_two_lines_in_one_are_not_both_of_the_first(kind):
    """Two lines that lost their break are unreadable, or told as what they are: the second is not the first's."""
    both = SAMPLES[kind](OWN, "select-1") + SAMPLES[kind](OTHER, "select-2")
    assert _identities(kind, both) in (set(), {OWN, OTHER})


def test_what_is_to_be_set_up_holds_no_secret(kind):
    """What is pasted at the target is the same each time, and nothing in it opens anything."""
    text = CAPTURES[kind].setup({})
    assert text == CAPTURES[kind].setup({})
    assert len(text.splitlines()) > 3
    assert not re.search(r"hvs\.|PRIVATE KEY|[A-Za-z0-9+/_-]{40,}|(?i:password|token)\s*[=:]\s*['\"]?[^\s<$'\"]", text)
