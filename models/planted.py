"""Plant outlier channels into the norms of a float model without changing what it computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile.errors import ModelError
from qcompile.graph import constant_array, is_standard, readers
from qcompile.initializers import new_initializer


def plant_outliers(
    model: ir.Model, *, fraction: float = 0.01, magnitude: tuple[float, float] = (20.0, 100.0), seed: int = 0
) -> int:
    """Multiply random channels of every norm that feeds linears, and divide those channels where they are read.

    A linear's weight rows are divided. Any other reader of the norm, such as the residual of a post-norm encoder, reads
    the value through a Mul by the inverse, so that the float model is unchanged to rounding. The model is changed in
    place.

    Does not apply to norms whose weight is not an initializer, that no MatMul or Gemm with a constant weight reads, or
    that are an output of the model.

    Args:
        model: opset 17 or newer, with LayerNormalization or RMSNormalization operators.
        fraction: share of channels that become outliers; at least one channel of every norm.
        magnitude: range of the factors.
        seed: of channels and factors.

    Returns:
        The number of norms with planted outliers.

    Raises:
        ModelError: when no norm qualifies.
    """
    generator = np.random.default_rng(seed)
    planted = 0
    for norm in list(model.graph):
        if not is_standard(norm, "LayerNormalization", "RMSNormalization"):
            continue
        gamma = constant_array(norm.inputs[1])
        if gamma is None or not _feeds_linears(norm):
            continue
        factors = np.ones(gamma.shape[-1], dtype=np.float32)
        chosen = generator.choice(len(factors), max(1, round(fraction * len(factors))), replace=False)
        factors[chosen] = generator.uniform(*magnitude, len(chosen)).astype(np.float32)
        _plant(model, norm, factors)
        planted += 1
    if not planted:
        raise ModelError("model", "it has no norm with a constant weight that feeds a linear", "Export it at opset 23")
    return planted


def _feeds_linears(norm: ir.Node) -> bool:
    value = norm.outputs[0]
    return not value.is_graph_output() and any(_weight_axis(node, value) is not None for node in readers(value))


def _weight_axis(node: ir.Node, x: ir.Value) -> int | None:
    """Axis of the input channels in the constant weight of a MatMul or Gemm that reads x, else None."""
    if not is_standard(node, "MatMul", "Gemm") or node.inputs[0] is not x:
        return None
    weight = constant_array(node.inputs[1])
    if weight is None or weight.ndim != 2:
        return None
    transposed = node.attributes.get("transB")
    return 1 if transposed is not None and transposed.as_int() else 0


def _plant(model: ir.Model, norm: ir.Node, factors: np.ndarray) -> None:
    value = norm.outputs[0]
    uses = list(value.uses())
    for index in range(1, len(norm.inputs)):
        _replace_constant(model, norm, index, factors)
    compensated: ir.Value | None = None
    for use in uses:
        axis = _weight_axis(use.node, value)
        if axis is not None:
            _replace_constant(model, use.node, 1, 1 / factors[:, None] if axis == 0 else 1 / factors)
            continue
        if compensated is None:
            compensated = _divided(model, norm, factors)
        use.node.replace_input_with(use.idx, compensated)


def _divided(model: ir.Model, norm: ir.Node, factors: np.ndarray) -> ir.Value:
    """Insert value * (1 / factors) behind the norm."""
    inverse = new_initializer(model.graph, f"{norm.outputs[0].name}_unplanted", (1 / factors).astype(np.float32))
    mul = ir.node("Mul", [norm.outputs[0], inverse])
    mul.outputs[0].shape, mul.outputs[0].type = norm.outputs[0].shape, norm.outputs[0].type
    model.graph.insert_after(norm, mul)
    return mul.outputs[0]


def _replace_constant(model: ir.Model, node: ir.Node, index: int, factors: np.ndarray) -> None:
    """Give the node its own copy of a constant input, times the factors."""
    old = node.inputs[index]
    array = constant_array(old)
    if old is None or array is None:
        return
    planted = new_initializer(model.graph, f"{old.name}_planted", (array * factors).astype(array.dtype))
    node.replace_input_with(index, planted)
    if not old.uses() and old.name is not None:
        del model.graph.initializers[old.name]
