"""Manifests: one JSON object a line, with NeMo's keys, so that the same file serves both toolkits.

    {"audio_filepath": "wavs/a.flac", "duration": 2.41, "text": "hello there", "speaker": "s1", "offset": 0.0}

`audio_filepath` is relative to the manifest's folder, absolute, or an address such as s3://talks/a.flac; `offset` and
`speaker` are optional; seconds. Audio in a tar (see `asr.corpus.tars`) has its first byte there and their number besides:
`"audio_filepath": "train.tar/a.flac", "bytes": [512, 40211]`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import eq
from pathlib import Path
from typing import Any, overload

import numpy as np
from pydantic_core import from_json

from asr import files
from asr.errors import ManifestError as ManifestError
from asr.remote import Member, absolute, locate, manifests, place_in_tar

_REQUIRED: dict[str, type | tuple[type, ...]] = {"audio_filepath": str, "duration": (int, float), "text": str}
_OPTIONAL: dict[str, type | tuple[type, ...]] = {"offset": (int, float), "speaker": (str, int)}
# Where an utterance's audio and text stand among all of them, one after the other, and how long they are, in bytes;
# seconds; the numbers of the manifest's folder and of the speaker, or -1; the first byte in a tar, or -1, and how many.
_NAMES = ("at", "audio", "text", "duration_s", "offset_s", "folder", "speaker", "start", "size")
_ROW = np.dtype({"names": _NAMES, "formats": ("i8", "u4", "u4", "f8", "f8", "i4", "i4", "i8", "u4")})


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


class Utterances(Sequence[Utterance]):
    """The utterances of manifests, as columns: of each 52 bytes and its texts; an Utterance is made when asked for.

    A slice, or an array of numbers, makes Utterances that share the texts. durations_s: (n,) seconds.
    """

    def __init__(self, folders: Sequence[Path], texts: bytearray, rows: np.ndarray, speakers: Sequence[str]) -> None:
        self._folders, self._texts, self._rows, self._speakers = folders, texts, rows, speakers
        self.durations_s: np.ndarray = rows["duration_s"]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Utterance: ...

    @overload
    def __getitem__(self, index: slice | np.ndarray) -> Utterances: ...

    def __getitem__(self, index: int | slice | np.ndarray) -> Utterance | Utterances:
        if isinstance(index, (slice, np.ndarray)):
            return Utterances(self._folders, self._texts, self._rows[index], self._speakers)
        at, audio, text, duration_s, offset_s, folder, speaker, start, size = self._rows[index].item()
        end, known = at + audio, None if speaker < 0 else self._speakers[speaker]
        name, said = (
            part.decode("utf-8", "surrogatepass") for part in (self._texts[at:end], self._texts[end : end + text])
        )
        path = locate(name) if "://" in name else self._folders[folder] / name
        return Utterance(path if start < 0 else Member.at(path, start, size), duration_s, said, offset_s, known)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))


def read(path: str | Path | Sequence[str | Path], faults: list[ManifestError] | None = None) -> Utterances:
    """The utterances of a manifest, in its order; that the audio exists is not checked here (see `asr.corpus.doctor`).

    path:   one manifest, or several, to be read one after the other; tars, folders of them and patterns such as
            shards/*.tar stand for the manifests beside them.
    faults: takes the errors of all lines that are not as described above, which are left out then.
    raises: ManifestError naming file and line if it is missing, empty, not UTF-8, or has such a line.
    """
    named = map(locate, [path] if isinstance(path, (str, Path)) else path)
    paths = [each for one in named for each in manifests(one)]
    texts, rows, ends, speakers = bytearray(), bytearray(), [0], dict[str, int]()
    advice = "run the recipe's prepare.py first, or check the path"
    for path in paths:
        for first, batch in files.batches(path, ManifestError, what="manifest", missing=advice):
            try:
                rows += _columns(list(map(from_json, batch)), texts, speakers)
            except (ValueError, TypeError, KeyError, OverflowError):  # rare; line by line, for a good message
                numbered = files.decode(batch, path, first, ManifestError)
                rows += _columns(list(_checked(numbered, faults)), texts, speakers)
        ends.append(len(rows) // _ROW.itemsize)
        if ends[-1] == ends[-2] and not faults:
            raise ManifestError(f"{path}: expected one JSON object a line, got an empty file")
    table = np.frombuffer(rows, _ROW)
    table["folder"] = np.repeat(np.arange(len(paths)), np.diff(ends))
    return Utterances([path.parent for path in paths], texts, table, list(speakers))


def _columns(lines: Sequence[dict[str, Any]], texts: bytearray, speakers: dict[str, int]) -> bytes:
    """Rows for these lines; names and texts go to the end of `texts`, new speakers to the others with their number.

    raises: ValueError, TypeError, KeyError or OverflowError, before any change, for what may be a fault.
    """
    audio, said = [line["audio_filepath"] for line in lines], [line["text"] for line in lines]
    seconds = [line["duration"] for line in lines], [line.get("offset", 0.0) for line in lines]
    speaker = [line.get("speaker") for line in lines]
    places = [line.get("bytes") for line in lines]
    rows = np.empty(len(lines), _ROW)
    duration_s, offset_s = rows["duration_s"], rows["offset_s"]
    duration_s[:], offset_s[:] = seconds
    if not (
        {*map(type, audio), *map(type, said)} <= {str}
        and {*map(type, seconds[0]), *map(type, seconds[1])} <= {float, int}
        and {*map(type, speaker)} <= {str, int, type(None)}
        and all(audio)
        and np.all((duration_s > 0) & (offset_s >= 0) & np.isfinite(duration_s + offset_s))
    ):
        raise ValueError
    rows["start"], rows["size"] = -1, 0
    if {*map(type, places)} - {type(None)}:
        rows["start"], rows["size"] = np.array(list(map(place_in_tar, places, audio)), np.int64).T
    parts = [part for both in zip(audio, said, strict=True) for part in both]
    data = "".join(parts).encode("utf-8", "surrogatepass")
    counts = parts if len(data) == sum(map(len, parts)) else [part.encode("utf-8", "surrogatepass") for part in parts]
    rows["audio"], rows["text"] = np.array(list(map(len, counts))).reshape(-1, 2).T
    lengths = rows["audio"].astype(np.int64) + rows["text"]
    rows["at"] = len(texts) + np.cumsum(lengths) - lengths
    rows["speaker"] = [-1 if one is None else speakers.setdefault(str(one), len(speakers)) for one in speaker]
    texts += data
    return rows.tobytes()


def _checked(numbered: Iterable[tuple[str, str]], faults: list[ManifestError] | None) -> Iterator[dict[str, Any]]:
    """The lines that are not empty, each as a manifest's; faults, as in `read`, takes the errors of the others."""
    for where, line in numbered:
        try:
            if line.strip():
                yield _parse(line, where)
        except ManifestError as error:
            if faults is None:
                raise
            faults.append(error)


def write(path: str | Path, utterances: Iterable[Utterance]) -> None:
    """Write a manifest, whole or not at all; audio below the manifest's folder is named relative to it.

    Seconds keep six decimals, which names every sample exactly. raises: ManifestError for half a surrogate pair;
    OutputError if it cannot be written.
    """
    path = locate(path)
    folder = absolute(path.parent)
    files.make_folder(path.parent)
    try:
        with files.replaced(path) as file:
            for utterance in utterances:
                audio = utterance.audio
                path = absolute(audio.tar if isinstance(audio, Member) else audio)
                name = (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()
                row: dict[str, Any] = {"audio_filepath": name, "duration": round(utterance.duration_s, 6)}
                row["text"] = utterance.text
                if isinstance(audio, Member):
                    row |= {"audio_filepath": f"{name}/{audio.inside}", "bytes": [audio.start, audio.size]}
                if utterance.offset_s:
                    row["offset"] = round(utterance.offset_s, 6)
                if utterance.speaker is not None:
                    row["speaker"] = utterance.speaker
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    except UnicodeEncodeError as error:
        part = error.object[max(0, error.start - 20) : error.end]
        raise ManifestError(
            f"{path}: expected Unicode text, got half a surrogate pair in {part!r}; nothing written"
        ) from None


def _parse(line: str, where: str) -> dict[str, Any]:
    """A line's object, if it is a manifest's. raises: ManifestError."""
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
    try:
        place_in_tar(row.get("bytes"), row["audio_filepath"])
    except ValueError as error:
        raise ManifestError(f"{where}: {error}") from None
    if not row["audio_filepath"]:
        raise ManifestError(f"{where}: expected 'audio_filepath' to name a file, got an empty text")
    duration_s, offset_s = _seconds(row["duration"]), _seconds(row.get("offset") or 0.0)
    if not (math.isfinite(duration_s) and duration_s > 0 and math.isfinite(offset_s) and offset_s >= 0):
        raise ManifestError(f"{where}: expected duration > 0 and offset >= 0 seconds, got {duration_s} and {offset_s}")
    return row | {"duration": duration_s, "offset": offset_s}


def _check_kind(value: object, kind: type | tuple[type, ...], key: str, where: str) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        expected = "text" if str in (kind if isinstance(kind, tuple) else (kind,)) else "a number"
        raise ManifestError(f"{where}: expected '{key}' to be {expected}, got {value!r}")


def _seconds(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf
