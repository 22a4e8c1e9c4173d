"""tools/bench english: every figure on the card of the bundled English model, with PocketSphinx beside it."""

import argparse
import copy
import importlib.metadata
import io
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np
import onnxruntime

import asr
from asr import audio, metrics, terminal, text
from asr.corpus import CorpusError, Recording
from asr.decoding import confidence
from asr.decoding.decoder import Decoder
from asr.errors import AsrError
from asr.files import write
from asr.recognizer import Recognizer
from asr.stream import CHUNK_S, RIGHT_CONTEXT_S, Final, Partial

RECIPES = Path(__file__).parent.parent / "recipes"
COLD_STARTS = 9
GREEDY, DEFAULT, STREAM, FINAL, PEER = "greedy", "default", "while speaking", "final", "PocketSphinx"


@dataclass(frozen=True)
class Heard:
    """What one utterance became.

    reference, texts: normalised; texts are by decoding.  sure: the confidence of each word of the default text.
    seconds:          by decoding, of processor time.
    """

    reference: str
    texts: dict[str, str]
    sure: list[float]
    duration_s: float
    seconds: dict[str, float]


def english(arguments: argparse.Namespace) -> None:
    """Errors with 95 % intervals, speed, cold start and calibration of the English model on its test sets.

    CORPORA holds common_voice/en/, speechocean762/, librispeech_sample/ and fsdd/, each as its own recipe takes it; one
    that is missing is left out. PocketSphinx has the acoustic model, language model and dictionary of its package, and
    its default settings. It hears at most --peer-limit utterances of a set, from all over it, and ours are scored on them.
    """
    try:
        _english(arguments)
    except AsrError as error:
        sys.exit(f"bench: {error}")


def _english(arguments: argparse.Namespace) -> None:
    if arguments.chart:
        importlib.import_module("matplotlib.pyplot")  # its absence is told now, not after the work
    started = time.perf_counter()
    lm = {} if arguments.lm is None else {"lm": arguments.lm}
    recognizer, peer = Recognizer(arguments.model, **lm), pocketsphinx()
    with tempfile.TemporaryDirectory() as folder:
        sets = {
            name: spread(recordings, arguments.limit)
            for name, recordings in _test_sets(arguments.corpora, Path(folder)).items()
        }
        durations = {one.audio: audio.info(one.audio).duration_s for recordings in sets.values() for one in recordings}
        if not durations:
            raise CorpusError(f"{arguments.corpora}: expected at least one of the test sets, got none; see --help")
        heard = {
            name: _hear(name, recordings, durations, recognizer, peer, arguments.peer_limit)
            for name, recordings in sets.items()
        }
        rows = _rows(heard, peer is not None)
        print(_title(recognizer, peer is not None))
        print(
            f"\n{errors_table(rows, peer is not None)}\n\n{speed_table(rows)}\n\n{calibration_table(heard)}", flush=True
        )
        if arguments.chart:
            chart(rows, arguments.chart)
        options = ("-m", arguments.model, *(("--lm", arguments.lm) if arguments.lm else ()))
        cold_start(durations, *options)
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes in all", file=sys.stderr)


def normalised(transcript: str) -> str:
    """Lower-case words of a to z and apostrophes, as all texts and references are compared; hyphens part words.

    >>> normalised("“Don’t!” said Zoë, half-way")
    "don't said zoe half way"
    """
    without_marks = transcript.replace("+", " ")  # PocketSphinx writes ++NOISE++
    return " ".join(re.sub(r"[^a-z' ]", " ", text.english(without_marks)).split())


