"""Is a stolen Slack session an approval? Not where a level takes a code: real OpenBao checks it, on both databases."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import itertools
import struct
import threading
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, urlsplit

import pytest
from counter import CARL, CHEN, CORA, RITA, TEAM, Counter
from sqlmodel import col, select

from storage.models import Decision, StepUp
from workflows import policy as rules
from workflows.errors import Conflict, Invalid, NotAllowed, Unavailable
from workflows.step_up import LOCK, LOCKED_FOR, MOST_WRONG, WITHIN, SecondFactor, counting, key_name
from workflows.vault import Vault
from workflows.vault_answers import Answer, CodeAnswer, of_code

if TYPE_CHECKING:
    from collections.abc import Iterator

    from real_parts import Real

    from storage.audit import Actor
    from storage.models import Request

_STEP: Final = 30  # seconds
_numbers: Final = itertools.count(1)


def totp(secret: str, at: float) -> str:
    """Return the code of RFC 6238 (SHA-1, six digits)."""
    key = base64.b32decode(secret + "=" * (-len(secret) % 8))
    digest = hmac.new(key, struct.pack(">Q", int(at) // _STEP), hashlib.sha1).digest()
    start = digest[-1] & 15
    return f"{(struct.unpack('>I', digest[start : start + 4])[0] & 0x7FFFFFFF) % 1_000_000:06d}"


def enrol(real: Real, person: Actor) -> str:
    """Make a person's key at Vault as an operator does; return its secret."""
    body = {"generate": True, "exported": True, "issuer": "break glass", "account_name": person.person, "skew": 1}
    made = real.bao.call("POST", f"totp/keys/{key_name(TEAM, person.person)}", {**body, "qr_size": 0})
    return parse_qs(urlsplit(made["data"]["url"]).query)["secret"][0]


@pytest.fixture(scope="module")
def engine(real: Real) -> Iterator[None]:
    """Vault with the TOTP engine, and with the bot's right to have codes checked."""
    real.bao.call("POST", "sys/mounts/totp", {"type": "totp"})
    had = real.bao.call("GET", "sys/policies/acl/breakglass-bot")["data"]["policy"]
    more = 'path "totp/code/*" {\n  capabilities = ["update"]\n  allowed_parameters = { "code" = [] }\n}\n'
    real.bao.call("PUT", "sys/policies/acl/breakglass-bot", {"policy": had + more})
    yield
    real.bao.call("PUT", "sys/policies/acl/breakglass-bot", {"policy": had})
    real.bao.call("DELETE", "sys/mounts/totp")


@pytest.fixture
def keys(engine: None, real: Real) -> dict[str, str]:
    """Carl's and Chen's keys, fresh ones: a code that another test used is not theirs."""
    del engine
    return {person.person: enrol(real, person) for person in (CARL, CHEN)}


@pytest.fixture
def desk(counter: Counter, keys: dict[str, str]) -> Counter:
    """A desk whose levels take a code, and keys for it."""
    del keys
    counter.policy = demanding(counter.policy)
    return counter


def demanding(policy: rules.Policy) -> rules.Policy:
    """Return the policy with ``step_up: totp`` at every level."""
    return rules.parse(policy.text.replace("        quorum:", "        step_up: totp\n        quorum:"), name="demo")


def refusals(desk: Counter, row: Request) -> list[str]:
    """Return the codes of a request's refused entries."""
    return [record.refused for record in desk.log_of(row) if record.refused]


def approve(desk: Counter, who: Actor, row: Request, code: str | None) -> Request:
    """Approve at the request's newest version."""
    return desk.approve(who, row.id, desk.case(row.id).request.version, code=code, now=desk.now)


def code_of(keys: dict[str, str], who: Actor, step: int = 0) -> str:
    """Return somebody's code of now, or of a step later."""
    return totp(keys[who.person], time.time() + step * _STEP)


def wrong_codes(keys: dict[str, str]) -> list[str]:
    """Return codes that are not Carl's, and that OpenBao was not asked about before: it takes none twice."""
    taken = {code_of(keys, CARL, step) for step in range(-2, 4)}
    return [code for code in (f"{next(_numbers):06d}" for _ in range(20)) if code not in taken]


