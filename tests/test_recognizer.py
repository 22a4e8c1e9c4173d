"""The ONNX file as a recogniser: shapes, parity of inputs, times, threads, errors."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import DATA

from asr import Recognizer, audio, manifest
from asr.audio import AudioError
from asr.recognizer import MAX_S, ModelError

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


def test_threads_share_one_recogniser(recognizer: Recognizer) -> None:
    with ThreadPoolExecutor(4) as pool:
        transcripts = list(pool.map(recognizer.transcribe, [DIGITS, DATA / "7_jackson_0.wav"] * 6))
    assert transcripts == [recognizer.transcribe(DIGITS), recognizer.transcribe(DATA / "7_jackson_0.wav")] * 6


def test_default_is_bundled() -> None:
    assert Recognizer().transcribe(DIGITS).text == "five seven nine zero"


def test_every_bundled_model_has_a_card() -> None:
    from asr.recognizer import _MODELS

    models = list(_MODELS.glob("*/*.onnx"))
    assert models
    for path in models:
        card = (path.parent / "MODEL.md").read_text(encoding="utf-8")
        assert Recognizer(path).card["licence"] in card
        assert path.stat().st_size <= 25e6


def test_digits_is_small(recognizer: Recognizer) -> None:
    from asr.recognizer import find_model

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
        (np.zeros(round(MAX_S + 1) * 16000, np.float32), 16000, "expected at most 20 minutes of audio, got 20.0"),
    ],
)
def test_bad_samples(recognizer: Recognizer, source: np.ndarray, rate: int | None, message: str) -> None:
    with pytest.raises(AudioError) as caught:
        recognizer.transcribe(source, rate)
    assert message in str(caught.value)


def test_bad_beam() -> None:
    with pytest.raises(ModelError, match="beam of at least 1, got 0"):
        Recognizer("digits", beam=0)


def test_manifest_ids_do_not_collide() -> None:
    whole = manifest.Utterance(DIGITS, 4.5, "")
    assert whole.id == "connected_digits"
    assert manifest.Utterance(DIGITS, 1.0, "", offset_s=2.5).id != whole.id
