"""A microphone's sound -> what is said, on the terminal while it is said; the sound can be kept as a wav file.

All times come from counting samples: those heard, and those known to be lost.
"""

from __future__ import annotations

import contextlib
import math
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soxr

from asr.audio import SAMPLE_RATE
from asr.audio.microphone import Piece, Source
from asr.recognizer import Recognizer
from asr.stream import Event, Final, Partial
from asr.transcript import OutputError, Transcript, Word

if TYPE_CHECKING:
    from rich.console import Console, Group

_FLOOR_DB = -96.0  # the least level there is in 16 bits
_SILENT_S = 5.0  # no microphone that works gives zeros for so long
_REDRAW_S = 0.1
_METER_DB, _METER_WIDTH = 60.0, 24  # what the level meter spans
_WAV_HEADER = "<4sI4s4sIHHIIHH4sI"
_WAV_LIMIT = 0xFFFFFFFF - 36  # bytes of samples whose length the header can tell: 37 hours


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


class Recording:
    """A wav file (16 kHz, mono, 16 bits) that is whole after every write, for the program may be killed at any time.

    failed: why nothing more is written, if that is so.
    raises: OutputError if it exists and overwrite is not set, or cannot be made.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self._path = path
        self._bytes = 0  # of samples
        self.failed: OutputError | None = None
        try:
            if path.exists() and not path.is_file():
                raise OutputError(f"{path}: expected the name of a file to write, got a folder or device")
            self._file = path.open("wb" if overwrite else "xb")
        except FileExistsError:
            raise OutputError(f"{path}: the file exists already; use --overwrite, or name another") from None
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror}; check the folder") from None
        self.write(0, np.zeros(0, np.float32))

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # of a full disk, which is known by now
            self._file.close()

    def write(self, start: int, samples: np.ndarray) -> None:
        """Samples (n,) float32 that begin as number `start`; what was lost before them is silence."""
        if self.failed is not None:
            return
        data = np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
        count = 2 * start + len(data)
        try:
            if count > _WAV_LIMIT:
                raise OSError(0, "a wav file holds 37 hours")
            header = struct.calcsize(_WAV_HEADER)
            self._file.seek(header + 2 * start)  # a hole in a file reads as zeros
            self._file.write(data)
            self._file.seek(0)
            form = (16, 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16)  # its length, PCM, channels, rates, bytes, bits
            self._file.write(struct.pack(_WAV_HEADER, b"RIFF", 36 + count, b"WAVE", b"fmt ", *form, b"data", count))
            self._file.flush()
            self._bytes = count
        except OSError as error:
            self.failed = OutputError(
                f"{self._path}: cannot be written any more: {error.strerror}; what was said up to "
                f"{_clock(self._bytes / 2 / SAMPLE_RATE)} is in it; check the free space"
            )


class Session:
    """What is heard, from the first sample on -> what is said.

    gate:            makes one, where it is wanted.
    options:         of Recognizer.stream.
    recording:       where it is wanted, set before anything is heard; of the sound before the gate.
    words:           all of the finals', timed from the start.
    time_s:          how much sound was recognised, or is lost.
    lost_s, overflows, level_db: see Piece; the level is of the latest piece, 0 dB at full scale.
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

    def hear(self, piece: Piece) -> Iterator[Event | Trouble]:
        """What is new with another piece of sound."""
        self.overflows += piece.overflowed
        if piece.lost:  # what was said before has nothing to do with what comes
            yield from self.finish()
            self._came += piece.lost
            self.lost_s += piece.lost / self._rate
            yield Trouble(
                f"{piece.lost / self._rate:.1f} s of sound before {_clock(self._came / self._rate)} are lost: the "
                "recogniser could not keep up; end other programs, or take a smaller model or beam"
            )
            self._begin()
        self._came += len(piece.samples)
        samples = piece.samples
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples)
        yield from self._recognise(samples)

    def finish(self) -> Iterator[Event | Trouble]:
        """The sound ends here, or is interrupted: what is left of it."""
        if self._resampler is not None:
            yield from self._recognise(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        if self._gate is not None:
            yield from self._heeded(self._stream.feed(self._gate.flush()))
        yield from self._heeded(self._stream.flush())

    def _begin(self) -> None:
        """Listen anew; the times go on."""
        self._start = round(self._came * SAMPLE_RATE / self._rate)
        self._taken = 0
        self._resampler = (
            None if self._rate == SAMPLE_RATE else soxr.ResampleStream(self._rate, SAMPLE_RATE, 1, dtype="float32")
        )
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
        yield from self._heeded(self._stream.feed(samples if self._gate is None else self._gate.feed(samples)))

    def _heeded(self, events: list[Event]) -> Iterator[Event]:
        """The stream's events, timed from the session's start."""
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
            yield list(session.hear(piece))
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


class Terminal:
    """Finals scroll up; below them stand the text so far, of which the dim part may change, and how the sound is."""

    def __init__(self, console: Console, source: Source, session: Session) -> None:
        from rich.live import Live

        self._source, self._session = source, session
        self._partial = Partial("", "", 0.0)
        self._drawn = 0.0
        self._bar = "━" if console.encoding.startswith("utf") else "="
        self._live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False)

    def __enter__(self) -> Terminal:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, event: Event) -> None:
        """A final stays, a partial until the next event."""
        from rich.text import Text

        self._partial = event if isinstance(event, Partial) else Partial("", "", 0.0)
        self._drawn = 0.0
        if isinstance(event, Final):
            self._live.update(self._lower_part())
            began = event.words[0].start_s if event.words else event.start_s
            self._live.console.print(Text.assemble((f"{_clock(began)}  ", "dim"), event.text))

    def draw(self) -> None:
        """The lower part anew, if it is time to."""
        if (now := time.monotonic()) - self._drawn >= _REDRAW_S:
            self._drawn = now
            self._live.update(self._lower_part(), refresh=True)

    def _lower_part(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        session = self._session
        lag_s = self._source.time_s - session.time_s
        lit = round(np.clip(session.level_db / _METER_DB + 1, 0, 1) * _METER_WIDTH)
        status = Text.assemble(
            (f"{_clock(self._source.time_s)}  ", "dim"),
            (self._bar * lit, "red" if session.level_db > -3 else "green"),
            (self._bar * (_METER_WIDTH - lit), "dim"),
            f" {session.level_db:4.0f} dB",
            (f"   lag {lag_s:.1f} s", "yellow" if lag_s > 2 else "dim"),
            (f"   lost {session.lost_s:.1f} s" if session.lost_s else "", "red"),
            (f"   overflows {session.overflows}" if session.overflows else "", "red"),
            no_wrap=True,
            overflow="crop",
        )
        so_far = Text.assemble(self._partial.stable, " " * bool(self._partial.stable), (self._partial.unstable, "dim"))
        return Group(so_far, status)


def _clock(seconds: float) -> str:
    """Minutes and seconds, 02:07.5."""
    tenths = int(10 * seconds)
    return f"{tenths // 600:02}:{tenths // 10 % 60:02}.{tenths % 10}"
