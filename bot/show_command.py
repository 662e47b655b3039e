"""What happened in one request? ``breakglass show BG-7KQ2``: the case and its commands as a timeline in the terminal.

Rules
-----
* It reads the database, or with ``--from`` an export (JSONL) or a bundle, and nothing else: no Slack, no Vault.
* It shows what the entries say and checks nothing; ``breakglass verify`` does that, and the last line says so.
* What was typed at a target, or by a person, moves no cursor and paints no colour: control characters are left
  out.
* It may be long: each line is printed as it is read, and what it all comes to stands at the end.
"""

from __future__ import annotations

import json
import os
import sys
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bot.blockkit import clean
from storage import audit
from storage import commands as told
from storage.database import Database
from storage.reports import executed
from storage.reports.story import Teller, moment, say
from workflows.door import Door
from workflows.engines.naming import REQUEST
from workflows.errors import Invalid, Unavailable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

    from storage.audit import Record
    from storage.reports.story import Story

_PAGE: Final = 1000
_MEMBER: Final = "entries.jsonl"  # of a bundle
_LONGEST: Final = 1_000_000  # bytes of a line in an export; an entry has at most 60,000

Entry = tuple[int, bytes, "Record | None"]


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``show`` to the command line."""
    show = commands.add_parser("show", help="print one request and the commands that were run, as a timeline")
    show.add_argument("request", metavar="BG-7KQ2", help="the request, as Slack shows it")
    show.add_argument("--from", dest="file", type=Path, metavar="FILE", help="an export (JSONL) or a bundle")
    show.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print it. Raises Invalid for a request that is not there, Unavailable for a file that cannot be read."""
    request_id = str(options.request).upper()
    if not REQUEST.fullmatch(request_id):
        raise Invalid("Name the request: breakglass show BG-7KQ2.")
    # A reader that has seen enough (``| head``) is no error.
    with suppress(BrokenPipeError):
        if options.file is None:
            database = Database(os.environ.get("BREAKGLASS_DATABASE_URL", "").strip() or "sqlite:///breakglass.db")
            Door(database).case(request_id)
            _print(request_id, _of_database(database, request_id), "breakglass verify --database")
        else:
            _print(request_id, _of_file(options.file, request_id), f"breakglass verify {options.file}")
        sys.stdout.flush()
        return 0
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter complains at its end
    return 0


def _print(request_id: str, entries: Iterable[Entry], check: str) -> None:
    teller = Teller(request_id, {})
    story = teller.story
    count = 0
    for seq, leaf, record in entries:
        steps = len(story.steps)
        teller.add(seq, leaf, record)
        count += 1
        if count == 1:
            _say(f"{request_id}, in the order of the log; times are UTC\n")
        if len(story.steps) > steps:
            step = story.steps[-1]
            at = moment(step.at).removesuffix(" UTC")
            _say(f"{at}  {step.who or '-'}: {'REFUSED: ' if step.is_refusal else ''}{step.text}")
            if step.typed:
                _say(f"{'':21}“{step.typed}”")
        elif record is not None:
            one = told.of_record(record)
            marks = executed.marks(one)
            _say(f"{moment(one.at).removesuffix(' UTC')}  $ {executed.words(one)}{f'  [{marks}]' if marks else ''}")
        # The story's own lists are for pages; here they would only grow.
        story.executed.clear()
        del story.steps[:-1]
    if not count:
        raise Invalid(f"There is no entry of {request_id} in it.")
    _say("")
    for line in _in_short(story):
        _say(line)
    _say(f"Nothing of this was checked: {check}")


def _in_short(story: Story) -> Iterator[str]:
    yield f"State: {story.state or 'not known'}."
    if story.is_whole:
        yield f"{story.account}, level {story.level}; asked by {story.requester}."
    out = f"Access was out for {say(story.seconds_out)}. " if story.seconds_out is not None else ""
    review = story.review.outcome.replace("_", " ") if story.review else "none filed"
    yield f"{out}Review: {review}."
    lines = executed.summary(story.use)
    yield from lines or [executed.NONE]


def _say(line: str) -> None:
    sys.stdout.write(f"{clean(line, is_line=True) if line.strip() else ''}\n")


# --- where entries come from ------------------------------------------------------------------------------------------


def _of_database(database: Database, request_id: str) -> Iterator[Entry]:
    after = -1
    while True:
        with database.read() as session:
            records = audit.read_entries(session, request_id=request_id, after=after, limit=_PAGE)
        for record in records:
            yield record.seq, record.leaf_hash, None if record.is_pruned else record
        if len(records) < _PAGE:
            return
        after = records[-1].seq


def _of_file(file: Path, request_id: str) -> Iterator[Entry]:
    with _opened(file) as lines:
        for line in lines:
            found = _entry(line)
            if found is not None and found[2] is not None and found[2].request_id == request_id:
                yield found


@contextmanager
def _opened(file: Path) -> Iterator[Iterator[bytes]]:
    """Give the lines of an export, or of the one in a bundle. Raises Unavailable, with what it should be."""
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as box, box.open(_MEMBER) as member:
                yield iter(lambda: member.readline(_LONGEST), b"")
        else:
            with file.open("rb") as plain:
                if not plain.readline(_LONGEST).lstrip().startswith(b"{"):
                    raise Unavailable(f"{file} is no export in JSONL and no bundle. (Of a table in CSV: export anew.)")
                yield iter(lambda: plain.readline(_LONGEST), b"")
    except OSError as error:
        raise Unavailable(f"{file} cannot be read: {error.strerror}.") from None
    except (KeyError, zipfile.BadZipFile, RuntimeError):
        raise Unavailable(f"{file} is no bundle of this program, or it is damaged.") from None


def _entry(line: bytes) -> Entry | None:
    """Read one line of an export; None for its first and last line, and for what is no entry."""
    try:
        members: Any = json.loads(line)
        body = members["body"].encode()
        return int(members["seq"]), bytes.fromhex(members["leaf"]), audit.parse(body)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
