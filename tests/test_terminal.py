"""Commands as a person meets them: in a terminal of 80 or 120 columns, into a file or a pipe, with Ctrl-C in the middle."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import screen
import soundfile
import yaml
from conftest import DATA

DIGITS, SEVEN, THREE = DATA / "connected_digits.flac", DATA / "7_jackson_0.wav", DATA / "3_nicolas_0.wav"
TINY = {
    "name": "tiny",
    "epochs": 1,
    "data": {"train": ["dev.jsonl"], "dev": "dev.jsonl", "alphabet": " efghinorstuvwxz"},
    "features": {"n_mels": 20},
    "network": {"layers": 1, "hidden": 8, "conv_channels": 2, "subsampling": 2},
}


class Case(NamedTuple):
    """A command: on_stdout and on_stderr are patterns of one line each; status: that it ends with."""

    arguments: str
    on_stdout: str = ""
    on_stderr: str = ""
    status: int = 0


# A new command needs a line here.
COMMANDS = {
    "transcribe": Case("-m digits {digits}", "^five seven nine zero$"),
    "align": Case("-m digits {digits} text.txt", '^ +text = "seven"$'),
    "live": Case("-m digits --from {digits} --speed 0", "five seven nine zero$", "^listening to connected_digits.flac"),
    "train": Case("config.yaml --run other --device cpu", "", "^finished: dev WER "),
    "adapt": Case("run dev.jsonl -o adapted --dev dev.jsonl epochs=1 --device cpu", "^held out", "^finished: dev WER "),
    "evaluate": Case("digits dev.jsonl", "^WER +.* %", "^decoded at "),
    "report": Case("run -o report.html --device cpu", "", "report.html: .* open it in a browser$"),
    "export": Case("run -o run.onnx", "", "^run.onnx: .* MB$"),
    "info": Case("digits", "^network +2 x 128 lstm, both directions$"),
    "label": Case("{digits} -o labelled.jsonl --teacher none", "", "^asr: ", 1),
    "models": Case("", "^english, the default: "),
    "doctor": Case("dev.jsonl", "^0 errors, "),
    "summary": Case("config.yaml", "^tiny: [0-9,]+ parameters, "),
    "serve": Case("-m digits --token-file none", "", "^asr: none: cannot be read as a token: No such file", 1),
    "tune": Case("digits dev.jsonl --dry-run", "^greedy: WER 0.00%, CER 0.00%$", "^model digits, "),
    "export-manifest": Case("dev.jsonl --kaldi kaldi", "", "^kaldi: 3 utterances$"),
    "shard": Case("dev.jsonl -o shards", "", "^shards: 1 of 1 shards written; train on them with data.train=shards$"),
    "lm train": Case("sentences.txt -o new.lm", "", "^new.lm: .* 1-grams"),
    "lm mix": Case("own.lm own.lm -o mixed.lm", "", "^mixed.lm: .* 1-grams"),
    "lm convert": Case("own.lm -o own.arpa", "", "^own.arpa: .* 1-grams"),
    "lm perplexity": Case("own.lm sentences.txt", "^perplexity "),
    "lm info": Case("own.lm", "^1-grams +"),
    "import kaldi": Case("data -o kaldi.jsonl", "", "^kaldi.jsonl: 1 utterance, "),
    "import lhotse": Case("cuts.jsonl -o lhotse.jsonl", "", "^lhotse.jsonl: 1 utterance, "),
    "import csv": Case("table.csv -o csv.jsonl", "", "^csv.jsonl: 1 utterance, "),
    "import webdataset": Case("one.tar -o tar.jsonl", "", "^tar.jsonl: 1 utterance, "),
}


def commands(group: Any) -> Iterator[str]:
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        yield from (f"{name} {inner}" for inner in commands(command)) if hasattr(command, "commands") else [name]


def test_every_command_is_seen() -> None:
    from asr.cli import app

    assert set(commands(app)) == set(COMMANDS)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what all commands need."""
    from asr.lm import kneserney

    folder = tmp_path_factory.mktemp("place")
    texts = {DIGITS: "five seven nine zero", SEVEN: "seven", THREE: "three"}
    rows = [
        {"audio_filepath": str(path), "duration": round(soundfile.info(path).duration, 4), "text": text}
        for path, text in texts.items()
    ]
    (folder / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(yaml.safe_dump(TINY))
    (folder / "text.txt").write_text("five seven nine zero\n")
    (folder / "sentences.txt").write_text("five seven\nnine zero\n")
    kneserney.train(["five seven", "nine zero"], order=2).save(folder / "own.lm")
    (folder / "data").mkdir()
    for name, value in {"wav.scp": str(SEVEN), "text": "seven", "utt2spk": "me"}.items():
        (folder / "data" / name).write_text(f"u {value}\n")
    (folder / "table.csv").write_text(f"path,sentence\n{SEVEN},seven\n")
    with tarfile.open(folder / "one.tar", "w") as archive:
        archive.add(SEVEN, "seven.wav")
        archive.add(folder / "data" / "text", "seven.txt")
    length = soundfile.info(SEVEN)
    recording = {
        "id": "r",
        "sources": [{"type": "file", "channels": [0], "source": str(SEVEN)}],
        "sampling_rate": length.samplerate,
        "num_samples": length.frames,
        "duration": length.duration,
    }
    spoken = {"id": "u", "recording_id": "r", "start": 0, "duration": length.duration, "channel": 0, "text": "seven"}
    cut = {
        "id": "c",
        "start": 0,
        "duration": length.duration,
        "channel": 0,
        "supervisions": [spoken],
        "recording": recording,
    }
    (folder / "cuts.jsonl").write_text(json.dumps(cut | {"type": "MonoCut"}) + "\n")
    return folder


@pytest.fixture(scope="module")
def run(place: Path) -> screen.Seen:
    """A training, whose folder others need."""
    return screen.run(["train", "config.yaml", "--run", "run", "--device", "cpu", "--threads", 1], place)


def test_a_training_says_what_it_does(run: screen.Seen) -> None:
    assert run.status == 0
    assert run.cursor
    assert run.lines[0] == "train: 3 utterances, 0.00 hours"
    assert re.search(r"cpu with 1 thread, 32-true: [\d,]+ parameters; 0.00 hours in \d+ batch", run.text)
    assert "loss 0.000" not in run.text


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_in_a_terminal_and_in_a_pipe(name: str, place: Path, request: pytest.FixtureRequest) -> None:
    case = COMMANDS[name]
    if name in ("train", "adapt", "report", "export"):
        request.getfixturevalue("run")
    arguments: list[object] = [*name.split(), *case.arguments.format(digits=DIGITS).split()]
    narrow = len(name) % 2  # half of them in 80 columns, the others in 120
    seen = screen.run(arguments, place, columns=80 if narrow else 120)
    assert seen.status == case.status, seen.text
    assert seen.cursor
    assert "Traceback" not in seen.text
    if name not in ("train", "adapt"):  # whose bar stays, with what was reached
        assert not re.search("[━╸╺]", seen.text)
    for pattern in filter(None, (case.on_stdout, case.on_stderr)):
        assert re.search(pattern, seen.text, re.MULTILINE), seen.text
    if case.on_stdout and name != "adapt":  # which makes its folder once
        piped = screen.run(arguments, place, columns=120 if narrow else 80, redirect="| cat > out.txt")
        text = (place / "out.txt").read_text()
        assert piped.status == 0
        assert re.search(case.on_stdout, text, re.MULTILINE)
        assert not any(line and line in piped.lines for line in text.splitlines())
        assert "\x1b" not in text


def long_recording(path: Path) -> None:
    samples, rate = soundfile.read(DIGITS)
    sentence = np.concatenate([samples, np.zeros(round(2.25 * rate))])
    soundfile.write(path, np.tile(sentence, 41), rate)  # four and a half minutes


def test_a_long_recording_is_read_while_it_is_recognised(tmp_path: Path) -> None:
    long_recording(tmp_path / "long.flac")
    seen = screen.run(
        ["transcribe", "-m", "digits", "long.flac"], tmp_path, interrupt_at="(?s)zero.*transcribing.* of 4:3"
    )
    assert seen.status == 130
    assert seen.cursor
    assert seen.lines[-1] == "asr: interrupted"
    assert set(seen.lines[:-1]) == {"five seven nine zero"}
    assert 0 < len(seen.lines) < 41


@pytest.mark.parametrize(
    ("arguments", "at"),
    [
        ("transcribe -m digits -j 2 long.flac again.flac", "transcribing"),
        ("evaluate digits many.jsonl", "recognising"),
        ("tune digits many.jsonl --dry-run", "running the network"),
        ("live -m digits --from long.flac", "listening"),
        ("train config.yaml epochs=500 --run run --device cpu --threads 1", "epoch +1 +loss"),
    ],
    ids=["transcribe", "evaluate", "tune", "live", "train"],
)
def test_ctrl_c(tmp_path: Path, arguments: str, at: str) -> None:
    long_recording(tmp_path / "long.flac")
    (tmp_path / "again.flac").symlink_to("long.flac")
    row = {
        "audio_filepath": str(DIGITS),
        "duration": round(soundfile.info(DIGITS).duration, 4),
        "text": "five seven nine zero",
    }
    (tmp_path / "many.jsonl").write_text(f"{json.dumps(row)}\n" * 3000)
    (tmp_path / "dev.jsonl").write_text(f"{json.dumps(row)}\n")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(TINY))
    seen = screen.run(arguments.split(), tmp_path, columns=120, interrupt_at=at)
    assert seen.status == (0 if arguments.startswith("live") else 130), seen.text
    assert seen.cursor
    assert "Traceback" not in seen.text
    assert not re.search("[━╸╺]", seen.text) or arguments.startswith("train")
    if not arguments.startswith("live"):
        assert re.search("interrupted|stopped at epoch", seen.lines[-1])


