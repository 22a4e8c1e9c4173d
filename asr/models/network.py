"""A model's ONNX file -> log-probabilities: of whole utterances, or part by part. onnxruntime and NumPy only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from asr import audio
from asr.errors import ModelError, TokenError
from asr.models import SCHEMA
from asr.models.runtime import open_session, run_session
from asr.tokens import BLANK, Tokens

CONTEXT_S = 2.0  # heard on either side of the frames that a pass over a part of a recording contributes
MAX_RECEPTIVE_S = 30.0  # of one frame's convolutions; no network of sense comes near it
_SILENCE = 2e-5  # less than one step of 16 bits: a muted microphone
_IMPOSSIBLE = -30.0  # a log-probability
_MAX_STATE = 1 << 20  # numbers


class Network:
    """The network in a model's file, and the card that `asr export` wrote there. Safe to share between threads.

    path:            of the ONNX file, see `asr.models.find_model`.
    threads:         of onnxruntime.
    tokens:          the vocabulary; V = len(tokens).
    geometry:        samples from one frame to the next (frame_shift_s: seconds), and those that its convolutions see.
    bidirectional:   whether it looks ahead, so that a part of a stream wants context on its right.
    can_stream:      whether it takes an utterance in parts; files of schema 1 do not.
    window:          the most frames that it hears well at once; None for networks without a pre-trained encoder, which hear
                     any number.
    left_context:    frames before a part of a stream that it wants to hear again with it, for such an encoder.
    raises:          ModelError.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        if threads < 1:
            raise ModelError(f"expected at least 1 thread, got {threads}")
        self.path = path
        self._session, told = open_session(path, threads)
        self.card = _read_card(told, path)
        self.name: str = self.card["name"]
        try:
            self.tokens = Tokens(self.card["tokens"])
        except (TokenError, TypeError) as error:
            raise ModelError(f"{path}: {error}; export the model again") from None
        self.geometry = audio.Geometry(self.card["receptive_field"], self.card["frame_shift"])
        self.frame_shift_s = self.geometry.frame_shift / audio.SAMPLE_RATE
        self.bidirectional = bool(self.card.get("bidirectional", True))
        shapes = {one.name: one.shape for one in self._session.get_inputs()}
        self.can_stream = "state" in shapes
        self._can_skip = "skip" in shapes
        self.window: int | None = None
        self.left_context = 0
        if self._can_skip:
            self.window, self.left_context = _windows(self.card, self.frame_shift_s, path)
        self._state_shape = tuple(shapes.get("state", (1, 1, 1)))
        sizes = [size for size in self._state_shape if isinstance(size, int) and size > 0]
        if len(sizes) != 3 or sizes[1] != 1 or np.prod([float(size) for size in sizes]) > _MAX_STATE:
            raise ModelError(
                f"{path}: expected a state of the network, got {self._state_shape}; export the model again"
            )
        self.log_probs(np.ones(1, np.float32))  # a network that cannot run is refused here, not with every recording

    def first_state(self) -> np.ndarray:
        """The state before the first part of a stream, float32."""
        return np.zeros(self._state_shape, np.float32)

    def log_probs(self, waveform: np.ndarray) -> np.ndarray:
        """(T, V) float32, natural log, of a whole utterance (N,); T = ceil(N / frame_shift). raises: ModelError."""
        return self.whole(self.geometry.pad(waveform))

    def whole(self, samples: np.ndarray) -> np.ndarray:
        """(T, V) of all frames that samples (N,) give, N = receptive_field + (T - 1) frame_shift. raises: ModelError.

        What is longer than the network's window it hears in several, each with context whose frames are left to the others.
        """
        frames = self.geometry.frames(len(samples))
        if self.window is None or frames <= self.window:
            return self.part(samples)[0]
        context = min(round(CONTEXT_S / self.frame_shift_s), (self.window - 1) // 2)
        parts = []
        for start in range(0, frames, self.window - 2 * context):
            first, end = max(0, start - context), min(frames, start + self.window - context)
            at = first * self.geometry.frame_shift
            heard = samples[at : at + self.geometry.samples(end - first)]
            parts.append(self.part(heard)[0][start - first : start - first + self.window - 2 * context])
        return np.concatenate(parts)

    def part(
        self, samples: np.ndarray, keep: int | None = None, state: np.ndarray | None = None, skip: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """The log-probabilities of a part of an utterance, and the state for the next one.

        samples: (N,), what the part's frames and those of its contexts see: N = receptive_field + (T - 1) frame_shift.
        keep:    the frames of the part; None for all that follow the left context.
        state:   from the part before; None at the beginning.
        skip:    the frames of the left context, see left_context.
        returns: (keep, V) float32, natural log.
        raises:  ModelError if the network cannot stream, cannot run, or gives something else.
        """
        frames = self.geometry.frames(len(samples)) - skip
        keep = frames if keep is None else keep
        if (
            self._can_skip and np.ptp(samples) < _SILENCE
        ):  # in nothing at all an encoder, which hears at any level, hears words
            blanks = np.full((keep, len(self.tokens)), _IMPOSSIBLE, np.float32)
            blanks[:, BLANK] = 0
            return blanks, self.first_state() if state is None else state
        inputs = {"waveform": samples[None]}
        names = ["log_probs"]
        if self.can_stream:
            inputs |= {"keep": np.array(keep), "state": self.first_state() if state is None else state}
            inputs |= {"skip": np.array(skip)} if self._can_skip else {}
            names.append("next_state")
        elif keep != frames or state is not None:
            raise ModelError(f"{self.path}: this model only hears whole utterances; export it again, with this version")
        log_probs, *after = run_session(self._session, self.path, names, inputs)
        got_frames = (
            log_probs.shape[1] if log_probs.ndim == 3 and self.can_stream and not self.bidirectional else frames
        )
        expected = f"float32 {(1, got_frames, len(self.tokens))}"
        got = f"{log_probs.dtype} {log_probs.shape}"
        if got != expected or np.isnan(log_probs).any() or got_frames < keep:
            raise ModelError(
                f"{self.path}: expected log-probabilities of the network, {expected}, "
                f"got {got if got != expected else 'NaN'}; train it again"
            )
        return np.asarray(log_probs[0, :keep]), after[0] if after else self.first_state()


def _windows(card: dict[str, Any], shift_s: float, path: Path) -> tuple[int, int]:
    """Of a network with a pre-trained encoder: window and left_context, in frames."""
    window_s, left_s = (card.get(key) for key in ("window_s", "left_context_s"))
    if not (
        isinstance(window_s, int | float) and isinstance(left_s, int | float) and 1 <= window_s <= 30 >= left_s >= 0
    ):
        raise ModelError(
            f"{path}: expected windows of 1 to 30 s and a left context of 0 to 30 s, got {window_s} and {left_s}; "
            "export the model again"
        )
    return max(1, int(window_s / shift_s)), round(left_s / shift_s)


def _read_card(text: str, path: Path) -> dict[str, Any]:
    """The metadata that `asr export` wrote."""
    if not text:
        raise ModelError(f"{path}: expected a model written by asr export, got an ONNX file without its metadata")
    try:
        card: dict[str, Any] = json.loads(text)
        schema = int(card["schema"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise ModelError(
            f"{path}: expected metadata written by asr export, got {text[:60]!r}; export it again"
        ) from None
    if schema > SCHEMA:
        raise ModelError(
            f"{path}: written with model schema {schema}, this version knows {SCHEMA}; update the package; "
            "in a clone of this project: git pull, then pip install ."
        )
    kinds = {"name": str, "tokens": list, "sample_rate": int, "frame_shift": int, "receptive_field": int}
    missing = [key for key, kind in kinds.items() if not isinstance(card.get(key), kind)]
    if missing:
        fault = f"lacks {', '.join(missing)}"
    elif card["sample_rate"] != audio.SAMPLE_RATE:
        fault = f"has a sample rate of {card['sample_rate']}"
    elif not 0 < card["frame_shift"] <= card["receptive_field"] <= MAX_RECEPTIVE_S * audio.SAMPLE_RATE:
        fault = f"has frames of {card['receptive_field']} samples, {card['frame_shift']} apart"
    else:
        return card
    raise ModelError(
        f"{path}: expected the metadata of a {audio.SAMPLE_RATE} Hz model, but it {fault}; export it again"
    )
