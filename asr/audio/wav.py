"""The chunks of a WAV file or stream: what its samples are, and where they end, whatever its header says.

Programs leave wrong lengths behind: 0 or the largest number where they write to a pipe, the size of the whole file, the
number of samples instead of bytes. So what follows the samples decides: another chunk, another recording, or more samples.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

from asr.audio import mpeg
from asr.audio.parts import TOLERANCE_S, Part, read_at
from asr.errors import AudioError

UNKNOWN_BYTES = 0x7FFFF000  # from here on, a 32-bit length stands for "not known": sox writes this one
PCM, FLOAT, _MPEG = 1, 3, (0x50, 0x55)
_EXTENSIBLE = 0xFFFE
_GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")  # of every sub-format that is a plain format tag
_WIDTHS = {PCM: (1, 2, 3, 4), FLOAT: (4, 8)}  # bytes a sample
_MOST_CHUNKS = 1000


@dataclass(frozen=True, slots=True)
class Format:
    """What a fmt chunk says. tag: the kind of samples; frame: bytes of all channels at once; per_s: bytes a second."""

    tag: int
    channels: int
    sample_rate: int
    frame: int
    per_s: int
    bits: int

    @property
    def plain(self) -> bool:
        """Whether the samples are not compressed, so that they can be read as they come."""
        width = self.frame // self.channels if self.channels else 0  # 24 bits may lie in 3 bytes or in 4
        return (
            width in _WIDTHS.get(self.tag, ())
            and self.frame == width * self.channels
            and 0 < self.bits <= 8 * width
            and self.sample_rate > 0
        )


def read_format(chunk: bytes) -> Format:
    """raises: AudioError for a fmt chunk that is too short, or describes no samples."""
    if len(chunk) < 16:
        raise AudioError(f"damaged: expected a fmt chunk of 16 bytes or more, got {len(chunk)}; copy the file again")
    tag, channels, rate, per_s, frame, bits = struct.unpack("<HHIIHH", chunk[:16])
    if tag == _EXTENSIBLE and chunk[26:40] == _GUID_TAIL:
        tag = struct.unpack("<H", chunk[24:26])[0]
    found = Format(tag, channels, rate, frame, rate * frame if tag in _WIDTHS else per_s, bits)
    if tag in _WIDTHS and not found.plain:
        raise AudioError(
            f"expected wav samples of 8, 16, 24 or 32 bits or floats of 32 or 64, got {bits} bits, {channels} channels, "
            f"{frame} bytes for all, {rate} Hz; export the audio again"
        )
    return found


def is_wav(head: bytes) -> bool:
    """Whether a file or stream that begins with these 12 bytes is WAV."""
    return head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:12] == b"WAVE"


def is_chunk(head: bytes) -> bool:
    """Whether 8 bytes can be the head of a chunk: its name is four printable characters, which samples hardly are."""
    return len(head) == 8 and all(0x20 <= byte < 0x7F for byte in head[:4])


def parts(raw: BinaryIO, size: int) -> tuple[list[Part], list[str]]:
    """The recordings in a file that begins as WAV, one after the other, and what is to be told of their lengths.

    raises: AudioError if samples are missing, or there are none.
    """
    found: list[Part] = []
    notes: list[str] = []
    at: int | None = 0
    while at is not None:
        some, note, at = _part(raw, at, size)
        found += some
        notes += note
    return found, notes


def _part(raw: BinaryIO, start: int, size: int) -> tuple[list[Part], list[str], int | None]:
    """What is in the recording that begins at `start`, and where the next one does."""
    fmt, kept, long_length = None, b"", 0
    at = start + 12
    for _ in range(_MOST_CHUNKS):
        head = read_at(raw, at, 8)
        if len(head) < 8:
            break
        name, length = struct.unpack("<4sI", head)
        at += 8
        if name == b"data":
            if fmt is None:
                raise AudioError("damaged: expected a fmt chunk before the samples; copy or download the file again")
            length = long_length if length == 0xFFFFFFFF and long_length else length
            end, after, note = _end(raw, at, length, size, fmt)
            if end <= at:
                raise AudioError("expected audio, but the file holds no samples; record or copy it again")
            if fmt.tag in _MPEG and (found := mpeg.parts(raw, at, end, certain=True)):
                return found, note, after
            whole = start == 0 and after is None and end == at + length
            return [Part(((at, end),), _header(kept, end - at), whole)], note, after
        if name in (b"fmt ", b"fact"):
            body = read_at(raw, at, min(length, 1 << 16))
            kept += head + body + bytes(len(body) % 2)
            fmt = read_format(body) if name == b"fmt " else fmt
        elif name == b"ds64":
            body = read_at(raw, at, 16)
            long_length = struct.unpack("<8xQ", body)[0] if len(body) == 16 else 0
        at += length + length % 2
    raise AudioError(
        "cut short: expected samples, but the file ends within its header; copy or download the file again"
    )


def _end(raw: BinaryIO, start: int, length: int, size: int, fmt: Format) -> tuple[int, int | None, list[str]]:
    """Where the samples that begin at `start` end, where another recording follows, and a note if the header is wrong.

    length: by the header. raises: AudioError if much less is there.
    """
    there = size - start
    announced_s, there_s = length / max(1, fmt.per_s), there / max(1, fmt.per_s)
    if length > there:
        if length < UNKNOWN_BYTES and announced_s - there_s > TOLERANCE_S:
            raise AudioError(
                f"cut short: its header announces {announced_s:.2f} s of audio, the file has {there_s:.2f} s; "
                "copy or download the file again"
            )
        return size, None, []
    after = _find_next(raw, start + length, length % 2, size)
    if after is not None:
        return start + length, None if after == size else after, []
    note = f"its header announces {announced_s:.2f} s of audio; all {there_s:.2f} s were read"
    return size, None, [note] if length and there_s - announced_s > TOLERANCE_S else []


def _find_next(raw: BinaryIO, end: int, odd: int, size: int) -> int | None:
    """Where the next recording begins; the file's size if only chunks follow the samples, None if something else does.

    odd: 1 if the samples should be followed by a byte of padding, which some programs leave out.
    """
    for at in {end + odd: None, end: None}:
        for _ in range(_MOST_CHUNKS):
            if at >= size:
                return size
            head = read_at(raw, at, 12)
            if is_wav(head):
                return at
            if not is_chunk(head[:8]):
                break
            length = int.from_bytes(head[4:8], "little")
            at += 8 + length + length % 2
    return None


def _header(chunks: bytes, length: int) -> bytes:
    """A WAV header with the true length; the chunks are those before the samples, as they are."""
    if length + len(chunks) + 100 < 0xFFFFFFFF:
        return (
            b"RIFF"
            + struct.pack("<I", 12 + len(chunks) + length)
            + b"WAVE"
            + chunks
            + b"data"
            + struct.pack("<I", length)
        )
    long = struct.pack("<4sIQQQI", b"ds64", 28, 48 + len(chunks) + length, length, 0, 0)
    return b"RF64\xff\xff\xff\xffWAVE" + long + chunks + b"data\xff\xff\xff\xff"
