"""The documents: what they name is there, what they promise holds."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
CORE = re.findall(r"^\| `(asr/.*?)` \|", ARCHITECTURE, re.MULTILINE)


def test_every_file_of_the_root_and_every_folder_is_in_the_listing() -> None:
    listing = ARCHITECTURE.split("```")[1]
    parts = [path for path in (ROOT / "asr").iterdir() if path.is_dir() or path.suffix == ".py"]
    names = [f"{path.name}/" if path.is_dir() else path.name for path in parts if not path.name.startswith("__")]
    assert [name for name in names if name not in listing] == []
    assert sum(path.suffix == ".py" for path in parts) <= 18


def test_the_path_of_an_utterance_can_be_read_in_an_evening() -> None:
    assert len(CORE) == 17
    assert sum(len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in CORE) <= 4500


@pytest.mark.parametrize("path", sorted((ROOT / "asr").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_have_500_lines_and_functions_70_at_most(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    kinds = ast.FunctionDef, ast.AsyncFunctionDef
    lengths = {
        f"{node.name}, line {node.lineno}": 1 + (node.end_lineno or 0) - node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, kinds)
    }
    assert len(text.splitlines()) <= 500
    assert [name for name, length in lengths.items() if length > 70] == []


def test_the_walks_lead_through_files_that_are_there() -> None:
    walks = ARCHITECTURE.split("## Four walks")[1].split("##")[0]
    steps = re.findall(r"`([\w/]+\.py)`", walks)
    assert len(steps) > 20
    assert [step for step in steps if not (ROOT / "asr" / step).exists()] == []


def test_the_page_of_the_python_interface_is_of_today() -> None:
    done = subprocess.run([sys.executable, ROOT / "tools/api", "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/architecture.md"])
def test_lines_fit_a_terminal(name: str) -> None:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []
