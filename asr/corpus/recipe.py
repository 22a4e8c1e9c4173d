"""What the recipes' prepare.py share: a corpus, downloaded or given, becomes manifests.

A recipe is a function from the corpus folder to its splits, lists of recordings with their texts; `prepare` does the rest:
command line, download, unpacking, durations, manifests, hours.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from asr import audio, files, manifest, terminal
from asr.corpus import archive, download
from asr.errors import AsrError, CorpusError, number_of
from asr.manifest import Utterance

if TYPE_CHECKING:
    pass

_AT_ONCE = 4096  # recordings measured between two writes of the durations


class Recording(NamedTuple):
    """A file and what is said in it; one without a text is left out, and listed."""

    audio: Path
    text: str
    speaker: str | None = None


class Archive(NamedTuple):
    """A file to download: the addresses of its folder, the publisher's first, and its checksum (see `download`)."""

    name: str
    folders: Sequence[str]
    checksum: str | None  # None: the publisher names none


Splits = dict[str, list[Recording]]


def parser(description: str | None, *, downloads: bool = True) -> argparse.ArgumentParser:
    """The command line of every prepare.py; a recipe may add to it. description: its docstring."""
    recipe = Path(sys.argv[0]).parent
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    result.add_argument(
        "corpus",
        metavar="CORPUS",
        type=Path,
        nargs="?",
        help="the corpus' folder, or its archive; with --download where it shall lie (default: corpus/ in OUT)",
    )
    result.add_argument(
        "out", metavar="OUT", type=Path, nargs="?", default=recipe / "data", help="default: %(default)s"
    )
    if downloads:
        result.add_argument(
            "--download", action="store_true", help="download to CORPUS the archives that are not there yet"
        )
        result.add_argument("--mirror", metavar="URL", help="a folder of the same archives, to be tried first")
    result.add_argument("--jobs", metavar="N", type=int, default=min(8, os.cpu_count() or 1), help="threads")
    return result


def prepare(
    read: Callable[[Path, argparse.Namespace], Splits],
    arguments: argparse.Namespace,
    archives: Sequence[Archive] = (),
) -> Splits:
    """Corpus -> OUT/SPLIT.jsonl for each split that `read` returns; the program ends with status 1 if that is impossible.

    read: (corpus folder, arguments) -> name of a split -> its recordings.
    Recordings that cannot be read are left out, and listed with the reason in OUT/skipped.jsonl. Durations are kept in
    OUT/durations.json, so that a second run, or one after an interruption, opens only files that are new or changed.
    """
    try:
        corpus = _obtain(arguments, archives)
        splits = _read(read, corpus, arguments)
        _write(splits, arguments.out, arguments.jobs)
        return splits
    except AsrError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {' '.join(str(error).splitlines())}")
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def find(corpus: Path, *names: str) -> Path:
    """The first of these files or folders that is in the corpus folder or up to two folders deeper.

    raises: CorpusError saying what was looked for.
    """
    for name in names:
        # The deepest: archives are unpacked to folders of their own names.
        for pattern in (f"*/*/{name}", f"*/{name}", name):
            if found := sorted(corpus.glob(pattern)):
                return found[0]
    raise CorpusError(f"{corpus}: expected a folder with {' or '.join(names)} in it; name the unpacked corpus")


class Table(dict[str, str]):
    """Key -> rest of the line, of a text file such as Kaldi's; a key that is not there is a CorpusError, too."""

    def __init__(self, path: Path, separator: str | None = None) -> None:
        """separator: between key and rest; None is white space, runs of which are one space in the rest."""
        super().__init__()
        self.path = path
        for _, line in files.lines(path, CorpusError, missing="download the corpus again"):
            if line.strip():
                key, *rest = line.strip().split(separator, 1)
                if key in self:
                    raise CorpusError(f"{path}: expected each key once, got '{key}' twice")
                self[key] = "".join(rest) if separator else " ".join("".join(rest).split())

    def __missing__(self, key: str) -> str:
        raise CorpusError(f"{self.path}: expected a line for '{key}'; download the corpus again")


def hold_out(recordings: Sequence[Recording], every: int) -> tuple[list[Recording], list[Recording]]:
    """The recordings without those of every n-th speaker, in the order of their names, and those."""
    speakers = set(sorted({str(one.speaker) for one in recordings})[::every])
    parts: tuple[list[Recording], list[Recording]] = ([], [])
    for one in recordings:
        parts[str(one.speaker) in speakers].append(one)
    return parts


def openslr(number: int) -> list[str]:
    """Where the archives of one of its resources are: Open Speech and Language Resources, and its mirrors."""
    hosts = ("www.openslr.org", "openslr.trmal.net", "openslr.elda.org", "openslr.magicdatatech.com")
    return [f"https://{host}/resources/{number}" for host in hosts]


