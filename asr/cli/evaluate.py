"""The commands that measure a recogniser on a manifest: evaluate, tune."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click

from asr import terminal
from asr.cli import options
from asr.cli.command import Argument, Option
from asr.errors import AsrError, DecodingError, number_of
from asr.files import write

if TYPE_CHECKING:
    from rich.progress import Progress

    from asr.decoding.confidence import Calibration, Reliability
    from asr.decoding.fusion import Decoding
    from asr.decoding.tuning import Example
    from asr.metrics import Report, Scored
    from asr.recognizer import Recognizer
    from asr.transcript import Transcript


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The options of `asr evaluate`."""

    model: Annotated[str, Argument(help="A run folder, a model file (.onnx), or a bundled name.")]
    manifest: Annotated[Path, Argument(help="JSON lines with the true texts.")]
    steering: options.Steering
    calibration: Annotated[bool, Option("--calibration", help="Also how far the confidences can be counted on.")] = (
        False
    )
    plot: Annotated[Path | None, Option(help="That as a picture (.png), with --calibration.")] = None
    as_json: Annotated[bool, Option("--json", help="The report as JSON.")] = False
    worst: Annotated[int, Option(help="How many of the worst utterances to show.", min=0)] = 10
    output: Annotated[
        Path | None, Option("--output", "-o", help="Also write every reference and hypothesis, as JSON lines.")
    ] = None
    overwrite: options.Overwrite = False


def evaluate(asked: _Asked) -> None:
    """Word and character error rates on a manifest, and where the errors are."""
    from time import perf_counter

    from asr import evaluation, metrics
    from asr.manifest import read
    from asr.recognizer import Recognizer

    plot = asked.plot
    options.refuse(
        (plot is not None and not asked.calibration, "--plot", "shows the confidences: --calibration"),
        (plot is not None and plot.suffix != ".png", "--plot", "expected a file's name that ends in .png"),
    )
    steering = asked.steering.arguments(asked.model)
    for wanted in (asked.output, plot):
        if wanted is not None:
            terminal.refuse_existing(wanted, asked.overwrite)
    if plot is not None:
        from asr.training import plots  # noqa: F401  (without its libraries it fails now, not after the work)
    utterances = read(asked.manifest)
    recognizer = Recognizer(options.as_onnx(asked.model), **steering)
    options.note_unspelt(recognizer)
    failures: list[AsrError] = []
    started = perf_counter()
    with terminal.interruptible(), terminal.progress(terminal.stderr(False)) as progress:
        track = progress.track(utterances, description="recognising")
        found = list(evaluation.recognise(recognizer, track, options.collect(failures)))
    scored = [one for one, _ in found]
    spent = perf_counter() - started
    if not scored:
        raise AsrError(
            f"{asked.manifest}: none of {number_of(len(utterances), 'utterance')} could be read; the first: {failures[0]}"
        )
    report = metrics.report(scored, worst=asked.worst)
    _show(recognizer, report, _reliability(found) if asked.calibration else None, failures, asked)
    speed = sum(one.duration_s for one in scored) / max(spent, 1e-9)
    terminal.note(f"decoded at {speed:.0f} x real time, reading included")
    if asked.output is not None:
        rows = ({"id": one.id, "reference": one.reference, "hypothesis": one.hypothesis} for one in scored)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write(asked.output, lines, overwrite=asked.overwrite)
    if failures:
        terminal.note(
            f"{len(failures)} of {number_of(len(utterances), 'utterance')} failed, see above; the figures are of the others"
        )
        raise click.exceptions.Exit(1)


def _reliability(found: Sequence[tuple[Scored, Transcript]]) -> Reliability:
    """How far the confidences of what was recognised can be counted on."""
    import numpy as np

    from asr.decoding import confidence

    sure = [word.confidence for _, transcript in found for word in transcript.words]
    right = [confidence.right_words(one.reference, one.hypothesis) for one, _ in found]
    return confidence.reliability(np.array(sure), np.concatenate(right))


