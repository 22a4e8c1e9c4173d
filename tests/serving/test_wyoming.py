"""Wyoming, as its own package speaks it, and as nobody should."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from listening import DIGITS, TEXT, Server
from wyoming.asr import Transcribe, Transcript, TranscriptChunk, TranscriptStart, TranscriptStop
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.event import Event, Eventable
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong

from asr import audio
from asr.audio import SAMPLE_RATE, resample

WAVEFORM = audio.read(DIGITS)


def talk(server: Server, *events: Any) -> list[Event]:
    """What comes back, until the server closes, or has answered the last event that is answered."""

    async def talked() -> list[Event]:
        async with AsyncTcpClient("127.0.0.1", server.ports["wyoming"]) as client:
            for event in events:
                await client.write_event(event if isinstance(event, Event) else event.event())
            found = []
            while (event := await client.read_event()) is not None:
                found.append(event)
                if event.type in ("info", "pong"):
                    break
            return found

    return asyncio.run(talked())


def recording(width: int = 2, rate: int = 16000, channels: int = 1) -> list[Any]:
    sound = np.repeat(resample(WAVEFORM, SAMPLE_RATE, rate)[:, None], channels, axis=1).ravel()
    if width == 1:
        content = (sound * 127 + 128).astype(np.uint8).tobytes()
    else:
        values = (sound.astype(np.float64) * (2 ** (8 * width - 1) - 1)).astype("<i4")
        content = values[:, None].view(np.uint8).reshape(-1, 4)[:, :width].tobytes()
    size = 1024 * width * channels
    head = {"rate": rate, "width": width, "channels": channels}
    chunks = [AudioChunk(audio=content[at : at + size], **head) for at in range(0, len(content), size)]
    return [AudioStart(**head), *chunks, AudioStop()]


def text_of(events: list[Event]) -> str:
    (transcript,) = (Transcript.from_event(event) for event in events if Transcript.is_type(event.type))
    return transcript.text


def test_describe(server: Server) -> None:
    (event,) = talk(server, Describe())
    (program,) = Info.from_event(event).asr
    assert program.installed
    assert program.supports_transcript_streaming
    assert [(model.name, model.languages) for model in program.models] == [("digits", ["en"])]


def test_ping(server: Server) -> None:
    (event,) = talk(server, Ping(text="hello"))
    assert Pong.from_event(event).text == "hello"


def test_a_recording_as_home_assistant_sends_it(server: Server) -> None:
    events = talk(server, Transcribe(language="en"), *recording())
    assert text_of(events) == TEXT
    kinds: list[type[Eventable]] = [TranscriptStart, TranscriptChunk, Transcript, TranscriptStop]
    assert [kind.is_type(event.type) for kind, event in zip(kinds, events, strict=True)] == [True] * 4
    assert "".join(TranscriptChunk.from_event(event).text for event in events[1:2]) == TEXT


@pytest.mark.parametrize(("width", "rate", "channels"), [(1, 16000, 1), (2, 48000, 2), (3, 16000, 1), (4, 16000, 2)])
def test_samples_of_any_kind(server: Server, width: int, rate: int, channels: int) -> None:
    heard = text_of(talk(server, *recording(width, rate, channels)))
    assert heard == TEXT if width > 1 else heard  # 8 bits are noise


def test_names_and_terms(server: Server) -> None:
    wishes = Event(
        "transcribe", {"name": "digits", "transcript_names": ["nine", "Þór", 5], "transcript_terms": ["zero"]}
    )
    assert text_of(talk(server, wishes, *recording())) == TEXT


def test_nothing_is_a_transcript_too(server: Server) -> None:
    assert text_of(talk(server, AudioStop())) == ""
    assert text_of(talk(server, AudioStart(rate=16000, width=2, channels=1), AudioStop())) == ""


@pytest.mark.parametrize(
    "start", [{"rate": 1, "width": 2, "channels": 1}, {"rate": "fast"}, {}, {"rate": 16000, "width": 2, "channels": 0}]
)
def test_wrong_sound_is_an_error_and_a_transcript(server: Server, start: dict[str, Any]) -> None:
    chunk = Event("audio-chunk", start | {"rate": start.get("rate", 16000)}, b"\0" * 320)
    events = talk(server, Event("audio-start", start), chunk, AudioStop())
    assert [event.type for event in events if event.type == "error"] == ["error"]
    assert text_of(events) == ""


def test_too_many(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.service, "settings", replace(server.settings, max_streams=0))
    events = talk(server, *recording()[:1])
    assert [event.type for event in events] == ["error", "transcript", "transcript-stop"]
    assert events[0].data["code"] == "overloaded"


@pytest.mark.parametrize(
    "sent",
    [
        b"hello\n",
        b"[]\n",
        b'{"type": "describe", "data_length": -1}\n',
        b'{"type": "audio-chunk", "payload_length": 99999999999}\n',
        b'{"type": "ping", "data_length": 5}\nhello',
        b'{"type": "ping", "data_length": 1e999}\n',
        b'{"type": "' + b"x" * 100_000 + b'"}\n',
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=lambda sent: str(sent[:40]),
)
def test_what_is_no_protocol_ends_its_connection_alone(server: Server, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.ports["wyoming"])) as connection:
        connection.sendall(sent)
        got = b""
        try:
            while piece := connection.recv(4096):
                got += piece
        except ConnectionResetError:  # it had not read all of it
            pass
    assert got == b""
    assert text_of(talk(server, AudioStop())) == ""
