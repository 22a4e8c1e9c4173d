"""Mixtures of two language models."""

from __future__ import annotations

import math

import numpy as np
import pytest

from asr.errors import LmError
from asr.lm import kneserney, mixing
from asr.lm.model import BOS, NgramModel

A = kneserney.train(["the cat sat", "the dog sat down", "a cat ran", "the cat ran"], order=3)
B = kneserney.train(["turn the lamp on", "turn it down", "the lamp"], order=2)


def prob(model: NgramModel, context: str, word: str) -> float:
    """p(word | context); 0 for a word that the model does not know."""
    state = np.zeros(1, np.int64)
    for before in context.split():
        state = model.score(state, model.ids([before]))[1]
    return float(np.exp(model.score(state, model.ids([word]))[0][0])) if word in model else 0.0


@pytest.mark.parametrize("pair", [(A, B), (B, A)])
def test_listed_ngrams_have_the_mixture_of_both(pair: tuple[NgramModel, NgramModel]) -> None:
    mixed = mixing.mix(*pair, 0.3)
    assert mixed.order == 3
    assert set(mixed.words) == {*A.words, *B.words}
    for k in range(1, 4):
        for row in mixed.ngrams(k):
            *context, word = (mixed.words[i] for i in row)
            if word == "<s>":
                continue
            expected = 0.7 * prob(pair[0], " ".join(context), word) + 0.3 * prob(pair[1], " ".join(context), word)
            assert prob(mixed, " ".join(context), word) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize(
    "context", ["", "the", "turn the", "the cat", "<s>", "<s> turn", "never heard", "lamp on", "ran"]
)
def test_probabilities_sum_to_one(context: str, share: float) -> None:
    mixed = mixing.mix(A, B, share)
    total = sum(prob(mixed, context, word) for number, word in enumerate(mixed.words) if number != BOS)
    assert total == pytest.approx(1, abs=1e-5)


def test_a_model_mixed_with_itself_stays_as_it_is() -> None:
    mixed = mixing.mix(A, A, 0.4)
    for sentence in (["the", "cat", "sat"], ["a", "dog"], ["unheard", "of"]):
        assert mixed.log_prob(sentence) == pytest.approx(A.log_prob(sentence), abs=1e-4)


def test_the_best_share_is_that_of_the_highest_probability() -> None:
    lines = ["turn the cat on", "the lamp sat down", "turn it down"]
    found = mixing.best_share(A, B, lines)

    def log_likelihood(share: float) -> float:
        total = 0.0
        for line in lines:
            words = ["<s>", *line.split(), "</s>"]
            for i in range(1, len(words)):
                one, other = (prob(model, " ".join(words[:i]), words[i]) for model in (A, B))
                total += math.log((1 - share) * one + share * other)
        return total

    grid = np.linspace(0.01, 0.99, 99)
    assert found == pytest.approx(grid[np.argmax([log_likelihood(share) for share in grid])], abs=0.01)


def test_shares_out_of_range() -> None:
    for share in (0.0, 1.0, math.nan):
        with pytest.raises(LmError, match="a share above 0 and below 1"):
            mixing.mix(A, B, share)
    with pytest.raises(LmError, match="words of the models, got none"):
        mixing.best_share(A, B, [])
