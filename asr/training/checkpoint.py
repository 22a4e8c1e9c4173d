"""Checkpoints: one safetensors file each, tensors and settings together, written whole or not at all. Never a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor, nn

from asr import files, models
from asr.errors import CheckpointError, OutputError, TokenError
from asr.tokens import Tokens
from asr.training import config, exported
from asr.training.model import AcousticModel

NO_DATA = "not in the model's file"  # the path of a training set that only those who trained it have
SCHEMA = 1  # raised when older programs could misread a checkpoint


def save(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-serialisable state to one file; an older file of that name stays until the new is whole."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = serialise(contiguous, {"asr": json.dumps({"schema": SCHEMA, **state})})
    try:
        with files.replaced(path, alone=True, advice="free some space, then go on with --resume") as file:
            file.write(data)
    except OutputError as error:
        raise CheckpointError(str(error)) from None


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of a checkpoint. raises: CheckpointError if it cannot be used."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint; train first, or check the path") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: expected a checkpoint (safetensors), got a file that is not: {error}") from None
    if "asr" not in metadata:
        raise CheckpointError(f"{path}: expected a checkpoint of this package, got safetensors without its settings")
    try:
        state: dict[str, Any] = json.loads(metadata["asr"])
        schema = int(state["schema"])
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path}: expected the settings of a checkpoint, got {metadata['asr'][:60]!r}") from None
    if schema > SCHEMA:
        raise CheckpointError(
            f"{path}: written with checkpoint schema {schema}, this version knows {SCHEMA}; update the package"
        )
    return tensors, state


def load_model(path: Path) -> tuple[AcousticModel, config.Config, Tokens, dict[str, Any]]:
    """The model of a run folder, of one of its weight files, or of an exported file, in evaluation mode.

    path:    also the name of a model in the package.
    returns: the model, its settings and vocabulary, and what else its file tells. The settings of an exported file name no
             data: it goes without what it was trained on.
    """
    if not path.exists():
        path = models.names().get(path.name, path)
    if path.is_dir():
        path = path / "model.safetensors"
        if not path.exists():
            raise CheckpointError(f"{path.parent}: holds no finished model; finish its training with --resume first")
    if path.suffix == ".onnx":
        return _load_exported(path)
    tensors, state = load(path)
    settings, tokens = _origin(state, path)
    model = AcousticModel(settings, len(tokens))
    # In last.safetensors the weights stand beside the optimiser's state, averaged ones before the raw.
    load_weights(model, without_sounds(unpack("ema", tensors) or unpack("model", tensors) or tensors), path)
    return model.eval(), settings, tokens, state


def _load_exported(path: Path) -> tuple[AcousticModel, config.Config, Tokens, dict[str, Any]]:
    told, arrays = exported.read(path)
    tree = {**(told.get("config") or {}), "pronunciation": None}
    tree["data"] = {**tree.get("data", {}), "train": [NO_DATA], "dev": NO_DATA}
    tree["augment"] = {**tree.get("augment", {}), "noise": None, "rooms": None}
    settings, tokens = _origin({"config": tree, "tokens": told.get("tokens")}, path)
    model = AcousticModel(settings, len(tokens))
    model.load_state_dict(exported.weights(arrays, model, path))
    return model.eval(), settings, tokens, {"config": config.to_dict(settings), "training": told.get("training", {})}


def load_tokens(path: Path) -> Tokens:
    """The vocabulary of a checkpoint. raises: CheckpointError."""
    return _origin(load(path)[1], path)[1]


def _origin(state: Mapping[str, Any], path: Path) -> tuple[config.Config, Tokens]:
    """The settings of a checkpoint and its vocabulary; one without a vocabulary is older, and of characters."""
    settings = config.parse(state["config"], str(path))
    try:
        return settings, Tokens(state["tokens"]) if "tokens" in state else Tokens.of(settings.data.alphabet)
    except (TokenError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}; get a whole copy of the checkpoint, or train again") from None


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy weights into a model. raises: CheckpointError naming what does not fit (another vocabulary, other layers)."""
    own = model.state_dict()
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    other = [
        f"{name}: expected {tuple(own[name].shape)}, got {tuple(tensors[name].shape)}"
        for name in own
        if name in tensors and own[name].shape != tensors[name].shape
    ]
    if missing or unknown or other:
        vocabulary = " (a model with another vocabulary?)" if any("output" in line for line in other) else ""
        details = [*other, *(f"{name}: missing" for name in missing), *(f"{name}: not expected" for name in unknown)]
        raise CheckpointError(f"{path}: the weights do not fit the settings{vocabulary}: " + "; ".join(details[:3]))
    model.load_state_dict({name: tensors[name] for name in own})


def without_sounds(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's weights without those of the output for sounds, which serves in training alone."""
    return {name: value for name, value in weights.items() if not name.startswith("network.sounds.")}


def pack(prefix: str, tree: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors of nested mappings under names joined by |; `unpack` undoes it. Only tensors are allowed at the leaves."""
    flat: dict[str, Tensor] = {}
    for name, value in tree.items():
        if isinstance(value, Tensor):
            flat[f"{prefix}|{name}"] = value
        else:
            flat |= pack(f"{prefix}|{name}", value)
    return flat


def unpack(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The nested mappings that `pack` flattened under prefix."""
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        head, *parents, last = name.split("|") if "|" in name else ("", name)
        if head != prefix:
            continue
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = tensor
    return tree


def average(paths: list[Path]) -> dict[str, Tensor]:
    """The mean of several weight files, entry by entry (Izmailov et al. 2018); counters keep the first file's value."""
    first, *others = [load(path)[0] for path in paths]
    return {
        name: torch.stack([tensor.double(), *(other[name].double() for other in others)]).mean(0).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in first.items()
    }
