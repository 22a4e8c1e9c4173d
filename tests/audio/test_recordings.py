"""Recordings as they are: joined, with wrong headers, with several tracks, with channels that cancel each other."""

from __future__ import annotations

import io
import logging
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from conftest import DATA, Cli

from asr import Recognizer, audio
from asr.audio import AudioError

RATE = 16_000
SEVEN = DATA / "7_jackson_0.wav"
TEXT = "five seven nine zero"
MP3 = DATA / "common_voice_en_40232593.mp3"


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return Recognizer("digits", beam=1)


@pytest.fixture(scope="module")
def spoken() -> np.ndarray:
    """(N,) float32 at 16 kHz: the four digits."""
    return audio.read(DATA / "connected_digits.flac")[:72_000]


@pytest.fixture(scope="module")
def seven() -> np.ndarray:
    return audio.read(SEVEN)


def encoded(samples: np.ndarray, name: str, rate: int = RATE, **options: str) -> bytes:
    kinds = {"mp3": "MP3", "ogg": "OGG", "opus": "OGG", "flac": "FLAC", "wav": "WAV"}
    if name == "opus":
        options = {"subtype": "OPUS"}
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kinds[name], **options)
    return file.getvalue()


def contained(tracks: list[np.ndarray], format: str, codec: str, rate: int = RATE, default: int = 0) -> bytes:
    """The tracks in a container, by FFmpeg."""
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        streams: list[Any] = []
        for number, _ in enumerate(tracks):
            stream = container.add_stream(codec, rate=rate, layout="mono")
            stream.metadata["language"] = ("eng", "deu", "fra")[number]
            stream.disposition = av.stream.Disposition.default if number == default else av.stream.Disposition(0)
            streams.append(stream)
        packets: list[Any] = []
        for samples, stream in zip(tracks, streams, strict=True):
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(samples[None], np.float32), format="fltp", layout="mono"
            )
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
            converter = av.AudioResampler(format=stream.format.name, layout="mono", rate=rate)
            for each in [*converter.resample(frame), *converter.resample(None)]:
                packets += stream.encode(each)
            packets += stream.encode(None)
        container.mux(packets)
    return file.getvalue()


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """The correlation where they fit best: codecs delay."""
    size = 1 << (len(a) + len(b)).bit_length()
    products = np.fft.irfft(np.fft.rfft(a, size) * np.fft.rfft(b, size).conj())
    return float(products.max() / np.sqrt(np.sum(a.astype(np.float64) ** 2) * np.sum(b.astype(np.float64) ** 2)))


# --- MP3: how long it is ---


def variable(samples: np.ndarray) -> bytes:
    """An MP3 of variable bit rate without a header that tells its length, silence after speech: a guess is far off."""
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5)
    data = file.getvalue()
    at = data.find(b"Xing")
    at = at if at >= 0 else data.find(b"Info")
    assert at > 0
    start = data.rfind(b"\xff", 0, at)
    frame = next(at for at in range(start + 100, len(data)) if data[at : at + 2] == data[start : start + 2])
    return data[frame:]


ID3 = b"ID3\x03\0\0\0\0\x10\0" + b"APIC\0\0\x04\0\0\0" + b"\xff\xfb\x90\x64" * 32 + bytes(2048 - 138)
APE = b"APETAGEX" + struct.pack("<IIII8x", 2000, 64, 1, 0xA0000000) + b"\xff\xfb\x90\x64" + bytes(60)
AROUND: dict[str, tuple[bytes, bytes]] = {
    "nothing": (b"", b""),
    "a picture": (ID3, b""),
    "two tags": (ID3 + ID3, b""),
    "zeros behind a tag": (ID3 + bytes(5000), b""),
    "an APE tag": (APE, b""),
    "an APE tag and an old one at the end": (b"", APE + b"TAG" + bytes(125)),
    "other bytes": (bytes(range(256)) * 20, b""),
    "a part of a frame": (b"", b"\xff\xf3\x40\xc0" + bytes(9)),
}


