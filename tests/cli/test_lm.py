"""Language models, hot words, grammars, tuning: the commands from end to end, and what they say of bad input."""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from conftest import DATA, Cli, Done, Run

from asr.lm import kneserney
from asr.lm.model import NgramModel
from asr.models import find_model

DIGITS, SEVEN, THREE = DATA / "connected_digits.flac", DATA / "7_jackson_0.wav", DATA / "3_nicolas_0.wav"
TEXT = "Five seven, nine zero!\none two three\nthree four five\nseven\n\nthree\nnine zero one\n"
TRANSCRIBE = ("transcribe", "-m", "digits")
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "zero"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "digits.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def lm(tmp_path: Path) -> Path:
    """A model of the ten digits, each as likely after each."""
    path = tmp_path / "digits.lm"
    kneserney.train([*WORDS, " ".join(WORDS), " ".join(WORDS[::-1])], order=2).save(path)
    return path


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The bundled recogniser in a file that may be changed."""
    path = tmp_path / "own.onnx"
    shutil.copy(find_model("digits"), path)
    return path


def manifest(path: Path, rows: list[tuple[Path, str]]) -> Path:
    lines = [json.dumps({"audio_filepath": str(audio), "duration": 4.5, "text": text}) for audio, text in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    """What the recogniser hears as it was said, but for the last word."""
    return manifest(tmp_path / "dev.jsonl", [(DIGITS, "five seven nine zero"), (SEVEN, "seven"), (THREE, "four")])


# --- asr lm ---


def test_from_text_to_transcript(cli: Cli, text: Path, tmp_path: Path) -> None:
    """Once as a user does it, in processes of their own."""
    done = cli("lm", "train", text, "-o", "models/d.lm")
    assert (done.returncode, done.stdout) == (0, "")
    told = done.stderr.splitlines()
    assert told[0] == "15 words in 6 lines (1 empty ones skipped); 8 words known, 0 times another one"
    assert told[-1].startswith("models/d.lm: 0.0 MB, 11 1-grams, 18 2-grams, ")
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["d.lm"]
    done = cli(*TRANSCRIBE, DIGITS, "--lm", "models/d.lm")
    assert (done.returncode, done.stdout, done.stderr) == (0, "five seven nine zero\n", "")


@pytest.mark.parametrize("name", ["d.lm", "d.arpa", "d.arpa.gz"])
@pytest.mark.parametrize("characters", [[], ["--characters", "--order", 5]], ids=["words", "characters"])
def test_every_format_serves(asr: Run, text: Path, name: str, characters: list[object], tmp_path: Path) -> None:
    assert asr("lm", "train", text, "-o", name, *characters).status == 0
    start = {"d.lm": b"\x89asr-lm", "d.arpa": b"\\data\\", "d.arpa.gz": b"\x1f\x8b"}[name]
    assert (tmp_path / name).read_bytes().startswith(start)
    assert asr(*TRANSCRIBE, DIGITS, "--lm", name) == (0, "five seven nine zero\n", "")
    assert asr("lm", "perplexity", name, text).status == 0
    if name == "d.arpa":
        assert asr("lm", "info", name).text.startswith("1-grams     17\n" if characters else "1-grams     11\n")


def test_a_model_decides(asr: Run, tmp_path: Path) -> None:
    """A model in which all speak of "nine" and "five" alone, heeded beyond all reason."""
    kneserney.train(["nine five nine"] * 50, order=2).save(tmp_path / "nine.lm")
    done = asr(*TRANSCRIBE, SEVEN, "--lm", "nine.lm", "--decoding", "lm_weight=5,unknown=never")
    assert done.status == 0
    assert set(done.text.split()) <= {"nine", "five"}
    assert asr(*TRANSCRIBE, SEVEN, "--lm", "nine.lm", "--decoding", "lm_weight=0,unknown=0").text == "seven\n"


def test_texts_of_all_kinds_train(asr: Run, dev: Path, tmp_path: Path) -> None:
    (tmp_path / "more.txt.gz").write_bytes(gzip.compress(b"Six!\nEight.\n"))
    done = asr("lm", "train", dev, "more.txt.gz", "-o", "all.lm", "--vocab", 6, "--order", 2, "--prune", "0 0")
    assert done.status == 0
    model = NgramModel.load(tmp_path / "all.lm")
    assert model.words[3:] == ["seven", "eight", "five", "four", "nine", "six"]
    assert model.info["texts"] == ["dev.jsonl", "more.txt.gz"]
    assert model.info["unknown_words"] == 1


def test_the_alphabet_of_a_character_model_has_the_space(asr: Run, text: Path, tmp_path: Path) -> None:
    assert (
        asr("lm", "train", text, "-o", "c.lm", "--characters", "--alphabet", " abcdefghijklmnopqrstuvwxyz").status == 0
    )
    assert "▁" in NgramModel.load(tmp_path / "c.lm")


def test_what_is_held_out_is_left_out(asr: Run, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(f"{' '.join(WORDS)}\nTwo!\nthree four\n{' '.join(WORDS[:6])}\n")
    (tmp_path / "test.txt").write_text("two\n")
    held_out = manifest(tmp_path / "test.jsonl", [(DIGITS, " ".join(WORDS[1:9]).upper())])
    done = asr("lm", "train", "text.txt", "-o", "d.lm", "--exclude", held_out, "--exclude", "test.txt")
    assert done.status == 0
    assert (
        "2 of 4 lines equal a held-out text or share 7 words in a row with one, and were left out\n" in done.complaint
    )
    assert "warning" not in done.complaint
    assert NgramModel.load(tmp_path / "d.lm").info["lines"] == 2
    done = asr("lm", "train", "text.txt", "-o", "none.lm", "--exclude", "text.txt")
    assert done.status == 1
    assert done.complaint.splitlines() == [
        "4 of 4 lines equal a held-out text or share 7 words in a row with one, and were left out",
        "warning: that is most of them; where every set has the same sentences, as of commands or digits, do without "
        "--exclude",
        "asr: expected a text, got no lines",
    ]
    assert not (tmp_path / "none.lm").exists()


def test_perplexity(asr: Run, text: Path, lm: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("One, two.\n\nelephant\n")
    found = NgramModel.load(lm).perplexity(["one two", "elephant"])
    assert asr("lm", "perplexity", lm, "other.txt") == (
        0,
        f"perplexity {found.including_oovs:.1f}, without unknown words {found.excluding_oovs:.1f}; "
        "3 words in 2 sentences, 1 unknown\n",
        "",
    )
    assert asr("lm", "perplexity", lm, text, "other.txt").text.endswith("18 words in 8 sentences, 1 unknown\n")
    # "One," is another word without the normaliser.
    assert asr("lm", "perplexity", lm, "other.txt", "--normaliser", "none").text.endswith("3 unknown\n")


def test_convert_writes_every_format(asr: Run, lm: Path, tmp_path: Path) -> None:
    assert asr("lm", "convert", lm, "-o", "a.arpa").status == 0
    assert asr("lm", "convert", "a.arpa", "-o", "b.lm").status == 0
    assert asr("lm", "convert", DATA / "lm" / "version1.lm", "-o", "c.lm").status == 0
    assert (tmp_path / "b.lm").read_bytes()[8] == (tmp_path / "c.lm").read_bytes()[8] == 2
    assert asr(*TRANSCRIBE, DIGITS, "--lm", "b.lm") == (0, "five seven nine zero\n", "")
    done = asr("lm", "convert", lm, "-o", "b.lm")
    assert done == (1, "", "asr: b.lm: the file exists already; use --overwrite, or name another\n")


def test_info_of_a_language_model(asr: Run, text: Path) -> None:
    asr("lm", "train", text, "-o", "d.lm", "--normaliser", "none")
    done = asr("lm", "info", "d.lm")
    assert (done.status, done.complaint) == (0, "")
    rows = dict(line.split("  ", 1) for line in done.text.splitlines())
    rows = {key: value.strip() for key, value in rows.items()}
    assert rows["1-grams"] == "14"
    assert rows["words"] == "15"  # those of the text
    assert rows["normaliser"] == "none"
    assert rows["texts"] == "digits.txt"
    assert rows["file"] == "d.lm (0.0 MB)"
    assert rows["vocabulary"].startswith("three ")
    assert rows["vocabulary"].endswith(" ...")  # 11 words
    assert asr("lm", "train", text, "-o", "d.lm", "--overwrite").status == 0
    assert not asr("lm", "info", "d.lm").text.endswith("...\n")  # 8 words
    bundled = asr("lm", "info", "english")
    assert bundled.status == 0
    assert "model 1     texts " in bundled.text


def test_a_file_is_never_replaced_unasked(asr: Run, text: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.lm").write_text("mine")
    done = asr("lm", "train", text, "-o", "mine.lm")
    assert done == (1, "", "asr: mine.lm: the file exists already; use --overwrite, or name another\n")
    assert (tmp_path / "mine.lm").read_text() == "mine"
    assert asr("lm", "train", text, "-o", "mine.lm", "--overwrite").status == 0
    assert asr("lm", "info", "mine.lm").status == 0
    # Nor is what is no file, which a rename would replace by one.
    for output in (".", "/dev/null"):
        done = asr("lm", "train", text, "-o", output, "--overwrite")
        assert done.status == 1
        assert done.complaint.endswith(f"asr: {output}: expected the name of a file to write, got a folder or device\n")
    assert Path("/dev/null").is_char_device()


# --- asr tune, asr info, asr evaluate ---


def test_tune_writes_what_it_finds(
    asr: Run, lm: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = json.loads(asr("info", own, "--json").text)
    # 120 words of which some are wrong: enough to calibrate on.
    rows = [(DIGITS, "five seven nine zero"), (SEVEN, "seven"), (THREE, "four")] * 20
    dev = manifest(tmp_path / "many.jsonl", rows)
    monkeypatch.setattr("asr.decoding.tuning._ROUNDS", 1)
    monkeypatch.setattr("asr.decoding.tuning._FIRST_STEPS", {"lm_weight": 0.3})
    assert asr("tune", own, dev, "--lm", lm, "--dry-run").status == 0
    assert json.loads(asr("info", own, "--json").text) == before
    done = asr("tune", own, dev, "--lm", lm)
    assert done.status == 0
    best, *rates = done.text.splitlines()
    assert best.startswith("--decoding lm_weight=")
    assert [rate.split(": ")[0] for rate in rates] == ["greedy", "beam", "lm"]
    assert rates[1] == "beam: WER 16.67%, CER 17.24%"
    assert best in done.complaint.splitlines()  # the trials

    card = json.loads(asr("info", own, "--json").text)
    assert {key: value for key, value in card.items() if key not in ("decoding", "calibration")} == before
    shown = asr("info", own).text
    assert f"decoding        lm_weight {card['decoding']['lm_weight']}, word_bonus" in shown
    assert "calibrated for  greedy, beam, lm\n" in shown
    # It is the default from now on, and can be given on the command line as it was printed.
    weights = best.removeprefix("--decoding ").split(":")[0]
    stored = asr("transcribe", "-m", own, DIGITS, "--lm", lm, "--n-best", 2, "-f", "json")
    given = asr("transcribe", "-m", own, DIGITS, "--lm", lm, "--n-best", 2, "-f", "json", "--decoding", weights)
    assert stored.status == 0
    assert stored == given


def test_tune_never_writes_to_a_bundled_model(asr: Run, lm: Path, dev: Path, tmp_path: Path) -> None:
    path = find_model("digits")
    before = path.read_bytes()
    for named in (["digits"], ["digits", "-o", path, "--overwrite"]):
        done = asr("tune", *named, dev)
        assert done == (1, "", f"asr: {path}: comes with the package and stays as it is; write a copy with -o FILE\n")
    done = asr("tune", "digits", dev, "--lm", lm, "--closed", "--beam", 2, "-o", "tuned.onnx")
    assert done.status == 0
    assert done.complaint.endswith(f"tuned.onnx: these settings are in it now; use it with --lm {lm}\n")
    assert json.loads(asr("info", "tuned.onnx", "--json").text)["decoding"]["unknown"] is None
    assert asr("tune", "digits", dev, "-o", "tuned.onnx").complaint.startswith(
        "asr: tuned.onnx: the file exists already"
    )
    assert path.read_bytes() == before


def test_tune_goes_on_without_what_cannot_be_read(asr: Run, own: Path, tmp_path: Path) -> None:
    rows = [(DIGITS, "five seven nine zero"), (tmp_path / "gone.wav", "one"), (SEVEN, "six")]
    done = asr("tune", own, manifest(tmp_path / "some.jsonl", rows), "--dry-run")
    assert done.status == 1
    assert "gone.wav: no such file" in done.complaint
    assert done.complaint.endswith("1 recording could not be read, see above; the settings are of the others\n")
    assert done.text.startswith("greedy: WER 20.00%")


def test_tune_with_too_little_still_finds_the_weights(asr: Run, lm: Path, own: Path, dev: Path) -> None:
    done = asr("tune", own, dev, "--lm", lm, "--beam", 2, "--closed")
    assert done.status == 0
    assert "lm: not calibrated: expected at least 100 recognised words, right and wrong ones, got 6" in done.complaint
    card = json.loads(asr("info", own, "--json").text)
    assert card["decoding"]["unknown"] is None
    assert card["calibration"] == {}
    assert "unknown never" in asr("info", own).text
    assert "calibrated" not in asr("info", own).text


def test_evaluate_says_how_far_confidences_hold(asr: Run, dev: Path, tmp_path: Path) -> None:
    done = asr("evaluate", "digits", dev, "--calibration", "--json")
    assert done.status == 0
    found = json.loads(done.text)["calibration"]
    assert sum(one["words"] for one in found["bins"]) == 6
    assert all(isinstance(one["words"], int) for one in found["bins"])
    assert sum(one["words"] * one["accuracy"] for one in found["bins"]) == pytest.approx(5, abs=1e-3)
    assert 0 < found["expected_calibration_error"] < 1
    assert "calibration" not in json.loads(asr("evaluate", "digits", dev, "--json").text)

    done = asr("evaluate", "digits", dev, "--calibration", "--plot", "plots/p.png")
    assert done.status == 0
    assert re.search(r"\n 90% to 100% .* right, said .*\nexpected calibration error 0\.\d{3} ", done.text)
    picture = tmp_path / "plots/p.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    picture.write_text("mine")
    done = asr("evaluate", "digits", dev, "--calibration", "--plot", "plots/p.png")
    assert done == (1, "", "asr: plots/p.png: the file exists already; use --overwrite, or name another\n")
    assert picture.read_text() == "mine"
    assert asr("evaluate", "digits", dev, "--calibration", "--plot", "plots/p.png", "--overwrite").status == 0


def test_evaluate_where_nothing_is_recognised(asr: Run, dev: Path, tmp_path: Path) -> None:
    (tmp_path / "g.txt").write_text("two\n")
    done = asr("evaluate", "digits", dev, "--grammar", "g.txt", "--reject", 0, "--calibration", "--plot", "p.png")
    assert done.status == 0
    assert "100.00 %" in done.text
    assert "expected calibration error 0.000" in done.text


def test_the_plot_needs_matplotlib_before_the_work(asr: Run, dev: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "asr.training.plots", raising=False)
    monkeypatch.delattr("asr.training.plots", raising=False)
    done = asr("evaluate", "digits", dev, "--calibration", "--plot", "p.png")
    assert done.status == 1
    assert done.text == ""
    assert done.complaint.startswith("asr: this command needs matplotlib, which is not installed; ")


def test_evaluate_with_all_that_steers(asr: Run, lm: Path, dev: Path, tmp_path: Path) -> None:
    (tmp_path / "hot.txt").write_text("seven^3\n")
    (tmp_path / "g.txt").write_text("five seven nine zero\nseven\nthree\n")
    options = ["--lm", lm, "--decoding", "lm_weight=0.5", "--hotwords", "hot.txt", "--grammar", "g.txt", "--reject", 3]
    done = asr("evaluate", "digits", dev, *options, "--beam", 8, "--json")
    assert done.status == 0
    assert json.loads(done.text)["words"]["hits"] == 5


# --- asr transcribe ---


def test_hot_words_steer(asr: Run, tmp_path: Path) -> None:
    (tmp_path / "hot.txt").write_text("\n# names\n\nsevenn^10\n  \nZero\n\n")  # not what was said
    assert asr(*TRANSCRIBE, DIGITS).text == "five seven nine zero\n"
    assert asr(*TRANSCRIBE, DIGITS, "--hotwords", "hot.txt").text == "five sevenn nine zero\n"
    (tmp_path / "empty.txt").touch()
    assert asr(*TRANSCRIBE, DIGITS, "--hotwords", "empty.txt") == (0, "five seven nine zero\n", "")


JSGF = "#JSGF V1.0;\ngrammar digits;\npublic <s> = <d>+;\n<d> = {};\n"


@pytest.mark.parametrize(
    ("grammar", "expected"),
    [
        ("five seven nine zero\nthree\n", "five seven nine zero"),
        (JSGF.format(" | ".join(WORDS)), "five seven nine zero"),
        ("five nine zero\n", "five nine zero"),
        (JSGF.format("three | four"), ""),  # nothing like it was said
    ],
    ids=["a sentence", "all digits", "another sentence", "other digits"],
)
def test_grammars_restrict(asr: Run, grammar: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "g.txt").write_text(grammar)
    note = "" if expected else f"{DIGITS}: no sentence of the grammar is what was said, so there is no text\n"
    assert asr(*TRANSCRIBE, DIGITS, "--grammar", "g.txt") == (0, expected + "\n", note)


def test_rejection(asr: Run, tmp_path: Path) -> None:
    (tmp_path / "g.txt").write_text("five nine zero\n")
    assert asr(*TRANSCRIBE, DIGITS, "--grammar", "g.txt", "--reject", 100).text == "five nine zero\n"
    assert asr(*TRANSCRIBE, DIGITS, "--grammar", "g.txt", "--reject", 0.1).text == "\n"
    (tmp_path / "g.txt").write_text("five seven nine zero\n")
    assert asr(*TRANSCRIBE, DIGITS, "--grammar", "g.txt", "--reject", 0.1).text == "five seven nine zero\n"


def test_n_best(asr: Run, lm: Path) -> None:
    done = asr(*TRANSCRIBE, DIGITS, "--n-best", 3, "-f", "json")
    assert (done.status, done.complaint) == (0, "")
    found = json.loads(done.text)
    (stretch,) = found["alternatives"]
    assert (stretch["start_s"], stretch["end_s"]) == (0.0, 4.52)
    assert stretch["texts"][0]["text"] == found["text"] == "five seven nine zero"
    scores = [one["score"] for one in stretch["texts"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert "alternatives" not in json.loads(asr(*TRANSCRIBE, DIGITS, "-f", "json").text)
    closed = asr(*TRANSCRIBE, DIGITS, "--n-best", 2, "-f", "json", "--lm", lm, "--decoding", "unknown=never")
    for one in json.loads(closed.text)["alternatives"][0]["texts"]:
        assert set(one["text"].split()) <= set(WORDS)


def test_several_processes_steer_alike(cli: Cli, lm: Path, tmp_path: Path) -> None:
    (tmp_path / "g.txt").write_text("five nine zero\nseven\n")
    done = cli(*TRANSCRIBE, "-q", "-j", 2, DIGITS, SEVEN, "--lm", lm, "--grammar", "g.txt")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{DIGITS}\tfive nine zero\n{SEVEN}\tseven\n"


def test_words_that_cannot_be_spelt_are_counted_and_listed(asr: Run, dev: Path, tmp_path: Path) -> None:
    text = "one two zéro\nseven a b c d y\nfive seven nine zero\n"
    (tmp_path / "mixed.txt").write_text(text)
    asr("lm", "train", "mixed.txt", "-o", "mixed.lm", "--normaliser", "none")
    listed = "6 words of the language model cannot be spelt by digits: a, b, c, d, y, ...\n"
    assert asr(*TRANSCRIBE, "-v", DIGITS, "--lm", "mixed.lm").complaint.splitlines(keepends=True)[1] == listed
    assert asr("evaluate", "digits", dev, "--lm", "mixed.lm").complaint.startswith(listed)
    assert asr("tune", "digits", dev, "--lm", "mixed.lm", "--dry-run", "--beam", 2).complaint.startswith(listed)


def test_a_model_beside_the_recogniser_is_bundled(asr: Run, own: Path, lm: Path) -> None:
    done = asr("transcribe", "-m", own, DIGITS, "--lm", "bundled")
    beside = own.with_suffix(".lm")
    message = f"asr: {beside}: there is no language model beside own.onnx; name a file instead\n"
    assert done == (1, "", message)
    lm.rename(beside)
    assert asr("transcribe", "-m", own, DIGITS, "--lm", "bundled") == (0, "five seven nine zero\n", "")


@pytest.fixture
def mine(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model known by its name, and beside it a language model that knows but "nine" and "five"."""
    folder = tmp_path / "known"
    folder.mkdir()
    own.rename(folder / "mine.onnx")
    kneserney.train(["nine five nine"] * 50, order=2).save(folder / "mine.lm")
    monkeypatch.setenv("ASR_MODELS", str(folder))
    return folder / "mine.lm"


