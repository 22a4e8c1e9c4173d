"""From the corpora to the two files of the bundled English model: its network and its language model.

    pip install pocketsphinx pyroomacoustics
    apt-get install espeak-ng festival festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts flite libttspico-utils
    python recipes/english/build.py CORPORA --threads 2

CORPORA holds speechocean762/, common_voice/en/, ljspeech/, fsdd/, noise/, librispeech_sample/ and text/, of which the
language model takes books.txt.xz and modern.txt.xz. OUT (runs/english) gets english.onnx and english.lm, and a folder for
each training. What is there is not made again, and a training that was stopped goes on: the same command continues. Of
PocketSphinx only its pronouncing dictionary is used (CMUdict, a BSD licence). On two cores without a GPU it takes most of a
day.
"""

import argparse
import contextlib
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from asr import manifest
from asr.training import checkpoint

try:
    import pocketsphinx
except ImportError:
    sys.exit("build.py: expected pocketsphinx, for its pronouncing dictionary; pip install pocketsphinx")
RECIPE = Path(__file__).parent
DATA, ROOMS = RECIPE / "data", RECIPE / "data/rooms"
SYNTHETIC = DATA / "synthetic/synthetic.jsonl"
# Every second of its utterances, every third.
PARTS = {n: [SYNTHETIC.with_name(f"{part}-of-{n}.jsonl") for part in range(1, n + 1)] for n in (2, 3)}
ALPHABET = "abcdefghijklmnopqrstuvwxyz'"
# The language model is to know nothing of what the recogniser is judged by.
HELD_OUT = ["dev", "test_common_voice", "test_librispeech", "test_digits", "test_digits_connected"]
HELD_OUT += ["speechocean762/dev", "speechocean762/test"]
# The trainings: from which weights (of several trainings: their mean), on what, and with what that is not as in config.yaml.
# RESULTS.md has what each gained.
REAL, VOICES = DATA / "train.jsonl", DATA / "train_voices.jsonl"
EARLIER = ["features.hop_length=160", "augment.spec_augment.time_width=30"]  # frames of 40 ms
EARLIER += ["augment.vtlp=0", "augment.speed=[0.9,0.95,1.0,1.05,1.1]", "augment.join_share=0.1"]
DRY = [*EARLIER, "augment.rooms=null", "augment.band_share=0", "augment.join_share=0"]
CLEAN = [*DRY, "augment.noise=null", "pronunciation=null"]
TRAININGS: dict[str, tuple[list[str], list[Path], list[str]]] = {
    "1-real": (["0-speechocean762"], [REAL], ["epochs=28", "optimiser.lr=0.001", "stream=null", *CLEAN]),
    "2-streamed": (["1-real"], [REAL], ["epochs=18", *CLEAN]),
    "3-synthetic": (
        ["2-streamed"],
        [REAL, SYNTHETIC],
        ["epochs=10", "optimiser.lr=0.0008", "stream=null", *DRY, "augment.noise_share=0.4"],
    ),
    "4-synthetic": (
        ["3-synthetic"],
        [REAL, PARTS[3][0]],
        ["epochs=10", "optimiser.lr=0.0006", *EARLIER, "augment.noise_share=0.2", "augment.rooms_share=0.15", "seed=7"],
    ),
    "4-voices": (["3-synthetic"], [REAL, VOICES], ["epochs=9", *EARLIER, "augment.band_share=0.05", "seed=8"]),
    "5-one": (["4-synthetic", "4-voices"], [REAL, VOICES, PARTS[2][0]], ["seed=11"]),
    "5-other": (["4-synthetic", "4-voices"], [REAL, VOICES, PARTS[2][1]], ["seed=12"]),
}
LAST = ["5-one", "5-other"]  # of one origin, so that between their weights lie better ones


def run(*command: object) -> None:
    """Run a command of ours; if it fails, end as it did."""
    words = list(map(str, command))
    print(f"$ {shlex.join(words)}", file=sys.stderr, flush=True)
    process = subprocess.Popen([sys.executable, *words])
    while process.poll() is None:
        with contextlib.suppress(KeyboardInterrupt):  # which the command has heard too; it ends when it has saved
            process.wait()
    if process.returncode:
        sys.exit(process.returncode)


