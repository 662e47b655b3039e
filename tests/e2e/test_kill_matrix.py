"""Does every grant end, and is no credential unknown, whatever dies and whenever it dies?

The bot (a real SIGKILL of a real process, ``crashing.py``), Vault (on disk, unsealed again), the target, each pair of
them, and a Vault that is sealed: each at each moment of a grant's life, at which the bot stands still until they are
dead. When they are back, people go on with what Slack shows them, and the story must come to its clean end.

Rules
-----
* All the while somebody looks at Vault and at the target with an administrator's rights: each live lease and each login
  must be explained by the bot's records, or it is unknown; how long at the most is in the table.
* The suite takes each victim and each moment once; ``KILL_MATRIX=all`` takes every victim at every moment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import psycopg
import pytest
from counter import PATIENCE, TEAM, Counter, People
from crashing import RECONCILE_SECONDS
from slack_sdk.errors import SlackApiError
from sqlmodel import col, select
from test_crash import LONG, PREFIX, ROOT, STAGES, Point, World

from bot.demo.parts import PartFailed, Postgres, call
from bot.demo.play import CHANNEL
from bot.demo.run import Demo
from bot.sandbox.driver import NotPossible, wait_for
from storage.database import Database
from storage.models import Grant, State
from workflows import policy as rules
from workflows import sweep
from workflows.errors import Unavailable
from workflows.replay import check_database
from workflows.vault import Vault

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EVERY: Final = 3.0  # seconds between two reconciliations: once a minute would be once in several lives
VICTIMS: Final = (
    ("bot",),
    ("Vault",),
    ("target",),
    ("Vault", "bot"),
    ("target", "bot"),
    ("Vault", "target"),
    ("seal",),
)


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment of a grant's life: what it is, and where the bot stands then (None: it waits for people)."""

    name: str
    point: Point | None


MOMENTS: Final = (
    Moment("before its token", Point("reveal", "vault", "token create", "before", 1)),
    Moment("token made", Point("reveal", "vault", "token create", "after", 1)),
    Moment("token on record", Point("reveal", "commit", "credential:token", "after", 1)),
    Moment("credential read", Point("reveal", "vault", "creds read", "after", 1)),
    Moment("active", None),
    Moment("end decided", Point("done", "commit", "credential:release", "after", 1)),
    Moment("half ended", Point("done", "vault", "accessor revoke", "after", 1)),
)


@dataclass
class Known:
    """For how long something was live that the records do not explain."""

    world: World
    worst: float = 0.0
    looks: int = 0
    _since: dict[str, float] = field(default_factory=dict)

    def look(self) -> None:
        """Compare once; who is down shows nothing, and what was unknown before stays so."""
        before = self._open_grants()
        with suppress(Unavailable):
            leases = self.world.leases()
            grants = before + self._open_grants()
            being_opened = any(g.accessor is not None and g.lease_id is None for g in grants)
            recorded = {g.lease_id for g in grants}
            self._note("lease", set() if being_opened else leases - recorded)
        with suppress(psycopg.Error):
            names = self._logins()
            grants = before + self._open_grants()
            begun = {f"{g.request_id.lower()}-" for g in grants if g.accessor is not None and g.identity is None}
            recorded = {g.identity for g in grants}
            self._note("login", {n for n in names if n not in recorded and not any(map(n.startswith, begun))})
        self.looks += 1

    def _note(self, what: str, unknown: set[str]) -> None:
        now = time.monotonic()
        for key in [key for key in self._since if key.startswith(what) and key.partition(" ")[2] not in unknown]:
            del self._since[key]
        for name in unknown:
            self.worst = max(self.worst, now - self._since.setdefault(f"{what} {name}", now))

    def _open_grants(self) -> list[Grant]:
        with self.world.database.read() as session:
            return list(session.exec(select(Grant).where(col(Grant.ended_at).is_(None))))

    def _logins(self) -> set[str]:
        with psycopg.connect(self.world.demo.pg.dsn, connect_timeout=2) as server:
            rows = server.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'bg-%' AND rolcanlogin").fetchall()
        return {name for (name,) in rows}


@contextmanager
def watching(world: World) -> Iterator[Known]:
    """Look every few milliseconds."""
    known, over = Known(world), threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            known.look()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield known
    finally:
        over.set()
        watcher.join()


@dataclass
class Case:
    """One line of the table."""

    moment: Moment
    victims: tuple[str, ...]
    request: str = ""
    state: str = ""  # when they were dead
    after: str = ""  # when all were back and the bot had done by itself what it could
    unknown: float = 0.0
    seconds: float = 0.0
    wrong: str = ""

    def __str__(self) -> str:
        return f"{' + '.join(self.victims)} at “{self.moment.name}”"


