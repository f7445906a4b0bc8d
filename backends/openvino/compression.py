"""8-bit weights of linears with float activations, in the form that OpenVINO keeps compressed in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qcompile.backends.openvino.patterns import constant
from qcompile.backends.openvino.runtime import opset

if TYPE_CHECKING:
    import openvino as ov


def compress_weights(model: ov.Model) -> None:
    """MatMul(x, (Convert(W) - 0) * s)  becomes  MatMul(x, Convert(Wt) * st, transposed): OpenVINO's compressed linear.

    The form that the ONNX front end writes is unpacked to float when the model is compiled: four times the memory,
    and no quantization of the activations at run time. Does not touch linears whose activations are quantized
    statically: those become integer linears as they are. Does not fire on an asymmetric weight, nor where x is computed
    from constants: OpenVINO computes the product when it compiles the model, and refuses the compressed form of it
    (measured, 2026.4).
    """
    constants: set[str] = set()
    for node in model.get_ordered_ops():
        if _is_constant(node, constants):
            constants.add(node.get_name())
            continue
        if node.get_type_name() != "MatMul" or _quantized_statically(node.input_value(0)):
            continue
        weight = _weight(node.input_value(1))
        attributes = node.get_attributes()
        if weight is None or attributes["transpose_b"]:
            continue
        values, scale = weight
        factory = opset()
        stored = factory.constant(np.ascontiguousarray(values.T))
        scales = factory.constant(np.broadcast_to(scale.reshape(-1, 1), (values.shape[1], 1)).copy())
        dequantized = factory.multiply(factory.convert(stored, "f32"), scales)
        linear = factory.matmul(node.input_value(0), dequantized, attributes["transpose_a"], True)
        linear.set_friendly_name(node.get_friendly_name())
        linear.output(0).get_tensor().set_names(node.output(0).get_names())
        node.output(0).replace(linear.output(0))


def _is_constant(node: ov.Node, constants: set[str]) -> bool:
    """Whether the node is a constant or computed from those of these names."""
    sources = [value.get_node() for value in node.input_values()]
    computed = bool(sources) and all(source.get_name() in constants for source in sources)
    return computed or str(node.get_type_name()) == "Constant"


def _quantized_statically(output: ov.Output) -> bool:
    node = output.get_node()
    while node.get_type_name() in ("Convert", "Multiply", "Subtract"):
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "FakeQuantize")


def _weight(output: ov.Output) -> tuple[np.ndarray, np.ndarray] | None:
    """Integers [K, N] and scale ([] or [N]) of a symmetric weight as the ONNX front end writes it."""
    multiply = output.get_node()
    if multiply.get_type_name() != "Multiply":
        return None
    scale = _folded(multiply.input_value(1))
    values = multiply.input_value(0).get_node()
    if values.get_type_name() == "Subtract":
        zero_point = _folded(values.input_value(1))
        if zero_point is None or zero_point.any():
            return None
        values = values.input_value(0).get_node()
    if scale is None or values.get_type_name() != "Convert":
        return None
    integers = constant(values.input_value(0))
    if integers is None or integers.dtype != np.int8 or integers.ndim != 2:
        return None
    return (integers, scale) if scale.size in (1, integers.shape[1]) else None


def _folded(output: ov.Output) -> np.ndarray | None:
    """Value of a constant behind any number of Convert and Reshape; its shape is that of the constant."""
    while output.get_node().get_type_name() in ("Convert", "Reshape"):
        output = output.get_node().input_value(0)
    return constant(output)
