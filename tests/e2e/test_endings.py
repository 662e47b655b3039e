"""What is a credential worth, and what is left of it after each ending?

Rules
-----
* All parts are real: the bot as its own process, OpenBao, PostgreSQL as the target, the local Slack workspace.
* "Only afterwards" is observed, not concluded: from the decision on, the moment at which Slack took the post that says
  "gone" is compared with the last moment at which a session or a login was seen alive. What was last seen alive was
  seen by a look that had *begun* before, and the post's moment is the workspace's own; both clocks are this machine's.
* The expiry is waited for once, with the shortest time that can be asked for: a minute.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import psycopg
import pytest

from bot import views
from bot.demo import play
from bot.demo.run import Demo
from bot.sandbox.driver import Driver, PersonDriver, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Self

CHANNEL: Final = "C0INCIDENT"
GONE: Final = "confirmed that the lease is gone"
TAKING_BACK: Final = "being taken back"
PATIENCE: Final = 20.0  # seconds, a bound for a busy machine
_AIR: Final = 0.01  # seconds between two looks
WORDS: Final = {
    views.THRESHOLD: "data-loss",
    views.REASON: "Orders after 560 are stuck and must be looked at",
    views.STANDARD_PATH: "Paged the database on-call twice, nobody answers",
    views.INCIDENT: "INC-2031",
}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Everything that ``breakglass demo`` starts."""
    with Demo(tmp_path_factory.mktemp("demo"), rate_limits=0) as demo:
        yield demo


@dataclass
class Use:
    """An emergency access that is open: who asked, its card, and the line that opens the target."""

    demo: Demo
    rita: PersonDriver
    card: Mapping[str, Any]
    line: str

    def posts(self) -> list[dict[str, Any]]:
        """Return the posts of its thread."""
        return self.rita.thread(CHANNEL, self.card["ts"])[1:]

    def says(self, words: str) -> dict[str, Any] | None:
        """Return the first post of its thread that says this."""
        return next((post for post in self.posts() if words in json.dumps(post, ensure_ascii=False)), None)

    def press(self, who: str, action: str, *, in_dm: bool) -> None:
        """Let somebody press a button, in their direct message or on the card."""
        person = Driver(self.demo.url).as_(who)
        name = play._request_id(self.card)
        look = (lambda: _message(person, name, action)) if in_dm else (lambda: self._card_with(action))
        person.click(wait_for(look, PATIENCE, what=f"a message with {action}"), action)

    def card_says(self, words: str) -> Mapping[str, Any] | None:
        """Return the card if it says this now."""
        card = play._fresh(self.rita, self.card)
        return card if words in json.dumps(card, ensure_ascii=False) else None

    def _card_with(self, action: str) -> Mapping[str, Any] | None:
        card = play._fresh(self.rita, self.card)
        return card if self.rita.has(card, action) else None

    def connect(self) -> psycopg.Connection[Any]:
        """Open a session with the credential."""
        return psycopg.connect(play._conninfo(self.line), autocommit=True)


def opened(demo: Demo, level: str = "read", span: str = "10m") -> Use:
    """Let Rita ask, as many custodians approve as are needed, and Rita open the credential."""
    people = Driver(demo.url)
    rita = people.as_("U0RITA")
    before = {message["ts"] for message in rita.messages(CHANNEL)}
    rita.command(f"/breakglass orders-db {level} {span}", CHANNEL)
    rita.fill(rita.wait_for_view(views.OPEN_FORM, PATIENCE)).submit(WORDS)
    rita.wait_for_view(views.NOTICE)
    rita.close()
    card = wait_for(
        lambda: next((m for m in play._cards(rita) if m["ts"] not in before), None), PATIENCE, what="the card"
    )
    for custodian in ("U0CHEN", "U0CORA")[: {"read": 1, "write": 2}[level]]:
        people.as_(custodian).click(play._fresh(rita, card), views.APPROVE)
    name = play._request_id(card)
    handover = wait_for(lambda: _message(rita, name, views.REVEAL), PATIENCE, what="the Reveal button")
    rita.click(handover, views.REVEAL)
    line = wait_for(lambda: play._psql_line(rita), PATIENCE, what="the credential")
    rita.close()
    return Use(demo, rita, card, str(line))


