"""Language models in the beam search: word models with look-ahead inside words, character models at every letter.

A word model can judge a word only once it has ended. Until then the search would prefer whatever spelling the network
likes best, and drop the right word before the model is asked. So a prefix inside a word is given what the best word that
it can still become would get without its context (look-ahead), and at the word's end that is exchanged for the word's own
score. The tree of all spellings knows the words that a prefix can become.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from threading import Lock

import numpy as np

from asr.errors import AsrError
from asr.lm.lexicon import MAX_LETTERS, OUTSIDE, ROOT, Lexicon
from asr.lm.model import EOS, UNK, NgramModel
from asr.tokens import BLANK, Tokens

SPACE = "\u2581"  # how a character model's text writes the space between words
MAX_WEIGHT = 1000.0  # far beyond all sense; infinite ones would make NaN of the sums
_FIRST_ROWS = 1024
_MAX_CACHED = 1 << 20  # numbers of each kind
_MAX_ENDS = 1 << 16


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


class WordScorer:
    """A word n-gram model as a scorer of the beam search (asr.decoding.ctc.Scorer). Safe to share between threads.

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
        self._unknown = self._bonus + (-np.inf if decoding.unknown is None else decoding.unknown)
        more = [word for word in sorted(set(extra)) if word not in model]
        lexicon = model.lexicon
        if more:
            ids = np.concatenate([np.arange(EOS + 1, len(model.words)), np.full(len(more), UNK)])
            lexicon = Lexicon.of(model.words[EOS + 1 :] + more, ids, model.unigrams[ids])
        self._lexicon = lexicon
        self._welcome = frozenset(map(lexicon.find, more))
        # The token of each letter; the blank, which nobody asks for, where there is none.
        letters = {symbol: token for token, symbol in enumerate(tokens.symbols) if symbol != " "}
        self._token = np.array([letters.get(letter, BLANK) for letter in lexicon.letters], np.int64)
        self.unspelt: list[str] = []
        if not self._token.all() or lexicon.n_words < model.counts[0] - EOS - 1:
            words = model.words[EOS + 1 :]
            self.unspelt = [word for word in words if len(word) > MAX_LETTERS or not letters.keys() >= set(word)]
        if len(self.unspelt) == model.counts[0] - EOS - 1 and not more:
            raise FusionError(
                f"expected words spelt with {tokens.alphabet.replace(' ', '')!r}, got {model.words[EOS + 1 : EOS + 6]}: "
                "normalise the model's text as the recogniser's was"
            )
        self._outside = self._weight * float(model.unigrams[UNK]) + self._unknown
        self._bits = (len(lexicon) - 1).bit_length()
        self.start = model.start << self._bits
        self._lock = Lock()
        self._rows = self._no_rows(len(tokens))
        self._ends: dict[int, tuple[float, int]] = {}

    def scores(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        rows, table = self._rows_of(states & ((1 << self._bits) - 1))
        gains: np.ndarray = table.gains[rows[:, None], tokens]
        column = int(np.searchsorted(tokens, self._space))
        if column < len(tokens) and tokens[column] == self._space:
            gains[:, column] = [self._word_end(state)[0] for state in states.tolist()]
        return gains

    def advance(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        node = states & ((1 << self._bits) - 1)
        rows, table = self._rows_of(node)
        following: np.ndarray = states - node + table.next[rows, tokens]
        for index in np.flatnonzero(tokens == self._space).tolist():
            following[index] = self._word_end(int(states[index]))[1] << self._bits
        return following

    def end(self, states: np.ndarray) -> np.ndarray:
        ends = [self._word_end(state) for state in states.tolist()]
        return np.array([gain + self._weight * self._model.score_word(context, EOS)[0] for gain, context in ends])

    def _word_end(self, state: int) -> tuple[float, int]:
        """What a prefix gains as its last word ends, and the context after it. Between words nothing ends."""
        found = self._ends.get(state)
        if found is None:
            context, node = state >> self._bits, state & ((1 << self._bits) - 1)
            if node == ROOT:
                found = 0.0, context
            else:
                word = int(self._lexicon.word[node])
                log_prob, following = self._model.score_word(context, word)
                known = word != UNK or node in self._welcome
                gain = self._weight * log_prob + (self._bonus if known else self._unknown)
                ahead = self._ahead(np.array([node]))[0]
                found = float(gain - ahead) if ahead > -np.inf else -np.inf, following
            if len(self._ends) >= _MAX_ENDS:
                self._ends = {}
            self._ends[state] = found
        return found

    def _ahead(self, nodes: np.ndarray) -> np.ndarray:
        """What prefixes at nodes (n,) have been given in advance of their word's end. (n,) float64."""
        ahead: np.ndarray = self._weight * self._lexicon.best[nodes].astype(np.float64) + self._bonus
        ahead[nodes == ROOT] = 0.0
        ahead[nodes == OUTSIDE] = self._outside
        return ahead

    def _no_rows(self, n_tokens: int) -> _Rows:
        return _Rows(
            np.zeros(len(self._lexicon), np.int32),
            1,
            np.zeros((_FIRST_ROWS, n_tokens), np.int32),
            np.zeros((_FIRST_ROWS, n_tokens)),
        )

    def _rows_of(self, nodes: np.ndarray) -> tuple[np.ndarray, _Rows]:
        """The rows (n,) of nodes (n,) in a table, made where they are not there yet."""
        table = self._rows
        rows = table.row[nodes]
        if rows.all():
            return rows, table
        with self._lock:
            table = self._rows
            new = np.unique(nodes[table.row[nodes] == 0])
            if (table.count + len(new)) * table.next.shape[1] > _MAX_CACHED:
                table, new = self._no_rows(table.next.shape[1]), np.unique(nodes)
            self._rows = table = self._with(table, new)
        return table.row[nodes], table

    def _with(self, table: _Rows, nodes: np.ndarray) -> _Rows:
        """The table with rows for nodes that have none. What other threads may have in hands stays right for them."""
        count = table.count + len(nodes)
        row, following, gains = table.row, table.next, table.gains
        if count > len(following):
            row = row.copy()
            following, gains = (np.resize(array, (2 * count, array.shape[1])) for array in (following, gains))
        rows = np.arange(table.count, count)
        first = self._lexicon.children[nodes].astype(np.int64)
        counts = self._lexicon.children[nodes + 1] - first
        parents = np.repeat(rows, counts)
        children = np.arange(len(parents)) + np.repeat(first - np.cumsum(counts) + counts, counts)
        tokens = self._token[self._lexicon.letter[children]]
        following[rows] = OUTSIDE
        following[parents, tokens] = children
        gains[rows] = self._outside
        gains[parents, tokens] = self._ahead(children)
        with np.errstate(invalid="ignore"):  # what comes after a forbidden beginning is never asked
            gains[rows] -= self._ahead(nodes)[:, None]
        row[nodes] = rows
        return _Rows(row, count, following, gains)


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """What follows nodes of the spelling tree, of those that were asked for: they are few of many.

    row:   (S,) int32, each node's row below; 0 for none yet.  count: how many rows there are, with the unused first.
    next:  (rows, V) int32, the node after each token.
    gains: (rows, V) float64, what the token gains inside a word.
    """

    row: np.ndarray
    count: int
    next: np.ndarray
    gains: np.ndarray


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
    return SPACE in model.lexicon.letters and not model.lexicon.has_longer and SPACE in model


def spell(line: str) -> str:
    """A line of words as a character model's text: every character a word, SPACE for the space.

    >>> spell("to be")
    't o ▁ b e'
    """
    return " ".join(line.replace(" ", SPACE))
