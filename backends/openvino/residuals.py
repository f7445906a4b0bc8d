"""LayerNormalization whose result is read by a residual connection and by quantized linears."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qcompile.backends.openvino.patterns import constant, constant_operand, readers
from qcompile.backends.openvino.runtime import opset

if TYPE_CHECKING:
    import openvino as ov


def split_norm_branches(model: ov.Model) -> None:
    """Split n * g + b, read by FakeQuantize and by a residual Add: each gets its own, merged with what it does.

    With n the normalized value, y = n * g + b, s the step of the FakeQuantize:
        FakeQuantize(y * c)      becomes  FakeQuantize(n * (g c / s) + (b c / s)), in whole steps: one kernel
        Add(x W + bias, y)       becomes  Add(x W + (bias + b), n * g): one kernel
    Otherwise the plugin writes y to memory and reads it three times. c is an explicit channel scale, or 1.

    Does not fire where y has only one of the two kinds of readers, or the other side of the Add has no bias.
    """
    for norm in model.get_ordered_ops():
        if norm.get_type_name() != "MVN":
            continue
        affine = _affine(norm)
        if affine is None:
            continue
        scaled, shifted, gain, bias = affine
        quantizers = [found for port in readers(shifted) for found in _quantizers(port.get_node())]
        additions = [port for port in readers(shifted) if _linear_bias(port) is not None]
        if not quantizers or not additions:
            continue
        for quantizer, factor in quantizers:
            _merge_into_quantizer(quantizer, norm.output(0), gain * factor, bias * factor)
        for port in additions:
            _merge_into_residual(port, scaled, bias)


def _affine(norm: ov.Node) -> tuple[ov.Output, ov.Output, np.ndarray, np.ndarray] | None:
    """Find n * g and n * g + b behind the normalization n, each with one reader on the way; also g and b, float32."""
    uses = readers(norm.output(0))
    multiply = uses[0].get_node() if len(uses) == 1 else None
    if multiply is None or multiply.get_type_name() != "Multiply":
        return None
    uses = readers(multiply.output(0))
    add = uses[0].get_node() if len(uses) == 1 else None
    gain = constant_operand(multiply)
    if add is None or add.get_type_name() != "Add" or gain is None:
        return None
    bias = constant_operand(add)
    return None if bias is None else (multiply.output(0), add.output(0), gain[1], bias[1])


def _quantizers(reader: ov.Node) -> list[tuple[ov.Node, np.ndarray]]:
    """Give each per-tensor FakeQuantize that the reader is or leads to, with the constant factor on the way."""
    if reader.get_type_name() == "FakeQuantize":
        return [(reader, np.ones(1, np.float32))] if _range(reader) is not None else []
    operand = constant_operand(reader) if reader.get_type_name() == "Multiply" else None
    if operand is None:
        return []
    nodes = [port.get_node() for port in readers(reader.output(0))]
    found = [
        (node, operand[1]) for node in nodes if node.get_type_name() == "FakeQuantize" and _range(node) is not None
    ]
    return found if len(found) == len(nodes) else []


def _range(quantizer: ov.Node) -> tuple[np.float32, np.float32] | None:
    low, high = constant(quantizer.input_value(1)), constant(quantizer.input_value(2))
    if low is None or high is None or low.size != 1 or high.size != 1:
        return None
    return np.float32(low.item()), np.float32(high.item())


def _merge_into_quantizer(quantizer: ov.Node, normalized: ov.Output, gain: np.ndarray, bias: np.ndarray) -> None:
    bounds = _range(quantizer)
    assert bounds is not None
    low, high = bounds
    levels = quantizer.get_attributes()["levels"]
    step = (high - low) / np.float32(levels - 1)
    factory = opset()
    steps = factory.add(factory.multiply(normalized, gain / step), bias / step)
    outputs = quantizer.input_value(3), quantizer.input_value(4)
    merged = factory.fake_quantize(steps, np.float32(low / step), np.float32(high / step), *outputs, levels)
    merged.set_friendly_name(quantizer.get_friendly_name())
    quantizer.output(0).replace(merged.output(0))


def _linear_bias(port: ov.Input) -> ov.Input | None:
    """Bias input of x W + bias when `port` is the other side of an Add with it, and nothing else reads it."""
    add = port.get_node()
    if add.get_type_name() != "Add":
        return None
    linear = add.input_value(1 - port.get_index())
    operand = constant_operand(linear.get_node()) if linear.get_node().get_type_name() == "Add" else None
    if operand is None or len(readers(linear)) != 1 or operand[0].get_node().get_type_name() != "MatMul":
        return None
    ports: list[ov.Input] = linear.get_node().inputs()
    return next(each for each in ports if each.get_source_output().get_node().get_type_name() == "Constant")


def _merge_into_residual(port: ov.Input, scaled: ov.Output, bias: np.ndarray) -> None:
    target = _linear_bias(port)
    assert target is not None
    total = constant(target.get_source_output())
    assert total is not None
    target.replace_source_output(opset().constant((total + bias).astype(np.float32)).output(0))
    port.replace_source_output(scaled)
