"""However much one client sends, the others are served: all that takes long is done elsewhere, and all take turns.

What it comes to in seconds, `tools/bench serve --parts stalls` measures.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import listening
import numpy as np
import pytest
from aiohttp import web
from listening import DIGITS, TEXT, Server

from asr import audio
from asr.serving import app, errors, openai, realtime, steering, stream, upload, vosk, wyoming

COUNT = 300


def frame(payload: bytes, kind: int = 1) -> bytes:
    """A message of a client, whose mask is zeros (RFC 6455, section 5.2)."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else bytes([0x80 | 127]) + size.to_bytes(8, "big")
    return bytes([0x80 | kind]) + length + bytes(4) + payload


def upgrade(path: str) -> bytes:
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: localhost",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


@contextmanager
def turns(server: Server) -> Iterator[Callable[[], int]]:
    """The number of the event loop's round."""
    count, over = 0, False

    def tick() -> None:
        nonlocal count
        count += 1
        if not over:
            asyncio.get_running_loop().call_soon(tick)

    server.do(tick)
    try:
        yield lambda: count
    finally:
        over = True


@pytest.mark.parametrize(
    ("where", "sent"),
    [
        ((stream, "json_object"), upgrade("/v1/stream") + frame(b'{"type": "lost", "samples": 0}') * COUNT),
        ((vosk, "json_object"), upgrade("/vosk") + frame(b'{"config": {}}') * COUNT),
        ((realtime, "json_object"), upgrade("/v1/realtime") + frame(b'{"type": "x"}') * COUNT),
        ((wyoming, "json_object"), b'{"type": "ping"}\n' * COUNT),
        ((web.WebSocketResponse, "pong"), upgrade("/vosk") + frame(b"", kind=9) * COUNT),
        ((app, "openai"), b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * COUNT),
    ],
    ids=["stream", "vosk", "realtime", "wyoming", "pings", "requests"],
)
def test_a_flood_leaves_others_their_turn(
    server: Server, monkeypatch: pytest.MonkeyPatch, where: tuple[Any, str], sent: bytes
) -> None:
    """Of what comes at once, one thing is done in a round of the loop."""
    rounds: list[int] = []
    with turns(server) as now:
        owner, name = (server.service.guard, "check") if where[0] is app else where
        done = getattr(owner, name)

        def noted(*arguments: Any, **options: Any) -> Any:
            rounds.append(now())
            return done(*arguments, **options)

        monkeypatch.setattr(owner, name, noted)
        port = server.ports["wyoming"] if where[0] is wyoming else server.port
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(sent)
            reading = threading.Thread(target=drain, args=(connection,))
            reading.start()
            listening.until(lambda: len(rounds) >= COUNT)
            connection.shutdown(socket.SHUT_RDWR)
            reading.join()
    assert len(set(rounds)) == len(rounds)
    assert server.is_well()


