"""Recognisers steered by what clients name, kept for their next request: to make one takes longer than many a recording."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import lru_cache

from asr.decoding import hotwords as hot
from asr.decoding.hotwords import HotWordError
from asr.recognizer import Recognizer

_KEPT = 4  # most have one list, which they send each time; with a large language model each takes tens of megabytes


class Steered:
    """The recognisers of a process, and those of them that are steered; safe to share between threads."""

    def __init__(self, recognizers: Mapping[str, Recognizer]) -> None:
        self._recognizers = recognizers
        self._derived = lru_cache(_KEPT)(self._derive)

    def __call__(self, model: str, *, hotwords: tuple[str, ...] = (), phrases: tuple[str, ...] = ()) -> Recognizer:
        """The recogniser of a model's name.

        hotwords: that its search favours.  phrases: that its texts are restricted to. What it cannot spell is dropped.
        """
        recognizer = self._recognizers[model]
        hotwords, phrases = _spellable(hotwords, recognizer), _spellable(phrases, recognizer)
        return self._derived(model, hotwords, phrases) if hotwords or phrases else recognizer

    def _derive(self, model: str, hotwords: tuple[str, ...], phrases: tuple[str, ...]) -> Recognizer:
        return self._recognizers[model].derived(hotwords=hotwords, phrases=phrases)


def _spellable(words: tuple[str, ...], recognizer: Recognizer) -> tuple[str, ...]:
    """Those words and phrases that the model can spell, as it would: a client does not know its alphabet."""
    found: list[str] = []
    for word in words:
        word = word.replace("^", " ").lstrip("# ")
        with contextlib.suppress(HotWordError):
            found += hot.parse([word], recognizer.normalise, recognizer.tokens)
    return tuple(found)
