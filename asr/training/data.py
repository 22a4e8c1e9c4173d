"""Utterances -> batches: what is left out and why, which utterances go together, and their audio, loaded ahead of use."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from asr import audio, manifest
from asr.manifest import Utterance
from asr.text import normaliser
from asr.tokens import TokenError, Tokens, min_frames
from asr.training import augment, config

_AHEAD = 4  # batches loaded before they are needed
_INT16 = 2**15  # full scale
_PLAN = 2**31  # the stream of random numbers that plans an epoch; utterance numbers stay below


@dataclass(frozen=True, slots=True)
class Example:
    """An utterance that can be trained on. text: normalised; token_ids: (U,)."""

    utterance: Utterance
    text: str
    token_ids: tuple[int, ...]

    @property
    def duration_s(self) -> float:
        return self.utterance.duration_s


@dataclass(frozen=True, slots=True)
class Skipped:
    """An utterance left out of training or evaluation, and why."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Item:
    """An example's number in the corpus, those of the ones joined to it in this epoch, and the speed they are played at."""

    index: int
    speed: float = 1.0
    joined: tuple[int, ...] = ()

    @property
    def indices(self) -> tuple[int, ...]:
        return (self.index, *self.joined)


@dataclass(frozen=True, slots=True)
class Batch:
    """waveforms: (B, N) float32, zeros after each utterance; lengths: (B,) samples; token_ids: (sum of U,)."""

    ids: tuple[str, ...]
    waveforms: Tensor
    lengths: Tensor
    token_ids: Tensor
    token_lengths: Tensor
    seconds: float  # of audio, without padding


