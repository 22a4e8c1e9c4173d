"""Kaldi's data folders <-> manifests.

source: https://kaldi-asr.org/doc/data_prep.html
"""

from __future__ import annotations

import os
import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from asr import audio
from asr.corpus.entries import Corpus, Entry, UnusableError, lines, seconds, unique_names
from asr.errors import AsrError, CorpusError
from asr.manifest import Skipped, Utterance

FILES = ("wav.scp", "segments", "text", "utt2spk", "spk2utt", "utt2dur", "reco2dur")
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


def read(folder: str | Path, root: str | Path = ".") -> Corpus:
    """A Kaldi data folder: wav.scp and text; segments and utt2spk where it has them.

    root: the folder that relative names in wav.scp start from; Kaldi's is the one its scripts run in.
    A speaker named as the utterance is Kaldi's way to say that none is known. Of audio with several channels, Kaldi takes
    the first: such a file is skipped, not averaged. Pipes are never executed; one that does no more than decode a file
    ("flac -cds a.flac |") stands for that file, any other is skipped.
    raises: CorpusError if wav.scp or text is missing, or any of the four is malformed.
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
                raise UnusableError("it has a text, but no line in segments")
            if recording not in recordings:
                raise UnusableError(f"it has a text, but wav.scp has no line for {recording}")
            path, channels = _source(recordings[recording])
        except UnusableError as error:
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


def files(utterances: Sequence[Utterance], infos: dict[Path, audio.AudioInfo | AsrError]) -> dict[str, str]:
    """A Kaldi data folder as file name -> content, for each of FILES.

    infos: what `probe` found of their audio. Ids are speaker-file-start-end, sorted as in the C locale, by utterance and at
    once by speaker, which Kaldi insists on; without whitespace. Whitespace within texts is single spaces. Kaldi itself
    reads mono wav files of 16 bits; any other gets a pipe through ffmpeg.
    raises: CorpusError if a file's name has a line end in it.
    """
    names = unique_names({utterance.audio: utterance.audio.stem for utterance in utterances})
    speakers = unique_names({u.speaker: u.speaker for u in utterances if u.speaker})
    rows = _rows(utterances, names, speakers)
    if any(first[1] > second[1] for first, second in pairwise(rows)):
        # Speakers a and a-b: a-b-1 sorts before a-x, yet a before a-b. So nothing up to the hyphen within a name.
        low = dict.fromkeys(range(ord("-") + 1), "_")
        names = unique_names({path: name.translate(low) for path, name in names.items()})
        speakers = unique_names({speaker: name.translate(low) for speaker, name in speakers.items()})
        rows = _rows(utterances, names, speakers, "_")
    tables: dict[str, list[str]] = defaultdict(list)
    spoken: dict[str, list[str]] = defaultdict(list)
    for key, speaker, utterance in rows:
        end_s = utterance.offset_s + utterance.duration_s
        tables["segments"].append(f"{key} {names[utterance.audio]} {seconds(utterance.offset_s)} {seconds(end_s)}")
        tables["text"].append(f"{key} {' '.join(utterance.text.split())}".rstrip())
        tables["utt2spk"].append(f"{key} {speaker}")
        tables["utt2dur"].append(f"{key} {seconds(utterance.duration_s)}")
        spoken[speaker].append(key)
    tables["spk2utt"] = [f"{speaker} {' '.join(keys)}" for speaker, keys in spoken.items()]
    for path, name in sorted(names.items(), key=lambda item: item[1]):
        info = infos[path]
        assert isinstance(info, audio.AudioInfo)
        tables["wav.scp"].append(f"{name} {_wav(path, info)}")
        tables["reco2dur"].append(f"{name} {seconds(info.duration_s)}")
    return {name: "".join(f"{line}\n" for line in tables[name]) for name in FILES}


def _segment(line: str, where: str) -> tuple[str, float, float]:
    """Recording, start and end in seconds (-1: its end) of a line of segments, less its key."""
    recording, *rest = line.split()
    try:
        start_s, end_s = map(float, rest[:2])
    except ValueError:
        raise CorpusError(f"{where}: expected a recording, start and end in seconds, got {line[:60]!r}") from None
    if rest[2:] not in ([], ["0"]):
        raise UnusableError(
            f"expected the first channel, got channel {' '.join(rest[2:])}; save it as a file of its own"
        )
    return recording, start_s, end_s


def _source(source: str) -> tuple[str, int | None]:
    """The file that an entry of wav.scp stands for, and how many channels it must have. raises: UnusableError."""
    if not source.endswith("|"):
        if re.search(r":\d+$", source):
            raise UnusableError(
                f"expected an audio file, got a place in an archive, {source}; copy it out with wav-copy"
            )
        return source, 1
    refusal = UnusableError(
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


def _wav(path: Path, info: audio.AudioInfo) -> str:
    name = os.path.abspath(path)  # noqa: PTH100 (not resolve: a link keeps its name)
    if "\n" in name or "\r" in name:
        raise CorpusError(f"{name!r}: expected a name without line ends, which wav.scp has no way to write; rename it")
    # The pattern: what Kaldi would take for a command or a place in an archive goes through the shell's quotes.
    if info.channels == 1 and info.format in ("WAV/PCM_16", "WAVEX/PCM_16") and re.fullmatch(r"\S.*[^\s|:\d]", name):
        return name
    return f"ffmpeg -nostdin -v error -i {shlex.quote(name)} -ac 1 -c:a pcm_s16le -f wav - |"


def _rows(
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
    for number, key in unique_names(keys).items():
        speaker = utterances[number].speaker
        rows.append((key, speakers[speaker] if speaker else key, utterances[number]))
    return sorted(rows, key=lambda row: row[0])  # by code point, which is the C locale's order of UTF-8


def _table(path: Path) -> dict[str, str]:
    """A file of Kaldi's: 'key value...' lines."""
    table: dict[str, str] = {}
    for where, line in lines(path):
        key, *value = re.split(r"[ \t]+", line.strip(" \t\r\n"), maxsplit=1)
        if not key:
            continue
        if key in table:
            raise CorpusError(f"{where}: {key} is listed twice; keep one")
        if not value and path.name != "text":
            raise CorpusError(f"{where}: expected '{key}' and a value, got nothing after it")
        table[key] = value[0] if value else ""
    if not table:
        raise CorpusError(f"{path}: expected a line for each utterance or recording, got an empty file")
    return table
