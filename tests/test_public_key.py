"""A request for a level that signs a key brings the key, and custodians approve that one.

The Slack side is the sandbox, the desk, Vault and the host that is logged in to are real.
"""

from __future__ import annotations

import json
import logging
import subprocess

import pytest
from counter import CARL, CHEN, RITA
from sqlalchemy import text
from sshd_part import HOST, keygen
from test_listeners import ROOM, WORDS

from bot import modals, views
from storage.standalone import Kind
from workflows import policy as rules
from workflows.errors import Invalid, Unavailable
from workflows.replay import check_database
from workflows.ssh_keys import fingerprint
from workflows.trial import try_level

pytest_plugins = ("test_listeners",)


def _policy(desk, shop):
    """Return the desk's policy with two levels more, one for a shell on the host and one for a single command."""
    words = ""
    for name, level in (("shell", shop.level), ("fixed", shop.fixed)):
        words += f"      {name}:\n        title: A shell on the shop's host\n        engine: ssh\n"
        words += f"        token_role: {level.token_role}\n"
        words += "".join(f"        {key}: {json.dumps(value)}\n" for key, value in level.options.items())
        words += "        quorum: 1\n        longest: 30m\n        default: 10m\n        answer_within: 15m\n"
    text = desk.policy.text.replace("    drill:\n", f"{words}    drill:\n")  # which comes after the levels
    return rules.parse(text, name="with ssh")


@pytest.fixture
def with_ssh(office, shop):
    """The workspace, with a level that signs a key."""
    office.desk.policy = _policy(office.desk, shop)
    office.desk.vault = shop.vault()
    return office


@pytest.fixture
def desk(counter, shop):
    """A desk with a level that signs a key, on each database."""
    counter.policy = _policy(counter, shop)
    counter.vault = shop.vault()
    return counter


def _form(office, level="shell"):
    rita = office.as_(RITA)
    rita.command(f"/breakglass orders-db {level}", ROOM)
    return rita, rita.wait_for_view(views.OPEN_FORM)


def _key_field(view):
    return next((block for block in view["blocks"] if block.get("block_id") == views.PUBLIC_KEY), None)


def test_the_form_asks_for_a_key_only_where_one_is_signed(with_ssh):
    """A level of a database has no such field; with a level that signs a key it is there, and stays when redrawn."""
    rita, view = _form(with_ssh, "read")
    assert _key_field(view) is None
    rita.fill().choose("level", "shell")
    view = with_ssh.window(RITA, "Your SSH public key")
    assert _key_field(view)["element"]["action_id"] == views.PUBLIC_KEY
    form = rita.fill()
    form.enter({views.PUBLIC_KEY: "ssh-ed25519 AAAA rita"})
    form.choose("level", "read")
    with_ssh.window(RITA, "Read everything")


def test_from_the_form_to_the_host_and_back(with_ssh, shop, tmp_path):
    """The key from the form is signed at Reveal and logs in; after Done it does not, and the log says what was seen."""
    public = keygen(tmp_path / "id_ed25519")
    rita, _ = _form(with_ssh)
    assert rita.submit({**WORDS, "duration": "10m", views.PUBLIC_KEY: public})["result"] == "updated"
    (case,) = with_ssh.desk.open_cases()
    row = case.request
    card = with_ssh.draw(row)
    assert fingerprint(public) in json.dumps(card["blocks"])
    assert public.split()[1] not in json.dumps(card)
    with_ssh.desk.approve(CARL, row.id, row.version, now=with_ssh.desk.now)
    mine = with_ssh.draw(row, views.handover, to="U0RITA")
    rita.click(mine, views.REVEAL)
    view = with_ssh.window(RITA, "Paste this into a terminal")
    said = [element["elements"][0]["text"] for block in view["blocks"] for element in block.get("elements", ())
            if element["type"] == "rich_text_preformatted"]  # fmt: skip
    assert said[1:] == [shop.sshd.account, HOST, str(shop.sshd.port)]
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "BREAKGLASS_KEY": str(tmp_path / "id_ed25519")}

    def log_in(line):
        words = ["/bin/sh", "-c", f"{line} id -un"]
        done = subprocess.run(words, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=env)
        return done.stdout.strip()

    line = said[0].replace('"$HOME"', str(tmp_path)).replace("ssh -a", "ssh -F none -a")
    assert log_in(line) == shop.sshd.account
    desk = with_ssh.desk
    desk.release(RITA, row.id, desk.case(row.id).request.version, now=desk.now)
    assert desk.finish(row.id, now=desk.now)
    assert log_in(line) == ""
    end = desk.log_of(row)[-1]
    assert (end.event, end.data["leases"]) == ("credential:end", [])
    assert end.data["shown"] == [
        f"{HOST} has its key id on the revocation list",
        "no session and no process of it is left",
    ]
    assert f"Accepted publickey for {shop.sshd.account}" in shop.sshd.log.read_text()
    assert f"ID token-{row.id}-1 (serial" in shop.sshd.log.read_text()
    # The next form of the same person offers it.
    _, view = _form(with_ssh)
    assert _key_field(view)["element"]["initial_value"] == " ".join(public.split()[:2])


