"""Corpora in tars: what is written, that it is what was there, and what those of others may hold."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import DATA, Run

from asr import audio, manifest
from asr.corpus import tars
from asr.errors import CorpusError, ManifestError
from asr.manifest import Utterance

SEVEN = (DATA / "7_jackson_0.wav").read_bytes()
Files = list[tuple[str, bytes]]


def make_manifest(folder: Path, count: int = 5) -> Path:
    """Utterances of 0.5 s: files of one name in two folders, and stretches of a longer file at 44.1 kHz."""
    rng = np.random.default_rng(0)
    soundfile.write(folder / "long.wav", rng.normal(0, 0.1, 44_100 * 2), 44_100, "FLOAT")
    utterances = []
    for number in range(count):
        path = folder / str(number % 2) / f"a.b {number // 2}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, rng.normal(0, 0.1, 8000), 16_000)
        utterances.append(Utterance(path, 0.5, f"nº {number}", speaker=f"s{number}"))
    utterances += [Utterance(folder / "long.wav", 0.5, "stretch", offset_s) for offset_s in (0.0, 1.25)]
    manifest.write(folder / "train.jsonl", utterances)
    return folder / "train.jsonl"


def tar(path: Path, files: Files) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path


def said(**values: object) -> bytes:
    return json.dumps(values).encode()


@pytest.mark.parametrize("kind", ["flac", "wav", "opus"])
def test_what_is_written_is_what_was_there(tmp_path: Path, kind: str) -> None:
    before = manifest.read(make_manifest(tmp_path))
    shards = tars.plan(before, tmp_path / "out", "train", hours=1 / 3600)
    assert [shard.tar.name for shard in shards] == [f"train-0000{n}-of-00004.tar" for n in range(4)]
    assert [len(shard.utterances) for shard in shards] == [2, 2, 2, 1]
    for shard in shards:
        shard.tar.parent.mkdir(exist_ok=True)
        assert tars.write(shard, kind) == []
    after = manifest.read(tmp_path / "out")
    assert [(one.text, one.speaker, one.duration_s, one.offset_s) for one in after] == [
        (one.text, one.speaker, 0.5, 0.0) for one in before
    ]
    for one, other in zip(before, after, strict=True):
        heard = audio.as_int16(audio.read_utterance(other))
        if kind == "opus":
            assert len(heard) == 8000
        else:
            np.testing.assert_array_equal(heard, audio.as_int16(audio.read_utterance(one)))
    with tarfile.open(shards[0].tar) as archive:  # as WebDataset has it: keys without dots, no two alike
        names = archive.getnames()
        assert names == [f"a-b-0.{kind}", "a-b-0.json", f"a-b-0-2.{kind}", "a-b-0-2.json"]
        content = archive.extractfile(names[3])
        assert content is not None
        assert json.load(content) == {"text": "nº 1", "duration": 0.5, "speaker": "s1"}
        member = archive.getmember(names[2])
    row = json.loads(shards[0].manifest.read_text().splitlines()[1])
    assert (row["audio_filepath"], row["bytes"]) == (
        f"{shards[0].tar.name}/{names[2]}",
        [member.offset_data, member.size],
    )
    first = shards[0].tar.read_bytes()
    tars.write(shards[0], kind)
    assert kind == "opus" or shards[0].tar.read_bytes() == first  # Ogg draws a number for each stream


def test_a_manifest_of_part_of_the_tars_is_one_too(tmp_path: Path) -> None:
    for shard in tars.plan(manifest.read(make_manifest(tmp_path)), tmp_path, "t", hours=1 / 3600):
        tars.write(shard, "flac")
    every = manifest.read(tmp_path / "t-*.tar")
    (tmp_path / "elsewhere").mkdir()
    manifest.write(tmp_path / "elsewhere" / "some.jsonl", every[1::3])
    some = manifest.read(tmp_path / "elsewhere" / "some.jsonl")
    assert some == every[1::3]
    assert audio.read_utterance(some[0]).tolist() == audio.read_utterance(every[1]).tolist()
    assert manifest.read(tmp_path / "t-00001-of-00004.tar") == every[2:4]


def test_a_folder_that_lacks_a_shard(tmp_path: Path) -> None:
    source = manifest.read(make_manifest(tmp_path))
    out = tmp_path / "out"
    out.mkdir()
    for shard in tars.plan(source, out, "t", hours=1 / 3600):
        tars.write(shard, "flac")
    (out / "t-00001-of-00004.jsonl").unlink()
    with pytest.raises(ManifestError, match=r"t-00001-of-00004\.jsonl: no such manifest"):
        manifest.read(out)
    (out / "t-00001-of-00004.tar").unlink()
    with pytest.raises(ManifestError, match=r"expected 4 shards, got 3; the first that is missing is t-00001-of-00004"):
        manifest.read(out)
    assert len(manifest.read(out / "*.tar")) == 5  # those that are asked for by name


def test_tars_of_others(tmp_path: Path) -> None:
    flac = (DATA / "connected_digits.flac").read_bytes()
    one = tar(
        tmp_path / "one.tar",
        [
            ("in/a.wav", SEVEN),
            ("in/a.txt", b"seven\n"),
            ("in/b.json", said(text="five seven", speaker=7, lang="en")),
            ("in/b.flac", flac),
            ("in/b.cls", b"3"),
            ("README", b"not of an utterance"),
        ],
    )
    utterances, skipped = tars.read([one])
    assert skipped == []
    assert [(each.text, each.speaker, each.id) for each in utterances] == [
        ("seven", None, "a"),
        ("five seven", "7", "b"),
    ]
    assert [len(audio.read_utterance(each)) for each in utterances] == [6914, 72_009]
    assert [round(each.duration_s * 16_000) for each in utterances] == [6914, 72_009]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([("a.wav", SEVEN)], "expected its transcript in the tar"),
        ([("a.wav", SEVEN), ("a.json", said(label="seven"))], "expected its transcript in the tar"),
        ([("a.wav", SEVEN), ("a.json", b"[" * 100_000)], "expected JSON"),
        ([("a.wav", SEVEN), ("a.json", said(text="\ud800"))], "half a surrogate pair"),
        ([("a.txt", b"seven")], "expected one recording of that name in the tar, got none"),
        ([("a.wav", SEVEN), ("a.flac", SEVEN), ("a.txt", b"seven")], "expected one recording .* got 2"),
        ([("a.wav", b"no audio"), ("a.txt", b"seven")], "expected audio"),
        ([("a.wav", b""), ("a.txt", b"seven")], "got 0"),
        ([("../../a.wav", SEVEN), ("../../a.txt", b"seven")], "leads elsewhere"),
        ([("a.wav", SEVEN), ("a.txt", b"x" * (1 << 21))], "expected 1 to 1048576 bytes, got 2097152"),
    ],
)
def test_what_cannot_be_used_is_listed_and_the_rest_is_there(tmp_path: Path, files: Files, reason: str) -> None:
    good = [("good.wav", SEVEN), ("good.txt", b"seven")]
    utterances, skipped = tars.read([tar(tmp_path / "x.tar", [*files, *good])])
    assert [one.text for one in utterances] == ["seven"]
    assert any(re.search(reason, one.reason) for one in skipped), skipped
    assert all(one.id.startswith("x.tar/") for one in skipped)
    assert {path.name for path in tmp_path.iterdir()} == {"x.tar"}  # nothing is unpacked


def test_links_and_headers_that_lie(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        link = tarfile.TarInfo("a.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    utterances, skipped = tars.read([tmp_path / "x.tar"])
    assert (utterances, [one.reason for one in skipped]) == (
        [],
        ["expected a file, got a link or what is no plain one"],
    )
    back = tarfile.TarInfo("a.wav")
    back.size = -512  # over and over
    (tmp_path / "x.tar").write_bytes(tarfile.TarInfo("b").tobuf() + back.tobuf(tarfile.GNU_FORMAT))
    assert "damaged" in tars.read([tmp_path / "x.tar"])[1][0].reason
    huge = tarfile.TarInfo("pax")
    huge.type, huge.size = tarfile.XHDTYPE, 8_000_000_000
    (tmp_path / "x.tar").write_bytes(huge.tobuf() + bytes(4096))
    with pytest.raises(CorpusError, match="expected a plain tar, got a header of 80"):
        tars.read([tmp_path / "x.tar"])


def test_tars_that_are_cut_short_or_none(tmp_path: Path) -> None:
    whole = tar(
        tmp_path / "x.tar",
        [(f"{n}.{kind}", SEVEN if kind == "wav" else b"7") for n in "abc" for kind in ("wav", "txt")],
    )
    content = whole.read_bytes()
    with tarfile.open(whole) as archive:
        third = archive.getmember("c.wav").offset_data
    for cut in (third + 1000, third - 300, third - 512):  # in its content, in its header, before it
        whole.write_bytes(content[:cut])
        utterances, skipped = tars.read([whole])
        assert [one.text for one in utterances] == ["7", "7"]
        assert "cut short or damaged after" in skipped[-1].reason
    spoilt = bytearray(content)
    spoilt[third - 512 : third - 412] = b"x" * 100  # a header's name: its checksum is wrong then
    whole.write_bytes(spoilt)
    utterances, skipped = tars.read([whole])
    assert (len(utterances), len(skipped)) == (2, 1)
    for bad in (b"", b"no tar" * 200, gzip.compress(content)):
        whole.write_bytes(bad)
        with pytest.raises(CorpusError, match=r"x\.tar: expected a plain tar, got "):
            tars.read([whole])
    with pytest.raises(CorpusError, match="No such file"):
        tars.read([tmp_path / "none.tar"])


def test_the_commands(asr: Run, tmp_path: Path) -> None:
    source = make_manifest(tmp_path)
    rows = source.read_text().splitlines()
    source.write_text("\n".join([*rows, json.dumps({"audio_filepath": "none.wav", "duration": 1.0, "text": "x"})]))
    for part in ("1/2", "2/2"):
        done = asr("shard", "train.jsonl", "-o", "out", "--hours", 3 / 3600, "--shard", part)
    assert (done.status, done.text) == (1, "")
    assert done.complaint == (
        "asr: none: none.wav: no such file; check the path\n"
        "1 of 2 utterances skipped, listed with reasons in out/train-00001-of-00002.skipped.jsonl\n"
        "out: 1 of 2 shards written; train on them with data.train=out\n"
    )
    assert len(manifest.read("out")) == 7
    done = asr("shard", "train.jsonl", "-o", "out", "--hours", 3 / 3600)
    assert (done.status, done.complaint) == (
        1,
        "asr: out/train-00000-of-00002.jsonl: 2 of 2 shards are there already; use --overwrite or --skip-existing\n",
    )
    Path("out/train-00000-of-00002.jsonl").unlink()
    done = asr("shard", "train.jsonl", "-o", "out", "--hours", 3 / 3600, "--skip-existing")
    assert (done.status, done.complaint.splitlines()[-1]) == (
        0,
        "out: 1 of 2 shards written, 1 were there; train on them with data.train=out",
    )
    done = asr("import", "webdataset", *sorted(Path("out").glob("*.tar")), "-o", "again.jsonl")
    assert (done.status, done.complaint) == (0, "again.jsonl: 7 utterances, 0.00 h, 5 speakers\n")
    assert manifest.read("again.jsonl") == list(manifest.read("out"))
    done = asr("export-manifest", "again.jsonl", "--kaldi", "kaldi")
    assert (done.status, done.complaint) == (
        1,
        "asr: again.jsonl: expected audio in files, got some in tars, which no table of others can name\n",
    )
    assert asr("shard", "train.jsonl", "-o", "x", "-f", "mp3").status == 2
    assert asr("shard", "train.jsonl", "-o", "x", "--shard", "3/2").status == 2
