"""Language models in the beam search: word models with look-ahead inside words, character models at every letter.

A word model can judge a word only once it has ended. Until then the search would prefer whatever spelling the network
likes best, and drop the right word before the model is asked. So a prefix inside a word is given what the best word that
it can still become would get without its context (look-ahead), and at the word's end that is exchanged for the word's own
score. The tree of all spellings knows the words that a prefix can become.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from asr.errors import DecodingError
from asr.lm.lexicon import MAX_LETTERS, OUTSIDE, ROOT, Lexicon
from asr.lm.model import EOS, UNK, NgramModel
from asr.tokens import BLANK, Tokens

SPACE = "\u2581"  # how a character model's text writes the space between words
MAX_WEIGHT = 1000.0  # far beyond all sense; infinite ones would make NaN of the sums
_NEURAL_SHARE = 0.5  # until it is tuned
_MAX_TABLE = 1 << 30  # bytes
_MAX_ASKED = 1 << 16  # what is remembered of the model


@dataclass(frozen=True, slots=True)
class Decoding:
    """How much the beam search heeds a language model; `asr tune` finds the values. Natural logarithms.

    lm_weight:   factor of the model's log-probabilities.
    word_bonus:  added for each word (of a character model: each character), since every one costs probability.
    unknown:     added for a word outside the vocabulary, beside what the model gives to <unk>; None forbids such words.
    neural_share: of a word's probability, what a recurrent model says where one rescores (asr.decoding.rescoring); 0 to 1.
    raises:      DecodingError if one is beyond MAX_WEIGHT, the first below 0, or the last not a share.
    """

    lm_weight: float = 0.8
    word_bonus: float = 0.0
    unknown: float | None = -12.0
    neural_share: float = _NEURAL_SHARE

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("lm_weight", self.lm_weight, 0.0, MAX_WEIGHT),
            ("word_bonus", self.word_bonus, -MAX_WEIGHT, MAX_WEIGHT),
            ("unknown", 0.0 if self.unknown is None else self.unknown, -MAX_WEIGHT, MAX_WEIGHT),
            ("neural_share", self.neural_share, 0.0, 1.0),
        ):
            if value is None or not low <= value <= high:  # nor NaN
                raise DecodingError(f"expected for {name} a number from {low:g} to {high:g}, got {value}")

    def settings(self) -> dict[str, float | None]:
        """By name; without neural_share where that was never chosen."""
        chosen = asdict(self)
        if self.neural_share == _NEURAL_SHARE:
            del chosen["neural_share"]
        return chosen


class WordScorer:
    """A word n-gram model as a scorer of the beam search (asr.decoding.ctc.Scorer). Safe to share between threads.

    extra:  words outside the model's vocabulary that are as welcome as its unknown word, such as hot words.
    unspelt: words of the vocabulary that the tokens cannot spell, and that can therefore not be recognised.
    raises: DecodingError if the tokens have no space, or can spell none of the words.

    The state is the model's context and the spelling tree's node in one integer.
    """

    def __init__(self, model: NgramModel, tokens: Tokens, decoding: Decoding, extra: Iterable[str] = ()) -> None:
        if " " not in tokens.symbols:
            raise DecodingError("expected a vocabulary with a space for a word model, got none: use a character model")
        self._space = tokens.space
        self._model = model
        self._weight, self._bonus = decoding.lm_weight, decoding.word_bonus
        more = [word for word in sorted(set(extra)) if word not in model]
        lexicon = model.lexicon
        if more:
            ids = np.concatenate([np.arange(EOS + 1, len(model.words)), np.full(len(more), UNK)])
            lexicon = Lexicon.of(model.words[EOS + 1 :] + more, ids, model.unigrams[ids])
        # The token of each letter; the blank, which nobody asks for, where there is none.
        letters = {symbol: token for token, symbol in enumerate(tokens.symbols) if symbol != " "}
        token_of = np.array([letters.get(letter, BLANK) for letter in lexicon.letters], np.int64)
        self.unspelt: list[str] = []
        if not token_of.all() or lexicon.n_words < model.counts[0] - EOS - 1:
            words = model.words[EOS + 1 :]
            self.unspelt = [word for word in words if len(word) > MAX_LETTERS or not letters.keys() >= set(word)]
        if len(self.unspelt) == model.counts[0] - EOS - 1 and not more:
            raise DecodingError(
                f"expected words spelt with {tokens.alphabet.replace(' ', '')!r}, got {model.words[EOS + 1 : EOS + 6]}: "
                "normalise the model's text as the recogniser's was"
            )
        size = len(lexicon)
        if size * len(tokens) * 4 > _MAX_TABLE:
            raise DecodingError(
                f"expected a vocabulary whose spelling tree fits {_MAX_TABLE >> 20} MB, got {size} nodes of "
                f"{len(tokens)} tokens: train the language model with a smaller --vocab"
            )
        # The node after each token, (S, V).
        self._next = np.full((size, len(tokens)), OUTSIDE, np.int32)
        parents = np.repeat(np.arange(size), np.diff(lexicon.children))
        self._next[parents, token_of[lexicon.letter[OUTSIDE + 1 :]]] = np.arange(OUTSIDE + 1, size)
        self._word = lexicon.word
        # What a word gains beside its probability; a prefix that is no word, or begins none, is an unknown word.
        unknown = -np.inf if decoding.unknown is None else decoding.unknown
        self._extra = np.where(self._word == UNK, unknown, 0.0) + self._bonus
        self._extra[list(map(lexicon.find, more))] = self._bonus
        # What prefixes at a node have been given in advance of their word's end.
        self._ahead = self._weight * lexicon.best.astype(np.float64) + self._bonus
        self._ahead[ROOT] = 0.0
        self._ahead[OUTSIDE] = self._weight * float(model.unigrams[UNK]) + self._bonus + unknown
        self._bits = (size - 1).bit_length()
        self._mask = (1 << self._bits) - 1
        self.start = model.start << self._bits
        # What the model was asked already, by context * words + word: the log-probabilities, and the contexts after it.
        self._known: tuple[dict[int, float], dict[int, int]] = {}, {}

    def scores(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        node = states & self._mask
        following = self._next.reshape(-1).take(node[:, None] * self._next.shape[1] + tokens)
        gains: np.ndarray = self._ahead.take(following) - self._ahead.take(node)[:, None]
        column = int(tokens.searchsorted(self._space))
        if column < len(tokens) and tokens[column] == self._space:
            gains[:, column] = self._word_ends(states)
        return gains

    def advance(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        node = states & self._mask
        following: np.ndarray = states - node + self._next[node, tokens]
        ends = (tokens == self._space).nonzero()[0]
        if len(ends):
            following[ends] = self._contexts(states[ends]) << self._bits
        return following

    def end(self, states: np.ndarray) -> np.ndarray:
        return self._word_ends(states) + self._weight * self._ask(0, self._contexts(states), EOS)

    def _word_ends(self, states: np.ndarray) -> np.ndarray:
        """What each prefix gains as its last word ends. Between words nothing ends."""
        node = states & self._mask
        gains = self._weight * self._ask(0, states >> self._bits, self._word.take(node))
        gains += self._extra.take(node) - self._ahead.take(node)
        gains[node == ROOT] = 0.0
        return gains

    def _contexts(self, states: np.ndarray) -> np.ndarray:
        """The model's context after each prefix, as its last word ends."""
        contexts, node = states >> self._bits, states & self._mask
        return np.where(node == ROOT, contexts, self._ask(1, contexts, self._word.take(node)))

    def _ask(self, which: int, contexts: np.ndarray, words: np.ndarray | int) -> np.ndarray:
        """Of what `NgramModel.score_word` says, 0: log-probabilities, 1: contexts. Most is asked again in the next frame."""
        keys = (contexts * self._model.counts[0] + words).tolist()
        log_probs, following = known = self._known
        try:
            return np.array([known[which][key] for key in keys])
        except KeyError:
            if len(log_probs) >= _MAX_ASKED:
                log_probs, following = known = self._known = {}, {}
            for key in keys:
                if key not in following:
                    log_probs[key], following[key] = self._model.score_word(*divmod(key, self._model.counts[0]))
            return np.array([known[which][key] for key in keys])


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
            raise DecodingError(f"expected a model of {''.join(tokens.symbols[1:])!r}, got one of {model.words[3:8]}")
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
    return SPACE in model.lexicon.letters and not model.lexicon.has_longer and SPACE in model


def spell(line: str) -> str:
    """A line of words as a character model's text: every character a word, SPACE for the space.

    >>> spell("to be")
    't o ▁ b e'
    """
    return " ".join(line.replace(" ", SPACE))
