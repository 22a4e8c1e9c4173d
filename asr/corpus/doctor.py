"""Checks a manifest before hours of training are spent on it: the audio, the text, and how the two fit together.

An error would stop training or teach the model something false; a warning is worth a look. Nothing is repaired here.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from asr import audio
from asr.errors import AsrError, number_of
from asr.files import each as each_in_threads
from asr.manifest import Utterance
from asr.remote import manifests
from asr.tokens import Tokens, min_frames

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

SILENCE_DBFS = -60.0  # an utterance quieter than this on average holds no speech
FULL_SCALE = 0.9999  # a sample from here on is clipped; the largest 16-bit sample is 0.99997
CLIPPED_SHARE = 0.005  # of the samples; below it the odd clipped peak is harmless
DURATION_TOLERANCE_S = 0.1
DURATION_TOLERANCE = 0.02  # of the duration; the larger of the two counts
OUTLIER_Z = 6.0
DC_OFFSET = 0.01  # of full scale; microphones and converters stay far below
_LEAST_FOR_OUTLIERS = 20  # utterances; the median of fewer says little
_BLOCKS = " ▏▎▍▌▋▊▉█"

_Level = Literal["error", "warning"]
_Fault = tuple[_Level, str, str]  # level, kind, detail


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault. id: the utterance's, or the manifest's name; detail: what was found."""

    level: _Level
    kind: str
    id: str
    detail: str


@dataclass
class Diagnosis:
    """What `check` found. durations_s: (utterances,); characters_per_s: of the utterances that have text.

    unknown: character outside the alphabet -> how often; notes: what is worth knowing but no fault.
    """

    findings: list[Finding] = field(default_factory=list)
    utterances: int = 0
    speakers: int = 0
    characters: int = 0
    durations_s: list[float] = field(default_factory=list)
    characters_per_s: list[float] = field(default_factory=list)
    unknown: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def hours(self) -> float:
        return sum(self.durations_s) / 3600

    @property
    def errors(self) -> int:
        return sum(finding.level == "error" for finding in self.findings)

    @property
    def warnings(self) -> int:
        return len(self.findings) - self.errors

    def to_json(self) -> str:
        """The totals, notes and findings as one JSON object."""
        totals = {name: getattr(self, name) for name in ("utterances", "speakers", "characters", "errors", "warnings")}
        rest = {"hours": round(self.hours, 4), "unknown": self.unknown, "notes": self.notes}
        findings = [asdict(finding) for finding in self.findings]
        return json.dumps({**totals, **rest, "findings": findings}, ensure_ascii=False, indent=2)

    def render(self, console: Console, examples: int = 3) -> None:
        """Print totals, histograms and the findings by kind, readable in 80 columns and without colours."""
        from rich.text import Text

        def show(line: str = "", style: str = "") -> None:
            if not console.encoding.lower().startswith("utf"):
                line = line.translate({ord(block): "#" for block in _BLOCKS[1:]}).replace("–", "-")
            console.print(Text(line, style=style, no_wrap=True, overflow="ellipsis"))

        show(
            f"{number_of(self.utterances, 'utterance')}, {self.hours:.2f} h, {number_of(self.speakers, 'speaker')}, "
            f"{number_of(self.characters, 'character')}",
            "bold",
        )
        for note in self.notes:
            show(note)
        for title, values, unit in (
            ("Duration", self.durations_s, "s"),
            ("Characters per second", self.characters_per_s, "/s"),
        ):
            if values:
                show()
                show(title, "bold")
                for line in histogram(values, unit=unit):
                    show(line)
        if self.unknown:
            show()
            counts = sorted(self.unknown.items(), key=lambda item: -item[1])
            shown = ", ".join(f"{character!r} {count}" for character, count in counts[:20])
            more = f" and {len(counts) - 20} others" if len(counts) > 20 else ""
            console.print(Text(f"Characters outside the alphabet, how often: {shown}{more}"))
        show()
        # Errors first, then the most frequent kind.
        kinds = Counter((finding.level, finding.kind) for finding in self.findings)
        for (level, kind), count in sorted(kinds.items(), key=lambda item: (item[0][0], -item[1])):
            show(f"{level:<8} {kind:<24} {count:>6}", "red" if level == "error" else "yellow")
            some = [finding for finding in self.findings if (finding.level, finding.kind) == (level, kind)][:examples]
            for finding in some:
                show(f"    {finding.id}: {' '.join(finding.detail.split())}")
            if count > len(some):
                show(f"    and {count - len(some)} more")
        show(
            f"{number_of(self.errors, 'error')}, {number_of(self.warnings, 'warning')}",
            "bold red" if self.errors else "bold",
        )


