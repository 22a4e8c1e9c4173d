"""Confidences: shares of the beam, the regression, and how far they hold."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from rich.console import Console

from asr.decoding import confidence
from asr.decoding.confidence import Calibration
from asr.errors import DecodingError


def test_a_words_share_is_that_of_the_texts_which_have_it_in_its_place() -> None:
    texts = [["the", "cat", "sat"], ["the", "hat", "sat"], ["a", "cat", "sat", "down"], ["the", "cat"]]
    scores = [math.log(p) - 7 for p in (0.4, 0.3, 0.2, 0.1)]  # whatever the constant
    assert confidence.shares(texts, scores) == pytest.approx([0.8, 0.7, 0.9])


def test_a_single_text_is_sure_and_no_words_have_no_share() -> None:
    assert confidence.shares([["yes"]], [-1000.0]) == [1.0]
    assert confidence.shares([[], ["yes"]], [-1.0, -2.0]) == []


def test_hopeless_texts_count_for_nothing() -> None:
    assert confidence.shares([["a"], ["b"]], [-5.0, -np.inf]) == [1.0]


def test_the_regression_finds_the_truth_behind_the_words() -> None:
    rng = np.random.default_rng(0)
    share, letters = rng.uniform(0.01, 0.99, (2, 20_000))
    truth = Calibration(-0.5, 0.8, 0.4)
    right = rng.random(20_000) < [truth(*pair) for pair in zip(share, letters, strict=True)]
    found = confidence.fit(share, letters, right)
    assert (found.bias, found.share, found.letters) == pytest.approx((-0.5, 0.8, 0.4), abs=0.06)
    sure = np.array([found(*pair) for pair in zip(share, letters, strict=True)])
    assert confidence.reliability(sure, right).error < 0.02


def test_signs_without_a_meaning_give_the_share_of_right_words() -> None:
    right = np.arange(1000) % 10 < 7
    found = confidence.fit(np.ones(1000), np.ones(1000), right)
    assert found(1.0, 1.0) == pytest.approx(0.7, abs=1e-3)


@pytest.mark.parametrize("right", [np.ones(200, bool), np.zeros(200, bool), np.arange(50) % 2 == 0, np.zeros(0, bool)])
def test_too_little_to_learn_from(right: np.ndarray) -> None:
    with pytest.raises(DecodingError, match="expected at least 100 recognised words, right and wrong ones"):
        confidence.fit(np.full(len(right), 0.5), np.full(len(right), 0.5), right)


def test_calibration_error_by_hand() -> None:
    # Two bins: 0.9, 0.9, 0.7 of which two are right, off by |2.5 / 3 - 2 / 3|; and 0.3, wrong, off by 0.3.
    found = confidence.reliability(np.array([0.9, 0.9, 0.7, 0.3]), np.array([True, True, False, False]), bins=2)
    assert found.error == pytest.approx(3 / 4 * (2.5 / 3 - 2 / 3) + 1 / 4 * 0.3)
    assert found.counts.tolist() == [1, 3]
    assert [row["words"] for row in found.to_json()["bins"]] == [1, 3]
    console = Console(width=100, record=True, file=io.StringIO())
    found.render(console)
    assert "67% of 3 right" in console.export_text()


def test_a_confidence_of_one_has_a_bin_and_no_words_have_no_error() -> None:
    assert confidence.reliability(np.array([1.0]), np.array([True])).error == 0
    assert confidence.reliability(np.zeros(0), np.zeros(0, bool)).error == 0


def test_right_words() -> None:
    assert confidence.right_words("a b c d", "a x c y d").tolist() == [True, False, True, False, True]
    assert confidence.right_words("", "a").tolist() == [False]
    assert confidence.right_words("a", "").tolist() == []


def test_calibrated_values_stay_between_zero_and_one() -> None:
    wild = Calibration(5.0, 100.0, -3.0)
    assert 0 <= wild(0.0, 1.0) < wild(1.0, 0.0) <= 1
