"""Untranscribed speech and a Whisper model, its teacher -> utterances with the texts that the teacher is sure of.

Whisper hears 30 s at a time, and takes as long for one second as for all of them. Clips therefore share a window, with
pauses between them, and a word belongs to the clip within whose time the teacher's alignment puts it. What the teacher is
not sure of is tried once more, among other clips, and kept if it is sure then or hears the same again. The rest is left out,
with the reason. A long recording is cut into clips where it is quietest.

sources: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision", section 4.5 (what shows that a
         text is wrong); Kahn et al. 2020, "Self-Training for End-to-End Speech Recognition" (labels by confidence).
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asr import audio
from asr.audio import SAMPLE_RATE
from asr.errors import AsrError, CorpusError, nearest
from asr.manifest import Skipped, Utterance
from asr.text import letters, squeeze

SURE = -0.3  # mean log-probability of a text's words
WINDOW_S = 30.0
PAUSE_S = 1.0  # between the clips of a window
LONGEST_S = 20.0  # a longer recording is cut
SHORTEST_S = 0.3
_QUIET_S = 0.3  # the length of the quietest stretch, in which a recording is cut
_REPETITIVE = (
    2.4  # as the reference implementation has it: how many times smaller zlib makes a text that goes round in circles
)
_LETTERS_A_SECOND = 3, 30
_FILES = "model.bin", "config.json", "tokenizer.json"


class Word(NamedTuple):
    """A word with the space before it and its punctuation, the seconds in the window, and the teacher's probability."""

    text: str
    start_s: float
    end_s: float
    probability: float


# A window of up to WINDOW_S, (N,) float32 at 16 kHz -> what is said in it.
Teacher = Callable[[np.ndarray], Sequence[Word]]


@dataclass(frozen=True, slots=True)
class Clip:
    """A stretch of a recording, of up to LONGEST_S. waveform: (N,) float32 at 16 kHz."""

    audio: Path
    offset_s: float
    waveform: np.ndarray
    speaker: str | None = None

    @property
    def duration_s(self) -> float:
        return len(self.waveform) / SAMPLE_RATE

    def utterance(self, text: str) -> Utterance:
        return Utterance(self.audio, self.duration_s, text, self.offset_s, self.speaker)


@dataclass(frozen=True, slots=True)
class Heard:
    """What the teacher made of a clip.

    log_prob: the mean of its words' natural log-probabilities; minus infinity where there are none.
    fault:    why this cannot be the clip's text, however sure the teacher is.
    """

    text: str
    log_prob: float
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Label:
    """What became of a clip, or of a recording that cannot be read: its text, or the reason that it has none."""

    audio: str
    offset_s: float
    duration_s: float
    speaker: str | None
    text: str = ""
    reason: str = ""

    @property
    def result(self) -> Utterance | Skipped:
        utterance = Utterance(Path(self.audio), self.duration_s, self.text, self.offset_s, self.speaker)
        return Skipped(utterance.id, self.reason) if self.reason else utterance


def whisper(folder: Path, language: str = "en", threads: int = 1) -> Teacher:
    """The Whisper model in a folder, as faster-whisper reads it; on a GPU where it finds one. Nothing is downloaded.

    language: of the speech, as Whisper writes it: en, de, pt.  threads: on a CPU.
    raises:   CorpusError saying what is missing or wrong; ModuleNotFoundError without faster-whisper.
    """
    missing = [name for name in _FILES if not (folder / name).is_file()]
    missing += [] if any(folder.glob("vocabulary.*")) else ["vocabulary.txt or .json"]
    if missing:
        raise CorpusError(
            f"{folder}: expected the folder of a Whisper model for faster-whisper ({', '.join(_FILES)}, vocabulary.txt or "
            f".json), but {', '.join(missing)} {'are' if len(missing) > 1 else 'is'} not there; name another"
        )
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    try:
        model = WhisperModel(
            str(folder), device="auto", compute_type="auto", cpu_threads=threads, local_files_only=True
        )
    except Exception as error:  # whatever the libraries below make of a file that is damaged or of another kind
        raise CorpusError(f"{folder}: expected a Whisper model for faster-whisper, got: {error}") from None
    known = model.supported_languages
    if language not in known:
        raise CorpusError(
            f"{folder}: expected a language that this model knows, got '{language}': {nearest(language, known)}"
        )
    pipeline = BatchedInferencePipeline(model)

    def hear(window: np.ndarray) -> list[Word]:
        # As one clip: the other ways to transcribe come back for what follows the last word, and take twice as long.
        whole = [{"start": 0.0, "end": len(window) / SAMPLE_RATE}]
        segments, _ = pipeline.transcribe(
            window,
            language=language,
            word_timestamps=True,
            without_timestamps=True,  # with them, it leaves out some of the clips
            vad_filter=False,
            clip_timestamps=whole,
            batch_size=1,
        )
        return [
            Word(word.word, word.start, word.end, word.probability) for part in segments for word in part.words or ()
        ]

    return hear


