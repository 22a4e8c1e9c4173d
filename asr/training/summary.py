"""A network as a table: its layers, what they give for some seconds of audio, and how many numbers are trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from asr.audio import SAMPLE_RATE
from asr.training.model import AcousticModel, RecurrentLayer


@dataclass(frozen=True, slots=True)
class Row:
    """A line of `summarise`'s table. shape: outputs for the given length; parameters: trained numbers."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int


def summarise(model: AcousticModel, duration_s: float = 10.0) -> list[Row]:
    """The layers with their output shapes for duration_s of audio, measured by running the model once."""
    watched: dict[str, nn.Module] = {"features": model.features}
    watched |= {f"conv.{i}": stage for i, stage in enumerate(model.network.conv) if isinstance(stage, nn.Conv2d)}
    watched |= {"encoder": model.network.encoder} if model.network.encoder else {}
    watched |= {f"layers.{i}": layer for i, layer in enumerate(model.network.layers)}
    watched["output"] = model.network.output
    rows: list[Row] = []

    def record(name: str, module: nn.Module, output: Tensor) -> None:
        kind = type(module).__name__
        if isinstance(module, RecurrentLayer):
            rnn = module.directions[0]
            mode = f" {rnn.nonlinearity}" if isinstance(rnn, nn.RNN) else ""
            kind = f"{'Bidirectional ' if len(module.directions) == 2 else ''}{type(rnn).__name__}{mode}"
        elif isinstance(module, nn.Sequential):
            kind = "Linear, log-softmax"
        batch = 1 if isinstance(module, RecurrentLayer | nn.Sequential) else 0  # where it stands in the shape
        shape = tuple(output.shape[:batch]) + tuple(output.shape[batch + 1 :])
        rows.append(Row(name, kind, shape, sum(p.numel() for p in module.parameters())))

    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name, module=module: record(name, module, out))
        for name, module in watched.items()
    ]
    training = model.training
    with torch.no_grad():
        silence = np.zeros(round(duration_s * SAMPLE_RATE), np.float32)
        model.eval()(torch.from_numpy(model.geometry.pad(silence))[None])
    model.train(training)
    for hook in hooks:
        hook.remove()
    return rows
