"""How does a responder get a shell on a host, and how is it shown to be over?

Vault's SSH engine signs the responder's public key; nothing secret is made. What takes it back is the host.

Rules
-----
* A certificate has no lease, and Vault cannot take it back. So a level must name a ``watch_role``: with a certificate
  of its own the bot tells the host to end it (``ssh_host.py``), and the host answers with what is left.
* Its key id is the display name of the grant's own token, set by the Vault role: request and number, on the revocation
  list and in the host's log. What Vault signed is compared with the level before anybody sees it.
* It ends with the grant's token at the latest. A host that does not answer gets no certificate: nobody could end it.
* The bot believes only the host whose key the level names, and its own key exists for one call, in memory.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shlex
import subprocess
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from workflows.engines import ssh_target
from workflows.engines.naming import role_problems, server_problems
from workflows.engines.seam import Rule, Write
from workflows.errors import Unavailable, VaultRefused
from workflows.ssh_keys import PublicKey, read_certificate, read_public_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workflows.engines import Held, Wish
    from workflows.ssh_keys import Certificate
    from workflows.vault import ChildToken, Vault

WATCH_USER: Final = "breakglass-watch"
WATCH_PRINCIPAL: Final = "breakglass-watch"
SCRIPT: Final = "/usr/local/sbin/breakglass-ssh"
# Vault puts "token-" before the display name of a token.
KEY_ID_FORMAT: Final = "{{token_display_name}}"
_PREFIX: Final = "token-"
# Vault takes an empty list of allowed options and extensions for "any"; this name exists nowhere, and sshd refuses it.
NONE: Final = "none@breakglass"

USER: Final = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
PRINCIPAL: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_HOST_KEY: Final = re.compile(r"(ssh-ed25519|ecdsa-sha2-nistp(?:256|384|521)|ssh-rsa) [A-Za-z0-9+/]{40,1000}={0,2}")

_SENT: Final[Mapping[str, tuple[str | bool, ...]]] = MappingProxyType({"public_key": (), "ttl": ()})
_SECONDS: Final = 5  # to connect
_ANSWER: Final = 20  # seconds: the host stops, kills and looks again
_WATCH_TTL: Final = 60  # seconds that the bot's own certificate lives
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a private folder in it; where there is none, an ordinary private one
_PRIVATE_NAMES: Final = {
    "ssh-ed25519": "id_ed25519",
    "sk-ssh-ed25519@openssh.com": "id_ed25519_sk",
    "sk-ecdsa-sha2-nistp256@openssh.com": "id_ecdsa_sk",
    "ssh-rsa": "id_rsa",
}


@dataclass(frozen=True, slots=True)
class Signed:
    """A certificate for one key and one grant. It is of no use without the private key, which the bot never sees."""

    username: str
    certificate: str = field(repr=False)
    kind: str
    login: str
    host: str
    port: int
    host_key: str
    ttl: timedelta
    lease_id: None = None

    def lines(self) -> tuple[str, ...]:
        """Return the line that keeps the certificate and the host's key beside the key and logs in with them.

        Quoted for a POSIX shell. Another private key than the usual one is named in ``BREAKGLASS_KEY``.
        """
        base = f'"$HOME"/.ssh/{shlex.quote(self.username)}'
        place = self.host if self.port == 22 else f"[{self.host}]:{self.port}"
        known = f"{place} {self.host_key}"
        key = f'"${{BREAKGLASS_KEY:-$HOME/.ssh/{_PRIVATE_NAMES[self.kind]}}}"'
        words = [
            f"ssh -a -x -i {key} -o IdentitiesOnly=yes -o CertificateFile={base}-cert.pub",
            f"-o UserKnownHostsFile={base}-host -o StrictHostKeyChecking=yes -o ClearAllForwardings=yes",
            f"-p {self.port} -l {shlex.quote(self.login)} {shlex.quote(self.host)}",
        ]
        saved = "; ".join(
            f"printf '%s\\n' {shlex.quote(text)} >{base}{end}"
            for text, end in ((self.certificate, "-cert.pub"), (known, "-host"))
        )
        return (f'(umask 077; mkdir -p "$HOME"/.ssh; {saved}); {" ".join(words)}',)


class Ssh:
    """Vault's SSH secrets engine as a certificate authority; one Vault role, one host and one account per level."""

    keys: Final = {
        "mount": True,
        "role": True,
        "watch_role": True,  # of the same mount: what the bot ends certificates with, and looks
        "host": True,
        "port": True,
        "host_key": True,  # the host's public key: who else answers is not believed
        "user": True,  # the account at the host
        "principal": True,  # what the certificate says, and the host admits to that account
        "watch_user": False,
        "source_address": False,
        "force_command": False,
        "dedicated": False,  # "true": the account has no other use
    }
    needs_public_key: Final = True

    def problems(self, options: Mapping[str, str]) -> dict[str, str]:
        """Return what is wrong, by key."""
        found = role_problems(options, gives="certificate") | server_problems(options)
        if not _HOST_KEY.fullmatch(options["host_key"]):
            found["host_key"] = "Write the host's public key as type and base64, without a comment."
        for key in ("user", "watch_user"):
            if key in options and not USER.fullmatch(options[key]):
                found[key] = f"{options[key]!r} is not the name of an account."
        if options["user"] == _watch_user(options):
            found["user"] = "That account is the bot's own: a responder in it could end others' sessions."
        if not PRINCIPAL.fullmatch(options["principal"]):
            found["principal"] = f"{options['principal']!r} is not a principal: a-z, 0-9, dots, dashes, underscores."
        elif options["principal"] == WATCH_PRINCIPAL:
            found["principal"] = "That principal is the bot's own: name another."
        if "source_address" in options and not _are_networks(options["source_address"]):
            found["source_address"] = "Write addresses or networks with commas between, such as 10.1.0.0/16."
        if "force_command" in options and not options["force_command"].isprintable():
            found["force_command"] = "The command must be one line."
        if options.get("dedicated", "true") not in {"true", "false"}:
            found["dedicated"] = 'This must be "true" or "false".'
        elif options.get("dedicated") == "true" and options["user"] == "root":
            found["dedicated"] = "Everything on the host runs as root: no account of emergency access alone."
        return found

    def path(self, options: Mapping[str, str]) -> str:
        """Return the path whose writing signs a key."""
        return f"{options['mount']}/sign/{options['role']}"

    def lease_prefix(self, options: Mapping[str, str]) -> str:  # noqa: ARG002
        """Return nothing: there are no leases."""
        return ""

    def issue(self, vault: Vault, child: ChildToken, options: Mapping[str, str], wish: Wish) -> Signed:
        """Have the public key signed. Raises Unavailable, also when the host does not answer, and VaultRefused."""
        try:
            key = read_public_key(wish.public_key or "")
        except ValueError:
            key = None
        if key is None:
            raise VaultRefused(f"There is no public key of {wish.request_id} to sign. Ask again with one.")
        # 1. A host that could not end it gets none: one that is down, or whose sshd notes no logins.
        _ask(vault, options, {"do": "ready", "user": options["user"]})
        ends_at, left = vault.token_end(child.accessor)
        # 2. Vault counts from when it signs, so it is asked for the whole seconds that the token has left.
        for seconds in (left, left - 1, left - 2):
            if seconds < 1:
                break
            answer = vault.write_as(child, self.path(options), {"public_key": key.line, "ttl": f"{seconds}s"})
            text = str(answer.get("signed_key") or "").strip()
            try:
                made = read_certificate(text)
            except ValueError:
                made = None
            if made is None:
                raise Unavailable(f"What Vault gave for {self.path(options)!r} is not an SSH certificate.")
            # 3. A role that is set up otherwise than the level says is found before anybody has what it signs.
            if wrong := _differs(made, key, options, wish):
                raise VaultRefused(f"The Vault role {options['role']!r} signs {wrong} than the level says. Not shown.")
            if made.ends_at <= ends_at:
                ttl = min(timedelta(seconds=seconds), child.ttl)
                return Signed(
                    _identity(made.key_id),
                    text,
                    key.kind,
                    options["user"],
                    options["host"],
                    int(options["port"]),
                    options["host_key"],
                    ttl,
                )
        raise Unavailable("Signing took longer than the time that is left. Press the button again.")

    def is_gone(self, vault: Vault, grant: Held, known_lease_ids: frozenset[str]) -> bool:  # noqa: ARG002
        """Whether Vault no longer knows the grant's token: nothing more is signed with it."""
        return grant.accessor is None or vault.accessor_is_gone(grant.accessor)

    def hurry(self, vault: Vault, grant: Held) -> None:
        """Revoke the token again. Raises Unavailable, VaultRefused."""
        if grant.accessor is not None and not vault.accessor_is_gone(grant.accessor):
            vault.revoke_accessor(grant.accessor)

    def prove(self, vault: Vault, grant: Held) -> tuple[str, ...]:
        """Have the host end the certificate and every session of it, and return what it then says."""
        # Without its name (a crash before it was recorded): what the token was named, and so what would be signed.
        identity = grant.identity or f"{grant.request_id}-{grant.number}".lower()
        key_id = _key_id(identity)
        try:
            said = _ask(vault, grant.options, {"do": "end", "key_id": key_id})
        except Unavailable as error:
            failure = Unavailable(f"{error.sentence}{_own_end(grant.expires_at)}", code=error.reason)
        else:
            sessions, processes = _count(said, "sessions"), _count(said, "processes")
            if said.get("key_id") == key_id and said.get("revoked") is True and sessions == processes == 0:
                return (
                    f"{grant.options['host']} has its key id on the revocation list",
                    "no session and no process of it is left",
                )
            failure = Unavailable(
                f"At {grant.options['host']} {sessions} sessions and {processes} processes of it are left.", code="left"
            )
        raise failure

    def identities(self, vault: Vault, options: Mapping[str, str]) -> frozenset[str]:
        """Return the requests (and credential numbers) that have a session open at the host."""
        found = _ask(vault, options, {"do": "sessions"}).get("key_ids")
        return frozenset(_identity(str(one)) for one in found) if isinstance(found, list) else frozenset()

    # What an administrator gives it, once.

    def child_rules(self, options: Mapping[str, str]) -> tuple[Rule, ...]:
        """Return the right to have a key signed for a time, and to choose nothing else."""
        return (Rule(self.path(options), ("update",), _SENT),)

    def bot_rules(self, options: Mapping[str, str]) -> tuple[Rule, ...]:
        """Return the right to a certificate for the bot's own account at the host."""
        why = "Opens the bot's own account at a host, whose forced command ends certificates and looks."
        return (Rule(f"{options['mount']}/sign/{options['watch_role']}", ("update",), _SENT, why=why),)

    def writes(self, options: Mapping[str, str], longest: timedelta) -> tuple[Write, ...]:
        """Return the mount, its authority, and the two roles."""
        mount = options["mount"]
        authority = {"generate_signing_key": True, "key_type": "ed25519"}
        return (
            Write("POST", f"sys/mounts/{mount}", {"type": "ssh"}, made_once=True),
            Write("POST", f"{mount}/config/ca", authority, made_once=True),
            Write("POST", f"{mount}/roles/{options['watch_role']}", watching_role()),
            Write("POST", f"{mount}/roles/{options['role']}", signing_role(options, longest), lends=True),
        )

    def target_steps(self, options: Mapping[str, str]) -> str:
        """Return what to do at the host, as root, once Vault is set up."""
        return ssh_target.steps(options, SCRIPT, WATCH_PRINCIPAL, _watch_user(options))


