"""What does an administrator do at a host, once, so that certificates open it and end there?

Rules
-----
* Whatever belongs to one account stands in a ``Match`` block of its own: other logins of the host are not touched.
* The host's script is root's, and so are its folders; the bot's account may run it with ``sudo`` as one command only.
* It may be done twice.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def trusting(user: str, authority: str, script: str, revoked: str, *, is_dedicated: bool) -> str:
    """Return the block of ``sshd_config`` for a responders' account."""
    lines = [
        f"Match User {user}",
        f"  TrustedUserCAKeys {authority}",
        f"  RevokedKeys {revoked}",
        # The script notes each login before it is let in, and names the principals of the account.
        f"  AuthorizedPrincipalsCommand {script} admit {'--dedicated ' if is_dedicated else ''}%u %k",
        "  AuthorizedPrincipalsCommandUser root",
        "  AuthorizedPrincipalsFile none",
    ]
    if is_dedicated:
        # A key that a responder left behind opens nothing, and neither does a password.
        lines += ["  AuthorizedKeysFile none", "  AuthorizedKeysCommand none", "  AuthenticationMethods publickey"]
        lines += ["  DisableForwarding yes", "  PermitUserRC no"]
    return "\n".join(lines)


def watched(user: str, authority: str, command: str, principal: str) -> str:
    """Return the block of ``sshd_config`` for the bot's own account: one command, whatever is asked for."""
    lines = [
        f"Match User {user}",
        f"  TrustedUserCAKeys {authority}",
        f"  AuthorizedPrincipalsCommand /bin/echo {principal}",
        "  AuthorizedPrincipalsCommandUser nobody",
        "  AuthorizedPrincipalsFile none",
        "  AuthorizedKeysFile none",
        "  AuthorizedKeysCommand none",
        "  AuthenticationMethods publickey",
        "  DisableForwarding yes",
        "  PermitUserRC no",
        "  PermitTTY no",
        f"  ForceCommand {command}",
    ]
    if user == "root":
        lines.append("  PermitRootLogin forced-commands-only")
    return "\n".join(lines)


def steps(options: Mapping[str, str], script: str, principal: str, watch_user: str) -> str:
    """Return the steps for the host of a level, as a shell script in paragraphs. See ``seam.Prepared``."""
    authority = f"/etc/ssh/breakglass-{options['mount'].replace('/', '-')}.pub"
    user, is_dedicated = options["user"], options.get("dedicated") == "true"
    command = f"{script} watch"
    paragraphs = [
        f"# Host {options['host']}:{options['port']}: as root there, when Vault is set up",
        (
            "# 1. What ends certificates: workflows/engines/ssh_host.py of this program, copied to the host.\n"
            f"install -o root -g root -m 0755 ssh_host.py {script}\n"
            f"{script} init"
        ),
        (
            "# 2. Whom to trust: the authority of Vault's mount.\n"
            f'curl -fsS "$VAULT_ADDR/v1/{options["mount"]}/public_key" >{authority}'
        ),
        f"# 3. The responders' account.\n{_account(user)}" if user != "root" else "",
        (
            "# Its principals, one for each level.\n"
            f"mkdir -p /etc/breakglass-ssh/principals; touch /etc/breakglass-ssh/principals/{user}\n"
            f"grep -qxF {options['principal']} /etc/breakglass-ssh/principals/{user} || "
            f"echo {options['principal']} >>/etc/breakglass-ssh/principals/{user}"
        ),
        _file(
            f"/etc/ssh/sshd_config.d/breakglass-{user}.conf",
            trusting(user, authority, script, "/var/lib/breakglass-ssh/revoked", is_dedicated=is_dedicated),
        ),
    ]
    if watch_user != "root":
        paragraphs.append(
            "# 4. The bot's account: one command, as root.\n"
            f"{_account(watch_user)}\n"
            f"echo {shlex.quote(f'{watch_user} ALL=(root) NOPASSWD: {command}')} >/etc/sudoers.d/breakglass-watch\n"
            "chmod 0440 /etc/sudoers.d/breakglass-watch"
        )
        command = f"sudo -n {command}"
    paragraphs += [
        _file(
            f"/etc/ssh/sshd_config.d/breakglass-{watch_user}.conf", watched(watch_user, authority, command, principal)
        ),
        (
            "# 5. Sessions whose certificate is over end here, also when the bot is gone: every five seconds.\n"
            + _file(
                "/etc/systemd/system/breakglass-ssh.service", "[Service]\nType=oneshot\nExecStart=" + script + " sweep"
            )
        ),
        _file(
            "/etc/systemd/system/breakglass-ssh.timer",
            "[Timer]\nOnBootSec=5\nOnUnitInactiveSec=5\nAccuracySec=1\n[Install]\nWantedBy=timers.target",
        ),
        (
            "# 6. Only a configuration that is sound is loaded.\n"
            "systemctl daemon-reload && systemctl enable --now breakglass-ssh.timer\n"
            "sshd -t && (systemctl reload ssh || systemctl reload sshd)"
        ),
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _account(user: str) -> str:
    # "*": no password fits, and sshd does not take the account for a locked one.
    return f"id {user} >/dev/null 2>&1 || useradd --create-home --shell /bin/sh --password '*' {user}"


def _file(name: str, content: str) -> str:
    return f"cat >{name} <<'END'\n{content}\nEND"
