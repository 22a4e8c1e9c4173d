"""The recipes, from download to manifests, on miniature corpora in the real layouts."""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from runpy import run_path
from typing import Any
from unittest.mock import Mock

import mirror
import numpy as np
import pytest
import soundfile
from conftest import DATA

from asr import audio, corpus, manifest
from asr.corpus import CorpusError, Recording, download
from asr.text import letters
from asr.training import config

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
Done = subprocess.CompletedProcess[str]


def prepare(recipe: str | Path, *arguments: object, checksums: dict[str, str] | None = None) -> Done:
    """Run a recipe as its command does. checksums: of miniature archives, in place of the published ones."""
    path = RECIPES / recipe / "prepare.py"
    fetch = download.fetch

    def miniature(urls: list[str], path: Path, checksum: str | None, **options: Any) -> None:
        fetch(urls, path, checksum and (checksums or {})[path.name], backoff_s=0, **options)

    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as err,
    ):
        patch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        patch.setattr(download, "fetch", miniature)
        status = 0
        try:
            run_path(str(path), run_name="__main__")
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
            if isinstance(end.code, str):
                print(end.code, file=err)
    return subprocess.CompletedProcess(sys.argv, status, out.getvalue(), err.getvalue())


def read(folder: Path, *names: str) -> list[manifest.Utterances]:
    return [manifest.read(folder / f"{name}.jsonl") for name in names]


