"""The training loop: read top to bottom, `train` is the whole of it.

Everything random is a function of the seed and the step, nothing of the clock or of earlier draws; so a checkpoint needs no
generator states, and a training that was killed goes on to the same losses as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from lightning.fabric import Fabric
from rich.console import Console
from torch import Tensor, nn

from asr import __version__, metrics, terminal
from asr.audio import SAMPLE_RATE
from asr.errors import CheckpointError, TrainingError
from asr.tokens import Tokens
from asr.training import augment, checkpoint, config, encoder, launch, schedule, subwords, warm
from asr.training import run as run_folder
from asr.training.data import Batch, Corpus
from asr.training.evaluation import ctc_losses, evaluate, rates
from asr.training.log import Display, Log
from asr.training.model import AcousticModel
from asr.training.profile import Profile
from asr.training.run import Outcome, State
from asr.training.updates import Update, batches_of_updates, gradient_norms, on_host, seed

LOG_EVERY = 10  # steps
_FIT_UTTERANCES = 500  # for the mean and deviation of the features


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
    settings = run_folder.with_encoder(settings)
    fabric = launch.launch(settings, device)
    if fabric.is_global_zero:
        run_folder.prepare(run, settings, resume, console)
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
    except CheckpointError as error:
        raise TrainingError(f"{error}; {run_folder.start_from(run)}") from None
    torch.manual_seed(settings.seed)
    model = AcousticModel(settings, len(tokens))
    if model.network.encoder and not settings.init and not resumed:
        assert settings.network.encoder is not None
        encoder.load(model.network.encoder, settings.network.encoder)
    fitted = settings.init is not None and not resumed and warm.start(model, settings, tokens, console)
    warm.parameter_groups(model.network, settings)  # so that a wrong name is told before the audio is decoded
    corpora = run_folder.read_corpora(settings, tokens, model, run if fabric.is_global_zero else None, console)
    if settings.pronunciation and (sounds := corpora[0].pronunciations):
        model.network.add_sounds(settings.pronunciation.layer, len(sounds))
        known = np.count_nonzero(corpora[0].examples.sounds.lengths)
        console.print(f"pronunciations known: of {known} of {len(corpora[0].examples)} utterances", highlight=False)
    session = Training(settings, run, fabric, model, tokens, *corpora, console, profiled=profile)
    if resumed:
        session.restore(last)
    else:
        if resume:
            console.print(f"{run}: holds no checkpoint yet; starting from the beginning", soft_wrap=True)
        if not fitted and not model.network.encoder:  # which has its own scale
            session.fit_features()
    with _translate_errors(session), session.log, terminal.asked_to_end() as interrupted:
        session.rehearse()
        finished = session.run_epochs(interrupted)
        if not finished:
            session.save()
        session.profile.render(console)
        if finished:
            return session.finish()
    where = f"epoch {session.state.epoch + 1}, step {session.state.step}"
    console.print(f"stopped at {where} and saved; the same command with --resume goes on from there", soft_wrap=True)
    return Outcome(False, run)


@contextmanager
def _translate_errors(training: Training) -> Iterator[None]:
    """Raise what the machine does to a training, such as a full disk, as a TrainingError that says what to do."""
    fabric = training.fabric
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"out of memory on {fabric.device} at step {training.state.step}: {str(error).split('. ')[0]}; "
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
        where = error.filename or training.run
        raise TrainingError(
            f"{where}: cannot be written: {error.strerror}; free some space, then go on with --resume"
        ) from None


class Training:
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
        self.pending: Update | None = None
        self.asked_to_stop: int | None = None  # the update that some process was asked to stop before
        self.profile = Profile(fabric.device, active=profiled)
        # Batches that one update averages: as many as asked for, each process the same number of them.
        self.group = math.ceil(settings.batch.accumulate / fabric.world_size) * fabric.world_size
        self.recordings = train_set.recordings.to(fabric.device)
        self.clock = time.monotonic()
        self.log = Log(run, active=fabric.is_global_zero)
        self.weights = run_folder.Weights(run, settings)
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
            planned = len(self.train_set.plan(state.epoch, by_length=state.epoch < settings.sortagrad_epochs))
            told = run_folder.introduction(settings, self.fabric, self.model, self.train_set, planned)
            self.console.print(told, highlight=False, soft_wrap=True)
        with Display(settings.epochs, self.console, active=self.fabric.is_global_zero) as display:
            while state.epoch < settings.epochs and not self._out_of_patience():
                plan = self.train_set.plan(state.epoch, by_length=state.epoch < settings.sortagrad_epochs)
                updates = batches_of_updates(len(plan), state.batch_in_epoch, self.group)
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

    def _update(self, batches: Iterator[Batch], numbers: range, tokens: int, planned: int, stop: bool) -> None:
        """One step of the optimiser.

        numbers: of all processes' batches in the epoch's plan of `planned` batches; tokens: how many those have together;
        stop: whether this process was asked to.
        The GPU is given its work and not waited for: what became of the step is read during the next one (`_settle`).
        """
        state, settings, world = self.state, self.settings, self.fabric.world_size
        lr = settings.optimiser.lr * state.lr_scale
        lr *= schedule.rate(settings.optimiser, (state.epoch + min(1.0, numbers[0] / planned)) / settings.epochs)
        for group in self.raw_optimiser.param_groups:
            group["lr"] = lr * group["scale"]

        sums = torch.zeros(3, device=self.fabric.device)  # loss, whether to stop, seconds of audio
        all_losses: list[Tensor] = []
        ids: list[str] = []
        own = numbers[self.fabric.global_rank :: world]
        for number, batch in zip(own, batches, strict=False):
            seed(settings.seed, state.epoch, number)
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
        figures = on_host(torch.cat([sums, norm.float()[None], norms]))
        before, self.pending = self.pending, Update(state.step, lr, tokens, ids, torch.cat(all_losses), names, figures)
        state.step += 1
        state.batch_in_epoch = min(planned, numbers[-1] + 1)
        if before is not None:
            self._settle(before)

    def _settle(self, update: Update | None = None) -> None:
        """Check an update that is done, and log it; without an argument, the last one.

        raises: TrainingError if it was not finite. The weights are spoilt then, and must not have been saved.
        """
        if update is None:
            update, self.pending = self.pending, None
        if update is None:
            return
        loss_sum, stop, audio_s, norm, *norms = update.figures()
        update.check(loss_sum, norm)
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
        """CTC losses (B,) in nats of one batch, and what is minimised: their sum, with the sounds' if they are set."""
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
        """Draw how this batch is heard: (frames of a part, frames to its right), or None for whole utterances; and the
        frames to its left that a pre-trained encoder hears with it."""
        stream = self.settings.stream
        if stream is None:
            return None, 0
        share, *places = torch.rand(4).tolist()
        if share >= stream.share:
            return None, 0
        shift_s = self.model.geometry.frame_shift / SAMPLE_RATE
        ranges = zip(places, (stream.chunk_s, stream.right_context_s, stream.left_context_s), strict=True)
        chunk, right, left = (round((low + place * (high - low)) / shift_s) for place, (low, high) in ranges)
        return (max(1, chunk), right), left

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
        if self.fabric.is_global_zero:
            # After saving: a training resumed in this epoch may end it with other errors on a GPU.
            self.weights.remove(state.history)
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
        self.state = State(**state["progress"])
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
            checkpoint.save(self.weights.file(self.state.epoch), checkpoint.without_sounds(weights), self.origin)

    def finish(self) -> Outcome:
        """Choose between the best epoch and the average, and write the model, its dev report and the plots."""
        self.model.network.sounds = None  # they have served
        candidates = self.weights.candidates(self.state.history)
        results = {}
        for name, weights in candidates.items():
            self.model.load_state_dict(weights)
            results[name], _ = self.evaluate(self.dev_set)
        chosen = min(results, key=lambda name: rates(results[name])[::-1])
        report = metrics.report(results[chosen])
        wer, cer = rates(results[chosen])
        if self.fabric.is_global_zero:
            summary = {
                "epochs": len(self.state.history),
                "weights": chosen,
                "dev_wer": round(wer, 5),
                "dev_cer": round(cer, 5),
                "train_hours": round(float(self.train_set.examples.durations_s.sum()) / 3600, 3),
                "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
                "minutes": round(self.state.elapsed_s / 60, 2),
                "device": str(self.fabric.device.type),
                "version": __version__,
            }
            self.log.flush()
            run_folder.write_results(self.run, candidates[chosen], {**self.origin, "training": summary}, report)
            self.console.print(
                f"finished: dev WER {wer:.2%}, CER {cer:.2%} ({chosen}); the model is {self.run / 'model.safetensors'}",
                highlight=False,
                soft_wrap=True,
            )
        self.fabric.barrier()
        return Outcome(True, self.run, wer, cer)


def _epochs_since_best(values: Sequence[float]) -> int:
    return len(values) - 1 - min(range(len(values)), key=values.__getitem__) if values else 0
