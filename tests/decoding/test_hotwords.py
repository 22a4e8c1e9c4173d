from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.decoding import ctc
from asr.decoding.hotwords import DEFAULT_WEIGHT, MAX_LINES, HotWords, parse, read
from asr.errors import HotWordError
from asr.text import english, squeeze
from asr.tokens import Tokens

LETTERS = Tokens.of(" abcdefghijklmnopqrstuvwxyz")
SMALL = Tokens.of("ab ")


def gains(hotwords: HotWords, tokens: Tokens, text: str) -> list[float]:
    """What each character adds, and then the end."""
    states, found = np.array([hotwords.start]), []
    for token in tokens.encode(text):
        found.append(float(hotwords.scores(states, np.array([token]))[0, 0]))
        states = hotwords.advance(states, np.array([token]))
    return [*found, float(hotwords.end(states)[0])]


def total(phrases: dict[str, float], text: str, tokens: Tokens = LETTERS) -> float:
    return sum(gains(HotWords(phrases, tokens), tokens, text))


def scan(phrases: dict[str, float], text: str) -> float:
    """The definition: every occurrence of every phrase as whole words."""
    words = text.split()
    return sum(
        weight
        for phrase, weight in phrases.items()
        for at in range(len(words))
        if words[at : at + len(phrase.split())] == phrase.split()
    )


# Few letters and short words: phrases overlap, nest and begin alike all the time.
small_phrases = st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=4).map(" ".join)


@given(
    phrases=st.dictionaries(small_phrases, st.integers(-20, 20).map(float), max_size=6),
    texts=st.lists(st.text("ab ", max_size=25), min_size=1, max_size=5),
)
@settings(max_examples=300)
def test_a_text_gains_the_weights_of_the_phrases_in_it(phrases: dict[str, float], texts: list[str]) -> None:
    hotwords = HotWords(phrases, SMALL)
    for text in [*texts, *phrases, " ".join(phrases)]:
        assert sum(gains(hotwords, SMALL, text)) == pytest.approx(scan(phrases, text), abs=1e-9)


def test_the_weight_is_handed_out_evenly() -> None:
    hotwords = HotWords({"kube": 8.0}, LETTERS)
    assert gains(hotwords, LETTERS, "kube") == [2, 2, 2, 2, 0]
    assert gains(hotwords, LETTERS, " kube a") == [0, 2, 2, 2, 2, 0, 0, 0]


def test_what_leaves_the_phrase_pays_all_back() -> None:
    hotwords = HotWords({"kube": 8.0}, LETTERS)
    assert gains(hotwords, LETTERS, "kub") == [2, 2, 2, -6]
    assert gains(hotwords, LETTERS, "kuba") == [2, 2, 2, -6, 0]
    assert gains(hotwords, LETTERS, "kub e") == [2, 2, 2, -6, 0, 0]
    assert gains(hotwords, LETTERS, "kubes") == [2, 2, 2, 2, -8, 0]
    assert gains(hotwords, LETTERS, "akube") == [0] * 6


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("new york", 4.0),
        ("new york times", 4.0 + 16.0),
        ("new york time", 4.0),
        ("new york timesheet", 4.0),
        ("new new york", 4.0),
        ("new york new york", 8.0),
        ("new yorker", 0.0),
        ("anew york", 0.0),
        ("new", 0.0),
        ("  new   york  ", 4.0),
        ("", 0.0),
    ],
)
def test_phrases_of_several_words(text: str, expected: float) -> None:
    assert total({"new york": 4.0, "new york times": 16.0}, text) == pytest.approx(expected, abs=1e-12)


def test_a_later_phrase_is_found_after_a_long_one_fails() -> None:
    phrases = {"the new york giants": 9.0, "york times": 5.0, "times square": 3.0}
    assert total(phrases, "the new york times square") == pytest.approx(8.0)


def test_negative_weights_are_charged_at_the_words_end() -> None:
    hotwords = HotWords({"bad": -6.0}, LETTERS)
    assert gains(hotwords, LETTERS, "badly") == [0] * 6
    assert gains(hotwords, LETTERS, "bad") == [0, 0, 0, -6]
    assert gains(hotwords, LETTERS, "bad a") == [0, 0, 0, -6, 0, 0]


def test_an_alphabet_without_a_space_spells_one_word() -> None:
    tokens = Tokens.of("ab")
    assert total({"ab": 6.0}, "ab", tokens) == 6.0
    assert total({"ab": 6.0}, "aba", tokens) == pytest.approx(0.0)
    with pytest.raises(HotWordError, match=r"'a b' has ' ' outside the alphabet 'ab'"):
        HotWords({"a b": 6.0}, tokens)


