"""Products that are read as they are, and shifted or multiplied too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qcompile.backends.openvino.patterns import PRODUCTS, apart, constant_operand, readers

if TYPE_CHECKING:
    import openvino as ov

SCALING = ("Divide", "Multiply")
MERGED = ("Add", *SCALING, "Subtract")
"""Operators that are merged with a product, with a constant operand."""

ACTIVATIONS = (
    "Abs",
    "Clamp",
    "Elu",
    "Exp",
    "Gelu",
    "HSigmoid",
    "HSwish",
    "Negative",
    "PRelu",
    "Relu",
    "Sigmoid",
    "SoftPlus",
    "Swish",
    "Tanh",
)

VIEWS = ("Broadcast", "Convert", "Reshape", "Squeeze", "Unsqueeze")
"""Operators that are gone where they change nothing: a Reshape to the shape that is there already."""

BOUNDS = ("Maximum", "Minimum")
"""What a Clip is, of a constant and a value."""

MOVES = ("Concat", "Slice", "StridedSlice", "Transpose")
"""Operators behind which a constant is merged all the same."""


def keep_products_apart(model: ov.Model) -> None:
    """MatMul * c, where something else reads the product p too  ->  Maximum(p, p) * c; sums with constants alike.

    OpenVINO merges a constant that is added to a product, or multiplies it, with the product, and does not mind its
    other readers: they get the product with the constant, or what is quantized is without it. The same of what
    activations and other constants make of the product. Results were wrong by more than the whole of their range, of
    MatMul and Convolution, in int8 and in float (measured, 2026.4, mostly with a dynamic batch). The larger of a number
    and itself is that number, and is not merged. A sum with a value that is computed is written where the product of a
    Convolution was, although that is read too.

    Leaves alone values that have one reader, and single numbers, which it gets right where nothing is multiplied
    before. Twice changes nothing more.
    """
    for node in model.get_ordered_ops():
        ports = [] if node.get_output_size() != 1 else readers(node.output(0))
        scaled = _scaled_product(node) if len(ports) > 1 else None
        merged = [] if scaled is None else [port for port in ports if _is_merged(port.get_node(), scaled)]
        if merged:
            same = apart(node.output(0))
            for port in merged:
                port.replace_source_output(same)


def _scaled_product(node: ov.Node) -> bool | None:
    """Whether the node multiplies a product by a constant, or moves or negates it; None for what is of no product."""
    scaled = False
    while node.get_type_name() not in PRODUCTS:
        operands = constant_operand(node) if node.get_type_name() in (*MERGED, *BOUNDS) else None
        if operands is None and node.get_type_name() not in (*ACTIVATIONS, *VIEWS):
            return None
        scaled = scaled or node.get_type_name() in (*SCALING, "Negative", *VIEWS)
        node = (node.input_value(0) if operands is None else operands[0]).get_node()
    return scaled


def _is_merged(node: ov.Node, scaled: bool) -> bool:
    """True for what is merged with a product that it reads, or leads to it through operators that it reads alone."""
    while True:
        operands = constant_operand(node) if node.get_type_name() in MERGED else None
        if operands is not None:
            return scaled or operands[1].size > 1
        if node.get_type_name() == "Add":
            return True
        bound = node.get_type_name() in BOUNDS and constant_operand(node) is not None
        passes = bound or node.get_type_name() in (*ACTIVATIONS, *VIEWS, *MOVES)
        ports = readers(node.output(0)) if passes else []
        if len(ports) != 1:
            return False
        node, scaled = ports[0].get_node(), True
