"""With a required copy of the log down: is the credential held, is it said why, and is a revocation done at once?

All parts are real: the bot as its own process, OpenBao, PostgreSQL, the local Slack workspace. The copy is the demo's,
a file in a folder that is taken away and brought back, as a volume is.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import psycopg
import pytest

from bot import views
from bot.demo import play
from bot.demo.run import Demo
from bot.sandbox.driver import Driver, wait_for
from storage.audit import check
from storage.database import Database
from storage.followers.file import FileCopy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from bot.sandbox.driver import PersonDriver

CHANNEL: Final = "C0INCIDENT"
PATIENCE: Final = 40.0  # seconds, a bound for a busy machine
WORDS: Final = {
    views.THRESHOLD: "data-loss",
    views.REASON: "Orders after 560 are stuck and must be looked at",
    views.STANDARD_PATH: "Paged the database on-call twice, nobody answers",
    views.INCIDENT: "INC-2031",
}


class Volume:
    """The volume with the copy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def unmount(self) -> None:
        """Take it away."""
        self.folder.rename(self.folder.with_name("away"))

    def mount(self) -> None:
        """Bring it back."""
        self.folder.with_name("away").rename(self.folder)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Everything that ``breakglass demo`` starts."""
    with Demo(tmp_path_factory.mktemp("demo"), rate_limits=0) as demo:
        yield demo


@pytest.fixture
def volume(demo: Demo) -> Iterator[Volume]:
    """The volume, which is there again afterwards."""
    volume = Volume(demo.directory / "outside")
    yield volume
    if not volume.folder.is_dir():
        volume.mount()


class Night:
    """A request that was approved, and what people do and see then."""

    def __init__(self, demo: Demo) -> None:
        self.people = Driver(demo.url)
        self.rita = self.people.as_("U0RITA")
        before = {message["ts"] for message in self.rita.messages(CHANNEL)}
        self.rita.command("/breakglass orders-db read 10m", CHANNEL)
        self.rita.fill(self.rita.wait_for_view(views.OPEN_FORM, PATIENCE)).submit(WORDS)
        self.rita.wait_for_view(views.NOTICE)
        self.rita.close()
        self.card = self.wait(lambda: next((m for m in play._cards(self.rita) if m["ts"] not in before), None))
        self.name = play._request_id(self.card)

    def approve(self) -> None:
        """Let Chen approve."""
        self.people.as_("U0CHEN").click(play._fresh(self.rita, self.card), views.APPROVE)

    def reveal(self) -> None:
        """Let Rita press Reveal."""
        self.rita.click(self.wait(lambda: self.message(self.rita, views.REVEAL)), views.REVEAL)

    def message(self, person: PersonDriver, action: str) -> Mapping[str, Any] | None:
        """Return the direct message about the request that has this button."""
        try:
            found = (m for m in reversed(person.dm()) if self.name in json.dumps(m) and person.has(m, action))
            return next(found, None)
        except StopIteration:
            return None  # the bot has not written to this person yet

    def revocable(self) -> Mapping[str, Any] | None:
        """Return the card if it has a Revoke button now."""
        card = play._fresh(self.rita, self.card)
        return card if self.rita.has(card, views.REVOKE) else None

    def thread_says(self, words: str) -> bool:
        """Whether a post of the thread says this."""
        posts = self.rita.thread(CHANNEL, self.card["ts"])[1:]
        return any(words in json.dumps(post, ensure_ascii=False) for post in posts)

    def window_says(self, words: str) -> bool:
        """Whether Rita's window says this."""
        return words in json.dumps(self.rita.view() or {}, ensure_ascii=False)

    @staticmethod
    def wait(look: Any) -> Any:
        """Wait until something is there."""
        return wait_for(look, PATIENCE, what="what was to come")


def test_held_said_and_out_by_itself(demo: Demo, volume: Volume) -> None:
    """No credential comes out, thread and window say why, and it comes out in that window once the copy is back."""
    night = Night(demo)
    night.approve()
    volume.unmount()
    night.reveal()
    night.wait(lambda: night.thread_says("Waiting for the log's copy"))
    night.wait(lambda: night.window_says("Waiting for the log's copy"))
    assert play._psql_line(night.rita) is None
    volume.mount()
    line = night.wait(lambda: play._psql_line(night.rita))
    psycopg.connect(play._conninfo(line)).close()
    night.wait(lambda: night.thread_says("was issued"))
    night.rita.close()
    database = Database(demo.database_url)
    with database.read() as session:
        assert check(session) is None
    database.close()


def test_revoked_at_once_while_it_is_down(demo: Demo, volume: Volume) -> None:
    """A custodian ends the request while its requester is held; the thread says so with the copy still away."""
    night = Night(demo)
    night.approve()
    night.wait(lambda: night.message(night.rita, views.REVEAL))
    volume.unmount()
    night.reveal()
    night.wait(lambda: night.thread_says("Waiting for the log's copy"))
    chen = night.people.as_("U0CHEN")
    card = night.wait(night.revocable)
    chen.click(card, views.REVOKE)
    night.wait(lambda: night.thread_says("nothing of it is left"))
    night.wait(lambda: night.window_says("No credential was made"))
    assert not volume.folder.exists()
    volume.mount()
    copy = FileCopy("archive", volume.folder / "breakglass.copy", "sandbox.example/breakglass")
    wanted = f'"request":"{night.name}"'.encode()
    night.wait(lambda: any(wanted in item.body and b"credential:end" in item.body for item in copy.read()))
