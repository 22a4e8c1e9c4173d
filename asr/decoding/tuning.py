"""Finding how much to heed a language model, on recordings whose texts are known: weights, bonus, confidences.

The network runs once; every trial decodes its log-probabilities again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from asr import files, metrics
from asr.decoding import confidence
from asr.decoding.confidence import Calibration
from asr.decoding.decoder import Decoder
from asr.decoding.fusion import Decoding
from asr.lm.model import NgramModel
from asr.lm.neural import NeuralLm
from asr.models import onnxfile
from asr.tokens import Tokens

_FIRST_STEPS = {"lm_weight": 0.3, "word_bonus": 1.0, "unknown": 4.0}
_SHARES = (0.0, 0.2, 0.4, 0.6, 0.8)  # a finer choice would be the dev set's noise
_ROUNDS = 4  # with half the steps each


@dataclass(frozen=True, slots=True)
class Example:
    """An utterance of the dev set. parts: (T, V) log-probabilities, decoded one by one; reference: its normalised text."""

    parts: Sequence[np.ndarray]
    reference: str


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting, and the errors with it: words and characters, as shares of those in the references."""

    decoding: Decoding
    wer: float
    cer: float

    def __str__(self) -> str:
        weights = ",".join(
            f"{name}={'never' if value is None else value}" for name, value in self.decoding.settings().items()
        )
        return f"--decoding {weights}: WER {self.wer:.2%}, CER {self.cer:.2%}"


def search(
    examples: Sequence[Example],
    tokens: Tokens,
    lm: NgramModel,
    *,
    beam: int,
    start: Decoding,
    progress: Callable[[Trial], None] = lambda trial: None,
) -> Trial:
    """The trial with the lowest WER, then the lowest CER, of a compass search from `start`; progress is told of each.

    Each round goes along each setting for as long as that helps, then halves its steps. Few trials, no randomness, and
    too coarse to fit the noise of a small dev set.
    """
    trials: dict[Decoding, Trial] = {}

    def attempt(decoding: Decoding) -> Trial:
        if decoding not in trials:
            decoder = Decoder(tokens, beam=beam, lm=lm, decoding=decoding)
            trials[decoding] = Trial(decoding, *error_rates(examples, decoder))
            progress(trials[decoding])
        return trials[decoding]

    best = attempt(start)
    for step_share in 0.5 ** np.arange(_ROUNDS):
        moved = True
        while moved:
            moved = False
            for name, step in _FIRST_STEPS.items():
                for sign in (1, -1):
                    value = getattr(best.decoding, name)
                    if value is None:  # a closed vocabulary stays closed
                        continue
                    value = round(float(value + sign * step * step_share), 4)
                    if (name == "lm_weight" and value <= 0) or (name == "unknown" and value > 0):
                        continue
                    trial = attempt(replace(best.decoding, **{name: value}))
                    if (trial.wer, trial.cer) < (best.wer, best.cer):
                        best, moved = trial, True
    return best


def best_share(
    examples: Sequence[Example],
    tokens: Tokens,
    lm: NgramModel,
    neural: NeuralLm,
    *,
    beam: int,
    start: Decoding,
    progress: Callable[[Trial], None] = lambda trial: None,
) -> Trial:
    """The trial with the lowest WER, then the lowest CER, of several neural_shares; all else as in `start`."""
    trials = []
    for share in _SHARES:
        decoding = replace(start, neural_share=share)
        decoder = Decoder(tokens, beam=beam, lm=lm, decoding=decoding, neural=neural)
        trials.append(Trial(decoding, *error_rates(examples, decoder)))
        progress(trials[-1])
    return min(trials, key=lambda trial: (trial.wer, trial.cer))


def error_rates(examples: Sequence[Example], decoder: Decoder) -> tuple[float, float]:
    """WER and CER of a decoder, as shares of the words and characters of the references."""
    texts = []
    for example in examples:
        found = (decoder.texts(decoder(part), 1) for part in example.parts)
        texts.append(" ".join(best[0][0] for best in found if best and best[0][0]))
    references = [example.reference for example in examples]
    both = metrics.word_errors(references, texts), metrics.character_errors(references, texts)
    wer, cer = (errors.total / max(errors.reference_length, 1) for errors in both)
    return wer, cer


def calibrate(examples: Sequence[Example], decoder: Decoder) -> Calibration:
    """The confidences' calibration for a decoder. raises: DecodingError if there is too little to learn from."""
    share, letters, right = signs(examples, decoder)
    return confidence.fit(share, letters, right)


def signs(examples: Sequence[Example], decoder: Decoder) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each recognised word: its share in the beam, its weakest letter's posterior, whether it is right. (n,) each.

    decoder: without a calibration, so that a word's confidence is its weakest letter's posterior.
    """
    share: list[float] = []
    letters: list[float] = []
    right: list[bool] = []
    for example in examples:
        words: list[str] = []
        for part in example.parts:
            if found := decoder(part):
                share += decoder.shares(found)
                timed = decoder.words(found, part, 1.0)
                letters += [word.confidence for word in timed]
                words += [word.text for word in timed]
        right += confidence.right_words(example.reference, " ".join(words)).tolist()
    return np.array(share), np.array(letters), np.array(right, bool)


def store(
    path: Path, decoding: Decoding | None, calibrations: dict[str, Calibration], target: Path | None = None
) -> None:
    """Write the settings into a model's file, or into a copy of it at `target`, whole or not at all.

    calibrations: by kind of decoding; they replace their own.
    """
    data = onnxfile.read(path)
    card = json.loads(onnxfile.metadata(data, "asr"))
    if decoding is not None:
        card["decoding"] = decoding.settings()
    kept = card["calibration"] if isinstance(card.get("calibration"), dict) else {}
    card["calibration"] = kept | {kind: asdict(one) for kind, one in calibrations.items()}
    files.write(
        target or path, onnxfile.with_metadata(data, "asr", json.dumps(card, ensure_ascii=False)), overwrite=True
    )
