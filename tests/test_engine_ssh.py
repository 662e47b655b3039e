"""A certificate opens what its level allows, and when it is said to be over the host has ended it.

Against a real OpenBao and a real sshd.
"""

from __future__ import annotations

import json
import logging
import pwd
import subprocess
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from sshd_part import HOST, SSH, keygen

from bot.demo.parts import PartFailed, call
from workflows.engines import LevelSettings, Wish, ssh_host
from workflows.engines.ssh import WATCH_PRINCIPAL, signing_role
from workflows.errors import Invalid, Unavailable, VaultRefused
from workflows.ssh_keys import read_certificate
from workflows.vault import ChildToken
from workflows.vault_apply import Operator, compare
from workflows.vault_plan import LevelSetup, plan


class Laptop:
    """The responder's machine: a folder with the key, and the certificate that was shown."""

    def __init__(self, folder: Path, shop) -> None:
        self.shop = shop
        self.home = folder / "home"
        self.home.mkdir()
        (self.home / ".ssh").mkdir(mode=0o700)
        self.key = self.home / ".ssh" / "id_ed25519"
        self.public = keygen(self.key)

    def save(self, made) -> Path:
        """Keep the certificate."""
        file = self.home / ".ssh" / f"{made.username}-cert.pub"
        file.write_text(made.certificate + "\n")
        hosts = self.home / ".ssh" / "hosts"
        hosts.write_text(f"[{HOST}]:{self.shop.sshd.port} {self.shop.sshd.host_key}\n")
        return file

    def words(self, made, *more: str, login: str | None = None) -> list[str]:
        """Return the ssh command line."""
        options = {
            "CertificateFile": self.save(made),
            "UserKnownHostsFile": self.home / ".ssh" / "hosts",
            "StrictHostKeyChecking": "yes",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "BatchMode": "yes",
        }
        given = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        place = ["-i", str(self.key), "-p", str(self.shop.sshd.port), "-l", login or self.shop.sshd.account]
        return ["ssh", "-F", "none", *place, *given, *more]

    def run(self, made, *more: str, command: str = "id -un", login: str | None = None):
        """Log in, run something, return how it went."""
        words = [*self.words(made, *more, login=login), HOST, command]
        return subprocess.run(words, check=False, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)

    def session(self, made, command: str = "echo ready; exec sleep 1000", *more: str) -> subprocess.Popen:
        """Log in and stay; returns when the command has said its first line."""
        process = subprocess.Popen(
            [*self.words(made, *more), HOST, command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout.readline() != ""
        return process


@pytest.fixture
def vault(shop):
    """Return the bot's Vault."""
    return shop.vault()


@pytest.fixture
def laptop(shop, tmp_path):
    """Return a responder's machine."""
    return Laptop(tmp_path, shop)


def take_back(shop, vault, grant):
    """Take a grant back as the desk does, and return what the host said."""
    vault.revoke_accessor(grant.accessor)
    assert shop.real.until(lambda: SSH.is_gone(vault, grant, frozenset()))
    return SSH.prove(vault, grant)


# ------------------------------------------------------------------------------------------------ what a level opens


def test_the_signed_key_logs_in(shop, vault, laptop):
    """With the certificate the key opens the level's account, and without it the key opens nothing."""
    made, _, _ = shop.open(vault, laptop.public)
    assert laptop.run(made).stdout.strip() == shop.sshd.account
    bare = replace(made, certificate="")
    assert laptop.run(bare).returncode == 255


def test_after_the_end_a_login_is_refused_and_a_session_is_cut(shop, vault, laptop):
    """Once the host said that nothing is left, the open session is dead and the certificate opens no other."""
    made, grant, _ = shop.open(vault, laptop.public)
    session = laptop.session(made)
    assert SSH.identities(vault, grant.options) == {made.username}
    shown = take_back(shop, vault, grant)
    assert shown == (f"{HOST} has its key id on the revocation list", "no session and no process of it is left")
    assert session.wait(30) == 255
    assert laptop.run(made).returncode == 255
    assert SSH.identities(vault, grant.options) == frozenset()


def test_the_line_works_when_it_is_pasted(shop, vault, laptop):
    """The line that is shown, given to a real shell, keeps what it needs beside the key and logs in."""
    made, _, _ = shop.open(vault, laptop.public)
    [line] = made.lines()
    done = subprocess.run(
        ["/bin/sh", "-c", f"{line} id -un"],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={"PATH": "/usr/bin:/bin", "HOME": str(laptop.home)},
    )
    # The real user's home holds the client's configuration; this one's key is named by the line.
    assert done.stdout.strip() == shop.sshd.account, done.stderr
    assert (laptop.home / ".ssh" / f"{made.username}-cert.pub").stat().st_mode & 0o077 == 0


def test_forwarding_is_refused(shop, vault, laptop):
    """Neither the agent, nor a display, nor a port of the host is carried through the session."""
    made, _, _ = shop.open(vault, laptop.public)
    agent = laptop.home / "agent"
    asked = ["-v", "-A", "-Y", "-R", "0:127.0.0.1:22"]
    helper = subprocess.Popen(["ssh-agent", "-D", "-a", str(agent)], stdout=subprocess.DEVNULL)
    try:
        assert shop.real.until(agent.exists)
        env = {"PATH": "/usr/bin:/bin", "HOME": str(laptop.home), "DISPLAY": "127.0.0.1:99"}
        own = [word.replace("IdentityAgent=none", f"IdentityAgent={agent}") for word in laptop.words(made, *asked)]
        words = [*own, HOST, "echo agent=$SSH_AUTH_SOCK display=$DISPLAY"]
        done = subprocess.run(
            words, check=False, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, env=env
        )
    finally:
        helper.terminate()
        helper.wait()
    assert done.stdout == "agent= display=\n", done.stderr
    for said in ("Requesting authentication agent forwarding", "X11 forwarding request failed", "forwarding failed"):
        assert said in done.stderr


def test_a_port_behind_the_host_is_not_reached(shop, vault, laptop):
    """A connection through the session to another port is refused by the host."""
    made, _, _ = shop.open(vault, laptop.public)
    words = [*laptop.words(made, "-W", f"{HOST}:{shop.sshd.port}"), HOST]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert "SSH-2.0" not in done.stdout
    assert "administratively prohibited" in done.stderr


def test_the_forced_command_cannot_be_dropped(shop, vault, laptop):
    """Whatever the responder asks for, a level with one command runs that command: it is signed."""
    made, _, _ = shop.open(vault, laptop.public, shop.fixed)
    for asked in ("id -un", "", "sftp", "sh -c id"):
        assert laptop.run(made, command=asked).stdout.strip() == "only this"
    assert laptop.run(made, "-s", command="sftp").stdout.strip() in ("", "only this")
    stripped = replace(made, certificate=made.certificate.replace("AAAA", "AAAB", 1))
    assert laptop.run(stripped).returncode == 255


def test_the_host_logs_which_request_it_was(shop, vault, laptop):
    """The log of sshd names the request at each login."""
    made, _, _ = shop.open(vault, laptop.public, name="BG-L4GS", number=3)
    assert made.username == "bg-l4gs-3"
    assert laptop.run(made).returncode == 0
    assert f"Accepted publickey for {shop.sshd.account}" in shop.sshd.log.read_text()
    assert "ID token-BG-L4GS-3 (serial" in shop.sshd.log.read_text()


def test_only_from_the_addresses_of_the_level(shop, vault, laptop):
    """From an address that is not the level's the certificate opens nothing."""
    options = dict(shop.level.options) | {"source_address": "192.0.2.0/24", "role": "shop-far"}
    shop.real.bao.call("POST", "ssh/roles/shop-far", signing_role(options, timedelta(minutes=30)))
    root = shop.real.root_vault()
    child = shop.real.bao.call("POST", "auth/token/create", {"ttl": 300, "display_name": "BG-FARR-1"})["auth"]
    token = ChildToken(child["accessor"], child["client_token"], timedelta(seconds=300))
    made = SSH.issue(root, token, options, Wish("BG-FARR", "U0RITA", laptop.public))
    assert laptop.run(made).returncode == 255
    assert "not permitted to use" in shop.sshd.log.read_text() or "from a permitted" in shop.sshd.log.read_text()


def test_an_rsa_key_logs_in(shop, vault, laptop):
    """The other kind of key that exists without a device is signed and logs in."""
    laptop.key = laptop.home / ".ssh" / "id_rsa"
    made, _, _ = shop.open(vault, keygen(laptop.key, "rsa", "-b", "3072"))
    assert made.kind == "ssh-rsa"
    assert laptop.run(made).stdout.strip() == shop.sshd.account


# ------------------------------------------------------------------------------------------------ what Vault refuses


def _sign(shop, token: str, public: str, **more) -> str:
    """Ask Vault to sign with a grant's own token; returns what it says."""
    try:
        body = {"public_key": public, "ttl": "60s"} | more
        call(shop.real.bao.addr, "POST", "ssh/sign/shop", body, token=token)
    except PartFailed as refused:
        return refused.sentence
    return ""


@pytest.mark.parametrize(
    "asked",
    [
        {"ttl": "1801s"},
        {"valid_principals": "root"},
        {"valid_principals": WATCH_PRINCIPAL},
        {"valid_principals": ""},
        {"key_id": "token-BG-ELSE-1"},
        {"cert_type": "host"},
        {"extensions": {"permit-port-forwarding": ""}},
        {"extensions": {}},
        {"critical_options": {}},
        {"critical_options": {"force-command": "sh"}},
        {"critical_options": {"source-address": "0.0.0.0/0"}},
    ],
)
def test_a_stolen_grant_token_signs_nothing_else(shop, vault, laptop, asked):
    """With the grant's own token no other time, account, key id, kind, right or restriction is signed."""
    _, _, child = shop.open(vault, laptop.public)
    assert _sign(shop, child.token, laptop.public) == ""
    assert "400" in _sign(shop, child.token, laptop.public, **asked) or "403" in _sign(
        shop, child.token, laptop.public, **asked
    )


def test_a_stolen_grant_token_reaches_no_other_role(shop, vault, laptop):
    """Neither another level's role nor the bot's own signs for a grant's token."""
    _, _, child = shop.open(vault, laptop.public)
    for role in ("shop-fixed", "shop-watch"):
        with pytest.raises(PartFailed, match="403"):
            call(shop.real.bao.addr, "POST", f"ssh/sign/{role}", {"public_key": laptop.public}, token=child.token)


@pytest.mark.parametrize(
    "changed",
    [
        {"default_critical_options": {}},
        {"default_extensions": {"permit-pty": "", "permit-agent-forwarding": ""}},
        {"key_id_format": "{{role_name}}"},
        {"allowed_users": "root", "default_user": "root"},
    ],
)
def test_a_role_that_signs_otherwise_than_the_level_says_is_found(shop, vault, laptop, changed):
    """What a misconfigured role signs is seen before anybody has it, and is a lasting no."""
    role = signing_role(shop.level.options, timedelta(minutes=30))
    shop.real.bao.call("POST", "ssh/roles/shop", role | changed)
    try:
        with pytest.raises(VaultRefused, match="than the level says"):
            shop.open(vault, laptop.public)
    finally:
        shop.real.bao.call("POST", "ssh/roles/shop", role)


def test_it_never_lives_longer_than_the_grant(shop, vault, laptop):
    """The certificate's end is not after its token's, however late it is signed, and its start is now."""
    child = vault.open_child("bg-shop", timedelta(seconds=20), display_name="BG-SHRT-1", metadata={})
    ends_at, _ = vault.token_end(child.accessor)
    time.sleep(2.3)
    made = SSH.issue(vault, child, shop.level.options, Wish("BG-SHRT", "U0RITA", laptop.public))
    read = read_certificate(made.certificate)
    assert read.ends_at <= ends_at
    assert ends_at - read.ends_at < timedelta(seconds=5)
    assert made.ttl <= timedelta(seconds=18)


@pytest.mark.parametrize("key", [None, "", "ssh-ed25519 AAAA"])
def test_without_a_key_nothing_is_signed(shop, vault, key):
    """A request without a usable key is a lasting no."""
    child = vault.open_child("bg-shop", timedelta(seconds=20), display_name="BG-NKEY-1", metadata={})
    with pytest.raises(VaultRefused, match="no public key"):
        SSH.issue(vault, child, shop.level.options, Wish("BG-NKEY", "U0RITA", key))


# ------------------------------------------------------------------------------------------------------------ the end


def test_its_time_alone_ends_new_logins_and_the_host_cuts_the_session(shop, vault, laptop):
    """With the bot gone for good, a certificate that is over opens nothing, and the host's sweep cuts its session."""
    made, grant, _ = shop.open(vault, laptop.public, ttl=timedelta(seconds=8), name="BG-TMEE")
    session = laptop.session(made)
    shop.sshd.sweep()
    assert session.poll() is None
    late = datetime.now(UTC) + timedelta(minutes=2)
    while laptop.run(made).returncode == 0:
        assert datetime.now(UTC) < late
        time.sleep(0.2)
    assert read_certificate(made.certificate).ends_at <= datetime.now(UTC) <= late
    assert session.poll() is None  # nothing of ssh's own ends what is open
    assert shop.real.until(lambda: shop.sshd.sweep() or session.poll() is not None, 60)
    assert SSH.identities(vault, grant.options) == frozenset()


def test_another_requests_session_survives(shop, vault, laptop):
    """Ending one request's certificate leaves another's session of the same person and account alone."""
    ended, grant, _ = shop.open(vault, laptop.public, name="BG-AAAA")
    kept, other, _ = shop.open(vault, laptop.public, name="BG-BBBB")
    first, second = laptop.session(ended), laptop.session(kept, "echo ready; cat")
    assert SSH.identities(vault, grant.options) == {"bg-aaaa-1", "bg-bbbb-1"}
    take_back(shop, vault, grant)
    assert first.wait(30) == 255
    second.stdin.write("still here\n")
    second.stdin.flush()
    assert second.stdout.readline() == "still here\n"
    assert laptop.run(kept).returncode == 0
    take_back(shop, vault, other)
    assert second.wait(30) == 255


def test_a_fresh_certificate_of_the_same_request_works(shop, vault, laptop):
    """The first is ended by its own number: the second of the same request, after "show again", opens the host."""
    first, grant, _ = shop.open(vault, laptop.public, name="BG-AGNN", number=1)
    take_back(shop, vault, grant)
    second, _, _ = shop.open(vault, laptop.public, name="BG-AGNN", number=2)
    assert laptop.run(first).returncode == 255
    assert laptop.run(second).returncode == 0


def test_taking_back_twice_is_fine(shop, vault, laptop):
    """What has ended stays ended, and the host says so again."""
    _, grant, _ = shop.open(vault, laptop.public, name="BG-TWCE")
    assert take_back(shop, vault, grant) == take_back(shop, vault, grant)
    SSH.hurry(vault, grant)


def test_what_was_signed_and_not_recorded_is_ended_by_its_number(shop, vault, laptop):
    """With the bot dead between signing and recording, the certificate is ended by the name that its token had."""
    made, grant, _ = shop.open(vault, laptop.public, name="BG-CRSH", number=2)
    session = laptop.session(made)
    take_back(shop, vault, replace(grant, identity=None, expires_at=None))
    assert session.wait(30) == 255
    assert laptop.run(made).returncode == 255


def test_a_process_that_left_its_session_is_ended_too(shop, vault, laptop):
    """In an account of emergency access alone, a process that detached itself does not outlive the certificate."""
    made, grant, _ = shop.open(vault, laptop.public, name="BG-DTCH")
    hidden = (
        "env -i setsid sh -c 'trap \"\" TERM HUP; while :; do sleep 0.01; done' >/dev/null 2>&1 </dev/null & echo on"
    )
    assert laptop.run(made, command=hidden).stdout.strip() == "on"  # the session itself is over

    def left():
        return [pid for pid, (_, _, owner) in ssh_host.processes().items() if owner == shop.sshd.uid]

    assert left()
    take_back(shop, vault, grant)
    assert left() == []


def test_in_an_account_with_other_uses_only_the_session_ends(shop, vault, laptop):
    """With the session all that it started ends; what else runs under the account goes on."""
    plain = shop.sshd.plain
    level = replace(shop.level, options={**shop.level.options, "user": plain, "dedicated": "false"})
    made, grant, _ = shop.open(vault, laptop.public, level)
    other = subprocess.Popen(["sleep", "1000"], user=plain)
    try:
        words = [*laptop.words(made, login=plain), HOST, "sleep 1000 & sleep 1000 & echo ready; wait"]
        session = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        assert session.stdout.readline() == "ready\n"
        number = pwd.getpwnam(plain).pw_uid

        def running():
            return {pid for pid, (_, _, owner) in ssh_host.processes().items() if owner == number}

        assert len(running()) >= 4  # the shell, both, and the other one
        take_back(shop, vault, grant)
        assert session.wait(30) == 255
        assert running() == {other.pid}
    finally:
        other.kill()
        other.wait()
    assert laptop.run(made, login=plain).returncode == 255


def test_a_host_that_notes_no_logins_gets_no_certificate(shop, vault, laptop):
    """Attack, or mistake: sshd does not heed the list, or lets in past the script. Nothing is signed for that host."""
    config = shop.sshd.state / "etc" / "sshd_config"
    sound = config.read_text()
    try:
        for line in ("RevokedKeys", "AuthorizedPrincipalsCommand ", "TrustedUserCAKeys"):
            config.write_text("\n".join(one for one in sound.splitlines() if not one.strip().startswith(line)))
            with pytest.raises(Unavailable, match=f"not those of the set-up: .*{line.strip()}"):
                shop.open(vault, laptop.public)
    finally:
        config.write_text(sound)
    shop.open(vault, laptop.public)


def test_a_client_that_keeps_reconnecting_does_not_survive(shop, vault, laptop):
    """Against clients that reconnect in a loop, no session is left and no login succeeds after the end was shown."""
    for number in range(1, 4):
        made, grant, _ = shop.open(vault, laptop.public, name="BG-RACE", number=number)
        words = [*laptop.words(made), HOST, "echo in; sleep 0.05"]
        is_over, is_shown = threading.Event(), threading.Event()
        began, late = [], []

        def attack(words=words, is_over=is_over, is_shown=is_shown, began=began, late=late):
            while not is_over.is_set():
                was_shown = is_shown.is_set()
                done = subprocess.run(words, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
                if "in" in done.stdout:
                    (late if was_shown else began).append(1)

        threads = [threading.Thread(target=attack) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert shop.real.until(lambda began=began: len(began) > 2, 60)
        take_back(shop, vault, grant)
        is_shown.set()
        assert SSH.identities(vault, grant.options) == frozenset()
        time.sleep(0.5)
        is_over.set()
        for thread in threads:
            thread.join(60)
        assert late == []


# ------------------------------------------------------------------------------------------- when something is down


def test_a_host_that_is_down_keeps_the_grant_out(shop, vault, laptop):
    """While the host does not answer nothing is shown, the sentence says when the certificate ends by itself."""
    made, grant, _ = shop.open(vault, laptop.public, name="BG-DWNN")
    shop.sshd.stop()
    try:
        vault.revoke_accessor(grant.accessor)
        assert SSH.is_gone(vault, grant, frozenset())
        with pytest.raises(Unavailable, match=r"cannot be asked.* opens nothing new after \d\d:\d\d:\d\d UTC"):
            SSH.prove(vault, grant)
        over = replace(grant, expires_at=datetime.now(UTC) - timedelta(minutes=1))
        with pytest.raises(Unavailable, match="a session that is open may go on"):
            SSH.prove(vault, over)
    finally:
        shop.sshd.start()
    assert laptop.run(made).returncode == 0  # it did survive: "ended" would have been a lie
    assert SSH.prove(vault, grant)
    assert laptop.run(made).returncode == 255


def test_a_host_that_is_down_gets_no_certificate(shop, vault, laptop):
    """What nobody could end is not made."""
    shop.sshd.stop()
    try:
        with pytest.raises(Unavailable, match="cannot be asked"):
            shop.open(vault, laptop.public)
    finally:
        shop.sshd.start()


def test_another_host_in_its_place_is_not_believed(shop, vault, laptop, tmp_path):
    """Attack: a machine that took the host's address says that all is well. Its key is not the level's."""
    _, grant, _ = shop.open(vault, laptop.public, name="BG-FAKE")
    other = " ".join(keygen(tmp_path / "other").split()[:2])
    faked = replace(grant, options=dict(grant.options) | {"host_key": other})
    with pytest.raises(Unavailable, match="cannot be asked"):
        SSH.prove(vault, faked)


def test_a_host_that_cannot_write_its_list_has_ended_nothing(shop, vault, laptop):
    """A revocation list that cannot be written is an answer, and not that of an end."""
    _, grant, _ = shop.open(vault, laptop.public, name="BG-FULL")
    lib = shop.sshd.state / "lib"
    lib.rename(lib.with_name("away"))
    try:
        with pytest.raises(Unavailable, match="says no"):
            SSH.prove(vault, grant)
    finally:
        lib.with_name("away").rename(lib)
    assert SSH.prove(vault, grant)


def test_a_sealed_vault_shows_nothing(shop, vault, laptop):
    """While Vault is sealed nothing is signed, for the responder or the bot, and nothing is shown."""
    _, grant, _ = shop.open(vault, laptop.public)
    shop.real.bao.seal()
    try:
        for attempt in (
            lambda: SSH.is_gone(vault, grant, frozenset()),
            lambda: SSH.prove(vault, grant),
            lambda: SSH.identities(vault, grant.options),
            lambda: shop.open(vault, laptop.public),
        ):
            with pytest.raises(Unavailable):
                attempt()
    finally:
        shop.real.bao.unseal()
    assert take_back(shop, vault, grant)


# ------------------------------------------------------------------------------------------- what the bot can do there


def test_the_bot_can_end_and_look_at_the_host_and_nothing_else(shop, vault, laptop):
    """Whatever is asked with the bot's own certificate, the host runs its script, which knows three orders."""
    laptop.key = laptop.home / ".ssh" / "bot"
    public = keygen(laptop.key)
    signed = vault.write_own("ssh/sign/shop-watch", {"public_key": public, "ttl": "60s"})["signed_key"]
    made = SimpleNamespace(username="bot", certificate=signed.strip())

    def order(command: str, line: str) -> str:
        words = [*laptop.words(made, login="root"), HOST, command]
        return subprocess.run(words, check=False, capture_output=True, text=True, timeout=60, input=line).stdout.strip()

    refused = '{"error": "no such order"}'
    assert order("id", "id\n") == refused
    assert order("sh", '{"do": "sh"}\n') == refused
    # What does not carry the mark of an emergency request cannot be put on the list, nor be looked at.
    for name in ("root", "token-root", "token-BG-7KQ2-1\nid: token-admin", "*", "", None, 7):
        assert order("", json.dumps({"do": "end", "key_id": name}) + "\n") == refused
    assert json.loads(order("", '{"do": "look", "key_id": "token-BG-NNNN-1"}\n'))["revoked"] is False
    assert laptop.run(made).returncode == 255  # nor is it a login for the responders' account
    words = [*laptop.words(made, "-W", f"{HOST}:{shop.sshd.port}", login="root"), HOST]
    assert "prohibited" in subprocess.run(words, check=False, capture_output=True, text=True, timeout=60).stderr


def test_a_responders_certificate_is_no_login_for_the_bots_account(shop, vault, laptop):
    """Attack: a responder logs in as the bot and ends others' sessions."""
    made, _, _ = shop.open(vault, laptop.public)
    assert laptop.run(made, login="root").returncode == 255


def test_no_key_of_the_bots_is_left_behind(shop, vault, laptop):
    """After the host was asked there is no folder with a key of the bot's."""
    memory = Path("/dev/shm")  # noqa: S108
    before = set(memory.glob("breakglass-*"))
    _, grant, _ = shop.open(vault, laptop.public)
    SSH.prove(vault, grant)
    assert set(memory.glob("breakglass-*")) <= before


def test_the_secret_is_in_no_repr_and_no_log(shop, laptop, caplog):
    """With every logger at DEBUG, neither certificate nor token is in the log of a grant's life, nor in a repr."""
    caplog.set_level(logging.DEBUG)
    vault = shop.vault()
    made, grant, child = shop.open(vault, laptop.public)
    take_back(shop, vault, grant)
    shown = caplog.text + repr([made, grant, child, vault]) + str(made) + str(child)
    assert caplog.records
    assert not [secret for secret in (made.certificate.split()[1], child.token, vault._token) if secret in shown]


# ------------------------------------------------------------------------------------------------------ the settings

GOOD = {
    "mount": "ssh",
    "role": "shop",
    "watch_role": "shop-watch",
    "host": "shop.example.internal",
    "port": "22",
    "host_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMJb9YHer3W6C8W5QJwq130ULL9tQGHKzeZQ0FVNxUN3",
    "user": "shop-emergency",
    "principal": "breakglass-shop",
}


def test_good_settings_say_where_to_sign():
    """A level's path comes from its mount and role."""
    LevelSettings(engine="ssh", token_role="bg-shop", options=GOOD)
    assert SSH.path(GOOD) == "ssh/sign/shop"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("mount", value) for value in ("", "../sys", "a*")),
        *(("role", value) for value in ("", "a/b", "*")),
        *(("watch_role", value) for value in ("", "shop", "a/b")),
        *(("host", value) for value in ("", "-oProxyCommand=id", "a b", "h'")),
        *(("port", value) for value in ("", "0", "65536")),
        *(("host_key", value) for value in ("", "AAAA", "ssh-ed25519 AAAA", GOOD["host_key"] + " host", "* " * 30)),
        *(("user", value) for value in ("", "Root", "-l", "breakglass-watch", "a b")),
        *(("principal", value) for value in ("", "breakglass-watch", "*", "a,b")),
        *(("source_address", value) for value in ("anywhere", "10.0.0.1/8", "10.0.0.0/8,,")),
        ("force_command", "a\nb"),
        *(("watch_user", value) for value in ("-x", "shop-emergency")),
        ("dedicated", "yes"),
        ("unheard_of", "x"),
    ],
)
def test_settings_that_would_reach_elsewhere_are_refused(field, value):
    """What could reach another path, host, account or session is refused, and the field is named."""
    with pytest.raises(Invalid) as caught:
        LevelSettings(engine="ssh", token_role="bg-shop", options=GOOD | {field: value})
    assert set(caught.value.fields) == ({"user"} if value == "shop-emergency" else {field})


def test_root_is_no_account_of_emergency_access_alone():
    """Everything on a host runs as root, and would be ended with the first certificate."""
    with pytest.raises(Invalid, match="runs as root"):
        LevelSettings(engine="ssh", token_role="bg-shop", options=GOOD | {"user": "root", "dedicated": "true"})


# --------------------------------------------------------------------------------------------------- the administrator


def test_a_second_apply_has_nothing_to_do(shop):
    """What the plan makes at Vault is what Vault then shows, setting by setting."""
    operator = Operator(shop.real.bao.addr, shop.real.bao.root_token)
    levels = [LevelSetup(level, timedelta(minutes=30)) for level in (shop.level, shop.fixed)]
    found = {one.write.path: one for one in compare(operator, plan(levels)) if "approle" not in one.write.path}
    del found["sys/policies/acl/breakglass-bot"]  # the other tests' bot
    assert {one.state for one in found.values()} == {"same"}, [one.lines for one in found.values()]
    assert {"sys/mounts/ssh", "ssh/config/ca", "ssh/roles/shop", "ssh/roles/shop-watch"} <= found.keys()


def test_the_steps_for_the_host_are_a_sound_script(tmp_path):
    """A shell can read the printed steps, sshd the blocks in them, and sudo is given one command."""
    options = GOOD | {"dedicated": "true", "force_command": "echo it"}
    steps = SSH.target_steps(options)
    assert steps.splitlines()[0] == "# Host shop.example.internal:22: as root there, when Vault is set up"
    subprocess.run(["/bin/sh", "-n"], input=steps, text=True, check=True)
    assert "breakglass-watch ALL=(root) NOPASSWD: /usr/local/sbin/breakglass-ssh watch'" in steps
    blocks = [part.split("<<'END'\n")[1].split("\nEND")[0] for part in steps.split("\n\n") if "sshd_config.d" in part]
    assert [block.splitlines()[0] for block in blocks] == ["Match User shop-emergency", "Match User breakglass-watch"]
    keygen(tmp_path / "host")
    (tmp_path / "sshd_config").write_text("\n".join([f"HostKey {tmp_path}/host", *blocks, ""]))
    words = ["/usr/sbin/sshd", "-T", "-f", str(tmp_path / "sshd_config"), "-C", "host=h,addr=127.0.0.1,user="]
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    said = [
        subprocess.run([*words[:-1], words[-1] + user], check=True, capture_output=True, text=True).stdout
        for user in ("shop-emergency", "breakglass-watch", "somebody")
    ]
    for responder in ("disableforwarding yes", "authorizedkeysfile none", "authenticationmethods publickey"):
        assert responder in said[0]
        assert responder in said[1]
        assert responder not in said[2]
    assert "authorizedprincipalscommand /usr/local/sbin/breakglass-ssh admit --dedicated %u %k" in said[0]
    assert "revokedkeys /var/lib/breakglass-ssh/revoked" in said[0]
    assert "forcecommand sudo -n /usr/local/sbin/breakglass-ssh watch" in said[1]
    # An account that has other uses keeps its own keys.
    assert "AuthorizedKeysFile" not in SSH.target_steps(GOOD).split("breakglass-watch")[0]


def test_the_bot_cannot_sign_for_a_responder(shop, vault, laptop):
    """Attack: with the bot's own token in hand its own account at the host is opened, and no other."""
    for role in ("shop", "shop-fixed"):
        with pytest.raises(VaultRefused, match="permission denied"):
            vault.write_own(f"ssh/sign/{role}", {"public_key": laptop.public, "ttl": "60s"})
    for more in ({"valid_principals": "breakglass-shop"}, {"extensions": {"permit-pty": ""}}):
        with pytest.raises(VaultRefused, match="permission denied"):
            vault.write_own("ssh/sign/shop-watch", {"public_key": laptop.public, "ttl": "60s", **more})
