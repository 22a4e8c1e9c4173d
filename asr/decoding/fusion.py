"""Language models in the beam search: word models with look-ahead inside words, character models at every letter.

A word model can judge a word only once it has ended. Until then the search would prefer whatever spelling the network
likes best, and drop the right word before the model is asked. So a prefix inside a word is given what the best word that
it can still become would get without its context (look-ahead), and at the word's end that is exchanged for the word's own
score. The tree of all spellings knows the words that a prefix can become.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from asr.errors import AsrError
from asr.lm.model import EOS, UNK, NgramModel
from asr.tokens import BLANK, Tokens

SPACE = "\u2581"  # how a character model's text writes the space between words
MAX_WEIGHT = 1000.0  # far beyond all sense; infinite ones would make NaN of the sums
_MAX_LETTERS = 64  # longer "words" are noise in the text, and would cost memory
_MAX_TABLE = 1 << 30  # bytes of the spelling tree


class FusionError(AsrError):
    """A language model that cannot serve this recogniser's vocabulary."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How much the beam search heeds a language model; `asr tune` finds the values. Natural logarithms.

    lm_weight:   factor of the model's log-probabilities.
    word_bonus:  added for each word (of a character model: each character), since every one costs probability.
    unknown:     added for a word outside the vocabulary, beside what the model gives to <unk>; None forbids such words.
    raises:      FusionError if one is beyond MAX_WEIGHT, or the first below 0.
    """

    lm_weight: float = 0.8
    word_bonus: float = 0.0
    unknown: float | None = -12.0

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("lm_weight", self.lm_weight, 0.0, MAX_WEIGHT),
            ("word_bonus", self.word_bonus, -MAX_WEIGHT, MAX_WEIGHT),
            ("unknown", 0.0 if self.unknown is None else self.unknown, -MAX_WEIGHT, MAX_WEIGHT),
        ):
            if value is None or not low <= value <= high:  # nor NaN
                raise FusionError(f"expected for {name} a number from {low:g} to {high:g}, got {value}")


class Lexicon:
    """The tree of a vocabulary's spellings. A node is a beginning of words; ROOT is between words, OUTSIDE in none of them.

    next: (S, V) int32, the node after each token.
    word: (S,) int64, the id of the word that is complete at the node, or UNK.
    best: (S,) float64, the highest value of the words that begin so; -inf for ROOT and OUTSIDE.
    unspelt: the words that the tokens cannot spell.
    raises: FusionError if no word can be spelt, or the tree would be too large.
    """

    ROOT, OUTSIDE = 0, 1

    def __init__(self, words: Sequence[str], ids: np.ndarray, values: np.ndarray, tokens: Tokens) -> None:
        letters = {symbol: token for token, symbol in enumerate(tokens.symbols) if token != BLANK and symbol != " "}
        spellable = [0 < len(word) <= _MAX_LETTERS and letters.keys() >= set(word) for word in words]
        self.unspelt = [word for word, fits in zip(words, spellable, strict=True) if not fits]
        spelt = [(word, index) for index, (word, fits) in enumerate(zip(words, spellable, strict=True)) if fits]
        if not spelt:
            raise FusionError(
                f"expected words spelt with {''.join(letters)!r}, got {list(words[:5])}: "
                "normalise the model's text as the recogniser's was"
            )
        spelt.sort()
        order = np.array([index for _, index in spelt])
        # (W, L) code points, 0 after the end: NumPy keeps texts of one array at one length.
        points = np.array([word for word, _ in spelt]).view(np.uint32).reshape(len(spelt), -1)

        # In sorted order, words with a common beginning stand together: a node begins where a spelling differs from the
        # one before it, and lasts while it does not.
        same = np.zeros(points.shape, bool)
        same[1:] = np.logical_and.accumulate(points[1:] == points[:-1], axis=1)
        begins = ~same & (points > 0)
        numbers = np.cumsum(begins, dtype=np.int32).reshape(begins.shape) + self.OUTSIDE
        nodes = np.maximum.accumulate(np.where(begins, numbers, 0), axis=0)  # (W, L), rubbish where points are 0
        size = int(begins.sum()) + 2
        if size * len(tokens) * 4 > _MAX_TABLE:
            raise FusionError(
                f"expected a vocabulary whose spelling tree fits {_MAX_TABLE >> 20} MB, got {size} nodes of "
                f"{len(tokens)} tokens: train the language model with a smaller --vocab"
            )
        token_of = np.zeros(int(points.max()) + 1, np.int64)
        for symbol, token in letters.items():
            if ord(symbol) < len(token_of):
                token_of[ord(symbol)] = token
        parents = np.concatenate([np.zeros((len(spelt), 1), nodes.dtype), nodes[:, :-1]], axis=1)
        self.next = np.full((size, len(tokens)), self.OUTSIDE, np.int32)
        self.next[parents[begins], token_of[points[begins]]] = nodes[begins]

        lengths = (points > 0).sum(axis=1)
        self.word = np.full(size, UNK, np.int64)
        self.word[nodes[np.arange(len(spelt)), lengths - 1]] = ids[order]
        self.best = np.full(size, -np.inf)
        inside = points > 0
        np.maximum.at(self.best, nodes[inside], np.repeat(values[order], lengths))


class WordScorer:
    """A word n-gram model as a scorer of the beam search (asr.decoding.ctc.Scorer).

    extra:  words outside the model's vocabulary that are as welcome as its unknown word, such as hot words.
    unspelt: words of the vocabulary that the tokens cannot spell, and that can therefore not be recognised.
    raises: FusionError if the tokens have no space, or can spell none of the words.

    The state is the model's context and the spelling tree's node in one integer.
    """

    def __init__(self, model: NgramModel, tokens: Tokens, decoding: Decoding, extra: Iterable[str] = ()) -> None:
        if " " not in tokens.symbols:
            raise FusionError("expected a vocabulary with a space for a word model, got none: use a character model")
        self._space = tokens.space
        self._model = model
        self._weight, self._bonus = decoding.lm_weight, decoding.word_bonus
        known = model.words[EOS + 1 :]
        more = sorted(set(extra) - set(known))
        ids = np.concatenate([np.arange(EOS + 1, len(model.words)), np.full(len(more), UNK)])
        lexicon = Lexicon(known + more, ids, model.unigrams[ids], tokens)
        self.unspelt = lexicon.unspelt
        self._next, self._word = lexicon.next, lexicon.word
        # What a word gains beside its probability; a prefix that is no word, or begins none, is an unknown word.
        unknown = -np.inf if decoding.unknown is None else decoding.unknown
        self._extra = np.where(self._word == UNK, unknown, 0.0) + self._bonus
        node = np.zeros(len(more), np.int64)
        for row, word in enumerate(more):
            for token in tokens.encode(word):
                node[row] = self._next[node[row], token]
        self._extra[node] = self._bonus
        self._ahead = np.zeros(len(self._word))
        words = slice(Lexicon.OUTSIDE + 1, None)
        self._ahead[words] = self._weight * lexicon.best[words] + self._bonus
        self._ahead[Lexicon.OUTSIDE] = self._weight * model.unigrams[UNK] + self._bonus + unknown
        self._bits = int(len(self._word) - 1).bit_length()
        self.start = model.start << self._bits

    def scores(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        node = states & ((1 << self._bits) - 1)
        gains: np.ndarray = self._ahead[self._next[node[:, None], tokens]] - self._ahead[node][:, None]
        column = int(np.searchsorted(tokens, self._space))
        if column < len(tokens) and tokens[column] == self._space:
            gains[:, column] = self._word_end(states)[0]
        return gains

    def advance(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        node = states & ((1 << self._bits) - 1)
        following: np.ndarray = states - node + self._next[node, tokens]
        ends = np.flatnonzero(tokens == self._space)
        if len(ends):
            following[ends] = self._word_end(states[ends])[1] << self._bits
        return following

    def end(self, states: np.ndarray) -> np.ndarray:
        gains, contexts = self._word_end(states)
        return gains + self._weight * self._model.score(contexts, np.full(len(states), EOS))[0]

    def _word_end(self, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What each prefix gains as its last word ends, and the context after it. Between words nothing ends."""
        context, node = states >> self._bits, states & ((1 << self._bits) - 1)
        log_probs, following = self._model.score(context, self._word[node])
        gains = self._weight * log_probs + self._extra[node] - self._ahead[node]
        between = node == Lexicon.ROOT
        return np.where(between, 0.0, gains), np.where(between, context, following)


