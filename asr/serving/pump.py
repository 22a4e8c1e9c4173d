"""A live stream's recogniser, from the event loop: its work is done in threads, a second at a time, so that streams take
turns; what waits for it is bounded.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np

from asr.recognizer import Recognizer
from asr.serving.errors import ApiError
from asr.serving.service import Service
from asr.session import Session, Trouble
from asr.stream import Event

MAX_WAIT_S = 10.0  # of sound; then the socket is not read, and the client has to wait
_PIECE_S = 1.0
Heard = list[Event | Trouble]
Result = TypeVar("Result")


class Live:
    """One client's recogniser. raises: ApiError where it listens for too long; AudioError for samples that are none."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._began = asyncio.get_running_loop().time()
        self._heard_s = 0.0  # whatever was begun anew

    async def begin(self, recognizer: Callable[[], Recognizer], rate: int, **options: Any) -> None:
        """Listen to something new, of which the times start at 0.

        recognizer: called in a thread, as it may have to be made.
        options:    of `Recognizer.stream`.
        raises:     AsrError for options that are none.
        """
        self._rate, self._piece = rate, max(1, round(_PIECE_S * rate))
        self._make = lambda: Session(recognizer(), rate, **options)
        await self.again()

    async def again(self) -> None:
        """Listen to something new in the same way."""
        self._session = await asyncio.get_running_loop().run_in_executor(self._service.threads, self._make)

    @property
    def time_s(self) -> float:
        """How much sound was recognised."""
        return self._session.time_s

    async def hear(self, samples: np.ndarray, lost: int = 0) -> Heard:
        """What is new with more samples (n,) of any length. lost: how many are missing before them."""
        events: Heard = []
        for at in range(0, len(samples), self._piece) or [0]:
            piece = samples[at : at + self._piece]
            self._heard_s += (len(piece) + (lost if at == 0 else 0)) / self._rate
            most_s, spent_s = self._service.settings.max_stream_s, asyncio.get_running_loop().time() - self._began
            if max(self._heard_s, spent_s) > most_s:
                hours = most_s / 3600
                raise ApiError(413, "audio_too_long", f"expected at most {hours:g} hours in a stream; see --max-stream")
            events += await self._run(partial(self._session.hear, piece, lost if at == 0 else 0))
            self._service.metrics.count("asr_audio_seconds_total", len(piece) / self._rate, kind="stream")
        return events

    async def finish(self) -> Heard:
        """The sound ends here: what is left of it."""
        return await self._run(self._session.finish)

    async def _run(self, function: Callable[[], Iterable[Event | Trouble]]) -> Heard:
        loop = asyncio.get_running_loop()
        began = loop.time()
        events = await loop.run_in_executor(self._service.threads, lambda: list(function()))
        self._service.metrics.count("asr_busy_seconds_total", loop.time() - began, kind="stream")
        return events


@asynccontextmanager
async def slot(service: Service, protocol: str) -> AsyncIterator[None]:
    """A stream is counted in while it lasts. raises: ApiError if there are too many."""
    service.begin_stream(protocol)
    how = "failed"
    try:
        yield
        how = "done"
    except (asyncio.CancelledError, ConnectionError):
        how = "gone"
        raise
    finally:
        service.end_stream(protocol, how)


async def listen(service: Service, recognizer: Callable[[], Recognizer], rate: int, **options: Any) -> Live:
    """A recogniser that listens; see `Live.begin`."""
    one = Live(service)
    await one.begin(recognizer, rate, **options)
    return one


class Sound:
    """Samples on their way from a socket to the recogniser.

    count: how many wait.
    """

    def __init__(self, rate: int) -> None:
        self._most, self._piece = round(MAX_WAIT_S * rate), round(_PIECE_S * rate)
        self._waiting: deque[tuple[np.ndarray, int]] = deque()
        self._changed = asyncio.Condition()
        self._over: BaseException | None = None
        self.count = 0

    async def put(self, samples: np.ndarray, lost: int = 0) -> None:
        """Wait until there is room. lost: how many are missing before them."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.count < self._most)
            self._waiting.append((samples, lost))
            self.count += len(samples)
            self._changed.notify_all()

    async def end(self, error: BaseException | None = None) -> None:
        """No more comes, or cannot come for an error."""
        async with self._changed:
            self._over = self._over or error or EOFError()
            self._changed.notify_all()

    async def take(self) -> tuple[np.ndarray, int] | None:
        """What has come, a second at most, and what is missing before it; None at the end. raises: the error."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._waiting or self._over)
            if not self._waiting:
                assert self._over is not None
                if isinstance(self._over, EOFError):
                    return None
                raise self._over
            samples, lost = self._waiting.popleft()
            pieces, count = [samples], len(samples)
            while count < self._piece and self._waiting and not self._waiting[0][1]:
                pieces.append(self._waiting.popleft()[0])
                count += len(pieces[-1])
            self.count -= count
            self._changed.notify_all()
            return np.concatenate(pieces), lost
