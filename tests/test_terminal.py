"""Commands as a person meets them: in a terminal of 80 or 120 columns, into a file or a pipe, with Ctrl-C in the middle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import screen
import soundfile
from conftest import DATA

DIGITS, SEVEN = DATA / "connected_digits.flac", DATA / "7_jackson_0.wav"


@pytest.mark.parametrize("options", [[], ["-q"], ["-v"], ["--beam", "1"]])
def test_text_of_one_recording(tmp_path: Path, options: list[str]) -> None:
    seen = screen.run(["transcribe", "-m", "digits", *options, DIGITS], tmp_path)
    assert seen.status == 0
    assert "five seven nine zero" in seen.lines


@pytest.mark.parametrize("redirect", ["> out.txt", "| cat > out.txt"])
def test_text_beside_a_terminal(tmp_path: Path, redirect: str) -> None:
    seen = screen.run(["transcribe", "-m", "digits", DIGITS], tmp_path, redirect=redirect)
    assert (seen.status, seen.text) == (0, "")
    assert (tmp_path / "out.txt").read_text() == "five seven nine zero\n"


@pytest.mark.parametrize("columns", [80, 120])
def test_texts_of_several_stand_above_the_bar(tmp_path: Path, columns: int) -> None:
    for number in range(3):
        (tmp_path / f"{number}.flac").symlink_to(DIGITS)
    (tmp_path / "none.wav").touch()
    files = ["0.flac", "1.flac", "none.wav", "2.flac"]
    seen = screen.run(["transcribe", "-m", "digits", "-j", 1, *files], tmp_path, columns=columns)
    assert seen.status == 1
    assert seen.cursor
    assert [line for line in seen.lines if ".flac" in line] == [f"{n}.flac  five seven nine zero" for n in range(3)]
    assert not any("━" in line for line in seen.lines)  # the bar is gone
    assert seen.lines[-1].startswith("3 of 4 recordings")
    assert sum(line.startswith("asr: none.wav") for line in seen.lines) == 1


def test_tune_prints_its_figures(tmp_path: Path) -> None:
    manifest = tmp_path / "dev.jsonl"
    row = {"audio_filepath": str(DIGITS), "duration": soundfile.info(DIGITS).duration, "text": "five seven nine zero"}
    manifest.write_text(json.dumps(row) + "\n")
    seen = screen.run(["tune", "digits", manifest, "--dry-run"], tmp_path)
    assert seen.status == 0
    assert "greedy: WER 0.00%, CER 0.00%" in seen.lines
    assert "beam: WER 0.00%, CER 0.00%" in seen.lines
