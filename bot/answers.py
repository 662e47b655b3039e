"""Where does the person who is waiting read what came of it?

Rules
-----
* A refusal, or a machine that does not answer, is a sentence on the surface where the person is: under the fields of a
  form, in the window that we opened, beside the button, as the command's answer. Slack never shows its own error.
* What is unexpected is logged under a reference, and the person reads the reference.
* A failure to say something changes nothing and is only logged.
* A secret goes into one call, ``views.update`` of the requester's own window, by a client that logs nothing.
* No request body is logged: it holds what people typed.
"""

from __future__ import annotations

import copy
import logging
import secrets
import string
from contextlib import contextmanager
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Final

from slack_bolt import Ack
from slack_bolt.response import BoltResponse
from slack_sdk.errors import SlackApiError
from slack_sdk.webhook import WebhookClient

from bot import modals
from bot.blockkit import escape, plain, say
from workflows.errors import BreakGlassError, Invalid, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from slack_sdk import WebClient

log = logging.getLogger(__name__)
# Its level is set here, so that no debug setting elsewhere makes slack_sdk write a credential into a log.
_QUIET: Final = logging.getLogger(f"{__name__}.quiet")
_QUIET.setLevel(logging.ERROR)

_LETTERS: Final = string.ascii_lowercase
_WAITS: Final = (0.2, 0.5, 1.0, 2.0)  # seconds between tries to show a credential
_CLOSED: Final = frozenset({"not_found", "view_not_found"})
_PASSING: Final = frozenset(
    {"ratelimited", "rate_limited", "internal_error", "fatal_error", "service_unavailable", "request_timeout"}
)


def open_window(client: WebClient, trigger_id: str, view: modals.View) -> str:
    """Open a window and return its id. Raises what slack_sdk raises."""
    return str(client.views_open(trigger_id=trigger_id, view=view)["view"]["id"])


@contextmanager
def filling(client: WebClient, trigger_id: str, view: modals.View) -> Iterator[str]:
    """Open a window and give its id; whatever then goes wrong is said in it."""
    view_id = open_window(client, trigger_id, view)
    with speaking(client, view_id, view["title"]["text"]):
        yield view_id