HEED = ("--decoding", "lm_weight=5,unknown=never")


def test_every_command_heeds_the_language_model_of_a_name(asr: Run, mine: Path) -> None:
    onnx = mine.with_suffix(".onnx")
    transcribed = asr("transcribe", "-v", "-m", "mine", SEVEN, *HEED)
    assert transcribed.complaint.startswith(f"model digits, {onnx}, language model {mine}, 1 process\n")
    live = asr("live", "-q", "-m", "mine", "--from", SEVEN, "--speed", 0, *HEED)
    dev = manifest(mine.with_name("dev.jsonl"), [(SEVEN, "seven")])
    evaluated = asr("evaluate", "mine", dev, "-o", "said.jsonl", "--json", *HEED)
    report = json.loads(evaluated.text)
    assert report["language_model"] == str(mine)
    assert report["wer"] == 1
    for said in (transcribed.text, live.text, json.loads(Path("said.jsonl").read_text())["hypothesis"]):
        assert set(said.split()) <= {"nine", "five"}
    assert asr("evaluate", "mine", dev).text.startswith(f"model digits, {onnx}, language model {mine}\n")
    assert f"language model  {mine} (0.00 MB)\n" in asr("info", "mine").text
    tuned = asr("tune", "mine", dev, "--dry-run", "--closed", "--beam", 2)
    assert f"model digits, {onnx}, language model {mine}\n" in tuned.complaint
    assert "\nlm: WER 100.00%" in tuned.text


