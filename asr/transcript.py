"""What was said and when: Transcript, its words and segments, and their file formats."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from asr import subtitles
from asr.subtitles import milliseconds
from asr.tokens import BLANK, Span, Tokens

# CTC emits a letter soon after it begins to sound; a word goes on for so much longer than its last letter's frames (of the
# values from 0 to 0.3 s, the one with the least median error on FSDD's dev digits).
_LETTER_S = 0.08


@dataclass(frozen=True, slots=True)
class Word:
    """One word. start_s, end_s: seconds from the start of the audio.

    confidence: 0 to 1, calibrated where `asr tune` has done so; otherwise the posterior of the word's weakest letter.
    """

    text: str
    start_s: float
    end_s: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Segment:
    """Words said without a long pause. start_s, end_s: seconds from the start of the audio."""

    text: str
    start_s: float
    end_s: float
    words: tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class Alternatives:
    """What else may have been said between two pauses: texts with their scores (natural log), the best first."""

    start_s: float
    end_s: float
    texts: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Transcript:
    """The text of one utterance or file. duration_s: seconds of audio; model: the name of the model that wrote it.

    alternatives: of each stretch of speech, where they were asked for.

    >>> transcript = Transcript("hello", (Word("hello", 0.12, 0.48, 0.98),), duration_s=1.0, model="english")
    >>> transcript.to_csv().splitlines()
    ['start_s,end_s,text,confidence', '0.120,0.480,hello,0.980']
    """

    text: str
    words: tuple[Word, ...]
    duration_s: float
    model: str
    alternatives: tuple[Alternatives, ...] = ()

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The words, divided at pauses."""
        return segments(self.words)

    def to_txt(self) -> str:
        """The text and a line end; nothing said is an empty line."""
        return self.text + "\n"

    def to_json(self) -> str:
        """One JSON object, one segment and one word a line; seconds and confidences are rounded to 3 decimals.

        {
          "text": "hello there",
          "duration_s": 2.41,
          "model": "digits",
          "segments": [
            {"text": "hello there", "start_s": 0.12, "end_s": 0.92}
          ],
          "words": [
            {"text": "hello", "start_s": 0.12, "end_s": 0.48, "confidence": 0.981},
            {"text": "there", "start_s": 0.56, "end_s": 0.92, "confidence": 0.97}
          ]
        }
        """
        members = [
            f'"text": {_json(self.text)}',
            f'"duration_s": {_json(round(float(self.duration_s), 3))}',
            f'"model": {_json(self.model)}',
            f'"segments": {_rows(_times(segment) for segment in self.segments)}',
            f'"words": {_rows(_times(word) | {"confidence": round(float(word.confidence), 3)} for word in self.words)}',
        ]
        if self.alternatives:
            members.append(f'"alternatives": {_rows(map(_choices, self.alternatives))}')
        return "{\n  " + ",\n  ".join(members) + "\n}\n"

    def to_jsonl(self, name: str) -> str:
        """A line for a file of many: a row of a manifest (see asr.manifest), with the words and their times besides."""
        row = {"audio_filepath": name, "duration": round(float(self.duration_s), 3), "text": self.text}
        words = [_times(word) | {"confidence": round(float(word.confidence), 3)} for word in self.words]
        return _json(row | {"model": self.model, "words": words}) + "\n"

    def to_srt(self, line_chars: int = subtitles.LINE_CHARS, max_lines: int = subtitles.LINES) -> str:
        """SubRip subtitles, cut and timed by asr.subtitles."""
        return subtitles.srt(subtitles.cues(self.words, line_chars, max_lines))

    def to_vtt(self, line_chars: int = subtitles.LINE_CHARS, max_lines: int = subtitles.LINES) -> str:
        """WebVTT subtitles, cut and timed by asr.subtitles."""
        return subtitles.vtt(subtitles.cues(self.words, line_chars, max_lines))

    def to_csv(self) -> str:
        """A table of the segments for spreadsheets (RFC 4180): start_s, end_s, text, the lowest confidence of a word."""
        file = io.StringIO(newline="")
        table = csv.writer(file)
        table.writerow(["start_s", "end_s", "text", "confidence"])
        for part in self.segments:
            least = min(word.confidence for word in part.words)
            table.writerow([f"{part.start_s:.3f}", f"{part.end_s:.3f}", part.text, f"{least:.3f}"])
        return file.getvalue()

    def to_audacity(self) -> str:
        """A label track for Audacity (File, Import, Labels): tabs between start, end and text of each segment."""
        return "".join(f"{part.start_s:.3f}\t{part.end_s:.3f}\t{part.text}\n" for part in self.segments)

    def to_tsv(self) -> str:
        """A table of the segments, as Whisper writes it: tabs between start, end (whole milliseconds) and text."""
        rows = (f"{milliseconds(x.start_s)}\t{milliseconds(x.end_s)}\t{x.text}\n" for x in self.segments)
        return "start\tend\ttext\n" + "".join(rows)

    def to_ctm(self, name: str) -> str:
        """NIST's time-marked words for scoring tools: file, channel, start, duration, word, confidence.

        name: of the recording. Spaces in it become underscores, because spaces part the columns.
        """
        name = "_".join(name.split())
        return "".join(
            # The difference of two rounded times, not a rounded difference: words that touch do not come to overlap.
            f"{name} 1 {_seconds(start)} {_seconds(milliseconds(word.end_s) - start)} {word.text} {word.confidence:.3f}\n"
            for word in self.words
            for start in (milliseconds(word.start_s),)
        )

    def to_textgrid(self) -> str:
        """A Praat TextGrid (long form): an interval tier "words" over all of the audio, with empty intervals between.

        An interval lasts a millisecond at least and none overlap, as Praat demands: words that do so are moved on.
        """
        intervals: list[tuple[int, int, str]] = []
        now = 0
        for word in self.words:
            start = max(milliseconds(word.start_s), now)
            end = max(milliseconds(word.end_s), start + 1)
            if start > now:
                intervals.append((now, start, ""))
            intervals.append((start, end, word.text))
            now = end
        duration = max(milliseconds(self.duration_s), 1)
        if duration > now:
            intervals.append((now, duration, ""))
            now = duration
        lines = [
            'File type = "ooTextFile"',
            'Object class = "TextGrid"',
            "",
            "xmin = 0",
            f"xmax = {_seconds(now)}",
            "tiers? <exists>",
            "size = 1",
            "item []:",
            "    item [1]:",
            '        class = "IntervalTier"',
            '        name = "words"',
            "        xmin = 0",
            f"        xmax = {_seconds(now)}",
            f"        intervals: size = {len(intervals)}",
        ]
        for number, (start, end, text) in enumerate(intervals, 1):
            lines += [
                f"        intervals [{number}]:",
                f"            xmin = {_seconds(start)}",
                f"            xmax = {_seconds(end)}",
                '            text = "{}"'.format(text.replace('"', '""')),
            ]
        return "\n".join(lines) + "\n"


