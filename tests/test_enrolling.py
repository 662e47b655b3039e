"""Who can be given a second factor, by whom, and what is left when it goes wrong? On real OpenBao."""

from __future__ import annotations

import io
import re
import sys
import time
from typing import TYPE_CHECKING

import pytest
from counter import POLICY, TEAM
from test_step_up import totp

from bot import cli
from storage.audit import read_entries
from storage.database import Database
from workflows import policy as rules
from workflows.step_up import is_enrolled
from workflows.vault_answers import CodeAnswer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from real_parts import Real

PERSON = "U0CORA"
KEY = f"totp/keys/{TEAM}-{PERSON}"


class Console:
    """A terminal at which an operator types; what is asked for is answered from what was shown."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._patch, self._capsys = monkeypatch, capsys
        self.shown = self.said = ""

    def run(self, *words: str, types: Callable[[str], str] = lambda _: "", is_terminal: bool = True) -> int:
        """Run the command; ``types`` makes each line that is typed out of the secret that was shown."""
        console = self

        class Keyboard(io.StringIO):
            def readline(self, *_: object) -> str:
                console.shown += console._capsys.readouterr().out
                (secret,) = re.findall(r"secret=([A-Z2-7]+)", console.shown)[-1:]
                return types(secret) + "\n"

        self.shown = ""
        with self._patch.context() as patch:
            patch.setattr(sys, "stdin", Keyboard())
            patch.setattr(sys.stdout, "isatty", lambda: is_terminal, raising=False)
            code = cli.main(["enrol", PERSON, "--team", TEAM, "--policy", str(POLICY), *words])
        told = self._capsys.readouterr()
        self.shown, self.said = self.shown + told.out, told.err
        return code


@pytest.fixture
def console(
    real: Real,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    sqlite_template: Path,
) -> Iterator[Console]:
    """A terminal with an operator's token in the environment, and Vault with the TOTP engine."""
    file = tmp_path / "log.db"
    file.write_bytes(sqlite_template.read_bytes())
    monkeypatch.setenv("BREAKGLASS_DATABASE_URL", f"sqlite:///{file}")
    monkeypatch.setenv("VAULT_ADDR", real.bao.addr)
    monkeypatch.setenv("VAULT_TOKEN", real.bao.root_token)
    real.bao.call("POST", "sys/mounts/totp", {"type": "totp"})
    yield Console(monkeypatch, capsys)
    real.bao.call("DELETE", "sys/mounts/totp")


def entries(tmp_path: Path) -> list[tuple[str, dict[str, object]]]:
    """Return what the log says."""
    database = Database(f"sqlite:///{tmp_path / 'log.db'}")
    with database.read() as session:
        found = [(record.event, dict(record.data)) for record in read_entries(session)]
    database.close()
    return found


def test_an_enrolment_from_its_beginning_to_its_end(console: Console, real: Real, tmp_path: Path) -> None:
    """A person is enrolled once, replaced and removed by words of their own; each is on record, and no secret is."""
    policy, root = rules.load(POLICY), real.root_vault()
    proved: list[str] = []

    def now(secret: str) -> str:
        proved.append(totp(secret, time.time()))
        return proved[-1]

    assert console.run(types=now) == cli.OK
    assert "█" in console.shown
    assert f"{PERSON} is enrolled, on record." in console.shown
    (first,) = re.findall("secret=([A-Z2-7]+)", console.shown)
    assert root.check_code("totp", f"{TEAM}-{PERSON}", proved[0]) is CodeAnswer.USED
    # Again.
    assert console.run(types=now) == cli.REFUSED
    assert "enrolled already" in console.said
    assert console.run("--replace", types=now) == cli.OK
    (second,) = re.findall("secret=([A-Z2-7]+)", console.shown)
    assert root.check_code("totp", f"{TEAM}-{PERSON}", totp(first, time.time() + 30)) is CodeAnswer.WRONG
    # Away.
    assert console.run("--remove") == cli.OK
    assert not is_enrolled(root, policy, TEAM, PERSON)
    assert console.run("--remove") == cli.REFUSED
    told = entries(tmp_path)
    assert [(event, data["person"], data.get("replaces")) for event, data in told] == [
        ("person:enrol", PERSON, False),
        ("person:enrol", PERSON, True),
        ("person:unenrol", PERSON, None),
    ]
    assert {data["at_vault"] for _, data in told} == {"root"}
    assert not any(secret in repr(told) for secret in (first, second))


def test_without_a_proof_no_key_stays(console: Console, real: Real, tmp_path: Path) -> None:
    """Three wrong codes, or none, enrol nobody: the key is gone, and nothing is on record."""
    for typed in ("000000", "", "²²²²²²"):
        assert console.run(types=lambda _, typed=typed: typed) == cli.REFUSED
        assert "Nobody is enrolled" in console.said
        assert not is_enrolled(real.root_vault(), rules.load(POLICY), TEAM, PERSON)
    assert entries(tmp_path) == []


def test_whoever_has_the_bot_enrols_nobody(console: Console, real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bot's own token is refused, and a key is never written into a file or a pipe."""
    bot = real.vault()
    bot.log_in()
    monkeypatch.setenv("VAULT_TOKEN", bot._token)
    assert console.run() == cli.REFUSED
    assert "the bot's own token" in console.said
    monkeypatch.setenv("VAULT_TOKEN", real.bao.root_token)
    assert console.run(is_terminal=False) == cli.REFUSED
    assert "on a terminal only" in console.said
    assert not is_enrolled(real.root_vault(), rules.load(POLICY), TEAM, PERSON)
