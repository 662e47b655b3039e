"""What does every engine keep to? The same tests for each of the registry, against real servers.

A new engine needs a stage in ``stages.py``, a few lines; without one every test here fails for it. What is particular
to an engine is in ``test_engine_<name>.py``.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import textwrap
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import requests
import yaml
from counter import CARL, PATIENCE, POLICY, RITA, Counter, People
from stages import STAGES, until

from bot import modals
from bot.sandbox.blocks import Surface, check_view
from storage.database import Database
from storage.models import State
from workflows import delivery, engines
from workflows import policy as rules
from workflows.engines import ENGINES, LevelSettings, Wish
from workflows.engines.seam import Exclusive, OneRead, Opened
from workflows.errors import Invalid, Unavailable
from workflows.vault import Vault
from workflows.vault_apply import NEW, SAME, Operator, compare
from workflows.vault_plan import plan

NOBODYS = frozenset()
ENGINES_MD = Path(__file__).parent.parent / "workflows" / "ENGINES.md"


@pytest.fixture(scope="module", params=sorted(ENGINES))
def stage(request, tmp_path_factory):
    """The stage of each engine, one after the other."""
    assert request.param in STAGES, f"the engine {request.param} has no stage in tests/stages.py"
    with STAGES[request.param](tmp_path_factory.mktemp(request.param)) as stage:
        yield stage


@pytest.fixture
def vault(stage):
    """The bot's Vault."""
    return stage.vault()


def _calls(stage, vault, grant):
    """Everything that an engine asks Vault for, as calls that can be made."""
    options, engine = stage.settings.options, stage.engine
    child = stage.child(vault)
    wish = Wish("BG-7KQ2", "U0RITA", stage.public_key)
    return {
        "issue": lambda: engine.issue(vault, child, options, wish),
        "is_gone": lambda: engine.is_gone(vault, grant, NOBODYS),
        "is_gone, lease unknown": lambda: engine.is_gone(vault, replace(grant, lease_id=None), NOBODYS),
        "hurry": lambda: engine.hurry(vault, grant),
    }


def _all_unavailable(calls):
    for name, call in calls.items():
        with pytest.raises(Unavailable):
            pytest.fail(f"{name} returned {call()!r}")


# --------------------------------------------------------------------------------------------------- a grant's life


def test_what_is_issued_works_and_is_gone_after_its_end(stage, vault):
    """A credential opens its target until it is taken back; then Vault and the target say gone, and it opens none."""
    credential, grant, _ = stage.open(vault, name="BG-4LFE")
    assert stage.works(credential)
    assert not stage.engine.is_gone(vault, grant, NOBODYS)
    assert stage.take_back(vault, grant)
    assert until(lambda: not stage.works(credential))
    assert vault.lease(credential.lease_id) is None if credential.lease_id else True


def test_unwrapped_elsewhere_it_is_the_same_credential(stage, vault):
    """What Vault wrapped for a requester works when another machine opens it, and ends with the grant's token.

    An engine that cannot be wrapped says so of a level that asks for it.
    """
    engine, options = stage.engine, stage.settings.options
    if not isinstance(engine, OneRead):
        assert all(delivery.problem(engine, way) for way in ("wrapped", "cli"))
        return
    child = stage.child(vault, name="BG-4WRP")
    wrapped = vault.wrap_as(child, engine.path(options), delivery.WRAP_TTL)
    assert (wrapped.creation_path, wrapped.ttl) == (engine.path(options), delivery.WRAP_TTL)
    assert wrapped.token not in repr(wrapped)
    secret = Vault(stage.bao.addr, token=wrapped.token).unwrap(wrapped.token)
    assert secret.lease_id.rpartition("/")[0] == engine.lease_prefix(options)
    credential = engine.credential(options, secret.data, secret.lease_id, secret.lease_duration)
    assert stage.works(credential)
    if isinstance(engine, Opened):
        session = engine.session(credential)
        assert session.arguments[0] == engine.program
        for hidden in stage.secrets(credential):
            assert hidden not in f"{session!r} {session.arguments}"
    vault.revoke_accessor(child.accessor)
    assert until(lambda: not stage.works(credential))


