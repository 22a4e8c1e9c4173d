from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from itertools import pairwise

import pysrt
import pytest
import webvtt
from hypothesis import given
from hypothesis import strategies as st

from asr.subtitles import CHARS_PER_S, GAP_MS, LINE_CHARS, MAX_MS, MIN_MS, PAUSE_MS, Cue, _Speech, cues, srt, vtt
from asr.transcript import Word


def said(*parts: tuple[float, float, str]) -> tuple[Word, ...]:
    return tuple(Word(text, start_s, end_s, 1.0) for start_s, end_s, text in parts)


def steady(text: str, start_s: float = 0.0, word_s: float = 0.25, gap_s: float = 0.05) -> tuple[Word, ...]:
    """The words of a text, one as long as the other."""
    return said(
        *(
            (start_s + i * (word_s + gap_s), start_s + i * (word_s + gap_s) + word_s, word)
            for i, word in enumerate(text.split())
        )
    )


@st.composite
def speech(draw: st.DrawFn, max_size: int = 30, longest_word: int = 50) -> tuple[Word, ...]:
    """Words in order of time, some of no length, some that touch, off the millisecond; from 0 or from many hours."""
    letters = st.text("abcdefghijklmnopqrstuvwxyz'é", min_size=1, max_size=9)
    texts = st.one_of(letters, letters, letters, st.text("w", min_size=10, max_size=longest_word))
    gaps = st.one_of(st.just(0.0), st.floats(0, 0.3), st.floats(0, 2), st.sampled_from([PAUSE_MS / 1000, 0.0004]))
    lengths = st.one_of(st.just(0.0), st.floats(0.04, 0.6), st.floats(0, 9), st.just(0.0004))
    now = draw(st.sampled_from([0.0, 0.1, 3599.9, 359_999.5]))
    words = []
    for text, gap_s, length_s in draw(st.lists(st.tuples(texts, gaps, lengths), max_size=max_size)):
        start_s = now + gap_s
        now = start_s + length_s
        words.append(Word(text, start_s, now, 1.0))
    return tuple(words)


# Cues


def test_nothing_said_no_cues() -> None:
    assert cues(()) == []


def test_a_short_word_stays_for_the_shortest_time() -> None:
    assert cues(said((1, 1.2, "yes"))) == [Cue(1000, 1000 + MIN_MS, ("yes",))]


def test_a_cue_stays_until_it_is_read() -> None:
    # 34 characters at 17 a second, said in one second.
    (cue,) = cues(said((0, 0.4, "a" * 16), (0.5, 1.0, "b" * 17)))
    assert (cue.start_ms, cue.end_ms) == (0, 2000)


def test_a_cue_stays_while_it_is_said() -> None:
    assert cues(said((0, 0.4, "slow"), (0.9, 3.1, "words"))) == [Cue(0, 3100, ("slow words",))]


def test_the_next_cue_ends_the_time_to_read() -> None:
    first, second = cues(said((0, 0.5, "a" * 30), (0.5 + PAUSE_MS / 1000, 2, "b")))
    assert first.end_ms == 500 + PAUSE_MS - GAP_MS
    assert second.start_ms == 500 + PAUSE_MS


@pytest.mark.parametrize(("pause_ms", "count"), [(PAUSE_MS, 2), (PAUSE_MS - 1, 1)])
def test_a_long_pause_ends_a_cue(pause_ms: int, count: int) -> None:
    assert len(cues(said((0, 0.3, "one"), (0.3 + pause_ms / 1000, 2, "two")))) == count


def test_words_at_once_after_each_other_give_a_gap() -> None:
    first, second = cues(said((0, 4, "a" * 40), (4, 8, "b" * 40)))  # too long for one cue
    assert (first.end_ms, second.start_ms) == (4000 - GAP_MS, 4000)


def test_hurried_words_are_left_half_their_time() -> None:
    first, second = cues(said((0, 0.04, "a" * 50), (0.04, 0.08, "b" * 50)))
    assert (first.start_ms, first.end_ms, second.start_ms) == (0, 20, 40)


