"""Many recordings: which files, where their texts go, how many at a time, results in the order of the inputs."""

from __future__ import annotations

import glob
import logging
import os
import signal
import threading
import time
from collections import defaultdict, deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from asr import audio, terminal
from asr.errors import AsrError
from asr.files import cores
from asr.recognizer import Recognizer
from asr.remote import Remote, locate
from asr.transcript import SUFFIXES, Transcript

_SHOWN = 5  # files that are passed over


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel of a recording, from 0."""

    path: Path
    number: int

    def __str__(self) -> str:
        return f"{self.path}, channel {self.number + 1}"


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be heard, and the file that each format of its text goes to (none: to stdout). name: without suffix."""

    source: Path | Channel
    name: Path
    outputs: dict[str, Path]

    @property
    def path(self) -> Path:
        return self.source.path if isinstance(self.source, Channel) else self.source

    @property
    def channel(self) -> int | None:
        return self.source.number if isinstance(self.source, Channel) else None


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of a recording, the seconds it took, and what is to be told of it, where another process heard that."""

    result: Transcript | AsrError
    seconds: float
    notes: tuple[str, ...] = ()


def find(inputs: Sequence[str], *, recursive: bool = False) -> tuple[dict[Path, Path], list[AsrError], list[Path]]:
    """The recordings that files, folders and patterns such as *.wav name, in that order, and what to call their outputs.

    returns:   path -> name without suffix, below a folder that was given relative to it; an error for each folder or
               pattern without recordings, and each folder that cannot be read; and what was passed over in folders, but
               for hidden files. A missing file is left to its reader.
    recursive: also the folders within folders; links to folders are not followed, so that a loop of them ends.
    """
    found: dict[Path, Path] = {}
    errors: list[AsrError] = []
    others: list[Path] = []
    for name in inputs:
        path = locate(name)
        unreadable: list[OSError] = []
        if isinstance(path, Remote):
            try:
                recordings, passed = _elsewhere(path, recursive)
            except AsrError as error:
                errors.append(error)
                continue
            others += passed
            expected, hint = "recordings there", ""
        elif os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises where a name is too long)
            files, passed = _in_folder(path, recursive, unreadable)
            others += passed
            recordings = {file: file.relative_to(path).with_suffix("") for file in files}
            hint = "" if recursive else "; --recursive also looks into the folders within"
            expected = "a folder with recordings"
        elif glob.has_magic(name) and not os.path.exists(path):  # noqa: PTH110
            matches = map(Path, sorted(glob.glob(name, recursive=True)))  # noqa: PTH207 (Path.glob is for relative ones)
            recordings = {file: Path(file.stem) for file in matches if file.is_file()}
            expected, hint = "files of that pattern", ""
        else:
            recordings = {path: Path(path.stem)}
        errors += [
            AsrError(f"{error.filename}: cannot be read: {error.strerror}; change its mode or its owner")
            for error in unreadable
        ]
        if not recordings and not unreadable:
            errors.append(AsrError(f"{name}: expected {expected}, found none{hint}"))
        found |= {file: name_of for file, name_of in recordings.items() if file not in found}
    return _tell_apart(found), errors, others


def passed_over(others: Sequence[Path]) -> str:
    """The note about files in folders that are no recordings."""
    more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
    return f"passed over, as no recordings: {', '.join(map(str, others[:_SHOWN]))}{more}"


def of_shard(recordings: Mapping[Path, Path], shard: tuple[int, int], *, written: bool) -> dict[Path, Path]:
    """The recordings of shard (number from 1, count): every count-th of the sorted list, the same on every machine.

    written: their texts go to files, by whose names they are sorted, so that two of one name meet in one shard, which
             says so; without files they are sorted by their own paths.
    """
    number, count = shard
    keys = {path: str(name if written else path) for path, name in recordings.items()}
    own = set(sorted(set(keys.values()))[number - 1 :: count])
    return {path: name for path, name in recordings.items() if keys[path] in own}


def by_channel(recordings: Mapping[Path, Path], track: int | None = None) -> dict[Path | Channel, Path]:
    """Each channel of the recordings for itself, its outputs numbered; a recording of one channel is as it was."""
    found: dict[Path | Channel, Path] = {}
    for path, name in recordings.items():
        try:
            count = audio.info(path, track=track).channels
        except AsrError:  # left to its reader
            count = 1
        if count == 1:
            found[path] = name
        else:
            found |= {Channel(path, number): name.with_name(f"{name.name}.{number + 1}") for number in range(count)}
    return found


def plan(
    recordings: Mapping[Path | Channel, Path] | Mapping[Path, Path],
    folder: Path | None,
    formats: Sequence[str],
    *,
    overwrite: bool,
    skip_existing: bool,
) -> tuple[list[Job], list[Path | Channel], list[AsrError]]:
    """What is to be done, the recordings that are done already, and those that would harm another's output.

    An output that exists is an error, unless overwrite or skip_existing is set; so is one output of two recordings.
    """
    jobs: list[Job] = []
    skipped: list[Path | Channel] = []
    errors: list[AsrError] = []
    unasked: list[AsrError] = []
    owners: dict[Path, Path | Channel] = {}
    # One listing, in place of a question for each output.
    exists = {*folder.files(recursive=True)}.__contains__ if isinstance(folder, Remote) else os.path.exists
    for path, name in recordings.items():
        outputs = {kind: folder / f"{name}{SUFFIXES[kind]}" for kind in formats} if folder else {}
        taken = next((output for output in outputs.values() if owners.setdefault(output, path) != path), None)
        existing = [output for output in outputs.values() if exists(output)]
        if taken:
            errors.append(
                AsrError(f"{path}: its output {taken} belongs to {owners[taken]} already; rename one of them")
            )
        elif outputs and skip_existing and len(existing) == len(outputs):
            skipped.append(path)
        elif existing and not overwrite and not skip_existing:
            unasked.append(
                AsrError(f"{path}: its output {existing[0]} exists already; use --overwrite or --skip-existing")
            )
        else:
            jobs.append(Job(path, name, outputs))
    if len(unasked) > 1:  # one line says it
        share = f"all {len(unasked)}" if len(unasked) == len(recordings) else f"{len(unasked)} of {len(recordings)}"
        unasked = [AsrError(f"{folder}: has outputs of {share} recordings already; use --overwrite or --skip-existing")]
    return jobs, skipped, errors + unasked


def processes(recordings: int, jobs: int | None) -> tuple[int, int]:
    """How many share the work at first, and at most: `jobs`; without it one, and later perhaps one for each core."""
    most = max(1, min(jobs or cores(), recordings))
    return most if jobs else 1, most


def is_faster(processes: int, start_s: float, left_s: float) -> bool:
    """Whether so many processes, after start_s seconds that each of them needs to start, would save one much of left_s."""
    return start_s + left_s / processes < 0.75 * left_s


def transcribe(
    paths: Sequence[Path],
    model: str | Path | None,
    *,
    jobs: int | None,
    hear: Sequence[dict[str, Any]] | None = None,
    **options: Any,
) -> Generator[Attempt, None, None]:
    """The transcript of each file, or the error it met; in order, however many processes share the work.

    jobs:    processes; with 1, this one does it all. Without a number it begins, and others take the rest if by the time
             that the first recordings took, and that each process takes to start, they will be done earlier.
    hear:    what of each file: the options of Recognizer.transcribe.
    options: of the Recognizer in each process.
    To close the generator, and Ctrl-C, end the processes at once.
    """
    if not paths:
        return
    hear = [{}] * len(paths) if hear is None else hear
    workers, most = processes(len(paths), jobs)
    # Here too with several: a model that cannot be loaded is one error then, not one in every process.
    recognizer = Recognizer(model, **options if workers == 1 else options | {"threads": 1})
    start_s = time.process_time()  # what loading has taken, libraries included
    sizes = list(map(_size, paths))
    done, spent_s, heard, left = 0, 0.0, 0, sum(sizes)
    while workers == 1 and done < len(paths):
        attempt = _attempt(recognizer, paths[done], hear[done])
        yield attempt
        heard, left = heard + sizes[done], left - sizes[done]
        done, spent_s = done + 1, spent_s + attempt.seconds
        more = min(most, len(paths) - done)
        if more > 1 and is_faster(more, start_s, spent_s * left / max(heard, 1)):
            workers = more
    if done == len(paths):
        return
    del recognizer  # every process loads its own
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    # Spawned, not forked: onnxruntime's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, context, _start, (model, options)) as pool:
        try:
            with _without_interrupts():
                waiting = deque(
                    pool.submit(_attempt_here, path, part) for path, part in zip(paths[done:], hear[done:], strict=True)
                )
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise AsrError("a process died, perhaps for lack of memory; try again with fewer --jobs") from None
        except BaseException:
            # What they are at may take minutes yet. No future is cancelled: that races with the pool, which marks all as
            # failed once its processes are gone.
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ctrl-C waits for the end of the block; the processes started in it never hear it: to end them is for this one.

    What they do themselves, in `_start`, is too late for one during their imports.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []  # blocked here, it goes to another thread, if there is one, and then to this handler
    handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        with terminal.blocked({signal.SIGINT}):
            yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if came:
        signal.raise_signal(signal.SIGINT)


def _in_folder(folder: Path, recursive: bool, unreadable: list[OSError]) -> tuple[list[Path], list[Path]]:
    """The recordings in a folder, and its other files."""
    recordings: list[Path] = []
    others: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=unreadable.append):
        folders.sort()
        for path in (Path(place, name) for name in sorted(names)):
            if audio.is_recording(path):
                recordings.append(path)
            elif not path.name.startswith("."):
                others.append(path)
        if not recursive:
            break
    return recordings, others


def _elsewhere(path: Remote, recursive: bool) -> tuple[dict[Path, Path], list[Path]]:
    """The recordings at an address, which by their names are some, as `find` returns them, and the other files there."""
    if "*" in path.name:
        return {file: Path(file.stem) for file in path.matches()}, []
    # Asked only where the name leaves it open: a web server would send the recording for an answer.
    folder = path.address.endswith("/") or not (path.suffix or path.address.startswith("http") or not path.is_dir())
    if not folder:
        return {path: Path(path.stem or path.name)}, []
    recordings: dict[Path, Path] = {}
    others: list[Path] = []
    for file in path.files(recursive):
        if file.suffix.lower() in audio.SUFFIXES:
            recordings[file] = Path(str(file).removeprefix(f"{path}/")).with_suffix("")
        elif not file.name.startswith("."):
            others.append(file)
    return recordings, others


def _tell_apart(found: dict[Path, Path]) -> dict[Path, Path]:
    """Recordings of one name, such as memo.m4a and memo.flac, keep their suffix in it: for memo.flac.txt."""
    same: dict[Path, set[str]] = defaultdict(set)
    for path, name in found.items():
        same[name].add(path.name)
    return {path: name.with_name(path.name) if len(same[name]) > 1 else name for path, name in found.items()}


def _size(path: Path) -> int:
    """Bytes; of a file that is not there none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _attempt(recognizer: Recognizer, path: Path, hear: dict[str, Any]) -> Attempt:
    started = perf_counter()
    result: Transcript | AsrError
    try:
        result = recognizer.transcribe(path, **hear)
    except AsrError as error:
        result = error
    return Attempt(result, perf_counter() - started)


_own: Recognizer  # of a worker process


class _Kept(logging.Handler):
    """Keeps what the log says for the process that asked."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.notes.append(record.getMessage())


_kept = _Kept()


def _start(model: str | Path | None, options: dict[str, Any]) -> None:
    global _own
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where that is not inherited, as on Windows
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.getLogger("asr").addHandler(_kept)
    _own = Recognizer(model, **options)


def _end_with_parent() -> None:
    """However the process that asked has ended, nobody waits for the answer any more."""
    import multiprocessing
    from multiprocessing.connection import wait

    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _attempt_here(path: Path, hear: dict[str, Any]) -> Attempt:
    _kept.notes.clear()
    return replace(_attempt(_own, path, hear), notes=tuple(_kept.notes))
