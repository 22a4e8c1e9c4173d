"""OpenAI's Realtime interface, for transcription alone: base64 in JSON, over a WebSocket.

Three dialects are in use and answered in kind: today's (`session.update` with `audio.input`), the beta's
(`transcription_session.update`), and the beta's flat `session.update`. What is known but not supported is echoed and changes
nothing, what is not known is dropped: some clients give up at any error.

source: openai-python 3.57.0, openai/types/realtime.
"""

from __future__ import annotations

import asyncio
import binascii
import math
import re
import secrets
import time
from functools import partial
from typing import Any

import numpy as np
from aiohttp import WSMsgType, web

from asr.errors import AsrError
from asr.pauses import Endpointing
from asr.serving.errors import MAX_JSON, ApiError, dumps, invalid, json_object
from asr.serving.openai import MAX_KEYWORD, MAX_KEYWORDS, logprobs
from asr.serving.pump import Heard, Live, slot
from asr.serving.service import SERVICE, Service
from asr.serving.stream import CLOSE_CODES, POLICY, opened, receive
from asr.stream import Final, Partial
from asr.transcript import Word

MAX_MESSAGE = 21 << 20  # bytes: 15 MiB of sound, as base64
LEAST_RATE, MOST_RATE = 8_000, 48_000  # Hz
_RATE = 24_000
_LEAST_S, _MOST_S = 0.2, 5.0  # of the silence that ends a turn
_LOGPROBS = "item.input_audio_transcription.logprobs"
_BLOCK = 64 << 10  # characters of base64 that are decoded in one go; of whole samples
_AUDIO = re.compile(r'"audio"\s*:\s*"')
_MAX_NAME = 100  # characters of what is echoed
# What of a session's settings is known; of these, what is not heeded is echoed all the same.
_KNOWN = {
    "transcription": ("model", "language", "delay"),  # and keywords
    "noise_reduction": ("type",),
    "turn_detection": (
        *("type", "silence_duration_ms", "threshold", "prefix_padding_ms", "eagerness", "idle_timeout_ms"),
        *("create_response", "interrupt_response"),
    ),
}
_BETA_FORMATS: dict[str, dict[str, Any]] = {
    "pcm16": {"type": "audio/pcm", "rate": _RATE},
    "g711_ulaw": {"type": "audio/pcmu"},
    "g711_alaw": {"type": "audio/pcma"},
}


def _ulaw() -> np.ndarray:
    """The sample of each byte (ITU-T G.711, mu-law), full scale +-1."""
    code = ~np.arange(256, dtype=np.uint8)
    size = ((((code & 15).astype(np.int32) << 3) + 132) << ((code >> 4) & 7)) - 132
    return (np.where(code & 128, -size, size) / 32768).astype(np.float32)


def _alaw() -> np.ndarray:
    """The sample of each byte (ITU-T G.711, A-law), full scale +-1."""
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    exponent, mantissa = ((code >> 4) & 7).astype(np.int32), (code & 15).astype(np.int32)
    size = np.where(exponent == 0, (mantissa << 4) + 8, ((mantissa << 4) + 264) << np.maximum(exponent - 1, 0))
    return (np.where(code & 128, size, -size) / 32768).astype(np.float32)


_TABLES = {"audio/pcmu": _ulaw(), "audio/pcma": _alaw()}


def routes() -> list[web.RouteDef]:
    return [web.get("/v1/realtime", talk)]


