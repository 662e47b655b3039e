"""Could each account be opened right now? ``breakglass ready`` asks, and its exit code tells a monitoring system.

Rules
-----
* 0: every account could be opened. 1: one is red. 3: a part did not answer, so nothing can be said.
* It is about now and about people; what the set-up needs is ``check``'s, whose questions are asked here, too.
* Nothing is changed. (As with ``check``, a token of ten seconds shows that a level can be opened.)
* What cannot be asked is not known, and what is not known is not well (``workflows/readiness.py``).
"""

from __future__ import annotations

import contextlib
import json
import os
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bot.policy_watch import standing
from storage.audit import write_time
from storage.database import Database, DatabaseDown
from storage.followers import FOLLOWERS, CopyTrouble, build_copies, lags
from storage.holder import is_held
from storage.models import Feed
from workflows import absence, drill_history, readiness, step_up
from workflows import policy as rules
from workflows.capture_watch import silent_since
from workflows.engines import ENGINES
from workflows.errors import BreakGlassError, Unavailable
from workflows.policy import say_duration
from workflows.readiness import Code, Facts, Finding, Probe, Readiness, Severity
from workflows.reconcile import CLAIM
from workflows.trial import announce

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

    from bot.settings import Settings
    from storage.audit import Actor
    from workflows.policy import Level, Policy, Roster
    from workflows.vault import Vault

READY: Final = 0
RED: Final = 1
UNKNOWN: Final = 3

_EXIT: Final = {None: READY, Severity.RED: RED, Severity.UNKNOWN: UNKNOWN}
_LIFE: Final = timedelta(seconds=10)  # of the token that shows that a level can be opened
_ROUND: Final = timedelta(minutes=3)  # a bot that runs looks after Vault every minute
_NOT_OURS: Final = frozenset(
    {"invalid_auth", "not_authed", "account_inactive", "token_revoked", "token_expired", "no_permission"}
)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], *, who: Callable[[], Actor]) -> None:
    """Add ``ready`` to the command line."""
    ready = commands.add_parser(
        "ready", help="say of each account whether it could be opened right now: 0 yes, 1 no, 3 it is not known"
    )
    ready.add_argument("--file", type=Path, help="judge this policy file instead of the policy that is in force")
    ready.add_argument("--json", action="store_true", help="print it for a program")
    ready.set_defaults(run=partial(run, who=who))


def run(options: argparse.Namespace, *, who: Callable[[], Actor]) -> int:
    """Ask, print, and return the exit code. Raises PolicyInvalid."""
    from bot.settings import SettingsInvalid, from_environment  # noqa: PLC0415 - only this command needs it

    try:
        settings = from_environment(os.environ)
    except SettingsInvalid as invalid:
        raise Unavailable("\n".join(invalid.problems)) from None
    # What is in force, not a changed file that nobody has confirmed: the question is about this moment.
    policy = rules.load(options.file) if options.file else _in_force(settings) or rules.load(settings.policy_file)
    now = datetime.now(UTC)
    found = readiness.judge(policy, gather(settings, policy, now=now, who=who()))
    code = exit_code(found)
    print(_as_json(found, now, code) if options.json else "\n\n".join(_block(one) for one in found))
    return code


def _in_force(settings: Settings) -> Policy | None:
    try:
        return standing(Database(settings.database_url))
    except (DatabaseDown, ValueError):
        return None  # said below, of the database itself


def exit_code(found: Sequence[Readiness]) -> int:
    """Return 1 when an account is red, else 3 when nothing can be said of one, else 0."""
    verdicts = {one.verdict for one in found}
    return next((_EXIT[one] for one in (Severity.RED, Severity.UNKNOWN) if one in verdicts), READY)


def _block(one: Readiness) -> str:
    from bot.blockkit import clean  # noqa: PLC0415

    verdict = {None: "READY", Severity.RED: "RED", Severity.UNKNOWN: "NOT KNOWN"}[one.verdict]
    lines = [f"{verdict:<9}  {one.account.name} ({one.account.title})"]
    for finding in one.findings:
        level = f"level {finding.level}: " if finding.level else ""
        lines.append(f"  {finding.severity:<7}  {level}{finding.sentence}")
    return "\n".join(clean(line, is_line=True) for line in lines)


