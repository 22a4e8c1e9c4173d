"""A terminal for the tests: a command runs in a pseudo-terminal, and what a person would see is read off its screen."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pexpect
import pyte

ROWS = 60
CTRL_C = "\x03"


@dataclass(frozen=True)
class Seen:
    """lines: of the screen at the end, without empty ones at its end; status: of the command; cursor: whether it shows."""

    lines: list[str]
    status: int
    cursor: bool

    @property
    def text(self) -> str:
        return "".join(f"{line}\n" for line in self.lines)


def run(
    arguments: Sequence[object],
    folder: Path,
    *,
    columns: int = 80,
    redirect: str = "",
    interrupt_at: str = "",
    timeout_s: float = 900,  # whatever else the machine does
) -> Seen:
    """`asr` with the arguments, in a folder, until it ends.

    redirect:     as a shell takes it: "> out.txt", "| cat > out.txt", "2> errors.txt".
    interrupt_at: a pattern in what is written; Ctrl-C is typed when it is first seen.
    """
    command = shlex.join([sys.executable, "-m", "asr", *map(str, arguments)])
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    child = pexpect.spawn(
        "bash",
        ["--norc", "-c", f"set -o pipefail; {command} {redirect}; exit $?"],
        cwd=str(folder),
        env=environment | {"TERM": "xterm-256color", "PYTHONUNBUFFERED": "1"},
        dimensions=(ROWS, columns),
        encoding="utf-8",
        echo=False,
        timeout=timeout_s,
    )
    written = ""
    if interrupt_at:
        child.expect(interrupt_at)
        written = child.before + child.after
        child.send(CTRL_C)
    child.expect(pexpect.EOF)
    child.close()
    screen = pyte.Screen(columns, ROWS)
    pyte.Stream(screen).feed(written + child.before)
    lines = [line.rstrip() for line in screen.display]
    while lines and not lines[-1]:
        lines.pop()
    status = child.exitstatus if child.exitstatus is not None else -child.signalstatus
    return Seen(lines, status, not screen.cursor.hidden)
