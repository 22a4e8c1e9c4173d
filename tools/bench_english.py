"""tools/bench english: every figure on the card of the bundled English model, with PocketSphinx and Whisper beside it."""

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
from fnmatch import fnmatch
from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np
import onnxruntime
import soundfile

import asr
from asr import audio, metrics, terminal, text
from asr.corpus import CorpusError, Recording
from asr.decoding import confidence
from asr.decoding.decoder import Decoder
from asr.errors import AsrError
from asr.files import make_folder, write
from asr.recognizer import Recognizer
from asr.stream import CHUNK_S, RIGHT_CONTEXT_S, Final, Partial

RECIPES = Path(__file__).parent.parent / "recipes"
COLD_STARTS = 9
SOUND_S = 30
GREEDY, DEFAULT, STREAM, FINAL = "greedy", "default", "while speaking", "final"
SPHINX, WHISPER = "PocketSphinx", "Whisper"
Peers = Mapping[str, Callable[[Path], str]]  # by name: audio file -> text
# By recipe: what the tables call it, its folder, its options.
CORPORA: dict[str, tuple[str, str, dict[str, object]]] = {
    "common_voice": ("Common Voice", "common_voice", {"language": "en"}),
    "speechocean762": ("speechocean762", "speechocean762", {}),
    "librispeech": ("LibriSpeech", "librispeech_sample", {"subset": "test"}),
    "fsdd": ("FSDD", "fsdd", {"leave_out": None}),
}
VARIANTS = {"noise": "noise at 10 dB", "quiet": "30 dB quieter", "offset": "with an offset of 0.1"}
PARTS = [
    *CORPORA,
    *(f"{name}-{variant}" for name in CORPORA if name != "fsdd" for variant in VARIANTS),
    "sounds",
    "start",
]


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

    CORPORA holds common_voice/en/, speechocean762/, librispeech_sample/ and fsdd/, each as its own recipe takes it, and
    noise/; what is missing is left out. PocketSphinx has the acoustic model, language model and dictionary of its package,
    and its default settings; Whisper runs in int8 through faster-whisper, in its default settings, told that it hears
    English. They hear at most --peer-limit utterances of a set, from all over it, and ours are scored on them; the same
    utterances are heard with noise at 10 dB, 30 dB quieter, and with an offset of 0.1. In sounds without speech, words are
    counted. Speed is processor time of one thread for a second of audio: of a stream, its share of one core.
    """
    try:
        _english(arguments)
    except AsrError as error:
        sys.exit(f"bench: {error}")


def _english(arguments: argparse.Namespace) -> None:
    if arguments.chart:
        importlib.import_module("matplotlib.pyplot")  # its absence is told now, not after the work
    started = time.perf_counter()
    chosen = parts(arguments.sets)
    lm = {} if arguments.lm is None else {"lm": arguments.lm}
    recognizer = Recognizer(arguments.model, **lm)
    installed = {SPHINX: pocketsphinx(), WHISPER: whisper(arguments.whisper)}
    peers = {name: recognise for name, recognise in installed.items() if recognise}
    with tempfile.TemporaryDirectory() as folder:
        sets = _test_sets(arguments.corpora, Path(folder), chosen, arguments.limit, arguments.peer_limit)
        durations = {one.audio: audio.info(one.audio).duration_s for recordings in sets.values() for one in recordings}
        if not durations and set(chosen) != {"sounds"}:
            raise CorpusError(f"{arguments.corpora}: expected at least one of the test sets, got none; see --help")
        heard = {
            name: _hear(name, recordings, durations, recognizer, peers, arguments.peer_limit)
            for name, recordings in sets.items()
        }
        rows = _rows(heard, peers)
        print(_title(recognizer, peers, arguments.whisper))
        if rows:
            tables = errors_table(rows, peers), speed_table(rows, peers), calibration_table(heard)
            print("\n" + "\n\n".join(tables), flush=True)
        if "sounds" in chosen:
            print(f"\n{sounds_table(sounds(arguments.corpora, Path(folder)), recognizer, peers)}", flush=True)
        if arguments.chart and rows:
            chart(rows, arguments.chart)
        if "start" in chosen and durations:
            options = ("-m", arguments.model, *(("--lm", arguments.lm) if arguments.lm else ()))
            cold_start(durations, *options)
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes in all", file=sys.stderr)


def parts(patterns: Sequence[str]) -> list[str]:
    """What is to be measured. raises: CorpusError for a pattern that fits nothing."""
    for pattern in patterns:
        if not any(fnmatch(part, pattern) for part in PARTS):
            raise CorpusError(f"--sets: expected some of {', '.join(PARTS)}, got {pattern}")
    return [part for part in PARTS if any(fnmatch(part, pattern) for pattern in patterns)]


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


def _test_sets(
    corpora: Path, folder: Path, chosen: Sequence[str], limit: int | None, peer_limit: int
) -> dict[str, list[Recording]]:
    """Name -> recordings, by the recipes, and variants of them. folder: for those that are made."""
    sets: dict[str, list[Recording]] = {}
    for recipe, (title, place, options) in CORPORA.items():
        variants = [variant for variant in VARIANTS if f"{recipe}-{variant}" in chosen]
        if not variants and recipe not in chosen:
            continue
        prepare = run_path(str(RECIPES / recipe / "prepare.py"))
        if recipe == "fsdd":
            prepare["CONNECTED"].update(train=0, dev=0)  # the joined digits of the test set are all that is heard
        try:
            splits: dict[str, list[Recording]] = prepare["read"](
                corpora / place, argparse.Namespace(out=folder, **options)
            )
            for split in splits:
                if not split.startswith("test"):
                    continue
                name, recordings = f"{title} {split.replace('_', '-')}", spread(splits[split], limit)
                if recipe in chosen:
                    sets[name] = recordings
                for variant in variants:
                    made = varied(spread(recordings, peer_limit), variant, corpora, folder / f"{recipe}-{variant}")
                    sets[f"{name}, {VARIANTS[variant]}"] = made
        except CorpusError as error:
            print(f"left out: {error}", file=sys.stderr)
    everything = [one.text for found in sets.values() for one in found]
    unspelt = [one for one in everything if normalised(one) != text.english(one)]
    if unspelt:
        print(f"references that lose what is not a letter: {len(unspelt)}, such as {unspelt[:5]}", file=sys.stderr)
    return sets


def varied(recordings: Sequence[Recording], variant: str, corpora: Path, folder: Path) -> list[Recording]:
    """The recordings written anew, with noise, quieter, or with an offset; the same at each run."""
    noises = [audio.read(path) for path in _noises(corpora)] if variant == "noise" else []
    if variant == "noise" and not noises:
        raise CorpusError(f"{corpora}: expected recordings in noise/ for the sets with noise, got none")
    folder.mkdir()
    made = []
    for number, one in enumerate(recordings):
        waveform = audio.read(one.audio)
        if variant == "noise":
            start = int(np.random.default_rng(number).integers(len(noises[number % len(noises)])))
            noise = np.resize(np.roll(noises[number % len(noises)], -start), len(waveform))
            waveform = waveform + noise * np.sqrt(np.square(waveform).mean() / np.square(noise).mean() / 10)  # 10 dB
        else:
            waveform = waveform * 10 ** (-30 / 20) if variant == "quiet" else waveform + 0.1
        path = folder / f"{number:04d}-{one.audio.stem}.wav"
        soundfile.write(path, waveform, audio.SAMPLE_RATE, subtype="FLOAT")
        made.append(Recording(path, one.text, one.speaker))
    return made


def _noises(corpora: Path) -> list[Path]:
    return sorted(path for path in (corpora / "noise").glob("*") if path.suffix.lower() in audio.SUFFIXES)


def sounds(corpora: Path, folder: Path) -> dict[str, Path]:
    """Name -> recording, of silence, hum, noise and music-like sounds, made here, and of the noises in CORPORA."""
    rng = np.random.default_rng(0)
    seconds = np.arange(SOUND_S * audio.SAMPLE_RATE) / audio.SAMPLE_RATE
    beats = np.exp(-6 * (seconds % 0.5))  # what each beat sounds like: loud, and fading
    roots = rng.choice([110.0, 130.8, 146.8, 164.8, 196.0], SOUND_S)[seconds.astype(int)]  # a chord a second
    tones = [np.sin(2 * np.pi * np.cumsum(roots) * ratio * n / audio.SAMPLE_RATE) / n
             for ratio in (1, 1.25, 1.5) for n in (1, 2, 3, 4)]  # fmt: skip
    white = rng.normal(0, 1, len(seconds))
    made = {
        "digital silence": 0 * seconds,
        "white noise at -70 dB": 10 ** (-70 / 20) * white,
        "white noise at -30 dB": 10 ** (-30 / 20) * white,
        "hum of 50 Hz": 0.05 * sum(np.sin(2 * np.pi * 50 * n * seconds) / n for n in (1, 2, 3)),
        "chords": 0.03 * sum(tones) * np.sqrt(beats),
        "chords and drums": 0.03 * sum(tones) * np.sqrt(beats) + 0.1 * white * beats**4,
    }
    found = {}
    for name, waveform in made.items():
        found[name] = folder / f"{name}.wav"
        soundfile.write(found[name], waveform, audio.SAMPLE_RATE, subtype="FLOAT")
    return found | {f"noise/{path.stem}": path for path in _noises(corpora)}


def sounds_table(found: Mapping[str, Path], recognizer: Recognizer, peers: Peers) -> str:
    """How many words are heard where nobody speaks."""
    heads = ["words in sounds without speech", "s", DEFAULT, f"stream, {STREAM}", f"stream, {FINAL}", *peers]
    lines = [heads, ["---"] * len(heads)]
    for name, path in found.items():
        streams = streamed(recognizer, audio.read(path))
        texts = [recognizer.transcribe(path).text, *streams, *(recognise(path) for recognise in peers.values())]
        counts = [str(len(normalised(one).split())) for one in texts]
        lines.append([name, f"{audio.info(path).duration_s:.0f}", *counts])
    return _table(lines)


def _hear(
    name: str,
    recordings: Sequence[Recording],
    durations: Mapping[Path, float],
    recognizer: Recognizer,
    peers: Peers,
    peer_limit: int,
) -> list[Heard]:
    """Each recording by all decodings in turn, so that a busy machine slows all alike.

    Processor time, not time on the clock: all run in this one thread, which may have to share its core.
    """
    greedy = copy.copy(recognizer)  # on the same network
    greedy.decoder = Decoder(recognizer.tokens, beam=1)
    for_peer = {one.audio for one in spread(recordings, peer_limit)}
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
            if path in for_peer:
                decodings |= peers
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
    """PocketSphinx in its default settings: audio file -> text; None, and a note, where it is not installed."""
    try:
        from pocketsphinx import Decoder as Sphinx
    except ModuleNotFoundError:
        print("without PocketSphinx: not installed (pip install pocketsphinx)", file=sys.stderr)
        return None
    decoder = Sphinx(samprate=audio.SAMPLE_RATE, loglevel="FATAL")

    def recognise(path: Path) -> str:
        samples = np.clip(audio.read(path) * 32768, -32768, 32767)  # lossy formats overshoot
        decoder.start_utt()
        decoder.process_raw(samples.astype(np.int16).tobytes(), full_utt=True)
        decoder.end_utt()
        return decoder.hyp().hypstr if decoder.hyp() else ""

    return recognise


def whisper(folder: Path | None) -> Callable[[Path], str] | None:
    """A Whisper model in int8 on one thread: audio file -> text; None, and a note, without its folder or faster-whisper."""
    if folder is None:
        print("without Whisper: no folder of a model for faster-whisper (--whisper FOLDER)", file=sys.stderr)
        return None
    try:
        from faster_whisper import WhisperModel
    except ModuleNotFoundError:
        print("without Whisper: faster-whisper is not installed (pip install faster-whisper)", file=sys.stderr)
        return None
    if not (folder / "model.bin").is_file():
        raise CorpusError(
            f"--whisper: expected a folder with a model for faster-whisper, but {folder}/model.bin is not there"
        )
    model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=1, local_files_only=True)

    def recognise(path: Path) -> str:
        segments, _ = model.transcribe(audio.read(path), language="en")
        return " ".join(segment.text for segment in segments)

    return recognise


def _title(recognizer: Recognizer, peers: Peers, whisper_folder: Path | None) -> str:
    megabytes = recognizer.network.path.stat().st_size / 1e6
    versions = [f"asr {asr.__version__}", f"onnxruntime {onnxruntime.__version__}"]
    if SPHINX in peers:
        versions.append(f"PocketSphinx {importlib.metadata.version('pocketsphinx')}")
    if WHISPER in peers and whisper_folder:
        versions.append(
            f"Whisper: {whisper_folder.name}, int8, faster-whisper {importlib.metadata.version('faster-whisper')}"
        )
    lm = f"a language model of {len(recognizer.lm.words):,} words" if recognizer.lm else "no language model"
    return (
        f"{recognizer.name}, {megabytes:.1f} MB. Default decoding: beam {recognizer.decoder.beam}, {lm}. "
        f"As a stream: {CHUNK_S + RIGHT_CONTEXT_S:.2f} s behind at most. {', '.join(versions)}; one thread; {processor()}."
    )


def _rows(heard: Mapping[str, list[Heard]], peers: Peers) -> dict[str, list[Heard]]:
    """The tables' rows: the sets, and of those that are too large for the peers also the part that they have heard."""
    rows = {}
    for name, utterances in heard.items():
        rows[name] = utterances
        shared = [one for one in utterances if all(peer in one.texts for peer in peers)]
        if len(shared) < len(utterances):
            rows[f"{name}, a part"] = shared
    return {name: utterances for name, utterances in rows.items() if utterances}


