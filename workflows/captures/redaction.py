"""Which parts of a statement or a command must never be stored? All the rules, in one file.

Rules
-----
* A reader sees ``[redacted]`` in a secret's place, and the count says how often. What stands around it stays.
* A secret is known by where it stands (behind ``PASSWORD``, ``--token``, ``user:`` in an address …) or by its shape
  (keys and tokens of known makers). In doubt a value behind such a word is taken out: the raw line's hash is kept.
* What is no secret stays: a column's name, a placeholder, a variable, an empty text.
* No text may keep us busy: a value is gone over once, all else that is looked at from one place is bounded. An opened
  quote that is not closed ends with the text.
* What was taken out once is not found again: redacting twice changes nothing.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MARK: Final = "[redacted]"
Span = tuple[int, int]

# --- words behind which a secret stands ------------------------------------------------------------------------------

_WORDS: Final = (
    *("secret_key", "secret-key", "secretkey"),
    *("password", "passwort", "passwd", "passphrase", "passcode", "storepass", "keypass", "requirepass", "masterauth"),
    *("secret", "token", "apikey", "api_key", "api-key", "accesskey", "access_key", "access-key", "accountkey"),
    *("account_key", "private_key", "private-key", "privatekey", "auth_key", "authkey", "auth-key", "signing_key"),
    *("encryption_key", "master_key", "community"),
)
# Short ones count only as a word of their own: ``bypass`` and ``compwd`` are none.
_SHORT: Final = ("pass", "pwd", "pw", "psk", "pgpass", "sshpass", "mysql_pwd")
_KEY: Final = re.compile(
    rf"(?ai)(?:{'|'.join(_WORDS)}|secret_?id|(?<![a-z0-9])(?:{'|'.join(_SHORT)}))"
    r"(?:_?(?:hash|hashed|digest|verifier|value|plain|plaintext|text|new|old|current|confirm|confirmation|id)"
    r"(?<!token_id)(?<!tokenid)|_?[0-9]{1,2})?(?![A-Za-z0-9_])"
)
_KEY_HINTS: Final = ("pass", "secret", "token", "key", "pwd", "pw", "psk", "masterauth", "community")

# Between a word and its value: white space and comments. All bounded.
_GAP: Final = r"(?:\s{1,40}|/\*[^*]{0,200}\*/|--[^\n]{0,200}\n){0,4}"
_CLOSERS: Final = re.compile(r"[\\\"'`\])}]{0,4}(?:::\w{1,20})?")
_ASSIGN: Final = re.compile(rf"{_GAP}(?::=|=>|={{1,2}}|!=|<>|:(?!:)|to\b){_GAP}", re.IGNORECASE)
_COMPARED: Final = re.compile(
    rf"(?ai){_GAP}(?:(?:not\s{{1,9}})?(?:i?like|similar\s{{1,9}}to|in)\b|is\s{{1,9}}(?:not\s{{1,9}})?distinct\s{{1,9}}from\b|!?~\*?){_GAP}"
)
_DECLARED: Final = re.compile(
    r"(?ai)\s{1,9}[a-z]\w{0,20}(?:\s?\(\d{1,5}\))?\s{1,9}(?:not\s{1,9}null\s{1,9})?(?::=|=|default\b)\s{0,9}"
)
_BESIDE: Final = re.compile(rf"(?!\s*\Z){_GAP}\(?\s{{0,10}}")
_COMMA: Final = re.compile(r"\s{0,10},\s{0,10}(?:to_jsonb?\(\s{0,10})?")
_TAKES_PAIRS: Final = re.compile(
    r"(?ai)(?:(?:set_config|jsonb?_(?:build_object|object|set|insert|replace)|hstore|json_\w{1,10})\s{0,5}\([^()]{0,150}"
    r"|\bvalues\s{0,5}\([^()]{0,60})\Z"
)

# --- values ----------------------------------------------------------------------------------------------------------

_OPEN: Final = re.compile(r"(?:[eEnNbBxX]|[uU]&|_\w{1,12}\s?)?(\\{1,3}[\"']|[\"'`]|\$(?:[A-Za-z_]\w{0,30})?\$)")
# A backslash before a quote may escape it (MySQL, E'') or not (PostgreSQL): what follows tells, mostly.
_BODIES: Final = {
    "'": re.compile(r"(?:[^'\\]++|''|\\'(?=[^\s;,)'\"])|\\[^']?)*+"),
    '"': re.compile(r"(?:[^\"\\]++|\"\"|\\\"(?=[^\s;,)'\"])|\\[^\"]?)*+"),
    "`": re.compile(r"[^`]*+"),
}
_MORE: Final = re.compile(r"\s{0,20}(?:\|\||\s)\s{0,20}(?=[eE]?')")
_BARE: Final = re.compile(
    r"(?:[^\s'\"`;&|<>(),\[\]{}\\]|\\(?![\"'nrt])|,(?!\s|\Z|[\w.-]{1,40}[=:])|[(){}\[\]](?=[\w!@#$%^*+-]))+"
)
_CALL: Final = re.compile(r"[A-Za-z_][\w.]{0,60}\s{0,5}\(")
_PARTS: Final = re.compile(r"[^'\"$()]++|.", re.DOTALL)

_EMPTY: Final = re.compile(r"\s*|\[redacted\]|<[A-Za-z _-]{0,40}>|\*{3,}", re.IGNORECASE)
_HOLDER: Final = re.compile(
    r"(?ai)\$\w+|\$\{[^}]*\}?|\$\(?|%s|%\(\w+\)s|\?|:\w+|@\w+|null|none|true|false|default|nil|undefined|required|in|on|off"
)
_NAME: Final = re.compile(r"[A-Za-z_][\w]*(?:\.[A-Za-z_]\w*)*", re.ASCII)
_SQL: Final = re.compile(
    r"(?ai)[\s(]*(?:select|insert|update|delete|with|merge|replace|create|alter|drop|grant|explain|copy|set|do|call"
    r"|prepare|values|truncate|declare)\b"
)
_PARAMETERS: Final = re.compile(r"\n-- (with|(?i:parameters)): ")

# --- what is known by its shape, or by a few letters before it -------------------------------------------------------
# (a hint in lower case that must be there, the rule): group 1 is the secret, or all of it.

_SHAPES: Final[dict[str, list[re.Pattern[str]]]] = {}
for _hint, _rule in (
    (
        "private key",
        (
            r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
            r"(?!\[redacted\])((?:[^-]++|-(?!----END))*+(?:-----END[A-Z0-9 ]*-----)?)"
        ),
    ),
    ("putty-user-key", r"Private-Lines: \d+([^:]*+)"),
    ("age-secret-key", r"AGE-SECRET-KEY-1[0-9A-Z]{20,80}"),
    ("eyj", r"\beyJ[A-Za-z0-9_-]{6,}(?:\.[A-Za-z0-9_-]+){1,4}\.?"),
    ("hv", r"\bhv[sbr]\.[A-Za-z0-9_-]{16,}"),
    ("s.", r"(?<![\w.])[sb]\.(?=[a-zA-Z]{0,25}[0-9])(?=[a-z0-9]{0,25}[A-Z])[A-Za-z0-9]{24,120}(?![\w.])"),
    ("gh", r"\bgh[pousr]_[A-Za-z0-9]{16,255}"),
    ("github_pat_", r"github_pat_\w{16,255}"),
    ("gl", r"\bgl(?:pat|dt|rt|cbt|ptt|ft|soat|agent|imt)-[\w.-]{16,300}"),
    ("xox", r"\bxox[a-z]-[A-Za-z0-9-]{8,}"),
    ("xapp-", r"\bxapp-[A-Za-z0-9-]{10,}"),
    ("hooks.slack.com", r"hooks\.slack\.com/(?:services|workflows|triggers)/([^\s'\"<>]{8,})"),
    ("discord", r"discord(?:app)?\.com/api/webhooks/([^\s'\"<>]{8,})"),
    ("webhook.office", r"webhook\.office\.com/([^\s'\"<>]{8,})"),
    ("akia", r"\bAKIA[A-Z0-9]{16}\b"),
    ("asia", r"\bASIA[A-Z0-9]{16}\b"),
    ("aiza", r"\bAIza[\w-]{30,40}"),
    ("ya29.", r"\bya29\.[\w.-]{16,}"),
    ("gocspx-", r"\bGOCSPX-[\w-]{20,}"),
    ("k_", r"\b[srp]k_(?:live|test)_[A-Za-z0-9]{10,}"),
    ("whsec_", r"\bwhsec_[A-Za-z0-9+/=]{16,}"),
    ("sg.", r"\bSG\.[\w-]{16,}\.[\w-]{16,}"),
    ("sk", r"\bSK[0-9a-f]{32}\b"),
    ("sk-", r"\bsk-(?:[a-z]{2,10}-)?[\w-]{20,}"),
    ("npm_", r"\bnpm_[A-Za-z0-9]{30,}"),
    ("pypi-", r"\bpypi-[\w-]{30,}"),
    ("do", r"\bdo[opr]_v1_[0-9a-f]{32,}"),
    ("dapi", r"\bdapi[0-9a-f]{32}\b"),
    ("hf_", r"\bhf_[A-Za-z0-9]{30,}"),
    ("shp", r"\bshp(?:at|ca|pa|ss)_[0-9a-fA-F]{20,}"),
    ("atatt", r"\bATATT3[\w=-]{20,}"),
    ("atlasv1.", r"\b\w{14}\.atlasv1\.[\w=-]{30,}"),
    ("dckr_", r"\bdckr_[a-z]{3}_[\w-]{16,}"),
    ("gl", r"\bgl(?:sa|c)_[\w=+/-]{20,}"),
    ("nrak-", r"\bNRAK-[A-Z0-9]{20,}"),
    ("dp.", r"\bdp\.(?:pt|st|ct|sa|scim)\.[\w.]{20,}"),
    ("lin_api_", r"\blin_api_\w{20,}"),
    ("pmak-", r"\bPMAK-[\w-]{20,}"),
    (":aa", r"\b\d{6,12}:AA[\w-]{30,}"),
    ("scram-sha-", r"SCRAM-SHA-(?:1|256)\$\d{1,9}:[\w+/=]+\$[\w+/=]+:[\w+/=]+"),
    ("$2", r"\$2[abxy]?\$\d\d\$[./A-Za-z0-9]{53}"),
    ("$", r"\$(?:[156y]|argon2(?:id|i|d)|7|gy|sha1|apr1)\$[^\s'\":,;]{1,120}\$[./A-Za-z0-9+=$,]{16,200}"),
    ("md5", r"\bmd5[0-9a-f]{32}\b"),
    ("*", r"(?<!\w)\*[0-9A-F]{40}\b"),
    ("bearer", r"(?i)\bbearer\s{1,5}((?=[a-z._~+/=-]{0,200}[0-9])[\w.~+/=-]{10,})"),
    (
        "authorization",
        (
            r"(?i)authorization[\\\"']{0,3}\s{0,5}[:=]\s{0,5}[\\\"']{0,3}"
            r"(?:(?:bearer|basic|token|digest|negotiate|apikey|api-key|key|vault|aws4-hmac-sha256)\s{1,5})?+"
            r"([^\s\"'\\$][^\n\"'\\]*)"
        ),
    ),
    ("set password", r"(?i)\bset password\s{1,9}for\s[^=;]{1,200}=\s{0,9}(?:password\()?['\"]([^'\"]+)"),
    ("cookie:", r"(?i)\bcookie:\s{0,5}([^\n\"'\\]+)"),
    ("sig", r"(?i)[?&;](?:sig|signature|x-amz-signature|x-goog-signature)=([^&\s'\"<>#]+)"),
    ("x-amz-", r"(?i)[?&]x-amz-(?:credential|security-token)=([^&\s'\"<>#]+)"),
    (
        "=",
        r"(?i)[?&](?:key|auth|code|session|sessionid|sid|jwt|otp|state_token|client_secret|access|credential)=([^&\s'\"<>#]+)",
    ),
    ("accountkey=", r"(?i)accountkey=([A-Za-z0-9+/=]+)"),
    ("sharedaccess", r"(?i)sharedaccess(?:key|signature)[=:]\s{0,5}([^;\s'\"]+)"),
    ("pass:", r"(?<![\w/])pass:([^\s'\"]+)"),
    ("</", r"(?i)<(?:\w{1,20}:)?\w{0,20}(?:password|passwd|secret|token|apikey)>([^<]{1,500})</"),
):
    _SHAPES.setdefault(_hint, []).append(re.compile(_rule))
_HINTS: Final = tuple(_SHAPES)
_ADDRESS: Final = re.compile(r"://[^\s'\"`<>]+")
_PORT: Final = re.compile(r"\d{1,5}(?:[/?#,]|\Z)")
_USERINFO: Final = re.compile(r"[^:/?#@]{0,200}+:")

_IDENTIFIED: Final = re.compile(rf"(?ai)\bidentified{_GAP}(by|with|via)\b{_GAP}(?:password\b{_GAP})?")
_PLUGIN: Final = re.compile(
    rf"(?ai)\s{{0,20}}\)?\s{{0,20}}(?:(?:or\s{{1,20}})?[\"'`]?\w{{1,60}}[\"'`]?\s{{1,20}}(?=or\b)){{0,6}}"
    rf"(?:or\s{{1,20}})?[\"'`]?\w{{1,60}}[\"'`]?{_GAP}(?:as|using|by)\b{_GAP}(?:password\s{{0,9}}\(?\s{{0,9}})?"
)
_REPLACED: Final = re.compile(rf"(?ai){_GAP}replace\b{_GAP}")
_INSERT: Final = re.compile(
    r"(?ai)\binto\s{1,20}[\w.\"`]{1,200}\s{0,20}(?:as\s{1,9}\w{1,60}\s{0,9})?\(([^()]{1,8000})\)"
    r"\s{0,20}(?:overriding\s{1,9}(?:user|system)\s{1,9}value\s{1,9})?(values?|select)\b"
)
_SET_ROW: Final = re.compile(r"(?ai)\bset\s{0,9}\(([^()]{1,4000})\)\s{0,9}=\s{0,9}(values|row)?(?=\s{0,9}\()")
_ROW_IS: Final = re.compile(r"(?ai)\(([^()]{1,4000})\)\s{0,9}(?:=|in\s{0,9}\()\s{0,9}(values|row)?(?=\s{0,9}\()")
_WITH: Final = re.compile(
    r"(?ai)\(([^()]{1,4000})\)\s{1,9}as\s{1,9}(?:(?:not\s{1,9})?materialized\s{1,9})?\(\s{0,9}(values|select)\b"
)
_BEFORE: Final = re.compile(
    r"(?ai)'((?:[^']|''){1,200}+)'\s{0,9}(?:::\w{1,30}\s{0,9})?(?:\bas\b|=|<>|!=)\s{0,9}[\"`]?([\w.]{1,100})"
)
_FORMAT: Final = re.compile(r"(?ai)\bformat\s{0,9}\(\s{0,9}(?=[e'$])")
_FILLED: Final = re.compile(r"[\s=:'\"]{0,9}%")
_IN_PARENTHESES: Final = re.compile(r"(?ai)\(\s{0,9}(?:[en]?'|\$|(?:select|cast|case)\b)")
_CALLS: Final = ("crypt", "pass", "hmac", "login", "authenticate", "sign", "credentials")
_KEYED_CALL: Final = re.compile(
    r"(?ai)\b(?:(?:\w{0,60}_)?pass|login|authenticate|sign|create_aws_credentials"
    r"|pgp_sym_(?:en|de)crypt(?:_bytea)?|(?:aes|des)_(?:en|de)crypt|crypt|hmac|(?:en|de)crypt(?:_iv)?|\w{0,60}passw(?:or)?d)"
    r"\s{0,9}\("
)
# A command line within a statement: COPY … FROM PROGRAM '…', SET archive_command = '…'. Quoted as PostgreSQL reads it.
_PROGRAM: Final = re.compile(
    rf"(?ai)(?:\bprogram|_command{_GAP}(?:=|to\b)){_GAP}"
    r"(?:''(?P<doubled>(?:[^']++|'{4})++)''|e'(?P<escaped>(?:[^'\\]++|''|\\.)*+)|'(?P<plain>(?:[^']++|'')*+)"
    r"|(?P<tag>\$(?:[A-Z_]\w{0,30})?\$)(?P<dollar>(?:[^$]++|(?!(?P=tag))\$)*+))",
    re.DOTALL,
)
_MORE_FOR_ONE: Final = {
    "escaped": re.compile(r"''|\\.", re.DOTALL),
    "plain": re.compile(r"''"),
    "doubled": re.compile(r"'{4}"),
}


@dataclass(frozen=True, slots=True)
class Redacted:
    """A text and its words without their secrets, and how many were taken out."""

    text: str
    argv: tuple[str, ...]
    count: int


def redact(text: str, argv: tuple[str, ...] = ()) -> Redacted:
    """Take the secrets out of a statement, or of a command and its words.

    ``text`` is the same command as one line, if there is an ``argv``; the count is then that of the words.
    """
    clean, count = _cleaned(text, _spans(text))
    if not argv:
        return Redacted(clean, (), count)
    words, secrets = [], set()
    of_words = 0
    for word, spans in zip(argv, _of_words(argv), strict=True):
        kept, found = _cleaned(word, [*spans, *_spans(word)])
        words.append(kept)
        of_words += found
        secrets |= {word[start:end] for start, end in _merged(word, spans)}
    # What only its place among the words shows to be a secret may look otherwise in the line, which is quoted.
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) > 2:
            clean = clean.replace(secret, MARK)
    return Redacted(clean, tuple(words), max(count, of_words))


def _cleaned(text: str, spans: Sequence[Span]) -> tuple[str, int]:
    if not spans:
        return text, 0
    parts = []
    at = count = 0
    for start, end in _merged(text, spans):
        parts += [text[at:start], MARK]
        at = end
        count += 1
    return "".join([*parts, text[at:]]), count


def _merged(text: str, spans: Sequence[Span]) -> list[Span]:
    """Return the spans in order, those that overlap as one, without what is no secret or was taken out before."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if start >= end or _EMPTY.fullmatch(text, start, end):
            continue
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _spans(text: str, depth: int = 0) -> list[Span]:
    """Return where secrets stand in a text."""
    low = text.lower()
    spans: list[Span] = []
    holders: set[str] = set()
    has = low.__contains__  # a hint is looked for much quicker than a rule is tried
    has_key = any(map(has, _KEY_HINTS))
    if has_key:
        spans += _keyed(text, holders)
        for word, rule in (("into", _INSERT), ("set", _SET_ROW), ("(", _ROW_IS), ("with", _WITH)):
            if word in low:
                spans += _inserted(text, rule, holders)
        spans += [found.span(1) for found in _BEFORE.finditer(text) if _is_secret_name(found[2])]
        if "format" in low:
            spans += _formatted(text, holders)
    if "identified" in low:
        spans += _identified(text)
    if any(map(has, _CALLS)):
        at = 0
        while (call := _KEYED_CALL.search(text, at)) is not None:
            within, at = _in_call(text, call.end(), holders)
            spans += within
    lines: list[Span] = []
    if "program" in low or "_command" in low:
        spans += _programs(text, depth, lines)
    if "://" in low:
        spans += _addresses(text)
    for hint in filter(has, _HINTS):
        for rule in _SHAPES[hint]:
            spans += [found.span(1 if rule.groups else 0) for found in rule.finditer(text)]
    if holders and (parameters := _PARAMETERS.search(text)):
        spans += _parameters(text, parameters, holders)
    if (has_key and ("-" in low or not _SQL.match(text))) or any(map(has, _PROGRAM_HINTS)):
        found = _of_line(text[:_LONGEST_LINE], depth)
        # What was read as a command line already is not read again with SQL's quotes in it.
        ends = [end for _, end in lines]
        for one in found:
            at = bisect_right(ends, one[0])
            if at == len(lines) or one[1] <= lines[at][0]:
                spans.append(one)
    return spans


