"""Sentences of books and of the training transcripts, spoken by free synthetic voices: more training data.

    python recipes/english/prepare.py CORPORA
    python recipes/english/synthesize.py CORPORA OUT --hours 40

CORPORA holds text/books.txt.xz and perhaps librispeech_sample/. No sentence of that sample, or of the dev and test sets
of prepare.py, is spoken. OUT gets VOICE/NUMBER-CHECKSUM.flac and synthetic.jsonl. The same seed and engines give the
same files: those that are there are kept, more hours add to fewer. The voices are Debian's; what is missing is named.
"""

import argparse
import random
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from asr import audio, manifest, terminal
from asr.errors import AsrError
from asr.lm import text as lmtext
from asr.manifest import Utterance
from asr.text import english

_ACCENTS = ("en-us", "en-us-nyc", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
_SPEAKERS = "m1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 klatt klatt2 klatt4 adam Alicia Andrea Annie belinda ed linda steph"
# Program: share of the sentences, Debian packages, voices. Most goes to recordings of real speakers, or models of them;
# espeak-ng's formants are far from these, but nothing else has so many accents. Left out: flite's kal and kal16
# (festival's kal_diphone) and awb_time (a clock), MBROLA's voices (not free).
ENGINES = {
    "flite": (0.46, "flite", ["slt", "rms", "awb"]),
    "pico2wave": (0.26, "libttspico-utils", ["en-US", "en-GB"]),
    "festival": (0.20, "festival festvox-us-slt-hts festvox-kallpc16k festvox-kdlpc16k",
                 ["cmu_us_slt_arctic_hts", "kal_diphone", "ked_diphone"]),
    "espeak-ng": (0.08, "espeak-ng", ["+".join(pair) for pair in product(_ACCENTS, _SPEAKERS.split())]),
}  # fmt: skip
_OPTIONAL = "pico2wave"  # Apache 2.0, but in Debian's non-free, since its voices come without their sources
_MEN = ("rms", "awb", "kal_diphone", "ked_diphone")  # with vocal tracts that can be shortened more, as far as a child's
_HELD_OUT = ("dev.jsonl", "test_common_voice.jsonl", "speechocean762/test.jsonl")
_TRANSCRIPTS = 0.15  # share of the sentences that are of train.jsonl, not of books
_WORDS = range(3, 21)  # of a sentence; a single digit of train.jsonl is none
_LIMIT_S = 30.0  # for a sentence, which takes less than one second on an idle processor
_PLAIN = re.compile(r"[A-Za-z',;:? !\"-]+[.?!]?[\"']*")  # no digits, no signs, no full stop inside
# Capitals, letters, and whatever has no vowel, such as Mr or lbs; "I", "a" and "o" are words.
_ABBREVIATION = re.compile(r"\b([A-Z]{2,}|(?i:[b-df-hj-np-tv-xz]+|[euy]))\b")


class Sentence(NamedTuple):
    """What is said, and how. tempo, pitch, size: factors of its duration, and of the voice's fundamental and formants."""

    number: int
    engine: str
    voice: str
    text: str
    tempo: float
    pitch: float
    size: float

    @property
    def name(self) -> str:
        return f"{self.engine}-{self.voice}/{self.number:06}-{zlib.crc32(repr(self).encode()):08x}.flac"


def speakable(line: str) -> str | None:
    """The line in lower case with its pauses if it is a sentence whose words every engine says, else None."""
    line = re.sub("--+|—", ", ", re.sub("[“”]", '"', re.sub("[‘’]", "'", line.strip())))
    if not _PLAIN.fullmatch(line) or _ABBREVIATION.search(re.sub(r"(?<=[A-Za-z])'[a-z]+\b", "", line)):
        return None
    line = re.sub(r"(?<![a-z])'+|'+(?![a-z])|[\"-]", " ", line.lower())
    line = re.sub(r"[ ,;:]*([,;:])[ ,;:]*", r"\1 ", " ".join(line.split()))
    return line if len(line.split()) in _WORDS else None


def sentences(corpora: Path, data: Path, draw: random.Random) -> Iterator[str]:
    """Sentences without end, as long as those of train.jsonl are."""
    held_out = list(lmtext.lines([data / name for name in _HELD_OUT], english))
    for path in sorted((corpora / "librispeech_sample").rglob("*.trans.txt")):
        held_out += [english(line.partition(" ")[2]) for line in lmtext.lines([path], str)]
    without = lmtext.Without(held_out)

    def usable(lines: Iterable[str]) -> Iterator[str]:
        return (text for line in lines if (text := speakable(line)) and any(without([english(text)])))

    transcripts = list(usable(lmtext.lines([data / "train.jsonl"], str)))
    if not transcripts:
        raise AsrError(f"{data}/train.jsonl: expected English sentences, got none; run prepare.py again")
    books = list(lmtext.lines([corpora / "text" / "books.txt.xz"], str))
    draw.shuffle(transcripts)
    draw.shuffle(books)
    again, unread, waiting = cycle(transcripts), usable(books), defaultdict[int, list[str]](list)
    while True:
        if draw.random() < _TRANSCRIPTS:
            yield next(again)
            continue
        length = len(draw.choice(transcripts).split())
        while not waiting[length]:
            if (text := next(unread, None)) is None:
                raise AsrError(f"{corpora}/text: no sentence of {length} words is left; ask for fewer hours")
            waiting[len(text.split())].append(text)
        yield waiting[length].pop()


def plan(corpora: Path, data: Path, hours: float, seed: int, engines: list[str]) -> Iterator[Sentence]:
    """About so many hours, a share for each of the engines; of more hours, these are the first."""
    draw = random.Random(seed)
    planned_s = 0.0
    for number, text in enumerate(sentences(corpora, data, draw)):
        planned_s += 0.9 + 0.335 * len(text.split())  # as it comes to on average
        if planned_s > hours * 3600:
            return
        (engine,) = draw.choices(engines, [ENGINES[engine][0] for engine in engines])
        voice = draw.choice(ENGINES[engine][2])
        size = draw.uniform(0.88, 1.12) * (1.07 if voice in _MEN else 1)
        yield Sentence(number, engine, voice, text, draw.uniform(0.85, 1.4), draw.uniform(0.85, 1.2), size)


def command(sentence: Sentence, wav: Path) -> tuple[list[str], str]:
    """A command line that writes the WAV file, and what it reads."""
    _, engine, voice, text, tempo, pitch, size = sentence
    slow = tempo * size  # what moves the formants up also makes it shorter
    if engine == "flite":
        settings = ["--setf", f"duration_stretch={slow:.3f}", "--setf", f"f0_shift={pitch:.3f}"]
        return [engine, "-voice", voice, *settings, "-f", "/dev/stdin", "-o", str(wav)], text
    if engine == "pico2wave":
        levels = f'<speed level="{100 / slow:.0f}"><pitch level="{100 * pitch:.0f}">'
        return [engine, "-l", voice, "-w", str(wav)], f"{levels}{text}</pitch></speed>"
    if engine == "espeak-ng":
        settings = ["-s", f"{175 / slow:.0f}", "-p", f"{100 * pitch - 50:.0f}"]
        return [engine, "-v", voice, *settings, "--stdin", "-w", str(wav)], text
    # The second line is for models, the next two for diphones.
    script = f"""(voice_{voice})
        (if (boundp 'hts_engine_params) (set! hts_engine_params (append hts_engine_params '(("-r" {1 / slow:.3f})))))
        (Parameter.set 'Duration_Stretch {slow:.3f})
        (set! int_lr_params '((target_f0_mean {110 * pitch:.0f}) (target_f0_std 16)
                              (model_f0_mean 170) (model_f0_std 34)))
        (utt.save.wave (utt.synth (Utterance Text "{text}")) "{wav}" 'riff)"""
    return [engine, "--batch", "/dev/stdin"], script  # with --pipe, a voice that is missing would be the default one


def recorded(wav: Path, sentence: Sentence) -> np.ndarray:
    """The waveform with formants moved, and with silences, a level and a noise floor as the real corpora have them."""
    samples, rate = soundfile.read(wav, dtype="float32")
    draw = np.random.default_rng(sentence.number)
    waveform = audio.resample(samples, round(rate * sentence.size), audio.SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(waveform) > 0.02 * np.abs(waveform).max(initial=1e-4))
    if len(loud) < len(sentence.text) / 100 * audio.SAMPLE_RATE / 10:  # a tenth of the fastest speech
        raise AsrError("no speech")
    keep, before, after = (int(seconds * audio.SAMPLE_RATE) for seconds in (0.1, *draw.uniform(0, 0.6, 2)))
    waveform = np.pad(waveform[max(0, loud[0] - keep) : loud[-1] + keep], (before, after))
    waveform *= draw.uniform(0.2, 0.8) / np.abs(waveform).max()
    pink = np.fft.rfft(draw.standard_normal(len(waveform))) / np.sqrt(1 + np.arange(len(waveform) // 2 + 1))
    noise = np.fft.irfft(pink, len(waveform))
    waveform += noise * (waveform.std() / noise.std() / 10 ** (draw.uniform(25, 55) / 20))
    return waveform


def speak(sentence: Sentence, out: Path) -> Utterance:
    """The sentence's file, which is made if it is missing."""
    path = out / sentence.name
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder:
            wav = Path(folder) / "spoken.wav"
            arguments, text = command(sentence, wav)
            said = f"no end after {_LIMIT_S:g} s"
            try:
                done = subprocess.run(arguments, input=text.encode(), capture_output=True, timeout=_LIMIT_S)
                said = (done.stdout + done.stderr).decode(errors="replace").strip()[-300:] or "no message"
                waveform = recorded(wav, sentence)
            except (subprocess.TimeoutExpired, soundfile.LibsndfileError, AsrError):
                raise AsrError(
                    f"{path.parent.name}: expected speech of {sentence.text!r}, got none and {said}; "
                    f"see if the voice works alone, or apt-get install {ENGINES[sentence.engine][1]}"
                ) from None
        try:
            path.parent.mkdir(exist_ok=True)
            soundfile.write(path.with_suffix(".part"), waveform, audio.SAMPLE_RATE, format="FLAC", subtype="PCM_16")
            path.with_suffix(".part").replace(path)
        except (OSError, soundfile.LibsndfileError) as error:
            raise AsrError(f"{path}: cannot be written: {error}; check the free space there") from None
    return Utterance(path, audio.info(path).duration_s, english(sentence.text), speaker=path.parent.name)


def main(corpora: Path, out: Path, data: Path, hours: float, jobs: int, seed: int) -> None:
    if not (hours > 0 and jobs > 0):
        raise AsrError(f"expected more than no hours and no jobs, got --hours {hours} --jobs {jobs}")
    engines = [engine for engine in ENGINES if shutil.which(engine)]
    if missing := [engine for engine in ENGINES if engine not in engines]:
        lack = f"{', '.join(missing)}: no such program; apt-get install {' '.join(ENGINES[e][1] for e in missing)}"
        if missing != [_OPTIONAL]:
            raise AsrError(lack)
        print(f"{lack}; going on without it", file=sys.stderr)
    terminal.make_folder(out)
    planned = list(plan(corpora, data, hours, seed, engines))
    with ThreadPoolExecutor(jobs) as pool, terminal.progress(terminal.stderr(quiet=False)) as progress:
        try:
            spoken = pool.map(lambda sentence: speak(sentence, out), planned)
            utterances = list(progress.track(spoken, total=len(planned), description="speaking"))
        except BaseException:  # neither an error nor Ctrl-C waits for all that are still queued
            pool.shutdown(cancel_futures=True)
            raise
    manifest.write(out / "synthetic.jsonl", utterances)
    spoken_s = sum(utterance.duration_s for utterance in utterances)
    print(f"{out}/synthetic.jsonl: {len(utterances)} utterances, {spoken_s / 3600:.2f} hours")


if __name__ == "__main__":
    recipe = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", type=Path, metavar="CORPORA")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--data", type=Path, default=recipe / "data", help="what prepare.py wrote (%(default)s)")
    parser.add_argument("--hours", type=float, default=40.0, help="about so many (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="engines at once (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    try:
        main(**vars(parser.parse_args()))
    except AsrError as error:
        sys.exit(f"synthesize.py: {' '.join(str(error).splitlines())}")
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
