"""The command line: one function a command, each importing what it needs and nothing more."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asr import cli_lm, cli_manifest, terminal
from asr.errors import AsrError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from rich.console import Console

    from asr.audio.microphone import Source
    from asr.batch import Job
    from asr.manifest import Utterance
    from asr.metrics import Scored
    from asr.recognizer import Recognizer
    from asr.transcript import Transcript

app = typer.Typer(
    help="Train a speech recogniser, carry it in one file, run it without PyTorch.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cli_lm.app, name="lm")
app.add_typer(cli_manifest.app, name="import")

Model = Annotated[str, typer.Option("--model", "-m", help="A model file (.onnx), a run folder, or a name.")]
Beam = Annotated[
    int, typer.Option(help="Width of the beam search; 1 is greedy decoding. A language model wants 16 or more.", min=1)
]
Lm = Annotated[
    str | None,
    typer.Option(
        "--lm",
        help="A language model: of asr lm train, ARPA, 'bundled' for NAME.lm beside the model's NAME.onnx, or 'none'.",
        show_default="bundled, of a model by name, unless with --beam 1 or --grammar",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--decoding",
        help="How much it is heeded: lm_weight=0.8,word_bonus=1,unknown=-6; see asr tune.",
        show_default="the model's own",
    ),
]
HotWords = Annotated[
    Path | None, typer.Option("--hotwords", help="A file of words and phrases to expect, one a line: Kubernetes^5.")
]
GrammarFile = Annotated[
    Path | None, typer.Option("--grammar", help="Only these phrases: a file of one a line, or of JSGF.")
]
Reject = Annotated[
    float | None,
    typer.Option(help="Nothing rather than a sentence of the grammar so many nats a letter below free text.", min=0),
]
Settings = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to override.")]


@app.command(epilog="Examples: `asr transcribe talk.mp3` — `asr transcribe -r recordings -f txt,srt -o texts`")
def transcribe(
    inputs: Annotated[
        list[str],
        typer.Argument(help="Recordings, folders of them, patterns; - reads from a pipe.", show_default=False),
    ],
    model: Model = "english",
    formats: Annotated[
        str, typer.Option("--format", "-f", help="txt, srt, vtt, tsv, json, ctm, textgrid; several with commas.")
    ] = "txt",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write files into this folder.")] = None,
    beam: Beam = 128,
    lm: Lm = None,
    decoding: Weights = None,
    hotwords: HotWords = None,
    grammar: GrammarFile = None,
    reject: Reject = None,
    n_best: Annotated[int, typer.Option(help="List so many texts of each stretch in the format json.", min=1)] = 1,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", help="Processes.", min=1, show_default="all cores for 4 files or more")
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Also the folders within folders.")] = False,
    overwrite: terminal.Overwrite = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Go on where an earlier call stopped.")
    ] = False,
    threads: Annotated[int, typer.Option(help="Threads of the network in each process; one is fastest.", min=1)] = 1,
    rate: Annotated[int | None, typer.Option(help="The pipe has raw 16-bit mono samples at this rate, in Hz.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors on stderr.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="A line on stderr for each recording.")] = False,
) -> None:
    """Print the text of recordings, or write it to files, offline."""
    from time import perf_counter

    from asr import batch
    from asr.recognizer import Recognizer

    kinds = _formats(formats)
    piped = inputs == ["-"]
    replace = overwrite or skip_existing  # one that is left of an unfinished recording is replaced too
    _refuse(
        (output is None and len(kinds) > 1, "--format", "several formats need a folder to go to: -o DIR"),
        (quiet and verbose, "--quiet", "--verbose asks for the opposite"),
        (overwrite and skip_existing, "--overwrite", "--skip-existing asks for the opposite"),
        (replace and output is None, "--overwrite, --skip-existing", "no files are written without -o DIR"),
        ("-" in inputs and not piped, "INPUTS", "- reads from a pipe and stands alone; a file of that name is ./-"),
        (rate is not None and not piped, "--rate", "is for raw samples from a pipe: give - as the only input"),
        (piped and (recursive or jobs), "--recursive, --jobs", "a pipe is one recording"),
        (n_best > 1 and kinds != ["json"], "--n-best", "only the format json has room for it: -f json"),
        (n_best > beam, "--n-best", f"the beam of {beam} ends with no more texts than that: --beam {n_best}"),
    )
    options = _steering(model, beam, lm, decoding, hotwords, grammar, reject) | {"threads": threads, "n_best": n_best}
    started = perf_counter()
    recordings, nothing = ({Path("stdin"): Path("stdin")}, []) if piped else batch.find(inputs, recursive=recursive)
    if output is None and len(recordings) > 1 and kinds[0] not in ("txt", "ctm"):
        raise typer.BadParameter(
            f"{kinds[0]} of {len(recordings)} recordings cannot be told apart on stdout: -o DIR", param_hint="--format"
        )
    todo, skipped, refused = batch.plan(recordings, output, kinds, overwrite=overwrite, skip_existing=skip_existing)
    for error in nothing + refused:
        terminal.complain(error)
    model = _as_onnx(model)
    if verbose and todo:
        count = batch.processes(len(todo), jobs)
        recognizer = Recognizer(model, **options)
        terminal.note(f"{_models(recognizer)}, {count} process{'es' * (count > 1)}")
        _note_unspelt(recognizer)
        del recognizer  # every process loads its own
    hint = "; --skip-existing goes on from here" if output and not piped else ""
    if piped and todo:
        with terminal.interruptible(hint):
            recognizer = Recognizer(model, **options)
            _transcribe_pipe(todo[0], kinds[0], recognizer, rate, replace, verbose)
        return
    done, audio_s = 0, 0.0
    results = batch.transcribe([job.path for job in todo], model, jobs=jobs, **options)
    with (
        terminal.interruptible(hint),
        closing(results),
        terminal.progress(terminal.stderr(quiet or len(todo) < 2)) as progress,
    ):
        task = progress.add_task("transcribing", total=len(todo))
        for job, attempt in zip(todo, results, strict=True):
            try:
                if isinstance(attempt.result, AsrError):
                    raise attempt.result
                audio_s += attempt.result.duration_s
                prefix = f"{terminal.line(job.path)}\t" if len(recordings) > 1 and kinds == ["txt"] else ""
                _deliver(attempt.result, job, kinds[0], replace, prefix)
                if verbose:
                    terminal.note(_told(job.path, attempt.result, attempt.seconds))
                done += 1
            except AsrError as error:
                terminal.complain(error)
            speed = audio_s / (perf_counter() - started)
            progress.update(task, advance=1, description=f"transcribing, {speed:.0f} x real time")
    failed = len(nothing) + len(recordings) - len(skipped) - done
    if len(recordings) > 1 and not quiet:
        counts = f"{done} of {len(recordings)} recordings, {audio_s / 3600:.2f} h of audio"
        notes = [f"{len(skipped)} skipped"] * bool(skipped) + [f"{failed} failed, see above"] * bool(failed)
        spent = perf_counter() - started
        terminal.note("; ".join([f"{counts} in {spent:.1f} s, {audio_s / spent:.0f} x real time", *notes]))
    if failed:
        raise typer.Exit(1)


@app.command(epilog="Examples: `asr live` — `asr live --save talk.wav -o talk.srt` — `asr live --from talk.mp3`")
def live(
    device: Annotated[
        str | None, typer.Option("--device", "-d", help="A microphone's number or name.", show_default="the system's")
    ] = None,
    list_devices: Annotated[bool, typer.Option("--list-devices", help="The microphones there are.")] = False,
    model: Model = "english",
    beam: Beam = 128,
    lm: Lm = None,
    decoding: Weights = None,
    hotwords: HotWords = None,
    grammar: GrammarFile = None,
    reject: Reject = None,
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

    _refuse(
        (save is not None and save.suffix.lower() != ".wav", "--save", "expected a file's name that ends in .wav"),
        (file and save and file.resolve() == save.resolve(), "--save", "is the file that is played"),
        (formats is not None and output is None, "--format", "is of the files to write: -o NAME"),
        (overwrite and output is None and save is None, "--overwrite", "no files are written without -o or --save"),
        (file is not None and device is not None, "--device", "--from asks for a file instead"),
        (file is None and speed is not None, "--speed", "is of a file that is played: --from FILE"),
    )
    steering = _steering(model, beam, lm, decoding, hotwords, grammar, reject)
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
        kinds = _formats(formats or by_suffix.get(stem.suffix.lower(), "txt"))
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
            _as_onnx(model),
            steering,
            {name: value for name, value in lengths.items() if value is not None},
            vad_level=vad_level,
            save=save,
            outputs=outputs,
            overwrite=overwrite,
            quiet=quiet,
        )


@app.command(epilog="Example: `asr train recipes/fsdd/config.yaml network.hidden=128 epochs=10 --run runs/small`")
def train(
    config: Annotated[Path, typer.Argument(help="A recipe's config.yaml.", show_default=False)],
    overrides: Settings = None,
    run: Annotated[Path | None, typer.Option(help="The run folder.", show_default="runs/<name>")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1)] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Print at the end where the time went.")] = False,
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
        raise typer.Exit(130)


@app.command(epilog="Example: `asr adapt runs/english me.jsonl -o runs/me`, then `asr export runs/me -o me.onnx`")
def adapt(
    model: Annotated[Path, typer.Argument(help="A run folder, or one of its .safetensors files.", show_default=False)],
    manifest: Annotated[Path, typer.Argument(help="JSON lines: the new recordings.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The run folder to write.", show_default=False)],
    overrides: Settings = None,
    dev: Annotated[
        Path | None, typer.Option(help="A manifest to hold out.", show_default="a fifth of the recordings")
    ] = None,
    replay: Annotated[
        float, typer.Option(help="Share of the old training data in what is trained on.", min=0, max=0.9)
    ] = 0.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1)] = None,
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
        raise typer.Exit(130)
    terminal.show("".join(f"{one}\n" for one in compared))


@app.command(epilog="Example: `asr evaluate english data/test.jsonl`")
def evaluate(
    model: Annotated[
        str, typer.Argument(help="A run folder, a model file (.onnx), or a bundled name.", show_default=False)
    ],
    manifest: Annotated[Path, typer.Argument(help="JSON lines with the true texts.", show_default=False)],
    beam: Beam = 128,
    lm: Lm = None,
    decoding: Weights = None,
    hotwords: HotWords = None,
    grammar: GrammarFile = None,
    reject: Reject = None,
    calibration: Annotated[
        bool, typer.Option("--calibration", help="Also how far the confidences can be counted on.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="That as a picture (.png), with --calibration.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
    worst: Annotated[int, typer.Option(help="How many of the worst utterances to show.", min=0)] = 10,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write every reference and hypothesis, as JSON lines.")
    ] = None,
    overwrite: terminal.Overwrite = False,
) -> None:
    """Word and character error rates on a manifest, and where the errors are."""
    import json
    from time import perf_counter

    import numpy as np
    from rich.console import Console

    from asr import metrics
    from asr.decoding import confidence
    from asr.manifest import read
    from asr.recognizer import Recognizer
    from asr.transcript import write, write_bytes

    _refuse(
        (plot is not None and not calibration, "--plot", "shows the confidences: --calibration"),
        (plot is not None and plot.suffix != ".png", "--plot", "expected a file's name that ends in .png"),
    )
    steering = _steering(model, beam, lm, decoding, hotwords, grammar, reject)
    for wanted in (output, plot):
        if wanted is not None:
            terminal.refuse_existing(wanted, overwrite)
    if plot is not None:
        from asr.training import plots
    console = Console(stderr=True)
    utterances = read(manifest)
    model = _as_onnx(model)
    recognizer = Recognizer(model, **steering)
    _note_unspelt(recognizer)
    failures: list[str] = []
    sure: list[float] = []
    started = perf_counter()
    with terminal.interruptible():
        scored = list(_recognise(recognizer, utterances, failures, console, sure))
    spent = perf_counter() - started
    if not scored:
        raise AsrError(f"{manifest}: none of {len(utterances)} utterances could be read; the first: {failures[0]}")
    report = metrics.report(scored, worst=worst)
    reliable = None
    if calibration:
        known = [confidence.right_words(one.reference, one.hypothesis) for one in scored]
        reliable = confidence.reliability(np.array(sure), np.concatenate(known))
    if as_json:
        language_model = None if recognizer.lm_path is None else str(recognizer.lm_path)
        figures = report.to_json() | {"failed": failures, "language_model": language_model}
        if reliable is not None:
            figures["calibration"] = reliable.to_json()
        terminal.show(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    else:
        terminal.show(f"{_models(recognizer)}\n\n")
        report.render(Console())
        if reliable is not None:
            reliable.render(Console())
    if plot is not None and reliable is not None:
        title = f"{recognizer.name}: {len(sure)} words, expected calibration error {reliable.error:.3f}"
        picture = plots.reliability(title, reliable.counts, reliable.confidence, reliable.accuracy)
        write_bytes(plot, picture, overwrite=overwrite)
    speed = sum(one.duration_s for one in scored) / max(spent, 1e-9)
    console.print(f"decoded at {speed:.0f} x real time, reading included", highlight=False)
    if output is not None:
        rows = ({"id": one.id, "reference": one.reference, "hypothesis": one.hypothesis} for one in scored)
        write(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), overwrite=overwrite)
    if failures:
        typer.echo(
            f"{len(failures)} of {len(utterances)} utterances failed and are not in the figures, see above", err=True
        )
        raise typer.Exit(1)


@app.command(epilog="Example: `asr report runs/digits -o report.html`")
def report(
    run: Annotated[Path, typer.Argument(help="A run folder, finished or still in training.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("report.html"),
    manifest: Annotated[
        Path | None, typer.Option(help="The set to look at: JSON lines.", show_default="the training's dev set")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1)] = None,
    overwrite: terminal.Overwrite = False,
) -> None:
    """One web page about a training: curves, gradients, errors, and the worst utterances to hear and see."""
    from asr.transcript import write

    terminal.refuse_existing(output, overwrite)
    if output.is_dir() or not os.access(output.parent, os.W_OK):  # before the work
        raise AsrError(f"{output}: expected the name of a file that may be written; name another with -o")
    from asr.training.report import build

    with terminal.interruptible():
        page = build(run, manifest=manifest, device=device, threads=threads)
    write(output, page, overwrite=overwrite)
    terminal.note(f"{output}: {output.stat().st_size / 1e6:.1f} MB; open it in a browser")


@app.command(epilog="Example: `asr export runs/digits -o digits.onnx`")
def export(
    run: Annotated[Path, typer.Argument(help="A run folder, or one of its .safetensors files.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The ONNX file to write.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="The model's name.", show_default="the training's")] = None,
    int8: Annotated[bool, typer.Option("--int8", help="A quarter of the size, and faster on a CPU.")] = False,
    temperature: Annotated[
        float,
        typer.Option(min=0.1, max=10, help="Divides the logits: above 1 for a network that is too sure of itself."),
    ] = 1.0,
    manifest: Annotated[
        Path | None, typer.Option(help="Measure the WER on this, of int8 beside float32, and keep it in the file.")
    ] = None,
    overwrite: terminal.Overwrite = False,
) -> None:
    """Write a trained model as one file that runs without PyTorch."""
    import tempfile

    from asr.training import export as exporter

    exporter.export(run, output, name=name, int8=int8, temperature=temperature, overwrite=overwrite)
    typer.echo(f"{output}: {output.stat().st_size / 1e6:.2f} MB", err=True)
    if manifest is not None:
        rates = {"int8" if int8 else "float32": _word_error_rate(output, manifest)}
        if int8:
            with tempfile.TemporaryDirectory() as folder:
                exporter.export(run, Path(folder) / "float.onnx", temperature=temperature)
                rates["float32"] = _word_error_rate(Path(folder) / "float.onnx", manifest)
        exporter.annotate(output, {"greedy WER on " + manifest.name: rates})
        typer.echo(", ".join(f"WER {kind} {rate:.2%}" for kind, rate in rates.items()), err=True)


@app.command(epilog="Example: `asr info english`")
def info(
    model: Annotated[
        str, typer.Argument(help="A model file (.onnx), a run folder, or a name.", show_default=False)
    ] = "english",
    as_json: Annotated[bool, typer.Option("--json", help="The whole card as JSON.")] = False,
) -> None:
    """What a model file is: vocabulary, features, network, training, licence, figures."""
    import json

    from asr.network import find_lm, find_model
    from asr.recognizer import Recognizer

    path, lm = find_model(_as_onnx(model)), find_lm(model)
    recognizer = Recognizer(path)
    card, tokens = recognizer.card, recognizer.tokens
    longer = [symbol for symbol in tokens.symbols[1:] if len(symbol) > 1]
    pieces = f" and {len(longer)} pieces: {', '.join(map(repr, longer[:8]))}, ..." if longer else ""
    if as_json:
        terminal.show(json.dumps(card, indent=1, ensure_ascii=False) + "\n")
        return

    def part(of: dict[str, Any], key: str) -> dict[str, Any]:
        return of[key] if isinstance(of.get(key), dict) else {}

    def filled(pattern: str, values: dict[str, Any]) -> str:
        try:
            return pattern.format_map(values)
        except KeyError:  # a model can do without what a recogniser does not need
            return ""

    def percentages(rates: object) -> object:
        pairs = rates.items() if isinstance(rates, dict) else [("", rates)]
        shown = (f"{kind} {rate:.2%}" if isinstance(rate, float) else f"{kind} {rate}" for kind, rate in pairs)
        return ", ".join(shown).strip()

    features, network = part(part(card, "config"), "features"), part(part(card, "config"), "network")
    columns = "{n_mfcc} coefficients" if features.get("kind") == "mfcc" else "{n_mels} bands"
    directions = "both directions" if network.get("bidirectional") else "one direction"
    rows = {
        "name": card["name"],
        "file": f"{path} ({path.stat().st_size / 1e6:.2f} MB, {card.get('precision', 'float32')})",
        "language model": lm and f"{lm} ({lm.stat().st_size / 1e6:.2f} MB)",
        "trained on": card.get("description"),
        "licence": card.get("licence"),
        "features": filled("{kind}, " + columns, features),
        "network": filled("{layers} x {hidden} {cell}, " + directions, network),
        "frame": f"{1000 * card['frame_shift'] / card['sample_rate']:.0f} ms",
        "vocabulary": f"{len(tokens)} tokens: {tokens.alphabet!r}" + pieces,
        **{key.replace("_", " "): value for key, value in part(card, "training").items()},
        **{key: percentages(value) for key, value in part(card, "figures").items()},
        "decoding": ", ".join(f"{name} {'never' if x is None else x}" for name, x in part(card, "decoding").items()),
        "calibrated for": ", ".join(part(card, "calibration")),
        "written by": filled("asr {version}, ", card) + f"schema {card['schema']}",
    }
    rows = {terminal.line(key): terminal.line(value) for key, value in rows.items() if value not in (None, "")}
    width = max(map(len, rows))
    terminal.show("".join(f"{key:<{width}}  {value}\n" for key, value in rows.items()))


@app.command(epilog="Example: `asr doctor recipes/fsdd/data/train.jsonl --config recipes/fsdd/config.yaml`")
def doctor(
    manifest: Annotated[Path, typer.Argument(help="JSON lines to check before training.", show_default=False)],
    config: Annotated[
        Path | None,
        typer.Option(help="The recipe's settings: alphabet, normaliser, frame shift.", show_default="English"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The findings as JSON.")] = False,
    examples: Annotated[int, typer.Option(help="How many examples of each fault to show.", min=0)] = 3,
) -> None:
    """Check audio and texts before hours of training are spent on them; exit 1 if there are errors."""
    from rich.console import Console

    from asr.audio import SAMPLE_RATE
    from asr.doctor import check
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
    with terminal.progress(Console(stderr=True)) as progress:
        diagnosis = check(read(manifest), tokens, normaliser(normalise), shift_s, manifest=manifest, progress=progress)
    if as_json:
        terminal.show(diagnosis.to_json() + "\n")
    else:
        diagnosis.render(Console(), examples=examples)
    if diagnosis.errors:
        raise typer.Exit(1)


@app.command(epilog="Example: `asr summary recipes/fsdd/config.yaml network.cell=gru`")
def summary(
    config: Annotated[Path, typer.Argument(help="A recipe's config.yaml.", show_default=False)],
    overrides: Settings = None,
    duration_s: Annotated[float, typer.Option("--seconds", help="Length of audio for the shapes.", min=0.1)] = 10.0,
) -> None:
    """The network of a configuration: layers, output shapes, parameters, receptive field, frame shift."""
    from rich.console import Console
    from rich.table import Table

    from asr.audio import SAMPLE_RATE
    from asr.training import model
    from asr.training.config import read

    settings = read(config, overrides or [])
    network = model.AcousticModel(settings, settings.data.n_tokens)
    table = Table("layer", "kind", "output (T, features)", "parameters", box=None, pad_edge=False)
    for column in (2, 3):
        table.columns[column].justify = "right"
    for row in model.summary(network, duration_s):
        table.add_row(row.name, row.kind, " x ".join(map(str, row.shape)), f"{row.parameters:,}")
    console = Console()
    console.print(table, highlight=False)
    total = sum(parameter.numel() for parameter in network.parameters())
    console.print(
        f"\n{settings.name}: {total:,} parameters, {total * 4 / 1e6:.1f} MB as float32\n"
        f"one frame each {1000 * network.frame_shift / SAMPLE_RATE:.0f} ms; its convolutions see "
        f"{1000 * network.receptive_field / SAMPLE_RATE:.0f} ms, the recurrent layers "
        f"{'the whole utterance' if settings.network.bidirectional else 'everything before it'}",
        highlight=False,
    )


@app.command(epilog="Example: `asr tune english.onnx data/dev.jsonl --lm english.lm`")
def tune(
    model: Annotated[
        str, typer.Argument(help="The model file (.onnx) to write the settings into.", show_default=False)
    ],
    manifest: Annotated[Path, typer.Argument(help="A dev set, never a test set: JSON lines.", show_default=False)],
    lm: Lm = None,
    beam: Beam = 128,
    closed: Annotated[bool, typer.Option("--closed", help="Only words that the language model knows.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the settings, change nothing.")] = False,
) -> None:
    """Find the language model's weights on a dev set, calibrate the confidences, and keep both in the model's file."""
    from rich.console import Console

    from asr import audio
    from asr.decoding import tuning
    from asr.decoding.confidence import Calibration, ConfidenceError
    from asr.decoding.decoder import Decoder
    from asr.manifest import read
    from asr.network import find_model
    from asr.recognizer import Recognizer
    from asr.text import normaliser

    _refuse((closed and not _has_lm(model, lm, beam), "--closed", "is for a language model: --lm FILE"))
    path = find_model(model)
    if not dry_run and not os.access(path.parent, os.W_OK):  # before the work
        raise AsrError(f"{path}: no permission to write beside it; copy the model to where you may, or use --dry-run")
    utterances = read(manifest)
    recognizer = Recognizer(model, beam=beam, lm=lm, decoding={"unknown": None} if closed else None)
    _note_unspelt(recognizer)
    terminal.note(_models(recognizer))
    normalise = normaliser(recognizer.card.get("normaliser", "none"))
    examples: list[tuning.Example] = []
    failed = 0
    decoders = {"greedy": Decoder(recognizer.tokens, beam=1), "beam": Decoder(recognizer.tokens, beam=beam)}
    best: tuning.Trial | None = None
    with terminal.interruptible("; nothing was changed"), terminal.progress(Console(stderr=True)) as progress:
        for utterance in progress.track(utterances, description="running the network"):
            try:
                waveform = audio.read(utterance.audio, offset_s=utterance.offset_s, duration_s=utterance.duration_s)
                examples.append(tuning.Example(recognizer.log_probs(waveform), normalise(utterance.text)))
            except AsrError as error:
                terminal.complain(error)
                failed += 1
        if not any(example.reference for example in examples):
            raise AsrError(f"{manifest}: expected recordings with texts to tune on, got none that can be used")
        if recognizer.lm is not None:
            task = progress.add_task("trying weights", total=None)

            def tell(trial: tuning.Trial) -> None:
                terminal.note(f"{trial}")
                progress.update(task, advance=1)

            best = tuning.search(
                examples, recognizer.tokens, recognizer.lm, beam=beam, start=recognizer.decoding, progress=tell
            )
            decoders["lm"] = Decoder(recognizer.tokens, beam=beam, lm=recognizer.lm, decoding=best.decoding)
            terminal.show(f"{best}\n")
        calibrations: dict[str, Calibration] = {}
        for kind, decoder in progress.track(decoders.items(), description="calibrating"):
            wer, cer = tuning.error_rates(examples, decoder)
            terminal.show(f"{kind}: WER {wer:.2%}, CER {cer:.2%}\n")
            try:
                calibrations[kind] = tuning.calibrate(examples, decoder)
            except ConfidenceError as error:
                terminal.note(f"{kind}: not calibrated: {error}")
        if not dry_run:
            tuning.store(path, best.decoding if best else None, calibrations)
            terminal.note(f"{path}: these settings are in it now")
    if failed:
        terminal.note(f"{failed} recordings could not be read, see above; the settings are of the others")
        raise typer.Exit(1)


app.command(
    "export-manifest", epilog="Example: `asr export-manifest train.jsonl --kaldi data/train --lhotse cuts.jsonl`"
)(cli_manifest.export_manifest)


def main() -> None:
    """Entry point: errors in the input are one line on stderr and exit status 1."""
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
            "sentencepiece": "train",
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


def _refuse(*faults: tuple[object, str, str]) -> None:
    """The first of the faults that is one, as wrong usage. Each: whether it is, the option, the message."""
    for wrong, option, message in faults:
        if wrong:
            raise typer.BadParameter(message, param_hint=option)


def _steering(
    model: str,
    beam: int,
    lm: str | None,
    decoding: str | None,
    hotwords: Path | None,
    grammar: Path | None,
    reject: float | None,
) -> dict[str, Any]:
    """What the options say, as arguments of a Recognizer."""
    idle = decoding is not None and not _has_lm(model, lm, beam, grammar)
    _refuse(
        (idle, "--decoding", "steers a language model: --lm FILE"),
        (reject is not None and grammar is None, "--reject", "is for a grammar: --grammar FILE"),
    )
    from dataclasses import fields

    from asr.decoding.fusion import Decoding

    known = [field.name for field in fields(Decoding)]
    weights: dict[str, float | None] = {}
    for part in (decoding or "").split(",") if decoding else []:
        name, _, value = part.partition("=")
        if name not in known:
            raise typer.BadParameter(f"'{part}': expected NAME=NUMBER; {nearest(name, known)}", param_hint="--decoding")
        try:
            weights[name] = None if (name, value) == ("unknown", "never") else float(value)
        except ValueError:
            raise typer.BadParameter(f"'{part}': expected a number, got {value!r}", param_hint="--decoding") from None
    return {"beam": beam, "lm": lm, "decoding": weights, "hotwords": hotwords, "grammar": grammar, "reject": reject}


def _has_lm(model: str, lm: str | None, beam: int, grammar: Path | None = None) -> bool:
    """Whether a Recognizer with these arguments heeds a language model."""
    from asr.recognizer import default_lm

    return default_lm(model, beam, grammar) is not None if lm is None else lm != "none"


def _models(recognizer: Recognizer) -> str:
    """What recognises, in words."""
    lm = f"language model {recognizer.lm_path}" if recognizer.lm_path else "no language model"
    return terminal.line(f"model {recognizer.name}, {recognizer.network.path}, {lm}")


def _note_unspelt(recognizer: Recognizer) -> None:
    unspelt = recognizer.decoder.unspelt
    if unspelt:
        few = ", ".join(unspelt[:5]) + ", ..." * (len(unspelt) > 5)
        terminal.note(f"{len(unspelt)} words of the language model cannot be spelt by {recognizer.name}: {few}")


def _transcribe_pipe(
    job: Job, kind: str, recognizer: Recognizer, rate: int | None, overwrite: bool, verbose: bool
) -> None:
    """Standard input as one recording, to the job's outputs or in one format to the terminal."""
    from time import perf_counter

    from asr.audio import AudioError, pipe_blocks

    broken: list[AudioError] = []

    def heard() -> Iterator[np.ndarray]:
        try:
            yield from pipe_blocks(sys.stdin.buffer, rate=rate)
        except AudioError as error:  # what came before it is worth having
            broken.append(error)

    if sys.stdin is None:  # closed, as by <&-
        raise AsrError("standard input: expected audio, got a closed pipe")
    started = perf_counter()
    transcript = recognizer.transcribe_blocks(heard())
    if broken and not transcript.duration_s:
        raise broken[0]
    _deliver(transcript, job, kind, overwrite)
    if verbose:
        terminal.note(_told(job.path, transcript, perf_counter() - started))
    if broken:
        raise broken[0]


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

    from asr.live import Gate, Recording, Session, Terminal, Trouble, listen
    from asr.recognizer import Recognizer
    from asr.stream import Final
    from asr.transcript import WRITERS, write

    recognizer = Recognizer(model, **steering)
    if not quiet:
        _note_unspelt(recognizer)
    gate = None if vad_level is None else lambda: Gate(vad_level)
    session = Session(recognizer, source.sample_rate, gate=gate, **lengths)
    with nullcontext() if save is None else Recording(save, overwrite=overwrite) as session.recording:
        shown = not quiet and sys.stdout is not None and sys.stdout.isatty()
        try:
            with Terminal(Console(), source, session) if shown else nullcontext() as display:
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


