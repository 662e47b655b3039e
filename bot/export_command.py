"""How does the log leave by hand? ``breakglass export``: as lines, as a table, or as a bundle for an auditor.

Rules
-----
* The entries about it come first: nothing leaves that is not on record. The records of the selected requests are
  closed, then the export itself is recorded; a bundle waits until both stand under a signed head.
* The file takes its name only when it is whole.
* How far it is, is said on standard error; standard output has one line, the result.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from datetime import time as time_of_day
from pathlib import Path
from typing import TYPE_CHECKING, Final

from storage import audit, bundle
from storage.database import Database
from storage.export import Selection, export
from storage.heads import latest
from workflows.door import Door
from workflows.errors import BreakGlassError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

    from storage.audit import Actor

_OK: Final = 0
_USAGE: Final = 2
_WAIT: Final = 15.0  # seconds for the bot to sign what was just recorded
_SAY_EVERY: Final = 2.0  # seconds


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], *, who: Callable[[], Actor]) -> None:
    """Add ``export`` to the command line; ``who`` is whoever types."""
    out = commands.add_parser("export", help="write the log, or a part of it, to a file that verifies")
    out.add_argument("--since", type=_date, help="first day (UTC), as 2026-11-24")
    out.add_argument("--until", type=_date, help="last day (UTC), as 2026-11-24")
    out.add_argument("--account")
    out.add_argument("--request", metavar="BG-…", help="one request, without showing any other")
    out.add_argument("--format", choices=("jsonl", "csv", "bundle"), default="jsonl")
    out.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    only = out.add_argument_group("with --format bundle")
    only.add_argument("--names", type=Path, metavar="FILE.csv", help="user ids and names (default: as Slack has them)")
    only.add_argument(
        "--with-policy", action="store_true", help="also with --request: the policies' texts, which name other people"
    )
    only.add_argument("--no-pdf", action="store_true", help="pages only")
    out.set_defaults(run=lambda options: _export(options, who()))


def _export(options: argparse.Namespace, me: Actor) -> int:
    now = datetime.now(UTC)
    since = datetime.combine(options.since, time_of_day.min, UTC) if options.since else None
    until = datetime.combine(options.until, time_of_day.max, UTC) if options.until else None
    if since and until and until < since:
        _say("--until is before --since.")
        return _USAGE
    is_bundle = options.format == "bundle"
    if not is_bundle and (options.names or options.with_policy or options.no_pdf):
        _say("--names, --with-policy and --no-pdf go with --format bundle.")
        return _USAGE
    selection = Selection(since, until, options.account, options.request)
    database = Database(os.environ.get("BREAKGLASS_DATABASE_URL", "").strip() or "sqlite:///breakglass.db")
    door = Door(database)
    if options.request:
        door.case(options.request)
    names = _names(options.names) if is_bundle else _nobody
    if is_bundle and (until is None or until >= now):
        # Else the closing entries would lie behind the selection.
        with database.read() as session:
            touched = bundle.requests_of(session, selection)
        door.close_records(touched, now=now)
    told = {"since": options.since, "until": options.until, "account": options.account, "request": options.request}
    # The export then shows its own entry, too, unless one request only is shown.
    door.record(
        "log:export",
        me,
        {name: str(value) for name, value in told.items() if value} | {"format": options.format},
        now=now,
    )
    if is_bundle:
        _await_head(database)
    unfinished = options.output.with_name(options.output.name + ".part")
    try:
        with unfinished.open("wb") as out:
            result = (
                _bundle(database, out, selection, names, options)
                if is_bundle
                else _lines(database, out, selection, options.format, now)
            )
        unfinished.replace(options.output)
    except OSError as error:
        raise Unavailable(f"{options.output} cannot be written: {error.strerror}.") from None
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
    sys.stdout.write(f"{options.output}: {result}\n")
    return _OK


def _lines(database: Database, out: BinaryIO, selection: Selection, form: str, now: datetime) -> str:
    with database.read() as session:
        summary = export(
            session,
            out,
            exported_at=now,
            since=selection.since,
            until=selection.until,
            account=selection.account,
            request_id=selection.request_id,
            format="csv" if form == "csv" else "jsonl",
        )
    return f"{summary.count} entries; the log had {summary.size}, root {summary.root.hex()}"


def _bundle(
    database: Database,
    out: BinaryIO,
    selection: Selection,
    names: Callable[[str], str | None],
    options: argparse.Namespace,
) -> str:
    with database.read() as session:
        summary = bundle.write(
            session,
            out,
            selection,
            names=names,
            with_policy=True if options.with_policy else None,
            with_pdf=not options.no_pdf,
            progress=_Progress().say,
        )
    for sentence in summary.missing:
        _say(sentence)
    signed = "signed" if summary.note else "NOT signed"
    return (
        f"{summary.count} entries, {summary.requests} requests; it stands at the {signed} head over {summary.size} "
        f"entries, root {summary.root.hex()}"
    )


def _say(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()


class _Progress:
    """Says now and then how far it is; never for what is done at once."""

    def __init__(self) -> None:
        self._said_at = time.monotonic()

    def say(self, done: int, all_of_it: int) -> None:
        now = time.monotonic()
        if now - self._said_at >= _SAY_EVERY:
            self._said_at = now
            _say(f"{100 * done // max(1, all_of_it)} % …")


def _await_head(database: Database) -> None:
    """Wait until the running bot has signed what was just recorded. Of a log that nobody signs there is none."""
    until = time.monotonic() + _WAIT
    with database.read() as session:
        wanted = audit.head(session).size
    while True:
        with database.read() as session:
            newest = latest(session)
        if newest is None or newest.size >= wanted:
            return
        if time.monotonic() > until:
            break
        time.sleep(0.1)
    _say(
        f"The newest signed head is over {newest.size} of {wanted} entries, and the bundle stands there: what came "
        "after it is not in it. Is the bot running? “breakglass check” says why nothing is signed."
    )


# --- names ---------------------------------------------------------------------------------------------------------


def _nobody(_person: str) -> str | None:
    return None


def _names(file: Path | None) -> Callable[[str], str | None]:
    """Return how a user id becomes a name: by a list, or by Slack where the environment says how to reach it."""
    if file is not None:
        try:
            with file.open(encoding="utf-8-sig", newline="") as lines:
                listed = {row[0].strip(): row[1].strip() for row in csv.reader(lines) if len(row) >= 2}
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise Unavailable(f"{file} cannot be read as a list of ids and names: {error}.") from None
        return listed.get
    from bot.app import slack_client, who_am_i  # noqa: PLC0415 - half a second that an export of lines does not owe
    from bot.directory import SlackDirectory  # noqa: PLC0415
    from bot.settings import SettingsInvalid, from_environment  # noqa: PLC0415

    try:
        client = slack_client(from_environment(os.environ))
        directory = SlackDirectory(client, who_am_i(client))
    except (SettingsInvalid, BreakGlassError):
        _say("Slack was not asked for names, so the bundle has people's ids only (see --names).")
        return _nobody
    is_down = False

    def ask(person: str) -> str | None:
        nonlocal is_down
        if is_down:
            return None
        try:
            found = directory.person(person)
        except BreakGlassError as error:
            is_down = True
            _say(f"Slack does not say some people's names ({error.sentence}); see --names.")
            return None
        return found.name if found else None

    return ask


def _date(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a day; write it as 2026-11-24") from None
