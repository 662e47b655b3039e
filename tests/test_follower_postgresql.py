"""Does the copy in a second PostgreSQL hold what it acknowledged, and can the bot's role there only add to it?"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import psycopg
import pytest
from outside import file_size_limit

from bot.demo.parts import Postgres
from storage.followers import CopyTrouble, Item, Place
from storage.followers import postgresql as kind
from storage.followers.postgresql import PostgresqlCopy
from storage.merkle import leaf_hash

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
ORIGIN = "breakglass.example.com/orders"
PASSWORD = "of the role"
_numbers = itertools.count(1)


def item(seq: int, words: str = "") -> Item:
    """Make an entry."""
    body = f'{{"seq":{seq},"words":"{words}"}}'.encode()
    return Item(seq, body, leaf_hash(body))


def items(start: int, end: int, words: str = "") -> list[Item]:
    """Make the entries from ``start`` to before ``end``."""
    return [item(seq, words) for seq in range(start, end)]


def deliver(copy: PostgresqlCopy, what: list[Item], head: bytes | None = None) -> int:
    """Deliver."""
    return copy.deliver(what, head, now=NOW)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Postgres]:
    """A standby's server, for tests that never stop it."""
    with Postgres(tmp_path_factory.mktemp("standby"), durable=False) as server:
        yield server


@pytest.fixture
def mortal(tmp_path) -> Iterator[Standby]:
    """A standby on a server of its own that keeps what it committed, to be stopped and killed."""
    with Postgres(tmp_path / "mortal") as server:
        yield Standby(server)


class Standby:
    """One standby, set up as its administrator does: with what the command prints."""

    def __init__(self, server: Postgres) -> None:
        name = f"copy_{next(_numbers)}"
        self.server = server
        self.url = f"postgresql://{name}:{PASSWORD.replace(' ', '%20')}@{server.host}:{server.port}/{name}"
        self.admin = server.dsn_for(name)
        self.place = Place("standby", ORIGIN, {"url_env": "STANDBY_URL"}, {"STANDBY_URL": self.url})
        subprocess.run(
            [str(server.bin / "psql"), "-v", "ON_ERROR_STOP=1", "-q", "-d", server.dsn],
            input=kind.setup(self.place),
            check=True,
            text=True,
            capture_output=True,
        )
        self.as_admin(f"ALTER ROLE {name} PASSWORD '{PASSWORD}'")

    def copy(self, origin: str = ORIGIN) -> PostgresqlCopy:
        """Return the copy as a bot that was just started has it."""
        return PostgresqlCopy("standby", self.url, origin)

    def as_admin(self, statement: str) -> None:
        """Do what only the administrator may."""
        with psycopg.connect(self.admin, autocommit=True) as connection:
            connection.execute(statement)


@pytest.fixture
def standby(server) -> Standby:
    """A standby of one's own."""
    return Standby(server)


@pytest.fixture(scope="module")
def filled(server) -> Standby:
    """A standby with two entries and a head, for tests that try to change it in vain."""
    standby = Standby(server)
    deliver(standby.copy(), items(0, 2), b"note")
    return standby


# ---------------------------------------------------------------------------------------------- the plain course


def test_what_was_delivered_is_read_back_as_it_was(standby):
    """Entries, pruned ones among them, and heads come back as they went in, also after a restart in between."""
    pruned = Item(2, None, item(2).leaf_hash)
    assert standby.copy().position() is None
    assert deliver(standby.copy(), items(0, 2), b"note one") == 1
    assert deliver(standby.copy(), [pruned, item(3)], b"note two") == 3
    assert list(standby.copy().read()) == [item(0), item(1), pruned, item(3)]
    assert list(standby.copy().read(3)) == [item(3)]
    assert list(standby.copy().heads()) == [b"note one", b"note two"]
    assert standby.copy().position() == 3


def test_what_comes_again_is_not_written_again(standby):
    """Delivered twice, in other batches and after a restart, each entry and each head stands there once."""
    copy = standby.copy()
    for _ in range(2):
        assert deliver(copy, items(0, 5), b"note") == 4
    assert deliver(standby.copy(), items(3, 8), b"note") == 7
    assert deliver(standby.copy(), []) == 7
    assert list(copy.read()) == items(0, 8)
    assert list(copy.heads()) == [b"note"]


def test_a_long_copy_is_read_page_by_page(standby):
    """More entries than one page holds come back in order."""
    copy = standby.copy()
    deliver(copy, items(0, 2500))
    assert list(copy.read(7)) == items(7, 2500)


