"""A trained model, adapted to new recordings: tones a third higher than those that it learnt."""

import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import DATA, Cli
from rich.console import Console

from asr import audio, manifest
from asr.decoding import ctc
from asr.errors import ConfigError, ManifestError, ModelError, TrainingError
from asr.manifest import Utterance, write
from asr.tokens import Tokens
from asr.training import adapt, checkpoint, config, loop, plots
from asr.training.export import export
from asr.training.model import AcousticModel
from asr.training.run import Outcome

TONES_HZ = {"a": 400, "b": 1100, "c": 2600}
TEXTS = ["a", "b", "c", "ab", "bc", "ca", "abc", "cab", "bca", "acb", "cba", "bac"]
QUIET = Console(quiet=True)
FAST = ["epochs=2", "batch.max_utterances=4"]


def recordings(folder: Path, name: str, texts: Sequence[str] = TEXTS, pitch: float = 1.0) -> Path:
    rng = np.random.default_rng(0)
    utterances = []
    for number, text in enumerate(texts):
        parts = [np.zeros(1600)]
        for letter in text:
            t = np.arange(rng.integers(1600, 3200)) / 16000
            parts += [0.3 * np.sin(2 * np.pi * pitch * TONES_HZ.get(letter, 3000) * t), np.zeros(800)]
        waveform = np.concatenate(parts)
        path = folder / f"{name}{number:02d}.wav"
        soundfile.write(path, waveform + rng.normal(0, 0.003, len(waveform)), 16000)
        utterances.append(Utterance(path, len(waveform) / 16000, text))
    write(folder / f"{name}.jsonl", utterances)
    return folder / f"{name}.jsonl"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a model that knows the lower tones."""
    folder = tmp_path_factory.mktemp("base")
    tree = {
        "name": "tones",
        "description": "tones",
        "epochs": 30,
        "average": None,
        "data": {
            "alphabet": " abc",
            "train": [str(recordings(folder, "train"))],
            "dev": str(recordings(folder, "dev", ["ab", "cab", "c"])),
        },
        "features": {"n_mels": 20},
        "network": {"cell": "gru", "layers": 1, "hidden": 16, "dropout": 0, "subsampling": 2, "conv_channels": 2},
        "augment": {"spec_augment": None},
        "batch": {"max_utterances": 2},
        "optimiser": {"lr": 0.02},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", _only_the_model(checkpoint.save))
        loop.train(config.parse(tree, "test"), folder / "run", device="cpu", threads=1, console=QUIET)
    return folder / "run"


def _only_the_model(save: Callable[..., None]) -> Callable[..., None]:
    return lambda path, *rest: None if path.name == "last.safetensors" else save(path, *rest)


@pytest.fixture
def higher(tmp_path: Path) -> Path:
    return recordings(tmp_path, "higher", pitch=1.3)


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "curves", lambda run: None)
    monkeypatch.setattr(plots, "gradients", lambda run: None)


def adapted(base: Path, new: Path, run: Path, *overrides: str, **options: Any) -> list[adapt.Comparison] | None:
    chosen: dict[str, Any] = {"device": "cpu", "threads": 1, "console": QUIET} | options
    return adapt.adapt(base, new, run, overrides or FAST, **chosen)


def texts_of(path: Path) -> list[str]:
    return [utterance.text for utterance in manifest.read(path)]


# --- what comes out ---


def test_it_learns_the_new_voice_and_tells_what_was_gained_and_lost(base: Path, higher: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    compared = adapted(base, higher, run, "epochs=20", "optimiser.lr=0.01", "batch.max_utterances=2")
    assert compared
    new, own = compared
    assert (new.name, own.name) == ("held out", "own dev set")
    assert (new.utterances, own.utterances, own.words) == (3, 3, 3)
    assert new.after.loss < 0.5 * new.before.loss
    assert json.loads((run / "adaptation.json").read_text())[0]["after"]["loss"] == new.after.loss
    # The figures are those of the files.
    for one, path in ((new, run / "held_out.jsonl"), (own, base.parent / "dev.jsonl")):
        for folder, errors in ((base, one.before), (run, one.after)):
            assert adapt._evaluate(folder, path, torch.device("cpu"), QUIET)[1] == errors

    model, settings, tokens, state = checkpoint.load_model(run)
    assert (settings.name, settings.description) == ("tones-adapted", "tones; adapted to higher")
    assert tokens == Tokens.of(" abc")
    assert state["training"]["weights"] == "last epoch"
    assert torch.equal(model.mean, checkpoint.load_model(base)[0].mean)
    export(run, tmp_path / "tones.onnx")


def test_a_fifth_is_held_out_always_the_same(base: Path, tmp_path: Path) -> None:
    new = recordings(tmp_path, "new", TEXTS + [text[::-1] for text in TEXTS] + ["aa"])  # 25
    for run in ("one", "two"):
        adapted(base, new, tmp_path / run)
    train, held_out = (texts_of(tmp_path / "one" / f"{name}.jsonl") for name in ("train", "held_out"))
    assert (len(train), len(held_out)) == (20, 5)
    assert sorted(train + held_out) == sorted(texts_of(new))
    assert (tmp_path / "two" / "held_out.jsonl").read_text() == (tmp_path / "one" / "held_out.jsonl").read_text()


def test_a_manifest_of_ones_own_is_held_out(base: Path, higher: Path, tmp_path: Path) -> None:
    dev = recordings(tmp_path, "mine", ["cc", "bb"], pitch=1.3)
    compared = adapted(base, higher, tmp_path / "run", dev=dev)
    assert compared
    assert compared[0].utterances == 2
    assert texts_of(tmp_path / "run" / "held_out.jsonl") == ["cc", "bb"]
    assert texts_of(tmp_path / "run" / "train.jsonl") == TEXTS


def test_replay_draws_from_the_models_own_training(base: Path, higher: Path, tmp_path: Path) -> None:
    adapted(base, higher, tmp_path / "run", replay=0.4)
    replayed = manifest.read(tmp_path / "run" / "replay.jsonl")
    own = {utterance.audio for utterance in manifest.read(base.parent / "train.jsonl")}
    assert len({utterance.audio for utterance in replayed} & own) == 6  # 9 new ones make 60 %
    settings = checkpoint.load_model(tmp_path / "run")[1]
    assert settings.data.train == (tmp_path / "run" / "train.jsonl", tmp_path / "run" / "replay.jsonl")


def test_pieces_of_words_stay_the_models(base: Path, higher: Path, tmp_path: Path) -> None:
    settings = checkpoint.load_model(base)[1]
    tree = config.to_dict(settings)
    tree["data"] |= {"tokens": "bpe", "vocabulary": 7}
    tokens = Tokens(["<blank>", *" abc", " a", "bc"])
    model = AcousticModel(config.parse(tree, "test"), len(tokens))
    checkpoint.save(tmp_path / "bpe.safetensors", model.state_dict(), {"config": tree, "tokens": tokens.symbols})
    adapted(tmp_path / "bpe.safetensors", higher, tmp_path / "run")
    assert checkpoint.load_model(tmp_path / "run")[2] == tokens


def test_killed_and_resumed_it_ends_the_same(
    base: Path, higher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    real = checkpoint.save

    def save(path: Path, *rest: Any) -> None:
        real(path, *rest)
        if path.name == "last.safetensors":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        with pytest.raises(Killed):
            adapted(base, higher, tmp_path / "run")
    kept = (tmp_path / "run" / "train.jsonl").read_text()
    assert adapted(base, higher, tmp_path / "run", resume=True) == adapted(base, higher, tmp_path / "whole")
    assert (tmp_path / "run" / "train.jsonl").read_text() == kept


def test_interrupted_there_is_nothing_to_compare(
    base: Path, higher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "train", lambda *_, **__: Outcome(False, tmp_path / "run"))
    assert adapted(base, higher, tmp_path / "run") is None


# --- what is missing or wrong ---


def test_without_its_own_dev_set_it_says_so(base: Path, higher: Path, tmp_path: Path) -> None:
    tensors, state = checkpoint.load(base / "model.safetensors")
    state["config"]["data"]["dev"] = str(tmp_path / "gone.jsonl")
    checkpoint.save(tmp_path / "moved.safetensors", tensors, state)
    said = io.StringIO()
    compared = adapted(tmp_path / "moved.safetensors", higher, tmp_path / "run", console=Console(file=said))
    assert compared
    assert [one.name for one in compared] == ["held out"]
    assert f"what is forgotten cannot be told: {tmp_path / 'gone.jsonl'}: no such manifest" in said.getvalue()


def test_texts_that_cannot_be_spelt_are_listed(base: Path, tmp_path: Path) -> None:
    new = recordings(tmp_path, "new", [*TEXTS, "über", "zoo"])
    run = tmp_path / "run"
    adapted(base, new, run)
    lines = [json.loads(line) for path in run.glob("skipped_*.jsonl") for line in path.read_text().splitlines()]
    assert {line["id"] for line in lines} == {"new12", "new13"}


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(TrainingError) as caught:
        adapted(*arguments, **options)
    return str(caught.value)


def test_an_exported_model_is_trained_on(base: Path, higher: Path, tmp_path: Path) -> None:
    """As its run folder is, but for the dev set, of which the file knows nothing."""
    file = tmp_path / "tones.onnx"
    export(base, file)
    settings = "epochs=2", "optimiser.lr=0.01"
    of_file, of_run = (
        adapted(file, higher, tmp_path / "file", *settings),
        adapted(base, higher, tmp_path / "run", *settings),
    )
    assert of_file is not None
    assert of_run is not None
    assert len(of_file) == 1
    assert of_file[0] == of_run[0]
    with pytest.raises(TrainingError, match=r"tones\.onnx does not say what it was trained on"):
        adapted(file, higher, tmp_path / "again", replay=0.5)


def test_a_model_that_is_none(higher: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ModelError, match=r"model\.onnx: expected a model \(ONNX\) written by asr export"):
        adapted(tmp_path / "model.onnx", higher, tmp_path / "run")
    assert "or one of the names digits, english" in refusal(tmp_path / "none", higher, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_bundled_model_is_trained_on_by_its_name(higher: Path, tmp_path: Path) -> None:
    model, settings, tokens, _ = checkpoint.load_model(Path("digits"))
    samples = torch.from_numpy(audio.read(DATA / "7_jackson_0.wav"))
    padded = model.geometry.pad(samples.numpy())
    with torch.no_grad():
        best = model(torch.from_numpy(padded)[None])[0].numpy()
    assert tokens.text(ctc.greedy(best).token_ids) == "seven"
    assert settings.data.dev.name == checkpoint.NO_DATA


def test_too_few_recordings(base: Path, tmp_path: Path) -> None:
    new = recordings(tmp_path, "new", TEXTS[:9])
    assert refusal(base, new, tmp_path / "run") == (
        f"{new}: expected at least 10 utterances, of which some are held out, got 9; "
        "record more, or name a manifest to hold out with --dev"
    )
    assert adapted(base, new, tmp_path / "run", dev=new)


def test_a_folder_that_exists_is_left_alone(base: Path, higher: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("mine")
    for resume in (False, True):
        assert f"{tmp_path}: exists already" in refusal(base, higher, tmp_path, resume=resume)
    assert (tmp_path / "train.jsonl").read_text() == "mine"


def test_nothing_usable_is_held_out(base: Path, higher: Path, tmp_path: Path) -> None:
    dev = recordings(tmp_path, "dev", ["xyz"])
    assert "none of 1 utterance can be used; the first, dev00: character 'x'" in refusal(
        base, higher, tmp_path / "run", dev=dev
    )


def test_replay_without_the_old_recordings(base: Path, higher: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "copy")
    tensors, state = checkpoint.load(base / "model.safetensors")
    state["config"]["data"]["train"] = [str(tmp_path / "gone.jsonl")]
    checkpoint.save(tmp_path / "copy" / "model.safetensors", tensors, state)
    with pytest.raises(ManifestError, match=r"gone\.jsonl: no such manifest"):
        adapted(tmp_path / "copy", higher, tmp_path / "run", replay=0.5)


def test_settings_are_checked_before_anything_is_written(base: Path, higher: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"adaptation: unknown setting 'optimiser\.rate'"):
        adapted(base, higher, tmp_path / "run", "optimiser.rate=1")
    assert not (tmp_path / "run").exists()


# --- the command ---


def test_the_command(base: Path, higher: Path, tmp_path: Path, cli: Cli) -> None:
    done = cli("adapt", base, higher, *FAST, "-o", "run", "--device", "cpu", "--threads", "1")
    assert done.returncode == 0, done.stderr
    held_out, own = done.stdout.splitlines()
    assert held_out.startswith("held out        3 utterances,     3 words, greedy: WER ")
    assert held_out.endswith(" nats a token")
    assert own.startswith("own dev set     3 utterances,     3 words, greedy: WER ")
    again = cli("adapt", base, higher, "-o", "run")
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr.splitlines() == [
        "asr: run: exists already; give another folder, or --resume if this adaptation began there"
    ]