def test_the_search_finds_the_hot_word() -> None:
    # What was said sounds like "bat", and a little like "cat".
    rows = np.full((5, len(LETTERS)), 1e-4)
    for row, shares in zip(rows, [{"b": 0.9, "c": 0.09}, {}, {"a": 0.98}, {}, {"t": 0.98}], strict=True):
        for letter, share in shares.items():
            row[LETTERS.encode(letter)] = share
        row[0] = 1 - row[1:].sum()
    log_probs = np.log(rows).astype(np.float32)

    def best(phrases: dict[str, float], frames: int = 5) -> str:
        (found,) = ctc.beam(log_probs[:frames], scorers=[HotWords(phrases, LETTERS)])
        return LETTERS.decode(found.token_ids)

    assert best({}) == best({"cat": 2.0}) == best({"category": 20.0}) == "bat"
    assert best({"cat": 3.0}) == best({"bat": -3.0}) == "cat"
    assert best({"cat": 6.0}, frames=3) == "ba"


def test_the_scores_of_many_prefixes_at_once() -> None:
    hotwords = HotWords({"ab": 2.0, "b a": 6.0}, SMALL)
    states = np.arange(7)
    tokens = np.array([1, 3])
    together = hotwords.scores(states, tokens)
    assert together.shape == (7, 2)
    assert together.dtype == np.float64
    for row, state in enumerate(states):
        for column, token in enumerate(tokens):
            assert together[row, column] == hotwords.scores(np.array([state]), np.array([token]))[0, 0]
    assert hotwords.advance(states, np.full(7, 3)).dtype == np.int64


def test_ten_thousand_phrases() -> None:
    rng = np.random.default_rng(0)
    phrases = {"".join(rng.choice(list("abcdefgh"), 12)): 5.0 for _ in range(10_000)}
    begun = time.perf_counter()
    hotwords = HotWords(phrases, LETTERS)
    assert time.perf_counter() - begun < 10  # a fraction of a second
    chosen = list(phrases)[::997]
    assert sum(gains(hotwords, LETTERS, " ".join(chosen))) == pytest.approx(5.0 * len(chosen))


# Files


def test_read(tmp_path: Path) -> None:
    path = tmp_path / "hot.txt"
    path.write_bytes("\ufeff# names\r\n\r\nKubernetes^8\r\nNew  York\r\n  bad ^ -3.5 \nnew york\n".encode())
    assert read(path, english, LETTERS) == {"kubernetes": 8.0, "new york": DEFAULT_WEIGHT, "bad": -3.5}
    path.write_text("# nothing\n", encoding="utf-8")
    assert read(path, english, LETTERS) == {}


def test_parse_takes_lines() -> None:
    assert parse(["Kubernetes^5", "new york\n"], english, LETTERS) == {"kubernetes": 5.0, "new york": DEFAULT_WEIGHT}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["ok", "kube^much"], r"^hot words:2: expected a number after '\^', got 'much'; write"),
        (["kube^"], r":1: expected a number after '\^', got ''"),
        (["kube^2^3"], r":1: expected a number after '\^', got '2\^3'"),
        (["kube^nan"], ":1: expected a weight from -20 to 20 for 'kube', got nan"),
        (["kube^inf"], ":1: expected a weight from -20 to 20"),
        (["kube^-20.1"], ":1: expected a weight from -20 to 20"),
        (["", "room 5Å"], r":2: 'room 5Å' has '5', 'Å' outside the alphabet ' abc.*: write it as"),
        (["^5"], ":1: expected words, got ''"),
        (["kube^6", "# other", "kube"], ":3: expected one weight for 'kube', got 5, and 6 in line 1; remove"),
        (["a"] * (MAX_LINES + 1), f":{MAX_LINES + 1}: expected at most {MAX_LINES} lines"),
    ],
)
def test_errors_name_the_line(lines: list[str], message: str) -> None:
    with pytest.raises(HotWordError, match=message):
        parse(lines, squeeze, LETTERS)


def test_normalising_may_leave_nothing() -> None:
    with pytest.raises(HotWordError, match=r":1: expected words, got '\?!', of which normalising leaves nothing"):
        parse(["?!"], english, LETTERS)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "hot.txt"
    with pytest.raises(HotWordError, match=r"hot\.txt: no such file of hot words; check the path"):
        read(path, english, LETTERS)
    path.write_bytes(b"ok\nna\xefve\n")
    with pytest.raises(HotWordError, match=r"hot\.txt:2: expected UTF-8, got byte 0xef; save"):
        read(path, english, LETTERS)
    with pytest.raises(HotWordError, match="cannot be read"):
        read(tmp_path, english, LETTERS)


@pytest.mark.parametrize(
    ("phrases", "message"),
    [
        ({"": 1.0}, "single spaces between, got ''"),
        ({"a  b": 1.0}, "single spaces between, got 'a  b'"),
        ({"a": math.nan}, "got nan"),
        ({"A": 1.0}, "'A' outside the alphabet"),
    ],
)
def test_phrases_are_checked(phrases: dict[str, float], message: str) -> None:
    with pytest.raises(HotWordError, match=message):
        HotWords(phrases, LETTERS)


def test_too_many_for_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asr.decoding.hotwords._MAX_TABLE", 1 << 20)
    with pytest.raises(
        HotWordError, match=r"at most 1 MB, got 1 that need 2 MB at 27\d? tokens: name fewer|at 28 tokens"
    ):
        HotWords({"a" * 20_000: 1.0}, LETTERS)
