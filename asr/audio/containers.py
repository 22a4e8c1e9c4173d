"""The audio track of a container or video (m4a, mp4, mov, webm, mkv, aac, wma), decoded by PyAV.

PyAV brings FFmpeg's libraries in its wheel. It is an optional extra and imported only when such a file is opened.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from asr.errors import AsrError

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

SUFFIXES = (".m4a", ".mp4", ".mov", ".webm", ".mkv", ".aac", ".wma")
# Nothing but these: a playlist posing as an mp4 could make FFmpeg open other files or addresses.
_DEMUXERS = "mov,matroska,asf,aac,mp3,wav,mpegts,avi,flv,amr"
_ATOMS = b"ftyp moov mdat moof mfra free skip wide styp sidx ssix uuid meta udta pnot pdin emsg prft".split()
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_OTHERS = (b"RIFF", b"FORM", b"OggS", b"fLaC", b".snd", b"riff", b"caff")  # libsndfile reads these, whatever their name
_GAP_S = 0.1  # time stamps this far behind the samples are silence (mkv rounds them to 1 ms, Opus starts 7 ms late)
_LONGEST_GAP_S = 3600.0
_LOSS_S = 0.5  # a track this much shorter than announced has lost something; the last packets' padding is far less
_PREROLL_S = 0.5  # decoded and thrown away after a jump: Opus needs 0.08 s to settle, AAC two packets


class ContainerError(AsrError):
    """A container without audio that can be decoded."""


def recognises(head: bytes, suffix: str) -> bool:
    """Whether a file that begins with head (24 bytes) and has this suffix is one for this module."""
    if head[:4] in _OTHERS:
        return False
    return head[4:8] in _ATOMS or head[:4] == _EBML or head[:16] == _ASF or suffix.lower() in SUFFIXES


def announced(raw: BinaryIO, size: int) -> int:
    """Where the file ends by its headers, in bytes; 0 if they do not say, as those of a live recording."""
    raw.seek(0)
    head = raw.read(1 << 12)
    if head[4:8] in _ATOMS:
        at = 0
        while at + 8 <= size:
            raw.seek(at)
            header = raw.read(16)
            length, name = struct.unpack(">I4s", header[:8])
            if length == 1 and len(header) == 16:
                length = struct.unpack(">8xQ", header)[0]
            if name not in _ATOMS or length < 8:  # to the end of the file, or something appended to it
                break
            at += length
        return at
    if head[:4] == _EBML:
        length, at = _ebml_size(head, 4)
        at += length
        if head[at : at + 4] == _SEGMENT:
            length, at = _ebml_size(head, at + 4)
            return at + length if length else 0
    if head[:16] == _ASF and (at := head.find(_ASF_FILE)) >= 0 and len(head) >= at + 92:
        length, flags = struct.unpack("<40xQ40xI", head[at : at + 92])
        return 0 if flags & 1 else int(length)
    return 0


def _ebml_size(data: bytes, at: int) -> tuple[int, int]:
    """The length written at `at` (0 for unknown), and where it ends. The first byte's leading zeros tell its width."""
    width = 9 - (data[at].bit_length() if at < len(data) else 0)
    bits = 7 * width
    value = int.from_bytes(data[at : at + width], "big") & ((1 << bits) - 1)
    return 0 if value == (1 << bits) - 1 else value, at + width


@contextmanager
def opened(path: Path) -> Iterator[Track]:
    """The first audio track of a file. raises: ContainerError, also out of the with block, for what cannot be decoded."""
    try:
        import av
    except ImportError:
        raise ContainerError(
            f"reading {path.suffix or 'this kind of file'} needs PyAV; in a clone of this project: "
            f"pip install '.[containers]'; or convert it: ffmpeg -i {path.name} {path.stem}.wav"
        ) from None
    try:
        # As a file object: FFmpeg would take a name with a colon for an address, and names may be no valid text.
        with (
            path.open("rb") as raw,
            av.open(
                raw, "r", metadata_errors="replace", container_options={"format_whitelist": _DEMUXERS}
            ) as container,
        ):
            if not container.streams.audio:
                raise ContainerError("expected audio, but the file has no audio track")
            yield Track(container, container.streams.audio[0])
    except (av.FFmpegError, OSError) as error:
        reason = (error.strerror or str(error)).rstrip(".")
        raise ContainerError(
            f"damaged, or no audio that can be decoded: {reason}; copy or download the file again, "
            f"or convert it: ffmpeg -i {path.name} {path.stem}.wav"
        ) from None


