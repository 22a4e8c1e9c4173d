from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.errors import LmError
from asr.lm import kneserney
from asr.lm.model import BOS, NgramModel

Ngram = tuple[str, ...]


def random_text(seed: int, n_lines: int = 60, n_words: int = 8) -> list[str]:
    """Lines of 0 to 8 words, a few of them frequent, which follow one another unevenly."""
    rng = np.random.default_rng(seed)
    follow = rng.dirichlet(np.full(n_words, 0.3), size=n_words)
    lines = []
    for length in rng.integers(0, 9, n_lines):
        word, line = int(rng.integers(n_words)), []
        for _ in range(length):
            word = int(rng.choice(n_words, p=follow[word]))
            line.append("abcdefghijklmnopqrstuvwxyz"[word])
        lines.append(" ".join(line))
    return lines


class Oracle:
    """Interpolated modified Kneser-Ney as the papers print it, over dictionaries of words; slow.

    Pruning by entropy is a set of n-grams that are not listed; whatever it leaves is normalised by summing over all words.
    """

    def __init__(self, lines: Iterable[str], order: int, prune: Sequence[int] = (0,)) -> None:
        self.order = order
        sentences = self.sentences = [("<s>", *line.split(), "</s>") for line in lines if line.split()]
        self.counts = Counter(
            sentence[i : i + n]
            for sentence in sentences
            for n in range(1, order + 1)
            for i in range(len(sentence) - n + 1)
        )
        del self.counts[("<s>",)]
        self.words = sorted({"<unk>", *(word for sentence in sentences for word in sentence[1:])})
        lefts: dict[Ngram, set[str]] = {}
        for ngram in self.counts:
            lefts.setdefault(ngram[1:], set()).add(ngram[0])
        self.adjusted = {
            ngram: count if len(ngram) == order or ngram[0] == "<s>" else len(lefts.get(ngram, ())) or count
            for ngram, count in self.counts.items()
        }
        self.discounts = [self._discounts(n) for n in range(1, order + 1)]
        thresholds = [*prune, *itertools.repeat(prune[-1], order)]
        self.listed = {
            ngram for ngram, count in self.counts.items() if len(ngram) == 1 or count > thresholds[len(ngram) - 1]
        }
        self.p = cache(self._p)
        self.p_pruned = cache(self._p_pruned)
        self.pruned: set[Ngram] = set()

    def _discounts(self, n: int) -> list[float]:
        t = Counter(count for ngram, count in self.adjusted.items() if len(ngram) == n)
        if all(t[k] for k in (1, 2, 3, 4)):
            y = t[1] / (t[1] + 2 * t[2])
            found = [1 - 2 * y * t[2] / t[1], 2 - 3 * y * t[3] / t[2], 3 - 4 * y * t[4] / t[3]]
            if min(found) > 0:
                return found
        return [0.5, 1.0, 1.5]

    def _p(self, word: str, context: Ngram) -> float:
        """p(word | context) before entropy pruning."""
        below = self.p(word, context[1:]) if context else 1 / len(self.words)
        total = given_up = own = 0.0
        for follower in self.words:
            ngram = (*context, follower)
            if count := self.adjusted.get(ngram, 0):
                discount = self.discounts[len(context)][min(count, 3) - 1] if ngram in self.listed else count
                total += count
                given_up += discount
                own += (count - discount) * (follower == word)
        return (own + given_up * below) / total if total else below

    def prune(self, threshold: float) -> None:
        """Stolcke's pruning, each n-gram's loss summed over all words by brute force."""
        for n in range(self.order, 1, -1):
            contexts = {ngram[:-1] for ngram in self.listed - self.pruned}
            self.pruned |= {
                ngram
                for ngram in self.listed
                if len(ngram) == n and ngram not in contexts and self.growth(ngram) < threshold
            }

    def growth(self, ngram: Ngram) -> float:
        """By how much the perplexity grows without this n-gram, relatively: exp(KL divergence) - 1."""
        *context, word = ngram
        before = np.array([self.p(w, tuple(context)) for w in self.words])
        below = np.array([self.p(w, tuple(context[1:])) for w in self.words])
        listed = np.array([(*context, w) in self.listed and w != word for w in self.words])
        after = np.where(listed, before, below * (1 - before[listed].sum()) / (1 - below[listed].sum()))
        seen = self.counts[("</s>",) if context == ["<s>"] else tuple(context)]
        history = seen / sum(len(sentence) for sentence in self.sentences)
        return math.expm1(history * float(np.sum(before * np.log(before / after))))

    def _p_pruned(self, word: str, context: Ngram) -> float:
        """p(word | context) after `prune`."""
        if not context:
            return self.p(word, ())
        listed = [w for w in self.words if (*context, w) in self.listed - self.pruned]
        if word in listed:
            return self.p(word, context)
        left = 1 - sum(self.p(w, context) for w in listed)
        return self.p_pruned(word, context[1:]) * left / (1 - sum(self.p_pruned(w, context[1:]) for w in listed))


