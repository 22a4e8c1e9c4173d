"""CTC decoding in NumPy: the best path, and prefix beam search with scorers.

The network gives each frame a distribution over V tokens, blank included. A path picks one token a frame; collapsing
its runs of equal tokens and then dropping the blanks gives a text. Many paths collapse to one text, and the text's
probability is the sum over all of them. `greedy` takes the single best path, `beam` sums; `asr.decoding.align`
finds the best path of a text that is already known.

Everywhere log_probs is (T, V) float32, natural log; sums run in float64, so that hours of frames do not lose digits.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from asr.errors import DecodingError
from asr.tokens import BLANK

_NEVER = -np.inf  # log 0
_LOG_PROB_SLACK = 1e-3  # how far above log 1 rounding may carry a log-probability
_NOWHERE = -1
_SPARE_NODES = 8192  # dead prefixes that may pile up before they are cleared away


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """Collapsed token ids (no blanks) and their score, a natural logarithm.

    acoustic: log-probability of the best path for `greedy`; for `beam` the sum over the alignments that the beam kept.
    score:    what the hypotheses are ranked by: acoustic, and what the scorers add to it.
    """

    token_ids: tuple[int, ...]
    score: float
    acoustic: float


class Scorer(Protocol):
    """Adds to a prefix's score what it knows of its text: a language model, hot words, a grammar.

    All that it remembers of a prefix is one integer, its state, so that equal prefixes have equal states, and the search
    can ask for all prefixes at once: n of them, K tokens. The blank is never among the tokens.
    """

    @property
    def start(self) -> int:
        """The state of the empty prefix."""
        ...

    def scores(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """What each prefix gains by each token, natural log; -inf forbids it. (n,), (K,) -> (n, K) float64."""
        ...

    def advance(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The states after each prefix grew by its own token. (n,), (n,) -> (n,)."""
        ...

    def end(self, states: np.ndarray) -> np.ndarray:
        """What each prefix gains if the text ends here. (n,) -> (n,) float64."""
        ...


def greedy(log_probs: np.ndarray) -> Hypothesis:
    """The most probable path, collapsed. Of equally probable tokens the lowest id wins.

    log_probs: (T, V) float32, natural log; T = 0 gives the empty hypothesis.
    raises:    DecodingError if the shape is another, or the values are not log-probabilities.
    source:    Graves et al. 2006, "Connectionist Temporal Classification", section 3.2.
    """
    log_probs = check_log_probs(log_probs)
    path = log_probs.argmax(axis=1)
    starts = np.diff(path, prepend=BLANK) != 0  # a leading blank starts nothing, and would be dropped anyway
    token_ids = path[starts & (path != BLANK)]
    score = float(log_probs.max(axis=1).sum())
    return Hypothesis(tuple(token_ids.tolist()), score, score)


def beam(
    log_probs: np.ndarray,
    beam: int = 128,
    n_best: int = 1,
    scorers: Sequence[Scorer] = (),
    *,
    token_floor: float = _NEVER,
    score_range: float = np.inf,
) -> list[Hypothesis]:
    """The best texts by prefix beam search, best first: at most n_best, and none only where a scorer forbids them all.

    log_probs: (T, V) float32, natural log; T = 0 gives the empty hypothesis.
    others:    see BeamSearch.
    raises:    DecodingError if the shape is another, the values are not log-probabilities, or beam or n_best is below 1.
    """
    if np.ndim(log_probs) != 2:
        raise DecodingError(f"expected log-probabilities of shape (T, V), got {np.shape(log_probs)}")
    search = BeamSearch(log_probs.shape[1], beam, scorers, token_floor=token_floor, score_range=score_range)
    search.advance(log_probs)
    return search.hypotheses(n_best)


