"""The command `asr live`: a microphone as text while it is heard."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asr import terminal
from asr.cli import options

if TYPE_CHECKING:
    from asr.audio.microphone import Source


def live(
    device: Annotated[
        str | None, typer.Option("--device", "-d", help="A microphone's number or name.", show_default="the system's")
    ] = None,
    list_devices: Annotated[bool, typer.Option("--list-devices", help="The microphones there are.")] = False,
    model: options.Model = "english",
    beam: options.Beam = 128,
    lm: options.Lm = None,
    decoding: options.Weights = None,
    hotwords: options.HotWords = None,
    grammar: options.GrammarFile = None,
    reject: options.Reject = None,
    save: Annotated[Path | None, typer.Option(help="Keep the sound in this file (.wav, 16 kHz).")] = None,
    formats: Annotated[
        str | None,
        typer.Option(
            "--format", "-f", help="Formats of --output, as of transcribe.", show_default="by its suffix, or txt"
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="At the end, write all texts: a folder, or a name.")
    ] = None,
    overwrite: terminal.Overwrite = False,
    vad_level: Annotated[
        float | None,
        typer.Option(
            help="What is quieter is silence, in dB of full scale, such as -50; see the meter.", min=-96, max=0
        ),
    ] = None,
    chunk: Annotated[
        float | None,
        typer.Option(help="Seconds heard at a time; fewer are faster, more are better.", show_default="0.32"),
    ] = None,
    right_context: Annotated[
        float | None, typer.Option(help="Seconds heard beyond that, to understand it.", show_default="0.24")
    ] = None,
    file: Annotated[Path | None, typer.Option("--from", help="Play this file instead of a microphone.")] = None,
    speed: Annotated[
        float | None,
        typer.Option(help="With --from: 2 plays twice as fast, 0 as fast as can be.", min=0, show_default="1"),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only texts, and errors on stderr.")] = False,
) -> None:
    """Print what is said into a microphone while it is said, offline; Ctrl-C ends."""
    from asr.audio import microphone
    from asr.transcript import SUFFIXES

    options.refuse(
        (save is not None and save.suffix.lower() != ".wav", "--save", "expected a file's name that ends in .wav"),
        (file and save and file.resolve() == save.resolve(), "--save", "is the file that is played"),
        (formats is not None and output is None, "--format", "is of the files to write: -o NAME"),
        (overwrite and output is None and save is None, "--overwrite", "no files are written without -o or --save"),
        (file is not None and device is not None, "--device", "--from asks for a file instead"),
        (file is None and speed is not None, "--speed", "is of a file that is played: --from FILE"),
    )
    steering = options.steering(model, beam, lm, decoding, hotwords, grammar, reject)
    if list_devices:
        for one in microphone.devices():
            default = ", the default" * one.default
            terminal.show(
                f"{one.number:3}  {terminal.line(one.name)}, {one.sample_rate} Hz, {one.channels} channels{default}\n"
            )
        return
    outputs: dict[str, Path] = {}
    if output is not None:
        # Not Path.is_dir: it raises where a name is too long.
        folder = output.endswith(("/", os.sep)) or os.path.isdir(output)  # noqa: PTH112
        stem = Path(output) / "live" if folder else Path(output)
        by_suffix = {suffix.lower(): kind for kind, suffix in SUFFIXES.items()}
        kinds = options.formats_of(formats or by_suffix.get(stem.suffix.lower(), "txt"))
        if by_suffix.get(stem.suffix.lower()) in kinds:
            stem = stem.with_suffix("")
        outputs = {kind: stem.with_name(stem.name + SUFFIXES[kind]) for kind in kinds}
    for wanted in (*outputs.values(), *([save] if save else [])):
        terminal.refuse_existing(wanted, overwrite)
    number = int(device) if device is not None and device.isdigit() else device
    source = microphone.Playback(file, 1 if speed is None else speed) if file else microphone.Microphone(number)
    lengths = {"chunk_s": chunk, "right_context_s": right_context}
    with terminal.interruptible(), terminal.ending(source.stop), source:
        # The microphone is heard from here on; what is slow to load comes after it.
        if not quiet:
            terminal.note(f"listening to {source.name}, {source.sample_rate} Hz; Ctrl-C ends")
        _listen(
            source,
            options.as_onnx(model),
            steering,
            {name: value for name, value in lengths.items() if value is not None},
            vad_level=vad_level,
            save=save,
            outputs=outputs,
            overwrite=overwrite,
            quiet=quiet,
        )


def _listen(
    source: Source,
    model: str,
    steering: dict[str, Any],
    lengths: dict[str, float],
    *,
    vad_level: float | None,
    save: Path | None,
    outputs: dict[str, Path],
    overwrite: bool,
    quiet: bool,
) -> None:
    """Recognise what a source brings until it ends: on the terminal or as lines on stdout, then into files."""
    from contextlib import nullcontext

    from rich.console import Console

    from asr.audio.recording import Recording
    from asr.cli.display import Display
    from asr.files import write
    from asr.recognizer import Recognizer
    from asr.session import Gate, Session, Trouble, listen
    from asr.stream import Final
    from asr.transcript import WRITERS

    recognizer = Recognizer(model, **steering)
    if not quiet:
        options.note_unspelt(recognizer)
    gate = None if vad_level is None else lambda: Gate(vad_level)
    session = Session(recognizer, source.sample_rate, gate=gate, **lengths)
    with nullcontext() if save is None else Recording(save, overwrite=overwrite) as session.recording:
        shown = not quiet and sys.stdout is not None and sys.stdout.isatty()
        try:
            with Display(Console(), source, session) if shown else nullcontext() as display:
                for events in listen(source, session):
                    for event in events:
                        if isinstance(event, Trouble):
                            terminal.complain(event.text)
                        elif display is not None:
                            display.show(event)
                        elif isinstance(event, Final):
                            terminal.show(f"{event.text}\n")
                    if display is not None:
                        display.draw()
        finally:  # also of what was said before an error
            for kind, target in outputs.items():
                write(target, WRITERS[kind](session.transcript, terminal.line(target.stem)), overwrite=overwrite)
        if session.recording is not None and session.recording.failed is not None:
            raise typer.Exit(1)
