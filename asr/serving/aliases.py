"""Other servers' paths for files: whisper-asr-webservice (Bazarr) and whisper.cpp's server.

source: whisper-asr-webservice, app/webservice.py; whisper.cpp, examples/server.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import Any

from aiohttp import web

from asr import __version__
from asr.serving import openai
from asr.serving.errors import ApiError, dumps, invalid
from asr.serving.service import REQUEST_ID, SERVICE
from asr.serving.upload import received
from asr.transcript import WRITERS

_OUTPUTS = ("txt", "vtt", "srt", "tsv", "json")
_RAW_RATE = 16_000  # of samples without a header, 16 bits, one channel: encode=false


def routes() -> list[web.RouteDef]:
    return [
        web.post("/asr", webservice),
        web.post("/detect-language", detect),
        web.get("/status", status),
        web.post("/inference", inference),
    ]


async def webservice(request: web.Request) -> web.StreamResponse:
    """whisper-asr-webservice: options in the query, the text itself as the answer."""
    service, query = request.app[SERVICE], request.query
    output = query.get("output", "txt")
    if output not in _OUTPUTS:
        raise invalid(f"expected one of {', '.join(_OUTPUTS)}, got {output[:20]!r}", "output")
    if query.get("task", "transcribe") != "transcribe":
        raise invalid("this server transcribes, and does not translate", "task", "unsupported_value")
    language = openai.language({"language": [query.get("language", "")]}, service.settings)
    rate = _RAW_RATE if query.get("encode", "true").lower() in ("false", "0") else None
    async with received(request, service.settings, service.folder, "audio_file") as upload:
        service.metrics.count("asr_upload_bytes_total", upload.size)
        async with contextlib.aclosing(openai.recognised(request, upload, service.default, rate=rate)) as events:
            transcript = await openai.last_of(events)
    if output == "json":
        words = query.get("word_timestamps", "false").lower() in ("true", "1")
        asked = openai.Asked(service.default, language, "verbose_json", words=words)
        return await asyncio.to_thread(openai.answer, transcript, asked)
    return web.Response(text=await asyncio.to_thread(WRITERS[output], transcript, ""))


async def detect(request: web.Request) -> web.StreamResponse:
    """The language that the server's models speak, whatever is sent."""
    service = request.app[SERVICE]
    async with received(request, service.settings, service.folder, "audio_file"):
        code = service.language
    body = {"detected_language": openai.LANGUAGES.get(code, code), "language_code": code, "confidence": 1.0}
    return web.json_response(body, dumps=dumps)


async def status(request: web.Request) -> web.StreamResponse:
    return web.json_response({"version": __version__})


async def inference(request: web.Request) -> web.StreamResponse:
    """whisper.cpp's server: as OpenAI's, with errors as a sentence."""
    service = request.app[SERVICE]
    try:
        async with received(request, service.settings, service.folder) as upload:
            service.metrics.count("asr_upload_bytes_total", upload.size)
            known: dict[str, Any] = {
                name: upload.fields[name] for name in ("response_format", "language") if name in upload.fields
            }
            asked = replace(openai.asked(known, service), words=True)
            async with contextlib.aclosing(openai.recognised(request, upload, service.default)) as events:
                return await asyncio.to_thread(openai.answer, await openai.last_of(events), asked)
    except ApiError as error:
        told = service.tell(error, request[REQUEST_ID])
        return web.json_response({"error": str(told)}, status=told.status, headers=told.headers, dumps=dumps)
