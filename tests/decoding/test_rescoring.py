"""Rescoring: the mixture against its definition, in the decoder, at the command line."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DATA, Cli
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.decoding import fusion, tuning
from asr.decoding.decoder import Decoder
from asr.decoding.fusion import Decoding
from asr.decoding.rescoring import Rescorer
from asr.errors import DecodingError
from asr.lm import kneserney
from asr.lm.neural import NeuralLm
from asr.models import find_model
from asr.recognizer import Recognizer
from asr.tokens import Tokens
from asr.training import neural_lm

LINES = ["the cat sat", "a dog saw the cat", "the dog sat on the mat", "the bird saw a cat"]
NGRAM = kneserney.train([*LINES, "the zebra sat"], order=2)
TOKENS = Tokens.of(" acdehost")
TEXTS = st.lists(
    st.lists(st.sampled_from([*"the a cat dog sat zebra".split(), "unheard"]), max_size=9).map(" ".join),  # noqa: SIM905
    min_size=1,
    max_size=9,
)


@pytest.fixture(scope="module")
def neural(tmp_path_factory: pytest.TempPathFactory) -> NeuralLm:
    path = tmp_path_factory.mktemp("model") / "neural.onnx"
    neural_lm.train(LINES, path, neural_lm.Settings(embedding=16, hidden=24, epochs=20, lr=0.02), int8=False)
    return NeuralLm(path)


@given(texts=TEXTS, weight=st.floats(0.1, 2), share=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_texts_gain_what_the_mixture_says(neural: NeuralLm, texts: list[str], weight: float, share: float) -> None:
    gains = Rescorer(neural, NGRAM, Decoding(lm_weight=weight, neural_share=share), TOKENS).gains(texts)
    for text, gain, recurrent in zip(texts, gains, neural.log_probs(texts), strict=True):
        words = [*text.split(), "</s>"]
        state, total = np.array([NGRAM.start]), 0.0
        for word, p_neural in zip(words, np.exp(recurrent), strict=True):
            log_prob, state = NGRAM.score(state, NGRAM.ids([word]))
            p = np.exp(log_prob[0])
            mixed = (1 - share) * p + share * p_neural if word in neural and word in NGRAM else p
            total += weight * (np.log(mixed) - log_prob[0])
        assert gain == pytest.approx(total, abs=1e-4)


def test_the_decoder_ranks_anew(neural: NeuralLm) -> None:
    rng = np.random.default_rng(1)
    log_probs = np.log(rng.dirichlet(np.ones(len(TOKENS)), 14)).astype(np.float32)
    decoding = Decoding(lm_weight=0.7, neural_share=0.6)
    plain = Decoder(TOKENS, beam=40, lm=NGRAM, decoding=decoding)(log_probs)
    anew = Decoder(TOKENS, beam=40, lm=NGRAM, decoding=decoding, neural=neural)(log_probs)
    gains = Rescorer(neural, NGRAM, decoding, TOKENS).gains([TOKENS.text(one.token_ids) for one in plain[:16]])
    all_gains = [*gains, *[min(gains)] * (len(plain) - 16)]  # those far behind are not read
    expected = {one.token_ids: one.score + gain for one, gain in zip(plain, all_gains, strict=True)}
    assert {one.token_ids: one.score for one in anew} == pytest.approx(expected, abs=1e-6)
    assert [one.score for one in anew] == sorted((one.score for one in anew), reverse=True)
    assert [one.token_ids for one in anew] != [one.token_ids for one in plain]


def test_the_share_is_found_on_a_dev_set(neural: NeuralLm) -> None:
    rng = np.random.default_rng(2)
    parts = [np.log(rng.dirichlet(np.ones(len(TOKENS)), 14)).astype(np.float32) for _ in range(4)]
    examples = [tuning.Example([one], "the cat sat") for one in parts]
    told: list[tuning.Trial] = []
    best = tuning.best_share(examples, TOKENS, NGRAM, neural, beam=4, start=Decoding(0.7), progress=told.append)
    assert (best.wer, best.cer) == min((trial.wer, trial.cer) for trial in told)
    assert len({trial.decoding.neural_share for trial in told}) == len(told) > 2
    assert all(trial.decoding == replace(Decoding(0.7), neural_share=trial.decoding.neural_share) for trial in told)
    assert "neural_share=0.2" in str(told[1])


def test_what_it_cannot_work_with(neural: NeuralLm) -> None:
    characters = kneserney.train(map(fusion.spell, LINES), order=2)
    with pytest.raises(DecodingError, match="got one of characters"):
        Decoder(TOKENS, lm=characters, neural=neural)
    with pytest.raises(DecodingError, match="got none: --lm FILE"):
        Decoder(TOKENS, neural=neural)


@pytest.fixture(scope="module")
def digits() -> str:
    words = "zero one two three four five six seven eight nine".split()  # noqa: SIM905
    return "\n".join(f"{one} {two}" for one in words for two in words)


def test_at_the_command_line(cli: Cli, tmp_path: Path, digits: str) -> None:
    """Train, measure, recognise: numbers said one after another, which a larger model must find as well."""
    (tmp_path / "text").write_text(digits)
    assert cli("lm", "train", "text", "-o", "digits.lm").returncode == 0
    train = ("lm", "train", "--neural", "text", "-o", "digits.lstm", "--hidden", 16, "--epochs", 2)
    done = cli(*train)
    assert done.returncode == 0, done.stderr
    assert "10 words known" in done.stderr
    assert "use it with --rescore digits.lstm" in done.stderr
    assert cli(*train).returncode == 1  # the file exists
    found = cli("lm", "perplexity", "digits.lstm", "text")
    assert found.stdout.startswith("perplexity ")
    rows = dict(line.split(maxsplit=1) for line in cli("lm", "info", "digits.lstm").stdout.splitlines())
    assert (rows["1-grams"], rows["hidden"], rows["estimator"]) == ("13", "16", "LSTM of 16")
    audio, heed = DATA / "connected_digits.flac", ("-m", "digits", "--rescore", "digits.lstm")
    said = cli("transcribe", audio, *heed, "--lm", "digits.lm", "--decoding", "neural_share=0.5")
    assert said.stdout == "five seven nine zero\n", said.stderr
    without = cli("transcribe", audio, *heed)
    assert without.returncode == 2
    assert "is for a language model: --lm FILE" in without.stderr


def test_one_that_comes_with_a_model_by_name(
    cli: Cli, tmp_path: Path, neural: NeuralLm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside its language model, and heeded with that alone."""
    monkeypatch.setenv("ASR_MODELS", str(tmp_path / "own"))
    (tmp_path / "own").mkdir()
    shutil.copy(find_model("digits"), tmp_path / "own" / "mine.onnx")
    shutil.copy(neural.path, tmp_path / "own" / "mine.lstm")
    assert Recognizer("mine").neural is None  # there is nothing that it could be mixed into
    kneserney.train(["five seven nine zero"]).save(tmp_path / "own" / "mine.lm")
    arguments: dict[str, Any]
    for arguments in ({}, {"lm": "bundled"}, {"rescore": neural.path, "lm": tmp_path / "own" / "mine.lm"}):
        found = Recognizer("mine", **arguments).neural
        assert found is not None, arguments
        assert found.words == neural.words
    for arguments in ({"rescore": "none"}, {"lm": "none"}, {"lm": tmp_path / "own" / "mine.lm"}, {"beam": 1}):
        assert Recognizer("mine", **arguments).neural is None, arguments
    assert "mine.lstm" in cli("info", "mine").stdout
    assert "recurrent language model 0." in cli("models").stdout
    said = cli("transcribe", "-v", DATA / "connected_digits.flac", "-m", "mine")
    assert said.stdout == "five seven nine zero\n", said.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--neural", "--entropy", "1e-8", "-o", "a.lstm"], "has no n-grams to prune"),
        (["--neural", "-o", "a.lm"], "ends in .lstm"),
        (["--hidden", "16", "-o", "a.lm"], "are of --neural"),
    ],
)
def test_wrong_usage(cli: Cli, options: list[str], message: str) -> None:
    done = cli("lm", "train", "text", *options)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
