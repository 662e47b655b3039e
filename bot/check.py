"""Is everything there that a night needs? Each question is asked, and every answer is given at once.

Rules
-----
* Nothing is changed: no message, no credential. (A token of ten seconds, which could read a level's path and is revoked
  at once, shows that the level can be opened.) With ``levels`` a credential of each is tried (``workflows/trial.py``).
* The bot must not be able to do more than its work, either: that it is refused is asked as well.
* A question that cannot be asked because of an earlier answer is left out, not answered "fine".
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError

from bot.alert_channel import AlertTrouble, open_channel
from bot.alerts import standings
from bot.app import SCOPES, slack_client, vault_client
from bot.directory import SlackDirectory
from bot.policy_watch import standing
from storage import audit, heads
from storage.audit import SYSTEM, Damaged
from storage.checkpoint import verify
from storage.database import Database, DatabaseDown
from storage.followers import FOLLOWERS, CopyTrouble, Notary, NotReadable, build_copies, lags
from storage.followers.runner import last_answered, newest_size
from storage.heads import Rewritten
from storage.signers import SignerDown
from workflows import asking, step_up
from workflows import policy as rules
from workflows.control_group import trouble
from workflows.engines import ENGINES
from workflows.engines.seam import Inspected, Judged
from workflows.engines.token import TOKEN_STORE
from workflows.errors import BreakGlassError
from workflows.policy import say_duration
from workflows.signing import open_keyring
from workflows.trial import announce, new_name, try_level
from workflows.vault_limits import breaches, forbidden_paths, probes
from workflows.vault_plan import levels_of, log_key_of, totp_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bot.settings import Settings
    from storage.audit import Actor
    from storage.followers import Copy
    from workflows.policy import Account, Policy
    from workflows.vault import Vault

_TRY: Final = timedelta(seconds=10)
_SIGNED_WITHIN: Final = timedelta(seconds=30)  # the bot signs at once; what is older waits for something


@dataclass(frozen=True, slots=True)
class Finding:
    """One answer."""

    is_fine: bool
    sentence: str


def check(settings: Settings, *, levels: bool = False, who: Actor = SYSTEM) -> list[Finding]:
    """Ask everything. Raises nothing of its own: what fails is a finding.

    ``levels``: also make a credential of each level, try it and take it back, in the name of ``who``.
    """
    found = list(_database(settings))
    has_database = found[0].is_fine
    policy: Policy | None = None
    try:
        policy = rules.load(settings.policy_file)
        found.append(Finding(True, f"Policy: {settings.policy_file}, {len(policy.accounts)} accounts."))
        if has_database:
            found += _in_force(settings, policy)
    except BreakGlassError as error:
        found += [Finding(False, f"Policy: {line}") for line in error.sentence.splitlines()]
    if policy is not None and has_database:
        found += _heads(settings, policy, now=datetime.now(UTC))
        found += _copies(settings, policy)
    if policy is not None:
        found += _alerts(settings, policy, has_database=has_database)
    found += _slack(settings, policy)
    found += _vault(settings, policy, Database(settings.database_url) if has_database else None, who, levels=levels)
    return found


def _database(settings: Settings) -> Iterator[Finding]:
    try:
        database = Database(settings.database_url)
        database.setup()
        with database.read() as session:
            head, bad = audit.head(session), audit.check(session)
    except (DatabaseDown, ValueError) as error:
        yield Finding(False, f"Database: {error}")
        return
    if bad is None:
        yield Finding(True, f"Database: it answers, and its log of {head.size} entries is whole.")
    else:
        yield Finding(False, f"Database: entry {bad[0]} of the log is wrong: {bad[1]}")


def _in_force(settings: Settings, policy: Policy) -> Iterator[Finding]:
    """Whether the file, which all else here is about, is what the log says is in force."""
    try:
        current = standing(Database(settings.database_url))
    except (DatabaseDown, BreakGlassError, Damaged) as error:
        yield Finding(False, f"Policy: what is in force cannot be read: {error}")
        return
    if current is not None and current.hash != policy.hash:
        yield Finding(
            True,  # nothing is broken: the bot goes on with what is in force
            f"Policy: the file is not what is in force, {current.hash[:12]}…; the change waits for confirmation in "
            "Slack. “breakglass policy diff” says what it is.",
        )


def _heads(settings: Settings, policy: Policy, *, now: datetime) -> Iterator[Finding]:
    """Whether somebody signs the log, and since when nobody did."""
    if policy.log is None:
        yield Finding(True, "Log: the policy has no section “log”, so its heads are not signed.")
        return
    try:
        with Database(settings.database_url).read() as session:
            standing = heads.standing(session, now=now)
            vault = vault_client(settings) if policy.log.signer.kind == "vault" else None
            signers = open_keyring(policy.log, vault).signers()
            key = heads.pick(session, signers, policy.log.origin).key
            newest = standing.newest
            if newest is not None:
                verify(newest.note, [signer.key for signer in signers])
    except (DatabaseDown, SignerDown, Rewritten, ValueError) as error:
        # A head that no key of the log signed is among them: BadSignature and NotSigned are ValueErrors.
        yield Finding(False, f"Log: {str(error).removesuffix('.')}.")
        return
    yield Finding(True, f"Log: its heads are signed with {key}.")
    if newest is None:
        yield Finding(not standing.unsigned, f"Log: no head is signed yet, and there are {standing.unsigned} entries.")
        return
    age = now - newest.at
    sentence = f"Log: the newest signed head is over {newest.size} entries and {say_duration(age)} old"
    if standing.unsigned and standing.behind > _SIGNED_WITHIN:
        behind = say_duration(standing.behind)
        yield Finding(False, f"{sentence}; {standing.unsigned} entries are not signed, the oldest for {behind}.")
    elif age > 2 * policy.log.heartbeat:
        beat = say_duration(policy.log.heartbeat)
        yield Finding(False, f"{sentence}, and a heartbeat is due every {beat}: no bot runs, or none can sign.")
    else:
        yield Finding(True, f"{sentence}.")


def _copies(settings: Settings, policy: Policy) -> Iterator[Finding]:
    """How far each copy of the log is, and whether its place answers now."""
    if policy.log is None:
        return
    names = policy.log.copies
    notaries = {name for name, copy in names.items() if FOLLOWERS[copy.kind].is_notary}
    now = datetime.now(UTC)
    try:
        copies = build_copies(policy.log, settings.environment)
        database = Database(settings.database_url)
        standing = lags(database, names, notaries=notaries, now=now)
    except (DatabaseDown, CopyTrouble) as error:
        yield from (Finding(False, f"Copies: {line}") for line in str(error).splitlines())
        return
    for one in standing:
        required = " (required)" if names[one.name].required else ""
        lacks = "1 entry" if one.entries == 1 else f"{one.entries} entries"
        behind = f"{lacks} behind, the oldest for {say_duration(timedelta(seconds=one.seconds))}"
        sentence = f"Copy {one.name}{required}: {behind if one.entries else 'it has everything'}"
        said, trouble = ask_copy(database, one.name, copies[one.name], now)
        if trouble is not None:
            yield Finding(False, f"{sentence}. {trouble}")
        elif one.failures:
            tries = f"{one.failures} tries failed" if one.failures > 1 else "the last try failed"
            yield Finding(False, f"{sentence}; {tries}: see the bot's log file.")
        else:
            is_late = one.is_alarmed or timedelta(seconds=one.seconds) >= policy.log.alarm_after
            yield Finding(not is_late, f"{sentence}{'; does a bot run?' if is_late else ''}.{said}")


def _alerts(settings: Settings, policy: Policy, *, has_database: bool) -> Iterator[Finding]:
    """Whether each alert beyond Slack could be sent, and whether the last ones got through. Nothing is sent."""
    standing = {}
    if has_database:
        with contextlib.suppress(DatabaseDown):  # said already
            standing = {one.name: one for one in standings(Database(settings.database_url), policy.alerts)}
    for name, rules_of in policy.alerts.items():
        try:
            channel = open_channel(rules_of, settings.environment)
        except AlertTrouble as trouble:
            yield Finding(False, f"Alert {name}: {trouble}")
            continue
        only = f" of {rules_of.account}" if rules_of.account else ""
        sentence = (
            f"Alert {name} ({rules_of.to}, from {rules_of.least} on{only}): its address is one of {channel.scheme}"
        )
        one = standing.get(name)
        if one is not None and one.failures:
            tries = f"the last {one.failures} tries failed" if one.failures > 1 else "the last try failed"
            since = f" since {one.since:%Y-%m-%d %H:%M} UTC" if one.since else ""
            yield Finding(False, f"{sentence}; {tries}{since}: “breakglass alert test {name}” says why.")
        else:
            yield Finding(True, f"{sentence}; “breakglass alert test {name}” sends something.")


def ask_copy(database: Database, name: str, copy: Copy | Notary, now: datetime) -> tuple[str, str | None]:
    """Ask the place now; returns what it said beyond that it is well (or nothing), and what is wrong with it."""
    try:
        if isinstance(copy, Notary):
            head, is_known = last_answered(database, name)
            return f" {copy.ask(head, is_known=is_known, newest=lambda: newest_size(database), now=now)}", None
        copy.position()
    except NotReadable:
        return " A place of its kind cannot be asked what it has.", None
    except (CopyTrouble, DatabaseDown) as trouble:
        return "", str(trouble)
    return "", None


def _slack(settings: Settings, policy: Policy | None) -> Iterator[Finding]:
    client = slack_client(settings)
    try:
        me: Any = client.auth_test()
    except SlackApiError as error:
        yield Finding(False, f"Slack does not accept SLACK_BOT_TOKEN: {error.response.get('error')}.")
        return
    except OSError as error:
        yield Finding(False, f"Slack cannot be reached at {settings.slack_api_url}: {error}.")
        return
    yield Finding(True, f"Slack: the bot is {me['user']} in {me['team']}.")
    has = {scope.strip() for scope in str(me.headers.get("x-oauth-scopes", "")).split(",") if scope.strip()}
    if missing := sorted(set(SCOPES) - has):
        yield Finding(
            False, f"Slack: the bot token lacks {', '.join(missing)}: install the app again from manifest.yml."
        )
    else:
        yield Finding(True, "Slack: the bot token has every scope of manifest.yml.")
    try:
        WebClient(token=settings.slack_app_token, base_url=settings.slack_api_url).apps_connections_open(
            app_token=settings.slack_app_token
        )
        yield Finding(True, "Slack: the app token opens a socket.")
    except (SlackApiError, OSError) as error:
        reason = error.response.get("error") if isinstance(error, SlackApiError) else error
        yield Finding(False, f"Slack does not accept SLACK_APP_TOKEN for Socket Mode: {reason}.")
    if policy is not None:
        yield from ask_channel(client, policy.incident_channel)
        yield from _people(SlackDirectory(client, str(me["team_id"])), policy)


def ask_channel(client: WebClient, channel: str) -> Iterator[Finding]:
    """Whether the bot can post there."""
    try:
        info: Any = client.conversations_info(channel=channel)["channel"]
    except (SlackApiError, OSError) as error:
        reason = error.response.get("error") if isinstance(error, SlackApiError) else error
        yield Finding(False, f"Incident channel {channel} cannot be seen ({reason}): create it, and invite the bot.")
        return
    if info.get("is_member"):
        yield Finding(True, f"Incident channel #{info['name']}: the bot is a member.")
    else:
        yield Finding(
            False, f"Incident channel #{info['name']}: the bot is not a member; type /invite @breakglass there."
        )


def _people(directory: SlackDirectory, policy: Policy) -> Iterator[Finding]:
    problems = []
    try:
        names = set(policy.everyone())
        for name in sorted(names):
            if name.startswith(("U", "W")):
                person = directory.person(name)
                if person is None:
                    problems.append(f"{name} does not exist")
                elif why := person.inability():
                    problems.append(f"{name} ({person.name}) {why}")
            elif not directory.members(name):
                problems.append(f"group {name} does not exist or is empty")
        for account in policy.accounts.values():
            roster = rules.gather(directory, policy, account.name)
            problems += [
                f"{account.name}/{level.name} {lack}"
                for level in account.levels.values()
                if (lack := asking.lack(account, level, roster)) is not None
            ]
    except BreakGlassError as error:
        problems.append(error.sentence)
    yield from (Finding(False, f"People: {problem}.") for problem in problems)
    if not problems:
        yield Finding(True, f"People: all {len(names)} people and groups of the policy exist and can act.")


def _vault(
    settings: Settings, policy: Policy | None, database: Database | None, who: Actor, *, levels: bool
) -> Iterator[Finding]:
    try:
        vault = vault_client(settings)
    except BreakGlassError as error:
        yield Finding(False, f"Vault: {error.sentence}")
        return
    try:
        health = vault.health()
        if not health.is_ready:
            yield Finding(False, f"Vault at {settings.vault_address} is {'sealed' if health.sealed else 'not set up'}.")
            return
        vault.log_in()
        yield Finding(True, f"Vault {health.version}: it answers, and the bot can log in.")
        if left := vault.irrevocable():
            yield Finding(False, f"Vault has given up on {len(left)} leases; revoke them by hand: {min(left)} …")
        if policy is not None:
            yield from _levels(vault, policy, database, who, is_tried=levels)
            yield from _limits(vault, policy)
            yield from _factors(settings, vault, policy)
    except BreakGlassError as error:
        yield Finding(False, f"Vault: {error.sentence}")
    with contextlib.suppress(BreakGlassError):  # what cannot be ended now ends within the hour
        vault.log_out()


def _levels(
    vault: Vault, policy: Policy, database: Database | None, who: Actor, *, is_tried: bool
) -> Iterator[Finding]:
    trials = database if is_tried else None
    for account in policy.accounts.values():
        for level in account.levels.values():
            name = f"{account.name}/{level.name}"
            tell = None if database is None else partial(announce, database, account, level, life=_TRY, who=who)
            found = [ask_level(vault, name, level, tell), *_target(vault, name, level)]
            yield from found
            if trials is not None and level.control is not None:
                yield Finding(
                    True, f"{name}: not tried, since it takes its custodians' own keys: rehearse it as a drill."
                )
            elif trials is not None and all(finding.is_fine for finding in found):
                yield _trial(vault, trials, account, level, who)


def _target(vault: Vault, name: str, level: rules.Level) -> Iterator[Finding]:
    """Whether a level's credential could do more at its target than it should."""
    engine = ENGINES[level.settings.engine]
    if not isinstance(engine, Inspected):
        return
    try:
        yield from (Finding(False, f"{name}: {one}") for one in engine.excess(vault, level.settings.options))
    except BreakGlassError as error:
        yield Finding(False, f"{name}: {error.sentence}")