def _obtain(arguments: argparse.Namespace, archives: Sequence[Archive]) -> Path:
    """The corpus folder, after downloading and unpacking."""
    downloads = getattr(arguments, "download", False)
    corpus: Path | None = arguments.corpus
    if corpus is None and not downloads:
        how = " or --download" if hasattr(arguments, "download") else ""
        raise CorpusError(f"expected the corpus' folder{how}; --help says more")
    corpus = corpus or arguments.out / "corpus"
    from rich.progress import DownloadColumn, TransferSpeedColumn

    with terminal.progress(terminal.stderr(False), DownloadColumn(), TransferSpeedColumn()) as progress:
        for one in archives if downloads else ():
            folder = corpus / one.name.split(".tar")[0].removesuffix(".zip")
            if not folder.exists():  # once unpacked, the archive may go
                folders = [*([arguments.mirror] if arguments.mirror else []), *one.folders]
                urls = [f"{each.rstrip('/')}/{one.name}" for each in folders]
                download.fetch(urls, corpus / one.name, one.checksum, progress=progress)
                archive.unpack(corpus / one.name, folder, progress=progress)
        if corpus.is_file():
            folder = corpus.with_name(corpus.name.split(".tar")[0].removesuffix(".zip") + ".unpacked")
            archive.unpack(corpus, folder, progress=progress)
            return folder
    if not corpus.is_dir():
        raise CorpusError(f"{corpus}: no such folder; check the path")
    return corpus


def _read(read: Callable[[Path, argparse.Namespace], Splits], corpus: Path, arguments: argparse.Namespace) -> Splits:
    """What the recipe reads. raises: CorpusError where the corpus is not laid out as the recipe expects."""
    try:
        return read(corpus, arguments)
    except (OSError, LookupError, ValueError) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise CorpusError(
            f"{corpus}: not laid out as the recipe expects: {type(error).__name__}: {error} "
            f"({Path(frame.filename).name}, line {frame.lineno}); is it this corpus, and whole?"
        ) from None


def _write(splits: Splits, out: Path, jobs: int) -> None:
    """Manifests, the list of what was skipped, and what to say of both."""
    everything = [each for split in splits.values() for each in split]
    durations, reasons = _read_durations([each for each in everything if each.text.strip()], out, jobs)
    reasons |= {each.audio: "has no text" for each in everything if not each.text.strip()}
    if not durations:
        first = next(iter(reasons.items()), None)
        why = f"; the first: {first[1]}" if first else ""
        raise CorpusError(f"expected recordings that can be read, got none of {len(reasons)}{why}")
    for name, recordings in splits.items():
        path = out / f"{name}.jsonl"
        utterances = [
            Utterance(each.audio, durations[each.audio], each.text, speaker=each.speaker)
            for each in recordings
            if each.audio in durations and each.text.strip()
        ]
        if not utterances:
            path.unlink(missing_ok=True)
            unwritten = f"{path}: not written, none of its {number_of(len(recordings), 'recording')} can be used"
            if name == "train":
                raise CorpusError(unwritten + "".join(f"; the first: {why}" for why in list(reasons.values())[:1]))
            print(unwritten, file=sys.stderr)
            continue
        manifest.write(path, utterances)
        hours = sum(utterance.duration_s for utterance in utterances) / 3600
        print(f"{path}: {number_of(len(utterances), 'utterance')}, {hours:.2f} hours")
    skipped = out / "skipped.jsonl"
    rows = [{"audio_filepath": str(path), "reason": reason} for path, reason in reasons.items()]
    if rows:
        _write_text(skipped, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        print(f"{number_of(len(rows), 'recording')} cannot be used and were left out: see {skipped}", file=sys.stderr)
    else:
        skipped.unlink(missing_ok=True)


def _read_durations(recordings: Sequence[Recording], out: Path, jobs: int) -> tuple[dict[Path, float], dict[Path, str]]:
    """Seconds of each file, and why the others have none."""
    cache = out / "durations.json"
    known: dict[str, list[float]] = {}
    with contextlib.suppress(OSError, ValueError, TypeError):  # without it, or what is left of it, all are opened
        known = dict(json.loads(cache.read_text(encoding="utf-8")))
    paths = list(dict.fromkeys(each.audio for each in recordings))
    durations: dict[Path, float] = {}
    reasons: dict[Path, str] = {}
    fresh: dict[str, list[float]] = {}

    def measure(path: Path) -> tuple[list[float], str]:
        try:
            status = path.stat()
            key = [status.st_size, status.st_mtime_ns]
            if (before := known.get(str(path), [])) and before[:2] == key:
                return before, ""
            return [*key, audio.info(path).duration_s], ""
        except AsrError as error:
            return [], str(error)
        except OSError as error:
            return [], f"{path}: {error.strerror or error}"

    with ThreadPoolExecutor(max(1, jobs)) as pool, terminal.progress(terminal.stderr(False)) as progress:
        task = progress.add_task("reading durations", total=len(paths))
        try:
            for start in range(0, len(paths), _AT_ONCE):
                some = paths[start : start + _AT_ONCE]
                for path, (entry, reason) in zip(some, pool.map(measure, some), strict=True):
                    if entry:
                        durations[path], fresh[str(path)] = entry[2], entry
                    else:
                        reasons[path] = reason
                    progress.advance(task)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            _write_text(cache, json.dumps(known | fresh))
            raise
    _write_text(cache, json.dumps(fresh))
    return durations, reasons


def _write_text(path: Path, text: str) -> None:
    files.make_folder(path.parent)
    files.write(path, text.encode(errors="surrogateescape"), overwrite=True)
