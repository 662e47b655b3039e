"""What is an auditor handed? One zip file that proves itself.

Rules
-----
* It stands at one signed head (or, of a log that is not signed, at one head), and is read in one transaction.
* The same log, head, selection and names give the same bytes: no clock is read, and no member has a date of its own.
* Evidence and reading matter are told apart: the pages follow from the entries, and say where to look.
* The bundle of one request shows nothing of any other: its entries and proofs, which are hashes, and heads.
* Memory does not grow with the entries' size: members are streamed; 64 bytes for each entry of the log (the tree) and
  one line for each request are held.

The members are described in ``FORMAT.md``.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import re
import zipfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import func, select

from storage import audit, export, proofs
from storage.checkpoint import add_signatures, parse, parse_signatures, write_proof
from storage.models import Anchor, Entry, Payload, SignedHead
from storage.pruning import APPLY
from storage.reports import approvers, controls, documents, page, paper
from storage.reports.ocsf import Mapper
from storage.reports.story import About, Period, Row, Story, Teller, row_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import IO, BinaryIO, Self

    from sqlmodel import Session

    from storage.audit import Record
    from storage.merkle import Tree

FORMAT: Final = "breakglass-bundle/1"
MOST_PROOFS: Final = 1000  # of more entries all proofs stand in one member: a zip with a million members opens nowhere
MOST_HEADS: Final = 1000
MOST_PDFS: Final = 300  # a PDF takes some 0.2 s; of more requests there are the pages, which browsers print
LOAD: Final = "policy:load"
TEXT: Final = "policy:text"

_DATE: Final = (1980, 1, 1, 0, 0, 0)
_CHUNK: Final = 1 << 18
_EVERY: Final = 500  # entries between two reports of progress
# A name out of the database becomes a path on the auditor's machine: "../../.ssh/config" must not.
_FILE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)
_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_STANDALONE: Final = Path(__file__).with_name("standalone.py")
_E: Final[Any] = Entry  # their columns, in queries: SQLModel types them as the values
_H: Final[Any] = SignedHead
_A: Final[Any] = Anchor
_P: Final[Any] = Payload


@dataclass(frozen=True, slots=True)
class Summary:
    """What was written. ``note``: the member with the signed head that the proofs lead to; None: it is not signed.

    ``missing`` has a sentence for each thing that could not be put in.
    """

    count: int
    requests: int
    size: int
    root: bytes
    note: str | None
    missing: tuple[str, ...]


def write(
    session: Session,
    out: BinaryIO,
    selection: export.Selection,
    *,
    size: int | None = None,
    names: Callable[[str], str | None] = lambda _person: None,
    with_policy: bool | None = None,
    with_pdf: bool = True,
    progress: Callable[[int, int], object] = lambda _done, _all: None,
) -> Summary:
    """Write the bundle of a selection to ``out``, inside one :meth:`Database.read`.

    ``size``: stand at the newest signed head over at most so many entries (None: the newest). ``names`` gives the name
    behind a user id. ``with_policy``: the policies' texts (None: unless one request is selected, since a policy names
    people and accounts that have nothing to do with it). ``progress(done, all)`` is called now and then.

    Raises :class:`storage.audit.Damaged`; whatever ``out.write`` raises passes through.
    """
    try:
        begun = _Bundle(session, out, selection, size=size, names=names, progress=progress)
        with begun.box:
            return begun.write(
                with_policy=selection.request_id is None if with_policy is None else with_policy, with_pdf=with_pdf
            )
    except (TypeError, ValueError) as error:
        found = audit.check(session)
        if found is None:
            raise
        raise audit.Damaged(found.seq or 0, found.sentence) from error


def requests_of(session: Session, selection: export.Selection) -> list[str]:
    """Return the requests that a selection touches, in the order of their first entries: whose records to close."""
    return _requests(session, selection.conditions(session, audit.head(session).size))


def _requests(session: Session, conditions: Sequence[Any]) -> list[str]:
    first = func.min(_E.seq)
    query = select(_E.request_id).where(_E.request_id.is_not(None), *conditions).group_by(_E.request_id).order_by(first)
    return [str(request_id) for request_id in session.execute(query).scalars()]


class _Head(NamedTuple):
    id: int
    size: int
    reason: str
    at: datetime


class _Bundle:
    """One bundle while it is written."""

    def __init__(
        self,
        session: Session,
        out: BinaryIO,
        selection: export.Selection,
        *,
        size: int | None,
        names: Callable[[str], str | None],
        progress: Callable[[int, int], object],
    ) -> None:
        self._session = session
        self._selection = selection
        self._names = _Names(names)
        self._missing: list[str] = []
        # 1. The head that everything stands at.
        self._head = _standing(session, size)
        self._size = self._head.size if self._head else audit.head(session).size if size is None else size
        self._tree: Tree | None = export.tree_of(session, self._size)
        self._root = self._tree.root
        if self._head is not None and self._note_of(self._head.id)[0].checkpoint.root != self._root:
            raise audit.Damaged(self._size - 1, "The log up to here is not the one whose head was signed.")
        self._conditions = selection.conditions(session, self._size)
        self._count, self._first, self._last = session.execute(
            select(func.count(), func.min(_E.seq), func.max(_E.seq)).where(*self._conditions)
        ).one()
        self._progress = progress
        self._passes = 5 if self._head else 4
        self._done = 0
        self._named: dict[str, None] = {}  # hashes of what stands beside the log, in the order of the entries
        self.box = _Box(out)

    def write(self, *, with_policy: bool, with_pdf: bool) -> Summary:
        """Write all members, in this order."""
        # 2. What was signed, and by whom else.
        heads = self._choose_heads()
        note_name = self._write_heads(heads)
        # 3. The entries, and what proves each of them.
        about = self._about()
        loads = self._loads()
        request_ids = _requests(self._session, self._conditions)
        self.box.put("bundle.json", audit.canonical(self._described(about, note_name, len(request_ids))) + b"\n")
        with self.box.member("entries.jsonl", is_large=self._is_large) as member:
            export.write(self._session, member, about.at, self._selection, self._whole, on_entry=self._step)  # type: ignore[arg-type]
        if self._head is not None:
            self._write_proofs()
        if with_policy:
            self._write_policies(loads)
        self._tree = None  # its memory is wanted for the list of requests
        # 4. What follows from them, to be read.
        ledger, answers = controls.Ledger(), approvers.Ledger()
        self._write_table(ledger, answers)
        self._write_payloads()
        rows = self._write_requests(request_ids, about, loads, with_pdf=with_pdf)
        self._write_ocsf(about)
        self._write_period(rows, answers, about, with_pdf=with_pdf)
        self.box.put("controls.csv", controls.table(ledger))
        self.box.put("controls.html", page.controls_page(ledger, about))
        if self._names.known:
            self.box.put("people.csv", documents.people(self._names.known))
        self.box.put("certification.txt", documents.certification(about, self.box.hashes["entries.jsonl"]))
        if _STANDALONE.exists():
            self.box.put("verify.py", _STANDALONE.read_bytes())
        self._write_read_me(about, note_name)
        # 5. The list of all of them, and the end.
        self.box.close()
        self._progress(self._count * self._passes, self._count * self._passes)
        return Summary(self._count, len(request_ids), self._size, self._root, note_name, tuple(self._missing))

    def _write_read_me(self, about: About, note_name: str | None) -> None:
        bodies = select(func.count()).select_from(Entry).where(_E.body.is_(None), *self._conditions)
        applies = select(_E.seq).where(_E.event == APPLY, _E.body.is_not(None), *self._conditions).order_by(_E.seq)
        gone = self._session.execute(bodies).scalar_one()
        pruned_by = list(self._session.execute(applies).scalars()) if gone else []
        text = documents.read_me(
            about, note_name, self.box.names(), tuple(self._missing), gone=gone, pruned_by=pruned_by
        )
        self.box.put("README.txt", text)

    # What it stands at.

    def _about(self) -> About:
        at = self._head.at if self._head else None
        if at is None:
            at = self._session.execute(select(_E.at).where(_E.seq == self._size - 1)).scalar()
        origin = self._note_of(self._head.id)[0].checkpoint.origin if self._head else None
        return About(
            origin=origin,
            at=at or datetime(1970, 1, 1, tzinfo=UTC),  # of an empty log
            size=self._size,
            root=self._root.hex(),
            selection=self._selection.members(),
            entries=self._count,
            has_names=self._names.is_asked,
        )

    def _described(self, about: About, note_name: str | None, requests: int) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "origin": about.origin,
            "exported_at": audit.write_time(about.at),
            "selection": dict(about.selection),
            "head": {"size": about.size, "root": about.root, "note": note_name},
            "count": self._count,
            "requests": requests,
        }

    @property
    def _is_large(self) -> bool:
        # Some tools stumble over ZIP64: only where a member could need it.
        return bool(self._count > 100_000)

    def _step(self) -> None:
        self._done += 1
        if self._done % _EVERY == 0:
            self._progress(min(self._done, self._count * self._passes), self._count * self._passes)

    # Heads.

    def _choose_heads(self) -> list[_Head]:
        """Return the signed heads that speak of the selection, in the order of their signing."""
        if self._head is None or self._first is None:
            return [self._head] if self._head else []
        query = select(_H.id, _H.size, _H.reason, _H.at).where(_H.size > self._first, _H.id <= self._head.id)
        found = [_Head(*row) for row in self._session.execute(query.order_by(_H.id)) if row.size <= self._size]
        anchored = set(self._session.execute(select(_A.head_id)).scalars())
        if self._selection.account is None and self._selection.request_id is None:
            kept = _thinned(found, anchored)
        else:
            # The first head over each of its entries, and the first over all of them that somebody outside saw.
            sizes = [head.size for head in found]
            kept = {found[place].id for seq in self._seqs() if (place := bisect.bisect_right(sizes, seq)) < len(found)}
            kept.update([head.id for head in found if head.id in anchored and head.size > self._last][:1])
            if len(kept) > MOST_HEADS:
                kept = _thinned([head for head in found if head.id in kept], anchored)
        kept.add(self._head.id)
        return [head for head in found if head.id in kept]

    def _seqs(self) -> Iterator[int]:
        query = select(_E.seq).where(*self._conditions).order_by(_E.seq).execution_options(yield_per=_EVERY)
        return iter(self._session.execute(query).scalars())

    def _write_heads(self, heads: Sequence[_Head]) -> str | None:
        """Write heads, anchors and the consistency between neighbours; return the name of the one all stands at."""
        name = None
        numbers: dict[int, int] = {}
        stems, notes = [], []
        for head in heads:
            numbers[head.size] = numbers.get(head.size, -1) + 1
            stem = f"{head.size:012}-{numbers[head.size]:02}"
            stems.append(stem)
            notes.append(self._note_of(head.id)[0].note)
            name = f"heads/{stem}.note"
            self.box.put(name, notes[-1])
        for head, stem in zip(heads, stems, strict=True):
            self._write_anchors(head, stem)
        newest = {head.size: note for head, note in zip(heads, notes, strict=True)}
        for older, newer in itertools.pairwise(sorted(newest)):
            proof = proofs.consistency(self._session, older, newer)
            text = documents.add_checkpoint(older, proof, newest[newer])
            self.box.put(f"consistency/{older:012}-{newer:012}.txt", text)
        return name

    def _write_anchors(self, head: _Head, stem: str) -> None:
        _, stamped, tokens = self._note_of(head.id)
        if tokens:
            self.box.put(f"anchors/{stem}.note", stamped)
        for follower, token in tokens:
            self.box.put(f"anchors/{stem}-{_file(follower)}.tsr", token)

    def _note_of(self, head_id: int) -> tuple[Any, bytes, list[tuple[str, bytes]]]:
        """Return a head with its cosignatures, the head as it was signed, and its time stamps."""
        note: bytes = self._session.execute(select(_H.note).where(_H.id == head_id)).scalar_one()
        whole, tokens = note, []
        query = select(Anchor).where(_A.head_id == head_id).order_by(_A.follower)
        for anchor in self._session.execute(query).scalars():
            if anchor.kind == "timestamp":
                tokens.append((anchor.follower, anchor.data))
                continue
            try:
                whole = add_signatures(whole, parse_signatures(anchor.data))
            except ValueError:
                self._miss(f"The cosignature by {anchor.follower} of a stored head cannot be read.")
        return parse(whole), note, tokens

    def _miss(self, sentence: str) -> None:
        if sentence not in self._missing:
            self._missing.append(sentence)

    # Entries.

    def _entries(self, *conditions: Any) -> Iterator[Any]:  # noqa: ANN401 - SQL
        return export.rows(self._session, [*self._conditions, *conditions])

    @cached_property
    def _note(self) -> bytes:
        if self._head is None:
            raise ValueError("the log is not signed")
        found: bytes = self._note_of(self._head.id)[0].note
        return found

    @property
    def _whole(self) -> Tree:
        if self._tree is None:
            raise ValueError("the proofs have been written already")
        return self._tree

    def _proof(self, seq: int) -> bytes:
        return write_proof(seq, self._whole.inclusion(seq), self._note)

    def _write_proofs(self) -> None:
        if self._count <= MOST_PROOFS:
            for seq in self._seqs():
                self.box.put(f"proofs/{seq:012}.tlog-proof", self._proof(seq))
                self._step()
            return
        with self.box.member("proofs.txt", is_large=self._is_large) as member:
            for seq in self._seqs():
                member.write(self._proof(seq))
                self._step()

    def _write_table(self, ledger: controls.Ledger, answers: approvers.Ledger) -> None:
        with self.box.member("entries.csv", is_large=self._is_large) as member:
            member.write(export.BOM + export.csv_line(export.COLUMNS[:-3]))
            for row in self._entries():
                record = _read(row)
                answers.add(record)
                if record is None:
                    cells = [str(row.seq), *[""] * (len(export.COLUMNS) - 5), "(the body cannot be read)"]
                else:
                    cells = export.people_cells(record, row.account or "")
                    ledger.add(record)
                    if (name := _payload_of(record)) is not None:
                        self._named[name] = None
                member.write(export.csv_line(cells))
                self._step()

    def _write_payloads(self) -> None:
        """Write the statements that are too long for an entry: each is evidence by its hash, which the entry holds."""
        for name in self._named:
            body = self._session.execute(select(_P.body).where(_P.sha256 == name)).scalar_one_or_none()
            if not isinstance(body, bytes) or hashlib.sha256(body).hexdigest() != name:
                self._miss(f"The long text with the SHA-256 {name} is not kept any more.")
                continue
            self.box.put(f"payloads/{name}.txt", body)

    def _write_ocsf(self, about: About) -> None:
        mapper = Mapper(about.origin, self._names)
        with self.box.member("ocsf.jsonl", is_large=self._is_large) as member:
            for row in self._entries():
                record = _read(row)
                made: Iterable[Mapping[str, Any]] = (
                    [mapper.unreadable(row.seq, row.leaf_hash, round(about.at.timestamp() * 1000))]
                    if record is None
                    else mapper.records(record, row.leaf_hash)
                )
                for one in made:
                    member.write(export.json_line(one))
                self._step()

    # Policies.

    def _loads(self) -> list[tuple[int, str]]:
        """Return when which policy came into force: seq and hash, in order."""
        query = select(_E.seq, _E.body, _E.leaf_hash).where(_E.event == LOAD, _E.seq < self._size).order_by(_E.seq)
        found = []
        for row in self._session.execute(query):
            record = _read(row)
            if record is not None and isinstance(record.data.get("hash"), str):
                found.append((row.seq, str(record.data["hash"])))
        return found

    def _write_policies(self, loads: Sequence[tuple[int, str]]) -> None:
        if self._first is None:
            return
        start = bisect.bisect_right(loads, self._first, key=lambda load: load[0]) - 1
        chosen = [load for load in loads[max(0, start) :] if load[0] <= self._last]
        wanted = {policy_hash for _, policy_hash in chosen}
        evidence = {seq for seq, _ in chosen}
        # The whole text stands in one entry, or in numbered parts; the first that there is of each counts.
        parts: dict[str, dict[int, str]] = {}
        query = select(_E.seq, _E.body, _E.leaf_hash).where(_E.event.in_((LOAD, TEXT)), _E.seq < self._size)
        for row in self._session.execute(query.order_by(_E.seq).execution_options(yield_per=10)):
            record = _read(row)
            data = record.data if record is not None else {}
            policy_hash, part, text = data.get("hash"), data.get("part", 1), data.get("text")
            if policy_hash in wanted and isinstance(part, int) and isinstance(text, str):
                found = parts.setdefault(str(policy_hash), {})
                if part not in found:
                    found[part] = text
                    evidence.add(row.seq)
        for policy_hash in sorted(wanted):
            text = "".join(text for _, text in sorted(parts.get(policy_hash, {}).items()))
            if hashlib.sha256(text.encode()).hexdigest() == policy_hash:
                self.box.put(f"policy/{policy_hash}.yml", text.encode())
            else:
                self._miss(f"The text of the policy {policy_hash} is not on record.")
        for seq in sorted(evidence):
            body = self._session.execute(select(_E.body).where(_E.seq == seq)).scalar_one()
            self.box.put(f"policy/{seq:012}.json", body)
            if self._head is not None:
                self.box.put(f"policy/{seq:012}.tlog-proof", self._proof(seq))

    # Requests.

    def _write_requests(
        self, request_ids: Sequence[str], about: About, loads: Sequence[tuple[int, str]], *, with_pdf: bool
    ) -> list[Row]:
        rows = []
        with_pdf = with_pdf and self._may_draw(len(request_ids))
        for request_id in request_ids:
            story = self._story(request_id, loads)
            rows.append(row_of(story))
            stem = f"requests/{_file(request_id)}"
            self.box.put(f"{stem}.html", page.request_page(story, about, self._names))
            if with_pdf:
                self.box.put(f"{stem}.pdf", paper.request_paper(story, about, self._names))
        return rows

    def _may_draw(self, requests: int) -> bool:
        if not paper.is_there():
            self._miss("There are no PDFs: they need the extra “reports” of this program. The pages can be printed.")
            return False
        if requests > MOST_PDFS:
            self._miss(
                f"There is no PDF for each request, since there are more than {MOST_PDFS}. The pages can be printed, "
                "and an export of one request has its PDF."
            )
            return False
        return True

    def _story(self, request_id: str, loads: Sequence[tuple[int, str]]) -> Story:
        def policy_file(seq: int) -> str:
            place = bisect.bisect_right(loads, seq, key=lambda load: load[0])
            return loads[place - 1][1] if place else ""

        teller = Teller(request_id, self._names, policy_file)
        for row in self._entries(_E.request_id == request_id):
            teller.add(row.seq, row.leaf_hash, _read(row))
            self._step()
        return teller.story

    def _write_period(self, rows: Sequence[Row], answers: approvers.Ledger, about: About, *, with_pdf: bool) -> None:
        if about.is_one_request:
            return
        period = Period(rows, self._count)
        integrity = answers.finish(about.selection, self._names)
        with self.box.member("population.csv") as member:
            for line in documents.population(rows, self._names):
                member.write(line)
        self.box.put("period.html", page.period_page(period, integrity, about, self._names, _file))
        if with_pdf and paper.is_there():
            self.box.put("period.pdf", paper.period_paper(period, integrity, about, self._names))


def _standing(session: Session, size: int | None) -> _Head | None:
    query = select(_H.id, _H.size, _H.reason, _H.at).order_by(_H.id.desc()).limit(1)
    if size is not None:
        query = query.where(_H.size <= size)
    row = session.execute(query).first()
    return _Head(*row) if row is not None and row.size else None


def _thinned(heads: Sequence[_Head], anchored: set[int]) -> set[int]:
    """Choose at most :data:`MOST_HEADS` ids: each rotation, then those that somebody outside saw, evenly."""
    if len(heads) <= MOST_HEADS:
        return {head.id for head in heads}
    kept = {head.id for head in heads if head.reason == "rotation"}
    for pool in ([head.id for head in heads if head.id in anchored], [head.id for head in heads]):
        room = MOST_HEADS - len(kept)
        if room > 0 and pool:
            kept.update(pool[:: -(-len(pool) // room)])
    return kept


def _read(row: Any) -> Record | None:  # noqa: ANN401 - a row with seq, body and leaf_hash
    """Read an entry; None when its body is not there, or is not what the log wrote at that place."""
    if not isinstance(row.body, bytes):
        return None
    try:
        record = audit.parse(row.body, leaf_hash=row.leaf_hash)
    except ValueError:
        return None
    return record if record.seq == row.seq else None


def _payload_of(record: Record) -> str | None:
    """Return the hash of the text that an entry holds only the beginning of; None: it holds all of it."""
    payload = record.data.get("payload")
    name = payload.get("sha256") if isinstance(payload, dict) else None
    return name if isinstance(name, str) and _SHA256.fullmatch(name) else None


def _file(name: str) -> str:
    """Return a name that is safe as a file's, the same for the same name."""
    return name if _FILE.fullmatch(name) else f"other-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


