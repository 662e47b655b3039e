"""A credential that the bot never has comes to its requester once, and nobody else can open it unseen.

Against a real OpenBao and a real PostgreSQL, with the command that is pasted run in a real shell.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import psycopg
import pytest
from counter import CARL, CHEN, RITA
from sqlmodel import select

from bot import entries, modals, views
from bot.sandbox.blocks import Surface, check_view
from storage.audit import check
from storage.models import Grant, State
from workflows import delivery, sweep
from workflows import policy as rules
from workflows.delivery import Delivery, Parcel
from workflows.engines import ENGINES
from workflows.errors import Conflict, Invalid, NotAllowed, Unavailable
from workflows.replay import check_database
from workflows.vault import Vault


def delivered(counter, way, level="read"):
    """Let the policy deliver a level in this way."""
    at = "role: orders-ro\n" if level == "read" else "role: orders-rw\n"
    text = counter.policy.text.replace(at, f"{at}        delivery: {way}\n")
    counter.policy = rules.parse(text, name="demo")
    return counter


@pytest.fixture
def wrapping(counter):
    """A desk whose read level hands out a token that gives the credential once."""
    return delivered(counter, "wrapped")


def paste(parcel):
    """Run the command in a shell as a person does; returns its exit code, what it printed, and what it complained."""
    done = subprocess.run(["sh", "-c", parcel.command()], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


def opened(parcel):
    """Paste, and return the username and the password."""
    _, out, err = paste(parcel)
    data = json.loads(out or "{}").get("data")
    assert data, (out, err)
    return SimpleNamespace(**data, host=parcel.options["host"], port=int(parcel.options["port"]), database="orders")


def tick(counter, **by):
    """Let the clock go on and look."""
    counter.pass_time(**by)
    sweep.tick(counter, now=counter.now)


def is_sound(counter):
    """The log is whole, and the tables say what it says."""
    with counter.database.read() as session:
        assert check(session) is None
        report = check_database(session, now=counter.now)
    assert [str(finding) for finding in report.findings] == []


# --- the whole path ---------------------------------------------------------------------------------------------------


def test_the_pasted_command_gives_the_credential_once(wrapping, real):
    """In a real shell, with nothing but curl: the login opens the orders, ends with Done, and a second paste fails."""
    row = wrapping.approved()
    parcel = wrapping.show(row)
    assert isinstance(parcel, Parcel)
    (grant,) = wrapping.fresh(row).grants
    assert (grant.delivery, grant.opened_at) == ("wrapped", None)
    assert grant.lease_id in real.root_vault().leases("database/creds/orders-ro")
    login = opened(parcel)
    assert grant.identity == login.username == parcel.username
    with real.connect(login) as session:
        assert session.execute("SELECT count(*) FROM orders").fetchone() == (600,)
    code, out, err = paste(parcel)
    assert "Press “Already used” in Slack" in out
    assert login.password not in out + err
    assert code == 0
    tick(wrapping, seconds=2)
    assert wrapping.events(row)[-2:] == ["credential:issue", "credential:unwrap"]
    assert wrapping.fresh(row).grants[0].opened_at == wrapping.now
    wrapping.release(RITA, row.id, 1, now=wrapping.now)
    assert wrapping.finish(row.id, now=wrapping.now)
    with pytest.raises(psycopg.OperationalError):
        real.connect(login)
    end = wrapping.log_of(row)[-1].data
    assert end["leases"] == [grant.lease_id]
    assert "its role does not exist" in end["shown"]
    is_sound(wrapping)


def test_the_token_is_among_nobody_s_arguments(wrapping, tmp_path):
    """What every local user can list of the command's programs holds neither the token nor the secret."""
    parcel = wrapping.show(wrapping.approved())
    spy = tmp_path / "curl"
    spy.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >"{tmp_path}/arguments"\nexec /usr/bin/curl "$@"\n')
    spy.chmod(0o700)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-c", parcel.command()], capture_output=True, text=True, env=environment, timeout=60, check=True
    )
    assert "password" in done.stdout
    arguments = (tmp_path / "arguments").read_text()
    assert "unwrap" in arguments
    assert parcel.token not in arguments


