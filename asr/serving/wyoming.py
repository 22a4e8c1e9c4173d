"""Wyoming, the protocol of Home Assistant's voice services: JSON lines with binary payloads, over TCP.

It has no authentication. One recording a connection: audio-start, audio-chunk ..., audio-stop, and exactly one transcript,
whatever happens, since clients wait for it.

source: the package wyoming 1.10.2.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import numpy as np

from asr import __version__
from asr.errors import AsrError
from asr.serving.errors import ApiError, dumps, invalid, json_object, overloaded
from asr.serving.pump import Heard, Live, listen, slot
from asr.serving.service import Service
from asr.serving.stream import LEAST_RATE, MOST_RATE
from asr.stream import Final

MAX_LINE = 64 << 10  # bytes
MAX_DATA = 256 << 10
MAX_PAYLOAD = 1 << 20
MAX_CLIENTS = 64  # at a time
IDLE_S = 30.0
MAX_WORDS = 200
_ATTRIBUTION = {"name": "asr", "url": ""}


class Wyoming:
    """Listens for clients, of which each is one task."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._talking: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> None:
        """raises: OSError."""
        self._server = await asyncio.start_server(self._talk, host, port, limit=MAX_LINE)
        self._service.ports["wyoming"] = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._talking:
            task.cancel()
        await asyncio.gather(*self._talking, return_exceptions=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._talking) >= MAX_CLIENTS:
            self._service.tell(overloaded(10), "wyoming")
            writer.close()
            return
        self._talking.add(task)
        try:
            # What is no protocol, too slow or gone ends its connection alone.
            with contextlib.suppress(ConnectionError, TimeoutError, asyncio.IncompleteReadError, ApiError):
                await _Conversation(self._service, reader, writer).run()
        finally:
            self._talking.discard(task)
            writer.close()


