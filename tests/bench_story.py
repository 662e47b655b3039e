"""How long do people wait? ``python tests/bench_story.py [--rounds 30]`` prints it; it asserts nothing.

Rules
-----
* The real parts: the bot and the workspace each as a process of its own, OpenBao, PostgreSQL. What is timed is what a
  person sees: from the click being sent to the message, the secret or the refused login being there, looked for each
  few milliseconds (the looking is in the figures).
* The baseline is the bare calls of Vault that any solution must make, by hvac, against the same server in the same run,
  one after each round, so that both meet the same weather.
* Slack's rate limits are off: one story after the other would soon wait for nothing else.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import hvac
import yaml

from bot import views
from bot.demo.parts import Part, launch
from bot.demo.play import _cannot_log_in, _dm_with, _psql_line
from bot.demo.run import APP_TOKEN, BOT_TOKEN, MANIFEST, SEED, Demo
from bot.sandbox.driver import Driver

if TYPE_CHECKING:
    from collections.abc import Callable

    from bot.sandbox.driver import PersonDriver

CHANNEL: Final = "C0INCIDENT"
LOOK_EVERY: Final = 0.002  # seconds
PATIENCE: Final = 30.0
RECOVERS: Final = 3.0  # seconds
WORDS: Final = {
    views.THRESHOLD: "customer-impact",
    views.REASON: "Checkout is down for every customer",
    views.STANDARD_PATH: "Paged the database on-call twice, nobody answers",
    views.INCIDENT: "INC-2031",
}


class SandboxProcess(Part):
    """``python -m bot.sandbox``: the workspace, in nobody's interpreter but its own."""

    name = "sandbox"

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://127.0.0.1:{self.port}"

    def _launch(self) -> None:
        seed = self.directory / "seed.yml"
        seed.write_text(
            yaml.safe_dump(
                {
                    "team": {"id": SEED.team_id, "name": SEED.team_name},
                    "people": [{"id": p.id, "name": p.name, "real_name": p.real_name} for p in SEED.people],
                    "channels": [{"id": c.id, "name": c.name, "members": list(c.members)} for c in SEED.channels],
                    "groups": [
                        {"id": g.id, "handle": g.handle, "name": g.name, "members": list(g.members)}
                        for g in SEED.groups
                    ],
                }
            ),
            encoding="utf-8",
        )
        command = [sys.executable, "-m", "bot.sandbox", "--port", str(self.port), "--manifest", str(MANIFEST)]
        command += ["--seed", str(seed), "--rate-limits", "0"]
        path = str(Path(__file__).parent.parent)
        self._running = launch(
            command,
            log=self.log,
            polite=signal.SIGTERM,
            env={
                "PATH": os.environ.get("PATH", os.defpath),
                "PYTHONPATH": path,
                "SLACK_BOT_TOKEN": BOT_TOKEN,
                "SLACK_APP_TOKEN": APP_TOKEN,
            },
        )
        self._wait(lambda: self.url.encode() in self.log.read_bytes())


