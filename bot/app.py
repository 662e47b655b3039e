"""How do the parts become a running bot? All wiring is here.

Rules
-----
* :func:`build` takes the real parts by default and others by keyword; nothing is wired anywhere else.
* Slack's patience is three seconds, so there are threads enough that an acknowledgement never waits for somebody
  else's work, and no Slack call that may sleep (rate limits) stands before an acknowledgement.
* Who waits for an acknowledgement goes before the follower that writes Slack: a burst of clicks would otherwise wait
  behind the posts that its first clicks set off.
* Starting again is always safe: everything that was decided is in the database.
"""

from __future__ import annotations

import io
import logging
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from apscheduler.schedulers.background import BackgroundScheduler
from slack_bolt import App
from slack_bolt.adapter.socket_mode import SocketModeHandler
from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError
from slack_sdk.http_retry.builtin_handlers import ConnectionErrorRetryHandler, RateLimitErrorRetryHandler

from bot import listeners, policy_watch
from bot.alert_channel import AlertTrouble, open_channels
from bot.alerts import AlertRunner
from bot.daily import DailyLook
from bot.directory import SlackDirectory
from bot.drill_alerts import Arrivals
from bot.ingest import Ingest
from bot.metrics import Metrics
from bot.metrics import read as read_metrics
from bot.policy_clicks import control_for
from bot.presence import Presence
from bot.ready_command import gather
from bot.thread import ThreadFollower
from bot.weekly import WeeklyDigest
from storage.audit import SYSTEM, Damaged
from storage.database import Database, DatabaseDown
from storage.export import export
from storage.followers import CopyRunner, CopyTrouble, RequiredCopies, build_copies
from storage.heads import HeadKeeper
from workflows import sweep
from workflows.desk import Desk
from workflows.drill import Drills
from workflows.drill_schedule import Schedule
from workflows.errors import BreakGlassError, Unavailable
from workflows.readiness import judge
from workflows.reconcile import Reconciler
from workflows.recorder import Recorder
from workflows.signing import open_keyring
from workflows.vault import Vault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slack_sdk.socket_mode.builtin import SocketModeClient
    from slack_sdk.socket_mode.request import SocketModeRequest

    from bot.settings import Settings
    from storage.audit import Actor
    from workflows.policy import LogRules, Policy

log = logging.getLogger(__name__)

_LISTENERS: Final = 64  # threads: a burst of clicks is acknowledged side by side
_SOCKET_WORKERS: Final = 32
_RECEIVE_BYTES: Final = 64 * 1024  # at once: an envelope has some thousands, and each read costs a turn of all threads
_SLACK_SECONDS: Final = 10  # for one call
_COURTESY_SECONDS: Final = 1.0
_LAST_SECONDS: Final = 3.0  # for what the copies outside still lack when the bot stops

# What the code uses and nothing more; manifest.yml asks for exactly these, and a test holds both to the calls made.
SCOPES: Final = (
    "channels:history",
    "channels:read",
    "chat:write",
    "commands",
    "files:write",
    "groups:history",
    "groups:read",
    "im:history",
    "im:write",
    "usergroups:read",
    "users:read",
)


class Courtesy:
    """Lets people go first. Safe to share by threads.

    In a burst most of the interpreter's and the database's time would go to the posts that the first clicks set off,
    and the last ones would see Slack's error.
    """

    def __init__(self) -> None:
        self._waiting = 0
        self._changed = threading.Condition()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Count somebody who waits: for an acknowledgement, or before a window that is being filled."""
        with self._changed:
            self._waiting += 1
        try:
            yield
        finally:
            with self._changed:
                self._waiting -= 1
                if not self._waiting:
                    self._changed.notify_all()

    def wait(self) -> None:
        """Wait until nobody waits, but not longer than a second: under lasting load posts are slow, not stopped."""
        if self._waiting:
            with self._changed:
                self._changed.wait_for(lambda: not self._waiting, _COURTESY_SECONDS)


class Listening(SocketModeHandler):
    """Socket Mode, which says who is being served."""

    def __init__(self, app: App, settings: Settings, courtesy: Courtesy) -> None:
        client = WebClient(token=settings.slack_app_token, base_url=settings.slack_api_url, timeout=_SLACK_SECONDS)
        super().__init__(
            app,
            settings.slack_app_token,
            web_client=client,
            concurrency=_SOCKET_WORKERS,
            receive_buffer_size=_RECEIVE_BYTES,
        )
        self._courtesy = courtesy

    def handle(self, client: SocketModeClient, req: SocketModeRequest) -> None:  # type: ignore[override]
        """Answer one envelope. Returns when it is acknowledged; what follows then is nobody's wait for Slack."""
        with self._courtesy.serving():
            super().handle(client, req)


