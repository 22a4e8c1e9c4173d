"""Perturbations of the training audio. Each takes its own random generator, so that a resumed training draws the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torchaudio.functional as AF
from torch import Tensor

from asr import audio
from asr.training import config

_FFT_MULTIPLE = 1 << 12  # samples: sizes with small prime factors are transformed several times faster
_OCTAVES = [125 * 2**i for i in range(7)]  # Hz


def speed(waveform: np.ndarray, factor: float) -> np.ndarray:
    """(N,) -> (round(N / factor),): faster and higher for factor > 1, slower and lower below (Ko et al. 2015)."""
    return audio.resample(waveform, round(audio.SAMPLE_RATE * factor), audio.SAMPLE_RATE)


def gain(waveform: np.ndarray, range_db: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """(N,) louder or softer by a gain drawn from the range; not clipped, since features take any level."""
    return waveform * np.float32(10 ** (rng.uniform(*range_db) / 20))


def equalise(waveform: np.ndarray, most_db: float, rng: np.random.Generator) -> np.ndarray:
    """(N,) through a random equaliser, as another microphone or room would colour it.

    Its gain is drawn from +-most_db at each octave from 125 Hz to 8 kHz, and linear in between.
    source: Nam et al. 2022, "FilterAugment: An acoustic environmental data augmentation method".
    """
    size = -(-len(waveform) // _FFT_MULTIPLE) * _FFT_MULTIPLE
    spectrum = np.fft.rfft(waveform, size)
    frequencies = np.fft.rfftfreq(size, 1 / audio.SAMPLE_RATE)
    gains_db = np.interp(frequencies, _OCTAVES, rng.uniform(-most_db, most_db, len(_OCTAVES)))
    return np.fft.irfft(spectrum * 10 ** (gains_db / 20), size)[: len(waveform)].astype(np.float32)


def add_noise(
    waveform: np.ndarray, noises: list[np.ndarray], snr_db: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """(N,) with a random stretch of a random noise added, at a signal-to-noise ratio drawn from the range."""
    noise = noises[rng.integers(len(noises))]
    start = rng.integers(len(noise))
    stretch = np.take(noise, np.arange(start, start + len(waveform)), mode="wrap")  # short noise is repeated
    signal_power, noise_power = float(np.mean(waveform**2)), float(np.mean(stretch**2))
    if noise_power == 0:
        return waveform
    scale = np.sqrt(signal_power / noise_power / 10 ** (rng.uniform(*snr_db) / 10))
    return waveform + np.float32(scale) * stretch


def read_noises(folder: Path) -> list[np.ndarray]:
    """Every recording in the folder. raises: ConfigError if there is none."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in audio.SUFFIXES)
    if not paths:
        raise config.ConfigError(f"augment.noise: expected a folder with recordings of noise, found none in {folder}")
    return [audio.read(path) for path in paths]


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
