"""The second loss, of the words' sounds: its dictionary, its place in the network, and a training with it."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from test_loop import TINY, assert_same_training, make_corpus, merge, train, written

from asr.audio import Geometry
from asr.errors import ConfigError
from asr.text import english
from asr.tokens import Tokens
from asr.training import checkpoint, config, plots
from asr.training.data import Corpus, Item
from asr.training.model import AcousticModel
from asr.training.pronunciation import Pronunciations


@pytest.fixture
def dictionary(tmp_path: Path) -> Path:
    path = tmp_path / "dictionary.txt"
    path.write_text("AB AH0 B\nab(2) EY1 B\nC K\nCAB K AE1 B\n")
    return path


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "curves", lambda run: None)
    monkeypatch.setattr(plots, "gradients", lambda run: None)


def settings_of(folder: Path, dictionary: Path, **changes: Any) -> config.Config:
    train_set, dev_set = make_corpus(folder), make_corpus(folder, ["ab", "c"], "dev")
    pronunciation = {"dictionary": str(dictionary), "layer": 1, **changes.pop("pronunciation", {})}
    paths = {"data__train": [str(train_set)], "data__dev": str(dev_set)}
    return config.parse({**merge(TINY, paths | changes), "pronunciation": pronunciation}, "test")


# --- the dictionary ---


def test_words_are_normalised_and_the_first_pronunciation_counts(dictionary: Path) -> None:
    dictionary.write_text(
        ";;; a comment\n\nAB  AH0 B\nAB(2)  EY1 B\nD'OU  D UW1\nÉTÉ EY T EY\nlead L EH D\nlead L IY D\n"
    )
    known = Pronunciations(dictionary, english)
    assert known.symbols == ["AH", "B", "D", "EH", "EY", "L", "T", "UW"]
    assert len(known) == 9
    sounds = {text: [known.symbols[one - 1] for one in known.encode(text)] for text in ("ab d'ou", "ete", "lead ab")}
    assert sounds == {
        "ab d'ou": ["AH", "B", "D", "UW"],
        "ete": ["EY", "T", "EY"],
        "lead ab": ["L", "EH", "D", "AH", "B"],
    }


def test_a_text_with_an_unknown_word_has_no_sounds(dictionary: Path) -> None:
    known = Pronunciations(dictionary, english)
    assert known.encode("ab zz ab") == ()
    assert known.encode("") == ()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"ab\n", r"line 1: expected a word and its sounds, got 'ab'"),
        (b";;; nothing\n\n", "expected a pronouncing dictionary, got no words"),
        (b"\xff\xfe", "cannot be read"),
        (None, "cannot be read.*No such file"),
    ],
)
def test_a_file_that_is_no_dictionary(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    path = tmp_path / "words"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=complaint):
        Pronunciations(path, english)


# --- the network ---


def test_a_layer_that_is_not_there(tmp_path: Path, dictionary: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected pronunciation.layer <= network.layers, got 9 > "):
        settings_of(tmp_path, dictionary, pronunciation={"layer": 9})


@pytest.mark.parametrize("chunk", [None, (2, 1)])
def test_the_sounds_hear_their_layer(tmp_path: Path, dictionary: Path, chunk: tuple[int, int] | None) -> None:
    """With the layers above left out, the network's own output stands where that of the sounds stood."""
    settings = settings_of(tmp_path, dictionary, network__layers=2, network__dropout=0.0, network__bidirectional=True)
    lower = settings_of(tmp_path, dictionary, network__layers=1, network__dropout=0.0, network__bidirectional=True)
    net, single = AcousticModel(settings, 4).network, AcousticModel(lower, 5).network
    net.add_sounds(1, 5)
    weights = net.state_dict()
    single.load_state_dict({name: weights[name.replace("output.", "sounds.")] for name in single.state_dict()})
    x, lengths = torch.randn(2, 60, settings.features.n_mels), [60, 31]
    _, frames, sounds = net.train()(x, lengths, chunk)
    expected = single.eval()(x, lengths, chunk)[0]
    for row, count in enumerate(frames.tolist()):
        torch.testing.assert_close(sounds[row, :count], expected[row, :count])
    assert net.eval()(x, lengths, chunk)[2] is None  # after the training nobody asks for them


def test_packed_layers_let_the_sounds_hear_the_same(tmp_path: Path, dictionary: Path) -> None:
    net = AcousticModel(settings_of(tmp_path, dictionary, network__layers=2, network__dropout=0.0), 4).network
    net.add_sounds(1, 5)
    x, lengths = torch.randn(2, 60, 20), [60, 31]
    _, frames, sounds = net.train()(x, lengths)
    packed = net._outputs(*net._forward_packed(net.subsample(x), frames), frames)[2]
    assert packed is not None
    for row, count in enumerate(frames.tolist()):
        torch.testing.assert_close(packed[row, :count], sounds[row, :count], rtol=1e-4, atol=1e-5)


# --- the training ---


@pytest.mark.usefixtures("no_plots")
def test_sounds_teach_and_unknown_ones_change_nothing(tmp_path: Path, dictionary: Path) -> None:
    settings = settings_of(tmp_path, dictionary)
    said = Console(file=io.StringIO(), width=200)
    train(settings, tmp_path / "with", console=said)
    assert "pronunciations known: of 3 of 16 utterances" in written(said)
    train(settings.model_copy(update={"pronunciation": None}), tmp_path / "without")
    dictionary.write_text("other AH DH ER\n")
    train(settings, tmp_path / "unknown")
    taught, plain, unknown = (
        checkpoint.load(tmp_path / run / "model.safetensors")[0] for run in ("with", "without", "unknown")
    )
    assert plain.keys() == unknown.keys() == taught.keys()  # the second output is not left in the model
    assert all(torch.equal(plain[name], unknown[name]) for name in plain)
    assert not torch.equal(plain["network.conv.0.weight"], taught["network.conv.0.weight"])


@pytest.mark.usefixtures("no_plots")
def test_a_killed_training_with_sounds_ends_the_same(
    tmp_path: Path, dictionary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path, dictionary, checkpoint_minutes=0)
    train(settings, tmp_path / "whole")
    real, left = checkpoint.save, itertools.count(-6)  # within the second epoch

    def save(path: Path, *rest: Any) -> None:
        if next(left) == 0:
            raise KeyboardInterrupt
        real(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        with pytest.raises(KeyboardInterrupt):
            train(settings, tmp_path / "killed")
    weights = checkpoint.load_model(tmp_path / "killed" / "last.safetensors")[0].state_dict()
    assert not any("sounds" in name for name in weights)
    train(settings, tmp_path / "killed", resume=True)
    assert_same_training(tmp_path / "killed", tmp_path / "whole")


def test_joined_utterances_have_the_sounds_of_all_or_none(tmp_path: Path, dictionary: Path) -> None:
    tokens = Tokens.of(" abc")
    settings = settings_of(tmp_path, dictionary)
    corpus = Corpus(settings.data.train, tokens, settings, geometry=Geometry(400, 320), training=True)
    corpus.decode()
    numbers = {example.text: number for number, example in enumerate(corpus.examples)}
    both = Item(numbers["ab"], joined=(numbers["cab"],))
    batch = corpus.load([both, Item(numbers["c"]), Item(numbers["ab"], joined=(numbers["bca"],))], 0)
    assert corpus.pronunciations is not None
    assert batch.sound_lengths.tolist() == [5, 1, 0]
    assert batch.sounds.tolist() == [*corpus.pronunciations.encode("ab cab"), *corpus.pronunciations.encode("c")]