@pytest.mark.parametrize("name", AROUND)
def test_mp3_of_variable_bit_rate(spoken: np.ndarray, tmp_path: Path, recognizer: Recognizer, name: str) -> None:
    before, after = AROUND[name]
    samples = np.concatenate([np.zeros(RATE, np.float32), spoken])  # begins with frames that are much shorter
    path = tmp_path / "a.mp3"
    path.write_bytes(before + variable(samples) + after)
    waveform = audio.read(path)
    assert len(waveform) == pytest.approx(len(samples), abs=0.15 * RATE)
    assert audio.info(path).duration_s * RATE == len(waveform)
    assert similarity(waveform, samples) > 0.98
    assert recognizer.transcribe(path).text == TEXT
    half = audio.read(path, offset_s=2.0, duration_s=1.0)
    np.testing.assert_allclose(half, waveform[2 * RATE : 3 * RATE], atol=2e-3)


def test_an_mp3_is_as_long_as_it_says_where_that_is_true(tmp_path: Path) -> None:
    (tmp_path / "a.mp3").write_bytes(encoded(np.sin(np.arange(30_000) / 10).astype(np.float32) / 2, "mp3"))
    assert len(audio.read(tmp_path / "a.mp3")) == 30_000
    assert audio.info(tmp_path / "a.mp3").duration_s * RATE == 30_000


