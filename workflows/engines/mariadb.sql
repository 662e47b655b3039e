-- What stands once at a MariaDB (10.5 or newer) whose logins Vault is to make.
--
-- MariaDB's right to make accounts (CREATE USER) is the right to change everybody's password, root's as well. So nobody
-- who can log in gets it. It belongs to an account that is locked for good, and what that account does stands in the
-- procedures below, which act on no account but those that they made themselves. Vault's manager may call them, and the
-- bot's watching logins may call those that look; neither has any other right on the server.
--
-- The server should run its events (event_scheduler=ON): with both Vault and the bot dead, they end what is over.
-- Keep the general log off, or the passwords of the logins stand in it.

CREATE DATABASE IF NOT EXISTS breakglass;

CREATE TABLE IF NOT EXISTS breakglass.login (
    name        varchar(80) NOT NULL PRIMARY KEY,
    lent        varchar(80) NOT NULL,
    made_at     datetime NOT NULL,
    expires_at  datetime NOT NULL,     -- UTC
    ended_at    datetime,
    newest      bigint unsigned        -- of the server's connections, when nobody was let in any more
) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
ALTER TABLE breakglass.login
    ADD COLUMN IF NOT EXISTS ended_at datetime, ADD COLUMN IF NOT EXISTS newest bigint unsigned;

CREATE USER IF NOT EXISTS breakglass_definer@localhost ACCOUNT LOCK;
GRANT CREATE USER, CONNECTION ADMIN, PROCESS ON *.* TO breakglass_definer@localhost;
GRANT SELECT, INSERT, UPDATE, DELETE ON breakglass.login TO breakglass_definer@localhost;
GRANT EXECUTE, EVENT ON breakglass.* TO breakglass_definer@localhost;
-- To see who can log in and which rights a role has, and for SET DEFAULT ROLE, which asks for the right to write there.
GRANT SELECT ON mysql.global_priv TO breakglass_definer@localhost;
GRANT SELECT ON mysql.roles_mapping TO breakglass_definer@localhost;
GRANT SELECT ON mysql.db TO breakglass_definer@localhost;
GRANT SELECT ON mysql.tables_priv TO breakglass_definer@localhost;
GRANT SELECT ON mysql.columns_priv TO breakglass_definer@localhost;
GRANT SELECT ON mysql.procs_priv TO breakglass_definer@localhost;
GRANT UPDATE ON mysql.* TO breakglass_definer@localhost;

CREATE ROLE IF NOT EXISTS bg_watch;
GRANT bg_watch TO breakglass_definer@localhost WITH ADMIN OPTION;

DELIMITER //

-- Make a login that lends one role, may have so many sessions with statements of so many seconds each (0: any), and is
-- over at a time ("2026-03-01 02:15:00+0000").
CREATE OR REPLACE DEFINER=breakglass_definer@localhost
PROCEDURE breakglass.open_login(
    who varchar(80), word text, lent varchar(80), sessions int, seconds decimal(10, 3), expires varchar(40))
MODIFIES SQL DATA SQL SECURITY DEFINER
BEGIN
    DECLARE account varchar(200) DEFAULT CONCAT(QUOTE(who), '@''%''');
    DECLARE ends_at datetime DEFAULT CONVERT_TZ(
        LEFT(expires, 19), CONCAT(SUBSTR(expires, 20, 3), ':', SUBSTR(expires, 23, 2)), '+00:00');
    IF who NOT REGEXP '^[a-z0-9][a-z0-9-]{2,78}[a-z0-9]$' OR lent NOT REGEXP '^[A-Za-z0-9_]{1,80}$'
        OR ends_at IS NULL OR CHAR_LENGTH(word) < 12 OR NOT sessions >= 1 OR NOT seconds >= 0 THEN
        SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no usable name, role, time, password or number of sessions';
    END IF;
    -- Under any host, and roles: whoever is there already would be ended with it later.
    IF EXISTS (SELECT 1 FROM mysql.global_priv WHERE user = who) THEN
        SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'there is an account of that name';
    END IF;
    -- The row first: an account that stands in no row would be nobody's to end. The two commits are one each.
    INSERT INTO breakglass.login VALUES (who, lent, UTC_TIMESTAMP(), ends_at, NULL, NULL);
    BEGIN
        -- Half a login is none.
        DECLARE EXIT HANDLER FOR SQLEXCEPTION BEGIN
            CALL breakglass.end_login(who);
            RESIGNAL;
        END;
        EXECUTE IMMEDIATE CONCAT(
            'CREATE USER ', account, ' IDENTIFIED BY ', QUOTE(word),
            ' WITH MAX_USER_CONNECTIONS ', sessions, ' MAX_STATEMENT_TIME ', seconds);
        EXECUTE IMMEDIATE CONCAT('GRANT `', lent, '` TO ', account);
        EXECUTE IMMEDIATE CONCAT('SET DEFAULT ROLE `', lent, '` FOR ', account);
    END;
