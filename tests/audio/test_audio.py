import io
import math
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, cast

import av
import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from asr import audio
from asr.audio import AudioError

DATA = Path(__file__).parents[1] / "data"
RATE = audio.SAMPLE_RATE


def tone(rate: int = RATE, seconds: float = 1.0, hertz: float = 440.0, level: float = 0.5) -> np.ndarray:
    """(N,) float32: a sine with a little noise, so that no codec finds it trivial."""
    at = np.arange(round(rate * seconds)) / rate
    noise = 0.01 * np.random.default_rng(0).standard_normal(len(at))
    return (level * np.sin(2 * np.pi * hertz * at) + noise).astype(np.float32)


def loudest_hertz(waveform: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(np.argmax(spectrum)) * RATE / len(waveform)


def encoded(folder: Path, name: str, samples: np.ndarray, rate: int = RATE, **options: str) -> bytes:
    path = folder / f"whole-{name}"
    if name.endswith(".opus"):
        options = {"format": "OGG", "subtype": "OPUS"}
    soundfile.write(path, samples, rate, **options)
    return path.read_bytes()


def cut(name: str, share: float) -> Callable[[Path], bytes]:
    def content(folder: Path) -> bytes:
        whole = encoded(folder, name, tone(seconds=3))
        return whole[: int(len(whole) * share)]

    return content


def with_value(value: float) -> Callable[[Path], bytes]:
    def content(folder: Path) -> bytes:
        samples = tone()
        samples[1234] = value
        return encoded(folder, "float.wav", samples, subtype="FLOAT")

    return content


def of_unknown_length(folder: Path) -> bytes:
    """FLAC as written to a pipe: the 36 bits of the header that hold the number of samples are zero."""
    data = bytearray(encoded(folder, "piped.flac", tone()))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    return bytes(data)


def contained(
    folder: Path,
    name: str,
    codec: str | None,
    samples: np.ndarray | None = None,
    rate: int = 48_000,
    *,
    late: int = 0,
    video: bool = False,
    faststart: bool = False,
    live: bool = False,
) -> bytes:
    """A container as FFmpeg writes it. late: samples by which the second half comes later than the first ends.

    live: as a browser writes a recording, without lengths.
    """
    samples = tone(rate, 3.0) if samples is None else samples
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    path = folder / f"made-{name}"
    options = {"movflags": "+faststart"} if faststart else {"live": "1"} if live else {}
    formats = {".m4a": "ipod", ".aac": "adts", ".wma": "asf"}
    with av.open(str(path), "w", format=formats.get(path.suffix), options=options) as file:
        packets: list[Any] = []  # kept back: the header is right only when all encoders are open
        if video:
            pictures = file.add_stream("mpeg4", rate=25, width=64, height=64, pix_fmt="yuv420p")
        if codec is not None:
            layout = {1: "mono", 2: "stereo"}[channels]
            track: Any = file.add_stream(codec, rate=rate, layout=layout)
            track.bit_rate = 64_000 * channels
            converter = av.AudioResampler(format=track.format.name, layout=layout, rate=rate)
            half = len(samples) // 2
            for start, part in ((0, samples[:half]), (half + late, samples[half:])):
                frame = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(part.reshape(len(part), -1).T), format="fltp", layout=layout
                )
                frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), start
                for converted in converter.resample(frame):
                    packets += track.encode(converted)
            for converted in converter.resample(None):
                packets += track.encode(converted)
            packets += track.encode(None)
        if video:
            for number in range(25):
                picture = av.VideoFrame(64, 64, "yuv420p")
                picture.pts, picture.time_base = number, Fraction(1, 25)
                packets += pictures.encode(picture)
            packets += pictures.encode(None)
        file.mux(packets)
    return path.read_bytes()


def blanked(data: bytes) -> bytes:
    """A file of which a part never arrived."""
    third = len(data) // 3
    return data[:third] + bytes(third) + data[2 * third :]


