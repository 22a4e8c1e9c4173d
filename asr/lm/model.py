"""Back-off n-gram language models: the tree of n-grams, and what it is asked.

An n-gram model of order N gives a word w after a context, the N - 1 words before it, the probability

    log p(w | context) = log p of the n-gram `context w`                        if the model lists it
                       = back-off(context) + log p(w | context's suffix)        otherwise

where the suffix is the context less its first word, and a context that is not listed has a back-off of 0.

The n-grams are the nodes of a tree. Node 0 is the root, the empty context; nodes 1 to V are the unigrams, node 1 + word
id; then come all bigrams, all trigrams and so on, each level sorted by (parent node, last word). A node's key is

    parent * V + word

and by that order the keys ascend over all nodes, so that one binary search in one array finds an n-gram of any length.
They take eight bytes a node, and are made once they are asked for: one word in one context is found without them, among
the last words of the context's children.

A state is the node of the longest suffix of the words so far that the model lists as a context. All listed prefixes of
an n-gram being listed too, nothing that lies before that suffix can matter to any later word.

Word ids are 0 to V - 1, the first three fixed: UNK, BOS, EOS. Log-probabilities are natural logarithms; the log10 of
ARPA files stays at that border.

source: Katz 1987, "Estimation of Probabilities from Sparse Data for the Language Model Component of a Speech Recognizer".
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import math
import mmap
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from asr.errors import LmError
from asr.lm.lexicon import Lexicon

UNK, BOS, EOS = 0, 1, 2
SPECIAL_WORDS = ("<unk>", "<s>", "</s>")
MAX_ORDER = 10
MAX_WORDS = 10_000_000
MAX_NGRAMS = 2**31 - 2  # a node is an int32 where many are stored

LN10 = math.log(10)
_NEVER = -99 * LN10  # ARPA's log 0: the probability that <s> follows anything
NO_UNK = -100 * LN10  # what KenLM gives <unk> where a file has none
SLACK = 0.001 * LN10  # how far above log 1 rounding may carry a log-probability
BATCH = 8192  # sentences, or lines of a file, that are worked on together
LOWEST, HIGHEST = np.iinfo(np.int64).min, np.iinfo(np.int64).max  # keys that no n-gram has

_PACKED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}


@dataclass(frozen=True, slots=True)
class Level:
    """The n-grams of one length k, in any order.

    ngrams:    (n, k) word ids.
    log_probs: (n,) natural log of p(last word | the words before it).
    backoffs:  (n,) natural log of the n-gram's back-off weight as a context; None for 0, as at the highest level.
    """

    ngrams: np.ndarray
    log_probs: np.ndarray
    backoffs: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How a model predicts a text: every word and the end of every sentence, each sentence after <s>.

    words:        number of words, the ends of sentences not counted.
    oovs:         those outside the vocabulary.
    log_prob:     natural log of the text's probability, in which such a word has that of <unk>.
    oov_log_prob: the part of log_prob that is due to these words.
    """

    words: int
    sentences: int
    oovs: int
    log_prob: float
    oov_log_prob: float

    @property
    def including_oovs(self) -> float:
        """exp(-log_prob / (words + sentences)), KenLM's "perplexity including OOVs"; 1 for no text."""
        return _perplexity(self.log_prob, self.words + self.sentences)

    @property
    def excluding_oovs(self) -> float:
        """The same over all but the OOVs, which remain in the contexts of the others: KenLM's "excluding OOVs"."""
        return _perplexity(self.log_prob - self.oov_log_prob, self.words + self.sentences - self.oovs)


def _perplexity(log_prob: float, count: int) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(-log_prob / max(count, 1)))


