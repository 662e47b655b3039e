"""What may be asked for, by whom, and who decides: the file is read strictly, and missing data never permits."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import workflows.policy as policy_module
from workflows.engines import LevelSettings
from workflows.errors import Invalid, NotAllowed, Unavailable
from workflows.lifecycle import Role
from workflows.policy import (
    Account,
    Level,
    Person,
    Policy,
    PolicyInvalid,
    Roster,
    Threshold,
    Verdict,
    accounts_for,
    counted,
    evaluate,
    explain,
    gather,
    in_force,
    is_auditor,
    load,
    parse,
    parse_duration,
    roles,
    say_duration,
)
from workflows.policy_file import MAX_BYTES

ROOT = Path(policy_module.__file__).parent.parent
DEMO = ROOT / "bot" / "demo" / "breakglass.yml"
DOCUMENT = ROOT / "workflows" / "POLICY.md"
TEXT = DEMO.read_text(encoding="utf-8")

RITA, CARL, CHEN, CORA = "U0RITA", "U0CARL", "U0CHEN", "U0CORA"
SAM, LENA, ADA, OLGA, GUS = "U0SAM", "U0LENA", "U0ADA", "U0OLGA", "U0GUS"
GROUPS = {"@on-call": (RITA, CARL), "@leadership": (LENA,), "@security": (SAM,)}
GOOD = {
    "account": "orders-db",
    "level": "write",
    "requester": RITA,
    "threshold": "customer-impact",
    "asked": timedelta(minutes=10),
    "reason": "Checkout fails for every customer",
    "standard_path": "Paged on-call twice, nobody answers",
    "incident": "INC-42",
}


def person(user_id: str, **changes: bool) -> Person:
    """Describe a full member, but for the flags given."""
    flags = {"is_bot": False, "is_guest": False, "is_deleted": False, "is_foreign": False} | changes
    return Person(team="T0DEMO", id=user_id, name=user_id.title(), **flags)


PEOPLE = {u: person(u) for u in (RITA, CARL, CHEN, CORA, SAM, LENA, ADA, OLGA)} | {GUS: person(GUS, is_guest=True)}
ROSTER = Roster(PEOPLE, GROUPS)


@pytest.fixture(scope="module")
def demo() -> Policy:
    """Load the demo's policy."""
    return load(DEMO)


def problems(text: str) -> list[tuple[int, str, str]]:
    """Return line, place and sentence of every problem of a text that must not load."""
    with pytest.raises(PolicyInvalid) as caught:
        parse(text, name="p.yml")
    return [(p.line, p.where, p.sentence) for p in caught.value.problems]


def line_of(text: str, part: str) -> int:
    """Return the line, from 1, at which a part of the text stands first."""
    return text.count("\n", 0, text.index(part)) + 1


# --- Durations --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds", "said"),
    [
        ("90s", 90, "1 minute 30 seconds"),
        ("15m", 900, "15 minutes"),
        ("2h", 7200, "2 hours"),
        ("3d", 259200, "3 days"),
        ("1h30m", 5400, "1 hour 30 minutes"),
        (" 1d1h1m1s ", 90061, "1 day 1 hour 1 minute 1 second"),
    ],
)
def test_a_duration_is_read_and_said(text, seconds, said):
    """Each documented form of a duration is read to the second and said in words."""
    assert parse_duration(text) == timedelta(seconds=seconds)
    assert say_duration(parse_duration(text)) == said


@pytest.mark.parametrize(
    "text", ["", " ", "15", "m", "0m", "0s", "-5m", "1.5h", "15 m", "1m1h", "1h1h", "15M", "٣m", "999999d", "1h\n30m"]
)
def test_what_is_not_a_duration_says_how_to_write_one(text):
    """Anything else than a positive duration of the documented form raises with a sentence that shows the form."""
    with pytest.raises(ValueError, match="90s, 15m, 2h, 3d or 1h30m"):
        parse_duration(text)


def test_time_that_has_run_out_is_nothing():
    """A negative rest of time is said as zero, and parts of a second are dropped."""
    assert say_duration(timedelta(seconds=-3)) == "0 seconds"
    assert say_duration(timedelta(seconds=59.9)) == "59 seconds"


@given(st.integers(1, 99999 * 86400))
def test_every_whole_second_round_trips(seconds):
    """A duration said in words, written short, is read as the same duration."""
    said = say_duration(timedelta(seconds=seconds))
    short = re.sub(r" (d|h|m|s)[a-z]* ?", r"\1", said)
    assert parse_duration(short) == timedelta(seconds=seconds)


# --- The file ---------------------------------------------------------------------------------------------------------


def test_the_demo_policy_is_read_completely(demo):
    """Every value of the demo's file is where the program looks for it."""
    orders = demo.accounts["orders-db"]
    read, write = orders.levels["read"], orders.levels["write"]
    assert (orders.owner, orders.custodians, orders.responders) == (CORA, (CARL, CHEN, CORA), ("@on-call",))
    assert list(orders.thresholds) == ["customer-impact", "data-loss"]
    assert orders.thresholds["data-loss"].text.startswith("Orders are being lost")
    assert (read.quorum, read.longest, read.default) == (1, timedelta(minutes=30), timedelta(minutes=15))
    assert (write.quorum, write.longest, write.default) == (2, timedelta(minutes=15), timedelta(minutes=10))
    assert read.settings == LevelSettings(
        engine="database",
        token_role="breakglass-orders-db-read",
        options={
            "mount": "database",
            "role": "orders-ro",
            "host": "127.0.0.1",
            "port": "5432",
            "database": "orders",
            "watch_role": "orders-watch",
            "group": "bg_orders_ro",
            "manager": "bgmgr",
            "read_only": "true",
            "statement_timeout": "5m",
        },
    )
    assert write.settings.options["role"] == "orders-rw"
    assert demo.incident_channel == "C0INCIDENT"
    assert demo.review_within == timedelta(days=3)
    assert demo.hash == hashlib.sha256(DEMO.read_bytes()).hexdigest()
    assert demo.text == TEXT
    assert demo.everyone() == ("@leadership", "@security", ADA, CORA, CARL, CHEN, "@on-call")