def _formats(names: str) -> list[str]:
    from asr.transcript import WRITERS

    kinds = list(dict.fromkeys(names.split(",")))
    unknown = [kind for kind in kinds if kind not in WRITERS]
    if unknown:
        raise typer.BadParameter(f"'{unknown[0]}': {nearest(unknown[0], WRITERS)}", param_hint="--format")
    return kinds


def _deliver(transcript: Transcript, job: Job, kind: str, overwrite: bool, prefix: str = "") -> None:
    """Write a transcript to the job's outputs; without any, print it in one format, after the prefix."""
    from asr.transcript import WRITERS, write

    name = terminal.line(job.path.stem)
    for output_kind, target in job.outputs.items():
        terminal.make_folder(target.parent)
        write(target, WRITERS[output_kind](transcript, name), overwrite=overwrite)
    if not job.outputs:
        terminal.show(prefix + WRITERS[kind](transcript, name))


def _told(path: Path, transcript: Transcript, seconds: float) -> str:
    count, duration_s = len(transcript.words), transcript.duration_s
    speed = duration_s / max(seconds, 1e-9)
    words = f"{count} word{'s' * (count != 1)}"
    return f"{path}: {duration_s:.2f} s of audio, {words}, in {seconds:.2f} s, {speed:.0f} x real time"


