"""What does MariaDB's audit log say? Lines as the plugin of Debian's MariaDB 10.11 wrote them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from workflows.captures.mariadb import MariaDB
from workflows.captures.seam import Kind, Unreadable

OWN = "bg-7kq2-1-abc"
HEAD = b"20261124 14:25:27,vm,bg-7kq2-1-abc,127.0.0.1,6,"
# As they were written, with what was run.
LINES = [
    (b"10,QUERY,shop,'SELECT 1',0", "SELECT 1", "shop", "ok"),
    (b"10,QUERY,,'SELECT 1',0", "SELECT 1", None, "ok"),
    (
        b"11,QUERY,shop,'INSERT INTO t VALUES (1,\\'it\\'\\'s \"x\"\\'),(2,\\'a\\\\nb\\ttab\\\\\\\\n\\')',0",
        "INSERT INTO t VALUES (1,'it''s \"x\"'),(2,'a\\nb\ttab\\\\n')",
        "shop",
        "ok",
    ),
    (
        (
            b"12,QUERY,shop,'SELECT \\'line\\nbreak\\r\\n"
            b"20261124 13:00:00,host,root,127.0.0.1,1,2,QUERY,shop,\\\\\\'x\\\\\\',0\\'',0"
        ),
        "SELECT 'line\nbreak\r\n20261124 13:00:00,host,root,127.0.0.1,1,2,QUERY,shop,\\'x\\',0'",
        "shop",
        "ok",
    ),
    (b"14,QUERY,shop,'SELEKT',1064", "SELEKT", "shop", "1064"),
    (b"16,QUERY,shop,'SET PASSWORD = PASSWORD(*****)',0", "SET PASSWORD = PASSWORD(*****)", "shop", "ok"),
    (
        b"17,QUERY,shop,'SELECT \\'\x00nul \x1b[31m \xc3\xa9 \xf0\x9f\x8e\x89\\'',0",
        "SELECT '\x00nul \x1b[31m \u00e9 \U0001f389'",
        "shop",
        "ok",
    ),
    (
        b"19,QUERY,Access denied for user 'bg-7kq2-1-abc'@'%' to database 'a,'x',0','USE mysql',1044",
        "USE mysql",
        None,
        "1044",
    ),
]


@pytest.mark.parametrize(("rest", "text", "database", "result"), LINES, ids=range(len(LINES)))
def test_a_statement_is_told_as_it_was_run(rest, text, database, result):
    """What the plugin escaped is given as it was typed, with its database, result and session."""
    (line,) = MariaDB().read(HEAD + rest)
    assert (line.kind, line.identity, line.session) == (Kind.STATEMENT, OWN, "6")
    assert (line.text, line.database, line.result) == (text, database, result)
    assert line.at == datetime(2026, 11, 24, 14, 25, 27, tzinfo=UTC)


@pytest.mark.parametrize(
    "line",
    [
        HEAD + b"0,CONNECT,shop,,0",
        HEAD + b"0,DISCONNECT,shop,,0",
        HEAD + b"11,WRITE,shop,t,",
        b"20261124 14:26:15,vm,z",
        b",127.0.0.1,8,0,FAILED_CONNECT,,,1045",
        b"\t\t     6 Query\tSELECT 1",
        b"261124 14:25:26\t     4 Connect\troot@127.0.0.1 on  using TCP/IP",
    ],
    ids=range(7),
)
def test_what_can_be_forged_is_not_read(line):
    """Attack: a user's name with a line break, of somebody who was refused. Events where it stands are findings."""
    with pytest.raises(Unreadable):
        MariaDB().read(line)


@pytest.mark.parametrize(
    "text", [b"SET GLOBAL server_audit_logging=OFF", b"UNINSTALL PLUGIN server_audit", b"set session sql_log_off=1"]
)
def test_who_tries_to_stop_the_recording_is_said(text):
    """Switching the plugin off, and trying to, is a statement and a finding."""
    found = MariaDB().read(HEAD + b"20,QUERY,shop,'" + text + b"',1227")
    assert [line.kind for line in found] == [Kind.STATEMENT, Kind.STOPPED]
    assert {line.result for line in found} == {"1227"}