class _Names(dict[str, str]):
    """The names behind user ids, asked for once each; ``known`` are those that were found."""

    def __init__(self, ask: Callable[[str], str | None]) -> None:
        super().__init__()
        self._ask = ask
        self.is_asked = False

    def get(self, person: str, default: Any = None) -> Any:  # noqa: ANN401 - as a dict's
        return self[person] or default

    def __contains__(self, person: object) -> bool:
        return isinstance(person, str) and bool(self[person])

    def __missing__(self, person: str) -> str:
        found = self._ask(person) or ""
        self[person] = found
        return found

    @property
    def known(self) -> dict[str, str]:
        return {person: name for person, name in sorted(self.items()) if name}


# --- the zip -------------------------------------------------------------------------------------------------------


class _Member:
    """A member while it is written."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._waiting: list[bytes] = []
        self._held = 0
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._waiting.append(data)
        self._held += len(data)
        if self._held >= _CHUNK:
            self.flush()
        return len(data)

    def flush(self) -> None:
        chunk = b"".join(self._waiting)
        self._waiting.clear()
        self._held = 0
        self._hash.update(chunk)
        self._raw.write(chunk)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


class _Box:
    """A zip whose bytes follow from what is put in and from nothing else. ``hashes``: SHA-256 (hex) by name."""

    def __init__(self, out: BinaryIO) -> None:
        self._zip = zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED)
        self.hashes: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # After an error, too: else the library would write the end when the file is closed already.
        with suppress(OSError, ValueError):
            self._zip.close()

    @contextmanager
    def member(self, name: str, *, is_large: bool = False) -> Iterator[_Member]:
        if name in self.hashes:
            raise ValueError(f"two members of the bundle are called {name}")
        info = zipfile.ZipInfo(name, _DATE)
        info.compress_type = zipfile.ZIP_DEFLATED
        info.create_system = 3  # Unix, whatever this machine is
        info.external_attr = 0o100644 << 16
        with self._zip.open(info, "w", force_zip64=is_large) as raw:
            member = _Member(raw)
            yield member
            member.flush()
        self.hashes[name] = member.sha256

    def put(self, name: str, data: bytes) -> None:
        with self.member(name) as member:
            member.write(data)

    def names(self) -> list[str]:
        return sorted(self.hashes)

    def close(self) -> None:
        self.put("MANIFEST", "".join(f"{self.hashes[name]}  {name}\n" for name in self.names()).encode())
        self._zip.close()