def _watch_user(options: Mapping[str, str]) -> str:
    return options.get("watch_user", WATCH_USER)


def _identity(key_id: str) -> str:
    """Return the name that people and the log use, ``bg-7kq2-1``, of the key id ``token-BG-7KQ2-1``."""
    return key_id.removeprefix(_PREFIX).lower()


def _key_id(identity: str) -> str:
    # A trial of "breakglass check" has a name of its own, as it stands.
    return _PREFIX + (identity.upper() if identity.startswith("bg-") else identity)


def _are_networks(text: str) -> bool:
    try:
        return all(ipaddress.ip_network(one.strip()) for one in text.split(","))
    except ValueError:
        return False


def networks(options: Mapping[str, str]) -> str:
    """Return the addresses from which the certificate may be used, as sshd reads them; empty for any."""
    return ",".join(
        str(ipaddress.ip_network(one.strip())) for one in options.get("source_address", "").split(",") if one
    )


def critical_options(options: Mapping[str, str]) -> dict[str, str]:
    """Return what sshd holds the responder to, whatever the client asks for."""
    found = {}
    if where := networks(options):
        found["source-address"] = where
    if command := options.get("force_command"):
        found["force-command"] = command
    return found


def signing_role(options: Mapping[str, str], longest: timedelta) -> dict[str, Any]:
    """Return what Vault's role of a level is: this account, these restrictions, nothing of the client's choice."""
    return {
        "key_type": "ca",
        "allow_user_certificates": True,
        "allow_host_certificates": False,
        "allowed_users": options["principal"],
        "default_user": options["principal"],
        "allow_user_key_ids": False,
        "key_id_format": KEY_ID_FORMAT,
        "allowed_critical_options": NONE,
        "default_critical_options": critical_options(options),
        "allowed_extensions": NONE,
        "default_extensions": {"permit-pty": ""},
        "ttl": _WATCH_TTL,
        "max_ttl": int(longest.total_seconds()),
    }


