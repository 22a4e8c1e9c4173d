"""Files: written whole or not at all, read line by line with errors that name the line, many at a time in threads."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import math
import os
import secrets
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, TypeVar

from asr.errors import AsrError, OutputError
from asr.remote import Remote

if TYPE_CHECKING:
    from rich.progress import Progress

MAX_LINE = 1 << 26  # bytes; the alignment of a long recording takes some MB
_BATCH = 1 << 18  # bytes of lines that are read at a time
_MAX_EXPANSION = 200  # of compressed files; real ones stay below 50, zeros reach 1000
_SLACK = 1 << 20  # bytes that a file may hold whatever its compressed size
_OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def replaced(
    path: str | Path,
    *,
    overwrite: bool = True,
    alone: bool = False,
    advice: str = "check the folder and its free space",
) -> Iterator[BinaryIO]:
    """A new file, open to be written, that takes its name at the end of the block; what fails leaves things as they were.

    After a crash, a power cut or on a full disk there is the old file or the new one, whole.
    alone:  no other process writes this file: what one that was killed has left is taken over, and does not pile up.
    raises: OutputError if the file exists and overwrite is not set, is not a plain file, or cannot be written.
    """
    if isinstance(path, Remote):
        with _uploaded(path, overwrite) as file:
            yield file
        return
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # replacing /dev/null would do harm
            raise OutputError(f"{path}: expected the name of a file to write, got a folder or device")
        if path.exists() and not overwrite:
            raise OutputError(f"{path}: the file exists already; remove it, or ask to overwrite it")
        # In the same folder, because a rename is atomic only within one file system; a random name, because two writers
        # of one output must not share it; opened as any file is, for the usual permissions.
        temporary = path.with_name(path.name + ".part" if alone else f".{secrets.token_hex(8)}.part")
        try:
            with temporary.open("wb" if alone else "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # the data before the name, or a power cut can leave an empty file
            temporary.replace(path)
        except BaseException:  # the user's Ctrl-C too
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}; {advice}") from None


@contextmanager
def _uploaded(path: Remote, overwrite: bool) -> Iterator[BinaryIO]:
    try:
        if not overwrite and path.exists():
            raise OutputError(f"{path}: the file exists already; remove it, or ask to overwrite it")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None
    with tempfile.TemporaryFile() as file:
        yield file
        path.write_from(file)


def write(path: str | Path, content: str | bytes, overwrite: bool = False) -> None:
    """Write a file whole or not at all, a text as UTF-8. raises: OutputError, as `replaced`."""
    with replaced(path, overwrite=overwrite) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, unless it is there. raises: OutputError."""
    if isinstance(folder, Remote):
        return  # a store of objects has none
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: expected a folder to write to, got: {error.strerror}; name another, or change its mode"
        ) from None


def lines(
    path: str | Path,
    kind: type[AsrError],
    *,
    what: str = "file",
    missing: str = "check the path",
    max_line: int = MAX_LINE,
) -> Iterator[tuple[str, str]]:
    """("FILE:NUMBER", line) of each line of a text in UTF-8, plain or compressed (gzip, bzip2, xz: its first bytes tell).

    Line ends are kept; only a line feed ends a line: a text may hold U+2028 and its like.

    what:    what errors call such a file.  missing: what to do if there is none.
    raises:  an error of the kind, naming file and line, if the file is missing, damaged, not UTF-8, or has a line or a
             length beyond all measure.

    >>> next(lines("tests/data/lm/three.arpa", AsrError))[0]
    'tests/data/lm/three.arpa:1'
    """
    for first, batch in batches(path, kind, what=what, missing=missing, max_line=max_line):
        yield from decode(batch, path, first, kind)


def decode(batch: Iterable[bytes], path: str | Path, first: int, kind: type[AsrError]) -> Iterator[tuple[str, str]]:
    """("FILE:NUMBER", line) of each of these lines, the first of which has that number, from 1. raises: as `lines`."""
    for number, line in enumerate(batch, first):
        try:
            yield f"{path}:{number}", line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode()
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise kind(
                f"{path}:{number}: expected UTF-8, got byte 0x{byte:02x}; save it as UTF-8: iconv -f latin1 -t utf-8"
            ) from None


def batches(
    path: str | Path,
    kind: type[AsrError],
    *,
    what: str = "file",
    missing: str = "check the path",
    max_line: int = MAX_LINE,
) -> Iterator[tuple[int, list[bytes]]]:
    """The lines of a file as they are, many at a time, and the number of the first of them, from 1; else as `lines`."""
    path = path if isinstance(path, Path) else Path(path)
    number = size = 0
    try:
        with path.open("rb") as raw:
            head = raw.peek(8)
            opener = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)
            limit = _MAX_EXPANSION * os.fstat(raw.fileno()).st_size + _SLACK if opener else math.inf
            file: IO[bytes] = opener(raw) if opener else raw
            batch: list[bytes] = []
            given = 0  # bytes
            while line := file.readline(max_line + 1):
                number += 1
                size += len(line)
                if len(line) > max_line:
                    raise kind(f"{path}:{number}: expected lines of at most {max_line} bytes, got a longer one")
                if size > limit:
                    raise kind(
                        f"{path}:{number}: expected a file of text, got one that unpacks to more than {_MAX_EXPANSION} "
                        "times its size; unpack it yourself if you trust it"
                    )
                batch.append(line)
                if size - given > _BATCH:
                    yield number - len(batch) + 1, batch
                    batch, given = [], size
            if batch:
                yield number - len(batch) + 1, batch
    except FileNotFoundError:
        raise kind(f"{path}: no such {what}; {missing}") from None
    except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise kind(f"{path}: cannot be read: {error.strerror}; check the path and its mode") from None
        raise kind(f"{path}: damaged or cut short after line {number}: {error}; copy it again") from None


def each(
    work: Callable[[Item], Result], items: Iterable[Item], progress: Progress | None, description: str
) -> list[Result]:
    """Do the work for each item in threads (soundfile decodes without holding the GIL); the results in the items' order.

    progress: a Rich progress display to add a bar to.
    """
    from concurrent.futures import ThreadPoolExecutor

    items = list(items)
    task = None if progress is None else progress.add_task(description, total=len(items))
    results = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            for result in pool.map(work, items):
                results.append(result)
                if progress is not None and task is not None:
                    progress.advance(task)
        except BaseException:  # Ctrl-C must not wait for all the files still queued
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results


def cores() -> int:
    """How many processor cores this process may use; all of them where the system cannot tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
