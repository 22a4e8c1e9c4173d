"""The whole LibriSpeech path, from the web to a transcript, with miniature archives of digits in place of the real ones."""

from __future__ import annotations

import hashlib
import io
import shutil
import sys
import tarfile
from pathlib import Path
from runpy import run_path

import mirror
import pytest
import soundfile
from click.testing import CliRunner
from conftest import DATA

from asr import audio, manifest
from asr.cli import app
from asr.corpus import download

RECIPE = Path(__file__).parents[2] / "recipes" / "librispeech"
SAID = (("7_jackson_0.wav", "SEVEN"), ("3_nicolas_0.wav", "THREE"))
TINY = ["network.layers=1", "network.hidden=32", "network.conv_channels=4", "epochs=2", "ema=0", "average=null"]
TINY += ["batch.seconds=20", "precision=32-true", "optimiser.lr=0.002", "features.n_mels=40"]


def part(name: str, speakers: range) -> bytes:
    """An archive LibriSpeech/PART/SPEAKER/CHAPTER/..., of four utterances a speaker."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:

        def add(path: str, data: bytes) -> None:
            info = tarfile.TarInfo(f"LibriSpeech/{path}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        for document in ("LICENSE.TXT", "README.TXT", "CHAPTERS.TXT", "SPEAKERS.TXT", "BOOKS.TXT"):
            add(document, document.encode())
        for speaker in speakers:
            chapter, lines = f"{name}/{speaker}/{speaker + 7000}", []
            for number in range(4):
                source, text = SAID[(speaker + number) % 2]
                key = f"{speaker}-{speaker + 7000}-{number:04d}"
                sound = io.BytesIO()
                soundfile.write(sound, audio.read(DATA / source), audio.SAMPLE_RATE, format="FLAC")
                add(f"{chapter}/{key}.flac", sound.getvalue())
                lines.append(f"{key} {text}\n")
            add(f"{chapter}/{speaker}-{speaker + 7000}.trans.txt", "".join(lines).encode())
    return buffer.getvalue()


def asr(*arguments: object) -> str:
    """A command's standard output."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(RECIPE, tmp_path / "recipes/librispeech", ignore=shutil.ignore_patterns("data"))
    recipe = tmp_path / "recipes/librispeech"
    archives = {"train-clean-5": range(100, 106), "dev-clean-2": range(200, 202), "test-clean": range(300, 302)}
    archives["test-other"] = range(400, 401)
    with mirror.running() as server:
        for name, speakers in archives.items():
            server.files[f"/{name}.tar.gz"] = part(name, speakers)
        sums = {name: f"sha256:{hashlib.sha256(data).hexdigest()}" for name, data in server.files.items()}
        server.cuts = [3000]
        fetch = download.fetch
        published: list[str] = []

        def miniature(urls: list[str], path: Path, checksum: str, **options: object) -> None:
            published.append(checksum)
            fetch(urls, path, sums[f"/{path.name}"], backoff_s=0, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(download, "fetch", miniature)
        for subset, out in (("mini", "data"), ("test", "data")):
            command = [
                "prepare.py",
                recipe / "corpus",
                recipe / out,
                "--download",
                "--subset",
                subset,
                "--mirror",
                server.url,
            ]
            monkeypatch.setattr(sys, "argv", [str(word) for word in command])
            run_path(str(recipe / "prepare.py"), run_name="__main__")
    assert [len(checksum) for checksum in published] == [36, 36, 71, 71]  # md5 of mini, sha256 of the tests
    assert ("/train-clean-5.tar.gz", "bytes=3000-") in server.requests
    counts = {name: len(manifest.read(recipe / f"data/{name}.jsonl")) for name in ("train", "dev", "test_clean")}
    assert counts == {"train": 24, "dev": 8, "test_clean": 8}

    asr("train", recipe / "config.yaml", *TINY, "--run", "runs/mini", "--threads", "1", "--device", "cpu")
    report = asr("evaluate", "runs/mini", recipe / "data/test_clean.jsonl", "--beam", "1")
    assert "WER" in report
    asr("export", "runs/mini", "-o", "mini.onnx")
    text = asr("transcribe", "-m", "mini.onnx", "--beam", "1", DATA / "7_jackson_0.wav")
    assert len(text.splitlines()) == 1
    assert asr("info", "mini.onnx").split()[:2] == ["name", "librispeech"]
