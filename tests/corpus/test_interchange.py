"""Kaldi, Lhotse and CSV to manifests and back, with Lhotse itself as the judge, and corpora that mean harm."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import shlex
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import lhotse
import lhotse.kaldi
import lhotse.qa
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from lhotse.cut import MonoCut, MultiCut

from asr import audio
from asr.corpus import entries, kaldi, tables
from asr.corpus import lhotse as lhotse_lines
from asr.corpus.entries import Corpus, Entry
from asr.errors import AsrError, CorpusError
from asr.manifest import Utterance

RATE = 16000


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of noise in several formats, each sample another, so that a wrong place is heard."""
    folder = tmp_path_factory.mktemp("sounds")
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, (3 * RATE, 2))
    soundfile.write(folder / "a.wav", noise[:, 0], RATE)
    soundfile.write(folder / "b c.flac", noise[:, 0], RATE)
    soundfile.write(folder / "float.wav", noise[:, 0], RATE, subtype="FLOAT")
    soundfile.write(folder / "stereo.wav", noise, RATE)
    soundfile.write(folder / "é.ogg", noise[: 2 * RATE, 0], RATE)
    return folder


def taken(corpus: Corpus) -> tuple[list[Utterance], dict[str, str]]:
    """The utterances of a corpus, and why the others are none."""
    infos = entries.probe(entry.audio for entry in corpus.entries)
    utterances, skipped = entries.fit(corpus.entries, infos)
    return utterances, {skip.id: skip.reason for skip in corpus.skipped + skipped}