def sound(path: Path, seconds: float = 1.0, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(len(path.name)).normal(0, 0.05, round(seconds * 16000))
    soundfile.write(path, samples, 16000, **options)


def pack(folder: Path, compression: str = "gz") -> bytes:
    """A tar archive of what is in a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    return gzip.compress(buffer.getvalue()) if compression == "gz" else bz2.compress(buffer.getvalue())


@pytest.fixture
def server() -> Iterator[mirror.Mirror]:
    with mirror.running() as one:
        yield one


def serve(server: mirror.Mirror, archives: dict[str, Path], kind: str = "sha256") -> dict[str, str]:
    """Puts the folders on the server as archives of these names. returns: their checksums."""
    for name, folder in archives.items():
        server.files[f"/{name}"] = pack(folder, name.rpartition(".")[2])
    return {name: f"{kind}:{hashlib.new(kind, server.files[f'/{name}']).hexdigest()}" for name in archives}


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*/prepare.py")), ids=lambda path: path.parent.name)
def test_a_recipe_is_short_and_complete(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 60
    assert (path.parent / "RESULTS.md").exists()
    config.read(path.parent / "config.yaml")
    assert f"[{path.parent.name}]({path.parent.name})" in (RECIPES / "README.md").read_text()


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*/prepare.py")), ids=lambda path: path.parent.name)
def test_a_recipe_explains_itself_and_a_wrong_folder(path: Path, tmp_path: Path) -> None:
    done = prepare(path.parent.name, "--help")
    assert done.returncode == 0
    assert f"python recipes/{path.parent.name}/prepare.py" in done.stdout
    done = prepare(path.parent.name, tmp_path, tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith("prepare.py: ")
    assert "expected" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.jsonl"))


# Free Spoken Digit Dataset


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """Two speakers, ten recordings each of two digits, 8 kHz."""
    folder = tmp_path / "packed" / "free-spoken-digit-dataset-1.0.10" / "recordings"
    folder.mkdir(parents=True)
    for speaker, source in (("jackson", "7_jackson_0.wav"), ("nicolas", "3_nicolas_0.wav")):
        for digit in (3, 7):
            for index in range(10):
                shutil.copy(DATA / source, folder / f"{digit}_{speaker}_{index}.wav")
    return folder


@pytest.fixture
def fsdd(tmp_path: Path) -> Path:
    """The recipe, with a tenth of the connected digits."""
    text = (RECIPES / "fsdd/prepare.py").read_text()
    for count in ('"dev": 60', '"test": 300', '"train": 1500'):
        assert count in text
        text = text.replace(count, count[:-1])
    (tmp_path / "fsdd").mkdir()
    (tmp_path / "fsdd/prepare.py").write_text(text)
    return tmp_path / "fsdd"


def test_fsdd_is_downloaded_and_split(fsdd: Path, digits: Path, tmp_path: Path, server: mirror.Mirror) -> None:
    serve(server, {"v1.0.10.tar.gz": digits.parent.parent})
    done = prepare(fsdd, "--download", tmp_path / "corpus", tmp_path / "out", "--mirror", server.url)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "corpus/v1.0.10.tar.gz.sha256").exists()  # since the publisher names no checksum
    test, dev, train = read(tmp_path / "out", "test", "dev", "train")
    indices = [sorted({int(u.audio.stem.split("_")[2]) for u in part}) for part in (test, dev, train)]
    assert indices == [[0, 1, 2, 3, 4], [5, 6, 7], [8, 9]]
    assert {u.text for u in test} == {"three", "seven"}
    connected = manifest.read(tmp_path / "out/test_connected.jsonl")
    for utterance in connected[:5]:
        assert 2 <= len(utterance.text.split()) <= 7
        info = audio.info(utterance.audio)
        assert info.sample_rate == 16000
        assert info.duration_s == pytest.approx(utterance.duration_s, abs=1e-4)


def test_fsdd_leaves_a_speaker_out(fsdd: Path, digits: Path, tmp_path: Path) -> None:
    assert prepare(fsdd, digits, tmp_path / "out", "--leave-out", "nicolas").returncode == 0
    for name in ("train", "train_connected", "dev", "dev_connected"):
        assert {u.speaker for u in manifest.read(tmp_path / f"out/{name}.jsonl")} == {"jackson"}
    (tested,) = read(tmp_path / "out", "test")
    assert {u.speaker for u in tested} == {"nicolas"}
    assert len(tested) == 20


def test_fsdd_explains_a_missing_set(digits: Path, tmp_path: Path) -> None:
    for path in digits.glob("*_[5-9].wav"):
        path.unlink()
    done = prepare("fsdd", digits, tmp_path / "out")
    assert done.returncode == 1
    assert "expected recordings of a dev set, got none" in done.stderr


# speechocean762


@pytest.fixture
def speechocean762(tmp_path: Path) -> Path:
    folder = tmp_path / "packed" / "speechocean762"
    for split, speakers in (("train", range(20)), ("test", range(100, 103))):
        (folder / split).mkdir(parents=True)
        tables: dict[str, list[str]] = {"wav.scp": [], "text": [], "utt2spk": []}
        for speaker in speakers:
            name = f"{speaker:04d}0001"
            sound(folder / "WAVE" / f"SPEAKER{speaker:04d}" / f"{name}.wav")
            ending = "opus" if speaker == 0 else "wav"  # a table may name .opus where the file is .wav
            tables["wav.scp"].append(f"{name}\tWAVE/SPEAKER{speaker:04d}/{name}.{ending}")
            tables["text"].append(f"{name}\tMARK IS  GOING")
            tables["utt2spk"].append(f"{name} {speaker:04d}")
        for table, lines in tables.items():
            (folder / split / table).write_text("\n".join(lines) + "\n")
    return folder


def test_speechocean762(speechocean762: Path, tmp_path: Path, server: mirror.Mirror) -> None:
    serve(server, {"speechocean762.tar.gz": speechocean762.parent})
    assert prepare("speechocean762", speechocean762, tmp_path / "out").returncode == 0
    options = ("--download", "--mirror", server.url)
    done = prepare("speechocean762", tmp_path / "corpus", tmp_path / "downloaded", *options)
    assert done.returncode == 0, done.stderr
    for out in (tmp_path / "out", tmp_path / "downloaded"):
        train, dev, test = read(out, "train", "dev", "test")
        assert (len(train), len(dev), len(test)) == (18, 2, 3)
        assert not {u.speaker for u in train} & {u.speaker for u in dev}
        assert test[0].text == "mark is going"
        assert test[0].duration_s == 1.0


def test_an_incomplete_table_is_told(speechocean762: Path, tmp_path: Path) -> None:
    (speechocean762 / "train/utt2spk").write_text("00010001 0001\n")
    done = prepare("speechocean762", speechocean762, tmp_path / "out")
    assert done.returncode == 1
    assert "utt2spk: expected a line for '00000001'" in done.stderr


# LJSpeech


def ljspeech(folder: Path, suffix: str = ".wav") -> Path:
    rows = []
    for chapter in (1, 2):
        for number in range(1, 41):
            key = f"LJ{chapter:03d}-{number:04d}"
            rows.append(f'{key}|In 1900, "he"|In nineteen hundred, "he"')
            options = {"format": "OGG", "subtype": "OPUS"} if suffix == ".opus" else {}
            sound(folder / "wavs" / f"{key}{suffix}", 0.2, **options)
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    (folder / "README").write_text("LJ Speech")
    return folder


@pytest.mark.parametrize("suffix", [".wav", ".opus"])
def test_ljspeech(tmp_path: Path, suffix: str) -> None:
    done = prepare("ljspeech", ljspeech(tmp_path / "LJSpeech-1.1", suffix), tmp_path / "out")
    assert done.returncode == 0, done.stderr
    train, dev, test = read(tmp_path / "out", "train", "dev", "test")
    assert [u.audio.stem for u in dev] == ["LJ001-0020", "LJ001-0040", "LJ002-0020", "LJ002-0040"]
    assert [u.audio.stem for u in test] == ["LJ001-0010", "LJ001-0030", "LJ002-0010", "LJ002-0030"]
    assert len(train) == 72
    assert train[0] == manifest.Utterance(
        tmp_path / f"LJSpeech-1.1/wavs/LJ001-0001{suffix}", 0.2, 'In nineteen hundred, "he"', speaker="lj"
    )


def test_ljspeech_is_downloaded_and_then_left_alone(tmp_path: Path, server: mirror.Mirror) -> None:
    ljspeech(tmp_path / "packed/LJSpeech-1.1")
    checksums = serve(server, {"LJSpeech-1.1.tar.bz2": tmp_path / "packed"})
    server.cuts = [len(server.files["/LJSpeech-1.1.tar.bz2"]) // 2]
    arguments = ("ljspeech", "--download", tmp_path / "corpus", tmp_path / "out", "--mirror", server.url)
    first = prepare(*arguments, checksums=checksums)
    assert first.returncode == 0, first.stderr
    assert [bool(asked) for _, asked in server.requests] == [False, True]
    assert len(read(tmp_path / "out", "train")[0]) == 72
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.json*")}
    (tmp_path / "corpus/LJSpeech-1.1.tar.bz2").unlink()  # no longer needed
    again = prepare(*arguments, checksums=checksums)
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout
    assert len(server.requests) == 2
    assert {path: path.read_bytes() for path in (tmp_path / "out").glob("*.json*")} == before


def test_a_wrong_archive_is_not_unpacked(tmp_path: Path, server: mirror.Mirror) -> None:
    ljspeech(tmp_path / "packed/LJSpeech-1.1")
    checksums = serve(server, {"LJSpeech-1.1.tar.bz2": tmp_path / "packed"})
    server.files["/LJSpeech-1.1.tar.bz2"] += b"?"
    server.statuses = [200]
    done = prepare(
        "ljspeech", "--download", tmp_path / "c", tmp_path / "o", "--mirror", server.url, checksums=checksums
    )
    assert done.returncode == 1
    assert "got sha256:" in done.stderr
    assert "Traceback" not in done.stderr
    assert mirror.names(tmp_path / "c") == []


# Common Voice


def common_voice(folder: Path, language: str, sentences: dict[str, list[str]]) -> Path:
    """cv-corpus-*/LANGUAGE, with the columns of release 17."""
    columns = (
        "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents variant locale"
    )
    columns += " segment"
    count = 0
    for split, texts in sentences.items():
        (folder / language).mkdir(parents=True, exist_ok=True)
        with (folder / language / f"{split}.tsv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n")
            rows.writerow(columns.split())
            for text in texts:
                count += 1
                name = f"common_voice_{language}_{count}.mp3"
                (folder / language / "clips").mkdir(exist_ok=True)
                shutil.copy(DATA / "common_voice_en_40232593.mp3", folder / language / "clips" / name)
                rows.writerow([f"{split}{count:064d}", name, "", text, "", 2, 0, "", "", "", "", language, ""])
    return folder


GERMAN = {"train": ["„Größe“, sagte 'sie'.", 'Ein "Wort'], "dev": ["Ja!"], "test": ["Nein?"]}


def test_common_voice_in_any_language(tmp_path: Path) -> None:
    done = prepare("common_voice", common_voice(tmp_path / "cv", "de", GERMAN), tmp_path / "out", "--language", "de")
    assert done.returncode == 0, done.stderr
    train, dev, test = read(tmp_path / "out", "train", "dev", "test")
    assert [u.text for u in [*train, *dev, *test]] == [text for texts in GERMAN.values() for text in texts]
    assert len({u.speaker for u in [*train, *dev, *test]}) == 3  # of their first 16 characters
    command = done.stdout.splitlines()[-1]
    settings = [word.strip("'") for word in command.partition("config.yaml ")[2].split(" ", 2)]
    read_back = config.read(RECIPES / "common_voice/config.yaml", settings).data
    assert read_back.normaliser == "letters"
    assert read_back.alphabet == "".join(sorted(set("größe sagte sie ein wort")))
    assert set(letters(train[0].text)) <= set(read_back.alphabet)


def test_common_voice_takes_no_other_language(tmp_path: Path) -> None:
    folder = common_voice(tmp_path / "cv", "en", {"train": ["Yes."], "dev": ["No."], "test": ["A b."]})
    done = prepare("common_voice", folder, tmp_path / "out", "--language", "de")
    assert done.returncode == 1
    assert "expected a folder de/, got en; see --language" in done.stderr


def test_common_voice_as_it_is_downloaded_by_hand(tmp_path: Path) -> None:
    common_voice(
        tmp_path / "packed/cv-corpus-17.0-2024-03-15", "en", {"train": ["Yes."], "dev": ["No."], "test": ["A b."]}
    )
    path = tmp_path / "cv-corpus-17.0-2024-03-15-en.tar.gz"
    path.write_bytes(pack(tmp_path / "packed"))
    for _ in range(2):
        done = prepare("common_voice", path, tmp_path / "out")
        assert done.returncode == 0, done.stderr
    assert [u.text for u in read(tmp_path / "out", "train")[0]] == ["Yes."]
    assert done.stdout.splitlines()[-1].endswith("config.yaml")  # English needs no other settings


def test_common_voice_explains_an_incomplete_folder(tmp_path: Path) -> None:
    folder = common_voice(tmp_path / "cv", "de", {"train": ["Ja."]})
    done = prepare("common_voice", folder, tmp_path / "out", "--language", "de")
    assert done.returncode == 1
    assert "dev.tsv, test.tsv is missing" in done.stderr
    (folder / "de/train.tsv").write_text("path\tsentence\nx.mp3\tJa\n")
    for name in ("dev", "test"):
        shutil.copy(folder / "de/train.tsv", folder / f"de/{name}.tsv")
    done = prepare("common_voice", folder, tmp_path / "out", "--language", "de")
    assert done.returncode == 1
    assert "not laid out as the recipe expects: KeyError: 'client_id' (prepare.py, line" in done.stderr


# English, of those above and what else is there


def english_corpora(folder: Path, speechocean762: Path) -> Path:
    shutil.move(speechocean762, folder / "speechocean762")
    ljspeech(folder / "ljspeech")
    common_voice(folder / "common_voice", "en", {"train": ["Yes."], "dev": ["No."], "test": ["A b."]})
    return folder


def test_english_joins_corpora(speechocean762: Path, tmp_path: Path) -> None:
    corpora = english_corpora(tmp_path / "corpora", speechocean762)
    done = prepare("english", corpora, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    names = "train", "train_first", "dev", "dev_common_voice", "test_common_voice", "test_speechocean762"
    assert [len(split) for split in read(tmp_path / "out", *names)] == [18 + 1 + 80, 1, 1 + 2, 1, 1, 3]
    assert mirror.names(tmp_path / "out") == sorted([*(f"{name}.jsonl" for name in names), "durations.json"])


def test_english_takes_what_else_is_there(speechocean762: Path, tmp_path: Path) -> None:
    corpora = english_corpora(tmp_path / "corpora", speechocean762)
    librispeech(corpora / "librispeech_sample", {"test-other": 2})
    for name, text in (("kathleen", "Philip Steels, etc."), ("prompts", "<beep ascending>")):
        sound(corpora / f"more/{name}/a.wav")
        (one,) = [manifest.Utterance(corpora / f"more/{name}/a.wav", 1.0, text, speaker=name)]
        manifest.write(corpora / f"more/{name}.jsonl", [one])
    rows = [
        ("one", "2.0", "This one is kept.", "-0.2"),
        ("unsure", "2.0", "This one is not kept.", "-0.5"),
        ("nothing", "2.0", "", ""),
        ("held", "1.0", "A, b, a, b!", "-0.1"),
        ("half", "9.0", "Only the half of it", "-0.1"),
        ("nonsense", "1.0", "Only the half of it, and more than that", "-0.1"),
        ("long", "21.0", "so " * 60, "-0.1"),
    ]
    lines = ["source\tpath\tseconds\ttext\tlog_prob\ttries"]
    lines += [f"some/where\tmp3_files/{name}.wav\t{seconds}\t{text}\t{sure}\t1" for name, seconds, text, sure in rows]
    (corpora / "more/common_voice_other.tsv").write_text("\n".join(lines) + "\n")
    table = corpora / "common_voice/en/test.tsv"
    table.write_text(table.read_text().replace("A b.", "a b a b"))
    for name, *_ in rows:
        sound(tmp_path / f"clips/{name}.wav")
    done = prepare("english", corpora, tmp_path / "out", "--clips", tmp_path / "clips")
    assert done.returncode == 0, done.stderr
    assert "1 of 7 texts are sure" in done.stdout
    train, first, labelled, sample = read(
        tmp_path / "out", "train", "train_first", "train_labelled", "test_librispeech"
    )
    assert [u.text for u in labelled] == ["This one is kept."]
    assert [u.speaker for u in first][1:] == ["kathleen"]
    assert "kathleen" in {u.speaker for u in train}
    assert "prompts" not in {u.speaker for u in train}
    assert not {u.audio for u in sample} & {u.audio for u in train}
    (skipped,) = [json.loads(line) for line in (tmp_path / "out/skipped.jsonl").read_text().splitlines()]
    assert skipped["audio_filepath"].endswith("prompts/a.wav")


# Killkan


def killkan(folder: Path, episodes: dict[str, list[str]]) -> Path:
    """{train,test}.jsonl, and audio/chEPISODE_NUMBER.opus."""
    for split, names in episodes.items():
        utterances = []
        for name in names:
            for number, text in enumerate(["¿Ñukawan purikrinchik?", "Ari, ari."]):
                sound(folder / f"audio/{name}_{number:03d}.flac", 0.5)
                utterances.append(manifest.Utterance(folder / f"audio/{name}_{number:03d}.flac", 0.5, text))
        manifest.write(folder / f"{split}.jsonl", utterances)
    return folder


def test_killkan_has_a_dev_episode_and_its_own_letters(tmp_path: Path) -> None:
    folder = killkan(tmp_path / "kichwa", {"train": ["ch01", "ch09", "ch11"], "test": ["ch10"]})
    done = prepare("killkan", folder, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    episodes = [{u.audio.stem[:4] for u in part} for part in read(tmp_path / "out", "train", "dev", "test")]
    assert episodes == [{"ch01", "ch09"}, {"ch11"}, {"ch10"}]
    letters_of = done.stdout.partition("'data.alphabet=")[2].rstrip("'\n")
    assert json.loads(letters_of) == " achiknpruwñ"


def test_killkan_of_one_episode(tmp_path: Path) -> None:
    done = prepare("killkan", killkan(tmp_path / "kichwa", {"train": ["ch01"], "test": ["ch10"]}), tmp_path / "out")
    assert done.returncode == 1
    assert "expected clips of several episodes, as ch01_001.opus, got ch01" in done.stderr


@pytest.mark.parametrize("name", ["config.yaml", "config_from_nothing.yaml"])
def test_killkan_with_and_without_an_encoder(name: str) -> None:
    settings = config.read(RECIPES / "killkan" / name)
    assert (settings.network.encoder is None) == ("nothing" in name)
    assert settings.data.normaliser == "letters"


# LibriSpeech


def librispeech(folder: Path, parts: dict[str, int]) -> Path:
    """LibriSpeech/PART/SPEAKER/CHAPTER, of so many speakers each, with the files beside the parts."""
    for part, speakers in parts.items():
        for speaker in range(100, 100 + speakers):
            chapter = folder / "LibriSpeech" / part / str(speaker) / "12345"
            lines = []
            for number in range(3):
                key = f"{speaker}-12345-{number:04d}"
                sound(chapter / f"{key}.flac", 0.5)
                lines.append(f"{key} THERE'S IRON THEY SAY")
            (chapter / f"{speaker}-12345.trans.txt").write_text("\n".join(lines) + "\n")
    for name in ("README.TXT", "SPEAKERS.TXT", "CHAPTERS.TXT", "BOOKS.TXT", "LICENSE.TXT"):
        (folder / "LibriSpeech" / name).write_text(name)
    return folder


SIZES = {"100": 2, "460": 2 + 3, "960": 2 + 3 + 4}
ALL_PARTS = {
    "train-clean-100": 2,
    "train-clean-360": 3,
    "train-other-500": 4,
    "dev-clean": 1,
    "test-clean": 1,
    "test-other": 1,
}


@pytest.mark.parametrize("subset", SIZES)
def test_librispeech(tmp_path: Path, subset: str) -> None:
    done = prepare("librispeech", librispeech(tmp_path, ALL_PARTS), tmp_path / "out", "--subset", subset)
    assert done.returncode == 0, done.stderr
    train, dev, clean, other = read(tmp_path / "out", "train", "dev", "test_clean", "test_other")
    assert len(train) == 3 * SIZES[subset]
    assert len(dev) == len(clean) == len(other) == 3
    path = tmp_path / "LibriSpeech/dev-clean/100/12345/100-12345-0000.flac"
    assert dev[0] == manifest.Utterance(path, 0.5, "there's iron they say", speaker="100")


@pytest.mark.parametrize("subset", SIZES)
def test_librispeech_is_downloaded_part_by_part(tmp_path: Path, server: mirror.Mirror, subset: str) -> None:
    names = [name for name in ALL_PARTS if not name.startswith("train")]
    names += list(ALL_PARTS)[: list(SIZES).index(subset) + 1]
    folders = {f"{name}.tar.gz": librispeech(tmp_path / "packed" / name, {name: ALL_PARTS[name]}) for name in names}
    checksums = serve(server, folders)
    options = ("--download", "--subset", subset, "--mirror", server.url)
    done = prepare("librispeech", tmp_path / "corpus", tmp_path / "out", *options, checksums=checksums)
    assert done.returncode == 0, done.stderr
    assert sorted(path for path, _ in server.requests) == sorted(f"/{name}.tar.gz" for name in names)
    assert len(read(tmp_path / "out", "train")[0]) == 3 * SIZES[subset]
    assert len(read(tmp_path / "out", "test_other")[0]) == 3


def test_mini_librispeech_takes_the_test_sets_that_are_there(tmp_path: Path, server: mirror.Mirror) -> None:
    names = ("train-clean-5", "dev-clean-2")
    folders = {f"{name}.tar.gz": librispeech(tmp_path / "packed" / name, {name: 2}) for name in names}
    checksums = serve(server, folders, "md5") | serve(
        server,
        {f"{name}.tar.gz": librispeech(tmp_path / "packed" / name, {name: 1}) for name in ("test-clean", "test-other")},
    )
    options = ("--download", "--mirror", server.url, "--subset")
    done = prepare("librispeech", tmp_path / "corpus", tmp_path / "out", *options, "mini", checksums=checksums)
    assert done.returncode == 0, done.stderr
    assert "test-clean: not there, no manifest" in done.stderr
    assert mirror.names(tmp_path / "out") == ["dev.jsonl", "durations.json", "train.jsonl"]
    done = prepare("librispeech", tmp_path / "corpus", tmp_path / "tests", *options, "test", checksums=checksums)
    assert done.returncode == 0, done.stderr
    done = prepare("librispeech", tmp_path / "corpus", tmp_path / "out", "--subset", "mini")
    assert done.returncode == 0, done.stderr
    train, dev, test = read(tmp_path / "out", "train", "dev", "test_clean")
    assert (len(train), len(dev), len(test)) == (6, 6, 3)


@pytest.mark.parametrize("given", [".", "LibriSpeech", "LibriSpeech/test-other"])
def test_librispeech_of_a_test_set_alone(tmp_path: Path, given: str) -> None:
    """As of a sample: there is nothing but test-other."""
    librispeech(tmp_path / "sample", {"test-other": 4})
    done = prepare("librispeech", tmp_path / "sample" / given, tmp_path / "out", "--subset", "test")
    if given == "LibriSpeech/test-other":  # the name of the part is what tells it
        assert done.returncode == 1
        assert "expected" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert len(read(tmp_path / "out", "test_other")[0]) == 12
    done = prepare("librispeech", tmp_path / "sample" / given, tmp_path / "out", "--subset", "100")
    assert done.returncode == 1
    assert "train-clean-100" in done.stderr


# AN4


def an4(folder: Path, kind: str) -> Path:
    """an4/{etc,wav}; kind: sph, or the type of the raw samples."""
    for split, speakers in (("train", 20), ("test", 3)):
        clips = "an4_clstk" if split == "train" else "an4test_clstk"
        names, lines = [], []
        for number in range(speakers):
            speaker = f"m{split[1]}{chr(97 + number)}k"
            key = f"an{number}-{speaker}-b"
            path = folder / "an4/wav" / clips / speaker / f"{key}.{'sph' if kind == 'sph' else 'raw'}"
            if kind == "sph":
                sound(path, 0.5, format="NIST")
            else:
                path.parent.mkdir(parents=True)
                waveform = audio.read(DATA / "7_jackson_0.wav")
                path.write_bytes((waveform * 32767).astype(kind).tobytes())
            names.append(f"{clips}/{speaker}/{key}")
            lines.append(f"<s> RUBOUT G M E  </s> ({key})" if split == "train" else f"RUBOUT G M E ({key})")
        (folder / "an4/etc").mkdir(exist_ok=True)
        (folder / f"an4/etc/an4_{split}.fileids").write_text("\n".join(names) + "\n")
        (folder / f"an4/etc/an4_{split}.transcription").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("kind", ["sph", ">i2", "<i2"])
def test_an4(tmp_path: Path, kind: str) -> None:
    done = prepare("an4", an4(tmp_path, kind), tmp_path / "out")
    assert done.returncode == 0, done.stderr
    train, dev, test = read(tmp_path / "out", "train", "dev", "test")
    assert (len(train), len(dev), len(test)) == (18, 2, 3)
    assert {u.text for u in [*train, *dev, *test]} == {"rubout g m e"}
    assert test[0].speaker == "meak"
    waveform = audio.read(test[0].audio)
    if kind != "sph":
        assert np.abs(waveform - audio.read(DATA / "7_jackson_0.wav")).max() < 1e-3


def test_an4_is_downloaded(tmp_path: Path, server: mirror.Mirror) -> None:
    serve(server, {"an4_sphere.tar.gz": an4(tmp_path / "packed", "sph")})
    done = prepare("an4", "--download", tmp_path / "c", tmp_path / "out", "--mirror", server.url)
    assert done.returncode == 0, done.stderr
    assert len(read(tmp_path / "out", "train")[0]) == 18


# YesNo


@pytest.mark.parametrize("given", ["waves_yesno", "."])
def test_yes_no(tmp_path: Path, server: mirror.Mirror, given: str) -> None:
    folder = tmp_path / "packed"
    for number in range(60):
        sound(folder / "waves_yesno" / ("_".join(f"{number:08b}") + ".wav"), 0.2)
    (folder / "waves_yesno/README").write_text("yes and no")
    done = prepare("yes_no", folder / given, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    train, dev, test = read(tmp_path / "out", "train", "dev", "test")
    assert (len(train), len(dev), len(test)) == (27, 4, 29)
    assert dev[0].text == " ".join(["no"] * 8)
    assert test[-1].text == "no no yes yes yes no yes yes"
    checksums = serve(server, {"waves_yesno.tar.gz": folder})
    arguments = ("--download", tmp_path / "corpus", tmp_path / "again", "--mirror", server.url)
    done = prepare("yes_no", *arguments, checksums=checksums)
    assert done.returncode == 0, done.stderr
    assert len(read(tmp_path / "again", "test")[0]) == 29


# Speech Commands


def test_speech_commands(tmp_path: Path, server: mirror.Mirror) -> None:
    folder = tmp_path / "packed"
    lists: dict[str, list[str]] = {"validation_list.txt": [], "testing_list.txt": []}
    for word in ("yes", "seven"):
        for number in range(5):
            name = f"{word}/{number:08x}_nohash_{number % 2}.wav"
            sound(folder / name, 0.2)
            if number < 2:
                lists["validation_list.txt" if number else "testing_list.txt"].append(name)
    sound(folder / "_background_noise_/pink_noise.wav")
    for name, lines in lists.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    checksums = serve(server, {"speech_commands_v0.02.tar.gz": folder})
    done = prepare("speech_commands", folder, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    arguments = ("--download", tmp_path / "corpus", tmp_path / "again", "--mirror", server.url)
    done = prepare("speech_commands", *arguments, checksums=checksums)
    assert done.returncode == 0, done.stderr
    for out in ("out", "again"):
        train, dev, test = read(tmp_path / out, "train", "dev", "test")
        assert (len(train), len(dev), len(test)) == (6, 2, 2)
        assert {(u.text, u.speaker) for u in test} == {("yes", "00000000"), ("seven", "00000000")}
        assert {u.speaker for u in dev} == {"00000001"}


# What all have in common


def test_recordings_that_cannot_be_read_are_listed(tmp_path: Path) -> None:
    folder = ljspeech(tmp_path / "LJSpeech-1.1")
    (folder / "wavs/LJ001-0001.wav").write_bytes(b"not sound")
    (folder / "wavs/LJ001-0002.wav").unlink()
    done = prepare("ljspeech", folder, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert len(read(tmp_path / "out", "train")[0]) == 70
    assert "2 recordings cannot be used and were left out" in done.stderr
    skipped = [json.loads(line) for line in (tmp_path / "out/skipped.jsonl").read_text().splitlines()]
    assert [Path(row["audio_filepath"]).stem for row in skipped] == ["LJ001-0001", "LJ001-0002"]
    assert "No such file" in skipped[1]["reason"]
    for name in ("LJ001-0001.wav", "LJ001-0002.wav"):
        shutil.copy(folder / "wavs/LJ001-0003.wav", folder / "wavs" / name)
    done = prepare("ljspeech", folder, tmp_path / "out")
    assert len(read(tmp_path / "out", "train")[0]) == 72
    assert not (tmp_path / "out/skipped.jsonl").exists()


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    folder = ljspeech(tmp_path / "LJSpeech-1.1")
    for path in (folder / "wavs").iterdir():
        path.write_bytes(b"not sound")
    done = prepare("ljspeech", folder, tmp_path / "out")
    assert done.returncode == 1
    assert "got none of 80; the first: " in done.stderr


def test_only_new_and_changed_recordings_are_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def info(path: Path, real: Callable[[Path], audio.AudioInfo] = audio.info) -> audio.AudioInfo:
        opened.append(path.name)
        return real(path)

    monkeypatch.setattr(audio, "info", info)
    for name in ("a", "b"):
        sound(tmp_path / f"{name}.wav", 0.5)
    arguments = corpus.parser("", downloads=False).parse_args([str(tmp_path), str(tmp_path / "out"), "--jobs", "1"])

    def run() -> list[float]:
        opened.clear()
        corpus.prepare(lambda folder, _: {"all": [Recording(p, "x") for p in sorted(folder.glob("*.wav"))]}, arguments)
        return [u.duration_s for u in manifest.read(tmp_path / "out/all.jsonl")]

    assert run() == [0.5, 0.5]
    assert opened == ["a.wav", "b.wav"]
    assert run() == [0.5, 0.5]
    assert opened == []
    sound(tmp_path / "b.wav", 0.75)
    sound(tmp_path / "c.wav", 0.25)
    assert run() == [0.5, 0.75, 0.25]
    assert opened == ["b.wav", "c.wav"]
    os.utime(tmp_path / "a.wav", (1, 1))
    run()
    assert opened == ["a.wav"]
    for broken in ("[broken", "[]", "3"):
        (tmp_path / "out/durations.json").write_text(broken)
        assert run() == [0.5, 0.75, 0.25]


def test_after_an_interruption_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, opened = audio.info, []

    def info(path: Path) -> audio.AudioInfo:
        opened.append(path)
        if len(opened) == 60:
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(audio, "info", info)
    folder = ljspeech(tmp_path / "LJSpeech-1.1")
    done = prepare("ljspeech", folder, tmp_path / "out", "--jobs", "1")
    assert done.returncode == 130
    assert done.stderr == "interrupted; the same command goes on from here\n"
    assert mirror.names(tmp_path / "out") == ["durations.json"]
    again = Mock(wraps=real)
    monkeypatch.setattr(audio, "info", again)
    assert prepare("ljspeech", folder, tmp_path / "out", "--jobs", "1").returncode == 0
    assert again.call_count == 80 - 59


def test_what_is_looked_for_is_found_up_to_two_folders_deeper(tmp_path: Path) -> None:
    for folder in ("a/b", "train-clean-100/LibriSpeech/train-clean-100"):
        (tmp_path / folder).mkdir(parents=True)
    assert corpus.find(tmp_path, "b") == tmp_path / "a/b"
    assert corpus.find(tmp_path / "a", "none", "b") == tmp_path / "a/b"
    part = tmp_path / "train-clean-100/LibriSpeech/train-clean-100"  # not the folder it was unpacked to
    assert corpus.find(tmp_path, "train-clean-100") == part
    with pytest.raises(CorpusError, match="expected a folder with none or nowhere in it"):
        corpus.find(tmp_path, "none", "nowhere")


def test_a_corpus_is_asked_for(tmp_path: Path) -> None:
    done = prepare("ljspeech")
    assert (done.returncode, done.stdout) == (1, "")
    assert "expected the corpus' folder or --download" in done.stderr
    done = prepare("ljspeech", tmp_path / "nowhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no such folder" in done.stderr


# The tools beside the recipes


def new_recipe(folder: Path, name: str) -> Done:
    command = [sys.executable, str(ROOT / "tools/new_recipe"), name, "--recipes", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_new_recipe_runs_right_away(tmp_path: Path) -> None:
    done = new_recipe(tmp_path, "harbour")
    assert done.returncode == 0, done.stderr
    recipe = tmp_path / "harbour"
    assert config.read(recipe / "config.yaml").name == "harbour"
    assert len((recipe / "prepare.py").read_text().splitlines()) <= 60
    texts = tmp_path / "texts"
    for number in range(40):
        sound(texts / f"day{number % 2}" / f"{number:02d}.flac", 0.2)
        (texts / f"day{number % 2}" / f"{number:02d}.txt").write_text(f"number {number}\n")
    command = [sys.executable, str(recipe / "prepare.py"), str(texts)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    train, dev, test = read(recipe / "data", "train", "dev", "test")
    assert (len(train), len(dev), len(test)) == (36, 2, 2)
    assert dev[0].text == "number 0"
    with (texts / "transcripts.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["audio", "text", "speaker"])
        rows.writerows([f"day{n % 2}/{n:02d}.flac", f"number {n}", f"speaker {n // 4}"] for n in range(40))
    done = prepare(recipe, texts)
    assert done.returncode == 0, done.stderr
    parts = read(recipe / "data", "train", "dev", "test")
    assert [len({u.speaker for u in part}) for part in parts] == [8, 1, 1]
    assert sum(map(len, parts)) == 40
    (texts / "transcripts.csv").unlink()
    (texts / "day0/00.txt").unlink()
    (texts / "day0/02.txt").write_text(" \n")
    done = prepare(recipe, texts)
    assert done.returncode == 0
    assert "2 recordings cannot be used and were left out" in done.stderr
    skipped = [json.loads(line) for line in (recipe / "data/skipped.jsonl").read_text().splitlines()]
    assert {(Path(row["audio_filepath"]).name, row["reason"]) for row in skipped} == {
        ("00.flac", "has no text"),
        ("02.flac", "has no text"),
    }
    (texts / "transcripts.csv").write_text("file;words\n00.flac;a\n")
    done = prepare(recipe, texts)
    assert done.returncode == 1
    assert "expected the columns audio and text, parted by commas, got ['file;words']" in done.stderr


def test_without_a_training_set_it_fails(tmp_path: Path) -> None:
    new_recipe(tmp_path, "harbour")
    sound(tmp_path / "corpus" / "a.flac", 0.2)
    sound(tmp_path / "corpus" / "b.flac", 0.2)
    rows = "audio,text,speaker\na.flac,yes,a\nb.flac,no,b\nc.flac,what,c\n"
    (tmp_path / "corpus" / "transcripts.csv").write_text(rows)
    done = prepare(tmp_path / "harbour", tmp_path / "corpus")
    assert done.returncode == 1
    assert "train.jsonl: not written, none of its 1 recording can be used; the first: " in done.stderr


def test_a_new_recipe_never_replaces_one(tmp_path: Path) -> None:
    (tmp_path / "harbour").mkdir()
    assert "exists already" in new_recipe(tmp_path, "harbour").stderr
    assert list((tmp_path / "harbour").iterdir()) == []
    assert new_recipe(tmp_path, "../harbour").returncode == 2


def test_results_of_several_sets_are_rows(tmp_path: Path) -> None:
    for name, word in (("first", "seven"), ("second", "three")):
        seconds = audio.info(DATA / "7_jackson_0.wav").duration_s
        manifest.write(tmp_path / f"{name}.jsonl", [manifest.Utterance(DATA / "7_jackson_0.wav", seconds, word)])
    command = [
        sys.executable,
        str(ROOT / "tools/results"),
        "digits",
        "first.jsonl",
        "second.jsonl",
        "--",
        "--beam",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    header, rule, first, second = done.stdout.splitlines()
    assert header.count("|") == rule.count("|") == first.count("|") == second.count("|")
    assert "`asr evaluate digits first.jsonl --beam 1` | 1.73 h | 845,841 | first, 1 utterances" in first
    assert "| 0.00 % (" in first
    assert "| 100.00 % (" in second