def test_the_demo_can_put_its_port_in():
    """The port stands on lines of its own, so that the demo can rewrite it."""
    text, count = re.subn(r"(?m)^( *port: )5432$", r"\g<1>6543", TEXT)
    assert count == 3
    levels = parse(text, name="p").accounts["orders-db"].levels.values()
    assert {level.settings.options["port"] for level in levels} == {"6543"}


def test_the_documents_example_loads_and_every_key_is_explained():
    """The example of POLICY.md is a policy, and each key that the demo's file uses has a row in the document."""
    document = DOCUMENT.read_text(encoding="utf-8")
    example = re.search(r"```yaml\n(.*?)```", document, re.DOTALL)
    assert example is not None
    policy = parse(example[1], name="POLICY.md")
    assert policy.accounts["orders-db"].levels["read"].quorum == 1
    explained = {key for row in re.findall(r"(?m)^\| (`.*?) \|", document) for key in re.findall(r"`(\w+)`", row)}
    chosen = {"orders-db", "read", "write", "rehearsal", "customer-impact", "data-loss", "archive"}
    assert set(re.findall(r"(?m)^ *([\w-]+):", TEXT)) - chosen <= explained


def test_a_policy_cannot_be_changed_after_it_was_read(demo):
    """Neither a value nor a mapping of a loaded policy can be written to."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        demo.accounts["orders-db"].owner = OLGA
    with pytest.raises(TypeError):
        demo.accounts["mine"] = demo.accounts["orders-db"]
    with pytest.raises(TypeError):
        demo.accounts["orders-db"].levels["admin"] = None


# Each: what stands in the file, what is put in its place, where the problem is, and what its sentence says.
MISTAKES = [
    ("version: 1", "version: 2", "version", "whole number from 1 to 1"),
    ("version: 1", "version: '1'", "version", "without quotes"),
    ("C0INCIDENT", "'#incidents'", "incident_channel", "channel's id"),
    ('["@leadership"] #', "[] #", "leadership", "empty"),
    ('leadership: ["@leadership"]', "leadership: U0LENA", "leadership", "must be a list"),
    ('reviewers: ["@security"]', "reviewers: ['#security']", "reviewers[0]", "user id (U…)"),
    ('reviewers: ["@security"]', "reviewers: [sam@example.com]", "reviewers[0]", "user id (U…)"),
    ("[U0ADA]", "[u0ada]", "auditors[0]", "user id (U…)"),
    ("[U0ADA]", "[[U0ADA]]", "auditors[0]", "must be text"),
    ("[U0ADA]", "[U0ADA, ]\nsurprise: 1", "surprise", "unknown"),
    ("[U0ADA]", "[~]", "auditors[0]", "empty"),
    ("3d", "0d", "review_within", "longer than zero"),
    ("3d", "3", "review_within", "90s, 15m"),
    ("3d", "91d", "review_within", "to 90 days"),
    ("3d", "-3d", "review_within", "90s, 15m"),
    ("  orders-db:", "  Orders DB:", "accounts.Orders DB", "A name is"),
    ("  orders-db:", "  -orders:", "accounts.-orders", "A name is"),
    ("Orders database", "yes", "accounts.orders-db.title", "put it in quotes"),
    ("Orders database", "''", "accounts.orders-db.title", "empty"),
    ("Orders database", "' '", "accounts.orders-db.title", "empty"),
    ("Orders database", "Orders <!channel>", "accounts.orders-db.title", "without < and >"),
    ("Orders database", '"Orders\\u202E"', "accounts.orders-db.title", "one line"),
    ("Orders database", '"Orders\\nall"', "accounts.orders-db.title", "one line"),
    ("Orders database", "O" * 76, "accounts.orders-db.title", "76 characters; write at most 75"),
    ("owner: U0CORA", 'owner: "@leadership"', "accounts.orders-db.owner", "one accountable person"),
    ("owner: U0CORA", "owner: ", "accounts.orders-db.owner", "empty"),
    ("owner: U0CORA", "owner: [U0CORA]", "accounts.orders-db.owner", "must be text"),
    ("[U0CARL, U0CHEN, U0CORA]", "[]", "accounts.orders-db.custodians", "empty"),
    ("[U0CARL, U0CHEN, U0CORA]", "[U0CARL, U0CHEN, U0CARL]", "accounts.orders-db.custodians[2]", "listed twice"),
    ("[U0CARL, U0CHEN, U0CORA]", "[U0CARL]", "accounts.orders-db.levels.write.quorum", "only 1 custodians"),
    ("customer-impact:", "Customer_Impact:", "accounts.orders-db.thresholds.Customer_Impact", "A name is"),
    ("engine: database", "engine: databse", "accounts.orders-db.levels.read.engine", "There is no such engine"),
    ("mount: database", "mount: ../sys", "accounts.orders-db.levels.read.mount", "mount"),
    ("mount: database", "mount: /database/", "accounts.orders-db.levels.read.mount", "mount"),
    ("role: orders-ro", "role: ../config/x", "accounts.orders-db.levels.read.role", "role"),
    ("token_role: breakglass-orders-db-read", "token_role: a/b", "accounts.orders-db.levels.read.token_role", "role"),
    ("host: 127.0.0.1", "host: h user=postgres", "accounts.orders-db.levels.read.host", "host"),
    ("port: 5432", "port: 0", "accounts.orders-db.levels.read.port", "not a TCP port"),
    ("port: 5432", "port: 0x10", "accounts.orders-db.levels.read.port", "plain digits"),
    ("port: 5432", "port: 54_32", "accounts.orders-db.levels.read.port", "plain digits"),
    ("port: 5432", "port: true", "accounts.orders-db.levels.read.port", "must be text"),
    ("quorum: 1", "quorum: 0", "accounts.orders-db.levels.read.quorum", "from 1 to 100"),
    ("quorum: 1", "quorum: -1", "accounts.orders-db.levels.read.quorum", "from 1 to 100"),
    ("quorum: 1", "quorum: 4", "accounts.orders-db.levels.read.quorum", "name more or ask for fewer"),
    ("quorum: 1", "quorum: 1.5", "accounts.orders-db.levels.read.quorum", "whole number"),
    ("longest: 30m", "longest: 10m", "accounts.orders-db.levels.read.default", "longer than the longest"),
    ("longest: 30m", "longest: 25h", "accounts.orders-db.levels.read.longest", "to 1 day"),
    ("longest: 30m", "longest: 30", "accounts.orders-db.levels.read.longest", "90s, 15m"),
    ("default: 15m", "default: 30s", "accounts.orders-db.levels.read.default", "from 1 minute"),
    ("default: 15m", "default: {}", "accounts.orders-db.levels.read.default", "90s, 15m"),
    ("answer_within: 15m", "answer_within: 0s", "accounts.orders-db.levels.read.answer_within", "longer than zero"),
    ("open_within: 15m", "open_within: 2d", "accounts.orders-db.levels.read.open_within", "to 1 day"),
    ("quorum: 1", "qourum: 1", "accounts.orders-db.levels.read.qourum", "did you mean “quorum”?"),
]


@pytest.mark.parametrize(("old", "new", "where", "says"), MISTAKES, ids=lambda value: str(value)[:30])
def test_each_mistake_is_named_with_its_line(old, new, where, says):
    """One mistake gives a problem at its own line and place, with a sentence that says what to do."""
    text = TEXT.replace(old, new, 1)
    found = problems(text)
    hits = [(line, sentence) for line, place, sentence in found if place == where]
    assert len(hits) == 1, found
    assert says in hits[0][1]
    assert hits[0][0] == line_of(TEXT, old) + new.count("\n") or where.endswith("write.quorum") or "default" in where


def test_all_problems_are_told_at_once():
    """A file with many mistakes tells all of them, in the order of its lines, as file, line, place, sentence."""
    text = TEXT.replace("version: 1", "version: 9").replace("3d", "0s").replace("owner: U0CORA", "owner: cora")
    text = (
        text.replace("quorum: 2", "quorum: 7").replace("mount: database", "mount: /x/").replace("port: 5432", "port: 0")
    )
    with pytest.raises(PolicyInvalid) as caught:
        parse(text, name="p.yml")
    assert [p.where.rpartition(".")[2] for p in caught.value.problems] == [
        "version", "review_within", "owner", "mount", "port", "mount", "port", "quorum", "mount", "port",
    ]  # fmt: skip
    lines = str(caught.value).splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("p.yml:3: version: ")
    assert caught.value.code == caught.value.reason == "policy_invalid"


def blocks(text: str) -> list[tuple[str, str]]:
    """Give, for each key of the file, the key and the file without it and what is below it."""
    lines, found = text.split("\n"), []
    for number, line in enumerate(lines):
        if match := re.match(r"( *)([\w-]+):", line):
            end = number + 1
            while end < len(lines) and lines[end].startswith(match[1] + " "):
                end += 1
            found.append((match[2], "\n".join(lines[:number] + lines[end:])))
    return found


@pytest.mark.parametrize(("key", "text"), blocks(TEXT), ids=lambda value: value if len(value) < 30 else "text")
def test_no_key_may_be_missing(key, text):
    """Taking any key out of the file refuses and names the key, but for what is optional or one of several."""
    optional = {"open_within", "watch_role", "log", "heartbeat", "copies", "drill", "every", "announced", "pass"}
    optional |= {"group", "manager", "read_only", "statement_timeout"}
    if key in optional | {"read", "write", "customer-impact", "data-loss"}:
        assert parse(text, name="p")
    elif key == "rehearsal":
        assert any(place.endswith("drill.level") for _, place, _ in problems(text))
    elif key == "archive":
        assert any(place == "log.copies" for _, place, _ in problems(text))
    elif key == "orders-db":
        assert any(place == "accounts" for _, place, _ in problems(text))
    else:
        assert any(f"“{key}” is missing" in sentence for _, _, sentence in problems(text))


@pytest.mark.parametrize("key", ["thresholds", "levels"])
def test_an_account_needs_thresholds_and_levels(key):
    """An account whose thresholds or levels are empty refuses: no use of it could be asked for or judged."""
    start = TEXT.index(f"    {key}:")
    end = TEXT.index("    standard_path:") if key == "thresholds" else len(TEXT)
    found = problems(TEXT[:start] + f"    {key}: {{}}\n" + TEXT[end:])
    assert [(place, "1 to 20" in sentence) for _, place, sentence in found] == [(f"accounts.orders-db.{key}", True)]


def test_the_opening_time_is_fifteen_minutes_unless_stated():
    """Without open_within an approval waits fifteen minutes to be opened."""
    level = parse(TEXT.replace("        open_within: 15m\n", ""), name="p").accounts["orders-db"].levels["read"]
    assert level.open_within == timedelta(minutes=15)


def test_a_key_that_stands_twice_is_refused():
    """The second of two equal keys, which YAML would let win in silence, is a problem at its line."""
    text = TEXT.replace("        quorum: 2\n", "        quorum: 2\n        quorum: 1\n")
    assert [(line, place) for line, place, _ in problems(text)] == [
        (line_of(text, "quorum: 2") + 1, "accounts.orders-db.levels.write.quorum")
    ]


def test_a_group_may_be_larger_than_it_looks():
    """A quorum above the number of listed names loads when a group is among them, since its size is not known here."""
    text = TEXT.replace("[U0CARL, U0CHEN, U0CORA]", '["@dba"]')
    assert parse(text, name="p").accounts["orders-db"].levels["write"].quorum == 2


def test_a_levels_keys_are_those_of_its_engine():
    """A key that the level's engine does not know is unknown there, and the known ones are named."""
    with pytest.raises(PolicyInvalid, match=r"known here: .*watch_role"):
        parse(TEXT.replace("host: 127.0.0.1", "host: 127.0.0.1\n        principal: root", 1), name="p")


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", 1, "empty"),
        ("# only a comment\n", 1, "empty"),
        ("just words", 1, "key: value"),
        ("- a\n- b", 1, "key: value"),
        ("a: 1\nb: &x [c]\n", 2, "Anchors"),
        ("a: &x [c]\nb: *x\n", 1, "Anchors"),
        ("a: !!python/object/apply:os.system [id]", 1, "Tags"),
        ("a: !!str 1", 1, "Tags"),
        ("a: 1\n---\nb: 2\n", 2, "one document"),
        ("a: 1\nb: [@security]", 2, "must stand in quotes"),
        ("a:\n\tb: 1", 2, "not with tabs"),
        ("a: 1\nb: \x07", 2, "control character"),
        ("a: [1", 1, "not YAML"),
        ("? [a]\n: 1", 1, "not text"),
        ("yes: 1", 1, "not text"),
        ("<<: {a: 1}", 1, "not text"),
        ("a: \ud800", 1, "control character"),
    ],
)
def test_what_is_not_a_policy_says_so(text, line, says):
    """Text that is not plain YAML, or means something else than it shows, refuses with the line."""
    assert any(says in sentence and at == line for at, _, sentence in problems(text)), problems(text)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{a: " * 50_000, "- " * 100_000, "a:\n" + "".join(f"{' ' * n}b:\n" for n in range(1, 400))]
)
def test_deep_nesting_does_not_end_the_process(text):
    """A file of nothing but brackets is refused instead of overflowing the composer's stack."""
    assert any("nested deeper" in sentence for _, _, sentence in problems(text))