class CharacterScorer:
    """A character n-gram model as a scorer of the beam search (`asr.decoding.ctc.Scorer`).

    Its text writes the space as SPACE.
    """

    def __init__(self, model: NgramModel, tokens: Tokens, decoding: Decoding) -> None:
        self._model = model
        self._weight, self._bonus = decoding.lm_weight, decoding.word_bonus
        self._ids = model.ids([SPACE if symbol == " " else symbol for symbol in tokens.symbols])
        self.unspelt = [word for word in model.words[EOS + 1 :] if word != SPACE and word not in tokens.symbols]
        if not self._ids.any():
            raise FusionError(f"expected a model of {''.join(tokens.symbols[1:])!r}, got one of {model.words[3:8]}")
        self.start = model.start

    def scores(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        words = self._ids[np.tile(tokens, len(states))]
        log_probs = self._model.score(np.repeat(states, len(tokens)), words)[0]
        return self._weight * log_probs.reshape(len(states), -1) + self._bonus

    def advance(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        return self._model.score(states, self._ids[tokens])[1]

    def end(self, states: np.ndarray) -> np.ndarray:
        return self._weight * self._model.score(states, np.full(len(states), EOS))[0]


def scorer(
    model: NgramModel, tokens: Tokens, decoding: Decoding, extra: Iterable[str] = ()
) -> WordScorer | CharacterScorer:
    """The scorer for a model of words or of characters."""
    if is_character_model(model):
        return CharacterScorer(model, tokens, decoding)
    return WordScorer(model, tokens, decoding, extra)


def is_character_model(model: NgramModel) -> bool:
    """Whether its words are single characters, SPACE among them."""
    return SPACE in model and all(len(word) == 1 for word in model.words[EOS + 1 :])


def spell(line: str) -> str:
    """A line of words as a character model's text: every character a word, SPACE for the space.

    >>> spell("to be")
    't o ▁ b e'
    """
    return " ".join(line.replace(" ", SPACE))
