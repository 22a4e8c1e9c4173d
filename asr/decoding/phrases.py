"""Words and phrases that a user writes in a file, spelt as the recogniser would spell them."""

from __future__ import annotations

from collections.abc import Callable

from asr.errors import AsrError
from asr.tokens import Tokens


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
