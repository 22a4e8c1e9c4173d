"""Recordings -> mono float32 at 16 kHz, whole or in blocks: from files, file objects, pipes.

Here alone is decided what a recording is and how long. soundfile decodes wav, flac, ogg, opus and mp3, PyAV what it cannot
(`containers`), and `pipe` hears what comes through a pipe. What cannot be trusted (empty, cut short, not audio, NaN samples)
is an `AudioError`, never a guess; what is worth knowing goes to the log of `asr.audio`, and into `AudioInfo.notes`.
"""

from __future__ import annotations

import io
import logging
import math
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeAlias

import numpy as np
import soundfile

from asr.audio import containers, headers, pipe
from asr.audio.parts import Part
from asr.audio.sndfile import Decoded
from asr.audio.waveform import SAMPLE_RATE, convert, cut
from asr.errors import AudioError
from asr.remote import Remote

if TYPE_CHECKING:
    from asr.manifest import Utterance

Source: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO
"""A file's path, its content, or a file that is open: one that can seek is read whole, from its beginning."""

# A folder's recordings are known by these, whatever can be read here: one that needs PyAV says so. Others are known by
# their first bytes, see `is_recording`.
SUFFIXES = (
    *(".wav", ".wave", ".flac", ".ogg", ".opus", ".oga", ".spx", *headers.MPEG_SUFFIXES),
    *(".aiff", ".aif", ".aifc", ".au", ".snd", ".w64", ".rf64", ".caf", ".sph", ".voc"),
    *containers.SUFFIXES,
)
_BLOCK_S = 10.0
_log = logging.getLogger("asr.audio")


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What a recording is. duration_s: seconds (in containers to 0.1 s); sample_rate: Hz; notes: what else to know of it."""

    duration_s: float
    sample_rate: int
    channels: int
    format: str
    notes: tuple[str, ...] = ()


class Opened(Protocol):
    """An open recording, to be read once. All its methods raise AudioError."""

    name: str
    sample_rate: int
    channels: int
    format: str
    notes: list[str]

    def duration_s(self) -> float: ...

    def streams(self, offset_s: float, duration_s: float | None) -> Iterator[tuple[int, Iterator[np.ndarray]]]:
        """The part from offset_s on: a sample rate, and pieces (n, channels) float32 at it; several where files are joined.

        Each is to be read before the next.
        """


def info(source: Source, *, track: int | None = None) -> AudioInfo:
    """How long a recording is, its rate, channels and format; decoded only where nothing else tells its length.

    track:  of several audio tracks, from 1; None for the default one.
    raises: AudioError; also for a pipe, of which nothing is known before it has been read.

    >>> found = info("tests/data/connected_digits.flac")
    >>> f"{found.duration_s:.2f} s at {found.sample_rate} Hz, {found.format}"
    '4.50 s at 16000 Hz, FLAC/PCM_16'
    """
    if isinstance(source, (str, os.PathLike)) and _is_stream(source):  # to open it would take from it
        raise AudioError(f"{source}: expected a file, got a pipe, whose length is not known before it has been read")
    with _open(source, track) as recording:
        return AudioInfo(
            recording.duration_s(), recording.sample_rate, recording.channels, recording.format, tuple(recording.notes)
        )


def read(
    source: Source,
    *,
    offset_s: float = 0.0,
    duration_s: float | None = None,
    sample_rate: int = SAMPLE_RATE,
    track: int | None = None,
    channel: int | None = None,
) -> np.ndarray:
    """One recording, or the part of it from offset_s on, as a waveform.

    track:   of several audio tracks, from 1; None for the default one.
    channel: that one alone, from 0; None for all, mixed, see Mixer.
    returns: (N,) float32, mono, full scale +-1, at sample_rate Hz whatever the file's own rate; it ends with the file
             if duration_s reaches beyond that.
    raises:  AudioError if the file is missing, unreadable, empty, not audio, cut short, or holds NaN or infinite
             samples, or has no such part, track or channel.

    >>> read("tests/data/connected_digits.flac", offset_s=1.0, duration_s=0.5).shape
    (8000,)
    """
    return np.concatenate(list(_pieces(_open(source, track), offset_s, duration_s, sample_rate, channel)))


def blocks(
    source: Source,
    *,
    block_s: float = _BLOCK_S,
    offset_s: float = 0.0,
    duration_s: float | None = None,
    sample_rate: int = SAMPLE_RATE,
    track: int | None = None,
    channel: int | None = None,
) -> Iterator[np.ndarray]:
    """The waveform of `read` in pieces of block_s seconds: a recording of any length in bounded memory.

    yields: (n,) float32, n = round(block_s * sample_rate), the last may be shorter; joined they equal `read`'s result.

    >>> [len(block) for block in blocks("tests/data/connected_digits.flac", block_s=2.0)]
    [32000, 32000, 8009]
    """
    pieces = _pieces(_open(source, track), offset_s, duration_s, sample_rate, channel)
    yield from cut(pieces, max(1, round(block_s * sample_rate)))


def read_utterance(utterance: Utterance) -> np.ndarray:
    """The waveform of a manifest's entry, (N,) float32, 16 kHz. raises: AudioError."""
    return read(utterance.audio, offset_s=utterance.offset_s, duration_s=utterance.duration_s)


