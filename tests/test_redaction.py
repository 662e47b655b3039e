"""What is taken out of a statement or a command, and what is not? Secrets as people really type them."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflows.captures.redaction import MARK, redact

S = "hunter2Xq"  # the secret in most of them
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI0MiJ9.dBjftJeZ4CVPmB92K27uhbUJU1p1rw"
# Each with the secret that must not survive.
SQL = [
    (f"ALTER ROLE bob WITH PASSWORD '{S}'", S),
    (f"alter user bob encrypted password '{S}' valid until '2027-01-01'", S),
    (f"CREATE ROLE bob LOGIN PASSWORD\n\t'{S}'", S),
    (f"CREATE ROLE bob PASSWORD /* hm */ '{S}'", S),
    (f"CREATE ROLE bob PASSWORD -- hm\n '{S}'", S),
    (f"CREATE USER bob PASSWORD E'{S}\\'s' IN ROLE x", S),
    (f"CREATE USER bob PASSWORD U&'{S}'", S),
    (f"CREATE USER bob PASSWORD 'it''s {S} ''' CREATEDB", S),
    (f"ALTER ROLE bob PASSWORD $${S}$$", S),
    (f"ALTER ROLE bob PASSWORD $x$a $$ {S}$x$; SELECT 1", S),
    (f"ALTER ROLE bob PASSWORD '{S}", S),
    (f"CREATE USER 'bob'@'%' IDENTIFIED BY '{S}' REQUIRE SSL", S),
    (f"CREATE USER bob IDENTIFIED WITH 'mysql_native_password' BY \"{S}\"", S),
    (f"ALTER USER bob IDENTIFIED BY PASSWORD '*{S}'", S),
    (f"CREATE USER bob IDENTIFIED VIA ed25519 USING PASSWORD('{S}') OR unix_socket", S),
    (f"CREATE USER bob IDENTIFIED VIA unix_socket OR mysql_native_password USING '*{S}'", S),
    (f"ALTER USER bob IDENTIFIED BY 'x' REPLACE '{S}'", S),
    (f"GRANT ALL ON *.* TO bob@'%' IDENTIFIED BY '{S}'", S),
    (f"SET PASSWORD FOR bob = PASSWORD('{S}')", S),
    (f"SET PASSWORD = '{S}'", S),
    (f"CHANGE MASTER TO MASTER_HOST='db', MASTER_PASSWORD='{S}'", S),
    (f"CREATE USER MAPPING FOR bob SERVER s OPTIONS (user 'bob', password '{S}')", S),
    (f"SELECT * FROM dblink('host=db user=bob password={S}', 'SELECT 1') AS t(a int)", S),
    (f"SELECT dblink_connect('c', 'host=db password=''{S} x'' user=bob')", S),
    (f"CREATE SUBSCRIPTION s CONNECTION 'host=db password={S} dbname=x' PUBLICATION p", S),
    (f"ALTER SYSTEM SET primary_conninfo = 'host=db password={S}'", S),
    (f"SET app.jwt_secret = '{S}'", S),
    (f"SET app.token TO '{S}'", S),
    (f"SELECT set_config('app.api_key', '{S}', false)", S),
    (f"UPDATE users SET password = '{S}' WHERE id = 1", S),
    (f"UPDATE users SET password = crypt('{S}', gen_salt('bf')) WHERE id = 1", S),
    (f"UPDATE users SET note='x', password_hash=md5('{S}')", S),
    (f"SELECT * FROM users WHERE login='bob' AND pass='{S}'", S),
    (f"INSERT INTO users (id, name, password) VALUES (1, 'it''s (bob)', '{S}'), (2, 'x', '{S}')", S),
    (f"INSERT INTO users(api_token,name) VALUES ('{S}','bob') ON CONFLICT DO NOTHING", S),
    (f"INSERT INTO users (name, password) VALUES ('bob', crypt('{S}', gen_salt('bf')))", S),
    (f"INSERT INTO users (name, password) SELECT 'bob', '{S}'", S),
    (f"INSERT INTO users (name, password) VALUES ($1, $2)\n-- with: bob,{S}", S),
    (f"UPDATE users SET password = $1 WHERE id = $2\n-- parameters: $1 = '{S}', $2 = '7'", S),
    (f"UPDATE users SET (name, password) = ('bob', '{S}')", S),
    (f"INSERT INTO settings (key, value) VALUES ('smtp_password', '{S}')", S),
    (f"CALL set_password('bob', '{S}')", S),
    (f"SET PASSWORD FOR 'bob'@'%' = '{S}'", S),
    (f"SELECT encrypt('x', '{S}', 'aes')", S),
    (f"SELECT pgp_sym_decrypt(card, '{S}') FROM cards", S),
    (f"SELECT pgp_sym_encrypt('4111', '{S}', 'cipher-algo=aes256')", S),
    (f"SELECT AES_DECRYPT(card, '{S}') FROM cards", S),
    (f"COPY t FROM 's3://b/x' CREDENTIALS 'aws_access_key_id=A;aws_secret_access_key={S}'", S),
    (f'UPDATE conf SET doc = \'{{"db": {{"password": "{S}"}}}}\'', S),
    (f"UPDATE conf SET doc = jsonb_set(doc, '{{smtp,password}}', '\"{S}\"')", S),
    (f"DO $$ BEGIN EXECUTE 'COPY t FROM PROGRAM ''mysql -uroot -p{S} shop'''; END $$", S),
    (f"DO $$ BEGIN EXECUTE format('ALTER ROLE %I PASSWORD %L', 'bob', '{S}'); END $$", S),
    (f"DO $$ DECLARE pw text := '{S}'; BEGIN NULL; END $$", S),
    (f"ALTER TABLE t ADD COLUMN password varchar(20) NOT NULL DEFAULT '{S}'", S),
    (f"EXECUTE set_pass('bob', '{S}')", S),
    (f"SELECT login('bob', '{S}')", S),
    (f"SELECT sign('{{}}'::json, '{S}')", S),
    (f"SELECT aws_commons.create_aws_credentials('A', '{S}', '')", S),
    (f"SELECT * FROM users WHERE password IN ('x', '{S}')", S),
    (f"SELECT * FROM users WHERE password NOT LIKE '{S}%'", S),
    (f"SELECT * FROM users WHERE password IS NOT DISTINCT FROM '{S}'", S),
    (f"SELECT * FROM users WHERE password ~ '{S}'", S),
    (f"SELECT * FROM users WHERE '{S}' = u.password", S),
    (f"SELECT * FROM users WHERE (login, password) = ('bob', '{S}')", S),
    (f"SELECT * FROM users WHERE (login, password) IN (('x', '{S}'), ('bob', '{S}'))", S),
    (f"SELECT 'x' AS a, '{S}'::text AS password", S),
    (f"WITH x(id, password) AS (VALUES (1, '{S}')) UPDATE users SET password = x.password FROM x", S),
    (f"UPDATE users SET password = ('{S}')", S),
    (f"UPDATE users SET password = (SELECT '{S}')", S),
    (f"COPY t FROM PROGRAM 'curl -u bob:{S} https://h/x'", S),
    (f"UPDATE conf SET value = '{JWT}' WHERE id = 3", JWT),
    (f"INSERT INTO notes VALUES ('-----BEGIN RSA PRIVATE KEY-----\n{S}\n-----END RSA PRIVATE KEY-----')", S),
    (f"INSERT INTO notes VALUES ('-----BEGIN OPENSSH PRIVATE KEY-----\n{S}", S),
    ("ALTER ROLE bob PASSWORD 'md5c59f0d1c1d1a6b3f4f6f3ad4c4d1b9e0'", "c59f0d1c1d1a6b3f"),
    ("SELECT 'SCRAM-SHA-256$4096:c2FsdHNhbHQ=$c3RvcmVk:c2VydmVy'", "c3RvcmVk"),
    ("SELECT '$2b$12$EixZaYVK1fsbw1ZfbX3OXePaWxn96p36WQoeG6Lruj3vjPGga31lW'", "EixZaYVK1fsb"),
]
SHELL = [
    (f"mysql -u root -p{S} shop", S),
    (f"mysqldump -uroot '-p{S}' shop", S),
    (f"mysqladmin -u root password '{S}'", S),
    (f"MYSQL_PWD={S} mysql shop", S),
    (f"PGPASSWORD={S} psql -h db", S),
    (f"export PGPASSWORD='{S} and more'", S),
    (f"env AWS_SECRET_ACCESS_KEY={S} aws s3 ls", S),
    (f"sshpass -p {S} ssh bob@host", S),
    (f"sshpass -p'{S}' ssh bob@host", S),
    (f"curl -u bob:{S} https://h/", S),
    (f"curl -sSu 'bob:{S} x' https://h/", S),
    (f"curl --user=bob:{S} https://h/", S),
    (f"curl -H 'Authorization: Bearer {S}' https://h/", S),
    (f'curl -H "Authorization: Basic {S}==" https://h/', S),
    (f"curl -H 'X-Vault-Token: {S}' https://h/", S),
    (f"curl -H 'PRIVATE-TOKEN: {S}' https://h/", S),
    (f"curl -H 'Cookie: session={S}' https://h/", S),
    (f'curl -d \'{{"user":"bob","password":"{S}"}}\' https://h/', S),
    (f'curl -d "{{\\"password\\": \\"{S}\\"}}" https://h/', S),
    (f"curl -d 'grant_type=password&client_secret={S}&x=1' https://h/", S),
    (f"wget --http-password={S} https://h/", S),
    (f"tool --password {S} --verbose", S),
    (f"tool --db-password='{S}'", S),
    (f"tool --api-key {S}", S),
    (f"java -Djavax.net.ssl.keyStorePassword={S} -jar x.jar", S),
    (f"keytool -storepass {S} -list", S),
    (f"docker login -u bob -p {S} registry", S),
    (f"echo {S} | docker login -u bob --password-stdin", S),
    (f"echo 'root:{S}' | chpasswd", S),
    (f"echo {S} | sudo -S id", S),
    (f"chpasswd <<< 'root:{S}'", S),
    (f"redis-cli -h h -a {S} info", S),
    (f"redis-cli CONFIG SET requirepass {S}", S),
    (f"mongosh -u bob -p {S} db", S),
    (f"ldapsearch -D cn=x -w {S} -b dc=x", S),
    (f"openssl rsa -in k.pem -passin pass:{S}", S),
    (f"openssl enc -aes-256-cbc -k {S} -in x", S),
    (f"smbclient //h/s -U 'bob%{S}'", S),
    (f"vault login {S}", S),
    (f"vault kv put secret/app color={S}", S),
    (f"vault write auth/userpass/users/bob password={S}", S),
    (f"kubectl create secret generic x --from-literal=color={S}", S),
    (f"kubectl config set-credentials bob --token={S}", S),
    (f"aws configure set aws_secret_access_key {S}", S),
    (f"npm config set //registry.example/:_authToken {S}", S),
    (f"sqlplus scott/{S}@orcl", S),
    (f"zip -P {S} x.zip x", S),
    (f"7z x -p{S} x.7z", S),
    (f"htpasswd -b /etc/x bob {S}", S),
    (f"mount -t cifs //h/s /m -o username=bob,password={S},uid=1000", S),
    (f"sudo -u postgres psql 'host=db password={S}'", S),
    (f"ssh bob@host 'mysql -uroot -p{S} shop'", S),
    (f'sh -c "mysql -uroot -p{S} shop"', S),
    (f"gpg --batch --passphrase '{S}' -d x.gpg", S),
    (f"nmcli dev wifi connect x password {S}", S),
    (f"xfreerdp /u:bob /p:{S} /v:h", S),
    (f"wpa_passphrase net {S}", S),
    (f"useradd -p '{S}' bob", S),
    (f"snmpwalk -v2c -c {S} h", S),
    (f"s3cmd --access_key=A --secret_key={S}", S),
    (f"aws x --secret-access-key {S}", S),
    (f"rabbitmqctl change_password bob {S}", S),
    (f"twine upload -u x -p {S}", S),
    (f"lftp -u bob,{S} h", S),
]
ADDRESSES = [
    (f"psql postgresql://bob:{S}@db:5432/orders", S),
    (f"psql 'postgres://bob:{S}@x@db/orders?sslmode=require'", f"{S}@x"),
    (f"redis-cli -u redis://:{S}@h:6379/0", S),
    (f"git clone https://bob:{S}@github.example/x.git", S),
    ("git clone https://0123456789abcdef0123456789abcdef01234567@git.example/x.git", "0123456789abcdef"),
    (f"curl https://h/x?token={S}", S),
    (f"curl 'https://h/x?a=1&access_token={S}&b=2'", S),
    (f"curl 'https://h/x?api_key={S}#y'", S),
    (f"curl 'https://maps.example/api?key={S}'", S),
    (f"curl 'https://b.blob.example/x?sv=2022&sig={S}%3D'", S),
    (f"curl 'https://b.s3.example/x?X-Amz-Credential={S}&X-Amz-Signature={S}'", S),
    (f"SELECT * FROM http_get('https://bob:{S}@h/')", S),
    (f"curl -X POST https://hooks.slack.com/services/T0000/B0000/{S}", S),
    (f"AccountName=a;AccountKey={S}==;EndpointSuffix=x", S),
    (f"Server=h;Uid=sa;Pwd={S};Database=x", S),
    (f"amqp://bob:{S}@mq:5672/%2f", S),
]
# Made out of parts, so that nobody takes this file for a leak.
TOKENS = [
    "AKIA" + "IOSFODNN7EXAMPLE",
    "gh" + "p_" + "a1B2" * 9,
    "github" + "_pat_" + "11ABCDEFG0" * 3,
    "gl" + "pat-" + "a1B2c3D4e5F6g7H8i9J0",
    "xox" + "b-123456789012-abcdefABCDEF",
    "xap" + "p-1-A0123-456-abcdef0123456789",
    "hv" + "s." + "CAESIJ1234567890abcdefghijklmn",
    "s" + "." + "AbCdEfGhIjKlMnOpQrStUv12",
    JWT,
    "AI" + "za" + "SyA1234567890abcdefghijklmnopqrstuv",
    "sk" + "_live_" + "4eC39HqLyjWDarjtT1zdp7dc",
    "SG" + "." + "ngeVfQFYQlKU0ufo8x5d1A" + "." + "TwL2iGABf9DHoTf09kqeF8tAmbihYzrnopKc1s5cr",
    "npm" + "_" + "a1B2" * 9,
    "pypi" + "-" + "AgEIcHlwaS5vcmc" * 3,
    "AGE-SECRET" + "-KEY-1" + "QQPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L" + "QQPZRY",
    "hf" + "_" + "aBcD" * 8 + "ef",
]
SECRETS = [*SQL, *SHELL, *ADDRESSES, *((f"SELECT send('{token}')", token) for token in TOKENS)]
SECRETS += [(f"deploy.sh {token}", token) for token in TOKENS]


@pytest.mark.parametrize(("text", "secret"), SECRETS, ids=range(len(SECRETS)))
def test_a_secret_does_not_survive(text, secret):
    """Of a secret in SQL, in a command or in an address nothing is left, and that something was there is seen."""
    clean = redact(text)
    assert secret not in clean.text
    assert MARK in clean.text
    assert clean.count >= 1
    assert clean.text[:4] == text[:4] or text.startswith(secret[:1])


@pytest.mark.parametrize(("text", "secret"), SECRETS, ids=range(len(SECRETS)))
def test_redacting_twice_changes_nothing(text, secret):
    """What was taken out is not found again, and nothing more is."""
    clean = redact(text).text
    assert redact(clean).text == clean
    assert redact(clean).count == 0


@pytest.mark.parametrize(("text", "secret"), SHELL, ids=range(len(SHELL)))
def test_a_secret_does_not_survive_among_the_words_of_a_command(text, secret):
    """The words that a program was started with are redacted each, and so is their line; others stay as they are."""
    try:
        argv = tuple(shlex.split(text))
    except ValueError:
        pytest.fail(text)
    clean = redact(shlex.join(argv), argv)
    assert not any(secret in word for word in clean.argv)
    assert secret not in clean.text
    assert len(clean.argv) == len(argv)
    assert clean.argv[0] == argv[0] or MARK in clean.argv[0]
    assert clean.count >= 1


QUOTED = {
    "plain": lambda line: "COPY t FROM PROGRAM '" + line.replace("'", "''") + "' WITH (FORMAT csv)",
    "escaped": lambda line: "COPY t FROM PROGRAM E'" + line.replace("\\", "\\\\").replace("'", "\\'") + "'",
    "dollar": lambda line: f"COPY t TO PROGRAM $x${line}$x$",
    "without an end": lambda line: "copy t to program\n'" + line.replace("'", "''"),
    "a setting": lambda line: "ALTER SYSTEM SET archive_command = '" + line.replace("'", "''") + "'",
}


@pytest.mark.parametrize("quoted", QUOTED.values(), ids=QUOTED)
def test_a_secret_in_a_program_that_the_server_starts_does_not_survive(quoted):
    """However the command line is quoted in the statement; what was taken out is not found again."""
    for line, secret in (*SHELL, *ADDRESSES):
        text = quoted(line)
        clean = redact(text).text
        assert secret not in clean
        assert (redact(clean).text, clean[:12]) == (clean, text[:12])


def test_what_stands_around_a_secret_stays():
    """A reader sees whose password was changed, and to where a connection went."""
    assert redact(f"ALTER ROLE bob PASSWORD '{S}' VALID UNTIL '2027'").text == (
        "ALTER ROLE bob PASSWORD '[redacted]' VALID UNTIL '2027'"
    )
    assert redact(f"psql postgresql://bob:{S}@db:5432/orders").text == "psql postgresql://bob:[redacted]@db:5432/orders"
    assert redact(f"mysql -uroot -p{S} shop").text == "mysql -uroot -p[redacted] shop"
    assert redact("x", ("mysql", f"-p{S}", "shop")).argv == ("mysql", "-p[redacted]", "shop")
    assert redact(f"tool --token {S} list; rm -rf /srv").text == "tool --token [redacted] list; rm -rf /srv"


def test_what_follows_a_secret_cannot_be_hidden_by_it():
    """Attack: a text that only looks as if its end were escaped does not take the next statement out of sight."""
    clean = redact("ALTER ROLE bob PASSWORD 'x1\\'; DROP TABLE orders; -- '")
    assert "DROP TABLE orders" in clean.text
    assert "x1" not in clean.text


ATTACKS = [
    "password=",
    "password '",
    "password $a$",
    "password ''",
    "password (",
    "password/*",
    "password --",
    "PASSWORD\\'",
    "crypt(",
    "insert into t (password) values (",
    "insert into t (password) values ",
    "identified by ",
    "identified via a using '",
    "identified via a or ",
    "://a:",
    "://a@",
    "a://",
    "-----BEGIN PRIVATE KEY-----",
    "eyJaaaaaa.",
    "bearer ",
    "cookie:",
    "authorization: ",
    "$6$a",
    "$6$",
    "<password>",
    "echo a|",
    "mysql -p",
    "curl -u a ",
    "chpasswd <<< a ",
    "sh -c '",
    'sh -c "',
    "vault kv put a b ",
    "--password ",
    "token" * 3,
    "a" * 16,
    "1" * 16,
    "'",
    '"',
    "\\",
    "(",
    "s.aA1",
    "\n-- with: password $1",
    "password = $1 ",
    "_" * 10,
    "pass:a",
    "set_config('password',",
    "x.y-",
    "?key=",
    "password in (",
    "password text := '",
    "format('password %",
    "format('password %', ",
    "'a' as password",
    "(password) in (",
    "(password) as (values",
    "login(",
    "program ''",
    "program '",
    "program e'\\",
    "program $a$",
    "program 'mysql -pa';",
    "x_command = '",
    " ",
]


@pytest.mark.parametrize("part", ATTACKS)
def test_no_text_keeps_it_busy(part):
    """Attack: what makes a rule look again and again. A long text of it is done with, the same each time."""
    text = (part * (131_072 // len(part) + 1))[:131_072]  # a rule of the square of it would take hours
    assert redact(text) == redact(text)


def test_a_secret_in_a_megabyte_is_found():
    """However long a text is, what stands at its end is redacted as what stands at its beginning."""
    rows = ", ".join(f"({number}, 'name {number}', now())" for number in range(36_000))
    text = f"INSERT INTO t VALUES {rows}; ALTER ROLE bob PASSWORD '{S}'"
    assert len(text) > 1_000_000
    clean = redact(text)
    assert clean.count == 1
    assert S not in clean.text
    assert len(clean.text) == len(text) - len(S) + len(MARK)


TABLES = ("orders", "shop.payment_cards", "password_resets", "tokens", "secrets_audit", '"Order Lines"', "user_keys")
COLUMNS = ("status", "token_count", "password_changed_at", "key", "pass_rate", "secret_level", "note", "token_type")
TEMPLATES = (
    "SELECT id, {c} FROM {t} WHERE id = {n}",
    "SELECT count(*) FROM {t} WHERE {c} IS NOT NULL",
    "SELECT {c}, count(*) FROM {t} GROUP BY {c} ORDER BY 2 DESC LIMIT {n}",
    "UPDATE {t} SET {c} = {c} + 1 WHERE id IN ({n}, {m})",
    "UPDATE {t} SET {c} = 'paid', updated_at = now() WHERE id = {n}",
    "DELETE FROM {t} WHERE {c} = 'stuck' AND id < {n}",
    "INSERT INTO {t} (id, {c}) VALUES ({n}, 'it''s {m}')",
    "EXPLAIN ANALYZE SELECT * FROM {t} a JOIN {t} b ON a.token = b.token WHERE a.{c} <> b.{c}",
    "CREATE INDEX CONCURRENTLY ON {t} ({c})",
    "ALTER TABLE {t} ADD COLUMN password text, ADD COLUMN x{n} int",
    "COPY (SELECT {c} FROM {t} LIMIT {n}) TO STDOUT WITH (FORMAT csv)",
    "SELECT * FROM users WHERE password IS NULL AND id > {n} -- of {t}, {c}",
    "SELECT secret, token, api_key FROM {t} WHERE {c} = $1\n-- with: {n}",
    "SELECT * FROM {t} WHERE url LIKE 'https://shop.example:8443/{n}/%' AND {c} > {m}",
    "UPDATE notices SET body = 'Forgot your password? Ask {n}.' WHERE id IN (SELECT {c} FROM {t})",
    "WITH x AS (SELECT {c} FROM {t} WHERE at > now() - interval '{n} days') SELECT max({c}) FROM x",
    "GRANT SELECT ({c}) ON {t} TO bg_reader_{n}",
    "SELECT column_name FROM information_schema.columns WHERE column_name IN ('password', 'token', '{c}') OFFSET {n}",
    "SELECT md5({c}::text), sha256('{n}') FROM {t} WHERE token = t.token",
    "SET statement_timeout = '{n}s'; SELECT {c} FROM {t} FOR UPDATE",
)
COMMANDS = (
    "ls -la /srv/app-{n}/passwords.d",
    "grep -rn password /etc/app{n}.conf",
    "ssh -p 22{n} deploy@db{m}.example",
    "psql -h db -p 54{n} -U app -c 'SELECT {n}'",
    "mysql -u root -p shop_{n}",
    "mkdir -p /srv/tokens/{n}",
    "kubectl get secret db-password-{n} -o name",
    "kubectl -n shop logs pod/api-{n} --since=1h",
    "vault kv get secret/app/{n}",
    "vault token lookup -accessor {n}",
    "curl -fsS https://shop.example:8443/health?id={n}",
    "curl -u $USER:$PASS https://shop.example/{n}",
    "curl -H 'Authorization: Bearer $TOKEN' https://shop.example/{n}",
    "systemctl restart api@{n}",
    "journalctl -u sshd --since '{n} min ago' | grep 'Failed password'",
    "docker run -p 80{n}:80 -v /srv:/srv nginx",
    "git commit -m 'Rotate the password of {n}'",
    "chage -l user{n}; passwd -S user{n}",
    "tar czf /tmp/x{n}.tgz --exclude=secrets /srv/app",
    "PGPASSFILE=~/.pgpass pg_dump -h db -t orders_{n} shop",
    "openssl x509 -in /etc/ssl/server{n}.pem -noout -dates",
    "app --password-file /run/secrets/db{n} --token-file=/run/t",
    "cd /srv/{n} && PWD=/srv/{n} make test",
    "find / -name '*.key' -size +{n}k -newer /etc/passwd",
    "aws s3 cp s3://bucket/{n}/x.csv . --no-sign-request",
    "echo password expired for {n} users >> /var/log/x",
)


def _harmless():
    """Return 500 statements and commands, no two alike, of the shapes that an emergency brings."""
    texts = [
        one.format(t=TABLES[(at + turn) % 7], c=COLUMNS[(at * 3 + turn) % 8], n=10 + at * 7 + turn, m=turn + 2)
        for at, one in enumerate(TEMPLATES)
        for turn in range(14)
    ]
    texts += [one.format(n=10 + turn, m=turn) for one in COMMANDS for turn in range(9)]
    return texts[:500]


def test_what_is_harmless_is_left_alone():
    """Of 500 statements and commands in which nothing is secret, at most one in fifty is touched."""
    texts = _harmless()
    assert len(set(texts)) == 500
    touched = [text for text in texts if redact(text).count]
    assert len(touched) <= 10, touched


@settings(max_examples=60)
@given(st.text(max_size=200), st.lists(st.text(max_size=30), max_size=6))
def test_whatever_is_typed_nothing_is_raised(text, argv):
    """Arbitrary texts and words are redacted or left; as many words come out as went in."""
    clean = redact(text, tuple(argv))
    assert len(clean.argv) == len(argv)
    assert isinstance(clean.text, str)
