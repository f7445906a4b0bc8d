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
from qcompile.initializers import derive_initializer, register_initializer
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
        for node in list(all_nodes(model)):
            tensor = constant(node.inputs[1]) if is_standard(node, "Gemm") else None
            if tensor is None or tensor.dtype not in _FLOATS or constant(node.inputs[0]) is not None:
                continue
            findings.append(Finding(layer_name(node), "converted", "Gemm to MatMul and Add"))
            _lower(node)
        return Result(model, modified=bool(findings), findings=tuple(findings))


def _lower(node: ir.Node) -> None:
    """Replace a Gemm by Transpose if need be, MatMul, and Add if there is a C."""
    x, weight = node.inputs[0], node.inputs[1]
    assert x is not None
    assert weight is not None
    assert node.graph is not None
    tape = ir.tape.Tape()
    if node.attributes.get_int("transA", 0):
        x = tape.op("Transpose", [x], {"perm": [1, 0]})
    weight = _weight(node, weight)
    output = tape.op("MatMul", [x, weight])
    output.shape, output.type = node.outputs[0].shape, node.outputs[0].type
    matmul = output.producer()
    addend = node.inputs[2] if len(node.inputs) > 2 else None
    beta = node.attributes.get_float("beta", 1.0)
    if addend is not None and beta != 0:
        output.name = f"{node.outputs[0].name}_product"
        output = tape.op("Add", [output, _addend(node, addend, weight, beta, tape)])
    _name_nodes(node, matmul, tape.nodes)
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], tape.nodes, node.outputs, [output])


def _name_nodes(gemm: ir.Node, matmul: ir.Node | None, nodes: Sequence[ir.Node]) -> None:
    """The MatMul takes the name of the Gemm; the nodes around it are named after it."""
    for new in nodes:
        copy_names(gemm, new)
        if new is not matmul:
            new.name = f"{gemm.name}_{new.op_type}" if gemm.name else None


def _weight(node: ir.Node, weight: ir.Value) -> ir.Value:
    """Alpha * op(B) as an initializer [in, out]; B itself where that is what it is."""
    alpha = node.attributes.get_float("alpha", 1.0)
    transposed = bool(node.attributes.get_int("transB", 0))
    if alpha == 1.0 and not transposed:
        return weight
    tensor = constant(weight)
    assert tensor is not None
    rows, columns = tensor.shape.numpy()
    shape = (columns, rows) if transposed else (rows, columns)

    def oriented(array: np.ndarray) -> np.ndarray:
        turned = array.T if transposed else array
        return turned if alpha == 1.0 else (turned * alpha).astype(array.dtype)

    return derive_initializer(weight, node, f"{node.outputs[0].name}_weight", shape, oriented)


def _addend(node: ir.Node, addend: ir.Value, weight: ir.Value, beta: float, tape: ir.tape.Tape) -> ir.Value:
    """Beta * C, with one value per output where C is a constant that allows it."""
    tensor = constant(addend)
    if tensor is None:
        if beta == 1.0:
            return addend
        assert weight.dtype is not None
        assert isinstance(node.graph, ir.Graph)
        name = unique_name(node.graph, f"{node.outputs[0].name}_beta")
        factor = ir.tensor(np.asarray(beta, weight.dtype.numpy()), name=name)
        return tape.op("Mul", [addend, register_initializer(node, factor)])
    assert weight.shape is not None
    outputs = int(weight.shape.numpy()[1])
    shape = tuple(tensor.shape.numpy())
    per_output = math.prod(shape[:-1]) == 1
    new_shape = (outputs,) if per_output else shape
    if beta == 1.0 and new_shape == shape:
        return addend

    def scaled(array: np.ndarray) -> np.ndarray:
        flat = np.broadcast_to(array.reshape(-1), new_shape) if per_output else array
        return (flat * beta).astype(array.dtype)

    return derive_initializer(addend, node, f"{node.outputs[0].name}_bias", new_shape, scaled)
