"""Files in worker processes: what kills, hangs or floods them, and what others notice of it."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import listening
import numpy as np
import pytest
import soundfile
from listening import DIGITS, TEXT, Server

from asr.errors import AsrError
from asr.serving import pool as pools
from asr.serving import service
from asr.serving.metrics import Metrics
from asr.serving.pool import Pool
from asr.serving.settings import Settings
from asr.serving.worker import Task


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with listening.running() as one:
        yield one


@pytest.fixture
def sent(server: Server) -> Iterator[Any]:
    """Send a recording while others are on their way."""
    with ThreadPoolExecutor(8) as pool:

        def send(*fields: tuple[str, Any]) -> Future[tuple[int, dict[str, str], listening.Body]]:
            return pool.submit(server.send, [*fields, ("file", DIGITS)])

        yield send


def stopped(server: Server) -> int:
    """The only worker, which does nothing until it is told to go on."""
    listening.until(lambda: server.metric("asr_workers", state="idle") == 1)
    (worker,) = server.workers
    os.kill(worker, signal.SIGSTOP)
    return worker


def limit(server: Server, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    changed = replace(server.settings, **options)
    monkeypatch.setattr(server.service, "settings", changed)
    monkeypatch.setattr(server.service.pool, "_settings", changed)


def test_a_worker_that_dies_costs_one_request(server: Server, sent: Any) -> None:
    worker = stopped(server)
    answer = sent()
    listening.until(lambda: server.metric("asr_jobs_running") == 1)
    os.kill(worker, signal.SIGKILL)
    status, headers, body = answer.result()
    assert (status, body["error"]["code"], body["error"]["type"]) == (500, "internal_error", "server_error")
    assert headers["x-request-id"] in body["error"]["message"]
    assert sent().result()[2]["text"] == TEXT
    assert server.metric("asr_worker_restarts_total", why="died") == 1
    assert server.workers != [worker]
    assert server.is_well()


def test_a_worker_that_takes_too_long_is_replaced(server: Server, sent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(server, monkeypatch, job_timeout_s=0.2)
    stopped(server)
    status, headers, body = sent().result()
    assert (status, body["error"]["code"]) == (504, "processing_timeout")
    assert headers["x-should-retry"] == "false"
    limit(server, monkeypatch, job_timeout_s=3600)
    assert sent().result()[2]["text"] == TEXT


def test_the_queue_has_an_end(server: Server, sent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(server, monkeypatch, max_queue=1)
    worker = stopped(server)
    running = sent()
    listening.until(lambda: server.metric("asr_jobs_running") == 1)
    waiting = sent()
    listening.until(lambda: server.metric("asr_queue_length") == 1)
    status, headers, body = sent().result()
    assert (status, body["error"]["code"], body["error"]["type"]) == (503, "overloaded", "server_error")
    assert 1 <= int(headers["retry-after"]) <= 120
    os.kill(worker, signal.SIGCONT)
    assert running.result()[2]["text"] == waiting.result()[2]["text"] == TEXT


def test_a_cancelled_job_that_does_not_end_is_killed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "_CANCEL_S", 0.1)
    before = server.metric("asr_worker_restarts_total", why="cancelled")
    stopped(server)
    content, kind = listening.form([("file", DIGITS)])
    head = f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
    import socket

    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        listening.until(lambda: server.metric("asr_jobs_running") == 1)
    listening.until(lambda: server.metric("asr_worker_restarts_total", why="cancelled") == before + 1)
    listening.until(server.is_well)


def test_readiness_is_a_recognition(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "_FRESH_S", 0.0)
    listening.until(server.is_well)
    monkeypatch.setattr(pools, "_PROBE_S", 0.1)
    worker = stopped(server)
    status, _, body = server.ask("/readyz")
    assert (status, json.loads(body)["status"]) == (503, "hung")
    assert server.ask("/healthz")[0] == 200
    os.kill(worker, signal.SIGCONT)
    monkeypatch.undo()
    listening.until(server.is_well)


def test_hours_of_silence_in_a_small_file(server: Server, sent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(server, monkeypatch, max_audio_s=36.0)
    file = io.BytesIO()
    soundfile.write(file, np.zeros(8000 * 600, np.int16), 8000, format="flac")
    assert len(file.getvalue()) < 100_000
    status, _, body = server.send([("file", ("a.flac", file.getvalue()))])
    assert (status, body["error"]["code"]) == (413, "audio_too_long")
    assert sent().result()[0] == 200
    assert server.is_well()


def test_no_room_for_uploads(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(server, monkeypatch, least_free=1 << 60)
    status, _, body = server.send([("file", DIGITS)])
    assert (status, body["error"]["code"]) == (507, "insufficient_storage")


def test_a_bug_in_a_handler_tells_no_more_than_its_id(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server.service, "model", lambda name: 1 / 0)
    status, headers, body = server.send([("file", DIGITS)])
    assert status == 500
    assert body["error"]["message"].endswith(headers["x-request-id"])
    assert "ZeroDivisionError" in caplog.text
    assert headers["x-request-id"] in caplog.text


@pytest.fixture
def pool() -> Pool:
    """Without processes."""
    return Pool(Settings(workers=4), {"digits": "digits"}, Metrics())


def job(client: str, is_long: bool = False) -> pools._Job:
    return pools._Job(Task(None, "digits"), client, 1, 0.0, is_long=is_long)


def busy(pool: Pool, *jobs: pools._Job) -> None:
    pool._workers = [pools._Worker(None, None, 0.0, job=one) for one in jobs]  # type: ignore[arg-type]


def served(pool: Pool) -> list[str]:
    """The clients in the order in which they get a worker that is free again at once."""
    order = []
    while one := pool._next():
        pool._waiting.remove(one)
        order.append(one.client)
    return order


def test_first_come_first_served_but_one_worker_takes_no_long_file(pool: Pool) -> None:
    pool._waiting = deque([job("a"), job("b", True), job("c")])
    assert served(pool) == ["a", "b", "c"]
    busy(pool, job("x", True), job("y", True))
    pool._waiting = deque([job("a"), job("b", True), job("c")])
    assert served(pool) == ["a", "b", "c"]
    busy(pool, job("x", True), job("y", True), job("z", True))
    pool._waiting = deque([job("a"), job("b", True), job("c")])
    assert served(pool) == ["a", "c"]


def test_one_client_has_half_of_the_workers_while_others_wait(pool: Pool) -> None:
    busy(pool, job("a"), job("a"))
    pool._waiting = deque([job("a"), job("a"), job("b")])
    assert served(pool) == ["b", "a", "a"]


def test_long_files_leave_a_worker_to_short_ones() -> None:
    """The first long one stands still in its worker; the second turns out to be long, and is put off."""
    long = ("file", ("a.wav", listening.minutes(1.5)))
    with listening.running(workers=2) as server, ThreadPoolExecutor(2) as senders:
        pool = server.service.pool
        first = senders.submit(server.send, [long])
        listening.until(lambda: pool._long)
        (worker,) = [one.process.pid for one in pool._workers if one.job and one.job.is_long]
        assert worker is not None
        os.kill(worker, signal.SIGSTOP)
        second = senders.submit(server.send, [long])
        listening.until(lambda: pool.waiting == pool.running == 1)
        for _ in range(2):
            assert server.send([("file", DIGITS)])[2]["text"] == TEXT
        assert pool.waiting == pool.running == 1
        os.kill(worker, signal.SIGCONT)
        assert first.result()[2]["text"] == second.result()[2]["text"]
        assert first.result()[2]["text"].startswith(TEXT)
        assert server.is_well()


def test_a_model_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"no model")
    with pytest.raises(AsrError, match=r"a\.onnx"):
        Server(models=(str(tmp_path / "a.onnx"),), temp=tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.onnx"]


def test_models_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "digits.onnx").write_bytes(b"")
    with pytest.raises(AsrError, match="two called 'digits'"):
        service.Service(Settings(models=("digits", str(tmp_path / "digits.onnx"))))


def test_folders_of_servers_that_are_no_more_go(tmp_path: Path) -> None:
    gone = threading.get_native_id() + (1 << 22)  # above any process
    for name in (f"asr-serve-{gone}-abc", f"asr-serve-{os.getpid()}-abc", "asr-serve-x"):
        (tmp_path / name).mkdir()
    made = service._make_folder(tmp_path)
    assert made.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in tmp_path.iterdir()} == {f"asr-serve-{os.getpid()}-abc", "asr-serve-x", made.name}
    with pytest.raises(AsrError, match="--temp"):
        service._make_folder(tmp_path / "none")
