"""Timed words -> subtitles that can be read in time, as SubRip (srt) or WebVTT (vtt)."""

from __future__ import annotations

import html
import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol

# The limits that broadcasters and streaming services agree on, give or take.
LINE_CHARS = 42
LINES = 2
CHARS_PER_S = 17.0  # what most people read with ease
MIN_MS = 833  # 5/6 s: 20 frames of film
MAX_MS = 7000
GAP_MS = 83  # two frames of film between cues, or the eye takes the change for none
PAUSE_MS = MIN_MS + GAP_MS  # a pause of this length always ends a cue; the shortest word before it is shown for MIN_MS


class TimedWord(Protocol):
    """What a subtitle needs of asr.transcript.Word, which stands above this module."""

    @property
    def text(self) -> str: ...

    @property
    def start_s(self) -> float: ...

    @property
    def end_s(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Cue:
    """The lines on screen from start_ms to end_ms. Whole milliseconds, as files have: no rounding to overlap."""

    start_ms: int
    end_ms: int
    lines: tuple[str, ...]


def milliseconds(time_s: float) -> int:
    """The nearest whole millisecond."""
    return round(float(time_s) * 1000)


def cues(words: Sequence[TimedWord], line_chars: int = LINE_CHARS, max_lines: int = LINES) -> list[Cue]:
    """Words in order of time as subtitles; each word in exactly one.

    A cue starts with its first word. It has at most max_lines of line_chars (a longer word stands alone, whole), ends
    at a pause of PAUSE_MS, and is on screen for MAX_MS at most. It stays for as long as its words last and reading
    takes (CHARS_PER_S, MIN_MS), or until GAP_MS before the next cue: what is said faster is shown faster.

    Of all ways to cut the words that keep these rules, the one of the lowest sum of `_Speech.cost` is taken.
    """
    speech = _Speech(words, line_chars, max_lines)
    n = len(words)
    best, first = [0.0] + [math.inf] * n, [0] * (n + 1)  # lowest cost of words[:j], and where its last cue starts
    for j in range(1, n + 1):
        for i in range(j - 1, -1, -1):
            if not speech.fits(i, j):
                break  # nor would any longer cue
            cost = best[i] + speech.cost(i, j)
            if cost < best[j]:
                best[j], first[j] = cost, i
    cuts = [n]
    while cuts[-1]:
        cuts.append(first[cuts[-1]])
    cuts.reverse()

    found: list[Cue] = []
    for i, j in pairwise(cuts):
        start = speech.starts[i]
        end = min(max(speech.ends[j - 1], start + speech.reading_ms(i, j)), start + MAX_MS)
        if j < n:
            room = speech.starts[j] - start
            end = min(end, speech.starts[j] - min(GAP_MS, room // 2))  # of hurried words the gap takes half at most
        found.append(Cue(start, end, speech.lines(i, j)))
    return found


def srt(cues: Iterable[Cue]) -> str:
    """A SubRip file. The format has no way to escape anything; no cues are an empty file."""
    return "\n".join(
        f"{number}\n{_clock(cue.start_ms, ',')} --> {_clock(cue.end_ms, ',')}\n" + "".join(f"{x}\n" for x in cue.lines)
        for number, cue in enumerate(cues, 1)
    )


def vtt(cues: Iterable[Cue]) -> str:
    """A WebVTT file; no cues are its header alone."""
    return "WEBVTT\n" + "".join(
        f"\n{_clock(cue.start_ms, '.')} --> {_clock(cue.end_ms, '.')}\n"
        + "".join(f"{html.escape(line, quote=False)}\n" for line in cue.lines)
        for cue in cues
    )


class _Speech:
    """The words as whole milliseconds and characters; words[i:j] is a cue or line that might be."""

    def __init__(self, words: Sequence[TimedWord], line_chars: int = LINE_CHARS, max_lines: int = LINES) -> None:
        self.line_chars, self.max_lines = line_chars, max_lines
        self.texts = [word.text for word in words]
        # Strictly increasing, so that every cue has at least a millisecond, even where words of no length coincide.
        self.starts: list[int] = []
        for word in words:
            self.starts.append(max(milliseconds(word.start_s), self.starts[-1] + 1 if self.starts else 0))
        self.ends = [max(start + 1, milliseconds(word.end_s)) for start, word in zip(self.starts, words, strict=True)]
        # Where each word starts in the text joined by spaces.
        self.offsets = list(accumulate((len(text) + 1 for text in self.texts), initial=0))
        # [j]: the pause after words[j], as a share of PAUSE_MS.
        self.pauses = [min(max(b - a, 0) / PAUSE_MS, 1.0) for a, b in zip(self.ends, self.starts[1:], strict=False)]
        self.stretches = list(accumulate((pause == 1 for pause in self.pauses), initial=0))  # each word's number
        self.spanned = list(accumulate((pause**2 for pause in self.pauses), initial=0.0))  # up to each word

    def length(self, i: int, j: int) -> int:
        return self.offsets[j] - self.offsets[i] - 1

    def reading_ms(self, i: int, j: int) -> int:
        return max(MIN_MS, math.ceil(self.length(i, j) / CHARS_PER_S * 1000))

    def fits(self, i: int, j: int) -> bool:
        """Whether words[i:j] may be one cue. If not, no longer one with the same end may."""
        if j - i == 1:
            return True
        if self.stretches[i] != self.stretches[j - 1] or self.ends[j - 1] - self.starts[i] > MAX_MS:
            return False
        return self.rows(i, j) <= self.max_lines

    def rows(self, i: int, j: int) -> float:
        """The fewest lines that hold words[i:j]; infinite if a word among them is longer than a line."""
        count = 0
        while i < j:
            k = bisect_right(self.offsets, self.offsets[i] + self.line_chars + 1) - 1  # a line, as full as it gets
            if k == i:
                return math.inf
            i, count = k, count + 1
        return count

    def cost(self, i: int, j: int) -> float:
        """Of words[i:j] as a cue: the flow it cuts, the pauses it spans, the reading time it lacks, its emptiness.

        The flow counts double: two cues that end at pauses are better than a full one that ends within a phrase.
        The square of the emptiness spreads words evenly over cues, and makes few of them.
        """
        reading = self.reading_ms(i, j)
        room = self.starts[j] - GAP_MS - self.starts[i] if j < len(self.texts) else reading
        empty = max(0.0, 1 - self.length(i, j) / (self.max_lines * self.line_chars))
        return 2 * self._cut(j) + self.spanned[j - 1] - self.spanned[i] + max(0.0, 1 - room / reading) + empty**2

    def lines(self, i: int, j: int) -> tuple[str, ...]:
        """A cue in as few lines as hold it: broken at pauses, and of like length; the upper is the shorter in doubt."""
        rows = self.rows(i, j)
        if rows == 1 or j - i == 1:
            return (" ".join(self.texts[i:j]),)
        share = self.length(i, j) / rows

        def badness(k: int) -> float:
            return self._cut(k) + abs(self.length(i, k) - (self.length(k, j) if rows == 2 else share)) / self.line_chars

        breaks = [k for k in range(i + 1, j) if self.length(i, k) <= self.line_chars and self.rows(k, j) == rows - 1]
        k = min(breaks, key=badness)
        return (" ".join(self.texts[i:k]), *self.lines(k, j))

    def _cut(self, j: int) -> float:
        """0 where words[j - 1] is followed by a long pause or nothing, 1 where by the next word at once.

        Squared, because half a second is nearly as good a place to stop as a whole one.
        """
        return (1 - self.pauses[j - 1]) ** 2 if j < len(self.texts) else 0.0


def _clock(time_ms: int, point: str) -> str:
    """HH:MM:SS,mmm; from 100 hours on, more digits."""
    seconds, ms = divmod(time_ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{ms:03}"
