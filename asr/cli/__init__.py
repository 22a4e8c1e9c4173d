"""The command line: one function a command, each importing what it needs and nothing more."""

from __future__ import annotations

import io
import sys

import click

from asr import __version__, terminal
from asr.cli.command import Group
from asr.errors import AsrError

app = Group(
    "asr",
    {
        "transcribe": (
            "asr.cli.transcribe:transcribe",
            "asr transcribe talk.mp3",
            "asr transcribe -r recordings -f txt,srt -o texts",
        ),
        "align": (
            "asr.cli.align:align",
            "asr align talk.wav talk.txt -o talk.TextGrid",
            "asr align seven.wav seven -f ctm",
        ),
        "live": (
            "asr.cli.live:live",
            "asr live",
            "asr live --save talk.wav -o talk.srt",
            "asr live --from talk.mp3",
        ),
        "serve": (
            "asr.cli.serve:serve",
            "asr serve",
            "asr serve --grammar commands.jsgf --reject 1",
            "asr serve --host 0.0.0.0",
        ),
        "train": (
            "asr.cli.train:train",
            "asr train recipes/fsdd/config.yaml epochs=10 --run runs/small",
        ),
        "adapt": (
            "asr.cli.train:adapt",
            "asr adapt runs/english me.jsonl -o runs/me",
            "asr export runs/me -o me.onnx",
        ),
        "evaluate": ("asr.cli.evaluate:evaluate", "asr evaluate english data/test.jsonl"),
        "report": ("asr.cli.train:report", "asr report runs/digits -o report.html"),
        "export": ("asr.cli.train:export", "asr export runs/digits -o digits.onnx"),
        "info": ("asr.cli.info:info", "asr info english"),
        "label": (
            "asr.cli.label:label",
            "asr label -r recordings -o train.jsonl --teacher whisper-small --language pt",
        ),
        "models": ("asr.cli.info:models", "asr models"),
        "doctor": (
            "asr.cli.manifest:doctor",
            "asr doctor recipes/fsdd/data/train.jsonl --config recipes/fsdd/config.yaml",
        ),
        "summary": ("asr.cli.train:summary", "asr summary recipes/fsdd/config.yaml network.cell=gru"),
        "tune": ("asr.cli.evaluate:tune", "asr tune english data/dev.jsonl -o tuned.onnx"),
        "export-manifest": (
            "asr.cli.manifest:export_manifest",
            "asr export-manifest train.jsonl --kaldi data/train --lhotse cuts.jsonl",
        ),
        "shard": (
            "asr.cli.manifest:shard",
            "asr shard train.jsonl -o shards",
            "asr train config.yaml data.train=shards",
        ),
        "lm": ("asr.cli.lm:app",),
        "import": ("asr.cli.manifest:app",),
    },
    help="Train a speech recogniser, carry it in one file, run it without PyTorch.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def _complete(context: click.Context, _parameter: click.Parameter, shell: str | None) -> None:
    """Print what a shell reads to complete commands and options."""
    from click import shell_completion

    if shell is not None and (kind := shell_completion.get_completion_class(shell)) is not None:
        terminal.show(kind(app, {}, "asr", "_ASR_COMPLETE").source() + "\n")
        context.exit()


click.version_option(__version__, message="asr %(version)s")(app)
click.option(
    "--show-completion",
    type=click.Choice(["bash", "zsh", "fish"]),
    is_eager=True,
    expose_value=False,
    callback=_complete,
    help="Print what completes commands and options with Tab in this shell.",
)(app)


def main() -> None:
    """Entry point: errors in the input are one line on stderr and exit status 1."""
    terminal.own_stderr()
    terminal.own_stdout()
    terminal.hear_log()
    for stream in (sys.stdout, sys.stderr):  # help and tables go on where an encoding lacks a letter; texts do not
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    try:
        # Also as python -m asr, or shell completion would be of python.
        sys.exit(app.main(prog_name="asr", standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:  # Ctrl-C before or after a command's own work
        terminal.complain("interrupted")
        sys.exit(130)
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
