"""Perturbations of the training audio: drawn on the host for each utterance, so that a resumed training draws the same,
and applied to whole batches where the network is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torchaudio.functional as AF
from torch import Tensor, nn

from asr import audio
from asr.errors import AudioError, ConfigError
from asr.training import config

_FFT_MULTIPLE = 1 << 12  # samples: sizes with small prime factors are transformed several times faster
_OCTAVES = tuple(125 * 2**i for i in range(7))  # Hz
_LONGEST_ROOM = audio.SAMPLE_RATE // 2  # samples after the direct sound; reverberation of 1 s is 30 dB down by then
_LEAD = 32  # samples before the peak of the direct sound: band-limited, it begins there
_RINGING = 1600  # samples around an impulse in which a band's filter dies away
_HIGH_PASS_HZ = 100.0, 300.0
_LOW_PASS_HZ = 3400.0, 7000.0  # from a telephone's to a low-rate codec's
_MU = 255  # of G.711


@dataclass(frozen=True, slots=True)
class Band:
    """What a telephone or a codec lets through: from low_hz (0: no limit) to high_hz; mu_law: in 8 bits, as G.711."""

    low_hz: float
    high_hz: float
    mu_law: bool


@dataclass(frozen=True, slots=True)
class Perturbation:
    """What happens to one utterance.

    speed:      faster and higher above 1, slower and lower below (Ko et al. 2015, "Audio augmentation").
    octaves_db: gains of an equaliser at the octaves from 125 Hz to 8 kHz, linear in between; none: flat.
    noise:      a share of the recordings of noise, 0 to 1, where the stretch that is added begins; and the ratio in dB.
    gain_db:    of the whole, noise too; not clipped, since features take any level.
    room:       a share of the impulse responses, 0 to 1: which one.
    band:       of the whole, noise too.
    """

    speed: float = 1.0
    octaves_db: tuple[float, ...] = ()
    noise: tuple[float, float] | None = None
    gain_db: float = 0.0
    room: float | None = None
    band: Band | None = None


@dataclass(frozen=True, slots=True)
class Recordings:
    """What utterances are perturbed with. noises: as `read_noises`; rooms: as `read_rooms`; None: of no use here."""

    noises: Tensor | None = None
    rooms: Tensor | None = None

    def to(self, device: torch.device) -> Recordings:
        noises, rooms = (None if one is None else one.to(device) for one in (self.noises, self.rooms))
        return Recordings(noises, rooms)


def draw(settings: config.Augment, speed: float, rng: np.random.Generator) -> Perturbation:
    """A perturbation within the settings' ranges, at a speed that is drawn already.

    source: Nam et al. 2022, "FilterAugment: An acoustic environmental data augmentation method", for the equaliser.
    """
    most_db = settings.equaliser_db
    octaves_db = tuple(rng.uniform(-most_db, most_db, len(_OCTAVES)).tolist()) if most_db else ()
    noisy = settings.noise is not None and rng.random() < settings.noise_share
    noise = (float(rng.random()), float(rng.uniform(*settings.snr_db))) if noisy else None
    gain_db = float(rng.uniform(*settings.gain_db))
    # Drawn after all else and only if asked for: with these settings or without, the rest is drawn as it was.
    room = float(rng.random()) if settings.rooms is not None and rng.random() < settings.rooms_share else None
    band = _draw_band(rng) if settings.band_share and rng.random() < settings.band_share else None
    return Perturbation(speed, octaves_db, noise, gain_db, room, band)


def _draw_band(rng: np.random.Generator) -> Band:
    low_hz = float(rng.uniform(*_HIGH_PASS_HZ)) if rng.random() < 0.5 else 0.0
    return Band(low_hz, float(rng.uniform(*_LOW_PASS_HZ)), bool(rng.random() < 0.5))


def read(settings: config.Augment) -> Recordings:
    """The recordings that the settings name. raises: ConfigError."""
    return Recordings(
        noises=read_noises(settings.noise) if settings.noise else None,
        rooms=read_rooms(settings.rooms) if settings.rooms else None,
    )


def read_noises(folder: Path) -> Tensor:
    """Every recording in the folder, one after another, (N,) float32. raises: ConfigError, also if there is none."""
    return torch.from_numpy(np.concatenate([samples for _, samples in _recordings(folder, "noise")]))


def read_rooms(folder: Path) -> Tensor:
    """Every impulse response in the folder, (R, T) float32, T <= 0.5 s: direct sound at _LEAD, energy 1, zeros at the end.

    Of energy 1, and not with a direct sound of 1: a room is to change how speech sounds, not how loud it is, and what is
    recorded is set to a level with the room's share in it. The end is where the response has decayed by 60 dB.
    raises: ConfigError, also if there is none, or one is silent or of several channels.
    """
    responses = []
    for path, recorded in _recordings(folder, "rooms"):
        if (channels := audio.info(path).channels) != 1:  # read as their mean, which is the response of no room
            raise ConfigError(f"augment.rooms: {path}: expected one channel, got {channels}; split or remove it")
        samples = np.pad(recorded.astype(np.float64), (_LEAD, 0))
        peak = int(np.abs(samples).argmax())
        if not samples[peak]:
            raise ConfigError(f"augment.rooms: {path}: expected an impulse response, got silence; remove it")
        response = samples[peak - _LEAD : peak + _LONGEST_ROOM]
        to_come = np.cumsum(response[::-1] ** 2)[::-1]  # energy (Schroeder 1965)
        responses.append(response[to_come > 1e-6 * to_come[0]] / math.sqrt(to_come[0]))
    rooms = np.zeros((len(responses), max(map(len, responses))), np.float32)
    for row, response in zip(rooms, responses, strict=True):
        row[: len(response)] = response
    return torch.from_numpy(rooms)


def _recordings(folder: Path, setting: str) -> Iterator[tuple[Path, np.ndarray]]:
    """Every recording in the folder and those below it, (N,) float32, in the order of their paths."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in audio.SUFFIXES)
    if not paths:
        raise ConfigError(f"augment.{setting}: expected a folder with recordings, found none in {folder}")
    for path in paths:
        try:
            samples = audio.read(path)
        except AudioError as error:
            raise ConfigError(f"augment.{setting}: {error}; replace or remove it") from None
        yield path, samples


