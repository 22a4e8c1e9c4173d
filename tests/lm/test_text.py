"""Text for language models: whatever it is packed in, and never the text of a test."""

from __future__ import annotations

import bz2
import gzip
import itertools
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.errors import LmError
from asr.lm import text as lmtext
from asr.lm.text import OVERLAP, Without
from asr.manifest import ManifestError, Utterance, write
from asr.text import english, squeeze

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".txt": bytes,
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def read(*paths: Path) -> list[str]:
    return list(lmtext.lines(paths, english))


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_line_a_sentence_however_packed(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"text{suffix}"
    path.write_bytes(PACKERS[suffix]("\ufeffHello,  WORLD!\r\n\n Zoë’s café\u2028here".encode()))
    assert read(path) == ["hello world", "", "zoe's cafe here"]


def test_a_manifest_has_its_texts_and_files_follow_one_another(tmp_path: Path) -> None:
    rows = [Utterance(tmp_path / f"{text}.wav", 1.0, text) for text in ("One, two.", "Three!")]
    write(tmp_path / "train.jsonl", rows)
    (tmp_path / "more.txt").write_text("four\nfive\n")
    (tmp_path / "none.txt").touch()
    files = [tmp_path / name for name in ("more.txt", "train.jsonl", "none.txt", "more.txt")]
    assert read(*files) == ["four", "five", "one two", "three", "four", "five"]
    assert read() == []


def test_the_normaliser_is_the_one_given(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Hello,  World\n")
    assert list(lmtext.lines([str(tmp_path / "a.txt")], squeeze)) == ["Hello, World"]


def test_a_file_is_read_as_it_is_asked_for(tmp_path: Path) -> None:
    """A text of gigabytes is never in memory at once: what is wrong at its end comes last."""
    path = tmp_path / "text.txt"
    path.write_bytes(b"a line\n" * 100_000 + b"na\xefve\n")
    found = lmtext.lines([path], english)
    assert list(itertools.islice(found, 3)) == ["a line"] * 3
    with pytest.raises(LmError):
        list(found)


TEXT = b"".join(b"line %d\n" % number for number in range(20_000))


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_damaged_and_cut_short(suffix: str, tmp_path: Path) -> None:
    whole = PACKERS[suffix](TEXT)
    path = tmp_path / f"text{suffix}"
    middle = len(whole) // 2
    for data in (
        whole[:-10],
        whole[:middle],
        whole[: middle - 30] + bytes(60) + whole[middle + 30 :],
    ):
        path.write_bytes(data)
        with pytest.raises(LmError, match=rf"text\{suffix}: damaged or cut short after line \d+: \w"):
            read(path)
    path.write_bytes(b"not packed\n")
    assert read(path) == ["not packed"]


def test_missing_unreadable_and_folders(tmp_path: Path) -> None:
    with pytest.raises(LmError, match=r"none\.txt: no such text; check the path"):
        read(tmp_path / "none.txt")
    with pytest.raises(LmError, match="cannot be read: Is a directory"):
        read(tmp_path)
    with pytest.raises(LmError, match="cannot be read: File name too long"):
        read(tmp_path / ("a" * 300))
    with pytest.raises(ManifestError, match=r"none\.jsonl: no such manifest"):
        read(tmp_path / "none.jsonl")


@pytest.mark.parametrize("suffix", [".txt", ".gz"])
@pytest.mark.parametrize("before", [0, 1, 5000])
def test_other_encodings_are_named_with_their_line(before: int, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"text{suffix}"
    path.write_bytes(PACKERS[suffix](b"fine\n" * before + "naïve\n".encode("latin1") + b"fine\n" * 5))
    message = rf":{before + 1}: expected UTF-8, got byte 0xef; save it as UTF-8: iconv -f latin1"
    with pytest.raises(LmError, match=message):
        read(path)


def test_utf_16_is_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("hello\n", encoding="utf-16")
    with pytest.raises(LmError, match=r"text\.txt:1: expected UTF-8, got byte 0xff"):
        read(path)


@pytest.mark.parametrize(("length", "fits"), [(lmtext.MAX_LINE, True), (lmtext.MAX_LINE + 1, False), (5 << 20, False)])
def test_lines_beyond_all_measure(length: int, fits: bool, tmp_path: Path) -> None:
    path = tmp_path / "text.xz"
    path.write_bytes(lzma.compress(b"fine\n" + b"a" * length, preset=0))
    if fits:
        assert [len(line) for line in read(path)] == [4, length]
    else:
        with pytest.raises(LmError, match=rf"text\.xz:2: expected lines of at most {lmtext.MAX_LINE} bytes"):
            read(path)


# What is held out

HELD_OUT = ["a b c d e f g h i", "", "yes please", "one"]


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("yes please", False),  # a sentence of the test, however short
        ("one", False),
        ("  yes   please ", False),
        ("yes please do", True),  # only a part of a line
        ("please yes", True),
        ("", True),  # no sentence
        ("a b c d e f g", False),  # 7 words
        ("x y b c d e f g h z", False),
        ("c d e f g h i", False),
        ("a b c d e f", True),  # 6 words
        ("a b c d e f x g h i a b c", True),
        ("b c d e f g x", True),
        ("A B C D E F G", True),  # to normalise is for others
    ],
)
def test_what_is_held_out(line: str, kept: bool) -> None:
    without = Without(HELD_OUT)
    assert list(without([line])) == [line] * kept
    assert without.dropped == 1 - kept


def test_what_is_dropped_is_counted_over_all_calls() -> None:
    without = Without(HELD_OUT)
    assert list(without(["yes please", "no", "one", "two"])) == ["no", "two"]
    assert list(without(["one"])) == []
    assert without.dropped == 3
    assert list(Without([])(["one", "", "two"])) == ["one", "", "two"]


@given(
    held_out=st.lists(st.text("ab ", max_size=30), max_size=3), lines=st.lists(st.text("ab ", max_size=30), max_size=5)
)
def test_held_out_by_definition(held_out: list[str], lines: list[str]) -> None:
    def shared(line: str) -> bool:
        words = line.split()
        # Spaces at the ends, so that only whole words match.
        parts = [" " + " ".join(words[i : i + OVERLAP]) + " " for i in range(len(words) - OVERLAP + 1)]
        texts = [" " + " ".join(text.split()) + " " for text in held_out]
        return bool(words) and (words in [text.split() for text in texts] or any(p in t for p in parts for t in texts))

    without = Without(held_out)
    assert list(without(lines)) == [line for line in lines if not shared(line)]
    assert without.dropped == sum(map(shared, lines))
