"""Many recordings: what is found, what is planned, and that processes change nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import DATA, Cli

from asr import batch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Recordings side by side and in a folder within, a text among them, and a loop of links."""
    root = tmp_path / "recordings"
    (root / "inner").mkdir(parents=True)
    shutil.copy(DATA / "7_jackson_0.wav", root / "b.wav")
    shutil.copy(DATA / "3_nicolas_0.wav", root / "a.WAV")
    shutil.copy(DATA / "connected_digits.flac", root / "inner" / "c.flac")
    (root / "notes.txt").write_text("not audio")
    (root / "inner" / "loop").symlink_to(root)
    return root


def test_find_in_folders(folder: Path) -> None:
    flat, _ = batch.find([str(folder)])
    assert flat == {folder / "a.WAV": Path("a"), folder / "b.wav": Path("b")}
    deep, _ = batch.find([str(folder)], recursive=True)
    assert deep == flat | {folder / "inner/c.flac": Path("inner/c")}


def test_find_patterns_and_files(folder: Path) -> None:
    found, errors = batch.find([str(folder / "*.wav"), str(folder / "b.wav"), str(folder / "gone.wav")])
    assert list(found) == [
        folder / "b.wav",
        folder / "gone.wav",
    ]  # each once; the missing one is its reader's to report
    assert errors == []


def test_find_takes_brackets_of_a_real_name_literally(folder: Path) -> None:
    odd = folder / "talk [1].wav"
    shutil.copy(DATA / "7_jackson_0.wav", odd)
    assert list(batch.find([str(odd)])[0]) == [odd]


@pytest.mark.parametrize("name", ["inner/loop/none", "*.mp3", "empty"])
def test_find_reports_nothing_found(folder: Path, name: str) -> None:
    (folder / "empty").mkdir()
    found, errors = batch.find([str(folder / "b.wav"), str(folder / name)])
    if name == "inner/loop/none":  # a plain missing file
        assert errors == []
    else:
        assert [folder / "b.wav"] == list(found)
        assert len(errors) == 1
        assert "found none" in str(errors[0])


def test_plan(folder: Path, tmp_path: Path) -> None:
    recordings = {
        Path("x/a.wav"): Path("a"),
        Path("y/a.wav"): Path("a"),
        Path("b.wav"): Path("b"),
        Path("c.wav"): Path("c"),
    }
    out = tmp_path / "out"
    out.mkdir()
    (out / "b.txt").touch()
    (out / "b.srt").touch()
    (out / "c.txt").touch()
    formats = ["txt", "srt"]
    jobs, skipped, errors = batch.plan(recordings, out, formats, overwrite=False, skip_existing=False)
    assert [job.path for job in jobs] == [Path("x/a.wav")]
    assert jobs[0].outputs == {"txt": out / "a.txt", "srt": out / "a.srt"}
    assert skipped == []
    assert [str(error).split(":")[0] for error in errors] == ["y/a.wav", "b.wav", "c.wav"]
    jobs, skipped, _ = batch.plan(recordings, out, formats, overwrite=False, skip_existing=True)
    assert [job.path for job in jobs] == [Path("x/a.wav"), Path("c.wav")]  # half done is not done
    assert skipped == [Path("b.wav")]
    jobs, _, errors = batch.plan(recordings, out, formats, overwrite=True, skip_existing=False)
    assert len(jobs) == 3
    assert len(errors) == 1


def test_processes_change_nothing(folder: Path) -> None:
    (folder / "broken.wav").write_text("no audio")
    paths = [folder / "a.WAV", folder / "broken.wav", folder / "b.wav", folder / "inner/c.flac"]
    alone = list(batch.transcribe(paths, "digits", beam=16, jobs=1))
    together = list(batch.transcribe(paths, "digits", beam=16, jobs=2))
    assert [getattr(result, "text", str(result)) for result in alone] == [
        getattr(result, "text", str(result)) for result in together
    ]
    assert [type(result) for result in alone] == [type(result) for result in together]


def test_command_on_a_folder(cli: Cli, folder: Path, tmp_path: Path) -> None:
    done = cli("transcribe", "-r", folder, "-f", "txt,srt,json", "-o", "texts")
    assert done.returncode == 0
    assert done.stdout == ""
    assert "3 of 3 recordings" in done.stderr
    written = sorted(str(path.relative_to(tmp_path / "texts")) for path in (tmp_path / "texts").rglob("*.*"))
    names = ("a", "b", "inner/c")
    assert written == sorted(f"{name}.{kind}" for name in names for kind in ("txt", "srt", "json"))
    assert (tmp_path / "texts/inner/c.txt").read_text() == "five seven nine zero\n"

    (tmp_path / "texts/b.srt").unlink()  # as if interrupted
    again = cli("transcribe", "-r", folder, "-f", "txt,srt,json", "-o", "texts", "--skip-existing")
    assert again.returncode == 0
    assert "1 of 3 recordings" in again.stderr
    assert "2 skipped" in again.stderr
    assert (tmp_path / "texts/b.srt").exists()


def test_quiet(cli: Cli, folder: Path) -> None:
    done = cli("transcribe", "-q", folder)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [f"{folder / 'a.WAV'}\tthree", f"{folder / 'b.wav'}\tseven"]


def test_several_formats_need_a_folder(cli: Cli, folder: Path) -> None:
    done = cli("transcribe", folder, "-f", "txt,srt")
    assert done.returncode == 2
    assert "-o DIR" in done.stderr