def kaldi_folder(folder: Path, **files: str) -> Path:
    """A Kaldi folder; wav_scp stands for wav.scp."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_text(content, encoding="utf-8")
    return folder


def sample(sounds: Path) -> list[Utterance]:
    return [
        Utterance(sounds / "a.wav", 1.0, "one  two", 0.0, "s2"),
        Utterance(sounds / "a.wav", 0.700125, "three\nfour", 1.5, "s2"),
        Utterance(sounds / "b c.flac", 3.0, "déjà vu", 0.0, "s10"),
        Utterance(sounds / "float.wav", 3.0, "", 0.0, None),
        Utterance(sounds / "stereo.wav", 2.0, "both", 0.25, "s 3"),
        Utterance(sounds / "é.ogg", 2.0, "o'clock", 0.0, "s2"),
    ]


def as_kaldi_reads(utterance: Utterance) -> tuple[object, ...]:
    speaker = utterance.speaker and "_".join(utterance.speaker.split())
    return utterance.audio, utterance.duration_s, " ".join(utterance.text.split()), utterance.offset_s, speaker


# --- looking at the audio ---


def test_an_utterance_is_cut_to_its_audio(sounds: Path) -> None:
    path = sounds / "a.wav"
    asked = [
        Entry("whole", path, "a"),
        Entry("rest", path, "a", offset_s=2.0),
        Entry("over", path, "a", offset_s=2.0, duration_s=1.5),
        Entry("under", path, "a", offset_s=-0.25, duration_s=1.0),
    ]
    utterances, skipped = entries.fit(asked, entries.probe([path]))
    assert not skipped
    assert [(u.offset_s, u.duration_s) for u in utterances] == [(0, 3), (2, 1), (2, 1), (0, 0.75)]


@pytest.mark.parametrize(
    ("offset_s", "duration_s"),
    [
        (2.0, 1.51),
        (-0.51, 2.0),
        (3.0, None),
        (4.0, 0.1),
        (1.0, 0.0),
        (1.0, -1.0),
        (1.0, math.nan),
        (math.nan, 1.0),
        (math.inf, 1.0),
        (0.0, math.inf),
        (-math.inf, math.inf),
    ],
)
def test_an_utterance_beyond_its_audio_is_skipped(sounds: Path, offset_s: float, duration_s: float | None) -> None:
    path = sounds / "a.wav"
    entry = Entry("u", path, "a", offset_s=offset_s, duration_s=duration_s)
    utterances, skipped = entries.fit([entry], entries.probe([path]))
    assert not utterances
    assert "expected an utterance within its 3.00 s" in skipped[0].reason


def test_text_that_cannot_be_written_is_skipped(sounds: Path) -> None:
    path = sounds / "a.wav"
    utterances, skipped = entries.fit([Entry("u", path, "\ud800"), Entry("v", path, "x")], entries.probe([path]))
    assert [utterance.text for utterance in utterances] == ["x"]
    assert "surrogate" in skipped[0].reason


# --- Kaldi ---


def test_kaldi_whole_files(sounds: Path, tmp_path: Path) -> None:
    folder = kaldi_folder(
        tmp_path / "data",
        wav_scp=f"u1\t{sounds}/a.wav\r\nu2 {sounds}/b c.flac\nu3 {sounds}/é.ogg\n",
        text="u2 deux mots \nu1 one\nu3\n",
        utt2spk="u1 s1\nu2 u2\n",
    )
    utterances, skipped = taken(kaldi.read(folder))
    assert not skipped
    assert utterances == [
        Utterance(sounds / "b c.flac", 3.0, "deux mots"),
        Utterance(sounds / "a.wav", 3.0, "one", speaker="s1"),
        Utterance(sounds / "é.ogg", 2.0, ""),
    ]


def test_kaldi_segments_share_a_recording(sounds: Path, tmp_path: Path) -> None:
    folder = kaldi_folder(
        tmp_path / "data",
        wav_scp="r1 a.wav\nr2 é.ogg\nr3 unused.wav\n",
        segments="u1 r1 0 1.25\nu2 r1 1.5 -1\nu3 r2 0.5 2.3 0\nu4 r2 0 1 1\nu5 r9 0 1\nu6 r1 0 1\nu8 r1 2 9\n",
        text="u1 one\nu2 two\nu3 three\nu4 four\nu5 five\nu7 seven\nu8 eight",
    )
    corpus = kaldi.read(folder, root=sounds)
    utterances, skipped = taken(corpus)
    assert utterances == [
        Utterance(sounds / "a.wav", 1.25, "one"),
        Utterance(sounds / "a.wav", 1.5, "two", 1.5),
        Utterance(sounds / "é.ogg", 1.5, "three", 0.5),
    ]
    assert corpus.untranscribed == 1
    assert {key: reason[:30] for key, reason in skipped.items()} == {
        "u4": "expected the first channel, go",
        "u5": "it has a text, but wav.scp has",
        "u6": "it has no line in text",
        "u7": "it has a text, but no line in ",
        "u8": f"{sounds / 'a.wav'}: expected an u"[:30],
    }


@pytest.mark.parametrize(
    "pipe",
    [
        "cat 'b c.flac' |",
        "flac -c -d -s 'b c.flac' |",
        "/opt/kaldi/flac -cds b\\ c.flac |",
        'sph2pipe -f wav -p "b c.flac" |',
        "sox 'b c.flac' -t wav -r 16k -b 16 - |",
        "ffmpeg -v 8 -i 'b c.flac' -f wav -acodec pcm_s16le -|",
        "ffmpeg -threads 1 -i 'b c.flac' -ar 16000 -map_channel 0.0.0  -f wav -threads 1 pipe:1 |",
    ],
)
def test_a_pipe_that_only_decodes_is_its_file(sounds: Path, tmp_path: Path, pipe: str) -> None:
    folder = kaldi_folder(tmp_path / "data", wav_scp=f"u {pipe}\n", text="u one")
    assert taken(kaldi.read(folder, root=sounds)) == ([Utterance(sounds / "b c.flac", 3.0, "one")], {})


@pytest.mark.parametrize(
    "pipe",
    [
        "rm a.wav |",
        "touch pwned; cat a.wav |",
        "cat a.wav > pwned |",
        "cat $(touch pwned) |",
        "sph2pipe -f wav -p -c 2 a.wav |",  # one of two channels
        "sox a.wav -t wav - speed 1.1 |",
        "sox -v 0.5 a.wav -t wav - |",
        "sox a.wav -t wav - | tee pwned |",
        "ffmpeg -i a.wav -ss 1 -f wav - |",
        "ffmpeg -y -i a.wav pwned |",
        "ffmpeg -i a.wav -i b.wav -f wav - |",
        "flac -c -d -s |",
        "flac -cds --skip=5 a.wav |",
        "sox -D a.wav --norm -t wav - |",
        'cat "a.wav |',
        "cat |",
        "|",
        " |",
    ],
)
def test_other_pipes_are_refused_and_never_executed(
    sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipe: str
) -> None:
    monkeypatch.chdir(sounds)
    folder = kaldi_folder(tmp_path / "data", wav_scp=f"u {pipe}\n", text="u one")
    before = sorted(sounds.iterdir())
    utterances, skipped = taken(kaldi.read(folder))
    assert not utterances
    assert skipped["u"].startswith("expected an audio file, got a pipe, which is never executed")
    assert sorted(sounds.iterdir()) == before


def test_only_one_channel_is_taken_for_the_first(sounds: Path, tmp_path: Path) -> None:
    wav_scp = "u1 stereo.wav\nu2 ffmpeg -i stereo.wav -ac 1 -f wav - |\nu3 raw.ark:1234\nu4 flac -cds stereo.wav |\n"
    folder = kaldi_folder(tmp_path / "data", wav_scp=wav_scp, text="u1 a\nu2 b\nu3 c\nu4 d\n")
    utterances, skipped = taken(kaldi.read(folder, root=sounds))
    assert [utterance.text for utterance in utterances] == ["b"]  # ffmpeg mixes, and so do we
    assert skipped.keys() == {"u1", "u3", "u4"}
    assert "expected 1 channels, as the corpus has it, got 2" in skipped["u1"]
    assert "archive" in skipped["u3"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text", None, "text: no such file"),
        ("wav.scp", None, "wav.scp: no such file"),
        ("text", "", "empty file"),
        ("text", "u one\nu two\n", "text:2: u is listed twice"),
        ("wav.scp", "u\n", "wav.scp:1: expected 'u' and a value"),
        ("utt2spk", "u s\nu s", "utt2spk:2: u is listed twice"),
        ("segments", "u r\n", "segments: u: expected a recording, start and end"),
        ("segments", "u r 0 x\n", "segments: u: expected a recording, start and end"),
        ("text", b"u caf\xe9", "text:1: expected UTF-8, got byte 0xe9"),
        ("text", gzip.compress(b"u one" * 1000, mtime=0)[:-20], "damaged or cut short"),
    ],
)
def test_a_malformed_kaldi_folder_is_named(
    sounds: Path, tmp_path: Path, name: str, content: str | bytes | None, message: str
) -> None:
    folder = kaldi_folder(tmp_path / "data", wav_scp="u a.wav\n", text="u one\n")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(CorpusError, match=message):
        kaldi.read(folder, root=sounds)


def test_kaldi_round_trip(sounds: Path, tmp_path: Path) -> None:
    utterances = sample(sounds)
    files = kaldi.files(utterances, entries.probe(u.audio for u in utterances))
    check_kaldi_rules(files)
    kaldi_folder(tmp_path / "data", **{name.replace(".", "_"): content for name, content in files.items()})
    again, skipped = taken(kaldi.read(tmp_path / "data"))
    assert not skipped
    assert sorted(map(as_kaldi_reads, again), key=str) == sorted(map(as_kaldi_reads, utterances), key=str)


def check_kaldi_rules(files: dict[str, str]) -> None:
    """What Kaldi's validate_data_dir.sh asks for."""
    tables = {name: [line.split(" ", 1) for line in content.splitlines()] for name, content in files.items()}
    for name, rows in tables.items():
        keys = [row[0].encode() for row in rows]
        assert keys == sorted(set(keys)), f"{name}: sorted in the C locale, unique"
    utterances = [row[0] for row in tables["utt2spk"]]
    for name in ("segments", "text", "utt2dur"):
        assert [row[0] for row in tables[name]] == utterances
    speakers = [row[1].encode() for row in tables["utt2spk"]]
    assert speakers == sorted(speakers), "sorted by speaker at once"
    assert all(key.startswith(speaker) for key, speaker in tables["utt2spk"])
    inverse = [[key, speaker] for speaker, keys in tables["spk2utt"] for key in keys.split()]
    assert inverse == tables["utt2spk"]
    assert [row[0] for row in tables["wav.scp"]] == [row[0] for row in tables["reco2dur"]]
    assert {row[1].split()[0] for row in tables["segments"]} <= {row[0] for row in tables["wav.scp"]}


