import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from asr import audio
from asr.audio import AudioError

DATA = Path(__file__).parent / "data"
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


PROSE = b"This is a letter, not a sound.\n" * 200
BAD = {
    "folder.wav": (None, "got a folder"),
    "empty.wav": (b"", "empty file"),
    "text.wav": (PROSE, "can be decoded, got: Format not recognised"),
    "text.mp3": (PROSE, "can be decoded, got: data of another kind"),
    "text.au": (PROSE, "headerless data"),
    "samples.raw": (bytes(1000), "headerless data"),
    "song.m4a": (b"\0\0\0\x20ftypM4A " + bytes(500), "convert it first: ffmpeg -i song.m4a song.wav"),
    "only_header.wav": (lambda folder: encoded(folder, "a.wav", tone())[:44], "cut short"),
    "no_samples.wav": (lambda folder: encoded(folder, "a.wav", tone()[:0]), "holds no samples"),
    "cut.wav": (cut("a.wav", 0.5), "cut short"),
    "cut_at_the_end.wav": (cut("a.wav", 0.999), "cut short"),
    "cut.aiff": (cut("a.aiff", 0.5), "cut short"),
    "cut.au": (cut("a.au", 0.5), "cut short"),
    "cut.w64": (cut("a.w64", 0.5), "cut short"),
    "cut.flac": (cut("a.flac", 0.5), "cut short or damaged"),
    "cut_at_the_end.flac": (cut("a.flac", 0.97), "cut short or damaged"),
    "piped.flac": (of_unknown_length, "length"),
    "cut.ogg": (cut("a.ogg", 0.6), "cut short"),
    "cut.opus": (cut("a.opus", 0.6), "cut short"),
    "cut_in_header.opus": (cut("a.opus", 0.002), "expected audio"),
    "cut.mp3": (cut("a.mp3", 0.6), "expected 3.00 s of audio, could decode 1."),
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
    "7_jackson_0.wav": (6914, 0.0),
    "3_nicolas_0.wav": (5288, 0.0),
    "000030012.opus": (53_760, 0.0),
    "common_voice_en_40232593.mp3": (38_016, 120.0),  # its header promises 120 samples more than it holds
}


@pytest.mark.parametrize("name", RECORDINGS)
def test_real_recordings(name: str) -> None:
    samples, surplus = RECORDINGS[name]
    waveform = audio.read(DATA / name)
    assert len(waveform) == samples
    assert audio.info(DATA / name).duration_s * RATE - samples == pytest.approx(surplus)
    assert 0.005 < np.sqrt(np.mean(waveform**2)) < 0.3


@pytest.mark.parametrize("name", RECORDINGS)
@settings(max_examples=15, deadline=None)
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


@settings(max_examples=30, deadline=None)
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
        samples = np.array([limits.min, (int(limits.max) + int(limits.min) + 1) // 2, limits.max], dtype)
    else:
        samples = np.array([-1, 0, 1], dtype)
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
        (np.zeros(5), 0, "above 0"),
    ],
)
def test_as_waveform_refuses(samples: np.ndarray, rate: int, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        audio.as_waveform(samples, rate)


@settings(max_examples=50)
@given(samples=st.integers(1, 5000), shift=st.integers(1, 640), extra=st.integers(0, 2000))
def test_pad_gives_a_frame_for_each_shift(samples: int, shift: int, extra: int) -> None:
    waveform = np.ones(samples, np.float32)
    padded = audio.pad(waveform, shift + extra, shift)
    frames = (len(padded) - (shift + extra)) // shift + 1
    assert frames == -(-samples // shift)
    left = extra // 2
    np.testing.assert_array_equal(padded[left : left + samples], waveform)
    assert np.count_nonzero(padded) == samples