def test_a_file_is_bounded():
    """A text above the bound is refused before it is parsed, also when the bound cuts a character in two."""
    assert "larger than 256 KiB" in problems("#" * (MAX_BYTES + 1))[0][2]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        (b"version: 1\n\xff\xfe", "UTF-8"),
        ("ü".encode() * MAX_BYTES, "larger than"),
        (b"#" + "ü".encode() * MAX_BYTES, "larger than"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_problem_of_the_policy(tmp_path, content, says):
    """A missing, binary or huge file raises the same error as a wrong one, naming the file."""
    path = tmp_path / "breakglass.yml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PolicyInvalid, match=says) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))


def test_a_directory_is_not_a_policy(tmp_path):
    """Pointing at a directory is told like a missing file."""
    with pytest.raises(PolicyInvalid, match="cannot be read"):
        load(tmp_path)


_ALPHABET = st.text(st.sampled_from("abU0:- \n\t@&*![]{}'\"#,|>%?~.1s\x00é"), max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(TEXT)), st.integers(0, 30), _ALPHABET), min_size=1, max_size=4))
def test_a_damaged_file_loads_or_is_explained(cuts):
    """Whatever is done to the text, it gives a policy or problems with a line of the file and a whole sentence."""
    text = TEXT
    for at, length, put in cuts:
        text = text[:at] + put + text[at + length :]
    policy, found = None, ()
    try:
        policy = parse(text, name="p")
    except PolicyInvalid as error:
        found = error.problems
    assert (policy is None) == bool(found)
    for problem in found:
        assert 1 <= problem.line <= text.count("\n") + 2
        assert problem.sentence[-1] in ".?"
    if policy is not None:
        assert policy.text == text
        for account in policy.accounts.values():
            assert account.owner
            assert account.custodians
            assert account.thresholds
            for level in account.levels.values():
                assert level.quorum >= 1
                assert timedelta(minutes=1) <= level.default <= level.longest <= timedelta(hours=24)


