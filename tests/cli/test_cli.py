"""The commands as a user types them: what comes out, where, and with which exit status."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import DATA, Cli

from asr.models import find_model

DIGITS = DATA / "connected_digits.flac"


def one_line(text: str) -> str:
    """stderr, which must be a single line of ours."""
    assert text.startswith("asr: ")
    assert text.count("\n") == 1
    assert "Traceback" not in text
    return text


# --- transcribe ---


def test_transcribe_prints_text_only(cli: Cli) -> None:
    done = cli("transcribe", "-m", "digits", DIGITS)
    assert (done.returncode, done.stdout, done.stderr) == (0, "five seven nine zero\n", "")


def test_transcribe_greedy_agrees_on_clear_speech(cli: Cli) -> None:
    assert cli("transcribe", "-m", "digits", "--beam", 1, DIGITS).stdout == "five seven nine zero\n"


def test_transcribe_several_names_each(cli: Cli) -> None:
    done = cli("transcribe", "-m", "digits", DIGITS, DATA / "7_jackson_0.wav")
    assert done.stdout == f"{DIGITS}\tfive seven nine zero\n{DATA / '7_jackson_0.wav'}\tseven\n"


def test_transcribe_json_has_times_in_order(cli: Cli) -> None:
    transcript = json.loads(cli("transcribe", "-m", "digits", "--format", "json", DIGITS).stdout)
    words = transcript["words"]
    assert [word["text"] for word in words] == ["five", "seven", "nine", "zero"]
    edges = [time for word in words for time in (word["start_s"], word["end_s"])]
    assert edges == sorted(edges)
    assert 0 <= edges[0] < edges[-1] <= transcript["duration_s"]
    assert all(0 < word["confidence"] <= 1 for word in words)


def test_transcribe_to_folder_never_overwrites(cli: Cli, tmp_path: Path) -> None:
    assert cli("transcribe", "-m", "digits", DIGITS, "-o", "out/deep").returncode == 0
    written = tmp_path / "out/deep/connected_digits.txt"
    assert written.read_text() == "five seven nine zero\n"
    written.write_text("mine")
    again = cli("transcribe", "-m", "digits", DIGITS, "-o", "out/deep")
    assert again.returncode == 1
    assert "exists already" in one_line(again.stderr)
    assert written.read_text() == "mine"
    assert cli("transcribe", "-m", "digits", DIGITS, "-o", "out/deep", "--overwrite").returncode == 0
    assert written.read_text() == "five seven nine zero\n"


def test_transcribe_refuses_two_inputs_for_one_output(cli: Cli, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(DATA / "7_jackson_0.wav", tmp_path / folder / "same.wav")
    done = cli("transcribe", "-m", "digits", "a/same.wav", "b/same.wav", "-o", "out")
    assert done.returncode == 1
    assert "belongs to a/same.wav already" in done.stderr
    assert (tmp_path / "out/same.txt").read_text() == "seven\n"


def test_one_bad_file_stops_no_other(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    done = cli("transcribe", "-m", "digits", "empty.wav", DIGITS, "missing.wav")
    assert done.returncode == 1
    assert done.stdout == f"{DIGITS}\tfive seven nine zero\n"
    complaints = done.stderr.splitlines()
    assert "empty.wav" in complaints[0]
    assert "missing.wav" in complaints[1]
    assert complaints[2].startswith("1 of 3 recordings")
    assert complaints[2].endswith("2 failed, see above")


def test_a_pipe(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "asr", "transcribe", "-m", "digits", "-"]
    wav = tmp_path / "digits.wav"
    samples, rate = soundfile.read(DIGITS, dtype="int16")
    soundfile.write(wav, samples, rate, subtype="PCM_16")
    whole = subprocess.run(command, input=wav.read_bytes(), capture_output=True, check=True)
    assert whole.stdout == b"five seven nine zero\n"
    raw = subprocess.run([*command, "--rate", "16000"], input=samples.tobytes(), capture_output=True, check=True)
    assert raw.stdout == whole.stdout
    cut = subprocess.run(command, input=wav.read_bytes()[: len(samples)], capture_output=True, check=False)
    assert cut.returncode == 1
    assert cut.stdout == b"five seven\n"  # what came is not lost
    assert b"cut short" in cut.stderr
    nothing = subprocess.run(command, input=b"", capture_output=True, check=False)
    assert (nothing.returncode, nothing.stdout) == (1, b"")


def in_a_pipe(folder: Path, *arguments: str, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Without data, the pipe stays open and empty: who reads it waits until the test fails."""
    command = [sys.executable, "-m", "asr", "transcribe", "-m", "digits", "-", *arguments]
    reader, writer = os.pipe()
    source: dict[str, Any] = {"stdin": reader} if data is None else {"input": data}
    try:
        done: subprocess.CompletedProcess[bytes] = subprocess.run(
            command, cwd=folder, capture_output=True, timeout=20, check=False, **source
        )
        return done
    finally:
        os.close(reader)
        os.close(writer)


