"""The training loop: read top to bottom, `train` is the whole of it.

Everything random is a function of the seed and the step, nothing of the clock or of earlier draws; so a checkpoint needs no
generator states, and a training that was killed goes on to the same losses as one that was not.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import yaml
from lightning.fabric import Fabric
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from asr import __version__, metrics
from asr.audio import SAMPLE_RATE
from asr.tokens import Tokens
from asr.training import augment, checkpoint, config, encoder, launch, plots, subwords, warm
from asr.training.data import Batch, Corpus
from asr.training.evaluation import ctc_losses, evaluate, rates
from asr.training.launch import TrainingError
from asr.training.log import Display, Log, best
from asr.training.model import AcousticModel
from asr.training.profile import Profile

LOG_EVERY = 10  # steps
# Settings that may differ when a training is resumed: they change neither which utterances follow one another, nor what
# the checkpoint's tensors are.
_FREE = (
    *("name", "description", "licence", "checkpoint_minutes", "data.cache", "epochs", "patience", "precision"),
    *("batch*", "stream*", "network.dropout", "pronunciation.weight"),
    *(f"optimiser.{key}" for key in ("lr", "weight_decay", "betas", "schedule", "warmup", "final", "plateau_patience")),
    "optimiser.clip_norm",
    *(f"augment.{key}*" for key in ("vtlp", "gain_db", "equaliser_db", "noise", "snr_db", "rooms", "band", "spec")),
)
_FIT_UTTERANCES = 500  # for the mean and deviation of the features


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


def train(
    settings: config.Config,
    run: Path,
    *,
    tokens: Tokens | None = None,
    resume: bool = False,
    device: str = "auto",
    threads: int | None = None,
    profile: bool = False,
    console: Console | None = None,
) -> Outcome:
    """Train a model and leave it, with its log, plots and dev report, in the run folder.

    tokens: the vocabulary, if it is not to be made as the settings say.
    resume:  continue from the folder's last checkpoint, to the same result as a training never interrupted.
    profile: print at the end where the time went.
    raises: ConfigError, ManifestError, CheckpointError; TrainingError naming the utterances if a loss is not finite.
    """
    console = console or Console(stderr=True)
    if threads:
        torch.set_num_threads(threads)
    settings = with_encoder(settings)
    fabric = launch.launch(settings, device)
    if fabric.is_global_zero:
        _prepare_folder(run, settings, resume, console)
    else:
        console = Console(quiet=True)
    fabric.barrier()
    if not (run / "config.yaml").exists():
        raise TrainingError(
            f"{run}: expected a run folder that all machines of the training see, got one of its own here"
        )

    last = run / "last.safetensors"
    resumed = resume and last.exists()
    try:
        tokens = checkpoint.load_tokens(last) if resumed else tokens or subwords.of_settings(settings.data)
    except checkpoint.CheckpointError as error:
        raise TrainingError(f"{error}; {_start_from(run)}") from None
    torch.manual_seed(settings.seed)
    model = AcousticModel(settings, len(tokens))
    if model.network.encoder and not settings.init and not resumed:
        assert settings.network.encoder is not None
        encoder.load(model.network.encoder, settings.network.encoder)
    fitted = settings.init is not None and not resumed and warm.start(model, settings, tokens, console)
    warm.parameter_groups(model.network, settings)  # so that a wrong name is told before the audio is decoded
    corpora = _read_corpora(settings, tokens, model, run if fabric.is_global_zero else None, console)
    if settings.pronunciation and (sounds := corpora[0].pronunciations):
        model.network.add_sounds(settings.pronunciation.layer, len(sounds))
        known = sum(bool(example.sounds) for example in corpora[0].examples)
        console.print(f"pronunciations known: of {known} of {len(corpora[0].examples)} utterances", highlight=False)
    session = _Session(settings, run, fabric, model, tokens, *corpora, console, profiled=profile)
    if resumed:
        session.restore(last)
    else:
        if resume:
            console.print(f"{run}: holds no checkpoint yet; starting from the beginning", soft_wrap=True)
        if not fitted and not model.network.encoder:  # which has its own scale
            session.fit_features()
    try:
        with session.log, _interruptible() as interrupted:
            session.rehearse()
            finished = session.run_epochs(interrupted)
            if not finished:
                session.save()
            session.profile.render(console)
            if finished:
                return session.finish()
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"out of memory on {fabric.device} at step {session.state.step}: {str(error).split('. ')[0]}; "
            "lower batch.seconds or batch.max_utterances, or data.max_s"
        ) from None
    except RuntimeError as error:
        if fabric.world_size > 1 and launch.lost_a_process(error):
            raise TrainingError(
                f"process {fabric.global_rank} of {fabric.world_size}: another has ended, see what it said; mend that, "
                f"then go on with --resume ({str(error).strip().splitlines()[0]})"
            ) from None
        raise
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
        tokens: Tokens,
        train_set: Corpus,
        dev_set: Corpus,
        console: Console,
        *,
        profiled: bool = False,
    ) -> None:
        self.settings, self.run, self.fabric, self.console = settings, run, fabric, console
        self.train_set, self.dev_set = train_set, dev_set
        self.model = model.to(fabric.device)
        self.raw_optimiser = torch.optim.AdamW(
            warm.parameter_groups(model.network, settings),
            lr=settings.optimiser.lr,
            betas=settings.optimiser.betas,
            weight_decay=settings.optimiser.weight_decay,
            fused=True,
        )
        self.network, self.optimiser = fabric.setup(model.network, self.raw_optimiser)
        self.ema = {name: value.detach().clone() for name, value in model.state_dict().items()} if settings.ema else {}
        self.state = State()
        self.pending: _Update | None = None
        self.asked_to_stop: int | None = None  # the update that some process was asked to stop before
        self.profile = Profile(fabric.device, active=profiled)
        # Batches that one update averages: as many as asked for, each process the same number of them.
        self.group = math.ceil(settings.batch.accumulate / fabric.world_size) * fabric.world_size
        self.recordings = train_set.recordings.to(fabric.device)
        self.clock = time.monotonic()
        self.log = Log(run, active=fabric.is_global_zero)
        self.tokens = tokens
        self.origin = {"config": config.to_dict(settings), "tokens": tokens.symbols}  # in every file of weights

    # --- the epochs ---

    def rehearse(self) -> None:
        """A step on the largest batch there can be, without its update: what does not fit in memory is to fail now."""
        if self.state.epoch >= self.settings.epochs:
            return
        warm.train_mode(self.model)
        buffers = {name: value.clone() for name, value in self.model.named_buffers()}  # running means of batch.norm
        self.fabric.backward(self._losses(self.train_set.largest())[1])
        self.optimiser.zero_grad()
        self.model.load_state_dict(buffers, strict=False)

    def run_epochs(self, interrupted: Callable[[], bool]) -> bool:
        """Train until the last epoch, early stopping, or an interruption (then False)."""
        state, settings = self.state, self.settings
        self.clock = time.monotonic()
        if state.epoch < settings.epochs:
            self._introduce()
        with Display(settings.epochs, self.console, active=self.fabric.is_global_zero) as display:
            while state.epoch < settings.epochs and not self._out_of_patience():
                plan = self.train_set.plan(state.epoch, by_length=state.epoch < settings.sortagrad_epochs)
                updates = _updates(len(plan), state.batch_in_epoch, self.group)
                own = slice(self.fabric.global_rank, None, self.fabric.world_size)
                mine = [plan[number % len(plan)] for numbers in updates for number in numbers[own]]
                warm.train_mode(self.model)
                saved_at = time.monotonic()
                batches = self.profile.waits("waiting for audio", self.train_set.batches(mine, state.epoch))
                for numbers in updates:
                    tokens = sum(self.train_set.tokens(plan[number % len(plan)]) for number in numbers)
                    self._update(batches, numbers, tokens, len(plan), interrupted())
                    self._count_time()
                    display.step(
                        state.epoch,
                        min(1.0, (numbers[-1] + 1) / len(plan)),
                        state.loss_sum / state.token_sum if state.token_sum else None,
                        state.audio_s / 3600 / max(1e-9, state.epoch_s),
                        state.elapsed_s,
                    )
                    # Every process knows by now of the update before; one that has just saved, of the last one too.
                    if self.asked_to_stop is not None and self.asked_to_stop <= state.step - 2:
                        return False
                    if time.monotonic() - saved_at >= settings.checkpoint_minutes * 60:
                        self.save()
                        saved_at = time.monotonic()
                self._settle()
                if self.asked_to_stop is not None:
                    return False
                self._end_epoch(display)
        return True

    def _introduce(self) -> None:
        """What is trained on what, in a line."""
        fabric = self.fabric
        device = "cpu" if fabric.device.type == "cpu" else torch.cuda.get_device_name(fabric.device)
        each = f"{fabric.world_size} processes on {device}" if fabric.world_size > 1 else device
        if fabric.device.type == "cpu":
            each += f" with {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
        parameters = sum(parameter.numel() for parameter in self.model.network.parameters())
        hours = sum(example.duration_s for example in self.train_set.examples) / 3600
        batches = len(
            self.train_set.plan(self.state.epoch, by_length=self.state.epoch < self.settings.sortagrad_epochs)
        )
        self.console.print(
            f"{each}, {fabric.strategy.precision.precision}: {parameters:,} parameters; {hours:.2f} hours in {batches} "
            f"batches an epoch, {self.settings.epochs} epochs",
            highlight=False,
            soft_wrap=True,
        )

    def _update(self, batches: Iterator[Batch], numbers: range, tokens: int, planned: int, stop: bool) -> None:
        """One step of the optimiser.

        numbers: of all processes' batches in the epoch's plan of `planned` batches; tokens: how many those have together;
        stop: whether this process was asked to.
        The GPU is given its work and not waited for: what became of the step is read during the next one (`_settle`).
        """
        state, settings, world = self.state, self.settings, self.fabric.world_size
        lr = settings.optimiser.lr * state.lr_scale
        lr *= rate(settings.optimiser, (state.epoch + min(1.0, numbers[0] / planned)) / settings.epochs)
        for group in self.raw_optimiser.param_groups:
            group["lr"] = lr * group["scale"]

        sums = torch.zeros(3, device=self.fabric.device)  # loss, whether to stop, seconds of audio
        all_losses: list[Tensor] = []
        ids: list[str] = []
        own = numbers[self.fabric.global_rank :: world]
        for number, batch in zip(own, batches, strict=False):
            _seed(settings.seed, state.epoch, number)
            with self.fabric.no_backward_sync(self.network, enabled=number != own[-1]):
                losses, objective = self._losses(batch)
                with self.profile.part("backward"):
                    # Processes' gradients are averaged: so divided, each token of all their batches weighs the same.
                    self.fabric.backward(objective * (world / tokens))
            sums += torch.stack([losses.detach().sum(), sums.new_tensor(stop), sums.new_tensor(batch.seconds)])
            all_losses.append(losses.detach())
            ids += batch.ids
        with self.profile.part("update of the weights"):
            names, norms = gradient_norms(self.model.network) if state.step % LOG_EVERY == 0 else ([], sums[:0])
            norm = nn.utils.clip_grad_norm_(self.model.network.parameters(), settings.optimiser.clip_norm)
            self.optimiser.step()
            self.optimiser.zero_grad()
            self._update_ema()
        if world > 1:
            sums = torch.as_tensor(self.fabric.all_reduce(sums, reduce_op="sum"))
        figures = _on_host(torch.cat([sums, norm.float()[None], norms]))
        before, self.pending = self.pending, _Update(state.step, lr, tokens, ids, torch.cat(all_losses), names, figures)
        state.step += 1
        state.batch_in_epoch = min(planned, numbers[-1] + 1)
        if before is not None:
            self._settle(before)

    def _settle(self, update: _Update | None = None) -> None:
        """Take note of what became of an update; without one, of the last.

        raises: TrainingError if it was not finite. The weights are spoilt then, and must not have been saved.
        """
        if update is None:
            update, self.pending = self.pending, None
        if update is None:
            return
        loss_sum, stop, audio_s, norm, *norms = update.figures()
        if not math.isfinite(loss_sum):
            finite = torch.isfinite(update.losses).tolist()
            bad = [name for name, fine in zip(update.ids, finite, strict=True) if not fine]
            raise TrainingError(_not_finite("loss", bad or ["another process's"], update.step))
        if not math.isfinite(norm):
            raise TrainingError(_not_finite("gradient", update.ids, update.step))
        if stop and self.asked_to_stop is None:
            self.asked_to_stop = update.step
        state = self.state
        state.loss_sum += loss_sum
        state.token_sum += update.tokens
        state.audio_s += audio_s
        self.profile.audio_s += audio_s
        if update.names:
            row = {"step": update.step, "epoch": state.epoch, "loss": loss_sum / update.tokens, "lr": update.lr}
            layers = dict(zip(update.names, norms, strict=True))
            with self.profile.part("log"):
                self.log.write({**row, "gradient_norm": norm, "layers": layers}, update.step)

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """CTC losses (B,) in nats of one batch, and what is minimised: their sum, and if wished the sounds' share."""
        with torch.no_grad():
            with self.profile.part("perturbation"):
                waveforms, lengths = self.train_set.heard(batch, self.fabric.device, self.recordings)
            with self.profile.part("features"):
                features = self.model.normalised_features(waveforms)
                if share := self.settings.augment.vtlp:
                    features = augment.stretch_frequencies(features, share, self.settings.features)
                if self.state.spec_augment and self.settings.augment.spec_augment:
                    features = augment.spec_augment(features, self.settings.augment.spec_augment)
        with self.profile.part("network"):
            log_probs, frames, sounds = self.network(
                features, self.model.feature_frames(lengths).tolist(), *self._chunk()
            )
        with self.profile.part("CTC"):
            losses = ctc_losses(log_probs, frames, batch.token_ids, batch.token_lengths)
            objective = losses.sum()
            if self.settings.pronunciation and sounds is not None:
                of_sounds = ctc_losses(sounds, frames, batch.sounds, batch.sound_lengths, zero_infinity=True)
                # Where they are not known, every frame would be taught the blank.
                known = (batch.sound_lengths > 0).to(of_sounds.device, non_blocking=True)
                objective = objective + self.settings.pronunciation.weight * (of_sounds * known).sum()
        return losses, objective

    def _chunk(self) -> tuple[tuple[int, int] | None, int]:
        """In how many frames, and with how many to their right, this batch is heard, None for whole utterances; and with
        how many to their left by a pre-trained encoder."""
        stream = self.settings.stream
        if stream is None:
            return None, 0
        share, part, context, left = torch.rand(4).tolist()
        if share >= stream.share:
            return None, 0
        shift_s = self.model.frame_shift / SAMPLE_RATE
        drawn = [
            round((low + place * (high - low)) / shift_s)
            for place, (low, high) in (
                (part, stream.chunk_s),
                (context, stream.right_context_s),
                (left, stream.left_context_s),
            )
        ]
        return (max(1, drawn[0]), drawn[1]), drawn[2]

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

    def _end_epoch(self, display: Display) -> None:
        state = self.state
        with self._weights(self.ema), self.profile.part("evaluation"):
            scored, dev_loss = self.evaluate(self.dev_set)
        wer, cer = rates(scored)
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
        self._write_weights()
        state.epoch += 1
        state.batch_in_epoch, state.loss_sum, state.token_sum, state.audio_s, state.epoch_s = 0, 0.0, 0, 0.0, 0.0
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

    # --- evaluation ---

    def evaluate(self, corpus: Corpus) -> tuple[list[metrics.Scored], float]:
        """Greedy transcripts of a corpus and its loss, as `evaluate` does."""
        return evaluate(self.model, self.tokens, corpus, self.fabric)

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
        waveforms = (torch.from_numpy(self.train_set.waveform(int(index))) for index in chosen)
        shortest = self.model.features.receptive_field()
        enough = [waveform.to(device) for waveform in waveforms if len(waveform) >= shortest]
        if not enough:
            raise TrainingError(f"train: expected utterances of at least {shortest} samples at 16 kHz, got none")
        self.model.fit(enough)
        for value in (self.model.mean, self.model.std):  # the same for all processes, however theirs round
            value.copy_(self.fabric.broadcast(value))
        for name in self.ema:
            self.ema[name].copy_(self.model.state_dict()[name])

    def save(self) -> None:
        """Write the checkpoint that --resume goes on from."""
        if not self.fabric.is_global_zero:
            return
        self._settle()
        with self.profile.part("saving"):
            self._save()

    def _save(self) -> None:
        self.state.log_bytes = self.log.flush()
        tensors = checkpoint.pack("model", self.model.state_dict()) | checkpoint.pack("ema", self.ema)
        optimiser = self.raw_optimiser.state_dict()["state"]
        tensors |= checkpoint.pack("optimiser", {str(index): slots for index, slots in optimiser.items()})
        progress = {**self.origin, "progress": vars(self.state)}
        checkpoint.save(self.run / "last.safetensors", tensors, progress)

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint that `save` wrote."""
        tensors, state = checkpoint.load(path)
        checkpoint.load_weights(self.model, checkpoint.unpack("model", tensors), path)
        self.ema = {name: value.to(self.fabric.device) for name, value in checkpoint.unpack("ema", tensors).items()}
        slots = {int(index): values for index, values in checkpoint.unpack("optimiser", tensors).items()}
        groups = self.raw_optimiser.state_dict()["param_groups"]
        self.raw_optimiser.load_state_dict({"state": slots, "param_groups": groups})
        progress = state["progress"]
        if "world_size" in progress:  # of versions before 0.2, which counted the batches of each process
            progress["batch_in_epoch"] = progress.pop("step_in_epoch") * progress.pop("world_size")
        self.state = State(**progress)
        batch = config.Batch(**state["config"].get("batch", {}))
        if batch != self.settings.batch:  # go on where the same share of the epoch is done
            by_length = self.state.epoch < self.settings.sortagrad_epochs
            plans = [self.train_set.plan(self.state.epoch, by_length=by_length, batch=each) for each in (batch, None)]
            before, now = map(len, plans)
            self.state.batch_in_epoch = self.state.batch_in_epoch * now // before // self.group * self.group
        self.log.rewind(self.state.log_bytes, self.state.step)

    def _write_weights(self) -> None:
        """Write this epoch's weights."""
        if self.fabric.is_global_zero:
            weights = self.ema or self.model.state_dict()
            checkpoint.save(self._weight_file(self.state.epoch), checkpoint.lasting(weights), self.origin)

    def _remove_weights(self) -> None:
        """Delete the epochs' weights that neither the best model nor the average needs."""
        needed = {*self._averaged(), self._selected()}
        if self.fabric.is_global_zero:
            for epoch in set(range(self.state.epoch)) - needed:
                self._weight_file(epoch).unlink(missing_ok=True)

    def _weight_file(self, epoch: int) -> Path:
        return self.run / f"epoch-{epoch + 1:04d}.safetensors"

    def _selected(self) -> int:
        """The epoch (from 0) whose weights are the model's, if not their average."""
        return len(self.state.history) - 1 if self.settings.select == "last" else _best(self.state.history)

    def _averaged(self) -> list[int]:
        """The epochs (from 0) whose weights the final average takes."""
        history, rule = self.state.history, self.settings.average
        if rule is None or self.settings.select == "last":
            return []
        epochs = range(len(history))
        if rule.kind == "best":
            return sorted(epochs, key=lambda epoch: history[epoch]["dev_cer"])[: rule.n]
        return list(epochs)[-rule.n :]

    def finish(self) -> Outcome:
        """Choose between the best epoch and the average, and write the model, its dev report and the plots."""
        self.model.network.sounds = None  # they have served
        candidates = {f"{self.settings.select} epoch": checkpoint.load(self._weight_file(self._selected()))[0]}
        if len(averaged := self._averaged()) > 1:
            paths = [self._weight_file(epoch) for epoch in averaged]
            candidates[f"average of {len(paths)} epochs"] = checkpoint.average(paths)
        results = {}
        for name, weights in candidates.items():
            self.model.load_state_dict(weights)
            scored, _ = self.evaluate(self.dev_set)
            results[name] = scored
        chosen = min(results, key=lambda name: rates(results[name])[::-1])
        report = metrics.report(results[chosen])
        wer, cer = rates(results[chosen])
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
            state = {**self.origin, "training": summary}
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