def distribution(model: NgramModel, context: Ngram) -> np.ndarray:
    """p(word | context) of all words by id; <s> may only come first in the context."""
    state = np.zeros(1, np.int64)
    for word in context:
        state = np.array([model.start]) if word == "<s>" else model.score(state, np.array([model.id(word)]))[1]
    log_probs, _ = model.score(np.repeat(state, len(model.words)), np.arange(len(model.words)))
    probs: np.ndarray = np.exp(log_probs)
    return probs


def contexts_of(words: Iterable[str], length: int) -> list[Ngram]:
    """All contexts of so many words or fewer, seen or not, from a line's beginning or from within."""
    inner = [context for n in range(length + 1) for context in itertools.product(words, repeat=n)]
    return [*inner, *(("<s>", *context) for context in inner if len(context) < length)]


def some_contexts(model: NgramModel, most: int = 150) -> list[Ngram]:
    contexts = contexts_of([word for word in model.words if word not in ("<s>", "</s>")], model.order)
    return [contexts[i] for i in np.random.default_rng(0).permutation(len(contexts))[:most]]


def assert_same(model: NgramModel, oracle: Oracle, most: int = 60) -> None:
    assert sorted(set(model.words) - {"<s>"}) == oracle.words
    for context in some_contexts(model, most):
        known = context[-(oracle.order - 1) :] if oracle.order > 1 else ()
        expected = [0.0 if word == "<s>" else oracle.p_pruned(word, known) for word in model.words]
        np.testing.assert_allclose(distribution(model, context), expected, rtol=2e-5, atol=1e-12)


def assert_normalised(model: NgramModel) -> None:
    for context in some_contexts(model):
        assert distribution(model, context).sum() == pytest.approx(1, abs=1e-5), context


# Estimation


def test_numbers_computed_by_hand() -> None:
    # Bigrams: <s> a 3, a b 2, a c 1, b </s> 2, c </s> 1. None is seen four times, so that D = 0.5, 1, 1.5.
    # Unigrams: a follows {<s>}, b {a}, c {a}, </s> {b, c}: 1, 1, 1, 2, in all 5; D = 0.5, 0.5, 0.5, 1, in all 2.5.
    # Back-off of the empty context: 2.5 / 5; uniform over a, b, c, </s>, <unk>: 1/5.
    model = kneserney.train(["a b", "a b", "a c"], order=2)
    assert model.words == ["<unk>", "<s>", "</s>", "a", "b", "c"]
    assert distribution(model, ()) == pytest.approx([0.1, 0, 0.3, 0.2, 0.2, 0.2])
    # After a: b 2 - 1, c 1 - 0.5 of 3, and a back-off of (1 + 0.5) / 3.
    assert distribution(model, ("a",)) == pytest.approx([0.05, 0, 0.15, 0.1, 1 / 3 + 0.1, 0.5 / 3 + 0.1])
    # After <s>: a 3 - 1.5 of 3.
    assert distribution(model, ("<s>",)) == pytest.approx([0.05, 0, 0.15, 0.5 + 0.1, 0.1, 0.1])
    # <unk> was never seen: what follows it is known without context.
    assert distribution(model, ("<unk>",)) == pytest.approx(distribution(model, ()))


