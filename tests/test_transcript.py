from __future__ import annotations

import csv
import html
import io
import json
from itertools import pairwise

import numpy as np
import pysrt
import pytest
import webvtt
from hypothesis import given
from hypothesis import strategies as st
from praatio.utilities import textgrid_io

from asr.decoding.align import align
from asr.tokens import Span, Tokens
from asr.transcript import SUFFIXES, WRITERS, Segment, Transcript, Word, segments, words_of

TOKENS = Tokens.of(" 'abcdefghijklmnopqrstuvwxyz")


def spans(text: str, frames: list[tuple[int, int]], scores: list[float]) -> list[tuple[int, Span]]:
    pairs = zip(TOKENS.encode(text), frames, scores, strict=True)
    return [(token_id, Span(start, end, score)) for token_id, (start, end), score in pairs]


# Words


def test_words_run_from_first_character_to_last() -> None:
    found = words_of(
        spans("hi you", [(2, 3), (5, 7), (8, 9), (10, 11), (12, 13), (20, 22)], [0.9, 0.8, 0.1, 0.99, 0.4, 0.95]),
        TOKENS,
        frame_shift_s=0.04,
        offset_s=10.0,
    )
    assert [word.text for word in found] == ["hi", "you"]
    assert [time for word in found for time in (word.start_s, word.end_s)] == pytest.approx([10.08, 10.28, 10.4, 10.88])
    # The weakest character's, and a doubtful space takes nothing from either word.
    assert [word.confidence for word in found] == [0.8, 0.4]


@pytest.mark.parametrize("text", ["", " ", "   "])
def test_no_characters_no_words(text: str) -> None:
    assert words_of(spans(text, [(t, t + 1) for t in range(len(text))], [1.0] * len(text)), TOKENS, 0.04) == ()


@given(
    text=st.text(" ab'", max_size=12),
    lengths=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), min_size=12, max_size=12),
    frame_shift_s=st.floats(0.001, 0.1),
    offset_s=st.floats(0, 1e5),
)
def test_words_are_those_of_the_text_in_order_of_time(
    text: str, lengths: list[tuple[int, int]], frame_shift_s: float, offset_s: float
) -> None:
    frames, t = [], 0
    for gap, length in lengths[: len(text)]:
        frames.append((t + gap, t + gap + length))
        t += gap + length
    found = words_of(spans(text, frames, [0.5] * len(text)), TOKENS, frame_shift_s, offset_s)
    assert [word.text for word in found] == text.split()
    times = [time_s for word in found for time_s in (word.start_s, word.end_s)]
    assert times == sorted(times)
    assert not times or offset_s <= times[0]


def test_words_of_an_alignment() -> None:
    path = TOKENS.encode("aa b")
    frames = [0, path[0], 0, path[1], path[1], path[2], 0, path[3], 0]
    log_probs = np.full((len(frames), len(TOKENS)), -9.0, np.float32)
    log_probs[np.arange(len(frames)), frames] = np.log(0.9)
    found = words_of(zip(path, align(log_probs, path), strict=True), TOKENS, 0.5)
    assert [(word.text, word.start_s, word.end_s) for word in found] == [("aa", 0.5, 2.5), ("b", 3.5, 4.0)]
    assert found[0].confidence == pytest.approx(0.9)


# Segments


def test_a_segment_ends_where_the_gap_reaches_the_limit() -> None:
    # 1.2 - 0.4 is below 0.8 in floating point, and still a gap of 0.8 s.
    words = (Word("a", 0, 0.4, 1), Word("b", 1.2, 1.3, 1), Word("c", 2.099, 2.2, 1))
    assert segments(words) == (
        Segment("a", 0, 0.4, words[:1]),
        Segment("b c", 1.2, 2.2, words[1:]),
    )
    assert [segment.text for segment in segments(words, max_gap_s=0.5)] == ["a", "b", "c"]
    assert [segment.text for segment in segments(words, max_gap_s=0.801)] == ["a b c"]


def test_no_words_no_segments() -> None:
    assert segments(()) == ()
    assert Transcript("", (), 1.0, "m").segments == ()


# Formats

HELLO = Transcript(
    'say "käse" now',
    (
        Word("say", 0.12, 0.4804999, 0.98123),
        Word('"käse"', 0.56, 0.92, float(np.float32(0.97))),
        Word("now", 1, 2, 1.0),
    ),
    2.41049,
    "digits",
)


def test_txt_is_the_text_and_a_line_end() -> None:
    assert WRITERS["txt"](HELLO, "hello") == 'say "käse" now\n'


