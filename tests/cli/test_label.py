"""`asr label` as a user types it, with a teacher that hears the same in every recording."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import Run

from asr import manifest
from asr.audio import SAMPLE_RATE as RATE
from asr.corpus import label
from asr.corpus.label import Word

Label = Callable[..., tuple[int, str]]


@pytest.fixture
def run(asr: Run) -> Label:
    """`asr label` with a teacher: exit status and stderr; nothing is on stdout."""

    def label(*arguments: object) -> tuple[int, str]:
        done = asr("label", *arguments, "--teacher", "base")
        assert done.text == ""
        return done.status, done.complaint

    return label


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The lengths of the windows that it heard; it is sure of the first half of each, and not at all of the other."""
    heard: list[float] = []

    def hear(window: np.ndarray) -> list[Word]:
        seconds = len(window) / RATE
        heard.append(seconds)
        clips = round((seconds + 1) / 3)  # of 2 s, and a pause of 1 s
        sure = [True] * ((clips + 1) // 2) + [False] * (clips // 2)
        words = ["Good", " morning"] if len(heard) == 1 else ["Good", " evening"]
        return [
            Word(word, 3 * n + m, 3 * n + m + 1, 0.95 if certain and len(heard) == 1 else 0.3)
            for n, certain in enumerate(sure)
            for m, word in enumerate(words)
        ]

    monkeypatch.setattr(label, "whisper", lambda folder, language, threads: hear)
    return heard


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    noise = np.random.default_rng(1).normal(0, 0.1, 2 * RATE)
    for name in ("anna/1", "anna/2", "bert/1", "bert/2"):
        (tmp_path / "speech" / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "speech" / f"{name}.wav", noise, RATE)
    return tmp_path / "speech"


def test_a_manifest_of_what_is_sure_and_the_reasons_of_the_rest(
    run: Label, teacher: list[float], recordings: Path, tmp_path: Path
) -> None:
    status, said = run("speech", "-r", "-o", "train.jsonl")
    assert status == 0
    assert said.splitlines()[0] == "train.jsonl: 2 utterances, 0.00 h"
    assert said.splitlines()[-1] == "2 of 4 utterances skipped, listed with reasons in train.jsonl.skipped.jsonl"
    assert teacher == [11.0, 5.0]
    first = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])
    assert first == {"audio_filepath": "speech/anna/1.wav", "duration": 2.0, "text": "Good morning", "speaker": "anna"}
    assert [one.speaker for one in manifest.read(tmp_path / "train.jsonl")] == ["anna", "anna"]
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl.skipped.jsonl").read_text().splitlines()]
    unsure = "unsure: -1.20 a word, expected -0.3; 'Good morning', then 'Good evening'"
    assert rows == [{"id": "1", "reason": unsure}, {"id": "2", "reason": unsure}]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["speech", "train.jsonl", "train.jsonl.skipped.jsonl"]

    status, said = run("speech", "-r", "-o", "train.jsonl")
    assert (status, said) == (1, "asr: train.jsonl: the file exists already; use --overwrite, or name another\n")


def test_ctrl_c_and_on(run: Label, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = 0

    def stopped(window: np.ndarray) -> list[Word]:
        nonlocal heard
        heard += 1
        if heard == 2:
            raise KeyboardInterrupt
        return [Word(" Good-bye", 3 * n, 3 * n + 1.0, 0.9) for n in range(2)]

    monkeypatch.setattr(label, "whisper", lambda folder, language, threads: stopped)
    monkeypatch.setattr("signal.signal", lambda number, handler: None)  # left alone in this process
    monkeypatch.setattr(label, "WINDOW_S", 6.0)
    status, said = run("speech", "-r", "-o", "train.jsonl")
    assert (status, said) == (130, "asr: interrupted; the same command goes on from train.jsonl.begun\n")
    assert not (tmp_path / "train.jsonl").exists()
    status, said = run("speech", "-r", "-o", "train.jsonl", "--sure", "-0.2")
    assert status == 1
    assert said == "asr: train.jsonl.begun: labels of a run with sure -0.3; --overwrite begins anew\n"
    status, said = run("speech", "-r", "-o", "train.jsonl")
    assert status == 0
    assert said.splitlines()[0] == "train.jsonl.begun: 2 clips labelled already"
    assert len(manifest.read(tmp_path / "train.jsonl")) == 4


def test_what_cannot_be_read_is_said(run: Label, teacher: list[float], recordings: Path, tmp_path: Path) -> None:
    (recordings / "anna/1.wav").write_bytes(b"no sound")
    status, said = run("speech", "missing", "-r", "-o", "train.jsonl")
    assert status == 1
    assert "asr: 1: speech/anna/1.wav: " in said
    assert "missing: no such file; check the path" in said
    assert (tmp_path / "train.jsonl").exists()


def test_nothing_to_keep(run: Label, recordings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label, "whisper", lambda folder, language, threads: lambda window: [])
    status, said = run("speech/anna", "-o", "train.jsonl")
    assert status == 1
    assert said.splitlines()[-1].startswith("asr: speech/anna: none of 2 utterances can be used; the reasons are in ")


def test_no_recordings_no_teacher_no_library(
    run: Label, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("speech", "-o", "a.jsonl")[1].startswith("asr: speech: expected a folder with recordings")
    assert run("speech/anna", "-o", "a.jsonl")[1].startswith("asr: base: expected the folder of a Whisper model")
    (tmp_path / "base").mkdir()
    for name in ("model.bin", "config.json", "tokenizer.json", "vocabulary.txt"):
        (tmp_path / "base" / name).write_text("{}")
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    status, said = run("speech/anna", "-o", "a.jsonl")
    assert status == 1
    assert said.startswith("asr: this command needs faster_whisper, which is not installed; ")
    assert said.endswith("pip install '.[label]'\n")