def _trial(vault: Vault, database: Database, account: Account, level: rules.Level, who: Actor) -> Finding:
    name = f"{account.name}/{level.name}"
    try:
        seen = try_level(vault, database, account, level, who)
    except BreakGlassError as error:
        return Finding(False, f"{name}: tried, and it failed: {error.sentence}")
    except DatabaseDown as error:
        return Finding(False, f"{name}: {error}")
    return Finding(True, f"{name}: tried: {'; '.join(seen)}.")


def _limits(vault: Vault, policy: Policy) -> Iterator[Finding]:
    """Whether the bot is refused where it has no business."""
    levels, log_key, totp = levels_of(policy), log_key_of(policy), totp_of(policy)
    found = list(breaches(vault, levels, log_key, totp))
    yield from (Finding(False, f"Vault: {one}") for one in found)
    if not found:
        places = len(forbidden_paths(levels, log_key, totp)) + len(probes(levels))
        yield Finding(True, f"Vault: the bot is refused in {places} places where it has no business.")


def _factors(settings: Settings, vault: Vault, policy: Policy) -> Iterator[Finding]:
    """Which custodians could give the code that a level takes."""
    if totp_of(policy) is None:
        return
    client = slack_client(settings)
    try:
        me: Any = client.auth_test()
    except (SlackApiError, OSError):
        return  # it was said above
    roster = rules.gather(SlackDirectory(client, str(me["team_id"])), policy, None)
    found = step_up.enrolled(vault, policy, roster)
    for user_id in (who for who, is_enrolled in found.items() if not is_enrolled):
        name = roster.people[user_id].name
        yield Finding(False, f"{name} ({user_id}) has no authenticator enrolled: breakglass enrol {user_id}.")
    if all(found.values()):
        yield Finding(True, f"People: all {len(found)} custodians of whom codes are taken have an authenticator.")