class Track:
    """One audio track, to be read once. sample_rate: Hz; format: container and codec."""

    def __init__(self, container: InputContainer, stream: AudioStream) -> None:
        self._container, self._stream = container, stream
        self._origin_s = (container.start_time or 0) / 1_000_000
        self._kind = container.format.name.split(",")[0]
        self._frames = container.decode(stream)
        first = next(self._frames, None)
        if first is None:
            raise ContainerError("expected audio, but the audio track holds no samples")
        self._first = first
        # From the samples, not the header: HE-AAC may state half its rate there.
        self.sample_rate = first.sample_rate
        self.channels = len(first.layout.channels)
        self.format = f"{self._kind}/{stream.codec_context.name}"

    def duration_s(self) -> float:
        """The end of the track by the header, or else by its packets, to within a packet (about 0.05 s); no decoding."""
        end_s = self._announced_s()
        if end_s is not None:
            return end_s
        self._container.seek(0)
        last = 0.0
        for packet in self._container.demux(self._stream):
            if packet.pts is not None and packet.time_base is not None:
                last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        return last - self._origin_s

    def samples(self, offset_s: float, duration_s: float | None) -> Iterator[np.ndarray]:
        """The track from offset_s on, as pieces (n,) float32 at sample_rate, channels averaged.

        Where the track starts late or pauses, as in a video, there is silence: times remain those of the video.
        raises: ContainerError if the part does not exist or the track is damaged.
        """
        rate = self.sample_rate
        start = round(offset_s * rate)
        end = math.inf if duration_s is None else start + round(duration_s * rate)
        at = 0  # of the next sample
        frames: Iterator[AudioFrame] = itertools.chain([self._first], self._frames)
        if offset_s > 2 * _PREROLL_S and self._kind in ("mov", "matroska"):  # the others' jumps land by guess
            assert self._stream.time_base is not None
            target = (offset_s - _PREROLL_S + self._origin_s) / float(self._stream.time_base)
            self._container.seek(round(target), stream=self._stream)
            frames = self._container.decode(self._stream)
            at = start  # what comes before is not asked for, what comes later is silence before it
        jumped = at > 0
        for frame in frames:
            if frame.sample_rate != rate:
                raise ContainerError(f"expected one sample rate, got {rate} Hz and later {frame.sample_rate} Hz")
            stamp = at if frame.time is None else round((frame.time - self._origin_s) * rate)
            if jumped:
                at, jumped = min(stamp, start), False
            if stamp - at > _LONGEST_GAP_S * rate:
                raise ContainerError(f"damaged: its time stamps jump by {(stamp - at) / rate:.0f} s")
            silence = stamp - at if stamp - at > _GAP_S * rate else 0
            for samples in itertools.chain(_zeros(silence, rate), [_mono(frame)]):
                wanted = samples[max(0, start - at) : max(0, int(min(end - at, len(samples))))]
                at += len(samples)
                if len(wanted):
                    yield wanted
            if at >= end:
                return
        if at <= start:
            raise ContainerError(f"expected audio at {offset_s:.2f} s, but the track ends at {self.duration_s():.2f} s")
        announced_s = self._announced_s()
        if announced_s is not None and at < (announced_s - _LOSS_S) * rate:
            raise ContainerError(
                f"cut short or damaged: expected {announced_s:.2f} s of audio, could decode {at / rate:.2f} s; "
                "copy or download the file again"
            )

    def _announced_s(self) -> float | None:
        """Where the track ends by the header; None where that is a guess from the size, or of all tracks together."""
        stream = self._stream
        if self._kind == "mov" and stream.duration and stream.time_base is not None:
            return float(((stream.start_time or 0) + stream.duration) * stream.time_base) - self._origin_s
        if self._kind == "matroska":
            written = stream.metadata.get("DURATION", "").split(":")  # 00:01:02.345000000, by most programs
            if len(written) == 3:
                try:
                    return 3600 * int(written[0]) + 60 * int(written[1]) + float(written[2]) - self._origin_s
                except ValueError:
                    pass
            if len(self._container.streams) == 1 and self._container.duration:
                return self._container.duration / 1_000_000 - self._origin_s
        return None


def _mono(frame: AudioFrame) -> np.ndarray:
    """(n,) float32, full scale +-1: the average of the frame's channels."""
    samples: np.ndarray = frame.to_ndarray()
    channels = len(frame.layout.channels)
    if not frame.format.is_planar:
        samples = samples.reshape(-1, channels).T
    if np.issubdtype(samples.dtype, np.unsignedinteger):  # 8 bits, with their zero in the middle
        samples = (samples.astype(np.float32) - 128) / 128
    elif np.issubdtype(samples.dtype, np.integer):
        samples = samples / np.float32(-float(np.iinfo(samples.dtype).min))
    return np.asarray(samples[0] if channels == 1 else samples.mean(axis=0), dtype=np.float32)


def _zeros(count: int, rate: int) -> Iterator[np.ndarray]:
    """Silence in pieces of a second."""
    for start in range(0, count, rate):
        yield np.zeros(min(rate, count - start), np.float32)
