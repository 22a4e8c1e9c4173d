"""speechocean762, Common Voice, LJSpeech and spoken digits -> the manifests of one English recogniser.

    python recipes/english/prepare.py CORPORA

CORPORA holds speechocean762/, common_voice/en/, ljspeech/ and fsdd/, each as its own recipe takes it. OUT gets train.jsonl
of all four, train_voices.jsonl of the second and third, dev.jsonl and test sets of the first two, whose splits are by
speaker, test sets of the digits, and, where librispeech_sample/ lies beside them, a test set of that, whose speakers and
kind of recording are in no training set.
"""

import argparse
from pathlib import Path
from runpy import run_path

from asr import corpus
from asr.corpus import Splits

RECIPES = Path(__file__).parent.parent


def read(folder: Path, arguments: argparse.Namespace) -> Splits:
    names = "speechocean762", "common_voice", "ljspeech", "fsdd", "librispeech"
    speechocean762, common_voice, ljspeech, fsdd, librispeech = (
        run_path(str(RECIPES / name / "prepare.py")) for name in names
    )
    ocean = speechocean762["read"](folder / "speechocean762", arguments)
    voices = common_voice["read"](folder / "common_voice", argparse.Namespace(language="en"))
    digits = fsdd["read"](folder / "fsdd", argparse.Namespace(leave_out=None, out=arguments.out))
    reader = ljspeech["recordings"](folder / "ljspeech")
    splits = {
        **{f"speechocean762/{split}": recordings for split, recordings in ocean.items()},
        "train": ocean["train"] + voices["train"] + reader + digits["train"],
        "train_voices": voices["train"] + reader,
        "dev": voices["dev"] + ocean["dev"],
        "dev_common_voice": voices["dev"],
        "test_common_voice": voices["test"],
        "test_digits": digits["test"],
        "test_digits_connected": digits["test_connected"],
    }
    sample = folder / "librispeech_sample"
    return (
        {**splits, "test_librispeech": librispeech["recordings"](sample, "test-other")} if sample.is_dir() else splits
    )


if __name__ == "__main__":
    corpus.prepare(read, corpus.parser(__doc__, downloads=False).parse_args())
