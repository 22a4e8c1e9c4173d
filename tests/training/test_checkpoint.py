import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from asr.errors import CheckpointError
from asr.training import checkpoint, config
from asr.training.model import AcousticModel

TENSORS = {
    "weight": torch.randn(3, 4),
    "transposed": torch.randn(3, 4).T,  # not contiguous
    "half": torch.randn(5).bfloat16(),
    "counter": torch.tensor(7),
}


def settings(**changes: Any) -> config.Config:
    tree = {
        "name": "tiny",
        "data": {"train": ["train.jsonl"], "dev": "dev.jsonl", "alphabet": "abc"},
        "features": {"n_mels": 20},
        "network": {"layers": 1, "hidden": 8, "norm": "batch", "subsampling": 2, "conv_channels": 2},
    }
    return config.parse(tree | changes, "test")


def model_file(path: Path, chosen: config.Config, weights: dict[str, torch.Tensor] | None = None) -> AcousticModel:
    model = AcousticModel(chosen, 1 + len(chosen.data.alphabet))
    checkpoint.save(path, model.state_dict() if weights is None else weights, {"config": config.to_dict(chosen)})
    return model


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name


def test_load_undoes_save(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    state = {"progress": {"step": 3, "lr": 0.1 + 0.2, "history": [{"dev_cer": 1 / 3}]}, "name": "naïve"}
    checkpoint.save(path, TENSORS, state)
    tensors, loaded = checkpoint.load(path)
    assert_same(tensors, TENSORS)
    assert loaded == {"schema": checkpoint.SCHEMA, **state}
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_unpack_undoes_pack() -> None:
    tree = {"0": {"step": torch.tensor(1.0), "exp_avg": torch.randn(2)}, "1": {"step": torch.tensor(2.0)}}
    flat = checkpoint.pack("optimiser", tree) | checkpoint.pack("model", {"layers.0.weight": torch.ones(2)})
    assert set(flat) == {"optimiser|0|step", "optimiser|0|exp_avg", "optimiser|1|step", "model|layers.0.weight"}
    undone = checkpoint.unpack("optimiser", flat)
    assert undone.keys() == tree.keys()
    for name in tree:
        assert_same(undone[name], tree[name])
    assert list(checkpoint.unpack("model", flat)) == ["layers.0.weight"]
    assert checkpoint.unpack("ema", flat) == {}


def test_failing_write_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, TENSORS, {"step": 1})
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: cannot be written: No space left on device; free some"):
        checkpoint.save(path, {"weight": torch.zeros(100)}, {"step": 2})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_folder_that_is_missing_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written: No such file or directory"):
        checkpoint.save(tmp_path / "none" / "a.safetensors", TENSORS, {})


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a\.safetensors: no such checkpoint"):
        checkpoint.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("kind", ["text", "empty", "truncated", "cut in the header", "folder"])
def test_not_safetensors(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, TENSORS, {})
    whole = path.read_bytes()
    contents = {"text": b"hello there, I am no checkpoint", "empty": b"", "truncated": whole[:-1]}
    path.unlink()
    if kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(contents.get(kind, whole[:20]))
    with pytest.raises(CheckpointError, match=r"a\.safetensors: expected a checkpoint"):
        checkpoint.load(path)