def test_it_names_its_request_at_the_target(stage, vault):
    """Whoever looks at the target's users or its log reads there which request this is."""
    credential, grant, _ = stage.open(vault, name="BG-4NME")
    assert credential.username
    assert ("bg-4nme" in credential.username.lower()) is stage.is_named
    assert stage.take_back(vault, grant)


def test_it_is_never_longer_than_granted(stage, vault):
    """It says no more time than was granted, and nobody has to revoke it for it to be over."""
    credential, grant, child = stage.open(vault, ttl=stage.short)
    assert credential.ttl <= child.ttl == stage.short
    assert until(lambda: stage.is_over(vault, grant), 60)
    assert until(lambda: not stage.works(credential))


def test_taking_it_back_twice_is_fine(stage, vault):
    """What is gone stays gone, and asking again or hurrying changes nothing."""
    _, grant, _ = stage.open(vault)
    assert stage.take_back(vault, grant)
    stage.engine.hurry(vault, grant)
    assert stage.take_back(vault, grant)


def test_one_grants_end_leaves_another_alone(stage, vault):
    """Two people's grants of one level: when one ends, the other goes on. What only one can have, the first keeps."""
    if isinstance(stage.engine, Exclusive):
        credential, other, _ = stage.open(vault, name="BG-4AAA")
        child = stage.child(vault, name="BG-4BBB")
        with pytest.raises(Unavailable):
            stage.engine.issue(vault, child, stage.settings.options, Wish("BG-4BBB", "U0CARL", stage.public_key))
        vault.revoke_accessor(child.accessor)
        assert until(lambda: vault.accessor_is_gone(child.accessor))
    else:
        _, ended, _ = stage.open(vault, name="BG-4AAA")
        credential, other, _ = stage.open(vault, name="BG-4BBB")
        assert stage.take_back(vault, ended)
    assert stage.works(credential)
    assert not stage.engine.is_gone(vault, other, NOBODYS)
    assert stage.take_back(vault, other)


def test_a_crash_before_it_is_recorded_leaves_nothing_unseen(stage, vault):
    """With neither lease nor name on record, the grant is not gone before it is, and then it is seen to be gone."""
    credential, grant, _ = stage.open(vault, name="BG-4CRA")
    lost = replace(grant, lease_id=None, identity=None)
    assert not stage.engine.is_gone(vault, lost, NOBODYS)
    assert stage.take_back(vault, lost)
    assert until(lambda: not stage.works(credential))


def test_a_token_that_made_nothing_is_gone_when_it_is_revoked(stage, vault):
    """A bot that died before reading leaves a token and nothing else, and its end is seen."""
    _, grant, _ = stage.open(vault)
    assert stage.take_back(vault, grant)
    child = stage.child(vault)
    empty = replace(grant, accessor=child.accessor, lease_id=None, identity=None)
    assert not stage.engine.is_gone(vault, empty, NOBODYS)
    assert stage.take_back(vault, empty)


# ------------------------------------------------------------------------------------------------------ at the desk


@pytest.fixture
def desk(stage, vault, sqlite_template, tmp_path):
    """A desk whose level "read" is the engine's, read from a policy file."""
    text = POLICY.read_text(encoding="utf-8")
    old = text[text.index("        engine: database") : text.index("        quorum: 1")]
    keys = {"engine": stage.settings.engine, "token_role": stage.settings.token_role, **stage.settings.options}
    text = text.replace(old, "".join(f"        {key}: {json.dumps(value)}\n" for key, value in keys.items()), 1)
    shutil.copyfile(sqlite_template, tmp_path / "desk.db")
    people, database = People(), Database(f"sqlite:///{tmp_path / 'desk.db'}")
    desk = Counter(database, rules.parse(text, name="stage"), people, vault, team="T0SANDBOX", patience=PATIENCE)
    desk.now, desk.people = datetime.now(UTC), people
    yield desk
    database.close()


def _approved(desk, stage):
    row = desk.ask(public_key=stage.public_key or "")
    return desk.approve(CARL, row.id, row.version, now=desk.now)


