"""What all handlers of a server share."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from aiohttp import web

from asr.files import cores
from asr.models import find_model
from asr.recognizer import Recognizer
from asr.serving.errors import ApiError, overloaded, shutting_down
from asr.serving.guard import Guard
from asr.serving.metrics import Metrics
from asr.serving.pool import Pool
from asr.serving.settings import ServeError, Settings
from asr.serving.steering import Steered

# Names under which other programs ask for a recogniser.
ALIASES = (
    *("default", "whisper-1", "gpt-transcribe", "gpt-4o-transcribe", "gpt-4o-mini-transcribe"),
    *("gpt-realtime-whisper", "gpt-live-transcribe"),
)
_FOLDER = re.compile(r"asr-serve-(\d+)-\w+")
_log = logging.getLogger("asr.serving")


class Service:
    """models: name -> file, the default first; recognizers: those of this process, for streams; steered: the same, steered;
    streams: protocol -> how many there are; sockets: the open ones, each with what ends it in peace."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.guard = Guard(settings)
        self.models: dict[str, str] = {}
        for model in settings.models:
            path = find_model(model)
            if path.stem in self.models:
                raise ServeError(f"expected models of different names, got two called {path.stem!r}")
            self.models[path.stem] = model
        self.default = next(iter(self.models))
        self._aliases = {*ALIASES, *settings.aliases}
        self.pool = Pool(settings, self.models, self.metrics)
        self.recognizers: dict[str, Recognizer] = {}
        self.threads = ThreadPoolExecutor(cores(), "stream")
        self.streams: dict[str, int] = {}
        self.sockets: dict[web.WebSocketResponse, Callable[[], Coroutine[Any, Any, object]]] = {}
        self.ports: dict[str, int] = {}  # that are listened at, by protocol
        self.requests = 0  # that are being answered
        self.ending = False
        self.folder = Path()
        self.metrics.gauges |= {
            "asr_streams": lambda: {(("protocol", name),): count for name, count in self.streams.items()},
            "asr_temp_bytes": lambda: {(): sum(path.stat().st_size for path in self.folder.iterdir())},
            "asr_model_info": lambda: {
                (
                    ("name", name),
                    ("lm", one.lm_path.name if one.lm_path else "none"),
                    ("version", str(one.card.get("version"))),
                ): 1
                for name, one in self.recognizers.items()
            },
        }

    async def start(self) -> None:
        """raises: AsrError, if a model does not load; nothing is left then."""
        self.folder = _make_folder(self.settings.temp)
        try:
            # Streams are recognised in this process.
            loading = asyncio.to_thread(
                lambda: {name: Recognizer(model, **self.settings.steering) for name, model in self.models.items()}
            )
            self.recognizers, _ = await asyncio.gather(loading, self.pool.start())
            self.steered = Steered(self.recognizers)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        await self.pool.close()
        self.threads.shutdown(wait=False, cancel_futures=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def end(self) -> None:
        """Nothing new from here on; what runs goes on."""
        self.ending = True
        self.pool.end()

    def model(self, name: str | None) -> str:
        """The model that a client's name stands for. raises: ApiError."""
        if name in self.models:
            return name
        if not name or name in self._aliases:
            return self.default
        known = ", ".join(self.models)
        raise ApiError(404, "model_not_found", f"expected for model one of {known}, got {name[:100]!r}", "model")

    def tell(self, error: ApiError, request_id: str) -> ApiError:
        """Count an error; of one of our own the client learns no more than where the log has it."""
        self.metrics.count("asr_errors_total", code=error.code)
        _log.debug("%s: refused, %s%s", request_id, error.code, f" ({error.param})" if error.param else "")
        if error.status != 500:
            return error
        _log.error("%s: %s", request_id, error)
        return ApiError(500, "internal_error", f"an error of the server, of which its log has more: {request_id}")

    @property
    def language(self) -> str:
        """The ISO 639-1 code of what is spoken, as far as it is known."""
        return "en" if self.settings.language == "any" else self.settings.language

    def begin_stream(self, protocol: str) -> None:
        """Count a stream in; its end is `end_stream`. raises: ApiError if there are too many, or the server is ending."""
        if self.ending:
            raise shutting_down()
        if sum(self.streams.values()) >= self.settings.max_streams:
            raise overloaded(10)
        self.streams[protocol] = self.streams.get(protocol, 0) + 1
        _log.debug("%s: a stream begins, %d now", protocol, sum(self.streams.values()))

    def end_stream(self, protocol: str, how: str) -> None:
        self.streams[protocol] -= 1
        _log.debug("%s: a stream ends, %s, %d now", protocol, how, sum(self.streams.values()))
        self.metrics.count("asr_streams_total", protocol=protocol, end=how)


SERVICE = web.AppKey("service", Service)
REQUEST_ID = web.RequestKey("id", str)
AUDIO_S = web.RequestKey("audio_s", float)  # how much sound was heard for it


def _make_folder(above: Path | None) -> Path:
    """A folder for uploads that nobody else may read; those of servers that are no more go."""
    place = Path(above or tempfile.gettempdir())
    try:
        for old in place.iterdir():
            match = _FOLDER.fullmatch(old.name)
            if match and not _lives(int(match[1])) and not old.is_symlink() and _is_ours(old):
                shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=f"asr-serve-{os.getpid()}-", dir=place))
    except OSError as error:
        raise ServeError(f"{place}: cannot be used for uploads: {error.strerror}; name another with --temp") from None


def _is_ours(path: Path) -> bool:
    return not hasattr(os, "getuid") or path.stat().st_uid == os.getuid()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