# ---------------------------------------------------------------------------------------------- the role


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE breakglass.copy_entry SET body = ''",
        "DELETE FROM breakglass.copy_entry",
        "TRUNCATE breakglass.copy_entry",
        "UPDATE breakglass.copy_log SET origin = 'another'",
        "DELETE FROM breakglass.copy_log",
        "UPDATE breakglass.copy_head SET note = ''",
        "DELETE FROM breakglass.copy_head",
        "TRUNCATE breakglass.copy_head, breakglass.copy_log",
        "ALTER TABLE breakglass.copy_entry DISABLE TRIGGER ALL",
        "DROP TABLE breakglass.copy_entry",
        "DROP SCHEMA breakglass CASCADE",
        "ALTER FUNCTION breakglass.copy_refuse() RENAME TO copy_allow",
        "CREATE TABLE breakglass.mine ()",
        "CREATE TABLE public.mine ()",
        "CREATE TEMPORARY TABLE copy_entry ()",
        "SET session_replication_role = replica",
        "INSERT INTO breakglass.copy_entry VALUES (1, NULL, NULL) ON CONFLICT (seq) DO UPDATE SET body = ''",
    ],
)
def test_the_role_can_change_nothing(filled, statement):
    """The bot's role, which whoever broke into the bot has too, is refused everything but adding the next entry."""
    with psycopg.connect(filled.url, autocommit=True) as role, pytest.raises(psycopg.errors.InsufficientPrivilege):
        role.execute(statement)
    assert list(filled.copy().read()) == items(0, 2)


@pytest.mark.parametrize("seq", [0, 1, 3, 7, -1])
def test_the_role_can_add_only_the_next_entry(filled, seq):
    """An insert by hand, past the bot, neither doubles a number nor leaves a gap."""
    with psycopg.connect(filled.url, autocommit=True) as role, pytest.raises(psycopg.IntegrityError):
        role.execute("INSERT INTO breakglass.copy_entry VALUES (%s, %s, %s)", [seq, item(2).leaf_hash, item(2).body])


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE breakglass.copy_entry SET body = ''",
        "DELETE FROM breakglass.copy_entry",
        "TRUNCATE breakglass.copy_entry",
        "DELETE FROM breakglass.copy_head",
        "TRUNCATE breakglass.copy_log",
    ],
)
def test_the_guards_stand_before_the_administrator_too(filled, statement):
    """Also by mistake of those who may do anything nothing is changed, not even in replica mode."""
    with psycopg.connect(filled.admin, autocommit=True) as admin:
        admin.execute("SET session_replication_role = replica")
        with pytest.raises(psycopg.IntegrityError, match="only grows"):
            admin.execute(statement)


def test_a_role_that_could_change_the_copy_is_refused(standby):
    """A copy under a role with too many rights is no copy: nothing is brought there."""
    name = psycopg.conninfo.conninfo_to_dict(standby.url)["user"]
    standby.as_admin(f"GRANT UPDATE ON breakglass.copy_entry TO {name}")
    with pytest.raises(CopyTrouble, match="could change"):
        deliver(standby.copy(), items(0, 1))
    standby.as_admin(f"REVOKE UPDATE ON breakglass.copy_entry FROM {name}")
    standby.as_admin(f"ALTER TABLE breakglass.copy_head OWNER TO {name}")
    with pytest.raises(CopyTrouble, match="could change"):
        deliver(standby.copy(), items(0, 1))
    owner = PostgresqlCopy("standby", standby.admin, ORIGIN)
    with pytest.raises(CopyTrouble, match="could change"):
        deliver(owner, items(0, 1))


def test_a_standby_without_its_guards_is_refused(standby):
    """When somebody lifted a guard the copy says so, instead of going on without it."""
    standby.as_admin("ALTER TABLE breakglass.copy_entry DISABLE TRIGGER copy_no_change")
    with pytest.raises(CopyTrouble, match="guards"):
        deliver(standby.copy(), items(0, 1))


def test_a_standby_that_was_not_set_up_is_said(server):
    """Without its tables the copy says what to run."""
    with pytest.raises(CopyTrouble, match="follower setup standby"):
        deliver(PostgresqlCopy("standby", server.dsn, ORIGIN), items(0, 1))


# ---------------------------------------------------------------------------------------------- another log


def test_an_entry_that_differs_from_the_one_that_stands_there_is_refused(standby):
    """A rewritten log does not get past the copy of what it was, and nothing of that batch is kept."""
    copy = standby.copy()
    deliver(copy, items(0, 3))
    with pytest.raises(CopyTrouble, match="different entry 1"):
        deliver(copy, [item(1, "changed"), item(2), item(3)])
    assert list(copy.read()) == items(0, 3)


def test_a_log_that_it_did_not_begin_is_not_followed(standby):
    """Neither another log's name nor another entry 0 is continued there."""
    deliver(standby.copy(), items(0, 2))
    with pytest.raises(CopyTrouble, match="holds the log"):
        deliver(standby.copy("other.example.com/log"), items(2, 3))
    with pytest.raises(CopyTrouble, match="different entry 0"):
        deliver(standby.copy(), items(0, 1, "another log"))
    assert list(standby.copy().read()) == items(0, 2)