class _Conversation:
    def __init__(self, service: Service, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._service, self._reader, self._writer = service, reader, writer
        self._model = service.default
        self._words: list[str] = []
        self._said: list[str] = []

    async def run(self) -> None:
        while (event := await self._read()) is not None:
            kind, data, _ = event
            match kind:
                case "describe":
                    await self._send("info", _info(self._service))
                case "ping":
                    await self._send("pong", {"text": str(data.get("text", ""))[:1000]})
                case "transcribe":
                    self._take_wishes(data)
                case "audio-start":
                    await self._transcribe(data)
                    return
                case "audio-stop":  # of nothing
                    await self._send("transcript", {"text": "", "language": self._service.language})
                    return

    def _take_wishes(self, data: dict[str, Any]) -> None:
        if data.get("name") in self._service.models:
            self._model = data["name"]
        lists = [data.get(name) for name in ("transcript_names", "transcript_terms")]
        words = [word for one in lists if isinstance(one, list) for word in one if isinstance(word, str)]
        self._words = [word[:64] for word in words[:MAX_WORDS]]

    async def _transcribe(self, data: dict[str, Any]) -> None:
        """The recording that begins, to its transcript."""
        failed = False
        try:
            async with slot(self._service, "wyoming"):
                await self._hear(data)
        except (ApiError, AsrError) as error:
            failed = True
            known = error if isinstance(error, ApiError) else ApiError(400, "invalid_audio", str(error))
            told = self._service.tell(known, "wyoming")
            await self._send("error", {"text": str(told), "code": told.code})
        text = " ".join(self._said)
        await self._send("transcript", {"text": text, "language": self._service.language})
        await self._send("transcript-stop", {})
        if failed:
            # A connection that is closed while its client still sends may lose what it was sent.
            self._writer.write_eof()
            async with asyncio.timeout(IDLE_S):
                while await self._reader.read(MAX_LINE):
                    pass

    async def _hear(self, data: dict[str, Any]) -> None:
        rate = _number(data, "rate", LEAST_RATE, MOST_RATE)
        words = tuple(self._words)
        one: Live = await listen(self._service, lambda: self._service.steered(self._model, hotwords=words), rate)
        await self._send("transcript-start", {"language": self._service.language})
        while (event := await self._read()) is not None:
            kind, data, payload = event
            if kind == "audio-chunk":
                if _number(data, "rate", LEAST_RATE, MOST_RATE) != rate:
                    raise invalid("expected chunks of one rate", "rate")
                await self._tell(await one.hear(_samples(data, payload)))
            elif kind == "audio-stop":
                break
        await self._tell(await one.finish())

    async def _tell(self, events: Heard) -> None:
        """Each utterance as soon as it stays."""
        for event in events:
            if isinstance(event, Final):
                await self._send("transcript-chunk", {"text": f" {event.text}" if self._said else event.text})
                self._said.append(event.text)

    async def _read(self) -> tuple[str, dict[str, Any], bytes] | None:
        """Type, data and payload of the next event; None at the end. raises: ApiError for what is none."""
        await asyncio.sleep(0)  # however many come at once, other clients have their turn between two
        async with asyncio.timeout(IDLE_S):
            try:
                line = await self._reader.readline()
            except ValueError:
                raise invalid("expected a line of at most 64 KiB", "line") from None
            if not line:
                return None
            head = json_object(line, "expected a JSON line with a type", "line", MAX_LINE)
            kind, data = head.get("type"), head.get("data") or {}
            if not isinstance(kind, str) or not isinstance(data, dict):
                raise invalid("expected a JSON line with a type", "line")
            parts = []
            for name, most in (("data_length", MAX_DATA), ("payload_length", MAX_PAYLOAD)):
                size = head.get(name) or 0
                if not isinstance(size, int) or not 0 <= size <= most:
                    raise invalid(f"expected at most {most >> 10} KiB", name)
                parts.append(await self._reader.readexactly(size))
        more, payload = parts
        if more:
            data |= json_object(more, "expected JSON as data", "data", MAX_DATA)
        return kind, data, payload

    async def _send(self, kind: str, data: dict[str, Any]) -> None:
        content = dumps(data).encode()
        self._writer.write(dumps({"type": kind, "version": __version__, "data_length": len(content)}).encode() + b"\n")
        self._writer.write(content)
        async with asyncio.timeout(self._service.settings.send_s):
            await self._writer.drain()


def _info(service: Service) -> dict[str, Any]:
    models = [
        {
            "name": name,
            "description": str(one.card.get("description", name)),
            "attribution": _ATTRIBUTION,
            "installed": True,
            "version": str(one.card.get("version", __version__)),
            "languages": [service.language],
        }
        for name, one in service.recognizers.items()
    ]
    program = {
        "name": "asr",
        "description": "Speech recognition, offline",
        "attribution": _ATTRIBUTION,
        "installed": True,
        "version": __version__,
        "models": models,
        "supports_transcript_streaming": True,
        "requires_external_vad": False,
    }
    return {"asr": [program], "tts": [], "handle": [], "intent": [], "wake": [], "mic": [], "snd": []}


def _number(data: dict[str, Any], name: str, low: int, high: int) -> int:
    value = data.get(name)
    if not isinstance(value, int) or not low <= value <= high:
        raise invalid(f"expected a whole number from {low} to {high}", name)
    return value


def _samples(data: dict[str, Any], payload: bytes) -> np.ndarray:
    """A chunk's samples, of all channels mixed, (n,) float32."""
    width, channels = _number(data, "width", 1, 4), _number(data, "channels", 1, 64)
    if len(payload) % (width * channels):
        raise invalid(f"expected samples of {width} bytes in {channels} channels", "payload")
    padded = np.zeros((len(payload) // width, 4), np.uint8)
    padded[:, 4 - width :] = np.frombuffer(payload, np.uint8).reshape(-1, width)
    if width == 1:
        padded ^= np.array([0, 0, 0, 0x80], np.uint8)  # of 8 bits, they are unsigned
    values = padded.reshape(-1).view("<i4").astype(np.float32) / (1 << 31)
    mixed: np.ndarray = values.reshape(-1, channels).mean(axis=1)
    return mixed
