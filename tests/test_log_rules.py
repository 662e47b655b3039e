"""Does the policy say of the log what its author meant, and is everything else refused with its line?"""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from storage.checkpoint import Algorithm
from storage.followers import FOLLOWERS
from storage.signers import FileKeyring, KeySigner, SignerDown
from workflows.policy import PolicyInvalid, parse
from workflows.policy_file import say_duration
from workflows.signing import SIGNERS, open_keyring

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "bot" / "demo" / "breakglass.yml").read_text(encoding="utf-8")
DOCUMENT = (ROOT / "workflows" / "POLICY.md").read_text(encoding="utf-8")
WITNESS = str(KeySigner.of("w.example", Ed25519PrivateKey.from_private_bytes(b"w" * 32), Algorithm.COSIGNATURE).key)
WITHOUT = re.sub(r"(?m)^log:\n(  .*\n)+", "", TEXT)

SETTINGS = {
    "bucket": "evidence",
    "ca_file": "/etc/ca.pem",
    "cert_file": "/etc/cert.pem",
    "endpoint": "https://s3.example.com",
    "host": "log.example.com",
    "key": "breakglass-log",
    "key_file": "/etc/key.pem",
    "mount": "transit",
    "path": "/mnt/copy",
    "port": "6514",
    "prefix": "breakglass/",
    "region": "eu-central-1",
    "retain": "400d",
    "secret_env": "HOOK_SECRET",
    "tls_ca_file": "/etc/ca.pem",
    "url": "https://out.example.com/",
    "url_env": "STANDBY_URL",
    "vkey": WITNESS,
}


def policy_with(log: str):
    """Read the demo's policy with this section in place of its own."""
    return parse(f"{WITHOUT}\nlog:\n{log}", name="p")


def problems(log: str) -> list[tuple[int, str, str]]:
    """What is wrong with it: line (of the section, from 1), place, sentence."""
    with pytest.raises(PolicyInvalid) as caught:
        policy_with(log)
    above = WITHOUT.count("\n") + 2
    return [(problem.line - above, problem.where, problem.sentence) for problem in caught.value.problems]


GOOD = """\
  origin: log.example.com/orders
  signer: {kind: file, path: /etc/breakglass/log.key}
"""


def test_the_demos_log_is_signed_by_vault_and_has_a_required_copy():
    """Every value of the demo's section is where the program looks for it."""
    log = parse(TEXT, name="p").log
    assert log.origin == "sandbox.example/breakglass"
    assert (log.signer.kind, log.signer.settings) == ("vault", {"mount": "transit", "key": "breakglass-log"})
    assert log.heartbeat == timedelta(minutes=5)
    assert log.required == ("archive",)
    assert log.copies["archive"].settings == {"path": "/mnt/other-volume/breakglass.copy"}


def test_without_the_section_there_is_no_log_to_sign():
    """The section is optional, and its absence is not the same as an empty one."""
    assert parse(WITHOUT, name="p").log is None
    assert problems("")


def test_times_have_their_defaults_and_can_be_stated():
    """Five minutes, sixty seconds and five minutes, unless the file says otherwise."""
    log = policy_with(GOOD).log
    assert (log.heartbeat, log.required_within, log.alarm_after) == (
        timedelta(minutes=5),
        timedelta(seconds=60),
        timedelta(minutes=5),
    )
    assert (log.copies, log.required) == ({}, ())
    log = policy_with(GOOD + "  heartbeat: 1m\n  required_within: 5s\n  alarm_after: 1h\n").log
    assert (log.heartbeat, log.required_within, log.alarm_after) == (
        timedelta(minutes=1),
        timedelta(seconds=5),
        timedelta(hours=1),
    )


@pytest.mark.parametrize("kind", FOLLOWERS)
@pytest.mark.parametrize("is_full", [False, True])
def test_every_kind_of_copy_is_read_with_its_settings(kind, is_full):
    """Each registered kind loads with what it needs, and with all that it knows, as text."""
    keys = [key for key, is_needed in FOLLOWERS[kind].keys.items() if is_needed or is_full]
    lines = "".join(f"      {key}: {SETTINGS[key]}\n" for key in keys)
    copy = policy_with(f"{GOOD}  copies:\n    outside:\n      kind: {kind}\n{lines}").log.copies["outside"]
    assert (copy.name, copy.kind, copy.required) == ("outside", kind, False)
    assert copy.settings == {key: SETTINGS[key] for key in keys}


@pytest.mark.parametrize("kind", FOLLOWERS)
def test_what_a_kind_needs_may_not_be_missing(kind):
    """Each setting that a kind needs is asked for by name when it is not there, and an unknown one is refused."""
    found = problems(f"{GOOD}  copies:\n    outside: {{kind: {kind}, colour: blue}}\n")
    needed = [key for key, is_needed in FOLLOWERS[kind].keys.items() if is_needed]
    assert all(any(f"“{key}” is missing" in sentence for _, _, sentence in found) for key in needed)
    assert (4, "log.copies.outside.colour") in [(line, where) for line, where, _ in found]


@pytest.mark.parametrize("kind", FOLLOWERS)
def test_only_what_keeps_entries_can_be_required(kind):
    """A credential can wait for a copy, and not for a notary, which keeps nothing."""
    keys = ", ".join(f"{key}: {SETTINGS[key]}" for key, is_needed in FOLLOWERS[kind].keys.items() if is_needed)
    section = f"{GOOD}  copies:\n    outside: {{kind: {kind}, required: true, {keys}}}\n"
    if FOLLOWERS[kind].is_notary:
        assert any("no credential can wait" in sentence for _, _, sentence in problems(section))
    else:
        assert policy_with(section).log.required == ("outside",)


