"""Audio decoded once: the int16 samples of many utterances in a few large files, mapped into memory.

Decoding FLAC or MP3 again in every epoch would starve a GPU. Mapped files cost no memory of their own, are shared by all
processes of a machine, and are there at once for the next training. An hour is 115 MB.

A shard is named after what it was made of: where a manifest or a recording changes, only its shards are decoded anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import overload

import numpy as np

from asr import audio, files
from asr.errors import AudioError, TrainingError
from asr.manifest import Utterance
from asr.remote import absolute

_SHARD_S = 5 * 3600.0  # what a killed preparation loses at most; 576 MB
_BYTES_PER_S = 2 * audio.SAMPLE_RATE
FULL_SCALE = 2**15


class Decoded(Sequence["np.ndarray | str"]):
    """Of each utterance the samples, (N,) int16 in a mapped file, or in words why it cannot be read.

    lengths: (n,) in samples, 0 for what cannot be read; errors: by the number of the utterance.
    """

    def __init__(
        self,
        shards: Sequence[np.ndarray],
        numbers: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
        errors: dict[int, str],
    ) -> None:
        """numbers: (n,) of the shards; starts: (n,) in them, in samples."""
        self._shards, self._numbers, self._starts = shards, numbers, starts
        self.lengths, self.errors = lengths, errors

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> np.ndarray | str: ...

    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray | str]: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | str | list[np.ndarray | str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return self.errors[index] if index in self.errors else self.samples(index)

    def samples(self, index: int) -> np.ndarray:
        """(N,) int16."""
        start = self._starts[index]
        samples: np.ndarray = self._shards[self._numbers[index]][start : start + self.lengths[index]]
        return samples

    def take(self, indices: np.ndarray) -> Decoded:
        """Some utterances, none of which is an error."""
        return Decoded(self._shards, self._numbers[indices], self._starts[indices], self.lengths[indices], {})


def decode(
    utterances: Sequence[Utterance],
    folder: Path,
    *,
    rank: int = 0,
    processes: int = 1,
    progress: Callable[[], None] = lambda: None,
) -> Decoded:
    """The samples of each utterance, in mapped files.

    rank, processes: of those on this machine that want the same: each decodes its part, and waits for the others'.
    progress: called after each utterance that this process decodes.
    raises:   TrainingError or OutputError if the folder cannot be written, or has too little space.
    """
    groups = _group(utterances)
    shards = [folder / f"{_key(group)}.json" for group in groups]
    missing = [number for number, shard in enumerate(shards) if not _whole(shard)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_space(folder, [groups[number] for number in missing])
        # By its number, not its place among the missing ones: of those, a process that starts later finds fewer.
        own = [number for number in missing if number % processes == rank]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # soundfile and soxr release the GIL
            # Its own first, then all: a training that starts now too and skips other utterances may have removed some again.
            for number in (*own, *missing):
                while not _whole(shards[number]):
                    if number in own:
                        _write(groups[number], shards[number], pool, progress)
                    else:
                        time.sleep(0.1)
        if rank == 0:
            _remove_others(folder, shards)
    except OSError as error:
        raise TrainingError(
            f"{error.filename or folder}: decoded audio cannot be written: {error.strerror}; "
            "set data.cache to a folder that can be written"
        ) from None
    try:
        _allow_open_files()
        return _read(shards)
    except OSError as error:
        raise TrainingError(
            f"{error.filename or folder}: decoded audio cannot be read: {error.strerror}; of too many open files: "
            f"raise their limit (ulimit -n) above the {len(shards)} shards"
        ) from None


def _group(utterances: Sequence[Utterance]) -> list[Sequence[Utterance]]:
    starts: list[int] = []
    length_s = _SHARD_S
    for number, utterance in enumerate(utterances):
        if length_s >= _SHARD_S:
            starts.append(number)
            length_s = 0.0
        length_s += utterance.duration_s
    return [utterances[start:end] for start, end in pairwise([*starts, len(utterances)])]


def _key(utterances: Sequence[Utterance]) -> str:
    digest = hashlib.sha256()
    for utterance in utterances:
        try:
            status = utterance.audio.stat()
            version = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]  # ctime: a file may become readable
        except (OSError, ValueError):  # ValueError: a NUL in the name
            version = []
        name = str(absolute(utterance.audio))
        digest.update(json.dumps([name, utterance.offset_s, utterance.duration_s, *version]).encode() + b"\n")
    return digest.hexdigest()[:24]


def _check_space(folder: Path, groups: Sequence[Sequence[Utterance]]) -> None:
    needed = sum(utterance.duration_s for group in groups for utterance in group) * _BYTES_PER_S
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise TrainingError(
            f"{folder}: expected {needed / 2**30:.1f} GB of free space for decoded audio, got {free / 2**30:.1f} GB; "
            "free some, or set data.cache to a folder elsewhere"
        )


def _whole(shard: Path) -> bool:
    try:
        lengths = json.loads(shard.read_text(encoding="utf-8"))["lengths"]
        return shard.with_suffix(".int16").stat().st_size == 2 * int(sum(lengths))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(group: Sequence[Utterance], shard: Path, pool: ThreadPoolExecutor, progress: Callable[[], None]) -> None:
    lengths, errors = [], {}
    advice = "set data.cache, for decoded audio, to a folder that can be written"
    samples = shard.with_suffix(".int16")
    # At the end the samples take their name first: the index says that the shard is whole.
    with files.replaced(shard, advice=advice) as index, files.replaced(samples, advice=advice) as file:
        for number, piece in enumerate(pool.map(_decode, group)):
            if isinstance(piece, str):
                errors[str(number)] = piece
                piece = np.empty(0, np.int16)
            file.write(piece.tobytes())
            lengths.append(len(piece))
            progress()
        index.write(json.dumps({"lengths": lengths, "errors": errors}).encode())


def _decode(utterance: Utterance) -> np.ndarray | str:
    try:
        waveform = audio.read(utterance.audio, offset_s=utterance.offset_s, duration_s=utterance.duration_s)
    except AudioError as error:
        return str(error)
    return np.asarray(np.rint(waveform * FULL_SCALE).clip(-FULL_SCALE, FULL_SCALE - 1), np.int16)  # exact for 16 bits


def _read(shards: Sequence[Path]) -> Decoded:
    files, lengths = list[np.ndarray](), [np.empty(0, np.int64)]
    errors: dict[int, str] = {}
    for shard in shards:
        index = json.loads(shard.read_text(encoding="utf-8"))
        before = sum(map(len, lengths))
        errors |= {before + int(number): reason for number, reason in index["errors"].items()}
        lengths.append(np.array(index["lengths"], np.int64))
        samples = np.empty(0, np.int16)
        if lengths[-1].any():
            samples = np.asarray(np.memmap(shard.with_suffix(".int16"), np.int16, "r"))
        files.append(samples)
    starts = [np.cumsum(each) - each for each in lengths]
    numbers = np.repeat(np.arange(len(files)), [len(each) for each in lengths[1:]])
    return Decoded(files, numbers, np.concatenate(starts), np.concatenate(lengths), errors)


def _allow_open_files() -> None:
    """As many as the system allows: each shard stays open, and the usual 1024 would end at 5000 hours."""
    if sys.platform != "win32":
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ValueError):  # macOS names no limit, and has one
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _remove_others(folder: Path, shards: Sequence[Path]) -> None:
    """Delete what the manifest was before. A training that still has it mapped keeps it until it ends."""
    kept = {shard.stem for shard in shards}
    for path in folder.iterdir():
        if path.suffix in (".json", ".int16") and path.stem not in kept:
            path.unlink(missing_ok=True)
