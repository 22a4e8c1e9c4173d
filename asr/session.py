"""One sitting of a microphone or a socket -> what is said: any sample rate, lost samples, a noise gate, all times.

All times come from counting samples: those heard, and those known to be lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from asr.audio import SAMPLE_RATE, Converter
from asr.audio.microphone import Source
from asr.audio.recording import Recording, clock
from asr.recognizer import Recognizer
from asr.stream import Event, Final
from asr.transcript import Transcript, Word

_FLOOR_DB = -96.0  # the least level there is in 16 bits
_SILENT_S = 5.0  # no microphone that works gives zeros for so long


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that the user should know of, while listening goes on."""

    text: str


class Gate:
    """A noise gate: what is quieter than a level becomes silence, except just before and after what is louder.

    The sound comes out `before_s` later than it goes in, for the soft beginnings of words to be heard.

    level_db: of the root mean square of 20 ms, 0 dB at full scale.
    """

    before_s, after_s = 0.2, 0.5
    _FRAME = SAMPLE_RATE // 50

    def __init__(self, level_db: float) -> None:
        self._least = 10 ** (level_db / 20)
        self._ahead = round(self.before_s * SAMPLE_RATE) // self._FRAME
        self._loud = np.zeros(round(self.after_s * SAMPLE_RATE) // self._FRAME, bool)  # of the frames that went before
        self._waiting = np.zeros(0, np.float32)

    def feed(self, samples: np.ndarray) -> np.ndarray:
        """What can be passed on now, (n,) float32."""
        self._waiting = np.concatenate([self._waiting, samples])
        count = len(self._waiting) // self._FRAME
        if count <= self._ahead:
            return self._waiting[:0]
        frames = self._waiting[: count * self._FRAME].reshape(count, self._FRAME)
        loud = np.concatenate([self._loud, np.sqrt(np.mean(frames**2, axis=1)) >= self._least])
        window = len(self._loud) + 1 + self._ahead
        passed = count - self._ahead
        opened = np.array([loud[at : at + window].any() for at in range(passed)])
        self._loud = loud[passed : passed + len(self._loud)]
        self._waiting = self._waiting[passed * self._FRAME :]
        return np.asarray((frames[:passed] * opened[:, None]).ravel())

    def flush(self) -> np.ndarray:
        """The rest."""
        left = len(self._waiting)
        return self.feed(np.zeros((self._ahead + 1) * self._FRAME, np.float32))[:left]


class Session:
    """What is heard, from the first sample on -> what is said. Not to be shared between threads.

    sample_rate:      Hz, of what is heard.
    gate:             makes a noise gate, where one is wanted; a new one after each loss.
    options:          of Recognizer.stream.
    recording:        where it is wanted, set before anything is heard; of the sound before the gate.
    words:            all of the finals', timed from the start.
    time_s:           how much sound was recognised, or is lost.
    lost_s:           how much of it is lost.
    overflows:        how often a microphone lost some, and does not know how much.
    level_db:         the root mean square of the latest sound, 0 dB at full scale.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        sample_rate: int,
        *,
        gate: Callable[[], Gate] | None = None,
        **options: Any,
    ) -> None:
        self._recognizer, self._rate, self._options = recognizer, sample_rate, options
        self._make_gate = gate
        self.recording: Recording | None = None
        self.words: list[Word] = []
        self.lost_s = 0.0
        self.overflows = 0
        self.level_db = _FLOOR_DB
        self._came = 0  # samples at the source's rate, with those lost
        self._begin()

    @property
    def time_s(self) -> float:
        return self._start / SAMPLE_RATE + self._stream.time_s

    @property
    def transcript(self) -> Transcript:
        """Of all that was said so far."""
        text = " ".join(word.text for word in self.words)
        return Transcript(text, tuple(self.words), self._came / self._rate, self._recognizer.name)

    def hear(self, samples: np.ndarray, lost: int = 0) -> Iterator[Event | Trouble]:
        """What is new with more sound, (n,) float32 at the session's rate. lost: samples that were lost before it."""
        if lost:  # what was said before has nothing to do with what comes
            yield from self.finish()
            self._came += lost
            self.lost_s += lost / self._rate
            yield Trouble(
                f"{lost / self._rate:.1f} s of sound before {clock(self._came / self._rate)} are lost: the "
                "recogniser could not keep up; end other programs, or take a smaller model or beam"
            )
            self._begin()
        self._came += len(samples)
        yield from self._recognise(self._converter.feed(samples[:, None]))

    def finish(self) -> Iterator[Event | Trouble]:
        """The sound ends here, or is interrupted: what is left of it."""
        yield from self._recognise(self._converter.flush())
        if self._gate is not None:
            yield from self._shift_times(self._stream.feed(self._gate.flush()))
        yield from self._shift_times(self._stream.flush())

    def _begin(self) -> None:
        """Listen anew; the times go on."""
        self._start = round(self._came * SAMPLE_RATE / self._rate)
        self._taken = 0
        self._converter = Converter(self._rate)
        self._gate = None if self._make_gate is None else self._make_gate()
        self._stream = self._recognizer.stream(**self._options)

    def _recognise(self, samples: np.ndarray) -> Iterator[Event | Trouble]:
        """What is new with samples at 16 kHz."""
        if len(samples):
            self.level_db = max(_FLOOR_DB, 10 * np.log10(np.mean(samples**2, dtype=np.float64) + 1e-12))
        if self.recording is not None and self.recording.failed is None:
            self.recording.write(self._start + self._taken, samples)
            if self.recording.failed is not None:
                yield Trouble(str(self.recording.failed))
        self._taken += len(samples)
        yield from self._shift_times(self._stream.feed(samples if self._gate is None else self._gate.feed(samples)))

    def _shift_times(self, events: list[Event]) -> Iterator[Event]:
        """The stream's events with their times counted from the session's start; keeps their words."""
        offset_s = self._start / SAMPLE_RATE
        for event in events:
            if isinstance(event, Final):
                words = tuple(
                    replace(word, start_s=word.start_s + offset_s, end_s=word.end_s + offset_s) for word in event.words
                )
                self.words += words
                yield Final(event.text, words, event.start_s + offset_s, event.end_s + offset_s)
            else:
                yield replace(event, time_s=event.time_s + offset_s)


def listen(source: Source, session: Session) -> Iterator[list[Event | Trouble]]:
    """What is new after each piece of sound; at last what its end brings. raises: the source's errors, after that."""
    zeros = 0.0  # samples that came, until the first other one
    fault: Exception | None = None
    try:
        for piece in source.pieces():
            session.overflows += piece.overflowed
            yield list(session.hear(piece.samples, piece.lost))
            zeros = -math.inf if piece.samples.any() else zeros + len(piece.samples)
            if source.silence and zeros > _SILENT_S * source.sample_rate:
                yield [
                    Trouble(f"{source.name}: expected sound, got only zeros for {_SILENT_S:.0f} s; {source.silence}")
                ]
                zeros = -math.inf
    except Exception as error:  # what was said before is not lost by it
        fault = error
    ended = list(session.finish())
    if session.overflows:
        ended.append(
            Trouble(f"{session.overflows} times the computer was too busy to hear all; the times may be a little early")
        )
    yield ended
    if fault is not None:
        raise fault