# --- SQL, and whatever assigns ----------------------------------------------------------------------------------------


def _literal(text: str, at: int) -> tuple[Span, int] | None:
    """Return where the content of a quoted text stands, and where the text goes on; None if none begins at ``at``."""
    found = _OPEN.match(text, at)
    if found is None:
        return None
    quote, start = found[1], found.end()
    if quote == "'" and text.startswith("'", start):
        # An empty text, or a quote that is doubled for it stands within another text.
        end = text.find("'", start + 1)
        if end > start + 1 and text.startswith("'", end + 1):
            return (start + 1, end), end + 2
        return (start, start), start + 1
    body = _BODIES.get(quote)
    if body is not None:
        matched = body.match(text, start)
        end = matched.end() if matched else start
    else:
        end = text.find(quote, start)
        end = len(text) if end < 0 else end
    return (start, end), min(end + len(quote), len(text))


def _literals(text: str, at: int) -> tuple[list[Span], int]:
    """Return what is quoted at a place, with what is joined to it."""
    spans: list[Span] = []
    while (one := _literal(text, at)) is not None:
        spans.append(one[0])
        at = one[1]
        more = _MORE.match(text, at)
        if more is None:
            break
        at = more.end()
    return spans, at


def _in_call(text: str, at: int, holders: set[str]) -> tuple[list[Span], int]:
    """Return all that is quoted within a call's parentheses, of which the first is behind us."""
    spans: list[Span] = []
    depth = 1
    while depth and at < len(text):
        one = _literal(text, at) if text[at] in "'\"$" else None
        if one is not None:
            spans.append(one[0])
            at = one[1]
            continue
        holder = _HOLDER.match(text, at) if text[at] == "$" else None
        if holder:
            holders.add(holder[0])
        part = holder or _PARTS.match(text, at)
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        at = part.end() if part else at + 1
    return spans, at


