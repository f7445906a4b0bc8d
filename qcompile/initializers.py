"""New initializers, lazy where they are computed from others: the compiler never holds a second copy of a weight."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx_ir as ir

from qcompile.graph import constant, numbered, unique_name


def lazy_tensor(
    source: ir.TensorProtocol,
    name: str,
    shape: tuple[int, ...],
    apply: Callable[[np.ndarray], np.ndarray],
    dtype: ir.DataType | None = None,
) -> ir.LazyTensor:
    """Tensor that is computed from another each time its data is read.

    Args:
        source: tensor that `apply` is given as an array.
        name: name of the new tensor.
        shape: shape of what `apply` returns.
        apply: returns the new array; it is not told the type, see `dtype`.
        dtype: type of the new tensor; None keeps that of the source.
    """
    kept = source.dtype if dtype is None else dtype
    return ir.LazyTensor(
        lambda: ir.tensor(np.asarray(apply(source.numpy()), order="C"), kept), kept, ir.Shape(shape), name=name
    )


def new_initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Add an initializer with this array to the graph, and return its value; a name that is taken gets a number."""
    unique = unique_name(graph, name)
    return register_initializer(graph, ir.tensor(np.asarray(array, order="C"), name=unique))


def known_initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value | None:
    """Return the constant of this name, or of this name with a number, that has this content; None without one."""
    unused = unique_name(graph, name)
    for candidate in itertools.takewhile(lambda each: each != unused, numbered(name)):
        existing = graph.initializers.get(candidate)
        tensor = constant(existing)
        if tensor is None or tuple(tensor.shape) != array.shape or tensor.dtype.numpy() != array.dtype:
            continue
        if np.array_equal(tensor.numpy(), array):
            return existing
    return None


def shared_initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Return the initializer of this name with this array; makes it when it does not exist yet.

    A name that the user's model has taken for something else gets a number.
    """
    known = known_initializer(graph, name, array)
    return known if known is not None else new_initializer(graph, name, array)


def register_initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """Add an initializer of the name of the tensor, which nothing has yet, to the graph, and return its value."""
    value = ir.Value(
        name=tensor.name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def derive_initializer(
    source: ir.Value, name: str, shape: tuple[int, ...], apply: Callable[[np.ndarray], np.ndarray]
) -> ir.Value:
    """Lazy initializer computed from another; it keeps value and name where the source has one reader.

    What else reads the source, the user among them where it is a graph output, keeps reading it as it was. The new one
    is in the graph of the source, also for a node in a branch of an If or in the body of a Loop: a name that is new in
    the branch may be one of the graph around it, which a branch must not use again.

    Args:
        source: value of the initializer to start from.
        name: name of the new initializer where the source is read elsewhere too; gets a number where it is taken.
        shape: shape of what `apply` returns.
        apply: from the array of the source to the new array.
    """
    tensor = constant(source)
    assert tensor is not None
    assert source.name is not None
    if len(source.uses()) > 1 or source.is_graph_output():
        graph = source.graph
        assert isinstance(graph, ir.Graph)
        return register_initializer(graph, lazy_tensor(tensor, unique_name(graph, name), shape, apply))
    source.const_value = lazy_tensor(tensor, source.name, shape, apply)
    source.shape = ir.Shape(shape)
    return source


def concatenated(graph: ir.Graph, parts: Sequence[ir.Value], axis: int) -> ir.Value:
    """Lazy initializer of constants of one type, one behind the other along an axis; the parts stay."""
    tensors = [tensor for part in parts if (tensor := constant(part)) is not None]
    shape = [int(size) for size in tensors[0].shape.numpy()]
    shape[axis] = sum(int(tensor.shape.numpy()[axis]) for tensor in tensors)
    joined = ir.LazyTensor(
        lambda: ir.tensor(np.concatenate([tensor.numpy() for tensor in tensors], axis=axis), tensors[0].dtype),
        tensors[0].dtype,
        ir.Shape(shape),
        name=unique_name(graph, "+".join(str(part.name) for part in parts)),
    )
    return register_initializer(graph, joined)


def remove_unused(values: Iterable[ir.Value]) -> None:
    """Remove initializers that nothing reads any more from their graph."""
    for value in values:
        graph = value.graph
        if graph is not None and not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            graph.initializers.pop(str(value.name), None)


def without_data(model: ir.Model, larger_than: int = -1) -> tuple[ir.Model, int]:
    """Copy a model with its initializers as inputs, whose name, type and shape take as many bytes; return their data's.

    Args:
        model: is not changed; initializers of subgraphs and functions stay as they are.
        larger_than: bytes up to which an initializer stays one.
    """
    skeleton, left_out = model.clone(), 0
    graph = skeleton.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= larger_than:
            continue
        left_out += tensor.nbytes
        del graph.initializers[name]
        value.const_value = None
        if not value.is_graph_input():
            graph.inputs.append(value)
    return skeleton, left_out


def data_bytes(model: ir.Model) -> int:
    """Return how many bytes the data of the initializers of the main graph takes."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