def _as_json(found: Sequence[Readiness], now: datetime, code: int) -> str:
    accounts = [
        {
            "account": one.account.name,
            "verdict": one.verdict or "ready",
            "findings": [
                {"severity": f.severity, "code": f.code, "level": f.level, "sentence": f.sentence} for f in one.findings
            ],
        }
        for one in found
    ]
    return json.dumps({"at": write_time(now), "exit": code, "accounts": accounts}, indent=2)


# --- asking --------------------------------------------------------------------------------------------------------


def gather(settings: Settings, policy: Policy, *, now: datetime, who: Actor, database: Database | None = None) -> Facts:
    """Ask Slack, the database (of a bot: its own), the copies, Vault and the targets. Raises nothing of its own."""
    general: list[Finding] = []
    roster = _slack(settings, policy, general)
    is_ours = database is None
    try:
        if database is None:
            database = Database(settings.database_url)
            database.setup()
        silent = _database(database, policy, general, now)
        if roster is not None:
            with database.read() as session:
                roster = roster.with_absences(absence.in_force(session, now=now))
        with database.read() as session:
            drilled = [account.name for account in policy.accounts.values() if account.drill is not None]
            drills = {name: drill_history.newest_scored(session, name) for name in drilled}
    except (DatabaseDown, ValueError) as error:
        general.append(Finding(Severity.UNKNOWN, Code.DATABASE, f"{error} Look at BREAKGLASS_DATABASE_URL."))
        return Facts(now, roster, None, None, None, tuple(general))
    copies = _copies(settings, policy, database, general, now)
    _alerts(settings, policy, database, general)
    levels, enrolled = _vault(settings, policy, database, general, who, roster=roster)
    if is_ours:
        database.close()
    return Facts(now, roster, levels, silent, copies, tuple(general), enrolled, drills)


def _slack(settings: Settings, policy: Policy, general: list[Finding]) -> Roster | None:
    # Slack's libraries take half a second to import, and other commands need none.
    from bot.app import slack_client  # noqa: PLC0415
    from bot.calls import TroubleError, call  # noqa: PLC0415
    from bot.check import ask_channel  # noqa: PLC0415
    from bot.directory import SlackDirectory  # noqa: PLC0415

    client = slack_client(settings)
    try:
        team = str(call(client.auth_test)["team_id"])
        is_in = list(ask_channel(client, policy.incident_channel))
        general += [Finding(Severity.RED, Code.CHANNEL, one.sentence) for one in is_in if not one.is_fine]
        directory = SlackDirectory(client, team)
        directory.prime()
        return readiness.look_up(directory, policy)
    except TroubleError as trouble:
        if trouble.reason in _NOT_OURS:
            sentence = f"Slack does not accept SLACK_BOT_TOKEN ({trouble.reason}): install the app again."
            general.append(Finding(Severity.RED, Code.SLACK, sentence))
        else:
            sentence = f"Slack does not answer ({trouble.reason}), so it is not known who is there. Ask again."
            general.append(Finding(Severity.UNKNOWN, Code.SLACK, sentence))
    except Unavailable as error:
        general.append(Finding(Severity.UNKNOWN, Code.SLACK, error.sentence))
    return None


def _database(
    database: Database, policy: Policy, general: list[Finding], now: datetime
) -> Mapping[str, datetime | None]:
    """Return since when each source is silent, and note when no bot runs. Raises DatabaseDown."""
    with database.read() as session:
        row = session.get(Feed, CLAIM)
        silent = {name: silent_since(session, source, now) for name, source in policy.captures.items()}
    is_at_work = row is not None and is_held(row, now)
    since = None if row is None or row.retry_at is None else now - row.retry_at
    if not is_at_work and (since is None or since > _ROUND):
        told = "none ever has" if since is None else f"none has looked at Vault for {say_duration(since)}"
        general.append(Finding(Severity.RED, Code.BOT, f"No bot runs on this database ({told}): breakglass serve."))
    return silent


