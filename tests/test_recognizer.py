"""The ONNX file as a recogniser: shapes, parity of inputs, times, threads, errors."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
from conftest import DATA
from rapidfuzz.distance import Levenshtein

from asr import AsrError, Recognizer, audio, manifest
from asr.audio import AudioError
from asr.errors import DecodingError, LmError, ModelError
from asr.lm import kneserney
from asr.models import find_model
from asr.recognizer import MAX_S
from asr.tokens import BLANK

DIGITS, SEVEN = DATA / "connected_digits.flac", DATA / "7_jackson_0.wav"


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


def test_the_default_is_english_with_its_language_model() -> None:
    recognizer = Recognizer()
    assert (recognizer.name, recognizer.lm_path) == ("english", find_model("english").with_suffix(".lm"))
    heard = recognizer.transcribe(DATA / "common_voice_en_23410397.mp3").text.split()
    said = "romanians germans and russians also lived in the city"
    assert Levenshtein.distance(said.split(), heard) <= 2


@pytest.fixture
def nine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of the user's, `mine`, and beside it a language model that knows but "nine" and "five"."""
    monkeypatch.setenv("ASR_MODELS", str(tmp_path))
    shutil.copy(find_model("digits"), tmp_path / "mine.onnx")
    kneserney.train(["nine five nine"] * 50, order=2).save(tmp_path / "mine.lm")
    return tmp_path / "mine.lm"


HEED = {"lm_weight": 5, "unknown": None}  # beyond all reason


@pytest.mark.parametrize("options", [{}, {"lm": "bundled"}, {"hotwords": ["zero"]}], ids=str)
def test_a_model_by_name_brings_its_language_model(nine: Path, options: dict[str, Any]) -> None:
    recognizer = Recognizer("mine", decoding=HEED, **options)
    assert recognizer.lm_path == nine
    assert set(recognizer.transcribe(SEVEN).text.split()) <= {"nine", "five"}


