"""A server of `asr serve` as its clients find it: files a second, live text behind its sound, what many clients leave, how
long hostile ones hold others up."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import aiohttp
import numpy as np
import soundfile

from asr import audio, manifest

PARTS = ("files", "streams", "soak", "stalls")
_PIECE_S = 0.1  # of sound in a message, as a page sends it
_HOSTILE_S = 3.0  # until hostile clients have begun
_NEW = b"newword"  # stands for another word each time
_FIRST = 100  # requests and streams, after which a server has all that it will need


@dataclass(frozen=True)
class _Server:
    url: str
    port: int
    wyoming: int
    process: int
    folder: Path  # of uploads

    def kept(self) -> str:
        """What its process holds, where the system tells."""
        folder = Path(f"/proc/{self.process}")
        if not folder.exists():
            return "unknown here"
        fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        children = " ".join(file.read_text() for file in folder.glob("task/*/children")).split()
        kept = [
            (int(fields["VmRSS"].split()[0]) // 1024, "MB"),
            (len(children), "processes below it"),
            (int(fields["Threads"]), "threads"),
            (len(list((folder / "fd").iterdir())), "descriptors"),
            (len([path for path in self.folder.rglob("*") if path.is_file()]), "uploads"),
        ]
        return ", ".join(f"{count} {what}" for count, what in kept)


@contextlib.contextmanager
def _serving(model: str, folder: Path) -> Iterator[_Server]:
    command = [sys.executable, "-m", "asr", "serve", "-m", model, "--port", "0", "--wyoming", "0", "--quiet"]
    command += ["--max-streams", "64", "--temp", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            url = line.split()[0]
            port, wyoming = int(url.rstrip("/").rpartition(":")[2]), int(line.rpartition(" ")[2])
            yield _Server(url, port, wyoming, process.pid, folder)
        finally:
            process.terminate()


async def _file(session: aiohttp.ClientSession, url: str, content: bytes) -> str:
    form = aiohttp.FormData()
    form.add_field("file", content, filename="a.flac")
    async with session.post(f"{url}v1/audio/transcriptions", data=form) as answer:
        text: str = (await answer.json())["text"]
        return text


async def _files(url: str, content: bytes, clients: int, count: int) -> float:
    """Files a second."""

    async def client() -> None:
        async with aiohttp.ClientSession() as session:
            for _ in range(count):
                await _file(session, url, content)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return clients * count / (time.perf_counter() - began)


async def _stream(url: str, waveform: np.ndarray, real_time: bool = True, cut: bool = False) -> list[float]:
    """How far each partial text was behind the sound that it stands for, seconds."""
    samples = (waveform.clip(-1, 1) * 32767).astype("<i2")
    size = round(_PIECE_S * audio.SAMPLE_RATE)
    behind: list[float] = []
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{url}v1/stream") as socket:
        began = time.perf_counter()

        async def speak() -> None:
            for at in range(0, len(samples), size):
                if real_time:
                    await asyncio.sleep(max(0.0, began + (at + size) / audio.SAMPLE_RATE - time.perf_counter()))
                await socket.send_bytes(samples[at : at + size].tobytes())
            if not cut:
                await socket.send_str('{"type": "end"}')

        speaking = asyncio.create_task(speak())
        try:
            async for message in socket:
                event = json.loads(message.data)
                if event["type"] == "partial":
                    behind.append(time.perf_counter() - began - event["time_s"])
                    if cut:
                        break
        finally:
            speaking.cancel()
    return behind


async def _soak(url: str, content: bytes, waveform: np.ndarray, clients: int, count: int) -> None:
    """Files and streams by turns, a third of which is cut off."""

    async def client(number: int) -> None:
        async with aiohttp.ClientSession() as session:
            for turn in range(number, number + count):
                is_cut, is_file = turn % 3 == 0, turn % 2 == 0
                work = _file(session, url, content) if is_file else _stream(url, waveform, False, is_cut)
                task = asyncio.ensure_future(work)
                if is_cut and is_file:
                    await asyncio.sleep(0.05)
                    task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    await asyncio.gather(*(client(number) for number in range(clients)))
    await asyncio.sleep(3)  # until what was cancelled is over


def _frame(payload: bytes, kind: int, more: bool = False) -> bytes:
    """A message of a WebSocket, or the beginning of one; its mask is zeros."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else bytes([0x80 | 127]) + size.to_bytes(8, "big")
    return bytes([(0 if more else 0x80) | kind]) + length + bytes(4) + payload


