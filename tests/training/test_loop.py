import io
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
import torch
import yaml
from rich.console import Console

from asr import Recognizer, audio, terminal
from asr.corpus import tars
from asr.errors import TrainingError
from asr.manifest import ManifestError, Utterance, write
from asr.manifest import read as read_manifest
from asr.metrics import Scored
from asr.tokens import Tokens
from asr.training import augment, checkpoint, config, export, loop, plots
from asr.training.data import Batch, Corpus, Item
from asr.training.log import Log
from asr.training.model import AcousticModel, Network
from asr.training.run import Outcome
from asr.training.schedule import rate
from asr.training.updates import batches_of_updates

TONES_HZ = {"a": 400, "b": 1100, "c": 2600}
TEXTS = ["a", "b", "c", "ab", "bc", "ca", "abc", "cab", "bca", "acb", "cba", "bac", "aba", "bcb", "cac", "babc"]
QUIET = Console(quiet=True)
Settings = Callable[..., config.Config]  # TINY with changes
Finished = tuple[Path, config.Config]  # a run folder, and its settings
Together = tuple[Path, Path, config.Config]
Script = Callable[..., None]


def say(text: str, seed: int) -> np.ndarray:
    """A tone for each letter, 0.1 to 0.2 s long, in a little noise."""
    rng = np.random.default_rng(seed)
    parts = [np.zeros(1600)]
    for letter in text:
        t = np.arange(rng.integers(1600, 3200)) / 16000
        parts += [0.3 * np.sin(2 * np.pi * TONES_HZ[letter] * t), np.zeros(800)]
    waveform = np.concatenate(parts)
    return waveform + rng.normal(0, 0.003, len(waveform))


def make_corpus(folder: Path, texts: Sequence[str] = TEXTS, name: str = "train") -> Path:
    utterances = []
    for number, text in enumerate(texts):
        waveform = say(text, number)
        path = folder / f"{name}{number:02d}.wav"
        soundfile.write(path, waveform, 16000)
        utterances.append(Utterance(path, len(waveform) / 16000, text))
    write(folder / f"{name}.jsonl", utterances)
    return folder / f"{name}.jsonl"


TINY: dict[str, Any] = {
    "name": "tiny",
    "epochs": 3,
    "ema": 0.9,
    "average": {"kind": "best", "n": 2},
    "data": {"alphabet": " abc"},
    "features": {"n_mels": 20},
    "network": {"cell": "gru", "layers": 1, "hidden": 8, "dropout": 0.1, "subsampling": 2, "conv_channels": 2},
    "augment": {
        "speed": [0.9, 1.0, 1.1],
        "gain_db": [-6, 6],
        # A start above any CER: masks from the second epoch on.
        "spec_augment": {"start_cer": 9.0, "freq_width": 3, "time_width": 5},
    },
    "batch": {"max_utterances": 4},
    "optimiser": {"lr": 0.01},
}


def merge(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """tree with `section__key=value` or `key=value` laid over it."""
    merged: dict[str, Any] = json.loads(json.dumps(tree))
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = merged
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return merged


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("corpus")
    return {"train": str(make_corpus(folder)), "dev": str(make_corpus(folder, ["ab", "c", "cab", "bca"], "dev"))}


@pytest.fixture
def settings(corpus: dict[str, str]) -> Settings:
    def of(**changes: Any) -> config.Config:
        paths = {"data__train": [corpus["train"]], "data__dev": corpus["dev"]}
        return config.parse(merge(TINY, paths | changes), "test")

    return of


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "curves", lambda run: None)
    monkeypatch.setattr(plots, "gradients", lambda run: None)


def train(chosen: config.Config, run: Path, **options: Any) -> Outcome:
    usual: dict[str, Any] = {"device": "cpu", "threads": 1, "console": QUIET}
    return loop.train(chosen, run, **usual | options)


def written(console: Console) -> str:
    """What went to a console that writes to memory."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def read_log(run: Path) -> list[dict[str, Any]]:
    """The log's rows without what the clock says."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def epochs_of(run: Path) -> list[dict[str, Any]]:
    return [row for row in read_log(run) if "dev_loss" in row]


