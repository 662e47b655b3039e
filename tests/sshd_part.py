"""Which real SSH host do the tests log in to? An sshd of one's own on loopback, with an account made for the test.

A pytest plugin. It needs root, as sshd does that lets anybody but its own user in: the account that it makes has no
password, and is removed with the server.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from outside import needed
from real_parts import Grant

from bot.demo.parts import HOST, Part, launch
from workflows.engines import ENGINES, LevelSettings, Wish, ssh_host, ssh_target
from workflows.engines.ssh import WATCH_PRINCIPAL
from workflows.vault import Vault
from workflows.vault_plan import APPROLE, LevelSetup, plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from real_parts import Real

    from workflows.engines.ssh import Signed
    from workflows.vault import ChildToken

SSH = ENGINES["ssh"]

MOUNT: Final = "ssh"
PRINCIPAL: Final = "breakglass-shop"
_names: Final = itertools.count(1000)
_accounts: Final = itertools.count(1)


class Sshd(Part):
    """An sshd that admits certificates of Vault to an account of its own, and the bot to root's forced command."""

    name = "sshd"

    def __init__(self, directory: Path | str, authority: str) -> None:
        super().__init__(directory)
        number = f"{os.getpid()}n{next(_accounts)}"
        self.account = f"bgtest{number}"  # of emergency access alone
        self.plain = f"bgplain{number}"  # and one that has other uses
        self.state = self.directory / "state"
        self.home = self.directory / "home"
        (self.directory / "authority.pub").write_text(authority, encoding="utf-8")
        keygen(self.directory / "host")
        ssh_host.main(["--state", str(self.state), "init"])
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd wants to be locked in before the login
        assert os.geteuid() == 0, "these tests make an account and run sshd: they need root"
        self.home.mkdir()
        for name in (self.account, self.plain):
            words = ["useradd", "--system", "--shell", "/bin/sh", "--home-dir", str(self.home), "--password", "*", name]
            subprocess.run(words, check=True)
            (self.state / "etc" / "principals" / name).write_text(f"{PRINCIPAL}\n{PRINCIPAL}-fixed\n")
        shutil.chown(self.home, self.account)

    @property
    def host_key(self) -> str:
        """The host's public key, without its comment."""
        return " ".join((self.directory / "host.pub").read_text(encoding="utf-8").split()[:2])

    @property
    def uid(self) -> int:
        """The number of the account of emergency access alone."""
        return pwd.getpwnam(self.account).pw_uid

    def close(self) -> None:
        """Stop, end what the accounts still run, and remove them."""
        super().close()
        owners = {pwd.getpwnam(name).pw_uid for name in (self.account, self.plain)}
        for pid, (_, _, owner) in ssh_host.processes().items():
            if owner in owners:
                os.kill(pid, signal.SIGKILL)
        for name in (self.account, self.plain):
            subprocess.run(["userdel", "--force", name], check=True, capture_output=True)

    def script(self, what: str) -> str:
        """Return the command line of the host's script."""
        return f"{sys.executable} -I {ssh_host.__file__} --state {self.state} {what}".strip()

    def sweep(self) -> None:
        """Do what the host does every few seconds."""
        ssh_host.main(["--state", str(self.state), "sweep"])

    def more(self) -> str:
        """Return what else stands in its configuration."""
        return ""

    def _launch(self) -> None:
        program = needed("sshd", "openssh-server")
        needed("ssh", "openssh-client")
        authority, revoked = str(self.directory / "authority.pub"), str(self.state / "lib" / "revoked")
        blocks = (
            ssh_target.trusting(self.account, authority, self.script(""), revoked, is_dedicated=True),
            ssh_target.trusting(self.plain, authority, self.script(""), revoked, is_dedicated=False),
            ssh_target.watched("root", authority, self.script("watch"), WATCH_PRINCIPAL),
        )
        config = self.state / "etc" / "sshd_config"
        config.write_text(
            f"""Port {self.port}
ListenAddress {HOST}
HostKey {self.directory}/host
PidFile none
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin no
MaxStartups 100
LogLevel VERBOSE
{chr(10).join(blocks)}
{self.more()}
""",
            encoding="utf-8",
        )
        self._running = launch(
            [program, "-D", "-e", "-f", str(config)], log=self.log, polite=signal.SIGTERM, env={"PATH": os.defpath}
        )
        self._wait(self._answers)

    def _answers(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), timeout=5) as line:
                return line.recv(4) == b"SSH-"
        except OSError:
            return False


