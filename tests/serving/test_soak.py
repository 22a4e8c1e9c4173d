"""Many clients, a third of which is cut off: afterwards nothing is left of them. `tools/bench serve` does more of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import threading
from pathlib import Path

import aiohttp
import listening
import numpy as np
import pytest
from listening import DIGITS, SEVEN, TEXT, Server

from asr import audio
from asr.audio import SAMPLE_RATE

CLIENTS, TURNS = 6, 9
_POOLS = ("asyncio_", "stream_")  # of threads, whose number has a limit
SOUND = (np.concatenate([audio.read(SEVEN), np.zeros(SAMPLE_RATE)]) * 32767).astype("<i2").tobytes()


def kept(server: Server) -> dict[str, int]:
    """What this process, in which the server runs, holds."""
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        "processes": len(multiprocessing.active_children()),
        "threads": len([one for one in threading.enumerate() if not one.name.startswith(_POOLS)]),
        "uploads": len(os.listdir(server.service.folder)),  # noqa: PTH208
        "requests": server.service.requests,
        "streams": sum(server.service.streams.values()),
        "sockets": len(server.service.sockets),
    }


def megabytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


async def crowd(server: Server, turns: int) -> list[str]:
    """What they were told, of what was not cut off."""
    texts: list[str] = []

    async def file(session: aiohttp.ClientSession, cut: bool) -> None:
        form = aiohttp.FormData()
        form.add_field("file", DIGITS.read_bytes(), filename="a.flac")
        url = f"http://127.0.0.1:{server.port}/v1/audio/transcriptions"
        async with asyncio.timeout(0.02 if cut else None), session.post(url, data=form) as answer:
            texts.append((await answer.json())["text"])

    async def stream(session: aiohttp.ClientSession, cut: bool) -> None:
        async with session.ws_connect(f"http://127.0.0.1:{server.port}/v1/stream") as one:
            await one.send_bytes(SOUND)
            if cut:
                return
            await one.send_str('{"type": "end"}')
            told = [json.loads(message.data) async for message in one]
            texts.extend(event["text"] for event in told if event["type"] == "final")

    async def phone(session: aiohttp.ClientSession, cut: bool) -> None:
        async with session.ws_connect(f"http://127.0.0.1:{server.port}/vosk") as one:
            await one.send_str('{"config": {"sample_rate": 16000}}')
            await one.send_bytes(SOUND)
            if not cut:
                await one.send_str('{"eof": 1}')
                told = [json.loads(message.data) async for message in one]
                texts.extend(event["text"] for event in told if event.get("text"))

    async def client(number: int) -> None:
        async with aiohttp.ClientSession() as session:
            for turn in range(number, number + turns):
                with contextlib.suppress(TimeoutError):  # cut off
                    await (file, stream, phone)[turn % 3](session, turn // 3 % 3 == 0)

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return texts


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs the descriptor list of Linux")
def test_a_crowd_leaves_nothing() -> None:
    with listening.running(workers=2, max_streams=CLIENTS) as server:
        asyncio.run(crowd(server, 3))  # what is made once is there then
        listening.until(lambda: kept(server)["streams"] == kept(server)["requests"] == 0)
        before, size = kept(server), megabytes()
        texts = asyncio.run(crowd(server, TURNS))
        listening.until(lambda: kept(server) == before)
        assert set(texts) <= {TEXT, "seven"}
        assert len(texts) >= CLIENTS * TURNS * 2 // 3
        print(f"{CLIENTS * TURNS} requests and streams: from {size} to {megabytes()} MB")
        assert server.is_well()
