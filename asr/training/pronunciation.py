"""How words sound, from a pronouncing dictionary: what a lower layer can learn where letters alone say little of sounds."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from asr.errors import ConfigError

_ALTERNATIVE = re.compile(r"\(\d+\)$")  # read(2): another way to say it
_STRESS = re.compile(r"\d$")  # AH0, AH1


class Pronunciations:
    """A dictionary in CMUdict's format: a word and its sounds a line, `;;;` before comments.

    Of several pronunciations the first counts, stress is left out, and words are normalised as the texts are.
    symbols: the sounds; the class of symbols[i] is 1 + i, that of CTC's blank 0.
    raises:  ConfigError if the file cannot be read, or is no dictionary.
    """

    def __init__(self, path: Path, normalise: Callable[[str], str]) -> None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"pronunciation.dictionary: {path} cannot be read: {error}") from None
        spoken: dict[str, list[str]] = {}
        for number, line in enumerate(lines, 1):
            word, *sounds = line.split()[:100] if line.strip() and not line.startswith(";;;") else ("",)
            if word and not sounds:
                raise ConfigError(f"{path}, line {number}: expected a word and its sounds, got {line.strip()[:60]!r}")
            if word and not _ALTERNATIVE.search(word):
                spoken.setdefault(normalise(word), [_STRESS.sub("", sound) for sound in sounds])
        if not spoken:
            raise ConfigError(f"{path}: expected a pronouncing dictionary, got no words")
        self.symbols = sorted({sound for sounds in spoken.values() for sound in sounds})
        classes = {symbol: 1 + index for index, symbol in enumerate(self.symbols)}
        self._classes = {word: tuple(classes[sound] for sound in sounds) for word, sounds in spoken.items()}

    def __len__(self) -> int:
        """Classes, the blank among them."""
        return 1 + len(self.symbols)

    def encode(self, text: str) -> tuple[int, ...]:
        """The classes of a normalised text's sounds; none at all if a word of it is not in the dictionary."""
        words = [self._classes.get(word) for word in text.split()]
        return () if None in words else tuple(one for word in words if word for one in word)