def test_a_request_lives_and_ends_at_the_desk(stage, desk):
    """Asked for, approved, shown, shown afresh, handed back: first one is over, then the other, and the log says so."""
    row = _approved(desk, stage)
    first = desk.show(row)
    assert stage.works(first)
    second = desk.show(row)
    assert until(lambda: not stage.works(first))
    assert stage.works(second)
    desk.release(RITA, row.id, desk.case(row.id).request.version, now=desk.now)
    assert until(lambda: desk.finish(row.id, now=desk.now))
    assert until(lambda: not stage.works(second))
    assert desk.case(row.id).state is State.ENDED
    entries = desk.log_of(row)
    end = next(entry for entry in entries if entry.event == "credential:end")
    assert bool(end.data["shown"]) is stage.is_seen
    told = json.dumps([entry.data for entry in entries])
    assert not [secret for made in (first, second) for secret in stage.secrets(made) if secret in told]


def test_the_window_can_show_it(stage, desk):
    """Slack takes the window with the credential in it, and what is secret stands there and nowhere else."""
    row = _approved(desk, stage)
    made = desk.show(row)
    view = modals.credential(desk.case(row.id), made, now=desk.now)
    assert check_view(view, Surface.MODAL) == []
    shown = json.dumps(view)
    assert all(json.dumps(secret)[1:-1] in shown for secret in stage.secrets(made))
    desk.release(RITA, row.id, desk.case(row.id).request.version, now=desk.now)
    assert until(lambda: desk.finish(row.id, now=desk.now))


# ------------------------------------------------------------------------------------------------ when Vault is away


def test_a_sealed_vault_is_unavailable(stage, vault):
    """While Vault is sealed nothing is issued and nothing is called gone."""
    _, grant, _ = stage.open(vault)
    calls = _calls(stage, vault, grant)
    stage.bao.seal()
    try:
        _all_unavailable(calls)
    finally:
        stage.bao.unseal()
    assert stage.take_back(vault, grant)


def test_a_dead_vault_is_unavailable_and_its_grants_end_when_it_is_back(stage, vault):
    """While Vault's process is dead nothing is issued and nothing is called gone; back again, it knows the grant."""
    credential, grant, _ = stage.open(vault)
    calls = _calls(stage, vault, grant)
    stage.bao.kill()
    try:
        _all_unavailable(calls)
    finally:
        stage.bao.start()
    assert not stage.engine.is_gone(vault, grant, NOBODYS)
    assert stage.take_back(vault, grant)
    assert until(lambda: not stage.works(credential))


# ---------------------------------------------------------------------------------------------------- who may do what


def test_the_bots_own_token_cannot_make_one(stage, vault):
    """What a grant's token may do, the bot's may not."""
    vault.log_in()
    for rule in stage.engine.child_rules(stage.settings.options):
        assert vault.capabilities(rule.path) == {"deny"}


def test_a_grants_token_can_do_nothing_else(stage, vault):
    """A stolen grant token reads no other path, makes no tokens, and cannot make its own life longer."""
    _, grant, child = stage.open(vault)
    allowed = {rule.path for rule in stage.engine.child_rules(stage.settings.options)}
    for path in ("sys/policies/acl/breakglass-bot", "auth/token/create", "auth/token/renew-self", "sys/leases/revoke"):
        assert path not in allowed
        assert vault.capabilities(path, accessor=child.accessor) == {"deny"}
    renewed = requests.post(
        f"{stage.bao.addr}/v1/auth/token/renew-self", headers={"X-Vault-Token": child.token}, json={}, timeout=30
    )
    assert renewed.status_code in {400, 403}
    assert stage.take_back(vault, grant)


def test_a_second_set_up_has_nothing_to_do(stage):
    """What an operator set up is found as it was planned; a level whose token role nobody made is found to be new."""
    operator = Operator(stage.bao.addr, stage.bao.root_token)
    assert {one.state for one in compare(operator, plan([stage.level]))} == {SAME}
    other = replace(stage.level, settings=replace(stage.settings, token_role="bg-unmade"))
    found = {one.write.path: one.state for one in compare(operator, plan([other]))}
    assert found["auth/token/roles/bg-unmade"] == NEW