@pytest.mark.parametrize(
    ("section", "line", "where", "says"),
    [
        ("  origin: log.example.com\n", 0, "log", "“signer” is missing"),
        ("  signer: {kind: file, path: /x}\n", 0, "log", "“origin” is missing"),
        (GOOD.replace("log.example.com/orders", "https://log.example.com"), 1, "log.origin", "without its scheme"),
        (GOOD.replace("log.example.com/orders", "log+x"), 1, "log.origin", "without its scheme"),
        (GOOD.replace("log.example.com/orders", '"two words"'), 1, "log.origin", "without its scheme"),
        (GOOD.replace("kind: file", "kind: fiel"), 2, "log.signer.kind", "the kinds are: file, vault"),
        (GOOD.replace("kind: file, ", ""), 2, "log.signer", "“kind” is missing"),
        (GOOD.replace("path: /etc/breakglass/log.key", "path: [a]"), 2, "log.signer.path", "must be text"),
        (GOOD.replace("path: /etc/breakglass/log.key", 'path: "a\\nb"'), 2, "log.signer.path", "one line"),
        (GOOD.replace("path: /etc/breakglass/log.key", 'path: ""'), 2, "log.signer.path", "is empty"),
        (GOOD.replace("{kind: file, path: /etc/breakglass/log.key}", "[]"), 2, "log.signer", "must be a block"),
        (
            GOOD.replace("kind: file, path: /etc/breakglass/log.key", "kind: vault, mount: ../x, key: k"),
            2,
            "log.signer.mount",
            "not the path",
        ),
        (
            GOOD.replace("kind: file, path: /etc/breakglass/log.key", "kind: vault, mount: transit, key: a/b"),
            2,
            "log.signer.key",
            "not the name",
        ),
        (GOOD + "  heartbeat: never\n", 3, "log.heartbeat", "Write a duration"),
        (GOOD + "  heartbeat: 2d\n", 3, "log.heartbeat", "must be from"),
        (GOOD + "  required_within: 2h\n", 3, "log.required_within", "must be from"),
        (GOOD + "  colour: blue\n", 3, "log.colour", "unknown"),
        (GOOD + "  copies: []\n", 3, "log.copies", "must be a block"),
        (GOOD + "  copies:\n    A: {kind: file, path: /x}\n", 4, "log.copies.A", "A name is"),
        (GOOD + "  copies:\n    a: {kind: tape, path: /x}\n", 4, "log.copies.a.kind", "the kinds are: file,"),
        (GOOD + "  copies:\n    a: {kind: [file], path: /x}\n", 4, "log.copies.a.kind", "the kinds are: file,"),
        (
            GOOD + "  copies:\n    a: {kind: file, path: /x, required: yes}\n",
            4,
            "log.copies.a.required",
            "true or false",
        ),
        (GOOD + "  copies:\n    a: {kind: file, path: /x, path: /y}\n", 4, "log.copies.a.path", "twice"),
        (
            GOOD + "  copies:\n    a: {kind: postgresql, url_env: postgresql://u:p@h/d}\n",
            4,
            "log.copies.a.url_env",
            "name of an environment variable",
        ),
        (GOOD + "  copies:\n    a: {kind: webhook, url: ftp://x, secret_env: S}\n", 4, "log.copies.a.url", "https://"),
        (
            GOOD + "  copies:\n    a: {kind: webhook, url: https://u:p@x, secret_env: S}\n",
            4,
            "log.copies.a.url",
            "password does not belong here",
        ),
        (
            GOOD + "  copies:\n    a: {kind: syslog, host: h, port: 70000, ca_file: /x}\n",
            4,
            "log.copies.a.port",
            "TCP port",
        ),
        (
            GOOD + "  copies:\n    a: {kind: syslog, host: h, port: 0x10, ca_file: /x}\n",
            4,
            "log.copies.a.port",
            "digits",
        ),
        (
            GOOD + "  copies:\n    a: {kind: witness, url: https://x, vkey: nokey}\n",
            4,
            "log.copies.a.vkey",
            "verifier key",
        ),
    ],
)
def test_each_mistake_is_named_with_its_line(section, line, where, says):
    """What is unknown, missing, doubled or impossible refuses, with the line and what to do."""
    found = problems(section)
    assert any((line, where) == (at, place) and says in sentence for at, place, sentence in found), found


def test_too_many_copies_are_refused():
    """More than twenty copies are a mistake."""
    listed = "".join(f"    c{number}: {{kind: file, path: /{number}}}\n" for number in range(21))
    assert any("at most 20" in sentence for _, _, sentence in problems(f"{GOOD}  copies:\n{listed}"))


def test_the_keyring_is_opened_as_the_policy_says():
    """A file signer needs no Vault; a Vault signer without a Vault is a sentence."""
    assert isinstance(open_keyring(policy_with(GOOD).log, None), FileKeyring)
    with pytest.raises(SignerDown, match="no Vault"):
        open_keyring(parse(TEXT, name="p").log, None)


def test_the_document_explains_every_kind_and_setting():
    """Each registered signer and copy has a row that names its settings, and the document's example loads."""
    for kinds in (SIGNERS, FOLLOWERS):
        for kind, known in kinds.items():
            rows = re.findall(rf"(?m)^\| `{kind}` \| (.*) \|$", DOCUMENT)
            assert any(all(f"`{key}`" in row for key in known.keys) for row in rows), kind
    (example,) = re.findall(r"```yaml\nlog:\n(.*?)```", DOCUMENT, re.DOTALL)
    log = policy_with(example).log
    assert list(log.copies) == ["archive", "notary"]
    assert say_duration(log.heartbeat) == "5 minutes"
