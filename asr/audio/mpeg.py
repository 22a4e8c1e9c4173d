"""The frames of an MP3 (MPEG audio, layers 1 to 3), found one after the other: where they lie, and how long they are.

Nothing else tells how long an MP3 is: a header is optional, tells of the first of several joined files, and the size is a
guess where the bit rate varies. Tags and pictures may stand before, between and behind the frames.

source: ISO/IEC 11172-3 and 13818-3, 2.4.1.3 and 2.4.2.3; ID3v2.4 (id3.org), APEv2 (wiki.hydrogenaud.io).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

from asr.audio.parts import TOLERANCE_S, Part, find_all, read_at
from asr.errors import AudioError

_CHUNK = 1 << 20
_LONGEST = 2881  # bytes of a frame
_CHAIN = 3  # so many frames in a row are no chance
_SEARCH = 1 << 16  # bytes before the first frame, in a file that nothing says is an MP3
_KBITS = {  # by version (1, or 2 and 2.5) and layer
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def _headers() -> dict[int, tuple[int, int, int]]:
    """The second and third byte of a frame as one number -> its bytes, its samples, its sample rate."""
    found = {}
    for version_bits, divisor in ((3, 1), (2, 2), (0, 4)):
        for layer in (1, 2, 3):
            samples = 384 if layer == 1 else 576 if layer == 3 and divisor > 1 else 1152
            for index, kbits in enumerate(_KBITS[min(divisor, 2), layer], start=1):
                for rate_bits, base in enumerate((44_100, 48_000, 32_000)):
                    rate = base // divisor
                    for padding in (0, 1):
                        if layer == 1:
                            length = 4 * (12_000 * kbits // rate + padding)
                        else:
                            length = samples // 8 * 1000 * kbits // rate + padding
                        for spare in range(4):  # the bits for a checksum, and for private use
                            second = 0xE0 | version_bits << 3 | (4 - layer) << 1 | spare & 1
                            third = index << 4 | rate_bits << 2 | padding << 1 | spare >> 1
                            found[second << 8 | third] = length, samples, rate
    return found


_HEADERS = _headers()
_LENGTHS = {key: length for key, (length, _, _) in _HEADERS.items()}
_MARKS, _PLACES = (b"Xing", b"Info"), (13, 21, 36)
_TAGS = (b"ID3", b"APETAGEX", b"TAG")


def _place(kind: tuple[int, int, bool]) -> int:
    """Where in a frame of this kind a header has its mark: behind the side information, which is of zeros then."""
    lower, mono = kind[0] & 0x08 == 0, kind[2]
    return _PLACES[0 if lower and mono else 1 if lower or mono else 2]


@dataclass(slots=True)
class _Run:
    """Frames of one kind in a row, from byte `start` to `end`. last: its last frame; samples: of each; rate: Hz."""

    kind: tuple[int, int, bool]
    start: int
    last: int
    end: int
    frames: int
    samples: int
    rate: int

    @property
    def duration_s(self) -> float:
        return self.frames * self.samples / self.rate


def parts(raw: BinaryIO, start: int, end: int, *, certain: bool) -> list[Part]:
    """The recordings in a stretch of a file; none where there are no frames. certain: whether it is said to be an MP3.

    Where the kind of sound changes, as from 44.1 to 48 kHz in joined files, another part begins.
    raises: AudioError if frames are missing: fewer than a header announces, or data of no kind among them.
    """
    return _Walk(raw, end).parts(start, certain)


class _Walk:
    """A way through the frames of a file, of which a chunk at a time is in memory."""

    def __init__(self, raw: BinaryIO, end: int) -> None:
        self._raw, self._end = raw, end
        self._data, self._base = b"", 0
        self._firsts: set[int] = set()  # where a frame that is a header begins a recording

    def parts(self, start: int, certain: bool) -> list[Part]:
        recordings: list[list[_Run]] = []
        front = self._tag(start)  # libmpg123 passes over one tag
        at, duration_s = self._next(start, certain or front > 0)[0], 0.0
        whole = start == 0 and at == front
        if at is not None:
            self._firsts = self._headers_within(at)
        while at is not None:
            run = self._run(at)
            duration_s += run.duration_s
            if recordings and recordings[-1][0].kind == run.kind and self._announced_frames(run) is None:
                recordings[-1].append(run)
            else:
                recordings.append([run])
            at, tagged = self._next(run.end, True)
            lost = (self._end if at is None else at) - run.end
            if not tagged and lost > max(_LONGEST, TOLERANCE_S * (run.end - run.start) / run.duration_s):
                raise AudioError(
                    f"damaged: {lost} bytes after {duration_s:.2f} s of audio are no MP3; copy or download the file again"
                )
        whole = whole and len(recordings) == 1 and len(recordings[0]) == 1
        return [self._part(runs, whole) for runs in recordings]

    def _part(self, runs: list[_Run], whole: bool) -> Part:
        first, count = runs[0], sum(run.frames for run in runs)
        stretches = [(run.start, run.end) for run in runs]
        announced = self._announced_frames(first)
        if announced is not None:
            count -= 1  # the first frame is a header and no sound
            if (announced - count) * first.samples > TOLERANCE_S * first.rate:
                raise AudioError(
                    f"cut short: its header announces {announced * first.samples / first.rate:.2f} s of audio, the file "
                    f"has {count * first.samples / first.rate:.2f} s; copy or download the file again"
                )
            if announced == count:  # then it also tells which samples at both ends are the encoder's own
                return Part(tuple(stretches), whole=whole, mpeg=True)
            stretches[0], whole = (first.start + self._header(first.start)[0], first.end), False
        last = (runs[-1].last, runs[-1].end)
        return Part(tuple(stretches), whole=whole, frames=count * first.samples, filler=last, mpeg=True)

    def _announced_frames(self, run: _Run) -> int | None:
        """How many frames follow the first one by what is in it, where that is a header (Xing, Info, VBRI)."""
        head = self._bytes(run.start, 64)
        if head[36:40] == b"VBRI":
            return int.from_bytes(head[50:54], "big")
        tag = _place(run.kind)
        if head[tag : tag + 4] in _MARKS:
            flags, frames = struct.unpack(">II", head[tag + 4 : tag + 12])
            return int(frames) if flags & 1 else 0
        return None

    def _headers_within(self, start: int) -> set[int]:
        """Where frames may lie that are headers: the mark in its place behind nothing."""
        found = set()
        for mark in _MARKS:
            for at in find_all(self._raw, mark, start, self._end):
                for tag in _PLACES:
                    first = at - tag
                    if first < start or any(self._bytes(first + 4, tag - 4)):
                        continue
                    if self._header(first)[0] and _place(self._kind(first)) == tag:
                        found.add(first)
        return found

    def _run(self, start: int) -> _Run:
        """The frames from a place on, where there are some."""
        kind = self._kind(start)
        _, samples, rate = self._header(start)
        at, count, last = start, 0, start
        while True:
            self._bytes(at, 4)
            data, base = self._data, self._base  # a loop over many frames: no calls in it
            while at + 4 <= base + len(data):
                offset = at - base
                second, third = data[offset + 1], data[offset + 2]
                length = _LENGTHS.get(second << 8 | third, 0) if data[offset] == 0xFF else 0
                same = (second & 0xFE, third & 0x0C, data[offset + 3] >= 0xC0) == kind
                if not length or not same or at + length > self._end or (count and at in self._firsts):
                    return _Run(kind, start, last, at, count, samples, rate)
                count += 1
                last = at
                at += length
            if at + 4 > self._end:
                return _Run(kind, start, last, at, count, samples, rate)

    def _next(self, at: int, certain: bool) -> tuple[int | None, bool]:
        """Where frames begin next, behind tags and anything else; and whether there was a tag."""
        tagged = False
        limit = self._end if certain else min(self._end, at + _SEARCH)
        while True:
            while size := self._tag(at):
                at, tagged = min(at + size, self._end), True
            if at + 4 > limit:
                return None, tagged
            if self._begins(at):
                return at, tagged
            data = self._window(at)
            place = data.find(b"\xff", 1)
            place = place if place > 0 else max(1, len(data) - 8)
            at += min((tag for mark in _TAGS if (tag := data.find(mark, 1, place)) > 0), default=place)

    def _begins(self, at: int) -> bool:
        """Whether some frames of one kind follow each other from here on, or up to the end."""
        kind = self._kind(at)
        for number in range(_CHAIN):
            length = self._header(at)[0] if self._kind(at) == kind else 0
            if not length or at + length > self._end:
                return False
            at += length
            if at + 4 > self._end or (number and self._tag(at)):
                return True
        return True

    def _header(self, at: int) -> tuple[int, int, int]:
        """The bytes, samples and rate of a frame; zeros where there is none."""
        head = self._bytes(at, 3)
        none = (0, 0, 0)
        return _HEADERS.get(head[1] << 8 | head[2], none) if len(head) == 3 and head[0] == 0xFF else none

    def _kind(self, at: int) -> tuple[int, int, bool]:
        """What all frames of a recording have in common: version and layer, sample rate, whether they are mono."""
        head = self._bytes(at, 4).ljust(4, b"\0")
        return head[1] & 0xFE, head[2] & 0x0C, head[3] >= 0xC0

    def _tag(self, at: int) -> int:
        """The bytes of a tag that begins here; 0 if none does."""
        head = self._bytes(at, 32)
        if head[:3] == b"ID3" and len(head) >= 10 and max(head[6:10]) < 0x80:
            return 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]) + (10 if head[5] & 0x10 else 0)
        if head[:8] == b"APETAGEX" and len(head) == 32:
            size, flags = struct.unpack("<12xI4xI8x", head)
            return 32 + size if flags & 0x20000000 else 32  # its header, or the footer that stands alone
        return 128 if head[:3] == b"TAG" and self._end - at >= 128 else 0

    def _bytes(self, at: int, size: int) -> bytes:
        """Fewer only where the stretch ends."""
        if not self._base <= at <= self._base + len(self._data) - size:
            self._data, self._base = read_at(self._raw, at, max(0, min(_CHUNK, self._end - at))), at
        return self._data[at - self._base : at - self._base + size]

    def _window(self, at: int) -> bytes:
        """What is in memory from here on, 64 KB at most: enough to look for the next mark in."""
        self._bytes(at, 16)
        return self._data[at - self._base : at - self._base + (1 << 16)]
