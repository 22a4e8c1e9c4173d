"""The same work on many files, in threads: soundfile reads and decodes without holding the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(
    work: Callable[[Item], Result], items: Iterable[Item], progress: Progress | None, description: str
) -> list[Result]:
    """What the work makes of each item, in their order. progress: a Rich progress display to add a bar to."""
    items = list(items)
    task = None if progress is None else progress.add_task(description, total=len(items))
    results = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            for result in pool.map(work, items):
                results.append(result)
                if progress is not None and task is not None:
                    progress.advance(task)
        except BaseException:  # Ctrl-C must not wait for all the files still queued
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results