def test_a_standby_that_lost_entries_is_said(standby):
    """A standby that was restored from an old state, or begun anew, is not simply continued."""
    with pytest.raises(CopyTrouble, match=r"is empty, though entry 4 was acknowledged"):
        deliver(standby.copy(), items(5, 6))
    deliver(standby.copy(), items(0, 2))
    with pytest.raises(CopyTrouble, match=r"ends at entry 1, though entry 4"):
        deliver(standby.copy(), items(5, 6))


def test_two_bots_that_deliver_at_once_double_nothing(standby):
    """The one that comes second is told to try again, and then finds it done."""
    first, second = standby.copy(), standby.copy()
    deliver(first, items(0, 1))
    deliver(second, items(0, 1))
    with first._transaction() as connection:
        connection.execute("INSERT INTO breakglass.copy_entry VALUES (1, %s, %s)", [item(1).leaf_hash, item(1).body])
        with second._transaction() as other:
            other.execute("SET LOCAL lock_timeout = '10ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable), other.transaction():
                other.execute("INSERT INTO breakglass.copy_entry VALUES (1, %s, %s)", [item(1).leaf_hash, item(1).body])
    assert deliver(second, items(1, 3)) == 2
    assert list(first.read()) == items(0, 3)


# ---------------------------------------------------------------------------------------------- outages


def test_stopped_and_started_again_it_goes_on(mortal):
    """While the server is down the copy says so; then it goes on with the same object, and nothing is missing."""
    copy = mortal.copy()
    deliver(copy, items(0, 2))
    mortal.server.stop()
    for _ in range(2):
        with pytest.raises(CopyTrouble, match="does not answer"):
            deliver(copy, items(2, 4))
    mortal.server.start()
    assert deliver(copy, items(2, 4)) == 3
    assert list(copy.read()) == items(0, 4)


def test_killed_in_the_middle_of_a_batch_it_keeps_all_or_nothing_of_it(mortal):
    """SIGKILL of the server between insert and commit: what was acknowledged is there, the rest comes again."""
    copy = mortal.copy()
    deliver(copy, items(0, 2))
    insert = "INSERT INTO breakglass.copy_entry VALUES (2, %s, %s)"
    with contextlib.suppress(CopyTrouble), copy._transaction() as connection:
        connection.execute(insert, [item(2).leaf_hash, item(2).body])
        mortal.server.kill()
    mortal.server.start()
    assert list(copy.read()) == items(0, 2)
    assert deliver(copy, items(2, 40)) == 39
    mortal.server.kill()
    mortal.server.start()
    assert list(mortal.copy().read()) == items(0, 40)


def test_a_full_disk_acknowledges_nothing_and_goes_on_when_there_is_room(mortal):
    """The server cannot make its file longer in mid-batch: nothing of it stays, and the next try takes it all."""
    copy = mortal.copy()
    deliver(copy, items(0, 1))
    bodies = [os.urandom(60_000) for _ in range(400)]
    batch = [Item(seq, body, leaf_hash(body)) for seq, body in enumerate(bodies, start=1)]
    with file_size_limit(17_000_000):  # a segment of the server's journal fits, the batch does not
        mortal.server.stop()
        mortal.server.start()
    copy.close()
    assert deliver(copy, items(0, 1)) == 0
    with pytest.raises(CopyTrouble, match="see the log of its server"):  # Linux says "too long" of it, not "full"
        deliver(copy, batch)
    assert "no room left" in copy._say_error(psycopg.errors.DiskFull())
    mortal.server.stop()
    mortal.server.start()
    assert copy.position() == 0
    assert deliver(copy, batch) == 400
    assert list(copy.read(1)) == batch


# ---------------------------------------------------------------------------------------------- secrets


def test_no_message_repeats_the_password(standby):
    """Neither a refused login nor a malformed URL nor the object itself tells what the URL holds."""
    wrong = PostgresqlCopy("standby", standby.url.replace("role", "hunter2"), ORIGIN)
    with pytest.raises(CopyTrouble, match="does not let the bot in") as refused:
        deliver(wrong, items(0, 1))
    settings = {"url_env": "STANDBY_URL"}
    with pytest.raises(CopyTrouble, match="STANDBY_URL") as unread:
        kind.build(Place("standby", ORIGIN, settings, {"STANDBY_URL": "postgresql://u:hunter2@[h/x"}))
    with pytest.raises(CopyTrouble, match="is not set"):
        kind.build(Place("standby", ORIGIN, settings, {}))
    place = Place("standby", ORIGIN, settings, {"STANDBY_URL": "postgresql://u:hunter2@h/x"})
    for words in (str(refused.value), str(unread.value), repr(wrong), repr(place), kind.setup(place)):
        assert "hunter2" not in words


def test_the_sql_without_a_url_names_a_role_and_a_database_of_its_own():
    """Before anything exists the command already prints what is needed."""
    sql = kind.setup(Place("standby", ORIGIN, {"url_env": "STANDBY_URL"}, {}))
    assert 'CREATE ROLE "breakglass_copy" LOGIN' in sql
    assert 'CREATE DATABASE "breakglass_copy"' in sql
