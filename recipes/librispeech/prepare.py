"""LibriSpeech -> manifests. Read audiobooks, many voices, in four sizes.

    python recipes/librispeech/prepare.py --download --subset mini      # 0.5 GB; 100: 7.3 GB; 460: 30 GB; 960: 61 GB
    python recipes/librispeech/prepare.py LibriSpeech --subset test     # nothing but test sets

dev.jsonl is dev-clean, and of `mini` dev-clean-2, which has no test set of its own: where test-clean or test-other lie
in the folder (--subset test gets them), they become test sets. CC BY 4.0. Panayotov et al. 2015, "Librispeech".
"""

import argparse
import sys
from pathlib import Path

from asr import corpus
from asr.corpus import Archive, CorpusError, Recording, Splits, Table

TRAIN, TESTS = ["train-clean-100", "train-clean-360", "train-other-500"], ["test-clean", "test-other"]
PARTS: dict[str, tuple[list[str], list[str], list[str]]] = {  # training sets, dev set, test sets to download
    "mini": (["train-clean-5"], ["dev-clean-2"], []),
    **{size: (TRAIN[:n], ["dev-clean"], TESTS) for n, size in enumerate(("100", "460", "960"), start=1)},
    "test": ([], [], TESTS),
}
CHECKSUMS = {  # those of torchaudio; of mini those that other public recipes name
    "train-clean-5": "md5:5df7d4e78065366204ca6845bb08f490",
    "dev-clean-2": "md5:6d7ab67ac6a1d2c993d050e16d61080d",
    "train-clean-100": "sha256:d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
    "train-clean-360": "sha256:146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
    "train-other-500": "sha256:ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
    "dev-clean": "sha256:76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
    "test-clean": "sha256:39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
    "test-other": "sha256:d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
}


def recordings(folder: Path, part: str) -> list[Recording]:
    lists = sorted(corpus.find(folder, f"{part}/*/*/*.trans.txt").parents[2].glob("*/*/*.trans.txt"))
    texts = ((table.parent, key, text.lower()) for table in lists for key, text in Table(table).items())
    return [Recording(chapter / f"{key}.flac", text, chapter.parent.name) for chapter, key, text in texts]


def read(folder: Path, arguments: argparse.Namespace) -> Splits:
    splits: Splits = {}
    for name, parts in zip(("train", "dev"), PARTS[arguments.subset], strict=False):
        for part in parts:
            splits.setdefault(name, []).extend(recordings(folder, part))
    for part in TESTS:
        try:
            splits[part.replace("-", "_")] = recordings(folder, part)
        except CorpusError:
            print(f"{part}: not there, no manifest", file=sys.stderr)
    return splits


if __name__ == "__main__":
    parser = corpus.parser(__doc__)
    parser.add_argument("--subset", choices=PARTS, default="100", help="hours to train on (default: %(default)s)")
    arguments = parser.parse_args()
    urls = corpus.openslr(31 if arguments.subset == "mini" else 12)
    archives = [Archive(f"{p}.tar.gz", urls, CHECKSUMS[p]) for parts in PARTS[arguments.subset] for p in parts]
    corpus.prepare(read, arguments, archives)
