"""Does what stands in Slack mean only what it says, whatever was typed and whatever the state?

Every picture is checked by the sandbox's Block Kit rules, the same that refuse a message there as Slack would.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bot import blockkit, entries, modals, pack_view, views
from bot.sandbox.answers import mrkdwn_of
from bot.sandbox.blocks import Surface, check_blocks, check_view
from storage.audit import Actor, Record
from storage.commands import Tally
from storage.models import Decision, Grant, Outcome, Request, Review, State
from workflows import policy as rules
from workflows.door import Case
from workflows.engines.database import Login
from workflows.lifecycle import Action, allowed_roles

NOW = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
POLICY = rules.load(Path(__file__).parent.parent / "bot" / "demo" / "breakglass.yml")
ACCOUNT = POLICY.accounts["orders-db"]
PICTURES = (views.card, views.ask, views.own, views.handover, views.warning, views.review_ask)
SECRET = "A1a-very-secret"

ATTACKS = (
    "<!channel> <!here> <!everyone>",
    "<@U0LENA> <!subteam^S0LEADS>",
    "<https://evil.example|Vault login>",
    "*bold* _it_ ~no~ `code` ```block``` > quote",
    "\u202egnp.exe\u2066 \u200b\u00ad\ufeff",
    "&lt;!channel&gt; &amp;",
    "a\x00\x1b[31m\r\n\u2028\u2029b",
    "\n" * 2000 + "hidden",
    "😀" * 3000,
    "<" * 3000,
    "x" * 20_000,
    "",
    " ",
)
typed = st.one_of(st.sampled_from(ATTACKS), st.text(max_size=60), st.text(alphabet="<>&`*\n😀", max_size=30))
ids = st.one_of(st.sampled_from(["U0RITA", "U0CARL", "U0CHEN", "W0FAR", "<!channel>"]), st.text(max_size=40))
times = st.one_of(st.none(), st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001 - the strategy adds the zone
relaxed = settings(max_examples=60, suppress_health_check=list(HealthCheck))


@st.composite
def cases(draw, state=None):
    """Any case that the tables could hold, and some that they could not."""
    quick = {
        "id": "BG-7KQ2",
        "state": state or draw(st.sampled_from(list(State))),
        "version": draw(st.integers(1, 10**6)),
        "state_version": 1,
        "last_seq": 3,
        "team": "T0SANDBOX",
        "opened_at": NOW,
        "state_at": NOW,
        "policy_hash": "ab" * 32,
        "channel": "C0INCIDENT",
    }
    row = Request(
        **quick,
        requester=draw(ids),
        account=draw(st.sampled_from(["orders-db", "gone", "<!here>"])),
        level=draw(st.sampled_from(["read", "write", "gone"])),
        threshold=draw(st.one_of(st.sampled_from(["customer-impact"]), typed)),
        reason=draw(typed),
        standard_path=draw(typed),
        incident=draw(typed),
        quorum=draw(st.integers(1, 100)),
        custodians=draw(st.lists(ids, max_size=60)),
        asked_seconds=draw(st.integers(1, 86400)),
        granted_seconds=draw(st.one_of(st.none(), st.integers(1, 86400))),
        lapse_at=draw(times),
        expires_at=draw(times),
        review_due_at=draw(times),
        ended_by=draw(st.sampled_from([None, "release", "revoke", "expire", "fail", "?"])),
        ended_by_user=draw(st.one_of(st.none(), ids)),
    )
    decisions = tuple(
        Decision(
            request_id=row.id,
            team="T",
            person=draw(ids),
            answer=draw(st.sampled_from(["approve", "deny"])),
            reason=draw(st.one_of(st.none(), typed)),
            policy_hash="x",
            at=NOW,
        )
        for _ in range(draw(st.integers(0, 4)))
    )
    grants = tuple(
        Grant(
            request_id=row.id,
            number=n + 1,
            engine="database",
            path="p",
            lease_prefix="p",
            intended_at=NOW,
            issued_at=draw(times),
            ended_at=draw(times),
        )
        for n in range(draw(st.integers(0, 2)))
    )
    review = None
    if draw(st.booleans()):
        todo = {"what": draw(typed), "owner": draw(ids), "due": "2026-12-01"}
        review = Review(
            request_id=row.id,
            team="T",
            reviewer=draw(ids),
            threshold_met=True,
            standard_path_enough=False,
            used_as_stated=True,
            outcome=draw(st.sampled_from(list(Outcome))),
            findings=draw(typed),
            follow_ups=[todo] * draw(st.integers(0, 3)),
            filed_at=NOW,
        )
    return Case(row, decisions, grants, review)


def entry(event, data=None, *, person="U0CARL", refused=None, source=None, seq=0):
    """Return a log entry as a follower reads it."""
    return Record(
        seq=seq,
        at=NOW + timedelta(seconds=seq),
        event=event,
        request_id="BG-7KQ2",
        actor=Actor("T0SANDBOX", person),
        source=source,
        target=None,
        version=1,
        policy=None,
        refused=refused,
        data=data or {},
        body=b"",
        leaf_hash=b"",
        root=b"",
    )


values = st.one_of(st.none(), st.booleans(), st.integers(), typed, st.lists(typed, max_size=3))
EVENTS = [
    *(action.value for action in Action),
    "access:alarm",
    "access:clear",
    "log:export",
    "drill:start",
    "drill:login",
    "drill:score",
    "drill:plan",
    "command:run",
]
KEYS = ("reason", "credential", "replaces", "why", "identity", "leases", "seconds_out", "outcome", "findings")
KEYS += ("kind", "place", "names", "revoked", "at", "next_try_at", "exposed_seconds", "gone")
KEYS += ("follow_ups", "asked_seconds", "granted_seconds", "have", "need", "attempt", "custodians", "said", "count")
follow_ups = st.fixed_dictionaries({"what": typed, "owner": ids, "due": typed})
records = st.builds(
    entry,
    st.sampled_from(EVENTS),
    st.dictionaries(st.sampled_from(KEYS), st.one_of(values, st.lists(follow_ups, max_size=4)), max_size=8),
    person=st.one_of(ids, st.just("system")),
    refused=st.one_of(st.none(), st.just("not_allowed")),
    source=st.sampled_from([None, "ending", "approved"]),
)


def in_markup(message):
    """Return every string in which Slack would read markup."""
    return [message.text, *mrkdwn_of(message.blocks)]


# --- limits -----------------------------------------------------------------------------------------------------------


@relaxed
@given(cases(), st.sampled_from(PICTURES))
def test_every_picture_is_one_that_slack_takes(case, picture):
    """Whatever the row holds, the message is within Block Kit's limits and has a text for the screen reader."""
    message = picture(case, POLICY, now=NOW)
    assert check_blocks(message.blocks, Surface.MESSAGE) == []
    assert 0 < len(message.text) <= 4000