def assert_same_training(run: Path, reference: Path) -> None:
    assert read_log(run) == read_log(reference)
    for name in ("model.safetensors", "last.safetensors"):
        got, expected = checkpoint.load(run / name)[0], checkpoint.load(reference / name)[0]
        assert got.keys() == expected.keys()
        for key in expected:
            assert torch.equal(got[key], expected[key]), f"{name}: {key}"
    epoch_files = [{file.name for file in folder.glob("epoch-*")} for folder in (run, reference)]
    assert epoch_files[0] == epoch_files[1]
    assert not list(run.glob("*.part"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, corpus: dict[str, str]) -> Finished:
    """A training that nothing interrupted. 3 epochs of 4 steps."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    tree = merge(TINY, {"data__train": [corpus["train"]], "data__dev": corpus["dev"], "checkpoint_minutes": 0})
    chosen = config.parse(tree, "test")
    assert train(chosen, run).finished
    return run, chosen


# --- learning ---


ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(
    ("device", "precision"), [("cpu", "32-true"), pytest.param("cuda", "bf16-mixed", marks=ON_CUDA)]
)
def test_it_learns_four_utterances_by_heart(
    tmp_path: Path, settings: Settings, device: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From audio to an exported file, with a stop in the middle."""
    texts = ["ab", "bca", "c", "acb"]
    path = make_corpus(tmp_path, texts)
    run = tmp_path / "run"
    chosen = settings(
        data__train=[str(path)],
        data__dev=str(path),
        epochs=40,
        ema=0.0,
        network__hidden=16,
        network__dropout=0.0,
        augment={"spec_augment": None},
        optimiser__lr=0.02,
        average=None,
        batch__max_utterances=2,
        precision=precision,
    )
    asked = iter([False] * 21 + [True])
    monkeypatch.setattr(terminal, "asked_to_end", lambda: nullcontext(lambda: next(asked, False)))
    assert not train(chosen, run, device=device).finished
    outcome = train(chosen, run, device=device, resume=True)
    losses = [row["train_loss"] for row in epochs_of(run)]
    assert losses[-1] < 0.1 * losses[0]
    assert outcome.finished
    assert (outcome.cer, outcome.wer) == (0.0, 0.0)
    assert all(math.isfinite(number) for row in read_log(run) for number in _numbers(row))
    model, _, _, origin = checkpoint.load_model(run)
    assert origin["training"]["device"] == device
    assert model.std.min() > 0.01  # features were fitted
    export.export(run, tmp_path / "run.onnx")
    recognizer = Recognizer(tmp_path / "run.onnx", beam=1)
    assert [recognizer.transcribe(utterance.audio).text for utterance in read_manifest(path)] == texts


def test_loss_falls_with_augmentation_and_ema(finished: Finished) -> None:
    losses = [row["train_loss"] for row in epochs_of(finished[0])]
    assert losses[-1] < 0.8 * losses[0]
    assert all(map(math.isfinite, losses))


# --- the run folder ---


def test_run_folder(finished: Finished) -> None:
    run, chosen = finished
    names = {file.name for file in run.iterdir()}
    kept = {name for name in names if name.startswith("epoch-")}
    assert names - kept == {
        "config.yaml",
        "curves.png",
        "dev_report.json",
        "dev_report.txt",
        "gradients.png",
        "last.safetensors",
        "log.jsonl",
        "model.safetensors",
        "tensorboard",
    }
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    assert config.parse(resolved, "test") == chosen
    assert resolved["optimiser"]["clip_norm"] == 5.0  # defaults are written out
    for name in ("curves.png", "gradients.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")
    report = json.loads((run / "dev_report.json").read_text())
    summary = checkpoint.load_model(run)[3]["training"]
    assert f"{summary['dev_wer']:.4f}" in json.dumps(report) or summary["dev_wer"] in _numbers(report)
    assert (run / "dev_report.txt").read_text().strip()
    assert summary["epochs"] == 3
    assert summary["weights"] in ("best epoch", "average of 2 epochs")
    assert summary["parameters"] == sum(p.numel() for p in checkpoint.load_model(run)[0].parameters())


def _numbers(tree: Any) -> list[float]:
    if isinstance(tree, dict):
        return [number for value in tree.values() for number in _numbers(value)]
    if isinstance(tree, list):
        return [number for value in tree for number in _numbers(value)]
    return [tree] if isinstance(tree, int | float) else []


def test_log(finished: Finished) -> None:
    rows = read_log(finished[0])
    steps, epochs = [row for row in rows if "layers" in row], [row for row in rows if "dev_loss" in row]
    assert [row["step"] for row in steps] == [0, loop.LOG_EVERY]
    assert [row["epoch"] for row in epochs] == [0, 1, 2]
    # "layers.0" is the normalisation before the two directions.
    layers = {"conv.0", "layers.0", "layers.0.directions.0", "layers.0.directions.1", "output.0", "output.1"}
    for row in steps:
        assert set(row["layers"]) == layers
        # The layers' norms make up the whole.
        assert math.hypot(*row["layers"].values()) == pytest.approx(row["gradient_norm"], rel=1e-4)


def test_tensorboard(finished: Finished) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished[0] / "tensorboard")).Reload()
    epochs = epochs_of(finished[0])
    dev = events.Scalars("dev_loss")
    assert [(event.step, event.value) for event in dev] == [
        (4 * row["epoch"] + 3, pytest.approx(row["dev_loss"])) for row in epochs
    ]
    assert len(events.Scalars("layers/layers.0.directions.1")) == 2


# --- from tars ---


@pytest.fixture(scope="module")
def in_tars(tmp_path_factory: pytest.TempPathFactory, corpus: dict[str, str]) -> Path:
    """The training corpus in eight tars."""
    folder = tmp_path_factory.mktemp("tars")
    for shard in tars.plan(read_manifest(corpus["train"]), folder, "train", hours=0.5 / 3600):
        assert tars.write(shard, "flac") == []
    assert len(list(folder.glob("*.tar"))) >= 8
    return folder


@pytest.mark.usefixtures("no_plots")
def test_from_tars_killed_and_resumed_it_ends_as_from_files(
    tmp_path: Path, finished: Finished, in_tars: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, chosen = finished
    of_tars = config.parse(merge(config.to_dict(chosen), {"data__train": [str(in_tars)]}), "test")
    before = set(in_tars.iterdir())
    with killed_at(7, "before", monkeypatch):  # in the second epoch
        train(of_tars, tmp_path / "run")
    train(of_tars, tmp_path / "run", resume=True)
    assert_same_training(tmp_path / "run", reference)
    assert set(in_tars.iterdir()) == before  # nothing is decoded to a disk


def test_two_processes_train_from_tars_as_from_files(tmp_path: Path, together: Together, in_tars: Path) -> None:
    _, two, chosen = together
    of_tars = merge(config.to_dict(chosen), {"data__train": [str(in_tars / "*.tar")]})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(of_tars))
    with torchrun(tmp_path / "config.yaml", tmp_path / "run", 2) as process:
        said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert_same_training(tmp_path / "run", two)


def test_a_tar_that_changes_while_it_is_trained_on(tmp_path: Path, settings: Settings, in_tars: Path) -> None:
    shutil.copytree(in_tars, tmp_path / "tars")
    chosen = settings(data__train=[str(tmp_path / "tars")])
    model = AcousticModel(chosen, 5)
    corpus = Corpus(chosen.data.train, Tokens.of(" abc"), chosen, geometry=model.geometry, training=True)
    corpus.decode()
    assert len(corpus.waveform(0)) == round(corpus.examples.durations_s[0] * 16_000)
    first = min((tmp_path / "tars").glob("*.tar"))
    size = first.stat().st_size
    content = first.read_bytes()
    first.write_bytes(content[:512] + bytes(size - 512))
    with pytest.raises(
        TrainingError, match=r"tar/train00\.flac: expected audio.*; mend that, then go on with --resume"
    ):
        corpus.waveform(0)
    first.unlink()
    with pytest.raises(TrainingError, match=r"00000-of-\d+\.tar: cannot be read: No such file"):
        corpus.waveform(0)
    for left, message in ((None, "cannot be read: No such file"), (1000, r"expected \d+ bytes or more, .* got 1000")):
        if left is not None:
            first.write_bytes(content[:left])
        with pytest.raises(TrainingError, match=rf"{first.name}: {message}.*; copy what is missing"):
            Corpus(chosen.data.train, Tokens.of(" abc"), chosen, geometry=model.geometry, training=True).decode()


