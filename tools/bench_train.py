"""Training: steps beside a bare nn.LSTM and beside a plain loop, and a pass over many hours."""

import argparse
import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torchaudio
from rich.console import Console
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from asr import audio, manifest
from asr.manifest import Utterance
from asr.tokens import Tokens
from asr.training import config, launch, loop
from asr.training import run as run_folder
from asr.training.data import Batch, Corpus
from asr.training.model import AcousticModel

STACKED = 4  # feature frames of 10 ms in one of the plain loop's: 40 ms, as in ours


def train(arguments: argparse.Namespace) -> None:
    """Steps of `asr train` beside two references of the same layers, cells and directions, in turn.

    A step has everything: audio, perturbation, features, convolutions, normalisation, dropout, CTC, clipping, AdamW.
    bare:  nn.LSTM, a linear layer, CTC, AdamW; random inputs in the shapes of our batches, on the device before it starts.
    plain: what one writes first: a DataLoader that reads files and makes features, batches by chance, packed sequences.
    """
    torch.set_num_threads(arguments.threads)
    print("| network | parameters | precision | hours of audio a second | beside bare | beside plain |")
    print("|---|---|---|---|---|---|")
    for shape in arguments.shapes:
        layers, hidden = map(int, shape.split("x"))
        overrides = [*arguments.overrides, f"network.layers={layers}", f"network.hidden={hidden}"]
        settings = config.read(arguments.config, overrides)
        speeds, parameters, device = _compare(settings, arguments)
        ours, bare, plain = (sum(audio_s for audio_s, _ in runs) / sum(s for _, s in runs) for runs in speeds)
        own = [audio_s / seconds for audio_s, seconds in speeds[0]]
        print(
            f"| {shape}, {device} | {parameters / 1e6:.1f} M | {settings.precision} | {ours / 3600:.4f} "
            f"({min(own) / 3600:.4f} to {max(own) / 3600:.4f}) | {ours / bare:.0%} | {ours / plain:.2f} x |",
            flush=True,
        )


