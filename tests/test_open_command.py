"""On a responder's machine, ``breakglass open`` starts the session, and shows the secret to nobody.

The program in a process of its own, against a real OpenBao, with a real psql and a real PostgreSQL.
"""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from counter import CARL, CHEN
from test_delivery import coded, delivered, opened

from bot import cli, modals
from workflows.delivery import Delivery

ROOT = Path(__file__).parent.parent
COUNT = "SELECT 'orders: ' || count(*) FROM orders;"


@pytest.fixture
def coding(counter):
    """A desk whose read level is delivered by ``breakglass open``."""
    return delivered(counter, "cli")


@pytest.fixture
def run(real):
    """Run ``breakglass open`` with what is piped into it; returns exit code, output, complaints."""

    def open_it(request_id, stdin, **environment):
        found = {"PATH": f"{real.pg.bin}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environment}
        done = subprocess.run(
            [sys.executable, "-m", "bot.cli", "open", request_id],
            input=stdin,
            capture_output=True,
            text=True,
            env=found,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    return open_it


def test_what_follows_the_code_is_the_programs(coding, run):
    """A code and a statement, piped in: psql runs the statement with the credential, and it counts as opened."""
    row = coding.approved()
    parcel = coding.show(row)
    assert parcel.way is Delivery.CLI
    code, out, err = run(row.id.lower(), f"{parcel.code()}\n{COUNT}\nSELECT 'I am ' || current_user;\n")
    assert (code, "orders: 600" in out, f"I am {parcel.username}" in out) == (0, True, True), err
    assert f"Opened {row.id}" in err
    coding.pass_time(seconds=2)
    coding.watch(row.id, now=coding.now)
    assert coding.events(row)[-1] == "credential:unwrap"


def test_at_a_terminal_neither_code_nor_secret_is_seen(coding, real):
    """Typed at a prompt, the code is not echoed, and the terminal never shows a password."""
    row = coding.approved()
    parcel = coding.show(row)
    ours, theirs = pty.openpty()
    environment = {
        "PATH": f"{real.pg.bin}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "PAGER": "cat",
        "TERM": "dumb",
        "PSQLRC": os.devnull,
    }
    running = subprocess.Popen(
        [sys.executable, "-m", "bot.cli", "open", row.id],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
    )
    os.close(theirs)
    seen = bytearray()

    def until(words):
        while words not in seen:
            seen.extend(os.read(ours, 4096))

    try:
        until(b"it is not shown")
        os.write(ours, parcel.code().encode() + b"\n")
        until(b"=>")
        os.write(ours, COUNT.encode() + b"\n")
        until(b"orders: 600")
        environ = Path(f"/proc/{running.pid}/environ").read_bytes()
        arguments = Path(f"/proc/{running.pid}/cmdline").read_bytes()
        os.write(ours, b"\\q\n")
        assert running.wait(60) == 0
    finally:
        running.kill()
        running.wait()
        os.close(ours)
    (password,) = [word for word in environ.split(b"\0") if word.startswith(b"PGPASSWORD=")]
    secret = password.partition(b"=")[2]
    assert secret
    for hidden in (secret, parcel.token.encode(), parcel.code().encode()):
        assert hidden not in bytes(seen)
        assert hidden not in arguments


def test_the_second_opening_is_an_alarm_in_plain_words(coding, run):
    """Somebody was faster: exit code 1, what has happened and what to press, and no program is started."""
    row = coding.approved()
    parcel = coding.show(row)
    opened(replace(parcel, way=Delivery.WRAPPED))
    # The command looks at this machine's clock, and says "too late" only after the code's own end.
    code, out, err = run(row.id, f"{parcel.code()}\n{COUNT}\n")
    assert code == cli.REFUSED
    assert "SOMEBODY ELSE HAS OPENED" in err
    assert "Already used" in err
    assert out == ""


def test_nothing_is_opened_when_something_is_wrong_before(coding, run, real, tmp_path):
    """No psql, another Vault, another request, half a code: each is a sentence, and the code stays good."""
    row = coding.approved()
    parcel = coding.show(row)
    code = parcel.code()
    for request_id, text, more, words, status in (
        (row.id, code, {"PATH": str(tmp_path)}, "psql is not installed", cli.UNAVAILABLE),
        (row.id, code, {"VAULT_ADDR": "https://vault.example.com"}, "Nothing was opened", cli.REFUSED),
        ("BG-ZZZZ", code, {}, f"the code of {row.id}", cli.REFUSED),
        (row.id, code[:50], {}, "not a code", cli.REFUSED),
        (row.id, "x" * 21_000, {}, "too long", cli.REFUSED),
        ("orders", code, {}, "Name the request", cli.REFUSED),
        (row.id, coded(parcel, address="http://127.0.0.1:9"), {}, "cannot be reached", cli.UNAVAILABLE),
    ):
        got, out, err = run(request_id, f"{text}\n", **more)
        assert (got, out) == (status, ""), err
        assert words in err
        assert parcel.token not in err
        assert "Traceback" not in err
    code_, out, _ = run(row.id, f"{code}\n{COUNT}\n", VAULT_ADDR=f"{real.bao.addr}/")
    assert (code_, "orders: 600" in out) == (0, True)


def test_a_token_that_was_slipped_in_is_refused_aloud(coding, run):
    """Attack: the token is one of another level. It says STOP, and the token is not used up."""
    counter = delivered(coding, "wrapped", "write")
    row = counter.approved()
    parcel = counter.show(row)
    other = counter.show(counter.approved(level="write", by=(CARL, CHEN), minutes=10))
    code, out, err = run(row.id, f"{coded(parcel, token=other.token)}\n{COUNT}\n")
    assert (code, out) == (cli.REFUSED, "")
    assert "STOP" in err
    assert opened(other).username


def test_the_public_address_is_what_responders_are_told(coding):
    """Where responders reach Vault elsewhere than the bot, code and command say that address."""
    coding._public_address = "https://vault.example.com:8200"
    parcel = coding.show(coding.approved())
    assert parcel.address == "https://vault.example.com:8200"
    assert "https://vault.example.com:8200/v1/sys/wrapping/unwrap" in parcel.command()


def test_the_window_has_the_command_and_the_code(coding):
    """What the requester sees is the word to type, the code, and what to do when somebody was faster."""
    row = coding.approved()
    parcel = coding.show(row)
    drawn = str(modals.handed_over(coding.fresh(row), parcel, now=coding.now))
    for words in (f"breakglass open {row.id}", parcel.code(), "Already used", "works once"):
        assert words in drawn