@relaxed
@given(st.lists(records, min_size=1, max_size=40), cases(), st.booleans())
def test_every_entry_can_be_posted(found, case, has_case):
    """No entry, known or not, with whatever data, stops the thread; each has a line."""
    mentions = dict.fromkeys(EVENTS, "<!subteam^S0LEADS> <@U0SAM>")
    message = views.post(found, case if has_case else None, POLICY, mentions=mentions)
    assert check_blocks(message.blocks, Surface.MESSAGE) == []
    assert 0 < len(message.text) <= 4000
    shown = "\n".join(block["text"]["text"] for block in message.blocks if block["type"] == "section")
    assert shown.count("{time_secs}") == len(found)


@relaxed
@given(cases(), typed)
def test_every_window_is_one_that_slack_takes(case, text):
    """Forms, the credential, the Home tab and any sentence are within the limits."""
    level = ACCOUNT.levels["read"]
    verdict = rules.Verdict(ACCOUNT, level, ("U0CARL",), 1, level.longest, level.default, ())
    said = {"reason": text, "standard_path": text, "incident": text, "duration": text, "threshold": text}
    login = Login("v-user", SECRET, "127.0.0.1", 5432, "orders", "lease", timedelta(minutes=5))
    for view in (
        modals.loading("Emergency access"),
        modals.sentence(text, text),
        modals.request_form([ACCOUNT], POLICY, account=None, level=None, verdict=None, values=said),
        modals.request_form([ACCOUNT], POLICY, account=ACCOUNT, level=level, verdict=verdict, values=said),
        modals.request_form([], POLICY, account=None, level=None, verdict=None),
        modals.deny_form(views.value(case)),
        modals.shorten_form(case, POLICY, views.value(case)),
        modals.revealing(case.request.id),
        modals.credential(case, login, now=NOW),
        modals.review_form(case, POLICY, views.value(case), Tally()),
    ):
        assert check_view(view, Surface.MODAL) == []
    assert check_view(modals.home_notice(text), Surface.HOME) == []


