"""tools/bench live: what a stream costs in errors, time and memory."""

import argparse
import math
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from bench_english import streamed
from rapidfuzz.distance import Levenshtein

from asr import audio, manifest, metrics
from asr.recognizer import Recognizer
from asr.stream import Endpoint, Final, Partial
from asr.text import english

LATENCIES = [
    (0.16, 0.16),
    (0.2, 0.4),
    (0.32, 0.24),
    (0.32, 0.32),
    (0.64, 0.32),
    (0.64, 0.64),
    (1.28, 0.64),
    (2.56, 1.28),
]
BLOCK = 1600  # samples; a microphone's


def live(arguments: argparse.Namespace) -> None:
    """WER against latency of one model: in chunks with right context, first pass and final text, beside whole utterances.

    Then, with --minutes, recordings played at real time: how long after the end of each word it is on the screen for good,
    and the share of one core that this takes.
    """
    recognizer = Recognizer(arguments.model, lm=arguments.lm, beam=arguments.beam)
    utterances = manifest.read(arguments.manifest)[: arguments.limit]
    waveforms = [audio.read(utterance.audio) for utterance in utterances]
    references = [english(utterance.text) for utterance in utterances]
    network, decoder = recognizer.network, recognizer.decoder

    def wer(texts: list[str]) -> float:
        return 100 * metrics.word_errors(references, texts).rate

    def best(log_probs: np.ndarray) -> str:
        found = decoder.texts(decoder(log_probs), 1)
        return found[0][0] if found else ""

    whole = wer([best(network.log_probs(waveform)) for waveform in waveforms])
    print(f"{len(utterances)} utterances; whole utterances: WER {whole:.2f} %\n")
    print("| chunk + right context, s | latency at most, s | WER while speaking | relative | WER of the final texts |")
    print("|---|---|---|---|---|")
    points = []
    for chunk_s, context_s in LATENCIES:
        shown, texts = [], []
        for waveform in waveforms:
            on_screen, said = streamed(recognizer, waveform, chunk_s, context_s)
            shown.append(on_screen)
            texts.append(said)
        first, final = wer(shown), wer(texts)
        points.append((chunk_s + context_s, first, final))
        print(
            f"| {chunk_s} + {context_s} | {chunk_s + context_s:.2f} | {first:.2f} % | "
            f"{f'{100 * (first / whole - 1):+.1f} %' if whole else '-'} | {final:.2f} % |",
            flush=True,
        )
    if arguments.chart:
        _chart(points, whole, arguments.chart)
    if arguments.minutes:
        _real_time(recognizer, waveforms, arguments.minutes)


def day(arguments: argparse.Namespace) -> None:
    """Hours of audio through one stream as fast as it goes: memory, times and words at the beginning and at the end."""
    recognizer = Recognizer(arguments.model, lm=arguments.lm)
    stream = recognizer.stream(chunk_s=arguments.chunk, right_context_s=arguments.context)
    lap = [audio.read(utterance.audio) for utterance in manifest.read(arguments.manifest)[: arguments.limit]]
    samples = np.concatenate([np.concatenate([one, np.zeros(16_000, np.float32)]) for one in lap])
    laps = round(arguments.hours * 3600 * audio.SAMPLE_RATE / len(samples))
    print(f"{laps} times {len(samples) / audio.SAMPLE_RATE:.0f} s of recordings with pauses")
    started = time.perf_counter()
    words, last_end = 0, 0.0
    for number in range(laps):
        in_lap = 0
        for at in range(0, len(samples), BLOCK):
            for event in stream.feed(samples[at : at + BLOCK]):
                if isinstance(event, Final):
                    in_lap += len(event.words)
                elif isinstance(event, Endpoint):
                    assert event.time_s >= last_end
                    last_end = event.time_s
        words += in_lap
        if number in (0, 1) or number % max(1, laps // 12) == 0 or number == laps - 1:
            resident = int(
                next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line).split()[1]
            )
            print(f"{stream.time_s / 3600:6.2f} h  {in_lap} words this time  the last utterance ended "
                  f"{stream.time_s - last_end:.2f} s ago  {resident / 1024:.0f} MB resident", flush=True)  # fmt: skip
    spent = time.perf_counter() - started
    stream.flush()
    print(f"{stream.time_s / 3600:.2f} h in {spent:.0f} s, {stream.time_s / spent:.0f} x real time; {words} words")


def _played(samples: np.ndarray) -> Iterator[np.ndarray]:
    """Blocks at the time at which a microphone would have them."""
    started = time.monotonic()
    for at in range(0, len(samples), BLOCK):
        block = samples[at : at + BLOCK]
        time.sleep(max(0.0, started + (at + len(block)) / audio.SAMPLE_RATE - time.monotonic()))
        yield block


def _real_time(recognizer: Recognizer, waveforms: list[np.ndarray], minutes: float) -> None:
    """Word latency: from a word's end, as the final text has it, to the first text on the screen that has it, to stay.

    Words that only the second pass has found come with the final text; they are counted apart.
    """
    enough: list[np.ndarray] = []
    while sum(map(len, enough)) < minutes * 60 * audio.SAMPLE_RATE and len(enough) < len(waveforms):
        enough.append(waveforms[len(enough)])
    samples = np.concatenate([np.concatenate([one, np.zeros(12_000, np.float32)]) for one in enough])
    stream = recognizer.stream()
    shown: list[tuple[float, list[str]]] = []  # of the utterance: when, and the words on the screen
    latencies: list[float] = []
    late: list[float] = []
    busy, started = time.process_time(), time.monotonic()
    for block in _played(samples):
        events = stream.feed(block)
        now = time.monotonic() - started
        for event in events:
            if isinstance(event, Partial):
                shown.append((now, [*event.stable.split(), *event.unstable.split()]))
            elif isinstance(event, Final):
                final = event.text.split()
                since: dict[int, float] = {}  # word of the final text -> when it came to stay
                staying = set(range(len(final)))
                for when, words in reversed(shown):
                    blocks = [block for block in Levenshtein.opcodes(final, words) if block.tag == "equal"]
                    staying &= {place for block in blocks for place in range(block.src_start, block.src_end)}
                    since |= dict.fromkeys(staying, when)
                latencies += [when - event.words[place].end_s for place, when in since.items()]
                late += [now - event.words[place].end_s for place in range(len(final)) if place not in since]
            else:
                shown.clear()
    busy = time.process_time() - busy
    heard_s = len(samples) / audio.SAMPLE_RATE
    median, most = np.percentile(latencies, [50, 95]) if latencies else (math.nan, math.nan)
    print(
        f"\n{heard_s / 60:.1f} minutes at real time, from a word's end to its place on the screen: {len(latencies)} words, "
        f"median {median:.2f} s, 95th percentile {most:.2f} s; {len(late)} more words came with the final text; "
        f"{100 * busy / heard_s:.1f} % of one core"
    )
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB resident at most")


def _chart(points: list[tuple[float, float, float]], whole: float, path: Path) -> None:
    import matplotlib.pyplot as plt

    latency, first, final = zip(*points, strict=True)
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(latency, first, marker="o", label="while speaking")
    axes.plot(latency, final, marker="o", label="final text")
    axes.axhline(whole, color="0.6", lw=1, label="whole utterances")
    axes.set(xlabel="chunk + right context, s", ylabel="WER, %", ylim=(0, None), xscale="log")
    axes.set_xticks(latency, [f"{x:g}" for x in latency], rotation=45)
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=120)
