"""`asr import` and `asr export-manifest` as a user types them: what is written, what is said, with which exit status."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import lhotse
import pytest
from conftest import DATA, Cli

from asr import manifest
from asr.manifest import Utterance

DIGITS = DATA / "connected_digits.flac"


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A Kaldi folder whose names are relative, as they mostly are; its audio beside it."""
    shutil.copy(DATA / "7_jackson_0.wav", tmp_path / "seven.wav")
    shutil.copy(DIGITS, tmp_path / "digits.flac")
    folder = tmp_path / "data" / "train"
    folder.mkdir(parents=True)
    (folder / "wav.scp").write_text("s1-a seven.wav\ns1-b flac -cds digits.flac |\n")
    (folder / "text").write_text("s1-a seven\ns1-b five seven nine zero\n")
    (folder / "utt2spk").write_text("s1-a s1\ns1-b s1\n")
    return folder


def test_kaldi_there_and_back(cli: Cli, corpus: Path, tmp_path: Path) -> None:
    done = cli("import", "kaldi", "data/train", "-o", "new/train.jsonl")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "new/train.jsonl: 2 utterances, 0.00 h, 1 speaker\n"
    first = manifest.read(tmp_path / "new/train.jsonl")
    assert [(one.text, one.speaker) for one in first] == [("seven", "s1"), ("five seven nine zero", "s1")]
    done = cli("export-manifest", "new/train.jsonl", "--kaldi", "data/again", "--lhotse", "cuts.jsonl.gz")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "data/again: 2 utterances\ncuts.jsonl.gz: 2 utterances\n"
    assert not list(tmp_path.glob("**/*.skipped.jsonl"))
    assert len(lhotse.CutSet.from_file(tmp_path / "cuts.jsonl.gz")) == 2
    assert cli("import", "lhotse", "cuts.jsonl.gz").returncode == 0
    assert manifest.read(tmp_path / "manifest.jsonl") == [
        Utterance(tmp_path / one.audio.name, one.duration_s, one.text, speaker="s1") for one in first
    ]
    assert cli("import", "kaldi", "data/again", "-o", "new/again.jsonl").returncode == 0
    again = manifest.read(tmp_path / "new/again.jsonl")
    assert sorted(one.text for one in again) == sorted(one.text for one in first)


def test_root_is_where_relative_names_start(cli: Cli, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    done = cli("import", "kaldi", "data/train", "--root", "elsewhere")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "asr: data/train with --root elsewhere: none of 2 utterances can be used; "
        "the reasons are in manifest.jsonl.skipped.jsonl"
    )
    assert not (tmp_path / "manifest.jsonl").exists()
    assert [row["id"] for row in rows(tmp_path / "manifest.jsonl.skipped.jsonl")] == ["s1-a", "s1-b"]


def test_what_is_skipped_is_counted_and_listed(cli: Cli, corpus: Path, tmp_path: Path) -> None:
    bad = "".join(f"x{n} sox seven.wav -t wav - speed 2 |\n" for n in range(7))
    with (corpus / "wav.scp").open("a") as file:
        file.write(bad)
    with (corpus / "text").open("a") as file:
        file.write("".join(f"x{n} seven\n" for n in range(7)))
    done = cli("import", "kaldi", "data/train", "-o", "train.jsonl")
    assert (done.returncode, done.stdout) == (1, "")
    said = done.stderr.splitlines()
    assert said[0].startswith("train.jsonl: 2 utterances")
    assert said[1].startswith("asr: x0: expected an audio file, got a pipe, which is never executed")
    assert said[6:] == ["7 of 9 utterances skipped, listed with reasons in train.jsonl.skipped.jsonl"]
    assert [row["id"] for row in rows(tmp_path / "train.jsonl.skipped.jsonl")] == [f"x{n}" for n in range(7)]
    assert len(manifest.read(tmp_path / "train.jsonl")) == 2
    assert cli("import", "csv", write_table(tmp_path), "-o", "train.jsonl", "--overwrite").returncode == 0
    assert not (tmp_path / "train.jsonl.skipped.jsonl").exists()  # it was of what is replaced


def write_table(folder: Path) -> Path:
    path = folder / "table.csv"
    path.write_text(f"wav_filename,transcript\n{DIGITS},five seven nine zero\n")
    return path


