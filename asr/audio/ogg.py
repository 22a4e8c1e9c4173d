"""The pages of an Ogg file: which recordings it holds, one after the other or among pictures, and in which codec.

libsndfile hears the first recording alone, and FLAC within Ogg not at all; that is FLAC again without its pages.

source: RFC 3533, section 6; https://xiph.org/flac/ogg_mapping.html.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

from asr.audio.parts import Part, find_all, read_at
from asr.errors import AudioError

_HEADER = 27  # bytes, before the table of segments
_FIRST = b"OggS\0\x02"  # a page that begins a stream
_LONGEST = 65_307  # bytes of a page
_FLAC = b"\x7fFLAC"


@dataclass(frozen=True, slots=True)
class _Page:
    serial: int  # of the stream that it belongs to
    start: int
    body: int
    end: int


def parts(raw: BinaryIO, size: int) -> list[Part]:
    """The recordings, as files that libsndfile can read; none where it cannot read them all (Speex).

    raises: AudioError if the file is cut short.
    """
    _check_end(raw, size)
    groups: list[list[_Page]] = []  # each of the streams that go on side by side
    for at in find_all(raw, _FIRST, 0, size):
        page = _page(raw, at)
        if page is None:
            continue
        if groups and groups[-1][-1].end == page.start:
            groups[-1].append(page)
        else:
            groups.append([page])
    found = []
    for number, streams in enumerate(groups):
        end = groups[number + 1][0].start if number + 1 < len(groups) else size
        for page in streams:
            head = read_at(raw, page.body, 9)
            if head.startswith(_FLAC):
                bodies = [(one.body, one.end) for one in _pages(raw, page.start, end, page.serial)]
                found.append(Part(((page.body + 9, page.end), *bodies[1:])))
            elif head.startswith((b"\x01vorbis", b"OpusHead")):
                pages = [(page.start, end)]
                whole = pages == [(0, size)] and len(streams) == 1
                if len(streams) > 1:
                    pages = [(one.start, one.end) for one in _pages(raw, page.start, end, page.serial)]
                found.append(Part(tuple(pages), whole=whole))
            else:
                continue
            break
        else:
            return []
    return found


def _check_end(raw: BinaryIO, size: int) -> None:
    start = max(0, size - _LONGEST)
    last = read_at(raw, start, size - start).rfind(b"OggS")
    page = _page(raw, start + last) if last >= 0 else None
    if page is not None and page.end > size:
        raise AudioError(
            f"cut short: its last page ends at byte {page.end}, the file at {size}; copy or download the file again"
        )


def _pages(raw: BinaryIO, start: int, end: int, serial: int) -> list[_Page]:
    """The pages of one stream in a stretch of the file."""
    found = []
    at = start
    while at < end:
        page = _page(raw, at)
        if page is None:  # damaged: on to the next page, as every decoder does
            at = next(find_all(raw, b"OggS", at + 1, end), end)
            continue
        if page.serial == serial:
            found.append(page)
        at = page.end
    return found


def _page(raw: BinaryIO, at: int) -> _Page | None:
    head = read_at(raw, at, _HEADER + 255)
    if len(head) < _HEADER or head[:4] != b"OggS":
        return None
    serial = struct.unpack("<I", head[14:18])[0]
    body = at + _HEADER + head[26]
    return _Page(serial, at, body, body + sum(head[_HEADER : _HEADER + head[26]]))