def check(
    utterances: Sequence[Utterance],
    tokens: Tokens,
    normalise: Callable[[str], str],
    frame_shift_s: float = 0.04,
    *,
    manifest: Path | None = None,
    malformed: Sequence[AsrError] = (),
    progress: Progress | None = None,
) -> Diagnosis:
    """Everything that is wrong with the utterances. Each is decoded once, several at a time.

    tokens:        the vocabulary the normalised text must be spelt with.
    frame_shift_s: seconds of audio for one frame of the network's output; CTC needs a frame for each token.
    manifest:      the file the utterances come from, whose bytes are looked at too.
    malformed:     the faults of its other lines, see asr.manifest.read.
    progress:      a Rich progress display to add a bar to.
    """
    diagnosis = Diagnosis(utterances=len(utterances))
    findings = diagnosis.findings
    if manifest is not None:
        findings += [found for one in manifests(manifest) for found in _check_bytes(one)]
    for error in malformed:
        where, _, detail = str(error).partition(": ")
        findings.append(Finding("error", "malformed line", Path(where).name, detail))
    diagnosis.speakers = len({utterance.speaker for utterance in utterances} - {None})
    recordings = _Recordings(Counter(utterance.audio for utterance in utterances), normalise)
    unknown: Counter[str] = Counter()
    texts: Counter[str] = Counter()
    lengths: list[tuple[str, float]] = []
    speeds: list[tuple[str, float]] = []
    measurements = each_in_threads(_measure, utterances, progress, "reading audio")
    for utterance, measured in zip(utterances, measurements, strict=True):
        text = normalise(utterance.text)
        duration_s = utterance.duration_s
        faults = recordings.find_repeats(utterance)
        if isinstance(measured, _Measured):
            duration_s = recordings.duration_s(utterance, measured)
            faults += recordings.faults(utterance, measured)
        else:
            faults.append(measured)
        faults += _text_faults(utterance, text, tokens, duration_s, frame_shift_s)
        findings += [Finding(level, kind, utterance.id, detail) for level, kind, detail in faults]
        diagnosis.durations_s.append(duration_s)
        diagnosis.characters += len(text)
        lengths.append((utterance.id, duration_s))
        if text and duration_s > 0:
            speeds.append((utterance.id, len(text) / duration_s))
        texts[text] += 1
        unknown.update(filter(tokens.unknown, text))

    findings += _outliers(lengths, "unusual duration", "s")
    findings += _outliers(speeds, "unusual speed", "characters/s")
    diagnosis.characters_per_s = [speed for _, speed in speeds]
    diagnosis.unknown = dict(unknown.most_common())
    if rates := recordings.rates.most_common():
        shown = ", ".join(f"{rate} Hz ({count})" for rate, count in rates)
        diagnosis.notes.append(f"{'sample rates' if len(rates) > 1 else 'sample rate'}: {shown}")
    if texts:
        text, count = texts.most_common(1)[0]
        often = f"; {count} times: {text[:40]!r}" if count > 1 else ""
        diagnosis.notes.append(f"{number_of(len(texts), 'different text')}{often}")
    return diagnosis


