"""A request's body -> a file on disk and its fields, within limits of bytes, parts and time."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from aiohttp import BodyPartReader, MultipartReader, StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError

from asr.audio import SUFFIXES
from asr.serving.errors import ApiError, invalid
from asr.serving.settings import Settings

MAX_FIELD = 64 << 10  # bytes
MAX_PARTS = 64
MAX_LINES = 1000  # of boundaries and parts' headers; what is no file
_PIECE = 64 << 10
_WRITE = 1 << 20  # bytes that are written at a time
_LEAST = 128  # bytes
_TURN_S = 0.001  # of one body, before other clients have their turn


@dataclass
class Upload:
    """path: of the file, None without any; name: what the client calls it; fields: name without [] -> values."""

    path: Path | None = None
    name: str = ""
    size: int = 0
    fields: dict[str, list[str]] = field(default_factory=dict)


@asynccontextmanager
async def received(request: web.Request, settings: Settings, folder: Path, part: str = "file") -> AsyncIterator[Upload]:
    """The file in a part of a multipart form, and the other parts. The file is gone at the end of the block.

    raises: ApiError.
    """
    upload = Upload()
    try:
        check_length(request, settings)
        if shutil.disk_usage(folder).free < settings.least_free + (request.content_length or 0):
            raise ApiError(507, "insufficient_storage", "the server has no room for this file")
        if request.content_type != "multipart/form-data":
            raise ApiError(
                415, "unsupported_format", f"expected multipart/form-data with a part {part!r}, as curl -F {part}=@FILE"
            )
        try:
            async with _in_time(request, settings):
                form = MultipartReader(request.headers, _Body(request.content))  # type: ignore[arg-type]
                await _read(form, request, settings, folder, part, upload)
        except TimeoutError:
            raise ApiError(408, "upload_too_slow", "the file came too slowly; the server waits no longer") from None
        except (AssertionError, LookupError, ValueError, RuntimeError, HttpProcessingError, web.RequestPayloadError):
            raise invalid("expected a body as multipart/form-data (RFC 7578), got a broken one", "body") from None
        if upload.path is None:
            raise invalid(f"expected a file in the part {part!r}, got none", part, code="missing_required_parameter")
        yield upload
    finally:
        if upload.path is not None:
            upload.path.unlink(missing_ok=True)


def check_length(request: web.BaseRequest, settings: Settings) -> None:
    """Before anything of the body is read. raises: ApiError."""
    if (request.content_length or 0) > settings.max_upload:
        raise _too_large(settings)


def _too_large(settings: Settings) -> ApiError:
    size = settings.max_upload / (1 << 20)
    return ApiError(413, "request_too_large", f"expected at most {size:g} MiB; see --max-upload")


@asynccontextmanager
async def _in_time(request: web.Request, settings: Settings) -> AsyncIterator[None]:
    """raises: TimeoutError where the body within does not come fast enough."""
    loop = asyncio.get_running_loop()
    content, began = request.content, loop.time()

    async def watch(limit: asyncio.Timeout) -> None:
        bytes_before, since = -1, began
        while True:
            now = loop.time()
            if content.total_bytes != bytes_before:
                bytes_before, since = content.total_bytes, now
            slow = now - began > settings.slow_s and bytes_before < settings.least_rate * (now - began)
            if now - since > settings.body_s or slow:
                limit.reschedule(now)
                return
            await asyncio.sleep(min(1.0, settings.body_s / 4, settings.slow_s / 4))

    async with asyncio.timeout(None) as limit:
        watching = asyncio.create_task(watch(limit))
        try:
            yield
        finally:
            watching.cancel()


class _Body:
    """A body that keeps the server busy for a moment at a time, however much of it has come, and in however small chunks.

    Of its lines so many are read, and no more: of empty ones, there would be a million in a megabyte.
    """

    def __init__(self, content: StreamReader) -> None:
        self._content, self._count = content, 0
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        # Bytes that are read at a time, fewer where these took long: in chunks of one, each takes 7 us.
        self._most = _PIECE

    async def readline(self, **limits: int) -> bytes:
        self._count += 1
        if self._count > MAX_LINES:
            raise invalid(f"expected at most {MAX_LINES} lines of boundaries and headers", "body")
        await self._take_turns()
        return await self._content.readline(**limits)

    async def read(self, size: int) -> bytes:
        await self._take_turns()
        began = self._loop.time()
        piece = await self._content.read(min(size, self._most))
        spent_s = max(1e-6, self._loop.time() - began)
        self._most = max(_LEAST, min(_PIECE, int(len(piece) * _TURN_S / spent_s)))
        return piece

    async def _take_turns(self) -> None:
        if self._loop.time() - self._since > _TURN_S:
            await asyncio.sleep(0)
            self._since = self._loop.time()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._content, name)


async def _read(
    form: MultipartReader, request: web.Request, settings: Settings, folder: Path, wanted: str, upload: Upload
) -> None:
    count = 0
    while (part := await form.next()) is not None:
        count += 1
        if count > MAX_PARTS:
            raise invalid(f"expected at most {MAX_PARTS} parts", "body")
        if not isinstance(part, BodyPartReader):
            raise invalid("expected parts that are not multipart themselves", "body")
        if part.headers.get("Content-Transfer-Encoding", "binary").lower() not in ("binary", "7bit", "8bit"):
            raise invalid("expected parts as they are, without Content-Transfer-Encoding (RFC 7578, 4.7)", "body")
        name = (part.name or "").removesuffix("[]")
        if name != wanted:
            upload.fields.setdefault(name, []).append(await _text(part, name))
            continue
        if upload.path is not None:
            raise invalid(f"expected one part {wanted!r}, got two", wanted)
        upload.name = part.filename or ""
        suffix = PurePosixPath(upload.name).suffix.lower()
        path = folder / (secrets.token_hex(8) + (suffix if suffix in SUFFIXES else ""))
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123
            upload.path = path
            waiting = bytearray()
            while piece := await part.read_chunk(_PIECE):
                upload.size += len(piece)
                if request.content.total_bytes > settings.max_upload:
                    raise _too_large(settings)
                waiting += piece
                if len(waiting) >= _WRITE:
                    if request.content_length is None and shutil.disk_usage(folder).free < settings.least_free:
                        raise ApiError(507, "insufficient_storage", "the server has no room for this file")
                    await asyncio.to_thread(file.write, waiting)  # a disk may be slow
                    waiting = bytearray()
            await asyncio.to_thread(file.write, waiting)


async def _text(part: BodyPartReader, name: str) -> str:
    value = b""
    while piece := await part.read_chunk(_PIECE):
        value += piece
        if len(value) > MAX_FIELD:
            raise invalid(f"expected at most {MAX_FIELD >> 10} KiB in a field", name[:64])
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise invalid("expected a field as UTF-8", name[:64]) from None