def pipe_blocks(
    file: BinaryIO,
    *,
    rate: int | None = None,
    block_s: float = _BLOCK_S,
    offset_s: float = 0.0,
    duration_s: float | None = None,
    track: int | None = None,
    channel: int | None = None,
) -> Iterator[np.ndarray]:
    """The waveform from a pipe such as sys.stdin.buffer, in pieces of block_s seconds, as `blocks` gives that of a file.

    rate:   Hz of raw samples, signed 16-bit little-endian, one channel; None for a recording of any format. Raw samples
            and plain wav, as ffmpeg, sox and arecord write it, are heard as they come, the rest once all has come.
    yields: (n,) float32, 16 kHz, n = round(block_s * 16000), the last may be shorter.
    raises: AudioError if the stream is empty, no audio, holds NaN or infinite samples, or, after all that came, if it
            ended before the length in its header.
    """
    pieces = _pieces(_name_errors("the pipe", _of_pipe(file, rate, track)), offset_s, duration_s, SAMPLE_RATE, channel)
    yield from cut(pieces, max(1, round(block_s * SAMPLE_RATE)))


def _is_stream(path: str | os.PathLike[str]) -> bool:
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def is_recording(path: Path) -> bool:
    """Whether a file in a folder is one to be read, by its name or its first bytes; the ._ files of macOS are none."""
    if path.name.startswith("._"):
        return False
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        if path.suffix.lower() in SUFFIXES:
            return True
        with path.open("rb") as raw:
            return headers.is_audio(raw.read(headers.HEAD))
    except OSError:
        return path.suffix.lower() in SUFFIXES  # whose reader says what is wrong with it


def _pieces(
    opening: AbstractContextManager[Opened],
    offset_s: float,
    duration_s: float | None,
    sample_rate: int,
    channel: int | None,
) -> Iterator[np.ndarray]:
    """The waveform in pieces of any length, at least one sample in all."""
    with opening as recording:
        if not 0 <= offset_s < math.inf or (duration_s is not None and not 0 < duration_s < math.inf):
            raise AudioError(f"expected an offset >= 0 and a duration > 0 seconds, got {offset_s} and {duration_s}")
        given = rate = 0
        for rate, samples in recording.streams(offset_s, duration_s):
            for piece in convert(samples, rate, sample_rate, channel):
                given += len(piece)
                yield piece
        if given == 0:
            raise AudioError(f"expected audio, got too few samples at {rate} Hz to make one at {sample_rate} Hz")
        for note in recording.notes:
            _log.warning("%s: %s", recording.name, note)


@contextmanager
def _name_errors(name: str, opening: AbstractContextManager[Opened]) -> Iterator[Opened]:
    """Begin every error of a recording with its name."""
    try:
        with opening as recording:
            recording.name = name
            yield recording
    except AudioError as error:
        raise AudioError(f"{name}: {error}") from None


@contextmanager
def _open(source: Source, track: int | None = None) -> Iterator[Opened]:
    """Open a recording of any kind. raises: AudioError, also within the with block."""
    name = "the recording"
    if isinstance(source, (str, os.PathLike)):
        name = str(source)
        opening = _of_path(source if isinstance(source, Path) else Path(source), track)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        opening = _of_file(io.BytesIO(source), Path(), track)
    elif hasattr(source, "read"):
        if isinstance(given := getattr(source, "name", None), str):
            name = given
        opening = _of_object(source, Path(name), track)
    else:
        raise AudioError(
            f"expected a recording as a path, bytes or an open file, or its samples, got {type(source).__name__}"
        )
    with _name_errors(name, opening) as recording:
        yield recording


@contextmanager
def _of_path(path: Path, track: int | None) -> Iterator[Opened]:
    try:
        raw = path.open("rb")
    except FileNotFoundError:
        raise AudioError("no such file; check the path") from None
    except IsADirectoryError:
        raise AudioError("expected an audio file, got a folder") from None
    except PermissionError:
        raise AudioError("no permission to read this file; change its mode or its owner") from None
    except (OSError, ValueError) as error:  # or a zero byte in the name
        raise AudioError(f"cannot be read: {getattr(error, 'strerror', None) or error}; check the path") from None
    with raw:
        state = os.fstat(raw.fileno())
        if stat.S_ISREG(state.st_mode):
            known = None if isinstance(path, Remote) else (state.st_size, state.st_mtime_ns)  # of which raw is a copy
            opening = _of_file(raw, path, track, known)
        else:  # a named pipe, what a shell makes of <(...), a terminal
            opening = _of_pipe(raw, None, track)
        with opening as recording:
            yield recording


@contextmanager
def _of_object(file: BinaryIO, name: Path, track: int | None) -> Iterator[Opened]:
    """Open a file object; one that can seek is read from its beginning, so that a second reading gives the same."""
    if isinstance(file, io.TextIOBase):
        raise AudioError("expected a file opened in binary mode, got one of text: open(path, 'rb')")
    opening = _of_file(file, name, track) if _can_seek(file) else _of_pipe(file, None, track)
    with opening as recording:
        yield recording


def _can_seek(file: BinaryIO) -> bool:
    try:
        return bool(file.seekable()) if hasattr(file, "seekable") else file.tell() >= 0
    except (AttributeError, OSError):
        return False


@contextmanager
def _of_pipe(file: BinaryIO, rate: int | None, track: int | None) -> Iterator[Opened]:
    """Open a stream: read as it comes if it is plain, otherwise as a file, once all of it has come."""
    stream = pipe.open_stream(file, rate)
    if isinstance(stream, pipe.Stream):
        yield stream
        return
    with tempfile.TemporaryFile() as whole:
        for some in stream:
            whole.write(some)
        whole.seek(0)
        hint = "" if headers.is_audio(whole.read(headers.HEAD)) else "; of raw samples, --rate tells how many a second"
        try:
            with _of_file(whole, Path("FILE"), track) as recording:
                yield recording
        except AudioError as error:
            raise AudioError(f"{error}{hint}") from None


@contextmanager
def _of_file(raw: BinaryIO, name: Path, track: int | None, version: tuple[int, int] | None = None) -> Iterator[Opened]:
    """Open a file that can seek. version: its size and time, if it has a path, by which its parts are remembered."""
    try:
        if name.suffix.lower() == ".raw":
            raise AudioError("expected audio with a header, got headerless data; convert it to wav first")
        size = version[0] if version else raw.seek(0, os.SEEK_END)
        if size == 0:
            raise AudioError("expected audio, got an empty file (0 bytes); record or copy it again")
        suffix = name.suffix.lower()
        parts, notes = _parts_of(name, *version) if version else headers.parts(raw, size, suffix)
        decoded = reason = None
        if parts:
            try:
                decoded = Decoded(raw, name if version else None, parts, notes)
            except soundfile.LibsndfileError as error:
                reason = error.error_string.rstrip(".")
        if decoded is not None:
            if track not in (None, 1):
                raise AudioError(f"expected track {track}, got a file of one")
            yield decoded
            return
        with containers.open_track(raw, name, track, reason) as recording:
            yield recording
    except OSError as error:
        raise AudioError(f"cannot be read: {error.strerror or error}; copy the file again") from None


@lru_cache(maxsize=1024)
def _parts_of(path: Path, size: int, _modified_ns: int) -> tuple[list[Part], list[str]]:
    """The parts of a file, remembered: to find them it is read, and a long one may be opened for each utterance."""
    with path.open("rb") as raw:
        return headers.parts(raw, size, path.suffix.lower())