def test_a_private_authority_reaches_curl(tmp_path):
    """Where VAULT_CACERT is set, the command gives it to curl, and without it nothing is added."""
    parcel = Parcel(
        request_id="BG-7KQ2",
        way=Delivery.WRAPPED,
        address="https://vault.example.com:8200",
        namespace="team/a",
        token="hvs.CAESIJ",
        path="database/creds/orders-ro",
        engine="database",
        options={},
        until=None,
    )
    spy = tmp_path / "curl"
    spy.write_text('#!/bin/sh\ncat\nprintf "%s\\n" "$@"\n')
    spy.chmod(0o700)
    said = {}
    for name, more in (("with", {"VAULT_CACERT": "/etc/a b.pem"}), ("without", {})):
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", **more}
        done = subprocess.run(
            ["sh", "-c", parcel.command()], capture_output=True, text=True, env=environment, check=True
        )
        said[name] = done.stdout
    assert said["with"].splitlines()[:3] == [
        'header = "X-Vault-Token: hvs.CAESIJ"',
        'header = "X-Vault-Namespace: team/a"',
        'cacert = "/etc/a b.pem"',
    ]
    assert "cacert" not in said["without"]
    assert "https://vault.example.com:8200/v1/sys/wrapping/unwrap" in said["without"]


def test_the_secret_is_in_no_row_log_or_repr(wrapping, real, caplog):
    """Neither the password nor the token stands anywhere but in the parcel that goes to the requester's window."""
    caplog.set_level(logging.DEBUG)
    row = wrapping.approved()
    parcel = wrapping.show(row)
    login = opened(parcel)
    tick(wrapping, seconds=2)
    with wrapping.database.read() as session:
        rows = [str(grant.model_dump()) for grant in session.exec(select(Grant))]
    case = wrapping.fresh(row)
    drawn = [
        str(draw(case, wrapping.policy, now=wrapping.now))
        for draw in (views.card, views.handover, views.own, views.ask, views.warning)
    ]
    logged = [str(record) for record in wrapping.log_of(row)]
    for secret in (parcel.token, login.password):
        assert secret not in "".join([*rows, *logged, *drawn, caplog.text, repr(parcel), str(parcel)])
        assert secret not in repr(delivery.read_code(replace(parcel, way=Delivery.CLI).code(), row.id))
    assert login.password not in str(modals.handed_over(case, parcel, now=wrapping.now))
    assert parcel.token in str(modals.handed_over(case, parcel, now=wrapping.now))