def _compare(
    settings: config.Config, arguments: argparse.Namespace
) -> tuple[list[list[tuple[float, float]]], int, torch.device]:
    """For ours, the bare and the plain loop, seconds of audio and of time in each round but the first."""
    fabric = launch.launch(settings, arguments.device)
    tokens = Tokens.of(settings.data.alphabet)
    model = AcousticModel(settings, len(tokens))
    run = Path(tempfile.mkdtemp())
    console = Console(stderr=True)
    corpora = run_folder.read_corpora(settings, tokens, model, run, console)
    session = loop.Training(settings, run, fabric, model, tokens, *corpora, console)
    session.fit_features()
    session.state.spec_augment = True
    model.train()
    train_set, network = corpora[0], settings.network
    first: Any = model.network.layers[0]
    size: int = first.directions[0].input_size
    plan = train_set.plan(0, by_length=False)
    chunks = itertools.cycle([plan[i : i + arguments.steps] for i in range(0, len(plan), arguments.steps)])
    bare = Reference(size, len(tokens), network).to(fabric.device)
    plain = Reference(STACKED * settings.features.n_mels, len(tokens), network).to(fabric.device)
    loader = _plain_loader(train_set, settings, len(train_set.examples) // len(plan))
    precision = torch.bfloat16 if settings.precision == "bf16-mixed" or fabric.device.type == "cuda" else torch.float32

    results: list[list[tuple[float, float]]] = [[], [], []]
    with session.log:
        for round_number in range(arguments.rounds + 1):
            chosen = next(chunks)
            batches = train_set.batches(chosen, round_number)
            heard = 0.0
            shapes: list[Shape] = []
            started = _now(fabric.device)
            for number, items in enumerate(chosen):
                watched = _watched(batches, shapes)
                session._update(watched, range(number, number + 1), train_set.tokens(items), len(plan), False)
            session._settle()
            spent = [_now(fabric.device) - started]
            inputs = []
            for lengths, token_ids, token_lengths, seconds in shapes:
                heard += seconds
                frames = model.feature_frames([length + model.geometry.receptive_field for length in lengths])
                for _ in range(model.network.stages):
                    frames = (frames - 3) // 2 + 1
                x = torch.randn(int(frames.max()), len(lengths), size, device=fabric.device)
                inputs.append((x, frames, token_ids.to(fabric.device), token_lengths))
            started = _now(fabric.device)
            for x, frames, token_ids, token_lengths in inputs:
                bare.step(partial(bare.whole, x), frames, token_ids, token_lengths, precision)
            spent.append(_now(fabric.device) - started)
            started, plain_s = _now(fabric.device), 0.0
            for features, frames, token_ids, token_lengths, seconds in itertools.islice(loader, len(chosen)):
                on_device = features.to(fabric.device)
                plain.step(
                    partial(plain.packed, on_device, frames),
                    frames,
                    token_ids.to(fabric.device),
                    token_lengths,
                    precision,
                )
                plain_s += seconds
            spent.append(_now(fabric.device) - started)
            console.print(f"round {round_number}: {', '.join(f'{s / len(chosen):.3f} s' for s in spent)} a step")
            if round_number > 0:  # the first warms up
                for runs, audio_s, seconds in zip(results, (heard, heard, plain_s), spent, strict=True):
                    runs.append((audio_s, seconds))
    shutil.rmtree(run)
    return results, sum(parameter.numel() for parameter in model.parameters()), fabric.device


# Lengths in samples, token ids, their number in each utterance, and seconds of a batch.
Shape = tuple[list[int], torch.Tensor, torch.Tensor, float]


def _watched(batches: Iterator[Batch], shapes: list[Shape]) -> Iterator[Batch]:
    """The batches; what the references need to know of each is noted."""
    for batch in batches:
        lengths = [round(n / one.speed) for n, one in zip(batch.lengths, batch.perturbations, strict=True)]
        shapes.append((lengths, batch.token_ids, batch.token_lengths, batch.seconds))
        yield batch


class Reference(nn.Module):
    """nn.LSTM, a linear layer, CTC, AdamW."""

    def __init__(self, size: int, n_tokens: int, network: config.Network) -> None:
        super().__init__()
        self.lstm = nn.LSTM(size, network.hidden, network.layers, bidirectional=network.bidirectional)
        self.output = nn.Linear(network.hidden * (2 if network.bidirectional else 1), n_tokens)
        self.optimiser = torch.optim.AdamW(self.parameters(), lr=1e-5)

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.lstm(x)[0]
        return hidden

    def packed(self, x: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        return pad_packed_sequence(self.lstm(pack_padded_sequence(x, frames, enforce_sorted=False))[0])[0]

    def step(
        self,
        hidden: Callable[[], torch.Tensor],
        frames: torch.Tensor,
        token_ids: torch.Tensor,
        token_lengths: torch.Tensor,
        precision: torch.dtype,
    ) -> None:
        with torch.autocast(token_ids.device.type, precision, enabled=precision != torch.float32):
            log_probs = self.output(hidden()).float().log_softmax(2)
        loss = nn.functional.ctc_loss(log_probs, token_ids, frames, token_lengths, zero_infinity=True)
        self.optimiser.zero_grad()
        torch.autograd.backward(loss)
        self.optimiser.step()


Plain = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float]


def _plain_loader(corpus: Corpus, settings: config.Config, batch_size: int) -> Iterator[Plain]:
    """Batches of random company without end, made of files by two processes."""
    mel = torchaudio.transforms.MelSpectrogram(
        audio.SAMPLE_RATE, settings.features.n_fft, hop_length=160, n_mels=settings.features.n_mels
    )

    class Files(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
        def __len__(self) -> int:
            return len(corpus.examples)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            example = corpus.examples[index]
            samples = torch.from_numpy(audio.read(example.utterance.audio))
            features = (mel(samples) + 1e-6).log().T
            frames = max(len(features) // STACKED, 1)
            stacked = nn.functional.pad(features, (0, 0, 0, STACKED))[: frames * STACKED].reshape(frames, -1)
            return stacked, torch.tensor(example.token_ids)

    def collate(examples: list[tuple[torch.Tensor, torch.Tensor]]) -> Plain:
        features, tokens = zip(*examples, strict=True)
        frames, lengths = (torch.tensor(list(map(len, rows))) for rows in (features, tokens))
        return pad_sequence(list(features)), frames, torch.cat(tokens), lengths, float(frames.sum()) * STACKED / 100

    loader = torch.utils.data.DataLoader(Files(), batch_size, shuffle=True, num_workers=2, collate_fn=collate)
    while True:
        yield from loader


def epoch(arguments: argparse.Namespace) -> None:
    """One pass over hours of noise, in utterances as long as LibriSpeech's: from decoded audio to updated weights.

    Lengths: seven of ten from 12 to 16.5 s, the rest from 1.5 to 12 s (mean 12.3 s, as in train-clean-100).
    """
    folder = Path(arguments.folder or tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    minutes = 60
    if not (folder / "noise.wav").exists():
        noise = rng.normal(0, 0.1, minutes * 60 * audio.SAMPLE_RATE).astype(np.float32)
        soundfile.write(folder / "noise.wav", noise, audio.SAMPLE_RATE)
    utterances, total_s = [], 0.0
    while total_s < arguments.hours * 3600:
        length_s = float(rng.uniform(12, 16.5) if rng.random() < 0.7 else rng.uniform(1.5, 12))
        letters = rng.choice(list("etaoinshrdlu "), int(length_s * 14.5))  # characters a second of LibriSpeech
        offset_s = round(float(rng.uniform(0, minutes * 60 - length_s)), 4)
        text = " ".join("".join(letters).split()) or "a"
        utterances.append(Utterance(folder / "noise.wav", round(length_s, 4), text, offset_s))
        total_s += length_s
    manifest.write(folder / "train.jsonl", utterances)
    manifest.write(folder / "dev.jsonl", utterances[:32])
    layers, hidden = map(int, arguments.shape.split("x"))
    tree = {
        "name": "epoch",
        "epochs": 1,
        "average": None,
        "data": {"train": [folder / "train.jsonl"], "dev": folder / "dev.jsonl"},
        "network": {"layers": layers, "hidden": hidden},
        "augment": {"speed": [0.9, 1.0, 1.1], "gain_db": [-6, 6], "spec_augment": {"start_cer": 100}},
        "batch": {"seconds": arguments.seconds, "max_utterances": 1000},
    }
    settings = config.parse(tree, "bench")
    run = Path(tempfile.mkdtemp()) / "run"
    loop.train(settings, run, device=arguments.device, threads=arguments.threads, profile=arguments.profile)
    row = next(row for row in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if "seconds" in row)
    print(f"{arguments.shape}, {total_s / 3600:.2f} hours: {row['seconds']:.1f} s with evaluation, "
          f"{total_s / row['seconds']:.0f} x real time")  # fmt: skip
    shutil.rmtree(run.parent)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