def test_a_crowded_home_tab_is_one_that_slack_takes():
    """A hundred open requests do not break the Home tab."""
    waiting, active, ended = ([_case(state)] * 100 for state in (State.PENDING, State.ACTIVE, State.ENDED))
    # Block ids must differ, as the requests' ids do.
    for number, case in enumerate(one := [_case(State.PENDING) for _ in range(100)]):
        case.request.id = f"BG-{number:04}"
    view = modals.home(POLICY, waiting=one, mine=active[:1], reviews=ended[:1], now=NOW)
    assert check_view(view, Surface.HOME) == []
    assert len(waiting) == 100
    assert check_view(modals.home(POLICY, waiting=[], mine=[], reviews=[], now=NOW), Surface.HOME) == []


def test_a_hundred_custodians_are_counted_and_not_all_named():
    """A custodian group may be the whole company; the card says how many more there are."""
    case = _case(State.PENDING)
    case.request.custodians = [f"U0CUSTODIAN{n:09}" for n in range(500)]
    for picture in PICTURES:
        assert check_blocks(picture(case, POLICY, now=NOW).blocks, Surface.MESSAGE) == []
    assert "and 480 more" in json.dumps(views.card(case, POLICY, now=NOW).blocks)


def test_what_is_too_much_for_one_post_keeps_its_lines():
    """Sixty denials at once leave out the reasons, which the cards have, and drop no entry."""
    found = [entry("request:deny", {"reason": f"Reason {n}"}, seq=n) for n in range(60)]
    blocks = views.post(found, _case(State.DENIED), POLICY).blocks
    assert check_blocks(blocks, Surface.MESSAGE) == []
    assert "".join(mrkdwn_of(blocks)).count("*denied*") == 60
    blocks = views.post(found[: views.MOST_IN_POST], _case(State.DENIED), POLICY).blocks
    assert sum(block["type"] == "rich_text" for block in blocks) == views.MOST_IN_POST


def test_a_policy_of_a_thousand_accounts_still_has_a_form():
    """A select holds a hundred options; the chosen account is always among them."""
    many = [
        rules.Account(
            name=f"acc-{n}",
            title=f"Account {n} " + "x" * 60,
            system="s" * 300,
            owner="U0CORA",
            custodians=ACCOUNT.custodians,
            responders=ACCOUNT.responders,
            thresholds={f"t{i}": rules.Threshold(f"t{i}", "y" * 300) for i in range(20)},
            standard_path="z" * 1000,
            levels=ACCOUNT.levels,
        )
        for n in range(1000)
    ]
    view = modals.request_form(
        many, POLICY, account=many[700], level=many[700].levels["write"], verdict=None, values={}
    )
    assert check_view(view, Surface.MODAL) == []
    assert view["blocks"][0]["element"]["initial_option"]["value"] == "acc-700"


# --- what was typed is only shown -------------------------------------------------------------------------------------

MARK = "ZQX"


@relaxed
@given(cases(), st.sampled_from(ATTACKS), st.sampled_from(PICTURES))
def test_what_a_person_typed_is_never_markup(case, attack, picture):
    """An injected mention, link or format stands nowhere where Slack would act on it."""
    row = case.request
    row.reason = row.standard_path = row.incident = f"{MARK}{attack}{MARK}"
    for decision in case.decisions:
        decision.reason = f"{MARK}{attack}"
    message = picture(case, POLICY, now=NOW)
    assert not [text for text in in_markup(message) if MARK in text]


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_posted_in_the_thread_is_never_markup(attack):
    """Reasons, findings and follow-ups in the thread ring nobody's telephone."""
    word = f"{MARK}{attack}"
    found = [
        entry("request:open", {"reason": word, "asked_seconds": 60, "quorum": 1}),
        entry("request:deny", {"reason": word}),
        entry(
            "review:file", {"findings": word, "outcome": "misuse", "follow_ups": [{"what": word, "owner": "U0CORA"}]}
        ),
        entry("unknown:event", {"text": word}),
    ]
    message = views.post(found, _case(State.PENDING), POLICY)
    assert not [text for text in in_markup(message) if MARK in text]