class _Trap:
    """Unpickling it would leave a trace."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_pickle_is_refused_unopened(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(3), "trap": _Trap(tmp_path / "sprung")}, tmp_path / "a.pt")
    for load in (checkpoint.load, checkpoint.load_model):
        with pytest.raises(CheckpointError, match="expected a checkpoint"):
            load(tmp_path / "a.pt")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_safetensors_of_others(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"weight": torch.ones(3)}, tmp_path / "a.safetensors", metadata)
    with pytest.raises(CheckpointError, match="without its settings"):
        checkpoint.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("text", ["not JSON", "{}", "[]", '{"schema": "new"}'])
def test_damaged_settings(tmp_path: Path, text: str) -> None:
    save_file({"weight": torch.ones(3)}, tmp_path / "a.safetensors", {"asr": text})
    with pytest.raises(CheckpointError, match="expected the settings of a checkpoint"):
        checkpoint.load(tmp_path / "a.safetensors")


def test_newer_schema_is_refused_with_both_versions(tmp_path: Path) -> None:
    newer = checkpoint.SCHEMA + 41
    save_file({"weight": torch.ones(3)}, tmp_path / "a.safetensors", {"asr": json.dumps({"schema": newer})})
    with pytest.raises(CheckpointError, match=f"schema {newer}, this version knows {checkpoint.SCHEMA}; update"):
        checkpoint.load(tmp_path / "a.safetensors")


def test_load_model(tmp_path: Path) -> None:
    model = model_file(tmp_path / "model.safetensors", settings())
    for path in (tmp_path, tmp_path / "model.safetensors"):
        loaded, chosen, tokens, _ = checkpoint.load_model(path)
        assert_same(loaded.state_dict(), model.state_dict())
        assert chosen == settings()
        assert tokens.symbols == ("<blank>", "a", "b", "c")
        assert not loaded.training


@pytest.mark.parametrize("ema", [False, True])
def test_load_model_from_a_resumable_checkpoint(tmp_path: Path, ema: bool) -> None:
    raw, averaged = (AcousticModel(settings(), 4).state_dict() for _ in range(2))
    tensors = checkpoint.pack("model", raw) | checkpoint.pack("optimiser", {"0": {"step": torch.tensor(1.0)}})
    model_file(tmp_path / "last.safetensors", settings(), tensors | (checkpoint.pack("ema", averaged) if ema else {}))
    assert_same(checkpoint.load_model(tmp_path / "last.safetensors")[0].state_dict(), averaged if ema else raw)


def test_run_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no finished model; finish its training with --resume"):
        checkpoint.load_model(tmp_path)


def test_weights_of_another_vocabulary(tmp_path: Path) -> None:
    weights = AcousticModel(settings(), 9).state_dict()
    model_file(tmp_path / "a.safetensors", settings(), weights)
    with pytest.raises(CheckpointError, match="another vocabulary") as caught:
        checkpoint.load_model(tmp_path / "a.safetensors")
    assert "output.1.weight: expected (4, 16), got (9, 16)" in str(caught.value)


def test_weights_of_another_size(tmp_path: Path) -> None:
    other = settings(network={"layers": 1, "hidden": 12, "subsampling": 2, "conv_channels": 2, "norm": "batch"})
    model_file(tmp_path / "a.safetensors", settings(), AcousticModel(other, 4).state_dict())
    with pytest.raises(CheckpointError, match="the weights do not fit the settings") as caught:
        checkpoint.load_model(tmp_path / "a.safetensors")
    first = "layers.0.directions.0.weight_ih_l0: expected (32, 18), got (48, 18)"  # in the network's order, not a set's
    assert f": network.{first}; " in str(caught.value)


@pytest.mark.parametrize(("own", "given", "said"), [(1, 2, "not expected"), (2, 1, "missing")])
def test_weights_of_other_layers(tmp_path: Path, own: int, given: int, said: str) -> None:
    def of(layers: int) -> config.Config:
        return settings(network={"layers": layers, "hidden": 8, "subsampling": 2, "conv_channels": 2})

    model_file(tmp_path / "a.safetensors", of(own), AcousticModel(of(given), 4).state_dict())
    with pytest.raises(CheckpointError, match=rf"layers\.1\.\S+: {said}") as caught:
        checkpoint.load_model(tmp_path / "a.safetensors")
    assert "vocabulary" not in str(caught.value)


def test_average(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for number, file in enumerate(files):
        # In float32, 1e8 + 1 is 1e8: the sum must be taken in more.
        tensors = {
            "weight": torch.tensor([0.0, number, [1e8, 1.0, -1e8][number]]),
            "half": torch.full((2,), float(number)).bfloat16(),
            "counter": torch.tensor(10 + number),
        }
        checkpoint.save(file, tensors, {})
    mean = checkpoint.average(files)
    torch.testing.assert_close(mean["weight"], torch.tensor([0.0, 1.0, 1 / 3]), rtol=1e-6, atol=0)
    assert mean["half"].dtype == torch.bfloat16
    assert mean["half"].tolist() == [1.0, 1.0]
    assert mean["counter"].dtype == torch.int64
    assert mean["counter"].item() == 10
    assert_same(checkpoint.average(files[1:2]), checkpoint.load(files[1])[0])
