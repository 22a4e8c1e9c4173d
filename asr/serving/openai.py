"""OpenAI's interface for files: transcriptions in all formats, whole or as they are recognised, and the list of models.

source: openai-python 3.57.0, openai/types/audio.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from asr.recognizer import Heard
from asr.serving.errors import ApiError, dumps, invalid
from asr.serving.service import AUDIO_S, REQUEST_ID, SERVICE, Service
from asr.serving.settings import Settings
from asr.serving.upload import Upload, received
from asr.serving.worker import Task
from asr.transcript import Transcript, Word

FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
LANGUAGES = {
    "ar": "arabic", "bg": "bulgarian", "ca": "catalan", "cs": "czech", "cy": "welsh", "da": "danish", "de": "german",
    "el": "greek", "en": "english", "es": "spanish", "et": "estonian", "eu": "basque", "fa": "persian", "fi": "finnish",
    "fr": "french", "gl": "galician", "he": "hebrew", "hi": "hindi", "hr": "croatian", "hu": "hungarian",
    "id": "indonesian", "it": "italian", "ja": "japanese", "ko": "korean", "lt": "lithuanian", "lv": "latvian",
    "nl": "dutch", "no": "norwegian", "pl": "polish", "pt": "portuguese", "qu": "quechua", "ro": "romanian",
    "ru": "russian", "sk": "slovak", "sl": "slovenian", "sr": "serbian", "sv": "swedish", "sw": "swahili", "ta": "tamil",
    "th": "thai", "tr": "turkish", "uk": "ukrainian", "ur": "urdu", "vi": "vietnamese", "zh": "chinese",
}  # fmt: skip
MAX_KEYWORDS, MAX_KEYWORD = 200, 64
KEEP_ALIVE_S = (
    15.0  # between two signs of life, where there is nothing to send: proxies give up after less than a minute
)
_HEEDED = {
    *("model", "language", "languages", "keywords", "response_format", "temperature", "timestamp_granularities"),
    *("include", "stream"),
}
_IGNORED = {"prompt", "chunking_strategy"}  # without harm, as recordings are cut at their pauses anyway


def routes() -> list[web.RouteDef]:
    return [
        web.post("/v1/audio/transcriptions", transcribe),
        web.post("/v1/audio/translations", translate),
        web.get("/v1/models", models),
        web.get("/v1/models/{name}", model),
    ]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the fields of a request ask for."""

    model: str
    language: str
    response_format: str = "json"
    words: bool = False
    segments: bool = True
    logprobs: bool = False
    stream: bool = False
    keywords: tuple[str, ...] = ()


def asked(fields: Mapping[str, Sequence[str]], service: Service) -> Asked:
    """raises: ApiError naming the field."""

    def last(name: str, default: str = "") -> str:
        return fields[name][-1] if name in fields else default

    for name in fields:
        if name.startswith("known_speaker_"):
            raise invalid("who speaks is not told apart here", name, "unsupported_parameter")
        if name.partition("[")[0] not in _HEEDED | _IGNORED:
            service.metrics.count("asr_ignored_fields_total")
    kind = last("response_format", "json") or "json"
    if kind == "diarized_json":
        raise invalid("who speaks is not told apart here: ask for verbose_json", "response_format", "unsupported_value")
    if kind not in FORMATS:
        raise invalid(f"expected one of {', '.join(FORMATS)}, got {kind[:60]!r}", "response_format")
    try:
        temperature = float(last("temperature") or 0)
    except ValueError:
        temperature = math.nan
    if not 0 <= temperature <= 1:
        raise invalid(f"expected a number from 0 to 1, got {last('temperature')[:60]!r}", "temperature")
    granularities = fields.get("timestamp_granularities", ["segment"])
    if unknown := [one for one in granularities if one not in ("word", "segment")]:
        raise invalid(f"expected word or segment, got {unknown[0][:60]!r}", "timestamp_granularities")
    include = fields.get("include", [])
    if unknown := [one for one in include if one != "logprobs"]:
        raise invalid(f"expected logprobs, got {unknown[0][:60]!r}", "include", "unsupported_value")
    stream = last("stream", "false").lower()
    if stream not in ("true", "false", "1", "0", ""):
        raise invalid(f"expected true or false, got {stream[:60]!r}", "stream")
    keywords = tuple(word for word in fields.get("keywords", []) if word.strip())
    if len(keywords) > MAX_KEYWORDS or any(len(word) > MAX_KEYWORD for word in keywords):
        raise invalid(f"expected at most {MAX_KEYWORDS} of at most {MAX_KEYWORD} characters", "keywords")
    return Asked(
        service.model(last("model")),
        language(fields, service.settings),
        kind,
        words="word" in granularities and kind == "verbose_json",
        logprobs="logprobs" in include,
        stream=stream in ("true", "1"),
        keywords=keywords,
    )


def language(fields: Mapping[str, Sequence[str]], settings: Settings) -> str:
    """The ISO 639-1 code of what is spoken. raises: ApiError if it is another than the model's."""
    ours = settings.language
    wanted = [one for name in ("language", "languages") for one in fields.get(name, []) if one]
    codes = {name: code for code, name in LANGUAGES.items()}
    wanted = [codes.get(one.lower(), one.lower().replace("_", "-").partition("-")[0]) for one in wanted]
    if ours == "any":
        return wanted[0] if wanted else "en"
    if wanted and ours not in wanted:
        message = f"expected {ours}, the language of this server's models, got {wanted[0][:20]!r}"
        raise invalid(message, "language", "unsupported_language")
    return ours