def test_files_and_tars_together(tmp_path: Path, settings: Settings, in_tars: Path, corpus: dict[str, str]) -> None:
    """One corpus of a manifest of files, one of which is missing, and of tars."""
    utterances = [Utterance(tmp_path / "none.wav", 1.0, "a"), *read_manifest(corpus["train"])[:2]]
    write(tmp_path / "files.jsonl", utterances)
    chosen = settings(data__train=[str(in_tars / "train-00001-*.tar"), str(tmp_path / "files.jsonl")])
    both = Corpus(
        chosen.data.train, Tokens.of(" abc"), chosen, geometry=AcousticModel(chosen, 5).geometry, training=True
    )
    count = len(both.examples)
    both.decode()
    assert [skip.id for skip in both.skipped] == ["none"]
    assert len(both.examples) == count - 1
    batch = both.load([Item(index) for index in range(len(both.examples))], 0)
    for row, length, example in zip(batch.samples.numpy(), batch.lengths, both.examples, strict=True):
        number = int(example.utterance.id.removeprefix("train"))
        expected = audio.as_int16(audio.read(Path(corpus["train"]).with_name(f"train{number:02d}.wav")))
        np.testing.assert_array_equal(row[:length], expected)


# --- resuming ---


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


@contextmanager
def killed_at(write_number: int, moment: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The training within is killed before, within or after that write of a checkpoint, from 0."""
    real, left = checkpoint.save, write_number

    def save(path: Path, *rest: Any) -> None:
        nonlocal left
        if left:
            left -= 1
            real(path, *rest)
            return
        if moment == "within":
            path.with_name(path.name + ".part").write_bytes(b"half a check")
        if moment == "after":
            real(path, *rest)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        with pytest.raises(Killed):
            yield


# Number of the write, and where in it. 3 epochs of 4 steps, a checkpoint after each step and each epoch, weights
# after each epoch: steps 0-3, epoch 1, last; 6-9, epoch 2, last; 12-15, epoch 3, last; the model.
KILLS = [
    (0, "before"),
    (0, "within"),
    (4, "after"),
    (5, "before"),
    (7, "within"),
    (15, "before"),
    (18, "before"),
]


@pytest.mark.usefixtures("no_plots")
def test_killed_at_any_write_it_ends_the_same(
    tmp_path: Path, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, chosen = finished
    for number, (write_number, moment) in enumerate(KILLS):
        run = tmp_path / str(number)
        with killed_at(write_number, moment, monkeypatch):
            train(chosen, run)
        train(chosen, run, resume=True)
        assert_same_training(run, reference)


def steps_done(run: Path) -> int:
    # One read of one file: safe_open opens it twice, and a running training may put a newer one in between.
    try:
        content = (run / "last.safetensors").read_bytes()
    except FileNotFoundError:
        return -1
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    return int(json.loads(header["__metadata__"]["asr"])["progress"]["step"])


@contextmanager
def started(run: Path, config_file: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A training in a process of its own, which does not outlive the test."""
    command = [sys.executable, "-m", "asr", "train", str(config_file), "--run", str(run), "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        [*command, "--threads", "1", *options], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_kill_and_ctrl_c_of_a_process(tmp_path: Path, settings: Settings) -> None:
    # Steps enough that a signal finds the training at work.
    chosen = settings(epochs=8, checkpoint_minutes=0, average__kind="last")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.to_dict(chosen)))
    run, reference = tmp_path / "run", tmp_path / "reference"

    with started(run, tmp_path / "config.yaml") as process:
        wait_for(lambda: steps_done(run) >= 5, process)
    killed_at = steps_done(run)

    with started(run, tmp_path / "config.yaml", "--resume") as process:
        wait_for(lambda: steps_done(run) >= killed_at + 4, process)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130, said
    assert "and saved; the same command with --resume goes on from there" in said
    stopped_at = steps_done(run)
    assert killed_at < stopped_at < 32
    assert not (run / "model.safetensors").exists()

    train(chosen, run, resume=True)
    train(chosen, reference)
    assert_same_training(run, reference)


SIGNALS_WHILE_AN_LSTM_LEARNS = """
import os, signal, threading, time, torch
from asr.training import launch

torch.set_num_threads(2)
launch.shield_from_signals()
came = []
signal.signal(signal.SIGINT, lambda number, _: came.append(number))
done = threading.Event()

def storm():
    while not done.wait(0.001):
        os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=storm).start()
lstm, samples = torch.nn.LSTM(40, 256, 2, batch_first=True), torch.randn(8, 100, 40)
for _ in range(12):
    lstm(samples)[0].sum().backward()
done.set()
print(len(came))
"""