@relaxed
@given(typed)
def test_our_own_sentences_let_nothing_but_people_through(text):
    """A sentence keeps its mentions of people; broadcasts, groups and links in it are dead."""
    shown = blockkit.say(text)
    assert not re.search(r"<(?!@[UW][A-Z0-9]{2,20}>)", shown)
    assert len(shown) <= 3000


def test_what_is_no_user_id_is_no_mention():
    """An id that is none cannot become a broadcast or a link."""
    for forged in ("<!channel>", "!channel", "U0RITA> <!here", "", "S0LEADS"):
        assert "<" not in blockkit.mention(forged)
        assert blockkit.person(forged)["type"] == "text"


@pytest.mark.parametrize(
    ("event", "data", "source", "words"),
    [
        ("request:open", {"asked_seconds": 600, "quorum": 2, "reason": "r"}, None, "asked for *Orders database"),
        ("request:approve", {"have": 1, "need": 2, "granted_seconds": 600}, None, "<@U0CARL> approved (1 of 2)."),
        ("request:approve", {"have": 1, "need": 2, "granted_seconds": 60}, None, "(1 of 2), for 1 minute only."),
        (
            "request:approve",
            {"have": 1, "need": 2, "for": ["U0SAM"]},
            None,
            "<@U0CARL>, for <@U0SAM>, approved (1 of 2)",
        ),
        ("request:deny", {"reason": "No", "for": ["U0SAM"]}, None, "<@U0CARL>, for <@U0SAM>, *denied* it:"),
        ("request:nudge", {"people": ["U0CARL", "U0CHEN"]}, "pending", "in direct messages: 2 custodians who had not"),
        (
            "person:away",
            {"until": "2026-11-27T08:00:00.000000Z", "deputy": "U0OLGA"},
            None,
            "<@U0OLGA> stands in, where",
        ),
        ("person:away", {"until": "2026-11-27T08:00:00.000000Z"}, None, "<@U0CARL> is *away* until <!date"),
        ("person:back", {}, None, "<@U0CARL> is back."),
        ("request:quorum", {"granted_seconds": 300}, None, "*Approved* for 5 minutes. <@U0RITA> can open it"),
        ("request:lapse", {}, "pending", "not enough custodians answered"),
        ("request:lapse", {}, "approved", "not opened in time"),
        ("request:escalate", {}, "pending", "Still not enough answers"),
        ("request:escalate", {"attempt": 3, "why": "Vault is sealed."}, "ending", "(try 3): Vault is sealed."),
        ("credential:reveal", {"credential": 1, "replaces": None}, None, "is opening credential 1."),
        ("credential:reveal", {"credential": 2, "replaces": 1}, None, "fresh credential (2); credential 1 ends."),
        ("credential:abandon", {"credential": 1, "why": "replaced"}, None, "Credential 1 was put out of use."),
        ("credential:abandon", {"credential": 1, "why": "the bot stopped"}, None, "not completed"),
        (
            "credential:issue",
            {"credential": 1, "identity": "v-x"},
            None,
            "*Credential 1 was issued* to <@U0RITA> as `v-x`",
        ),
        ("credential:reissue", {"credential": 2}, None, "*A fresh credential 2 was issued*"),
        ("credential:end", {"leases": ["l"], "seconds_out": 61}, None, "the lease is gone, after 1 minute 1 second."),
        ("credential:end", {"leases": []}, None, "no credential had been given out"),
        ("review:file", {"outcome": "not_justified", "findings": "f"}, None, "*not justified*"),
        ("log:export", {"count": 1}, None, "exported 1 entry of the log"),
        ("log:export", {"count": 7}, None, "exported 7 entries of the log"),
        ("log:export", {"format": "bundle"}, None, "<@U0CARL> exported the log."),
        (
            "log:export",
            {"request": "BG-7KQ2", "since": "2026-03-01", "format": "csv"},
            None,
            "exported the log (BG-7KQ2, from 2026-03-01).",
        ),
        (
            "log:alarm",
            {"sentence": "Entry 7 is missing."},
            None,
            "not signed any more.* Entry 7 is missing. From here on",
        ),
        ("log:alarm", {"sentence": "Entry 7 is missing."}, None, "run `breakglass verify`"),
        ("log:alarm", {"sentence": "Entry 7 is missing."}, None, "no head is signed, neither for new entries"),
        ("log:alarm", {"sentence": "Entry 7 is missing."}, None, "signs again by itself once the log is"),
        ("log:alarm", {"sentence": "Entry 7 is missing."}, None, "“When the log is not signed any more”"),
        (
            "log:rotate",
            {"new": "log.example/x+12ab+AYq", "old": "log.example/x+34cd+AYz", "lost": False},
            None,
            "*the log signed with a new key*, and the old one signed for it. Auditors need it: `log.example/x+12ab+",
        ),
        (
            "log:rotate",
            {"new": "log.example/x+12ab+AYq", "old": None, "lost": True},
            None,
            "the old one did not sign for it*: it is said to be lost.",
        ),
        (
            "access:alarm",
            {
                "kind": "lease",
                "place": "database/creds/x",
                "names": ["database/creds/x/1"],
                "count": 1,
                "revoked": True,
            },
            None,
            "*ALARM: 1 credential live in Vault that no request explains*, under `database/creds/x`: `database/",
        ),
        (
            "access:alarm",
            {
                "kind": "lease",
                "place": "p",
                "names": [*"abcdefg"],
                "count": 9,
                "revoked": False,
                "why": "Vault is down.",
            },
            None,
            "`e` and 4 more. *It could not be revoked and may work still*: Vault is down. The bot tries again",
        ),
        (
            "access:alarm",
            {"kind": "identity", "place": "db:5432", "names": ["bg-7kq2-x"], "count": 1},
            None,
            "*ALARM: 1 emergency login at `db:5432` that no open request explains*: `bg-7kq2-x`. The bot cannot end",
        ),
        (
            "access:alarm",
            {"kind": "stuck", "place": "p", "names": ["p/1"], "count": 1, "revoked": True},
            None,
            "*ALARM: Vault has given up revoking 1 credential* under `p`: `p/1`. The bot has revoked it",
        ),
        (
            "access:alarm",
            {"kind": "unreadable", "place": "db:5432", "seconds": 300, "why": "It is down."},
            None,
            "for 5 minutes nobody could look at `db:5432`*, so it is not known which access is live there. It is down.",
        ),
        (
            "access:clear",
            {"kind": "identity", "place": "db", "names": ["bg-x"]},
            None,
            "is not there any more: `bg-x`.",
        ),
        ("access:clear", {"kind": "unreadable", "place": "db"}, None, "`db` can be looked at again."),
        (
            "credential:lost",
            {"credential": 1, "gone": "lease"},
            None,
            "*Vault no longer has the lease of credential 1*",
        ),
        ("drill:unheard", {}, None, "<@U0CARL>: drill unheard"),
    ],
)
def test_each_entry_says_what_happened(event, data, source, words):
    """Somebody who only reads the thread knows what was done, by whom."""
    (text, *_) = mrkdwn_of(views.post([entry(event, data, source=source)], _case(State.ACTIVE), POLICY).blocks)
    assert words in text