class Bot:
    """The running bot: Socket Mode, who writes Slack, who signs and copies the log, the metrics, and the clock."""

    def __init__(
        self,
        settings: Settings,
        desk: Desk,
        app: App,
        follower: ThreadFollower,
        *,
        heads: HeadKeeper | None,
        copies: CopyRunner | None,
        alerts: AlertRunner | None,
        metrics: Metrics | None,
        ingest: Ingest | None,
        reconciler: Reconciler,
        daily: DailyLook,
        weekly: WeeklyDigest,
        drills: Drills,
        policy: policy_watch.PolicyWatch,
        courtesy: Courtesy,
        now: Callable[[], datetime],
    ) -> None:
        self.desk = desk
        self.app = app
        self.follower = follower
        self.heads = heads
        self.copies = copies
        self.alerts = alerts
        self.metrics = metrics
        self.ingest = ingest
        self.reconciler = reconciler
        self.daily = daily
        self.weekly = weekly
        self.drills = drills
        self._schedule = Schedule(desk, drills)
        self.policy = policy
        self._now = now
        self._handler = Listening(app, settings, courtesy)
        self._clock = BackgroundScheduler(timezone=UTC)
        self._clock.add_job(self._tick, "interval", seconds=1, max_instances=1, coalesce=True, misfire_grace_time=None)
        self._clock.add_job(
            self._watch_policy, "interval", seconds=1, max_instances=1, coalesce=True, misfire_grace_time=None
        )
        self._clock.add_job(
            self._keep_vault, "interval", seconds=15, max_instances=1, coalesce=True, misfire_grace_time=None
        )
        # It only asks: a row says whether the minute is over, whichever bot made the last round.
        self._clock.add_job(
            self._reconcile, "interval", seconds=5, max_instances=1, coalesce=True, misfire_grace_time=None
        )

        # A drill's login may take its time, and the tick must not wait for it.
        self._clock.add_job(self._drill, "interval", seconds=1, max_instances=1, coalesce=True, misfire_grace_time=None)
        # It asks a row, too, and does something once a day, and once a week.
        self._clock.add_job(self._look, "interval", seconds=60, max_instances=1, coalesce=True, misfire_grace_time=None)

    def start(self) -> None:
        """Start the clock and the followers, then listen. Returns when the socket is open."""
        self.follower.start()
        if self.heads is not None:
            self.heads.start()
        if self.copies is not None:
            self.copies.start()
        if self.alerts is not None:
            self.alerts.start()
        if self.metrics is not None:
            self.metrics.start()
        if self.ingest is not None:
            self.ingest.start()
        self._clock.start()
        self._tick()
        self._handler.connect()  # type: ignore[no-untyped-call]
        log.info("listening")

    def run(self, until: threading.Event) -> None:
        """Start, wait for ``until``, stop."""
        self.start()
        try:
            until.wait()
        finally:
            self.stop()

    def stop(self) -> None:
        """Stop listening first, so that nothing is taken on that would not be finished."""
        self._handler.close()  # type: ignore[no-untyped-call]
        if self.ingest is not None:
            self.ingest.stop()
        self.desk.hold_nobody()
        self.reconciler.stop()
        self._clock.shutdown(wait=True)
        self.follower.stop()
        if self.alerts is not None:
            self.alerts.stop()
        if self.heads is not None:
            self.heads.stop()  # it signs what is left
        if self.copies is not None:
            self.copies.drain(_LAST_SECONDS)
            self.copies.stop()
        if self.metrics is not None:
            self.metrics.stop()
        self.desk.database.close()
        log.info("stopped")

    def _tick(self) -> None:
        try:
            sweep.tick(self.desk, now=self._now())
            self.follower.tick()
            if self.heads is not None:
                self.heads.tick()
            if self.copies is not None:
                self.copies.tick()
        except Exception:
            log.exception("the tick failed; the next one is in a second")

    def _watch_policy(self) -> None:
        try:
            self.policy.tick(now=self._now())
        except BreakGlassError as error:
            log.warning("the policy: %s", error.sentence)
        except Exception:
            log.exception("it was not seen whether the policy has changed; the next look is in a second")

    def _keep_vault(self) -> None:
        try:
            self.desk.vault.keep_alive(self._now())
        except BreakGlassError as error:
            log.warning("Vault: %s", error.sentence)

    def _reconcile(self) -> None:
        try:
            self.reconciler.tick(now=self._now())
        except BreakGlassError as error:
            log.warning("not reconciled this time: %s", error.sentence)
        except Exception:
            log.exception("the reconciliation failed; the next one is in a minute")

    def _drill(self) -> None:
        try:
            self.drills.tick(now=self._now())
        except Exception:
            log.exception("the drills did not go on; the next look is in a second")

    def _look(self) -> None:
        try:
            self._schedule.tick(now=self._now())
        except Exception:
            log.exception("it was not seen whether a drill is due; the next look is in a minute")
        try:
            self.daily.tick(now=self._now())
        except Exception:
            log.exception("it was not seen whether every account could be opened; the next look is in minutes")
        try:
            self.weekly.tick(now=self._now())
        except Exception:
            log.exception("the week was not told; it is tried again in minutes")