def test_a_pipe_is_not_read_for_nothing(tmp_path: Path) -> None:
    wav = (DATA / "7_jackson_0.wav").read_bytes()
    first = in_a_pipe(tmp_path, "-o", "out", "-f", "txt,srt", data=wav)
    assert (first.returncode, first.stdout, first.stderr) == (0, b"", b"")
    text = tmp_path / "out/stdin.txt"
    assert text.read_text() == "seven\n"
    text.write_text("mine")
    refused = in_a_pipe(tmp_path, "-o", "out")
    assert refused.returncode == 1
    assert b"out/stdin.txt exists already" in refused.stderr
    assert in_a_pipe(tmp_path, "-o", "out", "-f", "txt,srt", "--skip-existing").returncode == 0
    assert text.read_text() == "mine"
    assert in_a_pipe(tmp_path, "-o", "out", "--overwrite", data=wav).returncode == 0
    assert text.read_text() == "seven\n"
    (tmp_path / "out/stdin.srt").unlink()
    assert in_a_pipe(tmp_path, "-o", "out", "-f", "txt,srt", "--skip-existing", data=wav).returncode == 0
    assert (tmp_path / "out/stdin.srt").exists()


def test_a_pipe_verbose(tmp_path: Path) -> None:
    done = in_a_pipe(tmp_path, "-v", data=(DATA / "7_jackson_0.wav").read_bytes())
    assert done.stdout == b"seven\n"
    model, recording = done.stderr.decode().splitlines()
    assert model.startswith("model digits, /")
    assert re.fullmatch(r"stdin: 0\.4\d s of audio, 1 word, in \d+\.\d\d s, \d+ x real time", recording)


def test_silence_is_empty_text(cli: Cli, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silence.wav", np.zeros(16000), 16000)
    done = cli("transcribe", "-m", "digits", "silence.wav")
    assert (done.returncode, done.stdout) == (0, "\n")


@pytest.mark.parametrize("count", [1, 100, 399, 400, 1000])
def test_shorter_than_a_frame(cli: Cli, tmp_path: Path, count: int) -> None:
    soundfile.write(tmp_path / "short.wav", np.full(count, 0.1), 16000)
    done = cli("transcribe", "-m", "digits", "short.wav")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nosuch", "expected a model file (.onnx) or one of the names digits, english; got no such file"),
        (".", "got a folder"),
        ("text.onnx", "expected a model (ONNX) written by asr export"),
        ("bare.onnx", "without its metadata"),
        ("newer.onnx", "model schema 99, this version knows 4; update the package"),
        ("rate.onnx", "has a sample rate of 8000"),
        ("cut.onnx", "expected a model (ONNX)"),
        ("encoding.onnx", "expected metadata in UTF-8, got other bytes"),
    ],
)
def test_bad_models(cli: Cli, tmp_path: Path, model: str, message: str) -> None:
    import onnx

    from asr.models import find_model

    source = find_model("digits")
    (tmp_path / "text.onnx").write_text("not a model")
    (tmp_path / "cut.onnx").write_bytes(source.read_bytes()[:100_000])
    (tmp_path / "encoding.onnx").write_bytes(source.read_bytes().replace(b"Free Spoken", b"Free\xffSpoken"))
    graph = onnx.load(source)
    card = json.loads(graph.metadata_props[0].value)
    for name, change in (("newer", {"schema": 99}), ("rate", {"sample_rate": 8000})):
        onnx.helper.set_model_props(graph, {"asr": json.dumps(card | change)})
        onnx.save(graph, tmp_path / f"{name}.onnx")
    del graph.metadata_props[:]
    onnx.save(graph, tmp_path / "bare.onnx")
    done = cli("transcribe", "-m", model, DIGITS)
    assert done.returncode == 1
    assert message in one_line(done.stderr)


