"""Audio from a stream that cannot seek, such as standard input: plain wav by its header, or raw samples.

A wav header in a pipe is written before the length is known, so it may hold 0 or a number near 2^31 or 2^32 instead.
Memory is bounded, and samples are passed on as they come, however few the pipe gives at a time.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from asr.audio import wav
from asr.audio.parts import TOLERANCE_S
from asr.audio.waveform import check_rate
from asr.errors import AudioError

_READ = 1 << 16  # bytes


def open_stream(file: BinaryIO, rate: int | None) -> Stream | Iterator[bytes]:
    """The samples of a stream, as far as they can be heard as they come; otherwise all its bytes, from the first on.

    rate:   Hz of raw samples, signed 16-bit little-endian, one channel; None for a stream with a header.
    raises: AudioError if there is nothing, or another kind of data than raw samples.
    """
    source = _Source(file)
    if rate is not None:
        check_rate(rate)
        if wav.is_wav(source.peek(12)):
            raise AudioError(f"expected raw samples at {rate} Hz, got a wav stream: leave out --rate")
        if not source.peek(1):
            raise AudioError("expected audio, got an empty stream (0 bytes)")
        return Stream(source, wav.Format(wav.PCM, 1, rate, 2, 2 * rate, 16), None)
    if not source.peek(1):
        raise AudioError("expected audio, got an empty stream (0 bytes)")
    if wav.is_wav(source.peek(12)):
        source.keep = True
        fmt, length = _read_header(source)
        if fmt.plain:
            source.keep = False
            return Stream(source, fmt, length)
    return source.read_all()


class Stream:
    """The samples of a stream, and of those that follow it in the same way. sample_rate: Hz, of the first."""

    name = ""

    def __init__(self, source: _Source, fmt: wav.Format, length: int | None) -> None:
        self._source, self._next = source, (fmt, length)
        self.sample_rate, self.channels, self.format = fmt.sample_rate, fmt.channels, "WAV/stream"
        self.notes: list[str] = []

    def duration_s(self) -> float:
        raise AudioError("expected a file, got a pipe, whose length is not known before it has been read")

    def streams(self, offset_s: float, duration_s: float | None) -> Iterator[tuple[int, Iterator[np.ndarray]]]:
        began_s, end_s = 0.0, math.inf if duration_s is None else offset_s + duration_s
        more: tuple[wav.Format, int | None] | None = self._next
        while more is not None and began_s < end_s:
            fmt, length = more
            start = round((offset_s - began_s) * fmt.sample_rate)
            stop = math.inf if duration_s is None else start + round(duration_s * fmt.sample_rate)
            yield fmt.sample_rate, _between(self._samples(fmt, length), max(0, start), stop)
            began_s += self._came / fmt.per_s
            more = self._next_header() if length is not None else None
        if began_s <= offset_s:
            raise AudioError(f"expected audio at {offset_s:.2f} s, but the stream ends at {began_s:.2f} s")

    def _samples(self, fmt: wav.Format, length: int | None) -> Iterator[np.ndarray]:
        """As they come: pieces (n, channels) float32, n > 0; half a sample at the end is dropped.

        length: in bytes, by the header; None for up to the end. raises: AudioError, after all, if there was less.
        """
        self._came = 0
        waiting = b""
        announced = length
        while length is None or self._came < length:
            some = self._source.read_some(_READ if length is None else min(_READ, length - self._came))
            if not some:
                break
            self._came += len(some)
            waiting += some
            whole = len(waiting) - len(waiting) % fmt.frame
            if whole:
                yield _decode(waiting[:whole], fmt)
                waiting = waiting[whole:]
            if length is not None and self._came == length and not self._ends_here(length):
                length = None  # more samples follow
        if self._came == 0:
            raise AudioError("expected audio, but the stream holds no samples behind its header")
        announced_s, came_s = (announced or 0) / fmt.per_s, self._came / fmt.per_s
        if announced_s - came_s > TOLERANCE_S:
            raise AudioError(
                f"cut short: the header announces {announced_s:.2f} s of audio, the stream ended after {came_s:.2f} s"
            )
        if announced and came_s - announced_s > TOLERANCE_S:
            self.notes.append(f"its header announces {announced_s:.2f} s of audio; all {came_s:.2f} s were read")

    def _ends_here(self, length: int) -> bool:
        """Whether the stream goes on with another chunk or recording, or not at all."""
        ahead = self._source.peek(12 + length % 2)
        return any(not head or wav.is_chunk(head[:8]) for head in (ahead[length % 2 :], ahead[:12]))

    def _next_header(self) -> tuple[wav.Format, int | None] | None:
        """Skip the chunks behind the samples; the header of another recording, if one follows."""
        source = self._source
        if not wav.is_chunk(source.peek(8)):
            source.skip(1)  # the padding of an odd number of bytes
        while len(head := source.peek(12)) >= 8:
            if wav.is_wav(head):
                fmt, length = _read_header(source)
                if not fmt.plain:
                    raise AudioError("another recording follows, of compressed samples; send one at a time")
                return fmt, length
            length = int.from_bytes(head[4:8], "little")
            source.skip(8 + length + length % 2)
        return None


def _between(pieces: Iterator[np.ndarray], start: int, stop: float) -> Iterator[np.ndarray]:
    """The samples from one number to another."""
    at = 0
    for piece in pieces:
        wanted = piece[max(0, start - at) : int(min(max(0, stop - at), len(piece)))]
        at += len(piece)
        if len(wanted):
            yield wanted
        if at >= stop:
            return


class _Source:
    """The bytes of a stream. keep: remember those that are read, for `read_all`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._ahead = b""  # read, and not yet taken
        self._kept = b""
        self.keep = False

    def peek(self, size: int) -> bytes:
        """The next size bytes, which stay to be read; fewer only where the stream ends."""
        while len(self._ahead) < size and (some := self._read(size - len(self._ahead))):
            self._ahead += some
        return self._ahead[:size]

    def read_some(self, size: int) -> bytes:
        """The bytes that have come, at most `size` of them; waits for the first; none at the end."""
        taken, self._ahead = self._ahead[:size], self._ahead[size:]
        taken = taken or self._read(size)
        if self.keep:
            self._kept += taken
        return taken

    def read(self, size: int) -> bytes:
        """The next size bytes, fewer only where the stream ends."""
        got = b""
        while len(got) < size and (some := self.read_some(size - len(got))):
            got += some
        return got

    def skip(self, size: int) -> None:
        while size > 0 and (some := self.read_some(min(size, _READ))):
            size -= len(some)

    def read_all(self) -> Iterator[bytes]:
        """All bytes of the stream, with those kept."""
        self.keep = False
        yield self._kept
        while some := self.read_some(_READ):
            yield some

    def _read(self, size: int) -> bytes:
        try:
            some = getattr(self._file, "read1", self._file.read)(size)
        except OSError as error:
            raise AudioError(f"cannot be read: {error.strerror or error}") from None
        if some is None:
            raise AudioError("expected a stream that waits for data, got one in non-blocking mode")
        if not isinstance(some, bytes):
            raise AudioError(f"expected a stream of bytes, got one of {type(some).__name__}")
        return some


