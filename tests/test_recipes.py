"""The recipes' preparation, on miniature corpora in the real layouts."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import DATA

from asr import audio, manifest

RECIPES = Path(__file__).parent.parent / "recipes"


def prepare(recipe: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RECIPES / recipe / "prepare.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*/prepare.py")), ids=lambda path: path.parent.name)
def test_a_recipe_is_short_and_complete(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 60
    assert (path.parent / "config.yaml").exists()
    assert (path.parent / "RESULTS.md").exists()


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """Two speakers, ten recordings each of two digits, 8 kHz."""
    corpus = tmp_path / "recordings"
    corpus.mkdir()
    for speaker, source in (("jackson", "7_jackson_0.wav"), ("nicolas", "3_nicolas_0.wav")):
        for digit in (3, 7):
            for index in range(10):
                shutil.copy(DATA / source, corpus / f"{digit}_{speaker}_{index}.wav")
    return corpus


def test_fsdd_split(digits: Path, tmp_path: Path) -> None:
    done = prepare("fsdd", digits, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    test, dev, train = (manifest.read(tmp_path / f"out/{name}.jsonl") for name in ("test", "dev", "train"))
    indices = [sorted({int(u.audio.stem.split("_")[2]) for u in part}) for part in (test, dev, train)]
    assert indices == [[0, 1, 2, 3, 4], [5, 6, 7], [8, 9]]
    assert {u.text for u in test} == {"three", "seven"}
    connected = manifest.read(tmp_path / "out/test_connected.jsonl")
    for utterance in connected[:5]:
        assert 2 <= len(utterance.text.split()) <= 7
        info = audio.info(utterance.audio)
        assert info.sample_rate == 16000
        assert info.duration_s == pytest.approx(utterance.duration_s, abs=1e-4)


def test_fsdd_leaves_a_speaker_out(digits: Path, tmp_path: Path) -> None:
    assert prepare("fsdd", digits, tmp_path / "out", "--leave-out", "nicolas").returncode == 0
    for name in ("train", "train_connected", "dev", "dev_connected"):
        assert {u.speaker for u in manifest.read(tmp_path / f"out/{name}.jsonl")} == {"jackson"}
    tested = manifest.read(tmp_path / "out/test.jsonl")
    assert {u.speaker for u in tested} == {"nicolas"}
    assert len(tested) == 20


def test_fsdd_explains_a_wrong_folder(tmp_path: Path) -> None:
    done = prepare("fsdd", tmp_path, tmp_path / "out")
    assert done.returncode == 2
    assert "no dev set in" in done.stderr


def test_speechocean762(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    rng = np.random.default_rng(0)
    for split, speakers in (("train", range(20)), ("test", range(100, 103))):
        (corpus / split).mkdir(parents=True)
        tables: dict[str, list[str]] = {"wav.scp": [], "text": [], "utt2spk": []}
        for speaker in speakers:
            folder = corpus / "WAVE" / f"SPEAKER{speaker:04d}"
            folder.mkdir(parents=True)
            name = f"{speaker:04d}0001"
            soundfile.write(folder / f"{name}.wav", rng.normal(0, 0.1, 16000), 16000)
            ending = "opus" if speaker == 0 else "wav"  # a table may name .opus where the file is .wav
            tables["wav.scp"].append(f"{name}\tWAVE/SPEAKER{speaker:04d}/{name}.{ending}")
            tables["text"].append(f"{name}\tMARK IS  GOING")
            tables["utt2spk"].append(f"{name} {speaker:04d}")
        for table, lines in tables.items():
            (corpus / split / table).write_text("\n".join(lines) + "\n")
    done = prepare("speechocean762", corpus, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    train, dev, test = (manifest.read(tmp_path / f"out/{name}.jsonl") for name in ("train", "dev", "test"))
    assert (len(train), len(dev), len(test)) == (18, 2, 3)
    assert not {u.speaker for u in train} & {u.speaker for u in dev}
    assert test[0].text == "mark is going"
    assert test[0].duration_s == 1.0


def test_speechocean762_explains_a_wrong_folder(tmp_path: Path) -> None:
    done = prepare("speechocean762", tmp_path)
    assert done.returncode == 1
    assert "expected the folder of speechocean762" in done.stderr