def _report(utterances: Sequence[Heard], decoding: str) -> metrics.Report | None:
    """None where not all were heard so."""
    if not all(decoding in one.texts for one in utterances):
        return None
    return metrics.report([metrics.Scored("", one.reference, one.texts[decoding]) for one in utterances], worst=0)


def errors_table(rows: Mapping[str, Sequence[Heard]], peers: Peers) -> str:
    """WER, and below it CER, of each set by each decoding, with the intervals of the bootstrap."""
    decodings = [GREEDY, DEFAULT, STREAM, FINAL, *peers]
    heads = ["test set", "utterances", "", GREEDY, DEFAULT, f"stream, {STREAM}", f"stream, {FINAL}", *peers]
    lines = [heads, ["---"] * len(heads)]
    for name, utterances in rows.items():
        reports = [_report(utterances, decoding) for decoding in decodings]
        wer = [_rate(one.wer, one.word_interval) if one else "-" for one in reports]
        cer = [_rate(one.cer, one.character_interval) if one else "-" for one in reports]
        lines += [[name, str(len(utterances)), "WER", *wer], ["", "", "CER", *cer]]
    return _table(lines)


def _rate(rate: float, interval: metrics.Interval | None) -> str:
    low, high = interval or (rate, rate)
    return f"{100 * rate:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def speed_table(rows: Mapping[str, Sequence[Heard]], peers: Peers) -> str:
    """Real-time factors: processor time for each second of audio, reading the file included."""
    ratios = [(peer, own) for peer in peers for own in (DEFAULT, GREEDY)]
    heads = ["real-time factor", "audio, s", GREEDY, DEFAULT, "stream with final text", *peers]
    heads += [f"{peer} / {own}" for peer, own in ratios]
    lines = [heads, ["---"] * len(heads)]
    for name, utterances in rows.items():
        if f"{name}, a part" in rows:
            continue  # the part in which all took turns has a row of its own
        total_s = sum(one.duration_s for one in utterances)
        decodings = [GREEDY, DEFAULT, STREAM, *peers]
        factors = {each: sum(one.seconds[each] for one in utterances) / total_s for each in decodings}
        cells = [f"{factor:.4f}" for factor in factors.values()]
        lines.append([name, f"{total_s:.0f}", *cells, *(f"{factors[peer] / factors[own]:.1f}" for peer, own in ratios)])
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

    plain = [name for name in rows if not any(name.endswith(variant) for variant in VARIANTS.values())]
    alike = [name for name in plain if f"{name}, a part" not in rows]
    bars = {
        SPHINX: ("0.62", SPHINX),
        WHISPER: ("0.8", WHISPER),
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
    make_folder(path.parent)
    write(path, image.getvalue(), overwrite=True)
