"""Export: the file computes what torch computes, at any length, and carries its card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from asr import Recognizer
from asr.errors import CheckpointError, OutputError, TrainingError
from asr.models import onnxfile
from asr.training import checkpoint, config, export, neural_lm
from asr.training.model import AcousticModel

ALPHABET = " abc"


def settings_of(**network: Any) -> config.Config:
    tree = {
        "name": "tiny",
        "licence": "CC0",
        "data": {
            "train": ["/somewhere/secret/train.jsonl"],
            "dev": "/somewhere/secret/dev.jsonl",
            "cache": "/somewhere/secret/cache",
            "alphabet": ALPHABET,
        },
        "features": {"n_mels": 20},
        "augment": {"noise": "/somewhere/secret/noise", "rooms": "/somewhere/secret/rooms"},
        "pronunciation": {"dictionary": "/somewhere/secret/words.txt", "layer": 1},
        "network": {"hidden": 16, "layers": 2, **network},
    }
    return config.parse(tree, "test")


def saved(tmp_path: Path, settings: config.Config) -> tuple[AcousticModel, Path]:
    torch.manual_seed(0)
    model = AcousticModel(settings, 1 + len(ALPHABET))
    model.fit([torch.randn(16000) * 0.1])
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, model.state_dict(), {"config": config.to_dict(settings), "training": {"epochs": 3}})
    return model.eval(), path


@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_relu", "gru", "lstm"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_parity_at_every_length(tmp_path: Path, cell: str, bidirectional: bool) -> None:
    model, path = saved(tmp_path, settings_of(cell=cell, bidirectional=bidirectional))
    export.export(path, tmp_path / "m.onnx")
    recognizer = Recognizer(tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    for count in (1, 2 * 640, 50 * 640, 51 * 640, 1000 * 640, 12345):
        waveform = rng.normal(0, 0.1, count).astype(np.float32)
        padded = model.geometry.pad(waveform)
        with torch.no_grad():
            expected = model(torch.from_numpy(padded)[None])[0].numpy()
        np.testing.assert_allclose(recognizer.log_probs(waveform), expected, atol=1e-4)


@pytest.mark.parametrize(
    "network",
    [{"norm": "batch"}, {"norm": "none"}, {"projection": 8}, *({"subsampling": factor} for factor in (1, 2, 8))],
    ids=lambda network: "-".join(map(str, *network.items())),
)
def test_parity_of_every_option(tmp_path: Path, network: dict[str, Any]) -> None:
    _, path = saved(tmp_path, settings_of(**network))
    export.export(path, tmp_path / "m.onnx")  # checks itself
    assert Recognizer(tmp_path / "m.onnx").log_probs(np.zeros(16000, np.float32)).shape[1] == 1 + len(ALPHABET)


def test_card(tmp_path: Path) -> None:
    _, path = saved(tmp_path, settings_of())
    export.export(path, tmp_path / "m.onnx", name="other")
    card = Recognizer(tmp_path / "m.onnx").card
    assert card["name"] == "other"
    assert card["tokens"] == ["<blank>", *ALPHABET]
    assert card["licence"] == "CC0"
    assert card["training"] == {"epochs": 3}
    assert card["config"]["network"]["hidden"] == 16
    assert "secret" not in json.dumps(card)  # no path of the machine that trained it


def test_a_temperature_divides_the_logits(tmp_path: Path) -> None:
    _, path = saved(tmp_path, settings_of())
    export.export(path, tmp_path / "sure.onnx")
    export.export(path, tmp_path / "less.onnx", temperature=1.5)
    waveform = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    sure, less = (Recognizer(tmp_path / f"{name}.onnx") for name in ("sure", "less"))
    divided = sure.log_probs(waveform) / 1.5
    np.testing.assert_allclose(
        less.log_probs(waveform), divided - np.log(np.exp(divided).sum(axis=1, keepdims=True)), atol=1e-4
    )
    assert (sure.card["training"], less.card["training"]) == ({"epochs": 3}, {"epochs": 3, "temperature": 1.5})


def test_refuses_a_graph_that_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = saved(tmp_path, settings_of())
    load = onnx.load

    def sabotaged(*args: Any) -> onnx.ModelProto:
        graph = load(*args)
        bias = next(tensor for tensor in graph.graph.initializer if tensor.name.endswith("network.output.1.bias"))
        values = onnx.numpy_helper.to_array(bias) + np.array([0, 0, 0, 0, 0.1], np.float32)
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        return graph

    monkeypatch.setattr(onnx, "load", sabotaged)
    with pytest.raises(TrainingError, match=r"match torch within 0\.0001 at 1 frames"):
        export.export(path, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_output_exists(tmp_path: Path) -> None:
    _, path = saved(tmp_path, settings_of())
    (tmp_path / "m.onnx").write_text("mine")
    with pytest.raises(TrainingError, match="exists already"):
        export.export(path, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_text() == "mine"
    with pytest.raises(OutputError, match="cannot be written"):
        export.export(path, tmp_path / "nowhere" / "m.onnx")


def test_unfinished_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no finished model"):
        export.export(tmp_path, tmp_path / "m.onnx")


def test_no_export_needs_an_operator_that_is_refused(tmp_path: Path) -> None:
    """And none is allowed that no export needs."""
    mfcc = config.Features(kind="mfcc", n_mels=20, n_mfcc=13, deltas=2)
    pretrained = config.Network(encoder=Path("whisper"), encoder_width=64, encoder_blocks=1, hidden=16, layers=1)
    found = set()
    kinds: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"cell": "lstm"}, {}),
        ({"cell": "gru", "norm": "none", "subsampling": 2}, {}),
        ({"cell": "rnn_tanh", "bidirectional": False}, {}),
        ({"cell": "lstm", "norm": "batch", "subsampling": 1, "projection": 8}, {"features": mfcc}),
        ({}, {"network": pretrained, "features": config.WHISPER}),
    ]
    for number, (network, features) in enumerate(kinds):
        settings = settings_of(**network).model_copy(update=features)
        (tmp_path / str(number)).mkdir()
        _, path = saved(tmp_path / str(number), settings)
        for int8 in (False, True):
            out = path.with_name(f"{int8}.onnx")
            export.export(path, out, int8=int8)
            assert Recognizer(out).card["precision"] == ("int8" if int8 else "float32")
            found |= {f"{node.domain}.{node.op_type}".lstrip(".") for node in onnx.load(out).graph.node}
    neural_lm.train(["the cat sat on a mat"], tmp_path / "a.lstm", neural_lm.Settings(embedding=16, hidden=16))
    found |= {f"{node.domain}.{node.op_type}".lstrip(".") for node in onnx.load(tmp_path / "a.lstm").graph.node}
    assert found | {"Identity"} == set(onnxfile.OPERATORS.split())  # that one stands in files of schema 1


def test_a_model_that_the_recogniser_would_refuse_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run = saved(tmp_path, settings_of())
    monkeypatch.setattr(onnxfile, "OPERATORS", onnxfile.OPERATORS.replace("LSTM ", ""))
    with pytest.raises(TrainingError, match="the recogniser would refuse this model, since it holds the operator LSTM"):
        export.export(run, tmp_path / "model.onnx")
    assert not list(tmp_path.glob("*.onnx*"))


def test_a_network_that_amplifies_rounding_is_no_fault_of_the_graph(tmp_path: Path) -> None:
    """As torch itself is as far from its own result in double precision."""
    settings = settings_of(cell="rnn_tanh", hidden=16, layers=2)
    model, path = saved(tmp_path, settings)
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if "weight_hh" in name:
                parameter.mul_(4.0)  # chaotic
    checkpoint.save(path, model.state_dict(), {"config": config.to_dict(settings)})
    model = checkpoint.load_model(path)[0]
    samples = np.random.default_rng(0).normal(0, 0.003, 3000 * model.geometry.frame_shift).astype(np.float32)
    waveform = torch.from_numpy(model.geometry.pad(samples))[None]
    with torch.no_grad():
        difference = model(waveform) - model.double()(waveform.double())
    assert difference.abs().max() > 1e-3
    export.export(path, tmp_path / "m.onnx")
