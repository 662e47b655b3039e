"""A copy that is sent to a web address: what does its receiver get, and how does it know that it is ours?

A delivery is a POST of JSON lines (``application/x-ndjson``): ``{"log":…}`` with the log's name, then for each entry
``{"seq":…,"leaf_hash":…,"entry":…}`` and for a new signed head ``{"head":…}`` with the whole note. What stands after
``"entry":`` up to the last brace is the entry's body, byte by byte as it is hashed; ``null`` when it was pruned.

Rules
-----
* It is signed as Standard Webhooks do: ``webhook-id``, ``webhook-timestamp`` and ``webhook-signature`` (``v1,`` and the
  base64 of HMAC-SHA256 over ``id.timestamp.body``). The receiver checks the signature and that the time is near.
* A status of 200 to 299 acknowledges the whole delivery; whoever gives it has to have stored it. All else is no
  acknowledgement, and what the answer says beyond its status is not read.
* Idempotent at the receiver: a delivery whose answer was lost comes again, with the same id if it is the same batch.
  An entry is known by ``seq``; one that comes again with another ``leaf_hash`` is another log, or a rewritten one.
* What the address holds cannot be read back, so that it cannot be compared here.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from storage.followers.seam import CopyTrouble, Item, Kind, NotReadable, Place
from storage.followers.wire import SECONDS, Web

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from storage.followers.seam import SignedNote

_LEAST_SECRET: Final = 24  # bytes, and 64 at the most: Standard Webhooks
_MOST_SECRET: Final = 64


class WebhookCopy:
    """The copy at ``url``; ``secret`` are the bytes of the HMAC key."""

    is_readable = False

    def __init__(
        self, name: str, url: str, secret: bytes, origin: str, *, ca_file: str | None = None, seconds: float = SECONDS
    ) -> None:
        self.name = name
        self._web = Web("the webhook", name, url, ca_file, seconds=seconds)
        self._secret = secret
        self._origin = origin

    def __repr__(self) -> str:
        return f"WebhookCopy({self.name!r})"

    def deliver(self, items: Sequence[Item], head: SignedNote | None, *, now: datetime) -> int:
        """Send them in one POST; see :class:`storage.followers.seam.Copy`."""
        if items or head is not None:
            body = self._body(items, head)
            answer = self._web.post(body, self._headers(body, now), is_read=False)
            if not 200 <= answer.status < 300:
                raise self._web.refused(answer)
        return items[-1].seq if items else -1

    def _body(self, items: Sequence[Item], head: SignedNote | None) -> bytes:
        lines = [_json({"log": self._origin})]
        lines += [
            b'{"seq":%d,"leaf_hash":"%s","entry":%s}'
            % (item.seq, item.leaf_hash.hex().encode(), b"null" if item.body is None else item.body)
            for item in items
        ]
        if head is not None:
            lines.append(_json({"head": head.decode()}))
        return b"\n".join([*lines, b""])

    def _headers(self, body: bytes, now: datetime) -> dict[str, str]:
        # The id is the content's, so that a receiver knows a delivery that it has had. It may hold no full stop.
        identity, at = f"breakglass_{sha256(body).hexdigest()}", str(int(now.timestamp()))
        signature = hmac.digest(self._secret, f"{identity}.{at}.".encode() + body, "sha256")
        return {
            "Content-Type": "application/x-ndjson",
            "webhook-id": identity,
            "webhook-timestamp": at,
            "webhook-signature": f"v1,{base64.b64encode(signature).decode()}",
        }

    def position(self) -> int | None:
        """Raise NotReadable."""
        raise NotReadable(f"The webhook {self.name} cannot be asked what its receiver holds.")

    def read(self, start: int = 0) -> Iterator[Item]:  # noqa: ARG002
        """Raise NotReadable."""
        raise NotReadable(f"The webhook {self.name} cannot be read back.")


def _json(value: dict[str, str]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def build(place: Place) -> WebhookCopy:
    """Build the copy that the policy describes."""
    settings, variable = place.settings, place.settings["secret_env"]
    try:
        secret = base64.b64decode(place.secret("secret_env").removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if not _LEAST_SECRET <= len(secret) <= _MOST_SECRET:
        raise CopyTrouble(
            f"The secret of the webhook {place.name} ({variable}) must be “whsec_” and the base64 of 24 to 64 random "
            "bytes: make one with “openssl rand -base64 32”."
        )
    return WebhookCopy(place.name, settings["url"], secret, place.origin, ca_file=settings.get("ca_file"))


KIND: Final = Kind(keys={"url": True, "secret_env": True, "ca_file": False}, build=build)
