"""Audio as it arrives -> text as it is spoken. No microphone, no files, no clock: samples in, events out.

The network hears the audio in chunks of a few hundred milliseconds, each with a little of what follows it (its right
context), and the beam search goes on from chunk to chunk: so there is a text at any time. Its words stay once they have
stood for a second: the search drops what disagrees, and readers are spared the flicker. When the speaker pauses, the whole
utterance is heard once more from both ends, as a file would be, and that text is the final one.

Nothing depends on how the samples are cut: the chunks are counted from the first sample on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np

from asr import audio
from asr.decoding.decoder import Decoder
from asr.errors import StreamError as StreamError
from asr.models.network import Network
from asr.pauses import Endpointing as Endpointing
from asr.pauses import longest_pause, silence
from asr.transcript import Word, sounded_out

CHUNK_S = 0.2
RIGHT_CONTEXT_S = 0.4
_WORD_END_S = 0.2  # so much silence ends a word
_SETTLED_S = 1.0  # a word that has stood so long as it is, with another after it, stays until the final text


@dataclass(frozen=True, slots=True)
class Partial:
    """The text of the utterance so far. stable: words that stay until the final text; unstable: what may yet change.

    time_s: how much of the stream it stands for, from the stream's start.
    """

    stable: str
    unstable: str
    time_s: float


@dataclass(frozen=True, slots=True)
class Final:
    """An utterance's text, with its words timed from the stream's start. start_s, end_s: the stretch that it stands for."""

    text: str
    words: tuple[Word, ...]
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The utterance ended here, seconds from the stream's start. why: the rule that ended it, or "end" of the stream."""

    time_s: float
    why: str


Event = Partial | Final | Endpoint


class Stream:
    """Recognises one stream; made by Recognizer.stream. Not to be shared between threads.

    network, decoder: of the recogniser.
    chunk_s:          each chunk's length; a text follows speech by this and the right context at most, and by half a
                      chunk less on average.
    right_context_s:  what the network hears beyond each chunk. One-directional networks have no use for it.
    endpointing:      the rules.
    sample_rate:      of what is fed, in Hz.
    raises:           StreamError for lengths that are none; AudioError for a rate that is none;
                      ModelError if the network only hears whole utterances.

    >>> from asr import Recognizer
    >>> stream = Recognizer("digits").stream()
    >>> waveform = audio.read("tests/data/connected_digits.flac")
    >>> [event.text for event in [*stream.feed(waveform), *stream.flush()] if isinstance(event, Final)]
    ['five seven nine zero']
    """

    def __init__(
        self,
        network: Network,
        decoder: Decoder,
        *,
        chunk_s: float = CHUNK_S,
        right_context_s: float = RIGHT_CONTEXT_S,
        endpointing: Endpointing | None = None,
        sample_rate: int = audio.SAMPLE_RATE,
    ) -> None:
        rules = endpointing or Endpointing()
        shift_s = network.frame_shift_s
        if not (shift_s <= chunk_s <= 30 and 0 <= right_context_s <= 30):
            raise StreamError(
                f"expected chunks of {shift_s} to 30 s and a right context of 0 to 30 s, got {chunk_s} and {right_context_s}"
            )
        if not (0 < rules.long_pause <= rules.pause <= rules.idle and 0 < rules.long <= rules.longest <= 600):
            raise StreamError(
                f"expected 0 < long_pause <= pause <= idle, and 0 < long <= longest <= 600 s, got {rules}"
            )
        self._network, self._decoder, self._rules = network, decoder, rules
        # Whole frames, and no more of them than was asked for: how far a text is behind is a promise.
        self._chunk = max(1, int(chunk_s / shift_s + 1e-6))
        self._context = int(right_context_s / shift_s + 1e-6) if network.bidirectional else 0
        # Frames are numbered from the stream's start. The network's state and the beam have heard up to `_done`.
        self._done = 0
        self._start = 0  # the utterance's first frame
        self._audio = np.zeros(network.geometry.left, np.float32)  # what the frames from `_start` on see
        self._converter = audio.Converter(sample_rate)
        self._fed = 0  # samples
        self._ended = False
        self._begin()
        self._network.part(np.zeros(network.geometry.receptive_field, np.float32), 1, network.first_state())

    def feed(self, samples: Any) -> list[Event]:
        """The events of more audio: samples (n,) or (n, channels), any n, of any kind that `audio.as_samples` takes.

        raises: AudioError; StreamError after flush.
        """
        if self._ended:
            raise StreamError("expected no more samples after flush(); start another stream")
        if (len(samples) if isinstance(samples, (bytes, bytearray)) else np.size(samples)) == 0:
            return []
        return self._hear(self._converter.feed(audio.as_samples(samples)))

    def _hear(self, samples: np.ndarray) -> list[Event]:
        """The events of more of the waveform."""
        self._audio = np.concatenate([self._audio, samples])
        self._fed += len(samples)
        events: list[Event] = []
        while self._heard() - self._done >= self._chunk + self._context:
            events += self._advance(self._chunk, self._chunk + self._context)
        return events

    def flush(self) -> list[Event]:
        """The events of what is left, as if silence followed; the stream is over."""
        if self._ended:
            return []
        events = self._hear(self._converter.flush())
        self._ended = True
        # As many frames as a file of this length has: the last may see beyond the end, where there is nothing.
        geometry = self._network.geometry
        last = -(-self._fed // geometry.frame_shift)
        self._audio = np.pad(self._audio, (0, max(0, geometry.padding(self._fed)[1])))
        while self._done < last:
            left = last - self._done
            events += self._advance(min(self._chunk, left), min(self._chunk + self._context, left))
        if self._done > self._start:
            events += self._end_utterance(self._done, "end")
        return events

    @property
    def time_s(self) -> float:
        """How much audio was fed."""
        return self._fed / audio.SAMPLE_RATE

    def _begin(self) -> None:
        """A new utterance at `_done`."""
        self._start = self._done
        self._state = self._network.first_state()
        self._search = self._decoder.search()
        self._silent = np.zeros(0, bool)  # of each frame since the start
        self._said: list[str] = []  # the words of the last partial text
        self._since: list[int] = []  # the frame from which on each of them, and all before it, have stood so
        self._stable = 0  # how many of them stay

    def _heard(self) -> int:
        """How many frames, from the stream's start, can see all that they need."""
        return self._start + max(0, self._network.geometry.frames(len(self._audio)))

    def _samples(self, first: int, frames: int) -> np.ndarray:
        """What some frames see, from the utterance's start on."""
        geometry = self._network.geometry
        at = (first - self._start) * geometry.frame_shift
        return self._audio[at : at + geometry.samples(frames)]

    def _advance(self, keep: int, frames: int) -> Iterator[Event]:
        """Hear the next `keep` frames, with the rest of `frames` as their context."""
        left = min(self._network.left_context, self._done - self._start)
        samples = self._samples(self._done - left, left + frames)
        log_probs, self._state = self._network.part(samples, keep, self._state, left)
        self._search.advance(log_probs)
        self._silent = np.concatenate([self._silent, silence(log_probs, self._network.tokens)])
        self._done += keep
        yield from self._partial()
        yield from self._endpoint()

    def _partial(self) -> Iterator[Event]:
        """The text so far, if it has changed."""
        # After a moment of silence the last word is complete, though no space says so yet: judge it as one.
        quiet = bool(self._silent[-round(_WORD_END_S / self._network.frame_shift_s) :].all())
        found = self._search.hypotheses(1, ended=quiet)
        if not found:
            return
        token_ids = found[0].token_ids
        words = self._decoder.tokens.decode(token_ids).split()
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(words, self._said, strict=False)))
        self._since = self._since[:same] + [self._done] * (len(words) - same)
        changed, self._said = words != self._said, words
        settled = self._done - round(_SETTLED_S / self._network.frame_shift_s)
        stable = sum(since <= settled for since in self._since[:-1])
        if stable > self._stable:
            self._stable, changed = stable, True
            starts = self._decoder.tokens.word_starts
            self._search.commit(token_ids[: self._decoder.tokens.words(token_ids)[stable - 1].stop], starts)
        if changed:
            time_s = self._done * self._network.frame_shift_s
            yield Partial(" ".join(words[: self._stable]), " ".join(words[self._stable :]), time_s)

    def _endpoint(self) -> Iterator[Event]:
        why = self._rules.ended(self._silent, self._network.frame_shift_s)
        if why == "longest":
            pause = longest_pause(self._silent, after=len(self._silent) // 2)
            yield from self._end_utterance(self._start + pause if pause else self._done, why)
        elif why:
            yield from self._end_utterance(self._done, why)

    def _end_utterance(self, end: int, why: str) -> Iterator[Event]:
        """Decode the utterance up to a frame again, from both ends, and begin another there."""
        shift_s = self._network.frame_shift_s
        log_probs = self._network.whole(self._samples(self._start, end - self._start))
        offset_s = self._start * shift_s
        words = self._decoder.words(self._decoder(log_probs), log_probs, shift_s, offset_s)
        if words:
            text = " ".join(word.text for word in words)
            yield Final(text, sounded_out(words, end * shift_s), offset_s, end * shift_s)
        yield Endpoint(end * shift_s, why)
        again, self._done = self._done, end
        self._audio = self._audio[(end - self._start) * self._network.geometry.frame_shift :]
        self._begin()
        while self._done < again:  # cut before what has been heard: hear the rest as the next utterance's beginning
            frames = min(self._chunk, again - self._done)
            yield from self._advance(frames, min(frames + self._context, self._heard() - self._done))
