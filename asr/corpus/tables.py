"""Tables -> manifests: one recording and its text a row, as of DeepSpeech, Common Voice, LJSpeech and Hugging Face."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from asr.audio import SUFFIXES
from asr.corpus.entries import Corpus, Entry, lines
from asr.errors import CorpusError
from asr.manifest import Skipped

# What the columns are called by those who publish corpora, without regard to case.
_AUDIO = (
    "wav_filename",
    "audio_filepath",
    "path",
    "file_name",
    "filename",
    "audio_file",
    "audio_path",
    "audio",
    "file",
    "wav",
)
_TEXT = ("transcript", "sentence", "transcription", "normalized_text", "text")
_SPEAKER = ("speaker", "client_id", "speaker_id", "speaker_name")
_FOLDERS = ("", "clips", "wavs", "wav", "audio")  # beside the table: of Common Voice, of LJSpeech
_SUFFIXES = ("", ".wav", *SUFFIXES)


def read(
    path: str | Path, audio_column: str | None = None, text_column: str | None = None, speaker_column: str | None = None
) -> Corpus:
    """A table with tabs, bars, semicolons or commas between its columns, with a header or without.

    The columns are named, or counted from 1; else found by the names that are usual. Without a header the first column is
    the audio's and the last the text, as of LJSpeech's metadata.csv. Names of audio, with or without suffix, are relative
    to the table's folder, or to clips/, wavs/, wav/ or audio/ within it.
    raises: CorpusError if a column is missing, or the table cannot be read.
    """
    path = Path(path)
    numbered = lines(path)
    where, head = next(numbered, (f"{path}:1", ""))
    separator = _separator(head)
    rows = _split(chain([(where, head)], numbered), separator, path)
    table = list(rows)
    header = [name.strip() for name in table[0][1]] if table else []
    given = (audio_column, text_column, speaker_column)
    at = [_column(header, wanted, usual) for wanted, usual in zip(given, (_AUDIO, _TEXT, _SPEAKER), strict=True)]
    names = [row[at[0] or 0] for _, row in table if len(row) > (at[0] or 0)]
    place = _place(path.parent, names)
    if given[:2] == (None, None) and at[0] is None and len(header) > 1 and place:  # no header
        at[:2] = [0, len(header) - 1]
    elif at[0] is None or at[1] is None or (speaker_column is not None and at[2] is None):
        expected = ", ".join(filter(None, given)) or f"{' or '.join(_AUDIO)}, and {' or '.join(_TEXT)}"
        raise CorpusError(
            f"{where}: expected the columns {expected}, got {', '.join(header)[:300] or 'none'}; "
            "name or count yours: --audio-column NAME --text-column NAME"
        )
    elif not _place(path.parent, names[:1]):  # columns that are counted may have no header
        del table[0]
    folder, suffix = place or (path.parent, "")
    corpus = Corpus()
    for where, row in table:
        key = where.removeprefix(f"{path.parent}{os.sep}")
        if row in ([], [""]):
            continue
        values = [None if i is None or i >= len(row) else row[i].strip() for i in at]
        if len(row) > len(header) or values[0] is None or values[1] is None:
            reason = f"expected {len(header)} columns, got {len(row)}; a text with a separator in it needs quotes"
            corpus.skipped.append(Skipped(key, reason))
        elif not values[0]:
            corpus.skipped.append(Skipped(key, "it names no audio"))
        else:
            corpus.entries.append(Entry(key, folder / f"{values[0]}{suffix}", values[1], values[2] or None))
    return corpus


def _separator(head: str) -> str:
    """What parts the columns: a tab or a bar, which texts do not hold, else a semicolon or comma, whichever comes first."""
    for sure in "\t|":
        if sure in head:
            return sure
    return next((character for character in head if character in ";,"), ",")


def _column(header: Sequence[str], wanted: str | None, usual: Sequence[str]) -> int | None:
    """Where a column is: by its name or number, or by the first of the usual names."""
    if wanted is not None:
        if wanted in header:
            return header.index(wanted)
        return int(wanted) - 1 if wanted.isdecimal() and 0 < int(wanted) <= len(header) else None
    lower = [name.lower() for name in header]
    return next((lower.index(name) for name in usual if name in lower), None)


def _place(folder: Path, names: Sequence[str]) -> tuple[Path, str] | None:
    """The folder that names of audio are relative to, and the suffix that they lack; None if none of them is found."""
    folders = [inner for inner in _FOLDERS if (folder / inner).is_dir()]
    for name in names:
        for inner in folders:
            for suffix in _SUFFIXES if name.strip() else ():
                try:
                    if os.path.isfile(folder / inner / f"{name.strip()}{suffix}"):  # noqa: PTH113 (Path.is_file may raise)
                        return folder / inner, suffix
                except ValueError:  # a null byte
                    break
    return None


def _split(lines: Iterator[tuple[str, str]], separator: str, path: Path) -> Iterator[tuple[str, list[str]]]:
    """(where, fields) of each row of a table."""
    if separator in "\t|":
        # Common Voice has quotes around some fields that hold quotes, but not around those that begin with one; LJSpeech
        # never does.
        for where, line in lines:
            fields = line.rstrip("\r\n").split(separator)
            quoted = [re.fullmatch(r'\s*"((?:[^"]|"")*)"\s*', text) for text in fields]
            yield where, [q[1].replace('""', '"') if q else f for q, f in zip(quoted, fields, strict=True)]
        return
    place = [f"{path}:1"]

    def remember() -> Iterator[str]:
        for place[0], line in lines:
            yield line

    try:
        for row in csv.reader(remember(), strict=True, delimiter=separator):
            yield place[0], row
    except csv.Error as error:
        name = {",": "commas", ";": "semicolons"}[separator]
        raise CorpusError(
            f"{place[0]}: expected fields with {name} between them and quotes closed, got: {error}"
        ) from None
