"""Samples of any kind -> a waveform: what they must be, how channels become one, other sample rates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import soxr
from numpy.lib.stride_tricks import sliding_window_view

from asr.errors import AudioError

SAMPLE_RATE = 16_000  # Hz, the rate of every waveform inside the package
# Hz; below, no speech is left, and one piece of a file with 1 Hz in its header would take 4 GB.
_RATES = 1000, 1_000_000
_MAX_CHANNELS = 64
_MAX_PEAK = 100.0  # of float samples: far above what lossy formats overshoot by, and below 16-bit integers as floats
_MIX_FRAME_S = 0.05  # a microphone's block
_MIX_FRAMES = 20  # of these the last second, by which channels are judged
_DEAD = 1e-3  # a channel this much weaker (30 dB) than the strongest holds no speech of its own
_CANCELS = 0.1  # the mean of channels has so much less energy than that of independent ones: they cancel each other


class Mixer:
    """Several channels -> one, as they come: the mean of those that sound, or the strongest, where the mean would cancel.

    Two channels of opposite phase have a mean of nothing, and one channel of eight would be an eighth as loud as it is.
    Each 0.05 s is judged by the last second, so that the result does not depend on how the samples are cut into pieces.
    """

    def __init__(self, sample_rate: int) -> None:
        self._size = max(1, round(_MIX_FRAME_S * sample_rate))
        self._waiting: np.ndarray | None = None
        self._past: np.ndarray | None = None  # (frames, channels + 2): the energies that the last frames were judged by

    def feed(self, samples: np.ndarray) -> np.ndarray:
        """(n, channels) float32 -> (m,) float32: as much as can be judged now."""
        if samples.shape[1] == 1:
            return np.asarray(samples[:, 0])
        if self._waiting is not None:
            samples = np.concatenate([self._waiting, samples])
        whole = len(samples) - len(samples) % self._size
        self._waiting = samples[whole:]
        return self._mix(samples[:whole].reshape(-1, self._size, samples.shape[1]))

    def flush(self) -> np.ndarray:
        """The rest, less than a frame."""
        if self._waiting is None or not len(self._waiting):
            return np.zeros(0, np.float32)
        rest, self._waiting = self._waiting, None
        return self._mix(rest[None])

    def _mix(self, frames: np.ndarray) -> np.ndarray:
        """(F, size, channels) -> (F * size,)."""
        count, _, channels = frames.shape
        if count == 0:
            return np.zeros(0, np.float32)
        if self._past is None:
            self._past = np.zeros((_MIX_FRAMES - 1, channels + 2))
        energies = np.einsum("fsc,fsc->fc", frames, frames, dtype=np.float64)
        recent = _sums(self._past[:, :channels], energies)
        strongest = recent.argmax(axis=1)
        weights = (recent > _DEAD * recent.max(axis=1, keepdims=True)).astype(np.float64)
        weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1)
        mixed = np.einsum("fsc,fc->fs", frames, weights.astype(np.float32))
        # What the mean has of energy, and what it would have if the channels had nothing to do with each other.
        pair = np.stack(
            [np.einsum("fs,fs->f", mixed, mixed, dtype=np.float64), np.einsum("fc,fc->f", energies, weights**2)], axis=1
        )
        had, independent = _sums(self._past[:, channels:], pair).T
        cancelled = np.flatnonzero(had < _CANCELS * independent)
        mixed[cancelled] = frames[cancelled, :, strongest[cancelled]]
        self._past = np.concatenate([self._past, np.concatenate([energies, pair], axis=1)])[1 - _MIX_FRAMES :]
        return np.asarray(mixed.ravel())


def _sums(past: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(F, k): the sums over each frame and the _MIX_FRAMES - 1 before it."""
    return np.asarray(sliding_window_view(np.concatenate([past, values]), _MIX_FRAMES, axis=0).sum(axis=-1))


