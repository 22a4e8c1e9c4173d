"""What several commands share: their options, the rules of usage, and what is said about a recogniser."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click

from asr import terminal
from asr.cli.command import Argument, Option
from asr.errors import AsrError, nearest, number_of

if TYPE_CHECKING:
    from asr.recognizer import Recognizer


Model = Annotated[str, Option("--model", "-m", help="A model file (.onnx), a run folder, or a name.")]
Beam = Annotated[
    int, Option(help="Width of the beam search; 1 is greedy decoding. A language model wants 16 or more.", min=1)
]
Lm = Annotated[
    str | None,
    Option(
        "--lm",
        help="A language model: of asr lm train, ARPA, 'bundled' for NAME.lm beside the model's NAME.onnx, or 'none'.",
        show_default="bundled, of a model by name, unless with --beam 1 or --grammar",
    ),
]
Weights = Annotated[
    str | None,
    Option(
        "--decoding",
        help="How much it is heeded, such as lm_weight=0.5,word_bonus=0; see asr tune.",
        show_default="the model's own",
    ),
]
Rescore = Annotated[
    str | None,
    Option(
        "--rescore",
        help="A recurrent language model, of asr lm train --neural, that ranks the best texts anew, or 'none'.",
        show_default="what comes with a bundled language model",
    ),
]
HotWords = Annotated[
    Path | None, Option("--hotwords", help="A file of words and phrases to expect, one a line: Kubernetes^5.")
]
GrammarFile = Annotated[Path | None, Option("--grammar", help="Only these phrases: a file of one a line, or of JSGF.")]
Reject = Annotated[
    float | None,
    Option(help="Nothing rather than a sentence of the grammar so many nats a letter below free text.", min=0),
]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace outputs that exist.")]
SkipExisting = Annotated[bool, Option("--skip-existing", help="Go on where an earlier call stopped.")]
Shard = Annotated[
    str | None, Option("--shard", metavar="N/OF", help="Of all a part, such as 3/16; for arrays of jobs.")
]
Settings = Annotated[list[str] | None, Argument(metavar="[KEY=VALUE]...", help="Settings to override.")]


def refuse(*rules: tuple[object, str, str]) -> None:
    """Raise BadParameter for the first rule that is broken; each rule is (broken, option, message)."""
    for broken, option, message in rules:
        if broken:
            raise click.BadParameter(message, param_hint=option)


@dataclass(frozen=True)
class Steering:
    """What steers the search, as options."""

    beam: Beam = 128
    lm: Lm = None
    decoding: Weights = None
    rescore: Rescore = None
    hotwords: HotWords = None
    grammar: GrammarFile = None
    reject: Reject = None

    def arguments(self, model: str) -> dict[str, Any]:
        """What the options say, as arguments of a Recognizer."""
        without = not has_lm(model, self.lm, self.beam, self.grammar)
        refuse(
            (without and self.decoding is not None, "--decoding", "steers a language model: --lm FILE"),
            (without and self.rescore not in (None, "none"), "--rescore", "is for a language model: --lm FILE"),
            (self.reject is not None and self.grammar is None, "--reject", "is for a grammar: --grammar FILE"),
        )
        return {**vars(self), "decoding": _weights(self.decoding or "")}


def _weights(text: str) -> dict[str, float | None]:
    """Settings of asr.decoding.fusion from NAME=NUMBER,NAME=NUMBER."""
    from asr.decoding.fusion import Decoding

    known = [field.name for field in fields(Decoding)]
    weights: dict[str, float | None] = {}
    for part in text.split(",") if text else []:
        name, _, value = part.partition("=")
        if name not in known:
            raise click.BadParameter(f"'{part}': expected NAME=NUMBER; {nearest(name, known)}", param_hint="--decoding")
        try:
            weights[name] = None if (name, value) == ("unknown", "never") else float(value)
        except ValueError:
            raise click.BadParameter(f"'{part}': expected a number, got {value!r}", param_hint="--decoding") from None
    return weights


def has_lm(model: str, lm: str | None, beam: int, grammar: Path | None = None) -> bool:
    """Whether a Recognizer with these arguments heeds a language model. raises: BadParameter, ModelError."""
    from asr.models import choose_lm

    refuse((beam == 1 and lm not in (None, "none"), "--beam", "1 is greedy; with a language model expected 16 or more"))
    return choose_lm(lm, model, beam=beam, grammar=grammar) is not None


def seconds_of(time: str | None, option: str) -> float | None:
    """Seconds from a time such as 90, 1:30 or 0:01:30.5."""
    if time is None:
        return None
    try:
        parts = [float(part) for part in time.split(":")]
    except ValueError:
        parts = []
    if (
        not 1 <= len(parts) <= 3
        or not all(0 <= part < math.inf for part in parts)
        or any(part >= 60 for part in parts[1:])
    ):
        raise click.BadParameter(f"expected a time such as 90, 1:30 or 0:01:30.5, got {time!r}", param_hint=option)
    return math.fsum(part * 60.0**power for power, part in enumerate(reversed(parts)))


def part_of(shard: str | None) -> tuple[int, int] | None:
    """The number of a part, from 1, and how many there are, of what --shard says. raises: BadParameter."""
    if shard is None:
        return None
    number, _, count = shard.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise click.BadParameter(
            f"expected a number and how many there are, 1/16 to 16/16, got {shard}", param_hint="--shard"
        )
    return int(number), int(count)


def formats_of(names: str) -> list[str]:
    from asr.transcript import WRITERS

    kinds = list(dict.fromkeys(names.split(",")))
    unknown = [kind for kind in kinds if kind not in WRITERS]
    if unknown:
        raise click.BadParameter(f"'{unknown[0]}': {nearest(unknown[0], WRITERS)}", param_hint="--format")
    return kinds


def lm_path(model: str) -> Path:
    """The file of a language model given by path, or by the name of the model that it comes with."""
    from asr.models import find_lm

    return find_lm(model) or Path(model)


def as_onnx(model: str) -> str:
    """A run folder stands for its model, exported beside it where that has not been done yet. A model's name goes first."""
    from asr.models import names

    run = Path(model)
    settings, weights, exported = run / "config.yaml", run / "model.safetensors", run / "model.onnx"
    if model in names() or not any(map(os.path.exists, (settings, weights, exported))):
        return model
    if not exported.exists() or (weights.exists() and exported.stat().st_mtime < weights.stat().st_mtime):
        from asr.training.export import export as write_onnx

        write_onnx(run, exported, overwrite=True)
    return str(exported)


