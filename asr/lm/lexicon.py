"""The tree of a vocabulary's spellings: what a beginning can still become, and how probable the best of it is.

A node is a beginning of words. Node 0, ROOT, is the empty one, node 1, OUTSIDE, stands for all that begins no word; the
others follow in order of their length, then of their letters, so that the children of a node stand together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ROOT, OUTSIDE = 0, 1
MAX_LETTERS = 64  # longer "words" are noise in the text, and would cost memory


@dataclass(frozen=True, slots=True, eq=False)
class Lexicon:
    """A tree of S nodes.

    letters:  the L different letters of the words, by code point.
    children: (S + 1,) unsigned; the children of node s are the nodes from children[s] to children[s + 1].
    letter:   (S,) unsigned, the last letter of each beginning, an index of `letters`; of no meaning for ROOT and OUTSIDE.
    word:     (S,) unsigned, the id of the word that is complete at the node; 0, the unknown word's, where none is.
    best:     (S,) float32, the highest value of the words that begin so; 0 for ROOT and OUTSIDE.
    """

    letters: str
    children: np.ndarray
    letter: np.ndarray
    word: np.ndarray
    best: np.ndarray

    @classmethod
    def of(cls, words: Sequence[str], ids: np.ndarray, values: np.ndarray) -> Lexicon:
        """The tree of W different words, less those of no letter and of more than MAX_LETTERS. ids, values: (W,)."""
        order = [
            index for _, index in sorted((word, i) for i, word in enumerate(words) if 0 < len(word) <= MAX_LETTERS)
        ]
        if not order:
            none = np.zeros(OUTSIDE + 1, np.uint8)
            return cls("", np.full(OUTSIDE + 2, OUTSIDE + 1, np.uint32), none, none, none.astype(np.float32))
        # (L, W) code points, a row a position, 0 after a word's end: NumPy keeps texts of one array at one length.
        points = np.array([words[index] for index in order]).view(np.uint32).reshape(len(order), -1).T.copy()
        inside = points > 0
        # In sorted order, words with a common beginning stand together: a node begins where a spelling differs from the
        # one before it, and lasts while it does not.
        same = np.zeros(points.shape, bool)
        same[:, 1:] = np.logical_and.accumulate(points[:, 1:] == points[:, :-1], axis=0)
        begins = inside & ~same
        numbers = np.cumsum(begins, dtype=np.uint32).reshape(begins.shape) + np.uint32(OUTSIDE)
        size = int(numbers.max()) + 1

        # A node's number at each of its words: that of the last node of the position to begin.
        nodes = np.concatenate([np.zeros((1, len(order)), np.uint32), numbers])
        family = np.bincount(nodes[:-1][begins], minlength=size)
        letters, letter = np.unique(points[begins], return_inverse=True)
        word, best = np.zeros(size, ids.dtype), np.zeros(size, np.float32)
        lengths = inside.sum(axis=0)
        word[nodes[lengths, np.arange(len(order))]] = ids[order]
        # Words that have ended stand among those of a node, and are none of them.
        reached = np.where(inside, values[order], -np.inf)
        best[OUTSIDE + 1 :] = np.maximum.reduceat(reached.ravel(), np.flatnonzero(begins))
        return cls(
            "".join(map(chr, letters.tolist())),
            (OUTSIDE + 1 + np.concatenate([[0], np.cumsum(family)])).astype(np.uint32),
            np.concatenate([[0, 0], letter.ravel()]).astype(smallest(len(letters))),
            word.astype(smallest(int(word.max()) + 1)),
            best,
        )

    def __len__(self) -> int:
        return len(self.word)

    @property
    def n_words(self) -> int:
        """How many words are spelt; those with the id 0 are not counted."""
        return int(np.count_nonzero(self.word))

    @property
    def has_longer(self) -> bool:
        """Whether any word has more than one letter."""
        return int(self.children[OUTSIDE + 1]) < len(self)

    def find(self, beginning: str) -> int:
        """The node of a beginning of words, OUTSIDE if it is none."""
        node = ROOT
        for letter in beginning:
            first, end = self.children[node : node + 2].tolist()
            among = [self.letters[index] for index in self.letter[first:end].tolist()]
            if letter not in among:
                return OUTSIDE
            node = first + among.index(letter)
        return node


def smallest(count: int) -> str:
    """The little-endian unsigned type that holds the numbers below `count`."""
    return "<u1" if count <= 1 << 8 else "<u2" if count <= 1 << 16 else "<u4"