def test_signals_do_not_spoil_memory() -> None:
    command = [sys.executable, "-c", SIGNALS_WHILE_AN_LSTM_LEARNS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


@pytest.mark.usefixtures("no_plots")
def test_init_copies_what_fits_and_lists_the_rest(tmp_path: Path, finished: Finished, no_plots: None) -> None:
    run, chosen = finished
    console = Console(file=io.StringIO(), width=400)
    still = config.parse(config.to_dict(chosen) | {"init": str(run), "epochs": 1, "optimiser": {"lr": 1e-12}}, "test")
    train(still, tmp_path / "same", console=console)
    before, after = (checkpoint.load(folder / "model.safetensors")[0] for folder in (run, tmp_path / "same"))
    for name in before:  # hardly moved by a learning rate of next to nothing
        torch.testing.assert_close(after[name], before[name], atol=1e-5, rtol=1e-4)
    assert "drawn anew" not in written(console)

    tree = config.to_dict(still)
    tree["data"]["alphabet"] += "xyz"
    train(config.parse(tree, "test"), tmp_path / "other", console=console)
    said = written(console)
    assert (
        "16 of 18 tensors fit; in part: network.output.1.weight (62%), network.output.1.bias (62%); new tokens" in said
    )
    assert "new tokens: 'x', 'y', 'z'" in said


def test_resuming_a_finished_training_changes_nothing(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, run = settings(epochs=1), tmp_path / "run"
    first = train(chosen, run)
    before = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    monkeypatch.setattr(loop.Training, "_update", lambda *_, **__: pytest.fail("a step was taken"))
    assert train(chosen, run, resume=True) == first
    after = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    assert before == after


def test_lost_log_does_not_stop_a_resumed_training(tmp_path: Path, finished: Finished) -> None:
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "log.jsonl").unlink()
    assert train(finished[1], tmp_path / "run", resume=True).finished
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == b""  # not zeros up to the old size


@pytest.mark.usefixtures("no_plots")
def test_resume_without_a_checkpoint_starts_and_says_so(tmp_path: Path, settings: Settings) -> None:
    with (tmp_path / "said").open("w") as file:
        outcome = train(settings(epochs=1), tmp_path / "run", resume=True, console=Console(file=file, width=40))
    assert outcome.finished
    assert "holds no checkpoint yet; starting from the beginning" in (tmp_path / "said").read_text()


# --- every network, both precisions ---

NETWORKS = [
    (cell, directions, norm, precision)
    for number, (cell, directions) in enumerate(
        (cell, directions) for cell in ("rnn_tanh", "rnn_relu", "gru", "lstm") for directions in (1, 2)
    )
    # Each cell meets each norm in both precisions, the directions taking turns.
    for turn, (norm, precision) in enumerate(
        (norm, precision) for norm in ("none", "layer", "batch") for precision in ("32-true", "bf16-mixed")
    )
    if (number + turn // 2 + turn) % 2
]


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(("cell", "directions", "norm", "precision"), NETWORKS)
def test_every_network_trains(
    tmp_path: Path, settings: Settings, cell: str, directions: int, norm: str, precision: str
) -> None:
    chosen = settings(
        epochs=1,
        network__cell=cell,
        network__bidirectional=directions == 2,
        network__norm=norm,
        precision=precision,
        batch__max_utterances=8,
    )
    assert train(chosen, tmp_path / "run").finished
    rows = read_log(tmp_path / "run")
    assert all(math.isfinite(number) for row in rows for number in _numbers(row))
    directions_logged = [layer for layer in rows[0]["layers"] if "directions" in layer]
    assert len(directions_logged) == directions
    assert all(rows[0]["layers"][layer] > 0 for layer in directions_logged)


# --- schedules ---


def optimiser(**changes: Any) -> config.Optimiser:
    return config.Optimiser(**{"warmup": 0.2, "final": 0.1} | changes)


def test_cosine() -> None:
    settings = optimiser(schedule="cosine")
    assert rate(settings, 0.0) == pytest.approx(1e-3)
    assert rate(settings, 0.1) == pytest.approx(0.5)
    assert rate(settings, 0.2) == pytest.approx(1.0)
    assert rate(settings, 0.6) == pytest.approx(0.55)  # half way between the peak and the final rate
    assert rate(settings, 0.4) == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    assert rate(settings, 1.0) == pytest.approx(0.1)


def test_one_cycle() -> None:
    settings = optimiser(schedule="one_cycle")
    assert rate(settings, 0.0) == pytest.approx(1 / 25)
    assert rate(settings, 0.1) == pytest.approx((1 / 25 + 1) / 2)
    assert rate(settings, 0.05) < 0.5 * (rate(settings, 0.0) + rate(settings, 0.1))  # starts flat
    assert rate(settings, 0.2) == pytest.approx(1.0)
    assert rate(settings, 0.6) == pytest.approx(0.55)
    assert rate(settings, 1.0) == pytest.approx(0.1)


@pytest.mark.parametrize("schedule", ["plateau", "constant"])
def test_flat_schedules(schedule: str) -> None:
    settings = optimiser(schedule=schedule)
    assert [rate(settings, x) for x in (0.1, 0.2, 0.5, 1.0)] == pytest.approx([0.5, 1, 1, 1])


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle", "plateau", "constant"])
def test_no_warmup_starts_at_the_peak(schedule: str) -> None:
    assert rate(optimiser(schedule=schedule, warmup=0.0), 0.0) == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle", "plateau", "constant"])
def test_rates_rise_and_then_never_rise_again(schedule: str) -> None:
    rates = [rate(optimiser(schedule=schedule), step / 100) for step in range(101)]
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert min(rates) > 0
    assert max(rates) == pytest.approx(1.0)


def test_rates_in_the_log_are_the_schedules(finished: Finished) -> None:
    run, chosen = finished
    for row in (row for row in read_log(run) if "lr" in row):
        assert row["lr"] == pytest.approx(0.01 * rate(chosen.optimiser, row["step"] / 12))


# --- what dev errors decide: an evaluation that follows a script ---


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, no_plots: None) -> Script:
    """Make the evaluations give these dev losses and character error rates, the last one for ever."""

    def follow(losses: Sequence[float] = (1.0,), cers: Sequence[float] = (1.0,)) -> None:
        calls = iter(range(1000))

        def evaluate(session: Any, corpus: Corpus) -> tuple[list[Scored], float]:
            call = next(calls)
            state = cers[min(call, len(cers) - 1)]
            return [Scored(str(state), "a b", "a b")], losses[min(call, len(losses) - 1)]

        monkeypatch.setattr(loop.Training, "evaluate", evaluate)
        monkeypatch.setattr(loop, "rates", lambda scored: (float(scored[0].id), float(scored[0].id)))

    return follow


def test_plateau_halves_the_rate_when_the_dev_loss_stalls(tmp_path: Path, settings: Settings, script: Script) -> None:
    script(losses=[3.0, 2.0, 2.0, 2.5, 2.1, 2.2, 1.0, 1.1])
    optimiser = {"optimiser__schedule": "plateau", "optimiser__plateau_patience": 1, "optimiser__warmup": 0}
    chosen = settings(epochs=8, batch__max_utterances=16, batch__seconds=1000, **optimiser)
    train(chosen, tmp_path / "run")
    # Stalled for more than one epoch after the fourth, and again, counted anew, after the sixth; then it improves.
    assert [row["lr_scale"] for row in epochs_of(tmp_path / "run")] == [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_other_schedules_do_not_halve(tmp_path: Path, settings: Settings, script: Script, schedule: str) -> None:
    script(losses=[1.0, 2.0])
    train(settings(epochs=4, optimiser__schedule=schedule, optimiser__plateau_patience=0), tmp_path / "run")
    assert {row["lr_scale"] for row in epochs_of(tmp_path / "run")} == {1.0}


def test_halved_rate_is_used(
    tmp_path: Path, settings: Settings, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    script(losses=[1.0, 2.0])
    halving = {"optimiser__schedule": "plateau", "optimiser__plateau_patience": 0, "optimiser__warmup": 0}
    train(settings(epochs=3, **halving), tmp_path / "run")
    rates = {row["epoch"]: row["lr"] for row in read_log(tmp_path / "run") if "lr" in row}
    assert rates == {0: 0.01, 1: 0.01, 2: 0.005}


@pytest.mark.parametrize(("patience", "epochs"), [(1, 4), (2, 7), (None, 9)])
def test_early_stopping(tmp_path: Path, settings: Settings, script: Script, patience: int | None, epochs: int) -> None:
    script(cers=[0.9, 0.8, 0.7, 0.7, 0.6, 0.6, 0.65, 0.1, 0.1])
    train(settings(epochs=9, patience=patience, batch__max_utterances=16), tmp_path / "run")
    assert len(epochs_of(tmp_path / "run")) == epochs


CERS = [0.5, 0.3, 0.6, 0.2, 0.4, 0.45]


@pytest.mark.parametrize(
    ("average", "kept"),
    [
        ({"kind": "best", "n": 3}, [2, 4, 5]),
        ({"kind": "last", "n": 2}, [4, 5, 6]),  # and the best
        ({"kind": "last", "n": 50}, [1, 2, 3, 4, 5, 6]),
        (None, [4]),
    ],
)
def test_epoch_files_that_are_kept(
    tmp_path: Path, settings: Settings, script: Script, average: dict[str, Any] | None, kept: list[int]
) -> None:
    script(cers=CERS)
    train(settings(epochs=6, average=average, batch__max_utterances=16), tmp_path / "run")
    files = sorted(file.name for file in (tmp_path / "run").glob("epoch-*"))
    assert files == [f"epoch-{number:04d}.safetensors" for number in kept]


def test_the_last_epoch_can_be_the_model_whatever_dev_says(tmp_path: Path, settings: Settings, script: Script) -> None:
    script(cers=[0.2, 0.5, 0.6])
    assert train(settings(epochs=3, select="last"), tmp_path / "run").cer == 0.6
    assert checkpoint.load_model(tmp_path / "run")[3]["training"]["weights"] == "last epoch"
    assert [file.name for file in (tmp_path / "run").glob("epoch-*")] == ["epoch-0003.safetensors"]


@pytest.mark.parametrize(("of_average", "chosen_weights"), [(0.1, "average of 2 epochs"), (0.2, "best epoch")])
def test_average_is_kept_only_if_better(
    tmp_path: Path, settings: Settings, script: Script, of_average: float, chosen_weights: str
) -> None:
    run = tmp_path / "run"
    script(cers=[0.5, 0.3, 0.2, 0.2, of_average])  # three epochs, the best one again, the average
    assert train(settings(epochs=3), run).cer == of_average
    tensors, state = checkpoint.load(run / "model.safetensors")
    assert state["training"]["weights"] == chosen_weights
    best, mean = (
        checkpoint.load(run / "epoch-0003.safetensors")[0],
        checkpoint.average([run / f"epoch-000{number}.safetensors" for number in (2, 3)]),
    )
    for name, tensor in (mean if of_average < 0.2 else best).items():
        assert torch.equal(tensors[name], tensor)


def test_spec_augment_waits_for_its_threshold(
    tmp_path: Path, settings: Settings, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(cers=[1.0, 0.7, 0.69, 0.9])
    masked: list[int] = []
    real, real_step = augment.spec_augment, loop.Training._update
    epoch = -1

    def step(session: Any, *arguments: Any) -> None:
        nonlocal epoch
        epoch = session.state.epoch
        real_step(session, *arguments)

    def spec_augment(features: torch.Tensor, settings: config.SpecAugment) -> torch.Tensor:
        masked.append(epoch)
        return real(features, settings)

    monkeypatch.setattr(loop.Training, "_update", step)
    monkeypatch.setattr(augment, "spec_augment", spec_augment)
    train(settings(epochs=5, augment__spec_augment__start_cer=0.7), tmp_path / "run")
    assert masked == [3] * 4 + [4] * 4  # 4 steps an epoch; once on, it stays on; never in evaluation


# --- order, averages ---


@pytest.mark.usefixtures("no_plots")
def test_first_epochs_are_in_order_of_length(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest: dict[int, list[float]] = {}
    real = Corpus.batches

    def batches(corpus: Corpus, plan: Sequence[Sequence[Item]], epoch: int) -> Iterator[Batch]:
        for batch in real(corpus, plan, epoch):
            if corpus._training:
                played = zip(batch.lengths, batch.perturbations, strict=True)
                longest.setdefault(epoch, []).append(max(length / one.speed for length, one in played))
            yield batch

    monkeypatch.setattr(Corpus, "batches", batches)
    train(settings(epochs=3, sortagrad_epochs=2, batch__max_utterances=2), tmp_path / "run")
    assert [len(lengths) for lengths in longest.values()] == [8, 8, 8]
    ordered = [lengths == sorted(lengths) for lengths in longest.values()]
    assert ordered == [True, True, False]


@pytest.mark.usefixtures("no_plots")
def test_moving_average_of_the_weights(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    history: list[dict[str, torch.Tensor]] = []
    evaluated: list[torch.Tensor] = []
    real, real_evaluate = loop.Training._update_ema, loop.Training.evaluate

    def weights(session: Any) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in session.model.state_dict().items()}

    def update(session: Any) -> None:
        history.append(weights(session))
        real(session)

    def evaluate(session: Any, corpus: Corpus) -> Any:
        evaluated.append(weights(session)["network.output.1.weight"])
        return real_evaluate(session, corpus)

    monkeypatch.setattr(loop.Training, "_update_ema", update)
    monkeypatch.setattr(loop.Training, "evaluate", evaluate)
    chosen = settings(epochs=1, ema=0.3, network__norm="batch")
    train(chosen, tmp_path / "run")
    ema = checkpoint.load(tmp_path / "run" / "epoch-0001.safetensors")[0]
    last = checkpoint.load(tmp_path / "run" / "last.safetensors")[0]

    torch.manual_seed(chosen.seed)
    expected = AcousticModel(chosen, 5).state_dict()["network.output.1.weight"].clone()
    for decay, one in zip([1 / 10, 2 / 11, 3 / 12, 0.3], history, strict=True):
        expected = decay * expected + (1 - decay) * one["network.output.1.weight"]
    torch.testing.assert_close(ema["network.output.1.weight"], expected)
    torch.testing.assert_close(evaluated[0], expected)  # dev errors are those of the average
    assert torch.equal(last["model|network.output.1.weight"], history[-1]["network.output.1.weight"])
    assert ema["network.layers.0.norm.norm.num_batches_tracked"].item() == 4
    assert torch.equal(ema["mean"], last["model|mean"])


# --- what goes wrong ---


@pytest.mark.usefixtures("no_plots")
def test_loss_that_is_not_finite_names_its_utterance(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Corpus.heard
    updates = 0

    def heard(corpus: Corpus, batch: Batch, *arguments: Any) -> tuple[torch.Tensor, list[int]]:
        nonlocal updates
        updates += corpus._training
        waveforms, lengths = real(corpus, batch, *arguments)
        if "train05" in batch.ids and updates > 5:  # in the second epoch: a rehearsal and 4 updates are done
            waveforms[batch.ids.index("train05")] = float("nan")
        return waveforms, lengths

    monkeypatch.setattr(Corpus, "heard", heard)
    chosen = settings()
    with pytest.raises(TrainingError, match=r"the loss at step \d+ is not finite; utterances: train05\. Listen"):
        train(chosen, tmp_path / "run")
    assert steps_done(tmp_path / "run") == 4  # the last good state is there
    monkeypatch.undo()
    assert train(chosen, tmp_path / "run", resume=True, device="cpu").finished


@pytest.mark.usefixtures("no_plots")
def test_gradient_that_is_not_finite(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(math.inf))
    with pytest.raises(TrainingError, match="the gradient at step 0 is not finite; utterances: train"):
        train(settings(), tmp_path / "run")


@pytest.mark.usefixtures("no_plots")
def test_skipped_utterances_are_listed_with_reasons(tmp_path: Path, settings: Settings, corpus: dict[str, str]) -> None:
    soundfile.write(tmp_path / "short.wav", np.zeros(1600), 16000)
    rows = [
        {"audio_filepath": corpus["train"].replace("train.jsonl", "train00.wav"), "duration": 0.3, "text": "xyz"},
        {"audio_filepath": str(tmp_path / "short.wav"), "duration": 0.1, "text": "abcabcabc"},
        {"audio_filepath": str(tmp_path / "none.wav"), "duration": 1.0, "text": "abc"},
    ]
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = settings(epochs=1, data__train=[corpus["train"], str(tmp_path / "bad.jsonl")])
    with (tmp_path / "said").open("w") as file:
        train(chosen, tmp_path / "run", console=Console(file=file, width=40))
    listed = [json.loads(line) for line in (tmp_path / "run" / "skipped_train.jsonl").read_text().splitlines()]
    reasons = {row["id"]: row["reason"] for row in listed}
    assert reasons.keys() == {"train00", "short", "none"}
    assert "'x'" in reasons["train00"]
    assert "CTC needs 9 frames" in reasons["short"]
    assert "none.wav" in reasons["none"]
    said = (tmp_path / "said").read_text()
    assert said.startswith("train: 16 utterances")  # no leftovers of a progress bar
    assert "3 skipped, listed with reasons in" in said
    assert not (tmp_path / "run" / "skipped_dev.jsonl").exists()


def test_all_skipped(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(TrainingError, match=r"train: none of 16 utterances can be used; the first, train00: .*'a'"):
        train(settings(data__alphabet="xyz"), tmp_path / "run")
    # Nothing has been trained: with better settings, the same folder serves.
    with pytest.raises(TrainingError, match="the first, train00"):
        train(settings(data__alphabet="uvw"), tmp_path / "run")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["alphabet"] == "uvw"


def test_folder_that_holds_a_training(finished: Finished) -> None:
    run, chosen = finished
    before = (run / "log.jsonl").read_bytes()
    with pytest.raises(TrainingError, match="already holds a training; continue it with --resume, or give another"):
        train(chosen, run)
    assert (run / "log.jsonl").read_bytes() == before


def test_changed_settings_are_named(finished: Finished, settings: Settings) -> None:
    changed = settings(network__hidden=9, ema=0.0, checkpoint_minutes=0)
    with pytest.raises(TrainingError, match=r"but these differ: ema, network\.hidden; put them back"):
        train(changed, finished[0], resume=True)
    with pytest.raises(TrainingError, match=r"these differ: data\.max_s, seed; put"):
        train(settings(seed=3, data__max_s=20, optimiser__lr=0.1), finished[0], resume=True)


@pytest.mark.usefixtures("no_plots")
def test_settings_that_are_new_or_change_no_weight_may_differ(tmp_path: Path, finished: Finished) -> None:
    run, chosen = finished
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    older = config.to_dict(chosen)
    del older["augment"]["join_share"]  # as an earlier version wrote them
    (copy / "config.yaml").write_text(yaml.safe_dump(older))
    changed = {"checkpoint_minutes": 7.0, "description": "better said", "data": {**older["data"], "cache_gb": 1.0}}
    assert train(config.parse(older | changed, "test"), copy, resume=True).finished


@pytest.mark.usefixtures("no_plots")
def test_a_finished_training_is_extended(tmp_path: Path, finished: Finished) -> None:
    run, said = tmp_path / "run", io.StringIO()
    shutil.copytree(finished[0], run)
    longer = config.parse(config.to_dict(finished[1]) | {"epochs": 5, "optimiser": {"lr": 0.003}}, "test")
    assert train(longer, run, resume=True, console=Console(file=said, width=400)).finished
    assert "going on with other settings: epochs, optimiser.lr\n" in said.getvalue()
    assert re.search(
        r"^cpu with 1 thread, 32-true: [\d,]+ parameters; 0.00 hours in 4 batches an epoch, 5 epochs$",
        said.getvalue(),
        re.M,
    )
    assert [row["epoch"] for row in epochs_of(run)] == [0, 1, 2, 3, 4]
    assert epochs_of(run)[:3] == epochs_of(finished[0])
    assert config.read(run / "config.yaml").epochs == 5


@pytest.mark.usefixtures("no_plots")
def test_other_batches_go_on_where_the_epoch_was(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))
    monkeypatch.setattr(terminal, "asked_to_end", lambda: nullcontext(lambda: next(calls) > 4))  # in the second epoch
    assert not train(settings(epochs=2), tmp_path / "run").finished
    done = checkpoint.load(tmp_path / "run/last.safetensors")[1]["progress"]["batch_in_epoch"]
    assert done in (2, 3)  # of 4
    starts = Mock(wraps=batches_of_updates)
    monkeypatch.setattr(loop, "batches_of_updates", starts)
    monkeypatch.setattr(terminal, "asked_to_end", lambda: nullcontext(lambda: False))
    assert train(settings(epochs=2, batch__max_utterances=2), tmp_path / "run", resume=True).finished
    assert [call.args[:2] for call in starts.call_args_list] == [(8, 2 * done)]


def test_a_checkpoint_that_is_damaged_or_gone_names_the_remedy(tmp_path: Path, finished: Finished) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    newest = max(run.glob("epoch-*.safetensors"))
    remedy = re.escape(f"start a new training in another --run folder from the last whole weights, with init={newest}")
    (run / "last.safetensors").write_bytes(b"damaged")
    with pytest.raises(TrainingError, match=f"last.safetensors: expected a checkpoint .*; {remedy}"):
        train(finished[1], run, resume=True)
    (run / "last.safetensors").unlink()
    before = (run / "log.jsonl").read_bytes()
    with pytest.raises(TrainingError, match=f"last.safetensors: the checkpoint to go on from is gone; {remedy}"):
        train(finished[1], run, resume=True)
    assert (run / "log.jsonl").read_bytes() == before


def test_two_trainings_cannot_share_a_folder(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.to_dict(settings())))
    with Log(tmp_path, active=True) as log:
        log.write({"loss": 1.0}, 0)
        with pytest.raises(TrainingError, match="another process is training here"):
            train(settings(), tmp_path, resume=True)
    assert read_log(tmp_path) == [{"loss": 1.0}]


@pytest.mark.usefixtures("no_plots")
def test_a_resumed_training_does_not_need_what_it_started_from(tmp_path: Path, finished: Finished) -> None:
    run, chosen = finished
    donor = tmp_path / "donor"
    shutil.copytree(run, donor)
    warm = config.parse(config.to_dict(chosen) | {"init": str(donor), "epochs": 1}, "test")
    train(warm, tmp_path / "warm")
    shutil.rmtree(donor)
    assert train(warm, tmp_path / "warm", resume=True).finished


@pytest.mark.usefixtures("no_plots")
def test_recordings_are_not_needed_once_they_are_decoded(tmp_path: Path, settings: Settings) -> None:
    """Nor can what becomes of them change a training: it goes on from what it has decoded."""
    manifest = make_corpus(tmp_path)
    chosen = settings(epochs=1, data__train=[str(manifest)])
    decoded = tmp_path / "train.audio"
    assert train(chosen, tmp_path / "run").finished
    before = {path.name: path.stat().st_mtime_ns for path in decoded.iterdir()}
    assert train(chosen, tmp_path / "again").finished
    assert {path.name: path.stat().st_mtime_ns for path in decoded.iterdir()} == before


@pytest.mark.parametrize("contents", [None, "a: [", b"\xff\xfe\x00"])
def test_settings_of_the_folder_that_cannot_be_read(
    tmp_path: Path, settings: Settings, contents: str | bytes | None
) -> None:
    (tmp_path / "log.jsonl").touch()
    if contents is not None:
        (tmp_path / "config.yaml").write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    with pytest.raises(TrainingError, match=r"config\.yaml: expected the settings of this training, cannot read them"):
        train(settings(), tmp_path, resume=True)


def test_folder_that_cannot_be_written(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "file").write_text("not a folder")
    for run in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(TrainingError, match="the run folder cannot be written"):
            train(settings(), run)


NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        (
            "loop.Training._losses",
            NO_MEMORY,
            r"out of memory on cpu at step 0: CUDA out of memory; lower batch\.seconds",
        ),
        (
            "log.Log.write",
            FULL,
            "cannot be written: No space left on device; free some space, then go on with --resume",
        ),
    ],
)
def test_what_the_machine_lacks_is_said_with_a_remedy(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, place: str, error: Exception, message: str
) -> None:
    monkeypatch.setattr(f"asr.training.{place}", Mock(side_effect=error))
    with pytest.raises(TrainingError, match=message):
        train(settings(), tmp_path / "run")


@pytest.mark.parametrize("name", ["train", "dev"])
def test_manifests_missing_or_empty(tmp_path: Path, settings: Settings, name: str) -> None:
    path = tmp_path / "none.jsonl"
    changes = {f"data__{name}": [str(path)] if name == "train" else str(path)}
    with pytest.raises(ManifestError, match=r"none\.jsonl: no such manifest"):
        train(settings(**changes), tmp_path / "run")
    path.write_text("\n")
    with pytest.raises(ManifestError, match=r"none\.jsonl: expected one JSON object a line, got an empty file"):
        train(settings(**changes), tmp_path / "run")


def test_cuda_that_is_not_there(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError, match="expected a CUDA device, found none; use --device cpu"):
        train(settings(), tmp_path / "run", device="cuda")
    assert not (tmp_path / "run").exists()


def test_unknown_device(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(TrainingError, match="expected --device auto, cpu or cuda, got 'gpu'"):
        train(settings(), tmp_path / "run", device="gpu")


# --- several processes ---


@pytest.mark.parametrize(
    ("planned", "done", "group"), [(8, 0, 2), (7, 0, 3), (1, 0, 4), (7, 4, 2), (7, 3, 4), (5, 5, 2)]
)
def test_updates_cover_what_is_left_of_an_epoch(planned: int, done: int, group: int) -> None:
    found = batches_of_updates(planned, done, group)
    numbers = [number for update in found for number in update]
    assert all(len(update) == group for update in found)
    assert numbers == list(range(done, done + len(numbers)))
    assert planned <= done + len(numbers) < planned + group or done == planned


# 20 updates of 4 batches, with all that is drawn: dropout, SpecAugment, speed, gain, parts of utterances.
TOGETHER: dict[str, Any] = {
    "batch": {"max_utterances": 1, "accumulate": 4},
    "epochs": 5,
    "sortagrad_epochs": 1,
    "checkpoint_minutes": 0,
    "network__dropout": 0.3,
    "stream__share": 0.5,
    "ema": 0.9,
}


def torchrun(config_file: Path, run: Path, processes: int, *options: str) -> subprocess.Popen[str]:
    arguments = [str(config_file), "--run", str(run), "--device", "cpu", "--threads", "1", *options]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return start([*command, "-m", "--", "asr", "train", *arguments])


def start(command: list[str], **variables: str) -> subprocess.Popen[str]:
    variables |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | variables
    )


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, corpus: dict[str, str]) -> Together:
    """The same training by one process and by two, and its settings."""
    folder = tmp_path_factory.mktemp("together")
    paths = {"data__train": [corpus["train"]], "data__dev": corpus["dev"]}
    chosen = config.parse(merge(TINY, paths | TOGETHER), "test")
    (folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict(chosen)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "LOG_EVERY", 1)
        train(chosen, folder / "one")
    with torchrun(folder / "config.yaml", folder / "two", 2) as process:
        said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    return folder / "one", folder / "two", chosen


def test_two_processes_train_as_one(together: Together) -> None:
    one, two, _ = together
    for got, expected in zip(epochs_of(two), epochs_of(one), strict=True):
        for figure in ("train_loss", "dev_loss"):
            assert got[figure] == pytest.approx(expected[figure], abs=1e-4)
    steps = {row["step"]: row for row in read_log(one) if "lr" in row}
    logged = [row for row in read_log(two) if "lr" in row]
    assert len(steps) == 20
    assert [row["step"] for row in logged] == [0, 10]  # one log, not two
    for row in logged:
        expected = steps[row["step"]]
        assert row["loss"] == pytest.approx(expected["loss"], abs=1e-4)
        assert row["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-3)
        assert row["lr"] == expected["lr"]
    got, expected = (checkpoint.load(run / "last.safetensors")[0] for run in (two, one))
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-3, atol=1e-4)
    assert (two / "dev_report.json").read_text() == (one / "dev_report.json").read_text()


@pytest.mark.usefixtures("no_plots")
def test_a_training_goes_on_with_another_number_of_processes(
    tmp_path: Path, together: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _, chosen = together
    count = 0

    def interrupted() -> bool:
        nonlocal count
        count += 1
        return count > 6  # in the middle of the second epoch

    monkeypatch.setattr(terminal, "asked_to_end", lambda: nullcontext(interrupted))
    assert not train(chosen, tmp_path / "run").finished
    monkeypatch.undo()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.to_dict(chosen)))
    with torchrun(tmp_path / "config.yaml", tmp_path / "run", 2, "--resume") as process:
        said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    got, expected = (checkpoint.load(run / "last.safetensors")[0] for run in (tmp_path / "run", one))
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-3, atol=1e-4)


