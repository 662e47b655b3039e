"""How does a Slack workspace run on this machine? One port on 127.0.0.1 for the app, the page and the tests.

Rules:
- Loopback only. A request with a foreign ``Host`` or ``Origin`` is refused: a web page that somebody has open must
  not be able to drive the workspace (DNS rebinding, cross-site posts).
- One event loop does everything; nothing in it waits for anybody.
- The server runs in a thread of its own and stops cleanly: sockets are closed, held requests are let go.
"""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import parse_qsl, unquote

import uvicorn
from starlette.applications import Starlette
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route, WebSocketRoute

from bot.sandbox.events import Events
from bot.sandbox.journal import Fault, FaultKind, Faults, Journal
from bot.sandbox.modals import Modals
from bot.sandbox.people import People, Refusal
from bot.sandbox.screens import Pages
from bot.sandbox.socketmode import ACK_SECONDS, Link
from bot.sandbox.webapi import Reply, Tokens, WebApi, rate_limited
from bot.sandbox.workspace import AppManifest, SlackError, Workspace, WorkspaceSeed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send
    from starlette.websockets import WebSocket

Json = dict[str, Any]

BOT_TOKEN: Final = "xoxb-sandbox"  # noqa: S105 - opens nothing but a sandbox
APP_TOKEN: Final = "xapp-sandbox"  # noqa: S105
PAGE: Final = Path(__file__).parent / "page"
HELD_SECONDS: Final = 60.0
_LONG_LISTS: Final = ("messages", "members", "channels", "users", "usergroups")


class SandboxError(Exception):
    """The sandbox cannot run; the sentence says why and what to do."""


class Sandbox:
    """A Slack workspace with one app installed, running inside this process.

    ``manifest`` is the parsed ``manifest.yml``; ``port`` 0 takes a free one; ``rate_limits`` scales Slack's limits (0:
    none); ``ack_seconds`` is how long an acknowledgement may take; ``clock`` gives seconds since the epoch, so that
    tests of expiry need not wait.
    """

    def __init__(
        self,
        seed: WorkspaceSeed,
        manifest: Mapping[str, Any],
        *,
        port: int = 0,
        bot_token: str = BOT_TOKEN,
        app_token: str = APP_TOKEN,
        rate_limits: float = 1.0,
        ack_seconds: float = ACK_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.bot_token = bot_token
        self.app_token = app_token
        self._port = port
        self._seed = seed
        self._app = AppManifest.from_mapping(manifest)
        self._rate_limits = rate_limits
        self._ack_seconds = ack_seconds
        self._clock = clock
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: uvicorn.Server | None = None
        self._front: _Front | None = None
        self._url = ""

    @property
    def url(self) -> str:
        """The address of the page, ``http://127.0.0.1:…``."""
        return self._url

    @property
    def api_url(self) -> str:
        """What a ``WebClient`` takes as ``base_url``."""
        return f"{self._url}/api/"

    def start(self) -> Self:
        """Listen and serve; returns when requests are answered.

        Raises:
            SandboxError: the port is taken, or the server did not come up.

        """
        listener = _listen(self._port)
        self._url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(listener, ready), name="sandbox", daemon=True)
        self._thread.start()
        if not ready.wait(20):
            raise SandboxError("The sandbox did not start within 20 seconds.")
        return self

    def _run(self, listener: socket.socket, ready: threading.Event) -> None:
        asyncio.run(self._main(listener, ready))

    async def _main(self, listener: socket.socket, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._front = _Front(
            self._seed,
            self._app,
            url=self._url,
            tokens=Tokens(self.bot_token, self.app_token),
            rate_limits=self._rate_limits,
            ack_seconds=self._ack_seconds,
            clock=self._clock,
        )
        config = uvicorn.Config(
            self._front,
            log_level="error",
            access_log=False,
            lifespan="off",
            ws="websockets-sansio",
            backlog=2048,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        serving = asyncio.ensure_future(self._server.serve(sockets=[listener]))
        while not self._server.started and not serving.done():  # noqa: ASYNC110 - the server offers no event
            await asyncio.sleep(0.005)
        ready.set()
        await serving

    def stop(self) -> None:
        """Close every socket and stop serving; safe to call twice."""
        if self._thread is None or self._loop is None or self._server is None or self._front is None:
            return
        self._server.should_exit = True
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._front.close)
        self._thread.join(10)
        self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exc: object) -> None:
        self.stop()