awkward = st.text("ab-+_! \u00a0é\x07", min_size=1, max_size=4)


@given(st.lists(st.tuples(awkward, awkward, st.none() | awkward, st.integers(0, 9)), min_size=1, max_size=12))
def test_kaldi_ids_are_sorted_unique_and_tell_speakers_apart(rows: list[tuple[str, str, str | None, int]]) -> None:
    utterances = [
        Utterance(Path("/x") / folder / f"{name}.wav", 1.0, "a", offset, speaker)
        for folder, name, speaker, offset in rows
    ]
    info = audio.AudioInfo(20.0, RATE, 1, "WAV/PCM_16")
    files = kaldi.files(utterances, dict.fromkeys((u.audio for u in utterances), info))
    check_kaldi_rules(files)
    assert not re.search(r"[^\S\n ]", files["segments"])
    sizes = [len(line.split()) - 1 for line in files["spk2utt"].splitlines()]
    assert sum(sizes) == len(utterances)
    if all(utterance.speaker for utterance in utterances):
        assert sorted(sizes) == sorted(Counter(utterance.speaker for utterance in utterances).values())


def test_what_kaldi_would_execute_is_quoted() -> None:
    info = audio.AudioInfo(1.0, RATE, 1, "WAV/PCM_16")
    for name in ("/x/rm -rf ~ |", "/x/a.wav:12", "/x/it's; touch pwned |", "/x/a.wav "):
        line = kaldi.files([Utterance(Path(name), 1.0, "a")], {Path(name): info})["wav.scp"]
        command = line.rstrip("\n").split(" ", 1)[1]
        before, after = "ffmpeg -nostdin -v error -i", "-ac 1 -c:a pcm_s16le -f wav - |"
        assert shlex.split(command) == [*before.split(), name, *after.split()]
    name = "/x/a\nb rm -rf ~ |.wav"
    with pytest.raises(CorpusError, match="without line ends"):
        kaldi.files([Utterance(Path(name), 1.0, "a")], {Path(name): info})