@pytest.mark.parametrize("options", [{"lm": "none"}, {"beam": 1}, {"grammar": "g.txt"}], ids=str)
def test_what_goes_without_it(nine: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(nine.parent)
    Path("g.txt").write_text("seven\nnine\n")
    recognizer = Recognizer("mine", decoding=HEED, **options)
    assert (recognizer.lm, recognizer.lm_path) == (None, None)
    assert recognizer.transcribe(SEVEN).text == "seven"


def test_a_model_by_path_does_not_bring_it(nine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Recognizer(nine.with_suffix(".onnx")).lm is None
    assert Recognizer(nine.with_suffix(".onnx"), lm="bundled").lm_path == nine
    monkeypatch.chdir(nine.parent)
    assert Recognizer("mine.onnx").lm is None


def test_a_name_without_one_goes_without(nine: Path) -> None:
    nine.unlink()
    assert Recognizer("mine").lm is None
    assert Recognizer("digits").lm is None
    nine.write_text("no language model")
    with pytest.raises(LmError, match=r"mine\.lm:1: expected a language model"):
        Recognizer("mine")


def test_the_users_model_hides_one_of_the_package_and_its_language_model(nine: Path) -> None:
    nine.with_suffix(".onnx").rename(nine.with_name("english.onnx"))
    assert Recognizer().lm is None


def test_models_of_the_user_come_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASR_MODELS", str(tmp_path))
    with pytest.raises(ModelError, match=r"mine: expected a model file \(.onnx\) or one of the names digits, "):
        Recognizer("mine")
    shutil.copy(find_model("digits"), tmp_path / "mine.onnx")
    assert Recognizer("mine").transcribe(DIGITS).text == "five seven nine zero"


def test_long_audio_is_read_in_windows(recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording of many windows, in blocks of any size, reads as its parts do alone."""
    waveform = np.tile(np.concatenate([audio.read(DIGITS), np.zeros(8000, np.float32)]), 20)  # 100 s
    heard = Mock(wraps=recognizer.network.log_probs)
    monkeypatch.setattr(recognizer.network, "log_probs", heard)
    expected = recognizer.transcribe(DIGITS).text.split() * 20
    transcripts = []
    for block in (16_000, 333_333, len(waveform)):
        blocks = (waveform[i : i + block] for i in range(0, len(waveform), block))
        transcripts.append(recognizer.transcribe_blocks(blocks))
    first = transcripts[0]
    assert first.text.split() == expected
    assert transcripts == [first] * 3
    assert first.duration_s == len(waveform) / 16000
    assert max(len(call.args[0]) for call in heard.call_args_list) <= 30 * 16000
    starts = [word.start_s for word in first.words]
    assert starts == sorted(starts)
    period = len(waveform) / 16000 / 20  # each repetition stands where it was put
    for i, start in enumerate(starts):
        assert start == pytest.approx(starts[i % 4] + i // 4 * period, abs=0.1)


def test_no_word_spans_a_long_pause(recognizer: Recognizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of 20 ms: silence, letters, 1.7 s, a letter, 2.1 s, a letter, silence."""
    (tmp_path / "words.txt").write_text("one two\n")
    strict = Recognizer("digits", grammar=tmp_path / "words.txt")
    log_probs = np.full((250, len(recognizer.tokens)), -9.0, np.float32)
    log_probs[:, BLANK] = 0
    log_probs[[10, 12, 100, 205], 3] = 1
    for one, pieces in ((recognizer, [(10, 153), (163, 97)]), (strict, [(10, 250)])):
        monkeypatch.setattr("asr.pauses._stretches", lambda *_: iter([(10, log_probs)]))
        parts = list(one.parts([]))
        assert [len(part.log_probs) for part in parts] == [frames for _, frames in pieces]
        starts = [start * one.frame_shift_s for start, _ in pieces]
        assert [part.start_s for part in parts] == pytest.approx(starts)


def test_long_audio_without_a_pause(recognizer: Recognizer) -> None:
    """Speech without any pause for minutes is cut all the same, and nothing is lost."""
    seven = audio.read(DATA / "7_jackson_0.wav")
    waveform = np.tile(seven, 200)  # 80 s and more
    words = recognizer.transcribe(waveform, 16000).text.split()
    assert len(words) == pytest.approx(200, abs=10)


def test_every_bundled_model_has_a_card() -> None:
    from asr.models import _BUNDLED

    paths = list(_BUNDLED.glob("*/*.onnx"))
    assert paths
    for path in paths:
        card = (path.parent / "MODEL.md").read_text(encoding="utf-8")
        assert Recognizer(path).card["licence"] in card
        assert path.stat().st_size <= 25e6
        assert all(lm.stat().st_size <= 20e6 for lm in path.parent.glob("*.lm"))


def test_digits_is_small(recognizer: Recognizer) -> None:
    assert find_model("digits").stat().st_size <= 3_000_000


@pytest.mark.parametrize(
    ("source", "rate", "message"),
    [
        (np.zeros(0, np.float32), 16000, "with N > 0"),
        (np.full(100, np.nan, np.float32), 16000, "finite samples, got 100"),
        (np.zeros(100, np.float32), None, "expected the sample rate"),
        (np.zeros(100, np.float32), 0, "from 1000 to 1000000 Hz, got 0"),
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


def outputs(value: float, graph: onnx.GraphProto) -> None:
    """A network that adds this to its outputs."""
    next(node for node in graph.node if node.output[0] == "log_probs").output[0] = "before"
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.float32), "more"))
    graph.node.append(onnx.helper.make_node("Add", ["before", "more"], ["log_probs"]))


def renamed(graph: onnx.GraphProto) -> None:
    next(node for node in graph.node if node.output[0] == "log_probs").output[0] = graph.output[0].name = "scores"


@pytest.mark.parametrize(
    ("change", "card", "message"),
    [
        (partial(outputs, np.nan), {}, ", got NaN; train it again"),
        (renamed, {}, "the network cannot run: "),
        (
            None,
            {"tokens": ["<blank>", "a"]},
            "expected log-probabilities of the network, float32 (1, 1, 2), got float32 (1, 1, ",
        ),
        (None, {"tokens": ["<blank>", 1]}, "export the model again"),
        (
            None,
            {"tokens": ["a"]},
            "expected a vocabulary that starts with '<blank>', got ['a']; export the model again",
        ),
        (None, {"name": None}, "the metadata of a 16000 Hz model, but it lacks name; export it again"),
        (None, {"frame_shift": 0}, "samples, 0 apart; export it again"),
        (None, {"receptive_field": 1 << 40}, "but it has frames of 1099511627776 samples, "),
        (None, {"receptive_field": "560"}, "but it lacks receptive_field; export it again"),
        (None, {"schema": 1e999}, "expected metadata written by asr export, got '{"),
        (None, "[" * 100_000, "expected metadata written by asr export, got '[[["),
        (None, "[]", "expected metadata written by asr export, got '[]'; export it again"),
    ],
)
def test_models_that_cannot_be_right(
    tmp_path: Path, change: Callable[[onnx.GraphProto], None] | None, card: dict[str, object] | str, message: str
) -> None:
    """Each is refused as it is loaded, not when there is a recording."""
    proto = onnx.load(find_model("digits"))
    if change:
        change(proto.graph)
    text = card if isinstance(card, str) else json.dumps(json.loads(proto.metadata_props[0].value) | card)
    onnx.helper.set_model_props(proto, {"asr": text})
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ModelError) as caught:
        Recognizer(tmp_path / "m.onnx")
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'm.onnx'}: ")


