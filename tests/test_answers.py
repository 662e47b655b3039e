"""Does a person whose click or command comes to nothing still get an answer?"""

from __future__ import annotations

from slack_bolt import Ack
from slack_sdk import WebClient

from bot.answers import on_error
from workflows.errors import Conflict


def test_an_acknowledgement_is_not_taken_back_by_a_refusal_right_after_it() -> None:
    """Bolt clears the response of a listener that failed after its acknowledgement; that one is sent all the same."""
    ack = Ack()
    sent = ack()
    assert on_error(Conflict("No."), {"type": "event_callback"}, ack, WebClient(), None) is None
    ack.response = None  # as Bolt's ThreadListenerRunner does
    assert ack.response is sent
