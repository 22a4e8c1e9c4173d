"""Sound as it comes, from a microphone or from a file in its place, in a queue that waits for whoever takes it.

Who brings the sound (PortAudio's thread, or the one that plays the file) only appends it, with the number of its first
sample. So the queue needs no locks, PortAudio is never kept waiting, and who takes the sound knows how much was lost where
the queue has run over.
"""

from __future__ import annotations

import itertools
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from asr.audio import files
from asr.audio.waveform import Mixer
from asr.errors import AsrError, AudioError

_BLOCK_S = 0.05
_QUEUE_S = 60.0  # a recogniser may take so long to load, or fall so far behind
_POLL_S = 0.01
_GONE_S = 2.0  # no sound for so long: unplugged
_FIRST_S = 6.0  # a Bluetooth headset needs seconds before its first sound
# PortAudio's paDeviceUnavailable, paInvalidChannelCount, paInvalidSampleRate
_BUSY, _WRONG_CHANNELS, _WRONG_RATE = -9985, -9998, -9997
_RATES = (48_000, 44_100, 16_000, 32_000, 96_000, 8000)  # Hz, for a device that refuses its own default
_OTHERS = "asr live --list-devices names all there are"
_ALLOW = "this program must be allowed to use it (Linux: the group audio; macOS, Windows: the privacy settings)"


@dataclass(frozen=True, slots=True)
class Device:
    """What can be listened to. number, name: either selects it; default: the one that is taken otherwise."""

    number: int
    name: str
    channels: int
    sample_rate: int
    default: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """Some sound. samples: (n,) float32, full scale +-1, channels mixed, at the source's rate.

    lost:       samples that were lost before it, because the queue was full.
    overflowed: whether PortAudio lost some, and does not know how many, because the computer was too busy.
    """

    samples: np.ndarray
    lost: int
    overflowed: bool


class Source(ABC):
    """A queue of sound. name, sample_rate: of what is heard; time_s: how much has come.

    silence: what to look at if only zeros come, if anything.
    """

    silence = ""

    def __init__(self, name: str, sample_rate: int) -> None:
        self.name, self.sample_rate = name, sample_rate
        # When it is full, the oldest goes.
        self._queue: deque[tuple[int, np.ndarray, bool]] = deque(maxlen=round(_QUEUE_S / _BLOCK_S))
        self._came = 0  # samples
        self._stopping = False
        self._fault: AsrError | None = None

    @property
    def time_s(self) -> float:
        return self._came / self.sample_rate

    def stop(self) -> None:
        """Hear no more; what was heard can still be taken. Only a flag, so that a signal's handler may call it."""
        self._stopping = True

    def pieces(self) -> Iterator[Piece]:
        """What is heard until stop(), as it comes. raises: AudioError, after all that came before."""
        expected = idle = 0
        mixer = Mixer(self.sample_rate)  # its frames are our blocks, so that it keeps nothing back
        while True:
            ended = self._has_ended(idle * _POLL_S)  # asked first: what comes before the end is to be taken
            if self._queue:
                start, samples, overflowed = self._queue.popleft()
                if start != expected:  # a minute behind: better to go on with what is said now than with scraps
                    while self._queue:
                        start, samples, overflowed = self._queue.popleft()
                lost, expected, idle = start - expected, start + len(samples), 0
                yield Piece(samples if samples.ndim == 1 else mixer.feed(samples), lost, overflowed)
            elif not ended:
                # Turns are counted, not the clock: where this process was suspended, so was the sound.
                idle += 1
                time.sleep(_POLL_S)
            else:
                if len(rest := mixer.flush()):
                    yield Piece(rest, 0, False)
                if self._fault is not None:
                    raise self._fault
                return

    def _put(self, samples: np.ndarray, overflowed: bool = False) -> None:
        self._queue.append((self._came, samples, overflowed))
        self._came += len(samples)

    @abstractmethod
    def _has_ended(self, idle_s: float) -> bool:
        """Whether nothing more will come; if it should have, _fault says why. idle_s: how long nothing has come."""


