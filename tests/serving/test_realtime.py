"""OpenAI's Realtime interface, as its own package and as recorded clients speak it."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace
from typing import Any

import aiohttp
import numpy as np
import openai
import pytest
from listening import DIGITS, TEXT, Server, s16

from asr import audio
from asr.audio import SAMPLE_RATE, resample
from asr.serving import realtime

WAVEFORM = audio.read(DIGITS)
COMPLETED = "conversation.item.input_audio_transcription.completed"
DELTA = "conversation.item.input_audio_transcription.delta"


def pcm(rate: int = 24000, times: int = 1, pause_s: float = 0.0) -> bytes:
    sound = np.tile(np.concatenate([resample(WAVEFORM, SAMPLE_RATE, rate), np.zeros(round(pause_s * rate))]), times)
    return s16(sound)


def companded(law: str) -> bytes:
    """By the decoder's own table, the nearest value."""
    table = realtime._TABLES[f"audio/{law}"]
    order = np.argsort(table)
    sound = resample(WAVEFORM, SAMPLE_RATE, 8000)
    at = np.searchsorted(table[order], sound).clip(1, 255)
    nearer = np.abs(table[order[at - 1]] - sound) < np.abs(table[order[at]] - sound)
    return bytes(np.where(nearer, order[at - 1], order[at]).tolist())


def appended(content: bytes, size: int = 48_000) -> list[dict[str, Any]]:
    pieces = (content[at : at + size] for at in range(0, len(content), size))
    return [{"type": "input_audio_buffer.append", "audio": base64.b64encode(piece).decode()} for piece in pieces]


def talk(
    server: Server, events: list[dict[str, Any] | str], last: str, count: int = 1, **options: Any
) -> list[dict[str, Any]]:
    """What comes until the last has come so many times."""

    async def talked() -> list[dict[str, Any]]:
        url = f"http://127.0.0.1:{server.port}/v1/realtime?intent=transcription"
        async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0, **options) as one:
            for event in events:
                await one.send_str(event if isinstance(event, str) else json.dumps(event))
            found: list[dict[str, Any]] = []
            while sum(event["type"] == last for event in found) < count:
                message = await one.receive()
                is_open = message.type == aiohttp.WSMsgType.TEXT
                found.append(json.loads(message.data) if is_open else {"type": "closed", "code": one.close_code})
            return found

    return asyncio.run(talked())


def update(**given: Any) -> dict[str, Any]:
    return {"type": "session.update", "session": {"type": "transcription", "audio": {"input": given}}}


def texts(events: list[dict[str, Any]]) -> list[str]:
    return [event["transcript"] for event in events if event["type"] == COMPLETED]


COMMIT = {"type": "input_audio_buffer.commit"}