class Converter:
    """Samples of one recording, as they come -> a waveform at another rate.

    channel: that one alone, from 0; otherwise all are mixed, see Mixer.
    raises:  AudioError for a rate that no recording has; `feed` for a channel that is not there, and for no samples.
    """

    def __init__(self, rate: float, sample_rate: int = SAMPLE_RATE, channel: int | None = None) -> None:
        check_rate(rate)
        self._mixer, self._channel = Mixer(round(rate)), channel
        self._resampler = None if rate == sample_rate else soxr.ResampleStream(rate, sample_rate, 1, dtype="float32")

    def feed(self, samples: np.ndarray) -> np.ndarray:
        """(n, channels) float32 -> (m,) float32: as much as can be had now."""
        _check_samples(samples, "export the audio again, scaled to that")
        if self._channel is None:
            mono = self._mixer.feed(samples)
        elif self._channel < samples.shape[1]:
            mono = np.ascontiguousarray(samples[:, self._channel])
        else:
            raise AudioError(f"expected channel {self._channel + 1}, got audio of {samples.shape[1]}")
        return mono if self._resampler is None else self._resampler.resample_chunk(mono)

    def flush(self) -> np.ndarray:
        """The rest."""
        last = self._mixer.flush()
        return last if self._resampler is None else self._resampler.resample_chunk(last, last=True)


def convert(
    pieces: Iterable[np.ndarray], rate: int, sample_rate: int = SAMPLE_RATE, channel: int | None = None
) -> Iterator[np.ndarray]:
    """Pieces of a recording through a Converter. raises: AudioError, also that of the pieces, after all that came before."""
    converter = Converter(rate, sample_rate, channel)
    fault: AudioError | None = None
    try:
        for piece in pieces:
            yield converter.feed(piece)
    except AudioError as error:
        fault = error
    yield converter.flush()
    if fault is not None:
        raise fault