def test_json_is_laid_out_as_documented() -> None:
    assert WRITERS["json"](HELLO, "hello") == (
        "{\n"
        '  "text": "say \\"käse\\" now",\n'
        '  "duration_s": 2.41,\n'
        '  "model": "digits",\n'
        '  "segments": [\n'
        '    {"text": "say \\"käse\\" now", "start_s": 0.12, "end_s": 2.0}\n'
        "  ],\n"
        '  "words": [\n'
        '    {"text": "say", "start_s": 0.12, "end_s": 0.48, "confidence": 0.981},\n'
        '    {"text": "\\"käse\\"", "start_s": 0.56, "end_s": 0.92, "confidence": 0.97},\n'
        '    {"text": "now", "start_s": 1.0, "end_s": 2.0, "confidence": 1.0}\n'
        "  ]\n"
        "}\n"
    )


def test_json_of_nothing_said() -> None:
    assert json.loads(Transcript("", (), 1.0, "m").to_json()) == {
        "text": "",
        "duration_s": 1.0,
        "model": "m",
        "segments": [],
        "words": [],
    }


def test_json_takes_numpy_numbers_and_refuses_nan() -> None:
    word = Word("a", np.float32(0.1), np.float64(0.2), np.float32(0.3))  # type: ignore[arg-type]
    row = json.loads(Transcript("a", (word,), np.float32(1.5), "m").to_json())  # type: ignore[arg-type]
    assert row["words"] == [{"text": "a", "start_s": 0.1, "end_s": 0.2, "confidence": 0.3}]
    with pytest.raises(ValueError, match="not JSON compliant"):
        Transcript("", (), float("nan"), "m").to_json()


LATE = Transcript(
    "one two three",
    (Word("one", 0.0, 0.0, 0.5), Word("two", 3599.9996, 3600.2, 0.25), Word("three", 360_000.0, 360_000.5, 1)),
    360_001.0,
    "m",
)


def test_tsv_is_whispers() -> None:
    assert LATE.to_tsv() == ("start\tend\ttext\n0\t0\tone\n3600000\t3600200\ttwo\n360000000\t360000500\tthree\n")
    assert HELLO.to_tsv() == 'start\tend\ttext\n120\t2000\tsay "käse" now\n'


def test_ctm_has_a_line_a_word() -> None:
    assert WRITERS["ctm"](LATE, "two  words") == (
        "two_words 1 0.000 0.000 one 0.500\n"
        "two_words 1 3600.000 0.200 two 0.250\n"
        "two_words 1 360000.000 0.500 three 1.000\n"
    )


def test_textgrid_is_laid_out_as_praat_does() -> None:
    assert Transcript('a"', (Word('a"', 0.5, 1.25, 1.0),), 1.25, "m").to_textgrid() == (
        'File type = "ooTextFile"\n'
        'Object class = "TextGrid"\n'
        "\n"
        "xmin = 0\n"
        "xmax = 1.250\n"
        "tiers? <exists>\n"
        "size = 1\n"
        "item []:\n"
        "    item [1]:\n"
        '        class = "IntervalTier"\n'
        '        name = "words"\n'
        "        xmin = 0\n"
        "        xmax = 1.250\n"
        "        intervals: size = 2\n"
        "        intervals [1]:\n"
        "            xmin = 0.000\n"
        "            xmax = 0.500\n"
        '            text = ""\n'
        "        intervals [2]:\n"
        "            xmin = 0.500\n"
        "            xmax = 1.250\n"
        '            text = "a"""\n'
    )


def read_textgrid(text: str) -> list[tuple[float, float, str]]:
    """The intervals of the one tier, the empty ones too, of a file that is consistent in itself."""
    grid = textgrid_io.parseTextgridStr(text, includeEmptyIntervals=True)
    (tier,) = grid["tiers"]
    assert (tier["class"], tier["name"]) == ("IntervalTier", "words")
    intervals = [(float(start), float(end), label) for start, end, label in tier["entries"]]
    assert text.count("intervals [") == len(intervals) > 0
    assert f"intervals: size = {len(intervals)}\n" in text
    assert (grid["xmin"], grid["xmax"]) == (tier["xmin"], tier["xmax"]) == (0, intervals[-1][1])
    assert intervals[0][0] == 0
    assert all(start < end for start, end, _ in intervals)
    assert all(a[1] == b[0] for a, b in pairwise(intervals))
    return intervals


def test_textgrid_of_words_without_length_or_after_the_end() -> None:
    words = (Word("a", 1.0, 1.0, 1.0), Word("b", 1.0, 1.0, 1.0), Word("c", 1.0, 1.04, 1.0))
    assert read_textgrid(Transcript("a b c", words, 1.02, "m").to_textgrid()) == [
        (0, 1, ""),
        (1, 1.001, "a"),
        (1.001, 1.002, "b"),
        (1.002, 1.04, "c"),
    ]


