"""Word and character error rates, and the report that says where the errors are. rapidfuzz does the alignment.

Text is compared as it arrives: normalise references and hypotheses the same way first (`asr.text`). Words are separated
by spaces; the spaces between words count as characters.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from itertools import chain, starmap, zip_longest
from operator import add
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from rapidfuzz.distance import Levenshtein, Opcodes

from asr.errors import TextError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Interval = tuple[float, float]
Word = TypeVar("Word", str, tuple[str, str])  # a word, or a pair of words taken for each other
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Scored:
    """One recognised utterance. duration_s: seconds, 0 where unknown."""

    id: str
    reference: str
    hypothesis: str
    speaker: str | None = None
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Errors:
    """Counts of one alignment, in words or characters; `sum(many, Errors())` adds them up."""

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def reference_length(self) -> int:
        return self.hits + self.substitutions + self.deletions

    @property
    def total(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """(S + D + I) / reference length; above 1 where insertions abound.

        An empty reference has no rate of its own: 0 if the hypothesis is empty too, else inf, so that text made up from
        silence is never mistaken for a finite figure. In a sum of utterances its insertions count like any others.
        """
        if self.reference_length == 0:
            return math.inf if self.insertions else 0.0
        return self.total / self.reference_length

    def __add__(self, other: Errors) -> Errors:
        return Errors(*map(add, astuple(self), astuple(other)))


@dataclass(frozen=True, slots=True)
class SpeakerErrors:
    """The errors of one speaker's utterances; speaker is None for those that name nobody. duration_s: seconds."""

    speaker: str | None
    utterances: int
    duration_s: float
    words: Errors
    characters: Errors


@dataclass(frozen=True, slots=True)
class Aligned:
    """One utterance, word beside word.

    columns: (reference, hypothesis, mark) each, all three of the same width; errors stand in upper case beside a mark
             S, D or I, and asterisks fill the side that has no word.
    """

    scored: Scored
    words: Errors
    columns: tuple[tuple[str, str, str], ...]

    def lines(self, width: int | None = None) -> Iterator[tuple[str, str, str]]:
        """The reference, the hypothesis and the marks as lines of plain text, cut between columns to fit the width."""
        lines: list[list[tuple[str, str, str]]] = []
        used = 0
        for column in self.columns:
            used += 1 + _cells(column[0])
            if not lines or (width is not None and used > width):
                lines.append([])
                used = _cells(column[0])
            lines[-1].append(column)
        for line in lines:
            reference, hypothesis, marks = (" ".join(row).rstrip() for row in zip(*line, strict=True))
            yield reference, hypothesis, marks


