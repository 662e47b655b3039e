"""How long does the policy keep what is logged?

Rules
-----
* The section is optional; without it nothing can ever be pruned.
* A class of entries is the noun of their event. A class that is not known refuses to load: a slip of the pen must not
  leave entries to a shorter time than was meant for them.
* What was said about retention, and the texts of policies, are kept for good, so they cannot be given a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from storage.pruning import KEPT_NOUNS, noun

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workflows.log_rules import Reader

# A new noun of an event is named here, or a policy cannot give it a time of its own.
CLASSES: Final = (
    *("request", "credential", "review", "command", "capture", "drill", "ready", "digest", "log", "copy", "alert"),
    *("person",),
)

_LEAST: Final = timedelta(days=1)  # followers must have had the time to read it
_MOST: Final = timedelta(days=36525)


@dataclass(frozen=True, slots=True)
class RetentionRules:
    """How long the body of an entry is kept, counted from its time: by class, else ``default``."""

    default: timedelta
    classes: Mapping[str, timedelta]

    def keep(self, event: str) -> timedelta:
        """Return how long entries of this event (or class) are kept."""
        return self.classes.get(noun(event), self.default)

    def data(self) -> dict[str, Any]:
        """Return it as an entry of the log holds it, in seconds."""
        classes = {name: int(span.total_seconds()) for name, span in sorted(self.classes.items())}
        return {"default": int(self.default.total_seconds()), "classes": classes}

    def longer(self, other: RetentionRules) -> RetentionRules:
        """Return, class by class, the longer time of both."""
        classes = {name: max(self.keep(name), other.keep(name)) for name in {*self.classes, *other.classes}}
        return RetentionRules(max(self.default, other.default), MappingProxyType(classes))


def from_data(data: object) -> RetentionRules:
    """Read what :meth:`RetentionRules.data` wrote. ValueError."""
    if not isinstance(data, dict) or not isinstance(data.get("classes"), dict):
        raise ValueError("it does not say how long entries are kept")  # noqa: TRY004 - all that is wrong is ValueError
    spans = {name: _seconds(value) for name, value in data["classes"].items()}
    return RetentionRules(_seconds(data.get("default")), MappingProxyType(spans))


def _seconds(value: object) -> timedelta:
    if type(value) is not int or not 0 < value <= _MOST.total_seconds():
        raise ValueError("it does not say how long entries are kept")
    return timedelta(seconds=value)


def read(reader: Reader, at: Any) -> RetentionRules:  # noqa: ANN401
    """Read the section ``retention``; what it returns counts only when the reader has recorded no problem."""
    found = reader.mapping(at, ("default",), ("classes",))
    classes = {}
    if (below := found.get("classes")) is not None:
        for name, value in reader.entries(below, names=True).items():
            if name in KEPT_NOUNS:
                reader.fail(value, f"Entries of the class {name} are kept for good; remove this line.")
            elif name not in CLASSES:
                reader.fail(value, f"There is no class of entries {name}; the classes are: {', '.join(CLASSES)}.")
            else:
                classes[name] = reader.span(value, _LEAST, _MOST)
    default = reader.span(found["default"], _LEAST, _MOST) if "default" in found else _MOST
    return RetentionRules(default, MappingProxyType(classes))