class BeamSearch:
    """Prefix beam search that takes its frames in pieces; any chunking gives exactly the result of one call.

    A beam over paths would spend its places on paths of the same text, so this one holds prefixes: texts so far. The
    next frame acts differently on the paths of one prefix, by how they end. With "a" as prefix and "a" as next token,

        a a     + a  ->  "a"     the run grows longer, and collapses to the same prefix
        a blank + a  ->  "aa"    the blank has closed the run, so this is a second "a"

    Hence two scores a prefix, with p the frame's probabilities and `last` the prefix's last token:

        ends_blank  the sum over its paths that end in blank
        ends_token  the sum over its paths that end in `last`
        total     = ends_blank + ends_token

    From one frame to the next a prefix stays as it is, or grows by one token:

        stay    ends_blank' = total * p[blank]             a blank may follow anything
                ends_token' = ends_token * p[last]         the run of `last` grows longer
        extend  ends_token' = total * p[v]                 by any other token v
                ends_token' = ends_blank * p[last]         by `last` again: only once a blank has closed its run

    The extension of a prefix may be a prefix that the beam holds already: "a" + "b" beside "ab". These are paths of one
    text, so their sums are added ("merged"); left apart they would fill two places and each be ranked too low. With
    every prefix kept, the totals are the exact probabilities.

    Scorers add to a prefix's rank, not to its sums: what they say depends on its text alone, so merging stays as it is.

    n_tokens:    V, blank included.  beam: how many prefixes live on from frame to frame.
    token_floor: a token whose log-probability in a frame is not above it grows no prefix there. In most frames of a
                 trained network only the blank is left, and they cost next to nothing.
    score_range: prefixes that rank lower than the best by more than this are dropped.
    Ties are broken the same way everywhere: of equal candidates the earlier in the beam stays, then the lower token.
    raises:   DecodingError if n_tokens is below 2 or beam below 1.
    source:   Graves & Jaitly 2014, "Towards End-to-End Speech Recognition with Recurrent Neural Networks", algorithm 1;
              Hannun et al. 2014, "First-Pass Large Vocabulary Continuous Speech Recognition using Bi-Directional
              Recurrent DNNs", algorithm 1.
    """

    def __init__(
        self,
        n_tokens: int,
        beam: int = 128,
        scorers: Sequence[Scorer] = (),
        *,
        token_floor: float = _NEVER,
        score_range: float = np.inf,
    ) -> None:
        if n_tokens < 2:
            raise DecodingError(f"expected the blank and at least one token, got {n_tokens} tokens")
        if beam < 1:
            raise DecodingError(f"expected a beam of at least 1 prefix, got {beam}")
        self._n_tokens = n_tokens
        self._beam = beam
        self._scorers = tuple(scorers)
        self._token_floor = token_floor
        self._score_range = score_range
        self._trie = _Trie(n_tokens)
        # One entry a prefix, all (up to beam,). No frame yet: only the empty prefix, and nothing that a token could
        # repeat, which is how things stand after a blank.
        self._total = np.zeros(1)
        self._ends_blank = np.zeros(1)
        self._ends_token = np.full(1, _NEVER)
        self._last = np.full(1, BLANK)
        self._node = np.array([_Trie.ROOT])
        self._parent = np.array([_Trie.NONE])
        self._gain = np.zeros(1)  # what the scorers have added so far
        self._states = [np.array([scorer.start]) for scorer in self._scorers]
        self._place = np.full(1, _NOWHERE)  # of each node of the trie in the beam, while it is asked for

    def advance(self, log_probs: np.ndarray) -> None:
        """Take the next frames, (T, V) float32, natural log; T may be 0. raises: DecodingError, with nothing taken."""
        log_probs = check_log_probs(log_probs, self._n_tokens)
        grows = log_probs[:, BLANK + 1 :] > self._token_floor
        for frame, tokens, some in zip(log_probs, grows, np.logical_or.reduce(grows, axis=1).tolist(), strict=True):
            if some:
                self._step(frame, np.flatnonzero(tokens) + 1)
            else:
                self._stay(frame)

    def hypotheses(self, n_best: int = 1, *, ended: bool = True) -> list[Hypothesis]:
        """The best prefixes of all frames so far, best first, equal ones by token ids: at most n_best.

        ended: rank them as texts that end here; otherwise as texts that may go on.
        """
        if n_best < 1:
            raise DecodingError(f"expected n_best of at least 1, got {n_best}")
        rank = self._total + self._gain
        if ended:
            for scorer, states in zip(self._scorers, self._states, strict=True):
                rank = rank + scorer.end(states)
        chosen = _top(rank, n_best)
        prefixes = self._trie.prefixes(self._node[chosen])
        rows = zip(prefixes, rank[chosen].tolist(), self._total[chosen].tolist(), strict=True)
        found = [Hypothesis(prefix, score, acoustic) for prefix, score, acoustic in rows]
        return sorted(found, key=lambda hypothesis: (-hypothesis.score, hypothesis.token_ids))

    def commit(self, token_ids: Sequence[int], following: Container[int]) -> None:
        """Drop all prefixes but those that begin with these tokens and go on with one of `following`; none may be left.

        What was decided stays decided.
        """
        start = tuple(token_ids)
        prefixes = self._trie.prefixes(self._node)
        keep = [
            len(prefix) > len(start) and prefix[: len(start)] == start and prefix[len(start)] in following
            for prefix in prefixes
        ]
        kept = np.flatnonzero(keep)
        for name in ("_total", "_ends_blank", "_ends_token", "_last", "_node", "_parent", "_gain"):
            setattr(self, name, getattr(self, name)[kept])
        self._states = [states[kept] for states in self._states]

    def _stay(self, frame: np.ndarray) -> None:
        """A frame in which no prefix grows."""
        self._ends_blank = self._total + frame[BLANK]
        self._ends_token = self._ends_token + frame[self._last]
        self._total = np.logaddexp(self._ends_blank, self._ends_token)

    def _step(self, frame: np.ndarray, tokens: np.ndarray) -> None:
        """One frame, (V,) float64: products of the derivation above are sums here, sums are logaddexp.

        tokens: (K,) those that prefixes may grow by, ascending.
        """
        last, chances = self._last, frame[tokens]
        stay_blank = self._total + frame[BLANK]
        stay_token = self._ends_token + frame.take(last)

        # Row: prefix. Column 0: it stays. Column k: it grows by tokens[k - 1].
        grown = self._total[:, None] + chances
        column_of = np.full(len(frame), _NOWHERE)
        column_of[tokens] = np.arange(len(tokens))
        column = column_of.take(last)
        again = (column >= 0).nonzero()[0]
        column = column[again]
        grown[again, column] = self._ends_blank[again] + chances[column]

        # Merge. Equal prefixes have equal nodes, so `child` is an extension of `row` if its parent is row's node.
        row = self._rows_of(self._parent[again])
        held = (row >= 0).nonzero()[0]
        child, row, column = again[held], row[held], column[held]
        stay_token[child] = np.logaddexp(stay_token[child], grown[row, column])
        grown[row, column] = _NEVER

        stay = np.logaddexp(stay_blank, stay_token)
        ranks = np.empty((len(last), len(tokens) + 1))
        ranks[:, 0] = stay
        ranks[:, 1:] = grown
        gains = np.zeros(0)
        for index, (scorer, states) in enumerate(zip(self._scorers, self._states, strict=True)):
            more = scorer.scores(states, tokens)
            gains = gains + more if index else more
        if self._scorers:
            ranks[:, 1:] += gains
        ranks += self._gain[:, None]
        row, column = np.divmod(self._best(ranks), len(tokens) + 1)

        new = column.nonzero()[0]
        grew, by = row[new], column[new] - 1
        self._total = stay.take(row)
        self._ends_blank = stay_blank.take(row)
        self._ends_token = stay_token.take(row)
        self._last = last.take(row)
        self._parent = self._parent.take(row)
        self._gain = self._gain.take(row)
        self._states = [states.take(row) for states in self._states]
        if len(new):
            token = tokens[by]
            self._total[new] = self._ends_token[new] = grown[grew, by]
            self._ends_blank[new] = _NEVER
            self._last[new] = token
            self._parent[new] = self._node[grew]
            if self._scorers:
                self._gain[new] += gains[grew, by]
            for scorer, states in zip(self._scorers, self._states, strict=True):
                states[new] = scorer.advance(states[new], token)
        self._node = self._node.take(row)
        if len(new):
            self._node[new] = self._trie.grow(self._node[new], token)
            if self._trie.crowded():
                self._node = np.array(self._trie.prune(self._node.tolist()))
                self._parent = np.array([self._trie.parent(node) for node in self._node.tolist()])

    def _best(self, ranks: np.ndarray) -> np.ndarray:
        """Where in ranks (rows, K + 1), counted through, those stand that the beam keeps."""
        # What ranks below `beam` others, or too far below the best, need not be sorted.
        floor = ranks.max(initial=_NEVER) - self._score_range
        if len(ranks) == self._beam:
            floor = max(floor, ranks[:, 0].min())
        scores = ranks.reshape(-1)
        kept: np.ndarray = (scores >= floor if floor > _NEVER else scores > _NEVER).nonzero()[0]
        return kept[_top(scores[kept], self._beam)] if len(kept) > self._beam else kept

    def _rows_of(self, nodes: np.ndarray) -> np.ndarray:
        """Where in the beam the prefixes of nodes (n,) stand; _NOWHERE for those that are not in it."""
        if len(self._place) <= len(self._trie):
            self._place = np.full(2 * len(self._trie), _NOWHERE)
        place = self._place
        place[self._node] = np.arange(len(self._node))
        rows = place.take(nodes)  # no node's number is the last, which stands for the root's parent
        place[self._node] = _NOWHERE
        return rows


