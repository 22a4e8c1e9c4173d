"""Updates of the weights: which batches each averages, its random draws, and what became of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from asr.errors import TrainingError


@dataclass(frozen=True, slots=True)
class Update:
    """An update that is under way on the device."""

    step: int
    lr: float
    tokens: int
    ids: list[str]
    losses: Tensor  # of this process's utterances
    names: list[str]  # of the layers whose gradients' norms are among the figures
    figures: Callable[[], list[float]]

    def check(self, loss: float, gradient_norm: float) -> None:
        """raises: TrainingError naming the utterances, if one of the two is not finite."""
        if not math.isfinite(loss):
            finite = torch.isfinite(self.losses).tolist()
            bad = [name for name, fine in zip(self.ids, finite, strict=True) if not fine]
            raise TrainingError(_not_finite("loss", bad or ["another process's"], self.step))
        if not math.isfinite(gradient_norm):
            raise TrainingError(_not_finite("gradient", self.ids, self.step))


def on_host(values: Tensor) -> Callable[[], list[float]]:
    """Start to copy values from a device; the function returned waits for them."""
    if not values.is_cuda:
        return values.tolist
    copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    copy.copy_(values, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()

    def wait() -> list[float]:
        event.synchronize()
        return list(copy.tolist())

    return wait


def batches_of_updates(planned: int, done: int, group: int) -> list[range]:
    """The numbers of the batches of each update, from an epoch's first that is not done.

    Where they do not divide, the last update is filled up: numbers from `planned` on stand for the first batches again.
    """
    return [range(start, start + group) for start in range(done, planned, group)]


def seed(*key: int) -> None:
    """Seed torch's generators from a key: a batch gets the same draws in any process, whatever was drawn before."""
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def gradient_norms(network: nn.Module) -> tuple[list[str], Tensor]:
    """L2 norm of the gradient of each layer, and of each direction of each recurrent layer, before clipping.

    returns: the layers' names, and (layers,) on the network's device: reading each by itself would make a GPU wait.
    """
    squares: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        if parameter.grad is None:
            continue
        parts = name.split(".")
        layer = ".".join(parts[: 4 if parts[0] == "layers" and parts[2] == "directions" else 2])
        square = parameter.grad.float().square().sum()
        squares[layer] = squares[layer] + square if layer in squares else square
    return list(squares), torch.stack(list(squares.values())).sqrt()


def _not_finite(what: str, ids: Sequence[str], step: int) -> str:
    return (
        f"the {what} at step {step} is not finite; utterances: {', '.join(ids)}. Listen to them and run asr doctor; "
        "if they are sound, lower optimiser.lr or optimiser.clip_norm"
    )
