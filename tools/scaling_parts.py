"""The parts of `tools/scaling`, measured: corpora as objects, decoding, reading at random and in order, checkpoints.

Processors' work is in CPU seconds, which other people's load hardly changes; reading and writing in seconds of the clock.
The best of three counts.
"""

import io
import json
import os
import random
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from asr import audio, manifest
from asr.tokens import Tokens
from asr.training import checkpoint, config, data, shards

SHARD_MB = 1152  # ten hours
UTTERANCE = 12.3 * 32e3  # bytes, decoded
READ = 100  # of them, from all over the shard: what is read around them is of no use, as in a corpus much larger than memory
SAMPLE = 200  # files of each kind that are decoded
FILES = 500  # of each kind, in a tar
SUFFIXES = (".flac", ".mp3", ".opus", ".wav")
GEOMETRY = audio.Geometry(1520, 640)  # of the default network


def measure(folder: Path, audio: Sequence[str], utterances: Sequence[int]) -> None:
    """Print all tables. audio: NAME=FOLDER; folder: where files are written, and removed again."""
    sources = {}
    for one in audio:
        name, _, where = one.partition("=")
        sources[name] = sorted(path for path in Path(where or name).rglob("*") if path.suffix in SUFFIXES)
        if not sources[name]:
            sys.exit(f"expected NAME=FOLDER with {', '.join(SUFFIXES)} files below FOLDER, got none with {one!r}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        part = Path(name)
        if utterances:
            _table("utterances", "manifest read", "Corpus()", "decode(), shards there", "plan()", "tokens()",
                   "largest()", "load() of one", "memory: manifest", "Corpus", "decoded", "planned", "peak")  # fmt: skip
        for count in utterances:
            runs = [_elsewhere(count, part) for _ in range(3 if count < 500_000 else 1)]
            least = {key: min(run[key] for run in runs) for key in runs[0]}
            times = [f"{least[key]:.2f} s" for key in ("read", "init", "decode", "plan", "tokens", "largest")]
            sizes = [f"{least[key] / count:,.0f} B" for key in ("manifest", "corpus", "decoded", "planned", "peak")]
            row(f"{count:,}", *times, f"{least['load'] * 1e6:.0f} us", *sizes)
        if sources:
            _table("audio", "files", "mean", "MB an hour", "hours a core decodes in an hour")
        for kind, paths in sources.items():
            row(kind, *_decoding(paths))
        _table("decoded shard", "MB/s", "utterances/s", "read from the disk, a MB used")
        _shard(part)
        if sources:
            _table("originals", "order", "cold, files/s", "MB/s", "warm (CPU), files/s", "with decoding (CPU)")
        for kind, paths in sources.items():
            _containers(kind, paths, part)
        _table("checkpoint", "MB", "seconds", "MB/s")
        for millions in (7, 28):
            tensors = {str(number): torch.randn(1000, millions * 40) for number in range(100)}  # 4 x the parameters
            seconds = _best(partial(checkpoint.save, part / "last", tensors, {}), time.perf_counter)
            size = (part / "last").stat().st_size / 1e6
            row(f"{millions} M parameters", f"{size:.0f}", f"{seconds:.2f}", f"{size / seconds:.0f}")


def row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def _table(*names: str) -> None:
    print()
    row(*names)
    row(*["---"] * len(names))


def _best(
    work: Callable[[], Any], clock: Callable[[], float] = time.process_time, before: Callable[[], Any] = int
) -> float:
    spent = []
    for _ in range(3):
        before()
        started = clock()
        work()
        spent.append(clock() - started)
    return min(spent)


# --- a corpus as objects ---


def _elsewhere(count: int, folder: Path) -> dict[str, float]:
    """`objects` in a process of its own, whose memory is nothing else's."""
    command = [sys.executable, __file__, str(count), str(folder)]
    figures: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return figures


def objects(count: int, folder: Path) -> dict[str, float]:
    """CPU seconds and resident bytes of a corpus of so many utterances whose audio is decoded already."""
    rng, path = np.random.default_rng(0), folder / f"{count}.jsonl"
    source = path.with_suffix(".wav")
    source.touch()
    letters = "".join(rng.choice(list("etaoinshrdlu "), 2000))
    with path.open("w") as file:
        for number, length_s in enumerate(rng.uniform(8.3, 16.3, count).round(2).tolist()):
            text = letters[number % 1500 :][: int(length_s * 14.5)]  # characters a second of LibriSpeech
            line = {"audio_filepath": source.name, "duration": length_s, "text": text, "offset": float(number)}
            file.write(json.dumps(line) + "\n")
    tree = {
        "name": "scaling",
        "data": {"train": [path], "dev": path},
        "batch": {"seconds": 300, "max_utterances": 1000},
    }
    settings = config.parse({**tree, "augment": {"speed": [0.9, 1.0, 1.1]}}, "scaling")
    tokens, found, base = Tokens.of(settings.data.alphabet), dict[str, float](), _resident()

    @contextmanager
    def timed(name: str, memory: str | None = None) -> Iterator[None]:
        started = time.process_time()
        yield
        found[name] = time.process_time() - started
        if memory:
            found[memory] = _resident() - base

    with timed("read", "manifest"):
        utterances = manifest.read(path)
    del utterances
    with timed("init", "corpus"):
        corpus = data.Corpus([path], tokens, settings, training=True, geometry=GEOMETRY)
    cache = path.with_suffix(".audio")
    cache.mkdir(exist_ok=True)
    for group in shards._group(corpus.examples.utterances):
        shard = cache / f"{shards._key(group)}.json"  # an index, and a file of that length without content
        lengths = [round(utterance.duration_s * audio.SAMPLE_RATE) for utterance in group]
        shard.write_text(json.dumps({"lengths": lengths, "errors": {}}))
        with shard.with_suffix(".int16").open("wb") as samples:
            samples.truncate(2 * sum(lengths))
    with timed("decode", "decoded"):
        corpus.decode()
    with timed("plan", "planned"):
        plan = corpus.plan(1, by_length=False)
    with timed("tokens"):  # of each epoch's batches, which every process counts for all
        for items in plan:
            corpus.tokens(items)
    with timed("largest"):
        corpus.largest()
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - base
    for _ in range(2):  # the first time it gets memory
        with timed("load"):
            for items in plan[:20]:
                corpus.load(items, 1)
    found["load"] /= sum(map(len, plan[:20]))
    return found


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# --- audio ---


def _decoding(paths: Sequence[Path]) -> list[str]:
    chosen = random.Random(0).sample(paths, min(SAMPLE, len(paths)))
    lengths = [len(audio.read(path)) / audio.SAMPLE_RATE for path in chosen]
    seconds = _best(lambda: [audio.read(path) for path in chosen])
    size = sum(path.stat().st_size for path in chosen) / 1e6
    rate = sum(lengths) / seconds
    return [f"{len(chosen)}", f"{np.mean(lengths):.1f} s", f"{size / sum(lengths) * 3600:.0f}", f"{rate:,.0f}"]


def _forget(*paths: Path) -> None:
    """Drop files from the page cache; what lies below it, such as a host's cache, may still have them."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _shard(folder: Path) -> None:
    """Utterances at random from a mapped shard, as `Corpus.load` copies them; beside it reads without a map."""
    path = folder / "shard.int16"
    with path.open("wb") as file:
        for seed in range(SHARD_MB // 16):
            file.write(np.random.default_rng(seed).bytes(16_000_000))
    size, wanted = path.stat().st_size, int(UTTERANCE)
    starts = np.random.default_rng(0).permutation(size // wanted - 1)[:READ] * wanted
    out = np.empty(wanted // 2, np.int16)

    def mapped() -> None:
        samples = np.memmap(path, np.int16, "r")
        for start in starts:
            np.concatenate([samples[start // 2 : (start + wanted) // 2]], out=out)

    def unmapped() -> None:
        with path.open("rb", buffering=0) as file:
            for start in starts:
                file.seek(start)
                file.readinto(out.data.cast("B"))

    for name, read in (("mapped, cold", mapped), ("read(), cold", unmapped), ("mapped, warm (CPU)", mapped)):
        cold = name.endswith("cold")
        if cold:
            _forget(path)
        before = _fetched()
        read()
        fetched = (_fetched() - before) / (wanted * len(starts))
        clock = time.perf_counter if cold else time.process_time
        seconds = _best(read, clock, partial(_forget, path) if cold else int)
        row(name, f"{wanted * len(starts) / 1e6 / seconds:,.0f}", f"{len(starts) / seconds:,.0f}", f"{fetched:.2f}")
    path.unlink()


def _fetched() -> int:
    """Bytes that this process has had read from a disk."""
    return int(Path("/proc/self/io").read_text().partition("\nread_bytes:")[2].split()[0])


def _containers(kind: str, paths: Sequence[Path], folder: Path) -> None:
    """Single files at random, one tar in order, and Lhotse's Shar."""
    chosen = random.Random(0).sample(paths, min(FILES, len(paths)))
    archive = folder / f"{kind}.tar"
    with tarfile.open(archive, "w") as tar:
        for number, path in enumerate(chosen):
            tar.add(path, f"{number:06}{path.suffix}")
    hours = sum(audio.info(path).duration_s for path in chosen) / 3600

    def singly() -> Iterator[bytes]:
        return (path.read_bytes() for path in random.Random(1).sample(chosen, len(chosen)))

    def in_order() -> Iterator[bytes]:
        with tarfile.open(archive, "r|", bufsize=1 << 20) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                yield content.read()

    def contents(read: Callable[[], Iterator[bytes]]) -> Callable[[], int]:
        return lambda: sum(map(len, read()))

    def decoded(read: Callable[[], Iterator[bytes]]) -> Callable[[], Any]:
        return lambda: [soundfile.read(io.BytesIO(content), dtype="float32") for content in read()]

    from lhotse import CutSet, MonoCut, Recording
    from lhotse.shar import SharWriter

    folder /= f"{kind}.shar"
    folder.mkdir()
    with SharWriter(str(folder), {"recording": "flac"}, shard_size=1000) as writer:
        for number, path in enumerate(chosen):
            recording = Recording.from_file(path, recording_id=f"{number:06}")
            writer.write(MonoCut(recording.id, 0, recording.duration, 0, recording=recording))

    def cuts() -> int:
        return sum(1 for _ in CutSet.from_shar(in_dir=folder))

    def decoded_cuts() -> int:
        return sum(cut.load_audio().size for cut in CutSet.from_shar(in_dir=folder))

    for name, files, read, decode in (
        ("single files, at random", chosen, contents(singly), decoded(singly)),
        ("tar, in order", [archive], contents(in_order), decoded(in_order)),
        ("Lhotse Shar, as FLAC, in order", list(folder.iterdir()), cuts, decoded_cuts),
    ):
        size = sum(path.stat().st_size for path in files) / 1e6
        cold = _best(read, time.perf_counter, partial(_forget, *files))
        rates = [
            len(chosen) / cold,
            size / cold,
            len(chosen) / _best(read),
            hours * 3600 / _best(decode),
        ]
        row(kind, name, *(f"{rate:,.0f}" for rate in rates))


if __name__ == "__main__":
    print(json.dumps(objects(int(sys.argv[1]), Path(sys.argv[2]))))
