"""Manifests: one JSON object a line, with NeMo's keys, so that the same file serves both toolkits.

    {"audio_filepath": "wavs/a.flac", "duration": 2.41, "text": "hello there", "speaker": "s1", "offset": 0.0}

`audio_filepath` is relative to the manifest's folder (or absolute); `offset` and `speaker` are optional; seconds.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asr import files
from asr.errors import ManifestError as ManifestError

_REQUIRED: dict[str, type | tuple[type, ...]] = {"audio_filepath": str, "duration": (int, float), "text": str}
_OPTIONAL: dict[str, type | tuple[type, ...]] = {"offset": (int, float), "speaker": (str, int)}


@dataclass(frozen=True, slots=True)
class Utterance:
    """A stretch of an audio file and its transcript. duration_s, offset_s: seconds.

    >>> Utterance(Path("talks/one.flac"), 2.5, "hello there", offset_s=61.25).id
    'one@61.25'
    """

    audio: Path
    duration_s: float
    text: str
    offset_s: float = 0.0
    speaker: str | None = None

    @property
    def id(self) -> str:
        """The file's stem, with the offset where the file holds several utterances."""
        return f"{self.audio.stem}@{self.offset_s:.2f}" if self.offset_s else self.audio.stem


@dataclass(frozen=True, slots=True)
class Skipped:
    """An utterance that is left out, and why."""

    id: str
    reason: str


def read(path: str | Path, faults: list[ManifestError] | None = None) -> list[Utterance]:
    """The utterances of a manifest, in its order; that the audio exists is not checked here (see `asr.corpus.doctor`).

    faults: takes the errors of all lines that are not as described above, which are left out then.
    raises: ManifestError naming file and line if it is missing, empty, not UTF-8, or has such a line.
    """
    path = Path(path)
    numbered = files.lines(
        path, ManifestError, what="manifest", missing="run the recipe's prepare.py first, or check the path"
    )
    utterances = []
    for where, line in numbered:
        try:
            if line.strip():
                utterances.append(_parse(line, path.parent, where))
        except ManifestError as error:
            if faults is None:
                raise
            faults.append(error)
    if not utterances and not faults:
        raise ManifestError(f"{path}: expected one JSON object a line, got an empty file")
    return utterances


def write(path: str | Path, utterances: Iterable[Utterance]) -> None:
    """Write a manifest, whole or not at all; audio below the manifest's folder is named relative to it.

    Seconds keep six decimals, which names every sample exactly. raises: ManifestError for half a surrogate pair;
    OutputError if it cannot be written.
    """
    path = Path(path)
    # abspath, not resolve(): a corpus behind a symbolic link keeps the name it was given.
    folder = Path(os.path.abspath(path.parent))  # noqa: PTH100
    lines = []
    for utterance in utterances:
        audio = Path(os.path.abspath(utterance.audio))  # noqa: PTH100
        name = audio.relative_to(folder) if audio.is_relative_to(folder) else audio
        row: dict[str, Any] = {"audio_filepath": name.as_posix(), "duration": round(utterance.duration_s, 6)}
        row["text"] = utterance.text
        if utterance.offset_s:
            row["offset"] = round(utterance.offset_s, 6)
        if utterance.speaker is not None:
            row["speaker"] = utterance.speaker
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    try:
        data = "".join(lines).encode("utf-8")
    except UnicodeEncodeError as error:
        part = error.object[max(0, error.start - 20) : error.end]
        raise ManifestError(
            f"{path}: expected Unicode text, got half a surrogate pair in {part!r}; nothing written"
        ) from None
    files.make_folder(path.parent)
    files.write(path, data, overwrite=True)


def _parse(line: str, folder: Path, where: str) -> Utterance:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # not only JSONDecodeError: also a number of 5000 digits
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise ManifestError(f"{where}: expected a JSON object, got {line.strip()[:60]!r} ({reason})") from None
    if not isinstance(row, dict):
        raise ManifestError(f"{where}: expected a JSON object, got {line.strip()[:60]!r}")
    for key, kind in _REQUIRED.items():
        if key not in row:
            raise ManifestError(f"{where}: expected the keys {', '.join(_REQUIRED)}; '{key}' is missing")
        _check_kind(row[key], kind, key, where)
    for key, kind in _OPTIONAL.items():
        if row.get(key) is not None:
            _check_kind(row[key], kind, key, where)
    if not row["audio_filepath"]:
        raise ManifestError(f"{where}: expected 'audio_filepath' to name a file, got an empty text")
    duration_s, offset_s = _seconds(row["duration"]), _seconds(row.get("offset") or 0.0)
    if not (math.isfinite(duration_s) and duration_s > 0 and math.isfinite(offset_s) and offset_s >= 0):
        raise ManifestError(f"{where}: expected duration > 0 and offset >= 0 seconds, got {duration_s} and {offset_s}")
    speaker = row.get("speaker")
    return Utterance(
        folder / row["audio_filepath"], duration_s, row["text"], offset_s, None if speaker is None else str(speaker)
    )


def _check_kind(value: object, kind: type | tuple[type, ...], key: str, where: str) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        expected = "text" if str in (kind if isinstance(kind, tuple) else (kind,)) else "a number"
        raise ManifestError(f"{where}: expected '{key}' to be {expected}, got {value!r}")


def _seconds(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf
