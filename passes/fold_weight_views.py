"""FoldWeightViews."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.contract import Finding, Pass, Result
from qcompile.graph import all_nodes, constant, constant_array, is_standard, layer_name
from qcompile.initializers import lazy_tensor, register_initializer
from qcompile.stored_blocks import StoredTensor

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclasses.dataclass(frozen=True)
class _View:
    """The array transposed by `perm`, where that is given, then in this shape and type."""

    shape: tuple[int, ...]
    dtype: ir.DataType
    perm: tuple[int, ...] | None = None

    def apply(self, array: np.ndarray) -> np.ndarray:
        turned = array if self.perm is None else array.transpose(self.perm)
        return turned.reshape(self.shape).astype(self.dtype.numpy(), copy=False)


@dataclasses.dataclass(frozen=True)
class FoldWeightViews(Pass):
    """Transpose, Reshape, Flatten, Squeeze, Unsqueeze or floating Cast of a weight -> the weight in that form.

    The new initializer is lazy: it is computed from the old one when it is written, so that no second copy of the
    model is held. Equal views of one weight become one initializer, so that what modules share stays shared. Small
    constants of any operator are folded before by onnxscript; this pass is for the large ones.
    Does not fold what is a graph output, a view whose shape or axes are computed, or a cast to or from integers.
    """

    looks_for: ClassVar[str] = "Transpose, Reshape, Flatten, Squeeze, Unsqueeze or Cast of an initializer"

    def call(self, model: ir.Model) -> Result:
        """Fold in graph order, so that a chain of views becomes one initializer."""
        findings = []
        made: dict[tuple[ir.Value, _View, ir.Graph], ir.Value] = {}
        for node in list(all_nodes(model)):
            source = node.inputs[0] if node.inputs else None
            tensor = constant(source)
            if source is None or tensor is None or node.outputs[0].is_graph_output():
                continue
            view = _view(node, tensor)
            if view is None or not isinstance(node.graph, ir.Graph):
                continue
            findings.append(Finding(layer_name(node), "folded", f"{node.op_type} of {source.name}"))
            key = (source, view, node.graph)
            if key not in made:
                made[key] = register_initializer(node.graph, _lazy(node, tensor, view))
            node.outputs[0].replace_all_uses_with(made[key])
            node.graph.remove(node, safe=True)
        return Result(model, modified=bool(findings), findings=tuple(findings))


def _view(node: ir.Node, tensor: ir.TensorProtocol) -> _View | None:
    """The view that the node makes; None where the node is no view, not a constant one, or not one of this tensor."""
    shape, dtype = tuple(tensor.shape.numpy()), tensor.dtype
    if is_standard(node, "Cast"):
        to = ir.DataType(node.attributes.get_int("to", 0))
        if dtype not in _FLOATS or to not in _FLOATS:
            return None
        return _View(shape, to)
    if is_standard(node, "Transpose"):
        perm = tuple(node.attributes.get_ints("perm", tuple(reversed(range(len(shape))))))
        if sorted(perm) != list(range(len(shape))):
            return None
        return _View(tuple(shape[axis] for axis in perm), dtype, perm)
    new_shape = _new_shape(node, shape)
    fits = new_shape is not None and min(new_shape, default=0) >= 0 and math.prod(new_shape) == math.prod(shape)
    return _View(new_shape, dtype) if fits and new_shape is not None else None


def _new_shape(node: ir.Node, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Shape that Reshape, Flatten, Squeeze or Unsqueeze gives; None for other nodes and computed shapes."""
    if is_standard(node, "Flatten"):
        axis = node.attributes.get_int("axis", 1)
        return math.prod(shape[:axis]), math.prod(shape[axis:])
    if not is_standard(node, "Reshape", "Squeeze", "Unsqueeze"):
        return None
    argument = constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
    if argument is None:
        return (
            tuple(dim for dim in shape if dim != 1) if is_standard(node, "Squeeze") and len(node.inputs) == 1 else None
        )
    numbers = [int(number) for number in argument.reshape(-1)]
    if is_standard(node, "Reshape"):
        return _reshaped(shape, numbers, keeps_zero=bool(node.attributes.get_int("allowzero", 0)))
    if is_standard(node, "Squeeze"):
        dropped = {axis + len(shape) if axis < 0 else axis for axis in numbers}
        return tuple(dim for axis, dim in enumerate(shape) if axis not in dropped)
    rank = len(shape) + len(numbers)
    added, rest = {axis + rank if axis < 0 else axis for axis in numbers}, iter(shape)
    return tuple(1 if axis in added else next(rest, 0) for axis in range(rank))


def _reshaped(shape: tuple[int, ...], numbers: list[int], *, keeps_zero: bool) -> tuple[int, ...] | None:
    """Shape that ONNX's Reshape gives: 0 copies a dimension (unless kept), -1 takes what is left."""
    if 0 in numbers[len(shape) :] and not keeps_zero:
        return None
    dims = [shape[axis] if dim == 0 and not keeps_zero else dim for axis, dim in enumerate(numbers)]
    known = math.prod(dim for dim in dims if dim != -1)
    if known == 0 and -1 in dims:
        return None
    return tuple(math.prod(shape) // known if dim == -1 else dim for dim in dims)


def _lazy(node: ir.Node, tensor: ir.TensorProtocol, view: _View) -> ir.LazyTensor:
    """Lazy tensor named as the output of the node; the transpose of what came quantized still knows how."""
    name = node.outputs[0].name
    assert name is not None
    if isinstance(tensor, StoredTensor) and view.perm == (1, 0):
        return tensor.turned(name)
    return lazy_tensor(tensor, name, view.shape, view.apply, view.dtype)