def _read_header(source: _Source) -> tuple[wav.Format, int | None]:
    """Read up to the first sample: what the samples are, and how many bytes of them follow, None for up to the end."""
    head = source.read(12)
    found: wav.Format | None = None
    long_length = 0  # of an RF64 stream, which keeps it outside the 32 bits
    while len(chunk := source.read(8)) == 8:
        name, length = struct.unpack("<4sI", chunk)
        if name == b"data":
            if found is None:
                raise AudioError("damaged: expected a fmt chunk before the samples; send it again")
            if head[:4] != b"RIFF" and length == 0xFFFFFFFF:
                return found, long_length or None
            return found, length if 0 < length < wav.UNKNOWN_BYTES else None
        start = source.read(min(length, 40))
        if len(start) < min(length, 40):
            break
        if name == b"fmt ":
            found = wav.read_format(start)
        elif name == b"ds64" and len(start) >= 16:
            long_length = struct.unpack("<8xQ", start[:16])[0]
        source.skip(length + length % 2 - len(start))
    raise AudioError("cut short: expected samples, but the stream ends within its wav header")


def _decode(data: bytes, fmt: wav.Format) -> np.ndarray:
    """Whole frames of bytes as (n, channels) float32, full scale +-1."""
    width = fmt.frame // fmt.channels
    samples: np.ndarray
    if fmt.tag == wav.FLOAT:
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which the caller reports
            samples = np.frombuffer(data, f"<f{width}").astype(np.float32)
    elif width == 1:
        samples = (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    elif width == 3:
        wide = np.zeros((len(data) // 3, 4), np.uint8)  # a zero as the lowest byte makes 32 bits of 24
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        samples = wide.view("<i4")[:, 0].astype(np.float32) / 2**31
    else:
        samples = np.frombuffer(data, f"<i{width}").astype(np.float32) / 2 ** (8 * width - 1)
    return samples.reshape(-1, fmt.channels)
