"""A witness (C2SP tlog-witness): has somebody else seen that the log only grew, and said so?

Rules
-----
* A witness keeps one head of the log, the newest that it has cosigned. It gets the next one with the proof that the log
  only grew from there, and answers with its cosignature, which carries its time. From then on the log cannot go back
  without the witness saying so: against a rewrite by somebody who holds the log's key, this is what helps.
* What comes back is checked against the witness's key before it is stored; lines of keys that are not known mean
  nothing. Stored is the signature line, as it stands in a note.
* What the witness says of its own size (status 409) is believed only as the size to prove from. A witness that has seen
  more than there is, or another log of the same size, is an alarm in words: restored from a backup, or rewritten.
* It is shown heads of three lines only: the runner keeps heartbeats from it, whose line of the time a strict witness
  refuses. One that takes such lines cosigns them as well.
* Only hashes and the log's name leave, and the answer is signed, so that TLS may be missing.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Final, Literal

from storage.checkpoint import (
    Algorithm,
    BadSignature,
    NotSigned,
    VerifierKey,
    add_signatures,
    parse,
    parse_signatures,
    parse_vkey,
    verify,
)
from storage.followers.seam import CopyTrouble, Kind, Place
from storage.followers.wire import SECONDS, Web

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from storage.followers.seam import SignedNote
    from storage.followers.wire import Answer

_TRIES: Final = 3  # other bots' heads may come in between
_MOST_PROOF_LINES: Final = 63
_SIZE: Final = re.compile(rb"(0|[1-9][0-9]{0,18})\n")


class Witness:
    """The witness with this key at ``url``, its submission prefix."""

    kind: Literal["cosignature", "timestamp"] = "cosignature"

    def __init__(
        self, name: str, url: str, key: VerifierKey, *, ca_file: str | None = None, seconds: float = SECONDS
    ) -> None:
        self.name = name
        self._key = key
        self._web = Web("the witness", name, f"{url.rstrip('/')}/add-checkpoint", ca_file, True, seconds / _TRIES)

    def anchor(
        self,
        head: SignedNote,
        *,
        before: int,
        consistency: Callable[[int], Sequence[bytes]],
        now: datetime,  # noqa: ARG002
    ) -> bytes:
        """Return the witness's signature line over the head; see :class:`storage.followers.seam.Notary`."""
        size = parse(head).checkpoint.size
        old = min(before, size)
        for _ in range(_TRIES):
            answer = self._ask(head, old, consistency(old) if 0 < old < size else ())
            if answer.status == 200:
                return self._checked(head, answer.body)
            if answer.status != 409:
                raise self._refused(answer)
            seen = self._seen(answer)
            if seen > size:
                raise self._went_back(seen, size)
            if seen == old:
                raise self._forked(size)
            old = seen
        raise CopyTrouble(f"The witness {self.name} is being brought other heads at the same time; it is tried again.")

    def ask(
        self,
        head: SignedNote | None,
        *,
        is_known: bool,
        newest: Callable[[], int],
        now: datetime,  # noqa: ARG002
    ) -> str:
        """Have a head that it has seen cosigned once more; see :class:`storage.followers.seam.Notary`.

        A head that it has not seen is shown as if it had: it refuses that with the size that it has seen (409).
        """
        if head is None:
            answer = self._web.post(b"", {"Content-Type": "application/octet-stream"})
            if answer.status not in {200, 400}:  # a request that says nothing is a bad one
                raise self._refused(answer)
            return "It answers; whether it knows the log, and its key, shows once a head is signed."
        size = parse(head).checkpoint.size
        answer = self._ask(head, size, ())
        if answer.status == 200:
            self._checked(head, answer.body)
            return "It cosigns, with the key that the policy names."
        if answer.status != 409:
            raise self._refused(answer)
        seen = self._seen(answer)
        if seen == size:
            raise self._forked(size)
        if seen > (there := newest()):
            raise self._went_back(seen, there)
        if seen < size and is_known:
            raise CopyTrouble(
                f"The witness {self.name} has cosigned the log with {size} entries and knows of {seen} only: it was "
                "restored from a backup, or another one answers there. What it forgot it cannot witness: ask whoever "
                "runs it."
            )
        return f"It answers and knows the log, with {seen} entries; its key shows when it cosigns the next head."

    def _ask(self, head: SignedNote, old: int, proof: Sequence[bytes]) -> Answer:
        if len(proof) > _MOST_PROOF_LINES:
            raise CopyTrouble(f"The proof for the witness {self.name} is longer than a witness takes.")
        lines = [f"old {old}", *(base64.b64encode(step).decode() for step in proof), ""]
        body = "".join(f"{line}\n" for line in lines).encode() + head
        return self._web.post(body, {"Content-Type": "application/octet-stream"})

    def _seen(self, answer: Answer) -> int:
        """Return the size of the newest head that the witness says it has cosigned."""
        found = _SIZE.fullmatch(answer.body)
        if answer.content_type != "text/x.tlog.size" or found is None:
            raise CopyTrouble(f"The witness {self.name} refuses the head (status 409) and does not say from where on.")
        return int(found[1])

    def _checked(self, head: SignedNote, lines: bytes) -> bytes:
        try:
            ours = [
                one for one in parse_signatures(lines) if (one.name, one.key_id) == (self._key.name, self._key.key_id)
            ]
            # One that has several times is as good as any other of them; the first is kept, if all of them hold.
            verify(add_signatures(head, ours), [self._key])
        except NotSigned:
            raise CopyTrouble(
                f"The witness {self.name} answers with another key than the policy names: "
                "was its key changed? Ask whoever runs it, and put the new vkey down."
            ) from None
        except BadSignature:
            raise CopyTrouble(f"The cosignature of the witness {self.name} is wrong: it is not accepted.") from None
        except ValueError:
            raise CopyTrouble(f"The witness {self.name} does not answer with a cosignature.") from None
        return ours[0].line()

    def _refused(self, answer: Answer) -> CopyTrouble:
        """Name what the status says of the head (tlog-witness)."""
        if answer.status == 400:
            return CopyTrouble(
                f"The witness {self.name} does not take the head as it is written (status 400): "
                "is it a witness of C2SP tlog-witness, and is its address the one for submissions?"
            )
        if answer.status == 403:
            return CopyTrouble(
                f"The witness {self.name} does not know the log's key (status 403): give its operator the log's vkey."
            )
        if answer.status == 404:
            return CopyTrouble(
                f"The witness {self.name} does not know this log (status 404): is its address right, and has its "
                "operator added the log's name?"
            )
        if answer.status == 422:
            return CopyTrouble(
                f"ALARM: the witness {self.name} says that the log did not grow out of what it has seen (status 422). "
                "It was rewritten, or the database was restored. Do not repair it before somebody looked."
            )
        return self._web.refused(answer)

    def _went_back(self, seen: int, size: int) -> CopyTrouble:
        return CopyTrouble(
            f"ALARM: the witness {self.name} has seen the log with {seen} entries, and now it has {size}. "
            "It was restored from an older backup, or entries were removed. "
            "Do not repair it before somebody looked."
        )

    def _forked(self, size: int) -> CopyTrouble:
        return CopyTrouble(
            f"ALARM: the witness {self.name} has seen another log of {size} entries under this name: it was "
            "rewritten, or two databases are written under one name. Do not repair it before somebody looked."
        )


def build(place: Place) -> Witness:
    """Build the witness that the policy describes."""
    settings = place.settings
    try:
        key = parse_vkey(settings["vkey"])
    except ValueError as error:
        raise CopyTrouble(f"The vkey of the witness {place.name} cannot be used: {error}.") from None
    if key.algorithm is not Algorithm.COSIGNATURE:
        raise CopyTrouble(f"The vkey of the witness {place.name} is a log's, not a witness's.")
    return Witness(place.name, settings["url"], key, ca_file=settings.get("ca_file"))


KIND: Final = Kind(keys={"url": True, "vkey": True, "ca_file": False}, build=build, is_notary=True)