def clips(path: Path, speaker: str | None = None) -> Iterator[Clip]:
    """The clips of a recording, in their order: all of it, parted where it is quietest if it is longer than LONGEST_S.

    raises: AudioError where it cannot be read.
    """
    longest, offset = round(LONGEST_S * SAMPLE_RATE), 0
    rest = np.zeros(0, np.float32)
    for block in audio.blocks(path, block_s=LONGEST_S):
        rest = np.concatenate([rest, block])
        while len(rest) > longest:
            cut = _quietest(rest[:longest])
            yield Clip(path, offset / SAMPLE_RATE, rest[:cut], speaker)
            offset, rest = offset + cut, rest[cut:]
    yield Clip(path, offset / SAMPLE_RATE, rest, speaker)


def label(clips: Iterable[Clip], teacher: Teacher, sure: float = SURE) -> Iterator[tuple[Clip, str, str]]:
    """Each clip with its text and "", or with "" and the reason that it has none; those tried twice come later.

    sure: the lowest mean log-probability of the words of a text that is taken at the first try.
    """
    once: list[Clip] = []
    unsure: list[tuple[Clip, Heard]] = []

    def first() -> Iterator[tuple[Clip, str, str]]:
        for clip, heard in zip(once, hear(once, teacher), strict=True):
            if not heard.fault and heard.log_prob >= sure:
                yield clip, heard.text, ""
                continue
            if not _fits([each for each, _ in unsure], clip):
                yield from again()
            unsure.append((clip, heard))
        once.clear()

    def again() -> Iterator[tuple[Clip, str, str]]:
        for (clip, before), now in zip(unsure, hear([each for each, _ in unsure], teacher), strict=True):
            if not now.fault and (now.log_prob >= sure or letters(now.text) == letters(before.text)):
                yield clip, now.text, ""
            else:
                heard = f"unsure: {now.log_prob:.2f} a word, expected {sure:g}; {before.text!r}, then {now.text!r}"
                yield clip, "", now.fault or heard
        unsure.clear()

    for clip in clips:
        if clip.duration_s < SHORTEST_S:
            yield clip, "", f"{clip.duration_s:.2f} s, expected at least {SHORTEST_S} s"
        elif not clip.waveform.any():
            yield clip, "", "silent: all samples are 0"
        else:
            if not _fits(once, clip):
                yield from first()
            once.append(clip)
    if once:
        yield from first()
    if unsure:
        yield from again()


def hear(clips: Sequence[Clip], teacher: Teacher) -> list[Heard]:
    """What the teacher makes of clips that share a window."""
    pause = np.zeros(round(PAUSE_S * SAMPLE_RATE), np.float32)
    # As loud as each other: Whisper hears nothing that is 80 dB below the loudest of its window.
    parts = [part for clip in clips for part in (clip.waveform * (0.5 / np.abs(clip.waveform).max()), pause)]
    words = teacher(np.concatenate(parts[:-1]))
    found, start_s = [], 0.0
    for clip in clips:
        end_s = start_s + clip.duration_s
        low, high = start_s - PAUSE_S / 2, end_s + PAUSE_S / 2
        own = [word for word in words if low <= (word.start_s + word.end_s) / 2 < high]
        inside = all(low <= word.start_s and word.end_s <= high for word in own)
        text = squeeze("".join(word.text for word in own))
        log_prob = float(np.mean([math.log(max(word.probability, 1e-10)) for word in own])) if own else -math.inf
        found.append(Heard(text, log_prob, _fault(text, clip.duration_s, inside)))
        start_s = end_s + PAUSE_S
    return found


