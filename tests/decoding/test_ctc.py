from __future__ import annotations

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.decoding import ctc
from asr.decoding.align import align
from asr.decoding.ctc import BeamSearch, Hypothesis
from asr.errors import DecodingError
from asr.tokens import Span

UNLIMITED = 1000  # more than all prefixes of the small cases below


def random_log_probs(n_frames: int, n_tokens: int, seed: int, scale: float = 2.0) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(n_frames, n_tokens)) * scale
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def log_of(rows: list[list[float]]) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array(rows, np.float32))


def collapse(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(path) if token != 0)


def all_paths(log_probs: np.ndarray) -> list[tuple[tuple[int, ...], float]]:
    """Every path and its log-probability: V ** T of them."""
    n_frames, n_tokens = log_probs.shape
    return [
        (path, sum(float(log_probs[t, token]) for t, token in enumerate(path)))
        for path in itertools.product(range(n_tokens), repeat=n_frames)
    ]


def brute_force(log_probs: np.ndarray) -> list[Hypothesis]:
    """Every text with the sum over all its alignments, best first."""
    sums: dict[tuple[int, ...], float] = defaultdict(float)
    for path, score in all_paths(log_probs):
        sums[collapse(path)] += math.exp(score)
    return sorted(
        (Hypothesis(text, math.log(p), math.log(p)) for text, p in sums.items()), key=lambda found: -found.score
    )


def dictionary_beam(log_probs: np.ndarray, beam: int) -> list[Hypothesis]:
    """Prefix beam search as the papers print it, with a dictionary of prefixes, in probabilities."""
    prefixes: dict[tuple[int, ...], tuple[float, float]] = {(): (1.0, 0.0)}
    for frame in np.exp(log_probs.astype(np.float64)):
        grown: dict[tuple[int, ...], list[float]] = defaultdict(lambda: [0.0, 0.0])
        for prefix, (ends_blank, ends_token) in prefixes.items():
            grown[prefix][0] += (ends_blank + ends_token) * frame[0]
            for token in range(1, len(frame)):
                if prefix and token == prefix[-1]:
                    grown[prefix][1] += ends_token * frame[token]
                    grown[(*prefix, token)][1] += ends_blank * frame[token]
                else:
                    grown[(*prefix, token)][1] += (ends_blank + ends_token) * frame[token]
        best = sorted(grown, key=lambda prefix: -sum(grown[prefix]))[:beam]
        prefixes = {prefix: (grown[prefix][0], grown[prefix][1]) for prefix in best}
    return [Hypothesis(prefix, math.log(sum(p)), math.log(sum(p))) for prefix, p in prefixes.items()]


def assert_same(found: list[Hypothesis], expected: list[Hypothesis]) -> None:
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    np.testing.assert_allclose([one.score for one in found], [one.score for one in expected], atol=1e-5)


# Greedy


