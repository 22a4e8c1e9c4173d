"""How sure the recogniser is of a word, as a probability that can be counted on.

Two signs are at hand. The beam ends with many texts: the share of their probability that has the word in its place. And the
network: the posterior of the word's letters in their frames. Neither is a probability of being right; a logistic
regression on texts that are known (Platt 1999) makes one of them: of the words said to be 80 % sure, 80 % are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rapidfuzz.distance import Levenshtein

from asr.errors import DecodingError

if TYPE_CHECKING:
    from rich.console import Console

_SURE = 1e-4  # log-odds end here: a share of 1 means only that the beam was narrow
_RIDGE = 1e-3  # keeps the regression finite where everything is right


def shares(texts: Sequence[Sequence[str]], scores: Sequence[float]) -> list[float]:
    """For each word of the first text, the probability of the texts that have it in its place, 0 to 1.

    texts:  the words of each hypothesis, the best first.  scores: natural log, up to a constant.
    """
    weights = np.exp(np.asarray(scores) - max(scores))
    weights /= weights.sum()
    found = np.zeros(len(texts[0]))
    for words, weight in zip(texts, weights, strict=True):
        for block in Levenshtein.opcodes(texts[0], words):
            if block.tag == "equal":
                found[block.src_start : block.src_end] += weight
    return [min(float(share), 1.0) for share in found]


@dataclass(frozen=True, slots=True)
class Calibration:
    """confidence = 1 / (1 + exp(-(bias + share * logit(share) + letters * logit(letters))))."""

    bias: float
    share: float
    letters: float

    def __call__(self, share: float, letters: float) -> float:
        """The confidence of a word, 0 to 1, from its share in the beam and the posterior of its letters."""
        logit = self.bias + self.share * float(_logit(share)) + self.letters * float(_logit(letters))
        return float(1 / (1 + np.exp(-np.clip(logit, -30, 30))))


def fit(share: np.ndarray, letters: np.ndarray, right: np.ndarray) -> Calibration:
    """Logistic regression by Newton's method. All (n,): the signs of n words, and whether each is right.

    raises: DecodingError if there are fewer than 100 words, or all are right, or none.
    source: Platt 1999, "Probabilistic Outputs for Support Vector Machines", which is calibration by logistic regression.
    """
    if len(right) < 100 or right.all() or not right.any():
        raise DecodingError(
            f"expected at least 100 recognised words, right and wrong ones, got {len(right)}, {int(right.sum())} right: "
            "calibrate on more recordings"
        )
    inputs = np.stack([np.ones(len(right)), _logit(share), _logit(letters)], axis=1)
    weights = np.zeros(3)
    for _ in range(50):
        predicted = 1 / (1 + np.exp(-np.clip(inputs @ weights, -30, 30)))
        gradient = inputs.T @ (predicted - right) + _RIDGE * weights
        curvature = (inputs * (predicted * (1 - predicted))[:, None]).T @ inputs + _RIDGE * np.eye(3)
        step = np.linalg.solve(curvature, gradient)
        weights -= step
        if np.abs(step).max() < 1e-8:
            break
    return Calibration(*np.round(weights, 6).tolist())


@dataclass(frozen=True, slots=True)
class Reliability:
    """Confidences beside the truth. edges: (K + 1,); counts, confidence, accuracy: (K,) for the words between two edges.

    error: the expected calibration error, the mean over all words of |confidence - accuracy| of their bin.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    error: float

    def to_json(self) -> dict[str, Any]:
        """expected_calibration_error, and of each bin with words: from, to, words, confidence, accuracy."""
        parts = (self.edges, self.edges[1:], self.counts, self.confidence, self.accuracy)
        rows = zip(*(part.round(4).tolist() for part in parts), strict=False)
        names = ("from", "to", "words", "confidence", "accuracy")
        bins = [dict(zip(names, row, strict=True)) for row in rows if row[2]]
        return {"expected_calibration_error": round(self.error, 4), "bins": bins}

    def render(self, console: Console) -> None:
        """The reliability diagram as text: a bar to the accuracy of each bin, a mark where it should end."""
        console.print("\nConfidence of words, and how many of them are right", highlight=False)
        for low, high, count, confidence, accuracy in zip(
            self.edges, self.edges[1:], self.counts, self.confidence, self.accuracy, strict=False
        ):
            if count:
                bar = ["█"] * round(accuracy * 30) + [" "] * (31 - round(accuracy * 30))
                bar[round(confidence * 30)] = "│"
                console.print(
                    f"{low:4.0%} to {high:4.0%}  {''.join(bar)} {accuracy:4.0%} of {count} right, said {confidence:4.0%}",
                    highlight=False,
                )
        console.print(f"expected calibration error {self.error:.3f} (│: what was said)", highlight=False)


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = 10) -> Reliability:
    """Bins of equal width. confidence: (n,) 0 to 1; right: (n,) bool.

    source: Naeini et al. 2015, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", section 2.
    """
    edges = np.linspace(0, 1, bins + 1)
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(bin_of, minlength=bins)
    filled = np.maximum(counts, 1)
    means = np.bincount(bin_of, confidence, bins) / filled
    accuracy = np.bincount(bin_of, right, bins) / filled
    error = float((counts * np.abs(means - accuracy)).sum() / max(len(right), 1))
    return Reliability(edges, counts, means, accuracy, error)


def right_words(reference: str, hypothesis: str) -> np.ndarray:
    """Which words of the hypothesis the reference has in their place, (n,) bool."""
    words = hypothesis.split()
    right = np.zeros(len(words), bool)
    for block in Levenshtein.opcodes(words, reference.split()):
        if block.tag == "equal":
            right[block.src_start : block.src_end] = True
    return right


def _logit(p: np.ndarray | float) -> np.ndarray:
    p = np.clip(p, _SURE, 1 - _SURE)
    return np.asarray(np.log(p / (1 - p)))
