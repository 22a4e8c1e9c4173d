"""speechocean762, Common Voice and LJSpeech -> the manifests of one English recogniser.

    python recipes/english/prepare.py CORPORA

CORPORA holds speechocean762/, common_voice/en/ and ljspeech/, each as its own recipe takes it. OUT gets train.jsonl of
all three, dev.jsonl and test sets of the first two, whose splits are by speaker.
"""

import argparse
from pathlib import Path
from runpy import run_path

from asr import corpus
from asr.corpus import Splits

RECIPES = Path(__file__).parent.parent


def read(folder: Path, _: argparse.Namespace) -> Splits:
    speechocean762, common_voice, ljspeech = (
        run_path(str(RECIPES / name / "prepare.py")) for name in ("speechocean762", "common_voice", "ljspeech")
    )
    ocean = speechocean762["read"](folder / "speechocean762", _)
    voices = common_voice["read"](folder / "common_voice", argparse.Namespace(language="en"))
    return {
        **{f"speechocean762/{split}": recordings for split, recordings in ocean.items()},
        "train": ocean["train"] + voices["train"] + ljspeech["recordings"](folder / "ljspeech"),
        "dev": voices["dev"] + ocean["dev"],
        "dev_common_voice": voices["dev"],
        "test_common_voice": voices["test"],
    }


if __name__ == "__main__":
    corpus.prepare(read, corpus.parser(__doc__, downloads=False).parse_args())
