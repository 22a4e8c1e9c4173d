"""The file interface, as the `openai` package and curl see it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import listening
import openai
import pysrt
import pytest
import soundfile
import webvtt
from listening import DIGITS, TEXT, Server

from asr import Recognizer


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="any", max_retries=0) as one:
        yield one


def transcribe(client: openai.OpenAI, file: Any = DIGITS, **fields: Any) -> Any:
    return client.audio.transcriptions.create(**({"model": "whisper-1", "file": file} | fields))


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["digits"]
    assert client.models.retrieve("digits").owned_by == "local"
    assert client.models.retrieve("whisper-1").id == "digits"
    with pytest.raises(openai.NotFoundError) as told:
        client.models.retrieve("large")
    assert told.value.code == "model_not_found"


def test_json_and_text(client: openai.OpenAI) -> None:
    answer = transcribe(client)
    assert answer.text == TEXT
    assert (answer.usage.type, answer.usage.seconds) == ("duration", 4.501)
    assert transcribe(client, response_format="text") == TEXT + "\n"


def test_subtitles(client: openai.OpenAI) -> None:
    (cue,) = pysrt.from_string(transcribe(client, response_format="srt"))
    assert cue.text == TEXT
    (caption,) = webvtt.from_string(transcribe(client, response_format="vtt")).captions
    assert caption.text == TEXT


def test_verbose_json_has_all_that_clients_expect(client: openai.OpenAI) -> None:
    answer = transcribe(client, response_format="verbose_json", timestamp_granularities=["word", "segment"])
    assert (answer.text, answer.language, answer.duration) == (TEXT, "english", 4.501)
    assert [word.word for word in answer.words] == TEXT.split()
    assert all(0 <= word.start < word.end <= answer.duration for word in answer.words)
    assert all(one.end <= other.start for one, other in pairwise(answer.words))
    (segment,) = answer.segments
    assert (segment.id, segment.seek, segment.text, segment.tokens) == (0, 0, TEXT, [])
    assert (segment.start, segment.end) == (answer.words[0].start, answer.words[-1].end)
    assert -2 < segment.avg_logprob < 0 < segment.compression_ratio
    assert (segment.temperature, segment.no_speech_prob) == (0.0, 0.0)
    assert transcribe(client, response_format="verbose_json").words is None


def test_logprobs_are_one_a_word(client: openai.OpenAI) -> None:
    answer = transcribe(client, include=["logprobs"])
    assert "".join(one.token for one in answer.logprobs).strip() == TEXT
    assert all(bytes(map(int, one.bytes)).decode() == one.token and one.logprob < 0 for one in answer.logprobs)


def test_streams_are_the_text_in_pieces(client: openai.OpenAI) -> None:
    events = list(transcribe(client, stream=True, include=["logprobs"], file=("d.wav", listening.minutes(0.6))))
    *deltas, done = events
    assert {event.type for event in deltas} == {"transcript.text.delta"}
    assert done.type == "transcript.text.done"
    assert len(deltas) > 1
    assert "".join(event.delta for event in deltas).strip() == done.text == " ".join([TEXT] * 8)
    assert len(done.logprobs) == 32


def test_silence_is_no_text_and_no_segment(client: openai.OpenAI, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silence.wav", [0.0] * 16000, 16000)
    answer = transcribe(client, tmp_path / "silence.wav", response_format="verbose_json")
    assert (answer.text, answer.segments) == ("", [])


def test_keywords_are_hot_words_as_far_as_they_can_be_spelt(server: Server) -> None:
    fields = [("keywords[]", "zero"), ("keywords[]", "Þór"), ("keywords", "nine^20"), ("file", DIGITS)]
    assert server.send(fields)[2]["text"] == TEXT
    status, _, body = server.send([("keywords[]", "x" * 65), ("file", DIGITS)])
    assert (status, body["error"]["param"]) == (400, "keywords")


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3", "m4a", "webm"])
def test_containers(client: openai.OpenAI, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    samples, rate = soundfile.read(DIGITS, dtype="float32")
    if kind in ("m4a", "webm"):
        _write_container(path, samples, rate)
    else:
        soundfile.write(path, samples, rate)
    assert transcribe(client, path).text == Recognizer("digits").transcribe(path).text == TEXT


def _write_container(path: Path, samples: Any, rate: int) -> None:
    import av

    with av.open(path, "w", format="mp4" if path.suffix == ".m4a" else "webm") as file:
        track = file.add_stream("aac" if path.suffix == ".m4a" else "libopus", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=track.format.name, layout="mono", rate=48000, frame_size=960)
        for one in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(track.encode(one))
        file.mux(track.encode(None))


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"model": "large"}, 404, "model_not_found", "model"),
        ({"language": "de"}, 400, "unsupported_language", "language"),
        ({"extra_body": {"languages": ["de", "fr"]}}, 400, "unsupported_language", "language"),
        ({"response_format": "diarized_json"}, 400, "unsupported_value", "response_format"),
        ({"response_format": "xml"}, 400, "invalid_value", "response_format"),
        ({"temperature": 2}, 400, "invalid_value", "temperature"),
        ({"timestamp_granularities": ["letter"]}, 400, "invalid_value", "timestamp_granularities"),
        ({"include": ["thoughts"]}, 400, "unsupported_value", "include"),
        ({"extra_body": {"stream": "perhaps"}}, 400, "invalid_value", "stream"),
        ({"extra_body": {"known_speaker_names": ["a"]}}, 400, "unsupported_parameter", "known_speaker_names"),
        ({"file": ("a.wav", b"no sound")}, 400, "invalid_audio", None),
        ({"file": ("a.wav", b"")}, 400, "invalid_audio", None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_errors(client: openai.OpenAI, fields: dict[str, Any], status: int, code: str, param: str | None) -> None:
    with pytest.raises(openai.APIStatusError) as told:
        transcribe(client, **fields)
    assert (told.value.status_code, told.value.code, told.value.param) == (status, code, param)
    assert told.value.type == "invalid_request_error"
    assert told.value.response.headers.get("x-should-retry") == ("false" if status == 400 else None)


def test_the_languages_names(server: Server) -> None:
    for said in ("en", "en-US", "English", ""):
        assert server.send([("language", said), ("file", DIGITS)])[0] == 200


def test_errors_name_the_clients_file_and_never_the_servers(server: Server) -> None:
    message = server.send([("file", ("../etc/talk.wav", b"RIFF"))])[2]["error"]["message"]
    assert "talk.wav" in message
    assert str(server.service.folder) not in message


def test_fields_in_any_order_and_any_case_of_use(server: Server) -> None:
    before = server.metric("asr_ignored_fields_total")
    fields = [("prompt", "Hello"), ("chunking_strategy[type]", "server_vad"), ("house", "red")]
    assert server.send([("file", DIGITS), *fields])[2]["text"] == TEXT
    assert server.send([*fields, ("file", DIGITS), ("timestamp_granularities", "word")])[2]["text"] == TEXT
    assert server.metric("asr_ignored_fields_total") == before + 2


def test_what_is_not_there(server: Server) -> None:
    status, headers, body = server.ask("/v1/audio/transcriptions")
    assert (status, headers["allow"], json.loads(body)["error"]["code"]) == (405, "POST", "method_not_allowed")
    assert json.loads(server.ask("/v1/chat/completions", "POST")[2])["error"]["code"] == "unknown_url"
    status, _, refusal = server.send([("file", DIGITS)], path="/v1/audio/translations")
    assert (status, refusal["error"]["code"]) == (404, "unknown_url")
    status, _, told = server.ask(
        "/v1/audio/transcriptions", "POST", DIGITS.read_bytes(), {"Content-Type": "audio/flac"}
    )
    assert (status, json.loads(told)["error"]["code"]) == (415, "unsupported_format")
    assert server.send([("model", "digits")])[2]["error"]["code"] == "missing_required_parameter"


def test_many_at_once(server: Server) -> None:
    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="any") as client:
            content = DIGITS.read_bytes()
            asked = (client.audio.transcriptions.create(model="m", file=("d.flac", content)) for _ in range(16))
            return [answer.text for answer in await asyncio.gather(*asked)]

    server.service._aliases.add("m")
    assert asyncio.run(all_of_them()) == [TEXT] * 16


def test_a_client_that_goes_away_cancels_its_work(server: Server, client: openai.OpenAI) -> None:
    before = server.metric("asr_jobs_cancelled_total")
    stream = transcribe(client, stream=True, file=("long.wav", listening.minutes(20)))
    assert next(iter(stream)).type == "transcript.text.delta"
    stream.close()
    listening.until(lambda: server.metric("asr_jobs_cancelled_total") == before + 1)
    listening.until(lambda: server.metric("asr_jobs_running") == 0)
    assert server.is_well()


def test_curl(server: Server, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{server.port}/v1/audio/transcriptions"

    def curl(*arguments: object) -> str:
        return subprocess.run(
            ["curl", "-sS", url, *map(str, arguments)], capture_output=True, text=True, check=True
        ).stdout

    assert curl("-F", f"file=@{DIGITS}", "-F", "response_format=text") == TEXT + "\n"
    assert (
        curl("-F", "response_format=text", "-F", f"file=@{DIGITS}", "-H", "Transfer-Encoding: chunked") == TEXT + "\n"
    )
    assert curl("-F", "response_format=text", "-F", f"file=@{DIGITS}", "-H", "Expect: 100-continue") == TEXT + "\n"
    assert "data: {" in curl("-N", "-F", "stream=true", "-F", f"file=@{DIGITS}")


def test_the_sdk_tries_again_where_that_helps() -> None:
    """What our errors make the client do, with a server that gives them in a row."""
    from asr.serving.errors import ApiError, dumps, overloaded

    answers = [overloaded(1), ApiError(504, "processing_timeout", "too long")]
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            error = answers[len(asked) - 1]
            self.send_response(error.status)
            for name, value in error.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(dumps(error.body).encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        url = f"http://127.0.0.1:{http.server_port}/v1"
        with openai.OpenAI(base_url=url, api_key="any") as client, pytest.raises(openai.InternalServerError) as told:
            client.models.list()
        http.shutdown()
    assert (told.value.code, len(asked)) == ("processing_timeout", 2)