def live(world: World, case: Case) -> None:
    """Live one request, with these victims at this moment, to its end."""
    request_id = case.request = world.ask()
    with watching(world) as known:
        stage = case.moment.point.stage if case.moment.point else "done"
        for before in ("approve", "reveal")[: STAGES.index("approve") + (2 if stage == "done" else 1)]:
            world.do(before, request_id)
        # 1. The bot stands still at the moment, and they die.
        if case.moment.point is not None:
            world.bot.points.clear()
            point = case.moment.point
            at = {"kind": point.kind, "name": point.name, "when": point.when, "nth": point.nth}
            world.bot.order(do="arm", kill=None, hold=at)
            world.bot.hear("armed")
            world.click(stage, request_id)
            world.bot.hear("held")
        down(world, case.victims)
        if case.moment.point is not None and "bot" not in case.victims:
            world.bot.order(do="go")
        case.state = world.case(request_id).state.value
        time.sleep(1.0)  # let those who live run into it
        # 2. They come back.
        back(world, case.victims)
        wait_for(lambda: world.case(request_id).state is not State.ENDING, 2 * LONG, what=f"the end of {case}")
        case.after = world.settle(request_id).state.value
        # 3. The story comes to its end, and everything agrees.
        world.go_on(request_id)
    world.examine(request_id)
    with world.database.read() as session:
        found = [str(finding) for finding in check_database(session, now=datetime.now(UTC)).findings]
    assert found == []
    assert known.looks, "nobody looked"
    case.unknown = known.worst
    assert known.worst <= EVERY, f"something was live and unknown for {known.worst:.1f} s"


def down(world: World, victims: tuple[str, ...]) -> None:
    """Kill them."""
    for victim in victims:
        match victim:
            case "bot":
                world.bot.kill()
            case "Vault":
                world.demo.bao.kill()
            case "target":
                world.demo.pg.kill()
            case "seal":
                world.demo.bao.seal()


def back(world: World, victims: tuple[str, ...]) -> None:
    """Bring them back; the bot comes last."""
    if "seal" in victims:
        world.demo.bao.unseal()
    if "Vault" in victims:
        world.demo.bao.start()
    if "target" in victims:

        def started() -> bool:
            try:
                world.demo.pg.start()  # refused while a process of the dead server is still there
            except PartFailed:
                return False
            return True

        wait_for(started, LONG, what="the target")
    if "bot" in victims:
        world.start()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """All parts but the bot; Vault on disk, and a target that keeps what it has said to be done."""
    directory = tmp_path_factory.mktemp("matrix")
    policy = (ROOT / "bot" / "demo" / "breakglass.yml").read_text(encoding="utf-8")
    demo = Demo(
        directory,
        rate_limits=0,
        with_bot=False,
        persistent=True,
        policy=policy.replace("\nlog:\n", "\nlog:\n  required_within: 4s\n"),
        environment={RECONCILE_SECONDS: str(EVERY)},
    )
    demo.pg = Postgres(directory / "postgresql", settings={"fsync": "off"})
    with demo:
        yield demo


def chosen() -> list[Case]:
    """Return every case, or each moment with one victim and each victim at one moment."""
    if os.environ.get("KILL_MATRIX") == "all":
        return [Case(moment, victims) for victims in VICTIMS for moment in MOMENTS]
    return [Case(moment, VICTIMS[number % len(VICTIMS)]) for number, moment in enumerate(MOMENTS)]


def test_whatever_dies_and_whenever_every_grant_ends(parts: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    """Once all are back each story comes to its clean end, and nothing live was unknown for one reconciliation."""
    table: list[Case] = []
    world = World(parts, parts.database_url, parts.directory / "matrix.log")
    try:
        world.start()
        for case in chosen():
            began = time.monotonic()
            table.append(case)
            try:
                live(world, case)
            except (AssertionError, TimeoutError, NotPossible, SlackApiError, psycopg.Error, Unavailable) as error:
                case.wrong = str(error) or repr(error)
            case.seconds = time.monotonic() - began
            if case.wrong:
                break  # the next one would not begin on clean ground
    finally:
        world.close()
    lines = [f"{'request':<9}{'dead in':<10}{'back in':<10}{'unknown':>8}{'s':>6}  victims and moment"]
    lines += [
        f"{c.request:<9}{c.state:<10}{c.after:<10}{c.unknown:>7.2f}s{c.seconds:>6.1f}  {c} {c.wrong}" for c in table
    ]
    lines.append(f"{len(table)} cases in {sum(c.seconds for c in table):.0f} s")
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(lines) + "\n")
    assert [f"{case}: {case.wrong}" for case in table if case.wrong] == []
    assert len(table) == len(chosen())


def test_the_suite_takes_each_victim_and_each_moment() -> None:
    """What is left out of the suite is no victim and no moment, only some of their pairs."""
    some = [(number, victims) for number in range(len(MOMENTS)) for victims in VICTIMS]
    assert len(some) == 49
    taken = [(case.moment, case.victims) for case in chosen()]
    assert len(set(taken)) == len(taken)
    for moment in MOMENTS:
        assert len([1 for one, _ in taken if one == moment]) >= 1
    for victims in VICTIMS:
        assert len([1 for _, one in taken if one == victims]) >= 1


