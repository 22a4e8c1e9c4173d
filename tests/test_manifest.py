import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.errors import OutputError
from asr.manifest import ManifestError, Utterance, read, write

GOOD = {"audio_filepath": "a.wav", "duration": 1.5, "text": "hello"}


def test_example(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD | {"offset": 2, "speaker": 7, "lang": "en"}))
    assert read(path) == [
        Utterance(tmp_path / "a.wav", 1.5, "hello"),
        Utterance(tmp_path / "a.wav", 1.5, "hello", 2.0, "7"),
    ]


names = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\"), min_size=1, max_size=20
).filter(lambda name: name not in (".", ".."))
samples = st.integers(1, 10**9)


@given(
    st.lists(
        st.tuples(names, samples, st.text(st.characters(exclude_categories=["Cs"])), samples, st.none() | names),
        min_size=1,
        max_size=5,
    )
)
def test_read_undoes_write(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int, str, int, str]]
) -> None:
    folder = tmp_path_factory.mktemp("manifest")
    path = folder / "new" / "m.jsonl"
    utterances = [
        Utterance(path.parent / name, round(n / 16000, 6), text, round(offset / 16000, 6), speaker)
        for name, n, text, offset, speaker in rows
    ]
    write(path, utterances)
    assert read(path) == utterances
    assert [entry.name for entry in path.parent.iterdir()] == ["m.jsonl"]


@given(st.sampled_from([8000, 11025, 16000, 44100, 48000, 192000]), st.integers(1, 10**9))
def test_seconds_name_every_sample(rate: int, n: int) -> None:
    assert round(round(n / rate, 6) * rate) == n


def test_paths_are_relative_below_the_folder_and_absolute_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "set" / "m.jsonl"
    write(path, [Utterance(tmp_path / "set" / "wavs" / "a.wav", 1, "a"), Utterance(tmp_path / "b.wav", 1, "b")])
    names = [json.loads(line)["audio_filepath"] for line in path.read_text().splitlines()]
    assert names == ["wavs/a.wav", (tmp_path / "b.wav").as_posix()]


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need privileges")
def test_a_linked_corpus_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "0001.wav").touch()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "spoken.wav").symlink_to(tmp_path / "disk" / "0001.wav")
    write(tmp_path / "set" / "m.jsonl", [Utterance(tmp_path / "set" / "spoken.wav", 1, "a")])
    assert read(tmp_path / "set" / "m.jsonl")[0].id == "spoken"


def test_id_tells_the_parts_of_a_file_apart() -> None:
    assert Utterance(Path("x/a.b.wav"), 1, "").id == "a.b"
    assert Utterance(Path("x/a.wav"), 1, "", 2.5).id == "a@2.50"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_editors_of_other_systems(tmp_path: Path, newline: str, bom: bytes) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(bom + newline.join([json.dumps(GOOD)] * 2).encode() + newline.encode())
    assert len(read(path)) == 2


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    utterance = Utterance(tmp_path / "a.wav", 1.0, "a\u2028b\u0085c\x0cd\r\ne")
    write(path, [utterance])
    assert read(path) == [utterance]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "expected a JSON object"),
        ("[1]", "expected a JSON object"),
        ("[" * 100_000, "expected a JSON object"),
        ('{"duration": ' + "9" * 5000 + "}", "expected a JSON object"),
        (json.dumps({"audio_filepath": "a", "text": ""}), "'duration' is missing"),
        (json.dumps(GOOD | {"audio_filepath": ""}), "name a file"),
        (json.dumps(GOOD | {"audio_filepath": 3}), "'audio_filepath' to be text, got 3"),
        (json.dumps(GOOD | {"text": None}), "'text' to be text, got None"),
        (json.dumps(GOOD | {"duration": "1.5"}), "'duration' to be a number"),
        (json.dumps(GOOD | {"duration": True}), "'duration' to be a number"),
        (json.dumps(GOOD | {"duration": 0}), "duration > 0"),
        (json.dumps(GOOD | {"duration": float("nan")}), "duration > 0"),
        (json.dumps(GOOD | {"duration": 10**400}), "duration > 0"),
        (json.dumps(GOOD | {"offset": -1}), "offset >= 0"),
        (json.dumps(GOOD | {"offset": [1]}), "'offset' to be a number"),
        (json.dumps(GOOD | {"speaker": 1.5}), "'speaker' to be text"),
        (json.dumps(GOOD | {"bytes": [0, 9]}), "'bytes' to be where audio in X.tar/NAME begins"),
        (json.dumps(GOOD | {"audio_filepath": "x.tar/a.wav", "bytes": [0, 1 << 40]}), "at most 1073741824, got"),
        (json.dumps(GOOD | {"audio_filepath": "x.tar/a.wav", "bytes": [-1, 9]}), "'bytes' to be where"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(ManifestError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such manifest"),
        (b"", "empty"),
        (b" \n\n", "empty"),
        (b'{"text": "caf\xe9"}', "expected UTF-8, got byte 0xe9"),
    ],
)
def test_bad_file(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "m.jsonl").write_bytes(content)
    with pytest.raises(ManifestError, match=message):
        read(tmp_path / "m.jsonl")