def test_lhotse_reads_our_kaldi_folder(sounds: Path, tmp_path: Path) -> None:
    utterances = sample(sounds)
    files = kaldi.files(utterances, entries.probe(u.audio for u in utterances))
    folder = kaldi_folder(tmp_path / "data", **{name.replace(".", "_"): content for name, content in files.items()})
    recordings, supervisions, _ = lhotse.kaldi.load_kaldi_data_dir(folder, RATE)
    read = [(s.start, s.duration, s.text) for s in supervisions]
    assert sorted(read) == sorted((u.offset_s, u.duration_s, " ".join(u.text.split())) for u in utterances)
    assert recordings["a"].sources[0].source == str(sounds / "a.wav")


def test_a_kaldi_folder_of_lhotse_is_read(sounds: Path, tmp_path: Path) -> None:
    names = ("a.wav", "b c.flac")
    recordings = [lhotse.Recording.from_file(sounds / name, recording_id=name.split(".")[0][0]) for name in names]
    spans = [("s1-u1", "a", 0.5, 1.25), ("s1-u2", "a", 2.0, 0.75), ("s2-u3", "b", 0.0, 3.0)]
    supervisions = [
        lhotse.SupervisionSegment(key, recording, start, duration, text=f"text {key}", speaker=key[:2])
        for key, recording, start, duration in spans
    ]
    lhotse.kaldi.export_to_kaldi(
        lhotse.RecordingSet.from_recordings(recordings), lhotse.SupervisionSet.from_segments(supervisions), tmp_path
    )
    path = tmp_path / "wav.scp"  # Lhotse does not quote names
    path.write_text(path.read_text().replace("b c.flac", shlex.quote("b c.flac")))
    utterances, skipped = taken(kaldi.read(tmp_path))
    assert not skipped
    assert utterances == [
        Utterance(sounds / "a.wav", 1.25, "text s1-u1", 0.5, "s1"),
        Utterance(sounds / "a.wav", 0.75, "text s1-u2", 2.0, "s1"),
        Utterance(sounds / "b c.flac", 3.0, "text s2-u3", 0.0, "s2"),
    ]


# --- Lhotse ---


