"""Tables with a header -> manifests: CSV as of DeepSpeech, tabs as of Common Voice."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path

from asr.corpus.entries import Corpus, Entry, InterchangeError, lines
from asr.manifest import Skipped

# (audio, text, speaker) columns, of DeepSpeech and of Common Voice
_COLUMNS = (("wav_filename", "transcript", "speaker"), ("path", "sentence", "client_id"))


def read(
    path: str | Path, audio_column: str | None = None, text_column: str | None = None, speaker_column: str | None = None
) -> Corpus:
    """A table with a header, commas or tabs between its columns, such as DeepSpeech's and Common Voice's.

    Names of audio are relative to the table's folder; in Common Voice's, to clips/ within it. The columns that are not
    named are those of these two. raises: InterchangeError if a column is missing, or the table cannot be read.
    """
    path = Path(path)
    numbered = lines(path)
    where, head = next(numbered, (f"{path}:1", ""))
    rows = _split(numbered, "\t" in head, path)
    header = [name.strip() for name in next(_split(iter([(where, head)]), "\t" in head, path), ("", []))[1]]
    known = next((names for names in _COLUMNS if set(names[:2]) <= set(header)), (None, None, None))
    wanted = [chosen or usual for chosen, usual in zip((audio_column, text_column, speaker_column), known, strict=True)]
    if speaker_column is None and wanted[2] not in header:
        wanted[2] = None
    if None in wanted[:2] or not set(wanted) <= {*header, None}:
        expected = ", ".join(filter(None, wanted)) or " or ".join(", ".join(names[:2]) for names in _COLUMNS)
        raise InterchangeError(
            f"{where}: expected the columns {expected}, got {', '.join(header)[:300] or 'none'}; "
            "name yours: --audio-column NAME --text-column NAME"
        )
    at = [None if name is None else header.index(name) for name in wanted]
    folder = path.parent
    if wanted[:2] == list(_COLUMNS[1][:2]) and (folder / "clips").is_dir():
        folder /= "clips"
    corpus = Corpus()
    for where, row in rows:
        key = where.removeprefix(f"{path.parent}{os.sep}")
        if row in ([], [""]):
            continue
        values = [None if i is None or i >= len(row) else row[i] for i in at]
        if len(row) > len(header) or values[0] is None or values[1] is None:
            reason = f"expected {len(header)} columns, got {len(row)}; a text with a separator in it needs quotes"
            corpus.skipped.append(Skipped(key, reason))
        elif not values[0].strip():
            corpus.skipped.append(Skipped(key, "it names no audio"))
        else:
            corpus.entries.append(
                Entry(key, folder / values[0].strip(), values[1].strip(), (values[2] or "").strip() or None)
            )
    return corpus


def _split(lines: Iterator[tuple[str, str]], tabs: bool, path: Path) -> Iterator[tuple[str, list[str]]]:
    """(where, fields) of each row of a table."""
    if tabs:
        # Common Voice has quotes around some fields that hold quotes, but not around those that begin with one.
        for where, line in lines:
            fields = line.rstrip("\r\n").split("\t")
            quoted = [re.fullmatch(r'\s*"((?:[^"]|"")*)"\s*', text) for text in fields]
            yield where, [q[1].replace('""', '"') if q else f for q, f in zip(quoted, fields, strict=True)]
        return
    place = [f"{path}:1"]

    def remembered() -> Iterator[str]:
        for place[0], line in lines:
            yield line

    try:
        for row in csv.reader(remembered(), strict=True):
            yield place[0], row
    except csv.Error as error:
        raise InterchangeError(
            f"{place[0]}: expected fields with commas between them and quotes closed, got: {error}"
        ) from None
