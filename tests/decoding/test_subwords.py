"""Subwords in the decoder: a text gets the same whichever pieces it is made of, and the same as its characters get."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from grammars import accepts
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.decoding import ctc, fusion
from asr.decoding import decoder as decoding_module
from asr.decoding.confidence import Calibration
from asr.decoding.decoder import Decoder
from asr.decoding.fusion import Decoding
from asr.decoding.grammar import Grammar
from asr.decoding.hotwords import HotWords
from asr.decoding.subwords import SubwordScorer
from asr.lm import kneserney
from asr.pauses import silence
from asr.text import squeeze
from asr.tokens import BLANK, BLANK_SYMBOL, Span, Tokens
from asr.transcript import words_of

TOKENS = Tokens([BLANK_SYMBOL, *" abc", "ab", " a", " ab", "bc", " c", "cab", " cab"])
LINES = ["ab cab", "cab ab", "ab ab", "c ab a", "abc"] * 3
WORDS = kneserney.train(LINES, order=3)
CHARACTERS = kneserney.train(map(fusion.spell, LINES), order=4)
SCORERS: dict[str, ctc.Scorer] = {
    "words": fusion.scorer(WORDS, TOKENS.characters, Decoding(0.7, 0.3, -5.0)),
    "closed": fusion.scorer(WORDS, TOKENS.characters, Decoding(0.7, 0.3, None)),
    "characters": fusion.scorer(CHARACTERS, TOKENS.characters, Decoding(0.7, 0.3)),
    "hot words": HotWords({"cab": 5.0, "ab cab": 3.0, "b": -2.0}, TOKENS.characters),
    "grammar": Grammar.parse("#JSGF V1.0; grammar g; public <s> = (ab | cab [abc])+ c*;", squeeze, TOKENS),
}
IDS = st.lists(st.integers(1, len(TOKENS) - 1), max_size=8)


def gain_of_characters(scorer: ctc.Scorer, text: str) -> float:
    states, total = np.array([scorer.start]), 0.0
    for token in TOKENS.characters.encode(text):
        with np.errstate(invalid="ignore"):
            total += float(scorer.scores(states, np.array([token]))[0, 0])
        if not total > -np.inf:
            return -np.inf
        states = scorer.advance(states, np.array([token]))
    return total + float(scorer.end(states)[0])


def random_log_probs(seed: int, frames: int, scale: float = 1.0) -> np.ndarray:
    logits = scale * np.random.default_rng(seed).normal(size=(frames, len(TOKENS)))
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("name", SCORERS)
@given(pieces=IDS, others=st.lists(IDS, max_size=3))
@settings(max_examples=80)
def test_pieces_gain_what_their_characters_gain(name: str, pieces: list[int], others: list[list[int]]) -> None:
    """Beside other prefixes and among all tokens, as the search asks."""
    scorer = SubwordScorer(SCORERS[name], TOKENS)
    columns = np.arange(1, len(TOKENS))
    states = np.full(1 + len(others), scorer.start)
    total = 0.0
    for at, token in enumerate(pieces):
        gains = scorer.scores(states, columns)
        total += gains[0, token - 1]
        np.testing.assert_array_equal(scorer.scores(states, np.array([token]))[:, 0], gains[:, token - 1])
        if not total > -np.inf:
            break
        beside = [other[at % len(other)] if other else token for other in others]
        states = scorer.advance(states, np.array([token, *beside]))
    else:
        with np.errstate(invalid="ignore"):  # of the others, which the search would have dropped
            total += float(scorer.end(states)[0])
    wanted = gain_of_characters(SCORERS[name], TOKENS.decode(pieces).lstrip())
    assert total == pytest.approx(wanted, abs=1e-6)


def test_equal_texts_have_equal_states() -> None:
    for scorer in SCORERS.values():
        over_pieces = SubwordScorer(scorer, TOKENS)
        states = set()
        for pieces in ([" ab", " cab"], [" a", "b", " c", "ab"], [" ", "ab", " ", "cab"], ["a", "b", " cab"]):
            state = np.array([over_pieces.start])
            for piece in pieces:
                state = over_pieces.advance(state, np.array([TOKENS.symbols.index(piece)]))
            states.add(int(state[0]))
        assert len(states) == 1


def all_texts(log_probs: np.ndarray, scorer: ctc.Scorer | None = None) -> dict[str, float]:
    """Every text with the log of the sum over all alignments of all its segmentations, by the definition."""
    gains: dict[str, float] = {}
    sums: dict[str, float] = {}
    for path in itertools.product(range(len(TOKENS)), repeat=len(log_probs)):
        spaced = TOKENS.decode([token for token, _ in itertools.groupby(path)]).lstrip()
        if scorer and spaced not in gains:
            gains[spaced] = gain_of_characters(scorer, spaced)
        score = float(log_probs[np.arange(len(path)), path].sum()) + gains.get(spaced, 0.0)
        if score > -np.inf:
            text = " ".join(spaced.split())
            sums[text] = np.logaddexp(sums.get(text, -np.inf), score)
    return sums


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search drops nothing."""
    for name in ("_TOKEN_FLOOR", "_GRAMMAR_FLOOR"):
        monkeypatch.setattr(decoding_module, name, -np.inf)
    monkeypatch.setattr(decoding_module, "_SCORE_RANGE", np.inf)


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("seed", range(4))
def test_decoding_is_the_sum_over_all_segmentations(seed: int) -> None:
    log_probs = random_log_probs(seed, 3)
    found = Decoder(TOKENS, beam=10_000)(log_probs)
    wanted = all_texts(log_probs)
    texts = dict(Decoder(TOKENS, beam=10_000).texts(found, 10_000))
    assert texts.keys() == wanted.keys()
    assert list(texts.values()) == sorted(texts.values(), reverse=True)
    np.testing.assert_allclose([texts[text] for text in wanted], list(wanted.values()), atol=1e-5)


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["words", "characters", "grammar"])
def test_decoding_with_a_scorer_finds_the_best_of_all_texts(name: str, seed: int) -> None:
    log_probs = random_log_probs(seed, 3)
    grammar = SCORERS["grammar"] if name == "grammar" else None
    lm = {"words": WORDS, "characters": CHARACTERS}.get(name)
    assert grammar is None or isinstance(grammar, Grammar)
    decoder = Decoder(TOKENS, beam=10_000, lm=lm, decoding=Decoding(0.7, 0.3, -5.0), grammar=grammar)
    found = decoder(log_probs)
    wanted = all_texts(log_probs, SCORERS[name])
    texts = dict(decoder.texts(found, 5))
    assert list(texts) == sorted(wanted, key=wanted.__getitem__, reverse=True)[: len(texts)]
    assert list(texts.values()) == pytest.approx([wanted[text] for text in texts], abs=1e-4)