def _keyed(text: str, holders: set[str]) -> Iterator[Span]:
    """Give what stands behind a word for a secret."""
    is_sql = _SQL.match(text) is not None
    at = 0
    while (key := _KEY.search(text, at)) is not None:
        at = key.end()
        closers = _CLOSERS.match(text, at)
        after = closers.end() if closers else at
        is_quoted = after > at
        if (sep := _ASSIGN.match(text, after)) is not None:
            spans, at = _assigned(text, sep, is_sql=is_sql, holders=holders)
            yield from spans
        elif (sep := _COMPARED.match(text, after) or _DECLARED.match(text, after)) is not None:
            is_list = text.startswith("(", sep.end())
            spans, end = _in_call(text, sep.end() + 1, holders) if is_list else _literals(text, sep.end())
            at = max(at, end if spans or is_list else at)
            yield from spans
        elif is_quoted and (comma := _COMMA.match(text, after)) is not None:
            if _TAKES_PAIRS.search(text[max(0, key.start() - 200) : key.start()]):
                spans, at = _literals(text, comma.end())
                yield from spans
        elif not is_quoted and (gap := _BESIDE.match(text, after)) is not None and gap.end() > after:
            spans, end = _literals(text, gap.end())
            at = max(at, end if spans else at)
            yield from spans
            if not spans and text.startswith("$", gap.end()) and (holder := _HOLDER.match(text, gap.end())):
                holders.add(holder[0])


