"""Hot words: words and phrases that the beam search favours, named at run time.

A text gains the weights of the phrases in it. Every occurrence of every phrase as whole words counts, those that overlap
or lie inside longer ones too: "new york times" holds "new york" as well.

A phrase that gained its weight only once complete would gain it too late, when the beam has dropped the phrase's
beginning. So the weight is lent in advance, evenly along the characters, and a loan is called in when the text leaves
the phrase. A state s is all that matters of a prefix, and

    lent(s)   is what the phrases in progress have been lent,
    due(s)    is the weight of the phrases that are complete if a word ends here.

Growing a prefix adds lent(s') - lent(s), and due(s) as well if it grows by a space. The end of the text adds
due(s) - lent(s). Along any text the loans cancel; what remains is the sum above.

A file of hot words has a phrase a line, with a weight if need be; empty lines and lines that begin with # are skipped:

    # names
    Kubernetes^8
    New York
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from asr import files
from asr.decoding import phrases as spelling
from asr.errors import HotWordError as HotWordError
from asr.tokens import Tokens

DEFAULT_WEIGHT = 5.0  # a phrase may be exp(5), 150 times less probable than what sounds like it, and still win
MAX_WEIGHT = 20.0  # more could bring up phrases that nobody said
MAX_LINES = 100_000

_MAX_TABLE = 1 << 30  # bytes
_OUTSIDE, _START = 0, 1


class HotWords:
    """A scorer for the beam search (`asr.decoding.ctc.Scorer`) that adds the weights of the phrases in a text, natural log.

    A phrase is spelt with a space before it, and the text is read as if it began with one: so phrases begin only where
    words do. The state is the longest end of the text that is a phrase's beginning (Aho-Corasick), its nodes those of
    the tree of all phrases. Further spaces after a space change nothing. Memory: 4 V bytes a node; ten thousand phrases
    of a dozen letters are 14 MB at V = 29.

    Of the phrases that begin at one word, the loan is that of the one which is lent most. Phrases of negative weight are
    lent nothing, lest they discourage all words that begin alike; they are charged when complete.

    phrases: phrase -> weight, -MAX_WEIGHT to MAX_WEIGHT; normalised as the recogniser's texts, single spaces.
    raises:  HotWordError if a phrase cannot be spelt, a weight is another, or they need more than 1 GB.
    source:  Aho & Corasick 1975, "Efficient String Matching: An Aid to Bibliographic Search", algorithms 2 to 4.
    """

    start = _START

    def __init__(self, phrases: Mapping[str, float], tokens: Tokens) -> None:
        # Without a space in the alphabet a text is one word. The blank, which scorers are never asked for, stands in.
        self._space = space = tokens.space

        # The tree. Node 0 is the empty end of a text, inside a word that begins no phrase; node 1 is the space alone.
        nodes = {(_OUTSIDE, space): _START}  # (parent, token) -> node
        depths, lent, due = [0, 1], [0.0, 0.0], [0.0, 0.0]
        for phrase, weight in phrases.items():
            if not phrase or phrase != " ".join(phrase.split()):
                raise HotWordError(f"hot words: expected words with single spaces between, got {phrase!r}")
            spelling.check(phrase, tokens, "hot words", HotWordError)
            _check_weight(phrase, weight, "hot words")
            node = _START
            for done, token in enumerate(tokens.encode(phrase), start=1):
                node = nodes.setdefault((node, token), len(depths))
                if node == len(depths):
                    depths.append(done + 1)
                    lent.append(0.0)
                    due.append(0.0)
                lent[node] = max(lent[node], weight * done / len(phrase))
            due[node] = weight
        size = len(depths) * len(tokens) * 4
        if size > _MAX_TABLE:
            raise HotWordError(
                f"expected hot words that need at most {_MAX_TABLE >> 20} MB, got {len(phrases)} that need {size >> 20} MB "
                f"at {len(tokens)} tokens: name fewer"
            )

        # Level by level: `shorter` is the node of the longest end of a node's text that is another node, and lies at a
        # lower level. A node leads where that one leads, except to its own children.
        self._next = np.zeros((len(depths), len(tokens)), np.int32)
        self._next[:, space] = _START
        self._lent, self._due = np.array(lent), np.array(due)
        edges = np.array(list(nodes))
        shorter = np.zeros(len(depths), np.int64)
        order = np.argsort(depths, kind="stable")
        for level in np.split(order, np.flatnonzero(np.diff(np.take(depths, order))) + 1)[2:]:
            parent, token = edges[level - 1].T
            shorter[level] = self._next[shorter[parent], token]
            self._next[parent, token] = level
            self._next[level] = self._next[shorter[level]]
            after_space = level[token == space]
            self._next[after_space, space] = after_space
            self._lent[level] += self._lent[shorter[level]]
            self._due[level] += self._due[shorter[level]]

    def scores(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """What each prefix gains by each token. (n,), (K,) -> (n, K) float64."""
        gains: np.ndarray = self._lent[self._next[states[:, None], tokens]] - self._lent[states, None]
        gains[:, tokens == self._space] += self._due[states, None]
        return gains

    def advance(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The states after each prefix grew by its own token. (n,), (n,) -> (n,) int64."""
        following: np.ndarray = self._next[states, tokens].astype(np.int64)
        return following

    def end(self, states: np.ndarray) -> np.ndarray:
        """What each prefix gains if the text ends here. (n,) -> (n,) float64."""
        gains: np.ndarray = self._due[states] - self._lent[states]
        return gains