# Format -> what writes it; the second argument is the recording's name in CTM, its path in JSON lines.
WRITERS: dict[str, Callable[[Transcript, str], str]] = {
    "txt": lambda transcript, _: transcript.to_txt(),
    "json": lambda transcript, _: transcript.to_json(),
    "jsonl": Transcript.to_jsonl,
    "srt": lambda transcript, _: transcript.to_srt(),
    "vtt": lambda transcript, _: transcript.to_vtt(),
    "tsv": lambda transcript, _: transcript.to_tsv(),
    "csv": lambda transcript, _: transcript.to_csv(),
    "audacity": lambda transcript, _: transcript.to_audacity(),
    "ctm": Transcript.to_ctm,
    "textgrid": lambda transcript, _: transcript.to_textgrid(),
}
SUFFIXES = {name: f".{name}" for name in WRITERS} | {"textgrid": ".TextGrid", "audacity": ".labels.txt"}


def segments(words: Sequence[Word], max_gap_s: float = 0.8) -> tuple[Segment, ...]:
    """Words in order of time, divided where the gap between two reaches max_gap_s."""
    # In milliseconds, because 1.2 - 0.4 < 0.8.
    cuts = [
        i
        for i, (a, b) in enumerate(pairwise(words), 1)
        if milliseconds(b.start_s) - milliseconds(a.end_s) >= milliseconds(max_gap_s)
    ]
    parts = (tuple(words[i:j]) for i, j in pairwise([0, *cuts, len(words)]) if i < j)
    return tuple(Segment(" ".join(x.text for x in part), part[0].start_s, part[-1].end_s, part) for part in parts)


def words_of(
    token_spans: Iterable[tuple[int, Span]], tokens: Tokens, frame_shift_s: float, offset_s: float = 0.0
) -> tuple[Word, ...]:
    """Token ids, each with its frames, as timed words; a space ends a word, and any number of them makes none.

    A word lasts from the start of its first piece to the end of its last, a piece being a character or several. Its
    confidence is the lowest of its pieces' scores, not their mean: one wrong piece makes a wrong word, and in a long word a
    mean hides it.

    token_spans:   (token id, Span) in order of time, as of zip(token_ids, asr.decoding.align.align(log_probs, token_ids)).
    frame_shift_s: seconds from one frame to the next.
    offset_s:      seconds at which frame 0 starts.
    """
    pairs = [pair for pair in token_spans if pair[0] != BLANK]
    words = []
    for indices in tokens.words(token_id for token_id, _ in pairs):
        text = "".join(tokens.symbols[pairs[index][0]] for index in indices).lstrip()
        spans = [pairs[index][1] for index in indices]
        start_s, end_s = (offset_s + frame * frame_shift_s for frame in (spans[0].start, spans[-1].end))
        words.append(Word(text, start_s, end_s, min(span.score for span in spans)))
    return tuple(words)


def sounded_out(words: Sequence[Word], end_s: float) -> tuple[Word, ...]:
    """The words with ends that reach beyond the frames of their last letters, up to the next word or end_s."""
    pairs = zip(words, [*(word.start_s for word in words[1:]), end_s], strict=False)  # of no words, no pairs
    return tuple(replace(word, end_s=min(word.end_s + _LETTER_S, limit)) for word, limit in pairs)


def _times(part: Word | Segment) -> dict[str, str | float]:
    return {"text": part.text, "start_s": round(float(part.start_s), 3), "end_s": round(float(part.end_s), 3)}


def _choices(part: Alternatives) -> dict[str, object]:
    texts = [{"text": text, "score": round(score, 3)} for text, score in part.texts]
    return {"start_s": round(part.start_s, 3), "end_s": round(part.end_s, 3), "texts": texts}


def _rows(rows: Iterable[object]) -> str:
    """A JSON list, one item a line."""
    lines = ",\n".join(f"    {_json(row)}" for row in rows)
    return f"[\n{lines}\n  ]" if lines else "[]"


def _seconds(time_ms: int) -> str:
    """Milliseconds as seconds with three decimals."""
    return f"{time_ms // 1000}.{time_ms % 1000:03}"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
