"""What was said and when: Transcript and Word, and their file formats."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from asr.ctc import Span
from asr.errors import AsrError
from asr.tokens import BLANK, Tokens


class OutputError(AsrError):
    """An output file that cannot be written, or must not be replaced."""


@dataclass(frozen=True, slots=True)
class Word:
    """One word. start_s, end_s: seconds from the start of the audio; confidence: 0 to 1, that of its weakest token."""

    text: str
    start_s: float
    end_s: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Transcript:
    """The text of one utterance or file. duration_s: seconds of audio; model: the name of the model that wrote it."""

    text: str
    words: tuple[Word, ...]
    duration_s: float
    model: str

    def to_txt(self) -> str:
        """The text and a line end; nothing said is an empty line."""
        return self.text + "\n"

    def to_json(self) -> str:
        """One JSON object, one word a line; seconds and confidences are rounded to 3 decimals.

        {
          "text": "hello there",
          "duration_s": 2.41,
          "model": "digits",
          "words": [
            {"text": "hello", "start_s": 0.12, "end_s": 0.48, "confidence": 0.981},
            {"text": "there", "start_s": 0.56, "end_s": 0.92, "confidence": 0.97}
          ]
        }
        """
        head = {"text": self.text, "duration_s": round(float(self.duration_s), 3), "model": self.model}
        lines = [f"  {_json(key)}: {_json(value)}," for key, value in head.items()]
        words = ",\n".join(f"    {_json(_row(word))}" for word in self.words)
        lines.append(f'  "words": [\n{words}\n  ]' if words else '  "words": []')
        return "\n".join(["{", *lines, "}", ""])


WRITERS: dict[str, Callable[[Transcript], str]] = {"txt": Transcript.to_txt, "json": Transcript.to_json}


def words_of(
    token_spans: Iterable[tuple[int, Span]], tokens: Tokens, frame_shift_s: float, offset_s: float = 0.0
) -> tuple[Word, ...]:
    """Token ids, each with its frames, as timed words; a space ends a word, and any number of them makes none.

    A word lasts from the start of its first character to the end of its last. Its confidence is the lowest of its
    characters' scores, not their mean: one wrong character makes a wrong word, and in a long word a mean hides it.

    token_spans:   (token id, Span) in order of time, as of zip(token_ids, asr.ctc.align(log_probs, token_ids)).
    frame_shift_s: seconds from one frame to the next.
    offset_s:      seconds at which frame 0 starts.
    """
    words: list[Word] = []
    characters: list[tuple[str, Span]] = []

    def close() -> None:
        if characters:
            text = "".join(character for character, _ in characters)
            start, end = characters[0][1].start, characters[-1][1].end
            confidence = min(span.score for _, span in characters)
            words.append(Word(text, offset_s + start * frame_shift_s, offset_s + end * frame_shift_s, confidence))
            characters.clear()

    for token_id, span in token_spans:
        character = tokens.symbols[token_id]
        if character == " ":
            close()
        elif token_id != BLANK:
            characters.append((character, span))
    close()
    return tuple(words)


def write(path: str | Path, text: str, overwrite: bool = False) -> None:
    """Write an output file as UTF-8, whole or not at all: after a crash or on a full disk there is no partial file.

    raises: OutputError if the file exists and overwrite is not set, is not a plain file, or cannot be written.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # replacing /dev/null would do harm
            raise OutputError(f"{path}: expected the name of a file to write, got a folder or device")
        if path.exists() and not overwrite:
            raise OutputError(f"{path}: the file exists already; remove it, or ask to overwrite it")
        # In the same folder, because a rename is atomic only within one file system; a random name, because two writers
        # of one output must not share it; opened as any file is, for the usual permissions.
        temporary = path.with_name(f".{secrets.token_hex(8)}.part")
        try:
            with temporary.open("xb") as file:
                file.write(text.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())  # the data before the name, or a power cut can leave an empty file
            temporary.replace(path)
        except BaseException:  # the user's Ctrl-C too
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}; check the folder and its free space") from None


def _row(word: Word) -> dict[str, str | float]:
    return {
        "text": word.text,
        "start_s": round(float(word.start_s), 3),
        "end_s": round(float(word.end_s), 3),
        "confidence": round(float(word.confidence), 3),
    }


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
