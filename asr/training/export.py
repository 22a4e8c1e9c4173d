"""A trained run -> one ONNX file: waveform in, log-probabilities out, everything a recogniser needs in its metadata."""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from asr import __version__, audio
from asr.errors import AsrError
from asr.training import checkpoint, config
from asr.training.model import AcousticModel

SCHEMA = 1  # of the metadata; `asr.recognizer` refuses a newer one
_CHECKED_FRAMES = (1, 2, 50, 51, 1000)  # the exporter can freeze a length without a word: run several
_TOLERANCE = 1e-4  # on log-probabilities, absolute and relative: rounding grows with their size


class ExportError(AsrError):
    """An output file that exists already or cannot be written, or a graph that does not compute what the model does."""


def export(run: Path, out: Path, *, name: str | None = None, overwrite: bool = False) -> None:
    """Write the model of a run folder (or of one weights file) as ONNX.

    The graph: "waveform" (1, N) float32, padded by `asr.audio.pad` -> "log_probs" (1, T, V) float32, natural log.
    raises: CheckpointError; ExportError if the file exists, cannot be written, or differs from torch by more than 1e-4.
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
        "training": state.get("training", {}),
        "config": _portable(settings),
        "version": __version__,
    }
    onnx.helper.set_model_props(graph, {"asr": json.dumps(card, ensure_ascii=False)})
    data = graph.SerializeToString()
    _check_parity(model, data)
    temporary = out.with_name(out.name + ".part")
    try:
        temporary.write_bytes(data)
        temporary.replace(out)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ExportError(f"{out}: cannot be written: {error.strerror}; check the folder and its free space") from None


def _portable(settings: config.Config) -> dict[str, object]:
    """The settings without the paths of the machine that trained them."""
    tree = config.to_dict(settings)
    tree["data"] = {name: value for name, value in tree["data"].items() if name not in ("train", "dev")}
    tree["augment"] = {name: value for name, value in tree["augment"].items() if name != "noise"}
    return tree


def _check_parity(model: AcousticModel, data: bytes) -> None:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for frames in _CHECKED_FRAMES:
        samples = rng.normal(0, 0.03, frames * model.frame_shift).astype(np.float32)
        waveform = audio.pad(samples, model.receptive_field, model.frame_shift)[None]
        with torch.no_grad():
            expected = model(torch.from_numpy(waveform)).numpy()
        got = session.run(["log_probs"], {"waveform": waveform})[0]
        if got.shape != expected.shape or not np.allclose(got, expected, atol=_TOLERANCE, rtol=_TOLERANCE):
            worst = np.abs(got - expected).max() if got.shape == expected.shape else f"{got.shape} for {expected.shape}"
            raise ExportError(
                f"expected the exported graph to match torch within {_TOLERANCE} at {frames} frames, got {worst}; "
                "nothing was written: check the versions of torch, onnx and onnxruntime"
            )