def keygen(file: Path, kind: str = "ed25519", *more: str) -> str:
    """Make a key pair and return its public half."""
    subprocess.run(["ssh-keygen", "-q", "-t", kind, *more, "-N", "", "-C", "rita@laptop", "-f", str(file)], check=True)
    return file.with_suffix(".pub").read_text(encoding="utf-8").strip()


@dataclass
class Shop:
    """The host, the Vault that signs for it, and what the levels say."""

    real: Real
    sshd: Sshd
    token: str  # the bot's
    level: LevelSettings
    fixed: LevelSettings  # the same account, and one command only

    def vault(self) -> Vault:
        """Return a Vault of the bot's, which may do for SSH what it has to and no more."""
        return Vault(self.real.bao.addr, token=self.token)

    def open(
        self,
        vault: Vault,
        public_key: str,
        level: LevelSettings | None = None,
        *,
        ttl: timedelta = timedelta(minutes=5),
        name: str = "",
        number: int = 1,
    ) -> tuple[Signed, Grant, ChildToken]:
        """Open a grant as the desk does; returns the certificate, the grant and its child token."""
        settings = level or self.level
        name = name or f"BG-{next(_names):04}"  # what has ended at the host never comes back
        intended_at = datetime.now(UTC)
        child = vault.open_child(settings.token_role, ttl, display_name=f"{name}-{number}", metadata={"request": name})
        made = SSH.issue(vault, child, settings.options, Wish(name, "U0RITA", public_key))
        grant = Grant(
            child.accessor,
            None,
            SSH.lease_prefix(settings.options),
            intended_at,
            name,
            made.username,
            settings.options,
            number,
            intended_at + ttl,
        )
        return made, grant, child


@pytest.fixture(scope="session")
def shop(real: Real, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A host that trusts Vault's authority, and two levels of it."""
    call = real.bao.call
    call("POST", f"sys/mounts/{MOUNT}", {"type": "ssh"})
    authority = call("POST", f"{MOUNT}/config/ca", {"generate_signing_key": True, "key_type": "ed25519"})["data"]
    with Sshd(tmp_path_factory.mktemp("sshd"), authority["public_key"]) as sshd:
        options = {
            "mount": MOUNT,
            "role": "shop",
            "watch_role": "shop-watch",
            "host": HOST,
            "port": str(sshd.port),
            "host_key": sshd.host_key,
            "user": sshd.account,
            "principal": PRINCIPAL,
            "watch_user": "root",
            "source_address": "127.0.0.0/8",
            "dedicated": "true",
        }
        levels = [LevelSettings(engine="ssh", token_role="bg-shop", options=options)]
        more = {"role": "shop-fixed", "principal": f"{PRINCIPAL}-fixed", "force_command": "echo only this"}
        levels.append(LevelSettings(engine="ssh", token_role="bg-shop-fixed", options=options | more))
        # Everything that an administrator's plan says, but for a bot of this test's own: the other tests' one stays.
        made = plan(LevelSetup(level, timedelta(minutes=30)) for level in levels)
        for write in made.writes:
            if not write.path.startswith(("sys/mounts/", f"{MOUNT}/config/", "sys/auth", "auth/approle")):
                path = "sys/policies/acl/bg-ssh-bot" if write.path == f"sys/policies/acl/{APPROLE}" else write.path
                call(write.method, path, write.body)
        bot = call("POST", "auth/token/create-orphan", {"policies": ["bg-ssh-bot"], "no_default_policy": True})
        yield Shop(real, sshd, bot["auth"]["client_token"], *levels)
