"""What a file is, by its first bytes, and where it must end by what it says of itself."""

from __future__ import annotations

import struct
from typing import BinaryIO

from asr.audio import mpeg, ogg, wav
from asr.audio.parts import Part, find_all, read_at
from asr.errors import AudioError

HEAD = 200  # bytes that tell what a file is
MPEG_SUFFIXES = (".mp3", ".mp2", ".mpga", ".mpa", ".mp1")
_ATOMS = b"ftyp moov mdat moof mfra free skip wide styp sidx ssix uuid meta udta pnot pdin emsg prft".split()
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_FLAC = (b"fLaC\0\0\0\x22", b"fLaC\x80\0\0\x22")  # with the head of the block that must come first
_TOLERANCE = 1024  # bytes of samples that are announced and missing: a few milliseconds, and no damage
_APPLE_DOUBLE = b"\0\5\x16\7"
# What PyAV alone can read. Not MP3 and AAC, whose first two bytes many other files have too.
_CONTAINERS = (
    *(_EBML, _ASF, b"FLV\x01", b"#!AMR", b"wvpk", b"MAC ", b"TTA1", b"MPCK", b"MP+", b"DSD ", b"\0\0\1\xba"),
)
_OTHERS = (b"FORM", b"RIFX", b".snd", b"riff", b"caff", b"NIST_1A", b"Creative Voice File")  # read by libsndfile


def is_audio(head: bytes) -> bool:
    """Whether a file is a recording or a film, by its first bytes (HEAD of them)."""
    known = (b"OggS", b"fLaC", b"ID3", *_CONTAINERS, *_OTHERS)
    return wav.is_wav(head) or head.startswith(known) or _is_film(head) or head[4:8] in _ATOMS[:4]


def _is_film(head: bytes) -> bool:
    """AVI, or an MPEG transport stream, whose packets of 188 bytes begin with the same byte."""
    return head[8:12] == b"AVI " or (head[0] == head[188] == 0x47 if len(head) > 188 else False)


def parts(raw: BinaryIO, size: int, suffix: str) -> tuple[list[Part], list[str]]:
    """The recordings in a file that libsndfile can read, none if it is one for PyAV; and notes about them.

    raises: AudioError if the file is no recording, or not all of it.
    """
    head = read_at(raw, 0, HEAD)
    if head.startswith(_APPLE_DOUBLE):
        raise AudioError(
            "expected audio, got what macOS notes about a file (AppleDouble); the recording has no ._ before its name"
        )
    if wav.is_wav(head):
        return wav.parts(raw, size)
    if head[:4] == b"OggS":
        return ogg.parts(raw, size), []
    if head.startswith((_EBML, _ASF)) or head[4:8] in _ATOMS:
        _check_end(_end_of_container(raw, head, size), size, 0)
        return [], []
    if head.startswith((*_CONTAINERS, b"RIFF")) or _is_film(head):
        return [], []
    if head[:4] == b"fLaC" or head[:3] == b"ID3":
        starts = sorted(at for mark in _FLAC for at in find_all(raw, mark, 0, size))
        if starts and (head[:4] == b"fLaC" or not mpeg.parts(raw, 0, starts[0], certain=True)):
            ends = [*starts[1:], size]
            return [Part(((start, end),), whole=starts == [0]) for start, end in zip(starts, ends, strict=True)], []
    if head.startswith(_OTHERS):
        _check_end(_end_of_samples(raw, head), size, _TOLERANCE)
        return [Part(((0, size),), whole=True)], []
    found = mpeg.parts(raw, 0, size, certain=suffix in MPEG_SUFFIXES)
    return found or [Part(((0, size),), whole=True)], []


def _check_end(end: int, size: int, tolerance: int) -> None:
    if size + tolerance < end:
        raise AudioError(
            f"cut short: its headers announce {end} bytes, the file has {size}; copy or download the file again"
        )


def _end_of_samples(raw: BinaryIO, head: bytes) -> int:
    """Where the samples end by the header of aiff, au and w64, in bytes; 0 where it does not say.

    For the formats that libsndfile, when they are cut off, reads as if they were whole.
    """
    if head[:4] == b"FORM":
        at = 12
        for _ in range(1000):
            chunk = read_at(raw, at, 8)
            if len(chunk) < 8:
                break
            name, length = struct.unpack(">4sI", chunk)
            if name == b"SSND":
                return at + 8 + length if length < wav.UNKNOWN_BYTES else 0
            at += 8 + length + length % 2
    elif head[:4] == b".snd":
        start, length = struct.unpack(">II", head[4:12])
        return start + length if length < wav.UNKNOWN_BYTES else 0
    elif head[:4] == b"riff":
        return int(struct.unpack("<Q", head[16:24])[0])
    return 0


def _end_of_container(raw: BinaryIO, head: bytes, size: int) -> int:
    """Where the file ends by its headers, in bytes; 0 if they do not say, as those of a live recording."""
    if head[4:8] in _ATOMS:
        at = 0
        while at + 8 <= size:
            header = read_at(raw, at, 16)
            length, name = struct.unpack(">I4s", header[:8])
            if length == 1 and len(header) == 16:
                length = struct.unpack(">8xQ", header)[0]
            if name not in _ATOMS or length < 8:  # to the end of the file, or something appended to it
                break
            at += length
        return at
    head = read_at(raw, 0, 1 << 12)
    if head[:4] == _EBML:
        length, at = _ebml_size(head, 4)
        at += length
        if head[at : at + 4] == _SEGMENT:
            length, at = _ebml_size(head, at + 4)
            return at + length if length else 0
    if head[:16] == _ASF and (at := head.find(_ASF_FILE)) >= 0 and len(head) >= at + 92:
        length, flags = struct.unpack("<40xQ40xI", head[at : at + 92])
        return 0 if flags & 1 else int(length)
    return 0


def _ebml_size(data: bytes, at: int) -> tuple[int, int]:
    """The length written at `at` (0 for unknown), and where it ends. The first byte's leading zeros tell its width."""
    width = 9 - (data[at].bit_length() if at < len(data) else 0)
    bits = 7 * width
    value = int.from_bytes(data[at : at + width], "big") & ((1 << bits) - 1)
    return 0 if value == (1 << bits) - 1 else value, at + width
