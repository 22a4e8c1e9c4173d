"""Where speech is parted: the silence that the network hears, the ends of utterances in a stream, the parts of a file.

Silence is where the network is surest of the blank, or of the space. A stream's utterance ends soon, as somebody waits for
its text. A file's goes on across pauses: the more of a sentence the language model reads at once, the better it judges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from asr.audio import SAMPLE_RATE
from asr.models.network import CONTEXT_S, Network
from asr.tokens import BLANK, Tokens

# So much silence parts the utterances of a file. On recipes/english's dev set 0.8 s gave 30.5 % word errors, 1.2 s 30.0 %,
# 1.6 s 29.5 %, 2.4 s 29.4 % and no parting at all 29.3 %.
_PAUSE_S = 2.0
_WINDOW_S = 30.0  # of a long recording, in each pass of the network
_MIN_PAUSE_S = 0.3  # a long stretch is cut within at least so much silence, if there is any


@dataclass(frozen=True, slots=True)
class Endpointing:
    """When an utterance ends, in seconds of silence.

    pause:       after words, so much silence.
    long_pause:  once the utterance is `long`, this shorter silence will do.
    idle:        without any word, so much silence; there is no text then.
    longest:     an utterance ends here in any case, at its longest pause.
    """

    pause: float = 0.8
    long_pause: float = 0.32
    long: float = 12.0
    idle: float = 5.0
    longest: float = 28.0

    def ended(self, silent: np.ndarray, frame_shift_s: float) -> str | None:
        """The name of the rule by which an utterance has ended now, if any. silent: (T,) bool, of its frames so far."""
        length_s = len(silent) * frame_shift_s
        loud = np.flatnonzero(~silent)
        if not len(loud):
            return "idle" if length_s >= self.idle else None
        trailing_s = length_s - (loud[-1] + 1) * frame_shift_s
        if trailing_s >= self.pause:
            return "pause"
        if length_s >= self.long and trailing_s >= self.long_pause:
            return "long"
        return "longest" if length_s >= self.longest else None


class Part(NamedTuple):
    """An utterance of a file. start_s, end_s: in the file, whose end is the last one's; log_probs: (T, V) float32."""

    start_s: float
    end_s: float
    log_probs: np.ndarray


def silence(log_probs: np.ndarray, tokens: Tokens) -> np.ndarray:
    """Which of (T, V) frames are surest of the blank or of the space, (T,) bool."""
    return np.isin(log_probs.argmax(axis=1), [BLANK, tokens.space])


def runs(flags: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each run of true flags (n,) bool starts, and where it has ended."""
    edges = np.flatnonzero(np.diff(flags, prepend=False, append=False))
    return edges[::2], edges[1::2]


def longest_pause(silent: np.ndarray, *, least: int = 1, after: int = 0) -> int:
    """The middle of the longest silence of `least` frames or more that begins after a frame; 0 if there is none."""
    starts, ends = runs(silent)
    lengths = np.where((starts > after) & (ends - starts >= least), ends - starts, 0)
    if not lengths.any():
        return 0
    longest = int(lengths.argmax())
    return int(starts[longest] + ends[longest]) // 2


def parts(network: Network, blocks: Iterable[np.ndarray], *, at_pauses: bool = True) -> Iterator[Part]:
    """The utterances of a recording of any length, in bounded memory; at least one, of no frames without any sound.

    blocks:    (n,) float32 at 16 kHz, any n.
    at_pauses: whether long pauses part them. A language model would rather hear one long word across a pause than two;
               but the sentences of a grammar may have pauses.
    """
    shift_s, samples = network.frame_shift_s, 0

    def count() -> Iterator[np.ndarray]:
        nonlocal samples
        for block in blocks:
            samples += len(block)
            yield block

    for first, log_probs in _stretches(network, count()):
        cuts: list[int] = []
        if at_pauses:
            starts, ends = runs(silence(log_probs, network.tokens))
            long = ((ends - starts) * shift_s >= _PAUSE_S) & (starts > 0) & (ends < len(log_probs))
            cuts = ((starts + ends)[long] // 2).tolist()
        for start, end in pairwise([0, *cuts, len(log_probs)]):
            # A file's last frame may reach beyond its end.
            last = min((first + end) * network.geometry.frame_shift, samples)
            yield Part((first + start) * shift_s, last / SAMPLE_RATE, log_probs[start:end])


def _stretches(network: Network, blocks: Iterable[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """The recording's log-probabilities from pause to pause: the number of the first frame, and (T, V).

    The network hears a window at a time, with context on either side whose frames are left to the neighbours. What
    lies between two cuts is joined before it is decoded, so that only a cut can divide a word, and a cut is in the
    longest pause. Without any pause, it is in the frame most surely blank.
    """
    shift = network.geometry.frame_shift
    window, context = (round(seconds / network.frame_shift_s) for seconds in (_WINDOW_S, CONTEXT_S))
    window = min(window, network.window or window)
    audio_left = iter(blocks)
    buffer = np.zeros(0, np.float32)  # samples from frame `start` on
    start = done = 0  # frames; up to `done` their log-probabilities are taken
    joined = np.zeros((0, len(network.tokens)), np.float32)  # the log-probabilities since the last cut
    ended = False
    while not ended:
        pieces = [buffer]
        while sum(map(len, pieces)) < window * shift and not ended:
            piece = next(audio_left, None)
            ended = piece is None
            pieces += [] if piece is None else [piece]
        buffer = np.concatenate(pieces)
        # A block may be longer than the window: then the rest waits.
        heard = buffer[: window * shift]
        last = ended and len(heard) == len(buffer)
        if len(heard):
            log_probs = network.log_probs(heard)
            log_probs = log_probs[done - start : None if last else len(log_probs) - context]
            done += len(log_probs)
            joined = np.concatenate([joined, log_probs])
        if last:
            yield done - len(joined), joined
            return
        cut = _cut(joined, network)
        if cut:
            yield done - len(joined), joined[:cut]
            joined = joined[cut:]
        skip = max(0, done - context) - start
        buffer, start, ended = buffer[skip * shift :], start + skip, False


def _cut(log_probs: np.ndarray, network: Network) -> int:
    """Where to end a stretch of (T, V): in the middle of its longest pause, 0 if it should go on to the next window."""
    silent = silence(log_probs, network.tokens)
    least = int(np.ceil(_MIN_PAUSE_S / network.frame_shift_s - 1e-9))
    # An early cut would let the rest grow from window to window.
    cut = longest_pause(silent, least=least, after=len(silent) // 2) or longest_pause(silent, least=least, after=-1)
    if cut or len(silent) * network.frame_shift_s < 2 * _WINDOW_S:
        return cut
    return int(log_probs[:, BLANK].argmax()) + 1
