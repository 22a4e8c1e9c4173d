"""Fine-tuning: the weights of another model to start from, parts that stay as they are, and learning rates by part."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from asr.errors import ConfigError, nearest
from asr.tokens import Tokens
from asr.training import checkpoint, config, encoder
from asr.training.model import AcousticModel, SequenceNorm

_LISTED = 40  # tokens
# What each index of each dimension of a tensor stands for: a gate of a unit, a token, ...
_Meaning = tuple[list[Any], ...]


def start(model: AcousticModel, settings: config.Config, tokens: Tokens, console: Console) -> bool:
    """Copy what fits from the model that settings.init names, and list the rest; whether that includes `mean` and `std`.

    A weight is copied where both of its ends mean the same in both models: the same gate of the same unit of the same layer
    and kind of cell, the same token (by its symbol), whatever the sizes. So a layer of 192 takes a layer of 128 as its first
    units, gate by gate; one direction is taken from two; a token keeps its row in a vocabulary of another order; and an
    output layer that now hears another layer keeps its bias. A piece of words that the other model lacks takes the row of
    its first letter: on speechocean762 that left the plateau of a flat start at once, fresh rows did not in two epochs.
    Everything else keeps its fresh initialisation.

    That a wider network learns faster from a narrower one is known from Chen et al. 2016, "Net2Net: Accelerating Learning
    via Knowledge Transfer", who keep its function exactly. A mere copy does much of it: on the single digits of recipes/fsdd
    128 -> 192 cells have 2.2 % dev WER after 4 epochs, drawn anew 15 % (means of two seeds). To set the fresh inputs of old
    units to zero, which keeps more of the function, was no better: 2.5 %.
    A pre-trained encoder that the other model lacks is read from its folder.
    returns: whether the features' mean and deviation were copied, for which their settings must be the same.
    raises:  CheckpointError; ConfigError if the encoder's folder does not hold it.
    """
    assert settings.init is not None
    donor, donor_settings, donor_tokens, _ = checkpoint.load_model(settings.init)
    same_features = donor_settings.features == settings.features
    pretrained = None if donor.network.encoder else settings.network.encoder
    if pretrained and model.network.encoder:
        encoder.load(model.network.encoder, pretrained)
    own, given = model.state_dict(), donor.state_dict()
    known = set(donor_tokens.symbols)
    symbols = [symbol if symbol in known else symbol.lstrip()[:1] for symbol in tokens.symbols]
    meanings = _meanings(model, settings, symbols)
    given_meanings = _meanings(donor, donor_settings, list(donor_tokens.symbols))
    if not same_features:
        del given["mean"], given["std"]
    shares = {
        name: _copy(value, meanings[name], given[name], given_meanings[name]) if name in given else 0.0
        for name, value in own.items()
    }
    fresh = [name for name, share in shares.items() if not share and name not in ("mean", "std")]
    if pretrained:
        fresh = [name for name in fresh if not name.startswith("network.encoder.")]
    fitted = [] if same_features or model.network.encoder else ["mean", "std"]
    cut = [name for name in own if name in given and shares[name] == 1 and given[name].numel() > own[name].numel()]
    notes = {
        "in part": [f"{name} ({share:.0%})" for name, share in shares.items() if 0 < share < 1],
        "cut to the first of their units": cut,
        "encoder": [str(pretrained)] if pretrained else [],
        "drawn anew": fresh,
        "fitted anew": fitted,
        "left out": [name for name in given if name not in own],
        "new tokens": _describe_missing(tokens, donor_tokens),
        "tokens left out": _describe_missing(donor_tokens, tokens),
    }
    said = "".join(f"; {note}: {', '.join(names)}" for note, names in notes.items() if names)
    whole = sum(share == 1 for share in shares.values()) - len(cut)
    console.print(
        f"started from {settings.init}: {whole} of {len(own)} tensors fit{said}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    return same_features


def _describe_missing(some: Tokens, others: Tokens) -> list[str]:
    """The symbols that only the first vocabulary has; of many, how many more."""
    known = set(others.symbols)
    found = [repr(symbol) for symbol in some.symbols if symbol not in known]
    return found[:_LISTED] + [f"and {len(found) - _LISTED} more"] * (len(found) > _LISTED)


def _copy(own: Tensor, meaning: _Meaning, given: Tensor, given_meaning: _Meaning) -> float:
    """Fill `own` from `given` where the meanings are the same; the share that was filled."""
    if not meaning:
        own.copy_(given)
        return 1.0
    places: list[list[int]] = []
    given_places: list[list[int]] = []
    for labels, given_labels in zip(meaning, given_meaning, strict=True):
        where = {label: place for place, label in enumerate(given_labels)}
        both = [(place, where[label]) for place, label in enumerate(labels) if label in where]
        places.append([place for place, _ in both])
        given_places.append([place for _, place in both])
    block, given_block = (
        torch.meshgrid(*(torch.tensor(chosen, dtype=torch.long) for chosen in of_each), indexing="ij")
        for of_each in (places, given_places)
    )
    if block[0].numel():
        own[block] = given[given_block]
    return block[0].numel() / own.numel()


def _meanings(model: AcousticModel, settings: config.Config, symbols: list[Any]) -> dict[str, _Meaning]:
    """Of each tensor of a model: what each index of each dimension stands for."""
    network, chosen = model.network, settings.network
    features = list(range(model.features.size))
    meanings: dict[str, _Meaning] = {"mean": (features,), "std": (features,)}

    def put(module: str, inputs: list[Any], outputs: list[Any]) -> list[Any]:
        meanings[f"network.{module}.weight"], meanings[f"network.{module}.bias"] = (outputs, inputs), (outputs,)
        return outputs

    for name, value in network.state_dict().items():
        if name.startswith("encoder."):
            meanings[f"network.{name}"] = tuple(list(range(size)) for size in value.shape)
    channels: list[Any] = ["features"]
    kernel = list(range(3))
    for stage in range(network.stages):
        module = f"conv.{2 * stage}"
        channels = put(module, channels, [("channel", stage, channel) for channel in range(chosen.conv_channels)])
        meanings[f"network.{module}.weight"] += (kernel, kernel)
    layer: Any = network.layers[0]
    bands = layer.directions[0].input_size // len(channels)
    units: list[Any] = [(channel, band, bands) for channel in channels for band in range(bands)]
    for depth, layer in enumerate(network.layers):
        module = f"layers.{depth}"
        for name, value in layer.norm.state_dict().items():
            meanings[f"network.{module}.norm.{name}"] = (units,) * value.dim()
        out = []
        for direction, rnn in enumerate(layer.directions):
            hidden = [(chosen.cell, depth, direction, unit) for unit in range(rnn.hidden_size)]
            gates = [(gate, unit) for gate in range(len(rnn.weight_hh_l0) // len(hidden)) for unit in hidden]
            for side, inputs in (("ih", units), ("hh", hidden)):
                prefix = f"network.{module}.directions.{direction}"
                meanings[f"{prefix}.weight_{side}_l0"] = (gates, inputs)
                meanings[f"{prefix}.bias_{side}_l0"] = (gates,)
            out += hidden
        units = out
        if chosen.projection:
            projected = [(chosen.cell, depth, "projection", unit) for unit in range(chosen.projection)]
            units = put(f"{module}.projection", units, projected)
    meanings["network.output.0.weight"] = meanings["network.output.0.bias"] = (units,)
    put("output.1", units, symbols)
    return meanings


def parameter_groups(network: nn.Module, settings: config.Config) -> list[dict[str, Any]]:
    """Freeze what settings.freeze names; the other parameters as groups for an optimiser, each with its `scale` of the rate.

    source: Howard & Ruder 2018, "Universal Language Model Fine-tuning for Text Classification" (discriminative rates).
    raises: ConfigError if a pattern names no parameter, or every parameter is frozen.
    """
    scales = {name: 1.0 for name, _ in network.named_parameters()}
    if settings.network.encoder:
        scales |= _encoder_scales(network.encoder, settings.optimiser)
    for pattern, scale in settings.optimiser.lr_scale.items():
        scales |= dict.fromkeys(_match(network, pattern, "optimiser.lr_scale"), scale)
    for pattern in settings.freeze:
        for name in _match(network, pattern, "freeze"):
            network.get_parameter(name).requires_grad = False
            scales.pop(name, None)
    if not scales:
        raise ConfigError("freeze: expected something left to train, but every parameter is frozen")
    return [
        {"params": [network.get_parameter(name) for name in scales if scales[name] == scale], "scale": scale}
        for scale in sorted(set(scales.values()))
    ]


def _encoder_scales(pretrained: Any, settings: config.Optimiser) -> dict[str, float]:
    """Of each parameter of a pre-trained encoder: the lower, the more it holds for any speech, and the less it moves."""
    blocks = len(pretrained.blocks)
    scales = {}
    for name, _ in pretrained.named_parameters():
        parts = name.split(".")
        height = int(parts[1]) if parts[0] == "blocks" else -1 if parts[0].startswith("conv") else blocks - 1
        scales[f"encoder.{name}"] = settings.encoder_lr_scale * settings.encoder_lr_decay ** (blocks - 1 - height)
    return scales


def train_mode(model: nn.Module) -> None:
    """Training mode; but batch normalisation whose weights are frozen keeps its statistics too."""
    model.train()
    for module in model.modules():
        if isinstance(module, SequenceNorm) and not any(weight.requires_grad for weight in module.parameters()):
            module.eval()


def _match(network: nn.Module, pattern: str, setting: str) -> list[str]:
    """The parameters whose name, or that of a module around them, fits a pattern. raises: ConfigError if there are none."""
    names = [name for name, _ in network.named_parameters()]
    found = [name for name in names if any(fnmatchcase(part, pattern) for part in _prefixes(name))]
    if not found:
        known = dict.fromkeys(part for name in names for part in _prefixes(name))
        raise ConfigError(f"{setting}: no parameter is named {pattern!r}: {nearest(pattern, known)}")
    return found


def _prefixes(name: str) -> Iterator[str]:
    """A parameter's name and those of the modules around it: conv, conv.0, conv.0.weight."""
    parts = name.split(".")
    yield from (".".join(parts[:length]) for length in range(1, len(parts) + 1))