def read(path: str | Path, normalise: Callable[[str], str], tokens: Tokens) -> dict[str, float]:
    """The phrases of a file and their weights, for `HotWords`; see above for the file and `parse` for the rest.

    raises: HotWordError naming file and line if it is missing, not UTF-8, or as `parse`.
    """
    lines = files.lines(path, HotWordError, what="file of hot words")
    return parse((line for _, line in lines), normalise, tokens, str(path))


def parse(
    lines: Iterable[str], normalise: Callable[[str], str], tokens: Tokens, where: str = "hot words"
) -> dict[str, float]:
    """The phrases of lines such as "Kubernetes^8" or "New York", normalised, and their weights; none may be left.

    normalise: the normaliser of the recogniser's texts (`asr.text`).  where: what errors call the lines.
    raises:    HotWordError naming the line if a weight is no number from -MAX_WEIGHT to MAX_WEIGHT, a phrase is empty or
               has characters outside the alphabet, one stands twice with two weights, or there are over MAX_LINES lines.
    """
    weights: dict[str, float] = {}
    first: dict[str, int] = {}  # the line that each phrase stands in
    for number, line in enumerate(lines, start=1):
        if number > MAX_LINES:
            raise HotWordError(
                f"{where}:{number}: expected at most {MAX_LINES} lines; a language model can hold more words"
            )
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        here = f"{where}:{number}"
        written, caret, suffix = line.partition("^")
        try:
            weight = float(suffix) if caret else DEFAULT_WEIGHT
        except ValueError:
            raise HotWordError(
                f"{here}: expected a number after '^', got {suffix[:60]!r}; write such as 'Kubernetes^8'"
            ) from None
        phrase = spelling.spell(written, normalise, tokens, here, HotWordError)
        _check_weight(phrase, weight, here)
        if weights.setdefault(phrase, weight) != weight:
            raise HotWordError(
                f"{here}: expected one weight for {phrase!r}, got {weight:g}, and {weights[phrase]:g} in line "
                f"{first[phrase]}; remove one of the lines"
            )
        first.setdefault(phrase, number)
    return weights


def _check_weight(phrase: str, weight: float, where: str) -> None:
    if not -MAX_WEIGHT <= weight <= MAX_WEIGHT:  # nor NaN
        raise HotWordError(
            f"{where}: expected a weight from {-MAX_WEIGHT:g} to {MAX_WEIGHT:g} for {phrase[:60]!r}, got {weight:g}"
        )
