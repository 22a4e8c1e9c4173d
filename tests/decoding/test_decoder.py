"""Log-probabilities -> words: what steers the search, together and each alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.decoding import ctc, fusion
from asr.decoding.confidence import Calibration
from asr.decoding.decoder import Decoder
from asr.decoding.fusion import Decoding
from asr.decoding.grammar import Grammar
from asr.errors import DecodingError
from asr.lm import kneserney
from asr.text import squeeze
from asr.tokens import BLANK, Tokens

TOKENS = Tokens.of(" abcd")
WORDS = kneserney.train(["ab cab", "cab ab", "ab ab"] * 3, order=2)


def heard(*frames: str | dict[str, float]) -> np.ndarray:
    """Log-probabilities of frames, each one letter that is all but certain, or letters' probabilities; "-" is the blank."""
    probs = np.full((len(frames), len(TOKENS)), 1e-5)
    for row, frame in zip(probs, frames, strict=True):
        for letter, p in ({frame: 0.999} if isinstance(frame, str) else frame).items():
            row[BLANK if letter == "-" else TOKENS.encode(letter)[0]] = p
    log_probs: np.ndarray = np.log(probs / probs.sum(axis=1, keepdims=True))
    return log_probs.astype(np.float32)


def best(decoder: Decoder, log_probs: np.ndarray) -> str:
    texts = decoder.texts(decoder(log_probs), 1)
    return texts[0][0] if texts else "(nothing)"


# "cab" or "cad", as the network cannot tell, after a clear "ab".
UNSURE = heard("a", "b", " ", "c", "a", {"b": 0.4, "d": 0.5})
CLEAR = heard("a", "-", "b", "b", " ", "c", "a", "b")


def random_log_probs(seed: int, frames: int = 30) -> np.ndarray:
    logits = 3 * np.random.default_rng(seed).normal(size=(frames, len(TOKENS)))
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


# The search


def test_greedy_is_the_best_path() -> None:
    log_probs = random_log_probs(0)
    assert Decoder(TOKENS, beam=1)(log_probs) == [ctc.greedy(log_probs)]


def test_a_beam_sums_where_the_best_path_does_not() -> None:
    # The best path is two blanks, but "a" has three.
    two = heard({"-": 0.55, "a": 0.45}, {"-": 0.55, "a": 0.45})
    assert best(Decoder(TOKENS, beam=1), two) == ""
    assert best(Decoder(TOKENS), two) == "a"


@pytest.mark.parametrize("seed", range(5))
def test_what_the_search_leaves_out_changes_nothing_here(seed: int) -> None:
    found = Decoder(TOKENS, beam=8)(random_log_probs(seed))
    expected = ctc.beam(random_log_probs(seed), 8, 8)
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-3)


def test_one_place_in_the_beam_is_enough_to_be_steered() -> None:
    assert best(Decoder(TOKENS, beam=1, hotwords={"cab": 5.0}), UNSURE) == "ab cab"
    assert best(Decoder(TOKENS, beam=1, lm=WORDS), UNSURE) == "ab cab"


# Language models, hot words, grammars


def test_a_language_model_decides_what_the_network_cannot() -> None:
    assert best(Decoder(TOKENS), UNSURE) == "ab cad"
    assert best(Decoder(TOKENS, lm=WORDS), UNSURE) == "ab cab"
    characters = kneserney.train(map(fusion.spell, ["ab cab", "cab ab"]), order=4)
    assert best(Decoder(TOKENS, lm=characters), UNSURE) == "ab cab"


def test_how_much_the_language_model_is_heeded() -> None:
    assert best(Decoder(TOKENS, lm=WORDS, decoding=Decoding(0.001, 0.0, 0.0)), UNSURE) == "ab cad"
    certain = heard("a", "b", " ", "c", "a", "d")
    assert best(Decoder(TOKENS, lm=WORDS, decoding=Decoding(unknown=-1.0)), certain) == "ab cad"
    # A closed vocabulary: only what it holds, however clearly another word was heard; and not nothing for its sake.
    assert best(Decoder(TOKENS, lm=WORDS, decoding=Decoding(unknown=None)), certain) == "ab cab"


def test_words_that_the_tokens_cannot_spell_are_told() -> None:
    model = kneserney.train(["ab été cab", "Ab"], order=2)
    assert sorted(Decoder(TOKENS, lm=model).unspelt) == ["Ab", "été"]
    assert Decoder(TOKENS).unspelt == []


