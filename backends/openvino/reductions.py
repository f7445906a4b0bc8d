"""Reductions whose result is quantized: OpenVINO's kernel of both together is wrong in two ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qcompile.backends.openvino.patterns import apart, constant, readers

if TYPE_CHECKING:
    import openvino as ov

EXTREMES = ("ReduceMax", "ReduceMin")
SUMS = ("ReduceL1", "ReduceL2", "ReduceMean", "ReduceProd", "ReduceSum")


def keep_reductions_apart(model: ov.Model) -> None:
    """FakeQuantize(ReduceMax(x))  ->  FakeQuantize(Maximum(m, m)) with m = ReduceMax(x), and other reductions alike.

    The CPU plugin fuses what follows a reduction to its kernel. Extremes it gathers, one block after the other, in the
    memory of the result: in 8 bits, before they are quantized. And where the reduced axes go, and the quantizer takes
    over what multiplies or shifts each channel before it, the kernel reads the channels along another axis, of sums,
    means, products and norms too. Results were wrong by up to the whole of their range (measured, 2026.4). A value with
    two readers is not fused, and the larger of a number and itself is that number.

    Leaves alone reductions that nothing quantizes on the way through operators with constant operands, which are the
    ones that the plugin fuses, and those that several nodes read. Twice changes nothing more.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() in (*EXTREMES, *SUMS) and _fused_wrongly(node):
            (port,) = readers(node.output(0))
            port.replace_source_output(apart(node.output(0)))


def _fused_wrongly(reduction: ov.Node) -> bool:
    """True when the one reader of the result, or of what it becomes, is a FakeQuantize, and the kernel is wrong."""
    wrong = reduction.get_type_name() in EXTREMES
    output = reduction.output(0)
    while len(ports := readers(output)) == 1:
        node, index = ports[0].get_node(), int(ports[0].get_index())
        others = [constant(node.input_value(other)) for other in range(node.get_input_size()) if other != index]
        if node.get_output_size() != 1 or any(other is None for other in others):
            return False
        if not reduction.get_attributes()["keep_dims"]:
            wrong = wrong or any(other is not None and other.size > 1 for other in others)
        if node.get_type_name() == "FakeQuantize":
            return wrong and index == 0
        output = node.output(0)
    return False