def _assigned(text: str, sep: re.Match[str], *, is_sql: bool, holders: set[str]) -> tuple[list[Span], int]:
    at = sep.end()
    spans, end = _literals(text, at)
    if spans:
        return [span for span in spans if not _is_variable(text, span)], end
    if (call := _CALL.match(text, at)) is not None and text[at : call.end() - 1].strip().lower() not in {"in", "any"}:
        return _in_call(text, call.end(), holders)
    if _IN_PARENTHESES.match(text, at) is not None:
        return _in_call(text, at + 1, holders)
    bare = _BARE.match(text, at)
    if bare is None or text.startswith(MARK, at):
        return [], at
    value = bare[0]
    if _HOLDER.fullmatch(value):
        holders.add(value)
        return [], bare.end()
    if value.startswith(("$", "~/", "/")) and not is_sql:
        return [], bare.end()  # a variable; or PWD, a file
    if is_sql and ":" in sep[0] and value.isalpha() and value.islower():
        return [], bare.end()  # a sentence in a value: "token: see ticket"
    is_apart = sep[0] != "=" or (is_sql and _NAME.fullmatch(value) is not None and "." in value)
    if is_sql and is_apart and ":" not in sep[0] and (_NAME.match(value) or (value.isdigit() and len(value) < 4)):
        return [], bare.end()  # another column, a small number
    return [bare.span()], bare.end()