class Figures:
    """Milliseconds, by what was measured."""

    def __init__(self) -> None:
        self.all: dict[str, list[float]] = {}

    def took(self, what: str, since: float) -> None:
        """Note how long something took."""
        self.all.setdefault(what, []).append((time.perf_counter() - since) * 1000)

    def median(self, what: str) -> float:
        """Return the median."""
        return statistics.median(self.all[what])

    def line(self, what: str, meaning: str) -> str:
        """Return the median and the ninetieth percentile, and what they mean."""
        ms = sorted(self.all[what])
        p90 = ms[min(len(ms) - 1, len(ms) * 9 // 10)]
        return f"  {what:<34} median {self.median(what):7.1f} ms   p90 {p90:7.1f} ms   {meaning}"


def _until(look: Callable[[], Any], what: str) -> Any:
    until = time.perf_counter() + PATIENCE
    while not (found := look()):
        if time.perf_counter() > until:
            raise TimeoutError(f"{what} did not come within {PATIENCE:.0f} s")
        time.sleep(LOOK_EVERY)
    return found


def live(demo: Demo, figures: Figures, people: dict[str, PersonDriver]) -> None:
    """Live the story once: ask, approve, reveal, hand back."""
    rita, carl = people["rita"], people["carl"]
    # 1. Rita asks, and Carl has been told.
    rita.command("/breakglass orders-db read 15m checkout is down", CHANNEL)
    form = _until(lambda: _whole_form(rita), "the form")
    answer = rita.fill(form).submit(WORDS)
    rita.close()
    request_id = answer["view"]["title"]["text"]
    ask = _until(lambda: _about(carl, views.APPROVE, request_id), "Carl's message")
    # 2. The last Approve → the Reveal message.
    clicked = time.perf_counter()
    carl.click(ask, views.APPROVE)
    handover = _until(lambda: _about(rita, views.REVEAL, request_id), "Rita's message")
    figures.took("Approve click to Reveal message", clicked)
    # 3. Reveal → the secret in the modal.
    clicked = time.perf_counter()
    rita.click(handover, views.REVEAL)
    line = _until(lambda: _psql_line(rita), "the secret")
    figures.took("Reveal click to secret", clicked)
    rita.close()
    # 4. Done → the login is refused, and the thread says that it has ended.
    active = _until(lambda: _about(rita, views.RELEASE, request_id), "Rita's Done button")
    card = _until(lambda: _card(rita, request_id), "the card")
    # A person works for minutes; meanwhile the channel has room for posts again, of which the bot makes one a second.
    time.sleep(RECOVERS)
    clicked = time.perf_counter()
    rita.click(active, views.RELEASE)
    _until(lambda: _cannot_log_in(line), "the refused login")
    figures.took("Done click to refused login", clicked)
    _until(lambda: "confirmed" in str(rita.thread(CHANNEL, card["ts"])[1:]), "the thread's word")
    figures.took("Done click to thread says ended", clicked)


def bare(demo: Demo, figures: Figures, bot: hvac.Client) -> None:
    """Make the bare calls of Vault: a child token through the role, the credential read with it; then take it back."""
    began = time.perf_counter()
    # (hvac's own method for it sends more than the bot is allowed to.)
    made = bot.write_data(
        "auth/token/create/breakglass-orders-db-read",
        data={
            "ttl": 900,
            "explicit_max_ttl": 900,
            "renewable": False,
            "no_default_policy": True,
            "display_name": "BG-BARE",
            "meta": {"request": "BG-BARE"},
        },
    )["auth"]
    child = hvac.Client(url=demo.bao.addr, token=made["client_token"], session=bot.session)
    child.secrets.database.generate_credentials("orders-ro")
    figures.took("bare Vault: token and credential", began)
    began = time.perf_counter()
    bot.auth.token.revoke_accessor(made["accessor"])
    figures.took("bare Vault: revoke", began)


def _whole_form(person: PersonDriver) -> dict[str, Any] | None:
    view = person.view()
    return view if view and any(block["block_id"] == views.DURATION for block in view["blocks"]) else None


def _card(person: PersonDriver, request_id: str) -> dict[str, Any] | None:
    return next((m for m in reversed(person.messages(CHANNEL)) if request_id in str(m.get("blocks"))), None)


def _about(person: PersonDriver, action_id: str, request_id: str) -> Any:
    found = _dm_with(person, action_id)
    return found if found and request_id in str(found["blocks"]) else None


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="How long do people wait?")
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="breakglass-bench-") as folder:
        slack = SandboxProcess(Path(folder) / "sandbox")
        with Demo(Path(folder), slack=slack) as demo:
            driver = Driver(demo.url)
            people = {person.name: driver.as_(person.id) for person in SEED.people}
            bot = hvac.Client(url=demo.bao.addr)
            bot.auth.approle.login(role_id=demo.login.role_id, secret_id=demo.login.secret_id)
            load = [os.getloadavg()[0]]
            for number in range(rounds + 2):
                live(demo, figures, people)
                bare(demo, figures, bot)
                if number == 1:
                    figures.all.clear()  # the first two were for warming up
            load.append(os.getloadavg()[0])
    factor = figures.median("Reveal click to secret") / figures.median("bare Vault: token and credential")
    say = figures.line
    lines = (
        f"{rounds} rounds on {os.cpu_count()} cores; load {load[0]:.1f} before, {load[1]:.1f} after",
        say("Approve click to Reveal message", "the quorum is decided, committed, and the message stands in Slack"),
        say("Reveal click to secret", f"{factor:.1f} times the bare Vault calls below: the window, the log and Vault"),
        say("bare Vault: token and credential", "hvac: a child token through the role, then the credential with it"),
        say("Done click to refused login", "committed, revoked at Vault, and PostgreSQL refuses a new login"),
        say("Done click to thread says ended", "Vault has confirmed that the lease is gone, and the thread says so"),
        say("bare Vault: revoke", "hvac: the accessor; it answers before the lease is gone"),
    )
    print(*lines, sep="\n")  # noqa: T201 - that is what it is for
    return 0


if __name__ == "__main__":
    sys.exit(main())