def _message(person: PersonDriver, request_id: str, action: str) -> Mapping[str, Any] | None:
    """Return the direct message about this request that has this button."""
    try:
        found = (m for m in reversed(person.dm()) if request_id in json.dumps(m) and person.has(m, action))
        return next(found, None)
    except StopIteration:
        return None  # the bot has not written to this person yet


@dataclass
class Watch:
    """Looks all the time whether a session and a new login still work; notes when one last did.

    A look counts from its beginning: what answers at its end was alive at its beginning for certain.
    """

    use: Use
    session_seen: float = 0.0
    login_seen: float = 0.0
    looks: int = 0
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._session = self.use.connect()
        self._threads = [threading.Thread(target=run) for run in (self._watch_session, self._watch_logins)]
        for thread in self._threads:
            thread.start()
        wait_for(lambda: self.looks >= 20 and self.login_seen, PATIENCE, what="the first looks")
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._session.close()

    # The pause leaves this process, in which the workspace lives too, some air.

    def _watch_session(self) -> None:
        while not self._over.wait(_AIR):
            began = time.time()
            try:
                self._session.execute("SELECT 1")
            except psycopg.Error:
                return
            self.session_seen = began
            self.looks += 1

    def _watch_logins(self) -> None:
        while not self._over.wait(_AIR):
            began = time.time()
            try:
                self.use.connect().close()
            except psycopg.OperationalError as error:
                if "too many connections" in str(error):
                    continue  # the login works; it is its number of sessions that is limited
                if "shutting down" in str(error) or "refused" in str(error):
                    return
            else:
                self.login_seen = began
                self.looks += 1


def assert_gone_and_said_only_afterwards(watch: Watch) -> None:
    """After the post: no login, no session, no role; and at the moment of the post all of that was so already."""
    use = watch.use
    post = wait_for(lambda: use.says(GONE), PATIENCE, what="the thread to say that it is gone")
    # These two come after the post that we have seen, so they say what was so when it came into being.
    assert play._cannot_log_in(use.line)
    assert play._is_cut(watch._session)
    said = float(post["ts"])
    assert watch.session_seen < said, "a session was alive after the thread had said that it is gone"
    assert watch.login_seen < said, "a login worked after the thread had said that it is gone"
    assert _roles_of(use) == 0
    decided = use.says(TAKING_BACK)
    assert decided is not None
    assert float(decided["ts"]) <= said
    if decided["ts"] != post["ts"]:
        assert GONE not in json.dumps(decided)


def _user(use: Use) -> str:
    words = play._conninfo(use.line).split()
    return next(word.removeprefix("user=") for word in words if word.startswith("user="))


def _roles_of(use: Use) -> int:
    with psycopg.connect(use.demo.pg.dsn) as server:
        row = server.execute("SELECT count(*) FROM pg_roles WHERE rolname = %s", [_user(use)]).fetchone()
    return int(row[0]) if row else -1


# --- what it is worth -------------------------------------------------------------------------------------------------

MAY_NOT: Final = {
    "read": (
        "SELECT * FROM payment_cards",
        "INSERT INTO order_items SELECT 600, 99, sku, 1, 1 FROM products LIMIT 1",
        "UPDATE orders SET status = 'paid' WHERE id = 600",
        "DELETE FROM order_items WHERE order_id = 600",
        "CREATE TABLE mine (n integer)",
        "CREATE TEMPORARY TABLE mine (n integer)",
        "COPY orders TO PROGRAM 'cat'",
        "GRANT bg_orders_rw TO CURRENT_USER",
        "ALTER ROLE CURRENT_USER VALID UNTIL 'infinity'",
    ),
    "write": (
        "SELECT * FROM payment_cards",
        "DELETE FROM orders WHERE id = 600",
        "UPDATE customers SET name = 'x'",
        "DROP TABLE orders",
        "CREATE TABLE mine (n integer)",
        "COPY orders TO PROGRAM 'cat'",
        "ALTER ROLE CURRENT_USER VALID UNTIL 'infinity'",
    ),
}


