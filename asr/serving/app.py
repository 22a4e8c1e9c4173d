"""The server: which paths lead where, what surrounds every answer, how it starts and ends."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import logging
import re
import secrets
import ssl
import sys
import time
import traceback
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any

from aiohttp import BadContentDispositionHeader, BadContentDispositionParam, WSCloseCode, web

from asr.serving import aliases, metrics, openai, page, realtime, stream, upload, vosk
from asr.serving.errors import ApiError, dumps
from asr.serving.service import AUDIO_S, REQUEST_ID, SERVICE, Service
from asr.serving.settings import ServeError, Settings
from asr.serving.wyoming import Wyoming

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MAX_LINE = 8190  # bytes of a header, and of the request's line
MAX_HEADERS = 64
MAX_CONNECTIONS = 512  # beyond which those go that ask nothing, the oldest first
# Of one connection so many bytes are read before the others have their turn, or fewer where that takes longer: what comes in
# chunks of a byte takes a thousand times as long as what does not.
_TURN, _LEAST_TURN, _TURN_S = 16 << 10, 1 << 10, 0.001
_ARENA_MAX = -8  # of mallopt, M_ARENA_MAX
_LAST_WORDS_S = 3.0  # for streams, when the server ends
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_log = logging.getLogger("asr.serving")
_silent = logging.Logger("no access log but our own", logging.CRITICAL)


def application(settings: Settings) -> web.Application:
    """All of it, to be run as it is or mounted in another application.

    Its runner should be made with handler_cancellation=True, or files go on that nobody waits for.
    """
    app = web.Application(middlewares=[_surround], client_max_size=settings.max_upload)
    app[SERVICE] = Service(settings)
    app.cleanup_ctx.append(_lifetime)
    app.on_response_prepare.append(_add_headers)
    app.on_shutdown.append(_close_sockets)
    routes = [
        *openai.routes(),
        *stream.routes(),
        *vosk.routes(),
        *realtime.routes(),
        *aliases.routes(),
        web.get("/healthz", _live),
        web.get("/readyz", _ready),
        web.get("/health", _ready),
    ]
    if settings.page:
        routes += page.routes()
    else:
        routes.append(web.get("/", vosk.talk))
    if settings.metrics:
        routes.append(web.get("/metrics", _metrics))
    for route in routes:
        app.router.add_route(route.method, route.path, route.handler, expect_handler=_expect)
    return app


async def run(settings: Settings, stop: asyncio.Event, ready: Callable[[str, Mapping[str, int]], None]) -> None:
    """Serve until `stop` is set; then what runs has `grace_s` to end.

    ready:  called with the server's address, and the port of each protocol, once it answers.
    raises: ServeError, and the errors of a model that does not load.
    """
    for kind in (BadContentDispositionHeader, BadContentDispositionParam):  # which would show what clients send
        warnings.simplefilter("ignore", kind)
    _allow_descriptors()
    _share_heaps()
    app = application(settings)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1)
    await runner.setup()  # the models too: the port opens when they are there
    service = app[SERVICE]
    doors: list[asyncio.Server] = []
    wyoming = Wyoming(service)
    try:
        tls = _tls(settings)
        wanted = {"http": settings.port} | ({} if settings.vosk is None else {"vosk": settings.vosk})
        for name, port in wanted.items():
            doors.append(await _listen(runner, settings, port, tls))
            service.ports[name] = doors[-1].sockets[0].getsockname()[1]
        if settings.wyoming is not None:
            with _taken(*settings.wyoming):
                await wyoming.start(*settings.wyoming)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        ready(f"http{'s' * (tls is not None)}://{host}:{service.ports['http']}/", service.ports)
        await stop.wait()
        service.end()
        for door in doors:
            door.close()
        await _settle(service)
    finally:
        await wyoming.stop()
        await runner.cleanup()


def _allow_descriptors() -> None:
    """Connections for as many as the system lets this process have, not the thousand that it begins with."""
    if sys.platform != "win32":
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _share_heaps() -> None:
    """Two heaps for all threads: glibc gives most threads one of their own, and what is free in one serves no other."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # of another C library
            ctypes.CDLL(None).mallopt(_ARENA_MAX, 2)


