"""AN4 -> manifests. Names, numbers and addresses, spoken and spelt, by 84 people: 948 utterances to train, 130 to test.

    python recipes/an4/prepare.py --download                # 64 MB
    python recipes/an4/prepare.py an4

The corpus folder holds etc/an4_{train,test}.transcription and wav/, of the archive in NIST sphere format or one of those
of raw samples, which become flac files in OUT/audio. Every 10th training speaker is held out as the dev set; the test
set is upstream's. Acero & Stern 1990, "Environmental robustness in automatic speech recognition".
"""

import argparse
import re
from pathlib import Path

import numpy as np
import soundfile

from asr import corpus
from asr.corpus import Archive, CorpusError, Recording, Splits

# No checksum is published. The second address is NVIDIA's, for the tutorials of NeMo.
FOLDERS = ["http://www.speech.cs.cmu.edu/databases/an4", "https://dldata-public.s3.us-east-2.amazonaws.com"]
ARCHIVES = [Archive("an4_sphere.tar.gz", FOLDERS, None)]
DEV_EVERY = 10  # training speakers


def converted(raw: Path, folder: Path) -> Path:
    """Raw samples of 16 bits as flac. In the wrong byte order speech is loud noise."""
    path, data = folder / f"{raw.stem}.flac", raw.read_bytes()
    orders = [np.frombuffer(data[: len(data) // 2 * 2], dtype) for dtype in (">i2", "<i2")]
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, min(orders, key=lambda order: np.abs(order.astype(float)).sum()).astype(np.int16), 16_000)
    return path


def recordings(root: Path, split: str, out: Path) -> list[Recording]:
    found = []
    for line in (root / f"etc/an4_{split}.transcription").read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"(?:<s>)?\s*(.*?)\s*(?:</s>)?\s*\((\S+)\)\s*", line)  # <s> RUBOUT G M </s> (an1-fash-b)
        if match is None or match[2].count("-") != 2:
            raise CorpusError(f"{root}/etc: expected lines such as '<s> YES </s> (an1-fash-b)', got {line!r}")
        speaker = match[2].split("-")[1]
        path = root / f"wav/an4{'_clstk' if split == 'train' else 'test_clstk'}/{speaker}/{match[2]}.sph"
        if path.with_suffix(".raw").exists():
            path = converted(path.with_suffix(".raw"), out / "audio")
        found.append(Recording(path, match[1].lower(), speaker))
    return found


def read(folder: Path, arguments: argparse.Namespace) -> Splits:
    root = corpus.find(folder, "etc/an4_train.transcription").parent.parent
    train, test = (recordings(root, split, arguments.out) for split in ("train", "test"))
    train, dev = corpus.hold_out(train, DEV_EVERY)
    return {"train": train, "dev": dev, "test": test}


if __name__ == "__main__":
    corpus.prepare(read, corpus.parser(__doc__).parse_args(), ARCHIVES)