def test_mp3_within_wav(tmp_path: Path) -> None:
    data = MP3.read_bytes()[45:]
    rate = audio.info(MP3).sample_rate
    form = struct.pack("<HHIIHHH", 0x55, 1, rate, 4000, 1, 0, 0)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    (tmp_path / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    np.testing.assert_array_equal(audio.read(tmp_path / "a.wav"), audio.read(MP3))


# --- files joined end to end ---


@pytest.mark.parametrize("kind", ["mp3", "ogg", "opus", "flac", "wav"])
@pytest.mark.parametrize("rates", [(16_000, 16_000), (16_000, 48_000)])
def test_joined_files(
    spoken: np.ndarray, seven: np.ndarray, tmp_path: Path, recognizer: Recognizer, kind: str, rates: tuple[int, int]
) -> None:
    parts = [audio.resample(samples, RATE, rate) for samples, rate in zip((seven, spoken), rates, strict=True)]
    path = tmp_path / f"a.{kind}"
    path.write_bytes(b"".join(encoded(samples, kind, rate) for samples, rate in zip(parts, rates, strict=True)))
    assert recognizer.transcribe(path).text == f"seven {TEXT}"
    whole = audio.read(path)
    slack = 0.15 * RATE if kind == "mp3" else 0
    assert len(whole) == pytest.approx(len(seven) + len(spoken), abs=slack)
    assert audio.info(path).duration_s == pytest.approx(len(whole) / RATE, abs=1e-3)
    offset = len(whole) - len(spoken)
    np.testing.assert_allclose(audio.read(path, offset_s=(offset + 8000) / RATE), whole[offset + 8000 :], atol=5e-3)
    across = audio.read(path, offset_s=(offset - 800) / RATE, duration_s=0.1)  # from one into the other
    assert len(across) == pytest.approx(1600, abs=1)
    with pytest.raises(AudioError, match=r"expected audio at 60\.00 s, but the file ends at"):
        audio.read(path, offset_s=60.0)


def test_the_same_file_twice(seven: np.ndarray, tmp_path: Path) -> None:
    for kind in ("mp3", "ogg", "opus", "flac", "wav"):
        once = encoded(seven, kind)
        (tmp_path / "a").write_bytes(once * 3)
        assert len(audio.read(tmp_path / "a")) == pytest.approx(3 * len(audio.read(once)), abs=0.2 * RATE)


def test_joined_wav_in_a_pipe(seven: np.ndarray) -> None:
    data = encoded(seven, "wav") + encoded(seven, "wav", 8000)  # the second twice as long
    came = np.concatenate(list(audio.pipe_blocks(io.BytesIO(data))))
    np.testing.assert_array_equal(came, audio.read(data))
    assert len(came) == 3 * len(seven)


# --- lengths in headers ---

SIZES: dict[str, tuple[Callable[[int], int], bool]] = {  # the length of the samples -> what the header says; a note
    "nothing": (lambda size: 0, False),
    "36 too many": (lambda size: size + 36, False),
    "the file's": (lambda size: size + 44, False),
    "samples instead of bytes": (lambda size: size // 2, True),
    "2^32 too few": (lambda size: 1000, True),
    "the largest": (lambda size: 0xFFFFFFFF, False),
    "of sox": (lambda size: 0x7FFFF000, False),
    "one too few": (lambda size: size - 2, False),
}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ULAW"])
def test_wav_that_says_a_wrong_length(
    spoken: np.ndarray, tmp_path: Path, name: str, subtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    said, told = SIZES[name]
    data = bytearray(encoded(spoken, "wav", subtype=subtype))
    expected = audio.read(bytes(data))
    at = data.find(b"data") + 4
    data[at : at + 4] = struct.pack("<I", said(len(data) - at - 4))
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    np.testing.assert_array_equal(audio.read(path), expected)
    notes = [record.getMessage() for record in caplog.records]
    assert [note.startswith(f"{path}: its header announces ") for note in notes] == [True] * told
    info = audio.info(path)
    assert round(info.duration_s * RATE) == len(expected)
    assert len(info.notes) == told
    caplog.clear()
    piped = np.concatenate(list(audio.pipe_blocks(io.BytesIO(data))))
    np.testing.assert_allclose(piped, expected, atol=1e-6)
    assert len(caplog.records) == told


def test_wav_that_is_really_empty(tmp_path: Path) -> None:
    data = encoded(np.zeros(0, np.float32), "wav") + b"LIST" + struct.pack("<I", 4) + b"INFO"
    for source in (data, data[:44]):
        with pytest.raises(AudioError, match="holds no samples"):
            audio.read(source)


def test_flac_without_a_length(spoken: np.ndarray, tmp_path: Path) -> None:
    data = bytearray(encoded(spoken, "flac"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(data)
    np.testing.assert_array_equal(audio.read(tmp_path / "a.flac"), audio.read(encoded(spoken, "flac")))
    assert audio.info(tmp_path / "a.flac").duration_s * RATE == len(spoken)
    part = audio.read(tmp_path / "a.flac", offset_s=1.0, duration_s=0.5)
    np.testing.assert_allclose(part, spoken[RATE : RATE + RATE // 2], atol=1e-4)


# --- what libsndfile cannot read, or not so ---


@pytest.mark.parametrize(
    ("name", "format", "codec", "rate"),
    [
        ("a.oga", "ogg", "flac", 16_000),
        ("a.avi", "avi", "pcm_s16le", 16_000),
        ("b.avi", "avi", "ac3", 48_000),
        ("a.ts", "mpegts", "aac", 16_000),
        ("a.flv", "flv", "aac", 44_100),
        ("a.caf", "caf", "alac", 16_000),
        ("a.3gp", "3gp", "aac", 16_000),
        ("a.m4b", "ipod", "aac", 16_000),
        ("a.mka", "matroska", "pcm_s16le", 16_000),
        ("a.wv", "wv", "wavpack", 16_000),
        ("a.mp2", "mp2", "mp2", 16_000),
        ("named.mp3", "adts", "aac", 16_000),
        ("a.wav", "wav", "adpcm_g722", 16_000),
        ("b.wav", "wav", "adpcm_ms", 16_000),
    ],
)
def test_containers_and_codecs(
    spoken: np.ndarray, tmp_path: Path, recognizer: Recognizer, name: str, format: str, codec: str, rate: int
) -> None:
    path = tmp_path / name
    path.write_bytes(contained([audio.resample(spoken, RATE, rate)], format, codec, rate))
    assert recognizer.transcribe(path).text == TEXT
    waveform = audio.read(path)
    assert similarity(waveform, spoken) > 0.93
    assert audio.info(path).duration_s == pytest.approx(len(waveform) / RATE, abs=0.15)
    assert audio.is_recording(path)
    unnamed = path.rename(tmp_path / "unnamed")
    assert audio.is_recording(unnamed) or name in ("a.mp2", "named.mp3")  # two bytes alone tell no recording
    np.testing.assert_array_equal(np.concatenate(list(audio.pipe_blocks(io.BytesIO(unnamed.read_bytes())))), waveform)


@pytest.mark.parametrize(
    ("format", "codec"), [("avi", "pcm_s16le"), ("caf", "alac"), ("mpegts", "aac"), ("wv", "wavpack")]
)
def test_without_pyav_it_says_what_to_install(
    spoken: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, codec: str
) -> None:
    path = tmp_path / f"a.{format}"
    path.write_bytes(contained([spoken], format, codec))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AudioError, match=r"needs PyAV; in a clone of this project: pip install '\.\[containers\]'"):
        audio.read(path)


def test_a_film_in_ogg(spoken: np.ndarray, seven: np.ndarray, tmp_path: Path) -> None:
    """Pages of two streams, one after the other in turn: the first that is known is heard."""
    pages = [split_pages(encoded(samples, "ogg")) for samples in (spoken, seven)]
    for number, stream in enumerate(pages):
        stream[:] = [page[:14] + struct.pack("<I", number) + page[18:] for page in stream]
    mixed = [pages[0][0], pages[1][0], *pages[0][1:3], *pages[1][1:], *pages[0][3:]]
    (tmp_path / "a.ogv").write_bytes(b"".join(map(checked, mixed)))
    waveform = audio.read(tmp_path / "a.ogv")
    assert len(waveform) == len(spoken)
    assert similarity(waveform, spoken) > 0.98


def split_pages(data: bytes) -> list[bytes]:
    pages = []
    while data:
        length = 27 + data[26] + sum(data[27 : 27 + data[26]])
        pages.append(data[:length])
        data = data[length:]
    return pages


def checked(page: bytes) -> bytes:
    """The page with its checksum."""
    crc = 0
    for byte in page[:22] + bytes(4) + page[26:]:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    return page[:22] + struct.pack("<I", crc) + page[26:]


# --- several tracks ---


@pytest.mark.parametrize("format", ["mp4", "matroska"])
def test_several_tracks(
    spoken: np.ndarray, seven: np.ndarray, recognizer: Recognizer, format: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = contained([seven, spoken], format, "aac", default=1)
    assert recognizer.transcribe(data).text == TEXT
    (record,) = caplog.records
    assert record.getMessage() == (
        "the recording: it has 2 audio tracks: 1 eng, 2 deu; track 2 was taken, --track takes another"
    )
    assert len(audio.info(data).notes) == 1
    caplog.clear()
    assert recognizer.transcribe(data, track=1).text == "seven"
    assert recognizer.transcribe(data, track=2).text == TEXT
    assert caplog.records == []
    with pytest.raises(AudioError, match="expected track 3, got a file with 2: 1 eng, 2 deu"):
        audio.read(data, track=3)
    with pytest.raises(AudioError, match="expected track 2, got a file of one"):
        audio.read(SEVEN, track=2)


# --- channels ---


def channels(spoken: np.ndarray, kind: str) -> np.ndarray:
    noise = 0.001 * np.random.default_rng(0).standard_normal((len(spoken), 8)).astype(np.float32)
    nothing = np.zeros_like(spoken)
    kinds: dict[str, np.ndarray] = {
        "opposite": np.stack([spoken, -spoken], axis=1),
        "opposite and weaker": np.stack([spoken, -0.7 * spoken], axis=1),
        "opposite with noise": np.stack([spoken, -spoken], axis=1) + noise[:, :2],
        "second dead": np.stack([spoken, nothing], axis=1),
        "first dead": np.stack([nothing, spoken], axis=1),
        "one of eight alive": np.stack([nothing] * 5 + [spoken] + [nothing] * 2, axis=1),
        "two of four opposite": np.stack([spoken, -spoken, spoken, -spoken], axis=1),
        "one of six opposite": np.stack([spoken] * 5 + [-spoken], axis=1),
        "noise on all but one": noise + np.eye(8, dtype=np.float32)[2] * spoken[:, None],
        "all the same": np.stack([spoken] * 6, axis=1),
    }
    return kinds[kind]


@pytest.mark.parametrize(
    "kind",
    [
        *("opposite", "opposite and weaker", "opposite with noise", "second dead", "first dead", "one of eight alive"),
        *("two of four opposite", "one of six opposite", "noise on all but one", "all the same"),
    ],
)
def test_channels(spoken: np.ndarray, tmp_path: Path, recognizer: Recognizer, kind: str) -> None:
    samples = channels(spoken, kind)
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    waveform = audio.read(tmp_path / "a.wav")
    assert recognizer.transcribe(tmp_path / "a.wav").text == TEXT
    level = np.sqrt(np.mean(waveform**2) / np.mean(spoken**2))
    assert level > 0.6 if "of eight" in kind or "dead" in kind or "opposite" in kind else level > 0.1
    np.testing.assert_array_equal(audio.as_waveform(samples, RATE), waveform)
    data = (tmp_path / "a.wav").read_bytes()
    np.testing.assert_array_equal(np.concatenate(list(audio.pipe_blocks(io.BytesIO(data)))), waveform)
    mixer = audio.Mixer(RATE)
    pieces = [mixer.feed(samples[start : start + 333]) for start in range(0, len(samples), 333)]
    np.testing.assert_array_equal(np.concatenate([*pieces, mixer.flush()]), waveform)  # however it comes
    if len(samples[0]) == 2:
        flac = contained_stereo(samples)
        assert recognizer.transcribe(flac).text == TEXT


def contained_stereo(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("flac", rate=RATE, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout="stereo")
        frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), 0
        converter = av.AudioResampler(format=stream.format.name, layout="stereo", rate=RATE)
        packets = [
            packet for each in [*converter.resample(frame), *converter.resample(None)] for packet in stream.encode(each)
        ]
        container.mux(packets + stream.encode(None))
    return file.getvalue()


def test_two_who_speak_in_turn_are_both_heard(spoken: np.ndarray, seven: np.ndarray, recognizer: Recognizer) -> None:
    """A call: what the other one says comes through while one is silent, though much weaker."""
    call = np.zeros((len(seven) + len(spoken) + RATE, 2), np.float32)
    call[: len(seven), 0] = seven
    call[-len(spoken) :, 1] = 0.1 * spoken
    assert recognizer.transcribe(call, RATE).text == f"seven {TEXT}"


# --- folders ---


def test_recordings_of_a_folder(tmp_path: Path, cli: Cli) -> None:
    folder = tmp_path / "talks"
    folder.mkdir()
    for name in ("a.wave", "b", "c.WAV", "d e.wav"):
        (folder / name).write_bytes(SEVEN.read_bytes())
    double = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(100)
    (folder / "._a.wave").write_bytes(double)
    (folder / ".DS_Store").write_bytes(bytes(100))
    for number in range(6):
        (folder / f"{number}.txt").write_text("no recording")
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.txt")
    done = cli("transcribe", "-m", "digits", "--beam", 1, "talks", "-j", 1)
    assert done.returncode == 0, done.stderr
    assert [line.rpartition("\t")[2] for line in done.stdout.splitlines()] == ["seven"] * 4
    passed, _summary = done.stderr.splitlines()
    expected = ", ".join(str(Path("talks", f"{number}.txt")) for number in range(5))
    assert passed.startswith(f"passed over, as no recordings: {expected} and ")
    (folder / "x.wav").write_bytes(double)
    with pytest.raises(AudioError, match=r"what macOS notes about a file \(AppleDouble\)"):
        audio.read(folder / "x.wav")


# --- standard error ---


def test_libraries_are_silent(tmp_path: Path, cli: Cli) -> None:
    """libmpg123 complains of damaged frames."""
    data = bytearray(MP3.read_bytes())
    for at in range(5000, len(data), 997):
        if not any(0xFF in data[near : near + 1] for near in range(at - 4, at + 4)):
            data[at] ^= 0x55
    (tmp_path / "damaged.mp3").write_bytes(data)
    script = "import sys; from asr import audio; audio.read(sys.argv[1]); print('done', file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "damaged.mp3"], capture_output=True, text=True, check=False
    )
    assert done.stderr == "done\n"
    told = cli("transcribe", "-m", "digits", "--beam", 1, "damaged.mp3")
    assert (told.returncode, told.stderr) == (0, "")


def test_threads_that_decode_at_once_leave_standard_error_as_it_was(tmp_path: Path) -> None:
    before = os.fstat(2)
    threads = [threading.Thread(target=audio.read, args=[MP3]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.path.sameopenfile(2, 2)
    assert os.fstat(2) == before


def test_notes_are_lines_on_stderr(tmp_path: Path, cli: Cli) -> None:
    data = bytearray(SEVEN.read_bytes())
    at = data.find(b"data") + 4
    data[at : at + 4] = struct.pack("<I", 4000)
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(data)
    done = cli("transcribe", "-m", "digits", "--beam", 1, "-j", 2, "a.wav", "b.wav")
    assert [line.partition(":")[0] for line in done.stderr.splitlines() if "announces" in line] == ["a.wav", "b.wav"]
    assert cli("transcribe", "-m", "digits", "--beam", 1, "-q", "a.wav").stderr == ""
    with (tmp_path / "a.wav").open("rb") as file:
        assert (
            "the pipe: its header announces" in cli("transcribe", "-m", "digits", "--beam", 1, "-", stdin=file).stderr
        )


def test_the_log_is_how_a_program_hears_of_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="asr.audio")
    audio.read(SEVEN)
    assert caplog.records == []