@pytest.mark.parametrize(("typed", "words"), [("hello", "not a public key"), ("ssh-dss AAAA", "this kind")])
def test_a_wrong_key_is_told_under_its_field(with_ssh, typed, words):
    """The form stays open, with a sentence under the field."""
    rita, _ = _form(with_ssh)
    answer = rita.submit({**WORDS, "duration": "10m", views.PUBLIC_KEY: typed})
    assert answer["result"] == "errors"
    assert words in answer["errors"][views.PUBLIC_KEY]
    assert with_ssh.desk.open_cases() == []


def test_a_private_key_in_the_form_is_nowhere(with_ssh, tmp_path, caplog):
    """Pasted by mistake it is called burnt; it is in no table, no entry, no log line, no answer and no redrawn form."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("slack_sdk").setLevel(logging.INFO)  # what Slack sends is logged by its own client
    logging.getLogger("slack_bolt").setLevel(logging.INFO)
    keygen(tmp_path / "id_ed25519")
    private = (tmp_path / "id_ed25519").read_text().replace("\n", " ").strip()
    secret = private.split()[6]
    rita, _ = _form(with_ssh)
    answer = rita.submit({**WORDS, "duration": "10m", views.PUBLIC_KEY: private})
    assert "treat it as burnt" in answer["errors"][views.PUBLIC_KEY]
    assert secret not in json.dumps(answer["errors"])
    rita.fill().choose("level", "fixed")
    account = with_ssh.desk.policy.accounts["orders-db"]
    drawn = modals.request_form(
        [account], with_ssh.desk.policy, account=account, level=account.levels["fixed"], verdict=None,
        values={views.PUBLIC_KEY: private},
    )  # fmt: skip
    assert secret not in json.dumps(drawn)
    assert with_ssh.desk.log_of() == []
    assert secret not in caplog.text
    with with_ssh.desk.database.read() as session:
        assert session.execute(text("SELECT count(*) FROM request")).scalar() == 0


def test_the_entry_has_the_fingerprint_and_the_row_the_key(desk, tmp_path):
    """The log says which key was approved; the key itself is in the row alone, and both agree."""
    public = keygen(tmp_path / "key")
    row = desk.ask(level="shell", minutes=10, public_key=f"  {public} ")
    (entry,) = desk.log_of(row)
    assert entry.data["key_fingerprint"] == fingerprint(public)
    assert desk.fresh(row).request.public_key == " ".join(public.split()[:2])
    with desk.database.read() as session:
        assert check_database(session, now=desk.now).findings == []


def test_a_key_exchanged_in_the_table_is_found(desk, tmp_path):
    """Attack: whoever holds the database puts their own key under an approved request."""
    row = desk.ask(level="shell", minutes=10, public_key=keygen(tmp_path / "key"))
    other = " ".join(keygen(tmp_path / "other").split()[:2])
    for value in (other, None):
        with desk.database.write() as session:
            session.execute(text("UPDATE request SET public_key = :key"), {"key": value})
        with desk.database.read() as session:
            (finding,) = check_database(session, now=desk.now).findings
        assert (finding.kind, finding.request) == (Kind.STATE_WITHOUT_ENTRY, row.id)
        assert "another public key" in finding.sentence


def test_a_level_without_a_key_keeps_none(desk, tmp_path):
    """What is given to a level that signs nothing is not kept; a level that signs one is not opened without."""
    row = desk.ask(public_key=keygen(tmp_path / "key"))
    assert desk.fresh(row).request.public_key is None
    assert "key_fingerprint" not in desk.log_of(row)[0].data
    with pytest.raises(Invalid) as caught:
        desk.ask(level="shell", minutes=10)
    assert set(caught.value.fields) == {views.PUBLIC_KEY}


def test_the_key_on_file_is_the_last_that_was_approved(desk, tmp_path):
    """Only one's own, only approved: a key of a request that nobody approved is not offered again."""
    assert desk.key_on_file("U0RITA") == ""
    first, second = (keygen(tmp_path / name) for name in ("first", "second"))
    row = desk.ask(level="shell", minutes=10, public_key=first)
    assert desk.key_on_file("U0RITA") == ""
    desk.approve(CARL, row.id, row.version, now=desk.now)
    desk.pass_time(minutes=1)
    desk.ask(level="shell", minutes=10, public_key=second)
    assert desk.key_on_file("U0RITA") == " ".join(first.split()[:2])
    assert desk.key_on_file("U0CARL") == ""


