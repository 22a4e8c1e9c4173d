"""Rescoring: the network's file against torch, the mixture against its definition, and files that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asr import ctc, fusion, kneserney, onnxfile, tuning
from asr.decoder import Decoder
from asr.fusion import Decoding
from asr.lm import BOS, EOS, SPECIAL_WORDS
from asr.network import find_model
from asr.rescoring import RecurrentLm, Rescorer, RescoringError
from asr.tokens import Tokens
from asr.training import neural_lm
from asr.training.neural_lm import NeuralLm, Settings
from tests.conftest import Cli

WORDS = [*SPECIAL_WORDS, "the", "a", "cat", "dog", "saw", "sat", "on", "mat", "bird"]
LINES = ["the cat sat", "a dog saw the cat", "the dog sat on the mat", "the bird saw a cat", "the zebra sat"]
NGRAM = kneserney.train(LINES, order=2)
TEXTS = st.lists(st.lists(st.sampled_from([*WORDS[3:], "zebra", "unheard"]), max_size=9).map(" ".join), max_size=9)


def card(**changes: Any) -> dict[str, Any]:
    return {"schema": 1, "kind": "neural language model", "words": WORDS, "info": {"lines": 5}, **changes}


@pytest.fixture(scope="module")
def network() -> NeuralLm:
    torch.manual_seed(0)
    model = NeuralLm(len(WORDS), Settings(embedding=16, hidden=24)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 3  # far from uniform
    return model


@pytest.fixture(scope="module")
def write(network: NeuralLm, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def written(int8: bool = False, **changes: Any) -> Path:
        path = tmp_path_factory.mktemp("model") / "neural.onnx"
        neural_lm.write(network, card(**changes), path, int8=int8)
        return path

    return written


@pytest.fixture(scope="module")
def neural(write: Callable[..., Path]) -> RecurrentLm:
    return RecurrentLm(write())


@given(texts=TEXTS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_computes_what_torch_does_for_each_text_alone(
    network: NeuralLm, neural: RecurrentLm, texts: list[str]
) -> None:
    found = neural.log_probs(texts)
    assert len(found) == len(texts)
    for text, log_probs in zip(texts, found, strict=True):
        ids = [BOS, *(WORDS.index(word) if word in WORDS else 0 for word in text.split()), EOS]
        with torch.no_grad():
            expected = network(torch.tensor([ids]))[0].numpy()
        np.testing.assert_allclose(log_probs, expected, atol=1e-4)


def test_many_texts_take_several_passes(neural: RecurrentLm) -> None:
    texts = [" ".join(["the"] * n) for n in (300, 1, 700, 0, 5, 2100)] * 3
    alone = [neural.log_probs([text])[0] for text in texts]
    for together, one in zip(neural.log_probs(texts), alone, strict=True):
        np.testing.assert_allclose(together, one, atol=1e-4)


@pytest.mark.parametrize("int8", [False, True])
def test_the_probabilities_of_all_words_sum_to_one(write: Callable[..., Path], int8: bool) -> None:
    model = RecurrentLm(write(int8))
    for before in ("", "the cat ", "a dog saw the "):
        at = len(before.split())
        total = sum(np.exp(log_probs[at]) for log_probs in model.log_probs([before + word for word in WORDS]))
        assert total == pytest.approx(1, abs=1e-3)


def test_int8_is_about_the_same(write: Callable[..., Path], neural: RecurrentLm) -> None:
    eight = RecurrentLm(write(int8=True))
    for left, right in zip(eight.log_probs(LINES), neural.log_probs(LINES), strict=True):
        np.testing.assert_allclose(left, right, atol=0.5)


def test_perplexity_counts_as_that_of_ngrams(neural: RecurrentLm) -> None:
    found, other = neural.perplexity(LINES), NGRAM.perplexity(LINES)
    assert (found.words, found.sentences, found.oovs) == (other.words, other.sentences, 1)
    assert found.log_prob == pytest.approx(sum(log_probs.sum() for log_probs in neural.log_probs(LINES)))
    assert found.oov_log_prob == pytest.approx(neural.log_probs(["the zebra sat"])[0][1])
    assert neural.perplexity([]).including_oovs == 1


@given(texts=TEXTS, weight=st.floats(0.1, 2), share=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_texts_gain_what_the_mixture_says(neural: RecurrentLm, texts: list[str], weight: float, share: float) -> None:
    gains = Rescorer(neural, NGRAM, Decoding(lm_weight=weight, neural_share=share))(texts)
    for text, gain, recurrent in zip(texts, gains, neural.log_probs(texts), strict=True):
        words = [*text.split(), "</s>"]
        state, total = np.array([NGRAM.start]), 0.0
        for word, p_neural in zip(words, np.exp(recurrent), strict=True):
            log_prob, state = NGRAM.score(state, NGRAM.ids([word]))
            p = np.exp(log_prob[0])
            mixed = (1 - share) * p + share * p_neural if word in WORDS and word in NGRAM else p
            total += weight * (np.log(mixed) - log_prob[0])
        assert gain == pytest.approx(total, abs=1e-4)


def test_the_decoder_ranks_anew(neural: RecurrentLm) -> None:
    tokens = Tokens.of(" acdehost")
    rng = np.random.default_rng(1)
    log_probs = np.log(rng.dirichlet(np.ones(len(tokens)), 14)).astype(np.float32)
    decoding = Decoding(lm_weight=0.7, neural_share=0.6)
    plain = Decoder(tokens, beam=12, lm=NGRAM, decoding=decoding)(log_probs)
    anew = Decoder(tokens, beam=12, lm=NGRAM, decoding=decoding, neural=neural)(log_probs)
    gain = Rescorer(neural, NGRAM, decoding)
    expected = {h.token_ids: h.score + gain([" ".join(tokens.decode(h.token_ids).split())])[0] for h in plain}
    assert {h.token_ids: h.score for h in anew} == pytest.approx(expected, abs=1e-4)
    assert [h.score for h in anew] == sorted((h.score for h in anew), reverse=True)
    assert [h.token_ids for h in anew] != [h.token_ids for h in plain]
    assert all(isinstance(h, ctc.Hypothesis) for h in anew)


def test_at_the_command_line(cli: Cli, tmp_path: Path) -> None:
    """Train, measure, recognise: numbers said one after another, which a larger model must find as well."""
    digits = "zero one two three four five six seven eight nine".split()  # noqa: SIM905
    (tmp_path / "text").write_text("\n".join(f"{one} {two}" for one in digits for two in digits))
    assert cli("lm", "train", "text", "-o", "digits.lm").returncode == 0
    train = ("lm", "neural", "text", "-o", "digits.onnx", "--hidden", 16, "--epochs", 2)
    done = cli(*train)
    assert done.returncode == 0, done.stderr
    assert "10 words known" in done.stderr
    assert cli(*train).returncode == 1  # the file exists
    found = cli("lm", "perplexity", "digits.onnx", "text")
    assert found.stdout.startswith("perplexity ")
    audio = Path(__file__).parent / "data" / "connected_digits.flac"
    said = cli("transcribe", audio, "--lm", "digits.lm", "--rescore", "digits.onnx", "--decoding", "neural_share=0.5")
    assert said.stdout == "five seven nine zero\n", said.stderr
    assert cli("transcribe", audio, "--rescore", "digits.onnx").returncode == 2  # without --lm


def test_the_share_is_found_on_a_dev_set(neural: RecurrentLm) -> None:
    tokens = Tokens.of(" acdehost")
    rng = np.random.default_rng(2)
    log_probs = [np.log(rng.dirichlet(np.ones(len(tokens)), 14)).astype(np.float32) for _ in range(4)]
    examples = [tuning.Example(one, "the cat sat") for one in log_probs]
    told: list[tuning.Trial] = []
    best = tuning.best_share(examples, tokens, NGRAM, neural, beam=4, start=Decoding(0.7), progress=told.append)
    assert (best.wer, best.cer) == min((trial.wer, trial.cer) for trial in told)
    assert len({trial.decoding.neural_share for trial in told}) == len(told) > 2
    assert all(trial.decoding == replace(Decoding(0.7), neural_share=trial.decoding.neural_share) for trial in told)


def test_what_it_cannot_work_with(neural: RecurrentLm) -> None:
    characters = kneserney.train(map(fusion.spell, LINES), order=2)
    with pytest.raises(RescoringError, match="got one of characters"):
        Rescorer(neural, characters, Decoding())
    with pytest.raises(RescoringError, match="expected a language model for the search"):
        Decoder(Tokens.of(" a"), neural=neural)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "schema 2, this version knows 1"),
        ({"schema": None}, "expected the metadata of a recurrent language model"),
        ({"words": WORDS[1:]}, "expected the metadata of a recurrent language model"),
        ({"words": [*WORDS, "cat"]}, "expected the metadata of a recurrent language model"),
        ({"words": [*WORDS[:5], 5]}, "expected the metadata of a recurrent language model"),
        ({"words": [*WORDS, "emu"]}, "the network cannot run"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_file_whose_metadata_is_wrong_is_refused(
    write: Callable[..., Path], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RescoringError, match=message):
        RecurrentLm(write(**changes))


def test_other_files_are_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(RescoringError, match="no such language model"):
        RecurrentLm(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("the cat")
    with pytest.raises(RescoringError, match="expected a recurrent language model"):
        RecurrentLm(tmp_path / "text.onnx")
    whole = write().read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RescoringError, match="or get a whole copy"):
        RecurrentLm(tmp_path / "cut.onnx")
    with pytest.raises(RescoringError, match="expected the metadata of a recurrent language model"):
        RecurrentLm(find_model("digits"))
    # A recogniser's network that claims to be a language model's.
    liar = onnxfile.with_metadata(onnxfile.read(find_model("digits")), "asr", json.dumps(card()))
    (tmp_path / "liar.onnx").write_bytes(liar)
    with pytest.raises(RescoringError, match="the network cannot run"):
        RecurrentLm(tmp_path / "liar.onnx")


def test_a_network_that_gives_no_log_probabilities_is_refused(write: Callable[..., Path]) -> None:
    path = write()
    graph = onnx.load(path)
    for node in graph.graph.node:
        node.output[:] = ["hidden" if name == "log_probs" else name for name in node.output]
    graph.graph.node.append(onnx.helper.make_node("Identity", ["positive"], ["log_probs"]))
    graph.graph.node.insert(-1, onnx.helper.make_node("Sub", ["hidden", "hidden"], ["zero"]))
    graph.graph.node.insert(-1, onnx.helper.make_node("Sub", ["zero", "hidden"], ["positive"]))
    onnx.save(graph, path)
    with pytest.raises(RescoringError, match="got others; train it again"):
        RecurrentLm(path)
