"""Streams: whatever the samples come in, the same events; nothing lost, nothing kept; what a file says in the end."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA
from hypothesis import given, settings
from hypothesis import strategies as st

from asr import audio
from asr.errors import AudioError, ModelError
from asr.models.network import Network
from asr.recognizer import Recognizer
from asr.stream import Endpoint, Endpointing, Event, Final, Partial, Stream, StreamError

DIGITS = DATA / "connected_digits.flac"
EAGER = Endpointing(pause=0.12, long_pause=0.08, long=1.0, idle=0.4, longest=2.0)


@functools.cache
def recognizer() -> Recognizer:
    return Recognizer("digits")


@functools.cache
def speech() -> np.ndarray:
    """Digits, a pause, digits, a longer pause."""
    digits = audio.read(DIGITS)
    return np.concatenate([digits, np.zeros(16_000, np.float32), digits, np.zeros(20_000, np.float32)])


def events_of(stream: Stream, samples: np.ndarray, cuts: list[int]) -> list[Event]:
    found = [event for piece in np.split(samples, sorted(cuts)) for event in stream.feed(piece)]
    return found + stream.flush()


def finals(events: list[Event]) -> list[Final]:
    return [event for event in events if isinstance(event, Final)]


def text_of(events: list[Event]) -> str:
    return " ".join(final.text for final in finals(events))


def test_digits_are_read_as_they_come() -> None:
    events = events_of(recognizer().stream(), speech(), [])
    assert text_of(events) == "five seven nine zero five seven nine zero"
    first = next(event for event in events if isinstance(event, Partial))
    assert "five".startswith((first.stable + first.unstable).split()[0])
    assert first.time_s < 1.2  # long before the utterance is over


@given(cuts=st.lists(st.integers(0, 150_000), max_size=12), step=st.sampled_from([0, 160, 1111, 30_000]))
@settings(max_examples=6)
def test_any_feed_sizes_give_the_same_events(cuts: list[int], step: int) -> None:
    for rules in (Endpointing(), EAGER):
        whole = expected(rules)
        pieces = cuts + (list(range(step, len(speech()), step)) if step else [])
        assert events_of(recognizer().stream(chunk_s=0.2, endpointing=rules), speech(), pieces) == whole


@functools.cache
def expected(rules: Endpointing) -> list[Event]:
    return events_of(recognizer().stream(chunk_s=0.2, endpointing=rules), speech(), [])


@pytest.mark.parametrize("rules", [Endpointing(), EAGER])
def test_every_sample_is_in_one_utterance(rules: Endpointing) -> None:
    events = expected(rules)
    ends = [event.time_s for event in events if isinstance(event, Endpoint)]
    assert ends == sorted(ends)
    frames = -(-len(speech()) // recognizer().network.geometry.frame_shift)
    assert ends[-1] == pytest.approx(frames * recognizer().frame_shift_s)
    starts = [0.0, *ends]
    for final in finals(events):
        assert final.start_s in starts
        assert final.end_s in ends
        assert final.text == " ".join(word.text for word in final.words)
        times = [time for word in final.words for time in (word.start_s, word.end_s)]
        assert times == sorted(times)
        assert final.start_s <= times[0]
        assert times[-1] <= final.end_s
    if rules == EAGER:
        assert len(ends) > 6


def test_stable_words_stay_until_the_final() -> None:
    stable: list[str] = []
    for event in expected(Endpointing()):
        if isinstance(event, Partial):
            words = event.stable.split()
            assert words[: len(stable)] == stable
            stable = words
        elif isinstance(event, Endpoint):
            stable = []


def test_finals_are_what_the_file_says() -> None:
    transcript = recognizer().transcribe(DIGITS)
    (final,) = finals(events_of(recognizer().stream(), audio.read(DIGITS), [7000, 7001]))
    assert final.text == transcript.text
    for ours, theirs in zip(final.words, transcript.words, strict=True):
        assert (ours.start_s, ours.end_s) == pytest.approx((theirs.start_s, theirs.end_s), abs=0.021)
        assert ours.confidence == pytest.approx(theirs.confidence, abs=0.05)


def test_a_pause_ends_an_utterance_and_silence_is_none() -> None:
    events = expected(Endpointing())
    whys = [event.why for event in events if isinstance(event, Endpoint)]
    assert whys[:2] == ["pause", "pause"]
    silent = events_of(recognizer().stream(), np.zeros(16_000 * 12, np.float32), [])
    ends = [event for event in silent if isinstance(event, Endpoint)]
    assert len(ends) == len(silent)
    assert [end.why for end in ends] == ["idle", "idle", "end"]
    assert [end.time_s for end in ends] == [pytest.approx(5, abs=0.33), pytest.approx(10, abs=0.66), 12]


def test_speech_without_pauses_is_cut_in_the_end() -> None:
    rules = Endpointing(pause=0.8, long_pause=0.8, idle=5, long=2.0, longest=3.0)
    digits = audio.read(DIGITS)
    loud = np.abs(digits) > 0.01
    voiced = np.tile(digits[np.argmax(loud) : len(digits) - np.argmax(loud[::-1])], 5)
    events = events_of(recognizer().stream(endpointing=rules), voiced, [])
    lengths = np.diff([0.0, *(event.time_s for event in events if isinstance(event, Endpoint))])
    assert lengths.max() <= 3.4
    words = text_of(events).split()
    expected_words = recognizer().transcribe(voiced, 16000).text.split()
    assert abs(len(words) - len(expected_words)) <= 4  # a cut may divide a word


def test_memory_is_bounded() -> None:
    stream = recognizer().stream()
    rng = np.random.default_rng(0)
    sizes = []
    for second in range(120):
        block = audio.read(DIGITS)[:16_000] if second % 10 < 5 else rng.normal(0, 1e-4, 16_000).astype(np.float32)
        stream.feed(block)
        sizes.append(len(stream._audio) + len(stream._silent))
    assert max(sizes) < 30 * 16_000
    assert stream.time_s == 120


def test_an_empty_stream_has_no_events() -> None:
    stream = recognizer().stream()
    assert stream.feed(np.zeros(0, np.float32)) == []
    assert stream.flush() == []
    assert stream.flush() == []
    with pytest.raises(StreamError, match="start another stream"):
        stream.feed(np.zeros(10, np.float32))


@pytest.mark.parametrize("samples", [1, 100, 5000])
def test_short_streams_end_like_short_files(samples: int) -> None:
    speech_start = audio.read(DIGITS)[5000 : 5000 + samples]
    assert (
        text_of(events_of(recognizer().stream(), speech_start, [])) == recognizer().transcribe(speech_start, 16000).text
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: recognizer().stream(chunk_s=0),
        lambda: recognizer().stream(chunk_s=float("nan")),
        lambda: recognizer().stream(right_context_s=-1),
        lambda: recognizer().stream(endpointing=Endpointing(pause=0)),
        lambda: recognizer().stream(endpointing=Endpointing(long=40)),
    ],
)
def test_settings_that_cannot_be_kept(make: Callable[[], Stream]) -> None:
    with pytest.raises(StreamError, match="expected"):
        make()


def test_samples_that_are_none() -> None:
    stream = recognizer().stream()
    with pytest.raises(AudioError, match="NaN"):
        stream.feed(np.array([0, np.nan], np.float32))
    assert stream.time_s == 0


# The network in parts


@pytest.mark.parametrize("options", [{}, {"cell": "gru", "projection": 8}, {"bidirectional": False}, {"norm": "batch"}])
def test_parts_equal_the_training_code_s(tmp_path: Path, options: dict[str, object]) -> None:
    import torch
    from test_export import saved, settings_of

    from asr.training import export

    model, path = saved(tmp_path, settings_of(**options))
    export.export(path, tmp_path / "m.onnx")
    network = Network(tmp_path / "m.onnx")
    waveform = np.random.default_rng(0).normal(0, 0.01, 16_000).astype(np.float32)
    padded = network.geometry.pad(waveform)
    shift = network.geometry.frame_shift
    frames = -(-len(waveform) // shift)
    with torch.no_grad():
        features = model.eval().normalised_features(torch.from_numpy(padded)[None])
        whole = model(torch.from_numpy(padded)[None])[0].numpy()
    np.testing.assert_allclose(network.log_probs(waveform), whole, atol=1e-4)
    for chunk, context in ((1, 0), (8, 4), (16, 100), (1000, 0)):
        context = context if network.bidirectional else 0
        state, pieces = None, []
        for start in range(0, frames, chunk):
            stop = min(start + chunk + context, frames)
            heard = padded[start * shift : start * shift + network.geometry.samples(stop - start)]
            log_probs, state = network.part(heard, min(chunk, frames - start), state)
            pieces.append(log_probs)
        with torch.no_grad():
            wanted = model.network(features, None, (chunk, context))[0][0].numpy()
        np.testing.assert_allclose(np.concatenate(pieces), wanted, atol=1e-4)
        if context >= frames or chunk >= frames or not network.bidirectional:
            np.testing.assert_allclose(wanted, whole, atol=1e-4)


def test_a_network_of_old_hears_only_whole_utterances(tmp_path: Path) -> None:
    import onnx

    from asr.models import find_model

    # Without its state, as files of schema 1 are.
    graph = onnx.load(find_model("digits"))
    inputs = {one.name: one for one in graph.graph.input}
    state, keep = inputs["state"], inputs["keep"]
    for one in (state, keep):
        graph.graph.input.remove(one)
    graph.graph.output.remove(next(one for one in graph.graph.output if one.name == "next_state"))
    zeros = np.zeros([dimension.dim_value for dimension in state.type.tensor_type.shape.dim], np.float32)
    graph.graph.initializer.append(onnx.numpy_helper.from_array(zeros, "state"))
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array(2**31), "keep"))
    path = tmp_path / "old.onnx"
    path.write_bytes(graph.SerializeToString())
    old = Recognizer(path)
    assert old.transcribe(DIGITS).text == "five seven nine zero"
    with pytest.raises(ModelError, match="only hears whole utterances; export it again"):
        old.stream()