def test_a_host_that_is_down_keeps_the_request_ending(desk, shop, tmp_path):
    """Custodians read which host, and when the certificate ends by itself; with the host back it finishes."""
    row = desk.ask(level="shell", minutes=10, public_key=keygen(tmp_path / "key"))
    row = desk.approve(CHEN, row.id, row.version, now=desk.now)
    desk.show(row)
    desk.revoke(CARL, row.id, desk.case(row.id).request.version, now=desk.now)
    shop.sshd.stop()
    try:
        assert not desk.finish(row.id, now=desk.now)
    finally:
        shop.sshd.start()
    why = desk.log_of(row)[-1]
    assert why.event == "credential:escalate" or why.event.endswith("escalate")
    assert f"{HOST}:{shop.sshd.port} cannot be asked" in why.data["why"]
    assert "opens nothing new after" in why.data["why"]
    desk.pass_time(seconds=5)
    assert desk.finish(row.id, now=desk.now)
    with desk.database.read() as session:
        assert check_database(session, now=desk.now).findings == []


def test_a_trial_of_the_level_leaves_nothing(desk, shop):
    """`breakglass check --levels` has a certificate signed and the host end it; both are entries."""
    account = desk.policy.accounts["orders-db"]
    seen = try_level(desk.vault, desk.database, account, account.levels["shell"], RITA)
    assert seen[0] == "a credential is issued"
    assert f"{HOST} has its key id on the revocation list" in seen
    tried = desk.log_of()[-1]
    assert (tried.event, tried.data["passed"]) == ("drill:tried", True)
    assert f"token-{tried.data['name']}" in (shop.sshd.state / "lib" / "ended").read_text()


def test_show_again_gives_a_second_certificate(desk, tmp_path):
    """The second is another than the first, whose number is on the host's list."""
    row = desk.ask(level="shell", minutes=10, public_key=keygen(tmp_path / "key"))
    row = desk.approve(CARL, row.id, row.version, now=desk.now)
    first, second = desk.show(row), desk.show(row)
    assert (first.username, second.username) == (f"{row.id.lower()}-1", f"{row.id.lower()}-2")


def test_a_host_that_is_down_at_the_opening_is_said(desk, shop, tmp_path):
    """Nothing is signed; the button can be pressed again when the host is back."""
    row = desk.ask(level="shell", minutes=10, public_key=keygen(tmp_path / "key"))
    row = desk.approve(CARL, row.id, row.version, now=desk.now)
    shop.sshd.stop()
    try:
        with pytest.raises(Unavailable, match="cannot be asked"):
            desk.show(row)
    finally:
        shop.sshd.start()
    desk.pass_time(seconds=31)
    desk.clock(row.id, now=desk.now)
    assert desk.show(row).username == f"{row.id.lower()}-2"