def heard(*frames: str | dict[str, float]) -> np.ndarray:
    """Log-probabilities of frames, each one piece that is all but certain, or pieces' probabilities; "-" is the blank."""
    probs = np.full((len(frames), len(TOKENS)), 1e-5)
    for row, frame in zip(probs, frames, strict=True):
        for piece, p in ({frame: 0.999} if isinstance(frame, str) else frame).items():
            row[BLANK if piece == "-" else TOKENS.symbols.index(piece)] = p
    log_probs: np.ndarray = np.log(probs / probs.sum(axis=1, keepdims=True))
    return log_probs.astype(np.float32)


def best(decoder: Decoder, log_probs: np.ndarray) -> str:
    return decoder.texts(decoder(log_probs), 1)[0][0]


def test_two_segmentations_together_beat_one_that_is_better_alone() -> None:
    log_probs = heard({" c": 0.4, " a": 0.3, " ab": 0.3}, {"-": 0.6, "b": 0.4})
    # " c" has 0.24, "cb" 0.16; "ab" has 0.3 x 0.6 and 0.3 x 0.4, and "abb" 0.3 x 0.4.
    (first, second), shares = (
        Decoder(TOKENS).texts(found := Decoder(TOKENS)(log_probs), 2),
        Decoder(TOKENS).shares(found),
    )
    assert (first[0], second[0]) == ("ab", "c")
    assert np.exp([first[1], second[1]]) == pytest.approx([0.3, 0.24], abs=1e-3)
    assert np.exp(found[0].acoustic) == pytest.approx(0.3, abs=1e-3)
    assert shares == pytest.approx([0.3], abs=1e-2)


