"""Free Spoken Digit Dataset -> manifests of single and of connected digits, of six speakers.

    python recipes/fsdd/prepare.py --download               # 16 MB
    python recipes/fsdd/prepare.py RECORDINGS --leave-out theo

RECORDINGS holds {digit}_{speaker}_{index}.wav. Indices 0-4 are the test set (upstream's split), 5-7 the dev set; with
--leave-out, all recordings of that speaker are the test set. Connected digits are recordings of one speaker, joined in
random order with pauses and written to OUT/connected. CC BY-SA 4.0.
"""

import argparse
from pathlib import Path

import numpy as np
import soundfile

from asr import audio, corpus
from asr.corpus import Archive, CorpusError, Recording, Splits

# Made by GitHub when asked for; no checksum is published.
ARCHIVES = [Archive("v1.0.10.tar.gz", ["https://github.com/Jakobovski/free-spoken-digit-dataset/archive"], None)]
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
CONNECTED = {"dev": 60, "test": 300, "train": 1500}  # utterances, of 2 to 7 digits


def join(digits: list[Recording], path: Path, rng: np.random.Generator) -> Recording:
    pieces = []  # the digits, with pauses of faint noise between and around them
    for digit in digits:
        waveform = audio.read(digit.audio)
        pieces.append(rng.normal(0, 1e-4, round(rng.uniform(0.02, 0.5) * audio.SAMPLE_RATE)))
        pieces.append(waveform / max(0.05, np.abs(waveform).max()) * rng.uniform(0.2, 0.9))
    soundfile.write(path, np.concatenate([*pieces, pieces[0]]).astype(np.float32), audio.SAMPLE_RATE)
    return Recording(path, " ".join(digit.text for digit in digits), digits[0].speaker)


def read(folder: Path, arguments: argparse.Namespace) -> Splits:
    single: dict[str, dict[str, list[Recording]]] = {split: {} for split in CONNECTED}
    for path in sorted(corpus.find(folder, "recordings/?_*_*.wav", "?_*_*.wav").parent.glob("[0-9]_*_*.wav")):
        digit, speaker, index = path.stem.split("_")
        test = int(index) <= 4 if arguments.leave_out is None else speaker == arguments.leave_out
        split = "test" if test else "dev" if 5 <= int(index) <= 7 else "train"
        single[split].setdefault(speaker, []).append(Recording(path, WORDS[int(digit)], speaker))
    splits: Splits = {}
    (arguments.out / "connected").mkdir(parents=True, exist_ok=True)
    for number, (split, speakers) in enumerate(single.items()):
        rng, pools = np.random.default_rng(number), list(speakers.values())
        if not pools:
            raise CorpusError(f"{folder}: expected recordings of a {split} set, got none")
        splits[split], splits[f"{split}_connected"] = [one for pool in pools for one in pool], []
        for i in range(CONNECTED[split]):
            pool, path = pools[i % len(pools)], arguments.out / "connected" / f"{split}_{i:04d}.flac"
            digits = [pool[k] for k in rng.integers(len(pool), size=rng.integers(2, 8))]
            splits[f"{split}_connected"].append(join(digits, path, rng))
    return splits


if __name__ == "__main__":
    parser = corpus.parser(__doc__)
    parser.add_argument("--leave-out", metavar="SPEAKER", help="this speaker's recordings are the test set")
    corpus.prepare(read, parser.parse_args(), ARCHIVES)