def test_folder_in_place_of_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="expected a manifest, or tars with one beside each, found none"):
        read(tmp_path)
    with pytest.raises(OutputError, match="got a folder or device"):
        write(tmp_path, [Utterance(Path("a.wav"), 1, "a")])


def test_write_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    good = [Utterance(tmp_path / "a.wav", 1.0, "a")]
    write(path, good)
    with pytest.raises(ManifestError, match="surrogate"):
        write(path, [*good, Utterance(tmp_path / "b.wav", 1.0, "\ud800")])
    assert read(path) == good
    assert list(tmp_path.iterdir()) == [path]


def listed(folder: Path, count: int) -> Path:
    """A manifest of so many utterances of 180 letters, of two speakers in turn."""
    path = folder / "m.jsonl"
    row = {"text": "x" * 180, "duration": 2.5}
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            name = f"train-clean/103/1240/103-1240-{number:07}.flac"
            file.write(json.dumps(row | {"audio_filepath": name, "speaker": f"s{number % 2}"}) + "\n")
    return path


def test_an_utterance_costs_less_than_300_bytes(tmp_path: Path) -> None:
    assert len(pickle.dumps(read(listed(tmp_path, 5000)))) / 5000 < 300


def test_a_sequence_of_which_parts_can_be_taken(tmp_path: Path) -> None:
    utterances = read(listed(tmp_path, 5000))  # read in several batches
    assert len(utterances) == 5000
    assert [one.speaker for one in utterances[4997:]] == ["s1", "s0", "s1"]
    assert utterances[-1] == list(utterances)[4999]
    assert utterances[-1].audio == tmp_path / "train-clean/103/1240/103-1240-0004999.flac"
    assert utterances[np.array([3, 1])] == [utterances[3], utterances[1]]
    assert utterances[::2] != utterances[1::2]
    assert pickle.loads(pickle.dumps(utterances[:2])) == utterances[:2]
    with pytest.raises(IndexError):
        utterances[5000]


def test_several_manifests_each_of_its_own_folder(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / name / "m.jsonl", [Utterance(tmp_path / name / f"{name}.wav", 1.0, name, speaker="s")])
    found = read([tmp_path / "a" / "m.jsonl", tmp_path / "b" / "m.jsonl"])
    assert [(one.audio, one.text) for one in found] == [(tmp_path / n / f"{n}.wav", n) for n in "ab"]
    (tmp_path / "b" / "m.jsonl").write_text("")
    with pytest.raises(ManifestError, match="empty file"):
        read([tmp_path / "a" / "m.jsonl", tmp_path / "b" / "m.jsonl"])


def test_faults_are_told_and_the_others_are_read(tmp_path: Path) -> None:
    path = listed(tmp_path, 3000)
    rows = path.read_text().splitlines()
    rows[10], rows[2500] = "{", json.dumps(GOOD | {"duration": "1"})
    path.write_text("\n".join(rows))
    faults: list[ManifestError] = []
    assert len(read(path, faults)) == 2998
    assert [str(fault).split(": ")[0] for fault in faults] == [f"{path}:11", f"{path}:2501"]


def test_half_a_surrogate_pair_and_other_scripts_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    rows = [GOOD | {"text": "\ud800"}, GOOD | {"text": "日本語", "audio_filepath": "é.wav"}, GOOD]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [(one.audio.name, one.text) for one in read(path)] == [
        ("a.wav", "\ud800"),
        ("é.wav", "日本語"),
        ("a.wav", "hello"),
    ]