def spread(items: Sequence[Any], most: int | None) -> list[Any]:
    """At most so many, from all over the sequence, whose neighbours are of one speaker."""
    count = len(items) if most is None else min(most, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _test_sets(corpora: Path, folder: Path) -> dict[str, list[Recording]]:
    """Name -> recordings, by the recipes. folder: for those that are made."""

    def read(recipe: str, corpus: str, **options: object) -> dict[str, list[Recording]]:
        prepare = run_path(str(RECIPES / recipe / "prepare.py"))
        if recipe == "fsdd":
            prepare["CONNECTED"].update(train=0, dev=0)  # the joined digits of the test set are all that is heard
        try:
            splits: dict[str, list[Recording]] = prepare["read"](corpora / corpus, argparse.Namespace(**options))
            return splits
        except CorpusError as error:
            print(f"left out: {error}", file=sys.stderr)
            return {}

    splits = {
        "Common Voice": read("common_voice", "common_voice", language="en"),
        "speechocean762": read("speechocean762", "speechocean762"),
        "LibriSpeech": read("librispeech", "librispeech_sample", subset="test"),
        "FSDD": read("fsdd", "fsdd", leave_out=None, out=folder),
    }
    sets = {
        f"{corpus} {split.replace('_', '-')}": recordings
        for corpus, found in splits.items()
        for split, recordings in found.items()
        if split.startswith("test")
    }
    everything = [one.text for found in sets.values() for one in found]
    unspelt = [one for one in everything if normalised(one) != text.english(one)]
    if unspelt:
        print(f"references that lose what is not a letter: {len(unspelt)}, such as {unspelt[:5]}", file=sys.stderr)
    return sets


def _hear(
    name: str,
    recordings: Sequence[Recording],
    durations: Mapping[Path, float],
    recognizer: Recognizer,
    peer: Callable[[Path], str] | None,
    peer_limit: int,
) -> list[Heard]:
    """Each recording by all decodings in turn, so that a busy machine slows all alike.

    Processor time, not time on the clock: all run in this one thread, which may have to share its core.
    """
    greedy = copy.copy(recognizer)  # on the same network
    greedy.decoder = Decoder(recognizer.tokens, beam=1)
    for_peer = {one.audio for one in spread(recordings, peer_limit)} if peer else set()
    heard, started = [], time.perf_counter()
    with terminal.progress(terminal.stderr(False)) as progress:
        for recording in progress.track(recordings, description=name):
            path = recording.audio
            audio.read(path)  # now the file is as near at hand for the first decoding as for the last
            decodings: dict[str, Callable[[Path], Any]] = {
                GREEDY: lambda path: greedy.transcribe(path).text,
                DEFAULT: recognizer.transcribe,
                STREAM: lambda path: streamed(recognizer, audio.read(path)),
            }
            if peer and path in for_peer:
                decodings[PEER] = peer
            found, seconds = {}, {}
            for decoding, recognise in decodings.items():
                begun = time.process_time()
                found[decoding] = recognise(path)
                seconds[decoding] = time.process_time() - begun
            words = found[DEFAULT].words
            found |= {DEFAULT: found[DEFAULT].text} | dict(zip((STREAM, FINAL), found[STREAM], strict=True))
            # A word's text may be none when normalised, or several words.
            sure = [word.confidence for word in words for _ in normalised(word.text).split()]
            texts = {decoding: normalised(transcript) for decoding, transcript in found.items()}
            heard.append(Heard(normalised(recording.text), texts, sure, durations[path], seconds))
    print(f"{name}: {len(heard)} utterances, {(time.perf_counter() - started) / 60:.1f} minutes", file=sys.stderr)
    return heard


def streamed(
    recognizer: Recognizer,
    waveform: np.ndarray,
    chunk_s: float = CHUNK_S,
    right_context_s: float = RIGHT_CONTEXT_S,
) -> tuple[str, str]:
    """What stands on the screen when each utterance of a stream ends, and the final texts, heard once more as a whole."""
    stream = recognizer.stream(chunk_s=chunk_s, right_context_s=right_context_s)
    partial, shown, final = "", [], []
    for event in [*stream.feed(waveform), *stream.flush()]:
        if isinstance(event, Partial):
            partial = f"{event.stable} {event.unstable}"
        elif isinstance(event, Final):
            final.append(event.text)
        else:
            shown.append(partial)
            partial = ""
    return " ".join(" ".join(shown).split()), " ".join(final)


def pocketsphinx() -> Callable[[Path], str] | None:
    """PocketSphinx in its default settings: audio file -> text; None where it is not installed."""
    try:
        from pocketsphinx import Decoder as Sphinx
    except ModuleNotFoundError:
        return None
    decoder = Sphinx(samprate=audio.SAMPLE_RATE, loglevel="FATAL")

    def recognise(path: Path) -> str:
        samples = np.clip(audio.read(path) * 32768, -32768, 32767)  # lossy formats overshoot
        decoder.start_utt()
        decoder.process_raw(samples.astype(np.int16).tobytes(), full_utt=True)
        decoder.end_utt()
        return decoder.hyp().hypstr if decoder.hyp() else ""

    return recognise


def _title(recognizer: Recognizer, peer: bool) -> str:
    megabytes = recognizer.network.path.stat().st_size / 1e6
    versions = [f"asr {asr.__version__}", f"onnxruntime {onnxruntime.__version__}"]
    if peer:
        versions.append(f"PocketSphinx {importlib.metadata.version('pocketsphinx')}")
    lm = f"a language model of {len(recognizer.lm.words):,} words" if recognizer.lm else "no language model"
    return (
        f"{recognizer.name}, {megabytes:.1f} MB. Default decoding: beam {recognizer.decoder.beam}, {lm}. "
        f"As a stream: {CHUNK_S + RIGHT_CONTEXT_S:.2f} s behind at most. {', '.join(versions)}; one thread; {processor()}."
    )


def _rows(heard: Mapping[str, list[Heard]], peer: bool) -> dict[str, list[Heard]]:
    """The tables' rows: the sets, and of those that are too large for PocketSphinx also the part that it has heard."""
    rows = {}
    for name, utterances in heard.items():
        rows[name] = utterances
        shared = [one for one in utterances if PEER in one.texts]
        if peer and len(shared) < len(utterances):
            rows[f"{name}, a part"] = shared
    return {name: utterances for name, utterances in rows.items() if utterances}


def _report(utterances: Sequence[Heard], decoding: str) -> metrics.Report | None:
    """None where not all were heard so."""
    if not all(decoding in one.texts for one in utterances):
        return None
    return metrics.report([metrics.Scored("", one.reference, one.texts[decoding]) for one in utterances], worst=0)


def errors_table(rows: Mapping[str, Sequence[Heard]], peer: bool) -> str:
    """WER, and below it CER, of each set by each decoding, with the intervals of the bootstrap."""
    absent = "" if peer else " (not installed: pip install pocketsphinx)"
    heads = ["test set", "utterances", "", GREEDY, "default", "stream, while speaking", "stream, final", PEER + absent]
    lines = [heads, ["---"] * len(heads)]
    for name, utterances in rows.items():
        reports = [_report(utterances, decoding) for decoding in (GREEDY, DEFAULT, STREAM, FINAL, PEER)]
        lines += [
            [
                name,
                str(len(utterances)),
                "WER",
                *(_rate(one.wer, one.word_interval) if one else "-" for one in reports),
            ],
            ["", "", "CER", *(_rate(one.cer, one.character_interval) if one else "-" for one in reports)],
        ]
    return _table(lines)


def _rate(rate: float, interval: metrics.Interval | None) -> str:
    low, high = interval or (rate, rate)
    return f"{100 * rate:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def speed_table(rows: Mapping[str, Sequence[Heard]]) -> str:
    """Real-time factors: processor time for each second of audio, reading the file included."""
    heads = ["real-time factor", "audio, s", GREEDY, "default", "stream with final text", PEER,
             f"{PEER} / default", f"{PEER} / greedy"]  # fmt: skip
    lines = [heads, ["---"] * len(heads)]
    for name, utterances in rows.items():
        timed = [one for one in utterances if PEER in one.seconds] or utterances
        if len(timed) < len(utterances):
            continue  # the part in which all took turns has a row of its own
        total_s = sum(one.duration_s for one in timed)
        factors = {
            decoding: sum(one.seconds[decoding] for one in timed) / total_s
            for decoding in (GREEDY, DEFAULT, STREAM, PEER)
            if decoding in timed[0].seconds
        }
        ratios = [f"{factors[PEER] / factors[own]:.1f}" if PEER in factors else "-" for own in (DEFAULT, GREEDY)]
        cells = [
            f"{factors[decoding]:.4f}" if decoding in factors else "-" for decoding in (GREEDY, DEFAULT, STREAM, PEER)
        ]
        lines.append([name, f"{total_s:.0f}", *cells, *ratios])
    return _table(lines)


def calibration_table(heard: Mapping[str, Sequence[Heard]]) -> str:
    """How far the confidences of the default decoding can be counted on."""
    heads = ["confidence of words", "words", "right", "mean confidence", "expected calibration error"]
    lines = [heads, ["---"] * len(heads)]
    for name, utterances in heard.items():
        right = np.concatenate([confidence.right_words(one.reference, one.texts[DEFAULT]) for one in utterances])
        sure = np.array([value for one in utterances for value in one.sure])
        if len(sure):
            error = confidence.reliability(sure, right).error
            lines.append([name, f"{len(sure)}", f"{right.mean():.1%}", f"{sure.mean():.1%}", f"{error:.3f}"])
    return _table(lines)


def _table(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


_REPORT_PEAK = """
import atexit, sys
from asr.cli import main
def report():
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(peak.split()[1], file=sys.stderr)
atexit.register(report)
main()
"""


def run_asr(*arguments: object) -> tuple[str, float, float]:
    """One `asr` command in a process of its own: what it printed, seconds, and the most memory it had resident, in MB.

    The kernel's figure for child processes would not do: it counts the parent's memory at the fork.
    """
    started = time.perf_counter()
    command = [sys.executable, "-c", _REPORT_PEAK, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout, time.perf_counter() - started, int(done.stderr.split()[-1]) / 1024


def cold_start(durations: Mapping[Path, float], *options: object) -> None:
    """Print what `asr transcribe` with these options takes as a whole process. durations: of the files to choose from."""
    clip = min(durations, key=lambda path: abs(durations[path] - 10))
    runs = [run_asr("transcribe", *options, clip)[1:] for _ in range(COLD_STARTS)]
    seconds, megabytes = np.median(runs, axis=0)
    print(f"\ncold start, asr transcribe of {durations[clip]:.1f} s, whole process: median {seconds:.2f} s, "
          f"best {min(runs)[0]:.2f} s, {megabytes:.0f} MB resident at most")  # fmt: skip


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown processor")


def chart(rows: Mapping[str, Sequence[Heard]], path: Path) -> None:
    """Word errors by set, of all decodings on the same utterances, with their intervals."""
    import matplotlib.pyplot as plt

    alike = [name for name in rows if f"{name}, a part" not in rows]
    bars = {
        PEER: ("0.62", PEER),
        GREEDY: ("#a6cbe3", "ours, greedy"),
        DEFAULT: ("#2171a8", "ours, default"),
        STREAM: ("#e08a3c", f"ours, while speaking ({CHUNK_S + RIGHT_CONTEXT_S:.2f} s behind)"),
    }
    reports = {
        decoding: [one for name in alike if (one := _report(rows[name], decoding)) is not None] for decoding in bars
    }
    bars = {decoding: look for decoding, look in bars.items() if len(reports[decoding]) == len(alike)}
    figure, axes = plt.subplots(figsize=(2.1 * len(alike) + 1.2, 4.6), layout="constrained")
    width = 0.84 / len(bars)
    for place, (decoding, (colour, label)) in enumerate(bars.items()):
        at = np.arange(len(alike)) + (place - (len(bars) - 1) / 2) * width
        wer = 100 * np.array([one.wer for one in reports[decoding]])
        ends = 100 * np.array([one.word_interval for one in reports[decoding]]).T
        axes.bar(at, wer, 0.92 * width, color=colour, label=label,
                 yerr=np.abs(ends - wer), error_kw={"ecolor": "0.25", "elinewidth": 1, "capsize": 2.5})  # fmt: skip
        for x, rate, high in zip(at, wer, ends[1], strict=True):
            axes.annotate(f"{rate:.0f}", (x, high), (0, 2), textcoords="offset points", ha="center", fontsize=8)
    labels = [
        f"{name.removesuffix(', a part')}\n{len(rows[name])} utterances".replace(" test", "\ntest") for name in alike
    ]
    axes.set_xticks(range(len(alike)), labels)
    axes.tick_params(axis="x", length=0)
    axes.set(ylabel="WER, %  (whiskers: 95 % interval)", ylim=(0, None))
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    plt.close(figure)
    terminal.make_folder(path.parent)
    write(path, image.getvalue(), overwrite=True)