def json_lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recording(path: Path, **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = lhotse.Recording.from_file(path, recording_id=path.stem).to_dict()
    return made | changes


def supervision(key: str = "u", of: str = "a", **changes: Any) -> dict[str, Any]:
    return {"id": key, "recording_id": of, "start": 0.0, "duration": 1.0, "channel": 0, "text": "one"} | changes


def cut(path: Path, *supervisions: dict[str, Any], **changes: Any) -> dict[str, Any]:
    whole = {"id": "c", "start": 0.0, "duration": 3.0, "channel": 0, "supervisions": list(supervisions)}
    return whole | {"recording": recording(path), "type": "MonoCut"} | changes


def test_lhotse_round_trip(sounds: Path, tmp_path: Path) -> None:
    utterances = sample(sounds)
    path = tmp_path / "cuts.jsonl"
    path.write_text(lhotse_lines.cuts(utterances, entries.probe(u.audio for u in utterances)))
    assert taken(lhotse_lines.read([path])) == (utterances, {})


def test_lhotse_hears_in_our_cuts_what_we_hear(sounds: Path, tmp_path: Path) -> None:
    utterances = sample(sounds)
    path = tmp_path / "cuts.jsonl.gz"
    path.write_bytes(gzip.compress(lhotse_lines.cuts(utterances, entries.probe(u.audio for u in utterances)).encode()))
    cuts = list(lhotse.CutSet.from_file(path))
    assert len({one.id for one in cuts}) == len(utterances)
    for one, utterance in zip(cuts, utterances, strict=True):
        lhotse.qa.validate(one)
        assert one.supervisions[0].text == utterance.text
        assert one.supervisions[0].speaker == utterance.speaker
        ours = audio.read(utterance.audio, offset_s=utterance.offset_s, duration_s=utterance.duration_s)
        np.testing.assert_allclose(one.load_audio().mean(axis=0), ours, atol=1e-6)


def test_lhotse_cuts_of_lhotse(sounds: Path, tmp_path: Path) -> None:
    mono, stereo = (lhotse.Recording.from_file(sounds / name) for name in ("a.wav", "stereo.wav"))
    spoken = [
        lhotse.SupervisionSegment("u1", "a", 0.25, 0.5, text="one", speaker="s1"),
        lhotse.SupervisionSegment("u2", "a", 1.0, 0.75, text="two"),
    ]
    both = [lhotse.SupervisionSegment("u3", "stereo", 0, 3, channel=[0, 1], text="three")]
    long = MonoCut("c1", 1.0, 2.0, 0, spoken, recording=mono)
    cuts = [
        long,
        MonoCut("c2", 0.0, 0.5, 0, [], recording=mono),
        MultiCut("c3", 0.0, 3.0, [0, 1], both, recording=stereo),
        long.with_id("c4").resample(8000),
        long.with_id("c5").perturb_speed(1.1),
        long.pad(4.0).with_id("c6"),
        MonoCut(
            "c7", 0, 3, 1, [lhotse.SupervisionSegment("u7", "stereo", 0, 3, channel=1, text="x")], recording=stereo
        ),
    ]
    lhotse.CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    corpus = lhotse_lines.read([tmp_path / "cuts.jsonl.gz"])
    utterances, skipped = taken(corpus)
    two = [Utterance(sounds / "a.wav", 0.5, "one", 1.25, "s1"), Utterance(sounds / "a.wav", 0.75, "two", 2.0)]
    assert utterances == [*two, Utterance(sounds / "stereo.wav", 3.0, "three"), *two]
    assert corpus.untranscribed == 1
    assert skipped.keys() == {"u1_sp1.1", "u2_sp1.1", "c6", "u7"}
    assert "the transform Speed" in skipped["u1_sp1.1"]
    assert "got a MixedCut" in skipped["c6"]
    assert "expected a file of channel 1 and no other, got files of the channels [0, 1]" in skipped["u7"]


def test_recordings_and_supervisions_as_recipes_write_them(sounds: Path, tmp_path: Path) -> None:
    recordings = lhotse.RecordingSet.from_recordings(
        [lhotse.Recording.from_file(sounds / name) for name in ("a.wav", "é.ogg", "float.wav")]
    )
    supervisions = lhotse.SupervisionSet.from_segments(
        [
            lhotse.SupervisionSegment("u1", "é", 0.5, 1.5, text="deux", speaker="s"),
            lhotse.SupervisionSegment("u2", "a", 0.0, 3.0, text="one"),
            lhotse.SupervisionSegment("u3", "a", 0.0, 3.0),
            lhotse.SupervisionSegment("u4", "gone", 0.0, 3.0, text="four"),
        ]
    )
    recordings.to_file(tmp_path / "x_recordings_all.jsonl.gz")
    supervisions.to_file(tmp_path / "x_supervisions_all.jsonl.gz")
    for order in (1, -1):
        corpus = lhotse_lines.read(sorted(tmp_path.iterdir())[::order])
        utterances, skipped = taken(corpus)
        assert utterances == [
            Utterance(sounds / "é.ogg", 1.5, "deux", 0.5, "s"),
            Utterance(sounds / "a.wav", 3.0, "one"),
        ]
        assert skipped == {"u3": "it has no text", "u4": "there is no recording gone that it is of"}
        assert corpus.untranscribed == 1


def test_the_file_of_a_channel_is_found(sounds: Path, tmp_path: Path) -> None:
    sources = [{"type": "file", "channels": [n], "source": name} for n, name in enumerate(("a.wav", "float.wav"))]
    rows = [recording(sounds / "a.wav", sources=sources, channel_ids=[0, 1]), supervision(channel=1)]
    utterances, _ = taken(lhotse_lines.read([json_lines(tmp_path / "x.jsonl", *rows)], root=sounds))
    assert [utterance.audio.name for utterance in utterances] == ["float.wav"]


@pytest.mark.parametrize("kind", ["command", "url", "memory", "shar"])
def test_audio_that_is_no_file_is_skipped(sounds: Path, tmp_path: Path, kind: str) -> None:
    source = {"type": kind, "channels": [0], "source": "touch pwned"}
    path = json_lines(tmp_path / "c.jsonl", cut(sounds / "a.wav", supervision(), recording={"sources": [source]}))
    utterances, skipped = taken(lhotse_lines.read([path]))
    assert not utterances
    assert f"expected a source of type file, got {kind}" in skipped["u"]


def test_channels_that_the_file_does_not_have_are_no_guess(sounds: Path, tmp_path: Path) -> None:
    source = {"type": "file", "channels": [0], "source": str(sounds / "stereo.wav")}
    path = json_lines(tmp_path / "c.jsonl", cut(sounds / "a.wav", supervision(), recording={"sources": [source]}))
    _, skipped = taken(lhotse_lines.read([path]))
    assert "expected 1 channels, as the corpus has it, got 2" in skipped["u"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "expected a JSON object a line"),
        ({"a": 1}, "expected a cut, recording or supervision of Lhotse, got the keys a"),
        (supervision(start="0"), "'start' to be seconds, got 0"),
        (supervision(duration=None), "'duration' to be seconds"),
        (supervision(text=["x"]), "'text' to be text"),
        (supervision(speaker={}), "'speaker' to be text"),
        ({"recording_id": "a"}, "'id' to be text"),
        ({"id": "a", "sources": []}, "recording a is another in"),
        ({"type": "MonoCut", "supervisions": [3]}, "'supervisions' to be a list"),
        ({"type": "MonoCut", "supervisions": {"a": 3}}, "'supervisions' to be a list"),
        ({"type": "MonoCut", "supervisions": [supervision()]}, "'start' to be seconds"),
        ({"start": 0, "supervisions": [supervision()], "recording": 3}, "'recording' to be an object"),
        ({"start": 0, "supervisions": [supervision()], "recording": {"sources": 3}}, "'sources' to be a list"),
        ({"start": 0, "supervisions": [supervision()], "recording": {"sources": [{}]}}, "'channels' to be a list"),
    ],
)
def test_a_malformed_line_of_lhotse_is_named(sounds: Path, tmp_path: Path, row: object, message: str) -> None:
    path = json_lines(tmp_path / "x.jsonl", recording(sounds / "a.wav"), row)
    with pytest.raises(CorpusError, match=message) as caught:
        lhotse_lines.read([path])
    assert str(caught.value).startswith(f"{path}:2: ")
    assert len(str(caught.value)) < 500


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
        max_leaves=4,
    ),
    st.sampled_from(
        [
            *[("id",), ("start",), ("channel",), ("type",), ("recording",), ("supervisions",), ("supervisions", 0)],
            *[("recording", "sources"), ("recording", "transforms"), ("recording", "sources", 0)],
            *[("recording", "sources", 0, "channels"), ("recording", "sources", 0, "source")],
            *[("supervisions", 0, key) for key in ("id", "start", "duration", "text", "speaker", "channel")],
        ]
    ),
)
def test_nothing_in_a_cut_is_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, sounds: Path, value: object, place: tuple[str | int, ...]
) -> None:
    row: Any = cut(sounds / "a.wav", supervision())
    inner = row
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    path = json_lines(tmp_path_factory.mktemp("cut") / "c.jsonl", row)
    refusal = f"{path}:1: "
    try:
        taken(lhotse_lines.read([path], root=sounds))
    except CorpusError as error:
        refusal = str(error)
    assert refusal.startswith(f"{path}:1: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress((b" " * 999 + b"\n") * 8000, mtime=0), "unpacks to more than 200 times its size"),
        (b"[" + b"1," * (33 << 20), "expected lines of at most 67108864 bytes"),
        (b"[" * 100_000, "expected a JSON object"),
        (b'{"sources": ' + b"9" * 5000 + b"}", "expected a JSON object"),
        (b"sources:\n- a\n", "lhotse copy OLD NEW.jsonl.gz"),
        (gzip.compress(b"{}" * 100, mtime=0)[:20], "damaged or cut short"),
    ],
    ids=["bomb", "long line", "deep", "digits", "yaml", "cut short"],
)
def test_what_is_beyond_measure_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.jsonl.gz").write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        lhotse_lines.read([tmp_path / "x.jsonl.gz"])


