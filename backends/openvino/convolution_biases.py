"""Biases of convolutions, in the form that OpenVINO does not lose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qcompile.backends.openvino.patterns import constant, readers
from qcompile.backends.openvino.runtime import opset

if TYPE_CHECKING:
    import openvino as ov

CONVOLUTIONS = (
    "Convolution",
    "ConvolutionBackpropData",
    "GroupConvolution",
    "GroupConvolutionBackpropData",
)


def fix_bias_shapes(model: ov.Model) -> None:
    """Add(conv, Reshape(bias, [1, C, 1..] from ShapeOf(conv)))  ->  Add(conv, Reshape(bias, the constant [1, C, 1..])).

    The front end takes the rank of a bias from the convolution, although it is known. Its ShapeOf attracts others: a
    batch size that is read of the input is then read of the convolution in front of its bias, and a convolution in 8
    bits that two nodes read loses that bias in the CPU plugin (measured, 2026.4: a vision transformer whose class token
    is expanded to the batch).

    Does not fire where the shape of the bias is not known.
    """
    factory = opset()
    for node in model.get_ordered_ops():
        if node.get_type_name() not in CONVOLUTIONS:
            continue
        additions = [port.get_node() for port in readers(node.output(0))]
        sources = [source for add in additions if add.get_type_name() == "Add" for source in add.input_values()]
        for source in sources:
            bias = source.get_node()
            if bias.get_type_name() != "Reshape" or constant(bias.input_value(1)) is not None:
                continue
            if source.get_partial_shape().is_static:
                shape = factory.constant(np.array(source.get_shape(), np.int64))
                bias.input(1).replace_source_output(shape.output(0))
