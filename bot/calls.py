"""What did Slack say to a call, and did the call have an effect?

Rules
-----
* Everything that can go wrong with a call is a :class:`TroubleError` with a short reason; slack_sdk's errors end here.
* Slack has no idempotency key, so what counts is whether a failed post may exist all the same. A 429 and a plain "no"
  certainly had no effect; a time-out, a cut connection, a 5xx and Slack's "some aspect may have succeeded" may have.
* No call is repeated unseen: slack_sdk's own retry after a cut connection would post twice.
"""

from __future__ import annotations

import logging
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Final
from urllib.request import BaseHandler, HTTPSHandler, ProxyHandler, Request, build_opener

from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError, SlackClientError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bot.views import Message

log = logging.getLogger(__name__)

EVENT_TYPE: Final = "breakglass"  # of the metadata by which a post is found again
_LONGEST_WAIT: Final = 300.0  # seconds; a longer Retry-After is asked again meanwhile
_MOST_PLAIN: Final = 3000

# "It is possible some aspect of the operation succeeded" (Slack's documentation of these errors).
_UNSURE: Final = frozenset({"fatal_error", "internal_error", "service_unavailable", "request_timeout"})
# The blocks are at fault: the words are still posted, without them.
_FORMAT: Final = frozenset(
    {"invalid_blocks", "invalid_blocks_format", "msg_blocks_too_long", "msg_too_long", "invalid_attachments"}
)
# A person whom Slack answers so about cannot be written to, and trying again will not help.
UNREACHABLE: Final = frozenset(
    {
        "channel_not_found",
        "user_not_found",
        "users_not_found",
        "user_disabled",
        "user_not_visible",
        "cannot_dm_bot",
        "is_archived",
        "not_in_channel",
        "messages_tab_disabled",
    }
)
# A file that Slack answers so about will not be taken the next time either.
NO_FILES: Final = frozenset(
    {"missing_scope", "not_allowed_token_type", "file_uploads_disabled", "file_uploads_except_images_disabled"}
)
# The message that was to be changed, or the thread that was to be answered, is no longer there.
DELETED: Final = frozenset({"message_not_found", "cant_update_message", "edit_window_closed"})
NO_THREAD: Final = frozenset({"thread_not_found", "message_not_found", "cannot_reply_to_message"})


class TroubleError(Exception):
    """A call that did not work.

    ``is_sure``: it certainly had no effect. ``wait``: the seconds that a 429 said.
    """

    def __init__(self, reason: str, *, is_sure: bool, wait: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_sure = is_sure
        self.wait = wait


def quiet_client(client: WebClient, seconds: int) -> WebClient:
    """Return a client like this one that never tries again by itself and waits at most ``seconds`` for an answer."""
    return WebClient(
        token=client.token,
        base_url=client.base_url,
        timeout=min(client.timeout, seconds),
        ssl=client.ssl,
        proxy=client.proxy,
        retry_handlers=[],
    )


def call(method: Callable[..., Any], **args: object) -> Any:  # noqa: ANN401 - slack_sdk's answer is a mapping
    """Make one call. Raises :class:`TroubleError`."""
    try:
        return method(**args)
    except SlackApiError as error:
        status = error.response.status_code
        if status == 429:
            wait = _seconds(error.response.headers.get("Retry-After"))
            raise TroubleError("ratelimited", is_sure=True, wait=wait) from None
        if status != 200:
            raise TroubleError(f"http_{status}", is_sure=False) from None
        reason = str(error.response.get("error"))
        if not reason.replace("_", "").isalnum():  # slack_sdk puts the text there of what was not JSON
            raise TroubleError("unreadable_answer", is_sure=False) from None
        raise TroubleError(reason, is_sure=reason not in _UNSURE) from None
    except (SlackClientError, OSError, HTTPException, ValueError) as error:
        raise TroubleError(f"no_answer_{type(error).__name__}", is_sure=False) from None


def say(method: Callable[..., Any], message: Message, **args: object) -> Any:  # noqa: ANN401 - as call
    """Post or update. A message whose blocks Slack does not take is sent as plain words: it must not be lost."""
    try:
        return call(method, text=message.text, blocks=list(message.blocks), **args)
    except TroubleError as trouble:
        if trouble.reason not in _FORMAT:
            raise
        reason = trouble.reason
    log.error("Slack refused the blocks of a message (%s); its words are sent alone", reason)
    return call(method, text=message.text[:_MOST_PLAIN], blocks=[], **args)


def upload(client: WebClient, name: str, data: bytes, described: str = "") -> str:
    """Bring a file's bytes to Slack, where nobody sees them before :func:`share`; return its id. As :func:`call`.

    ``described``: what a picture shows, for who cannot see it; at most 1000 characters.
    """
    more = {"alt_txt": described} if described else {}
    offer = call(client.files_getUploadURLExternal, filename=name, length=len(data), **more)
    handlers: list[BaseHandler] = [] if client.ssl is None else [HTTPSHandler(context=client.ssl)]
    if client.proxy:
        handlers.append(ProxyHandler({"http": client.proxy, "https": client.proxy}))
    request = Request(str(offer["upload_url"]), data=data, method="POST")  # noqa: S310 - the address is Slack's own
    request.add_header("Content-Type", "application/octet-stream")
    try:
        with build_opener(*handlers).open(request, timeout=client.timeout) as answer:
            answer.read()
    except (OSError, HTTPException, ValueError) as error:
        # Bytes that nobody shares are not in any conversation.
        raise TroubleError(f"no_answer_{type(error).__name__}", is_sure=True) from None
    return str(offer["file_id"])


def share(client: WebClient, file_id: str, title: str, channel: str, thread_ts: str | None) -> None:
    """Post a file that was brought in. Raises :class:`TroubleError`."""
    call(
        client.files_completeUploadExternal,
        files=[{"id": file_id, "title": title}],
        channel_id=channel,
        thread_ts=thread_ts,
    )


def metadata(request_id: str, key: str, first: int, last: int) -> dict[str, Any]:
    """Return what a post carries to be found again: the request ("" for none), its purpose, its entries."""
    payload = {"request": request_id, "key": key, "first": first, "last": last}
    return {"event_type": EVENT_TYPE, "event_payload": payload}


def has_file(message: Mapping[str, Any], user_id: str, name: str) -> bool:
    """Whether ``user_id``, the bot itself, shared a file of this name with the message."""
    if message.get("user") != user_id:
        return False
    return any(isinstance(file, dict) and file.get("name") == name for file in message.get("files") or ())


def payload_of(message: Mapping[str, Any], user_id: str) -> Mapping[str, Any]:
    """Return the payload of a post by ``user_id``, the bot itself; empty for anything else.

    Another app in the channel could post our metadata, to make us believe that a card is there.
    """
    found = message.get("metadata") or {}
    if message.get("user") != user_id or found.get("event_type") != EVENT_TYPE:
        return {}
    return found.get("event_payload") or {}


def _seconds(words: str | None) -> float:
    try:
        return min(max(1.0, float(words or 1)), _LONGEST_WAIT)
    except ValueError:
        return 1.0
