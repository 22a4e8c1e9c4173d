"""Scorers of characters, asked about subwords.

Language models, hot words and grammars know a text by its characters. Here a subword is walked character by character, its
gains are summed, and the state after its last character is the state after the subword. So a text gets the same whichever
subwords it is made of, and no scorer needs to know of subwords.
"""

from __future__ import annotations

import numpy as np

from asr.decoding.ctc import Scorer
from asr.tokens import BLANK, Tokens

_EMPTY = -1  # the state of a text without a character but spaces; the scorers' own states are not negative
_ROOT = 0


class SubwordScorer:
    """A scorer over a vocabulary of subwords (`asr.decoding.ctc.Scorer`), by one over its characters.

    The space that a text's first subword begins with is none of the text, and is not shown to the scorer.

    scorer: over tokens.characters.
    """

    start = _EMPTY

    def __init__(self, scorer: Scorer, tokens: Tokens) -> None:
        self._scorer = scorer
        characters = tokens.characters
        self._space = characters.space
        # The tree of the subwords' spellings. Column l of a subword's path is the node of its first l + 1 characters, the
        # root where it has fewer.
        nodes: dict[tuple[int, int], int] = {}  # (parent, character) -> node
        self._path = np.full((len(tokens), max(map(len, tokens.symbols[BLANK + 1 :]))), _ROOT)
        for token, subword in enumerate(tokens.symbols[BLANK + 1 :], start=BLANK + 1):
            node = _ROOT
            for depth, character in enumerate(characters.encode(subword)):
                node = nodes.setdefault((node, character), len(nodes) + 1)
                self._path[token, depth] = node
        self._parent, self._character = np.array([(_ROOT, BLANK), *nodes]).T

    def scores(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """What each prefix gains by each subword. (n,), (K,) -> (n, K) float64."""
        empty = states == _EMPTY
        gains = np.empty((len(states), len(tokens)))
        # Level by level of the tree, for its P nodes there: what came together on the way, and the states, (P, n) each.
        level, total = np.array([_ROOT]), np.zeros((1, len(states)))
        reached = np.where(empty, self._scorer.start, states)[None]
        with np.errstate(invalid="ignore"):  # what comes after a forbidden character
            for path in self._path[tokens].T:
                alive = np.flatnonzero(path)
                if not len(alive):
                    break
                above, (level, place) = level, np.unique(path[alive], return_inverse=True)
                parent = np.searchsorted(above, self._parent[level])
                characters, column = np.unique(self._character[level], return_inverse=True)
                each = self._scorer.scores(reached.ravel(), characters).reshape(*reached.shape, -1)
                total = total[parent]
                total = np.where(total == -np.inf, -np.inf, total + each[parent, :, column])
                spelt = np.repeat(characters[column], len(states))
                reached = self._scorer.advance(reached[parent].ravel(), spelt).reshape(total.shape)
                if above[0] == _ROOT:
                    leading = np.ix_(characters[column] == self._space, empty)
                    total[leading], reached[leading] = 0.0, self._scorer.start
                gains[:, alive] = total[place].T  # of the longer subwords, for now
        return gains

    def advance(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The states after each prefix grew by its own subword. (n,), (n,) -> (n,) int64."""
        empty = states == _EMPTY
        reached = np.where(empty, self._scorer.start, states)
        with np.errstate(invalid="ignore"):
            for characters in self._character[self._path[tokens]].T:
                empty &= np.isin(characters, (BLANK, self._space))
                rows = np.flatnonzero((characters != BLANK) & ~empty)
                reached[rows] = self._scorer.advance(reached[rows], characters[rows])
        return np.where(empty, _EMPTY, reached)

    def end(self, states: np.ndarray) -> np.ndarray:
        """What each prefix gains if the text ends here. (n,) -> (n,) float64."""
        return self._scorer.end(np.where(states == _EMPTY, self._scorer.start, states))
