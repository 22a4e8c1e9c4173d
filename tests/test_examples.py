"""What the documentation says can be run, runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from conftest import DATA, Cli

from asr import Recognizer, audio
from asr.manifest import Utterance, write
from asr.models import find_model

ROOT = Path(__file__).parent.parent
DIGITS = DATA / "connected_digits.flac"


def block(document: str, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found[1]


@pytest.mark.parametrize("model", ["digits", "english"])
def test_a_model_runs_without_this_package(tmp_path: Path, model: str) -> None:
    (tmp_path / "example.py").write_text(block("docs/onnx.md", "python"))
    waveform = audio.read(DIGITS)
    soundfile.write(tmp_path / "a.wav", waveform, audio.SAMPLE_RATE, subtype="FLOAT")
    command = [sys.executable, "-I", "example.py", str(find_model(model)), "a.wav"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stderr == ""
    assert done.stdout == Recognizer(model, beam=1).transcribe(waveform, audio.SAMPLE_RATE).text + "\n"


def test_the_configuration_in_the_readme_trains(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(block("README.md", "yaml"))
    rows = [Utterance(DIGITS, soundfile.info(DIGITS).duration, "five seven nine zero")]
    for name in ("train", "dev"):
        write(tmp_path / f"data/{name}.jsonl", rows)
    smaller = ("epochs=1", "network.hidden=8", "network.layers=1", "--device", "cpu", "--threads", 1)
    done = cli("train", "config.yaml", *smaller)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/mine/model.safetensors").exists()
