"""The command `asr transcribe`: files, folders and pipes as text."""

from __future__ import annotations

import math
import sys
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click

from asr import terminal
from asr.cli import options
from asr.cli.command import Argument, Option
from asr.errors import AsrError, AudioError, number_of
from asr.remote import Remote, locate

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    import numpy as np

    from asr.cli.batch import Attempt, Job
    from asr.recognizer import Recognizer
    from asr.transcript import Transcript


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The options of the command."""

    inputs: Annotated[
        list[str],
        Argument(help="Recordings, folders of them, patterns; s3://, gs://, https://; - reads from a pipe."),
    ]
    model: options.Model = "english"
    formats: Annotated[
        str,
        Option(
            "--format",
            "-f",
            help="txt, srt, vtt, tsv, csv, json, jsonl (a manifest), ctm, textgrid, audacity; several with commas.",
        ),
    ] = "txt"
    output: Annotated[Path | None, Option("--output", "-o", help="Write files into this folder.")] = None
    line_width: Annotated[int, Option("--max-line-width", help="Of srt and vtt: characters.", min=10)] = 42
    line_count: Annotated[int, Option("--max-line-count", help="Of srt and vtt: lines at a time.", min=1)] = 2
    steering: options.Steering
    n_best: Annotated[int, Option(help="List so many texts of each stretch in the format json.", min=1)] = 1
    jobs: Annotated[
        int | None,
        Option("--jobs", "-j", help="Processes.", min=1, show_default="as many as are faster than one"),
    ] = None
    recursive: Annotated[bool, Option("--recursive", "-r", help="Also the folders within folders.")] = False
    overwrite: options.Overwrite = False
    skip_existing: options.SkipExisting = False
    shard: options.Shard = None
    threads: Annotated[int, Option(help="Threads of the network in each process; one is fastest.", min=1, max=256)] = 1
    start: Annotated[str | None, Option(help="Hear nothing before this time: 90, 1:30 or 0:01:30.5.")] = None
    end: Annotated[str | None, Option(help="Hear nothing after this time.")] = None
    channels: Annotated[
        str, Option(help="mix, split for a text of each channel, as of a telephone call, or a number.")
    ] = "mix"
    track: Annotated[
        int | None, Option(help="Of several audio tracks in a film.", min=1, show_default="the default one")
    ] = None
    rate: Annotated[
        int | None, Option(help="The pipe has raw 16-bit mono samples at this rate, in Hz.", min=1000, max=1_000_000)
    ] = None
    quiet: Annotated[bool, Option("--quiet", "-q", help="Only errors on stderr.")] = False
    verbose: Annotated[bool, Option("--verbose", "-v", help="A line on stderr for each recording.")] = False

    @property
    def piped(self) -> bool:
        return self.inputs == ["-"]

    @property
    def kinds(self) -> list[str]:
        return options.formats_of(self.formats)

    @property
    def replace(self) -> bool:
        return self.overwrite or self.skip_existing  # one that is left of an unfinished recording is replaced too

    def hear(self) -> dict[str, Any]:
        """Which part of a recording, as arguments of Recognizer.transcribe."""
        start_s, end_s = options.seconds_of(self.start, "--start"), options.seconds_of(self.end, "--end")
        options.refuse(
            (start_s is not None and end_s is not None and end_s <= start_s, "--end", "is not after --start"),
        )
        part = {"start_s": start_s or 0.0, "end_s": end_s, "track": self.track}
        return part | ({"channel": int(self.channels) - 1} if self.channels.isdecimal() else {})

    def check(self) -> None:
        """raises: BadParameter where options contradict each other."""
        piped, kinds, beam = self.piped, self.kinds, self.steering.beam
        options.refuse(
            (self.output is None and len(kinds) > 1, "--format", "several formats need a folder to go to: -o DIR"),
            ("" in self.inputs, "INPUTS", "expected names of recordings, got an empty one"),
            (self.quiet and self.verbose, "--quiet", "--verbose asks for the opposite"),
            (self.overwrite and self.skip_existing, "--overwrite", "--skip-existing asks for the opposite"),
            (
                self.replace and self.output is None,
                "--overwrite, --skip-existing",
                "no files are written without -o DIR",
            ),
            (
                "-" in self.inputs and not piped,
                "INPUTS",
                "- reads from a pipe and stands alone; a file of that name is ./-",
            ),
            (
                self.rate is not None and not piped,
                "--rate",
                "is for raw samples from a pipe: give - as the only input",
            ),
            (
                piped and (self.recursive or self.jobs or self.shard),
                "--recursive, --jobs, --shard",
                "a pipe is one recording",
            ),
            (self.n_best > 1 and kinds != ["json"], "--n-best", "only the format json has room for it: -f json"),
            (
                (self.line_width, self.line_count) != (42, 2) and not {"srt", "vtt"} & set(kinds),
                "--max-line-width, --max-line-count",
                "are of subtitles: -f srt",
            ),
            (
                self.channels not in ("mix", "split") and not (self.channels.isdecimal() and int(self.channels)),
                "--channels",
                "expected mix, split or a number from 1",
            ),
            (
                self.channels == "split" and piped,
                "--channels",
                "a pipe is heard once: split a file, or take one of its channels",
            ),
            (
                self.n_best > beam,
                "--n-best",
                f"the beam of {beam} ends with no more texts than that: --beam {self.n_best}",
            ),
        )

    def deliver(self, transcript: Transcript, job: Job, prefix: str = "") -> None:
        """Write a transcript to the job's outputs; without any, print it in one format, after the prefix."""
        from asr.files import make_folder, write

        for kind, target in job.outputs.items():
            make_folder(target.parent)
            write(target, self._written(transcript, job, kind), overwrite=self.replace)
        if not job.outputs:
            terminal.show(prefix + self._written(transcript, job, self.kinds[0]))

    def _written(self, transcript: Transcript, job: Job, kind: str) -> str:
        from asr.transcript import WRITERS

        if kind in ("srt", "vtt"):
            write = transcript.to_srt if kind == "srt" else transcript.to_vtt
            return write(self.line_width, self.line_count)
        path = job.path if kind != "jsonl" or job.path == Path("stdin") else job.path.absolute()
        name = path.stem + ("" if job.channel is None else f".{job.channel + 1}")
        return WRITERS[kind](transcript, terminal.line(path if kind == "jsonl" else name))

    def tell(self, job: Job, transcript: Transcript, seconds: float) -> None:
        """What is to be said of a recording on stderr."""
        if self.verbose:
            duration_s, words = transcript.duration_s, number_of(len(transcript.words), "word")
            speed = duration_s / max(seconds, 1e-9)
            terminal.note(
                f"{job.source}: {duration_s:.2f} s of audio, {words}, in {seconds:.2f} s, {speed:.0f} x real time"
            )
        if self.steering.grammar and not transcript.text and not self.quiet:
            terminal.note(f"{job.source}: no sentence of the grammar is what was said, so there is no text")


