"""How does the app hear of what people do? Socket Mode, as the unmodified SDK speaks it.

Rules:
- ``apps.connections.open`` gives an address with a ticket; a ticket admits one socket, within thirty seconds.
- At most ten sockets. Each envelope goes to exactly one, in turn.
- An envelope counts as acknowledged when an answer with its id comes within three seconds, on any socket. Later
  answers are noted and have no effect.
- An envelope is never sent again: not after a dropped socket, not when nobody acknowledged it. (Slack does not repeat
  interactions and commands; it may repeat events, and whoever wants to see that asks for ``duplicate_envelope``.)
- No socket: the interaction fails at once, as in Slack (``dispatch_failed``).
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from enum import StrEnum
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from starlette.websockets import WebSocket, WebSocketDisconnect

from bot.sandbox.journal import Fault, FaultKind, Faults, Journal
from bot.sandbox.workspace import APP_ID

if TYPE_CHECKING:
    from collections.abc import Callable

Json = dict[str, Any]

ACK_SECONDS: Final = 3.0  # https://docs.slack.dev/interactivity/handling-user-interaction#acknowledgment_response
MOST_SOCKETS: Final = 10
TICKET_SECONDS: Final = 30.0
REFRESH_SECONDS: Final = 10.0


class Envelope(StrEnum):
    """The types of envelopes."""

    COMMAND = "slash_commands"
    INTERACTIVE = "interactive"
    EVENT = "events_api"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of an envelope: acknowledged or not, after how many milliseconds, with what payload."""

    acknowledged: bool
    ms: float
    payload: Json = field(default_factory=dict)
    delivered: bool = True


@dataclass(slots=True, eq=False)
class _Socket:
    websocket: WebSocket
    number: int
    outgoing: asyncio.Queue[Json | None] = field(default_factory=asyncio.Queue)
    leaving: bool = False


@dataclass(slots=True, eq=False)
class _Waiting:
    sent_at: float
    answered: asyncio.Future[Json]
    delay: float


