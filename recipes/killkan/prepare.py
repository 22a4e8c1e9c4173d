"""Killkan -> manifests. A radio drama in Kichwa of Ecuador, with some Spanish, 3.7 hours in 19 episodes.

    python recipes/killkan/prepare.py KICHWA

KICHWA holds train.jsonl of 18 episodes and test.jsonl of the tenth, with their clips as audio/chEPISODE_NUMBER.opus. The
speakers are not labelled, and recur; the dev set is an episode of its own, the last. The letters for `data.alphabet` are
those of the training texts. Taguchi, Saransig, Velásquez & Chiang 2024, "Killkan: the automatic speech recognition dataset
for Kichwa with morphosyntactic information". CC BY 4.0; the drama is "Jaboneropak Ayllullaktapi" by Radialistas.
"""

import argparse
import json
import sys
from pathlib import Path
from runpy import run_path

from asr import corpus, manifest
from asr.corpus import CorpusError, Recording, Splits


def episode(one: Recording) -> str:
    return one.audio.stem.partition("_")[0]


def recordings(path: Path) -> list[Recording]:
    return [Recording(utterance.audio, utterance.text) for utterance in manifest.read(path)]


def read(folder: Path, _: argparse.Namespace) -> Splits:
    train = recordings(corpus.find(folder, "train.jsonl"))
    test = recordings(corpus.find(folder, "test.jsonl"))
    episodes = sorted({episode(one) for one in train})
    if len(episodes) < 2:
        raise CorpusError(f"{folder}: expected clips of several episodes, as ch01_001.opus, got {', '.join(episodes)}")
    dev = [one for one in train if episode(one) == episodes[-1]]
    return {"train": [one for one in train if episode(one) != episodes[-1]], "dev": dev, "test": test}


if __name__ == "__main__":
    splits = corpus.prepare(read, corpus.parser(__doc__, downloads=False).parse_args())
    alphabet = run_path(str(Path(__file__).parent.parent / "common_voice/prepare.py"))["alphabet"]
    quoted = json.dumps(alphabet([each.text for each in splits["train"]]), ensure_ascii=False)
    config = Path(sys.argv[0]).with_name("config.yaml")
    print(f"asr train {config} network.encoder=ENCODER 'data.alphabet={quoted}'")
