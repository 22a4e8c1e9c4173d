"""Common Voice -> manifests, any language. Read sentences, many speakers, laptops and telephones.

    python recipes/common_voice/prepare.py cv-corpus-17.0-2024-03-15-de.tar.gz --language de
    python recipes/common_voice/prepare.py cv-corpus-17.0-2024-03-15 --language de

It cannot be downloaded from here: get the archive of your language from the page of Mozilla Common Voice, which asks for
an address and your consent, and name it or the unpacked folder. The splits are the official ones, whose speakers differ.
Of other languages, the command to train with their alphabet is printed. CC0. Ardila et al. 2020, "Common Voice".
"""

import argparse
import csv
import json
import sys
from collections import Counter
from pathlib import Path

from asr import corpus
from asr.corpus import CorpusError, Recording, Splits
from asr.text import letters

RARE = 2000  # a character in fewer than one of so many sentences is a name's or a slip's


def recordings(folder: Path, split: str) -> list[Recording]:
    with (folder / f"{split}.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))  # a quotation mark is text there
    names = (row["path"] if row["path"].endswith(".mp3") else row["path"] + ".mp3" for row in rows)  # older: no suffix
    paths = [folder / "clips" / Path(name).name for name in names]
    return [Recording(path, row["sentence"], row["client_id"][:16]) for path, row in zip(paths, rows, strict=True)]


def read(folder: Path, arguments: argparse.Namespace) -> Splits:
    languages = sorted({path.parent.name for depth in ("*", "*/*") for path in folder.glob(f"{depth}/train.tsv")})
    if languages and arguments.language not in languages:
        raise CorpusError(
            f"{folder}: expected a folder {arguments.language}/, got {', '.join(languages)}; see --language"
        )
    folder = corpus.find(folder, f"{arguments.language}/train.tsv", "train.tsv").parent
    missing = [name for name in ("dev.tsv", "test.tsv", "clips") if not (folder / name).exists()]
    if missing:
        raise CorpusError(f"{folder}: expected the folder of a language, but {', '.join(missing)} is missing")
    return {split: recordings(folder, split) for split in ("train", "dev", "test")}


def alphabet(texts: list[str]) -> str:
    counts = Counter(character for text in texts for character in set(letters(text)))
    return "".join(sorted(character for character, count in counts.items() if count * RARE >= len(texts)))


if __name__ == "__main__":
    parser = corpus.parser(__doc__, downloads=False)
    parser.add_argument("--language", metavar="CODE", default="en", help="as Common Voice writes it (default: en)")
    arguments = parser.parse_args()
    splits = corpus.prepare(read, arguments)
    settings = ""
    if arguments.language != "en":
        quoted = json.dumps(alphabet([each.text for each in splits["train"]]), ensure_ascii=False)
        settings = f" name=common_voice_{arguments.language} data.normaliser=letters 'data.alphabet={quoted}'"
    print(f"asr train {Path(sys.argv[0]).with_name('config.yaml')}{settings}")
