"""Text for language models: lines of files, compressed or not, and of manifests, normalised, less what tests are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from asr import files, manifest
from asr.errors import LmError

OVERLAP = 7  # words; a shared run of so many is hardly chance
MAX_LINE = 1 << 20  # bytes


def lines(paths: Iterable[str | Path], normalise: Callable[[str], str]) -> Iterator[str]:
    """The normalised lines of all files in turn; of a manifest (.jsonl), its texts.

    raises: LmError naming file and line for what is missing, not UTF-8, damaged or has a line beyond all measure.
    """
    for path in map(Path, paths):
        if path.suffix == ".jsonl":
            yield from (normalise(utterance.text) for utterance in manifest.read(path))
            continue
        numbered = files.lines(path, LmError, what="text", max_line=MAX_LINE)
        yield from (normalise(line) for _, line in numbered)


class Without:
    """Lines less those that equal a held-out sentence or share a run of OVERLAP words with one.

    A language model that has read a test's sentences knows its answers.
    dropped, seen: how many lines were left out so far, of how many.
    """

    def __init__(self, held_out: Iterable[str]) -> None:
        texts = [text.split() for text in held_out]
        self._sentences = {tuple(words) for words in texts if words}
        self._runs = {run for words in texts for run in _runs(words)}
        self.dropped = self.seen = 0

    def __call__(self, lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            words = line.split()
            self.seen += bool(words)
            if tuple(words) in self._sentences or not self._runs.isdisjoint(_runs(words)):
                self.dropped += 1
            else:
                yield line


def _runs(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return (tuple(words[i : i + OVERLAP]) for i in range(len(words) - OVERLAP + 1))
