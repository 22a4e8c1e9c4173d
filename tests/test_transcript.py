from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr import ctc, transcript
from asr.ctc import Span
from asr.errors import AsrError
from asr.tokens import Tokens
from asr.transcript import OutputError, Transcript, Word, words_of, write

TOKENS = Tokens.of(" 'abcdefghijklmnopqrstuvwxyz")


def spans(text: str, frames: list[tuple[int, int]], scores: list[float]) -> list[tuple[int, Span]]:
    pairs = zip(TOKENS.encode(text), frames, scores, strict=True)
    return [(token_id, Span(start, end, score)) for token_id, (start, end), score in pairs]


# Words


def test_words_run_from_first_character_to_last() -> None:
    found = words_of(
        spans("hi you", [(2, 3), (5, 7), (8, 9), (10, 11), (12, 13), (20, 22)], [0.9, 0.8, 0.1, 0.99, 0.4, 0.95]),
        TOKENS,
        frame_shift_s=0.04,
        offset_s=10.0,
    )
    assert [word.text for word in found] == ["hi", "you"]
    assert [(word.start_s, word.end_s) for word in found] == [
        (pytest.approx(10.08), pytest.approx(10.28)),
        (pytest.approx(10.40), pytest.approx(10.88)),
    ]
    # The weakest character's, and a doubtful space takes nothing from either word.
    assert [word.confidence for word in found] == [0.8, 0.4]


@pytest.mark.parametrize("text", ["", " ", "   "])
def test_no_characters_no_words(text: str) -> None:
    assert words_of(spans(text, [(t, t + 1) for t in range(len(text))], [1.0] * len(text)), TOKENS, 0.04) == ()


@given(
    text=st.text(" ab'", max_size=12),
    lengths=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), min_size=12, max_size=12),
    frame_shift_s=st.floats(0.001, 0.1),
    offset_s=st.floats(0, 1e5),
)
def test_words_are_those_of_the_text_in_order_of_time(
    text: str, lengths: list[tuple[int, int]], frame_shift_s: float, offset_s: float
) -> None:
    frames, t = [], 0
    for gap, length in lengths[: len(text)]:
        frames.append((t + gap, t + gap + length))
        t += gap + length
    found = words_of(spans(text, frames, [0.5] * len(text)), TOKENS, frame_shift_s, offset_s)
    assert [word.text for word in found] == text.split()
    times = [time_s for word in found for time_s in (word.start_s, word.end_s)]
    assert times == sorted(times)
    assert not times or offset_s <= times[0]


def test_words_of_an_alignment() -> None:
    path = TOKENS.encode("aa b")
    frames = [0, path[0], 0, path[1], path[1], path[2], 0, path[3], 0]
    log_probs = np.full((len(frames), len(TOKENS)), -9.0, np.float32)
    log_probs[np.arange(len(frames)), frames] = np.log(0.9)
    found = words_of(zip(path, ctc.align(log_probs, path), strict=True), TOKENS, 0.5)
    assert [(word.text, word.start_s, word.end_s) for word in found] == [("aa", 0.5, 2.5), ("b", 3.5, 4.0)]
    assert found[0].confidence == pytest.approx(0.9)


# Formats

HELLO = Transcript(
    'say "käse" now',
    (
        Word("say", 0.12, 0.4804999, 0.98123),
        Word('"käse"', 0.56, 0.92, float(np.float32(0.97))),
        Word("now", 1, 2, 1.0),
    ),
    2.41049,
    "digits",
)


def test_txt_is_the_text_and_a_line_end() -> None:
    assert transcript.WRITERS["txt"](HELLO) == 'say "käse" now\n'


def test_json_is_laid_out_as_documented() -> None:
    assert transcript.WRITERS["json"](HELLO) == (
        "{\n"
        '  "text": "say \\"käse\\" now",\n'
        '  "duration_s": 2.41,\n'
        '  "model": "digits",\n'
        '  "words": [\n'
        '    {"text": "say", "start_s": 0.12, "end_s": 0.48, "confidence": 0.981},\n'
        '    {"text": "\\"käse\\"", "start_s": 0.56, "end_s": 0.92, "confidence": 0.97},\n'
        '    {"text": "now", "start_s": 1.0, "end_s": 2.0, "confidence": 1.0}\n'
        "  ]\n"
        "}\n"
    )


def test_json_of_nothing_said() -> None:
    assert json.loads(Transcript("", (), 1.0, "m").to_json()) == {
        "text": "",
        "duration_s": 1.0,
        "model": "m",
        "words": [],
    }


def test_json_takes_numpy_numbers_and_refuses_nan() -> None:
    word = Word("a", np.float32(0.1), np.float64(0.2), np.float32(0.3))  # type: ignore[arg-type]
    row = json.loads(Transcript("a", (word,), np.float32(1.5), "m").to_json())  # type: ignore[arg-type]
    assert row["words"] == [{"text": "a", "start_s": 0.1, "end_s": 0.2, "confidence": 0.3}]
    with pytest.raises(ValueError, match="not JSON compliant"):
        Transcript("", (), float("nan"), "m").to_json()


# Files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_makes_one_file_with_unix_line_ends_and_usual_permissions(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "käse\nbrot\n")
    assert (tmp_path / "a.txt").read_bytes() == "käse\nbrot\n".encode()
    assert names(tmp_path) == ["a.txt"]
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_existing_file_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OutputError, match="exists already"):
        write(path, "new")
    assert path.read_text() == "old"
    write(path, "new", overwrite=True)
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_full_disk_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    path = tmp_path / "a.txt"
    if overwrite:
        path.write_text("old")
    before = names(tmp_path)
    seen: list[list[str]] = []

    def full(_: int) -> None:
        seen.append(names(tmp_path))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("asr.transcript.os.fsync", full)
    with pytest.raises(AsrError, match=r"a\.txt: cannot be written: No space left on device") as caught:
        write(path, "new", overwrite)
    assert "\n" not in str(caught.value)
    assert len(seen[0]) == len(before) + 1  # the partial file was in this folder, and is gone
    assert names(tmp_path) == before
    assert not overwrite or path.read_text() == "old"


def test_interrupt_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("asr.transcript.os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.txt", "new")
    assert names(tmp_path) == []


def test_folders_and_devices_are_not_replaced(tmp_path: Path) -> None:
    for path in (tmp_path, Path(), Path(os.devnull)):
        with pytest.raises(OutputError, match="got a folder or device"):
            write(path, "text", overwrite=True)
    assert names(tmp_path) == []


def test_missing_folder_or_file_in_place_of_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in ("missing", "file"):
        with pytest.raises(OutputError, match="cannot be written"):
            write(tmp_path / folder / "a.txt", "text")
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="Permission denied"):
            write(tmp_path / "a.txt", "text")
        assert names(tmp_path) == []
    finally:
        tmp_path.chmod(0o700)