class Corpus:
    """The usable utterances of manifests, with their audio decoded once and kept as int16.

    skipped: the utterances that cannot be used. Audio beyond data.cache_gb is read when its turn comes; one that cannot be
             read then is listed too, and the next takes its place.
    raises:  ManifestError, ConfigError.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        tokens: Tokens,
        settings: config.Config,
        *,
        receptive_field: int,
        frame_shift: int,
        training: bool,
    ) -> None:
        self._settings, self._training = settings, training
        self._padding = receptive_field, frame_shift
        self.skipped: list[Skipped] = []
        self.examples: list[Example] = []
        normalise = normaliser(settings.data.normaliser)
        for utterance in (utterance for path in paths for utterance in manifest.read(path)):
            try:
                self.examples.append(self._example(utterance, normalise(utterance.text), tokens))
            except (TokenError, _UnusableError) as error:
                self.skipped.append(Skipped(utterance.id, str(error)))
        noise = settings.augment.noise if training else None
        self._noises = augment.read_noises(noise) if noise else []
        self._space = tokens.encode(" ") if " " in tokens.symbols else []
        self._cache: dict[int, np.ndarray] = {}
        self._unusable: set[int] = set()  # numbers of examples that failed when their turn came

    def _example(self, utterance: Utterance, text: str, tokens: Tokens) -> Example:
        token_ids = tuple(tokens.encode(text))
        example = Example(utterance, text, token_ids)
        if not self._training:
            return example
        if not token_ids:
            raise _UnusableError("expected text, got none after normalisation")
        if utterance.duration_s > self._settings.data.max_s:
            raise _UnusableError(
                f"expected at most data.max_s = {self._settings.data.max_s} s, got {utterance.duration_s:.1f} s"
            )
        self._check_length(example, utterance.duration_s)
        return example

    def _check_length(self, example: Example, duration_s: float) -> None:
        # CTC gives a text that does not fit into the frames zero probability: the loss would be infinite.
        needed, frames = min_frames(example.token_ids), self._frames(duration_s)
        if frames < needed:
            raise _UnusableError(
                f"too short for its text: CTC needs {needed} frames for {example.text!r}, the audio gives {frames}"
            )

    def _frames(self, duration_s: float) -> int:
        return round(duration_s * audio.SAMPLE_RATE) // self._padding[1]

    def decode(self, progress: Iterable[int] | None = None) -> None:
        """Decode the audio into memory, up to data.cache_gb; what cannot be read moves to `skipped`.

        progress: range(len(examples)), perhaps wrapped in a progress bar.
        """
        left = self._settings.data.cache_gb * 2**30
        unusable: dict[int, str] = {}
        with ThreadPoolExecutor(2) as pool:
            waveforms = pool.map(self._try_read, self.examples)
            for index in range(len(self.examples)) if progress is None else progress:
                if left <= 0:
                    pool.shutdown(cancel_futures=True)
                    break
                waveform = next(waveforms)
                if isinstance(waveform, Exception):
                    unusable[index] = str(waveform)
                    continue
                self._cache[index] = waveform
                # The manifest's duration may lie; speeds and batches go by the audio's own.
                utterance = replace(self.examples[index].utterance, duration_s=len(waveform) / audio.SAMPLE_RATE)
                self.examples[index] = replace(self.examples[index], utterance=utterance)
                left -= waveform.nbytes
        if unusable:
            self.skipped += [Skipped(self.examples[index].utterance.id, why) for index, why in unusable.items()]
            kept = [index for index in range(len(self.examples)) if index not in unusable]
            self.examples = [self.examples[index] for index in kept]
            self._cache = {new: self._cache[old] for new, old in enumerate(kept) if old in self._cache}

    def _try_read(self, example: Example) -> np.ndarray | audio.AudioError | _UnusableError:
        try:
            waveform = _to_int16(_read(example.utterance))
            if self._training:  # the manifest's duration may lie
                self._check_length(example, len(waveform) / audio.SAMPLE_RATE)
            return waveform
        except (audio.AudioError, _UnusableError) as error:
            return error

    def waveform(self, index: int) -> np.ndarray:
        """(N,) float32, as recorded."""
        samples = self._cache.get(index)
        if samples is None:  # rounded all the same: how much fits into the cache must not change a training
            samples = _to_int16(_read(self.examples[index].utterance))
        return samples.astype(np.float32) / np.float32(_INT16)

    def plan(self, epoch: int, *, by_length: bool) -> list[list[Item]]:
        """Which utterances form which batch of this epoch: the same answer at every call.

        by_length: short ones first, in order (SortaGrad); otherwise batches of similar lengths in random order.
        """
        rng = np.random.default_rng([self._settings.seed, epoch, _PLAN])
        groups = self._join(0.0 if by_length else self._settings.augment.join_share, rng)
        items = [Item(group[0], self._draw_speed(group, rng), group[1:]) for group in groups]
        lengths = np.array([self._duration_s(item.indices) / item.speed for item in items])
        # Lengths are blurred by a few per cent, so that an utterance's company changes from epoch to epoch.
        keys = lengths if by_length else lengths * rng.uniform(0.9, 1.1, len(lengths))
        order = np.argsort(keys, kind="stable")
        batches = self._pack([items[i] for i in order], lengths[order])
        return batches if by_length else [batches[index] for index in rng.permutation(len(batches))]

    def _join(self, share: float, rng: np.random.Generator) -> list[tuple[int, ...]]:
        """Every example once: alone, or, a share of them, in a group that is heard as one utterance."""
        if not share:
            return [(index,) for index in range(len(self.examples))]
        groups: list[tuple[int, ...]] = []
        length_s = 0.0
        for index in map(int, rng.permutation(len(self.examples))):
            length_s += self.examples[index].duration_s
            if groups and rng.random() < share and length_s <= self._settings.data.max_s:
                groups[-1] += (index,)
            else:
                groups.append((index,))
                length_s = self.examples[index].duration_s
        return groups

    def _duration_s(self, indices: Sequence[int]) -> float:
        silence_s = self._padding[1] / audio.SAMPLE_RATE  # between two that are joined
        return sum(self.examples[index].duration_s for index in indices) + (len(indices) - 1) * silence_s

    def in_order(self) -> list[list[Item]]:
        """Every utterance once as recorded, in batches of similar lengths, for evaluation."""
        lengths = np.array([example.duration_s for example in self.examples])
        order = np.argsort(lengths, kind="stable")
        return self._pack([Item(int(index)) for index in order], lengths[order])

    def _draw_speed(self, indices: Sequence[int], rng: np.random.Generator) -> float:
        speeds = self._settings.augment.speed
        factor = float(speeds[rng.integers(len(speeds))])
        # A speed that would leave fewer frames than CTC needs is not used.
        needed = min_frames(self._joined_ids([self.examples[index] for index in indices]))
        return factor if self._frames(self._duration_s(indices) / factor) >= needed else 1.0

    def _pack(self, items: Sequence[Item], lengths: np.ndarray) -> list[list[Item]]:
        """Cut a list into batches whose padded total stays within batch.seconds; a longer utterance goes alone."""
        limit = self._settings.batch
        batches: list[list[Item]] = []
        longest = 0.0
        for item, length in zip(items, lengths.tolist(), strict=True):
            longest = max(longest, length)
            full = not batches or len(batches[-1]) == limit.max_utterances
            if full or longest * (len(batches[-1]) + 1) > limit.seconds:
                batches.append([])
                longest = length
            batches[-1].append(item)
        return batches

    def load(self, items: Sequence[Item], epoch: int) -> Batch:
        """One batch, perturbed as drawn for this epoch (not at all outside training)."""
        groups, waveforms = [], []
        for item in items:
            heard = [self.heard(index, item.speed) for index in item.indices]
            groups.append([self.examples[index] for index, _ in heard])
            waveforms.append(self._perturbed([waveform for _, waveform in heard], item, epoch))
        seconds = sum(map(len, waveforms)) / audio.SAMPLE_RATE
        padded = [audio.pad(waveform, *self._padding) for waveform in waveforms]
        stacked = np.zeros((len(padded), max(map(len, padded))), np.float32)
        for row, waveform in zip(stacked, padded, strict=True):
            row[: len(waveform)] = waveform
        token_ids = [self._joined_ids(group) for group in groups]
        return Batch(
            ids=tuple(" + ".join(example.utterance.id for example in group) for group in groups),
            waveforms=torch.from_numpy(stacked),
            lengths=torch.tensor([len(waveform) for waveform in padded]),
            token_ids=torch.tensor([token_id for ids in token_ids for token_id in ids]),
            token_lengths=torch.tensor(list(map(len, token_ids))),
            seconds=seconds,
        )

    def heard(self, index: int, speed: float = 1.0) -> tuple[int, np.ndarray]:
        """An example's number and audio (N,); in training, of the next one that can be used at this speed if it cannot."""
        if index in self._cache or not self._training:
            return index, self.waveform(index)
        for other in (*range(index, len(self.examples)), *range(index)):
            if other not in self._unusable:
                example = self.examples[other]
                try:
                    waveform = self.waveform(other)
                    self._check_length(example, len(waveform) / audio.SAMPLE_RATE / speed)
                    return other, waveform
                except (audio.AudioError, _UnusableError) as error:
                    self._unusable.add(other)
                    self.skipped.append(Skipped(example.utterance.id, str(error)))
        raise audio.AudioError(
            "train: none of the utterances can be read any more; the first: " + self.skipped[0].reason
        )

    def _joined_ids(self, group: Sequence[Example]) -> list[int]:
        """The token ids of several examples, with a space between two if the alphabet has one."""
        ids = list(group[0].token_ids)
        for example in group[1:]:
            ids += [*self._space, *example.token_ids]
        return ids

    def _perturbed(self, waveforms: Sequence[np.ndarray], item: Item, epoch: int) -> np.ndarray:
        """The waveforms joined and, in training, perturbed: (N,)."""
        # A frame of silence between two, for the space between their texts.
        silence = np.zeros(self._padding[1], np.float32)
        waveform = np.concatenate([piece for waveform in waveforms for piece in (silence, waveform)][1:])
        if not self._training:
            return waveform
        settings = self._settings.augment
        rng = np.random.default_rng([self._settings.seed, epoch, item.index])
        if item.speed != 1.0:
            waveform = augment.speed(waveform, item.speed)
        if settings.equaliser_db:
            waveform = augment.equalise(waveform, settings.equaliser_db, rng)
        if self._noises and rng.random() < settings.noise_share:
            waveform = augment.add_noise(waveform, self._noises, settings.snr_db, rng)
        if settings.gain_db != (0.0, 0.0):
            waveform = augment.gain(waveform, settings.gain_db, rng)
        return waveform

    def batches(self, plan: Sequence[Sequence[Item]], epoch: int) -> Iterator[Batch]:
        """The plan's batches in order, loaded by a thread ahead of their use (NumPy, soxr and soundfile release the GIL)."""
        with ThreadPoolExecutor(1) as pool:
            waiting: deque[Future[Batch]] = deque()
            try:
                for items in plan:
                    waiting.append(pool.submit(self.load, items, epoch))
                    if len(waiting) > _AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


class _UnusableError(Exception):
    pass


def _read(utterance: Utterance) -> np.ndarray:
    return audio.read(utterance.audio, offset_s=utterance.offset_s, duration_s=utterance.duration_s)


def _to_int16(waveform: np.ndarray) -> np.ndarray:
    return np.asarray(np.rint(waveform * _INT16).clip(-_INT16, _INT16 - 1), dtype=np.int16)  # exact for 16-bit files
