"""Text for language models: lines of files, compressed or not, and of manifests, normalised, less what tests are made of."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from asr import manifest
from asr.errors import AsrError

OVERLAP = 7  # words; a shared run of so many is hardly chance
_MAX_LINE = 1 << 20  # bytes
_OPENERS: dict[str, Callable[..., IO[Any]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


class LmTextError(AsrError):
    """Text that cannot be read."""


def lines(paths: Iterable[str | Path], normalise: Callable[[str], str]) -> Iterator[str]:
    """The normalised lines of all files in turn; of a manifest (.jsonl), its texts.

    raises: LmTextError naming file and line for what is missing, not UTF-8, damaged or has a line beyond all measure.
    """
    for path in map(Path, paths):
        if path.suffix == ".jsonl":
            yield from (normalise(utterance.text) for utterance in manifest.read(path))
            continue
        number = 0
        try:
            with _OPENERS.get(path.suffix, open)(path, "rb") as file:
                while line := file.readline(_MAX_LINE + 1):
                    number += 1
                    if len(line) > _MAX_LINE:
                        raise LmTextError(
                            f"{path}:{number}: expected lines of at most {_MAX_LINE} bytes, got a longer one"
                        )
                    yield normalise(line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode())
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise LmTextError(
                f"{path}:{number}: expected UTF-8, got byte 0x{byte:02x}; convert it: iconv -f latin1 -t utf-8"
            ) from None
        except FileNotFoundError:
            raise LmTextError(f"{path}: no such text; check the path") from None
        except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise LmTextError(f"{path}: cannot be read: {error.strerror}") from None
            raise LmTextError(f"{path}: damaged or cut short after line {number}: {error}") from None


class Without:
    """Lines less those that equal a held-out sentence or share a run of OVERLAP words with one.

    A language model that has read a test's sentences knows its answers.
    dropped: how many lines were left out so far.
    """

    def __init__(self, held_out: Iterable[str]) -> None:
        texts = [text.split() for text in held_out]
        self._sentences = {tuple(words) for words in texts if words}
        self._runs = {run for words in texts for run in _runs(words)}
        self.dropped = 0

    def __call__(self, lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            words = line.split()
            if tuple(words) in self._sentences or not self._runs.isdisjoint(_runs(words)):
                self.dropped += 1
            else:
                yield line


def _runs(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return (tuple(words[i : i + OVERLAP]) for i in range(len(words) - OVERLAP + 1))
