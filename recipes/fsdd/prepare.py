"""Free Spoken Digit Dataset -> manifests of single and of connected digits.

python recipes/fsdd/prepare.py RECORDINGS [OUT] [--leave-out SPEAKER]

RECORDINGS holds {digit}_{speaker}_{index}.wav. Indices 0-4 are the test set (upstream's split), 5-7 the dev set; with
--leave-out, all recordings of that speaker are the test set. Connected digits are recordings of one speaker, joined in
random order with pauses and written to OUT/connected. OUT is data/ beside this file unless given.
"""

import argparse
from pathlib import Path

import numpy as np
import soundfile

from asr import audio, manifest

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
CONNECTED = {"train": 1500, "dev": 60, "test": 300}  # utterances, of 2 to 7 digits


def split_of(speaker: str, index: int, left_out: str | None) -> str:
    if speaker == left_out or (left_out is None and index <= 4):
        return "test"
    return "dev" if 5 <= index <= 7 else "train"


def join(recordings: list[manifest.Utterance], path: Path, rng: np.random.Generator) -> manifest.Utterance:
    pieces = []  # the digits, with pauses of faint noise between and around them
    for recording in recordings:
        waveform = audio.read(recording.audio)
        pieces.append(rng.normal(0, 1e-4, round(rng.uniform(0.02, 0.5) * audio.SAMPLE_RATE)))
        pieces.append(waveform / max(0.05, np.abs(waveform).max()) * rng.uniform(0.2, 0.9))
    samples = np.concatenate([*pieces, pieces[0]]).astype(np.float32)
    soundfile.write(path, samples, audio.SAMPLE_RATE)
    text, speaker = " ".join(recording.text for recording in recordings), recordings[0].speaker
    return manifest.Utterance(path, len(samples) / audio.SAMPLE_RATE, text, speaker=speaker)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("recordings", type=Path)
parser.add_argument("out", type=Path, nargs="?", default=Path(__file__).parent / "data")
parser.add_argument("--leave-out", metavar="SPEAKER")
arguments = parser.parse_args()
single: dict[str, dict[str, list[manifest.Utterance]]] = {"dev": {}, "test": {}, "train": {}}
for path in sorted(arguments.recordings.glob("*_*_*.wav")):
    digit, speaker, index = path.stem.split("_")
    utterance = manifest.Utterance(path, audio.info(path).duration_s, WORDS[int(digit)], speaker=speaker)
    single[split_of(speaker, int(index), arguments.leave_out)].setdefault(speaker, []).append(utterance)
(arguments.out / "connected").mkdir(parents=True, exist_ok=True)
for number, (split, speakers) in enumerate(single.items()):
    rng = np.random.default_rng(number)
    pools, connected = list(speakers.values()) or parser.error(f"no {split} set in {arguments.recordings}"), []
    for i in range(CONNECTED[split]):
        pool = pools[i % len(pools)]
        digits = [pool[k] for k in rng.integers(len(pool), size=rng.integers(2, 8))]
        connected.append(join(digits, arguments.out / "connected" / f"{split}_{i:04d}.flac", rng))
    manifest.write(arguments.out / f"{split}.jsonl", [utterance for pool in pools for utterance in pool])
    manifest.write(arguments.out / f"{split}_connected.jsonl", connected)
    print(f"{split}: {sum(map(len, pools))} single digits, {len(connected)} connected utterances")