def test_every_command_goes_without_it(asr: Run, mine: Path) -> None:
    onnx = mine.with_suffix(".onnx")
    dev = manifest(mine.with_name("dev.jsonl"), [(SEVEN, "seven")])
    for named in (["mine", "--lm", "none"], ["mine", "--beam", 1], [onnx]):
        done = asr("transcribe", SEVEN, "-v", "-m", *named)
        assert done.text == "seven\n"
        assert done.complaint.startswith(f"model digits, {onnx}, no language model, 1 process\n")
        assert asr("live", "-q", "--from", SEVEN, "--speed", 0, "-m", *named).text == "seven\n"
        done = asr("evaluate", *named[:1], dev, *named[1:], "--json")
        report = json.loads(done.text)
        assert (report["language_model"], report["wer"]) == (None, 0)
        assert asr("tune", *named[:1], dev, *named[1:], "--dry-run").text.startswith("greedy: WER 0.00%")
        for wrong in (["transcribe", SEVEN, "-m", *named, *HEED], ["tune", *named[:1], dev, *named[1:], "--closed"]):
            assert asr(*wrong).status == 2
    assert "language model" not in asr("info", onnx).text


def test_several_processes_heed_it_too(cli: Cli, mine: Path) -> None:
    done = cli("transcribe", "-q", "-j", 2, "-m", "mine", DIGITS, SEVEN, *HEED)
    assert done.returncode == 0
    words = [set(line.partition("\t")[2].split()) for line in done.stdout.splitlines()]
    assert len(words) == 2
    assert all(said <= {"nine", "five"} for said in words)