def test_an_approval_takes_the_approvers_own_code_and_each_code_once(
    desk: Counter, keys: dict[str, str], real: Real
) -> None:
    """No code, a wrong one, another person's and a used one approve nothing; a right one does, and the log says so."""
    row = desk.ask()
    with pytest.raises(Conflict, match="takes a code"):
        approve(desk, CARL, row, None)  # a stolen session, a forged payload, an old button
    with pytest.raises(Invalid, match="six digits") as typo:
        approve(desk, CARL, row, "12345")
    assert set(typo.value.fields) == {"code"}
    with pytest.raises(Invalid, match="not the code"):
        approve(desk, CARL, row, code_of(keys, CHEN))
    with pytest.raises(NotAllowed, match="breakglass enrol U0CORA"):
        approve(desk, CORA, row, code_of(keys, CHEN, 1))
    mine = code_of(keys, CARL)
    approve(desk, CARL, row, f" {mine[:3]} {mine[3:]} ")
    assert refusals(desk, row) == ["no_code", "wrong_code", "not_enrolled"]
    (approval,) = [r for r in desk.log_of(row) if r.event == "request:approve" and not r.refused]
    assert approval.data["step_up"] == "totp"
    assert mine not in repr(desk.log_of())
    # The same code again: for another request, while Vault still knows that it was used, and after it forgot.
    other = desk.ask()
    with pytest.raises(Invalid, match="used or tried"):
        approve(desk, CARL, other, mine)
    real.bao.call("POST", "sys/plugins/reload/backend", {"mounts": ["totp/"]})
    with pytest.raises(Invalid, match="used or tried"):
        approve(desk, CARL, other, mine)
    assert refusals(desk, other) == ["used_code", "used_code"]
    assert desk.case(other.id).approvers == ()


def test_a_code_that_was_used_elsewhere_is_refused_by_vault_itself(
    desk: Counter, keys: dict[str, str], real: Real
) -> None:
    """A code that somebody had checked at Vault beside the bot is used, too."""
    row, mine = desk.ask(), code_of(keys, CARL)
    assert real.vault().check_code("totp", key_name(TEAM, CARL.person), mine) is CodeAnswer.RIGHT
    with pytest.raises(Invalid, match="used or tried"):
        approve(desk, CARL, row, mine)


