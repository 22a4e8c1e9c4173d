"""What can be trained on, as columns: ten million utterances fit into memory, and each is an object only while in use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

from asr.errors import TokenError
from asr.manifest import Skipped, Utterance, Utterances


@dataclass(frozen=True, slots=True)
class Example:
    """An utterance that can be trained on. text: normalised; token_ids: (U,); sounds: of its words, none if not known."""

    utterance: Utterance
    text: str
    token_ids: tuple[int, ...]
    sounds: tuple[int, ...] = ()

    @property
    def duration_s(self) -> float:
        return self.utterance.duration_s


class UnusableError(Exception):
    """Why an utterance cannot be trained on."""


class Lists:
    """Lists of whole numbers, all in one array. lengths: (n,)."""

    def __init__(self, values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> None:
        self._values, self._starts, self.lengths = values, starts, lengths

    def __getitem__(self, index: int) -> tuple[int, ...]:
        start = int(self._starts[index])
        return tuple(self._values[start : start + int(self.lengths[index])].tolist())

    def take(self, indices: np.ndarray) -> Lists:
        """Some of the lists, which share the numbers."""
        return Lists(self._values, self._starts[indices], self.lengths[indices])


class _Growing:
    """Lists while they are being made. most: no number is larger."""

    def __init__(self, most: int) -> None:
        self._kind, self._values, self._lengths = np.min_scalar_type(most), bytearray(), bytearray()

    def append(self, numbers: Sequence[int]) -> None:
        self._values += np.array(numbers, self._kind).tobytes()
        self._lengths += len(numbers).to_bytes(4, "little")

    def lists(self) -> Lists:
        lengths = np.frombuffer(self._lengths, "<u4")
        return Lists(np.frombuffer(self._values, self._kind), np.cumsum(lengths, dtype=np.int64) - lengths, lengths)


@dataclass(frozen=True, slots=True, eq=False)
class Examples(Sequence[Example]):
    """Examples as columns; an Example is made when one is asked for.

    durations_s: (n,) seconds, which may differ from those of the utterances.
    """

    utterances: Utterances
    durations_s: np.ndarray
    token_ids: Lists
    sounds: Lists
    normalise: Callable[[str], str]

    @classmethod
    def of(
        cls,
        utterances: Utterances,
        normalise: Callable[[str], str],
        vocabulary: int,
        example: Callable[[Utterance, str], Example],
        skipped: list[Skipped],
    ) -> Examples:
        """Of these utterances those that can be used.

        vocabulary: how many tokens there are.
        example:    of an utterance and its normalised text; raises TokenError or UnusableError.
        skipped:    takes the others.
        """
        usable, token_ids, sounds = list[int](), _Growing(vocabulary), _Growing(0xFFFF)
        for number, utterance in enumerate(utterances):
            try:
                one = example(utterance, normalise(utterance.text))
            except (TokenError, UnusableError) as error:
                skipped.append(Skipped(utterance.id, str(error)))
                continue
            usable.append(number)
            token_ids.append(one.token_ids)
            sounds.append(one.sounds)
        used = utterances[np.array(usable, np.int64)]
        return cls(used, used.durations_s, token_ids.lists(), sounds.lists(), normalise)

    def __len__(self) -> int:
        return len(self.utterances)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        utterance = replace(self.utterances[index], duration_s=float(self.durations_s[index]))
        return Example(utterance, self.normalise(utterance.text), self.token_ids[index], self.sounds[index])

    def take(self, indices: np.ndarray, durations_s: np.ndarray) -> Examples:
        """Some of the examples, and how long they really are, in seconds."""
        token_ids, sounds = self.token_ids.take(indices), self.sounds.take(indices)
        return Examples(self.utterances[indices], durations_s, token_ids, sounds, self.normalise)