PROSE = b"This is a letter, not a sound.\n" * 200
BAD = {
    "folder.wav": (None, "got a folder"),
    "empty.wav": (b"", "empty file"),
    "text.wav": (PROSE, "can be decoded, got: Format not recognised"),
    "text.mp3": (PROSE, "can be decoded, got: Format not recognised"),
    "text.au": (PROSE, "can be decoded, got: Format not recognised"),
    "samples.raw": (bytes(1000), "headerless data"),
    "song.m4a": (b"\0\0\0\x20ftypM4A " + bytes(500), "convert it: ffmpeg -i song.m4a song.wav"),
    "text.m4a": (PROSE, "can be decoded, got: Format not recognised"),
    "playlist.mp4": (b"#EXTM3U\n#EXTINF:1,\nhttp://localhost/a.aac\n", "can be decoded, got: Format not recognised"),
    "empty.mkv": (b"", "empty file"),
    "cut.m4a": (lambda folder: contained(folder, "a.m4a", "aac")[:-500], "cut short: its headers announce"),
    "cut_fast.mp4": (lambda folder: contained(folder, "a.mp4", "aac", faststart=True)[:-500], "cut short: its headers"),
    "cut.mkv": (lambda folder: contained(folder, "a.mkv", "libopus")[:-500], "cut short: its headers announce"),
    "cut.webm": (lambda folder: contained(folder, "a.webm", "libopus")[:9000], "cut short: its headers announce"),
    "cut.wma": (lambda folder: contained(folder, "a.wma", "wmav2")[:-500], "cut short: its headers announce"),
    "zeros_within.mp4": (lambda folder: blanked(contained(folder, "a.mp4", "aac")), "damaged"),
    "silent_film.mp4": (lambda folder: contained(folder, "a.mp4", None, video=True), "no audio track"),
    "only_header.wav": (lambda folder: encoded(folder, "a.wav", tone())[:44], "cut short"),
    "no_samples.wav": (lambda folder: encoded(folder, "a.wav", tone()[:0]), "holds no samples"),
    "cut.wav": (cut("a.wav", 0.5), "cut short"),
    "cut_near_the_end.wav": (cut("a.wav", 0.95), "cut short"),
    "cut.aiff": (cut("a.aiff", 0.5), "cut short"),
    "cut.au": (cut("a.au", 0.5), "cut short"),
    "cut.w64": (cut("a.w64", 0.5), "cut short"),
    "cut.flac": (cut("a.flac", 0.5), "cut short or damaged"),
    "cut_at_the_end.flac": (cut("a.flac", 0.97), "cut short or damaged"),
    "cut.ogg": (cut("a.ogg", 0.6), "cut short"),
    "cut.opus": (cut("a.opus", 0.6), "cut short"),
    "cut_in_header.opus": (cut("a.opus", 0.002), "audio that can be decoded"),
    "cut.mp3": (cut("a.mp3", 0.6), "its header announces 3.10 s of audio, the file has 1.8"),
    "blanked.mp3": (lambda folder: blanked(encoded(folder, "a.mp3", tone(seconds=5))), "are no MP3"),
    "nan.wav": (with_value(float("nan")), "1 that are NaN or infinite"),
    "inf.wav": (with_value(float("-inf")), "1 that are NaN or infinite"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    path = tmp_path / name
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content(tmp_path) if callable(content) else content)
    with pytest.raises(AudioError) as caught:
        audio.read(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file() -> None:
    with pytest.raises(AudioError, match=r"nowhere/a\.wav: no such file"):
        audio.read("nowhere/a.wav")


def test_impossible_name() -> None:
    with pytest.raises(AudioError, match="cannot be read"):
        audio.read("a\0b.wav")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(), RATE)
    path.chmod(0)
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # root may read anything

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(AudioError, match="no permission"):
        audio.read(path)


def test_a_writer_that_did_not_know_the_length(tmp_path: Path) -> None:
    """Programs that write wav to a pipe leave the largest number as the length: the file's end counts then."""
    data = bytearray(encoded(tmp_path, "a.wav", tone()))
    data[4:8] = data[40:44] = b"\xff" * 4
    (tmp_path / "piped.wav").write_bytes(data)
    assert len(audio.read(tmp_path / "piped.wav")) == RATE


def test_only_missing_samples_are_missed(tmp_path: Path) -> None:
    """Neither a wrong total size nor a lost chunk behind the samples takes anything from the sound."""
    data = bytearray(encoded(tmp_path, "a.wav", tone()))
    data[4:8] = (len(data) + 100).to_bytes(4, "little")
    (tmp_path / "odd.wav").write_bytes(data)
    assert len(audio.read(tmp_path / "odd.wav")) == RATE


@pytest.mark.parametrize(
    ("name", "rate", "channels", "options"),
    [
        ("phone.wav", 8000, 1, {}),
        ("cd.wav", 44_100, 2, {}),
        ("studio.wav", 192_000, 1, {"subtype": "PCM_24"}),
        ("surround.wav", 48_000, 6, {"subtype": "FLOAT"}),
        ("double.wav", 16_000, 1, {"subtype": "DOUBLE"}),
        ("bytes.wav", 16_000, 1, {"subtype": "PCM_U8"}),
        ("mu-law.wav", 8000, 1, {"subtype": "ULAW"}),
        ("a.flac", 22_050, 2, {}),
        ("a.ogg", 32_000, 1, {}),
        ("a.opus", 48_000, 2, {}),
        ("a.mp3", 44_100, 2, {}),
        ("a.aiff", 16_000, 1, {}),
        ("a b's (1).wav", 16_000, 1, {}),
        ("two\nlines.wav", 16_000, 1, {}),
        ("Grüße 語音 🎤.flac", 16_000, 1, {}),
        ("UPPER.WAV", 16_000, 1, {}),
    ],
)
def test_good_input(tmp_path: Path, name: str, rate: int, channels: int, options: dict[str, str]) -> None:
    samples = np.repeat(tone(rate)[:, None], channels, axis=1)
    path = tmp_path / "a"
    path.write_bytes(encoded(tmp_path, name, samples, rate, **options))
    path = path.rename(tmp_path / name)
    waveform = audio.read(path)
    info = audio.info(path)
    assert waveform.dtype == np.float32
    assert waveform.shape == (RATE,)
    assert loudest_hertz(waveform) == pytest.approx(440, abs=1)
    assert np.abs(waveform[1000:-1000]).max() == pytest.approx(0.5, abs=0.08)
    assert (info.sample_rate, info.channels) == (rate, channels)
    assert info.duration_s == pytest.approx(1.0, abs=0.1)


@pytest.mark.skipif(os.name == "nt", reason="names are bytes on POSIX only")
def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))
    try:
        path.write_bytes(encoded(tmp_path, "a.wav", tone()))
    except OSError:
        pytest.skip("this file system takes only Unicode names")
    assert len(audio.read(path)) == RATE


