"""The layering: who may import whom, and what runs without PyTorch."""

import ast
import doctest
import importlib
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

import asr

PACKAGE = Path(asr.__file__).parent
DATA = Path(__file__).parent / "data"
MODULES = sorted(PACKAGE.rglob("*.py"))

# From the ground up: each file or folder of the package may import what stands before it, and itself.
FLOORS = [
    *("errors", "remote", "files", "spoken", "text", "tokens", "subtitles", "metrics", "manifest"),
    *("audio", "models", "terminal", "transcript", "lm", "decoding", "pauses", "stream", "recognizer", "session"),
    *("evaluation", "corpus", "training", "serving"),
    *("cli", "__main__"),
]
HEAVY = {
    "torch",
    "torchaudio",
    "lightning",
    "lhotse",
    "librosa",
    "matplotlib",
    "safetensors",
    "sentencepiece",
    "onnx",
    "tensorboard",
}


def imports(path: Path) -> set[str]:
    """Every module a file imports, wherever in it, as a dotted name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    module = relative.parts[0].removesuffix(".py")
    found = imports(path)
    if module != "training":
        assert not {name.split(".")[0] for name in found} & HEAVY
    if module not in ("serving", "remote"):
        assert "aiohttp" not in {name.split(".")[0] for name in found}
    ours = {name.split(".")[1] for name in found if name.startswith("asr.")} - {"__version__"}
    if module != "__init__":  # which has the public names for `from asr import ...`
        assert ours <= {*FLOORS[: FLOORS.index(module) + 1]}


def test_only_what_a_user_names_is_an_address() -> None:
    """A server, and what reads the files that it is sent, must never go where a client points."""
    found = {path: imports(path) for path in PACKAGE.rglob("*.py")}
    locating = {path.relative_to(PACKAGE).parts[0] for path, names in found.items() if "asr.remote.locate" in names}
    assert locating == {"manifest.py", "cli", "training"}
    serving = {name for path, names in found.items() if path.parent.name == "serving" for name in names}
    assert not [name for name in serving if name.startswith(("asr.remote", "asr.manifest"))]


def test_runs_without_torch() -> None:
    """Importing the package and its command line, and transcribing a file, with everything heavy made unimportable."""
    script = f"""
import sys
for name in {sorted(HEAVY)}:
    sys.modules[name] = None
import asr, asr.cli
from asr import Recognizer
print(Recognizer("digits").transcribe({str(DATA / "connected_digits.flac")!r}).text)
sys.argv = ["asr", "transcribe", "-m", "digits", {str(DATA / "7_jackson_0.wav")!r}]
asr.cli.main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["five seven nine zero", "seven"]


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("asr", "AsrError Final Partial Recognizer Transcript __version__"),
        ("asr.audio", "SAMPLE_RATE AudioError as_waveform blocks info pipe_blocks read read_utterance resample"),
        ("asr.stream", "Endpoint Endpointing Event Final Partial Stream StreamError CHUNK_S RIGHT_CONTEXT_S"),
        ("asr.session", "Gate Session Trouble listen"),
        ("asr.manifest", "ManifestError Skipped Utterance read write"),
        ("asr.text", "NORMALISERS TextError english letters normaliser squeeze"),
        ("asr.tokens", "BLANK Span TokenError Tokens min_frames"),
        ("asr.corpus", "Archive CorpusError Recording Splits Table find hold_out openslr parser prepare"),
    ],
)
def test_names_that_other_programs_import(module: str, names: str) -> None:
    assert [name for name in names.split() if not hasattr(importlib.import_module(module), name)] == []


@pytest.mark.parametrize("path", [path for path in MODULES if ">>> " in path.read_text(encoding="utf-8")], ids=str)
def test_examples_in_docstrings(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DATA.parents[1])
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    tried = doctest.testmod(importlib.import_module(name))
    assert tried.attempted > 0
    assert tried.failed == 0


def test_importing_the_package_loads_nothing_heavy() -> None:
    script = "import sys, asr; print([m for m in ('numpy', 'onnxruntime', 'soundfile', 'click') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_is_kept_for_the_makers_of_onnxruntime(tmp_path: Path) -> None:
    """Unless it is told not to, it writes a number of the machine, and what it will send, below the user's folder."""
    code = f"from asr import Recognizer; print(Recognizer('digits').transcribe({str(DATA / '7_jackson_0.wav')!r}).text)"
    home = {name: str(tmp_path) for name in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "USERPROFILE")}
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"} | home
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("seven\n", "")
    assert list(tmp_path.iterdir()) == []