class _Recordings:
    """The recordings looked at so far, for those that come twice. files: how many utterances are cut from each."""

    def __init__(self, files: Counter[Path], normalise: Callable[[str], str]) -> None:
        self.rates: Counter[int] = Counter()
        self._files, self._normalise = files, normalise
        self._places: dict[tuple[str, float], Utterance] = {}
        self._ids: dict[str, Utterance] = {}
        self._contents: dict[bytes, Utterance] = {}

    def find_repeats(self, utterance: Utterance) -> list[_Fault]:
        """What the manifest alone tells: the same part of a recording, or the same name, once more."""
        if not self._first(utterance):
            detail = f"{utterance.audio} at {utterance.offset_s:.2f} s is listed twice"
            return [("error", "duplicate utterance", detail)]
        if (other := self._ids.setdefault(utterance.id, utterance)) is not utterance:
            return [("warning", "ambiguous id", f"{utterance.audio} and {other.audio} would share it in reports")]
        return []

    def _first(self, utterance: Utterance) -> bool:
        place = os.path.abspath(utterance.audio), round(utterance.offset_s, 3)  # noqa: PTH100
        return self._places.setdefault(place, utterance) is utterance

    def duration_s(self, utterance: Utterance, measured: _Measured) -> float:
        """How long it really is. Audio that goes on counts where the manifest does not cut the file into several."""
        whole = utterance.offset_s == 0 and self._files[utterance.audio] == 1
        return measured.file_s if whole and measured.file_s > utterance.duration_s else measured.duration_s

    def faults(self, utterance: Utterance, measured: _Measured) -> list[_Fault]:
        """What is wrong with the audio of an utterance, which `find_repeats` has seen."""
        found: list[_Fault] = []
        self.rates[measured.sample_rate] += 1
        said_s, real_s = utterance.duration_s, self.duration_s(utterance, measured)
        if abs(real_s - said_s) > max(DURATION_TOLERANCE_S, DURATION_TOLERANCE * said_s):
            detail = f"the manifest says {said_s:.2f} s, the audio has {real_s:.2f} s"
            found.append(("error", "wrong duration", detail))
        if self._first(utterance):
            same = self._contents.setdefault(measured.digest, utterance)
            if same is not utterance:
                equal = self._normalise(same.text) == self._normalise(utterance.text)
                also = "" if equal else ", with another text"
                found.append(("warning", "duplicate audio", f"the same samples as {same.id}{also}"))
        if abs(measured.offset) > DC_OFFSET:
            detail = f"the samples' mean is {measured.offset:+.3f} of full scale; filter it out, or mend the microphone"
            found.append(("warning", "DC offset", detail))
        if measured.dbfs < SILENCE_DBFS:
            found.append(("warning", "silence", f"{measured.dbfs:.0f} dBFS on average"))
        if measured.clipped > CLIPPED_SHARE:
            found.append(("warning", "clipping", f"{measured.clipped:.1%} of the samples at full scale"))
        return found


def _text_faults(
    utterance: Utterance, text: str, tokens: Tokens, duration_s: float, frame_shift_s: float
) -> list[_Fault]:
    """What is wrong with a normalised text, and with its length beside that of the audio."""
    found: list[_Fault] = []
    if not text:
        found.append(("error", "empty text", f"nothing is left of {utterance.text!r}"))
    outside = dict.fromkeys(filter(tokens.unknown, text))
    if outside:
        found.append(("error", "text outside alphabet", f"{', '.join(map(repr, outside))} in {text!r}"))
    token_ids = [ord(character) for character in text] if outside else tokens.encode(text)
    frames = math.floor(duration_s / frame_shift_s + 1e-6)  # 1.16 / 0.04 is 28.999...
    if min_frames(token_ids) > frames:
        detail = f"{len(text)} characters need {min_frames(token_ids)} frames, {duration_s:.2f} s gives {frames}"
        found.append(("error", "too short for its text", detail))
    return found


