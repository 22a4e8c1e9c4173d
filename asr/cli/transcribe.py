"""The command `asr transcribe`: files, folders and pipes as text."""

from __future__ import annotations

import math
import sys
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asr import terminal
from asr.cli import options
from asr.errors import AsrError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np

    from asr.cli.batch import Job
    from asr.recognizer import Recognizer
    from asr.transcript import Transcript

_NO_SENTENCE = "no sentence of the grammar is what was said, so there is no text"


def transcribe(
    inputs: Annotated[
        list[str],
        typer.Argument(help="Recordings, folders of them, patterns; - reads from a pipe.", show_default=False),
    ],
    model: options.Model = "english",
    formats: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help="txt, srt, vtt, tsv, csv, json, jsonl (a manifest), ctm, textgrid, audacity; several with commas.",
        ),
    ] = "txt",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write files into this folder.")] = None,
    line_width: Annotated[int, typer.Option("--max-line-width", help="Of srt and vtt: characters.", min=10)] = 42,
    line_count: Annotated[int, typer.Option("--max-line-count", help="Of srt and vtt: lines at a time.", min=1)] = 2,
    beam: options.Beam = 128,
    lm: options.Lm = None,
    decoding: options.Weights = None,
    hotwords: options.HotWords = None,
    grammar: options.GrammarFile = None,
    reject: options.Reject = None,
    n_best: Annotated[int, typer.Option(help="List so many texts of each stretch in the format json.", min=1)] = 1,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", help="Processes.", min=1, show_default="as many as are faster than one"),
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Also the folders within folders.")] = False,
    overwrite: terminal.Overwrite = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Go on where an earlier call stopped.")
    ] = False,
    threads: Annotated[int, typer.Option(help="Threads of the network in each process; one is fastest.", min=1)] = 1,
    start: Annotated[str | None, typer.Option(help="Hear nothing before this time: 90, 1:30 or 0:01:30.5.")] = None,
    end: Annotated[str | None, typer.Option(help="Hear nothing after this time.")] = None,
    channels: Annotated[
        str, typer.Option(help="mix, split for a text of each channel, as of a telephone call, or a number.")
    ] = "mix",
    track: Annotated[
        int | None, typer.Option(help="Of several audio tracks in a film.", min=1, show_default="the default one")
    ] = None,
    rate: Annotated[int | None, typer.Option(help="The pipe has raw 16-bit mono samples at this rate, in Hz.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors on stderr.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="A line on stderr for each recording.")] = False,
) -> None:
    """Print the text of recordings, or write it to files, offline."""
    from time import perf_counter

    from asr.cli import batch
    from asr.recognizer import Recognizer
    from asr.transcript import WRITERS

    kinds = options.formats_of(formats)
    piped = inputs == ["-"]
    start_s, end_s = options.seconds_of(start, "--start"), options.seconds_of(end, "--end")
    replace = overwrite or skip_existing  # one that is left of an unfinished recording is replaced too
    options.refuse(
        (output is None and len(kinds) > 1, "--format", "several formats need a folder to go to: -o DIR"),
        (quiet and verbose, "--quiet", "--verbose asks for the opposite"),
        (overwrite and skip_existing, "--overwrite", "--skip-existing asks for the opposite"),
        (replace and output is None, "--overwrite, --skip-existing", "no files are written without -o DIR"),
        ("-" in inputs and not piped, "INPUTS", "- reads from a pipe and stands alone; a file of that name is ./-"),
        (rate is not None and not piped, "--rate", "is for raw samples from a pipe: give - as the only input"),
        (piped and (recursive or jobs), "--recursive, --jobs", "a pipe is one recording"),
        (n_best > 1 and kinds != ["json"], "--n-best", "only the format json has room for it: -f json"),
        (
            (line_width, line_count) != (42, 2) and not {"srt", "vtt"} & set(kinds),
            "--max-line-width, --max-line-count",
            "are of subtitles: -f srt",
        ),
        (
            channels not in ("mix", "split") and not (channels.isdecimal() and int(channels)),
            "--channels",
            "expected mix, split or a number from 1",
        ),
        (
            channels == "split" and piped,
            "--channels",
            "a pipe is heard once: split a file, or take one of its channels",
        ),
        (start_s is not None and end_s is not None and end_s <= start_s, "--end", "is not after --start"),
        (n_best > beam, "--n-best", f"the beam of {beam} ends with no more texts than that: --beam {n_best}"),
    )
    settings = options.steering(model, beam, lm, decoding, hotwords, grammar, reject) | {
        "threads": threads,
        "n_best": n_best,
    }
    subtitles = {
        "srt": lambda transcript, _: transcript.to_srt(line_width, line_count),
        "vtt": lambda transcript, _: transcript.to_vtt(line_width, line_count),
    }
    deliver = partial(_deliver, kind=kinds[0], overwrite=replace, writers=WRITERS | subtitles)
    started = perf_counter()
    found, nothing, others = (
        ({Path("stdin"): Path("stdin")}, [], []) if piped else batch.find(inputs, recursive=recursive)
    )
    recordings = batch.by_channel(found, track) if channels == "split" else found
    hear: dict[str, Any] = {"start_s": start_s or 0.0, "end_s": end_s, "track": track}
    if channels.isdecimal():
        hear["channel"] = int(channels) - 1
    if output is None and len(recordings) > 1 and kinds[0] not in ("txt", "ctm", "jsonl"):
        raise typer.BadParameter(
            f"{kinds[0]} of {len(recordings)} recordings cannot be told apart on stdout: -o DIR", param_hint="--format"
        )
    todo, skipped, refused = batch.plan(recordings, output, kinds, overwrite=overwrite, skip_existing=skip_existing)
    for error in nothing + refused:
        terminal.complain(error)
    if others and not quiet:
        terminal.note(batch.passed_over(others))
    terminal.hear_log(quiet)
    model = options.as_onnx(model)
    hint = "; --skip-existing goes on from here" if output and not piped else ""
    if todo and (verbose or len(recordings) == 1):
        with terminal.interruptible(hint):
            recognizer = Recognizer(model, **settings)
            if verbose:
                count, most = batch.processes(len(todo), jobs)
                counts = f"{count} to {most}" if most > count else str(count)
                terminal.note(f"{options.describe(recognizer)}, {counts} process{'es' * (most > 1)}")
                options.note_unspelt(recognizer)
            if len(recordings) == 1:
                text = _transcribe_one(
                    todo[0], deliver, recognizer, piped, rate, hear, quiet, verbose, live=kinds[0] == "txt"
                )
                if grammar and not text and not quiet:
                    terminal.note(f"{todo[0].path}: {_NO_SENTENCE}")
                raise typer.Exit(1 if nothing else 0)
            del recognizer  # every process loads its own
    done, audio_s = 0, 0.0
    each = [hear if job.channel is None else hear | {"channel": job.channel} for job in todo]
    results = batch.transcribe([job.path for job in todo], model, jobs=jobs, hear=each, **settings)
    with (
        terminal.interruptible(hint),
        closing(results),
        terminal.progress(terminal.stderr(quiet)) as progress,
    ):
        task = progress.add_task("transcribing", total=len(todo))
        for job, attempt in zip(todo, results, strict=True):
            for told in attempt.notes if not quiet else ():
                terminal.note(told)
            try:
                if isinstance(attempt.result, AsrError):
                    raise attempt.result
                audio_s += attempt.result.duration_s - hear["start_s"]
                prefix = f"{terminal.line(job.source)}\t" if len(recordings) > 1 and kinds == ["txt"] else ""
                deliver(attempt.result, job, prefix)
                if verbose:
                    terminal.note(_told(job, attempt.result, attempt.seconds))
                if grammar and not attempt.result.text and not quiet:
                    terminal.note(f"{job.source}: {_NO_SENTENCE}")
                done += 1
            except AsrError as error:
                terminal.complain(error)
            speed = audio_s / (perf_counter() - started)
            progress.update(task, advance=1, description=f"transcribing, {speed:.0f} x real time")
    failed = len(nothing) + len(recordings) - len(skipped) - done
    if recordings and len(skipped) == len(recordings) and not quiet:
        terminal.note(f"{output}: has the texts of all {len(skipped)} recordings already; --overwrite makes them again")
    elif len(recordings) > 1 and todo and not quiet:
        what = "recordings" if len(recordings) == len(found) else "channels"
        counts = f"{done} of {len(recordings)} {what}, {terminal.clock(audio_s)} of audio"
        notes = [f"{len(skipped)} skipped"] * bool(skipped) + [f"{failed} failed, see above"] * bool(failed)
        spent = perf_counter() - started
        terminal.note("; ".join([f"{counts} in {spent:.1f} s, {audio_s / spent:.0f} x real time", *notes]))
    if failed:
        raise typer.Exit(1)


def _transcribe_one(
    job: Job,
    deliver: Callable[[Transcript, Job], None],
    recognizer: Recognizer,
    piped: bool,
    rate: int | None,
    hear: dict[str, Any],
    quiet: bool,
    verbose: bool,
    *,
    live: bool,
) -> str:
    """One recording, to the job's outputs or in one format to stdout.

    live:    text on stdout goes there as soon as it is recognised.
    returns: all of its text.
    """
    from time import perf_counter

    from asr import audio

    broken: list[audio.AudioError] = []
    start_s, total_s = hear["start_s"], hear["end_s"]
    wanted = {
        "offset_s": start_s,
        "duration_s": None if total_s is None else total_s - start_s,
        "track": hear["track"],
        "channel": hear.get("channel"),
    }
    if piped:
        if sys.stdin is None:  # closed, as by <&-
            raise AsrError("standard input: expected audio, got a closed pipe")
        blocks = audio.pipe_blocks(sys.stdin.buffer, rate=rate, **wanted)
    else:
        blocks = audio.blocks(job.path, **wanted)
        if not quiet:
            with suppress(audio.AudioError):  # of a named pipe it is not known; else the reader says what is wrong
                total_s = min(total_s or math.inf, audio.info(job.path, track=hear["track"]).duration_s)

    def heard() -> Iterator[np.ndarray]:
        try:
            yield from blocks
        except audio.AudioError as error:
            if not piped:
                raise
            broken.append(error)  # what came before it is worth having

    text = _Text() if live and not job.outputs else None
    started = perf_counter()
    with terminal.progress(terminal.stderr(quiet), "{task.fields[heard]}") as bar:
        task = bar.add_task("transcribing", total=total_s, heard="")

        def progress(said: str, end_s: float) -> None:
            if text is not None:
                text.add(said)
            heard = terminal.clock(end_s) + (f" of {terminal.clock(total_s)}" if total_s else "")
            bar.update(task, completed=end_s, heard=heard)

        try:
            transcript = recognizer.transcribe_blocks(heard(), progress, start_s=start_s)
            if broken and transcript.duration_s == start_s:
                raise broken[0]
        except BaseException:
            if text is not None:
                text.end(broken=True)
            raise
    if text is not None:
        text.end()
    else:
        deliver(transcript, job)
    if verbose:
        terminal.note(_told(job, transcript, perf_counter() - started))
    if broken:
        raise broken[0]
    return transcript.text


class _Text:
    """Text on stdout as it is recognised: in a terminal an utterance a line, else all of them in one line."""

    def __init__(self) -> None:
        self._lines = sys.stdout is not None and sys.stdout.isatty()
        self._any = False

    def add(self, text: str) -> None:
        if text:
            terminal.show(f"{text}\n" if self._lines else f" {text}" if self._any else text)
            self._any = True

    def end(self, *, broken: bool = False) -> None:
        """Nothing said is an empty line, unless nothing could be heard either."""
        if (self._any and not self._lines) or not (self._any or broken):
            terminal.show("\n")


def _deliver(
    transcript: Transcript,
    job: Job,
    prefix: str = "",
    *,
    kind: str,
    overwrite: bool,
    writers: Mapping[str, Callable[[Transcript, str], str]],
) -> None:
    """Write a transcript to the job's outputs; without any, print it in one format, after the prefix."""
    from asr.files import make_folder, write

    def written(kind: str) -> str:
        path = job.path if kind != "jsonl" or job.path == Path("stdin") else job.path.absolute()
        name = path.stem + ("" if job.channel is None else f".{job.channel + 1}")
        return writers[kind](transcript, terminal.line(path if kind == "jsonl" else name))

    for output_kind, target in job.outputs.items():
        make_folder(target.parent)
        write(target, written(output_kind), overwrite=overwrite)
    if not job.outputs:
        terminal.show(prefix + written(kind))


def _told(job: Job, transcript: Transcript, seconds: float) -> str:
    count, duration_s = len(transcript.words), transcript.duration_s
    speed = duration_s / max(seconds, 1e-9)
    words = f"{count} word{'s' * (count != 1)}"
    return f"{job.source}: {duration_s:.2f} s of audio, {words}, in {seconds:.2f} s, {speed:.0f} x real time"
