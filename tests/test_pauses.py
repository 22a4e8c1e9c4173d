"""Where speech is parted; that files and streams are parted there is in test_recognizer.py and test_stream.py."""

from __future__ import annotations

import numpy as np
import pytest

from asr.pauses import Endpointing, longest_pause, runs

RULES = Endpointing(pause=0.5, long_pause=0.2, long=2.0, idle=1.0, longest=3.0)


def frames(pattern: str) -> np.ndarray:
    """Of 0.1 s: _ is silent."""
    return np.array([sign == "_" for sign in pattern], bool)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("", None),
        ("_________", None),
        ("__________", "idle"),
        ("____a____", None),
        ("____a_____", "pause"),
        ("a________a________a_", None),
        ("a________a______a___", "long"),
        ("a" * 29, None),
        ("a" * 30, "longest"),
    ],
)
def test_the_rules_that_end_an_utterance(pattern: str, why: str | None) -> None:
    assert RULES.ended(frames(pattern), 0.1) == why


def test_runs_of_silence() -> None:
    starts, ends = runs(frames("__a_b__c"))
    assert (starts.tolist(), ends.tolist()) == ([0, 3, 5], [2, 4, 7])
    assert [found.tolist() for found in runs(frames("aaa"))] == [[], []]


@pytest.mark.parametrize(
    ("pattern", "least", "after", "middle"),
    [
        ("aa____aa__aa", 1, 0, 4),
        ("aa____aa__aa", 1, 6, 9),  # begins late enough
        ("aa____aa__aa", 3, 6, 0),
        ("aa__aa__aa", 1, 0, 3),  # of equal ones the first
        ("____aa", 1, 0, 0),
        ("____aa", 1, -1, 2),
        ("aaaa", 1, -1, 0),
    ],
)
def test_the_longest_pause(pattern: str, least: int, after: int, middle: int) -> None:
    assert longest_pause(frames(pattern), least=least, after=after) == middle