def test_commands_speak_of_english_unless_told_otherwise(asr: Run) -> None:
    lm = find_model("english").with_suffix(".lm")
    assert asr("info").text == asr("info", "english").text
    done = asr("transcribe", "-v", SEVEN)
    files = f"{lm.with_suffix('.onnx')}, language model {lm}, rescored by {lm.with_suffix('.lstm')}"
    assert done.complaint.startswith(f"model english, {files}, 1 process\n")


# --- Wrong usage ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*TRANSCRIBE, DIGITS, "--decoding", "lm_weight=1"], "--decoding: steers a language model: --lm FILE"),
        ([*TRANSCRIBE, DIGITS, "--reject", 1], "--reject: is for a grammar: --grammar FILE"),
        ([*TRANSCRIBE, DIGITS, "--reject", -1, "--grammar", "g"], "x>=0"),
        ([*TRANSCRIBE, DIGITS, "--reject", "nan", "--grammar", "g"], "is not a number"),
        ([*TRANSCRIBE, DIGITS, "--reject", "much", "--grammar", "g"], "valid number"),
        ([*TRANSCRIBE, DIGITS, "--n-best", 3], "--n-best: only the format json has room for it: -f json"),
        ([*TRANSCRIBE, DIGITS, "--n-best", 3, "-f", "json,txt", "-o", "out"], "only the format json has room"),
        (
            [*TRANSCRIBE, DIGITS, "--n-best", 129, "-f", "json"],
            "the beam of 128 ends with no more texts than that: --beam 129",
        ),
        ([*TRANSCRIBE, DIGITS, "--n-best", 0, "-f", "json"], "x>=1"),
        ([*TRANSCRIBE, DIGITS, "--lm", "d.lm", "--decoding", "lm_weight=much"], "expected a number, got 'much'"),
        ([*TRANSCRIBE, DIGITS, "--lm", "d.lm", "--decoding", "lm_weight"], "expected a number, got ''"),
        ([*TRANSCRIBE, DIGITS, "--lm", "d.lm", "--decoding", "word_bonus=never"], "expected a number, got 'never'"),
        ([*TRANSCRIBE, DIGITS, "--lm", "d.lm", "--decoding", "lm_wieght=1"], "did you mean 'lm_weight'?"),
        (["evaluate", "digits", "dev.jsonl", "--plot", "p.png"], "--plot: shows the confidences: --calibration"),
        (["evaluate", "digits", "dev.jsonl", "--plot", "p.doc", "--calibration"], "a file's name that ends in .png"),
        (["evaluate", "digits", "dev.jsonl", "--decoding", "unknown=-1"], "steers a language model"),
        (["evaluate", "digits", "dev.jsonl", "--reject", 1], "is for a grammar"),
        (["tune", "digits", "dev.jsonl", "--closed"], "--closed: is for a language model: --lm FILE"),
        (["tune", "digits"], "Missing argument"),
        (["lm"], "Usage: asr lm"),
        (["lm", "eat"], "No such command 'eat'"),
        (["lm", "train"], "Missing argument"),
        (["lm", "train", "a.txt"], "Missing option '--output'"),
        (["lm", "train", "a.txt", "-o", "a.lm", "--prune", "a"], "expected whole numbers such as '0 0 1', got 'a'"),
        (["lm", "train", "a.txt", "-o", "a.lm", "--order", 11], "1<=x<=10"),
        (["lm", "train", "a.txt", "-o", "a.lm", "--entropy", -1], "x>=0"),
        (["lm", "train", "a.txt", "-o", "a.lm", "--vocab", 0], "x>=1"),
        (["lm", "perplexity", "a.lm"], "Missing argument"),
    ],
    ids=lambda value: " ".join(map(str, value[:1] + value[-2:])) if isinstance(value, list) else "",
)
def test_wrong_usage(asr: Run, tmp_path: Path, arguments: list[object], message: str) -> None:
    done = asr(*arguments)
    assert done.status == 2
    shown = " ".join((done.text + done.complaint).replace("│", " ").split())  # however wide the box is
    assert message in shown
    assert "Usage: " in shown
    assert not done.text or arguments == ["lm"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command", [("lm", "train"), ("lm", "convert"), ("lm", "perplexity"), ("lm", "info"), ("tune",)], ids=" ".join
)
def test_help_has_an_example(asr: Run, command: tuple[str, ...]) -> None:
    done = asr(*command, "--help")
    assert done.status == 0
    assert re.search(f"Examples?:\n    asr {' '.join(command)} ", done.text)


