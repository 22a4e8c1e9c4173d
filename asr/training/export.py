"""A trained run -> one ONNX file: waveform in, log-probabilities out, everything a recogniser needs in its metadata.

In float32, or with the recurrent and linear layers in int8 (a quarter of the size, several times faster on a CPU).
"""

from __future__ import annotations

import copy
import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from asr import __version__, audio, files
from asr.errors import ModelError, TrainingError
from asr.models import ENCODER, PARTS, SUBWORDS, onnxfile
from asr.tokens import Tokens
from asr.training import checkpoint, config, encoder, exported, launch
from asr.training.graph import halve, quantise, share_weights
from asr.training.model import AcousticModel

_WINDOW_S, _LEFT_CONTEXT_S = 15.0, 3.0  # of a pre-trained encoder, see `asr.models.network.Network`
_CHECKED_FRAMES = (1, 2, 50, 51, 1000, 3000)  # the exporter can freeze a length without a word: run several
_QUIET = 0.003  # of the noise it hears then: in loud noise a trained network is undecided, and amplifies rounding
_AMPLIFIED = 10  # times what rounding does to torch itself, it may do to the graph
_TOLERANCE = 1e-4  # on log-probabilities, absolute and relative: rounding grows with their size


def export(
    run: Path,
    out: Path,
    *,
    name: str | None = None,
    int8: bool = False,
    temperature: float = 1.0,
    overwrite: bool = False,
) -> None:
    """Write the model of a run folder (or of one weights file) as ONNX.

    The graph, for a part of an utterance or all of it (AcousticModel.stream):
        "waveform" (1, N) float32, padded by `Geometry.pad`;  "keep" () int64, the frames of the part, the rest is context;
        "state" (S, 1, H) float32, zeros at first
     -> "log_probs" (1, T, V) float32, natural log, of which `keep` frames count;  "next_state" (S, 1, H).
    int8:   quantise the weights of LSTM and linear layers; features and convolutions stay float. onnxruntime has no
            int8 kernel for GRU and vanilla RNN, whose recurrent layers stay float too.
    temperature: divisor of the logits. Above 1, a network that is too sure of itself leaves a language model more of a say.
    raises: CheckpointError; OutputError if the file cannot be written; TrainingError if it exists, or the float graph
            differs from torch by more than 1e-4.
    """
    if out.exists() and not overwrite:
        raise TrainingError(f"{out}: the file exists already; remove it, or give --overwrite")
    launch.shield_from_signals()
    model, settings, tokens, state = checkpoint.load_model(run)
    with torch.no_grad():
        for parameter in model.network.output[-1].parameters():
            parameter.div_(temperature)
    waveform = torch.zeros(1, model.geometry.samples(51))
    example: tuple[Tensor, ...] = (waveform, torch.tensor(40), model.network.first_state(1))
    names = ["waveform", "keep", "state"]
    if model.network.encoder:
        example, names = (*example, torch.tensor(5)), [*names, "skip"]
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        # The exporter that keeps the length of recurrent layers free is the older one, and says that it is.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Graph(model).eval(),
            example,
            Path(folder) / "model.onnx",
            dynamo=False,
            opset_version=17,
            input_names=names,
            output_names=["log_probs", "next_state"],
            dynamic_axes={"waveform": {1: "samples"}, "log_probs": {1: "frames"}},
        )
        graph = onnx.load(Path(folder) / "model.onnx")
        if model.network.encoder:
            halve(graph, model.network.encoder.positions.numpy())
        named = exported.name_weights(graph, model)
        share_weights(graph, named)
        _check_parity(model, graph.SerializeToString())
        if int8:
            graph = quantise(graph, Path(folder), named)
            _check_sound(model, graph.SerializeToString())
    card = _card(model, settings, tokens, name or settings.name)
    training = state.get("training", {}) | ({"temperature": temperature} if temperature != 1 else {})
    write(graph, card | {"precision": "int8" if int8 else "float32", "training": training}, out)


def _card(model: AcousticModel, settings: config.Config, tokens: Tokens, name: str) -> dict[str, Any]:
    """What a recogniser has to know of its network."""
    encoder = model.network.encoder
    return {
        "schema": ENCODER if encoder else SUBWORDS if tokens.subwords else PARTS,
        "name": name,
        "tokens": tokens.symbols,
        "sample_rate": audio.SAMPLE_RATE,
        "frame_shift": model.geometry.frame_shift,
        "receptive_field": model.geometry.receptive_field,
        "bidirectional": settings.network.bidirectional,
        **({"window_s": _WINDOW_S, "left_context_s": _LEFT_CONTEXT_S} if encoder else {}),
        "description": settings.description,
        "licence": settings.licence,
        "normaliser": settings.data.normaliser,
        "config": _portable(settings),
        "version": __version__,
    }


