"""What do the end-to-end tests run on? All the real parts, brought up once for a test process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bot.demo.run import Demo

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Everything that ``breakglass demo`` starts, on free ports, with a Slack that limits nobody's rate."""
    with Demo(tmp_path_factory.mktemp("demo"), rate_limits=0) as demo:
        yield demo