class _Trie:
    """Prefixes as nodes of a tree: parent node and last token each. The root is the empty prefix.

    One node a prefix, always: a prefix that fell out of the beam while a longer one lived on gets its old node back,
    for the beam to see that the two are related.
    """

    ROOT = 0
    NONE = -1  # the root's parent

    def __init__(self, n_tokens: int) -> None:
        self._n_tokens = n_tokens
        self._edges = [self.NONE * n_tokens + BLANK]  # parent * V + token
        self._children: dict[int, int] = {}  # node by edge
        self._limit = _SPARE_NODES

    def __len__(self) -> int:
        return len(self._edges)

    def grow(self, nodes: np.ndarray, tokens: np.ndarray) -> list[int]:
        """The node of each prefix node + token, (n,) both and each pair once, made where there is none yet."""
        edges = (nodes * self._n_tokens + tokens).tolist()
        new = [edge for edge in edges if edge not in self._children]
        self._children.update(zip(new, range(len(self._edges), len(self._edges) + len(new)), strict=True))
        self._edges += new
        return [self._children[edge] for edge in edges]

    def parent(self, node: int) -> int:
        return self._edges[node] // self._n_tokens

    def prefixes(self, nodes: np.ndarray) -> list[tuple[int, ...]]:
        """The token ids from the root to each of nodes (n,)."""
        edges = np.array(self._edges)
        edges[self.ROOT] = (
            self.ROOT * self._n_tokens + BLANK
        )  # whose parent is itself, for those that are there already
        steps = [np.zeros(len(nodes), int)]
        while (nodes != self.ROOT).any():
            nodes, token = np.divmod(edges[nodes], self._n_tokens)
            steps.append(token)
        return [tuple(filter(None, row)) for row in np.stack(steps[::-1], axis=1).tolist()]

    def crowded(self) -> bool:
        return len(self._edges) > self._limit

    def prune(self, nodes: Sequence[int]) -> list[int]:
        """Forget all but these nodes and their ancestors; returns the nodes' new numbers.

        The next time comes when the survivors have doubled: pruning costs a constant time a node, and the memory of a
        stream grows with its text, not with its length.
        """
        alive = {self.ROOT}
        for node in nodes:
            while node not in alive:
                alive.add(node)
                node = self.parent(node)
        order = sorted(alive)  # a parent is older than its children, so its number stays below theirs
        number = {old: new for new, old in enumerate(order)}
        number[self.NONE] = self.NONE
        edges = (divmod(self._edges[old], self._n_tokens) for old in order)
        self._edges = [number[parent] * self._n_tokens + token for parent, token in edges]
        self._children = {edge: node for node, edge in enumerate(self._edges) if node != self.ROOT}
        self._limit = 2 * len(order) + _SPARE_NODES
        return [number[node] for node in nodes]