def test_models_hot_words_and_grammars_decide_what_the_network_cannot() -> None:
    unsure = heard(" ab", "-", {" cab": 0.3, " c": 0.6})
    assert best(Decoder(TOKENS), unsure) == "ab c"
    assert best(Decoder(TOKENS, lm=WORDS), unsure) == "ab cab"
    assert best(Decoder(TOKENS, lm=CHARACTERS), unsure) == "ab cab"
    assert best(Decoder(TOKENS, hotwords={"cab": 3.0}), unsure) == "ab cab"
    assert best(Decoder(TOKENS, hotwords={"ab cab": 3.0}, beam=1), unsure) == "ab cab"
    assert best(Decoder(TOKENS, grammar=Grammar.parse("ab cab", squeeze, TOKENS)), unsure) == "ab cab"
    assert accepts(Grammar.parse("ab cab", squeeze, TOKENS), TOKENS.characters, "ab cab")


def test_words_begin_where_pieces_begin_with_a_space() -> None:
    log_probs = heard("-", " a", "-", {"bc": 0.6, "b": 0.3}, " ", "-", "cab", " c", "-")
    decoder = Decoder(TOKENS)
    words = decoder.words(decoder(log_probs), log_probs, 0.04, 1.0)
    assert [word.text for word in words] == ["abc", "cab", "c"]
    assert [(round(word.start_s, 2), round(word.end_s, 2)) for word in words] == [
        (1.04, 1.16),
        (1.24, 1.28),
        (1.28, 1.32),
    ]
    assert words[0].confidence == pytest.approx(0.6 / 0.9, abs=0.01)
    sure = Decoder(TOKENS, calibration=Calibration(0.0, 1.0, 0.0))
    confidences = [word.confidence for word in sure.words(sure(log_probs), log_probs, 0.04)]
    assert confidences[0] == pytest.approx(0.6 / 0.9, abs=0.02)
    assert min(confidences[1:]) > 0.99


def test_words_of_pieces_without_any_space() -> None:
    spans = [(TOKENS.symbols.index(piece), Span(at, at + 1, 0.9)) for at, piece in enumerate(["ab", "c", " "])]
    assert [word.text for word in words_of(spans, TOKENS, 0.04)] == ["abc"]


def test_silence_is_the_blank_or_the_space_alone() -> None:
    log_probs = heard("-", " ", " a", "b")
    assert silence(log_probs, TOKENS).tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("pieces", "count", "expected"),
    [
        ([" a", "b", " cab", " c"], 1, 2),
        ([" a", "b", " cab", " c"], 2, 3),
        ([" ", "ab", " ", "c"], 1, 2),
        ([" ", " ", "ab", " ", " ab"], 1, 3),
        ([" ab", " ", " ab"], 1, 1),
        ([" ab"], 1, 1),
    ],
)
def test_where_words_end(pieces: list[str], count: int, expected: int) -> None:
    words = TOKENS.words(TOKENS.symbols.index(piece) for piece in pieces)
    assert words[count - 1].stop == expected


def test_what_is_committed_does_not_grow_into_another_word() -> None:
    search = Decoder(TOKENS).search()
    search.advance(heard(" a", {" ab": 0.5, "bc": 0.5}))
    assert {TOKENS.decode(one.token_ids) for one in search.hypotheses(2)} == {" a ab", " abc"}
    search.commit([TOKENS.symbols.index(" a")], TOKENS.word_starts)
    assert all(TOKENS.decode(one.token_ids).startswith(" a ") for one in search.hypotheses(16))
