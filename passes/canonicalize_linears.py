"""CanonicalizeLinears."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from qcompile.contract import Finding, Pass, Result
from qcompile.graph import all_nodes, constant, is_standard, layer_name, sole_reader
from qcompile.initializers import derive_initializer


@dataclasses.dataclass(frozen=True)
class CanonicalizeLinears(Pass):
    """MatMul(x, [1, .., in, out]) + [1, .., out] -> MatMul(x, [in, out]) + [out].

    Exporters write linears with axes of 1 around weight and bias, and a bias that is the same for all outputs as a
    single number; the canonical linear has a weight of two axes and one bias per output. Lazy, no second copy is held.
    Does not touch a MatMul whose constant comes first, and leaves the axes where dropping them would take one from the
    result.
    """

    looks_for: ClassVar[str] = "MatMul with a constant second input, with axes of 1 around its weight or bias"

    def call(self, model: ir.Model) -> Result:
        """Rewrite in place, node by node."""
        findings = []
        for node in list(all_nodes(model)):
            tensor = constant(node.inputs[1]) if is_standard(node, "MatMul") else None
            if tensor is None or constant(node.inputs[0]) is not None:
                continue
            changes = [_drop_axes(node), _flatten_bias(node)]
            findings += [Finding(layer_name(node), "converted", change) for change in changes if change]
        return Result(model, modified=bool(findings), findings=tuple(findings))


def _drop_axes(node: ir.Node) -> str:
    """MatMul(x, [1, .., 1, in, out]) -> MatMul(x, [in, out]) where x has as many axes."""
    x, weight = node.inputs
    tensor = constant(weight)
    assert x is not None
    assert weight is not None
    assert tensor is not None
    shape = tuple(tensor.shape.numpy())
    if len(shape) < 3 or math.prod(shape[:-2]) != 1 or x.shape is None or len(x.shape) < len(shape):
        return ""
    node.replace_input_with(
        1,
        derive_initializer(
            weight, f"{node.outputs[0].name}_weight", shape[-2:], lambda array: array.reshape(shape[-2:])
        ),
    )
    return "weight with axes of 1"


def _flatten_bias(node: ir.Node) -> str:
    """Add(MatMul(x, weight), [1, .., 1, out]) -> the same with [out]; a single number is repeated for each output."""
    add, weight = sole_reader(node.outputs[0]), constant(node.inputs[1])
    if not is_standard(add, "Add") or weight is None or len(weight.shape) != 2:
        return ""
    assert add is not None
    index = 1 if add.inputs[0] is node.outputs[0] else 0
    bias, tensor = add.inputs[index], constant(add.inputs[index])
    if bias is None or tensor is None:
        return ""
    shape, outputs = tuple(tensor.shape.numpy()), int(weight.shape.numpy()[1])
    output_shape = node.outputs[0].shape
    rank = len(output_shape) if output_shape is not None else 1
    if (
        shape == (outputs,)
        or math.prod(shape[:-1]) != 1
        or shape[-1:] not in ((), (1,), (outputs,))
        or len(shape) > rank
    ):
        return ""
    flat = derive_initializer(
        bias,
        f"{node.outputs[0].name}_bias",
        (outputs,),
        lambda array: np.broadcast_to(array.reshape(-1), (outputs,)),
    )
    add.replace_input_with(index, flat)
    return "bias with axes of 1"
