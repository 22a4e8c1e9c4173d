"""The one exception tree.

    AsrError
    ├── AudioError, TextError, TokenError, ManifestError: what goes in
    ├── ModelError, LmError, StreamError, DecodingError (and below it HotWordError): recognition
    ├── CorpusError, ConfigError, CheckpointError, TrainingError: training
    └── OutputError: what comes out

Each message says what was expected, what was got, and what to do. The command line prints it as one line; a program
that embeds the package catches `AsrError`, or the narrower error that the docstring names.
"""

from __future__ import annotations

from collections.abc import Iterable


class AsrError(Exception):
    """Anything this package reports about its input; a bug is any other exception."""


class AudioError(AsrError):
    """Audio that cannot be read or heard, or a waveform that cannot be used."""


class TextError(AsrError):
    """A text or a normaliser that cannot be used, or texts that cannot be scored."""


class TokenError(AsrError):
    """A vocabulary that cannot be used, or a text that it cannot spell."""


class ManifestError(AsrError):
    """A manifest that cannot be read or written."""


class ModelError(AsrError):
    """A model that is not there, is damaged, or is too new for this version."""


class LmError(AsrError):
    """A language model, or text for one, that cannot be used."""


class DecodingError(AsrError):
    """Log-probabilities, or what steers the search, that cannot be used."""


class HotWordError(DecodingError):
    """Hot words that cannot be used."""


class StreamError(AsrError):
    """A stream that was set up or called wrongly."""


class OutputError(AsrError):
    """A file that exists already or cannot be written."""


class CorpusError(AsrError):
    """A corpus that is not as expected, or cannot be downloaded, unpacked, converted or labelled."""


class ConfigError(AsrError):
    """Settings of a training that cannot be used."""


class CheckpointError(AsrError):
    """A checkpoint that cannot be read or written."""


class TrainingError(AsrError):
    """A training that cannot start or go on, or a run that cannot be exported or reported."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint naming the known word closest to a mistyped one.

    >>> nearest("hiden", ["hidden", "layers"])
    "did you mean 'hidden'?"
    >>> nearest("zebra", ["hidden", "layers"])
    'known: hidden, layers'
    """
    import difflib  # which no program pays for that makes no mistake

    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}"


def number_of(count: int, noun: str) -> str:
    """A count with its noun, for messages.

    >>> number_of(1, "recording"), number_of(2, "epoch"), number_of(0, "batch")
    ('1 recording', '2 epochs', '0 batches')
    """
    plural = "es" if noun.endswith(("tch", "ss")) else "s"
    return f"{count} {noun}{plural if count != 1 else ''}"
