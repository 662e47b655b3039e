"""Only a sound public key of a kind that may be signed is taken, and a private one is never repeated."""

from __future__ import annotations

import base64
import contextlib
import subprocess

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from sshd_part import keygen

from workflows.ssh_keys import fingerprint, looks_private, read_certificate, read_public_key


def _line(private) -> str:
    openssh = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return private.public_key().public_bytes(*openssh).decode()


def _packed(*parts: bytes) -> str:
    return base64.b64encode(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).decode()


ED25519 = _line(Ed25519PrivateKey.generate())
POINT = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
# As a security key gives them; there is none at hand to make one with.
SK_ED25519 = f"sk-ssh-ed25519@openssh.com {_packed(b'sk-ssh-ed25519@openssh.com', POINT, b'ssh:')}"
CURVE = (
    ec.generate_private_key(ec.SECP256R1())
    .public_key()
    .public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
)
KIND = "sk-ecdsa-sha2-nistp256@openssh.com"
SK_ECDSA = f"{KIND} {_packed(KIND.encode(), b'nistp256', CURVE, b'ssh:')}"
RSA = _line(rsa.generate_private_key(65537, 3072))


def _short(value: str) -> str:
    """Name a case by its words: keys are new in each process, and all processes must agree on the names."""
    return value if len(value) < 20 else "key"


@pytest.mark.parametrize("line", [ED25519, SK_ED25519, SK_ECDSA, RSA], ids=_short)
def test_a_key_of_a_good_kind_is_kept_without_its_comment(line, tmp_path):
    """Type and bytes are kept, and the fingerprint is the one that ssh-keygen says."""
    key = read_public_key(f"  {line} rita@laptop, her own\n")
    assert key.line == line
    (tmp_path / "key.pub").write_text(line)
    said = subprocess.run(["ssh-keygen", "-lf", "key.pub"], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert said.stdout.split()[1] == key.fingerprint == fingerprint(line)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a public key"),
        ("ssh-ed25519", "not a public key"),
        ("hello world", "no key"),
        (f'command="sh" {ED25519}', "no key"),
        (f"{ED25519}\n{ED25519}", "not a public key"),
        (f"{ED25519[:-8]}", "damaged"),
        (ED25519.replace("AAAA", "AAAB", 1), "damaged"),
        (f"ssh-rsa {ED25519.split()[1]}", "damaged"),
        (f"ssh-ed25519 {_packed(b'ssh-ed25519', POINT, b'more')}", "damaged"),
        (f"ssh-ed25519 {_packed(b'ssh-ed25519', POINT[:-1])}", "damaged"),
        (f"{KIND} {_packed(KIND.encode(), b'nistp384', CURVE, b'ssh:')}", "damaged"),
        (f"ssh-rsa {_packed(b'ssh-rsa', bytes([1]), bytes([1]) * 400)}", "damaged"),  # an exponent of 1 signs nothing
        (f"ssh-ed25519 {ED25519.split()[1]}=", "damaged"),
        (_line(rsa.generate_private_key(65537, 2048)), "too short"),
        (_line(ec.generate_private_key(ec.SECP256R1())), "this kind"),
        (f"ssh-dss {_packed(b'ssh-dss', POINT)}", "this kind"),
        (f"ssh-ed25519-cert-v01@openssh.com {_packed(b'x')}", "certificate"),
        ("---- BEGIN SSH2 PUBLIC KEY ---- AAAA ---- END", "no key"),
        ("ssh-ed25519 " + "A" * 3001, "not a public key"),
    ],
    ids=_short,
)
def test_what_cannot_be_signed_is_refused_with_a_sentence(text, words):
    """Each mistake has its own sentence, which says what to give instead and repeats nothing of the text."""
    with pytest.raises(ValueError, match=words) as caught:
        read_public_key(text)
    assert not [word for word in text.split() if len(word) > 30 and word in str(caught.value)]
    assert fingerprint(text) == ""


def _private_keys() -> list[str]:
    none, pem = serialization.NoEncryption(), serialization.Encoding.PEM
    forms = serialization.PrivateFormat
    key, old = Ed25519PrivateKey.generate(), rsa.generate_private_key(65537, 2048)
    made = [key.private_bytes(pem, forms.OpenSSH, none), key.private_bytes(pem, forms.PKCS8, none)]
    made += [old.private_bytes(pem, forms.TraditionalOpenSSL, none)]
    made += [key.private_bytes(pem, forms.PKCS8, serialization.BestAvailableEncryption(b"x"))]
    return [one.decode() for one in made] + ["PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\n"]


@pytest.mark.parametrize("text", _private_keys(), ids=_short)
def test_a_private_key_is_recognised_and_not_repeated(text):
    """Pasted whole, in one line or only its body: it is said to be burnt, and no part of it is in the error."""
    body = "".join(line for line in text.splitlines() if "---" not in line and ":" not in line)
    is_openssh = "OPENSSH" in text
    for typed in (text, text.replace("\n", " "), f"ssh-ed25519 {text}", *([body] if is_openssh else [])):
        assert looks_private(typed)
        with pytest.raises(ValueError, match="treat it as burnt") as caught:
            read_public_key(typed)
        assert not [line for line in text.splitlines() if len(line) > 40 and line in str(caught.value)]
        assert caught.value.__context__ is None


@given(st.text())
def test_any_text_is_a_key_or_a_sentence(text):
    """Whatever is typed, the answer is a key or a sentence."""
    with contextlib.suppress(ValueError):
        read_public_key(text)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_key_or_a_sentence(data):
    """Whatever stands behind the name of a kind, the answer is a key or a sentence."""
    for kind in ("ssh-ed25519", "ssh-rsa", KIND, "ssh-ed25519-cert-v01@openssh.com"):
        text = f"{kind} {_packed(kind.encode())[:-2]}{base64.b64encode(data).decode()}"
        for read in (read_public_key, read_certificate):
            with contextlib.suppress(ValueError):
                read(text)


def test_a_certificate_says_what_ssh_keygen_put_in(tmp_path):
    """Key, key id, principals, times, options and extensions are read back."""
    public = keygen(tmp_path / "id")
    keygen(tmp_path / "authority")
    words = ["-I", "token-BG-7KQ2-1", "-n", "one,two", "-V", "20260301020000Z:20260301021500Z", "-O", "clear"]
    words += ["-O", "force-command=echo it", "-O", "source-address=10.0.0.0/8", "-O", "permit-pty"]
    subprocess.run(["ssh-keygen", "-q", "-s", "authority", *words, "id.pub"], check=True, cwd=tmp_path)
    read = read_certificate((tmp_path / "id-cert.pub").read_text())
    assert read.key == read_public_key(public)
    assert (read.key_id, read.is_user, read.principals) == ("token-BG-7KQ2-1", True, ("one", "two"))
    assert f"{read.starts_at:%H:%M} {read.ends_at:%H:%M}" == "02:00 02:15"
    assert read.options == {"force-command": "echo it", "source-address": "10.0.0.0/8"}
    assert read.extensions == {"permit-pty": ""}