def _show(
    recognizer: Recognizer, report: Report, reliable: Reliability | None, failures: list[AsrError], asked: _Asked
) -> None:
    """The figures on stdout, and those of the confidences as a picture if that was asked for."""
    if asked.as_json:
        language_model = None if recognizer.lm_path is None else str(recognizer.lm_path)
        figures = report.to_json() | {"failed": [*map(str, failures)], "language_model": language_model}
        if reliable is not None:
            figures["calibration"] = reliable.to_json()
        terminal.show(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    else:
        terminal.show(f"{options.describe(recognizer)}\n\n")
        report.render(terminal.stdout())
        if reliable is not None:
            reliable.render(terminal.stdout())
    if asked.plot is not None and reliable is not None:
        from asr.training import plots

        words = number_of(reliable.counts.sum(), "word")
        title = f"{recognizer.name}: {words}, expected calibration error {reliable.error:.3f}"
        picture = plots.reliability(title, reliable.counts, reliable.confidence, reliable.accuracy)
        write(asked.plot, picture, overwrite=asked.overwrite)


def tune(
    model: Annotated[str, Argument(help="A model file (.onnx), which takes the settings in, or a name.")],
    manifest: Annotated[Path, Argument(help="A dev set, never a test set: JSON lines.")],
    output: Annotated[
        Path | None,
        Option("--output", "-o", help="Write a copy with the settings.", show_default="into the model's own file"),
    ] = None,
    overwrite: options.Overwrite = False,
    lm: options.Lm = None,
    beam: options.Beam = 128,
    rescore: options.Rescore = None,
    closed: Annotated[bool, Option("--closed", help="Only words that the language model knows.")] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Print the settings, change nothing.")] = False,
) -> None:
    """Find the language model's weights on a dev set, calibrate the confidences, and keep both in the model's file."""
    from asr import evaluation
    from asr.decoding import tuning
    from asr.manifest import read
    from asr.models import find_model, is_bundled
    from asr.recognizer import Recognizer

    without = not options.has_lm(model, lm, beam)
    options.refuse(
        (without and closed, "--closed", "is for a language model: --lm FILE"),
        (without and rescore not in (None, "none"), "--rescore", "is for a language model: --lm FILE"),
        (output is not None and dry_run, "--dry-run", "writes nothing, not to --output either"),
        (overwrite and output is None, "--overwrite", "is of a copy: -o FILE"),
    )
    path = find_model(model)
    target = output or path
    if not dry_run:  # before the work
        if output is not None:
            terminal.refuse_existing(output, overwrite)
        if is_bundled(target):
            raise AsrError(f"{target}: comes with the package and stays as it is; write a copy with -o FILE")
        if not os.access(target.parent, os.W_OK):
            raise AsrError(f"{target}: no permission to write there; write a copy elsewhere with -o, or use --dry-run")
    utterances = read(manifest)
    recognizer = Recognizer(model, beam=beam, lm=lm, rescore=rescore, decoding={"unknown": None} if closed else None)
    options.note_unspelt(recognizer)
    terminal.note(options.describe(recognizer))
    failures: list[AsrError] = []
    with terminal.interruptible(lambda: "; nothing was changed"), terminal.progress(terminal.stderr(False)) as progress:
        track = progress.track(utterances, description="running the network")
        examples = list(evaluation.examples(recognizer, track, options.collect(failures)))
        if not any(example.reference for example in examples):
            raise AsrError(f"{manifest}: expected recordings with texts to tune on, got none that can be used")
        best = None if recognizer.lm is None else _best_weights(recognizer, examples, beam, progress)
        calibrations = _calibrate(recognizer, examples, beam, best, progress)
        if not dry_run:
            tuning.store(path, best, calibrations, target)
            with_lm = f"; use it with --lm {recognizer.lm_path}" if output and recognizer.lm_path else ""
            terminal.note(f"{target}: these settings are in it now{with_lm}")
    if failures:
        terminal.note(
            f"{number_of(len(failures), 'recording')} could not be read, see above; the settings are of the others"
        )
        raise click.exceptions.Exit(1)


def _best_weights(recognizer: Recognizer, examples: Sequence[Example], beam: int, progress: Progress) -> Decoding:
    """The language model's weights with the fewest errors."""
    from asr.decoding import tuning

    task = progress.add_task("trying weights", total=None)

    def tell(trial: tuning.Trial) -> None:
        terminal.note(f"{trial}")
        progress.update(task, advance=1)

    assert recognizer.lm is not None
    best = tuning.search(
        examples, recognizer.tokens, recognizer.lm, beam=beam, start=recognizer.decoding, progress=tell
    )
    if recognizer.neural is not None:
        best = tuning.best_share(
            examples,
            recognizer.tokens,
            recognizer.lm,
            recognizer.neural,
            beam=beam,
            start=best.decoding,
            progress=tell,
        )
    terminal.show(f"{best}\n")
    return best.decoding


def _calibrate(
    recognizer: Recognizer, examples: Sequence[Example], beam: int, best: Decoding | None, progress: Progress
) -> dict[str, Calibration]:
    """The confidences' calibration for each kind of decoding that there is enough to learn from."""
    from asr.decoding import tuning
    from asr.decoding.decoder import Decoder

    decoders = {"greedy": Decoder(recognizer.tokens, beam=1), "beam": Decoder(recognizer.tokens, beam=beam)}
    if best is not None:
        decoders["lm"] = Decoder(
            recognizer.tokens, beam=beam, lm=recognizer.lm, decoding=best, neural=recognizer.neural
        )
    calibrations: dict[str, Calibration] = {}
    for kind, decoder in progress.track(decoders.items(), description="calibrating"):
        wer, cer = tuning.error_rates(examples, decoder)
        terminal.show(f"{kind}: WER {wer:.2%}, CER {cer:.2%}\n")
        try:
            calibrations[kind] = tuning.calibrate(examples, decoder)
        except DecodingError as error:
            terminal.note(f"{kind}: not calibrated: {error}")
    return calibrations
