"""The training loop: read top to bottom, `train` is the whole of it.

Everything random is a function of the seed and the step, nothing of the clock or of earlier draws; so a checkpoint needs no
generator states, and a training that was killed goes on to the same losses as one that was not.
"""

from __future__ import annotations

import ctypes
import json
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import numpy as np
import torch
import yaml
from lightning.fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, track
from torch import Tensor, nn

from asr import __version__, ctc, metrics
from asr.audio import SAMPLE_RATE
from asr.errors import AsrError
from asr.tokens import BLANK, Tokens
from asr.training import augment, checkpoint, config, plots
from asr.training.data import Batch, Corpus
from asr.training.model import AcousticModel

LOG_EVERY = 10  # steps
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
# Settings that change no weight, and may differ when a training is resumed.
_FREE = {"name", "description", "licence", "checkpoint_minutes", "data.cache_gb"}
_FIT_UTTERANCES = 500  # for the mean and deviation of the features


class TrainingError(AsrError):
    """A training that cannot start or go on."""


@dataclass
class State:
    """Where a training stands; what a checkpoint holds besides tensors."""

    world_size: int = 1  # processes: `step_in_epoch` counts each one's own batches

    epoch: int = 0
    step_in_epoch: int = 0
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


def train(
    settings: config.Config,
    run: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    threads: int | None = None,
    console: Console | None = None,
) -> Outcome:
    """Train a model and leave it, with its log, plots and dev report, in the run folder.

    resume: continue from the folder's last checkpoint, to the same result as a training never interrupted.
    raises: ConfigError, ManifestError, CheckpointError; TrainingError naming the utterances if a loss is not finite.
    """
    console = console or Console(stderr=True)
    if threads:
        torch.set_num_threads(threads)
    fabric = _launch(settings, device)
    if fabric.is_global_zero:
        _prepare_folder(run, settings, resume)
    else:
        console = Console(quiet=True)
    fabric.barrier()

    tokens = Tokens.of(settings.data.alphabet)
    torch.manual_seed(settings.seed)
    model = AcousticModel(settings, len(tokens))
    last = run / "last.safetensors"
    resumed = resume and last.exists()
    fitted = settings.init is not None and not resumed and _warm_start(model, settings, console)
    corpora = _read_corpora(settings, tokens, model, run if fabric.is_global_zero else None, console)
    session = _Session(settings, run, fabric, model, *corpora, console)
    if resumed:
        session.restore(last)
    else:
        if resume:
            console.print(f"{run}: holds no checkpoint yet; starting from the beginning", soft_wrap=True)
        if not fitted:
            session.fit_features()
    try:
        with session.log, _interruptible() as interrupted:
            if session.run_epochs(interrupted):
                return session.finish()
            session.save()
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"out of memory on {fabric.device} at step {session.state.step}: {str(error).split('. ')[0]}; "
            "lower batch.seconds or batch.max_utterances, or data.max_s"
        ) from None
    except OSError as error:
        raise TrainingError(
            f"{error.filename or run}: cannot be written: {error.strerror}; free some space, then go on with --resume"
        ) from None
    where = f"epoch {session.state.epoch + 1}, step {session.state.step}"
    console.print(f"stopped at {where} and saved; the same command with --resume goes on from there", soft_wrap=True)
    return Outcome(False, run)


