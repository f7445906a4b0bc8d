"""Maxima and minima that are quantized: OpenVINO's kernel of both together is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qcompile.backends.openvino.patterns import constant, readers
from qcompile.backends.openvino.runtime import opset

if TYPE_CHECKING:
    import openvino as ov


def keep_extrema_apart(model: ov.Model) -> None:
    """FakeQuantize(ReduceMax(x))  ->  FakeQuantize(Maximum(m, m)) with m = ReduceMax(x), and the same for ReduceMin.

    The CPU plugin fuses what follows a reduction to its kernel, which gathers the extremes of one block after the other
    in the memory of the result: in 8 bits, before they are quantized. Results were wrong by half of their range, for
    any shape and axis (measured, 2026.4); sums, means, products and norms are right. A value with two readers is not
    fused, and the larger of a number and itself is that number.

    Leaves alone extremes that nothing quantizes on the way through operators with constant operands, which are the ones
    that the plugin fuses, and those that several nodes read. Twice changes nothing more.
    """
    factory = opset()
    for node in model.get_ordered_ops():
        if node.get_type_name() not in ("ReduceMax", "ReduceMin") or not _is_quantized(node.output(0)):
            continue
        (port,) = readers(node.output(0))
        port.replace_source_output(factory.maximum(node.output(0), node.output(0)).output(0))


def _is_quantized(output: ov.Output) -> bool:
    """True when the one reader of the value, or of what it becomes, is a FakeQuantize."""
    while len(ports := readers(output)) == 1:
        node, index = ports[0].get_node(), int(ports[0].get_index())
        others = [node.input_value(other) for other in range(node.get_input_size()) if other != index]
        if node.get_output_size() != 1 or any(constant(other) is None for other in others):
            return False
        if node.get_type_name() == "FakeQuantize":
            return index == 0
        output = node.output(0)
    return False