class Microphone(Source):
    """A device that records, at its own rate. Listens from `with` on.

    device: its number, or part of its name; None for the system's default.
    raises: AudioError if there is none, it is in use, or PortAudio is missing.
    """

    silence = f"is it muted? {_ALLOW}"

    def __init__(self, device: int | str | None = None) -> None:
        self._sounddevice = _sounddevice()
        described = self._describe(device)
        super().__init__(described["name"], round(described["default_samplerate"]))
        self._device: int = described["index"]
        self._most_channels: int = described["max_input_channels"]

    def __enter__(self) -> Microphone:
        try:
            self._stream = self._open()
            self._stream.start()
        except self._sounddevice.PortAudioError as error:
            if _code(error) == _BUSY:
                reason = f"expected a free device, got one that another program uses; close that; {_OTHERS}"
            elif _code(error) == _WRONG_RATE:
                rates = ", ".join(map(str, self._rates()))
                reason = f"expected a device that records at one of {rates} Hz, got one that refuses all; {_OTHERS}"
            else:
                reason = f"cannot be opened: {_reason(error)}; {_ALLOW}; {_OTHERS}"
            raise AudioError(f"{self.name}: {reason}") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def _rates(self) -> list[int]:
        return list(dict.fromkeys((self.sample_rate, *_RATES)))

    def _open(self) -> Any:
        """Open its stream: at its default rate if it takes that, with one channel if it has that."""
        counts = dict.fromkeys((1, min(2, self._most_channels), self._most_channels))
        *choices, last = itertools.product(self._rates(), counts)
        for rate, channels in choices:
            try:
                return self._make_stream(rate, channels)
            except self._sounddevice.PortAudioError as error:
                if _code(error) not in (_WRONG_RATE, _WRONG_CHANNELS):
                    raise
        return self._make_stream(*last)

    def _make_stream(self, rate: int, channels: int) -> Any:
        opened = self._sounddevice.InputStream(
            device=self._device,
            channels=channels,
            samplerate=rate,
            blocksize=round(rate * _BLOCK_S),
            dtype="float32",
            callback=self._hear,
        )
        self.sample_rate = rate
        return opened

    def _hear(self, samples: np.ndarray, _frames: int, _time: object, status: Any) -> None:
        self._put(samples.copy(), status.input_overflow)

    def _has_ended(self, idle_s: float) -> bool:
        if self._fault is not None:
            return True
        if self._stopping:
            self._stream.stop()  # once more does no harm
            return True
        if not self._stream.active or idle_s > (_GONE_S if self._came else _FIRST_S):
            self._fault = AudioError(f"{self.name}: no more sound comes from it; is it plugged in? {_OTHERS}")
        return self._fault is not None

    def _describe(self, device: int | str | None) -> dict[str, Any]:
        """What PortAudio knows of a device that records."""
        if device is None:
            devices()  # where there are none, that is the better error
        try:
            described: dict[str, Any] = self._sounddevice.query_devices(device, "input")
        except (ValueError, self._sounddevice.PortAudioError) as error:
            asked = "the default device" if device is None else f"device {device}"
            raise AudioError(f"{asked}: expected one that records, got: {error}; {_OTHERS}") from None
        return described


class Playback(Source):
    """A file as if it were a microphone. speed: 1 is real time, 0 as fast as it is taken. Plays from `with` on.

    raises: AudioError if it cannot be read.
    """

    def __init__(self, path: str | Path, speed: float = 1.0) -> None:
        super().__init__(Path(path).name, files.info(path).sample_rate)
        self._path, self._speed = path, speed
        self._thread = threading.Thread(target=self._play, daemon=True)

    def __enter__(self) -> Playback:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._thread.join()

    def _play(self) -> None:
        started = time.monotonic()
        try:
            for samples in files.blocks(self._path, block_s=_BLOCK_S, sample_rate=self.sample_rate):
                # A microphone gives a block when its last sample is there.
                due = started + (self.time_s + len(samples) / self.sample_rate) / (self._speed or np.inf)
                while not self._stopping and (time.monotonic() < due or (not self._speed and self._full())):
                    time.sleep(_POLL_S)
                if self._stopping:
                    return
                self._put(samples)
        except AsrError as error:
            self._fault = error

    def _full(self) -> bool:
        return len(self._queue) == self._queue.maxlen

    def _has_ended(self, _: float) -> bool:
        return not self._thread.is_alive()


def _code(error: Exception) -> object:
    """The number of a PortAudioError; some have none."""
    return error.args[1] if len(error.args) > 1 else None


def _reason(error: Exception) -> str:
    """The text of a PortAudioError, and that of the system below it."""
    texts = [part for part in (error.args[0], *(error.args[2] if len(error.args) > 2 else ())) if isinstance(part, str)]
    return "; ".join(dict.fromkeys(text.strip() for text in texts if text.strip())) or str(error)


def devices() -> list[Device]:
    """All that can be listened to. raises: AudioError if there are none, or PortAudio is missing."""
    sounddevice = _sounddevice()
    default = sounddevice.default.device[0]
    found = [
        Device(number, one["name"], one["max_input_channels"], round(one["default_samplerate"]), number == default)
        for number, one in enumerate(sounddevice.query_devices())
        if one["max_input_channels"] > 0
    ]
    if not found:
        raise AudioError(f"expected a microphone, found no device that records; plug one in; {_ALLOW}")
    return found


def _sounddevice() -> ModuleType:
    try:
        import sounddevice
    except ModuleNotFoundError:
        raise AudioError(
            "a microphone needs the package sounddevice, which is not installed; in a clone of this project: "
            "pip install '.[live]'"
        ) from None
    except OSError as error:
        raise AudioError(
            f"expected the library PortAudio, got: {error}; install it: apt install libportaudio2 (Debian, Ubuntu), "
            "dnf install portaudio (Fedora), pacman -S portaudio (Arch)"
        ) from None
    module: ModuleType = sounddevice
    return module
