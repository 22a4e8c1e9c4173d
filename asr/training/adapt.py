"""Adapt a trained model to a voice, a microphone or a subject, of which there are minutes rather than hours.

A training like any other, with settings of its own laid over the model's: few steps at a low rate, and nothing chosen by
the recordings that are held out, so that their errors tell what was gained. The dev set that the model was trained with
tells what was lost (catastrophic forgetting: McCloskey & Cohen 1989).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from asr import manifest, metrics, models
from asr.errors import AsrError, TrainingError, number_of
from asr.manifest import Utterance
from asr.training import checkpoint, config, evaluation, launch, loop
from asr.training.data import Corpus

LEAST = 10  # utterances that can be split
_HELD_OUT = 0.2  # of them
_LEAST_HELD_OUT = 3


@dataclass(frozen=True, slots=True)
class Errors:
    """Of a model on a set, greedily decoded. loss: nats a token."""

    wer: float
    cer: float
    loss: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A set before and after adaptation."""

    name: str
    utterances: int
    words: int
    before: Errors
    after: Errors

    def __str__(self) -> str:
        rates = (f"{100 * one:6.2f} %" for errors in (self.before, self.after) for one in (errors.wer, errors.cer))
        wer, cer, wer_after, cer_after = rates
        return (
            f"{self.name:<11}  {self.utterances:4d} utterances, {self.words:5d} words, greedy: WER {wer} -> {wer_after}, "
            f"CER {cer} -> {cer_after}, loss {self.before.loss:.3f} -> {self.after.loss:.3f} nats a token"
        )


def adapt(
    model: Path,
    recordings: Path,
    run: Path,
    overrides: Sequence[str] = (),
    *,
    dev: Path | None = None,
    replay: float = 0.0,
    resume: bool = False,
    device: str = "auto",
    threads: int | None = None,
    console: Console | None = None,
) -> list[Comparison] | None:
    """Train a model on with a manifest of new recordings; the run folder is as after any training.

    model:   a run folder, a file of its weights (.safetensors), an exported model (.onnx), or the name of one.
    dev:     a manifest to hold out; without one, a fifth of the recordings is held out, always the same ones.
    replay:  of what is trained on, the share that is drawn from the model's own training data, against forgetting
             (Robins 1995, "Catastrophic forgetting, rehearsal and pseudorehearsal").
    returns: the held-out recordings and, if it is still there, the model's own dev set, before and after; also in the run's
             adaptation.json. None if interrupted.
    raises:  TrainingError, ManifestError, ConfigError, CheckpointError.
    """
    console = console or Console(stderr=True)
    if not model.exists() and model.name not in (known := models.names()):
        raise TrainingError(f"{model}: expected a run folder, a model's file, or one of the names {', '.join(known)}")
    if run.exists() and not (resume and (run / "config.yaml").exists()):
        raise TrainingError(f"{run}: exists already; give another folder, or --resume if this adaptation began there")
    _, base, tokens, _ = checkpoint.load_model(model)
    parts: dict[str, Sequence[Utterance]] = _split(recordings, dev)
    if replay:
        if base.data.dev.name == checkpoint.NO_DATA:
            raise TrainingError(
                f"--replay: {model} does not say what it was trained on; give its run folder, or do without"
            )
        parts["replay"] = _drawn(base.data.train, round(replay / (1 - replay) * len(parts["train"])))
    paths = {name: run / f"{name}.jsonl" for name in parts}
    settings = _settings(base, model, recordings, paths, overrides)
    # A training that goes on keeps its recordings, whatever became of the manifests that they are from.
    if not (run / "last.safetensors").exists():
        for name, utterances in parts.items():
            manifest.write(paths[name], utterances)

    on = launch.pick_device(device)
    if threads:
        torch.set_num_threads(threads)
    launch.shield_from_signals()
    before = {"held out": _evaluate(model, paths["held_out"], on, console)}
    if base.data.dev.name == checkpoint.NO_DATA:
        console.print(f"{model}: what is forgotten cannot be told without its dev set", markup=False, highlight=False)
    else:
        try:
            before["own dev set"] = _evaluate(model, base.data.dev, on, console)
        except AsrError as error:
            console.print(f"what is forgotten cannot be told: {error}", markup=False, highlight=False, soft_wrap=True)
    outcome = loop.train(settings, run, tokens=tokens, resume=resume, device=device, threads=threads, console=console)
    if not outcome.finished:
        return None
    where = {"held out": paths["held_out"], "own dev set": base.data.dev}
    compared = [
        Comparison(name, len(scored), _words(scored), errors, _evaluate(run, where[name], on, console)[1])
        for name, (scored, errors) in before.items()
    ]
    try:
        (run / "adaptation.json").write_text(json.dumps([asdict(one) for one in compared], indent=1) + "\n")
    except OSError as error:
        raise TrainingError(f"{run}: adaptation.json cannot be written: {error.strerror}; free some space") from None
    return compared