# --- People -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("is_bot", "is a bot"),
        ("is_guest", "is a guest"),
        ("is_deleted", "is deactivated"),
        ("is_foreign", "belongs to another workspace"),
    ],
)
def test_who_is_not_a_full_member_holds_no_role(demo, flag, says):
    """A bot, a guest, a deactivated or a foreign person holds no role, whatever list names them."""
    everywhere = dataclasses.replace(
        demo,
        reviewers=(CHEN,),
        auditors=(CHEN,),
        accounts={"orders-db": dataclasses.replace(demo.accounts["orders-db"], responders=(CHEN,))},
    )
    assert person(CHEN, **{flag: True}).inability() == says
    well = roles(everywhere, ROSTER, "orders-db", CHEN, requester=RITA)
    assert well == {Role.RESPONDER, Role.CUSTODIAN, Role.REVIEWER}
    ill = Roster(PEOPLE | {CHEN: person(CHEN, **{flag: True})}, GROUPS)
    assert roles(everywhere, ill, "orders-db", CHEN, requester=RITA) == frozenset()
    assert roles(everywhere, ill, "orders-db", CHEN, requester=CHEN) == frozenset()
    assert not is_auditor(everywhere, ill, CHEN)
    assert accounts_for(everywhere, ill, CHEN) == ()
    for role in Role:
        assert says in explain(everywhere, ill, "orders-db", CHEN, role, requester=CHEN)


def test_slacks_own_bot_is_a_bot():
    """USLACKBOT, which Slack describes as no bot, is one."""
    assert person("USLACKBOT").inability() == "is a bot"
    assert person(RITA).inability() is None


