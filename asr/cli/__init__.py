"""The command line: one function a command, each importing what it needs and nothing more."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from asr import __version__, terminal
from asr.cli import align, evaluate, info, label, live, lm, manifest, serve, train, transcribe
from asr.errors import AsrError

app = typer.Typer(
    help="Train a speech recogniser, carry it in one file, run it without PyTorch.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(lm.app, name="lm")
app.add_typer(manifest.app, name="import")
for command, examples in (
    (transcribe.transcribe, "Examples: `asr transcribe talk.mp3` — `asr transcribe -r recordings -f txt,srt -o texts`"),
    (align.align, "Examples: `asr align talk.wav talk.txt -o talk.TextGrid` — `asr align seven.wav seven -f ctm`"),
    (live.live, "Examples: `asr live` — `asr live --save talk.wav -o talk.srt` — `asr live --from talk.mp3`"),
    (
        serve.serve,
        "Examples: `asr serve` — `asr serve --grammar commands.jsgf --reject 1` — `asr serve --host 0.0.0.0`",
    ),
    (train.train, "Example: `asr train recipes/fsdd/config.yaml network.hidden=128 epochs=10 --run runs/small`"),
    (train.adapt, "Example: `asr adapt runs/english me.jsonl -o runs/me`, then `asr export runs/me -o me.onnx`"),
    (evaluate.evaluate, "Example: `asr evaluate english data/test.jsonl`"),
    (train.report, "Example: `asr report runs/digits -o report.html`"),
    (train.export, "Example: `asr export runs/digits -o digits.onnx`"),
    (info.info, "Example: `asr info english`"),
    (label.label, "Example: `asr label -r recordings -o train.jsonl --teacher whisper-small --language pt`"),
    (info.models, "Example: `asr models`"),
    (manifest.doctor, "Example: `asr doctor recipes/fsdd/data/train.jsonl --config recipes/fsdd/config.yaml`"),
    (train.summary, "Example: `asr summary recipes/fsdd/config.yaml network.cell=gru`"),
    (evaluate.tune, "Example: `asr tune english data/dev.jsonl -o tuned.onnx`"),
    (manifest.export_manifest, "Example: `asr export-manifest train.jsonl --kaldi data/train --lhotse cuts.jsonl`"),
):
    app.command(epilog=examples)(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        terminal.show(f"asr {__version__}\n")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: errors in the input are one line on stderr and exit status 1."""
    terminal.own_stderr()
    terminal.hear_log()
    for stream in (sys.stdout, sys.stderr):  # help and tables go on where an encoding lacks a letter; texts do not
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    try:
        app(prog_name="asr")  # also as python -m asr, or shell completion would be of python
    except AsrError as error:
        terminal.complain(error)
        sys.exit(1)
    except ModuleNotFoundError as error:
        extras = {
            "torch": "train",
            "torchaudio": "train",
            "lightning": "train",
            "matplotlib": "train",
            "onnx": "train",
            "safetensors": "train",
            "librosa": "plots",
            "faster_whisper": "label",
            "sentencepiece": "train",
            "aiohttp": "serve",
        }
        extra = extras.get(str(error.name).split(".")[0])
        if extra is None:
            raise
        terminal.complain(
            f"this command needs {error.name}, which is not installed; in a clone of this project: pip install '.[{extra}]'"
        )
        sys.exit(1)
    except ImportError as error:
        if not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        sys.exit(130)  # Ctrl-C while a library was loading
    except BrokenPipeError:  # the reader of our output, such as head, has had enough
        sys.stderr.close()
        sys.exit(1)