async def _listen(runner: web.AppRunner, settings: Settings, port: int, tls: ssl.SSLContext | None) -> asyncio.Server:
    """raises: ServeError if the port is taken."""
    loop, server = asyncio.get_running_loop(), runner.server
    assert server is not None

    def connection() -> _Connection:
        return _Connection(
            server,
            loop=loop,
            access_log=_silent,
            keepalive_timeout=settings.header_s,
            lingering_time=2,
            max_line_size=MAX_LINE,
            max_field_size=MAX_LINE,
            max_headers=MAX_HEADERS,
        )

    with _taken(settings.host, port):
        return await loop.create_server(connection, settings.host, port, ssl=tls)


@contextlib.contextmanager
def _taken(host: str, port: int) -> Iterator[None]:
    """raises: ServeError for what the system says of a port."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ServeError(f"{host}:{port}: cannot listen there: {reason}; choose another port") from None


async def _settle(service: Service) -> None:
    """Wait for what runs, but not for ever."""
    loop = asyncio.get_running_loop()
    until = loop.time() + service.settings.grace_s
    while (service.requests or any(service.streams.values())) and loop.time() < until:
        await asyncio.sleep(0.05)
    await service.pool.close()
    with contextlib.suppress(TimeoutError):  # what was said is told before the socket closes
        async with asyncio.timeout(_LAST_WORDS_S):
            await asyncio.gather(*(end() for end in service.sockets.values()), return_exceptions=True)
            while service.sockets:
                await asyncio.sleep(0.05)


class _Connection(web.RequestHandler):
    """A connection of which little is read at a time, so that others have their turn soon, and whose errors before any
    handler, such as of broken HTTP, are told like all others.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if hasattr(transport, "max_size"):  # of asyncio's own loops
            transport.max_size = _TURN
        assert self._manager is not None
        alive = [one for one in self._manager.connections if not one._force_close]
        if len(alive) > MAX_CONNECTIONS:
            idle = (one for one in alive if one is not self and not one._request_in_progress and not one._messages)
            if oldest := next(idle, None):
                oldest.force_close()

    def data_received(self, data: bytes) -> None:
        began = time.thread_time()  # what other processes do meanwhile is not this client's doing
        super().data_received(data)
        spent_s, transport = max(1e-6, time.thread_time() - began), self.transport
        if data and transport is not None and hasattr(transport, "max_size"):
            transport.max_size = max(_LEAST_TURN, min(_TURN, int(len(data) * _TURN_S / spent_s)))

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is on its way already")
        if status >= 500:
            _log.error("%s", "".join(traceback.format_tb(exc.__traceback__)) if exc else status)
            error = ApiError(500, "internal_error", "an error of the server")
        else:
            error = ApiError(400, "invalid_value", "expected HTTP/1.1 with headers of a usual size, got something else")
        error.headers["Connection"] = "close"
        return error.response()


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.tls_cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ServeError(f"{settings.tls_cert}: cannot be used with its key: {error.strerror or error}") from None
    return context


async def _lifetime(app: web.Application) -> AsyncIterator[None]:
    await app[SERVICE].start()
    yield
    await app[SERVICE].stop()


async def _close_sockets(app: web.Application) -> None:
    for socket in list(app[SERVICE].sockets):
        await socket.close(code=WSCloseCode.GOING_AWAY, message=b"the server is ending")


async def _expect(request: web.Request) -> web.StreamResponse | None:
    """A client that asks before it sends its body: it need not, if that is refused anyway."""
    service = request.app[SERVICE]
    try:
        service.guard.check(request, count=False)
        upload.check_length(request, service.settings)
    except ApiError as error:
        return service.tell(error, "-").response()
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0
    return None