# --- CSV ---


def test_deepspeech(sounds: Path, tmp_path: Path) -> None:
    (tmp_path / "sounds").symlink_to(sounds)
    path = tmp_path / "train.csv"
    path.write_bytes(
        b"\xef\xbb\xbfwav_filename,wav_filesize,transcript\r\n"
        b'sounds/a.wav,96044,"one, ""two"""\r\n'
        + f'"{sounds}/b c.flac",1,"deux\nlignes"\r\n'.encode()
        + b"\r\nsounds/a.wav,1,no,quotes\r\nsounds/gone.wav,1,gone\r\n,1,nameless\r\nsounds/a.wav\r\n"
    )
    utterances, skipped = taken(tables.read(path))
    assert utterances == [
        Utterance(tmp_path / "sounds/a.wav", 3.0, 'one, "two"'),
        Utterance(sounds / "b c.flac", 3.0, "deux\nlignes"),
    ]
    assert skipped == {
        "train.csv:6": "expected 3 columns, got 4; a text with a separator in it needs quotes",
        "train.csv:7": f"{tmp_path / 'sounds/gone.wav'}: no such file; check the path",
        "train.csv:8": "it names no audio",
        "train.csv:9": "expected 3 columns, got 1; a text with a separator in it needs quotes",
    }


