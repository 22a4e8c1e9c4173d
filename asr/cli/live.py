"""The command `asr live`: a microphone as text while it is heard."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click

from asr import terminal
from asr.cli import options
from asr.cli.command import Option

if TYPE_CHECKING:
    from asr.audio.microphone import Source


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The options of the command."""

    device: Annotated[
        str | None, Option("--device", "-d", help="A microphone's number or name.", show_default="the system's")
    ] = None
    list_devices: Annotated[bool, Option("--list-devices", help="The microphones there are.")] = False
    model: options.Model = "english"
    steering: options.Steering
    save: Annotated[Path | None, Option(help="Keep the sound in this file (.wav, 16 kHz).")] = None
    formats: Annotated[
        str | None,
        Option("--format", "-f", help="Formats of --output, as of transcribe.", show_default="by its suffix, or txt"),
    ] = None
    output: Annotated[
        str | None, Option("--output", "-o", help="At the end, write all texts: a folder, or a name.")
    ] = None
    overwrite: options.Overwrite = False
    vad_level: Annotated[
        float | None,
        Option(help="What is quieter is silence, in dB of full scale, such as -50; see the meter.", min=-96, max=0),
    ] = None
    chunk: Annotated[
        float | None,
        Option(
            help="Seconds heard at a time; fewer are faster, more are better.", min=0.02, max=30, show_default="0.2"
        ),
    ] = None
    right_context: Annotated[
        float | None, Option(help="Seconds heard beyond that, to understand it.", min=0, max=30, show_default="0.4")
    ] = None
    file: Annotated[Path | None, Option("--from", help="Play this file instead of a microphone.")] = None
    speed: Annotated[
        float | None,
        Option(help="With --from: 2 plays twice as fast, 0 as fast as can be.", min=0, show_default="1"),
    ] = None
    quiet: Annotated[bool, Option("--quiet", "-q", help="Only texts, and errors on stderr.")] = False

    def check(self) -> None:
        """raises: BadParameter where options contradict each other."""
        file, save = self.file, self.save
        options.refuse(
            (save is not None and save.suffix.lower() != ".wav", "--save", "expected a file's name that ends in .wav"),
            (file and save and file.resolve() == save.resolve(), "--save", "is the file that is played"),
            (
                self.formats is not None and self.output is None,
                "--format",
                "is of the files to write: -o NAME",
            ),
            (
                self.overwrite and self.output is None and save is None,
                "--overwrite",
                "no files are written without -o or --save",
            ),
            (file is not None and self.device is not None, "--device", "--from asks for a file instead"),
            (file is None and self.speed is not None, "--speed", "is of a file that is played: --from FILE"),
        )

    def outputs(self) -> dict[str, Path]:
        """The file of each format."""
        from asr.transcript import SUFFIXES

        if self.output is None:
            return {}
        # Not Path.is_dir: it raises where a name is too long.
        folder = self.output.endswith(("/", os.sep)) or os.path.isdir(self.output)  # noqa: PTH112
        stem = Path(self.output) / "live" if folder else Path(self.output)
        by_suffix = {suffix.lower(): kind for kind, suffix in SUFFIXES.items()}
        kinds = options.formats_of(self.formats or by_suffix.get(stem.suffix.lower(), "txt"))
        if by_suffix.get(stem.suffix.lower()) in kinds:
            stem = stem.with_suffix("")
        return {kind: stem.with_name(stem.name + SUFFIXES[kind]) for kind in kinds}


def live(asked: _Asked) -> None:
    """Print what is said into a microphone while it is said, offline; Ctrl-C ends."""
    from asr.audio import microphone

    asked.check()
    steering = asked.steering.arguments(asked.model)
    if asked.list_devices:
        for one in microphone.devices():
            default = ", the default" * one.default
            terminal.show(
                f"{one.number:3}  {terminal.line(one.name)}, {one.sample_rate} Hz, {one.channels} channels{default}\n"
            )
        return
    outputs = asked.outputs()
    for wanted in (*outputs.values(), *([asked.save] if asked.save else [])):
        terminal.refuse_existing(wanted, asked.overwrite)
    source: microphone.Source
    if asked.file:
        source = microphone.Playback(asked.file, 1 if asked.speed is None else asked.speed)
    else:
        device = asked.device
        source = microphone.Microphone(int(device) if device is not None and device.isdigit() else device)
    with terminal.interruptible(), terminal.ending(source.stop), source:
        # The microphone is heard from here on; what is slow to load comes after it.
        if not asked.quiet:
            terminal.note(f"listening to {source.name}, {source.sample_rate} Hz; Ctrl-C ends")
        _listen(source, asked, steering, outputs)


def _listen(source: Source, asked: _Asked, steering: dict[str, Any], outputs: dict[str, Path]) -> None:
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

    recognizer = Recognizer(options.as_onnx(asked.model), **steering)
    if not asked.quiet:
        options.note_unspelt(recognizer)
    level = asked.vad_level
    gate = None if level is None else lambda: Gate(level)
    lengths = {"chunk_s": asked.chunk, "right_context_s": asked.right_context}
    given = {name: value for name, value in lengths.items() if value is not None}
    session = Session(recognizer, source.sample_rate, gate=gate, **given)
    with nullcontext() if asked.save is None else Recording(asked.save, overwrite=asked.overwrite) as session.recording:
        shown = not asked.quiet and sys.stdout is not None and sys.stdout.isatty()
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
                write(target, WRITERS[kind](session.transcript, terminal.line(target.stem)), overwrite=asked.overwrite)
        if session.recording is not None and session.recording.failed is not None:
            raise click.exceptions.Exit(1)