def test_a_body_in_chunks_of_a_byte_leaves_others_their_turn(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its reads may be a short one in a round of its own, though all of it has come."""
    monkeypatch.setattr(upload, "_TURN_S", -1.0)
    rounds: list[int] = []
    read = upload._Body.read
    content, kind = listening.form([("file", ("a.wav", b"x" * COUNT * upload._LEAST))])
    lines = ["POST /v1/audio/transcriptions HTTP/1.1", "Host: localhost", "Connection: close", f"Content-Type: {kind}"]
    head = "\r\n".join([*lines, "Transfer-Encoding: chunked", "", ""]).encode()
    with turns(server) as now:

        async def noted(body: upload._Body, size: int) -> bytes:
            rounds.append(now())
            return await read(body, size)

        monkeypatch.setattr(upload._Body, "read", noted)
        answer = server.raw(head + b"".join(b"1\r\n%c\r\n" % byte for byte in content) + b"0\r\n\r\n")
    assert b"invalid_audio" in answer
    assert len(rounds) >= COUNT // 4
    assert len(set(rounds)) == len(rounds)
    assert server.is_well()


def drain(connection: socket.socket) -> None:
    try:
        while connection.recv(1 << 16):
            pass
    except OSError:
        pass


def talk(port: int, *pieces: bytes) -> bytes:
    """What comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for piece in pieces:
            connection.sendall(piece)
        got = b""
        try:
            while piece := connection.recv(1 << 16):
                got += piece
        except ConnectionResetError:  # it closed while more was on its way
            pass
        return got


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How long each JSON is that the server parses."""
    lengths: list[int] = []
    loads = json.loads

    def noted(text: str | bytes, **options: Any) -> Any:
        lengths.append(len(text))
        return loads(text, **options)

    monkeypatch.setattr("json.loads", noted)
    return lengths


LONG = b'{"a": [' + b"{}," * 120_000 + b"{}]}"


@pytest.mark.parametrize(
    "sent",
    [
        upgrade("/v1/stream") + frame(LONG),
        upgrade("/vosk") + frame(LONG),
        b'{"type": "transcribe", "data_length": %d}\n' % len(LONG) + LONG,
        b'{"type": "transcribe", "data": ' + LONG + b"}\n",
    ],
    ids=["stream", "vosk", "wyoming data", "wyoming line"],
)
def test_long_json_is_not_parsed(server: Server, parsed: list[int], sent: bytes) -> None:
    """No other thread runs while it is."""
    talk(server.ports["wyoming"] if sent.startswith(b"{") else server.port, sent)
    assert max(parsed, default=0) <= vosk.MAX_TEXT
    assert server.is_well()


def test_long_sound_is_cut_out_of_its_json(server: Server, parsed: list[int]) -> None:
    samples = np.tile((audio.read(DIGITS) * 32767).astype("<i2"), 8)
    sound = base64.b64encode(samples.tobytes()).decode()
    assert len(sound) > 1_000_000
    form = {"format": {"type": "audio/pcm", "rate": 16000}, "turn_detection": None}
    events: list[Any] = [
        {"type": "session.update", "session": {"audio": {"input": form}}},
        {"type": "x", "y": ["z" * 100] * 20_000},  # told to be too long
        {"x": {"audio": sound}},  # and so is this
        {"event_id": "1", "type": "input_audio_buffer.append", "audio": sound},
    ]
    # As PHP and some others write it.
    texts = [json.dumps(event).replace("/", "\\/") for event in events] + ['{"type": "input_audio_buffer.commit"}']
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(upgrade("/v1/realtime") + b"".join(frame(text.encode()) for text in texts))
        got = b""
        while b"transcription.completed" not in got:
            got += connection.recv(1 << 16)
    assert got.count(b'"type": "error"') == 2
    assert " ".join([TEXT] * 8).encode() in got
    assert max(parsed) <= errors.MAX_JSON


def test_no_work_of_length_on_the_event_loop(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disks may be slow, transcripts long, and steered recognisers take a second to make: threads do all that."""
    doers: dict[str, set[threading.Thread]] = {"derive": set(), "answer": set(), "write": set()}

    def noted(name: str, done: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            doers[name].add(threading.current_thread())
            return done(*arguments, **options)

        return call

    class File:
        def __init__(self, *arguments: Any) -> None:
            self._file = open(*arguments)  # noqa: PTH123, SIM115
            self.write = noted("write", self._file.write)

        def __enter__(self) -> File:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

    steered = server.service.steered
    monkeypatch.setattr(steered, "_derived", noted("derive", steered._derived))
    monkeypatch.setattr(openai, "answer", noted("answer", openai.answer))
    monkeypatch.setattr(upload, "open", File, raising=False)
    assert server.send([("file", DIGITS), ("response_format", "verbose_json")])[2]["text"] == TEXT
    talk(
        server.port,
        upgrade("/vosk")
        + frame(b'{"config": {"phrase_list": ["five", "seven nine"]}}')
        + frame(bytes(3200), kind=2)
        + frame(b'{"eof": 1}')
        + frame(b"", kind=8),
    )
    assert all(doers.values())
    assert not [name for name, threads in doers.items() if server.thread in threads]


def test_what_is_steered_is_made_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    base = server.service.recognizers["digits"]
    steered = steering.Steered({"digits": base})
    assert steered("digits") is base
    assert steered("digits", hotwords=("§", "^")) is base  # nothing of it can be spelt
    one = steered("digits", hotwords=("Seven",))
    assert steered("digits", hotwords=("seven", "§")) is one
    assert steered("digits", phrases=("seven",)) is not one
    for word in ("one", "two", "three", "four"):
        steered("digits", hotwords=(word,))
    assert steered("digits", hotwords=("Seven",)) is not one  # so many are kept, and no more


def test_connections_that_ask_nothing_make_room(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "MAX_CONNECTIONS", 3)
    connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(6)]
    try:
        assert [one.recv(1) for one in connections[:3]] == [b""] * 3
        connections[-1].sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connections[-1].recv(12) == b"HTTP/1.1 200"
    finally:
        for one in connections:
            one.close()


def test_clients_of_wyoming_have_a_limit(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wyoming, "MAX_CLIENTS", 1)
    ping = b'{"type": "ping", "data": {"text": "\\ud800"}}\n'  # a letter that cannot be written
    with socket.create_connection(("127.0.0.1", server.ports["wyoming"])) as connection:
        connection.sendall(ping)
        assert b'"pong"' in connection.recv(1 << 16)
        assert talk(server.ports["wyoming"], ping) == b""
