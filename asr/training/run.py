"""A run: where it stands, what may go on in its folder, its corpora, and the weights that are kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric import Fabric
from rich.console import Console
from torch import Tensor

from asr import metrics, terminal
from asr.errors import ConfigError, TrainingError, number_of
from asr.tokens import Tokens
from asr.training import checkpoint, config, encoder, launch, plots
from asr.training.data import Corpus
from asr.training.log import best
from asr.training.model import AcousticModel

# Settings that may differ when a training is resumed: they change neither which utterances follow one another, nor what
# the checkpoint's tensors are.
_FREE = (
    *("name", "description", "licence", "checkpoint_minutes", "data.cache", "epochs", "patience", "precision"),
    *("batch*", "stream*", "network.dropout", "pronunciation.weight"),
    *(f"optimiser.{key}" for key in ("lr", "weight_decay", "betas", "schedule", "warmup", "final", "plateau_patience")),
    "optimiser.clip_norm",
    *(f"augment.{key}*" for key in ("vtlp", "gain_db", "equaliser_db", "noise", "snr_db", "rooms", "band", "spec")),
)


@dataclass
class State:
    """Where a training stands; what a checkpoint holds besides tensors."""

    epoch: int = 0
    batch_in_epoch: int = 0  # how many of its plan are done, by all processes together
    step: int = 0
    elapsed_s: float = 0.0
    loss_sum: float = 0.0  # of the epoch so far, nats
    token_sum: int = 0
    audio_s: float = 0.0
    epoch_s: float = 0.0
    lr_scale: float = 1.0  # halved by the plateau schedule
    spec_augment: bool = False
    log_bytes: int = 0
    history: list[dict[str, float]] = field(default_factory=list)  # one entry an epoch


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call of `train` ended. finished: False if it was interrupted and can be resumed."""

    finished: bool
    run: Path
    wer: float | None = None
    cer: float | None = None


def with_encoder(settings: config.Config) -> config.Config:
    """The settings with the size of their pre-trained encoder, so that the folder is not needed again."""
    if not settings.network.encoder or settings.network.encoder_width:
        return settings
    shape = encoder.shape_of(settings.network)
    found = {"encoder_width": shape.width, "encoder_blocks": shape.blocks}
    return settings.model_copy(update={"network": settings.network.model_copy(update=found)})