class _Graph(nn.Module):
    """What is exported of a model."""

    def __init__(self, model: AcousticModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, waveform: Tensor, keep: Tensor, state: Tensor, skip: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.model.stream(waveform, keep, state, skip)


def annotate(path: Path, figures: Mapping[str, Any]) -> None:
    """Add figures, such as error rates, to the card of an exported model."""
    graph = onnx.load(path)
    card = json.loads(next(prop.value for prop in graph.metadata_props if prop.key == "asr"))
    write(graph, card | {"figures": {**card.get("figures", {}), **figures}}, path)


def write(graph: onnx.ModelProto, card: Mapping[str, Any], out: Path) -> None:
    """Write a graph with its card, whole or not at all. raises: OutputError; TrainingError if it would be refused."""
    onnx.helper.set_model_props(graph, {"asr": json.dumps(card, ensure_ascii=False)})
    try:
        with files.replaced(out, alone=True) as file:
            file.write(graph.SerializeToString())
            file.flush()
            onnxfile.read(Path(file.name))
    except ModelError as error:
        raise TrainingError(
            f"{out}: the recogniser would refuse this model, since it holds {error}; nothing was written"
        ) from None


def _portable(settings: config.Config) -> dict[str, object]:
    """The settings without the paths of the machine that trained them."""
    paths = {
        "data": ("train", "dev", "cache"),
        "augment": ("noise", "rooms"),
        "pronunciation": ("dictionary",),
    }
    tree = {name: value for name, value in config.to_dict(settings).items() if name != "init"}
    if settings.network.encoder:
        network: Any = tree["network"]
        tree["network"] = network | {"encoder": settings.network.encoder.name}
    for section, left_out in paths.items():
        if tree[section] is not None:
            tree[section] = {name: value for name, value in tree[section].items() if name not in left_out}
    return tree


def _runs(model: AcousticModel, data: bytes) -> Iterator[tuple[int, dict[str, np.ndarray], np.ndarray, np.ndarray]]:
    """At several lengths, whole and as a part with context: frames, the graph's inputs, its log-probabilities and state."""
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    longest = encoder.LONGEST * 2 // model.subsampling if model.network.encoder else _CHECKED_FRAMES[-1]
    for frames in (min(frames, longest) for frames in _CHECKED_FRAMES):
        samples = rng.normal(0, _QUIET, frames * model.geometry.frame_shift).astype(np.float32)
        waveform = model.geometry.pad(samples)[None]
        state = np.zeros(tuple(model.network.first_state(1).shape), np.float32)
        for keep in {frames, frames // 2 + 1}:
            inputs = {"waveform": waveform, "keep": np.array(keep), "state": state}
            if model.network.encoder:
                inputs |= {"skip": np.array((frames - keep) // 2)}
            log_probs, state = session.run(["log_probs", "next_state"], inputs)
            yield frames, inputs, log_probs[:, :keep], state


def _check_sound(model: AcousticModel, data: bytes) -> None:
    """Of a quantised graph: it gives probabilities. What it costs in errors only recordings can tell."""
    n_tokens = model.network.output[-1].out_features
    for frames, inputs, got, _ in _runs(model, data):
        expected = (1, int(inputs["keep"]), n_tokens)
        if got.shape != expected or not np.allclose(np.exp(got).sum(axis=2), 1, atol=1e-3):
            raise TrainingError(
                f"expected log-probabilities of shape {expected} from the int8 graph at {frames} frames, got "
                f"{got.shape} that are none; nothing was written: export it without --int8"
            )


def _check_parity(model: AcousticModel, data: bytes) -> None:
    for frames, inputs, *got in _runs(model, data):
        expected = _stream(model, inputs)
        for number, result in enumerate(got):
            if result.shape != expected[number].shape:
                raise _differs(frames, f"{result.shape} for {expected[number].shape}")
            if not np.allclose(result, expected[number], atol=_TOLERANCE, rtol=_TOLERANCE):
                # A network may amplify rounding: then torch's own result is far from what it is in double precision, too.
                exact = _stream(copy.deepcopy(model).double(), inputs)[number]
                rounding = np.abs(expected[number] - exact).max()
                worst = np.abs(result - exact).max()
                if worst > _TOLERANCE + _AMPLIFIED * rounding:
                    raise _differs(frames, f"{worst}, where rounding accounts for {rounding}")


def _stream(model: AcousticModel, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    keep = int(inputs["keep"])
    waveform, state = (torch.from_numpy(inputs[name]).to(model.mean.dtype) for name in ("waveform", "state"))
    skip = int(inputs["skip"]) if "skip" in inputs else None
    with torch.no_grad():
        log_probs, state = model.stream(waveform, torch.tensor(keep), state, skip)
    return log_probs[:, :keep].numpy(), state.numpy()


def _differs(frames: int, got: str) -> TrainingError:
    return TrainingError(
        f"expected the exported graph to match torch within {_TOLERANCE} at {frames} frames, got {got}; "
        "nothing was written: check the versions of torch, onnx and onnxruntime"
    )
