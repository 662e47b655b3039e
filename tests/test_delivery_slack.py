"""What does the requester see of a credential that the bot never has, in a Slack as strict as the real one?"""

from __future__ import annotations

import logging
import shlex

import pytest
from counter import CARL, RITA
from test_delivery import delivered, paste
from test_listeners import _boxes, office  # noqa: F401 - a fixture

from bot import views
from storage.models import State
from workflows import delivery
from workflows.delivery import Parcel


def revealed(office, row, words):  # noqa: F811
    """Press Reveal and return the boxes of the window."""
    office.as_(RITA).click(office.draw(row, views.handover, to="U0RITA"), views.REVEAL)
    return _boxes(office.window(RITA, words))


def test_slack_never_has_the_secret(office, caplog):  # noqa: F811
    """The window holds one command. Pasted, it gives a password that no call, row or log line has ever held."""
    delivered(office.desk, "wrapped")
    caplog.set_level(logging.DEBUG)
    logging.getLogger("slack_sdk").setLevel(logging.DEBUG)
    row = office.desk.approved()
    command, user, host, _port, name = revealed(office, row, "works once")
    assert (user, host, name) == (office.desk.case(row.id).grants[0].identity, "127.0.0.1", "orders")
    assert "The access ends" in str(office.as_(RITA).view()["blocks"])
    _, out, _ = paste(_Pasted(command))
    password = out.partition('"password":"')[2].partition('"')[0]
    assert password
    token = shlex.split(command.partition("|")[0])[2]
    assert token.startswith(("s.", "hvs."))
    carrying = [entry for entry in office.driver.journal() if token in str(entry)]
    assert {(entry["kind"], entry.get("method")) for entry in carrying} == {("api", "views.update")}
    logged = caplog.text + str(list(office.desk.log_of())) + str(office.desk.case(row.id))
    assert token not in logged
    assert password not in logged + str(office.driver.journal())
    logging.getLogger("slack_sdk").setLevel(logging.NOTSET)


class _Pasted:
    """A line that was copied out of a window."""

    def __init__(self, line):
        self.line = line

    def command(self):
        """Return it."""
        return self.line


def test_the_window_of_the_command_line_has_a_word_and_a_code(office):  # noqa: F811
    """Of a level that is opened on the responder's machine the window holds what is typed there, and what it asks."""
    delivered(office.desk, "cli")
    row = office.desk.approved()
    command, code = revealed(office, row, "breakglass open")
    assert command == f"breakglass open {row.id}"
    assert delivery.read_code(code, row.id).path == "database/creds/orders-ro"


def test_already_used_is_a_button_that_asks_vault_first(office):  # noqa: F811
    """While Vault holds it unopened the button says so; once somebody has opened it, it ends the access."""
    delivered(office.desk, "wrapped")
    row = office.desk.approved()
    command, *_ = revealed(office, row, "works once")
    message = office.draw(row, views.handover, to="U0RITA")
    assert office.as_(RITA).click(message, views.INTERCEPT)["acknowledged"]
    office.told(RITA, "Vault still holds it")
    assert office.state(row) is State.ACTIVE
    paste(_Pasted(command))
    office.as_(RITA).click(message, views.INTERCEPT)
    office.told(RITA, "Security is called.")
    assert office.state(row) is State.ENDED
    assert office.events(row)[-2:] == ["credential:intercept", "credential:end"]


def test_show_again_gives_a_fresh_command(office):  # noqa: F811
    """A lost or late command costs one click; the earlier one gives nothing any more."""
    delivered(office.desk, "wrapped")
    row = office.desk.approved()
    first, *_ = revealed(office, row, "works once")
    office.as_(RITA).close()
    second, *_ = revealed(office, row, "works once")
    assert "It was opened before" in paste(_Pasted(first))[1]
    assert '"password"' in paste(_Pasted(second))[1]


@pytest.mark.parametrize("way", ["wrapped", "cli"])
def test_a_custodian_s_revoke_beats_the_token(office, way):  # noqa: F811
    """Revoked before it was opened: the token gives nothing, and nobody has anything."""
    delivered(office.desk, way)
    row = office.desk.approved()
    version = office.desk.case(row.id).request.version
    parcel = office.desk.issue(office.desk.reveal(RITA, row.id, version, now=office.desk.now), now=office.desk.now)
    assert isinstance(parcel, Parcel)
    office.as_(CARL).click(office.draw(row), views.REVOKE)
    office.told(CARL, "nothing of it is left")
    assert "It was opened before" in paste(parcel)[1]