def _is_variable(text: str, span: Span) -> bool:
    start, end = span
    return text[start - 1] == '"' and re.fullmatch(r"\$\w+|\$\{[^}]*\}|\$\([^)]*\)", text[start:end]) is not None


def _inserted(text: str, rule: re.Pattern[str], holders: set[str]) -> Iterator[Span]:
    """Give the values that an INSERT, or SET (…) = (…), puts into columns for secrets."""
    at = 0
    while (found := rule.search(text, at)) is not None:
        at = found.end()
        columns = [name.strip().strip('"`') for name in found[1].split(",")]
        places = {number for number, name in enumerate(columns) if _is_secret_name(name)}
        if places:
            spans, at = _values(text, at, places, holders, is_select=(found[2] or "").lower() == "select")
            yield from spans


def _formatted(text: str, holders: set[str]) -> Iterator[Span]:
    """Give what format() puts behind a word for a secret: ``format('… PASSWORD %L', …, 'it')``."""
    at = 0
    while (found := _FORMAT.search(text, at)) is not None:
        at = found.end()
        one = _literal(text, at)
        if one is None:
            continue
        at = one[1]
        if any(_FILLED.match(text, key.end()) for key in _KEY.finditer(text, *one[0])):
            spans, at = _in_call(text, at, holders)
            yield from spans


def _is_secret_name(name: str) -> bool:
    return any(found.end() == len(name) for found in _KEY.finditer(name))


def _values(text: str, at: int, places: set[int], holders: set[str], *, is_select: bool) -> tuple[list[Span], int]:
    spans: list[Span] = []
    depth, number = (1, 0) if is_select else (0, 0)
    while (at := _skipped(_SPACE, text, at)) < len(text):
        one = _literal(text, at) if text[at] in "'$" else None
        word = _WORD_OR_NUMBER.match(text, at) if depth and number in places else None
        if one is not None:
            if depth and number in places:
                spans.append(one[0])
            at = one[1]
        elif word:
            if word[0].startswith("$"):
                holders.add(word[0])
            elif word[0].isdigit() and len(word[0]) > 3:
                spans.append(word.span())
            at = word.end()
        elif text[at] == "(":
            depth += 1
            number = 0 if depth == 1 else number
            at += 1
        elif text[at] == ")":
            depth -= 1
            at += 1
        elif text[at] == ",":
            number += depth == 1
            at += 1
        elif text[at] == ";" or depth < 1:
            break
        else:
            at = _skipped(_PLAIN, text, at + 1)
    return spans, at


def _skipped(rule: re.Pattern[str], text: str, at: int) -> int:
    found = rule.match(text, at)
    return found.end() if found else at


_WORD_OR_NUMBER: Final = re.compile(r"\$?\w+")
_SPACE: Final = re.compile(r"\s*+")
_PLAIN: Final = re.compile(r"[^'$(),;]*+")


def _identified(text: str) -> Iterator[Span]:
    """Give what follows MySQL's IDENTIFIED BY, WITH … AS and VIA … USING."""
    for found in _IDENTIFIED.finditer(text):
        at = found.end()
        if found[1].lower() == "by":
            spans, end = _literals(text, at)
            if not spans and (bare := _BARE.match(text, at)) and bare[0].lower() not in {"random", "password"}:
                spans, end = [bare.span()], bare.end()
            yield from spans
            if (old := _REPLACED.match(text, end)) and (one := _literal(text, old.end())):
                yield one[0]
            continue
        while (plugin := _PLUGIN.match(text, at)) is not None and (one := _literal(text, plugin.end())):
            yield one[0]
            at = one[1]


