"""The processes of a training: Fabric on one device, or on as many as torchrun started."""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import sys
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed
from lightning.fabric import Fabric

from asr import terminal
from asr.errors import AsrError, TrainingError
from asr.training import config

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
T = TypeVar("T")


def launch(settings: config.Config, device: str) -> Fabric:
    """Join the other processes, if there are any.

    The command is `torchrun --nproc-per-node N -m -- asr train ...`: without the --, torchrun takes --run for its own.
    """
    on_cuda = pick_device(device).type == "cuda"
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    nodes = int(os.environ.get("WORLD_SIZE", "1")) // per_node
    if on_cuda and per_node > torch.cuda.device_count():
        raise TrainingError(
            f"expected a GPU for each of {per_node} processes, found {torch.cuda.device_count()}; "
            "lower torchrun's --nproc-per-node"
        )
    shield_from_signals()
    if not on_cuda:
        _keep_memory()
    for name in ("lightning.fabric", "lightning.pytorch"):  # which of them announces the precision on stderr varies
        logging.getLogger(name).setLevel(logging.WARNING)
    precision = settings.precision
    if precision == "auto":
        precision = "bf16-mixed" if on_cuda else "32-true"
    fabric = Fabric(
        accelerator="cuda" if on_cuda else "cpu",
        devices=per_node,
        num_nodes=nodes,
        strategy="ddp" if per_node * nodes > 1 else "auto",
        precision=precision,
    )
    fabric.launch()
    return fabric


def pick_device(name: str, kind: type[AsrError] = TrainingError) -> torch.device:
    """The device that auto, cpu or cuda means here. raises: an error of the kind."""
    if name not in ("auto", "cpu", "cuda"):
        raise kind(f"expected --device auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise kind("expected a CUDA device, found none; use --device cpu, or check the driver with nvidia-smi")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def shield_from_signals() -> None:
    """Let signals come while the network works on a CPU. Call it in the main thread, before the first computation.

    oneDNN's LSTM keeps the stack pointer in a buffer on the heap while it computes, and a signal's frame on that "stack"
    overwrites the heap. Python's handlers run on the alternate stack of the thread that a signal goes to, if it has one:
    faulthandler gives one to this thread. The others that compute get none; they are made here, with signals blocked.
    """
    if not faulthandler.is_enabled():
        try:
            faulthandler.enable()
        except (OSError, RuntimeError, ValueError):  # stderr is closed, or no file
            faulthandler.enable(Path(os.devnull).open("w"))  # noqa: SIM115 (it stays open)
    with terminal.blocked(terminal.STOP_SIGNALS):
        torch.zeros(1 << 20).add_(1)  # large enough to be shared out, and so to start the threads


def place() -> tuple[int, int]:
    """Which of this machine's processes this is, and how many they are."""
    return int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def gather(fabric: Fabric, own: T) -> list[T]:
    """What each process has, in the order of their ranks, for all of them."""
    if fabric.world_size == 1:
        return [own]
    found: list[T] = [own] * fabric.world_size
    torch.distributed.all_gather_object(found, own)
    return found


def lost_a_process(error: RuntimeError) -> bool:
    """Whether an error says that another process is gone. Gloo's errors have no type of their own."""
    return isinstance(error, torch.distributed.DistError) or " peer" in str(error) or "gloo" in str(error)


def _keep_memory() -> None:
    """Let glibc keep freed memory for the next step.

    By default it hands large blocks back to the kernel at once, and a fifth of a step on a CPU goes into getting them again.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