def with_encoder(settings: config.Config) -> config.Config:
    """The settings with the size of their pre-trained encoder, so that the folder is not needed again."""
    if not settings.network.encoder or settings.network.encoder_width:
        return settings
    shape = encoder.shape_of(settings.network)
    found = {"encoder_width": shape.width, "encoder_blocks": shape.blocks}
    return settings.model_copy(update={"network": settings.network.model_copy(update=found)})


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


def gradient_norms(network: nn.Module) -> tuple[list[str], Tensor]:
    """L2 norm of the gradient of each layer, and of each direction of each recurrent layer, before clipping.

    returns: the layers' names, and (layers,) on the network's device: reading each by itself would make a GPU wait.
    """
    squares: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        if parameter.grad is None:
            continue
        parts = name.split(".")
        layer = ".".join(parts[: 4 if parts[0] == "layers" and parts[2] == "directions" else 2])
        square = parameter.grad.float().square().sum()
        squares[layer] = squares[layer] + square if layer in squares else square
    return list(squares), torch.stack(list(squares.values())).sqrt()


@dataclass(frozen=True, slots=True)
class _Update:
    """An update that is under way on the device."""

    step: int
    lr: float
    tokens: int
    ids: list[str]
    losses: Tensor  # of this process's utterances
    names: list[str]  # of the layers whose gradients' norms are among the figures
    figures: Callable[[], list[float]]


