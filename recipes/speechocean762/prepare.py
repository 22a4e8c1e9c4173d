"""speechocean762 -> manifests. Read English by 250 Mandarin speakers, half of them children; 125 train, 125 test.

    python recipes/speechocean762/prepare.py CORPUS [OUT]

CORPUS is the unpacked folder, which holds train/, test/ and WAVE/. OUT is data/ beside this file unless given.
Every 16th training speaker is held out as the dev set; the test set is upstream's.
Zhang et al. 2021, "speechocean762: An open-source non-native English speech corpus for pronunciation assessment".
"""

import sys
from pathlib import Path

from asr import audio, manifest

DEV_EVERY = 16  # training speakers


def read_table(path: Path) -> dict[str, str]:
    """A Kaldi file of 'key value...' lines."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {key: value for key, _, value in (" ".join(line.split()).partition(" ") for line in lines) if key}


def read_split(corpus: Path, split: str) -> list[manifest.Utterance]:
    texts, speakers, files = (read_table(corpus / split / name) for name in ("text", "utt2spk", "wav.scp"))
    utterances = []
    for key, text in texts.items():
        path = corpus / files[key]
        path = path if path.exists() else path.with_suffix(".wav")
        utterances.append(manifest.Utterance(path, audio.info(path).duration_s, text.lower(), speaker=speakers[key]))
    return utterances


def main(corpus: Path, out: Path) -> None:
    if not (corpus / "train" / "wav.scp").exists():
        sys.exit(f"{corpus}: expected the folder of speechocean762 with train/wav.scp in it")
    train, test = read_split(corpus, "train"), read_split(corpus, "test")
    dev_speakers = set(sorted({utterance.speaker for utterance in train})[::DEV_EVERY])
    splits = {
        "train": [utterance for utterance in train if utterance.speaker not in dev_speakers],
        "dev": [utterance for utterance in train if utterance.speaker in dev_speakers],
        "test": test,
    }
    for name, utterances in splits.items():
        manifest.write(out / f"{name}.jsonl", utterances)
        hours = sum(utterance.duration_s for utterance in utterances) / 3600
        print(f"{out / name}.jsonl: {len(utterances)} utterances, {hours:.2f} hours")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else Path(__file__).parent / "data")