@dataclass(frozen=True, slots=True)
class Report:
    """How well a set of utterances was recognised, and where it went wrong; made by `report`.

    *_interval:     (lower, upper) of the bootstrap 95 % interval; None if it was not asked for.
    speakers:       worst word error rate first; empty if no utterance names its speaker.
    substitutions:  (reference word, hypothesis word, count), most frequent first; insertions and deletions likewise.
    worst:          the utterances with most word errors; those without any are never listed.
    """

    utterances: int
    wrong_utterances: int
    duration_s: float
    words: Errors
    characters: Errors
    word_interval: Interval | None
    character_interval: Interval | None
    speakers: tuple[SpeakerErrors, ...]
    substitutions: tuple[tuple[str, str, int], ...]
    insertions: tuple[tuple[str, int], ...]
    deletions: tuple[tuple[str, int], ...]
    worst: tuple[Aligned, ...]

    @property
    def wer(self) -> float:
        return self.words.rate

    @property
    def cer(self) -> float:
        return self.characters.rate

    @property
    def utterance_error_rate(self) -> float:
        """The share of utterances with at least one word error, also called sentence error rate."""
        return self.wrong_utterances / self.utterances

    def to_json(self) -> dict[str, Any]:
        """The report as a dictionary for `json.dumps`. Rates are fractions (0.12, not 12 %), null where infinite.

        utterances, duration_s, wer, wer_interval, cer, cer_interval, utterance_error_rate, wrong_utterances;
        words, characters:  hits, substitutions, deletions, insertions, reference_length;
        speakers:           speaker, utterances, duration_s, wer, cer, words, characters each;
        substitutions:      reference, hypothesis, count each; insertions, deletions: word, count each;
        worst:              id, speaker, duration_s, wer, words, reference, hypothesis, aligned_reference,
                            aligned_hypothesis, marks each.
        """
        return {
            "utterances": self.utterances,
            "duration_s": round(self.duration_s, 3),
            "wer": _json_rate(self.wer),
            "wer_interval": _json_interval(self.word_interval),
            "cer": _json_rate(self.cer),
            "cer_interval": _json_interval(self.character_interval),
            "utterance_error_rate": self.utterance_error_rate,
            "wrong_utterances": self.wrong_utterances,
            "words": _json_errors(self.words),
            "characters": _json_errors(self.characters),
            "speakers": [
                {
                    "speaker": row.speaker,
                    "utterances": row.utterances,
                    "duration_s": round(row.duration_s, 3),
                    "wer": _json_rate(row.words.rate),
                    "cer": _json_rate(row.characters.rate),
                    "words": _json_errors(row.words),
                    "characters": _json_errors(row.characters),
                }
                for row in self.speakers
            ],
            "substitutions": [
                {"reference": left, "hypothesis": right, "count": count} for left, right, count in self.substitutions
            ],
            "insertions": [{"word": word, "count": count} for word, count in self.insertions],
            "deletions": [{"word": word, "count": count} for word, count in self.deletions],
            "worst": [_json_aligned(aligned) for aligned in self.worst],
        }

    def render(self, console: Console) -> None:
        """Print the report as tables without lines or colours, so that a terminal, a pipe and a log show the same."""
        from rich.text import Text

        size = [f"utterances: {self.utterances}"]
        if self.duration_s > 0:
            audio = f"{self.duration_s / 3600:.2f} h" if self.duration_s >= 360 else f"{self.duration_s:.1f} s"
            size.append(f"audio: {audio}")
        if self.speakers:
            size.append(f"speakers: {sum(one.speaker is not None for one in self.speakers)}")
        console.print(Text(", ".join(size)))
        tables = {
            "": self._totals(),
            "Speakers, worst first": self._by_speaker(),
            "Most frequent errors": self._confusions(),
        }
        for title, table in tables.items():
            if table.row_count:
                console.print(Text(f"\n{title}" if title else "", style="bold"))
                console.print(table)
        if self.worst:
            console.print(Text("\nWorst utterances", style="bold"))
        for aligned in self.worst:
            rate, total, length = _percent(aligned.words.rate), aligned.words.total, aligned.words.reference_length
            console.print(Text(f"\n{aligned.scored.id}: WER {rate} (errors {total}, words {length})"), soft_wrap=True)
            for reference, hypothesis, marks in aligned.lines(console.width - 5):
                console.print(Text(f"REF  {reference}\nHYP  {hypothesis}"), soft_wrap=True)
                if marks:
                    console.print(Text(f"     {marks}"), soft_wrap=True)

    def _totals(self) -> Table:
        table = _table("", "rate", "95 % interval", "errors", "sub", "del", "ins", "of")
        both = (("WER", self.words, self.word_interval), ("CER", self.characters, self.character_interval))
        for name, errors, interval in both:
            limits = "" if interval is None else f"{100 * interval[0]:.2f} to {100 * interval[1]:.2f}"
            _row(table, name, _percent(errors.rate), limits, *_counts(errors))
        wrong, of = self.wrong_utterances, self.utterances
        _row(table, "utterances", _percent(self.utterance_error_rate), "", wrong, "", "", "", of)
        return table

    def _by_speaker(self) -> Table:
        table = _table("speaker", "utts", "WER", "CER", "errors", "sub", "del", "ins", "of")
        for one in self.speakers:
            name = "(not named)" if one.speaker is None else one.speaker
            rates = _percent(one.words.rate), _percent(one.characters.rate)
            _row(table, name, one.utterances, *rates, *_counts(one.words))
        return table

    def _confusions(self) -> Table:
        """Three lists side by side, without those that are empty."""
        lists: dict[str, list[tuple[int, str]]] = {
            "substituted": [(count, f"{left} -> {right}") for left, right, count in self.substitutions],
            "deleted": [(count, word) for word, count in self.deletions],
            "inserted": [(count, word) for word, count in self.insertions],
        }
        lists = {name: entries for name, entries in lists.items() if entries}
        headers = [header for name in lists for header in ("", name)]
        table = _table(*headers, left=range(1, len(headers), 2))
        for line in zip_longest(*lists.values(), fillvalue=("", "")):
            _row(table, *chain(*line))
        return table


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> Errors:
    """Word errors of all utterances together; empty references and hypotheses are allowed.

    raises: TextError if the two differ in length or are empty.
    """
    _check(references, hypotheses)
    both = zip(references, hypotheses, strict=True)
    return sum((_errors(Levenshtein.opcodes(left.split(), right.split())) for left, right in both), Errors())


def character_errors(references: Sequence[str], hypotheses: Sequence[str]) -> Errors:
    """Character errors of all utterances together, the spaces between words included. raises: as `word_errors`."""
    _check(references, hypotheses)
    both = zip(references, hypotheses, strict=True)
    return sum((_errors(Levenshtein.opcodes(left.strip(), right.strip())) for left, right in both), Errors())


