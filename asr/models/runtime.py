"""Networks in onnxruntime: a file as a session that computes, in limited memory, and nothing else."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from asr.errors import ModelError
from asr.models import onnxfile

_MAX_MEMORY = 8 << 30  # bytes, for all networks of a process; twice what 20 minutes take in a large one


def open_session(path: Path, threads: int) -> tuple[Any, str]:
    """A network's file as a session of onnxruntime, and its metadata of ours, "" without any. raises: ModelError."""
    _limit_memory()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it would log is in its exceptions
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads sleep
    options.add_session_config_entry("session.use_env_allocators", "1")  # that of _limit_memory
    options.add_session_config_entry("session.load_model_format", "ONNX")  # or it would guess
    options.intra_op_num_threads = threads
    try:
        # Folding constants would compute outside of the limited memory, and these networks gain nothing by it.
        session = onnxruntime.InferenceSession(
            onnxfile.read(path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["ConstantFolding"],
        )
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; check the path") from None
    except PermissionError:
        raise ModelError(f"{path}: no permission to read this file; change its mode or its owner") from None
    except Exception as error:  # onnxruntime has no narrower class for bad files
        raise ModelError(
            f"{path}: expected a model (ONNX) written by asr export, got: {_reason(error)}; "
            "export it again, or get a whole copy"
        ) from None
    try:
        return session, session.get_modelmeta().custom_metadata_map.get("asr", "")
    except UnicodeDecodeError:
        raise ModelError(f"{path}: expected metadata in UTF-8, got other bytes; export it again") from None


def run_session(session: Any, path: Path, names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What a network of `open_session` gives under these names. raises: ModelError."""
    try:
        outputs: list[np.ndarray] = session.run(names, inputs)
    except Exception as error:  # onnxruntime has no narrower class here either
        raise ModelError(f"{path}: the network cannot run: {_reason(error)}; export it again") from None
    return outputs


@functools.cache
def _limit_memory() -> None:
    """One arena for the tensors of all networks of this process, which refuses to grow beyond _MAX_MEMORY.

    Or a few numbers in a model file could ask for all memory there is.
    """
    kind, use = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, onnxruntime.OrtMemType.DEFAULT
    memory = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, use)
    with contextlib.suppress(RuntimeError):  # the program around us has registered one before, which serves too
        onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg({"max_mem": _MAX_MEMORY}))


def _reason(error: Exception) -> str:
    """The last line of an exception's message: in those of onnxruntime, what went wrong after where it did."""
    return str(error).strip().rpartition("\n")[2].rstrip(".") or type(error).__name__