def test_hot_words_outside_the_vocabulary_are_as_welcome_as_unknown_words() -> None:
    plain = Decoder(TOKENS, lm=WORDS)
    hot = Decoder(TOKENS, lm=WORDS, hotwords={"cad": 8.0})
    assert (best(plain, UNSURE), best(hot, UNSURE)) == ("ab cab", "ab cad")
    # In a closed vocabulary too, and each word of a phrase.
    closed = Decoding(unknown=None)
    assert best(Decoder(TOKENS, lm=WORDS, decoding=closed, hotwords={"cad": 8.0}), UNSURE) == "ab cad"
    assert best(Decoder(TOKENS, lm=WORDS, decoding=closed, hotwords={"ab cad": 8.0}), UNSURE) == "ab cad"
    assert best(Decoder(TOKENS, lm=WORDS, decoding=closed, hotwords={"dad": 8.0}), UNSURE) == "ab cab"


def test_a_score_is_the_sum_of_all_that_is_said_about_a_text() -> None:
    decoding = Decoding(0.7, 0.3, -5.0)
    hot = {"cad": 3.0, "ab cad": 2.0}
    found = Decoder(TOKENS, lm=WORDS, decoding=decoding, hotwords=hot)(UNSURE)
    top = found[0]
    assert TOKENS.decode(top.token_ids) == "ab cad"
    model = 0.7 * WORDS.log_prob(["ab", "cad"]) + 2 * 0.3  # no penalty: a hot word is welcome
    assert top.score == pytest.approx(top.acoustic + model + 5.0, abs=1e-4)


def test_a_discouraged_word_is_no_more_welcome_than_any_other() -> None:
    # "cad" is outside the vocabulary. A charge for it must not spare it the charge for unknown words.
    alone = Decoder(TOKENS, lm=WORDS)(UNSURE)
    charged = Decoder(TOKENS, lm=WORDS, hotwords={"cad": -3.0})(UNSURE)
    scores = [
        {TOKENS.decode(one.token_ids): one.score - one.acoustic for one in found}["ab cad"]
        for found in (alone, charged)
    ]
    assert scores[1] == pytest.approx(scores[0] - 3.0, abs=1e-4)


def test_a_grammar_restricts() -> None:
    grammar = Grammar.parse("ab cab\ncab\nd", squeeze, TOKENS)
    assert best(Decoder(TOKENS, grammar=grammar), UNSURE) == "ab cab"
    assert best(Decoder(TOKENS, grammar=grammar, beam=1), UNSURE) == "ab cab"
    found = Decoder(TOKENS, grammar=grammar)(UNSURE)
    assert {TOKENS.decode(one.token_ids) for one in found} <= {"ab cab", "cab", "d"}


def test_silence_is_a_sentence_only_where_the_grammar_says_so() -> None:
    silence = heard("-", "-")
    assert Decoder(TOKENS, grammar=Grammar.parse("ab", squeeze, TOKENS))(silence) == []
    optional = Grammar.parse("#JSGF V1.0; grammar g; public <s> = [ab];", squeeze, TOKENS)
    assert best(Decoder(TOKENS, grammar=optional), silence) == ""


def test_all_at_once() -> None:
    grammar = Grammar.parse("ab cab\nab cad\nab dad", squeeze, TOKENS)
    together = Decoder(TOKENS, lm=WORDS, hotwords={"dad": 12.0}, grammar=grammar, reject=3.0)
    unsure = heard("a", "b", " ", {"c": 0.9, "d": 0.1}, "a", {"b": 0.4, "d": 0.5})
    assert best(together, unsure) == "ab dad"
    assert best(Decoder(TOKENS, lm=WORDS, grammar=grammar), unsure) == "ab cab"


# Rejection


@pytest.mark.parametrize(("reject", "expected"), [(None, "ab cab"), (5.0, "ab cab"), (0.5, "(nothing)")])
def test_what_no_sentence_resembles_is_rejected(reject: float | None, expected: str) -> None:
    grammar = Grammar.parse("ab cab", squeeze, TOKENS)
    other = heard("a", "b", " ", "c", "a", {"b": 0.001, "d": 0.9})  # 6.8 nats for one letter of six
    assert best(Decoder(TOKENS, grammar=grammar, reject=reject), other) == expected


def test_what_fits_is_not_rejected_even_at_0() -> None:
    grammar = Grammar.parse("ab cab\nd", squeeze, TOKENS)
    decoder = Decoder(TOKENS, grammar=grammar, reject=0.0)
    assert best(decoder, CLEAR) == "ab cab"
    assert best(decoder, heard("a", "b")) == "(nothing)"


