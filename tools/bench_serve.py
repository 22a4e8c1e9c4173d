"""A server of `asr serve` as its clients find it: files a second, live text behind its sound, what many clients leave."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles

import aiohttp
import numpy as np

from asr import audio, manifest

_PIECE_S = 0.1  # of sound in a message, as a page sends it


@contextlib.contextmanager
def _server(model: str) -> Iterator[tuple[str, int]]:
    """Its address, and its process."""
    command = [sys.executable, "-m", "asr", "serve", "-m", model, "--port", "0", "--max-streams", "64", "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            print(line.strip())
            yield line.split()[0], process.pid
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
        async for message in socket:
            event = json.loads(message.data)
            if event["type"] == "partial":
                behind.append(time.perf_counter() - began - event["time_s"])
                if cut:
                    break
        speaking.cancel()
    return behind


async def _soak(url: str, content: bytes, waveform: np.ndarray, clients: int, count: int) -> None:
    """Files and streams by turns, of which each third is cut off."""

    async def client(number: int) -> None:
        async with aiohttp.ClientSession() as session:
            for turn in range(number, number + count):
                work = _file(session, url, content) if turn % 2 else _stream(url, waveform, False, turn % 3 == 0)
                task = asyncio.ensure_future(work)
                if turn % 6 == 3:
                    await asyncio.sleep(0.05)
                    task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    await asyncio.gather(*(client(number) for number in range(clients)))
    await asyncio.sleep(3)


def _kept(process: int) -> str:
    """What a process holds, where the system tells."""
    folder = Path(f"/proc/{process}")
    if not folder.exists():
        return "unknown here"
    fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    files = len(os.listdir(folder / "fd"))  # noqa: PTH208
    return f"{int(fields['VmRSS'].split()[0]) / 1024:.0f} MB, {fields['Threads'].strip()} threads, {files} descriptors"


def serve(arguments: argparse.Namespace) -> None:
    """Files and live streams of several clients at once, by the first utterance of a manifest."""
    utterance = manifest.read(arguments.manifest)[0]
    content, waveform = Path(utterance.audio).read_bytes(), audio.read_utterance(utterance)
    with _server(arguments.model) as (url, process):
        print(f"\n| clients | files a second, of {len(waveform) / audio.SAMPLE_RATE:.1f} s |\n|---|---|")
        for clients in arguments.clients:
            rate = asyncio.run(_files(url, content, clients, arguments.count))
            print(f"| {clients} | {rate:.1f} |")
        print("\n| streams | text behind the sound, median | 90 % |\n|---|---|---|")
        for streams in arguments.streams:

            async def talk(count: int = streams) -> list[list[float]]:
                return await asyncio.gather(*(_stream(url, waveform) for _ in range(count)))

            behind = [one for each in asyncio.run(talk()) for one in each]
            print(f"| {streams} | {median(behind):.2f} s | {quantiles(behind, n=10)[-1]:.2f} s |")
        before = _kept(process)
        asyncio.run(_soak(url, content, waveform, arguments.crowd, arguments.count))
        print(
            f"\n{arguments.crowd * arguments.count} requests and streams of {arguments.crowd} clients, a third cut off:"
        )
        print(f"before: {before}\nafter: {_kept(process)}")
