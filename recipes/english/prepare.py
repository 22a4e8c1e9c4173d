"""English of many voices -> the manifests of one recogniser.

    python recipes/english/prepare.py CORPORA --clips CLIPS

CORPORA holds speechocean762/, common_voice/en/ and ljspeech/, each as its own recipe takes it, and, if they are there, more/
with the manifests kathleen, excerpts, prompts and reader, and librispeech_sample/, a test set. CLIPS holds the clips of
more/common_voice_other.tsv, whose texts are by a Whisper model. OUT gets train.jsonl of what people transcribed,
train_first.jsonl of its Common Voice and kathleen, train_labelled.jsonl of the clips, and sets to develop and test on.
"""

import argparse
import csv
from pathlib import Path
from runpy import run_path

from asr import corpus, manifest
from asr.corpus import Recording, Splits
from asr.text import english

RECIPES, MORE = Path(__file__).parent.parent, ("kathleen", "excerpts", "prompts", "reader")
SURE, PACE = -0.35, (4.5, 25)  # mean log-probability of a text's tokens; letters a second of the whole clip


def more(path: Path) -> list[Recording]:
    us = manifest.read(path) if path.exists() else []
    unread = {u.audio for u in us if set("<>*#") & set(u.text) or "(note:" in u.text}  # not what is said
    return [Recording(u.audio, "" if u.audio in unread else u.text, u.speaker) for u in us]


def labelled(table: Path, clips: Path, held_out: set[str]) -> list[Recording]:
    rows = list(csv.DictReader(table.read_text("utf-8").splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
    sure = [row for row in rows if row["text"] and float(row["log_prob"]) > SURE and 1 <= float(row["seconds"]) <= 20]
    likely = [row for row in sure if PACE[0] <= len(english(row["text"])) / float(row["seconds"]) <= PACE[1]]
    kept = [row for row in likely if english(row["text"]) not in held_out]
    print(f"{table}: {len(kept)} of {len(rows)} texts are sure, likely, and in no other set")
    return [Recording(clips / Path(row["path"]).name, row["text"]) for row in kept]


def read(folder: Path, arguments: argparse.Namespace) -> Splits:
    names = ("speechocean762", "common_voice", "ljspeech", "librispeech")
    ocean, voices, reader, libri = (run_path(str(RECIPES / name / "prepare.py")) for name in names)
    learners = ocean["read"](folder / "speechocean762", arguments)
    accents = voices["read"](folder / "common_voice", argparse.Namespace(language="en"))
    kathleen, *others = (more(folder / "more" / f"{name}.jsonl") for name in MORE)
    rest = sum(others, learners["train"] + reader["recordings"](folder / "ljspeech"))
    held_out = {"dev": accents["dev"] + learners["dev"], "dev_common_voice": accents["dev"]}
    held_out |= {"test_common_voice": accents["test"], "test_speechocean762": learners["test"]}
    if (sample := folder / "librispeech_sample").is_dir():
        held_out["test_librispeech"] = libri["recordings"](sample, "test-other")
    splits = {"train": accents["train"] + kathleen + rest, "train_first": accents["train"] + kathleen, **held_out}
    if arguments.clips:
        texts = {english(one.text) for part in held_out.values() for one in part}
        splits["train_labelled"] = labelled(folder / "more/common_voice_other.tsv", arguments.clips, texts)
    return splits


if __name__ == "__main__":
    parser = corpus.parser(__doc__, downloads=False)
    parser.add_argument("--clips", metavar="CLIPS", type=Path, help="the folder of the clips that a teacher labelled")
    corpus.prepare(read, parser.parse_args())