def utc_now() -> datetime:
    """Return the time: the one place below which it is an argument."""
    return datetime.now(UTC)


def build(
    settings: Settings,
    *,
    database: Database | None = None,
    vault: Vault | None = None,
    now: Callable[[], datetime] = utc_now,
) -> Bot:
    """Wire the bot. Raises :class:`BreakGlassError` with what is wrong, before anything is listened to."""
    # 1. The record, and the rules that it says are in force: of a changed file nothing is, before people agree. On
    #    record before anything is decided under it: an export shows the rules that were in force.
    database = database or Database(settings.database_url)
    database.setup()
    policy = policy_watch.first(database, settings.policy_file, now=now())
    # 2. Slack, and who is in it.
    client = slack_client(settings)
    team = who_am_i(client)
    directory = SlackDirectory(client, team)
    directory.prime()
    # 3. Vault.
    vault = vault or vault_client(settings)
    # 4. The desk, and whoever follows it.
    copies, required = (None, None) if policy.log is None else _copies(policy.log, settings, database, now)
    desk = Desk(
        database,
        policy,
        directory,
        vault,
        team=team,
        patience=settings.patience,
        required=required,
        public_address=settings.vault_public_address,
    )
    courtesy, presence = Courtesy(), Presence(client)
    follower = ThreadFollower(
        database,
        client,
        case=desk.case,
        policy=lambda: desk.policy,
        directory=directory,
        now=now,
        courtesy=courtesy.wait,
        active=presence.of,
    )
    database.woken.append(follower.wake)
    heads = None
    if policy.log is not None:
        heads = HeadKeeper(
            database, policy.log.origin, open_keyring(policy.log, vault), heartbeat=policy.log.heartbeat, now=now
        )
        database.woken.append(heads.wake)
        if copies is not None:
            database.woken.append(copies.wake)
            heads.signed.append(copies.wake)
    alerts = None
    if policy.alerts:
        alerts = _alerts(policy, desk, directory, settings, now)
        database.woken.append(alerts.wake)
    drills = Drills(desk, told=Arrivals(database))
    # 5. What people do.
    app = App(client=client, listener_executor=ThreadPoolExecutor(_LISTENERS, thread_name_prefix="listener"))
    directory.register(app)
    listeners.register(
        app,
        desk,
        now=now,
        export=lambda actor, request_id: _export(desk, client, actor, request_id, now()),
        first=courtesy.serving,
        active=presence.of,
        drills=drills,
    )
    # 6. Lines of targets, and who looks on. Their ports are taken last: nothing that fails after would leave one open.
    ingest = None
    if settings.capture is not None:
        recorder = Recorder(database, lambda: desk.policy)
        ingest = Ingest(settings.capture, sources=lambda: desk.policy.captures, take=recorder.take, now=now)
    metrics = None
    if settings.metrics is not None:
        metrics = Metrics(*settings.metrics, lambda: read_metrics(database, policy.log, policy.alerts, now=now()))
    return Bot(
        settings,
        desk,
        app,
        follower,
        heads=heads,
        copies=copies,
        alerts=alerts,
        metrics=metrics,
        ingest=ingest,
        reconciler=Reconciler(desk),
        daily=DailyLook(
            database,
            lambda at: judge(desk.policy, gather(settings, desk.policy, now=at, who=SYSTEM, database=database)),
        ),
        policy=policy_watch.PolicyWatch(
            control_for(desk), settings.policy_file, policy=lambda: desk.policy, signers=settings.policy_signers
        ),
        weekly=WeeklyDigest(database, lambda: desk.policy),
        drills=drills,
        courtesy=courtesy,
        now=now,
    )


