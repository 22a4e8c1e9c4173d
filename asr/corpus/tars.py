"""Corpora in tars, as WebDataset has them: of each utterance KEY.flac and KEY.json (or KEY.txt), one after the other.

Beside each tar that is written here stands its manifest, which tells where in the tar each utterance is. So a corpus in tars
is a manifest like any other, of which training reads only what a batch needs, from a disk or from a store of objects.

Python's tarfile does the reading. The package webdataset hands over one sample after another and not where it stands:
batches of similar lengths, and going on at any place, would need a second way to train.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, cast

import soundfile

from asr import audio, files, manifest
from asr.errors import AudioError, CorpusError
from asr.manifest import Skipped, Utterance, Utterances
from asr.remote import Member

if TYPE_CHECKING:
    from rich.progress import Progress

KINDS = {"flac": ("FLAC", "PCM_16"), "opus": ("OGG", "OPUS"), "wav": ("WAV", "PCM_16")}
_BLOCK = 512  # bytes, of which a tar is made
_MAX_AUDIO = 1 << 30  # bytes
_MAX_TEXT = 1 << 20
_MAX_KEY = 80  # letters
_TEXTS = (".json", ".txt")
_NO_UNICODE = "expected Unicode text, got half a surrogate pair"


# --- writing ---


@dataclass(frozen=True, slots=True)
class Shard:
    """A tar to be, and what goes into it."""

    tar: Path
    utterances: Utterances

    @property
    def manifest(self) -> Path:
        """It is written last: where it stands, the tar is whole."""
        return self.tar.with_suffix(".jsonl")


def plan(utterances: Utterances, folder: Path, name: str, hours: float) -> list[Shard]:
    """NAME-00000-of-00020.tar and so on, of so many hours each and in the order of the manifest: the same at every call."""
    starts = [0]
    length_s = 0.0
    for number, duration_s in enumerate(utterances.durations_s.tolist()):
        if length_s >= hours * 3600:
            starts.append(number)
            length_s = 0.0
        length_s += duration_s
    count = len(starts)
    width = max(5, len(str(count)))
    return [
        Shard(folder / f"{name}-{number:0{width}}-of-{count:0{width}}.tar", utterances[start:end])
        for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(utterances)], strict=True))
    ]


def write(shard: Shard, kind: str, progress: Progress | None = None) -> list[Skipped]:
    """Write a tar and its manifest, each whole or not at all, unless nothing can be read; returns what cannot.

    kind:   of audio, one of KINDS: mono at 16 kHz with 16 bits, which is what training hears; flac and wav are exactly that.
    raises: OutputError.
    """
    encoded = files.each(partial(_encode, kind=kind), shard.utterances, progress, shard.tar.name)
    skipped = [each for each in encoded if isinstance(each, Skipped)]
    if len(skipped) == len(encoded):
        return skipped
    utterances, keys = list[Utterance](), set[str]()
    shard.manifest.unlink(missing_ok=True)  # it must not stand beside another tar; a store's object is replaced later
    with files.replaced(shard.tar) as file:
        for utterance, made in zip(shard.utterances, encoded, strict=True):
            if isinstance(made, Skipped):
                continue
            key = _key(utterance.id, keys)
            said: dict[str, str | float] = {"text": utterance.text, "duration": made.duration_s}
            if utterance.speaker is not None:
                said["speaker"] = utterance.speaker
            start = _add(file, f"{key}.{kind}", made.content)
            _add(file, f"{key}.json", json.dumps(said, ensure_ascii=False).encode())
            member = Member.within(shard.tar, f"{key}.{kind}", start, len(made.content))
            utterances.append(replace(utterance, audio=member, duration_s=made.duration_s, offset_s=0.0))
        file.write(bytes(2 * _BLOCK))
    manifest.write(shard.manifest, utterances)
    return skipped


class _Encoded(NamedTuple):
    content: bytes
    duration_s: float


def _encode(utterance: Utterance, kind: str) -> _Encoded | Skipped:
    container, subtype = KINDS[kind]
    try:
        f"{utterance.text}{utterance.speaker}".encode()
        samples = audio.as_int16(audio.read_utterance(utterance))
        file = io.BytesIO()
        soundfile.write(file, samples, audio.SAMPLE_RATE, subtype, format=container)
        content = file.getvalue()
        return _Encoded(content, len(audio.read(content)) / audio.SAMPLE_RATE)
    except AudioError as error:
        return Skipped(utterance.id, str(error))
    except UnicodeEncodeError:
        return Skipped(utterance.id, _NO_UNICODE)


def _key(name: str, taken: set[str]) -> str:
    """A name that is no other's in the tar, and without dots, since WebDataset's end at the first."""
    stem = key = re.sub(r"[^\w+=@-]+", "-", name)[:_MAX_KEY].strip("-") or "utterance"
    number = 1
    while key in taken:
        number += 1
        key = f"{stem}-{number}"
    taken.add(key)
    return key


def _add(file: IO[bytes], name: str, content: bytes) -> int:
    """Append a file to a tar; returns where its content begins. Every tar of the same is the same: no times, no owners."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    file.write(header.tobuf())
    start = file.tell()
    file.write(content + bytes(-len(content) % _BLOCK))
    return start


# --- reading those of others ---


