"""Estimates an n-gram language model from text: interpolated modified Kneser-Ney, count and entropy pruning.

Write c(hw) for how often the word w follows the words h, its context, and h' for h less its first word. Each n-gram seen
gives up a discount D of its count, and what a context's n-grams give up is dealt out by the distribution one order below:

    p(w | h) = (a(hw) - D(a(hw))) / a(h.)  +  backoff(h) p(w | h')         a(h.) = sum of a(hw) over w
    backoff(h) = (sum of D(a(hw)) over w) / a(h.)

down to the empty context, below which every word but <s>, hence <unk> too, has the same probability. The count that is
used, a, is c at the highest order. Below it a word's share should say how many contexts it completes, not how often:
"francisco" is frequent, but after a word never seen before it is improbable. So there

    a(hw) = in how many words the n-gram can be continued to the left, |{v : c(vhw) > 0}|
          = c(hw) where it begins with <s>, to the left of which there is nothing

The discount is D1, D2 or D3 for a = 1, 2, or more. With t_k the number of n-grams of this order whose a is k,

    Y = t_1 / (t_1 + 2 t_2)        D_k = k - (k + 1) Y t_(k+1) / t_k

In a text so small or so regular that a t_k is 0 or a D_k not above 0, the order gets D = 0.5, 1, 1.5 instead.

An n-gram that is pruned loses all its count, not D of it; the discounts stay those of the whole text. As p is written, it
is a back-off model already: a listed n-gram stores p whole, any other has backoff(h) p(w | h').

The n-grams of each order are rows of a table, sorted by context, then word. Context and h'w are themselves rows of the
table one order below; the table of order 0 has one row, the empty n-gram. An n-gram of any order is thus known by two
integers, and sums over a context's n-grams are bincounts.

sources: Chen & Goodman 1998, "An Empirical Study of Smoothing Techniques for Language Modeling", section 3;
         Heafield et al. 2013, "Scalable Modified Kneser-Ney Language Model Estimation", section 3;
         Stolcke 1998, "Entropy-based Pruning of Backoff Language Models".
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise

import numpy as np

from asr.errors import LmError, number_of
from asr.lm.model import BOS, EOS, MAX_ORDER, SPECIAL_WORDS, UNK, Level, NgramModel

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
_NOTHING = 1e-12  # probability mass that may be all rounding error


def train(
    sentences: Iterable[str],
    *,
    order: int = 3,
    vocabulary_size: int | None = None,
    alphabet: Iterable[str] | None = None,
    prune: Sequence[int] = (),
    entropy: float = 0.0,
    progress: Callable[[str], None] | None = None,
) -> NgramModel:
    """The model of a text; its `info` says what it was made from, and the discounts of each order.

    sentences:       lines of normalised words, read once; each is taken as <s> words </s>. Lines without words are
                     skipped and counted. 14 million words take 1.1 GB of memory; it grows with the text.
    order:           the words of the longest n-grams.
    vocabulary_size: so many of the most frequent words are known, of equally frequent ones the first by code points;
                     None for all. Any other word is counted as <unk>, and so are <unk>, <s> and </s> within a line.
    alphabet:        characters; a word with any other is not known, however frequent.
    prune:           for each order, n-grams seen so many times or fewer are dropped: 0 first, as words are not, and no
                     number below the one before; the last one counts for all higher orders too.
    entropy:         n-grams are dropped if without them the model's perplexity grows by less than this, relatively;
                     1e-8 is mild, 1e-7 strong.
    progress:        is told each step, one line.
    raises:          LmError if there are no words, or an option is not as described.
    """
    tell = progress or (lambda _: None)
    thresholds = _thresholds(order, vocabulary_size, prune, entropy)
    text = read(sentences, vocabulary_size, alphabet)
    tell(
        f"{number_of(text.n_tokens, 'word')} in {number_of(text.n_lines, 'line')} ({text.n_empty} empty ones skipped); "
        f"{len(text.words) - len(SPECIAL_WORDS)} words known, {text.n_unknown} times another one"
    )

    tables = _count(text.ids, len(text.words), order)
    tables[0].prob[:] = 1 / (len(text.words) - 1)
    discounts = []
    for n in range(1, order + 1):
        below, table = tables[n - 1], tables[n]
        adjusted = table.counts
        if n < order:
            # No suffix begins with <s>; everything else continues something, and has at least 1 here.
            continued = np.bincount(tables[n + 1].suffix, minlength=len(table))
            adjusted = np.where(continued > 0, continued, adjusted)
        if n > 1:
            table.kept = table.counts > thresholds[n - 1]
        discounts.append(_discounts(adjusted))
        _estimate(table, below, adjusted, discounts[-1])
        shown = " ".join(f"{discount:.3f}" for discount in discounts[-1])
        tell(f"{len(table)} {n}-grams, {table.kept.sum()} of them kept; discounts {shown}")
    if entropy > 0:
        _prune(tables, entropy)
        _normalise(tables)
        tell(f"after entropy pruning {', '.join(str(table.kept.sum()) for table in tables[1:])} n-grams by length")

    info = {
        "estimator": "interpolated modified Kneser-Ney",
        "words": text.n_tokens,
        "unknown_words": text.n_unknown,
        "lines": text.n_lines,
        "empty_lines": text.n_empty,
        "discounts": discounts,
        "prune": thresholds,
        "entropy": entropy,
    }
    return NgramModel.from_levels(text.words, _levels(tables), info)


@dataclass(slots=True)
class Text:
    """ids: (n,) int32, the lines one after another with <s> and </s>; words: the vocabulary by id."""

    ids: np.ndarray
    words: list[str]
    n_tokens: int
    n_unknown: int
    n_lines: int
    n_empty: int


@dataclass(slots=True)
class _Table:
    """The K n-grams of one order, all (K,).

    context: row of the first n - 1 words in the table below, int32; ascending.
    word:    the last word, int32; ascending within a context.
    suffix:  row of the last n - 1 words in the table below, int32.
    counts:  how often the text has the n-gram.
    kept:    whether the model lists it.
    prob:    p(word | context), whether listed or not.
    backoff: weight of the distribution below where the n-gram is a context; 1 where nothing ever follows.
    """

    context: np.ndarray
    word: np.ndarray
    suffix: np.ndarray
    counts: np.ndarray
    kept: np.ndarray = field(init=False)
    prob: np.ndarray = field(init=False)
    backoff: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.kept = np.ones(len(self), bool)
        self.prob = np.zeros(len(self))
        self.backoff = np.ones(len(self))

    def __len__(self) -> int:
        return len(self.word)


def _thresholds(order: int, vocabulary_size: int | None, prune: Sequence[int], entropy: float) -> list[int]:
    """The count-pruning threshold of each order, or LmError."""
    if not 1 <= order <= MAX_ORDER:
        raise LmError(f"expected an order of 1 to {MAX_ORDER}, got {order}")
    if vocabulary_size is not None and vocabulary_size < 1:
        raise LmError(f"expected a vocabulary of at least 1 word, got {vocabulary_size}; leave it out to take all")
    if not 0 <= entropy < np.inf:
        raise LmError(f"expected an entropy threshold of at least 0, such as 1e-8 (0 prunes nothing), got {entropy}")
    thresholds = [int(threshold) for threshold in prune] or [0]
    if len(thresholds) > order:
        raise LmError(f"expected at most {order} pruning thresholds, one for each order, got {thresholds}")
    # With falling thresholds an n-gram could stay whose context goes; and a vocabulary is cut by its size.
    if thresholds[0] != 0 or any(higher < lower for lower, higher in pairwise(thresholds)):
        raise LmError(f"expected pruning thresholds that start with 0 and do not fall, such as 0 0 1, got {thresholds}")
    return thresholds + thresholds[-1:] * (order - len(thresholds))


def read(sentences: Iterable[str], vocabulary_size: int | None, alphabet: Iterable[str] | None) -> Text:
    """The text as word ids. Which words are known is only seen at its end, so until then each new word gets a number."""
    numbers: defaultdict[str, int] = defaultdict(count(len(SPECIAL_WORDS)).__next__)
    stream = array("i")
    n_empty = 0
    for sentence in sentences:
        words = sentence.split()
        if words:
            stream.append(BOS)
            stream.extend(map(numbers.__getitem__, words))
            stream.append(EOS)
        else:
            n_empty += 1
    if not stream:
        raise LmError(f"expected a text, got {f'{n_empty} lines without words' if n_empty else 'no lines'}")

    numbered = np.frombuffer(stream, np.intc)
    counts = np.bincount(numbered, minlength=len(SPECIAL_WORDS) + len(numbers))
    known = set(numbers).difference(SPECIAL_WORDS)
    if alphabet is not None:
        letters = frozenset(alphabet)
        known = {word for word in known if letters.issuperset(word)}
    if not known:
        raise LmError(f"expected words to learn, got only such as {next(iter(numbers))!r}: check the alphabet")
    frequent = sorted(known, key=lambda word: (-counts[numbers[word]], word))[:vocabulary_size]
    vocabulary = [*SPECIAL_WORDS, *frequent]

    ids = np.full(len(counts), UNK, np.int32)
    ids[[BOS, EOS, *(numbers[word] for word in frequent)]] = range(1, len(vocabulary))
    n_lines = int(counts[EOS])
    n_tokens = len(numbered) - 2 * n_lines
    return Text(ids[numbered], vocabulary, n_tokens, int(counts[ids == UNK].sum()), n_lines, n_empty)


def _count(ids: np.ndarray, n_words: int, order: int) -> list[_Table]:
    """The tables of orders 0 to `order`, without probabilities.

    Each order is counted from the one below: once the (n - 1)-gram ending at each position is known by its row, the n-gram
    ending there is one number, (row at the position before, word here), and sorting these numbers makes the table.
    """
    top = np.zeros(n_words, np.int32)  # the one row of order 0, for each word
    counts = np.bincount(ids, minlength=n_words)
    counts[BOS] = 0  # it is given, never predicted
    empty = _Table(context=top[:1], word=top[:1], suffix=top[:1], counts=np.array([len(ids)]))
    tables = [empty, _Table(context=top, word=np.arange(n_words, dtype=np.int32), suffix=top, counts=counts)]
    rows = ids  # of the n-gram that ends at each position, -1 where it would begin before its line
    for _ in range(2, order + 1):
        ends = np.flatnonzero((ids[1:] != BOS) & (rows[:-1] >= 0)) + 1
        keys = rows[ends - 1].astype(np.int64) * n_words + ids[ends]
        by_key = np.argsort(keys)
        keys, ends = keys[by_key], ends[by_key]
        new = np.diff(keys, prepend=-1) != 0
        first = np.flatnonzero(new)
        context, word = (part.astype(np.int32) for part in np.divmod(keys[first], n_words))
        tables.append(_Table(context, word, rows[ends[first]], np.diff(first, append=len(keys))))
        rows = np.full(len(ids), -1, np.int32)
        rows[ends] = np.cumsum(new) - 1
    return tables


def _discounts(adjusted: np.ndarray) -> list[float]:
    """D1, D2, D3 of one order from its adjusted counts."""
    t = np.bincount(np.minimum(adjusted, 5), minlength=6).astype(float)
    if t[1:5].min() > 0:
        y = t[1] / (t[1] + 2 * t[2])
        discounts = [float(k - (k + 1) * y * t[k + 1] / t[k]) for k in (1, 2, 3)]
        if min(discounts) > 0:
            return discounts
    return list(FALLBACK_DISCOUNTS)


def _estimate(table: _Table, below: _Table, adjusted: np.ndarray, discounts: Sequence[float]) -> None:
    """Fill in the probabilities of a table and the back-off weights below it, by the formulas at the top."""
    discount = np.array([0.0, *discounts])[np.minimum(adjusted, 3)]
    own = np.where(table.kept, adjusted - discount, 0.0)
    total = np.bincount(table.context, adjusted, minlength=len(below))
    given_up = np.bincount(table.context, adjusted - own, minlength=len(below))
    np.divide(given_up, total, out=below.backoff, where=total > 0)
    table.prob = own / total[table.context] + below.backoff[table.context] * below.prob[table.suffix]


def _prune(tables: list[_Table], threshold: float) -> None:
    """Unlist the n-grams whose loss would raise the perplexity relatively by less than the threshold, highest order first.

    Without hw, w gets backoff'(h) p(w | h'), and all words not listed after h a new back-off weight. With `left` for their
    probability before, and `left_below` for what the order below gives them, sums to one ask for

        backoff(h)  =  left / left_below
        backoff'(h) = (left + p(w | h)) / (left_below + p(w | h'))

    The entropy of the model p relative to the one without hw, whose exponential is the ratio of the perplexities, is

        p(h) { p(w | h) [log p(w | h) - log backoff'(h) p(w | h')]  -  left [log backoff'(h) - log backoff(h)] }

    Each n-gram is judged as if it alone were removed, and one that is the context of a listed one stays. Where words are so
    few that nearly all are listed after each context, `left` is next to nothing, and so is the loss of any one n-gram, but
    not that of all: on digits, 1e-6 does no harm and 1e-4 does.
    """
    history = [table.counts / tables[0].counts[0] for table in tables]  # p(h) for each row of each table as h
    history[1][BOS] = history[1][EOS]  # as many lines begin as end
    needed = np.zeros(len(tables[-1]), bool)
    for n in range(len(tables) - 1, 1, -1):
        below, table = tables[n - 1], tables[n]
        prob, prob_below = table.prob, below.prob[table.suffix]
        left_below = _left(table, below, prob_below)
        left = below.backoff * left_below
        left, left_below, backoff = left[table.context], left_below[table.context], below.backoff[table.context]
        log_backoff = np.log((left + prob) / (left_below + prob_below))
        loss = prob * (np.log(prob / prob_below) - log_backoff) - left * (log_backoff - np.log(backoff))
        table.kept &= needed | (np.expm1(history[n - 1][table.context] * loss) >= threshold)
        needed = np.zeros(len(below), bool)
        needed[table.context[table.kept]] = True


def _normalise(tables: list[_Table]) -> None:
    """The back-off weights, and the probabilities of what is not listed, after a change of what is; lowest order first."""
    for below, table in pairwise(tables[1:]):
        prob_below = below.prob[table.suffix]
        left, left_below = _left(table, below, table.prob), _left(table, below, prob_below)
        # Where every word is listed, the weight is 0 / 0, and of no account: it stays as it was.
        some = (left > _NOTHING) & (left_below > _NOTHING)
        np.divide(left, left_below, out=below.backoff, where=some)
        table.prob = np.where(table.kept, table.prob, below.backoff[table.context] * prob_below)


def _left(table: _Table, below: _Table, prob: np.ndarray) -> np.ndarray:
    """For each context, one less the sum over its listed words of prob: (rows of the table,) -> (rows of the one below,)."""
    return 1 - np.bincount(table.context, np.where(table.kept, prob, 0.0), minlength=len(below))


def _levels(tables: list[_Table]) -> list[Level]:
    """What is listed, with words for rows; a highest order of which nothing is left is no order."""
    while not tables[-1].kept.any():
        tables = tables[:-1]
    levels = []
    ngrams = np.zeros((1, 0), np.int32)  # of every row of a table, listed or not
    for table in tables[1:]:
        ngrams = np.column_stack([ngrams[table.context], table.word])
        kept = table.kept
        backoffs = None if table is tables[-1] else np.log(table.backoff[kept])
        levels.append(Level(ngrams[kept], np.log(table.prob[kept]), backoffs))
    return levels
