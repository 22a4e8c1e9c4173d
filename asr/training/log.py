"""What a training says of itself: log.jsonl, TensorBoard events, a progress bar."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from asr.errors import TrainingError


class Log:
    """log.jsonl and TensorBoard events of a run; both go back to where a checkpoint was when a training resumes."""

    def __init__(self, run: Path, *, active: bool) -> None:
        self._run, self._active = run, active
        self._path = run / "log.jsonl"
        self._kept_bytes, self._kept_steps = 0, 0
        self._file: Any = None
        self._board: Any = None
        if active:
            self._path.touch()

    def rewind(self, size: int, step: int) -> None:
        """Forget what was logged after the checkpoint."""
        self._kept_bytes, self._kept_steps = size, step

    def __enter__(self) -> Log:
        if self._active:
            from torch.utils.tensorboard import SummaryWriter

            self._file = self._path.open("a", encoding="utf-8", buffering=1)  # by line, for who watches it grow
            _lock(self._file, self._run)
            if self._path.stat().st_size > self._kept_bytes:
                self._file.truncate(self._kept_bytes)
            self._board = SummaryWriter(str(self._run / "tensorboard"), purge_step=self._kept_steps)
        return self

    def __exit__(self, *_: object) -> None:
        if self._active:
            self._file.close()
            self._board.close()

    def write(self, row: Mapping[str, Any], step: int) -> None:
        """One JSON line, and each number in it as a TensorBoard scalar."""
        if not self._active:
            return
        self._file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            scalars = value if isinstance(value, dict) else {"": value}
            for part, number in scalars.items():
                self._board.add_scalar(f"{name}/{part}" if part else name, number, step)

    def flush(self) -> int:
        """Write everything to disk; returns the size of log.jsonl in bytes."""
        if not self._active:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())  # a checkpoint that outlives a power cut must find its log
        self._board.flush()
        return self._path.stat().st_size


def best(epochs: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    """Of the log's rows of epochs, that with the fewest errors on dev: of equal ones the first."""
    return min(epochs, key=lambda row: (row["dev_cer"], row["dev_wer"]))


def _lock(file: TextIO, run: Path) -> None:
    """Hold a file until it is closed, so that two trainings cannot write into one folder."""
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise TrainingError(
            f"{run}: another process is training here; wait for it, or give another --run folder"
        ) from None
    except OSError:  # a file system without locks
        return


class Display:
    """A progress bar in a terminal; a line for each epoch everywhere."""

    def __init__(self, epochs: int, console: Console, *, active: bool) -> None:
        self._epochs, self._console, self._quiet = epochs, console, not active
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]}  dev {task.fields[dev]}  {task.fields[rate]} h/s "),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}"),
            console=console,
            disable=not active or not console.is_terminal,
            redirect_stdout=False,
        )
        fields: dict[str, Any] = dict.fromkeys(("loss", "dev", "rate", "left"), "-")
        self._task = self._bar.add_task("", total=1.0, epoch=1, epochs=epochs, **fields)

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(self, epoch: int, share: float, loss: float | None, hours_per_s: float, elapsed_s: float) -> None:
        """epoch: from 0; share: how much of it is done; loss: its mean so far; elapsed_s: since the training began.

        loss, hours_per_s: None and 0 until the first update is known.
        """
        done = (epoch + share) / self._epochs
        left = int(elapsed_s / done - elapsed_s)
        self._bar.update(
            self._task,
            completed=done,
            epoch=epoch + 1,
            loss="-" if loss is None else f"{loss:.3f}",
            rate=f"{hours_per_s:.3f}" if hours_per_s else "-",
            left=f"{left // 3600}:{left % 3600 // 60:02d}:{left % 60:02d}",
        )

    def epoch(self, row: Mapping[str, float]) -> None:
        dev = f"WER {row['dev_wer']:.1%} CER {row['dev_cer']:.1%}"
        self._bar.update(self._task, dev=dev)
        if not self._quiet:
            self._console.print(
                f"epoch {int(row['epoch']) + 1:3d}  loss {row['train_loss']:.3f}  dev loss {row['dev_loss']:.3f}  dev {dev}"
                f"  {row['seconds']:.0f} s  {row['audio_hours'] / max(1e-9, row['seconds']):.4f} h/s",
                highlight=False,
                soft_wrap=True,
            )