@pytest.mark.parametrize("level", ["read", "write"])
def test_a_level_lends_what_it_says_and_nothing_else(demo: Demo, level: str) -> None:
    """Read sees every order, write changes orders; payment cards, other tables and its own end are out of reach."""
    use = opened(demo, level)
    with use.connect() as session:
        for table in ("customers", "products", "orders", "order_items", "payments", "stuck_orders"):
            row = session.execute(f"SELECT count(*) FROM {table}").fetchone()
            assert row is not None
            assert row[0] > 0
        if level == "write":
            for statement in (
                "UPDATE orders SET note = 'looked at' WHERE id = 600",
                "INSERT INTO order_items SELECT 600, 99, sku, 1, 1 FROM products LIMIT 1",
                "DELETE FROM order_items WHERE order_id = 600 AND line = 99",
            ):
                assert session.execute(statement).rowcount == 1
        # Sessions of the read level begin as read-only, which each may change for itself: the rights are what counts.
        session.execute("SET default_transaction_read_only = off")
        for statement in MAY_NOT[level]:
            with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.FeatureNotSupported)):
                session.execute(statement)
    user = play._conninfo(use.line)
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        psycopg.connect(user.replace("dbname=orders", "dbname=postgres"))
    use.press("U0RITA", views.RELEASE, in_dm=True)
    wait_for(lambda: use.says(GONE), PATIENCE, what="the end")


# --- the endings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "action", "in_dm"),
    [("U0RITA", views.RELEASE, True), ("U0CARL", views.REVOKE, False)],
    ids=["done", "revoke"],
)
def test_after_a_click_nothing_works_and_the_thread_says_so_only_afterwards(
    demo: Demo, who: str, action: str, *, in_dm: bool
) -> None:
    """Done and Revoke: a new login is refused and the session cut before any post says that the credential is gone."""
    use = opened(demo)
    with Watch(use) as watch:
        use.press(who, action, in_dm=in_dm)
        assert_gone_and_said_only_afterwards(watch)


def test_when_the_minute_is_over_nothing_works_and_the_thread_says_so_only_afterwards(demo: Demo) -> None:
    """The shortest access ends without anybody's doing, in its time, with the same order of things."""
    use = opened(demo, span="1m")
    began = time.time()
    with Watch(use) as watch:
        wait_for(lambda: use.says(GONE), 60 + PATIENCE, what="the end of the minute")
        assert_gone_and_said_only_afterwards(watch)
        assert watch.session_seen < began + 60, "the session lived on after its minute"
    assert use.says("The time is over") is not None


def test_while_the_target_is_down_nobody_is_told_that_it_ended(demo: Demo) -> None:
    """With PostgreSQL stopped at Done the thread says that it is being taken back and calls the custodians; once it
    answers again the access ends without anybody's doing.
    """
    use = opened(demo)
    demo.pg.stop()
    try:
        use.press("U0RITA", views.RELEASE, in_dm=True)
        late = wait_for(lambda: use.says("Not taken back yet"), PATIENCE, what="the word that it is not done")
        for custodian in ("U0CARL", "U0CHEN", "U0CORA"):
            assert f"<@{custodian}>" in json.dumps(late)
        wait_for(lambda: use.says("(try 2)"), PATIENCE, what="the second try")
        assert use.says(TAKING_BACK) is not None
        assert use.says(GONE) is None
        card = wait_for(lambda: use.card_says("Access is being taken back"), PATIENCE, what="the card to say so, too")
        assert "Access has ended" not in json.dumps(card)
    finally:
        demo.pg.start()
    wait_for(lambda: use.says(GONE), 60.0, what="the end, by itself")
    assert play._cannot_log_in(use.line)
    assert _roles_of(use) == 0
    wait_for(lambda: use.card_says("Access has ended"), PATIENCE, what="the card to say so")


def test_a_login_that_is_gone_already_does_not_hold_up_the_end(demo: Demo) -> None:
    """A login dropped by hand, or lost with a fail-over of the target, leaves nothing to take back: the access ends."""
    use = opened(demo)
    with psycopg.connect(demo.pg.dsn, autocommit=True) as server:
        server.execute(f'DROP ROLE "{_user(use)}"')
    use.press("U0RITA", views.RELEASE, in_dm=True)
    wait_for(lambda: use.says(GONE), PATIENCE, what="the end")
    assert use.says("Not taken back yet") is None
