"""What do people's open pages get to see the moment it happens?

Rules:
- A page is written to without waiting; one that does not read is cut off and nobody else notices.
- What is shown is turned into text at once, so that later changes do not alter it on its way.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final

from starlette.websockets import WebSocket, WebSocketDisconnect

if TYPE_CHECKING:
    from collections.abc import Collection

Json = dict[str, Any]

_MOST_QUEUED: Final = 20_000


class Pages:
    """The open pages and what is on its way to them; a page that does not read is cut off, nobody waits for it."""

    def __init__(self) -> None:
        self._queues: dict[str, set[asyncio.Queue[str | None]]] = {}

    def watching(self) -> Collection[str]:
        """Return the ids of the people with at least one page open."""
        return self._queues.keys()

    def show(self, audience: Collection[str] | None, payload: Json) -> None:
        """Send to the pages of these people (None: everybody's) without waiting."""
        users = self._queues.keys() if audience is None else [user for user in audience if user in self._queues]
        if not users:
            return
        text = json.dumps(payload)
        for user in list(users):
            for queue in list(self._queues[user]):
                if queue.qsize() < _MOST_QUEUED:
                    queue.put_nowait(text)
                else:
                    queue.put_nowait(None)

    async def serve(self, websocket: WebSocket, user: str) -> None:
        """Run the live socket of one page."""
        await websocket.accept()
        queue: asyncio.Queue[str | None] = asyncio.Queue()
        self._queues.setdefault(user, set()).add(queue)
        writer = asyncio.create_task(self._write(websocket, queue))
        try:
            while True:
                await websocket.receive_text()  # nothing is expected; this notices the end
        except (WebSocketDisconnect, RuntimeError, KeyError):
            pass
        finally:
            self._queues[user].discard(queue)
            if not self._queues[user]:
                del self._queues[user]
            queue.put_nowait(None)
            await writer

    @staticmethod
    async def _write(websocket: WebSocket, queue: asyncio.Queue[str | None]) -> None:
        try:
            while (text := await queue.get()) is not None:
                await websocket.send_text(text)
            await websocket.close()
        except (WebSocketDisconnect, RuntimeError):
            return

    def close(self) -> None:
        """End every live socket: the server stops."""
        for queues in self._queues.values():
            for queue in queues:
                queue.put_nowait(None)
