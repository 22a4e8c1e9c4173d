"""Choosing among the texts that the beam search ends with, by a recurrent language model.

The search has ranked its texts with an n-gram model. Of the best of them a recurrent model reads each from its beginning.
Word by word the two are mixed, as neither is always right:

    p(w | before) = (1 - share) p_ngram(w | before) + share p_neural(w | before)

and a text's score changes by lm_weight (log p - log p_ngram), summed over its words and its end. Of a word that one of the
models does not know, p is what the n-gram model says.

source: Mikolov et al. 2010, "Recurrent neural network based language model", section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from asr.decoding.ctc import Hypothesis
from asr.decoding.fusion import Decoding, is_character_model
from asr.errors import DecodingError
from asr.lm.model import EOS, UNK, NgramModel
from asr.lm.neural import NeuralLm
from asr.tokens import Tokens

_TEXTS = 16  # so many of the best are read; with 50, at twice the time, as many errors remain


class Rescorer:
    """Ranks hypotheses anew by a recurrent model that is mixed into the n-gram model they were found with.

    raises: DecodingError if there is no n-gram model, or one of characters.
    """

    def __init__(self, neural: NeuralLm, ngram: NgramModel | None, decoding: Decoding, tokens: Tokens) -> None:
        if ngram is None or is_character_model(ngram):
            got = "none" if ngram is None else "one of characters"
            raise DecodingError(
                f"expected a language model of words that a recurrent one is mixed into, got {got}: --lm FILE"
            )
        self._neural, self._ngram, self._decoding, self._tokens = neural, ngram, decoding, tokens

    def __call__(self, found: Sequence[Hypothesis]) -> list[Hypothesis]:
        """The hypotheses with their new scores, best first; those that are not read gain as little as any that is."""
        gains = self.gains([self._tokens.text(one.token_ids) for one in found[:_TEXTS]])
        gains = np.pad(gains, (0, len(found) - len(gains)), constant_values=min(gains, default=0.0))
        scored = [replace(one, score=one.score + gain) for one, gain in zip(found, gains.tolist(), strict=True)]
        return sorted(scored, key=lambda one: -one.score)

    def gains(self, texts: Sequence[str]) -> np.ndarray:
        """(n,) float64, what is added to the scores of n texts."""
        with np.errstate(divide="ignore"):  # log 0, of which nothing is added
            log_shares = np.log([1 - self._decoding.neural_share, self._decoding.neural_share])
        # What the search has in memory already tells the words' ids; the texts have most words in common.
        lexicon = self._ngram.lexicon
        ids = {
            word: int(lexicon.word[lexicon.find(word)]) for word in {word for text in texts for word in text.split()}
        }
        gains = np.zeros(len(texts))
        for row, (text, neural) in enumerate(zip(texts, self._neural.log_probs(texts), strict=True)):
            words = [ids[word] for word in text.split()]
            ngram = self._ngram_log_probs([*words, EOS])
            known = np.append((self._neural.ids(text.split()) != UNK) & (np.array(words, np.int64) != UNK), True)
            mixed = np.logaddexp(log_shares[0] + ngram, log_shares[1] + neural)
            gains[row] = self._decoding.lm_weight * (mixed - ngram)[known].sum()
        return gains

    def _ngram_log_probs(self, words: Sequence[int]) -> np.ndarray:
        state, log_probs = self._ngram.start, []
        for word in words:
            log_prob, state = self._ngram.score_word(state, word)
            log_probs.append(log_prob)
        return np.array(log_probs)