def test_eight_at_once_each_get_their_own(wrapping, real):
    """Of credentials that are wrapped at the same moment, each one's own lease and name are on record."""
    rows = [wrapping.approved() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        parcels = dict(zip([row.id for row in rows], pool.map(wrapping.show, rows), strict=True))
    for row in rows:
        (grant,) = wrapping.fresh(row).grants
        vault = Vault(parcels[row.id].address, token=parcels[row.id].token)
        secret = vault.unwrap(parcels[row.id].token)
        assert (secret.lease_id, secret.data["username"]) == (grant.lease_id, grant.identity)


def test_one_s_end_is_confirmed_while_others_of_the_level_are_out(wrapping):
    """A lease that the answer hid is known all the same, so that nobody's end waits for somebody else's."""
    mine, other = wrapping.approved(), wrapping.approved()
    wrapping.show(mine)
    wrapping.show(other)
    wrapping.release(RITA, mine.id, 1, now=wrapping.now)
    assert wrapping.finish(mine.id, now=wrapping.now)
    assert wrapping.fresh(other).state is State.ACTIVE


def test_of_a_path_level_the_name_is_not_known_and_the_rest_is_the_same(counter, real):
    """Nobody can look at the target of a path: its credential is opened once, on record, and gone at the end."""
    before, level, after = re.split(
        r"(engine: database.*?)(?=quorum: 1)", counter.policy.text, maxsplit=1, flags=re.DOTALL
    )
    role = re.search("token_role: .*", level)[0]
    options = ("engine: path", role, "path: database/creds/orders-ro", "identity_field: username", "shows: username")
    text = before + "\n        ".join((*options, "delivery: wrapped", "")) + after
    counter.policy = rules.parse(text, name="demo")
    row = counter.approved()
    parcel = counter.show(row)
    (grant,) = counter.fresh(row).grants
    assert (parcel.username, grant.identity) == (None, None)
    assert real.root_vault().leases("database/creds/orders-ro") == {grant.lease_id}
    assert check_view(modals.handed_over(counter.fresh(row), parcel, now=counter.now), Surface.MODAL) == []
    _, out, err = paste(parcel)
    told = json.loads(out)
    assert told["lease_id"] == grant.lease_id, err
    login = SimpleNamespace(**told["data"], host=real.pg.host, port=real.pg.port, database="orders")
    real.connect(login).close()
    tick(counter, seconds=2)
    assert counter.events(row)[-1] == "credential:unwrap"
    counter.release(RITA, row.id, 1, now=counter.now)
    assert counter.finish(row.id, now=counter.now)
    with pytest.raises(psycopg.OperationalError):
        real.connect(login)
    is_sound(counter)


# --- nobody opens it --------------------------------------------------------------------------------------------------


def test_unopened_it_is_taken_back_and_can_be_shown_again(wrapping, real):
    """After its time the token gives nothing, the login is gone, the log says so, and a fresh one can be had."""
    row = wrapping.approved()
    parcel = wrapping.show(row)
    (grant,) = wrapping.fresh(row).grants
    tick(wrapping, seconds=30)
    assert wrapping.events(row)[-1] == "credential:issue"
    tick(wrapping, seconds=26)
    assert wrapping.events(row)[-2:] == ["credential:unopened", "credential:abandon"]
    assert wrapping.fresh(row).state is State.ACTIVE
    assert not real.login_exists(grant.identity)
    assert "Press" in paste(parcel)[1]
    line, _ = entries.line(wrapping.log_of(row)[-2], wrapping.fresh(row), "orders")
    assert "Nobody opened credential 1" in line
    end = wrapping.fresh(row).request.expires_at
    fresh = wrapping.show(row)
    with real.connect(opened(fresh)) as session:
        assert session.execute("SELECT 1").fetchone() == (1,)
    assert wrapping.fresh(row).request.expires_at == end
    assert wrapping.events(row)[-1] == "credential:reissue"
    is_sound(wrapping)


def test_unopened_with_the_target_down_it_is_taken_back_when_it_is_there_again(wrapping, real, monkeypatch):
    """What was found unopened stays so on record, and the end is confirmed later, not "opened" by mistake."""
    row = wrapping.approved()
    wrapping.show(row)

    def away(*_a, **_k):
        raise Unavailable("The database cannot be looked at.")

    with monkeypatch.context() as patch:
        patch.setattr(type(ENGINES["database"]), "prove", away)
        tick(wrapping, seconds=56)
        assert wrapping.events(row)[-1] == "credential:unopened"
    tick(wrapping, seconds=3)
    assert wrapping.events(row)[-1] == "credential:abandon"
    is_sound(wrapping)


def test_after_a_long_absence_the_log_does_not_say_more_than_is_known(wrapping, real):
    """Attack on the evidence: the bot is kept away until the token has run out; "opened" would then be a guess."""
    row = wrapping.approved()
    wrapping.show(row)
    (grant,) = wrapping.fresh(row).grants
    real.root_vault().revoke_accessor(grant.wrap_accessor)  # as Vault does when its time is over
    tick(wrapping, minutes=5)
    record = wrapping.log_of(row)[-1]
    assert (record.event, record.data["is_sure"]) == ("credential:unwrap", False)
    line, _ = entries.line(record, wrapping.fresh(row), "orders")
    assert "or ran out unopened" in line


def test_vault_that_does_not_answer_does_not_keep_a_request_from_its_end(wrapping, real, monkeypatch):
    """While it cannot be seen whether it was opened, the clock still ends the access."""
    row = wrapping.approved(minutes=1)
    wrapping.show(row)

    def away(*_a, **_k):
        raise Unavailable("Vault cannot be reached.")

    with monkeypatch.context() as patch:
        patch.setattr(Vault, "accessor_is_gone", away)
        patch.setattr(Vault, "end_accessor", away)
        tick(wrapping, minutes=2)
        assert wrapping.fresh(row).state is State.ENDING
    tick(wrapping, minutes=1)
    assert wrapping.fresh(row).state is State.ENDED
    is_sound(wrapping)


def test_the_warning_and_the_end_come_also_while_it_is_watched(wrapping):
    """A short access is warned of and ends in time, opened or not."""
    row = wrapping.approved(minutes=1)
    wrapping.show(row)
    tick(wrapping, seconds=2)
    assert wrapping.events(row)[-1] == "credential:warn"
    tick(wrapping, seconds=54)
    assert wrapping.events(row)[-2:] == ["credential:unopened", "credential:abandon"]
    tick(wrapping, seconds=10)
    assert wrapping.fresh(row).state is State.ENDED


# --- somebody else opens it -------------------------------------------------------------------------------------------


def test_an_interception_ends_the_access_and_calls_security(wrapping, real):
    """The thief was first: the requester's try fails in plain words, one click ends it, the alarm says what to do."""
    row = wrapping.approved()
    parcel = wrapping.show(row)
    thief = opened(parcel)
    session = real.connect(thief)
    assert "It was opened before" in paste(parcel)[1]
    wrapping.intercept(RITA, row.id, now=wrapping.now)
    assert wrapping.finish(row.id, now=wrapping.now)
    with pytest.raises(psycopg.Error):
        session.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        real.connect(thief)
    assert wrapping.events(row)[-2:] == ["credential:intercept", "credential:end"]
    case = wrapping.fresh(row)
    assert (case.request.ended_by, case.request.ended_by_user) == ("intercept", "U0RITA")
    line, _ = entries.line(wrapping.log_of(row)[-2], case, "orders")
    assert "ALARM" in line
    assert "sys/wrapping/unwrap" in line
    is_sound(wrapping)


def test_while_it_is_unused_already_used_ends_nothing(wrapping):
    """A wrong alarm is answered, on record, and the credential can still be opened."""
    row = wrapping.approved()
    parcel = wrapping.show(row)
    with pytest.raises(Conflict, match="Vault still holds it"):
        wrapping.intercept(RITA, row.id, now=wrapping.now)
    assert wrapping.events(row)[-1] == "credential:intercept!"
    assert opened(parcel).username


def test_only_the_requester_says_that_it_was_somebody_else(wrapping):
    """Nobody else can end an access with that button, and after the end it is a wrong moment."""
    row = wrapping.approved()
    opened(wrapping.show(row))
    for who in (CARL, CHEN):
        with pytest.raises(NotAllowed):
            wrapping.intercept(who, row.id, now=wrapping.now)
    wrapping.release(RITA, row.id, 1, now=wrapping.now)
    with pytest.raises(Conflict):
        wrapping.intercept(RITA, row.id, now=wrapping.now)


def test_a_credential_that_was_shown_cannot_be_intercepted(counter):
    """Where the window showed the credential itself there is no such button, and the action says so."""
    row = counter.approved()
    counter.show(row)
    with pytest.raises(Conflict, match="No credential"):
        counter.intercept(RITA, row.id, now=counter.now)
    assert "Already used" not in str(views.handover(counter.fresh(row), counter.policy, now=counter.now))


def test_a_rewrapped_token_is_an_interception_too(wrapping, real):
    """Attack: who exchanges the token for one of their own uses it up, and the requester finds out."""
    row = wrapping.approved()
    parcel = wrapping.show(row)
    assert real.root_vault()._own("post", "sys/wrapping/rewrap", {"token": parcel.token}).ok
    assert "It was opened before" in paste(parcel)[1]
    wrapping.intercept(RITA, row.id, now=wrapping.now)
    assert wrapping.finish(row.id, now=wrapping.now)


def test_show_again_ends_the_one_that_is_out(wrapping, real):
    """Rotated before it was opened: the old token gives what opens nothing, or nothing, and there is one login."""
    row = wrapping.approved()
    old = wrapping.show(row)
    first = wrapping.fresh(row).grants[0]
    login = opened(wrapping.show(row))
    assert "Press" in paste(old)[1]
    assert not real.login_exists(first.identity)
    assert real.login_exists(login.username)
    assert wrapping.fresh(row).grants[0].opened_at is None


def test_show_again_after_a_theft_has_the_theft_on_record(wrapping):
    """Who asks for a fresh one before the bot has looked does not wipe out that the first was opened."""
    row = wrapping.approved()
    opened(wrapping.show(row))
    wrapping.show(row)
    assert "credential:unwrap" in wrapping.events(row)
    is_sound(wrapping)


# --- crashes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["wrapped", "found"])
def test_a_crash_between_wrap_and_record_leaves_nothing(wrapping, real, monkeypatch, when):
    """Killed with the token in hand and nothing written: the next tick ends it, and nobody was shown anything."""

    class Killed(BaseException):
        pass

    row = wrapping.approved()
    name = {"wrapped": "_lease_behind", "found": "_identity_behind"}[when]

    def die(*_a, **_k):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(type(wrapping), name, die)
        with pytest.raises(Killed):
            wrapping.show(row)
    assert len(real.root_vault().leases("database/creds/orders-ro")) == 1
    tick(wrapping, seconds=31)
    assert wrapping.events(row)[-1] == "credential:abandon"
    assert not real.root_vault().leases("database/creds/orders-ro")
    assert opened(wrapping.show(row)).username
    is_sound(wrapping)


def test_two_bots_look_at_the_same_moment_and_one_entry_says_so(wrapping, real):
    """Several bots on one database are normal: what each of them sees is written once."""
    row = wrapping.approved()
    opened(wrapping.show(row))
    wrapping.pass_time(seconds=2)
    start = threading.Barrier(4)

    def look(_):
        start.wait()
        wrapping.watch(row.id, now=wrapping.now)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(look, range(4)))
    assert wrapping.events(row).count("credential:unwrap") == 1


