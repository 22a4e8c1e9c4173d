"""Whatever is handed to `asr transcribe`: it works, or it is one line on stderr for each input that failed."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import soundfile
from conftest import DATA, Cli

from asr import audio
from asr.models import find_model

SEVEN, THREE, DIGITS = DATA / "7_jackson_0.wav", DATA / "3_nicolas_0.wav", DATA / "connected_digits.flac"

# The content of a file: its bytes, a file to copy, where it links to, or what makes it.
Content = bytes | Path | str | Callable[[Path], object]


class Case(NamedTuple):
    """An input, and all that the command does with it. Expected text is a pattern, in which * stands for anything.

    files:      name -> content, in the folder in which the command runs.
    complaints: the lines on stderr in their order, each without the "asr: " that it starts with.
    written:    name -> text of all files in the folder `out`.
    """

    files: dict[str, Content]
    arguments: list[object]
    status: int
    complaints: list[str]
    text: str = ""
    written: Mapping[str, str] = MappingProxyType({})


def wav(samples: np.ndarray, rate: int = 16_000, **options: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", **options)
    return file.getvalue()


SPEECH = audio.read(DIGITS)


def with_sample(value: float) -> bytes:
    return wav(np.append(SPEECH, np.float32(value)), subtype="FLOAT")


def at_rate(rate: int) -> bytes:
    return wav(audio.resample(SPEECH, audio.SAMPLE_RATE, rate), rate)


# --- A system that fails: this runs in each process of the command, before anything else. ---


def refuse(part: str) -> bytes:
    """What has this in its path may not be opened; not by its mode, which does not bind root."""
    return f"""
def refuse(event, arguments):
    if event in ("open", "os.scandir") and {part!r} in str(arguments[0]):
        raise PermissionError({errno.EACCES}, "Permission denied", arguments[0])
sys.addaudithook(refuse)
""".encode()


# As on a disk that has no room for the bytes when the system comes to write them.
FULL_DISK = f"""
def full(file):
    raise OSError({errno.ENOSPC}, "No space left on device")
os.fsync = full
""".encode()
SMALL_MEMORY = b"import asr.models.runtime\nasr.models.runtime._MAX_MEMORY = 64 << 20\n"
FULL_OUTPUT = b"os.dup2(os.open('/dev/full', os.O_WRONLY), 1)\n"
ASCII_OUTPUT = b"sys.stdout.reconfigure(encoding='ascii')\n"
# So that a fault that is not refused is a failed test, and not the end of the machine.
GUARD = "import os, resource, sys\nresource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"

# --- Models ---


def model(change: Callable[[onnx.GraphProto], object]) -> Callable[[Path], object]:
    """The bundled model with its graph changed."""

    def make(path: Path) -> None:
        proto = onnx.load(find_model("digits"))
        change(proto.graph)
        path.write_bytes(proto.SerializeToString())

    return make


def deviations(graph: onnx.GraphProto) -> onnx.TensorProto:
    """One of the tensors in which the model's numbers are."""
    found: onnx.TensorProto = next(tensor for tensor in graph.initializer if tensor.name.endswith("std"))
    return found


def external(location: str, graph: onnx.GraphProto) -> None:
    tensor = deviations(graph)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


def secret(path: Path) -> None:
    """The very numbers that the model with external data lacks: whoever reads them has a model that works."""
    path.write_bytes(deviations(onnx.load(find_model("digits")).graph).raw_data)


def without_data(graph: onnx.GraphProto) -> None:
    deviations(graph).dims[:] = [1 << 40]


def zeros(count: int, graph: onnx.GraphProto) -> None:
    """A constant of so many zeros, the first of which is added to the output."""
    next(node for node in graph.node if node.output[0] == "log_probs").output[0] = "before"
    for name, value in (("count", [count]), ("first", 0)):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.int64), name))
    for operator, inputs, output in (
        ("ConstantOfShape", ["count"], "zeros"),
        ("Gather", ["zeros", "first"], "zero"),
        ("Add", ["before", "zero"], "log_probs"),
    ):
        graph.node.append(onnx.helper.make_node(operator, inputs, [output]))


