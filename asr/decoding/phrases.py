"""Words and phrases that a user writes in a file, read and spelt as the recogniser would spell them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from asr.errors import AsrError
from asr.tokens import Tokens


def read(path: str | Path, what: str, kind: type[AsrError]) -> str:
    """The text of a file. what: what errors call such a file.

    raises: an error of the kind, naming the line if it is not UTF-8.
    """
    path = Path(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise kind(f"{path}: no such {what}; check the path") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise kind(
            f"{path}:{line}: expected UTF-8, got byte 0x{error.object[error.start]:02x}; save the file as UTF-8"
        ) from None
    except OSError as error:
        raise kind(f"{path}: cannot be read: {error.strerror}") from None


def spell(written: str, normalise: Callable[[str], str], tokens: Tokens, where: str, kind: type[AsrError]) -> str:
    """What is written, normalised, with single spaces between words.

    raises: an error of the kind, which begins with `where`, if nothing is left or the tokens cannot spell it.
    """
    phrase = " ".join(normalise(written).split())
    if not phrase:
        raise kind(f"{where}: expected words, got {written[:60]!r}, of which normalising leaves nothing")
    check(phrase, tokens, where, kind)
    return phrase


def check(phrase: str, tokens: Tokens, where: str, kind: type[AsrError]) -> None:
    """raises: an error of the kind, which begins with `where`, if the tokens cannot spell the phrase."""
    unknown = tokens.unknown(phrase)
    if unknown:
        raise kind(
            f"{where}: {phrase[:60]!r} has {', '.join(map(repr, unknown[:5]))} outside the alphabet "
            f"{tokens.alphabet[:60]!r}: write it as the recogniser would"
        )