# --- the code ---------------------------------------------------------------------------------------------------------


def coded(parcel, **changes):
    """Return the parcel's code with changes, as somebody in between could make them."""
    code = replace(parcel, way=Delivery.CLI).code()
    told = json.loads(base64.urlsafe_b64decode(code + "=" * (-len(code) % 4))) | changes
    return base64.urlsafe_b64encode(json.dumps(told).encode()).decode().rstrip("=")


def test_a_token_that_was_slipped_in_gives_nothing_out(wrapping, real):
    """Attack: the token in the code is exchanged for one of another path. It is refused, and not used up."""
    counter = delivered(wrapping, "wrapped", "write")
    row = counter.approved()
    parcel = counter.show(row)
    other = counter.show(counter.approved(level="write", by=(CARL, CHEN), minutes=10))
    swapped = delivery.read_code(coded(parcel, token=other.token), row.id)
    with pytest.raises(Conflict, match="somebody changed the code") as refused:
        delivery.open_parcel(swapped, Vault(parcel.address, token=other.token), now=counter.now)
    assert refused.value.reason == "swapped"
    assert opened(other).username
    # With the path changed to suit it, it does not fit the options.
    swapped = delivery.read_code(coded(parcel, token=parcel.token, path=other.path), row.id)
    with pytest.raises(Conflict, match="somebody changed the code"):
        delivery.open_parcel(swapped, Vault(parcel.address, token=parcel.token), now=counter.now)
    assert opened(parcel).username