def watching_role() -> dict[str, Any]:
    """Return what Vault's role of the bot itself is: the host's script and nothing else, for a minute."""
    role = signing_role({"principal": WATCH_PRINCIPAL}, timedelta(seconds=_WATCH_TTL))
    # The host's configuration forces its own command; without one there, this keeps the certificate from being a shell.
    return role | {"default_critical_options": {"force-command": f"{SCRIPT} watch"}, "default_extensions": {}}


def _differs(made: Certificate, key: PublicKey, options: Mapping[str, str], wish: Wish) -> str:
    """Say in what a certificate is not what the level says; empty when it is."""
    checks = {
        "another key": made.key == key and made.is_user,
        "another key id": re.fullmatch(rf"token-{re.escape(wish.request_id)}(-[0-9]+)?", made.key_id) is not None,
        "for other accounts": made.principals == (options["principal"],),
        "other restrictions": dict(made.options) == critical_options(options),
        "other rights": set(made.extensions) <= {"permit-pty"},
    }
    return next((what for what, is_fine in checks.items() if not is_fine), "")


def _own_end(at: datetime | None) -> str:
    """Say when a certificate ends whatever happens to the host."""
    if at is None:
        return ""
    if at <= datetime.now(UTC):
        return " The certificate itself has ended by its time; a session that is open may go on."
    return f" The certificate itself opens nothing new after {at:%H:%M:%S} UTC."


