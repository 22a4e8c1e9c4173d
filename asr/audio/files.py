"""Audio files and pipes -> mono float32 at 16 kHz, whole or in blocks.

soundfile reads wav, flac, ogg, opus and mp3; `containers` the sound of m4a and video, `pipe` what comes through a pipe;
soxr resamples. Channels are averaged. What cannot be trusted (empty, cut short, not audio, NaN samples) is an
`AudioError`, never a guess.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from asr.audio import containers, pipe
from asr.errors import AsrError

SAMPLE_RATE = 16_000  # Hz, the rate of every waveform inside the package
_SOUNDFILE_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".oga", ".mp3", ".aiff", ".aif", ".au", ".w64", ".caf")
# Also without PyAV: a folder's recording that cannot be read is reported with what to install, not passed over.
SUFFIXES = _SOUNDFILE_SUFFIXES + containers.SUFFIXES
_BLOCK_S = 10.0
# Files are decoded in these pieces (frames), whatever the caller asks for: libsndfile decodes Opus wrongly when asked
# for less than a packet (0.12 s) at a time, and the last bit of an MP3's samples depends on where the pieces are cut.
_PIECE = 1 << 16
_LEAST_PIECE = 1 << 13
# An MP3 announces up to two frames of 1152 samples more than it decodes to (at most 1344 seen in 2241 real ones).
_MP3_SURPLUS = 2304
_MAX_CHANNELS = 64
_MAX_PEAK = 100.0  # of float samples: far above what lossy formats overshoot by, and below 16-bit integers as floats
_MIN_RATE = 1000  # Hz; no speech is left below, and one piece of a file with 1 Hz in its header would take 4 GB
_UNKNOWN_LENGTH = 1 << 48  # frames; libsndfile gives 2^63 - 1 where the header has no length


class AudioError(AsrError):
    """Audio that cannot be read, or a waveform that cannot be used."""


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What a file's header says. duration_s: seconds (for mp3 and containers within 0.1 s); sample_rate: Hz."""

    duration_s: float
    sample_rate: int
    channels: int
    format: str


def info(path: str | Path) -> AudioInfo:
    """Duration, rate, channels and format from the header; no samples are decoded. raises: AudioError."""
    path = Path(path)
    if _checked(path):
        with _named(path), containers.opened(path) as track:
            return AudioInfo(track.duration_s(), track.sample_rate, track.channels, track.format)
    with _opened(path) as file:
        return AudioInfo(file.frames / file.samplerate, file.samplerate, file.channels, f"{file.format}/{file.subtype}")


def read(
    path: str | Path, *, offset_s: float = 0.0, duration_s: float | None = None, sample_rate: int = SAMPLE_RATE
) -> np.ndarray:
    """One file, or the part of it from offset_s on, as a waveform.

    returns: (N,) float32, mono, full scale +-1, at sample_rate Hz whatever the file's own rate; it ends with the file
             if duration_s reaches beyond that.
    raises:  AudioError if the file is missing, unreadable, empty, not audio, cut short, or holds NaN or infinite
             samples, or has no such part.
    """
    return np.concatenate(list(_pieces(Path(path), offset_s, duration_s, sample_rate)))


def blocks(
    path: str | Path,
    *,
    block_s: float = _BLOCK_S,
    offset_s: float = 0.0,
    duration_s: float | None = None,
    sample_rate: int = SAMPLE_RATE,
) -> Iterator[np.ndarray]:
    """The waveform of `read` in pieces of block_s seconds: a file of any length in bounded memory.

    yields: (n,) float32, n = round(block_s * sample_rate), the last may be shorter; joined they equal `read`'s result.
    """
    yield from _cut(_pieces(Path(path), offset_s, duration_s, sample_rate), block_s, sample_rate)