def histogram(values: Sequence[float], bins: int = 12, width: int = 40, unit: str = "s") -> list[str]:
    """A histogram as lines of text: range, bar of at most `width` characters, count.

    Bins are equally wide; where a few values lie far above the rest, the last bin is open and takes them in.
    """
    if not values:
        return []
    array = np.asarray(values, dtype=np.float64)
    low, high = float(array.min()), float(array.max())
    usual = float(np.percentile(array, 99))
    is_open = high - low > 1.5 * (usual - low) > 0
    if is_open:
        high = usual
    if high <= low:
        bins, high = 1, low
        counts, edges = np.array([len(array)]), np.array([low, low])
    else:
        counts, edges = np.histogram(np.minimum(array, high), bins=bins, range=(low, high))
    digits = 2 if high < 100 else 0
    labels = [f"{left:.{digits}f} – {right:.{digits}f}" for left, right in pairwise(edges)]
    if is_open:
        labels[-1] = f"{edges[-2]:.{digits}f} and more"
    label_width = max(map(len, labels))
    lines = []
    for label, count in zip(labels, counts, strict=True):
        eighths = math.ceil(8 * width * int(count) / int(counts.max()))
        bar = "█" * (eighths // 8) + _BLOCKS[eighths % 8].strip()
        lines.append(f"{label:>{label_width}} {unit} {bar}{' ' if bar else ''}{count}")
    return lines


@dataclass(frozen=True, slots=True)
class _Measured:
    """What decoding an utterance tells. file_s: the whole file by its header; clipped: share of samples.

    dbfs: without the offset, which is the samples' mean.
    """

    duration_s: float
    file_s: float
    sample_rate: int
    dbfs: float
    offset: float
    clipped: float
    digest: bytes


def _measure(utterance: Utterance) -> _Measured | _Fault:
    try:
        info = audio.info(utterance.audio)
        # At its own rate: resampling would smear what was clipped.
        waveform = audio.read(
            utterance.audio,
            offset_s=utterance.offset_s,
            duration_s=utterance.duration_s,
            sample_rate=info.sample_rate,
        )
    except AsrError as error:
        kind = "unreadable audio" if utterance.audio.exists() else "missing audio"
        return "error", kind, str(error).removeprefix(f"{utterance.audio}: ")
    heard = waveform  # below 8 kHz, all that a recogniser gets: a hiss or click above it is still silence
    if info.sample_rate > audio.SAMPLE_RATE:
        heard = audio.resample(waveform, info.sample_rate, audio.SAMPLE_RATE)
    power = float(np.var(heard, dtype=np.float64)) if len(heard) else 0.0
    return _Measured(
        duration_s=len(waveform) / info.sample_rate,
        file_s=info.duration_s,
        sample_rate=info.sample_rate,
        dbfs=10 * math.log10(power) if power > 0 else -math.inf,
        offset=float(np.mean(waveform, dtype=np.float64)) if len(waveform) else 0.0,
        clipped=float(np.mean(np.abs(waveform) >= FULL_SCALE)),
        digest=hashlib.blake2b(np.ascontiguousarray(waveform).data, digest_size=16).digest(),
    )


def _check_bytes(manifest: Path) -> list[Finding]:
    """Traces of an editor in the manifest file that other toolkits stumble over."""
    try:
        data = manifest.read_bytes()
    except OSError as error:
        return [Finding("error", "unreadable manifest", manifest.name, str(error.strerror or error))]
    findings = []
    if data.startswith(b"\xef\xbb\xbf"):
        findings.append(
            Finding("warning", "byte order mark", manifest.name, "the file starts with one; save as UTF-8 without")
        )
    if count := data.count(b"\r\n"):
        findings.append(
            Finding("warning", "Windows line ends", manifest.name, f"{count} lines end in CR LF; save with LF")
        )
    return findings


def _outliers(values: list[tuple[str, float]], kind: str, unit: str) -> list[Finding]:
    """The values far from the median, in units of the median absolute deviation of their logarithms.

    formula: z = 0.6745 (x - median) / MAD, which is a standard deviation's worth for normal x.
    source:  Iglewicz and Hoaglin 1993, "How to Detect and Handle Outliers".
    """
    if len(values) < _LEAST_FOR_OUTLIERS:
        return []
    # Lengths and speeds are skewed: twice and half as long are equally unusual.
    logs = np.log([max(value, 1e-9) for _, value in values])
    median = float(np.median(logs))
    # All but equal values would make the smallest difference an outlier.
    deviation = max(float(np.median(np.abs(logs - median))), 0.1)
    return [
        Finding("warning", kind, id_, f"{value:.3g} {unit}, the median is {math.exp(median):.3g}")
        for (id_, value), log in zip(values, logs, strict=True)
        if 0.6745 * abs(log - median) / deviation > OUTLIER_Z
    ]
