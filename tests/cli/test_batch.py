"""Many recordings: what is found, what is planned, and that processes change nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
from conftest import DATA, Cli

from asr import audio
from asr.cli import batch
from asr.errors import AsrError


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
    flat, _, _ = batch.find([str(folder)])
    assert flat == {folder / "a.WAV": Path("a"), folder / "b.wav": Path("b")}
    deep, _, _ = batch.find([str(folder)], recursive=True)
    assert deep == flat | {folder / "inner/c.flac": Path("inner/c")}


def test_find_patterns_and_files(folder: Path) -> None:
    found, errors, _ = batch.find([str(folder / "*.wav"), str(folder / "b.wav"), str(folder / "gone.wav")])
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
    found, errors, _ = batch.find([str(folder / "b.wav"), str(folder / name)])
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
    assert [str(error) for error in errors] == [
        f"y/a.wav: its output {out / 'a.txt'} belongs to x/a.wav already; rename one of them",
        f"{out}: has outputs of 2 of 4 recordings already; use --overwrite or --skip-existing",
    ]
    jobs, skipped, _ = batch.plan(recordings, out, formats, overwrite=False, skip_existing=True)
    assert [job.path for job in jobs] == [Path("x/a.wav"), Path("c.wav")]  # half done is not done
    assert skipped == [Path("b.wav")]
    jobs, _, errors = batch.plan(recordings, out, formats, overwrite=True, skip_existing=False)
    assert len(jobs) == 3
    assert len(errors) == 1


def test_recordings_of_one_name_keep_their_suffix(tmp_path: Path) -> None:
    for name in ("memo.flac", "memo.m4a", "talk.wav"):
        (tmp_path / name).touch()
    found, _, _ = batch.find([str(tmp_path), "elsewhere/talk.wav"])
    assert [str(name) for name in found.values()] == ["memo.flac", "memo.m4a", "talk", "talk"]
    jobs, _, errors = batch.plan(found, tmp_path / "out", ["txt"], overwrite=False, skip_existing=False)
    assert [job.outputs["txt"].name for job in jobs] == ["memo.flac.txt", "memo.m4a.txt", "talk.txt"]
    assert len(errors) == 1  # which no suffix tells apart


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_part_the_recordings_whatever_their_order(count: int) -> None:
    names = [Path(name) for name in ("d.wav", "a.wav", "c.wav", "b.wav", "e.wav")]
    recordings = {Path("in", name): name.with_suffix("") for name in names}
    turned = dict(reversed(recordings.items()))
    shards = [batch.of_shard(recordings, (number, count), written=True) for number in range(1, count + 1)]
    assert [path for shard in shards for path in sorted(shard)] == [
        Path("in", name) for number in range(count) for name in sorted(names)[number::count]
    ]
    assert shards[-1] == batch.of_shard(turned, (count, count), written=True)


def test_two_recordings_of_one_output_meet_in_one_shard() -> None:
    recordings = {Path("x/a.wav"): Path("a"), Path("x/b.wav"): Path("b"), Path("y/a.wav"): Path("a")}
    assert batch.of_shard(recordings, (1, 2), written=True) == {Path("x/a.wav"): Path("a"), Path("y/a.wav"): Path("a")}
    assert [*batch.of_shard(recordings, (2, 2), written=False)] == [Path("x/b.wav")]


def test_command_in_shards(cli: Cli, folder: Path, tmp_path: Path) -> None:
    first = cli("transcribe", "-m", "digits", folder, "-o", "texts", "--shard", "1/2")
    assert first.returncode == 0
    assert [path.name for path in (tmp_path / "texts").iterdir()] == ["a.txt"]
    alone = cli("transcribe", "-m", "digits", folder, "--shard", "2/2")
    assert alone.stdout == f"{folder / 'b.wav'}\tseven\n"  # named, for the outputs of all shards together
    none = cli("transcribe", "-m", "digits", folder, "-o", "texts", "--shard", "3/3", "--skip-existing")
    assert (none.returncode, none.stderr.splitlines()[0]) == (0, "--shard 3/3: has none of the 2 recordings")
    wrong = cli("transcribe", "-m", "digits", folder, "--shard", "3/2")
    assert wrong.returncode == 2
    assert "1/16 to 16/16, got 3/2" in " ".join(wrong.stderr.split())


def test_processes_change_nothing(folder: Path) -> None:
    (folder / "broken.wav").write_text("no audio")
    paths = [folder / "a.WAV", folder / "broken.wav", folder / "b.wav", folder / "inner/c.flac"]
    alone = [attempt.result for attempt in batch.transcribe(paths, "digits", beam=16, jobs=1)]
    together = [attempt.result for attempt in batch.transcribe(paths, "digits", beam=16, jobs=2)]
    assert [getattr(result, "text", str(result)) for result in alone] == [
        getattr(result, "text", str(result)) for result in together
    ]
    assert [type(result) for result in alone] == [type(result) for result in together]


def test_command_on_a_folder(cli: Cli, folder: Path, tmp_path: Path) -> None:
    done = cli("transcribe", "-m", "digits", "-r", folder, "-f", "txt,srt,json", "-o", "texts")
    assert done.returncode == 0
    assert done.stdout == ""
    assert "3 of 3 recordings" in done.stderr
    written = sorted(str(path.relative_to(tmp_path / "texts")) for path in (tmp_path / "texts").rglob("*.*"))
    names = ("a", "b", "inner/c")
    assert written == sorted(f"{name}.{kind}" for name in names for kind in ("txt", "srt", "json"))
    assert (tmp_path / "texts/inner/c.txt").read_text() == "five seven nine zero\n"

    (tmp_path / "texts/b.srt").unlink()  # as if interrupted
    again = cli("transcribe", "-m", "digits", "-r", folder, "-f", "txt,srt,json", "-o", "texts", "--skip-existing")
    assert again.returncode == 0
    assert "1 of 3 recordings" in again.stderr
    assert "2 skipped" in again.stderr
    assert (tmp_path / "texts/b.srt").exists()
    finished = cli("transcribe", "-m", "digits", "-r", folder, "-f", "txt,srt,json", "-o", "texts", "--skip-existing")
    assert finished.returncode == 0
    passed_over, told = finished.stderr.splitlines()
    assert passed_over.startswith("passed over, as no recordings: ")
    assert told == "texts: has the texts of all 3 recordings already; --overwrite makes them again"
    unasked = cli("transcribe", "-m", "digits", "-r", folder, "-f", "txt,srt,json", "-o", "texts")
    assert unasked.returncode == 1
    told = "asr: texts: has outputs of all 3 recordings already; use --overwrite or --skip-existing"
    assert told in unasked.stderr.splitlines()


def test_quiet(cli: Cli, folder: Path) -> None:
    done = cli("transcribe", "-m", "digits", "-q", folder)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [f"{folder / 'a.WAV'}\tthree", f"{folder / 'b.wav'}\tseven"]


def test_several_formats_need_a_folder(cli: Cli, folder: Path) -> None:
    done = cli("transcribe", "-m", "digits", folder, "-f", "txt,srt")
    assert done.returncode == 2
    assert "-o DIR" in done.stderr


@pytest.mark.parametrize("kind", ["json", "srt", "vtt", "tsv", "textgrid"])
def test_several_recordings_cannot_share_stdout(cli: Cli, folder: Path, kind: str) -> None:
    done = cli("transcribe", "-m", "digits", folder, "-f", kind)
    assert (done.returncode, done.stdout) == (2, "")
    assert "-o DIR" in done.stderr
    assert cli("transcribe", "-m", "digits", folder / "b.wav", "-f", kind).returncode == 0


def test_ctm_of_several_names_each(cli: Cli, folder: Path) -> None:
    lines = cli("transcribe", "-m", "digits", folder, "-f", "ctm").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["a", "b"]


# --- threads, verbose ---


@pytest.mark.parametrize(
    ("count", "jobs", "expected"),
    [(0, 8, (1, 1)), (1, 8, (1, 1)), (3, None, (1, 3)), (3, 2, (2, 2)), (9, None, (1, 6)), (9, 1, (1, 1))],
)
def test_processes(monkeypatch: pytest.MonkeyPatch, count: int, jobs: int | None, expected: tuple[int, int]) -> None:
    monkeypatch.setattr(batch, "cores", lambda: 6)
    assert batch.processes(count, jobs) == expected


def test_others_help_where_that_is_faster(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    assert not batch.is_faster(2, start_s=1.0, left_s=3.9)  # 2.95 s instead of 3.9
    assert batch.is_faster(2, start_s=1.0, left_s=4.1)
    assert not batch.is_faster(1, start_s=0.0, left_s=1000.0)
    monkeypatch.setattr(batch, "cores", lambda: 2)
    asked = Mock(return_value=False)
    monkeypatch.setattr(batch, "is_faster", asked)
    monkeypatch.setattr(batch, "_attempt", lambda recognizer, path, *_: batch.Attempt(AsrError(str(path)), 2.0))
    paths = [folder / "a.WAV", folder / "gone.wav", folder / "a.WAV", folder / "a.WAV"]
    assert len(list(batch.transcribe(paths, "digits", jobs=None))) == 4
    # Each recording of that length takes 2 s, and the one that is gone as long.
    assert [(call.args[0], call.args[2]) for call in asked.call_args_list] == [(2, 4.0), (2, 8.0)]


# Runs in each process of the command, before anything else, and tells with how many threads the network is loaded.
TELL_THREADS = """
import os
import onnxruntime
class Session(onnxruntime.InferenceSession):
    def __init__(self, model, options, **others):
        os.write(2, f"{options.intra_op_num_threads} threads\\n".encode())
        super().__init__(model, options, **others)
