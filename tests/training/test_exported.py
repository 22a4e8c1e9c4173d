"""The weights of an exported model are found in its file again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from asr.errors import ModelError
from asr.models import onnxfile
from asr.training import checkpoint, config, export
from asr.training.model import AcousticModel

NETWORKS: list[dict[str, Any]] = [
    {"cell": "lstm"},
    {"cell": "lstm", "bidirectional": False, "projection": 6},
    {"cell": "gru", "norm": "none", "subsampling": 2},
    {"cell": "rnn_tanh", "norm": "batch", "subsampling": 8},
    {"cell": "rnn_relu", "subsampling": 1},
    {"encoder": "whisper", "encoder_width": 64, "encoder_blocks": 1},
]


def saved(path: Path, network: dict[str, Any]) -> AcousticModel:
    """A model with random weights, none like another, as training leaves them."""
    tree = {"name": "t", "data": {"train": ["a"], "dev": "b", "alphabet": " abc"}}
    settings = config.parse(tree | {"network": {"layers": 2, "hidden": 8, "conv_channels": 3, **network}}, "test")
    model = AcousticModel(settings, 5)
    torch.manual_seed(0)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.copy_(
                torch.rand(value.shape) + 0.5 if name.endswith(("std", "var")) else torch.randn(value.shape) / 4
            )
    checkpoint.save(path, model.state_dict(), {"config": config.to_dict(settings), "tokens": ["<blank>", *" abc"]})
    return model


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: "-".join(map(str, network.values())))
def test_weights_are_found_again(tmp_path: Path, network: dict[str, Any]) -> None:
    expected = saved(tmp_path / "m.safetensors", network).state_dict()
    export.export(tmp_path / "m.safetensors", tmp_path / "m.onnx")
    model, settings, tokens, _ = checkpoint.load_model(tmp_path / "m.onnx")
    assert list(tokens.symbols) == ["<blank>", *" abc"]
    assert settings.network.cell == network.get("cell", "lstm")
    got = model.state_dict()
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(got[name], value), name


@pytest.mark.parametrize("network", [NETWORKS[0], NETWORKS[1], NETWORKS[-1]], ids=["lstm", "projection", "encoder"])
def test_weights_in_int8_are_near_what_they_were(tmp_path: Path, network: dict[str, Any]) -> None:
    expected = saved(tmp_path / "m.safetensors", network).state_dict()
    export.export(tmp_path / "m.safetensors", tmp_path / "m.onnx", int8=True)
    got = checkpoint.load_model(tmp_path / "m.onnx")[0].state_dict()
    for name, value in expected.items():
        if value.is_floating_point():
            step = 2 * float(value.abs().max()) / 255  # between two neighbours of 8 bits
            torch.testing.assert_close(got[name], value, atol=0.6 * step, rtol=0)


def test_a_file_without_the_names(tmp_path: Path) -> None:
    saved(tmp_path / "m.safetensors", {})
    export.export(tmp_path / "m.safetensors", tmp_path / "m.onnx")
    data = (tmp_path / "m.onnx").read_bytes()
    old = data.replace(b"network.output.1.bias", b"network.output.1.bark")
    (tmp_path / "old.onnx").write_bytes(old)
    with pytest.raises(ModelError, match=r"expected a model file with network\.output\.1\.bias of \(5,\)"):
        checkpoint.load_model(tmp_path / "old.onnx")


def test_a_newer_file(tmp_path: Path) -> None:
    saved(tmp_path / "m.safetensors", {})
    export.export(tmp_path / "m.safetensors", tmp_path / "m.onnx")
    data = onnxfile.read(tmp_path / "m.onnx")
    card = json.loads(onnxfile.metadata(data, "asr")) | {"schema": 99}
    (tmp_path / "m.onnx").write_bytes(onnxfile.with_metadata(data, "asr", json.dumps(card)))
    with pytest.raises(ModelError, match="schema 99"):
        checkpoint.load_model(tmp_path / "m.onnx")