# --- Bad input: one line on stderr, exit status 1 ---

ARPA = (DATA / "lm" / "three.arpa").read_text(encoding="utf-8")
BIGRAM = ARPA.split("\\2-grams:\n")[1].split("\n")[0]
BIGRAM_LINE = ARPA[: ARPA.index(BIGRAM)].count("\n") + 1


def without_backoffs(text: str) -> str:
    return "\n".join("\t".join(line.split("\t")[:2]) for line in text.split("\n"))


ACCEPTED = {
    "as it is": ARPA,
    "without back-offs": without_backoffs(ARPA),
    "CRLF and byte order mark": "\ufeff" + ARPA.replace("\n", "\r\n"),
}


@pytest.mark.parametrize("content", ACCEPTED.values(), ids=ACCEPTED)
def test_unusual_arpa_files_serve(asr: Run, content: str, tmp_path: Path) -> None:
    (tmp_path / "a.arpa").write_bytes(content.encode())
    done = asr("lm", "info", "a.arpa")
    assert (done.status, done.complaint) == (0, "")
    assert done.text.startswith("1-grams     48\n2-grams     173\n")
    # Hardly a word of it can be spelt with the letters of digits, but some can.
    done = asr(*TRANSCRIBE, "-v", SEVEN, "--lm", "a.arpa")
    assert (done.status, done.text) == (0, "seven\n")
    assert "words of the language model cannot be spelt by digits: " in done.complaint


