"""What a recogniser can be given instead of a file's name, and what it must refuse."""

from __future__ import annotations

import copy
import io
import math
import os
import pickle
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import soundfile
from conftest import DATA, Cli

from asr import Final, Recognizer, audio
from asr.audio import AudioError
from asr.cli import options

PATH = DATA / "connected_digits.flac"
TEXT = "five seven nine zero"


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return Recognizer("digits", beam=1)


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    read: np.ndarray = soundfile.read(PATH, dtype="float32")[0]
    return read


@pytest.fixture(scope="module")
def rate() -> int:
    return int(soundfile.info(PATH).samplerate)


def test_a_file_in_any_form(recognizer: Recognizer) -> None:
    content = PATH.read_bytes()
    whole = io.BytesIO(content)
    whole.seek(100)  # a file is read from its beginning, wherever it stands
    expected = recognizer.transcribe(PATH)
    assert expected.text == TEXT
    with PATH.open("rb") as file:
        for source in (str(PATH), content, bytearray(content), whole, file):
            assert recognizer.transcribe(source) == expected


def test_samples_in_any_form(recognizer: Recognizer, samples: np.ndarray, rate: int) -> None:
    import torch

    whole = np.round(samples * 32768).astype("<i2")
    forms = [
        samples,
        samples.tolist(),
        tuple(samples.tolist()),
        torch.tensor(samples),
        whole,
        whole.tobytes(),
        samples[:, None],
    ]
    for form in forms:
        assert recognizer.transcribe(form, rate).text == TEXT


def test_a_stream_of_any_form_and_rate(recognizer: Recognizer, samples: np.ndarray, rate: int) -> None:
    whole = np.round(samples * 32768).astype("<i2")
    high = np.stack([audio.resample(samples, rate, 48_000)] * 2, axis=1)
    for form, at in ((samples, rate), (samples.tolist(), rate), (whole.tobytes(), rate), (high, 48_000)):
        stream = recognizer.stream(sample_rate=at)
        events = [event for start in range(0, len(form), 1000) for event in stream.feed(form[start : start + 1000])]
        events += stream.flush()
        assert " ".join(event.text for event in events if isinstance(event, Final)) == TEXT
        assert stream.time_s == pytest.approx(len(samples) / rate, abs=0.001)


def test_a_stream_resampled_in_pieces_is_the_file(recognizer: Recognizer, samples: np.ndarray, rate: int) -> None:
    converter = audio.Converter(rate)
    pieces = [converter.feed(samples[start : start + 777, None]) for start in range(0, len(samples), 777)]
    np.testing.assert_allclose(np.concatenate([*pieces, converter.flush()]), audio.read(PATH), atol=1e-5)


@pytest.mark.parametrize("source", [None, 3.5, object(), {"a": 1}, [[0.0], [0.0, 0.0]], "".join, b"abc"])
def test_what_is_no_recording_is_refused(recognizer: Recognizer, source: object) -> None:
    with pytest.raises(AudioError):
        recognizer.transcribe(source, 16_000)


def test_samples_need_a_rate(recognizer: Recognizer, samples: np.ndarray) -> None:
    for form in (samples, samples.tolist()):
        with pytest.raises(AudioError, match="expected the sample rate with samples"):
            recognizer.transcribe(form)
    with pytest.raises(AudioError, match="expected samples as an array of numbers, got NoneType"):
        recognizer.transcribe(None)
    with PATH.open(encoding="latin-1") as text, pytest.raises(AudioError, match="binary mode"):
        recognizer.transcribe(text)


@pytest.mark.parametrize("rate", [math.nan, math.inf, -16_000, 0, 1, 999, 1e9, "16000", None])
def test_rates_that_no_recording_has(recognizer: Recognizer, rate: Any) -> None:
    with pytest.raises(AudioError, match="rate"):
        recognizer.transcribe(np.zeros(16_000), rate)
    if rate is not None:
        with pytest.raises(AudioError, match="from 1000 to 1000000 Hz"):
            recognizer.stream(sample_rate=rate)


def test_a_stretch_of_a_recording(recognizer: Recognizer, samples: np.ndarray, rate: int) -> None:
    words = recognizer.transcribe(PATH).words
    start_s, end_s = words[0].end_s + 0.02, (words[2].end_s + words[3].start_s) / 2
    for transcript in (
        recognizer.transcribe(PATH, start_s=start_s, end_s=end_s),
        recognizer.transcribe(samples, rate, start_s=start_s, end_s=end_s),
    ):
        assert transcript.text == "seven nine"
        assert [word.start_s for word in transcript.words] == pytest.approx(
            [word.start_s for word in words[1:3]], abs=0.1
        )
        assert transcript.duration_s == pytest.approx(end_s, abs=0.001)
    for bad_start_s, bad_end_s in ((99.0, None), (-1.0, None), (1.0, 0.5), (math.nan, None)):
        for source, at in ((PATH, None), (samples, rate)):
            with pytest.raises(AudioError, match="expected a"):
                recognizer.transcribe(source, at, start_s=bad_start_s, end_s=bad_end_s)


