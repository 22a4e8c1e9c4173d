"""Audio of any length -> Transcript, by a model's file."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from asr import audio, pauses, stream
from asr.decoding import hotwords as hot
from asr.decoding.align import align
from asr.decoding.confidence import Calibration
from asr.decoding.decoder import Decoder
from asr.decoding.fusion import Decoding
from asr.errors import AudioError, DecodingError, HotWordError, ModelError
from asr.lm.model import NgramModel
from asr.models import choose_lm, choose_neural, find_model
from asr.models.network import Network
from asr.text import normaliser
from asr.transcript import Alternatives, Transcript, Word, sounded_out, words_of

if TYPE_CHECKING:
    from asr.decoding.grammar import Grammar
    from asr.lm.neural import NeuralLm

MAX_S = 20 * 60.0  # in one pass of the network; more would need gigabytes
MAX_STEERING = 1000  # hot words, or phrases, of a derived recogniser
_MAX_ALIGNMENT = 1 << 30  # bytes that an alignment takes: of a quarter of an hour of speech
_Kind = TypeVar("_Kind", Decoding, Calibration)


class Heard(NamedTuple):
    """An utterance of a recording: its words, when it ended in seconds, and its alternatives, where they were asked for."""

    words: tuple[Word, ...]
    end_s: float
    alternatives: Alternatives | None = None


class Recognizer:
    """A trained recogniser, loaded from one file. Safe to share between threads.

    model:    path of an ONNX file, or the name of a model in the user's folder or in the package; the default if not given.
    beam:     prefixes kept by the beam search; 1 without anything below is greedy decoding.
    lm:       a language model: a file in ARPA format or of `asr lm train`, or the model itself; for "none", "bundled" and
              what is heeded if none is given, see `asr.models.choose_lm`.
    rescore:  a recurrent language model, a file of `asr lm train --neural`: ranks anew the texts that the search ends with;
              for "none" and what is done if none is given, see `asr.models.choose_neural`.
    decoding: settings of asr.decoding.fusion.Decoding that differ from those that `asr tune` has stored in the model's file.
    hotwords: words and phrases to expect, as a file or a list: "Kubernetes^5" with the boost in nats, or without.
    grammar:  a file of phrases or JSGF that the text is restricted to, or a list of phrases.
    reject:   with a grammar: nothing is recognised that is so many nats a letter less probable than the best free text.
    n_best:   how many texts of each stretch of speech the transcripts list as alternatives, if more than one.
    threads:  of onnxruntime. One is best: a recurrent network has a step to wait for, and more threads slow it down.
    raises:   ModelError, and the errors of asr.lm, asr.decoding.fusion, asr.decoding.hotwords and asr.decoding.grammar.

    lm_path:   the language model's file; None without one, and for one that was given itself.
    normalise: a text -> as this recogniser would write it.

    >>> transcript = Recognizer("digits").transcribe("tests/data/7_jackson_0.wav")
    >>> transcript.text, transcript.words[0].text
    ('seven', 'seven')
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        beam: int = 128,
        lm: str | Path | NgramModel | None = None,
        rescore: str | Path | None = None,
        decoding: Mapping[str, Any] | None = None,
        hotwords: str | Path | Iterable[str] | None = None,
        grammar: str | Path | Iterable[str] | None = None,
        reject: float | None = None,
        n_best: int = 1,
        threads: int = 1,
    ) -> None:
        if hotwords is not None and not isinstance(hotwords, str | Path):
            hotwords = list(hotwords)
        if grammar is not None and not isinstance(grammar, str | Path):
            grammar = list(grammar)
        self._arguments: dict[str, Any] = {
            "model": model,
            "beam": beam,
            "lm": lm,
            "rescore": rescore,
            "decoding": decoding,
            "hotwords": hotwords,
            "grammar": grammar,
            "reject": reject,
            "n_best": n_best,
            "threads": threads,
        }
        if beam < 1:
            raise ModelError(f"expected a beam of at least 1, got {beam}")
        # It would turn a word into one that begins alike, and then hold to it.
        if beam == 1 and lm not in (None, "none"):
            raise DecodingError("expected a beam of 16 or more with a language model, got 1, which is greedy decoding")
        if not 1 <= n_best <= beam:
            raise ModelError(f"expected n_best from 1 to the beam of {beam}, got {n_best}")
        self.network = Network(find_model(model), threads)
        self.card, self.name, self.tokens = self.network.card, self.network.name, self.network.tokens
        self.frame_shift_s = self.network.frame_shift_s
        self.n_best = n_best
        self.lm_path = None if isinstance(lm, NgramModel) else self._choose_lm()
        self.lm = lm if isinstance(lm, NgramModel) else NgramModel.load(self.lm_path) if self.lm_path else None
        known = [field.name for field in fields(Decoding)]
        if unknown := [name for name in decoding or {} if name not in known]:
            raise DecodingError(
                f"expected for decoding some of {', '.join(known)}, got {', '.join(map(repr, unknown))}"
            )
        self.decoding = replace(_numbers(Decoding, self.card.get("decoding")) or Decoding(), **(decoding or {}))
        self.normalise = normaliser(self.card.get("normaliser", "none"))
        self.neural: NeuralLm | None = None
        if (neural := choose_neural(rescore, lm, self.lm_path)) is not None:
            from asr.lm.neural import NeuralLm

            self.neural = NeuralLm(neural)
        self._boosts: dict[str, float] | None = None
        self._grammar: Grammar | None = None
        if isinstance(hotwords, str | Path):
            self._boosts = hot.read(hotwords, self.normalise, self.tokens)
        elif hotwords is not None:
            self._boosts = hot.parse(hotwords, self.normalise, self.tokens)
        if grammar is not None:
            from asr.decoding.grammar import Grammar

            if isinstance(grammar, str | Path):
                self._grammar = Grammar.read(grammar, self.normalise, self.tokens)
            else:
                self._grammar = Grammar.of(grammar, self.normalise, self.tokens)
        self.decoder = self._decoder()

    def _choose_lm(self) -> Path | None:
        return choose_lm(**{name: self._arguments[name] for name in ("lm", "model", "beam", "grammar")})

    def _decoder(self) -> Decoder:
        beam, steered = self._arguments["beam"], self._boosts is not None or self._grammar is not None
        kind = "lm" if self.lm else "greedy" if beam == 1 and not steered else "beam"
        calibrations = self.card.get("calibration")
        return Decoder(
            self.tokens,
            beam=beam,
            lm=self.lm,
            decoding=self.decoding,
            neural=self.neural,
            hotwords=self._boosts,
            grammar=self._grammar,
            reject=self._arguments["reject"],
            calibration=_numbers(Calibration, calibrations.get(kind) if isinstance(calibrations, dict) else None),
        )

    def derived(self, *, hotwords: Iterable[str] = (), phrases: Iterable[str] = ()) -> Recognizer:
        """A recogniser with more hot words or other phrases, as for one request, that shares network and language model.

        hotwords: lines as of a file of hot words, besides those it has.
        phrases:  the text is restricted to these, instead of its grammar.
        raises:   HotWordError or DecodingError, also for more than MAX_STEERING of either.
        """
        other = object.__new__(type(self))  # not copy.copy, which would load it again, as `__reduce__` says
        other.__dict__ |= self.__dict__ | {"_arguments": dict(self._arguments)}
        if words := list(islice(hotwords, MAX_STEERING + 1)):
            if len(words) > MAX_STEERING:
                raise HotWordError(f"expected at most {MAX_STEERING} hot words, got more")
            other._boosts = (self._boosts or {}) | hot.parse(words, self.normalise, self.tokens)
            other._arguments["hotwords"] = [f"{phrase}^{weight}" for phrase, weight in other._boosts.items()]
        if sentences := list(islice(phrases, MAX_STEERING + 1)):
            if len(sentences) > MAX_STEERING:
                raise DecodingError(f"expected at most {MAX_STEERING} phrases, got more")
            from asr.decoding.grammar import Grammar

            other._grammar = Grammar.of(sentences, self.normalise, self.tokens)
            other._arguments["grammar"] = sentences
            if self.lm_path is not None and other._choose_lm() is None:
                other.lm = other.lm_path = other.neural = None
        if words or sentences:
            other.decoder = other._decoder()
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle: what makes it again, from the same files, such as in another process."""
        return partial(type(self), **self._arguments), ()

    def log_probs(self, waveform: np.ndarray) -> np.ndarray:
        """CTC log-probabilities of one utterance.

        waveform: (N,) float32, 16 kHz, full scale +-1.
        returns:  (T, V) float32, natural log; T = ceil(N / frame shift); frames are frame_shift_s apart.
        raises:   AudioError if the waveform is empty, not 1-D, not finite or longer than MAX_S.
        source:   Graves et al. 2006, "Connectionist Temporal Classification", section 3.
        """
        if waveform.ndim != 1:
            raise AudioError(f"expected a waveform of shape (N,), got {waveform.shape}")
        waveform = audio.as_waveform(waveform, audio.SAMPLE_RATE)
        if len(waveform) > MAX_S * audio.SAMPLE_RATE:
            minutes = len(waveform) / audio.SAMPLE_RATE / 60
            raise AudioError(
                f"expected at most {MAX_S / 60:.0f} minutes of audio, got {minutes:.1f}; cut it into shorter files"
            )
        return self.network.log_probs(waveform)

    def transcribe(
        self,
        source: Any,
        sample_rate: int | None = None,
        *,
        start_s: float = 0.0,
        end_s: float | None = None,
        track: int | None = None,
        channel: int | None = None,
    ) -> Transcript:
        """The text of a recording, with the times and confidence of its words.

        source:      path of an audio file, its content as bytes, or a file that is open; or samples (N,) or (N, channels),
                     float or integer, as an array or what numpy makes one of.
        sample_rate: Hz, required with samples; a file brings its own.
        start_s:     what is before is not heard; times are still those of the recording. end_s: likewise.
        track:       of several audio tracks in a file, from 1; the default one if not given.
        channel:     that one alone, from 0; all are mixed if not given.
        raises:      AudioError; ModelError if the network fails at it, as for lack of memory.
        """
        blocks = self._blocks(source, sample_rate, start_s, end_s, track, channel)
        return self.transcribe_blocks(blocks, start_s=start_s)

    def align(self, source: Any, text: str, sample_rate: int | None = None) -> Transcript:
        """The times of a text that is known: forced alignment, whatever the decoder would rather have heard.

        source, sample_rate: as of `transcribe`.
        text:    what is said, all of it and nothing else. Its words are kept as they are written where each can be
                 normalised by itself, and are otherwise as the recogniser would write them.
        returns: its words, with confidences from 0 to 1: how probable the least probable letter is where it is put.
        raises:  AudioError; TokenError if the text has characters outside the alphabet; DecodingError if there is no text,
                 too much for the audio, or more of both than fits in memory.
        source:  Graves et al. 2006, see asr.decoding.align.
        """
        normalise = normaliser(self.card.get("normaliser", "none"))
        normalised = normalise(text)
        if not normalised:
            raise DecodingError(f"expected a text to align, got {text[:40]!r}, of which normalising leaves nothing")
        token_ids = self.tokens.encode(normalised)
        parts = list(pauses.parts(self.network, self._blocks(source, sample_rate), at_pauses=False))
        log_probs = np.concatenate([part.log_probs for part in parts])
        if len(log_probs) * 2 * len(token_ids) > _MAX_ALIGNMENT:
            raise DecodingError(
                f"expected less to align at once than {parts[-1].end_s / 60:.0f} minutes and {len(token_ids)} tokens; cut it"
            )
        spans = zip(token_ids, align(log_probs, token_ids), strict=True)
        words = sounded_out(words_of(spans, self.tokens, self.frame_shift_s, parts[0].start_s), parts[-1].end_s)
        written = [(word, len(normalise(word).split())) for word in text.split()]
        if " ".join(normalise(word) for word, count in written if count) == " ".join(word.text for word in words):
            said = iter(words)
            found = [(word, [next(said) for _ in range(count)]) for word, count in written if count]
            words = tuple(
                Word(word, made[0].start_s, made[-1].end_s, min(one.confidence for one in made)) for word, made in found
            )
        return Transcript(" ".join(word.text for word in words), words, parts[-1].end_s, self.name)

    def transcribe_blocks(
        self,
        blocks: Iterable[np.ndarray],
        progress: Callable[[str, float], None] = lambda text, end_s: None,
        *,
        start_s: float = 0.0,
    ) -> Transcript:
        """The text of a recording of any length that arrives in pieces, (n,) float32 at 16 kHz, in bounded memory.

        progress: called after each utterance with its text, which may be empty, and the seconds at which it ended.
        start_s:  when the first sample is; all times count from there.
        """
        words: list[Word] = []
        alternatives: list[Alternatives] = []
        ended_s = start_s
        for said, ended_s, choices in self.utterances(blocks, start_s=start_s):
            words += said
            alternatives += [] if choices is None else [choices]
            progress(" ".join(word.text for word in said), ended_s)
        text = " ".join(word.text for word in words)
        return Transcript(text, sounded_out(words, ended_s), ended_s, self.name, tuple(alternatives))

    def utterances(self, blocks: Iterable[np.ndarray], *, start_s: float = 0.0) -> Iterator[Heard]:
        """What `transcribe_blocks` hears, utterance by utterance, each as soon as it is recognised.

        Words end with the last frame of their letters; `asr.transcript.sounded_out` lets them end as they sound.
        """
        for since_s, until_s, log_probs in self.parts(blocks):
            began_s = start_s + since_s
            found = self.decoder(log_probs)
            said = self.decoder.words(found, log_probs, self.frame_shift_s, began_s)
            choices = None
            if self.n_best > 1:
                end_s = began_s + len(log_probs) * self.frame_shift_s
                choices = Alternatives(began_s, end_s, self.decoder.texts(found, self.n_best))
            yield Heard(said, start_s + until_s, choices)

    def parts(self, blocks: Iterable[np.ndarray]) -> Iterator[pauses.Part]:
        """What the network hears in a recording's utterances, as `transcribe_blocks` decodes them one by one."""
        return pauses.parts(self.network, blocks, at_pauses=self._grammar is None)

    def _blocks(
        self,
        source: Any,
        sample_rate: int | None,
        start_s: float = 0.0,
        end_s: float | None = None,
        track: int | None = None,
        channel: int | None = None,
    ) -> Iterator[np.ndarray]:
        """The sound of what `transcribe` takes."""
        if end_s is not None and not end_s > start_s:
            raise AudioError(f"expected an end after the start at {start_s} s, got {end_s} s")
        duration_s = None if end_s is None else end_s - start_s
        is_file = hasattr(source, "read") or isinstance(source, (str, os.PathLike))
        if is_file or (sample_rate is None and isinstance(source, (bytes, bytearray))):
            return audio.blocks(source, offset_s=start_s, duration_s=duration_s, track=track, channel=channel)
        if sample_rate is None and source is not None:
            raise AudioError("expected the sample rate with samples: transcribe(samples, 16000)")
        waveform = audio.as_waveform(source, audio.SAMPLE_RATE if sample_rate is None else sample_rate, channel=channel)
        length_s = len(waveform) / audio.SAMPLE_RATE
        if not 0 <= start_s < length_s:
            raise AudioError(f"expected audio at {start_s} s, but the samples end at {length_s:.2f} s")
        at, end = (None if s is None else round(s * audio.SAMPLE_RATE) for s in (start_s, end_s))
        return iter([waveform[at:end]])

    def stream(
        self,
        *,
        chunk_s: float = stream.CHUNK_S,
        right_context_s: float = stream.RIGHT_CONTEXT_S,
        endpointing: pauses.Endpointing | None = None,
        sample_rate: int = audio.SAMPLE_RATE,
    ) -> stream.Stream:
        """Recognition of audio as it arrives: feed() it samples, flush() at the end; see asr.stream.

        sample_rate: of the samples, in Hz.
        """
        return stream.Stream(
            self.network,
            self.decoder,
            chunk_s=chunk_s,
            right_context_s=right_context_s,
            endpointing=endpointing,
            sample_rate=sample_rate,
        )


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
    except (TypeError, DecodingError):  # one is missing, or beyond all sense
        return None
