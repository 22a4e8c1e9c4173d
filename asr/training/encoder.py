"""A pre-trained speech encoder in front of the recurrent layers: that of Whisper, for those who have a few hours of speech.

An encoder that has heard a hundred thousand hours knows what a few hours cannot teach. It is read from a folder with
`model.safetensors` and `config.json` (as Hugging Face's transformers write them), or with the `model.bin` of CTranslate2
(as faster-whisper reads it); neither is a pickle. Then it is trained on, and exported, as any other layer.

It hears a window: every frame attends to every other, and the loudest sets the level. Windows of up to 30 s; of streams
shorter ones, see `Network.forward`.
source: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision".
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from asr.errors import ConfigError
from asr.training import config

HEAD = 64  # numbers of each attention head, in all of Whisper's sizes
LONGEST = 1500  # frames of 20 ms: 30 s, the window that Whisper was trained with
N_MELS = 80
_RANGE = 2.0  # what lies further below the loudest is raised to that: 80 dB; a unit is 40 dB
_LOUDEST = 1.2  # what the loudest of a window is set to: about that of speech recorded at a usual level
_FAINTEST = -0.75  # a window fainter than this, about 80 dB below full scale, is not made as loud as speech
_MAX_BYTES = 4 << 30
_MAX_RANK = 4


class Shape(NamedTuple):
    """width: numbers a frame; blocks: of self-attention."""

    width: int
    blocks: int


class Block(nn.Module):
    """Self-attention over the window, then two linear layers; each adds to what it hears."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x: (B, T, width); mask: (B, 1, 1, T), True where a frame is an utterance's, or None where all are."""
        together = self.qkv(self.attention_norm(x)).reshape(*x.shape[:2], 3 * self.heads, HEAD).transpose(1, 2)
        queries, keys, values = (together[:, n * self.heads : (n + 1) * self.heads] for n in range(3))
        attended = nn.functional.scaled_dot_product_attention(queries, keys, values, mask)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        y: Tensor = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return y


