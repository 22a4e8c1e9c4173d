"""The commands about manifests: `asr doctor`, `asr import`, `asr export-manifest` and `asr shard`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click

from asr import terminal
from asr.cli import options
from asr.cli.command import Argument, Group, Option
from asr.errors import AsrError, ManifestError, number_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asr.corpus.entries import Corpus
    from asr.manifest import Skipped, Utterance

app = Group(
    "import",
    {
        "kaldi": (
            "asr.cli.manifest:import_kaldi",
            "asr import kaldi egs/mine/s5/data/train --root egs/mine/s5 -o train.jsonl",
        ),
        "lhotse": (
            "asr.cli.manifest:import_lhotse",
            "asr import lhotse recordings.jsonl.gz supervisions.jsonl.gz -o lj.jsonl",
        ),
        "csv": ("asr.cli.manifest:import_csv", "asr import csv cv-corpus/en/train.tsv -o train.jsonl"),
        "webdataset": ("asr.cli.manifest:import_webdataset", "asr import webdataset shards/*.tar -o train.jsonl"),
    },
    help="Corpora of other toolkits as manifests.",
)

_SHOWN = 5  # reasons on the terminal; all are in the file

Output = Annotated[Path, Option("--output", "-o", help="The manifest to write.")]
Root = Annotated[
    Path, Option(help="The folder that relative names of audio start from.", show_default="the current one")
]


def import_kaldi(
    folder: Annotated[Path, Argument(help="A data folder: wav.scp, text, utt2spk, segments.")],
    output: Output = Path("manifest.jsonl"),
    root: Root = Path(),
    overwrite: options.Overwrite = False,
) -> None:
    """A Kaldi data folder as a manifest. Pipes in wav.scp are never executed."""
    from asr.corpus import kaldi

    terminal.refuse_existing(output, overwrite)
    with terminal.interruptible():
        _import(kaldi.read(folder, root), output, f"{folder} with --root {root}")


def import_lhotse(
    files: Annotated[
        list[Path],
        Argument(help="Cuts, or recordings and supervisions: .jsonl, .jsonl.gz."),
    ],
    output: Output = Path("manifest.jsonl"),
    root: Root = Path(),
    overwrite: options.Overwrite = False,
) -> None:
    """Lhotse's cuts, or what its recipes write, as a manifest; without Lhotse."""
    from asr.corpus import lhotse

    terminal.refuse_existing(output, overwrite)
    with terminal.interruptible():
        _import(lhotse.read(files, root), output, f"{', '.join(map(str, files))} with --root {root}")