def report(
    scored: Sequence[Scored], *, worst: int = 10, confusions: int = 20, bootstrap: int = 1000, seed: int = 0
) -> Report:
    """Error rates with their intervals, and the speakers, words and utterances that the errors come from.

    worst, confusions: how many utterances, and how many substitutions, insertions and deletions to list.
    bootstrap:         resamples behind the 95 % intervals, 0 for none. Utterances are drawn, never speakers: the
                       interval covers other utterances of the same speakers; new speakers may vary more.
    raises:            TextError if there are no utterances or a number is negative.

    >>> found = report([Scored("u1", "the cat sat down", "the cat sits down")])
    >>> f"WER {found.wer:.0%}, CER {found.cer:.1%}", found.substitutions
    ('WER 25%, CER 12.5%', (('sat', 'sits', 1),))
    """
    if min(worst, confusions, bootstrap) < 0:
        raise TextError(f"expected worst, confusions and bootstrap >= 0, got {worst}, {confusions} and {bootstrap}")
    _check([one.reference for one in scored], [one.hypothesis for one in scored])
    edits = [Levenshtein.opcodes(one.reference.split(), one.hypothesis.split()) for one in scored]
    words = list(map(_errors, edits))
    characters = [_errors(Levenshtein.opcodes(one.reference.strip(), one.hypothesis.strip())) for one in scored]

    substituted: Counter[tuple[str, str]] = Counter()
    inserted: Counter[str] = Counter()
    deleted: Counter[str] = Counter()
    for one, made in zip(scored, edits, strict=True):
        for left, right in _pairs(one, made):
            if left is None and right is not None:
                inserted[right] += 1
            elif right is None and left is not None:
                deleted[left] += 1
            elif left is not None and right is not None and left != right:
                substituted[left, right] += 1

    wrong = [index for index, errors in enumerate(words) if errors.total]
    wrong.sort(key=lambda index: (-words[index].total, -words[index].rate))  # stable: ties keep the set's order
    word_interval, character_interval = _bootstrap(words, characters, bootstrap, seed)
    return Report(
        utterances=len(scored),
        wrong_utterances=len(wrong),
        duration_s=sum(one.duration_s for one in scored),
        words=sum(words, Errors()),
        characters=sum(characters, Errors()),
        word_interval=word_interval,
        character_interval=character_interval,
        speakers=_by_speaker(scored, words, characters),
        substitutions=tuple((left, right, count) for (left, right), count in _most_common(substituted, confusions)),
        insertions=tuple(_most_common(inserted, confusions)),
        deletions=tuple(_most_common(deleted, confusions)),
        worst=tuple(
            Aligned(scored[index], words[index], tuple(starmap(_column, _pairs(scored[index], edits[index]))))
            for index in wrong[:worst]
        ),
    )


def _by_speaker(
    scored: Sequence[Scored], words: Sequence[Errors], characters: Sequence[Errors]
) -> tuple[SpeakerErrors, ...]:
    if all(one.speaker is None for one in scored):
        return ()
    indices: dict[str | None, list[int]] = {}
    for index, one in enumerate(scored):
        indices.setdefault(one.speaker, []).append(index)
    rows = [
        SpeakerErrors(
            speaker,
            len(own),
            sum(scored[index].duration_s for index in own),
            sum((words[index] for index in own), Errors()),
            sum((characters[index] for index in own), Errors()),
        )
        for speaker, own in indices.items()
    ]
    return tuple(sorted(rows, key=lambda row: (-row.words.rate, -row.words.total, row.speaker or "")))


def _bootstrap(
    words: Sequence[Errors], characters: Sequence[Errors], resamples: int, seed: int
) -> tuple[Interval | None, Interval | None]:
    """Percentile intervals of WER and CER over utterances drawn with replacement.

    Each resample has as many utterances as the set, and its rate is its errors over its reference length.
    source: Bisani and Ney 2004, "Bootstrap estimates for confidence intervals in ASR performance evaluation".
    """
    if not resamples:
        return None, None
    rng = np.random.default_rng(seed)
    size = len(words)
    counts = np.array(
        [(w.total, w.reference_length, c.total, c.reference_length) for w, c in zip(words, characters, strict=True)]
    )
    # How often each utterance was drawn, times its counts: one resample at a time, so memory grows with the set only.
    draws = (np.bincount(rng.integers(size, size=size), minlength=size) for _ in range(resamples))
    sums = np.stack([drawn @ counts for drawn in draws])
    return _interval(sums[:, 0], sums[:, 1]), _interval(sums[:, 2], sums[:, 3])