def test_cuts_fall_at_the_pauses() -> None:
    # 28 words, 140 characters: one cue is too few, and the pauses, not the middle, say where it is cut.
    text = "abcd " * 9, "efgh " * 11, "ijkl " * 8
    starts = 0.0, 3.2, 7.0
    words = sum((steady(*part) for part in zip(text, starts, strict=True)), ())
    assert [" ".join(cue.lines).split() for cue in cues(words)] == [part.split() for part in text]


def test_a_pause_is_not_spanned_to_fill_a_cue() -> None:
    # 75 characters would fit, but a pause just short of a long one lies between.
    first = steady("and at last the north wind gave up the attempt")
    found = cues(first + steady("then the sun shone out warmly", first[-1].end_s + PAUSE_MS / 1000 - 0.05))
    assert [len(" ".join(cue.lines)) for cue in found] == [46, 29]


def test_without_pauses_words_are_spread_evenly() -> None:
    # 100 characters: 84 + 15 would do, and leave a lone scrap.
    assert [len(" ".join(cue.lines)) for cue in cues(steady("abcd " * 20, gap_s=0))] == [49, 49]


def test_lines_are_balanced_and_the_upper_is_the_shorter() -> None:
    (cue,) = cues(steady("we had not been told when the train to the north would leave", word_s=0.2))
    assert cue.lines == ("we had not been told when the", "train to the north would leave")


@pytest.mark.parametrize(("line_chars", "max_lines"), [(30, 1), (22, 3), (10, 7)])
def test_other_widths_and_numbers_of_lines(line_chars: int, max_lines: int) -> None:
    words = steady("we had not been told when the train to the north would leave", word_s=0.2)
    found = cues(words, line_chars, max_lines)
    assert all(len(cue.lines) <= max_lines and all(len(line) <= line_chars for line in cue.lines) for cue in found)
    assert " ".join(line for cue in found for line in cue.lines) == " ".join(word.text for word in words)
    if max_lines == 3:
        assert [cue.lines for cue in found] == [("we had not been told", "when the train to", "the north would leave")]


def test_a_line_breaks_at_a_pause() -> None:
    words = steady("when it rains we stay", word_s=0.2) + steady("and read the old books again", 2.0, 0.2)
    (cue,) = cues(words)
    assert cue.lines == ("when it rains we stay", "and read the old books again")


def test_a_full_line_is_not_broken() -> None:
    (cue,) = cues(steady("a" * 20 + " " + "b" * 21))
    assert list(map(len, cue.lines)) == [LINE_CHARS]
    (cue,) = cues(steady("a" * 21 + " " + "b" * 21))
    assert list(map(len, cue.lines)) == [21, 21]


def test_a_word_longer_than_a_line_stands_alone_and_whole() -> None:
    words = steady("so " + "x" * 43 + " then")
    assert [cue.lines for cue in cues(words)] == [("so",), ("x" * 43,), ("then",)]


def test_a_word_longer_than_a_cue_may_last_is_cut_off_in_time() -> None:
    assert cues(said((0, 9, "oh"))) == [Cue(0, MAX_MS, ("oh",))]


def test_words_of_no_length_at_one_time_follow_each_other() -> None:
    found = cues(said(*((2.0, 2.0, "x" * 42) for _ in range(5))))
    times = [time for cue in found for time in (cue.start_ms, cue.end_ms)]
    assert times == sorted(times)
    assert sum(len(cue.lines) for cue in found) == 5
    assert all(cue.start_ms < cue.end_ms for cue in found)