def test_recordings_and_supervisions_of_a_recipe(cli: Cli, tmp_path: Path) -> None:
    recording = lhotse.Recording.from_file(DIGITS)
    spoken = lhotse.SupervisionSegment("u", recording.id, 0.5, 1.5, text="five", speaker="s")
    lhotse.RecordingSet.from_recordings([recording]).to_file(tmp_path / "fsdd_recordings_all.jsonl.gz")
    lhotse.SupervisionSet.from_segments([spoken]).to_file(tmp_path / "fsdd_supervisions_all.jsonl.gz")
    done = cli("import", "lhotse", "fsdd_recordings_all.jsonl.gz", "fsdd_supervisions_all.jsonl.gz")
    assert done.returncode == 0, done.stderr
    assert manifest.read(tmp_path / "manifest.jsonl") == [Utterance(DIGITS, 1.5, "five", 0.5, "s")]


def test_recordings_without_utterances_are_counted_and_no_fault(cli: Cli, tmp_path: Path) -> None:
    silent = lhotse.MonoCut("c", 0, 1, 0, [], recording=lhotse.Recording.from_file(DIGITS)).to_dict()
    spoken = {"id": "u", "recording_id": "r", "start": 0, "duration": 1, "text": "five"}
    (tmp_path / "cuts.jsonl").write_text(f"{json.dumps(silent)}\n{json.dumps(silent | {'supervisions': [spoken]})}\n")
    done = cli("import", "lhotse", "cuts.jsonl")
    assert done.returncode == 0
    assert done.stderr.splitlines()[1:] == ["recordings or cuts without an utterance: 1"]
    (tmp_path / "silent.jsonl").write_text(json.dumps(silent))
    done = cli("import", "lhotse", "silent.jsonl", "-o", "none.jsonl")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "asr: silent.jsonl with --root .: expected utterances, got none"


def test_columns_are_named_by_options(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "any.tsv").write_text(f"who\tclip\tsaid\nme\t{DIGITS}\tfive\n")
    done = cli("import", "csv", "any.tsv")
    assert done.returncode == 1
    assert "got who, clip, said; name or count yours: --audio-column NAME --text-column NAME" in done.stderr
    options = ("--audio-column", "clip", "--text-column", "said", "--speaker-column", "who")
    assert cli("import", "csv", "any.tsv", *options).returncode == 0
    assert [(one.text, one.speaker) for one in manifest.read(tmp_path / "manifest.jsonl")] == [("five", "me")]


def test_nothing_is_overwritten_unasked(cli: Cli, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").write_text("mine")
    (tmp_path / "cuts.jsonl").write_text("mine")
    written = (corpus / "text").read_bytes()
    for command in (
        ("import", "kaldi", "data/train"),
        ("import", "csv", write_table(tmp_path)),
        ("import", "lhotse", "cuts.jsonl"),
        ("export-manifest", "manifest.jsonl", "--lhotse", "cuts.jsonl"),
        ("export-manifest", "manifest.jsonl", "--kaldi", "data/train"),
    ):
        done = cli(*command)
        assert done.returncode == 1
        assert "exists already; use --overwrite" in done.stderr
        assert done.stderr.count("\n") == 1
    assert (tmp_path / "manifest.jsonl").read_text() == (tmp_path / "cuts.jsonl").read_text() == "mine"
    assert (corpus / "text").read_bytes() == written


def test_export_skips_what_is_gone(cli: Cli, tmp_path: Path) -> None:
    manifest.write(tmp_path / "m.jsonl", [Utterance(DIGITS, 1.0, "five"), Utterance(tmp_path / "gone.wav", 1.0, "x")])
    done = cli("export-manifest", "m.jsonl", "--kaldi", "data")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "1 of 2 utterances skipped, listed with reasons in data.skipped.jsonl"
    assert (tmp_path / "data/text").read_text() == "connected_digits five\n"
    assert [row["id"] for row in rows(tmp_path / "data.skipped.jsonl")] == ["gone"]


def test_export_of_nothing_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    manifest.write(tmp_path / "m.jsonl", [Utterance(tmp_path / "gone.wav", 1.0, "x")])
    done = cli("export-manifest", "m.jsonl", "--lhotse", "cuts.jsonl")
    assert done.returncode == 1
    assert "none of 1 utterance can be used" in done.stderr
    assert not (tmp_path / "cuts.jsonl").exists()


@pytest.mark.parametrize("options", [(), ("--lhotse", "cuts.yaml")])
def test_wrong_usage(cli: Cli, options: tuple[str, ...]) -> None:
    assert cli("export-manifest", "m.jsonl", *options).returncode == 2


@pytest.mark.parametrize(
    "command",
    [
        ("import", "kaldi", "missing"),
        ("import", "lhotse", "missing.jsonl"),
        ("import", "lhotse", "bomb.jsonl.gz"),
        ("import", "csv", "missing.csv"),
        ("import", "csv", "."),
        ("export-manifest", "missing.jsonl", "--kaldi", "data"),
    ],
)
def test_bad_input_is_one_line(cli: Cli, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(b" " * (80 << 20)))
    done = cli(*command)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("asr: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