def test_a_person_whom_slack_does_not_know_holds_no_role(demo):
    """An unknown user id holds no role, also when lists name it."""
    unknown = Roster({u: p for u, p in PEOPLE.items() if u != CHEN}, GROUPS)
    assert roles(demo, unknown, "orders-db", CHEN, requester=RITA) == frozenset()
    assert "Slack does not say who you are" in explain(demo, unknown, "orders-db", CHEN, Role.CUSTODIAN, requester=RITA)


def test_names_resolve_to_distinct_people_in_order():
    """Users and groups become distinct user ids in stated order; an unknown group gives nobody."""
    assert ROSTER.resolve(["@security", RITA, "@on-call", "@nobody", "S0NONE", SAM]) == (SAM, RITA, CARL)


def test_each_person_of_the_demo_holds_the_stated_roles(demo):
    """The roles of the demo's people are those that its document promises."""

    def held(user_id):
        return roles(demo, ROSTER, "orders-db", user_id, requester=RITA, approvers=(CHEN,))

    assert held(RITA) == {Role.RESPONDER, Role.REQUESTER}
    assert held(CARL) == {Role.RESPONDER, Role.CUSTODIAN}
    assert held(CHEN) == held(CORA) == {Role.CUSTODIAN}
    assert held(SAM) == {Role.REVIEWER, Role.OVERSEER}
    assert held(LENA) == {Role.OVERSEER}
    assert held(ADA) == held(OLGA) == held(GUS) == frozenset()
    assert [u for u in PEOPLE if is_auditor(demo, ROSTER, u)] == [ADA]
    assert [u for u in PEOPLE if accounts_for(demo, ROSTER, u)] == [RITA, CARL]


def test_every_refusal_is_a_sentence_to_the_person(demo):
    """Each way not to hold a role has a sentence of its own that says why and who could."""

    def said(user_id, role, **more):
        return explain(demo, ROSTER, "orders-db", user_id, role, **({"requester": RITA} | more))

    assert said(RITA, Role.CUSTODIAN) == "You asked for this access yourself, so you cannot approve it."
    assert said(OLGA, Role.CUSTODIAN) == (
        "You are not a custodian of Orders database; its custodians are <@U0CARL>, <@U0CHEN>, <@U0CORA>."
    )
    assert "after this request was opened" in said(CORA, Role.CUSTODIAN, asked=(CARL, CHEN))
    assert said(CARL, Role.CUSTODIAN, asked=(CARL, CHEN)) is None
    assert said(CARL, Role.CUSTODIAN, asked=()) is not None  # nobody was asked, which is not "it was not asked who"
    assert "<@U0CORA>, can add you" in said(OLGA, Role.RESPONDER)
    assert said(OLGA, Role.REQUESTER) == "Only the person who asked for this access may do this."
    assert said(RITA, Role.REVIEWER) == "You asked for this access yourself, so you cannot review it."
    assert said(SAM, Role.REVIEWER, approvers=(SAM,)) == "You approved this access, so somebody else must review it."
    assert said(OLGA, Role.REVIEWER) == "You are not a reviewer; the reviewers are <@U0SAM>."
    assert said(OLGA, Role.SYSTEM) == "Only the bot itself may do this."


def test_attack_separation_of_duties_by_a_forgotten_requester(demo):
    """Who calls without saying who asked gets no custodian and no reviewer, instead of nobody being excluded."""
    for user_id in PEOPLE:
        held = roles(demo, ROSTER, "orders-db", user_id)
        assert held.isdisjoint({Role.CUSTODIAN, Role.REVIEWER, Role.REQUESTER})


def test_attack_a_custodian_who_was_listed_meanwhile(demo):
    """Adding a friend to the policy does not let the friend decide about a request that is open already."""
    orders = demo.accounts["orders-db"]
    later = dataclasses.replace(
        demo, accounts={"orders-db": dataclasses.replace(orders, custodians=(*orders.custodians, OLGA))}
    )
    asked = (CARL, CHEN, CORA)
    assert explain(later, ROSTER, "orders-db", OLGA, Role.CUSTODIAN, requester=RITA) is None
    assert explain(later, ROSTER, "orders-db", OLGA, Role.CUSTODIAN, requester=RITA, asked=asked) is not None


def test_a_custodian_who_was_taken_out_meanwhile_cannot_decide(demo):
    """Having been asked is not enough: who is no longer a custodian has no say."""
    assert explain(demo, ROSTER, "orders-db", OLGA, Role.CUSTODIAN, requester=RITA, asked=(OLGA, CARL)) is not None


def test_a_long_list_of_custodians_is_cut(demo):
    """A sentence names ten people at most and says how many more there are."""
    crowd = tuple(f"U0C{number:03}" for number in range(300))
    roster = Roster(PEOPLE | {u: person(u) for u in crowd}, GROUPS | {"@crowd": crowd})
    orders = dataclasses.replace(demo.accounts["orders-db"], custodians=("@crowd",))
    policy = dataclasses.replace(demo, accounts={"orders-db": orders})
    sentence = explain(policy, roster, "orders-db", OLGA, Role.CUSTODIAN, requester=RITA)
    assert sentence.count("<@") == 10
    assert sentence.endswith("and 290 more.")


# --- Gathering --------------------------------------------------------------------------------------------------------


class Book:
    """A directory on paper that keeps what it was asked."""

    def __init__(self, people, groups, down=()):
        self.people, self.groups, self.down = people, groups, down
        self.asked = []

    def person(self, user_id):
        """Look a person up."""
        self.asked.append(user_id)
        if user_id in self.down:
            raise Unavailable("Slack does not answer.")
        return self.people.get(user_id)

    def members(self, group):
        """Look a group up."""
        self.asked.append(group)
        if group in self.down:
            raise Unavailable("Slack does not answer.")
        return self.groups.get(group)


