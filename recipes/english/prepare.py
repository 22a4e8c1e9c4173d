"""speechocean762, Common Voice and LJSpeech -> the manifests of one English recogniser.

    python recipes/english/prepare.py CORPORA [OUT]

CORPORA holds speechocean762/, common_voice/en/ and ljspeech/, each unpacked as published. OUT is data/ beside this file
unless given: train.jsonl of all three, dev.jsonl and test sets of the first two, whose splits are by speaker.
Ardila et al. 2020, "Common Voice"; Ito & Johnson 2017, "The LJ Speech Dataset"; for speechocean762 see its own recipe.
"""

import csv
import subprocess
import sys
from pathlib import Path

from asr import audio, manifest
from asr.manifest import Utterance


def common_voice(corpus: Path, split: str) -> list[Utterance]:
    with (corpus / f"{split}.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))  # a quotation mark is text there
    paths = [corpus / "clips" / Path(row["path"]).name for row in rows]
    return [
        Utterance(path, audio.info(path).duration_s, row["sentence"], speaker=row["client_id"][:16])
        for path, row in zip(paths, rows, strict=True)
    ]


def ljspeech(corpus: Path) -> list[Utterance]:
    """Its normalised texts, with numbers as words."""
    files = {path.stem: path for path in (corpus / "wavs").iterdir()}
    rows = (line.split("|") for line in (corpus / "metadata.csv").read_text(encoding="utf-8").splitlines())
    return [Utterance(files[key], audio.info(files[key]).duration_s, text, speaker="lj") for key, _, text in rows]


def main(corpora: Path, out: Path) -> None:
    for needed in ("speechocean762/train/wav.scp", "common_voice/en/train.tsv", "ljspeech/metadata.csv"):
        if not (corpora / needed).exists():
            sys.exit(f"{corpora}: expected a folder with {needed} in it")
    recipe = Path(__file__).parent.parent / "speechocean762" / "prepare.py"
    subprocess.run([sys.executable, recipe, corpora / "speechocean762", out / "speechocean762"], check=True)
    read = {split: manifest.read(out / f"speechocean762/{split}.jsonl") for split in ("train", "dev", "test")}
    voices = {split: common_voice(corpora / "common_voice/en", split) for split in ("train", "dev", "test")}
    for name, utterances in {
        "train": read["train"] + voices["train"] + ljspeech(corpora / "ljspeech"),
        "dev": voices["dev"] + read["dev"],
        "dev_common_voice": voices["dev"],
        "test_common_voice": voices["test"],
    }.items():
        manifest.write(out / f"{name}.jsonl", utterances)
        hours = sum(utterance.duration_s for utterance in utterances) / 3600
        print(f"{out / name}.jsonl: {len(utterances)} utterances, {hours:.2f} hours")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else Path(__file__).parent / "data")
