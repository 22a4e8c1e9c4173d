"""Language models in the beam search: whatever the look-ahead does on the way, a text gets what the model gives it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.decoding import ctc, fusion
from asr.decoding.fusion import CharacterScorer, Decoding, WordScorer
from asr.errors import DecodingError
from asr.lm import kneserney
from asr.lm.model import EOS, NgramModel
from asr.tokens import Tokens

TOKENS = Tokens.of(" abc")
LINES = ["ab a b", "a b", "b ab ab", "abb a", "a a b", "ba abb"]
MODEL = kneserney.train(LINES, order=3)
CHARACTERS = kneserney.train(map(fusion.spell, LINES), order=4)


def gain(scorer: ctc.Scorer, text: str) -> float:
    """What a scorer adds to a text, asked token by token as the beam search does."""
    states, total = np.array([scorer.start]), 0.0
    for token in TOKENS.encode(text):
        # Among others, as columns must not be mixed up.
        total += float(scorer.scores(states, np.arange(1, len(TOKENS)))[0, token - 1])
        states = scorer.advance(states, np.array([token]))
    return total + float(scorer.end(states)[0])


def expected(words: list[str], decoding: Decoding, extra: frozenset[str] = frozenset()) -> float:
    """The definition, without a tree or look-ahead."""
    total, state = 0.0, np.array([MODEL.start])
    for word in [*words, "</s>"]:
        log_prob, state = MODEL.score(state, MODEL.ids([word]))
        total += decoding.lm_weight * float(log_prob[0]) + decoding.word_bonus * (word != "</s>")
        if word not in MODEL and word not in extra:
            total += -math.inf if decoding.unknown is None else decoding.unknown
    return total


TEXTS = st.text("abc  ", max_size=14)
DECODINGS = st.builds(Decoding, st.floats(0.1, 2), st.floats(-2, 2), st.one_of(st.none(), st.floats(-9, 0)))


@given(text=TEXTS, decoding=DECODINGS)
@settings(max_examples=150)
def test_a_text_gets_what_the_word_model_gives_it(text: str, decoding: Decoding) -> None:
    with np.errstate(invalid="ignore"):  # what comes after a forbidden word is never asked
        found = gain(WordScorer(MODEL, TOKENS, decoding), text)
    wanted = expected(text.split(), decoding)
    if wanted == -math.inf:
        assert not found > -math.inf
    else:
        assert found == pytest.approx(wanted, abs=1e-4)


def test_extra_words_need_not_be_in_the_vocabulary() -> None:
    decoding = Decoding(unknown=None)
    scorer = WordScorer(MODEL, TOKENS, decoding, extra=["cab", "a"])
    assert gain(scorer, "a cab b") == pytest.approx(expected(["a", "cab", "b"], decoding, frozenset({"cab"})), abs=1e-4)
    assert gain(scorer, "a") == pytest.approx(expected(["a"], decoding), abs=1e-4)


@given(text=TEXTS, weight=st.floats(0.1, 2), bonus=st.floats(-1, 1))
@settings(max_examples=80)
def test_a_text_gets_what_the_character_model_gives_it(text: str, weight: float, bonus: float) -> None:
    scorer = fusion.scorer(CHARACTERS, TOKENS, Decoding(weight, bonus))
    assert isinstance(scorer, CharacterScorer)
    words = fusion.spell(text).split()
    assert gain(scorer, text) == pytest.approx(weight * CHARACTERS.log_prob(words) + bonus * len(words), abs=1e-4)


@pytest.mark.parametrize("unknown", [None, -2.0])
@pytest.mark.parametrize("seed", range(6))
def test_an_unlimited_beam_finds_the_best_of_all_texts(unknown: float | None, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(5, len(TOKENS)))
    log_probs = (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)
    decoding = Decoding(0.7, 0.5, unknown)
    sums: dict[str, float] = {}
    for path in itertools.product(range(len(TOKENS)), repeat=5):
        text = TOKENS.decode([token for token, _ in itertools.groupby(path)])
        score = float(log_probs[np.arange(5), path].sum())
        sums[text] = np.logaddexp(sums.get(text, -np.inf), score)
    scores = {text: acoustic + expected(text.split(), decoding) for text, acoustic in sums.items()}
    best = max(scores, key=scores.__getitem__)
    (found,) = ctc.beam(log_probs, 100_000, 1, [WordScorer(MODEL, TOKENS, decoding)])
    assert TOKENS.decode(found.token_ids) == best
    assert found.score == pytest.approx(scores[best], abs=1e-4)


def test_look_ahead_keeps_a_word_that_the_letters_alone_would_drop() -> None:
    # The network hears "bab" rather than "cab", but "bab" is rare; with one place in the beam, "c" must win at once.
    model = kneserney.train(["cab"] * 30 + ["bab"], order=1)
    heard = np.full((3, len(TOKENS)), 0.01)
    for frame, chances in enumerate([{"b": 0.55, "c": 0.42}, {"a": 0.96}, {"b": 0.96}]):
        for letter, chance in chances.items():
            heard[frame, TOKENS.encode(letter)[0]] = chance
    log_probs = np.log(heard / heard.sum(axis=1, keepdims=True)).astype(np.float32)
    (plain,) = ctc.beam(log_probs, 1)
    (found,) = ctc.beam(log_probs, 1, 1, [WordScorer(model, TOKENS, Decoding(1.0, 0.0))])
    assert [TOKENS.decode(one.token_ids) for one in (plain, found)] == ["bab", "cab"]


def test_a_vocabulary_without_a_space_asks_for_a_character_model() -> None:
    with pytest.raises(DecodingError, match="use a character model"):
        WordScorer(MODEL, Tokens.of("abc"), Decoding())


def test_a_model_of_another_alphabet_is_refused() -> None:
    russian = kneserney.train(["да нет"], order=1)
    with pytest.raises(DecodingError, match="expected words spelt with 'abc', got"):
        WordScorer(russian, TOKENS, Decoding())
    with pytest.raises(DecodingError, match="expected a model of"):
        CharacterScorer(kneserney.train([fusion.spell("да")], order=1), Tokens.of("xyz"), Decoding())


def test_long_words_are_noise() -> None:
    model = kneserney.train(["a" * 70 + " b"], order=1)
    assert WordScorer(model, TOKENS, Decoding()).unspelt == ["a" * 70]


def test_words_of_other_letters_cannot_be_recognised() -> None:
    model = kneserney.train(["ab a", "äb a"], order=1)
    assert WordScorer(model, TOKENS, Decoding()).unspelt == ["äb"]
    assert WordScorer(model, TOKENS, Decoding(), extra=["ac"]).unspelt == ["äb"]


@pytest.mark.parametrize("limit", [0, 5])
def test_what_the_scorer_forgets_it_finds_again(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["ab abb b", "ba cc a b", "abba"]
    expected = [gain(WordScorer(MODEL, TOKENS, Decoding()), text) for text in texts]
    monkeypatch.setattr(fusion, "_MAX_ASKED", limit)
    scorer = WordScorer(MODEL, TOKENS, Decoding())
    assert [gain(scorer, text) for text in texts] == expected
    assert [gain(scorer, text) for text in texts] == expected


def test_which_models_are_of_characters() -> None:
    assert fusion.is_character_model(CHARACTERS)
    assert not fusion.is_character_model(MODEL)
    assert not fusion.is_character_model(kneserney.train(["a b"], order=1))  # words of one letter
    assert isinstance(MODEL, NgramModel)
    assert MODEL.words[EOS] == "</s>"
