"""What can go wrong, as the person who hits it should hear it.

Rules
-----
* ``str(error)`` is a whole sentence for the person, with what to do next; it is shown as it stands.
* ``code`` is stable and goes into the log and to scripts; the sentence may be reworded, the code may not.
* A :class:`Refused` means that the rules said no and nothing changed. An :class:`Unavailable` means that the rules said
  yes and a machine did not answer: the decided state stays and is retried.
* A foreign exception never gets past the file that imports its library.
"""

from __future__ import annotations

from typing import ClassVar


class BreakGlassError(Exception):
    """Base of every error that a person may read."""

    code: ClassVar[str] = "error"

    def __init__(self, sentence: str, *, code: str | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.reason = code or self.code


class Refused(BreakGlassError):
    """The rules said no; nothing changed."""

    code = "refused"


class NotAllowed(Refused):
    """The wrong person."""

    code = "not_allowed"


class Conflict(Refused):
    """The wrong moment: a stale button, a double click, an action that this state does not have."""

    code = "conflict"


class Invalid(Refused):
    """Wrong words. ``fields`` maps a form field to the sentence shown under it."""

    code = "invalid"

    def __init__(self, sentence: str, *, fields: dict[str, str] | None = None, code: str | None = None) -> None:
        super().__init__(sentence, code=code)
        self.fields = dict(fields or {})


class Unavailable(BreakGlassError):
    """Vault, Slack or the database did not answer; what was decided stays decided and is retried."""

    code = "unavailable"


class VaultRefused(BreakGlassError):
    """Vault answered, and the answer is a lasting no (no such role, permission denied): a retry will not help."""

    code = "vault_refused"
