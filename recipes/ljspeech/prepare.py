"""LJSpeech -> manifests. One professional reader, 13,100 passages of seven books, 24 hours.

    python recipes/ljspeech/prepare.py --download           # 2.7 GB, unpacked 3.8 GB
    python recipes/ljspeech/prepare.py LJSpeech-1.1

There is no official split. A passage is named LJ001-0001, chapter and number: numbers that end in 20, 40, 60, 80 or 00
are the dev set, in 10, 30, 50, 70 or 90 the test set, whatever part of the corpus is there. The texts are the normalised
ones, with numbers as words. Ito & Johnson 2017, "The LJ Speech Dataset". Public domain.
"""

import argparse
from pathlib import Path

from asr import corpus
from asr.corpus import Archive, Recording, Splits

ARCHIVES = [
    Archive(
        "LJSpeech-1.1.tar.bz2",
        ["https://data.keithito.com/data/speech"],
        "sha256:be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5",  # as torchaudio has it
    )
]


def recordings(folder: Path) -> list[Recording]:
    """All passages, in the order of metadata.csv."""
    metadata = corpus.find(folder, "metadata.csv")
    files = {path.stem: path for path in (metadata.parent / "wavs").glob("LJ*")}  # .wav; .opus where it was converted
    rows = ((key, rest.split("|")[-1]) for key, rest in corpus.Table(metadata, "|").items())
    return [Recording(files.get(key, metadata.parent / "wavs" / f"{key}.wav"), text, "lj") for key, text in rows]


def read(folder: Path, _: argparse.Namespace) -> Splits:
    splits: Splits = {"train": [], "dev": [], "test": []}
    for one in recordings(folder):
        number = int(one.audio.stem.partition("-")[2])
        splits["dev" if number % 20 == 0 else "test" if number % 20 == 10 else "train"].append(one)
    return splits


if __name__ == "__main__":
    corpus.prepare(read, corpus.parser(__doc__).parse_args(), ARCHIVES)
