"""The English model's build: which commands it runs, on what, and that it goes on where it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace

import pytest
import torch

from asr import manifest
from asr.manifest import Utterance
from asr.training import checkpoint, config

RECIPE = Path(__file__).parent.parent / "recipes/english"
DICTIONARY = "/dictionaries/en-us/cmudict-en-us.dict"


class Shop:
    """The build in an empty folder, where commands do nothing but make the files they are to make."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.commands = folder, list[list[str]]()
        self.failing = ""
        (folder / "recipes/english").mkdir(parents=True)
        (folder / "recipes/english/build.py").write_text((RECIPE / "build.py").read_text())
        fake = SimpleNamespace(get_model_path=lambda name: f"/dictionaries/{name}")
        patch.setitem(sys.modules, "pocketsphinx", fake)
        patch.setattr(subprocess, "Popen", self._run)

    def _run(self, command: list[str]) -> SimpleNamespace:
        assert command[0] == sys.executable
        words = command[1:]
        self.commands.append(words)
        if self.failing and self.failing in words:
            return SimpleNamespace(poll=lambda: 3, returncode=3)
        data = self.folder / "recipes/english/data"
        made = {"prepare.py": data / "train.jsonl", "rooms.py": data / "rooms/room-0200.flac"}
        made["synthesize.py"] = data / "synthetic/synthetic.jsonl"
        if "-o" in words:
            path = Path(words[words.index("-o") + 1])
        elif "--run" in words:
            path = Path(words[words.index("--run") + 1]) / "model.safetensors"
        else:
            path = made.get(Path(words[0]).name, self.folder / "nothing")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name == "synthetic.jsonl":
            manifest.write(path, [Utterance(Path(f"/{number}.flac"), 1.0, "so") for number in range(7)])
        elif path.name == "model.safetensors":
            weights = {"weight": torch.full((2,), float(len(self.commands)))}
            checkpoint.save(path, weights, {"config": path.parent.name})
        else:
            path.write_text(" ".join(words))
        return SimpleNamespace(poll=lambda: 0, returncode=0)

    def build(self) -> list[list[str]]:
        """The commands that a run of the script ran."""
        self.commands.clear()
        main = run_path(str(self.folder / "recipes/english/build.py"))["main"]
        main(Path("/corpora"), self.folder / "out", 2, 1.5)
        return list(self.commands)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    return Shop(tmp_path, monkeypatch)


def test_it_ends_with_two_files_and_then_has_nothing_to_do(shop: Shop) -> None:
    shop.build()
    assert {path.name for path in (shop.folder / "out").iterdir()} >= {"english.onnx", "english.lm"}
    assert shop.build() == []


def test_each_training_is_possible_and_starts_from_weights_made_before(shop: Shop) -> None:
    trainings = [words for words in shop.build() if words[1:3] == ["asr", "train"]]
    runs = [Path(words[words.index("--run") + 1]) for words in trainings]
    assert len(runs) == len(set(runs)) == 8
    mean = shop.folder / "out/4-synthetic+4-voices.safetensors"
    made = [run / "model.safetensors" for run in runs[:6]] + [mean]
    for number, words in enumerate(trainings[1:], 1):
        settings = config.read(RECIPE / "config.yaml", [word for word in words[4:] if "=" in word])
        assert settings.init in (made if number >= 6 else made[:number])
        assert not any("test" in path.name for path in (*settings.data.train, settings.data.dev))
        assert settings.features.hop_length == (120 if number >= 6 else 160)
    for words in trainings[-2:]:  # those that are averaged
        settings = config.read(RECIPE / "config.yaml", [word for word in words[4:] if "=" in word])
        assert settings.init == mean
        assert settings.stream is not None  # the weights are to stream
        assert settings.pronunciation is not None
        assert str(settings.pronunciation.dictionary) == DICTIONARY


@pytest.mark.parametrize("names", [("4-synthetic", "4-voices"), ("5-one", "5-other")])
def test_trainings_of_one_origin_are_averaged(shop: Shop, names: tuple[str, str]) -> None:
    shop.build()
    one, other = (checkpoint.load(shop.folder / f"out/{name}/model.safetensors") for name in names)
    weights, state = checkpoint.load(shop.folder / f"out/{'+'.join(names)}.safetensors")
    assert torch.equal(weights["weight"], (one[0]["weight"] + other[0]["weight"]) / 2)
    assert state == other[1] | {"training": {"weights": "average of 2 trainings"}}


def test_the_synthetic_speech_is_parted_without_loss(shop: Shop) -> None:
    shop.build()
    folder = shop.folder / "recipes/english/data/synthetic"
    names = [utterance.audio.name for part in (1, 2) for utterance in manifest.read(folder / f"{part}-of-2.jsonl")]
    assert sorted(names) == [f"{number}.flac" for number in range(7)]
    assert [len(manifest.read(folder / f"{part}-of-3.jsonl")) for part in (1, 2, 3)] == [3, 2, 2]


def test_the_language_model_sees_no_dev_or_test_sentence(shop: Shop) -> None:
    texts = [words for words in shop.build() if words[2:4] == ["lm", "train"]]
    assert len(texts) == 2
    sets = {"dev", "test_common_voice", "test_librispeech", "test_digits", "test_digits_connected"}
    sets |= {"speechocean762/dev", "speechocean762/test"}
    for words in texts:
        excluded = {word.partition("/data/")[2] for word in words if word.startswith("--exclude=")}
        assert excluded == {f"{name}.jsonl" for name in sets}


def test_after_a_failure_it_goes_on(shop: Shop) -> None:
    whole = shop.build()
    for path in sorted((shop.folder / "out").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    shop.failing = "tune"
    with pytest.raises(SystemExit) as end:
        shop.build()
    assert end.value.code == 3
    assert not (shop.folder / "out/english.onnx").exists()  # not the untuned one under its name
    shop.failing = ""
    assert shop.build() == whole[-1:]
