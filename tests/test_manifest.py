import json
import os
from pathlib import Path

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
    with pytest.raises(ManifestError, match="cannot be read"):
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