def _parameters(text: str, found: re.Match[str], holders: set[str]) -> Iterator[Span]:
    """Give the parameters' values that the statement puts where a secret stands."""
    if found[1] == "with":
        yield found.end(), len(text)  # of several, which one it is cannot be told apart for sure
        return
    for holder in holders:
        if (one := re.compile(rf"{re.escape(holder)} = (?=')").search(text, found.start())) and (
            value := _literal(text, one.end())
        ):
            yield value[0]


def _programs(text: str, depth: int, lines: list[Span]) -> Iterator[Span]:
    """Give the secrets in a statement's command lines, read without SQL's quotes, and note where ``lines`` are."""
    if depth + 1 >= _DEEPEST:
        return
    for found in _PROGRAM.finditer(text):
        kind = found.lastgroup or ""
        start, end = found.span(kind)
        line = text[start : min(end, start + _LONGEST_LINE)]
        bounds = list(range(start, start + len(line) + 1))  # between the characters, and at both ends
        if kind in _MORE_FOR_ONE:
            several = [one.span() for one in _MORE_FOR_ONE[kind].finditer(line)]
            line = _MORE_FOR_ONE[kind].sub(lambda one: one[0][1], line)
            for at, to in reversed(several):
                del bounds[at + 1 : to]
        lines.append((start, end))
        for first, last in (*_spans(line, depth + 1), *_of_line(line, depth + 1)):
            yield bounds[first], bounds[last]


def _addresses(text: str) -> Iterator[Span]:
    """Give the passwords in addresses: ``scheme://user:password@host``."""
    for found in _ADDRESS.finditer(text):
        at = found.start()
        for part in found[0].split("://")[1:]:
            at += 3
            end = part.rfind("@")
            if end > 0:
                user = _USERINFO.match(part)
                if user and user.end() <= end and not _PORT.match(part, user.end()):
                    yield at + user.end(), at + end
                elif not user and end >= 20 and "/" not in part[:end]:
                    yield at, at + end  # a token instead of a user
            at += len(part)


# --- commands ---------------------------------------------------------------------------------------------------------

