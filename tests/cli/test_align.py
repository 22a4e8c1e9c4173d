"""asr align: the times of a text that is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import DATA, Cli

from asr import Recognizer

DIGITS = DATA / "connected_digits.flac"


def test_words_are_where_they_are_heard(cli: Cli, tmp_path: Path) -> None:
    heard = Recognizer("digits").transcribe(DIGITS).words
    (tmp_path / "text.txt").write_text("Five,\n7 nine-zero!\n")
    done = cli("align", "-m", "digits", DIGITS, "text.txt", "-f", "json")
    assert (done.returncode, done.stderr) == (0, "")
    words = json.loads(done.stdout)["words"]
    assert [word["text"] for word in words] == ["Five,", "7", "nine-zero!"]  # as they are written
    starts = [heard[0].start_s, heard[1].start_s, heard[2].start_s]
    assert [word["start_s"] for word in words] == pytest.approx(starts, abs=0.021)
    assert words[2]["end_s"] == pytest.approx(heard[3].end_s, abs=0.021)
    assert all(0.5 < word["confidence"] <= 1 for word in words)


def test_a_text_that_is_not_what_the_decoder_hears_gets_its_times_too(cli: Cli, tmp_path: Path) -> None:
    done = cli("align", "-m", "digits", DIGITS, "five six nine zero", "-o", "out/talk.TextGrid")
    assert (done.returncode, done.stdout) == (0, "")
    assert 'text = "six"' in (tmp_path / "out/talk.TextGrid").read_text()
    again = cli("align", "-m", "digits", DIGITS, "five", "-o", "out/talk.TextGrid")
    assert again.returncode == 1
    assert "exists already; use --overwrite" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([DIGITS, "hello"], "character 'l' at position 2 of 'hello' is not in the alphabet"),
        ([DIGITS, "?!"], "expected a text to align, got '?!', of which normalising leaves nothing"),
        ([DATA / "7_jackson_0.wav", "seven " * 9], "the text is too long for the audio"),
        ([DIGITS, "none.txt"], "none.txt: no such text"),
        (["none.wav", "seven"], "none.wav: no such file"),
    ],
)
def test_what_cannot_be_aligned(cli: Cli, arguments: list[object], message: str) -> None:
    done = cli("align", "-m", "digits", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