END //

-- End a login that open_login made: no new session, then none at all, then no account. An unknown one is fine.
CREATE OR REPLACE DEFINER=breakglass_definer@localhost PROCEDURE breakglass.end_login(who varchar(80))
MODIFIES SQL DATA SQL SECURITY DEFINER
BEGIN
    DECLARE account varchar(200) DEFAULT CONCAT(QUOTE(who), '@''%''');
    DECLARE tries int DEFAULT 0;
    DECLARE latest bigint unsigned;
    IF EXISTS (SELECT 1 FROM breakglass.login WHERE name = who AND ended_at IS NULL) THEN
        -- 1. Whoever asks from here on is refused: every connection that is newer than the newest of this moment.
        EXECUTE IMMEDIATE CONCAT('ALTER USER IF EXISTS ', account, ' ACCOUNT LOCK');
        SELECT MAX(id) INTO latest FROM information_schema.processlist;
        -- 2. Whoever asked before has been let in, or will be: a client may stop in the middle of logging in, for as long
        --    as connect_timeout, and is then judged by the account as it was when it began. It is listed under its name
        --    from that moment on, and KILL USER ends it like a session. A killed one stays in the list until it is gone.
        --    Who only knocks is listed, too, and is not waited for: else anybody could keep an end from coming.
        REPEAT
            EXECUTE IMMEDIATE CONCAT('KILL HARD CONNECTION USER ', account);
            SET tries = tries + 1;
            IF tries > 1 THEN DO SLEEP(0.01); END IF;
        UNTIL tries > 300
            OR NOT EXISTS (SELECT 1 FROM information_schema.processlist WHERE user = who AND id <= latest) END REPEAT;
        IF EXISTS (SELECT 1 FROM information_schema.processlist WHERE user = who AND id <= latest) THEN
            -- The account stays locked; Vault tries again.
            SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'a session of this login does not end';
        END IF;
        -- 3. Only now, since nothing of the account is in use.
        EXECUTE IMMEDIATE CONCAT('DROP USER IF EXISTS ', account);
        UPDATE breakglass.login SET ended_at = UTC_TIMESTAMP(), newest = latest WHERE name = who;
        COMMIT;
    END IF;
END //

-- How many accounts of that name (a LIKE pattern) can log in, are there, and how many sessions they have: also those
-- that are still logging in, unless they began when the account was locked already. Who knocks under a name that no login
-- ever had is not counted: anybody can make such names up, and nobody is let in under them.
CREATE OR REPLACE DEFINER=breakglass_definer@localhost PROCEDURE breakglass.look(who varchar(160))
READS SQL DATA SQL SECURITY DEFINER
SELECT COALESCE(SUM(NOT COALESCE(JSON_VALUE(priv, '$.account_locked'), FALSE)), 0) AS able, COUNT(*) AS there,
    (SELECT COUNT(*) FROM information_schema.processlist p
        LEFT JOIN breakglass.login l ON l.name = CONVERT(p.user USING utf8mb4) COLLATE utf8mb4_bin
        WHERE p.user LIKE who
        AND NOT (p.command IN ('Connect', 'Killed')
            AND (l.name IS NULL OR l.newest IS NOT NULL AND p.id > l.newest))) AS sessions
