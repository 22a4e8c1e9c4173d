"""Servers of `asr serve` in a thread of the test's process, each on a free port."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web
from conftest import DATA
from prometheus_client.parser import text_string_to_metric_families

from asr.serving import app
from asr.serving.service import SERVICE, Service
from asr.serving.settings import Settings

DIGITS, SEVEN = DATA / "connected_digits.flac", DATA / "7_jackson_0.wav"
TEXT = "five seven nine zero"
Body = dict[str, Any]


class Server:
    """port: where it listens; service: what its handlers share; stop: ends it."""

    def __init__(self, **options: Any) -> None:
        chosen: dict[str, Any] = {"models": ("digits",), "port": 0, "workers": 1, "least_free": 0}
        self.settings = Settings(**chosen | options)
        self.service: Service
        self.port = 0
        self.ports: Mapping[str, int]
        self._loop = asyncio.new_event_loop()
        self._stop: asyncio.Event
        self._answers = threading.Event()
        self.failed: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        self._answers.wait()
        if self.failed:
            raise self.failed

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._stop = asyncio.Event()
        made: list[Service] = []
        application = app.application

        def kept(settings: Settings) -> web.Application:
            one = application(settings)
            made.append(one[SERVICE])
            return one

        def ready(address: str, ports: Mapping[str, int]) -> None:
            self.service, self.port, self.ports = made[0], ports["http"], ports
            assert address.endswith(f":{self.port}/")
            self._answers.set()

        try:
            app.application = kept
            self._loop.run_until_complete(app.run(self.settings, self._stop, ready))
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        except BaseException as error:
            self.failed = error
        finally:
            app.application = application
            self._loop.close()
            self._answers.set()

    def stop(self) -> None:
        if self.thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self.thread.join()

    def do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The value of a function called within the server's loop."""

        async def called() -> Any:
            value = function(*arguments)
            return await value if isinstance(value, Coroutine) else value

        return asyncio.run_coroutine_threadsafe(called(), self._loop).result()

    @property
    def workers(self) -> list[int]:
        """The worker processes."""
        return [worker.process.pid or 0 for worker in self.service.pool._workers]

    def ask(
        self, path: str, method: str = "GET", body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers in lower case, and body of an answer."""
        connection = HTTPConnection("127.0.0.1", self.port)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def send(
        self,
        fields: list[tuple[str, Any]],
        headers: dict[str, str] | None = None,
        path: str = "/v1/audio/transcriptions",
    ) -> tuple[int, dict[str, str], Body]:
        """Fields as a form, files among them as paths or (name, content); the answer's body is JSON."""
        content, kind = form(fields)
        status, told, body = self.ask(path, "POST", content, {"Content-Type": kind} | (headers or {}))
        return status, told, json.loads(body)

    def raw(self, *pieces: bytes) -> bytes:
        """What comes back for bytes, until the server closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            for piece in pieces:
                connection.sendall(piece)
            got = b""
            while piece := connection.recv(1 << 16):
                got += piece
            return got

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels."""
        status, _, text = self.ask("/metrics", headers=self._token())
        assert status == 200
        return sum(
            sample.value
            for family in text_string_to_metric_families(text.decode())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def is_well(self) -> bool:
        """Whether it answers, and has kept nothing of what it was sent."""
        status, _, body = self.ask("/readyz")
        return (status, json.loads(body)["status"], os.listdir(self.service.folder)) == (200, "ok", [])  # noqa: PTH208

    def _token(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.settings.token}"} if self.settings.token else {}


def form(fields: list[tuple[str, Any]]) -> tuple[bytes, str]:
    """A multipart body and its type."""
    lines = []
    for name, value in fields:
        if isinstance(value, Path):
            value = value.name, value.read_bytes()
        if isinstance(value, tuple):
            file, content = value
            lines.append(f'--xx\r\nContent-Disposition: form-data; name="{name}"; filename="{file}"\r\n\r\n'.encode())
            lines.append(content)
        else:
            lines.append(f'--xx\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode())
        lines.append(b"\r\n")
    return b"".join(lines) + b"--xx--\r\n", "multipart/form-data; boundary=xx"


def s16(waveform: np.ndarray) -> bytes:
    """Samples as most clients send them: 16 bits, the lower byte first."""
    samples: np.ndarray = (np.clip(waveform, -1, 1) * 32767).astype("<i2")
    return samples.tobytes()


@contextmanager
def running(**options: Any) -> Iterator[Server]:
    server = Server(**options)
    try:
        yield server
    finally:
        server.stop()


def until(condition: Callable[[], object]) -> None:
    """Wait for what is bound to come, on however slow a machine."""
    pause = threading.Event()
    for _ in range(3000):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError("a minute is over, and it did not come")


def minutes(count: float) -> bytes:
    """A long recording, wav."""
    import io

    import soundfile

    samples, rate = soundfile.read(DIGITS, dtype="int16")
    file = io.BytesIO()
    soundfile.write(file, np.tile(samples, round(count * 60 * rate / len(samples))), rate, format="wav")
    return file.getvalue()
