"""Every bench runs: on one utterance, with figures that say little."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
import soundfile
import yaml
from conftest import DATA

from asr.lm import kneserney
from asr.manifest import Utterance, write
from asr.models import find_model

TOOLS = Path(__file__).parent.parent / "tools"
DIGITS, SEVEN = DATA / "connected_digits.flac", DATA / "7_jackson_0.wav"


@pytest.fixture(autouse=True)
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    import bench_english

    monkeypatch.setattr(bench_english, "COLD_STARTS", 1)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    write(tmp_path / "test.jsonl", [Utterance(DIGITS, soundfile.info(DIGITS).duration, "five seven nine zero")])
    return tmp_path / "test.jsonl"


@pytest.fixture
def lm(tmp_path: Path) -> Path:
    kneserney.train(["five seven nine zero", "one two three"], order=2).save(tmp_path / "digits.lm")
    return tmp_path / "digits.lm"


def bench(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
    runpy.run_path(str(TOOLS / "bench"), run_name="__main__")
    return capfd.readouterr().out


def test_transcribe(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], manifest: Path) -> None:
    said = bench(monkeypatch, capfd, "transcribe", manifest, "digits", "--random", "5 M", "--peer-limit", 1)
    rows = [line.split(" | ") for line in said.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[1:]] == ["| 5 M", "| 5 M float32", "| digits"]
    assert rows[-1][-1] == "0.0% |"
    assert re.search(r"two processes: [\d.]+ x the speed of one", said)


def test_decode_and_hotwords(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], manifest: Path, lm: Path
) -> None:
    options = ("--lm", lm, "--dev", manifest, "--beams", 4, "--seconds", 1)
    said = bench(monkeypatch, capfd, "decode", manifest, "digits", *options)
    assert "| beam 4 + LM | 0.00% | 0.00% |" in said
    said = bench(monkeypatch, capfd, "hotwords", manifest, "digits", "--lm", lm, "--words", 1, "--weights", 0, 2)
    assert "| 2 | 1 of 1 | 0 | 0.00% |" in said


def test_live_day_and_long(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], manifest: Path, lm: Path
) -> None:
    said = bench(monkeypatch, capfd, "live", manifest, "digits", "--minutes", 0.01)
    assert "whole utterances: WER 0.00 %" in said
    assert re.search(r"\| 2.56 \+ 1.28 \| 3.84 \| [\d.]+ % \| - \| 0.00 % \|", said)
    assert "minutes at real time" in said
    said = bench(monkeypatch, capfd, "day", manifest, "digits", "--hours", 0.003)
    assert "2 times 6 s of recordings with pauses" in said
    said = bench(monkeypatch, capfd, "long", manifest, "digits", "--hours", 0.002)
    assert "2 recordings joined, greedy" in said
    assert "WER joined 0.00%" in said


def test_serve(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], manifest: Path) -> None:
    few = ("--clients", 2, "--streams", 2, "--count", 2, "--crowd", 3, "--parts", "files", "streams", "soak")
    said = bench(monkeypatch, capfd, "serve", manifest, "digits", *few)
    assert re.search(r"\| 2 \| [\d.]+ \|\n", said)
    assert re.search(r"\| 2 \| [\d.]+ s \| [\d.]+ s \|", said)
    assert "6 requests and streams of 3 clients, a third cut off" in said


def test_train_and_epoch(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], manifest: Path, tmp_path: Path
) -> None:
    tree = {
        "name": "tiny",
        "data": {"train": [str(manifest)], "dev": str(manifest)},
        "features": {"n_mels": 20},
        "network": {"conv_channels": 2},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    cpu = ("--threads", 1, "--device", "cpu")
    steps = ("--shapes", "1x8", "--steps", 1, "--rounds", 2)
    assert "| 1x8, cpu |" in bench(monkeypatch, capfd, "train", tmp_path / "config.yaml", *steps, *cpu)
    noise = ("--hours", 0.01, "--shape", "1x8", "--folder", tmp_path / "noise")
    assert "hours" in bench(monkeypatch, capfd, "epoch", *noise, *cpu)


def test_gpu(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], manifest: Path, tmp_path: Path
) -> None:
    """Packed, trained on for an epoch, exported and evaluated on a CPU."""
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text(manifest.read_text())
    packed, out = tmp_path / "packed", tmp_path / "out"
    for words in (
        ["pack", packed, tmp_path, find_model("digits")],
        ["run", packed, out, "--device", "cpu", "--epochs", 1, "--only", "english", "export", "evaluate"],
    ):
        monkeypatch.setattr(sys, "argv", ["gpu", *map(str, words)])
        runpy.run_path(str(TOOLS / "gpu"), run_name="__main__")
    said = capfd.readouterr().out
    assert f"{packed / 'audio0'}: 0.0 MB" in said
    report = (out / "report.md").read_text()
    assert re.findall("## (.*): exit status 0", report) == ["english", "export", "evaluate"]
    assert "utterances: 1," in report


def test_start(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    said = bench(monkeypatch, capfd, "start", SEVEN, "--model", "digits", "--turns", 1, "--processes", 2)
    rows = [line.split(" | ") for line in said.splitlines() if line.startswith("| ")]
    assert {"| asr --help", "| asr transcribe -m digits", "| 2"} <= {row[0] for row in rows}
    seconds = {row[0]: float(row[1].removesuffix(" s")) for row in rows if len(row) == 4 and row[1].endswith(" s")}
    assert 0 < seconds["| python"] <= seconds["| asr transcribe -m digits"]
