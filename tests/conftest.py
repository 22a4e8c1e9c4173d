"""What several test files share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import pytest

DATA = Path(__file__).parent / "data"
# A shell starts what runs in its background with Ctrl-C ignored, and all that those start: tests send it to processes.
signal.signal(signal.SIGINT, signal.default_int_handler)
# How long an example takes says something of the machine alone.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


class Done(NamedTuple):
    """What came of a command in this process: exit status, stdout, stderr."""

    status: int
    text: str
    complaint: str


Run = Callable[..., Done]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Run `asr` with arguments as a user would, in an empty folder; the output is captured."""

    def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "asr", *map(str, arguments)]
        environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1"}
        options |= {"capture_output": True, "text": True, "cwd": tmp_path, "env": environment}
        done: subprocess.CompletedProcess[str] = subprocess.run(command, check=False, **options)
        return done

    return run


@pytest.fixture
def asr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """As `cli`, but in this process, which loads its libraries only once."""
    from asr.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["asr", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
        return Done(status, *capsys.readouterr())

    return run
