"""Audio decoded once: the int16 samples of many utterances in a few large files, mapped into memory.

Decoding FLAC or MP3 again in every epoch would starve a GPU. Mapped files cost no memory of their own, are shared by all
processes of a machine, and are there at once for the next training. An hour is 115 MB.

A shard is named after what it was made of: where a manifest or a recording changes, only its shards are decoded anew.

What stands in tars is not kept: it is read from there when it is needed, so that a corpus may be larger than the disk. Its
manifest tells place, length and text of each, and so batches, their order and the place to resume at are those of files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import cast, overload

import numpy as np

from asr import audio, files
from asr.errors import AudioError, TrainingError
from asr.manifest import Utterance, Utterances
from asr.remote import Member, Remote, absolute, read_members

_SHARD_S = 5 * 3600.0  # what a killed preparation loses at most; 576 MB
_BYTES_PER_S = 2 * audio.SAMPLE_RATE
_TOLERANCE = audio.SAMPLE_RATE // 100  # samples: what resampling, and rounding of its time, may change
_ASKING = 32  # threads: of tars elsewhere, each waits for its answer
_THEN_RESUME = "mend that, then go on with --resume"


class Decoded(Sequence["np.ndarray | str"]):
    """Of each utterance the samples, (N,) int16 in a mapped file or read from a tar, or in words why it cannot be read.

    lengths: (n,) in samples, 0 for what cannot be read; errors: by the number of the utterance.
    """

    def __init__(
        self,
        shards: Sequence[np.ndarray],
        numbers: np.ndarray,
        starts: np.ndarray,
        lengths: np.ndarray,
        errors: dict[int, str],
        utterances: Sequence[Utterance] = (),
    ) -> None:
        """numbers: (n,) of the shards, -1 for what stands in a tar; starts: (n,) in shards, in samples.

        utterances: of what stands in tars; `starts` has its number there.
        """
        self.shards, self.numbers, self.starts, self._utterances = shards, numbers, starts, utterances
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
        """(N,) int16. raises: TrainingError, as `several`."""
        return self.several([index])[index]

    def several(self, indices: Iterable[int]) -> dict[int, np.ndarray]:
        """The samples of several utterances by their numbers, (N,) int16 each; those in tars elsewhere come all at once.

        raises: TrainingError if a tar can no longer be read, or is another than it was.
        """
        found: dict[int, np.ndarray] = {}
        in_tars: dict[int, Utterance] = {}
        for index in {*indices}:
            number, start = int(self.numbers[index]), int(self.starts[index])
            if number < 0:
                in_tars[index] = self._utterances[start]
            else:
                found[index] = self.shards[number][start : start + self.lengths[index]]
        try:
            contents = read_members([cast("Member", utterance.audio) for utterance in in_tars.values()])
        except OSError as error:
            raise TrainingError(f"{error.filename}: cannot be read: {error.strerror}; {_THEN_RESUME}") from None
        for (index, utterance), content in zip(in_tars.items(), contents, strict=True):
            try:
                samples = found[index] = _samples(content, utterance)
            except AudioError as error:
                reason = str(error).partition(": ")[2]
                raise TrainingError(f"{utterance.audio}: {reason}; {_THEN_RESUME}") from None
            if abs(len(samples) - self.lengths[index]) > _TOLERANCE:
                raise TrainingError(
                    f"{utterance.audio}: expected {self.lengths[index]} samples, as its manifest has it, got "
                    f"{len(samples)}: the tar is another than it was; {_THEN_RESUME}"
                )
        return found

    def take(self, indices: np.ndarray) -> Decoded:
        """Some utterances, none of which is an error."""
        rows = self.numbers[indices], self.starts[indices], self.lengths[indices]
        return Decoded(self.shards, *rows, {}, self._utterances)


def decode(
    utterances: Sequence[Utterance],
    folder: Path,
    *,
    rank: int = 0,
    processes: int = 1,
    progress: Callable[[], None] = lambda: None,
) -> Decoded:
    """The samples of each utterance, in mapped files; of those in tars nothing is decoded yet.

    rank, processes: of those on this machine that want the same: each decodes its part, and waits for the others'.
    progress: called after each utterance that this process decodes.
    raises:   TrainingError or OutputError if the folder cannot be written, or has too little space, or if a tar is missing
              or cut short.
    """
    in_tars = np.array([isinstance(utterance.audio, Member) for utterance in utterances], bool)
    if not in_tars.any():
        return _decode_files(utterances, folder, rank, processes, progress)
    _check_tars(utterances)
    numbers, starts = np.full(len(in_tars), -1), np.arange(len(in_tars))
    shards: Sequence[np.ndarray] = []
    errors: dict[int, str] = {}
    lengths = np.array([round(utterance.duration_s * audio.SAMPLE_RATE) for utterance in utterances])
    if not in_tars.all():
        of_files = np.flatnonzero(~in_tars)
        # As columns, if they are.
        others = utterances[of_files] if isinstance(utterances, Utterances) else [utterances[int(i)] for i in of_files]
        decoded = _decode_files(others, folder, rank, processes, progress)
        shards = decoded.shards
        numbers[of_files], starts[of_files], lengths[of_files] = decoded.numbers, decoded.starts, decoded.lengths
        errors = {int(of_files[index]): reason for index, reason in decoded.errors.items()}
    return Decoded(shards, numbers, starts, lengths, errors, utterances)


def _check_tars(utterances: Sequence[Utterance]) -> None:
    """raises: TrainingError if one is missing or too short."""
    ends: dict[Path, int] = {}
    for utterance in utterances:
        if isinstance(member := utterance.audio, Member):
            ends[member.tar] = max(ends.get(member.tar, 0), member.start + member.size)

    def fault(tar: Path) -> str:
        try:
            size = tar.stat().st_size
        except OSError as error:
            return f"{tar}: cannot be read: {error.strerror}"
        if size >= ends[tar] or (not size and isinstance(tar, Remote)):  # a web server may not say
            return ""
        return f"{tar}: expected {ends[tar]} bytes or more, as its manifest has it, got {size}"

    with ThreadPoolExecutor(_ASKING) as pool:
        faults = [told for told in pool.map(fault, ends) if told]
    if faults:
        more = f", and {len(faults) - 1} more tars cannot be used either" if faults[1:] else ""
        raise TrainingError(f"{faults[0]}{more}; copy what is missing, or name in data.train the tars that are whole")


def _decode_files(
    utterances: Sequence[Utterance], folder: Path, rank: int, processes: int, progress: Callable[[], None]
) -> Decoded:
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
        return _samples(utterance.audio, utterance)
    except AudioError as error:
        return str(error)


def _samples(source: audio.Source, utterance: Utterance) -> np.ndarray:
    return audio.as_int16(audio.read(source, offset_s=utterance.offset_s, duration_s=utterance.duration_s))


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