def test_one_code_at_the_same_moment_approves_once(desk: Counter, keys: dict[str, str]) -> None:
    """A code that several bots send for several requests at once approves one of them."""
    rows, mine, done = [desk.ask() for _ in range(4)], code_of(keys, CARL), []

    def run(row: Request) -> None:
        with contextlib.suppress(Invalid, Conflict):
            done.append(approve(desk, CARL, row, mine))

    threads = [threading.Thread(target=run, args=(row,)) for row in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 1


def test_brute_force(desk: Counter, keys: dict[str, str]) -> None:
    """Five wrong codes lock the person for 15 minutes, on record once; then a right one counts again."""
    row, wrong = desk.ask(), wrong_codes(keys)
    for code in wrong[: MOST_WRONG - 1]:
        with pytest.raises(Invalid, match="not the code"):
            approve(desk, CARL, row, code)
    with pytest.raises(Invalid, match="one too many"):
        approve(desk, CARL, row, wrong[MOST_WRONG])
    for code in (wrong[MOST_WRONG + 1], code_of(keys, CARL)):
        with pytest.raises(Conflict, match="Too many wrong codes") as locked:
            approve(desk, CARL, row, code)
        assert locked.value.reason == "locked"
    (lock,) = [record for record in desk.log_of(row) if record.event == LOCK]
    assert (lock.data["person"], lock.data["wrong"]) == (CARL.person, MOST_WRONG)
    assert refusals(desk, row) == ["wrong_code"] * MOST_WRONG + ["locked"] * 2
    approve(desk, CHEN, desk.ask(), code_of(keys, CHEN))  # only Carl is
    desk.now += LOCKED_FOR
    late = desk.ask()
    approve(desk, CARL, late, code_of(keys, CARL))
    with desk.database.read() as session:
        row_of = session.get(StepUp, (TEAM, CARL.person))
        assert (row_of.tries, row_of.since) == (0, None)


def test_a_thousand_tries_at_once_are_counted_before_vault_is_asked(desk: Counter, keys: dict[str, str]) -> None:
    """While five codes are on their way to Vault, a sixth is not sent; a bot that dies there has counted its try."""
    row = desk.ask()

    class Dying(SecondFactor):
        def _refuse(self, *_: object) -> None:
            raise KeyboardInterrupt

    desk.factor = Dying(desk.database, desk.vault, lambda: desk.policy)
    for code in wrong_codes(keys)[:MOST_WRONG]:
        with pytest.raises(KeyboardInterrupt):
            approve(desk, CARL, row, code)
    with pytest.raises(Conflict, match="Too many wrong codes"):
        approve(desk, CARL, row, code_of(keys, CARL))
    desk.now += WITHIN
    row = desk.ask()
    approve(desk, CARL, row, code_of(keys, CARL))


def test_without_vault_nothing_is_decided_and_no_try_is_counted(desk: Counter, keys: dict[str, str]) -> None:
    """A Vault that does not answer refuses nobody for good: the same code approves when it is back."""
    row, mine, real = desk.ask(), code_of(keys, CARL), desk.vault
    desk.factor = SecondFactor(desk.database, Vault("http://127.0.0.1:9", token="none"), lambda: desk.policy)
    for _ in range(MOST_WRONG + 1):
        with pytest.raises(Unavailable):
            approve(desk, CARL, row, mine)
    assert desk.case(row.id).approvers == ()
    desk.factor = SecondFactor(desk.database, real, lambda: desk.policy)
    assert approve(desk, CARL, row, mine).state == "approved"


def test_who_has_no_right_spends_no_code(desk: Counter, keys: dict[str, str]) -> None:
    """Every other reason to refuse comes before the code: the requester's, a stranger's and a second approval's."""
    row = desk.ask(CARL)
    for who, why in ((CARL, "yourself"), (RITA, "not a custodian")):
        with pytest.raises(NotAllowed, match=why):
            approve(desk, who, row, code_of(keys, CARL))
    with pytest.raises(Conflict, match="out of date"):
        desk.approve(CHEN, row.id, 99, code=code_of(keys, CHEN), now=desk.now)
    with desk.database.read() as session:
        assert session.exec(select(StepUp)).all() == []


def test_an_approval_from_before_the_policy_took_a_code_does_not_count(counter: Counter, keys: dict[str, str]) -> None:
    """A level that takes a code since the first approval counts only approvals that were given with one."""
    row = counter.approve(CARL, (asked := counter.ask(level="write")).id, asked.version, now=counter.now)
    counter.policy = demanding(counter.policy)
    approve(counter, CHEN, row, code_of(keys, CHEN))
    assert counter.case(row.id).request.state == "pending"
    with counter.database.read() as session:
        said = list(session.exec(select(Decision).order_by(col(Decision.id))))
    level = counter.policy.accounts["orders-db"].levels["write"]
    assert [one.person for one in counting(level, said)] == [CHEN.person]


def test_a_denial_takes_no_code(desk: Counter) -> None:
    """Who wants to stop it can do so at once."""
    row = desk.ask()
    assert desk.deny(CARL, row.id, row.version, "not now", now=desk.now).state == "denied"


@pytest.mark.parametrize(
    ("answer", "meaning"),
    [
        (Answer(200, {"data": {"valid": True}}), CodeAnswer.RIGHT),
        (Answer(200, {"data": {"valid": False}}), CodeAnswer.WRONG),
        (Answer(200, {"data": {"valid": "true"}}), CodeAnswer.WRONG),
        (Answer(204, {}), CodeAnswer.WRONG),
        (Answer(400, {"errors": ["unknown key: x"]}), CodeAnswer.UNKNOWN),
    ],
)
def test_only_a_clear_yes_is_a_right_code(answer: Answer, meaning: CodeAnswer) -> None:
    """Whatever else Vault says, or does not say, is not a yes."""
    assert of_code(answer) is meaning
