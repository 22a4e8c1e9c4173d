"""An ONNX file -> Transcript. onnxruntime and NumPy only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from asr import audio, ctc
from asr.errors import AsrError
from asr.tokens import Tokens
from asr.transcript import Transcript, words_of

SCHEMA = 1  # the newest metadata that this version understands
DEFAULT_MODEL = "digits"
MAX_S = 20 * 60.0  # one pass of the network over more would need several gigabytes
_MODELS = Path(__file__).parent / "models"


class ModelError(AsrError):
    """A model file that is missing, not one of this package's, or of a newer version."""


class Recognizer:
    """A trained recogniser, loaded from one file. Safe to share between threads.

    model:   path of an ONNX file, or the name of a bundled model; the bundled default if not given.
    beam:    prefixes kept by the beam search; 1 is greedy decoding.
    threads: of onnxruntime; its own choice if not given.
    raises:  ModelError.

    >>> Recognizer("digits").transcribe("tests/data/7_jackson_0.wav").text  # doctest: +SKIP
    'seven'
    """

    def __init__(self, model: str | Path | None = None, *, beam: int = 16, threads: int | None = None) -> None:
        if beam < 1:
            raise ModelError(f"expected a beam of at least 1, got {beam}")
        path = find_model(model)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        except PermissionError:
            raise ModelError(f"{path}: no permission to read this file") from None
        except Exception as error:  # onnxruntime has no narrower class for bad files
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(f"{path}: expected a model (ONNX) written by asr export, got: {reason}") from None
        self.card = _read_card(self._session, path)
        self.name: str = self.card["name"]
        self.tokens = Tokens(self.card["tokens"])
        self.frame_shift_s: float = self.card["frame_shift"] / audio.SAMPLE_RATE
        self.beam = beam

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
        padded = audio.pad(waveform, self.card["receptive_field"], self.card["frame_shift"])
        return np.asarray(self._session.run(["log_probs"], {"waveform": padded[None]})[0][0])

    def transcribe(self, source: str | Path | np.ndarray, sample_rate: int | None = None) -> Transcript:
        """The text of a recording, with the times and confidence of its words.

        source:      path of an audio file, or samples (N,) or (N, channels), float or integer.
        sample_rate: Hz, required with samples; a file brings its own.
        raises:      AudioError.
        """
        if isinstance(source, np.ndarray):
            if sample_rate is None:
                raise audio.AudioError("expected the sample rate with an array of samples: transcribe(samples, 16000)")
            waveform = audio.as_waveform(source, sample_rate)
        else:
            waveform = audio.read(source)
        log_probs = self.log_probs(waveform)
        best = ctc.greedy(log_probs) if self.beam == 1 else ctc.beam(log_probs, self.beam)[0]
        spans = ctc.align(log_probs, best.token_ids)
        words = words_of(zip(best.token_ids, spans, strict=True), self.tokens, self.frame_shift_s)
        text = " ".join(word.text for word in words)
        return Transcript(text, words, len(waveform) / audio.SAMPLE_RATE, self.name)


def find_model(model: str | Path | None) -> Path:
    """The file of a model given by path or by bundled name. raises: ModelError listing the names there are."""
    path = Path(model if model is not None else DEFAULT_MODEL)
    bundled = _MODELS / path / f"{path}.onnx"
    if len(path.parts) == 1 and not path.suffix and bundled.is_file():
        return bundled
    if path.is_file():
        return path
    names = ", ".join(sorted(file.stem for file in _MODELS.glob("*/*.onnx")))
    what = "a folder" if path.is_dir() else "no such file"
    raise ModelError(f"{path}: expected a model file (.onnx) or one of the names {names}; got {what}")


def _read_card(session: Any, path: Path) -> dict[str, Any]:
    """The metadata that `asr export` wrote."""
    text = session.get_modelmeta().custom_metadata_map.get("asr")
    if text is None:
        raise ModelError(f"{path}: expected a model written by asr export, got an ONNX file without its metadata")
    try:
        card: dict[str, Any] = json.loads(text)
        schema = int(card["schema"])
    except (ValueError, KeyError, TypeError):
        raise ModelError(f"{path}: expected metadata written by asr export, got {text[:60]!r}") from None
    if schema > SCHEMA:
        raise ModelError(
            f"{path}: written with model schema {schema}, this version knows {SCHEMA}; update the package: "
            "pip install --upgrade asr"
        )
    missing = {"name", "tokens", "sample_rate", "frame_shift", "receptive_field"} - card.keys()
    if missing or card["sample_rate"] != audio.SAMPLE_RATE:
        lacks = f"lacks {', '.join(sorted(missing))}" if missing else f"has a sample rate of {card['sample_rate']}"
        raise ModelError(
            f"{path}: expected the metadata of a {audio.SAMPLE_RATE} Hz model, but it {lacks}; export it again"
        )
    return card