def transcribe(asked: _Asked) -> None:
    """Print the text of recordings, or write it to files, offline."""
    from time import perf_counter

    from asr.cli import batch
    from asr.recognizer import Recognizer

    asked.check()
    hear, kinds, quiet = asked.hear(), asked.kinds, asked.quiet
    shard = options.part_of(asked.shard)
    folder = None if asked.output is None else locate(asked.output)
    settings = asked.steering.arguments(asked.model) | {"threads": asked.threads, "n_best": asked.n_best}
    started = perf_counter()
    found, nothing, others = (
        ({Path("stdin"): Path("stdin")}, [], []) if asked.piped else batch.find(asked.inputs, recursive=asked.recursive)
    )
    if shard:
        total, found = len(found), batch.of_shard(found, shard, written=asked.output is not None)
        if total and not found and not quiet:
            terminal.note(f"--shard {asked.shard}: has none of the {number_of(total, 'recording')}")
    recordings = batch.by_channel(found, asked.track) if asked.channels == "split" else found
    if asked.output is None and len(recordings) > 1 and kinds[0] not in ("txt", "ctm", "jsonl"):
        raise click.BadParameter(
            f"{kinds[0]} of {len(recordings)} recordings cannot be told apart on stdout: -o DIR", param_hint="--format"
        )
    todo, skipped, refused = batch.plan(
        recordings, folder, kinds, overwrite=asked.overwrite, skip_existing=asked.skip_existing
    )
    for error in nothing + refused:
        terminal.complain(error)
    if others and not quiet:
        terminal.note(batch.passed_over(others))
    terminal.hear_log(quiet)
    model = options.as_onnx(asked.model)
    with terminal.interruptible():
        alone = len(recordings) == 1 and not shard
        if todo and (asked.verbose or alone):
            recognizer = Recognizer(model, **settings)
            if asked.verbose:
                count, most = batch.processes(len(todo), asked.jobs)
                counts = f"{count} to {most}" if most > count else str(count)
                terminal.note(f"{options.describe(recognizer)}, {counts} process{'es' * (most > 1)}")
                options.note_unspelt(recognizer)
            if alone:
                _transcribe_one(todo[0], recognizer, asked, hear)
                raise click.exceptions.Exit(1 if nothing else 0)
            del recognizer  # every process loads its own
        each = [hear if job.channel is None else hear | {"channel": job.channel} for job in todo]
        results = batch.transcribe([job.path for job in todo], model, jobs=asked.jobs, hear=each, **settings)
        prefixed = not alone and kinds == ["txt"]
        done, audio_s = _deliver_all(todo, results, asked, prefixed, hear["start_s"], started)
    failed = len(nothing) + len(recordings) - len(skipped) - done
    if recordings and len(skipped) == len(recordings) and not quiet:
        what = "the one recording" if len(skipped) == 1 else f"all {len(skipped)} recordings"
        terminal.note(f"{folder}: has the texts of {what} already; --overwrite makes them again")
    elif len(recordings) > 1 and todo and not quiet:
        what = "recordings" if len(recordings) == len(found) else "channels"
        counts = f"{done} of {len(recordings)} {what}, {terminal.clock(audio_s)} of audio"
        notes = [f"{len(skipped)} skipped"] * bool(skipped) + [f"{failed} failed, see above"] * bool(failed)
        spent = perf_counter() - started
        terminal.note("; ".join([f"{counts} in {spent:.1f} s, {audio_s / spent:.0f} x real time", *notes]))
    if failed:
        raise click.exceptions.Exit(1)


