"""What a model file may not hold, down to the byte: nothing of it reaches onnxruntime."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from asr.errors import ModelError
from asr.models import find_model, onnxfile


def number(value: int) -> bytes:
    """As protobuf writes it: 7 bits a byte, the lowest first."""
    return bytes([value & 127 | 128]) + number(value >> 7) if value > 127 else bytes([value])


def encoded(field: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return number(field << 3) + number(value)
    return number(field << 3 | 2) + number(len(value)) + value


def model(*fields: bytes) -> bytes:
    return encoded(7, b"".join(fields))


def node(*fields: bytes) -> bytes:
    return model(encoded(1, b"".join(fields)))


def tensor(*fields: bytes) -> bytes:
    return model(encoded(5, b"".join(fields)))


def constant(**attribute: Any) -> bytes:
    return node(encoded(4, b"Constant"), encoded(5, AttributeProto(name="value", **attribute).SerializeToString()))


EXTERNAL = TensorProto(dims=[1], data_type=1, data_location=TensorProto.EXTERNAL)
ADD = NodeProto(op_type="Add")
LOOP = encoded(4, b"Loop")

OUTSIDE, NO_DATA, NOT_ONNX = (
    "weights in another file",
    "a tensor without the data",
    "data of another kind, or cut short",
)
REFUSED = {
    "nothing": (b"", NOT_ONNX),
    "no network": (encoded(2, b"pytorch"), NOT_ONNX),
    "group": (model(bytes([1 << 3 | 3])), NOT_ONNX),
    "number without end": (model(b"\xff" * 11), NOT_ONNX),
    "field beyond the end": (b"\x3a\x05ab", NOT_ONNX),
    "8 bytes beyond the end": (model(bytes([9 << 3 | 1]) + b"abc"), NOT_ONNX),
    # Other files
    "external": (tensor(EXTERNAL.SerializeToString()), OUTSIDE),
    "external, of this size": (tensor(encoded(9, b"1234"), EXTERNAL.SerializeToString()), OUTSIDE),
    "name of a file": (tensor(encoded(13, b"")), OUTSIDE),
    "external by the lower 32 bits": (tensor(encoded(14, (1 << 32) + 1)), OUTSIDE),
    "location by the lower 32 bits of its field": (tensor(encoded(14 + (1 << 29), 1)), NOT_ONNX),
    "external constant": (constant(t=EXTERNAL), OUTSIDE),
    # Data that is not there
    "large": (tensor(TensorProto(dims=[1 << 40], data_type=1).SerializeToString()), NO_DATA),
    "large by many": (tensor(TensorProto(dims=[2] * 40, data_type=1).SerializeToString()), NO_DATA),
    "large behind a zero": (tensor(TensorProto(dims=[0, 1 << 40], data_type=1).SerializeToString()), NO_DATA),
    "below zero": (tensor(TensorProto(dims=[-1], data_type=1).SerializeToString()), NO_DATA),
    "large in one field": (tensor(encoded(1, number(1 << 20) + number(1 << 20))), NO_DATA),
    "large constant": (constant(t=TensorProto(dims=[1 << 40], data_type=1)), NO_DATA),
    "zeros that protobuf does not read": (tensor(bytes([1 << 3 | 5, 0, 0, 0, 0]), encoded(1, 1 << 40)), NO_DATA),
    # Operators
    "loop": (node(LOOP), "the operator Loop"),
    "of another domain": (node(encoded(4, b"Add"), encoded(7, b"com.evil")), "the operator com.evil.Add"),
    "two operators": (node(LOOP, encoded(4, b"Conv")), NOT_ONNX),
    "an operator that protobuf does not read": (node(LOOP, bytes([4 << 3 | 5]) + b"Conv"), "the operator Loop"),
    "graph in an operator": (constant(g=GraphProto()), "an operator with a graph"),
    "graphs in an operator": (constant(graphs=[GraphProto()]), "an operator with a graph"),
    "two tensors that protobuf joins": (
        node(encoded(4, b"Constant"), encoded(5, encoded(5, encoded(1, 9)) + encoded(5, encoded(1, 9)))),
        NOT_ONNX,
    ),
    # Other parts
    "two networks that protobuf joins": (model() + model(), NOT_ONNX),
    "functions": (model() + encoded(25, b""), "training steps or functions"),
    "training": (model() + encoded(20, b""), "training steps or functions"),
    "sparse": (model(encoded(15, b"")), "sparse tensors"),
}


@pytest.mark.parametrize(("data", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError) as caught:
        onnxfile.read(path)
    assert str(caught.value).startswith(reason)


def test_accepted(tmp_path: Path) -> None:
    weights = [
        onnx.numpy_helper.from_array(np.zeros(shape, np.int8), str(shape))
        for shape in ((), (0,), (3, 0), (200,), (20, 10))
    ]
    one = onnx.numpy_helper.from_array(np.ones(1, np.float32))
    nodes = [ADD, NodeProto(op_type="Add", domain=""), helper.make_node("Constant", [], ["a"], value=one)]
    path = tmp_path / "m.onnx"
    for proto in (
        ModelProto(graph=GraphProto(node=nodes, initializer=weights)),
        onnx.load(find_model("digits")),
    ):
        path.write_bytes(proto.SerializeToString())
        assert onnxfile.read(path) == path.read_bytes()


@pytest.mark.parametrize(
    "data",
    [model(b"\x10\x00" * 3_000_000), tensor(encoded(1, b"\x01" * 6_000_000)), tensor(encoded(1, b"\x7f" * 6_000_000))],
    ids=["fields", "ones", "factors"],
)
def test_many_parts_take_no_long_time(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    started = time.process_time()
    with pytest.raises(ModelError, match="more than 1000000 parts"):
        onnxfile.read(path)
    assert time.process_time() - started < 20  # on a busy machine; one second on an idle one


def test_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ModelError, match=r"1099\.5 GB, where 1\.1 GB is the most"):
        onnxfile.read(path)


def test_damage_is_never_a_traceback(tmp_path: Path) -> None:
    """A real file cut at any place, or with any byte of its outline changed, is read or refused."""
    rng = np.random.default_rng(0)
    whole = ModelProto.FromString(find_model("digits").read_bytes())
    for weights in whole.graph.initializer:
        weights.ClearField("raw_data")
    data = whole.SerializeToString()
    path = tmp_path / "m.onnx"
    refused = 0
    for _ in range(300):
        changed = bytearray(data[: rng.integers(len(data))] if rng.random() < 0.3 else data)
        for at in rng.integers(max(len(changed), 1), size=3 if changed else 0):
            changed[at] = rng.integers(256)
        path.write_bytes(changed)
        try:
            onnxfile.read(path)
        except ModelError:
            refused += 1
    assert refused > 100


# Metadata

TEXTS = st.text(max_size=300)


@given(
    before=st.lists(st.tuples(TEXTS, TEXTS), max_size=4),
    changes=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4),
)
@settings(max_examples=100)
def test_metadata_is_changed_and_nothing_else(before: list[tuple[str, str]], changes: list[tuple[str, str]]) -> None:
    """What the onnx library reads of it. A key that stands twice is written once; the new one stands last."""
    tensor = TensorProto(dims=[200], data_type=3, raw_data=bytes(200))
    proto = ModelProto(ir_version=8, producer_name="asr", model_version=1 << 40, graph=GraphProto(initializer=[tensor]))
    proto.opset_import.add(domain="", version=17)
    for key, value in before:
        proto.metadata_props.add(key=key, value=value)
    data, expected = proto.SerializeToString(), list(before)
    for key, value in changes:
        data = onnxfile.with_metadata(data, key, value)
        expected = [one for one in expected if one[0] != key] + [(key, value)]
        assert onnxfile.metadata(data, key) == value
    found = ModelProto.FromString(data)
    assert [(one.key, one.value) for one in found.metadata_props] == expected
    assert onnxfile.metadata(data, "a key that is not there") == ""
    for one in (found, proto):
        one.ClearField("metadata_props")
    assert found == proto


def test_metadata_of_a_real_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    whole = onnxfile.read(find_model("digits"))
    (entry,) = onnx.load(find_model("digits")).metadata_props
    assert onnxfile.metadata(whole, "asr") == entry.value
    path.write_bytes(onnxfile.with_metadata(whole, "asr", entry.value))
    assert len(onnxfile.read(path)) == len(whole)
    assert onnx.load(path) == onnx.load(find_model("digits"))
    onnx.checker.check_model(onnx.load(path))
