"""Who must agree before a changed policy comes into force?

Rules
-----
* The section is optional; without it two people must, of the owners of the accounts that the change touches and of
  security (``policy_control.py`` says which accounts those are).
* One person is never enough: whoever may write the file would need nobody else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

LEAST: Final = 2
_MOST: Final = 10


@dataclass(frozen=True, slots=True)
class ControlRules:
    """The whole section. ``people``: user ids and groups; empty: owners and security.

    ``signed``: a signature that the machine trusts is enough.
    """

    confirm: int = LEAST
    people: tuple[str, ...] = ()
    signed: bool = False


class Reader(Protocol):
    """Who reads the file (``policy_file``); each method records what is wrong and returns a falsy value."""

    def mapping(self, at: Any, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Any]:  # noqa: ANN401
        """Return the values of known keys."""

    def number(self, at: Any, least: int, most: int) -> int:  # noqa: ANN401
        """Read a whole number."""

    def names(self, at: Any) -> tuple[str, ...]:  # noqa: ANN401
        """Read a list of user ids and groups."""

    def flag(self, at: Any) -> bool:  # noqa: ANN401
        """Read true or false."""


def read(reader: Reader, at: Any) -> ControlRules:  # noqa: ANN401
    """Read the section ``control``; what it returns counts only when the reader has recorded no problem."""
    found = reader.mapping(at, (), ("confirm", "people", "signed"))
    return ControlRules(
        confirm=reader.number(found["confirm"], LEAST, _MOST) if "confirm" in found else LEAST,
        people=reader.names(found["people"]) if "people" in found else (),
        signed=reader.flag(found["signed"]) if "signed" in found else False,
    )