def test_how_little_it_takes_is_per_letter() -> None:
    grammar = Grammar.parse("d\nd" + "ab" * 20, squeeze, TOKENS)
    short = heard({"a": 0.9, "d": 0.02})
    long = heard({"a": 0.9, "d": 0.02}, *"ab" * 20)
    decoder = Decoder(TOKENS, grammar=grammar, reject=0.5)
    assert (best(decoder, short), best(decoder, long)) == ("(nothing)", "d" + "ab" * 20)


# Texts and words


@given(seed=st.integers(0, 10_000), beam=st.integers(1, 12), n_best=st.integers(1, 15))
@settings(max_examples=60)
def test_n_best_texts_differ_and_descend(seed: int, beam: int, n_best: int) -> None:
    decoder = Decoder(TOKENS, beam=beam)
    found = decoder(random_log_probs(seed))
    texts = decoder.texts(found, n_best)
    assert 1 <= len(texts) <= min(beam, n_best)
    assert len({text for text, _ in texts}) == len(texts)
    assert [score for _, score in texts] == sorted((score for _, score in texts), reverse=True)
    assert all(text == " ".join(text.split()) for text, _ in texts)
    assert texts[0][1] == found[0].score


def test_texts_that_differ_in_spaces_alone_are_one() -> None:
    decoder = Decoder(TOKENS)
    spaced = heard("a", {" ": 0.5, "-": 0.5}, "-", {" ": 0.5, "-": 0.5}, "b", {" ": 0.5, "-": 0.5})
    found = decoder(spaced)
    assert len({" ".join(TOKENS.decode(one.token_ids).split()) for one in found}) < len(found)
    texts = dict(decoder.texts(found, 16))
    assert {"a b", "ab"} <= texts.keys()
    assert decoder.texts([], 3) == ()


def test_words_have_times_and_the_posterior_of_their_weakest_letter() -> None:
    log_probs = heard("-", "a", "b", " ", "c", {"a": 0.6, "d": 0.3}, "b")
    decoder = Decoder(TOKENS)
    first, second = decoder.words(decoder(log_probs), log_probs, 0.02, 10.0)
    assert (first.text, second.text) == ("ab", "cab")
    assert (first.start_s, first.end_s) == pytest.approx((10.02, 10.06))
    assert (second.start_s, second.end_s) == pytest.approx((10.08, 10.14))
    assert first.confidence > 0.99
    assert second.confidence == pytest.approx(0.6 / 0.9, abs=1e-3)
    assert decoder.words([], log_probs, 0.02) == ()


def test_calibrated_words() -> None:
    calibration = Calibration(-0.5, 0.7, 0.2)
    plain, calibrated = Decoder(TOKENS), Decoder(TOKENS, calibration=calibration)
    found = plain(UNSURE)
    words, sure = plain.words(found, UNSURE, 0.02), calibrated.words(found, UNSURE, 0.02)
    shares = calibrated.shares(found)
    assert [word.confidence for word in sure] == [
        calibration(share, word.confidence) for share, word in zip(shares, words, strict=True)
    ]
    assert [(word.text, word.start_s, word.end_s) for word in sure] == [
        (word.text, word.start_s, word.end_s) for word in words
    ]
    assert shares == pytest.approx([1.0, 0.5 / 0.9], abs=0.01)
    assert sure[0].confidence > sure[1].confidence


def test_greedy_has_a_share_of_one() -> None:
    decoder = Decoder(TOKENS, beam=1)
    assert decoder.shares(decoder(CLEAR)) == [1.0, 1.0]


@pytest.mark.parametrize("options", [{}, {"beam": 1}, {"lm": WORDS}, {"hotwords": {"ab": 3.0}}], ids=str)
def test_no_frames_no_words(options: dict[str, Any]) -> None:
    decoder = Decoder(TOKENS, calibration=Calibration(0, 1, 1), **options)
    nothing = np.zeros((0, len(TOKENS)), np.float32)
    found = decoder(nothing)
    assert [text for text, _ in decoder.texts(found, 3)] == [""]
    assert decoder.words(found, nothing, 0.02) == ()


def test_no_frames_and_a_grammar() -> None:
    nothing = np.zeros((0, len(TOKENS)), np.float32)
    decoder = Decoder(TOKENS, grammar=Grammar.parse("ab", squeeze, TOKENS), reject=1.0)
    assert decoder(nothing) == []
    assert decoder.words([], nothing, 0.02) == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [("lm_weight", -0.1), ("lm_weight", math.nan), ("word_bonus", math.inf), ("unknown", -1e9), ("lm_weight", None)],
)
def test_weights_without_sense(name: str, value: float) -> None:
    with pytest.raises(DecodingError, match=f"expected for {name} a number from .* to 1000, got"):
        Decoding(**{name: value})