onnxruntime.InferenceSession = Session
"""


@pytest.mark.parametrize(
    ("arguments", "threads"),
    [
        (["-j", 1], [1]),
        (["-j", 1, "--threads", 3], [3]),
        (["-j", 2], [1, 1, 1]),
        (["-j", 2, "--threads", 3], [1, 3, 3]),
    ],
)
def test_threads(
    cli: Cli, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[object], threads: list[int]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(TELL_THREADS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    done = cli("transcribe", "-m", "digits", "-q", folder, *arguments)
    assert done.returncode == 0
    told = done.stderr.splitlines()
    assert told == [f"{count} threads" for count in threads[: len(told)]]
    assert len(told) >= min(2, len(threads))  # the second process may come too late to be of use


@pytest.mark.parametrize("jobs", [1, 2])
def test_verbose(cli: Cli, folder: Path, jobs: int) -> None:
    (folder / "c.wav").touch()
    done = cli("transcribe", "-m", "digits", "-v", "-j", jobs, folder)
    assert done.stdout == cli("transcribe", "-m", "digits", "-q", folder).stdout
    passed, model, first, second, broken, summary = done.stderr.splitlines()
    assert passed == f"passed over, as no recordings: {folder / 'notes.txt'}"
    assert model.startswith("model digits, /")
    assert model.endswith(f"digits.onnx, no language model, {jobs} process{'es' * (jobs > 1)}")
    for line, path in ((first, folder / "a.WAV"), (second, folder / "b.wav")):
        said, _, rest = line.partition(" s of audio, 1 word, in ")
        name, _, seconds = said.rpartition(": ")
        assert name == str(path)
        assert float(seconds) == pytest.approx(audio.info(path).duration_s, abs=0.005)
        taken, _, speed = rest.partition(" s, ")
        assert 0 <= float(taken) < 60
        assert int(speed.removesuffix(" x real time")) > 0
    assert broken.startswith(f"asr: {folder / 'c.wav'}: expected audio")
    assert summary.startswith("2 of 3 recordings")


# --- Ctrl-C ---


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("moment", ["starting", "transcribing"])
def test_ctrl_c(tmp_path: Path, jobs: int, moment: str) -> None:
    """As a terminal sends it: to all processes of the group at once."""
    (tmp_path / "talks").mkdir()
    for number in range(300):
        (tmp_path / f"talks/{number}.flac").symlink_to(DATA / "connected_digits.flac")
    command = [sys.executable, "-m", "asr", "transcribe", "-m", "digits", "talks", "-o", "out", "-j", str(jobs), "-v"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        told = process.stderr.readline()  # the processes are started after this line, which takes them half a second
        assert told.startswith("model digits")
        if moment == "starting":
            time.sleep(0.2)
        else:
            told = process.stderr.readline()
        os.killpg(process.pid, signal.SIGINT)
        *finished, complaint = process.stderr.read().splitlines()
    written = list((tmp_path / "out").glob("*"))  # whole files, and no parts of any
    assert complaint == "asr: interrupted" + "; --skip-existing goes on from here" * bool(written)
    assert process.returncode == 130
    assert all(" x real time" in line for line in finished)
    assert len(written) < 300
    assert moment == "starting" or written
    assert all(path.suffix == ".txt" and path.read_text() == "five seven nine zero\n" for path in written)


def test_who_wants_no_more_need_not_wait(tmp_path: Path) -> None:
    long = tmp_path / "long.wav"
    samples, rate = soundfile.read(DATA / "connected_digits.flac")
    soundfile.write(long, np.tile(samples, 400), rate)  # half an hour, which takes seconds
    results = batch.transcribe([DATA / "7_jackson_0.wav", long, long], "digits", beam=16, jobs=2)
    assert getattr(next(results).result, "text", "") == "seven"
    started = time.perf_counter()
    results.close()
    assert time.perf_counter() - started < 1
