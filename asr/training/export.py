"""A trained run -> one ONNX file: waveform in, log-probabilities out, everything a recogniser needs in its metadata.

In float32, or with the recurrent and linear layers in int8 (a quarter of the size, several times faster on a CPU).
"""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from asr import __version__, audio, onnxfile
from asr.errors import AsrError
from asr.training import checkpoint, config
from asr.training.model import AcousticModel

SCHEMA = 1  # of the metadata; `asr.recognizer` refuses a newer one
_CHECKED_FRAMES = (1, 2, 50, 51, 1000, 3000)  # the exporter can freeze a length without a word: run several
_QUIET = 0.003  # of the noise it hears then: in loud noise a trained network is undecided, and amplifies rounding
_TOLERANCE = 1e-4  # on log-probabilities, absolute and relative: rounding grows with their size


class ExportError(AsrError):
    """An output file that exists already or cannot be written, or a graph that does not compute what the model does."""


def export(run: Path, out: Path, *, name: str | None = None, int8: bool = False, overwrite: bool = False) -> None:
    """Write the model of a run folder (or of one weights file) as ONNX.

    The graph: "waveform" (1, N) float32, padded by `asr.audio.pad` -> "log_probs" (1, T, V) float32, natural log.
    int8:   quantise the weights of LSTM and linear layers; features and convolutions stay float. onnxruntime has no
            int8 kernel for GRU and vanilla RNN, whose recurrent layers stay float too.
    raises: CheckpointError; ExportError if the file exists, cannot be written, or the float graph differs from torch by
            more than 1e-4.
    """
    if out.exists() and not overwrite:
        raise ExportError(f"{out}: the file exists already; remove it, or ask to overwrite it")
    model, settings, tokens, state = checkpoint.load_model(run)
    example = torch.zeros(1, model.receptive_field + 50 * model.frame_shift)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        # The exporter that keeps the length of recurrent layers free is the older one, and says that it is.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (example,),
            Path(folder) / "model.onnx",
            dynamo=False,
            opset_version=17,
            input_names=["waveform"],
            output_names=["log_probs"],
            dynamic_axes={"waveform": {1: "samples"}, "log_probs": {1: "frames"}},
        )
        graph = onnx.load(Path(folder) / "model.onnx")
        _check_parity(model, graph.SerializeToString())
        if int8:
            graph = _quantised(graph, Path(folder))
            _check_sound(model, graph.SerializeToString())
    card = {
        "schema": SCHEMA,
        "name": name or settings.name,
        "tokens": tokens.symbols,
        "sample_rate": audio.SAMPLE_RATE,
        "frame_shift": model.frame_shift,
        "receptive_field": model.receptive_field,
        "description": settings.description,
        "licence": settings.licence,
        "normaliser": settings.data.normaliser,
        "precision": "int8" if int8 else "float32",
        "training": state.get("training", {}),
        "config": _portable(settings),
        "version": __version__,
    }
    _write(graph, card, out)


def annotate(path: Path, figures: Mapping[str, Any]) -> None:
    """Add figures, such as error rates, to the card of an exported model."""
    graph = onnx.load(path)
    card = json.loads(next(prop.value for prop in graph.metadata_props if prop.key == "asr"))
    _write(graph, card | {"figures": {**card.get("figures", {}), **figures}}, path)


def _write(graph: onnx.ModelProto, card: Mapping[str, Any], out: Path) -> None:
    onnx.helper.set_model_props(graph, {"asr": json.dumps(card, ensure_ascii=False)})
    temporary = out.with_name(out.name + ".part")
    try:
        temporary.write_bytes(graph.SerializeToString())
        onnxfile.read(temporary)
        temporary.replace(out)
    except onnxfile.OnnxFileError as error:
        temporary.unlink()
        raise ExportError(
            f"{out}: the recogniser would refuse this model, since it holds {error}; nothing was written"
        ) from None
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ExportError(f"{out}: cannot be written: {error.strerror}; check the folder and its free space") from None


def _quantised(graph: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """The graph with the weights of its LSTM and linear layers in int8, activations quantised as they come."""
    features = [node.name for node in graph.graph.node if node.name.startswith("/features")]
    onnx.save(graph, folder / "float.onnx")
    logging.disable(logging.WARNING)  # it recommends a preparation that changes nothing here
    try:
        quantize_dynamic(
            folder / "float.onnx",
            folder / "int8.onnx",
            op_types_to_quantize=["LSTM", "MatMul", "Gemm"],
            nodes_to_exclude=features,
            weight_type=QuantType.QInt8,
        )
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(folder / "int8.onnx")


def _portable(settings: config.Config) -> dict[str, object]:
    """The settings without the paths of the machine that trained them."""
    tree = config.to_dict(settings)
    tree["data"] = {name: value for name, value in tree["data"].items() if name not in ("train", "dev")}
    tree["augment"] = {name: value for name, value in tree["augment"].items() if name != "noise"}
    return {name: value for name, value in tree.items() if name != "init"}


def _outputs(model: AcousticModel, data: bytes) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """At several lengths: the frames, the padded waveform, and the graph's log-probabilities of it."""
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for frames in _CHECKED_FRAMES:
        samples = rng.normal(0, _QUIET, frames * model.frame_shift).astype(np.float32)
        waveform = audio.pad(samples, model.receptive_field, model.frame_shift)[None]
        yield frames, waveform, session.run(["log_probs"], {"waveform": waveform})[0]


def _check_sound(model: AcousticModel, data: bytes) -> None:
    """Of a quantised graph: it gives probabilities. What it costs in errors only recordings can tell."""
    n_tokens = model.network.output[-1].out_features
    for frames, _, got in _outputs(model, data):
        if got.shape != (1, frames, n_tokens) or not np.allclose(np.exp(got).sum(axis=2), 1, atol=1e-3):
            raise ExportError(
                f"expected log-probabilities of shape {(1, frames, n_tokens)} from the int8 graph at {frames} frames, got "
                f"{got.shape} that are none; nothing was written: export it without --int8"
            )


def _check_parity(model: AcousticModel, data: bytes) -> None:
    for frames, waveform, got in _outputs(model, data):
        with torch.no_grad():
            expected = model(torch.from_numpy(waveform)).numpy()
        if got.shape != expected.shape or not np.allclose(got, expected, atol=_TOLERANCE, rtol=_TOLERANCE):
            worst = np.abs(got - expected).max() if got.shape == expected.shape else f"{got.shape} for {expected.shape}"
            raise ExportError(
                f"expected the exported graph to match torch within {_TOLERANCE} at {frames} frames, got {worst}; "
                "nothing was written: check the versions of torch, onnx and onnxruntime"
            )