def _fault(text: str, duration_s: float, inside: bool) -> str:
    """Why this cannot be what was said in so many seconds; nothing if it can."""
    encoded, count = text.encode(), len(letters(text).replace(" ", ""))
    if not count:
        return "nothing was heard"
    if len(encoded) > _REPETITIVE * len(zlib.compress(encoded)):
        return f"goes round in circles: {text[:60]!r}"
    low, high = _LETTERS_A_SECOND
    if not low <= count / duration_s <= high:
        return f"{count} letters in {duration_s:.1f} s, expected {low} to {high} a second: {text[:60]!r}"
    return "" if inside else f"a word reaches beyond the clip: {text[:60]!r}"


def _fits(window: Sequence[Clip], clip: Clip) -> bool:
    return sum(each.duration_s + PAUSE_S for each in window) + clip.duration_s <= WINDOW_S


def _quietest(waveform: np.ndarray) -> int:
    """The sample in the middle of the quietest _QUIET_S, not within the first quarter."""
    hop = SAMPLE_RATE // 100
    energy = np.square(waveform[: len(waveform) // hop * hop]).reshape(-1, hop).mean(axis=1)
    width = round(_QUIET_S * 100)
    smooth = np.convolve(energy, np.full(width, 1 / width, np.float32), "valid")
    first = len(smooth) // 4
    return (first + int(smooth[first:].argmin()) + width // 2) * hop


class Labels:
    """The labels of a run so far, in a file that the same run goes on from: how they are made, then one a line, as JSON."""

    def __init__(self, path: Path, made: Mapping[str, Any]) -> None:
        """made: what a run must have in common with the one that began the file.

        raises: CorpusError if they differ, or the file cannot be read or written.
        """
        self.path = path
        self._labels: dict[tuple[str, float], Label] = {}
        try:
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
            whole = [line for line in lines if line.endswith(b"\n")]  # a line that was cut off is made again
            rows = [json.loads(line) for line in whole]
            if rows and rows[0] != dict(made):
                differing = [key for key in made if rows[0].get(key) != made[key]]
                raise CorpusError(
                    f"{path}: labels of a run with {', '.join(f'{key} {rows[0].get(key)}' for key in differing)}; "
                    "--overwrite begins anew"
                )
            for row in rows[1:]:
                self._keep(Label(**row))
            path.write_bytes(b"".join(whole) or (json.dumps(made) + "\n").encode())
            self._file = path.open("a", encoding="utf-8")
        except (ValueError, TypeError) as error:
            raise CorpusError(
                f"{path}: expected the labels of a run that was stopped, got: {error}; remove it"
            ) from None
        except OSError as error:
            raise CorpusError(f"{path}: cannot be read and written: {error.strerror}") from None

    def __contains__(self, clip: Clip) -> bool:
        return (str(clip.audio), clip.offset_s) in self._labels

    def __len__(self) -> int:
        return len(self._labels)

    def add(self, one: Label) -> None:
        self._keep(one)
        self._file.write(json.dumps(asdict(one)) + "\n")
        self._file.flush()

    def done(self, recordings: Iterable[Path]) -> list[Utterance | Skipped]:
        """What became of these recordings, in their order."""
        order = {str(path): number for number, path in enumerate(recordings)}
        chosen = [one for one in self._labels.values() if one.audio in order]
        return [one.result for one in sorted(chosen, key=lambda one: (order[one.audio], one.offset_s))]

    def close(self) -> None:
        self._file.close()

    def _keep(self, one: Label) -> None:
        self._labels[one.audio, one.offset_s] = one


def run(
    speakers: Mapping[Path, str | None],
    teacher: Teacher,
    labels: Labels,
    sure: float = SURE,
    progress: Callable[[float], None] = lambda _: None,
) -> None:
    """Label recordings, whose speakers may be known, but for what is labelled already. progress: is told seconds."""

    def clips_to_label() -> Iterator[Clip]:
        for path, speaker in speakers.items():
            try:
                for clip in clips(path, speaker):
                    if clip in labels:
                        progress(clip.duration_s)
                    else:
                        yield clip
            except AsrError as error:
                labels.add(Label(str(path), 0.0, 0.0, speaker, reason=str(error)))

    for clip, text, reason in label(clips_to_label(), teacher, sure):
        labels.add(Label(str(clip.audio), clip.offset_s, clip.duration_s, clip.speaker, text, reason))
        progress(clip.duration_s)