def make(path: Path, *command: object) -> None:
    """Run a command of ours that makes this file, unless it is there."""
    if not path.exists():
        run(*command)


def weights(out: Path, names: list[str]) -> Path:
    """The weights of a training, or the mean of those of several. source: Wortsman et al. 2022, "Model soups"."""
    paths = [out / name / "model.safetensors" for name in names]
    if len(paths) == 1:
        return paths[0]
    path = out / f"{'+'.join(names)}.safetensors"
    if not path.exists():
        state = checkpoint.load(paths[-1])[1]
        state["training"] = {"weights": f"average of {len(paths)} trainings"}  # not the last one's figures
        checkpoint.save(path, checkpoint.average(paths), state)
    return path


def main(corpora: Path, out: Path, threads: int, hours: float) -> None:
    make(DATA / "train.jsonl", RECIPE / "prepare.py", corpora, DATA)
    make(ROOMS / "room-0200.flac", RECIPE / "rooms.py", ROOMS)
    make(SYNTHETIC, RECIPE / "synthesize.py", corpora, SYNTHETIC.parent, "--hours", hours, "--jobs", threads)
    utterances = manifest.read(SYNTHETIC)
    for parts in PARTS.values():
        for first, part in enumerate(parts):
            if not part.exists():
                manifest.write(part, utterances[first :: len(parts)])

    end = ["--threads", threads, "--resume", "--run"]
    folder = out / "0-speechocean762"
    config = RECIPE.parent / "speechocean762/config.yaml"
    own = [f"data.{split}={DATA}/speechocean762/{split}.jsonl" for split in ("train", "dev")]
    make(folder / "model.safetensors", "-m", "asr", "train", config, *own, *end, folder)
    dictionary = Path(pocketsphinx.get_model_path("en-us")) / "cmudict-en-us.dict"
    given = [f"augment.noise={corpora}/noise", f"augment.rooms={ROOMS}", f"pronunciation.dictionary={dictionary}"]
    for name, (origins, data, settings) in TRAININGS.items():
        own = [f"init={weights(out, origins)}", f"data.train=[{','.join(map(str, data))}]", *given, *settings]
        made = out / name / "model.safetensors"
        make(made, "-m", "asr", "train", RECIPE / "config.yaml", *own, *end, made.parent)

    lm, model = out / "english.lm", out / "english.onnx"
    text = ["--alphabet", ALPHABET, *(f"--exclude={DATA}/{name}.jsonl" for name in HELD_OUT)]
    texts = [corpora / "text/books.txt.xz", corpora / "text/modern.txt.xz"]
    general, transcripts, network = out / "general.lm", out / "transcripts.lm", out / "untuned.onnx"
    pruned = ["--vocab", 100000, "--entropy", 1.4e-7]  # to 22 MB
    make(general, "-m", "asr", "lm", "train", *texts, "-o", general, *pruned, *text)
    make(transcripts, "-m", "asr", "lm", "train", DATA / "train.jsonl", "-o", transcripts, *text)
    make(lm, "-m", "asr", "lm", "mix", general, transcripts, "-o", lm, "--tune", DATA / "dev.jsonl")
    make(network, "-m", "asr", "export", weights(out, LAST), "-o", network, "--int8", "--temperature", 1.5)
    if not model.exists():
        tuned = shutil.copy(network, out / "tuned.onnx")
        run("-m", "asr", "tune", tuned, DATA / "dev.jsonl", "--lm", lm)
        tuned.rename(model)
    print(f"{model}\n{lm}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", metavar="CORPORA", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path, nargs="?", default=Path("runs/english"))
    parser.add_argument("--threads", type=int, default=1, help="of the trainings (default: %(default)s)")
    parser.add_argument("--hours", type=float, default=12.7, help="of synthetic speech (default: %(default)s)")
    main(**vars(parser.parse_args()))
