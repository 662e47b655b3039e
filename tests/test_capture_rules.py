"""What does a policy say of the sources of commands, and what does it refuse?"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from workflows.capture_rules import Need
from workflows.policy import PolicyInvalid, parse

TEXT = (Path(__file__).parent.parent / "bot" / "demo" / "breakglass.yml").read_text(encoding="utf-8")
ONE, TWO = "1" * 64, "2" * 64
SOURCES = f"captures:\n  pg: {{kind: postgres, token_sha256: '{ONE}'}}\n  bao: {{kind: vault, token_sha256: '{TWO}'}}\n"


def level(more: str, sources: str = SOURCES) -> str:
    """Return the demo's policy with sources, and with more lines in its first level."""
    return TEXT.replace("        quorum: 1\n", f"        quorum: 1\n{more}", 1) + sources


def problems(text: str) -> list[tuple[str, str]]:
    """Return place and sentence of each problem."""
    with pytest.raises(PolicyInvalid) as caught:
        parse(text, name="p.yml")
    return [(problem.where, problem.sentence) for problem in caught.value.problems]


def test_without_the_section_nothing_is_recorded():
    """An older policy loads as it is, and no level has a source."""
    policy = parse(TEXT, name="p")
    assert dict(policy.captures) == {}
    assert {one.capture_source for account in policy.accounts.values() for one in account.levels.values()} == {None}


def test_sources_and_levels_are_read():
    """A source is silent after a minute, and a level only wants its record, unless they say otherwise."""
    text = level("        capture_source: pg\n")
    policy = parse(text, name="p")
    assert (policy.captures["pg"].kind, policy.captures["pg"].token_sha256) == ("postgres", ONE)
    assert policy.captures["pg"].silent_after == timedelta(seconds=60)
    (read,) = [one for account in policy.accounts.values() for one in account.levels.values() if one.capture_source]
    assert (read.capture_source, read.capture) == ("pg", Need.WANTED)
    text = level("        capture_source: bao\n        capture: required\n").replace(
        f"'{TWO}'", f"'{TWO}', silent_after: 15s"
    )
    policy = parse(text, name="p")
    (read,) = [one for account in policy.accounts.values() for one in account.levels.values() if one.capture_source]
    assert (read.capture_source, read.capture) == ("bao", Need.REQUIRED)
    assert policy.captures["bao"].silent_after == timedelta(seconds=15)


@pytest.mark.parametrize(
    ("sources", "place", "says"),
    [
        ("captures: [pg]\n", "captures", "key: value"),
        ("captures: {PG: {kind: postgres, token_sha256: 'X'}}\n", "captures.PG", "a name is"),
        (f"captures: {{pg: {{token_sha256: '{ONE}'}}}}\n", "captures.pg", "“kind” is missing"),
        ("captures: {pg: {kind: postgres}}\n", "captures.pg", "“token_sha256” is missing"),
        (f"captures: {{pg: {{kind: mongo, token_sha256: '{ONE}'}}}}\n", "captures.pg.kind", "the kinds are: "),
        (f"captures: {{pg: {{kind: vault, token_sha256: '{ONE}', token: x}}}}\n", "captures.pg.token", "unknown"),
        (
            "captures: {pg: {kind: vault, token_sha256: 'hvs.secret'}}\n",
            "captures.pg.token_sha256",
            "breakglass capture",
        ),
        (
            f"captures: {{pg: {{kind: vault, token_sha256: '{ONE}', silent_after: 1s}}}}\n",
            "captures.pg.silent_after",
            "from 5 seconds to 1 hour",
        ),
        (SOURCES.replace(TWO, ONE), "captures.bao", "has the token of pg"),
        (
            "captures:\n" + "".join(f"  s{n}: {{kind: vault, token_sha256: '{n:064}'}}\n" for n in range(101)),
            "captures",
            "101",
        ),
    ],
)
def test_a_source_that_cannot_be_is_refused(sources, place, says):
    """With its place, and with what to do."""
    assert any(where == place and says.lower() in sentence.lower() for where, sentence in problems(TEXT + sources))


@pytest.mark.parametrize(
    ("more", "key", "says"),
    [
        ("        capture_source: mysql\n", "capture_source", "there is pg, bao"),
        ("        capture: required\n", "capture", "Add “capture_source”"),
        ("        capture_source: pg\n        capture: always\n", "capture", "required or wanted"),
        ("        capture_source: pg\n        capture: yes\n", "capture", "text"),
    ],
)
def test_a_level_that_cannot_be_recorded_is_refused(more, key, says):
    """A slip of the pen must not leave a level unrecorded."""
    assert any(where.endswith(f".{key}") and says in sentence for where, sentence in problems(level(more)))
