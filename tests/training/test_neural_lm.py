"""Recurrent language models: training, the file against torch, resuming."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asr.errors import LmError, TrainingError
from asr.lm.kneserney import read
from asr.lm.model import BOS, EOS, SPECIAL_WORDS
from asr.lm.neural import NeuralLm
from asr.models import find_model
from asr.training import neural_lm, schedule
from asr.training.neural_lm import Batches, Network, Settings

WORDS = [*SPECIAL_WORDS, "the", "a", "cat", "dog", "saw", "sat", "on", "mat", "bird"]
LINES = ["the cat sat", "a dog saw the cat", "the dog sat on the mat", "the bird saw a cat", "the zebra sat"]
TINY = Settings(embedding=16, hidden=24, batch_words=20, epochs=2, lr=0.02)
TEXTS = st.lists(st.lists(st.sampled_from([*WORDS[3:], "zebra", "unheard"]), max_size=9).map(" ".join), max_size=9)


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    model = Network(len(WORDS), TINY).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # far from uniform
    return model


@pytest.fixture(scope="module")
def write(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def written(int8: bool = False, words: list[str] = WORDS) -> Path:
        path = tmp_path_factory.mktemp("model") / "neural.onnx"
        neural_lm.write(network, words, {"lines": 5}, path, int8=int8)
        return path

    return written


@pytest.fixture(scope="module")
def neural(write: Callable[..., Path]) -> NeuralLm:
    return NeuralLm(write())


@given(texts=TEXTS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_computes_what_torch_does_for_each_text_alone(network: Network, neural: NeuralLm, texts: list[str]) -> None:
    found = neural.log_probs(texts)
    assert len(found) == len(texts)
    for text, log_probs in zip(texts, found, strict=True):
        ids = torch.tensor([BOS, *(WORDS.index(word) if word in WORDS else 0 for word in text.split()), EOS])[:, None]
        with torch.no_grad():
            expected = -network.losses(ids, torch.ones(len(ids) - 1, 1, dtype=torch.bool)).numpy()
        np.testing.assert_allclose(log_probs, expected, atol=1e-4)


@pytest.mark.parametrize("int8", [False, True])
def test_the_probabilities_of_all_words_sum_to_one(write: Callable[..., Path], int8: bool) -> None:
    model = NeuralLm(write(int8))
    for before in ("", "the cat ", "a dog saw the "):
        at = len(before.split())
        texts = [before + word for word in WORDS if word not in ("<s>", "</s>")]
        said = sum(np.exp(log_probs[at]) for log_probs in model.log_probs(texts))
        ends = np.exp(model.log_probs([before.strip()])[0][at])
        never = np.exp(model._step(np.array([BOS]), model._start)[0][0, BOS]) if not before else 0
        assert said + ends + never <= 1 + 1e-3
        assert said + ends > 0.5


def test_int8_is_about_the_same(write: Callable[..., Path], neural: NeuralLm) -> None:
    eight = NeuralLm(write(int8=True))
    for left, right in zip(eight.log_probs(LINES), neural.log_probs(LINES), strict=True):
        np.testing.assert_allclose(left, right, atol=0.5)


def test_perplexity_counts_words_and_ends(neural: NeuralLm) -> None:
    found = neural.perplexity(LINES)
    assert (found.words, found.sentences, found.oovs) == (22, 5, 1)
    assert found.log_prob == pytest.approx(sum(log_probs.sum() for log_probs in neural.log_probs(LINES)))
    assert found.oov_log_prob == pytest.approx(neural.log_probs(["the zebra sat"])[0][1])
    assert neural.perplexity([]).including_oovs == 1


def test_a_training_that_is_stopped_and_resumed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    lines = LINES * 20
    assert neural_lm.train(lines, tmp_path / "whole.onnx", TINY, int8=False)
    stops = iter([False] * 7 + [True] * 9)
    part = tmp_path / "part.onnx"
    assert not neural_lm.train(lines, part, TINY, int8=False, stop=lambda: next(stops))
    assert not part.exists()
    with pytest.raises(TrainingError, match="holds an unfinished training; go on with --resume"):
        neural_lm.train(lines, part, TINY)
    with pytest.raises(TrainingError, match="with these settings, got another"):
        neural_lm.train(lines[1:], part, TINY, resume=True)
    assert neural_lm.train(lines, part, TINY, int8=False, resume=True)
    assert not part.with_suffix(".safetensors").exists()
    whole, resumed = NeuralLm(tmp_path / "whole.onnx"), NeuralLm(part)
    for left, right in zip(whole.log_probs(LINES), resumed.log_probs(LINES), strict=True):
        np.testing.assert_array_equal(left, right)
    assert whole.perplexity(LINES).including_oovs < len(WORDS) / 2  # it has learned something
    assert whole.info["lines"] == 100


def test_batches_hold_every_word_once_an_epoch() -> None:
    text = read([*LINES, "mat " * 200], 20, None)
    batches = Batches(text.ids, Settings(batch_words=12))
    for epoch in range(2):
        found = [batches[epoch * len(batches) + index] for index in range(len(batches))]
        words = np.concatenate([part[1:][valid].numpy() for part, valid in found])
        cut = text.ids[np.flatnonzero(text.ids == BOS)[-1] :][1 : neural_lm.MAX_WORDS + 2]
        rest = text.ids[: np.flatnonzero(text.ids == BOS)[-1]]
        np.testing.assert_array_equal(np.sort(words), np.sort([*rest[rest != BOS], *cut]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "schema 2, this version knows 1"),
        ({"kind": "recogniser"}, "expected a language model of asr lm train --neural"),
        ({"words": WORDS[1:]}, "expected a language model of asr lm train --neural"),
        ({"words": [*WORDS[:-1], "cat"]}, "expected a language model of asr lm train --neural"),
        ({"words": [*WORDS, "emu"]}, "log-probabilities of 13 words, got others"),
    ],
    ids=str,
)
def test_a_file_whose_metadata_is_wrong_is_refused(
    write: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    import json

    from asr.models import onnxfile

    data = onnxfile.read(write())
    card = json.loads(onnxfile.metadata(data, "asr")) | changes
    (tmp_path / "changed.onnx").write_bytes(onnxfile.with_metadata(data, "asr", json.dumps(card)))
    with pytest.raises(LmError, match=message):
        NeuralLm(tmp_path / "changed.onnx")


def test_other_files_are_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(LmError, match=r"No such file|no such"):
        NeuralLm(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("the cat")
    with pytest.raises(LmError, match="expected a model"):
        NeuralLm(tmp_path / "text.onnx")
    with pytest.raises(LmError, match="expected a language model of asr lm train --neural"):
        NeuralLm(find_model("digits"))


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [schedule.rate(neural_lm.SCHEDULE, step / 100) for step in range(101)]
    assert rates[2] == max(rates) == 1
    assert rates[100] == pytest.approx(0, abs=1e-9)
    assert all(math.isfinite(rate) for rate in rates)
