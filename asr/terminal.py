"""What all commands do with the terminal: text on stdout, everything else on stderr as one line, Ctrl-C, progress."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from asr.errors import AsrError
from asr.files import make_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

# What asks a program to end: Ctrl-C, `kill` or a cluster, and a closed terminal, of which Windows does not tell.
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_bar: Progress | None = None  # that stands in the terminal's last line


@contextmanager
def interruptible(hint: Callable[[], str] = str) -> Iterator[None]:
    """Ctrl-C within is one line on stderr, which ends in what `hint` then returns, and exit status 130."""
    try:
        yield
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # another one would be a traceback from Python's own end
        complain(f"interrupted{hint()}")
        raise click.exceptions.Exit(130) from None


@contextmanager
def ending(stop: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C within, or other request to end, calls `stop`; the next one does what it always does.

    What is ignored stays so: nohup means to outlive its terminal. Only the main thread hears of any.
    """
    before: dict[int, Any] = {}

    def first(number: int, _frame: object) -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        stop()

    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, first)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def asked_to_end() -> Iterator[Callable[[], bool]]:
    """Whether there was a request to end within (see `ending`), for a loop that looks after each step."""
    asked: list[bool] = []
    with ending(lambda: asked.append(True)):
        yield lambda: bool(asked)


@contextmanager
def blocked(signals: Collection[int]) -> Iterator[None]:
    """Signals wait for the end of the block, and never reach the processes and threads that are started in it.

    These inherit that the signals are blocked: to end them is for the program that has started them.
    """
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # started in the block, it would unblock them
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def stderr(quiet: bool) -> Console | None:
    """For progress bars; None where nobody would see one, and Rich need not be loaded."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        return None
    from rich.console import Console

    return Console(stderr=True)


class _Unseen:
    """What a progress bar is where nobody would see one."""

    def add_task(self, *_: object, **__: object) -> int:
        return 0

    def update(self, *_: object, **__: object) -> None:
        pass

    advance = remove_task = start = stop = update

    def track(self, sequence: Iterable[Any], **_: object) -> Iterable[Any]:
        return sequence


def stdout() -> Console:
    """The console for tables and reports; in a pipe or file, no line is wrapped or cut to a terminal's width."""
    from rich.console import Console

    wide = sys.stdout is not None and not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=10_000 if wide else None)


def complain(error: object) -> None:
    note(f"asr: {error}")


def note(text: str) -> None:
    if _bar is not None:
        _above(_bar, line(text) + "\n")
    else:
        click.echo(line(text), err=True)


class _Notes(logging.Handler):
    """What the package's log says of recordings, each once."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._told:
            self._told.add(text)
            note(text)


def hear_log(quiet: bool = False) -> None:
    """From now on, what the package logs is a note; quiet: only its errors."""
    log = logging.getLogger("asr")
    log.handlers = [_Notes(), *(handler for handler in log.handlers if not isinstance(handler, _Notes))]
    log.setLevel(logging.ERROR if quiet else logging.WARNING)


def own_stderr() -> None:
    """Write to standard error by a descriptor of our own: C libraries, which write to number 2, can be silenced alone."""
    usual = sys.__stderr__
    if usual is None or sys.stderr is not usual or usual.fileno() != 2:
        return
    usual.flush()
    sys.stderr = open(os.dup(2), "w", buffering=1, encoding=usual.encoding, errors=usual.errors)  # noqa: SIM115, PTH123


class _Output(io.FileIO):
    """Standard output, of which one line says that it cannot be written, whether help, a table or a text was to go there."""

    _failed = False

    def write(self, data: Any, /) -> int:
        if self._failed:  # what is left in the buffers at the end
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            self._failed = True
            complain(f"standard output: cannot be written: {error.strerror}; check the free space there")
            raise click.exceptions.Exit(1) from None


def own_stdout() -> None:
    """From now on, nothing more is done once standard output is full."""
    usual = sys.stdout
    # Not that of a test, nor a console of Windows, whose letters are no bytes.
    if not isinstance(usual, io.TextIOWrapper) or type(getattr(usual.buffer, "raw", usual.buffer)) is not io.FileIO:
        return
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Output(usual.fileno(), "w", closefd=False)),
        encoding=usual.encoding,
        errors=usual.errors,
        line_buffering=usual.line_buffering,
        write_through=usual.write_through,
    )


def line(text: object) -> str:
    """As one line of plain text, whatever a file's name holds: line ends are spaces, control characters escaped."""
    line = " ".join(str(text).splitlines())
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", lambda found: ascii(found[0])[1:-1], line)


def show(text: str) -> None:
    """Text on stdout, at once. Nothing more is worth doing when that is closed."""
    if sys.stdout is None:
        complain("standard output: is closed; open it, or write files with -o")
        raise click.exceptions.Exit(1)
    if _bar is not None and sys.stdout.isatty():
        _above(_bar, text)
        return
    try:
        if getattr(sys.stdout, "errors", "") == "replace":  # which `main` sets, for what is no transcript
            text.encode(sys.stdout.encoding)
        sys.stdout.write(text)
        sys.stdout.flush()
    except UnicodeEncodeError as error:
        raise AsrError(
            f"standard output: its encoding, {error.encoding}, lacks {error.object[error.start]!a}; "
            "set PYTHONIOENCODING=utf-8, or write files with -o"
        ) from None


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:07, 2:07."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def refuse_existing(output: Path, overwrite: bool) -> None:
    """Raise AsrError where an output exists already, before hours of work; what the package brings is never replaced."""
    from asr.models import is_bundled

    if is_bundled(output):
        raise AsrError(f"{output}: comes with the package and stays as it is; write a copy with -o FILE")
    if os.path.exists(output) and not overwrite:  # noqa: PTH110 (Path.exists raises where a name is too long)
        raise AsrError(f"{output}: the file exists already; use --overwrite, or name another")
    make_folder(output.parent)


@contextmanager
def progress(console: Console | None, *amounts: ProgressColumn | str) -> Iterator[Progress]:
    """A progress bar in the terminal's last line, gone at the end; none where the console is None or no terminal.

    What `show` and `note` write meanwhile stands above it; stdout that is not the terminal is left alone.
    amounts: how much of a task is done, as Rich's columns or in its format; if not given, the number of steps.
    """
    global _bar
    if console is None or console.quiet or not console.is_terminal:
        yield cast("Progress", _Unseen())
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    done = amounts or [MofNCompleteColumn()]
    columns = ["{task.description}", BarColumn(), *done, TimeRemainingColumn()]
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        _bar = bar
        try:
            yield bar
        finally:
            _bar = None


def _above(bar: Progress, text: str) -> None:
    """Write lines above a progress bar, as they are: the bar's own console alone knows how to step out of their way."""
    from rich.text import Text

    bar.console.print(Text(text, end=""), soft_wrap=True, end="")
