"""Perturbations of the training audio: drawn on the host for each utterance, so that a resumed training draws the same,
and applied to whole batches where the network is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torchaudio.functional as AF
from torch import Tensor

from asr import audio
from asr.training import config

_FFT_MULTIPLE = 1 << 12  # samples: sizes with small prime factors are transformed several times faster
_OCTAVES = tuple(125 * 2**i for i in range(7))  # Hz


@dataclass(frozen=True, slots=True)
class Perturbation:
    """What happens to one utterance.

    speed:      faster and higher above 1, slower and lower below (Ko et al. 2015, "Audio augmentation").
    octaves_db: gains of an equaliser at the octaves from 125 Hz to 8 kHz, linear in between; none: flat.
    noise:      a share of the recordings of noise, 0 to 1, where the stretch that is added begins; and the ratio in dB.
    gain_db:    of the whole, noise too; not clipped, since features take any level.
    """

    speed: float = 1.0
    octaves_db: tuple[float, ...] = ()
    noise: tuple[float, float] | None = None
    gain_db: float = 0.0


def draw(settings: config.Augment, speed: float, rng: np.random.Generator) -> Perturbation:
    """A perturbation within the settings' ranges, at a speed that is drawn already.

    source: Nam et al. 2022, "FilterAugment: An acoustic environmental data augmentation method", for the equaliser.
    """
    most_db = settings.equaliser_db
    octaves_db = tuple(rng.uniform(-most_db, most_db, len(_OCTAVES)).tolist()) if most_db else ()
    noisy = settings.noise is not None and rng.random() < settings.noise_share
    noise = (float(rng.random()), float(rng.uniform(*settings.snr_db))) if noisy else None
    return Perturbation(speed, octaves_db, noise, float(rng.uniform(*settings.gain_db)))


def read_noises(folder: Path) -> Tensor:
    """Every recording in the folder, one after another, (N,) float32. raises: ConfigError if there is none."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in audio.SUFFIXES)
    if not paths:
        raise config.ConfigError(f"augment.noise: expected a folder with recordings of noise, found none in {folder}")
    return torch.from_numpy(np.concatenate([audio.read(path) for path in paths]))


def apply(
    waveforms: Tensor, lengths: Sequence[int], perturbations: Sequence[Perturbation], noises: Tensor | None
) -> tuple[Tensor, list[int]]:
    """A batch, perturbed. (B, N) float32 with zeros after each length -> likewise, and the new lengths.

    noises: as `read_noises`, on the same device.
    """
    waveforms, new_lengths = _change_speed(waveforms, lengths, [one.speed for one in perturbations])
    if any(one.octaves_db for one in perturbations):
        flat = (0.0,) * len(_OCTAVES)
        waveforms = _equalise(waveforms, [one.octaves_db or flat for one in perturbations])
    if noises is not None and any(one.noise for one in perturbations):
        waveforms = _add_noise(waveforms, new_lengths, [one.noise for one in perturbations], noises)
    if any(one.gain_db for one in perturbations):
        waveforms = waveforms * _tensor([10 ** (one.gain_db / 20) for one in perturbations], waveforms)[:, None]
    return waveforms * _inside(waveforms, new_lengths), new_lengths


def _change_speed(waveforms: Tensor, lengths: Sequence[int], speeds: Sequence[float]) -> tuple[Tensor, list[int]]:
    new_lengths = [max(1, round(length / speed)) for length, speed in zip(lengths, speeds, strict=True)]
    if set(speeds) == {1.0}:
        return waveforms, new_lengths
    changed = waveforms.new_zeros(len(waveforms), max(new_lengths))
    for speed in sorted(set(speeds)):
        rows = [row for row, own in enumerate(speeds) if own == speed]
        longest = max(lengths[row] for row in rows)
        # Played at another speed is: recorded at that share of the rate, and resampled.
        rate = Fraction(speed).limit_denominator(100)
        faster = AF.resample(waveforms[rows, :longest], rate.numerator, rate.denominator)[:, : changed.shape[1]]
        changed[rows, : faster.shape[1]] = faster
    return changed, new_lengths


def _equalise(waveforms: Tensor, octaves_db: Sequence[tuple[float, ...]]) -> Tensor:
    size = -(-waveforms.shape[1] // _FFT_MULTIPLE) * _FFT_MULTIPLE
    # Between two octaves the gain is a weighted mean of theirs: one matrix product makes the curves of all utterances.
    gains_db = _tensor(octaves_db, waveforms) @ _octave_weights(size).to(waveforms.device)
    spectrum = torch.fft.rfft(waveforms, size) * torch.exp(gains_db * (math.log(10) / 20))
    equalised: Tensor = torch.fft.irfft(spectrum, size)[:, : waveforms.shape[1]]
    return equalised


@lru_cache(maxsize=64)  # there are few sizes: multiples of _FFT_MULTIPLE
def _octave_weights(size: int) -> Tensor:
    """The weight of each octave's gain at each frequency of a transform, (octaves, size / 2 + 1) float32."""
    frequencies = np.fft.rfftfreq(size, 1 / audio.SAMPLE_RATE)
    weights = np.stack([np.interp(frequencies, _OCTAVES, one) for one in np.eye(len(_OCTAVES))])
    return torch.from_numpy(weights.astype(np.float32))


def _add_noise(
    waveforms: Tensor, lengths: Sequence[int], noises: Sequence[tuple[float, float] | None], recordings: Tensor
) -> Tensor:
    """Each waveform with a stretch of the recordings added, which begin anew where they end."""
    total = len(recordings)
    starts = torch.tensor([int((noise or (0.0, 0.0))[0] * total) for noise in noises], device=waveforms.device)
    columns = torch.arange(waveforms.shape[1], device=waveforms.device)
    stretches = recordings[(starts[:, None] + columns) % total] * _inside(waveforms, lengths)
    ratios = _tensor([10 ** (noise[1] / 10) if noise else np.inf for noise in noises], waveforms)
    energy, noise_energy = waveforms.square().sum(1), stretches.square().sum(1)
    scales = torch.where(noise_energy > 0, (energy / noise_energy.clamp(min=1e-20) / ratios).sqrt(), 0.0)
    return waveforms + scales[:, None] * stretches


def _inside(waveforms: Tensor, lengths: Sequence[int]) -> Tensor:
    """(B, N) bool: which samples belong to the utterances."""
    ends = torch.tensor(lengths, device=waveforms.device)
    return torch.arange(waveforms.shape[1], device=waveforms.device) < ends[:, None]


def _tensor(values: Sequence[float] | Sequence[tuple[float, ...]], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)


def spec_augment(features: Tensor, settings: config.SpecAugment) -> Tensor:
    """(B, T, F) normalised features with random bands of rows and stretches of frames set to 0, their mean.

    Draws from torch's global generator. source: Park et al. 2019, "SpecAugment".
    """
    time, frequency = 1, 2
    for _ in range(settings.freq_masks):
        features = AF.mask_along_axis_iid(features, settings.freq_width, 0.0, frequency)
    for _ in range(settings.time_masks):
        features = AF.mask_along_axis_iid(features, settings.time_width, 0.0, time, p=settings.time_share)
    return features