def test_content_counts_and_not_the_name(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(encoded(tmp_path, "a.flac", tone()))
    assert len(audio.read(tmp_path / "a.wav")) == RATE


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = tone(hertz=300), tone(hertz=900)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), RATE, subtype="FLOAT")
    np.testing.assert_allclose(audio.read(tmp_path / "a.wav"), (left + right) / 2, atol=1e-7)


RECORDINGS = {
    "7_jackson_0.wav": 6914,
    "3_nicolas_0.wav": 5288,
    "000030012.opus": 53_760,
    "common_voice_en_40232593.mp3": 38_016,
}


@pytest.mark.parametrize("name", RECORDINGS)
def test_real_recordings(name: str) -> None:
    waveform = audio.read(DATA / name)
    assert len(waveform) == RECORDINGS[name]
    assert audio.info(DATA / name).duration_s * RATE == pytest.approx(RECORDINGS[name])
    assert 0.005 < np.sqrt(np.mean(waveform**2)) < 0.3


@pytest.mark.parametrize("name", RECORDINGS)
@settings(max_examples=15)
@given(block_s=st.floats(0.0005, 6.0))
def test_blocks_joined_are_the_whole(name: str, block_s: float) -> None:
    pieces = list(audio.blocks(DATA / name, block_s=block_s))
    np.testing.assert_array_equal(np.concatenate(pieces), audio.read(DATA / name))
    size = max(1, round(block_s * RATE))
    assert all(len(piece) == size for piece in pieces[:-1])
    assert 0 < len(pieces[-1]) <= size


