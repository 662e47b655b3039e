"""Is each entry an OCSF 1.8.0 record that its own schema accepts?"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from bundling import IN_FORCE, NAMES, nights, take, unpack
from hypothesis import given, settings
from hypothesis import strategies as st
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

from storage import audit, closing
from storage.export import json_line
from storage.reports import ocsf
from workflows.lifecycle import TRANSITIONS, Move

if TYPE_CHECKING:
    from collections.abc import Iterable

    from storage.audit import Record

NOW = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
LEAF = b"\x05" * 32
ISSUED = {"credential": 1, "path": "database/creds/ro", "identity": "v-ro-1", "lease": "database/creds/ro/1"}


@cache
def schemas() -> OcsfJsonSchemaEmbedded:
    """The published schemas, as the package has them."""
    return OcsfJsonSchemaEmbedded(get_ocsf_schema(ocsf.VERSION))


@cache
def validator(class_uid: int) -> jsonschema.Draft202012Validator:
    """The validator of a class."""
    found = schemas()
    return jsonschema.Draft202012Validator(found.get_class_schema(found.lookup_class_name_from_uid(class_uid)))


def problems(records: Iterable[dict[str, Any]]) -> list[str]:
    """What the schemas have against the records."""
    found = []
    for record in records:
        found += [
            f"{error.json_path}: {error.message[:200]}" for error in validator(record["class_uid"]).iter_errors(record)
        ]
        if record["type_uid"] != record["class_uid"] * 100 + record["activity_id"]:
            found.append("type_uid is not class and activity")
    return found


def record_of(event: str, *, person: str = "U0RITA", request: str | None = "BG-7KQ2", **members: Any) -> Record:
    """An entry, written and read as the log does."""
    actor = audit.SYSTEM if person == "system" else audit.Actor("T0HOME", person)
    return audit.parse(audit.encode(seq=7, event=event, at=NOW, actor=actor, request_id=request, **members))


def mapped(*records: Record) -> list[dict[str, Any]]:
    """All records of these entries."""
    mapper = ocsf.Mapper("log.example.com/orders", NAMES)
    return [made for record in records for made in mapper.records(record, LEAF)]


RAN = {
    "source": "orders-pg",
    "trust": "enforced",
    "at": "2026-03-01T01:59:58.000000Z",
    "identity": "bg-7kq2-1",
    "text": "DELETE FROM orders",
    "class": "write",
}


@pytest.mark.parametrize(
    ("kind", "class_uid"), [("statement", 6005), ("exec", 1007), ("call", 6003), ("", 6005), (None, 6005)]
)
def test_what_was_run_is_of_the_class_of_its_kind(kind: str | None, class_uid: int) -> None:
    """A statement, a program and a call each validate, by the target's clock, with the failure and the danger."""
    told = {**RAN, "kind": kind, "danger": "whole-table delete", "result": "42501"}
    (made,) = mapped(record_of("command:run", data={name: value for name, value in told.items() if value is not None}))
    assert problems([made]) == []
    assert made["class_uid"] == class_uid
    assert (made["severity_id"], made["status"], made["status_code"]) == (4, "Failure", "42501")
    assert made["time"] == round(datetime(2026, 3, 1, 1, 59, 58, tzinfo=UTC).timestamp() * 1000)
    assert "DELETE FROM orders" in str(made)


@pytest.mark.parametrize(
    "event",
    [
        *("command:stop", "command:stranger", "command:close", "command:find", "command:run"),
        *("capture:gap", "capture:down", "capture:up", "capture:unreadable"),
    ],
)
@pytest.mark.parametrize("data", [None, {}, RAN, {"source": "orders-pg", "since": "x"}], ids=str)
def test_everything_about_a_recording_is_valid(event: str, data: dict[str, Any] | None) -> None:
    """Alarms about the recording are findings, and all of them validate, also with nothing in them."""
    for request in ("BG-7KQ2", None):
        made = mapped(record_of(event, person="system", request=request, data=data))
        assert problems(made) == []


@pytest.mark.parametrize("move", TRANSITIONS.values(), ids=lambda move: f"{move.source}-{move.action}")
def test_every_move_of_the_table_is_valid(move: Move) -> None:
    """Each row of TRANSITIONS, done and refused, by a person and by the bot, is accepted by its schema."""
    members: dict[str, Any] = {
        "source": move.source and move.source.value,
        "target": move.target.value,
        "version": 3,
        "policy": IN_FORCE,
        "data": {"credential": 1, "reason": "because", "why": "so"},
    }
    done = [record_of(move.action.value, person=person, **members) for person in ("U0RITA", "U0NOBODY", "system")]
    refused = record_of(move.action.value, refused="not_allowed", data={"said": "No."})
    assert problems(mapped(*done, refused)) == []
    statuses = [made["status_id"] for made in mapped(refused)]
    assert statuses == [2]


