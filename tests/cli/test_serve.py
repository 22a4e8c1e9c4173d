"""The command `asr serve`, as a process: how it starts, answers and ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import listening
import pytest
from conftest import Cli
from listening import DIGITS, TEXT, form

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs the process list of Linux")


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server's process, and its first line."""
    options = ["-m", "digits", "--port", "0", "--workers", "1", "--temp", str(folder)]
    command = [sys.executable, "-m", "asr", "serve", *options, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline()
        finally:
            process.kill()


def post(url: str, content: bytes) -> str:
    """The text of a recording."""
    body, kind = form([("model", "whisper-1"), ("file", ("secret-name.wav", content))])
    request = urllib.request.Request(f"{url}v1/audio/transcriptions", body, {"Content-Type": kind})
    with urllib.request.urlopen(request) as answer:
        text: str = json.loads(answer.read())["text"]
    return text


def read(url: str) -> str:
    with urllib.request.urlopen(url) as answer:
        text: str = answer.read().decode()
    return text


def children(process: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@linux
def test_a_request_to_end_lets_end_what_runs(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, line), ThreadPoolExecutor() as pool:
        url = line.split()[0]
        assert line == f"{url}  digits, 1 worker\n"
        assert post(url, DIGITS.read_bytes()) == TEXT
        (worker,) = [one for one in children(process.pid) if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]
        os.kill(worker, signal.SIGSTOP)
        running = pool.submit(post, url, DIGITS.read_bytes())
        listening.until(lambda: "asr_jobs_running 1.0" in read(f"{url}metrics"))
        process.send_signal(signal.SIGTERM)
        os.kill(worker, signal.SIGCONT)
        assert running.result() == TEXT
        out, err = process.communicate()
    assert (process.returncode, out) == (0, "")
    assert "POST /v1/audio/transcriptions 200" in err
    assert "4.50 s of audio" in err
    assert not [secret for secret in ("secret-name", "seven", str(tmp_path)) if secret in err]
    assert list(tmp_path.iterdir()) == []


@linux
def test_a_server_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    with serving(tmp_path, "--log-json", "--quiet") as (process, _):
        workers = children(process.pid)
        assert workers
        process.kill()
        process.wait()
        listening.until(lambda: not [one for one in workers if Path(f"/proc/{one}/cmdline").exists()])


def test_a_server_for_other_machines_makes_a_token(tmp_path: Path) -> None:
    with serving(tmp_path, "--host", "0.0.0.0", "--verbose") as (process, line):
        url, _, rest = line.partition("#token=")
        token = rest.split()[0]
        assert len(token) == 32
        port = int(url.rstrip("/").rpartition(":")[2])
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models")
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/v1/models", headers={"X-API-Key": token})
        with urllib.request.urlopen(asked) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 0
    assert token not in err
    assert "refused, invalid_api_key" in err
    assert "ready" in err


def test_a_port_that_is_taken(cli: Cli, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = cli("serve", "-m", "digits", "--workers", 1, "--port", port, "--temp", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"127.0.0.1:{port}: cannot listen there" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["-m", "none"], 1, "none: expected a model file"),
        (["--token-file", "none"], 1, "none: cannot be read as a token"),
        (["--quiet", "--verbose"], 2, "--verbose asks for the opposite"),
        (["--tls-cert", "a.pem"], 2, "is needed with --tls-cert"),
        (["--reject", "1"], 2, "is for a grammar"),
    ],
)
def test_wrong_usage(cli: Cli, arguments: list[str], status: int, message: str) -> None:
    done = cli("serve", *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert message in " ".join(done.stderr.split())