@given(words=speech())
def test_cues_keep_their_rules(words: Sequence[Word]) -> None:
    found = cues(words)
    assert " ".join(line for cue in found for line in cue.lines).split() == [word.text for word in words]
    for cue in found:
        assert 0 < cue.end_ms - cue.start_ms <= MAX_MS
        assert 1 <= len(cue.lines) <= 2
        assert all(len(line) <= LINE_CHARS for line in cue.lines) or len(" ".join(cue.lines).split()) == 1
    for cue, following in pairwise(found):
        gap_ms = following.start_ms - cue.end_ms
        assert gap_ms >= min(GAP_MS, (following.start_ms - cue.start_ms) // 2)
    for cue, following in itertools.zip_longest(found, found[1:]):
        # Gone before it could be read only because the next one comes.
        reading_ms = max(MIN_MS, len(" ".join(cue.lines)) / CHARS_PER_S * 1000)
        if cue.end_ms - cue.start_ms < min(reading_ms, MAX_MS):
            assert following.start_ms - cue.end_ms <= GAP_MS


@given(words=speech())
def test_cues_are_where_their_words_are(words: Sequence[Word]) -> None:
    left = iter(words)
    previous_ms = -1
    for cue in cues(words):
        mine = list(itertools.islice(left, len(" ".join(cue.lines).split())))
        # Moved on only from where words of no length have put the one before.
        assert cue.start_ms == pytest.approx(1000 * mine[0].start_s, abs=len(words) + 1)
        assert cue.start_ms > previous_ms
        previous_ms = cue.start_ms
        for a, b in pairwise(mine):
            assert 1000 * (b.start_s - a.end_s) < PAUSE_MS + 1
        if len(mine) > 1:
            assert 1000 * (mine[-1].end_s - mine[0].start_s) <= MAX_MS + len(words) + 1


@given(words=speech(max_size=7, longest_word=40))
def test_no_other_cut_costs_less(words: Sequence[Word]) -> None:
    """Against every way to cut the words."""
    spoken, n = _Speech(words), len(words)

    def total(cuts: Sequence[int]) -> float:
        return sum(spoken.cost(i, j) if spoken.fits(i, j) else float("inf") for i, j in pairwise(cuts))

    every = ((0, *inner, n) for size in range(max(n, 1)) for inner in itertools.combinations(range(1, n), size) if n)
    sizes = [len(" ".join(cue.lines).split()) for cue in cues(words)]
    taken = total(list(itertools.accumulate(sizes, initial=0)))
    assert taken == pytest.approx(min(map(total, every), default=0.0))


# Files

LATE = (
    Cue(0, 1000, ("one",)),
    Cue(3_599_999, 3_600_001, ("two", "lines")),
    Cue(86_399_999, 100 * 3_600_000 + 1, ("a --> b & c <i>", "&amp;")),
)


def test_srt_is_laid_out_by_hand() -> None:
    assert srt(LATE) == (
        "1\n00:00:00,000 --> 00:00:01,000\none\n\n"
        "2\n00:59:59,999 --> 01:00:00,001\ntwo\nlines\n\n"
        "3\n23:59:59,999 --> 100:00:00,001\na --> b & c <i>\n&amp;\n"
    )


def test_vtt_is_laid_out_by_hand() -> None:
    assert vtt(LATE) == (
        "WEBVTT\n\n"
        "00:00:00.000 --> 00:00:01.000\none\n\n"
        "00:59:59.999 --> 01:00:00.001\ntwo\nlines\n\n"
        "23:59:59.999 --> 100:00:00.001\na --&gt; b &amp; c &lt;i&gt;\n&amp;amp;\n"
    )


def read_srt(text: str) -> list[Cue]:
    items = pysrt.from_string(text, error_handling=pysrt.ERROR_RAISE)
    assert [item.index for item in items] == list(range(1, len(items) + 1))
    return [Cue(item.start.ordinal, item.end.ordinal, tuple(item.text.split("\n"))) for item in items]


def read_vtt(text: str) -> list[Cue]:
    def ms(stamp: str) -> int:
        hours, minutes, seconds = stamp.split(":")
        return (int(hours) * 60 + int(minutes)) * 60_000 + int(seconds.replace(".", ""))

    captions = webvtt.from_string(text, strict=True).captions
    return [Cue(ms(x.start), ms(x.end), tuple(html.unescape(x.raw_text).split("\n"))) for x in captions]


def test_nothing_said_is_an_empty_but_valid_file() -> None:
    assert (srt([]), vtt([])) == ("", "WEBVTT\n")
    assert read_srt(srt([])) == read_vtt(vtt([])) == []


def test_files_read_back_late_and_with_marks() -> None:
    assert read_srt(srt(LATE)) == list(LATE)
    assert read_vtt(vtt(LATE)) == list(LATE)


@given(words=speech(max_size=20))
def test_files_read_back(words: Sequence[Word]) -> None:
    found = cues(words)
    assert read_srt(srt(found)) == found
    assert read_vtt(vtt(found)) == found