def _interval(errors: np.ndarray, lengths: np.ndarray) -> Interval:
    """The middle 95 % of errors / lengths, both (resamples,), rounded outwards to rates that occurred."""
    # A resample may hold empty references only: its rate is that of `Errors.rate`, and inf cannot be interpolated.
    empty = np.where(errors > 0, math.inf, 0.0)
    rates = np.sort(np.where(lengths > 0, errors / np.maximum(lengths, 1), empty))
    tail = (1 - _CONFIDENCE) / 2 * (len(rates) - 1)
    return float(rates[math.floor(tail)]), float(rates[math.ceil(len(rates) - 1 - tail)])


def _check(references: Sequence[str], hypotheses: Sequence[str]) -> None:
    if isinstance(references, str) or isinstance(hypotheses, str):
        raise TextError("expected lists of texts, got one text; put a single utterance in a list")
    if len(references) != len(hypotheses):
        raise TextError(
            f"expected one hypothesis a reference, got {len(references)} references and {len(hypotheses)} hypotheses; "
            "an utterance without a result has the hypothesis ''"
        )
    if not references:
        raise TextError("expected at least one utterance to score, got none; check the manifest")


def _errors(edits: Opcodes) -> Errors:
    counts = Counter[str]()
    for edit in edits:
        counts[edit.tag] += max(edit.src_end - edit.src_start, edit.dest_end - edit.dest_start)
    return Errors(counts["equal"], counts["replace"], counts["delete"], counts["insert"])


def _pairs(one: Scored, edits: Opcodes) -> Iterator[tuple[str | None, str | None]]:
    """The (reference, hypothesis) words of one utterance in order; None where one side has no word."""
    reference, hypothesis = one.reference.split(), one.hypothesis.split()
    for edit in edits:
        yield from zip_longest(reference[edit.src_start : edit.src_end], hypothesis[edit.dest_start : edit.dest_end])


def _column(left: str | None, right: str | None) -> tuple[str, str, str]:
    """A pair of words as three cells of equal width: reference, hypothesis, mark."""
    if left == right:
        mark = ""
    else:
        mark = "I" if left is None else "D" if right is None else "S"
        # Words that differ by case alone would look equal in upper case: those stay as they are.
        if left is None or right is None or left.upper() != right.upper():
            left, right = left and left.upper(), right and right.upper()
    reference, hypothesis = left or "*" * _cells(right or ""), right or "*" * _cells(left or "")
    width = max(_cells(reference), _cells(hypothesis))
    cells = [text + " " * (width - _cells(text)) for text in (reference, hypothesis, mark)]
    return cells[0], cells[1], cells[2]


def _cells(text: str) -> int:
    """Columns that a text takes on a terminal: two for each wide East Asian character, none for combining marks."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def _most_common(counts: Counter[Word], most: int) -> list[tuple[Word, int]]:
    """The most frequent entries; equally frequent ones in alphabetical order, so that a report is reproducible."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]


def _counts(errors: Errors) -> tuple[int, int, int, int, int]:
    return errors.total, errors.substitutions, errors.deletions, errors.insertions, errors.reference_length


def _percent(rate: float) -> str:
    return f"{100 * rate:.2f} %"


def _table(*headers: str, left: Sequence[int] = (0,)) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, header in enumerate(headers):
        # Folding keeps the whole of a long name; figures are never cut.
        if index in left:
            table.add_column(Text(header), overflow="fold")
        else:
            table.add_column(Text(header), justify="right", no_wrap=True)
    return table


def _row(table: Table, *cells: object) -> None:
    from rich.text import Text

    # Text, not str: rich would take a word such as [b] or :smile: for markup and swallow it.
    table.add_row(*(Text(str(cell)) for cell in cells))


def _json_rate(rate: float) -> float | None:
    return rate if math.isfinite(rate) else None  # JSON knows no infinity


def _json_interval(interval: Interval | None) -> list[float | None] | None:
    return None if interval is None else [_json_rate(limit) for limit in interval]


def _json_errors(errors: Errors) -> dict[str, int]:
    return asdict(errors) | {"reference_length": errors.reference_length}


def _json_aligned(aligned: Aligned) -> dict[str, Any]:
    reference, hypothesis, marks = next(aligned.lines())
    return {
        "id": aligned.scored.id,
        "speaker": aligned.scored.speaker,
        "duration_s": round(aligned.scored.duration_s, 3),
        "wer": _json_rate(aligned.words.rate),
        "words": _json_errors(aligned.words),
        "reference": aligned.scored.reference,
        "hypothesis": aligned.scored.hypothesis,
        "aligned_reference": reference,
        "aligned_hypothesis": hypothesis,
        "marks": marks,
    }
