"""The comparisons in RESULTS.md, each one command; what is trained already is not trained again.

    python recipes/fsdd/experiments.py speakers RECORDINGS   # leave one speaker out, all six in turn
    python recipes/fsdd/experiments.py cells                 # vanilla RNN, GRU and LSTM, one and both directions; MFCC
    python recipes/fsdd/experiments.py times                 # word times of the bundled model against known boundaries

Runs go to runs/fsdd-*; tables are printed as Markdown. `cells` also draws cells.png: how far back in time the gradient of
one output frame reaches, which is what sets the cells apart.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torchaudio.functional import forced_align

from asr import Recognizer, audio, manifest
from asr.decoding import ctc
from asr.decoding.align import align
from asr.training import checkpoint
from asr.training.model import AcousticModel

HERE = Path(__file__).parent
RUNS = Path("runs")
SPEAKERS = ["george", "jackson", "lucas", "nicolas", "theo", "yweweler"]
CELLS = [f"network.cell={cell}" for cell in ("rnn_tanh", "gru", "lstm")]
REACH_S = 1.0


def run(*arguments: object) -> str:
    return subprocess.run([sys.executable, *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True).stdout


def train(name: str, *overrides: str) -> Path:
    folder = RUNS / f"fsdd-{name}"
    if not (folder / "model.safetensors").exists():
        run("-m", "asr", "train", HERE / "config.yaml", *overrides, "--run", folder, "--resume", "--threads", 1)
    return folder


def errors(folder: Path, test: Path) -> dict[str, float]:
    report = json.loads(run("-m", "asr", "evaluate", folder, test, "--beam", 1, "--json"))
    return {"wer": report["wer"], "cer": report["cer"]}


def speakers(recordings: Path, epochs: int) -> None:
    print("| speaker left out | single digits, WER | connected, WER |\n|---|---|---|")
    means = []
    for speaker in SPEAKERS:
        data = RUNS / f"fsdd-data-{speaker}"
        if not (data / "train_connected.jsonl").exists():
            run(HERE / "prepare.py", recordings, data, "--leave-out", speaker)
        sets = f"data.train=[{data}/train.jsonl, {data}/train_connected.jsonl]"
        folder = train(f"without-{speaker}", sets, f"data.dev={data}/dev.jsonl", f"epochs={epochs}")
        rates = [errors(folder, data / f"{name}.jsonl")["wer"] for name in ("test", "test_connected")]
        means.append(rates)
        print(f"| {speaker} | {rates[0]:.2%} | {rates[1]:.2%} |", flush=True)
    print("| mean | {:.2%} | {:.2%} |".format(*np.mean(means, axis=0)))


def cells(epochs: int) -> None:
    variants = [[cell, f"network.bidirectional={both}"] for cell in CELLS for both in ("false", "true")]
    variants.append([CELLS[-1], "network.bidirectional=true", "features.kind=mfcc"])
    print("| network | features | parameters | single, WER | connected, WER | connected, CER | s / epoch |")
    print("|---|---|---|---|---|---|---|")
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), sharey=True, layout="constrained")
    for overrides in variants:
        values = [override.split("=")[1] for override in overrides]
        name = f"{values[0]}, {'both directions' if values[1] == 'true' else 'one direction'}"
        kind = values[2] if len(values) == 3 else "log_mel"
        folder = train("-".join([*values[:2], kind]), f"epochs={epochs}", *overrides)
        single, connected = (errors(folder, HERE / "data" / f"{test}.jsonl") for test in ("test", "test_connected"))
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        seconds = float(np.median([row["seconds"] for row in log if "seconds" in row]))
        model, settings, tokens, state = checkpoint.load_model(folder)
        count = state["training"]["parameters"]
        print(f"| {name} | {kind} | {count:,} | {single['wer']:.2%} | {connected['wer']:.2%} | {connected['cer']:.2%} "
              f"| {seconds:.0f} |", flush=True)  # fmt: skip
        if kind == "log_mel":
            torch.manual_seed(settings.seed)
            fresh = AcousticModel(settings, len(tokens))
            fresh.mean.copy_(model.mean)
            fresh.std.copy_(model.std)
            for ax, which in zip(axes, (fresh, model), strict=True):
                seconds_back, norms = reach(which)
                ax.semilogy(seconds_back, norms, "-" if values[1] == "true" else "--", label=name)
    for ax, title in zip(axes, ("before training", "after training"), strict=True):
        ax.set(title=title, xlabel="seconds before the output frame", ylim=(1e-8, 2))
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("gradient norm, relative to its peak")
    axes[1].legend(fontsize="small")
    figure.savefig(HERE / "cells.png", dpi=110)


def reach(model: AcousticModel) -> tuple[np.ndarray, np.ndarray]:
    """Norm of the gradient of an output frame with respect to the features before it, by distance in time."""
    total = 0.0
    frames = round(REACH_S * audio.SAMPLE_RATE / model.features.hop_length)
    model.train()  # cuDNN and oneDNN keep what a backward pass needs only in training mode
    for layer in model.network.layers:
        layer.dropout.kept = 256  # none is dropped
    for utterance in [u for u in manifest.read(HERE / "data" / "test_connected.jsonl") if u.duration_s > 3][:20]:
        waveform = model.geometry.pad(audio.read(utterance.audio))
        features = model.normalised_features(torch.from_numpy(waveform)[None]).requires_grad_()
        log_probs = model.network(features)[0]
        t = round(2.5 * audio.SAMPLE_RATE / model.geometry.frame_shift)
        (gradient,) = torch.autograd.grad(log_probs[0, t].max(), features)
        norms = gradient[0].norm(dim=1)[: t * model.subsampling + 3].flip(0)[:frames].numpy()
        total = total + norms / norms.max()
    norms = np.asarray(total)
    return np.arange(len(norms)) * model.features.hop_length / audio.SAMPLE_RATE, norms / norms.max()


def times() -> None:
    """Test digits joined with pauses: where the recogniser says they are, and where they were put."""
    recognizer, rng = Recognizer("digits", beam=1), np.random.default_rng(0)
    digits = manifest.read(HERE / "data" / "test.jsonl")
    starts, ends, frames_off, wrong = [], [], [], 0
    for _ in range(300):
        pieces, bounds, at = [], [], 0
        for index in rng.integers(len(digits), size=5):
            waveform, pause = audio.read(digits[index].audio), round(rng.uniform(0.1, 0.5) * audio.SAMPLE_RATE)
            pieces += [rng.normal(0, 1e-4, pause), waveform]
            bounds.append(((at + pause) / audio.SAMPLE_RATE, (at + pause + len(waveform)) / audio.SAMPLE_RATE))
            at += pause + len(waveform)
        joined = np.concatenate([*pieces, pieces[0]]).astype(np.float32)
        words = recognizer.transcribe(joined, audio.SAMPLE_RATE).words
        if len(words) != len(bounds):  # a digit was missed or made up: which word is whose is not known
            wrong += 1
            continue
        starts += [word.start_s - start for word, (start, _) in zip(words, bounds, strict=True)]
        ends += [word.end_s - end for word, (_, end) in zip(words, bounds, strict=True)]
        log_probs = recognizer.log_probs(joined)
        token_ids = ctc.greedy(log_probs).token_ids
        path, _ = forced_align(torch.from_numpy(log_probs)[None], torch.tensor([token_ids], dtype=torch.int32), blank=0)
        theirs = np.flatnonzero(np.diff(path[0].numpy(), prepend=0) * path[0].numpy())
        frames_off += [abs(span.start - t) for span, t in zip(align(log_probs, token_ids), theirs, strict=True)]
    for name, errors_s in (("start", starts), ("end", ends)):
        milliseconds = 1000 * np.array(errors_s)
        print(f"{name}: median error {np.median(np.abs(milliseconds)):.0f} ms, 95 % within "
              f"{np.percentile(np.abs(milliseconds), 95):.0f} ms, mean {milliseconds.mean():+.0f} ms")  # fmt: skip
    print(f"{len(starts)} words; {wrong} of 300 recordings left out, since their number of words was wrong")
    print(f"torchaudio's forced_align: {np.mean(np.array(frames_off) == 0):.1%} of {len(frames_off)} tokens start in the "
          f"same frame, the others at most {max(frames_off)} frames away")  # fmt: skip


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("experiment", choices=["speakers", "cells", "times"])
parser.add_argument("recordings", type=Path, nargs="?")
parser.add_argument("--epochs", type=int)
arguments = parser.parse_args()
if arguments.experiment == "cells":
    cells(arguments.epochs or 8)
elif arguments.experiment == "times":
    times()
elif arguments.recordings is None:
    parser.error("speakers: expected the folder of RECORDINGS")
else:
    speakers(arguments.recordings, arguments.epochs or 14)