def ask_level(vault: Vault, name: str, level: rules.Level, tell: Callable[[str], None] | None = None) -> Finding:
    """Whether Vault would give a level's credential to a grant's token, and nothing more.

    ``tell``: what puts the name of the check's own token on record.
    """
    settings = level.settings
    engine = ENGINES[settings.engine]
    allowed = engine.child_rules(settings.options)
    trial = new_name()
    try:
        if tell is not None and (level.control is not None or engine.path(settings.options) == TOKEN_STORE):
            # Here a token is a credential already, or the level's path is asked: who reads Vault's log is told before.
            tell(trial)
        child = vault.open_child(settings.token_role, _TRY, display_name="check", metadata={"check": trial})
        try:
            may = [vault.capabilities(rule.path, accessor=child.accessor) for rule in allowed]
            if isinstance(engine, Judged):
                engine.judge(vault, child, settings.options)
            held = "" if level.control is None else trouble(vault, child, engine.path(settings.options))
        finally:
            vault.revoke_accessor(child.accessor)
        own = [vault.capabilities(rule.path) for rule in allowed]
    except (BreakGlassError, DatabaseDown) as error:
        return Finding(False, f"{name}: {error}")
    for rule, childs, bots in zip(allowed, may, own, strict=True):
        path, needed = rule.path, {*rule.capabilities}
        if not needed <= childs:
            return Finding(False, f"{name}: a token of role {settings.token_role} may not use {path}; mend its policy.")
        if more := sorted(childs - needed):
            return Finding(
                False, f"{name}: a token of role {settings.token_role} may also {' and '.join(more)} {path}."
            )
        if bots - {"deny"}:
            return Finding(False, f"{name}: the bot's own token may use {path}; it must not: take that right away.")
    if not allowed:
        return Finding(True, f"{name}: a grant's token has the policies that the level names.")
    if held:
        return Finding(False, f"{name}: its custodians do not hold it with keys of their own: {held}")
    paths = " and ".join(rule.path for rule in allowed)
    keys = "" if level.control is None else " only when its custodians authorise it with keys of their own"
    return Finding(True, f"{name}: a grant's token may use {paths}{keys}, and the bot itself may not.")
