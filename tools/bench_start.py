"""What starting costs: CPU time and memory of whole processes, in turns, and of several at once."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from bench_english import processor

_WHISPER = """
import sys
from faster_whisper import WhisperModel
model = WhisperModel(sys.argv[1], device="cpu", compute_type="int8", cpu_threads=1, local_files_only=True)
print("".join(segment.text for segment in model.transcribe(sys.argv[2], language="en")[0]))
"""
# From a small process: what a child needs at most is never less than what its parent had when it was made.
_MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
"""
_HOLD = """
import sys
from asr import Recognizer
print(Recognizer(sys.argv[1]).transcribe(sys.argv[2]).text, flush=True)
input()
"""


def start(arguments: argparse.Namespace) -> None:
    """CPU seconds and memory from a process's start to its end, beside faster-whisper; the least and the median of several
    turns. Then four processes that have transcribed the recording and are kept: what each has that is not shared."""
    asr, recording = ["-m", "asr"], str(arguments.recording)
    work = {
        "python": ["-c", "pass"],
        "import numpy, onnxruntime, soundfile": ["-c", "import numpy, onnxruntime, soundfile"],
        "import asr.recognizer": ["-c", "import asr.recognizer"],
        "asr --help": [*asr, "--help"],
        "asr transcribe --help": [*asr, "transcribe", "--help"],
        "asr transcribe -m digits": [*asr, "transcribe", "-m", "digits", recording],
        f"asr transcribe -m {arguments.model}": [*asr, "transcribe", "-m", arguments.model, recording],
    }
    if arguments.whisper is not None:
        work["faster-whisper"] = ["-c", _WHISPER, str(arguments.whisper), recording]
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for _ in range(arguments.turns):
        for name, command in work.items():
            spent[name].append(_run(command))
    print(f"{arguments.recording.name}; {arguments.turns} turns; {processor()}\n")
    print("| process | CPU, least | median | MB |\n|---|---|---|---|")
    for name, turns in spent.items():
        seconds, sizes = zip(*turns, strict=True)
        print(
            f"| {name} | {min(seconds):.2f} s | {statistics.median(seconds):.2f} s | {statistics.median(sizes):.0f} |"
        )
    print("\n| of several processes, one has for itself | MB |\n|---|---|")
    for count in arguments.processes:
        print(f"| {count} | {_private(count, arguments.model, recording):.0f} |")


def _run(command: list[str]) -> tuple[float, float]:
    """CPU seconds of a process, and its memory at most, in MB."""
    done = subprocess.run([sys.executable, "-c", _MEASURE, sys.executable, *command], capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.decode()}")
    seconds, size = done.stdout.split()
    return float(seconds), int(size) / 1024


def _private(count: int, model: str, recording: str) -> float:
    """MB that each of several processes holds and shares with none, on average."""
    command = [sys.executable, "-c", _HOLD, model, recording]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
    ]
    sizes = []
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines[1:])
        sizes.append(sum(int(fields[name].split()[0]) for name in ("Private_Clean", "Private_Dirty")) / 1024)
    for process in processes:
        process.communicate("\n")
    return statistics.mean(sizes)
