"""Do the ready configurations bring every line of a file to the bot? rsyslog's with Debian's own rsyslogd.

Vector and Fluent Bit are no packages of Debian's: of theirs only the bodies are tested that they are documented to send
(``test_ingest.py``).
"""

from __future__ import annotations

import configparser
import hashlib
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from outside import needed

from bot.ingest import Ingest
from bot.settings import Listen
from workflows.capture_rules import SourceRules
from workflows.errors import Unavailable
from workflows.recorder import Taken

HOST = "127.0.0.1"
TOKEN = "a-token-of-the-source"
READY = Path(__file__).parent.parent / "bot" / "capture"


class Desk:
    """Who takes lines in, when not away; a place counts once."""

    def __init__(self):
        self.lines = {}
        self.is_away = False

    def take(self, source, lines, now):
        """Record as the recorder does."""
        if self.is_away:
            raise Unavailable("The database does not answer.")
        for one in lines:
            self.lines[one.file, one.offset, one.line] = None
        return Taken(len(lines), 0)

    def until(self, wanted):
        """Wait for these lines, and no others."""
        late = time.monotonic() + 60
        while [line for _, _, line in self.lines] != wanted:
            assert time.monotonic() < late, self.lines
            time.sleep(0.02)


@pytest.fixture
def desk():
    """Somebody who records."""
    return Desk()


@pytest.fixture
def way(desk):
    """The endpoint's address."""
    rules = SourceRules("orders-pg", "postgres", hashlib.sha256(TOKEN.encode()).hexdigest(), timedelta(seconds=60))
    ingest = Ingest(
        Listen(HOST, 0), sources=lambda: {"orders-pg": rules}, take=desk.take, now=lambda: datetime.now(UTC)
    )
    ingest.start()
    yield f"http://{HOST}:{ingest.port}"
    ingest.stop()


def test_a_real_rsyslogd_brings_every_line(way, desk, tmp_path):
    """In order, with its place; what the bot did not take comes when it is back; the rotated file's rest, too."""
    program = tmp_path / "breakglass"
    # It gives its programs an empty environment.
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH={":".join(sys.path)} exec {sys.executable} -m bot.cli "$@" 2>>{tmp_path}/said\n'
    )
    program.chmod(0o700)
    (tmp_path / "token").write_text(TOKEN)
    config = (READY / "rsyslog.conf").read_text()
    for path, own in (
        ("/var/spool/rsyslog", str(tmp_path)),
        ("/var/log/postgresql/postgresql.json", f"{tmp_path}/pg.json"),
        ("/usr/local/bin/breakglass", str(program)),
        ("/etc/breakglass/SOURCE.token", f"{tmp_path}/token"),
        ("https://BOT:9465", way),
        ("SOURCE", "orders-pg"),
    ):
        assert path in config
        config = config.replace(path, own)
    (tmp_path / "rsyslog.conf").write_text(config)
    file = tmp_path / "pg.json"
    odd = '{"message": "SELECT \'a\\\\tb\', \\"é\\" \\u0000 %s \\\\"} \x01\ttab'
    first = ["one", odd, "x" * 300_000]
    file.write_text("".join(f"{line}\n" for line in first))
    command = [needed("rsyslogd", "rsyslog"), "-n", "-f", str(tmp_path / "rsyslog.conf"), "-i", str(tmp_path / "pid")]
    with (tmp_path / "said").open("ab") as said:
        running = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        wanted = [line.encode() for line in first]
        desk.until(wanted)
        assert list(desk.lines)[1][:2] == (str(file), len("one\n"))
        desk.is_away = True
        with file.open("a") as more:
            more.write("two\nthree\n")
        time.sleep(0.5)  # it tries
        file.rename(tmp_path / "pg.json.1")
        file.write_text("four\n")
        desk.is_away = False
        desk.until([*wanted, b"two", b"three", b"four"])
    finally:
        running.terminate()
        running.wait(60)


def test_the_others_name_what_the_endpoint_needs():
    """The line's file and offset, the token, TLS with a checked certificate, and no end of the retries."""
    vector = yaml.safe_load((READY / "vector.yaml").read_text())
    source, sink = vector["sources"]["target"], vector["sinks"]["breakglass"]
    assert (source["file_key"], source["offset_key"]) == ("file", "offset")
    assert sink["uri"] == "https://BOT:9465/capture/SOURCE"
    assert sink["auth"] == {"strategy": "bearer", "token": "${CAPTURE_TOKEN}"}
    assert sink["framing"]["method"] == "newline_delimited"
    lines = (READY / "fluent-bit.conf").read_text()
    parser = configparser.ConfigParser(delimiters=(" ",), interpolation=None)
    parser.read_string("\n".join(line.strip() for line in lines.splitlines()))
    assert parser["INPUT"]["path_key"].strip() == "file"
    assert parser["INPUT"]["offset_key"].strip() == "offset"
    output = {name: value.strip() for name, value in parser["OUTPUT"].items()}
    assert output["uri"] == "/capture/SOURCE"
    assert output["header"] == "Authorization Bearer ${CAPTURE_TOKEN}"
    assert (output["tls"], output["tls.verify"], output["format"]) == ("On", "On", "json_lines")
    assert output["retry_limit"] == "no_limits"