def test_wrong_usage_exits_2(cli: Cli) -> None:
    assert cli("transcribe").returncode == 2
    assert cli("transcribe", "-m", "digits", "--format", "docx", DIGITS).returncode == 2
    assert cli("transcribe", "-m", "digits", "--beam", "0", DIGITS).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-q", "-v", DIGITS], "opposite"),
        (["--overwrite", "--skip-existing", "-o", "out", DIGITS], "opposite"),
        (["--overwrite", DIGITS], "without -o DIR"),
        (["--skip-existing", DIGITS], "without -o DIR"),
        (["--rate", 8000, DIGITS], "raw samples from a pipe"),
        (["-", DIGITS], "stands alone"),
        (["-j", 2, "-"], "a pipe is one recording"),
        (["-r", "-"], "a pipe is one recording"),
    ],
    ids=str,
)
def test_nothing_is_ignored_in_silence(cli: Cli, tmp_path: Path, arguments: list[object], message: str) -> None:
    done = cli("transcribe", "-m", "digits", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in " ".join(done.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_a_closed_pipe_is_no_traceback() -> None:
    command = f"{sys.executable} -m asr transcribe -m digits {DIGITS} {DIGITS} {DIGITS} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (f"transcribe -m digits {DIGITS} {DIGITS.with_name('7_jackson_0.wav')} >&-", "standard output: is closed"),
        ("info digits >&-", "standard output: is closed"),
        ("transcribe -m digits - <&-", "standard input: expected audio, got a closed pipe"),
        ("--version > /dev/full", "standard output: cannot be written: No space left on device"),
        ("lm train --help > /dev/full", "standard output: cannot be written: No space left on device"),
        (
            f"summary {DATA.parent.parent}/recipes/fsdd/config.yaml > /dev/full",
            "standard output: cannot be written: No space left on device",
        ),
    ],
)
def test_closed_streams(arguments: str, complaint: str) -> None:
    command = f"{sys.executable} -m asr {arguments}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert complaint in one_line(done.stderr)


def test_closed_stdout_is_not_needed_for_files(tmp_path: Path) -> None:
    command = f"{sys.executable} -m asr transcribe -m digits {DIGITS} -o out >&- 2>&-"
    assert subprocess.run(["bash", "-c", command], cwd=tmp_path, check=False).returncode == 0
    assert (tmp_path / "out/connected_digits.txt").read_text() == "five seven nine zero\n"


def test_a_name_with_newline_stays_one_line(cli: Cli) -> None:
    done = cli("transcribe", "-m", "digits", "no\nsuch.wav")
    assert "no such.wav" in one_line(done.stderr)


# --- evaluate ---


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    rows = [
        {"audio_filepath": str(DIGITS), "duration": 4.500563, "text": "Five seven, nine ONE", "speaker": "george"},
        {"audio_filepath": str(DATA / "7_jackson_0.wav"), "duration": 0.4, "text": "seven", "speaker": "jackson"},
    ]
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_evaluate_counts_errors(cli: Cli, manifest: Path) -> None:
    done = cli("evaluate", "digits", manifest)
    assert done.returncode == 0
    assert "20.00 %" in done.stdout  # one of five words, after normalising the reference
    assert "one -> zero" in done.stdout


def test_evaluate_json_and_hypotheses(cli: Cli, manifest: Path, tmp_path: Path) -> None:
    done = cli("evaluate", "digits", manifest, "--json", "-o", "hypotheses.jsonl")
    report = json.loads(done.stdout)
    assert report["wer"] == pytest.approx(0.2)
    assert report["failed"] == []
    rows = [json.loads(line) for line in (tmp_path / "hypotheses.jsonl").read_text().splitlines()]
    assert rows[0]["reference"] == "five seven nine one"
    assert rows[0]["hypothesis"] == "five seven nine zero"


