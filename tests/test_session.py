"""Sessions: the noise gate, what is lost, all times; with a microphone in tests/cli/test_live.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import DATA

from asr import Recognizer, audio
from asr.audio import SAMPLE_RATE
from asr.audio.recording import Recording
from asr.session import Gate, Session, Trouble
from asr.stream import Endpoint, Final

SAID = "five seven nine zero"


def test_the_gate_silences_what_is_quiet_only() -> None:
    rng = np.random.default_rng(0)
    quiet = rng.normal(0, 10 ** (-60 / 20), 3 * SAMPLE_RATE).astype(np.float32)
    loud = rng.normal(0, 10 ** (-20 / 20), SAMPLE_RATE).astype(np.float32)
    heard = np.concatenate([quiet, loud, quiet])
    gate = Gate(-40)
    passed = np.concatenate([gate.feed(heard), gate.flush()])
    begin, end = 3 * SAMPLE_RATE - round(0.2 * SAMPLE_RATE), 4 * SAMPLE_RATE + round(0.5 * SAMPLE_RATE)
    assert len(passed) == len(heard)
    assert not passed[:begin].any()
    np.testing.assert_array_equal(passed[begin:end], heard[begin:end])
    assert not passed[end:].any()


def test_the_gate_does_not_depend_on_the_pieces() -> None:
    rng = np.random.default_rng(1)
    heard = (rng.normal(0, 1, 50_003) * np.repeat(10 ** rng.uniform(-4, 0, 51), 1000)[:50_003]).astype(np.float32)
    whole = Gate(-30)
    expected = np.concatenate([whole.feed(heard), whole.flush()])
    assert len(expected) == len(heard)
    for size in (1, 319, 800, 9_999):
        gate = Gate(-30)
        pieces = [gate.feed(heard[at : at + size]) for at in range(0, len(heard), size)]
        np.testing.assert_array_equal(np.concatenate([*pieces, gate.flush()]), expected)


def test_what_is_lost_is_told_and_the_times_go_on(tmp_path: Path) -> None:
    spoken = audio.read(DATA / "connected_digits.flac")
    lost = 10 * SAMPLE_RATE
    with Recording(tmp_path / "talk.wav") as recording:
        session = Session(Recognizer("digits"), SAMPLE_RATE)
        session.recording = recording
        first = list(session.hear(spoken))
        second = [*session.hear(spoken, lost), *session.finish()]
    assert not any(isinstance(event, Final) for event in first)
    finals = [event for event in second if isinstance(event, Final)]
    assert [final.text for final in finals] == [SAID, SAID]
    gap_s = (len(spoken) + lost) / SAMPLE_RATE
    for one, other in zip(finals[0].words, finals[1].words, strict=True):
        assert other.start_s - one.start_s == pytest.approx(gap_s)
        assert other.end_s - one.end_s == pytest.approx(gap_s)
    assert [event.time_s for event in second if isinstance(event, Endpoint)] == sorted(
        event.time_s for event in second if isinstance(event, Endpoint)
    )
    assert [event.text.split(":")[0] for event in second if isinstance(event, Trouble)] == ["10.0 s of sound before 00"]
    assert session.lost_s == 10.0
    transcript = session.transcript
    assert transcript.text == f"{SAID} {SAID}"
    assert transcript.duration_s == pytest.approx(gap_s + len(spoken) / SAMPLE_RATE)
    kept, _ = soundfile.read(tmp_path / "talk.wav", dtype="float32")
    assert len(kept) == 2 * len(spoken) + lost
    assert not kept[len(spoken) : -len(spoken)].any()
    np.testing.assert_allclose(kept[-len(spoken) :], spoken, atol=1e-4)
