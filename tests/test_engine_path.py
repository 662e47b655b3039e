"""What any path of Vault answers is shown as the level says, and has a lease or is refused.

Against a real OpenBao and a real PostgreSQL, which this engine knows nothing of.
"""

from __future__ import annotations

import shlex
import subprocess
from datetime import timedelta
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stages import LONGEST, STAGES, set_up, until

from workflows.engines import ENGINES, LevelSettings, Wish
from workflows.engines.path import Answer
from workflows.errors import Invalid, Unavailable, VaultRefused
from workflows.vault import Secret
from workflows.vault_plan import LevelSetup

ENGINE = ENGINES["path"]
WISH = Wish("BG-7KQ2", "U0RITA")


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """Vault, and a path that makes logins at PostgreSQL."""
    with STAGES["path"](tmp_path_factory.mktemp("path")) as stage:
        yield stage


@pytest.fixture
def vault(stage):
    """The bot's Vault."""
    return stage.vault()


def _answering(data):
    """Return what stands for a Vault whose answer is ``data``."""
    secret = Secret(data, "aws/creds/repair/1", timedelta(hours=1), "r")
    return SimpleNamespace(read_as=lambda child, path: secret)


def _issued(data, **options):
    child = SimpleNamespace(ttl=timedelta(minutes=5))
    settings = {"path": "aws/creds/repair", "identity_field": "access_key", **options}
    return ENGINE.issue(_answering(data), child, settings, WISH)


# -------------------------------------------------------------------------------------------------------- what is shown


def test_the_line_works_when_it_is_pasted(stage, vault):
    """The line of a real credential, given to a real shell, puts it where psql looks for it."""
    credential, grant, _ = stage.open(vault)
    [line] = credential.lines()
    pg = stage.target
    done = subprocess.run(
        ["/bin/sh", "-c", f'{line}; psql -h {pg.host} -p {pg.port} -d orders -Atc "SELECT current_user"'],
        check=True,
        capture_output=True,
        text=True,
        env={"PATH": f"{pg.bin}:/usr/bin:/bin"},
    )
    assert done.stdout.strip() == credential.username
    assert dict(credential.shown) == {
        "username": credential.username,
        "password": dict(credential.variables)["PGPASSWORD"],
    }
    assert stage.take_back(vault, grant)


@given(st.dictionaries(st.sampled_from("ABC"), st.text().filter(lambda s: "\0" not in s), min_size=1))
def test_the_line_quotes_whatever_it_holds(values):
    """Whatever the fields hold, the shell reads back exactly that."""
    made = Answer("x", tuple(values.items()), (), "lease", timedelta(minutes=5))
    [line] = made.lines()
    assert shlex.split(line) == ["export", *(f"{name}={value}" for name, value in values.items())]


def test_only_what_the_level_names_is_shown():
    """Fields that nobody named do not appear anywhere; an empty one is left out; numbers become text."""
    made = _issued(
        {"access_key": "AKIA1", "secret_key": "very", "security_token": None, "arn": "unsaid", "port": 15672},
        exports="access_key=AWS_ACCESS_KEY_ID, secret_key=AWS_SECRET_ACCESS_KEY, security_token=AWS_SESSION_TOKEN",
        shows="port",
    )
    assert made.lines() == ("export AWS_ACCESS_KEY_ID=AKIA1 AWS_SECRET_ACCESS_KEY=very",)
    assert made.shown == (("port", "15672"),)
    assert made.username == "AKIA1"
    assert "unsaid" not in "".join(made.lines()) + repr(made.shown)


def test_a_level_without_exports_has_no_line():
    """What is only to be read off, such as a login for a page, makes no line."""
    assert _issued({"access_key": "a", "password": "p"}, shows="access_key, password").lines() == ()


@pytest.mark.parametrize(
    "data",
    [
        {"access_key": "a"},
        {"access_key": "a", "secret_key": {"nested": "x"}},
        {"access_key": "a", "secret_key": ["x"]},
        {"access_key": "a", "secret_key": "x\0y"},
        {"access_key": "a", "secret_key": True},
        {"access_key": None, "secret_key": "x"},
        {"access_key": "", "secret_key": "x"},
        {"secret_key": "x"},
    ],
)
def test_an_answer_that_does_not_fit_is_unavailable_and_says_no_secret(data):
    """There is a lease by then, so that it is ended like one: Unavailable, never a lasting no; values are not said."""
    with pytest.raises(Unavailable) as caught:
        _issued(data, exports="secret_key=SECRET")
    assert "x" not in str(caught.value).replace("fix", "")


def test_a_level_that_shows_nothing_is_refused():
    """Without exports and shows the requester would see nothing."""
    with pytest.raises(Invalid) as caught:
        LevelSettings(
            engine="path", token_role="bg-x", options={"path": "aws/creds/repair", "identity_field": "access_key"}
        )
    assert set(caught.value.fields) == {"exports"}


# ---------------------------------------------------------------------------------------------------- what has a lease


def _other(stage, path):
    """Set a level up whose path is another one, and return its options and a grant's token."""
    options = {**stage.settings.options, "path": path}
    settings = LevelSettings(engine="path", token_role="bg-other", options=options)
    set_up(stage.bao, stage.level, LevelSetup(settings, LONGEST))
    vault = stage.vault()
    child = vault.open_child("bg-other", timedelta(minutes=5), display_name="BG-7KQ2", metadata={})
    return vault, child, options


def test_what_has_no_lease_is_refused(stage):
    """A value that lies in Vault is there for everybody and for good: it cannot be taken back, so it is not given."""
    stage.bao.call("POST", "sys/mounts/kv", {"type": "kv"})
    stage.bao.call("POST", "kv/root-password", {"username": "root", "password": "standing"})
    vault, child, options = _other(stage, "kv/root-password")
    with pytest.raises(VaultRefused, match="no lease") as caught:
        ENGINE.issue(vault, child, options, WISH)
    assert "standing" not in str(caught.value)
    vault.revoke_accessor(child.accessor)


def test_a_path_that_vault_does_not_have_is_refused(stage):
    """A path without anything behind it is a lasting no."""
    vault, child, options = _other(stage, "nothing/creds/here")
    with pytest.raises(VaultRefused):
        ENGINE.issue(vault, child, options, WISH)
    vault.revoke_accessor(child.accessor)


def test_with_the_target_down_a_revoked_grant_is_not_gone(stage, vault):
    """Nobody looks at the target here, and still it is not gone while Vault could not take it back there."""
    credential, grant, _ = stage.open(vault)
    stage.target.stop()
    try:
        vault.revoke_accessor(grant.accessor)
        assert until(lambda: vault.accessor_is_gone(grant.accessor))
        assert not ENGINE.is_gone(vault, grant, frozenset())
        with pytest.raises(Unavailable):
            ENGINE.hurry(vault, grant)
    finally:
        stage.target.start()
    assert stage.works(credential)
    ENGINE.hurry(vault, grant)
    assert stage.is_over(vault, grant)
    assert not stage.works(credential)
