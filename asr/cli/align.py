"""The command `asr align`: when each word of a known text is said."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from asr import terminal
from asr.cli import options
from asr.cli.command import Argument, Option
from asr.errors import AsrError, DecodingError, TokenError


def align(
    audio: Annotated[Path, Argument(help="A recording.")],
    text: Annotated[str, Argument(help="What is said in it: a text file, or the words themselves.")],
    model: options.Model = "english",
    formats: Annotated[
        str, Option("--format", "-f", help="As of transcribe, such as textgrid, ctm, json, srt.")
    ] = "textgrid",
    output: Annotated[
        Path | None, Option("--output", "-o", help="Write this file.", show_default="to the terminal")
    ] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """When each word of a text that is known is said: forced alignment."""
    from asr.files import write
    from asr.recognizer import Recognizer
    from asr.transcript import WRITERS

    kinds = options.formats_of(formats)
    options.refuse(
        (len(kinds) > 1, "--format", "one at a time"),
        (overwrite and output is None, "--overwrite", "is of a file: -o FILE"),
    )
    if output is not None:
        terminal.refuse_existing(output, overwrite)
    with terminal.interruptible():
        recognizer = Recognizer(options.as_onnx(model), beam=1)
        try:
            transcript = recognizer.align(audio, _read(text))
        except (DecodingError, TokenError) as error:
            raise AsrError(f"{audio}: {error}") from None
    written = WRITERS[kinds[0]](transcript, terminal.line(audio.stem))
    if output is None:
        terminal.show(written)
    else:
        write(output, written, overwrite=overwrite)


def _read(text: str) -> str:
    path = Path(text)
    try:
        if not path.is_file():
            if path.suffix == ".txt":
                raise AsrError(f"{path}: no such text; check the path, or give the words themselves")
            return text
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise AsrError(f"{path}: expected a text in UTF-8; save it as UTF-8") from None
    except OSError as error:  # the words themselves are too long for a name
        if path.suffix == ".txt":
            raise AsrError(f"{path}: cannot be read: {error.strerror}; check its mode") from None
        return text