class Encoder(nn.Module):
    """Whisper's encoder. Log-mel frames every 10 ms -> one vector every 20 ms.

    The two convolutions over three frames are linear layers over three neighbours, which int8 serves as well.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.width = shape.width
        self.conv1 = nn.Linear(3 * N_MELS, shape.width)
        self.conv2 = nn.Linear(3 * shape.width, shape.width)
        self.blocks = nn.ModuleList(Block(shape.width) for _ in range(shape.blocks))
        self.norm = nn.LayerNorm(shape.width)
        self.register_buffer("positions", _sinusoids(LONGEST, shape.width), persistent=False)
        self.positions: Tensor

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, T, 80) log-mel energies at any level, T even, lengths (B,) -> (B, T / 2, width). See `level`, `encode`."""
        return self.encode(level(x), lengths)

    def encode(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What Whisper's own encoder gives for its log-mel energies, (B, T, 80) with T even and at most 3000.

        lengths: (B,) frames, even, on x's device, or None where all are valid.
        An utterance gets in a batch what it gets alone.
        """
        frames = x.shape[1] // 2
        if not torch.onnx.is_in_onnx_export() and frames > LONGEST:
            raise ValueError(f"expected a window of at most {LONGEST // 50} s, got {frames / 50:.2f} s")
        inside, mask = None, None
        if lengths is not None:
            inside = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
            mask = inside[:, None, None, ::2]
            x = x * inside[..., None]  # beyond its end an utterance alone has the zeros that the convolution adds
        x = nn.functional.gelu(self.conv1(_neighbours(x, 1)))
        if inside is not None:
            x = x * inside[..., None]
        x = nn.functional.gelu(self.conv2(_neighbours(x, 2)))
        x = x + self.positions[:frames]
        for block in self.blocks:
            x = block(x, mask)
        y: Tensor = self.norm(x)
        return y


def level(x: Tensor) -> Tensor:
    """(B, T, F) log-mel energies with the loudest of each window at the same level, and none more than 80 dB below it."""
    loudest = x.amax(dim=(1, 2), keepdim=True)
    return torch.maximum(x, loudest - _RANGE) + (_LOUDEST - loudest.clamp(min=_FAINTEST))


def shape_of(settings: config.Network) -> Shape:
    """The size of the encoder that the settings ask for, from its folder where they do not say. raises: ConfigError."""
    assert settings.encoder is not None
    if settings.encoder_width and settings.encoder_blocks:
        return Shape(settings.encoder_width, settings.encoder_blocks)
    found = _read(settings.encoder).shape
    blocks = settings.encoder_blocks or found.blocks
    if blocks > found.blocks:
        raise ConfigError(
            f"network.encoder_blocks: expected at most the {found.blocks} of {settings.encoder}, got {blocks}"
        )
    return Shape(found.width, blocks)


def load(encoder: Encoder, folder: Path) -> None:
    """Fill an encoder from a folder's weights. raises: ConfigError if it holds none, or others."""
    weights = _read(folder)
    state = {}
    for name, own in encoder.state_dict().items():
        value = weights.get(name)
        if value.shape != own.shape:
            raise _unfit(folder, f"{name} of {tuple(own.shape)}, got {tuple(value.shape)}")
        state[name] = value
    encoder.load_state_dict(state)


class _Weights(NamedTuple):
    shape: Shape
    get: Callable[[str], Tensor]  # by our names


def _read(folder: Path) -> _Weights:
    if (folder / "model.safetensors").is_file():
        return _safetensors(folder / "model.safetensors")
    if (folder / "model.bin").is_file():
        return _ctranslate2(folder / "model.bin")
    what = "no model.safetensors or model.bin in it" if folder.is_dir() else "no such folder"
    raise ConfigError(f"network.encoder: {folder}: expected a folder with the weights of a Whisper model, got {what}")


# The names of a block's layers: ours, transformers', CTranslate2's.
_LAYERS = {
    "attention_norm": ("self_attn_layer_norm", "self_attention/layer_norm"),
    "qkv": ("self_attn", "self_attention/linear_0"),
    "out": ("self_attn.out_proj", "self_attention/linear_1"),
    "norm": ("final_layer_norm", "ffn/layer_norm"),
    "up": ("fc1", "ffn/linear_0"),
    "down": ("fc2", "ffn/linear_1"),
}


def _safetensors(path: Path) -> _Weights:
    """Weights that transformers wrote: `model.encoder.layers.0.fc1.weight`, also without `model.`, or without both."""
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            prefix = next((p for p in ("model.encoder.", "encoder.", "") if f"{p}conv1.weight" in names), None)
            if prefix is None:
                raise _unfit(path, "the encoder of a Whisper model")
            tensors = {name.removeprefix(prefix): file.get_tensor(name) for name in names if name.startswith(prefix)}
    except (OSError, SafetensorError) as error:
        raise _unfit(path, f"a file in safetensors' format: {error}") from None

    def find(name: str) -> Tensor:
        if name not in tensors:
            raise _unfit(path, name)
        value: Tensor = tensors[name].float()
        return value

    def get(name: str) -> Tensor:
        parts = name.split(".")
        if parts[0].startswith("conv"):
            value = find(name)
            return _as_linear(value) if parts[-1] == "weight" else value
        if parts[0] == "norm":
            return find(f"layer_norm.{parts[-1]}")
        theirs = f"layers.{parts[1]}.{_LAYERS[parts[2]][0]}"
        if parts[2] != "qkv":
            return find(f"{theirs}.{parts[-1]}")
        queries, values = (find(f"{theirs}.{one}_proj.{parts[-1]}") for one in "qv")
        # The keys have no bias: what it would add to a frame's products with all others is the same for each.
        keys = find(f"{theirs}.k_proj.weight") if parts[-1] == "weight" else torch.zeros_like(queries)
        return torch.cat([queries, keys, values])

    blocks = len({name.split(".")[1] for name in tensors if name.startswith("layers.")})
    _check_config(path.with_name("config.json"), find("conv1.weight"))
    return _Weights(Shape(len(find("conv1.weight")), blocks), get)


def _check_config(path: Path, conv: Tensor) -> None:
    """Check that a model's own settings agree with what is built here."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        heads, mels = int(told["encoder_attention_heads"]), int(told["num_mel_bins"])
    except (OSError, ValueError, KeyError, TypeError):
        raise _unfit(path, "the settings of a Whisper model (config.json) beside its weights") from None
    if heads * HEAD != len(conv) or mels != N_MELS:
        raise _unfit(path, f"heads of {HEAD} numbers and {N_MELS} mel bands, got {len(conv)} / {heads} and {mels}")


def _ctranslate2(path: Path) -> _Weights:
    """Weights that CTranslate2 wrote, float32 or float16."""
    tensors = read_ctranslate2(path)

    def find(name: str) -> Tensor:
        if name not in tensors:
            raise _unfit(path, f"{name}, as of a Whisper model")
        value = tensors[name]
        if value.dtype.kind != "f":
            raise _unfit(
                path, f"weights in float32 or float16, got {value.dtype} for {name}; convert it without quantisation"
            )
        return torch.from_numpy(value.astype(np.float32))

    def get(name: str) -> Tensor:
        parts = name.split(".")
        if parts[0].startswith("conv"):
            value = find(f"encoder/{parts[0]}/{parts[-1]}")
            return _as_linear(value) if parts[-1] == "weight" else value
        theirs = "layer_norm" if parts[0] == "norm" else f"layer_{parts[1]}/{_LAYERS[parts[2]][1]}"
        norm = {"weight": "gamma", "bias": "beta"} if "norm" in theirs else {}
        return find(f"encoder/{theirs}/{norm.get(parts[-1], parts[-1])}")

    blocks = len({name.split("/")[1] for name in tensors if name.startswith("encoder/layer_") and name.count("/") > 2})
    width, mels, _ = tuple(find("encoder/conv1/weight").shape)
    if width % HEAD or mels != N_MELS:
        raise _unfit(path, f"a width of heads of {HEAD} numbers and {N_MELS} mel bands, got {width} and {mels}")
    return _Weights(Shape(width, blocks), get)


def read_ctranslate2(path: Path) -> Mapping[str, np.ndarray]:
    """The named arrays of a CTranslate2 `model.bin`, mapped, not read. raises: ConfigError if it is none.

    The format: uint32 version, text, uint32 revision, uint32 count; of each array its name, uint8 rank, uint32 sizes, uint8
    type, uint32 bytes, and its numbers. Texts: uint16 length, that of a zero at the end with it. Little endian.
    """
    types = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise _unfit(path, f"at most {_MAX_BYTES >> 30} GiB")
        data = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError) as error:
        raise _unfit(path, f"a file that can be read: {error}") from None
    at = 0

    def take(form: str) -> int:
        nonlocal at
        at += struct.calcsize(form)
        return int(struct.unpack(form, data[at - struct.calcsize(form) : at].tobytes())[0])

    def text() -> str:
        nonlocal at
        length = take("<H")
        at += length
        return data[at - length : at].tobytes().rstrip(b"\0").decode()

    arrays: dict[str, np.ndarray] = {}
    try:
        take("<I"), text(), take("<I")
        for _ in range(take("<I")):
            name, rank = text(), take("<B")
            if rank > _MAX_RANK:
                raise ValueError(name)
            sizes = [take("<I") for _ in range(rank)]
            kind = np.dtype(types[take("<B")])
            length = take("<I")
            if math.prod(sizes) * kind.itemsize != length or at + length > len(data):
                raise ValueError(name)
            arrays[name] = np.frombuffer(data[at : at + length].data, kind).reshape(sizes)
            at += length
    except (struct.error, KeyError, ValueError):
        raise _unfit(path, "CTranslate2's format; it may be damaged") from None
    return arrays


def _as_linear(weight: Tensor) -> Tensor:
    """(out, in, 3) of a convolution -> (out, 3 in) over three neighbours."""
    return weight.transpose(1, 2).flatten(1)


def _neighbours(x: Tensor, stride: int) -> Tensor:
    """(B, T, F) -> (B, T / stride, 3 F): each frame between the two beside it, zeros at the ends; T a multiple."""
    x = nn.functional.pad(x, (0, 0, 1, 1))
    return torch.cat([x[:, :-2:stride], x[:, 1:-1:stride], x[:, 2::stride]], dim=2)


def _sinusoids(length: int, width: int) -> Tensor:
    """(length, width) position encodings: sines, then cosines, of periods from 2 pi to 10,000 times that."""
    periods = torch.exp(-math.log(10_000) / (width // 2 - 1) * torch.arange(width // 2))
    angles = torch.arange(length)[:, None] * periods
    return (
        torch.cat([angles.sin(), angles.cos()], dim=1).half().float()
    )  # as Whisper has them; so they export in half the size


def _unfit(path: Path, expected: str) -> ConfigError:
    return ConfigError(f"network.encoder: {path}: expected {expected}")
