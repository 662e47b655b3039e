"""How does a message get to a service beyond Slack: mail, PagerDuty, Opsgenie, Teams, a webhook …? By ``apprise``.

Rules
-----
* The address is a secret: it is in no log file, no entry and no sentence, nor is any part of it but its scheme.
  ``apprise`` writes whole addresses, passwords included, to its own logger; that logger is cut off before the first
  address is read, and what it says is only searched for a status number and for whether the service was reached.
* ``apprise`` is the optional extra ``alerts``: a policy that needs it and does not find it is a sentence, not a crash.
* A message is cut to what the service takes; the thread in Slack has the rest.
* One call has a limit of its own. A service that hangs keeps its thread and gets no second one until it lets go.
"""

from __future__ import annotations

import logging
import re
import threading
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any, Final

from workflows.alert_rules import Severity

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    from workflows.alert_rules import AlertRules

SECONDS: Final = 20.0  # for one message
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30})://")
_STATUS: Final = re.compile(r"\berror=([1-5][0-9]{2})\b")
_KINDS: Final[Mapping[Severity, str]] = {
    Severity.INFO: "info",
    Severity.WARNING: "warning",
    Severity.CRITICAL: "failure",
}

_HEARD: ContextVar[list[str] | None] = ContextVar("heard", default=None)


class AlertTrouble(Exception):
    """It could not be sent, or can never be. ``str()`` is a sentence without any part of the address."""


class _Ear(logging.Handler):
    """Keeps what apprise says during a call for whoever made the call, and writes it nowhere."""

    def emit(self, record: logging.LogRecord) -> None:
        """Take one message."""
        heard = _HEARD.get()
        if heard is not None:
            heard.append(record.getMessage())


def _load() -> ModuleType:
    """Import apprise with its logger cut off. Raises AlertTrouble."""
    # Before the import: the attack is an address with a slip of the pen, which apprise would write out in full.
    logger = logging.getLogger("apprise")
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    try:
        import apprise  # noqa: PLC0415 - optional, and half a second
    except ModuleNotFoundError:
        raise AlertTrouble(
            "The policy has alerts, and the program “apprise” that sends them is not installed: install the project "
            "with its extra “alerts”."
        ) from None
    if not (len(logger.handlers) == 1 and isinstance(logger.handlers[0], _Ear)):
        logger.handlers[:] = [_Ear()]
    return apprise


class Channel:
    """One service. ``scheme`` is the only part of its address that may be told."""

    def __init__(self, name: str, address: str, *, seconds: float = SECONDS) -> None:
        """Read the address; nothing is connected to. Raises :class:`AlertTrouble`."""
        apprise = _load()
        self.name = name
        self._seconds = seconds
        self._calls: list[threading.Thread] = []
        asset = apprise.AppriseAsset(async_mode=False, secure_logging=True, storage_mode="memory")
        server = apprise.Apprise.instantiate(address, asset=asset, suppress_exceptions=True)
        if server is None:
            raise AlertTrouble(
                f"The address of the alert {name} is none that apprise can read. Correct the variable; apprise's own "
                "documentation has the form for each service."
            )
        found = _SCHEME.match(address.strip())
        self.scheme = found[1].lower() if found else "?"
        if "overflow=" not in address:
            server.overflow_mode = apprise.OverflowMode.TRUNCATE
        self._box = apprise.Apprise(asset=asset)
        self._box.add(server)

    def __repr__(self) -> str:
        return f"Channel({self.name!r}, {self.scheme!r})"

    def send(self, title: str, body: str, severity: Severity) -> None:
        """Send plain text and return when the service took it. Raises :class:`AlertTrouble`, in time."""
        self._calls = [call for call in self._calls if call.is_alive()]
        if self._calls:
            raise AlertTrouble("The service has not answered the last message yet.")
        came: list[Any] = []
        heard: list[str] = []

        def run() -> None:
            _HEARD.set(heard)
            try:
                came.append(self._box.notify(body=body, title=title, notify_type=_KINDS[severity], body_format="text"))
            except Exception as error:  # noqa: BLE001 - 180 services, each with its own: its words may hold the address
                came.append(type(error).__name__)

        # Daemonic: a service that hangs must not keep the bot from stopping.
        call = threading.Thread(target=copy_context().run, args=(run,), name=f"alert-{self.name}-call", daemon=True)
        self._calls.append(call)
        call.start()
        call.join(self._seconds)
        if not came:
            raise AlertTrouble(f"The service did not answer within {self._seconds:g} seconds.")
        if isinstance(came[0], str):
            raise AlertTrouble(f"Sending failed in an unforeseen way ({came[0]}).")
        if not came[0]:
            raise AlertTrouble(_why(heard))


def _why(heard: list[str]) -> str:
    """Return a sentence about a failure, made only of what cannot be a part of the address."""
    text = "\n".join(heard)
    status = _STATUS.search(text)
    if status is not None:
        hint = {"4": " Look at the address in its variable.", "5": ""}.get(status[1][0], "")
        return f"The service answered with HTTP status {status[1]}.{hint}"
    if re.search(r"connection error|socket exception", text, re.IGNORECASE):
        return "The service cannot be reached, or broke the connection off."
    return "The service did not take it."


def open_channel(rules: AlertRules, environment: Mapping[str, str]) -> Channel:
    """Return an alert's channel. Raises :class:`AlertTrouble`."""
    address = environment.get(rules.url_env, "").strip()
    if not address:
        raise AlertTrouble(
            f"The alert {rules.name} needs the environment variable {rules.url_env} with the address of its service, "
            "and it is not set."
        )
    return Channel(rules.name, address)


def open_channels(alerts: Mapping[str, AlertRules], environment: Mapping[str, str]) -> dict[str, Channel]:
    """Return every alert's channel. Raises :class:`AlertTrouble` with all that is wrong, a line each."""
    channels: dict[str, Channel] = {}
    problems: list[str] = []
    for name, rules in alerts.items():
        try:
            channels[name] = open_channel(rules, environment)
        except AlertTrouble as trouble:
            problems.append(str(trouble))
    if problems:
        raise AlertTrouble("\n".join(dict.fromkeys(problems)))
    return channels
