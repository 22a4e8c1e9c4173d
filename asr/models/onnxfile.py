"""The bytes of an ONNX file, once it is sure that they are a network such as `asr export` writes, and nothing else.

A model comes from anywhere, and ONNX can do more than a model needs: name other files to read, loop for ever, declare
tensors that are not there. onnxruntime refuses some of that, more with each version. Here the file is walked before
onnxruntime sees it, and no tensor is decoded: of protobuf's wire format, only the outline is needed.

source: https://protobuf.dev/programming-guides/encoding; the numbers of the fields are those of ONNX's `onnx.proto`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from asr.errors import ModelError

MAX_BYTES = 1 << 30  # 250 million float32 weights; protobuf itself ends at 2 GiB
_MAX_NUMBERS = 1_000_000  # a large network has tens of thousands; each costs a microsecond
# What torch.onnx.export and quantize_dynamic make of all configurations. None of these loops, branches or reads a file.
OPERATORS = """
    Add BatchNormalization Cast Clip Concat Constant ConstantOfShape Conv DequantizeLinear Div DynamicQuantizeLinear
    Erf Flatten GRU Gather Identity LSTM LayerNormalization Log LogSoftmax MatMul MatMulInteger Max Mul Pad RNN
    ReduceMax Relu Reshape Shape Slice Softmax Sqrt Squeeze Sub Transpose Unsqueeze
    com.microsoft.DynamicQuantizeLSTM
"""
_NUMBERS, _METADATA = (1, 5), 14  # fields of the outermost message; all but the numbers say their length
_PLAIN_ATTRIBUTE = {1, 2, 3, 4, 7, 8, 9, 13, 20}  # its name, description and type, numbers and strings; no graphs


def read(path: Path) -> bytes:
    """The whole file. raises: OSError; ModelError if it is too large or anything but a network of OPERATORS."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise ModelError(f"{size / 1e9:.1f} GB, where {MAX_BYTES / 1e9:.1f} GB is the most")
        data = file.read(size)
    _Walk().model(memoryview(data))
    return data


def metadata(data: bytes, key: str) -> str:
    """The text under a key of a file's metadata, "" if there is none. data: of `read`."""
    walk = _Walk()
    for field, content in walk.fields(memoryview(data)):
        if field == _METADATA:
            entry = dict(walk.fields(content))
            if bytes(entry.get(1, b"")) == key.encode():
                return bytes(entry.get(2, b"")).decode()
    return ""


def with_metadata(data: bytes, key: str, value: str) -> bytes:
    """The same file with another text under a key of its metadata. data: of `read`."""
    walk = _Walk()
    parts = []
    for field, content in walk.fields(memoryview(data)):
        if field in _NUMBERS:
            parts.append(_encode(field << 3) + bytes(content))
        elif field != _METADATA or bytes(dict(walk.fields(content)).get(1, b"")) != key.encode():
            parts.append(_field(field, content))
    parts.append(_field(_METADATA, _field(1, key.encode()) + _field(2, value.encode())))
    return b"".join(parts)


def _field(number: int, content: bytes | memoryview) -> bytes:
    return _encode(number << 3 | 2) + _encode(len(content)) + bytes(content)


def _encode(number: int) -> bytes:
    """7 bits a byte from the lowest on, each but the last with the highest bit set."""
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


class _Walk:
    """Goes through one file, a method for each kind of message."""

    def __init__(self) -> None:
        self._numbers_left = _MAX_NUMBERS  # or a file of tiny fields would take minutes

    def model(self, data: memoryview) -> None:
        graphs = []
        for field, value in self.fields(data):
            if field == 7:
                graphs.append(value)
            elif field in (20, 25):
                raise ModelError("training steps or functions, which asr export does not write")
        for field, value in self.fields(_only(graphs)):
            if field == 1:
                self._node(value)
            elif field == 5:
                self._tensor(value)
            elif field == 15:
                raise ModelError("sparse tensors, which asr export does not write")

    def _node(self, data: memoryview) -> None:
        operators, domains = [], []
        for field, value in self.fields(data):
            if field == 4:
                operators.append(value)
            elif field == 5:
                self._attribute(value)
            elif field == 7:
                domains.append(value)
        name = ".".join(filter(None, [_text(_only(values)) for values in (domains, operators) if values]))
        if name not in OPERATORS.split():
            raise ModelError(f"the operator {name}, which asr export does not write")

    def _attribute(self, data: memoryview) -> None:
        tensors = []
        for field, value in self.fields(data):
            if field == 5:
                tensors.append(value)
            elif field not in _PLAIN_ATTRIBUTE:
                raise ModelError("an operator with a graph of its own, which asr export does not write")
        if tensors:
            self._tensor(_only(tensors))

    def _tensor(self, data: memoryview) -> None:
        """Its data must be there: each number takes a byte at least. onnxruntime compares the exact size."""
        size = 1
        for field, value in self.fields(data):
            if field == 13 or (field == 14 and any(self._numbers(value))):
                raise ModelError("weights in another file, which is not read")
            if field == 1:
                for dimension in self._numbers(value):
                    size = min(size * max(dimension, 1), 1 << 63)  # the product of many would itself take long
        if size > len(data):
            raise ModelError("a tensor without the data that it declares")

    def fields(self, data: memoryview) -> Iterator[tuple[int, memoryview]]:
        """A message's fields in order: number, and value as it is encoded. Those of 4 and 8 bytes are passed over."""
        at = 0
        while at < len(data):
            key, at = self._number(data, at)
            field, kind = divmod(key, 8)
            # Protobuf drops what is above 32 bits, and reads another field; the kinds 3 and 4 are out of use.
            if key >> 32 or kind not in (0, 1, 2, 5):
                raise _not_onnx()
            start = at
            if kind == 0:
                _, at = self._number(data, at)
            elif kind == 2:
                length, start = self._number(data, at)
                at = start + length
            else:
                at += 8 if kind == 1 else 4
            if at > len(data):
                raise _not_onnx()
            if kind in (0, 2):
                yield field, data[start:at]

    def _numbers(self, data: memoryview) -> Iterator[int]:
        """The numbers of a field: one, or many in a packed one."""
        at = 0
        while at < len(data):
            number, at = self._number(data, at)
            yield number

    def _number(self, data: memoryview, at: int) -> tuple[int, int]:
        """The number at `at`, unsigned, 7 bits a byte from the lowest on; and where it ends."""
        self._numbers_left -= 1
        if self._numbers_left < 0:
            raise ModelError(f"more than {_MAX_NUMBERS} parts")
        number = 0
        for i, byte in enumerate(data[at : at + 10]):
            number |= (byte & 127) << 7 * i
            if byte < 128:
                return number % (1 << 64), at + i + 1
        raise _not_onnx()


def _only(values: list[memoryview]) -> memoryview:
    """The value of a field that stands once; of several, protobuf would take the last or join them."""
    if len(values) != 1:
        raise _not_onnx()
    return values[0]


def _text(value: memoryview) -> str:
    return bytes(value[:100]).decode("utf-8", "replace")


def _not_onnx() -> ModelError:
    return ModelError("data of another kind, or cut short")
