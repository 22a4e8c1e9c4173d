"""The synthetic speech of the English recipe, with engines that say a tone whatever they are given."""

from __future__ import annotations

import importlib.util
import lzma
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile

from asr import audio, manifest
from asr.errors import AsrError
from asr.manifest import Utterance
from asr.text import english

SCRIPT = Path(__file__).parent.parent / "recipes" / "english" / "synthesize.py"
ENGINES = ["flite", "pico2wave", "festival", "espeak-ng"]
# The last WAV file that the command line or the standard input names becomes a copy of $TONE.
ENGINE = """#!/bin/sh
said="${0##*/} $* $(cat)"
echo "$said" >> "$SAID"
path="${said%.wav*}.wav"
cp "$TONE" "${path##*[ \\"]}"
"""
WORDS = ["river", "old", "house", "the", "morning", "never", "went", "slowly", "through", "green", "and", "over"]
HELD_OUT = "the old house never went slowly over and over"


@pytest.fixture(scope="module")
def synthesize() -> ModuleType:
    spec = importlib.util.spec_from_file_location("synthesize", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Miniature corpora with prepare.py's manifests in data/, and engines on the path, in bin/."""
    draw = random.Random(1)
    books = [" ".join(draw.choices(WORDS, k=2 + i % 7)).capitalize() + "." for i in range(2000)]
    unfit = [
        f"{HELD_OUT.capitalize()}.",
        f"Now {HELD_OUT} today.",
        "In 1912 the river went over.",
        "Spoken for a test.",
    ]
    (tmp_path / "text").mkdir()
    with lzma.open(tmp_path / "text" / "books.txt.xz", "wt") as file:
        file.write("\n".join(books + 100 * unfit) + "\n")
    chapter = tmp_path / "librispeech_sample" / "1" / "2"
    chapter.mkdir(parents=True)
    (chapter / "1-2.trans.txt").write_text("1-2-0001 SPOKEN FOR A TEST\n")
    train = [" ".join(draw.sample(WORDS, 3 + i % 4)) + " today" for i in range(30)]
    manifests = {
        "train": [*train, "quiet green fields", HELD_OUT, *30 * ["seven"]],
        "dev": ["quiet green fields"],
        "test_common_voice": [HELD_OUT],
        "speechocean762/test": ["the river"],
    }
    for name, texts in manifests.items():
        manifest.write(tmp_path / f"data/{name}.jsonl", [Utterance(Path("/a.wav"), 1.0, text) for text in texts])
    time = np.arange(22050) / 22050
    tone = np.where((time > 0.3) & (time < 0.8), 0.99 * np.sin(600 * np.pi * time), 0)
    soundfile.write(tmp_path / "tone.wav", tone, 22050)
    (tmp_path / "bin").mkdir()
    for engine in ENGINES:
        write_engine(tmp_path, engine, ENGINE)
    for name in ("sh", "cat", "cp"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("TONE", str(tmp_path / "tone.wav"))
    monkeypatch.setenv("SAID", str(tmp_path / "said.txt"))
    return tmp_path


def write_engine(corpora: Path, engine: str, script: str) -> None:
    (corpora / "bin" / engine).write_text(script)
    (corpora / "bin" / engine).chmod(0o755)


def speak(synthesize: ModuleType, corpora: Path, hours: float, jobs: int = 2) -> list[Utterance]:
    synthesize.main(corpora, corpora / "out", corpora / "data", hours, jobs, seed=0)
    return manifest.read(corpora / "out" / "synthetic.jsonl")


def run(corpora: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(corpora), str(corpora / "out"), "--data", str(corpora / "data")]
    return subprocess.run(
        [*command, "--hours", "0.03"], capture_output=True, text=True, check=False, start_new_session=True, **options
    )


def test_sentences_are_those_of_books_and_transcripts_as_long_as_these_and_none_of_a_test(
    synthesize: ModuleType, corpora: Path
) -> None:
    planned = list(synthesize.plan(corpora, corpora / "data", 0.6, 0, ENGINES))
    texts = [english(sentence.text) for sentence in planned]
    train = [utterance.text for utterance in manifest.read(corpora / "data" / "train.jsonl")][:30]
    with lzma.open(corpora / "text" / "books.txt.xz", "rt") as file:
        books = {english(line) for line in file}
    assert set(texts) <= (books - {HELD_OUT, f"now {HELD_OUT} today", "spoken for a test"}) | set(train)
    assert 0.11 < np.mean([text in train for text in texts]) < 0.19
    lengths = Counter(len(text.split()) for text in texts)
    assert sorted(lengths) == [4, 5, 6, 7]  # those of train, though the books have from 2 to 8 words
    assert max(lengths.values()) < 1.5 * min(lengths.values())
    engines = Counter(sentence.engine for sentence in planned)
    assert [engines[engine] / len(planned) for engine in ENGINES] == pytest.approx([0.46, 0.26, 0.2, 0.08], abs=0.05)
    assert len({sentence.voice for sentence in planned}) > 50


def test_the_same_seed_gives_the_same_sentences_and_more_hours_add_to_them(
    synthesize: ModuleType, corpora: Path
) -> None:
    few, same, more, other = (
        [sentence.name for sentence in synthesize.plan(corpora, corpora / "data", hours, seed, ENGINES)]
        for hours, seed in ((0.05, 0), (0.05, 0), (0.1, 0), (0.1, 1))
    )
    assert few == same == more[: len(few)]
    assert len(more) > 1.5 * len(few)
    assert set(more).isdisjoint(other)


def test_every_engine_is_given_what_the_manifest_says_and_sounds_recorded(
    synthesize: ModuleType, corpora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    utterances = speak(synthesize, corpora, 0.01)
    assert f"{len(utterances)} utterances" in capsys.readouterr().out
    planned = list(synthesize.plan(corpora, corpora / "data", 0.01, 0, ENGINES))
    said = (corpora / "said.txt").read_text()
    assert {sentence.engine for sentence in planned} == set(ENGINES)
    for utterance, sentence in zip(utterances, planned, strict=True):
        assert (utterance.text, utterance.speaker) == (english(sentence.text), f"{sentence.engine}-{sentence.voice}")
        assert utterance.audio == corpora / "out" / sentence.name
        assert sentence.text in said
        assert sentence.voice in said
        header = audio.info(utterance.audio)
        assert (header.sample_rate, header.channels, header.format) == (16_000, 1, "FLAC/PCM_16")
        assert header.duration_s == pytest.approx(utterance.duration_s, abs=1e-5)
        spoken_s = 0.5 / sentence.size  # of the tone's second
        assert spoken_s + 0.19 < utterance.duration_s < spoken_s + 0.2 + 2 * 0.6 + 0.01
        waveform = audio.read(utterance.audio)
        assert 0.15 < np.abs(waveform).max() < 0.9
        spectrum = np.abs(np.fft.rfft(waveform, 160_000))
        assert np.argmax(spectrum) / 10 == pytest.approx(300 * sentence.size, abs=2)
        blocks = waveform[: len(waveform) // 160 * 160].reshape(-1, 160)
        assert (np.abs(blocks).max(1) > 0).mean() > 0.9  # no digital silence


def test_files_that_are_there_are_kept_and_those_that_are_lost_are_made_again(
    synthesize: ModuleType, corpora: Path
) -> None:
    first = {utterance.audio: utterance.audio.read_bytes() for utterance in speak(synthesize, corpora, 0.004, jobs=1)}
    lost, kept, *_ = first
    lost.unlink()
    kept.write_bytes((corpora / "tone.wav").read_bytes())
    second = speak(synthesize, corpora, 0.006)
    assert len(second) > len(first)
    assert [utterance.audio for utterance in second[: len(first)]] == list(first)
    assert lost.read_bytes() == first[lost]
    assert kept.read_bytes() == (corpora / "tone.wav").read_bytes()


def test_missing_engines_are_named_with_their_packages_but_the_one_that_is_not_free_may_be_missing(
    synthesize: ModuleType, corpora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (corpora / "bin" / "pico2wave").unlink()
    speakers = {str(utterance.speaker).partition("-")[0] for utterance in speak(synthesize, corpora, 0.006)}
    assert "flite" in speakers
    assert "pico2wave" not in speakers
    assert "pico2wave: no such program; apt-get install libttspico-utils; going on without" in capsys.readouterr().err
    (corpora / "bin" / "flite").unlink()
    done = run(corpora)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "flite, pico2wave: no such program; apt-get install flite libttspico-utils" in done.stderr


@pytest.mark.parametrize(
    ("script", "limit_s", "said"),
    [
        ("#!/bin/sh\necho unknown voice >&2\n", 30.0, "unknown voice"),
        (ENGINE.replace('"$TONE"', "/dev/null"), 30.0, "no message"),
        (ENGINE.replace("$TONE", "$SILENCE"), 30.0, "no message"),
        ("#!/bin/sh\nexec /bin/sleep 20\n", 0.5, "no end after 0.5 s"),
    ],
    ids=["complains", "writes nothing", "is silent", "hangs"],
)
def test_an_engine_that_says_nothing_is_an_error_with_its_own_words(
    synthesize: ModuleType, corpora: Path, monkeypatch: pytest.MonkeyPatch, script: str, limit_s: float, said: str
) -> None:
    monkeypatch.setattr(synthesize, "_LIMIT_S", limit_s)
    monkeypatch.setenv("SILENCE", str(corpora / "silence.wav"))
    soundfile.write(corpora / "silence.wav", np.zeros(22050), 22050)
    for engine in ENGINES:
        write_engine(corpora, engine, script)
    with pytest.raises(AsrError, match=f"expected speech of '.*', got none and {said}; .*apt-get install"):
        speak(synthesize, corpora, 0.005)
    assert not list((corpora / "out").rglob("*.*"))


def test_ctrl_c_is_one_line_and_what_is_spoken_stays(corpora: Path) -> None:
    for engine in ENGINES:  # the third call presses it, as in a terminal: for the whole process group
        write_engine(corpora, engine, ENGINE + '[ "$(grep -c . "$SAID")" -lt 3 ] || kill -INT 0\n')
    (corpora / "bin" / "grep").symlink_to(str(shutil.which("grep", path=os.defpath)))
    done = run(corpora, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "interrupted; the same command goes on from here\n"
    files = [path for path in (corpora / "out").rglob("*") if path.is_file()]
    assert 2 <= len(files) < 20  # of about 40
    assert all(audio.info(path).duration_s > 0.5 for path in files)  # whole ones


def test_what_cannot_be_done_is_an_error(synthesize: ModuleType, corpora: Path) -> None:
    with pytest.raises(AsrError, match="got --hours 0"):
        speak(synthesize, corpora, 0)
    with pytest.raises(AsrError, match="ask for fewer hours"):
        speak(synthesize, corpora, 10)
    (corpora / "data" / "speechocean762" / "test.jsonl").unlink()
    with pytest.raises(AsrError, match=r"run the recipe's prepare\.py first"):
        speak(synthesize, corpora, 0.01)
    (corpora / "out" / "synthetic.jsonl").parent.rmdir()
    (corpora / "out").write_text("a file")
    with pytest.raises(AsrError, match="expected a folder"):
        speak(synthesize, corpora, 0.01)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("“Don’t,” said Ann--“it’s half-way!”", "don't, said ann, it's half way!"),
        ("I was at the dogs' home; 'twas late.", "i was at the dogs home; twas late."),
        ("MIKE likes it.", None),
        ("He paid 5 pounds.", None),
        ("Mr. Smith went out.", None),
        ("Then Dr Smith went out.", None),
        ("It is, e.g., late.", None),
        ("King Henry V of England.", None),
        ("This is chapter II", None),
        ("The café was shut.", None),
        ("[Illustration: a large house]", None),
        ("...", None),
        ("Oh no!", None),
        (" ".join(["word"] * 20), " ".join(["word"] * 20)),
        (" ".join(["word"] * 21), None),
    ],
)
def test_only_what_is_said_as_it_is_written_is_spoken(synthesize: ModuleType, line: str, said: str | None) -> None:
    assert synthesize.speakable(line) == said