def _top(scores: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` highest of (n,) scores, fewer if fewer are above log 0; of equal ones the first.

    A partition alone would pick among equal scores as its algorithm happens to run, which differs between processors.
    """
    if len(scores) <= count:
        return np.flatnonzero(scores > _NEVER)
    floor = np.partition(scores, -count)[-count]
    above: np.ndarray = (scores > floor).nonzero()[0]
    if floor == _NEVER:
        return above
    return np.concatenate([above, (scores == floor).nonzero()[0][: count - len(above)]])


def check_log_probs(log_probs: np.ndarray, n_tokens: int | None = None) -> np.ndarray:
    """log_probs as (T, V) float64, or DecodingError."""
    shape = np.shape(log_probs)
    if len(shape) != 2 or shape[1] < 2 or (n_tokens is not None and shape[1] != n_tokens):
        raise DecodingError(f"expected log-probabilities of shape (T, {n_tokens or 'V'}), got {shape}")
    log_probs = np.asarray(log_probs, np.float64)
    peak = log_probs.max(axis=1)  # NaN wins every maximum
    if np.isnan(peak).any():
        raise DecodingError(
            f"expected log-probabilities, got NaN in frame {np.isnan(peak).argmax()}: check the network"
        )
    if (peak > _LOG_PROB_SLACK).any():
        raise DecodingError(f"expected natural-log probabilities (0 or below), got {peak.max():.3g}: apply log-softmax")
    if (peak == _NEVER).any():
        raise DecodingError(
            f"expected a token with a probability above 0 in each frame, frame {peak.argmin()} has none"
        )
    return log_probs