def test_common_voice(sounds: Path, tmp_path: Path) -> None:
    (tmp_path / "clips").symlink_to(sounds)
    (tmp_path / "train.tsv").write_text(
        "client_id\tpath\tsentence\tup_votes\n"
        'x1\ta.wav\t"Thresher" would then go on to sink.\t2\n'
        'x2\tb c.flac\t"Two kinds, ""public"" and ""private""."\t2\n'
        "\té.ogg\tAn album, unfinished\n"
    )
    utterances, skipped = taken(tables.read(tmp_path / "train.tsv"))
    assert not skipped
    assert utterances == [
        Utterance(tmp_path / "clips/a.wav", 3.0, '"Thresher" would then go on to sink.', speaker="x1"),
        Utterance(tmp_path / "clips/b c.flac", 3.0, 'Two kinds, "public" and "private".', speaker="x2"),
        Utterance(tmp_path / "clips/é.ogg", 2.0, "An album, unfinished"),
    ]


def test_columns_of_any_name(sounds: Path) -> None:
    path = sounds / "any.csv"
    path.write_text("who,path,said\nme,a.wav,hello\n")
    for text, speaker in (("said", "who"), ("3", "1")):
        corpus = tables.read(path, text_column=text, speaker_column=speaker)
        assert taken(corpus)[0] == [Utterance(sounds / "a.wav", 3.0, "hello", speaker="me")]
    with pytest.raises(CorpusError, match=r"any.csv:1: expected the columns .*, got who, path, said; name or count"):
        tables.read(path)
    with pytest.raises(CorpusError, match="expected the columns path, said, whom, got who, path, said"):
        tables.read(path, audio_column="path", text_column="said", speaker_column="whom")


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("semicolons", "path;sentence;speaker\na.wav;one, two;me\nb c.flac;three;\n"),
        ("bars", "audio|text|speaker\na.wav|one, two|me\nb c.flac|three|\n"),
        ("hugging face", 'file_name,transcription,speaker\na.wav,"one, two",me\nb c.flac,three,\n'),
        ("other names", 'Speaker,File,Text\nme,a.wav,"one, two"\n,b c.flac,three\n'),
        ("tabs without a header", "a.wav\tone, two\nb c.flac\tthree\n"),
        ("commas without a header", 'a.wav,"one, two"\nb c.flac,three\n'),
        ("a header that is not known", 'no,clip,said\n1,a.wav,"one, two"\n2,b c.flac,three\n'),
    ],
)
def test_tables_of_every_kind(sounds: Path, name: str, table: str) -> None:
    (sounds / "x.csv").write_text(table)
    columns = {"audio_column": "2", "text_column": "3"} if name == "a header that is not known" else {}
    utterances, skipped = taken(tables.read(sounds / "x.csv", **columns))
    assert not skipped
    assert [(one.audio.name, one.text) for one in utterances] == [("a.wav", "one, two"), ("b c.flac", "three")]
    assert [one.speaker for one in utterances] == (["me", None] if "peaker" in table else [None, None])


