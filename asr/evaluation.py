"""A recogniser on a manifest: what it recognises, beside what was said."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from asr import audio, metrics
from asr.decoding.tuning import Example
from asr.errors import AsrError
from asr.manifest import Utterance
from asr.metrics import Scored
from asr.recognizer import Recognizer
from asr.transcript import Transcript

Failed = Callable[[AsrError], None]


def recognise(
    recognizer: Recognizer, utterances: Iterable[Utterance], failed: Failed
) -> Iterator[tuple[Scored, Transcript]]:
    """Each utterance's reference beside its hypothesis, and its transcript.

    failed: is told of each utterance that cannot be read, which is left out.
    """
    for utterance in utterances:
        try:
            transcript = recognizer.transcribe(audio.read_utterance(utterance), audio.SAMPLE_RATE)
        except AsrError as error:
            failed(error)
            continue
        reference = recognizer.normalise(utterance.text)
        yield Scored(utterance.id, reference, transcript.text, utterance.speaker, utterance.duration_s), transcript


def examples(recognizer: Recognizer, utterances: Iterable[Utterance], failed: Failed) -> Iterator[Example]:
    """What `asr.decoding.tuning` learns from: the parts of each utterance as `recognise` would decode them."""
    for utterance in utterances:
        try:
            parts = recognizer.parts([audio.read_utterance(utterance)])
            yield Example([part.log_probs for part in parts], recognizer.normalise(utterance.text))
        except AsrError as error:
            failed(error)


def word_error_rate(recognizer: Recognizer, utterances: Iterable[Utterance]) -> float:
    """The share of wrong words. raises: the error of the first utterance that cannot be read.

    >>> from pathlib import Path
    >>> word_error_rate(Recognizer("digits"), [Utterance(Path("tests/data/7_jackson_0.wav"), 0.43, "seven")])
    0.0
    """

    def failed(error: AsrError) -> None:
        raise error

    return metrics.report([scored for scored, _ in recognise(recognizer, utterances, failed)], bootstrap=0).wer
