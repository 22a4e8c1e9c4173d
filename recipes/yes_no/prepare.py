"""YesNo -> manifests. Sixty recordings of eight words each, yes or no in Hebrew, by one speaker: 6 minutes.

    python recipes/yes_no/prepare.py --download             # 5 MB
    python recipes/yes_no/prepare.py waves_yesno

A file's name is what is said in it: 0_1_1_0_0_0_1_1.wav is no yes yes no no no yes yes. In the order of the names, the last
29 are the test set and the others train, as in Kaldi's recipe; every 8th of the training set is held out as the dev set.
"""

import argparse
from pathlib import Path

from asr import corpus
from asr.corpus import Archive, Recording, Splits

CHECKSUM = "sha256:c3f49e0cca421f96b75b41640749167b52118f232498667ca7a5f9416aef8e73"  # as torchaudio has it
ARCHIVES = [Archive("waves_yesno.tar.gz", corpus.openslr(1), CHECKSUM)]
WORDS = {"0": "no", "1": "yes"}
TEST = 29  # of 60
DEV_EVERY = 8


def read(folder: Path, _: argparse.Namespace) -> Splits:
    paths = sorted(corpus.find(folder, "waves_yesno/[01]_*.wav", "[01]_*.wav").parent.glob("[01]_*.wav"))
    recordings = [Recording(path, " ".join(WORDS[sign] for sign in path.stem.split("_")), "1") for path in paths]
    train, test = recordings[:-TEST], recordings[-TEST:]
    return {"train": [one for i, one in enumerate(train) if i % DEV_EVERY], "dev": train[::DEV_EVERY], "test": test}


if __name__ == "__main__":
    corpus.prepare(read, corpus.parser(__doc__).parse_args(), ARCHIVES)
