"""Log-probabilities -> words: the search, all that steers it, and how sure it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from asr.decoding import confidence, ctc
from asr.decoding.align import align
from asr.decoding.confidence import Calibration
from asr.decoding.fusion import Decoding, scorer
from asr.decoding.hotwords import HotWords
from asr.decoding.subwords import SubwordScorer
from asr.lm.model import NgramModel
from asr.tokens import Tokens
from asr.transcript import Word, words_of

if TYPE_CHECKING:
    from asr.decoding.grammar import Grammar
    from asr.lm.neural import NeuralLm

# A token of lower log-probability than the floor in a frame grows no prefix there, and a prefix that ranks so much lower
# than the best is dropped. Neither costs any errors (recipes/english/RESULTS.md); a third of the frames become free, the
# others cheap. A grammar's sentence may have to go by letters that the network finds less likely.
_TOKEN_FLOOR, _GRAMMAR_FLOOR = -6.0, -7.0
_SCORE_RANGE = 14.0


class Decoder:
    """Greedy decoding or beam search, with a language model, hot words and a grammar where they are given.

    tokens:      the network's vocabulary.
    beam:        prefixes kept by the search; 1 without anything to steer it is greedy decoding.
    lm:          a word or character n-gram model, heeded as `decoding` says.
    neural:      a recurrent model that is mixed into `lm` to rank anew what the search ends with.
    hotwords:    phrase -> boost, normalised as the recogniser's texts.
    grammar:     restricts the text to its sentences.
    reject:      with a grammar, how much less probable than the best free text a sentence may be, in nats a letter, before
                 nothing is recognised instead; None for never.
    calibration: of the confidences; without it a word's is the posterior of its weakest letter.
    """

    def __init__(
        self,
        tokens: Tokens,
        *,
        beam: int = 128,
        lm: NgramModel | None = None,
        decoding: Decoding | None = None,
        neural: NeuralLm | None = None,
        hotwords: Mapping[str, float] | None = None,
        grammar: Grammar | None = None,
        reject: float | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.tokens = tokens
        self.beam = beam
        self._grammar = grammar
        floor = _TOKEN_FLOOR if grammar is None else _GRAMMAR_FLOOR
        self._pruning = {"token_floor": floor, "score_range": _SCORE_RANGE}
        self._reject = reject
        self._calibration = calibration
        self.scorers: list[ctc.Scorer] = []
        self.unspelt: list[str] = []  # words of the language model that the tokens cannot spell
        if lm is not None:
            # What is to be discouraged stays as unwelcome to the model as it is.
            names = {word for phrase, weight in (hotwords or {}).items() if weight > 0 for word in phrase.split()}
            fused = scorer(lm, tokens.characters, decoding or Decoding(), names)
            self.unspelt = fused.unspelt
            self.scorers.append(fused)
        self._rescore: Callable[[list[ctc.Hypothesis]], list[ctc.Hypothesis]] | None = None
        if neural is not None:
            from asr.decoding.rescoring import Rescorer

            self._rescore = Rescorer(neural, lm, decoding or Decoding(), tokens)
        if hotwords:
            self.scorers.append(HotWords(hotwords, tokens.characters))
        if grammar is not None:
            self.scorers.append(grammar)
        if tokens.subwords:
            self.scorers = [SubwordScorer(one, tokens) for one in self.scorers]

    def __call__(self, log_probs: np.ndarray) -> list[ctc.Hypothesis]:
        """The hypotheses of (T, V) log-probabilities, best first; none where the grammar refuses all."""
        if self.beam == 1 and not self.scorers:
            return [ctc.greedy(log_probs)]
        found = ctc.beam(log_probs, self.beam, self.beam, self.scorers, **self._pruning)
        if not found and self._grammar is None:
            # A closed vocabulary, and a word outside it that leaves no likely way on: then the unlikely ones count too.
            found = ctc.beam(log_probs, self.beam, self.beam, self.scorers)
        if self.tokens.subwords:
            found = self._merge(found)
        if self._rescore is not None:
            found = self._rescore(found)
        if found and self._reject is not None:
            free = ctc.greedy(log_probs)
            letters = max(len(self.tokens.decode(one.token_ids)) for one in (found[0], free)) or 1
            if free.acoustic - found[0].acoustic > self._reject * letters:
                return []
        return found

    def _merge(self, found: Sequence[ctc.Hypothesis]) -> list[ctc.Hypothesis]:
        """The hypotheses, best first, with those of one text in other subwords added to the best of them."""
        of_text: dict[str, list[ctc.Hypothesis]] = {}
        for one in found:
            of_text.setdefault(self.tokens.text(one.token_ids), []).append(one)
        merged = [
            ctc.Hypothesis(
                same[0].token_ids,
                float(np.logaddexp.reduce([one.score for one in same])),
                float(np.logaddexp.reduce([one.acoustic for one in same])),
            )
            for same in of_text.values()
        ]
        return sorted(merged, key=lambda one: -one.score)

    def search(self) -> ctc.BeamSearch:
        """A beam search that takes its frames in pieces, steered alike; without rejection and rescoring."""
        return ctc.BeamSearch(len(self.tokens), self.beam, self.scorers, **self._pruning)

    def texts(self, found: Sequence[ctc.Hypothesis], n_best: int) -> tuple[tuple[str, float], ...]:
        """The n_best different texts of hypotheses, each with its score; words are parted by single spaces."""
        texts: dict[str, float] = {}
        for hypothesis in found:
            texts.setdefault(self.tokens.text(hypothesis.token_ids), hypothesis.score)
            if len(texts) == n_best:
                break
        return tuple(texts.items())

    def words(
        self, found: Sequence[ctc.Hypothesis], log_probs: np.ndarray, frame_shift_s: float, offset_s: float = 0.0
    ) -> tuple[Word, ...]:
        """The words of the best of the hypotheses of (T, V) log-probabilities, whose first frame is at offset_s."""
        if not found:
            return ()
        spans = zip(found[0].token_ids, align(log_probs, found[0].token_ids), strict=True)
        words = words_of(spans, self.tokens, frame_shift_s, offset_s)
        if self._calibration is None:
            return words
        sure = map(self._calibration, self.shares(found), (word.confidence for word in words))
        return tuple(replace(word, confidence=value) for word, value in zip(words, sure, strict=True))

    def shares(self, found: Sequence[ctc.Hypothesis]) -> list[float]:
        """For each word of the best hypothesis, the share of the hypotheses' probability that has it in its place."""
        texts = [self.tokens.decode(hypothesis.token_ids).split() for hypothesis in found]
        return confidence.shares(texts, [hypothesis.score for hypothesis in found])