def pipe_blocks(file: BinaryIO, *, rate: int | None = None, block_s: float = _BLOCK_S) -> Iterator[np.ndarray]:
    """The waveform from a pipe such as sys.stdin.buffer, in pieces of block_s seconds, each as soon as it is there.

    rate:   Hz of raw samples, signed 16-bit little-endian, one channel; None for a stream with a wav header, as ffmpeg,
            sox and arecord write it.
    yields: (n,) float32, 16 kHz, n = round(block_s * 16000), the last may be shorter.
    raises: AudioError if the stream is empty, not wav, compressed, holds NaN or infinite samples, or, after all that
            came, if it ended before the length in its header.
    """
    with _named("the pipe"):
        stream = pipe.Stream(file, rate)
        pieces = _resampled(stream.samples(), stream.sample_rate, SAMPLE_RATE, "the pipe")
        yield from _cut(pieces, block_s, SAMPLE_RATE)
        stream.finish()


def _cut(pieces: Iterable[np.ndarray], block_s: float, sample_rate: int) -> Iterator[np.ndarray]:
    """The same samples in pieces of block_s seconds, the last may be shorter."""
    size = max(1, round(block_s * sample_rate))
    waiting: list[np.ndarray] = []
    count = 0
    for piece in pieces:
        waiting.append(piece)
        count += len(piece)
        if count >= size:
            joined = np.concatenate(waiting)
            whole = count - count % size
            for start in range(0, whole, size):
                yield joined[start : start + size]
            waiting, count = [joined[whole:]], count - whole
    if count:
        yield np.concatenate(waiting)


def _pieces(path: Path, offset_s: float, duration_s: float | None, sample_rate: int) -> Iterator[np.ndarray]:
    """The work of `read` and `blocks`: the waveform in pieces of any length, at least one sample in all."""
    if not 0 <= offset_s < math.inf or (duration_s is not None and not 0 < duration_s < math.inf):
        raise AudioError(f"{path}: expected an offset >= 0 and a duration > 0 seconds, got {offset_s} and {duration_s}")
    if _checked(path):
        with _named(path), containers.opened(path) as track:
            yield from _resampled(track.samples(offset_s, duration_s), track.sample_rate, sample_rate, str(path))
    else:
        with _opened(path) as file:
            decoded = _decoded(path, file, offset_s, duration_s)
            yield from _resampled(decoded, file.samplerate, sample_rate, str(path))


def _decoded(path: Path, file: soundfile.SoundFile, offset_s: float, duration_s: float | None) -> Iterator[np.ndarray]:
    """The samples that libsndfile decodes, at the file's own rate, channels averaged."""
    rate = file.samplerate
    start = round(offset_s * rate)
    expected = file.frames - start
    if expected <= 0:
        raise AudioError(f"{path}: expected audio at {offset_s:.2f} s, but the file ends at {file.frames / rate:.2f} s")
    if duration_s is not None:
        expected = min(expected, round(duration_s * rate))
    if start:
        file.seek(start)
    decoded = 0
    while decoded < expected:
        left = expected - decoded
        try:
            samples = file.read(min(_PIECE, max(left, _LEAST_PIECE)), dtype="float32", always_2d=True)[:left]
            reason = ""
        except soundfile.LibsndfileError as error:
            samples = np.zeros((0, 1), np.float32)
            reason = f" ({error.error_string.rstrip('.')})"
        if len(samples) == 0:
            if file.format == "MP3" and decoded > 0 and left <= _MP3_SURPLUS:
                break
            raise AudioError(
                f"{path}: cut short or damaged: expected {expected / rate:.2f} s of audio, "
                f"could decode {decoded / rate:.2f} s{reason}; copy or download the file again"
            )
        decoded += len(samples)
        yield samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)