def test_a_credential_made_past_the_bot_does_not_stay(parts: Demo) -> None:
    """Attack: somebody reads a level's path past the bot. It is revoked, and security is called in the channel."""
    token = parts.bao.call("POST", "auth/token/create/breakglass-orders-db-read", {"display_name": "BG-PAST"})["auth"]
    made = call(parts.bao.addr, "GET", "database/creds/orders-ro", token=token["client_token"])
    where = f"host={parts.pg.host} port={parts.pg.port} dbname=orders"
    login = f"{where} user={made['data']['username']} password={made['data']['password']}"
    psycopg.connect(login).close()
    world = World(parts, parts.database_url, parts.directory / "matrix.log")
    try:
        world.database.setup()
        known = Known(world)
        known.look()
        known.look()
        assert known.worst > 0.0, "the look that the table rests on does not see it"
        world.start()
        wait_for(lambda: made["lease_id"] not in world.leases(), 2 * LONG, what="its end")
        assert world.logins() == 0
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(login)

        def told() -> list[str]:
            posts = world.slack.conversations_history(channel=CHANNEL, limit=50)["messages"]
            return [post["text"] for post in posts if made["lease_id"] in post["text"]]

        (text,) = wait_for(told, LONG, what="the alarm")
        assert "ALARM" in text
        assert "The bot has revoked it" in text
        assert "<!subteam^S0SEC>" in text
    finally:
        world.close()


# --- the bot never comes back -----------------------------------------------------------------------------------------

GRANTED: Final = 12.0  # seconds

_OPEN_AND_DIE: Final = """
import json, os, signal, sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from counter import PATIENCE, RITA, TEAM, Counter, People
from storage.database import Database
from workflows import policy as rules
from workflows.vault import Vault

told = json.loads(sys.stdin.readline())
people = People()
database = Database(told["database"])
database.setup()
vault = Vault(told["address"], role_id=told["role_id"], secret_id=told["secret_id"])
desk = Counter(database, rules.load(Path(told["policy"])), people, vault, team=TEAM, patience=PATIENCE)
desk.people, desk.now = people, datetime.now(UTC)
row = desk.approved()
intent = desk.reveal(RITA, row.id, desk.case(row.id).request.version, now=desk.now)
login = desk.issue(replace(intent, ttl=timedelta(seconds=told["seconds"])), now=datetime.now(UTC))
said = {"request": row.id, "user": login.username, "password": login.password}
said["ends"] = desk.case(row.id).request.expires_at.timestamp()
print(json.dumps(said), flush=True)
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_with_the_bot_gone_for_good_vault_ends_the_grant(
    parts: Demo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bot is killed and never started again: at the granted time Vault cuts the sessions and refuses logins.

    Another bot that comes much later finds nothing left, and closes the request.
    """
    url = f"sqlite:///{tmp_path / 'alone.db'}"
    told = {
        "database": url,
        "address": parts.bao.addr,
        "role_id": parts.login.role_id,
        "secret_id": parts.login.secret_id,
        "policy": str(parts.policy_file),
        "seconds": GRANTED,
    }
    bot = subprocess.Popen(
        [sys.executable, "-c", _OPEN_AND_DIE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        text=True,
    )
    bot.stdin.write(json.dumps(told) + "\n")
    bot.stdin.flush()
    said = json.loads(bot.stdout.readline())

    def connect() -> psycopg.Connection:
        return psycopg.connect(
            host=parts.pg.host,
            port=parts.pg.port,
            dbname="orders",
            user=said["user"],
            password=said["password"],
            autocommit=True,
            connect_timeout=5,
        )

    session = connect()
    bot.communicate("\n")
    assert bot.returncode == -9
    login_seen = session_seen = 0.0
    is_open = can_log_in = True
    while is_open or can_log_in:
        assert time.time() < said["ends"] + LONG, "it does not end"
        if is_open:
            began = time.time()
            try:
                session.execute("SELECT 1")
                session_seen = began
            except psycopg.Error:
                is_open = False
        began = time.time()
        try:
            connect().close()
            login_seen, can_log_in = began, True
        except psycopg.OperationalError:
            can_log_in = False
        time.sleep(0.02)
    session.close()
    late = [f"{seen - said['ends']:+.2f} s" for seen in (login_seen, session_seen)]
    with capsys.disabled():
        sys.stdout.write(f"\nbot never back, from the granted end: last login {late[0]}, last answer {late[1]}\n")
    assert login_seen > said["ends"] - GRANTED
    assert login_seen < said["ends"] + 10
    assert session_seen < said["ends"] + 10
    # Somebody starts another bot after all.
    database = Database(url)
    vault = Vault(parts.bao.addr, role_id=told["role_id"], secret_id=told["secret_id"])
    desk = Counter(database, rules.load(parts.policy_file), People(), vault, team=TEAM, patience=PATIENCE)
    while vault.leases(PREFIX):  # Vault takes a lease off its list only after the target has done its part
        assert time.time() < said["ends"] + LONG, "its lease stays"
        time.sleep(0.1)
    sweep.tick(desk, now=datetime.now(UTC) + timedelta(minutes=15))
    assert desk.case(said["request"]).state is State.ENDED
    database.close()
