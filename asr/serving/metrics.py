"""Counts and times of a server, as Prometheus reads them. Labels are of fixed sets, so that their number is bounded.

source: Prometheus, "Exposition formats", text format 0.0.4.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from pathlib import Path

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BOUNDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)  # seconds
_COUNTERS = {
    "asr_requests_total": "Requests answered.",
    "asr_upload_bytes_total": "Bytes of files received.",
    "asr_audio_seconds_total": "Sound recognised.",
    "asr_busy_seconds_total": "Time that recognising took.",
    "asr_jobs_cancelled_total": "Files whose client went away.",
    "asr_streams_total": "Streams that ended, and how.",
    "asr_rejected_total": "Requests refused before they were read.",
    "asr_errors_total": "Errors answered.",
    "asr_ignored_fields_total": "Fields of requests that nothing heeds.",
    "asr_worker_restarts_total": "Worker processes replaced.",
}
_HISTOGRAMS = {
    "asr_request_seconds": "Time from a request's headers to its answer's end.",
    "asr_queue_wait_seconds": "Time that files waited for a worker.",
    "asr_stream_lag_seconds": "How far a stream's text is behind its sound.",
}
_GAUGES = {
    "asr_queue_length": "Files that wait for a worker.",
    "asr_jobs_running": "Files being recognised.",
    "asr_streams": "Live streams.",
    "asr_workers": "Worker processes.",
    "asr_temp_bytes": "Bytes of files kept while they are heard.",
    "asr_model_info": "The models.",
}
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counters, histograms, and gauges that are asked when somebody looks."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, Labels], float] = {}
        self._observed: dict[tuple[str, Labels], list[float]] = {}  # a count a bucket, then the sum
        self.gauges: dict[str, Callable[[], Mapping[Labels, float]]] = {}
        self._started = time.time()

    def count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        assert name in _COUNTERS
        key = name, tuple(labels.items())
        self._counts[key] = self._counts.get(key, 0.0) + amount

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        assert name in _HISTOGRAMS
        row = self._observed.setdefault((name, tuple(labels.items())), [0.0] * (len(_BOUNDS) + 2))
        row[bisect_left(_BOUNDS, seconds)] += 1
        row[-1] += seconds

    def text(self) -> str:
        lines: list[str] = []

        def family(name: str, kind: str, what: str) -> None:
            lines.extend([f"# HELP {name} {what}", f"# TYPE {name} {kind}"])

        for name, what in _COUNTERS.items():
            family(name, "counter", what)
            lines += [_line(name, labels, value) for (of, labels), value in self._counts.items() if of == name]
        for name, what in _HISTOGRAMS.items():
            family(name, "histogram", what)
            for (of, labels), row in self._observed.items():
                if of != name:
                    continue
                total = 0.0
                for bound, count in zip((*map(str, _BOUNDS), "+Inf"), row[:-1], strict=True):
                    total += count
                    lines.append(_line(f"{name}_bucket", (*labels, ("le", bound)), total))
                lines += [_line(f"{name}_sum", labels, row[-1]), _line(f"{name}_count", labels, total)]
        for name, what in _GAUGES.items():
            family(name, "gauge", what)
            lines += [_line(name, labels, value) for labels, value in self.gauges.get(name, dict)().items()]
        for name, value in _process(self._started).items():
            family(name, "gauge", "Of the server's process.")
            lines.append(_line(name, (), value))
        return "\n".join(lines) + "\n"


def _line(name: str, labels: Labels, value: float) -> str:
    escaped = (
        (label, str(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")) for label, text in labels
    )
    inside = ",".join(f'{label}="{text}"' for label, text in escaped)
    return f"{name}{{{inside}}} {float(value)!r}" if inside else f"{name} {float(value)!r}"


def _process(started: float) -> dict[str, float]:
    """What the system knows of this process, where it tells."""
    found = {"process_start_time_seconds": started}
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        found["process_resident_memory_bytes"] = float(pages * os.sysconf("SC_PAGE_SIZE"))
        found["process_open_fds"] = float(len(list(Path("/proc/self/fd").iterdir())))
    except (OSError, ValueError, AttributeError):
        pass
    return found