def _copies(
    log_rules: LogRules, settings: Settings, database: Database, now: Callable[[], datetime]
) -> tuple[CopyRunner, RequiredCopies]:
    """Return whoever brings the log to the copies outside, and what asks it before a credential is made."""
    try:
        copies = build_copies(log_rules, settings.environment)
    except CopyTrouble as trouble:
        raise Unavailable(str(trouble)) from None
    runner = CopyRunner(database, copies, now=now, required=log_rules.required, alarm_after=log_rules.alarm_after)
    return runner, RequiredCopies(database, log_rules.required, log_rules.required_within, runner)


def _alerts(
    policy: Policy, desk: Desk, directory: SlackDirectory, settings: Settings, now: Callable[[], datetime]
) -> AlertRunner:
    """Return whoever tells people beyond Slack."""
    try:
        channels = open_channels(policy.alerts, settings.environment)
    except AlertTrouble as trouble:
        raise Unavailable(str(trouble)) from None
    return AlertRunner(
        desk.database, channels, policy=lambda: desk.policy, case=desk.case, person=directory.person, now=now
    )


def slack_client(settings: Settings) -> WebClient:
    """Return a client that waits out a rate limit a few times: for work behind an acknowledgement only."""
    return WebClient(
        token=settings.slack_bot_token,
        base_url=settings.slack_api_url,
        timeout=_SLACK_SECONDS,
        # One for all calls, and for the clients that are made after this one: reading the machine's certificates takes
        # some 30 ms, and slack_sdk would do so at each call.
        ssl=ssl.create_default_context(),
        retry_handlers=[ConnectionErrorRetryHandler(), RateLimitErrorRetryHandler(max_retry_count=2)],
    )


def vault_client(settings: Settings) -> Vault:
    """Return the client of Vault that the settings describe."""
    return Vault(
        settings.vault_address,
        role_id=settings.vault_role_id,
        secret_id=settings.vault_secret_id,
        token=settings.vault_token,
        namespace=settings.vault_namespace,
        ca_file=settings.vault_ca_file,
    )


def who_am_i(client: WebClient) -> str:
    """Return the id of the bot's own workspace. Raises :class:`Unavailable`."""
    try:
        answer = client.auth_test()
    except SlackApiError as error:
        raise Unavailable(f"Slack does not accept SLACK_BOT_TOKEN: {error.response.get('error')}.") from None
    except OSError as error:
        raise Unavailable(f"Slack cannot be reached: {error}.") from None
    return str(answer["team_id"])


def _export(desk: Desk, client: WebClient, actor: Actor, request_id: str, now: datetime) -> None:
    """Send one request's entries to the person who asked, as a file in the direct message."""
    desk.case(request_id)  # a sentence, when there is none of that name
    out = io.BytesIO()
    try:
        with desk.database.read() as session:
            summary = export(session, out, exported_at=now, request_id=request_id, format="jsonl")
    except DatabaseDown as down:
        raise Unavailable(f"The export cannot be made now: {down}") from None
    except Damaged as damage:
        raise Unavailable(f"Entry {damage.seq} of the log is damaged; call security. {damage.sentence}") from None
    # The entry comes first: nothing leaves that is not on record.
    desk.record("log:export", actor, {"selection": request_id, "count": summary.count}, request_id=request_id, now=now)
    try:
        message: Any = client.chat_postMessage(
            channel=actor.person,
            text=f"The log of {request_id}: {summary.count} entries. Check it with “breakglass verify”.",
        )
        client.files_upload_v2(
            channel=message["channel"],
            filename=f"{request_id}.jsonl",
            title=f"Log of {request_id}",
            content=out.getvalue(),
        )
    except (SlackApiError, OSError) as error:
        reason = error.response.get("error") if isinstance(error, SlackApiError) else "no answer"
        raise Unavailable(f"Slack did not take the file ({reason}). Try again.") from None