def _copies(
    settings: Settings, policy: Policy, database: Database, general: list[Finding], now: datetime
) -> Mapping[str, str | None] | None:
    """Return what is wrong with each copy: all by their rows, those that are required by asking their place, too."""
    from bot.check import ask_copy  # noqa: PLC0415

    if policy.log is None:
        return {}
    names = policy.log.copies
    try:
        places = build_copies(policy.log, settings.environment)
        notaries = {name for name, copy in names.items() if FOLLOWERS[copy.kind].is_notary}
        found: dict[str, str | None] = {}
        for one in lags(database, names, notaries=notaries, now=now):
            is_late = one.is_alarmed or timedelta(seconds=one.seconds) >= policy.log.alarm_after
            behind = f"it lacks {one.entries} entries, the oldest for {say_duration(timedelta(seconds=one.seconds))}"
            tries = f"its last {one.failures} tries failed" if one.failures > 1 else "its last try failed"
            trouble = "; ".join([*([behind] if is_late else []), *([tries] if one.failures else [])]) or None
            if trouble is None and names[one.name].required:
                trouble = ask_copy(database, one.name, places[one.name], now)[1]
            found[one.name] = trouble
    except (DatabaseDown, CopyTrouble) as error:
        general.append(Finding(Severity.UNKNOWN, Code.COPY, f"The copies cannot be asked: {error}"))
        return None
    return found


def _alerts(settings: Settings, policy: Policy, database: Database, general: list[Finding]) -> None:
    """Note the alerts beyond Slack that do not get through: nobody is kept out by that, but somebody is not told."""
    from bot.alert_channel import AlertTrouble, open_channels  # noqa: PLC0415 - what sends them takes half a second
    from bot.alerts import standings  # noqa: PLC0415

    if not policy.alerts:
        return
    try:
        open_channels(policy.alerts, settings.environment)
        for one in standings(database, policy.alerts):
            if one.failures:
                tries = f"its last {one.failures} tries failed" if one.failures > 1 else "its last try failed"
                sentence = f"The alert {one.name} does not get through: {tries}. Run breakglass alert test {one.name}."
                general.append(Finding(Severity.WARN, Code.ALERT, sentence))
    except AlertTrouble as trouble:
        general += [Finding(Severity.WARN, Code.ALERT, line) for line in str(trouble).splitlines()]
    except DatabaseDown as down:
        general.append(Finding(Severity.WARN, Code.ALERT, f"It is not known whether alerts get through: {down}"))


def _vault(
    settings: Settings, policy: Policy, database: Database, general: list[Finding], who: Actor, *, roster: Roster | None
) -> tuple[Mapping[tuple[str, str], Probe] | None, Mapping[str, bool] | None]:
    """Return what became of each level, and which custodians can give a code."""
    from bot.app import vault_client  # noqa: PLC0415

    vault: Vault | None = None
    try:
        vault = vault_client(settings)
        health = vault.health()
        if not health.is_ready:
            state = "sealed" if health.sealed else "not set up"
            sentence = f"Vault at {settings.vault_address} is {state}: have it unsealed."
            general.append(Finding(Severity.RED, Code.VAULT, sentence))
            return None, None
        vault.log_in()
        probes = {
            (account.name, level.name): _probe(vault, account, level, database, who)
            for account in policy.accounts.values()
            for level in account.real_levels.values()
        }
        return probes, None if roster is None else step_up.enrolled(vault, policy, roster)
    except BreakGlassError as error:
        # Who is not let in knows that nothing could be opened; who gets no answer knows nothing.
        is_silent = isinstance(error, Unavailable) and error.reason != "no_login"
        severity = Severity.UNKNOWN if is_silent else Severity.RED
        general.append(Finding(severity, Code.VAULT, f"Vault: {error.sentence}"))
    finally:
        if vault is not None:
            with contextlib.suppress(BreakGlassError):  # what cannot be ended now ends within the hour
                vault.log_out()
    return None, None


def _probe(vault: Vault, account: rules.Account, level: Level, database: Database, who: Actor) -> Probe:
    """Ask whether Vault would give a level's credential, and whether its target answers."""
    from bot.check import ask_level  # noqa: PLC0415

    name = f"{account.name}/{level.name}"
    engine, options = ENGINES[level.settings.engine], level.settings.options
    tell = partial(announce, database, account, level, life=_LIFE, who=who)
    answer = ask_level(vault, name, level, tell)
    target = None
    try:
        engine.identities(vault, options)
    except BreakGlassError as error:
        target = error.sentence
    is_blind = "watch_role" in engine.keys and "watch_role" not in options
    return Probe(None if answer.is_fine else answer.sentence.removeprefix(f"{name}: "), target, is_blind)