def test_onnxruntime_does_not_guess_the_format(tmp_path: Path) -> None:
    """With these letters in this place it would take a file for one of its own format, of which nothing is checked."""
    producer = b"\x12\x06  ORTM"
    (tmp_path / "m.onnx").write_bytes(producer + find_model("digits").read_bytes())
    assert Recognizer(tmp_path / "m.onnx").transcribe(DIGITS).text == "five seven nine zero"


def test_onnxruntime_does_not_see_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise AssertionError("it was loaded")

    proto = onnx.load(find_model("digits"))
    proto.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    monkeypatch.setattr("onnxruntime.InferenceSession", unreachable)
    with pytest.raises(ModelError, match="weights in another file, which is not read; export it again"):
        Recognizer(tmp_path / "m.onnx")


def test_bad_threads() -> None:
    with pytest.raises(ModelError, match="at least 1 thread, got 0"):
        Recognizer("digits", threads=0)


def test_unknown_settings_of_decoding() -> None:
    with pytest.raises(DecodingError, match=r"expected for decoding some of lm_weight, .*, got 'weight'"):
        Recognizer("digits", decoding={"weight": 1.0, "unknown": None})


def test_bad_beam() -> None:
    with pytest.raises(ModelError, match="beam of at least 1, got 0"):
        Recognizer("digits", beam=0)


def test_manifest_ids_do_not_collide() -> None:
    whole = manifest.Utterance(DIGITS, 4.5, "")
    assert whole.id == "connected_digits"
    assert manifest.Utterance(DIGITS, 1.0, "", offset_s=2.5).id != whole.id


def test_utterances_are_what_is_transcribed(recognizer: Recognizer) -> None:
    silence = np.zeros(3 * 16000, np.float32)
    blocks = [audio.read(DIGITS), silence, audio.read(DATA / "7_jackson_0.wav"), silence]
    heard = list(recognizer.utterances(blocks))
    whole = recognizer.transcribe_blocks(blocks)
    assert [word.text for word in heard[0].words] == ["five", "seven", "nine", "zero"]
    assert len(heard) > 1
    assert " ".join(word.text for one in heard for word in one.words) == whole.text == "five seven nine zero seven"
    assert heard[-1].end_s == whole.duration_s


def test_derived_recognisers_share_the_network_and_leave_it_as_it_was(recognizer: Recognizer) -> None:
    other = recognizer.derived(phrases=["six", "seven nine zero"])
    assert other.network is recognizer.network
    assert other.transcribe(DIGITS).text == "seven nine zero"
    assert pickle.loads(pickle.dumps(other)).transcribe(DIGITS) == other.transcribe(DIGITS)
    assert recognizer.transcribe(DIGITS).text == "five seven nine zero"
    spoilt = Recognizer("digits", hotwords=["five^-20"]).derived(hotwords=["zero^-20"])
    assert not {"five", "zero"} & set(spoilt.transcribe(DIGITS).text.split())
    with pytest.raises(AsrError, match="at most 1000 hot words, got more"):
        recognizer.derived(hotwords=["one"] * 1001)
    with pytest.raises(AsrError, match="at most 1000 phrases, got more"):
        recognizer.derived(phrases=["one"] * 1001)


def test_phrases_put_a_models_own_language_model_aside(nine: Path) -> None:
    recognizer = Recognizer("mine")
    assert recognizer.lm is not None
    assert recognizer.derived(hotwords=["six"]).lm is recognizer.lm
    assert recognizer.derived(phrases=["six"]).lm is None
    assert Recognizer("mine", lm="bundled").derived(phrases=["six"]).lm is not None
