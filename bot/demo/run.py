"""What does ``breakglass demo`` start, and how does it end?

Everything that the product needs, on this machine only: a Slack workspace, OpenBao, a PostgreSQL with orders in it, and
the bot itself as ``breakglass serve``, the same program that is installed for real.

Rules
-----
* One process tree: each part ends when this process does, however that comes about (``guard.py``).
* All state is in one temporary folder, which goes with it.
* Nobody's ports are assumed to be free, except one that was asked for by name.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import yaml

from bot.demo.parts import OpenBao, Part, PartFailed, Postgres, claim_port, launch
from bot.demo.vault_setup import BotLogin, prepare_target, set_up
from bot.sandbox.server import Sandbox
from bot.sandbox.workspace import BOT_USER, Channel, Group, Person, WorkspaceSeed
from workflows import policy as rules
from workflows.vault_plan import levels_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

PORT: Final = 8765
COPY: Final = Path("/mnt/other-volume/breakglass.copy")  # where the policy of the demo has the log's outside copy
HERE: Final = Path(__file__).parent
MANIFEST: Final = HERE.parent.parent / "manifest.yml"
BOT_TOKEN: Final = "xoxb-sandbox-only"  # noqa: S105 - it opens the local workspace and nothing else
APP_TOKEN: Final = "xapp-sandbox-only"  # noqa: S105

_EVERYBODY: Final = (
    Person("U0RITA", "rita", "Rita Reyes", "On-call engineer, responder"),
    Person("U0CARL", "carl", "Carl Costa", "Database engineer, custodian"),
    Person("U0CHEN", "chen", "Chen Li", "Platform lead, custodian"),
    Person("U0CORA", "cora", "Cora Diaz", "Owner of the orders database, custodian"),
    Person("U0SAM", "sam", "Sam Okoro", "Security, reviewer"),
    Person("U0LENA", "lena", "Lena Berg", "Head of engineering, leadership"),
    Person("U0ADA", "ada", "Ada Auden", "Internal audit"),
    Person("U0OLGA", "olga", "Olga Petrov", "Customer care, no part in this"),
    Person("U0GUS", "gus", "Gus Guest", "A guest from a supplier", is_guest=True),
)
_STAFF: Final = tuple(person.id for person in _EVERYBODY if not person.is_guest)

SEED: Final = WorkspaceSeed(
    team_id="T0SANDBOX",
    team_name="Sandbox Inc.",
    people=_EVERYBODY,
    channels=(
        Channel("C0INCIDENT", "incidents", "Emergencies and break-glass access", (*_STAFF, "U0GUS", BOT_USER)),
        Channel("C0GENERAL", "general", "Everything else", _STAFF),
    ),
    groups=(
        Group("S0ONCALL", "on-call", "On call", ("U0RITA", "U0CARL")),
        Group("S0LEADS", "leadership", "Leadership", ("U0LENA",)),
        Group("S0SEC", "security", "Security", ("U0SAM",)),
    ),
)


class BotProcess(Part):
    """``breakglass serve`` in a process of its own; up when it listens."""

    name = "breakglass"

    def __init__(self, directory: Path, environment: Mapping[str, str], command: tuple[str, ...] = ()) -> None:
        super().__init__(directory)
        self._environment = dict(environment)
        self._command = command or (sys.executable, "-m", "bot.cli", "serve")

    def _launch(self) -> None:
        said = self.log.stat().st_size if self.log.exists() else 0
        # The current folder is not in the way of "-m" when the project is installed; in a checkout it is needed.
        environment = {"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": str(HERE.parent.parent)}
        self._running = launch(
            list(self._command), log=self.log, polite=signal.SIGTERM, owner=None, env=environment | self._environment
        )
        self._wait(lambda: b"listening" in self.log.read_bytes()[said:])


class Workspace(Protocol):
    """A Slack workspace that is up between enter and exit."""

    @property
    def url(self) -> str:
        """The address of the page, ``http://127.0.0.1:…``."""

    def __enter__(self) -> object:
        """Start it."""

    def __exit__(self, *exc: object) -> None:
        """Stop it."""


