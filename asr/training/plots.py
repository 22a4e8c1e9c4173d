"""Pictures: of a run, how the losses fell and gradients flowed; of a model, how far its confidences hold."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")  # files only: training machines have no screen
import matplotlib.pyplot as plt
from matplotlib.ticker import LogFormatter

Rows = Sequence[Mapping[str, Any]]  # of a training's log.jsonl


def curves(run: Path) -> None:
    """Draw curves.png: loss, error rates and learning rate over the training."""
    figure, (losses, errors, rates) = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
    draw_curves(losses, errors, rates, *_read_log(run))
    _save(figure, run / "curves.png")


def gradients(run: Path) -> None:
    """Draw gradients.png: the gradient's norm, of all and of each layer; one that fades or explodes stands out."""
    steps, _ = _read_log(run)
    figure, (whole, each) = plt.subplots(2, 1, figsize=(10, 4 + 0.2 * len(layers_of(steps))), layout="constrained")
    draw_gradients(whole, each, steps)
    _save(figure, run / "gradients.png")


def draw_curves(losses: Any, errors: Any, rates: Any, steps: Rows, epochs: Rows) -> None:
    """Losses, error rates and the learning rate, of a log's rows."""
    x = [row["epoch"] + 1 for row in epochs]
    at = np.interp([row["step"] for row in steps], [0, *_epoch_ends(steps, epochs)], [0, *x])
    losses.plot(at, [row["loss"] for row in steps], color="0.7", lw=0.8, label="train, batch")
    losses.plot(x, [row["train_loss"] for row in epochs], "o-", label="train, epoch")
    losses.plot(x, [row["dev_loss"] for row in epochs], "s--", label="dev")
    losses.set(xlabel="epoch", ylabel="nats a token", title="CTC loss", ylim=(0, None))
    errors.plot(x, [100 * row["dev_wer"] for row in epochs], "o-", label="WER")
    errors.plot(x, [100 * row["dev_cer"] for row in epochs], "s--", label="CER")
    errors.set(xlabel="epoch", ylabel="%", title="Errors on dev, greedy", ylim=(0, None))
    for axes in (losses, errors):
        axes.legend()
        axes.xaxis.get_major_locator().set_params(integer=True)
    rates.plot([row["step"] for row in steps], [row["lr"] for row in steps])
    rates.set(xlabel="step", title="Learning rate", ylim=(0, None))


def draw_gradients(whole: Any, each: Any, steps: Rows, clip: float | None = None) -> None:
    """The gradient's norm before clipping, and that of each layer, of a log's rows. clip: the largest that is left."""
    layers, x = layers_of(steps), [row["step"] for row in steps]
    whole.plot(x, [row["gradient_norm"] for row in steps], lw=0.8)
    if clip is not None:
        whole.axhline(clip, color="C1", ls="--", label=f"clipped to {clip:g}")
        whole.legend()
    whole.set(xlabel="step", yscale="log", title="Gradient norm, before clipping")
    whole.yaxis.set(major_formatter="{x:g}", minor_formatter=LogFormatter())  # by default they write TeX
    if not layers:
        return
    norms = np.array([[row["layers"].get(layer, np.nan) for row in steps] for layer in layers])  # a layer may be frozen
    extent = (x[0], x[-1] + 1, len(layers) - 0.5, -0.5)
    picture = each.imshow(np.maximum(norms, 1e-12), aspect="auto", cmap="viridis", norm="log", extent=extent)
    each.set(xlabel="step", title="Gradient norm by layer")
    each.set_yticks(range(len(layers)), layer_names(layers), fontsize=8)
    each.grid(visible=False)
    each.figure.colorbar(picture, format="{x:g}").minorformatter = LogFormatter()


def layers_of(steps: Rows) -> list[str]:
    """The layers whose gradients the log has."""
    return list(dict.fromkeys(layer for row in steps for layer in row["layers"]))


def layer_names(layers: Sequence[str]) -> list[str]:
    """The log's names of layers in words, counted from 1."""
    convolutions = [layer for layer in layers if layer.startswith("conv.")]
    names = []
    for layer in layers:
        kind, *rest = layer.split(".")
        if kind == "conv":
            names.append(f"convolution {1 + convolutions.index(layer)}")
        elif kind == "layers" and rest[1:2] == ["directions"]:
            names.append(f"layer {1 + int(rest[0])}, {('forward', 'backward')[int(rest[2])]}")
        elif kind == "layers":
            names.append(f"layer {1 + int(rest[0])}, norm and projection")
        else:
            outputs = [other for other in layers if other.startswith(f"{kind}.")]
            names.append(kind if layer == max(outputs, default=layer) else f"{kind}, norm")
    return [layer if names.count(name) > 1 else name for layer, name in zip(layers, names, strict=True)]


def reliability(title: str, counts: np.ndarray, confidence: np.ndarray, accuracy: np.ndarray) -> bytes:
    """A PNG of what words of a confidence are worth, (K,) bins each: on the diagonal, that share of them is right."""
    figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
    filled = counts > 0
    axes.plot([0, 1], [0, 1], color="0.7", lw=1)
    axes.plot(confidence[filled], accuracy[filled], color="C0", lw=1)
    axes.scatter(
        confidence[filled], accuracy[filled], s=20 + 400 * counts[filled] / counts.max(), color="C0", alpha=0.6
    )
    axes.set(xlabel="confidence", ylabel="share of the words that are right", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(title, fontsize=10)
    picture = io.BytesIO()
    _save(figure, picture)
    return picture.getvalue()


def _read_log(run: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if "step" in row], [row for row in rows if "dev_loss" in row]


def _epoch_ends(steps: Rows, epochs: Rows) -> list[int]:
    return [max((row["step"] for row in steps if row["epoch"] <= epoch["epoch"]), default=0) for epoch in epochs]


def _save(figure: Any, to: Path | io.BytesIO) -> None:
    figure.savefig(to, dpi=120)
    plt.close(figure)