def test_keywords_are_hot_words(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, steered = [], server.service.steered

    def spied(model: str, **steering: Any) -> Any:
        asked.append((model, steering))
        return steered(model, **steering)

    monkeypatch.setattr(server.service, "steered", spied)
    keywords = ["zero", "Þór", "x" * 65, 7, " ", *["nine"] * 300]
    events: list[Any] = [update(turn_detection=None, transcription={"keywords": keywords}), *appended(pcm()), COMMIT]
    told = talk(server, events, COMPLETED)
    (session,) = [event["session"] for event in told if event["type"] == "session.updated"]
    assert session["audio"]["input"]["transcription"] == {"keywords": ["zero", "Þór", *["nine"] * 198]}
    assert texts(told) == [TEXT]
    assert asked[0] == ("digits", {"hotwords": ("zero", "Þór", *["nine"] * 198)})


def test_turns_that_the_server_finds(server: Server) -> None:
    events = talk(
        server,
        [
            update(turn_detection={"type": "server_vad", "silence_duration_ms": 900}),
            *appended(pcm(times=3, pause_s=1.5)),
        ],
        COMPLETED,
        3,
    )
    assert texts(events) == [TEXT] * 3
    kinds = [event["type"].rpartition("input_audio_")[2] for event in events]
    assert kinds[:2] == ["session.created", "session.updated"]
    first = kinds[2 : kinds.index("transcription.completed") + 1]
    assert [kind for kind in first if kind != "transcription.delta"] == [
        *("buffer.speech_started", "buffer.speech_stopped", "buffer.committed"),
        *("conversation.item.added", "conversation.item.done", "transcription.completed"),
    ]
    # Items are a chain, and what was told of each before its end is its text.
    items = [event for event in events if event["type"] == "input_audio_buffer.committed"]
    assert [item["previous_item_id"] for item in items] == [None, *(item["item_id"] for item in items[:-1])]
    for item in items:
        deltas = [event["delta"] for event in events if event["type"] == DELTA and event["item_id"] == item["item_id"]]
        assert "".join(deltas) == TEXT
    started, stopped = (
        [event[name] for event in events if name in event] for name in ("audio_start_ms", "audio_end_ms")
    )
    assert all(one < other for one, other in zip(started, stopped, strict=True))
    assert len({event["event_id"] for event in events}) == len(events)


def test_turns_that_the_client_ends(server: Server) -> None:
    events = talk(
        server,
        [update(turn_detection=None), *appended(pcm(times=2, pause_s=1.5)), COMMIT, *appended(pcm()), COMMIT],
        COMPLETED,
        2,
    )
    assert texts(events) == [f"{TEXT} {TEXT}", TEXT]
    assert not [event for event in events if "speech" in event["type"]]
    usage = [event["usage"] for event in events if event["type"] == COMPLETED]
    assert usage == [{"type": "duration", "seconds": 12.001}, {"type": "duration", "seconds": 4.501}]


@pytest.mark.parametrize("kind", ["audio/pcmu", "audio/pcma", "audio/pcm"])
def test_formats(server: Server, kind: str) -> None:
    content = pcm(16000) if kind == "audio/pcm" else companded(kind.removeprefix("audio/"))
    form = {"type": kind} | ({"rate": 16000} if kind == "audio/pcm" else {})
    events = talk(server, [update(format=form, turn_detection=None), *appended(content), COMMIT], COMPLETED)
    assert texts(events) == [TEXT]


def test_the_tables_of_companded_sound() -> None:
    """ITU-T G.711: the largest values, the smallest, and the signs."""
    ulaw, alaw = realtime._TABLES["audio/pcmu"] * 32768, realtime._TABLES["audio/pcma"] * 32768
    assert [ulaw[code] for code in (0x00, 0x80, 0x7F, 0xFF, 0xFE)] == [-32124, 32124, 0, 0, 8]
    assert [alaw[code] for code in (0x2A, 0xAA, 0x55, 0xD5)] == [-32256, 32256, -8, 8]


BETA = {
    "livekit": {
        "type": "transcription_session.update",
        "session": {
            "input_audio_format": "pcm16",
            "input_audio_transcription": {"model": "gpt-4o-mini-transcribe", "prompt": "", "language": "en"},
            "turn_detection": {"type": "server_vad", "threshold": 0.5, "silence_duration_ms": 900},
        },
    },
    "jigasi": {
        "type": "session.update",
        "session": {
            "modalities": ["text"],
            "input_audio_format": "pcm16",
            "input_audio_transcription": {"model": "whisper-1"},
            "turn_detection": {"type": "semantic_vad", "eagerness": "low"},
        },
    },
}


@pytest.mark.parametrize("client", list(BETA))
def test_the_dialects_of_the_beta(server: Server, client: str) -> None:
    events = talk(server, [BETA[client], *appended(pcm(pause_s=1.5))], COMPLETED)
    kind = {"livekit": "transcription_session.updated", "jigasi": "session.updated"}[client]
    (updated,) = (event for event in events if event["type"] == kind)
    assert updated["session"]["input_audio_format"] == "pcm16"
    assert texts(events) == [TEXT]
    assert [
        event["type"] for event in events if event["type"].startswith("conversation.item.") and "item" in event
    ] == ["conversation.item.created"]


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (COMMIT, "input_audio_buffer_commit_empty"),
        ({"type": "response.create"}, "unsupported_event"),
        ({"type": "input_audio_buffer.append", "audio": "§"}, "invalid_value"),
        ({"type": "input_audio_buffer.append", "audio": "QQ=="}, "invalid_value"),
        ({"type": "input_audio_buffer.append"}, "invalid_value"),
        (update(format={"type": "audio/opus"}), "invalid_value"),
        (update(format={"type": "audio/pcm", "rate": 1}), "invalid_value"),
        (update(turn_detection="now"), "invalid_value"),
        ({"type": "session.update"}, "invalid_value"),
        ("[1]", "invalid_value"),
        ("hello", "invalid_value"),
    ],
    ids=str,
)
def test_errors_do_not_end_a_session(server: Server, event: Any, code: str) -> None:
    given = event | {"event_id": "mine"} if isinstance(event, dict) else event
    events = talk(server, [given, update(turn_detection=None), *appended(pcm()), COMMIT], COMPLETED)
    (told,) = (event["error"] for event in events if event["type"] == "error")
    assert (told["code"], told["event_id"]) == (code, "mine" if isinstance(event, dict) else None)
    assert texts(events) == [TEXT]


