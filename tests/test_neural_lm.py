"""The recurrent language model: its softmax against the definition, its batches, and that training learns and resumes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from asr import onnxfile
from asr.lm import BOS, EOS
from asr.rescoring import RecurrentLm
from asr.training import neural_lm
from asr.training.neural_lm import AdaptiveSoftmax, Batches, NeuralLm, NeuralLmError, Settings, train

TINY = Settings(vocabulary_size=30, embedding=16, hidden=24, dropout=0, epochs=60, batch_words=60, lr=0.03, bf16=False)
# Each line ends with the animal that it begins with, however many words stand between.
LINES = [f"{animal} {'and ' * n}{animal}" for animal in ("cat", "dog", "cow") for n in (1, 2)] * 8


@pytest.mark.parametrize("n_words", [3, 4, 7, 50])
def test_the_softmax_is_the_definition_and_sums_to_one(n_words: int) -> None:
    torch.manual_seed(0)
    softmax = AdaptiveSoftmax(8, n_words)
    x, words = torch.randn(200, 8), torch.randint(n_words, (200,))
    log_probs = softmax(x)
    assert log_probs.shape == (200, n_words)
    torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(200))
    torch.testing.assert_close(softmax.losses(x, words), -log_probs[torch.arange(200), words])


def test_a_padded_batch_gives_each_line_what_it_gets_alone() -> None:
    torch.manual_seed(0)
    model = NeuralLm(20, TINY).eval()
    long, short = [BOS, 5, 6, 7, 8, EOS], [BOS, 9, EOS]
    words = torch.tensor([long, short + [EOS] * 3])
    valid = torch.tensor([[True] * 5, [True] * 2 + [False] * 3]).T
    together = model.losses(words.T, valid)
    alone = [-model(torch.tensor([line]))[0] for line in (long, short)]
    expected = torch.stack([torch.nn.functional.pad(line, (0, 5 - len(line))) for line in alone]).T[valid]
    torch.testing.assert_close(together, expected)


def test_every_epoch_has_every_line_once_in_batches_of_like_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neural_lm, "MAX_WORDS", 12)
    rng = np.random.default_rng(0)
    lines = [[BOS, *rng.integers(3, 99, rng.integers(1, 16)), EOS] for _ in range(60)]
    batches = Batches(np.concatenate(lines).astype(np.int32), Settings(batch_words=64))
    orders = []
    for epoch in range(2):
        found = []
        for step in range(len(batches) * epoch, len(batches) * (epoch + 1)):
            words, valid = batches[step]
            assert valid.shape == (len(words) - 1, words.shape[1])
            assert words.numel() <= 2 * 64
            found += [[BOS, *line[1:][kept].tolist()] for line, kept in zip(words.T, valid.T, strict=True)]
        assert sorted(found) == sorted([int(word) for word in line[:14]] for line in lines)
        orders.append(found)
    assert orders[0] != orders[1]
    words, _ = batches[0]  # any step, again
    assert words.T[0].tolist()[: len(orders[0][0])] == orders[0][0]


def test_training_learns_to_remember(tmp_path: Path) -> None:
    told: list[str] = []
    out = tmp_path / "tiny.onnx"
    train(LINES, out, TINY, info={"normaliser": "english"}, int8=False, progress=told.append)
    model = RecurrentLm(out)
    # 3 animals, 2 lengths, 4.5 words with the end; who has forgotten the first word must guess the last.
    assert 6 ** (1 / 4.5) < model.perplexity(LINES).excluding_oovs < 0.95 * (6 * 3) ** (1 / 4.5)
    right, wrong = (sum(model.log_probs([f"cat and and {last}"])[0]) for last in ("cat", "dog"))
    assert right > wrong + 1
    assert model.info["normaliser"] == "english"
    assert model.info["settings"]["hidden"] == 24  # type: ignore[index]
    assert "4 words known" in told[0]
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.onnx"]


def test_a_training_that_was_killed_goes_on_to_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neural_lm, "_CHECKPOINT_S", 0.0)  # after every step
    short = replace(TINY, epochs=2)
    train(LINES, tmp_path / "whole.onnx", short, int8=False)

    steps = neural_lm._Session._step
    left = [5]

    def killed(session: neural_lm._Session) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return steps(session)

    monkeypatch.setattr(neural_lm._Session, "_step", killed)
    out = tmp_path / "parts.onnx"
    with pytest.raises(KeyboardInterrupt):
        train(LINES, out, short, int8=False)
    with pytest.raises(NeuralLmError, match="holds an unfinished training"):
        train(LINES, out, short)
    monkeypatch.setattr(neural_lm._Session, "_step", steps)
    with pytest.raises(NeuralLmError, match="expected a training on this text"):
        train(LINES[1:], out, short, resume=True)
    train(LINES, out, short, resume=True, int8=False)
    whole, parts = (RecurrentLm(tmp_path / name).log_probs(LINES) for name in ("whole.onnx", "parts.onnx"))
    for left_row, right_row in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(left_row, right_row)


def test_a_loss_that_is_not_finite_is_reported(tmp_path: Path) -> None:
    with pytest.raises(NeuralLmError, match="not finite at step"):
        train(LINES, tmp_path / "x.onnx", replace(TINY, lr=1e30))


@pytest.mark.parametrize("int8", [False, True])
def test_the_file_says_what_it_is_and_holds_only_known_operators(tmp_path: Path, int8: bool) -> None:
    out = tmp_path / "tiny.onnx"
    train(LINES, out, replace(TINY, epochs=0.5), int8=int8)
    card = json.loads(onnxfile.metadata(onnxfile.read(out), "asr"))
    assert card["precision"] == ("int8" if int8 else "float32")
    assert card["words"][:3] == ["<unk>", "<s>", "</s>"]
    assert sorted(card["words"][3:]) == ["and", "cat", "cow", "dog"]
