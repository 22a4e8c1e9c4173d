"""What libsndfile cannot read: the audio tracks of containers and films (m4a, mp4, webm, mkv, avi, ...), by PyAV.

PyAV brings FFmpeg's libraries in its wheel. It is an optional extra and imported only when such a file is opened.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from asr.audio.parts import TOLERANCE_S
from asr.errors import AudioError

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

SUFFIXES = (  # not .ts, which is also TypeScript
    *(".m4a", ".m4b", ".m4r", ".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".webm", ".mkv", ".mka", ".aac", ".wma", ".wmv"),
    *(
        ".asf",
        ".avi",
        ".flv",
        ".f4v",
        ".m2ts",
        ".mts",
        ".mpg",
        ".mpeg",
        ".vob",
        ".ogv",
        ".amr",
        ".awb",
        ".ac3",
        ".eac3",
    ),
    *(".wv", ".ape", ".tta", ".mpc", ".dsf"),
)
# Nothing but these: a playlist posing as an mp4 could make FFmpeg open other files or addresses.
_DEMUXERS = (
    "mov,matroska,asf,aac,mp3,wav,w64,aiff,au,caf,flac,ogg,voc,mpegts,mpeg,avi,flv,amr,ac3,eac3,dts,wv,ape,tta,mpc,"
    "mpc8,dsf"
)
_GAP_S = 0.1  # time stamps this far behind the samples are silence (mkv rounds them to 1 ms, Opus starts 7 ms late)
_LONGEST_GAP_S = 3600.0
_LOSS_S = 0.5  # a track this much shorter than announced has lost something; the last packets' padding is far less
_PACKET_S = 0.05  # about, where it does not say
_PREROLL_S = 0.5  # decoded and thrown away after a jump: Opus needs 0.08 s to settle, AAC two packets


@contextmanager
def open_track(raw: BinaryIO, name: Path, track: int | None, reason: str | None) -> Iterator[Track]:
    """An audio track of a file: number `track` from 1, or else the default one, or the first.

    name:   what the file is called, for advice.
    reason: why libsndfile cannot read it, if it should have.
    raises: AudioError, also out of the with block, for what cannot be decoded.
    """
    shown, plain = name.name or "FILE", (name.stem or "FILE") + ".wav"
    try:
        import av
    except ImportError:
        if reason is not None:
            got = f"expected audio that can be decoded, got: {reason}; if it is a recording of another kind, it"
        else:
            got = f"reading {name.suffix or 'this kind of file'}"
        raise AudioError(
            f"{got} needs PyAV; in a clone of this project: pip install '.[containers]'; "
            f"or convert it: ffmpeg -i {shown} {plain}"
        ) from None
    try:
        raw.seek(0)
        # As a file object: FFmpeg would take a name with a colon for an address, and names may be no valid text.
        container = av.open(raw, "r", metadata_errors="replace", container_options={"format_whitelist": _DEMUXERS})
    except (av.FFmpegError, OSError) as error:
        if reason is None:
            raise _damage(error, shown, plain) from None
        raise AudioError(
            f"expected audio that can be decoded, got: {reason}; check that it is a recording, and copy or download it again"
        ) from None
    with container:
        tracks = container.streams.audio
        if not tracks:
            raise AudioError("expected audio, but the file has no audio track")
        if track is not None and not 1 <= track <= len(tracks):
            raise AudioError(f"expected track {track}, got a file with {len(tracks)}: {_describe(tracks)}")
        defaults = [stream for stream in tracks if av.stream.Disposition.default in stream.disposition]
        chosen = tracks[track - 1] if track else (defaults or tracks)[0]
        try:
            opened = Track(container, chosen)
            if len(tracks) > 1 and track is None:
                opened.notes.append(
                    f"it has {len(tracks)} audio tracks: {_describe(tracks)}; track {tracks.index(chosen) + 1} was taken, "
                    "--track takes another"
                )
            yield opened
        except (av.FFmpegError, OSError) as error:
            raise _damage(error, shown, plain) from None


def _damage(error: Exception, shown: str, plain: str) -> AudioError:
    reason = str(getattr(error, "strerror", None) or error).rstrip(".")
    return AudioError(
        f"damaged, or no audio that can be decoded: {reason}; copy or download the file again, "
        f"or convert it: ffmpeg -i {shown} {plain}"
    )


def _describe(tracks: Sequence[AudioStream]) -> str:
    """The tracks in words, such as: 1 English, 2 deu commentary."""
    shown = []
    for number, stream in enumerate(tracks, start=1):
        named = [stream.metadata.get(key, "") for key in ("language", "title")]
        shown.append(" ".join([str(number), *(name for name in named if name and name != "und")]))
    return ", ".join(shown)


class Track:
    """One audio track, to be read once. sample_rate: Hz; format: container and codec."""

    name = ""

    def __init__(self, container: InputContainer, stream: AudioStream) -> None:
        self.notes: list[str] = []
        self._container, self._stream = container, stream
        self._origin_s = (container.start_time or 0) / 1_000_000
        self._kind = container.format.name.split(",")[0]
        self._frames = self._decode()
        first = next(self._frames, None)
        if first is None:
            raise AudioError("expected audio, but the audio track holds no samples")
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

    def streams(self, offset_s: float, duration_s: float | None) -> Iterator[tuple[int, Iterator[np.ndarray]]]:
        yield self.sample_rate, self._samples(offset_s, duration_s)

    def _samples(self, offset_s: float, duration_s: float | None) -> Iterator[np.ndarray]:
        """The track from offset_s on, as pieces (n, channels) float32 at sample_rate.

        Where the track starts late or pauses, as in a video, there is silence: times remain those of the video.
        raises: AudioError if the part does not exist or the track is damaged.
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
            frames = self._decode()
            at = start  # what comes before is not asked for, what comes later is silence before it
        jumped = at > 0
        for frame in frames:
            if frame.sample_rate != rate:
                raise AudioError(f"expected one sample rate, got {rate} Hz and later {frame.sample_rate} Hz")
            stamp = at if frame.time is None else round((frame.time - self._origin_s) * rate)
            if jumped:
                at, jumped = min(stamp, start), False
            if stamp - at > _LONGEST_GAP_S * rate:
                raise AudioError(f"damaged: its time stamps jump by {(stamp - at) / rate:.0f} s")
            silence = stamp - at if stamp - at > _GAP_S * rate else 0
            for samples in itertools.chain(_zeros(silence, rate, self.channels), [_samples(frame)]):
                wanted = samples[max(0, start - at) : max(0, int(min(end - at, len(samples))))]
                at += len(samples)
                if len(wanted):
                    yield wanted
            if at >= end:
                return
        if at <= start:
            raise AudioError(f"expected audio at {offset_s:.2f} s, but the track ends at {self.duration_s():.2f} s")
        announced_s = self._announced_s()
        if announced_s is not None and at < (announced_s - _LOSS_S) * rate:
            raise AudioError(
                f"cut short or damaged: expected {announced_s:.2f} s of audio, could decode {at / rate:.2f} s; "
                "copy or download the file again"
            )

    def _decode(self) -> Iterator[AudioFrame]:
        """The frames from where the container stands. A damaged packet is left out; many are an error."""
        from av.error import InvalidDataError

        lost_s = 0.0
        for packet in self._container.demux(self._stream):
            try:
                yield from packet.decode()
            except InvalidDataError:
                time_base = packet.time_base or 0
                lost_s += float((packet.duration or 0) * time_base) or _PACKET_S
                if lost_s > TOLERANCE_S:
                    raise

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


def _samples(frame: AudioFrame) -> np.ndarray:
    """(n, channels) float32, full scale +-1."""
    samples: np.ndarray = frame.to_ndarray()
    if frame.format.is_planar:
        samples = samples.T
    samples = samples.reshape(-1, len(frame.layout.channels))
    if np.issubdtype(samples.dtype, np.unsignedinteger):  # 8 bits, with their zero in the middle
        samples = (samples.astype(np.float32) - 128) / 128
    elif np.issubdtype(samples.dtype, np.integer):
        samples = samples / np.float32(-float(np.iinfo(samples.dtype).min))
    return np.asarray(samples, dtype=np.float32)


def _zeros(count: int, rate: int, channels: int) -> Iterator[np.ndarray]:
    """Silence in pieces of a second."""
    for start in range(0, count, rate):
        yield np.zeros((min(rate, count - start), channels), np.float32)
