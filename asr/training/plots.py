"""Pictures: of a run, how the losses fell and gradients flowed; of a model, how far its confidences hold."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")  # files only: training machines have no screen
import matplotlib.pyplot as plt


def curves(run: Path) -> None:
    """curves.png: loss, error rates and learning rate over the training."""
    steps, epochs = _read_log(run)
    figure, (losses, errors, rates) = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
    losses.plot([row["step"] for row in steps], [row["loss"] for row in steps], color="0.8", label="train, batch")
    ends = _epoch_ends(steps, epochs)
    losses.plot(ends, [row["train_loss"] for row in epochs], label="train, epoch")
    losses.plot(ends, [row["dev_loss"] for row in epochs], label="dev")
    losses.set(xlabel="step", ylabel="nats a token", title="CTC loss")
    losses.legend()
    errors.plot([row["epoch"] + 1 for row in epochs], [100 * row["dev_wer"] for row in epochs], label="WER")
    errors.plot([row["epoch"] + 1 for row in epochs], [100 * row["dev_cer"] for row in epochs], label="CER")
    errors.set(xlabel="epoch", ylabel="%", title="dev errors, greedy", ylim=(0, 105))
    errors.legend()
    rates.plot([row["step"] for row in steps], [row["lr"] for row in steps])
    rates.set(xlabel="step", title="learning rate")
    _save(figure, run / "curves.png")


def gradients(run: Path) -> None:
    """gradients.png: the gradient's norm per layer before clipping; a layer that fades or explodes stands out."""
    steps, _ = _read_log(run)
    layers = list(steps[0]["layers"]) if steps else []
    colours = plt.get_cmap("viridis")
    figure, axes = plt.subplots(figsize=(10, 5), layout="constrained")
    for number, layer in enumerate(layers):
        colour = colours(number / max(1, len(layers) - 1))
        axes.plot([row["step"] for row in steps], [row["layers"][layer] for row in steps], color=colour, label=layer)
    axes.plot([row["step"] for row in steps], [row["gradient_norm"] for row in steps], "k", lw=0.7, label="all")
    axes.set(xlabel="step", yscale="log", title="gradient norm, before clipping")
    axes.legend(fontsize="small", ncols=2)
    _save(figure, run / "gradients.png")


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


def _epoch_ends(steps: list[dict[str, Any]], epochs: list[dict[str, Any]]) -> list[int]:
    return [max((row["step"] for row in steps if row["epoch"] <= epoch["epoch"]), default=0) for epoch in epochs]


def _save(figure: Any, to: Path | io.BytesIO) -> None:
    figure.savefig(to, dpi=120)
    plt.close(figure)
