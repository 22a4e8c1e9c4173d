"""Vosk's protocol, as its clients speak it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import aiohttp
import listening
import pytest
from listening import DIGITS, TEXT, Server, s16

from asr import audio
from asr.audio import SAMPLE_RATE, resample

WAVEFORM = audio.read(DIGITS)
CONFIG = {"config": {"sample_rate": 16000, "words": 1}}
EOF = '{"eof" : 1}'


def talk(server: Server, sent: list[Any], path: str = "/vosk", port: int | None = None) -> list[dict[str, Any]]:
    """What is answered, each to a message; one is awaited wherever one is due, and no more than that."""

    async def talked() -> list[dict[str, Any]]:
        url = f"http://127.0.0.1:{port or server.port}{path}"
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as one:
            answers = []
            for message in sent:
                if isinstance(message, bytes):
                    await one.send_bytes(message)
                else:
                    await one.send_str(message if isinstance(message, str) else json.dumps(message))
                if not (isinstance(message, dict) and "config" in message):
                    answers.append(json.loads((await one.receive()).data))
            if sent[-1] == EOF:
                assert (await one.receive()).type == aiohttp.WSMsgType.CLOSE
                assert one.close_code == 1000
            return answers

    return asyncio.run(talked())


def said(answers: list[dict[str, Any]]) -> str:
    return " ".join(one["text"] for one in answers if one.get("text"))


@pytest.mark.parametrize("size", [999, 8000, 1_000_000])
def test_one_answer_to_each_message(server: Server, size: int) -> None:
    content = s16(WAVEFORM)
    pieces = [content[at : at + size] for at in range(0, len(content), size)]
    answers = talk(server, [CONFIG, *pieces, EOF])
    assert len(answers) == len(pieces) + 1
    assert all(("partial" in one) != ("text" in one) for one in answers)
    assert said(answers) == TEXT
    words = [word for one in answers for word in one.get("result", [])]
    assert [word["word"] for word in words] == TEXT.split()
    assert all(0 < word["start"] < word["end"] and 0 < word["conf"] <= 1 for word in words)


def test_single_bytes_are_joined(server: Server) -> None:
    content = s16(WAVEFORM[:400])
    answers = talk(server, [CONFIG, *(content[at : at + 1] for at in range(len(content))), EOF])
    assert answers == [{"partial": ""}] * len(content) + [{"text": ""}]


def test_without_settings_as_asterisk(server: Server) -> None:
    """8 kHz, in pieces of a fifth of a second."""
    content = s16(resample(WAVEFORM, SAMPLE_RATE, 8000))
    pieces = [content[at : at + 3200] for at in range(0, len(content), 3200)]
    assert said(talk(server, [*pieces, EOF])) == TEXT


def test_all_at_once_as_jigasi(server: Server) -> None:
    config = '{"config" : {"sample_rate" : 16000.0, "words" : 0, "model": "/etc/passwd"}}'
    answers = talk(server, [json.loads(config), s16(WAVEFORM), '{"eof":1}'])
    assert said(answers) == TEXT
    assert all("result" not in one for one in answers)


def test_a_list_of_phrases_is_a_grammar(server: Server) -> None:
    config = {"config": {"sample_rate": 16000, "phrase_list": ["seven nine zero", "six", "Þór", 5]}}
    assert said(talk(server, [config, s16(WAVEFORM), EOF])) == "seven nine zero"


def test_alternatives(server: Server) -> None:
    config = {"config": {"sample_rate": 16000, "max_alternatives": 3}}
    last = talk(server, [config, s16(WAVEFORM), EOF])[-1]
    (one,) = last["alternatives"]
    assert one["text"] == TEXT
    assert 0 < one["confidence"] <= 1


def test_reset_is_a_result_and_goes_on(server: Server) -> None:
    answers = talk(server, [CONFIG, s16(WAVEFORM), '{"reset" : 1}', s16(WAVEFORM), EOF])
    assert [one.get("text") for one in answers] == [None, TEXT, None, TEXT]


def test_without_a_path_and_at_a_port_of_its_own(server: Server) -> None:
    assert said(talk(server, [CONFIG, s16(WAVEFORM), EOF], path="/")) == TEXT
    assert said(talk(server, [CONFIG, s16(WAVEFORM), EOF], path="", port=server.ports["vosk"])) == TEXT


@pytest.mark.parametrize("message", ["hello", "[1]", "[" * 2000])
def test_what_is_no_protocol(server: Server, message: str) -> None:
    async def talked() -> int | None:
        url = f"http://127.0.0.1:{server.port}/vosk"
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as one:
            await one.send_str(message)
            assert (await one.receive()).type == aiohttp.WSMsgType.CLOSE
            return one.close_code

    assert asyncio.run(talked()) == 1003
    listening.until(lambda: server.metric("asr_streams", protocol="vosk") == 0)


def test_too_many(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.service, "settings", replace(server.settings, max_streams=0))
    with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
        talk(server, [EOF])
