"""What the corpora of other toolkits say of their utterances, and how that becomes utterances of ours.

A reader (`kaldi`, `lhotse`, `tables`) tells what the files say, as entries; `probe` looks at the audio, all files at
once; `fit` makes utterances of both. What cannot be used is listed with its reason, and nothing that a corpus names is
ever executed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from asr import audio, files
from asr.errors import AsrError, CorpusError
from asr.manifest import Skipped, Utterance

if TYPE_CHECKING:
    from rich.progress import Progress

MAX_OVERSHOOT_S = 0.5  # so far an utterance may reach beyond its audio and is cut to it: as Kaldi's extract-segments
_Key = TypeVar("_Key", bound=Hashable)


class UnusableError(Exception):
    """Why an utterance is skipped."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a corpus says of an utterance, before its audio was looked at.

    offset_s, duration_s: seconds; duration_s None: to the end of the file.
    channels: how many the file must have, where the corpus means certain ones of it; None: all are averaged, as ever.
    """

    id: str
    audio: Path
    text: str
    speaker: str | None = None
    offset_s: float = 0.0
    duration_s: float | None = None
    channels: int | None = None


@dataclass
class Corpus:
    """What a reader found. untranscribed: recordings or cuts that hold no utterance, which is no fault."""

    entries: list[Entry] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    untranscribed: int = 0


def probe(paths: Iterable[Path], progress: Progress | None = None) -> dict[Path, audio.AudioInfo | AsrError]:
    """What the header of each audio file says, or why it cannot be read; several at a time.

    progress: a Rich progress display to add a bar to.
    """
    names = list(dict.fromkeys(paths))
    return dict(zip(names, files.each(_info, names, progress, "looking at audio"), strict=True))


def fit(
    entries: Iterable[Entry], infos: dict[Path, audio.AudioInfo | AsrError]
) -> tuple[list[Utterance], list[Skipped]]:
    """The utterances whose audio is there, cut to it where they reach up to MAX_OVERSHOOT_S beyond it; and the others."""
    utterances: list[Utterance] = []
    skipped: list[Skipped] = []
    for entry in entries:
        fitted = _fit(entry, infos[entry.audio])
        if isinstance(fitted, str):
            skipped.append(Skipped(entry.id, fitted))
        else:
            utterances.append(fitted)
    return utterances, skipped


def _info(path: Path) -> audio.AudioInfo | AsrError:
    try:
        return audio.info(path)
    except AsrError as error:
        return error


def _fit(entry: Entry, info: audio.AudioInfo | AsrError) -> Utterance | str:
    """The utterance, or why there is none."""
    if isinstance(info, AsrError):
        return str(info)
    try:
        "\n".join((entry.text, entry.speaker or "", str(entry.audio))).encode("utf-8")
    except UnicodeEncodeError as error:
        return f"expected Unicode text, got half a surrogate pair or a name that is no text: {error.object[:60]!a}"
    if entry.channels is not None and entry.channels != info.channels:
        return (
            f"{entry.audio}: expected {entry.channels} channels, as the corpus has it, got {info.channels}, which would be "
            "mixed; save the channel as a file of its own"
        )
    asked_s = info.duration_s - entry.offset_s if entry.duration_s is None else entry.duration_s
    start_s = max(0.0, entry.offset_s)
    duration_s = min(asked_s, info.duration_s - start_s, entry.offset_s + asked_s)
    if not (math.isfinite(entry.offset_s) and 0 < duration_s >= asked_s - MAX_OVERSHOOT_S):
        return (
            f"{entry.audio}: expected an utterance within its {info.duration_s:.2f} s, got one "
            f"from {entry.offset_s:.2f} s to {entry.offset_s + asked_s:.2f} s"
        )
    return Utterance(entry.audio, round(duration_s, 6), entry.text, round(start_s, 6), entry.speaker)


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """("FILE:NUMBER", line) of each line of a file that may be compressed, line ends kept. raises: CorpusError."""
    return files.lines(path, CorpusError)


def unique_names(wanted: dict[_Key, str]) -> dict[_Key, str]:
    """Names without whitespace and control characters; where some would be the same, the later ones get a number."""
    names: dict[_Key, str] = {}
    taken: set[str] = set()
    for key, name in wanted.items():
        stem = candidate = re.sub(r"[\s\x00-\x1f\x7f]+", "_", name)
        number = 1
        while candidate in taken:
            number += 1
            candidate = f"{stem}_{number}"
        taken.add(candidate)
        names[key] = candidate
    return names


def seconds(value_s: float) -> str:
    return f"{value_s:.6f}".rstrip("0").rstrip(".")