def cut(pieces: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same samples in pieces of one size; the last may be shorter. raises: AudioError of the pieces, after all else."""
    waiting: list[np.ndarray] = []
    count = 0
    fault: AudioError | None = None
    try:
        for piece in pieces:
            waiting.append(piece)
            count += len(piece)
            if count >= size:
                joined = np.concatenate(waiting)
                whole = count - count % size
                for start in range(0, whole, size):
                    yield joined[start : start + size]
                waiting, count = [joined[whole:]], count - whole
    except AudioError as error:
        fault = error
    if count:
        yield np.concatenate(waiting)
    if fault is not None:
        raise fault


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """A waveform (N,) at another rate, (N',) float32, by soxr's high-quality filter.

    formula: N' = floor(N * to_rate / from_rate + 1/2).

    >>> resample(np.zeros(8000), 8000, 16000).shape
    (16000,)
    """
    if from_rate == to_rate:
        return np.asarray(waveform, dtype=np.float32)
    return np.asarray(soxr.resample(waveform, from_rate, to_rate), dtype=np.float32)


def as_waveform(samples: Any, sample_rate: float, *, channel: int | None = None) -> np.ndarray:
    """Samples as the package's waveform, see as_samples.

    channel: that one alone, from 0; otherwise all are mixed, see Mixer.
    returns: (N',) float32, mono, 16 kHz.
    raises:  AudioError, as as_samples does, and for a rate that no recording has.

    >>> as_waveform(np.array([0, 16384, -16384], np.int16), 16000).tolist()
    [0.0, 0.5, -0.5]
    """
    check_rate(sample_rate)
    converter = Converter(round(sample_rate), round(sample_rate), channel)
    mono = np.concatenate([converter.feed(as_samples(samples)), converter.flush()])
    return resample(mono, round(sample_rate), SAMPLE_RATE)  # whole: to the last bit as `resample` does it


def as_samples(samples: Any) -> np.ndarray:
    """What stands for samples as (N, channels) float32, full scale +-1.

    samples: (N,) or (N, channels), as an array or what numpy makes one of, such as a list or a tensor; floats with full
             scale +-1, or integers of up to 32 bits with their own full scale. Or bytes: of 16 bits each, little-endian.
    raises:  AudioError if it is empty, of another shape (channels first, say) or type, not finite, or floats that are
             no samples of full scale +-1.
    """
    if isinstance(samples, (bytes, bytearray, memoryview)):
        if len(samples) % 2:
            raise AudioError(f"expected bytes of 16-bit samples, two each, got {len(samples)}")
        samples = np.frombuffer(samples, "<i2")
    try:
        samples = np.asarray(samples)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; tensors on a GPU or with a gradient
        reason = str(error).splitlines()[0]
        raise AudioError(f"expected samples as an array of numbers, got {type(samples).__name__}: {reason}") from None
    if samples.dtype == object and samples.ndim == 0:
        raise AudioError(f"expected samples as an array of numbers, got {type(samples[()]).__name__}")
    if samples.ndim not in (1, 2) or samples.size == 0:
        raise AudioError(f"expected samples of shape (N,) or (N, channels) with N > 0, got {samples.shape}")
    if samples.ndim == 2 and samples.shape[1] > _MAX_CHANNELS:
        raise AudioError(f"expected samples of shape (N, channels), got {samples.shape}; transpose them: samples.T")
    if np.issubdtype(samples.dtype, np.integer):
        limits = np.iinfo(samples.dtype)
        if limits.bits > 32:  # what a list of numbers from a 16-bit file becomes, and then full scale is not known
            raise AudioError(
                f"expected integers of 8, 16 or 32 bits, got {samples.dtype}; say which: np.asarray(samples, np.int16)"
            )
        middle = (limits.max + 1) / 2 if limits.min == 0 else 0  # unsigned audio has its zero in the middle
        samples = (samples - middle) / (middle or -float(limits.min))
    elif not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(f"expected samples that are floats or integers, got {samples.dtype}")
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which the check reports
        samples = np.asarray(samples, dtype=np.float32)
    _check_samples(samples, "divide them by 32768, perhaps")
    return np.asarray(samples[:, None] if samples.ndim == 1 else samples)


class Geometry(NamedTuple):
    """How the frames of a network lie in its samples: each sees receptive_field of them, frame_shift after the one before.

    With the zeros of `pad`, frame t is centred on samples [t * frame_shift, (t + 1) * frame_shift).

    >>> geometry = Geometry(receptive_field=1520, frame_shift=640)
    >>> geometry.frames(len(geometry.pad(np.zeros(16000))))
    25
    """

    receptive_field: int
    frame_shift: int

    @property
    def left(self) -> int:
        """Zeros before a waveform, whatever its length."""
        return (self.receptive_field - self.frame_shift) // 2

    def frames(self, samples: int) -> int:
        """How many frames so many samples, padded already, give."""
        return (samples - self.receptive_field) // self.frame_shift + 1

    def samples(self, frames: int) -> int:
        """How many samples so many frames see together."""
        return self.receptive_field + (frames - 1) * self.frame_shift

    def padding(self, samples: int) -> tuple[int, int]:
        """Zeros before and after so many samples, which then give ceil(samples / frame_shift) frames."""
        return self.left, self.samples(-(-samples // self.frame_shift)) - samples - self.left

    def pad(self, waveform: np.ndarray) -> np.ndarray:
        """A waveform (N,) with its zeros around it."""
        return np.pad(waveform, self.padding(len(waveform)))


def check_rate(rate: float) -> None:
    """raises: AudioError for a sample rate that no recording of speech has, or that is no number."""
    if not isinstance(rate, (int, float, np.number)) or not _RATES[0] <= rate <= _RATES[1] or math.isnan(rate):
        raise AudioError(f"expected a sample rate from {_RATES[0]} to {_RATES[1]} Hz, got {rate}")


def _check_samples(samples: np.ndarray, advice: str) -> None:
    if not np.isfinite(samples).all():
        count = int(np.count_nonzero(~np.isfinite(samples)))
        raise AudioError(f"expected finite samples, got {count} that are NaN or infinite; export the audio again")
    loudest = np.abs(samples).max(initial=0)
    if loudest > _MAX_PEAK:
        raise AudioError(f"expected samples from -1 to 1, got one of {loudest:.1g}; {advice}")
