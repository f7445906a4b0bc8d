"""Every tensor of a ModelProto, wherever it stands, and whether it holds what its header claims."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator

import onnx

from qcompile.errors import ModelError

MOST_ELEMENTS = 2**59
"""Elements whose bytes still count as int64, of 16 bytes each."""

_EXPORT_AGAIN = "Export or download the model again"

_FIELDS = {
    "FLOAT": ("float_data", 1),
    "COMPLEX64": ("float_data", 2),
    "DOUBLE": ("double_data", 1),
    "COMPLEX128": ("double_data", 2),
    "INT64": ("int64_data", 1),
    "UINT64": ("uint64_data", 1),
    "UINT32": ("uint64_data", 1),
    "STRING": ("string_data", 1),
}
"""Type -> field that holds its values outside raw_data, and entries for each element; int32_data for all others."""

_BITS = {"STRING": 0, "BOOL": 8, "FLOAT": 32, "DOUBLE": 64, "COMPLEX64": 64, "COMPLEX128": 128, "BFLOAT16": 16}


def count(dims: Iterable[int], name: str) -> int:
    """Return the product of the dims; zeros count as ones where it is about overflow.

    Raises:
        ModelError: a dim is negative, or the bytes of so many elements are no int64.
    """
    sizes = list(dims)
    if any(size < 0 for size in sizes):
        raise ModelError(name, f"its dims {_short(sizes)} are negative", _EXPORT_AGAIN)
    product = 1
    for size in sizes:
        product *= max(size, 1)
        if product > MOST_ELEMENTS:
            raise ModelError(name, f"the product of its dims {_short(sizes)} overflows", _EXPORT_AGAIN)
    return 0 if 0 in sizes else product


def _short(sizes: list[int]) -> str:
    return str(sizes) if len(sizes) <= 8 else f"{str(sizes[:8])[:-1]}, ...]"


def stored_bytes(tensor: onnx.TensorProto) -> int:
    """Return how many bytes the dims and the type of a tensor ask for; 0 for texts.

    Raises:
        ModelError: the type is not known, or the dims are none.
    """
    return math.ceil(count(tensor.dims, _name(tensor)) * _bits(_type_name(tensor)) / 8)


def check_data(tensor: onnx.TensorProto) -> None:
    """Raise ModelError unless a tensor with its data inside holds exactly what its dims and type ask for."""
    kind, elements = _type_name(tensor), count(tensor.dims, _name(tensor))
    if tensor.HasField("raw_data") and kind != "STRING":
        held, asked, unit = len(tensor.raw_data), stored_bytes(tensor), "bytes"
    else:
        field, each = _FIELDS.get(kind, ("int32_data", 1))
        packed = 8 // _bits(kind) if _bits(kind) in (2, 4) else 1
        held, asked, unit = len(getattr(tensor, field)), math.ceil(elements * each / packed), f"entries of {field}"
    if held != asked:
        reason = f"its dims {_short(list(tensor.dims))} of {kind} ask for {asked} {unit}, and it holds {held}"
        raise ModelError(_name(tensor), reason, _EXPORT_AGAIN)


def _name(tensor: onnx.TensorProto) -> str:
    return tensor.name or "a tensor"


def _type_name(tensor: onnx.TensorProto) -> str:
    if tensor.data_type not in onnx.TensorProto.DataType.values() or not tensor.data_type:
        raise ModelError(_name(tensor), f"its type {tensor.data_type} is not known", _EXPORT_AGAIN)
    return str(onnx.TensorProto.DataType.Name(tensor.data_type))


def _bits(kind: str) -> int:
    """INT4, FLOAT8E4M3FN, UINT32 -> 4, 8, 32."""
    return _BITS[kind] if kind in _BITS else int(re.findall(r"\d+", kind)[0])


def tensors_of_model(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield the tensors of every position: initializers, attributes, sparse ones, subgraphs, functions, training."""
    yield from _tensors_of_graph(model.graph)
    for function in model.functions:
        for attribute in function.attribute_proto:
            yield from _tensors_of_attribute(attribute)
        yield from _tensors_of_nodes(function.node)
    for training in model.training_info:
        yield from _tensors_of_graph(training.initialization)
        yield from _tensors_of_graph(training.algorithm)


def _tensors_of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from _tensors_of_attribute(attribute)


def _tensors_of_attribute(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    if attribute.HasField("sparse_tensor"):
        yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
    for sparse in attribute.sparse_tensors:
        yield from (sparse.values, sparse.indices)
    if attribute.HasField("g"):
        yield from _tensors_of_graph(attribute.g)
    for graph in attribute.graphs:
        yield from _tensors_of_graph(graph)