def binary(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        kneserney.train(TEXT.split("\n"), order=2).save(path)
        path.write_bytes(change(path.read_bytes()))

    return make


NOISE = bytes(range(128, 256)) * 20
RUSSIAN = "\\data\\\nngram 1=4\n\n\\1-grams:\n-1\t<unk>\n-99\t<s>\n-1\t</s>\n-1\tда\n\n\\end\\\n"
LMS: dict[str, tuple[bytes | str | Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "a.lm: no such language model; check the path"),
    "folder": (Path.mkdir, "a.lm: cannot be read: Is a directory"),
    "empty": (
        "",
        "a.lm:1: expected a language model, ARPA or binary, got a file without a line \\data\\; check the path",
    ),
    "random": (NOISE, "a.lm:1: expected a language model, ARPA or binary, got *"),
    "text": ("one two three\n", "a.lm:1: expected a language model, *"),
    "a recogniser": (find_model("digits").read_bytes(), "a.lm:*: expected a language model, *"),
    "wrong count": (
        ARPA.replace("ngram 2=173", "ngram 2=172"),
        f"a.lm:{BIGRAM_LINE + 172}: expected 172 2-grams as \\data\\ says, got another",
    ),
    "another wrong count": (
        ARPA.replace("ngram 2=173", "ngram 2=174"),
        f"a.lm:{BIGRAM_LINE + 174}: expected 174 2-grams as \\data\\ says, got 173",
    ),
    "negative order": (
        ARPA.replace("ngram 2=", "ngram -2="),
        "a.lm:3: expected the count of 2-grams*, got 'ngram -2=173'",
    ),
    "twice": (
        ARPA.replace(BIGRAM, f"{BIGRAM}\n{BIGRAM}").replace("ngram 2=173", "ngram 2=174"),
        f"a.lm:{BIGRAM_LINE + 1}: expected each 2-gram once, this one stands there twice",
    ),
    "latin1": (
        ARPA.replace("\tcat", "\tcät").encode("latin1"),
        "a.lm:*: expected UTF-8, got byte 0xe4 in 'c\\\\xe4t'; convert the file",
    ),
    "ARPA cut short": (
        ARPA[: ARPA.index("\\3-grams:")],
        "a.lm:*: expected \\end\\, got the end of the file: it is cut short, copy it again",
    ),
    "gzip cut short": (
        gzip.compress(ARPA.encode())[:500],
        "a.lm: expected a whole compressed file, got one damaged or cut short*",
    ),
    "binary cut short": (
        binary(lambda data: data[:-20]),
        "a.lm: expected * bytes with its vocabulary, got *; it is damaged*",
    ),
    "binary, header only": (
        binary(lambda data: data[:12]),
        "a.lm: expected a language model, got 12 bytes; it is damaged*",
    ),
    "binary of the future": (
        binary(lambda data: data[:8] + b"\x03" + data[9:]),
        "a.lm: expected version 1 to 2 of the file, got 3: build it again with this program",
    ),
    "binary with a wrong byte": (binary(lambda data: data[:-200] + bytes(200)), "a.lm: expected *; it is damaged*"),
}


def write(path: Path, content: bytes | str | Callable[[Path], object]) -> None:
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def assert_refused(done: Done, complaint: str) -> None:
    assert (done.status, done.text) == (1, "")
    assert done.complaint.count("\n") == 1
    assert fnmatchcase(done.complaint, f"asr: {complaint}\n".replace("[", "[[]")), done.complaint


@pytest.mark.parametrize(("content", "complaint"), LMS.values(), ids=LMS)
def test_bad_language_models(
    asr: Run, content: bytes | str | Callable[[Path], object], complaint: str, text: Path, tmp_path: Path
) -> None:
    write(tmp_path / "a.lm", content)
    for arguments in (
        [*TRANSCRIBE, DIGITS, "--lm", "a.lm"],
        ["lm", "info", "a.lm"],
        ["lm", "perplexity", "a.lm", text],
    ):
        assert_refused(asr(*arguments), complaint)


def test_a_language_model_of_another_script(asr: Run, dev: Path, tmp_path: Path) -> None:
    (tmp_path / "a.lm").write_text(RUSSIAN)
    complaint = (
        "expected words spelt with 'efghinorstuvwxz', got ['да']: normalise the model's text as the recogniser's was"
    )
    assert_refused(asr(*TRANSCRIBE, DIGITS, "--lm", "a.lm"), complaint)
    assert_refused(asr("tune", "digits", dev, "--lm", "a.lm", "-o", "a.onnx"), complaint)


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        ("lm_weight=nan", "expected for lm_weight a number from 0 to 1000, got nan"),
        ("lm_weight=-1", "expected for lm_weight a number from 0 to 1000, got -1.0"),
        ("lm_weight=1,word_bonus=inf", "expected for word_bonus a number from -1000 to 1000, got inf"),
        ("unknown=-1e30", "expected for unknown a number from -1000 to 1000, got -1e+30"),
    ],
)
def test_weights_without_sense(asr: Run, lm: Path, weights: str, complaint: str) -> None:
    assert_refused(asr(*TRANSCRIBE, DIGITS, "--lm", lm, "--decoding", weights), complaint)


