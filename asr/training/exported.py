"""The weights of an exported model, by the names that they have in a checkpoint: an ONNX file can be trained on from.

The exporter gives weights numbers for names, and stores them as its operators want them: linear layers transposed, the
gates of recurrent layers in another order. `name_weights` gives them their own names; `weights` undoes the rest. Weights in
int8 come back as what int8 has left of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from asr.errors import ModelError
from asr.models import SCHEMA, onnxfile

# Where each of torch's gates stands in ONNX: input, forget, cell, output -> input, output, forget, cell; and reset,
# update, new -> update, reset, new.
_GATES: dict[type[nn.Module], tuple[int, ...]] = {nn.LSTM: (0, 3, 1, 2), nn.GRU: (1, 0, 2), nn.RNN: (0,)}
_QUANTISED = "_quantized"
_COUNTER = "num_batches_tracked"  # of batch normalisation, which is in no graph and changes nothing


class _Piece(NamedTuple):
    """One array of an ONNX file. names: of the checkpoint's tensors in it; array: as the operator wants it."""

    names: tuple[str, ...]
    array: np.ndarray
    gates: tuple[int, ...] = ()
    transposed: bool = False

    @property
    def name(self) -> str:
        return self.names[0]

    def tensors(self, array: np.ndarray) -> dict[str, Tensor]:
        """The checkpoint's tensors, from another array of the same shape."""
        if self.transposed:
            array = array.T
        parts = [array]
        if self.gates:
            parts = [_in_order(part, tuple(np.argsort(self.gates))) for part in np.split(array[0], len(self.names))]
        return {name: torch.from_numpy(part.copy()) for name, part in zip(self.names, parts, strict=True)}


def _in_order(array: np.ndarray, gates: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([np.split(array, len(gates))[gate] for gate in gates])


def _pieces(model: nn.Module) -> Iterator[_Piece]:
    """Everything that a model is made of, as its ONNX file has it."""
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    for prefix, module in model.named_modules():
        gates = _GATES.get(type(module), ())
        names = [name for name in module.state_dict() if "." not in name and name != _COUNTER]
        if gates:
            for side in ("weight_ih_l0", "weight_hh_l0"):
                yield _Piece((f"{prefix}.{side}",), _in_order(state[f"{prefix}.{side}"], gates)[None], gates)
            biases = f"{prefix}.bias_ih_l0", f"{prefix}.bias_hh_l0"
            yield _Piece(biases, np.concatenate([_in_order(state[name], gates) for name in biases])[None], gates)
            continue
        for name in (f"{prefix}.{name}".lstrip(".") for name in names):
            linear = isinstance(module, nn.Linear) and name.endswith(".weight")
            yield _Piece((name,), state[name].T if linear else state[name], transposed=linear)


def name_weights(graph: onnx.ModelProto, model: nn.Module) -> set[str]:
    """Rename the weights of a float graph by what they are in the model; returns the names that were given."""
    found: dict[tuple[Any, ...], list[str]] = {}
    for tensor in graph.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        found.setdefault((array.shape, array.tobytes()), []).append(tensor.name)
    renamed = {}
    for piece in _pieces(model):
        if same := found.get((piece.array.shape, np.ascontiguousarray(piece.array).tobytes())):
            renamed[same.pop(0)] = piece.name
    for tensor in graph.graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for node in graph.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
    return set(renamed.values())


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `asr export` wrote about a model, and the arrays in its file by their names. raises: ModelError."""
    try:
        data = onnxfile.read(path)
        card: dict[str, Any] = json.loads(onnxfile.metadata(data, "asr"))
        schema = int(card["schema"])
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    except (ModelError, ValueError, KeyError, TypeError):
        raise ModelError(f"{path}: expected a model (ONNX) written by asr export, got another file") from None
    if schema > SCHEMA:
        raise ModelError(f"{path}: written with model schema {schema}, this version knows {SCHEMA}")
    tensors = onnx.load_from_string(data).graph.initializer
    return card, {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in tensors}


def weights(arrays: Mapping[str, np.ndarray], model: nn.Module, path: Path) -> dict[str, Tensor]:
    """The weights among a file's arrays, for a model of its settings. raises: ModelError if some are not there."""
    state: dict[str, Tensor] = {name: value for name, value in model.state_dict().items() if name.endswith(_COUNTER)}
    for piece in _pieces(model):
        array = _float(arrays, piece)
        if array is None or array.shape != piece.array.shape:
            raise ModelError(
                f"{path}: expected a model file with {piece.name} of {piece.array.shape} to train on from, "
                f"got {'none' if array is None else array.shape}; files of earlier versions have no such names: "
                "give the run folder that it was exported from"
            )
        state |= piece.tensors(array)
    return state


def _float(arrays: Mapping[str, np.ndarray], piece: _Piece) -> np.ndarray | None:
    if piece.name in arrays:
        return arrays[piece.name]
    quantised = arrays.get(piece.name + _QUANTISED)
    scale, zero = (arrays.get(f"{piece.name}_{what}") for what in ("scale", "zero_point"))
    if quantised is None or scale is None or zero is None:
        return None
    # One scale, or one for each column.
    array = (quantised.astype(np.float32) - zero.reshape(-1).astype(np.float32)) * scale.reshape(-1)
    result: np.ndarray = array.transpose(0, 2, 1) if piece.gates else array
    return result