def _settings(
    base: config.Config, model: Path, recordings: Path, paths: dict[str, Path], overrides: Sequence[str]
) -> config.Config:
    """The model's settings with those of an adaptation laid over them, and the user's over these.

    The rate is a compromise: a voice unlike those of the training asks for more, one like them for less. See
    recipes/speechocean762/RESULTS.md, where freezing all but the first layers helped with 2 minutes and cost with 9.
    """
    tree: dict[str, Any] = config.to_dict(base)
    tree |= {
        "name": f"{base.name}-adapted",
        "description": "; ".join(filter(None, [base.description, f"adapted to {recordings.stem}"])),
        "init": str(model),
        "epochs": 10,
        "sortagrad_epochs": 0,
        "patience": None,
        "ema": 0.0,
        "select": "last",
        "freeze": [],
    }
    tree["data"] |= {
        "train": [str(path) for name, path in paths.items() if name != "held_out"],
        "dev": str(paths["held_out"]),
    }
    tree["batch"] |= {"max_utterances": 8, "accumulate": 1}
    tree["optimiser"] |= {"lr": 3e-4, "schedule": "cosine", "warmup": 0.1, "lr_scale": {}}
    return config.parse(tree, "settings of the adaptation", overrides)


def _split(recordings: Path, dev: Path | None) -> dict[str, Sequence[Utterance]]:
    """What is trained on, and what is held out: a manifest of its own, or a part, the same for the same number."""
    utterances = manifest.read(recordings)
    if dev:
        return {"train": utterances, "held_out": manifest.read(dev)}
    if len(utterances) < LEAST:
        raise TrainingError(
            f"{recordings}: expected at least {LEAST} utterances, of which some are held out, got {len(utterances)}; "
            "record more, or name a manifest to hold out with --dev"
        )
    held_out = np.zeros(len(utterances), bool)
    held_out[_choose(len(utterances), max(_LEAST_HELD_OUT, round(_HELD_OUT * len(utterances))))] = True
    return {"train": utterances[~held_out], "held_out": utterances[held_out]}


def _drawn(manifests: Sequence[Path], count: int) -> Sequence[Utterance]:
    """So many utterances of a training, or all of them."""
    utterances = manifest.read(manifests)
    return utterances[np.array(sorted(_choose(len(utterances), count)), np.int64)]


def _choose(total: int, count: int) -> list[int]:
    chosen: list[int] = np.random.default_rng(0).permutation(total)[:count].tolist()
    return chosen


def _evaluate(
    path: Path, recordings: Path, device: torch.device, console: Console
) -> tuple[list[metrics.Scored], Errors]:
    """raises: TrainingError if none of the recordings can be used."""
    model, settings, tokens, _ = checkpoint.load_model(path)
    corpus = Corpus([recordings], tokens, settings, training=False, geometry=model.geometry)
    with console.status(f"measuring {path} on {recordings.name}"):
        corpus.decode()
        if not corpus.examples:
            first = corpus.skipped[0]
            raise TrainingError(
                f"{recordings}: none of {number_of(len(corpus.skipped), 'utterance')} can be used; "
                f"the first, {first.id}: {first.reason}"
            )
        scored, loss = evaluation.evaluate(model.to(device), tokens, corpus)
    return scored, Errors(*evaluation.rates(scored), loss)


def _words(scored: Sequence[metrics.Scored]) -> int:
    return sum(len(one.reference.split()) for one in scored)