def apply(
    waveforms: Tensor, lengths: Sequence[int], perturbations: Sequence[Perturbation], recordings: Recordings
) -> tuple[Tensor, list[int]]:
    """A batch, perturbed. (B, N) float32 with zeros after each length -> likewise, and the new lengths.

    In the order in which it happens to speech: the voice, its way to the microphone, noise there, what it is sent through.
    The equaliser, which is linear as the room is, shares the room's transform, and leaves the noise as it was recorded.
    recordings: on the same device.
    """
    waveforms, new_lengths = _change_speed(waveforms, lengths, [one.speed for one in perturbations])
    waveforms = _filter(waveforms, new_lengths, perturbations, recordings.rooms)
    if recordings.noises is not None and any(one.noise for one in perturbations):
        waveforms = _add_noise(waveforms, new_lengths, [one.noise for one in perturbations], recordings.noises)
    waveforms = _limit_bands(waveforms, [one.band for one in perturbations])
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


def _filter(
    waveforms: Tensor, lengths: Sequence[int], perturbations: Sequence[Perturbation], rooms: Tensor | None
) -> Tensor:
    """Rooms and equalisers, as one product of spectra for the utterances that have either."""
    rows = [row for row, one in enumerate(perturbations) if one.octaves_db or one.room is not None]
    if not rows:
        return waveforms
    own = [perturbations[row] for row in rows]
    placed = {row: one.room for row, one in enumerate(own) if one.room is not None}
    # The responses are shorter than what is added for them, so that no end comes back at the beginning.
    size = _transform_size(waveforms.shape[1] + (rooms.shape[1] if rooms is not None and placed else 0))
    spectrum = torch.fft.rfft(waveforms[rows], size)
    if any(one.octaves_db for one in own):
        flat = (0.0,) * len(_OCTAVES)
        # Between two octaves the gain is a weighted mean of theirs: one matrix product makes the curves of all utterances.
        gains_db = _tensor([one.octaves_db or flat for one in own], waveforms)
        gains_db = gains_db @ _octave_weights(size).to(waveforms.device)
        spectrum *= torch.exp(gains_db * (math.log(10) / 20))
    if rooms is not None and placed:
        responses = rooms[[int(room * len(rooms)) for room in placed.values()]]
        # The lead goes to the end, which in a transform is before the beginning: words stay where they are.
        responses = nn.functional.pad(responses, (0, size - responses.shape[1])).roll(-_LEAD, 1)
        spectrum[list(placed)] *= torch.fft.rfft(responses)
    filtered: Tensor = torch.fft.irfft(spectrum, size)[:, : waveforms.shape[1]]
    if placed:  # what reverberates after the end is not to count as the utterance's when noise is added
        filtered = filtered * _inside(filtered, [lengths[row] for row in rows])
    return _with_rows(waveforms, rows, filtered)


def _with_rows(waveforms: Tensor, rows: Sequence[int], new: Tensor) -> Tensor:
    if len(rows) == len(waveforms):
        return new
    changed = waveforms.clone()
    changed[rows] = new
    return changed