def test_gather_learns_what_a_verdict_needs(demo):
    """With the requester named, a gathered roster gives the verdict of complete knowledge; each is asked once."""
    book = Book(PEOPLE, GROUPS)
    roster = gather(book, demo, "orders-db", [RITA])
    assert evaluate(demo, roster, **GOOD) == evaluate(demo, ROSTER, **GOOD)
    assert evaluate(demo, roster, **GOOD).is_allowed
    assert len(book.asked) == len(set(book.asked))
    assert LENA not in book.asked  # leadership may be a large group, and nothing is judged by it
    assert roster.resolve(demo.leadership) == (LENA,)


def test_gather_for_every_account_knows_what_each_needs(demo):
    """Without an account all accounts are gathered; with an unknown one only what is global."""
    two = dataclasses.replace(
        demo,
        accounts={
            **demo.accounts,
            "other": dataclasses.replace(demo.accounts["orders-db"], name="other", responders=("@more",)),
        },
    )
    book = Book(PEOPLE, GROUPS | {"@more": (OLGA,)})
    assert [a.name for a in accounts_for(two, gather(book, two, None, [OLGA]), OLGA)] == ["other"]
    assert accounts_for(two, gather(book, two, "orders-db", [OLGA]), OLGA) == ()
    assert set(gather(book, two, "no-such", [OLGA]).people) == {SAM, ADA, OLGA}


@pytest.mark.parametrize("down", [CARL, SAM, RITA, "@on-call", "@security", "@leadership"])
def test_gather_never_fills_in_what_it_could_not_learn(demo, down):
    """When the directory does not answer for anybody who matters, there is no roster at all."""
    with pytest.raises(Unavailable):
        gather(Book(PEOPLE, GROUPS, down=(down,)), demo, "orders-db", [RITA])


def test_gather_leaves_out_who_does_not_exist(demo):
    """A user or group that does not exist is absent from the roster, and so permits nothing."""
    roster = gather(Book({RITA: PEOPLE[RITA]}, {}), demo, "orders-db", [RITA])
    assert (dict(roster.people), dict(roster.groups)) == ({RITA: PEOPLE[RITA]}, {})
    assert not evaluate(demo, roster, **GOOD).is_allowed


# --- The verdict ------------------------------------------------------------------------------------------------------


def codes(verdict: Verdict) -> set[tuple[str | None, str]]:
    """Return what is unmet, without its words."""
    return {(unmet.field, unmet.code) for unmet in verdict.unmet}


def test_a_good_request_is_allowed_and_says_what_it_takes(demo):
    """The verdict on a complete request names the custodians for this requester and the quorum."""
    verdict = evaluate(demo, ROSTER, **GOOD)
    verdict.require()
    assert verdict.is_allowed
    assert verdict.custodians == (CARL, CHEN, CORA)
    assert verdict.sentence == "Needs 2 of 3 custodians; at most 15 minutes."
    assert (verdict.quorum, verdict.longest, verdict.default) == (2, timedelta(minutes=15), timedelta(minutes=10))


def test_a_requester_who_is_a_custodian_is_not_counted_among_them(demo):
    """The custodians of one's own request are the others."""
    verdict = evaluate(demo, ROSTER, **(GOOD | {"requester": CARL}))
    assert verdict.sentence == "Needs 2 of 2 custodians; at most 15 minutes."
    assert verdict.custodians == (CHEN, CORA)


WRONG_WORDS = [
    ({"account": "nope"}, "account", "unknown_account"),
    ({"level": "admin"}, "level", "unknown_level"),
    ({"threshold": "boredom"}, "threshold", "unknown_threshold"),
    ({"threshold": ""}, "threshold", "unknown_threshold"),
    ({"asked": timedelta(minutes=15, seconds=1)}, "duration", "too_long"),
    ({"asked": timedelta(seconds=59)}, "duration", "too_short"),
    ({"asked": timedelta(seconds=-900)}, "duration", "too_short"),
    ({"reason": ""}, "reason", "empty"),
    ({"reason": " \n\t " * 5}, "reason", "empty"),
    ({"reason": "\u200b\u2060\ufeff" * 5}, "reason", "empty"),
    ({"reason": "too short"}, "reason", "too_few_words"),
    ({"reason": "x" * 2001}, "reason", "too_many_words"),
    ({"standard_path": "  tried  \u200b\u200b\u200b\u200b\u200b"}, "standard_path", "too_few_words"),
    ({"standard_path": "x" * 2001}, "standard_path", "too_many_words"),
    ({"incident": " "}, "incident", "empty"),
    ({"incident": "x" * 101}, "incident", "too_many_words"),
    *(
        ({name: None}, "duration" if name == "asked" else name, "missing")
        for name in ("account", "level", "threshold", "asked", "reason", "standard_path", "incident")
    ),
]


@pytest.mark.parametrize(("change", "field", "code"), WRONG_WORDS, ids=str)
def test_wrong_words_are_told_under_their_field(demo, change, field, code):
    """Each wrong or missing word refuses as Invalid, with a sentence under its own field."""
    verdict = evaluate(demo, ROSTER, **(GOOD | change))
    assert (field, code) in codes(verdict)
    assert not verdict.is_allowed
    with pytest.raises(Invalid) as caught:
        verdict.require()
    assert set(caught.value.fields) == {field}
    assert caught.value.reason == code
    assert caught.value.fields[field] in str(caught.value)


def test_all_wrong_fields_are_told_at_once(demo):
    """A form with several mistakes gets a sentence under each."""
    wrong = GOOD | {"reason": "", "threshold": "?", "asked": timedelta(days=1), "incident": ""}
    with pytest.raises(Invalid) as caught:
        evaluate(demo, ROSTER, **wrong).require()
    assert set(caught.value.fields) == {"reason", "threshold", "duration", "incident"}


