"""The learning rate over a training."""

from __future__ import annotations

import math

from asr.training import config


def rate(settings: config.Optimiser, progress: float) -> float:
    """The learning rate as a share of its peak. progress: share of the training that is done, 0 to 1.

    cosine: linear from 0 to the peak, then a half cosine to the final rate (Loshchilov & Hutter 2017).
    one_cycle: half cosines from peak / 25 up and down again (Smith & Topin 2019).
    plateau, constant: the peak after warm-up; `plateau` is halved elsewhere when dev loss stalls.
    """
    if progress < settings.warmup:
        rising = progress / settings.warmup
        return 1 / 25 + 24 / 25 * _half_cosine(1 - rising) if settings.schedule == "one_cycle" else max(rising, 1e-3)
    if settings.schedule in ("plateau", "constant"):
        return 1.0
    falling = (progress - settings.warmup) / (1 - settings.warmup)
    return settings.final + (1 - settings.final) * _half_cosine(falling)


def _half_cosine(x: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * x))