@pytest.mark.parametrize("options", [[], ["-q"], ["-v"], ["--beam", "1"]])
def test_text_of_one_recording(tmp_path: Path, options: list[str]) -> None:
    seen = screen.run(["transcribe", "-m", "digits", *options, DIGITS], tmp_path)
    assert seen.status == 0
    assert "five seven nine zero" in seen.lines


@pytest.mark.parametrize("redirect", ["> out.txt", "| cat > out.txt"])
def test_text_beside_a_terminal(tmp_path: Path, redirect: str) -> None:
    seen = screen.run(["transcribe", "-m", "digits", DIGITS], tmp_path, redirect=redirect)
    assert (seen.status, seen.text) == (0, "")
    assert (tmp_path / "out.txt").read_text() == "five seven nine zero\n"


@pytest.mark.parametrize("columns", [80, 120])
def test_texts_of_several_stand_above_the_bar(tmp_path: Path, columns: int) -> None:
    for number in range(3):
        (tmp_path / f"{number}.flac").symlink_to(DIGITS)
    (tmp_path / "none.wav").touch()
    files = ["0.flac", "1.flac", "none.wav", "2.flac"]
    seen = screen.run(["transcribe", "-m", "digits", "-j", 1, *files], tmp_path, columns=columns)
    assert seen.status == 1
    assert seen.cursor
    assert [line for line in seen.lines if ".flac" in line] == [f"{n}.flac  five seven nine zero" for n in range(3)]
    assert not any("━" in line for line in seen.lines)  # the bar is gone
    assert seen.lines[-1].startswith("3 of 4 recordings")
    assert sum(line.startswith("asr: none.wav") for line in seen.lines) == 1


def test_what_starts_in_a_block_never_gets_its_signals() -> None:
    """Not even where multiprocessing's tracker, which unblocks them, is started with it."""
    script = """
import signal, subprocess, sys
from multiprocessing import resource_tracker
from asr import terminal

tell = [sys.executable, "-c", "import signal; print(len(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"]
with terminal.blocked(terminal.STOP_SIGNALS):
    resource_tracker.ensure_running()
    subprocess.run(tell)
subprocess.run(tell)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "0"]