TEXTS: dict[str, tuple[bytes | str, list[str], str]] = {
    "empty": ("", [], "expected a text, got no lines"),
    "blank lines": ("\n \n?!\n", [], "expected a text, got 3 lines without words"),
    "latin1": (
        "one\nna\xefve\n".encode("latin1"),
        [],
        "a.txt:2: expected UTF-8, got byte 0xef; save it as UTF-8: iconv*",
    ),
    "other letters": (
        "one\n",
        ["--alphabet", "xyz"],
        "expected words to learn, got only such as 'one': check the alphabet",
    ),
    "a line without end": (
        "a" * (1 << 20) + "b",
        [],
        "a.txt:1: expected lines of at most 1048576 bytes, got a longer one",
    ),
    "normaliser": ("one\n", ["--normaliser", "englsh"], "unknown text normaliser 'englsh': did you mean 'english'?"),
    "thresholds": ("one\n", ["--prune", "1 1"], "expected pruning thresholds that start with 0 and do not fall*"),
    "too many thresholds": (
        "one\n",
        ["--prune", "0 0 0 1"],
        "expected at most 3 pruning thresholds, one for each order*",
    ),
}


@pytest.mark.parametrize(("content", "options", "complaint"), TEXTS.values(), ids=TEXTS)
def test_bad_texts(asr: Run, content: bytes | str, options: list[str], complaint: str, tmp_path: Path) -> None:
    write(tmp_path / "a.txt", content)
    assert_refused(asr("lm", "train", "a.txt", "-o", "a.lm", *options), complaint)
    assert not (tmp_path / "a.lm").exists()