@pytest.mark.parametrize("suffix", ["wav", "opus", "mp3"])
def test_blocks_of_a_file_longer_than_a_piece(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(encoded(tmp_path, path.name, tone(seconds=11)))
    whole = audio.read(path)
    assert len(whole) == 11 * RATE
    for block_s in (0.001, 1.0, 7.7, 100.0):
        np.testing.assert_array_equal(np.concatenate(list(audio.blocks(path, block_s=block_s))), whole)


@settings(max_examples=30)
@given(rate=st.sampled_from([8000, 11_025, 22_050, 44_100, 48_000, 192_000]), samples=st.integers(20, 150_000))
def test_resampled_in_pieces_as_in_one(tmp_path_factory: pytest.TempPathFactory, rate: int, samples: int) -> None:
    path = tmp_path_factory.mktemp("audio") / "a.wav"
    waveform = np.random.default_rng(samples).uniform(-0.5, 0.5, samples).astype(np.float32)
    soundfile.write(path, waveform, rate, subtype="FLOAT")
    got = audio.read(path)
    assert len(got) == (2 * samples * RATE + rate) // (2 * rate)  # rounded, a half upwards
    np.testing.assert_allclose(got, soxr.resample(waveform, rate, RATE), atol=1e-5)
    np.testing.assert_array_equal(audio.resample(waveform, rate, RATE), soxr.resample(waveform, rate, RATE))


@pytest.mark.parametrize("name", ["7_jackson_0.wav", "000030012.opus", "common_voice_en_40232593.mp3"])
def test_a_part_of_a_file(name: str) -> None:
    rate = audio.info(DATA / name).sample_rate
    whole = audio.read(DATA / name, sample_rate=rate)
    part = audio.read(DATA / name, offset_s=0.1, duration_s=0.25, sample_rate=rate)
    start = round(0.1 * rate)
    np.testing.assert_allclose(part, whole[start : start + round(0.25 * rate)], atol=2e-3)  # Opus settles after a jump
    assert len(audio.read(DATA / name, offset_s=0.1, duration_s=99, sample_rate=rate)) == len(whole) - start
    assert len(audio.read(DATA / name, duration_s=0.25)) == 0.25 * RATE


@pytest.mark.parametrize(
    ("offset_s", "duration_s", "message"),
    [
        (99.0, None, "expected audio at 99.00 s, but the file ends at 0.43 s"),
        (-1.0, None, "offset >= 0"),
        (float("nan"), None, "offset >= 0"),
        (0.0, 0.0, "duration > 0"),
        (0.0, -1.0, "duration > 0"),
        (0.0, 1e-9, "too few"),
    ],
)
def test_no_such_part(offset_s: float, duration_s: float | None, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        audio.read(DATA / "7_jackson_0.wav", offset_s=offset_s, duration_s=duration_s)


def test_resampling_to_the_same_rate_is_still_float32() -> None:
    assert audio.resample(np.zeros(3), RATE, RATE).dtype == np.float32


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int32, np.uint16, np.float32, np.float64])
def test_as_waveform_knows_full_scale(dtype: type) -> None:
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        samples: np.ndarray = np.array([limits.min, (int(limits.max) + int(limits.min) + 1) // 2, limits.max], dtype)
    else:
        samples = np.array([-1, 0, 1]).astype(dtype)
    waveform = audio.as_waveform(samples, RATE)
    assert waveform.dtype == np.float32
    np.testing.assert_allclose(waveform, [-1, 0, 1], atol=0.01)


def test_as_waveform_averages_and_resamples() -> None:
    stereo = np.stack([tone(44_100), tone(44_100)], axis=1)
    waveform = audio.as_waveform(stereo, 44_100)
    assert waveform.shape == (RATE,)
    assert loudest_hertz(waveform) == pytest.approx(440, abs=1)


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (np.zeros(0), RATE, "N > 0"),
        (np.zeros((2, 2, 2)), RATE, "shape"),
        (np.zeros((1, 16_000)), RATE, "transpose"),
        (np.zeros(5, bool), RATE, "floats or integers"),
        (np.zeros(5, complex), RATE, "floats or integers"),
        (np.array([0, np.nan]), RATE, "1 that are NaN"),
        (np.array([0, 1e300]), RATE, "1 that are NaN"),
        (np.array([0, 26122.7]), RATE, r"from -1 to 1, got one of 3e\+04; divide them by 32768"),
        (np.zeros(5), 0, "from 1000 to 1000000 Hz, got 0"),
        (np.zeros(5), 1, "from 1000 to 1000000 Hz, got 1"),
        (np.zeros(5), math.nan, "from 1000 to 1000000 Hz, got nan"),
        (np.zeros(5), 1e12, "from 1000 to 1000000 Hz"),
        (np.zeros(5), "16000", "from 1000 to 1000000 Hz"),
        ([[0.0], [0.0, 0.0]], RATE, "an array of numbers, got list"),
        ([0, 120, -300], RATE, "of 8, 16 or 32 bits, got int64"),
        (None, RATE, "an array of numbers, got NoneType"),
        ("a.wav", RATE, "N > 0, got"),
    ],
)
def test_as_waveform_refuses(samples: object, rate: float, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        audio.as_waveform(samples, rate)


@settings(max_examples=50)
@given(samples=st.integers(1, 5000), shift=st.integers(1, 640), extra=st.integers(0, 2000))
def test_pad_gives_a_frame_for_each_shift(samples: int, shift: int, extra: int) -> None:
    waveform = np.ones(samples, np.float32)
    padded = audio.Geometry(shift + extra, shift).pad(waveform)
    frames = (len(padded) - (shift + extra)) // shift + 1
    assert frames == -(-samples // shift)
    left = extra // 2
    np.testing.assert_array_equal(padded[left : left + samples], waveform)
    assert np.count_nonzero(padded) == samples


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    length = min(len(a), len(b))
    return float(np.corrcoef(a[:length], b[:length])[0, 1])


@pytest.mark.parametrize(
    ("name", "codec", "rate", "channels", "options", "least"),
    [
        ("a.m4a", "aac", 44_100, 2, {}, 0.99),
        ("a.mp4", "aac", 48_000, 1, {"faststart": True}, 0.99),
        ("a.mov", "aac", 16_000, 2, {}, 0.99),
        ("lossless.m4a", "alac", 16_000, 1, {}, 0.999_999),
        ("film.mp4", "aac", 48_000, 2, {"video": True}, 0.99),
        ("a.webm", "libopus", 48_000, 1, {}, 0.99),
        ("a.mkv", "libopus", 48_000, 2, {"video": True}, 0.99),
        ("lossless.mkv", "flac", 44_100, 1, {}, 0.999_999),
        ("browser.webm", "libopus", 48_000, 2, {"live": True}, 0.99),
        ("a.aac", "aac", 48_000, 1, {}, None),  # delayed by a packet: nothing in the file says by how much
        ("a.wma", "wmav2", 44_100, 2, {}, None),
        ("Grüße: 語音 (1).m4a", "aac", 48_000, 1, {}, 0.99),
    ],
)
def test_containers(
    tmp_path: Path, name: str, codec: str, rate: int, channels: int, options: dict[str, bool], least: float | None
) -> None:
    source = tone(rate, 3.0)
    samples = source if channels == 1 else np.stack([source * 1.2, source * 0.8], axis=1)
    path = tmp_path / name
    path.write_bytes(contained(tmp_path, Path(name).suffix, codec, samples, rate, **options))
    waveform = audio.read(path)
    info = audio.info(path)
    assert waveform.dtype == np.float32
    assert len(waveform) / RATE == pytest.approx(3.0, abs=0.1)
    assert info.duration_s == pytest.approx(len(waveform) / RATE, abs=0.1)
    assert (info.sample_rate, info.channels) == (rate, channels)
    assert info.format.split("/")[1] == codec.removeprefix("lib")
    assert loudest_hertz(waveform) == pytest.approx(440, abs=1)
    assert np.abs(waveform[3000:-3000]).max() == pytest.approx(0.5, abs=0.08)
    if least is not None:
        assert similarity(waveform, audio.resample(source, rate, RATE)) > least
    np.testing.assert_array_equal(np.concatenate(list(audio.blocks(path, block_s=0.7))), waveform)
    part = audio.read(path, offset_s=1.5, duration_s=0.5)
    assert len(part) == 0.5 * RATE
    shifts = range(-10, 11)  # Matroska's time stamps are rounded to 1 ms
    assert max(similarity(part, waveform[24_000 + shift : 32_000 + shift]) for shift in shifts) > 0.98
    assert len(audio.read(path, offset_s=2.0, duration_s=99)) == pytest.approx(len(waveform) - 2 * RATE, abs=16)
    with pytest.raises(AudioError, match=r"expected audio at 9\.00 s, but the track ends at 3\.0"):
        audio.read(path, offset_s=9)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "aac"), ("a.mkv", "libopus")])
