"""A wav file that grows while it is recorded."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import numpy as np

from asr.audio.waveform import SAMPLE_RATE
from asr.errors import OutputError

_HEADER = "<4sI4s4sIHHIIHH4sI"
_LIMIT = 0xFFFFFFFF - 36  # bytes of samples whose length the header can tell: 37 hours


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
            if count > _LIMIT:
                raise OSError(0, "a wav file holds 37 hours")
            header = struct.calcsize(_HEADER)
            self._file.seek(header + 2 * start)  # a hole in a file reads as zeros
            self._file.write(data)
            self._file.seek(0)
            form = (16, 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16)  # its length, PCM, channels, rates, bytes, bits
            self._file.write(struct.pack(_HEADER, b"RIFF", 36 + count, b"WAVE", b"fmt ", *form, b"data", count))
            self._file.flush()
            self._bytes = count
        except OSError as error:
            self.failed = OutputError(
                f"{self._path}: cannot be written any more: {error.strerror}; what was said up to "
                f"{clock(self._bytes / 2 / SAMPLE_RATE)} is in it; check the free space"
            )


def clock(seconds: float) -> str:
    """Minutes and seconds, 02:07.5."""
    tenths = int(10 * seconds)
    return f"{tenths // 600:02}:{tenths // 10 % 60:02}.{tenths % 10}"
