"""The biases of quantized layers: of a convolution an integer with the scale of the products that it is added to."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qcompile import qdq
from qcompile.graph import Convolution, Linear, constant, constant_array
from qcompile.initializers import new_initializer
from qcompile.layers import Layer
from qcompile.weight_rounding import Parts


def has_constant_bias(layer: Layer) -> bool:
    """True where the layer has no bias, or one that nobody can override."""
    return layer.bias is None or constant(layer.bias) is not None


def correct_bias(layer: Linear, shift: np.ndarray) -> None:
    """Take a shift [outputs] off the bias of a linear that has one; what else reads the bias reads it as it was."""
    source = constant_array(layer.bias)
    if layer.add is None or layer.bias is None or source is None or not shift.any():
        return
    graph = layer.add.graph
    assert isinstance(graph, ir.Graph)
    new = new_initializer(graph, f"{layer.bias.name}.corrected", (source - shift).astype(np.float32))
    qdq.replace_input(layer.add, layer.bias, new)


def write_bias(layer: Convolution, input_scale: np.ndarray, weight_scale: np.ndarray, shift: np.ndarray) -> None:
    """Write the bias less a shift, as int32 where it does not clip; a bias that is no constant stays as it is.

    Args:
        layer: the convolution.
        input_scale: scale of its quantized input, [].
        weight_scale: of its quantized weight, [] or [outputs].
        shift: what quantization adds to the outputs on average, any shape of [outputs] elements; or one zero.
    """
    if not has_constant_bias(layer) or (layer.bias is None and not shift.any()):
        return
    source = constant_array(layer.bias)
    bias = -shift.reshape(-1) if source is None else source - shift.reshape(-1)
    parts = _as_integers(layer, bias, input_scale, weight_scale)
    like = layer.bias if layer.bias is not None else layer.weight
    if parts is not None:
        new = qdq.dequantized_constant(like, *parts, 0, layer.node)
    elif shift.any():
        graph = layer.node.graph
        assert isinstance(graph, ir.Graph)
        new = new_initializer(graph, f"{like.name}.corrected", bias.astype(np.float32))
    else:
        return
    layer.node.resize_inputs(3)
    layer.node.replace_input_with(2, new)


def _as_integers(
    layer: Convolution, bias: np.ndarray, input_scale: np.ndarray, weight_scale: np.ndarray
) -> Parts | None:
    """Return the bias [outputs] as int32 with scale s_x * s_w; None where it would clip.

    None as well for a ConvTranspose with a scale per channel: in a grouped one these are fewer than the biases.
    """
    if layer.transposed and np.ndim(weight_scale):
        return None
    scale = (input_scale * weight_scale).astype(np.float32)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        steps = np.rint(bias.astype(np.float64) / scale.astype(np.float64))
    if not np.all(np.isfinite(steps)) or np.abs(steps).max(initial=0) > np.iinfo(np.int32).max:
        return None
    return steps.astype(np.int32), scale, np.zeros(scale.shape, np.int32)
