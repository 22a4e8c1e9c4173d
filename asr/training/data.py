"""Utterances -> batches: what is left out and why, which utterances go together, and their audio, loaded ahead of use."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from asr import audio, manifest
from asr.manifest import Skipped, Utterance
from asr.text import normaliser
from asr.tokens import Tokens, min_frames
from asr.training import augment, config, shards
from asr.training.examples import Example, Examples, UnusableError
from asr.training.pronunciation import Pronunciations

_AHEAD = 8  # batches loaded before they are needed
_LOADERS = 8  # threads: they wait for the disk or for tars elsewhere, or decode
_PLAN = 2**31  # the stream of random numbers that plans an epoch; utterance numbers stay below


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
    """samples: (B, N) int16 as recorded, zeros after each utterance; lengths: (B,) of them; token_ids: (sum of U,)."""

    ids: tuple[str, ...]
    samples: Tensor
    lengths: tuple[int, ...]
    perturbations: tuple[augment.Perturbation, ...]
    token_ids: Tensor
    token_lengths: Tensor
    sounds: Tensor  # (sum of their numbers,)
    sound_lengths: Tensor  # (B,), 0 where they are not known
    seconds: float  # of audio, at the speeds it is played at, without padding


class Corpus:
    """The usable utterances of manifests, with their audio decoded once, or read from tars (`asr.training.shards`).

    skipped: the utterances that cannot be used.
    pronunciations: where the settings ask for them, and this is to train on.
    raises:  ManifestError, ConfigError.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        tokens: Tokens,
        settings: config.Config,
        *,
        geometry: audio.Geometry,
        training: bool,
    ) -> None:
        self._settings, self._training = settings, training
        self._geometry = geometry
        self.skipped: list[Skipped] = []
        normalise = normaliser(settings.data.normaliser)
        chosen = settings.pronunciation if training else None
        self.pronunciations = Pronunciations(chosen.dictionary, normalise) if chosen else None
        example = partial(self._example, tokens=tokens)
        self.examples = Examples.of(manifest.read(paths), normalise, len(tokens), example, self.skipped)
        self._paths = paths
        self._audio: shards.Decoded  # once it is decoded
        self.recordings = augment.read(settings.augment) if training else augment.Recordings()
        self._separator = tokens.separator

    def _example(self, utterance: Utterance, text: str, tokens: Tokens) -> Example:
        token_ids = tuple(tokens.encode(text))
        example = Example(utterance, text, token_ids, self.pronunciations.encode(text) if self.pronunciations else ())
        if not self._training:
            return example
        if not token_ids:
            raise UnusableError("expected text, got none after normalisation")
        if utterance.duration_s > self._settings.data.max_s:
            raise UnusableError(
                f"expected at most data.max_s = {self._settings.data.max_s} s, got {utterance.duration_s:.1f} s"
            )
        self._check_length(example, utterance.duration_s)
        return example

    def _check_length(self, example: Example, duration_s: float) -> None:
        # CTC gives a text that does not fit into the frames zero probability: the loss would be infinite.
        needed, frames = min_frames(example.token_ids), self._frames(duration_s)
        if frames < needed:
            raise UnusableError(
                f"too short for its text: CTC needs {needed} frames for {example.text!r}, the audio gives {frames}"
            )

    def _frames(self, duration_s: float) -> int:
        return round(duration_s * audio.SAMPLE_RATE) // self._geometry.frame_shift

    def decode(self, progress: Callable[[], None] = lambda: None, rank: int = 0, processes: int = 1) -> None:
        """Have the audio decoded, for which see `asr.training.shards.decode`; what cannot be read moves to `skipped`."""
        folder = self._settings.data.cache
        name = self._paths[0].absolute()
        if folder:  # manifests of one name in several folders
            folder /= f"{name.stem}-{hashlib.sha256(str(name).encode()).hexdigest()[:8]}"
        else:
            folder = name.with_suffix(".audio")
        decoded = shards.decode(self.examples.utterances, folder, rank=rank, processes=processes, progress=progress)
        # The manifest's duration may lie; speeds and batches go by the audio's own.
        durations_s = decoded.lengths / audio.SAMPLE_RATE
        usable = np.ones(len(decoded), bool)
        for index, duration_s in enumerate(durations_s.tolist()):
            try:
                if reason := decoded.errors.get(index):
                    raise UnusableError(reason)
                if self._training and self._frames(duration_s) < min_frames(self.examples.token_ids[index]):
                    self._check_length(self.examples[index], duration_s)
            except UnusableError as error:
                self.skipped.append(Skipped(self.examples.utterances[index].id, str(error)))
                usable[index] = False
        kept = np.flatnonzero(usable)
        self.examples, self._audio = self.examples.take(kept, durations_s[kept]), decoded.take(kept)

    def waveform(self, index: int) -> np.ndarray:
        """(N,) float32, as recorded."""
        return self._audio.samples(index).astype(np.float32) / np.float32(audio.FULL_SCALE)

    def plan(self, epoch: int, *, by_length: bool, batch: config.Batch | None = None) -> list[list[Item]]:
        """Which utterances form which batch of this epoch: the same answer at every call.

        by_length: short ones first, in order (SortaGrad); otherwise batches of similar lengths in random order.
        batch:     how large they are, if not as the settings say.
        """
        rng = np.random.default_rng([self._settings.seed, epoch, _PLAN])
        groups = self._join(0.0 if by_length else self._settings.augment.join_share, rng)
        items = [Item(group[0], self._draw_speed(group, rng), group[1:]) for group in groups]
        lengths = np.array([self._duration_s(item.indices) / item.speed for item in items])
        # Lengths are blurred by a few per cent, so that an utterance's company changes from epoch to epoch.
        keys = lengths if by_length else lengths * rng.uniform(0.9, 1.1, len(lengths))
        order = np.argsort(keys, kind="stable")
        batches = self._pack([items[i] for i in order], lengths[order], batch or self._settings.batch)
        return batches if by_length else [batches[index] for index in rng.permutation(len(batches))]

    def _join(self, share: float, rng: np.random.Generator) -> list[tuple[int, ...]]:
        """Every example once: alone, or, a share of them, in a group that is heard as one utterance."""
        if not share:
            return [(index,) for index in range(len(self.examples))]
        groups: list[tuple[int, ...]] = []
        length_s = 0.0
        for index in map(int, rng.permutation(len(self.examples))):
            length_s += self._duration_s((index,))
            if groups and rng.random() < share and length_s <= self._settings.data.max_s:
                groups[-1] += (index,)
            else:
                groups.append((index,))
                length_s = self._duration_s((index,))
        return groups

    def _duration_s(self, indices: Sequence[int]) -> float:
        silence_s = self._geometry.frame_shift / audio.SAMPLE_RATE  # between two that are joined
        return float(sum(map(self.examples.durations_s.item, indices))) + (len(indices) - 1) * silence_s

    def largest(self) -> Batch:
        """The longest utterance there can be, played as slowly as it may be, as often as a batch holds it."""
        numbers = np.argsort(-self.examples.durations_s, kind="stable").tolist()
        chosen = numbers[:1]
        if self._settings.augment.join_share:
            for index in numbers[1:]:
                if self._duration_s((*chosen, index)) <= self._settings.data.max_s:
                    chosen.append(index)
        item = Item(chosen[0], min(self._settings.augment.speed), tuple(chosen[1:]))
        limit = self._settings.batch
        fits = int(limit.seconds / (self._duration_s(item.indices) / item.speed))
        return self.load([item] * max(1, min(fits, limit.max_utterances)), 0)

    def tokens(self, items: Sequence[Item]) -> int:
        """How many tokens a batch has."""
        lengths = self.examples.token_ids.lengths
        own = int(sum(lengths.item(index) for item in items for index in item.indices))
        return own + len(self._separator) * sum(len(item.joined) for item in items)

    def in_order(self) -> list[list[Item]]:
        """Every utterance once as recorded, in batches of similar lengths, for evaluation."""
        lengths = self.examples.durations_s
        order = np.argsort(lengths, kind="stable")
        return self._pack([Item(int(index)) for index in order], lengths[order], self._settings.batch)

    def _draw_speed(self, indices: Sequence[int], rng: np.random.Generator) -> float:
        speeds = self._settings.augment.speed
        factor = float(speeds[rng.integers(len(speeds))])
        # A speed that would leave fewer frames than CTC needs is not used.
        needed = min_frames(self._join_ids(indices))
        return factor if self._frames(self._duration_s(indices) / factor) >= needed else 1.0

    def _pack(self, items: Sequence[Item], lengths: np.ndarray, limit: config.Batch) -> list[list[Item]]:
        """Cut a list into batches whose padded total stays within limit.seconds; a longer utterance goes alone."""
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
        """One batch, with the perturbations drawn for this epoch (none outside training)."""
        # A frame of silence between two that are joined, for the space between their texts.
        silence = np.zeros(self._geometry.frame_shift, np.int16)
        found = self._audio.several(index for item in items for index in item.indices)
        rows = [[piece for index in item.indices for piece in (silence, found[index])][1:] for item in items]
        lengths = tuple(sum(map(len, row)) for row in rows)
        # In memory that the GPU, if there is one, can fetch by itself.
        samples = torch.zeros(len(rows), max(lengths), dtype=torch.int16, pin_memory=torch.cuda.is_available())
        for line, row, length in zip(samples.numpy(), rows, lengths, strict=True):
            np.concatenate(row, out=line[:length])
        token_ids = [self._join_ids(item.indices) for item in items]
        sounds = [self._join_sounds(item.indices) for item in items]
        return Batch(
            ids=tuple(" + ".join(self.examples.utterances[index].id for index in item.indices) for item in items),
            samples=samples,
            lengths=lengths,
            perturbations=tuple(self._draw(item, epoch) for item in items),
            token_ids=torch.tensor([token_id for ids in token_ids for token_id in ids]),
            token_lengths=torch.tensor(list(map(len, token_ids))),
            sounds=torch.tensor([sound for group in sounds for sound in group], dtype=torch.long),
            sound_lengths=torch.tensor(list(map(len, sounds))),
            seconds=sum(length / item.speed for length, item in zip(lengths, items, strict=True)) / audio.SAMPLE_RATE,
        )

    def _draw(self, item: Item, epoch: int) -> augment.Perturbation:
        if not self._training:
            return augment.Perturbation()
        rng = np.random.default_rng([self._settings.seed, epoch, item.index])
        return augment.draw(self._settings.augment, item.speed, rng)

    def _join_ids(self, indices: Sequence[int]) -> list[int]:
        """The token ids of several examples, with a space between two if the vocabulary has one."""
        ids = list(self.examples.token_ids[indices[0]])
        for index in indices[1:]:
            ids += [*self._separator, *self.examples.token_ids[index]]
        return ids

    def _join_sounds(self, indices: Sequence[int]) -> tuple[int, ...]:
        """The sounds of several examples, which are as good as one after another; none if those of one are not known."""
        each = [self.examples.sounds[index] for index in indices]
        return tuple(sound for sounds in each for sound in sounds) if all(each) else ()

    def heard(
        self, batch: Batch, device: torch.device, recordings: augment.Recordings | None = None
    ) -> tuple[Tensor, list[int]]:
        """The waveforms of a batch as the network hears them, on its device.

        recordings: the corpus's, on that device.
        returns:    waveforms (B, N) float32, perturbed, and padded as `Geometry.pad` does it; and their lengths in
                    samples with that padding.
        """
        waveforms = batch.samples.to(device, non_blocking=True).float() / audio.FULL_SCALE
        waveforms, lengths = augment.apply(
            waveforms, batch.lengths, batch.perturbations, recordings or augment.Recordings()
        )
        around = [self._geometry.padding(length) for length in lengths]
        padded = [left + length + right for length, (left, right) in zip(lengths, around, strict=True)]
        left = around[0][0]  # the same for all
        return nn.functional.pad(waveforms, (left, max(padded) - left - waveforms.shape[1])), padded

    def batches(self, plan: Sequence[Sequence[Item]], epoch: int) -> Iterator[Batch]:
        """The plan's batches in order, loaded by threads ahead of their use (copying releases the GIL)."""
        with ThreadPoolExecutor(_LOADERS) as pool:
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
