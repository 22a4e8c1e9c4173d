"""Audio from a stream that cannot seek, such as standard input: wav by its header, or raw samples.

A wav header in a pipe is written before the length is known, so it may hold 0 or a number near 2^31 or 2^32 instead.
Memory is bounded, and samples are passed on as they come, however few the pipe gives at a time.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from asr.errors import AsrError

UNKNOWN_BYTES = 0x7FFFF000  # from here on, a 32-bit length stands for "not known": sox writes this one
_READ = 1 << 16  # bytes
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_WIDTHS = {_PCM: (1, 2, 3, 4), _FLOAT: (4, 8)}  # bytes a sample
_COMPRESSED = {2: "ADPCM", 6: "A-law", 7: "mu-law", 0x11: "ADPCM", 0x31: "GSM", 0x50: "MPEG", 0x55: "mp3", 0xFF: "AAC"}
_GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")  # of every sub-format that is a plain format tag
_REMEDY = "give --rate for raw samples, or convert it: ffmpeg -i FILE -f wav -"


class PipeError(AsrError):
    """A stream that holds no audio of a known kind, or not all of it."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """How samples lie in bytes: the kind (_PCM or _FLOAT), the width in bytes, and the number of channels."""

    kind: int
    width: int
    channels: int


class Stream:
    """The samples of a pipe. sample_rate: Hz, as told or from the header, which is read at once.

    rate:   Hz of raw samples, signed 16-bit little-endian, one channel; None for a stream that begins with a wav header.
    raises: PipeError if there is nothing, or another kind of data.
    """

    def __init__(self, file: BinaryIO, rate: int | None) -> None:
        self._file = file
        self._head = b""  # read already, and part of the samples
        self._length: int | None = None  # bytes of samples; None: up to the end of the stream
        self._came = 0
        if rate is not None:
            if rate <= 0:
                raise PipeError(f"expected a sample rate in Hz above 0, got {rate}")
            self.sample_rate, self._layout = rate, _Layout(_PCM, 2, 1)
            self._head = self._exactly(12)
            if self._head[:4] == b"RIFF" and self._head[8:] == b"WAVE":
                raise PipeError(f"expected raw samples at {rate} Hz, got a wav stream: leave out --rate")
            if not self._head:
                raise PipeError("expected audio, got an empty stream (0 bytes)")
        else:
            self.sample_rate, self._layout = self._read_header()

    def samples(self) -> Iterator[np.ndarray]:
        """The samples as they come: pieces (n,) float32, n > 0, channels averaged; half a sample at the end is dropped."""
        frame = self._layout.width * self._layout.channels
        waiting = self._head
        self._came = len(waiting)
        while self._length is None or self._came < self._length:
            some = self._some(_READ if self._length is None else min(_READ, self._length - self._came))
            if not some:
                break
            self._came += len(some)
            waiting += some
            whole = len(waiting) - len(waiting) % frame
            if whole:
                yield _decoded(waiting[:whole], self._layout)
                waiting = waiting[whole:]
        if self._came == 0:
            raise PipeError("expected audio, but the stream holds no samples behind its header")
        if len(waiting) >= frame:  # a raw stream of a few samples: all of it was looked at as the head
            yield _decoded(waiting[: len(waiting) - len(waiting) % frame], self._layout)

    def finish(self) -> None:
        """Take what follows the samples. raises: PipeError if they ended early, or if another recording follows."""
        if self._length is None:
            return
        if self._came < self._length:
            second = self.sample_rate * self._layout.width * self._layout.channels
            raise PipeError(
                f"cut short: the header announces {self._length / second:.2f} s of audio, "
                f"the stream ended after {self._came / second:.2f} s"
            )
        self._skip(self._length % 2)
        while len(chunk := self._exactly(8)) == 8:
            if chunk[:4] == b"RIFF":
                raise PipeError("expected one recording, but another wav header follows; send one at a time")
            length = struct.unpack("<4xI", chunk)[0]
            self._skip(length + length % 2)

    def _read_header(self) -> tuple[int, _Layout]:
        """Read up to the first sample: the rate, the layout and, in self._length, how much follows."""
        head = self._exactly(12)
        if not head:
            raise PipeError("expected audio, got an empty stream (0 bytes)")
        if head[:4] not in (b"RIFF", b"RF64") or head[8:] != b"WAVE":
            raise PipeError(f"expected a wav stream, got data that begins {head!r}; {_REMEDY}")
        found: tuple[int, _Layout] | None = None
        long_length = 0  # of an RF64 stream, which keeps it outside the 32 bits
        while len(chunk := self._exactly(8)) == 8:
            name, length = struct.unpack("<4sI", chunk)
            if name == b"data":
                if found is None:
                    raise PipeError(f"damaged: expected a fmt chunk before the samples; {_REMEDY}")
                if head[:4] == b"RF64" and length == 0xFFFFFFFF:
                    self._length = long_length or None
                elif 0 < length < UNKNOWN_BYTES:
                    self._length = length
                return found
            start = self._exactly(min(length, 40))
            if len(start) < min(length, 40):
                break
            if name == b"fmt ":
                found = _format(start)
            elif name == b"ds64" and len(start) >= 16:
                long_length = struct.unpack("<8xQ", start[:16])[0]
            self._skip(length + length % 2 - len(start))
        raise PipeError("cut short: expected samples, but the stream ends within its wav header")

    def _some(self, size: int) -> bytes:
        """What there is to read now, at most size bytes; waits for the first; empty at the end."""
        try:
            some = getattr(self._file, "read1", self._file.read)(size)
        except OSError as error:
            raise PipeError(f"cannot be read: {error.strerror or error}") from None
        if some is None:
            raise PipeError("expected a stream that waits for data, got one in non-blocking mode")
        return bytes(some)

    def _exactly(self, size: int) -> bytes:
        """The next size bytes, fewer only where the stream ends."""
        got = b""
        while len(got) < size and (some := self._some(size - len(got))):
            got += some
        return got

    def _skip(self, size: int) -> None:
        while size > 0 and (some := self._some(min(size, _READ))):
            size -= len(some)


def _format(chunk: bytes) -> tuple[int, _Layout]:
    """The sample rate and layout that a fmt chunk describes."""
    if len(chunk) < 16:
        raise PipeError(f"damaged: expected a fmt chunk of 16 bytes or more, got {len(chunk)}; {_REMEDY}")
    tag, channels, rate, _, frame, bits = struct.unpack("<HHIIHH", chunk[:16])
    if tag == _EXTENSIBLE and chunk[26:40] == _GUID_TAIL:
        tag = struct.unpack("<H", chunk[24:26])[0]
    if tag not in _WIDTHS:
        name = _COMPRESSED.get(tag, f"format {tag:#06x}")
        raise PipeError(f"expected a wav stream of plain samples, got {name}; convert it: ffmpeg -i FILE -f wav -")
    width = frame // channels if channels else 0  # 24 bits may lie in 3 bytes or in 4
    if rate == 0 or width not in _WIDTHS[tag] or frame != width * channels or not 0 < bits <= 8 * width:
        raise PipeError(
            f"expected wav samples of 8, 16, 24 or 32 bits or floats of 32 or 64, got {bits} bits, {channels} channels, "
            f"{frame} bytes for all, {rate} Hz; {_REMEDY}"
        )
    return rate, _Layout(tag, width, channels)


def _decoded(data: bytes, layout: _Layout) -> np.ndarray:
    """Whole frames of bytes as (n,) float32, full scale +-1, channels averaged."""
    samples: np.ndarray
    if layout.kind == _FLOAT:
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which the caller reports
            samples = np.frombuffer(data, f"<f{layout.width}").astype(np.float32)
    elif layout.width == 1:
        samples = (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    elif layout.width == 3:
        wide = np.zeros((len(data) // 3, 4), np.uint8)  # a zero as the lowest byte makes 32 bits of 24
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        samples = wide.view("<i4")[:, 0].astype(np.float32) / 2**31
    else:
        samples = np.frombuffer(data, f"<i{layout.width}").astype(np.float32) / 2 ** (8 * layout.width - 1)
    if layout.channels == 1:
        return samples
    return np.asarray(samples.reshape(-1, layout.channels).mean(axis=1, dtype=np.float32))
