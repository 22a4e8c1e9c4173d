"""Where in a file the sound lies: its parts, each a recording that libsndfile can decode, without what is around them.

Files joined end to end are several parts. What stands in a header is not always true, so a part may bring its own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import BinaryIO

_CHUNK = 1 << 20
TOLERANCE_S = 0.1  # sound that is announced and missing, or the reverse: less is no damage


@dataclass(frozen=True, slots=True)
class Part:
    """One recording in a file. head: bytes put before; stretches: (start, end) in the file, in bytes, joined.

    frames: samples of each channel that it holds, where they were counted; libsndfile's own number is then only an upper
            bound, for which it is told a file so many bytes longer (slack).
    mpeg:   whether it is decoded by libmpg123.
    """

    stretches: tuple[tuple[int, int], ...]
    head: bytes = b""
    frames: int | None = None
    slack: int = 0
    mpeg: bool = False


class Joined:
    """A part as a file to be read, for libsndfile. error: what reading has met; it cannot be raised through C."""

    def __init__(self, raw: BinaryIO, part: Part) -> None:
        self._raw, self._head, self._stretches = raw, part.head, part.stretches
        lengths = (end - start for start, end in part.stretches)
        self._starts = list(accumulate(lengths, initial=len(part.head)))  # of each stretch in what is read
        self._size = self._starts[-1] + part.slack
        self._at = 0
        self.error: OSError | None = None

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        """Bytes as a file gives them; behind all there is, none, but zeros where libmpg123 looks for a tag at the end."""
        found = b""
        while size > 0 and (some := self._some(size)):
            found += some
            size -= len(some)
            self._at += len(some)
        return found

    def readinto(self, buffer: memoryview) -> int:
        some = self.read(len(buffer))
        buffer[: len(some)] = some
        return len(some)

    def _some(self, size: int) -> bytes:
        at = self._at
        if at < len(self._head):
            return self._head[at : at + size]
        if at >= self._starts[-1]:
            return bytes(min(size, self._size - at)) if at >= self._size - 128 else b""
        number = bisect_right(self._starts, at) - 1
        start, end = self._stretches[number]
        start += at - self._starts[number]
        try:
            self._raw.seek(start)
            return self._raw.read(min(size, end - start))
        except OSError as error:
            self.error = error
            return b""


def read_at(raw: BinaryIO, at: int, size: int) -> bytes:
    raw.seek(at)
    return raw.read(size)


def find_all(raw: BinaryIO, pattern: bytes, start: int, end: int) -> Iterator[int]:
    """Where a pattern of bytes stands in a stretch of a file."""
    keep = len(pattern) - 1
    at, data = start, b""  # data ends at `at`
    while at < end:
        data = data[len(data) - keep if keep else len(data) :] if data else b""
        more = read_at(raw, at, min(_CHUNK, end - at))
        if not more:
            return
        data += more
        at += len(more)
        found = data.find(pattern)
        while found >= 0:
            yield at - len(data) + found
            found = data.find(pattern, found + 1)