# ------------------------------------------------------------------------------------------------------ what is shown


def test_its_secret_is_in_no_repr_and_no_log(stage, caplog):
    """With every logger at DEBUG, neither secret nor token is in the log of a grant's life, nor in a repr."""
    caplog.set_level(logging.DEBUG)
    vault = stage.vault()
    credential, grant, child = stage.open(vault)
    guarded = (*stage.secrets(credential), child.token, stage.secret_id)
    assert all(len(secret) > 8 for secret in guarded)
    assert stage.take_back(vault, grant)
    shown = caplog.text + repr([credential, grant, child, vault, stage]) + str(credential) + f"{child}"
    assert caplog.records
    assert not [secret for secret in guarded if secret in shown]


def test_its_lines_are_for_a_shell(stage, vault):
    """Each line is one line, and a shell reads it without an error."""
    credential, grant, _ = stage.open(vault)
    for line in credential.lines():
        assert "\n" not in line
    assert stage.take_back(vault, grant)


# ------------------------------------------------------------------------------------------------------- the options


def test_options_that_would_reach_elsewhere_are_refused(stage):
    """A value with a slash too many, a glob, ".." or shell words is refused, and its field is named."""
    assert stage.elsewhere
    for key, values in stage.elsewhere.items():
        for value in values:
            with pytest.raises(Invalid) as caught:
                LevelSettings(
                    engine=stage.settings.engine,
                    token_role=stage.settings.token_role,
                    options={**stage.settings.options, key: value},
                )
            assert set(caught.value.fields) == {key}, (key, value)


def test_an_option_that_is_missing_or_unknown_is_named(stage):
    """Each required option is asked for by name, and one that the engine does not know is refused."""
    good = dict(stage.settings.options)
    for key, is_required in stage.engine.keys.items():
        if is_required:
            rest = {name: value for name, value in good.items() if name != key}
            with pytest.raises(Invalid) as caught:
                LevelSettings(engine=stage.settings.engine, token_role="bg-x", options=rest)
            assert key in caught.value.fields
    with pytest.raises(Invalid) as caught:
        LevelSettings(engine=stage.settings.engine, token_role="bg-x", options={**good, "unheard_of": "x"})
    assert set(caught.value.fields) == {"unheard_of"}


# ------------------------------------------------------------------------------------------------------ the document


def test_the_document_names_every_method_and_every_engine():
    """ENGINES.md tells of each thing that an engine is asked for, and has a row for each engine of the registry."""
    text = ENGINES_MD.read_text(encoding="utf-8")
    for protocol in (engines.Engine, engines.Credential):
        for name in vars(protocol):
            if not name.startswith("_"):
                assert re.search(rf"`{name}[`(]", text), name
    rows = re.findall(r"^\| `([a-z]+)` \|", text, re.MULTILINE)
    assert rows == sorted(ENGINES)


def test_what_the_document_quotes_stands_in_the_source():
    """Each piece of code in README and ENGINES.md stands in the registry, path.py or its stage, but for its breaks."""
    here = Path(engines.__file__)
    places = (here, here.with_name("path.py"), Path(__file__).with_name("stages.py"))
    source = "".join("".join(place.read_text(encoding="utf-8").split()) for place in places)
    for document, least in ((ENGINES_MD, 7), (ENGINES_MD.parent.parent / "README.md", 1)):
        text = document.read_text(encoding="utf-8")
        quoted = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        assert len(quoted) >= least
        for piece in quoted:
            assert "".join(piece.split()) in source, piece


def test_the_documents_level_loads():
    """The level that ENGINES.md shows is one that a policy file may hold."""
    (shown,) = re.findall(r"^```yaml\n(.*?)^```$", ENGINES_MD.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    options = yaml.safe_load(textwrap.dedent(shown))
    LevelSettings(engine=options.pop("engine"), token_role=options.pop("token_role"), options=options)
