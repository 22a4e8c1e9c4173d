"""Other servers' paths for files."""

from __future__ import annotations

import json
from typing import Any

import pysrt
import pytest
import webvtt
from listening import DIGITS, TEXT, Server, form

from asr import audio


def post(server: Server, path: str, fields: list[tuple[str, Any]]) -> tuple[int, bytes]:
    content, kind = form(fields)
    status, _, body = server.ask(path, "POST", content, {"Content-Type": kind})
    return status, body


def test_the_webservice_as_bazarr_calls_it(server: Server) -> None:
    """Samples without a header, and a subtitle that is stored as it comes."""
    raw = (audio.read(DIGITS) * 32767).astype("<i2").tobytes()
    path = "/asr?task=transcribe&language=en&output=srt&encode=false&video_file=film.mkv"
    status, body = post(server, path, [("audio_file", ("film.mkv", raw))])
    assert status == 200
    assert [cue.text for cue in pysrt.from_string(body.decode())] == [TEXT]
    assert json.loads(server.ask("/status")[2])["version"]
    status, body = post(server, "/detect-language?encode=false", [("audio_file", ("film.mkv", raw))])
    assert json.loads(body) == {"detected_language": "english", "language_code": "en", "confidence": 1.0}


def test_the_webservices_outputs(server: Server) -> None:
    def heard(output: str) -> str:
        status, body = post(server, f"/asr?output={output}&word_timestamps=true", [("audio_file", DIGITS)])
        assert status == 200
        return body.decode()

    assert heard("txt") == TEXT + "\n"
    assert [caption.text for caption in webvtt.from_string(heard("vtt")).captions] == [TEXT]
    assert heard("tsv").splitlines()[1].split("\t")[2] == TEXT
    assert [word["word"] for word in json.loads(heard("json"))["words"]] == TEXT.split()


@pytest.mark.parametrize(
    ("query", "param"),
    [("output=ass", "output"), ("task=translate", "task"), ("language=fr", "language"), ("", "audio_file")],
)
def test_the_webservices_errors(server: Server, query: str, param: str) -> None:
    status, body = post(server, f"/asr?{query}", [("other", "x")])
    assert (status, json.loads(body)["error"]["param"]) == (400, param)


def test_whisper_cpp(server: Server) -> None:
    fields = [("file", DIGITS), ("temperature", "0.0"), ("temperature_inc", "0.2")]
    assert json.loads(post(server, "/inference", fields)[1])["text"] == TEXT
    assert post(server, "/inference", [("response_format", "text"), *fields])[1].decode() == TEXT + "\n"
    words = json.loads(post(server, "/inference", [("response_format", "verbose_json"), *fields])[1])["words"]
    assert [word["word"] for word in words] == TEXT.split()
    status, body = post(server, "/inference", [("file", ("a.wav", b"no sound"))])
    assert status == 400
    assert "expected audio" in json.loads(body)["error"]
