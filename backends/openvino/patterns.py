"""Questions about an OpenVINO graph that several rewrites ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qcompile.backends.openvino.runtime import opset

if TYPE_CHECKING:
    import openvino as ov

LAYOUT_ONLY = ("Broadcast", "Convert", "Reshape", "Squeeze", "Transpose", "Unsqueeze")

PRODUCTS = (
    "Convolution",
    "ConvolutionBackpropData",
    "GroupConvolution",
    "GroupConvolutionBackpropData",
    "MatMul",
)


def constant(output: ov.Output) -> np.ndarray | None:
    """Return the array of a Constant node, else None. The array is a view of the model's memory."""
    node = output.get_node()
    return node.get_data() if node.get_type_name() == "Constant" else None


def readers(output: ov.Output) -> list[ov.Input]:
    """Every input port that reads the output."""
    return list(output.get_target_inputs())


def constant_operand(node: ov.Node) -> tuple[ov.Output, np.ndarray] | None:
    """Split a binary operator into its computed and its constant input, in either order; None without a constant."""
    for index in (1, 0):
        array = constant(node.input_value(index))
        if array is not None:
            return node.input_value(1 - index), array
    return None


def apart(output: ov.Output) -> ov.Output:
    """Return a value that is equal, and that OpenVINO neither merges nor moves anything through."""
    same: ov.Output = opset().maximum(output, output).output(0)
    return same
