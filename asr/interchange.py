"""Manifests of other toolkits <-> ours: Kaldi's data folders, Lhotse's JSON lines; from CSV as of Common Voice.

A reader tells what the files say, as entries; `probe` looks at the audio, all files at once; `fit` makes utterances of
both. What cannot be used is listed with its reason, and nothing that a corpus names is ever executed.

source: https://kaldi-asr.org/doc/data_prep.html; https://lhotse.readthedocs.io, for which Lhotse need not be installed.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import math
import os
import re
import shlex
import zlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from asr import audio, threads
from asr.errors import AsrError
from asr.manifest import Skipped, Utterance

if TYPE_CHECKING:
    from rich.progress import Progress

MAX_OVERSHOOT_S = 0.5  # so far an utterance may reach beyond its audio and is cut to it: as Kaldi's extract-segments
KALDI_FILES = ("wav.scp", "segments", "text", "utt2spk", "spk2utt", "utt2dur", "reco2dur")
_MAX_LINE = 1 << 26  # bytes; the alignment of a long recording takes some MB
_MAX_EXPANSION = 200  # of compressed files; real ones stay below 50, zeros reach 1000
_SLACK = 1 << 20  # bytes that a file may hold whatever its compressed size
# (audio, text, speaker) columns, of DeepSpeech and of Common Voice
_COLUMNS = (("wav_filename", "transcript", "speaker"), ("path", "sentence", "client_id"))
# Programs in wav.scp that may only decode one file -> options that change no more than that, with the values they may have.
_DECODERS: dict[str, dict[str, str | None]] = {
    "cat": {},
    "flac": dict.fromkeys(["-c", "-d", "-s", "-cd", "-dc", "-cds", "-dcs", "-sdc", "--stdout", "--decode", "--silent"]),
    "sph2pipe": {"-f": "wav|rif", "-p": None},
    "sox": {"-t": "wav|wavpcm|sph|flac|mp3", "-r": r"[\d.]+k?", "-b": "16", "-e": "signed.*", "-c": "1", "-": None},
    "ffmpeg": {
        **dict.fromkeys(["-i", "-nostdin", "-hide_banner", "-", "pipe:1"]),
        **{"-v": r"\w+", "-loglevel": r"\w+", "-threads": r"\d+", "-f": "wav", "-ar": r"\d+", "-ac": "1"},
        **{"-acodec": "pcm_s16le", "-c:a": "pcm_s16le", "-map_channel": r"0\.0\.0"},
    },
}
_Key = TypeVar("_Key", bound=Hashable)
_CUTS = ("MonoCut", "MultiCut", "MixedCut", "PaddingCut", "Cut")


class InterchangeError(AsrError):
    """A manifest of another toolkit that is missing or malformed; the message names file and line."""


class _UnusableError(Exception):
    """Why an utterance is skipped."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a corpus says of an utterance, before its audio was looked at.

    offset_s, duration_s: seconds; duration_s None: to the end of the file.
    channels: how many the file must have, where the corpus means certain ones of it; None: all are averaged, as ever.
    """

    id: str
    audio: Path
    text: str
    speaker: str | None = None
    offset_s: float = 0.0
    duration_s: float | None = None
    channels: int | None = None


@dataclass
class Corpus:
    """What a reader found. untranscribed: recordings or cuts that hold no utterance, which is no fault."""

    entries: list[Entry] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    untranscribed: int = 0


def probe(paths: Iterable[Path], progress: Progress | None = None) -> dict[Path, audio.AudioInfo | AsrError]:
    """What the header of each audio file says, or why it cannot be read; several at a time.

    progress: a Rich progress display to add a bar to.
    """
    files = list(dict.fromkeys(paths))
    return dict(zip(files, threads.each(_info, files, progress, "looking at audio"), strict=True))


def fit(
    entries: Iterable[Entry], infos: dict[Path, audio.AudioInfo | AsrError]
) -> tuple[list[Utterance], list[Skipped]]:
    """The utterances whose audio is there, cut to it where they reach up to MAX_OVERSHOOT_S beyond it; and the others."""
    utterances: list[Utterance] = []
    skipped: list[Skipped] = []
    for entry in entries:
        fitted = _fitted(entry, infos[entry.audio])
        if isinstance(fitted, str):
            skipped.append(Skipped(entry.id, fitted))
        else:
            utterances.append(fitted)
    return utterances, skipped


# --- Kaldi ---


def read_kaldi(folder: str | Path, root: str | Path = ".") -> Corpus:
    """A Kaldi data folder: wav.scp and text; segments and utt2spk where it has them.

    root: the folder that relative names in wav.scp start from; Kaldi's is the one its scripts run in.
    A speaker named as the utterance is Kaldi's way to say that none is known. Of audio with several channels, Kaldi takes
    the first: such a file is skipped, not averaged. Pipes are never executed; one that does no more than decode a file
    ("flac -cds a.flac |") stands for that file, any other is skipped.
    raises: InterchangeError if wav.scp or text is missing, or any of the four is malformed.
    """
    folder = Path(folder)
    recordings, texts = _table(folder / "wav.scp"), _table(folder / "text")
    optional = [_table(folder / name) if (folder / name).exists() else None for name in ("segments", "utt2spk")]
    segments, speakers = optional[0], optional[1] or {}
    corpus = Corpus()
    for key, text in texts.items():
        try:
            if segments is None:
                recording, start_s, end_s = key, 0.0, -1.0
            elif key in segments:
                recording, start_s, end_s = _segment(segments[key], f"{folder / 'segments'}: {key}")
            else:
                raise _UnusableError("it has a text, but no line in segments")
            if recording not in recordings:
                raise _UnusableError(f"it has a text, but wav.scp has no line for {recording}")
            path, channels = _kaldi_source(recordings[recording])
        except _UnusableError as error:
            corpus.skipped.append(Skipped(key, str(error)))
            continue
        speaker = speakers.get(key)
        known = None if speaker == key else speaker
        duration_s = None if end_s == -1 else end_s - start_s
        corpus.entries.append(Entry(key, Path(root) / path, text, known, start_s, duration_s, channels))
    for key in recordings if segments is None else segments:
        if key not in texts:
            corpus.skipped.append(Skipped(key, "it has no line in text"))
    if segments is not None:
        corpus.untranscribed = len(recordings.keys() - {line.split()[0] for line in segments.values()})
    return corpus


def kaldi_files(utterances: Sequence[Utterance], infos: dict[Path, audio.AudioInfo | AsrError]) -> dict[str, str]:
    """A Kaldi data folder as file name -> content, for each of KALDI_FILES.

    infos: what `probe` found of their audio. Ids are speaker-file-start-end, sorted as in the C locale, by utterance and at
    once by speaker, which Kaldi insists on; without whitespace. Whitespace within texts is single spaces. Kaldi itself
    reads mono wav files of 16 bits; any other gets a pipe through ffmpeg.
    raises: InterchangeError if a file's name has a line end in it.
    """
    names = _unique({utterance.audio: utterance.audio.stem for utterance in utterances})
    speakers = _unique({u.speaker: u.speaker for u in utterances if u.speaker})
    rows = _kaldi_rows(utterances, names, speakers)
    if any(first[1] > second[1] for first, second in pairwise(rows)):
        # Speakers a and a-b: a-b-1 sorts before a-x, yet a before a-b. So nothing up to the hyphen within a name.
        low = dict.fromkeys(range(ord("-") + 1), "_")
        names = _unique({path: name.translate(low) for path, name in names.items()})
        speakers = _unique({speaker: name.translate(low) for speaker, name in speakers.items()})
        rows = _kaldi_rows(utterances, names, speakers, "_")
    tables: dict[str, list[str]] = defaultdict(list)
    spoken: dict[str, list[str]] = defaultdict(list)
    for key, speaker, utterance in rows:
        end_s = utterance.offset_s + utterance.duration_s
        tables["segments"].append(f"{key} {names[utterance.audio]} {_seconds(utterance.offset_s)} {_seconds(end_s)}")
        tables["text"].append(f"{key} {' '.join(utterance.text.split())}".rstrip())
        tables["utt2spk"].append(f"{key} {speaker}")
        tables["utt2dur"].append(f"{key} {_seconds(utterance.duration_s)}")
        spoken[speaker].append(key)
    tables["spk2utt"] = [f"{speaker} {' '.join(keys)}" for speaker, keys in spoken.items()]
    for path, name in sorted(names.items(), key=lambda item: item[1]):
        info = infos[path]
        assert isinstance(info, audio.AudioInfo)
        tables["wav.scp"].append(f"{name} {_kaldi_wav(path, info)}")
        tables["reco2dur"].append(f"{name} {_seconds(info.duration_s)}")
    return {name: "".join(f"{line}\n" for line in tables[name]) for name in KALDI_FILES}


def _segment(line: str, where: str) -> tuple[str, float, float]:
    """Recording, start and end in seconds (-1: its end) of a line of segments, less its key."""
    recording, *rest = line.split()
    try:
        start_s, end_s = map(float, rest[:2])
    except ValueError:
        raise InterchangeError(f"{where}: expected a recording, start and end in seconds, got {line[:60]!r}") from None
    if rest[2:] not in ([], ["0"]):
        raise _UnusableError(
            f"expected the first channel, got channel {' '.join(rest[2:])}; save it as a file of its own"
        )
    return recording, start_s, end_s


def _kaldi_source(source: str) -> tuple[str, int | None]:
    """The file that an entry of wav.scp stands for, and how many channels it must have. raises: _UnusableError."""
    if not source.endswith("|"):
        if re.search(r":\d+$", source):
            raise _UnusableError(
                f"expected an audio file, got a place in an archive, {source}; copy it out with wav-copy"
            )
        return source, 1
    refusal = _UnusableError(
        f"expected an audio file, got a pipe, which is never executed: {source[:200]}; convert it to a file first"
    )
    try:
        program, *words = shlex.split(source[:-1])
    except ValueError:
        raise refusal from None
    if Path(program).name not in _DECODERS:
        raise refusal
    options = _DECODERS[Path(program).name]
    files = []
    mixed = False
    rest = iter(words)
    for word in rest:
        if word in options:
            value = options[word]
            if value is not None and not re.fullmatch(value, next(rest, "")):
                raise refusal
            mixed = mixed or (word in ("-ac", "-c") and value == "1")
        elif word.startswith("-"):
            raise refusal
        else:
            files.append(word)
    if len(files) != 1:
        raise refusal
    return files[0], None if mixed else 1


def _kaldi_wav(path: Path, info: audio.AudioInfo) -> str:
    name = os.path.abspath(path)  # noqa: PTH100 (not resolve: a link keeps its name)
    if "\n" in name or "\r" in name:
        raise InterchangeError(
            f"{name!r}: expected a name without line ends, which wav.scp has no way to write; rename it"
        )
    # The pattern: what Kaldi would take for a command or a place in an archive goes through the shell's quotes.
    if info.channels == 1 and info.format in ("WAV/PCM_16", "WAVEX/PCM_16") and re.fullmatch(r"\S.*[^\s|:\d]", name):
        return name
    return f"ffmpeg -nostdin -v error -i {shlex.quote(name)} -ac 1 -c:a pcm_s16le -f wav - |"


def _kaldi_rows(
    utterances: Sequence[Utterance], names: dict[Path, str], speakers: dict[str, str], hyphen: str = "-"
) -> list[tuple[str, str, Utterance]]:
    """(id, speaker, utterance) of each, sorted by id. hyphen: within an id, but not between its speaker and the rest."""
    count: dict[Path, int] = defaultdict(int)
    for utterance in utterances:
        count[utterance.audio] += 1
    keys = {}
    for number, utterance in enumerate(utterances):
        key = names[utterance.audio]
        if utterance.offset_s or count[utterance.audio] > 1:
            start_s, end_s = utterance.offset_s, utterance.offset_s + utterance.duration_s
            key += "".join(f"{hyphen}{round(100 * time_s):07d}" for time_s in (start_s, end_s))
        keys[number] = f"{speakers[utterance.speaker]}-{key}" if utterance.speaker else key
    rows = []
    for number, key in _unique(keys).items():
        speaker = utterances[number].speaker
        rows.append((key, speakers[speaker] if speaker else key, utterances[number]))
    return sorted(rows, key=lambda row: row[0])  # by code point, which is the C locale's order of UTF-8


# --- Lhotse ---


def read_lhotse(paths: Iterable[str | Path], root: str | Path = ".") -> Corpus:
    """Lhotse's JSON lines (.jsonl, .jsonl.gz): cuts, or recordings and supervisions, in any number of files and any order.

    root: the folder that relative names of audio start from. Each supervision is an utterance. Skipped with a reason:
    audio that is no file, augmentation other than resampling, mixed cuts, a supervision without text, or of some but
    not all channels of a file.
    raises: InterchangeError naming file and line of what is missing, malformed, damaged, or beyond all measure.
    """
    corpus = Corpus()
    recordings: dict[str, tuple[dict[str, Any], str]] = {}
    supervisions: list[tuple[dict[str, Any], str]] = []
    for path in map(Path, paths):
        for where, line in _lines(path):
            if not line.strip():
                continue
            row = _json(line, where)
            if "sources" in row:
                key = _text(row, "id", where)
                if recordings.setdefault(key, (row, where))[0] != row:
                    raise InterchangeError(f"{where}: recording {key} is another in {recordings[key][1]}; keep one")
            elif "recording_id" in row:
                supervisions.append((row, where))
            elif row.keys() & {"supervisions", "tracks", "recording"} or row.get("type") in _CUTS:
                _read_cut(row, where, Path(root), corpus)
            else:
                raise InterchangeError(
                    f"{where}: expected a cut, recording or supervision of Lhotse, got the keys {', '.join(row)[:200]}"
                )
    used = set()
    for row, where in supervisions:
        key = _text(row, "recording_id", where)
        used.add(key)
        recording = recordings[key][0] if key in recordings else None
        _add_supervision(corpus, row, where, recording, 0.0, Path(root))
    corpus.untranscribed += len(recordings.keys() - used)
    return corpus


def lhotse_cuts(utterances: Sequence[Utterance], infos: dict[Path, audio.AudioInfo | AsrError]) -> str:
    """A cut of Lhotse for each utterance, as JSON lines. infos: what `probe` found of their audio."""
    files = {utterance.audio: utterance.audio.stem for utterance in utterances}
    names = _unique(files)
    keys = _unique({number: utterance.id for number, utterance in enumerate(utterances)})
    lines = []
    for number, utterance in enumerate(utterances):
        info, name = infos[utterance.audio], names[utterance.audio]
        assert isinstance(info, audio.AudioInfo)
        channels = list(range(info.channels))
        source = {"type": "file", "channels": channels, "source": os.path.abspath(utterance.audio)}  # noqa: PTH100
        samples = round(info.duration_s * info.sample_rate)
        span = {
            "duration": round(utterance.duration_s, 6),
            "channel": channels if len(channels) > 1 else 0,
        }
        supervision: dict[str, Any] = {"id": keys[number], "recording_id": name, "start": 0.0, **span}
        supervision["text"] = utterance.text
        if utterance.speaker is not None:
            supervision["speaker"] = utterance.speaker
        cut = {
            "id": keys[number],
            "start": round(utterance.offset_s, 6),
            **span,
            "supervisions": [supervision],
            "recording": {
                "id": name,
                "sources": [source],
                "sampling_rate": info.sample_rate,
                "num_samples": samples,
                "duration": samples / info.sample_rate,
                "channel_ids": channels,
            },
            "type": "MultiCut" if len(channels) > 1 else "MonoCut",
        }
        lines.append(json.dumps(cut, ensure_ascii=False) + "\n")
    return "".join(lines)


def _read_cut(row: dict[str, Any], where: str, root: Path, corpus: Corpus) -> None:
    kind = row.get("type", "MonoCut")
    supervisions = row.get("supervisions") or []
    if kind == "PaddingCut" or (kind != "MixedCut" and not supervisions):
        corpus.untranscribed += 1
    elif kind not in ("MonoCut", "MultiCut", "Cut"):
        corpus.skipped.append(
            Skipped(_text(row, "id", where), f"expected a MonoCut or MultiCut, got a {kind}; save its audio first")
        )
    else:
        if not isinstance(supervisions, list) or not all(isinstance(each, dict) for each in supervisions):
            raise InterchangeError(f"{where}: expected 'supervisions' to be a list of objects")
        for supervision in supervisions:
            _add_supervision(corpus, supervision, where, row.get("recording"), _number(row, "start", where), root)


def _add_supervision(
    corpus: Corpus, row: dict[str, Any], where: str, recording: object, start_s: float, root: Path
) -> None:
    """Append an entry or a skipped one. start_s: of the cut within the recording."""
    key = _text(row, "id", where)
    try:
        if row.get("text") is None:
            raise _UnusableError("it has no text")
        if recording is None:
            raise _UnusableError(f"there is no recording {row.get('recording_id')} that it is of")
        if not isinstance(recording, dict):
            raise InterchangeError(f"{where}: expected 'recording' to be an object, got {str(recording)[:60]}")
        channel = row.get("channel", 0)
        channels = set(map(str, channel if isinstance(channel, list) else [channel]))
        corpus.entries.append(
            Entry(
                key,
                root / _lhotse_source(recording, channels, where),
                _text(row, "text", where),
                None if row.get("speaker") is None else _text(row, "speaker", where),
                start_s + _number(row, "start", where),
                _number(row, "duration", where),
                len(channels),
            )
        )
    except _UnusableError as error:
        corpus.skipped.append(Skipped(key, str(error)))


def _lhotse_source(recording: dict[str, Any], channels: set[str], where: str) -> str:
    """The file that holds these channels and no others. raises: _UnusableError if there is none."""
    transforms = recording.get("transforms") or []
    for transform in transforms if isinstance(transforms, list) else [transforms]:
        name = transform.get("name") if isinstance(transform, dict) else transform
        if name != "Resample":  # which comes with reading
            raise _UnusableError(
                f"expected a recording as it is, got one with the transform {str(name)[:60]}; save its audio first"
            )
    sources = recording.get("sources")
    if not isinstance(sources, list) or not all(isinstance(source, dict) for source in sources):
        raise InterchangeError(f"{where}: expected 'sources' to be a list of objects")
    for source in sources:
        held = source.get("channels")
        if not isinstance(held, list):
            raise InterchangeError(f"{where}: expected a source's 'channels' to be a list, got {str(held)[:60]}")
        if set(map(str, held)) == channels:
            if source.get("type") != "file":
                raise _UnusableError(f"expected a source of type file, got {source.get('type')}; save its audio first")
            return _text(source, "source", where)
    raise _UnusableError(
        f"expected a file of channel {', '.join(sorted(channels))} and no other, got files of the channels "
        f"{' and '.join(str(source['channels'])[:60] for source in sources)}; save the channel as a file of its own"
    )


def _json(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise InterchangeError(
            f"{where}: expected a JSON object a line, got {line.strip()[:60]!r}; of Lhotse's other formats: "
            "lhotse copy OLD NEW.jsonl.gz"
        )
    return row


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise InterchangeError(f"{where}: expected '{key}' to be text, got {str(value)[:60]}")
    return str(value)


def _number(row: dict[str, Any], key: str, where: str) -> float:
    value = row.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise InterchangeError(f"{where}: expected '{key}' to be seconds, got {str(value)[:60]}")
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf


# --- CSV ---


def read_csv(
    path: str | Path, audio_column: str | None = None, text_column: str | None = None, speaker_column: str | None = None
) -> Corpus:
    """A table with a header, commas or tabs between its columns, such as DeepSpeech's and Common Voice's.

    Names of audio are relative to the table's folder; in Common Voice's, to clips/ within it. The columns that are not
    named are those of these two. raises: InterchangeError if a column is missing, or the table cannot be read.
    """
    path = Path(path)
    lines = _lines(path)
    where, head = next(lines, (f"{path}:1", ""))
    rows = _split(lines, "\t" in head, path)
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


# --- what all formats share ---


def _info(path: Path) -> audio.AudioInfo | AsrError:
    try:
        return audio.info(path)
    except AsrError as error:
        return error


def _fitted(entry: Entry, info: audio.AudioInfo | AsrError) -> Utterance | str:
    """The utterance, or why there is none."""
    if isinstance(info, AsrError):
        return str(info)
    try:
        "\n".join((entry.text, entry.speaker or "", str(entry.audio))).encode("utf-8")
    except UnicodeEncodeError as error:
        return f"expected Unicode text, got half a surrogate pair or a name that is no text: {error.object[:60]!a}"
    if entry.channels is not None and entry.channels != info.channels:
        return (
            f"{entry.audio}: expected {entry.channels} channels, as the corpus has it, got {info.channels}, which would be "
            "mixed; save the channel as a file of its own"
        )
    asked_s = info.duration_s - entry.offset_s if entry.duration_s is None else entry.duration_s
    start_s = max(0.0, entry.offset_s)
    duration_s = min(asked_s, info.duration_s - start_s, entry.offset_s + asked_s)
    if not (math.isfinite(entry.offset_s) and 0 < duration_s >= asked_s - MAX_OVERSHOOT_S):
        return (
            f"{entry.audio}: expected an utterance within its {info.duration_s:.2f} s, got one "
            f"from {entry.offset_s:.2f} s to {entry.offset_s + asked_s:.2f} s"
        )
    return Utterance(entry.audio, round(duration_s, 6), entry.text, round(start_s, 6), entry.speaker)


def _table(path: Path) -> dict[str, str]:
    """A file of Kaldi's: 'key value...' lines."""
    table: dict[str, str] = {}
    for where, line in _lines(path):
        key, *value = re.split(r"[ \t]+", line.strip(" \t\r\n"), maxsplit=1)
        if not key:
            continue
        if key in table:
            raise InterchangeError(f"{where}: {key} is listed twice; keep one")
        if not value and path.name != "text":
            raise InterchangeError(f"{where}: expected '{key}' and a value, got nothing after it")
        table[key] = value[0] if value else ""
    if not table:
        raise InterchangeError(f"{path}: expected a line for each utterance or recording, got an empty file")
    return table


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """('file:line', text) of each line of a file that may be compressed (gzip), line ends kept."""
    number = size = 0
    try:
        with path.open("rb") as raw:
            packed = raw.peek(2)[:2] == b"\x1f\x8b"
            limit = _MAX_EXPANSION * path.stat().st_size + _SLACK if packed else math.inf
            file: IO[bytes] = gzip.GzipFile(fileobj=raw) if packed else raw  # type: ignore[assignment]
            while line := file.readline(_MAX_LINE + 1):
                number += 1
                size += len(line)
                if len(line) > _MAX_LINE:
                    raise InterchangeError(
                        f"{path}:{number}: expected lines of at most {_MAX_LINE} bytes, got a longer one"
                    )
                if size > limit:
                    raise InterchangeError(
                        f"{path}:{number}: expected a file of text, got one that unpacks to more than {_MAX_EXPANSION} "
                        "times its size; unpack it with gunzip if you trust it"
                    )
                yield f"{path}:{number}", line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode()
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InterchangeError(f"{path}:{number}: expected UTF-8, got byte 0x{byte:02x}; save it as UTF-8") from None
    except FileNotFoundError:
        raise InterchangeError(f"{path}: no such file; check the path") from None
    except (EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise InterchangeError(f"{path}: cannot be read: {error.strerror}; check the path and its mode") from None
        raise InterchangeError(f"{path}: damaged or cut short after line {number}: {error}; copy it again") from None


def _unique(wanted: dict[_Key, str]) -> dict[_Key, str]:
    """Names without whitespace and control characters; where some would be the same, the later ones get a number."""
    names: dict[_Key, str] = {}
    taken: set[str] = set()
    for key, name in wanted.items():
        stem = candidate = re.sub(r"[\s\x00-\x1f\x7f]+", "_", name)
        number = 1
        while candidate in taken:
            number += 1
            candidate = f"{stem}_{number}"
        taken.add(candidate)
        names[key] = candidate
    return names


def _seconds(value_s: float) -> str:
    return f"{value_s:.6f}".rstrip("0").rstrip(".")