@pytest.mark.parametrize(
    ("output_format", "text"),
    [("txt", "\n"), ("srt", ""), ("vtt", "WEBVTT\n"), ("tsv", "start\tend\ttext\n"), ("ctm", ""), ("audacity", "")],
)
def test_nothing_said_is_a_valid_file(output_format: str, text: str) -> None:
    assert WRITERS[output_format](Transcript("", (), 1.0, "m"), "name") == text


@pytest.mark.parametrize(("duration_s", "end"), [(1.5, 1.5), (0.0, 0.001)])
def test_textgrid_of_nothing_said_is_one_empty_interval(duration_s: float, end: float) -> None:
    assert read_textgrid(Transcript("", (), duration_s, "m").to_textgrid()) == [(0, end, "")]


@st.composite
def transcripts(draw: st.DrawFn) -> Transcript:
    """Words in order of time that last 2 ms at least, some of which touch; times off the millisecond."""
    now = draw(st.sampled_from([0.0, 3599.0, 400_000.0]))
    words = []
    texts = st.text("abcäß'\"&<>-;", min_size=1, max_size=6)
    gaps = st.one_of(st.just(0.0), st.floats(0, 3))
    for text, gap_s, length_s in draw(st.lists(st.tuples(texts, gaps, st.floats(0.002, 2)), max_size=12)):
        words.append(Word(text, now + gap_s, now + gap_s + length_s, draw(st.floats(0, 1))))
        now = words[-1].end_s
    return Transcript(" ".join(word.text for word in words), tuple(words), now + draw(st.floats(0, 2)), "m")


@given(spoken=transcripts())
def test_every_format_reads_back(spoken: Transcript) -> None:
    def files(output_format: str) -> str:
        return WRITERS[output_format](spoken, "name")

    texts = [word.text for word in spoken.words]
    starts = [word.start_s for word in spoken.words]
    ends = [word.end_s for word in spoken.words]

    def near(times_s: list[float]) -> object:
        return pytest.approx(times_s, rel=0, abs=0.0005 + 1e-9)

    rows = json.loads(files("json"))["words"]
    assert [row["text"] for row in rows] == texts
    assert ([row["start_s"] for row in rows], [row["end_s"] for row in rows]) == (near(starts), near(ends))

    ctm = [line.split(" ") for line in files("ctm").splitlines()]
    assert [(row[0], row[1], row[4]) for row in ctm] == [("name", "1", text) for text in texts]
    assert [float(row[2]) for row in ctm] == near(starts)
    assert [float(row[2]) + float(row[3]) for row in ctm] == near(ends)
    assert [float(row[5]) for row in ctm] == near([word.confidence for word in spoken.words])
    assert all(float(a[2]) + float(a[3]) <= float(b[2]) + 1e-9 for a, b in pairwise(ctm))

    intervals = [interval for interval in read_textgrid(files("textgrid")) if interval[2]]
    assert [label for _, _, label in intervals] == texts
    assert ([start for start, _, _ in intervals], [end for _, end, _ in intervals]) == (near(starts), near(ends))

    tsv = list(csv.DictReader(files("tsv").splitlines(), dialect="excel-tab", quoting=csv.QUOTE_NONE))
    assert [row["text"] for row in tsv] == [segment.text for segment in spoken.segments]
    assert [int(row["start"]) / 1000 for row in tsv] == near([segment.start_s for segment in spoken.segments])
    assert [int(row["end"]) / 1000 for row in tsv] == near([segment.end_s for segment in spoken.segments])

    table = list(csv.DictReader(io.StringIO(files("csv"), newline="")))
    assert [row["text"] for row in table] == [segment.text for segment in spoken.segments]
    assert [float(row["start_s"]) for row in table] == near([segment.start_s for segment in spoken.segments])
    labels = [line.split("\t") for line in files("audacity").splitlines()]
    assert [label[2] for label in labels] == [segment.text for segment in spoken.segments]
    assert [float(label[1]) for label in labels] == near([segment.end_s for segment in spoken.segments])
    row = json.loads(files("jsonl"))
    assert (row["audio_filepath"], row["text"], [word["text"] for word in row["words"]]) == ("name", spoken.text, texts)

    for captions in (
        [item.text for item in pysrt.from_string(files("srt"), error_handling=pysrt.ERROR_RAISE)],
        [html.unescape(caption.raw_text) for caption in webvtt.from_string(files("vtt"), strict=True).captions],
    ):
        assert " ".join(captions).split() == texts


def test_formats_have_their_suffixes() -> None:
    assert SUFFIXES.keys() == WRITERS.keys()
    assert (SUFFIXES["srt"], SUFFIXES["textgrid"]) == (".srt", ".TextGrid")
