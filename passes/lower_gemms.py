"""LowerGemms."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.contract import Finding, Pass, Result
from qcompile.graph import all_nodes, constant, is_standard, layer_name, unique_name
from qcompile.initializers import derive_initializer, new_initializer, remove_unused
from qcompile.rewriting import copy_names

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclasses.dataclass(frozen=True)
class LowerGemms(Pass):
    """alpha * op(A) @ op(B) + beta * C with a constant B -> MatMul(op(A), weight [in, out]) and Add(., bias [out]).

    In every transposition and with every alpha and beta; the MatMul takes the name of the Gemm. A transposed or scaled
    weight is lazy. A constant C with one value per output, or one in all, becomes the bias; any other C is added as it
    is. Does not touch a Gemm of two activations or of integers.
    """

    looks_for: ClassVar[str] = "Gemm whose second input is a constant"

    def call(self, model: ir.Model) -> Result:
        """Rewrite in place."""
        findings = []
        derived = _Derived()
        for node in list(all_nodes(model)):
            tensor = constant(node.inputs[1]) if is_standard(node, "Gemm") else None
            if tensor is None or tensor.dtype not in _FLOATS or constant(node.inputs[0]) is not None:
                continue
            findings.append(Finding(layer_name(node), "converted", "Gemm to MatMul and Add"))
            _lower(node, derived)
        derived.remove_sources()
        return Result(model, modified=bool(findings), findings=tuple(findings))


class _Derived:
    """Weights and biases in the form that a linear wants, each made once: Gemms that share one go on sharing it."""

    def __init__(self) -> None:
        self._made: dict[tuple[ir.Value, tuple[int, ...], bool, float], ir.Value] = {}

    def initializer(
        self, source: ir.Value, name: str, shape: tuple[int, ...], *, transposed: bool, factor: float
    ) -> ir.Value:
        """Source, turned if `transposed`, broadcast to the shape and multiplied by the factor."""

        def apply(array: np.ndarray) -> np.ndarray:
            turned = array.T if transposed else array
            whole = turned if turned.shape == shape else np.broadcast_to(turned.reshape(-1), shape)
            return whole if factor == 1.0 else (whole * factor).astype(array.dtype, copy=False)

        key = (source, shape, transposed, factor)
        if key not in self._made:
            self._made[key] = derive_initializer(source, name, shape, apply)
        return self._made[key]

    def remove_sources(self) -> None:
        """Remove what nothing reads any more."""
        remove_unused(source for source, *_ in self._made)


def _lower(node: ir.Node, derived: _Derived) -> None:
    """Replace a Gemm by Transpose if need be, MatMul, and Add if there is a C."""
    x, weight = node.inputs[0], node.inputs[1]
    assert x is not None
    assert weight is not None
    assert node.graph is not None
    tape = ir.tape.Tape()
    if node.attributes.get_int("transA", 0):
        x = tape.op("Transpose", [x], {"perm": [1, 0]})
    weight = _weight(node, weight, derived)
    output = tape.op("MatMul", [x, weight])
    output.shape, output.type = node.outputs[0].shape, node.outputs[0].type
    matmul = output.producer()
    addend = node.inputs[2] if len(node.inputs) > 2 else None
    beta = node.attributes.get_float("beta", 1.0)
    if addend is not None and beta != 0:
        assert isinstance(weight.graph, ir.Graph)  # of an initializer: the graph around the node, or the same
        output.name = unique_name(weight.graph, f"{node.outputs[0].name}_product")
        output = tape.op("Add", [output, _addend(node, addend, weight, beta, tape, derived)])
    _name_nodes(node, matmul, tape.nodes)
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], tape.nodes, node.outputs, [output])


def _name_nodes(gemm: ir.Node, matmul: ir.Node | None, nodes: Sequence[ir.Node]) -> None:
    """The MatMul takes the name of the Gemm; the nodes around it are named after it."""
    for new in nodes:
        copy_names(gemm, new)
        if new is not matmul:
            new.name = f"{gemm.name}_{new.op_type}" if gemm.name else None


def _weight(node: ir.Node, weight: ir.Value, derived: _Derived) -> ir.Value:
    """Alpha * op(B) as an initializer [in, out]; B itself where that is what it is."""
    alpha = node.attributes.get_float("alpha", 1.0)
    transposed = bool(node.attributes.get_int("transB", 0))
    if alpha == 1.0 and not transposed:
        return weight
    tensor = constant(weight)
    assert tensor is not None
    rows, columns = tensor.shape.numpy()
    shape = (columns, rows) if transposed else (rows, columns)
    name = f"{node.outputs[0].name}_weight"
    return derived.initializer(weight, name, shape, transposed=transposed, factor=alpha)


def _addend(
    node: ir.Node, addend: ir.Value, weight: ir.Value, beta: float, tape: ir.tape.Tape, derived: _Derived
) -> ir.Value:
    """Beta * C, with one value per output where C is a constant that allows it."""
    tensor = constant(addend)
    if tensor is None:
        if beta == 1.0:
            return addend
        assert weight.dtype is not None
        assert isinstance(weight.graph, ir.Graph)
        factor = np.asarray(beta, weight.dtype.numpy())
        return tape.op("Mul", [addend, new_initializer(weight.graph, f"{node.outputs[0].name}_beta", factor)])
    assert weight.shape is not None
    outputs = int(weight.shape.numpy()[1])
    shape = tuple(tensor.shape.numpy())
    per_output = math.prod(shape[:-1]) == 1
    new_shape = (outputs,) if per_output else shape
    if beta == 1.0 and new_shape == shape:
        return addend
    name = f"{node.outputs[0].name}_bias"
    return derived.initializer(addend, name, new_shape, transposed=False, factor=beta)