class Demo:
    """All the parts, up and wired; a context manager. ``with_bot=False`` leaves the bot to the caller (crash tests).

    ``policy`` is the text of another policy ("port: 5432" stands for the target's, :data:`COPY` for the copy's place),
    ``seed`` another workspace for it;
    ``slack`` is a workspace that runs elsewhere, with the sandbox's tokens, in place of one in this process.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int = 0,
        persistent: bool = False,
        rate_limits: float = 1.0,
        seed: WorkspaceSeed = SEED,
        policy: str | None = None,
        slack: Workspace | None = None,
        with_bot: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.bao = OpenBao(directory / "openbao", persistent=persistent)
        self.pg = Postgres(directory / "postgresql", durable=False)
        manifest = yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))
        self.slack = slack or Sandbox(
            seed, manifest, bot_token=BOT_TOKEN, app_token=APP_TOKEN, port=port, rate_limits=rate_limits
        )
        self._policy = policy or (HERE / "breakglass.yml").read_text(encoding="utf-8")
        self.policy_file = directory / "breakglass.yml"
        self.database_url = f"sqlite:///{directory / 'breakglass.db'}"
        self._with_bot = with_bot
        self._extra = dict(environment or {})
        self._parts = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as parts:
            # The slow two come up side by side.
            with ThreadPoolExecutor(2) as pool:
                for started in [pool.submit(parts.enter_context, part) for part in (self.bao, self.pg)]:
                    started.result()
            parts.enter_context(self.slack)
            self.login = self._set_up()
            self.bot = BotProcess(self.directory / "bot", self.environment)
            parts.callback(self.bot.close)
            if self._with_bot:
                self.bot.start()
            self._parts = parts.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._parts.close()

    @property
    def url(self) -> str:
        """The address of the page."""
        return self.slack.url

    @property
    def environment(self) -> dict[str, str]:
        """What ``breakglass serve`` and ``breakglass check`` are told."""
        return {
            "SLACK_BOT_TOKEN": BOT_TOKEN,
            "SLACK_APP_TOKEN": APP_TOKEN,
            "SLACK_API_URL": f"{self.url}/api/",
            "VAULT_ADDR": self.bao.addr,
            "VAULT_ROLE_ID": self.login.role_id,
            "VAULT_SECRET_ID": self.login.secret_id,
            "BREAKGLASS_DATABASE_URL": self.database_url,
            "BREAKGLASS_POLICY": str(self.policy_file),
            **self._extra,
        }

    def _set_up(self) -> BotLogin:
        """Do what an administrator does before the bot is installed: policy, database, Vault."""
        text = self._policy.replace("port: 5432", f"port: {self.pg.port}")
        text = text.replace(f"path: {COPY}", f"path: {self.directory / 'outside' / COPY.name}")
        (self.directory / "outside").mkdir(exist_ok=True)
        self.policy_file.write_text(text, encoding="utf-8")
        target = prepare_target(self.pg)
        return set_up(self.bao.addr, self.bao.root_token, target, levels_of(rules.load(self.policy_file)))


def run(*, play: bool, port: int | None) -> int:
    """Bring the demo up; play the story or wait for Ctrl-C. Returns the exit code."""
    logging.getLogger().setLevel(logging.WARNING)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    chosen = _port(port, play=play)  # before anything is said or started: a taken port is an error
    with tempfile.TemporaryDirectory(prefix="breakglass-demo-") as folder:
        print("Starting OpenBao, PostgreSQL, a local Slack workspace and the bot …", flush=True)
        with Demo(Path(folder), port=chosen) as demo:
            if play:
                from bot.demo.play import play as live  # noqa: PLC0415 - only the player needs its client

                return live(demo)
            elsewhere = "" if port is not None or chosen else _ELSEWHERE
            psql = "" if shutil.which("psql") else _PSQL.format(bin=demo.pg.bin)
            print(_WELCOME.format(url=demo.url, elsewhere=elsewhere, psql=psql), flush=True)
            ended.wait()
            print("Stopping.", flush=True)
    return 0


def _port(asked: int | None, *, play: bool) -> int:
    if asked is not None:
        return claim_port(asked, "The page")  # asked for by name: taken is an error, with a sentence
    if play:
        return 0
    try:
        return claim_port(PORT, "The page")
    except PartFailed:
        return 0


_WELCOME: Final = """
  Open {url} in a browser. This is a local sandbox: nothing leaves this machine.{elsewhere}

  1. You are Rita, on call at three in the morning. In #incidents type   /breakglass
     (or, quicker:   /breakglass orders-db read 15m checkout is down )
  2. “Act as” Carl Costa, a custodian: open the direct message from breakglass, press Approve.
  3. As Rita again: press Reveal, paste the psql line into a terminal, run   select count(*) from orders;{psql}
  4. Press Done, and try the psql line once more.
  5. As Sam Okoro, security: file the review. As Ada Auden, audit:   /breakglass export BG-…

  Ctrl-C stops everything.
"""
_ELSEWHERE: Final = f"""
  (Port {PORT}, the usual one, is taken: another demo may be running.)"""
_PSQL: Final = """
     This machine has no psql of its own; in that terminal type first   PATH={bin}:$PATH"""