class NgramModel:
    """A back-off n-gram model; made by `load` or `from_levels`.

    order:  N, the longest n-gram's words.
    counts: the number of n-grams of each length, 1 to N; counts[0] is V.
    start:  the state after <s>.
    info:   what the binary file is to say about itself, such as the text it was estimated from; anything JSON can hold.
    """

    def __init__(
        self,
        vocabulary: bytes,
        counts: tuple[int, ...],
        log_probs: np.ndarray,
        backoffs: np.ndarray,
        last_words: np.ndarray,
        children: np.ndarray,
        longer_suffixes: np.ndarray,
        info: dict[str, Any],
        lexicon: Lexicon | None = None,
    ) -> None:
        """Not to be called from outside; the arrays are taken as they are.

        vocabulary:      the V words by id, UTF-8, one a line.
        log_probs:       (1 + nodes,) float32, the root's, which is of no meaning, first.
        backoffs:        (contexts,) float32; the contexts are the root and all nodes but those of the highest level.
        last_words:      (nodes - V,) unsigned, the last word of each n-gram longer than 1.
        children:        (contexts + 1,) uint32; the children of context c are the nodes from children[c] to children[c + 1].
        longer_suffixes: for each context of 3 words or more, int32, the node of the longest suffix that is listed.
        lexicon:         the tree of the words' spellings, where it is made already.
        """
        self.vocabulary = vocabulary
        self.order = len(counts)
        self.counts = counts
        self.start = 1 + BOS if self.order > 1 else 0
        self.info = info
        self.log_probs = log_probs
        self.backoffs = backoffs
        self.last_words = last_words
        self.children = children
        self.longer_suffixes = longer_suffixes
        if lexicon is not None:
            self.lexicon = lexicon
        self._n_contexts = len(backoffs)
        self._longer = 1 + sum(counts[:2])
        # One number of an array at a time is read twice as fast so.
        self._log_probs, self._backoffs = log_probs.data, backoffs.data
        self._last_words, self._children = last_words.data, children.data

    @cached_property
    def words(self) -> list[str]:
        """The V words by id."""
        return bytes(self.vocabulary).decode().split("\n")

    @cached_property
    def lexicon(self) -> Lexicon:
        """The tree of the words' spellings, with their probabilities without context as values."""
        ids = np.arange(EOS + 1, self.counts[0])
        return Lexicon.of(self.words[EOS + 1 :], ids, self.unigrams[ids])

    @cached_property
    def keys(self) -> np.ndarray:
        """(1 + nodes + 1,) int64, the keys; no n-gram has the first, the root's, nor the last, which ends a search."""
        n_words = self.counts[0]
        contexts = np.arange(1, len(self.backoffs)) * n_words
        inner = np.repeat(contexts, np.diff(self.children[1:])) + self.last_words
        return np.concatenate([[LOWEST], np.arange(n_words), inner, [HIGHEST]])

    @cached_property
    def suffixes(self) -> np.ndarray:
        """(contexts,) int32, the node of the longest suffix that is listed; the root's is the root."""
        # A word's suffix is the root, and that of two words the last one; those at the end are of no context at low orders.
        pairs = 1 + self.last_words[: sum(self.counts[1:2])].astype(np.int32)
        suffixes = np.concatenate([np.zeros(1 + self.counts[0], np.int32), pairs, self.longer_suffixes])
        return suffixes[: len(self.backoffs)]

    @cached_property
    def _ids(self) -> dict[str, int]:
        ids = {word: number for number, word in enumerate(self.words)}
        if len(ids) != len(self.words):
            raise LmError("expected each word once in the vocabulary of a language model; build or copy it again")
        return ids

    @classmethod
    def from_levels(
        cls, words: Sequence[str], levels: Sequence[Level], info: dict[str, Any] | None = None
    ) -> NgramModel:
        """The model of words by id and n-grams by length; levels[0] holds each of the V words exactly once.

        Whatever probability <s> is given as a unigram, it gets ARPA's for "never", as it only ever stands first.
        raises: LmError if `words` does not start with <unk> <s> </s>, holds one twice or one with white space; if an
                n-gram stands twice, or the n-gram of all its words but the last is missing; if a number is no
                log-probability, or the longest n-grams have back-offs.
        """

        def name(k: int, index: int) -> str:
            ids = np.asarray(levels[k - 1].ngrams)[index]
            return f"{k}-gram {' '.join(words[i] if 0 <= i < len(words) else f'#{i}' for i in ids)!r}"

        return build(words, levels, name, info or {})

    def __repr__(self) -> str:
        return f"<NgramModel: {', '.join(f'{count} {k}-grams' for k, count in enumerate(self.counts, 1))}>"

    def __contains__(self, word: object) -> bool:
        return word in self._ids

    def id(self, word: str) -> int:
        """The word's id, UNK for one outside the vocabulary."""
        return self._ids.get(word, UNK)

    def ids(self, words: Iterable[str]) -> np.ndarray:
        """The ids (n,) int64 of n words, UNK for those outside the vocabulary."""
        return np.array([self._ids.get(word, UNK) for word in words], np.int64)

    def ngrams(self, k: int) -> np.ndarray:
        """The word ids (n, k) of all n-grams of k words, sorted. k: 1 to `order`."""
        start = 1 + sum(self.counts[: k - 1])
        return self.word_ids(np.arange(start, start + self.counts[k - 1]), k)

    @property
    def unigrams(self) -> np.ndarray:
        """(V,) float32, natural log of each word's probability without context."""
        return self.log_probs[1 : 1 + self.counts[0]]

    def score(self, states: np.ndarray, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The probability of a word in each of n states, and the states after it.

        states:  (n,) integers, each `start`, 0 (no word known) or returned from here.  words: (n,) ids, 0 to V - 1.
        returns: (n,) float64, natural log p(word | state), and (n,) int64. Neither argument is checked.
        """
        # Row k: the context k back-offs away; the last row is the root, where every word is found.
        contexts = np.zeros((self.order, len(words)), np.int64)
        contexts[0] = states
        for row in range(1, self.order - 1):
            contexts[row] = self.suffixes[contexts[row - 1]]
        wanted = contexts * self.counts[0] + words
        nodes = self.keys.searchsorted(wanted)
        found = self.keys[nodes] == wanted
        # Longer n-grams have higher nodes, so the highest is that of the longest n-gram found.
        nodes *= found
        paid = self.backoffs[contexts]
        paid[np.logical_or.accumulate(found)] = 0.0
        log_probs = paid.sum(axis=0, dtype=np.float64) + self.log_probs[nodes.max(axis=0)]
        nodes *= nodes < len(self.backoffs)
        return log_probs, nodes.max(axis=0)

    def score_word(self, state: int, word: int) -> tuple[float, int]:
        """As `score`, of one word in one state: many times faster than that for few, and nothing has to be made for it."""
        last_words, children = self._last_words, self._children
        pairs, longer = 1 + self.counts[0], self._longer  # the first nodes of two words, and of three
        log_prob, paid, context = None, 0.0, state
        while context:
            begin, end = children[context] - pairs, children[context + 1] - pairs
            at = bisect_left(last_words, word, begin, end) if begin < end else end
            if at < end and last_words[at] == word:
                node = pairs + at
                if log_prob is None:
                    log_prob = paid + self._log_probs[node]
                if node < self._n_contexts:
                    return log_prob, node
            elif log_prob is None:
                paid += self._backoffs[context]
            if context < pairs:
                break
            context = (
                1 + last_words[context - pairs] if context < longer else int(self.longer_suffixes[context - longer])
            )
        if log_prob is None:
            log_prob = paid + self._log_probs[1 + word]
        return log_prob, 1 + word if self.order > 1 else 0

    def log_prob(self, words: Sequence[str], bos: bool = True, eos: bool = True) -> float:
        """Natural log-probability of a sentence's words, after <s> if bos, and of </s> after them if eos."""
        ids = self.ids([*words, SPECIAL_WORDS[EOS]] if eos else words)
        return float(self._score_all(ids, np.array([len(ids)]), self.start if bos else 0).sum())

    def log_probs_of(self, lines: Sequence[str]) -> list[np.ndarray]:
        """Natural log p of each word of each sentence after those before it, and of its end: (words + 1,) float64 each."""
        sentences = [[*line.split(), SPECIAL_WORDS[EOS]] for line in lines]
        lengths = np.array([len(sentence) for sentence in sentences])
        log_probs = self._score_all(self.ids(word for words in sentences for word in words), lengths, self.start)
        return np.split(log_probs, np.cumsum(lengths)[:-1])

    def perplexity(self, lines: Iterable[str]) -> Perplexity:
        """The perplexity of a text, one sentence a line, words between white space; an empty line is a sentence too."""
        return measure(lines, self.ids, self.log_probs_of, BATCH)

    def _score_all(self, words: np.ndarray, lengths: np.ndarray, start: int) -> np.ndarray:
        """The log-probability (n,) of each of n words, which are B sentences end to end; lengths: (B,) words.

        All sentences advance by a word at a time; the longest come first, so that those still going on are a slice.
        """
        first = np.cumsum(lengths) - lengths
        longest_first = np.argsort(-lengths, kind="stable")
        first, lengths = first[longest_first], lengths[longest_first]
        log_probs = np.empty(len(words))
        states = np.full(len(lengths), start)
        for position in range(lengths[0]):
            going_on = np.searchsorted(-lengths, -position)
            at = first[:going_on] + position
            log_probs[at], states = self.score(states[:going_on], words[at])
        return log_probs

    @classmethod
    def load(cls, path: str | Path) -> NgramModel:
        """The model in a binary file (see `save`), or an ARPA file, plain or compressed (gzip, bzip2, xz).

        Which it is, its first bytes tell.
        Of a binary file the log-probabilities and back-offs stay where they are, mapped read-only and shared by all
        processes that load it, so that it must not be changed in place; `save` never does.
        raises: LmError, with the line for an ARPA file, if it is missing, cut short or not as described.
        """
        from asr.lm import arpa, binary  # which make models

        path = Path(path)
        try:
            with path.open("rb") as file:
                head = file.read(len(binary.MAGIC))
                file.seek(0)
                if head == binary.MAGIC:
                    return binary.read(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                for magic, unpack in _PACKED.items():
                    if head.startswith(magic):
                        with unpack(file) as unpacked:
                            return arpa.read(path, io.BufferedReader(unpacked))
                return arpa.read(path, file)
        except FileNotFoundError:
            raise LmError(f"{path}: no such language model; check the path") from None
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise LmError(f"{path}: cannot be read: {error.strerror}") from None
            raise LmError(f"{path}: expected a whole compressed file, got one damaged or cut short ({error})") from None

    def save(self, path: str | Path) -> None:
        """Write the binary file (see `asr.lm.binary`), whole or not at all.

        raises: LmError if `info` is nothing that JSON can hold; OutputError if it cannot be written.
        """
        from asr.lm import binary

        binary.write(self, Path(path))

    def write_arpa(self, path: str | Path) -> None:
        """Write an ARPA file, whole or not at all, its n-grams sorted by word ids; compressed if its name ends in .gz.

        raises: OutputError if it cannot be written.
        """
        from asr.lm import arpa

        arpa.write(self, Path(path))

    def word_ids(self, nodes: np.ndarray, k: int) -> np.ndarray:
        """The word ids (n, k) of k-grams, given their nodes (n,): a key is the last word and the parent to go on from."""
        ids = np.empty((len(nodes), k), np.int64)
        for column in reversed(range(k)):
            nodes, ids[:, column] = np.divmod(self.keys[nodes], self.counts[0])
        return ids


def measure(
    lines: Iterable[str],
    ids_of: Callable[[Iterable[str]], np.ndarray],
    log_probs_of: Callable[[Sequence[str]], list[np.ndarray]],
    batch_size: int,
) -> Perplexity:
    """The perplexity of a text by any model's word ids and log-probabilities, so many lines at a time."""
    words = sentences = oovs = 0
    log_prob = oov_log_prob = 0.0
    lines = iter(lines)
    while batch := list(islice(lines, batch_size)):
        ids = ids_of(word for line in batch for word in (*line.split(), SPECIAL_WORDS[EOS]))
        log_probs = np.concatenate(log_probs_of(batch))
        words += len(ids) - len(batch)
        sentences += len(batch)
        oovs += int(np.count_nonzero(ids == UNK))
        log_prob += float(log_probs.sum())
        oov_log_prob += float(log_probs[ids == UNK].sum())
    return Perplexity(words, sentences, oovs, log_prob, oov_log_prob)


def build(
    words: Sequence[str], levels: Sequence[Level], name: Callable[[int, int], str], info: dict[str, Any]
) -> NgramModel:
    """`NgramModel.from_levels`; name(k, index) is how an error calls the k-gram at an index of its level."""
    n_words = len(words)
    if tuple(words[:3]) != SPECIAL_WORDS:
        raise LmError(f"expected a vocabulary that starts with {' '.join(SPECIAL_WORDS)}, got {list(words[:3])}")
    if n_words > MAX_WORDS or not 1 <= len(levels) <= MAX_ORDER:
        raise LmError(
            f"expected at most {MAX_WORDS} words and an order of 1 to {MAX_ORDER}, got {n_words} and {len(levels)}"
        )
    vocabulary = encode_vocabulary(words)
    if sum(len(level.ngrams) for level in levels) > MAX_NGRAMS:
        raise LmError(f"expected at most {MAX_NGRAMS} n-grams, got more: prune the model")

    keys = np.array([LOWEST, HIGHEST])
    all_log_probs, all_backoffs = [np.zeros(1, np.float32)], [np.zeros(1, np.float32)]  # the root's
    all_suffixes = [np.zeros(1, np.int32)]
    for k, level in enumerate(levels, start=1):
        ngrams = np.asarray(level.ngrams, np.int64)
        with np.errstate(over="ignore"):  # refused below
            log_probs = np.asarray(level.log_probs, np.float32)
            backoffs = np.asarray(np.zeros(len(ngrams)) if level.backoffs is None else level.backoffs, np.float32)
        if ngrams.ndim != 2 or ngrams.shape[1] != k or not len(ngrams) == len(log_probs) == len(backoffs):
            raise LmError(
                f"expected {k}-grams (n, {k}) with n log-probabilities and back-offs, "
                f"got the shapes {ngrams.shape}, {log_probs.shape}, {backoffs.shape}"
            )

        def refuse(wrong: np.ndarray | np.bool_, message: str, k: int = k) -> None:
            """Name the first n-gram that is wrong, of (n,) bool."""
            if wrong.any():
                raise LmError(f"{name(k, int(wrong.argmax()))}: {message}")

        refuse(((ngrams < 0) | (ngrams >= n_words)).any(axis=1), f"expected word ids from 0 to {n_words - 1}")
        refuse(~(np.isfinite(log_probs) & (log_probs <= SLACK)), "expected a finite log-probability of at most 0")
        refuse(~np.isfinite(backoffs), "expected a finite back-off")
        if k == len(levels):
            refuse(backoffs != 0, f"expected no back-off for a {k}-gram, the longest of the model")
        parents = _find(keys, n_words, ngrams[:, :-1])
        refuse(parents < 0, f"expected its first {k - 1} words to be a {k - 1}-gram too; add it, or prune this one")
        level_keys = parents * n_words + ngrams[:, -1]
        order = np.argsort(level_keys, kind="stable")
        level_keys = level_keys[order]
        twice = np.zeros(len(order), bool)
        twice[order[1:]] = level_keys[1:] == level_keys[:-1]
        refuse(twice, f"expected each {k}-gram once, this one stands there twice")
        if k == 1 and len(ngrams) != n_words:
            lacking = words[np.setdiff1d(np.arange(n_words), level_keys)[0]]
            raise LmError(f"expected each word as a 1-gram, {lacking!r} is none")

        all_log_probs.append(log_probs[order])
        if k < len(levels):
            all_backoffs.append(backoffs[order])
            all_suffixes.append(_longest_suffixes(keys, n_words, ngrams[order]).astype(np.int32))
        keys = np.concatenate([keys[:-1], level_keys, keys[-1:]])
    log_probs, backoffs = np.concatenate(all_log_probs), np.concatenate(all_backoffs)
    log_probs[1 + BOS] = _NEVER
    counts = tuple(len(level.ngrams) for level in levels)
    parents, last_words = np.divmod(keys[1 + n_words : -1], n_words)
    families = np.bincount(parents, minlength=len(backoffs))
    families[0] = n_words
    children = np.concatenate([[1], 1 + np.cumsum(families)]).astype(np.uint32)
    last_words = last_words.astype(np.uint16 if n_words <= 1 << 16 else np.uint32)
    longer_suffixes = np.concatenate(all_suffixes)[1 + sum(counts[:2]) :]
    return NgramModel(vocabulary, counts, log_probs, backoffs, last_words, children, longer_suffixes, info)


def _find(keys: np.ndarray, n_words: int, ngrams: np.ndarray) -> np.ndarray:
    """The nodes (n,) of n-grams (n, k), -1 for those not listed; the root for k = 0."""
    nodes = np.zeros(len(ngrams), np.int64)
    for words in ngrams.T:
        wanted = nodes * n_words + words  # below 0, where no key is, once a node is -1
        nodes = keys.searchsorted(wanted)
        nodes[keys[nodes] != wanted] = -1
    return nodes


def _longest_suffixes(keys: np.ndarray, n_words: int, ngrams: np.ndarray) -> np.ndarray:
    """The node (n,) of the longest proper suffix that is listed of each n-gram (n, k).

    It has k - 1 words in a model as it was estimated; SRILM's pruning may leave an n-gram and take its suffix.
    """
    nodes = np.zeros(len(ngrams), np.int64)
    for length in range(1, ngrams.shape[1]):
        longer = _find(keys, n_words, ngrams[:, -length:])
        nodes = np.where(longer > 0, longer, nodes)
    return nodes


def encode_vocabulary(words: Sequence[str]) -> bytes:
    """The vocabulary as lines of UTF-8. raises: LmError for a word that a line cannot hold, or that stands there twice."""
    try:
        data = "\n".join(words).encode()
    except UnicodeEncodeError as error:
        raise LmError(
            f"expected words of Unicode text, got half a surrogate pair: {error.object[error.start]!r}"
        ) from None
    lines = data.split(b"\n")
    if len(lines) != len(words) or lines != data.split():
        wrong = next(word for word in words if [word.encode()] != word.encode().split())
        raise LmError(f"expected words without white space, got {wrong!r}")
    if len(set(lines)) != len(lines):
        raise LmError("expected each word once in the vocabulary; remove the repeated ones")
    return data
