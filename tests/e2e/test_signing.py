"""Does the running bot sign its log with the key in Vault, through an outage, a change of the key and a restart?"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from real_parts import Real

from bot import cli
from bot.demo.run import Demo
from bot.demo.vault_setup import LOG_KEY, LOG_MOUNT
from storage import audit, checkpoint, heads
from storage.database import Database

if TYPE_CHECKING:
    from storage.models import SignedHead


@dataclass
class Signed:
    """A demo whose bot runs, and its database."""

    demo: Demo
    database: Database

    def append(self) -> int:
        """Append an entry from another process's side and return the log's size."""
        with self.database.write() as session:
            entry = audit.append(session, event="test:event", at=datetime.now(UTC), actor=audit.SYSTEM)
        return entry.seq + 1

    def newest(self) -> SignedHead | None:
        """The newest signed head."""
        with self.database.read() as session:
            return heads.latest(session)

    def is_signed(self, size: int) -> bool:
        """Whether a signed head covers so many entries."""
        newest = self.newest()
        return newest is not None and newest.size >= size

    def problems(self) -> list[str]:
        """What ``breakglass check`` finds wrong about the log."""
        # In a process of its own, as in life: closing a file drops the locks that SQLite holds on it in this one.
        said = subprocess.run(
            [sys.executable, "-m", "bot.cli", "check"], capture_output=True, text=True, check=False, env=os.environ
        )
        return re.findall(r"(?m)^PROBLEM +(Log: .*)$", said.stdout)

    def vkey(self, capsys) -> checkpoint.VerifierKey:
        """What ``breakglass log key`` prints."""
        capsys.readouterr()
        assert cli.main(["log", "key"]) == cli.OK
        return checkpoint.parse_vkey(capsys.readouterr().out.strip())


@pytest.fixture
def signed(tmp_path, monkeypatch):
    """A demo of one's own, since its Vault is sealed here; its environment is this process's, too."""
    with Demo(tmp_path, rate_limits=0) as demo:
        for name, value in demo.environment.items():
            monkeypatch.setenv(name, value)
        database = Database(demo.database_url)
        yield Signed(demo, database)
        database.close()


def test_the_running_bot_signs_through_an_outage_a_rotation_and_a_restart(signed, capsys):
    """Each entry comes under a signed head by itself; while Vault is sealed none does, and then one covers all."""
    demo = signed.demo
    size = signed.append()
    assert Real.until(lambda: signed.is_signed(size))
    first = signed.vkey(capsys)
    assert checkpoint.verify(signed.newest().note, [first])
    assert signed.problems() == []

    demo.bao.seal()
    before = signed.newest().size
    size = max(signed.append() for _ in range(3))
    assert signed.problems()
    assert signed.newest().size == before < size
    demo.bao.unseal()
    assert Real.until(lambda: signed.is_signed(size))

    demo.bao.call("POST", f"{LOG_MOUNT}/keys/{LOG_KEY}/rotate", {})
    assert cli.main(["log", "rotate"]) == cli.OK
    second = signed.vkey(capsys)
    assert second != first
    assert len(checkpoint.verify(signed.newest().note, [first, second])) == 2
    size = signed.append()
    assert Real.until(lambda: signed.is_signed(size))
    assert [one.key for one in checkpoint.verify(signed.newest().note, [first, second])] == [second]

    demo.bot.stop()
    size = signed.append()
    demo.bot.start()
    assert Real.until(lambda: signed.is_signed(size))
    assert [one.key for one in checkpoint.verify(signed.newest().note, [first, second])] == [second]
    with signed.database.read() as session:
        assert audit.check(session) is None
        assert "log:alarm" not in [record.event for record in audit.read_entries(session)]