def test_killing_one_process_ends_the_others_with_a_message(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.to_dict(settings(epochs=2000, checkpoint_minutes=0))))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "TORCHELASTIC_RUN_ID": "test"}
        group |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    # As torchrun starts them, but without it: it stops the others itself, often before they have noticed.
    command = [sys.executable, "-m", "asr", "train", str(tmp_path / "config.yaml"), "--run", str(tmp_path / "run")]
    first, second = (
        start([*command, "--device", "cpu", "--threads", "1"], RANK=rank, LOCAL_RANK=rank, **group) for rank in "01"
    )
    with first, second:
        try:
            wait_for(lambda: steps_done(tmp_path / "run") >= 3, first)
            second.kill()
            said = first.communicate(timeout=120)[0]
        finally:
            for process in (first, second):
                process.kill()
    assert first.returncode == 1
    assert "of 2: another has ended, see what it said; mend that, then go on with --resume" in said, said
    assert checkpoint.load(tmp_path / "run" / "last.safetensors")  # whole


def test_some_batches_are_heard_in_parts(
    tmp_path: Path, settings: Settings, no_plots: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[tuple[bool, tuple[int, int] | None]] = []
    forward = Network.forward

    def watched(self: Network, x: Any, lengths: Any = None, chunk: tuple[int, int] | None = None, left: int = 0) -> Any:
        heard.append((self.training, chunk))
        return forward(self, x, lengths, chunk, left)

    monkeypatch.setattr(Network, "forward", watched)
    chosen = settings(stream__share=0.5, stream__chunk_s=[0.1, 0.2], stream__right_context_s=[0.02, 0.06], epochs=8)
    train(chosen, tmp_path / "run")
    chunks = [chunk for training, chunk in heard if training]
    parts = [chunk for chunk in chunks if chunk is not None]
    assert 0.2 < len(parts) / len(chunks) < 0.8
    shift_s = chosen.features.hop_length * chosen.network.subsampling / 16000
    assert {round(0.1 / shift_s), round(0.2 / shift_s)} <= set(range(min(parts)[0], max(parts)[0] + 1))
    assert len(set(parts)) > 3
    assert all(0.02 <= round(context * shift_s, 6) <= 0.06 + shift_s for _, context in parts)
    assert all(chunk is None for training, chunk in heard if not training)
