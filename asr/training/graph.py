"""An exported graph made smaller: weights that are shared, halved, quantised."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic


def share_weights(graph: onnx.ModelProto, named: set[str]) -> None:
    """Let operators with equal weights share them: a forward direction stands twice, for the part and for its context.

    named: what keeps its name, of `exported.name_weights`.
    """
    tensors = sorted(graph.graph.initializer, key=lambda tensor: tensor.name not in named)  # whose names come first
    first: dict[tuple[object, ...], str] = {}
    renamed: dict[str, str] = {}
    for tensor in tensors:
        content = tensor.raw_data or tensor.SerializeToString()
        one = first.setdefault((tensor.data_type, *tensor.dims, content), tensor.name)
        renamed[tensor.name] = tensor.name if tensor.name in named else one
    nodes = list(graph.graph.node)
    for node in nodes:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        if node.op_type == "Identity" and node.input[0] in renamed:  # how torch's exporter shares some itself
            renamed[node.output[0]] = node.input[0]
    _replace(graph.graph.node, [node for node in nodes if node.output[0] not in renamed])
    _replace(
        graph.graph.initializer, [tensor for tensor in graph.graph.initializer if renamed[tensor.name] == tensor.name]
    )


def halve(graph: onnx.ModelProto, array: np.ndarray) -> None:
    """Store a constant, whose numbers float16 holds exactly, in that."""
    for node in graph.graph.node:
        if node.op_type != "Constant" or list(node.attribute[0].t.dims) != list(array.shape):
            continue
        if np.array_equal(onnx.numpy_helper.to_array(node.attribute[0].t), array):
            half = onnx.numpy_helper.from_array(array.astype(np.float16), f"{node.output[0]}_float16")
            graph.graph.initializer.append(half)
            node.CopyFrom(onnx.helper.make_node("Cast", [half.name], node.output, node.name, to=onnx.TensorProto.FLOAT))


def quantise(
    graph: onnx.ModelProto, folder: Path, named: set[str], operators: Sequence[str] = ("LSTM", "MatMul", "Gemm")
) -> onnx.ModelProto:
    """The graph with the weights of some operators in int8, activations quantised as they come.

    named: of `share_weights`.
    """
    features = [node.name for node in graph.graph.node if node.name.startswith("/features")]
    _split_weights(graph, "LSTM")
    onnx.save(graph, folder / "float.onnx")
    logging.disable(logging.WARNING)  # it recommends a preparation that changes nothing here
    try:
        quantize_dynamic(
            folder / "float.onnx",
            folder / "int8.onnx",
            op_types_to_quantize=list(operators),
            nodes_to_exclude=features,
            weight_type=QuantType.QInt8,
        )
    finally:
        logging.disable(logging.NOTSET)
    graph = onnx.load(folder / "int8.onnx")
    share_weights(graph, {f"{name}{what}" for name in named for what in ("", "_quantized", "_scale", "_zero_point")})
    return graph


def _split_weights(graph: onnx.ModelProto, operator: str) -> None:
    """Each operator its own weights: quantize_dynamic quantises shared ones for the first operator only."""
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    used: set[str] = set()
    for number, node in enumerate(graph.graph.node):
        for index, name in enumerate(node.input):
            if node.op_type == operator and name in used and name in tensors:
                copy = onnx.TensorProto()
                copy.CopyFrom(tensors[name])
                copy.name = node.input[index] = f"{name}_{number}"
                graph.graph.initializer.append(copy)
            used.add(name)


def _replace(repeated: Any, items: list[Any]) -> None:
    del repeated[:]
    repeated.extend(items)