@contextmanager
def speaking(
    client: WebClient, view_id: str, title: str, *, closed: Callable[[], None] | None = None
) -> Iterator[None]:
    """Say in an open window whatever goes wrong.

    ``closed`` is called when the person had closed the window before it was filled; without it that is no matter.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the one place that knows the window; said() logs what is unexpected
        if isinstance(error, SlackApiError) and _code(error) in _CLOSED:
            if closed is not None:
                closed()
            return
        client.views_update(view_id=view_id, view=modals.sentence(title, said(error)))


def redraw(client: WebClient, view_id: str, view: modals.View) -> None:
    """Show in a window how it goes; a failure to show it changes nothing and is only logged."""
    try:
        client.views_update(view_id=view_id, view=view)
    except (SlackApiError, OSError, HTTPException) as error:
        log.info("a window was not redrawn: %s", _code(error))


def tell(body: Mapping[str, Any], client: WebClient, text: str) -> None:
    """Say something to the one person who clicked; a failure to say it changes nothing and is only logged."""
    try:
        if body.get("response_url"):
            _post_privately(str(body["response_url"]), client, say(text))
        elif (body.get("view") or {}).get("type") == "modal":
            client.views_push(trigger_id=body["trigger_id"], view=modals.sentence(modals.TITLE, text))
        else:
            client.views_open(trigger_id=body["trigger_id"], view=modals.sentence(modals.TITLE, text))
    except (SlackApiError, OSError, HTTPException) as error:
        log.warning("an answer was not delivered: %s", _code(error))


def _post_privately(url: str, client: WebClient, text: str) -> None:
    hook = WebhookClient(url, timeout=client.timeout, proxy=client.proxy, ssl=client.ssl, logger=_QUIET)
    answer = hook.send(text=text, response_type="ephemeral", replace_original=False)
    if answer.status_code != 200:
        log.warning("an answer was not delivered: status %s", answer.status_code)


def said(error: Exception) -> str:
    """Return the sentence for the person. What is unexpected is logged under a reference, which the sentence names."""
    if isinstance(error, BreakGlassError):
        log.info("told somebody: %s", error.reason)
        return error.sentence
    if isinstance(error, SlackApiError):
        log.warning("Slack said: %s", _code(error))
        return f"Slack did not take part in this ({_code(error)}). Try again; nothing is lost."
    reference = "".join(secrets.choice(_LETTERS) for _ in range(8))
    log.error("unexpected, reference %s", reference, exc_info=error)
    return (
        f"Something unexpected happened. Look at the request's card before you try again, and give whoever runs this "
        f"bot the reference {reference}."
    )


class _KeptAck(Ack):
    """An acknowledgement that cannot be taken back."""

    def __setattr__(self, name: str, value: object) -> None:
        # Bolt sets the response of a listener that fails to None after its error handler, also when the acknowledgement
        # stands there and was not seen yet by the thread that sends it (it looks every 10 ms): the click would fail.
        if name != "response" or value is not None:
            super().__setattr__(name, value)


def on_error(
    error: Exception, body: dict[str, Any], ack: Ack, client: WebClient, response: BoltResponse | None
) -> BoltResponse | None:
    """Say what went wrong on the surface where the person waits; the app's one error handler.

    Bolt gives ``response=None`` when the acknowledgement is already out; then nothing may be returned.
    """
    if response is None:
        ack.__class__ = _KeptAck
    text = said(error)
    kind = body.get("type")
    if kind == "view_submission" and response is not None:
        return _on_form(error, body["view"], text)
    if "command" in body and response is not None:
        return BoltResponse(
            status=200,
            body={"response_type": "ephemeral", "text": say(text)},
            headers={"content-type": "application/json"},
        )
    if kind == "block_actions" or "command" in body:
        if response is not None:
            # Out first: the answer may take longer than Slack's patience. Bolt sends what stands in ``response``.
            response.status, response.body = 200, ""
            ack()
        tell(body, client, text)
    return BoltResponse(status=200) if response is not None else None


def _on_form(error: Exception, view: Mapping[str, Any], text: str) -> BoltResponse:
    """Answer a form: under its fields where that helps, else in its place."""
    inputs = [block["block_id"] for block in view["blocks"] if block["type"] == "input"]
    fields: dict[str, str] = {}
    if isinstance(error, Invalid):
        for name, sentence in error.fields.items():
            place = name if name in inputs else next((word for word in inputs if word.startswith(name[:9])), inputs[0])
            fields[place] = f"{fields[place]} {sentence}" if place in fields else sentence
    elif not isinstance(error, BreakGlassError) or isinstance(error, Unavailable):
        # It may work in a moment: keep the form, and with it what was typed at three in the morning.
        fields = {inputs[-1]: text}
    body: dict[str, Any]
    if fields:
        errors = {place: plain(sentence, 500) for place, sentence in fields.items()}
        body = {"response_action": "errors", "errors": errors}
    else:
        body = {"response_action": "update", "view": modals.sentence(view["title"]["text"], text)}
    return BoltResponse(status=200, body=body, headers={"content-type": "application/json"})


def _code(error: Exception) -> str:
    if isinstance(error, SlackApiError):
        found = error.response.get("error") if error.response is not None else None
        return escape(str(found or "no answer"), 80)
    return type(error).__name__


def _status(error: Exception) -> int:
    response = getattr(error, "response", None)
    return int(getattr(response, "status_code", 0) or 0)


def _is_passing(error: Exception) -> bool:
    if not isinstance(error, SlackApiError):
        return True  # the network
    status = _status(error)
    return status == 429 or status >= 500 or _code(error) in _PASSING


def _retry_after(error: Exception) -> float:
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    found = {str(name).lower(): given for name, given in headers.items()}.get("retry-after")
    found = found[0] if isinstance(found, list) else found
    return min(float(found), 30.0) if found and str(found).isdigit() else 0.0


def show_secret(client: WebClient, view_id: str, view: modals.View, *, pause: Callable[[float], None]) -> None:
    """Put a secret on the requester's screen; a moment's failure of Slack must not cost them the credential."""
    quiet = copy.copy(client)
    quiet._logger = _QUIET  # noqa: SLF001 - slack_sdk logs whole requests at DEBUG, and has no other switch
    for wait in (*_WAITS, None):
        try:
            quiet.views_update(view_id=view_id, view=view)
        except (SlackApiError, OSError, HTTPException) as error:
            if wait is None or not _is_passing(error):
                raise
            pause(max(wait, _retry_after(error)))
        else:
            return
