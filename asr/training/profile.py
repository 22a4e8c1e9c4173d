"""Where the time of a training goes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from rich.console import Console
from rich.table import Table

T = TypeVar("T")


class Profile:
    """Adds up the time of each part of a training. Inactive, it does nothing.

    A GPU works behind the program's back: to see which part a time belongs to, each waits until the GPU is done. That
    itself takes some time, so that a profiled training is a little slower than others.

    audio_s: seconds of audio trained on since the start, for the table's title.
    """

    def __init__(self, device: torch.device, *, active: bool) -> None:
        self._device, self._active = device, active
        self._started = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self.audio_s = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        if not self._active:
            yield
            return
        started = self._now()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + self._now() - started

    def waits(self, name: str, values: Iterable[T]) -> Iterator[T]:
        """The same values; the time that each takes to come counts as the part's."""
        source = iter(values)
        while True:
            with self.part(name):
                value = next(source, None)
            if value is None:
                return
            yield value

    def render(self, console: Console) -> None:
        """A table of the parts."""
        if not self._active:
            return
        whole = self._now() - self._started
        other = whole - sum(self._seconds.values())
        table = Table("part", "seconds", "share", title=f"{self.audio_s / 3600:.2f} hours of audio in {whole:.1f} s")
        for name, seconds in (*sorted(self._seconds.items(), key=lambda item: -item[1]), ("all else", other)):
            table.add_row(name, f"{seconds:.2f}", f"{seconds / whole:.1%}")
        console.print(table)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
