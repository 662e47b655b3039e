"""A MariaDB level whose role may do more than it should is found, before it is given out and when it is tried.

Against a real OpenBao and a real MariaDB.
"""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from mariadb_part import maria_level

from storage.audit import Actor, read_entries
from storage.database import Database
from workflows.engines import ENGINES
from workflows.errors import Refused
from workflows.trial import try_level
from workflows.vault_apply import Operator, refuse_excess

pytest_plugins = ["mariadb_part"]

MARIADB = ENGINES["mariadb"]
WHO = Actor("", "shell:ada")


@pytest.fixture
def database(tmp_path, sqlite_template):
    """A log; that every database does is shown elsewhere."""
    file = tmp_path / "log.db"
    file.write_bytes(sqlite_template.read_bytes())
    log = Database(f"sqlite:///{file}")
    yield log
    log.close()


@pytest.fixture
def try_it(maria, maria_vault, database):
    """Try the reading level of an account that also has a writing one."""
    read = SimpleNamespace(name="read", settings=maria.read.settings, quorum=1, capture_source=None)
    write = SimpleNamespace(name="write", settings=maria.write.settings, quorum=2, capture_source=None)
    account = SimpleNamespace(name="shop", levels={"read": read, "write": write})
    return lambda level="read": try_level(maria_vault, database, account, account.levels[level], WHO)


@contextmanager
def granted(maria, *pairs):
    """Rights that somebody gave, and took back: statements in pairs."""
    try:
        for give, _ in pairs:
            maria.pg.execute(give)
        yield
    finally:
        for _, take in reversed(pairs):
            maria.pg.execute(take)


PLANTED = {
    "make accounts": (("GRANT CREATE USER ON *.* TO bg_shop_ro", "REVOKE CREATE USER ON *.* FROM bg_shop_ro"),),
    "files": (("GRANT FILE ON *.* TO bg_shop_ro", "REVOKE FILE ON *.* FROM bg_shop_ro"),),
    "read everything": (("GRANT SELECT ON *.* TO bg_shop_ro", "REVOKE SELECT ON *.* FROM bg_shop_ro"),),
    "through other roles": (
        ("CREATE ROLE bg_between", "DROP ROLE bg_between"),
        ("CREATE ROLE bg_mighty", "DROP ROLE bg_mighty"),
        ("GRANT SUPER ON *.* TO bg_mighty", "REVOKE SUPER ON *.* FROM bg_mighty"),
        ("GRANT bg_mighty TO bg_between", "REVOKE bg_mighty FROM bg_between"),
        ("GRANT bg_between TO bg_shop_ro", "REVOKE bg_between FROM bg_shop_ro"),
    ),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_group_with_rights_on_the_whole_server_is_found_and_fails_its_trial(maria, maria_vault, try_it, what):
    """Accounts, files and everybody's data are no level's, whether the group has them or a role that comes with it."""
    assert MARIADB.excess(maria_vault, maria.read.settings.options) == ()
    with granted(maria, *PLANTED[what]):
        (sentence,) = MARIADB.excess(maria_vault, maria.read.settings.options)
        assert "has rights on the whole server" in sentence
        with pytest.raises(Refused, match=r"shop/shop-ro: .*whole server"):
            refuse_excess(Operator(maria.bao.addr, maria.bao.root_token), [maria.read])
        with pytest.raises(Refused, match="on the whole server, and must not"):
            try_it()
    assert MARIADB.excess(maria_vault, maria.read.settings.options) == ()


FOUND_ON_TRIAL = {
    "passes on": (
        ("GRANT SELECT ON shop.orders TO bg_shop_ro WITH GRANT OPTION"),
        ("REVOKE GRANT OPTION ON shop.orders FROM bg_shop_ro"),
        "can pass on what it may",
    ),
    "passwords": ("GRANT SELECT ON mysql.* TO bg_shop_ro", "REVOKE SELECT ON mysql.* FROM bg_shop_ro", "server's own"),
    "our procedures": (
        "GRANT EXECUTE ON PROCEDURE breakglass.end_login TO bg_shop_ro",
        "REVOKE EXECUTE ON PROCEDURE breakglass.end_login FROM bg_shop_ro",
        "server's own",
    ),
    "the next level": ("GRANT bg_shop_rw TO bg_shop_ro", "REVOKE bg_shop_rw FROM bg_shop_ro", "need more custodians"),
}


@pytest.mark.parametrize("what", FOUND_ON_TRIAL)
def test_what_a_login_may_and_must_not_fails_its_trial(maria, try_it, what):
    """To pass rights on, the server's own tables, our procedures, and the rights of a level with more custodians."""
    give, take, words = FOUND_ON_TRIAL[what]
    with granted(maria, (give, take)), pytest.raises(Refused, match=words):
        try_it()


def test_a_group_that_is_not_there_is_named(maria, maria_vault):
    """A role that nobody made is found before a night needs it."""
    level = maria_level(maria.pg, "shop-none", "bg_nobody")
    assert "There is no role bg_nobody" in MARIADB.excess(maria_vault, level.settings.options)[0]


def test_each_level_is_tried_and_leaves_nothing(maria, try_it, database):
    """A sound level logs in and reads, is shown to be gone, and is two entries."""
    for level in ("read", "write"):
        seen = try_it(level)
        assert seen[:3] == (
            "it logs in",
            "it has no right on the whole server, and can pass none on",
            "it reads shop.orders",
        )
        assert "its account does not exist" in seen
    with database.read() as session:
        told = [(record.event, record.data.get("passed")) for record in read_entries(session)]
    assert told == [("drill:try", None), ("drill:tried", True)] * 2
    assert maria.pg.execute("SELECT user FROM mysql.global_priv WHERE user LIKE 'check-%'") == []
