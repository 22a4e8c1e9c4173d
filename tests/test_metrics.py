"""Error rates by hand and against a plain dynamic programme; the report's sums, intervals, JSON and tables."""

import io
import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from asr.errors import AsrError, TextError
from asr.metrics import Errors, Report, Scored, character_errors, report, word_errors

# The letters include ones that sort, case-fold or print unusually, and those that console markup is made of.
TEXTS = st.lists(st.text("abcé日[/]", min_size=1, max_size=3), max_size=7).map(" ".join)


def distance(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Fewest substitutions, deletions and insertions, by the textbook recursion over prefixes."""
    table = np.zeros((len(reference) + 1, len(hypothesis) + 1), int)
    table[:, 0] = np.arange(len(reference) + 1)
    table[0, :] = np.arange(len(hypothesis) + 1)
    for i in range(1, len(reference) + 1):
        for j in range(1, len(hypothesis) + 1):
            replaced = table[i - 1, j - 1] + (reference[i - 1] != hypothesis[j - 1])
            table[i, j] = min(replaced, table[i - 1, j] + 1, table[i, j - 1] + 1)
    return int(table[-1, -1])


def rendered(result: Report, width: int = 80) -> str:
    stream = io.StringIO()
    result.render(Console(width=width, file=stream))
    return stream.getvalue()


def interval(result: Report) -> tuple[float, float]:
    """Of the word error rate, which was computed."""
    assert result.word_interval is not None
    return result.word_interval


def noisy(utterances: int, seed: int = 0, speakers: int = 0) -> list[Scored]:
    """Utterances of 5 to 14 words, each of them wrong with probability 0.2."""
    rng = np.random.default_rng(seed)
    scored = []
    for index in range(utterances):
        words = [f"w{number}" for number in rng.integers(50, size=rng.integers(5, 15))]
        heard = ["wrong" if rng.random() < 0.2 else word for word in words]
        speaker = f"s{index % speakers}" if speakers else None
        scored.append(Scored(f"u{index}", " ".join(words), " ".join(heard), speaker, 1.5))
    return scored


SMALL = [
    Scored("one", "the cat sat on the mat", "the cat sit on mat", "ann", 2.0),  # sat -> sit, the deleted
    Scored("two", "hello world", "hello big world", "bob", 1.0),  # big inserted
    Scored("three", "good night", "good night", "bob", 1.0),
    Scored("four", "the cat sat", "a cat sit", "ann", 1.5),  # the -> a, sat -> sit
]


def test_word_errors_by_hand() -> None:
    assert word_errors(["the cat sat on the mat"], ["the cat sit on mat"]) == Errors(4, 1, 1, 0)
    assert word_errors(["a b", "c"], ["a b", "c d e"]) == Errors(3, 0, 0, 2)
    assert word_errors(["a b c d"], ["a x c"]).rate == 0.5


def test_character_errors_count_the_space_between_words() -> None:
    assert character_errors(["ab cd"], ["abcd"]) == Errors(4, 0, 1, 0)
    assert character_errors(["cat"], ["cut"]) == Errors(2, 1, 0, 0)


def test_empty_references_and_hypotheses() -> None:
    assert word_errors([""], ["two words"]) == Errors(0, 0, 0, 2)
    assert word_errors(["two words"], [""]) == Errors(0, 0, 2, 0)
    assert word_errors([""], [""]) == Errors()
    assert word_errors(["a b", "", "c"], ["a", "x y", ""]) == Errors(1, 0, 2, 2)
    assert character_errors(["", "ab"], ["xy", ""]) == Errors(0, 0, 2, 2)


def test_rate_without_a_reference_is_zero_or_infinite() -> None:
    assert Errors().rate == 0.0
    assert Errors(insertions=1).rate == math.inf
    assert Errors(hits=1, insertions=3).rate == 3.0


def test_errors_add_up() -> None:
    assert sum([Errors(1, 2, 3, 4), Errors(10, 20, 30, 40)], Errors()) == Errors(11, 22, 33, 44)
    assert Errors(1, 2, 3, 4).reference_length == 6
    assert Errors(1, 2, 3, 4).total == 9


@settings(max_examples=150)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4))
def test_counts_agree_with_the_textbook_recursion(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    kinds: tuple[tuple[Any, Callable[[str], list[str]]], ...] = ((word_errors, str.split), (character_errors, list))
    for score, units in kinds:
        errors = score(references, hypotheses)
        lengths = [(len(units(left)), len(units(right))) for left, right in pairs]
        assert errors.total == sum(distance(units(left), units(right)) for left, right in pairs)
        assert errors.reference_length == sum(length for length, _ in lengths)
        assert errors.hits + errors.substitutions + errors.insertions == sum(length for _, length in lengths)


@settings(max_examples=60)
@given(st.lists(st.tuples(TEXTS, TEXTS, st.sampled_from([None, "s1", "s2"])), min_size=1, max_size=6))
def test_report_is_consistent_for_any_text(rows: list[tuple[str, str, str | None]]) -> None:
    scored = [Scored(str(index), *row) for index, row in enumerate(rows)]
    references, hypotheses = [one.reference for one in scored], [one.hypothesis for one in scored]
    result = report(scored, worst=len(scored), confusions=1000, bootstrap=20)
    assert result.words == word_errors(references, hypotheses)
    assert result.characters == character_errors(references, hypotheses)
    assert sum(count for *_, count in result.substitutions) == result.words.substitutions
    assert sum(count for *_, count in result.insertions) == result.words.insertions
    assert sum(count for *_, count in result.deletions) == result.words.deletions
    assert (
        result.wrong_utterances == len(result.worst) == sum(a != b for a, b in zip(references, hypotheses, strict=True))
    )
    if result.speakers:
        assert sum((row.words for row in result.speakers), Errors()) == result.words
        assert sum((row.characters for row in result.speakers), Errors()) == result.characters
        assert sum(row.utterances for row in result.speakers) == len(scored)
    else:
        assert all(one.speaker is None for one in scored)
    for aligned in result.worst:
        for side, text in ((0, aligned.scored.reference), (1, aligned.scored.hypothesis)):
            words = [column[side].strip() for column in aligned.columns]
            assert " ".join(word for word in words if set(word) != {"*"}).lower() == text
    json.dumps(result.to_json(), allow_nan=False)
    rendered(result)


def test_report_by_hand() -> None:
    result = report(SMALL, bootstrap=0)
    assert result.words == Errors(hits=9, substitutions=3, deletions=1, insertions=1)
    assert result.wer == 5 / 13
    assert result.cer == result.characters.rate
    assert result.characters == character_errors([one.reference for one in SMALL], [one.hypothesis for one in SMALL])
    assert result.utterance_error_rate == 3 / 4
    assert result.duration_s == 5.5
    assert result.substitutions == (("sat", "sit", 2), ("the", "a", 1))
    assert result.insertions == (("big", 1),)
    assert result.deletions == (("the", 1),)
    assert result.word_interval is None
    assert result.character_interval is None


def test_speakers_are_sorted_worst_first() -> None:
    ann, bob = report(SMALL, bootstrap=0).speakers
    assert (ann.speaker, ann.utterances, ann.duration_s, ann.words.rate) == ("ann", 2, 3.5, 4 / 9)
    assert (bob.speaker, bob.utterances, bob.duration_s, bob.words.rate) == ("bob", 2, 2.0, 1 / 4)


def test_utterances_that_name_no_speaker_still_count_among_those_that_do() -> None:
    rows = report([*SMALL, Scored("five", "a b c d e", "")], bootstrap=0).speakers
    assert [row.speaker for row in rows] == [None, "ann", "bob"]
    assert rows[0].words == Errors(deletions=5)


def test_worst_are_sorted_by_errors_then_rate() -> None:
    scored = [
        Scored("right", "a b c", "a b c"),
        Scored("long", "a b c d", "x y c d"),
        Scored("three", "a b c d e f g h", "x y z d e f g h"),
        Scored("short", "a b", "x y"),
        Scored("tie", "a b c d", "a b y z"),
    ]
    result = report(scored, bootstrap=0)
    assert [aligned.scored.id for aligned in result.worst] == ["three", "short", "long", "tie"]
    assert [aligned.scored.id for aligned in report(scored, worst=2, bootstrap=0).worst] == ["three", "short"]


def test_frequent_confusions_come_first_and_ties_alphabetically() -> None:
    scored = [Scored("1", "b a c c", "x x x x")]
    assert report(scored, bootstrap=0).substitutions == (("c", "x", 2), ("a", "x", 1), ("b", "x", 1))
    assert report(scored, confusions=1, bootstrap=0).substitutions == (("c", "x", 2),)


def test_errors_stand_out_in_aligned_lines() -> None:
    aligned = report(SMALL[:1], bootstrap=0).worst[0]
    assert list(aligned.lines()) == [
        (
            "the cat SAT on THE mat",
            "the cat SIT on *** mat",
            "        S      D",
        )
    ]
    (lines,) = report(SMALL[1:2], bootstrap=0).worst[0].lines()
    assert lines == ("hello *** world", "hello BIG world", "      I")


def test_aligned_columns_fit_wide_and_combining_characters() -> None:
    # Each of the two wide characters takes two columns; the accent over e takes none; ß is SS in upper case.
    (lines,) = report([Scored("1", "日本 x e\u0301 b", "cat x e\u0301 groß")], bootstrap=0).worst[0].lines()
    assert lines == ("日本 x e\u0301 B", "CAT  x e\u0301 GROSS", "S        S")


def test_words_that_differ_by_case_alone_are_shown_as_they_are() -> None:
    (lines,) = report([Scored("1", "Will will", "will will")], bootstrap=0).worst[0].lines()
    assert lines == ("Will will", "will will", "S")


def test_aligned_lines_wrap_between_columns() -> None:
    aligned = report([Scored("1", "aa bb cc dd", "aa xxx cc dd")], bootstrap=0).worst[0]
    assert list(aligned.lines(6)) == [("aa BB", "aa XXX", "   S"), ("cc dd", "cc dd", "")]
    assert list(aligned.lines(5)) == [("aa", "aa", ""), ("BB", "XXX", "S"), ("cc dd", "cc dd", "")]
    assert len(list(aligned.lines(1))) == 4


def test_interval_contains_the_estimate_and_narrows_with_more_utterances() -> None:
    few, many = report(noisy(50)), report(noisy(1800))
    for result in (few, many):
        low, high = interval(result)
        assert low < result.wer < high
        assert result.character_interval is not None
        assert result.character_interval[0] < result.cer < result.character_interval[1]
    # 36 times the data: a sixth of the width, give or take what chance does to it.
    ratio: float = np.ptp(interval(few)) / np.ptp(interval(many))
    assert 4 < ratio < 9


def test_interval_agrees_with_the_binomial_one() -> None:
    # One word each, so that the rate is a mean of independent trials with a known deviation.
    scored = [Scored(str(index), "a", "b" if index % 5 == 0 else "a") for index in range(1000)]
    low, high = interval(report(scored, bootstrap=4000))
    deviation = math.sqrt(0.2 * 0.8 / 1000)
    assert low == pytest.approx(0.2 - 1.96 * deviation, abs=0.003)
    assert high == pytest.approx(0.2 + 1.96 * deviation, abs=0.003)


def test_interval_weighs_utterances_by_their_length() -> None:
    # The mean of the utterances' own rates would be 0.5: a resample's rate is errors over words, as the total's is.
    scored = [Scored(f"l{i}", "a " * 99 + "a", "a " * 99 + "a") for i in range(50)]
    scored += [Scored(f"s{i}", "a", "b") for i in range(50)]
    low, high = interval(report(scored))
    assert low < 50 / 5050 < high < 0.03


def test_interval_depends_on_the_seed_alone() -> None:
    scored = noisy(60)
    assert report(scored, seed=3).word_interval == report(scored, seed=3).word_interval
    assert report(scored, seed=3).word_interval != report(scored, seed=4).word_interval


def test_interval_of_one_utterance_or_equal_ones_has_no_width() -> None:
    assert report([Scored("1", "a b c d", "a b c x")]).word_interval == (0.25, 0.25)
    assert report([Scored("1", "a b", "a b")], bootstrap=1).word_interval == (0.0, 0.0)


def test_references_that_are_all_empty() -> None:
    result = report([Scored("1", "", "noise"), Scored("2", "", "")])
    assert result.wer == math.inf
    assert result.word_interval == (0.0, math.inf)
    assert result.utterance_error_rate == 0.5
    figures = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert figures["wer"] is None
    assert figures["wer_interval"] == [0.0, None]
    assert figures["words"]["insertions"] == 1
    assert "inf %" in rendered(result)


def test_json_round_trips() -> None:
    result = report(SMALL)
    figures = result.to_json()
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["wer"] == 5 / 13
    assert figures["wer_interval"] == list(interval(result))
    assert figures["cer"] == result.cer
    assert figures["utterance_error_rate"] == 0.75
    assert figures["words"] == {
        "hits": 9,
        "substitutions": 3,
        "deletions": 1,
        "insertions": 1,
        "reference_length": 13,
    }
    assert [row["speaker"] for row in figures["speakers"]] == ["ann", "bob"]
    assert figures["substitutions"][0] == {"reference": "sat", "hypothesis": "sit", "count": 2}
    assert figures["worst"][0]["id"] == "four"
    assert figures["worst"][0]["aligned_reference"] == "THE cat SAT"
    assert figures["worst"][0]["aligned_hypothesis"] == "A   cat SIT"
    assert report(SMALL, bootstrap=0).to_json()["wer_interval"] is None


def test_json_keys_are_the_documented_ones() -> None:
    figures = report(SMALL).to_json()
    documented = Report.to_json.__doc__ or ""
    for keys in (
        figures,
        figures["speakers"][0],
        figures["substitutions"][0],
        figures["deletions"][0],
        figures["worst"][0],
    ):
        assert [key for key in keys if key not in documented] == []


def test_render_shows_the_figures() -> None:
    output = rendered(report(SMALL, bootstrap=0))
    lines = [line.split() for line in output.splitlines()]
    assert ["utterances:", "4,", "audio:", "5.5", "s,", "speakers:", "2"] in lines
    assert ["WER", "38.46", "%", "5", "3", "1", "1", "13"] in lines
    assert ["utterances", "75.00", "%", "3", "4"] in lines
    assert ["ann", "2", "44.44", "%", "27.27", "%", "4", "3", "1", "0", "9"] in lines
    assert ["2", "sat", "->", "sit", "1", "the", "1", "big"] in lines
    assert ["REF", "the", "cat", "SAT", "on", "THE", "mat"] in lines
    assert ["HYP", "the", "cat", "SIT", "on", "***", "mat"] in lines


def test_render_shows_the_interval() -> None:
    result = report(noisy(100))
    low, high = interval(result)
    (line,) = (line for line in rendered(result).splitlines() if line.startswith("WER"))
    assert f"{100 * result.wer:.2f} %" in line
    assert f"{100 * low:.2f} to {100 * high:.2f}" in line


@pytest.mark.parametrize("width", [60, 80, 200])
def test_render_is_plain_text_within_the_width(width: int) -> None:
    long = "x" * 70
    scored = [*noisy(40, speakers=3), Scored(long, f"a {long[:40]} b", f"c {long[:30]} d", "speaker-" + "long" * 8)]
    output = rendered(report(scored), width)
    assert output.isascii()
    assert "\x1b" not in output
    # Utterance ids are printed whole; everything else keeps within the width, and no figure is cut.
    assert max(len(line) for line in output.splitlines() if long not in line) <= width
    assert "…" not in output


def test_render_prints_words_that_look_like_markup() -> None:
    output = rendered(report([Scored("[i]", "[b] :smile: a", "[/b] :smile: a", "[red]")], bootstrap=0))
    for text in ("[b] -> [/b]", ":smile:", "[red]", "[i]: WER 33.33 %"):
        assert text in output


def test_render_keeps_ids_and_words_longer_than_the_console_whole() -> None:
    identity, word = "i" * 50, "w" * 50
    lines = rendered(report([Scored(identity, word, f"{word}x")], bootstrap=0), width=40).splitlines()
    assert f"{identity}: WER 100.00 % (errors 1, words 1)" in lines
    assert f"REF  {word.upper()}" in lines
    assert f"HYP  {word.upper()}X" in lines


def test_render_without_errors_or_speakers_has_no_empty_tables() -> None:
    output = rendered(report([Scored("1", "a b", "a b")], bootstrap=0))
    assert "0.00 %" in output
    assert not any(title in output for title in ("Speakers", "audio", "Most frequent", "Worst"))


@pytest.mark.parametrize("score", [word_errors, character_errors])
def test_texts_that_do_not_pair_up_are_refused(score: Callable[[Sequence[str], Sequence[str]], Errors]) -> None:
    with pytest.raises(TextError, match="got 2 references and 1 hypotheses"):
        score(["a", "b"], ["a"])
    with pytest.raises(TextError, match="at least one utterance"):
        score([], [])
    with pytest.raises(TextError, match="in a list"):
        score("abc", "abd")


def test_report_refuses_nothing_and_negative_numbers() -> None:
    assert issubclass(TextError, AsrError)
    with pytest.raises(TextError, match="at least one utterance"):
        report([])
    with pytest.raises(TextError, match="got 10, -1 and 1000"):
        report(SMALL, confusions=-1)


def test_rich_is_imported_by_render_only() -> None:
    code = "import sys, asr.metrics as m; m.report([m.Scored('1', 'a', 'b')]); sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
