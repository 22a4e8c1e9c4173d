"""The commands about training: train, adapt, report, export, summary."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import click

from asr import terminal
from asr.cli import options
from asr.cli.command import Argument, Option
from asr.errors import AsrError


def train(
    config: Annotated[Path, Argument(help="A recipe's config.yaml.")],
    overrides: options.Settings = None,
    run: Annotated[Path | None, Option(help="The run folder.", show_default="runs/<name>")] = None,
    resume: Annotated[bool, Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    device: Annotated[str, Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, Option(help="CPU threads.", min=1, max=256)] = None,
    profile: Annotated[bool, Option("--profile", help="Print at the end where the time went.")] = False,
) -> None:
    """Train a model; Ctrl-C saves, --resume goes on. Several devices: torchrun --nproc-per-node N -m -- asr train ..."""
    from rich.console import Console

    from asr.training import loop
    from asr.training.config import read

    settings = read(config, overrides or [])
    outcome = loop.train(
        settings,
        run or Path("runs") / settings.name,
        resume=resume,
        device=device,
        threads=threads,
        profile=profile,
        console=Console(stderr=True),
    )
    if not outcome.finished:
        raise click.exceptions.Exit(130)


def adapt(
    model: Annotated[Path, Argument(help="A run folder, a model's file, or its name.")],
    manifest: Annotated[Path, Argument(help="JSON lines: the new recordings.")],
    output: Annotated[Path, Option("--output", "-o", help="The run folder to write.")],
    overrides: options.Settings = None,
    dev: Annotated[
        Path | None, Option(help="A manifest to hold out.", show_default="a fifth of the recordings")
    ] = None,
    replay: Annotated[
        float, Option(help="Share of the old training data in what is trained on.", min=0, max=0.9)
    ] = 0.0,
    resume: Annotated[bool, Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    device: Annotated[str, Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, Option(help="CPU threads.", min=1, max=256)] = None,
) -> None:
    """Train a model on with minutes of a voice or a subject; what is gained on it, and lost on the old dev set."""
    from rich.console import Console

    from asr.training import adapt as adaptation

    with terminal.interruptible():
        compared = adaptation.adapt(
            model,
            manifest,
            output,
            overrides or [],
            dev=dev,
            replay=replay,
            resume=resume,
            device=device,
            threads=threads,
            console=Console(stderr=True),
        )
    if compared is None:
        raise click.exceptions.Exit(130)
    terminal.show("".join(f"{one}\n" for one in compared))


def report(
    run: Annotated[Path, Argument(help="A run folder, finished or still in training.")],
    output: Annotated[Path, Option("--output", "-o", help="The page to write.")] = Path("report.html"),
    manifest: Annotated[
        Path | None, Option(help="The set to look at: JSON lines.", show_default="the training's dev set")
    ] = None,
    device: Annotated[str, Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, Option(help="CPU threads.", min=1, max=256)] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """One web page about a training: curves, gradients, errors, and the worst utterances to hear and see."""
    from asr.files import write

    terminal.refuse_existing(output, overwrite)
    if output.is_dir() or not os.access(output.parent, os.W_OK):  # before the work
        raise AsrError(f"{output}: expected the name of a file that may be written; name another with -o")
    from asr.training.report.page import build

    with terminal.interruptible():
        page = build(run, manifest=manifest, device=device, threads=threads)
    write(output, page, overwrite=overwrite)
    terminal.note(f"{output}: {output.stat().st_size / 1e6:.1f} MB; open it in a browser")


def export(
    run: Annotated[Path, Argument(help="A run folder, or one of its .safetensors files.")],
    output: Annotated[Path, Option("--output", "-o", help="The ONNX file to write.")],
    name: Annotated[str | None, Option(help="The model's name.", show_default="the training's")] = None,
    int8: Annotated[bool, Option("--int8", help="A quarter of the size, and faster on a CPU.")] = False,
    temperature: Annotated[
        float,
        Option(min=0.1, max=10, help="Divides the logits: above 1 for a network that is too sure of itself."),
    ] = 1.0,
    manifest: Annotated[
        Path | None, Option(help="Measure the WER on this, of int8 beside float32, and keep it in the file.")
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Write a trained model as one file that runs without PyTorch."""
    import tempfile

    from asr.training import export as exporter

    exporter.export(run, output, name=name, int8=int8, temperature=temperature, overwrite=overwrite)
    click.echo(f"{output}: {output.stat().st_size / 1e6:.2f} MB", err=True)
    if manifest is not None:
        rates = {"int8" if int8 else "float32": _word_error_rate(output, manifest)}
        if int8:
            with tempfile.TemporaryDirectory() as folder:
                exporter.export(run, Path(folder) / "float.onnx", temperature=temperature)
                rates["float32"] = _word_error_rate(Path(folder) / "float.onnx", manifest)
        exporter.annotate(output, {"greedy WER on " + manifest.name: rates})
        click.echo(", ".join(f"WER {kind} {rate:.2%}" for kind, rate in rates.items()), err=True)


def summary(
    config: Annotated[Path, Argument(help="A recipe's config.yaml.")],
    overrides: options.Settings = None,
    duration_s: Annotated[float, Option("--seconds", help="Length of audio for the shapes.", min=0.1)] = 10.0,
) -> None:
    """The network of a configuration: layers, output shapes, parameters, receptive field, frame shift."""
    from rich.table import Table

    from asr.audio import SAMPLE_RATE
    from asr.training.config import read
    from asr.training.model import AcousticModel
    from asr.training.pronunciation import Pronunciations
    from asr.training.summary import summarise

    settings = read(config, overrides or [])
    if settings.pronunciation is not None:  # a dictionary that is missing would end a training
        Pronunciations(settings.pronunciation.dictionary, str)
    network = AcousticModel(settings, settings.data.n_tokens)
    table = Table("layer", "kind", "output (T, features)", "parameters", box=None, pad_edge=False)
    for column in (2, 3):
        table.columns[column].justify = "right"
    for row in summarise(network, duration_s):
        table.add_row(row.name, row.kind, " x ".join(map(str, row.shape)), f"{row.parameters:,}")
    console = terminal.stdout()
    console.print(table, highlight=False)
    total = sum(parameter.numel() for parameter in network.parameters())
    console.print(
        f"\n{settings.name}: {total:,} parameters, {total * 4 / 1e6:.1f} MB as float32\n"
        f"one frame each {1000 * network.geometry.frame_shift / SAMPLE_RATE:.0f} ms; its convolutions see "
        f"{1000 * network.geometry.receptive_field / SAMPLE_RATE:.0f} ms, the recurrent layers "
        f"{'the whole utterance' if settings.network.bidirectional else 'everything before it'}",
        highlight=False,
    )


def _word_error_rate(model: Path, manifest: Path) -> float:
    from asr import evaluation
    from asr.manifest import read
    from asr.recognizer import Recognizer

    with terminal.progress(terminal.stderr(False)) as progress:
        track = progress.track(read(manifest), description="recognising")
        return evaluation.word_error_rate(Recognizer(model, beam=1), track)
