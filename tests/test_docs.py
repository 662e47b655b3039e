"""Do the documents say what the program does?"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from workflows.lifecycle import mermaid

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_diagram_is_the_table():
    """The README's picture of a request's life is what the table draws."""
    assert f"```mermaid\n{mermaid()}```" in README


def test_the_two_commands_are_there_and_ci_runs_the_second():
    """Both of the README's commands exist and can be run, and CI calls the very same one."""
    commands = re.findall(r"^```\n(\S+)\n```$", README, re.MULTILINE)
    assert commands == [".ci/demo", ".ci/test"]
    for command in commands:
        assert (ROOT / command).stat().st_mode & 0o100
    assert "\n.ci/test\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("document", [name for name in TRACKED if name.endswith(".md")])
def test_every_link_of_a_document_leads_somewhere(document):
    """A file that a document links or shows is in the repository."""
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("https://"):
            assert (ROOT / document).parent.joinpath(target).exists(), f"{document}: {target}"


def test_the_top_level_is_the_agreed_one():
    """Nothing stands at the top but what the design names, and dot-files."""
    top = {name.split("/")[0] for name in TRACKED}
    assert {name for name in top if not name.startswith(".")} == {
        *("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "manifest.yml"),
        *("bot", "workflows", "storage", "tests"),
    }


def test_no_file_names_a_registry_or_a_path_of_a_machine():
    """Lock files and scripts work with whatever index the machine is set up for."""
    hosts = [
        "py" + "pi.org",
        "python" + "hosted.org",
        "registry." + "npmjs",
        "deb." + "debian.org",
        "proxy." + "golang",
    ]
    places = ["/ro" + "ot/", "/ho" + "me/", "/wo" + "rk/"]
    for name in TRACKED:
        text = (ROOT / name).read_bytes().decode("utf-8", errors="ignore")
        for word in (*hosts, *places):
            assert word not in text, f"{name} holds {word}"


def test_nothing_is_skipped():
    """No test hides a missing part."""
    words = ["pytest." + "skip", "mark." + "skip", "mark." + "xfail", "import" + "orskip"]
    for file in (ROOT / "tests").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not [word for word in words if word in text], file.name