def _as_onnx(model: str) -> str:
    """A run folder stands for its model, exported beside it where that has not been done yet. A model's name goes first."""
    from asr.network import models

    run = Path(model)
    settings, weights, exported = run / "config.yaml", run / "model.safetensors", run / "model.onnx"
    if model in models() or not any(map(os.path.exists, (settings, weights, exported))):
        return model
    if not exported.exists() or (weights.exists() and exported.stat().st_mtime < weights.stat().st_mtime):
        from asr.training.export import export as write_onnx

        write_onnx(run, exported, overwrite=True)
    return str(exported)


def _word_error_rate(model: Path, manifest: Path) -> float:
    from rich.console import Console

    from asr import metrics
    from asr.manifest import read
    from asr.recognizer import Recognizer

    failures: list[str] = []
    scored = list(_recognise(Recognizer(model, beam=1), read(manifest), failures, Console(stderr=True), []))
    if failures:
        raise AsrError(f"{manifest}: {len(failures)} utterances failed; run asr doctor on it first")
    return metrics.report(scored, bootstrap=0).wer


def _recognise(
    recognizer: Recognizer, utterances: list[Utterance], failures: list[str], console: Console, sure: list[float]
) -> Iterator[Scored]:
    """Each utterance's reference and hypothesis; fills in the failures, and the confidences of all words."""
    from asr import audio
    from asr.metrics import Scored
    from asr.text import normaliser

    normalise = normaliser(recognizer.card.get("normaliser", "none"))
    with terminal.progress(console) as progress:
        for utterance in progress.track(utterances, description="recognising"):
            try:
                waveform = audio.read(utterance.audio, offset_s=utterance.offset_s, duration_s=utterance.duration_s)
                transcript = recognizer.transcribe(waveform, audio.SAMPLE_RATE)
            except AsrError as error:
                failures.append(str(error))
                terminal.complain(error)
                continue
            reference = normalise(utterance.text)
            sure += [word.confidence for word in transcript.words]
            yield Scored(utterance.id, reference, transcript.text, utterance.speaker, utterance.duration_s)