class _Session:
    """One training in memory: model, optimiser, data and progress."""

    def __init__(
        self,
        settings: config.Config,
        run: Path,
        fabric: Fabric,
        model: AcousticModel,
        train_set: Corpus,
        dev_set: Corpus,
        console: Console,
    ) -> None:
        self.settings, self.run, self.fabric, self.console = settings, run, fabric, console
        self.train_set, self.dev_set = train_set, dev_set
        self.skipped = len(train_set.skipped)
        self.model = model.to(fabric.device)
        self.raw_optimiser = torch.optim.AdamW(
            model.network.parameters(),
            lr=settings.optimiser.lr,
            betas=settings.optimiser.betas,
            weight_decay=settings.optimiser.weight_decay,
            fused=True,
        )
        self.network, self.optimiser = fabric.setup(model.network, self.raw_optimiser)
        self.ema = {name: value.detach().clone() for name, value in model.state_dict().items()} if settings.ema else {}
        self.state = State(world_size=fabric.world_size)
        self.clock = time.monotonic()
        self.log = _Log(run, active=fabric.is_global_zero)
        self.tokens = Tokens.of(settings.data.alphabet)

    # --- the epochs ---

    def run_epochs(self, interrupted: Callable[[], bool]) -> bool:
        """Train until the last epoch, early stopping, or an interruption (then False)."""
        state, settings = self.state, self.settings
        self.clock = time.monotonic()
        with _Display(self) as display:
            while state.epoch < settings.epochs and not self._out_of_patience():
                plan = self.train_set.plan(state.epoch, by_length=state.epoch < settings.sortagrad_epochs)
                mine = _share(plan, self.fabric.global_rank, self.fabric.world_size)
                todo = mine[state.step_in_epoch :]
                self.model.train()
                saved_at = time.monotonic()
                for batch in self.train_set.batches(todo, state.epoch):
                    self._step(batch, share=state.step_in_epoch / len(mine))
                    self._count_time()
                    display.step(len(mine))
                    if self._agree(interrupted()):
                        return False
                    if time.monotonic() - saved_at >= settings.checkpoint_minutes * 60:
                        self.save()
                        saved_at = time.monotonic()
                self._end_epoch(display)
        return True

    def _step(self, batch: Batch, share: float) -> None:
        """One update. share: how much of the epoch is done."""
        state, settings = self.state, self.settings
        torch.manual_seed((settings.seed * 1_000_003 + state.step) * 4096 + self.fabric.global_rank)
        lr = settings.optimiser.lr * state.lr_scale
        lr *= rate(settings.optimiser, (state.epoch + share) / settings.epochs)
        for group in self.raw_optimiser.param_groups:
            group["lr"] = lr

        losses = self._losses(batch)
        if not torch.isfinite(losses).all():
            bad = [name for name, loss in zip(batch.ids, losses.tolist(), strict=True) if not math.isfinite(loss)]
            raise TrainingError(_not_finite("loss", bad, state.step))
        tokens = int(batch.token_lengths.sum())
        # The processes' gradients are averaged: divided by the mean count, every token of all batches weighs the same.
        self.fabric.backward(losses.sum() / (self._total(tokens) / self.fabric.world_size))
        layers = gradient_norms(self.model.network) if state.step % LOG_EVERY == 0 else {}
        norm = nn.utils.clip_grad_norm_(self.model.network.parameters(), settings.optimiser.clip_norm)
        if not torch.isfinite(norm):
            raise TrainingError(_not_finite("gradient", batch.ids, state.step))
        self.optimiser.step()
        self.optimiser.zero_grad()
        self._update_ema()

        loss_sum = float(losses.detach().sum())
        if state.step % LOG_EVERY == 0:
            row = {"step": state.step, "epoch": state.epoch, "loss": loss_sum / tokens, "lr": lr}
            self.log.write({**row, "gradient_norm": float(norm), "layers": layers}, state.step)
        state.step += 1
        state.step_in_epoch += 1
        state.loss_sum += loss_sum
        state.token_sum += tokens
        state.audio_s += batch.seconds

    def _losses(self, batch: Batch) -> Tensor:
        """CTC losses (B,) in nats, of one batch."""
        waveforms = batch.waveforms.to(self.fabric.device)
        with torch.no_grad():
            features = self.model.normalised_features(waveforms)
            if self.model.training and self.state.spec_augment and self.settings.augment.spec_augment:
                features = augment.spec_augment(features, self.settings.augment.spec_augment)
        log_probs, lengths = self.network(features, self._frames(batch), self._chunk())
        return _ctc_losses(log_probs, lengths, batch)

    def _chunk(self) -> tuple[int, int] | None:
        """In how many frames, and with how many to their right, this batch is heard; None for whole utterances."""
        stream = self.settings.stream
        if stream is None:
            return None
        share, part, context = torch.rand(3).tolist()
        if share >= stream.share:
            return None
        shift_s = self.model.frame_shift / SAMPLE_RATE
        (shortest, longest), (least, most) = stream.chunk_s, stream.right_context_s
        return (
            max(1, round((shortest + part * (longest - shortest)) / shift_s)),
            round((least + context * (most - least)) / shift_s),
        )

    def _frames(self, batch: Batch) -> Tensor:
        frames = [self.model.features.frames(length) for length in batch.lengths.tolist()]
        return torch.tensor(frames, device=self.fabric.device)

    def _update_ema(self) -> None:
        if not self.ema:
            return
        # Early on the average would remember the initial weights: let it start short.
        decay = min(self.settings.ema, (1 + self.state.step) / (10 + self.state.step))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.ema[name].lerp_(value, 1 - decay)
            else:
                self.ema[name].copy_(value)

    def _end_epoch(self, display: _Display) -> None:
        state = self.state
        with self._weights(self.ema):
            scored, dev_loss = self.evaluate(self.dev_set)
        # One verdict for all processes: where theirs differed by rounding, they would stop or halve the rate apart.
        wer, cer, dev_loss = self.fabric.broadcast((*_rates(scored), dev_loss))
        self._count_time()
        row: dict[str, float] = {
            "epoch": state.epoch,
            "train_loss": state.loss_sum / max(1, state.token_sum),
            "dev_loss": dev_loss,
            "dev_wer": wer,
            "dev_cer": cer,
            "lr_scale": state.lr_scale,
        }
        state.history.append(row)
        timing = {"seconds": round(state.epoch_s, 2), "audio_hours": round(state.audio_s / 3600, 4)}
        self.log.write({**row, **timing}, state.step - 1)
        display.epoch({**row, **timing})
        losses = [past["dev_loss"] for past in state.history]
        stalled, patience = _epochs_since_best(losses), self.settings.optimiser.plateau_patience
        if self.settings.optimiser.schedule == "plateau" and stalled and stalled % (patience + 1) == 0:
            state.lr_scale /= 2  # and again only after as many epochs more
        spec = self.settings.augment.spec_augment
        if spec and cer < spec.start_cer:
            state.spec_augment = True
        if len(self.train_set.skipped) > self.skipped and self.fabric.is_global_zero:
            said = _list_skipped(self.train_set, "train", self.run)
            self.console.print(f"audio that could not be read was replaced by other; {said}", soft_wrap=True)
        self.skipped = len(self.train_set.skipped)
        self._write_weights()
        state.epoch += 1
        state.step_in_epoch, state.loss_sum, state.token_sum, state.audio_s, state.epoch_s = 0, 0.0, 0, 0.0, 0.0
        self.save()
        self._remove_weights()  # after saving: a training resumed in this epoch may end it with other errors on a GPU
        self.fabric.barrier()

    def _count_time(self) -> None:
        """Add the time since the last count: waiting for audio and evaluation belong to a training too."""
        spent, self.clock = time.monotonic() - self.clock, time.monotonic()
        self.state.elapsed_s += spent
        self.state.epoch_s += spent

    def _out_of_patience(self) -> bool:
        cers = [row["dev_cer"] for row in self.state.history]
        return self.settings.patience is not None and _epochs_since_best(cers) >= self.settings.patience

    def _agree(self, flag: bool) -> bool:
        """Whether any process of the training says so: all must stop at the same step."""
        return self._total(flag) > 0

    def _total(self, value: float) -> float:
        """The sum over the processes of the training."""
        if self.fabric.world_size == 1:
            return value
        total = self.fabric.all_reduce(torch.tensor(float(value), device=self.fabric.device), reduce_op="sum")
        return float(torch.as_tensor(total))

    # --- evaluation ---

    def evaluate(self, corpus: Corpus) -> tuple[list[metrics.Scored], float]:
        """Greedy transcripts of a corpus and its loss in nats a token (utterances too short for their text left out)."""
        self.model.eval()
        scored: list[metrics.Scored] = []
        loss_sum, token_sum = 0.0, 0
        plan = corpus.in_order()
        with torch.no_grad():
            for items, batch in zip(plan, corpus.batches(plan, 0), strict=True):
                features = self.model.normalised_features(batch.waveforms.to(self.fabric.device))
                log_probs, lengths = self.network(features, self._frames(batch))
                losses = _ctc_losses(log_probs, lengths, batch).cpu()
                finite = torch.isfinite(losses)
                loss_sum += float(losses[finite].sum())
                token_sum += int(batch.token_lengths[finite].sum())
                for row, length, item in zip(log_probs.cpu().numpy(), lengths.tolist(), items, strict=True):
                    example = corpus.examples[item.index]
                    text = self.tokens.decode(ctc.greedy(row[:length]).token_ids)
                    utterance = example.utterance
                    scored.append(
                        metrics.Scored(
                            utterance.id, example.text, " ".join(text.split()), utterance.speaker, utterance.duration_s
                        )
                    )
        return scored, loss_sum / max(1, token_sum)

    @contextmanager
    def _weights(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """The model with other weights for a while; none given: as it is."""
        if not weights:
            yield
            return
        own = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(dict(weights))
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    # --- files ---

    def fit_features(self) -> None:
        """Set the features' mean and deviation from a sample of the training audio."""
        rng = np.random.default_rng(self.settings.seed)
        chosen = rng.permutation(len(self.train_set.examples))[:_FIT_UTTERANCES]
        device = self.fabric.device
        waveforms = (torch.from_numpy(self.train_set.heard(int(index))[1]) for index in chosen)
        shortest = self.model.features.receptive_field()
        enough = [waveform.to(device) for waveform in waveforms if len(waveform) >= shortest]
        if not enough:
            raise TrainingError(f"train: expected utterances of at least {shortest} samples at 16 kHz, got none")
        self.model.fit(enough)
        for name in self.ema:
            self.ema[name].copy_(self.model.state_dict()[name])

    def save(self) -> None:
        """Write the checkpoint that --resume goes on from."""
        if not self.fabric.is_global_zero:
            return
        self.state.log_bytes = self.log.flush()
        tensors = checkpoint.pack("model", self.model.state_dict()) | checkpoint.pack("ema", self.ema)
        optimiser = self.raw_optimiser.state_dict()["state"]
        tensors |= checkpoint.pack("optimiser", {str(index): slots for index, slots in optimiser.items()})
        progress = {"config": config.to_dict(self.settings), "progress": vars(self.state)}
        checkpoint.save(self.run / "last.safetensors", tensors, progress)

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint that `save` wrote."""
        tensors, state = checkpoint.load(path)
        checkpoint.load_weights(self.model, checkpoint.unpack("model", tensors), path)
        self.ema = {name: value.to(self.fabric.device) for name, value in checkpoint.unpack("ema", tensors).items()}
        slots = {int(index): values for index, values in checkpoint.unpack("optimiser", tensors).items()}
        groups = self.raw_optimiser.state_dict()["param_groups"]
        self.raw_optimiser.load_state_dict({"state": slots, "param_groups": groups})
        self.state = State(**state["progress"])
        if self.state.world_size != self.fabric.world_size:
            raise TrainingError(
                f"{path}: this training began with {self.state.world_size} processes, got {self.fabric.world_size}; "
                "start as many as then"
            )
        self.log.rewind(self.state.log_bytes, self.state.step)

    def _write_weights(self) -> None:
        """Write this epoch's weights."""
        if self.fabric.is_global_zero:
            weights = self.ema or self.model.state_dict()
            checkpoint.save(self._weight_file(self.state.epoch), weights, {"config": config.to_dict(self.settings)})

    def _remove_weights(self) -> None:
        """Delete the epochs' weights that neither the best model nor the average needs."""
        needed = {*self._averaged(), _best(self.state.history)}
        if self.fabric.is_global_zero:
            for epoch in set(range(self.state.epoch)) - needed:
                self._weight_file(epoch).unlink(missing_ok=True)

    def _weight_file(self, epoch: int) -> Path:
        return self.run / f"epoch-{epoch + 1:04d}.safetensors"

    def _averaged(self) -> list[int]:
        """The epochs (from 0) whose weights the final average takes."""
        history, rule = self.state.history, self.settings.average
        if rule is None:
            return []
        epochs = range(len(history))
        if rule.kind == "best":
            return sorted(epochs, key=lambda epoch: history[epoch]["dev_cer"])[: rule.n]
        return list(epochs)[-rule.n :]

    def finish(self) -> Outcome:
        """Choose between the best epoch and the average, and write the model, its dev report and the plots."""
        candidates = {"best epoch": checkpoint.load(self._weight_file(_best(self.state.history)))[0]}
        if len(averaged := self._averaged()) > 1:
            paths = [self._weight_file(epoch) for epoch in averaged]
            candidates[f"average of {len(paths)} epochs"] = checkpoint.average(paths)
        results = {}
        for name, weights in candidates.items():
            self.model.load_state_dict(weights)
            scored, _ = self.evaluate(self.dev_set)
            results[name] = scored
        chosen = min(results, key=lambda name: _rates(results[name])[::-1])
        report = metrics.report(results[chosen])
        wer, cer = _rates(results[chosen])
        if self.fabric.is_global_zero:
            summary = {
                "epochs": len(self.state.history),
                "weights": chosen,
                "dev_wer": round(wer, 5),
                "dev_cer": round(cer, 5),
                "train_hours": round(sum(example.duration_s for example in self.train_set.examples) / 3600, 3),
                "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
                "minutes": round(self.state.elapsed_s / 60, 2),
                "device": str(self.fabric.device.type),
                "version": __version__,
            }
            state = {"config": config.to_dict(self.settings), "training": summary}
            checkpoint.save(self.run / "model.safetensors", candidates[chosen], state)
            (self.run / "dev_report.json").write_text(json.dumps(report.to_json(), indent=1, ensure_ascii=False))
            with (self.run / "dev_report.txt").open("w", encoding="utf-8") as file:
                report.render(Console(file=file, width=100))
            self.log.flush()
            plots.curves(self.run)
            plots.gradients(self.run)
            self.console.print(
                f"finished: dev WER {wer:.2%}, CER {cer:.2%} ({chosen}); the model is {self.run / 'model.safetensors'}",
                highlight=False,
                soft_wrap=True,
            )
        self.fabric.barrier()
        return Outcome(True, self.run, wer, cer)


def rate(settings: config.Optimiser, progress: float) -> float:
    """The learning rate as a share of its peak. progress: share of the training that is done, 0 to 1.

    cosine: linear from 0 to the peak, then a half cosine to the final rate (Loshchilov & Hutter 2017).
    one_cycle: half cosines from peak / 25 up and down again (Smith & Topin 2019).
    plateau, constant: the peak after warm-up; `plateau` is halved elsewhere when dev loss stalls.
    """
    if progress < settings.warmup:
        rising = progress / settings.warmup
        return 1 / 25 + 24 / 25 * _half_cosine(1 - rising) if settings.schedule == "one_cycle" else max(rising, 1e-3)
    if settings.schedule in ("plateau", "constant"):
        return 1.0
    falling = (progress - settings.warmup) / (1 - settings.warmup)
    return settings.final + (1 - settings.final) * _half_cosine(falling)


def gradient_norms(network: nn.Module) -> dict[str, float]:
    """L2 norm of the gradient of each layer, and of each direction of each recurrent layer, before clipping."""
    squares: dict[str, float] = {}
    for name, parameter in network.named_parameters():
        if parameter.grad is None:
            continue
        parts = name.split(".")
        layer = ".".join(parts[: 4 if parts[0] == "layers" and parts[2] == "directions" else 2])
        squares[layer] = squares.get(layer, 0.0) + float(parameter.grad.float().square().sum())
    return {layer: math.sqrt(square) for layer, square in squares.items()}


def _ctc_losses(log_probs: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
    device = log_probs.device
    return nn.functional.ctc_loss(
        log_probs.transpose(0, 1),
        batch.token_ids.to(device),
        lengths,
        batch.token_lengths.to(device),
        blank=BLANK,
        reduction="none",
    )


def _launch(settings: config.Config, device: str) -> Fabric:
    """Fabric on one device, or on as many processes as torchrun started.

    The command is `torchrun --nproc-per-node N -m -- asr train ...`: without the --, torchrun takes --run for its own.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise TrainingError(f"expected --device auto, cpu or cuda, got {device!r}")
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    nodes = int(os.environ.get("WORLD_SIZE", "1")) // per_node
    on_cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
    if on_cuda and not torch.cuda.is_available():
        raise TrainingError("expected a CUDA device, found none; use --device cpu, or check the driver with nvidia-smi")
    if not on_cuda:
        _keep_memory()
    for name in ("lightning.fabric", "lightning.pytorch"):  # which of them announces the precision on stderr varies
        logging.getLogger(name).setLevel(logging.WARNING)
    precision = settings.precision
    if precision == "auto":
        precision = "bf16-mixed" if on_cuda else "32-true"
    fabric = Fabric(
        accelerator="cuda" if on_cuda else "cpu",
        devices=per_node,
        num_nodes=nodes,
        strategy="ddp" if per_node * nodes > 1 else "auto",
        precision=precision,
    )
    fabric.launch()
    return fabric


def _keep_memory() -> None:
    """Let glibc keep freed memory for the next step.

    By default it hands large blocks back to the kernel at once, and a fifth of a step on a CPU goes into getting them again.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _prepare_folder(run: Path, settings: config.Config, resume: bool) -> None:
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
        except (OSError, ValueError, yaml.YAMLError, config.ConfigError) as error:
            raise TrainingError(
                f"{resolved}: expected the settings of this training, cannot read them: {error}"
            ) from None
        changed = sorted(set(_changed(old, new)) - _FREE)
        if changed:
            raise TrainingError(
                f"{run}: expected the settings that this training began with, but these differ: {', '.join(changed)}; "
                "put them back, or start a new training in another --run folder"
            )
        return
    try:
        run.mkdir(parents=True, exist_ok=True)
        resolved.write_text(yaml.safe_dump(new, sort_keys=False, allow_unicode=True), encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{run}: the run folder cannot be written: {error.strerror}") from None


def _changed(old: Any, new: Any, key: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old.keys() | new.keys():
            yield from _changed(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    elif old != new:
        yield key


def _warm_start(model: AcousticModel, settings: config.Config, console: Console) -> bool:
    """Copy what fits from the model that settings.init names; whether that includes the features' mean and deviation."""
    assert settings.init is not None
    donor, donor_settings, _, _ = checkpoint.load_model(settings.init)
    same_features = donor_settings.features == settings.features
    own = model.state_dict()
    fits = {
        name: value
        for name, value in donor.state_dict().items()
        if name in own and own[name].shape == value.shape and (same_features or name not in ("mean", "std"))
    }
    model.load_state_dict(fits, strict=False)
    anew = sorted(own.keys() - fits.keys())
    note = f"; drawn anew: {', '.join(anew)}" if anew else ""
    console.print(f"started from {settings.init}: {len(fits)} of {len(own)} tensors fit{note}", soft_wrap=True)
    return same_features


def _read_corpora(
    settings: config.Config, tokens: Tokens, model: AcousticModel, run: Path | None, console: Console
) -> tuple[Corpus, Corpus]:
    """The training and dev corpora, decoded; what is skipped is listed in the run folder, if one is given."""
    geometry = {"receptive_field": model.receptive_field, "frame_shift": model.frame_shift}
    train_set = Corpus(settings.data.train, tokens, settings, training=True, **geometry)
    dev_set = Corpus([settings.data.dev], tokens, settings, training=False, **geometry)
    for name, corpus in (("train", train_set), ("dev", dev_set)):
        numbers = range(len(corpus.examples))
        hidden = not console.is_terminal
        corpus.decode(track(numbers, f"decoding {name} audio", console=console, transient=True, disable=hidden))
        hours = sum(example.duration_s for example in corpus.examples) / 3600
        note = f"; {_list_skipped(corpus, name, run)}" if corpus.skipped and run else ""
        console.print(
            f"{name}: {len(corpus.examples)} utterances, {hours:.2f} hours{note}", highlight=False, soft_wrap=True
        )
        if not corpus.examples:
            first = corpus.skipped[0]
            raise TrainingError(
                f"{name}: none of {len(corpus.skipped)} utterances can be used; the first, {first.id}: {first.reason}"
            )
    return train_set, dev_set


def _list_skipped(corpus: Corpus, name: str, run: Path) -> str:
    """Write which utterances cannot be used, and why; returns what to say of it."""
    path = run / f"skipped_{name}.jsonl"
    lines = (json.dumps({"id": skip.id, "reason": skip.reason}, ensure_ascii=False) for skip in corpus.skipped)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"{len(corpus.skipped)} skipped, listed with reasons in {path}"


def _share(plan: list[Any], rank: int, world: int) -> list[Any]:
    """Every world-th batch, the same number for each process: the first ones again where they do not divide."""
    return [plan[index % len(plan)] for index in range(rank, math.ceil(len(plan) / world) * world, world)]


def _rates(scored: Sequence[metrics.Scored]) -> tuple[float, float]:
    references = [one.reference for one in scored]
    hypotheses = [one.hypothesis for one in scored]
    words, characters = metrics.word_errors(references, hypotheses), metrics.character_errors(references, hypotheses)
    return words.rate, characters.rate


def _best(history: Sequence[Mapping[str, float]]) -> int:
    return min(range(len(history)), key=lambda epoch: (history[epoch]["dev_cer"], history[epoch]["dev_wer"]))


def _epochs_since_best(values: Sequence[float]) -> int:
    return len(values) - 1 - min(range(len(values)), key=values.__getitem__) if values else 0


def _half_cosine(x: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * x))


def _not_finite(what: str, ids: Sequence[str], step: int) -> str:
    return (
        f"the {what} at step {step} is not finite; utterances: {', '.join(ids)}. Listen to them and run asr doctor; "
        "if they are sound, lower optimiser.lr or optimiser.clip_norm"
    )


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Within it, the first Ctrl-C (or SIGTERM) only asks to stop after the step; the second stops at once."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals stay as they are
        old = {}
    try:
        yield lambda: asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class _Log:
    """log.jsonl and TensorBoard events of a run; both go back to where a checkpoint was when a training resumes."""

    def __init__(self, run: Path, *, active: bool) -> None:
        self._run, self._active = run, active
        self._path = run / "log.jsonl"
        self._kept_bytes, self._kept_steps = 0, 0
        self._file: Any = None
        self._board: Any = None
        if active:
            self._path.touch()

    def rewind(self, size: int, step: int) -> None:
        """Forget what was logged after the checkpoint."""
        self._kept_bytes, self._kept_steps = size, step

    def __enter__(self) -> _Log:
        if self._active:
            from torch.utils.tensorboard import SummaryWriter

            self._file = self._path.open("a", encoding="utf-8", buffering=1)  # by line, for who watches it grow
            _lock(self._file, self._run)
            if self._path.stat().st_size > self._kept_bytes:
                self._file.truncate(self._kept_bytes)
            self._board = SummaryWriter(str(self._run / "tensorboard"), purge_step=self._kept_steps)
        return self

    def __exit__(self, *_: object) -> None:
        if self._active:
            self._file.close()
            self._board.close()

    def write(self, row: Mapping[str, Any], step: int) -> None:
        """One JSON line, and each number in it as a TensorBoard scalar."""
        if not self._active:
            return
        self._file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            scalars = value if isinstance(value, dict) else {"": value}
            for part, number in scalars.items():
                self._board.add_scalar(f"{name}/{part}" if part else name, number, step)

    def flush(self) -> int:
        """Everything on disk; the size of log.jsonl in bytes."""
        if not self._active:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())  # a checkpoint that outlives a power cut must find its log
        self._board.flush()
        return self._path.stat().st_size


def _lock(file: TextIO, run: Path) -> None:
    """Hold a file until it is closed, so that two trainings cannot write into one folder."""
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise TrainingError(
            f"{run}: another process is training here; wait for it, or give another --run folder"
        ) from None
    except OSError:  # a file system without locks
        return


class _Display:
    """A progress bar in a terminal; a line for each epoch everywhere."""

    def __init__(self, session: _Session) -> None:
        self._session = session
        self._quiet = not session.fabric.is_global_zero
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  dev {task.fields[dev]}  {task.fields[rate]:.3f} h/s "),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}"),
            console=session.console,
            disable=self._quiet or not session.console.is_terminal,
        )
        fields: dict[str, Any] = {"loss": float("nan"), "dev": "-", "rate": 0.0, "left": "-"}
        self._task = self._bar.add_task("", total=1.0, epoch=1, epochs=session.settings.epochs, **fields)

    def __enter__(self) -> _Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(self, steps_in_epoch: int) -> None:
        state = self._session.state
        epochs = self._session.settings.epochs
        done = (state.epoch + state.step_in_epoch / steps_in_epoch) / epochs
        left = state.elapsed_s / done - state.elapsed_s
        self._bar.update(
            self._task,
            completed=done,
            epoch=state.epoch + 1,
            loss=state.loss_sum / max(1, state.token_sum),
            rate=state.audio_s / 3600 / max(1e-9, state.epoch_s),
            left=f"{int(left) // 3600}:{int(left) % 3600 // 60:02d}:{int(left) % 60:02d}",
        )

    def epoch(self, row: Mapping[str, float]) -> None:
        dev = f"WER {row['dev_wer']:.1%} CER {row['dev_cer']:.1%}"
        self._bar.update(self._task, dev=dev)
        if not self._quiet:
            self._session.console.print(
                f"epoch {int(row['epoch']) + 1:3d}  loss {row['train_loss']:.3f}  dev loss {row['dev_loss']:.3f}  dev {dev}"
                f"  {row['seconds']:.0f} s  {row['audio_hours'] / max(1e-9, row['seconds']):.4f} h/s",
                highlight=False,
                soft_wrap=True,
            )


__all__ = ["Outcome", "TrainingError", "gradient_norms", "rate", "train"]