def test_no_text_has_no_perplexity(asr: Run, lm: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n?\n")
    assert_refused(asr("lm", "perplexity", lm, "a.txt"), "a.txt: expected a text, got no words")
    assert_refused(asr("lm", "perplexity", lm, "b.txt"), "b.txt: no such text; check the path")
    assert_refused(asr("lm", "train", "b.txt", "-o", "b.lm"), "b.txt: no such text; check the path")
    assert_refused(
        asr("lm", "train", "a.txt", "-o", "b.lm", "--exclude", "c.txt"), "c.txt: no such text; check the path"
    )


HOT_WORDS: dict[str, tuple[bytes | str, str]] = {
    "letters": ("seven\n\nroom 5\n", "a.txt:3: 'room five' has 'm' outside the alphabet ' efgh*': write it as the*"),
    "weight": (
        "# names\nseven^much\n",
        "a.txt:2: expected a number after '^', got 'much'; write such as 'Kubernetes^8'",
    ),
    "large weight": ("seven^100\n", "a.txt:1: expected a weight from -20 to 20 for 'seven', got 100"),
    "no weight": ("seven^nan\n", "a.txt:1: expected a weight from -20 to 20 for 'seven', got nan"),
    "two weights": (
        "seven^2\nSEVEN^3\n",
        "a.txt:2: expected one weight for 'seven', got 3, and 2 in line 1; remove one*",
    ),
    "no words": ("seven\n?!\n", "a.txt:2: expected words, got '?!', of which normalising leaves nothing"),
    "latin1": (b"seven\n\xe9t\xe9\n", "a.txt:2: expected UTF-8, got byte 0xe9; save it as UTF-8: iconv*"),
    "random": (NOISE, "a.txt:1: expected UTF-8, got byte 0x80; save it as UTF-8: iconv*"),
}
GRAMMARS: dict[str, tuple[bytes | str, str]] = {
    "letters": ("seven\nroom 5\n", "a.txt:2: 'room five' has 'm' outside the alphabet *"),
    "empty": ("\n# nothing\n", "a.txt: expected a sentence a line, or #JSGF at the start, got neither"),
    "latin1": (b"seven\n\xe9t\xe9\n", "a.txt:2: expected UTF-8, got byte 0xe9; save it as UTF-8: iconv*"),
    "JSGF": (JSGF.format("one | (two"), "a.txt:4:17: expected ')' for the '(' at a.txt:4:13, got ';'"),
    "JSGF with letters": (JSGF.format("one | ж"), "a.txt:4:13: 'ж' has 'ж' outside the alphabet *"),
    "JSGF without its header": (
        JSGF.format("one").partition("\n")[2],
        "a.txt:2: expected '#JSGF V1.0;' at the very start before rules, got 'public <s> =' without it",
    ),
    "JSGF without a rule": (JSGF.format("<digit>"), "a.txt:4:7: there is no rule <digit>; known: s, d"),
}


@pytest.mark.parametrize(("content", "complaint"), HOT_WORDS.values(), ids=HOT_WORDS)
def test_bad_hot_words(asr: Run, content: bytes | str, complaint: str, tmp_path: Path) -> None:
    write(tmp_path / "a.txt", content)
    assert_refused(asr(*TRANSCRIBE, DIGITS, "--hotwords", "a.txt"), complaint)


@pytest.mark.parametrize(("content", "complaint"), GRAMMARS.values(), ids=GRAMMARS)
def test_bad_grammars(asr: Run, content: bytes | str, complaint: str, tmp_path: Path) -> None:
    write(tmp_path / "a.txt", content)
    assert_refused(asr(*TRANSCRIBE, DIGITS, "--grammar", "a.txt"), complaint)


CHECK, MEND = "check the path and its mode", "check the folder and its free space"


def test_files_that_are_not_there(asr: Run, tmp_path: Path, own: Path, dev: Path) -> None:
    for option, what in (("--hotwords", "file of hot words"), ("--grammar", "grammar")):
        assert_refused(asr(*TRANSCRIBE, DIGITS, option, "a.txt"), f"a.txt: no such {what}; check the path")
        assert_refused(
            asr(*TRANSCRIBE, DIGITS, option, "."), ".: cannot be read: Is a directory; check the path and its mode"
        )
    assert_refused(
        asr("tune", "b.onnx", dev), "b.onnx: expected a model file (.onnx) or one of the names *; got no such file"
    )
    assert_refused(asr("tune", own, "b.jsonl"), "b.jsonl: no such manifest; *")
    kept = own.read_bytes()
    manifest(dev, [(SEVEN, ""), (tmp_path / "gone.wav", "one")])
    done = asr("tune", own, dev)
    assert (done.status, done.text) == (1, "")
    _, missing, none = done.complaint.splitlines()
    assert missing.endswith("/gone.wav: no such file; check the path")
    assert none.endswith("dev.jsonl: expected recordings with texts to tune on, got none that can be used")
    assert own.read_bytes() == kept


# --- A system that fails ---

REFUSE = f"""
import sys
def refuse(event, arguments):
    if event in ("open", "os.rename") and "locked" in " ".join(map(str, arguments[:2])):
        raise PermissionError({errno.EACCES}, "Permission denied", arguments[0])
sys.addaudithook(refuse)
"""  # not by its mode, which does not bind root


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([*TRANSCRIBE, DIGITS, "--lm", "locked"], "locked: cannot be read: Permission denied"),
        (
            [*TRANSCRIBE, DIGITS, "--hotwords", "locked"],
            f"locked: cannot be read: Permission denied; {CHECK}",
        ),
        (
            ["lm", "train", "locked", "-o", "a.lm"],
            f"locked: cannot be read: Permission denied; {CHECK}",
        ),
        (
            ["lm", "train", "digits.txt", "-o", "locked.lm"],
            f"locked.lm: cannot be written: Permission denied; {MEND}",
        ),
    ],
    ids=lambda value: " ".join(map(str, value[:1] + value[-2:])) if isinstance(value, list) else "",
)
def test_without_permission(
    cli: Cli, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[object], complaint: str
) -> None:
    (tmp_path / "locked").write_text(TEXT)
    (tmp_path / "sitecustomize.py").write_text(REFUSE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    done = cli(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == f"asr: {complaint}"
    assert "Traceback" not in done.stderr
    assert not any(name.suffix in (".lm", ".part") for name in tmp_path.iterdir())


def test_disk_full(asr: Run, text: Path, own: Path, dev: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    kept = own.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    done = asr("tune", own, dev)
    assert done.status == 1
    assert done.complaint.endswith(
        "own.onnx: cannot be written: No space left on device; check the folder and its free space\n"
    )
    assert own.read_bytes() == kept
    for name in ("a.lm", "a.arpa.gz"):
        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", full)
            done = asr("lm", "train", text, "-o", name)
        assert done.status == 1
        assert done.complaint.endswith(f"\nasr: {name}: cannot be written: No space left on device; {MEND}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dev.jsonl", "digits.txt", "own.onnx"]