@web.middleware
async def _surround(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Around every request: who may, errors as JSON, the log, counts."""
    service = request.app[SERVICE]
    loop = asyncio.get_running_loop()
    began, known = loop.time(), request.headers.get("x-request-id", "")
    request[REQUEST_ID] = known if _ID.fullmatch(known) else secrets.token_hex(8)
    resource = request.match_info.route.resource
    endpoint = resource.canonical if resource is not None else "other"
    status = 499  # the client is gone
    service.requests += 1
    try:
        response = await _respond(request, handler, service)
        status = response.status
        return response
    finally:
        service.requests -= 1
        spent = loop.time() - began
        service.metrics.count("asr_requests_total", endpoint=endpoint, status=str(status))
        if status != 101:
            service.metrics.observe("asr_request_seconds", spent, endpoint=endpoint)
        _log.info(
            "request",
            extra={
                "request": {
                    "method": request.method,
                    "path": request.rel_url.raw_path[:100],  # without line ends
                    "status": status,
                    "ms": round(spent * 1000),
                    "audio_s": round(request.get(AUDIO_S, 0.0), 3),
                    "id": request[REQUEST_ID],
                }
            },
        )


async def _respond(request: web.Request, handler: Handler, service: Service) -> web.StreamResponse:
    await asyncio.sleep(0)  # however many requests come at once, other clients have their turn between two
    try:
        try:
            service.guard.check(request)
        except ApiError as error:
            service.metrics.count("asr_rejected_total", reason=error.code)
            raise
        if request.method == "OPTIONS" and service.guard.allowed_origin(request):
            return web.Response(status=204)
        return await handler(request)
    except ApiError as error:
        return service.tell(error, request[REQUEST_ID]).response()
    except web.HTTPNotFound:
        return service.tell(ApiError(404, "unknown_url", f"there is no {request.path[:100]} here"), "").response()
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        message = f"expected {allowed}, got {request.method}"
        return service.tell(ApiError(405, "method_not_allowed", message, headers={"Allow": allowed}), "").response()
    except web.HTTPException as error:
        return service.tell(ApiError(error.status, "invalid_value", error.reason), "").response()
    except ConnectionError:
        raise
    except Exception as error:  # whose text may be of what is heard
        where = "".join(traceback.format_tb(error.__traceback__))
        bug = ApiError(500, "internal_error", f"{type(error).__name__}\n{where}")
        return service.tell(bug, request[REQUEST_ID]).response()


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    headers = response.headers
    headers["Server"] = "asr"
    headers["x-request-id"] = request.get(REQUEST_ID, "-")
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Cross-Origin-Resource-Policy"] = "same-origin"
    if origin := request.app[SERVICE].guard.allowed_origin(request):
        headers["Access-Control-Allow-Origin"] = origin
        headers["Access-Control-Allow-Headers"] = "Authorization, Content-Type, X-API-Key, x-request-id"
        headers["Access-Control-Allow-Methods"] = "GET, POST"
        headers["Access-Control-Expose-Headers"] = "x-request-id, Retry-After"
        headers["Vary"] = "Origin"
        headers["Cross-Origin-Resource-Policy"] = "cross-origin"


async def _live(request: web.Request) -> web.StreamResponse:
    return web.json_response({"status": "ok"})


async def _ready(request: web.Request) -> web.StreamResponse:
    """Whether a file sent now would be recognised: a worker has done so lately, or does so now."""
    service = request.app[SERVICE]
    wrong = await service.pool.ready()
    body: dict[str, Any] = {
        "status": wrong or "ok",
        "workers": service.settings.workers,
        "queue": service.pool.waiting,
    }
    return web.json_response(body, status=200 if wrong is None else 503, dumps=dumps)


async def _metrics(request: web.Request) -> web.StreamResponse:
    text = request.app[SERVICE].metrics.text()
    return web.Response(body=text.encode(), headers={"Content-Type": metrics.CONTENT_TYPE})


class Lines(logging.Formatter):
    """A server's log: a line a request, as text or as JSON. No text, no sound, no token is in it."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "request", None)
        if self._json:
            rest = fields or {"message": record.getMessage()}
            return json.dumps({"time": round(record.created, 3), "level": record.levelname.lower()} | rest)
        if fields is None:
            return record.getMessage()
        heard = f", {fields['audio_s']:.2f} s of audio" if fields["audio_s"] else ""
        return f"{fields['method']} {fields['path']} {fields['status']} {fields['ms']} ms{heard} {fields['id']}"
