"""Two language models as one: a large one of general text, and a small one of the text that is to be recognised.

    p(w | h) = (1 - share) p_a(w | h) + share p_b(w | h)

for every n-gram that either lists. What neither lists backs off, with weights that make everything sum to one again; that
is not the mixture of two back-offs to the last digit, but one model, as fast as any.

source: Stolcke 2002, "SRILM - An Extensible Language Modeling Toolkit", section 3.2 (static interpolation).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from asr.errors import LmError
from asr.lm.model import EOS, SPECIAL_WORDS, Level, NgramModel

_NOTHING = 1e-9  # probability mass that may be all rounding error
_ROUNDS = 100


def mix(a: NgramModel, b: NgramModel, share: float) -> NgramModel:
    """The mixture of two models, of their joint vocabulary. share: b's, above 0 and below 1.

    raises: LmError if the share is another.
    """
    if not 0 < share < 1:
        raise LmError(f"expected a share above 0 and below 1, got {share}")
    words = [*a.words, *(word for word in b.words if word not in a)]
    parts = [_Part(a, words, 1 - share), _Part(b, words, share)]
    levels: list[Level] = []
    for k in range(1, max(a.order, b.order) + 1):
        ngrams = np.unique(np.concatenate([part.ngrams(k) for part in parts]), axis=0)
        probs = sum(part.probs(ngrams) for part in parts)
        if k > 1:
            # The back-off weights of the level below, now that what is listed above it is known.
            below = NgramModel.from_levels(words, levels)
            contexts = levels[-1].ngrams
            row = _rows(contexts, ngrams[:, :-1], len(words))
            lower = np.exp(_score(below, ngrams[:, 1:]))
            left, left_below = (1 - np.bincount(row, p, len(contexts)) for p in (probs, lower))
            weights = np.where(np.minimum(left, left_below) > _NOTHING, left / np.maximum(left_below, _NOTHING), 1.0)
            levels[-1] = Level(contexts, levels[-1].log_probs, np.log(np.maximum(weights, _NOTHING)))
        levels.append(Level(ngrams, np.log(np.maximum(probs, 1e-30))))
    return NgramModel.from_levels(words, levels, {"mixture": [a.info, b.info], "share": share})


def best_share(a: NgramModel, b: NgramModel, lines: Iterable[str]) -> float:
    """The share of b that makes a text most probable, by expectation maximisation; words unknown to both do not count.

    raises: LmError if no word of the text is known.
    """
    sentences = [line.split() for line in lines]
    first, second = (_sentence_probs(model, sentences) for model in (a, b))
    known = first + second > 0
    if not known.any():
        raise LmError("expected a text with words of the models, got none")
    first, second = first[known], second[known]
    share = 0.5
    for _ in range(_ROUNDS):
        share = float(np.mean(share * second / ((1 - share) * first + share * second)))
    return share


class _Part:
    """One of the models, asked in the words of the mixture."""

    def __init__(self, model: NgramModel, words: list[str], weight: float) -> None:
        self._model, self._weight = model, weight
        self._own = model.ids(words)  # unknown words as <unk>
        self._knows = np.array([word in model for word in words])
        self._joint = np.zeros(len(model.words), np.int64)
        self._joint[self._own[self._knows]] = np.flatnonzero(self._knows)

    def ngrams(self, k: int) -> np.ndarray:
        """Its k-grams, (n, k) ids of the mixture."""
        if k > self._model.order:
            return np.zeros((0, k), np.int64)
        return np.asarray(self._joint[self._model.ngrams(k)])

    def probs(self, ngrams: np.ndarray) -> np.ndarray:
        """Its share of p(last word | words before), (n, k) -> (n,); a word it does not know has none of it."""
        found = np.exp(_score(self._model, self._own[ngrams])) * self._knows[ngrams[:, -1]]
        return np.asarray(self._weight * found)


def _sentence_probs(model: NgramModel, sentences: list[list[str]]) -> np.ndarray:
    """p of each word and </s> of all sentences, one after another; 0 for words that the model does not know."""
    found = []
    for words in sentences:
        state = np.array([model.start])
        for word in [*words, SPECIAL_WORDS[EOS]]:
            log_prob, state = model.score(state, model.ids([word]))
            found.append(float(np.exp(log_prob[0])) if word in model else 0.0)
    return np.array(found)


def _score(model: NgramModel, ngrams: np.ndarray) -> np.ndarray:
    """log p(last word | words before) of (n, k) word ids."""
    states = np.zeros(len(ngrams), np.int64)
    for words in ngrams[:, :-1].T:
        states = model.score(states, words)[1]
    return model.score(states, ngrams[:, -1])[0]


def _rows(table: np.ndarray, wanted: np.ndarray, n_words: int) -> np.ndarray:
    """The row of each wanted n-gram (m, k) in a table (n, k) that is sorted and holds them all."""
    rows = np.zeros(len(wanted), np.int64)
    ranks = np.zeros(len(table), np.int64)
    for column, column_wanted in zip(table.T, wanted.T, strict=True):
        keys, ranks = np.unique(ranks * n_words + column, return_inverse=True)
        rows = np.searchsorted(keys, rows * n_words + column_wanted)
    return rows