async def transcribe(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    async with received(request, service.settings, service.folder) as upload:
        service.metrics.count("asr_upload_bytes_total", upload.size)
        wanted = asked(upload.fields, service)
        events = recognised(request, upload, wanted.model, wanted.keywords)
        async with contextlib.aclosing(events):
            if wanted.stream:
                return await _send_events(request, events, wanted)
            transcript = await last_of(events)
    return await asyncio.to_thread(answer, transcript, wanted)  # of hours, it takes a while


async def recognised(
    request: web.Request, upload: Upload, model: str, keywords: tuple[str, ...] = (), rate: int | None = None
) -> AsyncGenerator[Heard | Transcript]:
    """What a worker hears in an upload. raises: ApiError."""
    service = request.app[SERVICE]
    task = Task(upload.path, model, upload.name or "the file", rate, keywords, service.settings.max_audio_s)
    began = asyncio.get_running_loop().time()
    events = service.pool.run(task, request.remote or "", upload.size)
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, Transcript):
                request[AUDIO_S] = event.duration_s
                service.metrics.count("asr_audio_seconds_total", event.duration_s, kind="file")
                spent = asyncio.get_running_loop().time() - began
                service.metrics.count("asr_busy_seconds_total", spent, kind="file")
            yield event


async def last_of(events: AsyncIterator[Heard | Transcript]) -> Transcript:
    async for event in events:
        if isinstance(event, Transcript):
            return event
    raise AssertionError("a recording without a transcript")


def answer(transcript: Transcript, wanted: Asked) -> web.Response:
    """A transcript in the format that is wanted."""
    usage = {"type": "duration", "seconds": round(transcript.duration_s, 3)}
    match wanted.response_format:
        case "text":
            return web.Response(text=transcript.to_txt())
        case "srt":
            return web.Response(text=transcript.to_srt())
        case "vtt":
            return web.Response(text=transcript.to_vtt())
        case "verbose_json":
            body: dict[str, Any] = {
                "task": "transcribe",
                "language": LANGUAGES.get(wanted.language, wanted.language),
                "duration": round(transcript.duration_s, 3),
                "text": transcript.text,
                "segments": _segments(transcript),
            }
            if wanted.words:
                body["words"] = _words(transcript.words)
            return web.json_response(body | {"usage": usage}, dumps=dumps)
    body = {"text": transcript.text, "usage": usage}
    if wanted.logprobs:
        body["logprobs"] = logprobs(transcript.words)
    return web.json_response(body, dumps=dumps)


def logprobs(words: Sequence[Word]) -> list[dict[str, Any]]:
    """One entry a word, with the space before it."""
    return [
        {"token": f" {word.text}", "bytes": list(f" {word.text}".encode()), "logprob": round(_log(word), 4)}
        for word in words
    ]


def _words(words: Sequence[Word]) -> list[dict[str, Any]]:
    return [{"word": word.text, **_times(word), "confidence": round(float(word.confidence), 3)} for word in words]


def _segments(transcript: Transcript) -> list[dict[str, Any]]:
    """With all that clients expect of Whisper's, though some of it means nothing here."""
    segments = []
    for index, part in enumerate(transcript.segments):
        text = part.text.encode()
        segments.append(
            {
                "id": index,
                "seek": 0,
                **_times(part),
                "text": part.text,
                "tokens": [],
                "temperature": 0.0,
                "avg_logprob": round(sum(map(_log, part.words)) / len(part.words), 4),
                "compression_ratio": round(len(text) / len(zlib.compress(text)), 4),
                "no_speech_prob": 0.0,
            }
        )
    return segments


def _times(part: Any) -> dict[str, float]:
    return {"start": round(float(part.start_s), 3), "end": round(float(part.end_s), 3)}


def _log(word: Word) -> float:
    return math.log(max(1e-6, min(1.0, float(word.confidence))))


async def _send_events(
    request: web.Request, events: AsyncIterator[Heard | Transcript], wanted: Asked
) -> web.StreamResponse:
    """Server-sent events: the text of each utterance as it is recognised, then all of it."""
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    )
    await response.prepare(request)

    async def stay() -> None:
        while True:
            await asyncio.sleep(KEEP_ALIVE_S)
            await response.write(b": keep-alive\n\n")

    async def send(body: Mapping[str, Any]) -> None:
        async with asyncio.timeout(request.app[SERVICE].settings.send_s):
            await response.write(f"data: {dumps(body)}\n\n".encode())

    staying = asyncio.create_task(stay())
    try:
        async for event in events:
            words = event.words
            more = {"logprobs": logprobs(words)} if wanted.logprobs else {}
            more |= {"words": _words(words)} if wanted.words else {}  # which OpenAI's streams do not have
            if isinstance(event, Transcript):
                await send({"type": "transcript.text.done", "text": event.text} | more)
            elif words:
                text = "".join(f" {word.text}" for word in words)
                await send({"type": "transcript.text.delta", "delta": text} | more)
    except ApiError as error:
        # The status is sent already; clients read it from here.
        await send(request.app[SERVICE].tell(error, request[REQUEST_ID]).body)
    except TimeoutError:
        raise ConnectionResetError("the client takes nothing") from None
    finally:
        staying.cancel()
    await response.write_eof()
    return response


async def translate(request: web.Request) -> web.StreamResponse:
    raise ApiError(404, "unknown_url", "this server transcribes, and does not translate")


async def models(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    return web.json_response({"object": "list", "data": [_card(name) for name in service.models]}, dumps=dumps)


async def model(request: web.Request) -> web.StreamResponse:
    return web.json_response(_card(request.app[SERVICE].model(request.match_info["name"])), dumps=dumps)


def _card(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "local"}
