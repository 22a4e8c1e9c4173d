"""Vosk's protocol for live streams, over a WebSocket: Jigasi, Asterisk, FreeSWITCH and others speak it.

Its clients read once for each message of sound that they send, so each is answered exactly once.

source: vosk-server, websocket/asr_server.py and client-samples.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import numpy as np
from aiohttp import WSMsgType, web

from asr.errors import AsrError
from asr.serving.errors import ApiError, dumps, json_object
from asr.serving.pump import Heard, listen, slot
from asr.serving.service import SERVICE, Service
from asr.serving.stream import CLOSE_CODES, LEAST_RATE, MOST_RATE, POLICY, opened, receive
from asr.stream import Final, Partial
from asr.transcript import Word

MAX_MESSAGE = 16 << 20  # bytes: some send a whole recording at once
MAX_PHRASES, MAX_PHRASE = 500, 200
MAX_TEXT = 256 << 10  # characters of JSON, for so many phrases
_EXPECTED = 'expected JSON such as {"eof": 1}'


def routes() -> list[web.RouteDef]:
    return [web.get("/vosk", talk)]


async def talk(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    async with slot(service, "vosk"), opened(request, MAX_MESSAGE) as socket:
        try:
            await _Conversation(service, socket).run()
        except AsrError as error:
            await _close(service, socket, ApiError(400, "invalid_value", str(error)))
        except ApiError as error:
            await _close(service, socket, error)
        except TimeoutError:
            await socket.close(code=POLICY, message=b"idle")
    return socket


async def _close(service: Service, socket: web.WebSocketResponse, error: ApiError) -> None:
    """The protocol has no errors but the reason of a close, of 123 bytes at most."""
    told = service.tell(error, "vosk")
    reason = str(told).encode()[:123].decode(errors="ignore")
    await socket.close(code=CLOSE_CODES.get(told.code, POLICY), message=reason.encode())


class _Conversation:
    def __init__(self, service: Service, socket: web.WebSocketResponse) -> None:
        self._service, self._socket = service, socket
        self._rate = service.settings.vosk_rate
        self._words, self._alternatives = True, False
        self._phrases: list[str] = []
        self._odd = b""  # half a sample
        self._partial = ""

    async def run(self) -> None:
        service = self._service
        message = await receive(self._socket, service.settings.first_s)
        while message.type == WSMsgType.TEXT and self._configure(message.data):
            message = await receive(self._socket, service.settings.idle_s)
        phrases = tuple(self._phrases)
        one = await listen(service, lambda: service.steered(service.default, phrases=phrases), self._rate)
        while message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
            if message.type == WSMsgType.BINARY:
                content = self._odd + message.data
                whole = len(content) & ~1
                self._odd = content[whole:]
                await self._answer(await one.hear(np.frombuffer(content[:whole], "<i2").astype(np.float32) / 32768))
            elif not self._configure(message.data):
                await self._answer(await one.finish(), final=True)
                if "eof" in json_object(message.data, _EXPECTED, most=MAX_TEXT):
                    await self._socket.close()
                    return
                await one.again()
            message = await receive(self._socket, service.settings.idle_s)
        raise ConnectionResetError("the client is gone")

    def _configure(self, text: str) -> bool:
        """Whether a message is settings, which are not answered; after the first sound, only those of the answers count."""
        config = json_object(text, _EXPECTED, most=MAX_TEXT).get("config")
        if not isinstance(config, dict):
            return False
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            self._rate = max(LEAST_RATE, min(MOST_RATE, round(float(config.get("sample_rate", self._rate)))))
        self._words = bool(config.get("words", self._words))
        most = config.get("max_alternatives", 0)
        self._alternatives = isinstance(most, int | float) and most > 0
        phrases = config.get("phrase_list")
        if isinstance(phrases, list):
            self._phrases = [one[:MAX_PHRASE] for one in phrases[:MAX_PHRASES] if isinstance(one, str) and one.strip()]
        return True

    async def _answer(self, events: Heard, *, final: bool = False) -> None:
        finals = [event for event in events if isinstance(event, Final)]
        for event in events:
            if isinstance(event, Partial):
                self._partial = f"{event.stable} {event.unstable}".strip()
            elif isinstance(event, Final):
                self._partial = ""
        if finals or final:
            await self._send(self._result(finals))
        else:
            await self._send({"partial": self._partial})

    def _result(self, finals: list[Final]) -> dict[str, Any]:
        text = " ".join(one.text for one in finals)
        words = [word for one in finals for word in one.words]
        found: dict[str, Any] = {"result": list(map(_word, words))} if self._words and words else {}
        found |= {"text": text}
        if self._alternatives:
            sure = float(np.mean([word.confidence for word in words])) if words else 1.0
            return {"alternatives": [{"confidence": round(sure, 6)} | found]}
        return found

    async def _send(self, body: dict[str, Any]) -> None:
        async with asyncio.timeout(self._service.settings.send_s):
            await self._socket.send_str(dumps(body))


def _word(word: Word) -> dict[str, Any]:
    times = {"start": round(float(word.start_s), 6), "end": round(float(word.end_s), 6)}
    return {"conf": round(float(word.confidence), 6), **times, "word": word.text}
