"""Lhotse's JSON lines <-> manifests, without Lhotse.

source: https://lhotse.readthedocs.io
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from asr import audio
from asr.corpus.entries import Corpus, Entry, UnusableError, lines, unique_names
from asr.errors import AsrError, CorpusError
from asr.manifest import Skipped, Utterance

_CUTS = ("MonoCut", "MultiCut", "MixedCut", "PaddingCut", "Cut")


def read(paths: Iterable[str | Path], root: str | Path = ".") -> Corpus:
    """Lhotse's JSON lines (.jsonl, .jsonl.gz): cuts, or recordings and supervisions, in any number of files and any order.

    root: the folder that relative names of audio start from. Each supervision is an utterance. Skipped with a reason:
    audio that is no file, augmentation other than resampling, mixed cuts, a supervision without text, or of some but
    not all channels of a file.
    raises: CorpusError naming file and line of what is missing, malformed, damaged, or beyond all measure.
    """
    corpus = Corpus()
    recordings: dict[str, tuple[dict[str, Any], str]] = {}
    supervisions: list[tuple[dict[str, Any], str]] = []
    for path in map(Path, paths):
        for where, line in lines(path):
            if not line.strip():
                continue
            row = _json(line, where)
            if "sources" in row:
                key = _text(row, "id", where)
                if recordings.setdefault(key, (row, where))[0] != row:
                    raise CorpusError(f"{where}: recording {key} is another in {recordings[key][1]}; keep one")
            elif "recording_id" in row:
                supervisions.append((row, where))
            elif row.keys() & {"supervisions", "tracks", "recording"} or row.get("type") in _CUTS:
                _add_cut(row, where, Path(root), corpus)
            else:
                raise CorpusError(
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


def cuts(utterances: Sequence[Utterance], infos: dict[Path, audio.AudioInfo | AsrError]) -> str:
    """A cut of Lhotse for each utterance, as JSON lines. infos: what `probe` found of their audio."""
    files = {utterance.audio: utterance.audio.stem for utterance in utterances}
    names = unique_names(files)
    keys = unique_names({number: utterance.id for number, utterance in enumerate(utterances)})
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


def _add_cut(row: dict[str, Any], where: str, root: Path, corpus: Corpus) -> None:
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
            raise CorpusError(f"{where}: expected 'supervisions' to be a list of objects")
        for supervision in supervisions:
            _add_supervision(corpus, supervision, where, row.get("recording"), _number(row, "start", where), root)


def _add_supervision(
    corpus: Corpus, row: dict[str, Any], where: str, recording: object, start_s: float, root: Path
) -> None:
    """Append an entry or a skipped one. start_s: of the cut within the recording."""
    key = _text(row, "id", where)
    try:
        if row.get("text") is None:
            raise UnusableError("it has no text")
        if recording is None:
            raise UnusableError(f"there is no recording {row.get('recording_id')} that it is of")
        if not isinstance(recording, dict):
            raise CorpusError(f"{where}: expected 'recording' to be an object, got {str(recording)[:60]}")
        channel = row.get("channel", 0)
        channels = set(map(str, channel if isinstance(channel, list) else [channel]))
        corpus.entries.append(
            Entry(
                key,
                root / _source(recording, channels, where),
                _text(row, "text", where),
                None if row.get("speaker") is None else _text(row, "speaker", where),
                start_s + _number(row, "start", where),
                _number(row, "duration", where),
                len(channels),
            )
        )
    except UnusableError as error:
        corpus.skipped.append(Skipped(key, str(error)))


def _source(recording: dict[str, Any], channels: set[str], where: str) -> str:
    """The file that holds these channels and no others. raises: UnusableError if there is none."""
    transforms = recording.get("transforms") or []
    for transform in transforms if isinstance(transforms, list) else [transforms]:
        name = transform.get("name") if isinstance(transform, dict) else transform
        if name != "Resample":  # which comes with reading
            raise UnusableError(
                f"expected a recording as it is, got one with the transform {str(name)[:60]}; save its audio first"
            )
    sources = recording.get("sources")
    if not isinstance(sources, list) or not all(isinstance(source, dict) for source in sources):
        raise CorpusError(f"{where}: expected 'sources' to be a list of objects")
    for source in sources:
        held = source.get("channels")
        if not isinstance(held, list):
            raise CorpusError(f"{where}: expected a source's 'channels' to be a list, got {str(held)[:60]}")
        if set(map(str, held)) == channels:
            if source.get("type") != "file":
                raise UnusableError(f"expected a source of type file, got {source.get('type')}; save its audio first")
            return _text(source, "source", where)
    raise UnusableError(
        f"expected a file of channel {', '.join(sorted(channels))} and no other, got files of the channels "
        f"{' and '.join(str(source['channels'])[:60] for source in sources)}; save the channel as a file of its own"
    )


def _json(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise CorpusError(
            f"{where}: expected a JSON object a line, got {line.strip()[:60]!r}; of Lhotse's other formats: "
            "lhotse copy OLD NEW.jsonl.gz"
        )
    return row


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise CorpusError(f"{where}: expected '{key}' to be text, got {str(value)[:60]}")
    return str(value)


def _number(row: dict[str, Any], key: str, where: str) -> float:
    value = row.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise CorpusError(f"{where}: expected '{key}' to be seconds, got {str(value)[:60]}")
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf
