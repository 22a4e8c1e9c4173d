"""A model on a corpus: what it recognises, and its loss."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from asr import metrics
from asr.decoding import ctc
from asr.tokens import BLANK, Tokens
from asr.training import launch
from asr.training.data import Corpus
from asr.training.examples import Example
from asr.training.model import AcousticModel


def evaluate(
    model: AcousticModel, tokens: Tokens, corpus: Corpus, fabric: Fabric | None = None
) -> tuple[list[metrics.Scored], float]:
    """Greedy transcripts in the corpus's order, and the loss in nats a token (without utterances too short for their text).

    fabric: of a training: its processes share the work, all get the result, and its precision is used.
    """
    model.eval()
    plan = corpus.in_order()
    own = plan[fabric.global_rank :: fabric.world_size] if fabric else plan
    scored: dict[int, metrics.Scored] = {}
    loss_sum, token_sum = 0.0, 0
    with torch.no_grad(), fabric.autocast() if fabric else nullcontext():
        for items, batch in zip(own, corpus.batches(own, 0), strict=True):
            waveforms, lengths = corpus.heard(batch, model.mean.device)
            features = model.normalised_features(waveforms)
            log_probs, frames, _ = model.network(features, model.feature_frames(lengths))
            losses = ctc_losses(log_probs, frames, batch.token_ids, batch.token_lengths).cpu()
            finite = torch.isfinite(losses)
            loss_sum += float(losses[finite].double().sum())
            token_sum += int(batch.token_lengths[finite].sum())
            for row, length, item in zip(log_probs.cpu().numpy(), frames.tolist(), items, strict=True):
                scored[item.index] = _score(corpus.examples[item.index], row[:length], tokens)
    parts = launch.gather(fabric, (scored, loss_sum, token_sum)) if fabric else [(scored, loss_sum, token_sum)]
    everything = {index: one for found, _, _ in parts for index, one in found.items()}
    mean = sum(loss for _, loss, _ in parts) / max(1, sum(count for *_, count in parts))
    return [everything[index] for index in range(len(everything))], mean


def rates(scored: Sequence[metrics.Scored]) -> tuple[float, float]:
    """Word and character error rate."""
    references, hypotheses = [one.reference for one in scored], [one.hypothesis for one in scored]
    return metrics.word_errors(references, hypotheses).rate, metrics.character_errors(references, hypotheses).rate


def ctc_losses(
    log_probs: Tensor, frames: Tensor, targets: Tensor, target_lengths: Tensor, *, zero_infinity: bool = False
) -> Tensor:
    """CTC losses (B,) in nats.

    log_probs: (B, T, V); frames: (B,); targets: (sum of U,); target_lengths: (B,). All but the first are on the host.
    zero_infinity: targets that do not fit into their frames, whose loss is infinite, are left out.
    """
    return nn.functional.ctc_loss(
        log_probs.transpose(0, 1),
        targets.to(log_probs.device, non_blocking=True),
        frames,
        target_lengths,
        blank=BLANK,
        reduction="none",
        zero_infinity=zero_infinity,
    )


def _score(example: Example, log_probs: np.ndarray, tokens: Tokens) -> metrics.Scored:
    text = tokens.text(ctc.greedy(log_probs).token_ids)
    utterance = example.utterance
    return metrics.Scored(utterance.id, example.text, text, utterance.speaker, utterance.duration_s)
