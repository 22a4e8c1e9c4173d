"""The command `asr label`: untranscribed speech, transcribed by a Whisper model, as a manifest to train on."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import click

from asr import terminal
from asr.cli import options
from asr.cli.command import Argument, Option
from asr.errors import AsrError, number_of


def label(
    inputs: Annotated[
        list[str],
        Argument(metavar="AUDIO...", help="Recordings, folders of them, patterns."),
    ],
    output: Annotated[Path, Option("--output", "-o", help="The manifest to write.")],
    teacher: Annotated[Path, Option(help="A Whisper model's folder, as faster-whisper reads it.")],
    language: Annotated[str, Option(help="Of the speech, as Whisper writes it: de, pt.")] = "en",
    sure: Annotated[
        float, Option(help="Mean log-probability of the words that a text needs: -0.2 keeps less.", max=0)
    ] = -0.3,
    recursive: Annotated[
        bool, Option("--recursive", "-r", help="Also the folders within folders, which name the speakers.")
    ] = False,
    threads: Annotated[int, Option(help="Threads of the model on a CPU.", min=1, max=256)] = 1,
    overwrite: options.Overwrite = False,
) -> None:
    """Transcribe speech with a Whisper model, and keep what it is sure of, as a manifest to train on.

    What is left out is listed with the reasons in OUTPUT.skipped.jsonl. After Ctrl-C the same command goes on.
    """
    from asr import manifest
    from asr.cli import batch
    from asr.cli.manifest import list_skipped
    from asr.corpus import entries, label
    from asr.manifest import Skipped, Utterance

    terminal.refuse_existing(output, overwrite)
    recordings, missing, others = batch.find(inputs, recursive=recursive)
    if others:
        terminal.note(batch.passed_over(others))
    for error in missing:
        terminal.complain(error)
    if not recordings:
        raise click.exceptions.Exit(1)
    speakers = {path: name.parts[0] if len(name.parts) > 1 else None for path, name in recordings.items()}
    begun = output.with_name(output.name + ".begun")
    if overwrite:
        begun.unlink(missing_ok=True)
    with terminal.interruptible(lambda: f"; the same command goes on from {begun}"):
        hear = label.whisper(teacher, language, threads)
        labels = label.Labels(begun, {"teacher": str(teacher), "language": language, "sure": sure})
        if len(labels):
            terminal.note(f"{begun}: {number_of(len(labels), 'clip')} labelled already")
        with terminal.progress(terminal.stderr(False)) as progress:
            infos = entries.probe(recordings, progress)
        with closing(labels), terminal.progress(terminal.stderr(False)) as progress:
            seconds = sum(info.duration_s for info in infos.values() if not isinstance(info, AsrError))
            task = progress.add_task("labelling, s of speech", total=round(seconds))
            label.run(speakers, hear, labels, sure, lambda done: progress.advance(task, done))
        done = labels.done(recordings)
        utterances = [one for one in done if isinstance(one, Utterance)]
        skipped = [one for one in done if isinstance(one, Skipped)]
        if utterances:
            manifest.write(output, utterances)
            hours = sum(utterance.duration_s for utterance in utterances) / 3600
            terminal.note(f"{output}: {number_of(len(utterances), 'utterance')}, {hours:.2f} h")
        list_skipped(skipped, output, len(utterances), ", ".join(inputs))
        begun.unlink(missing_ok=True)
        if missing or any(isinstance(info, AsrError) for info in infos.values()):
            raise click.exceptions.Exit(1)