def _attacks() -> dict[str, tuple[bool, bytes, bytes]]:
    """Name -> whether it is for the port of Wyoming, what a connection begins with, what it then sends again and again;
    nothing: it waits for the answer."""

    def socket(path: str) -> bytes:
        lines = f"GET {path} HTTP/1.1", "Host: localhost", "Upgrade: websocket", "Connection: Upgrade"
        key = "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", ""
        return "\r\n".join([*lines, *key]).encode()

    def post(size: int | None = 500 << 20) -> bytes:
        length = "Transfer-Encoding: chunked" if size is None else f"Content-Length: {size}\r\nConnection: close"
        kind = "Content-Type: multipart/form-data; boundary=x"
        return f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\n{kind}\r\n{length}\r\n\r\n".encode()

    def part(name: str, content: bytes, more: str = "") -> bytes:
        file = '; filename="a.flac"' if name == "file" else ""
        return f'--x\r\nContent-Disposition: form-data; name="{name}"{file}\r\n{more}\r\n'.encode() + content + b"\r\n"

    def whole(body: bytes) -> bytes:
        return post(len(body) + 5) + body + b"--x--"

    silence = io.BytesIO()
    soundfile.write(silence, np.zeros(16_000 * 3600, np.int16), 16_000, format="flac")
    noise = np.random.default_rng(1).integers(-9000, 9000, 16_000 * 60).astype("<i2").tobytes()
    objects = b'{"a": [' + b"{}," * (5 << 20) + b"{}]}"
    letters = [bytes([97 + i % 26, 97 + i // 26 % 26]) for i in range(500)]
    phrases = b",".join(b'"' + b" ".join(letters[i:] + letters[:i])[:200] + b'"' for i in range(500))
    phrases = b'"' + _NEW + b'",' + phrases
    keywords = part("keywords", _NEW) + b"".join(part("keywords", letters[i] * 30) for i in range(50))
    append = b'{"type": "input_audio_buffer.append", "audio": "' + b"AQEB" * (5 << 20) + b'"}'
    companded = b'{"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/pcmu"}}}}}'
    return {
        "nothing": (False, b"", b""),
        "requests, one after the other": (False, b"", b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000),
        "broken requests": (False, b"", b"\x16\x03\x01 hello\r\n\r\n"),
        "a header without end": (False, b"GET / HTTP/1.1\r\nX: ", b"x" * 65536),
        "a form of empty lines": (False, post(), b"\n" * 65536),
        "a form of parts": (False, post(), part("a", b"") * 1000),
        "a file of line ends": (False, post() + part("file", b"")[:-2], b"\r\n" * 32768),
        "a file in base64": (
            False,
            post() + part("file", b"", "Content-Transfer-Encoding: base64\r\n")[:-2],
            b"AAAAA" + b"\x00" * 65531,
        ),
        "a file without end": (False, post() + part("file", b"")[:-2], bytes(1 << 20)),
        "a file in chunks of a byte": (False, post(None), b"1\r\nx\r\n" * 10_000),
        "hours of silence": (False, whole(part("file", silence.getvalue())), b""),
        "new hot words": (False, whole(keywords + part("file", silence.getvalue()[:1000])), b""),
        "pings": (False, socket("/v1/stream"), _frame(b"", 9) * 10_000),
        "a message in pieces of a byte": (
            False,
            socket("/vosk") + _frame(b"x", 1, True),
            _frame(b"x", 0, True) * 10_000,
        ),
        "tiny messages": (False, socket("/v1/realtime"), _frame(b"{}", 1) * 10_000),
        "lost sound": (False, socket("/v1/stream"), _frame(b'{"type": "lost", "samples": 1}', 1) * 1000),
        "noise": (False, socket("/v1/stream?rate=16000"), _frame(noise[: 1 << 20], 2)),
        "15 MB of objects, to Vosk": (False, socket("/vosk"), _frame(objects, 1)),
        "15 MB of objects, to Realtime": (False, socket("/v1/realtime"), _frame(objects, 1)),
        "20 MB of sound, to Realtime": (False, socket("/v1/realtime") + _frame(companded, 1), _frame(append, 1)),
        "500 phrases": (
            False,
            socket("/vosk"),
            _frame(b'{"config": {"phrase_list": [' + phrases + b"]}}", 1) + _frame(bytes(3200), 2) + _frame(b"", 8),
        ),
        "events of Wyoming": (True, b"", b'{"type": "ping"}\n' * 4000),
        "200 KB of objects, to Wyoming": (
            True,
            b"",
            b'{"type": "transcribe", "data_length": 210008}\n{"a": [' + b"{}," * 69_999 + b"{}]}\n",
        ),
    }


def _attack(name: str, port: int, wyoming: int, clients: int, over: float) -> None:
    """A process that does nothing else, until a time by the clock."""
    to_wyoming, first, again = _attacks()[name]
    count = itertools.count()

    def fresh(sent: bytes) -> bytes:
        number = next(count)
        return sent.replace(_NEW, bytes(97 + number // 26**place % 26 for place in range(len(_NEW))))

    async def drain(reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(1 << 20):
                pass

    async def attack() -> None:
        while time.time() < over:
            with contextlib.suppress(OSError, TimeoutError):
                reader, writer = await asyncio.open_connection("127.0.0.1", wyoming if to_wyoming else port)
                draining = asyncio.create_task(drain(reader))
                try:
                    async with asyncio.timeout(max(0.0, over - time.time())):
                        writer.write(fresh(first))
                        await writer.drain()
                        if not again:
                            await draining
                        while not draining.done():
                            writer.write(fresh(again))
                            await writer.drain()
                            await asyncio.sleep(0)
                finally:
                    draining.cancel()
                    writer.transport.abort()

    async def all_of_them() -> None:
        await asyncio.gather(*(attack() for _ in range(clients)))

    asyncio.run(all_of_them())


async def _longest(url: str, content: bytes | None, over: float) -> float:
    """Of the answers that a client gets who asks one thing after the other, the longest, seconds."""
    longest = 0.0
    async with aiohttp.ClientSession() as session:
        while time.time() < over:
            began = time.perf_counter()
            if content is None:
                async with session.get(f"{url}healthz") as answer:
                    assert answer.status == 200
            else:
                await _file(session, url, content)
            longest = max(longest, time.perf_counter() - began)
            await asyncio.sleep(0.01)
    return longest


def _stall(server: _Server, name: str, content: bytes, clients: int, seconds: float) -> list[float]:
    """The longest answers that others get to /healthz, and to a file."""
    over = time.time() + _HOSTILE_S + seconds
    numbers = map(str, (server.port, server.wyoming, clients, over))
    with subprocess.Popen([sys.executable, __file__, name, *numbers]):
        time.sleep(_HOSTILE_S)

        async def ask() -> list[float]:
            return await asyncio.gather(*(_longest(server.url, one, over) for one in (None, content)))

        return asyncio.run(ask())


def serve(arguments: argparse.Namespace) -> None:
    """Files and live streams of several clients at once, by the first utterance of a manifest."""
    utterance = manifest.read(arguments.manifest)[0]
    content, waveform = Path(utterance.audio).read_bytes(), audio.read_utterance(utterance)
    parts, folder = arguments.parts, Path(tempfile.mkdtemp(dir=arguments.folder))
    with _serving(arguments.model, folder) as server:
        if "files" in parts:
            print(f"\n| clients | files a second, of {len(waveform) / audio.SAMPLE_RATE:.1f} s |\n|---|---|")
            for clients in arguments.clients:
                rate = asyncio.run(_files(server.url, content, clients, arguments.count))
                print(f"| {clients} | {rate:.1f} |", flush=True)
        if "streams" in parts:
            print("\n| streams | text behind the sound, median | 90 % |\n|---|---|---|")
            for streams in arguments.streams:

                async def talk(count: int = streams) -> list[list[float]]:
                    return await asyncio.gather(*(_stream(server.url, waveform) for _ in range(count)))

                behind = [one for each in asyncio.run(talk()) for one in each]
                print(f"| {streams} | {median(behind):.2f} s | {quantiles(behind, n=10)[-1]:.2f} s |", flush=True)
        if "soak" in parts:
            crowd = arguments.crowd
            first = max(1, min(_FIRST // crowd, arguments.count - 1))
            total = crowd * arguments.count
            print(f"\n{total} requests and streams of {crowd} clients, a third cut off:")
            print(f"before: {server.kept()}", flush=True)
            asyncio.run(_soak(server.url, content, waveform, crowd, first))
            print(f"after {crowd * first}: {server.kept()}", flush=True)
            asyncio.run(_soak(server.url, content, waveform, crowd, arguments.count - first))
            print(f"after {total}: {server.kept()}", flush=True)
    if "stalls" in parts:
        print(f"\n{arguments.hostile} hostile clients at a time, {arguments.seconds:g} s each:\n")
        print("| what they send | longest answer to /healthz | to a file |\n|---|---|---|")
        for name in _attacks():
            with _serving(arguments.model, folder) as server:  # without what the ones before have left to be digested
                health, file = _stall(server, name, content, arguments.hostile, arguments.seconds)
                print(f"| {name} | {health:.2f} s | {file:.2f} s |", flush=True)
    shutil.rmtree(folder)


if __name__ == "__main__":  # a hostile client
    name, port, wyoming, clients, over = sys.argv[1:]
    _attack(name, int(port), int(wyoming), int(clients), float(over))
