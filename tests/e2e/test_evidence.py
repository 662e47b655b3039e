"""Is what the demo's night leaves behind evidence that an auditor can check, with the people's names on it?"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest

from bot.demo.play import play
from bot.demo.run import Demo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A demo whose story has been lived; its bot runs on and signs."""
    with Demo(tmp_path_factory.mktemp("night"), rate_limits=0) as demo:
        assert play(demo) == 0
        yield demo


def run(demo: Demo, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command beside the bot, in a process of its own: closing a file here would drop SQLite's locks on it."""
    command = [sys.executable, "-m", "bot.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | demo.environment)


def test_the_night_is_handed_over_and_verifies(night: Demo, tmp_path: Path) -> None:
    """Everything, signed by Vault's key and with a PDF of each request: names are Slack's, the verifier is content."""
    file = tmp_path / "evidence.zip"
    done = run(night, "export", "--format", "bundle", "-o", str(file))
    # A busy machine may need long enough for the progress to be told; nothing else is said there.
    said = [line for line in done.stderr.splitlines() if not line.endswith(" % …")]
    assert (done.returncode, said) == (0, [])
    assert "at the signed head" in done.stdout
    key = run(night, "log", "key").stdout.strip()
    with zipfile.ZipFile(file) as box:
        box.extractall(tmp_path)
        names = box.namelist()
        pages = [box.read(name).decode() for name in names if name.startswith("requests/") and name.endswith(".html")]
    assert any("Rita Reyes (U0RITA)" in page and "Carl Costa (U0CARL)" in page for page in pages)
    assert {name[:-4] for name in names if name.endswith(".pdf")} <= {name[:-5] for name in names}
    assert any(name.startswith("requests/") and name.endswith(".pdf") for name in names)
    assert any(name.startswith("policy/") and name.endswith(".yml") for name in names)
    words = [sys.executable, "-I", "verify.py", file.name, "--vkey", key]
    checked = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout.splitlines()[-1].split(":")[0]) == (0, f"{file.name} verifies")


def test_its_request_is_handed_over_alone(night: Demo, tmp_path: Path) -> None:
    """By its number: complete, signed, and without the policy, which names others."""
    whole = tmp_path / "whole.zip"
    assert run(night, "export", "--format", "bundle", "--no-pdf", "-o", str(whole)).returncode == 0
    with zipfile.ZipFile(whole) as box:
        (page,) = [name for name in box.namelist() if name.startswith("requests/")]
        assert b"@leadership" in b"".join(map(box.read, box.namelist()))
    file = tmp_path / "one.zip"
    words = ("--request", page.removeprefix("requests/").removesuffix(".html"), "-o", str(file))
    assert run(night, "export", "--format", "bundle", "--no-pdf", *words).returncode == 0
    with zipfile.ZipFile(file) as box:
        text = b"".join(map(box.read, box.namelist()))
    assert b"U0RITA" in text
    assert b"@leadership" not in text
    assert run(night, "verify", str(file)).returncode == 0
