"""Live streams by our own protocol, and the page's files."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import listening
import numpy as np
import pytest
from listening import DIGITS, TEXT, Server, s16

from asr import Recognizer, audio
from asr.audio import SAMPLE_RATE, resample

WAVEFORM = audio.read(DIGITS)


@asynccontextmanager
async def opened(server: Server, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    url = f"http://127.0.0.1:{server.port}{path}"
    async with aiohttp.ClientSession() as session, session.ws_connect(url, **options) as one:
        yield one


async def rest(one: aiohttp.ClientWebSocketResponse) -> list[dict[str, Any]]:
    """All that comes until the server closes."""
    return [json.loads(message.data) async for message in one]


def spoken(
    server: Server, query: str = "", pieces: list[bytes | str] | None = None, **options: Any
) -> tuple[list[dict[str, Any]], int | None]:
    """The events of a stream, and the code that it is closed with."""
    whole = s16(WAVEFORM)
    sent = [whole[at : at + 6400] for at in range(0, len(whole), 6400)] if pieces is None else pieces

    async def talk() -> tuple[list[dict[str, Any]], int | None]:
        async with opened(server, f"/v1/stream{query}", **options) as one:
            for piece in [*sent, '{"type": "end"}']:
                await (one.send_bytes(piece) if isinstance(piece, bytes) else one.send_str(piece))
            return await rest(one), one.close_code

    return asyncio.run(talk())


def of(kind: str, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] == kind]


def test_words_as_they_are_spoken(server: Server) -> None:
    events, code = spoken(server)
    assert code == 1000
    assert (events[0]["type"], events[0]["model"], events[0]["rate"]) == ("ready", "digits", 16000)
    assert len(of("partial", events)) > 3
    assert [one["text"] for one in of("final", events)] == [TEXT]
    (final,) = of("final", events)
    assert [word["text"] for word in final["words"]] == TEXT.split()
    assert all(0 < word["start_s"] < word["end_s"] < 4.6 and 0 < word["confidence"] <= 1 for word in final["words"])
    assert (events[-2]["type"], events[-2]["why"]) == ("endpoint", "end")
    assert events[-1] == {"type": "done", "time_s": 4.501}
    assert server.metric("asr_streams", protocol="native") == 0
    assert server.metric("asr_streams_total", protocol="native", end="done") >= 1


@pytest.mark.parametrize(("rate", "kind"), [(48000, "f32"), (8000, "s16"), (44100, "s16")])
def test_any_rate_and_both_formats(server: Server, rate: int, kind: str) -> None:
    sound = resample(WAVEFORM, SAMPLE_RATE, rate)
    content = sound.astype("<f4").tobytes() if kind == "f32" else s16(sound)
    pieces: list[bytes | str] = [content[at : at + 40_000] for at in range(0, len(content), 40_000)]
    events, _ = spoken(server, f"?rate={rate}&format={kind}&chunk_s=0.64&right_context_s=0.48", pieces)
    assert [one["text"] for one in of("final", events)] == [TEXT]


def test_lost_sound_moves_the_times(server: Server) -> None:
    sent: list[bytes | str] = [s16(WAVEFORM), '{"type": "lost", "samples": 160000}', s16(WAVEFORM)]
    events, code = spoken(server, pieces=sent)
    first, second = of("final", events)
    assert code == 1000
    assert first["text"] == second["text"] == TEXT
    moved = second["words"][0]["start_s"] - first["words"][0]["start_s"]
    assert moved == pytest.approx(10 + len(WAVEFORM) / SAMPLE_RATE, abs=0.05)


def test_what_is_sent_at_once_is_heard_all_the_same(server: Server) -> None:
    """Ten seconds wait at most; the rest stays with the client until there is room."""
    whole = np.tile(WAVEFORM, 8)
    content = s16(whole)
    pieces: list[bytes | str] = [content[at : at + 500_000] for at in range(0, len(content), 500_000)]
    events, code = spoken(server, pieces=pieces)
    assert code == 1000
    assert " ".join(one["text"] for one in of("final", events)) == " ".join([TEXT] * 8)


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"odd", "invalid_value", 1003),
        ("no json", "invalid_value", 1003),
        ("[1]", "invalid_value", 1003),
        ('{"type": "sing"}', "invalid_value", 1003),
        ('{"type": "lost", "samples": -1}', "invalid_value", 1003),
        ('{"type": "lost", "samples": 1e99}', "invalid_value", 1003),
    ],
)
def test_wrong_messages(server: Server, sent: bytes | str, status: str, code: int) -> None:
    events, closed = spoken(server, pieces=[sent])
    assert (events[-1]["type"], events[-1]["code"], closed) == ("error", status, code)


def test_samples_that_are_none(server: Server) -> None:
    events, closed = spoken(server, "?format=f32", [np.full(1600, np.nan, "<f4").tobytes()])
    assert (events[-1]["code"], closed) == ("invalid_audio", 1003)


def test_too_much_in_a_message(server: Server) -> None:
    # The code is lost where the client still sends when the connection closes.
    events, code = spoken(server, pieces=[b"\0" * (2 << 20)])
    assert ([event["type"] for event in events], code in (1006, 1009)) == (["ready"], True)
    assert server.is_well()


@pytest.mark.parametrize("query", ["rate=1", "format=mp3", "model=large", "chunk_s=99", "chunk_s=x", "chunk_s=0"])
def test_wrong_options_are_told_before_the_socket_opens(server: Server, query: str) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as told:
        spoken_at(server, f"/v1/stream?{query}")
    assert told.value.status in (400, 404)
    assert server.metric("asr_streams", protocol="native") == 0


def spoken_at(server: Server, path: str, **options: Any) -> list[dict[str, Any]]:
    async def talk() -> list[dict[str, Any]]:
        async with opened(server, path, **options) as one:
            await one.send_str('{"type": "end"}')
            return await rest(one)

    return asyncio.run(talk())


def test_a_plain_request_is_told_why_a_socket_would_not_open(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    status, _, body = server.ask("/v1/stream")
    assert (status, json.loads(body)["error"]["param"]) == (400, "upgrade")
    monkeypatch.setattr(server.service, "settings", replace(server.settings, max_streams=0))
    status, headers, body = server.ask("/v1/stream")
    assert (status, json.loads(body)["error"]["code"], headers["retry-after"]) == (503, "overloaded", "10")
    with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
        spoken_at(server, "/v1/stream")


def test_pages_of_others_open_no_socket(server: Server) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
        spoken_at(server, "/v1/stream", origin="http://evil.example")
    assert spoken_at(server, "/v1/stream", origin=f"http://127.0.0.1:{server.port}")[-1]["type"] == "done"
    with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
        spoken_at(server, "/v1/stream", headers={"Host": "evil.example"})


def test_limits_of_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.service, "settings", replace(server.settings, max_stream_s=2.0))
    events, code = spoken(server)
    assert (events[-1]["code"], code) == ("audio_too_long", 1008)
    monkeypatch.setattr(server.service, "settings", replace(server.settings, first_s=0.1))

    async def wait() -> Any:
        async with opened(server, "/v1/stream") as one:
            return await rest(one), one.close_code

    events, code = asyncio.run(wait())
    assert (events[-1]["code"], code) == ("idle", 1008)


def test_clients_that_go_away_leave_nothing(server: Server) -> None:
    async def leave() -> None:
        async with opened(server, "/v1/stream") as one:
            await one.send_bytes(s16(WAVEFORM))
            await one.receive()

    asyncio.run(leave())
    # Neither with a word nor without.
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert connection.recv(12) == b"HTTP/1.1 101"
    listening.until(lambda: server.metric("asr_streams", protocol="native") == 0)
    assert server.metric("asr_streams_total", protocol="native", end="gone") >= 2


def test_the_token_as_a_protocol() -> None:
    with listening.running(token="0123456789", grace_s=0.1) as server:

        async def talk(*protocols: str) -> str | None:
            async with opened(server, "/v1/stream", protocols=protocols) as one:
                return one.protocol

        assert asyncio.run(talk("asr.v1", "asr.token.0123456789")) == "asr.v1"
        for wrong in (("asr.v1",), ("asr.v1", "asr.token.1")):
            with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
                asyncio.run(talk(*wrong))
        assert server.ask("/page.js")[0] == 200

        async def outlive() -> Any:
            """The server ends: what was said is told first."""
            async with opened(server, "/v1/stream", headers={"X-API-Key": "0123456789"}) as one:
                await one.send_bytes(s16(WAVEFORM))
                while json.loads((await one.receive()).data)["type"] != "partial":
                    pass
                server.do(server._stop.set)
                return await rest(one), one.close_code

        events, code = asyncio.run(outlive())
        assert "".join(one["text"] for one in of("final", events)).startswith("five seven")
        assert (events[-1]["type"], code) == ("done", 1001)


def test_a_stream_hears_what_a_file_says(server: Server) -> None:
    final = of("final", spoken(server)[0])[0]
    whole = Recognizer("digits").transcribe(DIGITS)
    assert [word["text"] for word in final["words"]] == [word.text for word in whole.words]


def test_the_pages_files(server: Server) -> None:
    status, headers, body = server.ask("/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    rules = headers["content-security-policy"]
    assert f"connect-src 'self' ws://127.0.0.1:{server.port} wss://127.0.0.1:{server.port};" in rules
    assert "default-src 'none'" in rules
    assert "unsafe" not in rules
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
    # All that it loads is there, and nothing is of another place.
    named = re.findall(r'(?:src|href)="([^"]+)"', body.decode())
    assert {"page.css", "page.js"} <= set(named)
    for name in [*named, "formats.js", "worklet.js"]:
        if not name.startswith("data:"):
            status, headers, body = server.ask(f"/{name}")
            assert (status, headers["x-content-type-options"]) == (200, "nosniff")
            assert b"http://" not in body.replace(b"http://localhost:${port}/", b"")
            assert b"https://" not in body


def test_without_a_page() -> None:
    from asr.serving import app, settings

    routes = app.application(settings.Settings(models=("digits",), page=False, metrics=False)).router.resources()
    paths = {route.canonical for route in routes}
    assert "/v1/models" in paths
    assert not paths & {"/page.js", "/metrics"}
