"""The ONNX file as a recogniser: shapes, parity of inputs, times, threads, errors."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA

from asr import Recognizer, audio, manifest
from asr.audio import AudioError
from asr.recognizer import MAX_S, ModelError, find_model

DIGITS = DATA / "connected_digits.flac"


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return Recognizer("digits")


@pytest.mark.parametrize("count", [1, 159, 160, 319, 320, 321, 16000, 64001])
def test_log_probs_are_one_frame_a_shift(recognizer: Recognizer, count: int) -> None:
    log_probs = recognizer.log_probs(np.zeros(count, np.float32))
    shift = round(recognizer.frame_shift_s * audio.SAMPLE_RATE)
    assert log_probs.shape == (-(-count // shift), len(recognizer.tokens))
    assert log_probs.dtype == np.float32
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1, atol=1e-5)


def test_file_and_array_agree(recognizer: Recognizer) -> None:
    waveform = audio.read(DIGITS)
    from_file = recognizer.transcribe(DIGITS)
    assert recognizer.transcribe(waveform, 16000) == from_file
    stereo = np.stack([waveform, waveform], axis=1)
    assert recognizer.transcribe(stereo, 16000).text == from_file.text
    as_int16 = np.rint(waveform * 32767).astype(np.int16)
    assert recognizer.transcribe(as_int16, 16000).text == from_file.text
    assert recognizer.transcribe(audio.resample(waveform, 16000, 48000), 48000).text == from_file.text


def test_words_stand_where_the_digits_are(recognizer: Recognizer) -> None:
    """Pauses of silence put between the digits move the later words by exactly as much."""
    waveform = audio.read(DIGITS)
    words = recognizer.transcribe(waveform, 16000).words
    assert [word.text for word in words] == ["five", "seven", "nine", "zero"]
    loud = np.abs(waveform) > 0.05
    for word in words:  # each word's times hold loud samples
        assert loud[round(word.start_s * 16000) : round(word.end_s * 16000)].any()
    shifted = recognizer.transcribe(np.concatenate([np.zeros(16000, np.float32), waveform]), 16000).words
    for before, after in zip(words, shifted, strict=True):
        assert after.start_s - before.start_s == pytest.approx(1.0, abs=0.08)


def test_word_times_against_known_boundaries(recognizer: Recognizer) -> None:
    """Single digits joined with pauses: half of their starts and ends are found within 60 ms."""
    rng = np.random.default_rng(0)
    digits = [audio.read(DATA / name) for name in ("7_jackson_0.wav", "3_nicolas_0.wav")]
    pieces, bounds, at = [], [], 0
    for _ in range(12):
        digit, pause = digits[rng.integers(2)], round(rng.uniform(0.2, 0.6) * 16000)
        bounds += [(at + pause) / 16000, (at + pause + len(digit)) / 16000]
        at += pause + len(digit)
        pieces += [rng.normal(0, 1e-4, pause), digit]
    joined = np.concatenate([*pieces, pieces[0]]).astype(np.float32)
    words = recognizer.transcribe(joined, 16000).words
    found = [time for word in words for time in (word.start_s, word.end_s)]
    errors = np.abs(np.array(found) - bounds)
    assert np.median(errors) <= 0.06
    assert errors.max() <= 0.3


def test_threads_share_one_recogniser(recognizer: Recognizer) -> None:
    with ThreadPoolExecutor(4) as pool:
        transcripts = list(pool.map(recognizer.transcribe, [DIGITS, DATA / "7_jackson_0.wav"] * 6))
    assert transcripts == [recognizer.transcribe(DIGITS), recognizer.transcribe(DATA / "7_jackson_0.wav")] * 6


def test_default_is_bundled() -> None:
    assert Recognizer().transcribe(DIGITS).text == "five seven nine zero"


def test_models_of_the_user_come_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASR_MODELS", str(tmp_path))
    with pytest.raises(ModelError, match=r"mine: expected a model file \(.onnx\) or one of the names digits"):
        Recognizer("mine")
    shutil.copy(find_model("digits"), tmp_path / "mine.onnx")
    assert Recognizer("mine").transcribe(DIGITS).text == "five seven nine zero"


def test_long_audio_is_read_in_windows(recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording of many windows, in blocks of any size, reads as its parts do alone."""
    waveform = np.tile(np.concatenate([audio.read(DIGITS), np.zeros(8000, np.float32)]), 20)  # 100 s
    lengths = []
    run = recognizer._run
    monkeypatch.setattr(recognizer, "_run", lambda heard: lengths.append(len(heard)) or run(heard))
    expected = recognizer.transcribe(DIGITS).text.split() * 20
    transcripts = []
    for block in (16_000, 333_333, len(waveform)):
        blocks = (waveform[i : i + block] for i in range(0, len(waveform), block))
        transcripts.append(recognizer.transcribe_blocks(blocks))
    first = transcripts[0]
    assert first.text.split() == expected
    assert transcripts == [first] * 3
    assert first.duration_s == len(waveform) / 16000
    assert max(lengths) <= 30 * 16000
    starts = [word.start_s for word in first.words]
    assert starts == sorted(starts)
    period = len(waveform) / 16000 / 20  # each repetition stands where it was put
    for i, start in enumerate(starts):
        assert start == pytest.approx(starts[i % 4] + i // 4 * period, abs=0.1)


def test_long_audio_without_a_pause(recognizer: Recognizer) -> None:
    """Speech without any pause for minutes is cut all the same, and nothing is lost."""
    seven = audio.read(DATA / "7_jackson_0.wav")
    waveform = np.tile(seven, 200)  # 80 s and more
    words = recognizer.transcribe(waveform, 16000).text.split()
    assert len(words) == pytest.approx(200, abs=10)


def test_every_bundled_model_has_a_card() -> None:
    from asr.recognizer import _BUNDLED

    paths = list(_BUNDLED.glob("*/*.onnx"))
    assert paths
    for path in paths:
        card = (path.parent / "MODEL.md").read_text(encoding="utf-8")
        assert Recognizer(path).card["licence"] in card
        assert path.stat().st_size <= 25e6


def test_digits_is_small(recognizer: Recognizer) -> None:
    assert find_model("digits").stat().st_size <= 3_000_000


@pytest.mark.parametrize(
    ("source", "rate", "message"),
    [
        (np.zeros(0, np.float32), 16000, "with N > 0"),
        (np.full(100, np.nan, np.float32), 16000, "finite samples, got 100"),
        (np.zeros(100, np.float32), None, "expected the sample rate"),
        (np.zeros(100, np.float32), 0, "above 0, got 0"),
        (np.zeros((2, 3, 4), np.float32), 16000, "(2, 3, 4)"),
        (np.zeros(100, np.complex64), 16000, "complex64"),
    ],
)
def test_bad_samples(recognizer: Recognizer, source: np.ndarray, rate: int | None, message: str) -> None:
    with pytest.raises(AudioError) as caught:
        recognizer.transcribe(source, rate)
    assert message in str(caught.value)


def test_one_pass_has_a_limit(recognizer: Recognizer) -> None:
    with pytest.raises(AudioError, match=r"expected at most 20 minutes of audio, got 20\.0"):
        recognizer.log_probs(np.zeros(round(MAX_S + 1) * 16000, np.float32))


def test_bad_beam() -> None:
    with pytest.raises(ModelError, match="beam of at least 1, got 0"):
        Recognizer("digits", beam=0)


def test_manifest_ids_do_not_collide() -> None:
    whole = manifest.Utterance(DIGITS, 4.5, "")
    assert whole.id == "connected_digits"
    assert manifest.Utterance(DIGITS, 1.0, "", offset_s=2.5).id != whole.id
