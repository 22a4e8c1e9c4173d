"""The English model's build: which commands it runs, on what, and that it goes on where it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace

import pytest

from asr.training import config

RECIPE = Path(__file__).parents[2] / "recipes/english"
HELD_OUT = {"dev", "test_common_voice", "test_speechocean762", "test_librispeech"}


class Shop:
    """The build in an empty folder, where commands do nothing but make the files they are to make."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.commands = folder, list[list[str]]()
        self.failing = ""
        (folder / "recipes/english").mkdir(parents=True)
        (folder / "recipes/english/build.py").write_text((RECIPE / "build.py").read_text())
        patch.setattr(subprocess, "Popen", self._run)

    def _run(self, command: list[str]) -> SimpleNamespace:
        assert command[0] == sys.executable
        words = command[1:]
        self.commands.append(words)
        if self.failing and self.failing in words:
            return SimpleNamespace(poll=lambda: 3, returncode=3)
        if Path(words[0]).name == "prepare.py":
            sets = ["train", "train_first", "dev_common_voice", *HELD_OUT, *["train_labelled"] * ("--clips" in words)]
            made = [Path(words[2]) / f"{name}.jsonl" for name in sets]
        elif "-o" in words:
            made = [Path(words[words.index("-o") + 1])]
        elif "--run" in words:
            made = [Path(words[words.index("--run") + 1]) / "model.safetensors"]
        else:
            made = []
        for path in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(" ".join(words))
        return SimpleNamespace(poll=lambda: 0, returncode=0)

    def build(self, clips: Path | None = None) -> list[list[str]]:
        """The commands that a run of the script ran."""
        self.commands.clear()
        main = run_path(str(self.folder / "recipes/english/build.py"))["main"]
        main(Path("/corpora"), Path("/whisper"), self.folder / "out", clips, 2)
        return list(self.commands)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    return Shop(tmp_path, monkeypatch)


def test_it_ends_with_three_files_and_then_has_nothing_to_do(shop: Shop) -> None:
    shop.build()
    assert {path.name for path in (shop.folder / "out").iterdir()} >= {"english.onnx", "english.lm", "english.lstm"}
    assert shop.build() == []


def settings_of(words: list[str]) -> config.Config:
    return config.read(RECIPE / "config.yaml", [word for word in words[4:] if "=" in word])


def test_the_encoder_is_frozen_first_and_tuned_then(shop: Shop) -> None:
    trainings = [words for words in shop.build(Path("/clips")) if words[1:3] == ["asr", "train"]]
    frozen, gentle, tuned = map(settings_of, trainings)
    assert [settings.init for settings in (frozen, gentle, tuned)] == [
        None,
        shop.folder / "out/1-frozen/model.safetensors",
        shop.folder / "out/2-gentle/model.safetensors",
    ]
    assert [settings.freeze for settings in (frozen, gentle, tuned)] == [("encoder",), (), ()]
    assert (frozen.stream, gentle.stream) == (None, None)
    assert tuned.stream is not None  # the weights are to stream
    assert gentle.augment.speed == (1.0,)
    for settings in (frozen, gentle):
        assert [path.name for path in settings.data.train] == ["train_first.jsonl"]
    assert [path.name for path in tuned.data.train] == ["train.jsonl", "train_labelled.jsonl"]
    for settings in (frozen, gentle, tuned):
        assert settings.network.encoder == Path("/whisper")
        assert settings.augment.noise == Path("/corpora/noise")
        assert settings.data.dev.name.startswith("dev")


def test_labelled_clips_are_an_option(shop: Shop) -> None:
    commands = shop.build()
    assert "--clips" not in commands[0]
    assert settings_of(commands[3]).data.train == (shop.folder / "recipes/english/data/train.jsonl",)


def test_the_language_model_sees_no_dev_or_test_sentence(shop: Shop) -> None:
    texts = [words for words in shop.build() if words[2:4] == ["lm", "train"]]
    assert len(texts) == 3
    for words in texts:
        excluded = {word.partition("/data/")[2] for word in words if word.startswith("--exclude=")}
        assert excluded == {f"{name}.jsonl" for name in HELD_OUT}


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