def test_the_code_of_another_request_is_refused(wrapping):
    """The request that was typed and the code's must be the same."""
    row = wrapping.approved()
    code = coded(wrapping.show(row))
    with pytest.raises(Invalid, match=f"the code of {row.id}"):
        delivery.read_code(code, "BG-ZZZZ")
    assert delivery.read_code(f" {code[:40]}\n{code[40:]} ", row.id).request_id == row.id


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2},
        {"token": "a b"},
        {"token": 7},
        {"address": "file:///etc/passwd"},
        {"address": "https://vault'; rm -rf ~"},
        {"namespace": "a\nb"},
        {"options": {"host": "x"}},
        {"options": ["host"]},
        {"engine": "nothing"},
        {"until": "soon"},
        {"until": True},
    ],
)
def test_a_code_that_was_tampered_with_is_none(changes):
    """Nothing of a code reaches a command line or Vault that a policy file could not have said."""
    options = {"mount": "database", "role": "ro", "host": "127.0.0.1", "port": "5432", "database": "orders"}
    told = {
        "v": 1,
        "request": "BG-7KQ2",
        "address": "https://vault.example.com",
        "token": "hvs.CAESIJ",
        "path": "database/creds/ro",
        "engine": "database",
        "options": options,
        "until": 1,
    }

    def code(facts):
        return base64.urlsafe_b64encode(json.dumps(facts).encode()).decode()

    assert delivery.read_code(code(told), "BG-7KQ2").options == options
    with pytest.raises(Invalid):
        delivery.read_code(code(told | changes), "BG-7KQ2")
    for host in ("-oProxyCommand=x", "a b", "$(id)"):
        with pytest.raises(Invalid):
            delivery.read_code(code(told | {"options": options | {"host": host}}), "BG-7KQ2")