def test_speakers_are_kept_beside_columns_that_are_named(sounds: Path) -> None:
    (sounds / "x.csv").write_text("speaker,clip,said\nme,a.wav,hello\n")
    corpus = tables.read(sounds / "x.csv", audio_column="clip", text_column="said")
    assert [entry.speaker for entry in corpus.entries] == ["me"]


def test_ljspeech(sounds: Path, tmp_path: Path) -> None:
    (tmp_path / "wavs").symlink_to(sounds)
    (tmp_path / "metadata.csv").write_text('gone|Lost, 1|Lost, one\na|"Two, 2|"Two, two\n')
    corpus = tables.read(tmp_path / "metadata.csv")
    assert [(entry.audio, entry.text) for entry in corpus.entries] == [
        (tmp_path / "wavs/gone.wav", "Lost, one"),
        (tmp_path / "wavs/a.wav", '"Two, two'),
    ]


fields = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=12)


@given(st.lists(st.tuples(fields, fields), min_size=1, max_size=4))
def test_csv_texts_survive(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    file = io.StringIO(newline="")
    csv.writer(file).writerows([("wav_filename", "speaker", "transcript"), *(("a.wav", *row) for row in rows)])
    path.write_bytes(file.getvalue().encode())
    found = tables.read(path).entries
    assert [(entry.speaker or "", entry.text) for entry in found] == [(a.strip(), b.strip()) for a, b in rows]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got none"),
        (b'wav_filename,transcript\na.wav,"open\n', "csv:2: expected fields with commas"),
        (b'wav_filename,transcript\na.wav,"a"b\n', "csv:2: expected fields with commas"),
        (b"wav_filename,transcript\na.wav," + b"x" * 200_000, "field larger than field limit"),
        ("wav_filename,transcript\n".encode("utf-16"), "expected UTF-8, got byte 0xff"),
        (None, "no such file"),
    ],
)
def test_a_table_that_cannot_be_read(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        tables.read(tmp_path / "x.csv")


def test_the_files_are_looked_at_once_each(sounds: Path) -> None:
    paths = [sounds / "a.wav", sounds / "gone.wav", sounds / "a.wav"]
    infos = entries.probe(paths)
    assert list(infos) == paths[:2]
    assert isinstance(infos[paths[1]], AsrError)
    assert all(first != second for first, second in pairwise(infos))
