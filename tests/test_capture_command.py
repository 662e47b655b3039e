"""Can a source be set up and followed with what is typed, and is its token never shown where it must not be?"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from bot import capture_command
from bot.cli import REFUSED, UNAVAILABLE, main
from bot.ingest import Ingest
from bot.settings import Listen
from workflows.capture_rules import SourceRules
from workflows.captures import CAPTURES
from workflows.errors import Unavailable
from workflows.recorder import Taken

HOST = "127.0.0.1"
TOKEN = "a-token-of-the-source"


@pytest.fixture
def taken():
    """What was taken."""
    return []


@pytest.fixture
def way(taken):
    """An ingest endpoint's address."""
    rules = SourceRules("orders", "postgres", hashlib.sha256(TOKEN.encode()).hexdigest(), timedelta(seconds=60))

    def take(source, lines, now):
        if b"down" in [line.line for line in lines]:
            raise Unavailable("The database does not answer.")
        taken.extend(line.line for line in lines)
        return Taken(len(lines), 0)

    ingest = Ingest(Listen(HOST, 0), sources=lambda: {"orders": rules}, take=take, now=lambda: datetime.now(UTC))
    ingest.start()
    yield f"http://{HOST}:{ingest.port}"
    ingest.stop()


def test_a_token_is_new_and_its_hash_is_the_policys(capsys):
    """What is printed for the policy is the SHA-256 of what is printed for the target; no two are the same."""
    tokens = set()
    for _ in range(3):
        assert main(["capture", "token"]) == 0
        words = dict(line.split() for line in capsys.readouterr().out.splitlines())
        assert hashlib.sha256(words["token"].encode()).hexdigest() == words["token_sha256"]
        assert len(words["token"]) >= 43
        tokens.add(words["token"])
    assert len(tokens) == 3


@pytest.mark.parametrize("kind", sorted(CAPTURES))
def test_the_set_up_of_each_kind_is_printed(kind, capsys):
    """It is what the capture itself says."""
    assert main(["capture", "setup", kind, "--source", "orders-x"]) == 0
    assert capsys.readouterr().out.rstrip() == CAPTURES[kind].setup({"source": "orders-x"}).rstrip()
    assert main(["capture", "setup", kind]) == 0
    assert capsys.readouterr().out.rstrip() == CAPTURES[kind].setup({}).rstrip()


def test_a_set_up_for_a_target_that_is_otherwise(capsys):
    """What it is like is said by name; half a word is refused."""
    assert main(["capture", "setup", "vault", "--set", "file=/var/log/other.json"]) == 0
    assert "/var/log/other.json" in capsys.readouterr().out
    assert main(["capture", "setup", "vault", "--set", "file"]) == REFUSED
    assert main(["capture", "setup", "vault", "--set", "file=a\nb"]) == REFUSED


def test_a_file_is_sent_once_and_again(way, taken, tmp_path, monkeypatch):
    """The token from the environment or a file; the second time only what is new."""
    monkeypatch.setenv("CAPTURE_TOKEN", TOKEN)
    file = tmp_path / "pg.json"
    command = [
        "capture",
        "tail",
        "--source",
        "orders",
        "--to",
        way,
        "--state",
        str(tmp_path / "s"),
        "--once",
        str(file),
    ]
    file.write_text("1\n2\n")
    assert main(command) == 0
    monkeypatch.delenv("CAPTURE_TOKEN")
    (tmp_path / "token").write_text(TOKEN + "\n")
    with file.open("a") as more:
        more.write("3\n")
    assert main([*command, "--token-file", str(tmp_path / "token")]) == 0
    assert taken == [b"1", b"2", b"3"]


def test_what_is_wrong_is_a_sentence(way, tmp_path, monkeypatch, capsys):
    """No token, another's token, no file, no bot: an exit code and a sentence, and never the token."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CAPTURE_TOKEN", raising=False)
    (tmp_path / "f").write_text("1\n")
    command = ["capture", "tail", "--source", "orders", "--once", "f", "--to"]
    assert main([*command, way]) == REFUSED
    assert "CAPTURE_TOKEN" in capsys.readouterr().err
    assert main([*command, way, "--token-file", "nosuch"]) == REFUSED
    monkeypatch.setenv("CAPTURE_TOKEN", "secret-of-another")
    assert main([*command, way]) == UNAVAILABLE
    assert main([*command, "http://bot.example.com"]) == REFUSED
    monkeypatch.setenv("CAPTURE_TOKEN", TOKEN)
    assert main([*command[:-2], "nosuch", "--state", "other", "--to", way]) == UNAVAILABLE
    assert main([*command[:-1], "--state", "nosuch/state", "--to", way]) == UNAVAILABLE
    said = capsys.readouterr()
    assert "secret-of-another" not in said.out + said.err


def test_a_follower_ends_when_it_is_told_to(way, tmp_path):
    """SIGTERM is the end of a service, with everything sent and exit code 0."""
    (tmp_path / "f").write_text("1\n")
    command = [sys.executable, "-m", "bot.cli", "capture", "tail", "--source", "orders", "--to", way, "f"]
    running = subprocess.Popen(command, cwd=tmp_path, env={"CAPTURE_TOKEN": TOKEN, "PYTHONPATH": ":".join(sys.path)})
    state = tmp_path / "orders.state"
    while not (state.exists() and json.loads(state.read_text())["contents"][0]["place"] == 2):
        assert running.poll() is None
    running.terminate()
    assert running.wait(60) == 0


def test_each_line_of_a_pipe_is_answered(way, taken, monkeypatch, capsys):
    """OK when it is recorded, and otherwise why it is to be sent again: what rsyslog's omprog reads."""
    monkeypatch.setenv("CAPTURE_TOKEN", TOKEN)
    monkeypatch.setattr(capture_command, "_PAUSES", ())
    lines = [json.dumps({"message": text, "file": "f", "offset": 0}).encode() for text in ("1", "down", "2")]
    lines.append(b'{"message": "\xff", "file": "f", "offset": 0}')
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\n".join(lines))))
    assert main(["capture", "pipe", "--source", "orders", "--to", way]) == 0
    ready, first, second, third, fourth = capsys.readouterr().out.splitlines()
    assert {ready, first, third, fourth} == {"OK"}
    assert "503" in second
    assert taken == [b"1", b"2", "\N{REPLACEMENT CHARACTER}".encode()]
