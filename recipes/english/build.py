"""From the corpora to the two files of the bundled English model: its network and its language model.

    pip install pocketsphinx pyroomacoustics
    apt-get install espeak-ng festival festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts flite libttspico-utils
    python recipes/english/build.py CORPORA --threads 2

CORPORA holds speechocean762/, common_voice/en/, ljspeech/, fsdd/, noise/, librispeech_sample/ and text/books.txt.xz. OUT
(runs/english) gets english.onnx and english.lm, and a folder for each training. What is there is not made again, and a
training that was stopped goes on: the same command continues. Of PocketSphinx only its pronouncing dictionary is used
(CMUdict, a BSD licence). On two cores without a GPU it takes most of a day.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

RECIPE = Path(__file__).parent
DATA, ROOMS = RECIPE / "data", RECIPE / "data/rooms"
SYNTHETIC = DATA / "synthetic/synthetic.jsonl"
ALPHABET = "abcdefghijklmnopqrstuvwxyz'"
# The language model is to know nothing of what the recogniser is judged by.
HELD_OUT = ["dev", "test_common_voice", "test_librispeech", "speechocean762/dev", "speechocean762/test"]
# The trainings after that of speechocean762's recipe, each from the weights of the one before, with what is not as in
# config.yaml. Their order is that in which the model was made; RESULTS.md has what each of them gained.
REAL = f"data.train=[{DATA}/train.jsonl]"
SPOKEN = f"data.train=[{DATA}/train.jsonl,{SYNTHETIC}]"
TRAININGS = {
    "1-real": [REAL, "epochs=28", "stream=null"],
    "2-streamed": [REAL, "epochs=18", "optimiser.lr=0.0007"],
    "3-synthetic": [SPOKEN, "epochs=12", "optimiser.lr=0.0008", "stream=null"],
    "4-sounds": [SPOKEN, "epochs=9", "optimiser.lr=0.0007", "stream=null"],
    "5-streamed": [SPOKEN],
}


def make(path: Path, *command: object) -> None:
    """Run a command of ours that makes this file, unless it is there."""
    if path.exists():
        return
    words = list(map(str, command))
    print(f"$ {shlex.join(words)}", file=sys.stderr, flush=True)
    if code := subprocess.run([sys.executable, *words], check=False).returncode:
        sys.exit(code)


def main(corpora: Path, out: Path, threads: int, hours: float) -> None:
    make(DATA / "train.jsonl", RECIPE / "prepare.py", corpora, DATA)
    make(ROOMS, RECIPE / "rooms.py", ROOMS)
    make(SYNTHETIC, RECIPE / "synthesize.py", corpora, SYNTHETIC.parent, "--hours", hours, "--jobs", threads)

    train = ["--threads", threads, "--resume", "--run"]
    run = out / "0-speechocean762"
    config = RECIPE.parent / "speechocean762/config.yaml"
    own = [f"data.train={DATA}/speechocean762/train.jsonl", f"data.dev={DATA}/speechocean762/dev.jsonl"]
    make(run / "model.safetensors", "-m", "asr", "train", config, *own, *train, run)
    for name, settings in TRAININGS.items():
        settings, run = [f"init={run}", f"augment.noise={corpora}/noise", *settings], out / name
        make(run / "model.safetensors", "-m", "asr", "train", RECIPE / "config.yaml", *settings, *train, run)

    text = ["--alphabet", ALPHABET, *(f"--exclude={DATA}/{name}.jsonl" for name in HELD_OUT)]
    books, transcripts, lm = out / "books.lm", out / "transcripts.lm", out / "english.lm"
    pruned = ["--vocab", 60000, "--entropy", 1.2e-7]
    make(books, "-m", "asr", "lm", "train", corpora / "text/books.txt.xz", "-o", books, *pruned, *text)
    make(transcripts, "-m", "asr", "lm", "train", DATA / "train.jsonl", "-o", transcripts, *text)
    make(lm, "-m", "asr", "lm", "mix", books, transcripts, "-o", lm, "--tune", DATA / "dev.jsonl")

    model = out / "english.onnx"
    make(model, "-m", "asr", "export", run, "-o", model, "--int8", "--manifest", DATA / "dev.jsonl")
    make(out / "tuned", "-m", "asr", "tune", model, DATA / "dev.jsonl", "--lm", lm, "--beam", 32)
    print(f"cp {model} {lm} asr/models/english/")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", metavar="CORPORA", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path, nargs="?", default=Path("runs/english"))
    parser.add_argument("--threads", type=int, default=1, help="of the trainings (default: %(default)s)")
    parser.add_argument("--hours", type=float, default=13.0, help="of synthetic speech (default: %(default)s)")
    main(**vars(parser.parse_args()))
