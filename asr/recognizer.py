"""Audio of any length -> Transcript, by a model's file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from asr import audio, stream
from asr.decoding import hotwords as hot
from asr.decoding.confidence import Calibration
from asr.decoding.decoder import Decoder, runs
from asr.decoding.fusion import Decoding, FusionError
from asr.decoding.grammar import Grammar
from asr.lm.model import NgramModel
from asr.models.network import ModelError, Network, find_lm, find_model
from asr.text import normaliser
from asr.tokens import BLANK
from asr.transcript import Alternatives, Transcript, Word, sounded_out

MAX_S = 20 * 60.0  # in one pass of the network; more would need gigabytes
_WINDOW_S = 30.0  # of a long recording, in each pass
_CONTEXT_S = 2.0  # heard on either side of the frames that a pass contributes
_END_S = stream.Endpointing().pause  # so much silence ends an utterance
_MIN_PAUSE_S = 0.3  # a cut is made within at least so much silence, if there is any
_Kind = TypeVar("_Kind", Decoding, Calibration)


class Recognizer:
    """A trained recogniser, loaded from one file. Safe to share between threads.

    model:    path of an ONNX file, or the name of a model in the user's folder or in the package; the default if not given.
    beam:     prefixes kept by the beam search; 1 without anything below is greedy decoding.
    lm:       a language model: a file in ARPA format or of `asr lm train`, the model itself, "bundled" for the file
              beside the model's, of the same name and with the suffix .lm, or "none". If not given, see default_lm.
    decoding: settings of asr.decoding.fusion.Decoding that differ from those that `asr tune` has stored in the model's file.
    hotwords: words and phrases to expect, as a file or a list: "Kubernetes^5" with the boost in nats, or without.
    grammar:  a file of phrases or JSGF that the text is restricted to.
    reject:   with a grammar: nothing is recognised that is so many nats a letter less probable than the best free text.
    n_best:   how many texts of each stretch of speech the transcripts list as alternatives, if more than one.
    threads:  of onnxruntime. One is best: a recurrent network has a step to wait for, and more threads slow it down.
    raises:   ModelError, and the errors of asr.lm, asr.decoding.fusion, asr.decoding.hotwords and asr.decoding.grammar.

    lm_path:  the language model's file; None without one, and for one that was given itself.

    >>> Recognizer("digits").transcribe("tests/data/7_jackson_0.wav").text  # doctest: +SKIP
    'seven'
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        beam: int = 128,
        lm: str | Path | NgramModel | None = None,
        decoding: Mapping[str, Any] | None = None,
        hotwords: str | Path | Iterable[str] | None = None,
        grammar: str | Path | None = None,
        reject: float | None = None,
        n_best: int = 1,
        threads: int = 1,
    ) -> None:
        if beam < 1:
            raise ModelError(f"expected a beam of at least 1, got {beam}")
        if not 1 <= n_best <= beam:
            raise ModelError(f"expected n_best from 1 to the beam of {beam}, got {n_best}")
        self.network = Network(find_model(model), threads)
        self.card, self.name, self.tokens = self.network.card, self.network.name, self.network.tokens
        self.frame_shift_s = self.network.frame_shift_s
        self.n_best = n_best
        if lm is None:
            lm = default_lm(model, beam, grammar)
        elif lm == "none":
            lm = None
        elif lm == "bundled":
            lm = self.network.path.with_suffix(".lm")
            if not lm.exists():
                raise ModelError(
                    f"{lm}: there is no language model beside {self.network.path.name}; name a file instead"
                )
        self._has_grammar = grammar is not None
        self.lm_path = Path(lm) if isinstance(lm, str | Path) else None
        self.lm = NgramModel.load(lm) if isinstance(lm, str | Path) else lm
        known = [field.name for field in fields(Decoding)]
        if unknown := [name for name in decoding or {} if name not in known]:
            raise FusionError(f"expected for decoding some of {', '.join(known)}, got {', '.join(map(repr, unknown))}")
        self.decoding = replace(_numbers(Decoding, self.card.get("decoding")) or Decoding(), **(decoding or {}))
        normalise = normaliser(self.card.get("normaliser", "none"))
        boosts = None
        if hotwords is not None:
            if isinstance(hotwords, str | Path):
                boosts = hot.read(hotwords, normalise, self.tokens)
            else:
                boosts = hot.parse(hotwords, normalise, self.tokens)
        kind = "lm" if self.lm else "greedy" if beam == 1 and hotwords is None and grammar is None else "beam"
        calibrations = self.card.get("calibration")
        self.decoder = Decoder(
            self.tokens,
            beam=beam,
            lm=self.lm,
            decoding=self.decoding,
            hotwords=boosts,
            grammar=None if grammar is None else Grammar.read(grammar, normalise, self.tokens),
            reject=reject,
            calibration=_numbers(Calibration, calibrations.get(kind) if isinstance(calibrations, dict) else None),
        )

    def log_probs(self, waveform: np.ndarray) -> np.ndarray:
        """CTC log-probabilities of one utterance.

        waveform: (N,) float32, 16 kHz, full scale +-1.
        returns:  (T, V) float32, natural log; T = ceil(N / frame shift); frames are frame_shift_s apart.
        raises:   AudioError if the waveform is empty, not 1-D, not finite or longer than MAX_S.
        source:   Graves et al. 2006, "Connectionist Temporal Classification", section 3.
        """
        if waveform.ndim != 1:
            raise audio.AudioError(f"expected a waveform of shape (N,), got {waveform.shape}")
        waveform = audio.as_waveform(waveform, audio.SAMPLE_RATE)
        if len(waveform) > MAX_S * audio.SAMPLE_RATE:
            minutes = len(waveform) / audio.SAMPLE_RATE / 60
            raise audio.AudioError(
                f"expected at most {MAX_S / 60:.0f} minutes of audio, got {minutes:.1f}; cut it into shorter files"
            )
        return self.network.log_probs(waveform)

    def transcribe(self, source: str | Path | np.ndarray, sample_rate: int | None = None) -> Transcript:
        """The text of a recording, with the times and confidence of its words.

        source:      path of an audio file, or samples (N,) or (N, channels), float or integer.
        sample_rate: Hz, required with samples; a file brings its own.
        raises:      AudioError; ModelError if the network fails at it, as for lack of memory.
        """
        if isinstance(source, np.ndarray):
            if sample_rate is None:
                raise audio.AudioError("expected the sample rate with an array of samples: transcribe(samples, 16000)")
            blocks: Iterable[np.ndarray] = [audio.as_waveform(source, sample_rate)]
        else:
            blocks = audio.blocks(source)
        return self.transcribe_blocks(blocks)

    def transcribe_blocks(self, blocks: Iterable[np.ndarray]) -> Transcript:
        """The text of a recording of any length that arrives in pieces, (n,) float32 at 16 kHz, in bounded memory."""
        words: list[Word] = []
        alternatives: list[Alternatives] = []
        samples = 0

        def counted() -> Iterator[np.ndarray]:
            nonlocal samples
            for block in blocks:
                samples += len(block)
                yield block

        for first_frame, log_probs in self._utterances(counted()):
            found = self.decoder(log_probs)
            offset_s = first_frame * self.frame_shift_s
            words += self.decoder.words(found, log_probs, self.frame_shift_s, offset_s)
            if self.n_best > 1:
                end_s = offset_s + len(log_probs) * self.frame_shift_s
                alternatives.append(Alternatives(offset_s, end_s, self.decoder.texts(found, self.n_best)))
        duration_s = samples / audio.SAMPLE_RATE
        text = " ".join(word.text for word in words)
        return Transcript(text, sounded_out(words, duration_s), duration_s, self.name, tuple(alternatives))

    def stream(
        self,
        *,
        chunk_s: float = stream.CHUNK_S,
        right_context_s: float = stream.RIGHT_CONTEXT_S,
        endpointing: stream.Endpointing | None = None,
    ) -> stream.Stream:
        """Recognition of audio as it arrives: feed() it samples at 16 kHz, flush() at the end; see asr.stream."""
        return stream.Stream(
            self.network, self.decoder, chunk_s=chunk_s, right_context_s=right_context_s, endpointing=endpointing
        )

    def _utterances(self, blocks: Iterable[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        """The stretches, parted also at every pause that ends an utterance live, as they are decoded.

        A language model would rather hear one long word across a pause than two. A grammar's sentences may have pauses.
        """
        for first_frame, log_probs in self._stretches(blocks):
            starts, ends = runs(self.decoder.silent(log_probs))
            long = ((ends - starts) * self.frame_shift_s >= _END_S) & (starts > 0) & (ends < len(log_probs))
            cuts = [] if self._has_grammar else ((starts + ends)[long] // 2).tolist()
            for start, end in pairwise([0, *cuts, len(log_probs)]):
                yield first_frame + start, log_probs[start:end]

    def _stretches(self, blocks: Iterable[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        """The recording's log-probabilities from pause to pause: the number of the first frame, and (T, V).

        The network hears a window at a time, with context on either side whose frames are left to the neighbours. What
        lies between two cuts is joined before it is decoded, so that only a cut can divide a word, and a cut is in the
        longest pause. Without any pause, it is in the frame most surely blank.
        """
        shift = self.network.frame_shift
        window, context = (round(seconds / self.frame_shift_s) for seconds in (_WINDOW_S, _CONTEXT_S))
        audio_left = iter(blocks)
        buffer = np.zeros(0, np.float32)  # samples from frame `start` on
        start = done = 0  # frames; up to `done` their log-probabilities are taken
        joined = np.zeros((0, len(self.tokens)), np.float32)  # the log-probabilities since the last cut
        ended = False
        while not ended:
            pieces = [buffer]
            while sum(map(len, pieces)) < window * shift and not ended:
                piece = next(audio_left, None)
                ended = piece is None
                pieces += [] if piece is None else [piece]
            buffer = np.concatenate(pieces)
            # A block may be longer than the window: then the rest waits.
            heard = buffer[: window * shift]
            last = ended and len(heard) == len(buffer)
            if len(heard):
                log_probs = self.network.log_probs(heard)
                log_probs = log_probs[done - start : None if last else len(log_probs) - context]
                done += len(log_probs)
                joined = np.concatenate([joined, log_probs])
            if last:
                yield done - len(joined), joined
                return
            cut = self._cut(joined)
            if cut:
                yield done - len(joined), joined[:cut]
                joined = joined[cut:]
            skip = max(0, done - context) - start
            buffer, start, ended = buffer[skip * shift :], start + skip, False

    def _cut(self, log_probs: np.ndarray) -> int:
        """Where to end a stretch of (T, V): in the middle of its longest pause, 0 if it should go on to the next window."""
        starts, ends = runs(self.decoder.silent(log_probs))
        pauses = (ends - starts) * self.frame_shift_s >= _MIN_PAUSE_S
        late = pauses & (starts > len(log_probs) // 2)  # an early cut would let the rest grow from window to window
        for choice in (late, pauses):
            if choice.any():
                longest = int(np.argmax(np.where(choice, ends - starts, 0)))
                return int(starts[longest] + ends[longest]) // 2
        if len(log_probs) * self.frame_shift_s < 2 * _WINDOW_S:
            return 0
        return int(log_probs[:, BLANK].argmax()) + 1


def default_lm(model: str | Path | None, beam: int, grammar: str | Path | None = None) -> Path | None:
    """The language model of a Recognizer that is given none: what comes with a model given by name, see find_lm.

    None with a beam of 1, which asks for greedy decoding, and with a grammar, among whose sentences a general model prefers
    the usual ones: of a list with every sentence of recipes/english's dev set it found 179 of 243 right, without 211.
    """
    return None if beam == 1 or grammar is not None else find_lm(model)


def _numbers(kind: type[_Kind], stored: object) -> _Kind | None:
    """The dataclass of numbers that the card holds under some key; None where it holds none, or something else."""
    if not isinstance(stored, dict):
        return None
    stored = {field.name: stored[field.name] for field in fields(kind) if field.name in stored}
    numbers = all(
        (isinstance(value, int | float) and math.isfinite(value)) or (value is None and name == "unknown")
        for name, value in stored.items()
    )
    try:
        return kind(**stored) if stored and numbers else None
    except (TypeError, FusionError):  # one is missing, or beyond all sense
        return None