def loop(graph: onnx.GraphProto) -> None:
    body = onnx.helper.make_graph([], "body", [], [])
    graph.node.append(onnx.helper.make_node("Loop", ["", ""], ["x"], body=body))


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(5_000_000_000)  # takes no space


def heard_by(content: Content, complaint: str, **others: Content) -> Case:
    """A model that must be refused."""
    files = {"m.onnx": content, "a.wav": SEVEN} | others
    complaint = f"m.onnx: expected a model (ONNX) written by asr export, got: {complaint}"
    return Case(files, ["-m", "m.onnx", "a.wav"], 1, [complaint])


# --- The table ---

GOOD_AND_BAD: dict[str, Content] = {"1.wav": b"", "2.wav": SEVEN, "3.wav": b"no audio", "4.wav": THREE}
OF_GOOD_AND_BAD = [
    "1.wav: expected audio, got an empty file*",
    "0.wav: no such file*",
    "3.wav: expected audio that can be decoded, got: *",
]
AGAIN = "; export it again, or get a whole copy"

CASES = {
    "missing": Case({}, ["a.wav"], 1, ["a.wav: no such file; check the path"]),
    "missing, with a line end in its name": Case({}, ["a\nb\a.wav"], 1, ["a b\\x07.wav: no such file*"]),
    "a name too long": Case(
        {}, [f"{'a' * 300}.wav"], 1, ["a*.wav: cannot be read: File name too long; check the path"]
    ),
    "folder without audio": Case(
        {"talks/notes.txt": b"no audio"},
        ["talks"],
        1,
        [
            "talks: expected a folder with recordings, found none; --recursive also looks into *",
            "passed over, as no recordings: talks/notes.txt",
        ],
    ),
    "empty": Case(
        {"a.wav": b""}, ["a.wav"], 1, ["a.wav: expected audio, got an empty file (0 bytes); record or copy it again"]
    ),
    "header only": Case(
        {"a.wav": wav(np.zeros(0))},
        ["a.wav"],
        1,
        ["a.wav: expected audio, but the file holds no samples; record or copy it again"],
    ),
    "truncated flac": Case(
        {"a.flac": DIGITS.read_bytes()[:40_000]},
        ["a.flac"],
        1,
        ["a.flac: cut short or damaged: expected 4.50 s of audio, could decode * s*; copy or download the file again"],
    ),
    "text called wav": Case(
        {"a.wav": b"What shall we do with the drunken sailor?\n"},
        ["a.wav"],
        1,
        ["a.wav: expected audio that can be decoded, got: *; check that it is a recording, and *"],
    ),
    "NaN": Case(
        {"a.wav": with_sample(np.nan)},
        ["a.wav"],
        1,
        ["a.wav: expected finite samples, got 1 that are NaN or infinite; export the audio again"],
    ),
    "infinite": Case(
        {"a.wav": with_sample(-np.inf)}, ["a.wav"], 1, ["a.wav: expected finite samples, got 1 that are *"]
    ),
    "16-bit integers as floats": Case(
        {"a.wav": with_sample(2e4)},
        ["a.wav"],
        1,
        ["a.wav: expected samples from -1 to 1, got one of 2e+04; export the audio again, scaled to that"],
    ),
    "1 Hz": Case(  # at 16 kHz, each of its samples would be a second
        {"a.wav": wav(np.zeros(200_000), 1)},
        ["a.wav"],
        1,
        ["a.wav: expected a sample rate from 1000 to 1000000 Hz, got 1"],
    ),
    "unreadable": Case(
        {"a.wav": SEVEN, "sitecustomize.py": refuse("a.wav")},
        ["a.wav"],
        1,
        ["a.wav: no permission to read this file; change its mode or its owner"],
    ),
    "link to itself": Case(
        {"a.wav": "a.wav"}, ["a.wav"], 1, ["a.wav: cannot be read: Too many levels of symbolic links; check the path"]
    ),
    "unreadable folder in a folder": Case(
        {"talks/a.wav": SEVEN, "talks/locked/b.wav": THREE, "sitecustomize.py": refuse("locked")},
        ["-r", "talks"],
        1,
        ["talks/locked: cannot be read: Permission denied; change its mode or its owner"],
        "seven\n",
    ),
    # What is unusual, but no error.
    "silence": Case({"a.wav": wav(np.zeros(16_000))}, ["a.wav"], 0, [], "\n"),
    "a single sample": Case({"a.wav": wav(np.ones(1))}, ["a.wav"], 0, [], "\n"),
    "a hundredth of a second": Case({"a.wav": wav(SPEECH[:160])}, ["a.wav"], 0, [], "\n"),
    "8 kHz": Case({"a.wav": at_rate(8_000)}, ["a.wav"], 0, [], "five seven nine zero\n"),
    "192 kHz": Case({"a.wav": at_rate(192_000)}, ["a.wav"], 0, [], "five seven nine zero\n"),
    "6 channels": Case({"a.wav": wav(np.stack([SPEECH] * 6, axis=1))}, ["a.wav"], 0, [], "five seven nine zero\n"),
    "folder within itself": Case({"talks/a.wav": SEVEN, "talks/again": "."}, ["-r", "talks"], 0, [], "seven\n"),
    "names": Case(
        {"a b.wav": SEVEN, "c\nd.wav": THREE, "日本 é.wav": SEVEN, "\udcff.wav": THREE},
        ["-q", "a b.wav", "c\nd.wav", "日本 é.wav", "\udcff.wav"],
        0,
        [],
        "a b.wav\tseven\nc d.wav\tthree\n日本 é.wav\tseven\n\\udcff.wav\tthree\n",
    ),
    "names in files": Case(
        {"c\nd é.wav": SEVEN, "\udcff.wav": THREE},
        ["-q", "-f", "ctm", "-o", "out", "c\nd é.wav", "\udcff.wav"],
        0,
        [],
        written={"c\nd é.ctm": "c_d_é 1 * seven *\n", "\udcff.ctm": "\\udcff 1 * three *\n"},
    ),
    # The output.
    "output folder without permission": Case(
        {"a.wav": SEVEN, "sitecustomize.py": refuse("out")},
        ["a.wav", "-o", "out"],
        1,
        ["out/a.txt: cannot be written: Permission denied; check the folder and its free space"],
    ),
    "output folder that is a file": Case(
        {"a.wav": SEVEN},
        ["a.wav", "-o", "a.wav"],
        1,
        ["a.wav: expected a folder to write to, got: File exists; name another, or change its mode"],
    ),
    "output folder with a name too long": Case(
        {"a.wav": SEVEN},
        ["a.wav", "-o", "a" * 300],
        1,
        ["a*: expected a folder to write to, got: File name too long; name another, *"],
    ),
    "disk full": Case(
        {"a.wav": SEVEN, "sitecustomize.py": FULL_DISK},
        ["a.wav", "-o", "out"],
        1,
        ["out/a.txt: cannot be written: No space left on device; check the folder and its free space"],
    ),
    "standard output full": Case(
        {"a.wav": SEVEN, "sitecustomize.py": FULL_OUTPUT},
        ["-q", "a.wav", "a.wav"],
        1,
        ["standard output: cannot be written: No space left on device; check the free space there"],
    ),
    "standard output in ASCII": Case(
        {"é.wav": SEVEN, "e.wav": THREE, "sitecustomize.py": ASCII_OUTPUT},
        ["-q", "é.wav", "e.wav"],
        1,
        ["standard output: its encoding, ascii, lacks '\\xe9'; set PYTHONIOENCODING=utf-8, or write files with -o"],
        "e.wav\tthree\n",
    ),
    "one output of two": Case(
        {"one/a.wav": SEVEN, "two/a.wav": THREE},
        ["-q", "one/a.wav", "two/a.wav", "-o", "out"],
        1,
        ["two/a.wav: its output out/a.txt belongs to one/a.wav already; rename one of them"],
        written={"a.txt": "seven\n"},
    ),
    # Some bad, some good: the good ones are done.
    "bad among good": Case(
        GOOD_AND_BAD,
        ["-q", "--jobs", 1, "1.wav", "0.wav", "2.wav", "3.wav", "4.wav"],
        1,
        OF_GOOD_AND_BAD,
        "2.wav\tseven\n4.wav\tthree\n",
    ),
    "bad among good, two processes": Case(
        GOOD_AND_BAD,
        ["-q", "--jobs", 2, "1.wav", "0.wav", "2.wav", "3.wav", "4.wav", "-o", "out"],
        1,
        OF_GOOD_AND_BAD,
        written={"2.txt": "seven\n", "4.txt": "three\n"},
    ),
    # Models.
    "model of another kind": heard_by(b"%PDF-1.7\n", f"data of another kind, or cut short{AGAIN}"),
    "model cut short": heard_by(
        find_model("digits").read_bytes()[:100_000], f"data of another kind, or cut short{AGAIN}"
    ),
    "model with weights in the same folder": heard_by(
        model(partial(external, "secret")), f"weights in another file, which is not read{AGAIN}", secret=secret
    ),
    "model with weights in the folder above": heard_by(
        model(partial(external, "../secret")), f"weights in another file, which is not read{AGAIN}"
    ),
    "model with weights anywhere": heard_by(
        model(partial(external, "/etc/passwd")), f"weights in another file, which is not read{AGAIN}"
    ),
    "model without its data": heard_by(model(without_data), f"a tensor without the data that it declares{AGAIN}"),
    "model with a loop": heard_by(model(loop), "an operator with a graph of its own, which asr export does not write*"),
    "model of 5 GB": heard_by(huge, f"5.0 GB, where 1.1 GB is the most{AGAIN}"),
    "model of 4 TB of zeros": Case(
        {"m.onnx": model(partial(zeros, 1 << 40)), "a.wav": SEVEN, "b.wav": SEVEN},
        ["-m", "m.onnx", "a.wav", "b.wav"],
        1,
        ["m.onnx: the network cannot run: *Available memory of * is smaller than *; export it again"],
    ),
    "model that grows as it is loaded": Case(
        {"m.onnx": model(partial(zeros, 1 << 26)), "a.wav": SEVEN, "sitecustomize.py": SMALL_MEMORY},
        ["-m", "m.onnx", "a.wav"],
        1,
        ["m.onnx: the network cannot run: *Available memory of * is smaller than *; export it again"],
    ),
    "model of some zeros": Case(  # so that it is their number which is refused above
        {"m.onnx": model(partial(zeros, 1 << 10)), "a.wav": SEVEN}, ["-m", "m.onnx", "a.wav"], 0, [], "seven\n"
    ),
    "model with a name too long": Case(
        {"a.wav": SEVEN},
        ["-m", "m" * 300, "a.wav"],
        1,
        ["m*: expected a model file (.onnx) or *; got File name too long"],
    ),
    "unreadable model": Case(
        {"m.onnx": find_model("digits"), "a.wav": SEVEN, "sitecustomize.py": refuse("m.onnx")},
        ["-m", "m.onnx", "a.wav"],
        1,
        ["m.onnx: no permission to read this file; change its mode or its owner"],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_input(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    for name, content in {"sitecustomize.py": b"", **case.files}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, Path):
            shutil.copy(content, path)
        elif isinstance(content, str):
            path.symlink_to(content)
        else:
            content(path)
    code = tmp_path / "sitecustomize.py"  # which Python runs at its start
    code.write_text(GUARD + code.read_text())
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    given = set(tmp_path.rglob("*"))

    model = [] if "-m" in case.arguments else ["-m", "digits"]
    done = cli("transcribe", *model, *case.arguments, timeout=60)
    complaints = done.stderr.splitlines()
    assert len(complaints) == len(case.complaints), done.stderr
    for complaint, expected in zip(complaints, case.complaints, strict=True):
        assert fnmatchcase(complaint.removeprefix("asr: "), expected)
    assert fnmatchcase(done.stdout, case.text)
    assert done.returncode == case.status
    made = {path for path in tmp_path.rglob("*") if path.is_file() and "__pycache__" not in path.parts} - given
    written = {str(path.relative_to(tmp_path / "out")): path.read_text() for path in made}
    assert written.keys() == case.written.keys()
    assert all(fnmatchcase(text, case.written[name]) for name, text in written.items())


@pytest.mark.parametrize("arguments", [[], ["--nonsense", SEVEN], ["-f", "txt,srt", SEVEN]], ids=str)
def test_wrong_usage(cli: Cli, arguments: list[object]) -> None:
    done = cli("transcribe", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage: " in done.stderr
    assert "Traceback" not in done.stderr