def readable(value: object, *, rate: bool = False) -> str:
    """A value of a model's card for people: at most three decimals, thousands apart, no brackets. rate: an error rate."""
    if isinstance(value, dict):
        return ", ".join(f"{str(key).replace('_', ' ')} {readable(part, rate=rate)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(readable(part, rate=rate) for part in value)
    if isinstance(value, float):
        small = 0 < abs(value) < 0.001
        return f"{value:.2%}" if rate else f"{value:.3g}" if small else f"{value:,.3f}".rstrip("0").rstrip(".")
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "never" if value is None else str(value)


def describe(recognizer: Recognizer) -> str:
    """What recognises, in words."""
    lm = f"language model {recognizer.lm_path}" if recognizer.lm_path else "no language model"
    neural = f", rescored by {recognizer.neural.path}" if recognizer.neural else ""
    return terminal.line(f"model {recognizer.name}, {recognizer.network.path}, {lm}{neural}")


def note_unspelt(recognizer: Recognizer) -> None:
    unspelt = recognizer.decoder.unspelt
    if unspelt:
        few = ", ".join(unspelt[:5]) + ", ..." * (len(unspelt) > 5)
        terminal.note(
            f"{number_of(len(unspelt), 'word')} of the language model cannot be spelt by {recognizer.name}: {few}"
        )


def collect(failures: list[AsrError]) -> Callable[[AsrError], None]:
    """A function that keeps an error, and tells of it at once."""

    def failed(error: AsrError) -> None:
        failures.append(error)
        terminal.complain(error)

    return failed