FROM mysql.global_priv WHERE user LIKE who //

-- The accounts that are named after a request and can log in.
CREATE OR REPLACE DEFINER=breakglass_definer@localhost PROCEDURE breakglass.marked()
READS SQL DATA SQL SECURITY DEFINER
SELECT user FROM mysql.global_priv
WHERE user LIKE 'bg-%-%' AND NOT COALESCE(JSON_VALUE(priv, '$.account_locked'), FALSE) //

-- What a role may do that no level should: itself, and every role that it could become. No row: there is no such role.
CREATE OR REPLACE DEFINER=breakglass_definer@localhost PROCEDURE breakglass.rights(lent varchar(80))
READS SQL DATA SQL SECURITY DEFINER
WITH RECURSIVE reach(name) AS (
    SELECT user FROM mysql.global_priv WHERE user = lent AND JSON_VALUE(priv, '$.is_role')
    UNION SELECT m.role FROM mysql.roles_mapping m JOIN reach ON m.user = reach.name AND m.host = ''
), given(name, db, what) AS (
    SELECT user, db, CONCAT_WS(',', IF(select_priv = 'Y', 'Select', NULL), IF(show_view_priv = 'Y', 'Show view', NULL),
        IF('Y' IN (insert_priv, update_priv, delete_priv, create_priv, drop_priv, alter_priv, index_priv, trigger_priv,
            create_routine_priv, alter_routine_priv, execute_priv, event_priv, create_view_priv, references_priv,
            create_tmp_table_priv, lock_tables_priv, delete_history_priv), 'Write', NULL),
        IF(grant_priv = 'Y', 'Grant', NULL)) FROM mysql.db WHERE host = ''
    UNION ALL SELECT user, db, CONCAT_WS(',', table_priv, column_priv) FROM mysql.tables_priv WHERE host = ''
    UNION ALL SELECT user, db, column_priv FROM mysql.columns_priv WHERE host = ''
    UNION ALL SELECT user, db, CONCAT_WS(',', 'Write', proc_priv) FROM mysql.procs_priv WHERE host = ''
)
SELECT reach.name AS name,
    COALESCE(JSON_VALUE(p.priv, '$.access'), 0) <> 0 AS everywhere,
    EXISTS (SELECT 1 FROM given g WHERE g.name = reach.name
        AND ('mysql' LIKE g.db OR 'breakglass' LIKE g.db OR 'sys' LIKE g.db)) AS inside,
    EXISTS (SELECT 1 FROM given g WHERE g.name = reach.name AND FIND_IN_SET('Grant', g.what)) AS hands_on,
    EXISTS (SELECT 1 FROM given g WHERE g.name = reach.name
        AND g.what REGEXP '(^|,)(?!Select(,|$)|Show view(,|$)|$)') AS writes
FROM reach JOIN mysql.global_priv p ON p.user = reach.name AND p.host = '' //

-- What is over and was not ended: Vault is dead, or has given up.
CREATE OR REPLACE DEFINER=breakglass_definer@localhost EVENT breakglass.end_what_is_over
ON SCHEDULE EVERY 10 SECOND DO
BEGIN
    -- One that cannot be ended does not keep the others.
    DECLARE CONTINUE HANDLER FOR SQLEXCEPTION BEGIN END;
    FOR one IN (SELECT name FROM breakglass.login WHERE expires_at < UTC_TIMESTAMP() AND ended_at IS NULL) DO
        CALL breakglass.end_login(one.name);
    END FOR;
    DELETE FROM breakglass.login WHERE ended_at < UTC_TIMESTAMP() - INTERVAL 7 DAY;
END //

DELIMITER ;

GRANT EXECUTE ON PROCEDURE breakglass.look TO bg_watch;
GRANT EXECUTE ON PROCEDURE breakglass.marked TO bg_watch;
GRANT EXECUTE ON PROCEDURE breakglass.rights TO bg_watch;
