"""Our own protocol for live streams: samples in, JSON out, over a WebSocket; see docs/serve.md."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import numpy as np
from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from asr.errors import AsrError
from asr.serving.errors import ApiError, dumps, invalid, json_object
from asr.serving.pump import Live, Sound, listen, slot
from asr.serving.service import SERVICE, Service
from asr.session import Trouble
from asr.stream import Event, Final, Partial

PROTOCOL = "asr.v1"
MAX_MESSAGE = 1 << 20  # bytes
LEAST_RATE, MOST_RATE = 4_000, 192_000  # Hz
_FORMATS: dict[str, np.dtype[Any]] = {"s16": np.dtype("<i2"), "f32": np.dtype("<f4")}
_LAG_S = 1.0  # a stream that is further behind is told so, each second
# How a socket is closed for an error (RFC 6455, section 7.4.1).
CLOSE_CODES = {
    "shutting_down": 1001,
    "invalid_audio": 1003,
    "invalid_value": 1003,
    "overloaded": 1013,
    "internal_error": 1011,
}
POLICY = 1008


def routes() -> list[web.RouteDef]:
    return [web.get("/v1/stream", stream)]


async def stream(request: web.Request) -> web.StreamResponse:
    service, query = request.app[SERVICE], request.query
    rate = int(number(query, "rate", 16000, LEAST_RATE, MOST_RATE))
    kind = query.get("format", "s16")
    if kind not in _FORMATS:
        raise invalid(f"expected one of {', '.join(_FORMATS)}, got {kind[:20]!r}", "format")
    options = {name: number(query, name, 0, 0, 30) for name in ("chunk_s", "right_context_s") if name in query}
    name = service.model(query.get("model"))
    recognizer = service.recognizers[name]
    async with slot(service, "native"):
        try:
            one = await listen(service, lambda: recognizer, rate, **options)
        except AsrError as error:
            raise invalid(str(error), "chunk_s") from None
        sound = Sound(rate)
        async with opened(request, MAX_MESSAGE, PROTOCOL, end=sound.end) as socket:
            await _Conversation(service, socket, one, sound, rate, _FORMATS[kind], name).run()
    return socket


def number(query: Mapping[str, str], name: str, default: float, low: float, high: float) -> float:
    """A number of the query. raises: ApiError."""
    try:
        value = float(query.get(name, default))
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise invalid(f"expected a number from {low:g} to {high:g}, got {query[name][:20]!r}", name)
    return value


@asynccontextmanager
async def opened(
    request: web.Request, max_message: int, *protocols: str, end: Callable[[], Coroutine[Any, Any, None]] | None = None
) -> AsyncIterator[web.WebSocketResponse]:
    """The socket that a request asks for.

    end:    what makes the conversation end, where it is to be more than to close the socket.
    raises: ApiError if it asks for none.
    """
    service = request.app[SERVICE]
    socket = web.WebSocketResponse(
        protocols=protocols,
        max_msg_size=max_message,
        compress=False,
        heartbeat=service.settings.ping_s,
        autoping=False,
        timeout=2.0,
    )
    if not socket.can_prepare(request):
        raise invalid("expected a WebSocket, got a plain request", "upgrade")
    await socket.prepare(request)
    service.sockets[socket] = end or partial(socket.close, code=WSCloseCode.GOING_AWAY)
    try:
        yield socket
    finally:
        del service.sockets[socket]


async def receive(socket: web.WebSocketResponse, wait_s: float) -> WSMessage:
    """A client's next message. raises: TimeoutError if none comes; pings are none."""
    async with asyncio.timeout(wait_s):
        while True:
            await asyncio.sleep(0)  # however many come at once, other clients have their turn between two
            message = await socket.receive()
            if message.type == WSMsgType.PING:
                await socket.pong(message.data)
            elif message.type != WSMsgType.PONG:
                return message