def _resampled(pieces: Iterable[np.ndarray], rate: int, sample_rate: int, source: str) -> Iterator[np.ndarray]:
    """The pieces checked and at another rate; at least one sample in all."""
    if rate < _MIN_RATE:
        raise AudioError(f"{source}: expected a sample rate of {_MIN_RATE} Hz at least, got {rate} Hz; record it again")
    resampler = None if rate == sample_rate else soxr.ResampleStream(rate, sample_rate, 1, dtype="float32")
    came = given = 0
    for piece in pieces:
        came += len(piece)
        _check_samples(piece, source, "export the audio again, scaled to that")
        if resampler is not None:
            piece = resampler.resample_chunk(piece)
        given += len(piece)
        yield piece
    if resampler is not None:
        piece = resampler.resample_chunk(np.zeros(0, np.float32), last=True)
        given += len(piece)
        yield piece
    if given == 0:
        raise AudioError(
            f"{source}: expected audio, got {came} samples at {rate} Hz: too few to make one at {sample_rate} Hz"
        )


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """A waveform (N,) at another rate, (N',) float32, by soxr's high-quality filter.

    formula: N' = floor(N * to_rate / from_rate + 1/2).
    """
    if from_rate == to_rate:
        return np.asarray(waveform, dtype=np.float32)
    return np.asarray(soxr.resample(waveform, from_rate, to_rate), dtype=np.float32)