async def talk(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    async with slot(service, "realtime"), opened(request, MAX_MESSAGE, "realtime") as socket:
        try:
            await _Conversation(service, socket).run()
        except ApiError as error:
            told = service.tell(error, "realtime")
            await socket.close(code=CLOSE_CODES.get(told.code, POLICY), message=str(told).encode()[:120])
        except TimeoutError:
            await socket.close(code=POLICY, message=b"idle")
    return socket


class _Conversation:
    def __init__(self, service: Service, socket: web.WebSocketResponse) -> None:
        self._service, self._socket = service, socket
        self._id = f"sess_{secrets.token_hex(8)}"
        self._input: dict[str, Any] = {
            "format": _BETA_FORMATS["pcm16"],
            "noise_reduction": None,
            "transcription": {"model": service.default},
            "turn_detection": {"type": "server_vad", "silence_duration_ms": 800},
        }
        self._include: list[str] = []
        self._is_beta = False
        self._expires = int(time.time() + service.settings.max_stream_s)
        self._live: Live | None = None
        self._previous: str | None = None
        self._began_s = 0.0  # when the live one began to listen
        self._begin_item()

    def _begin_item(self) -> None:
        self._item = f"item_{secrets.token_hex(8)}"
        self._speaking = False
        self._words: list[Word] = []  # of the item
        self._sent: list[str] = []  # words that were told as deltas
        self._before = 0  # of those, how many are of utterances that have ended
        self._heard_s = 0.0

    @property
    def _turns(self) -> bool:
        """Whether the server finds out where a turn ends."""
        return self._input["turn_detection"] is not None

    async def run(self) -> None:
        await self._send("session.created", session=self._session())
        wait_s = self._service.settings.first_s
        while True:
            message = await receive(self._socket, wait_s)
            if message.type != WSMsgType.TEXT:
                raise ConnectionResetError("the client is gone, or sends what is no text")
            wait_s = self._service.settings.idle_s
            event: dict[str, Any] = {}
            try:
                event = _event(message.data)
                await self._heed(event)
            except AsrError as error:
                await self._fail(ApiError(400, "invalid_value", str(error)), event)
            except ApiError as error:
                if error.code == "audio_too_long":
                    raise
                await self._fail(error, event)

    async def _heed(self, event: dict[str, Any]) -> None:
        match event.get("type"):
            case "session.update" | "transcription_session.update":
                await self._update(event)
            case "input_audio_buffer.append":
                await self._append(event.get("audio"))
            case "input_audio_buffer.commit":
                await self._commit()
            case "input_audio_buffer.clear":
                if self._live is not None:
                    await self._begin_anew()
                self._begin_item()
                await self._send("input_audio_buffer.cleared")
            case kind:
                raise ApiError(
                    400, "unsupported_event", f"this server transcribes alone, and does not know {str(kind)[:60]!r}"
                )

    async def _update(self, event: dict[str, Any]) -> None:
        session = event.get("session")
        if not isinstance(session, dict):
            raise invalid("expected an object", "session")
        kind = "transcription_session.updated" if event["type"].startswith("transcription") else "session.updated"
        wanted: dict[str, Any] = {}
        if "input_audio_format" in session or kind.startswith("transcription"):
            self._is_beta = True
            renamed = {"input_audio_transcription": "transcription", "input_audio_noise_reduction": "noise_reduction"}
            wanted = {renamed.get(str(name), str(name)): value for name, value in session.items()}
            if "input_audio_format" in session:
                wanted["format"] = _BETA_FORMATS.get(str(session["input_audio_format"]))
        else:
            audio = session.get("audio")
            given = audio.get("input") if isinstance(audio, dict) else None
            wanted = given if isinstance(given, dict) else {}
        now = self._input | {name: _known(name, value) for name, value in wanted.items() if name in self._input}
        changed = self._live is not None and now != self._input
        if changed:
            await self._finish()
        self._input = now
        if changed:
            await self._begin_anew()
        if isinstance(session.get("include"), list):
            self._include = [_LOGPROBS] if _LOGPROBS in session["include"] else []
        await self._send(kind, session=self._session())

    def _session(self) -> dict[str, Any]:
        head = {"id": self._id, "object": "realtime.transcription_session", "expires_at": self._expires}
        if self._is_beta:
            names = {value["type"]: name for name, value in _BETA_FORMATS.items()}
            return head | {
                "input_audio_format": names[self._input["format"]["type"]],
                "input_audio_transcription": self._input["transcription"],
                "input_audio_noise_reduction": self._input["noise_reduction"],
                "turn_detection": self._input["turn_detection"],
                "include": self._include,
            }
        return head | {"type": "transcription", "audio": {"input": self._input}, "include": self._include}

    async def _begin(self, live: Live) -> None:
        """Listen as the session is now."""
        wanted = self._input["transcription"] or {}
        name = wanted.get("model")
        model = name if name in self._service.models else self._service.default
        keywords = tuple(wanted.get("keywords", ()))
        recognizer = partial(self._service.steered, model, hotwords=keywords)
        await live.begin(recognizer, _rate(self._input["format"]), endpointing=_endpointing(self._input))

    async def _begin_anew(self) -> None:
        assert self._live is not None
        self._began_s += self._live.time_s
        await self._begin(self._live)

    async def _finish(self) -> None:
        assert self._live is not None
        await self._tell(await self._live.finish())

    async def _append(self, audio: object) -> None:
        """Hear more, decoded block by block. What comes before a fault in it counts."""
        if not isinstance(audio, str) or len(audio) % 4:
            raise invalid("expected sound as base64", "audio")
        if self._live is None:
            live = Live(self._service)
            await self._begin(live)
            self._live = live
        for at in range(0, len(audio), _BLOCK):
            samples = self._samples(audio[at : at + _BLOCK])
            self._heard_s += len(samples) / _rate(self._input["format"])
            await self._tell(await self._live.hear(samples))

    def _samples(self, block: str) -> np.ndarray:
        try:
            content = binascii.a2b_base64(block, strict_mode=True)
        except ValueError:
            raise invalid("expected sound as base64", "audio") from None
        table = _TABLES.get(self._input["format"]["type"])
        if table is not None:
            found: np.ndarray = table[np.frombuffer(content, np.uint8)]
            return found
        if len(content) % 2:
            raise invalid("expected samples of 2 bytes", "audio")
        return np.frombuffer(content, "<i2").astype(np.float32) / 32768

    async def _commit(self) -> None:
        """The item ends here, whatever is said after it."""
        if self._live is None or not self._heard_s:
            raise ApiError(400, "input_audio_buffer_commit_empty", "expected sound before the commit, got none")
        item = self._item
        await self._finish()
        if self._item == item:
            await self._complete()
        await self._begin_anew()
        self._begin_item()

    async def _tell(self, events: Heard) -> None:
        for event in events:
            match event:
                case Partial(stable, unstable, time_s):
                    if stable or unstable:
                        await self._start_turn(time_s)
                    await self._add(stable.split()[len(self._sent) - self._before :])
                case Final():
                    await self._start_turn(event.start_s)
                    # The rest, where it goes on as it was told.
                    told = self._sent[self._before :]
                    words = event.text.split()
                    await self._add(words[len(told) :] if words[: len(told)] == told else [])
                    self._words += event.words
                    self._before = len(self._sent)
                    if self._turns:
                        await self._end_turn(event.end_s)
                case _:
                    self._before = len(self._sent)
                    if self._turns and self._speaking:  # of what turned out to be no word
                        await self._end_turn(getattr(event, "time_s", 0.0))

    async def _start_turn(self, time_s: float) -> None:
        if self._turns and not self._speaking:
            self._speaking = True
            await self._send("input_audio_buffer.speech_started", item_id=self._item, audio_start_ms=self._ms(time_s))

    async def _end_turn(self, time_s: float) -> None:
        await self._send("input_audio_buffer.speech_stopped", item_id=self._item, audio_end_ms=self._ms(time_s))
        await self._complete()
        self._begin_item()

    def _ms(self, time_s: float) -> int:
        return round((self._began_s + time_s) * 1000)

    async def _add(self, words: list[str]) -> None:
        """Words that stay, as what is more of the item's text."""
        if words:
            delta = f"{' ' * bool(self._sent)}{' '.join(words)}"
            self._sent += words
            await self._send(
                "conversation.item.input_audio_transcription.delta", item_id=self._item, content_index=0, delta=delta
            )

    async def _complete(self) -> None:
        await self._send("input_audio_buffer.committed", item_id=self._item, previous_item_id=self._previous)
        item = {
            "id": self._item,
            "object": "realtime.item",
            "type": "message",
            "role": "user",
            "status": "completed",
            "content": [{"type": "input_audio", "transcript": None}],
        }
        for kind in ["created"] if self._is_beta else ["added", "done"]:
            await self._send(f"conversation.item.{kind}", item=item, previous_item_id=self._previous)
        more = {"logprobs": logprobs(self._words)} if _LOGPROBS in self._include else {}
        await self._send(
            "conversation.item.input_audio_transcription.completed",
            item_id=self._item,
            content_index=0,
            transcript=" ".join(word.text for word in self._words),
            usage={"type": "duration", "seconds": round(self._heard_s, 3)},
            **more,
        )
        self._previous = self._item

    async def _fail(self, error: ApiError, event: dict[str, Any]) -> None:
        told = self._service.tell(error, "realtime")
        given = event.get("event_id")
        body = told.body["error"] | {"event_id": given if isinstance(given, str) and _is_plain(given) else None}
        await self._send("error", error=body)

    async def _send(self, kind: str, **fields: Any) -> None:
        event = {"type": kind, "event_id": f"event_{secrets.token_hex(8)}"} | fields
        async with asyncio.timeout(self._service.settings.send_s):
            await self._socket.send_str(dumps(event))


def _event(text: str) -> dict[str, Any]:
    """A client's event. Of a long one the sound is cut out before the rest is parsed. raises: ApiError."""
    sound, expected = None, "expected an object of JSON with a type"
    if len(text) > MAX_JSON and (found := _AUDIO.search(text, 0, MAX_JSON)):
        begin = found.end()
        end = text.find('"', begin)
        if end >= 0:
            sound, text = text[begin:end].replace("\\/", "/"), text[:begin] + text[end:]
    event = json_object(text, expected, "type")
    if sound is not None:
        if event.get("audio") != "":
            raise invalid(expected, "type")
        event["audio"] = sound
    return event


def _known(name: str, value: object) -> dict[str, Any] | None:
    """What is known of one of a session's settings. raises: ApiError if it has no meaning."""
    if name == "format":
        return _format(value)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise invalid("expected an object or null", f"session.audio.input.{name}")
    known = {field: value[field] for field in _KNOWN[name] if _is_plain(value.get(field))}
    if name == "transcription" and isinstance(words := value.get("keywords"), list):
        known["keywords"] = [word for word in words if _is_keyword(word)][:MAX_KEYWORDS]
    return known


def _is_keyword(word: object) -> bool:
    return isinstance(word, str) and _is_plain(word) and bool(word.strip()) and len(word) <= MAX_KEYWORD


def _is_plain(value: object) -> bool:
    """Whether a value is one that can be echoed: a name, a number or a flag."""
    if isinstance(value, str):
        return len(value) <= _MAX_NAME and value.isprintable()
    return isinstance(value, int | float) and abs(value) <= 1e9  # nor NaN


def _format(value: object) -> dict[str, Any]:
    kind, rate = (value.get("type"), value.get("rate", _RATE)) if isinstance(value, dict) else (None, None)
    if isinstance(kind, str) and kind in _TABLES:
        return {"type": kind}
    if kind == "audio/pcm" and isinstance(rate, int) and LEAST_RATE <= rate <= MOST_RATE:
        return {"type": kind, "rate": rate}
    raise invalid(
        "expected audio/pcm with a rate from 8000 to 48000, audio/pcmu or audio/pcma", "session.audio.input.format"
    )


def _rate(kind: dict[str, Any]) -> int:
    return 8000 if kind["type"] in _TABLES else int(kind["rate"])


def _endpointing(wanted: dict[str, Any]) -> Endpointing:
    turns = wanted["turn_detection"] or {}
    ms = turns.get("silence_duration_ms")
    if not isinstance(ms, int | float) or not math.isfinite(ms):
        return Endpointing()
    pause = max(_LEAST_S, min(_MOST_S, ms / 1000))
    return Endpointing(pause=pause, long_pause=min(Endpointing().long_pause, pause))