class Link:
    """All sockets of the app and the envelopes on their way. Lives on one event loop."""

    def __init__(
        self, *, clock: Callable[[], float], journal: Journal, faults: Faults, ack_seconds: float = ACK_SECONDS
    ) -> None:
        self._clock = clock
        self._journal = journal
        self._faults = faults
        self._ack_seconds = ack_seconds
        self._tickets: dict[str, float] = {}
        self._sockets: list[_Socket] = []
        self._turn = 0
        self._serial = 0
        self._waiting: dict[str, _Waiting] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def connections(self) -> int:
        """How many sockets the app has open."""
        return len(self._sockets)

    def new_ticket(self) -> str:
        """Issue a ticket for one socket."""
        now = self._clock()
        self._tickets = {ticket: until for ticket, until in self._tickets.items() if until >= now}
        ticket = token_hex(16)
        self._tickets[ticket] = now + TICKET_SECONDS
        return ticket

    # --- One socket -----------------------------------------------------------------------------------------------

    async def serve(self, websocket: WebSocket) -> None:
        """Run one socket from the handshake to its end."""
        until = self._tickets.pop(websocket.query_params.get("ticket", ""), None)
        if until is None or until < self._clock():
            await websocket.close(code=1008)  # before the handshake is accepted: HTTP 403
            return
        await websocket.accept()
        if len(self._sockets) >= MOST_SOCKETS:
            await websocket.send_json({"type": "disconnect", "reason": "too_many_websockets", "debug_info": {}})
            await websocket.close(code=1008)
            return
        self._serial += 1
        socket = _Socket(websocket, self._serial)
        self._sockets.append(socket)
        self._journal.write("socket", event="open", socket=socket.number, connections=len(self._sockets))
        socket.outgoing.put_nowait(
            {
                "type": "hello",
                "num_connections": len(self._sockets),
                "connection_info": {"app_id": APP_ID},
                "debug_info": {"host": "sandbox", "build_number": 1, "approximate_connection_time": 18_060},
            }
        )
        writer = asyncio.create_task(self._write(socket))
        try:
            while True:
                self._receive(socket, await websocket.receive_text())
        except (WebSocketDisconnect, RuntimeError, KeyError):
            pass  # closed by either side, possibly in the middle of a message
        finally:
            self._leave(socket)
            socket.outgoing.put_nowait(None)
            await writer
            self._journal.write("socket", event="closed", socket=socket.number, connections=len(self._sockets))

    async def _write(self, socket: _Socket) -> None:
        """Send what is queued; one slow socket never holds up another."""
        while (message := await socket.outgoing.get()) is not None:
            try:
                if message.get("type") == "close":
                    await socket.websocket.close(code=1012)
                    return
                await socket.websocket.send_text(json.dumps(message))
            except (WebSocketDisconnect, RuntimeError):
                return

    def _leave(self, socket: _Socket) -> None:
        socket.leaving = True
        if socket in self._sockets:
            self._sockets.remove(socket)

    def _drop(self, socket: _Socket) -> None:
        self._leave(socket)
        socket.outgoing.put_nowait({"type": "close"})

    def _receive(self, socket: _Socket, text: str) -> None:
        try:
            message = json.loads(text)
            envelope_id = message["envelope_id"]
        except (ValueError, KeyError, TypeError):
            self._journal.write("ack", socket=socket.number, error="not an acknowledgement", text=text[:200])
            return
        waiting = self._waiting.get(envelope_id)
        payload = message.get("payload") or {}
        now = asyncio.get_running_loop().time()
        entry = self._journal.write("ack", socket=socket.number, envelope_id=envelope_id, payload=payload)
        if waiting is None:
            entry["late"] = True
            return
        entry["ms"] = (now - waiting.sent_at) * 1000
        if waiting.answered.done():
            entry["repeated"] = True
        elif waiting.delay:
            asyncio.get_running_loop().call_later(waiting.delay, _settle, waiting.answered, payload)
        else:
            waiting.answered.set_result(payload)

    # --- Envelopes ------------------------------------------------------------------------------------------------

    async def send(self, kind: Envelope, payload: Json, *, accepts_response: bool = False) -> Answer:
        """Send an envelope to the next socket and wait for its acknowledgement, three seconds at most."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        envelope: Json = {
            "envelope_id": str(uuid4()),
            "type": kind.value,
            "payload": payload,
            "accepts_response_payload": accepts_response,
        }
        if kind is Envelope.EVENT:
            envelope |= {"retry_attempt": 0, "retry_reason": ""}
        socket = self._next_socket()
        entry = self._journal.write(
            "envelope", type=kind.value, envelope_id=envelope["envelope_id"], payload=payload, socket=None
        )
        if socket is None:
            entry["error"] = "no socket is connected"
            return Answer(acknowledged=False, ms=0.0, delivered=False)
        entry["socket"] = socket.number
        late = self._faults.for_socket(FaultKind.DELAY_ACK)
        waiting = _Waiting(started, loop.create_future(), (late.seconds or self._ack_seconds) if late else 0.0)
        self._waiting[envelope["envelope_id"]] = waiting
        socket.outgoing.put_nowait(envelope)
        if self._faults.for_socket(FaultKind.DUPLICATE_ENVELOPE):
            again = self._next_socket() or socket
            self._journal.write(
                "envelope", type=kind.value, envelope_id=envelope["envelope_id"], socket=again.number, duplicate=True
            )
            again.outgoing.put_nowait(envelope)
        if self._faults.for_socket(FaultKind.DROP_SOCKET, on="envelope"):
            self._drop(socket)
        try:
            answer = await asyncio.wait_for(waiting.answered, self._ack_seconds)
        except TimeoutError:
            entry["error"] = "not acknowledged"
            return Answer(acknowledged=False, ms=(loop.time() - started) * 1000)
        finally:
            del self._waiting[envelope["envelope_id"]]
        ms = (loop.time() - started) * 1000
        entry["ms"] = ms
        return Answer(acknowledged=True, ms=ms, payload=answer if isinstance(answer, dict) else {})

    def emit(self, payload: Json) -> None:
        """Send an event without waiting for its acknowledgement."""
        task = asyncio.get_running_loop().create_task(self._emit(payload))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _emit(self, payload: Json) -> None:
        await self.send(Envelope.EVENT, payload)

    def _next_socket(self) -> _Socket | None:
        if not self._sockets:
            return None
        self._turn = (self._turn + 1) % len(self._sockets)
        return self._sockets[self._turn]

    # --- Faults and the end ---------------------------------------------------------------------------------------

    def act(self, fault: Fault) -> None:
        """Carry out a socket fault that does not wait for an envelope."""
        if fault.kind is FaultKind.DROP_SOCKET and fault.on is None:
            self._faults.for_socket(FaultKind.DROP_SOCKET)
            for socket in list(self._sockets):
                self._drop(socket)
        elif fault.kind is FaultKind.REFRESH:
            self._faults.for_socket(FaultKind.REFRESH)
            seconds = REFRESH_SECONDS if fault.seconds is None else fault.seconds
            for socket in list(self._sockets):
                self._say_goodbye(socket, "warning")
                asyncio.get_running_loop().call_later(seconds, self._refresh, socket)

    def _say_goodbye(self, socket: _Socket, reason: str) -> None:
        socket.outgoing.put_nowait({"type": "disconnect", "reason": reason, "debug_info": {"host": "sandbox"}})

    def _refresh(self, socket: _Socket) -> None:
        if not socket.leaving:
            self._say_goodbye(socket, "refresh_requested")
            self._drop(socket)

    def close(self) -> None:
        """End every socket and every wait: the server stops."""
        for socket in list(self._sockets):
            self._drop(socket)
        for waiting in self._waiting.values():
            if not waiting.answered.done():
                waiting.answered.set_exception(TimeoutError())  # whoever waits sees "not acknowledged" at once
        for task in self._tasks:
            task.cancel()


def _settle(answered: asyncio.Future[Json], payload: Json) -> None:
    if not answered.done():
        answered.set_result(payload)