def test_a_refusal_in_the_thread_calls_nobody():
    """A stranger's clicks must not ring every custodian; the sentence that lists them is cut."""
    said = "You are not a custodian of Orders database; its custodians are <@U0CARL>, <@U0CHEN> and 3 more."
    message = views.post(
        [entry("request:approve", {"said": said}, person="U0OLGA", refused="not_allowed")],
        _case(State.PENDING),
        POLICY,
        mentions={"request:approve": "<!subteam^S0LEADS>"},
    )
    (text,) = mrkdwn_of(message.blocks)
    assert re.findall(r"<[@!](?!date)[^>]*>", text) == ["<@U0OLGA>"]
    assert "tried to approve and was refused: _You are not a custodian of Orders database._" in text


@relaxed
@given(typed)
def test_text_is_cleaned_of_what_shows_differently_than_it_reads(text):
    """No control, bidi or zero-width character is left, and no flood of blank lines."""
    shown = blockkit.clean(text)
    assert not [c for c in shown if c != "\n" and unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co"}]
    assert "\n\n\n" not in shown
    assert "\n" not in blockkit.clean(text, is_line=True)


@relaxed
@given(typed, st.integers(1, 200))
@example("<<<<", 5)
@example("😀😀😀", 4)
def test_escaped_text_is_cut_between_characters(text, most):
    """The limit holds after escaping, in JavaScript's units, and no entity is cut in two."""
    shown = blockkit.escape(text, most)
    assert len(shown.encode("utf-16-le")) // 2 <= most
    assert re.sub("&(amp|lt|gt);", "", shown).count("&") == 0
    assert not set(shown) & set("<>`")
    if len(blockkit.escape(text, 10**6)) <= most and text.isascii():
        assert not shown.endswith("…")


# --- secrets, buttons, words ------------------------------------------------------------------------------------------


def _case(state, **more):
    row = Request(
        id="BG-7KQ2",
        state=state,
        version=7,
        state_version=5,
        last_seq=9,
        team="T0SANDBOX",
        requester="U0RITA",
        account="orders-db",
        level="write",
        threshold="data-loss",
        reason="Checkout is down",
        standard_path="Paged the on-call",
        incident="INC-1",
        policy_hash="ab" * 32,
        quorum=2,
        custodians=["U0CARL", "U0CHEN", "U0CORA"],
        channel="C0INCIDENT",
        asked_seconds=600,
        opened_at=NOW,
        state_at=NOW,
        lapse_at=NOW + timedelta(minutes=15),
        expires_at=NOW + timedelta(minutes=10),
        review_due_at=NOW + timedelta(days=3),
        **more,
    )
    return Case(row, (_approval("U0CARL"),), (), None)


def _approval(person):
    return Decision(request_id="BG-7KQ2", team="T", person=person, answer="approve", policy_hash="x", at=NOW)


def _buttons(message):
    return {
        element["action_id"]: element
        for block in message.blocks
        if block["type"] == "actions"
        for element in block["elements"]
    }


def test_the_card_names_the_policy_as_the_channel_was_told_it():
    """The hash of the line that a policy came into force stands on the card, and the one that the entries have, too."""
    case = _case(State.PENDING)
    case.request.policy_hash = rules.in_force(POLICY, case.request.custodians)
    told = entries._policy_line(entry("policy:load", {"hash": POLICY.hash}), "", None, "")[0]
    digest = re.search(r"`([0-9a-f]{12})…`", told)[1]
    foot = views.card(case, POLICY, now=NOW).blocks[-1]["elements"][0]["text"]
    assert f"policy `{digest}`, with the custodians asked `{case.request.policy_hash[:8]}`" in foot


@pytest.mark.parametrize("changed", ["policy", "custodians"])
def test_the_card_never_names_a_policy_that_it_was_not_opened_under(changed):
    """Another policy than now, or a row whose custodians were rewritten: the hash of now's policy is not shown."""
    case = _case(State.PENDING)
    case.request.policy_hash = rules.in_force(POLICY, case.request.custodians)
    now_is = POLICY
    if changed == "policy":
        now_is = replace(POLICY, hash="cd" * 32)
    else:
        case.request.custodians = ["U0CARL", "U0EVIL"]
    foot = views.card(case, now_is, now=NOW).blocks[-1]["elements"][0]["text"]
    assert now_is.hash[:12] not in foot
    assert f"`{case.request.policy_hash[:8]}` (not the rules of now; the log has which)" in foot


@pytest.mark.parametrize("state", list(State))
def test_the_card_offers_what_the_table_has_and_nothing_else(state):
    """A button stands on the card exactly when some role may do it in this state."""
    shown = _buttons(views.card(_case(state), POLICY, now=NOW))
    for action in (Action.APPROVE, Action.DENY, Action.WITHDRAW, Action.RELEASE, Action.REVOKE, Action.REVIEW):
        assert (action.value in shown) == bool(allowed_roles(state, action))
    assert views.REVEAL not in shown, "a credential is asked for in private"
    for picture in PICTURES:
        for action_id in _buttons(picture(_case(state), POLICY, now=NOW)):
            if action_id == pack_view.OPEN:
                continue  # it is read, and moves nothing
            action = Action.APPROVE if action_id == views.SHORTEN else Action(action_id)
            assert allowed_roles(state, action), (picture, action_id)


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("picture", PICTURES)
def test_a_button_carries_an_id_and_a_version(state, picture):
    """Nothing else is in a button's value, which the client can read and change."""
    for button in _buttons(picture(_case(state), POLICY, now=NOW)).values():
        assert button["value"] == "BG-7KQ2 7"


def test_the_secret_is_in_one_view_only():
    """The credential's own view shows it, in boxes; its repr does not."""
    login = Login("v-user", SECRET, "127.0.0.1", 5432, "orders", "lease", timedelta(minutes=5))
    view = modals.credential(_case(State.APPROVED), login, now=NOW)
    boxes = [
        part["elements"][0]["text"]
        for block in view["blocks"]
        if block["type"] == "rich_text"
        for part in block["elements"]
        if part["type"] == "rich_text_preformatted"
    ]
    assert boxes[0] == login.lines()[0]
    assert SECRET in boxes
    assert not [text for text in mrkdwn_of(view["blocks"]) if SECRET in text]
    assert SECRET not in view["private_metadata"] + repr(login)


def test_only_the_confirmed_end_says_that_the_lease_is_gone():
    """Being taken back is not gone: no other entry may sound like it."""
    for event in EVENTS:
        for source in (None, "ending", "approved"):
            data = {"leases": ["lease"], "seconds_out": 250, "credential": 1, "replaces": 1, "why": "replaced"}
            text = json.dumps(views.post([entry(event, data, source=source)], _case(State.ENDING), POLICY).blocks)
            assert ("lease is gone" in text) == (event == Action.END)


def test_an_open_request_is_not_said_to_have_ended():
    """Until Vault has confirmed it, no picture claims that the credential is gone."""
    for state in (State.ACTIVE, State.ENDING):
        for picture in PICTURES:
            case = _case(state, ended_by="release", ended_by_user="U0RITA")
            assert "Vault confirmed" not in json.dumps(picture(case, POLICY, now=NOW).blocks)
    ended = views.card(_case(State.ENDED, ended_by="release", ended_by_user="U0RITA"), POLICY, now=NOW)
    assert "Vault confirmed" in json.dumps(ended.blocks)


def test_a_settled_message_says_by_whom_and_has_no_buttons():
    """A custodian who comes late sees who decided, instead of buttons."""
    case = _case(State.APPROVED, granted_seconds=600)
    message = views.ask(Case(case.request, (_approval("U0CARL"), _approval("U0CHEN")), (), None), POLICY, now=NOW)
    assert _buttons(message) == {}
    assert "Settled: approved by <@U0CARL>, <@U0CHEN>." in json.dumps(message.blocks)


def test_the_requester_s_own_approval_is_not_counted():
    """A decision that could not exist is not shown as one that counts."""
    case = _case(State.PENDING)
    forged = Case(case.request, (_approval("U0RITA"), _approval("U0CARL"), _approval("U0CARL")), (), None)
    assert "(1 of 2)" in json.dumps(views.card(forged, POLICY, now=NOW).blocks)


def test_leadership_is_called_at_the_request_and_at_the_grant():
    """The mention stands in the line of the entry that it belongs to."""
    found = [
        entry("request:open", {"asked_seconds": 60, "quorum": 1}),
        entry("request:approve", {"have": 1, "need": 1}),
    ]
    message = views.post(found, _case(State.PENDING), POLICY, mentions={"request:open": "<!subteam^S0LEADS>"})
    (text,) = mrkdwn_of(message.blocks)
    first, second = text.split("\n")
    assert first.endswith("<!subteam^S0LEADS>")
    assert second.endswith("approved (1 of 1), for 0 seconds only.")


@relaxed
@given(st.lists(records, min_size=2, max_size=30))
def test_a_post_keeps_the_order_of_the_log(found):
    """Joined or not, lines stand in the order of their entries."""
    for seq, record in enumerate(found):
        object.__setattr__(record, "at", NOW + timedelta(seconds=seq))
    message = views.post(found, None, POLICY)
    shown = "\n".join(block["text"]["text"] for block in message.blocks if block["type"] == "section")
    assert re.findall(r"<!date\^(\d+)\^\{time_secs\}", shown) == [str(int(r.at.timestamp())) for r in found]


@pytest.mark.parametrize("state", list(State))
def test_the_state_is_said_in_words(state):
    """The coloured sign only repeats what the words say, and the words are in the text for screen readers too."""
    message = views.card(_case(state), POLICY, now=NOW)
    words = views.state_words(state).partition(" ")[2]
    assert words in message.text
    assert words in message.blocks[0]["text"]["text"]