@pytest.mark.parametrize(
    ("least", "most", "field"), [(10, 2000, "reason"), (10, 2000, "standard_path"), (1, 100, "incident")]
)
def test_the_limits_of_words_are_inclusive(demo, least, most, field):
    """Exactly the least and the most characters are allowed."""
    assert evaluate(demo, ROSTER, **(GOOD | {field: "x" * least})).is_allowed
    assert evaluate(demo, ROSTER, **(GOOD | {field: "x" * most})).is_allowed


@pytest.mark.parametrize("asked", [timedelta(minutes=1), timedelta(minutes=15)])
def test_the_limits_of_time_are_inclusive(demo, asked):
    """Exactly a minute and exactly the longest time are allowed."""
    assert evaluate(demo, ROSTER, **(GOOD | {"asked": asked})).is_allowed


@pytest.mark.parametrize(
    ("user_id", "code", "says"),
    [
        (OLGA, "not_responder", "Orders database"),
        (GUS, "unfit_person", "is a guest"),
        ("U0GHOST", "unfit_person", "Slack"),
    ],
)
def test_the_wrong_person_is_not_allowed_whatever_they_wrote(demo, user_id, code, says):
    """A person who may not ask is told so as NotAllowed, also when the words are wrong as well."""
    verdict = evaluate(demo, ROSTER, **(GOOD | {"requester": user_id, "reason": ""}))
    with pytest.raises(NotAllowed, match=says) as caught:
        verdict.require()
    assert caught.value.reason == code


def test_a_preview_holds_nothing_against_an_empty_form(demo):
    """A preview reports what is wrong, not what is still blank, and yet can never pass the gate."""
    empty = evaluate(demo, ROSTER, account=None, level=None, requester=RITA, preview=True)
    assert (empty.unmet, empty.sentence, empty.is_allowed) == ((), "Choose an account.", False)
    started = evaluate(demo, ROSTER, account="orders-db", level=None, requester=RITA, preview=True)
    assert (started.unmet, started.sentence, started.is_allowed) == ((), "Choose a level.", False)
    chosen = evaluate(demo, ROSTER, account="orders-db", level="read", requester=RITA, preview=True)
    assert chosen.is_allowed
    assert chosen.sentence == "Needs 1 of 3 custodians; at most 30 minutes."
    for verdict in (empty, started, chosen):
        with pytest.raises(Invalid):
            verdict.require()
    evaluate(demo, ROSTER, **GOOD, preview=True).require()


def test_a_preview_and_the_gate_agree_on_a_complete_form(demo):
    """With every field filled in, preview and gate give the same verdict."""
    for change in [{}, *(change for change, _, code in WRONG_WORDS if code != "missing")]:
        assert evaluate(demo, ROSTER, **(GOOD | change), preview=True) == evaluate(demo, ROSTER, **(GOOD | change))


def test_a_verdict_built_by_hand_does_not_pass():
    """A verdict without account and level is no permission, though nothing is unmet."""
    nothing = Verdict(None, None, (), 0, timedelta(0), timedelta(0), ())
    assert not nothing.is_allowed
    with pytest.raises(Invalid):
        nothing.require()


def changed(demo: Policy, **account: object) -> Policy:
    """Return the demo's policy with another account of the same name."""
    orders = dataclasses.replace(demo.accounts["orders-db"], **account)
    return dataclasses.replace(demo, accounts={"orders-db": orders})


def test_nobody_able_to_approve_refuses(demo):
    """An account whose custodians are nobody, or only the requester, refuses before anybody is woken."""
    for custodians in ((), ("@nobody",), (RITA,), (GUS,), ("U0GHOST",)):
        verdict = evaluate(changed(demo, custodians=custodians), ROSTER, **GOOD)
        assert codes(verdict) == {("account", "no_custodians")}
        assert verdict.custodians == ()


def test_too_few_custodians_for_this_requester_refuse(demo):
    """A quorum that the others cannot reach refuses under the level, and says how many there are."""
    verdict = evaluate(changed(demo, custodians=(CARL, CHEN)), ROSTER, **(GOOD | {"requester": CARL}))
    assert codes(verdict) == {("level", "too_few_custodians")}
    assert "needs 2 custodians, and only 1 can approve" in verdict.sentence


@pytest.mark.parametrize(
    ("reviewers", "custodians", "is_allowed"),
    [
        ((), (CARL, CHEN), False),
        (("@nobody",), (CARL, CHEN), False),
        ((RITA,), (CARL, CHEN), False),  # the requester
        ((GUS,), (CARL, CHEN), False),  # unable
        ((CARL,), (CARL, CHEN), False),  # needed for the quorum of two
        ((CARL, CHEN), (CARL, CHEN), False),
        ((CARL,), (CARL, CHEN, CORA), True),  # the other two can approve
        ((CARL, CHEN), (CARL, CHEN, CORA), True),
        ((SAM,), (CARL, CHEN), True),
    ],
)
def test_somebody_must_be_left_to_review(demo, reviewers, custodians, is_allowed):
    """A request is refused when nobody could review it who neither asked nor is needed to approve."""
    policy = dataclasses.replace(changed(demo, custodians=custodians), reviewers=reviewers)
    verdict = evaluate(policy, ROSTER, **GOOD)
    assert codes(verdict) == (set() if is_allowed else {("account", "no_reviewer")})


@pytest.mark.parametrize("field", ["account", "level", "threshold", "requester"])
@pytest.mark.parametrize(
    "typed", ["<!channel>", "<@U0LENA>", "<https://evil.example|Vault login>", "a\u202eb", "x" * 99]
)
def test_attack_a_sentence_that_pings_the_channel(demo, field, typed):
    """What somebody typed as a name never comes back in a sentence unless it has the form of a name."""
    verdict = evaluate(demo, ROSTER, **(GOOD | {field: typed}))
    assert verdict.unmet
    assert all(typed not in unmet.sentence for unmet in verdict.unmet)
    assert typed not in explain(demo, ROSTER, typed, OLGA, Role.CUSTODIAN, requester=RITA)
    assert "“orders-bd”" in evaluate(demo, ROSTER, **(GOOD | {"account": "orders-bd"})).sentence


