"""Many recordings: which files, how many at a time, results in the order of the inputs."""

from __future__ import annotations

import glob
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from asr import audio
from asr.errors import AsrError
from asr.recognizer import Recognizer
from asr.transcript import Transcript

Result = tuple[Path, Transcript | AsrError]


class BatchError(AsrError):
    """Inputs that name no recordings."""


def find(inputs: Sequence[str], *, recursive: bool = False) -> list[Path]:
    """The recordings that files, folders and patterns such as *.wav name; each once, folders in alphabetical order.

    recursive: also the folders within folders; links to folders are not followed, so that a loop of them ends.
    raises:    BatchError for a folder or pattern without recordings. A file that is missing is left to its reader.
    """
    found: dict[Path, None] = {}
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            paths = _in_folder(path, recursive)
            if not paths:
                hint = "" if recursive else "; --recursive also looks into the folders within"
                raise BatchError(
                    f"{path}: expected a folder with recordings ({' '.join(audio.SUFFIXES)}), found none{hint}"
                )
        elif glob.has_magic(name) and not path.exists():
            paths = [Path(match) for match in sorted(glob.glob(name, recursive=True)) if Path(match).is_file()]
            if not paths:
                raise BatchError(f"{name}: expected files of that pattern, found none")
        else:
            paths = [path]
        found |= dict.fromkeys(paths)
    return list(found)


def transcribe(paths: Sequence[Path], model: str | Path | None, *, beam: int, jobs: int) -> Iterator[Result]:
    """The transcript of each file, or the error it met; in order, however many processes share the work.

    jobs: processes, each with a recogniser of its own on one thread; with 1, this process does it all.
    """
    if jobs == 1 or len(paths) == 1:
        recognizer = Recognizer(model, beam=beam)
        for path in paths:
            yield path, _attempt(recognizer, path)
        return
    Recognizer(model, beam=beam)  # a model that cannot be loaded is one error here, not one in every process
    # Spawned, not forked: onnxruntime's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(paths)), context, _start, (model, beam)) as pool:
        try:
            yield from zip(paths, pool.map(_attempt_here, paths), strict=True)
        except BrokenProcessPool:
            raise BatchError("a process died, perhaps for lack of memory; try again with fewer --jobs") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _in_folder(folder: Path, recursive: bool) -> list[Path]:
    paths: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders.sort()
        paths += [Path(place, name) for name in sorted(names) if Path(name).suffix.lower() in audio.SUFFIXES]
        if not recursive:
            break
    return paths


def _attempt(recognizer: Recognizer, path: Path) -> Transcript | AsrError:
    try:
        return recognizer.transcribe(path)
    except AsrError as error:
        return error


_own: Recognizer  # of a worker process


def _start(model: str | Path | None, beam: int) -> None:
    global _own
    _own = Recognizer(model, beam=beam, threads=1)


def _attempt_here(path: Path) -> Transcript | AsrError:
    return _attempt(_own, path)
