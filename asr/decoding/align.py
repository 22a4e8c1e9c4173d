"""The times of known tokens: the frames in which the most probable CTC path of a text emits each of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from asr.decoding.ctc import check_log_probs
from asr.errors import DecodingError
from asr.tokens import BLANK, Span, min_frames

_NEVER = -np.inf  # log 0


def align(log_probs: np.ndarray, token_ids: Sequence[int]) -> list[Span]:
    """The frames in which each token of a known text is emitted, on the most probable path of that text.

    The path runs through 2U + 1 states, blank u_1 blank u_2 ... u_U blank. In a frame it stays, goes on to the next
    state, or skips the blank between two tokens, unless these are equal: without it their runs would collapse into one.

    log_probs: (T, V) float32, natural log.
    token_ids: (U,) ids from 1 to V - 1; none gives [].
    returns:   U spans, in order and disjoint, each of at least one frame; the frames between them are blank.
    raises:    DecodingError if log_probs is not as described, an id is not a token, T is too short for the text, or no path
               of the text has a probability above 0.
    source:    Graves et al. 2006, "Connectionist Temporal Classification", section 4.1, with max in place of sum.
    """
    log_probs = check_log_probs(log_probs)
    n_frames, n_tokens = log_probs.shape
    wrong = [token_id for token_id in token_ids if not BLANK < token_id < n_tokens]
    if wrong:
        raise DecodingError(f"expected token ids from 1 to {n_tokens - 1}, got {wrong[:5]}")
    if len(token_ids) == 0:
        return []
    fewest = min_frames(token_ids)
    if n_frames < fewest:
        raise DecodingError(
            f"expected at least {fewest} frames for {len(token_ids)} tokens, got {n_frames}: "
            "the text is too long for the audio; check that they belong together"
        )

    # Where the most probable path of all spells this text, it is the one: greedy decoding, and most beam searches.
    path = log_probs.argmax(axis=1)
    starts = np.flatnonzero((np.diff(path, prepend=BLANK) != 0) & (path != BLANK))
    if np.array_equal(path[starts], token_ids):
        ends = np.append(np.flatnonzero(np.diff(path) != 0) + 1, n_frames)
        return _spans(log_probs, token_ids, starts, ends[np.searchsorted(ends, starts, "right")])

    states = np.full(2 * len(token_ids) + 1, BLANK)
    states[1::2] = token_ids
    barred = np.ones(len(states), bool)  # states that cannot be reached by skipping the one before
    barred[3::2] = states[3::2] == states[1:-2:2]

    moves = np.empty((n_frames, len(states)), np.int8)  # how many states forward the best path to each state came
    best = np.full(len(states), _NEVER)
    best[0] = 0.0  # as if a blank stood before the first frame: the path may start in state 0 or 1
    step, skip = np.full_like(best, _NEVER), np.full_like(best, _NEVER)
    for frame, move in zip(log_probs, moves, strict=True):
        step[1:] = best[:-1]
        skip[2:] = best[:-2]
        skip[barred] = _NEVER
        np.greater(step, best, out=move, casting="unsafe")  # ties stay
        best = np.maximum(best, step)
        move[skip > best] = 2
        best = np.maximum(best, skip) + frame[states]

    state = len(states) - 1 if best[-1] > best[-2] else len(states) - 2  # the last blank need not be there
    if best[state] == _NEVER:
        raise DecodingError(
            "expected a path with a probability above 0, but some token of the text has none in every frame"
        )
    for t in range(n_frames - 1, -1, -1):
        path[t] = state
        state -= int(moves[t, state])

    # The path never goes back, so that each state's frames are one run of a sorted array.
    token_states = np.arange(1, len(states), 2)
    starts, ends = np.searchsorted(path, token_states, "left"), np.searchsorted(path, token_states, "right")
    return _spans(log_probs, token_ids, starts, ends)


def _spans(log_probs: np.ndarray, token_ids: Sequence[int], starts: np.ndarray, ends: np.ndarray) -> list[Span]:
    """Each token's frames with their mean probability; starts and ends: (U,) frames."""
    lengths = ends - starts
    first = np.cumsum(lengths) - lengths  # where each token's frames begin in a list of all their frames
    frames = np.arange(lengths.sum()) + np.repeat(starts - first, lengths)
    scores = np.add.reduceat(np.exp(log_probs[frames, np.repeat(token_ids, lengths)]), first) / lengths
    return list(map(Span, starts.tolist(), ends.tolist(), scores.tolist()))