def _deliver_all(
    jobs: Sequence[Job],
    results: Generator[Attempt, None, None],
    asked: _Asked,
    prefixed: bool,
    start_s: float,
    started: float,
) -> tuple[int, float]:
    """Deliver what came of each job; returns how many succeeded, and how much audio that was, in seconds.

    prefixed: the recording's name stands before its text. start_s: where in the recordings hearing began; started: when
    the work began, in seconds of perf_counter.
    """
    from time import perf_counter

    done, audio_s = 0, 0.0

    def hint() -> str:  # what --overwrite has yet to replace would be skipped as well
        return "; --skip-existing goes on from here" if done and asked.output and not asked.overwrite else ""

    with (
        terminal.interruptible(hint),
        closing(results),
        terminal.progress(terminal.stderr(asked.quiet)) as progress,
    ):
        task = progress.add_task("transcribing", total=len(jobs))
        for job, attempt in zip(jobs, results, strict=True):
            for told in attempt.notes if not asked.quiet else ():
                terminal.note(told)
            try:
                if isinstance(attempt.result, AsrError):
                    raise attempt.result
                audio_s += attempt.result.duration_s - start_s
                asked.deliver(attempt.result, job, f"{terminal.line(job.source)}\t" if prefixed else "")
                done += 1
                asked.tell(job, attempt.result, attempt.seconds)
            except AsrError as error:
                terminal.complain(error)
            speed = audio_s / (perf_counter() - started)
            progress.update(task, advance=1, description=f"transcribing, {speed:.0f} x real time")
    return done, audio_s


def _transcribe_one(job: Job, recognizer: Recognizer, asked: _Asked, hear: dict[str, Any]) -> None:
    """One recording, to the job's outputs or to stdout; there plain text goes as soon as it is recognised."""
    from time import perf_counter

    broken: list[AudioError] = []
    blocks, total_s = _open(job, asked, hear)

    def heard() -> Iterator[np.ndarray]:
        try:
            yield from blocks
        except AudioError as error:
            if not asked.piped:
                raise
            broken.append(error)  # what came before it is worth having

    text = _Text() if asked.kinds[0] == "txt" and not job.outputs else None
    started = perf_counter()
    with terminal.progress(terminal.stderr(asked.quiet), "{task.fields[heard]}") as bar:
        task = bar.add_task("transcribing", total=total_s, heard="")

        def progress(said: str, end_s: float) -> None:
            if text is not None:
                text.add(said)
            heard = terminal.clock(end_s) + (f" of {terminal.clock(total_s)}" if total_s else "")
            bar.update(task, completed=end_s, heard=heard)

        try:
            transcript = recognizer.transcribe_blocks(heard(), progress, start_s=hear["start_s"])
            if broken and transcript.duration_s == hear["start_s"]:
                raise broken[0]
        except BaseException:
            if text is not None:
                text.end(broken=True)
            raise
    if text is not None:
        text.end()
    else:
        asked.deliver(transcript, job)
    asked.tell(job, transcript, perf_counter() - started)
    if broken:
        raise broken[0]


def _open(job: Job, asked: _Asked, hear: dict[str, Any]) -> tuple[Iterator[np.ndarray], float | None]:
    """The samples of a file or of standard input, and where they end in seconds, if that is known."""
    from asr import audio

    start_s, end_s = hear["start_s"], hear["end_s"]
    wanted = {
        "offset_s": start_s,
        "duration_s": None if end_s is None else end_s - start_s,
        "track": hear["track"],
        "channel": hear.get("channel"),
    }
    if asked.piped:
        if sys.stdin is None:  # closed, as by <&-
            raise AsrError("standard input: expected audio, got a closed pipe")
        return audio.pipe_blocks(sys.stdin.buffer, rate=asked.rate, **wanted), end_s
    blocks = audio.blocks(job.path, **wanted)
    if not asked.quiet and not isinstance(job.path, Remote):  # which would be fetched once more
        with suppress(AudioError):  # of a named pipe it is not known; else the reader says what is wrong
            end_s = min(end_s or math.inf, audio.info(job.path, track=hear["track"]).duration_s)
    return blocks, end_s


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