def _count(said: Mapping[str, Any], name: str) -> int:
    found = said.get(name)
    # What the host does not say counts as one that is left.
    return found if type(found) is int and found >= 0 else 1


def _ask(vault: Vault, options: Mapping[str, str], order: Mapping[str, str]) -> Mapping[str, Any]:
    """Log in at the host as the bot, give one order, return the answer. Raises Unavailable, VaultRefused."""
    where = f"{options['host']}:{options['port']}"
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    path = f"{options['mount']}/sign/{options['watch_role']}"
    signed = str(vault.write_own(path, {"public_key": public.decode(), "ttl": f"{_WATCH_TTL}s"}).get("signed_key"))
    with tempfile.TemporaryDirectory(prefix="breakglass-", dir=_MEMORY if _MEMORY.is_dir() else None) as made:
        folder = Path(made)  # only its owner may look into it
        (folder / "key").touch(mode=0o600)
        (folder / "key").write_bytes(
            private.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
            )
        )
        (folder / "certificate").write_text(signed, encoding="utf-8")
        place = options["host"] if options["port"] == "22" else f"[{options['host']}]:{options['port']}"
        (folder / "hosts").write_text(f"{place} {options['host_key']}\n", encoding="utf-8")
        settings = {
            "CertificateFile": folder / "certificate",
            "UserKnownHostsFile": folder / "hosts",
            "GlobalKnownHostsFile": "none",
            "StrictHostKeyChecking": "yes",
            "UpdateHostKeys": "no",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "PreferredAuthentications": "publickey",
            "BatchMode": "yes",
            "ClearAllForwardings": "yes",
            "ControlPath": "none",
            "ConnectTimeout": _SECONDS,
            "ServerAliveInterval": _SECONDS,
            "LogLevel": "ERROR",
        }
        words = ["ssh", "-F", "none", "-T", "-i", str(folder / "key"), "-p", options["port"]]
        words += [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        words += ["-l", _watch_user(options), options["host"], "watch"]
        try:
            done = subprocess.run(  # noqa: S603 - each word of the policy's is of a checked form
                words,
                input=json.dumps(dict(order)).encode() + b"\n",
                capture_output=True,
                timeout=_ANSWER,
                check=False,
                env={"PATH": os.defpath, "HOME": str(folder)},
            )
            said = json.loads(done.stdout) if done.returncode == 0 else None
        except FileNotFoundError:
            why = "The bot's machine has no ssh program: install OpenSSH's client."
        except (OSError, ValueError, subprocess.SubprocessError):
            why = f"The host {where} does not answer as it should, so nothing is shown to be gone."
        else:
            if isinstance(said, dict) and "error" not in said:
                return said
            why = f"The host {where} cannot be asked, so nothing is shown to be gone."
            if isinstance(said, dict):
                no = str(said["error"])[:200]
                why = f"The host {where} says no ({no}), so nothing is done there or shown to be gone."
    raise Unavailable(why)
