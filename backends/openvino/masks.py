"""Attention masks without their parts that hide nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qcompile.backends.openvino.patterns import LAYOUT_ONLY, constant, constant_operand

if TYPE_CHECKING:
    import openvino as ov


def effective_mask(mask: ov.Output) -> ov.Output:
    """Return the smallest value that hides the same keys: LogicalAnd(mask, always true) -> mask.

    Exporters write a mask that hides nothing as a comparison of positions with 0, one for each query; And with the
    padding mask [batch, 1, 1, keys] makes [batch, 1, queries, keys] of it. The result may have a smaller shape
    than the argument, and broadcasts to it.
    """
    node = mask.get_node()
    if node.get_type_name() == "LogicalAnd":
        left, right = node.input_values()
        if _always_true(left):
            return effective_mask(right)
        if _always_true(right):
            return effective_mask(left)
    return mask


def adds_nothing(mask: ov.Output) -> bool:
    """True for an addend of zeros, which the ONNX front end writes where the model has no mask."""
    node = mask.get_node()
    while node.get_type_name() in (*LAYOUT_ONLY, "ConvertLike"):
        node = node.input_value(0).get_node()
    array = constant(node.output(0))
    return array is not None and array.dtype != bool and not array.any()


def _always_true(output: ov.Output) -> bool:
    node = output.get_node()
    kind = node.get_type_name()
    if kind in LAYOUT_ONLY:
        return _always_true(node.input_value(0))
    if kind == "LogicalAnd":
        return all(_always_true(operand) for operand in node.input_values())
    if kind == "GreaterEqual":
        operand = constant_operand(node)
        ordered = operand is not None and operand[0] == node.input_value(0)
        return ordered and operand is not None and bool((operand[1] <= 0).all()) and _is_position(operand[0])
    array = constant(output)
    return array is not None and array.dtype == bool and bool(array.all())


def _is_position(output: ov.Output) -> bool:
    """True for a Range that starts at 0 or more and rises, whatever its layout."""
    node = output.get_node()
    if node.get_type_name() in LAYOUT_ONLY:
        return _is_position(node.input_value(0))
    if node.get_type_name() != "Range":
        return False
    start, step = _scalar(node.input_value(0)), _scalar(node.input_value(2))
    return start is not None and step is not None and start >= 0 and step > 0


def _scalar(output: ov.Output) -> float | None:
    while output.get_node().get_type_name() in LAYOUT_ONLY:
        output = output.get_node().input_value(0)
    array = constant(output)
    return float(array.item()) if array is not None and array.size == 1 else None