def _listen(port: int) -> socket.socket:
    # The protocol is named because asyncio switches off Nagle's delay (40 ms an answer) only where it reads TCP.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise SandboxError(f"Port {port} on 127.0.0.1 is taken by another program. Choose another port.") from None
        raise SandboxError(f"Cannot listen on port {port} of 127.0.0.1: {error.strerror}.") from None
    listener.setblocking(False)
    return listener


class _Front:
    """The ASGI application: the Web API by the shortest way, everything else through Starlette."""

    def __init__(
        self,
        seed: WorkspaceSeed,
        app: AppManifest,
        *,
        url: str,
        tokens: Tokens,
        rate_limits: float,
        ack_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._hosts = {url.partition("://")[2], url.partition("://")[2].replace("127.0.0.1", "localhost")}
        self._journal = Journal(clock)
        self._faults = Faults(self._journal)
        self._pages = Pages()
        self._link = Link(clock=clock, journal=self._journal, faults=self._faults, ack_seconds=ack_seconds)
        self._workspace = Workspace(
            seed, app, clock=clock, screens=self._pages, emit=Events(app, seed.team_id, self._link).emit
        )
        self._modals = Modals(self._workspace, clock=clock, screens=self._pages)
        self._web = WebApi(
            self._workspace, self._modals, self._link, tokens=tokens, clock=clock, rate_limits=rate_limits
        )
        self._web.url = url
        self._people = People(
            self._workspace,
            self._modals,
            self._link,
            self._web,
            pages=self._pages,
            journal=self._journal,
            faults=self._faults,
        )
        self._stopping = asyncio.Event()
        self._starlette = Starlette(routes=self._routes(), exception_handlers={Refusal: _refused})

    def close(self) -> None:
        """Let go of every socket and every held request."""
        self._stopping.set()
        self._link.close()
        self._pages.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or socket."""
        if not self._is_local(scope):
            await Response("This sandbox answers only to its own page.", 403)(scope, receive, send)
            return
        path = scope["path"]
        if scope["type"] == "http" and path.startswith("/api/"):
            await self._api(path.removeprefix("/api/"), scope, receive, send)
        elif scope["type"] == "http" and path.startswith("/hooks/") and scope["method"] == "POST":
            await self._hook(path.rpartition("/")[2], scope, receive, send)
        else:
            await self._starlette(scope, receive, send)

    def _is_local(self, scope: Scope) -> bool:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").partition("://")[2] not in self._hosts:
            return False
        return host.partition(":")[0] in {"127.0.0.1", "localhost"}

    # --- Web API --------------------------------------------------------------------------------------------------

    async def _api(self, method: str, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        args, token, problem = _arguments(scope, await _body(receive))
        fault = self._faults.for_call(method, args.get("channel"))
        entry = self._journal.write("api", method=method, token_kind=_kind_of(token), args=args)
        reply: Reply | None
        if problem:
            reply = Reply({"ok": False, "error": problem})
        elif fault is None or fault.kind is FaultKind.POST_THEN_TIMEOUT:
            reply = self._web.call(method, token, args)
        elif fault.kind is FaultKind.RATE_LIMITED:
            reply = rate_limited(fault.retry_after)
        elif fault.kind is FaultKind.ERROR500:
            reply = None
        else:
            entry["error"] = "fault: no answer"
            await self._leave_unanswered(fault, receive, send)
            return
        entry["ms"] = (time.perf_counter() - started) * 1000
        if reply is None:
            entry["error"] = "fault: HTTP 500"
            await Response("Internal Server Error", 500)(scope, receive, send)
            return
        entry |= {"ok": reply.body["ok"], "result": _short(reply.body)}
        if "error" in reply.body:
            entry["error"] = reply.body["error"]
        if fault is not None and fault.kind is FaultKind.POST_THEN_TIMEOUT:
            await self._leave_unanswered(fault, receive, send)
            return
        await JSONResponse(reply.body, reply.status, headers=dict(reply.headers))(scope, receive, send)

    async def _leave_unanswered(self, fault: Fault, receive: Receive, send: Send) -> None:
        """Hold the request until the caller gives up or the fault's time is over, then cut the connection."""
        seconds = HELD_SECONDS if fault.seconds is None else fault.seconds
        waits = [asyncio.ensure_future(receive()), asyncio.ensure_future(self._stopping.wait())]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        transport = getattr(getattr(send, "__self__", None), "transport", None)
        if transport is not None:
            transport.abort()
            await asyncio.sleep(0.01)  # let the server notice, or it would complain of a missing answer

    async def _hook(self, key: str, scope: Scope, receive: Receive, send: Send) -> None:
        args, _, problem = _arguments(scope, await _body(receive))
        entry = self._journal.write("api", method="response_url", token_kind=None, args=args)
        try:
            if problem:
                raise SlackError(problem)  # noqa: TRY301
            self._web.respond(key, args)
        except SlackError as error:
            entry |= {"ok": False, "error": error.code}
            status = 404 if error.code in {"expired_url", "used_url"} else 400
            await JSONResponse({"ok": False, "error": error.code, **error.extra}, status)(scope, receive, send)
            return
        entry["ok"] = True
        await JSONResponse({"ok": True})(scope, receive, send)

    # --- Files ----------------------------------------------------------------------------------------------------

    async def _upload(self, request: Request) -> Response:
        file = self._workspace.files.get(request.path_params["file_id"])
        data = await request.body()
        if file is None or file["data"] is not None:
            return Response("no such upload", 404)
        if len(data) != file["length"]:
            return Response(f"expected {file['length']} bytes, got {len(data)}", 400)
        file["data"] = data
        self._journal.write("api", method="upload", token_kind=None, args={"file": file["id"], "bytes": len(data)})
        return Response(f"OK - {len(data)}", 200, media_type="text/plain")

    async def _download(self, request: Request) -> Response:
        file = self._workspace.files.get(request.path_params["file_id"])
        user = request.query_params.get("as", "")
        rooms = [self._workspace.rooms[room] for room in file["channels"]] if file else []
        if file is None or not any(self._workspace.sees(user, room) for room in rooms):
            raise Refusal("There is no such file in any conversation that you can see.", 404)
        name = file["name"].replace('"', "")
        return Response(
            file["data"],
            media_type=file["mimetype"],
            # Never shown in place: an uploaded page would run as the sandbox's own.
            headers={"Content-Disposition": f'attachment; filename="{name}"', "X-Content-Type-Options": "nosniff"},
        )

    # --- Page -----------------------------------------------------------------------------------------------------

    async def _index(self, _request: Request) -> Response:
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    async def _page(self, request: Request) -> Response:
        found = {path.name: path for path in PAGE.iterdir()}.get(request.path_params["name"])
        if found is None:
            return Response("no such file", 404)
        return FileResponse(found, headers={"Cache-Control": "no-cache"})

    async def _archive(self, request: Request) -> Response:
        """Follow a permalink to its place in the page."""
        raw = request.path_params["ts"].removeprefix("p")
        channel = request.path_params["channel"]
        return RedirectResponse(f"/?channel={channel}&ts={raw[:-6]}.{raw[-6:]}")

    # --- People API -----------------------------------------------------------------------------------------------

    async def _live(self, websocket: WebSocket) -> None:
        user = websocket.query_params.get("as", "")
        if user not in self._workspace.people:
            await websocket.close(code=1008)
            return
        await self._pages.serve(websocket, user)

    def _routes(self) -> list[Route | WebSocketRoute]:
        people, faults = self._people, self._faults

        def get(path: str, answer: Callable[[Request], Json]) -> Route:
            async def endpoint(request: Request) -> Response:
                return JSONResponse(answer(request))

            return Route(path, endpoint, methods=["GET"])

        def put(method: str, path: str, deed: Callable[[Request, Json], Json | Awaitable[Json]]) -> Route:
            async def endpoint(request: Request) -> Response:
                result = deed(request, await _json_body(request))
                return JSONResponse(result if isinstance(result, dict) else await result)

            return Route(path, endpoint, methods=[method])

        def clear(_request: Request, _data: Json) -> Json:
            faults.clear()
            return {"ok": True}

        def journal(request: Request) -> Json:
            query = request.query_params
            limit = int(query.get("limit", "200000"))
            return {"entries": self._journal.since(int(query.get("after", "0")), query.get("kind"), limit)}

        def asked(request: Request, name: str, usual: str = "") -> str:
            return str(request.query_params.get(name, usual))

        return [
            Route("/", self._index),
            Route("/page/{name}", self._page),
            Route("/archives/{channel}/{ts}", self._archive),
            Route("/upload/{file_id}", self._upload, methods=["POST"]),
            Route("/files/{file_id}/{name}", self._download),
            WebSocketRoute("/link", self._link.serve),
            WebSocketRoute("/sandbox/live", self._live),
            get("/sandbox/workspace", lambda _: people.workspace()),
            get("/sandbox/state", lambda _: people.state()),
            get("/sandbox/conversations", lambda r: people.conversations(asked(r, "as"))),
            get(
                "/sandbox/messages",
                lambda r: people.messages(
                    asked(r, "as"),
                    asked(r, "channel"),
                    r.query_params.get("thread_ts"),
                    max(1, int(asked(r, "limit", "1000"))),
                ),
            ),
            get("/sandbox/ephemerals", lambda r: people.ephemerals(asked(r, "as"), asked(r, "after", "0"))),
            get("/sandbox/views", lambda r: people.views(asked(r, "as"))),
            get("/sandbox/journal", journal),
            get("/sandbox/faults", lambda _: {"faults": faults.list()}),
            put("DELETE", "/sandbox/faults", clear),
            put("POST", "/sandbox/faults", lambda _, data: people.add_fault(data)),
            put("POST", "/sandbox/messages", lambda _, data: people.say(data)),
            put("POST", "/sandbox/actions", lambda _, data: people.act(data)),
            put("POST", "/sandbox/shortcuts", lambda _, data: people.shortcut(data)),
            put(
                "POST", "/sandbox/views/{view_id}/submit", lambda r, data: people.submit(r.path_params["view_id"], data)
            ),
            put("POST", "/sandbox/views/{view_id}/close", lambda r, data: people.close(r.path_params["view_id"], data)),
            put("POST", "/sandbox/home", lambda _, data: people.home(data)),
            put("POST", "/sandbox/read", lambda _, data: people.read(data)),
            put("POST", "/sandbox/people", lambda _, data: people.add_person(data)),
            put("PATCH", "/sandbox/people/{id}", lambda r, data: people.change_person(r.path_params["id"], data)),
            put("POST", "/sandbox/groups", lambda _, data: people.add_group(data)),
            put("PATCH", "/sandbox/groups/{id}", lambda r, data: people.change_group(r.path_params["id"], data)),
            put("POST", "/sandbox/channels", lambda _, data: people.add_channel(data)),
            put("PATCH", "/sandbox/channels/{id}", lambda r, data: people.change_channel(r.path_params["id"], data)),
        ]


async def _refused(_request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, Refusal) else 400
    return JSONResponse({"error": str(error)}, status)


async def _json_body(request: Request) -> Json:
    raw = await request.body()
    try:
        data = json.loads(raw) if raw else {}
    except ValueError:
        raise Refusal("The body is not JSON.", 400) from None
    if not isinstance(data, dict):
        raise Refusal("The body is not a JSON object.", 400)
    return data


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b""
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _arguments(scope: Scope, body: bytes) -> tuple[Json, str | None, str | None]:
    """Return arguments, token and Slack's word for an unreadable body; JSON, form and query are all understood."""
    headers = dict(scope["headers"])
    args: Json = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
    args.pop("token", None)  # Slack takes no token in an address, where it would end up in logs
    bearer = headers.get(b"authorization", b"").decode("latin-1")
    token = unquote(bearer[7:]) if bearer.lower().startswith("bearer ") else None
    kind = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    if not body:
        return args, token, None
    if kind == "application/json":
        try:
            given = json.loads(body)
        except ValueError:
            return args, token, "invalid_json"
        if not isinstance(given, dict):
            return args, token, "json_not_object"
        return {**args, **{key: value for key, value in given.items() if key != "token"}}, token, None
    if kind == "application/x-www-form-urlencoded":
        try:
            form: Json = dict(parse_qsl(body.decode(), keep_blank_values=True))
        except ValueError:
            return args, token, "invalid_form_data"
        token = token or form.pop("token", None)
        form.pop("token", None)
        return {**args, **form}, token, None
    return args, token, "invalid_post_type"


def _kind_of(token: str | None) -> str | None:
    """Return the kind that a token claims to be, for the journal; never the token."""
    return {"xoxb": "bot", "xapp": "app"}.get(token.partition("-")[0], "unknown") if token else None


def _short(body: Json) -> Json:
    """Return an answer for the journal; long lists are counted, so that paging does not fill the memory."""
    return {
        key: f"{len(value)} items" if key in _LONG_LISTS and len(value) > 50 else value for key, value in body.items()
    }
