"""The models that are known by name, the language models that come with them, and what a model's file is.

Which model and which language model a name or an option stands for is decided here alone.
"""

from __future__ import annotations

import os
from pathlib import Path

from asr.errors import ModelError

DEFAULT_MODEL = "english"
# Schemas of the metadata in a model's file: a program that knows no newer one than SCHEMA refuses the newer. The first
# was of networks that hear whole utterances only.
PARTS = 2
SUBWORDS = 3
ENCODER = 4  # a pre-trained one: windows and left context
SCHEMA = ENCODER
_BUNDLED = Path(__file__).parent


def names() -> dict[str, Path]:
    """The models known by name: those in the package, and NAME.onnx in $ASR_MODELS (if not set, ~/.asr/models)."""
    own = Path(os.environ.get("ASR_MODELS") or Path.home() / ".asr" / "models")
    return {path.stem: path for path in (*sorted(_BUNDLED.glob("*/*.onnx")), *sorted(own.glob("*.onnx")))}


def find_model(model: str | Path | None) -> Path:
    """The file of a model given by path or by name. raises: ModelError listing the names there are.

    >>> find_model("digits").name
    'digits.onnx'
    """
    path = Path(model if model is not None else DEFAULT_MODEL)
    named = names()
    if str(path) in named:
        return named[str(path)]
    try:
        if path.is_file():
            return path
        what = "a folder" if path.is_dir() else "a device" if path.exists() else "no such file"
    except OSError as error:  # a name too long, a folder above it that may not be entered
        what = str(error.strerror)
    raise ModelError(f"{path}: expected a model file (.onnx) or one of the names {', '.join(named)}; got {what}")


def is_bundled(path: Path) -> bool:
    """Whether a file is of the package, which no command writes to."""
    return path.resolve().is_relative_to(_BUNDLED.resolve())


def find_lm(model: str | Path | None) -> Path | None:
    """The language model that comes with a model given by name: beside its file, of the same name with the suffix .lm.

    None where there is none; and for a model given by path, which what happens to lie in the same folder must not change.
    """
    named = names().get(str(Path(model if model is not None else DEFAULT_MODEL)))
    lm = named and named.with_suffix(".lm")
    return lm if lm and lm.exists() else None


def choose_lm(lm: str | Path | None, model: str | Path | None, *, beam: int, grammar: object = None) -> Path | None:
    """The file of the language model that a Recognizer with these arguments heeds; None for no language model.

    lm: a file; "none"; "bundled" for the file beside the model's, of the same name and with the suffix .lm; None for what
        comes with a model given by name. The last is none with a beam of 1, which asks for greedy decoding, and with a
        grammar, among whose sentences a general model prefers the usual ones: of a list with every sentence of
        recipes/english's dev set it found 179 of 243 right, without 211.
    raises: ModelError if there is nothing beside the model.
    """
    if lm is None:
        return None if beam == 1 or grammar is not None else find_lm(model)
    if lm == "none":
        return None
    if lm == "bundled":
        path = find_model(model)
        lm = path.with_suffix(".lm")
        if not lm.exists():
            raise ModelError(f"{lm}: there is no language model beside {path.name}; name a file instead")
    return Path(lm)


def choose_neural(rescore: str | Path | None, lm: object, lm_path: Path | None) -> Path | None:
    """The file of the recurrent language model that a Recognizer with these arguments rescores with; None for none.

    rescore: a file; "none"; None for what comes with the language model, beside its file, of the same name and with the
             suffix .lstm.
    lm:      as the Recognizer was given it: nothing comes with a file that was named, since weights are found together.
    lm_path: of `choose_lm`.
    """
    if rescore is not None:
        return None if rescore == "none" else Path(rescore)
    neural = lm_path.with_suffix(".lstm") if lm_path and lm in (None, "bundled") else None
    return neural if neural and neural.exists() else None
