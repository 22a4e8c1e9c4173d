"""What libsndfile decodes: wav, flac, ogg, opus, mp3 and their like, of the parts that a file was found to have."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
import soundfile

from asr.audio.parts import TOLERANCE_S, Part, copy_part, lengthen
from asr.errors import AudioError

# Files are decoded in these pieces (frames), whatever the caller asks for: libsndfile decodes Opus wrongly when asked
# for less than a packet (0.12 s) at a time, and the last bit of an MP3's samples depends on where the pieces are cut.
_PIECE = 1 << 16
_LEAST_PIECE = 1 << 13
_UNKNOWN_LENGTH = 1 << 48  # frames; libsndfile gives 2^63 - 1 where the header has no length
FULL_SCALE = 2**15  # of 16-bit samples


class Decoded:
    """What libsndfile decodes: the parts of a file, one after the other. raises: soundfile.LibsndfileError, if it cannot."""

    name = ""

    def __init__(self, raw: BinaryIO, path: Path | None, parts: Sequence[Part], notes: Sequence[str]) -> None:
        self._raw, self._path, self._parts, self.notes = raw, path, parts, list(notes)
        with _Sound(raw, path, parts[0]) as first:
            self.sample_rate, self.channels, self.format = first.sample_rate, first.channels, first.format
            if first.frames == 0:
                raise AudioError("expected audio, but the file holds no samples; record or copy it again")

    def duration_s(self) -> float:
        seconds = 0.0
        for part in self._parts:
            with _Sound(self._raw, self._path, part) as sound:
                seconds += sound.count() / sound.sample_rate
        return seconds

    def streams(self, offset_s: float, duration_s: float | None) -> Iterator[tuple[int, Iterator[np.ndarray]]]:
        began_s, found = 0.0, False
        for part in self._parts:
            with _Sound(self._raw, self._path, part) as sound:
                rate = sound.sample_rate
                start = round((offset_s - began_s) * rate)
                stop = math.inf if duration_s is None else start + round(duration_s * rate)
                if found and stop <= 0:
                    break
                if start <= 0 or start < sound.count():
                    found = True
                    yield rate, sound.samples(max(0, start), stop)
                began_s += sound.count() / rate if len(self._parts) > 1 or not found else 0
        if not found:
            raise AudioError(f"expected audio at {offset_s:.2f} s, but the file ends at {began_s:.2f} s")


class _Sequential(soundfile.SoundFile):  # type: ignore[misc]
    """A file that is not seeked after each block that is read, as soundfile does: of one without a length it would fail."""

    def seekable(self) -> bool:
        return False


class _Sound:
    """A part of a file, open in libsndfile. frames: samples of each channel; None where only decoding tells."""

    def __init__(self, raw: BinaryIO, path: Path | None, part: Part) -> None:
        self._quiet = _silent if part.mpeg else nullcontext()
        self._least = 1 if part.mpeg else _LEAST_PIECE  # behind the frames of an MP3 nothing is to be looked for
        self._copy: IO[bytes] | None = None
        file = None
        if path is not None and part.whole:
            # By a number: by its name, libsndfile would take any text for samples, if that ends in .au.
            file = self._open(os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)), closefd=True)
            if part.frames is not None and file.frames < part.frames:
                file.close()
                file = None
        if file is None:
            self._copy = copy_part(raw, part)
            file = self._open_copy()
            while part.frames is not None and file.frames < part.frames:
                lengthen(self._copy, raw, part, 1.1 * part.frames / max(1, file.frames))
                file.close()
                file = self._open_copy()
        self._file = file
        self.sample_rate, self.channels, self.format = file.samplerate, file.channels, f"{file.format}/{file.subtype}"
        self._read = False  # anything so far
        self.frames = part.frames or (None if file.frames > _UNKNOWN_LENGTH else file.frames)

    def _open_copy(self) -> _Sequential:
        assert self._copy is not None
        try:
            self._copy.seek(0)
            return self._open(self._copy.fileno(), closefd=False)
        except soundfile.LibsndfileError:
            self._copy.close()
            raise

    def _open(self, number: int, *, closefd: bool) -> _Sequential:
        with self._quiet:
            return _Sequential(number, closefd=closefd)

    def __enter__(self) -> _Sound:
        return self

    def __exit__(self, *_: object) -> None:
        with self._quiet:
            self._file.close()
        if self._copy is not None:
            self._copy.close()

    def count(self) -> int:
        """How many samples each channel has."""
        if self.frames is None:
            self.frames = sum(len(piece) for piece in self.samples(0, math.inf))
        return self.frames

    def samples(self, start: int, stop: float) -> Iterator[np.ndarray]:
        """Pieces (n, channels) float32. raises: AudioError where there is less than there should be."""
        rate = self.sample_rate
        expected = min(stop, math.inf if self.frames is None else self.frames) - start
        if self._read or start:
            with self._quiet:
                self._file.seek(start)
        self._read = True
        decoded = 0
        while decoded < expected:
            left = expected - decoded
            reason = ""
            samples = np.zeros((0, 1), np.float32)
            try:
                with self._quiet:
                    samples = self._file.read(
                        int(min(_PIECE, max(left, _LEAST_PIECE))), dtype="float32", always_2d=True
                    )
            except soundfile.LibsndfileError as error:
                reason = f" ({error.error_string.rstrip('.')})"
            samples = samples[: int(min(left, len(samples)))]
            if len(samples) == 0:
                if left <= TOLERANCE_S * rate or (self.frames is None and not reason):
                    break
                announced = "more" if self.frames is None else f"{expected / rate:.2f} s"
                raise AudioError(
                    f"cut short or damaged: expected {announced} of audio, "
                    f"could decode {decoded / rate:.2f} s{reason}; copy or download the file again"
                )
            decoded += len(samples)
            yield samples


class _Silence:
    """libmpg123 complains of damaged frames on standard error, past Python. This is heard no more within `with`.

    Python's own sys.stderr should then write elsewhere, as that of the command line does: another thread may use it.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._kept = threading.Lock(), 0, -1

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                try:
                    self._kept = os.dup(2)
                except OSError:  # closed, so that there is nothing to be silent on
                    return
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 2)
                os.close(nowhere)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._kept >= 0:
                os.dup2(self._kept, 2)
                os.close(self._kept)
                self._kept = -1


_silent = _Silence()


def as_int16(waveform: np.ndarray) -> np.ndarray:
    """A waveform in 16 bits, (N,) int16: of a recording that had no more, exactly its samples, as libsndfile scales them."""
    return np.asarray(np.rint(waveform * FULL_SCALE).clip(-FULL_SCALE, FULL_SCALE - 1), np.int16)