def test_a_pause_in_the_track_keeps_its_length(tmp_path: Path, name: str, codec: str) -> None:
    path = tmp_path / name
    path.write_bytes(contained(tmp_path, name, codec, late=48_000))
    waveform = audio.read(path)
    assert len(waveform) / RATE == pytest.approx(4.0, abs=0.1)
    assert np.abs(waveform[round(1.6 * RATE) : round(2.4 * RATE)]).max() < 1e-3
    part = audio.read(path, offset_s=2.0, duration_s=1.0)
    assert len(part) == RATE
    assert np.abs(part[: RATE // 3]).max() < 1e-3
    assert similarity(part[RATE * 3 // 4 :], waveform[RATE * 11 // 4 :]) > 0.9 or codec == "libopus"


def test_a_container_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(contained(tmp_path, "a.m4a", "aac"))
    assert audio.info(tmp_path / "a.wav").format == "mov/aac"
    (tmp_path / "b.m4a").write_bytes(encoded(tmp_path, "a.flac", tone()))
    assert audio.info(tmp_path / "b.m4a").format == "FLAC/PCM_16"


def test_an_appended_tag_is_no_loss(tmp_path: Path) -> None:
    path = tmp_path / "a.m4a"
    path.write_bytes(contained(tmp_path, "a.m4a", "aac") + b"TAG" + b"A title" * 20)
    assert len(audio.read(path)) == pytest.approx(3 * RATE, abs=0.1 * RATE)


@pytest.mark.parametrize("suffix", [".m4a", ".mp4", ".mov", ".webm", ".mkv", ".aac", ".wma"])
def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / f"a{suffix}").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(12))
    assert suffix in audio.SUFFIXES
    for reader in (audio.read, audio.info):
        with pytest.raises(
            AudioError,
            match=r"a\.\w+: reading .* needs PyAV; in a clone of this project: pip install '\.\[containers\]'",
        ):
            reader(tmp_path / f"a{suffix}")


class Trickle(io.RawIOBase):
    """A pipe that gives a few bytes at a time, from 1 to most."""

    def __init__(self, data: bytes, most: int) -> None:
        self._data, self._most, self._random = io.BytesIO(data), most, random.Random(0)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        assert size > 0, "reads all of a stream that may never end"
        return self._data.read(min(size, self._random.randint(1, self._most)))


def trickle(data: bytes, most: int) -> BinaryIO:
    return cast(BinaryIO, Trickle(data, most))


def chunk(name: bytes, content: bytes, length: int | None = None) -> bytes:
    size = len(content) if length is None else length
    return name + struct.pack("<I", size) + content + bytes(len(content) % 2)


KINDS: dict[tuple[int, bool], tuple[Any, int, int]] = {  # bits, float? -> (dtype, full scale, zero)
    (8, False): (np.uint8, 128, 128),
    (16, False): ("<i2", 2**15, 0),
    (24, False): (None, 2**23, 0),
    (32, False): ("<i4", 2**31, 0),
    (32, True): ("<f4", 1, 0),
    (64, True): ("<f8", 1, 0),
}


def stream(
    samples: np.ndarray,
    bits: int = 16,
    floats: bool = False,
    *,
    rate: int = RATE,
    length: int | None = None,
    before: bytes = b"",
    after: bytes = b"",
    extensible: bool = False,
    tag: int | None = None,
) -> bytes:
    """A wav stream written byte by byte. length: what the header says instead of the true number of bytes."""
    dtype, scale, zero = KINDS[bits, floats]
    values = samples.astype(np.float64) * scale + zero
    if dtype is None:
        data = np.round(values).astype("<i4").reshape(-1, 1).view(np.uint8)[:, :3].tobytes()
    else:
        data = (values if floats else np.round(values)).astype(dtype).tobytes()
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    frame = channels * bits // 8
    kind = (3 if floats else 1) if tag is None else tag
    form = struct.pack("<HHIIHH", 0xFFFE if extensible else kind, channels, rate, rate * frame, frame, bits)
    if extensible:
        guid = struct.pack("<H", kind) + bytes.fromhex("000000001000800000aa00389b71")
        form += struct.pack("<HHI", 22, bits, 0) + guid
    body = b"WAVE" + before + chunk(b"fmt ", form) + chunk(b"data", data, length) + after
    return b"RIFF" + struct.pack("<I", 0xFFFFFFFF if length is not None else len(body)) + body


LIST = chunk(b"LIST", b"INFOISFT" + struct.pack("<I", 13) + b"Lavf62.12.10\0\0")
ODD = chunk(b"note", b"odd")
HEADERS: dict[str, dict[str, Any]] = {
    "true length": {},
    "ffmpeg": {"length": 0xFFFFFFFF, "before": LIST},
    "sox": {"length": 0x7FFFF000},
    "arecord": {"length": 0x80000000},
    "zero length": {"length": 0},
    "odd chunk before": {"before": ODD + LIST},
    "large chunk before": {"before": chunk(b"junk", bytes(100_001))},
    "chunks after": {"after": LIST + ODD},
    "end within a chunk after": {"after": LIST[:11]},
    "extensible": {"extensible": True},
    "8 bits": {"bits": 8},
    "24 bits": {"bits": 24},
    "32 bits": {"bits": 32, "extensible": True},
    "float": {"bits": 32, "floats": True},
    "double": {"bits": 64, "floats": True, "extensible": True, "length": 0xFFFFFFFF},
}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize(("channels", "rate", "most"), [(1, RATE, 5000), (2, 44_100, 999), (6, 8000, 70_000)])
def test_pipe(name: str, channels: int, rate: int, most: int) -> None:
    source = tone(rate, 0.5)
    samples = source if channels == 1 else source[:, None] * np.linspace(0.5, 1.5, channels)
    data = stream(samples, rate=rate, **HEADERS[name])
    waveform = np.concatenate(list(audio.pipe_blocks(trickle(data, most), block_s=0.1)))
    assert waveform.dtype == np.float32
    expected = audio.resample(source, rate, RATE)
    assert len(waveform) == len(expected)
    np.testing.assert_allclose(waveform, expected, atol=0.02 if name == "8 bits" else 1e-4)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("format", ["WAV", "WAVEX", "RF64"])
def test_pipe_and_file_give_the_same(tmp_path: Path, subtype: str, format: str) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([tone(hertz=300), tone(hertz=900)], axis=1), RATE, subtype=subtype, format=format)
    waveform = np.concatenate(list(audio.pipe_blocks(io.BytesIO(path.read_bytes()))))
    np.testing.assert_allclose(waveform, audio.read(path), atol=1e-7)


@settings(max_examples=30)
@given(
    most=st.integers(1, 3000),
    block_s=st.floats(0.001, 2.0),
    rate=st.sampled_from([8000, RATE, 44_100]),
    spare=st.integers(0, 1),
)
def test_raw_pipe(most: int, block_s: float, rate: int, spare: int) -> None:
    values = np.round(tone(rate, 0.1) * 2**15).astype("<i2")
    pieces = list(audio.pipe_blocks(trickle(values.tobytes() + b"x" * spare, most), rate=rate, block_s=block_s))
    size = max(1, round(block_s * RATE))
    assert all(len(piece) == size for piece in pieces[:-1])
    assert 0 < len(pieces[-1]) <= size
    expected = audio.resample(values.astype(np.float32) / 2**15, rate, RATE)
    np.testing.assert_allclose(np.concatenate(pieces), expected, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7])
