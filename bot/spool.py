"""Where do lines stay that the bot does not take? A folder of batches, oldest first, that never grows beyond its bound.

Rules
-----
* A batch is a file, there as a whole or not at all, readable by its owner alone: lines hold what is secret in them.
* When there is no room more, nothing is dropped and it is said loudly, once: what is not kept is still in its own file.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from workflows.errors import Unavailable

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)


class Spool:
    """Batches that the bot has not taken, together not above ``most`` bytes. Raises :class:`Unavailable`."""

    def __init__(self, folder: Path, most: int) -> None:
        self._folder = folder
        self._most = most
        self._is_full = False
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._files = sorted(folder.glob("*.batch"))
            self._bytes = sum(one.stat().st_size for one in self._files)
        except OSError as error:
            raise Unavailable(f"The spool {folder} cannot be used: {error.strerror}.") from None

    def oldest(self) -> Path | None:
        """Return the batch that is to be sent next."""
        return self._files[0] if self._files else None

    def drop(self, file: Path) -> None:
        """Remove a batch that the bot has taken."""
        self._bytes -= file.stat().st_size
        file.unlink()
        self._files.remove(file)

    def put(self, body: bytes) -> bool:
        """Keep a batch on the disk; False when there is no room."""
        number = int(self._files[-1].stem) + 1 if self._files else 1
        file = self._folder / f"{number:012}.batch"
        why = "it is full" if self._bytes + len(body) > self._most else ""
        if not why:
            try:
                replace(file, body)
            except OSError as error:
                why = str(error.strerror)
        if why:
            if not self._is_full:
                log.error(
                    "THE SPOOL %s TAKES NO MORE (%s): lines are kept by their own file alone. What it loses before the "
                    "bot is back is lost for good, and will be reported as a gap.",
                    self._folder,
                    why,
                )
            self._is_full = True
            return False
        self._is_full = False
        self._files.append(file)
        self._bytes += len(body)
        return True


def replace(file: Path, data: bytes) -> None:
    """Write a file, readable by its owner alone, so that after a crash the old one or the new one is there."""
    new = file.with_name(file.name + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb", closefd=False) as out:
            out.write(data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    new.replace(file)
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