@pytest.mark.parametrize("text", ["", "x", "é" * 10, "e30", "W10", "A" * 30_000])
def test_what_is_no_code_is_told_so(text):
    """A slip of the mouse is a sentence, not a traceback."""
    with pytest.raises(Invalid, match="not a code"):
        delivery.read_code(text, "BG-7KQ2")


def test_a_code_whose_time_is_over_says_so(wrapping):
    """Too late is not an alarm: the sentence says what to press."""
    row = wrapping.approved()
    parcel = delivery.read_code(coded(wrapping.show(row)), row.id)
    vault = Vault(parcel.address, token=parcel.token)
    tick(wrapping, seconds=56)
    with pytest.raises(Conflict, match="Show again") as late:
        delivery.open_parcel(parcel, vault, now=wrapping.now)
    assert late.value.reason == "too_late"


def test_opened_by_somebody_else_says_what_to_press(wrapping):
    """Within its minute, a token that gives nothing was used: that is said in capital letters."""
    row = wrapping.approved()
    parcel = delivery.read_code(coded(wrapping.show(row)), row.id)
    opened(replace(parcel, way=Delivery.WRAPPED))
    vault = Vault(parcel.address, token=parcel.token)
    with pytest.raises(Conflict, match=r"SOMEBODY ELSE HAS OPENED.*Already used") as stolen:
        delivery.open_parcel(parcel, vault, now=wrapping.now)
    assert stolen.value.reason == "intercepted"


# --- the policy and the pictures --------------------------------------------------------------------------------------


def test_a_level_of_an_engine_that_cannot_does_not_load():
    """What an engine is not made for refuses at load, with a sentence; so does a word that is none."""

    class Signs:
        """An engine that writes."""

    class Reads:
        """An engine whose answer is the credential, and that starts no program."""

        def credential(self, options, data, lease_id, ttl):
            """Nothing."""

    assert delivery.problem(Signs(), Delivery.MODAL) == ""
    assert "only be delivered by “modal”" in delivery.problem(Signs(), Delivery.WRAPPED)
    assert delivery.problem(Reads(), Delivery.WRAPPED) == ""
    assert "opens no session" in delivery.problem(Reads(), Delivery.CLI)
    assert all(delivery.problem(ENGINES["database"], way) == "" for way in Delivery)


def test_the_buttons_are_there_while_one_is_out(wrapping):
    """“Already used” stands in the requester's message from the opening on, and not before or after."""
    row = wrapping.approved()

    def buttons():
        return str(views.handover(wrapping.fresh(row), wrapping.policy, now=wrapping.now).blocks)

    assert "Already used" not in buttons()
    wrapping.show(row)
    assert "Already used" in buttons()
    assert "can be opened once" in buttons()
    assert views.INTERCEPT not in str(views.card(wrapping.fresh(row), wrapping.policy, now=wrapping.now).blocks)
    tick(wrapping, seconds=56)
    assert "Already used" not in buttons()