_LONGEST_LINE: Final = 131_072  # no word of a command is longer (MAX_ARG_STRLEN); SQL is
_DEEPEST: Final = 3  # commands within commands: sh -c "ssh host 'mysql …'"
_MYSQL: Final = frozenset({"mysql", "mysqldump", "mysqladmin", "mysqlimport", "mysqlshow", "mysqlcheck", "mysqlsh"}) | {
    *("mariadb", "mariadb-dump", "mariadb-admin", "mariadb-import", "mariadb-show", "mariadb-check", "xtrabackup")
}
_LDAP: Final = frozenset(
    {"ldapsearch", "ldapadd", "ldapmodify", "ldapdelete", "ldappasswd", "ldapwhoami", "ldapcompare"}
)
_SNMP: Final = frozenset({"snmpwalk", "snmpget", "snmpset", "snmpgetnext", "snmpbulkwalk", "snmptrap"})
_MONGO: Final = frozenset({"mongo", "mongosh", "mongodump", "mongorestore", "mongoexport", "mongoimport"})
_SAMBA: Final = frozenset({"smbclient", "rpcclient", "net", "winexe", "smbget"})
_ORACLE: Final = frozenset({"sqlplus", "sqlldr", "expdp", "impdp", "exp", "imp", "rman"})
# By program: flags whose next word is a secret.
_NEXT: Final = {
    "sshpass": {"-p"},
    "redis-cli": {"-a", "--pass"},
    "openssl": {"-k", "-K", "-passin", "-passout", "-pass"},
    "curl": {"--pass", "--proxy-pass", "--oauth2-bearer", "--tlspassword", "--cookie", "-b"},
    "zip": {"-P", "--password"},
    "unzip": {"-P"},
    "sqlcmd": {"-P"},
    "bcp": {"-P"},
    "tsql": {"-P"},
    "ipmitool": {"-P"},
    "useradd": {"-p"},
    "usermod": {"-p"},
    "groupadd": {"-p"},
    "ssh-keygen": {"-N", "-P"},
    "plink": {"-pw"},
    "pscp": {"-pw"},
    "ncftp": {"-p"},
    "cqlsh": {"-p"},
    "influx": {"-password", "-p"},
    "rabbitmqadmin": {"-p"},
    "etcdctl": {"--user"},
    "hydra": {"-p"},
    "evil-winrm": {"-p"},
    "consul": {"-token"},
    "twine": {"-p"},
    "ncftpput": {"-p"},
    "ncftpget": {"-p"},
    **{name: {"-p", "--password"} for name in _MONGO},
    **{name: {"-w", "-s", "-a"} for name in _LDAP},
    **{name: {"-c", "-A", "-X"} for name in _SNMP},
}
# By program and one of its first words.
_NEXT_OF: Final = {
    ("docker", "login"): {"-p"},
    ("podman", "login"): {"-p"},
    ("buildah", "login"): {"-p"},
    ("skopeo", "login"): {"-p"},
    ("helm", "login"): {"-p"},
    ("oc", "login"): {"-p"},
    ("az", "login"): {"-p"},
    ("aws", "put-parameter"): {"--value"},
    ("aws", "create-secret"): {"--secret-string", "--secret-binary"},
    ("aws", "put-secret-value"): {"--secret-string", "--secret-binary"},
    ("az", "secret"): {"--value"},
    ("gcloud", "secrets"): {"--data"},
}
# By program: flags with the secret glued to them.
_GLUED: Final = {
    "sshpass": "-p",
    "7z": "-p",
    "7za": "-p",
    "7zr": "-p",
    "rar": "-p",
    "unrar": "-p",
    "zip": "-P",
    "unzip": "-P",
    "sqlcmd": "-P",
    "xfreerdp": "/p:",
    "xfreerdp3": "/p:",
    **dict.fromkeys(_MYSQL, "-p"),
    **dict.fromkeys(_MONGO, "-p"),
    **dict.fromkeys(_LDAP, "-w"),
}
# By program: flags whose next word is a user and, behind a sign, a secret.
_PAIR: Final = {
    "curl": ({"-u", "--user", "-U", "--proxy-user", "-E", "--cert"}, ":"),
    "http": ({"-a", "--auth"}, ":"),
    "https": ({"-a", "--auth"}, ":"),
    "xh": ({"-a", "--auth"}, ":"),
    "ab": ({"-A", "-P"}, ":"),
    "lftp": ({"-u"}, ","),
    **dict.fromkeys(_SAMBA, ({"-U", "--user"}, "%")),
}
# Words that are followed by a secret, where a program takes settings as words.
_WORDY: Final = frozenset(
    {"nmcli", "rclone", "aws", "npm", "yarn", "git", "gcloud", "redis-cli", "wpa_cli", "heroku"}
) | {*("mysqladmin", "mariadb-admin", "pnpm", "pip", "poetry", "conda", "az", "net", "composer", "gem", "bundle")}
_FED: Final = frozenset({"chpasswd", "cryptsetup", "su", "smbpasswd", "kinit", "passwd"})
_FED_FLAGS: Final = re.compile(
    r"(?a)--stdin|--password-stdin|--with-token|--passphrase-fd(?:=.*)?|-[A-Za-z]*S|-pass(?:in)?"
)
_WRAPPERS: Final = frozenset(
    {"sudo", "doas", "env", "nohup", "time", "exec", "command", "xargs", "timeout", "nice", "ionice"}
) | {
    *("setsid", "stdbuf", "strace", "watch", "then", "do", "else", "if", "while", "until", "!", "{", "busybox", "eval")
}
_PROGRAMS: Final = frozenset({*_NEXT, *_GLUED, *_PAIR, *_WORDY, *_FED, *_ORACLE, *(name for name, _ in _NEXT_OF)}) | {
    *("vault", "bao", "kubectl", "htpasswd", "echo", "printf", "psql", "pg_dump", "sh", "bash", "ssh")
}
_SHELL_WORD: Final = re.compile(
    r"\n|[;|&()]+|<<<|(?:[^\s'\"\\;|&()<>]++|'[^']*+'?|\"(?:[^\"\\]++|\\.)*+\"?|\\.|<(?!<<)|>|\\\Z)+", re.DOTALL
)
_BREAK: Final = re.compile(r"[\n;|&()]+")
_ENVIRONMENT: Final = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
_OPTION: Final = re.compile(
    r"(?ai)--?(?!no-|with-|ask-|prompt-|show-|generate-|random-|get-|skip-|use-|keep-|list-)[a-z][\w.-]*\Z"
)
_PROGRAM_HINTS: Final = tuple(
    sorted(
        {name for name in (*_NEXT, *_GLUED, *_PAIR, *_FED) if len(name) > 2 and name not in {"http", "net"}}
        | {name for name, _ in _NEXT_OF}
        | {
            "vault ",
            "kubectl",
            "chpasswd",
            "htpasswd",
            "wpa_passphrase",
            "mc ",
            "sqlplus",
            "impdp",
            "expdp",
            "rman",
            "http ",
        }
        | {
            "sudo ",
            "echo ",
            "net ",
            "keytool",
            "bao ",
            "sqlldr",
            "redis-cli",
            "nmcli",
            "--with-token",
            "rabbitmqctl",
            "7z",
        }
    )
)


def _of_line(text: str, depth: int) -> Iterator[Span]:
    """Give the secrets in a command line, by their places among its words."""
    found = list(_SHELL_WORD.finditer(text))
    raw = [one[0] for one in found]
    for one, spans in zip(found, _of_words(raw), strict=True):
        word, start = one[0], one.start()
        yield from ((start + first, start + last) for first, last in spans)
        inner = _unquoted(word)
        if inner.count(" ") and len(inner) < len(word) and depth + 1 < _DEEPEST:
            at = start + word.index(inner)
            yield from ((at + first, at + last) for first, last in _spans(inner, depth + 1))


def _unquoted(word: str) -> str:
    if len(word) > 1 and word[0] in "'\"":
        return word[1:-1] if word[-1] == word[0] else word[1:]
    return word


def _whole(word: str, start: int = 0) -> Span:
    """Return where a word's own text stands, within its quotes."""
    end = len(word)
    if start < end and word[start] in "'\"":
        quote = word[start]
        start += 1
        if end > start and word[end - 1] == quote:
            end -= 1
    elif start and word[0] in "'\"" and word[-1] == word[0] and end > start:
        end -= 1
    return start, end


def _of_words(words: Sequence[str]) -> list[list[Span]]:
    """Return, for each word of a command line, where secrets stand in it."""
    spans: list[list[Span]] = [[] for _ in words]
    first = 0
    for at in range(len(words) + 1):
        if at == len(words) or _BREAK.fullmatch(words[at]):
            if first < at:
                _of_command(words, first, at, spans)
            first = at + 1
    return spans