def test_raw_pipe_of_a_few_samples(count: int) -> None:
    values = np.arange(1, count + 1, dtype="<i2")
    waveform = np.concatenate(list(audio.pipe_blocks(io.BytesIO(values.tobytes()), rate=RATE)))
    np.testing.assert_array_equal(waveform * 2**15, values)


BAD_PIPES: dict[str, tuple[bytes, int | None, str]] = {
    "nothing": (b"", None, "empty stream"),
    "nothing raw": (b"", 8000, "empty stream"),
    "half a sample": (b"x", 16_000, "too few"),
    "text": (
        PROSE,
        None,
        "and copy or download it again; of raw samples, --rate tells how many a second",
    ),
    "mp3": (b"ID3\x04" + bytes(100), None, "can be decoded"),
    "wav as raw": (stream(tone()), 16_000, "leave out --rate"),
    "no rate": (b"abcd", 0, "from 1000 to 1000000 Hz, got 0"),
    "negative rate": (b"abcd", -8000, "from 1000 to 1000000 Hz, got -8000"),
    "within the header": (stream(tone())[:30], None, "ends within its wav header"),
    "header only": (stream(tone(), length=0)[:44], None, "no samples"),
    "no format": (b"RIFF\0\0\0\0WAVE" + chunk(b"data", bytes(100)), None, "expected a fmt chunk"),
    "short format": (b"RIFF\0\0\0\0WAVE" + chunk(b"fmt ", bytes(4)), None, "expected a fmt chunk of 16 bytes"),
    "unknown format": (stream(tone(), tag=0x1234), None, "can be decoded"),
    "16-bit float": (stream(tone(), 16, tag=3), None, "got 16 bits, 1 channels"),
    "rate of zero": (stream(tone(), rate=0), None, "0 Hz"),
    "nan": (stream(np.array([0, math.nan, 0]), 32, True), None, "1 that are NaN or infinite"),
    "too large": (stream(np.array([0, 1e300, 0]), 64, True), None, "1 that are NaN or infinite"),
}


