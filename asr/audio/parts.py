"""Where in a file the sound lies: its parts, each a recording that libsndfile can decode, without what is around them.

Files joined end to end are several parts. What stands in a header is not always true, so a part may bring its own.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, BinaryIO

_CHUNK = 1 << 20
TOLERANCE_S = 0.1  # sound that is announced and missing, or the reverse: less is no damage


@dataclass(frozen=True, slots=True)
class Part:
    """One recording in a file. head: bytes put before; stretches: (start, end) in the file, in bytes, joined.

    whole:  whether libsndfile finds it in the file as it stands, which then need not be copied.
    frames: samples of each channel that it holds, where they were counted. libsndfile may think that there are more. Where
            it thinks of fewer, it would stop there: a copy is then made longer, by this stretch again and again (filler).
    mpeg:   whether it is decoded by libmpg123.
    """

    stretches: tuple[tuple[int, int], ...]
    head: bytes = b""
    whole: bool = False
    frames: int | None = None
    filler: tuple[int, int] = (0, 0)
    mpeg: bool = False


def copy_part(raw: BinaryIO, part: Part) -> IO[bytes]:
    """The part as a file of its own, gone when it is closed.

    Not a file object of Python's that reads from the other: what is raised in that, Ctrl-C too, is lost in C.
    """
    copy = tempfile.TemporaryFile()  # noqa: SIM115 (closed by who asked)
    copy.write(part.head)
    for start, end in part.stretches:
        for at in range(start, end, _CHUNK):
            copy.write(read_at(raw, at, min(_CHUNK, end - at)))
    copy.flush()
    return copy


def lengthen(copy: IO[bytes], raw: BinaryIO, part: Part, factor: float) -> None:
    """Make a copy so many times as long."""
    start, end = part.filler
    filler = read_at(raw, start, end - start)
    size = copy.seek(0, os.SEEK_END)
    copy.write(filler * (1 + int((factor - 1) * size / len(filler))))
    copy.flush()


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