def _of_command(words: Sequence[str], first: int, last: int, spans: list[list[Span]]) -> None:
    """Note the secrets of one command, ``words[first:last]``."""

    def take(at: int, start: int = 0) -> None:
        word = words[at]
        if at < last and not re.fullmatch(r"['\"]?\$[\w{(].*", word, re.DOTALL):
            spans[at].append(_whole(word, start))

    def take_behind(at: int, sign: str) -> None:
        if at < last and sign in words[at]:
            take(at, words[at].index(sign) + len(sign))

    at = first
    while at < last and (
        _ENVIRONMENT.fullmatch(words[at])
        or _name(words[at]) in _WRAPPERS
        or (at > first and (words[at].startswith("-") or re.fullmatch(r"\d+[smh]?", words[at])))
    ):
        at += 1
    if at >= last:
        return
    program = _name(words[at])
    if at > first and at + 1 < last and program not in _PROGRAMS and _name(words[at + 1]) in _PROGRAMS:
        at += 1  # sudo -u postgres psql
        program = _name(words[at])
    is_fed = _is_fed(program, words[at:last])
    early = set(words[at + 1 : at + 4])
    flags = _NEXT.get(program, set()).union(
        *(more for (name, word), more in _NEXT_OF.items() if name == program and word in early)
    )
    glued = _GLUED.get(program)
    pair, sign = _PAIR.get(program, (set(), ":"))
    for here in range(at + 1, last):
        word, has_next = words[here], here + 1 < last
        before = words[here - 1]
        if word in flags and has_next:
            take(here + 1)
        elif glued and (lead := _glued(word, glued)):
            take(here, lead)
        elif word in pair:
            take_behind(here + 1, sign)
        elif program == "curl" and re.fullmatch(r"-[a-zA-Z]*u", word) and has_next:
            take_behind(here + 1, ":")
        elif program == "curl" and word.startswith(("-u", "--user=", "--proxy-user=")) and ":" in word:
            take_behind(here, ":")
        elif program in _SAMBA and "%" in word and (word.startswith("-U") or before == "-U"):
            take_behind(here, "%")
        elif (
            has_next and _OPTION.fullmatch(word) and _is_secret_name(word) and not words[here + 1].startswith("-")
        ) or (
            has_next and program in _WORDY and _is_secret_name(word) and not word.startswith("-") and "=" not in word
        ):
            take(here + 1)
        elif program == "redis-cli" and before.upper() == "AUTH":
            take(here)
        elif word.startswith(("--from-literal=", "-from-literal=")) or before == "--from-literal":
            take_behind(here, "=") if word.count("=") == 1 else take(here, word.rindex("=") + 1 if "=" in word else 0)
        elif word == "<<<" and has_next and is_fed:
            take_behind(here + 1, ":") if program == "chpasswd" else take(here + 1)
    plain = [here for here in range(at + 1, last) if not words[here].startswith("-")]
    if program in {"vault", "bao"} and plain:
        _of_vault(words, plain, take, take_behind)
    elif program == "htpasswd" and any(re.fullmatch(r"-[a-zA-Z]*b[a-zA-Z]*", word) for word in words[at:last]):
        take(plain[-1]) if plain else None
    elif program == "wpa_passphrase" and len(plain) > 1:
        take(plain[1])
    elif (program == "net" and len(plain) > 2 and words[plain[0]] == "user") or (
        program == "rabbitmqctl" and len(plain) > 2 and words[plain[0]] in {"add_user", "change_password"}
    ):
        take(plain[2])
    elif program == "mc" and len(plain) > 5 and {"alias", "config"} & early:
        take(plain[-1])
        take(plain[-2])
    elif program in _ORACLE:
        for here in plain:
            if login := re.fullmatch(r"(['\"]?\w+/)([^@\s/]+)(@.*)?", words[here], re.DOTALL):
                spans[here].append((login.end(1), _whole(words[here])[1] if not login[3] else login.end(2)))
    elif program in {"echo", "printf"} and last + 1 < len(words) and words[last].strip("\n") == "|":
        fed = next((end for end in range(last + 1, len(words)) if _BREAK.fullmatch(words[end])), len(words))
        behind = words[last + 1 : fed]
        if behind and _is_fed(next((_name(word) for word in behind if _name(word) in _FED), ""), behind):
            for here in plain:
                is_pair = any(_name(word) == "chpasswd" for word in behind) and ":" in words[here]
                take_behind(here, ":") if is_pair else take(here)


def _glued(word: str, flag: str) -> int:
    """Return where the secret begins that is glued to a flag; 0 if none is."""
    lead = 1 if word[:1] in {"'", '"'} else 0
    return lead + len(flag) if word.startswith(flag, lead) and len(word) > 2 * lead + len(flag) else 0


def _name(word: str) -> str:
    return word.rsplit("/", 1)[-1].strip("'\"")


def _is_fed(program: str, words: Sequence[str]) -> bool:
    """Whether a command reads a secret from its standard input."""
    return program in _FED or any(_FED_FLAGS.fullmatch(word) for word in words)


def _of_vault(
    words: Sequence[str], plain: Sequence[int], take: Callable[[int], None], take_behind: Callable[[int, str], None]
) -> None:
    verbs = [words[here] for here in plain[:2]]
    if verbs[0] == "login" and len(plain) > 1 and "=" not in words[plain[-1]]:
        take(plain[-1])
    elif verbs[0] == "unwrap" or verbs[-1] in {"unseal", "renew", "revoke"}:
        for here in plain[2 if verbs[0] != "unwrap" else 1 :]:
            if "/" not in words[here]:
                take(here)
    elif verbs[0] == "kv" and verbs[-1] in {"put", "patch"}:
        for here in plain[3:]:
            take_behind(here, "=")