@pytest.mark.parametrize(
    ("event", "request_id", "class_uid", "activity"),
    [
        ("request:open", "BG-7KQ2", 3004, 1),
        ("request:deny", "BG-7KQ2", 3004, 11),
        ("request:lapse", "BG-7KQ2", 3004, 11),
        ("request:approve", "BG-7KQ2", 3004, 99),
        ("credential:issue", "BG-7KQ2", 3004, 10),
        ("credential:end", "BG-7KQ2", 3004, 11),
        ("review:file", "BG-7KQ2", 3004, 99),
        (closing.EVENT, "BG-7KQ2", 1008, 99),
        ("log:export", None, 1008, 3),
        ("log:export", "BG-7KQ2", 1008, 3),
        ("log:rotate", None, 1008, 5),
        ("log:alarm", None, 2004, 1),
        ("copy:behind", None, 2004, 1),
        ("ready:fail", None, 2004, 1),
        ("command:stranger", None, 2004, 1),
        ("command:stop", "BG-7KQ2", 2004, 1),
        ("command:find", "BG-7KQ2", 2004, 1),
        ("capture:down", "BG-7KQ2", 2004, 1),
        ("capture:up", None, 2004, 3),
        ("capture:gap", None, 2004, 1),
        ("capture:unreadable", None, 2004, 1),
        ("copy:caught_up", None, 2004, 3),
        ("retention:apply", None, 1008, 2),
        ("policy:load", None, 3004, 3),
        ("request:open", None, 3004, 1),
        ("thing:unheard-of", None, 1008, 99),
        ("thing:unheard-of", "BG-7KQ2", 3004, 99),
    ],
)
def test_each_event_has_its_class(event: str, request_id: str | None, class_uid: int, activity: int) -> None:
    """The mapping is the one that the format names; what is not known is a valid record of its own name."""
    first, *_ = made = mapped(record_of(event, request=request_id, data={"hash": "9f2c", "copy": "archive"}))
    assert problems(made) == []
    assert (first["class_uid"], first["activity_id"]) == (class_uid, activity)
    if activity == 99:
        assert first["activity_name"] == event
    assert first["metadata"]["sequence"] == 7
    assert first["metadata"].get("correlation_uid") == request_id
    assert first["time"] == 1772330400000


def test_an_issue_and_its_end_are_three_records_each() -> None:
    """A grant becomes active, privileges are given, an account is created; and back, under the same name."""
    made = mapped(
        record_of("credential:issue", person="system", data=ISSUED), record_of("credential:end", person="system")
    )
    assert problems(made) == []
    assert [(one["class_uid"], one["activity_id"]) for one in made] == [
        *((3004, 10), (3005, 1), (3001, 1)),
        *((3004, 11), (3005, 2), (3001, 6)),
    ]
    assert {one["user"]["name"] for one in made if "user" in one} == {"v-ro-1"}
    assert [one["metadata"]["uid"] for one in made] == ["7", "7.2", "7.3"] * 2


def test_a_replaced_credential_ends_before_the_next() -> None:
    """“Show again” takes the first account back when it is put out of use, and the end takes the second only."""
    second = ISSUED | {"credential": 2, "identity": "v-ro-2"}
    made = mapped(
        record_of("credential:issue", data=ISSUED),
        record_of("credential:abandon", data={"credential": 1}),
        record_of("credential:reissue", data=second),
        record_of("credential:end"),
    )
    assert problems(made) == []
    changes = [(one["activity_id"], one["user"]["name"]) for one in made if one["class_uid"] == 3001]
    assert changes == [(1, "v-ro-1"), (6, "v-ro-1"), (1, "v-ro-2"), (6, "v-ro-2")]


def test_an_unreadable_entry_is_a_finding() -> None:
    """A body that was pruned or damaged is a detection finding that names the entry."""
    made = ocsf.Mapper(None, {}).unreadable(9, LEAF, 1772330400000)
    assert problems([made]) == []
    assert (made["class_uid"], made["metadata"]["sequence"]) == (2004, 9)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
EVENTS = sorted({move.action.value for move in TRANSITIONS.values()} | {*ocsf._ABOUT_THE_LOG, *ocsf._FINDINGS, "a:b"})
KEYS = st.sampled_from(
    ["reason", "why", "findings", "said", "identity", "path", "lease", "credential", "copy", "hash", "x"]
)


@settings(max_examples=150)
@given(event=st.sampled_from(EVENTS), data=st.dictionaries(KEYS, JSON, max_size=6), is_refused=st.booleans())
def test_whatever_stands_in_an_entry_the_record_is_valid(*, event: str, data: dict[str, Any], is_refused: bool) -> None:
    """Values of any kind under any name never make a record that a schema refuses, and each is one line of JSON."""
    made = mapped(record_of(event, data=data, refused="conflict" if is_refused else None))
    assert problems(made) == []
    assert all(json_line(one).count(b"\n") == 1 for one in made)


def test_every_record_of_a_bundle_is_valid(database) -> None:
    """ocsf.jsonl of a log of several nights: all valid, one at least for each entry, each uid once."""
    nights(database)
    summary, data = take(database)
    made = [json.loads(line) for line in unpack(data)["ocsf.jsonl"].splitlines()]
    assert problems(made) == []
    assert {one["metadata"]["sequence"] for one in made} == set(range(summary.count))
    uids = [one["metadata"]["uid"] for one in made]
    assert len(set(uids)) == len(uids)
    assert (
        next(one for one in made if one["actor"]["user"]["uid"] == "U0CHEN")["actor"]["user"]["full_name"] == "Chen Li"
    )
