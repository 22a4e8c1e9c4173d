"""A process that recognises files, one at a time: what crashes a decoder, or takes too long, costs one request.

From the server come a Task, or CANCEL; back go tuples: ("ready",), or ("broken", why) if a model does not load; ("alive",)
each second; ("heard", Heard) for each utterance of a file, then ("done", Transcript) or ("failed", status, code, message).
A file that turns out to be long is told as ("long",) before any of it is recognised; the answer is GO_ON or PUT_OFF, and
after the latter ("put off",) is all.
"""

from __future__ import annotations

import contextlib
import logging
import math
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from asr import audio
from asr.errors import AsrError
from asr.recognizer import Recognizer
from asr.serving.steering import Steered
from asr.transcript import Transcript, Word, sounded_out

CANCEL, GO_ON, PUT_OFF = "cancel", "go on", "put off"
SHORT_S = 60.0  # of sound; what is longer takes long


@dataclass(frozen=True, slots=True)
class Task:
    """path: of a file, None for a second of silence; rate: of raw 16-bit samples; name: what the client calls the file."""

    path: Path | None
    model: str
    name: str = "the file"
    rate: int | None = None
    hotwords: tuple[str, ...] = ()
    max_s: float = math.inf


class _CancelledError(Exception):
    pass


class _TooLongError(Exception):
    pass


def work(connection: Connection, models: Mapping[str, str], steering: Mapping[str, Any], memory: int) -> None:
    """A worker's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where that it is blocked is not inherited, as on Windows
    logging.getLogger("asr").handlers = [logging.NullHandler()]  # it would name files
    _limit(memory)
    sending = threading.Lock()

    def send(*message: object) -> None:
        with sending:
            connection.send(message)

    threading.Thread(target=_live, args=(send,), daemon=True).start()
    try:
        steered = Steered({name: Recognizer(model, **steering) for name, model in models.items()})
    except AsrError as error:
        send("broken", str(error))
        return
    except MemoryError:
        send("broken", "a worker needs more memory to load its models; see --worker-memory")
        return
    send("ready")
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):  # the server is gone
            return
        if isinstance(task, Task):  # no word that comes after the end
            send(*_recognise(steered, task, connection, send))


def _live(send: Callable[[str], None]) -> None:
    """Say each second that this process lives, as long as the server does, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    with contextlib.suppress(OSError):
        while not wait([parent.sentinel], timeout=1):
            send("alive")
    os._exit(1)


def _limit(memory: int) -> None:
    if sys.platform != "win32":
        import resource

        for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0)):
            hard = resource.getrlimit(kind)[1]
            limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
            with contextlib.suppress(OSError, ValueError):  # a system that has no such limit
                resource.setrlimit(kind, (limit, limit))


def _recognise(steered: Steered, task: Task, connection: Connection, send: Callable[..., None]) -> tuple[object, ...]:
    """The last message of a task."""
    try:
        words: list[Word] = []
        ended_s = 0.0
        blocks, ahead, count = _sound(task, connection), list[np.ndarray](), 0
        for block in blocks:  # decoding is much faster than recognising, and no header need be trusted
            ahead.append(block)
            count += len(block)
            if count > SHORT_S * audio.SAMPLE_RATE:
                send("long")
                answer = connection.recv()
                if answer == CANCEL:
                    raise _CancelledError
                if answer == PUT_OFF:
                    return ("put off",)
                break
        recognizer = steered(task.model, hotwords=task.hotwords)
        for heard in recognizer.utterances(chain(ahead, blocks)):
            words += heard.words
            ended_s = heard.end_s
            send("heard", heard)
        text = " ".join(word.text for word in words)
        return "done", Transcript(text, sounded_out(words, ended_s), ended_s, recognizer.name)
    except _CancelledError:
        return "failed", 503, "cancelled", "nobody waits for this"
    except _TooLongError:
        hours = f"{task.max_s / 3600:g} hours" if task.max_s >= 3600 else f"{task.max_s:g} s"
        return "failed", 413, "audio_too_long", f"expected at most {hours} of audio, got more; see --max-audio"
    except audio.AudioError as error:
        message = str(error).replace(str(task.path), task.name[:100] or "the file")
        if "[containers]" in message and find_spec("av") is None:
            return "failed", 415, "unsupported_format", message
        return "failed", 400, "invalid_audio", message
    except MemoryError:
        return "failed", 500, "internal_error", "the file needs more memory than a worker may have"
    except Exception as error:  # whose text may be of what is heard
        where = "".join(traceback.format_tb(error.__traceback__))
        return "failed", 500, "internal_error", f"{type(error).__name__}\n{where}"


def _sound(task: Task, connection: Connection) -> Iterator[np.ndarray]:
    """The task's blocks, as long as they are wanted and not too many."""
    if task.path is None:
        blocks: Iterable[np.ndarray] = [np.zeros(audio.SAMPLE_RATE, np.float32)]
    elif task.rate is None:
        blocks = audio.blocks(task.path)
    else:
        blocks = _raw(task.path, task.rate)
    heard = 0
    for block in blocks:
        if connection.poll() and connection.recv() == CANCEL:
            raise _CancelledError
        heard += len(block)
        if heard > task.max_s * audio.SAMPLE_RATE:
            raise _TooLongError
        yield block


def _raw(path: Path, rate: int) -> Iterator[np.ndarray]:
    with path.open("rb") as file:
        yield from audio.pipe_blocks(file, rate=rate)
