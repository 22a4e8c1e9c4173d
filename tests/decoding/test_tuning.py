"""Tuning: the search over settings, the figures it goes by, and the file that keeps what it finds."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import onnx
import pytest
from conftest import DATA

from asr import Recognizer
from asr.decoding import confidence, tuning
from asr.decoding.confidence import Calibration
from asr.decoding.decoder import Decoder
from asr.decoding.fusion import Decoding
from asr.decoding.tuning import Example, Trial
from asr.errors import DecodingError
from asr.lm import kneserney
from asr.models import find_model, onnxfile
from asr.tokens import BLANK, Tokens

TOKENS = Tokens.of(" abcd")
SENTENCES = ["abba cab", "cab dad abba", "dad", "a cab", "abba dad a", "cab cab abba"]
LM = kneserney.train(SENTENCES * 5, order=2)


def noisy(texts: list[str], noise: float, seed: int = 0) -> list[Example]:
    """What a network of so much noise might say of the texts, two frames a letter and a blank between."""
    rng = np.random.default_rng(seed)
    examples = []
    for text in texts:
        path = [token for letter in text for token in (TOKENS.encode(letter)[0], BLANK)]
        logits = 4 * np.eye(len(TOKENS))[path] + noise * rng.normal(size=(len(path), len(TOKENS)))
        log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        examples.append(Example([log_probs.astype(np.float32)], text))
    return examples


DEV = noisy(SENTENCES * 4, 2.0)


def search(start: Decoding, examples: list[Example] = DEV) -> tuple[Trial, list[Trial]]:
    tried: list[Trial] = []
    best = tuning.search(examples, TOKENS, LM, beam=4, start=start, progress=tried.append)
    return best, tried


def test_the_search_finds_what_is_better_than_its_start() -> None:
    start = Decoding(0.05, -3.0, -1.0)
    best, tried = search(start)
    assert tried[0].decoding == start
    assert best.wer < tried[0].wer / 2
    assert (best.wer, best.cer) == min((trial.wer, trial.cer) for trial in tried)
    assert best in tried
    assert len({trial.decoding for trial in tried}) == len(tried) < 80
    # What it says holds when it is tried again.
    again = Decoder(TOKENS, beam=4, lm=LM, decoding=best.decoding)
    assert tuning.error_rates(DEV, again) == (best.wer, best.cer)


def test_the_search_stays_where_settings_have_sense() -> None:
    best, tried = search(Decoding(0.1, 0.0, -1.0), noisy(SENTENCES, 0.1))
    assert best == tried[0]  # nothing is better than no errors, and of equals the first stays
    assert all((trial.decoding.lm_weight or 0) > 0 for trial in tried)
    assert all((trial.decoding.unknown or 0) <= 0 for trial in tried)


def test_a_closed_vocabulary_stays_closed() -> None:
    best, tried = search(Decoding(0.05, -3.0, None))
    assert {trial.decoding.unknown for trial in tried} == {None}
    assert best.wer < tried[0].wer
    assert str(best).startswith(f"--decoding lm_weight={best.decoding.lm_weight},word_bonus=")
    assert "unknown=never" in str(best)
    assert str(best).endswith(f": WER {best.wer:.2%}, CER {best.cer:.2%}")


def test_error_rates_are_those_of_jiwer() -> None:
    examples = noisy(SENTENCES * 3, 3.0, seed=1)
    for decoder in (Decoder(TOKENS, beam=1), Decoder(TOKENS, beam=4, lm=LM)):
        texts = [" ".join(decoder.texts(decoder(part), 1)[0][0] for part in example.parts) for example in examples]
        references = [example.reference for example in examples]
        wer, cer = tuning.error_rates(examples, decoder)
        assert 0 < cer < wer
        assert wer == pytest.approx(jiwer.wer(references, texts))
        assert cer == pytest.approx(jiwer.cer(references, texts))


def test_signs_are_those_of_the_words() -> None:
    decoder = Decoder(TOKENS, beam=4)
    share, letters, right = tuning.signs(DEV, decoder)
    assert len(share) == len(letters) == len(right)
    assert right.dtype == bool
    assert 0 < right.mean() < 1
    signs = np.concatenate([share, letters])
    assert 0 <= signs.min() < signs.max() <= 1
    assert share[right].mean() > share[~right].mean()
    assert letters[right].mean() > letters[~right].mean()
    found = decoder(DEV[0].parts[0])
    assert share[: len(decoder.shares(found))].tolist() == decoder.shares(found)


def test_calibrated_confidences_hold_on_other_utterances() -> None:
    decoder = Decoder(TOKENS, beam=8)
    calibration = tuning.calibrate(noisy(SENTENCES * 30, 1.0), decoder)
    share, letters, right = tuning.signs(noisy(SENTENCES * 30, 1.0, seed=5), decoder)
    sure = np.array([calibration(*pair) for pair in zip(share, letters, strict=True)])
    assert confidence.reliability(sure, right).error < 0.05
    assert confidence.reliability(letters, right).error > 0.15


def test_too_little_to_calibrate_on() -> None:
    with pytest.raises(DecodingError, match="expected at least 100 recognised words"):
        tuning.calibrate(DEV[:3], Decoder(TOKENS))
    with pytest.raises(DecodingError, match="got 0, 0 right"):
        tuning.calibrate([], Decoder(TOKENS))


# The file that keeps it


@pytest.fixture
def path(tmp_path: Path) -> Path:
    copy = tmp_path / "m.onnx"
    shutil.copy(find_model("digits"), copy)
    return copy


def card(path: Path) -> dict[str, Any]:
    kept: dict[str, Any] = json.loads(onnxfile.metadata(onnxfile.read(path), "asr"))
    return kept


def test_the_file_keeps_what_was_found_and_all_else(path: Path) -> None:
    before, plain = card(path), Recognizer(path).transcribe(DATA / "connected_digits.flac")
    greedy, beam = Calibration(0.1, 0.2, 0.3), Calibration(-0.1, 0.5, 0.6)
    tuning.store(path, None, {"greedy": greedy, "beam": beam})
    assert card(path) == before | {
        "calibration": {
            "greedy": {"bias": 0.1, "share": 0.2, "letters": 0.3},
            "beam": {"bias": -0.1, "share": 0.5, "letters": 0.6},
        }
    }

    # What is found later replaces its own kind only.
    decoding = Decoding(0.9, 1.5, None)
    tuning.store(path, decoding, {"lm": Calibration(1.0, 1.0, 1.0), "beam": greedy})
    kept = card(path)
    assert kept["decoding"] == {"lm_weight": 0.9, "word_bonus": 1.5, "unknown": None}
    assert kept["decoding"]["unknown"] is None
    assert list(kept["calibration"]) == ["greedy", "beam", "lm"]
    assert kept["calibration"]["beam"] == kept["calibration"]["greedy"]
    tuning.store(path, None, {})
    assert card(path) == kept

    # And the file is still a model, whose words are the same and surer or less so.
    recognizer = Recognizer(path)
    assert recognizer.decoding == decoding
    found = recognizer.transcribe(DATA / "connected_digits.flac")
    assert found.text == plain.text == "five seven nine zero"
    assert [(word.start_s, word.end_s) for word in found.words] == [(word.start_s, word.end_s) for word in plain.words]
    assert [word.confidence for word in found.words] != [word.confidence for word in plain.words]
    assert list(path.parent.iterdir()) == [path]


def test_what_is_given_goes_before_what_is_stored(path: Path) -> None:
    tuning.store(path, Decoding(0.9, 1.5, -3.0), {})
    assert Recognizer(path, decoding={"word_bonus": 0.25}).decoding == Decoding(0.9, 0.25, -3.0)
    assert Recognizer(path, decoding={"unknown": None}).decoding == Decoding(0.9, 1.5, None)


@pytest.mark.parametrize(
    ("stored", "decoding"),
    [
        ({"lm_weight": 0.5}, Decoding(0.5)),
        ({"lm_weight": "much"}, Decoding()),
        ({"lm_weight": math.nan}, Decoding()),
        ({"lm_weight": 1, "other": 2}, Decoding(1)),
        ({"lm_weight": -1}, Decoding()),
        ({"lm_weight": None}, Decoding()),
        ({"unknown": None}, Decoding(unknown=None)),
        ([1, 2], Decoding()),
        (None, Decoding()),
    ],
    ids=str,
)
def test_a_card_with_something_else(path: Path, stored: object, decoding: Decoding) -> None:
    changed = card(path) | {"decoding": stored, "calibration": stored}
    path.write_bytes(onnxfile.with_metadata(onnxfile.read(path), "asr", json.dumps(changed)))
    recognizer = Recognizer(path)
    assert recognizer.decoding == decoding
    assert recognizer.transcribe(DATA / "7_jackson_0.wav").text == "seven"
    tuning.store(path, Decoding(0.7), {"lm": Calibration(0.0, 1.0, 1.0)})
    assert card(path)["calibration"]["lm"] == {"bias": 0.0, "share": 1.0, "letters": 1.0}
    assert Recognizer(path).decoding == Decoding(0.7)


@pytest.mark.parametrize(
    "stored", [{"bias": 1}, {"bias": None, "share": 1, "letters": 1}, {"bias": "x"}, 3, None], ids=str
)
def test_a_card_with_another_calibration(path: Path, stored: object) -> None:
    changed = card(path) | {"calibration": {"beam": stored}}
    path.write_bytes(onnxfile.with_metadata(onnxfile.read(path), "asr", json.dumps(changed)))
    plain = Recognizer("digits").transcribe(DATA / "7_jackson_0.wav")
    assert Recognizer(path).transcribe(DATA / "7_jackson_0.wav") == plain


def test_onnx_reads_what_is_written(path: Path) -> None:
    before = onnx.load(path)
    tuning.store(path, Decoding(), {"beam": Calibration(0.0, 1.0, 1.0)})
    after = onnx.load(path)
    onnx.checker.check_model(after)
    assert after.graph == before.graph
    assert after.opset_import == before.opset_import
    assert json.loads(after.metadata_props[0].value) == card(path)