def test_evaluate_refuses_before_the_work(cli: Cli, manifest: Path, tmp_path: Path) -> None:
    hypotheses = tmp_path / "hypotheses.jsonl"
    hypotheses.write_text("mine")
    with manifest.open("a") as file:  # whose complaint would show that the work was begun
        file.write('{"audio_filepath": "gone.wav", "duration": 1, "text": "one"}\n')
    done = cli("evaluate", "digits", manifest, "-o", hypotheses)
    assert (done.returncode, done.stdout) == (1, "")
    assert "exists already; use --overwrite" in one_line(done.stderr)
    assert hypotheses.read_text() == "mine"
    bundled = find_model("digits")
    refused = cli("evaluate", "digits", manifest, "-o", bundled, "--overwrite")
    assert refused.stderr == f"asr: {bundled}: comes with the package and stays as it is; write a copy with -o FILE\n"
    assert "20.00 %" in cli("evaluate", "digits", manifest, "-o", hypotheses, "--overwrite").stdout
    assert len(hypotheses.read_text().splitlines()) == 2


def test_evaluate_reports_before_it_writes(cli: Cli, manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    done = cli("evaluate", "digits", manifest, "-o", "folder", "--overwrite")
    assert done.returncode == 1
    assert "20.00 %" in done.stdout
    assert "asr: folder: expected the name of a file to write" in done.stderr


def test_evaluate_counts_what_failed(cli: Cli, manifest: Path) -> None:
    with manifest.open("a") as file:
        file.write('{"audio_filepath": "gone.wav", "duration": 1, "text": "one"}\n')
    done = cli("evaluate", "digits", manifest)
    assert done.returncode == 1
    assert "gone.wav: no such file" in done.stderr
    assert "1 of 3 utterances failed, see above; the figures are of the others" in done.stderr


def test_evaluate_missing_manifest(cli: Cli) -> None:
    done = cli("evaluate", "digits", "nosuch.jsonl")
    assert done.returncode == 1
    assert "no such manifest" in one_line(done.stderr)


# --- info, and models by run folder ---

OPTIONAL = ["config", "description", "licence", "normaliser", "precision", "training", "figures", "version"]


@pytest.mark.parametrize(
    ("change", "shown", "hidden"),
    [
        (
            {},
            [
                "network         2 x 128 lstm, both directions\n",
                "licence         CC BY-SA",
                "dev WER         0.56%\n",
                "parameters      845,841\n",
                "trained by asr  0.1.0\n",
                "written by      asr 0.1.0, schema 2\n",
            ],
            [],
        ),
        (dict.fromkeys(OPTIONAL), ["name        digits", "written by  schema 2"], ["None", "licence", "network"]),
        ({"config": {"features": {"kind": "mfcc"}}, "training": 3}, ["name        digits"], ["mfcc", "None"]),
        (
            {"figures": {"WER on a": {"int8": 0.12345, "float32": 0.5}, "CER": 0.25, "note": "good"}},
            ["WER on a        int8 12.35%, float32 50.00%\n", "CER             25.00%\n", "note            good\n"],
            [],
        ),
        ({"description": "a\nb\x1b[2J"}, ["trained on      a b\\x1b[2J\n"], ["\x1b"]),
    ],
    ids=["whole", "without", "in part", "figures", "hostile"],
)
def test_info_shows_what_there_is(
    cli: Cli, tmp_path: Path, change: dict[str, object], shown: list[str], hidden: list[str]
) -> None:
    import onnx

    from asr.models import find_model

    graph = onnx.load(find_model("digits"))
    card = json.loads(graph.metadata_props[0].value) | change
    card = {key: value for key, value in card.items() if value is not None}
    onnx.helper.set_model_props(graph, {"asr": json.dumps(card)})
    onnx.save(graph, tmp_path / "m.onnx")
    done = cli("info", "m.onnx")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(text in done.stdout for text in shown)
    assert not any(text in done.stdout for text in hidden)
    assert json.loads(cli("info", "m.onnx", "--json").stdout) == card


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose model has been exported already."""
    from asr.models import find_model

    folder = tmp_path / "runs/mine"
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    (folder / "model.safetensors").touch()
    shutil.copy(find_model("digits"), folder / "model.onnx")
    return folder


def test_a_run_folder_is_a_model(cli: Cli, run: Path, manifest: Path) -> None:
    assert cli("transcribe", "-m", run, DIGITS).stdout == "five seven nine zero\n"
    assert f"{run / 'model.onnx'} (" in cli("info", run).stdout
    assert "20.00 %" in cli("evaluate", run, manifest).stdout


def test_a_run_folder_without_a_model(cli: Cli, run: Path) -> None:
    for name in ("model.onnx", "model.safetensors"):
        (run / name).unlink()
    done = cli("transcribe", "-m", run, DIGITS)
    assert (done.returncode, done.stdout) == (1, "")
    assert "holds no finished model; finish its training with --resume first" in one_line(done.stderr)


def test_a_folder_called_as_a_model_does_not_hide_it(cli: Cli, run: Path, tmp_path: Path) -> None:
    (run / "model.onnx").write_text("not a model")
    run.rename(tmp_path / "digits")
    assert cli("transcribe", "-m", "digits", DIGITS).stdout == "five seven nine zero\n"


# --- doctor, summary, train ---


def test_doctor_finds_faults(cli: Cli, manifest: Path) -> None:
    assert cli("doctor", manifest).returncode == 0
    with manifest.open("a") as file:
        file.write('{"audio_filepath": "gone.wav", "duration": 1, "text": "one ж"}\n')
    done = cli("doctor", manifest, "--json")
    assert done.returncode == 1
    kinds = {finding["kind"] for finding in json.loads(done.stdout)["findings"] if finding["level"] == "error"}
    assert kinds == {"missing audio", "text outside alphabet"}


CONFIG = "name: small\ndata: {train: train.jsonl, dev: dev.jsonl}\n"


def test_summary_counts_parameters(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    done = cli("summary", "config.yaml", "network.layers=1", "network.hidden=64", "network.subsampling=1")
    assert done.returncode == 0
    lstm = 2 * 4 * 64 * (80 + 64 + 2) + 2 * 80  # both directions, and the layer norm before them
    assert f"{lstm:,}" in done.stdout
    assert "one frame each 10 ms; its convolutions see 25 ms" in " ".join(done.stdout.split())
    (tmp_path / "config.yaml").write_text(CONFIG + "pronunciation: {dictionary: none.dict}\n")
    done = cli("summary", "config.yaml")
    assert (done.returncode, done.stdout) == (1, "")
    assert "pronunciation.dictionary: " in one_line(done.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["network.hiden=64"], "unknown setting 'network.hiden': did you mean 'hidden'?"),
        (["network.dropout=1.5"], "network.dropout: expected a value < 1, got 1.5"),
        (["network.cell=lsmt"], "network.cell: expected 'rnn_tanh', 'rnn_relu', 'gru' or 'lstm', got 'lsmt'"),
        (["epochs"], "expected an override such as network.hidden=256, got 'epochs'"),
        ([], "no such manifest"),
    ],
)
def test_train_explains_bad_settings(cli: Cli, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    done = cli("train", "config.yaml", *arguments)
    assert done.returncode == 1
    assert message in one_line(done.stderr)


def test_missing_extra_names_the_remedy() -> None:
    script = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['asr', 'summary', 'x']; import asr.cli; asr.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "in a clone of this project: pip install '.[train]'" in one_line(done.stderr)


@pytest.mark.parametrize("command", ["transcribe", "train", "evaluate", "export", "info", "doctor", "summary"])
def test_help_has_an_example(cli: Cli, command: str) -> None:
    done = cli(command, "--help")
    assert done.returncode == 0
    assert re.search(f"Examples?:\n    asr {command}", done.stdout)


def commands(group: Any) -> Iterator[tuple[str, list[str]]]:
    """Every command of a group, and of the groups in it."""
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if hasattr(command, "commands"):
            yield from ((name, [inner, *more]) for inner, more in commands(command))
        else:
            yield name, []


def test_help_fits_80_columns_and_any_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every command, in one process."""
    from click.testing import CliRunner

    from asr.cli import app

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    names = [[name, *more] for name, more in commands(app)]
    assert ["transcribe"] in names
    assert ["lm", "train"] in names
    for name in names:
        shown = CliRunner().invoke(app, [*name, "--help"]).output
        assert "Usage: " in shown
        assert "…" not in shown, name  # where a word is cut
        assert max(map(len, shown.splitlines())) <= 80, name  # nor is an example


def test_help_in_ascii(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = cli("transcribe", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Print the text of recordings" in done.stdout


def test_version(cli: Cli) -> None:
    import asr

    assert cli("--version").stdout == f"asr {asr.__version__}\n"


def test_models(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASR_MODELS", str(tmp_path / "own"))
    (tmp_path / "own").mkdir()
    (tmp_path / "own/mine.onnx").write_text("no model")
    done = cli("models")
    assert done.returncode == 0
    names = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert [line.split(": ")[0] for line in names] == ["digits", "english, the default", "mine"]
    assert "MB, language model " in names[1]
    assert "    CC BY-SA 4.0\n" in done.stdout
    assert names[2] == f"mine: 0.0 MB; {tmp_path / 'own/mine.onnx'}"
    assert "    cannot be read: " in done.stdout


def test_completion(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "complete -o nosort -F _asr_completion asr" in cli("--show-completion", "bash").stdout
    for name, value in {"_ASR_COMPLETE": "bash_complete", "COMP_WORDS": "asr tr", "COMP_CWORD": "1"}.items():
        monkeypatch.setenv(name, value)
    assert cli().stdout.split() == ["plain,transcribe", "plain,train"]
    monkeypatch.setenv("COMP_WORDS", "asr transcribe ta")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert cli().stdout == "file,ta\n"  # which the shell completes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["transcrbe"], "No such command 'transcrbe'; did you mean 'transcribe'?"),
        (["lm", "trian"], "No such command 'trian'; did you mean 'train'?"),
        (["transcribe", "a.wav", "--reject", "inf"], "'inf' is not a number."),
        (["transcribe", "a.wav", "--rate", "fast"], "'fast' is not a valid whole number."),
        (["transcribe", "a.wav", "--threads", "100000"], "100000 is not in the range 1<=x<=256."),
        (["transcribe", ""], "expected names of recordings, got an empty one"),
        (["transcribe", "-", "--rate", "1"], "1 is not in the range 1000<=x<=1000000."),
        (["live", "--chunk", "0"], "0.0 is not in the range 0.02<=x<=30."),
        (["live", "--right-context", "-1"], "-1.0 is not in the range 0<=x<=30."),
        (["transcribe", "a.wav", "-f", "txt", "-f", "srt"], "'--format' / '-f': takes one value, got txt and srt."),
        (["transcribe", "a.wav", "--beam", "1", "--lm", "a.lm"], "1 is greedy; with a language model expected 16"),
        (
            ["tune", "digits", "dev.jsonl", "--beam", "1", "--lm", "a.lm"],
            "1 is greedy; with a language model expected 16",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_usage_is_told_with_what_would_be_right(cli: Cli, arguments: list[str], message: str) -> None:
    done = cli(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_one_value_given_twice_is_one(cli: Cli) -> None:
    assert cli("transcribe", "-m", "digits", "-q", "-q", "-m", "digits", DIGITS).stdout == "five seven nine zero\n"


def test_help_tells_no_range_where_there_is_none(cli: Cli) -> None:
    assert "None" not in cli("transcribe", "--help").stdout


def test_ctrl_c_before_a_command_works_is_one_line() -> None:
    """Whatever it is at then, such as the command's imports."""
    script = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); import asr.cli\n"
        "sys.argv = ['asr', 'transcribe', '--help']\n"
        "asr.cli.app.get_command = lambda *_: os.kill(os.getpid(), signal.SIGINT)\n"
        "asr.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "asr: interrupted")
