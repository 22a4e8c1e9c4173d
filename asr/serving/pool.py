"""Worker processes and the files that wait for one: in order, fairly, with what dies or hangs replaced.

How long a file is, a worker finds out when it begins to decode it. Long ones are at work in all workers but one, where there
are several: so a short one waits for short ones alone. One that turns out to be long in the last worker is put off.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import multiprocessing
import threading
from bisect import insort
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from asr import terminal
from asr.recognizer import Heard
from asr.serving.errors import ApiError, overloaded, shutting_down
from asr.serving.metrics import Metrics
from asr.serving.settings import ServeError, Settings
from asr.serving.worker import CANCEL, GO_ON, PUT_OFF, Task, work
from asr.transcript import Transcript

_CANCEL_S = 2.0  # a worker that does not heed it by then is killed
_MUTE_S = 60.0  # one that does not say that it is alive, too
_FRESH_S = 30.0  # a recognition so recent shows that all is well
_PROBE_S = 5.0  # of silence, is recognised in so much time by any worker that is well
_RATE = 0.03  # of real time, that recognising takes
_BYTES_A_SECOND = 16_000  # of most recordings; a file's length is not known before it is decoded
_log = logging.getLogger("asr.serving")


@dataclass(eq=False)
class _Job:
    task: Task
    client: str
    size: int
    since: float
    messages: asyncio.Queue[tuple[Any, ...]] = field(default_factory=asyncio.Queue)
    worker: _Worker | None = None
    is_long: bool = False


@dataclass(eq=False)
class _Worker:
    """state: loading, idle, busy or dying; heard: when it said something last."""

    process: multiprocessing.process.BaseProcess
    connection: Connection
    heard: float
    state: str = "loading"
    loading: bool = True
    job: _Job | None = None
    limit: asyncio.TimerHandle | None = None
    why: str = "died"


class Pool:
    """Workers, and the files that wait for one.

    models: name -> file, of which each worker has all.
    """

    def __init__(self, settings: Settings, models: Mapping[str, str], metrics: Metrics) -> None:
        self._settings, self._models, self._metrics = settings, models, metrics
        self._waiting: deque[_Job] = deque()
        self._workers: list[_Worker] = []
        self._closing = self._closed = False
        self._proved = -math.inf  # when a recognition came to its end
        self._delay_s = 0.0  # before a worker is replaced that died while it was loading
        self._probing = asyncio.Lock()
        self._started: asyncio.Future[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        metrics.gauges |= {
            "asr_queue_length": lambda: {(): len(self._waiting)},
            "asr_jobs_running": lambda: {(): self.running},
            "asr_workers": lambda: {
                (("state", state),): sum(worker.state == state for worker in self._workers)
                for state in ("loading", "idle", "busy", "dying")
            },
        }

    @property
    def running(self) -> int:
        return sum(worker.job is not None for worker in self._workers)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def start(self) -> None:
        """All workers are ready at the end. raises: ServeError if a model cannot be loaded in one."""
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.create_future()
        for _ in range(self._settings.workers):
            self._spawn()
        await self._started
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """What waits or runs is answered with 503; no process is left."""
        self._closing = self._closed = True
        if self._watching is not None:
            self._watching.cancel()
        for job in [*self._waiting, *(worker.job for worker in self._workers if worker.job)]:
            error = shutting_down()
            job.messages.put_nowait(("failed", error.status, error.code, str(error)))
        self._waiting.clear()
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            await asyncio.to_thread(worker.process.join)

    def end(self) -> None:
        """Nothing new from here on."""
        self._closing = True

    async def run(self, task: Task, client: str, size: int = 0) -> AsyncGenerator[Heard | Transcript]:
        """Each utterance of a file as it is recognised, and at last the transcript. To close it is to cancel the work.

        raises: ApiError.
        """
        if self._closing:
            raise shutting_down()
        if len(self._waiting) >= self._settings.max_queue:
            seconds = sum(job.size for job in self._waiting) / _BYTES_A_SECOND
            raise overloaded(math.ceil(seconds * _RATE / self._settings.workers))
        job = _Job(task, client, size, self._loop.time())
        self._waiting.append(job)
        self._dispatch()
        try:
            while True:
                match await job.messages.get():
                    case ("heard", heard):
                        yield heard
                    case ("done", transcript):
                        job.worker = None
                        yield transcript
                        return
                    case ("failed", status, code, message):
                        job.worker = None
                        raise ApiError(status, code, message)
        finally:
            self._leave(job)

    async def ready(self) -> str | None:
        """None if a file sent now would be recognised; otherwise what is wrong."""
        if self._closing:
            return "shutting_down"
        usable = [worker for worker in self._workers if worker.state in ("idle", "busy")]
        if not usable:
            return "loading"
        if all(worker.state == "busy" for worker in usable):
            silent_s = self._loop.time() - max(worker.heard for worker in usable)
            return None if silent_s < _FRESH_S else "hung"
        async with self._probing:  # one for all who ask meanwhile
            if self._loop.time() - self._proved < _FRESH_S:
                return None
            probe = self.run(Task(None, next(iter(self._models))), "")
            try:
                async with asyncio.timeout(_PROBE_S), contextlib.aclosing(probe):
                    async for _ in probe:
                        pass
            except (TimeoutError, ApiError):
                return "hung"
        return None

    def _spawn(self) -> None:
        if self._closed:
            return
        here, there = multiprocessing.Pipe()
        settings = self._settings
        process = multiprocessing.get_context("spawn").Process(
            target=work, args=(there, self._models, settings.steering, settings.worker_memory), daemon=True
        )
        with terminal.blocked(terminal.STOP_SIGNALS):
            process.start()
        there.close()
        worker = _Worker(process, here, self._loop.time())
        self._workers.append(worker)
        threading.Thread(target=self._hear, args=(worker,), daemon=True).start()

    def _hear(self, worker: _Worker) -> None:
        """A thread's life: what a worker says goes to the loop."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            with contextlib.suppress(EOFError, OSError):
                while True:
                    message = worker.connection.recv()
                    self._loop.call_soon_threadsafe(self._receive, worker, message)
            worker.process.join()
            worker.connection.close()
            self._loop.call_soon_threadsafe(self._died, worker)

    def _receive(self, worker: _Worker, message: tuple[Any, ...]) -> None:
        worker.heard = self._loop.time()
        match message:
            case ("ready",):
                worker.state, worker.loading, self._delay_s = "idle", False, 0.0
                _log.debug("worker %s: ready", worker.process.pid)
                assert self._started is not None
                if not self._started.done() and all(one.state == "idle" for one in self._workers):
                    self._started.set_result(None)
                self._dispatch()
            case ("broken", text):
                worker.why = text
            case ("heard", _):
                self._pass_on(worker, message)
            case ("long",):
                self._let_go_on(worker)
            case ("put off",):
                self._put_off(worker)
            case ("done" | "failed", *_):
                self._proved = worker.heard
                _log.debug("worker %s: %s", worker.process.pid, message[0])
                self._pass_on(worker, message)
                self._free(worker)

    def _pass_on(self, worker: _Worker, message: tuple[Any, ...]) -> None:
        if worker.job is not None:
            worker.job.messages.put_nowait(message)

    def _let_go_on(self, worker: _Worker) -> None:
        """A file is long: it goes on where another worker is left for short ones."""
        assert worker.job is not None
        worker.job.is_long = True
        with contextlib.suppress(OSError):  # it is dead, as will be told
            worker.connection.send(GO_ON if self._long <= self._most_long else PUT_OFF)

    def _put_off(self, worker: _Worker) -> None:
        job = worker.job
        if job is not None and job.worker is worker:  # somebody waits for it
            job.worker = None
            insort(self._waiting, job, key=lambda one: one.since)
        self._free(worker)

    @property
    def _long(self) -> int:
        """How many long files are at work."""
        return sum(worker.job is not None and worker.job.is_long for worker in self._workers)

    @property
    def _most_long(self) -> int:
        return max(1, self._settings.workers - 1)

    def _free(self, worker: _Worker) -> None:
        if worker.limit is not None:
            worker.limit.cancel()
        worker.job, worker.limit = None, None
        if worker.state == "busy":
            worker.state = "idle"
        self._dispatch()

    def _died(self, worker: _Worker) -> None:
        if worker.limit is not None:
            worker.limit.cancel()
        if worker not in self._workers:  # the server is ending
            return
        self._workers.remove(worker)
        assert self._started is not None
        if not self._started.done():
            died = "a worker process died while it loaded its models, perhaps for lack of memory; see --worker-memory"
            self._started.set_exception(ServeError(died if worker.why == "died" else worker.why))
            return
        _log.warning("a worker process ended: %s; another one is started", worker.why)
        if worker.why == "timeout":
            self._pass_on(worker, ("failed", 504, "processing_timeout", "the file took too long; see --job-timeout"))
        else:
            self._pass_on(worker, ("failed", 500, "internal_error", f"the worker process {worker.why}"))
        self._metrics.count("asr_worker_restarts_total", why=worker.why if worker.why in _WHYS else "broken")
        if worker.loading:  # it would go on for ever
            self._delay_s = min(30.0, 2 * self._delay_s + 1)
        self._loop.call_later(self._delay_s, self._spawn)

    def _kill(self, worker: _Worker, why: str) -> None:
        if worker.state != "dying":
            worker.why, worker.state = why, "dying"
            worker.process.kill()

    def _kill_if_at(self, worker: _Worker, job: _Job) -> None:
        if worker.job is job:
            self._kill(worker, "cancelled")

    def _leave(self, job: _Job) -> None:
        """Nobody waits for a job any more."""
        if job in self._waiting:
            self._waiting.remove(job)
            self._metrics.count("asr_jobs_cancelled_total")
        worker, job.worker = job.worker, None
        if worker is not None and worker.job is job:
            self._metrics.count("asr_jobs_cancelled_total")
            with contextlib.suppress(OSError):
                worker.connection.send(CANCEL)
            self._loop.call_later(_CANCEL_S, self._kill_if_at, worker, job)

    def _dispatch(self) -> None:
        for worker in self._workers:
            if worker.state == "idle" and (job := self._next()):
                self._waiting.remove(job)
                now = self._loop.time()
                self._metrics.observe("asr_queue_wait_seconds", now - job.since)
                _log.debug("worker %s: begins, %d more wait", worker.process.pid, len(self._waiting))
                worker.state, worker.job, job.worker = "busy", job, worker
                worker.limit = self._loop.call_later(self._settings.job_timeout_s, self._kill, worker, "timeout")
                with contextlib.suppress(OSError):  # it is dead, as will be told
                    worker.connection.send(job.task)

    def _next(self) -> _Job | None:
        """The first in line; but one client has at most half of the workers while others wait, and one worker takes no long
        file."""
        clients = {job.client for job in self._waiting}
        running = [worker.job.client for worker in self._workers if worker.job]
        most = max(1, self._settings.workers // 2) if len(clients) > 1 else self._settings.workers
        may = [job for job in self._waiting if not job.is_long or self._long < self._most_long]
        return next((job for job in may if running.count(job.client) < most), may[0] if may else None)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(1)
            now = self._loop.time()
            for worker in self._workers:
                if now - worker.heard > _MUTE_S:
                    self._kill(worker, "timeout")


_WHYS = ("died", "timeout", "cancelled")