@pytest.mark.parametrize("name", BAD_PIPES)
def test_bad_pipe(name: str) -> None:
    data, rate, message = BAD_PIPES[name]
    with pytest.raises(AudioError) as caught:
        list(audio.pipe_blocks(trickle(data, 1000), rate=rate))
    assert str(caught.value).startswith("the pipe: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rate", [RATE, 48_000])
def test_pipe_cut_short_gives_what_came_first(rate: int) -> None:
    blocks = audio.pipe_blocks(trickle(stream(tone(rate, 2.0), rate=rate)[: 44 + 2 * rate + 1], 9999), block_s=0.3)
    came = 0
    with pytest.raises(AudioError, match=r"announces 2\.00 s of audio, the stream ended after 1\.00 s"):  # noqa: PT012
        for block in blocks:
            came += len(block)
    assert came == RATE


def test_pipe_that_does_not_wait() -> None:
    class Impatient(io.RawIOBase):
        def read(self, size: int = -1) -> None:
            return None

    with pytest.raises(AudioError, match="non-blocking"):
        list(audio.pipe_blocks(cast(BinaryIO, Impatient())))


def test_a_real_pipe_gives_blocks_while_it_is_open() -> None:
    script = """
import sys, time
data = sys.stdin.buffer.read()
sys.stdout.buffer.write(data[:20_044]); sys.stdout.buffer.flush()
time.sleep(2)
sys.stdout.buffer.write(data[20_044:])
"""
    data = stream(tone(), length=0xFFFFFFFF)
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdin.write(data)
        writer.stdin.close()
        blocks = audio.pipe_blocks(cast(BinaryIO, writer.stdout), block_s=0.5)
        first = next(blocks)
        then = time.monotonic()
        rest = list(blocks)
        waited = time.monotonic() - then
    assert waited > 1, "the first block came only with the last"
    np.testing.assert_allclose(np.concatenate([first, *rest]), tone(), atol=1e-4)