def prepare(run: Path, settings: config.Config, resume: bool, console: Console) -> None:
    """Make the folder and write its settings; where it holds a training, check that this is to continue the same one."""
    resolved = run / "config.yaml"
    new = config.to_dict(settings)
    # Both are written once the corpora are read: after a start that failed before, settings may be mended.
    if (run / "log.jsonl").exists() or (run / "last.safetensors").exists():
        if not resume:
            raise TrainingError(
                f"{run}: already holds a training; continue it with --resume, or give another --run folder"
            )
        try:
            # Read as settings, not compared as text: those that a newer version added have their defaults in it.
            old = config.to_dict(config.parse(yaml.safe_load(resolved.read_text(encoding="utf-8")), str(resolved)))
        except (OSError, ValueError, yaml.YAMLError, ConfigError) as error:
            raise TrainingError(
                f"{resolved}: expected the settings of this training, cannot read them: {error}"
            ) from None
        differing = sorted(set(_changes(old, new)))
        changed = [key for key in differing if not any(fnmatchcase(key, pattern) for pattern in _FREE)]
        if changed:
            raise TrainingError(
                f"{run}: expected the settings that this training began with, but these differ: {', '.join(changed)}; "
                f"put them back, or start a new training in another --run folder, with init={run} from these weights"
            )
        if not (run / "last.safetensors").exists() and any(run.glob("epoch-*.safetensors")):
            raise TrainingError(f"{run / 'last.safetensors'}: the checkpoint to go on from is gone; {start_from(run)}")
        if not differing:
            return
        console.print(f"going on with other settings: {', '.join(differing)}", highlight=False, soft_wrap=True)
    try:
        run.mkdir(parents=True, exist_ok=True)
        resolved.write_text(yaml.safe_dump(new, sort_keys=False, allow_unicode=True), encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{run}: the run folder cannot be written: {error.strerror}") from None


def start_from(run: Path) -> str:
    """The advice where a checkpoint is of no use."""
    weights = max(run.glob("epoch-*.safetensors"), default=None)
    if weights is None:
        return "start the training again in another --run folder"
    return f"start a new training in another --run folder from the last whole weights, with init={weights}"


def _changes(old: Any, new: Any, key: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old.keys() | new.keys():
            yield from _changes(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    elif old != new:
        yield key


def introduction(settings: config.Config, fabric: Fabric, model: AcousticModel, train_set: Corpus, batches: int) -> str:
    """What is trained on what, in a line."""
    device = "cpu" if fabric.device.type == "cpu" else torch.cuda.get_device_name(fabric.device)
    each = f"{fabric.world_size} processes on {device}" if fabric.world_size > 1 else device
    if fabric.device.type == "cpu":
        each += f" with {number_of(torch.get_num_threads(), 'thread')}"
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    hours = train_set.examples.durations_s.sum() / 3600
    return (
        f"{each}, {fabric.strategy.precision.precision}: {parameters:,} parameters; {hours:.2f} hours in "
        f"{number_of(batches, 'batch')} an epoch, {number_of(settings.epochs, 'epoch')}"
    )


def read_corpora(
    settings: config.Config, tokens: Tokens, model: AcousticModel, run: Path | None, console: Console
) -> tuple[Corpus, Corpus]:
    """The training and dev corpora, decoded; what is skipped is listed in the run folder, if one is given."""
    train_set = Corpus(settings.data.train, tokens, settings, training=True, geometry=model.geometry)
    dev_set = Corpus([settings.data.dev], tokens, settings, training=False, geometry=model.geometry)
    for name, corpus in (("train", train_set), ("dev", dev_set)):
        with terminal.progress(console) as bar:
            task = bar.add_task(f"decoding {name} audio", total=len(corpus.examples))
            corpus.decode(partial(bar.advance, task), *launch.place())
        hours = corpus.examples.durations_s.sum() / 3600
        note = f"; {_list_skipped(corpus, name, run)}" if corpus.skipped and run else ""
        console.print(
            f"{name}: {number_of(len(corpus.examples), 'utterance')}, {hours:.2f} hours{note}",
            highlight=False,
            soft_wrap=True,
        )
        if not corpus.examples:
            first = corpus.skipped[0]
            raise TrainingError(
                f"{name}: none of {number_of(len(corpus.skipped), 'utterance')} can be used; "
                f"the first, {first.id}: {first.reason}"
            )
    return train_set, dev_set


def _list_skipped(corpus: Corpus, name: str, run: Path) -> str:
    """Write which utterances cannot be used, and why; returns what to say of it."""
    path = run / f"skipped_{name}.jsonl"
    lines = (json.dumps({"id": skip.id, "reason": skip.reason}, ensure_ascii=False) for skip in corpus.skipped)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"{len(corpus.skipped)} skipped, listed with reasons in {path}"


@dataclass(frozen=True, slots=True)
class Weights:
    """The epochs' weights in a run folder, and which of them the model is made of. history: a row an epoch."""

    run: Path
    settings: config.Config

    def file(self, epoch: int) -> Path:
        """The file of an epoch's weights; epochs count from 0."""
        return self.run / f"epoch-{epoch + 1:04d}.safetensors"

    def select(self, history: Sequence[Mapping[str, float]]) -> int:
        """The epoch whose weights are the model's, if not their average."""
        return len(history) - 1 if self.settings.select == "last" else history.index(best(history))

    def to_average(self, history: Sequence[Mapping[str, float]]) -> list[int]:
        """The epochs whose weights the final average takes."""
        rule = self.settings.average
        if rule is None or self.settings.select == "last":
            return []
        epochs = range(len(history))
        if rule.kind == "best":
            return sorted(epochs, key=lambda epoch: history[epoch]["dev_cer"])[: rule.n]
        return list(epochs)[-rule.n :]

    def remove(self, history: Sequence[Mapping[str, float]]) -> None:
        """Delete those that neither the best model nor the average needs."""
        needed = {*self.to_average(history), self.select(history)}
        for epoch in set(range(len(history))) - needed:
            self.file(epoch).unlink(missing_ok=True)

    def candidates(self, history: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Tensor]]:
        """The weights that the model may be made of, by a name for each."""
        found = {f"{self.settings.select} epoch": checkpoint.load(self.file(self.select(history)))[0]}
        if len(averaged := self.to_average(history)) > 1:
            paths = [self.file(epoch) for epoch in averaged]
            found[f"average of {len(paths)} epochs"] = checkpoint.average(paths)
        return found


def write_results(run: Path, weights: Mapping[str, Tensor], state: Mapping[str, Any], report: metrics.Report) -> None:
    """The model, its report on the dev set, and the plots."""
    checkpoint.save(run / "model.safetensors", weights, state)
    (run / "dev_report.json").write_text(json.dumps(report.to_json(), indent=1, ensure_ascii=False))
    with (run / "dev_report.txt").open("w", encoding="utf-8") as file:
        report.render(Console(file=file, width=100))
    plots.curves(run)
    plots.gradients(run)
