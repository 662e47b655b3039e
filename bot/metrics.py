"""How is it going, in numbers that a monitoring system fetches?

Rules
-----
* Each scrape reads the rows: of several bots on one database each gives the same answer, and so does one that has just
  been started. Nothing is counted in memory.
* No label holds a person, an account or anything that was typed: copies go by their name in the policy, requests by
  their state.
* A database that does not answer gives 503 and no number: a stale one would look well.
* Whoever can connect can read it; it is off unless an address is set, and that is loopback unless a host is named.
  Few are served at once, and nobody for long.

The text is Prometheus' exposition format, 0.0.4.
"""

from __future__ import annotations

import logging
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import func, select

from bot.alerts import standings
from bot.bounded import BoundedServer
from bot.cursors import seconds_behind
from storage import audit, heads
from storage.database import DatabaseDown
from storage.followers import FOLLOWERS, lags
from storage.models import Alarm, Feed, Request, State
from workflows.reconcile import CLAIM, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime, timedelta

    from storage.database import Database
    from workflows.alert_rules import AlertRules
    from workflows.policy import LogRules

log = logging.getLogger(__name__)

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_AT_ONCE: Final = 8
_SECONDS: Final = 10  # for one connection
_NO_ALERTS: Final[Mapping[str, AlertRules]] = MappingProxyType({})
_R: Final[Any] = Request  # their columns, in queries: SQLModel types them as the values
_A: Final[Any] = Alarm


def read(
    database: Database, rules: LogRules | None, alerts: Mapping[str, AlertRules] = _NO_ALERTS, *, now: datetime
) -> str:
    """Return all numbers as text. ``rules`` name the copies. Raises :class:`DatabaseDown`."""
    with database.read() as session:
        size = audit.head(session).size
        standing = heads.standing(session, now=now)
        rows = session.execute(select(_R.state, func.count()).where(_R.drill.is_(None)).group_by(_R.state))
        counted: dict[str, int] = {state: count for state, count in rows}  # noqa: C416 - rows are not pairs to mypy
        said = session.execute(select(_A.kind, func.count()).where(_A.said_at.is_not(None)).group_by(_A.kind))
        alarms: dict[str, int] = {kind: count for kind, count in said}  # noqa: C416
        rounds = session.get(Feed, CLAIM)
    newest = standing.newest
    parts = [
        _metric("breakglass_log_entries_total", "counter", "Entries of the log.", [({}, size)]),
        _metric(
            "breakglass_log_signed_entries",
            "gauge",
            "Size of the newest signed head: how many entries stand under it.",
            [({}, newest.size if newest else 0)],
        ),
        _metric(
            "breakglass_log_signed_head_age_seconds",
            "gauge",
            "Since the newest head was signed; absent when none is.",
            [({}, _seconds(now - newest.at))] if newest else [],
        ),
        _metric(
            "breakglass_log_unsigned_seconds",
            "gauge",
            "Age of the oldest entry under no signed head; 0 when there is none.",
            [({}, _seconds(standing.behind) if rules is not None else 0)],
        ),
        _metric(
            "breakglass_slack_lag_seconds",
            "gauge",
            "Age of the oldest entry that is not in Slack yet; 0 when all are.",
            [({}, seconds_behind(database, now=now))],
        ),
        *_copies(database, rules, now=now),
        *_alerts(database, alerts, now=now),
        _metric(
            "breakglass_requests",
            "gauge",
            "Requests by state; drills are not counted.",
            [({"state": state.value}, counted.get(state.value, 0)) for state in State],
        ),
        _metric(
            "breakglass_access_alarms",
            "gauge",
            "What is live and on no record, or cannot be looked at, and is alarmed, by kind.",
            [({"kind": kind.value}, alarms.get(kind.value, 0)) for kind in Kind],
        ),
        _metric(
            "breakglass_reconcile_failures",
            "gauge",
            "Reconciliations in a row that were begun and not finished; 1 while one is under way.",
            [({}, rounds.failures if rounds else 0)],
        ),
    ]
    return "".join(parts)


def _copies(database: Database, rules: LogRules | None, *, now: datetime) -> list[str]:
    names = rules.copies if rules is not None else {}
    notaries = {name for name, copy in names.items() if FOLLOWERS[copy.kind].is_notary}
    found = lags(database, names, notaries=notaries, now=now)
    told: tuple[tuple[str, str, list[float]], ...] = (
        ("lag_entries", "Entries that the copy has not acknowledged.", [one.entries for one in found]),
        ("lag_seconds", "Age of the oldest of them; 0 when there is none.", [one.seconds for one in found]),
        ("required", "Whether credentials wait for it.", [names[one.name].required for one in found]),
        # One that hangs without an error is down, too, once its lag has raised the alarm.
        ("up", "Whether its last try did not fail.", [not one.failures and not one.is_alarmed for one in found]),
    )
    labels = [{"copy": one.name} for one in found]
    return [
        _metric(f"breakglass_copy_{name}", "gauge", what, zip(labels, values, strict=True))
        for name, what, values in told
    ]


def _alerts(database: Database, alerts: Mapping[str, AlertRules], *, now: datetime) -> list[str]:
    found = standings(database, alerts)
    told: tuple[tuple[str, str, list[float]], ...] = (
        ("up", "Whether what was last sent beyond Slack got through.", [not one.failures for one in found]),
        (
            "failing_seconds",
            "Since it does not get through; 0 when it does.",
            [0 if one.since is None else _seconds(now - one.since) for one in found],
        ),
    )
    labels = [{"alert": one.name} for one in found]
    return [
        _metric(f"breakglass_alert_{name}", "gauge", what, zip(labels, values, strict=True))
        for name, what, values in told
    ]


def _seconds(span: timedelta) -> float:
    return max(0.0, span.total_seconds())


def _metric(name: str, kind: str, what: str, values: Iterable[tuple[Mapping[str, str], float]]) -> str:
    lines = [f"# HELP {name} {what}", f"# TYPE {name} {kind}"]
    for labels, value in values:
        inner = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        number = int(value) if value == int(value) else round(value, 3)
        lines.append(f"{name}{{{inner}}} {number}" if inner else f"{name} {number}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


# --- the server ----------------------------------------------------------------------------------------------------


class Metrics(BoundedServer):
    """Answers ``GET /metrics`` at ``host`` and ``port`` (0: any free one). Raises :class:`Unavailable`."""

    def __init__(self, host: str, port: int, give: Callable[[], str]) -> None:
        super().__init__("METRICS_ADDRESS", host, port, partial(_Handler, give), at_once=_AT_ONCE)


class _Handler(BaseHTTPRequestHandler):
    timeout = _SECONDS
    server_version = "breakglass"
    sys_version = ""

    def __init__(self, give: Callable[[], str], *more: Any) -> None:  # noqa: ANN401 - as the library has it
        self._give = give
        super().__init__(*more)

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self._send(HTTPStatus.NOT_FOUND, "Ask for /metrics.\n")
            return
        try:
            text = self._give()
        except DatabaseDown as down:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, f"{down}\n")
        except Exception:
            log.exception("the metrics could not be read")
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "They could not be read; see the bot's log file.\n")
        else:
            self._send(HTTPStatus.OK, text)

    def _send(self, status: HTTPStatus, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", CONTENT_TYPE if status == HTTPStatus.OK else "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: a scrape every few seconds would bury the rest."""