class _Conversation:
    def __init__(
        self,
        service: Service,
        socket: web.WebSocketResponse,
        one: Live,
        sound: Sound,
        rate: int,
        kind: np.dtype[Any],
        model: str,
    ) -> None:
        self._service, self._socket, self._live, self._sound = service, socket, one, sound
        self._rate, self._kind, self._model = rate, kind, model
        self._told = 0.0  # when the lag was told last

    async def run(self) -> None:
        reading = asyncio.create_task(self._read())
        try:
            await self._send(
                type="ready", model=self._model, rate=self._rate, max_s=self._service.settings.max_stream_s
            )
            while (taken := await self._sound.take()) is not None:
                for event in await self._live.hear(*taken):
                    await self._tell(event)
                await self._tell_lag()
            for event in await self._live.finish():
                await self._tell(event)
            await self._send(type="done", time_s=round(self._live.time_s, 3))
            await self._socket.close(code=1001 if self._service.ending else 1000)
        except AsrError as error:
            await self._fail(ApiError(400, "invalid_audio", str(error)))
        except ApiError as error:
            await self._fail(error)
        except TimeoutError:
            await self._socket.close(code=POLICY, message=b"the client takes nothing")
        finally:
            reading.cancel()

    async def _read(self) -> None:
        settings = self._service.settings
        wait_s = settings.first_s
        try:
            while await self._heard(await receive(self._socket, wait_s)):
                wait_s = settings.idle_s
            await self._sound.end()
        except TimeoutError:
            await self._sound.end(ApiError(408, "idle", f"expected sound within {wait_s:g} s, got nothing"))
        except (ApiError, ConnectionError) as error:
            await self._sound.end(error)

    async def _heard(self, message: Any) -> bool:
        """Whether more may come."""
        if message.type == WSMsgType.BINARY:
            if len(message.data) % self._kind.itemsize:
                size = self._kind.itemsize
                raise invalid(f"expected samples of {size} bytes, got {len(message.data)} bytes", "samples")
            samples = np.frombuffer(message.data, self._kind)
            scaled = samples.astype(np.float32) / 32768 if self._kind.kind == "i" else samples
            await self._sound.put(scaled)
            return True
        if message.type != WSMsgType.TEXT:
            raise ConnectionResetError("the client is gone")
        said = json_object(message.data, 'expected JSON such as {"type": "end"}', "type")
        if said.get("type") == "end":
            return False
        lost, most = said.get("samples", 0), self._service.settings.max_stream_s * self._rate
        if said.get("type") != "lost" or not isinstance(lost, int) or not 0 <= lost <= most:
            raise invalid('expected {"type": "end"} or {"type": "lost", "samples": N}', "type")
        await self._sound.put(np.zeros(0, np.float32), lost)
        return True

    async def _tell(self, event: Event | Trouble) -> None:
        match event:
            case Partial(stable, unstable, time_s):
                await self._send(type="partial", stable=stable, unstable=unstable, time_s=round(time_s, 3))
            case Final():
                words = [
                    {
                        "text": word.text,
                        "start_s": round(float(word.start_s), 3),
                        "end_s": round(float(word.end_s), 3),
                        "confidence": round(float(word.confidence), 3),
                    }
                    for word in event.words
                ]
                times = {"start_s": round(event.start_s, 3), "end_s": round(event.end_s, 3)}
                await self._send(type="final", text=event.text, **times, words=words)
            case Trouble():
                pass  # that sound is lost, which the client has told us
            case _:
                await self._send(type="endpoint", time_s=round(event.time_s, 3), why=event.why)

    async def _tell_lag(self) -> None:
        lag_s, now = self._sound.count / self._rate, asyncio.get_running_loop().time()
        self._service.metrics.observe("asr_stream_lag_seconds", lag_s)
        if lag_s > _LAG_S and now - self._told >= 1:
            self._told = now
            await self._send(type="status", lag_s=round(lag_s, 2))

    async def _send(self, **event: Any) -> None:
        async with asyncio.timeout(self._service.settings.send_s):
            await self._socket.send_str(dumps(event))

    async def _fail(self, error: ApiError) -> None:
        told = self._service.tell(error, "stream")
        await self._send(type="error", code=told.code, message=str(told))
        await self._socket.close(code=CLOSE_CODES.get(told.code, POLICY))