def _on_host(values: Tensor) -> Callable[[], list[float]]:
    """Start to copy values from a device; the function returned waits for them."""
    if not values.is_cuda:
        return values.tolist
    copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    copy.copy_(values, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()

    def wait() -> list[float]:
        event.synchronize()
        return list(copy.tolist())

    return wait


def _updates(planned: int, done: int, group: int) -> list[range]:
    """The numbers of the batches of each update, from an epoch's first that is not done.

    Where they do not divide, the last update is filled up: numbers from `planned` on stand for the first batches again.
    """
    return [range(start, start + group) for start in range(done, planned, group)]


def _seed(*key: int) -> None:
    """Seed torch's generators by what is drawn for: the same for a batch in whichever process, after whatever else."""
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def _prepare_folder(run: Path, settings: config.Config, resume: bool, console: Console) -> None:
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
        differing = sorted(set(_changed(old, new)))
        changed = [key for key in differing if not any(fnmatchcase(key, pattern) for pattern in _FREE)]
        if changed:
            raise TrainingError(
                f"{run}: expected the settings that this training began with, but these differ: {', '.join(changed)}; "
                f"put them back, or start a new training in another --run folder, with init={run} from these weights"
            )
        if not (run / "last.safetensors").exists() and any(run.glob("epoch-*.safetensors")):
            raise TrainingError(f"{run / 'last.safetensors'}: the checkpoint to go on from is gone; {_start_from(run)}")
        if not differing:
            return
        console.print(f"going on with other settings: {', '.join(differing)}", highlight=False, soft_wrap=True)
    try:
        run.mkdir(parents=True, exist_ok=True)
        resolved.write_text(yaml.safe_dump(new, sort_keys=False, allow_unicode=True), encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{run}: the run folder cannot be written: {error.strerror}") from None


def _start_from(run: Path) -> str:
    """What to do where a checkpoint is of no use."""
    weights = max(run.glob("epoch-*.safetensors"), default=None)
    if weights is None:
        return "start the training again in another --run folder"
    return f"start a new training in another --run folder from the last whole weights, with init={weights}"


def _changed(old: Any, new: Any, key: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old.keys() | new.keys():
            yield from _changed(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    elif old != new:
        yield key


def _read_corpora(
    settings: config.Config, tokens: Tokens, model: AcousticModel, run: Path | None, console: Console
) -> tuple[Corpus, Corpus]:
    """The training and dev corpora, decoded; what is skipped is listed in the run folder, if one is given."""
    geometry = {"receptive_field": model.receptive_field, "frame_shift": model.frame_shift}
    train_set = Corpus(settings.data.train, tokens, settings, training=True, **geometry)
    dev_set = Corpus([settings.data.dev], tokens, settings, training=False, **geometry)
    for name, corpus in (("train", train_set), ("dev", dev_set)):
        hidden = not console.is_terminal
        with Progress(console=console, transient=True, disable=hidden, redirect_stdout=False) as bar:
            task = bar.add_task(f"decoding {name} audio", total=len(corpus.examples))
            corpus.decode(partial(bar.advance, task), *launch.place())
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


def _best(history: Sequence[Mapping[str, float]]) -> int:
    return history.index(best(history))


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
    """Within it, the first Ctrl-C, SIGTERM or SIGHUP (a lost terminal) asks to stop after the step; the second stops now."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        # What is ignored stays so: nohup means to outlive its terminal.
        numbers = [number for number in launch.STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        old = {number: signal.signal(number, ask) for number in numbers}
    except ValueError:  # not in the main thread: signals stay as they are
        old = {}
    try:
        yield lambda: asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


__all__ = ["Outcome", "TrainingError", "evaluate", "gradient_norms", "rate", "train"]