# --- Counting ---------------------------------------------------------------------------------------------------------


def test_a_vote_counts_once_and_only_from_a_custodian(demo):
    """A doubled vote, a stranger's and the requester's own do not count."""
    assert counted([CARL, CARL, OLGA, RITA, CHEN], (CARL, CHEN, CORA, RITA), RITA) == {CARL, CHEN}


def test_what_is_in_force_changes_with_policy_and_people(demo):
    """The hash is the same for the same text and people in any order, and another for any other."""
    same = in_force(demo, [CARL, CHEN, CORA])
    assert same == in_force(demo, (CORA, CHEN, CARL, CARL))
    assert re.fullmatch("[0-9a-f]{64}", same)
    other = dataclasses.replace(demo, hash="0" * 64)
    assert len({same, in_force(demo, [CARL, CHEN]), in_force(demo, []), in_force(other, [CARL, CHEN, CORA])}) == 4


# --- Missing data never permits ---------------------------------------------------------------------------------------

_IDS = ["U01", "U02", "U03", "U04", "U05", "USLACKBOT"]
_GROUP_NAMES = ["@one", "@two", "S03"]
_names = st.lists(st.sampled_from(_IDS + _GROUP_NAMES), max_size=4).map(tuple)
_someone = st.sampled_from(_IDS)
_flag = st.integers(0, 9).map(lambda n: n == 0)


@st.composite
def worlds(draw):
    """Draw a policy, a roster, and the same roster with some people and groups taken out."""
    level = Level(
        name="read",
        title="Read",
        settings=LevelSettings(
            engine="database",
            token_role="t",
            options={"mount": "m", "role": "r", "host": "h", "port": "1", "database": "d"},
        ),
        quorum=draw(st.integers(1, 3)),
        longest=timedelta(minutes=30),
        default=timedelta(minutes=15),
        answer_within=timedelta(minutes=15),
        open_within=timedelta(minutes=15),
    )
    account = Account(
        name="db",
        title="Database",
        system="s",
        owner="U01",
        custodians=draw(_names),
        responders=draw(_names),
        thresholds={"t": Threshold("t", "text")},
        standard_path="p",
        levels={"read": level},
    )
    policy = Policy(
        incident_channel="C01",
        leadership=(),
        security=(),
        reviewers=draw(_names),
        auditors=draw(_names),
        review_within=timedelta(days=1),
        accounts=MappingProxyType({"db": account}),
        text="",
        hash="h",
    )
    flags = st.fixed_dictionaries(dict.fromkeys(("is_bot", "is_guest", "is_deleted", "is_foreign"), _flag))
    people = {u: person(u, **draw(flags)) for u in _IDS}
    groups = {g: tuple(draw(st.lists(_someone, max_size=4))) for g in _GROUP_NAMES}
    gone = draw(st.sets(st.sampled_from(_IDS + _GROUP_NAMES)))
    less = Roster(
        {u: p for u, p in people.items() if u not in gone}, {g: m for g, m in groups.items() if g not in gone}
    )
    return policy, Roster(people, groups), less


ASKED = {
    "account": "db",
    "level": "read",
    "threshold": "t",
    "asked": timedelta(minutes=5),
    "reason": "a good reason",
    "standard_path": "tried everything",
    "incident": "1",
}


@settings(max_examples=300, deadline=None)
@given(worlds(), _someone, st.none() | _someone, st.sets(_someone), st.none() | st.sets(_someone))
def test_knowing_less_never_permits_more(world, who, requester, approvers, asked):
    """Taking any people and groups out of what is known gives nobody a role, a right or a verdict that they lacked."""
    policy, known, less = world
    about = {"requester": requester, "approvers": approvers, "asked": asked}
    assert roles(policy, less, "db", who, **about) <= roles(policy, known, "db", who, **about)
    assert is_auditor(policy, less, who) <= is_auditor(policy, known, who)
    assert len(accounts_for(policy, less, who)) <= len(accounts_for(policy, known, who))
    before = evaluate(policy, known, requester=who, **ASKED)
    after = evaluate(policy, less, requester=who, **ASKED)
    assert after.is_allowed <= before.is_allowed
    assert set(after.custodians) <= set(before.custodians)


@settings(max_examples=300, deadline=None)
@given(worlds(), _someone, st.lists(_someone), st.none() | st.sets(_someone))
def test_duties_are_always_separate(world, requester, approvals, asked):
    """No combination makes the requester a custodian or reviewer, counts the own vote, or lets an approver review."""
    policy, known, _ = world
    verdict = evaluate(policy, known, requester=requester, **ASKED)
    votes = counted(approvals, verdict.custodians, requester)
    assert requester not in verdict.custodians
    assert requester not in votes
    assert requester not in counted(approvals, _IDS, requester)
    assert len(votes) <= len(set(approvals))
    own = roles(policy, known, "db", requester, requester=requester, approvers=votes, asked=asked)
    assert own <= {Role.REQUESTER, Role.RESPONDER}
    for approver in votes:
        held = roles(policy, known, "db", approver, requester=requester, approvers=votes, asked=asked)
        assert Role.REVIEWER not in held
    if verdict.is_allowed:
        assert len(verdict.custodians) >= verdict.quorum >= 1


@settings(max_examples=200, deadline=None)
@given(worlds(), _someone, _someone, st.none() | st.sets(_someone))
def test_the_form_and_the_click_agree(world, requester, who, asked):
    """Whom the verdict names as a custodian is whom the click lets approve, and nobody else."""
    policy, known, _ = world
    verdict = evaluate(policy, known, requester=requester, **ASKED)
    may = explain(policy, known, "db", who, Role.CUSTODIAN, requester=requester, asked=asked) is None
    assert may == (who in verdict.custodians and (asked is None or who in asked))