def read(paths: Sequence[Path], progress: Progress | None = None) -> tuple[list[Utterance], list[Skipped]]:
    """The utterances of plain tars, their audio decoded once to tell its length; and what cannot be used.

    Of each, KEY.flac or another recording, and its text: KEY.txt, or "text" in KEY.json, where "speaker" may stand too.
    raises: CorpusError if one cannot be opened, or is no tar.
    """
    utterances: list[Utterance] = []
    skipped: list[Skipped] = []
    for found, others in files.each(_read, paths, progress, "reading tars"):
        utterances += found
        skipped += others
    return utterances, skipped


class _File(NamedTuple):
    """A file in a tar: where, what its name says, and its text, if it is one."""

    member: Member
    key: str
    suffix: str
    text: bytes


def _read(tar: Path) -> tuple[list[Utterance], list[Skipped]]:
    utterances: list[Utterance] = []
    skipped: list[Skipped] = []
    try:
        with tar.open("rb") as raw:
            for _, group in groupby(_files(raw, tar, skipped), lambda file: file.key):
                one = _utterance(list(group), raw)
                if isinstance(one, Utterance):
                    utterances.append(one)
                else:
                    skipped.append(one)
    except OSError as error:
        raise CorpusError(f"{tar}: cannot be read: {error.strerror or error}; check the path and its mode") from None
    return utterances, skipped


def _utterance(group: list[_File], raw: IO[bytes]) -> Utterance | Skipped:
    key = f"{group[0].member.tar.name}/{group[0].key}"
    recordings = [file for file in group if file.suffix not in _TEXTS]
    if len(recordings) != 1:
        return Skipped(key, f"expected one recording of that name in the tar, got {len(recordings) or 'none'}")
    text, speaker = None, None
    for file in sorted(group, key=lambda file: file.suffix, reverse=True):  # .json goes last, and says more
        if file.suffix == ".txt":
            text = file.text.decode("utf-8", "replace").strip()
        elif file.suffix == ".json":
            try:
                said = json.loads(file.text)
            except (ValueError, RecursionError):
                return Skipped(key, "expected JSON in its .json, got something else")
            if isinstance(said, dict):
                text = said["text"] if isinstance(said.get("text"), str) else text
                speaker = str(said["speaker"]) if isinstance(said.get("speaker"), (str, int)) else None
    if text is None:
        return Skipped(key, "expected its transcript in the tar, as KEY.txt or as 'text' in KEY.json, got none")
    member = recordings[0].member
    raw.seek(member.start)
    try:
        duration_s = len(audio.read(raw.read(member.size))) / audio.SAMPLE_RATE
        f"{text}{speaker}".encode()
    except AudioError as error:
        return Skipped(key, str(error).partition(": ")[2])
    except UnicodeEncodeError:
        return Skipped(key, _NO_UNICODE)
    return Utterance(member, duration_s, text, speaker=speaker)


def _files(raw: IO[bytes], tar: Path, skipped: list[Skipped]) -> Iterator[_File]:
    """The recordings and texts in a tar, in its order; what else it holds is passed over. Nothing is unpacked."""
    end = raw.seek(0, os.SEEK_END)
    raw.seek(0)
    count = behind = 0
    damage = ""
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", _Headers(raw)), mode="r:") as archive:
            while (header := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # which would hold all that was seen
                if archive.offset <= behind:
                    raise tarfile.ReadError("a file of less than nothing")
                count, behind = count + 1, archive.offset
                folder, _, name = header.name.rpartition("/")
                key, _, suffix = name.partition(".")
                suffix = f".{suffix.rpartition('.')[2].lower()}"
                if not key or header.isdir() or suffix not in (*_TEXTS, *audio.SUFFIXES):
                    continue
                if reason := _refuse(header, suffix, end):
                    skipped.append(Skipped(f"{tar.name}/{header.name[:200]}", reason))
                    continue
                member = Member.within(tar, header.name, header.offset_data, header.size)
                raw.seek(member.start)
                text = raw.read(member.size) if suffix in _TEXTS else b""
                yield _File(member, f"{folder}/{key}".lstrip("/"), suffix, text)
            raw.seek(archive.offset)
            if raw.read(_BLOCK) != bytes(_BLOCK):  # tarfile takes any block that is no header for the end
                damage = "no end where it should be"
    except (tarfile.TarError, EOFError, UnicodeError, ValueError) as error:
        damage = str(error)
    if damage and not count:
        raise CorpusError(f"{tar}: expected a plain tar, got {damage}; unpack a .tar.gz first: gunzip")
    if damage:
        skipped.append(Skipped(tar.name, f"cut short or damaged after {count} files ({damage}); copy it again"))


def _refuse(header: tarfile.TarInfo, suffix: str, end: int) -> str:
    """Why a file in a tar is not used, or nothing."""
    limit = _MAX_TEXT if suffix in _TEXTS else _MAX_AUDIO
    parts = header.name.split("/")
    if not header.isreg() or header.sparse is not None:
        return "expected a file, got a link or what is no plain one"
    if header.name.startswith("/") or ".." in parts or re.search(r"[\\\x00-\x1f\x7f]", header.name):
        return "expected a name below one folder, got one that leads elsewhere"
    if not 0 < header.size <= limit:
        return f"expected 1 to {limit} bytes, got {header.size}"
    if header.offset_data + header.size > end:
        return "cut short, as the tar is; copy it again"
    return ""


class _Headers:
    """A tar as tarfile is to see it: it reads headers and no content, and those are small, whatever they say."""

    def __init__(self, raw: IO[bytes]) -> None:
        self.seek, self.tell, self._raw = raw.seek, raw.tell, raw

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_TEXT:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._raw.read(size)