def _transform_size(samples: int) -> int:
    return -(-samples // _FFT_MULTIPLE) * _FFT_MULTIPLE


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


def _limit_bands(waveforms: Tensor, bands: Sequence[Band | None]) -> Tensor:
    """Each waveform in 8 bits and filtered, as its band says. The filters: Butterworth's, without their delay."""
    limits = {row: band for row, band in enumerate(bands) if band is not None}
    if not limits:
        return waveforms
    rows = list(limits)
    own = waveforms[rows]
    coded = [row for row, band in enumerate(limits.values()) if band.mu_law]
    # Before the filter, not after it: it takes away the error above the band, as a receiver's filter does.
    own[coded] = _mu_law(own[coded])
    size = _transform_size(own.shape[1] + _RINGING)
    hertz = torch.fft.rfftfreq(size, 1 / audio.SAMPLE_RATE, device=own.device).clamp(min=1e-3)
    cutoffs = _tensor([(band.low_hz, band.high_hz) for band in limits.values()], own)
    gains = ((1 + (cutoffs[:, :1] / hertz) ** 8) * (1 + (hertz / cutoffs[:, 1:]) ** 48)).rsqrt()  # 4th and 24th order
    return _with_rows(waveforms, rows, torch.fft.irfft(torch.fft.rfft(own, size) * gains, size)[:, : own.shape[1]])


def _mu_law(waveforms: Tensor) -> Tensor:
    """(B, N), each as 8 bits hold it when its peak is full scale. source: ITU-T G.711; its curve, not its 15 chords."""
    peaks = waveforms.abs().amax(1, keepdim=True).clamp(min=1e-20)
    levels = torch.log1p(waveforms.abs() / peaks * _MU) * (127 / math.log1p(_MU))
    magnitudes = torch.expm1(levels.round() * (math.log1p(_MU) / 127)) / _MU
    return magnitudes.copysign(waveforms) * peaks


def _inside(waveforms: Tensor, lengths: Sequence[int]) -> Tensor:
    """(B, N) bool: which samples belong to the utterances."""
    ends = torch.tensor(lengths, device=waveforms.device)
    return torch.arange(waveforms.shape[1], device=waveforms.device) < ends[:, None]


def _tensor(values: Sequence[float] | Sequence[tuple[float, ...]] | np.ndarray, like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)


def spec_augment(features: Tensor, settings: config.SpecAugment) -> Tensor:
    """(B, T, F) features with random bands of rows and stretches of frames set to the utterance's mean.

    Draws from torch's global generator. source: Park et al. 2019, "SpecAugment".
    """
    time, frequency = 1, 2
    heard = torch.ones_like(features)
    for _ in range(settings.freq_masks):
        heard = AF.mask_along_axis_iid(heard, settings.freq_width, 0.0, frequency)
    for _ in range(settings.time_masks):
        heard = AF.mask_along_axis_iid(heard, settings.time_width, 0.0, time, p=settings.time_share)
    # The mean is about 0, but for a pre-trained encoder, which sets the level later.
    return torch.where(heard > 0, features, features.mean(dim=(time, frequency), keepdim=True))


def stretch_frequencies(features: Tensor, share: float, settings: config.Features) -> Tensor:
    """(B, T, n_mels) with the frequency axis of each utterance stretched by a factor from 1 - share to 1 + share.

    Below 80 % of the highest frequency by the factor itself, from there linearly to the highest, which stays where it is.
    Draws from torch's global generator.
    source: Jaitly & Hinton 2013, "Vocal Tract Length Perturbation (VTLP) improves speech recognition".
    """
    low, high = _mel(np.array([settings.f_min, settings.f_max])).tolist()
    middles = np.linspace(low, high, settings.n_mels + 2)[1:-1]
    middles = np.where(middles < 15, middles * 200 / 3, 1000 * np.exp((middles - 15) * math.log(6.4) / 27))  # Hz
    factors = 1 + share * (2 * torch.rand(len(features), 1).numpy() - 1)
    knees = 0.8 * settings.f_max / np.maximum(factors, 1)
    slopes = (settings.f_max - factors * knees) / (settings.f_max - knees)
    heard = np.where(middles <= knees, factors * middles, settings.f_max - slopes * (settings.f_max - middles))
    places = np.interp(heard, middles, np.arange(settings.n_mels))  # (B, n_mels), as indices; the outermost stay inside
    weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(settings.n_mels)[:, None]))
    return features @ _tensor(weights, features)


def _mel(hertz: np.ndarray) -> np.ndarray:
    """Slaney's scale, which the features have: linear up to 1 kHz, logarithmic above."""
    return np.where(hertz < 1000, hertz * 3 / 200, 15 + 27 / math.log(6.4) * np.log(np.maximum(hertz, 1000) / 1000))
