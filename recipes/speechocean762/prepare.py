"""speechocean762 -> manifests. Read English by 250 Mandarin speakers, half of them children; 125 train, 125 test.

    python recipes/speechocean762/prepare.py --download     # 0.5 GB
    python recipes/speechocean762/prepare.py speechocean762

The corpus folder holds train/, test/ and WAVE/. Every 16th training speaker is held out as the dev set; the test set is
upstream's. Free for commercial and non-commercial use.
Zhang et al. 2021, "speechocean762: An open-source non-native English speech corpus for pronunciation assessment".
"""

import argparse
from pathlib import Path

from asr import corpus
from asr.corpus import Archive, Recording, Splits, Table

ARCHIVES = [Archive("speechocean762.tar.gz", corpus.openslr(101), None)]  # no checksum is published
DEV_EVERY = 16  # training speakers


def read_split(root: Path, split: str) -> list[Recording]:
    texts, speakers, files = (Table(root / split / name) for name in ("text", "utt2spk", "wav.scp"))
    recordings = []
    for key, text in texts.items():
        path = root / files[key]
        path = path if path.exists() else path.with_suffix(".wav")
        recordings.append(Recording(path, text.lower(), speakers[key]))
    return recordings


def read(folder: Path, _: argparse.Namespace) -> Splits:
    root = corpus.find(folder, "train/wav.scp").parent.parent
    train, dev = corpus.hold_out(read_split(root, "train"), DEV_EVERY)
    return {"train": train, "dev": dev, "test": read_split(root, "test")}


if __name__ == "__main__":
    corpus.prepare(read, corpus.parser(__doc__).parse_args(), ARCHIVES)