def import_csv(
    file: Annotated[Path, Argument(help="A table: a recording and its text a row.")],
    output: Output = Path("manifest.jsonl"),
    audio_column: Annotated[
        str | None, Option(help="Name or number of the column.", show_default="path, file_name, audio and others")
    ] = None,
    text_column: Annotated[
        str | None, Option(help="Of the texts.", show_default="sentence, transcription, text and others")
    ] = None,
    speaker_column: Annotated[
        str | None, Option(help="Of the speakers.", show_default="speaker or client_id, if there")
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """A table as a manifest: Common Voice's .tsv, DeepSpeech's .csv, LJSpeech's or Hugging Face's metadata.csv, yours.

    Commas, semicolons, bars or tabs between its columns; without a header, the audio is first and the text last.
    """
    from asr.corpus import tables

    terminal.refuse_existing(output, overwrite)
    with terminal.interruptible():
        _import(tables.read(file, audio_column, text_column, speaker_column), output, str(file))


def import_webdataset(
    tars: Annotated[list[str], Argument(help="Plain tars of KEY.flac or another recording, and KEY.txt or KEY.json.")],
    output: Output = Path("manifest.jsonl"),
    overwrite: options.Overwrite = False,
) -> None:
    """Tars in WebDataset's layout as a manifest of what stands in them, where; nothing is unpacked.

    All audio is decoded once, to tell its length. Training reads it from the tars.
    """
    from asr import manifest
    from asr.corpus import tars as corpus
    from asr.remote import Remote, locate

    terminal.refuse_existing(output, overwrite)
    with terminal.interruptible():
        paths: list[Path] = []
        for path in map(locate, tars):
            paths += path.matches() if isinstance(path, Remote) and "*" in path.name else [path]
        with terminal.progress(terminal.stderr(False)) as progress:
            utterances, skipped = corpus.read(paths, progress)
        if utterances:
            manifest.write(output, utterances)
            terminal.note(f"{output}: {_size(utterances)}")
        list_skipped(skipped, output, len(utterances), ", ".join(tars))
    if skipped:
        raise click.exceptions.Exit(1)


def shard(
    manifests: Annotated[list[Path], Argument(help="JSON lines; several are joined.")],
    output: Annotated[Path, Option("--output", "-o", help="The folder of the tars; s3:// too.")],
    kind: Annotated[
        str, Option("--format", "-f", help="Of the audio: flac, opus or wav; 16 kHz, mono, 16 bits.")
    ] = "flac",
    hours: Annotated[float, Option(help="Of speech in a tar.", min=0)] = 5.0,
    part: options.Shard = None,
    overwrite: options.Overwrite = False,
    skip_existing: options.SkipExisting = False,
) -> None:
    """A corpus as tars, for a training that reads them where they are: data.train=DIR.

    WebDataset's layout: KEY.flac and KEY.json, one after the other. Beside each tar goes its manifest, which tells what
    stands where in it: training makes the batches that it would make of files, and keeps nothing decoded on a disk.
    """
    from asr.corpus import tars
    from asr.files import make_folder
    from asr.manifest import read
    from asr.remote import locate

    options.refuse(
        (kind not in tars.KINDS, "--format", f"expected {', '.join(tars.KINDS)}, got {kind}"),
        (hours == 0, "--hours", "expected more than none"),
        (overwrite and skip_existing, "--overwrite", "--skip-existing asks for the opposite"),
    )
    number, count = options.part_of(part) or (1, 1)
    folder = locate(output)
    shards = tars.plan(read(manifests), folder, manifests[0].name.partition(".")[0] or "train", hours)
    own = shards[number - 1 :: count]
    there = [one for one in own if one.manifest.exists()] if not overwrite else []
    if there and not skip_existing:
        raise AsrError(
            f"{there[0].manifest}: {len(there)} of {len(own)} shards are there already; use --overwrite or --skip-existing"
        )
    make_folder(folder)
    left = [one for one in own if one not in there]
    failed = 0
    with (
        terminal.interruptible(lambda: "; --skip-existing goes on from here"),
        terminal.progress(terminal.stderr(False)) as bar,
    ):
        task = bar.add_task("shards", total=len(left))
        for one in left:
            skipped = tars.write(one, kind, bar)
            list_skipped(skipped, one.tar.with_suffix(""), len(one.utterances) - len(skipped), one.tar.name)
            failed += len(skipped)
            bar.advance(task)
    skips = f", {len(there)} were there" if there else ""
    terminal.note(
        f"{folder}: {len(left)} of {len(shards)} shards written{skips}; train on them with data.train={folder}"
    )
    if failed:
        raise click.exceptions.Exit(1)


def doctor(
    manifest: Annotated[Path, Argument(help="JSON lines to check before training.")],
    config: Annotated[
        Path | None,
        Option(help="The recipe's settings: alphabet, normaliser, frame shift.", show_default="English"),
    ] = None,
    as_json: Annotated[bool, Option("--json", help="The findings as JSON.")] = False,
    examples: Annotated[int, Option(help="How many examples of each fault to show.", min=0)] = 3,
) -> None:
    """Check audio and texts before hours of training are spent on them; exit 1 if there are errors."""
    from rich.console import Console

    from asr.audio import SAMPLE_RATE
    from asr.corpus.doctor import check
    from asr.manifest import read
    from asr.text import normaliser
    from asr.tokens import Tokens

    tokens, normalise, shift_s = Tokens.of(" 'abcdefghijklmnopqrstuvwxyz"), "english", 0.04
    if config is not None:
        from asr.training.config import read as read_config
        from asr.training.subwords import of_settings

        settings = read_config(config)
        tokens, normalise = of_settings(settings.data), settings.data.normaliser
        shift_s = settings.features.hop_length * settings.network.subsampling / SAMPLE_RATE
    malformed: list[ManifestError] = []
    utterances = read(manifest, malformed)
    with terminal.interruptible(), terminal.progress(Console(stderr=True)) as progress:
        diagnosis = check(
            utterances,
            tokens,
            normaliser(normalise),
            shift_s,
            manifest=manifest,
            malformed=malformed,
            progress=progress,
        )
    if as_json:
        terminal.show(diagnosis.to_json() + "\n")
    else:
        diagnosis.render(terminal.stdout(), examples=examples)
    if diagnosis.errors:
        raise click.exceptions.Exit(1)


def export_manifest(
    manifest: Annotated[Path, Argument(help="A manifest of ours: JSON lines.")],
    kaldi: Annotated[Path | None, Option(help="Write this Kaldi data folder.")] = None,
    lhotse: Annotated[Path | None, Option(help="Write Lhotse's cuts: .jsonl or .jsonl.gz.")] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """A manifest for other toolkits: as a Kaldi data folder, as Lhotse's cuts."""
    import gzip

    from asr.corpus import entries
    from asr.corpus.kaldi import FILES, files
    from asr.corpus.lhotse import cuts
    from asr.files import write
    from asr.manifest import read
    from asr.remote import Member

    if kaldi is None and lhotse is None:
        raise click.BadParameter("give one or both", param_hint="--kaldi, --lhotse")
    if lhotse is not None and not lhotse.name.endswith((".jsonl", ".jsonl.gz")):
        raise click.BadParameter("expected a name that ends in .jsonl or .jsonl.gz", param_hint="--lhotse")
    targets = [target for target in (kaldi, lhotse) if target is not None]
    for file in [kaldi / name for name in FILES] if kaldi else []:
        terminal.refuse_existing(file, overwrite)
    if lhotse is not None:
        terminal.refuse_existing(lhotse, overwrite)
    utterances = read(manifest)
    if any(isinstance(each.audio, Member) for each in utterances):
        raise AsrError(f"{manifest}: expected audio in files, got some in tars, which no table of others can name")
    asked = [
        entries.Entry(each.id, each.audio, each.text, each.speaker, each.offset_s, each.duration_s)
        for each in utterances
    ]
    with terminal.interruptible():
        with terminal.progress(terminal.stderr(False)) as progress:
            infos = entries.probe((entry.audio for entry in asked), progress)
        fitted, skipped = entries.fit(asked, infos)
        if fitted and kaldi is not None:
            for name, content in files(fitted, infos).items():
                write(kaldi / name, content, overwrite=True)
        if fitted and lhotse is not None:
            data = cuts(fitted, infos).encode()
            packed = gzip.compress(data, compresslevel=6, mtime=0) if lhotse.suffix == ".gz" else data
            write(lhotse, packed, overwrite=True)
        for target in targets if fitted else []:
            terminal.note(f"{target}: {number_of(len(fitted), 'utterance')}")
        list_skipped(skipped, targets[0], len(fitted), str(manifest))
        if skipped:
            raise click.exceptions.Exit(1)


def _import(corpus: Corpus, output: Path, source: str) -> None:
    """Look at the audio, write the manifest, and tell what is in it and what is not."""
    from asr import manifest
    from asr.corpus import entries

    with terminal.progress(terminal.stderr(False)) as progress:
        infos = entries.probe((entry.audio for entry in corpus.entries), progress)
    utterances, unfit = entries.fit(corpus.entries, infos)
    if utterances:
        manifest.write(output, utterances)
        terminal.note(f"{output}: {_size(utterances)}")
    if corpus.untranscribed:
        terminal.note(f"recordings or cuts without an utterance: {corpus.untranscribed}")
    list_skipped(corpus.skipped + unfit, output, len(utterances), source)
    if corpus.skipped or unfit:
        raise click.exceptions.Exit(1)


def _size(utterances: Sequence[Utterance]) -> str:
    hours = sum(utterance.duration_s for utterance in utterances) / 3600
    speakers = len({utterance.speaker for utterance in utterances} - {None})
    return f"{number_of(len(utterances), 'utterance')}, {hours:.2f} h, {number_of(speakers, 'speaker')}"


def list_skipped(skipped: Sequence[Skipped], output: Path, taken: int, source: str) -> None:
    """What is missing from an output, in a file beside it. raises: AsrError if everything is."""
    import json

    from asr.files import write

    listed = output.with_name(output.name + ".skipped.jsonl")
    if not skipped:
        listed.unlink(missing_ok=True)  # of an earlier call, which this one has replaced
        if not taken:
            raise AsrError(f"{source}: expected utterances, got none")
        return
    rows = (json.dumps({"id": skip.id, "reason": skip.reason}) for skip in skipped)
    write(listed, "".join(f"{row}\n" for row in rows), overwrite=True)
    for skip in skipped[:_SHOWN]:
        terminal.complain(f"{skip.id}: {skip.reason}")
    if not taken:
        raise AsrError(
            f"{source}: none of {number_of(len(skipped), 'utterance')} can be used; the reasons are in {listed}"
        )
    terminal.note(
        f"{len(skipped)} of {number_of(taken + len(skipped), 'utterance')} skipped, listed with reasons in {listed}"
    )
