"""Speech Commands v0.02 -> manifests. 35 words, one a recording of a second, 105,829 recordings of 2,618 speakers, 29 hours.

    python recipes/speech_commands/prepare.py --download    # 2.4 GB, unpacked 3.4 GB
    python recipes/speech_commands/prepare.py speech_commands_v0.02

The splits are the official ones, by speaker: validation_list.txt is the dev set, testing_list.txt the test set.
_background_noise_ is left out; it can be mixed in when training (augment.noise).
Warden 2018, "Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition". CC BY 4.0.
"""

import argparse
from pathlib import Path

from asr import corpus
from asr.corpus import Archive, Recording, Splits, Table

ARCHIVES = [
    Archive(
        "speech_commands_v0.02.tar.gz",
        ["http://download.tensorflow.org/data", "https://storage.googleapis.com/download.tensorflow.org/data"],
        "sha256:af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",  # as torchaudio has it
    )
]


def read(folder: Path, _: argparse.Namespace) -> Splits:
    root = corpus.find(folder, "validation_list.txt").parent
    dev, test = Table(root / "validation_list.txt"), Table(root / "testing_list.txt")
    splits: Splits = {"train": [], "dev": [], "test": []}
    for path in sorted(root.glob("[a-z]*/*_nohash_*.wav")):
        name = f"{path.parent.name}/{path.name}"
        split = "dev" if name in dev else "test" if name in test else "train"
        splits[split].append(Recording(path, path.parent.name, path.name.partition("_nohash_")[0]))
    return splits


if __name__ == "__main__":
    corpus.prepare(read, corpus.parser(__doc__).parse_args(), ARCHIVES)