def test_count_pruning_computed_by_hand() -> None:
    # The text above less a c and c </s>: all of c's count is given up. Back-off of a: (1 + 1) / 3; of c: 1.
    model = kneserney.train(["a b", "a b", "a c"], order=2, prune=(0, 1))
    assert model.counts == (6, 3)
    assert distribution(model, ()) == pytest.approx([0.1, 0, 0.3, 0.2, 0.2, 0.2])
    assert distribution(model, ("a",)) == pytest.approx(np.array([0.2, 0, 0.6, 0.4, 1 + 0.4, 0.4]) / 3)
    assert distribution(model, ("c",)) == pytest.approx(distribution(model, ()))


def test_discounts_computed_by_hand() -> None:
    # Once: a, b, c, </s>; twice: d, e; three times: f; four times: g. Y = 4 / (4 + 2 * 2) = 1/2.
    # D1 = 1 - 2/2 * 2/4, D2 = 2 - 3/2 * 1/2, D3 = 3 - 4/2 * 1/1
    model = kneserney.train(["a b c d d e e f f f g g g g"], order=1)
    assert model.info["discounts"] == [[0.5, 1.25, 1.0]]
    # In all 14 + 1; given up: 4 * 0.5 + 2 * 1.25 + 2 * 1 = 6.5, dealt out among 9.
    assert distribution(model, ())[model.ids(["g", "a", "<unk>"])] == pytest.approx(
        [3 / 15 + 6.5 / 135, 0.5 / 15 + 6.5 / 135, 6.5 / 135]
    )


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("prune", [(0,), (0, 1), (0, 0, 1), (0, 0, 2, 3)], ids=str)
def test_equals_the_formulas_over_dictionaries(order: int, prune: tuple[int, ...]) -> None:
    prune = prune[:order]
    for seed in range(6):
        lines = random_text(seed, n_lines=20 * 4**seed // 16 + 2, n_words=3 + 3 * seed)
        model = kneserney.train(lines, order=order, prune=prune)
        oracle = Oracle(lines, order, prune)
        np.testing.assert_allclose(model.info["discounts"], oracle.discounts)
        assert_same(model, oracle, most=20)
        assert_normalised(model)


def test_the_formulas_are_reached() -> None:
    # Otherwise the test above would compare fallbacks.
    lines = random_text(5, n_lines=1282, n_words=18)
    for discounts in kneserney.train(lines, order=4).info["discounts"][1:]:
        assert tuple(discounts) != kneserney.FALLBACK_DISCOUNTS


@given(
    lines=st.lists(st.lists(st.sampled_from("abc"), max_size=6).map(" ".join), min_size=1, max_size=12),
    order=st.integers(1, 4),
    prune=st.lists(st.integers(0, 3), max_size=3).map(sorted),
)
@settings(max_examples=60)
def test_any_small_text(lines: list[str], order: int, prune: list[int]) -> None:
    lines.append("a b")
    model = kneserney.train(lines, order=order, prune=[0, *prune][:order])
    assert_same(model, Oracle(lines, order, [0, *prune][:order]), most=20)


def test_digits() -> None:
    # Ten words, each seen after each: no word is rare, and the back-off hardly counts. What is left is the frequencies.
    digits = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    lines = [" ".join(np.random.default_rng(seed).choice(digits, 5)) for seed in range(1000)]
    model = kneserney.train(lines, order=3)
    assert tuple(model.info["discounts"][0]) == kneserney.FALLBACK_DISCOUNTS
    assert_normalised(model)
    assert distribution(model, ("<s>",))[model.ids(digits)] == pytest.approx(0.1, abs=0.03)
    assert_normalised(kneserney.train(lines, order=3, entropy=1e-4))


def test_lines_shorter_than_the_order() -> None:
    model = kneserney.train(["a", "b", "a"], order=5)
    assert model.order == 3
    assert_same(model, Oracle(["a", "b", "a"], 3))


def test_the_order_of_the_lines_does_not_matter() -> None:
    lines = random_text(1, n_lines=200)
    shuffled = [lines[i] for i in np.random.default_rng(0).permutation(len(lines))]
    options: dict[str, Any] = {"order": 3, "vocabulary_size": 6, "prune": (0, 0, 1), "entropy": 1e-4}
    expected = kneserney.train(lines, **options)
    found = kneserney.train((line for line in shuffled), **options)  # read once
    assert found.words == expected.words
    assert found.info == expected.info
    for context in some_contexts(expected):
        np.testing.assert_array_equal(distribution(found, context), distribution(expected, context))


def test_more_text_predicts_better_up_to_the_text_s_own_entropy() -> None:
    rng = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(30)])
    follow = rng.dirichlet(np.full(30, 0.2), size=30)

    def lines(count: int) -> list[str]:
        state, found = rng.integers(30, size=count), []
        for _ in range(20):
            found.append(state)
            state = (follow[state].cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)
        return [" ".join(words[row]) for row in np.stack(found, axis=1)]

    held_out = lines(200)
    ids = [[int(word[1:]) for word in line.split()] for line in held_out]
    # The first word is any of 30; a line's end, which the process has at 20 and the model cannot count to, is 1 in 20.
    best = sum(math.log(30) - sum(math.log(follow[a, b]) for a, b in itertools.pairwise(line)) for line in ids)
    best += 200 * (math.log(20) - 19 * math.log(19 / 20))
    best = math.exp(best / (200 * 21))
    sizes = [kneserney.train(lines(n), order=2).perplexity(held_out).including_oovs for n in (10, 100, 1000, 5000)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 1.3 * best
    assert sizes[-1] == pytest.approx(best, rel=0.01)
    assert kneserney.train(lines(1000), order=1).perplexity(held_out).including_oovs > 1.5 * best


# Entropy pruning


@pytest.mark.parametrize("prune", [(0,), (0, 1)], ids=str)
@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("threshold", [1e-5, 1e-4, 1e-3, 1e-2])
def test_entropy_pruning_equals_brute_force(order: int, threshold: float, prune: tuple[int, ...]) -> None:
    lines = random_text(order, n_lines=80, n_words=5)
    oracle = Oracle(lines, order, prune)
    oracle.prune(threshold)
    model = kneserney.train(lines, order=order, prune=prune, entropy=threshold)
    expected = Counter(len(ngram) for ngram in oracle.listed - oracle.pruned)
    assert list(model.counts) == [len(model.words), *(expected[n] for n in range(2, order + 1) if expected[n])]
    assert_same(model, oracle)
    assert_normalised(model)


def test_one_ngram_at_a_time_goes_in_the_order_of_its_loss() -> None:
    lines = random_text(0, n_lines=30, n_words=4)
    oracle = Oracle(lines, 2)
    losses = sorted(oracle.growth(ngram) for ngram in oracle.listed if len(ngram) == 2)
    assert losses[0] > 0
    for kept, (higher, lower) in enumerate(itertools.pairwise(reversed(losses)), start=1):
        if higher > 1.0001 * lower:  # not the same but for rounding
            model = kneserney.train(lines, order=2, entropy=(lower + higher) / 2)
            assert model.counts[1] == kept


def test_no_entropy_threshold_keeps_all_and_a_huge_one_the_words_alone() -> None:
    lines = random_text(3, n_lines=100)
    full = kneserney.train(lines, order=3)
    kept = kneserney.train(lines, order=3, entropy=1e-15)
    assert kept.counts == full.counts
    for context in some_contexts(full):
        np.testing.assert_allclose(distribution(kept, context), distribution(full, context), rtol=1e-5)
    words = kneserney.train(lines, order=3, entropy=1e9)
    assert words.counts == full.counts[:1]
    np.testing.assert_array_equal(distribution(words, ("a", "b")), distribution(full, ()))


@pytest.mark.parametrize("seed", range(5))
def test_contexts_after_which_every_word_is_listed(seed: int) -> None:
    # Nothing is left to back off to: the weight is 0 / 0, and rounding must not make it a number below 0.
    lines = random_text(seed, n_lines=1000, n_words=8)
    for entropy in (1e-300, 1e-8):
        assert_normalised(kneserney.train(lines, order=3, vocabulary_size=7, entropy=entropy))


def test_a_higher_threshold_leaves_a_smaller_and_worse_model() -> None:
    lines = random_text(4, n_lines=2000, n_words=20)
    models = [kneserney.train(lines, order=3, entropy=entropy) for entropy in (0, 1e-5, 1e-4, 1e-3, 1e-2)]
    sizes = [sum(model.counts) for model in models]
    perplexities = [model.perplexity(lines).including_oovs for model in models]
    assert sizes == sorted(set(sizes), reverse=True)
    assert perplexities == sorted(perplexities)


# Words


def test_the_most_frequent_words_are_known_and_of_equals_the_first() -> None:
    lines = ["b a c", "c d", "c e b", "a f"]
    model = kneserney.train(lines, order=2, vocabulary_size=3)
    assert model.words[3:] == ["c", "a", "b"]
    assert kneserney.train(lines, order=2).words[3:] == ["c", "a", "b", "d", "e", "f"]
    assert_same(model, Oracle(["b a c", "c <unk>", "c <unk> b", "a <unk>"], 2))
    assert model.info["unknown_words"] == 3


def test_words_outside_the_alphabet_are_unknown() -> None:
    model = kneserney.train(["the café the", "naïve 50% the cafe"], order=2, alphabet="abcdefghijklmnopqrstuvwxyz'")
    assert model.words[3:] == ["the", "cafe"]
    assert_same(model, Oracle(["the <unk> the", "<unk> <unk> the cafe"], 2))


def test_markers_within_a_line_are_unknown_words() -> None:
    found = kneserney.train(["a <s> b", "a </s> b <unk>"], order=3)
    assert_same(found, Oracle(["a <unk> b", "a <unk> b <unk>"], 3))
    assert found.info["unknown_words"] == 3


def test_lines_without_words_are_skipped_and_counted() -> None:
    told: list[str] = []
    model = kneserney.train(["", "a b\n", "  \n", "a"], order=2, progress=told.append)
    assert_same(model, Oracle(["a b", "a"], 2))
    assert (model.info["lines"], model.info["empty_lines"], model.info["words"]) == (2, 2, 3)
    assert told[0] == "3 words in 2 lines (2 empty ones skipped); 2 words known, 0 times another one"
    assert len(told) == 3


def test_nothing_is_predicted_to_begin() -> None:
    model = kneserney.train(random_text(0), order=3)
    assert all(distribution(model, context)[BOS] < 1e-40 for context in some_contexts(model))


# Errors


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        ([], {}, "expected a text, got no lines"),
        (["", " "], {}, "expected a text, got 2 lines without words"),
        (["a b"], {"alphabet": "xyz"}, "got only such as 'a': check the alphabet"),
        (["<s>"], {}, "got only such as '<s>'"),
        (["a"], {"order": 0}, "order of 1 to 10, got 0"),
        (["a"], {"order": 11}, "order of 1 to 10, got 11"),
        (["a"], {"vocabulary_size": 0}, "at least 1 word, got 0"),
        (["a"], {"entropy": -1e-8}, "at least 0, .* got -1e-08"),
        (["a"], {"entropy": math.nan}, "got nan"),
        (["a"], {"prune": (1, 1)}, r"start with 0 and do not fall, such as 0 0 1, got \[1, 1\]"),
        (["a"], {"prune": (0, 2, 1)}, r"do not fall, .* got \[0, 2, 1\]"),
        (["a"], {"order": 2, "prune": (0, 0, 1)}, "at most 2 pruning thresholds"),
    ],
)
def test_what_cannot_be_trained(lines: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(LmError, match=message):
        kneserney.train(lines, **options)