def test_one_channel(recognizer: Recognizer, samples: np.ndarray, rate: int, tmp_path: Path) -> None:
    other = audio.read(DATA / "7_jackson_0.wav", sample_rate=rate)
    both = np.zeros((len(samples), 2), np.float32)
    both[:, 0], both[1000 : 1000 + len(other), 1] = samples, other
    soundfile.write(tmp_path / "call.wav", both, rate)
    for channel, text in enumerate((TEXT, "seven")):
        assert recognizer.transcribe(tmp_path / "call.wav", channel=channel).text == text
        assert recognizer.transcribe(both, rate, channel=channel).text == text
    with pytest.raises(AudioError, match="expected channel 3, got audio of 2"):
        recognizer.transcribe(tmp_path / "call.wav", channel=2)


def test_a_recogniser_can_be_pickled_and_copied() -> None:
    recognizer = Recognizer("digits", hotwords=(word for word in ["seven^2"]), n_best=2)
    expected = recognizer.transcribe(PATH)
    for again in (pickle.loads(pickle.dumps(recognizer)), copy.deepcopy(recognizer)):
        assert again.transcribe(PATH) == expected


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("source", ["connected_digits.flac", "7_jackson_0.wav"])
def test_a_named_pipe(tmp_path: Path, source: str) -> None:
    path = tmp_path / "pipe.wav"
    os.mkfifo(path)
    with pytest.raises(AudioError, match="got a pipe, whose length is not known"):
        audio.info(path)  # and takes nothing from it
    writer = threading.Thread(target=path.write_bytes, args=[(DATA / source).read_bytes()])
    writer.start()
    waveform = audio.read(path)
    writer.join()
    np.testing.assert_array_equal(waveform, audio.read(DATA / source))


def test_a_call_in_the_command_line(tmp_path: Path, cli: Cli, samples: np.ndarray, rate: int) -> None:
    other = audio.read(DATA / "7_jackson_0.wav", sample_rate=rate)
    both = np.zeros((len(samples), 2), np.float32)
    both[:, 0], both[1000 : 1000 + len(other), 1] = samples, other
    soundfile.write(tmp_path / "call.wav", both, rate)
    shutil.copy(DATA / "7_jackson_0.wav", tmp_path / "mono.wav")
    plain = ("transcribe", "-m", "digits", "--beam", 1)
    split = cli(*plain, "--channels", "split", "call.wav", "mono.wav", "-j", 1)
    assert split.stdout.splitlines() == [
        f"call.wav, channel 1\t{TEXT}",
        "call.wav, channel 2\tseven",
        "mono.wav\tseven",
    ]
    assert split.stderr.startswith("3 of 3 channels")
    cli(*plain, "--channels", "split", "call.wav", "mono.wav", "-j", 1, "-o", "out", "-f", "txt,srt", "-q")
    names = ["call.1.srt", "call.1.txt", "call.2.srt", "call.2.txt", "mono.srt", "mono.txt"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    some = cli(*plain, "call.wav", "--channels", "1", "--start", "0:01", "--end", "3", "-f", "tsv")
    assert [line.split("\t")[-1] for line in some.stdout.splitlines()[1:]] == ["seven nine"]
    assert 1000 < int(some.stdout.splitlines()[1].split("\t")[0]) < 2000
    with (tmp_path / "call.wav").open("rb") as file:
        assert cli(*plain, "-", "--channels", "2", "--end", "1.5", stdin=file).stdout == "seven\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--channels", "3"], "expected channel 3, got audio of 1"),
        (["--track", "2"], "expected track 2, got a file of one"),
        (["--start", "99"], r"expected audio at 99\.00 s, but the file ends at 0\.43 s"),
    ],
)
def test_there_is_no_such_part(cli: Cli, arguments: list[str], message: str) -> None:
    done = cli("transcribe", "-m", "digits", "--beam", 1, DATA / "7_jackson_0.wav", *arguments)
    assert done.returncode == 1
    assert re.search(message, done.stderr)
    assert done.stdout == ""


@pytest.mark.parametrize("time", ["", "x", "-1", "nan", "1:60", "1:2:3:4", "1:-2"])
def test_times_that_are_none(time: str) -> None:
    with pytest.raises(click.BadParameter, match=r"expected a time such as 90, 1:30 or 0:01:30\.5"):
        options.seconds_of(time, "--start")


def test_times() -> None:
    times = {"90": 90, "1:30": 90, "0:01:30.5": 90.5, "2:00:00": 7200, "0": 0}
    assert [options.seconds_of(time, "--start") for time in times] == list(times.values())