def test_what_is_known_of_a_session_is_echoed_and_nothing_else(server: Server) -> None:
    turns = {"type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 300, "create_response": True}
    given: dict[str, dict[str, Any]] = {
        "format": {"type": "audio/pcm", "rate": 16000},
        "noise_reduction": {"type": "near_field"},
        "transcription": {"model": "whisper-1", "language": "en", "delay": "low"},
        "turn_detection": turns,
    }
    unknown = {"x": "y", "type": {"a": "b"}, "language": "e\nn", "delay": "l" * 101, "threshold": float("nan")}
    changed = {name: unknown | value for name, value in given.items()} | {"transcription": unknown, "more": [1]}
    wide = {"type": "session.update", "session": {"audio": {"input": changed}, "include": ["x", {"y": 1}]}}
    wide["event_id"] = "\ud800"
    first, second, third, fourth = talk(server, [update(**given), wide, update(format=None)], "error")
    assert first["type"] == "session.created"
    assert second["session"]["audio"]["input"] == given
    assert third["session"]["audio"]["input"] == given | {"transcription": {}}
    assert third["session"]["include"] == []
    assert fourth["error"]["param"] == "session.audio.input.format"


def test_updates_do_not_lengthen_a_stream(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.service, "settings", replace(server.settings, max_stream_s=6.0))
    other = update(format={"type": "audio/pcm", "rate": 16000})
    events = talk(server, [*appended(pcm()), other, *appended(pcm(16000))], "closed")
    assert events[-1]["code"] == 1008
    assert len([event for event in events if event["type"] == "session.updated"]) == 1


def test_a_format_that_changes_within_an_item(server: Server) -> None:
    """Its length is that of the sound, its times go on, and what was said before counts."""
    first, then = update(turn_detection=None), update(format={"type": "audio/pcm", "rate": 16000})
    events = talk(server, [first, *appended(pcm()), then, *appended(pcm(16000)), COMMIT], COMPLETED)
    assert texts(events) == [f"{TEXT} {TEXT}"]
    assert events[-1]["usage"]["seconds"] == pytest.approx(9.0, abs=0.01)


def test_clear_forgets(server: Server) -> None:
    clear = {"type": "input_audio_buffer.clear"}
    events = talk(server, [update(turn_detection=None), *appended(pcm()), clear, COMMIT], "error")
    assert events[-2]["type"] == "input_audio_buffer.cleared"
    assert events[-1]["error"]["code"] == "input_audio_buffer_commit_empty"


@pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager")  # of websockets 17, by the package
def test_the_package(server: Server) -> None:
    """As its guide says: without a model."""
    turns = {"type": "server_vad", "silence_duration_ms": 900}
    include = ["item.input_audio_transcription.logprobs"]
    session: Any = {"type": "transcription", "audio": {"input": {"turn_detection": turns}}, "include": include}
    found: list[Any] = []
    with (
        openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="any") as client,
        client.realtime.connect(extra_query={"intent": "transcription"}) as connection,
    ):
        connection.session.update(session=session)
        for event in appended(pcm(pause_s=1.5)):
            connection.input_audio_buffer.append(audio=event["audio"])
        while not found or found[-1].type != COMPLETED:
            found.append(connection.recv())
    assert found[0].type == "session.created"
    assert found[-1].transcript == TEXT
    assert [one.token for one in found[-1].logprobs] == [f" {word}" for word in TEXT.split()]
    assert "".join(told.delta for told in found if told.type == DELTA) == TEXT


def test_browsers_name_protocols(server: Server) -> None:
    protocols = ("realtime", "openai-insecure-api-key.any", "openai-beta.realtime-v1")
    assert talk(server, [], "session.created", protocols=protocols)[0]["session"]["type"] == "transcription"