def test_greedy_collapses_runs_then_drops_blanks() -> None:
    path = [0, 1, 1, 0, 1, 2, 2, 0, 0, 2]
    log_probs = np.full((len(path), 3), math.log(0.1), np.float32)
    log_probs[np.arange(len(path)), path] = math.log(0.8)
    found = ctc.greedy(log_probs)
    assert found.token_ids == (1, 1, 2, 2)
    assert found.score == pytest.approx(10 * math.log(0.8), abs=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_greedy_is_the_best_of_all_paths(seed: int) -> None:
    log_probs = random_log_probs(1 + seed % 5, 3, seed)
    path, score = max(all_paths(log_probs), key=lambda found: found[1])
    found = ctc.greedy(log_probs)
    assert found.token_ids == collapse(path)
    assert found.score == pytest.approx(score, abs=1e-5)


# Beam search


@pytest.mark.parametrize("n_tokens", [2, 3])
@pytest.mark.parametrize("n_frames", range(6))
@pytest.mark.parametrize("seed", range(5))
def test_unlimited_beam_is_the_sum_over_all_alignments(n_frames: int, n_tokens: int, seed: int) -> None:
    log_probs = random_log_probs(n_frames, n_tokens, seed)
    assert_same(ctc.beam(log_probs, UNLIMITED, UNLIMITED), brute_force(log_probs))


@pytest.mark.parametrize("beam", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_pruned_beam_equals_the_dictionary_of_the_papers(beam: int, scale: float) -> None:
    # With two tokens, prefixes often drop out while a longer one lives on, and come back: the hard case of merging.
    for seed in range(10):
        log_probs = random_log_probs(40, 3, seed, scale)
        assert_same(ctc.beam(log_probs, beam, beam), dictionary_beam(log_probs, beam))


def test_sum_beats_the_best_path() -> None:
    # The best path is empty and has 0.42, but "a" sums to 0.18 + 0.12 + 0.28 = 0.58.
    log_probs = log_of([[0.6, 0.4], [0.7, 0.3]])
    assert ctc.greedy(log_probs).token_ids == ()
    best, second = ctc.beam(log_probs, n_best=2)
    assert (best.token_ids, second.token_ids) == ((1,), ())
    assert math.exp(best.score) == pytest.approx(0.58, abs=1e-6)
    assert math.exp(second.score) == pytest.approx(0.42, abs=1e-6)


@given(
    cuts=st.lists(st.integers(0, 60), max_size=8),
    beam=st.integers(1, 12),
    seed=st.integers(0, 1000),
    spare=st.sampled_from([0, 5, 1024]),
)
@settings(max_examples=60)
def test_any_chunking_gives_exactly_the_same(cuts: list[int], beam: int, seed: int, spare: int) -> None:
    log_probs = random_log_probs(60, 3, seed, scale=1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ctc, "_SPARE_NODES", spare)  # the chunks prune the trie often, the whole hardly ever
        search = BeamSearch(3, beam)
        for chunk in np.split(log_probs, sorted(cuts)):
            search.advance(chunk)
            search.hypotheses()  # looking changes nothing
    assert search.hypotheses(beam) == ctc.beam(log_probs, beam, beam)


def test_long_stream_stays_bounded_and_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctc, "_SPARE_NODES", 1024)
    log_probs = random_log_probs(5000, 6, seed=0, scale=1.0)
    log_probs[::50] = log_of([[1.0, 0, 0, 0, 0, 0]])
    log_probs[2500:] = log_of([[0.95, 0.01, 0.01, 0.01, 0.01, 0.01]])  # then silence
    search = BeamSearch(6, beam=8)
    most = 0
    for start in range(0, 5000, 25):
        search.advance(log_probs[start : start + 25])
        most = max(most, len(search._trie))
    (best,) = search.hypotheses()
    assert math.isfinite(best.score)
    assert len(best.token_ids) > 500
    # Unpruned, the trie passes 9000 nodes here.
    assert most <= 2 * (len(best.token_ids) + 1000) + ctc._SPARE_NODES
    found = [one.token_ids for one in search.hypotheses(8)]
    assert len(set(found)) == len(found) == 8


def test_ties_are_broken_by_token() -> None:
    log_probs = np.full((4, 5), math.log(0.2), np.float32)
    found = ctc.beam(log_probs, UNLIMITED, UNLIMITED)
    assert found == sorted(found, key=lambda one: (-one.score, one.token_ids))
    # All five texts of one frame tie for three places: the prefix itself stays, and the lower tokens.
    assert {one.token_ids for one in ctc.beam(log_probs[:1], beam=3, n_best=3)} == {(), (1,), (2,)}


def test_certain_frames_leave_one_hypothesis() -> None:
    # Probability 0 is legal; texts that have it are no hypotheses.
    path = [1, 1, 0, 1, 2]
    assert ctc.beam(log_of(np.eye(3)[path].tolist()), n_best=5) == [Hypothesis((1, 1, 2), 0.0, 0.0)]


def test_no_frames_is_the_empty_hypothesis() -> None:
    empty = np.zeros((0, 4), np.float32)
    assert ctc.greedy(empty) == Hypothesis((), 0.0, 0.0)
    assert ctc.beam(empty, n_best=3) == [Hypothesis((), 0.0, 0.0)]
    assert align(empty, []) == []


# Scorers


class Table:
    """A scorer of random numbers: three states, and what each token adds in each and leads to."""

    start = 1

    def __init__(self, n_tokens: int, seed: int, forbid: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        self.gain: np.ndarray = rng.normal(size=(3, n_tokens))
        self.gain[rng.random(self.gain.shape) < forbid] = -np.inf
        self.following: np.ndarray = rng.integers(0, 3, (3, n_tokens))
        self.ending: np.ndarray = rng.normal(size=3)

    def scores(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        added: np.ndarray = self.gain[states[:, None], tokens]
        return added

    def advance(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        after: np.ndarray = self.following[states, tokens]
        return after

    def end(self, states: np.ndarray) -> np.ndarray:
        added: np.ndarray = self.ending[states]
        return added

    def of(self, text: tuple[int, ...]) -> float:
        state, score = self.start, 0.0
        for token in text:
            score += self.gain[state, token]
            state = self.following[state, token]
        return float(score + self.ending[state])


@pytest.mark.parametrize("forbid", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(10))
def test_scorers_add_to_the_sum_over_all_alignments(seed: int, forbid: float) -> None:
    log_probs = random_log_probs(1 + seed % 5, 3, seed)
    scorers = [Table(3, seed, forbid), Table(3, seed + 1)]
    expected = [
        Hypothesis(text, acoustic + sum(scorer.of(text) for scorer in scorers), acoustic)
        for text, acoustic in ((one.token_ids, one.acoustic) for one in brute_force(log_probs))
    ]
    expected = sorted((one for one in expected if one.score > -np.inf), key=lambda one: -one.score)
    found = ctc.beam(log_probs, UNLIMITED, UNLIMITED, scorers)
    assert_same(found, expected)
    np.testing.assert_allclose([one.acoustic for one in found], [one.acoustic for one in expected], atol=1e-5)


@given(cuts=st.lists(st.integers(0, 60), max_size=8), beam=st.integers(1, 12), seed=st.integers(0, 1000))
@settings(max_examples=40)
def test_any_chunking_gives_exactly_the_same_with_scorers(cuts: list[int], beam: int, seed: int) -> None:
    log_probs = random_log_probs(60, 4, seed, scale=3.0)
    options = {"token_floor": -5.0, "score_range": 8.0}
    scorers = [Table(4, seed, forbid=0.2)]
    search = BeamSearch(4, beam, scorers, **options)
    for chunk in np.split(log_probs, sorted(cuts)):
        search.advance(chunk)
        search.hypotheses(ended=False)
    assert search.hypotheses(beam) == ctc.beam(log_probs, beam, beam, scorers, **options)


def test_a_token_floor_below_all_changes_nothing() -> None:
    log_probs = random_log_probs(50, 4, seed=3, scale=2.0)
    floor = float(log_probs.min()) - 1e-3
    assert ctc.beam(log_probs, 8, 8, token_floor=floor) == ctc.beam(log_probs, 8, 8)


def test_tokens_below_the_floor_grow_no_prefix() -> None:
    # A frame that is surely blank only keeps the sums: exactly what all frames with all tokens would give, less 1e-6.
    log_probs = log_of([[0.2, 0.7, 0.1], [1 - 2e-7, 1e-7, 1e-7], [0.3, 0.1, 0.6], [1 - 2e-7, 1e-7, 1e-7]])
    expected = ctc.beam(log_probs, UNLIMITED, 9)
    found = ctc.beam(log_probs, UNLIMITED, 9, token_floor=-10.0)
    assert_same(found, expected[: len(found)])
    assert {one.token_ids for one in found} == {(), (1,), (2,), (1, 1), (1, 2), (2, 1), (2, 2)}


def test_score_range_drops_what_ranks_far_below_the_best() -> None:
    log_probs = log_of([[0.9, 0.09, 0.01]])
    assert {one.token_ids for one in ctc.beam(log_probs, 8, 8, score_range=math.log(20))} == {(), (1,)}


def test_what_is_committed_stays() -> None:
    log_probs = random_log_probs(40, 4, seed=1, scale=2.0)
    scorers = [Table(4, seed=0)]
    search = BeamSearch(4, 50, scorers)
    search.advance(log_probs[:20])
    kept = [one for one in search.hypotheses(50) if one.token_ids[:3] == search.hypotheses()[0].token_ids[:3]]
    start = kept[0].token_ids[:3]
    search.commit(start[:2], {start[2]})
    assert search.hypotheses(50) == kept
    search.advance(log_probs[20:])
    found = search.hypotheses(50)
    assert found
    assert all(one.token_ids[:3] == start for one in found)
    search.commit([1, 2, 3, 1, 2, 3, 1, 2], {3})
    assert search.hypotheses() == []


def test_a_scorer_may_forbid_every_text() -> None:
    nothing = Table(3, seed=0, forbid=1.0)
    nothing.ending[:] = -np.inf
    assert ctc.beam(random_log_probs(9, 3, seed=0), scorers=[nothing]) == []


# Alignment


def best_path_of(log_probs: np.ndarray, token_ids: tuple[int, ...]) -> tuple[int, ...]:
    return max(
        (found for found in all_paths(log_probs) if collapse(found[0]) == token_ids), key=lambda found: found[1]
    )[0]


def spans_of(path: tuple[int, ...], log_probs: np.ndarray) -> list[Span]:
    """The runs of a path, with their mean posterior probabilities."""
    spans, t = [], 0
    for token, run in itertools.groupby(path):
        end = t + len(list(run))
        if token != 0:
            spans.append(Span(t, end, float(np.mean([math.exp(log_probs[frame, token]) for frame in range(t, end)]))))
        t = end
    return spans


def assert_same_spans(found: list[Span], expected: list[Span]) -> None:
    assert [(span.start, span.end) for span in found] == [(span.start, span.end) for span in expected]
    np.testing.assert_allclose([span.score for span in found], [span.score for span in expected], atol=1e-5)


@pytest.mark.parametrize("token_ids", [(1,), (1, 2), (1, 1), (2, 1, 2), (1, 1, 2), (2, 2, 2), (1, 2, 1, 2, 1)])
def test_alignment_is_the_best_of_all_paths(token_ids: tuple[int, ...]) -> None:
    for seed in range(5):
        log_probs = random_log_probs(5, 3, seed)
        assert_same_spans(align(log_probs, token_ids), spans_of(best_path_of(log_probs, token_ids), log_probs))


@pytest.mark.parametrize("seed", range(20))
def test_alignment_of_the_greedy_text_is_the_greedy_path(seed: int) -> None:
    log_probs = random_log_probs(6, 3, seed)
    token_ids = ctc.greedy(log_probs).token_ids
    expected = spans_of(best_path_of(log_probs, token_ids), log_probs) if token_ids else []
    assert_same_spans(align(log_probs, token_ids), expected)


@pytest.mark.parametrize(
    ("n_frames", "n_labels", "seed"), [(1, 1, 0), (30, 12, 1), (200, 40, 2), (300, 1, 3), (90, 60, 4)]
)
def test_alignment_equals_torchaudio(n_frames: int, n_labels: int, seed: int) -> None:
    import torch
    from torchaudio import functional

    log_probs = random_log_probs(n_frames, 6, seed)
    token_ids = np.random.default_rng(seed).integers(1, 6, n_labels)  # with repeats
    path, _ = functional.forced_align(torch.from_numpy(log_probs)[None], torch.from_numpy(token_ids)[None], blank=0)
    expected = spans_of(tuple(path[0].tolist()), log_probs)
    assert len(expected) == n_labels
    assert_same_spans(align(log_probs, token_ids.tolist()), expected)


def test_alignment_of_a_sharp_network() -> None:
    path = (0, 0, 1, 1, 0, 1, 2, 2, 2, 0)
    log_probs = log_of(np.where(np.eye(3)[list(path)] == 1, 0.9, 0.05).tolist())
    found = align(log_probs, [1, 1, 2])
    assert_same_spans(found, [Span(2, 4, 0.9), Span(5, 6, 0.9), Span(6, 9, 0.9)])


# Errors


def test_too_few_frames_for_the_text() -> None:
    log_probs = random_log_probs(3, 3, seed=0)
    assert len(align(log_probs, [1, 1])) == 2
    with pytest.raises(DecodingError, match="at least 4 frames for 3 tokens, got 3"):
        align(log_probs, [1, 1, 2])


def test_impossible_text() -> None:
    with pytest.raises(DecodingError, match="probability above 0"):
        align(log_of([[0.5, 0.5, 0.0]] * 4), [1, 2])


@pytest.mark.parametrize("token_ids", [[0], [1, 3], [-1]])
def test_align_rejects_what_is_no_token(token_ids: list[int]) -> None:
    with pytest.raises(DecodingError, match="token ids from 1 to 2"):
        align(random_log_probs(9, 3, seed=0), token_ids)


@pytest.mark.parametrize("decode", [ctc.greedy, ctc.beam, lambda log_probs: align(log_probs, [1])])
@pytest.mark.parametrize(
    ("log_probs", "message"),
    [
        (np.zeros(4, np.float32), r"shape \(T, V\), got \(4,\)"),
        (np.zeros((1, 4, 3), np.float32), r"shape \(T, V\), got \(1, 4, 3\)"),
        (log_of([[0.5, 0.5], [0.5, math.nan]]), "NaN in frame 1"),
        (log_of([[0.5, 0.5], [0.0, 0.0]]), "frame 1 has none"),
        (np.array([[0.9, 0.1]], np.float32), "apply log-softmax"),
    ],
)
def test_what_is_no_log_probability_is_refused(decode: object, log_probs: np.ndarray, message: str) -> None:
    assert callable(decode)
    with pytest.raises(DecodingError, match=message):
        decode(log_probs)


def test_search_refuses_a_wrong_chunk_and_goes_on() -> None:
    log_probs = random_log_probs(20, 4, seed=0)
    search = BeamSearch(4, beam=5)
    search.advance(log_probs[:10])
    with pytest.raises(DecodingError, match=r"shape \(T, 4\), got \(10, 3\)"):
        search.advance(log_probs[10:, :3])
    broken = log_probs[10:].copy()
    broken[7, 2] = np.nan
    with pytest.raises(DecodingError, match="NaN in frame 7"):
        search.advance(broken)
    search.advance(log_probs[10:])
    assert search.hypotheses(5) == ctc.beam(log_probs, beam=5, n_best=5)


def test_wrong_sizes() -> None:
    with pytest.raises(DecodingError, match="beam of at least 1"):
        BeamSearch(4, beam=0)
    with pytest.raises(DecodingError, match="at least one token"):
        BeamSearch(1)
    with pytest.raises(DecodingError, match="n_best of at least 1"):
        ctc.beam(random_log_probs(3, 3, seed=0), n_best=0)


def test_a_search_that_is_left_without_prefixes_goes_on_without() -> None:
    search = ctc.BeamSearch(3, 8)
    frames = np.log(np.full((2, 3), 1 / 3, np.float32))
    search.advance(frames)
    search.commit((2, 2, 2), {1})
    search.advance(frames)
    assert search.hypotheses() == []
