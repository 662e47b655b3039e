"""Does the running bot give its numbers where ``METRICS_ADDRESS`` says, and do they follow a copy that goes away?"""

from __future__ import annotations

import urllib.request
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from bot.demo.parts import free_port
from bot.demo.run import Demo
from bot.sandbox.driver import wait_for
from storage.audit import SYSTEM, append
from storage.database import Database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE = 60.0


@pytest.fixture
def scraped(tmp_path: Path) -> Iterator[tuple[Demo, int]]:
    """The demo with a bot that gives numbers, and their port."""
    port = free_port()
    with Demo(tmp_path, rate_limits=0, environment={"METRICS_ADDRESS": str(port)}) as demo:
        yield demo, port


def samples(port: int) -> dict[str, str]:
    """Scrape it."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as answer:
        lines = answer.read().decode().splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


def test_a_copy_that_goes_away_and_comes_back_is_seen_in_the_numbers(scraped: tuple[Demo, int]) -> None:
    """Up and without lag, then down and behind, then up again; what is signed grows meanwhile."""
    demo, port = scraped
    lag, up = 'breakglass_copy_lag_entries{copy="archive"}', 'breakglass_copy_up{copy="archive"}'
    wait_for(lambda: (found := samples(port))[lag] == "0" and found[up] == "1", PATIENCE)
    before = samples(port)
    assert before['breakglass_copy_required{copy="archive"}'] == "1"
    assert int(before["breakglass_log_signed_entries"]) > 0
    outside = demo.directory / "outside"
    outside.rename(outside.with_name("away"))
    database = Database(demo.database_url)
    with database.write() as session:
        append(session, event="test:entry", at=datetime.now(UTC), actor=SYSTEM)
    wait_for(lambda: (found := samples(port))[lag] != "0" and found[up] == "0", PATIENCE)
    outside.with_name("away").rename(outside)
    wait_for(lambda: (found := samples(port))[lag] == "0" and found[up] == "1", PATIENCE)
    after = samples(port)
    assert int(after["breakglass_log_entries_total"]) > int(before["breakglass_log_entries_total"])
    database.close()