def as_waveform(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """Any array of samples as the package's waveform.

    samples: (N,) or (N, channels); floats with full scale +-1, or integers of any width with their own full scale.
    returns: (N',) float32, mono, 16 kHz.
    raises:  AudioError if it is empty, of another shape (channels first, say) or type, not finite, or floats that are
             no samples of full scale +-1.
    """
    if sample_rate <= 0:
        raise AudioError(f"expected a sample rate in Hz above 0, got {sample_rate}")
    if samples.ndim not in (1, 2) or samples.size == 0:
        raise AudioError(f"expected samples of shape (N,) or (N, channels) with N > 0, got {samples.shape}")
    if samples.ndim == 2 and samples.shape[1] > _MAX_CHANNELS:
        raise AudioError(f"expected samples of shape (N, channels), got {samples.shape}; transpose them: samples.T")
    if np.issubdtype(samples.dtype, np.unsignedinteger):  # unsigned audio has its zero in the middle
        middle = (np.iinfo(samples.dtype).max + 1) / 2
        samples = (samples - middle) / middle
    elif np.issubdtype(samples.dtype, np.integer):
        samples = samples / -float(np.iinfo(samples.dtype).min)
    elif not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(f"expected samples that are floats or integers, got {samples.dtype}")
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which the check reports
        waveform = np.asarray(samples if samples.ndim == 1 else samples.mean(axis=1), dtype=np.float32)
    _check_samples(waveform, "the waveform", "divide them by 32768, perhaps")
    return resample(waveform, sample_rate, SAMPLE_RATE)


def pad(waveform: np.ndarray, receptive_field: int, frame_shift: int) -> np.ndarray:
    """A waveform (N,) with the zeros around it that make a network without padding give ceil(N / frame_shift) frames.

    receptive_field, frame_shift: samples. Frame t is then centred on samples [t * frame_shift, (t + 1) * frame_shift).
    """
    return np.pad(waveform, padding(len(waveform), receptive_field, frame_shift))


def padding(samples: int, receptive_field: int, frame_shift: int) -> tuple[int, int]:
    """How many zeros `pad` puts before and after so many samples; those before are the same for any number."""
    frames = -(-samples // frame_shift)
    left = (receptive_field - frame_shift) // 2
    return left, receptive_field + (frames - 1) * frame_shift - samples - left


def _check_samples(waveform: np.ndarray, source: str, advice: str) -> None:
    if not np.isfinite(waveform).all():
        count = int(np.count_nonzero(~np.isfinite(waveform)))
        raise AudioError(
            f"{source}: expected finite samples, got {count} that are NaN or infinite; export the audio again"
        )
    loudest = np.abs(waveform).max(initial=0)
    if loudest > _MAX_PEAK:
        raise AudioError(f"{source}: expected samples from -1 to 1, got one of {loudest:.1g}; {advice}")


@contextmanager
def _named(source: str | Path) -> Iterator[None]:
    """Turns the errors of `containers` and `pipe` into ours, with the source's name."""
    try:
        yield
    except (containers.ContainerError, pipe.PipeError) as error:
        raise AudioError(f"{source}: {error}") from None


@contextmanager
def _opened(path: Path) -> Iterator[soundfile.SoundFile]:
    """The file opened for reading, with soundfile's errors turned into ours."""
    headerless = f"{path}: expected audio with a header, got headerless data; convert it to wav first"
    if path.suffix.lower() == ".raw":
        raise AudioError(headerless)
    try:
        # As bytes, where names are bytes: a name that is no valid text can then be opened too.
        with soundfile.SoundFile(os.fsencode(path) if os.name == "posix" else str(path)) as file:
            if file.format == "RAW":  # guessed from the file's name alone: any text would pass as sound
                raise AudioError(headerless)
            if file.frames <= 0:
                raise AudioError(f"{path}: expected audio, but the file holds no samples; record or copy it again")
            if file.frames > _UNKNOWN_LENGTH:
                raise AudioError(
                    f"{path}: expected a header with the audio's length, got one without (written to a pipe?); "
                    f"write it again: ffmpeg -i {path.name} {path.stem}.wav"
                )
            yield file
    except soundfile.LibsndfileError as error:
        reason = error.error_string.rstrip(".")
        if reason.startswith("File does not exist"):  # what the mp3 decoder says of any file it cannot use
            reason = "data of another kind"
        raise AudioError(
            f"{path}: expected audio (wav, flac, ogg, opus or mp3) that can be decoded, got: {reason}; "
            "check that it is a recording, and copy or download it again"
        ) from None


def _checked(path: Path) -> bool:
    """Whether the file is one for `containers`, not for libsndfile. raises: AudioError if it is missing or not whole."""
    try:
        with path.open("rb") as raw:
            contained = containers.recognises(raw.read(24), path.suffix)
            size = raw.seek(0, os.SEEK_END)
            announced = containers.announced(raw, size) if contained else _announced(raw, size)
    except FileNotFoundError:
        raise AudioError(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise AudioError(f"{path}: expected an audio file, got a folder") from None
    except PermissionError:
        raise AudioError(f"{path}: no permission to read this file; change its mode or its owner") from None
    except OSError as error:
        raise AudioError(f"{path}: cannot be read: {error.strerror or error}; check the path") from None
    except ValueError as error:  # a zero byte in the name
        raise AudioError(f"{str(path)!r}: cannot be read: {error}") from None
    if size == 0:
        raise AudioError(f"{path}: expected audio, got an empty file (0 bytes); record or copy it again")
    if size < announced:
        raise AudioError(
            f"{path}: cut short: its headers announce {announced} bytes, the file has {size}; "
            "copy or download the file again"
        )
    return contained


def _announced(raw: BinaryIO, size: int) -> int:
    """Where the audio ends by the headers, in bytes; 0 if they do not say.

    For the formats that libsndfile, when they are cut off, reads as if they were whole: wav, aiff, au, w64, ogg.
    """
    raw.seek(0)
    head = raw.read(24)
    if len(head) < 24:
        return 0
    if head[:4] in (b"RIFF", b"FORM"):
        order, wanted = ("<4sI", b"data") if head[:4] == b"RIFF" else (">4sI", b"SSND")
        at = 12
        for _ in range(1000):
            raw.seek(at)
            chunk = raw.read(8)
            if len(chunk) < 8:
                return 0
            name, length = struct.unpack(order, chunk)
            if name == wanted:  # writers to a pipe leave a length near 2^31 or 2^32
                return at + 8 + length if length < pipe.UNKNOWN_BYTES else 0
            at += 8 + length + length % 2
    elif head[:4] == b".snd":
        start, length = struct.unpack(">II", head[4:12])
        return start + length if length < pipe.UNKNOWN_BYTES else 0
    elif head[:4] == b"riff":
        return int(struct.unpack("<Q", head[16:24])[0])
    elif head[:4] == b"OggS":
        start = max(0, size - 65_307)  # the longest page
        raw.seek(start)
        tail = raw.read()
        page = tail.rfind(b"OggS")
        if page >= 0:
            segments = tail[page + 26 : page + 27]
            lengths = tail[page + 27 : page + 27 + (segments[0] if segments else 0)]
            return start + page + 27 + (segments[0] if segments else 0) + sum(lengths)
    return 0
